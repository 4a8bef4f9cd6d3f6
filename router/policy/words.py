"""Small words of the language: names, durations, sizes; and how messages speak of what they saw."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from router.policy.grammar import NAME_PATTERN
from router.policy.source import Node, resolve

_MOST_NEAR_CHARS = 200


def near(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """The hint for a name that is not one of `names`: the nearest of them, or what else helps."""
    # A name far longer than any of ours is near none of them, and comparing it would take long.
    close = get_close_matches(name, list(names), n=1, cutoff=0.6) if len(name) <= _MOST_NEAR_CHARS else []
    question = f"did you mean `{close[0]}`?" if close else ""
    return f"{question} {otherwise}".strip()


_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)\Z")
_DURATION_S = (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86400.0))
_SIZE = re.compile(r"([0-9]{1,12})(B|kB|KB|MB|GB|KiB|MiB)\Z")
_SIZE_BYTES = (("B", 1), ("kB", 1000), ("KB", 1000), ("MB", 10**6), ("GB", 10**9), ("KiB", 1024), ("MiB", 1024**2))
_NAME = re.compile(NAME_PATTERN + r"\Z")


def is_name(text: str) -> bool:
    """Whether lanes, rules and policies may be called so: lower case letters, digits, `-`, `_`, `.`; at most 64."""
    return _NAME.match(text) is not None


def duration_s(text: object) -> float | None:
    """Seconds of `500ms`, `30s`, `5m`, `1h`, `7d`; None when it is not one of these or no time at all."""
    match = _DURATION.match(text) if isinstance(text, str) else None
    return (float(match[1]) * dict(_DURATION_S)[match[2]] or None) if match else None


def size_bytes(value: object) -> int | None:
    """Bytes of `64kB`, `1MB`, `1MiB` or a plain number; None when it is none of these or zero."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if value > 0 else None
    match = _SIZE.match(value) if isinstance(value, str) else None
    return (int(match[1]) * dict(_SIZE_BYTES)[match[2]] or None) if match else None


def seen(node: Node) -> str:
    """What stands there, in words that fit after `this is`."""
    words = {"list": "a list", "map": "a mapping", "null": "nothing"}
    is_quoted_number = node.kind == "text" and resolve(node.value)[0] in ("integer", "number", "flag")
    return words.get(node.kind) or (f'`"{shown(node)}"`, a text' if is_quoted_number else f"`{shown(node)}`")


def shown(node: Node) -> str:
    """The value of a node as a message shows it: bounded, flags as written; a list or mapping by that word."""
    if node.kind in ("list", "map"):
        return f"a {'list' if node.kind == 'list' else 'mapping'}"
    value = str(node.value).lower() if node.kind == "flag" else str(node.value)
    return value if len(value) <= 60 else f"{value[:60]}…"
