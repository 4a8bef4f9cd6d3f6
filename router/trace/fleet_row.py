"""One trace as one row of the fleet's stream, and back: bytes that another process wrote, maybe of another version.

A row is a JSON object under the names of `export.FIELDS`, with money as integers of pico-dollars and the start in
nanoseconds; what is empty is left out. It has at most `MOST_BYTES`: what explains goes first (`cut` names it), then
long texts. Of what is read nothing is believed: an unknown field is passed over, a value of another kind counts as
absent, texts and lists are cut, so that every row has the one shape that the page knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import orjson

from router.trace.export import FIELDS, shown_affinity, started_at, time_s, usage_json, usd
from router.trace.record import MOST_PUSD, Attempt, Trace, TraceQuery

MOST_BYTES = 4_096  # of a row that is written
MOST_READ_BYTES = 8_192  # of one that another version wrote
VERSION = 1
_MOST_TEXT = 500  # characters
_MOST_ITEMS = 100
_MOST_DEPTH = 3
_MOST_READ = 20  # levels of a row of any version; what is a hundred deep cannot be written as JSON again
_CUT_TEXTS = (120, 40, 8)  # at the last, a row fits whatever its texts are
_CUT_ITEMS = 8
_CUTS = ("facts", "affinity", "labels", "spans", "why", "attempts")  # what goes first is least missed in a list
_OWN = ("pod", "trace_id", "cut")
_MOST_INT = 2**63 - 1

Row = Mapping[str, Any]


def encode(trace: Trace, pod: str) -> bytes:
    """The row of `trace`, written by `pod`; at most `MOST_BYTES`."""
    row = _row(trace, pod)
    try:
        body = orjson.dumps(row, default=_foreign)
    except TypeError:  # a lone surrogate, or a number that is too large: only a client writes these
        row = _bounded(row, _MOST_TEXT, _MOST_ITEMS)
        body = orjson.dumps(row)
    if len(body) <= MOST_BYTES:
        return body
    cut: list[str] = []
    for name in _CUTS:
        if row.pop(name, None) is not None:
            cut.append(name)
            row["cut"] = cut
            body = orjson.dumps(row, default=_foreign)
            if len(body) <= MOST_BYTES:
                return body
    for most_text in _CUT_TEXTS:
        body = orjson.dumps(_bounded(row, most_text, _CUT_ITEMS))
        if len(body) <= MOST_BYTES:
            break
    return body


def _row(trace: Trace, pod: str) -> dict[str, Any]:
    labels = trace.labels
    row: dict[str, Any] = {
        "v": VERSION,
        "pod": pod,
        "trace_id": trace.trace_id,
        "request_id": trace.request_id,
        "started_at_ns": trace.started_at_ns,
        "endpoint": trace.endpoint,
        "method": trace.method,
        "path": trace.path,
        "tenant": trace.tenant,
        "key": trace.key,
        "client": trace.client,
        "conversation": trace.conversation,
        "session": trace.session,
        "batch": trace.batch,
        "batch_lines": trace.batch_lines,
        "is_streaming": trace.is_streaming,
        "policy": trace.policy,
        "revision": trace.revision,
        "rule": trace.rule,
        "why": trace.why,
        "tags": trace.tags,
        "facts": trace.facts,
        "task": None if labels is None else labels.get("task"),
        "labels": labels,
        "model_asked": trace.model_asked,
        "model_sent": trace.model_sent,
        "model_answered": trace.model_answered,
        "lane": trace.lane,
        "edits": trace.edits,
        "affinity": trace.affinity,
        "attempts": [_attempt(attempt) for attempt in trace.attempts],
        "cache": trace.cache,
        "cache_reason": trace.cache_reason,
        "is_stored": trace.is_stored,
        "usage": None if trace.usage is None else usage_json(trace.usage),
        "price_version": trace.price_version,
        "duration_s": trace.duration_s,
        "overhead_s": trace.overhead_s,
        "spans": trace.spans,
        "status": trace.status,
        "stop_reason": trace.stop_reason,
        "outcome": trace.outcome,
        "error_type": trace.error_type,
        "error_code": trace.error_code,
    }
    row = {name: value for name, value in row.items() if value}
    for name in _MONEY:  # 0 is no unknown price, and 0.0 is a time
        value = getattr(trace, name)
        if value is not None:
            row[name] = value
    if trace.ttft_s is not None:
        row["ttft_s"] = trace.ttft_s
    return row


def _attempt(attempt: Attempt) -> dict[str, Any]:
    """Without its usage: that of the request says what is shown in a list."""
    return {
        "lane": attempt.lane,
        "model": attempt.model,
        "started_s": attempt.started_s,
        "outcome": attempt.outcome,
        "status": attempt.status,
        "first_byte_s": attempt.first_byte_s,
        "ended_s": attempt.ended_s,
        "request_id": attempt.request_id,
        "error_type": attempt.error_type,
        "retry_after_s": attempt.retry_after_s,
        "cost_pusd": attempt.cost_pusd,
        "is_resent": attempt.is_resent,
    }


def _foreign(value: object) -> Any:
    """What orjson does not know: other mappings and collections as JSON has them, anything else as text."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return str(value)


