"""Re-pricing: rows keep the price they were booked at until they are booked again, with the same arithmetic."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from kit.traces import a_trace

from router.catalog.lookup import Catalog, read_catalog
from router.catalog_file import load_catalog
from router.cli.trace import trace as trace_group
from router.errors import TraceStoreError
from router.serve.ledger import book
from router.trace.export import usd
from router.trace.metrics import MetricsSink
from router.trace.reader import SqliteTraceReader
from router.trace.record import Attempt, Trace
from router.trace.reprice import SLICE, _before_first, reprice
from router.trace.sqlite import SqliteTraceSink
from router.usage import Iteration, Tokens, Usage

CATALOG = load_catalog(None)
SHIPPED = Path(__file__).parents[2] / "router" / "data" / "models.yaml"


def dearer(times: int, without: str = "") -> dict[str, Any]:
    """The shipped catalogue with every price of Haiku 4.5 multiplied, and one model less."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document = yaml.load(SHIPPED.read_text(encoding="utf-8"), Loader=loader)
    for model in document["models"]:
        if model["id"].startswith("claude-haiku-4-5"):
            model["usd_per_mtok"] = {
                name: float(str(round(price * times, 6))) for name, price in model["usd_per_mtok"].items()
            }
        if model["id"] == without:
            model["usd_per_mtok"] = None
    return document


def some_traces(catalog: Catalog) -> list[Trace]:
    """What the ledger meets: plain, hit, coalesced, failed before and after the model, iterations, unknown model."""
    usage = Usage(Tokens(1_000, 20_000, 300, 40, 500), web_searches=2, geo="us")
    parts = Usage(
        Tokens(10, 0, 0, 0, 5), iterations=(Iteration("message", None, Tokens(10, 0, 0, 0, 5)),
                                            Iteration("advisor_message", "claude-opus-5-5", Tokens(90, 0, 0, 0, 50)))
    )  # fmt: skip
    haiku, odd = "claude-haiku-4-5", "claude-of-tomorrow"
    kinds: list[tuple[dict[str, Any], bool]] = [
        ({}, False),
        ({"usage": parts, "attempts": [Attempt("a", haiku, 0.1, usage=parts)]}, False),
        ({"cache": "hit", "attempts": []}, True),
        ({"cache": "coalesced", "attempts": []}, True),
        ({"usage": None, "attempts": [Attempt("a", haiku, 0.1, "timeout")]}, False),
        ({"usage": None, "attempts": [Attempt("a", haiku, 0.1, "overloaded", 529)]}, False),
        ({"attempts": [Attempt("a", haiku, 0.1, "cut", 200, usage=usage), Attempt("b", haiku, 0.2, usage=usage)]},
         False),
        ({"model_sent": odd, "model_answered": odd, "attempts": [Attempt("a", odd, 0.1, usage=usage)]}, False),
        ({"model_asked": odd}, False),
        ({"model_asked": "auto"}, False),
        ({"cache": "coalesced", "usage": None, "attempts": [], "outcome": "client_closed"}, False),
        ({"cache": "coalesced", "usage": None, "attempts": []}, True),
        ({"endpoint": "batches", "usage": None, "attempts": [Attempt("a", haiku, 0.1, status=200)]}, False),
    ]  # fmt: skip
    found = []
    for number, (fields, is_hit) in enumerate(kinds):
        given = {"attempts": [Attempt("haiku", haiku, 0.1, usage=usage)], "usage": usage, **fields}
        trace = a_trace(number, model_answered=fields.get("model_answered", haiku), price_version="", **{
            name: value for name, value in given.items() if name != "model_answered"
        })  # fmt: skip
        trace.cost_pusd = trace.baseline_pusd = trace.saved_pusd = None
        book(trace, catalog, is_hit=is_hit)
        found.append(trace)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "router.db"
    sink = SqliteTraceSink(path, flush_interval_s=0.01)
    for trace in some_traces(CATALOG):
        sink.write(trace)
    sink.close()
    return path


def money(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT request_id, price_version, cost_pusd, baseline_pusd, saved_pusd, prompt_read_saved_pusd,"
            " prompt_write_extra_pusd FROM traces ORDER BY seq"
        ).fetchall()


def expected(catalog: Catalog) -> list[tuple[Any, ...]]:
    return [
        (t.request_id, t.price_version, t.cost_pusd, t.baseline_pusd, t.saved_pusd, t.prompt_read_saved_pusd,
         t.prompt_write_extra_pusd)
        for t in some_traces(catalog)
    ]  # fmt: skip


