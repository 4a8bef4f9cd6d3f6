"""Filters as people type them, on the command line or in a query string, made into a `TraceQuery`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any

from router.errors import BadFilter
from router.trace.export import day_number, started_at
from router.trace.record import BYPASSES, OUTCOMES, UNSTORED, TraceQuery

CACHES = ("hit", "miss", "bypass", "coalesced")
MAX_LIMIT = 1_000
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_MOMENT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.\d{1,9})?)?(?:Z|(?P<east>[+-]\d\d:?\d\d))?)?", re.ASCII
)
_DAY_NS = 86_400 * 10**9
_TEXTS = (
    *("trace_id", "request_id", "conversation", "session", "policy", "rule", "lane", "model", "task"),
    *("tenant", "key", "endpoint", "batch"),
)
_MAX_NS = 2**63 - 1
_STATUS = re.compile(r"([1-9])(?:xx|\d\d)", re.ASCII | re.IGNORECASE)
_TOOK = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m)", re.ASCII)
_TOOK_S = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60)}


def read_since(text: str, now_ns: int, *, name: str = "since") -> int:
    """A moment in Unix nanoseconds: an age such as `90s`, `30m`, `1h`, `7d`, `2w`, or an ISO 8601 date or time (UTC
    unless it says otherwise). `now_ns` is the present. Raises BadFilter, naming the filter `name`."""
    span = _SPAN.fullmatch(text.strip())
    if span is not None:
        return max(0, now_ns - int(span[1]) * _UNITS_S[span[2]] * 1_000_000_000)
    moment_s = _moment_s(text.strip())
    if moment_s is None:
        raise BadFilter(
            f"`{name}` is `{text:.64}`, expected an age such as `1h` or `7d`, or a time such as `2026-11-22T14:00`"
        )
    return min(max(0, moment_s * 1_000_000_000), _MAX_NS)


def _moment_s(text: str) -> int | None:
    """Unix seconds of an ISO 8601 date or time; None for anything else, dates that no calendar has included."""
    found = _MOMENT.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    days = day_number(year, month, day)
    is_date = 1 <= month <= 12 and started_at(days * _DAY_NS).startswith(f"{year:04d}-{month:02d}-{day:02d}T")
    east = found["east"]
    away_s = int(f"{east[0]}{int(east[1:3]) * 3_600 + int(east[-2:]) * 60}") if east else 0
    if not is_date or hour > 23 or minute > 59 or second > 59 or abs(away_s) >= 86_400:
        return None
    return days * 86_400 + hour * 3_600 + minute * 60 + second - away_s


def read_mark(text: str) -> tuple[int, str]:
    """The `before` of a keyset page as one word, `STARTED_NS.TRACE_ID`. Raises BadFilter."""
    start, dot, trace_id = text.partition(".")
    if not dot or not start.isascii() or not start.isdigit() or len(start) > 19 or int(start) > _MAX_NS:
        raise BadFilter(f"`before` is `{text:.80}`, expected the `next` of the page before")
    return int(start), trace_id


def write_mark(mark: tuple[int, str]) -> str:
    """The word that `read_mark` reads."""
    return f"{mark[0]}.{mark[1]}"


def read_query(params: Mapping[str, str], now_ns: int, *, default_limit: int = 50) -> TraceQuery:
    """The query that `params` ask for; an empty value means any. Raises BadFilter naming the filter and what it takes.

    Names: since, until, trace_id, request_id, conversation, session, policy, rule, lane, model, task, tenant, key,
    cache, cache_reason, outcome, status, endpoint, batch, min_duration, min_cost_usd, before, limit. `conversation` and
    `session` are the hashes of the record.
    """
    readers: dict[str, tuple[str, Callable[[str], Any]]] = {
        "since": ("since_ns", lambda text: read_since(text, now_ns)),
        "until": ("until_ns", lambda text: read_since(text, now_ns, name="until")),
        "cache": ("cache", lambda text: _one_of("cache", text, CACHES)),
        "cache_reason": ("cache_reason", lambda text: _one_of("cache_reason", text, (*BYPASSES, *UNSTORED))),
        "outcome": ("outcome", lambda text: _one_of("outcome", text, OUTCOMES)),
        "status": ("status", _status),
        "min_duration": ("min_duration_s", _took_s),
        "min_cost_usd": ("min_cost_pusd", _pico_dollars),
        "before": ("before", read_mark),
        "limit": ("limit", _limit),
    }
    for name in _TEXTS:
        readers[name] = (name, _text)
    fields: dict[str, Any] = {}
    for name, text in params.items():
        if name not in readers:
            near = difflib.get_close_matches(name, readers, n=1)
            raise BadFilter(
                f"unknown filter `{name:.64}`, expected one of {', '.join(f'`{known}`' for known in sorted(readers))}",
                hint=f"did you mean `{near[0]}`?" if near else "",
            )
        if text != "":
            field, read = readers[name]
            fields[field] = read(text)
    return replace(TraceQuery(limit=default_limit), **fields)


def _one_of(name: str, text: str, known: tuple[str, ...]) -> str:
    if text not in known:
        near = difflib.get_close_matches(text, known, n=1)
        raise BadFilter(
            f"`{name}` is `{text:.64}`, expected one of {', '.join(f'`{value}`' for value in known)}",
            hint=f"did you mean `{near[0]}`?" if near else "",
        )
    return text


def _text(text: str) -> str:
    if len(text) > 2_000:
        raise BadFilter(f"a filter of {len(text)} characters, expected at most 2000")
    return text.encode("utf-8", "replace").decode()


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= MAX_LIMIT):
        raise BadFilter(f"`limit` is `{text:.64}`, expected a whole number from 1 to {MAX_LIMIT}")
    return int(text)


def _status(text: str) -> int:
    found = _STATUS.fullmatch(text.strip())
    if found is None:
        raise BadFilter(f"`status` is `{text:.64}`, expected an HTTP status such as `429`, or a class such as `5xx`")
    return int(found[1]) if found[0][1] in "xX" else int(found[0])


def _took_s(text: str) -> float:
    found = _TOOK.fullmatch(text.strip())
    if found is None:
        raise BadFilter(f"`min_duration` is `{text:.64}`, expected a time such as `500ms`, `2s`, `1.5s` or `1m`")
    return float(Decimal(found[1]) * _TOOK_S[found[2]])


def _pico_dollars(text: str) -> int:
    try:
        dollars = Decimal(text) if len(text) <= 40 else Decimal("NaN")
    except InvalidOperation:
        dollars = Decimal("NaN")
    if not dollars.is_finite() or not 0 <= dollars <= 1_000_000:
        raise BadFilter(f"`min_cost_usd` is `{text:.64}`, expected dollars such as `0.01`")
    return int(dollars.scaleb(12))
