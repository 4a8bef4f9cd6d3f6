"""The last minutes in memory, minute by minute: what a status screen asks, whether a trace store is there or not.

The request path pays for one append; every `_BATCH` traces, and whenever somebody asks, the waiting ones are added up.
Times are counted in steps of a tenth, so that a quantile is right to five per cent.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from router.trace.money import MESSAGES, Money
from router.trace.record import BATCH_ITEM, Trace

MINUTES = 5  # what is shown: the minute under way and those before it
_BATCH = 64
_QUEUE_MAX = 10_000
_MINUTE_NS = 60 * 10**9
_STEP = math.log(1.1)
_LANES_MAX = 200  # lanes are named by the operator; this bounds what a changing policy folder may add up to


class _Minute:
    """The sums of one minute."""

    __slots__ = ("attempts", "cache", "errors", "money", "overhead", "requests", "ttft")

    def __init__(self) -> None:
        self.requests = 0
        self.errors: Counter[str] = Counter()  # by outcome
        self.cache: Counter[str] = Counter()
        self.attempts: Counter[tuple[str, str]] = Counter()  # by lane and outcome
        self.overhead: Counter[int] = Counter()  # by step of time
        self.ttft: Counter[int] = Counter()
        self.money = Money()


class RecentTraces:
    """A `seams.TraceSink` that remembers the last `MINUTES`; `now_ns` is Unix time."""

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        self._started_ns = now_ns()
        self._queue: deque[tuple[int, Trace]] = deque()
        self._lock = threading.Lock()
        self._minutes: dict[int, _Minute] = {}

    def write(self, trace: Trace) -> None:
        """Take a finished trace: an append, and for every 64th trace a few microseconds for each that waits."""
        queue = self._queue
        if len(queue) < _QUEUE_MAX:
            queue.append((self._now_ns() // _MINUTE_NS, trace))
        if len(queue) >= _BATCH and self._lock.acquire(blocking=False):
            try:
                self._add_all()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Nothing is held open."""

    def figures(self) -> dict[str, Any]:
        """What ended in the last minutes: counts, quantiles in seconds, the ends of attempts by lane.

        `over_s` is how many seconds that covers: less than `MINUTES` right after a start. An error is an outcome other
        than `ok`, but for a client that left and a request that was refused for what it was. Items of batches are in no
        figure but that of unknown costs.
        """
        now_ns = self._now_ns()
        with self._lock:
            self._add_all()
            newest = now_ns // _MINUTE_NS
            shown = [minute for number, minute in self._minutes.items() if newest - MINUTES < number <= newest]
            begin_ns = max(self._started_ns, (newest - MINUTES + 1) * _MINUTE_NS)
            return _figures(shown, max(1.0, (now_ns - begin_ns) / 1e9))

    def _add_all(self) -> None:
        queue = self._queue
        for _ in range(len(queue)):
            number, trace = queue.popleft()
            minute = self._minutes.get(number)
            if minute is None:
                minute = self._minutes[number] = _Minute()
                for old in [each for each in self._minutes if each <= number - MINUTES]:
                    del self._minutes[old]
            try:
                _add(minute, trace)
            except Exception:  # a sink: an odd record costs its own counts and nothing else  # noqa: S112
                continue


def _add(minute: _Minute, trace: Trace) -> None:
    minute.money.add(trace)
    if trace.endpoint == BATCH_ITEM:
        return  # no request of these minutes: thousands that went well long ago would hide that nothing goes well now
    minute.requests += 1
    if trace.outcome != "ok":
        minute.errors[trace.outcome] += 1
    if trace.endpoint == MESSAGES:
        minute.cache[trace.cache] += 1
        minute.overhead[_step(trace.overhead_s)] += 1
    if trace.ttft_s is not None:
        minute.ttft[_step(trace.ttft_s)] += 1
    for attempt in trace.attempts:
        named = (attempt.lane, attempt.outcome)
        if named in minute.attempts or len(minute.attempts) < _LANES_MAX:
            minute.attempts[named] += 1


def _step(seconds: float) -> int:
    return math.ceil(math.log(max(seconds, 1e-6)) / _STEP)


def _quantile(steps: Counter[int], share: float) -> float | None:
    """The nearest-rank quantile, in seconds: the middle of its step; None where nothing was measured."""
    rank, seen = share * steps.total(), 0
    for step in sorted(steps):
        seen += steps[step]
        if seen >= rank:
            return round(math.exp((step - 0.5) * _STEP), 7)
    return None


def _sum(counters: Iterable[Counter[Any]]) -> Counter[Any]:
    total: Counter[Any] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def _figures(minutes: list[_Minute], over_s: float) -> dict[str, Any]:
    requests = sum(minute.requests for minute in minutes)
    outcomes, cache = _sum(m.errors for m in minutes), _sum(m.cache for m in minutes)
    overhead, ttft = _sum(m.overhead for m in minutes), _sum(m.ttft for m in minutes)
    errors = sum(count for outcome, count in outcomes.items() if outcome not in ("client_closed", "client_error"))
    lanes: dict[str, dict[str, int]] = {}
    for (lane, outcome), count in sorted(_sum(m.attempts for m in minutes).items()):
        lanes.setdefault(lane, {})[outcome] = count
    looked_up = cache["hit"] + cache["coalesced"] + cache["miss"]
    return {
        "over_s": round(over_s, 1),
        "requests": requests,
        "requests_per_min": round(requests * 60 / over_s, 1),
        "errors": errors,
        "not_ok": dict(outcomes),
        "overhead_p50_s": _quantile(overhead, 0.5),
        "overhead_p95_s": _quantile(overhead, 0.95),
        "ttft_p50_s": _quantile(ttft, 0.5),
        "ttft_p95_s": _quantile(ttft, 0.95),
        "cache_hits": cache["hit"] + cache["coalesced"],
        "cache_looked_up": looked_up,
        "cache_hit_share": round((cache["hit"] + cache["coalesced"]) / looked_up, 4) if looked_up else None,
        "unknown_cost": sum(minute.money.unknown for minute in minutes),
        "lanes": lanes,
    }