def again(catalog: Catalog):
    return lambda trace, is_hit: book(trace, catalog, is_hit=is_hit)


def test_the_same_prices_change_nothing(path: Path) -> None:
    """What is stored is enough to book a request again exactly."""
    before = money(path)
    found = reprice(path, again(CATALOG))
    assert sum(change.changed for change in found.models.values()) == 0
    assert money(path) == before == expected(CATALOG)


@pytest.mark.parametrize("document", [dearer(3), dearer(1, without="claude-sonnet-5-5")], ids=["dearer", "unknown"])
def test_other_prices_give_what_they_would_have_given_at_first(path: Path, document: dict[str, Any]) -> None:
    """Cost, baseline, saved and prompt cache; known becomes unknown where a price is gone; the roll-ups follow."""
    catalog = read_catalog(document)
    found = reprice(path, again(catalog))
    assert money(path) == expected(catalog) != expected(CATALOG)
    assert set(found.versions) == {CATALOG.price_version}
    reader = SqliteTraceReader(path)
    rows = reader.totals(None)
    rolled = _overview(reader)
    for name in ("cost_usd", "baseline_usd", "saved_usd", "unknown_cost", "cost_without_baseline_usd",
                 "cache_saved_usd", "prompt_cache_read_saved_usd", "prompt_cache_write_extra_usd"):  # fmt: skip
        assert rolled[name] == rows[name], name
    assert reader.get("req_000000")["attempts"][0]["cost_usd"] == reader.get("req_000000")["cost_usd"]
    back = reprice(path, again(CATALOG))
    assert money(path) == expected(CATALOG)
    assert set(back.versions) == {catalog.price_version}


def _overview(reader: SqliteTraceReader) -> dict[str, Any]:
    start_ns = a_trace().started_at_ns
    return reader.overview(start_ns, start_ns + 10**9)["totals"]


def test_a_dry_run_counts_and_writes_nothing(path: Path) -> None:
    """Not even where the file may not be written."""
    before = money(path)
    path.chmod(0o444)
    found = reprice(path, again(read_catalog(dearer(2))), is_dry=True)
    assert sum(change.changed for change in found.models.values()) > 0
    assert money(path) == before


def test_since_leaves_what_is_older(path: Path) -> None:
    """A price that changed on a day is applied from that day on."""
    catalog = read_catalog(dearer(2))
    reprice(path, again(catalog), since_ns=a_trace(5).started_at_ns)
    assert money(path) == expected(CATALOG)[:5] + expected(catalog)[5:]


class Pauses:
    """A clock that moves on by a second whenever it is asked, and what was slept by it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._now_s = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        self._now_s += 1.0
        return self._now_s

    def sleep(self, seconds: float) -> None:
        with closing(sqlite3.connect(self._path, timeout=0, isolation_level=None)) as connection:
            connection.executescript("BEGIN IMMEDIATE; ROLLBACK")  # the lock is free
        self.slept.append(seconds)


def test_between_slices_the_file_is_free_for_as_long_as_a_slice_took(path: Path) -> None:
    """Else the serving router, which waits its turn with pauses, would never get it."""
    sink = SqliteTraceSink(path, flush_interval_s=0.01)
    for number in range(3 * SLICE):
        sink.write(a_trace(100 + number))
    sink.close()
    pauses = Pauses(path)
    reprice(path, again(CATALOG), clock=pauses.clock, sleep=pauses.sleep)
    assert pauses.slept == [1.0] * 4


def test_what_changes_nothing_takes_no_lock(path: Path) -> None:
    """Nor does it wait for one that another program holds."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        found = reprice(path, again(CATALOG), sleep=pytest.fail)
    assert sum(change.rows for change in found.models.values()) == 13


def test_prices_are_computed_without_the_lock_and_a_row_that_changed_meanwhile_is_left(path: Path) -> None:
    """It was deleted, or another program booked it: what was read of it is not true any more."""
    dear = again(read_catalog(dearer(2)))
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:

        def meddling(trace: Trace, is_hit: bool) -> None:
            other.execute("UPDATE traces SET price_version = 'theirs', cost_pusd = 7 WHERE seq = 1")
            other.execute("DELETE FROM traces WHERE seq = 2")
            dear(trace, is_hit)

        found = reprice(path, meddling)
    assert money(path)[0][1:3] == ("theirs", 7)
    assert money(path)[1:] == expected(read_catalog(dearer(2)))[2:]
    assert sum(change.rows for change in found.models.values()) == 11


