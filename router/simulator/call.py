"""One request on its way to one model, with its defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from router.simulator.record import ModelRecord


@dataclass(frozen=True, slots=True)
class Call:
    """A request on its way to a model: the body, the headers that change its meaning, and where it came from."""

    body: Mapping[str, Any]
    model: ModelRecord
    version: str
    betas: frozenset[str]
    today: date
    is_batch: bool = False
    is_count: bool = False

    @property
    def thinking_type(self) -> str:
        """What the model does: `adaptive`, `enabled`, `disabled` or `between_tools`, defaults filled in."""
        asked = (self.body.get("thinking") or {}).get("type")
        if asked is not None:
            return str(asked)
        return "adaptive" if self.model.thinks_by_default else "disabled"

    @property
    def is_thinking(self) -> bool:
        """Whether thinking is on, asked for or by default."""
        return self.thinking_type in ("adaptive", "enabled")

    @property
    def effort(self) -> str | None:
        """The effort in force at the top level; None for a model without the parameter."""
        return (self.body.get("output_config") or {}).get("effort") or self.model.default_effort

    @property
    def speed(self) -> str:
        """The speed in force: `fast` only where the model offers it."""
        is_fast = self.body.get("speed") == "fast" and self.model.fields["fast_mode"] is not None
        return "fast" if is_fast else "standard"

    @property
    def geo(self) -> str:
        """Where the request is worked on: `global` or `us`."""
        return str(self.body.get("inference_geo") or "global")

    @property
    def forces_tool(self) -> bool:
        """Whether `tool_choice` is `any` or `tool`."""
        return (self.body.get("tool_choice") or {}).get("type") in ("any", "tool")
