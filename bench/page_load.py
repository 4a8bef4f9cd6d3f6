"""What somebody who reads the trace page of a large store costs the requests that are served meanwhile.

    python -m bench.page_load --store FILE [--rate 300] [--seconds 8] [--rounds 3]

`FILE` is a store that `bench.traces --store FILE` made; it is copied, and nothing is deleted from the copy. Rounds
without a reader and with one take turns: the reader asks for the list, a filtered list, the overview, the report and
one request over and over, as fast as it is answered. Latency counts from the moment a request was due; router and
reading process share one core. The last lines say how long each question took, and what the two processes used.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from statistics import median

from bench.processes import HERE, LOAD_CORE, cpu_s, load, resident_bytes, router, started

QUESTIONS = ("/traces?limit=50", "/traces?rule=code&limit=50", "/figures?by=rule", "/figures?by=model", "/report")


def read_on(admin: str, done: threading.Event, took_s: dict[str, list[float]]) -> None:
    """Ask one question after the other until `done`; the seconds that each took."""
    with suppress(AttributeError, OSError):  # the reader is a person's browser, on a machine of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    some_id = ""
    while not done.is_set():
        for question in (*QUESTIONS, f"/traces/{some_id}"):
            if done.is_set():
                break
            began_s = time.monotonic()
            with opener.open(admin + question, timeout=60) as answer:
                body = answer.read()
            name = question if question in took_s or question in QUESTIONS else "/traces/ID"
            took_s.setdefault(name, []).append(time.monotonic() - began_s)
            if not some_id:
                some_id = json.loads(body)["traces"][-1]["trace_id"]


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def main() -> int:
    """Run the rounds and print the medians; 1 when a request failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    figures: dict[str, list[tuple[float, float]]] = {"alone": [], "with a reader": []}
    took_s: dict[str, list[float]] = {}
    used_s = {"router": 0.0, "reader": 0.0}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        shutil.copy(options.store, folder / "router.db")
        os.sync()  # or the disk is busy with the copy in the first rounds
        upstream = [sys.executable, str(HERE / "fake_upstream.py")]
        with (
            started(upstream, LOAD_CORE, says="http://", cwd=folder) as (_, line),
            router(line.split()[-1], folder, traces_keep="off", traces_max_mb=1_000_000) as server,
        ):
            load(server, seconds=2, connections=32, rate=options.rate)
            for _ in range(options.rounds):
                for way, seen in figures.items():
                    done = threading.Event()
                    reader = threading.Thread(target=read_on, args=(server.admin, done, took_s))
                    if way != "alone":
                        reader.start()
                    before_s = {pid: cpu_s(pid) for pid in children(server.pid)}
                    run = load(server, seconds=options.seconds, connections=32, rate=options.rate)
                    if way != "alone":
                        used_s["router"] += run["cpu_s"]
                        used_s["reader"] += sum(cpu_s(pid) - before_s.get(pid, 0) for pid in children(server.pid))
                    done.set()
                    if way != "alone":
                        reader.join()
                    seen.append((run["p50_ms"], run["p99_ms"]))
            errors = server.errors
            resident = [resident_bytes(pid) / 1e6 for pid in (server.pid, *children(server.pid))]
    medians = {way: [median(figure) for figure in zip(*seen, strict=True)] for way, seen in figures.items()}
    for way, seen in figures.items():
        rounds = "  ".join(f"{p50:.2f}/{p99:.2f}" for p50, p99 in seen)
        print(f"{way:14} p50 {medians[way][0]:6.2f} ms  p99 {medians[way][1]:6.2f} ms   rounds {rounds}")
    ratios = [with_one / alone for with_one, alone in zip(medians["with a reader"], medians["alone"], strict=True)]
    print(f"{'ratio':14} p50 {ratios[0]:6.2f}     p99 {ratios[1]:6.2f}")
    for question, each_s in took_s.items():
        print(
            f"{question:30} {len(each_s):4} times, median {median(each_s) * 1e3:5.0f} ms, longest {max(each_s):.2f} s"
        )
    total_s = options.seconds * options.rounds
    print("CPU with a reader  " + ", ".join(f"{who} {used / total_s:.0%}" for who, used in used_s.items()))
    print("resident, MB       " + ", ".join(f"{each:.0f}" for each in resident) + "  (the router and its reader)")
    print(f"{errors} requests failed")
    return int(errors > 0)


if __name__ == "__main__":
    sys.exit(main())
