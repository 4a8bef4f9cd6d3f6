"""The answer to a request that is not let in: 529 in the API's shape, and when to come back.

It has to cost next to nothing, because it is given when there is no time. The headers are made once; the trace is a
thin record, and there are at most `RECORDS_PER_S` of those: beyond that a request that was turned away is counted, and
the next record says how many it stands for.

A client that honours `retry-after` comes back in a second or more. One that does not comes back at once, on the same
connection, and thousands of such answers a second are work too. So while the brake is on, these answers are **held**:
they leave in the order of their arrival, as many in a second as cost about a tenth of the process's time (`release`),
and a connection that waits for its answer asks nothing meanwhile.

The body is not read. What comes of a small one the server throws away; behind a large one, or one of unknown length, it
closes the connection, once the client has had time to read its answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from router.errors import Overloaded
from router.seams import TraceSink
from router.serve.headers import first
from router.trace.context import adopt
from router.trace.record import Trace
from router.web.http.cycle import HAS_BODY_AT_HAND
from router.web.paths import endpoint_of, split_policy

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

RECORDS_PER_S = 50
LINGER_S = 10.0  # a client at 50 Mbit/s sends the largest Messages body in half of it
_LEFT_TO_SERVER = 256 * 1024  # bytes of a body that are thrown away as they come
_HELD_MAX = 2_000
_SHED_COST = 0.12  # of what a request costs that is served

_MESSAGES = {
    "working": "the router is at work on as many requests as it can take",
    "tenant": "you have as many requests under way as one tenant may have",
    "key": "you have as many requests under way as this key may have",
    "bodies": "the router holds as many request bodies as it has room for",
    "lag": "the router has more to do than it can, and you more than your share of it",
    "memory": "the router is short of memory",
}


class Shedding:
    """Turns requests away. `jitter` gives numbers in [0, 1); `wall_clock_ns` is Unix time; `is_braking` says whether
    there is no time even for this. `is_trace_continued`: a caller's `traceparent` says which trace a request belongs
    to. `sinks` take the traces."""

    def __init__(
        self,
        jitter: Callable[[], float],
        wall_clock_ns: Callable[[], int],
        is_braking: Callable[[], bool],
        *,
        is_trace_continued: bool = False,
    ) -> None:
        self.sinks: Sequence[TraceSink] = ()
        self._jitter = jitter
        self._wall_clock_ns = wall_clock_ns
        self._is_braking = is_braking
        self._is_trace_continued = is_trace_continued
        self._held: deque[asyncio.Future[None]] = deque()
        self._records = float(RECORDS_PER_S)
        self._skipped = 0  # since the last record
        self._unrecorded = 0
        self._credit = 0.0
        status = f'router; error=proxy_internal_error; details="{Overloaded.code}"'.encode()
        self._headers = [
            (b"content-type", b"application/json"),
            (b"proxy-status", status),
            (b"x-should-retry", b"true"),
            (b"x-router-cache", b"bypass"),
        ]

    def figures(self) -> Mapping[str, int]:
        """For the metrics: answers that are held, and requests that got no trace of their own."""
        return {"held": len(self._held), "unrecorded": self._unrecorded}

    def release(self, seconds: float, served_per_s: float) -> None:
        """Let held answers go after another `seconds`, in which requests were served at that rate."""
        self._records = min(2.0 * RECORDS_PER_S, self._records + seconds * RECORDS_PER_S)
        held = self._held
        if not held:
            self._credit = 0.0
            return
        self._credit += seconds * max(100.0, served_per_s * 0.1 / _SHED_COST)
        if not self._is_braking():
            self._credit = max(self._credit, 50.0)
        while held and self._credit >= 1:
            waiting = held.popleft()
            if not waiting.done():  # else its client has gone
                waiting.set_result(None)
                self._credit -= 1

    def let_go(self) -> None:
        """Give out all answers that are held: the server stops."""
        while self._held:
            waiting = self._held.popleft()
            if not waiting.done():
                waiting.set_result(None)

    async def turn_away(
        self,
        reason: str,
        tenant: str,
        key: str,
        trace_id: str,
        declared: int | None,
        scope: Scope,
        send: Send,
    ) -> None:
        """Answer one request that was refused for `reason`; `declared` is the length of its body, None: unknown."""
        trace = Trace(trace_id, self._wall_clock_ns())
        adopt(trace, scope["headers"], is_continued=self._is_trace_continued)
        if self._is_braking() and len(self._held) < _HELD_MAX:
            turn = asyncio.get_running_loop().create_future()
            self._held.append(turn)
            await turn
        request_id = b"req_" + trace_id.encode()
        wait_ms = 1000 + int(self._jitter() * 2000)
        body = b'{"type":"error","error":{"type":"overloaded_error","message":"%b"},"request_id":"%b"}' % (
            _MESSAGES[reason].encode(),
            request_id,
        )
        headers = [
            *self._headers,
            (b"content-length", b"%d" % len(body)),
            (b"request-id", request_id),
            (b"x-router-trace", trace.trace_id.encode()),
            (b"retry-after", b"%d" % -(-wait_ms // 1000)),
            (b"retry-after-ms", b"%d" % wait_ms),
        ]
        is_closing = declared is None or declared > _LEFT_TO_SERVER
        is_asked = declared != 0 and first(scope["headers"], b"expect") is not None
        if is_closing or is_asked:  # a client that was not told to go on may send its body, or the next request
            headers.append((b"connection", b"close"))
        try:
            start = {"type": "http.response.start", "status": Overloaded.status, "headers": headers}
            await send({**start, HAS_BODY_AT_HAND: True})
            await send({"type": "http.response.body", "body": body})
        except OSError:  # the client has gone
            pass
        finally:
            trace.request_id = request_id.decode()
            trace.tenant, trace.key = tenant, key
            self._note(reason, trace, scope)

    def _note(self, reason: str, trace: Trace, scope: Scope) -> None:
        if self._records < 1:
            self._skipped += 1
            self._unrecorded += 1
            return
        self._records -= 1
        trace.method = scope["method"]
        path, _ = split_policy(scope.get("raw_path") or scope["path"].encode())
        trace.path = path.decode("latin-1")
        trace.endpoint = endpoint_of(trace.method, trace.path)
        trace.status, trace.outcome = Overloaded.status, "shed"
        trace.error_type, trace.error_code = Overloaded.wire_type, Overloaded.code
        trace.why = (f"turned away: {_MESSAGES[reason]}",)
        if self._skipped:
            trace.why = (*trace.why, f"{self._skipped} more were turned away since the record before, without one")
            self._skipped = 0
        for sink in self.sinks:
            sink.write(trace)


async def discard(receive: Receive, seconds: float = LINGER_S) -> None:
    """Let the client finish sending, for a while: closing on unread bytes would take its answer with the connection."""
    try:
        async with asyncio.timeout(seconds):
            while (await receive()).get("more_body", False):
                pass
    except TimeoutError:
        pass


__all__ = ["LINGER_S", "Receive", "Scope", "Send", "Shedding", "discard"]
