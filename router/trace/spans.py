"""A finished trace as a tree of OpenTelemetry spans: values, made off the request path.

    POST /v1/messages        SERVER    the request, from its last byte to the answer's
    ├─ router.decide         INTERNAL  reading, inspecting, labelling and deciding
    └─ chat MODEL            CLIENT    the logical call: tokens and money are here, and nowhere else
       ├─ POST               CLIENT    one attempt
       └─ POST               CLIENT    the next

A request that is no chat (a count, a batch, a file) has its attempts under the request itself. A replay, be it a hit or
an answer that another request paid for, has a `chat` of kind INTERNAL without attempts and without `gen_ai.usage.*`
tokens: nothing was consumed, and a backend that prices tokens would book the same answer twice. What was replayed is
said in `router.replayed.*`, its cost is 0, and what that saved is in `router.cost.*`.

An unknown cost has no attribute at all; 0 always means nothing was charged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from router.trace.context import CHAT, DECIDE, FIRST_ATTEMPT, child_span_id, root_span_id
from router.trace.record import Attempt, Trace
from router.trace.semconv import OPERATION, PROVIDER, RELEASED, Names
from router.usage import Tokens, Usage

MAX_TEXT = 500  # characters of one attribute
MAX_ITEMS = 32  # texts in one attribute
MAX_ATTEMPTS = 50  # spans of one trace are bounded by this

Value = str | bool | int | float | tuple[str, ...]
Attributes = list[tuple[str, Value]]
Kind = Literal["internal", "server", "client"]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})
_ROUTES = {"messages": "/v1/messages", "count_tokens": "/v1/messages/count_tokens"}
_BATCHES = "/v1/messages/batches"
_DECIDING = frozenset({"parsed", "inspected", "classified", "decided", "affinity", "checked"})
_CACHE_STEPS = frozenset({"cache", "coalesced", "shared cache"})
_BROKEN_OFF = frozenset({"cut", "client_closed"})
_INT64 = 2**63 - 1


class Span(NamedTuple):
    """One span; ids are hex digits, times Unix nanoseconds. `link` is another trace's (trace id, span id)."""

    name: str
    kind: Kind
    span_id: str
    parent_span_id: str
    started_ns: int
    ended_ns: int
    attributes: Attributes
    is_error: bool = False
    link: tuple[str, str] | None = None
    has_remote_parent: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """The upstream that calls go to: `https://HOST[:PORT]` taken apart."""

    url: str
    host: str
    port: int


def spans_of(trace: Trace, origin: Origin, names: Names = RELEASED) -> list[Span]:
    """The spans of a finished trace, parents before their children."""
    root = _request(trace, names)
    spans = [root]
    if trace.policy:
        spans.append(_decision(trace, names, root))
    parent = root
    if trace.endpoint == "messages" and (trace.attempts or is_replay(trace)):
        parent = _chat(trace, origin, names, root)
        spans.append(parent)
    for number, attempt in enumerate(trace.attempts[:MAX_ATTEMPTS]):
        spans.append(_attempt(trace, origin, names, parent, number, attempt))
    return spans


def most_spans(trace: Trace) -> int:
    """No fewer spans than a finished trace has."""
    return 3 + min(len(trace.attempts), MAX_ATTEMPTS)


def is_replay(trace: Trace) -> bool:
    """Whether the answer was paid for by another request."""
    return trace.cache in ("hit", "coalesced") and not trace.attempts


def billed_tokens(usage: Usage) -> tuple[Tokens, int]:
    """(what was billed, thinking included in its output): the sum of the iterations where the answer lists them."""
    if not usage.iterations:
        return usage.tokens, usage.thinking
    parts = [iteration.tokens for iteration in usage.iterations]
    total = Tokens(
        sum(part.input for part in parts),
        sum(part.cache_read for part in parts),
        sum(part.cache_write_5m for part in parts),
        sum(part.cache_write_1h for part in parts),
        sum(part.output for part in parts),
    )
    return total, usage.thinking


