"""The ledger at full size: ten thousand mixed requests, held against the upstream's own books.

    python -m bench.ledger [--count 10000]

The same run as `tests/product/test_ledger.py`, which is content with fewer. Five hundred items of Message Batches come
on top.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from kit.ledger_run import check, run


def main() -> int:
    """Run it; an AssertionError says where the books differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    count = parser.parse_args().count
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        seen = check(run(Path(folder), count), count)
    print(f"{count:,} requests in {time.perf_counter() - started_s:.0f} s; the books agree")
    for name, number in seen.items():
        print(f"{name:14} {number:7,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
