"""The trace store: nothing it meets may cost a request, and what it holds is exact."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.traces import START_NS, a_trace
from prometheus_client.parser import text_string_to_metric_families

from router.errors import BadFilter, SettingsError, TraceStoreError
from router.trace.export import as_json, encode_json, usd
from router.trace.metrics import MetricsSink
from router.trace.record import Trace, TraceQuery
from router.trace.schema import MIGRATIONS, migrate
from router.trace.sqlite import SqliteTraceReader, SqliteTraceSink, open_sink, path_of
from router.usage import Tokens, Usage

HOSTILE = [
    "<script>alert(1)</script>",
    "'; DROP TABLE traces; --",
    "=cmd|' /C calc'!A0",
    "line\r\nbreak\x00nul\x1b[31m",
    "\ud800 lone surrogate",
    "\u2028\u2029\u202e\ufeff",
    "💥" * 5_000,
    "%s%n{0}${jndi:ldap://x}",
    "x" * 1_000_000,
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "router.db"


@pytest.fixture
def sink(path: Path):
    sink = SqliteTraceSink(path, flush_interval_s=0.01)
    yield sink
    sink.close()


def test_a_trace_comes_back_as_the_json_of_the_record(sink: SqliteTraceSink, path: Path) -> None:
    """Writing and reading a trace loses nothing that `as_json` shows."""
    traces = [a_trace(0), Trace(trace_id="f" * 32, started_at_ns=START_NS - 1)]
    for trace in traces:
        sink.write(trace)
    assert sink.flush()
    reader = SqliteTraceReader(path)
    assert [reader.get(trace.trace_id) for trace in traces] == [as_json(trace) for trace in traces]
    assert '"cost_usd":0.001000000001' in encode_json(reader.get(traces[0].trace_id))


def test_ten_thousand_traces_are_all_there_and_their_sums_are_exact(sink: SqliteTraceSink, path: Path) -> None:
    """No row missing, none double, money equal to the pico-dollar."""
    traces = [a_trace(n, cost_pusd=n * 1_000_003, baseline_pusd=n * 3_000_007) for n in range(10_000)]
    for trace in traces:
        sink.write(replace(trace, saved_pusd=trace.baseline_pusd - trace.cost_pusd))
    assert sink.flush()
    totals = SqliteTraceReader(path).totals(None)
    count = sum(range(10_000))
    assert totals["requests"] == 10_000 == sink.stats()["stored"]
    assert int(totals["cost_usd"].scaleb(12)) == count * 1_000_003
    assert int(totals["saved_usd"].scaleb(12)) == count * 2_000_004
    assert (totals["input_tokens"], totals["output_tokens"]) == (1_000_000 + count, 500_000)


def test_sums_beyond_sixty_four_bits_stay_exact(sink: SqliteTraceSink, path: Path) -> None:
    """Nine million dollars in pico-dollars is where SQLite's own SUM overflows."""
    for n in range(4):
        sink.write(a_trace(n, cost_pusd=2**62 + n, baseline_pusd=1, saved_pusd=1 - 2**62 - n))
    assert sink.flush()
    totals = SqliteTraceReader(path).totals(None)
    assert int(totals["cost_usd"].scaleb(12)) == 4 * 2**62 + 6
    assert int(totals["saved_usd"].scaleb(12)) == 4 - 4 * 2**62 - 6


