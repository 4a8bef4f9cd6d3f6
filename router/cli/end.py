"""The end of a serving process: at once when all is written, and by force when the stop itself does not end."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import NoReturn

# For a stop beyond the time of its requests: last words to clients, writing traces, a folder that does not answer. A
# supervisor waits a second longer before it kills.
BEYOND_S = 13.0
_WORDS_S = 1.0  # for the log, which may be what hangs

_log = logging.getLogger("router")


def leave(status: int) -> NoReturn:
    """End the process. All is written and told; a thread that still waits for something must not hold the end up.

    It is called before the event loop is closed, because closing joins the threads of the loop.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class LastResort:
    """Ends the process with status 1 when its time is up, from a thread of its own. Without `within` it does nothing.

    What is not in the trace store by then is in its journal, from which the next process books it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ends_at_s = float("inf")
        self._limit_s = float("inf")
        self._thread: threading.Thread | None = None

    def within(self, limit_s: float) -> None:
        """From now on the process has `limit_s` seconds; a later call counts instead of an earlier one."""
        with self._changed:
            self._limit_s = limit_s
            self._ends_at_s = time.monotonic() + limit_s
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._wait, name="last resort", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # no threads left: the stop must do without
                _log.warning("stopping: nobody watches whether it ends: %s", error)

    def _wait(self) -> None:
        with self._changed:
            while (left_s := self._ends_at_s - time.monotonic()) > 0:
                self._changed.wait(min(left_s, threading.TIMEOUT_MAX))
        with suppress(RuntimeError):  # no threads left: without a word then
            words = threading.Thread(target=self._say, daemon=True)
            words.start()
            words.join(_WORDS_S)
        os._exit(1)

    def _say(self) -> None:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        places = [f"{place.filename}:{place.lineno} in {place.name}" for place in traceback.extract_stack(frame)]
        _log.error(
            "the stop did not end within %g s and is given up; it was at: %s",
            self._limit_s,
            " < ".join(places[:-9:-1]) or "unknown",
        )
