"""What the answer of a deferred request cost, booked once: a trace of its own, as for an item of a batch.

Its id is a hash of the batch and of the job, so that it is the same however often the results are fetched, and by
whichever process. Its cost is at batch prices; its baseline is what the same answer would have cost at once, from the
model that was asked for, because without the router it would have been asked for so. An answer that nobody waited for
any more (its client canceled, or had another in real time) has cost what it cost, and no baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from router.catalog.lookup import Catalog
from router.jobs.decision import ItemDecision, Keeping
from router.seams import CacheBackend
from router.serve.batch_cached import keep_answer
from router.serve.batch_results import item_id
from router.serve.deferred.words import Meta, Note
from router.serve.ledger import book
from router.trace.record import BATCH_ITEM, Trace
from router.usage import UsageMeter


def booked(
    batch: str, job_id: str, meta: Meta, message: Mapping[str, Any], now_ns: int, catalog: Catalog, *, outcome: str
) -> Trace:
    """The trace of an answer that came in a batch. `outcome` is `ok`, or says why nobody waited for it."""
    meter = UsageMeter(meta.model_sent)
    meter.message({name: value for name, value in message.items() if name != "content"})
    usage, message_id = meter.usage(), message.get("id")
    item = Trace(
        item_id(batch, job_id),
        now_ns,
        endpoint=BATCH_ITEM,
        method="POST",  # which says that it was a request of its own
        path="/v1/messages",
        request_id=message_id if isinstance(message_id, str) else None,
        tenant=meta.tenant,
        key=meta.key,
        client=meta.client,
        session=meta.session,
        conversation=meta.conversation,
        batch=batch,
        policy=meta.policy,
        revision=meta.revision,
        rule=meta.rule,
        lane=meta.lane,
        model_asked=meta.model_asked,
        model_sent=meta.model_sent,
        model_answered=meter.model,
        why=(*meta.why, f"answered in batch `{batch}` as `{job_id}`"),
        tags=tuple(meta.tags),
        edits=tuple(meta.edits),
        labels=meta.labels,
        facts=meta.facts or None,
        # The tier is what says afterwards (in reports, in booking again) that batch prices hold.
        usage=None if usage is None else replace(usage, service_tier="batch"),
        status=200,
        stop_reason=meter.stop_reason,
        outcome=outcome,
    )
    book(item, catalog)
    return item


async def kept(cache: CacheBackend, meta: Meta, item: Trace, line: bytes) -> bool:
    """Put an answer into the cache, where its rule said so; whether it was taken. `line` is that of the results."""
    if meta.cache_key is None or len(meta.keeping) != 3:
        return False
    ttl_s, max_bytes, asked_at_ns = meta.keeping
    decision = ItemDecision(
        *(meta.policy, meta.revision, meta.rule, meta.lane, meta.model_asked, meta.model_sent),
        key=meta.cache_key,
        keeping=Keeping(ttl_s, max_bytes, asked_at_ns, meta.tenant),
    )
    item.cache = "miss"
    return await keep_answer(cache, decision, item, line)


def note_of(item: Trace) -> Note:
    """What the client is told of it."""
    return Note(item.cost_pusd, item.saved_pusd, item.model_sent, item.lane)
