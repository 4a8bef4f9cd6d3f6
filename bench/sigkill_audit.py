"""The audit of `bench.sigkill`: what clients saw, the upstream's ledger, the trace store and the shared cache, joined.

Pure functions on rows. A client names the trace of each try, the upstream bills the trace for which it was called, and
every answer tells which call it is of: so each join is exact, and nothing is matched by being near in time. Only two
things are judged by the clock. A request may be `aborted`, at an unknown cost, where a kill fell between its beginning
and its client's end of it. And a second call for a cached request wants a reason (`why_again`): a kill, or a line in
which the router says that Redis was not asked, did not answer or took no answer, about this very request and between
these very calls (`missed_of`).
"""

from __future__ import annotations

import bisect
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

CLOSING_NS = 500_000_000  # books are closed right behind the last byte; so long a machine with much to do may take
WRITING_NS = 100_000_000  # an answer is on its way into Redis: a turn of the loop, and the link's deadline of 50 ms
_MANY = 20  # requests turned away, of which some are in the store
_MS = 1_000_000  # the log's times are in whole milliseconds, rounded down
_REPLAYED = ("hit", "coalesced")
_MISSED = re.compile(r"cache: (?P<key>[0-9a-f]{64}): (?P<what>not looked up|an answer not written): (?P<reason>.+)")


@dataclass(slots=True)
class Job:
    """One try of a client, and what it saw. `end` is whole, broken, refused, or the status of an error."""

    trace: str
    nonce: str
    is_pooled: bool = False  # whether the rule that caches takes it
    is_second: bool = False  # asked once more when all was over: the answer is in the cache
    end: str = ""
    has_head: bool = False
    cache: str = ""
    cost_pusd: int | None = None  # as the client was told; None: not told
    digest: bytes = b""  # of the whole body
    ended_ns: int = 0


@dataclass(slots=True)
class Bill:
    """One call upstream; the money is that of the whole answer. `baseline_pusd`: at the model that clients ask for."""

    request_id: str
    nonce: str
    trace: str
    cost_pusd: int
    baseline_pusd: int
    begun_ns: int
    digest: bytes
    ended_ns: int = 0  # 0: not all of it could be written


@dataclass(slots=True)
class Row:
    """One row of the trace store. `calls`: the ids by which the upstream knows its attempts."""

    trace: str
    started_ns: int
    outcome: str
    cache: str
    cost_pusd: int | None
    baseline_pusd: int | None
    saved_pusd: int | None
    calls: tuple[str, ...] = ()
    cache_reason: str = ""
    is_rescued: bool = False  # booked from the journal of a killed process


class Entry(NamedTuple):
    """One entry of the shared cache: its key, and SHA-256 of its body."""

    key: str
    digest: bytes


class Missed(NamedTuple):
    """What the router says that Redis did not do for a cache key, and when (Unix ns, less than a millisecond early)."""

    at_ns: int
    key: str
    what: str
    reason: str


@dataclass(slots=True)
class Books:
    """All four, and when a process was killed (Unix ns, in order). `unreadable`: how many entries are not what a router
    writes. `missed`: what Redis did not do, by the routers' log."""

    jobs: list[Job]
    bills: list[Bill]
    rows: list[Row]
    entries: list[Entry]
    kills_ns: list[int]
    unreadable: int = 0
    missed: list[Missed] = field(default_factory=list)
    ttl_s: float = 86_400.0


@dataclass(slots=True)
class Found:
    """Figures by view, each with its counts; `wrong` is what may not be."""

    clients: Counter[str] = field(default_factory=Counter)
    upstream: Counter[str] = field(default_factory=Counter)
    traces: Counter[str] = field(default_factory=Counter)
    cache: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def audit(books: Books) -> Found:
    """Hold the four books against each other; they agree when `wrong` is empty."""
    found = Found()
    jobs = {job.trace: job for job in books.jobs}
    rows: dict[str, Row] = {}
    for row in books.rows:
        found.traces[f"outcome {row.outcome}"] += 1
        found.traces["booked from a journal"] += row.is_rescued
        if row.trace in rows:
            _complain(found, found.traces, "doubled", f"trace {row.trace} is there twice")
        elif row.trace not in jobs:
            _complain(found, found.traces, "unasked", f"trace {row.trace} is of no request of ours")
        rows[row.trace] = row
    bills = {bill.trace: bill for bill in books.bills}
    digests = {bill.digest: bill for bill in books.bills if bill.ended_ns}
    for job in books.jobs:
        _client(found, job, rows.get(job.trace), bills.get(job.trace), digests, books.kills_ns)
    turned_away, unrecorded = found.clients["529"], found.clients["529, counted without a row"]
    if turned_away == unrecorded and turned_away > _MANY:
        _complain(found, found.clients, "lost", f"none of {turned_away} requests that were turned away has a row")
    _upstream(found, books, jobs, rows)
    _store(found, rows.values(), {bill.request_id: bill for bill in books.bills})
    _cache(found, books, jobs, rows, digests)
    return found


