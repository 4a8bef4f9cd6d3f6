"""The life of one serving process: its two servers open, drain and end, in that order.

    life = Life(app, api, admin, drain, LastResort())
    await life.run(listeners, said)      # until `drain` or `hurry` was called and all is over

Draining is what makes a stop harmless. `/readyz` says 503 at once, and goes on to say so until the end. The API takes
newcomers for as long as `drain_delay` says, then leaves its listener; each answer from then on tells its client to
close; connections without a request are given a moment, because a request may be on its way. What is still under way
after `drain_timeout` is told that the router stops (a stream by an error event), and the traces are written. A stop
that does not end by itself is ended by the last resort.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn

from router.cli.end import BEYOND_S, LastResort
from router.web.door import Door

if TYPE_CHECKING:
    from router.app import App

LAST_WORDS_S = 2.0  # after the drain limit, for telling clients that it is over
_IDLE_GRACE_S = 0.5  # for a request that is on its way while we close
_LOOK_S = 0.02
_YOUNG_OBJECTS = 20_000  # a request makes a few hundred and leaves no cycles: looking every 700 finds nothing
_SWITCH_S = 0.0005  # how long the event loop waits for the interpreter while the trace writer holds it

_log = logging.getLogger("router")


@dataclass(frozen=True, slots=True)
class Drain:
    """How a stop goes, in seconds: `delay_s` until the listener is left, then `timeout_s` for requests under way."""

    timeout_s: float
    delay_s: float = 0.0


class Server(uvicorn.Server):
    """uvicorn's connections behind a door of our own, and without its signals and its clock."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._doors: list[Door] = []
        self._arriving: set[asyncio.Task[Any]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections from these listeners; without any, only those that `adopt` is given."""
        if not self.config.loaded:
            self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        self._doors = [Door(listener, self.adopt) for listener in sockets or ()]
        self.servers = list[Any](self._doors)
        self.started = True

    def adopt(self, connection: socket.socket) -> None:
        """Serve a connection that was accepted here or by another process."""
        task = asyncio.get_running_loop().create_task(self._welcome(connection))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    async def _welcome(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        except OSError:  # it is gone already
            connection.close()

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    def take_waiting(self) -> None:
        """Serve who waits before the doors already."""
        for door in self._doors:
            door.take_waiting()

    def leave(self) -> None:
        """Take no newcomers any more."""
        for door in self._doors:
            door.close()

    def close_idle(self) -> None:
        """Close each connection that has no request, the others after their answer."""
        for connection in list(self.server_state.connections):
            connection.shutdown()

    def is_idle(self) -> bool:
        """Whether no connection is open and nothing is under way."""
        state = self.server_state
        return not (state.connections or state.tasks or self._arriving)

    def refuse_uploads(self) -> None:
        """Tell each client whose request is not complete that it will not be served."""
        ours: list[Any] = list(self.server_state.connections)  # `HttpConnection`, which uvicorn's types do not know
        for connection in ours:
            connection.refuse_upload()

    def cancel(self) -> None:
        """End what is under way without a word."""
        for task in [*self.server_state.tasks, *self._arriving]:
            task.cancel()

    def stats(self) -> Mapping[str, int]:
        """`open` connections, and what the doors count."""
        counts = {"open": len(self.server_state.connections), "accepted": 0, "refused": 0}
        for door in self._doors:
            for name, count in door.stats().items():
                counts[name] += count
        return counts

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are whoever's who joins the servers."""
        yield


class Life:
    """One process. `api` and `admin` are its servers; without a listener of its own `admin` adopts connections."""

    def __init__(self, app: App, api: Server, admin: Server, drain: Drain, last_resort: LastResort) -> None:
        self.app = app
        self.api = api
        self.admin = admin
        self._drain = drain
        self._last_resort = last_resort
        self._is_draining = asyncio.Event()
        self._is_hurried = asyncio.Event()
        self._ends_at_s = float("inf")  # when the last requests are told that it is over
        app.listener = api.stats

    @property
    def is_draining(self) -> bool:
        """Whether the end has begun."""
        return self._is_draining.is_set()

    def drain(self, timeout_s: float | None = None) -> None:
        """Begin the end; once more changes the limit, and nothing else. `timeout_s` None: the setting."""
        drain = self._drain
        limit_s = drain.timeout_s if timeout_s is None else timeout_s
        span_s = limit_s + (0.0 if self.is_draining else drain.delay_s)
        self._ends_at_s = time.monotonic() + span_s
        self._last_resort.within(span_s + BEYOND_S)
        if not self.is_draining:
            _log.info("stopping: not ready any more, requests under way have %g s", limit_s)
            self.app.drain()
            self._is_draining.set()

    def hurry(self) -> None:
        """End now: whoever waits for an answer is told so."""
        self.drain()
        self._last_resort.within(BEYOND_S)
        self._is_hurried.set()

    async def run(self, api: socket.socket, admin: socket.socket | None, said: Callable[[], object]) -> None:
        """Serve until the end; `said` is called once both servers take connections."""
        app = self.app
        await app.start()
        gc.collect()
        gc.freeze()  # what lives from start to end is not looked at again by every full collection
        gc.set_threshold(_YOUNG_OBJECTS, 20, 100)
        sys.setswitchinterval(_SWITCH_S)
        try:
            await self.admin.startup([] if admin is None else [admin])
            await self.api.startup([api])
            said()
            await self._is_draining.wait()
            app.api.retire()
            await self._hurried_within(self._drain.delay_s)
            self.api.take_waiting()
            self.api.leave()
            await self._wait_for_requests()
            await self._wait_for_admin()
        finally:
            await app.stop()

    async def _wait_for_requests(self) -> None:
        api = self.api
        grace_until_s = time.monotonic() + _IDLE_GRACE_S
        while not api.is_idle() and not self._is_hurried.is_set():
            now = time.monotonic()
            if now >= self._ends_at_s:
                break
            if now >= grace_until_s:
                api.close_idle()
                grace_until_s = now + _IDLE_GRACE_S
            await self._hurried_within(_LOOK_S)
        if api.is_idle():
            return
        left = len(api.server_state.tasks)
        if left:
            _log.warning("stopping: %d requests are told that it is over", left)
        api.close_idle()
        api.refuse_uploads()
        await asyncio.sleep(0)  # a body that has just come becomes a request that can be cut
        self.app.api.cut()
        if not await _until(api.is_idle, LAST_WORDS_S):
            api.cancel()
            await _until(lambda: not api.server_state.tasks, LAST_WORDS_S)

    async def _wait_for_admin(self) -> None:
        """The admin listener answers to the end; a reader of it does not hold the end up."""
        self.admin.leave()
        self.admin.close_idle()
        if not await _until(self.admin.is_idle, LAST_WORDS_S):
            self.admin.cancel()

    async def _hurried_within(self, span_s: float) -> None:
        if span_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_hurried.wait(), span_s)


async def _until(holds: Callable[[], bool], within_s: float) -> bool:
    """Whether it comes to hold in time. Connections close without telling anybody, so it is looked at."""
    ends_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() >= ends_s:
            return False
        await asyncio.sleep(_LOOK_S)
    return True
