"""Roll-ups: what happened in each minute, hour, six hours and day, so that charts and reports need not read every row.

Theory of operation. A roll-up row holds sums over the metered requests of one step of time that share eight names
(`DIMS`). Every figure in it is a plain sum, so rows add up to rows, and what a row of `traces` put in can be taken out
again (`roll(..., sign=-1)`, for re-pricing). Money is two integers, micro-dollars and the rest in pico-dollars: their
sums stay within 64 bits where a sum of pico-dollars would not. Latencies are counts per bucket.

`rollup_state.seq` is the arrival up to which `traces` has been rolled up; it moves in the transaction that adds up the
rows behind it, so no row is counted twice or left out, whatever crashes. The writer catches up once a second, and
before it answers a flush. Rows that an older router wrote into the same file, and all rows of a store that had no
roll-ups, are caught up with in the same way, slice by slice.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

from router.trace.money import METERED
from router.trace.record import BATCH_ITEM

DIMS = ("model", "rule", "task", "tenant", "key", "policy", "lane", "outcome")
STEPS_S = (60, 3_600, 21_600, 86_400)  # each a table of its own in all but name: `rollups.step_s`
# Upper ends of the buckets in seconds: those of /metrics, two more above, and three below for hits. Each bucket is two
# columns in every row; reading a finer histogram took most of the time of a chart.
BOUNDS_S = (0.001, 0.0025, 0.005, *(0.01 * (1 << k) for k in range(16)))
BUCKETS = len(BOUNDS_S) + 1
MICRO = 1_000_000  # pico-dollars of a micro-dollar
MONEY = ("cost", "baseline", "apart", "cache_saved", "read_saved", "write_extra")
COUNTS = (
    "requests",
    "not_ok",
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_tokens",
    "unknown",
    "hits",
    "coalesced",
    "misses",
)
FIGURES = (*COUNTS, *(f"{name}_{part}" for name in MONEY for part in ("uusd", "rest_pusd")))
TTFT = tuple(f"ttft_{at}" for at in range(BUCKETS))
TOOK = tuple(f"took_{at}" for at in range(BUCKETS))
SUMS = (*FIGURES, *TTFT, *TOOK)
OTHER = "other"  # in the place of a name that clients choose, when there are too many
REFUSED = "(refused)"  # the tenant of what was answered 401 or 403: anybody can invent credentials, each a new tenant
GROUPS_MAX = 10_000
TOKENS_MAX = 10**12  # of one request; only a hostile upstream reports more, and it must not overflow the sums of others

# The columns of `traces` that a roll-up is made of, in the order in which `roll` takes them.
ROW = (
    "seq, endpoint, started_at_ns, model_sent, rule, coalesce(task, ''), tenant, key, policy, lane, outcome, cache,"
    " cost_pusd, baseline_pusd, prompt_read_saved_pusd, prompt_write_extra_pusd, input_tokens, cache_read_tokens,"
    " cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, ttft_s, duration_s, status"
)

_AT = {name: at for at, name in enumerate(SUMS)}
_FIRST_TTFT, _FIRST_TOOK = _AT[TTFT[0]], _AT[TOOK[0]]
_UPSERT = (
    f"INSERT INTO rollups (step_s,start_s,group_id,{','.join(SUMS)}) VALUES (?,?,?{',?' * len(SUMS)})"  # noqa: S608 - constants of the house
    " ON CONFLICT (step_s,start_s,group_id) DO UPDATE SET "
    + ",".join(f"{name}={name}+excluded.{name}" for name in SUMS)
)
_FIND = f"SELECT id FROM rollup_groups WHERE {' AND '.join(f'{name}=?' for name in DIMS)}"  # noqa: S608 - constants of the house
_ADD = f"INSERT INTO rollup_groups ({','.join(DIMS)}) VALUES ({','.join('?' * len(DIMS))})"  # noqa: S608 - constants of the house


class Sums:
    """Roll-up rows being added up in memory, until `write` adds them to those of the file."""

    def __init__(self) -> None:
        self._minutes: dict[tuple[int, tuple[str, ...]], list[int]] = {}  # start and names → SUMS
        self._priced: set[str] = set()  # models that somebody knows a price of: not invented

    def roll(self, row: Sequence[Any], sign: int = 1) -> None:
        """Add a row of `traces` (the columns of `ROW`), or take it out (`sign` -1); unmetered ones change nothing."""
        (
            _, endpoint, started_at_ns, model, rule, task, tenant, key, policy, lane, outcome, cache, cost, baseline,
            read_saved, write_extra, input_, read, five_minutes, one_hour, output, ttft_s, took_s, status,
        ) = row  # fmt: skip
        if endpoint not in METERED:
            return
        names = (model, rule, task, REFUSED if status in (401, 403) else tenant, key, policy, lane, outcome)
        if cost:
            self._priced.add(model)
        # A time before 1970 or beyond any calendar is a broken clock; it must not break a query.
        second = min(max(started_at_ns // 1_000_000_000, 0), 2**38)
        changes: list[tuple[int, int]] = [(0, sign)]
        add = changes.append
        if outcome != "ok":
            add((1, sign))
        if input_ is not None:
            written = (five_minutes or 0) + (one_hour or 0)
            for at, count in ((2, input_), (3, read or 0), (4, written), (5, output or 0)):
                if count:
                    add((at, sign * min(count, TOKENS_MAX)))
        if cost is None or baseline is None:
            add((_AT["unknown"], sign))
            if baseline is None and cost:
                _money(changes, "apart", cost, sign)
        else:
            _money(changes, "cost", cost, sign)
            _money(changes, "baseline", baseline, sign)
            if cache in ("hit", "coalesced"):
                _money(changes, "cache_saved", baseline - cost, sign)
        if read_saved:
            _money(changes, "read_saved", read_saved, sign)
        if write_extra:
            _money(changes, "write_extra", write_extra, sign)
        at_cache = _CACHES.get(cache)
        if at_cache is not None:
            add((at_cache, sign))
        if ttft_s is not None:
            add((_FIRST_TTFT + bisect_left(BOUNDS_S, ttft_s), sign))
        if endpoint != BATCH_ITEM:  # which has no duration here
            add((_FIRST_TOOK + bisect_left(BOUNDS_S, took_s), sign))
        minute = (second - second % STEPS_S[0], names)
        sums = self._minutes.get(minute)
        if sums is None:
            sums = self._minutes[minute] = [0] * len(SUMS)
        for at, change in changes:
            sums[at] += change

    def minutes(self) -> list[tuple[int, tuple[str, ...], Sequence[int]]]:
        """What was added up: the start of a minute in Unix seconds, names (`DIMS`) and SUMS."""
        return [(start_s, names, sums) for (start_s, names), sums in self._minutes.items()]

    def write(self, connection: sqlite3.Connection, most_groups: int = GROUPS_MAX) -> None:
        """Add all of it to the file, within the caller's transaction. Raises sqlite3.Error."""
        rows: dict[tuple[int, int, int], list[int]] = {}
        for (minute_s, names), sums in self._minutes.items():
            if any(sums):
                group = _group(connection, names, most_groups, is_priced=names[0] in self._priced)
                for step_s in STEPS_S:
                    where = (step_s, minute_s - minute_s % step_s, group)
                    found = rows.get(where)
                    rows[where] = sums if found is None else [a + b for a, b in zip(found, sums, strict=True)]
        connection.executemany(_UPSERT, [(*where, *sums) for where, sums in rows.items()])


