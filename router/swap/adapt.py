"""The edits of `swap: adapt`: which of the allowed ones make a target take a request with the same intent.

An edit is made only where the target refuses, or would read otherwise, what the request says, and only at the fields
below: never at `system`, `tools`, `messages` (thinking blocks are bound to them), `tool_choice`, `fallbacks` or
`inference_geo` (a matter of where data may be). What each may change for the program:

  max_tokens    A long answer ends earlier, with `stop_reason` `max_tokens`.
  effort        The model works less than was asked for; where it takes no effort at all, as it does on its own.
  thinking      `enabled` → `adaptive`: the model chooses how much it thinks, up to `max_tokens`. `adaptive` →
                `enabled`: it thinks on every request, on half of `max_tokens` at most. `disabled` → `between_tools`:
                it may think between tool calls. `disabled`, or `between_tools`, said where it was left out: nothing.
                A lowered budget: it thinks less. `display` said: nothing. Left out under a forced tool: nothing.
  sampling      Answers vary as the model's own default has it.
  speed         The answer comes at standard speed and price.
  service_tier  The request does not use Priority capacity.
  task_budget   The model does not see a budget for the whole task.

Source: Anthropic fact sheet, sections 3 and 18.1.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from router.catalog.records import EFFORT_ORDER
from router.swap import rules
from router.swap.messages import is_in_tool_loop
from router.swap.rules import Case
from router.wire.edit import LEAVE_OUT, changed_body, changed_bytes
from router.wire.messages import MessagesRequest, read_request

_SAMPLING = ("top_k", "top_p", "temperature")  # in the order in which they are given up


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of a request body.

    `name` is one of `swap.edits.EDITS`; `path` a top-level key, or key and sub-key; `value` the JSON value set there,
    or `wire.edit.LEAVE_OUT`; `says` one sentence in ASCII for the trace and `x-router-edits`, with no prompt text.
    """

    name: str
    path: tuple[str, ...]
    value: Any
    says: str


def needed(case: Case, allowed: Iterable[str]) -> tuple[tuple[Edit, ...], Case]:
    """The allowed edits that the target needs, and the case with them made. Whether they suffice is checked after.

    A request with `fallbacks` is left alone: other models would get the edited body too.
    """
    if case.body.get("fallbacks") is not None:
        return (), case
    names = frozenset(allowed)
    edits: list[Edit] = []
    whole = case.body
    for name, find in _STEPS.items():
        if name not in names:
            continue
        for path, value, says in find(case, whole):
            edits.append(Edit(name, path, value, says))
            case = dataclasses.replace(case, body=changed_body(case.body, path, value))
    return tuple(edits), case


def adapted(request: MessagesRequest, edits: Sequence[Edit]) -> MessagesRequest:
    """The request with `edits` made in its bytes, read anew; the very same object when there are none.

    Raises InvalidRequest or ValueError for edits that do not belong to this request.
    """
    if not edits:
        return request
    raw = changed_bytes(request, [(edit.path, edit.value) for edit in edits])
    return read_request(raw, needs_max_tokens="max_tokens" in request.body)


_Found = Iterator[tuple[tuple[str, ...], Any, str]]  # (path, value, says)


def _max_tokens(case: Case, whole: Mapping[str, Any]) -> _Found:
    asked, most = case.body.get("max_tokens"), case.target.max_output_tokens
    if rules.is_count(asked) and asked > most:
        yield ("max_tokens",), most, f"max_tokens {asked} -> {most}"


def _thinking(case: Case, whole: Mapping[str, Any]) -> _Found:
    taken = case.target.accepts.thinking.accepts
    value, kind = case.body.get("thinking"), case.thinking_type
    if value is None:
        yield from _thinking_left_out(case)
    elif kind == "enabled":
        yield from _budget(case, value, whole)
    elif kind == "adaptive" and "adaptive" in taken:
        yield from _display(case, value)
    elif kind == "adaptive" and "enabled" in taken:
        yield from _adaptive_to_budget(case, value)
    elif kind in ("disabled", "between_tools") and kind not in taken and len(value) == 1:
        other = "between_tools" if kind == "disabled" else "disabled"
        # Without tools there is nothing between which it could think, so the two are one.
        is_same = kind == "disabled" or not (case.body.get("tools") or case.body.get("mcp_servers"))
        if other in taken and is_same:
            yield ("thinking", "type"), other, f"thinking {kind} -> {other}"


def _thinking_left_out(case: Case) -> _Found:
    if rules.thinking(case) is None:
        return
    asked = case.asked
    assert asked is not None  # a virtual model has no default to keep
    if asked.accepts.thinking.is_on_by_default:  # both think; what they show differs
        if "adaptive" in case.target.accepts.thinking.accepts and asked.accepts.thinking.display is not None:
            display = asked.accepts.thinking.display
            yield ("thinking",), {"type": "adaptive", "display": display}, f"thinking left out -> adaptive {display}"
        return
    for off in ("disabled", "between_tools"):
        if off in case.target.accepts.thinking.accepts:
            yield ("thinking",), {"type": off}, f"thinking left out -> {off}"
            return


