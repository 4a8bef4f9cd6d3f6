"""Mixed requests through both programs, and what the router's books say of them against the upstream's own.

Used by the suite with a thousand requests and by `bench/ledger.py` with ten thousand. A twentieth as many again are
items of Message Batches, whose results are fetched twice.
"""

from __future__ import annotations

import asyncio
import json
import random
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from kit.costly import KINDS, Costly, add_text, advisor, compaction_on_demand, in_the_us, long_prompt, plain
from kit.live import REPOSITORY, Live, program
from kit.recording import Client
from kit.varied import bodies, spelled
from router.simulator.ledger import bill_pusd
from router.simulator.record import load_roster

_HEADERS = {"x-api-key": "sk-test", "anthropic-version": "2026-10-21"}
_SOON = {"retry-after-ms": "1"}
# In the text of a request: what happens to it upstream.
FAULTS = {
    "(fault: shed)": {"status": 529, "type": "overloaded_error", "headers": _SOON},
    "(fault: broken)": {"status": 500, "type": "api_error", "headers": _SOON},
    "(fault: cut)": {"cut_after_events": 4},
    "(fault: error)": {"error_after_events": 4},
    "(fault: no end)": {"no_message_stop": True},
}
FALLS_BACK = "(fault: one lane)"  # only on Haiku, so that the next lane of the route answers
# Of a hundred requests, those whose price has parts, one for each of `KINDS`.
_SPECIAL = [number for number in range(9, 56) if number % 2 and number % 10 != 7]
_BATCH_OF = 25
_ROSTER = load_roster()
_MODELS = {name: model for model in _ROSTER.models for name in (model.id, *model.fields["aliases"])}
_BATCHED = (plain, in_the_us, compaction_on_demand, advisor)


@dataclass(frozen=True)
class Job:
    """One request; `leaves` is when its client hangs up: never, before the answer, or after its first bytes."""

    body: bytes
    leaves: str = ""
    betas: tuple[str, ...] = ()

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it."""
        return _HEADERS | ({"anthropic-beta": ",".join(self.betas)} if self.betas else {})


@dataclass(frozen=True)
class Books:
    """Both sides after a run: traces with money as exact decimals, and the upstream's entries."""

    traces: list[dict[str, Any]]
    entries: list[dict[str, Any]]
    batched: int  # items of Message Batches
    reported_usd: Decimal  # the total of the router's report
    metered_usd: float  # the sum over its metric


def jobs(count: int, seed: int = 7) -> Iterator[Job]:
    """`count` requests: streams and not; one in five of `kit.costly`; repeats; 5 % meet faults, 2 % hang up."""
    dice = random.Random(seed)
    kinds = [*FAULTS, FALLS_BACK]
    said: list[Costly] = []
    for number, body in enumerate(bodies(seed=seed, count=count)):
        made, leaves = Costly(body), ""
        is_stream = number % 2 == 0
        if number % 100 < 5:
            add_text(body, dice.choice(kinds))
        elif number % 100 in (50, 70):
            leaves = "before" if number % 100 == 50 else "after"
        elif number % 100 == 90:
            body["max_tokens"] = 10_000_000  # refused upstream: costs nothing
        elif number % 100 in _SPECIAL:
            make = KINDS[_SPECIAL.index(number % 100)]
            made = (long_prompt if number % 400 == _SPECIAL[-1] else make)(dice, number)
            is_stream = dice.random() < 0.5
            if dice.random() < 0.1:
                add_text(made.body, dice.choice(kinds))
            elif dice.random() < 0.05 and is_stream:
                leaves = "after"
            else:
                said.append(made)
        elif number % 10 in (6, 7) and said:
            made = said[-1]  # three times in a row, by clients that run at once
        elif number % 10 == 8 and said:
            made = dice.choice(said)  # again, after a while
        else:
            said.append(made)
        made.body.setdefault("stream", is_stream)
        yield Job(spelled(made.body, dice), leaves, made.betas)


