"""Where conversations are remembered: one contract for both stores, and what Redis' failures cost, by a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from kit.redis_server import RedisServer

from router.affinity.binding import Binding
from router.affinity.memory import KEPT_S, MemoryAffinity
from router.affinity.redis import PREFIX, RedisAffinity
from router.redis_link import RedisLink
from router.seams import AffinityStore

pytestmark = pytest.mark.anyio

NOW_S = 1_795_000_000.0
OPUS = Binding("opus", "claude-opus-5-5", 50_000, 49_000, 300, 400, NOW_S)
HAIKU = Binding("haiku", "claude-haiku-5-5", 60_000, 0, 300, 20, NOW_S + 60)
KEY = "0123456789abcdef" * 2
LIMIT_S = 0.06  # the link's 50 ms, and what the event loop adds
BUSY_S = 0.25  # the same on a machine that runs other things: still far from any time limit of a library


class Clock:
    """Seconds that pass when told."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Redis:
    """A RedisAffinity over a server of its own, and what was observed of its link."""

    server: RedisServer
    link: RedisLink
    store: RedisAffinity
    seen: list[tuple[bool, str]]

    async def recover(self, within_s: float = 2.0) -> float:
        """Ask until Redis itself answers again; the seconds that took."""
        started_s = time.monotonic()
        while not self.link.is_up:
            assert time.monotonic() - started_s < within_s, f"still down after {within_s} s: {self.seen}"
            await asyncio.sleep(0.01)  # the pace of the requests that ask
            await self.store.get((KEY,))
        return time.monotonic() - started_s