def _request(trace: Trace, names: Names) -> Span:
    method = trace.method if trace.method in _METHODS else "HTTP"
    route = _route(trace)
    at: Attributes = []
    if method == "HTTP":
        at.append((names.method, "_OTHER"))
        _say(at, names.method_original, trace.method)
    else:
        at.append((names.method, method))
    _say(at, names.route, route)
    _say(at, names.path, trace.path)
    is_error = trace.status >= 500 or trace.outcome == "internal_error"
    if trace.status:
        at.append((names.status, trace.status))
    if is_error:
        at.append((names.error_type, str(trace.status) if trace.status else trace.outcome))
    _say(at, names.outcome, trace.outcome)
    _say(at, names.error_code, trace.error_code)
    _say(at, names.request_id, trace.request_id)
    _say(at, names.tenant, trace.tenant)
    _say(at, names.key, trace.key)
    _say(at, names.client, trace.client)
    at.append((names.overhead, trace.overhead_s))
    _say(at, names.batch, trace.batch)
    if trace.batch_lines is not None:
        at.extend((names.batch_lines + kind, _integer(count)) for kind, count in trace.batch_lines.items())
    return Span(
        f"{method} {route}" if route else method,
        "server",
        root_span_id(trace),
        trace.parent_span_id,
        trace.started_at_ns,
        _at(trace, max(0.0, trace.duration_s)),
        at,
        is_error,
        trace.caller,
        bool(trace.parent_span_id),
    )


def _decision(trace: Trace, names: Names, parent: Span) -> Span:
    steps = [step for step in trace.spans if step[0] in _DECIDING]
    at: Attributes = []
    _say(at, names.asked_model, trace.model_asked)
    _say(at, names.policy, trace.policy)
    _say(at, names.revision, trace.revision)
    _say(at, names.rule, trace.rule)
    _say(at, names.lane, trace.lane)
    _say_all(at, names.why, trace.why)
    labels = trace.labels
    if labels is not None:
        task = labels.get("task")
        if isinstance(task, str):
            _say(at, names.task, task)
        for name, key in (
            (names.difficulty, "difficulty"),
            (names.confidence, "confidence"),
            (names.p_hard, "p_hard"),
        ):
            figure = labels.get(key)
            if isinstance(figure, float | int) and not isinstance(figure, bool):
                at.append((name, float(figure)))
    return Span(
        "router.decide",
        "internal",
        child_span_id(trace, DECIDE),
        parent.span_id,
        _at(trace, min((start for _, start, _ in steps), default=0.0)),
        _at(trace, max((end for _, _, end in steps), default=0.0)),
        at,
    )


def _chat(trace: Trace, origin: Origin, names: Names, parent: Span) -> Span:
    attempts = trace.attempts
    is_replayed = is_replay(trace)
    at: Attributes = [(names.operation, OPERATION), (names.provider, PROVIDER)]
    _say(at, names.request_model, trace.model_sent)
    _say(at, names.asked_model, trace.model_asked)
    _say(at, names.response_model, trace.model_answered)
    if not is_replayed:
        at += ((names.server_address, origin.host), (names.server_port, origin.port))
    _say(at, names.conversation_id, trace.session)
    if trace.is_streaming:
        at.append((names.is_stream, True))
        if trace.ttft_s is not None:
            at.append((names.first_chunk, trace.ttft_s))
    _say_facts(at, names, trace.facts)
    if trace.outcome in _BROKEN_OFF:
        at.append((names.finish_reasons, ("error",)))
    elif trace.stop_reason is not None:
        at.append((names.finish_reasons, (_text(trace.stop_reason),)))
    is_error = trace.outcome != "ok"
    if is_error:
        _say(at, names.error_type, trace.error_type or trace.outcome)
    _say(at, names.lane, trace.lane)
    _say(at, names.rule, trace.rule)
    _say(at, names.cache, trace.cache)
    _say(at, names.cache_reason, trace.cache_reason)
    _say(at, names.conversation, trace.conversation)
    _say_all(at, names.edits, trace.edits)
    _say_all(at, names.tags, trace.tags)
    if trace.usage is not None:
        _say_usage(at, names, trace.usage, is_replayed=is_replayed)
    _say_money(at, names, trace)
    if is_replayed:
        start_s = min((start for name, start, _ in trace.spans if name in _CACHE_STEPS), default=0.0)
        end_s = trace.duration_s
    else:
        start_s = attempts[0].started_s
        end_s = _ended_s(trace, attempts[-1])
    return Span(
        f"{OPERATION} {_text(trace.model_sent)}" if trace.model_sent else OPERATION,
        "internal" if is_replayed else "client",
        child_span_id(trace, CHAT),
        parent.span_id,
        _at(trace, start_s),
        _at(trace, max(start_s, end_s)),
        at,
        is_error,
    )


