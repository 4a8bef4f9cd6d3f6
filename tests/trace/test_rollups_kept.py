"""Reports and charts say only what the store still knows: rows not rolled up yet, rows and roll-ups deleted."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from kit.traces import START_NS, a_trace

from router.cli.report import report
from router.errors import BadFilter
from router.facts.identity import session_key
from router.trace.export import usd
from router.trace.question import question
from router.trace.reader import SqliteTraceReader
from router.trace.record import Trace
from router.trace.rollup import REFUSED, ROW, Sums, catch_up
from router.trace.rows import row_of
from router.trace.schema import COLUMNS, MIGRATIONS, migrate
from router.trace.sessions import Sessions
from router.trace.summary import projection, summary
from router.trace.upkeep import DAY_S, MINUTES_KEPT_S, ROLLUP_BYTES, Retention, Upkeep

DAY_NS = DAY_S * 10**9
HOUR_NS = 3_600 * 10**9
_INSERT = f"INSERT INTO traces ({','.join(COLUMNS)}) VALUES ({','.join('?' * len(COLUMNS))})"


def filled(path: Path, traces: list[Trace], rolled: int | None = None) -> SqliteTraceReader:
    """A store of these, of which the first `rolled` are rolled up (None: all)."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, 0)
        connection.execute("BEGIN")
        connection.executemany(_INSERT, [row_of(trace) for trace in traces])
        catch_up(connection, len(traces) if rolled is None else rolled)
        connection.execute("COMMIT")
    return SqliteTraceReader(path)


