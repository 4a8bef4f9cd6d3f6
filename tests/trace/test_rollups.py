"""Roll-ups: the same sums as the rows, kept in the same transaction, for longer than the rows."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.traces import START_NS, a_trace

from router.errors import BadFilter, TraceStoreError
from router.trace.export import usd
from router.trace.question import question
from router.trace.reader import SqliteTraceReader
from router.trace.record import Trace
from router.trace.rollup import BOUNDS_S, BUCKETS, ROW, SUMS, Sums, catch_up, quantile
from router.trace.rows import row_of
from router.trace.schema import COLUMNS, MIGRATIONS, ROLLUP_SUMS_5, migrate
from router.trace.sqlite import SqliteTraceSink
from router.trace.summary import projection, summary

_INSERT = f"INSERT INTO traces ({','.join(COLUMNS)}) VALUES ({','.join('?' * len(COLUMNS))})"
_EXACT = ("requests", "not_ok", "input_tokens", "cache_read_input_tokens", "cache_write_input_tokens", "output_tokens",
          "cost_usd", "baseline_usd", "saved_usd", "unknown_cost", "cost_without_baseline_usd", "cache_hits",
          "cache_coalesced", "cache_misses", "cache_saved_usd", "prompt_cache_read_saved_usd",
          "prompt_cache_write_extra_usd")  # fmt: skip


def varied(count: int, seed: int = 3) -> list[Trace]:
    """Requests over two days: several models, rules, tenants, failures, hits, unknown prices, huge amounts."""
    dice = random.Random(seed)
    found = []
    for number in range(count):
        cost = dice.choice((None, 0, 1, 999_999, 1_000_001, 2**61 + number, dice.randrange(10**12)))
        baseline = dice.choice((None, 0, 2**61, dice.randrange(10**12)))
        found.append(
            a_trace(
                number,
                started_at_ns=START_NS + dice.randrange(2 * 86_400 * 10**9),
                endpoint=dice.choice(("messages", "messages", "messages", "count_tokens")),
                model_sent=dice.choice(("haiku", "sonnet", "opus")),
                rule=dice.choice(("a", "b")),
                labels={"task": dice.choice(("code", "chat"))} if dice.random() < 0.8 else None,
                tenant=dice.choice(("acme", "bolt")),
                key=dice.choice(("", "bot")),
                outcome=dice.choice(("ok", "ok", "ok", "cut", "upstream_error")),
                cache=dice.choice(("hit", "miss", "bypass", "coalesced")),
                usage=a_trace().usage if dice.random() < 0.8 else None,
                cost_pusd=cost,
                baseline_pusd=baseline,
                saved_pusd=None if cost is None or baseline is None else baseline - cost,
                prompt_read_saved_pusd=dice.choice((None, 0, 5_000_000_001)),
                prompt_write_extra_pusd=dice.choice((None, 0, 7)),
                ttft_s=dice.choice((None, dice.random())),
                duration_s=dice.random() * 200,
            )
        )
    return found


def stored(path: Path, traces: list[Trace]) -> SqliteTraceReader:
    sink = SqliteTraceSink(path, flush_interval_s=0.01)
    for trace in traces:
        sink.write(trace)
    assert sink.flush(30)
    assert sink.stats()["write_errors"] == 0
    sink.close()
    return SqliteTraceReader(path)


def from_rollups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports read the roll-ups however few rows there are."""
    monkeypatch.setattr("router.trace.summary._is_few", lambda *_: False)


@pytest.mark.parametrize("by", ["rule", "model", "task", "key", "day", "policy", "lane"])
def test_a_report_from_rollups_is_the_report_from_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Every count and every pico-dollar, beyond 64 bits too."""
    reader = stored(tmp_path / "t.db", varied(2_000))
    rows = reader.summary(by, None)
    from_rollups(monkeypatch)
    rolled = reader.summary(by, None)
    assert (rows["source"], rolled["source"]) == ("rows", "rollups")
    assert [[row[by], *(row[name] for name in _EXACT)] for row in rolled["rows"]] == [
        [row[by], *(row[name] for name in _EXACT)] for row in rows["rows"]
    ]
    assert [rolled["totals"][name] for name in _EXACT] == [rows["totals"][name] for name in _EXACT]


def test_the_overview_adds_up_to_the_report(tmp_path: Path) -> None:
    """Points add up to their series, series to the totals, and those are the report's."""
    reader = stored(tmp_path / "t.db", varied(2_000))
    for by in (None, "model", "outcome"):
        found = reader.overview(START_NS, START_NS + 3 * 86_400 * 10**9, by=by, step_s=3_600)
        assert found["is_complete"]
        assert len(found["times"]) == 73
        assert [found["totals"][name] for name in _EXACT] == [reader.totals(None)[name] for name in _EXACT]
        for name in ("requests", "cost_usd", "saved_usd", "output_tokens", "unknown_cost", "cache_hits"):
            parts = [sum(series["points"][name]) for series in found["series"]]
            assert parts == [series["totals"][name] for series in found["series"]]
            assert sum(parts) == found["totals"][name]
    one = reader.overview(START_NS, START_NS + 3 * 86_400 * 10**9, filters={"model": "opus", "tenant": "acme"})
    assert 0 < one["totals"]["requests"] < found["totals"]["requests"]
    assert one["step_s"] == 3_600