def _attempt(trace: Trace, origin: Origin, names: Names, parent: Span, number: int, attempt: Attempt) -> Span:
    method = trace.method if trace.method in _METHODS else "HTTP"
    at: Attributes = [
        (names.method, "_OTHER" if method == "HTTP" else method),
        (names.server_address, origin.host),
        (names.server_port, origin.port),
        (names.url, _text(origin.url + trace.path)),
    ]
    if number:
        at.append((names.resend_count, number))
    if attempt.status is not None:
        at.append((names.status, attempt.status))
    is_error = attempt.outcome != "ok" or (attempt.status or 0) >= 400
    if is_error:
        status = attempt.status or 0
        at.append((names.error_type, str(status) if status >= 400 else _text(attempt.error_type or attempt.outcome)))
    _say(at, names.lane, attempt.lane)
    _say(at, names.attempt_model, attempt.model)
    _say(at, names.attempt_outcome, attempt.outcome)
    _say(at, names.attempt_request_id, attempt.request_id)
    if attempt.first_byte_s is not None:
        at.append((names.attempt_first_byte, max(0.0, attempt.first_byte_s - attempt.started_s)))
    if attempt.retry_after_s is not None:
        at.append((names.attempt_retry_after, attempt.retry_after_s))
    if attempt.is_resent:
        at.append((names.attempt_is_resent, True))
    return Span(
        method,
        "client",
        child_span_id(trace, FIRST_ATTEMPT + number),
        parent.span_id,
        _at(trace, attempt.started_s),
        _at(trace, max(attempt.started_s, _ended_s(trace, attempt))),
        at,
        is_error,
    )


def _say_facts(at: Attributes, names: Names, facts: Mapping[str, Any] | None) -> None:
    """What the request asked for, where inspection noted it."""
    if facts is None:
        return
    most = facts.get("max_tokens")
    if isinstance(most, int) and not isinstance(most, bool):
        at.append((names.max_tokens, _integer(most)))
    effort = facts.get("effort")
    if isinstance(effort, str):
        _say(at, names.reasoning_level, effort)
    if facts.get("structured_output") is True:
        at.append((names.output_type, "json"))


def _say_usage(at: Attributes, names: Names, usage: Usage, *, is_replayed: bool) -> None:
    """The tokens. The convention's input count includes the prompt cache, the wire's does not."""
    tokens, thinking = billed_tokens(usage)
    if is_replayed:
        at.append((names.replayed_input, _integer(tokens.prompt)))
        at.append((names.replayed_output, _integer(tokens.output)))
        return
    at.append((names.input_tokens, _integer(tokens.prompt)))
    at.append((names.output_tokens, _integer(tokens.output)))
    written = tokens.cache_write_5m + tokens.cache_write_1h
    for name, count in (
        (names.cache_read, tokens.cache_read),
        (names.cache_write, written),
        (names.reasoning_tokens, thinking),
    ):
        if count:
            at.append((name, _integer(count)))
    if not usage.is_final:
        at.append((names.is_usage_final, False))


def _say_money(at: Attributes, names: Names, trace: Trace) -> None:
    if trace.cost_pusd is not None:
        at.append((names.usage_cost, trace.cost_pusd / 1e12))
        at.append((names.cost, trace.cost_pusd / 1e12))
    if trace.baseline_pusd is not None:
        at.append((names.baseline, trace.baseline_pusd / 1e12))
    if trace.saved_pusd is not None:
        at.append((names.saved, trace.saved_pusd / 1e12))
    _say(at, names.price_version, trace.price_version)


def _route(trace: Trace) -> str:
    """The path with its ids taken out; "" where it is none that the router knows."""
    known = _ROUTES.get(trace.endpoint)
    if known is not None:
        return known
    if trace.endpoint == "models":
        return "/v1/models" if trace.path == "/v1/models" else "/v1/models/{model_id}"
    if trace.endpoint == "batches":
        _, _, rest = trace.path[len(_BATCHES) :].partition("/")
        batch_id, _, verb = rest.partition("/")
        if not batch_id:
            return _BATCHES
        if verb in ("", "cancel", "results"):
            return f"{_BATCHES}/{{batch_id}}" + (f"/{verb}" if verb else "")
    return ""


def _ended_s(trace: Trace, attempt: Attempt) -> float:
    return trace.duration_s if attempt.ended_s is None else attempt.ended_s


def _at(trace: Trace, offset_s: float) -> int:
    return max(0, trace.started_at_ns + int(offset_s * 1e9))


def _say(at: Attributes, name: str, value: str | None) -> None:
    if value:
        at.append((name, _text(value)))


def _say_all(at: Attributes, name: str, values: tuple[str, ...]) -> None:
    if values:
        at.append((name, tuple([_text(value) for value in values[:MAX_ITEMS]])))


def _text(value: str) -> str:
    """A text that UTF-8 can say, of bounded length."""
    value = value if len(value) <= MAX_TEXT else value[:MAX_TEXT]
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def _integer(value: int) -> int:
    return min(value, _INT64)
