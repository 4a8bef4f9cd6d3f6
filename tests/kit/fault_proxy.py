"""A TCP port that passes bytes on to another one, with faults that a test sets while it runs.

It stands between a client and a server on the loopback, and knows no protocol.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FaultProxy:
    """The faults of one port; each may be changed at any time, and holds for the bytes that come after. Seconds.

    `wait_s` passes before the first byte of a connection, `delay_s` and up to `jitter_s` before each piece of a reply
    is passed on. With `piece` replies come in so many bytes at a time. With `swallows_replies` what is sent reaches the
    server, and its replies reach nobody. With `refuses` a connection is closed as soon as it is there.
    """

    def __init__(self, target: int, seed: int = 0) -> None:
        self.port = 0
        self.connections = 0  # accepted so far
        self.wait_s = self.delay_s = self.jitter_s = 0.0
        self.piece = 0
        self.swallows_replies = self.refuses = False
        self._target = target
        self._dice = random.Random(seed)
        self._calls: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Break every connection off, as a network does: the client is not told in good order."""
        for writer in tuple(self._open):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on until a side ends it."""
        call = asyncio.current_task()
        assert call is not None
        self._calls.add(call)
        self.connections += 1
        ends = {writer}
        self._open.add(writer)
        try:
            if self.refuses:
                return
            if self.wait_s:
                await asyncio.sleep(self.wait_s)
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            ends.add(back)
            self._open.add(back)
            await asyncio.gather(self._copy(reader, back), self._copy_replies(there, writer))
        except asyncio.CancelledError:
            pass  # by `end`, in the middle of a delay
        finally:
            for end in ends:
                end.close()
            await asyncio.gather(*(end.wait_closed() for end in ends), return_exceptions=True)
            self._open -= ends
            self._calls.discard(call)

    async def end(self) -> None:
        """End every connection at once."""
        self.cut()
        for call in tuple(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        except (OSError, RuntimeError):
            pass  # one side went away; the other is told below
        finally:
            target.close()

    async def _copy_replies(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                if self.delay_s or self.jitter_s:
                    await asyncio.sleep(self.delay_s + self._dice.random() * self.jitter_s)
                if self.swallows_replies:
                    continue
                size = self.piece or len(data)
                for start in range(0, len(data), size):
                    target.write(data[start : start + size])
                    await target.drain()
                    if self.piece:
                        await asyncio.sleep(0)  # a turn of the loop between two pieces, so that each is read alone
        except (OSError, RuntimeError):
            pass
        finally:
            target.close()


@asynccontextmanager
async def fault_proxy(
    target: int, *, wait_s: float = 0.0, tls: ssl.SSLContext | None = None, seed: int = 0
) -> AsyncIterator[FaultProxy]:
    """A proxy to the loopback port `target`, on the port it names; with `tls` it is the end of the TLS connection."""
    proxy = FaultProxy(target, seed)
    proxy.wait_s = wait_s
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=tls)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.end()
