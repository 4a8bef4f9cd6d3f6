"""Books what killed processes had in hand, once each, when the store is opened next."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from router.trace.journal import leftovers
from router.trace.record import Trace
from router.trace.rows import Cell, row_of

_log = logging.getLogger(__name__)


def rescue(
    connection: sqlite3.Connection, path: Path, insert: Callable[[Sequence[tuple[Cell, ...]]], object]
) -> tuple[int, int]:
    """Insert the rows of all journals whose processes are gone: (ended requests, requests that were open).

    A journal is removed once its rows are in the store; a process that is killed in between leaves it to the next,
    which finds the rows there. Raises sqlite3.Error.
    """
    ended = aborted = 0
    for leftover in leftovers(path):
        is_booked = False
        try:
            found = [trace for trace in leftover.traces() if not _is_known(connection, trace)]
            insert([row_of(trace) for trace in found])
            is_booked = True
        finally:
            leftover.close(is_booked=is_booked)
        opened = sum(trace.outcome == "aborted" for trace in found)
        ended, aborted = ended + len(found) - opened, aborted + opened
        _log.warning(
            "trace store: a process was killed: %d ended requests are booked from its journal, %d open ones as "
            "aborted, at an unknown cost",
            *(len(found) - opened, opened),
        )
    return ended, aborted


def _is_known(connection: sqlite3.Connection, trace: Trace) -> bool:
    """Whether the request is in the file: its process was killed between writing the row and freeing the slot."""
    ids = (trace.started_at_ns, trace.trace_id)
    asked = connection.execute("SELECT 1 FROM traces WHERE started_at_ns = ? AND trace_id = ?", ids)
    return asked.fetchone() is not None
