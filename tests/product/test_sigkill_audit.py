"""The audit of `python -m bench.sigkill` can fail: each kind of wrong that could be in the four books is found."""

from __future__ import annotations

import io
import logging
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from kit.traces import a_trace

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from bench.sigkill_audit import Bill, Books, Entry, Job, Missed, Row, audit, missed_of
from bench.sigkill_books import sums_of
from router.log import JsonLines
from router.trace.rollup import catch_up
from router.trace.sqlite import SqliteTraceSink

S = 1_000_000_000
MS = 1_000_000
KEY, OTHER = "a1" * 32, "b2" * 32
POOLED, ALONE = "nonce000000000001", "nonce000000000002"


def _digest(bill: str) -> bytes:
    return sha256(bill.encode()).digest()


def _books() -> Books:
    """A call of its own; a cached one that was killed, one that was kept, a hit on it; and a request after the kill.

    The kill is at second 10.
    """
    return Books(
        jobs=[
            Job("t1", ALONE, end="whole", has_head=True, cache="bypass", cost_pusd=700,
                digest=_digest("b1"), ended_ns=2 * S),
            Job("t2", POOLED, is_pooled=True, end="broken", has_head=True, ended_ns=10 * S),
            Job("t3", POOLED, is_pooled=True, end="whole", has_head=True, cache="miss",
                digest=_digest("b3"), ended_ns=14 * S),
            Job("t4", POOLED, is_pooled=True, is_second=True, end="whole", has_head=True, cache="hit", cost_pusd=0,
                digest=_digest("b3"), ended_ns=16 * S),
            Job("t5", ALONE, end="refused", ended_ns=11 * S),
        ],
        bills=[
            Bill("b1", ALONE, "t1", 700, 900, 1 * S, _digest("b1"), 2 * S),
            Bill("b2", POOLED, "t2", 100, 300, 9 * S, _digest("b2")),
            Bill("b3", POOLED, "t3", 200, 600, 13 * S, _digest("b3"), 14 * S),
        ],
        rows=[
            Row("t1", 1 * S, "ok", "bypass", 700, 900, 200, ("b1",)),
            Row("t2", 9 * S, "aborted", "", None, None, None, is_rescued=True),
            Row("t3", 13 * S, "ok", "miss", 200, 600, 400, ("b3",)),
            Row("t4", 15 * S, "ok", "hit", 0, 600, 600),
        ],
        entries=[Entry(KEY, _digest("b3"))],
        kills_ns=[10 * S],
    )  # fmt: skip


def _row(books: Books, number: int, **changes: object) -> None:
    books.rows[number] = replace(books.rows[number], **changes)  # type: ignore[arg-type]


def _job(books: Books, number: int, **changes: object) -> None:
    books.jobs[number] = replace(books.jobs[number], **changes)  # type: ignore[arg-type]


def _bill(books: Books, number: int, **changes: object) -> None:
    books.bills[number] = replace(books.bills[number], **changes)  # type: ignore[arg-type]


def test_books_that_agree_are_called_so() -> None:
    """A killed leader is an explanation, a refused client asked for nothing."""
    found = audit(_books())
    assert found.wrong == []
    assert found.upstream == {"answered whole": 2, "cut off": 1, "booked at its cost": 2, "aborted, cost unknown": 1}
    assert found.cache["called again: leader killed"] == 1


