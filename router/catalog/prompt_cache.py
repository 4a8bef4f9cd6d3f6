"""What the provider's prompt cache did to a bill: reading saved, writing cost more, both against plain input tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from router.catalog.lookup import Catalog
from router.usage import Tokens, Usage


def prompt_cache_effect(usage: Usage, model_id: str, catalog: Catalog) -> tuple[int, int] | None:
    """(what reads saved, what writes cost more) of a usage billed at `model_id`, in pico-dollars; None if unpriced.

    The prompt keeps its length, so the long-prompt tier is the same; iterations are priced as in the bill. The first
    less the second is what the same answer would have cost more without any prompt cache.
    """
    if not _touched(usage):
        return 0, 0
    cost = catalog.cost(usage, model_id)
    if cost is None:
        return None
    without_reads = catalog.cost(_moved(usage, _reads_as_input), model_id)
    without_writes = catalog.cost(_moved(usage, _writes_as_input), model_id)
    if without_reads is None or without_writes is None:
        return None
    return without_reads - cost, cost - without_writes


def _touched(usage: Usage) -> bool:
    return _has_cached(usage.tokens) or any(_has_cached(part.tokens) for part in usage.iterations)


def _has_cached(tokens: Tokens) -> bool:
    return bool(tokens.cache_read or tokens.cache_write_5m or tokens.cache_write_1h)


def _moved(usage: Usage, move: Callable[[Tokens], Tokens]) -> Usage:
    parts = tuple(replace(part, tokens=move(part.tokens)) for part in usage.iterations)
    return replace(usage, tokens=move(usage.tokens), iterations=parts)


def _reads_as_input(tokens: Tokens) -> Tokens:
    return replace(tokens, input=tokens.input + tokens.cache_read, cache_read=0)


def _writes_as_input(tokens: Tokens) -> Tokens:
    written = tokens.cache_write_5m + tokens.cache_write_1h
    return replace(tokens, input=tokens.input + written, cache_write_5m=0, cache_write_1h=0)
