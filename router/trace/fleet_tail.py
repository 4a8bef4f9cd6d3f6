"""Live tails of the fleet's traces: the stream is read once for all tails of a process, and a row is rendered once.

Theory of operation. While there are tails, one task follows the stream. It asks which filters a row meets, makes the
event of a row that anybody wants, and lays the same bytes before each tail. A tail that was away reads what it lacks by
itself, one at a time of all, and then joins.

Everything is bounded, and what is passed over is told as a `gap` event and counted. A second looks at `_LOOKS` rows
(beyond, the task goes on at the newest) and renders `_RENDERS`, which the filters that meet rows share: one that lets
less than its share through gets all of it, whatever the others take. A tail whose client is slow holds `_MOST_BYTES`.
After each half of a millisecond of work the loop does other things.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import orjson

from router.errors import TraceStoreError
from router.trace.fleet_read import PIECE, Breath, FleetReader, numbers
from router.trace.fleet_row import Row, matches, shown
from router.trace.record import TraceQuery

GAP = b"event: gap\ndata: {}\n\n"
_LOOKS = 1_000.0  # rows a second, and twice as many at once
_RENDERS = 200.0  # likewise
_BUSY_S = 2.0  # a filter that met a row so lately takes part in them
_MOST_BYTES = 512 * 1024  # laid before one tail
_MOST_OF_A_RETURN = 1_024  # rows looked at for a tail that was away
_MOST_SHOWN_OF_A_RETURN = 256
_RETURN_S = 0.025  # between the pieces of all that were away
_AT_ONCE_S = 0.01  # to the next piece where more wait


class FleetTails:
    """All live tails of this process, over one reader.

    `poll_s` passes between two looks at a stream without news; `looks_per_s` rows are looked at.
    """

    def __init__(self, reader: FleetReader, *, poll_s: float, looks_per_s: float = _LOOKS) -> None:
        self.reader = reader
        self.poll_s = poll_s
        self.returning = asyncio.Lock()  # one tail reads for itself at a time
        self._groups: dict[TraceQuery, _Group] = {}
        self._task: asyncio.Task[None] | None = None
        self._mark = "0-0"  # of the last row that was laid before the tails
        self._looks = _Allowance()
        self._looks_per_s = looks_per_s

    def tail(self, query: TraceQuery, mark: str, *, is_returning: bool) -> FleetTail:
        """A tail of what matches after `mark`; `is_returning`: the mark may be an old one. It begins with `events`."""
        return FleetTail(self, replace(query, limit=0, before=None), mark, is_returning)

    @property
    def mark(self) -> str | None:
        """Up to where the tails that listen have been served; None without any."""
        return None if self._task is None else self._mark

    def join(self, tail: FleetTail) -> asyncio.Task[None]:
        """Serve a tail that has all up to its mark, which is not before `mark`; what serves it ends only by a fault."""
        if self._task is None or self._task.done():
            self._mark = tail.mark
            self._task = asyncio.get_running_loop().create_task(self._follow())
        self._groups.setdefault(tail.query, _Group()).tails.add(tail)
        return self._task

    def leave(self, tail: FleetTail) -> None:
        """Serve it no more; nothing where it had not joined."""
        group = self._groups.get(tail.query)
        if group is None:
            return
        group.tails.discard(tail)
        if not group.tails:
            del self._groups[tail.query]
        if not self._groups and self._task is not None:
            self._task.cancel()
            self._task = None

    def event_of(self, mark: str, row: Row) -> bytes:
        """The server-sent event of a row; empty for one that cannot be shown, and that is counted."""
        try:
            body = encoded(shown(row, mark))
        except Exception:  # whatever is wrong with one row, it must not end the tails of all, each time anew
            self.reader.met_unreadable()
            return b""
        return b"id: %b\nevent: trace\ndata: %b\n\n" % (mark.encode("ascii"), body)  # JSON holds no line ends (S15)

    async def _follow(self) -> None:
        while True:
            is_more = False
            with contextlib.suppress(TraceStoreError):  # Redis is away: the next look goes on from the same mark
                is_more = await self._look()
            await asyncio.sleep(min(_AT_ONCE_S, self.poll_s) if is_more else self.poll_s)

    async def _look(self) -> bool:
        """Lay the next rows before the tails; whether more wait."""
        piece, breath = await self.reader.after(self._mark), Breath()
        if piece.lacks_some_after(self._mark):
            self._pass_over(is_new=piece.is_of_another(self._mark))
        for mark, row in self.reader.rows(piece):
            self._mark = mark  # a tail that joins while this breathes goes on from here
            self._lay(mark, row)
            await breath.take()
        is_more = len(piece.rows) == PIECE
        if piece.rows:
            self._mark = piece.rows[-1][0]
        elif piece.is_of_another(self._mark):
            self._mark = piece.newest
        if is_more and not self._looks.take(PIECE, self._looks_per_s) and numbers(piece.newest) > numbers(self._mark):
            self._mark, is_more = piece.newest, False
            self._pass_over()
        for tail in [tail for group in self._groups.values() for tail in group.tails]:
            if tail.wake():
                await asyncio.sleep(0)  # each sends in a turn of its own
        return is_more

    def _lay(self, mark: str, row: Row) -> None:
        groups = [group for query, group in self._groups.items() if matches(row, query)]
        if not groups:
            return
        now_s = asyncio.get_running_loop().time()
        for group in groups:
            group.met_s = now_s
        share = _RENDERS / sum(now_s - group.met_s < _BUSY_S for group in self._groups.values())
        if any(group.renders.take(1, share) for group in groups):  # the first that has something left pays
            event, at = self.event_of(mark, row), numbers(mark)
            for group in groups if event else ():
                for tail in group.tails:
                    tail.lay(at, event)
        else:
            for group in groups:
                for tail in group.tails:
                    tail.pass_over()

    def _pass_over(self, *, is_new: bool = False) -> None:
        for group in self._groups.values():
            for tail in group.tails:
                tail.pass_over(is_new=is_new)


class FleetTail:
    """One live tail. `close` it at its end, which may come before it began."""

    def __init__(self, tails: FleetTails, query: TraceQuery, mark: str, is_returning: bool) -> None:
        self.query = query
        self.mark = mark  # it has all up to here, when it joins
        self._tails = tails
        self._is_returning = is_returning
        self._after: tuple[int, int] | None = None
        self._laid: list[bytes] = []
        self._bytes = 0
        self._news = asyncio.Event()

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events, some at a time; empty where none came for `poll_s` seconds. Ends only by a fault."""
        async for events in self._return():
            yield events
        self._after = numbers(self.mark)
        task = self._tails.join(self)
        while True:
            if not self._laid:
                if task.done():
                    return
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._tails.poll_s):
                        await self._news.wait()
            events, self._laid, self._bytes = b"".join(self._laid), [], 0
            yield events

    def close(self) -> None:
        """Leave the others."""
        self._tails.leave(self)

    def lay(self, at: tuple[int, int], event: bytes) -> None:
        """Take the event of the mark `at`, unless the tail has it; a gap where too much waits for the client."""
        if self._after is not None and at <= self._after:
            return
        self._after = None
        if self._bytes >= _MOST_BYTES:
            self.pass_over()
        else:
            self._laid.append(event)
            self._bytes += len(event)

    def pass_over(self, *, is_new: bool = False) -> None:
        """Take that some are missing; `is_new`: the marks that come next may be lower than those before."""
        if is_new:
            self._after = None
        if not self._laid or self._laid[-1] is not GAP:
            self._tails.reader.met_gap()
            self._laid.append(GAP)
            self._bytes += len(GAP)

    def wake(self) -> bool:
        """Hand on what was laid; whether there is something."""
        if self._laid:
            self._news.set()
        return bool(self._laid)

    async def _return(self) -> AsyncIterator[bytes]:
        """What is between the tail's mark and that of the others, or the end; then it may join at once."""
        looked_at = count = 0
        while self._is_returning or self._is_behind():
            try:
                async with self._tails.returning:
                    piece, breath, events = await self._tails.reader.after(self.mark), Breath(), []
                    for mark, row in self._tails.reader.rows(piece):
                        if matches(row, self.query):
                            events.append(self._tails.event_of(mark, row))
                        await breath.take()
                    if len(piece.rows) == PIECE:
                        await asyncio.sleep(_RETURN_S)  # with the others waiting: they share the pace
            except TraceStoreError:
                await asyncio.sleep(self._tails.poll_s)
                yield b""
                continue
            if piece.lacks_some_after(self.mark):
                self._tails.reader.met_gap()
                events.insert(0, GAP)
            looked_at, count = looked_at + len(piece.rows), count + len(events)
            self._is_returning = len(piece.rows) == PIECE
            if piece.rows:
                self.mark = piece.rows[-1][0]
            elif piece.is_of_another(self.mark):
                self.mark = piece.newest
            is_enough = looked_at >= _MOST_OF_A_RETURN or count >= _MOST_SHOWN_OF_A_RETURN
            if is_enough and (self._is_returning or self._is_behind()):
                self._tails.reader.met_gap()
                events.append(GAP)
                self.mark, self._is_returning = self._tails.mark or piece.newest, False
            if events:
                yield b"".join(events)
            if not piece.newest:  # the stream is gone: no mark says anything
                self.mark = self._tails.mark or "0-0"
            if not piece.rows:  # there is nothing between, whatever the marks say
                break

    def _is_behind(self) -> bool:
        mark = self._tails.mark
        return mark is not None and numbers(self.mark) < numbers(mark)


class _Group:
    """The tails of one filter, and what may still be rendered for them."""

    __slots__ = ("met_s", "renders", "tails")

    def __init__(self) -> None:
        self.met_s = float("-inf")  # when a row met the filter last
        self.tails: set[FleetTail] = set()
        self.renders = _Allowance()


class _Allowance:
    """So much a second, and what two seconds give at once."""

    __slots__ = ("_at_s", "_left")

    def __init__(self) -> None:
        self._left, self._at_s = float("inf"), 0.0

    def take(self, count: int, per_s: float) -> bool:
        """Take `count`, if there are as many."""
        now_s = asyncio.get_running_loop().time()
        self._left = min(2 * per_s, self._left + (now_s - self._at_s) * per_s)
        self._at_s = now_s
        if self._left < count:
            return False
        self._left -= count
        return True


def encoded(value: Any) -> bytes:
    """A shown row, or what holds some, as JSON; money digit for digit, as `export.encode_json` writes it."""
    return orjson.dumps(value, default=_exactly)


def _exactly(value: object) -> orjson.Fragment:
    assert isinstance(value, Decimal)
    return orjson.Fragment(format(value, "f"))
