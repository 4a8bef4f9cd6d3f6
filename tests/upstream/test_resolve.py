"""Names and addresses (F3, S12): looked up beside the loop, tried in order, never led to a stranger in the house."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import ExitStack

import pytest
from kit.raw_upstream import Peer, raw_upstream
from kit.upstream_calls import call, fetch

from router.errors import UpstreamUnreachable
from router.seams import Deadlines
from router.upstream.dial import _asked
from router.upstream.http1 import Http1Upstream
from router.upstream.resolve import FAILED_S, FRESH_S, STALE_S, NotAllowed, Resolver, is_allowed, is_local_name

pytestmark = pytest.mark.anyio


class Names:
    """A name service of our own: what it says, how often it was asked, and whether it hangs."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked = 0
        self.threads: set[str] = set()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self, host: str, port: object, **_: object) -> list[tuple[object, ...]]:
        self.asked += 1
        self.threads.add(threading.current_thread().name)
        self.may_answer.wait(20)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in self.addresses]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def plain(peer: Peer) -> None:
    while True:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")


def resolver(names: Names, clock: Clock, name: str = "api.example.com", *, private: bool = True) -> Resolver:
    return Resolver(name, takes_private=private, look_up=names, clock=clock)


@pytest.mark.parametrize(
    ("address", "public", "private"),
    [("93.184.216.34", True, True), ("2606:2800:220:1::1", True, True), ("10.0.0.7", False, True),
     ("127.0.0.1", False, True), ("192.168.1.1", False, True), ("172.16.5.4", False, True), ("::1", False, True),
     ("fd12::1", False, True), ("100.64.0.1", False, True), ("169.254.169.254", False, False),
     ("fe80::1%eth0", False, False), ("fd00:ec2::254", False, False), ("::ffff:169.254.169.254", False, False),
     ("::ffff:10.0.0.1", False, True), ("0.0.0.0", False, False), ("224.0.0.1", False, False),
     ("64:ff9b::a9fe:a9fe", False, False), ("64:ff9b::a00:1", False, True), ("64:ff9b::5db8:d822", True, True),
     ("2002:a9fe:a9fe::1", False, False), ("2002:a00:1::1", False, True), ("::a9fe:a9fe", False, False)],
)  # fmt: skip
def test_where_a_name_may_lead(address, public, private):
    """A public name to public addresses only; a name of the house to private ones too; none to a metadata address."""
    assert is_allowed(address, takes_private=False) is public
    assert is_allowed(address, takes_private=True) is private


@pytest.mark.parametrize(
    ("name", "is_local"),
    [("localhost", True), ("simulator", True), ("router.default.svc.cluster.local", True), ("gw.internal", True),
     ("api.anthropic.com", False), ("gateway.corp.example", False), ("internal.example.com", False),
     ("LOCALHOST.", True), ("notlocal", True), ("a.nonlocal", False)],
)  # fmt: skip
def test_which_names_are_of_the_house(name, is_local):
    """A single word, or an ending that the public name service does not have."""
    assert is_local_name(name) is is_local


async def test_one_look_up_serves_all_who_ask():
    """A hundred connections, one question; then the answer is known for a while, and asked again after it."""
    names, clock = Names("10.0.0.1", "10.0.0.2"), Clock()
    r = resolver(names, clock)
    found = await asyncio.gather(*(r.addresses() for _ in range(100)))
    assert found == [["10.0.0.1", "10.0.0.2"]] * 100
    assert names.asked == 1
    assert r.fresh() == ["10.0.0.1", "10.0.0.2"]
    clock.now = FRESH_S
    names.addresses = ["10.0.0.3"]
    assert r.fresh() is None
    assert r.stale() == ["10.0.0.1", "10.0.0.2"]
    assert await r.addresses() == ["10.0.0.3"]
    clock.now += STALE_S
    assert r.stale() is None


async def test_an_address_where_nobody_answers_is_tried_last():
    """For a minute, look-ups between or not; those that failed longest ago come first, and one that answers is well."""
    names, clock = Names("10.0.0.1", "10.0.0.2", "10.0.0.3"), Clock()
    r = resolver(names, clock)
    await r.addresses()
    r.failed("10.0.0.1")
    assert r.fresh() == ["10.0.0.2", "10.0.0.3", "10.0.0.1"]
    clock.now = FRESH_S
    r.failed("10.0.0.2")
    assert await r.addresses() == ["10.0.0.3", "10.0.0.1", "10.0.0.2"]
    r.reached("10.0.0.2")
    assert await r.addresses() == ["10.0.0.2", "10.0.0.3", "10.0.0.1"]
    clock.now = FAILED_S
    assert await r.addresses() == names.addresses


