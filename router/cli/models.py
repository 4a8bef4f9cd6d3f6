"""`router models`: the catalogue as a table, with limits and prices."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from router.catalog.prices import Rates
from router.catalog.records import Model
from router.catalog_file import load_catalog
from router.errors import CatalogError

_COLUMNS = ("model", "state", "context", "output", "in", "out", "write 5m", "write 1h", "read", "thinks", "notes")
_LEFT = {"model", "state", "thinks", "notes"}


@click.command()
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A catalogue of your own instead of the packaged one.",
)
@click.option("--all", "with_retired", is_flag=True, help="Show retired models too.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a table.")
def models(path: Path | None, with_retired: bool, as_json: bool) -> None:
    """Show the models of the catalogue: limits in tokens, prices in dollars per million tokens."""
    try:
        catalog = load_catalog(path)
    except CatalogError as error:
        hint = f"\n  hint: {error.hint}" if error.hint else ""
        raise click.ClickException(f"{error.message}{hint}") from error
    chosen = [model for model in catalog.models if with_retired or not model.is_retired]
    if as_json:
        document = {"price_version": catalog.price_version, "models": [_as_json(model) for model in chosen]}
        click.echo(json.dumps(document, indent=2))
        return
    rows = [_row(model) for model in chosen]
    widths = [max(len(name), *(len(row[index]) for row in rows), 0) for index, name in enumerate(_COLUMNS)]
    for row in (_COLUMNS, *rows):
        cells = (
            cell.ljust(width) if name in _LEFT else cell.rjust(width)
            for name, cell, width in zip(_COLUMNS, row, widths, strict=True)
        )
        click.echo("  ".join(cells).rstrip())
    click.echo(f"\nUSD per million tokens, prices of {catalog.price_version}")


def _row(model: Model) -> tuple[str, ...]:
    prices = model.prices
    thinks = {"adaptive": "by default", "off": "on request", "not_supported": "no"}[model.accepts.thinking.default]
    money = ("unknown",) * 5 if prices is None else tuple(f"{_usd(rate)}" for rate in _rates(prices.standard).values())
    return (
        model.id,
        model.lifecycle,
        _tokens(model.context_window),
        _tokens(model.max_output_tokens),
        *money,
        thinks,
        _notes(model),
    )


def _notes(model: Model) -> str:
    notes = [f"alias {alias}" for alias in model.aliases]
    prices = model.prices
    if prices is not None and prices.long is not None and prices.long_above is not None:
        rates = f"{_usd(prices.long.input)}/{_usd(prices.long.output)}"
        notes.append(f"{rates} over {_tokens(prices.long_above)} prompt tokens")
    if prices is not None and prices.fast is not None:
        notes.append(f"fast {_usd(prices.fast.input)}/{_usd(prices.fast.output)}")
    if model.retires is not None and model.lifecycle != "active":
        notes.append(f"{'ended' if model.is_retired else 'ends'} {model.retires}")
    return ", ".join(notes)


def _as_json(model: Model) -> dict[str, Any]:
    prices = model.prices
    return {
        "id": model.id,
        "aliases": list(model.aliases),
        "display_name": model.display_name,
        "line": model.line,
        "lifecycle": model.lifecycle,
        "retires": model.retires,
        "context_window": model.context_window,
        "max_output_tokens": model.max_output_tokens,
        "tokenizer": model.tokenizer,
        "min_cacheable_tokens": model.min_cacheable_tokens,
        "thinking": {
            "accepts": sorted(model.accepts.thinking.accepts),
            "default": model.accepts.thinking.default,
        },
        "usd_per_mtok": None if prices is None else _rates_json(prices.standard),
        "long_prompt": None
        if prices is None or prices.long is None
        else {"above_prompt_tokens": prices.long_above, **_rates_json(prices.long)},
        "fast": None if prices is None or prices.fast is None else _rates_json(prices.fast),
        "batch_multiplier": None if prices is None else float(prices.batch_multiplier),
        "us_multiplier": None if prices is None or prices.us_multiplier is None else float(prices.us_multiplier),
    }


def _rates(rates: Rates) -> dict[str, int]:
    return {
        "input": rates.input,
        "output": rates.output,
        "cache_write_5m": rates.cache_write_5m,
        "cache_write_1h": rates.cache_write_1h,
        "cache_read": rates.cache_read,
    }


def _rates_json(rates: Rates) -> dict[str, float]:
    return {name: float(_usd(rate)) for name, rate in _rates(rates).items()}


def _usd(rate_pusd: int) -> Decimal:
    """Dollars per million tokens, at least two decimals: a pico-dollar per token is a millionth of that unit."""
    exact = (Decimal(rate_pusd) / 10**6).normalize()
    exponent = exact.as_tuple().exponent
    return exact.quantize(Decimal("0.01")) if isinstance(exponent, int) and exponent > -2 else exact


def _tokens(count: int) -> str:
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if count >= size and count % size == 0:
            return f"{count // size}{unit}"
    return str(count)
