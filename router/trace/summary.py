"""Reports: money, tokens and latency by rule, model, task, key, policy, lane, day or conversation; the month to come.

A report over rows is exact in everything. It is made while it is cheap and the rows are all there; else the roll-ups
are added up, and the arrivals that are not in them yet: exact in every count and every pico-dollar, from the whole
minute, hour or day in which it begins, with estimates in the place of quantiles. `source` says which. Where too many
rows are not rolled up yet, they are left out and `is_complete` is False; so it is by conversation, which no roll-up
knows, where rows were deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from router.errors import BadFilter
from router.trace.export import started_at, usd
from router.trace.figures import NO_QUANTILES, ROLLUP_SUMS_SQL, ROW_SUMS_SQL, Row, figures, money_of, quantiles_of
from router.trace.money import METERED_SQL, TIMED_SQL
from router.trace.overview import FROM, added, is_kept, kept_step
from router.trace.overview import GROUPS as ROLLUP_GROUPS
from router.trace.question import Ask
from router.trace.rollup import DIMS, FIGURES, MICRO, REFUSED, ROW, STEPS_S, SUMS, Sums

# What a report may be grouped by, and the expression over `traces` that names the group.
GROUPS = {
    "rule": "rule",
    "model": "model_sent",
    "task": "coalesce(task, '')",
    "key": f"CASE WHEN key <> '' THEN key WHEN status IN (401, 403) THEN '{REFUSED}' ELSE tenant END",
    "day": "strftime('%Y-%m-%d', started_at_ns / 1000000000, 'unixepoch')",
    "policy": "policy",
    "lane": "lane",
    "conversation": "coalesce(conversation, '')",
}
_DAY = "strftime('%Y-%m-%d', r.start_s, 'unixepoch')"
ROWS_MAX = 50_000  # up to here a report reads the rows: a quarter of a second
ARRIVED_MAX = 50_000  # rows that are added to the roll-ups here: a second or two
CONVERSATIONS_MAX = 1_000
_NAMES = ", ".join(("name", *FIGURES))
# The order of `_sorted`. The two halves of the money are compared apart: as one number it would overflow 64 bits.
_REST = "cost_rest_pusd + apart_rest_pusd"
_DEAREST = f"ORDER BY cost_uusd + apart_uusd + ({_REST}) / {MICRO} DESC, ({_REST}) % {MICRO} DESC, requests DESC, name"
MONTH_S = 30 * 86_400
_RATE_S = 7 * 86_400  # the rate of a projection is that of the last week
_RATE_LEAST_S = 3_600
_ENDLESS_S = 2**40
_ENDLESS_NS = 2**63 - 1

Arrived = tuple[int, tuple[str, ...], Sequence[int]]  # the start of a minute, names and sums of a roll-up


def summary(ask: Ask, by: str, since_ns: int | None, until_ns: int | None, *, rows_max: int = ROWS_MAX) -> Row:
    """What `SqliteTraceReader.summary` returns, but for the projection; `by` is one of GROUPS."""
    since_ns, end_ns = max(0, since_ns or 0), _ENDLESS_NS if until_ns is None else until_ns
    is_few = _is_few(ask, since_ns, end_ns, rows_max)
    if by == "conversation" or is_few:
        is_whole = _has_all_rows(ask, since_ns)
        if by == "conversation" or is_whole:
            return _of_rows(ask, by, since_ns, end_ns, has_quantiles=is_few, is_whole=is_whole)
    return _of_rollups(ask, by, since_ns, end_ns)


def check_group(by: str) -> None:
    """Raises BadFilter when reports are not made by that."""
    if by not in GROUPS:
        raise BadFilter(f"`by` is `{by:.64}`, expected one of {', '.join(f'`{name}`' for name in GROUPS)}")


def projection(ask: Ask, now_ns: int) -> Row | None:
    """Thirty days at the rate of the last week, or of the time since the first request.

    None in the first hour, and while too many requests are not rolled up yet for a rate to be known.
    `from_s` is the span behind it. Requests of unknown cost (`unknown_cost` of them) are in none of the sums.
    """
    now_s = now_ns // 10**9
    since_s = (now_s - _RATE_S) // 3_600 * 3_600  # whole hours: a week of minutes would be many
    arrived = _arrived(ask, 3_600, since_s, now_s + 1)
    if arrived is None:
        return None
    oldest = "SELECT min(start_s) FROM rollups WHERE step_s = ? AND start_s >= ? AND start_s <= ?"
    # The hour, where its minutes were deleted for want of space.
    step_s = 60 if is_kept(ask, 60, since_s) else 3_600
    starts = [ask(oldest, (step_s, since_s, now_s))[0][0], *(start_s for start_s, _, _ in arrived)]
    first = min((start_s for start_s in starts if start_s is not None), default=now_s)
    if now_s - first < _RATE_LEAST_S:
        return None
    rolled = ask(f"SELECT {ROLLUP_SUMS_SQL} {FROM}", (3_600, since_s, now_s + 1))[0]
    sums = added([rolled, *(sums for _, _, sums in arrived)])
    row = figures(sums, NO_QUANTILES)
    span_s = now_s - first
    return {
        "from_s": span_s,
        "month_s": MONTH_S,
        "requests": row["requests"] * MONTH_S // span_s,
        "unknown_cost": row["unknown_cost"] * MONTH_S // span_s,
        **{
            f"{name}_usd": usd(pusd * MONTH_S // span_s)
            for name, pusd in (
                ("cost", money_of(sums, "cost")),
                ("baseline", money_of(sums, "baseline")),
                ("saved", money_of(sums, "baseline") - money_of(sums, "cost")),
            )
        },
    }


def _is_few(ask: Ask, since_ns: int, end_ns: int, most: int) -> bool:
    sql = "SELECT count(*) FROM (SELECT 1 FROM traces WHERE started_at_ns >= ? AND started_at_ns < ? LIMIT ?)"
    return bool(ask(sql, (since_ns, end_ns, most + 1))[0][0] <= most)


def _has_all_rows(ask: Ask, since_ns: int) -> bool:
    """Whether no row since then was ever deleted, as far as the store knows, and no roll-up ends before the oldest."""
    if not is_kept(ask, 0, since_ns):
        return False
    oldest = ask("SELECT min(started_at_ns) FROM traces", ())[0][0]
    oldest_s = _ENDLESS_S if oldest is None else oldest // 10**9
    for step_s in STEPS_S:
        sql = "SELECT 1 FROM rollups WHERE step_s = ? AND start_s >= ? AND start_s <= ? LIMIT 1"
        if ask(sql, (step_s, since_ns // 10**9, oldest_s - step_s)):
            return False
    return True


def _of_rows(ask: Ask, by: str, since_ns: int, end_ns: int, *, has_quantiles: bool, is_whole: bool) -> Row:
    where, values = f"{METERED_SQL} AND started_at_ns >= ? AND started_at_ns < ?", (since_ns, end_ns)
    group = GROUPS[by]
    grouped = f"SELECT {group}, {ROW_SUMS_SQL} FROM traces WHERE {where} GROUP BY 1"  # noqa: S608 - constants of the house
    if by == "conversation":  # there may be millions of them: those that are not shown never leave SQLite
        sums = ask(f"WITH g({_NAMES}) AS ({grouped}) SELECT * FROM g {_DEAREST} LIMIT {CONVERSATIONS_MAX}", values)  # noqa: S608 - likewise
        total = ask(f"SELECT {ROW_SUMS_SQL} FROM traces WHERE {where}", values)[0]  # noqa: S608 - likewise
    else:
        sums = ask(grouped, values)
        total = added([row[1:] for row in sums])
    of_group = _quantiles(ask, group, where, values) if has_quantiles else {}
    of_all = _quantiles(ask, "0", where, values) if has_quantiles else {}
    rows = [{by: row[0], **figures(row[1:], of_group.get(row[0], NO_QUANTILES))} for row in sums]
    totals = figures(total, of_all.get(0, NO_QUANTILES))
    return {
        **_head(by, since_ns, end_ns, "rows", is_estimate=False, is_complete=is_whole),
        "rows": _sorted(by, rows),
        "totals": totals,
        "switches": _switches(ask, where, values) if has_quantiles else None,
    }


def _of_rollups(ask: Ask, by: str, since_ns: int, end_ns: int) -> Row:
    since_s, end_s = since_ns // 10**9, min(-(-end_ns // 10**9), _ENDLESS_S)
    span_s = (
        min(end_s, ask("SELECT coalesce(max(start_s), 0) + 86400 FROM rollups WHERE step_s = 86400", ())[0][0])
        - since_s
    )
    finest = 0 if span_s <= 2 * 86_400 else 1 if span_s <= 62 * 86_400 else 2
    step_s = kept_step(ask, (60, 3_600, 86_400)[finest:], since_s)
    since_s -= since_s % step_s
    group = _DAY if by == "day" else ROLLUP_GROUPS[by]
    sums = ask(f"SELECT {group}, {ROLLUP_SUMS_SQL} {FROM} GROUP BY 1", (step_s, since_s, end_s))
    arrived = _arrived(ask, step_s, since_s, end_s)
    sums = _with(ask, by, sums, arrived or ())
    rows = [{by: row[0], **figures(row[1:], quantiles_of(row[1:]))} for row in sums]
    total = added([row[1:] for row in sums])
    return {
        **_head(by, since_s * 10**9, end_ns, "rollups", is_estimate=True, is_complete=arrived is not None),
        "rows": _sorted(by, rows),
        "totals": figures(total, quantiles_of(total)),
        "switches": None,
    }


def _arrived(ask: Ask, step_s: int, since_s: int, end_s: int) -> list[Arrived] | None:
    """What is not rolled up yet of whole steps, as roll-ups of minutes; None when it is too much to be read here."""
    rows = ask(
        f"SELECT {ROW} FROM traces WHERE seq > (SELECT seq FROM rollup_state) ORDER BY seq LIMIT ?",  # noqa: S608 - constants of the house
        (ARRIVED_MAX + 1,),
    )
    if len(rows) > ARRIVED_MAX:
        return None
    sums = Sums()
    for row in rows:
        sums.roll(row)
    return [each for each in sums.minutes() if since_s <= each[0] - each[0] % step_s < end_s]


def _with(ask: Ask, by: str, sums: Sequence[Any], arrived: Sequence[Arrived]) -> Sequence[Any]:
    """The sums of each group, and those that arrived."""
    if not arrived:
        return sums
    found = {row[0]: row[1:] for row in sums}
    for start_s, names, more in arrived:
        if by == "day":
            group = ask("SELECT strftime('%Y-%m-%d', ?, 'unixepoch')", (start_s,))[0][0]
        else:
            group = names[DIMS.index(by)] or (names[DIMS.index("tenant")] if by == "key" else "")
        found[group] = added([found.get(group, [0] * len(SUMS)), more])
    return [(group, *row) for group, row in found.items()]


def _head(by: str, since_ns: int, end_ns: int, source: str, *, is_estimate: bool, is_complete: bool) -> Row:
    return {
        "by": by,
        "since": started_at(since_ns) if since_ns else None,
        "until": None if end_ns == _ENDLESS_NS else started_at(end_ns),
        "source": source,
        "is_estimate": is_estimate,  # of the quantiles; counts and money are exact
        "is_complete": is_complete,  # else requests not rolled up yet, or (by conversation) deleted, are in no sum
    }


def _sorted(by: str, rows: list[Row]) -> list[Row]:
    def dearest(row: Row) -> tuple[Any, ...]:
        spent: Decimal = row["cost_usd"] + row["cost_without_baseline_usd"]
        return -spent, -row["requests"], row[by]

    return sorted(rows, key=(lambda row: row[by]) if by == "day" else dearest)


def _quantiles(ask: Ask, group: str, where: str, values: Sequence[Any]) -> dict[Any, tuple[float | None, ...]]:
    """Nearest-rank p50 and p95 of TTFT and of the duration for each group; rows without a value do not count."""
    halves = []
    for column in ("ttft_s", "duration_s"):
        sql = (
            "SELECT g, MIN(CASE WHEN n * 2 >= c THEN v END), MIN(CASE WHEN n * 100 >= c * 95 THEN v END) FROM ("  # noqa: S608 - constants of the house
            f"SELECT {group} AS g, {column} AS v, ROW_NUMBER() OVER (PARTITION BY {group} ORDER BY {column}) AS n,"
            f" COUNT(*) OVER (PARTITION BY {group}) AS c FROM traces WHERE {where} AND {TIMED_SQL}"
            f" AND {column} IS NOT NULL) GROUP BY g"
        )
        halves.append({row[0]: (row[1], row[2]) for row in ask(sql, values)})
    ttft, took = halves
    return {name: (*ttft.get(name, (None, None)), *took.get(name, (None, None))) for name in {*ttft, *took}}


def _switches(ask: Ask, where: str, values: Sequence[Any]) -> Row:
    """Requests of conversations that were bound to another model: how many kept it, and what a change cost at once.

    The price is the estimate that was recorded when it was decided: the next turn on the new model, with its prefix
    written again, less the same turn on the old one.
    """
    extra = "json_extract(affinity, '$.switch.switch_first_pusd') - json_extract(affinity, '$.switch.stay_first_pusd')"
    kept = "json_extract(affinity, '$.kept')"
    found = ask(
        f"SELECT count(*), coalesce(SUM({kept}), 0), coalesce(SUM(NOT {kept}), 0),"  # noqa: S608 - constants of the house
        f" coalesce(SUM(CASE WHEN NOT {kept} THEN ({extra}) / {MICRO} END), 0),"
        f" coalesce(SUM(CASE WHEN {kept} THEN ({extra}) / {MICRO} END), 0) FROM traces"
        f" WHERE {where} AND affinity IS NOT NULL AND json_valid(affinity)"
        " AND json_type(affinity, '$.switch') = 'object'",
        values,
    )[0]
    weighed, stayed, switched, paid, spared = found
    return {
        "weighed": weighed,
        "kept": stayed,
        "switched": switched,
        "switch_extra_usd": usd(paid * MICRO),
        "kept_spared_usd": usd(spared * MICRO),
    }
