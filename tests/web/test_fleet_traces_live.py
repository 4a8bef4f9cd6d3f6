"""Live tails of the fleet's traces, hostile rows, and a Redis user with few rights: over a real Redis."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from typing import Any

import orjson
import pytest
from kit.page import a_request
from kit.redis_server import RedisServer, becomes
from kit.stage import WAIT_S, Stage, Wire, stage

import router.fleet_traces
from router.cli.trace_fleet import follow_fleet
from router.redis_link import RedisLink
from router.trace.fleet import KEY as STREAM
from router.trace.fleet import FleetTraces
from router.trace.fleet_read import FleetReader
from router.trace.fleet_row import Row, encode
from router.trace.fleet_tail import GAP, FleetTail, FleetTails
from router.trace.record import TraceQuery

pytestmark = pytest.mark.anyio
ALL = TraceQuery()
GOOD = "c" * 32
DEEP = b'{"a":' * 400 + b"1" + b"}" * 400
HOSTILE = {
    "deep": b'{"trace_id":"%b","started_at_ns":7,"facts":%b}' % (GOOD.encode(), DEEP),
    "deep list": b'{"trace_id":"%b","started_at_ns":7,"why":%b}' % (GOOD.encode(), b"[" * 400 + b"]" * 400),
    "huge": b'{"trace_id":"%b","started_at_ns":1%b}' % (GOOD.encode(), b"0" * 2_000),
    "endless": b'{"trace_id":"%b","started_at_ns":1e999}' % GOOD.encode(),
    "list": b'["%b"]' % GOOD.encode(),
    "number": b"5",
    "typed": b'{"trace_id":["%b"],"started_at_ns":7}' % GOOD.encode(),
}


class Counting(FleetTails):
    """Tails that count what they render."""

    rendered = 0

    def event_of(self, mark: str, row: Row) -> bytes:
        self.rendered += 1
        return super().event_of(mark, row)


@asynccontextmanager
async def a_stream(redis: RedisServer, **limits: float) -> AsyncIterator[tuple[FleetTraces, Counting]]:
    link = RedisLink(redis.url, deadline_s=5.0)
    traces = FleetTraces(link, "p", interval_s=60.0)
    try:
        yield traces, Counting(FleetReader(traces), poll_s=0.01, **limits)
    finally:
        await traces.stop()
        await link.close()


async def put(traces: FleetTraces, numbers: range, **fields: Any) -> None:
    for number in numbers:
        traces.write(a_request(number, **fields))
    await traces.flush(WAIT_S)


class Client:
    """Takes the events of a tail as they come."""

    def __init__(self, tail: FleetTail) -> None:
        self.tail = tail
        self.text = b""
        self._taking = asyncio.ensure_future(self._take())

    async def _take(self) -> None:
        async with aclosing(self.tail.events()) as events:  # type: ignore[type-var]
            async for some in events:
                self.text += some

    @property
    def ids(self) -> list[str]:
        return re.findall(r'"request_id":"(req_\d+)"', self.text.decode())

    @property
    def gaps(self) -> int:
        return self.text.count(GAP)

    async def leave(self) -> None:
        self._taking.cancel()
        await asyncio.wait((self._taking,))
        self.tail.close()


@asynccontextmanager
async def clients(*tails: FleetTail) -> AsyncIterator[list[Client]]:
    found = [Client(tail) for tail in tails]
    try:
        yield found
    finally:
        for client in found:
            await client.leave()


def ids(numbers: range) -> list[str]:
    return [f"req_{number:06d}" for number in numbers]


async def test_a_row_is_rendered_once_for_all_tails(redis_server: RedisServer) -> None:
    """Each of them has every row, in order; a filter leaves out what does not match; nobody listens, nobody reads."""
    async with a_stream(redis_server) as (traces, tails):
        await put(traces, range(5))
        mark = await tails.reader.newest()
        wide = [tails.tail(ALL, mark, is_returning=False) for _ in range(4)]
        narrow = tails.tail(TraceQuery(request_id="req_000007"), mark, is_returning=False)
        async with clients(*wide, narrow) as (*takers, other):
            await becomes(lambda: tails.mark == mark)
            await put(traces, range(5, 60))
            await becomes(lambda: all(taker.ids == ids(range(5, 60)) for taker in takers))
            assert other.ids == ids(range(7, 8))
            assert tails.rendered == 55
            assert sum(taker.gaps for taker in (*takers, other)) == 0
        assert tails.mark is None


async def test_a_flood_is_cut_and_a_narrow_filter_gets_all_of_its_rows(redis_server: RedisServer) -> None:
    """Who takes everything is told of gaps, which are counted; the newest comes too once it is calm."""
    async with a_stream(redis_server) as (traces, tails):
        mark = await tails.reader.newest()
        wide = tails.tail(ALL, mark, is_returning=False)
        narrow = tails.tail(TraceQuery(tenant="rare"), mark, is_returning=False)
        async with clients(wide, narrow) as (taker, other):
            await becomes(lambda: tails.mark is not None)
            for hundred in range(10):
                for number in range(hundred * 100, hundred * 100 + 99):
                    traces.write(a_request(number))
                traces.write(a_request(hundred * 100 + 99, tenant="rare"))
            await traces.flush(WAIT_S)
            newest = await tails.reader.newest()
            await becomes(lambda: tails.mark == newest)
            await becomes(lambda: len(other.ids) == 10)
            assert other.ids == [f"req_{hundred:04d}99" for hundred in range(10)]
            assert other.gaps == 0
            assert taker.gaps >= 1
            await becomes(lambda: traces.stats()["gaps"] == taker.gaps)
            assert taker.ids == sorted(set(taker.ids))
            assert 200 <= len(taker.ids) < 1_000
            number = 5_000
            async with asyncio.timeout(WAIT_S):
                while taker.ids[-1] < "req_005000":
                    await put(traces, range(number, number + 1))
                    number += 1


async def test_more_than_can_be_looked_at_is_jumped_over(redis_server: RedisServer) -> None:
    """The tail is told, and goes on at the newest; meanwhile the loop is never held for long."""
    async with a_stream(redis_server, looks_per_s=100.0) as (traces, tails):
        mark = await tails.reader.newest()
        await put(traces, range(4_000))
        newest = await tails.reader.newest()
        tail = tails.tail(TraceQuery(tenant="none"), mark, is_returning=False)
        async with clients(tail) as [taker]:
            held_s = 0.0
            async with asyncio.timeout(WAIT_S):
                while tails.mark != newest:
                    began_s = time.thread_time()
                    await asyncio.sleep(0)
                    held_s = max(held_s, time.thread_time() - began_s)
            await becomes(lambda: taker.gaps == 1)
            await put(traces, range(9_000, 9_001), tenant="none")
            await becomes(lambda: taker.ids == ["req_009000"])
    assert held_s < 0.02  # of this thread's own work; it was a tenth of a second


async def test_a_client_that_takes_nothing_is_told_of_a_gap(redis_server: RedisServer) -> None:
    """So much waits for it and no more; afterwards it has what comes."""
    async with a_stream(redis_server) as (traces, tails):
        tail = tails.tail(ALL, await tails.reader.newest(), is_returning=False)
        async with aclosing(tail.events()) as events:  # type: ignore[type-var]
            while await anext(events):
                pass
            await put(traces, range(300), why=tuple("x" * 400 for _ in range(7)))
            newest = await tails.reader.newest()
            await becomes(lambda: tails.mark == newest)
            held = await anext(events)
            assert 512 * 1024 <= len(held) < 530 * 1024
            assert held.endswith(GAP)
            await put(traces, range(300, 301))
            while not (held := await anext(events)):
                pass
            assert b"req_000300" in held
        tail.close()


async def test_a_tail_that_comes_back_gets_what_it_missed_and_joins(redis_server: RedisServer) -> None:
    """Each row once, while another tail runs; of too much, the beginning and then a gap."""
    async with a_stream(redis_server) as (traces, tails):
        await put(traces, range(1))
        mark = await tails.reader.newest()
        await put(traces, range(1, 101))
        now = await tails.reader.newest()
        async with clients(tails.tail(ALL, now, is_returning=False)) as [here]:
            await becomes(lambda: tails.mark == now)
            async with clients(tails.tail(ALL, mark, is_returning=True)) as [back]:
                await becomes(lambda: len(back.ids) == 100)
                await put(traces, range(101, 111))
                await becomes(lambda: here.ids == ids(range(101, 111)))
                await becomes(lambda: back.ids == ids(range(1, 111)))
                assert (back.gaps, here.gaps) == (0, 0)
        await put(traces, range(111, 1_000))
        async with clients(tails.tail(ALL, mark, is_returning=True)) as [late]:
            await becomes(lambda: late.gaps == 1)
            assert late.ids == ids(range(1, 1 + len(late.ids)))
            assert 256 <= len(late.ids) < 300
            await becomes(lambda: tails.mark is not None)
            await put(traces, range(2_000, 2_001))
            await becomes(lambda: late.ids[-1] == "req_002000")


@pytest.mark.parametrize("mark", ["0-0", "18446744073709551615-0"])
async def test_a_tail_of_a_stream_that_is_gone_waits_like_the_others(redis_server: RedisServer, mark: str) -> None:
    """Whatever mark it comes with, below or beyond that of the others: it asks no more than they do, and hears on."""
    async with a_stream(redis_server) as (traces, tails):
        await put(traces, range(5))
        async with clients(tails.tail(ALL, await tails.reader.newest(), is_returning=False)) as (first,):
            await becomes(lambda: tails.mark not in (None, "0-0"))
            redis_server.say("DEL", STREAM)
            async with clients(tails.tail(ALL, mark, is_returning=mark != "0-0")) as (second,):
                group = lambda: sum(len(group.tails) for group in tails._groups.values())  # noqa: E731
                await becomes(lambda: group() == 2)
                await put(traces, range(5, 9))
                await becomes(lambda: first.ids[-1:] == second.ids[-1:] == ["req_000008"])


async def test_filters_that_meet_nothing_take_nothing_from_a_tail(redis_server: RedisServer) -> None:
    """Fifteen of them are open, and a hundred rows at once, which is less than a second's 200, come whole."""
    async with a_stream(redis_server) as (traces, tails):
        await put(traces, range(2))
        mark = await tails.reader.newest()
        idle = [tails.tail(TraceQuery(tenant=f"none-{number}"), mark, is_returning=False) for number in range(15)]
        async with clients(tails.tail(ALL, mark, is_returning=False), *idle) as (wide, *_):
            await becomes(lambda: tails.mark == mark)
            await put(traces, range(2, 102))
            await becomes(lambda: len(wide.ids) == 100)
            assert wide.gaps == 0


