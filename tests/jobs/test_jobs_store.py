"""Where decisions about batches are kept: one contract for every store, over real files and a real Redis."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kit.redis_server import RedisServer

from router.errors import JobsUnavailable
from router.jobs.redis import PREFIX, TICKET_PREFIX, RedisDecisions
from router.jobs.sqlite import SqliteDecisions
from router.redis_link import RedisLink
from router.seams import BatchDecisions

pytestmark = pytest.mark.anyio

DAY_S = 86_400.0
ENTRIES = {"a": b"1", "b-2": b"\x00\xff", "#0": b"shared"}


@dataclass
class Pair:
    """Two processes over one store; where nothing is shared, both are the same."""

    one: BatchDecisions
    other: BatchDecisions


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    links: list[RedisLink] = []
    if request.param == "memory":
        store: BatchDecisions = SqliteDecisions(None)
        made = Pair(store, store)
    elif request.param == "sqlite":
        made = Pair(SqliteDecisions(tmp_path / "jobs.db"), SqliteDecisions(tmp_path / "jobs.db"))
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        links = [RedisLink(server.url, deadline_s=2.0), RedisLink(server.url, deadline_s=2.0)]
        made = Pair(*(RedisDecisions(link) for link in links))
    yield made
    await made.one.close()
    if made.other is not made.one:
        await made.other.close()
    for link in links:
        await link.close()


class Locked:
    """A file that another process may hold the lock of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._holder = sqlite3.connect(path, isolation_level=None)

    def lock(self) -> None:
        self._holder.execute("BEGIN IMMEDIATE")

    def unlock(self) -> None:
        self._holder.execute("ROLLBACK")

    def close(self) -> None:
        self._holder.close()


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Locked]:
    made = Locked(tmp_path / "jobs.db")
    yield made
    made.close()


async def test_what_was_put_is_found_by_the_batch_it_became(pair: Pair):
    """By whichever process; what is not there is left out."""
    assert await pair.one.put("t1", ENTRIES)
    assert await pair.one.put("t1", {"c": b"later"})
    assert await pair.other.of("batch_1", ["a"]) == {}
    assert await pair.one.link("t1", "batch_1", "anna")
    for store in (pair.one, pair.other):
        assert await store.of("batch_1", ["a", "b-2", "none", "#0", "c"]) == {**ENTRIES, "c": b"later"}
        assert await store.of("batch_1", []) == {}
        assert await store.of("batch_2", ["a"]) == {}


async def test_whose_a_batch_is_is_known_by_all(pair: Pair):
    """A batch without decisions has an owner too; a ticket that became nothing has none."""
    await pair.one.put("t1", ENTRIES)
    await pair.one.link("t1", "batch_1", "anna")
    await pair.one.link("t2", "batch_2", "bert ü")
    assert await pair.other.owners(["batch_1", "batch_2", "batch_3"]) == {"batch_1": "anna", "batch_2": "bert ü"}


async def test_a_batch_is_linked_once_and_stays_whose_it_is(pair: Pair):
    """Told twice is the same as told once."""
    await pair.one.put("t1", ENTRIES)
    assert await pair.one.link("t1", "batch_1", "anna")
    assert await pair.other.link("t1", "batch_1", "anna")
    assert await pair.one.owners(["batch_1"]) == {"batch_1": "anna"}
    assert await pair.one.of("batch_1", ["a"]) == {"a": b"1"}


async def test_the_first_entries_are_those_of_items(pair: Pair):
    """For people to look at: no shared ones, no more than were asked for."""
    await pair.one.put("t1", {"#0": b"s", "#1": b"t", **{f"i{n:03}": b"x" for n in range(50)}, "-": b"y", "_": b"z"})
    await pair.one.link("t1", "batch_1", "anna")
    found = await pair.other.some("batch_1", 5)
    assert len(found) == 5
    assert not any(name.startswith("#") for name in found)
    assert len(await pair.other.some("batch_1", 1_000)) == 52
    assert await pair.other.some("batch_2", 5) == {}


