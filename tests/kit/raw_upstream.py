"""A scripted upstream on a real socket: each connection is served by a small async function that may do anything.

    async def behave(peer: Peer) -> None:
        request = await peer.request()            # head and body as they came
        peer.send(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nhi")
        await peer.closed()                       # or return: the connection is then closed

    async with raw_upstream(behave) as upstream:
        ... upstream.origin, upstream.requests, upstream.connections ...

`peer.number` counts connections from 1, so that a script can treat the first one differently. What the peer does when
the other side vanishes needs no care: a broken connection ends the script quietly. Any other exception of the script
is raised when the context ends, so that a test cannot pass by accident.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Behaviour = Callable[["Peer"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RawRequest:
    """One request as it came: `line` without line end, header names lower-cased, body by its content-length."""

    line: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """The first value of `name` (lower case)."""
        return next((value for key, value in self.headers if key == name), None)


class Peer:
    """The upstream's end of one connection."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.requests: list[RawRequest] = []

    async def head(self) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Read request line and headers only."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        line, *rest = raw[:-4].split(b"\r\n")
        pairs = [entry.split(b": ", 1) for entry in rest]
        return line, [(name.lower(), value) for name, value in pairs]

    async def request(self) -> RawRequest:
        """Read one whole request."""
        line, headers = await self.head()
        length = int(dict(headers).get(b"content-length", b"0"))
        request = RawRequest(line, headers, await self.reader.readexactly(length))
        self.requests.append(request)
        return request

    def send(self, *pieces: bytes) -> None:
        """Write each piece; see `send_apart` for pieces that must arrive apart."""
        for piece in pieces:
            if self.writer.is_closing():
                raise ConnectionResetError("the other side has closed the connection")
            self.writer.write(piece)

    async def send_apart(self, *pieces: bytes) -> None:
        """Write each piece and let the loop turn between, so that a reader on the same loop sees each alone."""
        for piece in pieces:
            self.send(piece)
            await self.writer.drain()
            for _ in range(4):
                await asyncio.sleep(0)

    async def closed(self) -> None:
        """Wait until the other side has closed the connection; bytes that still come are dropped."""
        while await self.reader.read(65536):
            pass

    def reset(self) -> None:
        """Close with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass(slots=True)
class RawUpstream:
    """A running scripted upstream."""

    origin: str
    port: int
    connections: int = 0  # accepted so far
    open: int = 0  # accepted and not yet ended
    requests: list[RawRequest] = field(default_factory=list)  # in order of completion, all connections
    errors: list[BaseException] = field(default_factory=list)
    peers: set[Peer] = field(default_factory=set)  # of the connections that are open

    _serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] | None = None
    _listener: asyncio.Server | None = None
    _ssl: ssl.SSLContext | None = None

    async def listen(self) -> None:
        """Take connections; after `refuse`, on the same port as before."""
        assert self._serve is not None
        self._listener = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._ssl, limit=1 << 20, backlog=1024
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Nobody listens any more, and every connection is closed: the upstream is down."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.hang_up()

    def hang_up(self) -> None:
        """Close every connection, as an upstream that is restarted does."""
        for peer in list(self.peers):
            peer.writer.close()


@asynccontextmanager
async def raw_upstream(behave: Behaviour, *, ssl_context: ssl.SSLContext | None = None) -> AsyncIterator[RawUpstream]:
    """Serve `behave` on a free port of 127.0.0.1 until the context ends."""
    tasks: set[asyncio.Task[None]] = set()
    upstream = RawUpstream(origin="", port=0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        upstream.connections += 1
        upstream.open += 1
        peer = Peer(upstream.connections, reader, writer)
        peer.requests = upstream.requests
        upstream.peers.add(peer)
        try:
            await behave(peer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            pass
        except Exception as exc:
            upstream.errors.append(exc)
        finally:
            upstream.open -= 1
            upstream.peers.discard(peer)
            tasks.discard(task)
            writer.close()

    upstream._serve, upstream._ssl = serve, ssl_context
    await upstream.listen()
    upstream.origin = f"{'https' if ssl_context else 'http'}://127.0.0.1:{upstream.port}"
    try:
        yield upstream
    finally:
        upstream.refuse()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if upstream.errors:
        raise upstream.errors[0]
