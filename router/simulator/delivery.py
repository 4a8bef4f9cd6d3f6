"""Sends an answer: bytes with waits between them, watching for a client that hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from router.simulator.message import Event
from router.simulator.pace import Pace
from router.simulator.script import Behaviour

End = Literal["clean", "cut", "stall"]
EVENTS_PER_WRITE = 64  # with no latency, few large writes


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes to send after a wait of `wait_s` seconds; `tokens` is the output made so far when they are sent."""

    data: bytes
    wait_s: float = 0.0
    tokens: float = 0.0


class Delivery(Response):
    """A response of timed chunks. `on_begin` runs before the first byte, `on_end(tokens, is_complete)` once at the end.

    `ends` is how it ends: `clean`, `cut` (the connection closes in mid-body) or `stall` (silence until the client
    goes). Without a `content-length` header the body is sent chunked.
    """

    def __init__(
        self,
        chunks: Iterator[Chunk],
        *,
        status: int = 200,
        headers: Mapping[str, str],
        on_begin: Callable[[], None],
        on_end: Callable[[float, bool], None],
        ends: End = "clean",
        first_wait_s: float = 0.0,
    ) -> None:
        self.status_code = status
        self.background = None
        self.body = b""
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self._chunks = chunks
        self._on_begin, self._on_end = on_begin, on_end
        self._ends, self._first_wait_s = ends, first_wait_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop where the client or the script says so; `on_end` runs in every case."""
        gone = asyncio.Event()
        watch = asyncio.ensure_future(_watch(receive, gone))
        tokens, is_complete = 0.0, False
        try:
            if await _wait(gone, self._first_wait_s):
                return
            self._on_begin()
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for chunk in self._chunks:
                if gone.is_set() or await _wait(gone, chunk.wait_s):
                    return
                await send({"type": "http.response.body", "body": chunk.data, "more_body": True})
                tokens = chunk.tokens
            if self._ends == "stall":
                await gone.wait()
                return
            if self._ends == "cut":
                # Returning without the last body message makes the server close the connection in mid-body.
                return
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            is_complete = True
        finally:
            watch.cancel()
            self._on_end(tokens, is_complete)


async def _watch(receive: Receive, gone: asyncio.Event) -> None:
    while not gone.is_set():
        message = await receive()
        if message["type"] == "http.disconnect":
            gone.set()


async def _wait(gone: asyncio.Event, seconds: float) -> bool:
    """Wait, and say whether the client went meanwhile."""
    if seconds <= 0:
        return gone.is_set()
    try:
        await asyncio.wait_for(gone.wait(), seconds)
    except TimeoutError:
        return False
    return True


def stream_chunks(events: Iterator[Event], pace: Pace, behaviour: Behaviour) -> Iterator[Chunk]:
    """The events of a stream as chunks, at a pace, as far as the script lets them go."""
    limits = (behaviour.cut_after_events, behaviour.stall_after_events, behaviour.error_after_events)
    last = min((limit for limit in limits if limit is not None), default=None)
    tokens, held, count, wait_s = 0.0, b"", 0, 0.0
    for number, event in enumerate(events):
        if last is not None and number >= last:
            break
        if event.name == "message_stop" and behaviour.no_message_stop:
            break
        tokens += event.tokens
        wait_s += event.tokens * pace.per_token_s
        held += event.encoded()
        count += 1
        if wait_s > 0 or pace.per_token_s > 0 or count >= EVENTS_PER_WRITE:
            yield Chunk(held, wait_s, tokens)
            held, count, wait_s = b"", 0, 0.0
    if behaviour.error_after_events is not None:
        error = {"type": "error", "error": {"type": behaviour.type or "overloaded_error", "message": "Overloaded"}}
        held += Event("error", error).encoded()
    if held:
        yield Chunk(held, 0.0, tokens)