async def test_a_stream_that_redis_lost_is_followed_in_its_next_life(redis_server: RedisServer) -> None:
    """Its marks may be lower than those before: a tail that runs and one that comes back say `gap`, and go on."""

    def row(number: int) -> str:
        return encode(a_request(number), "p").decode()

    async with a_stream(redis_server) as (_, tails):
        redis_server.say("XADD", STREAM, "9000000000000-0", "t", row(1))
        mark = await tails.reader.newest()
        async with clients(tails.tail(ALL, mark, is_returning=False)) as [here]:
            await becomes(lambda: tails.mark == mark)
            redis_server.say("DEL", STREAM)
            redis_server.say("XADD", STREAM, "1-0", "t", row(2))
            await becomes(lambda: here.gaps == 1)
            async with clients(tails.tail(ALL, mark, is_returning=True)) as [back]:
                await becomes(lambda: back.gaps == 1)
                redis_server.say("XADD", STREAM, "2-0", "t", row(3))
                await becomes(lambda: here.ids == back.ids == ids(range(3, 4)))


async def test_a_tail_goes_on_when_redis_was_away(redis_server: RedisServer) -> None:
    """From the same mark, and nothing is missing; one that comes back meanwhile waits for Redis too."""
    async with a_stream(redis_server) as (traces, tails):
        await put(traces, range(1))
        mark = await tails.reader.newest()
        tails.reader._traces.link.deadline_s = 0.05
        async with clients(tails.tail(ALL, mark, is_returning=False)) as [here]:
            await becomes(lambda: tails.mark == mark)
            redis_server.freeze()
            failed = traces.link.stats()["failed"]
            await becomes(lambda: traces.link.stats()["failed"] > failed)
            async with clients(tails.tail(ALL, mark, is_returning=True)) as [back]:
                redis_server.thaw()
                traces.link.deadline_s = 5.0
                await becomes(lambda: traces.link.is_up)
                await put(traces, range(1, 4))
                await becomes(lambda: here.ids == back.ids == ids(range(1, 4)))
                assert (here.gaps, back.gaps) == (0, 0)


