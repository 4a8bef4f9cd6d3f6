"""Pass the upstream's bytes on while a copy is metered.

The relay returns the very chunks it reads. It looks at a copy of a stream for four things only: the usage, the first
content delta, an `error` event and `message_stop`. A stream that ends without `message_stop` gets one `error` event of
ours behind the upstream's bytes, because a client library takes a clean end for a complete answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import orjson

from router.affinity.thinking import MAX_BLOCKS, answered_signatures
from router.errors import ClientGone, RouterError, StreamCut, UpstreamBroken, UpstreamTimeout, error_body
from router.seams import UpstreamReply
from router.serve.exchange import Exchange
from router.trace.record import Attempt
from router.usage import UsageMeter
from router.wire.sse import SseDecoder

_UNTIL_FIRST_DELTA = frozenset({b"message_start", b"content_block_delta", b"message_delta", b"message_stop", b"error"})
_AFTER_FIRST_DELTA = _UNTIL_FIRST_DELTA - {b"content_block_delta"}


_THOUGHT_MARKS = (b"signature", b"redacted_thinking")  # in the events that end or make up a thinking block


class Relay(Protocol):
    """Bytes for the client, as they come."""

    is_complete: bool

    async def read(self) -> bytes:
        """The next bytes; b"" at the end. Raises RouterError when the connection must be cut for honesty's sake."""
        ...

    def abort(self) -> None:
        """Nobody reads on: let the upstream go. Harmless after the end."""
        ...


class RawRelay:
    """A body passed on as it comes, unmetered: other endpoints, and answers too large to hold.

    `prefix` are bytes already read.
    """

    def __init__(self, exchange: Exchange, reply: UpstreamReply, prefix: bytes = b"") -> None:
        self._exchange = exchange
        self._reply = reply
        self._prefix = prefix
        self.is_complete = False

    async def read(self) -> bytes:
        """See `Relay`."""
        if self._prefix:
            prefix, self._prefix = self._prefix, b""
            return prefix
        attempt = self._exchange.trace.attempts[-1]
        try:
            chunk = await timed_read(self._exchange, self._reply)
        except UpstreamTimeout:
            attempt.outcome = "timeout"
            raise
        except UpstreamBroken:
            attempt.outcome = "cut"
            raise
        except ClientGone:
            attempt.outcome = "client_closed"
            raise
        if not chunk:
            self.is_complete = True
        return chunk

    def abort(self) -> None:
        """See `Relay`."""
        if not self.is_complete:
            self._reply.abort()


class StreamRelay:
    """A stream of server-sent events, passed on as it comes and metered on the way."""

    def __init__(self, exchange: Exchange, reply: UpstreamReply, attempt: Attempt, meter: UsageMeter) -> None:
        self._exchange = exchange
        self._reply = reply
        self._attempt = attempt
        self._meter = meter
        self._decoder = SseDecoder(_UNTIL_FIRST_DELTA, _THOUGHT_MARKS)
        self._has_stopped = False
        self._has_ended = False
        self._signatures: list[str] = []
        self.on_stop: Callable[[tuple[str, ...]], None] | None = None  # see `read`
        self.is_complete = False

    async def read(self) -> bytes:
        """See `Relay`. Before the bytes with `message_stop` are given out, `on_stop` is told the signatures seen."""
        if self._has_ended:
            return b""
        try:
            chunk = await timed_read(self._exchange, self._reply)
        except (UpstreamBroken, UpstreamTimeout) as exc:
            is_over = self._has_stopped or self._meter.error_type is not None
            return self._end() if is_over else self._cut(exc)  # an untidy goodbye takes nothing from a whole answer
        except ClientGone:
            if self._exchange.watch.is_stopping:
                return self._cut(StreamCut("the router is shutting down before the answer was complete"))
            self._attempt.outcome = "client_closed"
            raise
        if not chunk:
            return self._end()
        for event in self._decoder.feed(chunk):
            self._note(event.name, event.data)
        if self._has_stopped and self.on_stop is not None:
            on_stop, self.on_stop = self.on_stop, None  # it refers back to all of the request
            if self._meter.error_type is None:
                on_stop(tuple(self._signatures[:MAX_BLOCKS]))
        return chunk

    def abort(self) -> None:
        """See `Relay`."""
        if not self._has_ended:
            self._reply.abort()

    def _note(self, name: str, data: bytes) -> None:
        if name in ("content_block_start", "content_block_delta") and any(mark in data for mark in _THOUGHT_MARKS):
            self._signatures += _signatures(data)
        if name == "content_block_delta":
            if self._exchange.trace.ttft_s is None:
                self._exchange.trace.ttft_s = self._exchange.clock.now_s()
                self._decoder.wanted = _AFTER_FIRST_DELTA
        elif name == "message_stop":
            self._has_stopped = True
        elif name in ("message_start", "message_delta", "error"):
            try:
                payload = orjson.loads(data)
            except orjson.JSONDecodeError:
                return  # a broken frame is relayed untouched; it cannot be metered
            if isinstance(payload, dict):
                self._meter.event(payload)

    def _end(self) -> bytes:
        """The upstream closed the stream: complete, ended by its own error event, or cut."""
        if self._meter.error_type is not None:
            self._has_ended = True
            self._attempt.outcome = "error"
            self._attempt.error_type = self._meter.error_type
            return b""
        if not self._has_stopped:
            return self._cut(StreamCut("the upstream ended the stream before `message_stop`"))
        self._has_ended = self.is_complete = True
        return b""

    def _cut(self, reason: RouterError) -> bytes:
        """One `error` event behind what was relayed. A half event is closed as part of it, never as one of its own."""
        self._has_ended = True
        self._attempt.outcome = "timeout" if isinstance(reason, UpstreamTimeout) else "cut"
        self._attempt.error_type = reason.wire_type
        self._exchange.trace.error_code = reason.code
        self._reply.abort()
        body = error_body(reason.wire_type, reason.message, self._exchange.trace.request_id or "")
        return self._decoder.line_end() + b"event: error\ndata: " + body + b"\n\n"


def _signatures(data: bytes) -> tuple[str, ...]:
    """The signature that a block's start or delta carries, if it does."""
    try:
        payload = orjson.loads(data)
    except orjson.JSONDecodeError:
        return ()
    if not isinstance(payload, dict):
        return ()
    delta = payload.get("delta")
    if isinstance(delta, dict) and delta.get("type") == "signature_delta":
        return answered_signatures([{**delta, "type": "thinking"}])
    return answered_signatures([payload.get("content_block")])


async def timed_read(exchange: Exchange, reply: UpstreamReply) -> bytes:
    """`reply.read()`, with the wait booked as waiting; an interrupted read of a gone client is ClientGone."""
    started_s = exchange.clock.now_s()
    try:
        return await reply.read()
    finally:
        exchange.clock.waited_s += exchange.clock.now_s() - started_s


async def collect(exchange: Exchange, reply: UpstreamReply, max_bytes: int) -> tuple[bytes, bool]:
    """The body of a reply → (bytes, whether that is all of it); stops reading above `max_bytes`."""
    first = await timed_read(exchange, reply)
    if not first:
        return b"", True
    chunks = [first]
    size = len(first)
    while size <= max_bytes:
        chunk = await timed_read(exchange, reply)
        if not chunk:
            return chunks[0] if len(chunks) == 1 else b"".join(chunks), True
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks), False
