"""Watches what the process suffers from, and tells the admission: how late the event loop is, how short memory is.

A timer looks at the loop fifty times a second; it costs a few microseconds each time. Memory is looked at once a
second, in a thread, because the files of the kernel may be slow just when memory is short.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import inf

from router.cgroup import Pressure, find_memory
from router.log import FailureLog, on_loop_error
from router.serve.admission import Admission, Bounds
from router.serve.brake import WINDOW_S, Brake
from router.settings import Settings
from router.web.shed import Shedding

LARGE_AT, ALL_AT = 0.85, 0.92  # of the memory limit: from where large bodies, and all requests, are turned away
_HYSTERESIS = 0.03
_SHORT_LOOKS = 5  # with hardly a request let in: from then on others had better be asked
_TICK_S = WINDOW_S / 5
_SECOND = round(1 / WINDOW_S)  # in windows

_log = logging.getLogger("router")


class Overload:
    """The watch of one process, with what it tells: `admission`, `shedding`, `failures`.

    `memory` says how near the limit of memory is, None where there is none. `clock` gives seconds, and is the one that
    admission is asked with; `cpu_s` are the seconds of CPU that the process has used.
    """

    def __init__(
        self,
        admission: Admission,
        shedding: Shedding,
        failures: FailureLog,
        memory: Callable[[], Pressure | None] | None,
        clock: Callable[[], float],
        cpu_s: Callable[[], float],
    ) -> None:
        self.admission = admission
        self.shedding = shedding
        self.failures = failures
        self._memory = memory
        self._clock = clock
        self._cpu_s = cpu_s
        self._lags: list[float] = []
        self._window_began_s = self._cpu_began_s = self._due_s = 0.0
        self._windows = 0
        self._memory_every = _SECOND
        self._memory_share = 0.0
        self._memory_state = 0  # 0 well, 1 large bodies are refused, 2 nearly all requests are
        self._short_looks = 0  # in a row, in state 2
        self._looker = ThreadPoolExecutor(1, "router-memory")  # the loop's own threads may all be at large bodies
        self._looking: asyncio.Future[Pressure | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._turned_away = 0  # when the brake went on
        self._served_per_s = 0.0
        self._entered = 0

    def start(self) -> None:
        """Begin to look, on the running loop."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(on_loop_error)
        self._window_began_s, self._cpu_began_s = self._clock(), self._cpu_s()
        self._due_s = self._window_began_s + _TICK_S
        self._timer = loop.call_later(_TICK_S, self._tick)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._looking is not None:
            self._looking.cancel()
        self._looker.shutdown(wait=False)
        self.shedding.let_go()
        self.failures.close()

    @property
    def is_starved(self) -> bool:
        """Whether memory has been so short for some seconds that hardly a request is let in."""
        return self._short_looks >= _SHORT_LOOKS

    def figures(self) -> Mapping[str, int]:
        """For the metrics."""
        brake = self.admission.brake
        return {
            **self.admission.figures(),
            **self.shedding.figures(),
            "turned_away": sum(self.admission.turned_away.values()),
            "brakings": brake.times,
            "loop_lag_us": round(brake.lag_s * 1e6),
            "memory_percent": round(self._memory_share * 100),
        }

    def _tick(self) -> None:
        now_s = self._clock()
        self._lags.append(max(0.0, now_s - self._due_s))
        seconds, self._due_s = now_s - self._due_s + _TICK_S, now_s + _TICK_S
        self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._tick)
        if now_s - self._window_began_s >= WINDOW_S:  # not a number of samples: those of a late loop come slowly
            self._look(now_s)
        self.shedding.release(seconds, self._served_per_s)

    def _look(self, now_s: float) -> None:
        seconds, cpu_s = max(now_s - self._window_began_s, 1e-3), self._cpu_s()
        busy = (cpu_s - self._cpu_began_s) / seconds
        lag_s = sorted(self._lags)[len(self._lags) // 2]
        self._lags.clear()
        self._window_began_s, self._cpu_began_s = now_s, cpu_s
        entered = self.admission.entered
        self._served_per_s += 0.3 * ((entered - self._entered) / seconds - self._served_per_s)
        self._entered = entered
        if self.admission.look(lag_s, busy, seconds, now_s):
            self._say_brake()
        self._windows += 1
        if self._windows % self._memory_every == 0:
            self.failures.tick()
            if self._memory is not None and self._looking is None:
                looking = asyncio.get_running_loop().run_in_executor(self._looker, self._memory)
                looking.add_done_callback(self._weigh)
                self._looking = looking

    def _weigh(self, looked: asyncio.Future[Pressure | None]) -> None:
        self._looking = None
        if looked.cancelled() or looked.exception() is not None:
            return
        pressure = looked.result() or Pressure(0.0, 0.0)
        self._memory_share = share = pressure.share
        before = self._memory_state
        # Back only a little below the line, or each request that ends and each that comes would be a change of state.
        # Memory that others use is no reason to refuse all: it would not come back for that.
        state = 2 if pressure.own >= ALL_AT - _HYSTERESIS * (before == 2) else 0
        state = state or int(share >= LARGE_AT - _HYSTERESIS * (before >= 1))
        self._short_looks = self._short_looks + 1 if state == 2 else 0
        if state == before:
            return
        self._memory_state = state
        self.admission.relieve((None, self.admission.bounds.large_body, -1)[state])
        percent = round(share * 100)
        if state == 0:
            _log.info("memory: %d%% of the limit, requests are taken again", percent, extra={"event": "memory_ended"})
        else:
            what = "nearly all new requests are" if state == 2 else "large requests are"
            extra = {"event": "memory_begun"}
            _log.warning("memory: %d%% of the limit, %s turned away", percent, what, extra=extra)

    def _say_brake(self) -> None:
        brake, turned_away = self.admission.brake, sum(self.admission.turned_away.values())
        if brake.is_on:
            self._turned_away = turned_away
            _log.warning(
                "overload: the event loop is %d ms late; who uses most is turned away",
                round(brake.lag_s * 1000),
                extra={"event": "overload_begun"},
            )
        else:
            count = turned_away - self._turned_away
            _log.info("overload: over, %d requests were turned away", count, extra={"event": "overload_ended"})


def open_overload(settings: Settings) -> Overload:
    """The watch that the settings ask for; it looks once it is started."""
    memory = find_memory(processes=settings.workers)
    brake = Brake(settings.max_lag_ms / 1000 or inf)
    bounds = Bounds(
        max_working=settings.max_concurrent,
        max_body_bytes=settings.max_body_mb * 1_000_000,
        max_of_tenant=settings.max_concurrent_per_tenant,
    )
    is_continued = settings.trace_context == "continue"
    shedding = Shedding(random.random, time.time_ns, lambda: brake.is_on, is_trace_continued=is_continued)
    return Overload(
        Admission(bounds, brake),
        shedding,
        FailureLog(time.monotonic),
        None if memory is None else memory.look,
        time.perf_counter,
        time.process_time,
    )
