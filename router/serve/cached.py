"""The part of the line that a caching rule adds: look near, join a call under way, or make one that others may join.

    near        an own copy of the answer              → replayed
    joined      the same request is under way here     → its answer, as it comes
    looked up   the shared store has the answer        → replayed, to all who joined meanwhile
    awaited     another process is at it               → its answer, once it is whole
    asked       nobody is                              → one upstream call, kept if it is complete and successful

What another process is at is begun here only when it is whole: bytes that have gone out cannot be taken back, so a
process that dies half-way costs those who wait for it time, and never a broken answer. A request whose leader failed
before the first byte joins another one once more, or asks for itself. As soon as it is known that what comes is for
the leader alone (its first lane refused, so that a fallback answers; or the status is an error), nobody waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from router.errors import ClientGone, InternalError, RouterError
from router.policy.written import CacheDirective
from router.seams import CacheBackend, CacheEntry
from router.serve.ask import Asker
from router.serve.attempts import sleep
from router.serve.conversation import remember
from router.serve.exchange import Exchange, Stopwatch
from router.serve.flight import Flight, Landed
from router.serve.headers import RawHeaders
from router.serve.ledger import book
from router.serve.paced import PacedRelay
from router.serve.parts import Answered, Parts
from router.serve.plan import Plan
from router.serve.relay import StreamRelay

STORABLE_STOPS = frozenset({"end_turn", "stop_sequence", "tool_use"})  # of answers that are done
_MOST_JOINED = 2  # calls that a request joins before it makes its own
_JOINS_AGAIN_S = 1.0  # after a longer wait in vain it makes its own at once
_MOST_LEADERS = 2  # processes that it waits for, likewise
_MOST_UNANSWERED = 2  # look-ups in a row that may get no answer while another process is known to be at it
_AWAITED_STREAM_S = 30.0  # silence that a client and what lies between should bear; a plain answer is silent anyway
_AWAITED_PLAIN_S = 600.0
_LOOK_AGAIN_S = (0.01, 0.05)  # the first wait, and the longest
_OUTCOMES = {"cut": "cut", "timeout": "cut", "error": "upstream_error"}  # of a leader's attempt: of who joined it


class CachedLine:
    """Answers requests of rules that cache; `cache` is where the answers are kept."""

    def __init__(self, parts: Parts, cache: CacheBackend, asker: Asker) -> None:
        self._parts = parts
        self._cache = cache
        self._asker = asker
        self._flights: dict[str, Flight] = {}
        self._carrying: dict[asyncio.Task[None], Flight] = {}
        self._begun = self._joined = self._passed_on = self._unkept = 0

    async def answer(self, exchange: Exchange, plan: Plan, key: str) -> Answered:
        """The answer to a request with this cache key. Raises RouterError as the upstream call does."""
        trace, directive = exchange.trace, plan.decision.cache
        assert directive is not None  # no key without one
        trace.cache = "miss"
        is_shared = plan.may_look_up and directive.is_coalescing
        joined_s = exchange.clock.now_s()
        for _ in range(_MOST_JOINED if is_shared else 0):
            under_way = self._flights.get(key)
            if under_way is None or not under_way.is_open:
                break
            answered = await self._join(exchange, plan, under_way)
            if answered is not None:
                return answered
            self._passed_on += 1
            if exchange.clock.now_s() - joined_s > _JOINS_AGAIN_S:
                break  # it has waited long enough for others
        if plan.may_look_up:
            started_s = exchange.clock.now_s()
            entry = self._cache.near(key)
            exchange.span("cache", started_s)
            if entry is not None and is_fresh(entry, directive, self._cache.now_ns()):
                return self._replay(exchange, plan, entry, "hit")
        return await self._begin(exchange, plan, key, directive.max_bytes, is_shared=is_shared)

    async def known(self, exchange: Exchange, plan: Plan, key: str) -> Answered | None:
        """The stored answer to a request that would wait for another; None where there is none."""
        directive = plan.decision.cache
        assert directive is not None  # no key without one
        entry = self._cache.near(key)
        if entry is None:
            entry = (await self._cache.look_up(key, directive.max_bytes, is_claiming=False)).entry
        if entry is None or not is_fresh(entry, directive, self._cache.now_ns()):
            return None
        return self._replay(exchange, plan, entry, "hit")

    async def close(self) -> None:
        """Wait for the calls under way; whoever listened to them has gone or been served."""
        for flight in self._carrying.values():
            flight.stop()
        if self._carrying:
            await asyncio.wait(tuple(self._carrying), timeout=5.0)

    def stats(self) -> Mapping[str, int]:
        """Calls under way and begun, requests that joined one, and those that had to see for themselves after it.

        `unkept` are answers that could not be kept because of a bug of ours.
        """
        return {
            "under_way": len(self._carrying),
            "begun": self._begun,
            "joined": self._joined,
            "passed_on": self._passed_on,
            "unkept": self._unkept,
        }

    async def _join(self, exchange: Exchange, plan: Plan, flight: Flight) -> Answered | None:
        """The answer of a call under way; None when it has none that is ours too."""
        trace, started_s = exchange.trace, exchange.clock.now_s()
        listener = flight.listen(exchange)
        is_listening = False
        try:
            landed = await listener.landed(plan.decision.timeouts.first_byte_s)
            exchange.span("coalesced", started_s)
            if landed is None or flight.is_private:
                return None
            if landed.entry is not None:
                return self._replay(exchange, plan, landed.entry, landed.cache)
            if landed.answered is None:
                return None
            self._joined += 1
            directive = plan.decision.cache
            if directive is not None and directive.scope == "tenant":
                trace.request_id = flight.trace.request_id
            trace.cache, trace.status, trace.edits = "coalesced", landed.answered.status, plan.primary.edits
            # Of the headers only what a replay has: limits and organization are those of the leader's credential.
            headers = [*_kept_headers(landed.answered.headers), (b"request-id", (trace.request_id or "").encode())]
            answered = replace(landed.answered, headers=headers)
            if answered.relay is None:
                self._account(exchange, flight)
                self._remember(exchange, plan)
                return replace(answered, after_last_byte=None)
            listener.on_stop = lambda: self._remember(exchange, plan)
            is_listening = True
            return replace(answered, relay=listener, after_last_byte=lambda: self._account(exchange, flight))
        finally:
            if not is_listening:
                flight.leave(listener)

    async def _begin(self, exchange: Exchange, plan: Plan, key: str, max_bytes: int, *, is_shared: bool) -> Answered:
        """Make the call, for oneself and for whoever joins."""
        flight = Flight(max_bytes, exchange.trace)
        there = self._flights.get(key)
        is_shared = is_shared and (there is None or not there.is_open)
        if is_shared:
            self._flights[key] = flight
        self._begun += 1
        listener = flight.listen(exchange, is_leader=True)
        exchange.flight = flight
        carrying = replace(exchange, watch=flight.watch, clock=exchange.clock.beside(), flight=None)
        carried = self._carry(flight, carrying, exchange.clock, plan, key, is_shared)
        task = flight.loop.create_task(carried)
        self._carrying[task] = flight
        task.add_done_callback(self._carrying.pop)
        is_listening = False
        try:
            landed = await listener.landed()
            if landed is None or (landed.entry is None and landed.answered is None):
                raise (landed and landed.failure) or ClientGone("the call ended without an answer")
            if landed.entry is not None:
                return self._replay(exchange, plan, landed.entry, landed.cache)
            assert landed.answered is not None
            if landed.answered.relay is None:
                return landed.answered
            is_listening = True
            return replace(landed.answered, relay=listener, after_last_byte=None)  # the flight accounts
        finally:
            if not is_listening:
                flight.leave(listener)

    async def _carry(
        self, flight: Flight, exchange: Exchange, leader: Stopwatch, plan: Plan, key: str, is_shared: bool
    ) -> None:
        """The task of a flight: `exchange` is that of its leader, with the watch and a stopwatch of the flight.

        The leader waits all the while; what the call itself did not wait is not waiting, but the router's own time.
        """
        began_s = exchange.clock.now_s()
        failure: BaseException | None = None
        is_complete = False
        try:
            if plan.may_look_up:
                landed, flight.lead = await self._look_up(exchange, key, plan, is_claiming=is_shared)
                if landed is not None:
                    flight.land(landed)
                    return
            asked_at_ns = self._cache.now_ns()
            exchange.trace.cache_reason = "failed"  # until it is known to be whole
            only_mine = partial(self._close_to_others, key, flight, is_private=True)
            answer = await self._asker.attempt(exchange, plan, on_fallback=only_mine)
            if answer.target != plan.primary or answer.status != 200:
                # A fallback's answer is not that of the model in the key: it is for the one whose route leads there.
                only_mine()
                exchange.trace.cache_reason = "fallback" if answer.target != plan.primary else "failed"
            answered = await self._asker.receive(exchange, plan, answer)
            if not answered.is_message:
                only_mine()
            if answered.relay is None:
                body = answered.body
            else:
                flight.land(Landed(answered=answered))
                is_complete = await self._pump(flight, answered, key, exchange.clock)
                body = flight.whole(is_complete=is_complete)
                if is_complete and body is None and not flight.is_private:
                    exchange.trace.cache_reason = "too-large"
            if not flight.is_private and body is not None:
                self._keep(exchange, plan, key, flight, answered, body, asked_at_ns)
            if answered.relay is None:
                flight.land(Landed(answered=answered))
        except asyncio.CancelledError:
            failure = ClientGone("the server is stopping")
            raise
        except RouterError as exc:
            failure = exc
        except Exception as exc:  # our own bug: said once, here; those who listen hear that there was one
            self._parts.report(exchange.trace.trace_id, exc)
            failure = InternalError("the router failed; the operator's log has the trace id")
        finally:
            self._close_to_others(key, flight)
            clock = exchange.clock
            leader.waited_s -= max(0.0, clock.now_s() - began_s - clock.waited_s)
            flight.end(is_complete=is_complete, failure=failure)

    async def _look_up(
        self, exchange: Exchange, key: str, plan: Plan, *, is_claiming: bool
    ) -> tuple[Landed | None, str | None]:
        """What the shared store has, after waiting for another process where one is at it → (that, our lead)."""
        directive = plan.decision.cache
        assert directive is not None
        started_s = exchange.clock.now_s()
        most_s = _AWAITED_STREAM_S if plan.request.is_streaming else _AWAITED_PLAIN_S
        rules_s = plan.decision.timeouts.first_byte_s
        if rules_s is not None:
            most_s = min(most_s, rules_s)
        leaders: list[str] = []
        unanswered = 0  # in a row
        wait_s, longest_s = _LOOK_AGAIN_S
        while True:
            follows = leaders[-1] if leaders else None
            found = await self._cache.look_up(key, directive.max_bytes, follows=follows, is_claiming=is_claiming)
            unanswered = unanswered + 1 if found.is_unanswered else 0
            is_worth_waiting = bool(leaders) and 0 < unanswered <= _MOST_UNANSWERED
            if found.entry is not None or (found.leader is None and not is_worth_waiting):
                break
            if found.leader is not None and found.leader not in leaders:
                leaders.append(found.leader)
            if len(leaders) > _MOST_LEADERS or exchange.clock.now_s() - started_s > most_s:
                break
            await sleep(exchange, wait_s)
            wait_s = min(wait_s * 1.5, longest_s)
        exchange.span("shared cache", started_s)
        if found.entry is None or not (leaders or is_fresh(found.entry, directive, self._cache.now_ns())):
            return None, found.lead
        return Landed(entry=found.entry, cache="coalesced" if leaders else "hit"), None

    async def _pump(self, flight: Flight, answered: Answered, key: str, clock: Stopwatch) -> bool:
        """Feed the flight with all that the relay brings; whether it came to its end."""
        relay = answered.relay
        assert relay is not None
        try:
            if isinstance(relay, StreamRelay):
                relay.on_stop = partial(flight.stopped, relay.on_stop)
            while chunk := await relay.read():
                flight.feed(chunk)
                if not flight.is_open:
                    self._close_to_others(key, flight)
                    waits_s = clock.now_s()
                    await flight.room()
                    clock.waited_s += clock.now_s() - waits_s
        finally:
            relay.abort()
            if answered.after_last_byte is not None:
                answered.after_last_byte()
        return relay.is_complete

    def _keep(
        self,
        exchange: Exchange,
        plan: Plan,
        key: str,
        flight: Flight,
        answered: Answered,
        body: bytes,
        asked_at_ns: int,
    ) -> None:
        """Store the answer where it may be, else give it to the processes that wait; either ends the lead.

        It fails open: an answer that cannot be kept is an answer all the same.
        """
        trace, directive = exchange.trace, plan.decision.cache
        assert directive is not None
        is_done, is_small = trace.stop_reason in STORABLE_STOPS, len(body) <= directive.max_bytes
        trace.cache_reason = "refused" if is_done and is_small else "too-large" if is_done else "stop-reason"
        if not is_small:
            return
        lead, flight.lead = flight.lead, None
        try:
            entry = self._entry(exchange, plan, answered, body, asked_at_ns)
            if is_done:
                trace.is_stored = self._cache.put(key, entry, lead)
                trace.cache_reason = "" if trace.is_stored else "refused"
            elif lead is not None:
                self._cache.hand_over(key, entry, lead)
        except Exception as exc:
            self._unkept += 1
            self._parts.report(trace.trace_id, exc)

    def _entry(self, exchange: Exchange, plan: Plan, answered: Answered, body: bytes, asked_at_ns: int) -> CacheEntry:
        trace, directive = exchange.trace, plan.decision.cache
        assert directive is not None
        now_ns = self._cache.now_ns()
        return CacheEntry(
            status=answered.status,
            headers=_kept_headers(answered.headers),
            body=body,
            usage=trace.usage,
            model_answered=trace.model_answered,
            stop_reason=trace.stop_reason,
            asked_at_ns=asked_at_ns,
            expires_at_ns=now_ns + int(directive.ttl_s * 1e9),
            stored_at_ns=now_ns,
            tenant=exchange.incoming.tenant,
            rule=trace.rule,
            model=plan.primary.model,
        )

    def _replay(self, exchange: Exchange, plan: Plan, entry: CacheEntry, word: str) -> Answered:
        """A stored answer, byte for byte; it costs nothing and saves what the asked model would have cost."""
        trace, directive = exchange.trace, plan.decision.cache
        trace.cache, trace.status, trace.edits = word, entry.status, plan.primary.edits
        trace.usage, trace.model_answered, trace.stop_reason = entry.usage, entry.model_answered, entry.stop_reason
        if plan.request.is_streaming:
            trace.ttft_s = exchange.clock.now_s()
        book(trace, self._parts.catalog, is_hit=True)
        self._remember(exchange, plan)
        age_s = max(0, (self._cache.now_ns() - entry.stored_at_ns) // 10**9)
        request_id = (trace.request_id or "").encode()
        headers: RawHeaders = [*entry.headers, (b"request-id", request_id), (b"age", str(age_s).encode())]
        if plan.request.is_streaming and directive is not None and directive.pace_s > 0:
            return Answered(entry.status, headers, None, PacedRelay(exchange, entry.body, directive.pace_s))
        return Answered(entry.status, headers, entry.body, is_plain=not plan.request.is_streaming)

    def _account(self, exchange: Exchange, flight: Flight) -> None:
        """What the shared answer says of itself is said of this request too; the leader pays for it.

        One that left before the end knows no usage: it saved nothing that it has had.
        """
        trace, leader, landed = exchange.trace, flight.trace, flight.landed
        is_metered = flight.is_over or (landed is not None and landed.answered is not None and landed.answered.is_plain)
        is_had = is_metered and trace.outcome == "ok"
        if is_had:
            trace.usage, trace.model_answered, trace.stop_reason = (
                leader.usage,
                leader.model_answered,
                leader.stop_reason,
            )
            ended = leader.attempts[-1].outcome if leader.attempts else "ok"
            if ended in _OUTCOMES:
                trace.outcome, trace.error_type = _OUTCOMES[ended], leader.attempts[-1].error_type
        book(trace, self._parts.catalog, is_hit=is_had)

    def _remember(self, exchange: Exchange, plan: Plan) -> None:
        remember(exchange, self._parts.affinity, plan, self._parts.catalog, None)

    def _close_to_others(self, key: str, flight: Flight, *, is_private: bool = False) -> None:
        """Nobody joins any more, here or in another process, and whoever waits there goes on.

        `is_private`: those who have joined go on too.
        """
        if is_private:
            flight.close_to_others()
        if self._flights.get(key) is flight:
            del self._flights[key]
        lead, flight.lead = flight.lead, None
        if lead is not None:
            self._cache.release(key, lead)


def is_fresh(entry: CacheEntry, directive: CacheDirective, now_ns: int) -> bool:
    """Whether the rule as it is now still wants this answer; one stored under a longer `ttl` may be too old."""
    return now_ns - entry.stored_at_ns <= directive.ttl_s * 1e9


def _kept_headers(headers: RawHeaders) -> RawHeaders:
    return [(name, value) for name, value in headers if name == b"content-type"]
