"""The swap check, row by row: what a model would refuse or change keeps the model that was asked for."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.catalog_file import load_catalog
from router.swap.adapt import adapted
from router.swap.check import Verdict, can_serve
from router.swap.edits import EDITS
from router.wire.messages import read_request

CATALOG = load_catalog()
OLD, NEW = "2023-06-01", "2026-10-21"
FORCED = {"type": "tool", "name": "label"}
TOOL = {"name": "label", "description": "d", "input_schema": {"type": "object"}}
ADAPTIVE = {"type": "adaptive", "display": "omitted"}

FABLE_5_2, FABLE_5_1, FABLE_5 = "claude-fable-5-2", "claude-fable-5-1", "claude-fable-5"
OPUS_5_5, OPUS_5, OPUS_4_8, OPUS_4_7 = "claude-opus-5-5", "claude-opus-5", "claude-opus-4-8", "claude-opus-4-7"
SONNET_5_5, SONNET_5, HAIKU_5_5 = "claude-sonnet-5-5", "claude-sonnet-5", "claude-haiku-5-5"
OPUS_4_6, SONNET_4_6, OPUS_4_5 = "claude-opus-4-6", "claude-sonnet-4-6", "claude-opus-4-5"
SONNET_4_5, HAIKU_4_5 = "claude-sonnet-4-5", "claude-haiku-4-5"
# One model per column of the sheet's table, the two 4.8/4.7 and the two 4.5 columns apart.
COLUMNS = (FABLE_5_2, FABLE_5_1, FABLE_5, OPUS_5_5, OPUS_5, OPUS_4_8, OPUS_4_7, SONNET_5_5, SONNET_5, HAIKU_5_5)
COLUMNS = (*COLUMNS, OPUS_4_6, SONNET_4_6, OPUS_4_5, SONNET_4_5, HAIKU_4_5)
NEWEST = {FABLE_5_2, FABLE_5_1, FABLE_5, OPUS_5_5, OPUS_5, OPUS_4_8, OPUS_4_7, SONNET_5_5, SONNET_5, HAIKU_5_5}
SIX = {OPUS_4_6, SONNET_4_6}
FIVES = {OPUS_4_5, SONNET_4_5, HAIKU_4_5}
ALL = NEWEST | SIX | FIVES


def check(
    target: str, *, asked: str | None = None, version: str = NEW, betas: tuple = (), tokens: int = 20, **body
) -> Verdict:
    """The verdict on a small body with the given fields; `asked` None is the virtual model `auto`."""
    body = {
        "model": asked or "auto",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": "hi"}],
        **body,
    }
    request = read_request(json.dumps(body).encode(), needs_max_tokens=False)
    return can_serve(
        request,
        CATALOG.find(target),
        asked=CATALOG.find(asked) if asked else None,
        api_version=version,
        betas=betas,
        input_tokens=tokens,
    )


def talk(*turns: tuple) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def typed(kind: str, **more: object) -> dict:
    return {"tools": [{"type": kind, "name": "t", **more}]}


# One line per row of the table "What each model accepts": the body, and the columns that take it.
ACCEPTS = {
    "nothing special": ({}, ALL),
    "thinking adaptive": ({"thinking": {"type": "adaptive"}}, NEWEST | SIX),
    "thinking enabled": ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, SIX | FIVES),
    "thinking disabled": (
        {"thinking": {"type": "disabled"}},
        {OPUS_5, OPUS_4_8, OPUS_4_7, SONNET_5, HAIKU_5_5} | SIX | FIVES,
    ),
    "thinking disabled, effort high": (
        {"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}},
        {OPUS_5, OPUS_4_8, OPUS_4_7, SONNET_5, HAIKU_5_5, OPUS_4_5} | SIX,
    ),
    "thinking disabled, effort xhigh": (
        {"thinking": {"type": "disabled"}, "output_config": {"effort": "xhigh"}},
        {OPUS_4_8, OPUS_4_7, SONNET_5},
    ),
    "thinking between tools": ({"thinking": {"type": "between_tools"}}, {SONNET_5_5}),
    "thinking between tools, effort max": (
        {"thinking": {"type": "between_tools"}, "output_config": {"effort": "max"}},
        set(),
    ),
    "thinking between tools, sibling": ({"thinking": {"type": "between_tools", "display": "omitted"}}, set()),
    "thinking of an unknown type": ({"thinking": {"type": "quantum"}}, set()),
    "thinking that is no object": ({"thinking": True}, set()),
    "thinking budget at its least": ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, SIX | FIVES),
    "thinking budget too small": ({"thinking": {"type": "enabled", "budget_tokens": 1023}}, set()),
    "thinking budget not below max_tokens": ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, set()),
    "thinking budget missing": ({"thinking": {"type": "enabled"}}, set()),
    "thinking display updates": ({"thinking": {"type": "adaptive", "display": "updates"}}, set()),
    "thinking block_binding": (
        {"thinking": {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "drop_block"}}},
        {FABLE_5_2, FABLE_5_1, OPUS_5_5, SONNET_5_5, HAIKU_5_5},
    ),
    "effort low": ({"output_config": {"effort": "low"}}, NEWEST | SIX | {OPUS_4_5}),
    "effort max": ({"output_config": {"effort": "max"}}, NEWEST | SIX),
    "effort xhigh": ({"output_config": {"effort": "xhigh"}}, NEWEST),
    "effort unknown": ({"output_config": {"effort": "huge"}}, set()),
    "output_config unknown": ({"output_config": {"style": 1}}, set()),
    "prefill": (talk(("user", "hi"), ("assistant", "{")), FIVES),
    "prefill, then a tool change": (
        talk(("user", "hi"), ("assistant", "{"), ("system", [{"type": "tool_removal"}])),
        set(),
    ),
    "prefill while thinking": (
        {**talk(("user", "hi"), ("assistant", "{")), "thinking": {"type": "enabled", "budget_tokens": 2048}},
        set(),
    ),
    "tool_choice tool": (
        {"tools": [TOOL], "tool_choice": FORCED},
        ALL - {FABLE_5_2, FABLE_5_1, OPUS_5_5, SONNET_5_5},
    ),
    "tool_choice any": (
        {"tools": [TOOL], "tool_choice": {"type": "any"}},
        ALL - {FABLE_5_2, FABLE_5_1, OPUS_5_5, SONNET_5_5},
    ),
    "tool_choice forced, budget thinking": (
        {"tools": [TOOL], "tool_choice": FORCED, "thinking": {"type": "enabled", "budget_tokens": 2048}},
        set(),
    ),
    "tool_choice auto": ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, ALL),
    "tool_choice none": ({"tools": [TOOL], "tool_choice": {"type": "none"}}, ALL),
    "tool_choice unknown": ({"tools": [TOOL], "tool_choice": {"type": "maybe"}}, set()),
    "role system in messages": (
        talk(("user", "hi"), ("system", "be brief")),
        {FABLE_5_2, FABLE_5_1, FABLE_5, OPUS_5_5, OPUS_5, OPUS_4_8, SONNET_5_5, HAIKU_5_5},
    ),
    "role unknown": (talk(("user", "hi"), ("critic", "no")), set()),
    "effort per message": (
        {"messages": [{"role": "user", "content": "hi", "output_config": {"effort": "low"}}]},
        {FABLE_5_2, FABLE_5_1, OPUS_5_5, OPUS_5, SONNET_5_5, HAIKU_5_5},
    ),
    "effort per message, thinking off": (
        {
            "messages": [{"role": "user", "content": "hi", "output_config": {"effort": "low"}}],
            "thinking": {"type": "disabled"},
        },
        set(),
    ),
    "unknown message field": ({"messages": [{"role": "user", "content": "hi", "clear_at": "x"}]}, set()),
    "inference_geo": ({"inference_geo": "us"}, NEWEST | SIX),
    "speed fast": ({"speed": "fast"}, {FABLE_5_2, OPUS_5_5}),
    "speed standard": ({"speed": "standard"}, ALL),
    "speed unknown": ({"speed": "warp"}, set()),
    "basic web search": (typed("web_search_20250305"), ALL),
    "basic web fetch": (typed("web_fetch_20250910"), ALL),
    "web search with filtering": (typed("web_search_20260209"), (NEWEST | SIX) - {HAIKU_5_5}),
    "web fetch with filtering": (typed("web_fetch_20260318"), (NEWEST | SIX) - {HAIKU_5_5}),
    "programmatic tool calling": (
        {"tools": [{**TOOL, "allowed_callers": ["code_execution_20260120"]}]},
        ALL - {HAIKU_4_5},
    ),
    "direct callers only": ({"tools": [{**TOOL, "allowed_callers": ["direct"]}]}, ALL),
    "newer code execution": (typed("code_execution_20260521"), ALL - {HAIKU_4_5}),
    "code execution": (typed("code_execution_20250825"), ALL),
    "tool search": (typed("tool_search_tool_bm25_20251119"), ALL - {HAIKU_4_5}),
    "deferred tool": ({"tools": [{**TOOL, "defer_loading": True}]}, ALL - {HAIKU_4_5}),
    "bash, editor, memory": (
        {"tools": [{"type": t} for t in ("bash_20250124", "text_editor_20250728", "memory_20250818")]},
        ALL,
    ),
    "mcp": ({**typed("mcp_toolset"), "mcp_servers": [{"type": "url", "url": "https://mcp.test", "name": "m"}]}, ALL),
    "computer toolset": (
        typed("computer_toolset_20260801"),
        NEWEST - {OPUS_4_7},
    ),
    "computer 2025-11": (
        typed("computer_20251124"),
        {FABLE_5_1, FABLE_5, OPUS_5, OPUS_4_8, OPUS_4_7, SONNET_5, OPUS_4_5} | SIX,
    ),
    "computer 2025-01": (typed("computer_20250124"), {SONNET_4_5, HAIKU_4_5}),
    "browser toolset": (typed("browser_toolset_20260801"), set()),
    "advisor": (typed("advisor_20260301", model=OPUS_5_5), set()),
    "unknown tool type": (typed("teleport_20270101"), set()),
    "unknown tool field": ({"tools": [{**TOOL, "colour": "red"}]}, set()),
    "structured output": ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, ALL),
    "old structured output": ({"output_format": {"type": "json_schema", "schema": {}}}, ALL),
    "strict tool": ({"tools": [{**TOOL, "strict": True}]}, ALL),
    "task budget": (
        {"output_config": {"task_budget": {"total": 5}}},
        NEWEST - {SONNET_5},
    ),
    "compaction edit": ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, NEWEST | SIX),
    "compaction": ({"compaction": {"type": "summarize"}}, NEWEST | SIX),
    "clear tool uses": ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, ALL),
    "clear thinking": (
        {"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}},
        NEWEST - {OPUS_4_8, OPUS_4_7},
    ),
    "unknown context edit": ({"context_management": {"edits": [{"type": "forget"}]}}, set()),
    "service tier standard": ({"service_tier": "standard_only"}, ALL),
    "service tier unknown": ({"service_tier": "priority"}, set()),
    "default fallback": ({"fallbacks": "default"}, {FABLE_5_2, FABLE_5_1, FABLE_5, OPUS_5_5, OPUS_5, SONNET_5_5}),
    "fallback to opus 4.8": (
        {"fallbacks": [{"model": OPUS_4_8}]},
        {FABLE_5_2, FABLE_5_1, FABLE_5, OPUS_5_5, OPUS_5},
    ),
    "thread": ({"thread": {"type": "create"}}, set()),
    "container": ({"container": "container_1"}, set()),
    "fallback credit": ({"fallback_credit_token": "t"}, set()),
    "unknown field": ({"mood": "good"}, set()),
    "null is left out": ({"thinking": None, "tools": None, "mood": None, "temperature": None}, ALL),
    "tool added in the conversation": (
        talk(("user", [{"type": "tool_addition", "tool": TOOL}])),
        {FABLE_5_2, FABLE_5_1, FABLE_5, OPUS_5_5, OPUS_5, OPUS_4_8, SONNET_5_5, HAIKU_5_5},
    ),
    "compaction block": (talk(("assistant", [{"type": "compaction", "content": "s"}]), ("user", "go")), set()),
    "code execution state": (
        talk(("assistant", [{"type": "code_execution_tool_result"}]), ("user", "go")),
        set(),
    ),
    "uploaded to a container": (talk(("user", [{"type": "container_upload", "file_id": "f"}])), set()),
    "fallback block": (talk(("assistant", [{"type": "fallback"}]), ("user", "go")), set()),
    "unknown block": (talk(("user", [{"type": "hologram"}])), set()),
    "block that is no object": (talk(("user", ["hi", 5])), set()),
    "block of an odd type": (talk(("user", [{"type": ["text"]}])), set()),
    "pending server tool": (
        talk(("user", "q"), ("assistant", [{"type": "server_tool_use"}, {"type": "tool_use"}]), ("user", "r")),
        set(),
    ),
    "answered server tool": (
        talk(
            ("user", "q"),
            ("assistant", [{"type": "server_tool_use"}, {"type": "web_search_tool_result"}]),
            ("user", "r"),
        ),
        ALL,
    ),
    "ordinary tool loop": (
        talk(
            ("user", [{"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}, {"type": "image"}]),
            ("assistant", [{"type": "text", "text": "a"}, {"type": "tool_use"}]),
            ("user", [{"type": "tool_result", "content": [{"type": "text"}, {"type": "image"}]}, {"type": "document"}]),
        ),
        ALL,
    ),
    "harmless fields": (
        {
            "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            "stop_sequences": ["x"],
            "metadata": {"user_id": "u"},
            "stream": True,
            "diagnostics": {"previous_message_id": None},
            "cache_control": {"type": "ephemeral"},
        },
        ALL,
    ),
    "100 images": (talk(("user", [{"type": "image"}] * 100)), ALL),
    "101 images": (talk(("user", [{"type": "image"}] * 101)), NEWEST | SIX),
    "601 images": (talk(("user", [{"type": "tool_result", "content": [{"type": "image"}] * 601}])), set()),
    "max_tokens 64,000": ({"max_tokens": 64_000}, ALL),
    "max_tokens 64,001": ({"max_tokens": 64_001}, NEWEST | SIX),
    "max_tokens 128,001": ({"max_tokens": 128_001}, set()),
}


@pytest.mark.parametrize("row", ACCEPTS)
def test_a_target_serves_exactly_what_it_is_known_to_take(row):
    """Section 3 of the sheet, and the fields of sections 4, 14 and 18, for a request to a virtual model."""
    body, takers = ACCEPTS[row]
    verdicts = {target: check(target, **body) for target in COLUMNS}
    assert {target for target, verdict in verdicts.items() if verdict.is_ok} == takers, verdicts


@pytest.mark.parametrize("asked", COLUMNS)
def test_the_model_asked_for_may_always_serve(asked):
    """Whatever a request carries, it goes to its own model unchecked, and to no other."""
    body = {"mood": 1, "thread": {"type": "create"}, "max_tokens": 10**7, "thinking": {"type": "quantum"}}
    assert [target for target in COLUMNS if check(target, asked=asked, **body).is_ok] == [asked]


def test_an_alias_and_its_dated_id_are_one_model():
    """`claude-haiku-4-5` asked, `claude-haiku-4-5-20251001` in the lane."""
    assert check("claude-haiku-4-5-20251001", asked="claude-haiku-4-5", thread={"type": "create"}).is_ok


SAMPLING = [
    # body, version, takers among (HAIKU_5_5, OPUS_5_5, OPUS_4_7, SONNET_4_6, OPUS_4_5, HAIKU_4_5)
    ({"temperature": 1}, OLD, {HAIKU_5_5, SONNET_4_6, OPUS_4_5, HAIKU_4_5}),  # on the others pages disagree
    ({"temperature": 1.0}, OLD, {HAIKU_5_5, SONNET_4_6, OPUS_4_5, HAIKU_4_5}),
    ({"temperature": 0}, OLD, {SONNET_4_6, OPUS_4_5, HAIKU_4_5}),
    ({"temperature": True}, OLD, {SONNET_4_6, OPUS_4_5, HAIKU_4_5}),
    ({"top_p": 0.99}, OLD, {HAIKU_5_5, SONNET_4_6, OPUS_4_5, HAIKU_4_5}),
    ({"top_p": 0.9}, OLD, {SONNET_4_6, OPUS_4_5, HAIKU_4_5}),
    ({"top_k": 40}, OLD, {SONNET_4_6, OPUS_4_5, HAIKU_4_5}),
    ({"temperature": 1, "top_p": 0.99}, OLD, {SONNET_4_6}),
    ({"temperature": 1}, NEW, set()),
    ({"top_p": 0.99}, NEW, set()),
    ({"top_k": 1}, NEW, set()),
    ({"temperature": 1}, "2027-01-01", set()),
    ({"temperature": 1}, "", set()),
    ({"temperature": 0.5, "thinking": {"type": "enabled", "budget_tokens": 2000}}, OLD, set()),
    (
        {"temperature": 1, "thinking": {"type": "enabled", "budget_tokens": 2000}},
        OLD,
        {SONNET_4_6, OPUS_4_5, HAIKU_4_5},
    ),
]


@pytest.mark.parametrize("target", [HAIKU_5_5, OPUS_5_5, OPUS_4_7, SONNET_4_6, OPUS_4_5, HAIKU_4_5])
@pytest.mark.parametrize(("body", "version", "takers"), SAMPLING)
def test_sampling_follows_the_api_version(body, version, takers, target):
    """2023-06-01: default only on 4.7 and later, with Haiku's own rule for `top_p`; later versions: never."""
    assert check(target, version=version, **body).is_ok == (target in takers)


