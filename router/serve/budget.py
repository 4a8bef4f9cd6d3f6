"""The retry budget of this process: retries may be a share of the traffic, and a few more when there is little of it.

Retries are right for one request and wrong for an upstream that is ill: every client that is refused comes back, and
the load grows when there is least room for it. So a retry of the same lane costs a token. Each request brings a fifth
of one, up to `burst`; while there is hardly any traffic, time brings them too, up to `floor`. When none is left there
is no retry, and the walk goes on to the next lane or tells the client, whose own retry may find better days. A
fallback costs nothing: each lane of a route is asked once in any case, so that their number is bounded already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

SHARE = 0.2  # of the requests
FLOOR = 10.0  # tokens that time alone brings
FLOOR_PER_S = 1.0
BURST = 100.0  # tokens that traffic saves up: what a quiet hour may be followed by


class RetryBudget:
    """A bucket of tokens; `clock` gives seconds that only grow. It starts with `FLOOR` tokens."""

    __slots__ = ("_clock", "_looked_at_s", "_refused", "_spent", "_tokens")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._looked_at_s = clock()
        self._tokens = FLOOR
        self._spent = self._refused = 0

    def request(self) -> None:
        """Take note of one client request: what earns retries."""
        if self._tokens < BURST:
            self._tokens += SHARE

    def take(self) -> bool:
        """Whether one more retry may be sent; it is then paid for."""
        now_s = self._clock()
        if self._tokens < FLOOR:
            self._tokens = min(FLOOR, self._tokens + (now_s - self._looked_at_s) * FLOOR_PER_S)
        self._looked_at_s = now_s
        if self._tokens < 1.0:
            self._refused += 1
            return False
        self._tokens -= 1.0
        self._spent += 1
        return True

    def stats(self) -> Mapping[str, int]:
        """Whole tokens `left` as of the last retry, retries `spent` and `refused` since the start."""
        return {"left": int(self._tokens), "spent": self._spent, "refused": self._refused}
