"""The work for one owner: waiting jobs become batches, batches are looked after, and each job ends once.

Theory of operation. What is done is written down before it is done. A *submission* is in the store, with the jobs it
takes, before the batch is asked for; the batch's id is added when the upstream's answer comes. So after a crash, or a
lost answer, a submission without a batch means: nobody knows. Then nothing is sent again until the upstream's list says
what became of it (`serve/deferred/settle.py`).

One process works for an owner at a time: the one that holds the owner's lease. It renews it with each turn; one that
loses it lets everything lie, and the next one goes on from what is in the store. Everything it does may be done twice
without harm: a job's first answer stays, an item is booked under an id of its own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress

from router.errors import JobsUnavailable, RouterError
from router.jobs.deferred import JobAnswer, Requested, Submission, Waiting
from router.serve.deferred.calls import Made, Refused, Unknown
from router.serve.deferred.kit import Kit
from router.serve.deferred.late import answered_late
from router.serve.deferred.results import followed
from router.serve.deferred.settle import settled
from router.serve.deferred.words import Joined, Meta, Said
from router.serve.headers import Credential

_MOST_WAITING = 20_000  # jobs looked at in one turn
_MOST_CREATING = 2  # batches of one owner that are made at a time
_SHARE = 9  # times as long as a look at the store took, nothing is looked at: it may be long
_BATCH_BYTES = 16 * 1024 * 1024  # of jobs in one batch; one job may be larger
_STALE_S = 5.0  # a submission that could not be sent so soon after it was written down is taken back
_log = logging.getLogger("router")


class OwnerWork:
    """The work for `owner`. `ended` is told of each job that ends. `wake` has it look again at once."""

    def __init__(
        self, owner: str, credential: Credential, kit: Kit, counts: dict[str, int], ended: Callable[[str], None]
    ) -> None:
        self.owner = owner
        self.credential = credential
        self.kit = kit
        self.counts = counts
        self.is_draining = False
        self._told = ended
        self._woken = asyncio.Event()
        self._nudged = asyncio.Event()  # for what follows the batches
        self._following: dict[str, asyncio.Task[None]] = {}  # by submission
        self._creating: set[asyncio.Task[None]] = set()
        self._late: dict[str, asyncio.Task[None]] = {}  # by job
        self._hooks: set[asyncio.Task[bool]] = set()
        self._is_failing = False
        self.late_at_once = asyncio.Semaphore(4)

    @property
    def is_woken(self) -> bool:
        """Whether it was woken since it last looked."""
        return self._woken.is_set()

    def wake(self) -> None:
        """There is something new in the store."""
        self._woken.set()

    def wake_all(self) -> None:
        """Something changed about jobs that are in batches, too."""
        self._woken.set()
        self._nudged.set()

    async def nudged(self, wait_s: float) -> bool:
        """Wait so long, or until something changed about jobs in batches; whether it did."""
        self._nudged.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._nudged.wait()
                return True
        return False

    async def run(self) -> None:
        """Work until nothing is left to do for the owner."""
        kit, loop = self.kit, asyncio.get_running_loop()
        try:
            while True:
                self._woken.clear()
                wait_s: float | None = kit.pace.look
                began_s = loop.time()
                try:
                    wait_s = await self._turn()
                    self._say(None)
                except JobsUnavailable as exc:
                    self._say(exc)
                except Exception as exc:  # a fault of ours must not leave the others' jobs lying
                    self.counts["failures"] += 1
                    kit.report("", exc)
                    wait_s = kit.pace.again[1]
                if wait_s is None and not self._woken.is_set():
                    return
                await asyncio.sleep(min(kit.pace.look, kit.pace.breath + _SHARE * (loop.time() - began_s)))
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s or 0):
                        await self._woken.wait()
        finally:
            await self._drop(everything=True)

    async def close(self, wait_s: float) -> None:
        """Wait for batches and answers that are being made, then let all lie, for another process to go on."""
        self.is_draining = True
        if under_way := [*self._creating, *self._late.values()]:
            await asyncio.wait(under_way, timeout=wait_s)
        await self._drop(everything=True)
        for hook in self._hooks:
            hook.cancel()
        with suppress(JobsUnavailable):
            await self.kit.store.leave(self.owner, self.kit.holder)

    async def ended(self, job_id: str, answer: JobAnswer, meta: Meta) -> bool:
        """Write down how a job ended, and tell whoever wants to know; False where it had ended.

        Raises JobsUnavailable.
        """
        is_first = await self.kit.store.finish(self.owner, job_id, answer)
        if is_first:
            self._told(job_id)
            if meta.webhook:
                task = asyncio.get_running_loop().create_task(
                    self.kit.webhooks.deliver(meta.webhook, job_id, answer.status, meta.location)
                )
                self._hooks.add(task)
                task.add_done_callback(self._hooks.discard)
        return is_first

    async def _turn(self) -> float | None:
        """One look at the store; how long until the next is needed, None when nothing is left."""
        kit, store = self.kit, self.kit.store
        if not await store.lead(self.owner, kit.holder, kit.pace.lease):
            await self._drop()  # another process is at it; this one stands by for as long as there is something
            # What is being made is made: it costs, and what comes of it may be written down by whoever made it.
            return kit.pace.look if await self._has_work() else None
        for submission in await store.open_submissions(self.owner):
            if submission.id not in self._following:
                self._follow(submission)
        next_s = await self._gather()
        if next_s is None and not (self._following or self._creating or self._late):
            if self._hooks:
                return kit.pace.look
            await store.leave(self.owner, kit.holder)
            return None
        longest_s = kit.pace.lease / 4  # nobody waits here: what another process accepts is seen then
        return longest_s if next_s is None else min(longest_s, max(0.001, next_s - kit.now_s()))

    async def _has_work(self) -> bool:
        store = self.kit.store
        return bool(await store.waiting(self.owner, 1) or await store.open_submissions(self.owner))

    async def _gather(self) -> float | None:
        """Begin submissions of the groups that are due, late jobs in real time; when to look next, None: none wait."""
        now_s, next_s = self.kit.now_s(), float("inf")
        waiting = await self.kit.store.waiting(self.owner, _MOST_WAITING)
        groups: dict[str, list[Waiting]] = {}
        for job in waiting:
            if job.id in self._late:
                continue
            if job.late_s is not None and job.late_s <= now_s:
                self.answer_late(job.id, None)
            elif job.not_before_s > now_s:
                next_s = min(next_s, job.not_before_s)
            else:
                groups.setdefault(job.group, []).append(job)
        for group, jobs in groups.items():
            for some in _shared_out(jobs):
                is_full = some[-1] is not jobs[-1]
                due_s = min(job.due_s for job in some)
                if not is_full and due_s > now_s and len(some) < min(job.most for job in some):
                    next_s = min(next_s, due_s)
                elif self.is_draining or len(self._creating) >= _MOST_CREATING:
                    break  # it is looked again when one of them has been made
                elif self.kit.creating.locked():
                    next_s = min(next_s, now_s + self.kit.pace.look)  # others are at it, who tell us nothing
                else:
                    await self._begin(group, [job.id for job in some])
        return next_s if waiting else None

    async def _begin(self, group: str, ids: list[str]) -> None:
        """Write a submission down, then have its batch made."""
        kit = self.kit
        submission = Submission(secrets.token_hex(16), self.owner, group, kit.now_s(), len(ids))
        requested = await kit.store.begin(kit.holder, submission, ids)
        if requested and len(requested) != submission.items:
            # One went meanwhile. A batch is known by its number of items, so that number must be the one written down.
            await kit.store.unsent(self.owner, submission.id, submission.started_s)
            self.wake()
        elif requested:
            await kit.creating.acquire()  # which does not wait: it was looked at
            task = asyncio.get_running_loop().create_task(self._make(submission, requested))
            self._creating.add(task)
            self._following[submission.id] = task  # nobody else looks after it meanwhile

            def made(done: asyncio.Task[None]) -> None:
                kit.creating.release()
                self._creating.discard(done)
                self._following.pop(submission.id, None)
                self._report(done)
                self.wake()

            task.add_done_callback(made)

    async def _make(self, submission: Submission, requested: Sequence[Requested]) -> None:
        """Ask for the batch of a submission, once, and write down what is known then."""
        kit, store = self.kit, self.kit.store
        said = Said.of(requested[0].request)
        if kit.now_s() - submission.started_s > _STALE_S:  # this process hung: another may be at it
            await store.unsent(self.owner, submission.id, kit.now_s())
            return
        body = await asyncio.to_thread(Joined, requested)
        outcome = await kit.calls.create(
            self.credential, said.create_target(), said.create_headers(), body, kit.now_s()
        )
        match outcome:
            case Made(batch):
                self.counts["submitted"] += 1
                await self.surely(lambda: store.sent(self.owner, submission.id, batch))
            case Unknown(why):
                self.counts["unknown"] += 1
                _log.warning("deferred: whether a batch of %d was made is unknown (%s)", submission.items, why)
            case Refused():
                self.counts["refused"] += 1
                await self._refused(submission, requested, outcome)

    async def _refused(self, submission: Submission, requested: Sequence[Requested], refusal: Refused) -> None:
        """What becomes of jobs whose batch was not made: they wait, share a smaller one, or end with the refusal."""
        kit, store, now_s = self.kit, self.kit.store, self.kit.now_s()
        is_ours = refusal.status in (401, 403) and kit.keeps_key
        if refusal.is_for_now or is_ours:
            wait_s = kit.pace.again[1] if is_ours else kit.pace.again[0] * (1 + kit.jitter())
            wait_s = max(wait_s, min(refusal.wait_s or 0.0, 3600.0))
            message = "deferred: the upstream answered %d to a batch of %d; they wait for %.0f s"
            _log.warning(message, refusal.status, submission.items, wait_s)
            await self.surely(lambda: store.unsent(self.owner, submission.id, now_s + wait_s))
            return
        if len(requested) > 1 and refusal.status in (400, 413, 422):
            most = len(requested) // 2  # one of them is not taken: the others are not to suffer for it
            await self.surely(lambda: store.unsent(self.owner, submission.id, now_s, most))
            return
        late = [job.id for job in requested if Meta.of(job.meta).answers_late]
        for job in requested:
            if job.id in set(late):
                continue
            answer = JobAnswer(refusal.status, refusal.body, b"", now_s)
            self.counts["errored"] += 1
            await self.surely(lambda job=job, answer=answer: self.ended(job.id, answer, Meta.of(job.meta)))  # type: ignore[misc]
        if tasks := [task for job_id in late if (task := self.answer_late(job_id, None)) is not None]:
            await asyncio.wait(tasks)
        await self.surely(lambda: store.close_submission(self.owner, submission.id))

    def _follow(self, submission: Submission) -> None:
        task = asyncio.get_running_loop().create_task(self._see_through(submission))
        self._following[submission.id] = task

        task.add_done_callback(lambda done: self._over(done, self._following, submission.id))

    async def _see_through(self, submission: Submission) -> None:
        """Follow a submission that was written down until all of its jobs have ended."""
        batch = submission.batch
        if batch is None:
            batch = await settled(self, submission)
            if batch is None:
                return
        await followed(self, submission, batch)

    def answer_late(self, job_id: str, batch: str | None) -> asyncio.Task[None] | None:
        """Answer a job in real time, unless that is under way; the task of it, None where nothing more is begun."""
        task = self._late.get(job_id)
        if task is None and not self.is_draining:
            task = self._late[job_id] = asyncio.get_running_loop().create_task(answered_late(self, job_id, batch))
            task.add_done_callback(lambda done: self._over(done, self._late, job_id))
        return task

    async def surely(self, act: Callable[[], Coroutine[None, None, object]]) -> None:
        """Do it at the store, again and again until it is done."""
        while True:
            try:
                await act()
            except JobsUnavailable as exc:
                self._say(exc)
                await asyncio.sleep(self.kit.pace.look)
            else:
                return

    async def patiently(self, error: RouterError, number: int, until_s: float | None = None) -> None:
        """Wait after failure `number` (from 0) to reach the upstream or the store, no longer than `until_s`."""
        self.counts["failures"] += 1
        first_s, most_s = self.kit.pace.again
        if number == 0:
            _log.warning("deferred: %s; it is tried again", error.message)
        wait_s = min(most_s, first_s * 2.0 ** min(number, 10)) * (0.5 + self.kit.jitter())
        if until_s is not None:  # which may be long past: that must make no rush of it
            wait_s = min(wait_s, max(first_s / 2, until_s - self.kit.now_s()))
        await asyncio.sleep(wait_s)

    async def _drop(self, *, everything: bool = False) -> None:
        """Let go of what follows batches; with `everything` also of what is being made."""
        under_way = {*self._creating, *self._late.values()}
        tasks = [task for task in (*self._following.values(), *under_way) if everything or task not in under_way]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)

    def _over(self, done: asyncio.Task[None], among: dict[str, asyncio.Task[None]], name: str) -> None:
        """A task has come to its end. What failed by a fault of ours stays where it is for a while: it would again."""

        def release() -> None:
            among.pop(name, None)
            self.wake()

        self._report(done)
        if done.cancelled() or done.exception() is None:
            release()
        else:
            self.counts["failures"] += 1
            asyncio.get_running_loop().call_later(self.kit.pace.again[1], release)

    def _report(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.kit.report("", error)

    def _say(self, error: JobsUnavailable | None) -> None:
        if error is not None and not self._is_failing:
            _log.error("deferred: %s; jobs wait until the store of `jobs` is back", error.message)
        elif error is None and self._is_failing:
            _log.info("deferred: the store of `jobs` is back")
        self._is_failing = error is not None


def _shared_out(jobs: Sequence[Waiting]) -> list[list[Waiting]]:
    """Jobs of one group in the order of their acceptance, cut into what one batch may hold each."""
    shares: list[list[Waiting]] = []
    share: list[Waiting] = []
    size = most = 0
    for job in jobs:
        if share and (len(share) >= min(most, job.most) or size + job.size > _BATCH_BYTES):
            shares.append(share)
            share, size = [], 0
        most = min(most, job.most) if share else job.most
        share.append(job)
        size += job.size
    if share:
        shares.append(share)
    return shares