def test_the_default_temperature_moves_between_models_of_one_rule():
    """Whether it passes on 4.7 and later is an open point, so the model asked for must be in the same doubt."""
    assert check(OPUS_5_5, asked=SONNET_5_5, version=OLD, temperature=1).is_ok
    assert not check(OPUS_5_5, asked=SONNET_4_6, version=OLD, temperature=1).is_ok
    assert not check(OPUS_5_5, asked=SONNET_5_5, version=OLD, temperature=0).is_ok


@pytest.mark.parametrize("asked", COLUMNS)
def test_leaving_thinking_out_never_starts_thinking_behind_the_callers_back(asked):
    """A model that does not think when `thinking` is left out is never replaced by one that does."""
    quiet = {OPUS_4_8, OPUS_4_7} | SIX | FIVES
    refused = set()
    for target in COLUMNS:
        reasons = check(target, asked=asked, max_tokens=20).reasons
        if any("`thinking` is left out" in reason for reason in reasons):
            refused.add(target)
    assert refused == (ALL - quiet if asked in quiet else set())


def test_a_small_answer_moves_between_models_with_the_same_default():
    """The main use: a label of 20 tokens asked of Sonnet 5.5 goes to Haiku 5.5, which thinks exactly as it does."""
    assert check(HAIKU_5_5, asked=SONNET_5_5, max_tokens=20).is_ok
    assert check(HAIKU_5_5, asked=OPUS_5_5, max_tokens=20).is_ok
    assert check(HAIKU_4_5, asked=SONNET_5_5, max_tokens=20).is_ok


