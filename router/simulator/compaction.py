"""Compaction: a conversation that has grown long is summarised by the model it was sent to, for a price of its own.

Two ways: an edit that acts when the prompt reaches a threshold, after which the answer goes on from the summary; and
the top-level `compaction`, whose answer is the summary alone, signed. What stands before the last `compaction` block of
a conversation is not read any more. Source: compaction documentation and SDK types; facts on both betas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.simulator import betas as b
from router.simulator.call import Call
from router.simulator.dice import Dice
from router.simulator.refusal import Refusal, extra_input
from router.simulator.task import block_text
from router.simulator.words import summary

EDIT = "compact_20260112"
EDITS = ("clear_tool_uses_20250919", "clear_thinking_20251015", EDIT)
EDIT_FIELDS = frozenset({"type", "trigger", "pause_after_compaction", "instructions"})
DEFAULT_TRIGGER = 150_000
LEAST_TRIGGER = 50_000
READ_CHARS = 20_000


def check_context(call: Call) -> None:
    """Raise `Refusal` for context edits and compactions that the API, or the model, does not take."""
    body = call.body
    edits = (body.get("context_management") or {}).get("edits") or []
    for index, edit in enumerate(edits):
        path = f"context_management.edits.{index}"
        kind = edit.get("type") if isinstance(edit, dict) else None
        if kind not in EDITS or (kind == EDIT and not b.has_any(call.betas, b.COMPACT_EDIT)):
            raise Refusal(f"{path}: Input tag '{kind}' found using 'type' does not match")
        if kind == EDIT:
            _check_edit(edit, f"{path}.{EDIT}")
            _check_model(call)
    asked = body.get("compaction")
    if asked is None:
        return
    if not isinstance(asked, dict) or asked.get("type") != "summarize":
        raise Refusal("compaction.type: Input should be 'summarize'")
    for name in asked:
        if name not in ("type", "instructions"):
            raise extra_input(f"compaction.{name}")
    _check_model(call)
    if body.get("context_management") is not None:
        raise Refusal("compaction: cannot be combined with `context_management`")


def _check_edit(edit: Mapping[str, Any], path: str) -> None:
    for name in edit:
        if name not in EDIT_FIELDS:
            raise extra_input(f"{path}.{name}")
    trigger = edit.get("trigger")
    if trigger is None:
        return
    value = trigger.get("value") if isinstance(trigger, dict) else None
    if not isinstance(trigger, dict) or trigger.get("type") != "input_tokens" or not isinstance(value, int):
        raise Refusal(f"{path}.trigger: Input should be of type 'input_tokens' with a whole `value`")
    if value < LEAST_TRIGGER:
        raise Refusal(f"{path}: trigger.value must be at least {LEAST_TRIGGER}")


def _check_model(call: Call) -> None:
    if not call.model.fields["compaction_beta"]:
        raise Refusal("compaction is not supported on this model")


def is_on_demand(call: Call) -> bool:
    """Whether the request asks for a summary and nothing else."""
    return call.body.get("compaction") is not None


def is_due(call: Call, prompt_tokens: int) -> bool:
    """Whether the conversation is compacted before it is answered."""
    edit = _edit(call)
    if edit is None:
        return is_on_demand(call)
    return prompt_tokens >= int((edit.get("trigger") or {}).get("value") or DEFAULT_TRIGGER)


def pauses(call: Call) -> bool:
    """Whether the summary is all that is answered."""
    return is_on_demand(call) or bool((_edit(call) or {}).get("pause_after_compaction"))


def _edit(call: Call) -> Mapping[str, Any] | None:
    edits = (call.body.get("context_management") or {}).get("edits") or []
    return next((edit for edit in edits if edit.get("type") == EDIT), None)


def summary_block(call: Call, body: Mapping[str, Any], dice: Dice) -> dict[str, Any]:
    """The summary as a block; a signed one where it was asked for on demand."""
    texts = [block_text(message.get("content")) for message in body["messages"]]
    told = summary(" ".join(texts)[:READ_CHARS], 6)
    block = {"type": "compaction", "content": f"Summary of the conversation so far: {told}"}
    if is_on_demand(call):
        block["signature"] = dice.token("compaction", "cmp_", 44)
    return block


def compacted(body: Mapping[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    """The conversation as it goes on: the summary, then whatever followed the last turn of the assistant."""
    messages = body["messages"]
    spoken = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    rest = messages[spoken[-1] + 1 :] if spoken else messages[-1:]
    return {**body, "messages": [{"role": "assistant", "content": [dict(block)]}, *rest]}


def since_compaction(body: dict[str, Any]) -> dict[str, Any]:
    """The body without what stands before its last `compaction` block."""
    for index in range(len(body["messages"]) - 1, -1, -1):
        content = body["messages"][index].get("content")
        for place in range(len(content) - 1 if isinstance(content, list) else -1, -1, -1):
            if content[place]["type"] == "compaction" and content[place].get("content") is not None:
                kept = {**body["messages"][index], "content": content[place:]}
                return {**body, "messages": [kept, *body["messages"][index + 1 :]]}
    return body
