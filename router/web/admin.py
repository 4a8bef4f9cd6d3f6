"""The admin listener: health, metrics, the policy in force, the cache, traces as JSON and as a page.

Whom it lets in is decided in `web/gate.py`. The trace store is read in a worker thread, never on the event loop.
"""

from __future__ import annotations

import mimetypes
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.resources import files
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from router.cache.desk import CacheDesk
from router.errors import BadFilter, RouterError, TraceStoreError
from router.trace.export import encode_json
from router.trace.filters import read_query, read_since, write_mark
from router.trace.metrics import CONTENT_TYPE
from router.trace.record import TraceQuery
from router.web.answer import error_answer, json_answer, router_error
from router.web.cache import CacheRooms
from router.web.gate import Gate, log_in, log_out, login_page

T = TypeVar("T")

_TAILS_MAX = 32  # live tails at once; each asks the store a question a second
_POLL_S = 1.0


class TraceReader(Protocol):
    """What the page asks of a trace store (`trace.reader.SqliteTraceReader` is one); raises TraceStoreError."""

    def page(self, query: TraceQuery) -> tuple[list[dict[str, Any]], tuple[int, str] | None]: ...

    def get(self, some_id: str) -> dict[str, Any] | None: ...

    def tail(self, after: int | None, query: TraceQuery) -> tuple[int, list[tuple[int, dict[str, Any]]]]: ...

    def report(self, by: str, since_ns: int | None) -> list[dict[str, Any]]: ...

    def totals(self, since_ns: int | None) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class AdminServices:
    """What the admin listener shows, as callables.

    `readiness` says whether the router can serve, with details; `policy_status` what is in force and what a refused
    edit said; `flush`, when given, waits for written traces to reach the store (it is run in a thread). `reader` None:
    traces are off. `is_draining` ends live tails, so that a server can stop. `now_ns` is Unix time. `cache` counts and
    purges.
    """

    readiness: Callable[[], tuple[bool, Mapping[str, Any]]]
    metrics: Callable[[], bytes]
    policy_status: Callable[[], Mapping[str, Any]]
    reader: TraceReader | None = None
    flush: Callable[[], object] | None = None
    admin_token: str | None = None
    version: str = ""
    is_draining: Callable[[], bool] = bool
    now_ns: Callable[[], int] = time.time_ns
    cache: CacheDesk = field(default_factory=lambda: CacheDesk("off"))
    poll_s: float = _POLL_S


def create_admin(services: AdminServices) -> Starlette:
    """The admin application. Every answer carries the safe headers; errors have the Messages API shape."""
    rooms = _Rooms(services)
    cache = CacheRooms(services.cache)
    static = _static_files()

    async def page(_: Request) -> Response:
        return _file(static, "index.html")

    async def asset(request: Request) -> Response:
        return _file(static, request.path_params["name"])

    app = Starlette(
        routes=[
            Route("/healthz", rooms.health),
            Route("/readyz", rooms.ready),
            Route("/metrics", rooms.metrics),
            Route("/policy", rooms.policy),
            Route("/cache", cache.show),
            Route("/cache/purge", cache.purge, methods=["POST"]),
            Route("/login", rooms.login_form, methods=["GET"]),
            Route("/login", rooms.login, methods=["POST"]),
            Route("/logout", rooms.logout, methods=["POST"]),
            Route("/traces", rooms.traces),
            Route("/traces/{some_id}", rooms.trace),
            Route("/report", rooms.report),
            Route("/events", rooms.events),
            Route("/static/{name}", asset),
            Route("/", page),
            Route("/t/{some_id}", page),
        ],
        exception_handlers={RouterError: router_error},
    )
    app.add_middleware(Gate, token=services.admin_token)
    return app