def test_a_forced_tool_on_haiku_skips_thinking():
    """So a model that does not think may be replaced by it there."""
    assert check(HAIKU_5_5, asked=OPUS_4_8, max_tokens=20, tools=[TOOL], tool_choice=FORCED).is_ok


def test_an_explicit_setting_moves_where_both_take_it():
    """`disabled` means the same on Opus 4.8 and Haiku 5.5."""
    assert check(HAIKU_5_5, asked=OPUS_4_8, max_tokens=20, thinking={"type": "disabled"}).is_ok


def test_thinking_text_does_not_vanish():
    """Without `display`, 4.6 models show a summary and newer ones nothing; said explicitly it is the same."""
    assert not check(HAIKU_5_5, asked=SONNET_4_6, thinking={"type": "adaptive"}).is_ok
    assert check(HAIKU_5_5, asked=SONNET_4_6, thinking=ADAPTIVE).is_ok
    assert check(HAIKU_5_5, asked=SONNET_5_5, thinking={"type": "adaptive"}).is_ok


@pytest.mark.parametrize("kind", ["thinking", "redacted_thinking"])
@pytest.mark.parametrize("target", COLUMNS)
def test_thinking_in_the_history_keeps_the_model(kind, target):
    """The bytes do not name the producer, so nobody but the model asked for is sure to read it."""
    history = talk(("user", "q"), ("assistant", [{"type": kind}, {"type": "text", "text": "a"}]), ("user", "r"))
    asked = SONNET_5_5 if target != SONNET_5_5 else OPUS_5_5
    assert not check(target, asked=asked, **history).is_ok
    assert check(asked, asked=asked, **history).is_ok
    assert not check(target, **history).is_ok  # a virtual model asked for: the default lane goes on with it


