"""Our prices against a price library of somebody else, kept by other people from the same public pages."""

from __future__ import annotations

import warnings
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices import calc_price

from router.catalog.records import Model
from router.catalog_file import load_catalog
from router.usage import Tokens, Usage

CATALOG = load_catalog(None)
# Each part of a price alone, then all of them together; prompts below every long-prompt tier.
KINDS = {
    "input": Tokens(input=100_000),
    "output": Tokens(output=100_000),
    "cache_read": Tokens(cache_read=100_000),
    "cache_write_5m": Tokens(cache_write_5m=100_000),
    "cache_write_1h": Tokens(cache_write_1h=100_000),
    "mixed": Tokens(input=1_234, cache_read=56_789, cache_write_5m=3_210, cache_write_1h=987, output=4_321),
}
LONG = Tokens(input=250_000, cache_read=50_000, output=10_000)
# (model, part) where we differ, and why we are right all the same. A difference that goes away fails here too.
DIFFERENT: dict[tuple[str, str], str] = {
    ("claude-sonnet-4-5-20250929", "long prompt"): (
        "they keep the tier of the 1M beta, which ended on 2026-04-30: prompts over 200k fail now and are never billed"
    ),
    ("claude-sonnet-4-20250514", "long prompt"): (
        "retired; we keep the tier it had in the 1M beta, at which requests of that time were billed; they dropped it"
    ),
}


def theirs(model: str, tokens: Tokens) -> Decimal | None:
    """Dollars by their arithmetic; None where they do not know the model. Their input includes the prompt cache."""
    written = tokens.cache_write_5m + tokens.cache_write_1h
    given: dict[str, Any] = {"input_tokens": tokens.prompt, "output_tokens": tokens.output}
    if tokens.cache_read:
        given["cache_read_tokens"] = tokens.cache_read
    if written:
        given |= {"cache_write_tokens": written, "cache_write_1h_tokens": tokens.cache_write_1h}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return calc_price(TheirUsage(**given), model_ref=model, provider_id="anthropic").total_price
    except LookupError:
        return None


def ours(model: str, tokens: Tokens) -> Fraction | None:
    cost = CATALOG.cost(Usage(tokens), model)
    return None if cost is None else Fraction(cost, 10**12)


BOTH = [model for model in CATALOG.models if model.prices is not None and theirs(model.id, KINDS["input"]) is not None]


def test_they_know_most_of_our_models() -> None:
    """Else the comparison would be of nothing."""
    assert len(BOTH) >= 20
    assert {"claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"} <= {model.id for model in BOTH}


@pytest.mark.parametrize("kind", [*KINDS, "long prompt"])
@pytest.mark.parametrize("model", BOTH, ids=lambda model: model.id)
def test_the_same_usage_costs_the_same_elsewhere(model: Model, kind: str) -> None:
    """To the pico-dollar, part by part and all together, with the tier of a long prompt."""
    tokens = KINDS.get(kind, LONG)
    their = theirs(model.id, tokens)
    assert their is not None
    is_same = ours(model.id, tokens) == Fraction(their)
    assert is_same == ((model.id, kind) not in DIFFERENT), (ours(model.id, tokens), their)
