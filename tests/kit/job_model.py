"""What a `seams.JobStore` promises, in the plainest way: lists and dicts, nothing at once, nothing kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from router.jobs.deferred import Canceled, Job, JobAnswer, JobState, JobView, Member, Requested, Submission, Waiting


def job(name: str, *, owner: str = "router", tenant: str = "anna", request: bytes = b"ask", **more: object) -> Job:
    """A job of that name; its meta and request tell whose they are."""
    made = Job(name, owner, tenant, "g", 4000001000.5, 4000004600.25, None, 100, 321, f"meta {name}".encode(), request)
    return replace(made, **more)  # type: ignore[arg-type]


def answer(text: str = "yes", ended_s: float = 2000.75) -> JobAnswer:
    """An answer that says so."""
    return JobAnswer(200, text.encode(), b"note \x00\xff", ended_s)


@dataclass
class _Kept:
    job: Job
    not_before_s: float = 0.0
    sub: str | None = None
    request: bytes | None = None
    is_canceled: bool = False
    ended_s: float | None = None
    answer: JobAnswer | None = None


class ModelJobs:
    """A store of one owner; no lease ends by itself, nothing is too old, nothing too much."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.jobs: dict[str, _Kept] = {}  # in order of acceptance
        self.subs: dict[str, Submission] = {}
        self.closed: set[str] = set()
        self.holder: str | None = None

    async def accept(self, job: Job) -> None:
        if job.id not in self.jobs:
            self.jobs[job.id] = _Kept(job, request=job.request)

    async def look(self, owner: str, job_id: str, tenant: str) -> JobView | None:
        kept = self._seen(job_id, tenant)
        if kept is None:
            return None
        batch = self.subs[kept.sub].batch if kept.sub is not None else None
        state: JobState = "waiting" if kept.sub is None else "sending" if batch is None else "sent"
        state = state if kept.ended_s is None else "ended"
        return JobView(job_id, state, kept.job.created_s, kept.job.due_s, kept.job.meta, batch, kept.answer)

    async def cancel(self, owner: str, job_id: str, tenant: str) -> Canceled:
        kept = self._seen(job_id, tenant)
        if kept is None:
            return "unknown"
        if kept.sub is not None and kept.sub not in self.closed:
            kept.is_canceled, kept.answer = True, None
        else:
            del self.jobs[job_id]
        return "ended" if kept.ended_s is not None else "removed" if kept.sub is None else "marked"

    async def lead(self, owner: str, holder: str, ttl_s: float) -> bool:
        self.holder = self.holder or holder
        return self.holder == holder

    async def leave(self, owner: str, holder: str) -> None:
        self.holder = None if self.holder == holder else self.holder

    async def waiting(self, owner: str, limit: int) -> Sequence[Waiting]:
        return [
            Waiting(k.job.id, k.job.group, k.job.created_s, k.job.due_s, k.job.late_s, k.job.most, k.job.size,
                    k.not_before_s)
            for k in self.jobs.values() if self._waits(k)
        ][:limit]  # fmt: skip

    async def begin(self, holder: str, submission: Submission, ids: Sequence[str]) -> Sequence[Requested]:
        if holder != self.holder or submission.id in self.closed:
            return []
        named = [self.jobs[job_id] for job_id in dict.fromkeys(ids) if job_id in self.jobs]
        taken = [kept for kept in named if self._waits(kept)]
        for kept in taken:
            kept.sub = submission.id
        before = self.subs.get(submission.id)
        if before is not None or taken:
            items = (before.items if before is not None else 0) + len(taken)
            self.subs[submission.id] = replace(before or submission, items=items)
        return [
            Requested(kept.job.id, kept.job.meta, kept.request)
            for kept in named
            if kept.sub == submission.id and kept.ended_s is None and not kept.is_canceled and kept.request is not None
        ]

    async def sent(self, owner: str, submission_id: str, batch: str) -> None:
        known = self.subs.get(submission_id)
        if known is not None and known.batch is None:
            self.subs[submission_id] = replace(known, batch=batch)

    async def unsent(self, owner: str, submission_id: str, not_before_s: float, most: int | None = None) -> None:
        known = self.subs.get(submission_id)
        if known is None or known.batch is not None or submission_id in self.closed:
            return
        for kept in self._of(submission_id):
            if kept.is_canceled:
                del self.jobs[kept.job.id]
            elif kept.ended_s is None:
                kept.sub, kept.not_before_s = None, not_before_s
                kept.job = kept.job if most is None else replace(kept.job, most=most)
        self.closed.add(submission_id)

    async def open_submissions(self, owner: str) -> Sequence[Submission]:
        found = [sub for sub in self.subs.values() if sub.id not in self.closed]
        return sorted(found, key=lambda sub: (sub.started_s, sub.id))

    async def batches_of(self, owner: str) -> frozenset[str]:
        return frozenset(sub.batch for sub in self.subs.values() if sub.batch is not None)

    async def members(self, owner: str, submission_id: str) -> Sequence[Member]:
        return [
            Member(k.job.id, k.ended_s is not None, k.is_canceled, k.job.late_s, k.job.meta)
            for k in self._of(submission_id)
        ]

    async def request_of(self, owner: str, job_id: str) -> Requested | None:
        kept = self.jobs.get(job_id)
        if kept is None or kept.is_canceled or kept.request is None:
            return None
        return Requested(job_id, kept.job.meta, kept.request)

    async def finish(self, owner: str, job_id: str, answer: JobAnswer) -> bool:
        kept = self.jobs.get(job_id)
        if kept is None or kept.ended_s is not None:
            return False
        kept.ended_s, kept.request, kept.answer = answer.ended_s, None, None if kept.is_canceled else answer
        return True

    async def close_submission(self, owner: str, submission_id: str) -> None:
        for kept in self._of(submission_id):
            kept.request = None
            if kept.is_canceled:
                del self.jobs[kept.job.id]
        if submission_id in self.subs:
            self.closed.add(submission_id)

    def _seen(self, job_id: str, tenant: str) -> _Kept | None:
        kept = self.jobs.get(job_id)
        return None if kept is None or kept.is_canceled or kept.job.tenant != tenant else kept

    def _waits(self, kept: _Kept) -> bool:
        return kept.sub is None and kept.ended_s is None

    def _of(self, submission_id: str) -> list[_Kept]:
        return [kept for kept in self.jobs.values() if kept.sub == submission_id]
