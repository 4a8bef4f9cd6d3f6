"""The half of a connection that writes and ends: back-pressure, the deadline, and closings that take nobody's answer.

Closing a socket on bytes that were not read resets it, and the reset may overtake the answer. So a connection that has
said its last word closes its own side and *lingers*: it reads and drops, for a bounded time, until the client closes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import cast

from router.upstream.deadline import Deadline
from router.web.http.limits import KERNEL_BYTES, WRITE_BYTES, held_by_kernel
from router.web.http.lobby import Lobby

_NOTSENT_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


class Outlet(asyncio.BufferedProtocol):
    """What a connection writes with. A subclass says what the deadline is for while nothing waits to be taken."""

    __slots__ = (
        "_deadline",
        "_drained",
        "_is_lingering",
        "_is_paused",
        "_lingered",
        "_loop",
        "_untaken",
        "is_full",
        "lobby",
        "transport",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, lobby: Lobby) -> None:
        self._loop = loop
        self.lobby = lobby
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # until `connection_made`
        self._deadline = Deadline(loop, self._overdue)
        self.is_full = False  # the client has not taken what was written
        self._drained: asyncio.Event | None = None
        self._untaken = 0  # bytes that the client had not taken when last looked at; 0: not looked at yet
        self._is_paused = False  # we do not read
        self._is_lingering = False  # nothing that is read counts any more
        self._lingered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(WRITE_BYTES)
        sock = transport.get_extra_info("socket")
        if _NOTSENT_LOWAT is not None and sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # Else the kernel takes up to 4 MB of an answer for a client that does not read, and the upstream runs on.
            # Bytes on their way do not count, so that a fast client far away is as fast as before.
            sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, KERNEL_BYTES)

    def pause_writing(self) -> None:
        """Called by the event loop when the client does not take what was written."""
        self.is_full = True
        self._watch_writing()

    def resume_writing(self) -> None:
        """Called by the event loop when there is room again."""
        self.is_full = False
        self._untaken = 0
        if self._drained is not None:
            self._drained.set()
        if not self._is_lingering:
            self._set_deadline()

    def write(self, data: bytes | memoryview) -> None:
        """Hand bytes of an answer to the transport."""
        self.transport.write(data)

    async def drain(self) -> None:
        """Wait until the client has taken enough, or has gone."""
        while self.is_full:
            if self._drained is None:
                self._drained = asyncio.Event()
            self._drained.clear()
            await self._drained.wait()

    # Ends

    def _close(self) -> None:
        """Close once all is sent; a client that does not take it has the time of a slow one."""
        self._is_lingering = True
        self._untaken = 0  # its time begins at the first look, however long the answer has waited
        self._deadline.expire_in(self.lobby.limits.linger_s)
        self.transport.close()

    def _close_with_reset(self) -> None:
        """The same, so that a client that takes the end for the end of an answer is told otherwise."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close()

    def _linger(self, seconds: float) -> None:
        """Close our side, and let the client finish."""
        self._is_lingering = True
        self._untaken = 0
        self._deadline.expire_in(seconds)
        if self._is_paused:
            self._resume()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        else:
            self._close()

    def _pass_over(self, nbytes: int) -> None:
        """Drop what a lingering client sends; beyond its bound it is left in the kernel until the deadline."""
        self._lingered += nbytes
        if self._lingered > self.lobby.limits.linger_bytes and not self._is_paused and not self.transport.is_closing():
            self._is_paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        """Read on."""
        self._is_paused = False
        if not self.transport.is_closing():
            self.transport.resume_reading()

    # Time

    def _allow(self, seconds: float | None) -> None:
        """Give the client this long (None: any time) for what it has to send; what it has to take comes first."""
        if self.is_full:
            return
        if seconds is None:
            self._deadline.hold()
        else:
            self._deadline.expire_in(seconds)

    def _watch_writing(self) -> None:
        self._untaken = self._count_untaken()
        self._deadline.expire_in(self.lobby.limits.write_idle_s)

    def _count_untaken(self) -> int:
        """Bytes that wait for the client, here and in the kernel.

        The kernel says that there is room only once much was taken, which a slow client needs minutes for; what it
        still holds falls with every packet that the client's side confirms.
        """
        sock = self.transport.get_extra_info("socket")
        return self.transport.get_write_buffer_size() + (held_by_kernel(sock) if sock is not None else 0)

    def _overdue(self) -> None:
        """Called by the deadline: what waits to be taken comes first, and slow is not idle."""
        if not self.transport.get_write_buffer_size():
            if self._is_lingering:
                self.transport.abort()
            else:
                self._silent()
        elif not self._untaken or self._count_untaken() < self._untaken:
            self._watch_writing()
        else:
            self.lobby.cut("write_idle")
            self.transport.abort()

    def _set_deadline(self) -> None:
        """Set the deadline of the state that we are in, after one for writing."""
        raise NotImplementedError

    def _silent(self) -> None:
        """The deadline has passed, and nothing waits to be taken: it was the client who had to send."""
        raise NotImplementedError
