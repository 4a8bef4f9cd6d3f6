"""A trace as JSON: the field names that the command line, the admin page and every test meet.

Money leaves the house as exact decimals: an integer of pico-dollars becomes a `Decimal` with at most twelve places,
and `encode_json` writes it as a JSON number digit for digit, so that no binary fraction ever shows up in a bill.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from router.trace.record import Attempt, Trace
from router.usage import Tokens, Usage

# The fields of one trace as JSON, in the order in which they are written; CSV columns are the scalar ones of these.
FIELDS = (
    "trace_id",
    "request_id",
    "started_at",
    "endpoint",
    "method",
    "path",
    "tenant",
    "key",
    "client",
    "conversation",
    "session",
    "batch",
    "batch_lines",
    "is_streaming",
    "policy",
    "revision",
    "rule",
    "why",
    "tags",
    "facts",
    "task",
    "labels",
    "model_asked",
    "model_sent",
    "model_answered",
    "lane",
    "edits",
    "affinity",
    "attempts",
    "cache",
    "cache_reason",
    "is_stored",
    "usage",
    "cost_usd",
    "baseline_usd",
    "saved_usd",
    "prompt_cache_read_saved_usd",
    "prompt_cache_write_extra_usd",
    "price_version",
    "ttft_s",
    "duration_s",
    "overhead_s",
    "spans",
    "status",
    "stop_reason",
    "outcome",
    "error_type",
    "error_code",
)


def usd(pusd: int | None) -> Decimal | None:
    """Pico-dollars as dollars, exactly and without trailing zeros; None stays None (an unknown price is not 0)."""
    return None if pusd is None else Decimal(pusd).scaleb(-12).normalize()


def started_at(unix_ns: int) -> str:
    """Unix time in nanoseconds as ISO 8601 in UTC with microseconds, such as `2026-11-22T14:49:25.000123Z`."""
    days, rest_us = divmod(unix_ns // 1000, 86_400_000_000)
    seconds, micros = divmod(rest_us, 1_000_000)
    year, month, day = _date_of(days)
    hour, minute, second = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}.{micros:06d}Z"


def day_number(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date of the Gregorian calendar.

    Years are counted from March, so that the leap day is the last of its year; 153 days make five months from March on.
    """
    year -= month < 3
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * ((month + 9) % 12) + 2) // 5 + day - 719_469


