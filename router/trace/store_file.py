"""The life of the trace store's file: opened, opened again where it was replaced, set aside where it is broken, tried
again with growing pauses while it takes nothing.

Everything but `interrupt` is called by the writer's thread alone.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from router.trace.place import inode
from router.trace.rows import Cell
from router.trace.schema import COLUMNS, migrate

LOCK_WAIT_S = 1.0  # how long one statement waits for another writer
_RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # pauses between tries while the file takes nothing
_ROW = f"({','.join('?' * len(COLUMNS))})"
# What the file has already is left as it is: only the items of batches are unique (see the schema).
_INSERT = f"INSERT INTO traces ({','.join(COLUMNS)}) VALUES {_ROW} ON CONFLICT DO NOTHING"  # noqa: S608 - both parts are constants of the house
_UNFIT = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError)

Insert = Callable[[Sequence[tuple[Cell, ...]]], object]

_log = logging.getLogger("router.trace.sqlite")


class StoreFile:
    """One SQLite file in WAL mode, created where it is missing; `connection` is None while it is not open.

    `opened` is told of each new connection, `joined` once rows can be put in: it is given the connection and a function
    that inserts rows. `count` is told (`write_errors` | `set_aside`, 1). `now_ns` is Unix time.
    """

    def __init__(
        self,
        path: Path,
        *,
        opened: Callable[[sqlite3.Connection], None],
        joined: Callable[[sqlite3.Connection, Insert], None],
        count: Callable[[str, int], None],
        now_ns: Callable[[], int],
    ) -> None:
        self.path = path
        self.connection: sqlite3.Connection | None = None
        self._opened = opened
        self._joined = joined
        self._count = count
        self._now_ns = now_ns
        self._inode: tuple[int, int] | None = None
        self._failures = 0  # in a row
        self._stepping: sqlite3.Connection | None = None  # what `interrupt` interrupts; open, being opened, or closed

    def interrupt(self) -> None:
        """End the step that is under way, from another thread."""
        connection = self._stepping
        if connection is not None:
            with suppress(sqlite3.Error):  # just closed
                connection.interrupt()

    def is_open(self) -> bool:
        """Open the file if it is not open, or if the one on disk is no longer the one that was opened."""
        if self.connection is not None:
            if self._inode == inode(self.path):
                return True
            _log.error("trace store: `%s` was removed or replaced, opening it again", self.path)
            self.close()
        try:
            self._open()
        except (sqlite3.Error, OSError) as error:
            self.refused(error)
        return self.connection is not None

    def store(self, rows: Sequence[tuple[Cell, ...]]) -> tuple[int, int]:
        """Insert all rows in one transaction: (those the table refused for what they hold, those it had already).

        Raises sqlite3.Error when the file did not take them.
        """
        found = self._insert(rows)
        if self._inode != inode(self.path) and self.is_open():  # it went into a file that was just removed
            found = self._insert(rows)
        if self._failures:
            _log.warning("trace store: `%s` takes traces again after %d tries", self.path, self._failures)
            self._failures = 0
        return found

    def rolled_back(self) -> None:
        """No transaction stays open, nor a connection that cannot end one."""
        try:
            if self.connection is not None and self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()

    def close(self) -> None:
        """Let go of the file; it may be opened again."""
        connection, self.connection, self._inode = self.connection, None, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error as error:
                _log.warning("trace store: `%s` did not close: %s", self.path, error)

    def refused(self, error: sqlite3.Error | OSError) -> None:
        """Count a try that failed. Locked, full, read-only or gone may pass; a broken file will not and is replaced."""
        self._count("write_errors", 1)
        self._failures += 1
        if self._failures == 1:  # once per outage; the counters tell the rest
            _log.error("trace store: `%s` takes no traces (%s); they wait in memory", self.path, error)
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self._set_aside()

    def pause_s(self, well_s: float) -> float:
        """How long to wait before the next try: `well_s` while the file is well, longer the longer it is not."""
        return _RETRY_S[min(self._failures, len(_RETRY_S)) - 1] if self._failures else well_s

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self.path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=True, cached_statements=16
        )
        self._stepping = connection
        try:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # only a new file takes it; others reuse their pages
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA journal_size_limit=67108864")
            migrate(connection, self._now_ns())
            self._opened(connection)
        except BaseException:
            connection.close()
            raise
        self.connection = connection
        self._inode = inode(self.path)
        self._joined(connection, self._insert)

    def _insert(self, rows: Sequence[tuple[Cell, ...]]) -> tuple[int, int]:
        connection = self.connection
        if connection is None:
            raise sqlite3.OperationalError("not open")
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                lost, added = 0, connection.executemany(_INSERT, rows).rowcount
            except _UNFIT:
                connection.execute("ROLLBACK")
                connection.execute("BEGIN IMMEDIATE")
                each = [_added(connection, row) for row in rows]
                lost, added = each.count(None), sum(count or 0 for count in each)
            connection.execute("COMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return lost, len(rows) - lost - added

    def _set_aside(self) -> None:
        """Move a file that is no database any more out of the way, with its journal; the next try makes a new one."""
        self.close()
        stamp = datetime.fromtimestamp(self._now_ns() / 1e9, tz=UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        target = self.path.with_name(f"{self.path.name}.corrupt-{stamp}")
        try:
            os.replace(self.path, target)
            for suffix in ("-wal", "-shm"):
                if os.path.exists(f"{self.path}{suffix}"):
                    os.replace(f"{self.path}{suffix}", f"{target}{suffix}")
        except OSError as error:
            _log.error("trace store: `%s` is broken and could not be set aside: %s", self.path, error)
            return
        self._count("set_aside", 1)
        _log.error(
            "trace store: `%s` is not a readable database, set aside as `%s`; a new one is started", self.path, target
        )


def _added(connection: sqlite3.Connection, row: tuple[Cell, ...]) -> int | None:
    """How many rows one row became: 0 when the table has it already; None when it cannot be one."""
    try:
        return connection.execute(_INSERT, row).rowcount
    except _UNFIT:
        return None
