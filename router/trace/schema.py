"""The tables of the trace store: numbered migrations, applied once each, in order.

A migration that has shipped is never edited; a change is a new number. Columns are only ever added, so that two
versions of the router may share one file: inserts and queries name their columns. Wide JSON columns come last, which
keeps them on overflow pages that a scan over the narrow ones never reads.
"""

from __future__ import annotations

import sqlite3

# Text and number columns that queries filter, sort or add up; then the JSON columns.
COLUMNS = (
    "started_at_ns",
    "trace_id",
    "request_id",
    "endpoint",
    "method",
    "path",
    "tenant",
    "key",
    "client",
    "conversation",
    "is_streaming",
    "policy",
    "revision",
    "rule",
    "task",
    "model_asked",
    "model_sent",
    "model_answered",
    "lane",
    "cache",
    "is_stored",
    "price_version",
    "cost_pusd",
    "baseline_pusd",
    "saved_pusd",
    "input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "ttft_s",
    "duration_s",
    "overhead_s",
    "status",
    "stop_reason",
    "outcome",
    "error_type",
    "error_code",
    "labels",
    "tags",
    "edits",
    "why",
    "usage",
    "spans",
    "attempts",
    "facts",
    "affinity",
    "cache_reason",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE traces (
            seq INTEGER PRIMARY KEY,            -- the order of arrival; the live tail resumes by it
            started_at_ns INTEGER NOT NULL,
            trace_id TEXT NOT NULL,             -- not unique: a caller may continue one W3C trace in many requests
            request_id TEXT,
            endpoint TEXT NOT NULL,
            method TEXT NOT NULL,
            path TEXT NOT NULL,
            tenant TEXT NOT NULL,
            key TEXT NOT NULL,
            client TEXT NOT NULL,
            conversation TEXT,
            is_streaming INTEGER NOT NULL,
            policy TEXT NOT NULL,
            revision TEXT NOT NULL,
            rule TEXT NOT NULL,
            task TEXT,
            model_asked TEXT NOT NULL,
            model_sent TEXT NOT NULL,
            model_answered TEXT,
            lane TEXT NOT NULL,
            cache TEXT NOT NULL,
            is_stored INTEGER NOT NULL,
            price_version TEXT NOT NULL,
            cost_pusd INTEGER,                  -- pico-dollars; NULL is unknown, never 0
            baseline_pusd INTEGER,
            saved_pusd INTEGER,
            input_tokens INTEGER,
            cache_read_tokens INTEGER,
            cache_write_5m_tokens INTEGER,
            cache_write_1h_tokens INTEGER,
            output_tokens INTEGER,
            ttft_s REAL,
            duration_s REAL NOT NULL,
            overhead_s REAL NOT NULL,
            status INTEGER NOT NULL,
            stop_reason TEXT,
            outcome TEXT NOT NULL,
            error_type TEXT,
            error_code TEXT,
            labels TEXT,                        -- JSON from here on; NULL is empty or none
            tags TEXT,
            edits TEXT,
            why TEXT,
            usage TEXT,
            spans TEXT,
            attempts TEXT,
            facts TEXT
        )
        """,
        "CREATE INDEX traces_by_start ON traces (started_at_ns, trace_id)",
        "CREATE INDEX traces_by_id ON traces (trace_id)",
        "CREATE INDEX traces_by_request ON traces (request_id) WHERE request_id IS NOT NULL",
    ),
    ("ALTER TABLE traces ADD COLUMN affinity TEXT",),
    ("ALTER TABLE traces ADD COLUMN cache_reason TEXT",),
)


def migrate(connection: sqlite3.Connection, now_ns: int) -> int:
    """Bring the file to the newest version known here and return the version it has; doing it again changes nothing.

    `connection` must be in autocommit mode (`isolation_level=None`). A file from a newer router is left as it is.
    Raises sqlite3.Error when the file cannot be changed.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS trace_schema_version (version INTEGER PRIMARY KEY, applied_at_ns INTEGER)"
        )
        row = connection.execute("SELECT coalesce(max(version), 0) FROM trace_schema_version").fetchone()
        version = int(row[0])
        for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
            for statement in statements:
                connection.execute(statement)
            connection.execute("INSERT INTO trace_schema_version VALUES (?, ?)", (number, now_ns))
            version = number
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return version
