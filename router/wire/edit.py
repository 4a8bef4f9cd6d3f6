"""Changing single values of a request body in its bytes: every other byte stays as it came.

A change names a top-level key, or a key and a sub-key, and the value to set there or `LEAVE_OUT`. A value that is set
keeps its place; a key that was absent goes behind the last member. A member that is left out takes one comma with it
and the white space between that comma and the member. An object that this empties is left out as a whole. A body in
compact form is written anew from the parsed view, which yields the very same bytes faster; any other is spliced.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from router.wire.messages import MessagesRequest, object_spans

Path = tuple[str, ...]


class _Absence(enum.Enum):
    LEAVE_OUT = "leave out"


LEAVE_OUT: Final = _Absence.LEAVE_OUT
"""In the place of a value: the member is to go."""

_OPENING = re.compile(rb"[ \t\n\r]*\{[ \t\n\r]*")
_COMMA = re.compile(rb"[ \t\n\r]*,[ \t\n\r]*")


def changed_body(body: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy of parsed `body` with one change; `body` itself, and all that the change does not name, is shared.

    Raises ValueError for a path of no or more than two keys, and for a sub-key of something that is not an object.
    """
    changed = dict(body)
    key, *rest = _checked(path)
    if rest:
        inner = _inner(body.get(key), path)
        if value is LEAVE_OUT:
            inner.pop(rest[0], None)
        else:
            inner[rest[0]] = value
        value = inner or LEAVE_OUT
    if value is LEAVE_OUT:
        changed.pop(key, None)
    else:
        changed[key] = value
    return changed


def changed_bytes(request: MessagesRequest, changes: Sequence[tuple[Path, Any]]) -> bytes:
    """The bytes of `request` with all changes made, in order; the very same object when there are none.

    Values are JSON data and are written compactly. Raises ValueError as `changed_body` does.
    """
    if not changes:
        return request.raw
    body: Mapping[str, Any] = request.body
    for path, value in changes:
        body = changed_body(body, path, value)
    if request.is_compact:
        return orjson.dumps(body)
    # A member is written anew as a whole where a change names it so, or where it is not an object before and after.
    named = (path[0] for path, _ in changes if len(path) == 1 or not _is_object(path[0], request.body, body))
    whole = dict.fromkeys(named)
    parts: dict[str, dict[str, Any]] = {}  # key of another member -> its changed sub-keys
    for path, _ in changes:
        if path[0] not in whole:
            key, inner = path
            parts.setdefault(key, {})[inner] = body[key].get(inner, LEAVE_OUT)
    return _spliced(request.raw, {key: body.get(key, LEAVE_OUT) for key in whole}, parts)


def _is_object(key: str, *bodies: Mapping[str, Any]) -> bool:
    return all(isinstance(body.get(key), dict) for body in bodies)


def _checked(path: Path) -> Path:
    if not 0 < len(path) <= 2:
        raise ValueError(f"a path has one key or two, not {len(path)}")
    return path


def _inner(value: object, path: Path) -> dict[str, Any]:
    if value is None:  # null is the absent field
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"`{path[0]}` is not an object, so it has no `{path[1]}`")
    return dict(value)


def _spliced(raw: bytes, values: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The object `raw` with members set or left out, and with members of its members set or left out."""
    opening = _OPENING.match(raw)
    assert opening is not None  # `raw` is an object
    pieces = [raw[: opening.end()]]
    done = opening.end()  # everything before is in `pieces`, or left out
    has_kept = False
    spans = object_spans(raw)
    for key, (start, end) in spans.items():
        if values.get(key) is LEAVE_OUT:
            # Behind a kept member the comma before goes; at the head of the object the comma behind does.
            comma = None if has_kept else _COMMA.match(raw, end)
            done = end if comma is None else comma.end()
            continue
        if key in values:
            pieces += (raw[done:start], orjson.dumps(values[key]))
        elif key in parts:
            pieces += (raw[done:start], _spliced(raw[start:end], parts[key], {}))
        else:
            pieces.append(raw[done:end])
        done, has_kept = end, True
    new = [(key, value) for key, value in values.items() if key not in spans and value is not LEAVE_OUT]
    if new:
        added = b",".join(orjson.dumps(key) + b":" + orjson.dumps(value) for key, value in new)
        pieces.append(b"," + added if has_kept else added)
    return b"".join(pieces) + raw[done:]
