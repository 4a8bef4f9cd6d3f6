"""Mixed requests through both programs, and what the router's books say of them against the upstream's own.

Used by the suite with a few thousand requests and by `bench/ledger.py` with ten thousand.
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

from kit.live import REPOSITORY, Live, program
from kit.recording import Client
from kit.varied import bodies, spelled

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


@dataclass(frozen=True)
class Job:
    """One request; `leaves` is when its client hangs up: never, before the answer, or after its first bytes."""

    body: bytes
    leaves: str = ""


@dataclass(frozen=True)
class Books:
    """Both sides after a run: traces with money as exact decimals, and the upstream's entries."""

    traces: list[dict[str, Any]]
    entries: list[dict[str, Any]]


def jobs(count: int, seed: int = 7) -> Iterator[Job]:
    """`count` requests: half are streams; prompt caches, tools; repeats, some at once; 5 % faults; 2 % hang up."""
    dice = random.Random(seed)
    kinds = [*FAULTS, FALLS_BACK]
    plain: list[dict[str, Any]] = []
    for number, body in enumerate(bodies(seed=seed, count=count)):
        body["stream"] = number % 2 == 0
        leaves = ""
        if number % 100 < 5:
            _say(body, dice.choice(kinds))
        elif number % 100 in (50, 70):
            leaves = "before" if number % 100 == 50 else "after"
        elif number % 100 == 90:
            body["max_tokens"] = 10_000_000  # refused upstream: costs nothing
        elif number % 10 in (6, 7) and plain:
            body = plain[-1]  # three times in a row, by clients that run at once
        elif number % 10 == 8 and plain:
            body = dice.choice(plain)  # again, after a while
        else:
            plain.append(body)
        yield Job(spelled(body, dice), leaves)


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
        asyncio.run(_send_all(stage.api, jobs(count), clients))
        traces = _settled(stage, count)
        return Books(traces, stage.ledger()["entries"])


async def _send_all(address: str, queue: Iterator[Job], clients: int) -> None:
    async def one_after_another() -> None:
        client = await Client.to(address)
        for job in queue:
            if not job.leaves:
                try:
                    await client.post("/v1/messages", job.body, _HEADERS)
                except (asyncio.IncompleteReadError, ConnectionError):  # a cut stream: the router cuts it too
                    await client.close()
                    client = await Client.to(address)
                continue
            leaving = await Client.to(address)
            head = f"POST /v1/messages HTTP/1.1\r\nhost: router.test\r\ncontent-length: {len(job.body)}\r\n"
            rest = "".join(f"{name}: {value}\r\n" for name, value in _HEADERS.items())
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
        before, rows = len(rows), exact_traces(stage)
        if len(rows) >= count or (len(rows) == before and len(rows) > count * 0.98):
            break
    return rows


def exact_traces(stage: Live) -> list[dict[str, Any]]:
    """All traces, money as exact decimals."""
    rows: list[dict[str, Any]] = []
    mark = ""
    while True:
        with urllib.request.urlopen(f"{stage.admin}/traces?limit=500{mark}", timeout=30) as answer:
            page = json.load(answer, parse_float=Decimal)
        rows += page["traces"]
        if not page["next"]:
            return rows
        mark = f"&before={page['next']}"


def _say(body: dict[str, Any], text: str) -> None:
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        body["messages"][-1]["content"] = f"{content}\n{text}"
    else:
        content[-1]["text"] += f"\n{text}"


def check(books: Books, count: int) -> dict[str, int]:
    """Hold the books against each other; returns how many of what there was. Raises AssertionError.

    Every answer that the upstream billed is in exactly one attempt of one trace. Where the answer came to its end both
    say the same, to the pico-dollar. Where it did not, the router knows what it was told before the end: it says less
    or `unknown`, never more, and never nothing.
    """
    traces, entries = books.traces, {entry["request_id"]: entry for entry in books.entries}
    assert len(entries) == len(books.entries), "the upstream bills no request twice"
    assert len({row["trace_id"] for row in traces}) == len(traces), "one request, one record"
    seen = {"traces": len(traces), "equal": 0, "cut": 0, "hits": 0, "coalesced": 0, "refused": 0, "fell back": 0,
            "unknown": 0, "left": 0}  # fmt: skip
    billed: set[str] = set()
    unnamed = 0
    total = 0
    for row in traces:
        cost = row["cost_usd"]
        seen["hits"] += row["cache"] == "hit"
        seen["coalesced"] += row["cache"] == "coalesced"
        seen["unknown"] += cost is None
        seen["left"] += row["outcome"] == "client_closed"
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
