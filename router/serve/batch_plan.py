"""A Message Batch read, decided item by item, and spliced, before anything is sent.

Each item is decided as a request of its own would be, with what differs in a batch: it has one lane and no fallback, a
lane whose model takes no batches is left out, only a rule that says so has the cache looked at (`batch_cached.py`), and
one revision of the policies decides about all. An item that the API would not take in a batch goes up as it came and
fails there, alone.

A hundred thousand items are seconds of work, and other requests live in the same loop: after `SLICE_S` of it they get
their turn. An item of over a megabyte is read in a thread, one at a time in the whole router, with the collector of
cycles paused: JSON has none, and the collector would go through all of it again and again. What is known of a
conversation is asked for once per slice, for all its items that go on with one.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from dataclasses import dataclass, field

import orjson

from router.errors import ClientGone, DeniedByPolicy, InvalidRequest, JobsUnavailable, UnknownTarget
from router.facts.inspect import Caller
from router.jobs.decision import DecisionWriter, ItemDecision
from router.jobs.deferred import JOB_ID
from router.policy.compile import CompiledPolicy, PolicySet
from router.serve.attempts import Target
from router.serve.batch_cached import KnownItems
from router.serve.batch_kept import caches_batches
from router.serve.conversation import Recalled, recall
from router.serve.exchange import Exchange
from router.serve.headers import first
from router.serve.parts import Parts
from router.serve.pipeline import MAX_READ_IN_LOOP
from router.serve.plan import Understood, policy_of
from router.serve.route import Router
from router.trace.record import BATCH_ITEM, Trace
from router.wire.batch import BatchItem, BatchReader, Spliced

SLICE_S = 0.003  # of work, before other requests get their turn
BREATH_S = 0.001  # of that turn
_LONGEST_BREATH_S = 0.25  # after an item that took long: what waited meanwhile may need several turns
_LARGE_ITEM = 1024 * 1024  # bytes; parsed it may take twenty times as much, so there is one at a time
_PUT_AT_ONCE = 1_000  # decisions
_NOTHING = Recalled()


@dataclass(slots=True)
class BatchPlan:
    """A batch as it goes up, and what was decided. The counts are of routed items, by name."""

    body: bytes | Spliced
    items: int = 0
    moved: int = 0  # to another model than the one asked for
    unrouted: int = 0  # which the API will fail
    edited: int = 0
    cached: int | None = None  # left out of `body`, because their answers are kept; None: no item could be
    lanes: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    is_kept: bool = True  # every decision was taken by the store


@dataclass(slots=True)
class _Judged:
    """An item that was understood, with an exchange of its own. `place` is its number, where the cache is looked at."""

    item: BatchItem
    exchange: Exchange
    understood: Understood
    place: int


class BatchPlanner:
    """Plans one batch. `ticket` is what decisions are kept under until the batch has an id.

    `one_large` is shared by all planners of a router: whoever holds it may read a large item.
    """

    def __init__(self, parts: Parts, exchange: Exchange, ticket: str, one_large: asyncio.Lock) -> None:
        self._parts = parts
        self._exchange = exchange
        self._ticket = ticket
        self._one_large = one_large
        self._writer = DecisionWriter()
        self._models: dict[str, bytes] = {}  # as JSON
        self._replaced: list[tuple[int, int, bytes]] = []  # of this slice
        self._warm: list[_Judged] = []  # of this slice: they go on with a conversation
        self._body = Spliced(exchange.incoming.body)
        self._plan = BatchPlan(self._body)
        self._known: KnownItems | None = None  # None: no rule looks into the cache

    async def planned(self) -> BatchPlan:
        """The plan.

        Raises InvalidRequest, RequestTooLarge (an item), UnknownTarget (no such policy), DeniedByPolicy,
        JobsUnavailable (the router holds the key, and a decision is not kept), and ClientGone also where the server is
        stopping: nothing was sent yet, so it may be tried elsewhere.
        """
        exchange, planner = self._exchange, self._parts.planner
        incoming, trace, clock = exchange.incoming, exchange.trace, exchange.clock
        policies = planner.policies.current
        trace.revision = policies.revision
        policy = policy_of(policies, incoming.policy)
        trace.policy = policy.name
        caller = planner.caller(exchange, policy.name)
        cache, store = self._parts.cache, self._parts.decisions
        if cache is not None and store is not None and caches_batches(policy):
            self._known = KnownItems(exchange, planner, cache, store, self._ticket)
        has_beta = first(incoming.headers, b"anthropic-beta") is not None
        reader = BatchReader(incoming.body, takes_unknown=has_beta)
        slice_ends_s = clock.now_s() + SLICE_S
        for span in reader.spans():
            if span is not None:
                start, end = span
                if end - start > _LARGE_ITEM:
                    judged = await self._large(reader, start, end, policies, policy, caller)
                elif end - start > MAX_READ_IN_LOOP:
                    judged = await asyncio.to_thread(self._judged, reader, start, end, policies, policy, caller)
                else:
                    judged = self._judged(reader, start, end, policies, policy, caller)
                if judged is not None:
                    self._sort_in(judged)
                judged = None  # it may be large: it goes before the next is read
            if clock.now_s() >= slice_ends_s:
                await self._end_slice()
                self._check()
                slice_ends_s = clock.now_s() + SLICE_S
        await self._end_slice()
        await self._keep(self._writer)
        if self._known is not None:
            await self._leave_out(self._known)
        exchange.span("planned", 0.0)
        if not self._body.is_changed:
            self._plan.body = incoming.body
        return self._plan

    async def _leave_out(self, known: KnownItems) -> None:
        """Take the items with known answers out of the body, where all that is to be kept is."""
        places = await known.places() if self._plan.is_kept else []
        if known.keyed:
            self._plan.cached = len(places)
        if places:
            self._body = self._plan.body = await asyncio.to_thread(self._body.without, places)
        self._check()

    def _check(self) -> None:
        """Raises ClientGone where nobody waits for the plan, or no time is left to send what is planned."""
        watch = self._exchange.watch
        watch.check()
        if watch.is_stopping:
            raise ClientGone("the server is stopping")

    async def _large(
        self,
        reader: BatchReader,
        start: int,
        end: int,
        policies: PolicySet,
        policy: CompiledPolicy,
        caller: Caller,
    ) -> _Judged | None:
        """As `_judged`, for an item that holds others up: in its turn, and with a breath as long as it took."""
        now_s = self._exchange.clock.now_s
        async with self._one_large:
            self._check()  # it may have waited long
            began_s = now_s()
            judged = await asyncio.to_thread(self._without_gc, reader, start, end, policies, policy, caller)
            await asyncio.sleep(min(now_s() - began_s, _LONGEST_BREATH_S))
        return judged

    def _without_gc(
        self,
        reader: BatchReader,
        start: int,
        end: int,
        policies: PolicySet,
        policy: CompiledPolicy,
        caller: Caller,
    ) -> _Judged | None:
        was_on = gc.isenabled()
        gc.disable()
        try:
            return self._judged(reader, start, end, policies, policy, caller)
        finally:
            if was_on:
                gc.enable()

    def _judged(
        self,
        reader: BatchReader,
        start: int,
        end: int,
        policies: PolicySet,
        policy: CompiledPolicy,
        caller: Caller,
    ) -> _Judged | None:
        """The item between two offsets, decided on; None for one that is not routed."""
        whole = self._exchange
        item = reader.read(start, end)
        if JOB_ID.fullmatch(item.custom_id):
            message = f"{item.custom_id}: such a custom_id is the router's own, of a deferred request"
            raise InvalidRequest(message, hint="name it in another way")
        place = 0 if self._known is None else self._known.at(start, end)
        self._plan.items += 1
        request = item.request
        if request is None:
            self._plan.unrouted += 1
            return None
        trace = Trace("", whole.trace.started_at_ns, endpoint=BATCH_ITEM, tenant=whole.incoming.tenant)
        trace.model_asked, trace.policy, trace.revision = request.model, policy.name, policies.revision
        exchange = Exchange(whole.incoming, trace, whole.watch, whole.clock)
        try:
            understood = self._parts.planner.judge(exchange, request, policies, policy, caller, 0.0)
        except DeniedByPolicy as denied:
            raise DeniedByPolicy(f"{item.custom_id}: {denied.message}", hint=denied.hint) from denied
        return _Judged(item, exchange, understood, place)

    def _sort_in(self, judged: _Judged) -> None:
        if self._parts.affinity is None or judged.understood.is_new:
            self._decide(judged, _NOTHING)
        else:
            self._warm.append(judged)

    async def _end_slice(self) -> None:
        """Decide about the items that go on with a conversation, and let others have their turn."""
        if self._warm:
            warm, self._warm = self._warm, []
            store = self._parts.affinity
            known = await asyncio.gather(*(recall(each.exchange, store, each.understood) for each in warm))
            for each, recalled in zip(warm, known, strict=True):
                self._decide(each, recalled)
        self._replaced.sort()
        for start, end, new in self._replaced:
            self._body.replace(start, end, new)
        self._replaced.clear()
        if len(self._writer) >= _PUT_AT_ONCE:
            await self._keep(self._writer)
        if self._known is not None:
            await self._known.look_up()
        await asyncio.sleep(BREATH_S)

    def _decide(self, judged: _Judged, recalled: Recalled) -> None:
        """Choose the lane of an item, note what changes in its bytes, and count."""
        item, exchange, understood = judged.item, judged.exchange, judged.understood
        request, trace, plan = understood.request, exchange.trace, self._plan
        router = Router(
            exchange, understood.policies, self._parts.catalog, request, understood.facts, understood.caller,
            recalled.thinkers,
        )  # fmt: skip
        try:
            decision = router.named(understood.decision)
        except UnknownTarget:  # a lane that is not there: the API knows no such model, and fails the item alone
            plan.unrouted += 1
            return
        if decision is None:
            decision = router.held(understood.decision, recalled.binding, self._parts.wall_clock())
        target = next((one for one in router.targets(decision, recalled.binding) if self._takes_batches(one)), None)
        if target is None:
            plan.unrouted += 1
            return
        if target.adapted is not None:
            plan.edited += 1
            self._replaced.append((item.start, item.end, target.adapted.with_model(target.model)))
        elif target.model != request.model:
            start, end = request.model_span
            self._replaced.append((item.start + start, item.start + end, self._as_json(target.model)))
        kept = None
        if self._known is not None and decision.cache is not None:
            kept = self._known.note(
                judged.place, item.custom_id, target.adapted or request, target.model, decision.cache, understood.caller
            )
        key, keeping = (None, None) if kept is None else kept
        plan.moved += target.model != request.model
        plan.lanes[target.lane.name] += 1
        plan.models[target.model] += 1
        plan.rules[decision.rule] += 1
        if self._parts.decisions is not None:
            facts = understood.facts
            self._writer.add(
                item.custom_id,
                ItemDecision(
                    policy=trace.policy,
                    revision=trace.revision,
                    rule=decision.rule,
                    lane=target.lane.name,
                    model_asked=request.model,
                    model_sent=target.model,
                    client=trace.client,
                    session=trace.session,
                    conversation=trace.conversation,
                    why=(*decision.why, *exchange.refused),
                    tags=decision.tags,
                    edits=target.edits,
                    labels=trace.labels,
                    facts=facts.recorded(exchange.headers_read),
                    key=key,
                    keeping=keeping,
                ),
            )

    def _takes_batches(self, target: Target) -> bool:
        """Whether the model may be in a batch; the one asked for is the API's to refuse."""
        if target.lane.model is None:
            return True
        model = self._parts.catalog.find(target.model)
        return model is None or "batch" not in model.accepts.denied

    def _as_json(self, model: str) -> bytes:
        known = self._models.get(model)
        if known is None:
            known = self._models[model] = orjson.dumps(model)
        return known

    async def _keep(self, writer: DecisionWriter) -> None:
        store, entries = self._parts.decisions, writer.taken()
        if store is not None and entries and self._plan.is_kept:  # after a failure it is not asked again
            self._plan.is_kept = await store.put(self._ticket, entries)
            if self._parts.holds_key and not self._plan.is_kept:
                message = "whose the batch is cannot be kept now, and its results could never be fetched"
                raise JobsUnavailable(message, retryable=True)


def counted(counts: Counter[str], most_chars: int = 500) -> str:
    """`haiku=900, sonnet=100`, the most frequent first; where there is more than fits it ends in `, ...`."""
    told, size = [], 0
    for name, count in counts.most_common():
        told.append(f"{name}={count}")
        size += len(told[-1]) + 2
        if size > most_chars:
            return ", ".join([*told[:-1], "..."])
    return ", ".join(told)
