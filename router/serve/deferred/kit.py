"""What the deferred lane works with, and how fast it goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Protocol

from router.catalog.lookup import Catalog
from router.errors import RouterError
from router.jobs.deferred import JobAnswer
from router.seams import BatchDecisions, CacheBackend, ItemSink, JobStore
from router.serve.deferred.calls import BatchCalls
from router.serve.deferred.words import Meta, Said
from router.serve.headers import Credential
from router.serve.webhook import Webhooks

COUNTS = (
    "submitted", "refused", "unknown", "settled", "resent", "succeeded", "errored", "real_time", "vain", "polls",
    "failures",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast it goes, in seconds.

    `look` is the time between two looks at the store, `lease` how long another process waits for one that hangs.
    `polls` are the first and the longest time between two looks at a batch. `create` bounds the making of a batch;
    `quiet` is how long after its beginning one that is not in the upstream's list counts as never made: longer than
    `create`, so that nothing can still be on its way. `again` are the first and the longest wait after a failure.
    `breath` is the least time between two looks at the store.
    """

    look: float = 1.0
    lease: float = 10.0
    polls: tuple[float, float] = (1.0, 60.0)
    create: float = 60.0
    quiet: float = 90.0
    again: tuple[float, float] = (1.0, 60.0)
    breath: float = 0.05


@dataclass(frozen=True, slots=True)
class Kit:
    """What the work is done with. `now_s` is Unix time; `jitter` gives a number in [0, 1).

    `answer_now` asks for a job in real time, and says why; `flush` waits until all that was booked is in the trace
    store, a second at the most, and runs in a thread. `creating` bounds how many batches are made at a time, of all
    owners. `keeps_key` says that credentials are the operator's: one that is refused is mended.
    """

    store: JobStore
    holder: str
    calls: BatchCalls
    items: ItemSink
    cache: CacheBackend | None
    decisions: BatchDecisions | None
    creating: asyncio.Semaphore
    catalog: Catalog
    answer_now: Callable[[str, Said, Meta, Credential, str, str | None], Awaitable[JobAnswer]]
    flush: Callable[[], bool] | None
    webhooks: Webhooks
    now_s: Callable[[], float]
    jitter: Callable[[], float]
    report: Callable[[str, BaseException], None]
    keeps_key: bool
    pace: Pace = Pace()


class Work(Protocol):
    """The work for one owner, as its parts know it; see `serve.deferred.work.OwnerWork`."""

    owner: str
    credential: Credential
    kit: Kit
    counts: dict[str, int]
    late_at_once: asyncio.Semaphore

    async def nudged(self, wait_s: float) -> bool: ...

    def answer_late(self, job_id: str, batch: str | None) -> asyncio.Task[None] | None: ...

    async def ended(self, job_id: str, answer: JobAnswer, meta: Meta) -> bool: ...

    async def surely(self, act: Callable[[], Coroutine[None, None, object]]) -> None: ...

    async def patiently(self, error: RouterError, number: int, until_s: float | None = None) -> None: ...
