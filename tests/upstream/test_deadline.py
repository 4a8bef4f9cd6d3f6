"""The moving deadline, on a clock of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from router.upstream.deadline import Deadline


class Clock:
    """The part of an event loop that a deadline uses: a time, and timers that fire when time is moved."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Handle]] = []
        self.armed = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Any:
        self.armed += 1
        handle = Handle(callback)
        self.timers.append((when, handle))
        return handle

    def pass_s(self, seconds: float) -> None:
        """Move the time, firing what falls due on the way."""
        end = self.now + seconds
        while due := sorted((when, n) for n, (when, handle) in enumerate(self.timers) if when <= end):
            when, number = due[0]
            _, handle = self.timers.pop(number)
            self.now = max(self.now, when)
            if not handle.is_cancelled:
                handle.callback()
        self.now = end


class Handle:
    """A timer that can be cancelled."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


def deadline_on(clock: Clock) -> tuple[Deadline, list[float]]:
    """A deadline and the moments at which it fired."""
    fired: list[float] = []
    loop: asyncio.AbstractEventLoop = clock  # type: ignore[assignment]  # the two methods it needs
    return Deadline(loop, lambda: fired.append(clock.now)), fired


def test_it_fires_once_at_its_moment():
    """Near or far, a deadline is exact."""
    for seconds in (0.5, 9.9, 10.1, 600.0):
        clock = Clock()
        deadline, fired = deadline_on(clock)
        deadline.expire_in(seconds)
        clock.pass_s(2000)
        assert fired == [pytest.approx(100.0 + seconds, abs=0.002)]


def test_moving_a_far_deadline_touches_no_timer():
    """A thousand chunks cost a thousand clock readings, and no timer but the tick."""
    clock = Clock()
    deadline, fired = deadline_on(clock)
    for _ in range(1000):
        deadline.expire_in(300)
        clock.pass_s(0.1)
    assert clock.armed <= 12  # 100 seconds have passed, one tick each ten
    assert fired == []


def test_a_nearer_deadline_replaces_a_farther_one():
    """A short limit after a long one is kept."""
    clock = Clock()
    deadline, fired = deadline_on(clock)
    deadline.expire_in(600)
    deadline.expire_in(0.2)
    clock.pass_s(1)
    assert fired == [pytest.approx(100.2, abs=0.002)]


def test_while_held_it_does_not_fire():
    """A deadline on hold waits for the next `expire_in`."""
    clock = Clock()
    deadline, fired = deadline_on(clock)
    deadline.expire_in(1)
    deadline.hold()
    clock.pass_s(1000)
    assert fired == []
    deadline.expire_in(1)
    clock.pass_s(2)
    assert fired == [pytest.approx(1101.0, abs=0.002)]


def test_what_arrives_while_the_process_was_stopped_comes_first():
    """A deadline found due is looked at once more after a turn of the loop, in which answers are read (F93)."""
    clock = Clock()
    deadline, fired = deadline_on(clock)
    deadline.expire_in(1)
    clock.now += 10  # stopped; then the timer fires, and only after it the socket is read
    clock.pass_s(0.0005)
    deadline.expire_in(1)
    clock.pass_s(0.5)
    assert fired == []
    clock.pass_s(1)
    assert len(fired) == 1


def test_a_cancelled_one_never_fires():
    """After `cancel` the owner is let go."""
    clock = Clock()
    deadline, fired = deadline_on(clock)
    deadline.expire_in(1)
    deadline.cancel()
    clock.pass_s(1000)
    assert fired == []


def test_no_moment_lies_behind_the_limit():
    """However often it moves, and while it is held too."""
    clock = Clock()
    deadline, fired = deadline_on(clock)
    deadline.limit(clock.now + 25)
    for _ in range(24):
        deadline.expire_in(5)
        clock.pass_s(1)
    deadline.hold()
    clock.pass_s(30)
    assert fired == [pytest.approx(125, abs=0.01)]
