"""`swap: adapt`, row by row: which edits a target needs, what they say, and what is never touched."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from router.catalog_file import load_catalog
from router.swap.adapt import Edit, adapted
from router.swap.check import Verdict, can_serve
from router.swap.edits import EDITS
from router.wire.edit import LEAVE_OUT
from router.wire.messages import MessagesRequest, read_request

CATALOG = load_catalog()
OLD, NEW = "2023-06-01", "2026-10-21"
FABLE_5_2, OPUS_5_5, OPUS_5, OPUS_4_8 = "claude-fable-5-2", "claude-opus-5-5", "claude-opus-5", "claude-opus-4-8"
SONNET_5_5, SONNET_5, HAIKU_5_5 = "claude-sonnet-5-5", "claude-sonnet-5", "claude-haiku-5-5"
OPUS_4_6, SONNET_4_6, OPUS_4_5 = "claude-opus-4-6", "claude-sonnet-4-6", "claude-opus-4-5"
SONNET_4_5, HAIKU_4_5 = "claude-sonnet-4-5", "claude-haiku-4-5"
TOOL = {"name": "label", "input_schema": {"type": "object"}}
FORCED = {"type": "tool", "name": "label"}
OFF, BETWEEN, ADAPTIVE = {"type": "disabled"}, {"type": "between_tools"}, {"type": "adaptive"}
QUIET = {"type": "adaptive", "display": "omitted"}
EVERY = tuple(EDITS)


def budget(tokens: int, **more: Any) -> dict[str, Any]:
    return {"type": "enabled", "budget_tokens": tokens, **more}


def effort(level: str) -> dict[str, Any]:
    return {"output_config": {"effort": level}}


def ask(model: str | None, **body: Any) -> MessagesRequest:
    plain = {"model": model or "auto", "max_tokens": 4096, "messages": [{"role": "user", "content": "hi"}]}
    return read_request(json.dumps({**plain, **body}).encode(), needs_max_tokens=False)


def verdict_on(
    request: MessagesRequest, target: str, *, edits: tuple[str, ...] = EVERY, version: str = NEW, **more: Any
) -> Verdict:
    asked = CATALOG.find(request.model)
    return can_serve(
        request, CATALOG.find(target), asked=asked, api_version=version, betas=(), input_tokens=20, edits=edits, **more
    )


# asked, body, target → the fields of the body after the edits (None: gone), and what is said.
ROWS: list[tuple[str, dict[str, Any], str, dict[str, Any], list[str]]] = [
    (SONNET_5_5, {"max_tokens": 128_000}, HAIKU_4_5, {"max_tokens": 64_000}, ["max_tokens 128000 -> 64000"]),
    (SONNET_5_5, effort("high"), HAIKU_4_5, {"output_config": None}, ["drop output_config.effort"]),
    (SONNET_5_5, effort("max"), SONNET_4_6, {}, []),
    (SONNET_5_5, effort("xhigh"), SONNET_4_6, effort("high"), ["effort xhigh -> high"]),
    (SONNET_5_5, effort("max"), OPUS_4_5, effort("high"), ["effort max -> high"]),
    (SONNET_4_6, {"thinking": budget(2048)}, SONNET_5_5, {"thinking": {"type": "adaptive", "display": "summarized"}},
     ["thinking enabled -> adaptive"]),
    (SONNET_4_6, {"thinking": budget(2048, display="omitted")}, HAIKU_5_5, {"thinking": QUIET},
     ["thinking enabled -> adaptive"]),
    (SONNET_5_5, {"thinking": ADAPTIVE}, HAIKU_4_5, {"thinking": budget(2048, display="omitted")},
     ["thinking adaptive -> enabled with budget_tokens 2048"]),
    (SONNET_5_5, {"thinking": QUIET, "max_tokens": 1500}, SONNET_4_5, {"thinking": budget(1024, display="omitted")},
     ["thinking adaptive -> enabled with budget_tokens 1024"]),
    (SONNET_5_5, {"thinking": QUIET, "max_tokens": 128_000}, HAIKU_4_5,
     {"thinking": budget(32_000, display="omitted"), "max_tokens": 64_000},
     ["max_tokens 128000 -> 64000", "thinking adaptive -> enabled with budget_tokens 32000"]),
    (OPUS_4_6, {"thinking": budget(100_000), "max_tokens": 128_000}, OPUS_4_5,
     {"thinking": budget(36_000), "max_tokens": 64_000},
     ["max_tokens 128000 -> 64000", "thinking.budget_tokens 100000 -> 36000"]),
    (OPUS_4_6, {"thinking": budget(64_000), "max_tokens": 128_000}, OPUS_4_5,
     {"thinking": budget(1024), "max_tokens": 64_000},
     ["max_tokens 128000 -> 64000", "thinking.budget_tokens 64000 -> 1024"]),
    (OPUS_4_6, {"thinking": ADAPTIVE}, SONNET_5_5, {"thinking": {"type": "adaptive", "display": "summarized"}},
     ["thinking.display left out -> summarized"]),
    (OPUS_4_8, {"thinking": OFF}, SONNET_5_5, {"thinking": BETWEEN}, ["thinking disabled -> between_tools"]),
    (OPUS_4_8, {"thinking": OFF, **effort("max")}, SONNET_5_5, {"thinking": BETWEEN, **effort("high")},
     ["thinking disabled -> between_tools", "effort max -> high"]),
    (OPUS_4_8, {"thinking": OFF, **effort("xhigh")}, HAIKU_5_5, effort("high"), ["effort xhigh -> high"]),
    (SONNET_5_5, {"thinking": BETWEEN}, HAIKU_5_5, {"thinking": OFF}, ["thinking between_tools -> disabled"]),
    (OPUS_4_8, {}, HAIKU_5_5, {"thinking": OFF}, ["thinking left out -> disabled"]),
    (OPUS_4_8, {}, SONNET_5_5, {"thinking": BETWEEN}, ["thinking left out -> between_tools"]),
    (OPUS_4_8, effort("max"), OPUS_5, {"thinking": OFF, **effort("high")},
     ["thinking left out -> disabled", "effort max -> high"]),
    (HAIKU_5_5, {"thinking": QUIET, "tools": [TOOL], "tool_choice": FORCED}, HAIKU_4_5, {"thinking": None},
     ["drop thinking"]),
    (OPUS_5_5, {"speed": "fast"}, SONNET_5_5, {"speed": None}, ["drop speed"]),
    (OPUS_4_8, {"service_tier": "auto", "thinking": OFF}, HAIKU_5_5, {"service_tier": None}, ["drop service_tier"]),
    (OPUS_5_5, {"output_config": {"task_budget": {"total": 9}, "effort": "low"}}, SONNET_5, effort("low"),
     ["drop output_config.task_budget"]),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "body", "target", "after", "says"), ROWS)
def test_a_target_gets_exactly_the_edits_it_needs(
    asked: str, body: dict[str, Any], target: str, after: dict[str, Any], says: list[str]
) -> None:
    """The table of body rewrites by target: values, order and wording; the rest of the body stays."""
    request = ask(asked, **body)
    verdict = verdict_on(request, target)
    assert verdict.is_ok
    assert [edit.says for edit in verdict.edits] == says
    assert (not says) == verdict_on(request, target, edits=()).is_ok
    expected = {key: value for key, value in {**request.body, **after}.items() if value is not None}
    assert adapted(request, verdict.edits).body == expected


SAMPLING = [
    (OPUS_4_6, {"temperature": 0.2}, ["drop temperature"]),
    (OPUS_4_6, {"temperature": 1}, []),
    (OPUS_4_6, {"top_k": 3, "temperature": 1}, ["drop top_k"]),
    (OPUS_4_6, {"top_p": 0.99}, []),
    (OPUS_4_6, {"top_p": 0.99, "temperature": 1}, ["drop top_p"]),
    (OPUS_4_6, {"top_p": 0.99, "temperature": 0}, ["drop temperature"]),
    (OPUS_4_6, {"top_p": 0.5, "top_k": 1, "temperature": 0}, ["drop top_k", "drop top_p", "drop temperature"]),
]


@pytest.mark.parametrize(("asked", "body", "says"), SAMPLING)
def test_sampling_loses_no_more_than_the_target_refuses(asked: str, body: dict[str, Any], says: list[str]) -> None:
    """Haiku 5.5 takes the default temperature, and one value of `top_p`, not both."""
    verdict = verdict_on(ask(asked, thinking=OFF, **body), HAIKU_5_5, version=OLD)
    assert verdict.is_ok
    assert [edit.says for edit in verdict.edits] == says


def in_a_loop(content: Any = "8") -> dict[str, Any]:
    calls = [{"type": "tool_use", "id": "t", "name": "label", "input": {}}]
    result = [{"type": "tool_result", "tool_use_id": "t", "content": content}]
    said = [("user", "q"), ("assistant", calls), ("user", result)]
    return {"messages": [{"role": role, "content": what} for role, what in said], "tools": [TOOL]}


NEVER = [
    ("a model that always thinks is not told not to", OPUS_4_8, {"thinking": OFF}, OPUS_5_5),
    ("nor one whose caller left it out", OPUS_4_8, {}, FABLE_5_2),
    ("a budget that was wrong to begin with", SONNET_4_6, {"thinking": budget(8000)}, SONNET_5_5),
    ("too little room to think", SONNET_5_5, {"thinking": QUIET, "max_tokens": 1024}, HAIKU_4_5),
    ("thinking between tools there are", SONNET_5_5, {"thinking": BETWEEN, "tools": [TOOL]}, HAIKU_5_5),
    ("thinking between tools of a server", SONNET_5_5, {"thinking": BETWEEN, "mcp_servers": [{}]}, HAIKU_5_5),
    ("a budget in a pending tool loop", SONNET_5_5, {"thinking": QUIET, **in_a_loop()}, HAIKU_4_5),
    ("siblings of disabled", OPUS_4_8, {"thinking": {**OFF, "display": "omitted"}}, SONNET_5_5),
    ("a forced tool", SONNET_4_6, {"tools": [TOOL], "tool_choice": FORCED}, SONNET_5_5),
    ("a forced tool with a budget", SONNET_4_6, {"thinking": budget(2048), "tools": [TOOL], "tool_choice": FORCED},
     OPUS_5),
    ("where the data is", SONNET_5_5, {"inference_geo": "us"}, HAIKU_4_5),
    ("fallbacks", OPUS_5_5, {"fallbacks": "default", **effort("max")}, OPUS_4_5),
    ("an effort that nobody knows", SONNET_5_5, effort("huge"), HAIKU_4_5),
    ("a speed that nobody knows", OPUS_5_5, {"speed": "warp"}, HAIKU_4_5),
    ("a tier that nobody knows", OPUS_4_8, {"service_tier": "gold", "thinking": OFF}, HAIKU_5_5),
    ("prefill", HAIKU_4_5, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "{"}]},
     HAIKU_5_5),
    ("a system message", SONNET_5_5, {"messages": [{"role": "user", "content": "q"}, {"role": "system"}]}, HAIKU_4_5),
    ("thinking of an odd shape", SONNET_5_5, {"thinking": True}, HAIKU_4_5),
    ("an output_config of an odd shape", SONNET_5_5, {"output_config": [1]}, HAIKU_4_5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "asked", "body", "target"), NEVER)
def test_what_would_change_the_meaning_is_refused(name: str, asked: str, body: dict[str, Any], target: str) -> None:
    """Every edit allowed, and still the model asked for serves; a refusal carries no edits."""
    verdict = verdict_on(ask(asked, **body), target)
    assert not verdict.is_ok
    assert verdict.edits == ()


def test_only_the_edits_that_the_rule_lists_are_made() -> None:
    """Each alone is too little where two are needed; the two together are enough."""
    request = ask(SONNET_5_5, max_tokens=100_000, output_config={"effort": "low"})
    assert verdict_on(request, HAIKU_4_5, edits=("max_tokens", "effort")).is_ok
    for one in ("max_tokens", "effort"):
        verdict = verdict_on(request, HAIKU_4_5, edits=(one,))
        assert not verdict.is_ok
        assert verdict.edits == ()
    assert len(verdict_on(request, HAIKU_4_5, edits=("speed", "sampling")).reasons) == 2


def test_the_model_asked_for_gets_no_edit() -> None:
    """What works without the router works with it, byte for byte; the client hears of its own mistakes."""
    request = ask(HAIKU_4_5, max_tokens=128_000, thinking=ADAPTIVE)
    assert verdict_on(request, HAIKU_4_5) == Verdict(())
    assert adapted(request, ()) is request


def test_a_virtual_model_is_adapted_to_its_target() -> None:
    """`auto` has no behaviour of its own to keep; what is said is still translated."""
    request = ask(None, max_tokens=128_000, thinking=budget(5000), output_config={"effort": "xhigh"})
    assert [edit.name for edit in verdict_on(request, HAIKU_5_5).edits] == ["thinking"]
    assert [edit.name for edit in verdict_on(request, HAIKU_4_5).edits] == ["max_tokens", "effort"]
    assert adapted(request, verdict_on(request, HAIKU_5_5).edits).body["thinking"] == ADAPTIVE


def test_the_edited_request_is_read_anew_from_spliced_bytes() -> None:
    """Spacing and escapes stay, the model's place is found again, streaming stays streaming."""
    said = '"messages":[{"role":"user","content":"\\u0068i"}]'
    text = f'{{"max_tokens" : 128000, "stream":true, {said} ,"model": "claude-sonnet-5-5" }}'
    request = read_request(text.encode())
    new = adapted(request, verdict_on(request, HAIKU_4_5).edits)
    assert new.raw.decode() == text.replace("128000", "64000")
    assert new.with_model(HAIKU_4_5).decode() == text.replace("128000", "64000").replace(SONNET_5_5, HAIKU_4_5)
    assert new.is_streaming


