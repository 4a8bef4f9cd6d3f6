"""Recorded requests out of the trace store, in the order of their start, for `router policy diff`.

Made for a million of them: only the columns that are needed, in pages, each of them a question of its own, so that the
writer's checkpoints are never held back and memory holds one page. Requests that arrive meanwhile are left out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from math import nan
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from router.classify.label import Label
from router.errors import TraceStoreError
from router.facts.vocabulary import LABEL_FACTS
from router.policy.forecast import Recorded
from router.trace.money import MESSAGES_SQL
from router.usage import Iteration, Tokens, Usage

PAGE = 5_000
_KEPT_OUT = "` kept out: "  # in a sentence of `why`: "lane `NAME` kept out: REASON; REASON"
# One that left before the answer it waited for was there has no usage, and was no hit.
_IS_HIT = "attempts IS NULL AND (cache = 'hit' OR (cache = 'coalesced' AND input_tokens IS NOT NULL))"
_COLUMNS = (
    *("started_at_ns", "trace_id", "seq", "coalesce(conversation, '')", "policy", "model_asked", "model_sent"),
    *("coalesce(model_answered, '')", _IS_HIT, "outcome = 'ok' AND status < 400", "cost_pusd", "baseline_pusd"),
    *("input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "output_tokens"),
    *("labels", "coalesce(instr(why, '\"the client asked for '), 0)", "usage", "facts", "revision", "rule", "lane"),
    f"CASE WHEN instr(why, '{_KEPT_OUT}') THEN why END",
)
_MOST_KEPT = 1_000
_NONE: tuple[tuple[str, str], ...] = ()
_recorded = Recorded._make  # without the names, which a million rows do not need


def count(path: Path, since_ns: int = 0) -> int:
    """How many traces there are since then, of all endpoints. Raises TraceStoreError."""
    with _reading(path) as connection:
        return int(
            connection.execute("SELECT count(*) FROM traces WHERE started_at_ns >= ?", (since_ns,)).fetchone()[0]
        )


def scan(
    path: Path, *, since_ns: int = 0, policy: str | None = None, part: tuple[int, int] = (0, 1)
) -> Iterator[list[Recorded]]:
    """Pages of recorded Messages requests since `since_ns`, those of one policy if named, oldest first.

    `part` (number, of how many: a power of two up to 16) takes a share of the conversations, each of them whole.
    Raises TraceStoreError when the store is missing or unreadable.
    """
    with _reading(path) as connection:
        yield from _pages(connection, since_ns, policy, part)


def find(path: Path, trace_id: str, request_id: str | None) -> tuple[Recorded, dict[str, Any] | None] | None:
    """One recorded request, of any endpoint, and what its trace says of its conversation. Raises TraceStoreError.

    Where both ids are those of several requests, the newest.
    """
    with _reading(path) as connection:
        rows = connection.execute(
            f"SELECT affinity,{','.join(_COLUMNS)} FROM traces WHERE trace_id = ? AND request_id IS ?"  # noqa: S608 - constants of the house
            " ORDER BY started_at_ns DESC LIMIT 1",
            (trace_id, request_id),
        ).fetchall()
    return (_Reader().recorded(rows[0][1:]), _object(rows[0][0])) if rows else None


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.exists():
        raise TraceStoreError(
            f"there is no trace store at `{path}`",
            hint="start `router serve`, or name the store with `--traces sqlite:///FILE`",
        )
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5.0, isolation_level=None)
        ) as connection:
            yield connection
    except sqlite3.Error as error:
        raise TraceStoreError(
            f"the trace store `{path}` cannot be read: {error}",
            hint="a broken store is set aside when the router next writes to it",
        ) from error


def _pages(
    connection: sqlite3.Connection, since_ns: int, policy: str | None, part: tuple[int, int]
) -> Iterator[list[Recorded]]:
    newest = connection.execute("SELECT coalesce(max(seq), 0) FROM traces").fetchone()[0]
    where, values = f"{MESSAGES_SQL} AND seq <= ?", [newest]
    if policy is not None:
        where, values = f"{where} AND policy = ?", [*values, policy]
    if part[1] > 1:  # by the last hex digit of the conversation's hash; those without one are together in one part
        where = f"{where} AND instr('0123456789abcdef', substr(coalesce(conversation, ''), -1)) % ? = ?"
        values = [*values, part[1], part[0]]
    sql = (
        f"SELECT {','.join(_COLUMNS)} FROM traces WHERE (started_at_ns, trace_id, seq) > (?, ?, ?) AND {where}"  # noqa: S608 - constants of the house
        f" ORDER BY started_at_ns, trace_id, seq LIMIT {PAGE}"
    )
    reader = _Reader()
    after: tuple[int, str, int] = (since_ns, "", -1)
    while True:
        rows = connection.execute(sql, (*after, *values)).fetchall()
        if rows:
            yield [reader.recorded(row) for row in rows]
        if len(rows) < PAGE:
            return
        after = rows[-1][:3]


class _Reader:
    """Rows into values; what comes again and again is read once. What it remembers is of bounded size."""

    def __init__(self) -> None:
        self._tails: dict[str, tuple[Any, ...]] = {}
        self._labels: dict[str | None, tuple[Label | None, tuple[str, ...]]] = {}

    def recorded(self, row: tuple[Any, ...]) -> Recorded:
        (
            started_at_ns, _, _, conversation, policy, model_asked, model_sent, model_answered, is_hit, is_ok, cost,
            baseline, input_, read, five_minutes, one_hour, output, labels, asked_at, usage_json, facts, *served, why,
        ) = row  # fmt: skip
        known = self._labels.get(labels)
        if known is None:
            if len(self._labels) >= _MOST_KEPT:
                self._labels.clear()
            known = self._labels[labels] = _label(labels)
        usage = None
        if input_ is not None:
            usage = self._usage(Tokens(input_, read, five_minutes, one_hour, output), usage_json)
        return _recorded(
            (
                started_at_ns / 1e9, conversation, policy, model_asked, model_sent, model_answered, bool(is_hit),
                bool(is_ok) and (usage is not None or is_hit), asked_at > 0, cost, baseline, usage, *known,
                _object(facts), *served, _NONE if why is None else _kept_out(why),
            )
        )  # fmt: skip

    def _usage(self, tokens: Tokens, text: str | None) -> Usage:
        """The usage of a trace; what its JSON says beyond the counts is nearly always the same few words."""
        at = -1 if text is None else text.find('"web_searches"')
        if text is None or at < 0:
            return Usage(tokens)
        tail = text[at:]
        rest = self._tails.get(tail)
        if rest is None:
            document = _object(text) or {}
            rest = (
                document.get("web_searches") or 0,
                tuple(_iteration(entry) for entry in document.get("iterations") or ()),
                document.get("service_tier"),
                document.get("geo"),
                document.get("speed"),
            )
            if len(self._tails) < _MOST_KEPT:
                self._tails[tail] = rest
        return Usage(tokens, 0, *rest)


def _iteration(entry: dict[str, Any]) -> Iteration:
    names = ("input_tokens", "cache_read_input_tokens", "cache_write_5m", "cache_write_1h", "output_tokens")
    return Iteration(entry["type"], entry["model"], Tokens(*(entry[name] for name in names)))


def _kept_out(text: str) -> tuple[tuple[str, str], ...]:
    """The lanes that a trace's `why` says were left out, each with the first reason."""
    try:
        sentences = orjson.loads(text)
    except orjson.JSONDecodeError:
        return _NONE
    found = []
    for sentence in sentences if isinstance(sentences, list) else ():
        if isinstance(sentence, str) and sentence.startswith("lane `"):
            lane, kept_out, reasons = sentence[6:].partition(_KEPT_OUT)
            if kept_out:
                found.append((lane, reasons.partition("; ")[0]))
    return tuple(found)


def _label(text: str | None) -> tuple[Label | None, tuple[str, ...]]:
    """The label of a trace, and the names that it leaves out."""
    labels = _object(text)
    if labels is None:
        return None, ()
    task = labels.get("task")
    numbers = [name for name in LABEL_FACTS if name != "task"]
    known = {name: float(labels[name]) for name in numbers if type(labels.get(name)) in (int, float)}
    lacking = tuple(name for name in LABEL_FACTS if name not in known and not (name == "task" and type(task) is str))
    difficulty, confidence, p_hard = (known.get(name, nan) for name in ("difficulty", "confidence", "p_hard"))
    label = Label(task if isinstance(task, str) else "", difficulty, confidence, p_hard)
    return label, lacking


def _object(text: str | None) -> dict[str, Any] | None:
    """A JSON object; None for no text, and for what is none (a record that was cut says so in another form)."""
    if text is None:
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
