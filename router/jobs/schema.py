"""The tables of decisions about batches and of deferred requests, and how a connection to their file is opened.

The file is nobody's but ours (mode 0600): prompts are in it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a system of ours
    fcntl = None  # type: ignore[assignment]

_STEP_S = 0.005

_log = logging.getLogger("router")

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE tickets (
            number INTEGER PRIMARY KEY,
            ticket TEXT NOT NULL UNIQUE,
            created_s INTEGER NOT NULL,         -- Unix time
            batch TEXT UNIQUE,                  -- NULL until the upstream has taken it
            tenant TEXT
        )
        """,
        "CREATE INDEX tickets_by_age ON tickets (created_s)",
        """
        CREATE TABLE decisions (
            number INTEGER NOT NULL,            -- of the ticket
            name TEXT NOT NULL,
            value BLOB NOT NULL,
            PRIMARY KEY (number, name)
        ) WITHOUT ROWID
        """,
    ),
    (
        """
        CREATE TABLE jobs (
            seq INTEGER PRIMARY KEY,            -- the order of acceptance
            owner TEXT NOT NULL,
            id TEXT NOT NULL,
            tenant TEXT NOT NULL,
            batch_group TEXT NOT NULL,
            created_s REAL NOT NULL,            -- Unix time, as all of these
            due_s REAL NOT NULL,
            late_s REAL,
            most INTEGER NOT NULL,
            size INTEGER NOT NULL,
            not_before_s REAL NOT NULL,
            request_bytes INTEGER NOT NULL,
            submission TEXT,                    -- NULL: it is in none
            is_canceled INTEGER NOT NULL DEFAULT 0,
            ended_s REAL,                       -- NULL: it has not ended
            status INTEGER,
            meta BLOB NOT NULL,
            note BLOB,
            UNIQUE (owner, id)
        )
        """,
        # What is big is apart: neither a list of jobs nor a change of one reads or writes it.
        "CREATE TABLE job_requests (seq INTEGER PRIMARY KEY, request BLOB NOT NULL)",
        "CREATE TABLE job_answers (seq INTEGER PRIMARY KEY, body BLOB NOT NULL)",
        "CREATE INDEX jobs_waiting ON jobs (owner, seq) WHERE submission IS NULL AND ended_s IS NULL",
        "CREATE INDEX jobs_never_sent ON jobs (created_s) WHERE submission IS NULL AND ended_s IS NULL",
        "CREATE INDEX jobs_by_submission ON jobs (owner, submission, seq) WHERE submission IS NOT NULL",
        "CREATE INDEX jobs_by_end ON jobs (ended_s) WHERE ended_s IS NOT NULL",
        """
        CREATE TABLE job_submissions (
            owner TEXT NOT NULL,
            id TEXT NOT NULL,
            batch_group TEXT NOT NULL,
            started_s REAL NOT NULL,
            items INTEGER NOT NULL,
            batch TEXT,                         -- NULL: it is not known to be there
            closed_s REAL,
            PRIMARY KEY (owner, id)
        ) WITHOUT ROWID
        """,
        "CREATE INDEX job_submissions_open ON job_submissions (owner, started_s) WHERE closed_s IS NULL",
        "CREATE INDEX job_submissions_closed ON job_submissions (closed_s) WHERE closed_s IS NOT NULL",
        "CREATE INDEX job_batches ON job_submissions (owner, batch) WHERE batch IS NOT NULL",
        """
        CREATE TABLE job_leases (owner TEXT PRIMARY KEY, holder TEXT NOT NULL, until_s REAL NOT NULL) WITHOUT ROWID
        """,
        # What an owner has that has not ended, counted by the file itself: it cannot get out of step.
        """
        CREATE TABLE job_owners (
            owner TEXT PRIMARY KEY,
            unended INTEGER NOT NULL,
            unended_bytes INTEGER NOT NULL      -- of requests
        ) WITHOUT ROWID
        """,
        """
        CREATE TRIGGER job_came AFTER INSERT ON jobs BEGIN
            INSERT INTO job_owners VALUES (new.owner, 1, new.request_bytes) ON CONFLICT (owner) DO UPDATE SET
                unended = unended + 1, unended_bytes = unended_bytes + excluded.unended_bytes;
        END
        """,
        """
        CREATE TRIGGER job_ended AFTER UPDATE OF ended_s ON jobs WHEN old.ended_s IS NULL AND new.ended_s IS NOT NULL
        BEGIN
            UPDATE job_owners SET unended = unended - 1, unended_bytes = unended_bytes - old.request_bytes
                WHERE owner = old.owner;
            DELETE FROM job_requests WHERE seq = old.seq;
        END
        """,
        """
        CREATE TRIGGER job_went AFTER DELETE ON jobs BEGIN
            UPDATE job_owners SET unended = unended - 1, unended_bytes = unended_bytes - old.request_bytes
                WHERE owner = old.owner AND old.ended_s IS NULL;
            DELETE FROM job_requests WHERE seq = old.seq;
            DELETE FROM job_answers WHERE seq = old.seq;
        END
        """,
    ),
)


