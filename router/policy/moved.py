"""What a recorded usage would come to on another model: tokens converted, prompt caches found or not. An estimate."""

from __future__ import annotations

from router.affinity.economics import tokens_ratio
from router.catalog.lookup import Catalog, Model, add_up, covers
from router.usage import Iteration, Tokens, Usage


def moved_usage(usage: Usage, source: str, target: str, catalog: Catalog, *, is_warm: bool, is_hour: bool) -> Usage:
    """A recorded usage of `source` as it may be on `target`: an estimate.

    Counts are converted between tokenizers, the answer is taken to be as long in words. Unless the conversation
    `is_warm` there, what was read from the provider's prompt cache is written anew (for an hour if `is_hour`); what is
    too short for a prompt cache there is paid in full. Of several calls in one request only the first finds it cold.
    """
    ratio = tokens_ratio(source, target, catalog)
    model = catalog.find(target)
    least = 0 if model is None else model.min_cacheable_tokens
    if not usage.iterations:
        top = _moved(usage.tokens, ratio, least, is_warm, is_hour)
        return Usage(top, 0, usage.web_searches, (), usage.service_tier, usage.geo, usage.speed)
    calls = list(usage.iterations)
    own = [at for at, call in enumerate(calls) if call.model is None or same_model(call.model, source, catalog)]
    is_first = True
    are_bill = covers(add_up([call.tokens for call in calls if call.kind == "message"]), usage.tokens)
    for at in own:
        tokens = _moved(calls[at].tokens, ratio, least, is_warm or not is_first, is_hour)
        calls[at] = Iteration(calls[at].kind, calls[at].model, tokens)
        is_first = False
    if are_bill:  # and stay it, however the counts are rounded
        top = add_up([call.tokens for call in calls if call.kind == "message"])
    else:
        top = _moved(usage.tokens, ratio, least, is_warm, is_hour)
    return Usage(top, 0, usage.web_searches, tuple(calls), usage.service_tier, usage.geo, usage.speed)


def _moved(tokens: Tokens, ratio: float, least: int, is_warm: bool, is_hour: bool) -> Tokens:
    input_, output = round(tokens.input * ratio), round(tokens.output * ratio)
    read = round(tokens.cache_read * ratio)
    five, hour = round(tokens.cache_write_5m * ratio), round(tokens.cache_write_1h * ratio)
    if read + five + hour < least:
        return Tokens(input_ + read + five + hour, 0, 0, 0, output)
    if not is_warm and read:
        if is_hour:
            read, hour = 0, hour + read
        else:
            read, five = 0, five + read
    return Tokens(input_, read, five, hour, output)


def same_model(one: str, other: str, catalog: Catalog) -> bool:
    """Whether two names (ids or aliases) are one model."""
    if one == other:
        return True
    known: Model | None = catalog.find(one)
    return known is not None and known is catalog.find(other)