WRONGS: dict[str, tuple[str, Callable[[Books], object]]] = {
    "a row is lost": ("lost: Bill", lambda b: b.rows.pop(0)),
    "a row of a hit is lost": ("lost: Job", lambda b: b.rows.pop(3)),
    "a row is there twice": ("doubled: trace t1", lambda b: b.rows.append(b.rows[0])),
    "a row is of no request": ("unasked: trace", lambda b: b.rows.append(replace(b.rows[3], trace="t9"))),
    "a call is billed twice": ("2 calls for one", lambda b: b.bills.append(replace(b.bills[0], request_id="b9"))),
    "a call is of no request": ("unasked: Bill", lambda b: b.bills.append(replace(b.bills[0], trace="t9"))),
    "a call is booked in two rows": ("b1 is booked 2 times", lambda b: _row(b, 3, calls=("b1",))),
    "a call is booked in no row": ("not booked: Bill", lambda b: _row(b, 0, calls=(), cost_pusd=0)),
    "a row costs more than its bill": ("at another cost: Bill", lambda b: _row(b, 0, cost_pusd=701)),
    "a row has another baseline": ("at another cost: Bill", lambda b: _row(b, 0, baseline_pusd=901)),
    "a row has money without a bill": ("without a bill", lambda b: _row(b, 3, cost_pusd=5)),
    "a row has a call that nobody billed": ("without a bill", lambda b: _row(b, 0, calls=("b8",))),
    "a cost is unknown and nothing was killed": ("unknown for no reason", lambda b: _row(b, 0, cost_pusd=None)),
    "an answer is of nobody": ("answered by nobody", lambda b: _row(b, 3, cache="miss")),
    "half an answer is booked": ("half an answer", lambda b: _bill(b, 0, ended_ns=0)),
    "it is aborted, and nothing was killed": ("aborted without a kill", lambda b: b.kills_ns.clear()),
    "it is aborted before the kill": ("aborted without a kill", lambda b: _job(b, 1, ended_ns=9 * S)),
    "it is aborted after the kill": ("aborted without a kill", lambda b: _row(b, 1, started_ns=11 * S)),
    "a client got another answer": ("another answer", lambda b: _job(b, 0, digest=_digest("b3"))),
    "a client got bytes of nobody": ("another answer", lambda b: _job(b, 3, digest=_digest("half of b3"))),
    "a hit is an answer that was never whole": ("another answer", lambda b: _job(b, 3, digest=_digest("b2"))),
    "a client was told another cost": ("at another cost: Job", lambda b: _job(b, 0, cost_pusd=699)),
    "a client was told another word": ("another story", lambda b: _job(b, 2, cache="bypass")),
    "a client was refused": ("refused for no reason", lambda b: _job(b, 4, end="500")),
    "a client was turned away and served": ("another story", lambda b: _job(b, 0, end="529")),
    "a row says that a served client was turned away": (
        "turned away and served", lambda b: _row(b, 0, outcome="shed", calls=(), cost_pusd=None)),
    "a client was turned away, and it was billed": ("lost: Job", lambda b: (_job(b, 0, end="529"), b.rows.pop(0))),
    "a hit was paid for": ("hit at another cost", lambda b: _row(b, 3, cost_pusd=200)),
    "a hit saved another sum": ("hit at another cost", lambda b: _row(b, 3, saved_pusd=599)),
    "an entry was altered": ("altered", lambda b: b.entries.append(Entry(OTHER, _digest("b3, altered")))),
    "an entry is half an answer": ("altered", lambda b: b.entries.append(Entry(OTHER, _digest("b2")))),
    "an entry is of a request that is not kept": ("altered", lambda b: b.entries.append(Entry(OTHER, _digest("b1")))),
    "an entry is there twice": ("two entries", lambda b: b.entries.append(Entry(OTHER, _digest("b3")))),
    "an entry is not to be read": ("1 entries are not", lambda b: setattr(b, "unreadable", 1)),
    "an entry is gone": ("not kept", lambda b: b.entries.clear()),
    "the last look is a miss": ("not kept", lambda b: _job(b, 3, cache="miss")),
}  # fmt: skip


def test_a_client_that_was_turned_away_has_no_bill_and_perhaps_no_row() -> None:
    """A machine with much else to do: of each second some are in the store, all are counted; the last look is later."""
    books = _books()
    for number in (6, 7):
        books.jobs.append(Job(f"t{number}", POOLED, is_pooled=True, is_second=True, end="529", has_head=True))
    books.rows.append(Row("t6", 15 * S, "shed", "bypass", None, None, None))
    found = audit(books)
    assert found.wrong == []
    assert found.clients["529"] == 2
    assert found.clients["529, counted without a row"] == 1


def test_of_many_that_were_turned_away_some_must_have_a_row() -> None:
    books = _books()
    books.jobs += [Job(f"u{number}", ALONE, end="529", has_head=True) for number in range(30)]
    (wrong,) = audit(books).wrong
    assert wrong == "lost: none of 30 requests that were turned away has a row"


@pytest.mark.parametrize("what", WRONGS)
def test_what_is_wrong_is_found(what: str) -> None:
    """Each of them alone, in books that agreed before."""
    words, spoil = WRONGS[what]
    books = _books()
    spoil(books)
    assert words in " | ".join(audit(books).wrong)


def _called_twice() -> Books:
    """Of the request of the pool the first call was answered, booked and kept as well; it ended at second 9."""
    books = _books()
    _bill(books, 1, ended_ns=9 * S + 1)
    _row(books, 1, outcome="ok", cost_pusd=100, baseline_pusd=300, calls=("b2",), cache="miss", is_rescued=False)
    return books


def _reason(books: Books) -> str:
    [why] = [what for what in audit(books).cache if what.startswith("called again: ")]
    return why.removeprefix("called again: ")


