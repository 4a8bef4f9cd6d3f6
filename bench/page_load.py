"""What somebody who reads the trace page of a large store costs the requests that are served meanwhile.

    python -m bench.page_load --store FILE [--rate 300] [--seconds 8] [--rounds 3]

`FILE` is a store that `bench.traces --store FILE` made; it is copied. Rounds without a reader and with one take turns:
the reader asks for the list, a filtered list, the overview and one request over and over, as fast as it is answered.
Latency counts from the moment a request was due.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from statistics import median

from bench.processes import HERE, LOAD_CORE, load, router, started

QUESTIONS = ("/traces?limit=50", "/traces?rule=code&limit=50", "/figures?by=rule", "/figures?by=model", "/report")


def read_on(admin: str, done: threading.Event, took_s: list[float]) -> None:
    """Ask one question after the other until `done`; the seconds that each took."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while not done.is_set():
        for question in QUESTIONS:
            began_s = time.monotonic()
            with opener.open(admin + question, timeout=60) as answer:
                json.load(answer)
            took_s.append(time.monotonic() - began_s)


def main() -> int:
    """Run the rounds and print the medians; 1 when a request failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    figures: dict[str, list[tuple[float, float]]] = {"alone": [], "with a reader": []}
    took_s: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        shutil.copy(options.store, folder / "router.db")
        upstream = [sys.executable, str(HERE / "fake_upstream.py")]
        with (
            started(upstream, LOAD_CORE, says="http://", cwd=folder) as (_, line),
            router(line.split()[-1], folder) as server,
        ):
            load(server, seconds=2, connections=32, rate=options.rate)
            for _ in range(options.rounds):
                for way, seen in figures.items():
                    done = threading.Event()
                    reader = threading.Thread(target=read_on, args=(server.admin, done, took_s))
                    if way != "alone":
                        reader.start()
                    run = load(server, seconds=options.seconds, connections=32, rate=options.rate)
                    done.set()
                    if way != "alone":
                        reader.join()
                    seen.append((run["p50_ms"], run["p99_ms"]))
            errors = server.errors
    for way, seen in figures.items():
        p50, p99 = (median(figure) for figure in zip(*seen, strict=True))
        print(f"{way:14} p50 {p50:6.2f} ms  p99 {p99:6.2f} ms")
    took_s.sort()
    print(f"{len(took_s)} questions, half within {took_s[len(took_s) // 2] * 1000:.0f} ms, all in {took_s[-1]:.2f} s")
    print(f"{errors} requests failed")
    return int(errors > 0)


if __name__ == "__main__":
    sys.exit(main())
