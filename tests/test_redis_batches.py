"""Commands asked together go out together, and each gets its own reply: batches, scripts, scans, late loops."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import time
from collections.abc import Callable

import pytest
from kit.fault_proxy import fault_proxy
from kit.redis_server import RedisServer, becomes, failure, until

from router.redis_link import RedisLink, RedisUnavailable

pytestmark = pytest.mark.anyio

Connect = Callable[..., RedisLink]
CALM = {"deadline_s": 2.0, "give_up_s": 3.0}  # where a busy machine must not fail the test
ECHO = "return {KEYS[1], ARGV[1]}"


def hold_up_the_loop(for_s: float) -> None:
    """Keep this thread, and so the event loop, busy."""
    until_s = time.monotonic() + for_s
    while time.monotonic() < until_s:
        pass


def connections(server: RedisServer) -> int:
    """How many connections a server has accepted, but the ones that ask here."""
    return int(server.say("INFO", "stats").split(b"total_connections_received:")[1].split()[0])


# Batches


async def test_what_is_asked_in_one_turn_goes_out_as_one_batch(redis_server: RedisServer, connect: Connect):
    """One write and one connection for all of them; the replies come back in order, each to its own asker."""
    link = connect(redis_server.url, **CALM)
    await link.ask("PING")
    before = link.stats()
    replies = await asyncio.gather(*(link.ask("INCRBY", f"k{number}", number) for number in range(200)))
    assert replies == list(range(200))
    after = link.stats()
    assert (after["batches"] - before["batches"], after["batched"] - before["batched"]) == (1, 200)
    assert redis_server.say("CLIENT", "LIST").count(b" addr=") == 2  # ours, and the one that lists


async def test_one_connection_is_enough_for_a_burst(redis_server: RedisServer, connect: Connect):
    """Nobody fails for want of a connection: who comes while it is busy goes with the next batch."""
    link = connect(redis_server.url, most_connections=1, **CALM)
    await link.ask("PING")
    for _ in range(5):
        replies = await asyncio.gather(*(link.ask("ECHO", f"{number}") for number in range(200)))
        assert replies == [b"%d" % number for number in range(200)]
    assert link.stats()["failed"] == 0


async def test_a_batch_is_bounded(redis_server: RedisServer, connect: Connect):
    """No more than 512 commands, and no more than a quarter of a megabyte before the last of them."""
    link = connect(redis_server.url, **CALM)
    await asyncio.gather(*(link.ask("INCRBY", "n", 0) for _ in range(1025)))
    assert link.stats()["batches"] == 3
    value = b"v" * 200_000
    assert set(await asyncio.gather(*(link.ask("SET", f"k{number}", value) for number in range(6)))) == {b"OK"}
    assert link.stats()["batches"] == 6
    values = await asyncio.gather(*(link.ask("GET", f"k{number}") for number in range(6)))
    assert values == [value] * 6


async def test_an_error_reply_fails_its_own_command_only(redis_server: RedisServer, connect: Connect):
    """Its neighbours in the batch have their replies, and the connection goes on."""
    link = connect(redis_server.url, **CALM)
    await link.ask("SET", "k", "v")
    before = connections(redis_server)
    asked = (("GET", "k"), ("INCR", "k"), ("NOSUCH",), ("LPUSH", "k", 1), ("GET", "k"), ("EVAL", "return {1,", 0))
    replies = await asyncio.gather(*(link.ask(*command) for command in asked), return_exceptions=True)
    assert [replies[0], replies[4]] == [b"v", b"v"]
    errors = [reply for reply in replies if isinstance(reply, RedisUnavailable)]
    assert [error.reason for error in errors] == [
        "error reply `ERR`", "error reply `ERR`", "error reply `WRONGTYPE`", "error reply `ERR`",
    ]  # fmt: skip
    assert all(error.is_reply for error in errors)
    assert link.stats()["batches"] == 2
    assert link.is_up
    assert connections(redis_server) == before + 1  # the one that asks here


async def test_a_value_that_no_command_takes_fails_its_asker_only(redis_server: RedisServer, connect: Connect):
    """It is our own bug, so it is raised as it is; what was asked with it is answered."""
    link = connect(redis_server.url, **CALM)
    replies = await asyncio.gather(
        link.ask("SET", "k", None),  # type: ignore[arg-type]
        link.ask("SET", "k", "\ud800"),
        link.ask("SET", "k", "v"),
        return_exceptions=True,
    )
    assert [type(reply) for reply in replies] == [TypeError, UnicodeEncodeError, bytes]


async def test_a_storm_of_cancelled_asks_gives_nobody_the_reply_of_another(redis_server: RedisServer, connect: Connect):
    """A thousand asks at a time, half of them cancelled before, while and after they are sent."""
    link = connect(redis_server.url, **CALM, most_connections=3)
    for number in range(100):
        redis_server.say("SET", f"k{number}", f"value of {number}")
    before = connections(redis_server)
    dice = random.Random(7)
    right = cancelled = 0
    for _ in range(5):
        numbers = [dice.randrange(100) for _ in range(1000)]
        asks = [asyncio.create_task(link.ask("GET", f"k{number}")) for number in numbers]
        for ask in dice.sample(asks, 500):
            if dice.random() < 0.02:
                await asyncio.sleep(0)
            ask.cancel()
        for number, reply in zip(numbers, await asyncio.gather(*asks, return_exceptions=True), strict=True):
            if isinstance(reply, asyncio.CancelledError):
                cancelled += 1
            else:
                assert reply == b"value of %d" % number
                right += 1
    assert right >= 2500
    assert cancelled > 500
    assert connections(redis_server) <= before + 3 + 1


async def test_replies_that_come_byte_by_byte_and_late_reach_their_askers(redis_server: RedisServer, connect: Connect):
    """A slow network between: each value that comes is the one that was asked for, also after others gave up."""
    for number in range(50):
        redis_server.say("SET", f"k{number}", f"value of {number}")
    async with fault_proxy(redis_server.port) as proxy:
        proxy.piece, proxy.jitter_s = 1, 0.06
        link = connect(f"redis://127.0.0.1:{proxy.port}", deadline_s=0.03, rest_s=0.01, most_connections=4)
        right = failed = 0
        for _ in range(30):
            asks = (link.ask("GET", f"k{number}") for number in range(10))
            for number, reply in enumerate(await asyncio.gather(*asks, return_exceptions=True)):
                if isinstance(reply, RedisUnavailable):
                    failed += 1
                else:
                    assert reply == b"value of %d" % number
                    right += 1
            await until(link, lambda: link.is_up, "GET", "k1")
        proxy.piece, proxy.jitter_s = 0, 0.0
        await until(link, lambda: link.stats()["last_latency_us"] < 30_000, "GET", "k1")
        assert await link.ask("GET", "k1") == b"value of 1"
        assert min(right, failed) > 20, (right, failed)
        await link.close()


# Scripts


async def test_a_script_is_sent_once_and_then_by_its_digest(redis_server: RedisServer, connect: Connect):
    """Also after the server has lost it (SCRIPT FLUSH, or a failover): the caller notices nothing."""
    link = connect(redis_server.url, **CALM)
    for _ in range(2):
        for _ in range(3):
            assert await link.run(ECHO, ["k"], [b"\xff\r\n"]) == [b"k", b"\xff\r\n"]
        assert redis_server.say("SCRIPT", "EXISTS", hashlib.sha1(ECHO.encode()).hexdigest()) == b"*1\r\n:1\r\n"
        redis_server.say("SCRIPT", "FLUSH")
    assert await asyncio.gather(*(link.run(ECHO, ["k"], [n]) for n in range(50))) == [
        [b"k", b"%d" % n] for n in range(50)
    ]
    said = redis_server.say("INFO", "commandstats")
    assert b"cmdstat_evalsha:calls=56," in said
    assert b"cmdstat_eval:calls=52," in said  # two, and the fifty that did not know of each other
    assert link.stats()["failed"] == 0


async def test_a_script_that_fails_is_an_error_reply(redis_server: RedisServer, connect: Connect):
    """It says no value, and never makes the link rest."""
    link = connect(redis_server.url, **CALM)
    for _ in range(4):
        with pytest.raises(RedisUnavailable) as caught:
            await link.run("return redis.error_reply('MINE a secret')", [], [])
        assert (caught.value.reason, caught.value.is_reply) == ("error reply `MINE`", True)
    assert link.is_up


async def test_a_script_has_one_limit_for_both_ways_of_sending(redis_server: RedisServer, connect: Connect):
    """`within_s` is for the whole."""
    link = connect(redis_server.url, **CALM)
    await link.ask("PING")
    redis_server.freeze()
    started_s = time.monotonic()
    with pytest.raises(RedisUnavailable):
        await link.run(ECHO, ["k"], ["v"], within_s=0.15)
    assert time.monotonic() - started_s < 0.29


# Scans


async def test_a_scan_goes_through_the_keys_page_by_page(redis_server: RedisServer, connect: Connect):
    """Every key that matches comes, and no other; requests are not kept waiting, and no connection is left."""
    link = connect(redis_server.url, **CALM)
    await asyncio.gather(*(link.ask("SET", f"router:{number}", "v") for number in range(500)))
    await link.ask("SET", "other", "v")
    pages = [page async for page in link.scan("router:*", count=50)]
    assert len(pages) > 3
    assert {key for page in pages for key in page} == {b"router:%d" % number for number in range(500)}
    await becomes(lambda: redis_server.say("CLIENT", "LIST").count(b" addr=") == 2)


async def test_a_scan_fails_as_the_link_does(redis_server: RedisServer, connect: Connect):
    """A server that went away, one that rests, a link that is closed."""
    link = connect(redis_server.url, **CALM)
    await asyncio.gather(*(link.ask("SET", f"router:{number}", "v") for number in range(100)))
    pages = link.scan("router:*", count=10)
    await anext(pages)
    redis_server.kill()
    with pytest.raises(RedisUnavailable):
        await anext(pages)
    for _ in range(3):
        await failure(link, "PING")
    with pytest.raises(RedisUnavailable, match="refused"):
        await anext(link.scan("*"))
    await link.close()
    with pytest.raises(RedisUnavailable, match="closed"):
        await anext(link.scan("*"))


# A process that is held up


async def test_a_reply_that_came_while_the_loop_was_held_up_is_read(redis_server: RedisServer, connect: Connect):
    """The limit has passed, but what lies in the socket is looked at first."""
    link = connect(redis_server.url)
    await link.ask("SET", "k", "v")
    for _ in range(5):
        ask = asyncio.create_task(link.ask("GET", "k"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        hold_up_the_loop(0.1)
        assert await ask == b"v"
    assert link.stats()["failed"] == 0


async def test_a_late_loop_is_not_a_late_server(redis_server: RedisServer, connect: Connect):
    """An ask whose limit passed while this process was held up fails, and does not make the link rest."""
    link = connect(redis_server.url)
    await link.ask("PING")
    redis_server.freeze()
    for _ in range(5):
        ask = asyncio.create_task(failure(link, "GET", "k"))
        await asyncio.sleep(0)
        hold_up_the_loop(0.1)
        assert (await ask).reason == "no answer within 50 ms, in which this process was held up itself"
    assert link.is_up
    assert link.stats()["loop_late"] == link.stats()["failed"] == 5
    assert link.stats()["timeouts"] == 0
    for _ in range(3):
        assert (await failure(link, "GET", "k")).reason == "no answer within 50 ms"
    assert not link.is_up
    assert link.stats()["timeouts"] == 3


# Figures


async def test_replies_are_counted_by_how_long_they_took(redis_server: RedisServer, connect: Connect):
    """Twelve bounds that double, and what is above; every reply is in one of them."""
    async with fault_proxy(redis_server.port) as proxy:
        link = connect(f"redis://127.0.0.1:{proxy.port}", deadline_s=2.0)
        for _ in range(10):
            await link.ask("PING")
        proxy.delay_s = 0.05
        await link.ask("PING")
        counts, sum_s = link.latencies()
        await link.close()
    bounds = list(counts)
    assert bounds[:3] == [0.0005, 0.001, 0.002]
    assert bounds[11:] == [0.0005 * 2**11, math.inf]
    assert sum(counts.values()) == 11
    assert counts[0.064] + counts[0.128] >= 1
    assert sum_s > 0.05
