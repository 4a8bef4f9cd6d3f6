"""Threads that read the trace store: in the reading process, or in the router where there is none.

Each lane has its threads, so that a live tail does not stand behind a report. There is no event loop
here: to import one is a third of what it takes to start the process.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from router.errors import TraceStoreError
from router.trace.answers import answer
from router.trace.asking import LANES, Answer, Question
from router.trace.question import Stop, crowded_out

_THREADS = 4  # of each lane; a thread is made when it is first needed


class Readers:
    """The threads. `submit` may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lanes = {lane: ThreadPoolExecutor(_THREADS, f"router-read-{lane}") for lane in LANES}

    def submit(self, question: Question, stop: Stop) -> Future[Answer]:
        """The answer to come. Its `wall_s` begin now, waiting for a thread included; `stop` may end it before.

        Raises TraceStoreError when there is no thread to be had.
        """
        deadline = time.monotonic() + question.wall_s

        def is_over() -> TraceStoreError | None:
            return crowded_out(question.wall_s) if time.monotonic() > deadline else stop()

        pool = self._lanes.get(question.lane, self._lanes["long"])
        try:
            return pool.submit(answer, self._path, question, is_over)
        except RuntimeError as error:
            raise TraceStoreError(
                f"no thread can be started to read the trace store: {error}",
                hint="look at the limits of processes and memory",
                retryable=True,
            ) from error

    def close(self) -> None:
        """What waits for a thread is cancelled; what runs goes on to its limit."""
        for pool in self._lanes.values():
            pool.shutdown(wait=False, cancel_futures=True)
