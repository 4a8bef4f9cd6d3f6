"""The audits of `bench.deferred_kills` and `bench.deferred_cost` can fail: each kind of wrong is found."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from bench.deferred_audit import Asked, Bill, Books, Item, Row, audit
from bench.deferred_cost import Way, differences, report


def _books() -> Books:
    """Four requests: one answered, and three canceled: in its batch, before it, and together with it."""
    return Books(
        asked=[
            Asked("n1", {"j1"}, end="answered", message="m1", cost_pusd=50, digests={b"d1"}, sends=2, looks=3),
            Asked("n2", {"j2"}, is_canceled=True, after=Counter({404: 2}), sends=1, looks=2),
            Asked("n3", {"j3"}, is_canceled=True, after=Counter({404: 1}), sends=1, looks=1),
            Asked("n4", {"j4"}, is_canceled=True, after=Counter({404: 1}), sends=1, looks=1),
        ],
        items=[
            Item("b1", "j1", "n1", "succeeded", "m1"),
            Item("b1", "j2", "n2", "succeeded", "m2"),
            Item("b2", "j4", "n4", "canceled", ""),
        ],
        bills=[Bill("m1", 50, is_batch=True), Bill("m2", 70, is_batch=True)],
        rows=[Row("t1", "b1", "m1", 50, 300, "ok"), Row("t2", "b1", "m2", 70, None, "client_closed")],
    )


def test_books_that_agree_are_called_so() -> None:
    """What was canceled may have been billed, or never sent."""
    found = audit(_books())
    assert found.wrong == []
    assert found.clients == {"answered": 1, "canceled": 3, "looks": 7, "sent again": 1}
    assert found.traces["pico-dollars"] == found.upstream["pico-dollars"] == 120


def _asked(books: Books, number: int, **changes: object) -> None:
    books.asked[number] = replace(books.asked[number], **changes)  # type: ignore[arg-type]


def _item(books: Books, number: int, **changes: object) -> None:
    books.items[number] = replace(books.items[number], **changes)  # type: ignore[arg-type]


def _row(books: Books, number: int, **changes: object) -> None:
    books.rows[number] = replace(books.rows[number], **changes)  # type: ignore[arg-type]


WRONGS: dict[str, tuple[str, Callable[[Books], object]]] = {
    "a request became two jobs": ("not one job", lambda b: _asked(b, 0, jobs={"j1", "j5"})),
    "a request became no job": ("not one job", lambda b: _asked(b, 0, jobs=set())),
    "two requests share a job": ("shared", lambda b: _asked(b, 1, jobs={"j1"})),
    "a job never ended": ("never ended", lambda b: _asked(b, 0, end="202")),
    "a job was forgotten": ("ended otherwise", lambda b: _asked(b, 0, end="404")),
    "a job ended twice": ("another answer later", lambda b: _asked(b, 0, digests={b"d1", b"d2"})),
    "a client got the answer of another": ("the answer of another", lambda b: _asked(b, 0, message="m2")),
    "a client was told another cost": ("at another cost: Asked", lambda b: _asked(b, 0, cost_pusd=51)),
    "a client was told no cost": ("at another cost: Asked", lambda b: _asked(b, 0, cost_pusd=None)),
    "a canceled job was answered": ("answered after a cancel", lambda b: _asked(b, 1, after=Counter({200: 1}))),
    "nobody looked at a canceled job": ("answered after a cancel", lambda b: _asked(b, 1, after=Counter())),
    "a job is in two batches": ("submitted twice", lambda b: b.items.append(replace(b.items[0], batch="b3"))),
    "a job is in no batch": ("the answer of another", lambda b: b.items.pop(0)),
    "an item is of no request": ("unasked", lambda b: _item(b, 0, job="j9")),
    "an item says another prompt": ("unasked", lambda b: _item(b, 0, nonce="n2")),
    "an item was canceled and its client waits": ("not answered", lambda b: _item(b, 0, kind="canceled")),
    "an answer is billed twice": ("not billed once", lambda b: b.bills.append(b.bills[0])),
    "an answer is not billed": ("not billed once", lambda b: b.bills.pop(0)),
    "something else is billed": ("billed for no item", lambda b: b.bills.append(Bill("m9", 5, is_batch=True))),
    "an answer was asked for at once": ("at full price", lambda b: b.bills.append(Bill("m1", 100, is_batch=False))),
    "a bill is in no row": ("not booked once", lambda b: b.rows.pop(0)),
    "a bill is in two rows": ("not booked once", lambda b: b.rows.append(replace(b.rows[0], trace="t9"))),
    "a row has another cost": ("at another cost: Bill", lambda b: _row(b, 0, cost_pusd=49)),
    "a row has an unknown cost": ("at another cost: Bill", lambda b: _row(b, 0, cost_pusd=None)),
    "a row is of nothing that was billed": (
        "without a bill",
        lambda b: b.rows.append(replace(b.rows[0], message="m9")),
    ),
    "a row names another batch": ("of another batch", lambda b: _row(b, 0, batch="b2")),
    "a row says that an answer was in vain": ("another story", lambda b: _row(b, 0, outcome="cut")),
    "a row has lost its baseline": ("another story", lambda b: _row(b, 0, baseline_pusd=None)),
    "a row says that a client left that did not": ("closed by nobody", lambda b: _row(b, 0, outcome="client_closed")),
}


@pytest.mark.parametrize("what", WRONGS)
def test_what_is_wrong_is_found(what: str) -> None:
    """Each of them alone, in books that agreed before."""
    words, spoil = WRONGS[what]
    books = _books()
    spoil(books)
    assert words in " | ".join(audit(books).wrong)


def _ways() -> tuple[Way, Way]:
    return (
        Way("plain", {0: 200, 1: 200}, ledger={"r0": 60, "r1": 40}, store={"r0": 60, "r1": 40}),
        Way("deferred", {0: 200, 1: 200}, ledger={"m0": 30, "m1": 20}, store={"m0": 30, "m1": 20}, batches=1),
    )


def test_two_ways_whose_books_agree_are_compared() -> None:
    assert differences(_ways(), 2) == []
    assert "ratio 0.5000" in report(_ways())


UNLIKE: dict[str, tuple[str, Callable[[Way], object]]] = {
    "an answer is missing": ("request 1 has no answer", lambda way: way.statuses.pop(1)),
    "an answer is another one": ("answered with 200 and 529", lambda way: way.statuses.update({1: 529})),
    "a cost differs by a pico-dollar": ("m0: the ledger says 30, the store 31", lambda way: way.store.update(m0=31)),
    "a cost is unknown": ("the ledger says 30, the store None", lambda way: way.store.update(m0=None)),
    "a row is missing": ("the ledger says 20, the store None", lambda way: way.store.pop("m1")),
    "a row has no bill": ("the ledger says None, the store 20", lambda way: way.ledger.pop("m1")),
    "an entry is there twice": ("m0 is in a book twice", lambda way: way.doubled.append("m0")),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_ways_that_cannot_be_compared_are_found(what: str) -> None:
    words, spoil = UNLIKE[what]
    ways = _ways()
    spoil(ways[1])
    assert words in " | ".join(differences(ways, 2))
