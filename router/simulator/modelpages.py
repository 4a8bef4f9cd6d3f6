"""`GET /v1/models`: every model with its limits and capabilities.

Source: `ModelInfo`, `ModelCapabilities` and `ThinkingTypes` of the official SDK: a false under `thinking.types` means
that sending it gets a 400.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.simulator.accepts import EFFORTS, THINKING_TYPES
from router.simulator.files import page_size
from router.simulator.record import ModelRecord, Roster
from router.simulator.refusal import Refusal

LIFECYCLES = ("active", "deprecated", "retired")


def model_info(model: ModelRecord, *, is_beta: bool) -> dict[str, Any]:
    """One model as the API shows it; `is_beta` adds what only the beta form has."""
    fields = model.fields
    info: dict[str, Any] = {
        "type": "model",
        "id": model.id,
        "display_name": fields["display_name"],
        "created_at": _midnight(fields["released"]),
        "line": fields["line"],
        "lifecycle": fields["lifecycle"],
        "deprecated_at": _midnight(fields["deprecated"]),
        "retires_at": None if fields["lifecycle"] == "active" else _midnight(fields["retires"]),
        "max_input_tokens": model.context_window,
        "max_tokens": fields["max_output_tokens"],
        "capabilities": _capabilities(model, is_beta=is_beta),
    }
    if is_beta:
        info["allowed_fallback_models"] = fields["server_fallback_targets"] or []
    return info


def _midnight(day: str | None) -> str | None:
    return None if day is None else f"{day}T00:00:00Z"


def _capabilities(model: ModelRecord, *, is_beta: bool) -> dict[str, Any]:
    fields = model.fields
    types = model.thinking_types
    has_thinking = bool(types)
    compacts = bool(fields["compaction_beta"])
    capabilities: dict[str, Any] = {
        "batch": _has(True),
        "citations": _has(True),
        "code_execution": _has(bool(fields["programmatic_tool_calling"])),
        "context_management": {
            "supported": True,
            "clear_tool_uses_20250919": _has(True),
            "clear_thinking_20251015": _has(has_thinking),
            "compact_20260112": _has(compacts),
        },
        "effort": {
            "supported": bool(model.effort_levels),
            **{level: _has(level in model.effort_levels) for level in EFFORTS},
        },
        "image_input": _has(True),
        "pdf_input": _has(True),
        "server_tools": {"supported": True, "web_search": _has(True), "code_execution": _has(True)},
        "structured_outputs": _has(bool(fields["structured_outputs"])),
        "thinking": {
            "supported": has_thinking,
            # `disabled` is taken by a model that cannot think at all.
            "types": {kind: _has(kind in types or (kind == "disabled" and not types)) for kind in THINKING_TYPES},
        },
    }
    if is_beta:
        # One entry per `compaction.type`; there is one.
        capabilities["compaction"] = {"supported": compacts, "summarize": _has(compacts)}
    return capabilities


def _has(supported: bool) -> dict[str, bool]:
    return {"supported": supported}


def model_page(roster: Roster, query: Mapping[str, str], lifecycles: list[str], *, is_beta: bool) -> dict[str, Any]:
    """One page of the models, newest first; retired ones only on request. Raises `Refusal` for a bad parameter."""
    for name in lifecycles:
        if name not in LIFECYCLES:
            raise Refusal(f"lifecycle: Input should be 'active', 'deprecated' or 'retired', not '{name}'")
    wanted = lifecycles or ["active", "deprecated"]
    models = [model for model in roster.models if model.fields["lifecycle"] in wanted]
    models.sort(key=lambda model: str(model.fields["released"]), reverse=True)
    shown, has_more = paged([model.id for model in models], query)
    by_id = {model.id: model for model in models}
    return {
        "data": [model_info(by_id[name], is_beta=is_beta) for name in shown],
        "has_more": has_more,
        "first_id": shown[0] if shown else None,
        "last_id": shown[-1] if shown else None,
    }


def paged(ids: list[str], query: Mapping[str, str]) -> tuple[list[str], bool]:
    """The ids of one page by `limit`, `after_id` and `before_id`, and whether more follow in that direction."""
    limit = page_size(query)
    after, before = query.get("after_id"), query.get("before_id")
    if after:
        rest = ids[ids.index(after) + 1 :] if after in ids else []
        return rest[:limit], len(rest) > limit
    if before:
        rest = ids[: ids.index(before)] if before in ids else []
        return rest[-limit:], len(rest) > limit
    return ids[:limit], len(ids) > limit