async def test_an_upstream_that_is_far_away_is_reached_however_many_addresses_it_has(monkeypatch):
    """Eight addresses do not make eight times less patience with each."""
    async with raw_upstream(plain) as server:
        loop = asyncio.get_running_loop()
        connect = loop.create_connection

        async def far(protocol, host, port):
            await asyncio.sleep(0.1)  # the distance
            return await connect(protocol, "127.0.0.1", port)

        monkeypatch.setattr(loop, "create_connection", far)
        names = Names(*(f"127.0.0.{number}" for number in range(1, 9)))
        upstream = Http1Upstream(f"http://gateway.internal:{server.port}", look_up=names)
        assert await fetch(upstream, call(deadlines=Deadlines(connect=0.6))) == (200, b"hello")
        await upstream.close()


async def test_a_thread_that_cannot_start_is_no_end(monkeypatch):
    """What was known serves meanwhile, and the next look-up is tried again."""
    names, clock = Names("10.0.0.1"), Clock()
    r = resolver(names, clock)

    def no_start(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_start)
        with pytest.raises(OSError, match="no thread"):
            await r.addresses()
    assert await asyncio.wait_for(r.addresses(), 2) == ["10.0.0.1"]
    clock.now = FRESH_S
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_start)
        assert await _asked(r, 2.0) == ["10.0.0.1"]


async def test_a_silent_name_service_is_waited_for_once(until):
    """Later connections take the known addresses at once, while it is asked on; an answer of its ends that."""
    names = Names("127.0.0.1")
    async with raw_upstream(plain) as server:
        upstream = Http1Upstream(f"http://gateway.internal:{server.port}", look_up=names)
        limited = call(deadlines=Deadlines(connect=0.6))
        assert await fetch(upstream, limited) == (200, b"hello")
        upstream._resolver._known_at -= FRESH_S
        names.may_answer.clear()
        waits = []
        for _ in range(3):
            server.hang_up()
            started = time.monotonic()
            assert await fetch(upstream, limited) == (200, b"hello")
            waits.append(time.monotonic() - started)
        assert waits[0] >= 0.3
        assert max(waits[1:]) < 0.3
        assert names.asked == 2, "one look-up hangs, and nobody begins another"
        names.may_answer.set()
        await until(lambda: upstream._resolver.fresh() == ["127.0.0.1"])
        assert not upstream._resolver.is_silent
        await upstream.close()


async def test_a_public_name_that_leads_into_the_house_is_not_followed():
    """After it led elsewhere before, too: what was known is forgotten (S12)."""
    names, clock = Names("93.184.216.34"), Clock()
    r = resolver(names, clock, private=False)
    assert await r.addresses() == ["93.184.216.34"]
    names.addresses = ["10.0.0.1", "169.254.169.254"]
    clock.now = FRESH_S
    with pytest.raises(NotAllowed, match=r"10\.0\.0\.1, 169\.254\.169\.254, which is not a public address"):
        await r.addresses()
    assert r.stale() is None
    names.addresses = ["10.0.0.1", "93.184.216.34"]
    assert await r.addresses() == ["93.184.216.34"], "of several, those that it may lead to"


@pytest.mark.parametrize("name", ["api.example.com", "gateway.internal"])
async def test_the_refusal_reaches_the_client_as_unreachable(name):
    """Nothing is sent, trying again would not help, and the operator reads what to set; 502 for the client (S12)."""
    async with raw_upstream(plain) as server:
        names = Names("127.0.0.1")
        upstream = Http1Upstream(f"http://{name}:{server.port}", look_up=names)
        if name == "gateway.internal":
            assert await fetch(upstream) == (200, b"hello")
        else:
            with pytest.raises(UpstreamUnreachable, match="`upstream_private: allow` permits it") as caught:
                await fetch(upstream)
            assert not caught.value.retryable
            assert server.connections == 0
        await upstream.close()
        upstream = Http1Upstream(f"http://{name}:{server.port}", look_up=names, takes_private=True)
        assert await fetch(upstream) == (200, b"hello")
        await upstream.close()


