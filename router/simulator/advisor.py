"""The advisor tool: which model may advise which, the call and the advice as blocks, and what the advisor reads.

The executor's calls and the advisor's are billed apart, each at its own model's rates. Source: notes on advisor pairs,
the advisor block and iteration types of the official SDK 2.12.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from router.simulator.blocks import check_cache_control
from router.simulator.call import Call
from router.simulator.compose import musing
from router.simulator.dice import Dice
from router.simulator.record import ModelRecord, Roster
from router.simulator.refusal import Refusal, extra_input, missing
from router.simulator.task import Task
from router.simulator.tokens import text_tokens

_FIELD_NAMES = "type name model allowed_callers cache_control caching defer_loading max_tokens max_uses strict"
FIELDS = frozenset(_FIELD_NAMES.split())
LINES = ("haiku", "sonnet", "opus", "fable")  # by capability; Mythos stands with Fable
ABOVE = r"claude-(fable|mythos)-5(-\d)?"
# Executors with a documented list of advisors; for all others the advisor must be at least as capable.
ADVISORS: Mapping[str, str] = {
    "claude-sonnet-5-5": rf"claude-opus-5(-5)?|claude-sonnet-5-5|{ABOVE}",
    "claude-fable-5-2": r"claude-(fable|mythos)-5-2",
    "claude-mythos-5-2": r"claude-(fable|mythos)-5-2",
    "claude-opus-5-5": rf"claude-opus-5(-5)?|{ABOVE}",
    "claude-opus-5": rf"claude-opus-5(-5)?|{ABOVE}",
    "claude-fable-5": rf"claude-opus-5(-5)?|{ABOVE}",
}
ADVICE_WORDS = 60
THOUGHT_SHARE = 2  # an advisor thinks about twice as much as it says; the thinking is not shown


def advisor_tool(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The advisor among the tools of a request."""
    tools = body.get("tools") or []
    return next((tool for tool in tools if str(tool.get("type")).startswith("advisor_")), None)


def check_advisor(call: Call, roster: Roster) -> None:
    """Raise `Refusal` for an advisor tool that is malformed or may not advise this model."""
    for index, tool in enumerate(call.body.get("tools") or []):
        kind = str(tool.get("type"))
        if not kind.startswith("advisor_"):
            continue
        path = f"tools.{index}.{kind}"
        for name in ("name", "model"):
            if name not in tool:
                raise missing(f"{path}.{name}")
        for name in tool:
            if name not in FIELDS:
                raise extra_input(f"{path}.{name}")
        if tool["name"] != "advisor":
            raise Refusal(f"{path}.name: Input should be 'advisor'")
        for name in ("max_tokens", "max_uses"):
            value = tool.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise Refusal(f"{path}.{name}: Input should be greater than or equal to 1")
        check_cache_control(tool.get("caching"), f"{path}.caching")
        advisor = roster.known(tool["model"]) if isinstance(tool["model"], str) else None
        if advisor is None or not may_advise(advisor, call.model):
            raise Refusal(f"{path}.model: '{tool['model']}' cannot be used as an advisor for '{call.model.id}'")


def may_advise(advisor: ModelRecord, executor: ModelRecord) -> bool:
    """Whether the pair is valid: a listed one, else an advisor that is at least as capable."""
    if advisor.fields["lifecycle"] == "retired":
        return False
    listed = ADVISORS.get(executor.id)
    if listed is not None:
        return re.fullmatch(listed, advisor.id) is not None
    return _rank(advisor) >= _rank(executor)


def _rank(model: ModelRecord) -> tuple[int, list[int]]:
    line = str(model.fields["line"])
    generation = [int(part) for part in re.findall(r"-(\d)(?=-|$)", model.id)]
    return LINES.index("fable" if line == "mythos" else line), generation


def consulted(tool: Mapping[str, Any], advisor: ModelRecord, task: Task, dice: Dice) -> list[dict[str, Any]]:
    """The executor's call (its input is always empty) and the advice, as the two blocks of an answer."""
    call_id = dice.token("advisor", "srvtoolu_")
    advice = musing(task, Dice(dice.number("advice"), advisor.id), ADVICE_WORDS)
    reason, cap = "end_turn", tool.get("max_tokens")
    if cap is not None and advice_tokens(advice, advisor, None) > cap:
        words = advice.split()
        reason, advice = "max_tokens", " ".join(words[: max(1, cap // (2 * (1 + THOUGHT_SHARE)))])
    result = {"type": "advisor_result", "text": advice, "stop_reason": reason}
    return [
        {"type": "server_tool_use", "id": call_id, "name": "advisor", "input": {}},
        {"type": "advisor_tool_result", "tool_use_id": call_id, "content": result},
    ]


def advice_tokens(advice: str, advisor: ModelRecord, cap: int | None) -> int:
    """Output tokens of an advice, thinking included, within the tool's cap."""
    tokens = text_tokens(advice, advisor) * (1 + THOUGHT_SHARE)
    return tokens if cap is None else min(tokens, cap)


def advisor_call(call: Call, tool: Mapping[str, Any], advisor: ModelRecord, written: list[dict[str, Any]]) -> Call:
    """What the advisor gets: the whole transcript with what the executor wrote so far, no tools, its own caching."""
    said = " ".join(block["text"] for block in written if block["type"] == "text") or "(thinking)"
    body = {
        **{name: call.body[name] for name in ("system", "inference_geo", "speed") if name in call.body},
        "model": advisor.id,
        "messages": [*call.body["messages"], {"role": "assistant", "content": said}],
        "cache_control": tool.get("caching"),
    }
    return replace(call, body=body, model=advisor)
