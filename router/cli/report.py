"""`router report`: where the money went, and what routing saved."""

from __future__ import annotations

import time
from typing import Any

import click

from router.cli.trace import dollars, open_reader, plain, print_table, saying_errors, seconds, store_option
from router.trace.export import encode_json
from router.trace.filters import read_since
from router.trace.reader import GROUPS


@click.command()
@store_option
@click.option("--since", metavar="TEXT", help="An age (`1h`, `7d`) or a time (`2026-11-22`). Default: everything.")
@click.option("--by", type=click.Choice(list(GROUPS)), default="rule", show_default=True, help="One line for each.")
@click.option("--json", "is_json", is_flag=True, help="An object with `rows` and `totals`.")
def report(url: str, since: str | None, by: str, is_json: bool) -> None:
    """Requests, tokens, cost, baseline and saved by rule, model, task, key, day, policy or lane.

    The baseline is what the same usage costs at the model that was asked for. Requests whose cost or baseline is
    unknown are counted under UNKNOWN and are in none of the sums of money.
    """
    with saying_errors():
        reader = open_reader(url)
        since_ns = read_since(since, time.time_ns()) if since is not None else None
        rows = reader.report(by, since_ns)
        totals = reader.totals(since_ns)
    if is_json:
        click.echo(encode_json({"by": by, "since": since, "rows": rows, "totals": totals}))
        return
    head = (by.upper(), "REQUESTS", "TOKENS IN", "OUT", "COST $", "BASELINE $", "SAVED $", "SAVED", "UNKNOWN", "HITS",
            "TTFT P50", "P95", "TOOK P50", "P95")  # fmt: skip
    lines = [_line(plain(row[by])[:40] or "-", row) for row in rows]
    print_table([head, *lines, _line("all", totals)], right=range(1, len(head)))
    if apart := totals["cost_without_baseline_usd"]:
        click.echo(f"\nof UNKNOWN: {dollars(apart)} $ of cost without a baseline to hold it against, in no sum above")


def _line(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    prompt = row["input_tokens"] + row["cache_read_input_tokens"] + row["cache_write_input_tokens"]
    return (
        name,
        f"{row['requests']:,}",
        f"{prompt:,}",
        f"{row['output_tokens']:,}",
        dollars(row["cost_usd"]),
        dollars(row["baseline_usd"]),
        dollars(row["saved_usd"]),
        _percent(row["saved_share"]),
        f"{row['unknown_cost']:,}",
        _percent(row["hit_rate"]),
        seconds(row["ttft_p50_s"]),
        seconds(row["ttft_p95_s"]),
        seconds(row["duration_p50_s"]),
        seconds(row["duration_p95_s"]),
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
