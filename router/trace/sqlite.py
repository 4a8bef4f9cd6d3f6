"""The trace store's writing half: finished traces go through a bounded queue to one thread and one SQLite file.

The request path pays for one append to a deque. Everything else happens in the writer thread: encoding, batching,
waiting for a lock, making room for a broken file. It fails open: nothing here may slow or fail a request, so what the
file does not take stays in the queue until the queue is full, then it is dropped, counted and said once in the log.
When the queue is half full the explaining columns are left out first (`thinned`); the money is the last to go.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from router.errors import SettingsError
from router.trace.reader import SqliteTraceReader
from router.trace.record import Trace
from router.trace.rows import Cell, row_of
from router.trace.schema import COLUMNS, migrate
from router.trace.upkeep import KEEP_ALL, Retention, Upkeep

__all__ = ["SqliteTraceReader", "SqliteTraceSink", "open_sink", "path_of"]

CLOSE_S = 5.0  # the longest that `close` may take (F79)
_LOCK_WAIT_S = 1.0  # how long one statement waits for another writer
_UPKEEP_PAUSE_S = 0.02  # between two slices, so that readers and inserts of other processes get their turn
_RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # pauses between tries while the file takes nothing
_ROW = f"({','.join('?' * len(COLUMNS))})"
_INSERT = f"INSERT INTO traces ({','.join(COLUMNS)}) VALUES {_ROW}"  # noqa: S608 - both parts are constants of the house

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
        self._path = Path(path)
        self._queue_max = queue_max
        self._batch_max = batch
        self._interval_s = flush_interval_s
        self._close_s = close_s
        self._now_ns = now_ns
        self._queue: deque[Trace | threading.Event] = deque()
        self._pending: list[tuple[Cell, ...]] = []  # rows that are not yet in the file; the writer's own
        self._in_hand = 0  # 1 while a trace is neither in the queue nor a row yet
        self._connection: sqlite3.Connection | None = None
        self._upkeep = Upkeep(retention, now_ns)
        self._inode: tuple[int, int] | None = None
        self._failures = 0  # in a row
        self._wake = threading.Event()
        self._is_closed = False
        self._close_by = 0.0
        self._is_given_up = False  # `close` waits no longer: no new step is begun
        self._is_left = False  # `close` has counted what was left as dropped
        self._stepping: sqlite3.Connection | None = None  # what `close` interrupts; open, being opened, or closed
        self._count_lock = threading.Lock()
        self._counts = dict.fromkeys(
            ("stored", "dropped", "thinned", "failed", "set_aside", "write_errors", "pruned"), 0
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

    def stats(self) -> Mapping[str, int]:
        """What became of the traces: `queued`, `stored`, `thinned` (stored without their explanation), `dropped` (no
        room, or closed with the file not taking them), `failed` (could not be stored as a row), `pruned` (deleted by
        age or size); `set_aside` files and `write_errors` (tries that the file refused)."""
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
        self._close_by = time.monotonic() + max(0.0, self._close_s - _LOCK_WAIT_S - 0.5)
        self._wake.set()
        self._thread.join(self._close_s * 0.9)
        if self._thread.is_alive():
            self._is_given_up = True
            connection = self._stepping
            if connection is not None:
                with suppress(sqlite3.Error):  # just closed
                    connection.interrupt()
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
        _log.error("trace store: closed with %d traces left, as `%s` answers too slowly", left, self._path)

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
                self._rolled_back()
                pause_s = self._interval_s
            is_over = time.monotonic() >= self._close_by
            if self._is_given_up or (is_closing and (is_over or not (self._queue or self._pending))):
                break
            self._wake.wait(min(pause_s, 0.1) if is_closing else pause_s)
            self._wake.clear()
        left = len(self._pending) + sum(not isinstance(item, threading.Event) for item in self._queue)
        if left and not self._is_left:
            self._add("dropped", left)
            _log.error("trace store: closed with %d traces that `%s` did not take", left, self._path)
        self._pending.clear()
        self._queue.clear()
        self._forget()

    def _drain(self) -> float:
        """Store all that is queued, batch by batch; returns how long to pause (longer while the file refuses)."""
        if not self._is_open():
            return self._refused_pause()
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
                return self._refused_pause()
            if done is not None:
                self._tended(is_asked=True)
                done.set()
        is_more = self._tended(is_asked=self._is_closed)
        return min(self._interval_s, _UPKEEP_PAUSE_S) if is_more else self._interval_s

    def _tended(self, *, is_asked: bool) -> bool:
        """One slice of upkeep; whether there is more of it to do. `is_asked`: somebody waits to read the roll-ups."""
        connection = self._connection
        if connection is None:
            return False
        try:
            is_more, deleted = self._upkeep.step(connection, is_asked=is_asked)
        except sqlite3.Error as error:
            self._rolled_back()
            self._refused(error)
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
            lost = self._insert(self._pending)
            if self._inode != _inode(self._path) and self._is_open():  # it went into a file that was just removed
                lost = self._insert(self._pending)
        except sqlite3.Error as error:
            self._refused(error)
            return False
        if self._is_left:  # in the file all the same
            self._add("dropped", -len(self._pending))
        self._add("stored", len(self._pending) - lost)
        self._add("failed", lost)
        self._pending.clear()
        if self._failures:
            _log.warning("trace store: `%s` takes traces again after %d tries", self._path, self._failures)
            self._failures = 0
        return True

    def _insert(self, rows: list[tuple[Cell, ...]]) -> int:
        """Insert all rows in one transaction; returns how many of them the table refused for what they hold."""
        connection = self._connection
        if connection is None:
            raise sqlite3.OperationalError("not open")
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany(_INSERT, rows)
                lost = 0
            except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError):
                connection.execute("ROLLBACK")
                connection.execute("BEGIN IMMEDIATE")
                lost = sum(not _inserted(connection, row) for row in rows)
            connection.execute("COMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return lost

    def _is_open(self) -> bool:
        """Open the file if it is not open, or if the one on disk is no longer the one that was opened."""
        if self._connection is not None:
            if self._inode == _inode(self._path):
                return True
            _log.error("trace store: `%s` was removed or replaced, opening it again", self._path)
            self._forget()
        try:
            self._open()
        except (sqlite3.Error, OSError) as error:
            self._refused(error)
        return self._connection is not None

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self._path, timeout=_LOCK_WAIT_S, isolation_level=None, check_same_thread=True, cached_statements=16
        )
        self._stepping = connection
        try:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # only a new file takes it; others reuse their pages
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA journal_size_limit=67108864")
            migrate(connection, self._now_ns())
            self._upkeep.opened(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._inode = _inode(self._path)

    def _rolled_back(self) -> None:
        """No transaction stays open, nor a connection that cannot end one."""
        try:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._forget()

    def _forget(self) -> None:
        connection, self._connection, self._inode = self._connection, None, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error as error:
                _log.warning("trace store: `%s` did not close: %s", self._path, error)

    def _set_aside(self) -> None:
        """Move a file that is no database any more out of the way, with its journal; the next try makes a new one."""
        self._forget()
        stamp = datetime.fromtimestamp(self._now_ns() / 1e9, tz=UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        target = self._path.with_name(f"{self._path.name}.corrupt-{stamp}")
        try:
            os.replace(self._path, target)
            for suffix in ("-wal", "-shm"):
                if os.path.exists(f"{self._path}{suffix}"):
                    os.replace(f"{self._path}{suffix}", f"{target}{suffix}")
        except OSError as error:
            _log.error("trace store: `%s` is broken and could not be set aside: %s", self._path, error)
            return
        self._add("set_aside", 1)
        _log.error(
            "trace store: `%s` is not a readable database, set aside as `%s`; a new one is started", self._path, target
        )

    def _refused(self, error: sqlite3.Error | OSError) -> None:
        """Count a try that failed. Locked, full, read-only or gone may pass; a broken file will not and is replaced."""
        self._add("write_errors", 1)
        self._failures += 1
        if self._failures == 1:  # once per outage; the counters tell the rest
            _log.error("trace store: `%s` takes no traces (%s); they wait in memory", self._path, error)
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self._set_aside()

    def _refused_pause(self) -> float:
        return _RETRY_S[min(self._failures, len(_RETRY_S)) - 1] if self._failures else self._interval_s

    def _add(self, name: str, count: int) -> None:
        if count:
            with self._count_lock:
                self._counts[name] += count


def _inserted(connection: sqlite3.Connection, row: tuple[Cell, ...]) -> bool:
    try:
        connection.execute(_INSERT, row)
    except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError):
        return False
    return True


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
