"""Requests whose price has parts: prompt caches of both lives, iterations of each kind, long prompts, searches.

Which model they end on is the router's affair: some stay where they were sent, because nothing else would take them,
others are moved.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kit.varied import body_of

HAIKU, SONNET, OPUS = "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"
_OLD = ("claude-haiku-4-5", "claude-sonnet-4-5")  # they take no `inference_geo`
_LETTER = "The archive of the harbour holds letters, maps, ledgers and two models of ships that were never built. "
_TOKENS = 37  # of one letter, about, by the newer tokenizer
_NO_BETAS: tuple[str, ...] = ()
_COMPACT, _ON_DEMAND = ("compact-2026-01-12",), ("compact-2026-09-04",)
_FALLBACK, _ADVISOR = ("server-side-fallback-2026-07-01",), ("advisor-tool-2026-03-01",)


@dataclass(frozen=True)
class Costly:
    """A request body and the betas that it needs."""

    body: dict[str, Any]
    betas: tuple[str, ...] = _NO_BETAS


def threshold_compaction(dice: random.Random, number: int) -> Costly:
    """A conversation over the threshold; on Haiku sometimes over the step in its price too, before it is summarised."""
    body = body_of(dice, number, model=dice.choice((HAIKU, SONNET)))
    tokens = 110_000 if body["model"] == HAIKU and dice.random() < 0.5 else 55_000
    told = [{"role": "user", "content": _LETTER * (tokens // _TOKENS)}, {"role": "assistant", "content": "I see."}]
    body["messages"] = [*told, body["messages"][-1]]
    edit = {"type": "compact_20260112", "trigger": {"type": "input_tokens", "value": 50_000}}
    if dice.random() < 0.3:
        edit["pause_after_compaction"] = True
    body["context_management"] = {"edits": [edit]}
    return Costly(body, _COMPACT)


def compaction_on_demand(dice: random.Random, number: int) -> Costly:
    """A summary is all that is asked for."""
    body = body_of(dice, number, model=dice.choice((HAIKU, SONNET, OPUS, "claude-sonnet-4-6")))
    body["compaction"] = {"type": "summarize"}
    return Costly(body, _ON_DEMAND)


def fallback(dice: random.Random, number: int) -> Costly:
    """Declined by one model, by several, by all or by none; in the middle of the answer, or before it."""
    model = dice.choice((SONNET, OPUS, "claude-opus-5"))
    listed = {
        SONNET: ["claude-sonnet-5"],
        OPUS: ["claude-opus-5", "claude-opus-4-8"],
        "claude-opus-5": ["claude-opus-4-8"],
    }
    body = body_of(dice, number, model=model)
    body["fallbacks"] = dice.choice(("default", [{"model": name} for name in listed[model]]))
    # A few conversations that come again, so that some stay with the model that took them.
    opening = [{"role": "user", "content": f"About lock number {dice.randrange(20)}."}]
    body["messages"] = [*opening, {"role": "assistant", "content": "What of it?"}, body["messages"][-1]]
    mark = dice.choice(("SIMULATE_REFUSAL", "SIMULATE_LATE_REFUSAL"))
    one = f"{mark}({model} {SONNET})"  # Sonnet too: the request may be moved there
    add_text(body, dice.choice(("", one, one, f"{mark}({model} {SONNET} claude-opus-5)", "SIMULATE_REFUSAL")))
    return Costly(body, _FALLBACK)


def advisor(dice: random.Random, number: int) -> Costly:
    """An executor with an advisor, with a prompt cache for the one, for the other, for both or for none."""
    pairs = (
        (HAIKU, OPUS),
        (HAIKU, SONNET),
        (SONNET, OPUS),
        (OPUS, "claude-opus-5"),
        ("claude-haiku-4-5", "claude-opus-4-8"),
    )
    model, helper = dice.choice(pairs)
    body = body_of(dice, number, model=model)
    tool: dict[str, Any] = {"type": "advisor_20260301", "name": "advisor", "model": helper}
    if dice.random() < 0.5:
        tool["caching"] = {"type": "ephemeral", "ttl": dice.choice(("5m", "1h"))}
    body["tools"] = [*body.get("tools", []), tool]
    if dice.random() < 0.3:
        _with_shared_rules(dice, body)
    return Costly(body, _ADVISOR)


def long_prompt(dice: random.Random, number: int) -> Costly:
    """Over a hundred thousand tokens on Haiku 5.5, where each costs five times as much."""
    body = body_of(dice, number, model=HAIKU)
    text = _LETTER * (dice.choice((90_000, 105_000, 130_000)) // _TOKENS)
    block = {"type": "text", "text": text}
    if dice.random() < 0.5:
        block |= {"cache_control": {"type": "ephemeral"}}
    body["messages"] = [
        {"role": "user", "content": [block, {"type": "text", "text": f"Summarize this. (No. {number})"}]}
    ]
    return Costly(body)


def fast(dice: random.Random, number: int) -> Costly:
    """Fast mode, where it is sold: without a header, or as a preview with one."""
    model = dice.choice((OPUS, "claude-opus-5"))
    body = body_of(dice, number, model=model) | {"speed": "fast"}
    return Costly(body, ("fast-mode-2026-02-01",) if model == "claude-opus-5" else _NO_BETAS)


def in_the_us(dice: random.Random, number: int) -> Costly:
    """Ten per cent dearer, with whatever else has parts."""
    made = dice.choice((advisor, compaction_on_demand, fallback, cached, searching, plain))(dice, number)
    if made.body["model"] in _OLD:
        made.body["model"] = HAIKU
        made.body["tools"] = [tool for tool in made.body.get("tools", []) if "model" not in tool]
    made.body["inference_geo"] = "us"
    return made


def searching(dice: random.Random, number: int) -> Costly:
    """A web search, a cent each."""
    body = body_of(dice, number)
    body["tools"] = [{"type": "web_search_20250305", "name": "web_search"}]
    body.pop("output_config", None)
    return Costly(body)


def cached(dice: random.Random, number: int) -> Costly:
    """One of a few long prompts that many requests share: written once, for five minutes or an hour, then read."""
    body = body_of(dice, number)
    _with_shared_rules(dice, body)
    return Costly(body)


def plain(dice: random.Random, number: int) -> Costly:
    """Nothing special."""
    return Costly(body_of(dice, number))


# Of a hundred requests: eight with iterations, twelve whose price has other parts.
KINDS: tuple[Callable[[random.Random, int], Costly], ...] = (
    *(threshold_compaction, compaction_on_demand, fallback, fallback, fallback, advisor, advisor, advisor),
    *(fast, in_the_us, in_the_us, searching, searching, *[cached] * 7),
)


def add_text(body: dict[str, Any], text: str) -> None:
    """Say more at the end of the last turn."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        body["messages"][-1]["content"] = f"{content}\n{text}"
    else:
        content[-1]["text"] += f"\n{text}"


def _with_shared_rules(dice: random.Random, body: dict[str, Any]) -> None:
    """One of three system prompts of several thousand tokens; one has a shorter life behind a longer one."""
    which = dice.randrange(3)
    rules = " ".join(f"Rule {n} of book {which}: {_LETTER}" for n in range(150))
    long, short = {"type": "ephemeral", "ttl": "1h"}, {"type": "ephemeral"}
    body["system"] = [{"type": "text", "text": rules, "cache_control": (short, long, long)[which]}]
    if which == 2:
        body["cache_control"] = short  # automatic: the last block that can carry a marker
