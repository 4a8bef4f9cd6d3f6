"""Questions about traces see what was written before them, without each of them waking the writer of the store.

A flush under way may have begun before a trace that a newcomer knows of, so newcomers share the next one. There are a
few in a second at the most: each has the writer store and roll up what little has come since the last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

EVERY_S = 0.25
_AT_ONCE = 4  # after a pause: a page that opens asks a few things one after the other

_log = logging.getLogger(__name__)


class SharedFlush:
    """Call and await it before a question. `flush` waits for the writer, and is run in a thread; None: nothing to do.

    `every_s` is the time between two beginnings, in seconds, when they are wanted all the time. It belongs to the event
    loop that first awaits it.
    """

    def __init__(self, flush: Callable[[], object] | None, every_s: float = EVERY_S) -> None:
        self._flush = flush
        self._every_s = every_s
        self._next: asyncio.Future[None] | None = None  # the one that newcomers wait for
        self._running: asyncio.Task[None] | None = None
        self._due = 0.0  # in the loop's time

    async def __call__(self) -> None:
        """Return when what was written before this call is in the store, or the writer has had its time for it."""
        if self._flush is None:
            return
        loop = asyncio.get_running_loop()
        if self._next is None:
            self._next = loop.create_future()
            if self._running is None:
                self._running = loop.create_task(self._run(self._flush))
        await asyncio.shield(self._next)

    async def _run(self, flush: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._next is not None:
                if self._due > loop.time():
                    await asyncio.sleep(self._due - loop.time())
                self._due = max(self._due, loop.time() - (_AT_ONCE - 1) * self._every_s) + self._every_s
                done, self._next = self._next, None
                try:
                    await asyncio.to_thread(flush)
                except Exception as error:  # a sink: the question is asked all the same
                    _log.error("trace store: it cannot be said whether all is in it: %s", type(error).__name__)
                finally:
                    done.set_result(None)
        finally:
            self._running = None
