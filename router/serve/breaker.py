"""A breaker per lane: an ill lane is left alone for a while, and comes back through a narrow door.

Theory of operation. Three states, and one rule for each way between them:

    closed    every request goes through. The ends of the last requests are kept, `WINDOW` of them and none older than
              `WINDOW_S`. It opens when the failures among them weigh enough, and no less than what went well.
    open      nobody goes through for a while: a second at first, twice as long each time it opens again, 20 seconds at
              the most and less by chance, so that many routers do not come back together.
    half      the slow start. At first one request at a time. Where its answer takes longer, another one goes
              `PROBE_EVERY_S` after it, and twice as long after that, `MOST_OPEN_S` at the most, until an answer comes:
              a lane that swallows requests gets few, be it that their clients wait or leave one after another. After
              `PROBES` that went well a share of the traffic that grows to all of it within `RAMP_S`. One failure among
              the first ends it, later a quarter of them does.

What counts as a failure says something of the lane and not of the request: no connection, 529, 503, any other 5xx, a
timeout, a broken connection, a stream that stalls, is cut, or ends in `overloaded_error` or `api_error`. A timeout and
a stall weigh double, because a client waited the whole limit for nothing. 429 is about one organization's limits and a
4xx about one request: neither counts against a lane, and both show that it is alive.

A breaker never refuses a client. An open lane is passed over while another lane of the route is left; the last one is
asked in any case, once. When such a request goes well, the lane is alive, and the slow start begins at once.

Nothing here knows a clock or a socket: `now_s` is given, and so is chance. A request that was let through before the
state changed says nothing of the state after it: each gets a `Pass`, the number of the state that it was given in.
Requests that only count tokens go by no breaker: they are answered elsewhere, and fast, when a model answers nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from router.policy.written import Lane

WINDOW = 20  # ends of requests that are looked at
WINDOW_S = 30.0
OPENS_AT = 5.0  # weight of failures
LEAST = 3  # ends without which there is no opinion
OPEN_S = 1.0
MOST_OPEN_S = 20.0
FORGETS_S = 60.0  # closed for so long: the next opening is the first again; not asked for so long: may be forgotten
PROBES = 3
PROBE_EVERY_S = 2.0
RAMP_S = 5.0
LEAST_WELL = 8  # ends without failure before it is closed again
MOST_LANES = 500  # that are watched
MOST_ASKED = 100  # models asked for that are watched beside them: their names come from clients

Pass = int
REFUSED: Pass = -1

WEIGHTS: Mapping[str, float] = {
    "connect_failed": 1.0,
    "overloaded": 1.0,
    "unavailable": 1.0,
    "error": 1.0,
    "broken": 1.0,
    "cut": 1.0,
    "timeout": 2.0,
}
STATES = ("closed", "half", "open")


@dataclass(frozen=True, slots=True)
class BreakerState:
    """What is shown of a breaker: `state` is closed, half or open; counts since the start; `open_for_s` from now."""

    lane: str
    model: str
    state: str
    open_for_s: float
    opened: int
    skipped: int
    failures: int

    def shown(self) -> dict[str, Any]:
        """As JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    def figures(self) -> dict[str, int]:
        """As numbers for the metrics: `state` is 0 closed, 1 half, 2 open."""
        return {
            "state": STATES.index(self.state),
            "opened": self.opened,
            "skipped": self.skipped,
            "failures": self.failures,
        }


Observe = Callable[[str, str, str, str], None]


