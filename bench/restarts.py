"""Rolling restarts under open streams: what clients notice (F96, as far as one host goes).

    python -m bench.restarts [--restarts 50] [--streams 200] [--workers 2] [--pace-ms 60]

A router as an installed program with several workers before a fake upstream, and streams that begin at a steady rate,
so that about `--streams` are open at any time: half on connections that are kept, half on new ones. Each restart
(SIGUSR2) replaces every worker; the next begins when the last worker of the one before is ready. At the end every
answer is held against the trace store. Exit status 1 when a stream was cut, refused, answered with an error, or is
not in the store exactly once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import sqlite3
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import uvloop

from bench.asking import Answer, Client
from bench.processes import HERE, LOAD_CORE, Server, router, started


def events(server: Server) -> dict[str, int]:
    """What became of workers so far, from the metrics."""
    with urllib.request.urlopen(f"{server.admin}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {name: int(count) for name, count in re.findall(r'router_worker_events_total\{event="(\w+)"\} (\d+)', text)}


async def restart(server: Server, workers: int) -> float:
    """One rolling restart; how long it took in seconds."""
    before = (await asyncio.to_thread(events, server))["rolled"]
    began_s = time.perf_counter()
    os.kill(server.pid, signal.SIGUSR2)
    async with asyncio.timeout(300):
        while (await asyncio.to_thread(events, server))["rolled"] < before + workers:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    return time.perf_counter() - began_s


async def run(server: Server, options: argparse.Namespace) -> tuple[Client, list[Answer], list[float], list[int]]:
    """Streams at a steady rate until the last restart is over."""
    client = Client(server.url)
    stream_s = 105 * options.pace_ms / 1000
    rate = options.streams / stream_s
    tasks: list[asyncio.Task[Answer]] = []
    is_over = asyncio.Event()

    async def arrive() -> None:
        began_s, number = time.perf_counter(), 0
        while not is_over.is_set():
            tasks.append(asyncio.ensure_future(client.ask(number, stream=True, keep=number % 2 == 0)))
            number += 1
            await asyncio.sleep(max(0.0, began_s + number / rate - time.perf_counter()))

    arriving = asyncio.ensure_future(arrive())
    full_s = time.perf_counter() + stream_s
    while client.open < options.streams and time.perf_counter() < full_s:  # noqa: ASYNC110 - the network's own time
        await asyncio.sleep(0.1)
    took_s: list[float] = []
    seen: list[int] = []
    for number in range(options.restarts):
        took_s.append(await restart(server, options.workers))
        seen.append(client.open)
        if sys.stderr.isatty():
            print(f"\r{number + 1} of {options.restarts}, {client.open} open", end="", file=sys.stderr)
    is_over.set()
    await arriving
    answers = await asyncio.gather(*tasks)
    client.close()
    return client, answers, took_s, seen


def audit(store: Path, answers: list[Answer]) -> tuple[int, int]:
    """Answers that are not in the store exactly once, and rows of the store that no answer belongs to."""
    with sqlite3.connect(store) as connection:
        rows = [row[0] for row in connection.execute("SELECT trace_id FROM traces")]
    known = {answer.trace for answer in answers if answer.trace}
    wrong = len(known - set(rows))
    return wrong + len(rows) - len(set(rows)), len(set(rows) - known)


def main() -> None:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="show the router's log")
    parser.add_argument("--pace-ms", type=float, default=60.0)
    options = parser.parse_args()

    def hear(line: str) -> None:
        if options.verbose:
            print(line, file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="restarts-") as name:
        folder = Path(name)
        upstream = [sys.executable, str(HERE / "fake_upstream.py"), "--pace-ms", str(options.pace_ms)]
        with started(upstream, LOAD_CORE, says="fake upstream: ", cwd=folder) as (_, line):
            settings = {"workers": str(options.workers), "cache": "off", "affinity": "off"}
            with router(
                line.split()[-1],
                folder,
                hear=hear,
                **settings,
            ) as server:
                os.sched_setaffinity(server.pid, os.sched_getaffinity(0))
                client, answers, took_s, seen = uvloop.run(run(server, options))
        lost, strange = audit(folder / "router.db", answers)
    ends = dict(client.ends)
    broken = sum(count for end, count in ends.items() if end not in ("whole", "refused"))
    print(f"{options.restarts} rolling restarts of {options.workers} workers, {min(seen)} to {max(seen)} streams open")
    print(f"one took {sorted(took_s)[len(took_s) // 2]:.1f} s in the middle, {max(took_s):.1f} s at the most")
    print(f"streams: {len(answers)}, whole {ends.get('whole', 0)}, broken {broken}, refused {ends.get('refused', 0)}")
    print(f"all ends: {ends}; asked again on a fresh connection: {client.retried}")
    print(f"longest wait for the first byte: {client.longest_wait_s:.2f} s")
    print(f"in the store not exactly once: {lost}; rows of no answer: {strange}")
    sys.exit(1 if broken or ends.get("refused") or lost else 0)


if __name__ == "__main__":
    main()
