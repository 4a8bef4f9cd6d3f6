"""One upstream call under way, shared by everyone who asks the same: what it has brought so far, and who listens.

Theory of operation. The call is carried by a task of its own, with a watch of its own, so that no client's leaving
touches it; when the last listener has left, the watch says that the client has gone, and the call ends like any other.
Every listener has its own place in what has come, and reads from there: one that comes late gets everything so far at
once and then what comes, as it comes.

All that has come is held, for whoever comes next and for the cache, as long as it is within `max_bytes`. Beyond that
the flight takes no more listeners and holds only what the slowest has yet to read: then the call waits for them. When
several listen, one that stands still for `_LAGGARD_S` is cut off with an error that it can read, so that it does not
hold up the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from router.errors import ClientGone, StreamCut, error_body
from router.seams import CacheEntry
from router.serve.exchange import ClientWatch, Exchange
from router.serve.parts import Answered
from router.trace.record import Trace
from router.value import value_class
from router.wire.sse import line_end_behind

_MOST_BEHIND = 256 * 1024  # bytes that a listener may be behind once the flight holds no more than it must
_LAGGARD_S = 30.0
_MOST_AT_ONCE = 256 * 1024


@value_class(frozen=True, slots=True)
class Landed:
    """How a call turned out, as soon as that is known: exactly one of the first three is there.

    `answered` may still be arriving (then `body` is None and the listeners read). `entry` is a stored answer, with the
    word for `x-router-cache`. A failure is for the one who made the call: others see for themselves.
    """

    answered: Answered | None = None
    entry: CacheEntry | None = None
    failure: BaseException | None = None
    cache: str = "miss"


class Flight:
    """A call under way; `trace` is that of the request that began it."""

    def __init__(self, max_bytes: int, trace: Trace) -> None:
        self.watch = ClientWatch()
        self.trace = trace
        self.loop = asyncio.get_running_loop()  # kept, as to ask for it is a system call each time
        self.lead: str | None = None  # the token with which this process makes the call for all
        self.landed: Landed | None = None
        self.is_private = False  # whatever comes is for the one who made the call
        self.is_over = False
        self.is_complete = False
        self.has_stopped = False  # the last event of a stream is among what has come
        self.failure: BaseException | None = None  # behind the first byte
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._dropped = 0  # chunks that everyone has read, and that are held no more
        self._bytes = 0  # all that have come
        self._listeners: set[Listener] = set()
        self._room: asyncio.Future[None] | None = None
        self._when_over: list[Callable[[], None]] = []

    @property
    def is_open(self) -> bool:
        """Whether another listener may still join."""
        return not self.is_over and not self.watch.is_gone and not self._is_overfull()

    def listen(self, exchange: Exchange, *, is_leader: bool = False) -> Listener:
        """Another listener, from the beginning."""
        listener = Listener(self, exchange, is_leader=is_leader)
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        """One listener less; the last one takes the call along."""
        if listener in self._listeners:
            self._listeners.discard(listener)
            self._give_room()
            if not self._listeners and not self.is_over:
                self.watch.gone()

    def land(self, landed: Landed) -> None:
        """Say how the call turned out; only the first word counts."""
        if self.landed is None:
            self.landed = landed
            self._wake()

    def close_to_others(self) -> None:
        """What comes will be for the one who made the call alone: the others need not wait for it."""
        self.is_private = True
        self._wake()

    def feed(self, chunk: bytes) -> None:
        """More of the answer."""
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        if self._is_overfull():
            self._drop_read()
        self._wake()

    async def room(self) -> None:
        """Wait until the slowest listener is near enough; returns at once where all is held anyway."""
        while self._is_overfull() and self._most_behind() > _MOST_BEHIND and not self.watch.is_stopping:
            loop = self.loop
            self._room = room = loop.create_future()
            places = {listener: listener.at for listener in self._listeners}
            timer = loop.call_later(_LAGGARD_S, self._cut_laggards, places) if len(places) > 1 else None
            try:
                await room
            finally:
                self._room = None
                if timer is not None:
                    timer.cancel()

    def end(self, *, is_complete: bool = False, failure: BaseException | None = None) -> None:
        """Nothing more comes."""
        self.is_over, self.is_complete, self.failure = True, is_complete, failure
        self.land(Landed(failure=failure or ClientGone("the call ended before there was an answer")))
        self._wake()
        self._give_room()
        waiting, self._when_over = self._when_over, []
        for callback in waiting:
            callback()

    def when_over(self, callback: Callable[[], None]) -> None:
        """Call back once nothing more comes."""
        self._when_over.append(callback)

    def stopped(self, tell: Callable[[tuple[str, ...]], None] | None, signatures: tuple[str, ...]) -> None:
        """The stream's last event is about to be fed; `tell` is who else is to know."""
        self.has_stopped = True
        if tell is not None:
            tell(signatures)

    def stop(self) -> None:
        """The server has no more time: the call ends, and says so to everyone who listens."""
        self.watch.stop()
        self._give_room()

    def whole(self, *, is_complete: bool) -> bytes | None:
        """All that has come, where it is complete and still all held."""
        return b"".join(self._chunks) if is_complete and not self._is_overfull() else None

    def after(self, at: int, most: int) -> tuple[bytes, int]:
        """(what has come behind the first `at` chunks, about `most` bytes of it; the place behind that)."""
        chunks = self._chunks
        start = end = at - self._dropped
        size = 0
        while end < len(chunks) and size < most:
            size += len(chunks[end])
            end += 1
        joined = chunks[start] if end - start == 1 else b"".join(chunks[start:end])
        return joined, self._dropped + end

    def was_read(self) -> None:
        """A listener has gone on."""
        if self._is_overfull():
            self._drop_read()
            if self._room is not None and self._most_behind() <= _MOST_BEHIND:
                self._give_room()

    def _is_overfull(self) -> bool:
        return self._bytes > self._max_bytes

    def _most_behind(self) -> int:
        """Bytes that the slowest listener has yet to read."""
        slowest = min((listener.at for listener in self._listeners), default=self._dropped + len(self._chunks))
        return sum(map(len, self._chunks[slowest - self._dropped :]))

    def _drop_read(self) -> None:
        slowest = min((listener.at for listener in self._listeners), default=self._dropped + len(self._chunks))
        if slowest > self._dropped:
            del self._chunks[: slowest - self._dropped]
            self._dropped = slowest

    def _cut_laggards(self, places: Mapping[Listener, int]) -> None:
        """Cut off those who have read nothing since they were in these places, where others have."""
        foremost = max((listener.at for listener in self._listeners), default=0)
        for listener in [each for each in self._listeners if places.get(each) == each.at < foremost]:
            listener.is_cut = True
            listener.wake()
            self._listeners.discard(listener)
        self._drop_read()
        self._give_room()

    def _wake(self) -> None:
        for listener in self._listeners:
            listener.wake()

    def _give_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)


