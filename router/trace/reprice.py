"""Book stored requests again at other prices: from the usage that was recorded, with the arithmetic of the first time.

Rows keep the price they were booked at, and its version, until this is done to them. It runs beside a serving router:
a slice is read and computed without a lock, then written in one short transaction in which the roll-ups follow, and
after each the file is left alone for as long as the slice took. What has no usage, or a model without a price, stays
unknown; a record that was cut so short that its usage cannot be read stays as it is.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from router.errors import TraceStoreError
from router.trace.record import Attempt, Trace, held
from router.trace.rollup import ROW, Sums, rolled_up_to
from router.usage import Iteration, Tokens, Usage

SLICE = 100  # rows per transaction; while one is open (some milliseconds) the serving router cannot write
_LOCK_WAIT_S = 10.0
_COLUMNS = (
    *("seq", "endpoint", "method", "outcome", "model_asked", "model_sent", "model_answered", "cache"),
    *("usage", "attempts"),
    *("price_version", "cost_pusd", "baseline_pusd", "saved_pusd"),
    *("prompt_read_saved_pusd", "prompt_write_extra_pusd"),
)
_READ = (
    f"SELECT {','.join(_COLUMNS)} FROM traces WHERE seq > ? AND seq <= ? AND +started_at_ns >= ?"  # noqa: S608 - constants of the house
    f" ORDER BY seq LIMIT {SLICE}"
)
_READ_ONE = f"SELECT {','.join(_COLUMNS)} FROM traces WHERE seq = ?"  # noqa: S608 - constants of the house
_TOKENS = ("input_tokens", "cache_read_input_tokens", "cache_write_5m", "cache_write_1h", "output_tokens")

Book = Callable[[Trace, bool], None]
"""Fill the money of a trace; the flag says that it was answered from the cache."""


@dataclass
class Change:
    """What re-pricing did to the requests of one model; money in pico-dollars over rows that know it, before and after.

    `changed` counts rows of which any sum became another, `unknown` those whose cost or baseline is unknown now.
    """

    rows: int = 0
    changed: int = 0
    unknown: int = 0
    cost_pusd: list[int] = field(default_factory=lambda: [0, 0])
    saved_pusd: list[int] = field(default_factory=lambda: [0, 0])


@dataclass
class Repriced:
    """The whole: by model sent, the price versions that were met with their rows, and rows that could not be read."""

    models: dict[str, Change] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    unreadable: int = 0


@dataclass
class _Booked:
    """A row booked again: its model and version, its money before and after, and the UPDATE, where it needs one."""

    model: str
    version: str
    before: Sequence[Any]
    after: Sequence[Any]
    update: tuple[Any, ...] | None


def reprice(
    path: Path,
    book: Book,
    *,
    since_ns: int = 0,
    is_dry: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Repriced:
    """Book every trace since `since_ns` again with `book`; `is_dry` only counts. Doing it again changes nothing.

    `clock` and `sleep` (seconds) are for the pauses in which a serving router writes. Raises TraceStoreError when the
    store is missing, cannot be read, or is kept locked by another program.
    """
    if not path.exists():
        raise TraceStoreError(f"there is no trace store at `{path}`", hint="name it with `--traces sqlite:///FILE`")
    found = Repriced()
    mode = "ro" if is_dry else "rw"
    try:
        with closing(
            sqlite3.connect(
                f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=_LOCK_WAIT_S, isolation_level=None
            )
        ) as connection:
            newest = connection.execute("SELECT coalesce(max(seq), 0) FROM traces").fetchone()[0]
            after = _before_first(connection, since_ns)
            while True:
                started_s = clock()
                rows = connection.execute(_READ, (after, newest, since_ns)).fetchall()
                if not rows:
                    break
                after = rows[-1][0]
                if _slice(connection, book, found, rows, is_dry=is_dry):
                    sleep(clock() - started_s)
    except sqlite3.Error as error:
        raise TraceStoreError(
            f"the trace store `{path}` could not be re-priced to the end: {error}",
            hint="what was done is whole and stays; run it again",
            retryable=True,
        ) from error
    return found


def _before_first(connection: sqlite3.Connection, since_ns: int) -> int:
    """The number before the first row since then, by the index alone: older rows are wide, and there may be many."""
    if since_ns <= 0:
        return 0
    # `+`: else SQLite walks the table from its beginning for the smallest number.
    first = connection.execute("SELECT min(+seq) FROM traces WHERE started_at_ns >= ?", (since_ns,)).fetchone()[0]
    return 2**62 if first is None else int(first) - 1


def _slice(
    connection: sqlite3.Connection, book: Book, found: Repriced, rows: Sequence[tuple[Any, ...]], *, is_dry: bool
) -> bool:
    """Book rows again, and write what changed in one transaction, if anything did; whether it wrote."""
    booked = [(row, _booked(row, book, found)) for row in rows]
    changes = [(row, one.update) for row, one in booked if one is not None and one.update is not None]
    is_writing = bool(changes) and not is_dry
    gone: set[int] = set()
    if is_writing:
        connection.execute("BEGIN IMMEDIATE")
        # Deleted meanwhile, or booked again by another program: that one's business then.
        gone = {row[0] for row, _ in changes if connection.execute(_READ_ONE, (row[0],)).fetchone() != row}
        _update(connection, [update for row, update in changes if row[0] not in gone])
        connection.execute("COMMIT")
    for row, one in booked:
        if one is not None and row[0] not in gone:
            _count(found, one)
    return is_writing


def _update(connection: sqlite3.Connection, updates: Sequence[tuple[Any, ...]]) -> None:
    """Write the rows, and move what they put into the roll-ups."""
    mark, sums = rolled_up_to(connection), Sums()
    rolled = [(update[-1],) for update in updates if update[-1] <= mark]
    for sign in (-1, 1):
        for number in rolled:
            sums.roll(connection.execute(f"SELECT {ROW} FROM traces WHERE seq = ?", number).fetchone(), sign)  # noqa: S608 - constants of the house
        if sign < 0:
            connection.executemany(
                "UPDATE traces SET price_version = ?, cost_pusd = ?, baseline_pusd = ?, saved_pusd = ?,"
                " prompt_read_saved_pusd = ?, prompt_write_extra_pusd = ?, attempts = ? WHERE seq = ?",
                updates,
            )
    sums.write(connection)


def _booked(row: Sequence[Any], book: Book, found: Repriced) -> _Booked | None:
    """The row booked again, its UPDATE in the order of `_update`; None where it was never booked or is unreadable."""
    number, endpoint, method, outcome, asked, sent, answered, cache, usage, attempts, version, *money = row
    if not version:
        return None  # never booked: refused before there was anything to pay
    try:
        documents = _list(attempts)
        trace = Trace(
            trace_id="",
            started_at_ns=0,
            endpoint=endpoint,
            method=method,
            outcome=outcome,
            model_asked=asked,
            model_sent=sent,
            model_answered=answered,
            cache=cache,
            usage=_usage(None if usage is None else orjson.loads(usage)),
            attempts=[_attempt(document) for document in documents],
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        found.unreadable += 1
        return None
    # A request that waited for another's answer and left before it has no usage, and a baseline of 0.
    is_had = cache == "hit" or (cache == "coalesced" and (trace.usage is not None or money[1] is None))
    book(trace, is_had and not trace.attempts)
    now = [
        held(pusd)
        for pusd in (
            *(trace.cost_pusd, trace.baseline_pusd, trace.saved_pusd),
            *(trace.prompt_read_saved_pusd, trace.prompt_write_extra_pusd),
        )
    ]
    for document, attempt in zip(documents, trace.attempts, strict=True):
        document["cost_pusd"] = held(attempt.cost_pusd)
    if now == money and version == trace.price_version:
        return _Booked(sent, version, money, now, None)
    text = None if attempts is None else orjson.dumps(documents).decode()
    return _Booked(sent, version, money, now, (trace.price_version, *now, text, number))


def _count(found: Repriced, one: _Booked) -> None:
    found.versions[one.version] = found.versions.get(one.version, 0) + 1
    change = found.models.setdefault(one.model, Change())
    change.rows += 1
    change.changed += one.before[:3] != one.after[:3]
    change.unknown += one.after[0] is None or one.after[1] is None
    for at, (cost, _, saved, *_) in enumerate((one.before, one.after)):
        change.cost_pusd[at] += cost or 0
        change.saved_pusd[at] += saved or 0


def _attempt(document: Mapping[str, Any]) -> Attempt:
    return Attempt(
        lane=document["lane"],
        model=document["model"],
        started_s=0.0,
        outcome=document["outcome"],
        status=document["status"],
        usage=_usage(document["usage"]),
    )


def _usage(document: Any) -> Usage | None:
    """A usage as `export.usage_json` wrote it. Raises KeyError, TypeError or ValueError for one that was cut."""
    if document is None:
        return None
    return Usage(
        tokens=_tokens(document),
        thinking=_whole(document["thinking_tokens"]),
        web_searches=_whole(document["web_searches"]),
        iterations=tuple(Iteration(part["type"], part["model"], _tokens(part)) for part in document["iterations"]),
        service_tier=document["service_tier"],
        geo=document["geo"],
        speed=document["speed"],
        is_final=document["is_final"],
    )


def _tokens(document: Mapping[str, Any]) -> Tokens:
    return Tokens(*(_whole(document[name]) for name in _TOKENS))


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("a count that JSON could not hold")
    return value


def _list(text: str | None) -> list[Any]:
    return [] if text is None else list(_each(orjson.loads(text)))


def _each(documents: Any) -> Iterator[Any]:
    for document in documents:
        if not isinstance(document, dict):
            raise ValueError("not an attempt")
        yield document
