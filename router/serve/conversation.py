"""What the flow remembers of conversations: asked before the route is made, told as an answer reaches its end.

It is told before the last bytes go to the client, because a client may send its next turn the moment it has them.
"""

from __future__ import annotations

import asyncio

from router.affinity.binding import bound
from router.affinity.thinking import thinker_key
from router.catalog.lookup import Catalog
from router.seams import AffinityStore, Binding
from router.serve.exchange import Exchange
from router.serve.plan import Plan, Understood
from router.usage import Usage
from router.value import value_class


@value_class(frozen=True, slots=True)
class Recalled:
    """What is known of a conversation: where it is bound, and who thought what it carries (nobody: not known)."""

    binding: Binding | None = None
    thinkers: tuple[str, ...] = ()


_NOTHING = Recalled()


async def recall(exchange: Exchange, store: AffinityStore | None, understood: Understood) -> Recalled:
    """What is remembered of a request's conversation; nothing for one that has no answer in it yet."""
    if store is None or understood.is_new:
        return _NOTHING
    started_s = exchange.clock.now_s()
    thinkers: tuple[str, ...] = ()
    asked, blocks = store.get(understood.binding_keys()), understood.thinking_keys()
    if blocks:  # both at once: a store that does not answer is waited for only once
        binding, thinkers = await asyncio.gather(asked, store.thinkers(blocks))
    else:
        binding = await asked
    exchange.span("affinity", started_s)
    return Recalled(binding, thinkers)


def remember(
    exchange: Exchange,
    store: AffinityStore | None,
    plan: Plan,
    catalog: Catalog,
    usage: Usage | None,
    answered: str | None = None,
    signatures: tuple[str, ...] = (),
) -> None:
    """Bind the conversation to what has just answered, and note who thought. Does not wait.

    `usage` None: a replay, which warms nothing. `answered` is the model that says it answered, `signatures` those of
    its thinking blocks. A rule that says `stick: none` binds nothing.
    """
    if store is None:
        return
    trace, before = exchange.trace, plan.binding
    if signatures:
        model = catalog.find(answered or trace.model_sent)
        name = answered or trace.model_sent if model is None else model.id
        tenant = exchange.incoming.tenant
        store.put_thinkers([thinker_key(tenant, signature) for signature in signatures], name)
    if plan.decision.stick == "none":
        return
    # The prompt cache counts from the start of the request that wrote or read it. Source: fact sheet, section 5
    sent_s = trace.started_at_ns / 1e9 + (trace.attempts[-1].started_s if trace.attempts else 0.0)
    after = bound(before, lane=trace.lane, model=trace.model_sent, usage=usage, now_s=sent_s)
    own, *session = plan.understood.binding_keys()
    store.put(own, after)
    for key in session:  # a first turn in a session may be a side request: it does not take the session along
        store.put(key, after, is_only_first=plan.understood.is_new)
