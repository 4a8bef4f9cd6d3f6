"""Redis in trouble, seen from a client: right answers, no waiting, and sharing resumes by itself (F55 to F60)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.fault_proxy import fault_proxy
from kit.processes import router
from kit.raw_upstream import raw_upstream
from kit.redis_server import RedisServer
from kit.redis_topologies import Cluster, Sentinels, running
from kit.shared_store import (
    BACK_S,
    CACHED,
    ask,
    client,
    echo,
    entries,
    figures,
    is_shared,
    members,
    nonce,
    quantile_ms,
    say,
    until_alone,
    until_shared,
    written,
)
from kit.stage import WAIT_S, Stage, stage, until

from router.cache.shared import PURGES

pytestmark = pytest.mark.anyio

ADDED_MS = 60.0  # F57: 50 ms, and what a request of the test itself adds; for all but a few
BUSY_MS = 500.0  # for those few: what a busy machine adds to one now and then


@pytest.fixture
def changes(caplog) -> Callable[[], list[str]]:
    """What the router has said of Redis so far: `down` or `back`, in order."""
    caplog.set_level(logging.INFO, "router")

    def said() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        return ["back" if "redis: back" in line else "down" for line in lines if line.startswith("redis")]

    return said


# Down, killed, frozen


async def test_redis_comes_up_later(idle_redis_server, capsys, changes):
    """The router starts without it, is ready, and shares answers within five seconds (F55)."""
    async with stage(echo, policy=CACHED, cache=idle_redis_server.url) as s:
        await ask(s)
        await until_alone(s)
        assert s.app._readiness()[0]
        idle_redis_server.start()
        took_s = await until_shared(s)
        say(capsys, f"redis comes up: answers are shared after {took_s:.2f} s")
        assert changes() == ["down", "back"]
        async with stage(echo, policy=CACHED, cache=idle_redis_server.url, origin=s.upstream.origin) as other:
            await members(idle_redis_server, 2)
            await ask(s, text := nonce())
            await written(idle_redis_server, 2)
            assert (await ask(other, text))[0] == "hit"


async def test_killed_under_load_and_back_empty(redis_server, capsys, changes):
    """Misses only: no error, no wrong answer, and the entries come to be again (F56)."""
    async with stage(echo, policy=CACHED, cache=f"{redis_server.url}?max_mb=1") as s:
        await members(redis_server, 1)
        texts = [nonce() for _ in range(20)]
        is_over = False
        seen: list[str] = []

        async def load(number: int) -> None:
            while not is_over:
                seen.append((await ask(s, texts[number], stream=number % 2 == 0))[0])
                seen.append((await ask(s, stream=number % 2 == 1))[0])

        loads = [asyncio.ensure_future(load(number)) for number in range(20)]
        await until(lambda: seen.count("miss") > 100)
        redis_server.kill()
        await until(lambda: changes() == ["down"])
        before = len(seen)
        await until(lambda: len(seen) > before + 200)
        redis_server.start()
        leads = figures(s)["leads"]
        await until(lambda: figures(s)["leads"] > leads)
        is_over = True
        await asyncio.gather(*loads)
        assert set(seen) <= {"miss", "hit", "coalesced"}
        assert changes() == ["down", "back"]
        await until(lambda: bool(entries(redis_server)))
        say(capsys, f"killed and restarted under load: {len(seen)} requests, 0 errors")


async def test_frozen_under_load(redis_server, tmp_path, capsys):
    """Added time is bounded before the link rests and next to nothing after; sharing is back by itself (F57)."""
    async with (
        raw_upstream(echo) as upstream,
        router(tmp_path, upstream.origin, policy=CACHED, cache=redis_server.url) as s,
    ):
        await members(redis_server, 1)

        async def some(count: int) -> list[float]:
            return [(await ask(s))[1] for _ in range(count)]

        await some(30)
        usual = await some(150)
        redis_server.freeze()
        first = await some(15)
        resting = await some(150)
        redis_server.thaw()
        thawed_s = time.monotonic()
        leads = (await s.figures())['router_cache{stat="leads"}']
        async with asyncio.timeout(BACK_S):
            while (await s.figures())['router_cache{stat="leads"}'] <= leads:
                await ask(s)
        back_s = time.monotonic() - thawed_s
        lines = [line for line in s.said() if "redis:" in line]
    for name, times in (("usual", usual), ("just frozen", first), ("resting", resting)):
        say(capsys, f"{name:>12}: p50 {quantile_ms(times, 0.5):.2f} ms, p99 {quantile_ms(times, 0.99):.2f} ms")
    say(capsys, f"frozen: sharing is back {back_s:.2f} s after it goes on; {len(lines)} lines in the log")
    assert quantile_ms(first, 0.8) < quantile_ms(usual, 0.5) + ADDED_MS
    assert quantile_ms(resting, 0.5) < quantile_ms(usual, 0.5) + 5
    assert quantile_ms(first + resting, 1) < BUSY_MS
    assert ["redis: back" in line for line in lines] == [False, True]


@pytest.mark.parametrize("fault", ["slow", "jittery", "in single bytes"])
async def test_a_slow_line_to_redis_costs_a_request_little(redis_server, capsys, fault):
    """200 ms late, now and then late, or byte by byte: right answers within the budget (F58)."""
    async with (
        fault_proxy(redis_server.port, seed=1) as proxy,
        stage(echo, policy=CACHED, cache=f"redis://127.0.0.1:{proxy.port}") as s,
    ):
        await members(redis_server, 1)
        usual = [(await ask(s))[1] for _ in range(50)]
        if fault == "slow":
            proxy.delay_s = 0.2
        elif fault == "jittery":
            proxy.jitter_s = 0.06
        else:
            proxy.piece = 1
        times = [(await ask(s, stream=number % 2 == 0))[1] for number in range(60)]
        added_ms = quantile_ms(times, 1) - quantile_ms(usual, 0.5)
        say(capsys, f"a line that is {fault}: p50 {quantile_ms(times, 0.5):.1f} ms, at most {added_ms:.1f} ms added")
        assert quantile_ms(times, 0.9) < quantile_ms(usual, 0.5) + ADDED_MS
        assert added_ms < BUSY_MS
        proxy.delay_s = proxy.jitter_s = proxy.piece = 0
        await until_shared(s)


# Redis refuses


async def full(server: RedisServer) -> Callable[[], object]:
    server.say("CONFIG", "SET", "maxmemory", "1")
    return lambda: server.say("CONFIG", "SET", "maxmemory", "0")


async def unable_to_save(server: RedisServer) -> Callable[[], object]:
    """A save that failed makes Redis refuse writes (MISCONF)."""
    server.say("CONFIG", "SET", "dbfilename", "none")
    server.say("CONFIG", "SET", "save", "3600 1")
    with client(server) as plain:
        folder = plain.config_get("dir")["dir"]
        blocked = f"{folder}/none"  # a folder of this name stands where the file would be written
        await asyncio.to_thread(Path(blocked).mkdir)
        plain.bgsave()
        await until(lambda: plain.info("persistence")["rdb_last_bgsave_status"] == "err")
    return lambda: server.say("CONFIG", "SET", "save", "")


@pytest.mark.parametrize("trouble", [full, unable_to_save], ids=["full", "unable to save"])
async def test_one_that_takes_no_writes_still_reads(redis_server, trouble, changes):
    """Hits go on, new answers are not shared and counted, and nobody sees an error (F59, F60)."""
    url = redis_server.url
    async with (
        stage(echo, policy=CACHED, cache=url) as s,
        stage(echo, policy=CACHED, cache=url, origin=s.upstream.origin) as other,
    ):
        await members(redis_server, 2)
        await ask(s, text := nonce())
        [kept] = await written(redis_server, 1)
        mend = await trouble(redis_server)
        assert (await ask(other, text))[0] == "hit"
        for _ in range(10):
            assert (await ask(other))[0] == "miss"
        await until(lambda: figures(other)["unwritten"] == 10)
        assert entries(redis_server) == [kept]
        mend()
        await until_shared(other)
        await written(redis_server, 2)
        assert changes() == []


async def a_password(server: RedisServer) -> Callable[[], object]:
    server.say("CONFIG", "SET", "requirepass", "right")
    server.say("CLIENT", "KILL", "TYPE", "normal", password="right")  # it is asked for on new connections only
    return lambda: server.say("CONFIG", "SET", "requirepass", "", password="right")


async def a_replica_now(server: RedisServer) -> Callable[[], object]:
    server.say("REPLICAOF", "127.0.0.1", "1")
    return lambda: server.say("REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize("trouble", [a_password, a_replica_now], ids=["NOAUTH", "READONLY"])
async def test_one_that_turns_us_away_is_left_alone_until_it_is_mended(redis_server, trouble, capsys, changes):
    """From the start, or in the middle: no error, one line when it begins and one when it is over (F60)."""
    mend = await trouble(redis_server)
    async with stage(echo, policy=CACHED, cache=redis_server.url) as s:
        for times in (1, 2):
            await until_alone(s)
            for _ in range(20):
                await ask(s)
            mend()
            took_s = await until_shared(s)
            say(capsys, f"mended: shared again after {took_s:.2f} s")
            assert changes() == ["down", "back"] * times
            if times == 1:
                await trouble(redis_server)


async def test_a_wrong_password_is_said_without_showing_it(redis_server, caplog, changes):
    """The operator reads what is wrong; once Redis takes the password, sharing begins."""
    redis_server.say("CONFIG", "SET", "requirepass", "another")
    url = f"redis://:hunter2@127.0.0.1:{redis_server.port}"
    async with stage(echo, policy=CACHED, cache=url) as s:
        await until_alone(s)
        redis_server.say("CONFIG", "SET", "requirepass", "hunter2", password="another")
        await until_shared(s)
    assert changes() == ["down", "back"]
    assert "does not accept the credentials" in caplog.text
    assert "hunter2" not in caplog.text


async def test_one_that_loads_its_data_is_waited_for_elsewhere(redis_server, capsys, changes):
    """LOADING after a restart: misses until it is done (F60)."""
    with client(redis_server) as plain:
        plain.config_set("rdbcompression", "no")
        plain.mset({f"filler:{number}": "x" * 5000 for number in range(1500)})
        plain.save()
    redis_server.kill()
    redis_server.start("--key-load-delay", "1000")  # microseconds each
    assert b"LOADING" in redis_server.say("GET", "x")
    async with stage(echo, policy=CACHED, cache=redis_server.url) as s:
        await ask(s)
        took_s = await until_shared(s, WAIT_S)
        say(capsys, f"loading at the start: shared after {took_s:.2f} s, said {changes()}")
        assert changes() in ([], ["down", "back"])


async def test_scripts_that_redis_forgot_are_sent_again(redis_server, changes):
    """SCRIPT FLUSH between requests is not even noticed (NOSCRIPT)."""
    async with stage(echo, policy=CACHED, cache=redis_server.url) as s:
        await members(redis_server, 1)
        for _ in range(5):
            assert await is_shared(s)
            redis_server.say("SCRIPT", "FLUSH")
        assert figures(s)["unanswered"] == figures(s)["unwritten"] == 0
        assert changes() == []


# More than one server


async def test_the_master_dies_and_the_replica_takes_over(redis_program, tmp_path, capsys, changes):
    """Sentinel failover: no error meanwhile, sharing with the new master (F60)."""
    sentinels = Sentinels(redis_program, tmp_path)
    with running(sentinels):
        async with stage(echo, policy=CACHED, cache=sentinels.url) as s:
            await until_shared(s)
            sentinels.master.kill()
            took_s = await _through(s)
            say(capsys, f"sentinel failover: shared again {took_s:.2f} s after the master was killed")
            said = changes()  # a replica that becomes the master on a busy machine may be late once more
            assert said in (["down", "back"], ["down", "back"] * 2)


async def test_the_master_is_demoted_and_lives_on(redis_program, tmp_path, capsys, changes):
    """An orderly failover: connections stay, and the old master takes no writes; sharing goes on with the new one."""
    sentinels = Sentinels(redis_program, tmp_path)
    with running(sentinels):
        async with stage(echo, policy=CACHED, cache=sentinels.url) as s:
            await until_shared(s)
            started_s = time.monotonic()
            assert sentinels.sentinels[0].say("SENTINEL", "FAILOVER", Sentinels.NAME) == b"+OK\r\n"
            async with asyncio.timeout(20):
                while sentinels.master_port() != sentinels.replica.port:
                    await ask(s)
            sentinels.master.say("REPLICAOF", "127.0.0.1", str(sentinels.replica.port))  # as the sentinel does, later
            before = len(entries(sentinels.replica))
            async with asyncio.timeout(BACK_S):
                while len(entries(sentinels.replica)) == before:
                    await is_shared(s)
            say(capsys, f"orderly failover: shared again after {time.monotonic() - started_s:.2f} s, said {changes()}")
            assert changes() in ([], ["down", "back"])


@pytest.mark.parametrize("fate", ["killed", "frozen"])
async def test_a_node_of_a_cluster_is_lost(redis_program, tmp_path, capsys, changes, fate):
    """The keys of the other nodes are shared on; those of the lost one are misses (F60).

    Not so for the node that has the list of purges: without that, nobody knows what may be replayed.
    """
    cluster = Cluster(redis_program, tmp_path, node_timeout_ms=500)
    with running(cluster):
        async with stage(echo, policy=CACHED, cache=cluster.url) as s:
            await until_shared(s)
            lost = next(node for node in cluster.nodes if node is not cluster.node_of(PURGES))
            (lost.kill if fate == "killed" else lost.freeze)()
            times = [(await ask(s))[1] for _ in range(60)]
            shared = [await is_shared(s) for _ in range(60)]
            say(capsys, f"a node {fate}: at most {quantile_ms(times, 1):.1f} ms, {sum(shared)} of 60 still shared")
            assert sum(shared) > 15
            assert quantile_ms(times, 0.9) < ADDED_MS
            assert quantile_ms(times, 1) < BUSY_MS
            if fate == "frozen":
                lost.thaw()
                async with asyncio.timeout(WAIT_S):
                    while changes() != ["down", "back"]:
                        await ask(s)
            assert len(changes()) == (2 if fate == "frozen" else 1)


async def _through(s: Stage) -> float:
    """Ask until Redis has been down and is back → seconds."""
    started_s = time.monotonic()
    await until_alone(s)
    async with asyncio.timeout(20):
        while not await is_shared(s):
            pass
    return time.monotonic() - started_s
