"""Replayed thinking: the seal, who reads whose, and the history check."""

from __future__ import annotations

from typing import Any

import pytest
from simulator.calls import TOOL, USER, ask, caller

from router.simulator.message import Outcome
from router.simulator.refusal import Refusal
from router.simulator.service import Simulator
from router.simulator.settings import SimulatorSettings

HARD = {"role": "user", "content": "Prove step by step that 17 is prime."}
NEXT = {"role": "user", "content": "And 19?"}
BINDING = "thinking-binding-controls-2026-08-01"


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(SimulatorSettings())


def think(simulator: Simulator, model: str, **fields: Any) -> list[dict[str, Any]]:
    """The content of a first answer that begins with a thinking block."""
    thinking = {} if "thinking" in fields else {"thinking": {"type": "adaptive"}}
    content = list(simulator.run(ask(model, messages=[HARD], **thinking, **fields), caller()).answer.content)
    assert content[0]["type"] == "thinking"
    return content


def replay(simulator: Simulator, model: str, content: list[dict[str, Any]], *betas: str, **fields: Any) -> Outcome:
    """The second turn of that conversation."""
    messages = fields.pop("messages", [HARD, {"role": "assistant", "content": content}, NEXT])
    return simulator.run(ask(model, messages=messages, **fields), caller(BINDING, *betas))


def drops(outcome: Outcome) -> list[str]:
    """Why blocks were dropped, in order."""
    return [item["reason"] for item in outcome.message()["input_transformations"]]


READERS = {
    "claude-fable-5-2": "fable-5-2 mythos-5-2",
    "claude-fable-5-1": "fable-5-1 mythos-5-1 fable-5-2 mythos-5-2",
    "claude-fable-5": "fable-5 mythos-5 fable-5-1 mythos-5-1 fable-5-2 mythos-5-2",
    "claude-opus-5-5": "opus-5-5 fable-5-2 mythos-5-2 fable-5-1 mythos-5-1",
    "claude-opus-5": "opus-5 opus-5-5 fable-5-2 mythos-5-2 fable-5-1 mythos-5-1",
    "claude-sonnet-5-5": "sonnet-5-5 opus-5-5 fable-5-2 mythos-5-2",
    "claude-haiku-5-5": "haiku-5-5 sonnet-5-5 opus-5-5 fable-5-2 mythos-5-2",
}
MODERN = (
    *("fable-5-2", "mythos-5-2", "fable-5-1", "mythos-5-1", "fable-5", "mythos-5"),
    *("opus-5-5", "opus-5", "sonnet-5-5", "haiku-5-5"),
)


@pytest.mark.parametrize("producer", READERS)
@pytest.mark.parametrize("reader", MODERN)
def test_blocks_are_dropped_for_models_that_may_not_read_them(simulator: Simulator, producer: str, reader: str) -> None:
    """Section 4.2: never an error, never billed, listed under the beta."""
    content = think(simulator, producer)
    outcome = replay(simulator, f"claude-{reader}", content)
    stripped = replay(simulator, f"claude-{reader}", content[1:])
    if reader in READERS[producer].split():
        assert drops(outcome) == []
        assert outcome.plan.input > stripped.plan.input
    else:
        assert drops(outcome) == ["model_binding_mismatch"]
        assert outcome.plan.input == stripped.plan.input


def test_older_models_thoughts_are_read_by_the_5_5_generation(simulator: Simulator) -> None:
    """Sonnet 5, Opus 4.8, Haiku 4.5 and earlier: read by Sonnet 5.5, Haiku 5.5, Opus 5.5."""
    for producer in ("claude-sonnet-5", "claude-opus-4-8"):
        content = think(simulator, producer)
        for reader in ("claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-5-5"):
            assert drops(replay(simulator, reader, content)) == []
    content = think(simulator, "claude-haiku-4-5", thinking={"type": "enabled", "budget_tokens": 1024})
    assert drops(replay(simulator, "claude-sonnet-5-5", content)) == []


def test_an_edited_or_invented_block_is_refused(simulator: Simulator) -> None:
    """Section 4.1."""
    shown = think(simulator, "claude-haiku-5-5", thinking={"type": "adaptive", "display": "summarized"})
    edited = [{**shown[0], "thinking": shown[0]["thinking"] + " indeed"}, *shown[1:]]
    latest = r"messages\.1\.content\.0: `thinking` or `redacted_thinking` blocks in the latest assistant message cannot"
    with pytest.raises(Refusal, match=latest):
        replay(simulator, "claude-haiku-5-5", edited)
    earlier = [HARD, {"role": "assistant", "content": edited}, NEXT, {"role": "assistant", "content": "Yes."}, USER]
    with pytest.raises(Refusal, match=r"messages\.1\.content\.0: Invalid `signature` in `thinking` block"):
        replay(simulator, "claude-haiku-5-5", [], messages=earlier)
    invented = [{"type": "thinking", "thinking": "hm", "signature": "abcd"}, *shown[1:]]
    with pytest.raises(Refusal, match=r"messages\.1\.content\.0: Invalid `signature` in `thinking` block"):
        replay(simulator, "claude-haiku-5-5", invented)


