"""The trace store's reading half: the file opened read-only, each question with a time limit.

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

from router.errors import BadFilter, TraceStoreError
from router.trace.export import usd
from router.trace.money import COST_APART_SQL, KNOWN_SQL, METERED_SQL
from router.trace.record import TraceQuery
from router.trace.rows import trace_json
from router.trace.schema import COLUMNS

MAX_LIMIT = 1_000
Row = dict[str, Any]
Rows = list[Row]
MarkedRows = list[tuple[int, Row]]  # (in the class below, `list` is the method)
# What a report may be grouped by, and the expression that names the group.
GROUPS = {
    "rule": "rule",
    "model": "model_sent",
    "task": "coalesce(task, '')",
    "key": "CASE WHEN key <> '' THEN key ELSE tenant END",
    "day": "strftime('%Y-%m-%d', started_at_ns / 1000000000, 'unixepoch')",
    "policy": "policy",
    "lane": "lane",
}
_SELECT = f"SELECT {','.join(COLUMNS)} FROM traces"  # noqa: S608 - constants of the house
_SELECT_SEQ = f"SELECT seq,{','.join(COLUMNS)} FROM traces"  # noqa: S608 - constants of the house
_STEPS = 2_000  # virtual machine steps between two looks at the clock, about 0.1 ms
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
    ("outcome", "outcome"),
    ("endpoint", "endpoint"),
)


def _exact_sum(column: str, where: str) -> str:
    """Two sums that together are exact: SUM over whole pico-dollars would overflow 64 bits at nine million dollars."""
    halves = (f"CASE WHEN {where} THEN {column} {half} 1000000 END" for half in "/%")
    return ", ".join(f"coalesce(SUM({half}), 0)" for half in halves)


_FIGURES = ", ".join(
    (
        "COUNT(*)",
        "coalesce(SUM(outcome <> 'ok'), 0)",
        "coalesce(SUM(input_tokens), 0)",
        "coalesce(SUM(cache_read_tokens), 0)",
        "coalesce(SUM(cache_write_5m_tokens + cache_write_1h_tokens), 0)",
        "coalesce(SUM(output_tokens), 0)",
        _exact_sum("cost_pusd", KNOWN_SQL),
        _exact_sum("baseline_pusd", KNOWN_SQL),
        _exact_sum("cost_pusd", COST_APART_SQL),
        f"coalesce(SUM(NOT ({KNOWN_SQL})), 0)",
        "coalesce(SUM(cache = 'hit'), 0)",
        "coalesce(SUM(cache = 'coalesced'), 0)",
        "coalesce(SUM(cache = 'miss'), 0)",
    )
)


class SqliteTraceReader:
    """Questions to a trace store. Every method raises TraceStoreError when the file is missing, unreadable or slow.

    `time_limit_s` bounds each question; `path` may come into being later.
    """

    def __init__(self, path: Path | str, *, time_limit_s: float = 10.0) -> None:
        self._path = Path(path)
        self._time_limit_s = time_limit_s

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
        with self._question() as ask:
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
        with self._question() as ask:
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

    def report(self, by: str, since_ns: int | None) -> Rows:
        """Requests, tokens, money, cache and latency per group, dearest first (days in their order).

        Each row names its group under `by` (rule, model, task, key, day, policy or lane). Sums are exact, and saved is
        baseline less cost in every row: requests whose cost or baseline is unknown are in none of the three but counted
        in `unknown_cost`, with what is known of their cost in `cost_without_baseline_usd`. `hit_rate` is hits and
        coalesced answers over look-ups, None where nothing was looked up. Raises BadFilter for another `by`.
        """
        if by not in GROUPS:
            raise BadFilter(f"`by` is `{by:.64}`, expected one of {', '.join(f'`{name}`' for name in GROUPS)}")
        group = GROUPS[by]
        where, since = f"{METERED_SQL} AND started_at_ns >= ?", (since_ns or 0,)
        with self._question() as ask:
            figures = ask(f"SELECT {group}, {_FIGURES} FROM traces WHERE {where} GROUP BY 1", since)  # noqa: S608 - `group` is out of GROUPS
            ttft = {row[0]: row[1:] for row in ask(_quantiles(group, "ttft_s", where), since)}
            duration = {row[0]: row[1:] for row in ask(_quantiles(group, "duration_s", where), since)}
        rows = [{by: row[0], **_figures(row[1:], ttft.get(row[0]), duration.get(row[0]))} for row in figures]
        rows.sort(key=lambda row: row[by] if by == "day" else (-_spent(row), -row["requests"], row[by]))
        return rows

    def totals(self, since_ns: int | None) -> Row:
        """One row of `report` over everything since `since_ns` (None: since the beginning)."""
        where, since = f"{METERED_SQL} AND started_at_ns >= ?", (since_ns or 0,)
        with self._question() as ask:
            figures = ask(f"SELECT {_FIGURES} FROM traces WHERE {where}", since)[0]  # noqa: S608 - constants of the house
            ttft = ask(_quantiles("0", "ttft_s", where), since)
            duration = ask(_quantiles("0", "duration_s", where), since)
        return _figures(figures, ttft[0][1:] if ttft else None, duration[0][1:] if duration else None)

    def _page(self, query: TraceQuery) -> Sequence[Any]:
        where, values = _where(query)
        with self._question() as ask:
            return ask(
                f"{_SELECT} WHERE {where} ORDER BY started_at_ns DESC, trace_id DESC LIMIT ?",
                (*values, max(1, min(query.limit, MAX_LIMIT))),
            )

    @contextmanager
    def _question(self) -> Iterator[Callable[[str, Sequence[Any]], Sequence[Any]]]:
        """A function from SQL and values to rows, on a connection that cannot write and gives up in time."""
        deadline = time.monotonic() + self._time_limit_s
        if not self._path.exists():
            raise TraceStoreError(
                f"there is no trace store at `{self._path}`",
                hint="start `router serve`, or name the store with `--traces sqlite:///FILE`",
            )
        connection = None
        try:
            connection = sqlite3.connect(
                f"file:{quote(str(self._path))}?mode=ro", uri=True, timeout=1.0, isolation_level=None
            )
            connection.execute("PRAGMA query_only=1")
            connection.set_progress_handler(lambda: int(time.monotonic() > deadline), _STEPS)

            def ask(sql: str, values: Sequence[Any]) -> Sequence[Any]:
                return connection.execute(sql, values).fetchall()

            yield ask
        except sqlite3.Error as error:
            raise self._translated(error) from error
        finally:
            if connection is not None:
                connection.close()

    def _translated(self, error: sqlite3.Error) -> TraceStoreError:
        if str(error) == "interrupted":
            return TraceStoreError(
                f"the question took longer than {self._time_limit_s:g} s",
                hint="ask for a shorter time with `since`, or for fewer things at once",
                retryable=True,
            )
        return TraceStoreError(
            f"the trace store `{self._path}` cannot be read: {error}",
            hint="a broken store is set aside when the router next writes to it",
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
    if query.min_cost_pusd is not None:
        clauses.append("cost_pusd >= ?")
        values.append(query.min_cost_pusd)
    if query.before is not None:
        clauses.append("(started_at_ns, trace_id) < (?, ?)")
        values.extend(query.before)
    return " AND ".join(clauses), tuple(values)


def _quantiles(group: str, column: str, where: str) -> str:
    """SQL for the nearest-rank p50 and p95 of `column` in each group; rows without a value do not count."""
    return (
        "SELECT g, MIN(CASE WHEN n * 2 >= c THEN v END), MIN(CASE WHEN n * 100 >= c * 95 THEN v END) FROM ("  # noqa: S608 - constants of the house
        f"SELECT {group} AS g, {column} AS v, ROW_NUMBER() OVER (PARTITION BY {group} ORDER BY {column}) AS n,"
        f" COUNT(*) OVER (PARTITION BY {group}) AS c FROM traces WHERE {where} AND {column} IS NOT NULL) GROUP BY g"
    )


def _spent(row: Row) -> Any:
    return row["cost_usd"] + row["cost_without_baseline_usd"]


def _figures(cells: Sequence[Any], ttft: Sequence[Any] | None, duration: Sequence[Any] | None) -> Row:
    requests, not_ok, input_, read, write, output, *money, unknown, hits, coalesced, misses = cells
    cost, baseline, cost_apart = (money[at] * 1_000_000 + money[at + 1] for at in (0, 2, 4))
    saved = baseline - cost
    looked_up = hits + coalesced + misses
    return {
        "requests": requests,
        "not_ok": not_ok,
        "input_tokens": input_,
        "cache_read_input_tokens": read,
        "cache_write_input_tokens": write,
        "output_tokens": output,
        "cost_usd": usd(cost),
        "baseline_usd": usd(baseline),
        "saved_usd": usd(saved),
        "saved_share": round(saved / baseline, 4) if baseline else None,
        "unknown_cost": unknown,
        "cost_without_baseline_usd": usd(cost_apart),
        "cache_hits": hits,
        "cache_coalesced": coalesced,
        "cache_misses": misses,
        "hit_rate": round((hits + coalesced) / looked_up, 4) if looked_up else None,
        "ttft_p50_s": None if ttft is None else ttft[0],
        "ttft_p95_s": None if ttft is None else ttft[1],
        "duration_p50_s": None if duration is None else duration[0],
        "duration_p95_s": None if duration is None else duration[1],
    }