def batch_bodies(count: int, seed: int = 11) -> Iterator[tuple[bytes, tuple[str, ...]]]:
    """Batches of a few items each and their betas; some items are refused when their turn comes."""
    dice = random.Random(seed)
    for first in range(0, count, _BATCH_OF):
        items, betas = [], set()
        for number in range(first, min(count, first + _BATCH_OF)):
            made = dice.choice(_BATCHED)(dice, number)
            made.body.pop("fallbacks", None)
            if dice.random() < 0.1:
                made.body["max_tokens"] = 10_000_000
            items.append({"custom_id": f"item-{number}", "params": made.body})
            betas.update(made.betas)
        yield json.dumps({"requests": items}).encode(), tuple(sorted(betas))


def run(folder: Path, count: int, *, clients: int = 12) -> Books:
    """Send them through a router in front of a simulator, and read both books."""
    script = folder / "script.yaml"
    entries = [{"when": {"contains": text}, **what} for text, what in FAULTS.items()]
    entries.append(
        {"when": {"contains": FALLS_BACK, "model": "claude-haiku-5-5"}, **FAULTS["(fault: shed)"]}
    )  # fmt: skip
    script.write_text(json.dumps(entries), encoding="utf-8")
    with (
        program("simulate", "--port", "0", "--latency", "none", "--script", str(script)) as simulator,
        program(
            "serve", "--port", "0", "--admin-port", "0", "--upstream", simulator["simulator"],
            "--policies", str(REPOSITORY / "policies"), "--traces", f"sqlite:///{folder}/traces.db", cwd=folder,
        ) as router,
    ):  # fmt: skip
        stage = Live(simulator["simulator"], router["api"], router["admin"], folder)
        batched = count // 20
        batches = [_asked(f"{stage.api}/v1/messages/batches", *made)["id"] for made in batch_bodies(batched)]
        asyncio.run(_send_all(stage.api, jobs(count), clients))
        for batch in batches * 2:
            _fetch_results(stage.api, batch)
        traces = _settled(stage, count)
        traces += exact_traces(stage, "endpoint=batch_item")
        return Books(traces, stage.ledger()["entries"], batched, _reported_usd(stage), _metered_usd(stage))


def _asked(url: str, body: bytes | None = None, betas: tuple[str, ...] = ()) -> Any:
    """The JSON answer of one request."""
    request = urllib.request.Request(url, body, _HEADERS | {"anthropic-beta": ",".join(betas)})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def _fetch_results(api: str, batch: str) -> None:
    """Wait for the end of a batch and read its results to the last byte, where the router says that they are."""
    while (seen := _asked(f"{api}/v1/messages/batches/{batch}"))["processing_status"] != "ended":
        pass
    with urllib.request.urlopen(urllib.request.Request(seen["results_url"], headers=_HEADERS), timeout=60) as answer:
        assert seen["results_url"].startswith(api)
        assert len(answer.read().splitlines()) == sum(seen["request_counts"].values())


async def _send_all(address: str, queue: Iterator[Job], clients: int) -> None:
    async def one_after_another() -> None:
        client = await Client.to(address)
        for job in queue:
            if not job.leaves:
                try:
                    await client.post("/v1/messages", job.body, job.headers)
                except (asyncio.IncompleteReadError, ConnectionError):  # a cut stream: the router cuts it too
                    await client.close()
                    client = await Client.to(address)
                continue
            leaving = await Client.to(address)
            head = f"POST /v1/messages HTTP/1.1\r\nhost: router.test\r\ncontent-length: {len(job.body)}\r\n"
            rest = "".join(f"{name}: {value}\r\n" for name, value in job.headers.items())
            leaving.writer.write(f"{head}{rest}\r\n".encode() + job.body)
            await leaving.writer.drain()
            if job.leaves == "after":
                await leaving.reader.read(64)
            leaving.writer.transport.abort()
        await client.close()

    await asyncio.gather(*(one_after_another() for _ in range(clients)))


def _settled(stage: Live, count: int) -> list[dict[str, Any]]:
    """The traces, once those of the clients that left are there too; one whose bytes never arrived has none."""
    rows: list[dict[str, Any]] = []
    for _ in range(100):
        before, rows = len(rows), exact_traces(stage, "endpoint=messages")
        if len(rows) >= count or (len(rows) == before and len(rows) > count * 0.98):
            break
    return rows