def test_a_chart_shows_the_dearest_eight_and_the_rest_as_one(tmp_path: Path) -> None:
    """However many models clients name."""
    traces = [
        a_trace(n, model_sent=f"model-{n:02d}", cost_pusd=n * 10**7, baseline_pusd=n * 10**7, saved_pusd=0)
        for n in range(20)
    ]
    reader = stored(tmp_path / "t.db", traces)
    found = reader.overview(START_NS, START_NS + 10**9, by="model")
    assert [series["name"] for series in found["series"]] == [*(f"model-{n:02d}" for n in range(19, 11, -1)), "other"]
    rest = found["series"][-1]
    assert (rest["is_rest"], rest["totals"]["requests"], sum(rest["points"]["requests"])) == (True, 12, 12)


@pytest.mark.parametrize(
    "wrong", [{"by": "moon"}, {"step_s": 61}, {"filters": {"cache": "hit"}}, {"step_s": 60, "until_ns": 2**61}]
)
def test_an_overview_says_what_it_does_not_take(tmp_path: Path, wrong: dict[str, object]) -> None:
    """Unknown names, odd steps and endless spans are the client's mistake, not a slow query."""
    reader = stored(tmp_path / "t.db", [])
    with pytest.raises(BadFilter):
        reader.overview(0, **{"until_ns": 3_600 * 10**9, **wrong})


def test_a_store_without_rollups_is_caught_up_with_while_it_is_written(tmp_path: Path) -> None:
    """Rows of an older router, before and after the migration, are rolled up once each."""
    path = tmp_path / "t.db"
    traces = varied(3_500)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, 0)
        connection.executemany(_INSERT, [row_of(trace) for trace in traces[:3_000]])
    reader = stored(path, traces[3_000:])
    sink = SqliteTraceSink(path, flush_interval_s=0.01)
    sink.write(traces[0])
    while not _has_caught_up(path):
        assert sink.flush()
    sink.close()
    found = reader.overview(START_NS, START_NS + 3 * 86_400 * 10**9)["totals"]
    assert [found[name] for name in _EXACT] == [reader.totals(None)[name] for name in _EXACT]


def _has_caught_up(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        return bool(connection.execute("SELECT (SELECT max(seq) FROM traces) = seq FROM rollup_state").fetchone()[0])


def test_many_names_of_clients_become_one(tmp_path: Path) -> None:
    """Sums stay whole; only who it was is lost beyond the bound."""
    with closing(sqlite3.connect(tmp_path / "t.db", isolation_level=None)) as connection:
        migrate(connection, 0)
        connection.executemany(_INSERT, [row_of(a_trace(n, tenant=f"tenant-{n}")) for n in range(50)])
        sums = Sums()
        for row in connection.execute(f"SELECT {ROW} FROM traces"):
            sums.roll(row)
        sums.write(connection, most_groups=10)
        found = dict(connection.execute(
            "SELECT tenant, sum(requests) FROM rollups JOIN rollup_groups ON id = group_id WHERE step_s = 60 GROUP BY 1"
        ).fetchall())  # fmt: skip
    assert found.pop("other") == 40
    assert sum(found.values()) == 10


def test_what_was_put_in_can_be_taken_out(tmp_path: Path) -> None:
    """Taking all rows out again leaves nothing but zeros: every figure is a plain sum."""
    with closing(sqlite3.connect(tmp_path / "t.db", isolation_level=None)) as connection:
        migrate(connection, 0)
        connection.executemany(_INSERT, [row_of(trace) for trace in varied(300)])
        assert catch_up(connection, 1_000) == 300
        sums = Sums()
        for row in connection.execute(f"SELECT {ROW} FROM traces"):
            sums.roll(row, -1)
        sums.write(connection)
        left = connection.execute(f"SELECT {'+'.join(f'sum(abs({name}))' for name in SUMS)} FROM rollups").fetchone()[0]
    assert left == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.0001, 320), min_size=1, max_size=60), st.sampled_from([0.5, 0.95]))