def test_a_request_to_count_tokens_is_adapted_without_max_tokens() -> None:
    """It has none, and needs none."""
    raw = b'{"model":"claude-sonnet-5-5","messages":[{"role":"user"}],"output_config":{"effort":"low"}}'
    request = read_request(raw, needs_max_tokens=False)
    assert b"output_config" not in adapted(request, verdict_on(request, HAIKU_4_5).edits).raw


def test_no_text_of_a_request_is_said() -> None:
    """`says` goes into a header and the trace."""
    secret = "my secret\r\nx: 42"
    body = {"thinking": {"type": "adaptive", "display": secret}, "output_config": {"effort": secret}, "speed": secret}
    assert not any("secret" in edit.says for edit in verdict_on(ask(SONNET_5_5, **body), HAIKU_4_5).edits)
    assert Edit("speed", ("speed",), LEAVE_OUT, "drop speed") == verdict_on(
        ask(OPUS_5_5, speed="fast"), SONNET_5_5
    ).edits[0]  # fmt: skip


def thought(*producers: str, is_loop: bool = False) -> dict[str, Any]:
    turns: list[dict[str, Any]] = [{"role": "user", "content": "q"}]
    for _ in producers or ("unknown",):
        block = {"type": "thinking", "thinking": "", "signature": "s"}
        turns += [
            {"role": "assistant", "content": [block, {"type": "text", "text": "a"}]},
            {"role": "user", "content": "r"},
        ]
    if is_loop:
        turns[-2]["content"].append({"type": "tool_use", "id": "t", "name": "label", "input": {}})
        turns[-1]["content"] = [{"type": "tool_result", "tool_use_id": "t", "content": "8"}]
    return {"messages": turns}