def test_pages_by_key_meet_every_row_once(sink: SqliteTraceSink, path: Path) -> None:
    """Newest first; rows of the same nanosecond are told apart by their id."""
    traces = [a_trace(n, started_at_ns=START_NS + n // 7) for n in range(100)]
    for trace in traces:
        sink.write(trace)
    assert sink.flush()
    reader, seen, mark = SqliteTraceReader(path), [], None
    while True:
        rows, mark = reader.page(TraceQuery(limit=9, before=mark))
        seen += [row["trace_id"] for row in rows]
        if mark is None:
            break
    newest_first = sorted(traces, key=lambda trace: (trace.started_at_ns, trace.trace_id), reverse=True)
    assert seen == [trace.trace_id for trace in newest_first]


@pytest.mark.parametrize(
    "query",
    [
        TraceQuery(rule="r"), TraceQuery(lane="r"), TraceQuery(policy="r"), TraceQuery(model="r"), TraceQuery(task="r"),
        TraceQuery(tenant="r"), TraceQuery(key="r"), TraceQuery(cache="hit"), TraceQuery(outcome="cut"),
        TraceQuery(endpoint="batches"), TraceQuery(request_id="r"), TraceQuery(trace_id="e" * 32),
        TraceQuery(min_cost_pusd=5_000_000_000), TraceQuery(since_ns=START_NS + 10**12), TraceQuery(status=529),
        TraceQuery(status=5), TraceQuery(min_duration_s=9.5),
    ],
    ids=str,
)  # fmt: skip
def test_each_filter_finds_the_one_row(sink: SqliteTraceSink, path: Path, query: TraceQuery) -> None:
    """Every filter of a query looks at its own column."""
    sink.write(a_trace(1))
    wanted = a_trace(
        2, rule="r", lane="r", policy="r", model_sent="r", labels={"task": "r"}, tenant="r", key="r", cache="hit",
        outcome="cut", endpoint="batches", request_id="r", trace_id="e" * 32, cost_pusd=5_000_000_000,
        status=529, duration_s=9.5, started_at_ns=START_NS + 10**12,
    )  # fmt: skip
    sink.write(wanted)
    assert sink.flush()
    assert [row["trace_id"] for row in SqliteTraceReader(path).list(query)] == ["e" * 32]


def test_get_takes_a_trace_id_a_request_id_or_a_unique_beginning(sink: SqliteTraceSink, path: Path) -> None:
    """A beginning that fits two traces names none, and wildcards are only characters."""
    for trace_id in ("aaaaaaaa0" + "0" * 23, "aaaaaaaa1" + "0" * 23):
        sink.write(a_trace(1, trace_id=trace_id, request_id=f"req_{trace_id[8]}"))
    assert sink.flush()
    get = SqliteTraceReader(path).get
    assert get("req_1")["trace_id"] == get("aaaaaaaa1")["trace_id"] == "aaaaaaaa1" + "0" * 23
    assert get("aaaaaaaa") is get("aaaaaa%1") is get("") is get("nothing") is None


def test_two_requests_of_one_caller_trace_are_both_kept(sink: SqliteTraceSink, path: Path) -> None:
    """A caller may continue one W3C trace in several requests; money is never lost to an equal id."""
    sink.write(a_trace(1, trace_id="a" * 32))
    sink.write(a_trace(2, trace_id="a" * 32))
    assert sink.flush()
    assert SqliteTraceReader(path).totals(None)["requests"] == 2


def test_the_report_counts_unknown_cost_apart(sink: SqliteTraceSink, path: Path) -> None:
    """An unknown price is no zero, with usage or without; a refused request cost nothing; other paths are not money."""
    unknown = {"cost_pusd": None, "baseline_pusd": None, "saved_pusd": None}
    sink.write(a_trace(1, cache="hit", cost_pusd=0, saved_pusd=3_000_000_000, ttft_s=0.001))
    sink.write(a_trace(2))
    sink.write(a_trace(3, rule="b", **unknown))
    nothing = {"usage": None, "ttft_s": None, "cost_pusd": 0, "baseline_pusd": 0, "saved_pusd": 0}
    sink.write(a_trace(4, rule="b", outcome="upstream_error", status=529, **nothing))
    sink.write(a_trace(6, rule="b", outcome="upstream_error", status=504, usage=None, ttft_s=None, **unknown))
    for number, endpoint in enumerate(("models", "batches", "passthrough", "count_tokens", "wrong_method"), start=10):
        sink.write(a_trace(number, endpoint=endpoint, rule="", usage=None, **unknown))
    assert sink.flush()
    first, second = SqliteTraceReader(path).report("rule", None)
    assert (first["rule"], first["requests"], first["unknown_cost"], first["hit_rate"]) == (
        "structured-work",
        2,
        0,
        0.5,
    )
    assert str(first["cost_usd"]) == "0.001000000001"
    assert (first["ttft_p50_s"], first["ttft_p95_s"]) == (0.001, 0.25)
    assert (second["rule"], second["requests"], second["unknown_cost"], second["not_ok"]) == ("b", 3, 2, 2)
    assert second["cost_usd"] == second["cost_without_baseline_usd"] == 0


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["messages", "messages", "batches"]),
            st.sampled_from(["a", "b"]),
            st.none() | st.integers(0, 2**62),
            st.none() | st.integers(0, 2**62),
        ),
        max_size=12,
    )
)
def test_the_sums_of_money_never_contradict_each_other(rows: list[tuple[str, str, int | None, int | None]]) -> None:
    """Cost is baseline less saved in each row and in all, to the pico-dollar; the metrics say the same."""
    with tempfile.TemporaryDirectory() as folder:
        path, metrics = Path(folder) / "router.db", MetricsSink()
        sink = SqliteTraceSink(path, flush_interval_s=0.01)
        for number, (endpoint, rule, cost, baseline) in enumerate(rows):
            saved = None if cost is None or baseline is None else baseline - cost
            money = {"cost_pusd": cost, "baseline_pusd": baseline, "saved_pusd": saved, "model_sent": rule}
            trace = a_trace(number, endpoint=endpoint, rule=rule, **money)
            sink.write(trace)
            metrics.write(trace)
        sink.close()
        reader = SqliteTraceReader(path)
        told = {
            (sample.name, sample.labels.get("model")): sample.value
            for family in text_string_to_metric_families(metrics.render().decode())
            for sample in family.samples
        }
        for row in [*reader.report("rule", None), {"rule": None, **reader.totals(None)}]:
            metered = [r for r in rows if r[0] == "messages" and row["rule"] in (None, r[1])]
            known = [(c, b) for _, _, c, b in metered if c is not None and b is not None]
            apart = sum(c for _, _, c, b in metered if c is not None and b is None)
            cost, baseline = sum(c for c, _ in known), sum(b for _, b in known)
            sums = ("cost_usd", "baseline_usd", "saved_usd", "cost_without_baseline_usd")
            assert [row[name] for name in sums] == [usd(n) for n in (cost, baseline, baseline - cost, apart)]
            assert (row["requests"], row["unknown_cost"]) == (len(metered), len(metered) - len(known))
            assert row["saved_share"] == (round((baseline - cost) / baseline, 4) if baseline else None)
            if row["rule"] is not None:
                own = row["rule"]
                assert told["router_cost_usd_total", own] == cost / 1e12
                assert told["router_baseline_usd_total", own] == baseline / 1e12
                assert told["router_saved_usd", own] == (baseline - cost) / 1e12
                assert told["router_cost_without_baseline_usd_total", own] == apart / 1e12
                assert told["router_unknown_cost_requests_total", own] == row["unknown_cost"]