class Breaker:
    """The breaker of one lane and model.

    `now_s` are seconds that only grow, `jitter` gives numbers in [0, 1), `observe` is told of each change: lane, model,
    the state that was left and the one that came.
    """

    __slots__ = (
        "_closed_at_s",
        "_credit",
        "_ends",
        "_entered_at_s",
        "_epoch",
        "_failed",
        "_jitter",
        "_observe",
        "_probed_at_s",
        "_probing",
        "_ramp_from_s",
        "_run",
        "_run_at_s",
        "_state",
        "_streak",
        "_unheard",
        "_until_s",
        "_weight",
        "_well",
        "failures",
        "lane",
        "model",
        "opened",
        "skipped",
    )

    def __init__(self, lane: str, model: str, jitter: Callable[[], float], observe: Observe | None = None) -> None:
        self.lane, self.model = lane, model
        self._jitter = jitter
        self._observe = observe
        self._state = "closed"
        self._epoch: Pass = 0
        self._ends: deque[tuple[float, float]] = deque()  # while closed: when, weight (0: went well)
        self._weight = 0.0  # of those
        self._run = 0  # ends that went well, counted only while nothing else has to be kept: the usual case, and cheap
        self._run_at_s = self._entered_at_s = 0.0  # the last of those, and the last request of all, let through or not
        self._failed = self._well = 0  # since the slow start began
        self._probing = 0  # requests of the slow start whose head is awaited
        self._probed_at_s = 0.0  # the last of them
        self._unheard = 0  # of them, since anything was heard of the lane
        self._credit = 0.0  # of the share that is let through
        self._ramp_from_s = self._until_s = 0.0
        self._closed_at_s = -FORGETS_S
        self._streak = 0  # openings since it was last well for long
        self.failures = self.opened = self.skipped = 0

    def state(self, now_s: float) -> BreakerState:
        """What is shown of it."""
        self._look(now_s)
        open_for_s = math.ceil(max(0.0, self._until_s - now_s) * 10) / 10 if self._state == "open" else 0.0
        return BreakerState(self.lane, self.model, self._state, open_for_s, self.opened, self.skipped, self.failures)

    def is_closed(self) -> bool:
        """Whether all is as usual; a lane that is not gets no retries."""
        return self._state == "closed"

    def is_idle(self, now_s: float) -> bool:
        """Whether there is nothing to tell of it: closed and nothing went wrong lately, or not asked for in long."""
        if self._state != "closed":
            return now_s - self._entered_at_s > FORGETS_S
        return not self._weight or not self._ends or now_s - self._ends[-1][0] > WINDOW_S

    @property
    def entered_at_s(self) -> float:
        """When somebody asked for leave last."""
        return self._entered_at_s

    def enter(self, now_s: float) -> Pass:
        """Leave to ask the lane, or REFUSED. Whoever has leave says how it ended, by `ended`."""
        self._entered_at_s = now_s
        if self._state == "closed":
            return self._epoch
        self._look(now_s)
        if self._state == "open":
            return REFUSED
        if (self._probing or self._unheard > 1) and now_s - self._probed_at_s < self._distance_s():
            if self._well < PROBES:
                return REFUSED
            self._credit += min(1.0, max(0.1, (now_s - self._ramp_from_s) / RAMP_S))
            if self._credit < 1.0:
                return REFUSED
            self._credit -= 1.0
        self._probing += 1
        self._unheard += 1
        self._probed_at_s = now_s
        return self._epoch

    def force(self) -> Pass:
        """Leave to ask the lane although it was refused: there is no other. Counts for what it shows, see above."""
        if self._state == "half":
            self._probing += 1
        return self._epoch

    def went_well(self, leave: Pass) -> bool:
        """The short way to say that a request went well; False where `ended` has to be told."""
        if leave != self._epoch or self._weight or self._state != "closed":
            return False
        if self._run < WINDOW:
            self._run += 1
        self._run_at_s = self._entered_at_s
        return True

    def ended(self, leave: Pass, weight: float | None, now_s: float) -> None:
        """How a request ended, as far as its head: `weight` 0 when the lane answered, None when that is not known."""
        if leave != self._epoch:
            return  # of a state that is over
        if self._state == "half":
            self._probing -= 1
        if weight is not None:
            self._note(weight, now_s)

    def failed_late(self, leave: Pass, weight: float, now_s: float) -> None:
        """A request whose head was well failed after it: it counts as a failure and no longer as an answer."""
        if leave != self._epoch:
            return
        if self._state == "closed" and self._run:
            self._run -= 1
        elif self._state == "closed":
            for position in range(len(self._ends) - 1, -1, -1):
                if not self._ends[position][1]:
                    del self._ends[position]
                    break
        elif self._state == "half":
            self._well = max(0, self._well - 1)
        self._note(weight, now_s)

    def _distance_s(self) -> float:
        """Seconds from the last probe to the next one, while its answer is awaited or the last ones had none."""
        return min(MOST_OPEN_S, PROBE_EVERY_S * 2.0 ** min(max(self._unheard - 1, 0), 10))

    def _look(self, now_s: float) -> None:
        if self._state == "open" and now_s >= self._until_s:
            self._go("half")

    def _note(self, weight: float, now_s: float) -> None:
        if weight:
            self.failures += 1
        if weight < WEIGHTS["timeout"]:
            self._unheard = 0  # the lane, or the network, said something
        if self._state == "closed":
            self._note_closed(weight, now_s)
            return
        if self._state == "open":
            if weight:
                return  # a forced request: it neither lengthens the wait nor shortens it
            self._go("half")
        self._note_half(weight, now_s)

    def _note_closed(self, weight: float, now_s: float) -> None:
        ends = self._ends
        if self._run:
            ends.extend([(self._run_at_s, 0.0)] * self._run)
            self._run = 0
        ends.append((now_s, weight))
        self._weight += weight
        while len(ends) > WINDOW or now_s - ends[0][0] > WINDOW_S:
            self._weight -= ends.popleft()[1]
        if not weight or self._weight < OPENS_AT or len(ends) < LEAST:
            return
        if self._weight >= sum(1 for _, each in ends if not each):
            if now_s - self._closed_at_s > FORGETS_S:
                self._streak = 0
            self._open(now_s)

    def _note_half(self, weight: float, now_s: float) -> None:
        if weight:
            self._failed += 1
            if self._well < PROBES or self._failed * 4 >= self._failed + self._well:
                self._open(now_s)
            return
        self._well += 1
        if self._well == PROBES:
            self._ramp_from_s = now_s
        if self._well >= LEAST_WELL and now_s - self._ramp_from_s >= RAMP_S:
            self._closed_at_s = now_s
            self._go("closed")

    def _open(self, now_s: float) -> None:
        self.opened += 1
        most_s = min(MOST_OPEN_S, OPEN_S * 2.0 ** min(self._streak, 10))
        self._streak += 1
        self._until_s = now_s + most_s * (0.75 + self._jitter() / 4)
        self._go("open")

    def _go(self, state: str) -> None:
        left, self._state = self._state, state
        self._epoch += 1
        self._failed = self._well = self._probing = 0
        self._weight = self._credit = 0.0
        self._run = 0
        self._ends.clear()
        if self._observe is not None:
            self._observe(self.lane, self.model, left, state)


