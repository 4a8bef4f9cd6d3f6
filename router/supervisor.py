"""Keeps several serving processes running behind one listening socket.

The supervisor binds the socket and serves nothing on it: every worker inherits it and takes connections from the one
queue, so that a worker that stops, dies or hangs leaves whoever waits to the others. Workers are fresh programs, not
forks. One that ends is replaced, with growing pauses when that happens again and again; one whose event loop stands
still is asked where it is, killed and replaced. What was stopped or starved as a whole is not held against a worker.

Replacing does not hang on the end of a worker being noticed: every tick counts those that serve or will, and begins
what is missing. So a start that failed, for whatever reason, is followed by another. In a rolling restart a worker and
its successor count as one until the successor is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from router.control import Line, hand_over
from router.settings import Settings, drain_delay_s, drain_timeout_s, worker_timeout_s
from router.worker_process import Worker, is_stopped, places_in, spawn, waited_s, worker_program

_log = logging.getLogger("router")

START_S = 60.0  # a worker that is not ready by then is killed
ROLL_DRAIN_S = 3_600.0  # a worker that was replaced on request may finish what it has
_TICK_S = 0.25
_LATE_S = 1.0  # a tick that comes later than this: we did not run either
_LAST_S = 14.0  # after the drain limit: last words, writing traces, and some more
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_MOST_DOUBLINGS = 6  # are more than the longest pause
_CALM_S = 60.0  # without an unwanted end: then the next one is the first again
_ASK_S = 0.3  # for a stuck worker to say where it is
_GONE_S = 2.0  # for a killed one to be gone; one that waits for a disk that does not answer may never be


class StartFailed(Exception):
    """The first worker ended before it was ready, with this status; it has said why."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Supervisor:
    """The workers of one `router serve`. `listener` is the bound socket of the API, which is closed with the drain.

    `program` is the command that a worker is, to which three descriptors are added (see `cli/worker.py`).
    """

    def __init__(self, settings: Settings, listener: socket.socket, program: Sequence[str] | None = None) -> None:
        self._program = worker_program() if program is None else program
        self._settings = settings
        self._listener = listener
        self._timeout_s = worker_timeout_s(settings)
        self._workers: dict[int, Worker] = {}
        self._pending: list[Worker | None] = []  # begun and no process yet; who each is to follow in a rolling restart
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._hurries = 0
        self._unwanted = 0  # ends in a row that nobody asked for
        self._last_unwanted_s = 0.0
        self._is_rolling = self._is_roll_asked = False
        self._is_up = self._was_killed = False
        self._first_status = 1
        self.counts = dict.fromkeys(("started", "crashed", "hung", "rolled", "failed_starts"), 0)

    @property
    def is_draining(self) -> bool:
        """Whether the end has begun."""
        return self._stopping.is_set()

    def workers(self) -> Sequence[Worker]:
        """The processes that there are, those that can serve first."""
        order = {"ready": 0, "draining": 1, "starting": 2}
        return sorted(self._workers.values(), key=lambda worker: (order[worker.state], worker.number))

    async def run(self, said: Callable[[], None]) -> int:
        """Keep workers running until `drain`; `said` is called when the first is ready. Returns the exit status.

        Raises StartFailed when that one cannot start.
        """
        self._pending.append(None)
        first = await self._start(None)
        if first is None and not self.is_draining:
            raise StartFailed(max(1, self._first_status))
        if first is not None:
            said()
        self._is_up = True
        while self._running() < self._settings.workers and not self.is_draining:
            self._begin(0.0)
        self._do(self._watch())
        await self._stopping.wait()
        await self._end()
        for task in self._tasks:
            task.cancel()
        return int(self._was_killed)

    def drain(self) -> None:
        """Stop: no newcomers, what is under way is finished. Once more: now. A third time: without a word."""
        self._hurries += 1
        if self._hurries == 1:
            _log.info("stopping %d workers", len(self._workers))
            self._listener.close()  # or newcomers would wait in its queue for nobody
            self._stopping.set()
            self._tell(f"drain {drain_timeout_s(self._settings)}")
        elif self._hurries == 2:
            self._tell("hurry")
        else:
            for worker in self._workers.values():
                self._kill(worker)

    def reload(self) -> None:
        """Have every worker read the policies."""
        self._tell("reload")

    def roll(self) -> None:
        """Replace the workers one after another, each once its successor is ready."""
        if self._is_rolling:
            self._is_roll_asked = True  # whoever asks wants what is on disk now: once more, when this one is done
        elif not self.is_draining:
            self._is_rolling = True
            self._do(self._roll())

    def say_status(self) -> None:
        """One line in the log about every worker."""
        now = time.monotonic()
        shown = (
            f"{worker.number}: pid {worker.process.pid} {worker.state} for {now - worker.started_s:.0f} s"
            for worker in self.workers()
        )
        _log.warning("workers: %s", "; ".join(shown))

    # Starting

    def _fill(self) -> None:
        """Begin what is missing. Called by everything that may leave a gap, and by every tick."""
        while self._is_up and not self.is_draining and self._running() < self._settings.workers:
            pause_s = self._pause_s()
            _log.error("a worker is missing; the next starts in %g s", pause_s)
            self._begin(pause_s)

    def _begin(self, pause_s: float) -> None:
        self._pending.append(None)
        self._do(self._start_after(pause_s))

    async def _start_after(self, pause_s: float) -> None:
        if pause_s:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
        if self.is_draining:
            self._pending.remove(None)
        else:
            await self._start(None)

    async def _start(self, old: Worker | None) -> Worker | None:
        """A new worker in the place of `old`, once it is ready; None where it did not come to that.

        The caller has put `old` into `_pending`.
        """
        try:
            worker, end = await spawn(self._program, self._listener)
        except (OSError, RuntimeError) as error:  # no descriptors, memory, threads or processes left; no program
            self.counts["failed_starts"] += 1
            _log.error("a worker could not be started: %s", error)
            return None
        finally:
            self._pending.remove(old)
        worker.number = next(n for n in range(1, len(self._workers) + 2) if n not in self._workers)
        worker.follows = old
        self._workers[worker.number] = worker
        self.counts["started"] += 1
        with contextlib.suppress(OSError):  # it is gone: its end is noticed below
            hand_over(self._settings, end)
        worker.line = Line(end, lambda word, _: self._heard(worker, word), lambda: None)
        self._do(self._follow(worker))
        if self.is_draining:
            worker.line.say(f"drain {drain_timeout_s(self._settings)}")
        try:
            await asyncio.wait_for(worker.told.wait(), START_S)
        except TimeoutError:
            _log.error("worker %d was not ready after %g s", worker.number, START_S)
            worker.is_stuck, worker.follows = True, None  # it does not count, even where it survives the kill
            self._kill(worker)
            return None
        return worker if worker.state == "ready" else None

    def _running(self) -> int:
        """Workers that serve or will, one each place: those that were told to end or are stuck are none."""
        followed = {*self._pending, *(worker.follows for worker in self._workers.values())}
        return len(self._pending) + sum(
            worker.state != "draining" and not worker.is_stuck and worker not in followed
            for worker in self._workers.values()
        )

    def _heard(self, worker: Worker, word: str) -> None:
        worker.beat_s = time.monotonic()
        worker.waited_s = waited_s(worker.process.pid)
        if word == "ready" and worker.state == "starting":
            worker.state = "ready"
            worker.told.set()

    async def _follow(self, worker: Worker) -> None:
        """Wait for the end of a worker, and see to its replacement where nobody asked for it."""
        status = await worker.process.wait()
        state, worker.state = worker.state, "draining"
        del self._workers[worker.number]
        if worker.line is not None:
            worker.line.close()
        if worker.record is not None:
            os.close(worker.record)
        worker.told.set()
        if self.is_draining or state == "draining":
            return
        if state == "starting":
            self.counts["failed_starts"] += 1
            if not self._is_up:
                self._first_status = status  # `run` gives up
                return
        elif not worker.is_stuck:
            self.counts["crashed"] += 1
        how = "was told to end" if status == 0 else f"ended with status {status}"
        _log.error("worker %d (pid %d) %s", worker.number, worker.process.pid, how)
        self._fill()

    def _pause_s(self) -> float:
        now = time.monotonic()
        self._unwanted = 1 if now - self._last_unwanted_s > _CALM_S else self._unwanted + 1
        self._last_unwanted_s = now
        if self._unwanted == 1:
            return 0.0
        return min(_FIRST_PAUSE_S * 2.0 ** min(self._unwanted - 2, _MOST_DOUBLINGS), _LONGEST_PAUSE_S)

    # Watching

    async def _watch(self) -> None:
        """Look whether every worker's loop turns, and whether one is missing."""
        looked_s = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            if now - looked_s > _TICK_S + _LATE_S:  # stopped or starved along with the workers: they get their time
                for worker in self._workers.values():
                    worker.beat_s += now - looked_s
            looked_s = now
            try:
                self._look(now)
            except Exception:  # or nobody would look any more
                _log.exception("the supervisor failed to look after its workers, which is a bug of the router")

    def _look(self, now: float) -> None:
        for worker in list(self._workers.values()):
            if worker.state != "starting" and not worker.is_stuck and self._is_silent(worker, now):
                worker.is_stuck = True
                self._do(self._end_stuck(worker))
        self._fill()

    def _is_silent(self, worker: Worker, now: float) -> bool:
        silent_s = now - worker.beat_s
        if silent_s <= self._timeout_s:
            return False
        starved_s = waited_s(worker.process.pid) - worker.waited_s
        return silent_s - max(0.0, starved_s) > self._timeout_s and not is_stopped(worker.process.pid)

    async def _end_stuck(self, worker: Worker) -> None:
        self.counts["hung"] += 1
        if worker.record is not None:
            with contextlib.suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGUSR1)
            await asyncio.sleep(_ASK_S)
        where = "" if worker.record is None else places_in(worker.record)
        _log.error(
            "worker %d (pid %d) stood still for over %g s and is killed; it was at: %s",
            *(worker.number, worker.process.pid, self._timeout_s, where or "unknown"),
        )
        self._kill(worker)

    # Ending

    async def _roll(self) -> None:
        try:
            for old in [worker for worker in self.workers() if worker.state == "ready"]:
                if self.is_draining or old.state != "ready":
                    continue
                self._pending.append(old)
                new = await self._start(old)
                if new is None:
                    _log.error("rolling restart: given up, the new worker did not start; the old ones go on")
                    return
                self.counts["rolled"] += 1
                if old.state == "ready" and old.line is not None:
                    old.state = "draining"
                    old.line.say(f"drain {ROLL_DRAIN_S}")
                new.follows = None
                while len(self._workers) > 3 * self._settings.workers and not self.is_draining:  # noqa: ASYNC110
                    await asyncio.sleep(_TICK_S)  # too many are still finishing
            _log.info("rolling restart: done")
        finally:
            self._is_rolling = False
            if self._is_roll_asked:
                self._is_roll_asked = False
                self.roll()

    async def _end(self) -> None:
        """Wait for all workers, and no longer than they were given."""
        limit_s = drain_delay_s(self._settings) + drain_timeout_s(self._settings) + _LAST_S
        ends_s = time.monotonic() + limit_s
        is_killed = False
        while self._workers or self._pending:
            if time.monotonic() > ends_s:
                if is_killed:
                    _log.error("%d workers are left behind: they were killed and are not gone", len(self._workers))
                    return
                for worker in self._workers.values():
                    _log.error("worker %d did not end in time and is killed", worker.number)
                    self._kill(worker)
                is_killed = True
                ends_s += _GONE_S
            await asyncio.sleep(0.02)

    def _tell(self, word: str) -> None:
        for worker in self._workers.values():
            if worker.line is not None:
                worker.line.say(word)

    def _kill(self, worker: Worker) -> None:
        self._was_killed = self._was_killed or (self.is_draining and not worker.is_stuck)
        with contextlib.suppress(ProcessLookupError):
            worker.process.kill()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the supervisor failed, which is a bug of the router", exc_info=error)


def worker_figures(supervisor: Supervisor) -> Mapping[str, Mapping[str, int]]:
    """The supervisor's own metrics: `workers` by state, and what became of workers, by name."""
    states = dict.fromkeys(("starting", "ready", "draining"), 0)
    for worker in supervisor.workers():
        states[worker.state] += 1
    return {"workers": states, "worker_events": dict(supervisor.counts)}
