"""What the named model refuses: one function per rule, in the order in which the API was seen to complain.

Source: the table "what each model accepts" and the message texts of the API; where no text is known, ours says what
the documentation says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from router.simulator import betas as b
from router.simulator.advisor import check_advisor
from router.simulator.call import Call
from router.simulator.compaction import check_context
from router.simulator.fallback import check_fallbacks
from router.simulator.record import ModelRecord, Roster
from router.simulator.refusal import Refusal, extra_input, missing
from router.simulator.structured import check_structured

EFFORTS = ("low", "medium", "high", "xhigh", "max")
THINKING_TYPES = ("adaptive", "enabled", "disabled", "between_tools")
BASIC_WEB_TOOLS = ("web_search_20250305", "web_fetch_20250910")
DYNAMIC_WEB_TOOL = re.compile(r"web_(search|fetch)_(20\d{6})")
DYNAMIC_SINCE = "20260209"
SILENTLY_STANDARD = ("claude-opus-4-6",)  # `speed: fast` runs at standard speed and price
EFFORT_TURNS_NEED_THINKING = ("claude-sonnet-5-5", "claude-haiku-5-5")
TOP_P_DEFAULT = 0.99


def check_accepts(call: Call, roster: Roster) -> None:
    """Raise `Refusal` for the first thing that the named model, at this version and betas, does not take."""
    _max_tokens(call)
    _thinking(call)
    _effort(call)
    _sampling(call)
    _tool_choice(call)
    _system_turns(call)
    _tool_changes(call)
    _prefill(call)
    _tools(call)
    check_advisor(call, roster)
    _output(call)
    _places(call)
    _context_features(call)
    check_fallbacks(call, roster, lambda handed_on: check_accepts(handed_on, roster))
    _images(call)


def _max_tokens(call: Call) -> None:
    if call.is_count:
        return
    asked = call.body["max_tokens"]
    cap = call.model.output_cap(is_long_batch=call.is_batch and b.LONG_OUTPUT in call.betas)
    if asked > cap:
        raise Refusal(
            f"max_tokens: {asked} > {cap}, which is the maximum allowed number of output tokens for {call.model.id}"
        )
    if asked == 0:
        body = call.body
        conflicts = {
            "`stream: true`": bool(body.get("stream")),
            "`thinking.type: enabled`": (body.get("thinking") or {}).get("type") == "enabled",
            "`output_config.format`": bool((body.get("output_config") or {}).get("format")),
            "`tool_choice` of type `any` or `tool`": call.forces_tool,
            "`compaction`": bool(body.get("compaction")),
            "Message Batches": call.is_batch,
        }
        for name, is_set in conflicts.items():
            if is_set:
                raise Refusal(f"max_tokens: 0 is not supported with {name}")


def _thinking(call: Call) -> None:
    config = call.body.get("thinking")
    if config is None:
        return
    if not isinstance(config, dict):
        raise Refusal("thinking: Input should be a valid dictionary")
    kind = config.get("type")
    if kind not in THINKING_TYPES:
        raise Refusal(
            f"thinking: Input tag '{kind}' found using 'type' does not match any of the expected tags: "
            "'adaptive', 'between_tools', 'disabled', 'enabled'"
        )
    _thinking_fields(config, kind, call)
    model = call.model
    if kind not in model.thinking_types:
        if kind == "adaptive":
            raise Refusal("adaptive thinking is not supported on this model")
        if kind == "disabled" and "between_tools" in model.thinking_types:
            raise Refusal(
                'To turn thinking off on this model, send "thinking": {"type": "between_tools"} instead of '
                '{"type": "disabled"}. Effort must be "high" or below.'
            )
        if kind == "between_tools":
            raise Refusal('"thinking.type.between_tools" is not supported for this model.')
        raise Refusal(
            f'"thinking.type.{kind}" is not supported for this model. '
            'Use "thinking.type.adaptive" and "output_config.effort" to control thinking behavior.'
        )
    if kind == "enabled":
        budget = config["budget_tokens"]
        if isinstance(budget, bool) or not isinstance(budget, int):
            raise Refusal("thinking.enabled.budget_tokens: Input should be a valid integer")
        if budget < 1024:
            raise Refusal("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
        if not call.is_count and budget >= call.body["max_tokens"]:
            raise Refusal("`max_tokens` must be greater than `thinking.budget_tokens`.")


def _thinking_fields(config: Mapping[str, Any], kind: str, call: Call) -> None:
    allowed: dict[str, tuple[str, ...]] = {
        "adaptive": ("display",),
        "enabled": ("display", "budget_tokens"),
        "disabled": (),
        "between_tools": (),
    }
    fields = set(allowed[kind])
    # Under its beta `block_binding` goes with thinking; where the check runs it is refused with thinking off.
    if b.BINDING in call.betas and (
        kind in ("adaptive", "enabled") or (kind == "disabled" and not call.model.is_history_checked)
    ):
        fields.add("block_binding")
    for name in config:
        if name != "type" and name not in fields:
            raise extra_input(f"thinking.{kind}.{name}")
    if kind == "enabled" and "budget_tokens" not in config:
        raise missing("thinking.enabled.budget_tokens")
    displays = ["summarized", "omitted", *(["updates"] if b.has_any(call.betas, b.DISPLAY_UPDATES) else [])]
    if config.get("display") is not None and config["display"] not in displays:
        expected = " or ".join(f"'{name}'" for name in displays)
        raise Refusal(f"thinking.{kind}.display: Input should be {expected}")
    binding = config.get("block_binding")
    if binding is not None and (
        not isinstance(binding, dict) or binding.get("prefix_mismatch_behavior") not in ("drop_block", "error", None)
    ):
        raise Refusal(
            f"thinking.{kind}.block_binding.prefix_mismatch_behavior: Input should be 'drop_block' or 'error'"
        )


def _effort(call: Call) -> None:
    config = call.body.get("output_config")
    if config is not None and not isinstance(config, dict):
        raise Refusal("output_config: Input should be a valid dictionary")
    for name in config or {}:
        if name not in ("effort", "format") and not (name == "task_budget" and b.has_any(call.betas, b.TASK_BUDGETS)):
            raise extra_input(f"output_config.{name}")
    asked = (config or {}).get("effort")
    if asked is not None:
        check_effort_level(asked, call.model, "output_config.effort")
    top = {
        "disabled": call.model.fields["thinking"].get("disabled_max_effort"),
        "between_tools": call.model.fields["thinking"].get("between_tools_max_effort"),
    }.get(call.thinking_type)
    effort = call.effort
    if top and effort and EFFORTS.index(effort) > EFFORTS.index(top):
        raise Refusal(
            f"output_config.effort '{effort}' is not supported when thinking is disabled on this model. "
            f"Use effort '{top}' or below, or enable thinking."
        )


def check_effort_level(asked: Any, model: ModelRecord, path: str) -> None:
    """Refuse an effort that is no level at all, or none of this model's."""
    if asked not in EFFORTS:
        raise Refusal(f"{path}: Input should be 'low', 'medium', 'high', 'xhigh' or 'max'")
    if not model.effort_levels:
        raise Refusal("This model does not support the effort parameter.")
    if asked not in model.effort_levels:
        levels = ", ".join(sorted(model.effort_levels))
        raise Refusal(f"This model does not support effort level '{asked}'. Supported levels: {levels}.")


