"""The edits that `swap: adapt` may make, declared once: the policy language, the docs and the check read this."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

EDITS: Mapping[str, str] = MappingProxyType(
    {
        "max_tokens": "lower `max_tokens` to the most that the model writes",
        "effort": "lower `output_config.effort` to a level that the model takes, or leave it out where it takes none",
        "thinking": "say the thinking setting in the model's own terms, with the same intent",
        "sampling": "leave out `temperature`, `top_p` and `top_k`",
        "speed": "leave out `speed`",
        "service_tier": "leave out `service_tier`",
        "task_budget": "leave out `output_config.task_budget`",
    }
)
"""Name → what it does. No edit touches `system`, `tools` or `messages`: thinking blocks are bound to them."""
