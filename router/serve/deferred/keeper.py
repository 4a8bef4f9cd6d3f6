"""Sees to it that accepted jobs end: one keeper in each process, one piece of work for each owner.

The work of an owner (`serve/deferred/work.py`) needs the owner's credential. Where the router holds the key, that is
there from the start. Where clients bring their own it is never written down: it is in memory from the acceptance of a
job until all jobs of the owner have ended. A process that began anew has it again as soon as the client asks for its
job, and goes on from what is in the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from router.errors import ClientGone, JobsUnavailable
from router.jobs.deferred import JobView
from router.serve.deferred.kit import COUNTS, Kit
from router.serve.deferred.work import OwnerWork
from router.serve.exchange import Exchange
from router.serve.headers import Credential

MOST_HELD = 1_000  # connections; `wait` is a preference, and more would crowd out others
_MOST_WITHDRAWN = 10_000  # jobs of which it is not known whether they are there
_WITHDRAWN_AT_ONCE = 100
_CLOSE_S = 5.0  # for batches that are being made, at a stop
_LOOK_S = (0.25, 2.0)  # at the store, while a connection is held for a job that another process works on
_log = logging.getLogger("router")


class Keeper:
    """Works for the owners it is told of, and wakes those who wait for a job."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._works: dict[str, OwnerWork] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}  # by job
        self._withdrawn: dict[str, tuple[str, str]] = {}  # owner and tenant, by job
        self._withdrawing: asyncio.Task[None] | None = None
        self._held = 0
        self._is_draining = False
        self.counts = dict.fromkeys(COUNTS, 0)

    def accepted(self, owner: str, credential: Credential, *, is_new: bool = True) -> None:
        """There are jobs of this owner; its work begins. With `is_new` it looks at the store again."""
        if self._is_draining:
            return
        work = self._works.get(owner)
        if work is None:
            work = self._works[owner] = OwnerWork(owner, credential, self._kit, self.counts, self._ended)
        work.credential = credential
        if is_new:
            work.wake()
        if owner not in self._tasks:
            task = self._tasks[owner] = asyncio.get_running_loop().create_task(work.run())
            task.add_done_callback(lambda done: self._over(owner, done))

    def withdraw(self, owner: str, job_id: str, tenant: str) -> None:
        """Cancel a job whose client was told that it was not accepted, as soon as the store can say that it is gone."""
        if len(self._withdrawn) < _MOST_WITHDRAWN:
            self._withdrawn[job_id] = owner, tenant
        if self._withdrawing is None or self._withdrawing.done():
            self._withdrawing = asyncio.get_running_loop().create_task(self._withdraw())

    def canceled(self, owner: str, job_id: str) -> None:
        """A job was canceled: whoever holds a connection for it hears of that, and its batch may have become vain."""
        self._ended(job_id)
        if owner in self._works:
            self._works[owner].wake_all()

    async def seen(self, exchange: Exchange, owner: str, job_id: str, tenant: str, wait_s: float) -> JobView | None:
        """A job, as soon as it has ended, or after `wait_s` seconds as it is; None where the tenant has none.

        Raises ClientGone when the client leaves meanwhile, and JobsUnavailable.
        """
        clock, look_s = exchange.clock, _LOOK_S[0]
        until_s = clock.now_s() + wait_s
        while True:
            ended = asyncio.get_running_loop().create_future()
            here = self._waiting.setdefault(job_id, set())
            here.add(ended)  # before the look, so that no end falls between the two
            try:
                view = await self._kit.store.look(owner, job_id, tenant)
                left_s = until_s - clock.now_s()
                is_full = self._held >= MOST_HELD
                if view is None or view.answer is not None or left_s <= 0 or self._is_draining or is_full:
                    return view
                if owner not in self._tasks:  # its credential may have been gone
                    self.accepted(owner, exchange.incoming.credential, is_new=False)
                self._held += 1
                try:
                    await self._until(exchange, ended, min(left_s, look_s))
                finally:
                    self._held -= 1
            finally:
                here.discard(ended)
                if not here and self._waiting.get(job_id) is here:
                    del self._waiting[job_id]
            look_s = min(_LOOK_S[1], 2 * look_s)

    def drain(self) -> None:
        """Nothing more is begun, and nobody waits any longer: another process goes on."""
        self._is_draining = True
        for work in self._works.values():
            work.is_draining = True
        for job_id in list(self._waiting):
            self._ended(job_id)

    async def close(self) -> None:
        """End the work: batches that are being made are waited for a moment, all else is in the store."""
        self.drain()
        await asyncio.gather(*(work.close(_CLOSE_S) for work in list(self._works.values())), return_exceptions=True)
        tasks = [*self._tasks.values(), *(() if self._withdrawing is None else (self._withdrawing,))]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stats(self) -> Mapping[str, int]:
        """Counts since the start, and `owners` that are worked for now."""
        return {**self.counts, "owners": len(self._tasks)}

    def _ended(self, job_id: str) -> None:
        for waiter in self._waiting.get(job_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    def _over(self, owner: str, task: asyncio.Task[None]) -> None:
        """The work of an owner has come to its end: its credential is forgotten, unless there is more."""
        work = self._works.pop(owner)
        del self._tasks[owner]
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._kit.report("", error)
        if work.is_woken and not self._is_draining:
            self.accepted(owner, work.credential)

    async def _withdraw(self) -> None:
        """Some at a time, however many there are: the store may be in trouble."""
        store = self._kit.store
        while some := list(self._withdrawn.items())[:_WITHDRAWN_AT_ONCE]:
            asked = (store.cancel(owner, job_id, tenant) for job_id, (owner, tenant) in some)
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            for (job_id, _), outcome in zip(some, outcomes, strict=True):
                if not isinstance(outcome, JobsUnavailable):
                    del self._withdrawn[job_id]
                    if isinstance(outcome, BaseException):
                        self._kit.report("", outcome)
            if any(isinstance(outcome, JobsUnavailable) for outcome in outcomes):
                await asyncio.sleep(self._kit.pace.look)

    async def _until(self, exchange: Exchange, ended: asyncio.Future[None], wait_s: float) -> None:
        """Wait, and book it as waiting; ends at once when the client leaves or the server stops."""
        clock, watch = exchange.clock, exchange.watch
        started_s = clock.now_s()

        def wake() -> None:
            if not ended.done():
                ended.set_result(None)

        timer = asyncio.get_running_loop().call_later(wait_s, wake)
        try:
            watch.during(wake)
            await ended
            if watch.is_gone:
                raise ClientGone("the client closed the connection")
        except ClientGone:
            if watch.is_gone:
                raise
            self._is_draining = True  # the server has no more time: what is known is told
        finally:
            timer.cancel()
            clock.waited_s += clock.now_s() - started_s
            watch.during(None)
