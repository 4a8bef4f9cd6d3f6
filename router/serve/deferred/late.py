"""A job whose batch is late, answered in real time.

An answer that was paid for is never thrown away: once it is there, it is written down until that is done, and nothing
is asked again. Each attempt is a request with a trace of its own (`serve/deferred/now.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from router.errors import JobsUnavailable, RouterError
from router.jobs.deferred import JobAnswer, Member
from router.serve.deferred.kit import Work
from router.serve.deferred.words import Meta, Said

_MOST_TRIES = 10


async def answered_late(work: Work, job_id: str, batch: str | None) -> None:
    """Answer a job in real time; `batch` None: it has none. Tried for as long as that may help."""
    async with work.late_at_once:
        found = await _asked(work, job_id, batch)
        if found is not None:
            answer, meta = found
            work.counts["real_time"] += 1
            await work.surely(lambda: work.ended(job_id, answer, meta))


def begin_late(work: Work, members: Iterable[Member], batch: str | None) -> float | None:
    """Begin to answer those that are late by now; when the next one will be, None for never."""
    now_s = work.kit.now_s()
    next_s: float | None = None
    for member in members:
        if member.is_ended or member.is_canceled or member.late_s is None:
            continue
        if member.late_s <= now_s:
            work.answer_late(member.id, batch)
        else:
            next_s = member.late_s if next_s is None else min(next_s, member.late_s)
    return next_s


async def all_late(work: Work, job_ids: Sequence[str], batch: str) -> None:
    """Answer these in real time, and wait until it is done. Whoever waits may be cancelled, the answers are not."""
    tasks = [task for job_id in job_ids if (task := work.answer_late(job_id, batch)) is not None]
    if tasks:
        await asyncio.wait(tasks)


async def _asked(work: Work, job_id: str, batch: str | None) -> tuple[JobAnswer, Meta] | None:
    """The answer; None for a job that was canceled, or has ended."""
    kit, number = work.kit, 0
    why = "late: it had not been sent" if batch is None else f"late: batch `{batch}` did not answer it in time"
    while True:
        is_last = number + 1 >= _MOST_TRIES
        try:
            requested = await kit.store.request_of(work.owner, job_id)
        except JobsUnavailable as exc:
            await work.patiently(exc, number)
            continue
        if requested is None:
            return None
        meta = Meta.of(requested.meta)
        try:
            said = Said.of(requested.request)
            answer = await kit.answer_now(job_id, said, meta, work.credential, why, batch)
        except RouterError as exc:
            answer = JobAnswer(exc.status, exc.to_wire(job_id), b"", kit.now_s())
            is_last = is_last or exc.source == "client"
        if is_last or not (answer.status == 429 or answer.status >= 500):
            return answer, meta
        await asyncio.sleep(min(kit.pace.again[1], kit.pace.again[0] * 2.0**number))
        number += 1
