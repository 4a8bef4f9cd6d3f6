"""Which conversation a request belongs to: hashes of what stays the same while it goes on, never text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from router.facts.language import joined_text

_KEY_CHARS = 16_384  # how much of each end of a text enters a hash
SESSION_HEADER = "x-claude-code-session-id"
_AGENT_HEADER = "x-claude-code-agent-id"


def conversation_key(
    tenant: str, headers: Mapping[str, str], tool_names: Sequence[str], body: Mapping[str, Any]
) -> str:
    """32 hex digits: the client's session (and its sub-agent, a conversation of its own) where it sends one, else
    system prompt, tool names and first user turn; always within one tenant."""
    session = headers.get(SESSION_HEADER)
    if session:
        return hashed([tenant, "session", session, headers.get(_AGENT_HEADER, "")])
    system = joined_text(body.get("system"), _KEY_CHARS)
    return hashed([tenant, "text", system, *tool_names, "first", _first_turn(body)])


def session_key(tenant: str, session: str) -> str:
    """32 hex digits of the session that a client names, all its sub-agents included; within one tenant."""
    return hashed([tenant, "whole session", session])


def first_turn_key(body: Mapping[str, Any]) -> str:
    """32 hex digits of the first user turn: it tells the conversations of one session apart."""
    return hashed([_first_turn(body)])


def hashed(parts: Sequence[str]) -> str:
    """32 hex digits of a list of texts; no two lists run into the same bytes."""
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    lengths = ",".join([str(len(data)) for data in encoded])
    return blake2b(b"".join([lengths.encode(), b";", *encoded]), digest_size=16).hexdigest()


def _first_turn(body: Mapping[str, Any]) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return ""
    first: Mapping[str, Any] = next((m for m in messages if m.get("role") == "user"), {})
    return joined_text(first.get("content"), _KEY_CHARS)
