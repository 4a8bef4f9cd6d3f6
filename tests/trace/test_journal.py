"""A process may be killed at any moment: what it had in hand is booked by the next one, each request once (F89)."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from kit.traces import a_trace

from router.trace.journal import Journal, leftovers
from router.trace.record import Trace, TraceQuery
from router.trace.sqlite import SqliteTraceReader, SqliteTraceSink
from router.usage import Tokens, Usage


def rows(path):
    return SqliteTraceReader(path).list(TraceQuery(limit=1000))


def sink_at(path, **options):
    return SqliteTraceSink(path, has_journal=True, **options)


def killed(path, number, *, code):
    """A process that runs `code` with a journal `j` and `number` open traces `ts`, and is killed behind it."""
    program = f"""
import os, signal
from pathlib import Path
from router.trace.journal import Journal
from router.trace.record import Trace
from router.usage import Tokens, Usage
j = Journal(Path({str(path)!r}))
ts = [Trace(f"{{n:032x}}", 1_000 + n, endpoint="messages", method="POST", tenant="acme") for n in range({number})]
for t in ts:
    j.begun(t)
{code}
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL


ENDED = """
for t in ts[:2]:
    t.model_asked, t.model_sent, t.lane, t.rule, t.status = "claude-sonnet-5-5", "claude-haiku-5-5", "haiku", "r", 200
    t.usage, t.price_version = Usage(Tokens(100, 1, 2, 3, 50)), "v1"
    t.cost_pusd, t.baseline_pusd, t.saved_pusd, t.duration_s = 7_000_001, 9_000_003, 2_000_002, 1.5
    j.ended(t)
"""


def test_what_a_killed_process_had_in_hand_is_booked(tmp_path):
    """Ended requests with their money to the pico-dollar, open ones as aborted at an unknown cost; the file goes."""
    path = tmp_path / "t.db"
    killed(path, 3, code=ENDED)
    sink = sink_at(path)
    assert sink.flush()
    assert (sink.stats()["rescued"], sink.stats()["aborted"]) == (2, 1)
    found = {row["trace_id"][-1]: row for row in rows(path)}
    assert {row["outcome"] for row in found.values()} == {"ok", "aborted"}
    assert [str(found[n]["cost_usd"]) for n in "01"] == ["0.000007000001"] * 2
    assert [str(found[n]["saved_usd"]) for n in "01"] == ["0.000002000002"] * 2
    assert found["2"]["cost_usd"] is None
    assert found["0"]["usage"]["output_tokens"] == 50
    assert {row["tenant"] for row in found.values()} == {"acme"}
    assert len(list(tmp_path.glob("*.open-*"))) == 1  # our own
    sink.close()
    assert list(tmp_path.glob("*.open-*")) == []


def test_a_row_that_was_written_is_not_booked_again(tmp_path):
    """Killed between the row and the free slot: the row is there, and stays one."""
    path = tmp_path / "t.db"
    first = sink_at(path)
    first.write(Trace(f"{0:032x}", 1_000, endpoint="messages"))
    first.close()
    killed(path, 1, code=ENDED)
    second = sink_at(path)
    assert second.flush()
    assert second.stats()["rescued"] == 0
    assert len(rows(path)) == 1
    second.close()


def test_the_journal_of_a_living_process_is_left_alone(tmp_path):
    """Two processes at one store: neither books what the other has in hand."""
    path = tmp_path / "t.db"
    journal = Journal(path)
    journal.begun(Trace("a" * 32, 1))
    sink = sink_at(path)
    assert sink.flush()
    sink.close()
    assert rows(path) == []
    assert journal.path.exists()
    journal.close()
    [left] = leftovers(path)
    assert [found.outcome for found in left.traces()] == ["aborted"]
    left.close(is_booked=False)


