"""What a switch costs and when it is earned back, by the catalogue's prices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.affinity.binding import Binding
from router.affinity.economics import SwitchCost, switch_cost, tokens_ratio
from router.catalog_file import load_catalog

CATALOG = load_catalog()
HAIKU, SONNET, OPUS = "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"
NOW_S = 1_795_000_000.0


def conversation(
    model: str, prefix: int, *, cached: int | None = None, output: int = 0, age_s: float = 10, ttl_s: int = 300
) -> Binding:
    """A conversation of `prefix` tokens, all of it in the prompt cache unless said otherwise."""
    return Binding("lane", model, prefix, prefix if cached is None else cached, ttl_s, output, NOW_S - age_s)


def priced(binding: Binding, to_model: str, turns: int = 1000) -> SwitchCost:
    cost = switch_cost(binding, to_model, CATALOG, now_s=NOW_S, turns=turns)
    assert cost is not None
    return cost


# Fact sheet, section 18.3: dollars per million cached tokens, and how many requests after the switch pay for it.
# `turns_to_earn` counts the switch's own turn too, so it is one more; "at once" is turn 1, "never" is None.
SHEET = [
    (OPUS, SONNET, 1_000_000, 0.20, 2.50, 0.10, 23 + 1),
    (OPUS, HAIKU, 100_000, 0.20, 0.125, 0.01, 1),
    (OPUS, HAIKU, 1_000_000, 0.20, 0.625, 0.05, 3 + 1),
    (SONNET, HAIKU, 100_000, 0.10, 0.125, 0.01, 1 + 1),
    (SONNET, HAIKU, 1_000_000, 0.10, 0.625, 0.05, 11 + 1),
    ("claude-fable-5-2", OPUS, 1_000_000, 0.20, 5.00, 0.20, None),
    ("claude-opus-4-8", OPUS, 1_000_000, 0.50, 5.00, 0.20, 15 + 1),
    ("claude-sonnet-4-6", HAIKU, 50_000, 0.30, 0.1625, 0.013, 1),  # the sheet rounds 0.1625 up
]


@pytest.mark.parametrize(("source", "target", "prefix", "read", "write", "later", "turns"), SHEET)
def test_the_table_of_the_fact_sheet_comes_out(
    source: str, target: str, prefix: int, read: float, write: float, later: float, turns: int | None
):
    """Read on the source, cold write and later read on the target, and when the switch has paid on input alone."""
    cost = priced(conversation(source, prefix), target)
    per_million = [round(usd * prefix) for usd in (read, write, later)]
    assert [cost.stay_first_pusd // 10**6, cost.switch_first_pusd // 10**6, cost.switch_later_pusd // 10**6] == [
        round(per_million[0]), round(per_million[1]), round(per_million[2]),
    ]  # fmt: skip
    assert cost.stay_later_pusd == cost.stay_first_pusd
    assert cost.turns_to_earn == turns
    assert cost.is_earned == (turns is not None)


def test_an_answer_usually_decides():
    """With answers of 500 tokens, Opus to Sonnet on 10,000 tokens is earned back far sooner than on input alone."""
    alone = priced(conversation(OPUS, 10_000), SONNET)
    talking = priced(conversation(OPUS, 10_000, output=500), SONNET)
    assert (alone.turns_to_earn, talking.turns_to_earn) == (24, 4)


def test_a_conversation_gone_cold_has_nothing_to_lose():
    """Both models write the prefix; the cheaper one is cheaper at once."""
    cost = priced(conversation(OPUS, 50_000, age_s=300), SONNET)
    assert not cost.is_warm
    assert cost.extra_pusd < 0
    assert cost.turns_to_earn == 1


def test_an_hours_cache_is_warm_after_half_of_it_and_dearer_to_write():
    """The life of the entry is that of the conversation's last writing, and the new one is priced the same way."""
    hour = priced(conversation(OPUS, 50_000, age_s=1800, ttl_s=3600), SONNET)
    assert hour.is_warm
    assert hour.switch_first_pusd == 50_000 * 4 * 10**6


def test_without_a_prompt_cache_the_cheaper_model_is_cheaper_at_once():
    """Each turn is paid in full on both."""
    cost = priced(conversation(SONNET, 50_000, cached=0), HAIKU)
    assert (cost.stay_first_pusd, cost.switch_first_pusd) == (50_000 * 2 * 10**6, 50_000 * 10**5)
    assert cost.turns_to_earn == 1