def test_a_second_call_wants_a_reason() -> None:
    """None of its own: the first was answered, booked and kept. Then each of the reasons that a kill and time give."""
    books = _called_twice()
    assert "called again for no reason" in " ".join(audit(books).wrong)

    def reason(number: int, **changes: object) -> str:
        before = books.rows[number]
        _row(books, number, **changes)
        why = _reason(books)
        books.rows[number] = before
        return why

    assert reason(1, outcome="aborted") == "leader killed"
    assert reason(1, cache_reason="fallback") == "fallback"
    assert reason(1, is_rescued=True) == "NO REASON"  # the kill came a second after its end
    books.kills_ns = [9 * S + S // 10]
    assert reason(1, is_rescued=True) == "killed before it was kept"
    books.kills_ns = [9 * S + 99 * MS]  # the link waits for Redis that long
    assert reason(1) == "killed before it was kept"
    books.kills_ns = [9 * S + 101 * MS]
    assert reason(1) == "NO REASON"
    books.ttl_s = 3.0
    assert reason(1) == "lapsed"


LOOKED, WRITTEN = "not looked up", "an answer not written"


@pytest.mark.parametrize(
    ("missed", "why"),
    [
        (Missed(13 * S - 5 * MS, KEY, LOOKED, "slow"), "not looked up: slow"),
        (Missed(9 * S + 50 * MS, KEY, WRITTEN, "slow"), "an answer not written: slow"),
        (Missed(13 * S - 11 * MS, KEY, LOOKED, "in the millisecond of its begin"), "not looked up: in the millisecond"),
        (Missed(13 * S - 5 * MS, OTHER, LOOKED, "another request"), "NO REASON"),
        (Missed(9 * S + 50 * MS, OTHER, WRITTEN, "another request"), "NO REASON"),
        (Missed(13 * S - 12 * MS, KEY, LOOKED, "before it was asked"), "NO REASON"),
        (Missed(13 * S + 1 * MS, KEY, LOOKED, "after it was called"), "NO REASON"),
        (Missed(9 * S - 2 * MS, KEY, WRITTEN, "of a call before"), "NO REASON"),
        (Missed(14 * S, KEY, WRITTEN, "of the second call"), "NO REASON"),
    ],
)
def test_what_redis_did_not_do_explains_only_the_call_that_it_was_for(missed: Missed, why: str) -> None:
    """Of this request, at the right moment: the first call is at second 9, the second one asked 10 ms before 13."""
    books = _called_twice()
    _row(books, 2, started_ns=13 * S - 10 * MS)
    books.missed = [missed]
    assert _reason(books).startswith(why)


def test_the_log_is_read_for_what_redis_did_not_do() -> None:
    """Lines of other things are passed over, and the last one of a process that was killed while it wrote it."""

    def line(message: str) -> str:
        record = logging.LogRecord("router", logging.DEBUG, "", 0, message, None, None)
        record.created, record.msecs = 1_795_000_000.123, 123.9
        return JsonLines((), ()).format(record)

    log = io.StringIO()
    for message in (
        "redis: back, answers are shared again",
        f"cache: {KEY}: not looked up: no answer within 50 ms",
        f"cache: {KEY}: the end of a lead not written: no answer within 50 ms",
        f"cache: {OTHER}: an answer not written: too much is being written",
    ):
        log.write(line(message) + "\n")
    log.write(line(f"cache: {KEY}: not looked up: cut")[:-4])
    at_ns = 1_795_000_000 * S + 123 * MS
    assert missed_of(log.getvalue()) == [
        Missed(at_ns, KEY, LOOKED, "no answer within 50 ms"),
        Missed(at_ns, OTHER, WRITTEN, "too much is being written"),
    ]


def _store(folder: Path, *costs: int) -> Path:
    """A trace store of requests at these costs, in pico-dollars, all rolled up."""
    path = folder / "router.db"
    sink = SqliteTraceSink(path)
    for number, cost in enumerate(costs):
        sink.write(a_trace(number, cost_pusd=cost, baseline_pusd=cost + 5, saved_pusd=5))
    sink.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        catch_up(connection, 1_000)
    return path


def _change(store: Path, sql: str) -> None:
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute(sql)


def test_rows_that_wait_to_be_rolled_up_are_no_disagreement(tmp_path: Path) -> None:
    """What the last second wrote is caught up with, and then counted too."""
    store = _store(tmp_path, 700, 200)
    _change(store, "DELETE FROM rollups")
    _change(store, "UPDATE rollup_state SET seq = 0")
    sums = sums_of(store)
    assert (sums.agree, sums.behind, sums.whole) == (True, 2, ((2, 900), (2, 900)))


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param("UPDATE traces SET cost_pusd = cost_pusd + 1 WHERE seq = 1", id="a row's money"),
        pytest.param("DELETE FROM traces WHERE seq = 1", id="a row that is gone"),
        pytest.param("UPDATE rollups SET requests = requests + 1", id="a request counted twice"),
        pytest.param("UPDATE rollups SET cost_rest_pusd = cost_rest_pusd - 1", id="money lost in a sum"),
        pytest.param("UPDATE rollup_state SET seq = 1", id="a row that is rolled up twice"),
    ],
)
def test_sums_that_are_not_those_of_the_rows_are_found(tmp_path: Path, wrong: str) -> None:
    store = _store(tmp_path, 700, 200)
    assert sums_of(store).agree
    _change(store, wrong)
    assert not sums_of(store).agree
