"""An upstream that says only what the test tells it to, call by call, so that a test can act between two bytes.

    async with driven(policy) as (s, up):
        asking = asyncio.gather(s.messages(stream=True), s.messages(stream=True))
        call = await up.call(1)                    # the first request that reached it
        await call.stream(*pieces)                 # head once, then each piece as a chunk of its own
        await call.end()
        assert up.asked == 1

A call that is ended closes its connection. `call.gone` is set when the router let the call go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from kit.raw_upstream import Peer, RawRequest
from kit.stage import KEY, SSE_HEAD, WAIT_S, Stage, Wire, chunked, request_body, stage, until


class Call:
    """One request that reached the upstream, to be answered by the test."""

    def __init__(self, peer: Peer, request: RawRequest) -> None:
        self.request = request
        self.sent = 0  # bytes of the streamed body that the system has taken
        self.gone = asyncio.Event()
        self._peer = peer
        self._over = asyncio.Event()
        self._has_begun = False

    async def stream(self, *pieces: bytes) -> None:
        """Send these pieces of a stream; returns when the system has taken them."""
        if not self._has_begun:
            self._has_begun = True
            self._peer.send(SSE_HEAD)
        for piece in pieces:
            self._peer.send(chunked(piece))
            await self._peer.writer.drain()
            self.sent += len(piece)

    async def end(self, *last: bytes) -> None:
        """The end of the stream, behind these pieces."""
        await self.stream(*last)
        self._peer.send(b"0\r\n\r\n")
        self._over.set()

    async def answer(self, reply: bytes) -> None:
        """Send a whole answer, status line first."""
        self._peer.send(reply)
        await self._peer.writer.drain()
        self._over.set()

    def cut(self) -> None:
        """Close the connection in the middle."""
        self._over.set()

    def reset(self) -> None:
        """Break the connection."""
        self._peer.reset()
        self._over.set()

    async def run(self) -> None:
        """Keep the connection until the call is over, or the other side closes it."""
        loop = asyncio.get_running_loop()
        waits = {loop.create_task(self._peer.closed()), loop.create_task(self._over.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not self._over.is_set():
                self.gone.set()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


class DrivenUpstream:
    """Calls in the order in which they came."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    @property
    def asked(self) -> int:
        """How many requests have come."""
        return len(self.calls)

    async def behave(self, peer: Peer) -> None:
        """The script of each connection; it carries one request."""
        call = Call(peer, await peer.request())
        self.calls.append(call)
        await call.run()

    async def call(self, number: int = 1) -> Call:
        """The call with this number, from 1; waits until it has come."""
        await until(lambda: len(self.calls) >= number, WAIT_S)
        return self.calls[number - 1]


@asynccontextmanager
async def driven(policy: str, **settings: Any) -> AsyncIterator[tuple[Stage, DrivenUpstream]]:
    """A router before a driven upstream; at the end no shared call and no task of one may be left."""
    up = DrivenUpstream()
    async with stage(up.behave, policy=policy, **settings) as s:
        yield s, up
        await until(lambda: s.app.pipeline.stats()["under_way"] == 0)
        assert not [task for task in asyncio.all_tasks() if "_carry" in repr(task.get_coro())]


async def under_way(s: Stage, requests: int) -> None:
    """Wait until so many requests have been read and not yet answered."""
    await until(lambda: len(s.app.api._watches) == requests)


async def begin(s: Stage, *more_headers: tuple[bytes, bytes], key: bytes = b"sk-test-1", **body: Any) -> Wire:
    """Send a streamed request and read no answer yet."""
    wire = await s.connect()
    headers = [(b"x-api-key", key), *KEY[1:], *more_headers]
    wire.send("POST", "/v1/messages", headers, request_body(stream=True, **body))
    return wire


async def heard(wire: Wire, size: int) -> bytes:
    """The next `size` bytes of a streamed body."""
    data = b""
    while len(data) < size:
        data += await wire.chunk()
    return data


async def rest(wire: Wire) -> bytes:
    """A streamed body to its end."""
    data = b""
    while chunk := await wire.chunk():
        data += chunk
    return data


async def all_traces(s: Stage, count: int) -> list[dict[str, Any]]:
    """The traces of `count` requests, once all are written, by their word for the cache."""
    async with asyncio.timeout(WAIT_S):
        while len(rows := await s.traces()) < count:
            pass
    assert len(rows) == len({row["trace_id"] for row in rows}) == count
    return rows


def split(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(traces of requests that made the call, of those that joined one)."""
    return ([row for row in rows if row["cache"] == "miss"], [row for row in rows if row["cache"] == "coalesced"])
