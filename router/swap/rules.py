"""The rules of a swap for the fields of a request: a reason why the target might not serve it, or None.

Every rule is strict: what the target is known to take passes, everything else is a reason. A field that nobody knows
is a reason too, because only the model that was asked for is known to take it. Names that come from the request are
shown only when they look like names, so that no prompt text can reach a trace.
Source: Anthropic fact sheet, sections 3 (what each model accepts), 4, 13, 14 and 18.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeGuard

from router.catalog.records import EFFORT_ORDER, Model
from router.value import value_class

_MAX_TOOLS = 2_000  # a longer list is not checked but refused: the check runs on the request path

_FORCED = ("any", "tool")
_BASIC_WEB_TOOLS = frozenset({"web_search_20250305", "web_fetch_20250910"})
# Typed tools that every current model takes.
_PLAIN_TOOL_TYPES = frozenset(
    {"custom", "bash_20250124", "text_editor_20250728", "memory_20250818", "code_execution_20250825", "mcp_toolset"}
)
# Typed tools that came with programmatic tool calling; no page names models for them one by one, so the claim about
# programmatic tool calling, which is narrower, stands for them.
_ADVANCED_TOOL_TYPES = frozenset(
    {
        "code_execution_20260120",
        "code_execution_20260521",
        "tool_search_tool_regex_20251119",
        "tool_search_tool_bm25_20251119",
    }
)
_PLAIN_TOOL_FIELDS = frozenset(
    {"name", "description", "input_schema", "type", "cache_control", "eager_input_streaming"}
)
_ADVANCED_TOOL_FIELDS = frozenset({"defer_loading", "input_examples", "allowed_callers"})


@value_class(frozen=True, slots=True)
class Case:
    """One swap under examination. `asked` is None for a virtual model, which has no behaviour of its own to keep.

    `producers` are the ids of the models whose answers are in the conversation; empty when nobody knows.
    """

    body: Mapping[str, Any]
    target: Model
    asked: Model | None
    api_version: str
    producers: tuple[str, ...] = ()

    @property
    def effort(self) -> str | None:
        """The effort that the body asks for, if it is one of the known levels."""
        config = self.body.get("output_config")
        effort = config.get("effort") if isinstance(config, dict) else None
        return effort if isinstance(effort, str) and effort in EFFORT_ORDER else None

    @property
    def thinking_type(self) -> str | None:
        """The `thinking.type` of the body; None when it is left out."""
        thinking = self.body.get("thinking")
        kind = thinking.get("type") if isinstance(thinking, dict) else None
        return kind if isinstance(kind, str) else None

    @property
    def thinks(self) -> bool:
        """Whether the target would think on this request."""
        kind = self.thinking_type
        return self.target.accepts.thinking.is_on_by_default if kind is None else kind in ("adaptive", "enabled")

    @property
    def is_forced(self) -> bool:
        """Whether the request forces a tool call."""
        choice = self.body.get("tool_choice")
        return isinstance(choice, dict) and choice.get("type") in _FORCED


_OTHER_DISPLAY = "`thinking.display` is left out and means something else here"


def shown(value: object) -> str:
    """A name out of a request as a reason may show it; anything that is not a short plain name becomes its type."""
    if isinstance(value, str) and 0 < len(value) <= 64 and value.isascii() and value.replace("-", "_").isidentifier():
        return value
    return type(value).__name__


def thinking(case: Case) -> str | None:
    """`thinking`, given or left out."""
    rules = case.target.accepts.thinking
    value = case.body.get("thinking")
    if value is None:
        # A program written for a model that does not think reads its first content block as text and sizes
        # `max_tokens` for the answer alone: thinking would break both. Only Haiku is documented to skip thinking
        # under a forced tool.
        asked = case.asked
        if asked is None or not rules.is_on_by_default:
            return None
        if asked.accepts.thinking.is_on_by_default:
            return None if asked.accepts.thinking.display == rules.display else _OTHER_DISPLAY
        if case.is_forced and case.target.line == "haiku":
            return None
        return "`thinking` is left out: the model asked for then does not think, this one does, and spends `max_tokens`"
    kind = case.thinking_type
    if kind is None or kind not in rules.accepts:
        return f"`thinking.type` `{shown(value.get('type') if isinstance(value, dict) else value)}` is not taken"
    if kind == "enabled":
        return _thinking_budget(value, case)
    if kind == "adaptive":
        return _thinking_display(value, case)
    limit = rules.disabled_max_effort if kind == "disabled" else rules.between_tools_max_effort
    effort = case.effort
    if limit is not None and effort is not None and EFFORT_ORDER.index(effort) > EFFORT_ORDER.index(limit):
        return f"`thinking.type` `{kind}` goes with effort `{limit}` or lower, not `{effort}`"
    if len(value) > 1:
        return f"`thinking.type` `{kind}` may not take sibling fields"
    return None


def _thinking_budget(value: Mapping[str, Any], case: Case) -> str | None:
    budget, cap = value.get("budget_tokens"), case.body.get("max_tokens")
    if not is_count(budget) or budget < case.target.accepts.thinking.budget_tokens_min:
        return f"`thinking.budget_tokens` must be {case.target.accepts.thinking.budget_tokens_min} or more"
    if is_count(cap) and budget >= cap:
        return "`thinking.budget_tokens` must be below `max_tokens`"
    if case.is_forced:
        return "budget thinking together with a forced tool may not be taken"
    return _thinking_display(value, case)


def _thinking_display(value: Mapping[str, Any], case: Case) -> str | None:
    display = value.get("display")
    if display is None:
        asked = case.asked
        if asked is not None and asked.accepts.thinking.display != case.target.accepts.thinking.display:
            return _OTHER_DISPLAY
    elif display not in ("omitted", "summarized"):
        return f"`thinking.display` `{shown(display)}` may not be taken"
    if value.get("block_binding") is not None and not case.target.checks_thinking_prefix:
        return "`thinking.block_binding` may not be taken"
    unknown = value.keys() - {"type", "display", "budget_tokens", "block_binding"}
    return f"`thinking.{shown(min(unknown))}` is not known" if unknown else None


def _output_config(value: Any, case: Case) -> str | None:
    if not isinstance(value, dict):
        return "`output_config` is not an object"
    accepts = case.target.accepts
    effort = value.get("effort")
    if effort is not None:
        if not accepts.effort_levels:
            return "`output_config.effort` is not taken"
        if not isinstance(effort, str) or effort not in accepts.effort_levels:
            return f"`output_config.effort` `{shown(effort)}` is not taken"
    if value.get("format") is not None and accepts.structured_outputs is not True:
        return "`output_config.format` is not taken"
    if value.get("task_budget") is not None and accepts.task_budgets is not True:
        return "`output_config.task_budget` is not taken"
    unknown = value.keys() - {"effort", "format", "task_budget"}
    return f"`output_config.{shown(min(unknown))}` is not known" if unknown else None


def _output_format(value: Any, case: Case) -> str | None:
    return None if case.target.accepts.structured_outputs is True else "`output_format` is not taken"


def _sampling(value: Any, case: Case) -> str | None:
    return sampling(case)


def sampling(case: Case) -> str | None:
    """`temperature`, `top_p` and `top_k` together; called for each, so a reason may come up to three times."""
    accepts, body = case.target.accepts, case.body
    # Versions are dates; whatever is not the old one is held to the newest rules.
    mode = accepts.sampling_2023 if case.api_version == "2023-06-01" else accepts.sampling_2026
    temperature, top_p, top_k = body.get("temperature"), body.get("top_p"), body.get("top_k")
    if mode == "rejected":
        return f"sampling parameters are not taken with API version `{shown_version(case.api_version)}`"
    if mode == "default_only":
        if top_k is not None:
            return "`top_k` is not taken"
        if temperature is not None and top_p is not None:
            return "`temperature` together with `top_p` is not taken"
        if temperature is not None and not _is_one(temperature):
            return "`temperature` other than 1 is not taken"
        # The one value of `top_p` that passes is documented for Haiku only. Of the others, pages disagree whether the
        # default `temperature` passes; where it may be an error, the model asked for must have the same rule.
        is_haiku = case.target.line == "haiku"
        if top_p is not None and not (is_haiku and top_p == 0.99):
            return "`top_p` is not taken"
        if temperature is not None and not is_haiku:
            asked = case.asked
            if asked is None or asked.accepts.sampling_2023 != mode:
                return "`temperature` may not be taken, even at its default"
        return None
    if temperature is not None and top_p is not None and "adaptive" not in accepts.thinking.accepts:
        return "`temperature` together with `top_p` is not taken"
    if case.thinks and (top_k is not None or (temperature is not None and not _is_one(temperature))):
        return "sampling parameters other than the default may not be taken while thinking"
    return None


def _tool_choice(value: Any, case: Case) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind in ("auto", "none"):
        return None
    if kind not in _FORCED:
        return "`tool_choice` is not known"
    # Budget thinking together with a forced tool is a rule of `thinking`.
    return None if case.target.accepts.forced_tool_choice is True else f"`tool_choice` `{kind}` is not taken"


def _tools(value: Any, case: Case) -> str | None:
    if not isinstance(value, list):
        return "`tools` is not a list"
    if len(value) > _MAX_TOOLS:
        return f"more than {_MAX_TOOLS} tools are not checked"
    for tool in value:
        if not isinstance(tool, dict):
            return "a tool is not an object"
        kind = tool.get("type")
        is_typed = kind is not None and kind != "custom"
        if not is_typed and tool.keys() <= _PLAIN_TOOL_FIELDS:
            continue
        reason = _typed_tool(kind, case) if is_typed else _tool_fields(tool)
        if reason is None:
            reason = _tool_features(tool, case)
        if reason is not None:
            return reason
    return None


def _tool_fields(tool: Mapping[str, Any]) -> str | None:
    unknown = tool.keys() - _PLAIN_TOOL_FIELDS - _ADVANCED_TOOL_FIELDS - {"strict"}
    return f"field `{shown(min(unknown))}` of a tool is not known" if unknown else None


def _tool_features(tool: Mapping[str, Any], case: Case) -> str | None:
    accepts = case.target.accepts
    if tool.get("strict") and accepts.structured_outputs is not True:
        return "`strict` tools are not taken"
    if accepts.programmatic_tool_calling is not True:
        callers = tool.get("allowed_callers")
        if callers is not None and callers != ["direct"]:
            return "programmatic tool calling (`allowed_callers`) is not taken"
        if tool.get("defer_loading") or tool.get("input_examples"):
            return "`defer_loading` and `input_examples` of a tool may not be taken"
    return None


def _typed_tool(kind: Any, case: Case) -> str | None:
    accepts = case.target.accepts
    if not isinstance(kind, str):
        return "the type of a tool is not text"
    if (
        kind.startswith(("web_search_", "code_execution_"))
        and f"server_tools.{kind.rpartition('_')[0]}" in accepts.denied
    ):
        return f"tool type `{shown(kind)}` is not taken"
    if kind in _PLAIN_TOOL_TYPES or kind in _BASIC_WEB_TOOLS:
        return None
    if kind.startswith(("web_search_", "web_fetch_")):
        return None if accepts.web_tools_dynamic_filtering is True else f"tool type `{shown(kind)}` may not be taken"
    if kind.startswith("computer_"):
        return None if kind in accepts.computer_tools else f"tool type `{shown(kind)}` is not taken"
    if kind in _ADVANCED_TOOL_TYPES:
        return None if accepts.programmatic_tool_calling is True else f"tool type `{shown(kind)}` may not be taken"
    if kind.startswith("advisor_"):
        return "an advisor tool is paired with the model asked for"
    return f"tool type `{shown(kind)}` is not known to be taken"


def _inference_geo(value: Any, case: Case) -> str | None:
    return None if case.target.accepts.inference_geo else "`inference_geo` is not taken"


def speed(value: Any, case: Case) -> str | None:
    """`speed`."""
    if value == "standard":
        return None
    fast = case.target.accepts.fast_mode
    if value == "fast" and fast is not None and not fast.requires_beta and fast.removed_on is None:
        return None
    return f"`speed` `{shown(value)}` may not be taken"


def _context_management(value: Any, case: Case) -> str | None:
    edits = value.get("edits") if isinstance(value, dict) else None
    if not isinstance(edits, list):
        return "`context_management` is not known"
    for edit in edits[:16]:
        kind = edit.get("type") if isinstance(edit, dict) else None
        if f"context_management.{kind}" in case.target.accepts.denied:
            return f"context edit `{shown(kind)}` is not taken"
        if kind == "clear_tool_uses_20250919":
            continue
        if kind == "clear_thinking_20251015":
            if not case.thinks:
                return "`clear_thinking_20251015` goes with thinking, which is off here"
        elif kind == "compact_20260112":
            if case.target.accepts.compaction is not True:
                return "compaction is not taken"
        else:
            return f"context edit `{shown(kind)}` is not known"
    return None if len(edits) <= 16 else "more than 16 context edits are not checked"


def _compaction(value: Any, case: Case) -> str | None:
    return None if case.target.accepts.compaction is True else "compaction is not taken"


def service_tier(value: Any, case: Case) -> str | None:
    """`service_tier`."""
    if value == "standard_only":
        return None
    # A request that may use Priority capacity fails validation on a model without it.
    if value == "auto" and (
        case.target.accepts.priority_tier is True or case.asked is None or case.asked.accepts.priority_tier is not True
    ):
        return None
    return f"`service_tier` `{shown(value)}` may not be taken"


def _fallbacks(value: Any, case: Case) -> str | None:
    targets = case.target.accepts.server_fallback_targets
    if not targets:
        return "`fallbacks` are not taken"
    if value == "default":
        return None
    if isinstance(value, list) and len(value) <= 3:
        models = [entry.get("model") if isinstance(entry, dict) else None for entry in value]
        if all(isinstance(model, str) and model in targets for model in models):
            return None
    return "`fallbacks` name a model that is not allowed"


def _always(reason: str) -> Callable[[Any, Case], str | None]:
    def rule(value: Any, case: Case) -> str | None:
        return reason

    return rule


# Top-level fields that every current model takes, or whose rule is elsewhere (`thinking`, `max_tokens`, `messages`).
PLAIN_FIELDS = frozenset(
    {
        *("model", "max_tokens", "messages", "system", "stream", "metadata", "stop_sequences", "cache_control"),
        *("thinking", "diagnostics", "mcp_servers", "billing_policy"),
    }
)

# A rule for every other known field; a field without a rule is a reason.
FIELD_RULES: Mapping[str, Callable[[Any, Case], str | None]] = MappingProxyType(
    {
        "tools": _tools,
        "tool_choice": _tool_choice,
        "output_config": _output_config,
        "output_format": _output_format,
        "temperature": _sampling,
        "top_p": _sampling,
        "top_k": _sampling,
        "inference_geo": _inference_geo,
        "speed": speed,
        "context_management": _context_management,
        "compaction": _compaction,
        "service_tier": service_tier,
        "fallbacks": _fallbacks,
        "thread": _always("a message thread never changes its model"),
        "container": _always("`container` state stays with the model asked for"),
        "fallback_credit_token": _always("`fallback_credit_token` is bound to the model that refused"),
    }
)


def shown_version(version: str) -> str:
    """An API version as a reason may show it."""
    return version if len(version) == 10 and version.replace("-", "").isdigit() else "unknown"


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a JSON value is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_one(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 1
