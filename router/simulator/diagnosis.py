"""Why the prompt cache missed: the request of an earlier message held against this one.

Source: cache diagnostics types of the official SDK: model (or speed), then tools, then system, then messages.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.simulator.call import Call
from router.simulator.promptcache import CachePlan
from router.simulator.refusal import Refusal, extra_input
from router.simulator.thinking import digest, without_markers

KEPT = 2_000


@dataclass(frozen=True, slots=True)
class _Seen:
    """What an earlier request looked like, layer by layer, and how many of its tokens were in the cache."""

    model: str
    tools: str
    system: str
    messages: tuple[str, ...]
    cached_tokens: int


class Diagnoses:
    """The last requests that asked for a diagnosis, by workspace and message id."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, str], _Seen] = OrderedDict()

    def diagnose(self, call: Call, plan: CachePlan, workspace: str, message_id: str) -> dict[str, Any] | None:
        """The `diagnostics` of an answer: None when none was asked for, or nothing diverged."""
        asked = call.body.get("diagnostics")
        if asked is None:
            return None
        if not isinstance(asked, dict):
            raise Refusal("diagnostics: Input should be a valid dictionary")
        for name in asked:
            if name != "previous_message_id":
                raise extra_input(f"diagnostics.{name}")
        previous_id = asked.get("previous_message_id")
        now = _look(call, plan)
        before = self._seen.get((workspace, str(previous_id)))
        self._seen[workspace, message_id] = now
        while len(self._seen) > KEPT:
            self._seen.popitem(last=False)
        if previous_id is None:
            return None
        if before is None:
            return {"cache_miss_reason": {"type": "previous_message_not_found"}}
        reason = _difference(before, now)
        if reason is None:
            return None
        missed = max(0, before.cached_tokens - plan.read)
        return {"cache_miss_reason": {"type": reason, "cache_missed_input_tokens": missed}}


def _look(call: Call, plan: CachePlan) -> _Seen:
    body: Mapping[str, Any] = without_markers(dict(call.body))
    return _Seen(
        f"{call.model.id} {call.speed}",
        digest(body.get("tools")),
        digest(body.get("system")),
        tuple(digest(message) for message in body["messages"]),
        plan.read + plan.write_5m + plan.write_1h,
    )


def _difference(before: _Seen, now: _Seen) -> str | None:
    if before.model != now.model:
        return "model_changed"
    if before.tools != now.tools:
        return "tools_changed"
    if before.system != now.system:
        return "system_changed"
    return None if now.messages[: len(before.messages)] == before.messages else "messages_changed"