@pytest.mark.parametrize(
    ("by", "group"),
    [
        ("rule", "structured-work"),
        ("model", "claude-haiku-4-5"),
        ("task", "extraction"),
        ("key", "bot"),
        ("day", "2026-09-21"),
        ("policy", "default"),
        ("lane", "haiku"),
    ],
)
def test_a_report_groups_by(sink: SqliteTraceSink, path: Path, by: str, group: str) -> None:
    """Each row names its group under the word that was asked."""
    sink.write(a_trace(1))
    assert sink.flush()
    (row,) = SqliteTraceReader(path).report(by, START_NS)
    assert (row[by], row["requests"]) == (group, 1)
    assert SqliteTraceReader(path).report(by, START_NS + 10**12) == []


def test_an_unknown_grouping_is_refused(path: Path) -> None:
    """Nothing that a caller types becomes SQL."""
    with pytest.raises(BadFilter):
        SqliteTraceReader(path).report("rule; DROP TABLE traces", None)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:20])
def test_hostile_text_is_stored_cut_and_read_as_text(sink: SqliteTraceSink, path: Path, text: str) -> None:
    """Whatever a client names is data: bounded, never SQL, and valid JSON on the way out."""
    odd = {"name": text, "huge": 10**400, "object": object(), text: [text]}
    trace = a_trace(
        1, model_asked=text, model_sent=text, rule=text, tenant=text, path=text, request_id=text, why=(text,) * 2,
        facts=odd, labels={"task": text, "x": float("nan")}, error_type=text, model_answered=text,
    )  # fmt: skip
    sink.write(trace)
    sink.write(a_trace(2))
    assert sink.flush()
    assert sink.stats()["stored"] == 2
    found = SqliteTraceReader(path).get(trace.trace_id)
    assert found["model_asked"] == text[:2_000].encode("utf-8", "replace").decode()
    line = encode_json(found)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 600_000  # ASCII escapes triple the bytes of the store


