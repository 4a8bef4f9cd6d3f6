"""The audit of `bench.deferred_kills`: what clients saw of their jobs, the upstream's batches and bills, the traces.

Pure functions on rows. A nonce in the prompt says of which request an item is; the job's id is its `custom_id`; and a
Message's id says which item an answer, a bill and a trace are of. So each join is exact, and nothing is matched by
being near in time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Asked:
    """One request of a client that can wait, and what the client saw of it.

    `jobs` are the ids it was told, one however often it had to ask. `end` is how its last look ended: `answered`, or
    the status; "" is no look at all. `after` are the statuses of looks after its DELETE was done.
    """

    nonce: str
    jobs: set[str] = field(default_factory=set)
    is_canceled: bool = False
    end: str = ""
    message: str = ""  # the id in the answer
    cost_pusd: int | None = None  # as the client was told
    digests: set[bytes] = field(default_factory=set)  # of each look that was answered
    after: Counter[int] = field(default_factory=Counter)
    sends: int = 0
    looks: int = 0


@dataclass(slots=True)
class Item:
    """One item of a batch upstream; `kind` is that of its result, "" for none yet."""

    batch: str
    job: str
    nonce: str
    kind: str
    message: str


@dataclass(slots=True)
class Bill:
    """One answer that the upstream charges for."""

    message: str
    cost_pusd: int
    is_batch: bool


@dataclass(slots=True)
class Row:
    """One row of the trace store about an item of a batch."""

    trace: str
    batch: str
    message: str
    cost_pusd: int | None
    baseline_pusd: int | None
    outcome: str


@dataclass(slots=True)
class Books:
    """All four."""

    asked: list[Asked]
    items: list[Item]
    bills: list[Bill]
    rows: list[Row]


@dataclass(slots=True)
class Found:
    """Figures by view, each with its counts; `wrong` is what may not be."""

    clients: Counter[str] = field(default_factory=Counter)
    upstream: Counter[str] = field(default_factory=Counter)
    traces: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def audit(books: Books) -> Found:
    """Hold the four books against each other; they agree when `wrong` is empty."""
    found = Found()
    items: dict[str, list[Item]] = {}
    for item in books.items:
        items.setdefault(item.job, []).append(item)
    owners: dict[str, Asked] = {}
    for asked in books.asked:
        for job in asked.jobs:
            if job in owners:
                _complain(found, found.clients, "shared", f"job {job} is that of two requests")
            owners[job] = asked
    rows: dict[str, list[Row]] = {}
    for row in books.rows:
        rows.setdefault(row.message, []).append(row)
    for asked in books.asked:
        _client(found, asked, items, rows)
    _upstream(found, books, items, owners)
    _store(found, books, rows, owners)
    return found


def _client(found: Found, asked: Asked, items: Mapping[str, list[Item]], rows: Mapping[str, list[Row]]) -> None:
    """One request: it is one job, which ended once, with the answer to its own item, or with none after a DELETE."""
    seen = found.clients
    seen["sent again"] += asked.sends - 1
    seen["looks"] += asked.looks
    if len(asked.jobs) != 1:
        _complain(found, seen, "not one job", f"{asked}")
        return
    mine = [item for item in items.get(next(iter(asked.jobs)), ()) if item.kind == "succeeded"]
    if len(asked.digests) > 1:
        _complain(found, seen, "another answer later", f"{asked}")
    if asked.is_canceled:
        seen["canceled"] += 1
        if not asked.after or set(asked.after) != {404}:
            _complain(found, seen, "answered after a cancel", f"{asked}")
        return
    if asked.end != "answered":
        _complain(found, seen, "ended otherwise" if asked.end not in ("", "202") else "never ended", f"{asked}")
        return
    seen["answered"] += 1
    if asked.message not in {item.message for item in mine}:
        _complain(found, seen, "the answer of another", f"{asked}: upstream made {mine}")
        return
    booked = rows.get(asked.message, ())
    if asked.cost_pusd is None or any(row.cost_pusd != asked.cost_pusd for row in booked):
        _complain(found, seen, "at another cost", f"{asked}: the store says {booked}")
    for row in booked:
        if row.outcome != "ok" or row.baseline_pusd is None:
            _complain(found, seen, "another story", f"{asked}: the store says {row}")


def _upstream(found: Found, books: Books, items: Mapping[str, list[Item]], owners: Mapping[str, Asked]) -> None:
    """No job is in two batches, none is of nobody; each answer is billed once, at the price of batches."""
    seen = found.upstream
    bills: Counter[str] = Counter()
    for bill in books.bills:
        bills[bill.message] += 1
        if not bill.is_batch:
            _complain(found, seen, "at full price", f"{bill}")
    seen["batches"] = len({item.batch for item in books.items})
    for job, sent in items.items():
        asked = owners.get(job)
        seen["items"] += len(sent)
        if len(sent) > 1:
            _complain(found, seen, "submitted twice", f"{job} is in {[item.batch for item in sent]}")
        for item in sent:
            seen[f"items {item.kind or 'without an end'}"] += 1
            if asked is None or asked.nonce != item.nonce:
                _complain(found, seen, "unasked", f"{item}: {asked}")
            elif item.kind != "succeeded" and not asked.is_canceled:
                _complain(found, seen, "not answered", f"{item}: its client did not cancel it")
            elif item.kind == "succeeded" and bills[item.message] != 1:
                _complain(found, seen, "not billed once", f"{item}: {bills[item.message]} bills")
    named = {item.message for item in books.items if item.message}
    for bill in books.bills:
        if bill.message not in named:
            _complain(found, seen, "billed for no item", f"{bill}")
    seen["pico-dollars"] = sum(bill.cost_pusd for bill in books.bills)


def _store(found: Found, books: Books, rows: Mapping[str, list[Row]], owners: Mapping[str, Asked]) -> None:
    """Each bill is one row at its cost, and there is no other."""
    seen = found.traces
    items = {item.message: item for item in books.items if item.message}
    for bill in books.bills:
        booked = rows.get(bill.message, ())
        if len(booked) != 1:
            _complain(found, seen, "not booked once", f"{bill}: {booked or 'no row'}")
        elif booked[0].cost_pusd != bill.cost_pusd:
            _complain(found, seen, "at another cost", f"{bill}: {booked[0]}")
        else:
            seen["booked at its cost"] += 1
    billed = {bill.message for bill in books.bills}
    for row in books.rows:
        seen[f"outcome {row.outcome}"] += 1
        item = items.get(row.message)
        if row.message not in billed or item is None:
            _complain(found, seen, "without a bill", f"{row}")
        elif item.batch != row.batch:
            _complain(found, seen, "of another batch", f"{row}: {item}")
        elif row.outcome == "client_closed" and (item.job not in owners or not owners[item.job].is_canceled):
            _complain(found, seen, "closed by nobody", f"{row}: {owners.get(item.job)}")
    seen["pico-dollars"] = sum(row.cost_pusd or 0 for row in books.rows)


def _complain(found: Found, seen: Counter[str], what: str, text: str) -> None:
    seen[what.upper()] += 1
    found.wrong.append(f"{what}: {text}")
