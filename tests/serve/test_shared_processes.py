"""Two routers as processes over one real Redis: one upstream call for all, and whoever dies breaks nobody else."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from kit.driven_upstream import Call, DrivenUpstream
from kit.processes import RouterProcess, router
from kit.raw_upstream import Peer, raw_upstream
from kit.redis_server import RedisServer
from kit.shared_store import entries, members, say
from kit.stage import WAIT_S, Wire, always, error, events, http, message, until

from router.cache.redis import LEASE_S

pytestmark = pytest.mark.anyio

POLICY = always("cache: {ttl: 1h}", route="as-asked")
PIECES = events(*(f"part {number} " for number in range(40)))
HALF = len(PIECES) // 2
BODY = b"".join(PIECES)
FIRST = b"".join(PIECES[:HALF])

Pair = tuple[RouterProcess, RouterProcess, "Upstream"]


class Upstream(DrivenUpstream):
    """Driven by the test, but for a question that was asked before: that is answered at once, with `again`."""

    def __init__(self, again: bytes | None) -> None:
        super().__init__()
        self._again = again

    async def behave(self, peer: Peer) -> None:
        """See `DrivenUpstream`."""
        call = Call(peer, await peer.request())
        is_repeated = any(other.request.body == call.request.body for other in self.calls)
        self.calls.append(call)
        if is_repeated:
            await (call.end(*PIECES) if self._again is None else call.answer(self._again))
        await call.run()


@asynccontextmanager
async def pair(redis: RedisServer, folder: Path, again: bytes | None = None) -> AsyncIterator[Pair]:
    """Two routers that share a cache, before one upstream; `again` None: the stream of these tests."""
    up = Upstream(again)
    async with (
        raw_upstream(up.behave) as upstream,
        router(folder, upstream.origin, policy=POLICY, cache=redis.url, name="one") as one,
        router(folder, upstream.origin, policy=POLICY, cache=redis.url, name="other") as other,
    ):
        await members(redis, 2)
        yield one, other, up


async def one_call(up: Upstream, attempt: Callable[[str], Awaitable[None]]) -> None:
    """Make the attempt, with a text, until it needed one upstream call; three times at most.

    A process that the machine holds up for longer than it waits for Redis makes a call of its own: two then, not more.
    """
    for number in range(3):
        before = up.asked
        await attempt(f"attempt {number}")
        assert up.asked - before <= 2
        if up.asked - before == 1:
            return
    raise AssertionError("no attempt was one call")


async def streams(at: RouterProcess, count: int, text: str = "Hello") -> list[Wire]:
    return await asyncio.gather(*(at.begin(text=text, stream=True) for _ in range(count)))


async def whole(wires: list[Wire]) -> set[bytes]:
    """The different bodies that these clients get; each must be complete."""
    replies = await asyncio.gather(*(wire.reply() for wire in wires))
    assert {(reply.status, reply.is_whole) for reply in replies} == {(200, True)}
    for wire in wires:
        await wire.close()
    return {reply.body for reply in replies}


async def figure(at: RouterProcess, name: str) -> float:
    return (await at.figures())[f'router_cache{{stat="{name}"}}']


async def waiting(at: RouterProcess, more_than: float = 0) -> None:
    """Wait until this router has waited for the call of another one so many times."""
    async with asyncio.timeout(WAIT_S):
        while await figure(at, "waits") <= more_than:
            pass


async def hear_half(leader: Wire) -> None:
    await leader.head()
    data = b""
    while len(data) < len(FIRST):
        data += await leader.chunk()
    assert data == FIRST


async def test_two_hundred_streams_over_two_processes_are_one_call(redis_server, tmp_path, capsys):
    """200 equal byte streams, one upstream call, one bill; afterwards both processes have the answer."""
    async with pair(redis_server, tmp_path) as (one, other, up):

        async def attempt(text: str) -> None:
            before, started_s = up.asked, time.monotonic()
            wires = [*await streams(one, 100, text), *await streams(other, 100, text)]
            call = await up.call(before + 1)
            await call.stream(*PIECES[:HALF])
            await call.end(*PIECES[HALF:])
            assert await whole(wires) == {BODY}
            took_s = time.monotonic() - started_s
            say(capsys, f"200 streams, 2 processes: {up.asked - before} upstream call, {took_s:.2f} s")
            for at in (one, other):
                assert (await at.messages(text=text, stream=True)).header("x-router-cache") == "hit"

        await one_call(up, attempt)
        rows = [row for at in (one, other) for row in await at.traces()]
        assert sum(float(row["cost_usd"]) for row in rows) == pytest.approx(up.asked * 0.0003)
        assert sum(float(row["saved_usd"]) for row in rows) == pytest.approx((len(rows) - up.asked) * 0.0003)
        assert {row["cache"] for row in rows} <= {"miss", "coalesced", "hit"}


async def test_what_is_not_kept_is_handed_to_those_who_wait_in_the_other_process(redis_server, tmp_path):
    """A cut-off answer is one call for all who asked meanwhile."""
    cut_off = message("cut off", stop="max_tokens")
    async with pair(redis_server, tmp_path, http(cut_off)) as (one, other, up):

        async def attempt(text: str) -> None:
            leading = asyncio.gather(*(one.messages(text=text) for _ in range(10)))
            call, waits = await up.call(up.asked + 1), await figure(other, "waits")
            following = asyncio.gather(*(other.messages(text=text) for _ in range(10)))
            await waiting(other, waits)
            await call.answer(http(cut_off))
            assert {reply.body for reply in [*await leading, *await following]} == {cut_off}

        await one_call(up, attempt)
        assert entries(redis_server) == []


async def test_a_leaders_failure_lets_the_other_process_lead(redis_server, tmp_path):
    """Those who waited make one call of their own, and its answer is kept."""
    async with pair(redis_server, tmp_path, http(message("good"))) as (one, other, up):
        leading = asyncio.ensure_future(one.messages())
        call = await up.call(1)
        following = asyncio.gather(*(other.messages() for _ in range(10)))
        await waiting(other)
        await call.answer(error("529 O", "overloaded_error"))
        assert (await leading).status == 529
        assert {reply.json()["content"][0]["text"] for reply in await following} == {"good"}
        assert (await one.messages()).header("x-router-cache") == "hit"
        assert up.asked == 2


async def test_the_leaders_client_leaves_half_way_and_nobody_else_notices(redis_server, tmp_path, capsys):
    """199 equal streams, in both processes, and still one call."""
    async with pair(redis_server, tmp_path) as (one, other, up):

        async def attempt(text: str) -> None:
            before, waits = up.asked, await figure(other, "waits")
            [leader] = await streams(one, 1, text)
            call = await up.call(before + 1)
            wires = [*await streams(one, 99, text), *await streams(other, 100, text)]
            async with asyncio.timeout(WAIT_S):
                while await figure(other, "waits") <= waits and up.asked == before + 1:
                    pass
            await call.stream(*PIECES[:HALF])
            await hear_half(leader)
            await leader.close()
            await call.end(*PIECES[HALF:])
            assert await whole(wires) == {BODY}
            assert not call.gone.is_set()
            calls = up.asked - before
            say(capsys, f"the leader's client killed half-way: {len(wires)} equal streams, {calls} upstream call")

        await one_call(up, attempt)


@pytest.mark.parametrize("fate", ["killed", "frozen"])
async def test_a_leading_process_that_dies_or_hangs_holds_nobody_up(redis_server, tmp_path, capsys, fate):
    """The other process takes over when the lease is over: its streams are whole and equal; two calls in all."""
    async with pair(redis_server, tmp_path) as (one, other, up):
        [leader] = await streams(one, 1)
        call = await up.call()
        wires = await streams(other, 100)
        await waiting(other)
        await call.stream(*PIECES[:HALF])
        await hear_half(leader)
        started_s = time.monotonic()
        one.signal(signal.SIGKILL if fate == "killed" else signal.SIGSTOP)
        await up.call(2)
        took_s = time.monotonic() - started_s
        assert await whole(wires) == {BODY}
        say(capsys, f"leading process {fate} half-way: another leads after {took_s:.2f} s, {up.asked} upstream calls")
        assert took_s < LEASE_S + 1.5
        if fate == "killed":
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await leader.chunk()  # an honest cut: no end of the body
        else:
            one.signal(signal.SIGCONT)
            await call.end(*PIECES[HALF:])
            data = b""
            while chunk := await leader.chunk():
                data += chunk
            assert data == b"".join(PIECES[HALF:])
        assert (await other.messages(stream=True)).header("x-router-cache") == "hit"
        assert up.asked == 2


async def test_without_redis_those_who_wait_ask_for_themselves(redis_server, tmp_path, capsys):
    """Redis is killed while 50 wait for the other process's call: no error, and one more call for all of them."""
    async with pair(redis_server, tmp_path) as (one, other, up):
        [leader] = await streams(one, 1)
        call = await up.call()
        wires = await streams(other, 50)
        await waiting(other)
        started_s = time.monotonic()
        redis_server.kill()
        await up.call(2)
        took_ms = (time.monotonic() - started_s) * 1000
        say(capsys, f"redis killed: who waits asks for itself after {took_ms:.0f} ms")
        await call.end(*PIECES)
        assert await whole([leader, *wires]) == {BODY}
        assert up.asked == 2


async def test_a_purge_is_in_force_in_every_process_when_it_returns(redis_server, tmp_path, capsys):
    """Also for the copies in the processes themselves: neither replays what was purged at the other."""
    async with pair(redis_server, tmp_path, http(message("again"))) as (one, other, up):
        asking = asyncio.ensure_future(one.messages())
        await (await up.call(1)).answer(http(message()))
        await asking
        await until(lambda: bool(entries(redis_server)))
        for at in (one, other):
            async with asyncio.timeout(WAIT_S):
                while (hit := await at.messages()).header("x-router-cache") != "hit":
                    pass
            assert hit.body in (message(), message("again"))
        before, started_s = up.asked, time.monotonic()
        report = json.loads(await one.admin("/cache/purge", {"all": True}))
        took_ms = (time.monotonic() - started_s) * 1000
        say(capsys, f"purged in two processes after {took_ms:.0f} ms: {report['deleted']} deleted")
        assert (report["told"], report["unheard"], entries(redis_server)) == (2, [], [])
        for at in (other, one):
            assert (await at.messages()).json()["content"][0]["text"] == "again"
        assert up.asked > before
