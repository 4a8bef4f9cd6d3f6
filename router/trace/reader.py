"""The trace store's reading half: the file opened read-only, each question with a time limit (`question`)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from router.trace.overview import overview
from router.trace.question import Stop, never, question
from router.trace.record import TraceQuery
from router.trace.rows import trace_json
from router.trace.schema import COLUMNS
from router.trace.summary import GROUPS, check_group, projection, summary

__all__ = ["GROUPS", "MAX_LIMIT", "SqliteTraceReader"]

MAX_LIMIT = 1_000
Row = dict[str, Any]
Rows = list[Row]
MarkedRows = list[tuple[int, Row]]  # (in the class below, `list` is the method)
_SELECT = f"SELECT {','.join(COLUMNS)} FROM traces"  # noqa: S608 - constants of the house
_SELECT_SEQ = f"SELECT seq,{','.join(COLUMNS)} FROM traces"  # noqa: S608 - constants of the house
_EQUALS = (
    ("trace_id", "trace_id"),
    ("request_id", "request_id"),
    ("policy", "policy"),
    ("rule", "rule"),
    ("lane", "lane"),
    ("model", "model_sent"),
    ("task", "task"),
    ("tenant", "tenant"),
    ("key", "key"),
    ("cache", "cache"),
    ("cache_reason", "cache_reason"),
    ("conversation", "conversation"),
    ("session", "session"),
    ("outcome", "outcome"),
    ("endpoint", "endpoint"),
    ("batch", "batch"),
)


class SqliteTraceReader:
    """Questions to a trace store. Every method raises TraceStoreError when the file is missing, unreadable or slow.

    `time_limit_s` bounds each question, and so does `stop`: it is asked while one runs, and ends it by returning True.
    `path` may come into being later.
    """

    def __init__(self, path: Path | str, *, time_limit_s: float = 10.0, stop: Stop = never) -> None:
        self._path = Path(path)
        self._time_limit_s = time_limit_s
        self._stop = stop

    def list(self, query: TraceQuery) -> Rows:
        """The newest traces that match, as `export.as_json` shows them; at most `MAX_LIMIT`.

        The next page: the same query with the `before` that `page` returns.
        """
        return [trace_json(row) for row in self._page(query)]

    def page(self, query: TraceQuery) -> tuple[Rows, tuple[int, str] | None]:
        """Like `list`, with the `before` of the next page; None when this is the last one."""
        limit = max(1, min(query.limit, MAX_LIMIT))
        rows = self._page(query)
        last = rows[-1] if len(rows) == limit else None
        return [trace_json(row) for row in rows], None if last is None else (last[0], last[1])

    def get(self, some_id: str) -> Row | None:
        """The trace with this trace id, request id, or unique beginning of a trace id (8 digits or more).

        Where one id names several traces, the newest. None when there is none, or when a beginning is not unique.
        """
        with question(self._path, self._time_limit_s, self._stop) as ask:
            for column in ("trace_id", "request_id"):
                found = ask(f"{_SELECT} WHERE {column} = ? ORDER BY started_at_ns DESC LIMIT 1", (some_id,))
                if found:
                    return trace_json(found[0])
            if not 8 <= len(some_id) < 32 or not set(some_id) <= set("0123456789abcdef"):
                return None
            # a range, not LIKE: it uses the index and knows no wildcards
            found = ask(
                f"{_SELECT} WHERE trace_id >= ? AND trace_id < ? ORDER BY trace_id LIMIT 2", (some_id, some_id + "g")
            )
            return trace_json(found[0]) if len(found) == 1 else None

    def tail(self, after: int | None, query: TraceQuery) -> tuple[int, MarkedRows]:
        """The mark to go on from, and the traces that arrived after mark `after`, oldest first, each with its own mark.

        Marks count arrivals, not starts: a long request is seen when it ends. `after` None only asks for the mark.
        """
        with question(self._path, self._time_limit_s, self._stop) as ask:
            newest = int(ask("SELECT coalesce(max(seq), 0) FROM traces", ())[0][0])
            if after is None or after >= newest:
                return newest if after is None or after > newest else after, []
            where, values = _where(query)
            limit = max(1, min(query.limit, MAX_LIMIT))
            rows = ask(
                f"{_SELECT_SEQ} WHERE seq > ? AND seq <= ? AND {where} ORDER BY seq LIMIT ?",
                (after, newest, *values, limit),
            )
            mark = int(rows[-1][0]) if len(rows) == limit else newest
            return mark, [(int(row[0]), trace_json(row[1:])) for row in rows]

    def summary(self, by: str, since_ns: int | None, until_ns: int | None = None) -> Row:
        """A report: `rows` of requests, tokens, money, cache and latency per group, dearest first (days in their
        order), their `totals`, a `projection` of the month and what `switches` of model cost.

        Each row names its group under `by` (rule, model, task, key, day, policy, lane or conversation). Sums are exact,
        and saved is baseline less cost in every row: requests whose cost or baseline is unknown are in none of the
        three but counted in `unknown_cost`, with what is known of their cost in `cost_without_baseline_usd`. `hit_rate`
        is hits and coalesced answers over look-ups, None where nothing was looked up. `source` is `rows` or `rollups`:
        then quantiles are estimates (`is_estimate`) and `since` is the whole step in which it begins. `switches` is
        None then. `is_complete` is False where requests are in no sum: of roll-ups, while very many are not rolled up
        yet (then `projection` is None too); by conversation, where rows since then were deleted. Raises BadFilter for
        another `by`.
        """
        check_group(by)
        with question(self._path, self._time_limit_s, self._stop) as ask:
            found = summary(ask, by, since_ns, until_ns)
            return {**found, "projection": projection(ask, time.time_ns())}

    def report(self, by: str, since_ns: int | None) -> Rows:
        """The `rows` of `summary`."""
        check_group(by)
        with question(self._path, self._time_limit_s, self._stop) as ask:
            rows: Rows = summary(ask, by, since_ns, None)["rows"]
        return rows

    def totals(self, since_ns: int | None) -> Row:
        """The `totals` of `summary`: one row over everything since `since_ns` (None: since the beginning)."""
        with question(self._path, self._time_limit_s, self._stop) as ask:
            totals: Row = summary(ask, "lane", since_ns, None)["totals"]
        return totals

    def projection(self) -> Row | None:
        """The `projection` of `summary`: thirty days at the rate of now; None where no rate is known yet."""
        with question(self._path, self._time_limit_s, self._stop) as ask:
            return projection(ask, time.time_ns())

    def overview(
        self,
        since_ns: int,
        until_ns: int,
        *,
        by: str | None = None,
        step_s: int | None = None,
        filters: Mapping[str, str] | None = None,
    ) -> Row:
        """Time series out of the roll-ups: `times` (Unix seconds) and, for each group of `by`, `points` and `totals`.

        `by` is one of `rollup.DIMS`, None for one series of all. `step_s` None chooses one that gives at most 200
        points; the span is widened to whole steps. `filters` are exact values of `rollup.DIMS`. At most 8 series,
        dearest first, and one of the rest (`is_rest`). Quantiles are estimates. `is_complete` is False while roll-ups
        are still being made of older rows. Raises BadFilter, also for a `step_s` below an hour where minutes are
        deleted.
        """
        with question(self._path, self._time_limit_s, self._stop) as ask:
            return overview(ask, since_ns, until_ns, by=by, step_s=step_s, filters=filters or {})

    def _page(self, query: TraceQuery) -> Sequence[Any]:
        where, values = _where(query)
        with question(self._path, self._time_limit_s, self._stop) as ask:
            return ask(
                f"{_SELECT} WHERE {where} ORDER BY started_at_ns DESC, trace_id DESC LIMIT ?",
                (*values, max(1, min(query.limit, MAX_LIMIT))),
            )


def _where(query: TraceQuery) -> tuple[str, tuple[Any, ...]]:
    """The conditions of `query` as SQL over named columns, and their values in order."""
    clauses, values = ["1"], []
    for name, column in _EQUALS:
        wanted = getattr(query, name)
        if wanted is not None:
            clauses.append(f"{column} = ?")
            values.append(wanted)
    if query.since_ns is not None:
        clauses.append("started_at_ns >= ?")
        values.append(query.since_ns)
    if query.until_ns is not None:
        clauses.append("started_at_ns < ?")
        values.append(query.until_ns)
    if query.status is not None:
        first = query.status * 100 if query.status < 10 else query.status
        clauses.append("status BETWEEN ? AND ?")
        values += (first, first + 99 if query.status < 10 else first)
    if query.min_duration_s is not None:
        clauses.append("duration_s >= ?")
        values.append(query.min_duration_s)
    if query.min_cost_pusd is not None:
        clauses.append("cost_pusd >= ?")
        values.append(query.min_cost_pusd)
    if query.before is not None:
        clauses.append("(started_at_ns, trace_id) < (?, ?)")
        values.extend(query.before)
    return " AND ".join(clauses), tuple(values)
