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
    "session",
    "prompt_read_saved_pusd",
    "prompt_write_extra_pusd",
    "batch",
    "batch_lines",
)

# The sums of a roll-up as migration 5 makes them; frozen with it (`rollup.SUMS` is what the program adds up).
ROLLUP_SUMS_5 = (
    *("requests", "not_ok", "input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens"),
    *("unknown", "hits", "coalesced", "misses"),
    *("cost_uusd", "cost_rest_pusd", "baseline_uusd", "baseline_rest_pusd", "apart_uusd", "apart_rest_pusd"),
    *("cache_saved_uusd", "cache_saved_rest_pusd", "read_saved_uusd", "read_saved_rest_pusd"),
    *("write_extra_uusd", "write_extra_rest_pusd"),
    *(f"ttft_{at}" for at in range(20)),
    *(f"took_{at}" for at in range(20)),
)

WEEK_NS = 7 * 86_400 * 10**9  # frozen with migration 7

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
    (
        "ALTER TABLE traces ADD COLUMN session TEXT",
        "CREATE INDEX traces_by_session ON traces (session, started_at_ns) WHERE session IS NOT NULL",
        "CREATE INDEX traces_by_conversation ON traces (conversation, started_at_ns) WHERE conversation IS NOT NULL",
    ),
    (
        "ALTER TABLE traces ADD COLUMN prompt_read_saved_pusd INTEGER",
        "ALTER TABLE traces ADD COLUMN prompt_write_extra_pusd INTEGER",
        # All that a filter asks of: a scan for something rare reads this and not the wide rows.
        "CREATE INDEX traces_to_filter ON traces (started_at_ns, trace_id, endpoint, outcome, cache, cache_reason,"
        " rule, model_sent, task, lane, policy, key, tenant, cost_pusd)",
        "DROP INDEX traces_by_start",  # the new one begins with its columns
        """
        CREATE TABLE rollup_groups (
            id INTEGER PRIMARY KEY,
            model TEXT NOT NULL,
            rule TEXT NOT NULL,
            task TEXT NOT NULL,
            tenant TEXT NOT NULL,
            key TEXT NOT NULL,
            policy TEXT NOT NULL,
            lane TEXT NOT NULL,
            outcome TEXT NOT NULL,
            UNIQUE (model, rule, task, tenant, key, policy, lane, outcome)
        )
        """,
        f"""
        CREATE TABLE rollups (
            step_s INTEGER NOT NULL,            -- one of rollup.STEPS_S
            start_s INTEGER NOT NULL,           -- Unix seconds, a multiple of step_s
            group_id INTEGER NOT NULL,
            {",".join(f"{name} INTEGER NOT NULL" for name in ROLLUP_SUMS_5)},
            PRIMARY KEY (step_s, start_s, group_id)
        ) WITHOUT ROWID
        """,
        "CREATE TABLE rollup_state (seq INTEGER NOT NULL)",  # the last arrival that is rolled up
        "INSERT INTO rollup_state VALUES (0)",
    ),
    (
        # The newest that was ever deleted: a start in Unix seconds of each step; of rows (step 0) in nanoseconds.
        "CREATE TABLE deleted (step_s INTEGER PRIMARY KEY, newest INTEGER NOT NULL)",
        # What went before this was kept is not known: then all that is older than what is there.
        "INSERT INTO deleted SELECT step_s, min(start_s) - 1 FROM rollups GROUP BY step_s",
        "INSERT INTO deleted SELECT 0, started_at_ns - 1 FROM traces WHERE EXISTS (SELECT 1 FROM rollups)"
        " ORDER BY started_at_ns LIMIT 1",
    ),
    (
        "ALTER TABLE traces ADD COLUMN batch TEXT",
        "ALTER TABLE traces ADD COLUMN batch_lines TEXT",  # JSON
        "CREATE INDEX traces_by_batch ON traces (batch, started_at_ns) WHERE batch IS NOT NULL",
        # The id of an item is made of its batch and its name there: whoever fetches results again books nothing twice,
        # from whichever process. In the file and not in the program, so that no version and no race gets around it.
        "CREATE UNIQUE INDEX traces_batch_items ON traces (trace_id) WHERE endpoint = 'batch_item'",
        # Items whose row was deleted while their results may still be fetched: they stay booked in the roll-ups. There
        # may be millions, so: 20 of the 32 digits are kept (80 bits: no two of them ever meet), the week stands for the
        # time, and the key begins with it, so that the oldest are at one end without a second index.
        "CREATE TABLE batch_items_gone (week INTEGER NOT NULL, item TEXT NOT NULL, PRIMARY KEY (week, item))"
        " WITHOUT ROWID",
        "CREATE TABLE batch_weeks_gone (week INTEGER PRIMARY KEY, items INTEGER NOT NULL)",  # how many are of each
        f"""
        CREATE TRIGGER batch_item_goes AFTER DELETE ON traces WHEN old.endpoint = 'batch_item' BEGIN
            INSERT OR IGNORE INTO batch_weeks_gone VALUES (old.started_at_ns / {WEEK_NS}, 0);
            INSERT OR IGNORE INTO batch_items_gone VALUES (old.started_at_ns / {WEEK_NS}, substr(old.trace_id, 1, 20));
            UPDATE batch_weeks_gone SET items = items + 1 WHERE week = old.started_at_ns / {WEEK_NS};
        END
        """,  # noqa: S608 - a constant of the house
        # A handful of weeks, and one look into each.
        """
        CREATE TRIGGER batch_item_stays_gone BEFORE INSERT ON traces WHEN new.endpoint = 'batch_item'
            AND EXISTS (SELECT 1 FROM batch_weeks_gone w CROSS JOIN batch_items_gone g
                ON g.week = w.week AND g.item = substr(new.trace_id, 1, 20)) BEGIN
            SELECT RAISE(IGNORE);
        END
        """,
    ),
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