def test_retired_models_never_serve():
    """They answer 404."""
    for model in CATALOG.models:
        if model.is_retired:
            assert any("retired" in reason for reason in check(model.id, asked=SONNET_5_5).reasons)
            assert any("retired" in reason for reason in check(model.id).reasons)


@pytest.mark.parametrize("target", [FABLE_5_2, FABLE_5_1, FABLE_5, "claude-mythos-5-2", "claude-mythos-preview"])
def test_fable_and_mythos_need_data_retention(target):
    """A zero-data-retention organization gets a 400 there on everything; who asked for Fable has it."""
    assert any("retention" in reason for reason in check(target, asked=OPUS_5_5).reasons)
    assert not any("retention" in reason for reason in check(target, asked="claude-fable-5").reasons)


def test_mythos_is_for_verified_organizations():
    """Asking for Fable does not prove it."""
    assert any("verified" in reason for reason in check("claude-mythos-5-2", asked=FABLE_5_2).reasons)
    assert check("claude-mythos-5-2", asked="claude-mythos-5-1").is_ok


@pytest.mark.parametrize(
    ("target", "asked", "tokens", "is_ok"),
    [
        (HAIKU_4_5, SONNET_5_5, 150_000, True),
        (HAIKU_4_5, SONNET_5_5, 160_000, False),  # a quarter more and 4,096 of output
        (HAIKU_5_5, SONNET_5_5, 990_000, True),  # the same window and tokenizer: what fits there fits here
        (HAIKU_5_5, None, 990_000, False),
        (SONNET_5, SONNET_4_6, 900_000, False),  # the newer tokenizer yields more tokens
        (HAIKU_4_5, SONNET_4_5, 195_000, True),
    ],
)
def test_a_prompt_must_fit_the_window_with_a_margin(target, asked, tokens, is_ok):
    """The token count is an estimate, and tokenizers differ by up to a half."""
    body = {"thinking": {"type": "disabled"}} if asked == SONNET_4_6 else {}
    assert check(target, asked=asked, tokens=tokens, **body).is_ok == is_ok