async def test_the_command_line_says_that_some_are_missing(
    redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, beside the rows; and it goes on."""
    taken = asyncio.Event()
    loop = asyncio.get_running_loop()

    def take(row: dict[str, Any]) -> None:
        loop.call_soon_threadsafe(taken.set)
        if row["request_id"] == "req_000009":
            raise InterruptedError

    async def write(first_ms: int, number: int, until: Callable[[], bool]) -> None:
        row = encode(a_request(number), "p").decode()
        async with asyncio.timeout(WAIT_S):
            while not until():
                first_ms += 1
                await asyncio.to_thread(redis_server.say, "XADD", STREAM, f"{first_ms}-0", "t", row)

    following = asyncio.ensure_future(asyncio.to_thread(follow_fleet, redis_server.url, ALL, take, 0.01))
    await write(9_000_000_000_000, 1, taken.is_set)
    redis_server.say("DEL", STREAM)
    await write(0, 9, following.done)
    with pytest.raises(InterruptedError):
        await following
    assert capsys.readouterr().err == "some requests are missing here: Redis has them no longer\n"


# Rows that nobody of ours wrote


async def test_a_hostile_row_breaks_no_question_of_any_pod(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list, one trace and the tail of each router pass it over, and count it."""
    async with pods(redis_server, monkeypatch) as routers, AsyncExitStack() as stack:
        tails = [await stack.enter_async_context(following(s)) for s in routers]
        good = orjson.dumps({"trace_id": GOOD, "started_at_ns": 7, "pod": "new", "status": 200}).decode()
        for row in (good, *(each.decode() for each in HOSTILE.values())):
            redis_server.say("XADD", STREAM, "*", "t", row)
        redis_server.say("XADD", STREAM, "*", "t", orjson.dumps({"trace_id": "d" * 32, "started_at_ns": 8}).decode())
        for s, tail in zip(routers, tails, strict=True):
            stats = s.app.stores.fleet_traces.stats  # type: ignore[union-attr]
            assert [await tail.trace() for _ in range(2)] == [GOOD, "d" * 32]
            assert stats()["unreadable"] == len(HOSTILE)
            status, found = await asked(s, "/traces?fleet=1")
            assert (status, [row["trace_id"] for row in found["traces"]]) == (200, ["d" * 32, GOOD])
            assert stats()["unreadable"] == 2 * len(HOSTILE)
            status, found = await asked(s, f"/traces/{GOOD}?fleet=1")
            assert (status, found["pod"]) == (200, "new")
            assert stats()["unreadable"] == 3 * len(HOSTILE) - 1  # `5` does not hold the id


@asynccontextmanager
async def pods(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Stage]]:
    monkeypatch.setattr(router.fleet_traces, "pod_name", lambda: "pod-a")
    async with stage(fleet=redis.url, cache="off") as a:
        monkeypatch.setattr(router.fleet_traces, "pod_name", lambda: "pod-b")
        async with stage(fleet=redis.url, cache="off") as b:
            yield [a, b]