async def test_a_hundred_thousand_entries_go_in_and_are_found(pair: Pair):
    """As a batch of the largest size puts them, a thousand at a time; here a tenth of it."""
    for at in range(0, 10_000, 1_000):
        assert await pair.one.put("t1", {f"item-{n}": b"%d" % n * 20 for n in range(at, at + 1_000)})
    await pair.one.link("t1", "batch_1", "anna")
    names = [f"item-{n}" for n in range(0, 10_000, 7)]
    assert await pair.other.of("batch_1", names) == {f"item-{n}": b"%d" % n * 20 for n in range(0, 10_000, 7)}
    assert pair.one.stats()["put"] == 10_000


async def test_what_is_too_old_goes_from_the_file(tmp_path: Path):
    """After thirty days, some rows at a time, behind the next batch that is made; what was forgotten goes too."""
    now_s = 1_000 * DAY_S
    store = SqliteDecisions(tmp_path / "jobs.db", now_s=lambda: now_s)
    await store.put("t1", {f"i{n}": b"x" for n in range(12_000)})
    await store.link("t1", "batch_1", "anna")
    await store.put("t2", ENTRIES)
    await store.forget("t2")
    now_s += 29.9 * DAY_S
    await store.link("t3", "batch_3", "anna")
    assert len(await store.of("batch_1", ["i1"])) == 1
    now_s += 0.2 * DAY_S
    await store.link("t4", "batch_4", "anna")
    await store.settled()
    assert await store.owners(["batch_1", "batch_3"]) == {"batch_3": "anna"}
    await store.close()
    connection = sqlite3.connect(tmp_path / "jobs.db")
    assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (0,)
    connection.close()


async def test_what_is_too_old_goes_from_redis(redis_server: RedisServer):
    """By itself: every key has a time to live."""
    link = RedisLink(redis_server.url, deadline_s=2.0)
    store = RedisDecisions(link)
    await store.put("t1", ENTRIES)
    await store.link("t1", "batch_1", "anna")
    for name in (TICKET_PREFIX + "t1", PREFIX + "batch_1"):
        assert 29 * DAY_S < await link.ask("TTL", name) <= 30 * DAY_S
    await store.put("t2", ENTRIES)
    await store.forget("t2")
    assert await link.ask("EXISTS", TICKET_PREFIX + "t2") == 0
    await link.close()


async def test_a_link_that_was_not_taken_is_owed_and_comes_with_the_next(tmp_path: Path):
    """Until then this process knows it; nothing is raised but by who must know whose a batch is."""
    folder = tmp_path / "gone"
    folder.write_text("in the way")
    store = SqliteDecisions(folder / "jobs.db")
    assert not await store.put("t1", ENTRIES)
    assert not await store.link("t1", "batch_1", "anna")
    assert await store.of("batch_1", ["a"]) is None
    with pytest.raises(JobsUnavailable):
        await store.owners(["batch_1"])
    folder.unlink()
    assert await store.owners(["batch_1", "batch_2"]) == {"batch_1": "anna"}
    assert await store.link("t2", "batch_2", "bert")
    assert store.stats()["owed"] == 0
    await store.close()
    again = SqliteDecisions(folder / "jobs.db")
    assert await again.owners(["batch_1", "batch_2"]) == {"batch_1": "anna", "batch_2": "bert"}
    await again.close()


async def test_redis_that_is_away_is_a_decision_not_kept(redis_server: RedisServer):
    """Counted, never raised; the link that is owed is written once it is back."""
    link = RedisLink(redis_server.url, deadline_s=0.2, give_up_s=0.2, rest_s=0.01)
    store = RedisDecisions(link)
    redis_server.kill()
    assert not await store.put("t1", ENTRIES)
    assert not await store.link("t1", "batch_1", "anna")
    assert await store.of("batch_1", ["a"]) is None
    with pytest.raises(JobsUnavailable):
        await store.owners(["batch_2"])
    redis_server.start()
    async with asyncio.timeout(10.0):
        while not await store.link("t2", "batch_2", "bert"):  # noqa: ASYNC110 - Redis comes back without a word
            await asyncio.sleep(0)  # a link that rests answers at once
    assert store.stats()["owed"] == 0
    assert await store.owners(["batch_1", "batch_2"]) == {"batch_1": "anna", "batch_2": "bert"}
    await link.close()


