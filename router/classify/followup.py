"""Short follow-ups: "yes", "do it", "B". They ask for nothing themselves; what they ask for was said before them.

Judged alone such a turn says nothing, and the hard work that it sets going could be sent to the small model. So where
the last user turn is a few words and its own judgement is open, the conversation is judged as it stood at the last
turn that says enough. A short turn that does say something ("thanks", "shorter, please", "now prove it") is judged by
itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHORT_CHARS = 40  # a user turn below this may lean on what was said before it
MAX_MESSAGES_BACK = 40  # how far back a turn that says enough is looked for
# Between these the judgement of a short turn is open.
SURELY_EASY, SURELY_HARD = 0.25, 0.85


def is_decided(p_hard: float) -> bool:
    """Whether a turn's own judgement is clear enough to need no look back."""
    return p_hard < SURELY_EASY or p_hard > SURELY_HARD


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
