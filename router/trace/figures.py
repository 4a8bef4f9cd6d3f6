"""The figures of a report or a chart out of sums: one set of names, whether rows or roll-ups were added up."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from router.trace.export import usd
from router.trace.money import COST_APART_SQL, KNOWN_SQL
from router.trace.rollup import BUCKETS, FIGURES, MICRO, SUMS, TOKENS_MAX, quantile

Row = dict[str, Any]
_AT = {name: at for at, name in enumerate(FIGURES)}
_TTFT, _TOOK = len(FIGURES), len(FIGURES) + BUCKETS
NO_QUANTILES: tuple[float | None, ...] = (None, None, None, None)

# The sums of `rollup.SUMS` over roll-up rows, and those of `rollup.FIGURES` over rows of `traces`.
ROLLUP_SUMS_SQL = ", ".join(f"coalesce(SUM({name}), 0)" for name in SUMS)


def _count(condition: str) -> str:
    return f"coalesce(SUM({condition}), 0)"


def tokens(column: str) -> str:
    """The SQL of a sum of tokens over rows, each bounded by `TOKENS_MAX`: no row can make it overflow."""
    return f"coalesce(SUM(min({column}, {TOKENS_MAX})), 0)"


def exact(column: str, where: str) -> str:
    """Two sums that together are exact: SUM over whole pico-dollars would overflow 64 bits at nine million dollars."""
    return ", ".join(f"coalesce(SUM(CASE WHEN {where} THEN {column} {half} {MICRO} END), 0)" for half in "/%")


ROW_SUMS_SQL = ", ".join(
    (
        "COUNT(*)",
        _count("outcome <> 'ok'"),
        tokens("input_tokens"),
        tokens("cache_read_tokens"),
        tokens("coalesce(cache_write_5m_tokens, 0) + coalesce(cache_write_1h_tokens, 0)"),
        tokens("output_tokens"),
        _count(f"NOT ({KNOWN_SQL})"),
        _count("cache = 'hit'"),
        _count("cache = 'coalesced'"),
        _count("cache = 'miss'"),
        exact("cost_pusd", KNOWN_SQL),
        exact("baseline_pusd", KNOWN_SQL),
        exact("cost_pusd", COST_APART_SQL),
        exact("(baseline_pusd - cost_pusd)", f"{KNOWN_SQL} AND cache IN ('hit', 'coalesced')"),
        exact("prompt_read_saved_pusd", "1"),
        exact("prompt_write_extra_pusd", "1"),
    )
)


def money_of(sums: Sequence[int], name: str) -> int:
    """One of `rollup.MONEY` in pico-dollars."""
    at = _AT[f"{name}_uusd"]
    return sums[at] * MICRO + sums[at + 1]


def quantiles_of(sums: Sequence[int]) -> tuple[float | None, ...]:
    """p50 and p95 of TTFT, then of the duration, in seconds: estimates out of the buckets of `rollup.SUMS`."""
    ttft, took = sums[_TTFT:_TOOK], sums[_TOOK : _TOOK + BUCKETS]
    return quantile(ttft, 0.5), quantile(ttft, 0.95), quantile(took, 0.5), quantile(took, 0.95)


def figures(sums: Sequence[int], quantiles: Sequence[float | None]) -> Row:
    """One line of a report. Saved is baseline less cost; shares are None where there is nothing to divide by."""
    cost, baseline = money_of(sums, "cost"), money_of(sums, "baseline")
    return {
        "requests": sums[_AT["requests"]],
        "not_ok": sums[_AT["not_ok"]],
        "input_tokens": sums[_AT["input_tokens"]],
        "cache_read_input_tokens": sums[_AT["cache_read_tokens"]],
        "cache_write_input_tokens": sums[_AT["cache_write_tokens"]],
        "output_tokens": sums[_AT["output_tokens"]],
        "cost_usd": usd(cost),
        "baseline_usd": usd(baseline),
        "saved_usd": usd(baseline - cost),
        "saved_share": round((baseline - cost) / baseline, 4) if baseline else None,
        "unknown_cost": sums[_AT["unknown"]],
        "cost_without_baseline_usd": usd(money_of(sums, "apart")),
        "cache_hits": sums[_AT["hits"]],
        "cache_coalesced": sums[_AT["coalesced"]],
        "cache_misses": sums[_AT["misses"]],
        "hit_rate": _hit_rate(sums),
        "cache_saved_usd": usd(money_of(sums, "cache_saved")),
        "prompt_cache_read_saved_usd": usd(money_of(sums, "read_saved")),
        "prompt_cache_write_extra_usd": usd(money_of(sums, "write_extra")),
        "ttft_p50_s": quantiles[0],
        "ttft_p95_s": quantiles[1],
        "duration_p50_s": quantiles[2],
        "duration_p95_s": quantiles[3],
    }


def points(columns: Sequence[Sequence[int] | None]) -> dict[str, list[Any]]:
    """The figures of each step of time as columns, for charts; None is a step in which nothing happened."""
    zero = Decimal(0)
    shown: dict[str, list[Any]] = {name: [] for name in POINTS}
    for sums in columns:
        if sums is None:
            for name, values in shown.items():
                values.append(zero if name.endswith("_usd") else None if name in _NULLS else 0)
            continue
        row = figures(sums, quantiles_of(sums))
        row["errors"] = row["not_ok"]
        for name, values in shown.items():
            values.append(row[name])
    return shown


POINTS = (
    *("requests", "errors", "unknown_cost", "cost_usd", "baseline_usd", "saved_usd", "input_tokens"),
    *("cache_read_input_tokens", "cache_write_input_tokens", "output_tokens", "cache_hits", "cache_coalesced"),
    *("cache_misses", "hit_rate", "ttft_p50_s", "ttft_p95_s", "duration_p50_s", "duration_p95_s"),
)
_NULLS = frozenset({"hit_rate", "ttft_p50_s", "ttft_p95_s", "duration_p50_s", "duration_p95_s"})


def _hit_rate(sums: Sequence[int]) -> float | None:
    answered = sums[_AT["hits"]] + sums[_AT["coalesced"]]
    looked_up = answered + sums[_AT["misses"]]
    return round(answered / looked_up, 4) if looked_up else None
