"""Short ways to say a request and to judge it, without HTTP."""

from __future__ import annotations

from typing import Any

from router.simulator.message import Outcome
from router.simulator.refusal import Refusal
from router.simulator.service import Caller, Simulator

OLD, NEW = "2023-06-01", "2026-10-21"
MODELS = (
    *("claude-fable-5-2", "claude-mythos-5-2", "claude-fable-5-1", "claude-mythos-5-1", "claude-fable-5"),
    *("claude-mythos-5", "claude-opus-5-5", "claude-opus-5", "claude-opus-4-8", "claude-opus-4-7"),
    *("claude-sonnet-5-5", "claude-sonnet-5", "claude-haiku-5-5", "claude-opus-4-6", "claude-sonnet-4-6"),
    *("claude-opus-4-5", "claude-sonnet-4-5", "claude-haiku-4-5"),
)
USER = {"role": "user", "content": "How are you?"}
TOOL = {"name": "look_up", "input_schema": {"type": "object", "properties": {"key": {"type": "string"}}}}


def ask(model: str, **fields: Any) -> dict[str, Any]:
    """A request body with the required fields filled in."""
    return {"model": model, "max_tokens": 4096, "messages": [USER], **fields}


def caller(*betas: str, version: str = OLD, organization: str = "org", keeps_data: bool = True) -> Caller:
    """Whoever sends a request."""
    return Caller(organization, "workspace", version, frozenset(betas), keeps_data)


def verdict(simulator: Simulator, body: dict[str, Any], *betas: str, version: str = OLD, **how: Any) -> str:
    """`ok`, or the message of the refusal."""
    try:
        simulator.run(body, caller(*betas, version=version), **how)
    except Refusal as refusal:
        return refusal.message
    return "ok"


def said(outcome: Outcome) -> str:
    """The text of an answer."""
    return "".join(block["text"] for block in outcome.answer.content if block["type"] == "text")
