"""Rows of the fleet's stream: what a trace becomes, how large it may be, and what is believed of a row."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import orjson
import pytest
from kit.page import a_request

from router.trace.export import FIELDS, as_json
from router.trace.filters import read_query
from router.trace.fleet_row import MOST_BYTES, MOST_READ_BYTES, encode, matches, read, shown
from router.trace.record import Attempt, Trace
from router.usage import Iteration, Tokens, Usage

LABELS = {"task": "reasoning", "difficulty": 0.2, "p_hard": 0.9}


def back(trace: Trace) -> dict[str, Any]:
    row = read(encode(trace, "pod-a"))
    assert row is not None
    return shown(row, "5-0")


def same_but_for_attempts(found: dict[str, Any], trace: Trace) -> bool:
    """Attempts come without their usage; the request's own is there."""
    wanted = as_json(trace)
    wanted["attempts"] = [{**each, "usage": None} for each in wanted["attempts"]]
    return {name: found[name] for name in FIELDS} == {name: _listed(wanted[name]) for name in FIELDS}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_a_trace_comes_back_as_it_was() -> None:
    """Money to the last digit, times, labels, usage with iterations, the price of a switch; and whose it is."""
    usage = Usage(Tokens(1, 2, 3, 4, 5), 6, 7, (Iteration("compaction", None, Tokens(8)),), "standard")
    switch = {"from_model": "a", "to_model": "b", "stay_first_pusd": 12, "is_warm": True, "turns_to_earn": None}
    trace = a_request(
        2, usage=usage, labels=LABELS, cost_pusd=123_456_789_012_345, saved_pusd=-1, tags=("red",), session="s",
        affinity={"lane": "haiku", "kept": True, "prefix_tokens": 9, "switch": switch}, batch_lines={"succeeded": 2},
        attempts=[Attempt("haiku", "m", 0.001, "timeout", None, error_type="x", cost_pusd=3, is_resent=True)],
    )  # fmt: skip
    found = back(trace)
    assert same_but_for_attempts(found, trace)
    assert found["cost_usd"] == Decimal("123.456789012345")
    assert (found["pod"], found["mark"], found["cut"]) == ("pod-a", "5-0", [])


def test_an_empty_trace_comes_back_as_it_was() -> None:
    """What is left out of the row is what it stood for: an unknown price stays unknown, and nothing stays 0."""
    empty, free = Trace("a" * 32, 5), Trace("a" * 32, 5, cost_pusd=0, ttft_s=0.0)
    assert len(encode(empty, "p")) < 200
    assert same_but_for_attempts(back(empty), empty)
    assert (back(empty)["cost_usd"], back(empty)["ttft_s"]) == (None, None)
    assert (back(free)["cost_usd"], back(free)["ttft_s"]) == (Decimal(0), 0.0)


def test_a_large_trace_loses_what_explains_first_and_says_so() -> None:
    """Facts go before reasons; what a list shows stays."""
    found = back(a_request(1, facts={str(n): "x" * 50 for n in range(60)}, why=("rule `a`: matched",)))
    assert (found["cut"], found["facts"], found["why"]) == (["facts"], None, ["rule `a`: matched"])
    assert found["rule"] == "easy"


@pytest.mark.parametrize(
    "text", ["x" * 9_000, "\x01" * 9_000, "\U0001f600" * 9_000, "\ud800" * 9_000, '\u2028\r\n\0"\\' * 2_000]
)
def test_no_row_is_larger_than_its_bound(text: str) -> None:
    """Whatever a client names, a row has its size, is one line, and can be read."""
    hostile = a_request(
        1, path=text, model_asked=text, model_sent=text, tags=(text,) * 900, why=(text,) * 900, rule=text, key=text,
        facts={text: 10**40, "set": {1, 2}}, tenant=text, session=text, error_type=text, method=text, client=text,
        policy=text, edits=(text,) * 50, model_answered=text, stop_reason=text, lane=text, request_id=text,
        attempts=[Attempt(text, text, 0.0)] * 40, labels={"task": text}, conversation=text, batch=text,
    )  # fmt: skip
    body = encode(hostile, "pod-a")
    assert len(body) <= MOST_BYTES
    assert b"\n" not in body
    assert back(hostile)["trace_id"] == hostile.trace_id


