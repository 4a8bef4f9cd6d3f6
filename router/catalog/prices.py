"""Prices: what a token costs, exactly, and the tables that make a cost five multiplications.

Money is integer pico-dollars (`_pusd`): $3 per million tokens is 3,000,000 pico-dollars a token. The catalogue states
prices as decimal numbers; they become Fractions by their decimal spelling, never by their binary value, so that 0.1
is one tenth. Modifiers multiply: the long-prompt tier and fast mode choose another row, Message Batches halve it, US
inference adds a tenth. All combinations are multiplied out once, when the catalogue is read.

A product of modifiers may leave a fraction of a pico-dollar. All tables of a catalogue therefore count in units of
1/`scale` pico-dollar, `scale` being the smallest number that makes every entry whole (1 for the packaged catalogue),
and a cost is rounded once, half up, after the whole sum.
Source: Anthropic pricing page and fact sheet, "Prices".
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

from router.errors import CatalogError
from router.usage import Tokens

PUSD_PER_USD = 10**12
_PUSD_PER_TOKEN = 10**6  # of a price of one dollar per million tokens
_NEVER = sys.maxsize  # a prompt length that is never exceeded: the model has no long-prompt tier
_MAX_SCALE = 10**9  # beyond it a multiplier is a typing error, not a price

# Bits of an index into `PriceTable.rows`.
LONG, BATCH, US, FAST = 8, 4, 2, 1

Row: TypeAlias = tuple[int, int, int, int, int]  # input, output, cache_write_5m, cache_write_1h, cache_read


@dataclass(frozen=True, slots=True)
class Rates:
    """Pico-dollars per token of each category."""

    input: int
    output: int
    cache_write_5m: int
    cache_write_1h: int
    cache_read: int

    def times(self, factor: Fraction) -> tuple[Fraction, ...]:
        """The five rates multiplied by `factor`, exactly, in the order of the fields."""
        return tuple(
            factor * rate
            for rate in (self.input, self.output, self.cache_write_5m, self.cache_write_1h, self.cache_read)
        )


@dataclass(frozen=True, slots=True)
class Prices:
    """Every price of one model.

    `long` holds for a whole request whose prompt is strictly longer than `long_above` tokens; both are None together.
    `fast` is None where fast mode has no price of its own, `us_multiplier` where US inference is not offered.
    """

    standard: Rates
    long_above: int | None
    long: Rates | None
    fast: Rates | None
    batch_multiplier: Fraction
    us_multiplier: Fraction | None


@dataclass(frozen=True, slots=True)
class PriceTable:
    """The prices of one model, multiplied out: `rows[LONG | BATCH | US | FAST]`, in units of 1/scale pico-dollar.

    A row is None where no price is known (fast mode together with a long-prompt tier: the two were never combined).
    """

    long_above: int
    rows: tuple[Row | None, ...]

    def cost(self, tokens: Tokens, terms: int) -> int | None:
        """`tokens` at the terms `BATCH | US | FAST`; the long-prompt row is chosen by the prompt's length."""
        if tokens.prompt > self.long_above:
            terms |= LONG
        row = self.rows[terms]
        if row is None:
            return None
        return (
            tokens.input * row[0]
            + tokens.output * row[1]
            + tokens.cache_write_5m * row[2]
            + tokens.cache_write_1h * row[3]
            + tokens.cache_read * row[4]
        )


