"""The straight line of one request: read, inspect, decide, check, look up, attempt, relay; then account for it.

A phase is added by adding a line here, never by registering something elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import orjson

from router.affinity.thinking import answered_signatures
from router.catalog.lookup import Catalog
from router.errors import ClientGone, UpstreamBroken, UpstreamTimeout, error_body
from router.seams import AffinityStore, CacheBackend, CacheEntry, Deadlines, TraceSink, Upstream, UpstreamCall
from router.serve.attempts import Answer, Target, walk
from router.serve.conversation import recall, remember
from router.serve.exchange import Exchange
from router.serve.headers import RawHeaders, downstream_headers, first, header_value, router_headers, upstream_headers
from router.serve.ledger import book
from router.serve.plan import Plan, Planner
from router.serve.relay import RawRelay, Relay, StreamRelay, collect
from router.usage import UsageMeter

MAX_PLAIN_ANSWER = 32 * 1024 * 1024  # bytes of a plain answer held to be metered; a larger one is passed on unmetered
MAX_READ_IN_LOOP = 128 * 1024  # bytes of a request body that are read without a thread: a millisecond or so

_STORABLE_STOPS = frozenset({"end_turn", "stop_sequence", "tool_use"})

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


@dataclass(frozen=True, slots=True)
class Parts:
    """What the line needs from outside, joined by `app`.

    `wall_clock` gives Unix seconds, `jitter` numbers in [0, 1).
    """

    planner: Planner
    catalog: Catalog
    cache: CacheBackend | None
    affinity: AffinityStore | None
    upstream: Upstream
    deadlines: Deadlines
    sinks: tuple[TraceSink, ...]
    wall_clock: Callable[[], float]
    jitter: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What goes to the client: a whole body, or a relay to read from."""

    status: int
    headers: RawHeaders
    body: bytes | None
    relay: Relay | None = None


