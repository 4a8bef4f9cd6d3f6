"""What `python -m bench.sigkill` finds afterwards: rows and sums of the trace store, entries of the cache."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import redis

from bench.sigkill_audit import Entry, Row
from router.cache.codec import MAX_BODY_BYTES, EntryCodec
from router.cache.shared import ENTRY_PREFIX
from router.settings import resolve
from router.stores import cache_secret
from router.trace.rollup import STEPS_S, catch_up, rolled_up_to


class Total(NamedTuple):
    """Some rows or roll-ups: requests, and pico-dollars of those that have a baseline."""

    requests: int
    cost_pusd: int


class Sums(NamedTuple):
    """SQLite's word on its file; rows that were not rolled up yet; rows and roll-ups before them, and with them."""

    file: str
    behind: int
    before: tuple[Total, Total]
    whole: tuple[Total, Total]

    @property
    def agree(self) -> bool:
        """Whether the file is sound and the roll-ups are the sums of the rows, now and when they had caught up."""
        return self.file == "ok" and self.before[0] == self.before[1] and self.whole[0] == self.whole[1]

    def __str__(self) -> str:
        rows, rolled = self.whole
        return (
            f"store: {self.file}; {rows.requests:,} rows at {rows.cost_pusd:,} pico-dollars, rolled up"
            f" {rolled.requests:,} at {rolled.cost_pusd:,}; at the end {self.behind:,} rows waited to be rolled up"
        )


def rows_of(store: Path) -> list[Row]:
    """The trace store as the audit reads it."""
    with contextlib.closing(sqlite3.connect(store)) as connection:
        found = connection.execute(
            "SELECT trace_id, started_at_ns, outcome, cache, cost_pusd, baseline_pusd, saved_pusd, request_id,"
            " attempts, coalesce(cache_reason, ''), coalesce(why, '') LIKE '%booked from the journal%'"
            " FROM traces"
        ).fetchall()
    rows = []
    for trace, started_ns, outcome, cache, cost, baseline, saved, name, attempts, reason, is_rescued in found:
        calls = [attempt["request_id"] for attempt in json.loads(attempts or "[]")]
        if is_rescued and calls:  # the journal keeps the id of the answer, which is that of its last attempt
            calls = [name]
        rows.append(
            Row(trace, started_ns, outcome, cache, cost, baseline, saved, tuple(calls), reason, bool(is_rescued))
        )
    return rows


def sums_of(store: Path) -> Sums:
    """SQLite's word on its file, and its rows against their roll-ups.

    Roll-ups follow the rows about once a second, so the last rows of a run may be behind the mark: first what is before
    it is compared, then the router's own catching up does the rest, and all is.
    """
    with contextlib.closing(sqlite3.connect(store)) as connection:
        check = connection.execute("PRAGMA integrity_check").fetchone()[0]
        before = _rows_and_rolled(connection)
        with connection:
            behind = sum(iter(lambda: catch_up(connection, 1_000), 0))
        return Sums(check, behind, before, _rows_and_rolled(connection))


def _rows_and_rolled(connection: sqlite3.Connection) -> tuple[Total, Total]:
    rows = connection.execute(
        "SELECT count(*), coalesce(sum(cost_pusd) FILTER (WHERE baseline_pusd IS NOT NULL), 0) FROM traces"
        " WHERE seq <= ?",
        (rolled_up_to(connection),),
    ).fetchone()
    rolled = connection.execute(
        "SELECT coalesce(sum(requests), 0), coalesce(sum(cost_uusd) * 1000000 + sum(cost_rest_pusd), 0)"
        " FROM rollups WHERE step_s = ?",
        (STEPS_S[-1],),
    ).fetchone()
    return Total(*rows), Total(*rolled)


def entries_of(cache: str, config: Path) -> tuple[list[Entry], int]:
    """What Redis holds, and how many entries nobody could read."""
    codec = EntryCodec(cache_secret(resolve({}, {}, str(config)).settings))
    entries, unreadable = [], 0
    with contextlib.closing(redis.Redis.from_url(cache)) as client:
        for name in client.scan_iter(match=f"{ENTRY_PREFIX}*", count=1_000):
            key = name.decode().removeprefix(ENTRY_PREFIX).strip("{}")
            data = client.get(name)
            entry = codec.decode(key, data, MAX_BODY_BYTES) if isinstance(data, bytes) else None
            if entry is None:
                unreadable += 1
            else:
                entries.append(Entry(key, sha256(entry.body).digest()))
    return entries, unreadable
