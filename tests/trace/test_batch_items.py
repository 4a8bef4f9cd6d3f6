"""Items of Message Batches in the store and in the figures: however often they come, each is counted once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from kit.traces import START_NS, a_trace

from router.catalog_file import load_catalog
from router.serve.ledger import book
from router.trace.items import BatchItems
from router.trace.metrics import MetricsSink
from router.trace.reader import SqliteTraceReader
from router.trace.record import BATCH_ITEM, Trace, TraceQuery
from router.trace.reprice import reprice
from router.trace.rollup import STEPS_S
from router.trace.rows import row_of
from router.trace.schema import COLUMNS, MIGRATIONS, WEEK_NS, migrate
from router.trace.sqlite import SqliteTraceSink
from router.trace.upkeep import DAY_S, ITEM_BYTES, ITEMS_SHARE, SLICE, Retention, Upkeep
from router.usage import Iteration, Tokens, Usage

CATALOG = load_catalog(None)
DAY_NS = DAY_S * 10**9
HAIKU = "claude-haiku-5-5"
USAGE = Usage(Tokens(input=100, output=10), service_tier="batch")
HALF_PUSD = 100 * 50_000 + 10 * 250_000  # $0.10 and $0.50 a million, halved


def an_item(number: int, **fields: object) -> Trace:
    """The item of that number, booked."""
    item = Trace(
        f"{number + 1:016x}" * 2, START_NS + number, endpoint=BATCH_ITEM, method="GET", tenant="acme", key="bot",
        request_id=f"msg_{number}", model_asked=HAIKU, model_sent=HAIKU, model_answered=HAIKU, batch="msgbatch_1",
        usage=USAGE, status=200,
    )  # fmt: skip
    item = replace(item, **fields)  # type: ignore[arg-type]
    book(item, CATALOG)
    return item


def written(path: Path, *traces: Trace) -> dict[str, int]:
    """A sink of its own writes them; its figures."""
    sink = SqliteTraceSink(path, flush_interval_s=0.01)
    for trace in traces:
        sink.write(trace)
    assert sink.flush(30)
    sink.close()
    return dict(sink.stats())


def upkept(path: Path, retention: Retention, now_ns: int) -> int:
    """Do all the upkeep there is; how many traces went."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        upkeep = Upkeep(retention, lambda: now_ns, lambda: 1.0)
        upkeep.opened(connection)
        deleted, is_more = 0, True
        while is_more:
            is_more, now_deleted = upkeep.step(connection)
            deleted += now_deleted
        return deleted


def test_an_item_that_comes_again_is_left_out_and_counted(tmp_path: Path) -> None:
    """In one batch of rows, in a later one, from another process; other traces may share an id as ever."""
    path = tmp_path / "t.db"
    first = written(path, an_item(1), an_item(2), an_item(1), a_trace(1), a_trace(1))
    assert (first["stored"], first["repeated"], first["failed"]) == (4, 1, 0)
    again = written(path, an_item(2), an_item(3))
    assert (again["stored"], again["repeated"]) == (1, 1)
    reader = SqliteTraceReader(path)
    assert len(reader.list(TraceQuery(batch="msgbatch_1"))) == 3
    assert reader.list(TraceQuery(batch="msgbatch_2")) == []
    overview = reader.overview(START_NS, START_NS + DAY_NS)
    assert overview["totals"]["requests"] == reader.totals(None)["requests"] == 5


def test_a_row_that_cannot_be_stored_does_not_hide_what_is_repeated(tmp_path: Path) -> None:
    """The rows are then tried one by one, and each is counted as what it is."""
    odd = an_item(4)
    odd.duration_s = "odd"  # type: ignore[assignment]  # a number column takes it; the next does not
    odd.status = None  # type: ignore[assignment]
    told = written(tmp_path / "t.db", an_item(1), odd, an_item(1), an_item(2))
    assert (told["stored"], told["repeated"], told["failed"]) == (2, 1, 1)