def _sampling(call: Call) -> None:
    body = call.body
    temperature, top_p, top_k = (body.get(name) for name in ("temperature", "top_p", "top_k"))
    if call.model.fields["sampling_params_2023_06_01"] == "default_only":
        if temperature is not None and temperature != 1:
            raise Refusal("`temperature` is deprecated for this model.")
        if top_p is not None and (top_p != TOP_P_DEFAULT or temperature is not None):
            raise Refusal("`top_p` is deprecated for this model.")
        if top_k is not None:
            raise Refusal("`top_k` is deprecated for this model.")
        return
    if call.model.is_older_sampler and temperature is not None and top_p is not None:
        raise Refusal("`temperature` and `top_p` cannot both be specified for this model. Please use only one.")
    if call.thinking_type == "enabled" and temperature not in (None, 1):
        raise Refusal("`temperature` may only be set to 1 when thinking is enabled.")


def _tool_choice(call: Call) -> None:
    if not call.forces_tool:
        return
    if call.model.fields["forced_tool_choice"] is False:
        raise Refusal('tool_choice: type "tool" and "any" are not supported for this model.')
    if call.thinking_type == "enabled":
        raise Refusal("Thinking may not be enabled when tool_choice forces tool use.")


def _system_turns(call: Call) -> None:
    messages = call.body["messages"]
    for index, message in enumerate(messages):
        if message["role"] != "system":
            continue
        if not call.model.fields["mid_conversation_system"]:
            raise Refusal("role 'system' is not supported on this model")
        _per_message_effort(call, message, f"messages.{index}.output_config.effort")
        content = message.get("content") or []
        if not isinstance(content, str) and not any(block["type"] == "text" for block in content):
            continue
        if index == 0:
            raise Refusal("messages.0: use the top-level 'system' parameter for the initial system prompt")
        before = messages[index - 1]
        if not (before["role"] == "user" or (before["role"] == "assistant" and ends_in_server_tool(before))):
            raise Refusal(
                f"messages.{index}: a 'system' message must follow a 'user' message or an 'assistant' message that "
                "ends in server tool use"
            )
        if index + 1 < len(messages) and messages[index + 1]["role"] != "assistant":
            raise Refusal(f"messages.{index}: a 'system' message must be last or be followed by an 'assistant' message")


def _per_message_effort(call: Call, message: Mapping[str, Any], path: str) -> None:
    effort = (message.get("output_config") or {}).get("effort")
    if effort is None:
        return
    if not call.model.fields["per_message_effort"]:
        raise Refusal(f"{path}: per-message effort is not supported on this model")
    if call.model.id in EFFORT_TURNS_NEED_THINKING and not call.is_thinking:
        raise Refusal(f"{path}: per-message effort needs thinking on this model")
    check_effort_level(effort, call.model, path)


