"""What it costs to move a conversation to another model, and whether that is earned back: arithmetic only.

A switch re-writes the prefix on the new model at full price where the old one would have read it from its prompt cache;
each later turn is then cheaper or dearer. Both ways are priced over the turns to come with the catalogue's own prices,
long-prompt tiers included. Turns are taken to be like the last one: the same prefix, of which the same part goes
through the prompt cache and the rest is paid in full each time, and an answer of the same length. That is an estimate,
and the trace calls it so. What the new user turn adds is left out: it costs its price on either model.
Source: Anthropic fact sheet, sections 5 and 18.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.affinity.binding import Binding
from router.catalog.lookup import Catalog
from router.usage import Tokens, Usage

_OTHER_TOKENIZER = 1.3  # the same text is about 30 % more tokens with the newer one. Source: fact sheet, section 1


@dataclass(frozen=True, slots=True)
class SwitchCost:
    """A change of model, priced. Pico-dollars; all of it an estimate from the last turn.

    `stay_first`/`stay_later` is what the next turn and each one after it cost on the bound model, `switch_first` and
    `switch_later` the same on the other. `turns_to_earn` is the turn at whose end the switch has cost no more, None
    when that does not come within `turns_allowed`.
    """

    from_model: str
    to_model: str
    prefix_tokens: int
    is_warm: bool
    stay_first_pusd: int
    stay_later_pusd: int
    switch_first_pusd: int
    switch_later_pusd: int
    turns_allowed: int
    turns_to_earn: int | None

    @property
    def is_earned(self) -> bool:
        """Whether the switch pays within the turns allowed."""
        return self.turns_to_earn is not None

    @property
    def extra_pusd(self) -> int:
        """What the next turn costs more for the switch; negative when it is cheaper at once."""
        return self.switch_first_pusd - self.stay_first_pusd

    def recorded(self) -> Mapping[str, Any]:
        """The arithmetic as a trace carries it; integers of pico-dollars."""
        return {
            "from_model": self.from_model,
            "to_model": self.to_model,
            "prefix_tokens": self.prefix_tokens,
            "is_warm": self.is_warm,
            "stay_first_pusd": self.stay_first_pusd,
            "stay_later_pusd": self.stay_later_pusd,
            "switch_first_pusd": self.switch_first_pusd,
            "switch_later_pusd": self.switch_later_pusd,
            "turns_allowed": self.turns_allowed,
            "turns_to_earn": self.turns_to_earn,
        }


def switch_cost(binding: Binding, to_model: str, catalog: Catalog, *, now_s: float, turns: int) -> SwitchCost | None:
    """What moving the conversation to `to_model` would cost over `turns` turns; None where it cannot be told.

    That is where a price is unknown, or the length of the conversation is (its only answer came from a cache).
    """
    prefix, output = binding.prefix_tokens, binding.output_tokens
    if not prefix:
        return None
    ratio = tokens_ratio(binding.model, to_model, catalog)
    is_warm, is_hour = binding.is_warm(now_s), binding.cache_ttl_s > 300
    cached = binding.cached_tokens
    stay_first = _price(catalog, binding.model, cached, prefix - cached, output, is_read=is_warm, is_hour=is_hour)
    stay_later = _price(catalog, binding.model, cached, prefix - cached, output, is_read=True, is_hour=is_hour)
    answered, whole, kept = round(output * ratio), round(prefix * ratio), round(cached * ratio)
    target = catalog.find(to_model)
    if target is not None and kept < target.min_cacheable_tokens:
        kept = 0  # too short for a prompt cache there: every turn pays in full
    switch_first = _price(catalog, to_model, kept, whole - kept, answered, is_read=False, is_hour=is_hour)
    switch_later = _price(catalog, to_model, kept, whole - kept, answered, is_read=True, is_hour=is_hour)
    if stay_first is None or stay_later is None or switch_first is None or switch_later is None:
        return None
    return SwitchCost(
        from_model=binding.model,
        to_model=to_model,
        prefix_tokens=prefix,
        is_warm=is_warm,
        stay_first_pusd=stay_first,
        stay_later_pusd=stay_later,
        switch_first_pusd=switch_first,
        switch_later_pusd=switch_later,
        turns_allowed=turns,
        turns_to_earn=_turns_to_earn(switch_first - stay_first, stay_later - switch_later, turns),
    )


def tokens_ratio(from_model: str, to_model: str, catalog: Catalog) -> float:
    """How many tokens of `to_model` one token of `from_model` is, roughly; 1 where a model is unknown."""
    source, target = catalog.find(from_model), catalog.find(to_model)
    if source is None or target is None or source.tokenizer == target.tokenizer:
        return 1.0
    return _OTHER_TOKENIZER if target.tokenizer > source.tokenizer else 1 / _OTHER_TOKENIZER


def _price(
    catalog: Catalog, model: str, cached: int, uncached: int, output: int, *, is_read: bool, is_hour: bool
) -> int | None:
    """One turn: `cached` tokens are read from the prompt cache or written to it, the rest is paid in full."""
    if is_read:
        tokens = Tokens(input=uncached, cache_read=cached, output=output)
    elif is_hour:
        tokens = Tokens(input=uncached, cache_write_1h=cached, output=output)
    else:
        tokens = Tokens(input=uncached, cache_write_5m=cached, output=output)
    return catalog.cost(Usage(tokens), model)


def _turns_to_earn(extra: int, gain: int, turns: int) -> int | None:
    """The first turn at whose end `extra` less `gain` for each later turn is no more than 0, and stays so."""
    if extra <= 0:
        return 1 if extra - gain * (turns - 1) <= 0 else None
    if gain <= 0:
        return None
    needed = 1 + -(-extra // gain)
    return needed if needed <= turns else None
