"""The pool and its connections: reuse, stale ones, aborts at any point, limits, deadlines."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from kit.raw_upstream import Peer, raw_upstream
from kit.upstream_calls import call, fetch, read_all

from router.errors import ClientGone, UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from router.seams import Deadlines
from router.upstream.http1 import Http1Upstream

pytestmark = pytest.mark.anyio

PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
Until = Callable[[Callable[[], bool]], Awaitable[None]]


async def serve_plainly(peer: Peer) -> None:
    """Answer every request of the connection."""
    while True:
        await peer.request()
        peer.send(PLAIN)


async def test_a_connection_is_used_again():
    """One connection serves calls that follow one another."""
    async with raw_upstream(serve_plainly) as server:
        upstream = Http1Upstream(server.origin)
        for _ in range(20):
            assert await fetch(upstream) == (200, b"hello")
        assert server.connections == 1
        assert upstream.stats() == {
            "open": 1,
            "idle": 1,
            "opening": 0,
            "waiting": 0,
            "opened": 1,
            "reused": 19,
            "resent": 0,
            "aborted": 0,
        }
        await upstream.close()
        assert upstream.stats()["open"] == 0


async def test_no_more_than_max_idle_connections_are_kept():
    """A burst does not leave its connections behind."""
    async with raw_upstream(serve_plainly) as server:
        upstream = Http1Upstream(server.origin, max_idle=3)
        assert await asyncio.gather(*(fetch(upstream) for _ in range(10))) == [(200, b"hello")] * 10
        assert upstream.stats()["open"] == upstream.stats()["idle"] == 3
        await upstream.close()


async def test_an_idle_connection_closes_itself_after_a_while(until: Until):
    """Old connections go without anybody asking."""
    async with raw_upstream(serve_plainly) as server:
        upstream = Http1Upstream(server.origin, idle_ttl_s=0.02)
        await fetch(upstream)
        await until(lambda: upstream.stats()["open"] == 0)
        await until(lambda: server.open == 0)
        await upstream.close()


async def test_an_idle_connection_closed_by_the_upstream_is_forgotten(until: Until):
    """A close that is seen in time costs nothing (F25)."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(PLAIN)

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        for _ in range(3):
            await fetch(upstream)
            await until(lambda: upstream.stats()["open"] == 0)
        assert upstream.stats()["opened"] == 3
        await upstream.close()


async def test_unasked_bytes_on_an_idle_connection_close_it(until: Until):
    """What nobody asked for must not become the next answer (F26)."""
    go = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(PLAIN)
        await go.wait()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad")
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        await fetch(upstream)
        assert upstream.stats()["idle"] == 1
        go.set()
        await until(lambda: upstream.stats()["open"] == 0)
        await upstream.close()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("size", [2, 3_000_000])
async def test_a_stale_connection_is_replaced_unseen(how: str, size: int):
    """A reused connection that ends before any byte of the answer costs the client nothing (F25)."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(PLAIN)
        if peer.number % 2:
            await peer.head()  # the second request reaches a connection that is about to end
            if how == "reset":
                peer.reset()
            return
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        assert await fetch(upstream) == (200, b"hello")
        assert await fetch(upstream, call(b"x" * size)) == (200, b"hello")
        assert upstream.stats()["resent"] == 1
        assert server.connections == 2
        await upstream.close()


async def test_a_fresh_connection_that_ends_unanswered_is_not_tried_again():
    """The request may have been charged, so that trying again is the flow's decision (F17, R4)."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.reset()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        with pytest.raises(UpstreamBroken, match="before it answered") as caught:
            await fetch(upstream)
        assert not caught.value.retryable
        assert server.connections == 1
        await upstream.close()


async def test_a_reused_connection_that_ends_inside_the_answer_is_not_tried_again():
    """After the first byte the request has been taken (F25, R4)."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(PLAIN)
        await peer.request()
        peer.send(b"HTTP/1.1 2")

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        await fetch(upstream)
        with pytest.raises(UpstreamBroken):
            await fetch(upstream)
        assert server.connections == 1
        await upstream.close()


async def test_an_abort_while_connecting_frees_its_slot(until: Until):
    """Whatever had begun for a call ends with it (F32)."""
    async with raw_upstream(serve_plainly) as server:
        upstream = Http1Upstream(server.origin)
        pending = upstream.start(call())
        assert upstream.stats()["opening"] == 1
        pending.abort()
        pending.abort()
        with pytest.raises(ClientGone):
            await pending.reply()
        await until(lambda: upstream.stats()["opening"] == 0)
        assert upstream.stats()["open"] == 0
        assert upstream.stats()["aborted"] == 1
        await upstream.close()


async def test_an_abort_wakes_whoever_waits(until: Until):
    """A pending `reply()` and a pending `read()` end with `ClientGone`, and the upstream sees the close (F31)."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        if peer.number == 2:
            peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        pending = upstream.start(call())
        waiting = asyncio.ensure_future(pending.reply())
        await until(lambda: len(server.requests) == 1)
        pending.abort()
        with pytest.raises(ClientGone):
            await waiting
        reply = await upstream.start(call()).reply()
        assert await reply.read() == b"abc"
        reading = asyncio.ensure_future(reply.read())
        await asyncio.sleep(0)
        reply.abort()
        with pytest.raises(ClientGone):
            await reading
        with pytest.raises(ClientGone):
            await reply.read()
        await until(lambda: server.open == 0)
        assert upstream.stats()["open"] == 0
        await upstream.close()