def test_a_record_without_a_row_costs_only_itself(sink: SqliteTraceSink, path: Path) -> None:
    """One odd record is counted; its neighbours of the same batch are stored."""
    sink.write(a_trace(1))
    sink.write(a_trace(2, model_sent=None))
    sink.write(a_trace(3, duration_s=float("nan")))  # no column takes it: NULL where NOT NULL
    sink.write(a_trace(4))
    assert sink.flush()
    assert (sink.stats()["stored"], sink.stats()["failed"]) == (2, 2)
    assert len(SqliteTraceReader(path).list(TraceQuery())) == 2


def test_counts_that_no_column_holds_do_not_lose_the_row(sink: SqliteTraceSink, path: Path) -> None:
    """An upstream may report any integer; a sum of money that does not fit is unknown, not wrong."""
    sink.write(a_trace(1, usage=Usage(Tokens(input=10**30)), cost_pusd=10**30))
    assert sink.flush()
    (row,) = SqliteTraceReader(path).list(TraceQuery())
    assert row["cost_usd"] is None


def test_a_corrupt_file_is_set_aside_and_said(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is no database is renamed, never overwritten; the traces go to a new one."""
    path.write_bytes(b"this is not a database, but it may matter to somebody" * 100)
    sink = SqliteTraceSink(path, flush_interval_s=0.01)
    sink.write(a_trace(1))
    assert sink.flush()
    sink.close()
    (aside,) = path.parent.glob("router.db.corrupt-*")
    assert aside.read_bytes().startswith(b"this is not a database")
    assert sink.stats()["set_aside"] == 1
    assert len(SqliteTraceReader(path).list(TraceQuery())) == 1
    assert "set aside" in caplog.text


def test_a_file_that_breaks_while_open_is_set_aside_too(path: Path) -> None:
    """Flipped bytes are met at the next write; what waited goes to the new file."""
    sink = SqliteTraceSink(path, flush_interval_s=0.01)
    for n in range(500):
        sink.write(a_trace(n))
    assert sink.flush()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with sqlite3.connect(path, isolation_level=None) as connection:  # makes the writer read its pages again
        connection.execute("PRAGMA user_version=7")
    connection.close()
    sink.write(a_trace(1_000))
    assert sink.flush()
    sink.close()
    assert sink.stats()["set_aside"] == 1
    assert SqliteTraceReader(path).get("req_001000") is not None


def test_a_locked_file_delays_traces_and_nobody_else(sink: SqliteTraceSink, path: Path) -> None:
    """While another process holds the lock, writing costs nothing; afterwards everything is stored."""
    sink.write(a_trace(0))
    assert sink.flush()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    started = time.perf_counter()
    for n in range(1, 1_001):
        sink.write(a_trace(n))
    assert time.perf_counter() - started < 1.0
    assert not sink.flush(timeout_s=0.2)
    assert sink.stats()["stored"] == 1
    holder.execute("ROLLBACK")
    holder.close()
    assert sink.flush()
    assert (sink.stats()["stored"], sink.stats()["dropped"]) == (1_001, 0)


def test_a_full_queue_drops_and_counts_exactly(tmp_path: Path) -> None:
    """A folder where the file should be takes nothing: the queue fills to its bound, the rest is counted."""
    path = tmp_path / "taken"
    path.mkdir()
    sink = SqliteTraceSink(path, queue_max=100, flush_interval_s=0.01, close_s=2.0)
    for n in range(250):
        sink.write(a_trace(n))
    assert sink.stats()["queued"] + sink.stats()["dropped"] == 250
    assert sink.stats()["dropped"] == 150
    started = time.perf_counter()
    sink.close()
    assert time.perf_counter() - started < 2.5
    assert (sink.stats()["dropped"], sink.stats()["stored"]) == (250, 0)


def test_content_goes_first_and_money_last(path: Path) -> None:
    """A writer that falls behind leaves out the explanations, not the costs."""
    sink = SqliteTraceSink(path, queue_max=100, flush_interval_s=0.01)
    assert sink.flush()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    for n in range(100):
        sink.write(a_trace(n))
    holder.execute("ROLLBACK")
    holder.close()
    assert sink.flush()
    sink.close()
    rows = SqliteTraceReader(path).list(TraceQuery(limit=1_000))
    thinned = [row for row in rows if row["facts"] is None]
    assert len(rows) == 100
    assert len(thinned) == sink.stats()["thinned"] > 0
    assert all(row["cost_usd"] is not None for row in rows)


def test_a_deleted_file_is_made_again(sink: SqliteTraceSink, path: Path) -> None:
    """Traces do not go on into a file that nobody can find any more."""
    sink.write(a_trace(1))
    assert sink.flush()
    for name in os.listdir(path.parent):
        os.unlink(path.parent / name)
    sink.write(a_trace(2))
    assert sink.flush()
    assert [row["request_id"] for row in SqliteTraceReader(path).list(TraceQuery())] == ["req_000002"]


def test_close_stores_what_waits_and_may_come_twice(path: Path) -> None:
    """Nothing written before `close` is lost; what comes after is dropped and counted."""
    sink = SqliteTraceSink(path, flush_interval_s=60)
    for n in range(1_000):
        sink.write(a_trace(n))
    sink.close()
    sink.close()
    sink.write(a_trace(1))
    assert sink.stats() == {
        "queued": 0, "stored": 1_000, "repeated": 0, "dropped": 1, "thinned": 0, "failed": 0, "set_aside": 0,
        "write_errors": 0, "pruned": 0, "rescued": 0, "aborted": 0, "parked": 0, "unrecorded": 0,
    }  # fmt: skip


SLOW_INSERTS = """
CREATE TABLE many AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) SELECT i FROM n;
CREATE TRIGGER slow AFTER INSERT ON traces BEGIN SELECT count(*) FROM many a, many b, many c WHERE a.i + b.i = c.i; END;
"""  # one insert takes minutes


def test_a_step_that_takes_too_long_is_interrupted_and_what_it_leaves_is_counted(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F79: `close` keeps its time, and no trace is neither stored nor counted nor said."""
    SqliteTraceSink(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SLOW_INSERTS)
    sink = SqliteTraceSink(path, batch=2, close_s=1.0, flush_interval_s=0.01)
    for n in range(5):
        sink.write(a_trace(n))
    started = time.monotonic()
    sink.close()
    assert time.monotonic() - started < 3.0
    assert (sink.stats()["queued"], sink.stats()["stored"], sink.stats()["dropped"]) == (0, 0, 5)
    assert "closed with 5 traces" in caplog.text