def missed_of(log: str) -> list[Missed]:
    """What Redis did not do for a key, from a router's log at `debug` as JSON. A line that a kill cut short is none."""
    found = []
    for line in log.splitlines():
        if '"cache: ' not in line:
            continue
        try:
            record = json.loads(line)
        except ValueError:
            continue
        said = _MISSED.fullmatch(record["message"])
        if said is not None:
            at_s = datetime.fromisoformat(record["time"]).timestamp()
            found.append(Missed(round(at_s * 1_000) * _MS, said["key"], said["what"], said["reason"]))
    return found


def why_again(
    last: Bill, bill: Bill, rows: Mapping[str, Row], missed: Iterable[Missed], kills_ns: Sequence[int], ttl_s: float
) -> str:
    """Why a request that is cached went upstream once more; "" where nothing explains it.

    `last` is the call before. It left no entry: its process was killed while it was open, or so soon after that its
    books had not come into the store by the usual way or its answer not into Redis, or it was not to be kept (a
    fallback). Or the entry has lapsed.
    Or one of `missed`, which are those of this request, shows that its answer did not come into Redis, or that Redis
    was not asked or did not answer before `bill` began.
    """
    before, now = rows.get(last.trace), rows.get(bill.trace)
    if last.ended_ns and bill.begun_ns - last.ended_ns >= ttl_s * 1e9:
        return "lapsed"
    if before is None or before.outcome == "aborted":
        return "leader killed"
    if not last.ended_ns:
        return ""
    # Its books may come into the store before the answer comes into Redis: that may take as long as the link waits.
    if _is_killed(last.begun_ns, last.ended_ns + (CLOSING_NS if before.is_rescued else WRITING_NS), kills_ns):
        return "killed before it was kept"
    if before.cache_reason == "fallback" or (now is not None and now.cache_reason == "fallback"):
        return "fallback"
    for at_ns, _, what, reason in missed:
        is_write = what == "an answer not written"
        since_ns = last.begun_ns if is_write else bill.begun_ns if now is None else now.started_ns
        if since_ns - _MS <= at_ns <= bill.begun_ns:
            return f"{what}: {reason}"
    return ""


def _client(
    found: Found, job: Job, row: Row | None, bill: Bill | None, digests: Mapping[bytes, Bill], kills_ns: Sequence[int]
) -> None:
    """One try of a client: it has its trace, at the cost that it was told, and its answer is one that was billed."""
    seen = found.clients
    seen[job.end] += 1
    if job.end not in ("whole", "broken", "refused", "529"):
        _complain(found, seen, "refused for no reason", f"{job}: no kill answers so")
    if row is None:
        if job.end == "529" and bill is None:
            seen["529, counted without a row"] += 1  # there are so many of these rows in a second, and no money in one
        elif job.has_head or bill is not None:
            _complain(found, seen, "lost", f"{job}: no trace")
        return
    if job.end == "529" and row.outcome != "shed":
        _complain(found, seen, "another story", f"{job}: the store says {row}")
    if row.outcome == "shed" and (job.end == "whole" or bill is not None):
        _complain(found, seen, "turned away and served", f"{job}: {row}")
    if row.outcome == "aborted":
        if not _is_killed(row.started_ns, job.ended_ns + CLOSING_NS, kills_ns):
            _complain(found, seen, "aborted without a kill", f"{job}: {row}")
        seen["whole, but aborted"] += job.end == "whole"
    if job.end != "whole":
        return
    source = digests.get(job.digest)
    if source is None or source.nonce != job.nonce:
        _complain(found, seen, "another answer", f"{job}: not as any answer to this request was billed")
        return
    seen[f"whole: {job.cache or 'no word'}"] += 1
    if job.cache not in _REPLAYED and source.trace != job.trace:
        _complain(found, seen, "another answer", f"{job}: that of the call for {source.trace}")
    if row.outcome == "aborted":
        return
    if row.outcome != "ok" or row.cache != job.cache:
        _complain(found, seen, "another story", f"{job}: the store says {row}")
    if job.cost_pusd is not None and job.cost_pusd != row.cost_pusd:
        _complain(found, seen, "at another cost", f"{job}: the store says {row.cost_pusd}")
    if job.cache in _REPLAYED and (row.cost_pusd, row.baseline_pusd, row.saved_pusd) != (
        0, source.baseline_pusd, source.baseline_pusd,
    ):  # fmt: skip
        _complain(found, seen, "hit at another cost", f"{job}: {row}, but it saved {source.baseline_pusd}")