async def asked(s: Stage, path: str) -> tuple[int, Any]:
    wire = Wire(*await asyncio.open_connection("127.0.0.1", s.admin_port, limit=1 << 24))
    wire.send("GET", path, [(b"connection", b"close")], None, b"127.0.0.1")
    reply = await wire.reply()
    await wire.close()
    return reply.status, reply.json()


@asynccontextmanager
async def following(s: Stage) -> AsyncIterator[Following]:
    """A client of `/events?fleet=1` that has been told that it listens."""
    reader, writer = await asyncio.open_connection("127.0.0.1", s.admin_port)
    with closing(writer):
        found = Following(Wire(reader, writer))
        found.wire.send("GET", "/events?fleet=1", [], None, b"127.0.0.1")
        assert (await found.wire.head())[0] == 200
        assert b"event: ready" in await found.event()
        yield found


class Following:
    """What comes to such a client."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._text = b""

    async def trace(self) -> str:
        """The trace id of the next event."""
        event = await self.event()
        assert b"event: trace" in event, event
        return str(orjson.loads(event.split(b"data: ", 1)[1])["trace_id"])

    async def event(self) -> bytes:
        """The next event, whatever it is."""
        async with asyncio.timeout(WAIT_S):
            while b"\n\n" not in self._text:
                self._text += await self.wire.chunk()
        event, _, self._text = self._text.partition(b"\n\n")
        return event


# A user of Redis with few rights


@pytest.mark.parametrize("denied", ["xtrim", "pexpire", "time"])
async def test_rows_are_written_once_where_redis_refuses_to_trim(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, denied: str
) -> None:
    """It is counted for each batch and said once, with the command; and that it is mended."""
    async with few_rights(redis_server, denied) as traces:
        for number in range(150):
            traces.write(a_request(number))
        await traces.flush(WAIT_S)
        assert redis_server.say("XLEN", STREAM) == b":150\r\n"
        stats = traces.stats()
        assert (stats["written"], stats["queued"], stats["retries"], stats["untrimmed"]) == (150, 0, 0, 3)
        said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert len(said) == 1
        assert f"refuses {denied.upper()}" in said[0]
        redis_server.say("ACL", "SETUSER", "router", f"+{denied}")
        traces.write(a_request(200))
        await traces.flush(WAIT_S)
        assert (traces.stats()["written"], traces.stats()["untrimmed"]) == (151, 3)
        assert redis_server.say("XLEN", STREAM) == b":151\r\n"


async def test_rows_wait_where_redis_refuses_to_take_them(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Tries are counted, it is said once, and each is written once when the right is given."""
    async with few_rights(redis_server, "xadd") as traces:
        for number in range(5):
            traces.write(a_request(number))
        for _ in range(3):
            await traces.flush(WAIT_S)
        stats = traces.stats()
        assert (stats["written"], stats["queued"], stats["retries"], stats["dropped"]) == (0, 5, 3, 0)
        assert redis_server.say("EXISTS", STREAM) == b":0\r\n"
        said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert [text.split(":")[1] for text in said] == [" Redis does not take traces"]
        redis_server.say("ACL", "SETUSER", "router", "+xadd")
        await traces.flush(WAIT_S)
        assert (traces.stats()["written"], traces.stats()["queued"]) == (5, 0)
        assert redis_server.say("XLEN", STREAM) == b":5\r\n"


@asynccontextmanager
async def few_rights(redis: RedisServer, denied: str) -> AsyncIterator[FleetTraces]:
    redis.say("ACL", "SETUSER", "router", "on", ">secret", "~*", "+@all", f"-{denied}")
    link = RedisLink(redis.url.replace("redis://", "redis://router:secret@"), deadline_s=5.0)
    traces = FleetTraces(link, "p", interval_s=60.0)
    try:
        yield traces
    finally:
        await traces.stop()
        await link.close()