def test_rows_of_another_version_are_read_as_far_as_they_are_known() -> None:
    """New fields are passed over, missing ones are empty, a value of another kind counts as absent."""
    body = orjson.dumps({"v": 99, "trace_id": "b" * 32, "started_at_ns": 7, "hologram": {"a": 1}, "status": "200",
                         "cost_pusd": "12", "why": {"not": "a list"}, "usage": [1], "is_streaming": 1})  # fmt: skip
    row = read(body)
    assert row is not None
    found = shown(row, "1-0")
    assert same_but_for_attempts(found, Trace("b" * 32, 7, outcome="", cache=""))
    assert "hologram" not in found
    assert found["pod"] == "unknown"


def test_what_is_no_row_is_none() -> None:
    """No JSON, no object, no id, no time, too large, a number that is none."""
    good = {"trace_id": "b" * 32, "started_at_ns": 7}
    bad: list[Any] = [[], "x", None, {}, {**good, "trace_id": 5}, {**good, "trace_id": ""},
                      {**good, "started_at_ns": -1}, {**good, "started_at_ns": True}, {**good, "started_at_ns": 1.5},
                      {**good, "x": "y" * MOST_READ_BYTES}]  # fmt: skip
    for each in (
        b"",
        b"\xff",
        b"{",
        b"[" * 5_000,
        b'{"trace_id":"\\ud800","started_at_ns":1}',
        *map(orjson.dumps, bad),
    ):
        assert read(each) is None, each[:80]


def test_any_rubbish_has_the_shape_of_a_trace() -> None:
    """Values of any kind in any field: the page finds the kinds that it knows, and JSON can say them."""
    chance = random.Random(9)
    good = orjson.loads(encode(a_request(2, labels=LABELS), "p"))
    odd: list[Any] = [None, True, -1, 2**63, 1e308, "<img>", "x" * 700, [], [[]],
                      [None, 1, "a", {}, ["a", "b", "c"]], {},
           {"a": {"b": [1]}}, {"switch": {"x": {}}, "lane": []}, {"switch": 5},
           [{"started_s": "1", "cost_pusd": 1.5}]]  # fmt: skip
    likes = shown(good, "1-0")
    for _ in range(400):
        row = {name: chance.choice(odd) if chance.random() < 0.5 else value for name, value in good.items()}
        row |= {"trace_id": "b" * 32, "started_at_ns": 7}
        found = shown(row, "1-0")
        for name, value in found.items():
            kinds = (type(likes[name]), type(None), dict, Decimal, str, float)
            assert isinstance(value, kinds), (name, value)
        assert all(isinstance(each, str) for name in ("why", "tags", "edits", "cut") for each in found[name])
        assert all(isinstance(each["lane"], str) for each in found["attempts"])
        assert all(isinstance(each["end_s"], float) for each in found["spans"])
        orjson.dumps(found, default=str)


@pytest.mark.parametrize(
    ("asked", "is_found"),
    [
        ({"rule": "hard", "model": "claude-sonnet-5-5", "tenant": "acme"}, True),
        ({"rule": "easy"}, False),
        ({"status": "2xx"}, True),
        ({"status": "200"}, True),
        ({"status": "5xx"}, False),
        ({"status": "201"}, False),
        ({"min_cost_usd": "0.00036"}, True),
        ({"min_cost_usd": "0.00037"}, False),
        ({"min_duration": "1.2s"}, True),
        ({"min_duration": "1.3s"}, False),
        ({"since": "1h"}, True),
        ({"until": "1h"}, False),
        ({"cache_reason": "off"}, False),
        ({"task": "reasoning", "key": "shop", "lane": "sonnet", "endpoint": "messages", "outcome": "ok"}, True),
    ],
)
def test_every_filter_applies_to_rows(asked: dict[str, str], is_found: bool) -> None:
    """The filters of the list, on what is in the row."""
    trace = a_request(2)
    row = read(encode(trace, "p"))
    assert row is not None
    assert matches(row, read_query(asked, trace.started_at_ns + 10**9)) is is_found


@pytest.mark.parametrize("name", ["facts", "request_id", "pod"])
def test_a_row_that_is_too_deep_to_be_written_again_is_none(name: str) -> None:
    """One such row must not end the list and the tail of every router."""
    row = orjson.loads(encode(a_request(1, facts={"x": 1}), "pod-a"))
    deep = b'{"a":' * 400 + b"1" + b"}" * 400
    packed = orjson.dumps({**row, name: "HERE"}).replace(b'"HERE"', deep)
    assert deep in packed
    assert read(packed) is None
