"""The brake: when the event loop is late for a while, tenants may use only so much work per second, and less and less.

The loop's lag is how late a timer fires: half of the time that one turn of the loop takes, on the average. A request
needs about three turns, so a lag of 20 ms is 120 ms that everybody waits. A single late timer says nothing (a
collection of garbage, a neighbour on the same core); like CoDel's queue delay it counts when it *stays*: the median of
a window of samples, over the target in several windows in a row.

What is controlled is one number, `level`: the units of work that one tenant may use per second. It falls while the lag
is over the target and rises while it is below. Tenants below the level notice nothing; those above are cut down to it,
the largest by most. However the load is spread, that is the fair share (max-min), and nobody has to know how much work
the machine can do. Around the target the loop always has something to do, so that nothing of its time is lost.

The lag alone does not count: the process must also have been busy, and have had requests to be busy with. On a machine
whose cores are taken by others an idle loop is late as well, and turning clients away would not help it. So some
requests are always let in.
"""

from __future__ import annotations

from math import inf

WINDOW_S = 0.1  # at the least: a late loop makes it longer

_PATIENCE = 3  # windows over the target before the brake goes on
_CALM = 5  # windows in which nobody was turned away before it is off
_FEWEST = 4  # units of work in a window: fewer cannot be what the loop is late with
_BUSY = 0.1  # of a core
_LOWEST = 0.5
_FALL, _RISE = 0.1, 0.25  # of the level in one window, per target's worth of lag over it or below
_DEEPEST_FALL = 0.3
_DEPTH_S = 0.02  # of the level that may be used at once


class Brake:
    """The state of the brake. `target_s` is the lag that it aims at; infinite: it never goes on."""

    __slots__ = ("_calm", "_over", "_target_s", "depth", "is_on", "lag_s", "level", "since_s", "times")

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s
        self._over = self._calm = 0
        self.times = 0  # that it went on since the start
        self.is_on = False
        self.level = inf  # units of work per second and tenant
        self.depth = inf  # units that may be used at once
        self.lag_s = 0.0  # the median of the last window
        self.since_s = 0.0  # when it went on, on the clock of who looks

    def look(self, lag_s: float, busy: float, seconds: float, used: int, most: int, refused: int, now_s: float) -> bool:
        """Take one window of `seconds` into account; True when the brake went on or off.

        `lag_s` is the median of its samples, `busy` the share of a core that the process used; of the units of work,
        `used` were let in, `most` of one tenant; `refused` requests were turned away by the brake.
        """
        self.lag_s = lag_s
        is_late = lag_s > self._target_s and used >= _FEWEST and busy >= _BUSY
        if not self.is_on:
            self._over = self._over + 1 if is_late else 0
            if self._over < _PATIENCE:
                return False
            self.is_on, self.since_s = True, now_s
            self.times += 1
            self._calm = 0
            self._set(0.8 * max(most, 1) / seconds)
            return True
        excess = lag_s / self._target_s - 1
        if is_late:
            self._set(self.level * max(1 - _DEEPEST_FALL, 1 - _FALL * excess))
        else:
            self._set(self.level * (1 + _RISE * max(-excess, 0.2)))
        self._calm = 0 if refused or is_late else self._calm + 1
        if self._calm < _CALM:
            return False
        self.is_on, self._over = False, 0
        self.level = self.depth = inf
        return True

    def _set(self, level: float) -> None:
        self.level = max(_LOWEST, level)
        self.depth = max(1.0, self.level * _DEPTH_S)
