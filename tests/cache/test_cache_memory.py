"""The cache in process: what is kept, for how long, and within how many bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.cache.memory import MemoryCache
from router.seams import CacheEntry

pytestmark = pytest.mark.anyio


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def entry(body: bytes = b"body") -> CacheEntry:
    return CacheEntry(200, [(b"content-type", b"application/json")], body, None, "m", "end_turn", 0)


async def test_what_is_kept_is_found_until_its_time_is_over():
    """The very entry; gone at its time to live to the tick, and its bytes with it."""
    clock = Clock()
    cache = MemoryCache(100_000, clock)
    assert await cache.get("k") is None
    kept = entry()
    assert await cache.put("k", kept, 10)
    assert await cache.get("k") is kept
    clock.now_s += 9.999
    assert await cache.get("k") is kept
    clock.now_s += 0.001
    assert await cache.get("k") is None
    assert cache.stats() == {"entries": 0, "bytes": 0, "max_bytes": 100_000, "hits": 2, "misses": 2, "evicted": 0}


async def test_a_newer_entry_replaces_an_older_one():
    """And is counted once."""
    cache = MemoryCache(100_000, Clock())
    await cache.put("k", entry(b"x" * 1000), 10)
    await cache.put("k", entry(b"y"), 10)
    found = await cache.get("k")
    assert found is not None
    assert found.body == b"y"
    assert cache.stats()["entries"] == 1
    assert cache.stats()["bytes"] < 1000


async def test_the_least_recently_used_goes_first():
    """Reading an entry keeps it."""
    cache = MemoryCache(3 * 1700, Clock())
    for name in "abc":
        await cache.put(name, entry(b"x" * 1000), 10)
    assert await cache.get("a")
    await cache.put("d", entry(b"x" * 1000), 10)
    assert [name for name in "abcd" if await cache.get(name)] == ["a", "c", "d"]
    assert cache.stats()["evicted"] == 1


async def test_what_cannot_be_kept_is_refused():
    """Larger than the whole cache, or with no time to live."""
    cache = MemoryCache(2000, Clock())
    await cache.put("small", entry(), 10)
    assert not await cache.put("large", entry(b"x" * 2000), 10)
    assert not await cache.put("k", entry(), 0)
    assert await cache.get("small")


async def test_purge_forgets_everything():
    """And says how much that was."""
    cache = MemoryCache(100_000, Clock())
    for name in "abc":
        await cache.put(name, entry(), 10)
    assert await cache.purge() == 3
    assert await cache.get("a") is None
    assert cache.stats()["bytes"] == 0
    await cache.close()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.integers(0, 3000), st.integers(0, 5), st.integers(0, 3)), max_size=40
    )
)
def test_bytes_are_bounded_and_add_up(steps):
    """After any sequence of puts, gets and passing time: within the bound, and zero when empty."""
    import asyncio

    async def walk():
        clock = Clock()
        cache = MemoryCache(8000, clock)
        for name, size, ttl_s, passed_s in steps:
            await cache.put(name, entry(b"x" * size), ttl_s)
            clock.now_s += passed_s
            await cache.get(name)
            assert 0 <= cache.stats()["bytes"] <= 8000
        clock.now_s += 100
        for name in "abcdef":
            assert await cache.get(name) is None
        assert cache.stats()["bytes"] == cache.stats()["entries"] == 0

    asyncio.run(walk())
