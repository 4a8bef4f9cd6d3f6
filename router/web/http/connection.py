"""One connection of a client: bytes in, requests one at a time, answers out, and a limit on everything.

Theory of operation. A connection is in one of four states, and its deadline belongs to the state:

- *idle*, until the first byte of a head: `first_byte_s` before the first request, `keep_alive_s` after it;
- *in a head*, until its empty line: `head_s` from its first byte, and no further byte moves it;
- *at work* on a request: `body_idle_s` and a least rate while its body comes, `write_idle_s` while the client does not
  take what was written, else none;
- *lingering*, after an answer that closes the connection, until the client closes it too: `linger_s`.

What arrives behind a request waits until that is answered, and beyond `HELD_BYTES` in the kernel. A head is read by
`head.py` and by nothing else. Every answer to bytes that were refused closes the connection: where its next request
would begin is not known. uvicorn makes these objects and asks two things of them: to be in `connections` of its state,
and `shutdown()`.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote

from router.web.http.cycle import Application, Cycle
from router.web.http.head import HEAD_END, Head, PartialHead, parse_head
from router.web.http.limits import HELD_BYTES
from router.web.http.lobby import Lobby
from router.web.http.outlet import Outlet
from router.web.http.refusal import OVERLOADED, STOPPING, Refused, refusal

_ASGI = "3.0"


class HttpConnection(Outlet):
    """The protocol that `uvicorn.Config(http=…)` is given, with the listener's `lobby` filled in."""

    __slots__ = (
        "_application",
        "_asgi",
        "_body_since",
        "_body_taken",
        "_buffer",
        "_client",
        "_connections",
        "_cycle",
        "_in_line",
        "_is_closing",
        "_is_new",
        "_partial",
        "_paused_at",
        "_scheme",
        "_server",
        "_tasks",
    )

    def __init__(
        self,
        config: Any,
        server_state: Any,
        app_state: Any,
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        lobby: Lobby,
    ) -> None:
        super().__init__(_loop or asyncio.get_running_loop(), lobby)
        self._application: Application = config.loaded_app
        self._connections: set[Any] = server_state.connections
        self._tasks: set[asyncio.Task[None]] = server_state.tasks
        self._asgi = {"version": _ASGI, "spec_version": "2.3"}
        self._buffer = lobby.buffer
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self._scheme = "http"
        # What comes in
        self._partial: PartialHead | None = None
        self._cycle: Cycle | None = None  # the request whose answer is not complete, or whose body is being skipped
        self._in_line: list[bytes] = []
        self._is_new = True  # no request yet
        self._is_closing = False  # after the answer under way
        self._body_since = 0.0  # when the body began, later by all the time that we did not read
        self._body_taken = 0
        self._paused_at = 0.0

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        super().connection_made(transport)
        self._connections.add(self)
        self._client = _address(transport.get_extra_info("peername"))
        self._server = _address(transport.get_extra_info("sockname"))
        self._scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        may_stay = self.lobby.opened()
        if may_stay is None:
            self.transport.abort()
        elif not may_stay:
            self._answer_refused(Refused("connections", "the router has no room for another connection", OVERLOADED))
        else:
            self.lobby.rests(self)
            self._deadline.expire_in(self.lobby.limits.first_byte_s)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Called by the event loop before each read."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the event loop with bytes in the shared buffer."""
        data = bytes(self._buffer[:nbytes])
        if self._is_lingering:
            self._pass_over(nbytes)
            return
        cycle = self._cycle
        try:
            if cycle is None:
                self._take_head(data)
            elif not cycle.is_complete:
                self._take_body(cycle, data)
            else:
                self._wait_in_line(data)
        except Refused as refused:
            self._refuse(refused)

    def eof_received(self) -> bool:
        """Called by the event loop when the client closes its side: proxies hold that it has gone then."""
        if self._cycle is not None:
            self._cycle.gone()
        self._is_lingering = True
        self._deadline.expire_in(self.lobby.limits.linger_s)  # for what it has not taken yet
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop, once."""
        self._connections.discard(self)
        self.lobby.closed(self)
        self._deadline.cancel()
        self._is_lingering = True
        self._in_line = []
        self._partial = None
        cycle, self._cycle = self._cycle, None
        if cycle is not None:
            cycle.gone()
        self.resume_writing()

    # The server's side

    def shutdown(self) -> None:
        """Close now, or after the answer under way; a moment after it where its head has promised to stay."""
        was_closing, self._is_closing = self._is_closing, True
        if self._is_lingering:  # it has an end already, which must not be put off
            return
        if self._cycle is None and (not was_closing or self._partial is not None):
            self._close()
        elif self._cycle is not None and not self._cycle.is_started:
            self._cycle.keeps_alive = False

    def close_idle(self) -> None:
        """Close a connection without a request."""
        self._close()

    def refuse_upload(self) -> None:
        """Refuse a request whose body is still coming: the process ends. Others are the application's."""
        cycle = self._cycle
        if cycle is not None and not cycle.is_complete and not self._is_lingering:
            self._refuse(Refused("stopping", "the router is shutting down", STOPPING))

    # Requests

    def _take_head(self, data: bytes) -> None:
        """Bytes where a request may begin, or goes on to begin."""
        partial = self._partial
        if partial is None:
            end = data.find(HEAD_END)
            if end >= 0:
                self._begin(parse_head(data[:end]), data[end + 4 :])
                return
            partial = PartialHead()
            if not partial.feed(data):
                if not partial.is_blank:
                    self._partial = partial
                    self.lobby.works(self)
                    self._allow(self.lobby.limits.head_s)
                return
        elif not partial.feed(data):
            return
        self._partial = None
        self._begin(parse_head(partial.raw), partial.rest)

    def _begin(self, head: Head, rest: bytes) -> None:
        """Start the application on a request; `rest` are the bytes behind its head."""
        self._is_new = False
        self.lobby.works(self)
        raw_path = head.path
        path = raw_path.decode("ascii")
        cycle = Cycle(
            self,
            head,
            {
                "type": "http",
                "asgi": self._asgi,
                "http_version": "1.1" if head.is_1_1 else "1.0",
                "method": head.method,
                "scheme": self._scheme,
                "path": unquote(path) if "%" in path else path,
                "raw_path": raw_path,
                "query_string": head.query,
                "root_path": "",
                "headers": head.headers,
                "client": self._client,
                "server": self._server,
                "state": {},
            },
        )
        if self._is_closing:
            cycle.keeps_alive = False
        self._cycle = cycle
        length = head.length
        if 0 <= length <= len(rest):  # all of it is here already
            self._allow(None)
            if length:
                cycle.fill(rest[:length])
            if len(rest) > length:
                self._wait_in_line(rest[length:])
        else:
            self._body_since = self._loop.time()
            self._body_taken = 0
            if rest:
                self._take_body(cycle, rest)
            else:
                self._allow(self.lobby.limits.body_idle_s)
        task = cycle.task = self._loop.create_task(cycle.run(self._application))
        self._tasks.add(task)

    def _take_body(self, cycle: Cycle, data: bytes) -> None:
        """Bytes of the body, and perhaps of what comes behind it."""
        decoder = cycle.decoder
        rest = b""
        if decoder is not None:
            may_go_on = cycle.take(decoder.feed(data))
            if decoder.is_done:
                rest = decoder.rest
                cycle.end_body()
        else:
            missing = cycle.missing - len(data)
            if missing < 0:
                data, rest = data[: cycle.missing], data[cycle.missing :]
            cycle.missing = max(missing, 0)
            may_go_on = cycle.take(data)
            if missing <= 0:
                cycle.end_body()
        if cycle.is_complete:
            self._allow(None)
            if rest:
                self._wait_in_line(rest)
            if cycle.is_answered:
                self._next()
            return
        self._body_taken += len(data)
        self._check_rate()
        if may_go_on:
            self._allow(self.lobby.limits.body_idle_s)
        else:
            self._pause()

    def _check_rate(self) -> None:
        limits = self.lobby.limits
        late_s = self._loop.time() - self._body_since - limits.body_grace_s
        if late_s > 0 and self._body_taken < late_s * limits.body_bytes_per_s:
            raise Refused("body_time", f"the body comes with under {limits.body_bytes_per_s:g} bytes a second", 408)

    def _wait_in_line(self, data: bytes) -> None:
        """Bytes behind a request that is not answered yet."""
        self._in_line.append(data)
        if len(self._in_line) > 64:  # many small pieces
            self._in_line = [b"".join(self._in_line)]
        if sum(map(len, self._in_line)) >= HELD_BYTES:
            self._pause()

    def _next(self) -> None:
        """The request and its answer are complete: go on with what waits in line, or rest."""
        self._cycle = None
        waiting, self._in_line = self._in_line, []
        if not waiting:
            self.lobby.rests(self)
        self._allow(self.lobby.limits.leaving_s if self._is_closing else self.lobby.limits.keep_alive_s)
        if self._is_paused:
            self._resume()
        if waiting:
            try:
                self._take_head(waiting[0] if len(waiting) == 1 else b"".join(waiting))
            except Refused as refused:
                self._refuse(refused)
            if self._cycle is None and self._partial is None and not self._is_lingering:
                self.lobby.rests(self)

    # The cycle's side

    def wants_body(self) -> None:
        """The application waits for the body: read on."""
        if self._is_paused:
            self._body_since += self._loop.time() - self._paused_at
            self._allow(self.lobby.limits.body_idle_s)
            self._resume()

    def answered(self, cycle: Cycle, *, keeps_alive: bool) -> None:
        """The answer is complete: the connection is free, skips the rest of a small body, or is closed."""
        self.lobby.requests += 1
        if not keeps_alive:
            self._cycle = None
            if cycle.is_complete and not self._in_line:
                self._close()
            else:
                self._linger(self.lobby.limits.linger_s)
        elif cycle.is_complete:
            self._next()
        else:  # a body that nobody wanted, little of which is missing
            self._allow(self.lobby.limits.body_idle_s)
            if self._is_paused:
                self._resume()

    def cut(self, *, is_until_close: bool) -> None:
        """End an answer that is not complete; one that only the connection's end would end, ends with a reset."""
        cycle, self._cycle = self._cycle, None
        if cycle is not None:
            cycle.gone()
        if is_until_close:
            self._close_with_reset()
        else:
            self._close()

    def left(self, cycle: Cycle) -> None:
        """The application has returned."""
        if cycle.task is not None:
            self._tasks.discard(cycle.task)
            cycle.task = None

    # Ends

    def _refuse(self, refused: Refused) -> None:
        """Answer bytes that will not be served, if no answer is under way, and close."""
        self.lobby.refused(refused.reason)
        cycle, self._cycle = self._cycle, None
        if cycle is not None and cycle.is_started and not cycle.is_answered:
            cycle.gone()
            self.transport.abort()
            return
        if cycle is not None:
            cycle.gone()
            if cycle.is_answered:  # a second answer would be taken for that to the next request
                self._close()
                return
        self.lobby.works(self)
        self._answer_refused(refused)

    def _answer_refused(self, refused: Refused) -> None:
        self.transport.write(refusal(refused, self.lobby.new_request_id()))
        limits = self.lobby.limits
        self._lingered = limits.linger_bytes - limits.refused_linger_bytes  # as if it had sent that much already
        self._linger(limits.refused_linger_s)

    def _pause(self) -> None:
        """Read no more until somebody wants it; meanwhile it is not the client who is slow."""
        if not self._is_paused and not self.transport.is_closing():
            self._is_paused = True
            self._paused_at = self._loop.time()
            self.transport.pause_reading()
            if self._cycle is not None and not self._cycle.is_complete:
                self._allow(None)

    # Time

    def _set_deadline(self) -> None:
        """The deadline of the state that we are in, after one for writing."""
        cycle, limits = self._cycle, self.lobby.limits
        if cycle is None:
            if self._partial is None:
                self._allow(limits.leaving_s if self._is_closing else limits.keep_alive_s)
            else:
                self._allow(limits.head_s)
        elif cycle.is_complete or self._is_paused:
            self._allow(None)
        else:
            self._allow(limits.body_idle_s)

    def _silent(self) -> None:
        cycle, limits = self._cycle, self.lobby.limits
        if self._partial is not None:
            self._refuse(Refused("head_time", f"the head did not come within {limits.head_s:g} s", 408))
        elif cycle is None:
            if self._is_new:
                self.lobby.cut("never_used")
            self._close()
        elif not cycle.is_complete:
            self._refuse(Refused("body_time", f"no byte of the body came for {limits.body_idle_s:g} s", 408))
        else:
            self._deadline.hold()


def _address(name: Any) -> tuple[str, int] | None:
    """Host and port of a socket's name; None for one of another family."""
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) and len(name) >= 2 else None
