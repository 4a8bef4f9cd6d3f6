"""Redis between storms and partitions: whose reply is whose, and who waits for it (F62 to F64)."""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial

import pytest
from kit.fault_proxy import fault_proxy
from kit.shared_store import (
    CACHED,
    ask,
    be_patient,
    beside,
    client,
    echo,
    figures,
    members,
    nonce,
    quantile_ms,
    say,
    until_alone,
    until_shared,
    written,
)
from kit.stage import KEY, WAIT_S, always, request_body, stage, until

import router.stores
from router.cache.redis import LEASE_S
from router.redis_link import RedisLink

pytestmark = pytest.mark.anyio


async def test_a_storm_of_clients_that_leave_mixes_nothing_up(redis_server, capsys, monkeypatch):
    """500 clients, half of which leave while Redis is asked: each of the others gets the answer to its own (F62)."""
    be_patient(monkeypatch)  # so that it is replies of Redis that could be mixed up
    dice = random.Random(7)
    texts = [nonce() for _ in range(250)]
    async with (
        fault_proxy(redis_server.port, seed=3) as proxy,
        stage(echo, policy=CACHED, cache=redis_server.url) as s,
    ):
        await members(redis_server, 1)
        for start in range(0, 125, 25):  # half of them are there to be hit
            await asyncio.gather(*(ask(s, text) for text in texts[start : start + 25]))
        await written(redis_server, 125)
        proxy.jitter_s = 0.005
        slow = f"redis://127.0.0.1:{proxy.port}"
        async with stage(policy=CACHED, cache=slow, origin=s.upstream.origin) as other:
            await members(redis_server, 2)

            async def leave(text: str) -> None:
                wire = await other.connect()
                wire.send("POST", "/v1/messages", KEY, request_body(text))
                for _ in range(dice.randrange(60)):
                    await asyncio.sleep(0)
                await wire.close()

            answered = await asyncio.gather(
                *(task for text in texts for task in (ask(other, text), leave(dice.choice(texts))))
            )
            words = [each[0] for each in answered if each is not None]
            assert len(words) == 250
            found = figures(other)["hits"]
            say(capsys, f"storm: {words.count('miss')} misses, {words.count('coalesced')} joined, {found} in Redis")
            # Clients that left look up too, so it is those who stayed that are counted: what was there, each found.
            there = [each[0] for each in answered[:250:2] if each is not None]
            assert (len(there), "miss" in there) == (125, False)
            assert found >= 125
            await until(lambda: not other.app.api._watches)
            assert sum(at.app.pipeline.stats()["under_way"] for at in (s, other)) == 0


async def test_replies_that_never_come_back_cost_the_budget_and_no_more(redis_server, capsys):
    """Redis does what it is told, and nobody hears of it: right answers, and no wait but the first few (F63)."""
    async with (
        fault_proxy(redis_server.port) as proxy,
        stage(echo, policy=CACHED, cache=f"redis://127.0.0.1:{proxy.port}") as s,
    ):
        await members(redis_server, 1)
        text = nonce()
        usual = [(await ask(s))[1] for _ in range(30)]
        proxy.swallows_replies = True
        times = [(await ask(s, text if number == 0 else None))[1] for number in range(40)]
        say(capsys, f"replies swallowed: p50 {quantile_ms(times, 0.5):.1f} ms, at most {quantile_ms(times, 1):.1f} ms")
        assert quantile_ms(times, 0.8) < quantile_ms(usual, 0.5) + 60
        assert quantile_ms(times, 1) < 500  # on a busy machine
        await until_alone(s)
        proxy.swallows_replies = False
        await until_shared(s)
        async with beside(s, redis_server) as other:  # a lead that nobody heard of lapses by itself
            await members(redis_server, 2)
            _, took_s = await ask(other, text)
            assert took_s < LEASE_S + 1


async def test_an_answer_is_not_replayed_after_its_time(redis_server):
    """Whatever the clocks and the lifetimes in Redis say: the entry itself says until when it holds (F63)."""
    policy = always("cache: {ttl: 1s}", route="as-asked")
    async with (
        stage(echo, policy=policy, cache=redis_server.url) as s,
        stage(policy=policy, cache=redis_server.url, origin=s.upstream.origin) as other,
    ):
        await members(redis_server, 2)
        text, asked_s = nonce(), time.monotonic()
        await ask(s, text)
        [key] = await written(redis_server, 1)
        with client(redis_server) as plain:
            assert 0 < plain.pttl(key) <= 1000
            plain.persist(key)  # Redis would keep it for ever
        async with asyncio.timeout(WAIT_S):
            while (await ask(other, text))[0] != "miss":
                assert time.monotonic() - asked_s < 1.5
        assert time.monotonic() - asked_s > 0.9


async def test_one_connection_for_two_hundred_clients(redis_server, capsys, monkeypatch):
    """Who does not get his turn in time goes without the cache; nobody queues (F64)."""
    monkeypatch.setattr(router.stores, "RedisLink", partial(RedisLink, most_connections=1))
    async with (
        fault_proxy(redis_server.port) as proxy,
        stage(echo, policy=CACHED, cache=f"redis://127.0.0.1:{proxy.port}") as s,
    ):
        await members(redis_server, 1)
        await asyncio.gather(*(ask(s) for _ in range(200)))  # so that the upstream has its connections
        usual = [took for _, took in await asyncio.gather(*(ask(s) for _ in range(200)))]
        proxy.delay_s = 0.05
        times = [took for _, took in await asyncio.gather(*(ask(s) for _ in range(200)))]
        slow_ms, usual_ms = quantile_ms(times, 1), quantile_ms(usual, 1)
        say(capsys, f"one connection, 200 at once: at most {slow_ms:.0f} ms, of a quick Redis {usual_ms:.0f} ms")
        assert slow_ms < 2 * usual_ms + 1000  # 200 turns of 50 ms would be 10 s
        assert proxy.connections <= 3
