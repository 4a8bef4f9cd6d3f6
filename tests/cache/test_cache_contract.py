"""One contract of CacheBackend for every backend: in process, over one server, behind sentinels, in a cluster."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from cache_kit import SECOND_NS, Join, a_key, an_entry, eventually, until, written
from kit.redis_server import RedisServer
from kit.redis_topologies import Cluster, Sentinels, running, server_programs

from router.cache.entry import CacheEntry, Found
from router.cache.memory import MemoryCache
from router.seams import CacheBackend

pytestmark = pytest.mark.anyio

KEY = a_key("contract")
MAX_BYTES = 1024 * 1024
IN_REDIS = [
    pytest.param((kind, program), id=name if kind == "server" else f"{name}-{kind}")
    for name, program in sorted(server_programs().items())
    for kind in ("server", "sentinel", "cluster")
] or [pytest.param(("server", None), id="redis")]
in_all = pytest.mark.parametrize("place", [pytest.param(("memory", None), id="memory"), *IN_REDIS], indirect=True)
in_redis = pytest.mark.parametrize("place", IN_REDIS, indirect=True)


@dataclass
class Pair:
    """Two processes that share a cache; where nothing is shared, both are the same one."""

    one: CacheBackend
    other: CacheBackend

    @property
    def is_shared(self) -> bool:
        """Whether they are two."""
        return self.one is not self.other

    async def written(self) -> None:
        """Wait until neither is writing."""
        await written(self.one)
        await written(self.other)


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Redis of one kind, which the tests of this file share; empty for in process."""
    kind, program = request.param
    if kind == "memory":
        yield ""
        return
    if program is None:
        program = request.getfixturevalue("redis_program")  # which skips, or fails in CI
    folder = tmp_path_factory.mktemp("redis")
    if kind == "server":
        server = RedisServer(program, folder)
        try:
            server.start()
            yield server.url
        finally:
            server.kill()
        return
    topology = Sentinels(program, folder) if kind == "sentinel" else Cluster(program, folder)
    with running(topology):
        yield topology.url


@pytest.fixture
async def pair(place: str, join: Join) -> Pair:
    """Two processes over a Redis in which nothing is left of another test."""
    if not place:
        memory = MemoryCache(5 * 10**6, time.monotonic, time.time)
        return Pair(memory, memory)
    one, other = await join(place, starts=False), await join(place, starts=False)
    async for page in one.link.scan("router:*"):
        await asyncio.gather(*(one.link.ask("UNLINK", key) for key in page))
    await one.cache.start()
    await other.cache.start()
    return Pair(one.cache, other.cache)


async def found(cache: CacheBackend, key: str = KEY, *, max_bytes: int = MAX_BYTES) -> CacheEntry | None:
    """What a request would be answered with, without taking part in who makes the call."""
    near = cache.near(key)
    return near if near is not None else (await cache.look_up(key, max_bytes, is_claiming=False)).entry


def fresh(cache: CacheBackend, body: bytes = b"body", **options: Any) -> CacheEntry:
    """An entry dated by this cache."""
    return an_entry(body, now_ns=cache.now_ns(), **options)


# Kept and found


@in_all
async def test_what_is_put_is_found_by_all(pair: Pair):
    """At once where it was put, soon in the other process, and near there once it was found; equal to the byte."""
    entry = fresh(pair.one, bytes(range(256)) * 40)
    assert await found(pair.one) is None
    assert pair.one.put(KEY, entry)
    assert pair.one.near(KEY) is entry
    await pair.written()
    assert await found(pair.other) == entry
    assert pair.other.near(KEY) == entry
    assert await found(pair.other, a_key("another")) is None


@in_all
async def test_a_newer_answer_replaces_an_older_one(pair: Pair):
    """Everywhere where there is no copy yet."""
    pair.one.put(KEY, fresh(pair.one, b"old"))
    await pair.written()
    pair.one.put(KEY, fresh(pair.one, b"new"))
    await pair.written()
    for cache in (pair.one, pair.other):
        entry = await found(cache)
        assert entry is not None
        assert entry.body == b"new"


