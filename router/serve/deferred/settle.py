"""Was the batch of a submission made? What the upstream's list of batches says of it (F29, F89).

A batch carries no mark of ours but the names of its items, and these are seen only in its results. So the list is
looked through for batches of that time with as many items that belong to nobody else, as far as we know. One that has
ended is ours if its results are of our jobs, and of all of them; one that has not is waited for. Only when there is
none left, and nothing can still be on its way, was the batch never made: then its jobs wait to be sent again.

The clocks of the router and the upstream need not agree: the list is looked through from `_SKEW_S` before to `_SKEW_S`
behind the time in which the batch can have been made.
"""

from __future__ import annotations

from datetime import UTC, datetime

from router.errors import JobsUnavailable, RouterError
from router.jobs.deferred import Submission
from router.serve.deferred.kit import Work
from router.serve.deferred.late import begin_late

_SKEW_S = 2 * 3_600.0  # F82 names one hour


async def settled(work: Work, submission: Submission) -> str | None:
    """The batch that a submission became; None when it became none, and its jobs wait again."""
    kit, number, failures = work.kit, 0, 0
    others: set[str] = set()  # batches that are known to be somebody else's
    next_s: float | None = None
    while True:
        try:
            members = await kit.store.members(work.owner, submission.id)
            next_s = begin_late(work, members, None)
            batch, may_come = await _found(work, submission, others)
            if batch is not None:
                await kit.store.sent(work.owner, submission.id, batch)
                work.counts["settled"] += 1
                return batch
            if not may_come and kit.now_s() > submission.started_s + kit.pace.quiet:
                await kit.store.unsent(work.owner, submission.id, kit.now_s())
                work.counts["resent"] += 1
                return None
            failures = 0
        except (JobsUnavailable, RouterError) as exc:
            await work.patiently(exc, failures, next_s)
            failures += 1
            continue
        first_s, most_s = kit.pace.polls
        wait_s = min(most_s, first_s * 1.5**number) * (0.75 + kit.jitter() / 2)
        await work.nudged(wait_s if next_s is None else min(wait_s, max(0.001, next_s - kit.now_s())))
        number = min(number + 1, 20)


async def _found(work: Work, submission: Submission, others: set[str]) -> tuple[str | None, bool]:
    """The batch, where it is found; and whether one that is still worked on may be it. Raises RouterError."""
    kit = work.kit
    for now in await kit.store.open_submissions(work.owner):
        if now.id == submission.id and now.batch is not None:
            return now.batch, True  # it was written down since we were told of it, by us or by another process
    since = _as_text(submission.started_s - _SKEW_S)
    until = _as_text(submission.started_s + kit.pace.create + _SKEW_S)
    made = await kit.calls.made_since(work.credential, since)
    known = await kit.store.batches_of(work.owner)
    like = [
        entry
        for entry in reversed(made)  # the oldest first
        if _items(entry) == submission.items
        and entry["id"] not in known
        and entry["id"] not in others
        and str(entry.get("created_at")) <= until
    ]
    if like and kit.decisions is not None:  # what clients made through the router is theirs
        others.update(await kit.decisions.owners([str(entry["id"]) for entry in like]))
    jobs: frozenset[str] | None = None
    may_come = False
    for entry in like:
        batch = str(entry["id"])
        if batch in others:
            continue
        if entry.get("processing_status") != "ended":
            may_come = True
            continue
        if jobs is None:
            jobs = frozenset(member.id for member in await kit.store.members(work.owner, submission.id))
        names = await kit.calls.result_names(work.credential, batch, submission.items)
        if names and names <= jobs and len(names) == submission.items:
            return batch, True
        others.add(batch)
    return None, may_come


def _items(entry: object) -> int:
    """How many items the batch of a list has; -1 where that is not told."""
    counts = entry.get("request_counts") if isinstance(entry, dict) else None
    if not isinstance(counts, dict):
        return -1
    return sum(count for count in counts.values() if isinstance(count, int))


def _as_text(unix_s: float) -> str:
    """A time as the API writes it, to the second: such texts are in the order of the times."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")
