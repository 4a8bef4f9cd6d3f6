"""Request bodies as strict JSON (RFC 8259): one object, no duplicate keys, no NaN, bounded depth."""

from __future__ import annotations

import json
from typing import Any

from router.simulator.refusal import Refusal

MAX_DEPTH = 300  # the deepest nesting taken, in brackets; far above anything a client sends
MESSAGES_MAX_BYTES = 32 * 1024 * 1024
BATCH_MAX_BYTES = 256 * 1024 * 1024
FILE_MAX_BYTES = 500 * 1024 * 1024


def to_json(value: Any) -> bytes:
    """Plain data as compact UTF-8 JSON; a lone surrogate becomes `?` instead of an error."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def read_object(raw: bytes) -> dict[str, Any]:
    """Parse a request body; raises `Refusal` (400) when it is not one strict JSON object."""
    try:
        text = raw.decode("utf-8")
        if text.startswith("\ufeff"):
            raise ValueError("byte order mark")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer)
    except (ValueError, RecursionError) as exc:
        raise Refusal(f"The request body is not valid JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise Refusal("Input should be a valid dictionary")
    if _depth(value) > MAX_DEPTH:
        raise Refusal("The request body is not valid JSON: nested too deeply")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate key {json.dumps(twice)}")
    return found


def _integer(digits: str) -> int | float:
    # Python refuses to read integers of more than 4,300 digits; JSON does not.
    return int(digits) if len(digits) < 400 else float(digits)


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _depth(value: Any) -> int:
    """How deeply lists and objects nest, without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            break
        below: list[Any] = []
        for item in level:
            children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
            below.extend(child for child in children if isinstance(child, (dict, list)))
        level = below
    return depth
