"""How the router and the process that reads its trace store talk: frames of a JSON head and a body of bytes.

    4 bytes: length of the head   4 bytes: length of the body   the head, a JSON object   the body

Both lengths are big-endian. Nothing in a frame can name code (S11). There is no I/O here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

_LENGTHS = struct.Struct(">II")
MAX_HEAD = 1 << 20
MAX_BODY = 1 << 29


class BrokenFrame(Exception):
    """The bytes are not a frame: the two sides do not understand each other any more."""


def frame(head: Mapping[str, Any], body: bytes = b"") -> bytes:
    """One frame. Raises BrokenFrame when a part is over its bound."""
    text = json.dumps(head, separators=(",", ":")).encode()
    if len(text) > MAX_HEAD or len(body) > MAX_BODY:
        raise BrokenFrame(f"a frame of {len(text)} and {len(body)} bytes, expected {MAX_HEAD} and {MAX_BODY} at most")
    return _LENGTHS.pack(len(text), len(body)) + text + body


class Frames:
    """Bytes in, however they are cut; whole frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The frames that are whole now, as (head, body). Raises BrokenFrame."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _LENGTHS.size:
            of_head, of_body = _LENGTHS.unpack_from(buffer)
            if of_head > MAX_HEAD or of_body > MAX_BODY:
                raise BrokenFrame(f"a frame of {of_head} and {of_body} bytes")
            at_body = _LENGTHS.size + of_head
            if len(buffer) < at_body + of_body:
                return
            head_text, body = bytes(buffer[_LENGTHS.size : at_body]), bytes(buffer[at_body : at_body + of_body])
            del buffer[: at_body + of_body]
            yield _object(head_text), body


def _object(text: bytes) -> dict[str, Any]:
    try:
        head = json.loads(text)
    except ValueError as error:
        raise BrokenFrame("a head that is no JSON") from error
    if not isinstance(head, dict):
        raise BrokenFrame("a head that is no JSON object")
    return head
