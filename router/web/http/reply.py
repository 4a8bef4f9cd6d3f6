"""The head of an answer, from an application's status and headers to bytes that can be nothing but one head."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

from router.web.http.head import TEXT, TOKEN

Headers = Iterable[tuple[bytes, bytes]]

NO_BODY = 0
BY_LENGTH = 1
CHUNKS = 2
UNTIL_CLOSE = 3

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
_END = b"\r\n"
_CLOSE_END = b"connection: close\r\n\r\n"
_CHUNKED_END = b"transfer-encoding: chunked\r\n\r\n"
_CHUNKED_CLOSE_END = b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


_STATUS_LINES = tuple(f"HTTP/1.1 {status} {_phrase(status)}\r\n".encode() for status in range(600))


class ReplyHead:
    """What was made of a head: its bytes, how the body is framed, and what the connection does afterwards.

    `length` is what a body framed BY_LENGTH has, in bytes. `dropped` counts headers that could have ended a line.
    """

    __slots__ = ("data", "dropped", "framing", "keeps_alive", "length")

    def __init__(
        self, status: int, headers: Headers, *, is_head_request: bool, is_1_1: bool, keeps_alive: bool
    ) -> None:
        fields = headers if isinstance(headers, list) else list(headers)
        named = dict(fields)
        if b"transfer-encoding" in named or b"connection" in named or status == 204 or len(named) != len(fields):
            fields, is_closing = _tidy(fields, status)
            named = dict(fields)
            keeps_alive = keeps_alive and not is_closing
        block = b"".join([b"%b: %b\r\n" % field for field in fields])
        self.dropped = 0
        count = len(fields)
        if block.count(b"\n") != count or block.count(b"\r") != count or b"\0" in block:
            clean = [field for field in fields if not field[0].translate(None, TOKEN) and _is_text(field[1])]
            self.dropped = len(fields) - len(clean)
            named = dict(clean)
            block = b"".join([b"%b: %b\r\n" % field for field in clean])
        declared = named.get(b"content-length")
        self.length = 0
        if is_head_request or status == 204 or status == 304:
            self.framing = NO_BODY
        elif declared is not None:
            self.framing = BY_LENGTH
            self.length = int(declared)
        elif is_1_1:
            self.framing = CHUNKS
        else:
            self.framing = UNTIL_CLOSE
        self.keeps_alive = keeps_alive
        if self.framing == CHUNKS:
            end = _CHUNKED_END if keeps_alive else _CHUNKED_CLOSE_END
        else:
            end = _END if keeps_alive else _CLOSE_END
        self.data = _STATUS_LINES[status] + block + end


def _is_text(value: bytes) -> bool:
    return not value.translate(None, TEXT)


def _tidy(fields: list[tuple[bytes, bytes]], status: int) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Without what is ours to say, with one length at most; and whether the application wants the connection closed."""
    kept: list[tuple[bytes, bytes]] = []
    has_length = status == 204  # which has none
    is_closing = False
    for field in fields:
        name = field[0]
        if name == b"connection":
            is_closing = is_closing or b"close" in field[1].lower()
        elif name == b"content-length":
            if not has_length:
                kept.append(field)
            has_length = True
        elif name != b"transfer-encoding":
            kept.append(field)
    return kept, is_closing
