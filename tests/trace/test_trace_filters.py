"""Filters as people type them: what is understood, and what is refused with the reason."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.cli.trace import ls
from router.errors import BadFilter
from router.trace.filters import read_mark, read_query, read_since, write_mark
from router.trace.record import TraceQuery

NOW_NS = 1_790_000_000_000_000_000
_NUMBERS = ["since", "until", "before", "limit", "min_cost_usd", "min_duration", "status", "rule"]


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
        ("status", "teapot", "`status` is `teapot`"),
        ("status", "5x", "`status`"),
        ("status", "0", "`status`"),
        ("status", "4٢9", "`status`"),
        ("min_duration", "2", "`min_duration` is `2`"),
        ("min_duration", "-1s", "`min_duration`"),
        ("min_duration", "1h", "`min_duration`"),
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


def test_page_documents_and_command_line_know_the_same_filters() -> None:
    """`before` and `limit` are of the pages of a list, `since` has a control of its own, `fleet` says whose list."""
    with pytest.raises(BadFilter) as caught:
        read_query({"": "x"}, NOW_NS)
    known = set(re.findall(r"`(\w+)`", caught.value.message.partition("expected")[2])) - {"before", "limit"}
    root = Path(__file__).parents[2]
    documents = (root / "docs/operations.md").read_text().partition("### Filters\n")[2].partition("\n### ")[0]
    rows = [line.split("|")[1] for line in documents.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", "".join(rows))) == known
    page = (root / "router/web/static/address.js").read_text().partition("FILTERS = [")[2].partition("]")[0]
    assert set(re.findall(r'"(\w+)"', page)) == known - {"since"}
    assert {option.name for option in ls.params} - {"url", "limit", "is_json", "fleet"} == known


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


@pytest.mark.parametrize(
    ("text", "status"), [("429", 429), ("5xx", 5), ("4XX", 4), ("200", 200), (" 504 ", 504), ("999", 999)]
)
def test_a_status_is_one_or_a_class_of_a_hundred(text: str, status: int) -> None:
    """As people say it."""
    assert read_query({"status": text}, NOW_NS).status == status


@pytest.mark.parametrize(
    ("text", "took_s"), [("500ms", 0.5), ("2s", 2.0), ("1.5s", 1.5), ("1m", 60.0), ("0s", 0.0), ("1.201s", 1.201)]
)
def test_a_duration_says_its_unit(text: str, took_s: float) -> None:
    """To the digit: what a request took finds that request."""
    assert read_query({"min_duration": text}, NOW_NS).min_duration_s == took_s


@given(st.integers(min_value=0, max_value=2**63 - 1), st.text())
def test_a_mark_comes_back(start_ns: int, trace_id: str) -> None:
    """The word of a page leads to the next page."""
    assert read_mark(write_mark((start_ns, trace_id))) == (start_ns, trace_id)


@given(st.dictionaries(st.sampled_from(_NUMBERS), st.text()))
def test_no_text_does_more_than_be_refused(params: dict[str, str]) -> None:
    """Any text is a filter or a BadFilter."""
    with contextlib.suppress(BadFilter):
        assert isinstance(read_query(params, NOW_NS), TraceQuery)
