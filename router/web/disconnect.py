"""Notice that a client has gone, without a task per request.

ASGI tells of a disconnect only through `receive()`, which waits until it happens. A task around it costs more than most
phases of a request. So the coroutine is stepped by hand: its first step hands back the future that it waits for, and a
callback on that future takes the second step when it is done. A server whose `receive` waits in another way
(a bare yield) gets the task after all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]


def watch_for_disconnect(receive: Callable[[], Awaitable[Message]], gone: Callable[[], None]) -> Callable[[], None]:
    """Call `gone` once the client disconnects; returns the function that ends the watch."""
    waiting = receive()
    if not isinstance(waiting, Coroutine):
        return _watch_in_task(waiting, gone)
    return _Stepper(waiting, gone).close


class _Stepper:
    """Drives one `receive()` coroutine from future to future."""

    __slots__ = ("_coroutine", "_future", "_gone", "_is_closed")

    def __init__(self, coroutine: Coroutine[Any, Any, Message], gone: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._gone = gone
        self._future: asyncio.Future[Any] | None = None
        self._is_closed = False
        self._step(None)

    def close(self) -> None:
        """Stop watching; nothing is called after this."""
        self._is_closed = True
        if self._future is not None:
            self._future.remove_done_callback(self._step)
        self._coroutine.close()

    def _step(self, _: asyncio.Future[Any] | None) -> None:
        if self._is_closed:  # the future was done already and this call was on its way
            return
        self._future = None
        try:
            future = self._coroutine.send(None)
        except StopIteration as done:
            if done.value["type"] == "http.disconnect":
                self._gone()
            return
        except OSError:
            self._gone()
            return
        if isinstance(future, asyncio.Future):
            # What a task does: awaiting marks the future as taken, and being told of its end drives the next step.
            future._asyncio_future_blocking = False
            future.add_done_callback(self._step)
            self._future = future
        else:
            asyncio.get_running_loop().call_soon(self._step, None)


def _watch_in_task(waiting: Awaitable[Message], gone: Callable[[], None]) -> Callable[[], None]:
    async def watch() -> None:
        message = await waiting
        if message["type"] == "http.disconnect":
            gone()

    task = asyncio.get_running_loop().create_task(watch())
    return lambda: None if task.done() else (task.cancel(), None)[1]
