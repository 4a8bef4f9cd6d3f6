"""What the flow remembers of conversations: asked before the route is made, told after an answer was served."""

from __future__ import annotations

from dataclasses import replace

from router.affinity.binding import bound
from router.catalog.lookup import Catalog
from router.seams import AffinityStore, Binding
from router.serve.exchange import Exchange
from router.serve.plan import Plan, Understood
from router.usage import Usage


async def recall(exchange: Exchange, store: AffinityStore | None, understood: Understood) -> Binding | None:
    """The binding of a request's conversation; None for a new one, an unknown one, or when nothing is remembered."""
    if store is None or understood.is_new:
        return None
    started_s = exchange.clock.now_s()
    binding = await store.get(understood.binding_key())
    exchange.span("affinity", started_s)
    return binding


async def remember(
    exchange: Exchange, store: AffinityStore | None, plan: Plan, catalog: Catalog, usage: Usage | None
) -> None:
    """Bind the conversation to what has just answered. `usage` None: a replay, which warms nothing.

    A rule that says `stick: none` binds nothing, but who answered is kept all the same: later turns carry what it
    thought.
    """
    if store is None:
        return
    trace, before = exchange.trace, plan.binding
    # The prompt cache counts from the start of the request that wrote or read it. Source: fact sheet, section 5
    sent_s = trace.started_at_ns / 1e9 + (trace.attempts[-1].started_s if trace.attempts else 0.0)
    model = catalog.find(trace.model_answered or trace.model_sent)
    answered = trace.model_answered or trace.model_sent if model is None else model.id
    after = bound(
        before,
        is_first=plan.understood.is_new,
        lane=trace.lane,
        model=trace.model_sent,
        answered=answered,
        usage=usage,
        now_s=sent_s,
    )
    if plan.decision.stick == "none":
        kept = before if before is not None else replace(after, lane="", prefix_tokens=0, cached_tokens=0)
        after = replace(kept, producers=after.producers)
    await store.put(plan.understood.binding_key(), after)