def _tool_changes(call: Call) -> None:
    if call.model.fields["mid_conversation_tool_changes"]:
        return
    for index, message in enumerate(call.body["messages"]):
        content = message.get("content")
        for block in content if isinstance(content, list) else []:
            if block["type"] in ("tool_addition", "tool_removal"):
                raise Refusal(f"messages.{index}: `{block['type']}` blocks are not supported on this model")


def ends_in_server_tool(message: Mapping[str, Any]) -> bool:
    """Whether an assistant message stopped inside server-side tool use, so that it may be sent back as the last."""
    content = message.get("content")
    last = content[-1]["type"] if isinstance(content, list) and content else ""
    return last in ("server_tool_use", "mcp_tool_use") or (last.endswith("_tool_result") and last != "tool_result")


def _prefill(call: Call) -> None:
    spoken = [message for message in call.body["messages"] if message["role"] != "system"]
    if not spoken or spoken[-1]["role"] != "assistant" or ends_in_server_tool(spoken[-1]):
        return
    if not call.model.fields["assistant_prefill"]:
        raise Refusal(
            "This model does not support assistant message prefill. The conversation must end with a user message."
        )
    if call.is_thinking:
        raise Refusal("Assistant message prefill is not supported when thinking is enabled.")
    content = spoken[-1]["content"]
    text = content if isinstance(content, str) else content[-1].get("text", "") if content else ""
    if text and text != text.rstrip():
        raise Refusal("messages: final assistant content cannot end with trailing whitespace")


def _tools(call: Call) -> None:
    model = call.model
    kinds = [tool.get("type") or "custom" for tool in call.body.get("tools") or []]
    if model.fields["web_tools_dynamic_filtering"] is False:
        late = [kind for kind in kinds if (m := DYNAMIC_WEB_TOOL.fullmatch(kind)) and m[2] >= DYNAMIC_SINCE]
        _refuse_tool_types(model, late, BASIC_WEB_TOOLS)
    if model.computer_tools is not None:
        wrong = [kind for kind in kinds if kind.startswith("computer_") and kind not in model.computer_tools]
        _refuse_tool_types(model, wrong, model.computer_tools)
    if not model.fields["programmatic_tool_calling"]:
        for index, tool in enumerate(call.body.get("tools") or []):
            callers = tool.get("allowed_callers") or []
            if any(isinstance(name, str) and name.startswith("code_execution") for name in callers):
                raise Refusal(
                    f"tools.{index}.allowed_callers: programmatic tool calling is not supported on this model"
                )


def _refuse_tool_types(model: ModelRecord, kinds: list[str], instead: tuple[str, ...]) -> None:
    if kinds:
        raise Refusal(
            f"'{model.id}' does not support tool types: {', '.join(dict.fromkeys(kinds))}. "
            f"Did you mean one of {', '.join(instead)}?"
        )


def _output(call: Call) -> None:
    config = call.body.get("output_config") or {}
    if config.get("task_budget") is not None and not call.model.fields["task_budgets"]:
        raise Refusal("output_config.task_budget: task budgets are not supported on this model")
    check_structured(call.body, is_supported=call.model.fields["structured_outputs"] is not False)


def _places(call: Call) -> None:
    """Where and how fast: `inference_geo`, `speed`, `service_tier`."""
    body, model = call.body, call.model
    geo = body.get("inference_geo")
    if geo is not None:
        if model.fields["us_inference_multiplier"] is None:
            raise Refusal("inference_geo: this parameter is not supported on this model")
        if geo not in ("global", "us"):
            raise Refusal("inference_geo: Input should be 'global' or 'us'")
    if body.get("speed") == "fast" and model.id not in SILENTLY_STANDARD:
        fast = model.fields["fast_mode"]
        ended = fast is not None and fast.get("removed_on") and call.today >= date.fromisoformat(fast["removed_on"])
        if fast is None or ended:
            raise Refusal("speed: 'fast' is not supported on this model")
        if fast["requires_beta"] and b.FAST_MODE not in call.betas:
            raise extra_input("speed")
        if call.is_batch:
            raise Refusal("speed: 'fast' is not supported in Message Batches")


def _context_features(call: Call) -> None:
    check_context(call)
    if call.body.get("thread") is not None:
        raise Refusal(
            "thread: this request cannot run as a message thread; send the whole conversation",
            details={"error_code": "thread_unsupported_request"},
        )


def _images(call: Call) -> None:
    most = int(call.model.fields["image_limits"]["max_images_per_request"])
    count = sum(
        block["type"] in ("image", "document")
        for message in call.body["messages"]
        for block in (message.get("content") if isinstance(message.get("content"), list) else [])
    )
    if count > most:
        raise Refusal(f"messages: too many images and documents: {count} > {most}")