def test_a_cache_pre_warm_stays_with_its_model():
    """`max_tokens: 0` warms the cache of one model."""
    assert not check(HAIKU_5_5, asked=SONNET_5_5, max_tokens=0).is_ok


def test_priority_capacity_is_not_taken_away():
    """`service_tier: auto` may mean Priority where the model asked for has it, which newer models refuse."""
    assert not check(HAIKU_5_5, asked=SONNET_4_5, service_tier="auto", thinking={"type": "disabled"}).is_ok
    assert check(HAIKU_5_5, asked=SONNET_5_5, service_tier="auto").is_ok
    assert check(HAIKU_4_5, asked=SONNET_4_5, service_tier="auto").is_ok
    assert check(HAIKU_5_5, service_tier="auto").is_ok


def test_documents_do_not_move_to_a_lower_page_limit():
    """100 pages on 200k models, 600 elsewhere; pages are not counted here."""
    document = talk(("user", [{"type": "document"}, {"type": "text", "text": "?"}]))
    assert not check(HAIKU_4_5, asked=SONNET_5_5, **document).is_ok
    assert check(HAIKU_5_5, asked=SONNET_5_5, **document).is_ok


def test_betas_are_harmless_when_known_and_a_doubt_when_not():
    """A beta without its field does nothing; one that nobody knows might."""
    claude_code = (
        "claude-code-20250219",
        "interleaved-thinking-2025-05-14",
        "effort-2025-11-24",
        "context-1m-2025-08-07",
    )
    assert check(HAIKU_5_5, asked=SONNET_5_5, betas=claude_code).is_ok
    verdict = check(HAIKU_5_5, asked=SONNET_5_5, betas=("time-travel-2027-01-01",))
    assert verdict.reasons == ("beta `time-travel-2027-01-01` is not known to work here",)