def opened(path: Path | None, lock_wait_s: float) -> sqlite3.Connection:
    """A connection in autocommit mode, to tables of the newest version; `path` None: in memory.

    Where the tables are there, no lock is needed. It is for the thread that opened it. Raises sqlite3.Error, OSError.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make(path)
        _close_to_others(path)
    connection = sqlite3.connect(path or ":memory:", timeout=lock_wait_s, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_size_limit=67108864")
        if _version(connection) >= len(MIGRATIONS):
            return connection
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # which writes, even where it is so already
        _write_ahead(connection, lock_wait_s)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE IF NOT EXISTS jobs_schema_version (version INTEGER PRIMARY KEY)")
        for number, statements in enumerate(MIGRATIONS):
            if number < _version(connection):
                continue
            for statement in statements:
                connection.execute(statement)
            connection.execute("INSERT INTO jobs_schema_version VALUES (?)", (number + 1,))
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _write_ahead(connection: sqlite3.Connection, lock_wait_s: float) -> None:
    """Switch to a write-ahead log. SQLite itself waits for no lock here: another may be switching too."""
    until_s = time.monotonic() + lock_wait_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until_s:
                raise
            time.sleep(_STEP_S)
        else:
            return


def opened_or_anew(path: Path | None, lock_wait_s: float, aside_s: int) -> sqlite3.Connection:
    """What `opened` gives; a file that is no readable database is set aside, and a new one begun.

    `aside_s` is in the name of what was set aside, Unix time. Raises sqlite3.Error, OSError.
    """
    try:
        return opened(path, lock_wait_s)
    except sqlite3.DatabaseError as error:
        if path is None or not _is_corrupt(error):
            raise
    with _alone_in(path.parent):  # else one process could set aside what another has just begun
        try:
            return opened(path, lock_wait_s)
        except sqlite3.DatabaseError as error:
            if not _is_corrupt(error):
                raise
        aside = path.with_name(f"{path.name}.corrupt-{aside_s}")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-1")
        os.replace(path, aside)
        _log.error("jobs: `%s` is not a readable database, set aside as `%s`", path, aside)
        return opened(path, lock_wait_s)


def is_open_to_others(path: Path) -> bool:
    """Whether somebody else may read the file, or what SQLite keeps beside it."""
    for each in _with_companions(path):
        with suppress(FileNotFoundError):
            if os.stat(each).st_mode & 0o077:
                return True
    return False


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One at a time, of all threads and processes that say so; the file itself must not be opened for it."""
    if fcntl is None:
        yield
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _make(path: Path) -> None:
    """An empty file for us alone, where there is none."""
    real = os.path.realpath(path)
    with suppress(FileExistsError):
        try:
            # Not opened and closed: that would end the locks that another thread may have on it by then.
            os.mknod(real, 0o600)
        except (AttributeError, PermissionError):  # not on every system
            os.close(os.open(real, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _close_to_others(path: Path) -> None:
    """Take the rights of others away, as far as we may; SQLite gives its other files the mode of this one."""
    for each in _with_companions(path):
        with suppress(FileNotFoundError, PermissionError):
            mode = os.stat(each).st_mode
            if mode & 0o077:
                os.chmod(each, mode & 0o700)


def _with_companions(path: Path) -> tuple[str, str, str]:
    real = os.path.realpath(path)
    return real, f"{real}-wal", f"{real}-shm"


def _is_corrupt(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _version(connection: sqlite3.Connection) -> int:
    """Of the tables; 0: there are none."""
    asked = "SELECT count(*) FROM sqlite_master WHERE name = 'jobs_schema_version'"
    if not connection.execute(asked).fetchone()[0]:
        return 0
    return int(connection.execute("SELECT coalesce(max(version), 0) FROM jobs_schema_version").fetchone()[0])
