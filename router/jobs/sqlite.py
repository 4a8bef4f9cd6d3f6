"""What was decided about the items of Message Batches, and whose batches are, in one SQLite file.

Writing and reading have a connection and a thread each: neither waits for the other, nor the event loop for them. The
commit that says whose a batch is, and all before it, are on the disk when it returns. Routers of one host may share
the file. While it is locked or slow, a client waits a moment at the most: after a failure writing rests, and puts fail
at once. What is owed, and what is too old, is seen to by a task behind the requests.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from router.errors import JobsUnavailable
from router.jobs.decision import KEPT
from router.jobs.schema import opened_or_anew
from router.trace.place import inode

KEPT_S = 30 * 86_400.0  # results can be fetched for 29 days. Source: batch documentation
MOST_IN_MEMORY = 200_000  # entries, some 100 MB
_LOCK_WAIT_S = 0.5
_LINK_WAIT_S = 2.0  # for a lock: whose a batch is is worth more than what was decided about it
_LAST_WAIT_S = 1.0  # when the process ends
_SLOW_S = 2.0  # that a disk may take besides
_REST_S = 5.0
_BREATH_S = 0.02  # between two slices of what is too old
_NAMES_AT_ONCE = 500
_PRUNED_AT_ONCE = 2_000
_MOST_OWED = 1_000

_T = TypeVar("_T")
_log = logging.getLogger("router")


@dataclass(slots=True, eq=False)
class _Side:
    """A connection and the one thread that uses it."""

    thread: ThreadPoolExecutor
    connection: sqlite3.Connection | None = None
    inode: tuple[int, int] | None = None
    is_failing: bool = False


class SqliteDecisions:
    """A `seams.BatchDecisions` over one file, made where it is missing; `path` None: in memory, until it is closed.

    `now_s` is Unix time. The file is opened at the first use, so that a store can always be made. In memory are
    `most_in_memory` entries at the most; those of the oldest batches go first. After a failed write, writing rests for
    `rest_s` seconds.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        now_s: Callable[[], float] = time.time,
        kept_s: float = KEPT_S,
        rest_s: float = _REST_S,
        most_in_memory: int = MOST_IN_MEMORY,
    ) -> None:
        self._path = path
        self._now_s = now_s
        self._kept_s = kept_s
        self._rest_s = rest_s
        self._most_in_memory = most_in_memory
        self._in_memory = 0  # entries, or a few too many
        self._writer = _Side(ThreadPoolExecutor(1, "router-jobs"))
        self._reader = self._writer if path is None else _Side(ThreadPoolExecutor(1, "router-jobs-read"))
        self._opening = threading.Lock()
        self._owed: dict[str, tuple[str, str]] = {}  # batch -> ticket and tenant that the file did not take
        self._unforgotten: dict[str, None] = {}  # tickets
        names = ("put", "linked", "found", "missing", "failures", "pruned", "dropped")
        self._counts = dict.fromkeys(names, 0)
        self._is_closed = False
        self._rests_until_s = 0.0  # of the monotonic clock
        self._behind: asyncio.Task[None] | None = None

    async def put(self, ticket: str, entries: Mapping[str, bytes]) -> bool:
        """See `BatchDecisions`. In memory no answers are kept."""
        if self._path is None and any(name.startswith(KEPT) for name in entries):
            return False
        if time.monotonic() < self._rests_until_s:
            self._counts["failures"] += 1
            return False

        def work(connection: sqlite3.Connection) -> bool:
            number = self._number(connection, ticket)
            rows = ((number, name, value) for name, value in sorted(entries.items()))
            connection.executemany("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?)", rows)
            if self._path is None:
                self._make_room(connection, len(entries))
            return True

        is_done = await self._write(work) is not None
        self._counts["put"] += len(entries) if is_done else 0
        return is_done

    async def link(self, ticket: str, batch: str, tenant: str) -> bool:
        """See `BatchDecisions`."""
        self._owed[batch] = ticket, tenant
        while len(self._owed) > _MOST_OWED:
            lost = next(iter(self._owed))
            del self._owed[lost]
            self._say_lost(lost)
        try:
            await self._write(_nothing, wait_s=_LINK_WAIT_S, is_durable=True)
        finally:  # whoever is cancelled leaves it owed
            self._see_to_the_rest()
        if self._is_closed and batch in self._owed:
            self._say_lost(batch)
        return batch not in self._owed

    async def forget(self, ticket: str) -> None:
        """See `BatchDecisions`."""
        self._unforgotten[ticket] = None
        while len(self._unforgotten) > _MOST_OWED:
            del self._unforgotten[next(iter(self._unforgotten))]
        self._see_to_the_rest()

    async def of(self, batch: str, names: Sequence[str]) -> Mapping[str, bytes] | None:
        """See `BatchDecisions`."""
        known = self._owed.get(batch)

        def work(connection: sqlite3.Connection) -> dict[str, bytes]:
            column, value = ("ticket", known[0]) if known is not None else ("batch", batch)
            row = connection.execute(f"SELECT number FROM tickets WHERE {column} = ?", (value,)).fetchone()  # noqa: S608 - one of two words
            found: dict[str, bytes] = {}
            if row is None:
                return found
            for at in range(0, len(names), _NAMES_AT_ONCE):
                some = names[at : at + _NAMES_AT_ONCE]
                marks = ",".join("?" * len(some))
                found.update(
                    connection.execute(
                        f"SELECT name, value FROM decisions WHERE number = ? AND name IN ({marks})",  # noqa: S608 - marks
                        (row[0], *some),
                    )
                )
            return found

        found = await self._run(self._reader, work)
        if found is None:
            return None
        self._counts["found"] += len(found)
        self._counts["missing"] += sum(name not in found for name in names if not name.startswith(KEPT))
        return found

    async def owners(self, batches: Sequence[str]) -> Mapping[str, str]:
        """See `BatchDecisions`."""
        owed = {batch: self._owed[batch][1] for batch in batches if batch in self._owed}

        def work(connection: sqlite3.Connection) -> dict[str, str]:
            marks = ",".join("?" * len(batches))
            asked = f"SELECT batch, tenant FROM tickets WHERE batch IN ({marks})"  # noqa: S608 - marks
            return dict(connection.execute(asked, tuple(batches)))

        found = await self._run(self._reader, work)
        if found is None:
            raise JobsUnavailable("whose a batch is cannot be looked up now", retryable=True)
        return {**found, **owed}

    async def some(self, batch: str, limit: int) -> Mapping[str, bytes]:
        """See `BatchDecisions`."""

        def work(connection: sqlite3.Connection) -> dict[str, bytes]:
            asked = (
                "SELECT name, value FROM decisions WHERE number = (SELECT number FROM tickets WHERE batch = ?)"
                " AND name >= '$' ORDER BY name LIMIT ?"  # behind `#`, which shared ones begin with
            )
            return dict(connection.execute(asked, (batch, limit)))

        return await self._run(self._reader, work) or {}

    def stats(self) -> Mapping[str, int]:
        """Counts since the start; `owed` are batches whose owner is known to this process alone."""
        return {**self._counts, "owed": len(self._owed)}

    async def close(self) -> None:
        """Close the file, behind what is under way and what is owed. Calls after it fail."""
        if self._is_closed:
            return
        if self._behind is not None:
            self._behind.cancel()
            with suppress(asyncio.CancelledError):
                await self._behind
        if self._owed or self._unforgotten:
            self._rests_until_s = 0.0  # it is the last time
            await self._write(_nothing, wait_s=_LAST_WAIT_S, is_durable=True)
        self._is_closed = True
        for side in {id(each): each for each in (self._writer, self._reader)}.values():
            with suppress(TimeoutError):  # a disk that hangs holds up nobody's end
                async with asyncio.timeout(_SLOW_S):
                    await asyncio.get_running_loop().run_in_executor(side.thread, _shut, side)
            side.thread.shutdown(wait=False)
        for lost in self._owed:
            self._say_lost(lost)

    async def settled(self) -> None:
        """Wait until nothing is owed and nothing too old is there, as far as this process sees to it."""
        if self._behind is not None:
            await self._behind

    def _say_lost(self, batch: str) -> None:
        _log.error("jobs: whose batch `%s` is could not be kept; nobody can reach it through the router", batch)

    def _see_to_the_rest(self) -> None:
        if not self._is_closed and (self._behind is None or self._behind.done()):
            self._behind = asyncio.get_running_loop().create_task(self._rest_of_it())

    async def _rest_of_it(self) -> None:
        """Write what is owed, as soon as the file takes it again, and delete what is too old, slice by slice."""
        while True:
            while (self._owed or self._unforgotten) and not self._is_closed:
                await asyncio.sleep(self._rests_until_s - time.monotonic())
                await self._write(_nothing, is_durable=True)
            while await self._write(self._pruned):  # noqa: ASYNC110 - nothing is waited for: each turn is a slice
                await asyncio.sleep(_BREATH_S)
            if self._is_closed or not (self._owed or self._unforgotten):  # nothing came meanwhile
                return

    async def _write(
        self, work: Callable[[sqlite3.Connection], _T], *, wait_s: float = _LOCK_WAIT_S, is_durable: bool = False
    ) -> _T | None:
        """What `work` gives, in a transaction that writes what is owed too; None when the file failed.

        `wait_s` is how long a lock is waited for; while writing rests, which it does after a failure, it is not.
        """
        owed, forgotten = dict(self._owed), list(self._unforgotten)

        def rest() -> None:
            if time.monotonic() >= self._rests_until_s:
                self._rests_until_s = time.monotonic() + self._rest_s

        def attempt(connection: sqlite3.Connection) -> _T:
            is_resting = time.monotonic() < self._rests_until_s
            connection.execute(f"PRAGMA busy_timeout={0 if is_resting else int(wait_s * 1e3)}")
            connection.execute(f"PRAGMA synchronous={'FULL' if is_durable or owed else 'NORMAL'}")
            try:
                connection.execute("BEGIN IMMEDIATE")
                found = work(connection)
                for batch, (ticket, tenant) in owed.items():
                    number = self._number(connection, ticket)
                    connection.execute(
                        "UPDATE OR IGNORE tickets SET batch = ?, tenant = ? WHERE number = ?", (batch, tenant, number)
                    )
                for ticket in forgotten:
                    connection.execute("UPDATE tickets SET created_s = 0 WHERE ticket = ? AND batch IS NULL", (ticket,))
                connection.execute("COMMIT")
            except BaseException:
                rest()  # here already: what waits for this thread is not to wait for the lock as well
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return found

        found = await self._run(self._writer, attempt, wait_s)
        if found is None:
            rest()
            return None
        self._rests_until_s = 0.0
        for batch in owed:
            self._counts["linked"] += self._owed.pop(batch, None) is not None
        for ticket in forgotten:
            self._unforgotten.pop(ticket, None)
        return found

    async def _run(
        self, side: _Side, work: Callable[[sqlite3.Connection], _T], wait_s: float = _LOCK_WAIT_S
    ) -> _T | None:
        """What `work` gives, in the side's thread; None when the file failed, which is counted, and said once."""
        error: Exception
        try:
            if self._is_closed:
                raise RuntimeError("the store is closed")
            async with asyncio.timeout(wait_s + _SLOW_S):
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(side.thread, lambda: work(self._opened(side)))
        except TimeoutError:
            error = TimeoutError(f"no answer within {wait_s + _SLOW_S:g} seconds")
        except (sqlite3.Error, OSError, RuntimeError) as exc:  # RuntimeError: the thread was ended meanwhile
            error = exc
        else:
            side.is_failing = False
            return found
        self._counts["failures"] += 1
        if not side.is_failing:
            _log.error("jobs: `%s` fails (%s); decisions about batches are not kept", self._path, error)
        side.is_failing = True
        return None

    def _opened(self, side: _Side) -> sqlite3.Connection:
        """The connection; a file that is no database is set aside, one that was removed or replaced is opened anew."""
        if side.connection is not None and self._path is not None and side.inode != inode(self._path):
            _shut(side)
        if side.connection is None:
            with self._opening:  # else one side could set aside the file that the other has just begun
                side.connection = opened_or_anew(self._path, _LOCK_WAIT_S, int(self._now_s()))
            side.inode = None if self._path is None else inode(self._path)
        return side.connection

    def _number(self, connection: sqlite3.Connection, ticket: str) -> int:
        connection.execute(
            "INSERT OR IGNORE INTO tickets (ticket, created_s) VALUES (?, ?)", (ticket, int(self._now_s()))
        )
        return int(connection.execute("SELECT number FROM tickets WHERE ticket = ?", (ticket,)).fetchone()[0])

    def _pruned(self, connection: sqlite3.Connection) -> bool:
        """Delete some of what is too old; whether there may be more."""
        old = connection.execute(
            "SELECT number FROM tickets WHERE created_s < ? ORDER BY created_s LIMIT 1",
            (int(self._now_s() - self._kept_s),),
        ).fetchone()
        if old is None:
            return False
        gone = connection.execute(
            "DELETE FROM decisions WHERE number = ? AND name IN (SELECT name FROM decisions WHERE number = ? LIMIT ?)",
            (old[0], old[0], _PRUNED_AT_ONCE),
        ).rowcount
        self._counts["pruned"] += gone
        if gone < _PRUNED_AT_ONCE:
            connection.execute("DELETE FROM tickets WHERE number = ?", old)
            connection.execute("PRAGMA incremental_vacuum(1000)")
        return True

    def _make_room(self, connection: sqlite3.Connection, added: int) -> None:
        """Drop what was decided for the oldest batches where there is too much in memory, and the oldest tickets."""
        most = self._most_in_memory
        newest = connection.execute("SELECT max(number) FROM tickets").fetchone()[0]
        for table in ("decisions", "tickets"):
            connection.execute(f"DELETE FROM {table} WHERE number <= ?", (newest - most,))  # noqa: S608 - one of two words
        self._in_memory += added
        if self._in_memory <= most:
            return
        counted = connection.execute(
            "SELECT number, count(*) FROM decisions GROUP BY number ORDER BY number"
        ).fetchall()
        held = sum(count for _, count in counted)
        for number, count in counted[:-1]:  # not of the one that is being made
            if held <= most * 0.9:
                break
            connection.execute("DELETE FROM decisions WHERE number = ?", (number,))
            held -= count
            self._counts["dropped"] += count
        self._in_memory = held


def _nothing(_: sqlite3.Connection) -> bool:
    """Of its own; what is owed is written with it."""
    return True


def _shut(side: _Side) -> None:
    if side.connection is not None:
        side.connection.close()
        side.connection = None
