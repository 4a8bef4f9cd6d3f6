"""What is answered to bytes that are not one plain request: a value first, then an answer in the API's error shape.

A refusal names a reason out of a short list, which is what is counted, and never repeats a byte of the client's.
"""

from __future__ import annotations

from http import HTTPStatus

from router.errors import InternalError, MalformedRequest, Overloaded, RouterError, ShuttingDown, SlowRequest

OVERLOADED = 529
STOPPING = 503

# Reason → what the metrics page says of it.
REASONS = {
    "syntax": "no request line, no header line, a bare CR or LF, a control byte, or not HTTP at all",
    "target": "a target that is not a path",
    "target_length": "a request line over 16 KiB",
    "head_size": "headers over 64 KiB, a line over 16 KiB, or over 128 lines",
    "version": "neither HTTP/1.1 nor HTTP/1.0",
    "method": "a method that is not served",
    "host": "no `Host`, more than one, or one that is no host",
    "framing": "two lengths, a length that is no number, a transfer coding that is not `chunked` alone",
    "chunks": "a chunked body that is not one",
    "twin": "a header written with `_` that matters when it is written with `-`",
    "repeated": "a header twice that may come once",
    "expect": "an expectation other than `100-continue`",
    "head_time": "a head that did not arrive in time",
    "body_time": "a body that stopped coming, or came too slowly",
    "connections": "more connections than the process can hold",
    "stopping": "a body that was still coming when the time of a stop was over",
}


class Refused(Exception):
    """Bytes that will not be served; `status` is that of the answer, after which the connection is closed."""

    def __init__(self, reason: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.status = status


def refusal(refused: Refused, request_id: str) -> bytes:
    """The whole answer to what was refused, closing the connection."""
    error: RouterError
    if refused.status == 408:
        error = SlowRequest(refused.message)
    elif refused.status == OVERLOADED:
        error = Overloaded(refused.message)
    elif refused.status == STOPPING:
        error = ShuttingDown(refused.message)
    else:
        error = MalformedRequest(refused.message)
    more = b"retry-after: 1\r\nx-should-retry: true\r\n" if refused.status in (OVERLOADED, STOPPING) else b""
    return _answer(error, refused.status, request_id, more)


def failure(request_id: str) -> bytes:
    """The whole answer to a request whose application failed, closing the connection."""
    error = InternalError("the router failed; the operator's log says where")
    return _answer(error, error.status, request_id, b"")


def _answer(error: RouterError, status: int, request_id: str, more: bytes) -> bytes:
    body = error.to_wire(request_id)
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nrequest-id: %b\r\n"
        b"proxy-status: %b\r\n%bconnection: close\r\n\r\n%b"
    ) % (
        status,
        b"Overloaded" if status == OVERLOADED else HTTPStatus(status).phrase.encode(),
        len(body),
        request_id.encode(),
        error.proxy_status().encode(),
        more,
        body,
    )