def _budget(case: Case, value: Mapping[str, Any], whole: Mapping[str, Any]) -> _Found:
    thinking = case.target.accepts.thinking
    budget, before, cap = value.get("budget_tokens"), whole.get("max_tokens"), case.body.get("max_tokens")
    if not rules.is_count(budget) or not rules.is_count(before) or not rules.is_count(cap):
        return
    if budget < thinking.budget_tokens_min or budget >= before or case.is_forced:
        return  # refused wherever it goes: the caller should hear of it
    if "enabled" in thinking.accepts:
        if budget >= cap:  # `max_tokens` was lowered; the answer keeps its room as far as it goes
            lower = max(thinking.budget_tokens_min, cap - (before - budget))
            yield ("thinking", "budget_tokens"), lower, f"thinking.budget_tokens {budget} -> {lower}"
        yield from _display(case, value)
    elif "adaptive" in thinking.accepts:
        kept = {key: item for key, item in value.items() if key not in ("type", "budget_tokens")}
        yield (
            ("thinking",),
            {"type": "adaptive", **kept, **_shown_as_asked(case, value)},
            "thinking enabled -> adaptive",
        )


def _adaptive_to_budget(case: Case, value: Mapping[str, Any]) -> _Found:
    if case.is_forced:
        # Haiku does not think under a forced tool, so leaving thinking out changes nothing.
        asked = case.asked
        if asked is not None and asked.line == "haiku" and not case.target.accepts.thinking.is_on_by_default:
            yield ("thinking",), LEAVE_OUT, "drop thinking"
        return
    cap, least = case.body.get("max_tokens"), case.target.accepts.thinking.budget_tokens_min
    # Budget thinking wants the pending answer of a tool loop to begin with a thinking block, which it may not do.
    if not rules.is_count(cap) or cap <= least or is_in_tool_loop(case.body["messages"]):
        return
    budget = max(least, cap // 2)
    kept = {key: item for key, item in value.items() if key != "type"}
    new = {"type": "enabled", "budget_tokens": budget, **kept, **_shown_as_asked(case, value)}
    yield ("thinking",), new, f"thinking adaptive -> enabled with budget_tokens {budget}"


def _display(case: Case, value: Mapping[str, Any]) -> _Found:
    for display in _shown_as_asked(case, value).values():
        yield ("thinking", "display"), display, f"thinking.display left out -> {display}"


def _shown_as_asked(case: Case, value: Mapping[str, Any]) -> dict[str, str]:
    """The `display` to say where it is left out and means something else on the target."""
    asked = None if case.asked is None else case.asked.accepts.thinking.display
    is_same = asked is None or asked == case.target.accepts.thinking.display
    return {} if asked is None or is_same or value.get("display") is not None else {"display": asked}


def _effort(case: Case, whole: Mapping[str, Any]) -> _Found:
    effort, accepts = case.effort, case.target.accepts
    if effort is None:
        return
    if not accepts.effort_levels:
        yield ("output_config", "effort"), LEAVE_OUT, "drop output_config.effort"
        return
    limits = {
        "disabled": accepts.thinking.disabled_max_effort,
        "between_tools": accepts.thinking.between_tools_max_effort,
    }
    limit = limits.get(case.thinking_type or "") or EFFORT_ORDER[-1]
    most = min(EFFORT_ORDER.index(effort), EFFORT_ORDER.index(limit))
    for level in reversed(EFFORT_ORDER[: most + 1]):
        if level in accepts.effort_levels:
            if level != effort:
                yield ("output_config", "effort"), level, f"effort {effort} -> {level}"
            return


def _task_budget(case: Case, whole: Mapping[str, Any]) -> _Found:
    config = case.body.get("output_config")
    budget = config.get("task_budget") if isinstance(config, dict) else None
    if budget is not None and case.target.accepts.task_budgets is not True:
        yield ("output_config", "task_budget"), LEAVE_OUT, "drop output_config.task_budget"


def _sampling(case: Case, whole: Mapping[str, Any]) -> _Found:
    """The fewest that must go."""
    given = [name for name in _SAMPLING if case.body.get(name) is not None]
    for count in range(len(given) + 1):
        for dropped in itertools.combinations(given, count):
            rest = {key: value for key, value in case.body.items() if key not in dropped}
            if rules.sampling(dataclasses.replace(case, body=rest)) is None:
                yield from (((name,), LEAVE_OUT, f"drop {name}") for name in dropped)
                return


def _speed(case: Case, whole: Mapping[str, Any]) -> _Found:
    speed = case.body.get("speed")
    if speed == "fast" and rules.speed(speed, case) is not None:
        yield ("speed",), LEAVE_OUT, "drop speed"


def _service_tier(case: Case, whole: Mapping[str, Any]) -> _Found:
    tier = case.body.get("service_tier")
    if tier == "auto" and rules.service_tier(tier, case) is not None:
        yield ("service_tier",), LEAVE_OUT, "drop service_tier"


# In this order: a thinking budget stays below the lowered `max_tokens`, and the effort follows the thinking type.
_STEPS: Mapping[str, Callable[[Case, Mapping[str, Any]], _Found]] = MappingProxyType(
    {
        "max_tokens": _max_tokens,
        "thinking": _thinking,
        "effort": _effort,
        "task_budget": _task_budget,
        "sampling": _sampling,
        "speed": _speed,
        "service_tier": _service_tier,
    }
)
