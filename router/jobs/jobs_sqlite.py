"""Deferred requests in the SQLite file of `jobs`: accepted ones are on the disk, many with one fsync.

What was sent and has not ended never goes by itself. What was never sent goes after 30 days: then nobody has asked for
it all that time. What has ended keeps its answer for a week; its request goes at once. Which batches were made is
remembered for as long as their results could be fetched. Routers of one host may share the file.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from router.errors import JobsUnavailable, Overloaded
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
from router.jobs.group_commit import GroupCommit
from router.jobs.holder import is_gone
from router.jobs.taking import requests, slices, take

KEPT_S = 30 * 86_400.0  # of submissions: results can be fetched for 29 days. Source: batch documentation
ENDED_KEPT_S = 7 * 86_400.0
MOST_JOBS = 100_000
MOST_BYTES = 4 * 1024**3
_OWNERS = 4  # as many times as much are taken of all owners together
_PRUNE_EACH_S = 60.0
_BREATH_S = 0.02  # between two slices of what is too old
_PRUNED_AT_ONCE = 500
_COUNTED = ("accepted", "begun", "sent", "unsent", "ended", "canceled", "pruned")


class SqliteJobs:
    """A `seams.JobStore` over one file, made where it is missing; opened at the first use.

    `now_s` is Unix time. An answer stays for `kept_s` seconds. An owner has `most_jobs` jobs at the most that have not
    ended, with `most_bytes` of requests. `is_gone` says of a holder whether it is known to be dead.
    """

    def __init__(
        self,
        path: Path,
        *,
        now_s: Callable[[], float] = time.time,
        kept_s: float = ENDED_KEPT_S,
        most_jobs: int = MOST_JOBS,
        most_bytes: int = MOST_BYTES,
        is_gone: Callable[[str], bool] = is_gone,
    ) -> None:
        self._file = GroupCommit(path, now_s=now_s)
        self._now_s = now_s
        self._kept_s = kept_s
        self._most_jobs = most_jobs
        self._most_bytes = most_bytes
        self._is_gone = is_gone
        self._counts = dict.fromkeys(_COUNTED, 0)
        self._unended = self._unended_bytes = 0  # of all owners, as of the last acceptance, end or slice
        self._prunes_at_s = 0.0  # of the monotonic clock
        self._behind: asyncio.Task[None] | None = None

    async def accept(self, job: Job) -> None:
        """See `JobStore`."""

        def work(connection: sqlite3.Connection) -> bool | None:
            if connection.execute("SELECT 1 FROM jobs WHERE owner = ? AND id = ?", (job.owner, job.id)).fetchone():
                return False  # told twice
            asked = "SELECT unended, unended_bytes FROM job_owners WHERE owner = ?"
            jobs, size = connection.execute(asked, (job.owner,)).fetchone() or (0, 0)
            if jobs >= self._most_jobs or size + len(job.request) > self._most_bytes:
                return None
            if self._unended >= _OWNERS * self._most_jobs or self._unended_bytes > _OWNERS * self._most_bytes:
                return None
            seq = connection.execute(
                "INSERT INTO jobs (owner, id, tenant, batch_group, created_s, due_s, late_s, most, size, not_before_s,"
                " request_bytes, meta) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
                (
                    *(job.owner, job.id, job.tenant, job.group, job.created_s, job.due_s, job.late_s, job.most),
                    *(job.size, len(job.request), job.meta),
                ),
            ).lastrowid
            connection.execute("INSERT INTO job_requests VALUES (?, ?)", (seq, job.request))
            self._count_unended(connection)
            return True

        is_new = await self._file.write(work, size=len(job.request) + len(job.meta))
        if is_new is None:
            raise Overloaded(
                f"too many deferred requests wait for their answers, expected {self._most_jobs} at the most with "
                f"{self._most_bytes} bytes together",
                retryable=True,
            )
        self._counts["accepted"] += is_new
        self._see_to_the_old()

    async def look(self, owner: str, job_id: str, tenant: str) -> JobView | None:
        """See `JobStore`."""

        def work(connection: sqlite3.Connection) -> JobView | None:
            row = connection.execute(
                "SELECT created_s, due_s, meta, submission, batch, ended_s, status, note, body FROM jobs"
                " LEFT JOIN job_submissions s ON s.owner = jobs.owner AND s.id = jobs.submission"
                " LEFT JOIN job_answers USING (seq)"
                " WHERE jobs.owner = ? AND jobs.id = ? AND tenant = ? AND is_canceled = 0",
                (owner, job_id, tenant),
            ).fetchone()
            if row is None:
                return None
            created_s, due_s, meta, submission, batch, ended_s, status, note, body = row
            answer = None
            state: JobState = "waiting" if submission is None else "sending" if batch is None else "sent"
            if ended_s is not None:
                if ended_s < self._now_s() - self._kept_s:
                    return None  # the slice that it goes with is yet to come
                state, answer = "ended", JobAnswer(status, body, note, ended_s)
            return JobView(job_id, state, created_s, due_s, meta, batch, answer)

        return await self._file.read(work)

    async def cancel(self, owner: str, job_id: str, tenant: str) -> Canceled:
        """See `JobStore`. Unknown is what `look` would not find."""

        def work(connection: sqlite3.Connection) -> Canceled:
            row = connection.execute(
                "SELECT seq, submission, ended_s, s.id IS NOT NULL FROM jobs LEFT JOIN job_submissions s"
                " ON s.owner = jobs.owner AND s.id = jobs.submission AND closed_s IS NULL"
                " WHERE jobs.owner = ? AND jobs.id = ? AND tenant = ? AND is_canceled = 0",
                (owner, job_id, tenant),
            ).fetchone()
            if row is None or (row[2] is not None and row[2] < self._now_s() - self._kept_s):
                return "unknown"
            seq, submission, ended_s, is_open = row
            if is_open:  # its batch may be billed for it: it goes with its submission
                connection.execute("UPDATE jobs SET is_canceled = 1, status = NULL, note = NULL WHERE seq = ?", (seq,))
                connection.execute("DELETE FROM job_answers WHERE seq = ?", (seq,))
            else:
                connection.execute("DELETE FROM jobs WHERE seq = ?", (seq,))
            self._count_unended(connection)
            return "ended" if ended_s is not None else "removed" if submission is None else "marked"

        outcome: Canceled = await self._file.write(work)
        self._counts["canceled"] += outcome != "unknown"
        return outcome

    async def lead(self, owner: str, holder: str, ttl_s: float) -> bool:
        """See `JobStore`."""

        def work(connection: sqlite3.Connection) -> bool:
            now_s = self._now_s()
            row = connection.execute("SELECT holder, until_s FROM job_leases WHERE owner = ?", (owner,)).fetchone()
            if row is not None and row[0] != holder and row[1] > now_s and not self._is_gone(row[0]):
                return False
            connection.execute("INSERT OR REPLACE INTO job_leases VALUES (?, ?, ?)", (owner, holder, now_s + ttl_s))
            return True

        return await self._file.write(work, is_durable=False)

    async def leave(self, owner: str, holder: str) -> None:
        """See `JobStore`."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM job_leases WHERE owner = ? AND holder = ?", (owner, holder))

        await self._file.write(work, is_durable=False)

    async def waiting(self, owner: str, limit: int) -> Sequence[Waiting]:
        """See `JobStore`."""

        def work(connection: sqlite3.Connection) -> list[Waiting]:
            rows = connection.execute(
                "SELECT id, batch_group, created_s, due_s, late_s, most, size, not_before_s FROM jobs"
                " WHERE owner = ? AND submission IS NULL AND ended_s IS NULL ORDER BY seq LIMIT ?",
                (owner, limit),
            )
            return [Waiting(*row) for row in rows]

        return await self._file.read(work)

    async def begin(self, holder: str, submission: Submission, ids: Sequence[str]) -> Sequence[Requested]:
        """See `JobStore`. Told twice it gives the same, without what has ended since."""
        owner, wanted = submission.owner, dict.fromkeys(ids)

        def work(connection: sqlite3.Connection) -> tuple[int, list[tuple[str, int, int]]]:
            asked = "SELECT until_s FROM job_leases WHERE owner = ? AND holder = ?"
            lease = connection.execute(asked, (owner, holder)).fetchone()
            return (0, []) if lease is None or lease[0] <= self._now_s() else take(connection, submission, wanted)

        if not wanted:
            return []
        taken, members = await self._file.write(work)
        self._counts["begun"] += taken
        by_id = {job_id: (seq, size) for job_id, seq, size in members}
        found: list[Requested] = []
        for some in slices(by_id[job_id] for job_id in wanted if job_id in by_id):
            found += await self._file.read(partial(requests, numbers=some))
        return found

    async def sent(self, owner: str, submission_id: str, batch: str) -> None:
        """See `JobStore`. The batch that was told first stays."""

        def work(connection: sqlite3.Connection) -> int:
            key = owner, submission_id
            asked = "SELECT items FROM job_submissions WHERE owner = ? AND id = ? AND batch IS NULL"
            row = connection.execute(asked, key).fetchone()
            connection.execute(
                "UPDATE job_submissions SET batch = coalesce(batch, ?) WHERE owner = ? AND id = ?", (batch, *key)
            )
            return 0 if row is None else int(row[0])

        self._counts["sent"] += await self._file.write(work)

    async def unsent(self, owner: str, submission_id: str, not_before_s: float, most: int | None = None) -> None:
        """See `JobStore`. The submission is closed by it; canceled jobs are gone with it. One with a batch stays."""

        def work(connection: sqlite3.Connection) -> int:
            key = owner, submission_id
            asked = "SELECT 1 FROM job_submissions WHERE owner = ? AND id = ? AND closed_s IS NULL AND batch IS NULL"
            if connection.execute(asked, key).fetchone() is None:
                return 0
            connection.execute("DELETE FROM jobs WHERE owner = ? AND submission = ? AND is_canceled = 1", key)
            waiting = connection.execute(
                "UPDATE jobs SET submission = NULL, not_before_s = ?, most = coalesce(?, most)"
                " WHERE owner = ? AND submission = ? AND ended_s IS NULL",
                (not_before_s, most, *key),
            ).rowcount
            self._close(connection, key)
            return waiting

        self._counts["unsent"] += await self._file.write(work)

    async def open_submissions(self, owner: str) -> Sequence[Submission]:
        """See `JobStore`. In the order in which they were started."""

        def work(connection: sqlite3.Connection) -> list[Submission]:
            rows = connection.execute(
                "SELECT id, owner, batch_group, started_s, items, batch FROM job_submissions"
                " WHERE owner = ? AND closed_s IS NULL ORDER BY started_s, id",
                (owner,),
            )
            return [Submission(*row) for row in rows]

        return await self._file.read(work)

    async def batches_of(self, owner: str) -> frozenset[str]:
        """See `JobStore`."""

        def work(connection: sqlite3.Connection) -> frozenset[str]:
            asked = "SELECT batch FROM job_submissions WHERE owner = ? AND batch IS NOT NULL"
            return frozenset(batch for (batch,) in connection.execute(asked, (owner,)))

        return await self._file.read(work)

    async def members(self, owner: str, submission_id: str) -> Sequence[Member]:
        """See `JobStore`. In the order in which they were accepted."""

        def work(connection: sqlite3.Connection) -> list[Member]:
            rows = connection.execute(
                "SELECT id, ended_s, is_canceled, late_s, meta FROM jobs"
                " WHERE owner = ? AND submission = ? ORDER BY seq",
                (owner, submission_id),
            )
            return [Member(name, end is not None, bool(gone), late, meta) for name, end, gone, late, meta in rows]

        return await self._file.read(work)

    async def request_of(self, owner: str, job_id: str) -> Requested | None:
        """See `JobStore`. None for one that has ended or was canceled."""

        def work(connection: sqlite3.Connection) -> Requested | None:
            asked = (
                "SELECT id, meta, request FROM jobs JOIN job_requests USING (seq)"
                " WHERE owner = ? AND id = ? AND is_canceled = 0"
            )
            row = connection.execute(asked, (owner, job_id)).fetchone()
            return None if row is None else Requested(*row)

        return await self._file.read(work)

    async def finish(self, owner: str, job_id: str, answer: JobAnswer) -> bool:
        """See `JobStore`. False too for a job that is not there."""

        def work(connection: sqlite3.Connection) -> bool:
            asked = "SELECT seq, is_canceled FROM jobs WHERE owner = ? AND id = ? AND ended_s IS NULL"
            row = connection.execute(asked, (owner, job_id)).fetchone()
            if row is None:
                return False
            connection.execute("UPDATE jobs SET ended_s = ? WHERE seq = ?", (answer.ended_s, row[0]))
            if not row[1]:
                asked = "UPDATE jobs SET status = ?, note = ? WHERE seq = ?"
                connection.execute(asked, (answer.status, answer.note, row[0]))
                connection.execute("INSERT INTO job_answers VALUES (?, ?)", (row[0], answer.body))
            self._count_unended(connection)
            return True

        is_first = await self._file.write(work, size=len(answer.body) + len(answer.note))
        self._counts["ended"] += is_first
        self._see_to_the_old()
        return is_first

    async def close_submission(self, owner: str, submission_id: str) -> None:
        """See `JobStore`."""

        def work(connection: sqlite3.Connection) -> None:
            key = owner, submission_id
            connection.execute("DELETE FROM jobs WHERE owner = ? AND submission = ? AND is_canceled = 1", key)
            connection.execute(
                "DELETE FROM job_requests WHERE seq IN (SELECT seq FROM jobs WHERE owner = ? AND submission = ?)", key
            )
            self._close(connection, key)
            self._count_unended(connection)

        await self._file.write(work)
        self._see_to_the_old()

    def stats(self) -> Mapping[str, int]:
        """Counts of jobs since the start; `unended` are those in the file, of all owners, as last seen from here."""
        return {**self._counts, "failures": self._file.failures, "unended": self._unended}

    async def close(self) -> None:
        """Close the file, behind what is under way. Calls after it fail."""
        if self._behind is not None:
            self._behind.cancel()
            with suppress(asyncio.CancelledError):
                await self._behind
        await self._file.close()

    async def settled(self) -> None:
        """Wait until nothing that is too old is there, as far as this process sees to it."""
        if self._behind is not None:
            await self._behind

    def _close(self, connection: sqlite3.Connection, key: tuple[str, str]) -> None:
        connection.execute(
            "UPDATE job_submissions SET closed_s = ? WHERE owner = ? AND id = ? AND closed_s IS NULL",
            (self._now_s(), *key),
        )

    def _count_unended(self, connection: sqlite3.Connection) -> None:
        asked = "SELECT coalesce(sum(unended), 0), coalesce(sum(unended_bytes), 0) FROM job_owners"
        self._unended, self._unended_bytes = connection.execute(asked).fetchone()

    def _see_to_the_old(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._prunes_at_s and not self._file.is_closed and (self._behind is None or self._behind.done()):
            self._prunes_at_s = now_s + _PRUNE_EACH_S
            self._behind = asyncio.get_running_loop().create_task(self._prune())

    async def _prune(self) -> None:
        """Delete what is too old, slice by slice, others writing in between."""
        with suppress(JobsUnavailable):  # it was counted and said; the next time is soon
            while await self._file.write(self._pruned, is_durable=False):  # noqa: ASYNC110 - each turn is a slice
                await asyncio.sleep(_BREATH_S)

    def _pruned(self, connection: sqlite3.Connection) -> bool:
        """Delete some of what is too old; whether there may be more."""
        now_s = self._now_s()
        jobs = connection.execute(
            "DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE ended_s < ? LIMIT ?)",
            (now_s - self._kept_s, _PRUNED_AT_ONCE),
        ).rowcount
        jobs += connection.execute(
            "DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE submission IS NULL AND ended_s IS NULL"
            " AND created_s < ? LIMIT ?)",
            (now_s - KEPT_S, _PRUNED_AT_ONCE),
        ).rowcount
        rows = connection.execute(
            "SELECT owner, id FROM job_submissions WHERE closed_s < ? LIMIT ?", (now_s - KEPT_S, _PRUNED_AT_ONCE)
        ).fetchall()
        connection.executemany("DELETE FROM job_submissions WHERE owner = ? AND id = ?", rows)
        connection.execute("DELETE FROM job_owners WHERE unended = 0")
        connection.execute("PRAGMA incremental_vacuum(1000)").fetchall()  # each row that is fetched is a page
        self._count_unended(connection)
        self._counts["pruned"] += jobs + len(rows)
        return jobs >= _PRUNED_AT_ONCE or len(rows) == _PRUNED_AT_ONCE
