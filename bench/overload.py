"""What is left of the router when it is asked for more than it can do, and what one tenant's load does to another.

    python -m bench.overload [--seconds 6] [--rounds 3] [--connections 128] [--only work|places|tenants] [--json]

Three questions, each with the router on one core and load and fake upstream on the other, as in `bench.run`:

- `work`: the event loop is the limit. The rate at which a closed loop is served is the capacity; then requests come at
  1, 2 and 10 times that rate, whether or not answers keep up, as long as there is a connection to send them on.
- `places`: the number of requests at work is the limit (`max_concurrent: 64`, an upstream that takes 200 ms).
- `tenants`: tenant B asks 20 times a second, alone, then beside tenant A at 50 times that (and at 200 times, which is
  more than the machine has); the upstream takes 250 ms, as a small model does. How far does B's p99 move?

Printed are served requests a second, and per second of CPU that the router used: on a machine that is shared that is
the figure to compare. Then latencies of those served and of those turned away. Exit status 1 when an answer was neither
200 nor 529.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import uvloop

from bench.load import Connection, Load, percentile_ms
from bench.processes import HERE, LOAD_CORE, Server, cpu_s, pin, router, started

TENANTS = 4


class Mixed(Load):
    """A load whose answers are told apart by status; `keys` take turns, each a tenant."""

    def __init__(self, url: str, keys: list[str]) -> None:
        super().__init__(url, stream="")
        self.by_status: dict[int, list[float]] = {}
        template = self.requests.template
        self.templates = [template.replace(b"x-api-key: sk-bench", b"x-api-key: " + key.encode()) for key in keys]
        self.requests.next = self.next_of_turn  # type: ignore[method-assign]  # requests come by turns here
        self.turn = 0

    def next_of_turn(self) -> bytes:
        """The next request, of the next tenant."""
        self.requests.count += 1
        self.turn += 1
        return self.templates[self.turn % len(self.templates)] % (self.requests.count % 10**9)

    def answered(self, connection: Connection, latency_s: float, status: int) -> None:
        """Note the latency under its status."""
        self.by_status.setdefault(status, []).append(latency_s)
        super().answered(connection, latency_s, status)

    def told(self, seconds: float) -> dict[str, Any]:
        """The figures: served a second, latencies of the served and of the others, counts by status."""
        served, shed = self.by_status.get(200, []), self.by_status.get(529, [])
        return {
            "served_per_s": round(len(served) / seconds, 1),
            "served_p50_ms": percentile_ms(served, 0.5),
            "served_p99_ms": percentile_ms(served, 0.99),
            "shed_per_s": round(len(shed) / seconds, 1),
            "shed_p50_ms": percentile_ms(shed, 0.5),
            "shed_p99_ms": percentile_ms(shed, 0.99),
            "statuses": {str(status): len(each) for status, each in self.by_status.items()},
        }


class Unqueued(Mixed):
    """An open loop without a queue of its own: what finds no free connection when it is due is not sent (`unsent`).

    So a latency is that of the router: from the moment of sending. What piles up in a generator says nothing of it.
    """

    unsent = 0

    async def run_open(self, connections: int, seconds: float, rate: float) -> dict[str, float]:
        """Send `rate` requests a second for `seconds`."""
        self.is_open_loop = True
        self.idle.extend(await self.connect(connections))
        started_s = perf_counter()
        sent = 0
        while (now_s := perf_counter()) < started_s + seconds:
            for _ in range(int((now_s - started_s) * rate) - sent):
                sent += 1
                if self.idle:
                    self.busy += 1
                    self.idle.popleft().send(perf_counter())
                else:
                    self.unsent += 1
            await asyncio.sleep(0.001)
        self.until = 0.0
        self.done = asyncio.get_running_loop().create_future()
        if self.busy:
            await asyncio.wait_for(self.done, 30)
        return {}


async def generate(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The generator's process: one load for each `KEYS:RATE:CONNECTIONS` (rate 0: closed loop), all at a time."""
    gc.disable()
    loads, runs = [], []
    for text in options.load:
        keys, rate, connections = text.split(":")
        load = (Unqueued if float(rate) else Mixed)(options.url, keys.split(","))
        loads.append(load)
        if float(rate):
            runs.append(load.run_open(int(connections), options.seconds, float(rate)))
        else:
            runs.append(load.run_closed(int(connections), options.seconds))
    await asyncio.gather(*runs)
    return [
        load.told(options.seconds) | {"unsent": getattr(load, "unsent", 0), "keys": text.split(":")[0]}
        for load, text in zip(loads, options.load, strict=True)
    ]


def put(server: Server, seconds: float, *loads: str) -> list[dict[str, Any]]:
    """Loads on the server, from a process of their own; the first has the server's CPU (`cores`, `per_cpu_s`)."""
    command = [sys.executable, "-m", "bench.overload", "--generate", server.url, "--seconds", str(seconds)]
    before = cpu_s(server.pid)
    with subprocess.Popen(
        [*command, *(f"--load={load}" for load in loads)], stdout=subprocess.PIPE, text=True, cwd=HERE.parent
    ) as process:
        pin(process.pid, LOAD_CORE)
        output, _ = process.communicate(timeout=120)
    if process.returncode:
        raise SystemExit("bench: the load failed")
    found: list[dict[str, Any]] = json.loads(output)
    cpu = max(cpu_s(server.pid) - before, 0.01)
    found[0]["cores"] = round(cpu / seconds, 2)
    found[0]["per_cpu_s"] = sum(each["served_per_s"] for each in found) * seconds / cpu
    for each in found:
        server.errors += sum(count for status, count in each["statuses"].items() if status not in ("200", "529"))
    return found


