"""Server-side fallback: what other models a request names, what each of them is asked, and who stays with whom.

Only a policy refusal moves a request on, never a 429 or a 529. Every model that ran is billed at its own rates. Source:
facts on server-side fallback, `beta_fallback_param` and `beta_fallback_block` of the official SDK 2.12.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from router.simulator.call import Call
from router.simulator.record import ModelRecord, Roster
from router.simulator.refusal import Refusal, extra_input, missing
from router.simulator.thinking import digest

ENTRY_FIELDS = frozenset({"model", "max_tokens", "thinking", "output_config", "speed"})
MOST_ENTRIES = 3
STICKS_S = 3600.0  # "sticky for about an hour"
KEPT = 10_000

Check = Callable[[Call], None]


def check_fallbacks(call: Call, roster: Roster, check: Check) -> None:
    """Raise `Refusal` for a `fallbacks` that the API does not take.

    `check` is what the API holds any request against: each entry is validated as if it were sent to its own model.
    """
    fallbacks = call.body.get("fallbacks")
    if fallbacks is None:
        return
    if call.body.get("fallback_credit_token") is not None:
        raise Refusal("fallback_credit_token: cannot be combined with `fallbacks`")
    if fallbacks == "default":
        return
    if not isinstance(fallbacks, list) or len(fallbacks) > MOST_ENTRIES:
        raise Refusal(f"fallbacks: Input should be 'default' or a list of at most {MOST_ENTRIES} entries")
    allowed = call.model.fields["server_fallback_targets"] or []
    if not allowed and not fallbacks:
        raise Refusal(f"fallbacks: {call.model.id} does not support a list of fallback models")
    for index, entry in enumerate(fallbacks):
        path = f"fallbacks.{index}"
        if not isinstance(entry, dict):
            raise Refusal(f"{path}: Input should be a valid dictionary")
        if "model" not in entry:
            raise missing(f"{path}.model")
        for name in entry:
            if name not in ENTRY_FIELDS:
                raise extra_input(f"{path}.{name}")
        target = roster.known(entry["model"]) if isinstance(entry["model"], str) else None
        if target is None or target.id not in allowed:
            raise Refusal(f"{path}.model: '{entry['model']}' is not an allowed fallback model for {call.model.id}")
        try:
            check(_handed_on(call, entry, target))
        except Refusal as refusal:
            raise Refusal(f"{path}: {refusal.message}", refusal.status, details=refusal.details) from refusal


def fallback_calls(call: Call, roster: Roster, check: Check) -> Iterator[Call]:
    """The request as each of its fallback models gets it, in order; none where it names none."""
    fallbacks = call.body.get("fallbacks")
    if fallbacks is None:
        return
    is_default = fallbacks == "default"
    entries = (
        [{"model": name} for name in call.model.fields["server_fallback_targets"] or []] if is_default else fallbacks
    )
    for entry in entries:
        target = roster.known(entry["model"])
        if target is None:
            continue
        made = _handed_on(call, entry, target)
        if is_default:  # nobody chose this model: one that cannot take the request is passed over
            try:
                check(made)
            except Refusal:
                continue
        yield made


def _handed_on(call: Call, entry: Mapping[str, Any], target: ModelRecord) -> Call:
    """The request for one entry: its own fields, then those of the request that the model supports."""
    body = {name: value for name, value in call.body.items() if name != "fallbacks"}
    body["model"] = target.id
    if entry.get("max_tokens") is not None:
        body["max_tokens"] = entry["max_tokens"]
    thinking = _thinking(call, entry, target)
    _put(body, "thinking", thinking)
    _put(body, "output_config", _output_config(call, entry, target, (thinking or {}).get("type")))
    speed = entry.get("speed")
    if "speed" not in entry and call.speed == "fast" and target.fields["fast_mode"] is not None:
        speed = "fast"
    _put(body, "speed", speed)
    return replace(call, body=body, model=target)


def _put(body: dict[str, Any], name: str, value: Any) -> None:
    if value is None:
        body.pop(name, None)
    else:
        body[name] = value


def _thinking(call: Call, entry: Mapping[str, Any], target: ModelRecord) -> dict[str, Any] | None:
    if "thinking" in entry:
        return entry["thinking"]  # type: ignore[no-any-return] # null: the model's own default
    asked: dict[str, Any] | None = call.body.get("thinking")
    if asked is None or asked.get("type") in target.thinking_types:
        return asked
    if asked.get("type") == "between_tools" and "disabled" in target.thinking_types:
        return {"type": "disabled"}
    return None


def _output_config(
    call: Call, entry: Mapping[str, Any], target: ModelRecord, thinking: str | None
) -> dict[str, Any] | None:
    if "output_config" in entry and entry["output_config"] is None:
        return None
    asked, own = call.body.get("output_config") or {}, entry.get("output_config") or {}
    merged = {name: value for name, value in {**asked, **own}.items() if value is not None}
    if "effort" not in own and not _takes_effort(target, merged.get("effort"), thinking):
        merged.pop("effort", None)
    if "task_budget" not in own and not target.fields["task_budgets"]:
        merged.pop("task_budget", None)
    return merged or None


def _takes_effort(target: ModelRecord, effort: Any, thinking: str | None) -> bool:
    is_off = thinking in ("disabled", "between_tools")
    return effort in target.effort_levels and not (is_off and effort in ("xhigh", "max"))


def fallback_block(declined: Call, served: Call, category: str | None) -> dict[str, Any]:
    """The block that marks where one model's output gives way to the next."""
    return {
        "type": "fallback",
        "from": {"model": str(declined.body["model"])},
        "to": {"model": served.model.id},
        "trigger": {"type": "refusal", "category": category},
    }


class Sticky:
    """Which conversations were handed on lately, and to which model: they go straight there for about an hour."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def find(self, call: Call, workspace: str, now_s: float) -> str | None:
        """The id of the model that this conversation stays with; None for the one it asks for."""
        model, until_s = self._kept.get(_conversation(call, workspace), ("", 0.0))
        return model if until_s > now_s else None

    def keep(self, call: Call, workspace: str, model_id: str, now_s: float) -> None:
        """The conversation was answered by a fallback model at `now_s`."""
        name = _conversation(call, workspace)
        self._kept[name] = (model_id, now_s + STICKS_S)
        self._kept.move_to_end(name)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)


def _conversation(call: Call, workspace: str) -> str:
    """A conversation is known by its beginning, as it grows at the other end."""
    return digest([workspace, call.model.id, call.body.get("system"), call.body["messages"][0]])