def test_the_first_row_since_then_is_found_in_the_index(path: Path) -> None:
    """Not by reading all older rows, which are wide."""
    asked: list[str] = []
    with closing(sqlite3.connect(path)) as connection:
        connection.set_trace_callback(asked.append)
        assert _before_first(connection, a_trace(5).started_at_ns) == 5
        assert _before_first(connection, a_trace(10**9).started_at_ns) > 10**9
        plan = connection.execute(f"EXPLAIN QUERY PLAN {asked[0]}").fetchall()
    assert "COVERING INDEX traces_to_filter (started_at_ns>?)" in plan[0][3]


def test_money_that_the_store_cannot_hold_is_unknown_to_the_metrics_too(tmp_path: Path) -> None:
    """Counts that only a hostile upstream reports; the bound is where money is booked, at first and again."""
    many = Usage(Tokens(2**62, 0, 0, 0, 2**62))
    haiku = "claude-haiku-4-5"
    trace = a_trace(0, usage=many, attempts=[Attempt("haiku", haiku, 0.1, usage=many)])
    book(trace, CATALOG)
    assert (trace.cost_pusd, trace.baseline_pusd, trace.saved_pusd) == (None, None, None)
    assert trace.attempts[0].cost_pusd is None
    metrics, sink = MetricsSink(), SqliteTraceSink(tmp_path / "router.db")
    metrics.write(trace)
    sink.write(trace)
    sink.close()
    totals = SqliteTraceReader(tmp_path / "router.db").totals(None)
    assert (totals["cost_usd"], totals["unknown_cost"]) == (usd(0), 1)
    assert f'router_unknown_cost_requests_total{{model="{haiku}"' in metrics.render().decode()
    before = money(tmp_path / "router.db")
    reprice(tmp_path / "router.db", again(CATALOG))
    assert money(tmp_path / "router.db") == before


def test_a_record_that_cannot_be_read_stays(path: Path) -> None:
    """Cut by a bound, or not ours: counted, and left alone."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("""UPDATE traces SET usage = '{"truncated_bytes": 70000}' WHERE seq = 1""")
        connection.execute("""UPDATE traces SET attempts = '[{"truncated_bytes": 70000}]' WHERE seq = 2""")
        connection.commit()
    before = money(path)
    found = reprice(path, again(read_catalog(dearer(2))))
    assert found.unreadable == 2
    assert money(path)[:2] == before[:2]
    assert money(path)[2:] != before[2:]


def test_a_store_that_is_not_there_is_said(tmp_path: Path) -> None:
    """And none is made."""
    with pytest.raises(TraceStoreError):
        reprice(tmp_path / "none.db", again(CATALOG))
    assert not (tmp_path / "none.db").exists()


def test_a_serving_router_goes_on_writing_meanwhile(path: Path) -> None:
    """Two writers take turns; nothing is lost or counted twice."""
    sink = SqliteTraceSink(path, flush_interval_s=0.001)
    for round_ in range(8):
        for number in range(50):
            sink.write(a_trace(100 + round_ * 50 + number))
        reprice(path, again(CATALOG if round_ % 2 else read_catalog(dearer(2))))
    assert sink.flush()
    sink.close()
    reader = SqliteTraceReader(path)
    assert reader.totals(None)["requests"] == 400 + 12
    start_ns = a_trace().started_at_ns
    rolled = reader.overview(start_ns, start_ns + 10 * 10**9)["totals"]
    for name in ("requests", "cost_usd", "baseline_usd", "saved_usd", "unknown_cost"):
        assert rolled[name] == reader.totals(None)[name]


def test_the_command_says_what_changed(path: Path, tmp_path: Path) -> None:
    """`router trace reprice`, first dry, then for good."""
    catalog = tmp_path / "models.yaml"
    catalog.write_text(yaml.safe_dump(dearer(2)), encoding="utf-8")
    common = ["reprice", "--traces", f"sqlite:///{path}", "--catalog", str(catalog)]
    dry = CliRunner().invoke(trace_group, [*common, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "dry run: nothing was changed" in dry.output
    done = json.loads(CliRunner().invoke(trace_group, [*common, "--json"]).output)
    assert done["totals"]["changed"] > 0
    assert done["totals"]["cost_usd"] > done["totals"]["cost_before_usd"]
    assert done["versions_before"] == {CATALOG.price_version: 13}
    assert json.loads(CliRunner().invoke(trace_group, [*common, "--json"]).output)["totals"]["changed"] == 0