def _upstream(found: Found, books: Books, jobs: Mapping[str, Job], rows: Mapping[str, Row]) -> None:
    """Every call is in exactly one trace at the ledger's cost; or that was open when its process was killed."""
    seen = found.upstream
    times = Counter(bill.trace for bill in books.bills)
    for bill in books.bills:
        seen["answered whole" if bill.ended_ns else "cut off"] += 1
        job, row = jobs.get(bill.trace), rows.get(bill.trace)
        if job is None or job.nonce != bill.nonce:
            _complain(found, seen, "unasked", f"{bill}: no request of ours")
        elif row is None:
            _complain(found, seen, "lost", f"{bill}: no trace")
        elif times[bill.trace] > 1:
            _complain(found, seen, "doubled", f"{bill}: {times[bill.trace]} calls for one request")
        elif row.outcome == "aborted" and row.cost_pusd is None:
            seen["aborted, cost unknown"] += 1  # that there was a kill is asked with the client's view
        elif row.calls != (bill.request_id,):
            _complain(found, seen, "not booked", f"{bill}: the store knows {row.calls}")
        elif not bill.ended_ns:
            _complain(found, seen, "half an answer booked", f"{bill}: {row}")
        elif row.cost_pusd != bill.cost_pusd or row.baseline_pusd != bill.baseline_pusd:
            _complain(found, seen, "at another cost", f"{bill}: {row}")
        else:
            seen["booked at its cost"] += 1


def _store(found: Found, rows: Iterable[Row], bills: Mapping[str, Bill]) -> None:
    """Whatever the store has booked, the upstream has billed; and no call twice."""
    booked: Counter[str] = Counter()
    for row in rows:
        booked.update(row.calls)
        billed = sum(bills[name].cost_pusd for name in row.calls if name in bills)
        if any(name not in bills for name in row.calls) or (row.cost_pusd or 0) != (billed if row.cost_pusd else 0):
            _complain(found, found.traces, "without a bill", f"{row}: billed are {billed}")
        elif row.cost_pusd is None and row.outcome not in ("aborted", "shed"):
            _complain(found, found.traces, "unknown for no reason", f"{row}")
        elif row.outcome == "ok" and not row.calls and row.cache not in _REPLAYED:
            _complain(found, found.traces, "answered by nobody", f"{row}")
    for name, number in booked.items():
        if number > 1:
            _complain(found, found.traces, "doubled", f"{name} is booked {number} times")


def _cache(
    found: Found, books: Books, jobs: Mapping[str, Job], rows: Mapping[str, Row], digests: Mapping[bytes, Bill]
) -> None:
    """Each entry is a billed answer, each call for a cached request the first or explained, the second look a hit."""
    seen = found.cache
    if books.unreadable:
        seen["unreadable"] = books.unreadable
        found.wrong.append(f"cache: {books.unreadable} entries are not what a router writes")
    kept: Counter[str] = Counter()
    missed: dict[str, list[Missed]] = {}  # by nonce
    by_key: dict[str, list[Missed]] = {}
    for one in books.missed:
        by_key.setdefault(one.key, []).append(one)
    for key, digest in books.entries:
        bill = digests.get(digest)
        job = jobs.get(bill.trace) if bill is not None else None
        if bill is None or job is None or not job.is_pooled:
            _complain(found, seen, "altered", f"an entry of the cache is no whole answer to be kept: {digest.hex()}")
            continue
        seen["entries"] += 1
        kept[bill.nonce] += 1
        missed.setdefault(bill.nonce, []).extend(by_key.get(key, ()))
    for nonce, number in kept.items():
        if number > 1:
            _complain(found, seen, "two entries", f"{nonce} is kept {number} times")
    by_nonce: dict[str, list[Bill]] = {}
    for bill in sorted(books.bills, key=lambda bill: bill.begun_ns):
        job = jobs.get(bill.trace)
        if job is not None and job.is_pooled:
            by_nonce.setdefault(bill.nonce, []).append(bill)
    seen["requests"] = len(by_nonce)
    for nonce, calls in by_nonce.items():
        for last, bill in pairwise(calls):
            why = why_again(last, bill, rows, missed.get(nonce, ()), books.kills_ns, books.ttl_s)
            seen[f"called again: {why or 'NO REASON'}"] += 1
            if not why:
                found.wrong.append(f"cache: called again for no reason: {last} then {bill}: {rows.get(bill.trace)}")
    for job in books.jobs:
        if job.is_second and job.end != "529":  # who was turned away has asked again
            seen["asked at the end"] += 1
            if job.end != "whole" or job.cache != "hit" or kept[job.nonce] != 1:
                _complain(found, seen, "not kept", f"{job}: {kept[job.nonce]} entries")


def _is_killed(since_ns: int, until_ns: int, kills_ns: Sequence[int]) -> bool:
    """Whether a process was killed between two moments."""
    at = bisect.bisect_left(kills_ns, since_ns)
    return at < len(kills_ns) and kills_ns[at] <= until_ns


def _complain(found: Found, seen: Counter[str], what: str, text: str) -> None:
    seen[what.upper()] += 1
    found.wrong.append(f"{what}: {text}")
