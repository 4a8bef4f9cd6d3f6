"""Deferred requests when things go wrong: what was accepted is there, what cannot be said is not said."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kit.job_model import answer, job
from kit.redis_server import RedisServer
from kit.redis_topologies import Cluster, running

from router.errors import JobsUnavailable
from router.jobs.deferred import Submission
from router.jobs.group_commit import GroupCommit
from router.jobs.holder import holder_name
from router.jobs.jobs_redis import RedisJobs
from router.jobs.jobs_sqlite import SqliteJobs
from router.jobs.sqlite import SqliteDecisions
from router.redis_link import RedisLink

pytestmark = pytest.mark.anyio

OWNER = "router"
SUB = Submission("s1", OWNER, "g", 1500.5, 0)

ACCEPTS = """
import asyncio, sys
from pathlib import Path
from router.jobs.deferred import Job
from router.jobs.holder import holder_name
from router.jobs.jobs_sqlite import SqliteJobs

async def main():
    store = SqliteJobs(Path(sys.argv[1]))
    await store.lead("router", holder_name(), 3600.0)
    await store.accept(Job("a", "router", "anna", "g", 4e9, 4e9, None, 10, 3, b"m", b"ask"))
    print("accepted", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def modes(folder: Path) -> dict[str, int]:
    return {each.name: each.stat().st_mode & 0o777 for each in folder.iterdir()}


async def test_what_was_accepted_survives_a_kill_and_the_next_process_leads_at_once(path: Path):
    """SIGKILL the moment that `accept` has returned; the dead process had the lease for an hour."""
    child = subprocess.Popen(  # noqa: ASYNC220 - nothing else is under way
        [sys.executable, "-c", ACCEPTS, str(path)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == b"accepted\n"
        store = SqliteJobs(path)
        is_told = "-" not in holder_name().split(":")
        assert not await store.lead(OWNER, holder_name(), 60.0)
        child.send_signal(signal.SIGKILL)
    assert [one.id for one in await store.waiting(OWNER, 9)] == ["a"]
    found = await store.request_of(OWNER, "a")
    assert found is not None
    assert found.request == b"ask"
    assert await store.lead(OWNER, holder_name(), 60.0) == is_told
    await store.close()


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("first", [SqliteJobs, SqliteDecisions])
async def test_nobody_else_may_read_the_file(tmp_path: Path, path: Path, first: Any, is_there: bool):
    """Nor what SQLite keeps beside it: made so, and made so where it was not, by whichever store comes first."""
    if is_there:
        sqlite3.connect(path).close()
        for name in ("", "-wal", "-shm"):
            (tmp_path / f"jobs.db{name}").touch()
            (tmp_path / f"jobs.db{name}").chmod(0o666)
    mask = os.umask(0)
    try:
        opener = first(path)
        await (opener.put("t", {"a": b"1"}) if isinstance(opener, SqliteDecisions) else opener.accept(job("b")))
    finally:
        os.umask(mask)
    store = SqliteJobs(path)
    await store.accept(job("a"))
    assert await store.look(OWNER, "a", "anna") is not None
    assert modes(tmp_path) == {"jobs.db": 0o600, "jobs.db-wal": 0o600, "jobs.db-shm": 0o600}
    await store.close()
    await opener.close()


async def test_a_file_that_is_no_database_is_set_aside_once(tmp_path: Path, path: Path, caplog: Any):
    """By whoever comes first, of all who open it at the same time; the others use what was begun."""
    path.write_bytes(b"no database " * 1_000)  # noqa: ASYNC240 - nothing else is under way
    stores = [SqliteJobs(path) for _ in range(4)]
    decisions = SqliteDecisions(path)
    await asyncio.gather(
        *(store.accept(job(f"j{n}")) for n, store in enumerate(stores)), decisions.put("t", {"a": b""})
    )
    assert len(await stores[0].waiting(OWNER, 9)) == 4
    assert len([name for name in os.listdir(tmp_path) if ".corrupt-" in name]) == 1
    assert caplog.text.count("set aside") == 1
    for each in (*stores, decisions):
        await each.close()


async def test_a_file_of_an_older_router_gets_the_tables_it_lacks(path: Path):
    """What was decided about batches stays."""
    decisions = SqliteDecisions(path)
    await decisions.put("t", {"a": b"1"})
    await decisions.link("t", "batch_1", "anna")
    await decisions.close()
    connection = sqlite3.connect(path)
    tables = "SELECT type, name FROM sqlite_master WHERE name LIKE 'job\\_%' ESCAPE '\\' OR name = 'jobs'"
    for kind, name in connection.execute(tables).fetchall():
        connection.execute(f"DROP {kind} IF EXISTS {name}")
    connection.execute("DELETE FROM jobs_schema_version WHERE version > 1")
    connection.commit()
    connection.close()
    store, decisions = SqliteJobs(path), SqliteDecisions(path)
    await store.accept(job("a"))
    assert await decisions.owners(["batch_1"]) == {"batch_1": "anna"}
    await store.close()
    await decisions.close()


async def test_a_locked_file_is_said_within_two_and_a_half_seconds(path: Path):
    """To all who ask together, and to the next ones at once; what is read is read meanwhile, then all goes on."""
    store = SqliteJobs(path)
    await store.accept(job("a"))
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    started_s = time.monotonic()
    asked = [asyncio.create_task(store.accept(job(f"j{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    assert await store.look(OWNER, "a", "anna") is not None
    refused = await asyncio.gather(*asked, return_exceptions=True)
    assert time.monotonic() - started_s < 2.5
    assert [type(each) for each in refused] == [JobsUnavailable] * 20
    assert all(isinstance(each, JobsUnavailable) and each.retryable for each in refused)
    started_s = time.monotonic()
    for call in (store.finish(OWNER, "a", answer()), store.lead(OWNER, "h", 9.0), store.cancel(OWNER, "a", "anna")):
        with pytest.raises(JobsUnavailable):
            await call
    assert time.monotonic() - started_s < 1.0
    holder.execute("ROLLBACK")
    holder.close()
    await store.accept(job("b"))
    assert [one.id for one in await store.waiting(OWNER, 99)] == ["a", "b"]
    assert store.stats()["failures"] == 4  # of commits: twenty shared one
    await store.close()


async def test_a_place_where_no_file_can_be_is_said_once(tmp_path: Path, caplog: Any):
    """Every call but the counts says so; when it can be, all is well."""
    (tmp_path / "gone").write_text("in the way")
    store = SqliteJobs(tmp_path / "gone" / "jobs.db")
    for call in (
        store.accept(job("a")), store.look(OWNER, "a", "anna"), store.cancel(OWNER, "a", "anna"),
        store.lead(OWNER, "h", 9.0), store.leave(OWNER, "h"), store.waiting(OWNER, 9), store.begin("h", SUB, ["a"]),
        store.sent(OWNER, "s1", "b"), store.unsent(OWNER, "s1", 0.0), store.open_submissions(OWNER),
        store.batches_of(OWNER), store.members(OWNER, "s1"), store.request_of(OWNER, "a"),
        store.finish(OWNER, "a", answer()), store.close_submission(OWNER, "s1"),
    ):  # fmt: skip
        with pytest.raises(JobsUnavailable):
            await call
    assert store.stats()["failures"] == 15
    assert caplog.text.count("deferred requests are refused meanwhile") == 2  # writing, and reading
    (tmp_path / "gone").unlink()
    await store.accept(job("a"))
    await store.close()


async def test_a_closed_store_says_so_and_what_was_asked_before_is_done(path: Path):
    """No file is opened again."""
    store = SqliteJobs(path)
    asked = asyncio.create_task(store.accept(job("a")))
    await asyncio.sleep(0)
    await store.close()
    await asked
    for name in os.listdir(path.parent):
        (path.parent / name).unlink()
    for call in (store.accept(job("b")), store.look(OWNER, "a", "anna")):
        with pytest.raises(JobsUnavailable):
            await call
    await store.close()
    assert not os.listdir(path.parent)


async def test_what_is_asked_together_is_committed_together(path: Path):
    """A hundred acceptances cost a few commits; while one is under way, the rest gathers."""
    store = SqliteJobs(path)
    await store.accept(job("a"))
    said: list[str] = []
    await store._file.write(lambda connection: connection.set_trace_callback(said.append))
    said.clear()
    await asyncio.gather(*(store.accept(job(f"j{n}")) for n in range(100)))
    assert said.count("COMMIT") == 1
    assert "PRAGMA synchronous=FULL" in said
    assert len(await store.waiting(OWNER, 200)) == 101
    await store.close()


async def test_what_is_wrong_with_one_piece_of_work_is_its_own(path: Path):
    """Those in the same commit are done; what it had written is not."""
    file = GroupCommit(path)
    await file.write(lambda connection: connection.execute("CREATE TABLE t (x UNIQUE)"))

    def wrong(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (7)")
        raise ValueError("no")

    def twice(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (8)")
        connection.execute("INSERT INTO t VALUES (8)")

    def right(connection: sqlite3.Connection) -> int:
        return connection.execute("INSERT INTO t VALUES (9)").rowcount

    found = await asyncio.gather(*map(file.write, (wrong, right, twice)), return_exceptions=True)
    assert [type(each) for each in found] == [ValueError, int, JobsUnavailable]
    assert await file.read(lambda connection: connection.execute("SELECT x FROM t").fetchall()) == [(9,)]
    await file.close()


async def test_whoever_is_cancelled_takes_no_other_along(path: Path):
    """Its work may be done or not; that of the others is."""
    store = SqliteJobs(path)
    asked = [asyncio.create_task(store.accept(job(f"j{n}"))) for n in range(10)]
    await asyncio.sleep(0)
    asked[3].cancel()
    done = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(each, BaseException) for each in done].count(True) == 1
    assert {one.id for one in await store.waiting(OWNER, 99)} >= {f"j{n}" for n in range(10) if n != 3}
    await store.close()


async def test_no_question_reads_the_whole_table(path: Path):
    """Whatever is asked often goes by an index."""
    store = SqliteJobs(path)
    for name in "abcd":
        await store.accept(job(name))
    await store.lead(OWNER, "h", 60.0)
    said: list[str] = []
    for run in (store._file.write, store._file.read):
        await run(lambda connection: connection.set_trace_callback(said.append))
    await store.begin("h", SUB, ["a", "b", "c"])
    await store.sent(OWNER, "s1", "b1")
    await store.finish(OWNER, "a", answer("yes", time.time()))
    await store.cancel(OWNER, "b", "anna")
    await store.look(OWNER, "a", "anna")
    await store.waiting(OWNER, 9)
    await store.members(OWNER, "s1")
    await store.request_of(OWNER, "c")
    await store.open_submissions(OWNER)
    await store.batches_of(OWNER)
    await store.unsent(OWNER, "s1", 0.0)
    await store.close_submission(OWNER, "s1")
    await store.settled()
    await store._prune()
    await store.close()
    connection = sqlite3.connect(path)
    asked = {each for each in said if each.startswith(("SELECT", "UPDATE", "DELETE", "INSERT"))}
    assert len(asked) > 25
    for each in sorted(asked):
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {each}")]
        scans = [line for line in plan if line.startswith("SCAN") and line != "SCAN job_owners"]  # a row per owner
        assert not scans, (each, plan)
        assert not [line for line in plan if "TEMP B-TREE" in line and "started_s" not in each], (each, plan)
    connection.close()


async def test_redis_that_is_away_is_said(redis_server: RedisServer):
    """By every call but the counts, in time, and that another try may help; nothing is half there afterwards."""
    link = RedisLink(redis_server.url, deadline_s=0.2, give_up_s=0.2, rest_s=0.01)
    store = RedisJobs(link)
    redis_server.kill()
    for call in (
        store.accept(job("a")), store.look(OWNER, "a", "anna"), store.cancel(OWNER, "a", "anna"),
        store.lead(OWNER, "h", 9.0), store.leave(OWNER, "h"), store.waiting(OWNER, 9), store.begin("h", SUB, ["a"]),
        store.sent(OWNER, "s1", "b"), store.unsent(OWNER, "s1", 0.0), store.open_submissions(OWNER),
        store.batches_of(OWNER), store.members(OWNER, "s1"), store.request_of(OWNER, "a"),
        store.finish(OWNER, "a", answer()), store.close_submission(OWNER, "s1"),
    ):  # fmt: skip
        with pytest.raises(JobsUnavailable) as caught:
            await call
        assert caught.value.retryable
    assert store.stats()["failures"] == 15
    await store.close()
    await link.close()


async def test_redis_that_hangs_is_said_in_time(redis_server: RedisServer):
    """A frozen server keeps its connections; what it was asked may be done later, once."""
    link = RedisLink(redis_server.url, deadline_s=0.2, give_up_s=5.0)
    store = RedisJobs(link)
    await store.accept(job("a"))
    redis_server.freeze()
    with pytest.raises(JobsUnavailable):
        await store.accept(job("b"))
    redis_server.thaw()
    async with asyncio.timeout(5.0):
        while True:
            try:
                await store.accept(job("b"))
                break
            except JobsUnavailable:
                await asyncio.sleep(0.01)  # it comes back without a word
    assert [one.id for one in await store.waiting(OWNER, 9)] == ["a", "b"]
    await link.close()


async def test_a_full_redis_takes_nothing_and_gives_everything(servers: Any):
    """With `noeviction`: a job is refused as a whole, and what is there can still end."""
    server = servers("--maxmemory-policy", "noeviction")
    link = RedisLink(server.url, deadline_s=2.0, give_up_s=2.0)
    store = RedisJobs(link)
    await store.accept(job("a"))
    await link.ask("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(JobsUnavailable):
        await store.accept(job("b"))
    assert [one.id for one in await store.waiting(OWNER, 9)] == ["a"]
    assert await store.cancel(OWNER, "a", "anna") == "removed"
    await link.ask("CONFIG", "SET", "maxmemory", "0")
    assert await link.ask("HGET", f"router:v1:jobs:{{{OWNER}}}:load", "jobs") == b"0"
    await link.close()


async def test_a_cluster_has_the_jobs_of_an_owner_on_one_node(redis_program: str, tmp_path: Path):
    """And those of others elsewhere: every call works, whichever node has them."""
    cluster = Cluster(redis_program, tmp_path)
    with running(cluster):
        link = RedisLink(cluster.url, deadline_s=5.0, give_up_s=5.0)
        store = RedisJobs(link)
        owners = ["router", "tenant-1", "tenant-2", "ü"]
        for owner in owners:
            sub = Submission("s1", owner, "g", 1500.5, 0)
            for name in "abc":
                await store.accept(job(name, owner=owner))
            assert await store.lead(owner, "h", 60.0)
            assert len(await store.begin("h", sub, ["a", "b"])) == 2
            await store.sent(owner, "s1", "batch_1")
            assert await store.finish(owner, "a", answer())
            assert await store.cancel(owner, "b", "anna") == "marked"
            assert len(await store.members(owner, "s1")) == 2
            assert len(await store.open_submissions(owner)) == 1
            await store.close_submission(owner, "s1")
            assert await store.batches_of(owner) == {"batch_1"}
            assert [one.id for one in await store.waiting(owner, 9)] == ["c"]
            assert await store.request_of(owner, "c") is not None
            await store.begin("h", Submission("s2", owner, "g", 1600.5, 0), ["c"])
            await store.unsent(owner, "s2", 5.0)
            await store.leave(owner, "h")
            view = await store.look(owner, "a", "anna")
            assert view is not None
            assert (view.state, view.batch) == ("ended", "batch_1")
        assert len({cluster.node_of(f"router:v1:jobs:{{{owner}}}:load").port for owner in owners}) > 1
        await link.close()