class Listener:
    """One who listens to a flight: a `Relay` for the client of `exchange`.

    `on_stop` is called once, before the bytes with the last event of a stream are given out.
    """

    def __init__(self, flight: Flight, exchange: Exchange, *, is_leader: bool) -> None:
        self._flight = flight
        self._is_leader = is_leader
        self._exchange = exchange
        self._waiting: asyncio.Future[None] | None = None
        self._last = b""
        self.at = 0  # chunks read
        self.is_cut = False
        self.is_complete = False
        self.on_stop: Callable[[], None] | None = None

    async def landed(self, within_s: float | None = None) -> Landed | None:
        """How the call turned out; None when that is not known within the time, or for the leader alone.

        Raises ClientGone when this listener's client leaves first.
        """
        flight, clock = self._flight, self._exchange.clock
        until_s = None if within_s is None else clock.now_s() + within_s
        timer = None if within_s is None else flight.loop.call_later(within_s, self.wake)
        try:
            while flight.landed is None:
                is_late = until_s is not None and clock.now_s() >= until_s
                if is_late or (flight.is_private and not self._is_leader):
                    return None
                await self._wait()
        finally:
            if timer is not None:
                timer.cancel()
        return flight.landed

    async def read(self) -> bytes:
        """See `Relay`."""
        flight = self._flight
        while True:
            if self.is_cut:
                return self._cut()
            chunk, self.at = flight.after(self.at, _MOST_AT_ONCE)
            if chunk:
                break
            if flight.is_over:
                if flight.failure is not None:
                    raise flight.failure
                self.is_complete = flight.is_complete
                return b""
            await self._wait()
        flight.was_read()
        self._last = (self._last + chunk[-4:])[-4:]
        trace = self._exchange.trace
        if trace.ttft_s is None and flight.trace.ttft_s is not None:
            trace.ttft_s = self._exchange.clock.now_s()
        if flight.has_stopped and self.on_stop is not None:
            on_stop, self.on_stop = self.on_stop, None  # it refers back to all of the request
            on_stop()
        return chunk

    def abort(self) -> None:
        """See `Relay`: listen no more."""
        self._flight.leave(self)

    def wake(self) -> None:
        """There may be something new."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _cut(self) -> bytes:
        """One `error` event behind what was read, then the end."""
        if self.is_complete:
            return b""
        self.is_complete = True
        reason = StreamCut("the client read too slowly to share an answer of this size")
        trace = self._exchange.trace
        trace.outcome, trace.error_type, trace.error_code = "cut", reason.wire_type, reason.code
        body = error_body(reason.wire_type, reason.message, trace.request_id or "")
        return line_end_behind(self._last) + b"event: error\ndata: " + body + b"\n\n"

    async def _wait(self) -> None:
        """Until there is something new, or the client leaves (ClientGone), or the server stops (the flight says so)."""
        watch, clock = self._exchange.watch, self._exchange.clock
        if watch.is_gone:
            raise ClientGone("the client closed the connection")
        if watch.is_stopping:
            self._flight.stop()
            if self._flight.is_over:
                return
        self._waiting = waiting = self._flight.loop.create_future()
        started_s = clock.now_s()
        try:
            if not watch.is_stopping:
                watch.during(self.wake)
            await waiting
        finally:
            if not watch.is_stopping:
                watch.during(None)
            self._waiting = None
            clock.waited_s += clock.now_s() - started_s
