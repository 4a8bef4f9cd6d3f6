"""Where deferred requests live: one contract for every store, over real files and a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.job_model import ModelJobs, answer, job
from kit.redis_server import RedisServer

from router.errors import Overloaded
from router.jobs.deferred import Member, Requested, Submission
from router.jobs.jobs_redis import PREFIX, RedisJobs
from router.jobs.jobs_sqlite import KEPT_S, SqliteJobs
from router.redis_link import RedisLink
from router.seams import JobStore

pytestmark = pytest.mark.anyio

OWNER = "router"
HOUR_S = 3600.0
NOW_S = 1_000_000.0
SUB = Submission("s1", OWNER, "g", 1500.5, 0)


class Reopened:
    """A store that a new process opens for each call."""

    def __init__(self, make: Callable[[], SqliteJobs]) -> None:
        self._make = make

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return partial(self._call, name)

    async def _call(self, name: str, *arguments: Any) -> Any:
        store = self._make()
        try:
            return await getattr(store, name)(*arguments)
        finally:
            await store.close()

    async def close(self) -> None:
        """Nothing is open."""


@asynccontextmanager
async def opened(kind: str, folder: Path, server: RedisServer | None, **options: Any) -> AsyncIterator[JobStore]:
    if server is not None:
        link = RedisLink(server.url, deadline_s=5.0, give_up_s=5.0)
        try:
            yield RedisJobs(link, **options)
        finally:
            await link.close()
        return
    make = partial(SqliteJobs, folder / "jobs.db", **options)
    store = make() if kind == "sqlite" else cast(JobStore, Reopened(make))
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(params=["sqlite", "reopened", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """Opens a store; again, it is another process at the same place."""
    server = request.getfixturevalue("redis_server") if request.param == "redis" else None
    return partial(opened, request.param, tmp_path, server)


@pytest.fixture
async def store(place: Callable[..., Any]) -> AsyncIterator[JobStore]:
    async with place() as made:
        yield made


async def begun(store: JobStore, *names: str, sub: Submission = SUB) -> None:
    """Accept jobs of these names, and take them into a submission."""
    for name in names:
        await store.accept(job(name, owner=sub.owner))
    assert await store.lead(sub.owner, "h", 60.0)
    assert [taken.id for taken in await store.begin("h", sub, names)] == list(names)


async def state(store: JobStore, name: str) -> str | None:
    view = await store.look(OWNER, name, "anna")
    return None if view is None else view.state


async def test_what_was_accepted_is_there_with_all_that_was_said(store: JobStore):
    """Its times to the last digit; told twice, it is there once, as it was told first."""
    made = job("a", created_s=4000001722.123456, due_s=5322.987654321, late_s=9000.25, meta=b"\x00\xff")
    await store.accept(made)
    await store.accept(replace(made, meta=b"other"))
    view = await store.look(OWNER, "a", "anna")
    assert view is not None
    assert (view.id, view.state, view.created_s, view.due_s, view.meta) == (
        "a", "waiting", 4000001722.123456, 5322.987654321, b"\x00\xff",
    )  # fmt: skip
    assert (view.batch, view.answer) == (None, None)
    (waiting,) = await store.waiting(OWNER, 10)
    assert (waiting.late_s, waiting.most, waiting.size, waiting.group) == (9000.25, 100, 321, "g")
    assert await store.request_of(OWNER, "a") == Requested("a", b"\x00\xff", b"ask")


async def test_nobody_sees_or_cancels_the_job_of_another(store: JobStore):
    """Neither another tenant nor under another owner; nor is one seen that is not there."""
    await store.accept(job("a"))
    assert await store.look(OWNER, "a", "bert") is None
    assert await store.cancel(OWNER, "a", "bert") == "unknown"
    assert await store.look("other", "a", "anna") is None
    assert await store.cancel("other", "a", "anna") == "unknown"
    assert await store.request_of("other", "a") is None
    assert await store.waiting("other", 10) == []
    assert await store.look(OWNER, "none", "anna") is None
    assert await store.cancel(OWNER, "none", "anna") == "unknown"
    assert await state(store, "a") == "waiting"


async def test_jobs_wait_in_the_order_in_which_they_were_accepted(store: JobStore):
    """Whatever their names and times, and after they were taken back; no more than were asked for."""
    for name, due_s in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
        await store.accept(job(name, due_s=due_s))
    await begun(store, "d")
    await store.lead(OWNER, "h", 60.0)
    await store.begin("h", replace(SUB, id="s2"), ["a", "c"])
    assert [one.id for one in await store.waiting(OWNER, 10)] == ["b"]
    await store.unsent(OWNER, "s2", 77.5)
    assert [one.id for one in await store.waiting(OWNER, 10)] == ["c", "a", "b"]
    assert [one.id for one in await store.waiting(OWNER, 2)] == ["c", "a"]
    assert [one.not_before_s for one in await store.waiting(OWNER, 10)] == [77.5, 77.5, 0.0]


async def test_a_job_goes_from_acceptance_to_its_answer(store: JobStore):
    """Waiting, sending, sent, ended: with the batch as soon as it is known."""
    await begun(store, "a", "b")
    assert await state(store, "a") == "sending"
    assert await store.open_submissions(OWNER) == [replace(SUB, items=2)]
    assert await store.batches_of(OWNER) == frozenset()
    await store.sent(OWNER, "s1", "batch_1")
    await store.sent(OWNER, "s1", "batch_other")
    assert await state(store, "a") == "sent"
    assert await store.open_submissions(OWNER) == [replace(SUB, items=2, batch="batch_1")]
    assert await store.batches_of(OWNER) == {"batch_1"}
    said = answer("yes", time.time())
    assert await store.finish(OWNER, "a", said)
    view = await store.look(OWNER, "a", "anna")
    assert view is not None
    assert (view.state, view.batch, view.answer, view.meta) == ("ended", "batch_1", said, b"meta a")
    assert await state(store, "b") == "sent"
    assert await store.request_of(OWNER, "a") is None


async def test_the_first_answer_stays(store: JobStore):
    """Whatever else the upstream says later; a job that is not there has none to give."""
    await begun(store, "a")
    first = answer("first", time.time())
    assert await store.finish(OWNER, "a", first)
    assert not await store.finish(OWNER, "a", answer("second", time.time()))
    assert not await store.finish(OWNER, "none", first)
    view = await store.look(OWNER, "a", "anna")
    assert view is not None
    assert view.answer == first


async def test_a_job_may_end_while_it_waits(store: JobStore):
    """It was refused, or answered in real time: nobody sends it any more."""
    await store.accept(job("a"))
    assert await store.finish(OWNER, "a", answer("refused", time.time()))
    assert await store.waiting(OWNER, 10) == []
    await store.lead(OWNER, "h", 60.0)
    assert await store.begin("h", SUB, ["a"]) == []
    assert await store.open_submissions(OWNER) == []
    assert await state(store, "a") == "ended"


async def test_what_was_taken_comes_in_the_order_asked_for(store: JobStore):
    """With what it is sent by; what does not wait is left out, what is named twice comes once."""
    for name in "abcd":
        await store.accept(job(name, request=name.encode() * 3))
    await store.cancel(OWNER, "b", "anna")
    await store.lead(OWNER, "h", 60.0)
    taken = await store.begin("h", SUB, ["d", "b", "none", "a", "d"])
    assert taken == [Requested("d", b"meta d", b"ddd"), Requested("a", b"meta a", b"aaa")]
    assert await store.open_submissions(OWNER) == [replace(SUB, items=2)]


async def test_to_begin_again_gives_the_same(store: JobStore):
    """Whoever was told that it could not be said whether it was done asks again."""
    await begun(store, "a", "b")
    assert [taken.id for taken in await store.begin("h", SUB, ["a", "b"])] == ["a", "b"]
    assert await store.open_submissions(OWNER) == [replace(SUB, items=2)]
    assert await store.begin("h", replace(SUB, id="s2"), ["a", "b"]) == []
    await store.close_submission(OWNER, "s1")
    assert await store.begin("h", SUB, ["a", "b"]) == []


async def test_only_who_leads_may_begin(store: JobStore):
    """One at a time, until it leaves; whoever leads renews that. Each owner is led for itself."""
    await store.accept(job("a"))
    assert await store.begin("h", SUB, ["a"]) == []
    assert await store.lead(OWNER, "h", 60.0)
    assert await store.lead(OWNER, "h", 60.0)
    assert not await store.lead(OWNER, "other", 60.0)
    assert await store.lead("else", "other", 60.0)
    assert await store.begin("other", SUB, ["a"]) == []
    await store.leave(OWNER, "other")
    assert not await store.lead(OWNER, "other", 60.0)
    await store.leave(OWNER, "h")
    assert await store.begin("h", SUB, ["a"]) == []
    assert await store.lead(OWNER, "other", 60.0)
    assert len(await store.begin("other", SUB, ["a"])) == 1


async def test_a_lease_ends_by_itself(place: Callable[..., Any]):
    """Who led until then takes nothing more."""
    async with place() as store:
        await store.accept(job("a"))
        assert await store.lead(OWNER, "h", 0.001)
        async with asyncio.timeout(2.0):
            while not await store.lead(OWNER, "other", 60.0):  # noqa: ASYNC110 - nothing tells when a lease ends
                await asyncio.sleep(0)
        assert await store.begin("h", SUB, ["a"]) == []


async def test_a_holder_that_is_dead_leads_no_more(place: Callable[..., Any]):
    """Its lease need not end; one that may live keeps it."""
    async with place(is_gone=lambda holder: holder == "dead") as store:
        assert await store.lead(OWNER, "dead", 60.0)
        assert await store.lead(OWNER, "alive", 60.0)
        assert not await store.lead(OWNER, "dead", 60.0)


async def test_a_canceled_job_is_gone_for_its_client(store: JobStore):
    """At once where it waits; else its submission knows it, for its batch may be billed for it."""
    await store.accept(job("w"))
    assert await store.cancel(OWNER, "w", "anna") == "removed"
    assert await store.waiting(OWNER, 10) == []
    await begun(store, "a", "b", "c")
    assert await store.cancel(OWNER, "a", "anna") == "marked"
    await store.sent(OWNER, "s1", "batch_1")
    assert await store.cancel(OWNER, "b", "anna") == "marked"
    assert await store.finish(OWNER, "c", answer("yes", time.time()))
    assert await store.cancel(OWNER, "c", "anna") == "ended"
    for name in "wabc":
        assert await store.look(OWNER, name, "anna") is None
        assert await store.cancel(OWNER, name, "anna") == "unknown"
        assert await store.request_of(OWNER, name) is None
    flags = [(one.id, one.is_ended, one.is_canceled) for one in await store.members(OWNER, "s1")]
    assert flags == [("a", False, True), ("b", False, True), ("c", True, True)]


async def test_an_answer_to_a_canceled_job_is_not_kept(store: JobStore):
    """That it ended is: so that its submission can be closed."""
    await begun(store, "a")
    await store.cancel(OWNER, "a", "anna")
    assert await store.finish(OWNER, "a", answer("yes", time.time()))
    assert not await store.finish(OWNER, "a", answer("yes", time.time()))
    assert await store.members(OWNER, "s1") == [Member("a", True, True, None, b"meta a")]
    assert await state(store, "a") is None
    await store.close_submission(OWNER, "s1")
    assert await store.members(OWNER, "s1") == []


async def test_an_answer_that_was_kept_goes_when_its_client_says_so(store: JobStore):
    """After its submission was closed nothing of it is left."""
    await begun(store, "a")
    await store.finish(OWNER, "a", answer("yes", time.time()))
    await store.close_submission(OWNER, "s1")
    assert await state(store, "a") == "ended"
    assert await store.cancel(OWNER, "a", "anna") == "ended"
    assert await state(store, "a") is None
    assert await store.members(OWNER, "s1") == []


async def test_what_was_not_sent_waits_again(store: JobStore):
    """Not what has ended, nor what was canceled; told twice nothing happens."""
    await begun(store, "a", "b", "c", "d")
    await store.finish(OWNER, "a", answer("yes", time.time()))
    await store.cancel(OWNER, "b", "anna")
    await store.unsent(OWNER, "s1", 99.5, 7)
    assert [(one.id, one.not_before_s, one.most) for one in await store.waiting(OWNER, 9)] == [
        ("c", 99.5, 7), ("d", 99.5, 7),
    ]  # fmt: skip
    assert await store.open_submissions(OWNER) == []
    assert [one.id for one in await store.members(OWNER, "s1")] == ["a"]
    assert len(await store.begin("h", replace(SUB, id="s2"), ["c", "d"])) == 2
    await store.unsent(OWNER, "s1", 5.0, 1)
    assert await store.waiting(OWNER, 9) == []
    await store.unsent(OWNER, "s2", 101.5)
    assert [(one.not_before_s, one.most) for one in await store.waiting(OWNER, 9)] == [(101.5, 7)] * 2


async def test_what_has_a_batch_was_sent_whoever_says_otherwise(store: JobStore):
    """A process that hung may say so long after another has found the batch."""
    await begun(store, "a")
    await store.sent(OWNER, "s1", "batch_1")
    await store.unsent(OWNER, "s1", 0.0)
    assert await store.waiting(OWNER, 9) == []
    assert [one.batch for one in await store.open_submissions(OWNER)] == ["batch_1"]


async def test_a_job_that_nobody_sent_in_a_month_goes(tmp_path: Path):
    store = SqliteJobs(tmp_path / "jobs.db")
    await store.accept(job("old", created_s=time.time() - 31 * 86_400))
    await store.settled()
    assert await store.look(OWNER, "old", "anna") is None
    assert store.stats()["unended"] == 0
    await store.close()


async def test_a_closed_submission_is_remembered_by_its_batch(store: JobStore):
    """It is open no longer, its answers stay; told twice, and for one that is not there, nothing happens."""
    await begun(store, "a")
    await store.sent(OWNER, "s1", "batch_1")
    await store.finish(OWNER, "a", answer("yes", time.time()))
    for _ in range(2):
        await store.close_submission(OWNER, "s1")
        await store.close_submission(OWNER, "none")
    assert await store.open_submissions(OWNER) == []
    assert await store.batches_of(OWNER) == {"batch_1"}
    view = await store.look(OWNER, "a", "anna")
    assert view is not None
    assert (view.state, view.batch) == ("ended", "batch_1")


async def test_open_submissions_come_in_the_order_in_which_they_were_started(store: JobStore):
    """All that another process needs to go on with them."""
    for number, started_s in enumerate((30.5, 10.5, 20.5)):
        await begun(store, f"j{number}", sub=Submission(f"s{number}", OWNER, f"g{number}", started_s, 0))
    await store.sent(OWNER, "s2", "batch_2")
    assert await store.open_submissions(OWNER) == [
        Submission("s1", OWNER, "g1", 10.5, 1),
        Submission("s2", OWNER, "g2", 20.5, 1, "batch_2"),
        Submission("s0", OWNER, "g0", 30.5, 1),
    ]


async def test_an_owner_may_have_so_many_jobs_and_no_more(place: Callable[..., Any]):
    """What has ended, or is gone, makes room; one that was accepted is accepted again; other owners have their own."""
    async with place(most_jobs=2) as store:
        await store.accept(job("a"))
        await store.accept(job("b"))
        with pytest.raises(Overloaded):
            await store.accept(job("c"))
        await store.accept(job("a"))
        await store.accept(job("c", owner="other"))
        await store.cancel(OWNER, "a", "anna")
        await store.accept(job("c"))
        with pytest.raises(Overloaded):
            await store.accept(job("d"))
        await store.finish(OWNER, "b", answer("yes", time.time()))
        await store.accept(job("d"))
        assert await store.look(OWNER, "e", "anna") is None


async def test_an_owner_may_have_so_many_bytes_and_no_more(place: Callable[..., Any]):
    """Of what is asked; a canceled one counts until it is gone."""
    async with place(most_bytes=100) as store:
        await begun(store, "a")
        await store.accept(job("b", request=b"x" * 97))
        with pytest.raises(Overloaded):
            await store.accept(job("c"))
        await store.cancel(OWNER, "b", "anna")
        await store.cancel(OWNER, "a", "anna")
        with pytest.raises(Overloaded):
            await store.accept(job("c", request=b"x" * 98))
        await store.close_submission(OWNER, "s1")
        await store.accept(job("c", request=b"x" * 98))


async def test_ten_thousand_jobs_are_taken_together(place: Callable[..., Any]):
    """As many as a large batch has, with a large one among them."""
    async with place(most_bytes=2**40) as store:
        if isinstance(store, Reopened):
            return
        names = [f"job_{number:05}" for number in range(10_000)]
        made = [job(name, request=name.encode() * (2_000_000 if name == "job_00005" else 1)) for name in names]
        for at in range(0, len(made), 500):
            await asyncio.gather(*(store.accept(one) for one in made[at : at + 500]))
        assert len(await store.waiting(OWNER, 20_000)) == 10_000
        await store.lead(OWNER, "h", 60.0)
        taken = await store.begin("h", SUB, names)
        assert [(one.id, len(one.request)) for one in taken] == [(one.id, len(one.request)) for one in made]
        assert len(await store.members(OWNER, "s1")) == 10_000
        await store.unsent(OWNER, "s1", 0.0)
        assert len(await store.waiting(OWNER, 20_000)) == 10_000
        assert store.stats()["begun"] == store.stats()["unsent"] == 10_000


async def test_two_that_race_for_the_same_jobs_never_share_one(place: Callable[..., Any]):
    """The lease goes to and fro, and what one has seen waiting the other may have taken: each job is taken once."""
    async with place() as one, place() as other:
        names = [f"j{number}" for number in range(40)]
        await asyncio.gather(*(one.accept(job(name)) for name in names))

        async def take(store: JobStore, holder: str) -> list[str]:
            took: list[str] = []
            while asked := [waiting.id for waiting in await store.waiting(OWNER, 5)]:
                sub = Submission(f"{holder}{len(took)}", OWNER, "g", 1.0, 0)
                if await store.lead(OWNER, holder, 60.0):  # the other one may have taken what was asked by now
                    took += [taken.id for taken in await store.begin(holder, sub, asked)]
                    await store.leave(OWNER, holder)
            return took

        async with asyncio.timeout(20.0):
            first, second = await asyncio.gather(take(one, "h"), take(other, "i"))
        assert sorted(first + second) == sorted(names)


async def test_what_was_done_is_counted(place: Callable[..., Any]):
    """In jobs; what is done again is not counted again."""
    async with place() as store:
        if isinstance(store, Reopened):
            return
        for _ in range(2):
            await store.accept(job("w"))
            await store.accept(job("v"))
        await begun(store, "a", "b", "c")
        for _ in range(2):
            await store.sent(OWNER, "s1", "batch_1")
            await store.cancel(OWNER, "a", "anna")
            await store.finish(OWNER, "b", answer("yes", time.time()))
        await begun(store, "d", sub=replace(SUB, id="s2"))
        for _ in range(2):
            await store.unsent(OWNER, "s2", 0.0)
        counted = store.stats()
        assert {name: counted[name] for name in counted if name != "unended"} == {
            "accepted": 6, "begun": 4, "sent": 3, "unsent": 1, "ended": 1, "canceled": 1, "failures": 0, "pruned": 0,
        }  # fmt: skip


NAMES = st.sampled_from(["j0", "j1", "j2", "j3"])
SUBS = st.sampled_from(["s0", "s1"])
HOLDERS = st.sampled_from(["h0", "h1"])
STEPS = st.one_of(
    st.tuples(st.just("accept"), NAMES),
    st.tuples(st.just("accept"), NAMES),
    st.tuples(st.just("cancel"), NAMES, st.sampled_from(["anna", "anna", "bert"])),
    st.tuples(st.sampled_from(["lead", "lead", "leave"]), HOLDERS),
    st.tuples(st.just("begin"), HOLDERS, SUBS, st.lists(NAMES, min_size=1, max_size=4)),
    st.tuples(st.just("begin"), st.just("h0"), SUBS, st.lists(NAMES, min_size=1, max_size=4)),
    st.tuples(st.just("sent"), SUBS, st.sampled_from(["b0", "b1"])),
    st.tuples(st.just("unsent"), SUBS, st.sampled_from([5.5, 6.5]), st.sampled_from([None, 3])),
    st.tuples(st.just("finish"), NAMES, st.sampled_from(["yes", "no"])),
    st.tuples(st.just("close_submission"), SUBS),
)


async def step(store: Any, owner: str, name: str, said: tuple[Any, ...]) -> Any:
    if name == "accept":
        return await store.accept(job(said[0], owner=owner))
    if name == "begin":
        return list(await store.begin(said[0], Submission(said[1], owner, "g", 1.5, 0), said[2]))
    if name == "finish":
        return await store.finish(owner, said[0], answer(said[1], time.time()))
    if name == "lead":
        return await store.lead(owner, said[0], 60.0)
    return await getattr(store, name)(owner, *said)


async def seen(store: Any, owner: str) -> Any:
    """All that can be seen from outside; when a job ended is not compared."""
    names, subs = ("j0", "j1", "j2", "j3"), ("s0", "s1")
    views = await asyncio.gather(*(store.look(owner, name, "anna") for name in names))
    found = await asyncio.gather(
        *(store.request_of(owner, name) for name in names),
        *(store.members(owner, sub) for sub in subs),
        store.waiting(owner, 9),
        store.open_submissions(owner),
        store.batches_of(owner),
    )
    return [view and replace(view, answer=view.answer and replace(view.answer, ended_s=0.0)) for view in views], found


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_whatever_is_done_a_store_says_what_the_model_says(kind: str, tmp_path: Path, request: pytest.FixtureRequest):
    """Property: after any steps in any order, and by what each of them gave."""
    server = request.getfixturevalue("redis_server") if kind == "redis" else None
    played = 0

    async def play(steps: list[tuple[Any, ...]]) -> None:
        nonlocal played
        played += 1
        owner = f"owner{played}"
        model = ModelJobs(owner)
        async with opened(kind, tmp_path, server) as store:
            for name, *said in [("lead", "h0"), *steps]:
                told = await step(model, owner, name, tuple(said))
                assert await step(store, owner, name, tuple(said)) == told, (name, said)
                assert await seen(store, owner) == await seen(model, owner), (name, said)

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(STEPS, max_size=14))
    def holds(steps: list[tuple[Any, ...]]) -> None:
        asyncio.run(play(steps))

    holds()


async def test_what_has_ended_goes_from_the_file_when_it_was_kept_long_enough(tmp_path: Path):
    """By the clock, to the second; then from the disk, behind what is asked. What has not ended stays for ever."""
    now_s = NOW_S
    store = SqliteJobs(tmp_path / "jobs.db", now_s=lambda: now_s, kept_s=HOUR_S)
    for name in ("w", "a", "b"):
        await store.accept(job(name))
    await store.lead(OWNER, "h", 60.0)
    await store.begin("h", SUB, ["a"])
    await store.sent(OWNER, "s1", "batch_1")
    await store.finish(OWNER, "a", answer("yes", now_s))
    await store.close_submission(OWNER, "s1")
    now_s += HOUR_S - 1.0
    assert await state(store, "a") == "ended"
    now_s += 2.0
    assert await state(store, "a") is None
    assert await store.cancel(OWNER, "a", "anna") == "unknown"
    await store.close()
    store = SqliteJobs(tmp_path / "jobs.db", now_s=lambda: now_s, kept_s=HOUR_S)
    await store.accept(job("c"))
    await store.settled()
    assert store.stats()["pruned"] == 1
    assert await store.batches_of(OWNER) == {"batch_1"}
    await store.close()
    now_s += KEPT_S
    store = SqliteJobs(tmp_path / "jobs.db", now_s=lambda: now_s, kept_s=HOUR_S)
    await store.accept(job("d"))
    await store.settled()
    assert await store.batches_of(OWNER) == frozenset()
    assert [one.id for one in await store.waiting(OWNER, 9)] == ["w", "b", "c", "d"]
    assert store.stats()["unended"] == 4
    await store.close()


async def test_what_has_ended_goes_from_redis_by_itself(redis_server: RedisServer):
    """Every key of it has a time to live, and none of what has not ended has one."""
    link = RedisLink(redis_server.url, deadline_s=5.0, give_up_s=5.0)
    store = RedisJobs(link, kept_s=HOUR_S)
    await begun(store, "a", "b", "c")
    await store.sent(OWNER, "s1", "batch_1")
    await store.finish(OWNER, "a", answer())
    at = f"{PREFIX}{{{OWNER}}}:"
    for name in ("job:a", "answer:a"):
        assert HOUR_S - 60 < await link.ask("TTL", at + name) <= HOUR_S
    assert await link.ask("EXISTS", at + "request:a") == 0
    for name in ("job:b", "request:b", "sub:s1", "members:s1", "open", "batches", "load"):
        assert await link.ask("TTL", at + name) == -1
    for name in "bc":
        await store.finish(OWNER, name, answer())
    await store.close_submission(OWNER, "s1")
    for name in ("sub:s1", "members:s1"):
        assert KEPT_S - 60 < await link.ask("TTL", at + name) <= KEPT_S
    later = RedisJobs(link, now_s=lambda: time.time() + KEPT_S + 60)
    assert await store.batches_of(OWNER) == {"batch_1"}
    assert await later.batches_of(OWNER) == frozenset()
    keys = [key.removeprefix(at.encode()) async for page in link.scan("*") for key in page]
    assert not [key for key in keys if key.startswith(b"request:")]
    await link.close()


async def test_the_name_of_an_owner_cannot_leave_its_keys(redis_server: RedisServer):
    """Braces and colons, and what is no ASCII, go by their digest; each is an owner of its own."""
    link = RedisLink(redis_server.url, deadline_s=5.0, give_up_s=5.0)
    store = RedisJobs(link)
    owners = ["a}:b", "{x}", "ü", "", "a b", "A" * 65]
    for owner in owners:
        await store.accept(job(f"of {owner}", owner=owner))
    for owner in owners:
        assert [one.id for one in await store.waiting(owner, 9)] == [f"of {owner}"]
    async for page in link.scan("*"):
        for key in page:
            assert key.startswith(f"{PREFIX}{{=".encode())
            assert key.index(b"}") == len(PREFIX) + 66
    await link.close()
