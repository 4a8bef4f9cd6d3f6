"""The straight line of one request: read, inspect, decide, check, look up, attempt, relay; then account for it.

A phase is added by adding a line here, never by registering something elsewhere.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping

from router.errors import JobsUnavailable
from router.serve.ask import Asker
from router.serve.cached import CachedLine
from router.serve.conversation import recall
from router.serve.deferred.lane import Deferral
from router.serve.exchange import Exchange
from router.serve.headers import Credential, first, router_headers, usd
from router.serve.ledger import book
from router.serve.parts import Answered, Outgoing, Parts
from router.serve.plan import Plan
from router.trace.captured import Content, Kept
from router.trace.context import root_span_id

CAPTURED = ("messages", "count_tokens", "batches")  # endpoints whose content may be captured
MAX_READ_IN_LOOP = 128 * 1024  # bytes of a request body that are read without a thread: a millisecond or so


class Pipeline:
    """The straight line for `POST /v1/messages` and `/v1/messages/count_tokens`.

    Without a `deferral` no request can wait. With `may_wait` False none does, whatever its rule says.
    """

    def __init__(self, parts: Parts, deferral: Deferral | None = None, *, may_wait: bool = True) -> None:
        self._parts = parts
        self._deferral = deferral
        self._may_wait = may_wait
        self._asker = Asker(parts)
        self._cached = None if parts.cache is None else CachedLine(parts, parts.cache, self._asker)

    def begin(self, exchange: Exchange) -> None:
        """Take note of a request that is complete and whose caller is known, before anything is done about it."""
        content, trace = self._parts.content, exchange.trace
        if self._parts.open_book is not None:
            self._parts.open_book.begin(trace)
        if content is not None and trace.endpoint in CAPTURED:
            room = content.room(root_span_id(trace))  # never the caller's choice, as a continued trace id is
            exchange.kept = Kept(room) if room else None

    async def messages(self, exchange: Exchange) -> Outgoing:
        """Answer one Messages request. Raises RouterError when there is no answer to give."""
        plan = await self._plan(exchange, needs_max_tokens=True)
        is_asked = plan.decision.deferred.mode == "require" or first(exchange.incoming.headers, b"prefer") is not None
        if is_asked and self._may_wait:
            outgoing = await self._later(exchange, plan)
            if outgoing is not None:
                return outgoing
        if self._cached is not None and plan.cache_key is not None:
            answered = await self._cached.answer(exchange, plan, plan.cache_key)
        else:
            answer = await self._asker.attempt(exchange, plan)
            answered = await self._asker.receive(exchange, plan, answer)
        exchange.after_last_byte = answered.after_last_byte
        return _outgoing(exchange, answered)

    async def _later(self, exchange: Exchange, plan: Plan) -> Outgoing | None:
        """The answer to a request that can wait: one that is known already, or a 202; None: it is answered at once.

        Raises as `Deferral.take`, and JobsUnavailable where the rule takes only such requests and none can be kept.
        """
        if (
            self._cached is not None
            and plan.cache_key is not None
            and plan.may_look_up
            and not plan.request.is_streaming
        ):
            known = await self._cached.known(exchange, plan, plan.cache_key)
            if known is not None:
                return _outgoing(exchange, known)
        if self._deferral is not None:
            return await self._deferral.take(exchange, plan)
        if plan.decision.deferred.mode == "require":
            message = f"rule `{plan.decision.rule}` takes only requests that can wait, and there is no store for them"
            raise JobsUnavailable(message, hint="set `jobs`, or `traces` to a file; and leave `deferred` on")
        return None

    async def count_tokens(self, exchange: Exchange) -> Outgoing:
        """Count for the model that the request would be routed to; never cached."""
        plan = await self._plan(exchange, needs_max_tokens=False)
        asker = self._asker
        answer = await asker.attempt(exchange, plan, is_counting=True)
        headers = asker.head(exchange, answer)
        body, is_whole = await asker.body(exchange, answer)
        if answer.status >= 400 or not is_whole:
            return _outgoing(exchange, asker.error(exchange, answer, headers, body))
        return _outgoing(exchange, Answered(answer.status, headers, body))

    async def finish(self, exchange: Exchange) -> None:
        """Close the books of one request, after its last byte or the lack of it; the trace goes to every sink.

        The books of a request whose call goes on for others stay open until that call has ended.
        """
        exchange.trace.duration_s = exchange.clock.now_s()
        flight = exchange.flight
        if flight is not None and not flight.is_over:
            trace = exchange.trace
            left = (trace.status, trace.outcome, trace.error_type, trace.error_code)

            def close_late() -> None:
                trace.status, trace.outcome, trace.error_type, trace.error_code = left
                self._close_books(exchange)

            flight.when_over(close_late)
        else:
            self._close_books(exchange)

    async def close(self) -> None:
        """Let the calls that go on for others come to their end."""
        if self._cached is not None:
            await self._cached.close()

    def stats(self) -> Mapping[str, int]:
        """Figures of the calls that requests share."""
        return {} if self._cached is None else self._cached.stats()

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

    def _close_books(self, exchange: Exchange) -> None:
        trace = exchange.trace
        after_last_byte, exchange.after_last_byte = exchange.after_last_byte, None  # it refers back to the exchange
        if after_last_byte is not None:
            after_last_byte()
        if not trace.price_version:
            book(trace, self._parts.catalog)
        if exchange.facts is not None:
            trace.facts = exchange.facts.recorded(exchange.headers_read)
        if exchange.refused:
            trace.why = (*trace.why, *exchange.refused)
        same = first(exchange.incoming.headers, b"idempotency-key")
        if same is not None:
            trace.why = (*trace.why, f"idempotency key {_mark(trace.tenant, same)}: one call with others of this mark")
        trace.overhead_s = min(trace.duration_s, max(0.0, trace.duration_s - exchange.clock.waited_s))
        for sink in self._parts.sinks:
            sink.write(trace)
        if exchange.kept is not None and self._parts.content is not None:
            self._parts.content.write(_content(exchange, exchange.kept))


def _mark(tenant: str, key: bytes) -> str:
    """What links the traces of one call that a client sent again, and tells nothing of the client's own key (F53)."""
    return hashlib.sha256(tenant.encode("utf-8", "replace") + b"\0" + key).hexdigest()[:16]


def _content(exchange: Exchange, kept: Kept) -> Content:
    incoming, trace = exchange.incoming, exchange.trace
    credentials = {incoming.credential.secret()}
    for name, value in incoming.headers:
        if name in (b"x-api-key", b"authorization"):
            credentials.add(Credential(name, value.strip()).secret())
    is_error = trace.outcome != "ok" or trace.status >= 400
    return Content(
        trace.trace_id,
        trace.started_at_ns,
        is_error,
        incoming.body,
        tuple(kept.chunks),
        kept.bytes,
        tuple(credentials),
    )


def _outgoing(exchange: Exchange, answered: Answered) -> Outgoing:
    """The answer with what the router did in its headers; the one exit of the line."""
    trace = exchange.trace
    headers = [*answered.headers, *router_headers(trace)]
    if answered.is_plain and trace.cost_pusd is not None:
        headers.append((b"x-router-cost-usd", usd(trace.cost_pusd)))
    if answered.is_plain and trace.saved_pusd is not None:
        headers.append((b"x-router-saved-usd", usd(trace.saved_pusd)))
    return Outgoing(answered.status, headers, answered.body, answered.relay)
