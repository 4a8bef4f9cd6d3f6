"""One question to the trace store: a connection that cannot write, and gives up in time.

A connection is opened for each question (a tenth of a millisecond), so that a reader may be used from any thread,
survives a store that is replaced, and never holds back the writer's checkpoints.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from router.errors import TraceStoreError

Ask = Callable[[str, Sequence[Any]], Sequence[Any]]
Stop = Callable[[], TraceStoreError | None]  # why a question is to end; None: it goes on
_STEPS = 2_000  # virtual machine steps between two looks at the clock, about 0.1 ms


def never() -> None:
    """The `stop` of a question that only its time ends."""
    return


def too_long(limit_s: float) -> TraceStoreError:
    """The question took more time than it has."""
    return TraceStoreError(
        f"the question took longer than {limit_s:g} s",
        hint="ask for a shorter time with `since`, or for fewer things at once",
        retryable=True,
    )


def crowded_out(wall_s: float) -> TraceStoreError:
    """The question was not answered for so long, although it did not take its time."""
    return TraceStoreError(
        f"the question was not answered within {wall_s:g} s",
        hint="the processor or the disk is busy with something else: ask again, or for a shorter time with `since`",
        retryable=True,
    )


def stopping() -> TraceStoreError:
    """Nothing is answered any more."""
    return TraceStoreError("the router is stopping", hint="ask again when it is back", retryable=True)


def left() -> TraceStoreError:
    """Nobody will see this one."""
    return TraceStoreError("nobody waits for the answer any more", retryable=True)


@contextmanager
def question(path: Path, time_limit_s: float, stop: Stop = never) -> Iterator[Ask]:
    """A function from SQL and values to rows. Raises TraceStoreError: missing, unreadable, over `time_limit_s`, or
    whatever `stop` says, which is asked again and again."""
    deadline = time.monotonic() + time_limit_s
    why: TraceStoreError | None = None

    def is_over() -> bool:
        nonlocal why
        why = too_long(time_limit_s) if time.monotonic() > deadline else stop()
        return why is not None

    if not path.exists():
        raise TraceStoreError(
            f"there is no trace store at `{path}`",
            hint="start `router serve`, or name the store with `--traces sqlite:///FILE`",
        )
    connection = None
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=1.0, isolation_level=None)
        connection.execute("PRAGMA query_only=1")
        connection.execute("BEGIN")  # one state of the file, however many statements: rows and roll-ups are added up
        connection.set_progress_handler(is_over, _STEPS)

        def ask(sql: str, values: Sequence[Any]) -> Sequence[Any]:
            if is_over():  # what is made of the rows between two looks takes time as well
                raise sqlite3.OperationalError("interrupted")
            return connection.execute(sql, values).fetchall()

        yield ask
    except sqlite3.Error as error:
        raise (why or _unreadable(path, error)) from error
    finally:
        if connection is not None:
            connection.close()


def _unreadable(path: Path, error: sqlite3.Error) -> TraceStoreError:
    return TraceStoreError(
        f"the trace store `{path}` cannot be read: {error}",
        hint="a broken store is set aside when the router next writes to it; one of an older version is brought up to"
        " date when the router starts",
    )
