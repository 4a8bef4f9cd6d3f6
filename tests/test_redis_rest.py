"""When Redis is let rest, what that costs, and how it is found again: servers frozen, killed, loading, refusing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.fault_proxy import fault_proxy
from kit.redis_server import RedisServer, Seen, becomes, failure, until

from router.redis_link import RedisLink, RedisUnavailable

pytestmark = pytest.mark.anyio

Connect = Callable[..., RedisLink]
CALM = {"deadline_s": 2.0, "give_up_s": 3.0}  # where a busy machine must not fail the test


async def test_a_rest_ends_though_nobody_asks(redis_server: RedisServer, connect: Connect):
    """The link looks itself, so no client's request is the one that finds out."""
    seen = Seen()
    link = connect(redis_server.url, observe=seen)
    await link.ask("PING")
    redis_server.freeze()
    while link.is_up:
        await failure(link, "PING")
    asked = link.stats()["asked"]
    redis_server.thaw()
    await becomes(lambda: link.is_up)
    assert link.stats()["asked"] == asked
    assert await link.ask("PING") == b"PONG"
    assert seen == [(False, "no answer within 50 ms"), (True, "")]


async def test_nobody_waits_while_it_rests(redis_server: RedisServer, connect: Connect):
    """Over many looks at a server that stays frozen, not one caller waits, and nothing more is told."""
    seen = Seen()
    link = connect(redis_server.url, rest_s=0.03, observe=seen)
    await link.ask("PING")
    redis_server.freeze()
    started_s = time.monotonic()
    await asyncio.gather(*(failure(link, "PING") for _ in range(100)))
    assert time.monotonic() - started_s < 0.15  # one limit for all of them
    waits_s = []
    while time.monotonic() - started_s < 0.6:
        asked_s = time.monotonic()
        await failure(link, "PING")
        waits_s.append(time.monotonic() - asked_s)
        await asyncio.sleep(0.005)  # the pace of the requests that ask
    assert sorted(waits_s)[len(waits_s) * 9 // 10] < 0.005  # the machine may be busy with other things
    assert link.stats()["refused"] == len(waits_s)
    assert len(seen) == 1


@pytest.mark.parametrize("end", ["freeze", "kill"])
async def test_a_server_that_comes_back_is_used_within_five_seconds(
    redis_server: RedisServer, connect: Connect, end: str
):
    """Frozen and thawed, killed and started anew, twice."""
    seen = Seen()
    link = connect(redis_server.url, observe=seen)
    for _ in range(2):
        await link.ask("SET", "k", "v")
        redis_server.freeze() if end == "freeze" else redis_server.kill()
        await until(link, lambda: not link.is_up)
        redis_server.thaw() if end == "freeze" else redis_server.start()
        await until(link, lambda: link.is_up)
        assert await link.ask("SET", "k", "v") == b"OK"
    assert [is_up for is_up, _ in seen] == [False, True] * 2


async def test_a_server_that_is_down_at_the_start_is_used_when_it_is_there(
    idle_redis_server: RedisServer, connect: Connect
):
    """The process serves meanwhile, and nobody has to start it again."""
    seen = Seen()
    link = connect(idle_redis_server.url, **CALM, observe=seen)
    for _ in range(3):
        assert (await failure(link, "PING")).reason == "cannot connect: connection refused"
    idle_redis_server.start()
    assert await until(link, lambda: link.is_up) < 5
    assert await link.ask("PING") == b"PONG"
    assert [is_up for is_up, _ in seen] == [False, True]


async def test_a_server_that_loads_its_data_is_not_up(idle_redis_server: RedisServer, connect: Connect):
    """It answers each command, PING too, with LOADING."""
    idle_redis_server.start()
    # While it loads it answers after each two megabytes. Microseconds a key.
    idle_redis_server.say("CONFIG", "SET", "rdbcompression", "no")
    idle_redis_server.say("EVAL", "for i = 1, 50 do redis.call('SET', 'k' .. i, string.rep('v', 1000000)) end", "0")
    assert idle_redis_server.say("SAVE") == b"+OK\r\n"
    idle_redis_server.kill()
    idle_redis_server.start("--key-load-delay", "15000")
    assert b"LOADING" in idle_redis_server.say("PING")
    seen = Seen()
    link = connect(idle_redis_server.url, deadline_s=0.3, rest_s=0.02, observe=seen)
    await until(link, lambda: not link.is_up)
    assert seen == [(False, "the server is still loading its data")]
    await until(link, lambda: link.is_up, within_s=10)
    assert b"LOADING" not in idle_redis_server.say("PING")
    assert await link.ask("EXISTS", "k1") == 1
    assert len(seen) == 2


@pytest.mark.parametrize("password", ["", ":wrong@"])
async def test_credentials_that_are_not_accepted_make_it_rest_until_they_are(
    idle_redis_server: RedisServer, connect: Connect, password: str
):
    """NOAUTH and WRONGPASS are answers, but nothing can be asked of such a server."""
    idle_redis_server.start("--requirepass", "right")
    seen = Seen()
    link = connect(f"redis://{password}127.0.0.1:{idle_redis_server.port}", **CALM, rest_s=0.02, observe=seen)
    await until(link, lambda: not link.is_up)
    refused = link.stats()["refused"]
    await until(link, lambda: link.stats()["refused"] > refused + 10)
    assert seen == [(False, "the server does not accept the credentials, or asks for some")]
    new = "" if password == "" else "wrong"
    assert idle_redis_server.say("CONFIG", "SET", "requirepass", new, password="right") == b"+OK\r\n"
    await until(link, lambda: link.is_up)
    assert len(seen) == 2


async def test_a_server_that_cannot_write_is_up_all_the_same(
    servers: Callable[..., RedisServer], connect: Connect, tmp_path: Path
):
    """MISCONF and OOM are about the command: what is there can still be read."""
    server = servers()
    server.say("CONFIG", "SET", "save", "3600 1000000")
    link = connect(server.url, **CALM)
    await link.ask("SET", "k", "v")
    folder = tmp_path / "away"
    folder.mkdir()
    assert server.say("CONFIG", "SET", "dir", str(folder)) == b"+OK\r\n"
    folder.rmdir()
    server.say("BGSAVE")
    await becomes(lambda: b"rdb_last_bgsave_status:err" in server.say("INFO", "persistence"))
    for _ in range(5):
        assert (await failure(link, "SET", "k", "w")).reason == "error reply `MISCONF`"
    server.say("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
    server.say("CONFIG", "SET", "maxmemory", "1")
    for _ in range(5):
        assert (await failure(link, "SET", "k", "w")).reason == "error reply `OOM`"
    assert link.is_up
    assert await link.ask("GET", "k") == b"v"


async def test_a_replica_behind_an_address_of_one_server_rests_until_it_is_a_master(
    servers: Callable[..., RedisServer], connect: Connect
):
    """It answers PING and refuses each write, so an answer to PING does not end the rest."""
    master, server = servers(), servers()
    seen = Seen()
    link = connect(server.url, **CALM, rest_s=0.02, observe=seen)
    await link.ask("SET", "k", "v")
    server.say("REPLICAOF", "127.0.0.1", str(master.port))
    await until(link, lambda: not link.is_up, "SET", "k", "v")
    refused = link.stats()["refused"]
    await until(link, lambda: link.stats()["refused"] > refused + 10)
    assert seen == [(False, "error reply `READONLY`")]
    server.say("REPLICAOF", "NO", "ONE")
    await until(link, lambda: link.is_up)
    assert await link.ask("SET", "k", "v") == b"OK"


async def test_replies_that_are_swallowed_make_it_rest(redis_server: RedisServer, connect: Connect):
    """A network that takes what is sent and brings nothing back is a server that does not answer."""
    async with fault_proxy(redis_server.port) as proxy:
        link = connect(f"redis://127.0.0.1:{proxy.port}", give_up_s=0.2)
        await link.ask("SET", "k", 0)
        proxy.swallows_replies = True
        for _ in range(3):
            assert (await failure(link, "INCR", "k")).reason == "no answer within 50 ms"
        assert not link.is_up
        proxy.swallows_replies = False
        await until(link, lambda: link.is_up)
        assert await link.ask("GET", "k") == b"3"  # it may have been carried out
        await link.close()


async def test_a_connection_that_is_cut_costs_what_was_under_way(redis_server: RedisServer, connect: Connect):
    """Those that wait for a reply fail at once; the next ones have a new connection."""
    async with fault_proxy(redis_server.port) as proxy:
        link = connect(f"redis://127.0.0.1:{proxy.port}", deadline_s=2.0, give_up_s=2.0)
        await link.ask("SET", "k", "v")
        for _ in range(3):
            proxy.delay_s = 10.0
            asks = [asyncio.create_task(failure(link, "GET", "k")) for _ in range(2)]
            sent = link.stats()["batched"]
            await becomes(lambda sent=sent: link.stats()["batched"] > sent)
            started_s = time.monotonic()
            proxy.cut()
            assert {error.reason for error in await asyncio.gather(*asks)} <= {
                "the connection was lost", "cannot connect: connection reset by peer",
            }  # fmt: skip
            assert time.monotonic() - started_s < 0.5
            proxy.delay_s = 0.0
            assert await link.ask("GET", "k") == b"v"
        assert link.is_up
        await link.close()


async def test_a_connection_that_hangs_keeps_only_its_own_askers_waiting(redis_server: RedisServer, connect: Connect):
    """While a new connection does not come to be, one that is free is used."""
    async with fault_proxy(redis_server.port) as proxy:
        # With the number of a database something is said on connect, so a connection can hang before it is there.
        link = connect(f"redis://127.0.0.1:{proxy.port}/1", deadline_s=1.0, give_up_s=5.0)
        await link.ask("SET", "k", "v")
        proxy.wait_s = 10.0
        slow = asyncio.create_task(link.ask("EVAL", "local i = 0 while i < 2000000 do i = i + 1 end return 1", 0))
        sent = link.stats()["batched"]
        await becomes(lambda: link.stats()["batched"] > sent)
        second = asyncio.create_task(link.ask("GET", "k"))  # needs a connection of its own, which hangs
        assert await slow == 1
        assert await second == b"v"
        for _ in range(20):
            assert await link.ask("GET", "k") == b"v"
        assert proxy.connections == 2
        await link.close()


async def test_no_time_left_is_no_fault_of_the_server(redis_server: RedisServer, connect: Connect):
    """An ask with nothing left of its time is not sent, and does not count against the server."""
    link = connect(redis_server.url)
    for _ in range(5):
        with pytest.raises(RedisUnavailable, match="no time was left"):
            await link.ask("PING", within_s=0)
    assert link.is_up
    assert link.stats()["batches"] == 0


async def test_a_rest_ends_with_the_link(redis_server: RedisServer, connect: Connect):
    """Nothing looks at the server, and nothing is told, after `close`."""
    seen = Seen()
    tasks = asyncio.all_tasks()
    link = connect(redis_server.url, rest_s=0.01, observe=seen)
    redis_server.freeze()
    for _ in range(3):
        await failure(link, "PING")
    assert asyncio.all_tasks() > tasks
    await link.close()
    assert asyncio.all_tasks() == tasks
    assert len(seen) == 1


async def test_a_question_that_is_not_answered_ends_no_rest(connect: Connect):
    """A server that was no master any more answers PING, but not whether it is one again: it may still be none."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                words.append((await reader.readexactly(size + 2))[:-2].upper())
            asked.append(words[0])
            says = {b"PING": b"+PONG\r\n", b"SET": b"-READONLY no master\r\n", b"ROLE": b""}
            writer.write(says.get(words[0], b"+OK\r\n"))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        seen = Seen()
        port = server.sockets[0].getsockname()[1]
        link = connect(f"redis://127.0.0.1:{port}", deadline_s=0.1, rest_s=0.03, observe=seen)
        await until(link, lambda: not link.is_up, "SET", "k", "v")
        await becomes(lambda: asked.count(b"ROLE") >= 3)
        assert not link.is_up
        assert [is_up for is_up, _ in seen] == [False]
        await link.close()
