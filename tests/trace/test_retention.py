"""Retention: old traces go by age and by size, in slices, once they are in the roll-ups; inserts never wait for it."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from kit.traces import START_NS, a_trace

from router.trace.reader import SqliteTraceReader
from router.trace.record import TraceQuery
from router.trace.rollup import GROUPS_MAX
from router.trace.schema import migrate
from router.trace.sqlite import SqliteTraceSink
from router.trace.upkeep import (
    DAY_S,
    KEEP_ALL,
    MINUTES_KEPT_S,
    ROLLUPS_KEPT_S,
    SLICE,
    Retention,
    Upkeep,
    _delete_traces,
)

DAY_NS = DAY_S * 10**9


def filled(path: Path, traces: int, **fields: object) -> None:
    sink = SqliteTraceSink(path, flush_interval_s=0.01)
    for n in range(traces):
        sink.write(a_trace(n, **fields))
    assert sink.flush(30)
    sink.close()


def upkept(path: Path, retention: Retention, now_ns: int) -> tuple[int, int]:
    """Do all the upkeep there is: (traces deleted, slices)."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        upkeep = Upkeep(retention, lambda: now_ns, lambda: 1.0)
        upkeep.opened(connection)
        deleted = slices = 0
        is_more = True
        while is_more:
            is_more, now_deleted = upkeep.step(connection)
            deleted += now_deleted
            slices += 1
            assert now_deleted <= SLICE
            assert not connection.in_transaction
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return deleted, slices


def test_what_is_older_goes_and_the_sums_stay(tmp_path: Path) -> None:
    """A report over deleted rows is made of roll-ups, and is the same."""
    path = tmp_path / "t.db"
    filled(path, 1_000)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE traces SET started_at_ns = started_at_ns + ? WHERE seq > 900", (9 * DAY_NS,))
        connection.commit()
    reader = SqliteTraceReader(path)
    before = reader.overview(START_NS, START_NS + DAY_NS)["totals"]
    deleted, slices = upkept(path, Retention(keep_s=5 * DAY_S), START_NS + 10 * DAY_NS)
    assert (deleted, slices) == (900, 4)
    found = reader.summary("rule", None)
    assert (found["source"], found["totals"]["requests"]) == ("rollups", 1_000)
    assert found["totals"]["cost_usd"] == before["cost_usd"]
    assert reader.summary("rule", START_NS + 9 * DAY_NS)["source"] == "rows"


def test_the_mark_follows_when_everything_is_deleted(tmp_path: Path) -> None:
    """SQLite gives out a number again once its row is gone; the new row must be rolled up all the same."""
    path = tmp_path / "t.db"
    filled(path, 10)
    assert upkept(path, Retention(keep_s=60), START_NS + DAY_NS)[0] == 10
    filled(path, 5)
    assert SqliteTraceReader(path).overview(START_NS, START_NS + DAY_NS)["totals"]["requests"] == 15


