"""The deferred lane when its own house is in trouble: a store that is locked or slow, crowds, stops at a bad moment."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from time import perf_counter

import pytest
from kit.batch_upstream import BatchUpstream
from kit.deferred_jobs import (
    LANE,
    LATE,
    SENT_AND_LATE,
    SOON,
    accepted,
    answered,
    keeper,
    name_of,
    path_of,
    said,
    set_pace,
)
from kit.stage import KEY, WAIT_S, Stage, always, request_body, stage, until

import router.jobs.group_commit
import router.serve.deferred.keeper
from router.errors import JobsUnavailable
from router.jobs.deferred import Job, JobView, Member, Waiting
from router.jobs.jobs_sqlite import SqliteJobs
from router.serve.deferred.keeper import Keeper
from router.trace.sqlite import SqliteTraceSink

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane at a pace that no test has to wait for."""
    set_pace(monkeypatch)


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """As long as it lasts nobody else can write to this file."""
    with closing(sqlite3.connect(store, isolation_level=None, timeout=WAIT_S)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def _looks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often was asked which jobs wait, by owner."""
    asked: Counter[str] = Counter()
    look = SqliteJobs.waiting

    async def waiting(self: SqliteJobs, owner: str, limit: int) -> Sequence[Waiting]:
        asked[owner] += 1
        return await look(self, owner, limit)

    monkeypatch.setattr(SqliteJobs, "waiting", waiting)
    return asked


def _jobs(s: Stage) -> dict[str, int]:
    """The counts of the store."""
    assert s.app.deferred is not None
    return dict(s.app.deferred.gauges["jobs"]())


# A store that is locked, slow, or cannot be read


async def test_an_answer_in_real_time_is_paid_once_however_long_it_cannot_be_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.jobs.group_commit, "_WRITE_WAIT_S", 0.02)
    up = BatchUpstream()
    up.may_answer.clear()
    async with stage(up.behave, policy=LATE, jobs=f"sqlite:///{tmp_path}/jobs.db") as s:
        path = await accepted(s)
        await until(lambda: len(up.plain) == 1)
        with _locked(tmp_path / "jobs.db"):
            up.may_answer.set()
            await until(lambda: keeper(s).counts["real_time"] == 1)
            failures = _jobs(s)["failures"]
            await until(lambda: _jobs(s)["failures"] >= failures + 4)
            assert (await s.request("GET", path, None, KEY)).status == 202
        assert said(await answered(s, path)) == "at once"
        assert len(up.plain) == 1


async def test_a_store_that_cannot_be_read_is_not_asked_in_a_rush_while_a_job_is_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That its answer is due must not mean that no wait is left between two tries."""
    set_pace(monkeypatch, again=(0.2, 0.4))
    up = BatchUpstream()
    tries: list[float] = []
    async with stage(up.behave, policy=SENT_AND_LATE) as s:
        path = await accepted(s)
        late_s = perf_counter() + 0.6
        await until(lambda: up.looks > 0)
        with monkeypatch.context() as broken:

            async def members(self: SqliteJobs, owner: str, submission_id: str) -> Sequence[Member]:
                if perf_counter() > late_s:
                    tries.append(perf_counter())
                raise JobsUnavailable("gone for now", retryable=True)

            broken.setattr(SqliteJobs, "members", members)
            await until(lambda: len(tries) >= 4)
        assert tries[3] - tries[0] >= 3 * 0.1
        assert said(await answered(s, path)) == "at once"


async def test_what_was_accepted_is_said_to_be_although_it_cannot_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    up = BatchUpstream(ends_at_once=True)
    async with stage(up.behave, policy=SOON) as s:
        with monkeypatch.context() as broken:

            async def look(self: SqliteJobs, owner: str, job_id: str, tenant: str) -> JobView | None:
                raise JobsUnavailable("gone for now", retryable=True)

            broken.setattr(SqliteJobs, "look", look)
            reply = await s.messages(LANE, (b"prefer", b"wait=5"), text="keep this")
        path = path_of(reply)
        assert reply.header("preference-applied") == "respond-async, wait=5"
        assert said(await answered(s, path)) == f"for {name_of(path)}"


@pytest.mark.parametrize("is_named", [False, True], ids=["by nobody", "by an idempotency-key"])
async def test_a_call_that_was_kept_too_late_to_say_so_goes_up_once_when_it_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_named: bool
) -> None:
    """The first try is withdrawn, as its client knows nothing of it; one named by its client is the same job."""
    named = [(b"idempotency-key", b"order-9")] if is_named else []
    up = BatchUpstream(ends_at_once=True)
    async with stage(up.behave, policy=SOON, jobs=f"sqlite:///{tmp_path}/jobs.db") as s:
        await answered(s, await accepted(s, "so that the file is there"))
        with monkeypatch.context() as slow, _locked(tmp_path / "jobs.db"):
            slow.setattr(router.jobs.group_commit, "_SLOW_S", -1.9)  # a lock is waited for longer than a client is
            refused = await s.messages(LANE, *named, text="once")
            assert refused.status == 503
        await until(lambda: not keeper(s)._withdrawn)
        path = await accepted(s, "once", *named)
        assert said(await answered(s, path)) == f"for {name_of(path)}"
        await until(lambda: keeper(s).stats()["owners"] == 0)  # nothing is left to send
        assert [len(batch.items) for batch in up.batches] == [1, 1]
        if is_named:
            assert _jobs(s)["canceled"] == 0


