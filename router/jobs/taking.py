"""How waiting jobs are taken into a submission in SQLite, and what they say is read: in parts, for it may be large."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import TypeVar

from router.jobs.deferred import Requested, Submission

_READ_AT_ONCE = 500
_BYTES_AT_ONCE = 8 * 1024 * 1024

_T = TypeVar("_T")


def take(
    connection: sqlite3.Connection, submission: Submission, ids: Iterable[str]
) -> tuple[int, list[tuple[str, int, int]]]:
    """Take those of `ids` that wait → (how many, each of the submission that has not ended: id, number, bytes).

    Those that it had before are among them. A submission that was closed takes none, and has none.
    """
    key = submission.owner, submission.id
    known = connection.execute("SELECT closed_s FROM job_submissions WHERE owner = ? AND id = ?", key).fetchone()
    if known is not None and known[0] is not None:
        return 0, []
    taken = connection.executemany(
        "UPDATE jobs SET submission = ? WHERE owner = ? AND id = ? AND submission IS NULL AND ended_s IS NULL",
        ((submission.id, submission.owner, job_id) for job_id in ids),
    ).rowcount
    if known is not None:
        connection.execute("UPDATE job_submissions SET items = items + ? WHERE owner = ? AND id = ?", (taken, *key))
    elif taken > 0:
        connection.execute(
            "INSERT INTO job_submissions (owner, id, batch_group, started_s, items, batch) VALUES (?, ?, ?, ?, ?, ?)",
            (*key, submission.group, submission.started_s, taken, submission.batch),
        )
    members = connection.execute(
        "SELECT id, seq, request_bytes FROM jobs WHERE owner = ? AND submission = ? AND ended_s IS NULL"
        " AND is_canceled = 0",
        key,
    )
    return max(taken, 0), members.fetchall()


def slices(members: Iterable[tuple[_T, int]]) -> list[list[_T]]:
    """Jobs with the sizes of their requests, in bytes → jobs, as many together as are read at once."""
    found: list[list[_T]] = []
    room = 0
    for member, size in members:
        if not found or size > room or len(found[-1]) >= _READ_AT_ONCE:
            found.append([])
            room = _BYTES_AT_ONCE
        found[-1].append(member)
        room -= size
    return found


def requests(connection: sqlite3.Connection, numbers: Sequence[int]) -> list[Requested]:
    """What the jobs of these numbers are sent by, in this order; without those that have ended meanwhile."""
    marks = ",".join("?" * len(numbers))
    asked = f"SELECT seq, id, meta, request FROM jobs JOIN job_requests USING (seq) WHERE seq IN ({marks})"  # noqa: S608 - marks
    found = {seq: Requested(*rest) for seq, *rest in connection.execute(asked, tuple(numbers))}
    return [found[seq] for seq in numbers if seq in found]
