"""A client that sends bytes as they are and takes what comes as it is: for requests that no library would send.

    wire = await RawClient.open(port)
    await wire.say(b"GET / HTTP/1.1\\r\\n\\r\\n")
    answers = await wire.answers()          # until the server closes

`parse` splits a byte stream into answers and fails on anything that is no answer, so that "exactly one" can be said.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; `is_whole` is False when the bytes ended inside its body."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    is_whole: bool = True

    def header(self, name: str) -> str | None:
        """The only value of `name` (lower case); a second one fails the test."""
        values = [value.decode("latin-1") for key, value in self.headers if key == name.encode()]
        assert len(values) <= 1, values
        return values[0] if values else None


def parse(data: bytes, *, is_head: bool = False) -> list[Answer]:
    """All answers in a stream of bytes; informational ones are kept, with an empty body."""
    found = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, f"no head: {head[:200]!r}"
        line, *fields = head.split(b"\r\n")
        assert line.startswith(b"HTTP/1.1 "), line
        headers = [(name.lower(), value.strip()) for name, _, value in (field.partition(b":") for field in fields)]
        named = dict(headers)
        status = int(line.split(b" ")[1])
        body, is_whole = b"", True
        assert not {b"content-length", b"transfer-encoding"} <= set(named), "two framings in one answer"
        if status < 200 or status in (204, 304) or is_head:
            pass
        elif named.get(b"transfer-encoding") == b"chunked":
            body, data, is_whole = _unchunked(data)
        elif b"content-length" in named:
            length = int(named[b"content-length"])
            body, data, is_whole = data[:length], data[length:], len(data) >= length
        else:
            body, data = data, b""
        found.append(Answer(status, headers, body, is_whole))
    return found


def _unchunked(data: bytes) -> tuple[bytes, bytes, bool]:
    parts = []
    while True:
        line, end, data = data.partition(b"\r\n")
        if not end:
            return b"".join(parts), b"", False
        size = int(line, 16)
        if not size:
            assert data[:2] == b"\r\n"
            return b"".join(parts), data[2:], True
        parts.append(data[:size])
        if len(data) < size + 2:
            return b"".join(parts), b"", False
        assert data[size : size + 2] == b"\r\n"
        data = data[size + 2 :]


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, *, receive_bytes: int = 0) -> RawClient:
        """Connect to a port of loopback; `receive_bytes` makes the kernel's buffer small."""
        sock = socket.socket()
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except OSError:
            sock.close()
            raise
        limit = max(receive_bytes // 2, 1024) if receive_bytes else 1 << 22
        return cls(*await asyncio.open_connection(sock=sock, limit=limit))

    async def say(self, *pieces: bytes) -> None:
        """Send pieces, each as a write of its own. A server that has closed is no error: what it said matters."""
        try:
            for piece in pieces:
                self.writer.write(piece)
                await self.writer.drain()
        except ConnectionError:
            pass

    async def everything(self) -> bytes:
        """All bytes until the server closes."""
        parts = []
        try:
            async with asyncio.timeout(WAIT_S):
                while data := await self.reader.read(1 << 16):
                    parts.append(data)
        except ConnectionError:
            pass
        return b"".join(parts)

    async def answers(self, *, is_head: bool = False) -> list[Answer]:
        """All answers until the server closes."""
        return parse(await self.everything(), is_head=is_head)

    async def answer(self) -> Answer:
        """The next answer, on a connection that stays open."""
        async with asyncio.timeout(WAIT_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            [answer] = parse(head[: -len(b"\r\n\r\n")] + b"\r\n\r\n", is_head=True)
            body = b""
            if answer.header("transfer-encoding") == "chunked":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readexactly(2)
            elif answer.status >= 200:
                body = await self.reader.readexactly(int(answer.header("content-length") or 0))
        return Answer(answer.status, answer.headers, body)

    async def closed(self) -> None:
        """Wait until the server closes; what it says before is dropped."""
        await self.everything()

    async def close(self) -> None:
        """Close; what was not sent yet is not sent."""
        if self.writer.transport.get_write_buffer_size():
            self.writer.transport.abort()
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


def request(
    line: bytes = b"GET / HTTP/1.1", *fields: bytes, body: bytes = b"", host: bytes | None = b"host: test"
) -> bytes:
    """A request with exactly these lines; nothing is added but a Host (None: not even that)."""
    lines: Iterable[Any] = [line, *([] if host is None else [host]), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