async def test_a_locked_file_costs_one_short_wait_and_then_none(locked: Locked):
    """Writing rests after the first failure; what is read is read meanwhile, and a batch's owner is known here."""
    store = SqliteDecisions(locked.path, rest_s=60.0)
    await store.put("t1", ENTRIES)
    await store.link("t1", "batch_1", "anna")
    locked.lock()
    async with asyncio.timeout(3.0):
        assert not await store.put("t2", ENTRIES)
    async with asyncio.timeout(5.0):  # half a second each would be 25
        for n in range(50):
            assert not await store.put("t2", {f"i{n}": b"x"})
            assert await store.owners(["batch_1"]) == {"batch_1": "anna"}
    async with asyncio.timeout(1.5):  # one that waits takes two
        assert not await store.link("t2", "batch_2", "anna")
        assert await store.owners(["batch_2"]) == {"batch_2": "anna"}
    assert store.stats()["owed"] == 1
    locked.unlock()
    await store.close()


async def test_reading_does_not_wait_for_a_write_that_waits(locked: Locked):
    """They have a connection and a thread each; a process that starts meanwhile reads too."""
    store = SqliteDecisions(locked.path)
    await store.put("t1", ENTRIES)
    await store.link("t1", "batch_1", "anna")
    locked.lock()
    writing = asyncio.create_task(store.put("t2", ENTRIES))
    other = SqliteDecisions(locked.path)
    for each in (store, other):
        assert await each.of("batch_1", ["a"]) == {"a": b"1"}
        assert await each.owners(["batch_1"]) == {"batch_1": "anna"}
    assert not writing.done()
    locked.unlock()
    assert await writing
    await store.close()
    await other.close()


async def test_an_owed_link_is_written_by_itself_once_the_file_takes_it(locked: Locked):
    """Nobody need make another batch for it."""
    store = SqliteDecisions(locked.path, rest_s=0.2)
    await store.put("t1", ENTRIES)
    locked.lock()
    assert not await store.put("t2", ENTRIES)
    assert not await store.link("t1", "batch_1", "anna")
    locked.unlock()
    await store.settled()
    assert store.stats()["owed"] == 0
    other = SqliteDecisions(locked.path)
    assert await other.owners(["batch_1"]) == {"batch_1": "anna"}
    await store.close()
    await other.close()


async def test_an_orderly_stop_writes_what_is_owed(locked: Locked):
    """The next process knows whose the batch is, and what was decided."""
    store = SqliteDecisions(locked.path, rest_s=60.0)
    await store.put("t1", ENTRIES)
    locked.lock()
    await store.put("t2", ENTRIES)
    assert not await store.link("t1", "batch_1", "anna")
    locked.unlock()
    await store.close()
    other = SqliteDecisions(locked.path)
    assert await other.owners(["batch_1"]) == {"batch_1": "anna"}
    assert await other.of("batch_1", ["a"]) == {"a": b"1"}
    await other.close()


async def test_a_batch_that_cannot_be_written_at_the_end_is_said(locked: Locked, caplog: Any):
    """Somebody must fetch its results with the upstream's key; whose it was stays out of the log."""
    store = SqliteDecisions(locked.path, rest_s=60.0)
    await store.put("t1", ENTRIES)
    locked.lock()
    await store.put("t2", ENTRIES)
    await store.link("t1", "batch_1", "anna")
    await store.close()
    assert "whose batch `batch_1` is could not be kept" in caplog.text
    assert "anna" not in caplog.text


async def test_a_closed_store_fails_and_stays_closed(tmp_path: Path, caplog: Any):
    """Whatever is asked of it: nothing is raised but what its callers know, and no file is opened again."""
    store = SqliteDecisions(tmp_path / "jobs.db")
    await store.put("t1", ENTRIES)
    await store.close()
    for name in os.listdir(tmp_path):
        (tmp_path / name).unlink()
    assert not await store.put("t1", ENTRIES)
    assert not await store.link("t1", "batch_1", "anna")
    assert "whose batch `batch_1` is could not be kept" in caplog.text
    assert await store.of("batch_1", ["a"]) is None
    assert await store.some("batch_1", 5) == {}
    await store.forget("t1")
    with pytest.raises(JobsUnavailable):
        await store.owners(["batch_1"])
    await store.close()
    assert not os.listdir(tmp_path)


