"""The corpus of bad requests at full size, against one router process.

    python -m bench.corpus [--count 1000000] [--seed 100] [--first 0] [--seconds S]

The same cases, client and upstream as `tests/product/test_bad_requests.py`, which is content with 50,000. Prints rate,
memory and file descriptors at each tenth, then statuses and kinds. Exit status 1 when a promise is broken: each such
line names its case, and `bad_request(seed, number)` of `tests/kit/bad_requests.py` makes it again.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from itertools import takewhile
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from kit.bad_requests import bad_requests
from kit.bad_requests_run import PACKET, POLICY, hunt, write_policies
from kit.bad_requests_upstream import Report, upstream
from kit.processes import router

from bench.processes import LOAD_CORE, SERVER_CORE, cpu_s, pin, resident_bytes


class Tenths:
    """Prints a line at each tenth of a run."""

    def __init__(self, pid: int, count: int) -> None:
        self.pid = pid
        self.count = count
        self.sent = 0
        self.shown = 0
        self.began_s = self.last_s = time.perf_counter()
        self.began_cpu_s = cpu_s(pid)
        self.memory_mb: list[float] = []

    def look(self) -> None:
        """Called after every packet."""
        self.sent += 2 * PACKET
        if self.sent * 10 // self.count > self.shown:
            now_s = time.perf_counter()
            self.shown += 1
            self.memory_mb.append(resident_bytes(self.pid) / 2**20)
            rate = self.count / 10 / (now_s - self.last_s)
            self.last_s = now_s
            fds = len(os.listdir(f"/proc/{self.pid}/fd"))
            print(f"{self.sent:>10,}  {rate:6,.0f}/s  {self.memory_mb[-1]:6.1f} MB  {fds:3} fds", flush=True)


async def run(folder: Path, count: int, seed: int, first: int, seconds: float) -> bool:
    """One run, which takes no more cases after so many seconds; True when every promise was kept."""
    write_policies(folder)
    async with upstream() as up, router(
        folder, f"http://127.0.0.1:{up.port}", policy=POLICY, cache="memory://?max_mb=8", ROUTER_AFFINITY="memory://"
    ) as running:  # fmt: skip
        pid = running.process.pid
        pin(pid, SERVER_CORE)
        tenths = Tenths(pid, count)
        ends_s = tenths.began_s + seconds
        cases = takewhile(lambda _: time.perf_counter() < ends_s, bad_requests(seed, count, first))
        report = await hunt(running.port, up, cases, each=tenths.look)
        took_s, used_s = time.perf_counter() - tenths.began_s, cpu_s(pid) - tenths.began_cpu_s
        up.report = Report()  # the healthy request is none of the cases
        is_well = (await running.messages()).status == 200 and running.process.returncode is None
        each_us = used_s / max(1, report.sent) * 1e6
        print(f"\n{report.sent:,} in {took_s:.0f} s, {each_us:.0f} us of the router's CPU each")
        show(report, is_well=is_well)
    return is_well and not report.findings


def show(report: Report, *, is_well: bool) -> None:
    """What a run has come to."""
    print(f"answered {report.answered:,}, closed without an answer {report.closed:,}, calls upstream {report.calls:,}")
    print(f"slowest {report.slowest_s:.2f} s; slow once and not again: {report.slow}")
    print("statuses: " + "  ".join(f"{status}: {number:,}" for status, number in sorted(report.statuses.items())))
    print("kinds: " + "  ".join(f"{kind}: {number:,}" for kind, number in sorted(report.kinds.items())))
    print("a healthy request is served" if is_well else "BROKEN: a healthy request is not served")
    for line in report.findings:
        print(f"BROKEN: {line}")


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seconds", type=float, default=math.inf, help="take no more cases after this time")
    options = parser.parse_args()
    pin(os.getpid(), LOAD_CORE)
    with tempfile.TemporaryDirectory() as folder:
        return 0 if uvloop.run(run(Path(folder), options.count, options.seed, options.first, options.seconds)) else 1


if __name__ == "__main__":
    sys.exit(main())