def test_a_slot_is_free_once_its_row_is_stored(tmp_path):
    """More requests than slots, one after another: none is left over, and nothing is kept of them."""
    path = tmp_path / "t.db"
    journal = Journal(path, slots=4)
    for number in range(40):
        one = Trace(f"{number:032x}", number)
        journal.begun(one)
        journal.ended(one)
        journal.free([one.slot])
    crowd = [Trace(f"{number:032x}", number) for number in range(6)]
    for one in crowd:
        journal.begun(one)
    assert [one.slot < 0 for one in crowd] == [False] * 4 + [True] * 2  # more at a time are not kept
    journal.ended(crowd[5])
    journal.free([one.slot for one in crowd])
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_whole_record_goes_through_a_sink_with_a_journal(tmp_path):
    """Begun, written, stored: no trace of it is left in the journal when the sink is closed."""
    path = tmp_path / "t.db"
    sink = sink_at(path)
    assert sink.flush()
    for number in range(3):
        one = a_trace(number)
        sink.begin(one)
        assert one.slot > 0
        sink.write(one)
    sink.close()
    assert len(rows(path)) == 3
    assert list(tmp_path.glob("*.open-*")) == []


HOSTILE = [
    ("a text of any length", {"tenant": "t" * 5_000, "path": "/" + "p" * 5_000}),
    ("lone surrogates", {"tenant": "\ud800", "rule": "\udfff"}),
    ("a count that no column holds", {"usage": Usage(Tokens(2**80))}),
    ("a zero byte", {"model_sent": "a\0b"}),
]