async def test_however_many_calls_a_broken_store_refuses_it_is_asked_a_few_at_a_time_whether_they_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What nobody hears of again must not keep a store down; once it is back, all of them are withdrawn."""
    set_pace(monkeypatch, look=0.01)
    monkeypatch.setattr(router.serve.deferred.keeper, "_WITHDRAWN_AT_ONCE", 3)
    withdrawn: list[str] = []
    is_broken, asking, most, tries = True, 0, 0, 0

    async def accept(self: SqliteJobs, job: Job) -> None:
        raise JobsUnavailable("too slow", retryable=True)

    async def cancel(self: SqliteJobs, owner: str, job_id: str, tenant: str) -> str:
        nonlocal asking, most, tries
        asking, tries = asking + 1, tries + 1
        most = max(most, asking)
        await asyncio.sleep(0)
        asking -= 1
        if is_broken:
            raise JobsUnavailable("too slow", retryable=True)
        withdrawn.append(job_id)
        return "removed"

    monkeypatch.setattr(SqliteJobs, "accept", accept)
    monkeypatch.setattr(SqliteJobs, "cancel", cancel)
    async with stage(BatchUpstream().behave, policy=SOON) as s:
        for _ in range(10):
            assert (await s.messages(LANE, text="keep this")).status == 503
        await until(lambda: tries >= 6)
        is_broken = False
        await until(lambda: not keeper(s)._withdrawn)
    assert len(set(withdrawn)) == len(withdrawn) == 10
    assert most == 3


# Crowds


async def test_of_many_owners_no_more_than_four_make_batches_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is megabytes."""
    set_pace(monkeypatch, create=WAIT_S, quiet=2 * WAIT_S)
    looks, up = _looks(monkeypatch), BatchUpstream(ends_at_once=True)
    up.may_create.clear()
    async with stage(up.behave, policy=SOON) as s:
        keys = [[(b"x-api-key", b"sk-owner-%d" % number), KEY[1]] for number in range(10)]
        paths = [path_of(await s.post(request_body(), [*key, LANE])) for key in keys]
        await until(lambda: up.creating == 4 and sum(count >= 3 for count in looks.values()) >= 6)
        up.may_create.set()
        for path, key in zip(paths, keys, strict=True):
            assert (await answered(s, path, key)).status == 200
        assert up.most_creating == 4
        assert len(up.batches) == 10


async def test_who_asks_for_a_job_that_waits_makes_nobody_look_through_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_pace(monkeypatch, look=0.001, lease=600.0)
    looks, up = _looks(monkeypatch), BatchUpstream()
    async with stage(up.behave, policy=always("deferred: {max_wait: 1h}")) as s:
        path = await accepted(s)
        for _ in range(40):
            assert (await s.request("GET", path, None, KEY)).status == 202
        assert 1 <= looks.total() <= 3


async def test_many_cancels_make_no_storm_of_looks_at_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    set_pace(monkeypatch, polls=(600.0, 600.0))
    up = BatchUpstream()
    async with stage(up.behave, policy=always("deferred: {max_wait: 1h, max_items: 8}")) as s:
        paths = await asyncio.gather(*(accepted(s, f"{number}") for number in range(24)))
        await until(lambda: len(up.batches) == 3)
        first = up.batches[0]
        others = [path for path in paths if name_of(path) not in first.items]
        for path in [each for each in others if each not in (others[0], others[-1])]:
            assert (await s.request("DELETE", path, None, KEY)).status == 200
        for path in set(paths) - set(others):
            assert (await s.request("DELETE", path, None, KEY)).status == 200
        await until(lambda: first.is_canceled)
        assert up.looks <= 3  # one for each batch that became vain


# Stops


async def test_a_stop_waits_for_an_answer_in_real_time_and_the_next_process_does_not_pay_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = BatchUpstream()
    up.may_answer.clear()
    kept = {"traces": f"sqlite:///{tmp_path}/traces.db", "policy": LATE}
    close = Keeper.close

    async def closing(self: Keeper) -> None:
        up.may_answer.set()  # the answer comes after the stop has begun
        await close(self)

    monkeypatch.setattr(Keeper, "close", closing)
    async with stage(up.behave, **kept) as s:
        path = await accepted(s)
        await until(lambda: len(up.plain) == 1)
    async with stage(up.behave, **kept) as s:
        assert said(await answered(s, path)) == "at once"
        assert len(up.plain) == 1


def test_a_stop_is_not_held_up_by_a_trace_store_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the wait itself, and not by the thread that waits: Python's end waits for that."""
    is_waited_for = threading.Event()

    def flush(self: SqliteTraceSink, timeout_s: float = WAIT_S) -> bool:
        is_waited_for.set()
        threading.Event().wait(timeout_s)
        return False

    monkeypatch.setattr(SqliteTraceSink, "flush", flush)
    stopped_s = 0.0

    async def run() -> None:
        nonlocal stopped_s
        up = BatchUpstream(ends_at_once=True)
        async with stage(up.behave, policy=SOON) as s:
            await accepted(s)
            await until(is_waited_for.is_set)
            stopped_s = perf_counter()

    asyncio.run(run())
    assert perf_counter() - stopped_s < 3.0
