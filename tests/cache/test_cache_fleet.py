"""Processes that share a cache over a real Redis: purges, who knows of them, and whatever Redis loses or makes up."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from cache_kit import SECOND_NS, SECRET, Join, Process, a_key, an_entry, eventually, until
from kit.redis_server import RedisServer
from kit.redis_topologies import Cluster, running, server_programs

from router.cache.codec import EntryCodec
from router.cache.entry import CacheEntry, Found
from router.cache.fleet import COPY_S, KNOWS_S
from router.cache.shared import PROCESSES, PURGES, TRIM, entry_key, flight_key, handed_key
from router.errors import CacheUnavailable

pytestmark = pytest.mark.anyio

KEY = a_key("fleet")
MAX_BYTES = 1024 * 1024


def fresh(process: Process, body: bytes = b"body", *, asked_s_ago: float = 1.0, **options: Any) -> CacheEntry:
    """An entry dated by this process; asked for long enough ago to be meant by a purge of now."""
    return an_entry(body, now_ns=process.cache.now_ns(), asked_s_ago=asked_s_ago, **options)


async def found(process: Process, key: str = KEY) -> CacheEntry | None:
    """What a request would be answered with."""
    near = process.cache.near(key)
    return near if near is not None else await shared(process, key)


async def shared(process: Process, key: str = KEY) -> CacheEntry | None:
    """What Redis gives."""
    return (await process.cache.look_up(key, MAX_BYTES, is_claiming=False)).entry


async def look(process: Process, key: str = KEY, follows: str | None = None) -> Found:
    return await process.cache.look_up(key, MAX_BYTES, follows=follows)


async def put(process: Process, keys: list[str], **options: Any) -> None:
    """Keep entries, asked for now; right after a purge that takes a moment, for it counts a little ahead."""
    for key in keys:
        await until(lambda key=key: process.cache.put(key, fresh(process, asked_s_ago=0, **options)))  # type: ignore[misc]
    await process.written()


async def kept_by_all(processes: list[Process], keys: list[str], **options: Any) -> None:
    """Put entries, and have each process find them."""
    await put(processes[0], keys, **options)
    for process in processes:
        for key in keys:
            assert await found(process, key)


async def holds(process: Process, *command: str, reply: object, within_s: float = 10.0) -> None:
    """Wait until Redis replies so."""

    async def says_so() -> bool:
        return bool(await process.link.ask(*command) == reply)

    await eventually(says_so, within_s)


# A purge is in force everywhere


async def test_a_purge_returns_when_no_process_replays_any_more(redis_server: RedisServer, join: Join):
    """From the moment it returns, and whichever process gave it: at once, for each had a copy of its own."""
    fleet = [await join(redis_server.url) for _ in range(3)]
    keys = [a_key(number) for number in range(20)]
    for giver in fleet:
        await kept_by_all(fleet, keys)
        report = await giver.cache.purge()
        assert [key for process in fleet for key in keys if process.cache.near(key)] == []
        assert (report.deleted, report.told, report.unheard, report.problem) == (20, 3, (), "")
        assert [key for process in fleet for key in keys if await shared(process, key)] == []


async def test_a_command_that_serves_nobody_purges_too(redis_server: RedisServer, join: Join):
    """It is not among the processes that are told."""
    fleet = [await join(redis_server.url) for _ in range(2)]
    await kept_by_all(fleet, [KEY])
    command = await join(redis_server.url, starts=False)
    report = await command.cache.purge(tenant="a")
    assert [process.cache.near(KEY) for process in fleet] == [None, None]
    assert (report.deleted, report.told, report.unheard) == (1, 2, ())
    assert (await command.cache.purge()).told == 2


async def test_purges_at_the_same_time_are_all_in_force(redis_server: RedisServer, join: Join):
    """Of several processes, several at once."""
    fleet = [await join(redis_server.url) for _ in range(3)]
    tenants = [f"tenant {number}" for number in range(12)]
    for tenant in tenants:
        await kept_by_all(fleet, [a_key(tenant)], tenant=tenant)
    givers = [fleet[number % 3] for number in range(12)]
    reports = await asyncio.gather(
        *(giver.cache.purge(tenant=tenant) for giver, tenant in zip(givers, tenants, strict=True))
    )
    assert [process.cache.near(a_key(tenant)) for process in fleet for tenant in tenants] == [None] * 36
    assert {(report.told, report.unheard, report.problem) for report in reports} == {(3, (), "")}
    assert sum(report.deleted for report in reports) == 12


async def test_a_process_that_died_is_named_and_then_forgotten(
    redis_server: RedisServer, join: Join, monkeypatch: pytest.MonkeyPatch
):
    """A purge waits for it so long and no longer; once it cannot have copies any more, nobody asks for it."""
    monkeypatch.setattr("router.cache.fleet._ACKNOWLEDGED_S", 0.3)
    alive, dead = await join(redis_server.url), await join(redis_server.url, name="the dead one")
    await kept_by_all([alive, dead], [KEY])
    await dead.link.close()
    report = await alive.cache.purge()
    assert (report.told, report.unheard, report.deleted) == (1, ("the dead one",), 1)
    said = orjson.loads(await alive.link.ask("HGET", PROCESSES, "the dead one"))
    said["at_ms"] = alive.cache.now_ns() // 10**6 - int(COPY_S * 1000) - 1
    await alive.link.ask("HSET", PROCESSES, "the dead one", orjson.dumps(said))
    assert (await alive.cache.purge()).unheard == ()
    assert await alive.link.ask("HEXISTS", PROCESSES, "the dead one") == 0
    assert len((await alive.cache.stats_everywhere()).processes) == 1


async def test_a_line_from_the_future_is_no_process(redis_server: RedisServer, join: Join):
    """A clock that was set back leaves lines behind which would be waited for until it comes round again."""
    alive = await join(redis_server.url)
    said = {"at_ms": alive.cache.now_ns() // 10**6 + 3_600_000, "knows": "", "counts": {}}
    await alive.link.ask("HSET", PROCESSES, "of the future", orjson.dumps(said))
    report = await alive.cache.purge()
    assert (report.told, report.unheard) == (1, ())


# What Redis loses


@pytest.mark.parametrize("how", ["FLUSHALL", "DEL", "restart"])
async def test_purges_that_redis_lost_are_put_back(redis_server: RedisServer, join: Join, how: str):
    """By whoever knows them; a process that comes later learns them, and refuses what is older."""
    fleet = [await join(redis_server.url) for _ in range(2)]
    old = fresh(fleet[0])
    await fleet[0].cache.purge(tenant="a")
    await fleet[1].cache.purge(rule="x")
    if how == "restart":
        redis_server.kill()
        redis_server.start()
    else:
        redis_server.say(*(("DEL", PURGES) if how == "DEL" else ("FLUSHALL",)))

    async def are_back() -> bool:
        return redis_server.say("HLEN", PURGES) == b":2\r\n"

    await eventually(are_back)
    later = await join(redis_server.url)
    assert later.cache.stats()["purges"] == 2
    assert not later.cache.put(KEY, old)
    data = EntryCodec(SECRET).encode(KEY, old)
    await later.link.ask("SET", entry_key(KEY), data or b"")
    assert await found(later) is None


async def test_a_purge_waits_for_processes_whose_lines_were_lost(redis_server: RedisServer, join: Join):
    """Right after Redis lost everything nobody is known to be there: they are, with their copies."""
    fleet = [await join(redis_server.url) for _ in range(3)]
    command = await join(redis_server.url, starts=False)
    for _ in range(5):
        await kept_by_all(fleet, [KEY])
        redis_server.say("FLUSHALL")
        report = await command.cache.purge()
        assert [process.cache.near(KEY) for process in fleet] == [None] * 3
        assert report.told == 3


async def test_many_purges_become_one(redis_server: RedisServer, join: Join, monkeypatch: pytest.MonkeyPatch):
    """A few are held, however many were given; none of them is lost by that."""
    monkeypatch.setattr("router.cache.fleet._MOST_PURGES", 8)
    fleet = [await join(redis_server.url) for _ in range(2)]
    under_way = [fresh(fleet[0], tenant=f"tenant {number}") for number in range(30)]
    await kept_by_all(fleet, [KEY], tenant="tenant 29")
    for number in range(30):
        assert (await fleet[number % 2].cache.purge(tenant=f"tenant {number}")).unheard == ()
        assert await fleet[0].link.ask("HLEN", PURGES) <= 9
        for process in fleet:
            assert not process.cache.put(a_key(number), under_way[number])
    assert [await found(process) for process in fleet] == [None, None]
    await until(lambda: all(process.cache.stats()["purges"] <= 9 for process in fleet))
    for process in fleet:
        assert not any(process.cache.put(KEY, entry) for entry in under_way)
    await until(lambda: fleet[0].cache.put(KEY, fresh(fleet[0], asked_s_ago=0)))


async def test_purges_are_forgotten_when_nothing_can_be_meant_any_more(redis_server: RedisServer, join: Join):
    """A line that is older than any entry may be goes away, and troubles no later purge."""
    fleet = [await join(redis_server.url) for _ in range(2)]
    until_ns = fleet[0].cache.now_ns() - 32 * 86_400 * SECOND_NS
    line = {"until_ns": until_ns, "tenant": None, "rule": None, "model": None}
    await fleet[0].link.ask("HSET", PURGES, "0123456789abcdef", orjson.dumps(line))
    report = await fleet[0].cache.purge()
    assert (report.told, report.unheard) == (2, ())
    await holds(fleet[0], "HLEN", PURGES, reply=1)
    assert [process.cache.stats()["purges"] for process in fleet] == [1, 1]


# What is not ours


GARBAGE = [
    b"", b"garbage", b"7", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 5000, b"1e999", b'{"until_ns":1}',
    b'{"until_ns":"1","tenant":null,"rule":null,"model":null}', b'{"until_ns":1e30,"tenant":null,"rule":null,"a":1}',
    b'{"until_ns":true,"tenant":null,"rule":null,"model":null}', b'{"until_ns":1,"tenant":[1],"rule":null,"model":1}',
    b'{"at_ms":1e308,"knows":"","counts":{}}', b'{"at_ms":null,"knows":"","counts":{}}',
    b'{"at_ms":-1e308,"counts":[]}', b'{"at_ms":99999999999999999999999,"knows":"","counts":{}}',
    b'{"at_ms":1,"knows":[],"counts":{"a":"x"}}', b'{"until_ns":1,"tenant":null,"rule":null,"model":null}',
]  # fmt: skip


async def test_garbage_in_our_hashes_changes_nothing(redis_server: RedisServer, join: Join):
    """It is counted, and deleted; purges and counts are as without it."""
    fleet = [await join(redis_server.url) for _ in range(2)]
    for hash_name in (PURGES, PROCESSES):
        for number, value in enumerate(GARBAGE):
            await fleet[0].link.ask("HSET", hash_name, b"\xff%d" % number, value)
    await kept_by_all(fleet, [KEY], tenant="b")
    report = await fleet[0].cache.purge(tenant="b")
    assert (report.deleted, report.told, report.unheard, report.problem) == (1, 2, (), "")
    assert len((await fleet[1].cache.stats_everywhere()).processes) == 2
    await holds(fleet[0], "HLEN", PROCESSES, reply=2)
    await holds(fleet[0], "HLEN", PURGES, reply=1)
    assert sum(process.cache.stats()["foreign"] for process in fleet) >= len(GARBAGE)
    await put(fleet[0], [KEY])
    assert await shared(fleet[1])


async def test_a_huge_line_in_our_hash_is_deleted_where_it_is(redis_server: RedisServer, join: Join):
    """It cannot be read within a real deadline; the fleet goes on without it."""
    process = await join(redis_server.url, deadline_s=0.05)
    other = await join(redis_server.url, starts=False)
    await other.link.ask("HSET", PURGES, "0123456789abcdef", b"x" * 100_000_000)
    await holds(other, "HLEN", PURGES, reply=0, within_s=30.0)  # a tenth of a gigabyte, on whatever machine

    async def goes_on() -> bool:
        return (await look(process)).lead is not None

    await eventually(goes_on)
    assert (await other.cache.purge()).told == 1


@pytest.mark.parametrize("hash_name", [PURGES, PROCESSES])
@pytest.mark.parametrize("make", [("RPUSH", "x"), ("SADD", "x"), ("SET", "x")], ids=lambda make: make[0])
async def test_another_type_under_a_hash_of_ours_is_mended(
    redis_server: RedisServer, join: Join, hash_name: str, make: tuple[str, str]
):
    """It is deleted, and what was known is put back; entries are found, a purge is in force everywhere."""
    fleet = [await join(redis_server.url) for _ in range(2)]
    old = fresh(fleet[0], tenant="b")
    await fleet[0].cache.purge(tenant="b")
    redis_server.say("DEL", hash_name)
    redis_server.say(make[0], hash_name, make[1])
    await holds(fleet[0], "TYPE", hash_name, reply=b"hash")
    await kept_by_all(fleet, [KEY])
    report = await fleet[0].cache.purge(tenant="a")
    assert (report.deleted, report.told, report.unheard, report.problem) == (1, 2, (), "")
    assert not fleet[1].cache.put(KEY, old)
    await holds(fleet[0], "HLEN", PURGES, reply=2)


@pytest.mark.parametrize("name", [entry_key(KEY), flight_key(KEY)], ids=["entry", "flight"])
@pytest.mark.parametrize(
    "make", [("RPUSH", "x"), ("SADD", "x"), ("HSET", "x", "y"), ("ZADD", "1", "x")], ids=lambda make: make[0]
)
async def test_another_type_under_a_key_is_a_miss_and_deleted(
    redis_server: RedisServer, join: Join, name: str, make: tuple[str, ...]
):
    """With nobody to wait for: whoever asks next leads."""
    process = await join(redis_server.url)
    redis_server.say(make[0], name, *make[1:])
    assert await look(process) == Found()
    await process.written()
    assert redis_server.say("EXISTS", name) == b":0\r\n"
    lead = (await look(process)).lead
    assert lead
    process.cache.put(KEY, fresh(process), lead)
    await process.written()
    assert await shared(process)


async def test_a_huge_value_is_read_no_further_than_an_entry_may_be(redis_server: RedisServer, join: Join):
    """A hundred megabytes under an entry or a flight cost what the largest entry costs; then they are gone."""
    process = await join(redis_server.url)
    for name in (entry_key(KEY), flight_key(KEY)):
        redis_server.say("SETRANGE", name, str(100 * 1024 * 1024), "x")
        tracemalloc.start()
        try:
            assert (await look(process)).entry is None
            assert tracemalloc.get_traced_memory()[1] < 8 * MAX_BYTES
        finally:
            tracemalloc.stop()
        await process.written()
        assert redis_server.say("STRLEN", name) in (b":0\r\n", b":33\r\n")


async def test_what_is_not_exactly_what_was_written_is_a_miss(redis_server: RedisServer, join: Join):
    """Cut, changed, another key's, another owner's, not ours at all: deleted, and counted once each."""
    process, stranger = await join(redis_server.url), EntryCodec(b"another secret")
    right = EntryCodec(SECRET).encode(KEY, fresh(process)) or b""
    wrong = [
        right[:-1], right[:40], right + b"x", right[:60] + bytes([right[60] ^ 1]) + right[61:], b"\x02" + right[1:],
        EntryCodec(SECRET).encode(a_key("other"), fresh(process)), stranger.encode(KEY, fresh(process)),
        b"x", b"\x80\x04\x95pickled", b"L" + b"0" * 32,
    ]  # fmt: skip
    for number, value in enumerate(wrong, 1):
        await process.link.ask("SET", entry_key(KEY), value or b"")
        assert await shared(process) is None
        await process.written()
        assert await process.link.ask("EXISTS", entry_key(KEY)) == 0
        assert process.cache.stats()["corrupt"] == number
    await process.link.ask("SET", entry_key(KEY), right)
    assert await shared(process)


async def test_what_redis_keeps_too_long_is_not_replayed(redis_server: RedisServer, join: Join):
    """What counts are the dates in the entry, and the purges; it is deleted."""
    process = await join(redis_server.url)
    await process.cache.purge(tenant="purged")
    for entry in (fresh(process, ttl_s=-0.001), fresh(process, tenant="purged")):
        await process.link.ask("SET", entry_key(KEY), EntryCodec(SECRET).encode(KEY, entry) or b"")
        assert await look(process) == Found()
        await process.written()
        assert await process.link.ask("EXISTS", entry_key(KEY)) == 0
    assert process.cache.stats()["corrupt"] == 0


async def test_what_was_handed_over_and_then_changed_reaches_nobody(redis_server: RedisServer, join: Join):
    """Who waited makes the call after all."""
    one, other = await join(redis_server.url), await join(redis_server.url)
    lead = (await look(one)).lead
    assert lead
    await one.link.ask("DEL", flight_key(KEY))
    await one.link.ask("SET", handed_key(KEY), lead.encode() + b"garbage")
    assert await look(other, follows=lead) == Found()
    assert other.cache.stats()["corrupt"] == 1


async def test_a_purge_deletes_nothing_beside_our_entries(redis_server: RedisServer, join: Join):
    """What lies under the prefix of entries and is none goes too; all else stays."""
    process = await join(redis_server.url)
    theirs = ["router:v1:affinity:x", "other:router:v1:cache:{x}", "router:v2:cache:{x}", "router:v1:cachex:{x}", "x*"]
    ours = ["router:v1:cache:{x}", "router:v1:cache:*", "router:v1:cache:\r\nDEL x"]
    for name in theirs + ours:
        redis_server.say("SET", name, "value")
    redis_server.say("RPUSH", "router:v1:cache:{list}", "value")
    for number in range(1200):
        process.cache.put(a_key(number), fresh(process, tenant="ab"[number % 2]))
        if number % 200 == 0:
            await process.written()
    await process.written()
    assert (await process.cache.purge(tenant="a")).deleted == 600 + 4
    assert (await process.cache.stats_everywhere()).stored == 600
    assert (await process.cache.purge()).deleted == 600
    assert all(redis_server.say("EXISTS", name) == b":1\r\n" for name in theirs)


async def test_names_of_keys_are_hashes_whatever_the_marks_are(redis_server: RedisServer, join: Join):
    """Nothing of a tenant, a rule or a model is in the name of a key; names are bounded."""
    process = await join(redis_server.url)
    odd = ["a\r\nDEL x", "a b", "{k}", "*", "[a-z]?", "\\", "\0", "é", "x" * 2000]
    for number, name in enumerate(odd):
        assert (await look(process, a_key(number))).lead
        process.cache.put(a_key(number), fresh(process, tenant=name, rule=name, model=name))
    await process.written()
    assert (await process.cache.purge(tenant="*", rule="*", model="*")).deleted == 1
    names = [name async for page in process.link.scan("*") for name in page]
    assert len(names) >= len(odd)
    pattern = re.compile(rb"router:v1:(cache|flight):\{[0-9a-f]{64}\}|router:v1:\{cache-fleet\}:(purges|processes)")
    assert [name for name in names if not pattern.fullmatch(name)] == []


# Clocks


async def test_hosts_need_not_agree_on_the_time(redis_server: RedisServer, join: Join):
    """With clocks an hour ahead and behind: found by all, over for all at the same moment, purged by each."""
    fleet = [await join(redis_server.url, wall_ahead_s=ahead_s) for ahead_s in (0, 3600, -3600)]
    assert max(abs(process.cache.now_ns() - time.time_ns()) for process in fleet) < SECOND_NS
    for writer in fleet:
        await put(writer, [KEY], ttl_s=0.4)
        entry = writer.cache.near(KEY)
        assert entry
        while any([await found(process) for process in fleet]):
            assert time.time_ns() < entry.expires_at_ns + SECOND_NS
        assert time.time_ns() > entry.expires_at_ns - SECOND_NS / 10
        for giver in fleet:
            await put(writer, [KEY])
            assert all([await found(process) for process in fleet])
            assert (await giver.cache.purge(older_than_s=100)).deleted == 0
            assert all([await found(process) for process in fleet])
            under_way = fresh(writer)
            assert (await giver.cache.purge()).deleted == 1
            assert not any([await found(process) for process in fleet])
            assert not writer.cache.put(KEY, under_way)


@pytest.mark.parametrize("ahead_s", [3600, -3600])
async def test_an_answer_dated_before_the_clock_was_compared_is_not_kept_too_long(
    redis_server: RedisServer, join: Join, ahead_s: float
):
    """Asked for while Redis was away, by a clock that is wrong: either not kept, or no longer than it should."""
    process = await join(redis_server.url, wall_ahead_s=ahead_s, starts=False)
    entry = fresh(process, asked_s_ago=0)
    await process.cache.start()
    process.cache.put(KEY, entry)
    await process.written()
    assert await found(process) is None
    await process.cache.purge()
    assert await process.link.ask("EXISTS", entry_key(KEY)) == 0


async def test_an_answer_dated_by_a_clock_that_was_set_is_not_kept(redis_server: RedisServer, join: Join):
    """Set ahead between two beats it dates what no purge would reach for an hour: with the next beat that is gone."""
    process = await join(redis_server.url)
    process.wall_clock.ahead_s = 3600
    assert process.cache.put(KEY, fresh(process, asked_s_ago=0))
    await process.written()
    await until(lambda: process.cache.near(KEY) is None)
    assert await shared(process) is None
    await put(process, [KEY])
    assert process.cache.near(KEY)
    assert (await process.cache.purge()).deleted == 1


# Redis is full, away, or not there yet


async def test_a_full_redis_still_gives_answers(redis_server: RedisServer, join: Join):
    """What is there is found; nobody leads, nothing is kept, all of it is counted; a purge is refused in words."""
    process, other = await join(redis_server.url), await join(redis_server.url)
    process.cache.put(KEY, fresh(process))
    await process.written()
    redis_server.say("CONFIG", "SET", "maxmemory", "1")
    assert await shared(other)
    assert await look(process, a_key("new")) == Found()
    process.cache.put(a_key("new"), fresh(process), "0" * 32)
    await process.written()
    assert process.cache.stats()["unwritten"] == 1
    assert process.cache.near(a_key("new"))
    with pytest.raises(CacheUnavailable, match="not in force"):
        await process.cache.purge()
    redis_server.say("CONFIG", "SET", "maxmemory", "0")
    assert (await process.cache.purge()).told == 2


async def test_what_redis_did_not_do_is_said_at_debug(
    redis_server: RedisServer, join: Join, caplog: pytest.LogCaptureFixture
):
    """With its reason and the key of the cache: so it can be told why an answer was paid for twice."""
    caplog.set_level(logging.DEBUG, "router")
    process = await join(redis_server.url)
    process.cache.put(KEY, fresh(process))
    await look(process, KEY)
    await process.written()
    assert caplog.messages == []
    redis_server.say("CONFIG", "SET", "maxmemory", "1")
    process.cache.put(KEY, fresh(process))
    await process.written()
    redis_server.kill()
    await until(lambda: process.cache.stats()["beats_failed"] > 0)
    await look(process, KEY)
    process.clock.ahead_s = KNOWS_S + 0.1
    await look(process, KEY)
    lines = [message for message in caplog.messages if "not looked up" in message or "an answer" in message]
    assert lines[0] == f"cache: {KEY}: an answer not written: an error reply"
    assert lines[1].startswith(f"cache: {KEY}: not looked up: ")
    assert lines[2] == f"cache: {KEY}: not looked up: what is purged is not known"


async def test_a_purge_makes_room_in_a_full_redis(redis_server: RedisServer, join: Join):
    """It deletes first what it means, and then there is room to say so."""
    process, other = await join(redis_server.url), await join(redis_server.url)
    used = int(re.search(rb"used_memory:(\d+)", redis_server.say("INFO", "memory"))[1])  # type: ignore[index]
    redis_server.say("CONFIG", "SET", "maxmemory", str(used + 4 * MAX_BYTES))
    number = 0
    while process.cache.stats()["unwritten"] == 0:
        process.cache.put(a_key(number), fresh(process, os.urandom(100_000)))
        await process.written()
        number += 1
    await found(other, a_key(0))
    report = await process.cache.purge()
    assert (report.told, report.unheard, report.problem) == (2, (), "")
    assert report.deleted >= number - 1
    assert not [n for n in range(number) for each in (process, other) if each.cache.near(a_key(n))]


async def test_who_is_cut_off_stops_using_what_may_be_purged(redis_server: RedisServer, join: Join):
    """The shared entries soon, its own copies a little later; with Redis back it goes on, and learns what it missed."""
    cut = await join(redis_server.url)
    await kept_by_all([cut], [KEY, a_key("purged")])
    redis_server.kill()
    await until(lambda: cut.cache.stats()["beats_failed"] > 0)
    unasked = cut.cache.stats()["unasked"]
    cut.clock.ahead_s = KNOWS_S + 0.1
    assert await look(cut) == Found()
    assert cut.cache.stats()["unasked"] == unasked + 1
    assert cut.cache.near(KEY)
    cut.clock.ahead_s = COPY_S + 0.1
    assert cut.cache.near(KEY) is None
    redis_server.start()
    other = await join(redis_server.url)
    await other.cache.purge(tenant="a")

    async def is_back() -> bool:
        return (await look(cut)).lead is not None

    await eventually(is_back)
    assert cut.cache.near(a_key("purged")) is None


async def test_who_missed_a_purge_learns_it_before_it_uses_anything(
    redis_server: RedisServer, join: Join, monkeypatch: pytest.MonkeyPatch
):
    """Frozen like a process that the system has put to sleep: it goes on with a beat, not with what it had."""
    monkeypatch.setattr("router.cache.fleet._ACKNOWLEDGED_S", 0.2)
    sleeper, other = await join(redis_server.url, name="sleeper"), await join(redis_server.url)
    await kept_by_all([sleeper, other], [KEY])
    with monkeypatch.context() as asleep:
        ask = sleeper.link.ask
        waking = asyncio.Event()

        async def hang(*command: Any, **options: Any) -> Any:
            await waking.wait()
            return await ask(*command, **options)

        asleep.setattr(sleeper.link, "ask", hang)
        report = await other.cache.purge()
        assert report.unheard == ("sleeper",)
        sleeper.clock.ahead_s = COPY_S + 1
        assert sleeper.cache.near(KEY) is None
        waking.set()
    await until(lambda: sleeper.cache.stats()["purges"] == 1)
    assert await found(sleeper) is None


async def test_a_first_beat_that_was_too_slow_is_made_up_for_before_the_start_is_over(
    redis_server: RedisServer, join: Join
):
    """A busy machine: the first connection takes too long. The first request after the start finds what is shared."""
    kept = await join(redis_server.url)
    kept.cache.put(KEY, fresh(kept))
    await kept.written()
    process = await join(redis_server.url, starts=False, deadline_s=0.5)
    redis_server.freeze()
    starting = asyncio.create_task(process.cache.start())
    await until(lambda: process.cache.stats()["beats_failed"] > 0)
    redis_server.thaw()
    await starting
    assert (await look(process)).entry
    assert process.cache.stats()["unasked"] == 0


async def test_redis_may_come_later(idle_redis_server: RedisServer, join: Join):
    """Not there at the start: every look-up is a miss at once, nothing is raised; then it is shared."""
    process = await join(idle_redis_server.url)
    assert await look(process) == Found()
    process.cache.put(KEY, fresh(process), "0" * 32)
    assert process.cache.near(KEY) is None
    with pytest.raises(CacheUnavailable):
        await process.cache.purge()
    with pytest.raises(CacheUnavailable):
        await process.cache.stats_everywhere()
    await process.written()
    idle_redis_server.start()

    async def is_there() -> bool:
        return (await look(process)).lead is not None

    await eventually(is_there)


# Leads


async def test_a_lead_is_renewed_while_its_owner_lives(
    redis_server: RedisServer, join: Join, monkeypatch: pytest.MonkeyPatch
):
    """A call may take longer than a lead lasts; once it has ended, or its owner has, it is renewed no more."""
    process = await join(redis_server.url)
    with monkeypatch.context() as shorter:
        shorter.setattr("router.cache.redis.LEASE_S", 1.0)
        lead = (await look(process)).lead
    assert lead

    async def is_renewed() -> bool:
        return bool(await process.link.ask("PTTL", flight_key(KEY)) > 2000)

    await eventually(is_renewed)
    process.cache.release(KEY, lead)
    await process.written()
    assert await process.link.ask("EXISTS", flight_key(KEY)) == 0


# A user with few rights

COMMANDS = "evalsha eval getrange set del unlink pttl pexpire hgetall hset hsetnx hdel hkeys hstrlen time scan"
OF_A_CLUSTER = "cluster|slots"
THE_TESTS = {"acl", "acl|log", "info", "auth", "config", "config|resetstat"}  # what the test itself asks
USER = ("ACL", "SETUSER", "router", "reset", "on", ">secret", "~router:*")
programs = pytest.mark.parametrize("program", [pytest.param(path, id=name) for name, path in server_programs().items()])


@programs
async def test_a_user_with_few_rights_is_enough(
    program: str, tmp_path: Path, join: Join, monkeypatch: pytest.MonkeyPatch
):
    """All works with these commands on our own keys, and each of them is needed."""
    server = RedisServer(program, tmp_path)
    server.start()
    try:
        server.say(*USER, *(f"+{command}" for command in COMMANDS.split()))
        url = f"redis://router:secret@127.0.0.1:{server.port}"
        fleet = [await join(url) for _ in range(2)]
        server.say("CONFIG", "RESETSTAT")
        await uses_everything(*fleet, monkeypatch)
        assert server.say("ACL", "LOG") == b"*0\r\n"
        for process in fleet:
            assert process.cache.stats()["beats_failed"] == process.cache.stats()["unwritten"] == 0
            await process.close()
        stats = server.say("INFO", "commandstats").decode()
        used = set(re.findall(r"cmdstat_([a-z|]+):calls", stats))
        assert used - THE_TESTS == set(COMMANDS.split())
    finally:
        server.kill()


@programs
async def test_a_user_with_few_rights_is_enough_in_a_cluster(
    program: str, tmp_path: Path, join: Join, monkeypatch: pytest.MonkeyPatch
):
    """It may ask beside that which node has which keys."""
    cluster = Cluster(program, tmp_path)
    with running(cluster):
        for node in cluster.nodes:
            node.say(*USER, *(f"+{command}" for command in [*COMMANDS.split(), OF_A_CLUSTER]))
        fleet = [await join(cluster.url.replace("://", "://router:secret@")) for _ in range(2)]
        await uses_everything(*fleet, monkeypatch)
        for process in fleet:
            assert process.cache.stats()["beats_failed"] == process.cache.stats()["unwritten"] == 0
            await process.close()
        assert [node.say("ACL", "LOG") for node in cluster.nodes] == [b"*0\r\n"] * 3


async def uses_everything(one: Process, other: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thing that a cache asks of Redis."""
    lead = (await look(one)).lead
    assert lead
    assert (await look(other)).leader == lead
    one.cache.put(KEY, fresh(one), lead)
    await one.written()
    assert (await look(other, follows=lead)).entry
    await one.link.ask("SET", entry_key(a_key("bad")), "bad")
    assert await shared(other, a_key("bad")) is None
    await other.written()
    handed = (await look(one, a_key("handed"))).lead
    assert handed
    one.cache.hand_over(a_key("handed"), fresh(one), handed)
    await one.written()
    assert (await look(other, a_key("handed"), follows=handed)).entry
    with monkeypatch.context() as shorter:
        shorter.setattr("router.cache.redis.LEASE_S", 1.0)
        assert (await look(one, a_key("long"))).lead

    async def is_renewed() -> bool:
        return bool(await one.link.ask("PTTL", flight_key(a_key("long"))) > 1000)

    await eventually(is_renewed)
    report = await other.cache.purge(tenant="a")
    assert (report.deleted, report.told, report.unheard, report.problem) == (1, 2, (), "")
    await one.link.ask("DEL", PURGES)

    async def is_put_back() -> bool:
        return bool(await one.link.ask("HGETALL", PURGES))

    await eventually(is_put_back)
    assert (await one.cache.stats_everywhere()).stored == 0
    assert await one.link.run(TRIM, [PURGES], [1000]) == 1