def _bounded(row: Row, most_text: int, most_items: int) -> dict[str, Any]:
    """The row with its values cut, but for those that say which it is: they are ours."""
    return {
        name: value if name in _OWN else _plain(value, most_text, most_items, _MOST_DEPTH)
        for name, value in row.items()
    }


def _plain(value: Any, most_text: int, most_items: int, levels: int) -> Any:
    """The same tree, bounded, of types that every JSON writer takes and text that has UTF-8."""
    if isinstance(value, str):
        value = value[:most_text]
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return value if -_MOST_INT <= value <= _MOST_INT else None
    if not levels:
        return None
    if isinstance(value, Mapping):
        return {
            _plain(str(name), most_text, 0, 0): _plain(value[name], most_text, most_items, levels - 1)
            for name in list(value)[:most_items]
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, most_text, most_items, levels - 1) for item in value[:most_items]]
    return str(value)[:most_text].encode("utf-8", "replace").decode()


# Reading


def read(body: bytes) -> Row | None:
    """A row as it was written; None for what is no row: it is counted by who reads."""
    if len(body) > MOST_READ_BYTES:
        return None
    try:
        row = orjson.loads(body)
    except ValueError:
        return None
    if not isinstance(row, dict) or not _is_shallow(row):
        return None
    trace_id, started_at_ns = row.get("trace_id"), row.get("started_at_ns")
    if not isinstance(trace_id, str) or not 0 < len(trace_id) <= 64 or type(started_at_ns) is not int:
        return None
    return row if 0 <= started_at_ns <= _MOST_INT else None


def shown(row: Row, mark: str) -> dict[str, Any]:
    """A row that `read` gave, as `export.as_json` shows the trace, then `pod`, `mark` and what was `cut` off it."""
    found: dict[str, Any] = {}
    for name in FIELDS:
        read_as, stored_as = _READ[name]
        found[name] = read_as(row.get(stored_as))
    found["pod"] = _text(row.get("pod")) or "unknown"
    found["mark"] = mark
    found["cut"] = _texts(row.get("cut"))
    return found


def matches(row: Row, query: TraceQuery) -> bool:
    """Whether a row is among what `query` asks for; its `before` and `limit` are for who pages."""
    started_at_ns = row["started_at_ns"]
    if query.since_ns is not None and started_at_ns < query.since_ns:
        return False
    if query.until_ns is not None and started_at_ns >= query.until_ns:
        return False
    for wanted, name in _EQUALS:
        value = getattr(query, wanted)
        if value is not None and row.get(name, "") != value:
            return False
    if query.status is not None:
        status = _count(row.get("status"))
        if status != query.status and (query.status > 9 or status // 100 != query.status):
            return False
    if query.min_duration_s is not None and (_seconds(row.get("duration_s")) or 0.0) < query.min_duration_s:
        return False
    if query.min_cost_pusd is not None:
        cost = row.get("cost_pusd")
        return type(cost) is int and cost >= query.min_cost_pusd
    return True


_MONEY = ("cost_pusd", "baseline_pusd", "saved_pusd", "prompt_read_saved_pusd", "prompt_write_extra_pusd")
_EQUALS = tuple(
    (name, {"model": "model_sent"}.get(name, name))
    for name in (
        *("trace_id", "request_id", "policy", "rule", "lane", "model", "task", "tenant", "key", "cache"),
        *("cache_reason", "conversation", "session", "outcome", "endpoint", "batch"),
    )
)
_USAGE = (
    *("input_tokens", "cache_read_input_tokens", "cache_write_5m", "cache_write_1h", "output_tokens"),
    *("thinking_tokens", "web_searches"),
)


def _text(value: Any) -> str:
    return value[:_MOST_TEXT] if isinstance(value, str) else ""


def _optional(value: Any) -> str | None:
    return value[:_MOST_TEXT] if isinstance(value, str) else None


def _flag(value: Any) -> bool:
    return value is True


def _count(value: Any) -> int:
    return value if type(value) is int and -_MOST_INT <= value <= _MOST_INT else 0


def _seconds(value: Any) -> float | None:
    is_number = type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e9
    return time_s(float(value)) if is_number else None


def _some_seconds(value: Any) -> float:
    return _seconds(value) or 0.0


def _dollars(value: Any) -> Decimal | None:
    return usd(value) if type(value) is int and -MOST_PUSD <= value <= MOST_PUSD else None


def _moment(value: Any) -> str:
    return started_at(value)


def _texts(value: Any) -> list[str]:
    return [_text(each) for each in value[:_MOST_ITEMS] if isinstance(each, str)] if isinstance(value, list) else []


def _tree(value: Any) -> dict[str, Any] | None:
    """A mapping as it came: it is of JSON, and no larger or deeper than a row may be."""
    return value if isinstance(value, dict) else None


def _is_shallow(row: dict[str, Any]) -> bool:
    inner: list[Any] = [row]
    for _ in range(_MOST_READ):
        values = [each for value in inner for each in (value.values() if type(value) is dict else value)]
        inner = [each for each in values if type(each) is dict or type(each) is list]
        if not inner:
            return True
    return False


def _affinity(value: Any) -> dict[str, Any] | None:
    """A binding as the page reads it: the price of a switch is there with all its models, or not at all."""
    shown_as = shown_affinity(_tree(value))
    if shown_as is None:
        return None
    switch = shown_as.get("switch")
    if switch is not None and not (isinstance(switch, dict) and all(_is_plain(each) for each in switch.values())):
        del shown_as["switch"]
    return {name: each for name, each in shown_as.items() if name == "switch" or _is_plain(each)}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, Decimal))