def test_only_the_cached_part_is_read_cheaply():
    """A program that marks its system prompt alone (10,000 of 100,000 tokens) pays the rest in full on each turn."""
    cost = priced(conversation(OPUS, 100_000, cached=10_000), SONNET)
    assert cost.stay_first_pusd == (10_000 * 200_000) + (90_000 * 4_000_000)
    assert cost.switch_first_pusd == (10_000 * 2_500_000) + (90_000 * 2_000_000)
    assert cost.turns_to_earn == 1  # where the whole prefix cached would take 24


def test_a_prefix_too_short_for_the_targets_cache_is_paid_in_full_there():
    """Haiku 4.5 caches from 4,096 tokens on: 3,000 are read at $0.10 here and would cost $1.00 there, each turn."""
    cost = priced(conversation(SONNET, 3_000), "claude-haiku-4-5-20251001")
    assert cost.switch_first_pusd == cost.switch_later_pusd
    assert cost.switch_later_pusd > cost.stay_later_pusd
    assert cost.turns_to_earn is None


def test_the_other_tokenizer_may_cross_a_price_tier():
    """80,000 tokens of Sonnet 4.6 are some 104,000 of Haiku 5.5, which is then in its long-prompt tier."""
    cost = priced(conversation("claude-sonnet-4-6", 80_000), HAIKU)
    assert cost.switch_first_pusd == 104_000 * 625_000
    back = priced(conversation(HAIKU, 104_000), "claude-sonnet-4-6")
    assert back.switch_first_pusd == 80_000 * 3_750_000


def test_the_ratio_of_an_unknown_model_is_one():
    """Nothing is known of its tokens."""
    assert tokens_ratio("no-such-model", HAIKU, CATALOG) == 1.0
    assert tokens_ratio(SONNET, HAIKU, CATALOG) == 1.0


def test_a_price_or_a_length_that_is_not_known_gives_no_cost():
    """No number is better than one made up: zero tokens would look earned back at once."""
    assert switch_cost(conversation(SONNET, 1000), "no-such-model", CATALOG, now_s=NOW_S, turns=5) is None
    assert switch_cost(conversation("no-such-model", 1000), SONNET, CATALOG, now_s=NOW_S, turns=5) is None
    assert switch_cost(conversation(SONNET, 0), HAIKU, CATALOG, now_s=NOW_S, turns=5) is None


def test_earned_back_means_within_the_turns_allowed():
    """Turn 24 is in time for 24 turns and late for 23; the trace carries both numbers."""
    in_time, late = (priced(conversation(OPUS, 10_000), SONNET, turns) for turns in (24, 23))
    assert (in_time.turns_to_earn, late.turns_to_earn) == (24, None)
    assert (late.recorded()["turns_allowed"], late.recorded()["turns_to_earn"]) == (23, None)


models = st.sampled_from([model.id for model in CATALOG.models if model.prices is not None])


@given(
    source=models,
    target=models,
    prefix=st.integers(1, 200_000),
    share=st.floats(0, 1),
    output=st.integers(0, 5_000),
    age_s=st.sampled_from([1, 301]),
    turns=st.integers(1, 40),
)
def test_earned_back_is_what_adding_up_turn_by_turn_gives(
    source: str, target: str, prefix: int, share: float, output: int, age_s: int, turns: int
):
    """The formula agrees with a bill kept turn by turn: from the turn named to the last, the switch is not dearer."""
    binding = conversation(source, prefix, cached=round(prefix * share), output=output, age_s=age_s)
    cost = switch_cost(binding, target, CATALOG, now_s=NOW_S, turns=turns)
    if cost is None:
        return
    ahead = []  # after each turn: has the switch cost no more?
    stay = switch = 0
    for turn in range(1, turns + 1):
        stay += cost.stay_first_pusd if turn == 1 else cost.stay_later_pusd
        switch += cost.switch_first_pusd if turn == 1 else cost.switch_later_pusd
        ahead.append(switch <= stay)
    earned = next((turn for turn in range(1, turns + 1) if all(ahead[turn - 1 :])), None)
    assert cost.turns_to_earn == earned