@in_all
async def test_nothing_is_replayed_when_its_time_is_over(pair: Pair):
    """Neither near nor from the store: by the dates in the entry, to the last look."""
    entry = fresh(pair.one, ttl_s=0.4)
    assert pair.one.put(KEY, entry)
    await pair.written()
    for cache in (pair.one, pair.other):
        while True:
            asked_ns = cache.now_ns()
            if await found(cache) is None:
                break
            assert asked_ns < entry.expires_at_ns + 1_000_000  # two clocks, read one after the other
    assert min(pair.one.now_ns(), pair.other.now_ns()) > entry.expires_at_ns - 100_000_000


@pytest.mark.parametrize("ttl_s", [0, -1, 0.0001])
@in_all
async def test_what_has_no_time_left_is_not_kept(pair: Pair, ttl_s: float):
    """Not even for a moment."""
    entry = fresh(pair.one, ttl_s=ttl_s)
    while pair.one.now_ns() < entry.expires_at_ns:
        pass
    assert not pair.one.put(KEY, entry)
    await pair.written()
    assert await found(pair.one) is None
    assert await found(pair.other) is None


@in_all
async def test_what_is_larger_than_all_copies_may_be_is_no_copy(pair: Pair):
    """It is larger than the bound of this process; a store that has room for it may keep it."""
    entry = fresh(pair.one, b"x" * 7 * 10**6)
    assert pair.one.put(KEY, entry) == pair.is_shared
    assert pair.one.near(KEY) is None
    await pair.written()
    assert (await found(pair.other, max_bytes=10**7)) == (entry if pair.is_shared else None)


@in_redis
@pytest.mark.parametrize("body", [b"x" * 9 * 10**6, random.Random(1).randbytes(600_000)], ids=["long", "dense"])
async def test_what_redis_could_not_carry_in_time_is_not_shared(pair: Pair, body: bytes):
    """It would time out each time it is looked up, and have everybody's link rest; the lead is ended all the same."""
    lead = (await look(pair.one)).lead
    pair.one.put(KEY, fresh(pair.one, body), lead)
    await pair.written()
    assert (await look(pair.other)).lead
    assert pair.one.stats()["too_large"] == 1


@in_redis
async def test_the_store_reads_no_more_than_it_is_told(pair: Pair):
    """What is larger than a rule allows is a miss for that rule."""
    pair.one.put(KEY, fresh(pair.one, b"x" * 5000))
    await pair.written()
    assert await found(pair.other, max_bytes=4999) is None
    assert await found(pair.other, a_key("none"), max_bytes=0) is None


# Purges


@in_all
async def test_a_purge_takes_what_it_means_and_nothing_else(pair: Pair):
    """By tenant, rule, model, age, and all together; in both processes from the moment it returns."""
    marks = [(tenant, rule, model, age_s) for tenant in "ab" for rule in "rs" for model in "mn" for age_s in (9, 100)]
    keys = {each: a_key(each) for each in marks}
    for wanted in (
        {"tenant": "a", "rule": "r", "model": "m", "older_than_s": 50.0},
        {"tenant": "nobody"},
        {"older_than_s": 50.0},
        {"tenant": "a"},
        {"rule": "s", "model": "n"},
        {"model": "m"},
        {},
    ):
        for (tenant, rule, model, age_s), key in keys.items():
            entry = fresh(pair.one, tenant=tenant, rule=rule, model=model, asked_s_ago=age_s)
            pair.one.put(key, entry)
        await pair.written()
        before = {each for each, key in keys.items() if await found(pair.other, key)}
        meant = {
            each
            for each in before
            if all(
                wanted.get(name, mark) == mark for name, mark in zip(("tenant", "rule", "model"), each[:3], strict=True)
            )
            and each[3] >= wanted.get("older_than_s", 0)
        }
        report = await pair.other.purge(**wanted)
        assert (report.unheard, report.problem) == ((), "")
        assert report.told == 1 + pair.is_shared
        assert not [each for each in meant for cache in (pair.one, pair.other) if cache.near(keys[each])]
        for cache in (pair.one, pair.other):
            assert {each for each in marks if await found(cache, keys[each])} == before - meant
        assert report.deleted == len(meant)
    assert not await found(pair.one, keys[marks[0]])