class _Rooms:
    """The endpoints."""

    def __init__(self, services: AdminServices) -> None:
        self._services = services
        self._tails = 0

    async def health(self, _: Request) -> Response:
        return json_answer({"status": "ok", "version": self._services.version})

    async def ready(self, _: Request) -> Response:
        is_ready, details = self._services.readiness()
        return json_answer({"ready": is_ready, **details}, 200 if is_ready else 503)

    async def metrics(self, _: Request) -> Response:
        text = await anyio.to_thread.run_sync(self._services.metrics)
        return Response(text, headers={"content-type": CONTENT_TYPE, "cache-control": "no-store"})

    async def policy(self, _: Request) -> Response:
        return json_answer(self._services.policy_status())

    async def login_form(self, _: Request) -> Response:
        return login_page()

    async def login(self, request: Request) -> Response:
        return await log_in(request, self._services.admin_token)

    async def logout(self, _: Request) -> Response:
        return log_out()

    async def traces(self, request: Request) -> Response:
        query = read_query(_params(request), self._services.now_ns())
        rows, mark = await self._ask(partial(self._reader().page, query))
        return json_answer({"traces": rows, "next": None if mark is None else write_mark(mark)})

    async def trace(self, request: Request) -> Response:
        some_id = request.path_params["some_id"]
        found = await self._ask(partial(self._reader().get, some_id))
        if found is None:
            return error_answer(404, "not_found_error", f"no trace and no request has the id `{some_id[:80]}`")
        return json_answer(found)

    async def report(self, request: Request) -> Response:
        params = _params(request)
        by, since = params.pop("by", "rule"), params.pop("since", "")
        if params:
            raise BadFilter(f"unknown filter `{next(iter(params))[:64]}`, expected `by` or `since`")
        since_ns = read_since(since, self._services.now_ns()) if since else None
        reader = self._reader()
        rows = await self._ask(partial(reader.report, by, since_ns))
        totals = await self._ask(partial(reader.totals, since_ns))
        return json_answer({"by": by, "since": since or None, "rows": rows, "totals": totals})

    async def events(self, request: Request) -> Response:
        """Server-sent events: one `trace` per finished request that matches, with a mark to resume from as its id."""
        params = _params(request)
        params.pop("limit", None)
        query = replace(read_query(params, self._services.now_ns()), limit=200, before=None)
        last = request.headers.get("last-event-id", "")
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 19 else None
        if self._tails >= _TAILS_MAX:
            return error_answer(429, "rate_limit_error", f"{_TAILS_MAX} live tails are open already")
        reader = self._reader()
        mark, rows = await self._ask(partial(reader.tail, after, query))
        return StreamingResponse(
            self._tail(reader, query, mark, rows),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _tail(
        self, reader: TraceReader, query: TraceQuery, mark: int, rows: list[tuple[int, dict[str, Any]]]
    ) -> AsyncIterator[str]:
        self._tails += 1
        try:
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
        finally:
            self._tails -= 1

    def _reader(self) -> TraceReader:
        if self._services.reader is None:
            raise TraceStoreError("traces are off", hint="set `traces` to `sqlite:///router.db`")
        return self._services.reader

    async def _ask(self, question: Callable[[], T]) -> T:
        flush = self._services.flush
        if flush is not None:
            await anyio.to_thread.run_sync(flush)
        return await anyio.to_thread.run_sync(question)


def _params(request: Request) -> dict[str, str]:
    """The query string as a mapping. Raises BadFilter when a name comes twice."""
    params: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in params:
            raise BadFilter(f"`{name[:64]}` comes twice, expected once")
        params[name] = value
    return params


def _static_files() -> Mapping[str, tuple[bytes, str]]:
    """The page's files by name, read once: what is not in here has no address (S21)."""
    found = {}
    for entry in files("router.web").joinpath("static").iterdir():
        kind = {"js": "text/javascript"}.get(entry.name.rpartition(".")[2]) or mimetypes.guess_type(entry.name)[0]
        if entry.is_file() and kind is not None:
            found[entry.name] = (entry.read_bytes(), kind)
    return found


def _file(static: Mapping[str, tuple[bytes, str]], name: str) -> Response:
    if name not in static:
        return error_answer(404, "not_found_error", "there is no such file")
    content, kind = static[name]
    return Response(content, media_type=kind, headers={"cache-control": "no-cache"})