async def test_an_address_in_the_url_is_the_operators_word():
    """It is not looked up, and may be any; even `localhost` needs no leave."""
    async with raw_upstream(plain) as server:
        names = Names()
        upstream = Http1Upstream(server.origin, look_up=names)
        assert await fetch(upstream) == (200, b"hello")
        assert names.asked == 0
        await upstream.close()
        upstream = Http1Upstream(server.origin.replace("127.0.0.1", "localhost"))
        assert await fetch(upstream) == (200, b"hello")
        await upstream.close()


async def test_the_next_address_is_tried_when_one_refuses_or_swallows():
    """127.0.0.2 refuses, 127.0.0.3 drops everything, 127.0.0.1 answers: within one connect limit (F3)."""
    async with raw_upstream(plain) as server:
        with ExitStack() as held:
            hole, *fillers = [held.enter_context(socket.socket()) for _ in range(4)]
            hole.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            hole.bind(("127.0.0.3", server.port))
            hole.listen(0)
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(hole.getsockname())
            names = Names("127.0.0.2", "127.0.0.3", "127.0.0.1")
            upstream = Http1Upstream(f"http://gateway.internal:{server.port}", look_up=names)
            limited = call(deadlines=Deadlines(connect=0.8))
            started = time.monotonic()
            assert await fetch(upstream, limited) == (200, b"hello")
            assert time.monotonic() - started >= 0.3, "half of the rest of the limit is for the one that swallows"
            assert upstream._resolver.fresh() == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
            server.hang_up()
            assert await fetch(upstream, limited) == (200, b"hello")
            await upstream.close()


async def test_a_name_service_that_hangs_stops_nobody_else():
    """Whoever needs it waits no longer than the connect limit; kept connections and the loop go on (F3)."""
    names = Names("127.0.0.1")
    async with raw_upstream(plain) as server:
        upstream = Http1Upstream(f"http://gateway.internal:{server.port}", look_up=names, max_connections=50)
        assert await fetch(upstream) == (200, b"hello")
        upstream._resolver._known = []
        names.may_answer.clear()
        limited = call(deadlines=Deadlines(connect=0.15))
        first, *others = [upstream.start(limited) for _ in range(20)]
        assert (await first.reply()).status == 200, "the kept connection"
        turns = 0
        waiting = asyncio.gather(*(each.reply() for each in others), return_exceptions=True)
        while not waiting.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns > 100, "the loop turned all the while"
        for failure in waiting.result():
            assert isinstance(failure, UpstreamUnreachable)
            assert "the name service did not answer" in failure.message
        assert await asyncio.to_thread(lambda: "a thread of the pool is free") is not None
        assert names.threads == {"resolver"}
        assert names.asked == 2, "nineteen waited for one look-up"
        names.may_answer.set()
        assert (await upstream.start(call()).reply()).status == 200, "and when it answers again, all is well"
        await upstream.close()


async def test_known_addresses_serve_on_while_the_name_service_fails():
    """It hangs, or says that there is no such name: for ten minutes the last answer does."""
    names = Names("127.0.0.1")
    async with raw_upstream(plain) as server:
        upstream = Http1Upstream(f"http://gateway.internal:{server.port}", look_up=names)
        limited = call(deadlines=Deadlines(connect=0.2))
        assert await fetch(upstream, limited) == (200, b"hello")
        for hangs in (True, False):
            server.hang_up()
            upstream._resolver._known_at -= FRESH_S
            names.addresses = []
            if hangs:
                names.may_answer.clear()
            assert await fetch(upstream, limited) == (200, b"hello")
            names.may_answer.set()
        await upstream.close()


async def test_a_name_that_moves_is_followed():
    """A new address, and nobody at the old one any more (F3)."""
    names = Names("127.0.0.2")
    async with raw_upstream(plain) as server:
        upstream = Http1Upstream(f"http://gateway.internal:{server.port}", look_up=names)
        with pytest.raises(UpstreamUnreachable):
            await fetch(upstream)
        names.addresses = ["127.0.0.1"]
        assert await fetch(upstream) == (200, b"hello"), "a failure makes it ask again at once"
        await upstream.close()


async def test_closing_does_not_wait_for_the_name_service(until):
    """A router that stops while a look-up hangs stops."""
    names = Names("127.0.0.1")
    names.may_answer.clear()
    upstream = Http1Upstream("http://gateway.internal:9", look_up=names)
    pending = upstream.start(call())
    waiting = asyncio.gather(pending.reply(), return_exceptions=True)
    await until(lambda: names.asked == 1)
    started = time.monotonic()
    await upstream.close()
    assert time.monotonic() - started < 1
    assert isinstance((await waiting)[0], UpstreamUnreachable)
    names.may_answer.set()