# asked, producers, target, whether the target goes on.
HISTORIES = [
    (SONNET_5_5, (HAIKU_5_5,), HAIKU_5_5, True),
    (SONNET_5_5, (SONNET_5_5,), HAIKU_5_5, False),
    (SONNET_5_5, (SONNET_5_5, HAIKU_5_5), HAIKU_5_5, False),
    (SONNET_5_5, (HAIKU_5_5, SONNET_5_5), OPUS_5_5, True),
    (OPUS_5_5, (OPUS_5_5,), SONNET_5_5, False),
    (OPUS_5_5, (OPUS_5,), SONNET_5_5, False),
    (OPUS_5_5, (HAIKU_5_5,), SONNET_5_5, True),
    (OPUS_5_5, (HAIKU_4_5, SONNET_5), HAIKU_5_5, True),
    (OPUS_5_5, ("claude-haiku-4-5-20251001",), HAIKU_5_5, True),
    (OPUS_5_5, (OPUS_4_8,), OPUS_5, False),
    (SONNET_5, (HAIKU_5_5,), HAIKU_5_5, True),
    (SONNET_5, (HAIKU_5_5,), SONNET_5_5, False),  # Sonnet 5 does not verify the history, Sonnet 5.5 would
    (SONNET_5, (SONNET_5,), OPUS_4_8, False),
    (HAIKU_5_5, (OPUS_5_5,), FABLE_5_2, False),
    (OPUS_5_5, ("claude-nobody",), HAIKU_5_5, False),
    (OPUS_5_5, (), HAIKU_5_5, False),
    (None, (HAIKU_5_5,), HAIKU_5_5, True),
    (None, (SONNET_5_5,), HAIKU_5_5, False),
    (None, (), HAIKU_5_5, False),
]


@pytest.mark.parametrize("is_loop", [False, True])
@pytest.mark.parametrize(("asked", "producers", "target", "is_ok"), HISTORIES)
def test_a_conversation_goes_on_where_its_thinking_is_read(
    asked: str | None, producers: tuple[str, ...], target: str, is_ok: bool, is_loop: bool
) -> None:
    """Nobody's thinking is dropped, nor held against a history that the model asked for would not verify."""
    request = ask(asked, tools=[TOOL], **thought(*producers, is_loop=is_loop))
    assert verdict_on(request, target, edits=(), producers=producers).is_ok == is_ok


def test_producers_do_not_matter_without_thinking_blocks() -> None:
    """A plain conversation goes anywhere."""
    assert verdict_on(ask(SONNET_5_5), HAIKU_5_5, edits=(), producers=("claude-nobody", OPUS_5_5)).is_ok


def test_a_crowd_of_producers_is_refused_rather_than_walked() -> None:
    """The check runs on the request path."""
    crowd = tuple(itertools.repeat(HAIKU_5_5, 17))
    assert not verdict_on(ask(SONNET_5_5, **thought(HAIKU_5_5)), HAIKU_5_5, edits=(), producers=crowd).is_ok
