"""The same requests sent plain and with `Prefer: respond-async`: what each way costs, by both books.

    python -m bench.deferred_cost [--count 1000] [--seed 7] [--item-ms 2]

`--count` varied requests (`tests/kit/varied.py`) go through `router serve`, with the policies of this checkout and
without a cache, to `router simulate`: once plain, once as requests that can wait, each time with programs begun anew,
so that neither way finds prompts that the other left in the simulated prompt cache. What is booked in the trace store
is held against the simulator's ledger, answer by answer and to the pico-dollar. Prints the sums, their ratio, how many
batches were made, and the time until the last answer. Exit status 1 when the books differ, or an answer is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from bench.deferred_crowd import Reply, call
from bench.deferred_kills import program, told
from bench.processes import HERE
from tests.kit.varied import bodies

_CLIENTS = 16
_POLL_S = 0.5
_HEADERS = {"x-api-key": "sk-bench", "anthropic-version": "2023-06-01", "content-type": "application/json"}


@dataclass(slots=True)
class Way:
    """One way of asking: the status of each request by number, both books by the answer's id, in pico-dollars.

    A cost that the store does not know is None there. `doubled` are ids that are in one of the books twice.
    """

    name: str
    statuses: dict[int, int] = field(default_factory=dict)
    at_once: int = 0  # asked to be deferred, and answered at once
    ledger: dict[str, int] = field(default_factory=dict)
    store: dict[str, int | None] = field(default_factory=dict)
    doubled: list[str] = field(default_factory=list)
    batches: int = 0
    took_s: float = 0.0

    @property
    def cost_pusd(self) -> int:
        """What the upstream charges."""
        return sum(self.ledger.values())


def differences(ways: tuple[Way, Way], count: int) -> list[str]:
    """What is wrong with the books of two ways of asking the same `count` requests; none when they can be compared."""
    wrong = []
    for way in ways:
        missing = [number for number in range(count) if number not in way.statuses]
        wrong += [f"{way.name}: request {number} has no answer" for number in missing]
        wrong += [f"{way.name}: {name} is in a book twice" for name in way.doubled]
        for name in sorted(way.ledger.keys() | way.store.keys()):
            if way.ledger.get(name) != way.store.get(name):
                said = f"the ledger says {way.ledger.get(name)}, the store {way.store.get(name)}"
                wrong.append(f"{way.name}: {name}: {said}")
    first, second = ways
    wrong += [
        f"request {number} was answered with {first.statuses[number]} and {second.statuses[number]}"
        for number in sorted(first.statuses.keys() & second.statuses.keys())
        if first.statuses[number] != second.statuses[number]
    ]
    return wrong


def report(ways: tuple[Way, Way]) -> str:
    """The table, and the ratio."""
    lines = [f"{'':10} {'answers':>8} {'cost':>14} {'batches':>8} {'at once':>8} {'last answer':>12}"]
    for way in ways:
        cost, took = f"${way.cost_pusd / 1e12:.6f}", f"{way.took_s:.1f} s"
        lines.append(f"{way.name:10} {len(way.statuses):>8,} {cost:>14} {way.batches:>8,} {way.at_once:>8,} {took:>12}")
    plain, deferred = ways
    ratio = deferred.cost_pusd / plain.cost_pusd if plain.cost_pusd else float("nan")
    return "\n".join(
        [*lines, f"ratio {ratio:.4f}: deferred {deferred.cost_pusd:,} / plain {plain.cost_pusd:,} pico-dollars"]
    )


async def _answered(url: str, raw: bytes, places: asyncio.Semaphore, *, is_deferred: bool) -> tuple[int, bool]:
    """Ask, and wait for the end → (the status, whether it was answered at once). Each call takes one of the places."""
    headers = _HEADERS | ({"prefer": "respond-async"} if is_deferred else {})
    async with places:
        reply = _there(await call(url, "POST", "/v1/messages", headers, raw))
    path, is_first = "/v1/messages/deferred/" + reply.headers.get("location", "").rpartition("/")[2], True
    while reply.status == 202:
        is_first = False
        await asyncio.sleep(_POLL_S)
        async with places:
            reply = _there(await call(url, "GET", path, _HEADERS))
    return reply.status, is_first


def _there(reply: Reply | None) -> Reply:
    if reply is None:
        raise SystemExit("bench: the router closed a connection before it had answered")
    return reply


async def sent(folder: Path, name: str, requests: list[bytes], item_ms: float) -> Way:
    """All requests in one way, through programs of their own in `folder`."""
    way, is_deferred = Way(name), name == "deferred"
    places = asyncio.Semaphore(_CLIENTS)
    async with program(
        folder, "simulate", "--port", "0", "--latency", "none", "--batch-item-ms", str(item_ms)
    ) as (_, upstream):  # fmt: skip
        (folder / "router.yaml").write_text(
            f"upstream_url: {upstream}\nadmin_port: 0\naffinity: 'off'\ncache: 'off'\npolicy_history: 'off'\n"
            f"max_lag_ms: 0\npolicies: {HERE.parent / 'policies'}\ntraces: sqlite:///{folder}/router.db\n"
        )
        async with program(folder, "serve", "--port", "0") as (_, url):

            async def ask(number: int, raw: bytes) -> None:
                way.statuses[number], is_at_once = await _answered(url, raw, places, is_deferred=is_deferred)
                way.at_once += is_deferred and is_at_once

            began_s = time.perf_counter()
            await asyncio.gather(*(ask(number, raw) for number, raw in enumerate(requests)))
            way.took_s = time.perf_counter() - began_s
        way.batches = len(await told(upstream, "batches"))
        _read(way, await told(upstream, "ledger"), folder / "router.db")
    return way


def _read(way: Way, entries: list[dict[str, Any]], store: Path) -> None:
    """Both books; a plain answer is known by its request's id, one of a batch by its Message's."""
    times: Counter[str] = Counter()
    for entry in entries:
        name = entry["message_id"] if _is_batch(entry["usage"]) else entry["request_id"]
        way.ledger[name] = entry["cost_pusd"]
        times[f"ledger {name}"] += 1
    with closing(sqlite3.connect(store)) as connection:
        for name, cost in connection.execute(
            "SELECT request_id, cost_pusd FROM traces WHERE endpoint IN ('messages', 'batch_item') AND outcome = 'ok'"
        ):
            way.store[name] = cost
            times[f"store {name}"] += 1
    way.doubled = [name for name, number in times.items() if number > 1]


def _is_batch(usage: Mapping[str, Any]) -> bool:
    return usage.get("service_tier") == "batch"


async def both(folder: Path, options: argparse.Namespace) -> tuple[Way, Way]:
    """One after the other."""
    requests = [json.dumps(body, ensure_ascii=False).encode() for body in bodies(options.seed, options.count)]
    ways = []
    for name in ("plain", "deferred"):
        (folder / name).mkdir()
        ways.append(await sent(folder / name, name, requests, options.item_ms))
    return ways[0], ways[1]


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--item-ms", type=float, default=2.0, help="that the simulator takes for an item of a batch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="deferred-") as name:
        ways = uvloop.run(both(Path(name), options))
    wrong = differences(ways, options.count)
    print(report(ways))
    for line in wrong[:20]:
        print(f"WRONG {line}")
    print(f"{len(wrong)} differences" if wrong else "the trace store and the ledger agree to the pico-dollar")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