def test_a_file_that_is_too_large_shrinks_to_its_bound(tmp_path: Path) -> None:
    """The oldest go first, and the pages go back to the disk."""
    path = tmp_path / "t.db"
    filled(path, 6_000, why=("x" * 2_000,) * 3)
    before = path.stat().st_size
    deleted, _ = upkept(path, Retention(max_bytes=before // 4), START_NS)
    assert 4_000 < deleted < 6_000
    left = SqliteTraceReader(path).list(TraceQuery(limit=1_000))
    assert len(left) == min(1_000, 6_000 - deleted)
    assert left[0]["request_id"] == "req_005999"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.stat().st_size < before * 0.5


def test_roll_ups_have_an_end_too(tmp_path: Path) -> None:
    """Minutes for 35 days, the rest for 400."""
    path = tmp_path / "t.db"
    filled(path, 10)

    def steps() -> dict[int, int]:
        with closing(sqlite3.connect(path)) as connection:
            return dict(connection.execute("SELECT step_s, sum(requests) FROM rollups GROUP BY 1").fetchall())

    retention = Retention(keep_s=DAY_S)
    upkept(path, retention, START_NS + int((MINUTES_KEPT_S - DAY_S) * 1e9))
    assert steps() == {60: 10, 3_600: 10, 21_600: 10, 86_400: 10}
    upkept(path, retention, START_NS + int((MINUTES_KEPT_S + DAY_S) * 1e9))
    assert steps() == {3_600: 10, 21_600: 10, 86_400: 10}
    upkept(path, retention, START_NS + int((ROLLUPS_KEPT_S + 2 * DAY_S) * 1e9))
    assert steps() == {}


def test_names_without_roll_ups_make_room(tmp_path: Path) -> None:
    """Ten thousand tenants of last year do not leave today's without a name."""
    path = tmp_path / "t.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, 0)
        connection.execute("BEGIN")
        names = "model, rule, task, tenant, key, policy, lane, outcome"
        connection.executemany(
            f"INSERT INTO rollup_groups ({names}) VALUES ('m', 'r', '', ?, '', 'p', 'l', 'ok')",
            [(str(n),) for n in range(GROUPS_MAX)],
        )
        connection.execute("COMMIT")
    filled(path, 10)
    upkept(path, Retention(keep_s=DAY_S), START_NS + 500 * DAY_NS)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM rollup_groups").fetchone() == (0,)


def test_the_writer_prunes_counts_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing has to be run beside the router."""
    caplog.set_level(logging.INFO)
    sink = SqliteTraceSink(
        tmp_path / "t.db",
        flush_interval_s=0.01,
        retention=Retention(keep_s=DAY_S),
        now_ns=lambda: START_NS + 2 * DAY_NS,
    )
    for n in range(1_000):
        sink.write(a_trace(n))
        sink.write(a_trace(n, started_at_ns=START_NS + 2 * DAY_NS))
    while sink.stats()["pruned"] < 1_000 or "deleted by age or size" not in caplog.text:
        assert sink.flush()
    sink.close()
    assert sink.stats()["stored"] == 2_000
    assert SqliteTraceReader(tmp_path / "t.db").summary("rule", None)["totals"]["requests"] == 2_000


def test_nothing_is_deleted_unless_it_is_asked_for(tmp_path: Path) -> None:
    """Keeping everything is a setting."""
    path = tmp_path / "t.db"
    filled(path, 100)
    assert upkept(path, KEEP_ALL, START_NS + 4_000 * DAY_NS) == (0, 1)
    assert upkept(path, Retention(DAY_S, 10**9), START_NS) == (0, 1)


def test_rows_that_are_not_rolled_up_are_not_deleted(tmp_path: Path) -> None:
    """Another process may have written them a moment ago."""
    path = tmp_path / "t.db"
    filled(path, 10)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE rollup_state SET seq = 4")
        connection.execute("BEGIN")
        assert _delete_traces(connection, 2**62) == 4
        connection.execute("ROLLBACK")


def test_a_file_of_a_newer_router_without_our_roll_ups_still_takes_traces(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F81: another schema costs the charts, never a row."""
    path = tmp_path / "t.db"
    filled(path, 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE rollups; INSERT INTO trace_schema_version VALUES (99, 0);")
    sink = SqliteTraceSink(path, flush_interval_s=0.01)
    sink.write(a_trace(7))
    assert sink.flush()
    sink.close()
    assert (sink.stats()["stored"], sink.stats()["write_errors"]) == (1, 0)
    assert "no roll-ups are kept" in caplog.text


@pytest.mark.parametrize("retention", [Retention(keep_s=60.0), Retention(max_bytes=1)], ids=["age", "size"])
def test_a_file_of_a_newer_router_keeps_the_promise_of_retention(tmp_path: Path, retention: Retention) -> None:
    """Roll-ups of another kind are no reason to keep content longer; only the newest arrival stays."""
    path = tmp_path / "t.db"
    filled(path, SLICE + 10)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE rollups; DROP TABLE rollup_state; DROP TABLE rollup_groups;")
    assert upkept(path, retention, START_NS + DAY_NS)[0] == SLICE + 9
    assert [row["request_id"] for row in SqliteTraceReader(path).list(TraceQuery())] == [f"req_{SLICE + 9:06d}"]