async def test_cancelling_the_one_who_waits_aborts_the_call(until: Until):
    """A cancelled coroutine leaves nothing running behind it (R7)."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        waiting = asyncio.ensure_future(upstream.start(call()).reply())
        await until(lambda: len(server.requests) == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: server.open == 0)
        assert upstream.stats()["open"] == 0
        await upstream.close()


async def test_an_abort_after_the_end_changes_nothing():
    """`abort()` in a `finally` is free: the connection of a complete answer stays in the pool."""
    async with raw_upstream(serve_plainly) as server:
        upstream = Http1Upstream(server.origin)
        reply = await upstream.start(call()).reply()
        assert await read_all(reply) == b"hello"
        reply.abort()
        assert await reply.read() == b""
        assert upstream.stats()["idle"] == 1
        assert upstream.stats()["aborted"] == 0
        await upstream.close()


async def test_four_thousand_aborts_lose_no_slot(until: Until):
    """After a storm of aborts at every stage the pool is as good as new (F32)."""
    dice = random.Random(7)
    async with raw_upstream(serve_plainly) as server:
        upstream = Http1Upstream(server.origin, max_connections=50)
        for _ in range(80):
            pendings = [upstream.start(call()) for _ in range(50)]
            for _ in range(dice.randrange(8)):
                await asyncio.sleep(0)
            for pending in pendings:
                pending.abort()
                if dice.random() < 0.2:
                    pending.abort()
        await until(lambda: upstream.stats()["opening"] == 0 and upstream.stats()["waiting"] == 0)
        assert await asyncio.gather(*(fetch(upstream) for _ in range(50))) == [(200, b"hello")] * 50
        assert upstream.stats()["open"] <= 50
        await upstream.close()
        await until(lambda: server.open == 0)


async def test_every_answer_is_its_own_under_random_aborts():
    """2,000 calls with a nonce each, a third of them aborted at random: no answer is another's (F26)."""
    dice = random.Random(11)

    async def behave(peer: Peer) -> None:
        while True:
            nonce = (await peer.request()).body
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
            half = len(nonce) // 2
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(nonce), nonce[:half])
            await asyncio.sleep(0)
            peer.send(nonce[half:])

    async def one(number: int) -> bool:
        nonce = b"nonce-%d" % number
        pending = upstream.start(call(nonce))
        is_aborted = dice.random() < 0.33
        if is_aborted:
            turns = dice.randrange(12)

            async def abort_later() -> None:
                for _ in range(turns):
                    await asyncio.sleep(0)
                pending.abort()

            aborting = asyncio.ensure_future(abort_later())
        try:
            reply = await pending.reply()
            body = await read_all(reply)
        except ClientGone:
            assert is_aborted
            return False
        finally:
            if is_aborted:
                await aborting
        assert body == nonce
        return True

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin, max_connections=40)
        answered = 0
        for start in range(0, 2000, 100):
            answered += sum(await asyncio.gather(*(one(number) for number in range(start, start + 100))))
        assert answered > 1200
        assert upstream.stats()["reused"] > 500
        await upstream.close()


async def test_calls_over_the_limit_wait_in_line():
    """At the limit of connections calls are served one after the other, first come first served."""
    order: list[bytes] = []

    async def behave(peer: Peer) -> None:
        while True:
            order.append((await peer.request()).body)
            peer.send(PLAIN)

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin, max_connections=1)
        bodies = [b"%d" % number for number in range(10)]
        assert await asyncio.gather(*(fetch(upstream, call(body)) for body in bodies)) == [(200, b"hello")] * 10
        assert order == bodies
        assert server.connections == 1
        await upstream.close()


