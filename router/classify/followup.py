"""Short follow-ups: "yes", "do it", "B". They ask for nothing themselves; what they ask for was said before them.

Judged alone such a turn looks like small talk, and the hard work that it sets going would be sent to the small model.
So a conversation whose last user turn is a few words is also judged as it stood at the last turn that says enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHORT_CHARS = 40  # a user turn below this leans on what was said before it
MAX_MESSAGES_BACK = 40  # how far back a turn that says enough is looked for


def standing_request(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The body as it stood at the last user turn that says enough, or None when the last one does, or none is found."""
    messages = body.get("messages")
    if not isinstance(messages, list) or len(messages) < 3:
        return None
    has_short = False
    for at in range(len(messages) - 1, max(-1, len(messages) - 1 - MAX_MESSAGES_BACK), -1):
        message = messages[at]
        if not isinstance(message, dict) or message.get("role") != "user":
            continue
        length = _text_chars(message.get("content"))
        if length >= SHORT_CHARS:
            return {**body, "messages": messages[: at + 1]} if has_short else None
        has_short = has_short or length > 0  # tool results alone are no turn of the user's
    return None


def _text_chars(content: Any) -> int:
    """Characters of text in a turn, blanks at its ends aside."""
    if isinstance(content, str):
        return len(content.strip()) if len(content) < 2 * SHORT_CHARS else len(content)
    if not isinstance(content, list):
        return 0
    return sum(
        len(block["text"].strip())
        for block in content[:SHORT_CHARS]
        if isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)
    )
