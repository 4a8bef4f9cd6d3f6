"""JSON lines, sans I/O: bytes in any chunking → whole lines, each of bounded length.

The router relays the upstream's own bytes; this reader only looks at a copy. So it must never fail: a line over the
bound is passed over and counted. A line ends with LF (a CR before it is not part of it): JSON has no raw line feed
inside a string, so no line can be cut in the wrong place.
"""

from __future__ import annotations

MAX_LINE_BYTES = 16 * 1024 * 1024  # as of one server-sent event: results of server tools arrive whole


class LineReader:
    """Cuts a byte stream into lines; any chunking gives the same lines. Holds at most one line of `max_bytes`."""

    __slots__ = ("_is_dropping", "_max_bytes", "_pending", "too_long")

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._pending = bytearray()  # the line under way; grows in place, so that 1-byte chunks stay linear
        self._is_dropping = False  # the line under way is over the bound
        self.too_long = 0  # lines that were passed over

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes and return the lines that they complete, without their ends; empty ones are left out."""
        end = chunk.rfind(b"\n")
        if end < 0:
            self._keep(chunk)
            return []
        first = chunk.find(b"\n")
        self._keep(chunk[:first])
        lines = [self._taken()]
        if first < end:
            lines += chunk[first + 1 : end].split(b"\n")
        self._keep(chunk[end + 1 :])
        return [stripped for line in lines if (stripped := self._checked(line))]

    def rest(self) -> bytes:
        """What stands behind the last line end, once nothing more comes; b"" for nothing, or for a line too long."""
        return self._checked(self._taken())

    def _keep(self, piece: bytes) -> None:
        if self._is_dropping:
            return
        self._pending += piece
        if len(self._pending) > self._max_bytes + 1:  # a CR is not part of the line
            self._is_dropping = True
            self.too_long += 1
            self._pending = bytearray()

    def _taken(self) -> bytes:
        line, self._is_dropping = bytes(self._pending), False
        self._pending.clear()
        return line

    def _checked(self, line: bytes) -> bytes:
        if line.endswith(b"\r"):
            line = line[:-1]
        if len(line) > self._max_bytes:
            self.too_long += 1
            return b""
        return line