def test_an_item_whose_row_was_deleted_stays_booked_once(tmp_path: Path) -> None:
    """Results may be fetched for 29 days, rows may go sooner: the roll-ups have them, and nothing is added again."""
    path = tmp_path / "t.db"
    written(path, *(an_item(number) for number in range(500)))
    assert upkept(path, Retention(keep_s=DAY_S), START_NS + 2 * DAY_NS) == 500
    told = written(path, *(an_item(number, started_at_ns=START_NS + 2 * DAY_NS) for number in range(501)))
    assert (told["stored"], told["repeated"]) == (1, 500)
    totals = SqliteTraceReader(path).totals(None)
    assert totals["requests"] == 501
    assert int(totals["cost_usd"] * 10**12) == 501 * HALF_PUSD
    assert remembered(path) == (500, 500)
    upkept(path, Retention(keep_s=DAY_S), START_NS + 30 * DAY_NS)
    assert remembered(path) == (501, 501), "the results may still be fetched"
    upkept(path, Retention(keep_s=DAY_S), START_NS + 45 * DAY_NS)
    assert remembered(path) == (0, 0), "what can be fetched no more is forgotten"


MOST = 400_000  # bytes, of which an eighth is for some 1,500 deleted items


def test_deleted_items_never_push_out_sums(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The store is too small for what is fetched: rows go, then the oldest deleted items, but no sum goes."""
    path = tmp_path / "t.db"
    written(path, *(a_trace(number, started_at_ns=START_NS - number * DAY_NS) for number in range(100)))
    now_ns = START_NS + 14 * DAY_NS
    for at in range(0, 6_000, 1_000):
        when_ns = START_NS + at // 1_000 * DAY_NS
        written(path, *(an_item(number, started_at_ns=when_ns + number) for number in range(at, at + 1_000)))
        upkept(path, Retention(max_bytes=MOST), now_ns)
        count, said = remembered(path)
        assert count == said
        assert count * ITEM_BYTES <= MOST // ITEMS_SHARE + SLICE * ITEM_BYTES
    with closing(sqlite3.connect(path)) as connection:
        sums = dict(connection.execute("SELECT step_s, sum(requests) FROM rollups GROUP BY step_s").fetchall())
        assert sums == dict.fromkeys(STEPS_S, 6_100)
        (oldest,) = connection.execute("SELECT min(week) FROM batch_items_gone").fetchone()
        assert oldest > START_NS // WEEK_NS - 1
    assert used(path) <= MOST
    assert "raise `traces_max_mb`" in caplog.text
    again = written(path, *(an_item(number, started_at_ns=now_ns) for number in range(5_900, 6_000)))
    assert again["repeated"] == 100, "the newest are known"


def test_a_store_full_of_sums_gives_up_deleted_items_before_any_of_them(tmp_path: Path) -> None:
    """Not even within their share: what may come again is worth less than what was."""
    path = tmp_path / "t.db"
    written(path, *(a_trace(number, started_at_ns=START_NS - number * DAY_NS) for number in range(300)))
    written(path, *(an_item(number) for number in range(800)))
    upkept(path, Retention(keep_s=60.0), START_NS + DAY_NS)
    assert remembered(path) == (800, 800)
    most = used(path) - 10_000
    assert most // ITEMS_SHARE > 800 * ITEM_BYTES
    before = sums_in(path)
    upkept(path, Retention(max_bytes=most), START_NS + DAY_NS)
    assert remembered(path) == (0, 0)
    assert sums_in(path) == before


def test_rows_that_wait_to_be_rolled_up_cost_no_sum(tmp_path: Path) -> None:
    """A burst fills the store within the second between two roll-ups: nothing can be deleted yet, and nothing is."""
    path = tmp_path / "t.db"
    written(path, a_trace(1), an_item(0))
    upkept(path, Retention(keep_s=60.0), START_NS + DAY_NS)
    most, now_s = used(path) + 100_000, 1.0
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        upkeep = Upkeep(Retention(max_bytes=most), lambda: START_NS + DAY_NS, lambda: now_s)
        upkeep.opened(connection)
        written_alone(connection, 0, 1)
        upkeep.step(connection)  # rolls up, and so not again within a second
        before = sums_in(path)
        written_alone(connection, 1, 400)
        upkeep._next_look = 0.0
        assert [upkeep.step(connection) for _ in range(2)] == [(True, 1), (False, 0)]
        assert (sums_in(path), remembered(path)) == (before, (2, 2))
        now_s += 2.0
        is_more = True
        while is_more:
            is_more, _ = upkeep.step(connection)
        assert used(path) <= most
        assert remembered(path)[0] >= 400
        assert sums_in(path) >= before


def remembered(path: Path) -> tuple[int, int]:
    """The deleted items: those there are, and how many the store thinks there are."""
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM batch_items_gone").fetchone()
        (said,) = connection.execute("SELECT coalesce(sum(items), 0) FROM batch_weeks_gone").fetchone()
        return count, said


def sums_in(path: Path) -> int:
    """How many roll-ups there are."""
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM rollups").fetchone()[0])


def used(path: Path) -> int:
    """Bytes in use, as the upkeep counts them."""
    with closing(sqlite3.connect(path)) as connection:
        pages, free, size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)


def written_alone(connection: sqlite3.Connection, first: int, count: int) -> None:
    """Items stored by a process that rolls nothing up, beside the one that does."""
    rows = [row_of(an_item(100 + number, why=("y" * 300,))) for number in range(first, first + count)]
    marks = ",".join("?" * len(COLUMNS))
    connection.executemany(f"INSERT INTO traces ({','.join(COLUMNS)}) VALUES ({marks})", rows)


@pytest.mark.parametrize("tier", ["batch", "standard", None])
def test_an_item_costs_batch_prices_and_is_booked_again_at_them(tmp_path: Path, tier: str | None) -> None:
    """Whatever the usage says of its tier; region, prompt cache, iterations and long prompts as of any request."""
    usages = [
        Usage(Tokens(100, 0, 0, 0, 10), geo="us"),
        Usage(Tokens(10, 2_000, 300, 40, 5), web_searches=2),
        Usage(Tokens(150_000, 0, 0, 0, 10)),
        Usage(Tokens(10, output=5), iterations=(Iteration("advisor_message", "claude-opus-5-5", Tokens(90)),)),
    ]
    path = tmp_path / "t.db"
    items = [an_item(n, usage=replace(usage, service_tier=tier)) for n, usage in enumerate(usages)]
    for item, usage in zip(items, usages, strict=True):
        assert item.cost_pusd == item.baseline_pusd == CATALOG.cost(usage, HAIKU, is_batch=True)
        assert 0 < 2 * item.cost_pusd - usage.web_searches * 10**10 == CATALOG.cost(usage, HAIKU)
    written(path, *items)
    found = reprice(path, lambda trace, is_had: book(trace, CATALOG, is_hit=is_had))
    assert (found.models[HAIKU].rows, found.models[HAIKU].changed) == (4, 0)
    assert SqliteTraceReader(path).totals(None)["requests"] == 4


def test_an_item_of_unknown_price_is_unknown(tmp_path: Path) -> None:
    """Never 0, and counted."""
    items = [an_item(1, usage=None), an_item(2, model_sent="x", model_answered="x", model_asked="x")]
    assert [item.cost_pusd for item in items] == [None, None]
    written(tmp_path / "t.db", *items)
    assert SqliteTraceReader(tmp_path / "t.db").totals(None)["unknown_cost"] == 2


def test_figures_count_an_item_once_as_far_as_memory_goes() -> None:
    """The last so many are known; an item of before is counted again, and the memory grows no further."""
    figures = MetricsSink()
    items = BatchItems(None, (figures,), most=3)

    def counted() -> int:
        text = figures.render().decode()
        return sum(int(float(row.split()[-1])) for row in text.splitlines() if row.startswith("router_requests_total{"))

    for number in (0, 1, 2, 0, 1, 2):
        items.write(an_item(number))
    assert counted() == 3
    items.write(an_item(3))  # item 0 is forgotten
    items.write(an_item(1))
    assert counted() == 4
    items.write(an_item(0))
    assert counted() == 5
    assert len(items._seen) == len(items._order) == 3
    assert items.has_room()


def test_a_store_of_before_is_brought_up_to_date(tmp_path: Path) -> None:
    """Rows of a store without batches stay as they are, and items are unique from then on."""
    path = tmp_path / "t.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE trace_schema_version (version INTEGER PRIMARY KEY, applied_at_ns INTEGER)")
        for number, statements in enumerate(MIGRATIONS[:-1], start=1):
            for statement in statements:
                connection.execute(statement)
            connection.execute("INSERT INTO trace_schema_version VALUES (?, 0)", (number,))
        known = [row[1] for row in connection.execute("PRAGMA table_info(traces)")]
        names = [name for name in COLUMNS if name in known]
        connection.execute(
            f"INSERT INTO traces ({','.join(names)}) VALUES ({','.join('?' * len(names))})",
            [{"started_at_ns": START_NS, "endpoint": "messages", "trace_id": "a" * 32}.get(name, 0) for name in names],
        )
        assert migrate(connection, 1) == len(MIGRATIONS)
    assert written(path, an_item(1), an_item(1))["repeated"] == 1
    assert [row["batch"] for row in SqliteTraceReader(path).list(TraceQuery())] == ["msgbatch_1", None]