def decimal(value: object, where: str) -> Fraction:
    """A number of the catalogue as the fraction its decimal spelling says; CatalogError naming `where` otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CatalogError(f"{where} is `{value}`, expected a number", hint="prices are plain decimal numbers")
    if isinstance(value, float) and not math.isfinite(value):
        raise CatalogError(f"{where} is `{value}`, expected a finite number")
    if value < 0:
        raise CatalogError(f"{where} is `{value}`, expected a number that is not negative")
    return Fraction(str(value))


def pusd(value: object, per: int, where: str) -> int:
    """A price in dollars as whole pico-dollars, `per` of them to the dollar; CatalogError if a fraction remains."""
    exact = decimal(value, where) * per
    if exact.denominator != 1:
        raise CatalogError(f"{where} is `{value}`, finer than a pico-dollar per token", hint="use fewer decimals")
    return exact.numerator


def read_prices(record: Mapping[str, Any], where: str) -> Prices | None:
    """The prices in one model's record of the catalogue; None when it states none. Raises CatalogError."""
    stated = record.get("usd_per_mtok")
    if stated is None:
        return None
    standard = _rates(stated, None, f"{where}.usd_per_mtok")
    tier = record.get("long_prompt_tier")
    long_above: int | None = None
    long: Rates | None = None
    if tier is not None:
        long = _rates(tier, standard, f"{where}.long_prompt_tier")
        long_above = tier.get("above_prompt_tokens")
        if isinstance(long_above, bool) or not isinstance(long_above, int) or long_above < 0:
            raise CatalogError(f"{where}.long_prompt_tier.above_prompt_tokens is `{long_above}`, expected a count")
    fast = record.get("fast_mode")
    geo = record.get("us_inference_multiplier")
    return Prices(
        standard=standard,
        long_above=long_above,
        long=long,
        fast=None if fast is None else _rates(fast, standard, f"{where}.fast_mode"),
        batch_multiplier=decimal(record.get("batch_multiplier", 1), f"{where}.batch_multiplier"),
        us_multiplier=None if geo is None else decimal(geo, f"{where}.us_inference_multiplier"),
    )


def compile_tables(prices: Mapping[str, Prices]) -> tuple[int, dict[str, PriceTable]]:
    """All prices multiplied out: (scale, table by model id). Raises CatalogError for absurdly fine multipliers."""
    exact = {model_id: _exact_rows(price) for model_id, price in prices.items()}
    scale = math.lcm(*(rate.denominator for rows in exact.values() for row in rows if row for rate in row))
    if scale > _MAX_SCALE:
        raise CatalogError("the multipliers of the catalogue are too fine", hint="write them with fewer decimals")
    return scale, {
        model_id: PriceTable(
            long_above=_NEVER if price.long_above is None else price.long_above,
            rows=tuple(None if row is None else _whole(row, scale) for row in exact[model_id]),
        )
        for model_id, price in prices.items()
    }


def _exact_rows(price: Prices) -> list[tuple[Fraction, ...] | None]:
    rows: list[tuple[Fraction, ...] | None] = []
    for terms in range(16):
        factor = Fraction(1)
        if terms & BATCH:
            factor *= price.batch_multiplier
        if terms & US and price.us_multiplier is not None:
            factor *= price.us_multiplier
        if terms & LONG and price.long is not None:
            # No price of fast mode over a long-prompt tier was ever published: unknown, never a guess.
            rows.append(None if terms & FAST and price.fast is not None else price.long.times(factor))
        else:
            rows.append((price.fast if terms & FAST and price.fast is not None else price.standard).times(factor))
    return rows


def _whole(row: Iterable[Fraction], scale: int) -> Row:
    first, second, third, fourth, fifth = ((rate * scale).numerator for rate in row)
    return (first, second, third, fourth, fifth)


def _rates(stated: object, standard: Rates | None, where: str) -> Rates:
    """The five rates of one row; a cache rate that a special row leaves out keeps its standard ratio to the input."""
    if not isinstance(stated, Mapping):
        raise CatalogError(f"{where} is `{stated}`, expected a mapping of prices")
    found: dict[str, int] = {}
    for name in ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read"):
        value = stated.get(name)
        if value is not None:
            found[name] = pusd(value, _PUSD_PER_TOKEN, f"{where}.{name}")
        elif standard is not None and name.startswith("cache_") and standard.input:
            exact = Fraction(getattr(standard, name) * found["input"], standard.input)
            if exact.denominator != 1:
                raise CatalogError(f"{where}.{name} is missing and cannot be derived exactly", hint="state it")
            found[name] = exact.numerator
        else:
            raise CatalogError(f"{where}.{name} is missing", hint="state all five prices of a token")
    return Rates(**found)
