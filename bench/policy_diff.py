"""`router policy diff` on a million recorded requests: time, memory, and the same figures from a slow, plain program.

    python -m bench.policy_diff [--requests 1000000] [--checked 1000]

Writes made-up traces through the store's own row writer, runs the installed command on them, prints its time and the
largest resident memory of one of its processes. None of them were served by either revision, so all are forecast for
both: the most work there is. Before that it compares every figure on `--checked` other requests, half of them served by
one of the two, with a slow, obvious program that shares none of the fast code. Run it from the top of the checkout.
Exit status 0, or 1 when a figure differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from router.catalog_file import load_catalog
from router.policy.check import compile_folder
from router.policy.folder import read_folder
from tests.kit.plain_diff import figures, plainly
from tests.kit.recorded_traffic import folders, make_store


def run(store: Path, old: Path, new: Path) -> tuple[dict[str, Any], float, float, float]:
    """What the installed command prints, its seconds, those of the processor, its largest resident memory in MB."""
    command = [str(Path(sys.executable).with_name("router")), "policy", "diff", str(old), str(new), "--json"]
    started_s = time.monotonic()
    with subprocess.Popen([*command, "--traces", f"sqlite:///{store}"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"`{' '.join(command)}` ended with {process.returncode}")
    took_s = time.monotonic() - started_s
    return json.loads(printed, parse_float=Decimal), took_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--checked", type=int, default=1_000)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        old, new = folders(where)
        small, large = where / "small.db", where / "large.db"
        catalog = load_catalog()
        sets = [compile_folder(read_folder(folder), catalog=catalog, classify=None) for folder in (old, new)]
        make_store(small, options.checked, 2, (sets[0].revision, sets[1].revision))
        found, _, _, _ = run(small, old, new)
        is_equal = figures(found) == plainly(small, sets[0], sets[1], catalog)
        print(f"{options.checked:,} requests: {'equal to' if is_equal else 'DIFFERENT FROM'} the slow, plain program")
        make_store(large, options.requests)
        print(f"{options.requests:,} requests written, {large.stat().st_size / 2**20:,.0f} MB")
        found, took_s, worked_s, peak_mb = run(large, old, new)
        rate = options.requests / took_s
        print(
            f"router policy diff: {took_s:.1f} s, {rate:,.0f} requests/s; {worked_s:.1f} s of processor time,"
            f" {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}; largest resident memory of a"
            f" process {peak_mb:.0f} MB"
        )
        print(
            f"{found['compared']:,} compared, {found['undecided']:,} undecided, {found['lane_changes']:,} change lane"
        )
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
