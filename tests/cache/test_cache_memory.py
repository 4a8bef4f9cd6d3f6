"""The cache in process: what is kept, for how long, within how many bytes, and what a purge reaches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cache_kit import NOW_NS, SECOND_NS, Clock, an_entry
from hypothesis import given
from hypothesis import strategies as st

from router.cache.entry import NOTHING, CacheEntry, Purge
from router.cache.memory import MemoryCache

pytestmark = pytest.mark.anyio


def a_cache(max_bytes: int = 100_000, copy_s: float = float("inf")) -> tuple[MemoryCache, Clock]:
    """A cache, and the clock that is both of its clocks: 0 is the moment `NOW_NS`."""
    clock = Clock()
    return MemoryCache(max_bytes, clock, lambda: NOW_NS / 1e9 + clock.now_s, copy_s), clock


def test_what_is_kept_is_found_until_its_time_is_over():
    """The very entry; gone at the moment it expires, and its bytes with it."""
    cache, clock = a_cache()
    assert cache.near("k") is None
    kept = an_entry(ttl_s=10)
    assert cache.put("k", kept)
    assert cache.near("k") is kept
    clock.now_s = 9.999
    assert cache.near("k") is kept
    clock.now_s = 10
    assert cache.near("k") is None
    assert cache.stats() == {
        "entries": 0, "bytes": 0, "max_bytes": 100_000, "hits": 2, "misses": 2, "evicted": 0, "purged": 0,
    }  # fmt: skip


def test_a_newer_entry_replaces_an_older_one():
    """And is counted once."""
    cache, _ = a_cache()
    cache.put("k", an_entry(b"x" * 1000))
    cache.put("k", an_entry(b"y"))
    found = cache.near("k")
    assert found is not None
    assert found.body == b"y"
    assert cache.stats()["entries"] == 1
    assert cache.stats()["bytes"] < 1000


def test_the_least_recently_used_goes_first():
    """Reading an entry keeps it."""
    cache, _ = a_cache(3 * 1700)
    for name in "abc":
        cache.put(name, an_entry(b"x" * 1000))
    assert cache.near("a")
    cache.put("d", an_entry(b"x" * 1000))
    assert [name for name in "abcd" if cache.near(name)] == ["a", "c", "d"]
    assert cache.stats()["evicted"] == 1


def test_what_cannot_be_kept_is_refused():
    """Larger than the whole cache (headers count), or with its time over; what was there stays."""
    cache, clock = a_cache(2000)
    cache.put("small", an_entry())
    assert not cache.put("k", an_entry(b"x" * 2000))
    assert not cache.put("k", replace(an_entry(), headers=[(b"a" * 1000, b"b" * 1000)]))
    assert not cache.put("k", an_entry(ttl_s=0))
    clock.now_s = 60
    assert not cache.put("k", an_entry(ttl_s=60))
    assert cache.near("k") is None
    clock.now_s = 59
    assert cache.near("small")


def test_a_copy_is_kept_no_longer_than_copies_are():
    """As the near part of another cache; an entry that expires earlier goes earlier."""
    cache, clock = a_cache(copy_s=5)
    cache.put("long", an_entry(ttl_s=60))
    cache.put("short", an_entry(ttl_s=3))
    clock.now_s = 3
    assert cache.near("long")
    assert cache.near("short") is None
    clock.now_s = 5
    assert cache.near("long") is None


def test_an_entry_dated_by_another_clock_is_kept_as_long_by_ours():
    """What counts is the time left by the clock that dated it; an hour between the two changes nothing."""
    for hours_off in (-1, 1):
        cache, clock = a_cache()
        theirs_ns = NOW_NS + hours_off * 3600 * SECOND_NS
        assert cache.put("k", an_entry(now_ns=theirs_ns, ttl_s=10), now_ns=theirs_ns)
        clock.now_s = 9.9
        assert cache.near("k")
        clock.now_s = 10
        assert cache.near("k") is None


async def test_nobody_shares_a_call_outside_the_process():
    """There is nothing to look up, to hand over or to release."""
    cache, _ = a_cache()
    cache.put("k", an_entry())
    await cache.start()
    assert await cache.look_up("k", 1000) is NOTHING
    cache.hand_over("other", an_entry(), "token")
    cache.release("k", "token")
    assert cache.near("other") is None
    assert cache.near("k")
    await cache.close()


async def test_purge_forgets_what_is_meant_and_nothing_else():
    """By tenant, rule, model and age, each alone and together; the report says how many."""
    marks = [(tenant, rule, model, age_s) for tenant in "ab" for rule in "rs" for model in "mn" for age_s in (0, 100)]
    for tenant, rule, model, older_than_s in (
        (None, None, None, 0.0), ("a", None, None, 0.0), (None, "s", None, 0.0), (None, None, "m", 0.0),
        ("b", "r", None, 0.0), ("a", "r", "n", 50.0), (None, None, None, 100.0), (None, None, None, 100.5),
        ("nobody", None, None, 0.0), ("", None, None, 0.0),
    ):  # fmt: skip
        cache, _ = a_cache()
        for each in marks:
            cache.put(
                ".".join(map(str, each)),
                an_entry(tenant=each[0], rule=each[1], model=each[2], asked_s_ago=each[3]),
            )
        meant = {
            each
            for each in marks
            if tenant in (None, each[0])
            and rule in (None, each[1])
            and model in (None, each[2])
            and each[3] >= older_than_s
        }
        report = await cache.purge(tenant=tenant, rule=rule, model=model, older_than_s=older_than_s)
        assert (report.deleted, report.told, report.unheard, report.problem) == (len(meant), 1, (), "")
        assert {each for each in marks if not cache.near(".".join(map(str, each)))} == meant
        assert cache.stats()["purged"] == len(meant)


async def test_an_answer_asked_for_before_a_purge_is_not_kept_after_it():
    """A purge reaches what is under way; what is asked for after it is kept, and so is what it does not mean."""
    cache, clock = a_cache()
    asked_before, other = an_entry(tenant="a"), an_entry(tenant="b")
    clock.now_s = 1
    await cache.purge(tenant="a")
    clock.now_s = 2
    assert not cache.put("k", asked_before)
    assert cache.near("k") is None
    assert cache.put("k", other)
    assert cache.put("k", an_entry(tenant="a", now_ns=NOW_NS + 2 * SECOND_NS))


async def test_a_purge_that_comes_in_late_takes_only_what_is_older():
    """As the near part: what was asked for after the purge was given stays."""
    cache, clock = a_cache()
    clock.now_s = 10
    cache.put("old", an_entry())
    cache.put("new", an_entry(now_ns=NOW_NS + 10 * SECOND_NS))
    assert cache.forget(Purge(NOW_NS + 5 * SECOND_NS)) == 1
    assert cache.near("old") is None
    assert cache.near("new")


async def test_very_many_purges_are_still_kept_by():
    """However many are given while an answer is under way, it is not kept; and they take no memory without end."""
    cache, clock = a_cache()
    asked_before = an_entry(tenant="a")
    clock.now_s = 1
    await cache.purge(tenant="a")
    for number in range(1000):
        await cache.purge(tenant=f"another {number}")
    assert not cache.put("k", asked_before)
    clock.now_s = 2
    assert cache.put("k", an_entry(tenant="a", now_ns=NOW_NS + 2 * SECOND_NS))


def test_forget_all_forgets_everything():
    """And the bytes with it."""
    cache, _ = a_cache()
    for name in "abc":
        cache.put(name, an_entry())
    cache.forget_all()
    assert [name for name in "abc" if cache.near(name)] == []
    assert cache.stats()["bytes"] == cache.stats()["entries"] == 0


async def test_the_counts_everywhere_are_those_of_the_process():
    """There is one process, and no shared store."""
    cache, _ = a_cache()
    cache.put("k", an_entry())
    cache.near("k")
    everywhere = await cache.stats_everywhere()
    assert everywhere.stored is None
    assert list(everywhere.processes.values()) == [cache.stats()]
    assert everywhere.total == cache.stats()


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdef"), st.integers(0, 3000), st.integers(0, 5), st.integers(0, 3), st.integers(0, 9)
        ),
        max_size=40,
    )
)
def test_bytes_are_bounded_and_add_up(steps: list[tuple[str, int, int, int, int]]):
    """After any sequence of puts, reads, purges and passing time: within the bound, true to what is held."""
    cache, clock = a_cache(8000)
    held: dict[str, CacheEntry] = {}
    for name, size, ttl_s, passed_s, chance in steps:
        entry = an_entry(b"x" * size, now_ns=cache.now_ns(), ttl_s=ttl_s)
        if cache.put(name, entry):
            held[name] = entry
        clock.now_s += passed_s
        if chance == 0:
            cache.forget(Purge(cache.now_ns(), rule=entry.rule))
        for each in "abcdef":
            found = cache.near(each)
            assert found is None or (found is held[each] and found.expires_at_ns > cache.now_ns())
        assert 0 <= cache.stats()["bytes"] <= 8000
    clock.now_s += 100
    for name in "abcdef":
        assert cache.near(name) is None
    assert cache.stats()["bytes"] == cache.stats()["entries"] == 0


def test_an_answer_asked_for_earlier_does_not_take_the_place_of_a_fresher_one():
    """A refresh stays, though a call that began before it ends after it."""
    cache, _ = a_cache()
    fresh = replace(an_entry(b"fresh"), asked_at_ns=NOW_NS + 2)
    cache.put("k", fresh)
    cache.put("k", replace(an_entry(b"late"), asked_at_ns=NOW_NS + 1))
    assert cache.near("k") is fresh