def test_a_model_unknown_to_the_catalogue_is_not_swapped():
    """Nothing is known of what its caller relies on; `auto` and `lane:NAME` are ours."""
    for name, is_ok in (("claude-next-9", False), ("", False), ("auto", True), ("lane:haiku", True)):
        body = {"model": name, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        if not name:
            continue
        request = read_request(json.dumps(body).encode())
        haiku = CATALOG.find(HAIKU_5_5)
        verdict = can_serve(request, haiku, asked=None, api_version=NEW, betas=(), input_tokens=5)
        assert verdict.is_ok == is_ok


def test_all_reasons_are_given_at_once_and_once_each():
    """The trace names everything that stands in the way, without repeating."""
    verdict = check(
        OPUS_5_5, asked=SONNET_4_6, version=NEW, temperature=0, top_k=3, mood=1, tools=[TOOL], tool_choice=FORCED
    )
    assert len(verdict.reasons) == len(set(verdict.reasons)) == 4
    assert not verdict.is_ok
    assert verdict.edits == ()


def test_no_text_of_a_request_reaches_a_reason():
    """Reasons go into traces, which hold no prompt text: only short plain names are shown."""
    secret = "my secret is 42"
    verdict = check(
        HAIKU_5_5,
        asked=SONNET_5_5,
        betas=(secret,),
        **{
            secret: 1,
            "speed": secret,
            "thinking": {"type": secret},
            "service_tier": secret,
            "tools": [{"type": secret}],
            "output_config": {secret: 1, "effort": secret},
            "context_management": {"edits": [{"type": secret}]},
            "messages": [{"role": "user", "content": [{"type": secret}], secret: 1}],
        },
    )
    assert len(verdict.reasons) >= 8
    assert not any("42" in reason or "secret" in reason for reason in verdict.reasons)


def test_a_hostile_body_gives_a_short_list():
    """A thousand unknown fields are one page of reasons at most."""
    assert len(check(HAIKU_5_5, asked=SONNET_5_5, **{f"f{index}": 1 for index in range(1000)}).reasons) == 16


def test_a_huge_conversation_is_refused_rather_than_walked():
    """The check runs on the request path: its work is bounded."""
    assert check(HAIKU_5_5, asked=SONNET_5_5, tools=[TOOL] * 2_000).is_ok
    assert check(HAIKU_5_5, asked=SONNET_5_5, **talk(("user", [{"type": "text"}] * 49_999))).is_ok
    turns = [{"role": "user", "content": "hi"}] * 50_001
    assert any("not checked" in reason for reason in check(HAIKU_5_5, asked=SONNET_5_5, messages=turns).reasons)
    crowd = talk(("user", [{"type": "text"}] * 50_001))
    assert any("not checked" in reason for reason in check(HAIKU_5_5, asked=SONNET_5_5, **crowd).reasons)
    assert any("not checked" in reason for reason in check(HAIKU_5_5, asked=SONNET_5_5, tools=[TOOL] * 2_001).reasons)


def test_every_pair_of_current_models_gives_a_verdict_with_reasons_or_none():
    """No pair of models and no row of the table makes the check fail."""
    current = [model.id for model in CATALOG.models if not model.is_retired]
    for asked, target in itertools.product(current, current):
        for row in ("nothing special", "effort xhigh", "speed fast", "ordinary tool loop", "tool_choice any"):
            verdict = check(target, asked=asked, **ACCEPTS[row][0])
            assert all(reason and "\n" not in reason for reason in verdict.reasons)


scalars = st.none() | st.booleans() | st.integers(-5, 200_000) | st.sampled_from([0.5, "", "x", "low", "adaptive"])
FIELDS = (
    "thinking",
    "tools",
    "tool_choice",
    "output_config",
    "temperature",
    "top_p",
    "top_k",
    "speed",
    "inference_geo",
)
FIELDS = (*FIELDS, "fallbacks", "service_tier", "context_management", "compaction", "container", "max_tokens")
INNER = ("type", "effort", "edits", "model", "display", "budget_tokens", "format", "content", "allowed_callers", "odd")
shapes = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from(FIELDS)
SENSIBLE = (
    {"type": "adaptive"}, {"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}, {"type": "between_tools"},
    {"effort": "max"}, {"effort": "low", "task_budget": {"total": 5}}, "fast", "auto", 0.3, 1,
)  # fmt: skip


@given(
    st.dictionaries(fields, shapes | st.lists(shapes, max_size=3), max_size=5),
    st.lists(shapes | st.lists(shapes, max_size=3), min_size=1, max_size=4),
    st.sampled_from(COLUMNS),
    st.sampled_from([None, *COLUMNS]),
)
def test_no_odd_type_breaks_the_check(body, contents, target, asked):
    """A body may hold any JSON anywhere; the check answers, and the upstream may complain."""
    parsed = {
        "model": asked or "auto",
        **body,
        "messages": [{"role": "user", "content": content, "output_config": content} for content in contents],
    }
    request = read_request(json.dumps({"model": "m", "messages": [{"role": "user"}]}).encode(), needs_max_tokens=False)
    request = type(request)(request.raw, parsed, parsed["model"], request.model_span, False, False)
    model = CATALOG.find(asked) if asked else None
    for edits, producers in (((), ()), (tuple(EDITS), (HAIKU_5_5,))):
        verdict = can_serve(
            request, CATALOG.find(target), asked=model, api_version=OLD, betas=(), input_tokens=9,
            producers=producers, edits=edits,
        )  # fmt: skip
        assert isinstance(verdict.is_ok, bool)


@given(
    st.dictionaries(fields, shapes | st.sampled_from(SENSIBLE), max_size=5),
    st.integers(0, 200_000),
    st.sampled_from(COLUMNS),
    st.sampled_from([None, *COLUMNS]),
    st.booleans(),
)
def test_an_adapted_request_is_taken_strictly(body, max_tokens, target, asked, is_compact):
    """Law: what comes out of the edits needs no edit: the strict check takes it, for any body there is."""
    plain = {"messages": [{"role": "user", "content": "hi"}], "model": asked or "auto"}
    text = json.dumps({**body, "max_tokens": max_tokens, **plain}, separators=(",", ":") if is_compact else None)
    request = read_request(text.encode())
    model, other = CATALOG.find(target), CATALOG.find(asked) if asked else None
    verdict = can_serve(
        request, model, asked=other, api_version=OLD, betas=(), input_tokens=9, edits=tuple(EDITS)
    )  # fmt: skip
    if verdict.is_ok:
        new = adapted(request, verdict.edits)
        assert new.model == request.model
        assert can_serve(new, model, asked=other, api_version=OLD, betas=(), input_tokens=9) == Verdict(())
