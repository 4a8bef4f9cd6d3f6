"""`router trace reprice`: book the stored requests again at the prices that are in the catalogue now."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from router.catalog_file import load_catalog
from router.cli.trace import dollars, plain, print_table, saying_errors, store_option
from router.errors import TraceStoreError
from router.serve.ledger import book
from router.trace.export import encode_json, usd
from router.trace.filters import read_since
from router.trace.record import Trace
from router.trace.reprice import Change, Repriced
from router.trace.reprice import reprice as book_again
from router.trace.sqlite import path_of


@click.command()
@store_option
@click.option(
    "--catalog", "catalog_file", envvar="ROUTER_CATALOG", show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A catalogue in place of the shipped one.",
)  # fmt: skip
@click.option("--since", metavar="TEXT", help="An age (`1h`, `7d`) or a time (`2026-11-22`). Default: everything.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--json", "is_json", is_flag=True, help="An object with `models` and `totals`.")
def reprice(url: str, catalog_file: Path | None, since: str | None, is_dry: bool, is_json: bool) -> None:
    """Compute cost, baseline and saved again from the stored usage, at the prices now in the catalogue.

    Until then a request keeps the prices, and the price version, that it was booked at. Roll-ups and reports follow. A
    request without usage, or of a model without a price, stays unknown. A router may be serving meanwhile.
    """
    with saying_errors():
        path = path_of(url)
        if path is None:
            raise TraceStoreError("traces are off", hint="name a store with `--traces sqlite:///FILE`")
        catalog = load_catalog(catalog_file)
        since_ns = read_since(since, time.time_ns()) if since is not None else 0

        def again(trace: Trace, is_hit: bool) -> None:
            book(trace, catalog, is_hit=is_hit)

        found = book_again(path, again, since_ns=since_ns, is_dry=is_dry)
    if is_json:
        click.echo(encode_json(_as_json(found, catalog.price_version, is_dry)))
        return
    head = ("MODEL", "REQUESTS", "CHANGED", "UNKNOWN", "COST $", "NOW $", "SAVED $", "NOW $")
    lines = [_line(plain(model)[:40] or "-", change) for model, change in sorted(found.models.items())]
    print_table([head, *lines, _line("all", _total(found))], right=range(1, len(head)))
    old = ", ".join(f"{plain(version)} ({rows:,})" for version, rows in sorted(found.versions.items()))
    click.echo(f"\nbooked at {old or 'nothing'}; {'would be' if is_dry else 'now'} at {catalog.price_version}")
    if found.unreadable:
        click.echo(f"{found.unreadable:,} records hold too little to be booked again and stay as they are")
    if is_dry:
        click.echo("dry run: nothing was changed")


def _total(found: Repriced) -> Change:
    total = Change()
    for change in found.models.values():
        total.rows += change.rows
        total.changed += change.changed
        total.unknown += change.unknown
        for at in (0, 1):
            total.cost_pusd[at] += change.cost_pusd[at]
            total.saved_pusd[at] += change.saved_pusd[at]
    return total


def _line(name: str, change: Change) -> tuple[str, ...]:
    money = (*change.cost_pusd, *change.saved_pusd)
    counts = (change.rows, change.changed, change.unknown)
    return (name, *(f"{count:,}" for count in counts), *(dollars(usd(pusd)) for pusd in money))


def _as_json(found: Repriced, price_version: str, is_dry: bool) -> dict[str, Any]:
    return {
        "is_dry_run": is_dry,
        "price_version": price_version,
        "versions_before": found.versions,
        "unreadable": found.unreadable,
        "models": {model: _change_json(change) for model, change in found.models.items()},
        "totals": _change_json(_total(found)),
    }


def _change_json(change: Change) -> dict[str, Any]:
    return {
        "requests": change.rows,
        "changed": change.changed,
        "unknown_cost": change.unknown,
        "cost_before_usd": usd(change.cost_pusd[0]),
        "cost_usd": usd(change.cost_pusd[1]),
        "saved_before_usd": usd(change.saved_pusd[0]),
        "saved_usd": usd(change.saved_pusd[1]),
    }