async def test_a_purge_deletes_what_is_dated_ahead_of_redis(redis_server: RedisServer, join: Join):
    """After a failover to a host whose clock is behind nobody could tell its age; later it would look fresh again."""
    one = await join(redis_server.url)
    ahead = replace(fresh(one), asked_at_ns=one.cache.now_ns() + 3 * SECOND_NS)
    data = EntryCodec(SECRET).encode(KEY, ahead)
    assert data
    await one.link.ask("SET", entry_key(KEY), data)
    report = await one.cache.purge()
    assert report.deleted == 1
    assert await one.link.ask("EXISTS", entry_key(KEY)) == 0


async def test_a_purge_that_redis_lost_at_once_is_not_called_done(
    redis_server: RedisServer, join: Join, monkeypatch: pytest.MonkeyPatch
):
    """Whoever purges knows it from the first moment: it is put back, and only then acknowledged."""
    one, two = await join(redis_server.url), await join(redis_server.url)
    one.cache.put(KEY, fresh(one))
    await one.written()
    assert await shared(two) is not None
    link, ask = two.cache._fleet._link, two.cache._fleet._link.ask
    lost = []

    async def forgetful(*command: Any, **options: Any) -> Any:
        reply = await ask(*command, **options)
        if command[:2] == ("HSET", PURGES) and not lost:
            lost.append(await ask("DEL", PURGES))  # acknowledged, and gone with the master
        return reply

    monkeypatch.setattr(link, "ask", forgetful)
    report = await two.cache.purge()
    assert lost == [1]
    assert (report.told, report.unheard, report.problem) == (2, (), "")
    assert one.cache.near(KEY) is None
    assert two.cache.near(KEY) is None
    assert await one.link.ask("HLEN", PURGES) == 1
