"""A chunked body, decoded strictly: bytes in, the body's bytes out, in whatever pieces they come.

A chunk's size is one to eight hex digits. Extensions are passed over within bounds and trailers are dropped: nothing
here uses them, and each is a place where two readers differ about where a body ends (RFC 9112, 7.1).
"""

from __future__ import annotations

from collections.abc import Callable

from router.web.http.head import CRLF, TEXT, TOKEN
from router.web.http.limits import MAX_CHUNK_LINE_BYTES, MAX_EXTENSION_BYTES, MAX_TRAILER_BYTES
from router.web.http.refusal import Refused

_HEX = b"0123456789ABCDEFabcdef"
_SIZE_DIGITS = 8
# What says where a message ends or who sends it must not come behind its body (RFC 9110, 6.5.1).
_NO_TRAILERS = (b"content-length", b"transfer-encoding", b"host", b"authorization", b"x-api-key", b"trailer")


class ChunkDecoder:
    """The state of one body. After its end `is_done`, and `rest` is what came behind it."""

    __slots__ = ("_extensions", "_held", "_left", "_phase", "_trailers", "is_done", "rest")

    def __init__(self) -> None:
        self._phase: _Phase = ChunkDecoder._sizes  # not bound: an object that refers to itself lives until collected
        self._held = b""  # the beginning of a line, or of a chunk's end
        self._left = 0  # bytes of the chunk under way
        self._extensions = 0
        self._trailers = 0
        self.is_done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came; returns those of the body. Raises Refused."""
        if self._held:
            data = self._held + data
            self._held = b""
        pieces: list[bytes] = []
        at = 0
        while at < len(data) and not self.is_done:
            moved = self._phase(self, data, at, pieces)
            if moved < 0:
                break
            at = moved
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # Each phase takes bytes from `at` on and says where it stopped; -1 when it needs more than there is.

    def _sizes(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Sizes, and each chunk that is whole: with many tiny chunks this loop is all that happens."""
        find = data.find
        size_of = int
        end = len(data)
        while True:
            eol = find(CRLF, at, at + MAX_CHUNK_LINE_BYTES + 2)
            if eol < 0:
                return self._hold_line(data, at, MAX_CHUNK_LINE_BYTES, "the size of a chunk")
            digits = data[at:eol]
            if len(digits) > _SIZE_DIGITS or digits.translate(None, _HEX):
                digits = self._without_extension(digits)
            if not digits:
                raise Refused("chunks", "a chunk has no size")
            size = size_of(digits, 16)
            at = eol + 2
            if not size:
                self._phase = ChunkDecoder._trailer_lines
                return at
            after = at + size
            if after + 2 > end or data[after : after + 2] != CRLF:
                self._left = size
                self._phase = ChunkDecoder._chunk
                return at
            pieces.append(data[at:after])
            at = after + 2

    def _chunk(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """A chunk that is not all there."""
        piece = data[at : at + self._left]
        if piece:
            pieces.append(piece)
        self._left -= len(piece)
        if not self._left:
            self._phase = ChunkDecoder._chunk_end
        return at + len(piece)

    def _chunk_end(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        end = data[at : at + 2]
        if end == CRLF:
            self._phase = ChunkDecoder._sizes
            return at + 2
        if end == b"\r":
            self._held = end
            return -1
        raise Refused("chunks", "a chunk is not as long as it says")

    def _trailer_lines(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        eol = data.find(CRLF, at, at + MAX_TRAILER_BYTES + 2)
        if eol < 0:
            return self._hold_line(data, at, MAX_TRAILER_BYTES, "a trailer")
        if eol == at:
            self.is_done = True
            self.rest = data[at + 2 :]
            return at + 2
        self._trailers += eol + 2 - at
        name, colon, value = data[at:eol].partition(b":")
        if not colon or not name or name.translate(None, TOKEN) or value.translate(None, TEXT):
            raise Refused("chunks", "a trailer is no header line")
        if name.lower().replace(b"_", b"-") in _NO_TRAILERS:
            raise Refused("chunks", "a trailer says what only a header may say")
        if self._trailers > MAX_TRAILER_BYTES:
            raise Refused("chunks", f"the trailers are over {MAX_TRAILER_BYTES} bytes")
        return eol + 2

    def _hold_line(self, data: bytes, at: int, most: int, what: str) -> int:
        """Keep the beginning of a line for later, unless it cannot become one."""
        held = data[at:]
        if b"\n" in held or b"\r" in held[:-1]:
            raise Refused("chunks", f"{what} has a line end that is not CRLF")
        if len(held) > most:
            raise Refused("chunks", f"{what} is over {most} bytes")
        self._held = held
        return -1

    def _without_extension(self, line: bytes) -> bytes:
        digits, mark, extension = line.partition(b";")
        self._extensions += len(extension)
        if digits.translate(None, _HEX) or len(digits) > _SIZE_DIGITS or extension.translate(None, TEXT):
            raise Refused("chunks", f"the size of a chunk is not one to {_SIZE_DIGITS} hex digits")
        if mark and not extension.strip(b" \t"):
            raise Refused("chunks", "the extension of a chunk is empty")
        if self._extensions > MAX_EXTENSION_BYTES:
            raise Refused("chunks", f"the extensions of chunks are over {MAX_EXTENSION_BYTES} bytes")
        return digits


_Phase = Callable[[ChunkDecoder, bytes, int, list[bytes]], int]
