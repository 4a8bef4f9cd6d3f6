"""The trace store's writing half: finished traces go through a bounded queue to one thread and one SQLite file.

The request path pays for one append to a deque. Everything else happens in the writer thread: encoding, batching,
waiting for a lock, making room for a broken file. It fails open: nothing here may slow or fail a request, so what the
file does not take stays in the queue until the queue is full, then it is dropped, counted and said once in the log.
When the queue is half full the explaining columns are left out first (`thinned`); the money is the last to go.

Two kinds of traces have places of their own, so that they take none from the others. Requests that were refused before
any upstream was asked cost their client nothing, and can come by the thousand a second: beyond `REFUSED_SHARE` of the
queue they are only counted, and the next record says how many it stands for. Ended requests that find the queue full
and have a slot in the journal are **parked** there: their money is booked from it once the file takes rows again, or by
the next start; only what has no slot is dropped. Both are stored after the queue.
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

from router.trace.journal import Journal, open_journal
from router.trace.place import path_of
from router.trace.reader import SqliteTraceReader
from router.trace.record import Trace
from router.trace.rescue import rescue
from router.trace.rows import Cell, row_of
from router.trace.store_file import LOCK_WAIT_S, Insert, StoreFile
from router.trace.upkeep import KEEP_ALL, Retention, Upkeep

__all__ = ["SqliteTraceReader", "SqliteTraceSink", "open_sink", "path_of"]

CLOSE_S = 5.0  # the longest that `close` may take (F79)
REFUSED_SHARE = 8  # the part of `queue_max` (one of so many) that refused requests may fill
_UPKEEP_PAUSE_S = 0.02  # between two slices, so that readers and inserts of other processes get their turn
_UPKEEP_SHARE = 2.0  # times what the slice took, if that is longer: a third of a core is enough for what can wait

_log = logging.getLogger(__name__)


def open_sink(url: str, retention: Retention = KEEP_ALL) -> SqliteTraceSink | None:
    """The sink of a `traces` setting; None for `off`. Raises SettingsError for an unknown form of URL."""
    path = path_of(url)
    return None if path is None else SqliteTraceSink(path, retention=retention, has_journal=True)


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
        has_journal: bool = False,
    ) -> None:
        self._queue_max = queue_max
        self._batch_max = batch
        self._interval_s = flush_interval_s
        self._close_s = close_s
        self._queue: deque[Trace | threading.Event] = deque()
        self._pending: list[tuple[Cell, ...]] = []  # rows that are not yet in the file; the writer's own
        self._slots: list[int] = []  # of the pending rows and of those that were lost, in the journal
        self._journal: Journal | None = open_journal(Path(path)) if has_journal else None
        self._has_journal = has_journal
        self._refused: deque[Trace] = deque()
        self._unrecorded = 0  # refused requests since the last one that was recorded
        self._parked: deque[int] = deque()  # slots of the journal that alone have an ended request
        self._in_hand = 0  # 1 while a trace is neither in the queue nor a row yet
        self._upkeep = Upkeep(retention, now_ns)
        self._file = StoreFile(
            Path(path), opened=self._upkeep.opened, joined=self._rescue, count=self._add, now_ns=now_ns
        )
        self._wake = threading.Event()
        self._is_closed = False
        self._close_by = 0.0
        self._is_given_up = False  # `close` waits no longer: no new step is begun
        self._is_left = False  # `close` has counted what was left as dropped
        self._count_lock = threading.Lock()
        self._counts = dict.fromkeys(
            (
                *("stored", "repeated", "dropped", "thinned", "failed", "set_aside", "write_errors", "pruned"),
                *("rescued", "aborted", "unrecorded"),
            ),
            0,
        )
        self._thread = threading.Thread(target=self._run, name="router-traces", daemon=True)
        self._thread.start()

    def begin(self, trace: Trace) -> None:
        """A request begins; should the process be killed before it is in the file, the next one finds its traces."""
        journal = self._journal
        if journal is not None and not self._is_closed:
            with suppress(ValueError):  # closed meanwhile
                journal.begun(trace)

    def write(self, trace: Trace) -> None:
        """Hand over a finished trace: one append. Over `queue_max`, or once closed, it is parked, or dropped
        and counted. A refused request beyond its share is counted as `unrecorded`.
        """
        if not trace.attempts and not trace.cost_pusd and trace.status >= 400:
            self._write_refused(trace)
            return
        queue, slot, journal = self._queue, trace.slot, self._journal
        is_kept = slot >= 0 and journal is not None and self._is_noted(journal, trace)
        if not self._is_closed and len(queue) < self._queue_max:
            queue.append(trace)
        elif is_kept:
            self._parked.append(slot)
        else:
            self._add("dropped", 1)

    def _is_noted(self, journal: Journal, trace: Trace) -> bool:
        """Whether the journal has the request with its money; the writer may have closed it meanwhile."""
        try:
            return journal.ended(trace)
        except ValueError:
            return False

    def _write_refused(self, trace: Trace) -> None:
        """Take a request that came to no upstream, while its share of the queue lasts."""
        if self._is_closed:
            self._add("dropped", 1)
        elif len(self._refused) < max(1, self._queue_max // REFUSED_SHARE):
            if self._unrecorded:
                trace.why = (*trace.why, f"{self._unrecorded} more were refused since the record before, without one")
                self._unrecorded = 0
            self._refused.append(trace)
            return
        else:
            self._unrecorded += 1
            self._add("unrecorded", 1)
        if trace.slot >= 0 and self._journal is not None:
            with suppress(ValueError):  # closed meanwhile
                self._journal.free((trace.slot,))
            trace.slot = -1

    def has_room(self) -> bool:
        """Whether whoever brings many traces may go on: no more than a quarter of the queue waits.

        Half of it would be too late: from there on, requests are stored without their explanation.
        """
        return len(self._queue) <= self._queue_max // 4

    def stats(self) -> Mapping[str, int]:
        """What became of the traces: `queued`; `parked` (only their money, in the journal); `stored`, `repeated` (items
        of batches that were there already), `thinned` (stored without their explanation), `dropped` (no room, or closed
        with the file not taking them), `unrecorded` (refused requests beyond their share of the queue), `failed` (could
        not be stored as a row), `pruned` (deleted by age or size), `rescued` and `aborted` (of processes that were
        killed: ended, and still open); `set_aside` files and `write_errors` (tries that the file refused)."""
        with self._count_lock:
            queued = 0 if self._is_left else len(self._queue) + len(self._refused) + len(self._pending)
            return {"queued": queued, "parked": len(self._parked), **self._counts}

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
        for queue in (self._queue, self._refused):
            with suppress(IndexError):
                while True:
                    left += not isinstance(queue.popleft(), threading.Event)
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
            if self._is_given_up or (is_closing and (is_over or not self._has_work())):
                break
            self._wake.wait(min(pause_s, 0.1) if is_closing else pause_s)
            self._wake.clear()
        left = len(self._pending) + len(self._refused)
        left += sum(not isinstance(item, threading.Event) for item in self._queue)
        if left and not self._is_left:
            self._add("dropped", left)
            _log.error("trace store: closed with %d traces that `%s` did not take", left, self._file.path)
        self._pending.clear()
        self._queue.clear()
        self._refused.clear()
        self._file.close()
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    def _has_work(self) -> bool:
        return bool(self._queue or self._refused or self._parked or self._pending)

    def _rescue(self, connection: sqlite3.Connection, insert: Insert) -> None:
        """Book what killed processes left beside the file that was just opened."""
        if self._has_journal:
            found = rescue(connection, self._file.path, insert)
            for name, count in zip(("rescued", "aborted"), found, strict=True):
                self._add(name, count)

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
                if not self._store_rest():
                    self._queue.appendleft(done)
                    return self._file.pause_s(self._interval_s)
                self._tended(is_asked=True)
                done.set()
        if not self._store_rest():
            return self._file.pause_s(self._interval_s)
        began_s = time.monotonic()
        is_more = self._tended(is_asked=self._is_closed)
        pause_s = max(_UPKEEP_PAUSE_S, _UPKEEP_SHARE * (time.monotonic() - began_s))
        return min(self._interval_s, pause_s) if is_more else self._interval_s

    def _store_rest(self) -> bool:
        """Store what was refused and what is parked; False when the file did not take it.

        Only what is here now, as there is always more of it while requests are refused.
        """
        refused, parked = len(self._refused), len(self._parked)
        while (refused > 0 or parked > 0) and not self._is_given_up:
            room = max(0, self._batch_max - len(self._pending))
            taken = min(refused, room)
            refused -= taken
            for _ in range(taken):
                try:
                    self._encode(self._refused.popleft(), is_thin=False)
                except IndexError:  # `close` has taken them
                    break
            taken = min(parked, room - taken)
            parked -= taken
            for _ in range(taken):
                self._encode_parked(self._parked.popleft())
            if not self._store():
                return False
        return True

    def _encode_parked(self, slot: int) -> None:
        trace = None if self._journal is None else self._journal.kept(slot)
        if trace is None:
            self._slots.append(slot)
            self._add("failed", 1)
        else:
            trace.slot = slot
            self._encode(trace, is_thin=True)

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
            self._encode(item, is_thin=is_thin)
        return most, None

    def _encode(self, trace: Trace, *, is_thin: bool) -> None:
        self._in_hand = 1
        self._slots.append(trace.slot)
        try:
            self._pending.append(row_of(trace, is_thin=is_thin))
        except Exception as error:  # one odd record must not cost its neighbours their row
            self._add("failed", 1)
            _log.error("trace store: trace `%.64s` has no row: %s", trace.trace_id, type(error).__name__)
        else:
            if is_thin:
                self._add("thinned", 1)
        self._in_hand = 0

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
        if self._journal is not None:
            self._journal.free(self._slots)
        self._slots.clear()
        return True

    def _add(self, name: str, count: int) -> None:
        if count:
            with self._count_lock:
                self._counts[name] += count
