"""`router report`: where the money went, what routing saved, what the prompt cache did, and the month to come."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import click

from router.cli.trace import dollars, open_reader, plain, print_table, saying_errors, seconds, store_option
from router.errors import BadFilter
from router.trace.export import csv_cell, encode_json
from router.trace.filters import read_since
from router.trace.reader import GROUPS


@click.command()
@store_option
@click.option("--since", metavar="TEXT", help="An age (`1h`, `7d`) or a time (`2026-11-22`). Default: everything.")
@click.option("--by", type=click.Choice(list(GROUPS)), default="rule", show_default=True, help="One line for each.")
@click.option("--json", "is_json", is_flag=True, help="An object with `rows`, `totals`, `projection` and `switches`.")
@click.option("--csv", "is_csv", is_flag=True, help="The rows as CSV, all figures, for a spreadsheet.")
def report(url: str, since: str | None, by: str, is_json: bool, is_csv: bool) -> None:
    """Requests, tokens, cost, baseline and saved by rule, model, task, key, day, policy, lane or conversation.

    The baseline is what the same usage costs at the model that was asked for. Requests whose cost or baseline is
    unknown are counted under UNKNOWN and are in none of the sums of money. Long spans are added up from roll-ups: then
    the quantiles are estimates (~).
    """
    with saying_errors():
        if is_json and is_csv:
            raise BadFilter("`--json` and `--csv` exclude each other")
        reader = open_reader(url)
        since_ns = read_since(since, time.time_ns()) if since is not None else None
        found = reader.summary(by, since_ns)
    if is_json:
        click.echo(encode_json(found))
        return
    if is_csv:
        writer = csv.writer(sys.stdout, lineterminator="\r\n")
        writer.writerow([by, *(name for name in found["totals"])])
        writer.writerows(
            [csv_cell(row[by]), *(csv_cell(row[name]) for name in found["totals"])] for row in found["rows"]
        )
        return
    head = (by.upper(), "REQUESTS", "TOKENS IN", "OUT", "COST $", "BASELINE $", "SAVED $", "SAVED", "UNKNOWN", "HITS",
            "TTFT P50", "P95", "TOOK P50", "P95")  # fmt: skip
    about = "~" if found["is_estimate"] else ""
    lines = [_line(plain(row[by])[:40] or "-", row, about) for row in found["rows"]]
    print_table([head, *lines, _line("all", found["totals"], about)], right=range(1, len(head)))
    for line in _below(found):
        click.echo(line)


def _below(found: dict[str, Any]) -> Iterator[str]:
    """What the table leaves out, one sentence each."""
    totals, switches, month = found["totals"], found["switches"], found["projection"]
    yield ""
    if apart := totals["cost_without_baseline_usd"]:
        yield f"of UNKNOWN: {dollars(apart)} $ of cost without a baseline to hold it against, in no sum above"
    if saved := totals["cache_saved_usd"]:
        yield f"of SAVED: {dollars(saved)} $ by answers from the router's cache"
    read, write = totals["prompt_cache_read_saved_usd"], totals["prompt_cache_write_extra_usd"]
    if read or write:
        yield (
            f"prompt cache of the provider, inside COST: reads saved {dollars(read)} $, writes cost {dollars(write)} $ "
            f"more than plain input, net {dollars(read - write)} $"
        )
    if switches is not None and switches["weighed"]:
        yield (
            f"conversations: {switches['weighed']:,} requests weighed a switch of model, {switches['kept']:,} kept "
            f"theirs and {switches['switched']:,} switched, for {dollars(switches['switch_extra_usd'])} $ more at once "
            "(estimates)"
        )
    if month is not None:
        yield (
            f"a month at the rate of the last {_span(month['from_s'])}: {month['requests']:,} requests, "
            f"{_cents(month['cost_usd'])} $, baseline {_cents(month['baseline_usd'])} $, saved "
            f"{_cents(month['saved_usd'])} $"
            + (f"; {month['unknown_cost']:,} more of unknown cost" if month["unknown_cost"] else "")
        )
    if found["source"] == "rows" and not found["is_complete"]:
        yield "from the requests that are still in the store: older ones were deleted and are in no sum"
    if found["source"] == "rollups":
        yield f"from roll-ups since {found['since'] or 'the beginning'}: " + (
            "sums are exact, quantiles (~) are estimates"
            if found["is_complete"]
            else "roll-ups are still being made of older requests, which are in no sum yet; quantiles (~) are estimates"
        )


def _line(name: str, row: dict[str, Any], about: str) -> tuple[str, ...]:
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
        *(
            f"{about if row[name] is not None else ''}{seconds(row[name])}"
            for name in ("ttft_p50_s", "ttft_p95_s", "duration_p50_s", "duration_p95_s")
        ),
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _cents(amount: Decimal) -> str:
    return f"{amount:,.2f}"


def _span(span_s: int) -> str:
    return f"{span_s / 86_400:.1f} days" if span_s >= 2 * 86_400 else f"{span_s / 3_600:.1f} hours"
