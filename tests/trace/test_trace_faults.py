"""What happens to the disk and the clock happens to the trace store alone (F80 to F84): requests never see it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kit.traces import START_NS, a_trace

from router.trace.reader import SqliteTraceReader
from router.trace.record import TraceQuery
from router.trace.sqlite import SqliteTraceSink

# In a process of its own: the bound on the size of files holds for all that it writes.
_FULL_DISK = """
import json, resource, signal, sys, time
sys.path.insert(0, "tests")
from kit.traces import a_trace
from router.trace.sqlite import SqliteTraceSink
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sink = SqliteTraceSink(sys.argv[1], flush_interval_s=0.01, queue_max=3000)
sink.write(a_trace(0))
assert sink.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
slowest = 0.0
for n in range(1, 2001):
    started = time.perf_counter()
    sink.write(a_trace(n))
    slowest = max(slowest, time.perf_counter() - started)
while not sink.stats()["write_errors"]:
    sink.flush(0.05)
full = dict(sink.stats())
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert sink.flush(20)
sink.close()
print(json.dumps({"full": full, "after": dict(sink.stats()), "slowest": slowest}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="bounds on file sizes are of Unix")
def test_a_full_disk_delays_traces_and_loses_none(tmp_path: Path) -> None:
    """F80: they wait in memory up to the bound of the queue, and are stored, whole, when there is room again."""
    path = tmp_path / "t.db"
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(path)], capture_output=True, text=True, timeout=60,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["full"]["write_errors"] > 0
    assert said["full"]["queued"] > 0
    assert said["after"] | {"write_errors": 0} == {
        "queued": 0, "stored": 2_001, "repeated": 0, "dropped": 0, "thinned": said["after"]["thinned"],
        "failed": 0, "set_aside": 0, "write_errors": 0, "pruned": 0, "rescued": 0, "aborted": 0,
        "parked": 0, "unrecorded": 0,
    }  # fmt: skip
    assert done.stderr.count("takes no traces") >= 1
    reader = SqliteTraceReader(path)
    assert reader.totals(None)["requests"] == 2_001
    assert reader.overview(START_NS, START_NS + 10**10)["totals"]["requests"] == 2_001


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a folder that nobody can write")
def test_a_place_that_cannot_be_written_costs_only_the_traces(caplog: pytest.LogCaptureFixture) -> None:
    """F80: read-only from the start; traces are counted as dropped when the bound is met, and it is said once."""
    sink = SqliteTraceSink("/proc/router-traces.db", queue_max=100, close_s=1.6)
    for n in range(250):
        sink.write(a_trace(n))
    assert not sink.flush(0.2)
    assert sink.stats()["dropped"] == 150
    sink.close()
    assert (sink.stats()["stored"], sink.stats()["dropped"]) == (0, 250)
    assert caplog.text.count("takes no traces") == 1


def test_a_clock_that_jumps_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """F82: an hour back, an hour on, before 1970 and beyond every calendar; pages still meet every row once."""
    path = tmp_path / "t.db"
    hour_ns = 3_600 * 10**9
    starts = [START_NS, START_NS - hour_ns, START_NS + hour_ns, START_NS, 0, -1, 2**62, START_NS - hour_ns]
    sink = SqliteTraceSink(path, flush_interval_s=0.01)
    for number, start_ns in enumerate(starts):
        sink.write(a_trace(number, started_at_ns=start_ns))
    assert sink.flush()
    assert sink.stats()["write_errors"] == 0
    sink.close()
    reader = SqliteTraceReader(path)
    seen: list[str] = []
    mark = None
    while True:
        rows, mark = reader.page(TraceQuery(limit=3, before=mark))
        seen += [row["request_id"] for row in rows]
        if mark is None:
            break
    assert sorted(seen) == [f"req_{number:06d}" for number in range(len(starts))]
    assert reader.tail(0, TraceQuery())[0] == len(starts)
    assert reader.overview(START_NS - 2 * hour_ns, START_NS + 2 * hour_ns)["totals"]["requests"] == 5
    assert reader.summary("day", None)["totals"]["requests"] == 7  # the one before 1970 is before every beginning
