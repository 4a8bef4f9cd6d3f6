"""The tables of decisions about batches, and how a connection to their file is opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path

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
)


def opened(path: Path | None, lock_wait_s: float) -> sqlite3.Connection:
    """A connection in autocommit mode, to tables of the newest version; `path` None: in memory.

    Where the tables are there, no lock is needed. It is for the thread that opened it. Raises sqlite3.Error, OSError.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path or ":memory:", timeout=lock_wait_s, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_size_limit=67108864")
        if _version(connection) >= len(MIGRATIONS):
            return connection
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # which writes, even where it is so already
        connection.execute("PRAGMA journal_mode=WAL")
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


def _version(connection: sqlite3.Connection) -> int:
    """Of the tables; 0: there are none."""
    asked = "SELECT count(*) FROM sqlite_master WHERE name = 'jobs_schema_version'"
    if not connection.execute(asked).fetchone()[0]:
        return 0
    return int(connection.execute("SELECT coalesce(max(version), 0) FROM jobs_schema_version").fetchone()[0])
