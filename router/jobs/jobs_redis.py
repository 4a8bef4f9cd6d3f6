"""Deferred requests in Redis: for several replicas.

Redis should keep them: `maxmemory-policy` `noeviction`, or one of those that spare what has no time to live, and
`appendonly yes`. What has ended goes by itself. What Redis does is told in `redis_scripts`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from router.errors import JobsUnavailable, Overloaded
from router.jobs import redis_scripts as scripts
from router.jobs.deferred import (
    Canceled,
    Job,
    JobAnswer,
    JobState,
    JobView,
    Member,
    Requested,
    Submission,
    Waiting,
)
from router.jobs.holder import is_gone
from router.jobs.jobs_sqlite import ENDED_KEPT_S, KEPT_S, MOST_BYTES, MOST_JOBS
from router.jobs.taking import slices
from router.redis_link import RedisLink, RedisUnavailable

PREFIX = "router:v1:jobs:"  # with the owner in braces
_AT_ONCE = 500  # jobs that are looked at in one command
_COUNTED = ("accepted", "begun", "sent", "unsent", "ended", "canceled", "failures", "pruned")


class RedisJobs:
    """A `seams.JobStore` over a link, a patient one, which is not closed with it.

    `now_s` is Unix time. An answer stays for `kept_s` seconds. An owner has `most_jobs` jobs at the most that have not
    ended, with `most_bytes` of requests. `is_gone` says of a holder whether it is known to be dead.
    """

    def __init__(
        self,
        link: RedisLink,
        *,
        now_s: Callable[[], float] = time.time,
        kept_s: float = ENDED_KEPT_S,
        most_jobs: int = MOST_JOBS,
        most_bytes: int = MOST_BYTES,
        is_gone: Callable[[str], bool] = is_gone,
    ) -> None:
        self._link = link
        self._now_s = now_s
        self._kept_ms = max(1, int(kept_s * 1e3))
        self._most_jobs = most_jobs
        self._most_bytes = most_bytes
        self._is_gone = is_gone
        self._counts = dict.fromkeys(_COUNTED, 0)

    async def accept(self, job: Job) -> None:
        """See `JobStore`."""
        fields: list[bytes | str | int] = ["tenant", job.tenant, "group", job.group, "most", job.most, "size", job.size]
        fields += ["created", repr(job.created_s), "due", repr(job.due_s), "before", "0", "meta", job.meta]
        if job.late_s is not None:
            fields += ["late", repr(job.late_s)]
        limits = self._most_jobs, self._most_bytes
        outcome = await self._run(scripts.ACCEPT, job.owner, job.id, *limits, job.request, *fields)
        if outcome < 0:
            raise Overloaded(
                f"too many deferred requests wait for their answers, expected {self._most_jobs} at the most with "
                f"{self._most_bytes} bytes together",
                retryable=True,
            )
        self._counts["accepted"] += outcome

    async def look(self, owner: str, job_id: str, tenant: str) -> JobView | None:
        """See `JobStore`."""
        found = await self._run(scripts.LOOK, owner, job_id, tenant)
        if found is None:
            return None
        created, due, meta, submission, batch, ended, status, note, body = found
        answer = None
        state: JobState = "waiting" if submission is None else "sending" if batch is None else "sent"
        if ended is not None:
            if body is None:  # it goes this very moment
                return None
            state, answer = "ended", JobAnswer(int(status), body, note, float(ended))
        return JobView(job_id, state, float(created), float(due), meta, _text(batch), answer)

    async def cancel(self, owner: str, job_id: str, tenant: str) -> Canceled:
        """See `JobStore`. Unknown is what `look` would not find."""
        outcome = cast(Canceled, (await self._run(scripts.CANCEL, owner, job_id, tenant)).decode())
        self._counts["canceled"] += outcome != "unknown"
        return outcome

    async def lead(self, owner: str, holder: str, ttl_s: float) -> bool:
        """See `JobStore`."""
        ttl_ms = max(1, int(ttl_s * 1e3))
        leads = (await self._run(scripts.LEAD, owner, holder, ttl_ms, "")).decode()
        if leads != holder and self._is_gone(leads):
            leads = (await self._run(scripts.LEAD, owner, holder, ttl_ms, leads)).decode()
        return bool(leads == holder)

    async def leave(self, owner: str, holder: str) -> None:
        """See `JobStore`."""
        await self._run(scripts.LEAVE, owner, holder)

    async def waiting(self, owner: str, limit: int) -> Sequence[Waiting]:
        """See `JobStore`."""
        if limit < 1:
            return []
        rows = await self._each(scripts.WAITING, owner, await self._ids(owner, "waiting", limit - 1))
        return [
            Waiting(
                *(name.decode(), group.decode(), float(created), float(due), _number(late)),
                *(int(most), int(size), float(before)),
            )
            for name, group, created, due, late, most, size, before in rows
        ]

    async def begin(self, holder: str, submission: Submission, ids: Sequence[str]) -> Sequence[Requested]:
        """See `JobStore`. Told twice it gives the same, without what has ended since."""
        if not ids:
            return []
        of = submission.id, submission.group, repr(submission.started_s), submission.batch or ""
        wanted = json.dumps(list(dict.fromkeys(ids)))
        taken, names, sizes = await self._run(scripts.BEGIN, submission.owner, holder, *of, wanted)
        self._counts["begun"] += taken
        found: list[Requested] = []
        for some in slices(zip((name.decode() for name in names), sizes, strict=True)):
            rows = await self._run(scripts.REQUESTS, submission.owner, json.dumps(some))
            found += [Requested(name.decode(), meta, request) for name, meta, request in rows]
        return found

    async def sent(self, owner: str, submission_id: str, batch: str) -> None:
        """See `JobStore`. The batch that was told first stays."""
        self._counts["sent"] += await self._run(scripts.SENT, owner, submission_id, batch)

    async def unsent(self, owner: str, submission_id: str, not_before_s: float, most: int | None = None) -> None:
        """See `JobStore`. The submission is closed by it; canceled jobs are gone with it."""
        to = repr(float(not_before_s)), "" if most is None else most
        self._counts["unsent"] += await self._run(scripts.UNSENT, owner, submission_id, *self._until(), *to)

    async def open_submissions(self, owner: str) -> Sequence[Submission]:
        """See `JobStore`. In the order in which they were started."""
        return [
            Submission(name.decode(), owner, group.decode(), float(started), int(items), _text(batch))
            for name, group, started, items, batch in await self._run(scripts.OPEN, owner)
        ]

    async def batches_of(self, owner: str) -> frozenset[str]:
        """See `JobStore`."""
        key = f"{_prefix(owner)}batches"
        found = await self._ask("ZRANGEBYSCORE", key, repr(self._now_s()), "+inf")
        return frozenset(batch.decode() for batch in found)

    async def members(self, owner: str, submission_id: str) -> Sequence[Member]:
        """See `JobStore`. In the order in which they were accepted."""
        ids = await self._ids(owner, f"members:{submission_id}", -1)
        rows = await self._each(scripts.MEMBERS, owner, ids, submission_id)
        return [
            Member(name.decode(), ended is not None, canceled is not None, _number(late), meta)
            for name, ended, canceled, late, meta in rows
        ]

    async def request_of(self, owner: str, job_id: str) -> Requested | None:
        """See `JobStore`. None for one that has ended or was canceled."""
        rows = await self._run(scripts.REQUESTS, owner, json.dumps([job_id]))
        return Requested(job_id, rows[0][1], rows[0][2]) if rows else None

    async def finish(self, owner: str, job_id: str, answer: JobAnswer) -> bool:
        """See `JobStore`. False too for a job that is not there."""
        said = answer.status, answer.body, answer.note, repr(answer.ended_s), self._kept_ms
        is_first = bool(await self._run(scripts.FINISH, owner, job_id, *said))
        self._counts["ended"] += is_first
        return is_first

    async def close_submission(self, owner: str, submission_id: str) -> None:
        """See `JobStore`."""
        await self._run(scripts.CLOSE, owner, submission_id, *self._until())

    def stats(self) -> Mapping[str, int]:
        """Counts of jobs since the start; nothing is ever pruned from here, for what is too old goes by itself."""
        return dict(self._counts)

    async def close(self) -> None:
        """Nothing is left to be done: whoever asked has waited."""

    def _until(self) -> tuple[str, str, int]:
        """Now, when a submission that is closed now is forgotten, and the milliseconds between."""
        now_s = self._now_s()
        return repr(now_s), repr(now_s + KEPT_S), int(KEPT_S * 1e3)

    async def _ids(self, owner: str, of: str, last: int) -> list[str]:
        """The jobs of a sorted set in order, up to the one at `last`; -1: all."""
        return [name.decode() for name in await self._ask("ZRANGE", f"{_prefix(owner)}{of}", 0, last)]

    async def _each(self, script: str, owner: str, ids: Sequence[str], *more: str) -> list[Any]:
        """What a script gives for jobs, some at a time: Redis serves others in between."""
        rows: list[Any] = []
        for at in range(0, len(ids), _AT_ONCE):
            rows += await self._run(script, owner, *more, json.dumps(ids[at : at + _AT_ONCE]))
        return rows

    async def _run(self, script: str, owner: str, *arguments: bytes | str | int) -> Any:
        prefix = _prefix(owner)
        try:
            return await self._link.run(script, [f"{prefix}load"], [prefix, *arguments])
        except RedisUnavailable as exc:
            raise self._failed() from exc

    async def _ask(self, *command: str | int) -> Any:
        try:
            return await self._link.ask(*command)
        except RedisUnavailable as exc:
            raise self._failed() from exc

    def _failed(self) -> JobsUnavailable:
        self._counts["failures"] += 1
        return JobsUnavailable("deferred requests cannot be looked up or kept now", retryable=True)


def _prefix(owner: str) -> str:
    """What the keys of an owner begin with; one whose name could end the hash tag goes by its digest."""
    if not (0 < len(owner) <= 64 and owner.isascii() and owner.replace("-", "").replace("_", "").isalnum()):
        owner = f"={hashlib.sha256(owner.encode('utf-8', 'surrogatepass')).hexdigest()}"
    return f"{PREFIX}{{{owner}}}:"


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _number(value: bytes | None) -> float | None:
    return None if value is None else float(value)
