"""Opens the deferred lane: what takes requests that can wait, and what sees to it that they end."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.jobs.holder import holder_name
from router.seams import JobStore, Upstream
from router.serve.deferred.calls import BatchCalls
from router.serve.deferred.keeper import Keeper
from router.serve.deferred.kit import Kit, Pace
from router.serve.deferred.lane import ROUTER, Deferral
from router.serve.deferred.now import RealTime
from router.serve.headers import Credential
from router.serve.parts import Parts
from router.serve.passthrough import Passthrough
from router.serve.pipeline import Pipeline
from router.serve.webhook import Webhooks
from router.serve.webhook_hosts import read_hosts
from router.settings import Settings
from router.sources import TraceIds
from router.upstream.webhook import WebhookOrigins

_MOST_CREATING = 4  # batches that are made at a time, of 16 MB or of one large request each


@dataclass(frozen=True, slots=True)
class DeferredLane:
    """The lane, its keeper and the line by which late jobs are answered. `gauges` are figures by name."""

    deferral: Deferral
    keeper: Keeper
    pipeline: Pipeline
    own: Credential | None  # the router's, where it holds the upstream's key
    gauges: Mapping[str, Callable[[], Mapping[str, int]]]

    def start(self) -> None:
        """Go on with what is in the store, where that needs no client's credential."""
        if self.own is not None:
            self.keeper.accepted(ROUTER, self.own)

    async def close(self) -> None:
        """Let all lie where it is; the store is still open."""
        await self.keeper.close()
        await self.pipeline.close()


def open_webhooks(settings: Settings) -> Webhooks:
    """What tells receivers that jobs have ended; without `webhook_hosts` it takes no webhook. Raises SettingsError."""
    return Webhooks(read_hosts(settings.webhook_hosts), settings.webhook_secret, WebhookOrigins().open)


def open_lane(
    settings: Settings,
    store: JobStore | None,
    parts: Parts,
    passthrough: Passthrough,
    upstream: Upstream,
    webhooks: Webhooks,
    flush: Callable[[float], bool] | None,
) -> DeferredLane | None:
    """The lane over a store; None without one: nothing can be promised then. `flush` is that of the trace store."""
    if store is None:
        return None
    own = None
    if parts.holds_key and settings.upstream_api_key is not None:
        own = Credential(b"x-api-key", settings.upstream_api_key.encode())
    pace = Pace()
    pipeline = Pipeline(parts, may_wait=False)
    kit = Kit(
        store=store,
        holder=holder_name(),
        calls=BatchCalls(upstream, parts.deadlines, pace.create),
        items=parts.items,
        cache=parts.cache,
        decisions=parts.decisions,
        creating=asyncio.Semaphore(_MOST_CREATING),
        catalog=parts.catalog,
        answer_now=RealTime(pipeline, parts, TraceIds(os.urandom), time.perf_counter, time.time_ns),
        flush=None if flush is None else lambda: flush(1.0),
        webhooks=webhooks,
        now_s=time.time,
        jitter=random.random,
        report=parts.report,
        keeps_key=own is not None,
        pace=pace,
    )
    keeper = Keeper(kit)
    deferral = Deferral(
        store,
        keeper,
        parts.catalog,
        webhooks,
        passthrough.base_url,
        time.time,
        holds_key=own is not None,
        cache=parts.cache,
    )
    gauges = {"deferred": keeper.stats, "jobs": store.stats, "webhooks": webhooks.stats}
    return DeferredLane(deferral, keeper, pipeline, own, gauges)
