"""A flight by itself: who holds it up, who is cut off, and what they read."""

from __future__ import annotations

import asyncio

import pytest

from router.serve import flight as room
from router.serve.exchange import ClientWatch, Exchange, Incoming, Stopwatch
from router.serve.flight import Flight
from router.serve.headers import Credential
from router.trace.record import Trace

pytestmark = pytest.mark.anyio


def exchange() -> Exchange:
    incoming = Incoming("POST", b"/", b"", [], b"", Credential(b"", b""), None, "", "")
    return Exchange(incoming, Trace("0" * 32, 0), ClientWatch(), Stopwatch(lambda: 0.0))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_only_who_stands_still_is_cut_off(monkeypatch):
    """A slow but steady reader is waited for, however far behind it is; the one that reads nothing hears why."""
    monkeypatch.setattr(room, "_MOST_BEHIND", 10)
    monkeypatch.setattr(room, "_MOST_AT_ONCE", 1)
    flight = Flight(100, Trace("0" * 32, 0))
    fast, steady, still = (flight.listen(exchange()) for _ in range(3))
    for _ in range(20):
        flight.feed(b"x" * 10)
    for _ in range(20):
        await fast.read()
    waiting = asyncio.ensure_future(flight.room())
    await turns()
    places = {listener: listener.at for listener in (fast, steady, still)}
    await steady.read()
    flight._cut_laggards(places)  # what the timer does
    await turns()
    assert not waiting.done()
    assert b"event: error" in await still.read()
    assert await still.read() == b""
    while not waiting.done():
        assert await steady.read() == b"x" * 10
        await turns()


@pytest.mark.parametrize(
    "last", [b'data: {"text":"caf\xc3', b"data: \xf0\x9f\x8c", b"data: x", b"data: x\n", b"data: \xe2"]
)
async def test_an_error_behind_a_cut_line_can_be_read_strictly(last):
    """A character that was cut is filled up: a strict decoder reaches the error event."""
    flight = Flight(1, Trace("0" * 32, 0))
    slow, other = flight.listen(exchange()), flight.listen(exchange())
    flight.feed(b"event: x\n" + last)
    got = await slow.read()
    flight.feed(b"more")
    await other.read()
    flight._cut_laggards({slow: slow.at, other: 0})
    text = (got + await slow.read()).decode()
    assert "\nevent: error\ndata: {" in text
    assert text.endswith("\n\n")


async def test_a_private_flight_keeps_nobody_but_its_leader():
    """The others go on as soon as that is known; the leader waits for what comes."""
    flight = Flight(100, Trace("0" * 32, 0))
    leader, follower = flight.listen(exchange(), is_leader=True), flight.listen(exchange())
    waiting = [asyncio.ensure_future(each.landed()) for each in (leader, follower)]
    await turns()
    flight.close_to_others()
    await turns()
    assert [each.done() for each in waiting] == [False, True]
    assert waiting[1].result() is None
    waiting[0].cancel()


async def test_waiting_has_an_end():
    """Within the time given, or not at all."""
    flight = Flight(100, Trace("0" * 32, 0))
    clock = asyncio.get_running_loop().time
    company = exchange()
    company.clock = Stopwatch(clock)
    assert await flight.listen(company).landed(0.01) is None