class Unmoved(dict[str, object]):
    """Labels that keep the writer until they are let go."""

    def __init__(self) -> None:
        super().__init__(task="x")
        self.is_reached, self.is_let_go = threading.Event(), threading.Event()

    def get(self, name: str, default: object = None) -> object:  # type: ignore[override]
        self.is_reached.set()
        self.is_let_go.wait()
        return super().get(name, default)


def test_what_a_writer_that_does_not_come_back_leaves_is_counted_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By `close`, when it can wait no longer; not again when the writer comes back after all."""
    labels = Unmoved()
    sink = SqliteTraceSink(path, close_s=0.2, flush_interval_s=0.01)
    assert sink.flush()
    for n in range(5):
        sink.write(a_trace(n, labels=labels if n == 1 else None))
    assert labels.is_reached.wait(5)
    sink.close()
    assert (sink.stats()["queued"], sink.stats()["stored"], sink.stats()["dropped"]) == (0, 0, 5)
    assert "closed with 5 traces" in caplog.text
    labels.is_let_go.set()
    sink.close()
    sink._thread.join(5)
    assert (sink.stats()["queued"], sink.stats()["stored"], sink.stats()["dropped"]) == (0, 0, 5)


def test_what_an_unforeseen_error_costs_is_said_and_leaves_no_transaction(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of rows, not what is left of them; and the next batch is stored."""
    sink = SqliteTraceSink(path, flush_interval_s=60)
    assert sink.flush()

    def broken(connection: sqlite3.Connection, **_: object) -> tuple[bool, int]:
        connection.execute("BEGIN IMMEDIATE")
        sink._pending.append(())
        raise ValueError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(sink._upkeep, "step", broken)
        assert not sink.flush(0.5)
    assert "1 rows lost to an unforeseen ValueError" in caplog.text
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        other.executescript("BEGIN IMMEDIATE; ROLLBACK")
    sink.write(a_trace(1))
    assert sink.flush()
    sink.close()
    assert sink.stats()["stored"] == 1
    assert sink.stats()["failed"] == caplog.text.count("1 rows lost to an unforeseen ValueError")  # once, or again


