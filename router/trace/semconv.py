"""The one table of names for spans and metrics: OpenTelemetry's where there is one, `router.*` where there is none.

The conventions for generative AI are still in development and were renamed between their last release and now.
`RELEASED` is what dashboards read today, `NEXT` what the conventions say on their main branch. The two never share a
request: a backend that reads both spellings would add the same tokens up twice.
Source: OpenTelemetry semantic conventions 1.41 (generative AI, HTTP) and the migration guide of semantic-conventions-
genai; for the cost, which has no convention, `gen_ai.usage.cost` as Langfuse and OpenLIT read it (dollars).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Names:
    """Every name that the router gives a span attribute or a `gen_ai` metric."""

    # Attributes of the logical call
    operation: str = "gen_ai.operation.name"
    provider: str = "gen_ai.provider.name"
    request_model: str = "gen_ai.request.model"  # the model sent, which is the one that prices apply to
    response_model: str = "gen_ai.response.model"
    conversation_id: str = "gen_ai.conversation.id"  # of the session that the client names, never made up
    is_stream: str = "gen_ai.request.stream"
    max_tokens: str = "gen_ai.request.max_tokens"
    reasoning_level: str = "gen_ai.request.reasoning.level"
    output_type: str = "gen_ai.output.type"
    finish_reasons: str = "gen_ai.response.finish_reasons"
    first_chunk: str = "gen_ai.response.time_to_first_chunk"  # seconds
    input_tokens: str = "gen_ai.usage.input_tokens"  # with what the prompt cache read and wrote
    output_tokens: str = "gen_ai.usage.output_tokens"
    cache_read: str = "gen_ai.usage.cache_read.input_tokens"
    cache_write: str = "gen_ai.usage.cache_creation.input_tokens"
    reasoning_tokens: str = "gen_ai.usage.reasoning.output_tokens"
    usage_cost: str = "gen_ai.usage.cost"  # dollars

    # Attributes of HTTP
    error_type: str = "error.type"
    method: str = "http.request.method"
    method_original: str = "http.request.method_original"
    route: str = "http.route"
    status: str = "http.response.status_code"
    resend_count: str = "http.request.resend_count"
    path: str = "url.path"
    url: str = "url.full"
    server_address: str = "server.address"
    server_port: str = "server.port"

    # Attributes of the router
    cost: str = "router.cost.usd"
    baseline: str = "router.cost.baseline_usd"
    saved: str = "router.cost.saved_usd"
    price_version: str = "router.cost.price_version"
    asked_model: str = "router.request.model"
    replayed_input: str = "router.replayed.input_tokens"  # of an answer that was paid for before
    replayed_output: str = "router.replayed.output_tokens"
    is_usage_final: str = "router.usage.is_final"
    lane: str = "router.lane"
    policy: str = "router.policy.name"
    revision: str = "router.policy.revision"
    rule: str = "router.rule"
    why: str = "router.why"
    tags: str = "router.tags"
    edits: str = "router.edits"
    task: str = "router.label.task"
    difficulty: str = "router.label.difficulty"
    confidence: str = "router.label.confidence"
    p_hard: str = "router.label.p_hard"
    cache: str = "router.cache"
    cache_reason: str = "router.cache.reason"
    outcome: str = "router.outcome"
    error_code: str = "router.error.code"
    request_id: str = "router.request_id"
    tenant: str = "router.tenant"
    key: str = "router.key"
    client: str = "router.client"
    conversation: str = "router.conversation"  # a hash of its content: not a `gen_ai.conversation.id`
    overhead: str = "router.overhead_s"
    batch: str = "router.batch.id"
    batch_lines: str = "router.batch.lines."  # and the kind of line: a count
    attempt_model: str = "router.attempt.model"
    attempt_outcome: str = "router.attempt.outcome"
    attempt_request_id: str = "router.attempt.request_id"
    attempt_first_byte: str = "router.attempt.first_byte_s"  # seconds since the attempt began
    attempt_retry_after: str = "router.attempt.retry_after_s"
    attempt_is_resent: str = "router.attempt.is_resent"  # only where it is true

    # Metrics
    duration_metric: str = "gen_ai.client.operation.duration"
    first_chunk_metric: str = "gen_ai.client.operation.time_to_first_chunk"
    token_metric: str | None = "gen_ai.client.token.usage"  # noqa: S105 - one histogram for both kinds of token
    input_metric: str | None = None  # histograms of their own in its place
    output_metric: str | None = None
    usage_counters: tuple[tuple[str, str], ...] = ()  # kind of token, counter
    token_type: str = "gen_ai.token.type"  # noqa: S105 - the name of a label


RELEASED = Names()
NEXT = replace(
    RELEASED,
    cache_write="gen_ai.usage.cache_write.input_tokens",
    duration_metric="gen_ai.client.inference.duration",
    first_chunk_metric="gen_ai.client.inference.time_to_first_chunk",
    token_metric=None,
    input_metric="gen_ai.client.operation.input_tokens",
    output_metric="gen_ai.client.operation.output_tokens",
    usage_counters=(
        ("input", "gen_ai.client.inference.usage.input_tokens"),
        ("output", "gen_ai.client.inference.usage.output_tokens"),
        ("cache_read", "gen_ai.client.inference.usage.cache_read.input_tokens"),
        ("cache_write", "gen_ai.client.inference.usage.cache_write.input_tokens"),
        ("reasoning", "gen_ai.client.inference.usage.reasoning.output_tokens"),
    ),
)

SEMCONV: Mapping[str, Names] = MappingProxyType({"released": RELEASED, "next": NEXT})
"""What the setting `otel_semconv` names."""

OPERATION = "chat"
PROVIDER = "anthropic"
SECONDS = tuple(0.01 * 2**k for k in range(14))
"""Bounds of durations, as the conventions prescribe them: 10 ms to 81.92 s."""
TOKENS = tuple(4**k for k in range(14))
"""Bounds of token counts, likewise: 1 to 67,108,864."""