async def test_what_is_in_memory_has_a_bound(tmp_path: Path):
    """The decisions of the oldest batches go first, and are counted; whose they are stays known."""
    store = SqliteDecisions(None, most_in_memory=1_000)
    for n in range(30):
        await store.put(f"t{n}", {f"i{m}": b"x" for m in range(100)})
        await store.link(f"t{n}", f"batch_{n}", "anna")
    assert await store.of("batch_0", ["i0"]) == {}
    assert await store.of("batch_29", ["i0"]) == {"i0": b"x"}
    assert await store.owners(["batch_0"]) == {"batch_0": "anna"}
    assert 2_000 <= store.stats()["dropped"] <= 2_100
    await store.close()


async def test_old_decisions_go_while_nobody_waits(tmp_path: Path):
    """Between two slices others write; the client that made the batch has its answer long since."""
    now_s = 1_000 * DAY_S
    store = SqliteDecisions(tmp_path / "jobs.db", now_s=lambda: now_s)
    await store.put("t1", {f"i{n}": b"x" for n in range(9_000)})
    await store.link("t1", "batch_1", "anna")
    await store.settled()
    now_s += 31 * DAY_S
    await store.link("t2", "batch_2", "anna")
    assert store.stats()["pruned"] == 0
    assert await store.put("t3", ENTRIES)
    assert store.stats()["pruned"] < 9_000
    await store.settled()
    assert store.stats()["pruned"] == 9_000
    await store.close()


async def test_redis_gets_what_is_owed_with_whatever_it_takes_next(redis_server: RedisServer):
    """A look-up is enough, and the end of the process is."""
    link = RedisLink(redis_server.url, deadline_s=2.0)
    away = RedisLink("redis://127.0.0.1:1", deadline_s=0.2, give_up_s=0.2)
    for stop in (False, True):
        store = RedisDecisions(away)
        assert not await store.link("t1", f"batch_{stop}", "anna")
        store._link = link  # the same Redis, back again
        await (store.close() if stop else store.of("batch_none", ["a"]))
        assert store.stats()["owed"] == 0
        assert await RedisDecisions(link).owners([f"batch_{stop}"]) == {f"batch_{stop}": "anna"}
    await link.close()
    await away.close()


async def test_the_owners_of_a_whole_page_are_looked_up_together(redis_server: RedisServer):
    """Not one after the other: a page of a thousand is a few round trips."""
    link = RedisLink(redis_server.url, deadline_s=2.0)
    store = RedisDecisions(link)
    names = [f"batch_{n}" for n in range(1_000)]
    await store.link("t1", names[7], "anna")
    at_once = asyncio.create_task(store.owners(names))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert link.stats()["asked"] >= 100
    assert await at_once == {names[7]: "anna"}
    await link.close()


async def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path, caplog: Any):
    """It is kept beside, said once, and a new one is begun."""
    path = tmp_path / "jobs.db"
    path.write_bytes(b"no database " * 1_000)
    store = SqliteDecisions(path)
    assert await store.put("t1", ENTRIES)
    assert await store.link("t1", "batch_1", "anna")
    assert await store.of("batch_1", ["a"]) == {"a": b"1"}
    assert len([name for name in os.listdir(tmp_path) if name.startswith("jobs.db.corrupt-")]) == 1
    assert "set aside" in caplog.text
    await store.close()


async def test_a_file_that_was_removed_is_made_again(tmp_path: Path):
    """Nothing is written into a file that nobody can find."""
    path = tmp_path / "jobs.db"
    store = SqliteDecisions(path)
    await store.put("t1", ENTRIES)
    for name in os.listdir(tmp_path):
        (tmp_path / name).unlink()
    assert await store.put("t2", ENTRIES)
    assert path.exists()
    await store.close()
