"""The admin listener: health, metrics, the policy in force, the cache, traces as JSON and as a page.

Whom it lets in is decided in `web/gate.py`. What it asks of the trace store goes to a desk (`trace.asking`):
the store is never read on the event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from router.cache.desk import CacheDesk
from router.errors import RouterError
from router.trace.asking import AnswerDesk
from router.trace.fleet_read import FleetReader
from router.trace.metrics import CONTENT_TYPE
from router.web.answer import json_answer, router_error
from router.web.ask import Asker
from router.web.cache import CacheRooms
from router.web.fleet import FleetRooms, TraceServices
from router.web.flush import EVERY_S, SharedFlush
from router.web.gate import Gate, log_in, log_out, login_page
from router.web.page import page_routes
from router.web.status import StatusRooms, StatusServices
from router.web.traces import TraceRooms
from router.web.turns import Busy, Turns, busy_answer

_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class AdminServices:
    """What the admin listener shows, as callables.

    `readiness` says whether the router can serve, with details; `policy_status` what is in force and what a refused
    edit said; `desk` takes questions to the trace store, None: traces are off; `flush`, when given, waits for written
    traces to reach it (it is run in a thread, every `flush_every_s` seconds where it is wanted all the time).
    `decide_now` says what the policies in force would do with a trace, None when it is gone. `is_draining` ends live
    tails, so that a server can stop. `now_ns` is Unix time. `cache` counts and purges. `fleet` reads the traces of all
    replicas, None: there is no fleet.
    """

    readiness: Callable[[], tuple[bool, Mapping[str, Any]]]
    metrics: Callable[[], bytes]
    policy_status: Callable[[], Mapping[str, Any]]
    desk: AnswerDesk | None = None
    fleet: FleetReader | None = None
    flush: Callable[[], object] | None = None
    flush_every_s: float = EVERY_S
    decide_now: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] | None = None
    admin_token: str | None = None
    version: str = ""
    is_draining: Callable[[], bool] = bool
    now_ns: Callable[[], int] = time.time_ns
    cache: CacheDesk = field(default_factory=lambda: CacheDesk("off"))
    poll_s: float = _POLL_S
    status: StatusServices | None = None


def create_admin(services: AdminServices) -> Starlette:
    """The admin application. Every answer carries the safe headers; errors have the Messages API shape."""
    rooms = _Rooms(services)
    cache = CacheRooms(services.cache)
    asker = Asker(services.desk, SharedFlush(services.flush, services.flush_every_s), Turns())
    trace_services = TraceServices(
        decide_now=services.decide_now,
        is_draining=services.is_draining,
        now_ns=services.now_ns,
        poll_s=services.poll_s,
    )
    traces = TraceRooms(trace_services, asker, FleetRooms(trace_services, services.fleet))
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
            *(StatusRooms(services.status, asker).routes() if services.status is not None else ()),
            *traces.routes(),
            *page_routes(),
        ],
        exception_handlers={RouterError: router_error, Busy: busy_answer},
    )
    app.add_middleware(Gate, token=services.admin_token)
    return app


class _Rooms:
    """The endpoints."""

    def __init__(self, services: AdminServices) -> None:
        self._services = services

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
