"""Upkeep of the trace store, in the writer's pauses: roll-ups caught up with, old rows deleted, free pages given back.

All of it is done in slices of a few milliseconds, each a transaction of its own: between two of them whatever has
arrived is stored first. A row is only deleted once it is in the roll-ups, which are kept much longer; in the file of a
newer router, whose roll-ups this one cannot write, rows are deleted all the same.

What a store that is too large gives up, in this order: minutes above their share, deleted items of batches (see the
schema) above theirs, rows, all deleted items, and only then roll-ups.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass

from router.trace.rollup import GROUPS_MAX, STEPS_S, SUMS, catch_up, rolled_up_to
from router.trace.schema import WEEK_NS

DAY_S = 86_400
MINUTES_KEPT_S = 35 * DAY_S  # at the least: as long as the rows are
ROLLUPS_KEPT_S = 400 * DAY_S
_KEPT_S = (MINUTES_KEPT_S, *(ROLLUPS_KEPT_S for _ in STEPS_S[1:]))
_RESULTS_S = 30 * DAY_S  # longer than the results of a Message Batch may be fetched (29 days after its creation)
SLICE = 400  # rows deleted at once, about ten milliseconds
_CATCH_UP = 2_000
_ROLL_S = 1.0
_SLICE_ROLLUPS = 2_000
_MINUTES_SHARE = 3  # a third of the greatest size: minutes are in the hours again
ROLLUP_BYTES = 160  # of the file for a roll-up, about
ITEMS_SHARE = 8  # an eighth of the greatest size, for deleted items of batches
ITEM_BYTES = 32  # of the file for one of them, about
_LOOK_S = 10.0  # between two looks for something to delete
_SAY_S = 3_600.0
_SHRINK_TO = 0.95  # of the greatest size, so that it is not reached again at once
_FREE_PAGES = 2_048
_VACUUM_PAGES = 256

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retention:
    """What is deleted: traces older than `keep_s` seconds, and the oldest while the file uses over `max_bytes`.

    None keeps everything. Free pages inside the file and its journal are not counted.
    """

    keep_s: float | None = None
    max_bytes: int | None = None


KEEP_ALL = Retention()


class Upkeep:
    """What is still to do for one file; used by its writer's thread alone. `clock` gives monotonic seconds."""

    def __init__(
        self, retention: Retention, now_ns: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._retention = retention
        self._now_ns = now_ns
        self._clock = clock
        self._next_roll = 0.0
        self._next_look = 0.0
        self._is_shrinking = False
        self._minutes = 0  # how many there are, about
        self._next_weigh = 0.0
        self._unsaid = 0
        self._unsaid_items = 0  # forgotten before their time
        self._next_say = 0.0
        self._next_tidy = 0.0
        self.has_rollups = False  # False for a file of a newer router that has others

    def opened(self, connection: sqlite3.Connection) -> None:
        """A file was opened: find out whether its roll-ups are those we know."""
        try:
            connection.execute(f"SELECT start_s,{','.join(SUMS)} FROM rollups LIMIT 0")  # noqa: S608 - constants of the house
            connection.execute("SELECT step_s, newest FROM deleted LIMIT 0")
            rolled_up_to(connection)
        except (sqlite3.OperationalError, TypeError) as error:
            self.has_rollups = False
            _log.error("trace store: no roll-ups are kept, the file has not those of this version: %s", error)
        else:
            self.has_rollups = True
        self._next_look = 0.0

    def step(self, connection: sqlite3.Connection, *, is_asked: bool = False) -> tuple[bool, int]:
        """Do one slice: (whether there is more to do now, traces deleted).

        Arrivals are rolled up once a second, because many at once share the rows they are added to; at once when
        `is_asked`. Raises sqlite3.Error, perhaps with a transaction open.
        """
        now = self._clock()
        if self.has_rollups and (is_asked or now >= self._next_roll) and self._is_behind(connection):
            connection.execute("BEGIN IMMEDIATE")
            rolled = catch_up(connection, _CATCH_UP)
            connection.execute("COMMIT")
            if rolled == _CATCH_UP:
                return True, 0
            self._next_roll = now + _ROLL_S
        if is_asked:
            return False, 0
        if now < self._next_look:
            return False, 0
        deleted, rollups = self._prune(connection)
        is_more = bool(deleted or rollups or self._vacuumed(connection))
        if not is_more:  # too big with nothing to delete: rows may only wait to be rolled up
            self._next_look = now + (_ROLL_S if self._is_shrinking else _LOOK_S)
        self._say(deleted, is_more)
        return is_more, deleted

    def _is_behind(self, connection: sqlite3.Connection) -> bool:
        newest = connection.execute("SELECT coalesce(max(seq), 0) FROM traces").fetchone()[0]
        return bool(newest > rolled_up_to(connection))

    def _prune(self, connection: sqlite3.Connection) -> tuple[int, int]:
        """Delete one slice: (traces, roll-ups and what is known of deleted items)."""
        now_ns, keep_s = self._now_ns(), self._retention.keep_s
        is_big = self._is_big(connection)
        if keep_s is None and not is_big:
            return 0, 0
        deleted = rollups = items = 0
        connection.execute("BEGIN IMMEDIATE")
        forgotten = _forget_items(connection, (now_ns - _RESULTS_S * 10**9) // WEEK_NS)
        delete_traces = _delete_traces if self.has_rollups else _delete_traces_alone
        steps = list(zip(STEPS_S, _KEPT_S, strict=True)) if self.has_rollups else []
        if keep_s is not None:
            deleted = delete_traces(connection, now_ns - int(keep_s * 1e9))
            for step_s, kept_s in steps:
                rollups += _delete_rollups(connection, step_s, now_ns / 1e9 - max(kept_s, keep_s))
        if is_big and self.has_rollups and self._has_many_minutes(connection):
            went = _delete_rollups(connection, STEPS_S[0], 2**62)
            self._minutes = self._minutes - went if went else 0  # others delete too
            rollups += went
        elif is_big and self._has_many_items(connection):
            items = _forget_items(connection, 2**62)
        elif is_big and not (deleted or forgotten):
            deleted = delete_traces(connection, 2**63 - 1)
            # Nothing else is left to delete: neither rows that only wait to be rolled up, nor what may come again.
            if not (deleted or rollups) and self.has_rollups and not self._is_behind(connection):
                items = _forget_items(connection, 2**62)
                for step_s, _ in steps:
                    if not (items or rollups):
                        rollups = _delete_rollups(connection, step_s, 2**62)
        if rollups and self._clock() >= self._next_tidy:
            _tidy_groups(connection)
            self._next_tidy = self._clock() + _SAY_S
        connection.execute("COMMIT")
        self._unsaid_items += items
        return deleted, rollups + forgotten + items

    def _is_big(self, connection: sqlite3.Connection) -> bool:
        most = self._retention.max_bytes
        if most is None:
            return False
        pages, free, size = (_pragma(connection, name) for name in ("page_count", "freelist_count", "page_size"))
        self._is_shrinking = (pages - free) * size > (most * _SHRINK_TO if self._is_shrinking else most)
        return self._is_shrinking

    def _has_many_minutes(self, connection: sqlite3.Connection) -> bool:
        """Whether minutes use more than their share; they are counted once an hour, as that reads all of them."""
        if self._clock() >= self._next_weigh:
            count = "SELECT count(*) FROM rollups WHERE step_s = ?"
            self._minutes = connection.execute(count, (STEPS_S[0],)).fetchone()[0]
            self._next_weigh = self._clock() + _SAY_S
        return self._minutes * ROLLUP_BYTES > (self._retention.max_bytes or 0) // _MINUTES_SHARE

    def _has_many_items(self, connection: sqlite3.Connection) -> bool:
        """Whether deleted items of batches use more than their share."""
        count = connection.execute("SELECT coalesce(sum(items), 0) FROM batch_weeks_gone").fetchone()[0]
        return bool(count * ITEM_BYTES > (self._retention.max_bytes or 0) // ITEMS_SHARE)

    def _vacuumed(self, connection: sqlite3.Connection) -> bool:
        """Give a few free pages back to the disk, where the file was made for it and has many."""
        if _pragma(connection, "auto_vacuum") != 2 or _pragma(connection, "freelist_count") < _FREE_PAGES:
            return False
        connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        return True

    def _say(self, deleted: int, is_more: bool) -> None:
        self._unsaid += deleted
        if is_more or not (self._unsaid or self._unsaid_items) or self._clock() < self._next_say:
            return
        if self._unsaid:
            kept = "; they stay in the roll-ups" if self.has_rollups else ""
            _log.info("trace store: %d traces deleted by age or size%s", self._unsaid, kept)
        if self._unsaid_items:
            _log.warning(
                "trace store: too large to remember %d items of batches whose results may be fetched again, which would"
                " book them twice: raise `traces_max_mb`",
                self._unsaid_items,
            )
        self._unsaid = self._unsaid_items = 0
        self._next_say = self._clock() + _SAY_S


def _delete_traces(connection: sqlite3.Connection, before_ns: int) -> int:
    """Delete the oldest slice of what is older and rolled up. The mark follows, as SQLite may use a number again."""
    starts = connection.execute(
        "DELETE FROM traces WHERE seq IN (SELECT seq FROM traces WHERE started_at_ns < ?"
        " AND seq <= (SELECT seq FROM rollup_state) ORDER BY started_at_ns LIMIT ?) RETURNING started_at_ns",
        (before_ns, SLICE),
    ).fetchall()
    if starts:
        _remember(connection, 0, max(starts)[0])
        connection.execute("UPDATE rollup_state SET seq = min(seq, (SELECT coalesce(max(seq), 0) FROM traces))")
    return len(starts)


def _delete_traces_alone(connection: sqlite3.Connection, before_ns: int) -> int:
    """Delete the oldest slice where the roll-ups are not ours: retention is a promise, and their mark may stand still.

    All but the newest arrival, so that SQLite uses no number again while whoever keeps the roll-ups has not seen it.
    """
    return connection.execute(
        "DELETE FROM traces WHERE seq IN (SELECT seq FROM traces WHERE started_at_ns < ?"
        " AND seq < (SELECT max(seq) FROM traces) ORDER BY started_at_ns LIMIT ?)",
        (before_ns, SLICE),
    ).rowcount


def _delete_rollups(connection: sqlite3.Connection, step_s: int, before_s: float) -> int:
    starts = connection.execute(
        "DELETE FROM rollups WHERE step_s = ? AND start_s < ? AND start_s <= coalesce((SELECT start_s FROM rollups"
        " WHERE step_s = ? ORDER BY start_s LIMIT 1 OFFSET ?), ?) RETURNING start_s",
        (step_s, before_s, step_s, _SLICE_ROLLUPS, 2**62),
    ).fetchall()
    if starts:
        _remember(connection, step_s, max(starts)[0])
    return len(starts)


def _forget_items(connection: sqlite3.Connection, before_week: int) -> int:
    """Forget a slice of the oldest deleted items of batches, of weeks before that one; how many. See the schema."""
    row = connection.execute("SELECT min(week) FROM batch_weeks_gone WHERE week < ?", (before_week,)).fetchone()
    if row[0] is None:
        return 0
    week = row[0]
    count = connection.execute(
        "DELETE FROM batch_items_gone WHERE week = ?1 AND item <= coalesce((SELECT item FROM batch_items_gone"
        " WHERE week = ?1 ORDER BY item LIMIT 1 OFFSET ?2), x'')",  # a blob: greater than any text
        (week, _SLICE_ROLLUPS),
    ).rowcount
    if connection.execute("SELECT 1 FROM batch_items_gone WHERE week = ? LIMIT 1", (week,)).fetchone() is None:
        connection.execute("DELETE FROM batch_weeks_gone WHERE week = ?", (week,))
    else:
        connection.execute("UPDATE batch_weeks_gone SET items = items - ? WHERE week = ?", (count, week))
    return count


def _remember(connection: sqlite3.Connection, step_s: int, newest: int) -> None:
    """Reports read nothing of this step (0: rows) from behind what was deleted of it."""
    connection.execute(
        "INSERT INTO deleted VALUES (?, ?) ON CONFLICT (step_s) DO UPDATE SET newest = max(newest, excluded.newest)",
        (step_s, newest),
    )


def _tidy_groups(connection: sqlite3.Connection) -> None:
    """Names that no roll-up has any more make room, once there are many."""
    if connection.execute("SELECT count(*) FROM rollup_groups").fetchone()[0] > GROUPS_MAX // 2:
        connection.execute("DELETE FROM rollup_groups WHERE id NOT IN (SELECT group_id FROM rollups)")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
