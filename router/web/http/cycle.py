"""One request and its answer, as an ASGI application meets them.

The application's task runs `run`; `receive` and `send` are what ASGI says. Whoever must know at once that the client
has gone sets `on_gone` instead of waiting in `receive`: it costs an assignment, and no task (`web/disconnect.py`). The
cycle is found as what `receive` is a method of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from router.web.http.chunks import ChunkDecoder
from router.web.http.head import Head
from router.web.http.limits import HELD_BYTES, PIECE_BYTES
from router.web.http.lobby import Lobby
from router.web.http.refusal import failure
from router.web.http.reply import BY_LENGTH, CHUNKS, CONTINUE, LAST_CHUNK, NO_BODY, ReplyHead

Message = MutableMapping[str, Any]
Application = Callable[[Any, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

# A key of ours in the message that begins an answer: the whole body is the next message, without a wait in between.
HAS_BODY_AT_HAND = "router.has_body_at_hand"


class Line(Protocol):
    """What a cycle asks of its connection."""

    lobby: Lobby
    is_full: bool  # the client has not taken what was written

    def write(self, data: bytes | memoryview) -> None:
        """Send bytes."""

    async def drain(self) -> None:
        """Wait until the client has taken enough, or has gone."""

    def wants_body(self) -> None:
        """The application waits for the body."""

    def answered(self, cycle: Cycle, *, keeps_alive: bool) -> None:
        """The answer is complete."""

    def cut(self, *, is_until_close: bool) -> None:
        """The answer will not be completed: close so that the client can tell."""

    def left(self, cycle: Cycle) -> None:
        """The application has returned."""


class Cycle:
    """A request under way. The connection fills it with `take` and `end_body`; `gone` ends it."""

    __slots__ = (
        "_body",
        "_expects",
        "_framing",
        "_held_head",
        "_is_taken",
        "_left",
        "_line",
        "_reply",
        "_wake",
        "decoder",
        "head",
        "held",
        "is_answered",
        "is_complete",
        "is_gone",
        "is_started",
        "keeps_alive",
        "missing",
        "on_gone",
        "scope",
        "task",
    )

    def __init__(self, line: Line, head: Head, scope: MutableMapping[str, Any]) -> None:
        self._line = line
        self.head = head
        self.scope = scope
        self.task: asyncio.Task[None] | None = None
        # The request's body
        self._body: list[bytes] = []
        self._expects = head.expects
        self._is_taken = False  # the application has all of it
        self._wake: asyncio.Event | None = None  # made by the first `receive` that has to wait
        self.held = 0  # bytes in `_body`
        self.missing = head.length  # bytes still to come; CHUNKED while the decoder has not seen the end
        self.decoder = ChunkDecoder() if head.length < 0 else None
        self.is_complete = head.length == 0
        # The answer
        self._reply: tuple[int, Any] | None = None
        self._framing = NO_BODY
        self._held_head = b""  # waits for the body, so that both are one write
        self._left = 0  # bytes of a body BY_LENGTH that were not sent
        self.keeps_alive = head.keeps_alive
        self.is_started = False
        self.is_answered = False
        # The client
        self.is_gone = False
        self.on_gone: Callable[[], None] | None = None

    async def run(self, application: Application) -> None:
        """Let the application answer, and close its books whatever it does."""
        try:
            await application(self.scope, self.receive, self.send)
            if not self.is_answered and not self.is_gone:
                self._give_up()
        except asyncio.CancelledError:
            self._give_up()
            raise
        except Exception as exc:  # an application's bug ends its own request and no other
            report = self._line.lobby.report
            if report is not None:
                report("", exc)
            self._give_up()
        finally:
            self.on_gone = None
            self._line.left(self)

    # The connection's side

    def take(self, piece: bytes) -> bool:
        """Keep a piece of the body until the application asks → whether reading may go on."""
        if self.is_answered:  # nobody will ask for it
            return True
        if piece:
            self._body.append(piece)
            self.held += len(piece)
            self._tell()
        return self.held <= HELD_BYTES

    def fill(self, body: bytes) -> None:
        """The whole body, before the application runs."""
        self._body = [body]
        self.held = len(body)
        self.missing = 0
        self.is_complete = True

    def end_body(self) -> None:
        """The body is complete."""
        self.missing = 0
        self.is_complete = True
        self._tell()

    def gone(self) -> None:
        """The client has gone, or is given up."""
        if self.is_gone:
            return
        self.is_gone = True
        self._tell()
        if self.on_gone is not None and not self.is_answered:
            self.on_gone()

    # The application's side

    def unwatch(self) -> None:
        """Forget `on_gone`."""
        self.on_gone = None

    async def receive(self) -> Message:
        """The next piece of the body, or `http.disconnect` once the client has gone or has its answer."""
        while not self.is_gone:
            if self.held or (self.is_complete and not self._is_taken):
                body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
                self._body = []
                self.held = 0
                self._is_taken = self.is_complete
                return {"type": "http.request", "body": body, "more_body": not self.is_complete}
            if self.is_answered:
                break
            if self._expects and not self.is_complete:
                if self.is_started:  # a client that was told no does not send its body
                    break
                self._expects = False
                self._line.write(CONTINUE)
            if not self.is_complete:
                self._line.wants_body()
            if self._wake is None:
                self._wake = asyncio.Event()
            self._wake.clear()
            await self._wake.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """One message of the answer. Waits while the client is slow; what is sent to one that has gone is dropped.

        A start with `HAS_BODY_AT_HAND` goes out with the body, which must be sent at once: one system call and one
        packet instead of two.
        """
        line = self._line
        if line.is_full:
            await line.drain()
        if self.is_gone:
            return
        if not self.is_started:
            self._start(message)
        elif self.is_answered:
            raise RuntimeError("the answer is complete already")
        else:
            body: bytes = message.get("body", b"")
            is_last = not message.get("more_body", False)
            if len(body) > PIECE_BYTES and self._framing != NO_BODY:
                await self._send_large(body)
                body = b""
                if self.is_gone:
                    return
            self._send(body, is_last=is_last)
            if is_last:
                self._finish()

    def _start(self, message: Message) -> None:
        if message["type"] != "http.response.start":
            raise RuntimeError("an answer begins with its status and headers")
        line = self._line
        is_unread = not self.is_complete and (self._expects or not 0 < self.missing <= line.lobby.limits.skipped_bytes)
        reply = ReplyHead(
            message["status"],
            message.get("headers", ()),
            is_head_request=self.head.method == "HEAD",
            is_1_1=self.head.is_1_1,
            keeps_alive=self.keeps_alive and not is_unread and not line.lobby.is_draining,
        )
        line.lobby.dropped_headers += reply.dropped
        self.is_started = True
        self.keeps_alive = reply.keeps_alive
        self._framing = reply.framing
        self._left = reply.length
        if message.get(HAS_BODY_AT_HAND):
            self._held_head = reply.data
        else:
            line.write(reply.data)

    def _release_head(self) -> None:
        if self._held_head:
            head, self._held_head = self._held_head, b""
            self._line.write(head)

    def _send(self, body: bytes | memoryview, *, is_last: bool) -> None:
        """Write a piece in the framing of the head."""
        framing = self._framing
        if self._held_head:
            if framing == BY_LENGTH and len(body) == self._left:
                head, self._held_head, self._left = self._held_head, b"", 0
                self._line.write(head + body)
                return
            self._release_head()
        if framing == CHUNKS:
            if body:
                data = b"%x\r\n%b\r\n" % (len(body), body)  # type: ignore[str-format]  # any buffer will do
                self._line.write(data + LAST_CHUNK if is_last else data)
            elif is_last:
                self._line.write(LAST_CHUNK)
        elif framing == BY_LENGTH:
            self._left -= len(body)
            if self._left < 0:
                raise RuntimeError("the answer is longer than its Content-Length")
            if body:
                self._line.write(body)
        elif framing != NO_BODY and body:
            self._line.write(body)

    async def _send_large(self, body: bytes) -> None:
        """Piece by piece, so that what a slow client leaves standing stays small."""
        view = memoryview(body)
        for at in range(0, len(view), PIECE_BYTES):
            self._send(view[at : at + PIECE_BYTES], is_last=False)
            if self._line.is_full:
                await self._line.drain()
                if self.is_gone:
                    return

    def _finish(self) -> None:
        if self._framing == BY_LENGTH and self._left:
            self._give_up()
            return
        self.is_answered = True
        self._body = []
        self.held = 0
        if self._wake is not None:
            self._wake.set()
        self._line.answered(self, keeps_alive=self.keeps_alive)

    def _give_up(self) -> None:
        """The answer will not come to its end."""
        if self.is_gone or self.is_answered:
            return
        if self.is_started:
            self._release_head()
            self._line.lobby.cut("incomplete")
            self._line.cut(is_until_close=self._framing not in (BY_LENGTH, CHUNKS))
            return
        self.is_started = True
        self.is_answered = True
        self._line.write(failure(self._line.lobby.new_request_id()))
        self._line.answered(self, keeps_alive=False)

    def _tell(self) -> None:
        if self._wake is not None:
            self._wake.set()
