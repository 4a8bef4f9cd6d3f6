"""A batch of deferred requests from its making to the end of its last job: polled, read, booked, answered.

Results are read once all is over; each line is booked before its job ends, and the submission is closed only when what
was booked is in the trace store. So whoever is killed on the way does it again, and nothing is counted twice. The bytes
of a Message are cut out of its line as they stand there. What the upstream does not answer to holds up no job that is
to be answered in real time, and a batch that it does not know is given up only after a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

from router.errors import JobsUnavailable, MissingCredential, RouterError, UpstreamUnreachable
from router.jobs.deferred import JobAnswer, Member, Submission
from router.serve.deferred.kit import Work
from router.serve.deferred.late import all_late, begin_late
from router.serve.deferred.money import booked, kept, note_of
from router.serve.deferred.words import Meta, Note, error_answer, status_of
from router.wire.jsonl import read_line
from router.wire.messages import object_spans

_LARGE = 256 * 1024  # bytes of a line that is read in a thread
_AT_ONCE = 100  # jobs that end together: the store writes them down in one go
_BYTES_AT_ONCE = 8 * 1024 * 1024
_FETCHABLE_S = 29 * 86_400.0  # of results, from the making of a batch. Source: batch documentation
_LOCKED_OUT_S = 3_600.0  # after which a client's credential that is refused will not do any more
_ROOM_S = 0.02
_FLUSHES = 10  # of a second each


async def followed(work: Work, submission: Submission, batch: str) -> None:
    """Look after a batch until all of its jobs have ended; then the submission is closed."""
    kit, number, failures, is_canceled = work.kit, 0, 0, False
    poll_s = kit.now_s() + _wait_s(work, 0)  # when to look at the batch next
    missing_s: float | None = None  # since when there is no such batch
    locked_out_s: float | None = None  # since when the credential is refused
    next_s: float | None = None
    while True:
        try:
            members = await kit.store.members(work.owner, submission.id)
            next_s = begin_late(work, members, batch)
            open_ = [member for member in members if not (member.is_ended or member.is_canceled)]
            now_s = kit.now_s()
            if now_s >= poll_s or (not open_ and not is_canceled):
                number = min(number + 1, 20)
                poll_s = now_s + _wait_s(work, number)
                shown = await kit.calls.retrieve(work.credential, batch)
                work.counts["polls"] += 1
                locked_out_s = None
                if shown is not None and shown.get("processing_status") == "ended":
                    await _collected(work, batch, {member.id: member for member in members})
                    break
                missing_s = None if shown is not None else missing_s or now_s
                is_missing = missing_s is not None and now_s > missing_s + kit.pace.quiet
                if is_missing or now_s > submission.started_s + _FETCHABLE_S:
                    await _given_up(work, batch, open_, "conflict_error", "the batch that held this request is gone")
                    break
                if shown is not None and not open_ and not is_canceled:
                    await kit.calls.cancel(work.credential, batch)
                    is_canceled = True
            failures = 0
        except MissingCredential as exc:
            now_s = kit.now_s()
            locked_out_s = locked_out_s or now_s
            if now_s > locked_out_s + _LOCKED_OUT_S and not kit.keeps_key:
                await _given_up(work, batch, open_, "authentication_error", "the credential of this request is refused")
                break
            await work.patiently(exc, failures, next_s)
            failures += 1
        except (JobsUnavailable, RouterError) as exc:
            await work.patiently(exc, failures, next_s)
            failures += 1
        else:
            wait_s = max(0.001, min(poll_s, poll_s if next_s is None else next_s) - kit.now_s())
            if await work.nudged(wait_s):
                await asyncio.sleep(min(wait_s, kit.pace.look))  # who cancels many makes no storm of looks
    await work.surely(lambda: kit.store.close_submission(work.owner, submission.id))


async def _collected(work: Work, batch: str, members: Mapping[str, Member]) -> None:
    """Read the results of a batch that has ended: book what was billed, and end its jobs. Raises RouterError."""
    kit = work.kit
    left = dict(members)
    ending: list[tuple[Member, JobAnswer]] = []
    late: list[str] = []
    size = 0
    async with aclosing(kit.calls.results(work.credential, batch)) as results:
        async for lines in results:
            for line in lines:
                entry = read_line(line) if len(line) < _LARGE else await asyncio.to_thread(read_line, line)
                member = left.pop(str(entry.get("custom_id")), None)
                if member is None:
                    continue  # not ours, or for the second time
                answer = await _ended_by(work, batch, member, entry, line)
                if answer is None:
                    late.append(member.id)
                    continue
                ending.append((member, answer))
                size += len(answer.body)
                if len(ending) >= _AT_ONCE or size >= _BYTES_AT_ONCE:
                    await _end(work, ending)
                    ending, size = [], 0
    for member in left.values():
        message = "the batch that held this request ended without a word about it"
        ending.append((member, error_answer("api_error", message, member.id, kit.now_s())))
    await _end(work, ending)
    await all_late(work, late, batch)
    if late and any(not (each.is_ended or each.is_canceled) for each in await _still(work, batch, late)):
        raise UpstreamUnreachable("jobs of a batch that has ended wait for their answers in real time", retryable=True)
    if kit.flush is not None:
        for _ in range(_FLUSHES):  # a trace store that takes nothing more is not waited for without end
            if await asyncio.to_thread(kit.flush):
                break


async def _still(work: Work, batch: str, job_ids: Sequence[str]) -> list[Member]:
    """Those of these jobs that are there, of the submission that became `batch`."""
    store = work.kit.store
    for submission in await store.open_submissions(work.owner):
        if submission.batch == batch:
            return [each for each in await store.members(work.owner, submission.id) if each.id in set(job_ids)]
    return []


async def _ended_by(work: Work, batch: str, member: Member, entry: Mapping[str, Any], line: bytes) -> JobAnswer | None:
    """What one line of the results says of a job; None where it is to be answered in real time."""
    kit, result = work.kit, entry.get("result")
    kind = result.get("type") if isinstance(result, dict) else None
    meta, now_s = Meta.of(member.meta), kit.now_s()
    if isinstance(result, dict) and kind == "succeeded" and isinstance(result.get("message"), dict):
        outcome = await _outcome(work, member, meta)
        item = booked(batch, member.id, meta, result["message"], int(now_s * 1e9), kit.catalog, outcome=outcome)
        if kit.cache is not None and outcome == "ok":
            try:
                item.is_stored = await kept(kit.cache, meta, item, line)
            except Exception as exc:  # it fails open: an answer that cannot be kept is an answer all the same
                kit.report(item.trace_id, exc)
        while not kit.items.has_room():  # noqa: ASYNC110 - the sink tells nobody when it has
            await asyncio.sleep(_ROOM_S)
        kit.items.write(item)
        work.counts["succeeded" if outcome == "ok" else "vain"] += 1
        return _cut_out(line, "message", 200, note_of(item), member, now_s)
    if member.is_ended or member.is_canceled:
        return JobAnswer(404, b"", b"", now_s)  # which nobody sees
    if isinstance(result, dict) and kind == "errored" and isinstance(result.get("error"), dict):
        work.counts["errored"] += 1
        return _cut_out(line, "error", status_of(result["error"]), Note(), member, now_s)
    if meta.answers_late:
        return None
    work.counts["errored"] += 1
    if kind == "expired":
        return error_answer("timeout_error", "the batch that held this request expired", member.id, now_s)
    if kind == "canceled":
        return error_answer("conflict_error", "the batch that held this request was canceled", member.id, now_s)
    return error_answer("api_error", "the result of this request cannot be read", member.id, now_s)


def _cut_out(line: bytes, name: str, status: int, note: Note, member: Member, now_s: float) -> JobAnswer:
    """The answer whose bytes stand under `name` in the result of a line."""
    try:
        text = line
        for key in ("result", name):
            start, end = object_spans(text)[key]
            text = text[start:end]
    except (KeyError, ValueError, IndexError):  # a line that two readers read in two ways
        return error_answer("api_error", "the result of this request cannot be read", member.id, now_s)
    return JobAnswer(status, text, note.packed(), now_s)


async def _outcome(work: Work, member: Member, meta: Meta) -> str:
    """`ok`, or why nobody waited for an answer that is billed. Raises JobsUnavailable.

    Results are read again where a process was killed before their trace was in the store. Its job has ended then, by
    this very answer unless that was made in real time.
    """
    if member.is_canceled:
        return "client_closed"
    if member.is_ended:
        view = await work.kit.store.look(work.owner, member.id, meta.tenant)
        answer = None if view is None else view.answer
        if answer is None or answer.status != 200 or Note.of(answer.note).is_real_time:
            return "cut"
    return "ok"


async def _given_up(work: Work, batch: str, members: Sequence[Member], kind: str, message: str) -> None:
    """No results will come: the jobs are answered in real time where their rule says so, or end with an error."""
    late = [member.id for member in members if Meta.of(member.meta).answers_late]
    now_s = work.kit.now_s()
    rest = [(each, error_answer(kind, message, each.id, now_s)) for each in members if each.id not in set(late)]
    await work.surely(lambda: _end(work, rest))
    await all_late(work, late, batch)


async def _end(work: Work, ending: Sequence[tuple[Member, JobAnswer]]) -> None:
    """End jobs together. Raises JobsUnavailable."""
    await asyncio.gather(*(work.ended(member.id, answer, Meta.of(member.meta)) for member, answer in ending))


def _wait_s(work: Work, number: int) -> float:
    first_s, most_s = work.kit.pace.polls
    return float(min(most_s, first_s * 1.5**number) * (0.75 + work.kit.jitter() / 2))
