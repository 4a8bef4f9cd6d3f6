"""The fleet's stream of traces, read for people: pages, one trace, and what came since the last look.

It is read in small pieces, newest first, and what does not match is passed over here. After each half of a millisecond
of work requests come in between. Every question has a time limit. Live tails share one reading, see `fleet_tail`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from router.errors import BadFilter, TraceStoreError
from router.redis_link import RedisUnavailable
from router.trace.filters import MAX_LIMIT
from router.trace.fleet import DEADLINE_S, KEY, FleetTraces
from router.trace.fleet_row import MOST_READ_BYTES, Row, matches, read, shown
from router.trace.record import TraceQuery

LIMIT_S = 5.0  # of one question
PIECE = 32  # rows that follow a mark, of one go
_PIECE_OF_PAGE = 64
_PIECE_OF_SEARCH = 256  # rows of which most are only looked at
_MOST_OF_A_TAIL = 1_024  # rows looked at for one step of a tail; more come with the next
_WORK_S = 0.0005  # in one go
_MARK = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)

# Entries beside the stream's length, its first mark and its last. A row that is none, or too large, comes as "".
_READ = f"""\
local found
if ARGV[1] == 'newest' then found = redis.call('XREVRANGE', KEYS[1], ARGV[2], '-', 'COUNT', ARGV[3])
else found = redis.call('XRANGE', KEYS[1], ARGV[2], '+', 'COUNT', ARGV[3]) end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local said = {{redis.call('XLEN', KEYS[1]), first[1] and first[1][1] or '', last[1] and last[1][1] or ''}}
for _, entry in ipairs(found) do
  local row = ''
  for i = 1, #entry[2], 2 do if entry[2][i] == 't' and #entry[2][i + 1] <= {MOST_READ_BYTES} then
    row = entry[2][i + 1] end end
  said[#said + 1] = entry[1]
  said[#said + 1] = row
end
return said
"""


@dataclass(frozen=True, slots=True)
class Piece:
    """`rows` by mark, in the order asked for; `held` rows are in the stream, the oldest at `oldest_ms` (Unix).

    `oldest` and `newest` are marks, empty for an empty stream.
    """

    rows: tuple[tuple[str, bytes], ...]
    held: int
    oldest: str
    newest: str

    @property
    def oldest_ms(self) -> int | None:
        """When the oldest row that is still there was written; None for an empty stream."""
        return int(self.oldest.partition("-")[0]) if self.oldest else None

    def lacks_some_after(self, mark: str) -> bool:
        """Whether the stream begins after the mark, or is another one, so that rows between may be gone."""
        return self.is_of_another(mark) or (bool(self.rows) and mark != "0-0" and numbers(self.oldest) > numbers(mark))

    def is_of_another(self, mark: str) -> bool:
        """Whether the stream ends before the mark: Redis lost it, and what comes now would stay below the mark."""
        return bool(self.newest) and numbers(self.newest) < numbers(mark)


class Breath:
    """Work in small pieces: `take` lets others have the loop after each half of a millisecond."""

    def __init__(self) -> None:
        self._since_s = time.perf_counter()

    async def take(self) -> None:
        """Wait for a turn of the loop, if it is time."""
        if time.perf_counter() - self._since_s > _WORK_S:
            await asyncio.sleep(0)
            self._since_s = time.perf_counter()


@dataclass(frozen=True, slots=True)
class FleetPage:
    """`rows` as the page shows them, newest first; `mark` of the next page, None at the end of what is held.

    `is_cut`: the time for it was over before the page was full.
    """

    rows: list[dict[str, Any]]
    mark: str | None
    held: int
    oldest_ms: int | None
    is_cut: bool


@dataclass(frozen=True, slots=True)
class FleetStep:
    """One step of a tail: `rows` oldest first, the `mark` to go on from, whether there `is_more` at once.

    `has_gap`: rows after the mark asked for are gone already, or Redis lost the stream and has another.
    """

    rows: list[dict[str, Any]]
    mark: str
    is_more: bool
    has_gap: bool


def check_mark(text: str) -> str:
    """A mark as somebody sent it. Raises BadFilter."""
    if _MARK.fullmatch(text) is None:
        raise BadFilter(f"`before` is `{text:.80}`, expected the `next` of the page before")
    return text


class FleetReader:
    """Questions to the stream; every method raises TraceStoreError when Redis does not answer."""

    def __init__(self, traces: FleetTraces, *, limit_s: float = LIMIT_S) -> None:
        self._traces = traces
        self._limit_s = limit_s

    @property
    def pod(self) -> str:
        """Who asks."""
        return self._traces.pod

    @property
    def most(self) -> int:
        """How many rows the stream keeps."""
        return self._traces.most

    async def flush(self) -> None:
        """Let what this router has in hand reach the stream, if that is soon done."""
        await self._traces.flush(DEADLINE_S / 4)

    async def page(self, query: TraceQuery, before: str | None = None) -> FleetPage:
        """The newest that match, or those before a mark; `query.before` is not looked at."""
        limit = max(1, min(query.limit, MAX_LIMIT))
        rows: list[dict[str, Any]] = []
        seen: set[tuple[Any, ...]] = set()
        mark, held, oldest_ms, is_cut = before, 0, None, False
        until_s, breath = asyncio.get_running_loop().time() + self._limit_s, Breath()
        async for piece in self._pieces(before, _PIECE_OF_PAGE):
            held, oldest_ms = piece.held, piece.oldest_ms
            for mark, row in self.rows(piece):
                if matches(row, query) and _is_new(row, seen):
                    rows.append(shown(row, mark))
                    if len(rows) == limit:
                        return FleetPage(rows, mark if mark != piece.oldest else None, held, oldest_ms, is_cut)
                await breath.take()
            if piece.rows:
                mark = piece.rows[-1][0]
            if asyncio.get_running_loop().time() > until_s:
                is_cut = mark != piece.oldest
                break
        return FleetPage(rows, mark if is_cut else None, held, oldest_ms, is_cut)

    async def one(self, some_id: str) -> dict[str, Any] | None:
        """The newest trace with this trace id, request id, or unique beginning of a trace id (8 digits or more)."""
        wanted = some_id.encode("utf-8", "replace")
        is_start = 8 <= len(some_id) < 32 and set(some_id) <= set("0123456789abcdef")
        begun: dict[str, dict[str, Any]] = {}
        until_s = asyncio.get_running_loop().time() + self._limit_s
        async for piece in self._pieces(None, _PIECE_OF_SEARCH):
            for mark, row in self.rows(piece, wanted):
                if some_id in (row["trace_id"], row.get("request_id")):
                    return shown(row, mark)
                if is_start and row["trace_id"].startswith(some_id):
                    begun.setdefault(row["trace_id"], shown(row, mark))
            if asyncio.get_running_loop().time() > until_s:
                raise TraceStoreError(f"no answer within {self._limit_s:g} s", retryable=True)
        return next(iter(begun.values())) if len(begun) == 1 else None

    async def newest(self) -> str:
        """The mark of the newest row; `0-0` for an empty stream."""
        piece = await self._piece("newest", "+", 1)
        return piece.rows[0][0] if piece.rows else "0-0"

    async def step(self, after: str, query: TraceQuery) -> FleetStep:
        """What came after a mark and matches, at most `_MOST_OF_A_TAIL` rows looked at."""
        rows: list[dict[str, Any]] = []
        mark, looked_at, is_more, has_gap, breath = after, 0, True, False, Breath()
        while is_more and looked_at < _MOST_OF_A_TAIL:
            piece = await self.after(mark)
            has_gap = has_gap or (looked_at == 0 and piece.lacks_some_after(after))
            for at, row in self.rows(piece):
                if matches(row, query):
                    rows.append(shown(row, at))
                await breath.take()
            looked_at += len(piece.rows)
            is_more = len(piece.rows) == PIECE
            mark = piece.newest if piece.is_of_another(mark) else piece.rows[-1][0] if piece.rows else mark
        return FleetStep(rows, mark, is_more, has_gap)

    async def after(self, mark: str) -> Piece:
        """The `PIECE` rows that follow a mark, oldest first."""
        return await self._piece("after", f"({mark}", PIECE)

    async def _pieces(self, before: str | None, count: int) -> AsyncIterator[Piece]:
        mark = before
        while True:
            piece = await self._piece("newest", "+" if mark is None else f"({mark}", count)
            yield piece
            if len(piece.rows) < count:
                return
            mark = piece.rows[-1][0]

    async def _piece(self, which: str, start: str, count: int) -> Piece:
        try:
            held, *said = await self._traces.link.run(_READ, [KEY], [which, start, count])
            oldest, newest, *marks = [bytes(mark).decode("ascii") for mark in (*said[:2], *said[2::2])]
            return Piece(tuple(zip(marks, said[3::2], strict=True)), int(held), oldest, newest)
        except RedisUnavailable as exc:
            raise TraceStoreError(
                f"the fleet's traces cannot be read: Redis: {exc.reason}",
                hint="this router's own traces are still there: leave out `fleet=1`",
                retryable=True,
            ) from None
        except (TypeError, ValueError):
            raise TraceStoreError(f"the fleet's traces cannot be read: `{KEY}` of Redis is no stream of ours") from None

    def rows(self, piece: Piece, wanted: bytes = b"") -> Iterator[tuple[str, Row]]:
        """The rows that are rows, by mark; of those that hold `wanted`. The others are counted."""
        for mark, body in piece.rows:
            if wanted and wanted not in body:
                continue
            row = read(body)
            if row is None:
                self.met_unreadable()
            else:
                yield mark, row

    def met_unreadable(self) -> None:
        """Count a row that is none."""
        self._traces.unreadable += 1

    def met_gap(self) -> None:
        """Count that a live tail was told of a gap."""
        self._traces.gaps += 1


def _is_new(row: Mapping[str, Any], seen: set[tuple[Any, ...]]) -> bool:
    """False for a row that was written twice."""
    own = (row["started_at_ns"], row["trace_id"], str(row.get("request_id")), str(row.get("pod")))
    if own in seen:
        return False
    seen.add(own)
    return True


def numbers(mark: str) -> tuple[int, int]:
    """A mark as it is compared: when in Unix milliseconds, and which of that one."""
    at_ms, _, number = mark.partition("-")
    return int(at_ms), int(number)