def _group(connection: sqlite3.Connection, names: tuple[str, ...], most: int, *, is_priced: bool) -> int:
    """The number of a set of names, a new one added; over the bound, names that clients choose become `other`.

    First the tenant; at twice as many, a model that has no price and that no roll-up names. Never a key, which is in
    the owner's file. Asked of the file each time: another process may have tidied the groups away.
    """
    found = connection.execute(_FIND, names).fetchone()
    if found is not None:
        return int(found[0])
    model, rule, task, tenant, *rest = names
    count = connection.execute("SELECT count(*) FROM rollup_groups").fetchone()[0]
    if count >= 2 * most and not is_priced:
        known = connection.execute("SELECT 1 FROM rollup_groups WHERE model=? LIMIT 1", (model,)).fetchone()
        model = OTHER if known is None else model
    fewer = (model, rule, task, REFUSED if tenant == REFUSED else OTHER, *rest)
    if count >= most and names != fewer:
        return _group(connection, fewer, most, is_priced=is_priced)
    return int(connection.execute(_ADD, names).lastrowid or 0)


_CACHES = {"hit": _AT["hits"], "coalesced": _AT["coalesced"], "miss": _AT["misses"]}


def _money(changes: list[tuple[int, int]], name: str, pusd: int, sign: int) -> None:
    whole, rest = divmod(pusd, MICRO)  # before the sign: what is taken out must be what was put in
    at = _AT[f"{name}_uusd"]
    changes.append((at, sign * whole))
    changes.append((at + 1, sign * rest))


def catch_up(connection: sqlite3.Connection, most: int) -> int:
    """Roll up at most `most` of the arrivals not yet rolled up, within the caller's transaction; returns how many.

    Raises sqlite3.Error.
    """
    mark = rolled_up_to(connection)
    rows = connection.execute(f"SELECT {ROW} FROM traces WHERE seq > ? ORDER BY seq LIMIT ?", (mark, most)).fetchall()  # noqa: S608 - constants of the house
    if rows:
        sums = Sums()
        for row in rows:
            sums.roll(row)
        sums.write(connection)
        connection.execute("UPDATE rollup_state SET seq = ?", (rows[-1][0],))
    return len(rows)


def rolled_up_to(connection: sqlite3.Connection) -> int:
    """The arrival up to which `traces` is rolled up. Raises sqlite3.Error."""
    return int(connection.execute("SELECT seq FROM rollup_state").fetchone()[0])


def quantile(counts: Iterable[int], share: float) -> float | None:
    """The nearest-rank quantile of bucket counts in seconds, by a straight line within its bucket; None of nothing.

    An estimate: a bucket is twice as wide as the one before. Beyond the last bound, the last bound.
    """
    counts = list(counts)
    rank = max(1, -(-sum(counts) * int(share * 1_000) // 1_000))
    before = 0
    for at, count in enumerate(counts):
        if count and before + count >= rank:
            if at >= len(BOUNDS_S):
                return BOUNDS_S[-1]
            low = BOUNDS_S[at - 1] if at else 0.0
            return low + (BOUNDS_S[at] - low) * (rank - before - 0.5) / count
        before += count
    return None
