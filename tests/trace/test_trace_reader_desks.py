"""Questions to the trace store: one contract for both desks, the process of its own and the threads of this one."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kit.page import a_request

from router.errors import BadFilter, TraceStoreError
from router.trace import asking
from router.trace.answers import answer
from router.trace.asking import AnswerDesk, Question
from router.trace.export import encode_json
from router.trace.filters import write_mark
from router.trace.reader import SqliteTraceReader
from router.trace.reader_child import ProcessDesk
from router.trace.reader_desk import ThreadDesk
from router.trace.record import TraceQuery
from router.trace.schema import COLUMNS
from router.trace.sessions import Sessions
from router.trace.sheet import sheet
from router.trace.sqlite import SqliteTraceSink

pytestmark = pytest.mark.anyio

COUNT = 60
DAY_NS = 86_400 * 10**9
HOSTILE = (
    "'; DROP TABLE traces; --", 'x"y', "%", "_%_", "*", "\x00", "a\x00b", "\r\nevent: evil\r\ndata: {}\r\n\r\n",
    "</script><script>alert(1)</script>", "\ud800", "\udcff\udcfe", "../../etc/passwd", "__import__('os')", "🦊" * 400,
    "\u2028", "\u202egnp.exe", '{"cancel": 1}', "$(touch x)", "0" * 31, "g" * 32, "",
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store; two of its rules have hostile names."""
    path = tmp_path_factory.mktemp("store") / "t.db"
    sink = SqliteTraceSink(path, flush_interval_s=0.01)
    for number in range(COUNT):
        rule = {3: "=1+1\r\n\r\nevent: evil\u2028\x00", 4: "'; DROP TABLE traces; --"}.get(number, f"rule-{number % 2}")
        sink.write(a_request(number, ago_s=60.0 * (COUNT - number), rule=rule, session=f"s{number % 3}"))
    assert sink.flush(30)
    sink.close()
    return path


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without an end: a question to it runs until somebody ends it."""
    path = tmp_path_factory.mktemp("endless") / "t.db"
    with sqlite3.connect(path) as connection:
        columns = ", ".join(f"i AS {name}" for name in COLUMNS)
        connection.execute(
            "CREATE VIEW traces AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
            f" SELECT i AS seq, {columns} FROM n"
        )
    connection.close()
    return path


def made(kind: str, path: Path) -> AnswerDesk:
    return ProcessDesk(path, steps_back=False) if kind == "process" else ThreadDesk(path)


@pytest.fixture(params=["process", "threads"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def desk(kind: str, store: Path) -> AsyncIterator[AnswerDesk]:
    desk = made(kind, store)
    yield desk
    await desk.close()


def same(body: bytes, value: Any) -> None:
    assert body == encode_json(value).encode()


async def test_an_answer_is_what_the_reader_says_to_the_byte(desk: AnswerDesk, store: Path) -> None:
    """Every question, with its envelope; money digit for digit."""
    reader, now_ns = SqliteTraceReader(store), time.time_ns()
    query = TraceQuery(limit=7)
    rows, mark = reader.page(query)
    assert mark is not None
    same((await desk.ask(asking.page(query))).body, {"traces": rows, "next": write_mark(mark)})
    following = TraceQuery(limit=1_000, before=mark)
    same((await desk.ask(asking.page(following))).body, {"traces": reader.page(following)[0], "next": None})

    found = await desk.ask(asking.one("req_000005"))
    same(found.body, reader.get("req_000005"))
    assert found.head == {"trace_id": f"{6:032x}", "request_id": "req_000005"}
    assert (await desk.ask(asking.one("nothing"))).head == {}

    marks, arrived = reader.tail(COUNT - 2, TraceQuery())
    found = await desk.ask(asking.tail(COUNT - 2, TraceQuery()))
    assert found.head == {"mark": marks, "first": COUNT - 1, "count": 2}
    events = "".join(f"id: {own}\nevent: trace\ndata: {encode_json(row)}\n\n" for own, row in arrived)
    assert found.body == events.encode()
    assert (await desk.ask(asking.tail(None, TraceQuery()))).head == {"mark": COUNT, "first": None, "count": 0}

    for each in ("csv", "ndjson"):
        found = await desk.ask(asking.sheet(each, query, is_first=True))
        assert (found.body.decode(), found.head["mark"]) == (sheet(each, rows, is_first=True), list(mark))

    report = reader.summary("rule", None)
    same(
        (await desk.ask(asking.report("rule", "", None))).body,
        {"by": "rule", "since": None, "rows": report["rows"], "totals": report["totals"]},
    )
    series = reader.overview(now_ns - DAY_NS, now_ns, by="model", filters={"rule": "rule-0"})
    question = asking.figures(
        now_ns - DAY_NS, now_ns, by="model", step_s=None, filters={"rule": "rule-0"}, ignored=["cache"]
    )
    same((await desk.ask(question)).body, {**series, "ignored": ["cache"], "projection": None})
    all_time = asking.figures(None, now_ns, by=None, step_s=None, filters={}, ignored=[])
    found_in_all = json.loads((await desk.ask(all_time)).body)
    assert found_in_all["totals"]["requests"] == COUNT
    assert found_in_all["projection"].keys() == (reader.projection() or {}).keys()

    totals = reader.totals(now_ns - DAY_NS)
    found = await desk.ask(asking.totals({"day": now_ns - DAY_NS}, ("requests", "cost_usd")))
    same(found.body, {"day": {"requests": COUNT, "cost_usd": totals["cost_usd"]}})
    by_key = Sessions(store).of_key("shop", now_ns - DAY_NS)
    same((await desk.ask(asking.session("key", "shop", since_ns=now_ns - DAY_NS))).body, by_key)
    assert (await desk.ask(asking.session("session", "nobody", tenant="acme"))).head == {}


async def test_hostile_words_find_what_is_there_and_break_nothing(desk: AnswerDesk, store: Path) -> None:
    """In an id, a filter and a name of a session; what is in the store comes back as it is."""
    for text in HOSTILE:
        assert (await desk.ask(asking.one(text))).head == {}
        assert (await desk.ask(asking.session("session", text.encode("utf-8", "replace").decode()))).head == {}
    for rule in ("'; DROP TABLE traces; --", "=1+1\r\n\r\nevent: evil\u2028\x00"):
        (row,) = json.loads((await desk.ask(asking.page(TraceQuery(rule=rule)))).body)["traces"]
        assert row["rule"] == rule
    events = (await desk.ask(asking.tail(0, TraceQuery(limit=1_000)))).body
    assert events.count(b"\n\n") == COUNT
    assert b"\r" not in events
    assert json.loads((await desk.ask(asking.page(TraceQuery(limit=1_000)))).body)["next"] is None


async def test_errors_come_back_as_they_were_raised(kind: str, desk: AnswerDesk, tmp_path: Path) -> None:
    """Of the same kind, with message, hint and whether trying again may help."""
    with pytest.raises(BadFilter, match="`by` is `colour`, expected one of `rule`"):
        await desk.ask(asking.report("colour", "", None))
    with pytest.raises(BadFilter, match="session"):
        await desk.ask(asking.session("colour", "x"))
    with pytest.raises(TraceStoreError, match=r"no question `os\.system`"):
        await desk.ask(Question("os.system", {}, "quick"))
    with pytest.raises(TraceStoreError, match=r"longer than 0 s") as late:
        await desk.ask(Question("report", {"by": "rule", "since": None, "since_ns": None}, "long", 0.0))
    assert late.value.retryable
    assert "since" in late.value.hint
    nowhere = made(kind, tmp_path / "none.db")
    with pytest.raises(TraceStoreError, match="there is no trace store"):
        await nowhere.ask(asking.page(TraceQuery()))
    await nowhere.close()


async def test_sixty_four_questions_at_once_are_all_answered(desk: AnswerDesk) -> None:
    """Each with its own answer, whatever order they are ready in."""
    ids = [f"req_{number:06d}" for number in range(COUNT)]
    asked = [*map(asking.one, ids), *(asking.report("rule", "", None) for _ in range(4))]
    answers = await asyncio.gather(*map(desk.ask, asked))
    assert [answer.head.get("request_id") for answer in answers] == [*ids, None, None, None, None]
    assert len({answer.body for answer in answers[COUNT:]}) == 1


async def test_a_question_ends_at_its_limit(kind: str, endless: Path) -> None:
    """Whatever the store does."""
    desk = made(kind, endless)
    began_s = time.monotonic()
    with pytest.raises(TraceStoreError, match=r"longer than 0\.1 s"):
        await desk.ask(Question("one", {"id": "x"}, "quick", 0.1))
    with pytest.raises(TraceStoreError, match=r"not answered within 0\.1 s"):
        await desk.ask(Question("one", {"id": "x"}, "quick", wall_s=0.1))
    assert time.monotonic() - began_s < 5
    await desk.close()


def test_what_others_take_of_the_processor_is_not_taken_off_a_questions_time(store: Path) -> None:
    """On a core that is full it is slow, and does not fail; here it waits for as long as it may take in all."""
    waits = iter([0.3])

    def others() -> None:
        time.sleep(next(waits, 0.0))

    found = answer(store, Question("report", asking.report("rule", "", None).args, "long", 0.3), others)
    assert json.loads(found.body)["totals"]["requests"] == COUNT
    assert next(waits, None) is None


async def test_a_short_question_does_not_stand_behind_long_ones(kind: str, endless: Path) -> None:
    """A live tail goes on while reports are made; and what nobody waits for any more makes room for the next."""
    desk = made(kind, endless)
    for lane, other in (("long", "quick"), ("long", "list"), ("list", "quick")):
        under_way = [asyncio.ensure_future(desk.ask(Question("one", {"id": "x"}, lane, 30.0))) for _ in range(12)]
        for each in (other, lane):
            with pytest.raises(TraceStoreError, match="no question `x`"):  # an answer too, and the only short one here
                await asyncio.wait_for(desk.ask(Question("x", {}, each, 20.0)), 20)
            for task in under_way:
                task.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*under_way, return_exceptions=True)
        )
    await desk.close()


async def test_closing_ends_what_is_under_way(kind: str, endless: Path) -> None:
    """At once, with an error; and later questions get one too."""
    desk = made(kind, endless)
    more_than_threads = 6
    under_way = [
        asyncio.ensure_future(desk.ask(Question("one", {"id": "x"}, "long", 30.0))) for _ in range(more_than_threads)
    ]
    with pytest.raises(TraceStoreError):
        await desk.ask(Question("x", {}, "quick"))  # until it is answered the others have been handed in
    began_s = time.monotonic()
    await desk.close()
    ends = await asyncio.gather(*under_way, return_exceptions=True)
    said = {"process": "has ended", "threads": "the router is stopping"}[kind]
    assert [type(end) for end in ends] == [TraceStoreError] * more_than_threads
    assert all(said in str(end) for end in ends), "not that it took too long"
    assert time.monotonic() - began_s < 5
    with pytest.raises(TraceStoreError, match="stopping"):
        await desk.ask(Question("x", {}, "quick"))
