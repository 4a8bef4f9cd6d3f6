"""Request bodies as strict JSON: one object, no duplicate keys, bounded depth, no NaN, no number beyond a double.

RFC 8259 leaves lone surrogates and large numbers to the reader; strict readers refuse them, and so does this one.
"""

from __future__ import annotations

import json
import re
from math import isinf
from typing import Any

from router.simulator.refusal import Refusal

MAX_DEPTH = 300  # the deepest nesting taken, in brackets; far above anything a client sends
MESSAGES_MAX_BYTES = 32 * 1024 * 1024
BATCH_MAX_BYTES = 256 * 1024 * 1024
FILE_MAX_BYTES = 500 * 1024 * 1024
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
# Every escape of a text that is JSON: a pair of surrogates, one that stands alone, any other.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|u[dD](?P<high>[89abAB])..|u[dD](?P<low>[c-fC-F])..|.)", re.DOTALL
)


def to_json(value: Any) -> bytes:
    """Plain data as compact UTF-8 JSON; a lone surrogate becomes `?` instead of an error."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def read_object(raw: bytes) -> dict[str, Any]:
    """Parse a request body; raises `Refusal` (400) when it is not one strict JSON object."""
    try:
        text = raw.decode("utf-8")
        if text.startswith("\ufeff"):
            raise ValueError("byte order mark")
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
        )
        _refuse_halves(text)
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


def _integer(digits: str) -> int:
    if len(digits) > 308:
        _float(digits)
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if isinf(value):
        raise ValueError("number is infinity when parsed as double")
    return value


def _refuse_halves(text: str) -> None:
    """Raise ValueError for an escaped half of a surrogate pair without its other half; `text` is valid JSON."""
    for escape in _ESCAPE.finditer(text) if _HALF.search(text) else ():
        if escape["high"] or escape["low"]:
            reason = "no low surrogate in string" if escape["high"] else "invalid high surrogate in string"
            raise json.JSONDecodeError(reason, text, escape.start())


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
