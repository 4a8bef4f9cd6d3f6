"""One request with its answer, as the flow holds it from `start()` to the last byte.

It stands between the parser's callbacks, which fill it while bytes arrive, and the one coroutine that reads: no task,
no queue object, one future at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from router.errors import ClientGone, InternalError, RouterError
from router.seams import UpstreamCall


class Carrier(Protocol):
    """What an exchange asks of the connection that carries it."""

    def resume(self) -> None:
        """Read on: what had arrived has been taken."""

    def drop(self) -> None:
        """Close at once."""


class Owner(Protocol):
    """What an exchange asks of the pool that made it."""

    def gave_up(self, exchange: Exchange) -> None:
        """Count an aborted exchange and end whatever is being done for it."""


class Exchange:
    """One request and its answer: `seams.PendingCall` and, from its head on, `seams.UpstreamReply`.

    Cancelling a coroutine that waits in `reply()` or `read()` aborts the exchange. One coroutine may wait at a time.
    """

    __slots__ = (
        "_buffered",
        "_chunks",
        "_error",
        "_is_complete",
        "_loop",
        "_owner",
        "_waiter",
        "call",
        "connection",
        "due_at",
        "head",
        "headers",
        "is_resent",
        "may_resend",
        "status",
    )

    def __init__(self, call: UpstreamCall, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.head = b""  # request line and headers as sent
        self.status = 0  # until the head of the final answer is in
        self.headers: list[tuple[bytes, bytes]] = []
        self.connection: Carrier | None = None
        self.due_at = loop.time() + call.deadlines.total
        self.is_resent = False
        self.may_resend = not call.is_once  # one transparent repeat after a stale connection (F25)
        self._owner = owner
        self._loop = loop
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._is_complete = False
        self._error: RouterError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_over(self) -> bool:
        """Nothing more will come: the answer is complete, or the exchange failed."""
        return self._is_complete or self._error is not None

    @property
    def is_until_close(self) -> bool:
        """Whether the body ends with the connection: no other framing was declared (RFC 9112, section 6.3)."""
        return not any(
            name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value.lower())
            for name, value in self.headers
        )

    async def reply(self) -> Exchange:
        """Wait for status and headers; see `seams.Upstream` for what is raised."""
        if not self.status and self._error is None:
            await self._wait()
        if not self.status or isinstance(self._error, ClientGone):
            raise self._error or InternalError("an upstream call was woken without an answer")
        return self

    async def read(self) -> bytes:
        """The next bytes of the body, all that have come; b"" once it is complete; see `seams.UpstreamReply`."""
        chunks = self._chunks
        if not chunks and not self._is_complete and self._error is None:
            await self._wait()
        if chunks:
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            self._buffered = 0
            if self.connection is not None:
                self.connection.resume()
            return data
        if self._error is not None:
            raise self._error
        return b""

    def abort(self) -> None:
        """End the exchange wherever it is; a coroutine waiting on it gets `ClientGone`. Harmless when it is over."""
        if self._is_complete:
            if self._chunks:  # complete on the wire, but the rest of it is not wanted
                self._chunks.clear()
                self._error = _gone()
            return
        if self._error is None:
            self._chunks.clear()
            self.fail(_gone())
            connection = self.connection
            if connection is not None:
                self.connection = None
                connection.drop()
            self._owner.gave_up(self)

    def fail(self, error: RouterError) -> None:
        """Bytes already received can still be read; then `error` is raised."""
        if not self.is_over:
            self._error = error
            self._wake()

    def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Take the head of the final answer."""
        self.headers = headers
        self.status = status
        self._wake()

    @property
    def buffered(self) -> int:
        """Bytes of the body that wait to be read."""
        return self._buffered

    def take(self, body: bytes) -> int:
        """Take bytes of the body; returns how many now wait to be read."""
        self._chunks.append(body)
        self._buffered += len(body)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        return self._buffered

    def complete(self) -> None:
        """The body has ended as its framing says."""
        self._is_complete = True
        self._wake()

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise InternalError("two coroutines wait for one upstream answer", hint="read an answer from one place")
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def request_head(call: UpstreamCall, host: bytes) -> bytes:
    """Request line and headers, `host` and `content-length` added, as they go on the wire.

    Raises `InternalError` when a part of the call holds CR, LF or NUL: the flow promised that none does, and a request
    that the upstream would read as two must never leave the house.
    """
    parts = [call.method.encode("ascii"), b" ", call.target, b" HTTP/1.1\r\nhost: ", host]
    for name, value in call.headers:
        parts += (b"\r\n", name, b": ", value)
    lines = 3 + len(call.headers)
    if call.body or call.method not in ("GET", "HEAD", "DELETE"):
        parts.append(b"\r\ncontent-length: %d" % len(call.body))
        lines += 1
    parts.append(b"\r\n\r\n")
    head = b"".join(parts)
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head or b" " in call.target:
        raise InternalError("a header or the path of an upstream call holds a line break, a space or NUL")
    return head


def _gone() -> ClientGone:
    return ClientGone("the call was given up before its answer was complete")
