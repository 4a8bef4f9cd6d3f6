"""Noticing that a client has gone where the server is not ours; with ours, see `http/test_http_answers.py`."""

from __future__ import annotations

import asyncio

import pytest

from router.web.disconnect import watch_for_disconnect

pytestmark = pytest.mark.anyio

GONE = {"type": "http.disconnect"}


class Told:
    """Counts the calls, and lets a test wait for one."""

    def __init__(self) -> None:
        self.times = 0
        self.event = asyncio.Event()

    def __call__(self) -> None:
        self.times += 1
        self.event.set()


async def test_a_server_that_says_so_in_receive():
    """Told once, when it happens and not before."""
    event, told = asyncio.Event(), Told()

    async def receive():
        await event.wait()
        return GONE

    end = watch_for_disconnect(receive, told)
    await asyncio.sleep(0)
    assert told.times == 0
    event.set()
    await asyncio.wait_for(told.event.wait(), 5)
    end()
    assert told.times == 1


async def test_a_message_that_is_no_disconnect_is_none():
    """A server may still hand out an empty piece of body."""

    async def receive():
        return {"type": "http.request", "body": b""}

    told = Told()
    end = watch_for_disconnect(receive, told)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    end()
    assert told.times == 0


async def test_a_connection_error_is_a_disconnect():
    """Servers of ASGI 2.4 say it so."""

    async def receive():
        await asyncio.sleep(0)
        raise ConnectionResetError

    told = Told()
    end = watch_for_disconnect(receive, told)
    await asyncio.wait_for(told.event.wait(), 5)
    end()


async def test_nothing_is_called_after_the_watch_has_ended():
    """Not even when the event had been set already; the coroutine is closed."""
    event, told = asyncio.Event(), Told()
    is_closed = False

    async def receive():
        nonlocal is_closed
        try:
            await event.wait()
        finally:
            is_closed = True
        return GONE

    end = watch_for_disconnect(receive, told)
    await asyncio.sleep(0)
    event.set()
    end()
    for _ in range(3):
        await asyncio.sleep(0)
    assert told.times == 0
    assert is_closed
