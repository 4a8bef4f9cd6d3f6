"""A deadline that moves with every chunk and yet costs no timer per request."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

_TICK_S = 10.0
_SECOND_LOOK_S = 0.001


class Deadline:
    """Calls `on_due` once the moment set last has passed; belongs to one connection for its whole life.

    The timer looks at the moment when it fires, and sleeps on if that has moved. It fires at least every ten seconds,
    so that a moment further away than that can move without the timer being touched. What is due is looked at twice,
    with a turn of the loop between: a process that was stopped or starved finds its timers due and its sockets full of
    answers, and the answers come first (fault F93). A moment never lies behind the `limit`. `on_due` must call
    `cancel()` or `expire_in()`; until then nothing fires again.
    """

    __slots__ = ("_at", "_is_doubted", "_limit_at", "_loop", "_on_due", "_timer", "_timer_at")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_due: Callable[[], None]) -> None:
        self._loop = loop
        self._on_due = on_due
        self._at = self._limit_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._is_doubted = False  # found due once

    def limit(self, at: float) -> None:
        """No moment set from now on lies behind `at`, a time of the loop; infinity: there is no limit."""
        self._limit_at = at

    def expire_in(self, seconds: float) -> None:
        """Move the deadline to `seconds` from now, or to the limit where that is earlier."""
        now = self._loop.time()
        at = now + seconds
        self._at = at if at < self._limit_at else self._limit_at
        self._is_doubted = False
        if self._at < self._timer_at or self._timer is None:
            if self._timer is not None:
                self._timer.cancel()
            self._sleep(now)

    def hold(self) -> None:
        """No deadline but the limit until the next `expire_in`."""
        self._at = self._limit_at

    def cancel(self) -> None:
        """Stop for good, and let go of the owner."""
        self._on_due = _do_nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sleep(self, now: float) -> None:
        self._timer_at = min(self._at, now + _TICK_S)
        self._timer = self._loop.call_at(self._timer_at, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        if now < self._at:
            self._sleep(now)
        elif not self._is_doubted:
            self._is_doubted = True
            self._timer_at = now + _SECOND_LOOK_S
            self._timer = self._loop.call_at(self._timer_at, self._look)
        else:
            self._timer = None
            self._on_due()


def _do_nothing() -> None:
    """What a cancelled deadline calls; it never does."""