def _lines(value: Any) -> dict[str, int] | None:
    """Counts by kind."""
    if not isinstance(value, dict):
        return None
    return {name[:64]: _count(each) for name, each in list(value.items())[:_MOST_ITEMS]}


def _usage(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    found: dict[str, Any] = {name: max(0, _count(value.get(name))) for name in _USAGE}
    found["iterations"] = []
    iterations = value.get("iterations")
    for each in iterations[:_MOST_ITEMS] if isinstance(iterations, list) else ():
        if isinstance(each, dict):
            named = {"type": _text(each.get("type")), "model": _optional(each.get("model"))}
            found["iterations"].append({**named, **{name: max(0, _count(each.get(name))) for name in _USAGE[:5]}})
    for name in ("service_tier", "geo", "speed"):
        found[name] = _optional(value.get(name))
    found["is_final"] = value.get("is_final") is not False
    return found


def _spans(value: Any) -> list[dict[str, Any]]:
    found = []
    for each in value[:_MOST_ITEMS] if isinstance(value, list) else ():
        if isinstance(each, list) and len(each) == 3:
            found.append({"name": _text(each[0]), "start_s": _some_seconds(each[1]), "end_s": _some_seconds(each[2])})
    return found


def _attempts(value: Any) -> list[dict[str, Any]]:
    found = []
    for each in value[:_MOST_ITEMS] if isinstance(value, list) else ():
        if not isinstance(each, dict):
            continue
        found.append(
            {
                "lane": _text(each.get("lane")),
                "model": _text(each.get("model")),
                "started_s": _seconds(each.get("started_s")),
                "outcome": _text(each.get("outcome")),
                "status": _count(each.get("status")) or None,
                "first_byte_s": _seconds(each.get("first_byte_s")),
                "ended_s": _seconds(each.get("ended_s")),
                "request_id": _optional(each.get("request_id")),
                "error_type": _optional(each.get("error_type")),
                "retry_after_s": _seconds(each.get("retry_after_s")),
                "usage": None,
                "is_resent": each.get("is_resent") is True,
                "cost_usd": _dollars(each.get("cost_pusd")),
            }
        )
    return found


def _readers() -> Mapping[str, tuple[Callable[[Any], Any], str]]:
    """For each field of a shown trace: how its value is read, and its name in a row."""
    kinds: tuple[tuple[Callable[[Any], Any], tuple[str, ...]], ...] = (
        (_optional, ("request_id", "conversation", "session", "batch", "task", "model_answered", "stop_reason")),
        (_optional, ("error_type", "error_code")),
        (_flag, ("is_streaming", "is_stored")),
        (_texts, ("why", "tags", "edits")),
        (_tree, ("facts", "labels")),
        (_some_seconds, ("duration_s", "overhead_s")),
    )
    found: dict[str, tuple[Callable[[Any], Any], str]] = {name: (_text, name) for name in FIELDS}
    found |= {name: (read_as, name) for read_as, names in kinds for name in names}
    found |= {
        "started_at": (_moment, "started_at_ns"),
        "batch_lines": (_lines, "batch_lines"),
        "affinity": (_affinity, "affinity"),
        "attempts": (_attempts, "attempts"),
        "usage": (_usage, "usage"),
        "ttft_s": (_seconds, "ttft_s"),
        "spans": (_spans, "spans"),
        "status": (_count, "status"),
        "cost_usd": (_dollars, "cost_pusd"),
        "baseline_usd": (_dollars, "baseline_pusd"),
        "saved_usd": (_dollars, "saved_pusd"),
        "prompt_cache_read_saved_usd": (_dollars, "prompt_read_saved_pusd"),
        "prompt_cache_write_extra_usd": (_dollars, "prompt_write_extra_pusd"),
    }
    return MappingProxyType(found)


_READ = _readers()