class Pipeline:
    """The straight line for `POST /v1/messages` and `/v1/messages/count_tokens`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def messages(self, exchange: Exchange) -> Outgoing:
        """Answer one Messages request. Raises RouterError when there is no answer to give."""
        plan = await self._plan(exchange, needs_max_tokens=True)
        if plan.cache_key is not None:
            found = await self._look_up(exchange, plan, plan.cache_key)
            if found is not None:
                return self._replay(exchange, plan, found)
        answer = await self._attempt(exchange, plan)
        return await self._relay(exchange, plan, answer)

    async def count_tokens(self, exchange: Exchange) -> Outgoing:
        """Count for the model that the request would be routed to; never cached."""
        plan = await self._plan(exchange, needs_max_tokens=False)
        answer = await walk(
            exchange,
            self._parts.upstream,
            chain((plan.primary,), plan.fallbacks),
            0,
            lambda target: self._call(exchange, plan, target),
            self._parts.jitter,
        )
        headers = self._head(exchange, answer)
        body, is_whole = await self._body(exchange, answer)
        if answer.status >= 400 or not is_whole:
            return self._error(exchange, answer, headers, body)
        return Outgoing(answer.status, self._headers(exchange, headers), body)

    async def _plan(self, exchange: Exchange, *, needs_max_tokens: bool) -> Plan:
        """The plan of a request; a large body is read in a thread, so that other requests go on meanwhile."""
        planner, affinity = self._parts.planner, self._parts.affinity
        if len(exchange.incoming.body) <= MAX_READ_IN_LOOP:
            understood = planner.understand(exchange, needs_max_tokens=needs_max_tokens)
            known = await recall(exchange, affinity, understood)
            return planner.plan(exchange, understood, known.binding, known.thinkers, self._parts.wall_clock())
        understood = await asyncio.to_thread(planner.understand, exchange, needs_max_tokens=needs_max_tokens)
        known = await recall(exchange, affinity, understood)
        return await asyncio.to_thread(
            planner.plan, exchange, understood, known.binding, known.thinkers, self._parts.wall_clock()
        )

    async def finish(self, exchange: Exchange) -> None:
        """Close the books of one request, after its last byte or the lack of it; the trace goes to every sink."""
        trace = exchange.trace
        after_last_byte, exchange.after_last_byte = exchange.after_last_byte, None  # it refers back to the exchange
        if after_last_byte is not None:
            await after_last_byte()
        if not trace.price_version:
            book(trace, self._parts.catalog)
        if exchange.facts is not None:
            trace.facts = exchange.facts.recorded(exchange.headers_read)
        if exchange.refused:
            trace.why = (*trace.why, *exchange.refused)
        trace.duration_s = exchange.clock.now_s()
        trace.overhead_s = max(0.0, trace.duration_s - exchange.clock.waited_s)
        for sink in self._parts.sinks:
            sink.write(trace)

    async def _look_up(self, exchange: Exchange, plan: Plan, key: str) -> CacheEntry | None:
        exchange.trace.cache = "miss"
        if not plan.may_look_up:
            return None
        cache = self._parts.cache
        assert cache is not None
        started_s = exchange.clock.now_s()
        found = await cache.get(key)
        exchange.span("cache", started_s)
        return found

    def _replay(self, exchange: Exchange, plan: Plan, entry: CacheEntry) -> Outgoing:
        """A stored answer, byte for byte; it costs nothing and saves what the asked model would have cost."""
        trace = exchange.trace
        trace.cache, trace.status, trace.edits = "hit", entry.status, plan.primary.edits
        trace.usage, trace.model_answered, trace.stop_reason = entry.usage, entry.model_answered, entry.stop_reason
        if plan.request.is_streaming:
            trace.ttft_s = exchange.clock.now_s()
        book(exchange.trace, self._parts.catalog, is_hit=True)
        remember(exchange, self._parts.affinity, plan, self._parts.catalog, None)
        age_s = max(0, int(self._parts.wall_clock() - entry.stored_at_ns / 1e9))
        request_id = (trace.request_id or "").encode()
        headers = [*entry.headers, (b"request-id", request_id), (b"age", str(age_s).encode())]
        return Outgoing(
            entry.status, self._headers(exchange, headers, is_plain=not plan.request.is_streaming), entry.body
        )

    async def _attempt(self, exchange: Exchange, plan: Plan) -> Answer:
        return await walk(
            exchange,
            self._parts.upstream,
            chain((plan.primary,), plan.fallbacks),
            plan.decision.retries,
            lambda target: self._call(exchange, plan, target),
            self._parts.jitter,
        )

    def _call(self, exchange: Exchange, plan: Plan, target: Target) -> UpstreamCall:
        incoming = exchange.incoming
        deadlines = self._parts.deadlines
        if plan.decision.timeout_s is not None:
            deadlines = Deadlines(deadlines.connect, deadlines.tls, plan.decision.timeout_s, deadlines.idle)
        return UpstreamCall(
            "POST",
            incoming.target,
            upstream_headers(incoming.headers, incoming.credential, is_metered=True),
            (target.adapted or plan.request).with_model(target.model),
            deadlines,
        )

    async def _relay(self, exchange: Exchange, plan: Plan, answer: Answer) -> Outgoing:
        """The upstream's answer on its way down: a stream as it comes, a plain answer whole, metered either way."""
        headers = self._head(exchange, answer)
        kind = first(headers, b"content-type") or b""
        reply = answer.reply
        meter = UsageMeter()
        if reply is not None and not _is_readable(headers):  # compressed although asked not to be: passed on unread
            exchange.watch.during(reply.abort)
            return Outgoing(answer.status, self._headers(exchange, headers), None, RawRelay(exchange, reply))
        if reply is not None and answer.status < 300 and kind.startswith(b"text/event-stream"):
            exchange.watch.during(reply.abort)
            headers = _without_length(headers)  # an error event may have to follow
            keep = plan.decision.cache.max_bytes if plan.cache_key and plan.decision.cache else 0
            stream = StreamRelay(exchange, reply, answer.attempt, meter, keep)
            stream.on_stop = lambda signatures: self._remember(exchange, plan, meter, signatures)
            exchange.after_last_byte = lambda: self._finish_stream(exchange, plan, answer, meter, stream, headers)
            return Outgoing(answer.status, self._headers(exchange, headers), None, stream)
        body, is_whole = await self._body(exchange, answer)
        if reply is not None and not is_whole:
            return Outgoing(answer.status, self._headers(exchange, headers), None, RawRelay(exchange, reply, body))
        if answer.status >= 400:
            return self._error(exchange, answer, headers, body)
        payload = json_object(body)
        if payload is None:
            answer.attempt.outcome = "broken"
            raise UpstreamBroken(f"the upstream answered {answer.status} with a body that is not a JSON object")
        meter.message(payload)
        self._meter(exchange, answer, meter)
        await self._store(exchange, plan, answer, headers, body)
        self._remember(exchange, plan, meter, answered_signatures(payload.get("content")))
        return Outgoing(answer.status, self._headers(exchange, headers, is_plain=True), body)

    def _remember(self, exchange: Exchange, plan: Plan, meter: UsageMeter, signatures: tuple[str, ...]) -> None:
        parts = self._parts
        remember(exchange, parts.affinity, plan, parts.catalog, meter.usage(), meter.model, signatures)

    def _head(self, exchange: Exchange, answer: Answer) -> RawHeaders:
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

    async def _body(self, exchange: Exchange, answer: Answer) -> tuple[bytes, bool]:
        """The body of an answer → (bytes, whether that is all of it); a failure is noted in the attempt."""
        if answer.reply is None:
            return answer.body or b"", True
        exchange.watch.during(answer.reply.abort)
        try:
            body, is_whole = await collect(exchange, answer.reply, MAX_PLAIN_ANSWER)
        except UpstreamTimeout:
            answer.attempt.outcome = "timeout"
            raise
        except UpstreamBroken:
            answer.attempt.outcome = "broken"
            raise
        except ClientGone:
            answer.attempt.outcome = "client_closed"
            raise
        if is_whole:
            exchange.watch.during(None)
        return body, is_whole

    def _error(self, exchange: Exchange, answer: Answer, headers: RawHeaders, body: bytes) -> Outgoing:
        """An upstream error as it came; what is not the API's (an HTML page of a proxy) is said in the API's shape."""
        if not _is_readable(headers):  # compressed although asked not to be: passed on unread
            exchange.trace.error_type = answer.attempt.error_type = "api_error"
            book(exchange.trace, self._parts.catalog)
            return Outgoing(answer.status, self._headers(exchange, headers, is_plain=True), body)
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
        return Outgoing(answer.status, self._headers(exchange, headers, is_plain=True), body)

    async def _finish_stream(
        self,
        exchange: Exchange,
        plan: Plan,
        answer: Answer,
        meter: UsageMeter,
        stream: StreamRelay,
        headers: RawHeaders,
    ) -> None:
        self._meter(exchange, answer, meter)
        if (kept := stream.kept) is not None:
            await self._store(exchange, plan, answer, headers, kept)

    def _meter(self, exchange: Exchange, answer: Answer, meter: UsageMeter) -> None:
        """Note what the answer says of itself, and what it cost."""
        trace, attempt = exchange.trace, answer.attempt
        attempt.usage = trace.usage = meter.usage()
        attempt.ended_s = exchange.clock.now_s()
        trace.model_answered, trace.stop_reason = meter.model, meter.stop_reason
        if meter.error_type is not None:
            trace.error_type = meter.error_type
        book(trace, self._parts.catalog)

    async def _store(self, exchange: Exchange, plan: Plan, answer: Answer, headers: RawHeaders, body: bytes) -> None:
        """Keep a complete, successful answer where the rule caches."""
        trace, directive, cache = exchange.trace, plan.decision.cache, self._parts.cache
        if plan.cache_key is None or directive is None or cache is None or answer.status != 200:
            return
        if trace.stop_reason not in _STORABLE_STOPS or len(body) > directive.max_bytes:
            return
        if answer.target != plan.primary:
            return  # a fallback's answer is not the answer of the model in the key
        kept = [(name, value) for name, value in headers if name == b"content-type"]
        entry = CacheEntry(
            answer.status,
            kept,
            body,
            trace.usage,
            trace.model_answered,
            trace.stop_reason,
            int(self._parts.wall_clock() * 1e9),
        )
        trace.is_stored = await cache.put(plan.cache_key, entry, directive.ttl_s)

    def _headers(self, exchange: Exchange, headers: RawHeaders, *, is_plain: bool = False) -> RawHeaders:
        """The answer's headers, with what the router did."""
        trace = exchange.trace
        added = [*headers, *router_headers(trace)]
        if is_plain and trace.cost_pusd is not None:
            added.append((b"x-router-cost-usd", _usd(trace.cost_pusd)))
        if is_plain and trace.saved_pusd is not None:
            added.append((b"x-router-saved-usd", _usd(trace.saved_pusd)))
        return added


def _is_readable(headers: RawHeaders) -> bool:
    """Whether the body is sent as it is, without compression."""
    return first(headers, b"content-encoding") in (None, b"", b"identity")


def _without_length(headers: RawHeaders) -> RawHeaders:
    return [(name, value) for name, value in headers if name != b"content-length"]


def _usd(pusd: int) -> bytes:
    """Pico-dollars as a decimal number of dollars, exact and without an exponent."""
    sign, pusd = ("-", -pusd) if pusd < 0 else ("", pusd)
    whole, rest = divmod(pusd, 10**12)
    return f"{sign}{whole}.{rest:012d}".rstrip("0").rstrip(".").encode()


def json_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object that `body` is; None when it is none."""
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return payload if isinstance(payload, dict) else None
