"""JSON lines, sans I/O: bytes in any chunking → whole lines, each of bounded length.

The router relays the upstream's own bytes; this reader only looks at a copy. So it must never fail: a line over the
bound is passed over and counted. A line ends with LF (a CR before it is not part of it): JSON has no raw line feed
inside a string, so no line can be cut in the wrong place.

A line may be of megabytes, nearly all of it in long strings: text, images, what a tool found. To read it whole would
hold up everything else for as long as it takes, and make objects of many times its size. `Skim` reads what is left of
it without those strings.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

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


def read_line(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; an empty one for anything else.

    An answer may hold half a surrogate pair, which is no text, and counts all the same: it is read as `?`.
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            text = line.decode()  # as text: the library would guess the encoding of bytes
            value = orjson.loads(json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


_SLICE = 128 * 1024
_STRINGS = 1_000  # in one slice: with the bytes, about a millisecond
_LONG = 128  # bytes of a string that is left out
_WITHIN = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)  # from within a string to its end, or to that of the slice


class Skim:
    """A long line without its long strings, slice by slice: `while skim.step(): …`, then `text`.

    Each string of over 128 bytes is empty in `text`, all else stands as it was, so it is JSON where the line is. It is
    empty where the line ends within a string, or where over `most` bytes are left; then the rest is not looked at.
    """

    __slots__ = ("_at", "_kept", "_line", "_most", "_string", "text")

    def __init__(self, line: bytes, most: int) -> None:
        self._line = line
        self._most = most
        self._at = 0
        self._string = -1  # where the string under way begins; -1 between strings
        self._kept = bytearray()
        self.text = b""

    def step(self) -> bool:
        """Look at the next 128 kB at the most; False when there is nothing more to do."""
        line, kept, at, string = self._line, self._kept, self._at, self._string
        stop = min(at + _SLICE, len(line))
        for _ in range(_STRINGS):
            if string < 0:
                quote = line.find(b'"', at, stop)
                if quote < 0:
                    kept += line[at:stop]
                    at = max(at, stop)  # a string that ends with the slice has its quote behind it
                    break
                kept += line[at : quote + 1]
                at = string = quote + 1
            found = _WITHIN.match(line, at, stop)
            assert found is not None
            at = found.end()
            if line[at : at + 1] != b'"':  # the string goes on behind the slice, perhaps with half an escape
                break
            if at - string <= _LONG:
                kept += line[string:at]
            kept += b'"'
            at, string = at + 1, -1
        is_more = at < len(line) and at > self._at and len(kept) <= self._most
        self._at, self._string = at, string
        if not is_more and at == len(line) and string < 0 and len(kept) <= self._most:
            self.text = bytes(kept)
        return is_more