async def test_waiting_in_line_has_an_end(until: Until):
    """Who finds no free connection within the connect deadline has sent nothing, and may try again (R1)."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin, max_connections=1)
        first = upstream.start(call())
        await until(lambda: len(server.requests) == 1)
        with pytest.raises(UpstreamUnreachable, match="in use") as caught:
            await fetch(upstream, call(deadlines=Deadlines(connect=0.02)))
        assert caught.value.retryable
        given_up = upstream.start(call())
        given_up.abort()
        assert upstream.stats()["waiting"] == 0
        first.abort()
        await upstream.close()


async def test_no_answer_within_the_first_byte_deadline_is_a_timeout(until: Until):
    """An upstream that takes the request and says nothing is left (F11)."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        with pytest.raises(UpstreamTimeout, match="did not answer") as caught:
            await fetch(upstream, call(deadlines=Deadlines(first_byte=0.03)))
        assert not caught.value.retryable
        await until(lambda: server.open == 0)
        await upstream.close()


async def test_a_head_that_drips_does_not_move_the_first_byte_deadline():
    """Single bytes are no answer (F12)."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nx: ")
        while True:
            await peer.send_apart(b"a")

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        with pytest.raises(UpstreamTimeout, match="did not answer"):
            await fetch(upstream, call(deadlines=Deadlines(first_byte=0.03, idle=60)))
        await upstream.close()


async def test_silence_inside_an_answer_is_a_timeout():
    """A stream that stalls ends within the idle limit (F13); what had come is delivered."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello")
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        reply = await upstream.start(call(deadlines=Deadlines(idle=0.03))).reply()
        assert await reply.read() == b"hello"
        with pytest.raises(UpstreamTimeout, match="silent inside its answer"):
            await reply.read()
        assert upstream.stats()["open"] == 0
        await upstream.close()


async def test_a_reader_slower_than_the_idle_limit_is_not_the_upstreams_fault(until: Until):
    """While it is we who do not read, the upstream cannot be silent (F33)."""
    total = 20_000_000

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total, b"x" * total)
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        loop = asyncio.get_running_loop()
        reply = await upstream.start(call(deadlines=Deadlines(idle=0.05))).reply()
        later = loop.time() + 0.2
        await until(lambda: loop.time() > later)
        assert len(await read_all(reply)) == total
        await upstream.close()


async def test_a_deadline_longer_ago_than_the_timer_still_holds(until: Until):
    """A connection keeps one timer: a short deadline after a long one fires in time."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(PLAIN)
        await peer.request()
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        await fetch(upstream, call(deadlines=Deadlines(first_byte=600)))
        async with asyncio.timeout(3):
            with pytest.raises(UpstreamTimeout):
                await fetch(upstream, call(deadlines=Deadlines(first_byte=0.02)))
        await upstream.close()


async def test_closing_ends_everything_under_way(until: Until):
    """Nothing waits for an upstream that has been closed, and every socket is released (R7)."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin, max_connections=2)
        calls = [asyncio.ensure_future(fetch(upstream)) for _ in range(4)]
        await until(lambda: len(server.requests) == 2)
        await upstream.close()
        results = await asyncio.gather(*calls, return_exceptions=True)
        kinds = sorted(type(result).__name__ for result in results)
        assert kinds == ["UpstreamBroken", "UpstreamBroken", "UpstreamUnreachable", "UpstreamUnreachable"]
        with pytest.raises(UpstreamUnreachable, match="shutting down"):
            await fetch(upstream)
        await until(lambda: server.open == 0)
        assert not any(upstream.stats()[name] for name in ("open", "idle", "opening", "waiting"))


async def test_what_must_not_be_done_twice_has_a_connection_of_its_own():
    """A kept connection stays for others; where there is no room for another, it makes room (F29)."""

    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            peer.send(PLAIN)

    for room, left_open in ((5, 2), (1, 1)):
        async with raw_upstream(behave) as server:
            upstream = Http1Upstream(server.origin, max_connections=room)
            await fetch(upstream)
            await fetch(upstream, call(is_once=True))
            assert server.connections == 2
            assert upstream.stats()["open"] == left_open
            await upstream.close()


async def test_what_must_not_be_done_twice_gets_no_used_connection_out_of_the_line_either():
    """Nobody can tell whether a used one still carries: it makes room, and those behind are served in order (F29)."""
    async with raw_upstream(serve_plainly) as server:
        upstream = Http1Upstream(server.origin, max_connections=1)
        kinds = [False, True, False, True, True, False]
        calls = [upstream.start(call(target=b"/%d" % number, is_once=once)) for number, once in enumerate(kinds)]
        for each in calls:
            assert await read_all(await each.reply()) == b"hello"
        assert [request.line.split()[1] for request in server.requests] == [b"/%d" % number for number in range(6)]
        assert server.connections == 1 + sum(kinds)
        assert upstream.stats()["open"] == 1
        await upstream.close()