@in_all
async def test_an_answer_asked_for_before_a_purge_is_not_kept_after_it(pair: Pair):
    """Wherever it was asked for; one that is asked for afterwards is kept."""
    under_way = [(pair.one, fresh(pair.one)), (pair.other, fresh(pair.other))]
    await pair.one.purge(tenant="a")
    purged_ns = pair.one.now_ns()
    for cache, entry in under_way:
        assert not cache.put(KEY, entry)
        await pair.written()
        assert await found(pair.one) is None
        assert await found(pair.other) is None
    await until(lambda: pair.one.now_ns() > purged_ns + SECOND_NS // 10)
    assert pair.one.put(KEY, fresh(pair.one))
    await pair.written()
    assert await found(pair.other)


@pytest.mark.parametrize(
    "name",
    ["a\r\nDEL x", "a b", "{k}", "*", "router:v1:cache:*", "[a-z]?", "\\*", "\x00", "é", "a" * 40],
    ids=ascii,
)
@in_all
async def test_odd_names_mean_only_themselves(pair: Pair, name: str):
    """Line ends, spaces, braces and wildcards in a tenant, a rule or a model: kept, purged, and nothing beside."""
    odd, plain = a_key("odd"), a_key("plain")
    for mark in ("tenant", "rule", "model"):
        pair.one.put(odd, fresh(pair.one, asked_s_ago=1, **{mark: name}))
        pair.one.put(plain, fresh(pair.one, asked_s_ago=1))
        await pair.written()
        assert await found(pair.other, odd)
        report = await pair.other.purge(**{mark: name})
        assert (report.deleted, report.unheard, report.problem) == (1, (), "")
        for cache in (pair.one, pair.other):
            assert await found(cache, odd) is None
            assert await found(cache, plain)


# Sharing a call


async def look(cache: CacheBackend, follows: str | None = None) -> Found:
    return await cache.look_up(KEY, MAX_BYTES, follows=follows)


async def test_in_one_process_nobody_leads():
    """There is nobody to make the call for."""
    memory = MemoryCache(5 * 10**6, time.monotonic, time.time)
    assert await look(memory) == Found()


@in_redis
async def test_one_of_many_leads_and_the_others_follow(pair: Pair):
    """However many ask at once; and they get what the leader puts."""
    looks = await asyncio.gather(*(look(cache) for cache in (pair.one, pair.other) * 20))
    leads = [each.lead for each in looks if each.lead]
    assert len(leads) == 1
    assert {each.leader for each in looks if each.lead is None} == {leads[0]}
    leader = (pair.one, pair.other)[next(i for i, each in enumerate(looks) if each.lead) % 2]
    entry = fresh(leader)
    leader.put(KEY, entry, leads[0])
    await pair.written()
    for cache in (pair.one, pair.other):
        assert (await look(cache, follows=leads[0])).entry == entry


@in_redis
async def test_who_takes_no_part_neither_leads_nor_waits(pair: Pair):
    """It only looks."""
    assert await pair.one.look_up(KEY, MAX_BYTES, is_claiming=False) == Found()
    assert (await look(pair.other)).lead
    assert await pair.one.look_up(KEY, MAX_BYTES, is_claiming=False) == Found()


@in_redis
async def test_what_is_handed_over_reaches_those_who_waited_and_nobody_else(pair: Pair):
    """It is kept for nobody: whoever comes now leads a call of its own."""
    lead = (await look(pair.one)).lead
    assert lead
    entry = fresh(pair.one, ttl_s=0)
    assert (await look(pair.other)).leader == lead
    pair.one.hand_over(KEY, entry, lead)
    await pair.written()
    assert await pair.other.look_up(KEY, MAX_BYTES, is_claiming=False) == Found()
    for _ in range(2):
        assert await look(pair.other, follows=lead) == Found(entry)
    assert pair.other.near(KEY) is None
    newcomer = await look(pair.other)
    assert newcomer.lead
    assert newcomer.lead != lead
    assert (await look(pair.one, follows=lead)).leader == newcomer.lead


@in_redis
async def test_a_lead_that_is_released_is_taken_by_the_next(pair: Pair):
    """Who waited, or who comes."""
    lead = (await look(pair.one)).lead
    assert lead
    assert (await look(pair.other)).leader == lead
    pair.one.release(KEY, lead)
    await pair.written()
    assert (await look(pair.other, follows=lead)).lead


@in_redis
async def test_an_answer_that_cannot_be_kept_ends_the_lead(pair: Pair):
    """With no time left, or with marks too long: the next one leads and is not kept waiting."""
    for entry in (fresh(pair.one, ttl_s=0), fresh(pair.one, tenant="t" * 9000)):
        lead = (await look(pair.one)).lead
        assert lead
        pair.one.put(KEY, entry, lead)
        await pair.written()
        lead = (await look(pair.other, follows=lead)).lead
        assert lead
        pair.other.release(KEY, lead)
        await pair.written()


@in_redis
async def test_only_who_leads_ends_the_lead(pair: Pair):
    """Another's token, or none, ends nothing; an entry that is put without one is kept all the same."""
    lead = (await look(pair.one)).lead
    pair.other.release(KEY, "0" * 32)
    pair.other.hand_over(KEY, fresh(pair.other), "0" * 32)
    pair.other.release(KEY, "")
    await pair.written()
    assert (await look(pair.other)).leader == lead
    pair.other.put(KEY, fresh(pair.other))
    await pair.written()
    assert (await look(pair.one)).entry


@in_redis
async def test_a_lead_lapses_when_its_owner_goes_silent(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    """The next one leads; what the first puts after all is kept, and does not end the second's lead."""
    with monkeypatch.context() as shorter:
        shorter.setattr("router.cache.redis.LEASE_S", 0.2)
        shorter.setattr("router.cache.fleet._LEASE_MS", 200)
        first = (await look(pair.one)).lead
        await pair.one.close()  # with the lead neither ended nor renewed any more
    assert first
    leads: list[str | None] = []

    async def is_taken() -> bool:
        leads.append((await look(pair.other, follows=first)).lead)
        return leads[-1] is not None

    await eventually(is_taken)
    pair.one.release(KEY, first)
    await pair.written()
    assert (await look(pair.other)).leader == leads[-1]
    pair.one.put(KEY, fresh(pair.one), first)
    await pair.written()
    assert await found(pair.other)


# Counts, and the end


@in_all
async def test_counts_add_up(pair: Pair):
    """The total is the sum over processes; what is stored is what was put and not purged."""
    for number in range(10):
        pair.one.put(a_key(number), fresh(pair.one, tenant="ab"[number % 2], asked_s_ago=1))
    await pair.written()
    for number in range(15):
        await found(pair.other, a_key(number))
    await pair.one.purge(tenant="a")

    async def are_all_told() -> bool:
        return dict((await pair.one.stats_everywhere()).total).get("near_purged", 10) == 10

    await eventually(are_all_told)
    stats = await pair.one.stats_everywhere()
    assert len(stats.processes) == 1 + pair.is_shared
    for name, total in stats.total.items():
        assert total == sum(counts.get(name, 0) for counts in stats.processes.values()), name
    if pair.is_shared:
        assert stats.stored == 5
        assert (stats.total["stored"], stats.total["hits"], stats.total["misses"]) == (10, 10, 5)
        assert stats.total["near_entries"] == 10
        assert stats.total["unwritten"] == stats.total["corrupt"] == stats.total["foreign"] == 0
    else:
        assert stats.stored is None
        assert (stats.total["hits"], stats.total["misses"], stats.total["entries"]) == (10, 5, 5)


@in_redis
async def test_who_closes_leaves_its_answers_to_the_others(pair: Pair):
    """What was being written still is; it is not waited for by a purge any more. Closing twice is closing."""
    for number in range(50):
        pair.one.put(a_key(number), fresh(pair.one, asked_s_ago=1))
    await pair.one.close()
    await pair.one.close()
    for number in range(50):
        assert await found(pair.other, a_key(number))
    report = await pair.other.purge()
    assert (report.deleted, report.told, report.unheard) == (50, 1, ())
    assert len((await pair.other.stats_everywhere()).processes) == 1
