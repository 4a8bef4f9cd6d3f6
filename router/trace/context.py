"""W3C trace context: what of a caller's `traceparent` is taken over, the ids of the spans, what goes upstream.

Only the ids are read. The sampled flag of a caller decides nothing here, so nobody can have traces made or kept back;
`tracestate` and `baggage` are neither read nor passed on. Source: W3C Trace Context, "traceparent Header".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from router.trace.record import Trace

DECIDE, CHAT, FIRST_ATTEMPT = 1, 2, 3
"""The places of a request's child spans; each has an id that follows from the request's own."""

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?", re.DOTALL)
_ODD = 0x9E3779B97F4A7C15  # multiplying by an odd number gives every place another id
_MASK = 2**64 - 1


def adopt(trace: Trace, headers: Iterable[tuple[bytes, bytes]], *, is_continued: bool) -> None:
    """Give a new trace its span id and, where the caller sent a valid `traceparent`, its place in the caller's trace.

    `trace.trace_id` is fresh. Continued, the caller's trace id takes its place and the caller's span is the parent;
    otherwise the caller's span is only linked. Anything that is not exactly one valid header is as good as none.
    """
    trace.span_id = trace.trace_id[16:]
    sent = [value for name, value in headers if name == b"traceparent"]
    if not sent:
        return
    caller = read_traceparent(sent[0]) if len(sent) == 1 else None
    if caller is None:
        return
    if is_continued:
        trace.trace_id, trace.parent_span_id = caller
    else:
        trace.caller = caller


def read_traceparent(value: bytes) -> tuple[str, str] | None:
    """(trace id, span id) of a `traceparent`; None unless it is valid to the letter."""
    found = _TRACEPARENT.fullmatch(value)
    if found is None:
        return None
    version, trace_id, span_id, rest = found.groups()
    if version == b"ff" or (version == b"00" and rest is not None):
        return None
    if not trace_id.strip(b"0") or not span_id.strip(b"0"):
        return None
    return trace_id.decode(), span_id.decode()


def traceparent(trace: Trace) -> bytes:
    """The `traceparent` for the attempt that was noted last: the upstream's spans become children of that one."""
    span_id = child_span_id(trace, FIRST_ATTEMPT + max(0, len(trace.attempts) - 1))
    return f"00-{trace.trace_id}-{span_id}-01".encode()


def root_span_id(trace: Trace) -> str:
    """The id of the request's own span: 16 hex digits."""
    return trace.span_id or trace.trace_id[16:]


def child_span_id(trace: Trace, place: int) -> str:
    """The id of the child span at `place` (from 1): always the same for the same trace."""
    return f"{(int(root_span_id(trace), 16) ^ (place * _ODD & _MASK)) or 1:016x}"
