"""Server-sent events, sans I/O: bytes in any chunking → events; and one event → bytes.

The router relays the upstream's own bytes; this decoder only looks at a copy, to meter it and to know how a stream
ended. So it must never fail: what is not an event is passed over, and a line that grows without end is dropped.

The format (WHATWG HTML, "Server-sent events"): lines end with CR, LF or CRLF; an empty line dispatches the event; a
line that begins with a colon is a comment; one space behind the colon of a field is not part of its value; several
`data` lines are joined by LF; an event without data is not dispatched; a BOM may stand at the very start.
"""

from __future__ import annotations

from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"
MAX_EVENT_BYTES = 16 * 1024 * 1024  # of one event kept while it is incomplete; server-tool results arrive whole


class SseEvent(NamedTuple):
    """One dispatched event; `name` is "message" when the stream gave none."""

    name: str
    data: bytes


class SseDecoder:
    """Cuts a byte stream into events; any chunking gives the same events.

    With `wanted`, events whose block opens with another name are passed over unread, unless one of the `marks` stands
    in the block: a burst of text deltas costs little more than the search for its line ends.
    """

    __slots__ = ("_ends_in_cr", "_is_dropping", "_is_started", "_pending", "dropped", "marks", "wanted")

    def __init__(self, wanted: frozenset[bytes] | None = None, marks: tuple[bytes, ...] = ()) -> None:
        self.wanted = wanted  # may be narrowed while the stream runs
        self.marks = marks
        self._pending = bytearray()  # the incomplete event; grows in place, so that 1-byte chunks stay linear
        self._ends_in_cr = False
        self._is_started = False
        self._is_dropping = False
        self.dropped = 0  # events over MAX_EVENT_BYTES

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Take the next bytes and return the events that they complete."""
        chunk = self._normalised(chunk)
        if not self._is_started:
            chunk = self._without_bom(chunk)
        pending = self._pending
        if pending:
            seen = len(pending) - 1
            pending += chunk
            end = pending.rfind(b"\n\n", seen)
            if end < 0:
                self._limit()
                return []
            complete = bytes(pending[:end])
            del pending[: end + 2]
        else:
            end = chunk.rfind(b"\n\n")
            if end < 0:
                pending += chunk
                self._limit()
                return []
            complete = chunk[:end]
            if end + 2 < len(chunk):
                pending += chunk[end + 2 :]
        blocks = complete.split(b"\n\n")
        if self._is_dropping:
            self._is_dropping = False
            del blocks[0]
        self._limit()
        wanted = self.wanted
        if wanted is not None:
            # One search over everything first: marks are rare, and a chunk may hold a hundred deltas.
            marks = [mark for mark in self.marks if mark in complete]
            blocks = [
                block
                for block in blocks
                if block[:7] != b"event: "
                or block[7 : block.find(b"\n")] in wanted
                or (marks and any(mark in block for mark in marks))
            ]
        return [event for block in blocks if (event := _event(block)) is not None]

    @property
    def is_between_events(self) -> bool:
        """Whether everything so far belongs to a complete event."""
        return not self._is_dropping and not self._pending.strip(b"\n")

    @property
    def is_in_line(self) -> bool:
        """Whether the last line has no end yet."""
        return bool(self._pending) and not self._pending.endswith(b"\n")

    def line_end(self) -> bytes:
        """The bytes that end the line under way; none where no line is.

        A character that was cut in the middle is filled up first: client libraries that decode strictly would fail on
        the line itself and never see what comes behind it.
        """
        return line_end_behind(bytes(self._pending[-3:])) if self.is_in_line else b""

    def _normalised(self, chunk: bytes) -> bytes:
        """The chunk with LF as its only line end; a CRLF split between chunks stays one line end."""
        if self._ends_in_cr and chunk:
            self._ends_in_cr = False
            if chunk[0] == 0x0A:
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._ends_in_cr = chunk[-1] == 0x0D
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return chunk

    def _without_bom(self, chunk: bytes) -> bytes:
        """The first bytes of the stream without a byte order mark; an undecided start is held back."""
        start = bytes(self._pending) + chunk
        self._pending.clear()
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._pending += start
            return b""
        self._is_started = True
        return start.removeprefix(_BOM)

    def _limit(self) -> None:
        """Forget an incomplete event that has grown too large; only whether its last line has ended is kept."""
        if len(self._pending) > MAX_EVENT_BYTES:
            if not self._is_dropping:
                self._is_dropping = True
                self.dropped += 1
            del self._pending[:-1]


def line_end_behind(tail: bytes) -> bytes:
    """What ends a line of which `tail` are the last three bytes or so; see `SseDecoder.line_end`."""
    if not tail or tail.endswith((b"\n", b"\r")):
        return b""
    for start in range(len(tail)):
        if tail[start] >= 0xC0:  # opens a character of several bytes
            for rest in (b"\x80", b"\xbf", b"\x80\x80", b"\xbf\x80", b"\x80\x80\x80", b"\xbf\x80\x80"):
                if _is_utf8(tail[start:] + rest):
                    return rest + b"\n"
    return b"\n"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def encode(name: str, data: bytes) -> bytes:
    """One event as bytes. `data` must be one line (compact JSON is): a line end inside it could forge an event."""
    if b"\n" in data or b"\r" in data or "\n" in name or "\r" in name:
        raise ValueError("an event field must not hold a line end")
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


def _event(block: bytes) -> SseEvent | None:
    """The event of one block of lines; None for comments and blocks without data."""
    name = b""
    data: list[bytes] = []
    for line in block.split(b"\n"):
        if line[:5] == b"data:":
            data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line[:6] == b"event:":
            name = line[7:] if line[6:7] == b" " else line[6:]
        elif line == b"data":  # a field without a colon has an empty value
            data.append(b"")
        elif line == b"event":
            name = b""
    if not data:
        return None
    return SseEvent(name.decode("utf-8", "replace") or "message", data[0] if len(data) == 1 else b"\n".join(data))
