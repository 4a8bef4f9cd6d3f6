"""A soak: many mixed requests with faults and hang-ups through one router, and the books of all sides afterwards.

    python -m bench.soak [--count 200000] [--seed 1] [--connections 64]

The client and an upstream with scripted faults run on one core, the router on the other. Half of the requests are
streams, 5 % meet a fault, 2 % are left by their client, 4 % ask for what is in the cache. Then client log, upstream
ledger and trace store are joined: nothing may be lost, doubled, crossed or cost another sum. Exit status 1 when a rule
is broken. The suite runs the same with fewer (`tests/product/test_soak.py`).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from kit.soak_audit import audit
from kit.soak_run import Soak, soak

from bench.processes import LOAD_CORE, SERVER_CORE, pin


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--connections", type=int, default=64)
    options = parser.parse_args()
    pin(os.getpid(), LOAD_CORE)
    every = max(1, options.count // 10)

    def progress(ended: int, memory_mb: float) -> None:
        if ended % every < max(1, options.count // 200):
            print(f"  {ended:>9,} requests   {memory_mb:6.1f} MB", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        run = uvloop.run(
            soak(
                Path(folder), options.count, seed=options.seed, connections=options.connections,
                started=lambda pid: pin(pid, SERVER_CORE), progress=progress,
            )
        )  # fmt: skip
        figures, wrong = audit(run)
    print(table(run, figures))
    for line in wrong[:20]:
        print(f"BROKEN: {line}")
    print(f"{len(wrong)} rules broken" if wrong else "the books agree")
    return 1 if wrong else 0


def table(run: Soak, figures: dict[str, int]) -> str:
    """What the run has come to, as text."""
    count = len(run.jobs)
    rows = [(name, f"{number:,}") for name, number in figures.items()]
    rows += [(f"fault {name}", f"{number:,}") for name, number in sorted(run.upstream.faults.items())]
    rows += [
        ("seconds", f"{run.seconds:.0f}"),
        ("requests a second", f"{count / run.seconds:,.0f}"),
        ("router CPU per request", f"{run.router_cpu_s / count * 1e6:.0f} us"),
        (
            "memory, by tenths",
            " ".join(f"{mb:.0f}" for mb in run.memory_mb[:: max(1, len(run.memory_mb) // 10)]) + " MB",
        ),
        ("memory slope per 10,000", f"{run.slope_mb():+.2f} MB"),
        ("slope of the last half", f"{run.slope_mb(0.5):+.2f} MB"),
        ("file descriptors", f"{run.fds[0]} before, {run.fds[1]} after"),
        ("connections upstream", f"{run.upstream.most_open} at most, {run.upstream_open} kept"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


if __name__ == "__main__":
    sys.exit(main())