@pytest.mark.parametrize(("name", "odd"), HOSTILE, ids=[name for name, _ in HOSTILE])
def test_an_odd_record_neither_raises_nor_harms_its_neighbours(tmp_path, name, odd):
    """Whatever a client or an upstream names."""
    path = tmp_path / "t.db"
    journal = Journal(path, slots=3)
    traces = [Trace(f"{number:032x}", number) for number in range(3)]
    for field, value in odd.items():
        setattr(traces[1], field, value)
    for one in traces:
        journal.begun(one)
        journal.ended(one)
    journal.close()
    [left] = leftovers(path)
    found = {one.trace_id[-1] for one in left.traces()}
    assert {"0", "2"} <= found
    left.close(is_booked=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_journal_serves_all_the_same(tmp_path, caplog, monkeypatch):
    """Where there can be no such file, that is said once and nothing else changes."""
    monkeypatch.setattr("router.trace.journal._file_system", lambda _: "btrfs")
    sink = sink_at(tmp_path / "t.db")
    assert sink.flush()
    sink.begin(a_trace())
    sink.write(a_trace())
    sink.close()
    assert len(rows(tmp_path / "t.db")) == 1
    assert list(tmp_path.glob("*.open-*")) == []
    assert sum("open requests leave no trace" in record.message for record in caplog.records) == 1


LONG = [
    ("a long name of a tenant", {"tenant": "t" * 450}),
    ("long names and a path", {"tenant": "t" * 255, "key": "k" * 255, "path": "/v1/messages?" + "p" * 500}),
    ("names of wide letters", {"tenant": "ü" * 450, "key": "界" * 300}),
    ("a zero byte in the path", {"path": "/v1/x\0y"}),
    ("zero bytes that look like fields", {"model_asked": "m\0claude-x\0\0forged\0r\0forged"}),
    ("a model asked for with a long name", {"model_asked": "m" * 2_000}),
    ("long names wherever an upstream gives them", {"model_sent": "m" * 900, "model_answered": "é" * 900}),
]


@pytest.mark.parametrize(("name", "odd"), LONG, ids=[name for name, _ in LONG])
def test_no_text_takes_the_place_of_another_field_or_of_another_request(tmp_path, name, odd):
    """Whatever is long or holds zero bytes is cut; money, policy and rule stay, and so does the slot behind it."""
    journal = Journal(tmp_path / "t.db", slots=3)
    traces = [Trace(f"{n:032x}", 7 + n, tenant="acme", policy="default", rule="real", cost_pusd=5) for n in range(3)]
    for field, value in odd.items():
        setattr(traces[1], field, value)
    for one in reversed(traces):  # the neighbour behind is in place before
        journal.begun(one)
    for one in (traces[2], traces[0], traces[1]):
        assert journal.ended(one)
    journal.close()
    [left] = leftovers(tmp_path / "t.db")
    found = {one.trace_id[-1]: one for one in left.traces()}
    left.close(is_booked=True)
    assert {n: (one.policy, one.rule, one.cost_pusd, one.outcome) for n, one in found.items()} == dict.fromkeys(
        "012", ("default", "real", 5, "ok")
    )
    assert [found[n].started_at_ns for n in "012"] == [7, 8, 9]
    assert [found[n].tenant for n in "02"] == ["acme"] * 2
    assert found["1"].tenant[:4] == traces[1].tenant[:4]


def test_requests_beyond_the_queue_wait_in_the_journal_and_are_stored_later(tmp_path):
    """While the file refuses: their money is booked once it takes rows again, and every slot is free then."""
    path = tmp_path / "t.db"
    sink = sink_at(path, queue_max=5, flush_interval_s=0.01)
    assert sink.flush()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(20):
            one = a_trace(number)
            sink.begin(one)
            sink.write(one)
        assert sink.stats()["parked"] > 0
        other.execute("ROLLBACK")
    assert sink.flush(20)
    assert (sink.stats()["parked"], sink.stats()["dropped"], sink.stats()["stored"]) == (0, 0, 20)
    found = rows(path)
    assert len(found) == 20
    assert {str(row["cost_usd"]) for row in found} == {"0.001000000001"}
    sink.close()
    assert list(tmp_path.glob("*.open-*")) == []


def test_what_is_parked_at_the_end_is_booked_by_the_next_start(tmp_path):
    """The file refuses until the router has stopped: the journal stays, and nothing is lost of the money."""
    path = tmp_path / "t.db"
    sink = sink_at(path, queue_max=2, close_s=0.6)
    assert sink.flush()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(8):
            one = a_trace(number)
            sink.begin(one)
            sink.write(one)
        sink.close()
        other.execute("ROLLBACK")
    sink.close()  # waits for the writer, which was in the middle of a try
    following = sink_at(path)
    assert following.flush()
    assert following.stats()["rescued"] >= 6
    following.close()
    assert len(rows(path)) == 8
    assert sum(row["cost_usd"] for row in rows(path)) * 10**12 == 8 * 1_000_000_001


def test_a_closed_sink_takes_whatever_comes_and_counts_it(tmp_path):
    """A request that ends behind the close neither fails nor disturbs; one that begins there gets no slot."""
    sink = sink_at(tmp_path / "t.db")
    late, later = a_trace(1), a_trace(2)
    sink.begin(late)
    sink.close()
    sink.write(late)
    sink.begin(later)
    sink.write(later)
    sink.write(a_trace(3, status=400, attempts=[], cost_pusd=None))
    assert (later.slot, sink.stats()["dropped"]) == (-1, 3)


def test_refused_requests_push_no_paid_one_out(tmp_path):
    """A flood of bad requests fills its own share of the queue; what is more is counted, in the next record too."""
    path = tmp_path / "t.db"
    sink = sink_at(path, queue_max=80, flush_interval_s=0.01)
    assert sink.flush()
    refused = {"status": 400, "outcome": "client_error", "attempts": [], "usage": None, "cost_pusd": None, "why": ()}
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(1_000):
            one = a_trace(1_000 + number, **refused)
            sink.begin(one)
            sink.write(one)
        for number in range(40):
            sink.write(a_trace(number))
        unrecorded = sink.stats()["unrecorded"]
        assert 970 <= unrecorded <= 990
        other.execute("ROLLBACK")
    assert sink.flush(20)
    sink.write(a_trace(5_000, **refused))
    assert sink.flush(20)
    assert (sink.stats()["dropped"], sink.stats()["stored"]) == (0, 1_041 - unrecorded)
    found = rows(path)
    assert sum(row["status"] == 200 for row in found) == 40
    said = [why for row in found if row["status"] == 400 for why in row["why"]]
    assert all(why.endswith(" more were refused since the record before, without one") for why in said)
    assert sum(int(why.split()[0]) for why in said) == unrecorded
    sink.close()
    assert list(tmp_path.glob("*.open-*")) == []  # the slots of those without a record are free