def test_an_estimated_quantile_is_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    """Nearest rank, off by no more than a bucket is wide."""
    counts = [0] * BUCKETS
    for value in values:
        counts[next(at for at, bound in enumerate((*BOUNDS_S, float("inf"))) if value <= bound)] += 1
    true = sorted(values)[-(-len(values) * int(share * 1000) // 1000) - 1]
    found = quantile(counts, share)
    assert found is not None
    at = next(at for at, bound in enumerate(BOUNDS_S) if true <= bound)
    assert (BOUNDS_S[at - 1] if at else 0) <= found <= BOUNDS_S[at]


def test_the_sums_are_those_of_the_shipped_migration() -> None:
    """A migration that has shipped is never edited: new sums need a new number."""
    assert SUMS == ROLLUP_SUMS_5
    assert len(MIGRATIONS) >= 4
    assert quantile([0] * BUCKETS, 0.5) is None


def test_the_month_to_come_is_the_rate_of_the_last_week(tmp_path: Path) -> None:
    """Thirty days at what was spent since the first request; none in the first hour, and its span is said."""
    traces = [a_trace(n, started_at_ns=START_NS + n * 60 * 10**9, cost_pusd=10**12, baseline_pusd=3 * 10**12)
              for n in range(120)]  # fmt: skip
    path = tmp_path / "t.db"
    stored(path, [replace(trace, saved_pusd=2 * 10**12) for trace in traces])
    first_s = START_NS // 10**9 // 60 * 60
    with question(path, 5) as ask:
        assert projection(ask, (first_s + 3_599) * 10**9) is None
        found = projection(ask, (first_s + 7_200) * 10**9)
    assert found is not None
    assert (found["from_s"], found["requests"], found["cost_usd"]) == (7_200, 43_200, 43_200)
    assert found["saved_usd"] == found["baseline_usd"] - found["cost_usd"] == 86_400


def test_only_the_dearest_conversations_leave_the_store(tmp_path: Path) -> None:
    """There may be millions: their order and their end are made in SQL, the totals are still of all of them."""
    path = tmp_path / "router.db"
    dice = random.Random(5)
    costs = [dice.choice((None, 5, 2**61, 2**61 + 1, dice.randrange(10**12))) for _ in range(2_400)]
    with closing(SqliteTraceSink(path)) as sink:
        for number, cost in enumerate(costs):
            sink.write(a_trace(number, conversation=f"c{number % 1_200:04}", cost_pusd=cost, baseline_pusd=cost))
        assert sink.flush(30)
    most = []
    with question(path, 30.0) as ask:

        def counted(sql: str, values: Sequence[Any]) -> Sequence[Any]:
            rows = ask(sql, values)
            most.append(len(rows))
            return rows

        found = summary(counted, "conversation", None, None, rows_max=0)
    sums = {f"c{at:04}": [costs[at], costs[at + 1_200]] for at in range(1_200)}
    dearest = sorted(sums, key=lambda name: (-sum(cost or 0 for cost in sums[name]), name))
    assert [row["conversation"] for row in found["rows"]] == dearest[:1_000]
    assert max(most) == 1_000
    assert found["totals"]["requests"] == 2_400
    assert found["totals"]["cost_usd"] == usd(sum(cost or 0 for cost in costs))


def test_a_question_over_its_time_asks_no_further(tmp_path: Path) -> None:
    """The clock is looked at between two statements too: a short one alone would never be interrupted."""
    path = tmp_path / "router.db"
    with closing(SqliteTraceSink(path)) as sink:
        sink.write(a_trace(0))
        assert sink.flush(30)
    with pytest.raises(TraceStoreError, match="took longer"), question(path, -1.0) as ask:
        ask("SELECT 1", ())


def test_flush_marks_do_not_pile_up_while_the_file_refuses(tmp_path: Path) -> None:
    """A mark with nothing behind it is shared by all who wait."""
    sink = SqliteTraceSink(tmp_path, close_s=0.2)  # a folder takes no traces
    try:
        for number in range(2):
            sink.write(a_trace(number))
            assert not any(sink.flush(0.0) for _ in range(50))
        assert sink.stats()["queued"] <= 4
    finally:
        sink.close()
