"""Noticing that a client has gone, whichever way a server's `receive` waits."""

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


async def test_a_receive_that_waits_on_an_event():
    """As uvicorn's does: told once, when it happens and not before."""
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


async def test_a_receive_that_waits_in_other_ways():
    """Several futures after each other, bare yields, a future of its own, a task."""

    async def several():
        for _ in range(3):
            await asyncio.get_running_loop().run_in_executor(None, int)
            await asyncio.sleep(0)
        return GONE

    def plain():
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, GONE)
        return future

    def task():
        return asyncio.get_running_loop().create_task(several())

    for receive in (several, plain, task):
        told = Told()
        end = watch_for_disconnect(receive, told)
        await asyncio.wait_for(told.event.wait(), 5)
        end()
        assert told.times == 1


async def test_a_receive_that_is_done_at_once():
    """The client had gone before anybody looked."""

    async def receive():
        return GONE

    told = Told()
    watch_for_disconnect(receive, told)()
    assert told.times == 1


async def test_a_message_that_is_no_disconnect_is_none():
    """A server may still hand out an empty piece of body."""

    async def receive():
        return {"type": "http.request", "body": b""}

    told = Told()
    watch_for_disconnect(receive, told)()
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


@pytest.mark.parametrize("is_late", [False, True])
async def test_nothing_is_called_after_the_watch_has_ended(is_late):
    """Not even when the event had been set already and the call was on its way; the coroutine is closed."""
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
    if is_late:
        event.set()
    end()
    event.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert told.times == 0
    assert is_closed
    end()
