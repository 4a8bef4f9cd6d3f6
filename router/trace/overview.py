"""Time series for the charts of the page, out of the roll-ups alone: milliseconds, however many requests there were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.errors import BadFilter
from router.trace.export import started_at
from router.trace.figures import ROLLUP_SUMS_SQL, Row, figures, points, quantiles_of
from router.trace.question import Ask
from router.trace.rollup import DIMS, STEPS_S, SUMS

STEPS_SHOWN_S = (60, 300, 900, 3_600, 21_600, 86_400)
POINTS_WANTED = 200
POINTS_MAX = 1_500
SERIES_MAX = 8
_MINUTE_S = STEPS_S[0]
_LAG = 10_000  # rows; more is no lag but a store that is still being rolled up
REST = "other"
_SPENT = "SUM(r.cost_uusd) + SUM(r.apart_uusd), SUM(r.requests)"  # to the micro-dollar: it only gives the order

# What the series may be of: the expression that names one.
GROUPS = {name: f"g.{name}" for name in DIMS} | {"key": "CASE WHEN g.key <> '' THEN g.key ELSE g.tenant END"}
FROM = (
    "FROM rollups r JOIN rollup_groups g ON g.id = r.group_id WHERE r.step_s = ? AND r.start_s >= ? AND r.start_s < ?"
)


def overview(
    ask: Ask, since_ns: int, until_ns: int, *, by: str | None, step_s: int | None, filters: Mapping[str, str]
) -> Row:
    """What `SqliteTraceReader.overview` returns. Raises BadFilter."""
    if by is not None and by not in GROUPS:
        raise BadFilter(f"`by` is `{by:.64}`, expected one of {', '.join(f'`{name}`' for name in GROUPS)}")
    for name in filters:
        if name not in DIMS:
            raise BadFilter(
                f"no filter `{name:.64}` of the overview, expected one of {', '.join(f'`{known}`' for known in DIMS)}"
            )
    first_s, end_s, step_s = _span(ask, since_ns, until_ns, step_s)
    level = level_of(step_s)
    where = f"{FROM}{''.join(f' AND g.{name} = ?' for name in filters)}"
    values = (level, first_s, end_s, *filters.values())
    group = "'all'" if by is None else GROUPS[by]
    ranked = [
        str(row[0]) for row in ask(f"SELECT {group}, {_SPENT} {where} GROUP BY 1 ORDER BY 2 DESC, 3 DESC, 1", values)
    ]
    shown, rest = ranked[:SERIES_MAX], ranked[SERIES_MAX:]
    in_shown = f"CASE WHEN {group} IN ({','.join('?' * len(shown))}) THEN {group} END"
    of_step = f"SELECT {in_shown}, r.start_s / ? * ?, {ROLLUP_SUMS_SQL} {where} GROUP BY 1, 2"
    found: dict[str | None, dict[int, Sequence[int]]] = {}
    for name, at, *sums in ask(of_step, (*shown, step_s, step_s, *values)):
        found.setdefault(name, {})[at] = sums
    times = range(first_s, end_s, step_s)
    series = [(name, found.get(name, {})) for name in (*shown, *([None] if rest else []))]
    totals = [added(list(steps.values())) for _, steps in series]
    return {
        "since": started_at(first_s * 10**9),
        "until": started_at(end_s * 10**9),
        "step_s": step_s,
        "by": by,
        "filters": dict(filters),
        "is_complete": is_complete(ask),
        "times": list(times),
        "totals": _row(added(totals)),
        "series": [
            {
                "name": REST if name is None else name,
                "is_rest": name is None,
                "totals": _row(sums),
                "points": points([steps.get(at) for at in times]),
            }
            for (name, steps), sums in zip(series, totals, strict=True)
        ],
    }


def level_of(step_s: int) -> int:
    """The coarsest roll-up that a step is made of."""
    return max(level for level in STEPS_S if step_s % level == 0)


def is_complete(ask: Ask) -> bool:
    """Whether the roll-ups have caught up with the rows, but for the arrivals of the last second."""
    sql = "SELECT (SELECT coalesce(max(seq), 0) FROM traces) - (SELECT seq FROM rollup_state)"
    return bool(ask(sql, ())[0][0] < _LAG)


def is_kept(ask: Ask, step_s: int, since: int) -> bool:
    """Whether nothing since then has ever been deleted: of roll-ups of a step (Unix seconds), of rows (0; ns)."""
    return not ask("SELECT 1 FROM deleted WHERE step_s = ? AND newest >= ?", (step_s, since))


def kept_step(ask: Ask, steps_s: Sequence[int], since_s: int) -> int:
    """The first of these steps of which all since then is kept; where there is none, the first but for minutes."""
    for step_s in steps_s:
        if is_kept(ask, level_of(step_s), since_s - since_s % step_s):
            return step_s
    return next(step_s for step_s in steps_s if level_of(step_s) > _MINUTE_S)


def _span(ask: Ask, since_ns: int, until_ns: int, step_s: int | None) -> tuple[int, int, int]:
    """Whole steps that hold the span, in Unix seconds: first, end (not in it), step."""
    since_s, until_s = max(0, since_ns) // 10**9, -(-max(0, until_ns) // 10**9)
    if until_s <= since_s:
        raise BadFilter("`until` is not after `since`")
    if step_s is None:
        fitting = [step for step in STEPS_SHOWN_S if (until_s - since_s) / step <= POINTS_WANTED]
        step_s = kept_step(ask, fitting or STEPS_SHOWN_S[-1:], since_s)
    elif step_s not in STEPS_SHOWN_S:
        raise BadFilter(f"`step` is {step_s}, expected one of {', '.join(map(str, STEPS_SHOWN_S))} seconds")
    first_s, end_s = since_s - since_s % step_s, until_s + -until_s % step_s
    if level_of(step_s) == _MINUTE_S and not is_kept(ask, _MINUTE_S, first_s):
        raise BadFilter(
            f"sums per minute are not kept for so long as a `step` of {step_s} needs",
            hint="a `step` of 3600 or more, or a later `since`",
        )
    if (end_s - first_s) // step_s > POINTS_MAX:
        raise BadFilter(f"over {POINTS_MAX} steps of {step_s} seconds", hint="a longer `step`, or a later `since`")
    return first_s, end_s, step_s


def added(parts: Sequence[Sequence[int]]) -> Sequence[int]:
    """Sums of `rollup.SUMS` (or the first of them) added up; zeros of nothing."""
    return [sum(column) for column in zip(*parts, strict=True)] if parts else [0] * len(SUMS)


def _row(sums: Sequence[int]) -> Row:
    return figures(sums, quantiles_of(sums))
