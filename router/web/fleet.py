"""The fleet's traces on the admin listener: the same list, trace and live tail, out of the stream in Redis.

They are asked for by `fleet=1` at the addresses of the others. What comes out of the stream was written by other
processes; it is read by `trace.fleet_row`, which believes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from router.errors import BadFilter, TraceStoreError
from router.trace.export import started_at
from router.trace.filters import read_query
from router.trace.fleet_read import FleetPage, FleetReader, check_mark
from router.trace.fleet_tail import FleetTail, FleetTails, encoded
from router.web.answer import encoded_answer, error_answer, json_answer
from router.web.turns import SeatedStream, Seats, Turns

_TAILS_MAX = 16  # they share one reading, but each is sent every event


@dataclass(frozen=True, slots=True)
class TraceServices:
    """What the rooms of traces need beside the store.

    `decide_now` says what the policies in force would do with a trace (of which it is given `trace_id` and
    `request_id`), None when it is gone; it runs in a thread. `is_draining` ends live tails, so that a server can stop.
    `now_ns` is Unix time.
    """

    decide_now: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] | None
    is_draining: Callable[[], bool]
    now_ns: Callable[[], int]
    poll_s: float


class FleetRooms:
    """The endpoints; `fleet` None: there is no fleet, and each says so."""

    def __init__(self, services: TraceServices, fleet: FleetReader | None) -> None:
        self._services = services
        self._fleet = fleet
        self._tails = None if fleet is None else FleetTails(fleet, poll_s=services.poll_s)
        self._seats = Seats(_TAILS_MAX)
        self._turns = Turns()

    async def home(self, _: Request) -> Response:
        """Which router this is in the fleet: `pod` is None where it shares no traces."""
        return json_answer({"pod": None if self._fleet is None else self._fleet.pod})

    async def traces(self, request: Request) -> Response:
        """A page of the newest traces of all routers that match, the mark of the next, and what the stream holds."""
        fleet = self._reader()
        params = _own_params(request)
        before = params.pop("before", "")
        query = read_query(params, self._services.now_ns())
        async with self._turns.turn():
            await fleet.flush()
            found = await fleet.page(query, check_mark(before) if before else None)
        return _json({"traces": found.rows, "next": found.mark, "fleet": _of_stream(fleet, found)})

    async def trace(self, request: Request) -> Response:
        """One trace of any router, as far as it is in the stream."""
        fleet = self._reader()
        some_id = request.path_params["some_id"]
        async with self._turns.turn():
            await fleet.flush()
            found = await fleet.one(some_id)
        if found is None:
            text = f"no recent trace of the fleet has the id `{some_id[:80]}`; the stream keeps the last {fleet.most:,}"
            return error_answer(404, "not_found_error", text)
        return _json({**found, "is_here": found["pod"] == fleet.pod})

    async def events(self, request: Request) -> Response:
        """Server-sent events: one `trace` per request that has finished on any router; `gap` where some are left out.

        Those are gone from the stream already, or there were too many a second, or the client took them too slowly.
        """
        fleet = self._reader()
        params = _own_params(request)
        for name in ("limit", "before"):
            params.pop(name, None)
        query = read_query(params, self._services.now_ns())
        last = request.headers.get("last-event-id", "")
        if not self._seats.take():
            return error_answer(429, "rate_limit_error", f"{_TAILS_MAX} live tails of the fleet are open already")
        try:
            await fleet.flush()
            is_returning = _is_mark(last)
            mark = last if is_returning else await fleet.newest()
        except BaseException:
            self._seats.give_back()
            raise
        assert self._tails is not None
        return _TailStream(
            self._tails.tail(query, mark, is_returning=is_returning),
            self._seats,
            self._tail,
        )

    async def _tail(self, tail: FleetTail) -> AsyncIterator[bytes]:
        yield f"retry: 2000\nid: {tail.mark}\nevent: ready\ndata: {{}}\n\n".encode()
        quiet_s = 0.0
        async for events in tail.events():
            if events:
                quiet_s = 0.0
                yield events
            else:
                quiet_s += self._services.poll_s
            if quiet_s >= 15.0:  # a comment now and then finds out whether anybody still listens
                quiet_s = 0.0
                yield b":\n\n"
            if self._services.is_draining():
                return

    def _reader(self) -> FleetReader:
        if self._fleet is None:
            raise TraceStoreError(
                "this router shares no traces with others",
                hint="set `fleet` to the Redis of the fleet, and leave `fleet_traces` on",
            )
        return self._fleet


class _TailStream(SeatedStream):
    """A tail as an answer; at its end the others are served without it."""

    def __init__(self, tail: FleetTail, seats: Seats, events: Callable[[FleetTail], AsyncIterator[bytes]]) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(seats, events(tail), media_type="text/event-stream", headers=headers)
        self._tail = tail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._tail.close()


def is_of_fleet(request: Request) -> bool:
    """Whether the fleet is asked for. Raises BadFilter for a `fleet` that is neither `1` nor empty."""
    given = query_params(request).get("fleet", "")
    if given not in ("", "1"):
        raise BadFilter(f"`fleet` is `{given:.64}`, expected `1`, or no `fleet` for the traces of this router")
    return given == "1"


def query_params(request: Request) -> dict[str, str]:
    """The query string as a mapping. Raises BadFilter when a name comes twice."""
    params: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in params:
            raise BadFilter(f"`{name[:64]}` comes twice, expected once")
        params[name] = value
    return params


def _own_params(request: Request) -> dict[str, str]:
    params = query_params(request)
    del params["fleet"]
    return params


def _is_mark(text: str) -> bool:
    try:
        return bool(text) and bool(check_mark(text))
    except BadFilter:
        return False


def _of_stream(fleet: FleetReader, found: FleetPage) -> dict[str, Any]:
    """What the page says of the stream: who answers, how much is kept, since when, and whether the time was short."""
    return {
        "pod": fleet.pod,
        "held": found.held,
        "most": fleet.most,
        "oldest_at": None if found.oldest_ms is None else started_at(min(found.oldest_ms, 2**43) * 1_000_000),
        "is_cut": found.is_cut,
    }


def _json(value: Any) -> Response:
    return encoded_answer(encoded(value))
