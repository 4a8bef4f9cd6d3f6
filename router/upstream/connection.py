"""One connection to the upstream, and one exchange on it: bytes out, bytes in, nothing shared between two exchanges.

Theory of operation. An `Exchange` is one request with its answer; it is what the flow holds, from `start()` to the
last byte. A `Connection` carries at most one exchange at a time. The parser's callbacks run while bytes arrive: they
fill the exchange and wake the one coroutine that may wait on it, so that no task stands between socket and client.
Three rules keep answers apart (fault F26):

1. A connection goes back to the pool only after its answer is complete by the answer's own framing, its request is
   written to the last byte, and nothing came after the answer. Everything else closes it.
2. Bytes on a connection without an exchange close it.
3. Whoever ends an exchange early (abort, deadline, error) closes its connection in the same step.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterator
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from router.errors import InternalError, UpstreamBroken, UpstreamTimeout
from router.upstream.deadline import Deadline
from router.upstream.exchange import Exchange
from router.upstream.pool import Pool

READ_BYTES = 32 * 1024  # one read from the socket; with what waits and what is being sent, a slow reader holds 80 KiB
HIGH_WATER_BYTES = 16 * 1024  # unread answer bytes at which the upstream is throttled; one more read may follow
LITTLE_BYTES = 16 * 1024  # one read while there is something to read
MAX_HEAD_BYTES = 64 * 1024  # status line, headers and trailers of one answer
_JOINED_BODY_BYTES = 64 * 1024  # up to here head and body are one write; copying costs less than a second write
_PIECE_BYTES = 128 * 1024  # of a larger body, handed to the transport at a time
_STALE_WINDOW_S = 1.0  # a reused connection that dies later than this after sending had probably accepted the request


class Connection(asyncio.BufferedProtocol):
    """A socket to the upstream with its parser; carries one exchange, or waits idle in the pool."""

    __slots__ = (
        "_deadline",
        "_exchange",
        "_fault",
        "_has_bytes",
        "_head_bytes",
        "_headers",
        "_is_complete",
        "_is_dropped",
        "_is_paused",
        "_is_reused",
        "_is_write_paused",
        "_keeps_alive",
        "_loop",
        "_parser",
        "_pool",
        "_sent_at",
        "_transport",
        "_unsent",
    )

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._fault = ""  # what a callback found wrong; callbacks do not raise, so that the parser stays simple
        self._has_bytes = False  # since the request was sent
        self._is_complete = False
        self._keeps_alive = False
        self._is_reused = False
        self._is_paused = False
        self._is_write_paused = False
        self._is_dropped = False
        self._unsent: Iterator[memoryview] | None = None  # of a large body: the pieces to come
        self._sent_at = 0.0
        self._deadline = Deadline(loop, self._overdue)

    # The pool's side

    @property
    def is_usable(self) -> bool:
        """Connected, and not about to close."""
        return not self._is_dropped and self._transport is not None and not self._transport.is_closing()

    def send(self, exchange: Exchange, *, is_reused: bool) -> None:
        """Write the request and become the carrier of `exchange`."""
        self._exchange = exchange
        exchange.connection = self
        self._headers = []
        self._head_bytes = 0
        self._has_bytes = False
        self._is_complete = False
        self._is_reused = is_reused
        self._sent_at = self._loop.time()
        call = exchange.call
        self._deadline.limit(exchange.due_at)
        self._deadline.expire_in(call.deadlines.first_byte)
        body = call.body
        if isinstance(body, bytes) and len(body) <= _JOINED_BODY_BYTES:
            self._write(exchange.head + body if body else exchange.head)
        else:
            self._unsent = _cut(body) if isinstance(body, bytes) else body.pieces(_PIECE_BYTES)
            self._write(exchange.head)
            self._send_more()

    def rest(self) -> None:
        """Start the idle period after which the connection closes itself."""
        self._deadline.limit(math.inf)
        self._deadline.expire_in(self._pool.idle_ttl_s)

    def resume(self) -> None:
        """Read on, if the reader's slowness had stopped reading."""
        if self._is_paused and self.is_usable and self._transport is not None:
            self._is_paused = False
            if self._exchange is not None:
                self._deadline.expire_in(self._exchange.call.deadlines.idle)
            self._transport.resume_reading()

    def end(self, why: str) -> None:
        """Close at once; an exchange under way fails with `UpstreamBroken`."""
        exchange = self._let_go()
        if exchange is not None:
            exchange.fail(UpstreamBroken(f"the call to `{self._pool.name}` was cut: {why}"))
        self.drop()

    def drop(self) -> None:
        """Close at once, without sending what is unsent; the exchange, if any, must have been ended by the caller."""
        if self._is_dropped:
            return
        self._is_dropped = True
        self._exchange = None
        self._unsent = None
        self._parser = None  # it refers back to us
        self._deadline.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._pool.dropped(self)

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Called by the event loop before each read."""
        exchange = self._exchange
        # While somebody has bytes to read, no more than a little is fetched: what a slow reader leaves stays small.
        return self._pool.buffer if exchange is None or not exchange.buffered else self._pool.buffer[:LITTLE_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the event loop with bytes in the shared buffer; they are parsed before it returns."""
        self._parse(self._pool.buffer[:nbytes])
        self._parsed(nbytes)

    def _parse(self, data: memoryview) -> None:
        """Take plain bytes of the answer; `_parsed` must follow once all that came in one read are taken."""
        parser = self._parser
        if self._exchange is None or parser is None:
            self.drop()  # nobody asked for these bytes
            return
        self._has_bytes = True
        try:
            parser.feed_data(data)
        except HttpParserError as exc:
            self._refuse(f"the answer is not HTTP/1.1: {str(exc).lower()}", exc)
        except HttpParserUpgrade as exc:
            self._refuse("the answer switches protocols", exc)

    def _parsed(self, nbytes: int) -> None:
        """Draw the conclusions: not before the last byte of a read, which may be one too many (F26)."""
        exchange = self._exchange
        if exchange is None:
            return
        if self._fault:
            self._refuse(self._fault, None)
        elif self._is_complete:
            self._settle(exchange)
        elif not exchange.status:
            self._head_bytes += nbytes
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(f"the head of the answer is over {MAX_HEAD_BYTES} bytes", None)
        elif not self._is_paused:
            self._deadline.expire_in(exchange.call.deadlines.idle)

    def eof_received(self) -> bool:
        """Called by the event loop when the upstream closes its side."""
        self._ended(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop, once, after the connection has ended for whatever reason."""
        if exc is not None and self._exchange is not None:
            self._hear_last_words()
        self._ended(exc)
        self._pool.gone(self)

    def pause_writing(self) -> None:
        """Called by the event loop when the upstream does not take the request as fast as we write it."""
        self._is_write_paused = True

    def resume_writing(self) -> None:
        """Called by the event loop when there is room again."""
        self._is_write_paused = False
        if self._unsent is not None:
            self._send_more()

    # The parser's side

    def on_message_begin(self) -> None:
        """Called by the parser at the first byte of a message; none should come after a complete answer."""
        if self._is_complete:
            self._fault = "bytes follow the end of the answer"

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser per header line, and per trailer."""
        exchange = self._exchange
        if exchange is not None and not exchange.status:
            self._headers.append((name.lower(), value))
            return
        self._head_bytes += len(name) + len(value)  # a trailer: counted, not kept
        if self._head_bytes > MAX_HEAD_BYTES:
            self._fault = f"the trailers of the answer are over {MAX_HEAD_BYTES} bytes"

    def on_headers_complete(self) -> None:
        """Called by the parser at the end of a head, final or informational (1xx)."""
        parser, exchange = self._parser, self._exchange
        if parser is None or exchange is None or self._is_complete:
            return
        status = parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._headers = []  # 100 Continue, 103 Early Hints: the final answer follows
            return
        if not 200 <= status <= 599:
            self._fault = f"the answer has status {status}, which is not a final one"
            return
        self._keeps_alive = parser.should_keep_alive()
        headers, self._headers = self._headers, []
        if self._head_bytes and sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
            self._fault = f"the head of the answer is over {MAX_HEAD_BYTES} bytes"
            return
        exchange.begin(status, headers)
        if exchange.call.method == "HEAD":  # the parser cannot know, so the connection ends with the answer
            self._keeps_alive = False
            self._is_complete = True

    def on_body(self, body: bytes) -> None:
        """Called by the parser per piece of body."""
        exchange = self._exchange
        if exchange is None or self._is_complete:
            return
        if exchange.take(body) > HIGH_WATER_BYTES and not self._is_paused:
            self._is_paused = True
            self._deadline.hold()  # now it is we who are silent; the whole has its limit all the same
            if self._transport is not None and not self._transport.is_closing():
                self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """Called by the parser at the end of a message, informational ones included."""
        exchange = self._exchange
        if exchange is not None and exchange.status:
            self._is_complete = True

    # Ends

    def _let_go(self) -> Exchange | None:
        """Part from the exchange under way."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.connection = None
        return exchange

    def _settle(self, exchange: Exchange) -> None:
        """The answer is complete: hand it over, then keep the connection only if it is clean."""
        self._let_go()
        exchange.complete()
        transport = self._transport
        if (
            not self._keeps_alive
            or self._fault
            or self._unsent is not None
            or transport is None
            or transport.is_closing()
            or transport.get_write_buffer_size()
        ):
            self.drop()
            return
        self.resume()
        self._pool.free(self)

    def _refuse(self, message: str, cause: Exception | None) -> None:
        """Bytes that may not be believed; an answer that was complete before them stands (F22)."""
        exchange = self._exchange
        if exchange is not None:
            self._fault = message
            if self._is_complete:
                self._settle(exchange)
                return
            self._let_go()
            error = UpstreamBroken(
                f"`{self._pool.name}` cannot be understood: {message}",
                hint="the upstream, or a proxy before it, is at fault; the request may have been charged",
            )
            error.__cause__ = cause
            exchange.fail(error)
        self.drop()

    def _ended(self, cause: Exception | None) -> None:
        """The upstream closed or reset the connection."""
        exchange = self._let_go()
        has_bytes, was_reused = self._has_bytes, self._is_reused
        self.drop()
        if exchange is None:
            return
        if exchange.status and cause is None and exchange.is_until_close:
            exchange.complete()
            return
        is_stale = self._loop.time() - self._sent_at <= _STALE_WINDOW_S
        if was_reused and not has_bytes and exchange.may_resend and is_stale:
            exchange.may_resend = False
            self._pool.again(exchange)
            return
        where = "inside its answer" if exchange.status else "before it answered"
        error = UpstreamBroken(
            f"`{self._pool.name}` closed the connection {where}",
            hint="the request may have been charged; its trace shows what had arrived",
        )
        error.__cause__ = cause
        exchange.fail(error)

    def _hear_last_words(self) -> None:
        """Read what had arrived before the upstream reset the connection.

        An upstream that refuses a large body answers, and closes without reading on (F24). Our next write then fails,
        and the event loop gives the connection up with the answer still unread in the kernel.
        """
        fd = self._transport.get_extra_info("socket").fileno() if self._transport is not None else -1
        while self._exchange is not None and fd >= 0:
            try:
                nbytes = os.readv(fd, [self._pool.buffer])
            except OSError:  # the reset itself, after all that came before it
                return
            if not nbytes:
                return
            self.buffer_updated(nbytes)

    # Writing and time

    def _write(self, data: bytes | memoryview) -> None:
        """Hand bytes of the request to the transport."""
        if self._transport is None:
            raise InternalError("a request was given to a connection that is not open")
        if not self._transport.is_closing():  # else `connection_lost` is on its way and tells
            self._transport.write(data)

    def _send_more(self) -> None:
        """Write pieces of a large body until the transport has had enough; it asks for more by `resume_writing`."""
        unsent, transport = self._unsent, self._transport
        if unsent is None or transport is None:
            return
        while not self._is_write_paused and not transport.is_closing():
            piece = next(unsent, None)
            if piece is None:
                self._unsent = None
                break
            self._write(piece)
        exchange = self._exchange
        if exchange is not None and not exchange.status:
            self._sent_at = self._loop.time()
            self._deadline.expire_in(exchange.call.deadlines.first_byte)

    def _overdue(self) -> None:
        """Called by the deadline: end the exchange under way, or the idle connection."""
        exchange = self._let_go()
        if exchange is not None:
            deadlines = exchange.call.deadlines
            if self._loop.time() >= exchange.due_at:
                what = "was not done when the time for the whole request was over"
            elif exchange.status:
                what = f"was silent inside its answer for {deadlines.idle:g} s"
            else:
                what = f"did not answer within {deadlines.first_byte:g} s"
            hint = "the request may have been charged; a rule's `timeout` moves this limit"
            exchange.fail(UpstreamTimeout(f"`{self._pool.name}` {what}", hint=hint))
        self.drop()


def _cut(body: bytes) -> Iterator[memoryview]:
    """A large body in pieces; nothing is copied."""
    view = memoryview(body)
    for at in range(0, len(view), _PIECE_BYTES):
        yield view[at : at + _PIECE_BYTES]
