"""Filters as people type them: what is understood, and what is refused with the reason."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import BadFilter
from router.trace.filters import read_mark, read_query, read_since, write_mark
from router.trace.record import TraceQuery

NOW_NS = 1_790_000_000_000_000_000


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1_800), ("1h", 3_600), ("7d", 604_800), ("2w", 1_209_600)]
)
def test_an_age_is_counted_from_now(text: str, seconds: int) -> None:
    """The units people type."""
    assert read_since(text, NOW_NS) == NOW_NS - seconds * 10**9


@pytest.mark.parametrize(
    ("text", "at_s"),
    [
        ("2026-09-21", 1_789_948_800),
        ("2026-09-21T14:13:20", 1_790_000_000),
        ("2026-09-21T16:13:20+02:00", 1_790_000_000),
        ("2026-09-21 12:43:20.5-0130", 1_790_000_000),
        ("2024-02-29T00:00Z", 1_709_164_800),
    ],
)
def test_a_time_is_utc_unless_it_says_otherwise(text: str, at_s: int) -> None:
    """ISO 8601."""
    assert read_since(text, NOW_NS) == at_s * 10**9


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("since", "yesterday", "`since` is `yesterday`"),
        ("until", "1x", "`until` is `1x`"),
        ("since", "2026-02-29", "`since`"),
        ("since", "2026-13-01", "`since`"),
        ("since", "2026-01-01T24:00", "`since`"),
        ("since", "2026-01-01T10:00+99:00", "`since`"),
        ("cache", "hits", "`cache` is `hits`"),
        ("outcome", "fine", "`outcome` is `fine`"),
        ("limit", "0", "`limit`"),
        ("limit", "1001", "`limit`"),
        ("limit", "٣", "`limit`"),
        ("min_cost_usd", "free", "`min_cost_usd`"),
        ("min_cost_usd", "1e999999999", "`min_cost_usd`"),
        ("min_cost_usd", "NaN", "`min_cost_usd`"),
        ("before", "x", "`before`"),
        ("before", "99999999999999999999.a", "`before`"),
        ("rule", "x" * 3_000, "3000 characters"),
        ("rules", "x", "unknown filter `rules`"),
    ],
)
def test_a_bad_filter_is_refused_by_name(name: str, value: str, reason: str) -> None:
    """The message names the filter, the value seen and what is taken."""
    with pytest.raises(BadFilter) as caught:
        read_query({name: value}, NOW_NS)
    assert reason in caught.value.message


def test_the_near_name_is_suggested() -> None:
    """A typo costs one look."""
    with pytest.raises(BadFilter) as caught:
        read_query({"ruls": "x"}, NOW_NS)
    assert caught.value.hint == "did you mean `rule`?"


def test_a_whole_query_is_read() -> None:
    """Empty values mean any; dollars become pico-dollars exactly."""
    params = {"since": "1h", "rule": "a", "lane": "", "cache": "hit", "min_cost_usd": "0.000000000001", "limit": "7"}
    assert read_query(params, NOW_NS) == TraceQuery(
        since_ns=NOW_NS - 3_600 * 10**9, rule="a", cache="hit", min_cost_pusd=1, limit=7
    )


@given(st.integers(min_value=0, max_value=2**63 - 1), st.text())
def test_a_mark_comes_back(start_ns: int, trace_id: str) -> None:
    """The word of a page leads to the next page."""
    assert read_mark(write_mark((start_ns, trace_id))) == (start_ns, trace_id)


@given(st.dictionaries(st.sampled_from(["since", "until", "before", "limit", "min_cost_usd", "rule"]), st.text()))
def test_no_text_does_more_than_be_refused(params: dict[str, str]) -> None:
    """Any text is a filter or a BadFilter."""
    with contextlib.suppress(BadFilter):
        assert isinstance(read_query(params, NOW_NS), TraceQuery)
