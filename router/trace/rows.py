"""One trace as one row of the store, and back: runs in the writer thread and in readers, never on the request path.

Everything a client or an upstream may name is bounded here: texts are cut at `MAX_TEXT` characters, lists at
`MAX_ITEMS` entries, a JSON column that is still over `MAX_JSON` bytes gives way to a note that says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import orjson

from router.trace.export import (
    attempt_json,
    shown_affinity,
    shown_attempt,
    span_json,
    started_at,
    time_s,
    usage_json,
    usd,
)
from router.trace.record import Trace, held

MAX_TEXT = 2_000
MAX_ITEMS = 500
MAX_JSON = 64_000
_INT64 = 2**63 - 1

Cell = str | int | float | None


def row_of(trace: Trace, *, is_thin: bool = False) -> tuple[Cell, ...]:
    """The cells of `trace` in the order of `schema.COLUMNS`.

    `is_thin` leaves out the explaining JSON columns (facts, why, spans, labels): when the writer cannot keep up,
    content goes first and money last.
    """
    usage = trace.usage
    tokens = None if usage is None else usage.tokens
    labels = trace.labels
    task = None if labels is None else labels.get("task")
    return (
        _integer(trace.started_at_ns),
        _text(trace.trace_id),
        _optional(trace.request_id),
        _text(trace.endpoint),
        _text(trace.method),
        _text(trace.path),
        _text(trace.tenant),
        _text(trace.key),
        _text(trace.client),
        _optional(trace.conversation),
        int(trace.is_streaming),
        _text(trace.policy),
        _text(trace.revision),
        _text(trace.rule),
        _text(task) if isinstance(task, str) else None,
        _text(trace.model_asked),
        _text(trace.model_sent),
        _optional(trace.model_answered),
        _text(trace.lane),
        _text(trace.cache),
        int(trace.is_stored),
        _text(trace.price_version),
        held(trace.cost_pusd),
        held(trace.baseline_pusd),
        held(trace.saved_pusd),
        None if tokens is None else _integer(tokens.input),
        None if tokens is None else _integer(tokens.cache_read),
        None if tokens is None else _integer(tokens.cache_write_5m),
        None if tokens is None else _integer(tokens.cache_write_1h),
        None if tokens is None else _integer(tokens.output),
        trace.ttft_s,
        trace.duration_s,
        trace.overhead_s,
        _integer(trace.status),
        _optional(trace.stop_reason),
        _text(trace.outcome),
        _optional(trace.error_type),
        _optional(trace.error_code),
        None if is_thin or not labels else _json(labels),
        _texts(trace.tags),
        _texts(trace.edits),
        None if is_thin else _texts(trace.why),
        None if usage is None else _json(usage_json(usage)),
        None if is_thin or not trace.spans else _json(trace.spans[:MAX_ITEMS]),
        _json([attempt_json(attempt) for attempt in trace.attempts[:MAX_ITEMS]]) if trace.attempts else None,
        None if is_thin or trace.facts is None else _json(trace.facts),
        None if is_thin or trace.affinity is None else _json(trace.affinity),
        _text(trace.cache_reason),
        _optional(trace.session),
        held(trace.prompt_read_saved_pusd),
        held(trace.prompt_write_extra_pusd),
        _optional(trace.batch),
        None if trace.batch_lines is None else _json(trace.batch_lines),
    )


def trace_json(cells: Sequence[Any]) -> dict[str, Any]:
    """The row as `export.as_json` shows the trace it was made from."""
    (
        started_at_ns, trace_id, request_id, endpoint, method, path, tenant, key, client, conversation, is_streaming,
        policy, revision, rule, task, model_asked, model_sent, model_answered, lane, cache, is_stored, price_version,
        cost_pusd, baseline_pusd, saved_pusd, _1, _2, _3, _4, _5, ttft_s, duration_s,
        overhead_s, status, stop_reason, outcome, error_type, error_code, labels, tags, edits, why, usage, spans,
        attempts, facts, affinity, cache_reason, session, read_saved, write_extra, batch,
        batch_lines,
    ) = cells  # fmt: skip
    return {
        "trace_id": trace_id,
        "request_id": request_id,
        "started_at": started_at(started_at_ns),
        "endpoint": endpoint,
        "method": method,
        "path": path,
        "tenant": tenant,
        "key": key,
        "client": client,
        "conversation": conversation,
        "session": session,
        "batch": batch,
        "batch_lines": _read(batch_lines),
        "is_streaming": bool(is_streaming),
        "policy": policy,
        "revision": revision,
        "rule": rule,
        "why": _read_list(why),
        "tags": _read_list(tags),
        "facts": _read(facts),
        "task": task,
        "labels": _read(labels),
        "model_asked": model_asked,
        "model_sent": model_sent,
        "model_answered": model_answered,
        "lane": lane,
        "edits": _read_list(edits),
        "affinity": shown_affinity(_read(affinity)),
        "attempts": [shown_attempt(attempt) for attempt in _read_list(attempts)],
        "cache": cache,
        "cache_reason": cache_reason or "",
        "is_stored": bool(is_stored),
        "usage": _read(usage),
        "cost_usd": usd(cost_pusd),
        "baseline_usd": usd(baseline_pusd),
        "saved_usd": usd(saved_pusd),
        "prompt_cache_read_saved_usd": usd(read_saved),
        "prompt_cache_write_extra_usd": usd(write_extra),
        "price_version": price_version,
        "ttft_s": time_s(ttft_s),
        "duration_s": time_s(duration_s),
        "overhead_s": time_s(overhead_s),
        "spans": [span_json((s[0], s[1], s[2])) for s in _read_list(spans) if isinstance(s, list)],
        "status": status,
        "stop_reason": stop_reason,
        "outcome": outcome,
        "error_type": error_type,
        "error_code": error_code,
    }


def _text(value: str) -> str:
    """A text that SQLite takes: bounded, and without lone surrogates (which have no UTF-8)."""
    if len(value) > MAX_TEXT:
        value = value[:MAX_TEXT]
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def _optional(value: str | None) -> str | None:
    return None if value is None else _text(value)


def _integer(value: int) -> int:
    """A count that fits a SQLite integer; only a hostile upstream reports more."""
    return value if -_INT64 <= value <= _INT64 else _INT64


def _texts(values: Sequence[str]) -> str | None:
    return _json([value[:MAX_TEXT] for value in values[:MAX_ITEMS]]) if values else None


def _json(value: Any) -> str:
    """`value` as JSON text; what JSON cannot say is said nearly (a huge integer or a foreign object as text)."""
    try:
        encoded = orjson.dumps(value)
    except orjson.JSONEncodeError:
        encoded = orjson.dumps(_plain(value))
    if len(encoded) > MAX_JSON:
        encoded = orjson.dumps(_cut(_plain(value)))
        if len(encoded) > MAX_JSON:
            note: dict[str, Any] = {"truncated_bytes": len(encoded)}
            encoded = orjson.dumps([note] if isinstance(value, list) else note)
    return encoded.decode()


def _plain(value: Any) -> Any:
    """The same tree of types that every JSON writer takes."""
    if isinstance(value, dict):
        return {_utf8(str(name)): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return _utf8(value)
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int) and -_INT64 <= value <= _INT64:
        return value
    return _utf8(repr(value) if isinstance(value, int) and value.bit_length() < 4_000 else f"<{type(value).__name__}>")


def _cut(value: Any) -> Any:
    """The same tree with every text and list held to its bound."""
    if isinstance(value, dict):
        return {name[:MAX_TEXT]: _cut(item) for name, item in list(value.items())[:MAX_ITEMS]}
    if isinstance(value, list):
        return [_cut(item) for item in value[:MAX_ITEMS]]
    return value[:MAX_TEXT] if isinstance(value, str) else value


def _utf8(value: str) -> str:
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def _read(cell: str | None) -> Any:
    return None if cell is None else json.loads(cell)


def _read_list(cell: str | None) -> list[Any]:
    value = _read(cell)
    return value if isinstance(value, list) else []
