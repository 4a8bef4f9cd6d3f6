"""One SQLite file in which what is written at the same time becomes durable together.

An fsync costs a hundred times what a row costs, so whatever is asked while one commit is under way shares the next.
Writing and reading have a connection and a thread each. A failure is everybody's whose write was in that commit; what
is wrong with one piece of work is its own. After a failure locks are hardly waited for, for a while: else all that
came meanwhile would wait in turn.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from router.errors import JobsUnavailable
from router.jobs.schema import is_open_to_others, opened_or_anew
from router.trace.place import inode

Work = Callable[[sqlite3.Connection], Any]

_READ_WAIT_S = 0.5  # for a lock, which reading hardly ever needs
_WRITE_WAIT_S = 2.0
_RESTING_WAIT_S = 0.02
_SLOW_S = 2.0  # that a disk may take besides
_REST_S = 5.0
_MOST_TOGETHER = 500
_MOST_BYTES_TOGETHER = 32 * 1024 * 1024

_T = TypeVar("_T")
_log = logging.getLogger("router")


class _Asked:
    """A piece of work that waits for its commit, and the future of whoever asked."""

    __slots__ = ("future", "is_durable", "size", "work")

    def __init__(self, work: Work, future: asyncio.Future[Any], size: int, *, is_durable: bool) -> None:
        self.work: Work | None = work
        self.future = future
        self.size = size
        self.is_durable = is_durable

    def settle(self, outcome: object) -> None:
        """Hand over what was given, or an exception as a value: nobody may wait any more."""
        if not self.future.done():
            self.future.set_result(outcome)


class _Side:
    """A connection and the one thread that uses it."""

    __slots__ = ("connection", "inode", "is_failing", "thread")

    def __init__(self, name: str) -> None:
        self.thread = ThreadPoolExecutor(1, name)
        self.connection: sqlite3.Connection | None = None
        self.inode: tuple[int, int] | None = None
        self.is_failing = False


class GroupCommit:
    """The file at `path`, made where it is missing, opened at the first use. It belongs to one event loop.

    `now_s` is Unix time. After a failed write, `rest_s` seconds pass in which a lock is hardly waited for.
    """

    def __init__(self, path: Path, *, now_s: Callable[[], float] = time.time, rest_s: float = _REST_S) -> None:
        self.path = path
        self.failures = 0
        self._now_s = now_s
        self._rest_s = rest_s
        self._writer = _Side("router-deferred")
        self._reader = _Side("router-deferred-read")
        self._opening = threading.Lock()
        self._waiting: deque[_Asked] = deque()
        self._is_busy = False  # a commit is under way, or about to be
        self._is_closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._rests_until_s = 0.0  # of the monotonic clock

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    async def write(self, work: Callable[[sqlite3.Connection], _T], *, size: int = 0, is_durable: bool = True) -> _T:
        """What `work` gives, once it is on the disk; with `is_durable` False once others see it.

        `work` runs in the writer's thread, inside a transaction with others. `size` is about what it writes, in bytes.
        Raises JobsUnavailable, and what is wrong with the work itself.
        """
        if self._is_closed:
            raise self._unavailable()
        loop = asyncio.get_running_loop()
        asked = _Asked(work, loop.create_future(), size, is_durable=is_durable)
        self._waiting.append(asked)
        if not self._is_busy:
            self._is_busy = True
            self._idle.clear()
            loop.call_soon(self._commit_next)  # behind what else asks in this turn
        limit_s = _WRITE_WAIT_S + _SLOW_S
        late = TimeoutError(f"no answer within {limit_s:g} seconds")
        timer = loop.call_later(limit_s, asked.settle, late)
        try:
            outcome = await asked.future
        finally:
            timer.cancel()
            asked.work = None  # it may stand in line yet, and be large
        if outcome is late:
            self._failed(self._writer, late)
        if isinstance(outcome, _FAILURES):
            raise self._unavailable() from outcome
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]  # it is what `work` gave

    async def read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """What `work` gives, in the reader's thread. Raises JobsUnavailable, and what is wrong with the work itself."""
        if self._is_closed:
            raise self._unavailable()
        try:
            async with asyncio.timeout(_READ_WAIT_S + _SLOW_S):
                found = await asyncio.get_running_loop().run_in_executor(self._reader.thread, self._read, work)
        except _FAILURES as exc:
            self._failed(self._reader, exc)
            raise self._unavailable() from exc
        self._reader.is_failing = False
        return found

    async def close(self) -> None:
        """Close the file, behind what is under way. Calls after it fail."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(TimeoutError):  # a disk that hangs holds up nobody's end
            async with asyncio.timeout(_WRITE_WAIT_S + _SLOW_S):
                await self._idle.wait()
        for side in (self._writer, self._reader):
            with suppress(TimeoutError):
                async with asyncio.timeout(_SLOW_S):
                    await asyncio.get_running_loop().run_in_executor(side.thread, _shut, side)
            side.thread.shutdown(wait=False)
        for asked in self._waiting:
            asked.settle(RuntimeError("the store is closed"))

    def _commit_next(self) -> None:
        """Begin a commit of what waits, as far as it goes together."""
        batch: list[_Asked] = []
        works: list[Work] = []
        size = 0
        while self._waiting and len(batch) < _MOST_TOGETHER and size < _MOST_BYTES_TOGETHER:
            asked = self._waiting.popleft()
            if asked.work is not None and not asked.future.done():  # else nobody waits for it any more
                batch.append(asked)
                works.append(asked.work)
                size += asked.size
        if not batch:
            self._is_busy = False
            self._idle.set()
            return
        is_durable = any(asked.is_durable for asked in batch)
        loop = asyncio.get_running_loop()
        try:
            committed = loop.run_in_executor(self._writer.thread, self._commit, works, is_durable)
        except RuntimeError as exc:  # the thread was ended, or the interpreter ends
            committed = loop.create_future()
            committed.set_exception(exc)
        committed.add_done_callback(partial(self._committed, batch))

    def _committed(self, batch: list[_Asked], committed: asyncio.Future[list[Any]]) -> None:
        error = asyncio.CancelledError() if committed.cancelled() else committed.exception()
        if error is None:
            self._writer.is_failing = False
            for asked, outcome in zip(batch, committed.result(), strict=True):
                asked.settle(outcome)
        else:
            failure = error if isinstance(error, _FAILURES) else RuntimeError(f"{type(error).__name__} in a commit")
            self._failed(self._writer, failure)
            for asked in batch:
                asked.settle(failure)
        self._commit_next()

    def _commit(self, works: Sequence[Work], is_durable: bool) -> list[Any]:
        """Do all of it in one transaction, in the writer's thread. An exception of one is given in its place."""
        outcomes: list[Any] = []
        connection: sqlite3.Connection | None = None
        try:
            connection = self._opened(self._writer)
            is_resting = time.monotonic() < self._rests_until_s
            wait_s = _RESTING_WAIT_S if is_resting else _WRITE_WAIT_S
            connection.execute(f"PRAGMA busy_timeout={int(wait_s * 1e3)}")
            connection.execute(f"PRAGMA synchronous={'FULL' if is_durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            for work in works:
                connection.execute("SAVEPOINT one")
                try:
                    outcomes.append(work(connection))
                except Exception as exc:  # whatever it is, it must not take the others along
                    if isinstance(exc, _FAILURES) and not isinstance(exc, _ITS_OWN):
                        raise
                    connection.execute("ROLLBACK TO one")
                    outcomes.append(exc)
                connection.execute("RELEASE one")
            connection.execute("COMMIT")
        except BaseException:
            if time.monotonic() >= self._rests_until_s:
                self._rests_until_s = time.monotonic() + self._rest_s
            if connection is not None and connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._rests_until_s = 0.0
        return outcomes

    def _read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        return work(self._opened(self._reader))

    def _opened(self, side: _Side) -> sqlite3.Connection:
        """The connection; one to a file that was removed or replaced is opened anew."""
        if side.connection is not None and side.inode != inode(self.path):
            _shut(side)
        if side.connection is None:
            with self._opening:
                connection = opened_or_anew(self.path, _READ_WAIT_S, int(self._now_s()))
            if is_open_to_others(self.path):
                connection.close()
                raise PermissionError(f"`{self.path}` can be read by others, and this user may not change that")
            connection.execute("PRAGMA secure_delete=ON")  # what has ended is not to be found in free pages
            side.connection, side.inode = connection, inode(self.path)
        return side.connection

    def _failed(self, side: _Side, error: Exception) -> None:
        """Count it, and say it once."""
        self.failures += 1
        if not side.is_failing:
            _log.error("jobs: `%s` fails (%s); deferred requests are refused meanwhile", self.path, error)
        side.is_failing = True

    def _unavailable(self) -> JobsUnavailable:
        return JobsUnavailable("deferred requests cannot be looked up or kept now", retryable=True)


# RuntimeError: the thread was ended meanwhile
_FAILURES = (sqlite3.Error, OSError, RuntimeError)
# What one piece of work does wrong, with the file as sound as before
_ITS_OWN = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError)


def _shut(side: _Side) -> None:
    if side.connection is not None:
        side.connection.close()
        side.connection = None