def test_several_threads_may_write(sink: SqliteTraceSink, path: Path) -> None:
    """The queue takes traces from any thread."""
    threads = [threading.Thread(target=lambda: [sink.write(a_trace(n)) for n in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sink.flush()
    assert SqliteTraceReader(path).totals(None)["requests"] == 2_000


def test_migrations_are_applied_once_and_a_newer_file_is_left_alone(path: Path) -> None:
    """Doing it again changes nothing; two versions of the router may share one file."""
    connection = sqlite3.connect(path, isolation_level=None)
    assert migrate(connection, 1) == migrate(connection, 2) == len(MIGRATIONS)
    assert connection.execute("SELECT version, applied_at_ns FROM trace_schema_version").fetchall() == [
        (number, 1) for number in range(1, len(MIGRATIONS) + 1)
    ]
    connection.execute("ALTER TABLE traces ADD COLUMN from_the_future TEXT")
    connection.execute("INSERT INTO trace_schema_version VALUES (99, 3)")
    assert migrate(connection, 4) == 99
    connection.close()
    sink = SqliteTraceSink(path, flush_interval_s=0.01)
    sink.write(a_trace(1))
    assert sink.flush()
    sink.close()
    assert len(SqliteTraceReader(path).list(TraceQuery())) == 1


def test_the_tail_sees_a_long_request_when_it_ends(sink: SqliteTraceSink, path: Path) -> None:
    """Marks count arrivals: a request that started earlier but finished later is not skipped."""
    reader = SqliteTraceReader(path)
    sink.write(a_trace(5))
    assert sink.flush()
    mark, rows = reader.tail(None, TraceQuery())
    assert rows == []
    sink.write(a_trace(1))
    sink.write(a_trace(6, rule="other"))
    assert sink.flush()
    later, rows = reader.tail(mark, TraceQuery(rule="structured-work"))
    assert [row["request_id"] for _, row in rows] == ["req_000001"]
    assert reader.tail(later, TraceQuery()) == (later, [])
    first, rows = reader.tail(mark, TraceQuery(limit=1))
    assert [row["request_id"] for _, row in reader.tail(first, TraceQuery())[1]] == ["req_000006"]


def test_a_reader_cannot_write_and_gives_up_in_time(sink: SqliteTraceSink, path: Path) -> None:
    """A question has a time limit; a missing file is said with the next step."""
    for n in range(3_000):
        sink.write(a_trace(n))
    assert sink.flush()
    with pytest.raises(TraceStoreError, match="took longer"):
        SqliteTraceReader(path, time_limit_s=-1.0).totals(None)
    with pytest.raises(TraceStoreError, match="no trace store"):
        SqliteTraceReader(path.with_name("none.db")).list(TraceQuery())
    path.with_name("broken.db").write_bytes(b"garbage" * 1_000)
    with pytest.raises(TraceStoreError, match="cannot be read"):
        SqliteTraceReader(path.with_name("broken.db")).list(TraceQuery())


def test_urls_name_files_or_off() -> None:
    """Three slashes are relative, four absolute, anything else is refused with an example."""
    assert path_of("sqlite:///router.db") == Path("router.db")
    assert path_of("sqlite:////var/lib/router.db") == Path("/var/lib/router.db")
    assert path_of("off") is open_sink("off") is None
    for url in ("", "router.db", "sqlite://", "sqlite:///", "sqlite://router.db", "postgres:///x", "sqlite:///a?b=1"):
        with pytest.raises(SettingsError):
            path_of(url)


def test_an_open_sink_creates_folder_and_file(tmp_path: Path) -> None:
    """A fresh machine needs no preparation."""
    sink = open_sink(f"sqlite:///{tmp_path}/new/router.db")
    assert sink is not None
    assert sink.flush()
    sink.close()
    assert SqliteTraceReader(tmp_path / "new" / "router.db").list(TraceQuery()) == []
