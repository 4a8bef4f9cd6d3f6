"""Ask the upstream, and receive what it answers: metered on its way, errors said in the API's shape."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import orjson

from router.affinity.thinking import answered_signatures
from router.errors import ClientGone, UpstreamBroken, UpstreamTimeout, error_body
from router.policy.written import NO_RETRY, OWN_TIMEOUTS, Timeouts
from router.seams import Deadlines, UpstreamCall
from router.serve.attempts import Answer, Means, Target, walk
from router.serve.conversation import remember
from router.serve.exchange import Exchange
from router.serve.headers import RawHeaders, downstream_headers, first, header_value, with_trace_context
from router.serve.ledger import book
from router.serve.parts import Answered, Parts
from router.serve.plan import Plan
from router.serve.relay import RawRelay, StreamRelay, collect
from router.usage import Usage, UsageMeter

MAX_PLAIN_ANSWER = 32 * 1024 * 1024  # bytes of a plain answer held to be metered; a larger one is passed on unmetered

# Source: API reference, "Errors". Any other status is an `api_error`, or below 500 an `invalid_request_error`.
_ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Asker:
    """Makes the upstream call of a plan. Whoever asks for itself or for others gives the exchange to account to."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        # Counts of tokens are answered elsewhere than messages: they say nothing of a lane, and earn no retries.
        self._means_of_counts = Means(parts.means.upstream, parts.means.jitter)

    async def attempt(
        self,
        exchange: Exchange,
        plan: Plan,
        *,
        is_counting: bool = False,
        on_fallback: Callable[[], None] | None = None,
    ) -> Answer:
        """Walk the route of the plan; see `walk`. A count is not retried, and goes by no breaker.

        `on_fallback` is told when a lane behind the first is asked, before it is.
        """

        def call_for(target: Target) -> UpstreamCall:
            if on_fallback is not None and target is not plan.primary:
                on_fallback()
            return self._call(exchange, plan, target)

        total_s = plan.decision.timeouts.total_s
        return await walk(
            exchange,
            self._means_of_counts if is_counting else self._parts.means,
            chain((plan.primary,), plan.fallbacks),
            call_for,
            NO_RETRY if is_counting else plan.decision.retry,
            self._parts.deadlines.total if total_s is None else total_s,
        )

    async def receive(self, exchange: Exchange, plan: Plan, answer: Answer) -> Answered:
        """The upstream's answer on its way down: a stream as it comes, a plain answer whole, metered either way.

        Raises UpstreamBroken, UpstreamTimeout and ClientGone where it does not come to its end.
        """
        headers = self.head(exchange, answer)
        kind = first(headers, b"content-type") or b""
        reply = answer.reply
        meter = UsageMeter(answer.target.model)
        if reply is not None and not _is_readable(headers):  # compressed although asked not to be: passed on unread
            exchange.watch.during(reply.abort)
            return Answered(answer.status, headers, None, RawRelay(exchange, reply))
        if reply is not None and answer.status < 300 and kind.startswith(b"text/event-stream"):
            exchange.watch.during(reply.abort)
            stream = StreamRelay(exchange, reply, answer.attempt, meter)
            stream.on_stop = lambda signatures: self._remember(exchange, plan, meter.usage(), meter.model, signatures)
            return Answered(
                answer.status,
                _without_length(headers),  # an error event may have to follow
                None,
                stream,
                is_message=True,
                after_last_byte=lambda: self._meter(exchange, answer, meter),
            )
        body, is_whole = await self.body(exchange, answer)
        if reply is not None and not is_whole:
            return Answered(answer.status, headers, None, RawRelay(exchange, reply, body))
        if answer.status >= 400:
            return self.error(exchange, answer, headers, body)
        payload = json_object(body)
        if payload is None:
            answer.attempt.outcome = "broken"
            answer.failed_late(self._parts.means)
            raise UpstreamBroken(f"the upstream answered {answer.status} with a body that is not a JSON object")
        meter.message(payload)
        self._meter(exchange, answer, meter)
        signatures = answered_signatures(payload.get("content"))
        self._remember(exchange, plan, exchange.trace.usage, meter.model, signatures)
        return Answered(answer.status, headers, body, is_plain=True, is_message=True)

    def head(self, exchange: Exchange, answer: Answer) -> RawHeaders:
        """Note how the answer begins; its headers for the client. Raises UpstreamBroken for a redirect.

        A redirect is neither followed nor passed on: a client library would follow it with its credential.
        """
        trace = exchange.trace
        trace.lane, trace.model_sent = answer.target.lane.name, answer.target.model
        trace.edits = answer.target.edits
        trace.status = answer.status
        if answer.attempt.request_id is not None:
            trace.request_id = answer.attempt.request_id
        if 300 <= answer.status < 400:
            answer.attempt.outcome = "broken"
            if answer.reply is not None:
                answer.reply.abort()
            raise UpstreamBroken(f"the upstream answered {answer.status}, a redirect, which is not followed")
        return downstream_headers(answer.headers)

    async def body(self, exchange: Exchange, answer: Answer) -> tuple[bytes, bool]:
        """The body of an answer → (bytes, whether that is all of it); a failure is noted in the attempt."""
        if answer.reply is None:
            return answer.body or b"", True
        exchange.watch.during(answer.reply.abort)
        try:
            body, is_whole = await collect(exchange, answer.reply, MAX_PLAIN_ANSWER)
        except UpstreamTimeout:
            answer.attempt.outcome = "timeout"
            answer.failed_late(self._parts.means)
            raise
        except UpstreamBroken:
            answer.attempt.outcome = "broken"
            answer.failed_late(self._parts.means)
            raise
        except ClientGone:
            answer.attempt.outcome = "client_closed"
            raise
        if is_whole:
            exchange.watch.during(None)
        return body, is_whole

    def error(self, exchange: Exchange, answer: Answer, headers: RawHeaders, body: bytes) -> Answered:
        """An upstream error as it came; what is not the API's (an HTML page of a proxy) is said in the API's shape."""
        if not _is_readable(headers):  # compressed although asked not to be: passed on unread
            exchange.trace.error_type = answer.attempt.error_type = "api_error"
            book(exchange.trace, self._parts.catalog)
            return Answered(answer.status, headers, body, is_plain=True)
        payload = json_object(body)
        error = payload.get("error") if payload is not None else None
        kind = _ERROR_TYPES.get(answer.status, "api_error" if answer.status >= 500 else "invalid_request_error")
        request_id = exchange.trace.request_id or ""
        if payload is not None and isinstance(payload.get("request_id"), str):
            request_id = header_value(str(payload["request_id"])).decode()
        if isinstance(error, dict) and isinstance(error.get("type"), str):
            kind = error["type"]
        elif payload is None:
            body = error_body(
                kind, f"the upstream answered {answer.status} with something that is not an API error", request_id
            )
            skipped = (b"content-type", b"content-length", b"content-encoding")
            headers = [(name, value) for name, value in headers if name not in skipped]
            headers.append((b"content-type", b"application/json"))
        if first(headers, b"request-id") is None:
            headers = [*headers, (b"request-id", request_id.encode())]
        exchange.trace.error_type = answer.attempt.error_type = kind
        book(exchange.trace, self._parts.catalog)
        return Answered(answer.status, headers, body, is_plain=True)

    def _call(self, exchange: Exchange, plan: Plan, target: Target) -> UpstreamCall:
        incoming = exchange.incoming
        deadlines, timeouts = self._parts.deadlines, plan.decision.timeouts
        if timeouts is not OWN_TIMEOUTS or len(exchange.trace.attempts) > 1:
            deadlines = _deadlines(deadlines, timeouts, exchange.clock.now_s())
        return UpstreamCall(
            "POST",
            incoming.target,
            with_trace_context(plan.headers, exchange.trace) if self._parts.sends_trace_context else plan.headers,
            (target.adapted or plan.request).with_model(target.model),
            deadlines,
        )

    def _meter(self, exchange: Exchange, answer: Answer, meter: UsageMeter) -> None:
        """Note what the answer says of itself, and what it cost."""
        trace, attempt = exchange.trace, answer.attempt
        attempt.usage = trace.usage = meter.usage()
        attempt.ended_s = exchange.clock.now_s()
        trace.model_answered, trace.stop_reason = meter.model, meter.stop_reason
        if meter.error_type is not None:
            trace.error_type = meter.error_type
        answer.failed_late(self._parts.means)
        book(trace, self._parts.catalog)

    def _remember(
        self, exchange: Exchange, plan: Plan, usage: Usage | None, answered: str | None, signatures: tuple[str, ...]
    ) -> None:
        parts = self._parts
        remember(exchange, parts.affinity, plan, parts.catalog, usage, answered, signatures)


def _deadlines(own: Deadlines, timeouts: Timeouts, spent_s: float) -> Deadlines:
    """The limits of one call: the rule's where it says some, and of the total what is left of it."""

    def pick(rules_s: float | None, own_s: float) -> float:
        return own_s if rules_s is None else rules_s

    connect_s = pick(timeouts.connect_s, own.connect)
    return Deadlines(
        connect=connect_s,
        tls=pick(timeouts.connect_s, own.tls),
        first_byte=pick(timeouts.first_byte_s, own.first_byte),
        idle=pick(timeouts.idle_s, own.idle),
        total=max(0.001, pick(timeouts.total_s, own.total) - spent_s),
    )


def _is_readable(headers: RawHeaders) -> bool:
    """Whether the body is sent as it is, without compression."""
    return first(headers, b"content-encoding") in (None, b"", b"identity")


def _without_length(headers: RawHeaders) -> RawHeaders:
    return [(name, value) for name, value in headers if name != b"content-length"]


def json_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object that `body` is; None when it is none."""
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return payload if isinstance(payload, dict) else None
