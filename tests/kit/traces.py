"""A finished trace with everything in it."""

from __future__ import annotations

from dataclasses import replace

from router.trace.record import Attempt, Trace
from router.usage import Iteration, Tokens, Usage

START_NS = 1_790_000_000_000_000_000


def a_trace(number: int = 0, **fields: object) -> Trace:
    """The trace of that number; `fields` replace what it holds."""
    usage = Usage(
        Tokens(input=100 + number, cache_read=3, cache_write_5m=2, cache_write_1h=1, output=50),
        thinking=5,
        iterations=(Iteration("message", None, Tokens(input=1, output=2)),),
        service_tier="standard",
    )
    trace = Trace(
        trace_id=f"{(number + 1) * 0x9E3779B97F4A7C15 % 2**128:032x}",
        started_at_ns=START_NS + number * 1_000_000,
        endpoint="messages",
        method="POST",
        path="/v1/messages",
        request_id=f"req_{number:06d}",
        tenant="acme",
        key="bot",
        client="python-sdk",
        conversation="c" * 16,
        is_streaming=bool(number % 2),
        policy="default",
        revision="abc123",
        rule="structured-work",
        why=("rule `a`: no", "rule `b`: matched"),
        tags=("blue",),
        facts={"input_tokens": 106, "tool_names": [], "language": "en"},
        labels={"task": "extraction", "difficulty": 0.25},
        model_asked="claude-sonnet-5-5",
        model_sent="claude-haiku-4-5",
        model_answered="claude-haiku-4-5",
        lane="haiku",
        attempts=[Attempt("haiku", "claude-haiku-4-5", 0.001, "ok", 200, 0.2, 0.5, usage=usage, cost_pusd=123)],
        cache="miss",
        usage=usage,
        price_version="2026-11",
        cost_pusd=1_000_000_001,
        baseline_pusd=3_000_000_000,
        saved_pusd=1_999_999_999,
        ttft_s=0.25,
        duration_s=0.5,
        overhead_s=0.0004,
        spans=[("parsed", 0.0, 0.0001), ("decided", 0.0001, 0.0002)],
        status=200,
        stop_reason="end_turn",
    )
    return replace(trace, **fields)