def upkept(path: Path, retention: Retention, now_ns: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        upkeep = Upkeep(retention, lambda: now_ns, lambda: 1.0)
        upkeep.opened(connection)
        while upkeep.step(connection)[0]:
            pass


def _said(path: Path, *options: str) -> str:
    return CliRunner().invoke(report, ["--traces", f"sqlite:///{path}", *options]).output


def hourly(count: int) -> list[Trace]:
    return [
        a_trace(n, started_at_ns=START_NS + n * HOUR_NS, key="" if n % 2 else "bot", rule=f"r{n % 3}")
        for n in range(count)
    ]


@pytest.mark.parametrize("by", ["rule", "key", "day"])
def test_what_is_not_rolled_up_yet_is_in_a_report_from_rollups(tmp_path: Path, by: str) -> None:
    """A store that is being upgraded, or was cut off: its sums are those of all rows."""
    whole, half = filled(tmp_path / "a.db", hourly(60)), filled(tmp_path / "b.db", hourly(60), 20)
    found = []
    for reader in (whole, half):
        with question(reader._path, 5.0) as ask:
            for since_ns in (None, START_NS + 30 * HOUR_NS):
                one = summary(ask, by, since_ns, None, rows_max=0)
                found.append((one["source"], one["is_complete"], one["rows"], one["totals"]))
            found.append(projection(ask, START_NS + 61 * HOUR_NS))
    assert found[0][:2] == ("rollups", True)
    assert found[0][3]["requests"] == 60
    assert found[:3] == found[3:]


def test_a_report_that_lacks_what_is_not_rolled_up_does_not_call_itself_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many rows to be read in a report: it is said, and no month is made of them."""
    path = tmp_path / "t.db"
    reader = filled(path, hourly(60), 20)
    monkeypatch.setattr("router.trace.summary.ARRIVED_MAX", 39)
    monkeypatch.setattr("router.trace.summary._is_few", lambda *_: False)
    found = reader.summary("rule", None)
    assert (found["is_complete"], found["totals"]["requests"], found["projection"]) == (False, 20, None)
    with question(path, 5.0) as ask:
        assert projection(ask, START_NS + 61 * HOUR_NS) is None
    said = _said(path)
    assert "roll-ups are still being made" in said
    assert "exact" not in said


def test_money_older_than_the_minutes_stays_in_short_reports_and_charts(tmp_path: Path) -> None:
    """Two days of last quarter are read from the hours, and an hour of them too."""
    path = tmp_path / "t.db"
    reader = filled(path, hourly(40))
    upkept(path, Retention(keep_s=DAY_S), START_NS + int(MINUTES_KEPT_S * 1e9) + 3 * DAY_NS)
    begin_ns = START_NS - START_NS % HOUR_NS
    found = reader.summary("rule", begin_ns, begin_ns + 10 * HOUR_NS)
    assert (found["source"], found["totals"]["requests"]) == ("rollups", 10)
    chart = reader.overview(begin_ns, begin_ns + 2 * HOUR_NS)
    assert (chart["step_s"], chart["totals"]["requests"]) == (3_600, 2)
    for step_s in (60, 900):
        with pytest.raises(BadFilter, match="not kept"):
            reader.overview(begin_ns, begin_ns + 2 * HOUR_NS, step_s=step_s)
    assert reader.overview(begin_ns, begin_ns + DAY_NS, step_s=21_600)["totals"]["requests"] >= 24
    after_ns = begin_ns + 60 * DAY_NS
    assert reader.overview(after_ns, after_ns + HOUR_NS, step_s=60)["step_s"] == 60


def test_rows_deleted_within_a_minute_send_the_report_to_the_rollups(tmp_path: Path) -> None:
    """What is left of a minute is not the minute."""
    path = tmp_path / "t.db"
    start_ns = START_NS - START_NS % (60 * 10**9)
    reader = filled(path, [a_trace(n, started_at_ns=start_ns + n * 10**9) for n in range(50)])
    upkept(path, Retention(keep_s=60), start_ns + 90 * 10**9)
    found = reader.summary("rule", None)
    assert (found["source"], found["totals"]["requests"]) == ("rollups", 50)
    found = reader.summary("conversation", None)
    assert (found["source"], found["is_complete"], found["totals"]["requests"]) == ("rows", False, 20)
    assert "were deleted" in _said(path, "--by", "conversation")
    found = reader.summary("rule", start_ns + 30 * 10**9)
    assert (found["source"], found["totals"]["requests"]) == ("rows", 20)


def test_the_oldest_minutes_go_before_traces_once_they_fill_a_third(tmp_path: Path) -> None:
    """They are in the hours again; traces are nowhere else."""
    path = tmp_path / "t.db"
    count = 6_000
    minutes = [
        a_trace(n, started_at_ns=START_NS + (n // 100) * 60 * 10**9, rule=f"r{n % 100}", facts={}, why=())
        for n in range(count)
    ]
    reader = filled(path, minutes)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM traces WHERE seq <= 5000")
        connection.commit()
        used = connection.execute(
            "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count,"
            " pragma_page_size"
        ).fetchone()[0]
        newest = connection.execute("SELECT max(start_s) FROM rollups WHERE step_s = 60").fetchone()[0]
    assert count * ROLLUP_BYTES > used * 0.99 / 3
    upkept(path, Retention(max_bytes=int(used * 0.99)), START_NS)
    with closing(sqlite3.connect(path)) as connection:
        (traces,) = connection.execute("SELECT count(*) FROM traces").fetchone()
        left, last = connection.execute("SELECT count(*), max(start_s) FROM rollups WHERE step_s = 60").fetchone()
        (hours,) = connection.execute("SELECT sum(requests) FROM rollups WHERE step_s = 3600").fetchone()
    assert (traces, last, hours) == (1_000, newest, count)
    assert 0 < left < count
    assert reader.summary("rule", None)["totals"]["requests"] == count


def test_invented_credentials_take_no_name_but_the_tenants(tmp_path: Path) -> None:
    """Models and keys keep their names, however many tenants fill the groups; the refused share one."""
    with closing(sqlite3.connect(tmp_path / "t.db", isolation_level=None)) as connection:
        migrate(connection, 0)
        traces = [a_trace(n, tenant=f"t{n}", key="") for n in range(40)]
        traces += [a_trace(99, tenant=f"x{n}", key="", status=401, outcome="upstream_error") for n in range(40)]
        traces += [a_trace(100 + n, tenant=f"late{n}", key=f"key-{n}", model_sent=f"priced-{n}") for n in range(30)]
        traces += [
            a_trace(n, tenant="y", model_sent=f"invented-{n}", cost_pusd=None, saved_pusd=None) for n in range(30)
        ]
        connection.executemany(_INSERT, [row_of(trace) for trace in traces])
        for first in range(0, len(traces), 10):
            sums = Sums()
            for row in connection.execute(f"SELECT {ROW} FROM traces WHERE seq > ? AND seq <= ?", (first, first + 10)):
                sums.roll(row)
            sums.write(connection, most_groups=20)
        found = connection.execute(
            "SELECT model, tenant, key, sum(requests) FROM rollups JOIN rollup_groups ON id = group_id"
            " WHERE step_s = 60 GROUP BY 1, 2, 3"
        ).fetchall()
    assert sum(row[3] for row in found) == len(traces)
    assert {row[2] for row in found} == {"", "bot", *(f"key-{n}" for n in range(30))}
    assert {f"priced-{n}" for n in range(30)} <= {row[0] for row in found}
    assert [row[3] for row in found if row[1] == REFUSED] == [40]
    assert sum(row[3] for row in found if row[1] == "other" and row[2] == "") == 20
    assert sum(row[3] for row in found if row[0] == "other") == 30


def test_the_refused_have_one_name_in_reports_of_rows_too(tmp_path: Path) -> None:
    """A report by key says the same whether it was made of rows or of roll-ups."""
    refused = [a_trace(n, tenant=f"x{n}", key="", status=401 + n % 2 * 2, outcome="upstream_error") for n in range(6)]
    filled(tmp_path / "t.db", [*refused, a_trace(7)])
    with question(tmp_path / "t.db", 5.0) as ask:
        found = [summary(ask, "key", None, None, rows_max=most) for most in (0, 100)]
    assert [one["source"] for one in found] == ["rollups", "rows"]
    assert [{row["key"]: row["requests"] for row in one["rows"]} for one in found] == [{REFUSED: 6, "bot": 1}] * 2


def test_a_store_of_before_does_not_call_its_rows_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What went before deletions were noted is not known: from there on, only."""
    path = tmp_path / "t.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        with monkeypatch.context() as patch:
            patch.setattr("router.trace.schema.MIGRATIONS", MIGRATIONS[:5])
            assert migrate(connection, 0) == 5
        names = COLUMNS[: COLUMNS.index("batch")]  # those of that version
        insert = f"INSERT INTO traces ({','.join(names)}) VALUES ({','.join('?' * len(names))})"
        connection.executemany(insert, [row_of(trace)[: len(names)] for trace in hourly(3)])
        catch_up(connection, 10)
        migrate(connection, 0)
        found = dict(connection.execute("SELECT step_s, newest FROM deleted").fetchall())
    start_s = START_NS // 10**9
    assert found == {
        0: START_NS - 1,
        **{step_s: start_s - start_s % step_s - 1 for step_s in (60, 3_600, 21_600, 86_400)},
    }
    reader = SqliteTraceReader(path)
    assert [reader.summary("rule", since)["source"] for since in (None, START_NS)] == ["rollups", "rows"]
    assert reader.totals(None)["requests"] == 3


def test_a_session_that_costs_more_than_64_bits_hold_is_added_up(tmp_path: Path) -> None:
    """Nine million dollars in pico-dollars, three times."""
    key = session_key("acme", "s1")
    filled(tmp_path / "t.db", [a_trace(n, session=key, cost_pusd=2**62, baseline_pusd=2**62 + 1) for n in range(3)])
    found = Sessions(tmp_path / "t.db").of_session("s1")
    assert found is not None
    assert (found["cost_usd"], found["saved_usd"]) == (usd(3 * 2**62), usd(3))
