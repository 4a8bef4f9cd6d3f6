"""The deferred lane when something goes wrong inside it: kills between two steps, what is known too late, faults."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from kit.batch_upstream import BatchUpstream
from kit.stage import KEY, WAIT_S, Reply, Stage, always, stage, until

import router.deferring
from router.serve.deferred.kit import Pace
from router.serve.deferred.settle import settled
from router.trace.record import TraceQuery
from router.trace.sqlite import SqliteTraceReader

pytestmark = pytest.mark.anyio

LANE = (b"prefer", b"respond-async")
SOON = always("deferred: {max_wait: 10ms}")
QUICK = Pace(look=0.05, lease=5.0, polls=(0.02, 0.1), create=1.0, quiet=1.5, again=(0.02, 0.1), breath=0.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane at a pace that no test has to wait for."""
    monkeypatch.setattr(router.deferring, "Pace", lambda: QUICK)


async def _accepted(s: Stage, text: str) -> str:
    """The path of a job that was accepted."""
    reply = await s.messages(LANE, text=text)
    assert reply.status == 202, reply.body
    location = reply.header("location")
    assert location is not None
    return location[location.index("/v1/") :]


async def _answered(s: Stage, path: str) -> Reply:
    async with asyncio.timeout(WAIT_S):
        while (reply := await s.request("GET", path, None, [*KEY, (b"prefer", b"wait=5")])).status == 202:
            pass
    return reply


async def _items(s: Stage, store: Path, is_there: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The traces of items, as soon as there are those."""
    assert s.app.traces is not None
    async with asyncio.timeout(WAIT_S):
        while True:
            await asyncio.to_thread(s.app.traces.flush)
            found = SqliteTraceReader(store).list(TraceQuery(limit=100, endpoint="batch_item"))
            if is_there(found):
                return found


def _changed(jobs: Path, statement: str) -> None:
    with closing(sqlite3.connect(jobs)) as connection:
        assert connection.execute(statement).rowcount == 1
        connection.commit()


async def test_an_answer_that_was_given_right_before_a_kill_is_booked_as_given(tmp_path: Path) -> None:
    """Its job had ended, its trace went with the process, its submission was open: the next one reads it again."""
    up, jobs = BatchUpstream(ends_at_once=True), tmp_path / "jobs.db"
    async with stage(up.behave, policy=SOON, jobs=f"sqlite:///{jobs}") as s:
        first = await _answered(s, await _accepted(s, "one"))
        booked = await _items(s, s.folder / "traces.db", lambda found: len(found) == 1)
    _changed(jobs, "UPDATE job_submissions SET closed_s = NULL")  # with an empty trace store, as the kill left it
    async with stage(up.behave, policy=SOON, jobs=f"sqlite:///{jobs}") as s:
        assert (await _answered(s, await _accepted(s, "two"))).status == 200  # which brings the credential along
        again = await _items(
            s, s.folder / "traces.db", lambda found: booked[0]["trace_id"] in {row["trace_id"] for row in found}
        )
    [row] = [row for row in again if row["trace_id"] == booked[0]["trace_id"]]
    assert row["outcome"] == "ok"
    assert (row["cost_usd"], row["baseline_usd"]) == (booked[0]["cost_usd"], booked[0]["baseline_usd"])
    assert row["baseline_usd"] is not None
    assert first.status == 200


async def test_a_batch_that_was_written_down_meanwhile_is_not_made_again() -> None:
    """Whoever looks for it was told of the submission before its batch was; what is in the store by now counts."""
    up = BatchUpstream()
    async with stage(up.behave, policy=SOON) as s:
        await _accepted(s, "one")
        await until(lambda: len(up.batches) == 1 and up.looks > 0)
        assert s.app.deferred is not None
        [(owner, work)] = s.app.deferred.keeper._works.items()
        [submission] = await work.kit.store.open_submissions(owner)
        assert submission.batch == up.batches[0].id
        async with asyncio.timeout(QUICK.quiet):
            assert await settled(work, replace(submission, batch=None)) == submission.batch
        assert len(up.batches) == 1


async def test_a_fault_of_ours_is_met_again_only_after_a_while_and_holds_up_no_other_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a damaged row. It is reported each time; the others end."""
    monkeypatch.setattr(router.deferring, "Pace", lambda: replace(QUICK, again=(0.02, 0.3)))
    up, jobs = BatchUpstream(ends_at_once=True), tmp_path / "jobs.db"
    async with stage(up.behave, policy=SOON, jobs=f"sqlite:///{jobs}") as s:
        up.ends_at_once = False
        await _accepted(s, "one")
        await until(lambda: len(up.batches) == 1)
        _changed(jobs, "UPDATE jobs SET meta = x'00'")
        up.batches[0].end()
        assert s.app.deferred is not None
        counts = s.app.deferred.keeper.counts
        await until(lambda: counts["failures"] == 1)
        began_s = perf_counter()
        up.ends_at_once = True
        assert (await _answered(s, await _accepted(s, "two"))).status == 200
        await until(lambda: counts["failures"] >= 3)
        assert perf_counter() - began_s >= 0.5  # two waits, of 0.3 s each


async def test_a_cancel_is_enough_for_a_process_that_began_anew_to_end_the_batch(tmp_path: Path) -> None:
    """Its client asks for nothing more, and so nobody else would bring the credential."""
    up, kept = BatchUpstream(), {"policy": SOON, "jobs": f"sqlite:///{tmp_path}/jobs.db"}
    async with stage(up.behave, **kept) as s:
        path = await _accepted(s, "one")
        await until(lambda: len(up.batches) == 1 and up.looks > 0)
    async with stage(up.behave, **kept) as s:
        assert (await s.request("DELETE", path, None, KEY)).status == 200
        await until(lambda: up.batches[0].is_canceled)
