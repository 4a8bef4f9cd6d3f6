"""Notice that a client has gone, without a task per request.

ASGI tells of a disconnect only through `receive()`, which waits until it happens; a task around it costs more than most
phases of a request. The `receive` of our own server is a method of the request's `Cycle`, which calls what is set as
its `on_gone` in the moment when the connection ends. Any other server gets the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from router.web.http.cycle import Cycle

Message = MutableMapping[str, Any]


def watch_for_disconnect(receive: Callable[[], Awaitable[Message]], gone: Callable[[], None]) -> Callable[[], None]:
    """Call `gone` once the client disconnects, at once if it has; returns the function that ends the watch."""
    cycle = getattr(receive, "__self__", None)
    if not isinstance(cycle, Cycle):
        return _watch_in_task(receive, gone)
    if cycle.is_gone:
        gone()
    else:
        cycle.on_gone = gone
    return cycle.unwatch


def _watch_in_task(receive: Callable[[], Awaitable[Message]], gone: Callable[[], None]) -> Callable[[], None]:
    async def watch() -> None:
        try:
            message = await receive()
        except OSError:  # so servers of ASGI 2.4 say it
            gone()
            return
        if message["type"] == "http.disconnect":
            gone()

    task = asyncio.get_running_loop().create_task(watch())

    def end() -> None:
        task.cancel()

    return end