CHECKED = ["claude-fable-5-2", "claude-fable-5-1", "claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"]
UNCHECKED = ["claude-fable-5", "claude-opus-5", "claude-sonnet-5", "claude-opus-4-8"]


@pytest.mark.parametrize("model", CHECKED + UNCHECKED)
def test_a_changed_history_is_refused_where_the_check_runs(simulator: Simulator, model: str) -> None:
    """Section 4.3: the simulated account is a new one."""
    content = think(simulator, model, system="You are exact.")
    assert drops(replay(simulator, model, content, system="You are exact.")) == []
    if model in UNCHECKED:
        assert drops(replay(simulator, model, content, system="You are vague.")) == []
        return
    with pytest.raises(Refusal) as caught:
        replay(simulator, model, content, system="You are vague.")
    assert caught.value.message == (
        "messages.1.content.0: Invalid `signature` in `thinking` block. The block is bound to a different conversation."
        ' Remove the block, or set `thinking.block_binding.prefix_mismatch_behavior` to "drop_block".'
    )
    told = {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "drop_block"}}
    outcome = replay(simulator, model, content, system="You are vague.", thinking=told)
    assert drops(outcome) == ["prefix_binding_mismatch"]


def test_what_counts_as_an_edit_of_the_history(simulator: Simulator) -> None:
    """Markers, tool order, form and whitespace of texts, effort and model are not edits; a tool's description is."""
    first, second = TOOL, {"name": "other", "input_schema": {"type": "object"}}
    model = "claude-haiku-5-5"
    started = ask(model, messages=[HARD], tools=[first, second], output_config={"effort": "high"})
    content = list(simulator.run(started, caller()).answer.content)
    call = next(block for block in content if block["type"] == "tool_use")
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": "found"}]}

    def again(hard: Any = HARD, tools: Any = (first, second), **fields: Any) -> Outcome:
        messages = [hard, {"role": "assistant", "content": content}, result]
        return replay(simulator, fields.pop("model", model), [], messages=messages, tools=list(tools), **fields)

    marked = {"type": "text", "text": HARD["content"] + "  ", "cache_control": {"type": "ephemeral"}}
    assert drops(again({"role": "user", "content": [marked]})) == []
    assert drops(again(tools=(second, {**first, "cache_control": {"type": "ephemeral"}}))) == []
    assert drops(again(output_config={"effort": "low"}, max_tokens=100)) == []
    assert drops(again(model="claude-opus-5-5")) == []
    for edit in (
        {"hard": {"role": "user", "content": "Prove that 18 is prime."}},
        {"tools": (first,)},
        {"tools": ({**first, "description": "new"}, second)},
    ):
        with pytest.raises(Refusal, match="bound to a different conversation"):
            again(**edit)


def test_a_batch_drops_what_a_direct_call_refuses(simulator: Simulator) -> None:
    """In batches the unset default drops blocks."""
    content = think(simulator, "claude-haiku-5-5")
    messages = [NEXT, {"role": "assistant", "content": content}, NEXT]
    outcome = simulator.run(ask("claude-haiku-5-5", messages=messages), caller(BINDING), is_batch=True)
    assert drops(outcome) == ["prefix_binding_mismatch"]


@pytest.mark.parametrize(("model", "is_bound"), [("claude-haiku-5-5", True), ("claude-opus-5-5", False)])
def test_some_blocks_stay_in_their_organization(simulator: Simulator, model: str, is_bound: bool) -> None:
    """Section 4.4."""
    content = think(simulator, model)
    messages = [HARD, {"role": "assistant", "content": content}, NEXT]
    outcome = simulator.run(ask(model, messages=messages), caller(BINDING, organization="another"))
    assert drops(outcome) == (["organization_binding_mismatch"] if is_bound else [])


def test_count_tokens_runs_the_same_checks(simulator: Simulator) -> None:
    """Section 11."""
    content = think(simulator, "claude-haiku-5-5")
    body = ask("claude-haiku-5-5", messages=[NEXT, {"role": "assistant", "content": content}, NEXT])
    del body["max_tokens"]
    with pytest.raises(Refusal, match="bound to a different conversation"):
        simulator.count(body, caller())
    fields = {"tools": [TOOL], "tool_choice": {"type": "any"}}
    with pytest.raises(Refusal, match="tool_choice"):
        simulator.count({"model": "claude-opus-5-5", "messages": [USER], **fields}, caller())