def medians(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """The median of each figure."""
    names = [name for name, value in rounds[0].items() if isinstance(value, int | float)]
    return {name: round(median(each[name] for each in rounds), 2) for name in names}


def at_multiples(server: Server, options: argparse.Namespace, capacity: float) -> dict[str, Any]:
    """Rounds of 1, 2 and 10 times the capacity."""
    keys = ",".join(f"sk-{number}" for number in range(TENANTS))
    rounds: dict[int, list[dict[str, Any]]] = {1: [], 2: [], 10: []}
    for _ in range(options.rounds):
        for times, found in rounds.items():
            found += put(server, options.seconds, f"{keys}:{capacity * times}:{options.connections}")
    return {f"{times}x": medians(found) for times, found in rounds.items()}


def work(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The event loop is the limit."""
    with upstream(0) as origin, router(origin, folder, cache="off", max_lag_ms=options.max_lag_ms) as server:
        keys = ",".join(f"sk-{number}" for number in range(TENANTS))
        peak = [put(server, options.seconds, f"{keys}:0:32")[0] for _ in range(options.rounds)]
        closed = medians(peak)
        return {"closed": closed} | at_multiples(server, options, closed["served_per_s"]) | {"errors": server.errors}


def places(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The number of requests at work is the limit."""
    with (
        upstream(200) as origin,
        router(origin, folder, cache="off", max_concurrent="64", max_lag_ms=options.max_lag_ms) as server,
    ):
        return at_multiples(server, options, 64 / 0.2) | {"errors": server.errors}


def tenants(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What A does to B."""
    with upstream(250) as origin, router(origin, folder, cache="off", max_lag_ms=options.max_lag_ms) as server:
        rounds: dict[str, list[dict[str, Any]]] = {"alone": [], "50x": [], "200x": []}
        for _ in range(options.rounds):
            for name, found in rounds.items():
                noise = [f"sk-a:{int(name[:-1]) * 20}:512"] if name != "alone" else []
                found += put(server, options.seconds, *noise, "sk-b:20:64")
        quiet = {name: medians([each for each in found if each["keys"] == "sk-b"]) for name, found in rounds.items()}
        shed = {
            name: sum(each["statuses"].get("529", 0) for each in found if each["keys"] == "sk-b")
            for name, found in rounds.items()
        }
        noisy = {name: medians([each for each in rounds[name] if each["keys"] == "sk-a"]) for name in ("50x", "200x")}
        return {"quiet": quiet, "quiet_turned_away": shed, "noisy": noisy, "errors": server.errors}


def upstream(delay_ms: float) -> Any:
    """The fake upstream that takes so long."""
    command = [sys.executable, str(HERE / "fake_upstream.py"), "--delay-ms", str(delay_ms)]
    return _Origin(started(command, LOAD_CORE, says="fake upstream: ", cwd=HERE))


class _Origin:
    """The context of a started program, as its address."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def __enter__(self) -> str:
        _, line = self.context.__enter__()
        return str(line.split()[-1])

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)


def show(name: str, found: dict[str, Any]) -> None:
    """The figures for people."""
    print(f"\n{name}")
    if name == "tenants":
        alone = found["quiet"]["alone"]["served_p99_ms"]
        for case, figures in found["quiet"].items():
            moved = f"{figures['served_p99_ms'] / alone - 1:+.0%}"
            away = found["quiet_turned_away"][case]
            p50_ms, p99_ms = figures["served_p50_ms"], figures["served_p99_ms"]
            print(f"  B {case:<6} p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms ({moved}), turned away {away}")
        for case, figures in found["noisy"].items():
            print(f"  A {case:<6} served {figures['served_per_s']:.0f}/s, turned away {figures['shed_per_s']:.0f}/s")
        return
    cases = {case: figures for case, figures in found.items() if isinstance(figures, dict)}
    peak = max(figures["served_per_s"] for figures in cases.values())
    best = max(figures["per_cpu_s"] for figures in cases.values())
    for case, figures in cases.items():
        print(
            f"  {case:<6} served {figures['served_per_s']:7.0f}/s ({figures['served_per_s'] / peak:4.0%} of peak),"
            f" {figures['per_cpu_s']:6.0f} per CPU second ({figures['per_cpu_s'] / best:4.0%})"
            f"  p50 {figures['served_p50_ms']:6.1f}  p99 {figures['served_p99_ms']:6.1f} ms"
            f" | away {figures['shed_per_s']:7.0f}/s"
            f"  p50 {figures['shed_p50_ms']:6.1f}  p99 {figures['shed_p99_ms']:6.1f} ms"
            f" | unsent {figures['unsent']:.0f}  cores {figures['cores']:.2f}"
        )


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=128)
    parser.add_argument("--max-lag-ms", default="20", help="the router's setting")
    parser.add_argument("--only", choices=["work", "places", "tenants"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--generate", dest="url", help=argparse.SUPPRESS)
    parser.add_argument("--load", action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.url:
        print(json.dumps(uvloop.run(generate(options))))
        return
    results: dict[str, Any] = {}
    for name, measure in (("work", work), ("places", places), ("tenants", tenants)):
        if options.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="overload-") as folder:
                results[name] = measure(Path(folder), options)
            if not options.json:
                show(name, results[name])
    if options.json:
        print(json.dumps(results, indent=2))
    sys.exit(int(any(found["errors"] for found in results.values())))


if __name__ == "__main__":
    main()
