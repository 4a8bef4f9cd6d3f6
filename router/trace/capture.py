"""The capture file: what requests said and were answered, for operators who switched that on.

Off by default. It is not the trace store: a file of its own, with a retention of its own, readable by its owner only.
The request path keeps references and makes one append; cutting, redacting and writing happen in a thread. It fails
open: content that has no room is dropped and counted. Retention goes on while capture is off, as long as there is a
file. A file that cannot be read as a database is left alone, because moving it would take it out of the retention.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from router.errors import TraceStoreError
from router.trace.capture_redact import MARGIN, Cleaned, Rule, clean
from router.trace.capture_stream import is_stream, joined
from router.trace.captured import Content
from router.trace.export import started_at

CLOSE_S = 5.0
_BATCH = 50
_PAUSE_S = 0.2
_REFUSED_PAUSE_S = 2.0
_PRUNE_S = 60.0
_WIDE = 8  # a stream is kept at this many times the size: most of its bytes are the frames of its deltas
_COLUMNS = (
    *("trace_id", "started_at_ns", "request", "request_bytes", "request_is_cut"),
    *("answer", "answer_bytes", "answer_is_cut", "redacted"),
)
_TABLE = """
CREATE TABLE IF NOT EXISTS content (
    trace_id TEXT NOT NULL,         -- not unique: a caller may continue one W3C trace in many requests
    started_at_ns INTEGER NOT NULL,
    request TEXT NOT NULL,
    request_bytes INTEGER NOT NULL, -- as the client sent them; what stands above may be cut
    request_is_cut INTEGER NOT NULL,
    answer TEXT NOT NULL,
    answer_bytes INTEGER NOT NULL,
    answer_is_cut INTEGER NOT NULL,
    redacted INTEGER NOT NULL       -- places where something was taken out
)
"""
_INDEXES = (
    "CREATE INDEX IF NOT EXISTS content_by_id ON content (trace_id, started_at_ns)",
    "CREATE INDEX IF NOT EXISTS content_by_start ON content (started_at_ns)",
)
_INSERT = f"INSERT INTO content ({','.join(_COLUMNS)}) VALUES ({','.join('?' * len(_COLUMNS))})"  # noqa: S608 - constants of the house

_log = logging.getLogger(__name__)


class Capture:
    """A `seams.ContentSink` over one SQLite file.

    `share` is the part of requests to keep, 0 to 1; `is_errors_only` keeps those that did not end well. `max_bytes`
    bounds each body, `keep_s` is how long content stays. `queue_max` and `queue_max_bytes` bound what waits in memory.
    `now_ns` is Unix time. The file is opened by the writer thread; with `share` 0 it is not made, only pruned.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        share: float,
        is_errors_only: bool = False,
        max_bytes: int = 64 * 1024,
        keep_s: float = 7 * 86_400.0,
        rules: Sequence[Rule] = (),
        queue_max: int = 1_000,
        queue_max_bytes: int = 64 * 1024 * 1024,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.path = Path(path)
        self._share = share
        self._is_errors_only = is_errors_only
        self._max_bytes = max_bytes
        self._keep_ns = int(keep_s * 1e9)
        self._rules = tuple(rules)
        self._queue_max, self._queue_max_bytes = queue_max, queue_max_bytes
        self._now_ns = now_ns
        self._queue: deque[_Waiting | threading.Event] = deque()
        self._bytes_in = self._bytes_out = 0  # each is written by one side only; the difference waits
        self._rows: list[tuple[Any, ...]] = []  # redacted and not in the file yet; the writer's own
        self._connection: sqlite3.Connection | None = None
        self._is_refused = False
        self._is_to_truncate = False  # the journal may hold what was deleted
        self._prune_at = 0.0
        self._counts = {"stored": 0, "dropped": 0, "failed": 0, "redacted": 0, "pruned": 0, "write_errors": 0}
        self._count_lock = threading.Lock()
        self._wake = threading.Event()
        self._is_closed = False
        self._close_by = 0.0
        self._is_given_up = self._is_left = False  # `close` waits no longer; it has counted what was left as dropped
        self._thread = threading.Thread(target=self._run, name="router-capture", daemon=True)
        self._thread.start()

    def room(self, trace_id: str) -> int:
        """How many bytes of the answer to keep for the request of this trace; 0: nothing of it is captured."""
        if self._share < 1.0 and int(trace_id[-8:], 16) >= self._share * 2**32:
            return 0
        return self._max_bytes * _WIDE + MARGIN

    def write(self, content: Content) -> None:
        """Hand over the content of a finished request; one that has no room is dropped and counted."""
        if self._is_errors_only and not content.is_error:
            return
        request = content.request
        size = min(len(request), self._max_bytes + MARGIN) + sum(map(len, content.answer))
        waiting = self._bytes_in - self._bytes_out
        if self._is_closed or len(self._queue) >= self._queue_max or waiting + size > self._queue_max_bytes:
            self._add("dropped", 1)
            return
        if len(request) > self._max_bytes + MARGIN:  # else 32 MB would wait for the sake of the first 64 kB
            content = replace(content, request=request[: self._max_bytes + MARGIN])
        self._bytes_in += size
        self._queue.append(_Waiting(content, len(request), size))

    def stats(self) -> Mapping[str, int]:
        """What became of contents: `queued`, `stored`, `dropped` (no room), `failed`, `redacted` (places taken out),
        `pruned` (too old), and `write_errors` (tries that the file refused)."""
        with self._count_lock:
            return {"queued": len(self._queue) + len(self._rows), **self._counts}

    def read(self, trace_id: str) -> list[dict[str, Any]]:
        """What was captured under a trace id, newest first. Raises TraceStoreError when the file cannot be read."""
        return read_content(self.path, trace_id)

    def flush(self, timeout_s: float = CLOSE_S) -> bool:
        """Wait until what was handed over before is in the file; False when that takes over `timeout_s`."""
        done = threading.Event()
        self._queue.append(done)
        self._wake.set()
        return done.wait(timeout_s)

    def close(self) -> None:
        """Store what waits and let go of the file, within `CLOSE_S`; what the file does not take by then is dropped."""
        if not self._is_closed:
            self._is_closed = True
            self._close_by = time.monotonic() + (1.0 if self._is_refused else CLOSE_S - 1.5)
            self._wake.set()
        self._thread.join(CLOSE_S - 0.5)
        if self._thread.is_alive() and not self._is_given_up:
            self._is_given_up = True
            connection = self._connection
            if connection is not None:
                with suppress(sqlite3.Error):  # just closed
                    connection.interrupt()
            self._thread.join(0.5)
            if self._thread.is_alive():  # it does not come back from its step: say here what it will not
                self._is_left = True
                self._left()

    def _left(self) -> None:
        left = len(self._rows) + sum(not isinstance(item, threading.Event) for item in tuple(self._queue))
        if left:
            self._add("dropped", left)
            _log.error("capture: closed with %d contents that `%s` did not take", left, self.path)

    # From here on: the writer thread.

    def _run(self) -> None:
        while True:
            is_closing = self._is_closed  # read first: what was queued before `close` is still taken
            try:
                self._work()
            except (sqlite3.Error, OSError) as error:
                self._refused(error)
            except Exception as error:  # a sink: nothing may end the thread
                self._add("failed", len(self._rows))
                self._rows.clear()
                _log.error("capture: contents lost to an unforeseen %s", type(error).__name__)
            is_over = time.monotonic() >= self._close_by
            if self._is_given_up or (is_closing and (is_over or not (self._queue or self._rows))):
                break
            self._wake.wait(0.05 if is_closing else _REFUSED_PAUSE_S if self._is_refused else _PAUSE_S)
            self._wake.clear()
        if not self._is_left:
            self._left()
        self._rows.clear()
        self._queue.clear()
        if not self._is_given_up:
            with suppress(sqlite3.Error):
                self._truncate()
        self._forget()

    def _work(self) -> None:
        if time.monotonic() >= self._prune_at:
            self._prune()
            self._prune_at = time.monotonic() + _PRUNE_S
        while (self._queue or self._rows) and not self._is_given_up:
            done = self._take()
            if self._rows:
                connection = self._open()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    connection.executemany(_INSERT, self._rows)
                    connection.execute("COMMIT")
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                self._add("stored", len(self._rows))
                self._rows.clear()
                self._is_refused = False
            if done is not None:
                done.set()

    def _take(self) -> threading.Event | None:
        """Redact up to a batch; stops after a flush mark, which is returned."""
        while self._queue and len(self._rows) < _BATCH:
            item = self._queue.popleft()
            if isinstance(item, threading.Event):
                return item
            try:
                self._rows.append(self._row(item))
            except Exception as error:  # what cannot be redacted is not written
                self._add("failed", 1)
                _log.error("capture: trace `%.64s` has no row: %s", item.content.trace_id, type(error).__name__)
            self._bytes_out += item.size
        return None

    def _row(self, item: _Waiting) -> tuple[Any, ...]:
        content = item.content
        request = clean(content.request, self._rules, self._max_bytes, content.secrets)
        answer = self._answer(content)
        self._add("redacted", request.found + answer.found)
        return (
            content.trace_id,
            content.started_at_ns,
            request.text.decode("utf-8", "replace"),
            item.request_bytes,
            int(request.is_cut),
            answer.text.decode("utf-8", "replace"),
            content.answer_bytes,
            int(answer.is_cut),
            request.found + answer.found,
        )

    def _answer(self, content: Content) -> Cleaned:
        """The answer as it is kept; where its end is not here, neither is what might be half a secret before it."""
        text = b"".join(content.answer)
        is_cut = len(text) < content.answer_bytes
        if is_stream(text):
            text = joined(text)  # what may be half a secret is at its end
        limit = min(self._max_bytes, max(0, len(text) - MARGIN)) if is_cut else self._max_bytes
        cleaned = clean(text[: self._max_bytes + MARGIN], self._rules, limit, content.secrets)
        return Cleaned(cleaned.text, cleaned.is_cut or is_cut, cleaned.found)

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self.path.exists():
            return self._connection
        self._forget()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its journal the same rights
        for end in ("", "-wal", "-shm"):  # by name: closing a file that SQLite has open would drop its locks
            with suppress(FileNotFoundError):
                _narrow(os.path.realpath(self.path) + end)
        connection = sqlite3.connect(self.path, timeout=1.0, isolation_level=None)
        try:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA secure_delete=ON")  # what is too old is not to be found in free pages
            connection.execute(_TABLE)
            for index in _INDEXES:
                connection.execute(index)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._is_to_truncate = True  # whoever had it open before may have been killed before it did so
        self._truncate()
        return connection

    def _prune(self) -> None:
        """Delete what is too old, from the journal too."""
        if not self.path.exists():
            return
        connection = self._open()
        gone = connection.execute(
            "DELETE FROM content WHERE started_at_ns < ?", (self._now_ns() - self._keep_ns,)
        ).rowcount
        if gone > 0:
            connection.execute("PRAGMA incremental_vacuum").fetchall()
            self._is_to_truncate = True
            self._add("pruned", gone)
        self._truncate()

    def _truncate(self) -> None:
        """Empty the journal where it may hold what was deleted. A reader keeps that from being done: then it is still
        to do, with the next pruning, opening or closing."""
        if self._is_to_truncate and self._connection is not None:
            is_busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._is_to_truncate = bool(is_busy)

    def _forget(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _refused(self, error: sqlite3.Error | OSError) -> None:
        self._add("write_errors", 1)
        if not self._is_refused:  # once per outage
            _log.error("capture: `%s` takes no content (%s); it waits in memory", self.path, error)
        self._is_refused = True
        self._forget()

    def _add(self, name: str, count: int) -> None:
        if count:
            with self._count_lock:
                self._counts[name] += count


class _Waiting:
    """A content in the queue, its request cut to what may be kept, with that request's size and its own in memory."""

    __slots__ = ("content", "request_bytes", "size")

    def __init__(self, content: Content, request_bytes: int, size: int) -> None:
        self.content, self.request_bytes, self.size = content, request_bytes, size


def _narrow(path: str) -> None:
    """Take a file's rights from everyone but its owner. Raises OSError, as for a file of somebody else."""
    if os.stat(path).st_mode & 0o077:
        os.chmod(path, 0o600)


def read_content(path: Path, trace_id: str) -> list[dict[str, Any]]:
    """What a capture file has under a trace id, newest first; at most 20. Raises TraceStoreError."""
    if not path.exists():
        return []
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=1.0, isolation_level=None)
        try:
            rows = connection.execute(
                f"SELECT {','.join(_COLUMNS)} FROM content WHERE trace_id = ? ORDER BY started_at_ns DESC LIMIT 20",  # noqa: S608 - constants of the house
                (trace_id,),
            ).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise TraceStoreError(f"the capture file `{path}` cannot be read: {error}") from error
    return [_shown(row) for row in rows]


def _shown(row: tuple[Any, ...]) -> dict[str, Any]:
    found = dict(zip(_COLUMNS, row, strict=True))
    return {
        "trace_id": found["trace_id"],
        "started_at": started_at(found["started_at_ns"]),
        "request": found["request"],
        "request_bytes": found["request_bytes"],
        "request_is_cut": bool(found["request_is_cut"]),
        "answer": found["answer"],
        "answer_bytes": found["answer_bytes"],
        "answer_is_cut": bool(found["answer_is_cut"]),
        "redacted": found["redacted"],
    }
