"""Traces on the admin listener: lists, one trace, the figures over time, exports, and the live tail.

The store is read in a worker thread, never on the event loop. Every question has the store's own time limit; reports
and figures, which read much, wait their turn; live tails and exports, which last, are bounded in number.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from router.errors import BadFilter, TraceStoreError
from router.trace.export import encode_json
from router.trace.filters import MAX_LIMIT, read_query, read_since, write_mark
from router.trace.record import TraceQuery
from router.trace.sheet import KINDS, sheet
from router.web.answer import error_answer, json_answer
from router.web.turns import SeatedStream, Seats, Turns

T = TypeVar("T")

_TAILS_MAX = 32  # live tails at once; each asks the store a question a second
_EXPORTS_MAX = 2  # each reads pages of the store as fast as they are taken
_DAY_NS = 86_400 * 10**9
_ALL_DAYS = 400  # how far back the figures go when no time is named
_OVERVIEW_FILTERS = ("model", "rule", "task", "key", "tenant", "policy", "lane", "outcome")


class TraceReader(Protocol):
    """What the page asks of a trace store (`trace.reader.SqliteTraceReader` is one); raises TraceStoreError."""

    def page(self, query: TraceQuery) -> tuple[list[dict[str, Any]], tuple[int, str] | None]: ...

    def get(self, some_id: str) -> dict[str, Any] | None: ...

    def tail(self, after: int | None, query: TraceQuery) -> tuple[int, list[tuple[int, dict[str, Any]]]]: ...

    def summary(self, by: str, since_ns: int | None) -> dict[str, Any]: ...

    def overview(
        self,
        since_ns: int,
        until_ns: int,
        *,
        by: str | None = None,
        step_s: int | None = None,
        filters: Mapping[str, str] = ...,
    ) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class TraceServices:
    """What the rooms of traces need. `reader` None: traces are off.

    `flush`, when given, waits for written traces to reach the store; `decide_now` says what the policies in force would
    do with a trace, None when it is gone. Both run in a thread. `is_draining` ends live tails, so that a server can
    stop. `now_ns` is Unix time.
    """

    reader: TraceReader | None
    flush: Callable[[], object] | None
    decide_now: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] | None
    is_draining: Callable[[], bool]
    now_ns: Callable[[], int]
    poll_s: float


class TraceRooms:
    """The endpoints."""

    def __init__(self, services: TraceServices, turns: Turns) -> None:
        self._services = services
        self._turns = turns
        self._tails = Seats(_TAILS_MAX)
        self._exports = Seats(_EXPORTS_MAX)

    def routes(self) -> list[BaseRoute]:
        """The routes of all rooms."""
        return [
            Route("/traces", self.traces),
            Route("/traces/{some_id}", self.trace),
            Route("/traces/{some_id}/now", self.now),
            Route("/report", self.report),
            Route("/figures", self.figures),
            Route("/export", self.export),
            Route("/events", self.events),
        ]

    async def traces(self, request: Request) -> Response:
        """A page of the newest traces that match, and the mark of the next page."""
        query = read_query(query_params(request), self._services.now_ns())
        rows, mark = await self._ask(partial(self._reader().page, query))
        return json_answer({"traces": rows, "next": None if mark is None else write_mark(mark)})

    async def trace(self, request: Request) -> Response:
        """One trace, by trace id, request id or the beginning of a trace id."""
        found = await self._find(request)
        return found if isinstance(found, Response) else json_answer(found)

    async def now(self, request: Request) -> Response:
        """What the policies now in force would do with one recorded request."""
        decide_now = self._services.decide_now
        if decide_now is None:
            return error_answer(404, "not_found_error", "this listener knows no policies")
        found = await self._find(request)
        if isinstance(found, Response):
            return found
        decided = await anyio.to_thread.run_sync(partial(decide_now, found))
        if decided is None:
            return _no_trace(request)
        return json_answer({"trace_id": found["trace_id"], **decided})

    async def report(self, request: Request) -> Response:
        """Figures per group, and their totals."""
        params = query_params(request)
        by, since = params.pop("by", "rule"), params.pop("since", "")
        if params:
            raise BadFilter(f"unknown filter `{next(iter(params))[:64]}`, expected `by` or `since`")
        since_ns = read_since(since, self._services.now_ns()) if since else None
        reader = self._reader()
        await self._flush()
        async with self._turns.turn():
            found = await anyio.to_thread.run_sync(partial(reader.summary, by, since_ns))
        return json_answer({"by": by, "since": since or None, "rows": found["rows"], "totals": found["totals"]})

    async def figures(self, request: Request) -> Response:
        """Figures over time, per group: what the charts are drawn from. Filters it has no sums for are named."""
        params, now_ns = query_params(request), self._services.now_ns()
        by, step = params.pop("by", ""), params.pop("step", "")
        if step and not (step.isascii() and step.isdigit() and len(step) < 7):
            raise BadFilter(f"`step` is `{step:.64}`, expected seconds such as `60` or `3600`")
        read_query(params, now_ns)  # a filter that the list would refuse is refused here too
        filters = {name: params[name] for name in _OVERVIEW_FILTERS if params.get(name)}
        until_ns = read_since(params["until"], now_ns, name="until") if params.get("until") else now_ns
        reader = self._reader()
        ask = partial(reader.overview, by=by or None, step_s=int(step) if step else None, filters=filters)
        since_ns = read_since(params["since"], now_ns) if params.get("since") else None
        await self._flush()
        async with self._turns.turn():
            if since_ns is None:
                since_ns = await anyio.to_thread.run_sync(partial(_first_ns, reader, filters, until_ns))
            found = await anyio.to_thread.run_sync(partial(ask, min(since_ns, until_ns - 1), until_ns))
        known = (*filters, "since", "until", "limit", "before")
        return json_answer({**found, "ignored": sorted(n for n, text in params.items() if text and n not in known)})

    async def export(self, request: Request) -> Response:
        """All traces that match, newest first, as a file: `format` is `ndjson` or `csv`."""
        params = query_params(request)
        kind = params.pop("format", "ndjson")
        if kind not in KINDS:
            raise BadFilter(f"`format` is `{kind:.64}`, expected `ndjson` or `csv`")
        params.pop("limit", None)
        query = replace(read_query(params, self._services.now_ns()), limit=MAX_LIMIT)
        reader = self._reader()
        if not self._exports.take():
            return error_answer(429, "rate_limit_error", f"{_EXPORTS_MAX} exports are under way already")
        try:
            first = await self._ask(partial(reader.page, query))  # an error is still an error here
        except BaseException:
            self._exports.give_back()
            raise
        return SeatedStream(
            self._exports,
            self._sheets(reader, kind, query, first),
            media_type=KINDS[kind],
            headers={"cache-control": "no-store", "content-disposition": f'attachment; filename="traces.{kind}"'},
        )

    async def _sheets(
        self,
        reader: TraceReader,
        kind: str,
        query: TraceQuery,
        page: tuple[list[dict[str, Any]], tuple[int, str] | None],
    ) -> AsyncIterator[str]:
        rows, mark = page
        yield await anyio.to_thread.run_sync(partial(sheet, kind, rows, is_first=True))
        while mark is not None and not self._services.is_draining():
            rows, mark = await anyio.to_thread.run_sync(partial(reader.page, replace(query, before=mark)))
            yield await anyio.to_thread.run_sync(partial(sheet, kind, rows, is_first=False))

    async def events(self, request: Request) -> Response:
        """Server-sent events: one `trace` per finished request that matches, with a mark to resume from as its id."""
        params = query_params(request)
        params.pop("limit", None)
        query = replace(read_query(params, self._services.now_ns()), limit=200, before=None)
        last = request.headers.get("last-event-id", "")
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 19 else None
        reader = self._reader()
        if not self._tails.take():
            return error_answer(429, "rate_limit_error", f"{_TAILS_MAX} live tails are open already")
        try:
            mark, rows = await self._ask(partial(reader.tail, after, query))
        except BaseException:
            self._tails.give_back()
            raise
        return SeatedStream(
            self._tails,
            self._tail(reader, query, mark, rows),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _tail(
        self, reader: TraceReader, query: TraceQuery, mark: int, rows: list[tuple[int, dict[str, Any]]]
    ) -> AsyncIterator[str]:
        quiet_s = 0.0
        yield f"retry: 2000\nid: {rows[0][0] - 1 if rows else mark}\nevent: ready\ndata: {{}}\n\n"
        while not self._services.is_draining():
            # JSON holds no line ends, so no trace can end its own event (S15)
            for own_mark, row in rows:
                yield f"id: {own_mark}\nevent: trace\ndata: {encode_json(row)}\n\n"
            quiet_s = 0.0 if rows else quiet_s + self._services.poll_s
            if quiet_s >= 15.0:  # a comment now and then finds out whether anybody still listens
                quiet_s = 0.0
                yield ":\n\n"
            await anyio.sleep(self._services.poll_s)
            try:
                mark, rows = await anyio.to_thread.run_sync(partial(reader.tail, mark, query))
            except TraceStoreError:  # the store is being replaced; the next look may find it
                rows = []

    def _reader(self) -> TraceReader:
        if self._services.reader is None:
            raise TraceStoreError("traces are off", hint="set `traces` to `sqlite:///router.db`")
        return self._services.reader

    async def _find(self, request: Request) -> dict[str, Any] | Response:
        found = await self._ask(partial(self._reader().get, request.path_params["some_id"]))
        return _no_trace(request) if found is None else found

    async def _ask(self, question: Callable[[], T]) -> T:
        await self._flush()
        return await anyio.to_thread.run_sync(question)

    async def _flush(self) -> None:
        if self._services.flush is not None:
            await anyio.to_thread.run_sync(self._services.flush)


def query_params(request: Request) -> dict[str, str]:
    """The query string as a mapping. Raises BadFilter when a name comes twice."""
    params: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in params:
            raise BadFilter(f"`{name[:64]}` comes twice, expected once")
        params[name] = value
    return params


def _first_ns(reader: TraceReader, filters: Mapping[str, str], until_ns: int) -> int:
    """When the first hour with a request began: a chart of all time need not begin before."""
    since_ns, end_ns = until_ns - _ALL_DAYS * _DAY_NS, until_ns
    for step_s in (86_400, 3_600):
        found = reader.overview(since_ns, end_ns, step_s=step_s, filters=filters)
        counts = [series["points"]["requests"] for series in found["series"]]
        starts = [time_s for at, time_s in enumerate(found["times"]) if any(count[at] for count in counts)]
        if not starts:
            return max(since_ns, until_ns - _DAY_NS)
        since_ns = int(starts[0]) * 10**9
        end_ns = min(since_ns + step_s * 10**9, until_ns)
    return since_ns


def _no_trace(request: Request) -> Response:
    some_id = request.path_params["some_id"]
    return error_answer(404, "not_found_error", f"no trace and no request has the id `{some_id[:80]}`")
