"""Who thought what a conversation carries: the signature of each thinking block, hashed, and the model that made it.

A thinking block can be read by few models, and its bytes do not say who made it. So the router keeps the hash of every
signature that it passes on, with the model that answered; when a client sends the block back, its producer is known
whatever has happened to the conversation in between. A block that is not known keeps the request on the model it
asked for. Source: Anthropic fact sheet, section 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from router.facts.identity import hashed

MAX_BLOCKS = 256  # thinking blocks of one request that are looked up; of more, the producers count as unknown


def thinking_keys(tenant: str, body: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The keys of all thinking blocks that a request replays; None when they cannot all be told.

    `body` is a Messages request as read. Keys are 32 hex digits; the tenant is part of each.
    """
    keys: dict[str, None] = {}
    for turn in body["messages"]:
        content = turn.get("content")
        if not isinstance(content, list):
            continue
        for signature in _signatures(content):
            if not signature or len(keys) >= MAX_BLOCKS:
                return None
            keys[thinker_key(tenant, signature)] = None
    return tuple(keys)


def thinker_key(tenant: str, signature: str) -> str:
    """The key under which the producer of a thinking block is kept."""
    return hashed([tenant, signature])


def answered_signatures(content: object) -> tuple[str, ...]:
    """The signatures in an answer's content, whole or a single block of a stream in a list."""
    found = _signatures(content) if isinstance(content, list) else ()
    return tuple(signature for signature in found if signature)[:MAX_BLOCKS]


def _signatures(content: Sequence[Any]) -> Iterator[str]:
    """Signature of each thinking block (for a redacted one its data); an empty text where there is none."""
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "thinking" or kind == "redacted_thinking":
            value = block.get("signature" if kind == "thinking" else "data")
            yield value if isinstance(value, str) else ""