def exact_traces(stage: Live, which: str) -> list[dict[str, Any]]:
    """All traces of a filter, money as exact decimals."""
    rows: list[dict[str, Any]] = []
    mark = ""
    while True:
        with urllib.request.urlopen(f"{stage.admin}/traces?limit=500&{which}{mark}", timeout=30) as answer:
            page = json.load(answer, parse_float=Decimal)
        rows += page["traces"]
        if not page["next"]:
            return rows
        mark = f"&before={page['next']}"


def _reported_usd(stage: Live) -> Decimal:
    with urllib.request.urlopen(f"{stage.admin}/report?by=model", timeout=30) as answer:
        return Decimal(json.load(answer, parse_float=Decimal)["totals"]["cost_usd"])


def _metered_usd(stage: Live) -> float:
    with urllib.request.urlopen(f"{stage.admin}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("router_cost_usd_total{"))


def check(books: Books, count: int) -> dict[str, int]:
    """Hold the books against each other; returns how many of what there was. Raises AssertionError.

    Every answer that the upstream billed is in exactly one attempt of one trace, or is exactly one item of a batch.
    Where the answer came to its end both say the same, to the pico-dollar. Where it did not, the router knows what it
    was told before the end: it says less or `unknown`, never more, and never nothing. What an answer would have cost on
    the model asked for is worked out by both, too.
    """
    assert len({entry["request_id"] for entry in books.entries}) == len(books.entries), (
        "the upstream bills nothing twice"
    )
    assert len({row["trace_id"] for row in books.traces}) == len(books.traces), "one request, one record"
    known = sum(row["cost_usd"] for row in books.traces if row["cost_usd"] is not None)
    assert known == books.reported_usd, "the report is the sum of the records"
    assert abs(float(known) - books.metered_usd) < 1e-6, "and so is the metric"
    batched = [entry for entry in books.entries if entry["usage"]["service_tier"] == "batch"]
    items = [row for row in books.traces if row["endpoint"] == "batch_item"]
    seen = _check_requests(
        [row for row in books.traces if row["endpoint"] == "messages"],
        {entry["request_id"]: entry for entry in books.entries if entry["usage"]["service_tier"] != "batch"},
        count,
    )
    _check_items(items, batched)
    assert len(batched) <= books.batched
    seen |= {"items": len(items), "refused items": books.batched - len(items)}
    return seen | _parts(books.entries)


def _check_items(items: list[dict[str, Any]], entries: list[dict[str, Any]]) -> None:
    """Every item that succeeded is one record, whose price is the upstream's."""
    by_id = {row["request_id"]: row for row in items}
    assert len(by_id) == len(items), "no item is booked twice"
    assert by_id.keys() == {entry["message_id"] for entry in entries}, "none is missing, and none was made up"
    for entry in entries:
        row = by_id[entry["message_id"]]
        assert int(row["cost_usd"] * 10**12) == entry["cost_pusd"], (row, entry)
        assert row["saved_usd"] == row["baseline_usd"] - row["cost_usd"]


def _check_requests(traces: list[dict[str, Any]], entries: dict[str, dict[str, Any]], count: int) -> dict[str, int]:
    """See `check`: what was not in a batch."""
    seen = {"traces": len(traces), "equal": 0, "cut": 0, "hits": 0, "coalesced": 0, "refused": 0, "fell back": 0,
            "unknown": 0, "left": 0, "moved": 0}  # fmt: skip
    billed: set[str] = set()
    unnamed = 0
    total = 0
    for row in traces:
        cost = row["cost_usd"]
        seen["hits"] += row["cache"] == "hit"
        seen["coalesced"] += row["cache"] == "coalesced"
        seen["unknown"] += cost is None
        seen["left"] += row["outcome"] == "client_closed"
        has_parts = row["usage"] is not None and bool(row["usage"]["iterations"])
        seen["moved"] += has_parts and row["model_sent"] != row["model_asked"]
        if row["cache"] == "hit":
            assert cost == 0
            assert row["saved_usd"] == row["baseline_usd"] > 0
        if cost is not None and row["baseline_usd"] is not None:
            assert row["saved_usd"] == row["baseline_usd"] - cost
        known = [attempt for attempt in row["attempts"] if attempt["cost_usd"] is not None]
        if cost is not None and row["cache"] not in ("hit", "coalesced"):
            assert cost == sum(attempt["cost_usd"] for attempt in known)
        seen["fell back"] += row["status"] == 200 and len({attempt["model"] for attempt in row["attempts"]}) > 1
        for attempt in row["attempts"]:
            entry = entries.get(attempt["request_id"])
            if entry is None:
                assert not attempt["cost_usd"], "nothing is booked that was not billed"
                unnamed += attempt["request_id"] is None
                seen["refused"] += attempt["status"] is not None and attempt["status"] >= 400
                continue
            assert attempt["request_id"] not in billed, "no bill is booked twice"
            billed.add(attempt["request_id"])
            pusd = None if attempt["cost_usd"] is None else int(attempt["cost_usd"] * 10**12)
            is_final = attempt["usage"] is not None and attempt["usage"]["is_final"]
            if entry["is_complete"] and is_final:
                assert pusd == entry["cost_pusd"], (attempt, entry)
                if attempt is row["attempts"][-1]:
                    assert int(row["baseline_usd"] * 10**12) == _elsewhere(entry, row["model_asked"], row["model_sent"])
                total += entry["cost_pusd"]
                seen["equal"] += 1
            else:
                assert pusd is None or 0 < pusd <= entry["cost_pusd"], (attempt, entry)
                seen["cut"] += 1
    missing = [entry for name, entry in entries.items() if name not in billed]
    # The upstream names a request in its answer: whoever hangs up before cannot know the name. It is `unknown` then.
    assert len(missing) <= min(unnamed, seen["unknown"]), missing[:3]
    assert all(not entry["is_complete"] or unnamed for entry in missing)
    assert total > 0
    assert len(traces) > count * 0.98
    return seen | {"billed": len(entries), "unnamed": len(missing)}


def _elsewhere(entry: dict[str, Any], asked: str, sent: str) -> int:
    """What an answer would have cost on the model asked for, by the upstream's arithmetic, pico-dollars.

    The calls of the model that the request was sent to count there; those of others (an advisor, a fallback) where
    they were.
    """
    usage = entry["usage"]
    listed = usage.get("iterations") or [usage]
    charges = [
        (_MODELS[asked if _MODELS[part.get("model") or sent] is _MODELS[sent] else part["model"]], usage | part)
        for part in listed
    ]
    searches = (usage["server_tool_use"] or {}).get("web_search_requests", 0)
    return bill_pusd(charges, searches, _ROSTER)


def _parts(entries: list[dict[str, Any]]) -> dict[str, int]:
    """How many bills had which parts."""
    usages = [entry["usage"] for entry in entries]
    calls = [[part["type"] for part in usage.get("iterations") or ()] for usage in usages]
    split = [usage["cache_creation"] for usage in usages]
    return {
        "compaction": sum("compaction" in kinds for kinds in calls),
        "advisor": sum("advisor_message" in kinds for kinds in calls),
        "fallback": sum("fallback_message" in kinds for kinds in calls),
        "stuck": sum(kinds == ["fallback_message"] for kinds in calls),
        "wrote 5m": sum(each["ephemeral_5m_input_tokens"] > 0 for each in split),
        "wrote 1h": sum(each["ephemeral_1h_input_tokens"] > 0 for each in split),
        "read": sum(usage["cache_read_input_tokens"] > 0 for usage in usages),
        "long": sum(_is_long(entry) for entry in entries),
        "us": sum(usage["inference_geo"] == "us" for usage in usages),
        "fast": sum(usage["speed"] == "fast" for usage in usages),
        "searches": sum(usage["server_tool_use"] is not None for usage in usages),
    }


def _is_long(entry: dict[str, Any]) -> bool:
    """Whether some call of an answer by Haiku 5.5 was over the step in its price."""
    if entry["model"] != "claude-haiku-5-5":
        return False
    usage = entry["usage"]
    inputs = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    return any(sum(part[name] for name in inputs) > 100_000 for part in (usage, *(usage.get("iterations") or ())))