class Breakers:
    """The breakers of all lanes of this process; `clock`, `jitter` and `observe` are those of `Breaker`."""

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float], observe: Observe | None = None) -> None:
        self.now_s = clock
        self._jitter = jitter
        self._observe = observe
        self._lanes: dict[tuple[str, str], Breaker] = {}
        self._asked: dict[tuple[str, str], Breaker] = {}

    def of(self, lane: Lane, model: str) -> Breaker:
        """The breaker of a lane; of `as-asked`, of each model asked for.

        A name that is new takes the place of the one that was asked for longest ago, of those with nothing to tell
        where there are such: a client that invents names can neither fill the memory nor blind the router to lanes that
        are ill and in use, and an outage of many models leaves no new one without a breaker.
        """
        breakers, most = (self._asked, MOST_ASKED) if lane.model is None else (self._lanes, MOST_LANES)
        named = (lane.name, model)
        found = breakers.get(named)
        if found is not None:
            return found
        if len(breakers) >= most:
            now_s = self.now_s()
            idle = [name for name, breaker in breakers.items() if breaker.is_idle(now_s)]
            del breakers[min(idle or breakers, key=lambda name: breakers[name].entered_at_s)]
        breakers[named] = made = Breaker(lane.name, model, self._jitter, self._observe)
        return made

    def states(self) -> list[BreakerState]:
        """All that are watched, by lane and model."""
        now_s = self.now_s()
        return [breaker.state(now_s) for _, breaker in sorted([*self._lanes.items(), *self._asked.items()])]
