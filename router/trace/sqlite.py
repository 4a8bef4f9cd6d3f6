"""The trace store's writing half: finished traces go through a bounded queue to one thread and one SQLite file.

The request path pays for one append to a deque. Everything else happens in the writer thread: encoding, batching,
waiting for a lock, making room for a broken file. It fails open: nothing here may slow or fail a request, so what the
file does not take stays in the queue until the queue is full, then it is dropped, counted and said once in the log.
When the queue is half full the explaining columns are left out first (`thinned`); the money is the last to go.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from router.errors import SettingsError
from router.trace.reader import SqliteTraceReader
from router.trace.record import Trace
from router.trace.rows import Cell, row_of
from router.trace.store_file import LOCK_WAIT_S, StoreFile
from router.trace.upkeep import KEEP_ALL, Retention, Upkeep

__all__ = ["SqliteTraceReader", "SqliteTraceSink", "open_sink", "path_of"]

CLOSE_S = 5.0  # the longest that `close` may take (F79)
_UPKEEP_PAUSE_S = 0.02  # between two slices, so that readers and inserts of other processes get their turn
_UPKEEP_SHARE = 2.0  # times what the slice took, if that is longer: a third of a core is enough for what can wait

_log = logging.getLogger(__name__)


def path_of(url: str) -> Path | None:
    """The file that a `traces` setting names: `sqlite:///router.db` (here), `sqlite:////var/router.db`; None for `off`.

    Raises SettingsError for anything else.
    """
    if url == "off":
        return None
    prefix = "sqlite:///"
    name = url[len(prefix) :] if url.startswith(prefix) else ""
    if not name or name.endswith("/") or any(mark in name for mark in "?#\0"):
        raise SettingsError(
            f"`traces` is `{url}`, expected `sqlite:///FILE` or `off`",
            hint="`sqlite:///router.db` is in the working directory, `sqlite:////var/router.db` is an absolute path",
        )
    return Path(name)


def open_sink(url: str, retention: Retention = KEEP_ALL) -> SqliteTraceSink | None:
    """The sink of a `traces` setting; None for `off`. Raises SettingsError for an unknown form of URL."""
    path = path_of(url)
    return None if path is None else SqliteTraceSink(path, retention=retention)


class SqliteTraceSink:
    """A `seams.TraceSink` over one SQLite file in WAL mode, which it creates where it is missing.

    `queue_max` bounds the traces waiting in memory, `batch` the rows per transaction, `flush_interval_s` how long a
    trace may wait while the file is healthy, `close_s` how long `close` may take. `retention` says what is deleted.
    `now_ns` is Unix time, used to name what is set aside and to tell what is old. The file is opened by the writer
    thread, so a sink can always be made; what is wrong with the file shows in `stats()` and in the log.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        queue_max: int = 50_000,
        batch: int = 200,
        flush_interval_s: float = 0.1,
        close_s: float = CLOSE_S,
        retention: Retention = KEEP_ALL,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._queue_max = queue_max
        self._batch_max = batch
        self._interval_s = flush_interval_s
        self._close_s = close_s
        self._queue: deque[Trace | threading.Event] = deque()
        self._pending: list[tuple[Cell, ...]] = []  # rows that are not yet in the file; the writer's own
        self._in_hand = 0  # 1 while a trace is neither in the queue nor a row yet
        self._upkeep = Upkeep(retention, now_ns)
        self._file = StoreFile(Path(path), opened=self._upkeep.opened, count=self._add, now_ns=now_ns)
        self._wake = threading.Event()
        self._is_closed = False
        self._close_by = 0.0
        self._is_given_up = False  # `close` waits no longer: no new step is begun
        self._is_left = False  # `close` has counted what was left as dropped
        self._count_lock = threading.Lock()
        self._counts = dict.fromkeys(
            ("stored", "repeated", "dropped", "thinned", "failed", "set_aside", "write_errors", "pruned"), 0
        )
        self._thread = threading.Thread(target=self._run, name="router-traces", daemon=True)
        self._thread.start()

    def write(self, trace: Trace) -> None:
        """Hand over a finished trace: one append. Over `queue_max`, or once closed, it is dropped and counted."""
        queue = self._queue
        if self._is_closed or len(queue) >= self._queue_max:
            self._add("dropped", 1)
        else:
            queue.append(trace)

    def has_room(self) -> bool:
        """Whether whoever brings many traces may go on: no more than a quarter of the queue waits.

        Half of it would be too late: from there on, requests are stored without their explanation.
        """
        return len(self._queue) <= self._queue_max // 4

    def stats(self) -> Mapping[str, int]:
        """What became of the traces: `queued`, `stored`, `repeated` (items of batches that were there already),
        `thinned` (stored without their explanation), `dropped` (no room, or closed with the file not taking them),
        `failed` (could not be stored as a row), `pruned` (deleted by age or size); `set_aside` files and `write_errors`
        (tries that the file refused)."""
        with self._count_lock:
            return {"queued": 0 if self._is_left else len(self._queue) + len(self._pending), **self._counts}

    def flush(self, timeout_s: float = CLOSE_S) -> bool:
        """Wait until all that was written before this call is in the file; False when that takes over `timeout_s`."""
        try:
            last = self._queue[-1]
        except IndexError:
            last = None
        # A mark with nothing behind it is shared: while the file refuses, they must not fill the queue.
        done = last if isinstance(last, threading.Event) else threading.Event()
        if done is not last:
            self._queue.append(done)
        self._wake.set()
        return done.wait(timeout_s)

    def close(self) -> None:
        """Store what is queued and let go of the file, within `close_s` seconds; what the file refuses is dropped.

        A step that takes longer than that is interrupted, and what it leaves is dropped too, counted and logged.
        """
        if self._is_closed:
            self._thread.join(self._close_s)
            return
        self._is_closed = True
        self._close_by = time.monotonic() + max(0.0, self._close_s - LOCK_WAIT_S - 0.5)
        self._wake.set()
        self._thread.join(self._close_s * 0.9)
        if self._thread.is_alive():
            self._is_given_up = True
            self._file.interrupt()
            self._thread.join(self._close_s * 0.1)
            if self._thread.is_alive():
                self._leave()

    def _leave(self) -> None:
        """The writer does not come back from its step: say here what it will not."""
        left = 0
        with suppress(IndexError):
            while True:
                left += not isinstance(self._queue.popleft(), threading.Event)
        left += len(self._pending) + self._in_hand
        self._is_left = True
        self._add("dropped", left)
        _log.error("trace store: closed with %d traces left, as `%s` answers too slowly", left, self._file.path)

    # From here on: the writer thread.

    def _run(self) -> None:
        while True:
            is_closing = self._is_closed  # read before draining: what was queued before `close` is still taken
            try:
                pause_s = self._drain()
            except Exception as error:  # a sink: nothing may end the thread, and no trace is worth a request
                _log.exception(
                    "trace store: %d rows lost to an unforeseen %s", len(self._pending), type(error).__name__
                )
                if not self._is_left:
                    self._add("failed", len(self._pending))
                self._pending.clear()
                self._file.rolled_back()
                pause_s = self._interval_s
            is_over = time.monotonic() >= self._close_by
            if self._is_given_up or (is_closing and (is_over or not (self._queue or self._pending))):
                break
            self._wake.wait(min(pause_s, 0.1) if is_closing else pause_s)
            self._wake.clear()
        left = len(self._pending) + sum(not isinstance(item, threading.Event) for item in self._queue)
        if left and not self._is_left:
            self._add("dropped", left)
            _log.error("trace store: closed with %d traces that `%s` did not take", left, self._file.path)
        self._pending.clear()
        self._queue.clear()
        self._file.close()

    def _drain(self) -> float:
        """Store all that is queued, batch by batch; returns how long to pause (longer while the file refuses)."""
        if not self._file.is_open():
            return self._file.pause_s(self._interval_s)
        # Only what is here now: to chase the arrivals of a busy second would make a transaction of every few rows.
        left = len(self._queue)
        while left > 0 or self._pending:
            taken, done = self._take(min(left, self._batch_max))
            left -= taken
            if self._is_given_up:
                return 0.0
            if self._pending and not self._store():
                if done is not None:
                    self._queue.appendleft(done)
                return self._file.pause_s(self._interval_s)
            if done is not None:
                self._tended(is_asked=True)
                done.set()
        began_s = time.monotonic()
        is_more = self._tended(is_asked=self._is_closed)
        pause_s = max(_UPKEEP_PAUSE_S, _UPKEEP_SHARE * (time.monotonic() - began_s))
        return min(self._interval_s, pause_s) if is_more else self._interval_s

    def _tended(self, *, is_asked: bool) -> bool:
        """One slice of upkeep; whether there is more of it to do. `is_asked`: somebody waits to read the roll-ups."""
        connection = self._file.connection
        if connection is None:
            return False
        try:
            is_more, deleted = self._upkeep.step(connection, is_asked=is_asked)
        except sqlite3.Error as error:
            self._file.rolled_back()
            self._file.refused(error)
            return False
        self._add("pruned", deleted)
        return is_more

    def _take(self, most: int) -> tuple[int, threading.Event | None]:
        """Encode up to `most` traces into the batch, stopping at its size or after a flush mark, which is returned."""
        is_thin = len(self._queue) > self._queue_max // 2
        for taken in range(most):
            if len(self._pending) >= self._batch_max:
                return taken, None
            try:
                item = self._queue.popleft()
            except IndexError:  # `close` has taken them
                return most, None
            if isinstance(item, threading.Event):
                return taken + 1, item
            self._in_hand = 1
            try:
                self._pending.append(row_of(item, is_thin=is_thin))
            except Exception as error:  # one odd record must not cost its neighbours their row
                self._add("failed", 1)
                _log.error("trace store: trace `%.64s` has no row: %s", item.trace_id, type(error).__name__)
            else:
                if is_thin:
                    self._add("thinned", 1)
            self._in_hand = 0
        return most, None

    def _store(self) -> bool:
        """Write the batch in one transaction; False when the file did not take it and the batch must wait."""
        try:
            lost, repeated = self._file.store(self._pending)
        except sqlite3.Error as error:
            self._file.refused(error)
            return False
        if self._is_left:  # in the file all the same
            self._add("dropped", -len(self._pending))
        self._add("stored", len(self._pending) - lost - repeated)
        self._add("repeated", repeated)
        self._add("failed", lost)
        self._pending.clear()
        return True

    def _add(self, name: str, count: int) -> None:
        if count:
            with self._count_lock:
                self._counts[name] += count
