"""A fast upstream that remembers the exact bytes of each request, and a client that sees exact bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Seen:
    """One HTTP message as bytes: the lines of its head, and its body with transfer coding removed."""

    head: bytes
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name:
                return value.strip()
        return None

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])


async def read_message(reader: asyncio.StreamReader) -> Seen:
    """The next HTTP/1.1 message of a stream."""
    head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
    seen = Seen(head, b"")
    length = seen.header(b"content-length")
    if length is not None:
        return Seen(head, await reader.readexactly(int(length)))
    if seen.header(b"transfer-encoding") != b"chunked":
        return seen
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return Seen(head, body)


@dataclass
class RecordingUpstream:
    """Answers each request by its `x-nonce` header: what it got is in `seen`, what it sent back in `sent`."""

    plain: bytes
    stream: bytes
    address: str = ""
    seen: dict[bytes, Seen] = field(default_factory=dict)
    sent: dict[bytes, bytes] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[RecordingUpstream]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**26)
        self.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                request = await read_message(reader)
                nonce = request.header(b"x-nonce") or b""
                self.seen[nonce] = request
                is_stream = request.header(b"x-wants") == b"stream"
                body = (self.stream if is_stream else self.plain).replace(b"NONCE", nonce)
                self.sent[nonce] = body
                kind = b"text/event-stream; charset=utf-8" if is_stream else b"application/json"
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\nrequest-id: req_%s\r\ncontent-length: %d\r\n\r\n"
                    % (kind, nonce, len(body))
                    + body
                )
                await writer.drain()
        writer.close()


@dataclass
class Client:
    """One keep-alive connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def to(cls, base: str) -> Client:
        host, _, port = base.removeprefix("http://").partition(":")
        return cls(*await asyncio.open_connection(host, int(port), limit=2**26))

    async def post(self, path: str, body: bytes, headers: dict[str, str]) -> Seen:
        lines = [f"POST {path} HTTP/1.1", "host: router.test", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await self.writer.drain()
        return await read_message(self.reader)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