@pytest.fixture
async def idle(idle_redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A store whose server is not started."""
    seen: list[tuple[bool, str]] = []
    link = RedisLink(idle_redis_server.url, observe=lambda is_up, reason: seen.append((is_up, reason)))
    yield Redis(idle_redis_server, link, RedisAffinity(link, MemoryAffinity(time.monotonic)), seen)
    await link.close()


@pytest.fixture
async def redis(idle: Redis) -> Redis:
    idle.server.start()
    return idle


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> AffinityStore:
    if request.param == "memory":
        return MemoryAffinity(time.monotonic)
    return request.getfixturevalue("redis").store


async def timely(call: Awaitable[Any]) -> Any:
    """The result of a call that comes in time."""
    started_s = time.monotonic()
    result = await call
    assert time.monotonic() - started_s < BUSY_S
    return result


async def put(store: AffinityStore, key: str, binding: Binding, *, is_only_first: bool = False) -> None:
    """Put, and wait until it is shared or that has failed."""
    store.put(key, binding, is_only_first=is_only_first)
    await store.close()


# The contract


async def test_what_was_put_is_got(store: AffinityStore):
    """One conversation, one binding: the last one put."""
    assert await store.get((KEY,)) is None
    await put(store, KEY, OPUS)
    assert await store.get((KEY,)) == OPUS
    await put(store, KEY, HAIKU)
    assert await store.get((KEY,)) == HAIKU
    assert await store.get((KEY[::-1],)) is None


async def test_the_first_key_that_is_known_counts(store: AffinityStore):
    """A conversation is looked for by its own key, then by its session's."""
    await put(store, "session", OPUS)
    assert await store.get(("own", "session")) == OPUS
    await put(store, "own", HAIKU)
    assert await store.get(("own", "session")) == HAIKU


async def test_only_the_first_binding_of_a_session_is_put_where_that_is_asked(store: AffinityStore):
    """A side request does not take the session along."""
    await put(store, KEY, OPUS, is_only_first=True)
    await put(store, KEY, HAIKU, is_only_first=True)
    assert await store.get((KEY,)) == OPUS


async def test_who_thought_is_known_when_all_of_it_is(store: AffinityStore):
    """Each model once; one block that nobody knows makes all of it unknown."""
    store.put_thinkers(["a", "b"], "claude-opus-5-5")
    store.put_thinkers(["c"], "claude-haiku-5-5")
    await store.close()
    assert await store.thinkers(["a", "c", "b"]) == ("claude-opus-5-5", "claude-haiku-5-5")
    assert await store.thinkers(["a", "x"]) == ()


async def test_keys_do_not_mix(store: AffinityStore):
    """Many conversations at once each get their own."""
    bindings = {f"{number:032x}": replace(OPUS, prefix_tokens=50_000 + number) for number in range(200)}
    await asyncio.gather(*(put(store, key, binding) for key, binding in bindings.items()))
    found = await asyncio.gather(*(store.get((key,)) for key in bindings))
    assert found == list(bindings.values())


async def test_stats_are_whole_numbers_and_closing_is_quiet(store: AffinityStore):
    """The metrics page shows them."""
    await store.get((KEY,))
    assert all(type(count) is int for count in store.stats().values())
    assert store.stats()["misses"] == 1
    await store.close()


# Memory


async def test_the_least_recently_used_conversation_gives_way():
    """The number is bounded; one that was read again stays."""
    store = MemoryAffinity(Clock(), most=3)
    for number in range(3):
        await put(store, str(number), OPUS)
    assert await store.get(("0",)) == OPUS
    await put(store, "3", OPUS)
    assert [await store.get((str(number),)) is not None for number in range(4)] == [True, False, True, True]
    stats = store.stats()
    assert (stats["entries"], stats["max_entries"], stats["evicted"]) == (3, 3, 1)


async def test_a_conversation_left_for_a_day_is_forgotten():
    """Idle time counts, not age; and what is forgotten takes no memory."""
    clock = Clock()
    store = MemoryAffinity(clock)
    await put(store, "left", OPUS)
    await put(store, "gone on with", OPUS)
    clock.now_s = KEPT_S - 1
    assert await store.get(("gone on with",)) == OPUS
    clock.now_s = KEPT_S
    assert await store.get(("gone on with",)) == OPUS
    assert store.stats()["entries"] == 1
    assert await store.get(("left",)) is None


# Redis


async def test_a_key_of_redis_is_ours_by_name_and_lives_for_a_day(redis: Redis):
    """Prefix, version, time to live: two programs can share a server, and nothing stays for ever."""
    await put(redis.store, KEY, OPUS)
    assert PREFIX == "router:v1:affinity:"
    assert redis.server.say("GET", f"router:v1:affinity:{KEY}").split(b"\r\n")[1] == OPUS.encode()
    assert redis.server.say("TTL", f"router:v1:affinity:{KEY}") in (b":86400\r\n", b":86399\r\n")


async def test_another_replica_sees_where_a_conversation_went(redis: Redis):
    """Redis is asked although this process has a copy of its own."""
    other_link = RedisLink(redis.server.url)
    other = RedisAffinity(other_link, MemoryAffinity(time.monotonic))
    await put(redis.store, KEY, HAIKU)
    assert await other.get((KEY,)) == HAIKU
    await put(other, KEY, OPUS)  # by its own clock earlier; the last word counts all the same
    assert await redis.store.get((KEY,)) == OPUS
    await other_link.close()


@pytest.mark.parametrize("value", ["", "null", "[2]", "x" * 40_000])
async def test_a_value_that_does_not_decode_is_a_miss(redis: Redis, value: str):
    """Another program, or another version of this one, wrote it; it is counted and does no harm."""
    redis.server.say("SET", PREFIX + KEY, value)
    assert await timely(redis.store.get((KEY,))) is None
    assert (redis.store.stats()["undecodable"], redis.store.stats()["misses"]) == (1, 1)


async def test_another_replica_learns_who_thought(redis: Redis):
    """The producer of a block goes with it to whichever router meets it."""
    other_link = RedisLink(redis.server.url)
    other = RedisAffinity(other_link, MemoryAffinity(time.monotonic))
    redis.store.put_thinkers(["a"], "claude-opus-5-5")
    await redis.store.close()
    assert await other.thinkers(["a"]) == ("claude-opus-5-5",)
    redis.server.kill()
    assert await other.thinkers(["a"]) == ("claude-opus-5-5",)  # it never changes, so the copy is as good
    assert await other.thinkers(["b"]) == ()
    await other_link.close()


async def test_a_wrong_type_under_our_key_is_healed_by_the_next_answer(redis: Redis):
    """An error reply about one key is no reason to leave Redis alone for all the others."""
    await put(redis.store, "other", OPUS)
    redis.server.say("LPUSH", PREFIX + KEY, "x")
    for _ in range(5):
        assert await timely(redis.store.get((KEY,))) is None
    assert await redis.store.get(("other",)) == OPUS
    assert redis.seen == []
    await timely(put(redis.store, KEY, HAIKU))
    assert redis.server.say("TYPE", PREFIX + KEY) == b"+string\r\n"
    assert await redis.store.get((KEY,)) == HAIKU


async def test_redis_down_at_start_costs_nothing_but_sharing(idle: Redis):
    """The process keeps its own conversations; when Redis comes, they go there with their next answer."""
    for _ in range(5):
        await timely(put(idle.store, KEY, OPUS))
        assert await timely(idle.store.get((KEY,))) == OPUS
    assert idle.seen == [(False, "cannot connect: connection refused")]
    idle.server.start()
    await idle.recover()
    assert await idle.store.get((KEY,)) == OPUS  # Redis has none
    await put(idle.store, KEY, HAIKU)
    assert idle.server.say("GET", PREFIX + KEY).split(b"\r\n")[1] == HAIKU.encode()
    assert idle.seen[1:] == [(True, "")]


async def test_redis_killed_and_started_again_is_used_again(redis: Redis):
    """What it lost is still in this process; each change of state is told once."""
    await put(redis.store, KEY, OPUS)
    redis.server.kill()
    for _ in range(10):
        assert await timely(redis.store.get((KEY,))) == OPUS
        await timely(put(redis.store, KEY, HAIKU))
        assert await timely(redis.store.get((KEY,))) == HAIKU
        await timely(put(redis.store, KEY, OPUS))
    redis.server.start()
    await redis.recover()
    assert await redis.store.get((KEY,)) == OPUS
    assert [is_up for is_up, _ in redis.seen] == [False, True]


async def test_a_frozen_redis_delays_three_calls_and_then_none(redis: Redis):
    """Three deadlines, then the link rests; after the thaw Redis is used again within two seconds."""
    await put(redis.store, KEY, OPUS)
    redis.server.freeze()
    waits_s = []
    for _ in range(10):
        started_s = time.monotonic()
        assert await redis.store.get((KEY,)) == OPUS
        waits_s.append(time.monotonic() - started_s)
    assert max(waits_s) < BUSY_S
    assert sorted(waits_s[:3])[1] < LIMIT_S
    assert sorted(waits_s[3:])[3] < 0.005
    await timely(put(redis.store, KEY, HAIKU))
    redis.server.thaw()
    assert await redis.recover() < 2
    assert await redis.store.get((KEY,)) == HAIKU  # not written while frozen, and newer than what Redis has
    await put(redis.store, KEY, HAIKU)
    assert redis.server.say("GET", PREFIX + KEY).split(b"\r\n")[1] == HAIKU.encode()
    assert redis.seen == [(False, "no answer within 50 ms"), (True, "")]


async def test_a_redis_that_wants_a_password_is_no_redis(idle: Redis):
    """NOAUTH: the conversation is kept here; the reason says what the owner has to do, and no more."""
    idle.server.start("--requirepass", "s3cret-of-the-server")
    for _ in range(5):
        await timely(put(idle.store, KEY, OPUS))
        assert await timely(idle.store.get((KEY,))) == OPUS
    assert idle.seen == [(False, "the server does not accept the credentials, or asks for some")]
    assert idle.store.stats()["unwritten"] == 5
    assert idle.server.say("EXISTS", PREFIX + KEY, password="s3cret-of-the-server") == b":0\r\n"


async def test_another_replicas_later_answer_wins_over_one_never_written(redis: Redis):
    """This process answered while Redis was away; another one went on later."""
    redis.server.freeze()
    await put(redis.store, KEY, OPUS)
    redis.server.thaw()
    redis.server.say("SET", PREFIX + KEY, HAIKU.encode().decode())
    await redis.recover()
    assert await redis.store.get((KEY,)) == HAIKU


async def test_what_is_owed_to_redis_is_bounded(idle: Redis):
    """A long outage does not fill the memory."""
    for number in range(20_000):
        idle.store.put(str(number), OPUS)
    await idle.store.close()
    assert len(idle.store._owed) <= 10_000
