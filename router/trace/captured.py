"""What one request said and was answered, on its way to the capture file; it exists only where capture is on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """The content of one finished request, by reference: nothing here is copied or looked at on the request path.

    `answer` are the bytes as they were relayed, as far as they were kept; `answer_bytes` counts all that were.
    `secrets` are credentials that came with the request in its headers: they are taken out wherever they occur.
    """

    trace_id: str
    started_at_ns: int
    is_error: bool
    request: bytes
    answer: tuple[bytes, ...]
    answer_bytes: int
    secrets: tuple[bytes, ...] = ()


class Kept:
    """The answer of a request while it is relayed: references to its bytes, up to `room` of them."""

    __slots__ = ("_room", "bytes", "chunks")

    def __init__(self, room: int) -> None:
        self.chunks: list[bytes] = []
        self.bytes = 0  # all that were relayed
        self._room = room

    def add(self, chunk: bytes) -> None:
        """The next bytes of the answer."""
        self.bytes += len(chunk)
        if self._room > 0:
            self.chunks.append(chunk if len(chunk) <= self._room else chunk[: self._room])
            self._room -= len(chunk)