def _date_of(days: int) -> tuple[int, int, int]:
    """The date that is `days` after 1970-01-01: the inverse of `day_number`."""
    era, in_era = divmod(days + 719_468, 146_097)  # 400 years are 146,097 days
    year = (in_era - in_era // 1_460 + in_era // 36_524 - in_era // 146_096) // 365
    in_year = in_era - (365 * year + year // 4 - year // 100)
    from_march = (5 * in_year + 2) // 153
    month = (from_march + 2) % 12 + 1
    return era * 400 + year + (month < 3), month, in_year - (153 * from_march + 2) // 5 + 1


def time_s(value: float | None) -> float | None:
    """Seconds to the microsecond: what lies below is noise of the clock."""
    return None if value is None else round(value, 6)


def tokens_json(tokens: Tokens) -> dict[str, int]:
    """The five disjoint token counts under names like those of the wire."""
    return {
        "input_tokens": tokens.input,
        "cache_read_input_tokens": tokens.cache_read,
        "cache_write_5m": tokens.cache_write_5m,
        "cache_write_1h": tokens.cache_write_1h,
        "output_tokens": tokens.output,
    }


def usage_json(usage: Usage) -> dict[str, Any]:
    """A usage under names like those of the wire; `iterations` is empty when the counts above it are the whole bill."""
    return {
        **tokens_json(usage.tokens),
        "thinking_tokens": usage.thinking,
        "web_searches": usage.web_searches,
        "iterations": [{"type": i.kind, "model": i.model, **tokens_json(i.tokens)} for i in usage.iterations],
        "service_tier": usage.service_tier,
        "geo": usage.geo,
        "speed": usage.speed,
        "is_final": usage.is_final,
    }


def attempt_json(attempt: Attempt) -> dict[str, Any]:
    """One attempt with its money still in pico-dollars (`cost_pusd`); `shown_attempt` turns that into dollars."""
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
        "usage": None if attempt.usage is None else usage_json(attempt.usage),
        "cost_pusd": attempt.cost_pusd,
        "is_resent": attempt.is_resent,
    }


def shown_attempt(stored: Mapping[str, Any]) -> dict[str, Any]:
    """An attempt as readers see it: `cost_usd` in the place of `cost_pusd`."""
    shown = {name: value for name, value in stored.items() if name != "cost_pusd"}
    cost_pusd = stored.get("cost_pusd")
    for name in ("started_s", "first_byte_s", "ended_s"):
        shown[name] = time_s(stored.get(name))
    shown["cost_usd"] = usd(cost_pusd if isinstance(cost_pusd, int) else None)
    shown["is_resent"] = stored.get("is_resent") is True  # rows from before there was this field say nothing
    return shown


def shown_affinity(stored: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A conversation's binding and the price of a switch as readers see them: `…_usd` in the place of `…_pusd`."""
    if not isinstance(stored, Mapping):
        return None
    shown: dict[str, Any] = {}
    for name, value in stored.items():
        if isinstance(value, Mapping):
            shown[name] = shown_affinity(value)
        elif name.endswith("_pusd"):
            shown[name.removesuffix("_pusd") + "_usd"] = usd(value if isinstance(value, int) else None)
        else:
            shown[name] = value
    return shown


def span_json(span: tuple[str, float, float]) -> dict[str, Any]:
    """One timed step: its name, and when it began and ended in seconds since the request was received."""
    name, start_s, end_s = span
    return {"name": name, "start_s": time_s(start_s), "end_s": time_s(end_s)}


def as_json(trace: Trace) -> dict[str, Any]:
    """The whole trace under the names in `FIELDS`; money as `Decimal` dollars, None where a price is unknown."""
    task = trace.labels.get("task") if trace.labels is not None else None
    return {
        "trace_id": trace.trace_id,
        "request_id": trace.request_id,
        "started_at": started_at(trace.started_at_ns),
        "endpoint": trace.endpoint,
        "method": trace.method,
        "path": trace.path,
        "tenant": trace.tenant,
        "key": trace.key,
        "client": trace.client,
        "conversation": trace.conversation,
        "session": trace.session,
        "batch": trace.batch,
        "batch_lines": None if trace.batch_lines is None else dict(trace.batch_lines),
        "is_streaming": trace.is_streaming,
        "policy": trace.policy,
        "revision": trace.revision,
        "rule": trace.rule,
        "why": list(trace.why),
        "tags": list(trace.tags),
        "facts": None if trace.facts is None else dict(trace.facts),
        "task": task,
        "labels": None if trace.labels is None else dict(trace.labels),
        "model_asked": trace.model_asked,
        "model_sent": trace.model_sent,
        "model_answered": trace.model_answered,
        "lane": trace.lane,
        "edits": list(trace.edits),
        "affinity": shown_affinity(trace.affinity),
        "attempts": [shown_attempt(attempt_json(attempt)) for attempt in trace.attempts],
        "cache": trace.cache,
        "cache_reason": trace.cache_reason,
        "is_stored": trace.is_stored,
        "usage": None if trace.usage is None else usage_json(trace.usage),
        "cost_usd": usd(trace.cost_pusd),
        "baseline_usd": usd(trace.baseline_pusd),
        "saved_usd": usd(trace.saved_pusd),
        "prompt_cache_read_saved_usd": usd(trace.prompt_read_saved_pusd),
        "prompt_cache_write_extra_usd": usd(trace.prompt_write_extra_pusd),
        "price_version": trace.price_version,
        "ttft_s": time_s(trace.ttft_s),
        "duration_s": time_s(trace.duration_s),
        "overhead_s": time_s(trace.overhead_s),
        "spans": [span_json(span) for span in trace.spans],
        "status": trace.status,
        "stop_reason": trace.stop_reason,
        "outcome": trace.outcome,
        "error_type": trace.error_type,
        "error_code": trace.error_code,
    }


def encode_json(value: Any) -> str:
    """JSON text on one line, ASCII only, in which a `Decimal` is a plain number with exactly its own digits.

    The standard encoder cannot write a number digit for digit, so containers are walked here and leaves are left to it.
    A float that JSON has no word for (NaN, infinity) becomes null.
    """
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else "null"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{json.dumps(str(name))}:{encode_json(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(encode_json, value)) + "]"
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return "null"
    return json.dumps(value)


def csv_cell(value: Any) -> str:
    """One cell of a CSV export; text that a spreadsheet would run as a formula is disarmed by a leading apostrophe.

    Source: OWASP, "CSV Injection": cells that begin with = + - @, tab or carriage return. Numbers keep their sign.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, (int, float)):
        return repr(value)
    text = value if isinstance(value, str) else encode_json(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") else text
