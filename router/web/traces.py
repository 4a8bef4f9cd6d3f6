"""Traces on the admin listener: lists, one trace, the figures over time, exports, and the live tail.

What is asked of the store comes back as the bytes of the answer (`trace.asking`): here they are passed on. Every
question has a time limit; reports and figures, which read much, wait their turn; live tails and exports, which last,
are bounded in number.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from router.errors import BadFilter, TraceStoreError
from router.trace import asking
from router.trace.asking import Answer
from router.trace.filters import MAX_LIMIT, read_query, read_since
from router.trace.record import TraceQuery
from router.trace.sheet import KINDS
from router.web.answer import encoded_answer, error_answer, json_answer
from router.web.ask import Asker
from router.web.fleet import FleetRooms, TraceServices, is_of_fleet, query_params
from router.web.turns import SeatedStream, Seats

_TAILS_MAX = 32  # live tails at once; each asks the store a question a second
_EXPORTS_MAX = 2  # each reads pages of the store as fast as they are taken
_OVERVIEW_FILTERS = ("model", "rule", "task", "key", "tenant", "policy", "lane", "outcome")


class TraceRooms:
    """The endpoints."""

    def __init__(self, services: TraceServices, asker: Asker, fleet: FleetRooms) -> None:
        self._services = services
        self._asker = asker
        self._fleet = fleet
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
            Route("/fleet", self._fleet.home),
        ]

    async def traces(self, request: Request) -> Response:
        """A page of the newest traces that match, and the mark of the next page."""
        if is_of_fleet(request):
            return await self._fleet.traces(request)
        query = read_query(query_params(request), self._services.now_ns())
        return encoded_answer((await self._asker.ask_for(request, asking.page(query))).body)

    async def trace(self, request: Request) -> Response:
        """One trace, by trace id, request id or the beginning of a trace id."""
        if is_of_fleet(request):
            return await self._fleet.trace(request)
        found = await self._find(request)
        return encoded_answer(found.body) if found.head else _no_trace(request)

    async def now(self, request: Request) -> Response:
        """What the policies now in force would do with one recorded request."""
        decide_now = self._services.decide_now
        if decide_now is None:
            return error_answer(404, "not_found_error", "this listener knows no policies")
        found = await self._find(request)
        decided = await anyio.to_thread.run_sync(partial(decide_now, found.head)) if found.head else None
        if decided is None:
            return _no_trace(request)
        return json_answer({"trace_id": found.head["trace_id"], **decided})

    async def report(self, request: Request) -> Response:
        """Figures per group, and their totals."""
        params = query_params(request)
        by, since = params.pop("by", "rule"), params.pop("since", "")
        if params:
            raise BadFilter(f"unknown filter `{next(iter(params))[:64]}`, expected `by` or `since`")
        since_ns = read_since(since, self._services.now_ns()) if since else None
        found = await self._asker.ask_for(request, asking.report(by, since, since_ns), in_turn=True)
        return encoded_answer(found.body)

    async def figures(self, request: Request) -> Response:
        """Figures over time, per group: what the charts are drawn from. Filters it has no sums for are named."""
        params, now_ns = query_params(request), self._services.now_ns()
        by, step = params.pop("by", ""), params.pop("step", "")
        if step and not (step.isascii() and step.isdigit() and len(step) < 7):
            raise BadFilter(f"`step` is `{step:.64}`, expected seconds such as `60` or `3600`")
        read_query(params, now_ns)  # a filter that the list would refuse is refused here too
        filters = {name: params[name] for name in _OVERVIEW_FILTERS if params.get(name)}
        until_ns = read_since(params["until"], now_ns, name="until") if params.get("until") else now_ns
        since_ns = read_since(params["since"], now_ns) if params.get("since") else None
        known = (*filters, "since", "until", "limit", "before")
        question = asking.figures(
            since_ns,
            until_ns,
            by=by or None,
            step_s=int(step) if step else None,
            filters=filters,
            ignored=sorted(name for name, text in params.items() if text and name not in known),
        )
        return encoded_answer((await self._asker.ask_for(request, question, in_turn=True)).body)

    async def export(self, request: Request) -> Response:
        """All traces that match, newest first, as a file: `format` is `ndjson` or `csv`."""
        params = query_params(request)
        kind = params.pop("format", "ndjson")
        if kind not in KINDS:
            raise BadFilter(f"`format` is `{kind:.64}`, expected `ndjson` or `csv`")
        params.pop("limit", None)
        query = replace(read_query(params, self._services.now_ns()), limit=MAX_LIMIT)
        self._asker.check()
        if not self._exports.take():
            return error_answer(429, "rate_limit_error", f"{_EXPORTS_MAX} exports are under way already")
        try:  # an error is still an error here
            first = await self._asker.ask_for(request, asking.sheet(kind, query, is_first=True))
        except BaseException:
            self._exports.give_back()
            raise
        return SeatedStream(
            self._exports,
            self._sheets(kind, query, first),
            media_type=KINDS[kind],
            headers={"cache-control": "no-store", "content-disposition": f'attachment; filename="traces.{kind}"'},
        )

    async def _sheets(self, kind: str, query: TraceQuery, found: Answer) -> AsyncIterator[bytes]:
        yield found.body
        while (mark := found.head["mark"]) is not None and not self._services.is_draining():
            following = replace(query, before=(mark[0], mark[1]))
            found = await self._ask_again(asking.sheet(kind, following, is_first=False))
            yield found.body

    async def _ask_again(self, question: asking.Question) -> Answer:
        """The answer, at the second try if need be: a download that has begun cannot say what went wrong.

        The reading process may have ended for another's sake, and the next question starts a new one.
        """
        try:
            return await self._asker.ask(question)
        except TraceStoreError as error:
            if not error.retryable:
                raise
        return await self._asker.ask(question)

    async def events(self, request: Request) -> Response:
        """Server-sent events: one `trace` per finished request that matches, with a mark to resume from as its id."""
        if is_of_fleet(request):
            return await self._fleet.events(request)
        params = query_params(request)
        params.pop("limit", None)
        query = replace(read_query(params, self._services.now_ns()), limit=200, before=None)
        last = request.headers.get("last-event-id", "")
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 19 else None
        self._asker.check()
        if not self._tails.take():
            return error_answer(429, "rate_limit_error", f"{_TAILS_MAX} live tails are open already")
        try:
            first = await self._asker.ask_for(request, asking.tail(after, query))
        except BaseException:
            self._tails.give_back()
            raise
        return SeatedStream(
            self._tails,
            self._tail(query, first),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _tail(self, query: TraceQuery, found: Answer) -> AsyncIterator[bytes]:
        quiet_s, mark, first = 0.0, found.head["mark"], found.head["first"]
        yield f"retry: 2000\nid: {mark if first is None else first - 1}\nevent: ready\ndata: {{}}\n\n".encode()
        events = found.body
        while not self._services.is_draining():
            if events:
                quiet_s = 0.0
                yield events
            else:
                quiet_s += self._services.poll_s
            if quiet_s >= 15.0:  # a comment now and then finds out whether anybody still listens
                quiet_s = 0.0
                yield b":\n\n"
            await anyio.sleep(self._services.poll_s)
            try:
                found = await self._asker.ask(asking.tail(mark, query))
                mark, events = found.head["mark"], found.body
            except TraceStoreError:  # the store is being replaced; the next look may find it
                events = b""

    async def _find(self, request: Request) -> Answer:
        return await self._asker.ask_for(request, asking.one(request.path_params["some_id"]))


def _no_trace(request: Request) -> Response:
    some_id = request.path_params["some_id"]
    return error_answer(404, "not_found_error", f"no trace and no request has the id `{some_id[:80]}`")
