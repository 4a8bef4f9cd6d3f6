"""A trace as JSON and CSV: exact money, safe text."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.trace.export import FIELDS, as_json, csv_cell, day_number, encode_json, started_at, usd
from router.trace.record import Attempt, Trace
from router.usage import Tokens, Usage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def test_the_fields_of_the_contract_are_all_there_in_order() -> None:
    """Scripts rely on these names."""
    assert tuple(as_json(Trace(trace_id="a" * 32, started_at_ns=0))) == FIELDS


@given(st.integers(min_value=-(10**24), max_value=10**24))
def test_money_is_exact_in_text(pusd: int) -> None:
    """A pico-dollar is twelve places; no binary fraction comes between the column and the number in the JSON."""
    text = encode_json(usd(pusd))
    assert Decimal(text) * 10**12 == pusd
    assert "e" not in text.lower()


def test_an_unknown_price_is_null_and_never_zero() -> None:
    """Unknown and free are two things."""
    assert usd(None) is None
    assert encode_json({"cost_usd": usd(None), "saved_usd": usd(0)}) == '{"cost_usd":null,"saved_usd":0}'


@settings(max_examples=40)
@given(JSON)
def test_the_encoder_writes_what_the_standard_reader_reads(value: object) -> None:
    """Whatever a fact holds comes back as it was, on one line of ASCII."""
    line = encode_json(value)
    assert json.loads(line) == value
    assert line.isascii()
    assert "\n" not in line


def test_numbers_that_json_has_no_word_for_are_null() -> None:
    """A strict reader must be able to read every line."""
    assert encode_json([float("nan"), float("inf"), -float("inf"), Decimal("NaN")]) == "[null,null,null,null]"


def test_a_moment_is_utc_with_microseconds() -> None:
    """ISO 8601, sortable as text."""
    assert started_at(1_790_000_000_123_456_789) == "2026-09-21T14:13:20.123456Z"


@given(st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31), timezones=st.just(UTC)))
def test_every_moment_is_written_as_the_calendar_has_it(moment: datetime) -> None:
    """Leap days and centuries included."""
    micros = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert started_at(micros * 1_000) == moment.strftime(f"{moment.year:04d}-%m-%dT%H:%M:%S.%fZ")
    assert day_number(moment.year, moment.month, moment.day) == micros // 86_400_000_000


def test_attempts_show_dollars_and_usage_shows_wire_names() -> None:
    """Inside a trace the same rules hold for each attempt."""
    usage = Usage(Tokens(1, 2, 3, 4, 5), thinking=2, web_searches=1, geo="us", is_final=False)
    trace = Trace("a" * 32, 0, usage=usage, attempts=[Attempt("haiku", "m", 0.1234567, usage=usage, cost_pusd=5)])
    shown = as_json(trace)
    assert shown["attempts"][0]["cost_usd"] == Decimal("5e-12")
    assert shown["attempts"][0]["started_s"] == 0.123457
    assert shown["usage"] == shown["attempts"][0]["usage"] == {
        "input_tokens": 1, "cache_read_input_tokens": 2, "cache_write_5m": 3, "cache_write_1h": 4, "output_tokens": 5,
        "thinking_tokens": 2, "web_searches": 1, "iterations": [], "service_tier": None, "geo": "us", "speed": None,
        "is_final": False,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_formulas_are_disarmed_in_csv(text: str) -> None:
    """A spreadsheet shows the text instead of running it (F83)."""
    assert csv_cell(text) == "'" + text


def test_csv_keeps_numbers_numbers() -> None:
    """A negative saving is a number, not a formula."""
    assert [csv_cell(v) for v in (None, True, -3, Decimal("-0.001"), "plain", ["a"])] == [
        "", "true", "-3", "-0.001", "plain", '["a"]',
    ]  # fmt: skip
