"""Request body → `MessagesRequest`: strict JSON, with the raw bytes kept and the place of the model known.

Fidelity rests on one idea: the body is parsed to be *looked at*, never to be written again. The only bytes that ever
change are those of the `model` value, and they are spliced.

Strict means: what the upstream could read in another way than we do is refused. The parser takes RFC 8259 and nothing
more (no NaN, no BOM, no comments, no second document, no bad UTF-8, no lone surrogate). No JSON parser at C speed
refuses duplicate keys, so they are found by comparison: written out compactly again, the parsed body must give the
very bytes that came in, which it cannot if a key was lost. Bodies with spaces or escapes differ in bytes without
saying anything else; they take the slower reading, which looks at every key. Both readings refuse a duplicate at any
depth.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from router.errors import InvalidRequest
from router.value import value_class

MAX_DEPTH = 254  # levels; the writer of the comparison goes no deeper, and no real schema comes near
MAX_MODEL_CHARS = 256

_WHITESPACE = b" \t\n\r"
# Possessive: no way back is kept for each escape, so time and memory are linear whatever the string holds.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_FLAT = rb'(?:[^"{}\[\]]++|' + _STRING.pattern + rb")*+"
# Up to the next bracket that matters: arrays and objects with none inside are passed over at C speed.
UP_TO_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|%b|\{%b\}|\[%b\])*+' % (_STRING.pattern, _FLAT, _FLAT), re.DOTALL)
BRACKET = re.compile(UP_TO_BRACKET.pattern + rb"([{}\[\]])", re.DOTALL)  # and that bracket
_SCALAR_END = re.compile(rb"[,}\]\s]")


@value_class(frozen=True, slots=True)
class MessagesRequest:
    """A body that the Messages API could take: the bytes as received beside a parsed view.

    `body` is plain JSON data and must not be changed. `model_span` are the byte offsets of the `model` value in `raw`,
    quotes included. `is_compact` says that `body` written out compactly is `raw`, byte for byte.
    """

    raw: bytes
    body: dict[str, Any]
    model: str
    model_span: tuple[int, int]
    is_streaming: bool
    is_compact: bool

    def with_model(self, model: str) -> bytes:
        """The same bytes with another model; the very same object when the model does not change."""
        if model == self.model:
            return self.raw
        start, end = self.model_span
        return b"".join((self.raw[:start], orjson.dumps(model), self.raw[end:]))


def read_request(raw: bytes, *, needs_max_tokens: bool = True) -> MessagesRequest:
    """Read the body of a Messages (or, without `needs_max_tokens`, a count_tokens) request.

    Only what the router itself reads is checked; everything else is the upstream's business and passes.
    Raises InvalidRequest, worded as the Messages API words it where its wording is known.
    """
    body, is_compact = read_json(raw)
    return request_of(raw, body, is_compact, needs_max_tokens=needs_max_tokens)


def request_of(raw: bytes, body: object, is_compact: bool, *, needs_max_tokens: bool = True) -> MessagesRequest:
    """The request that `raw` is, where `read_json` has read it already. Raises InvalidRequest as `read_request`."""
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    model = body.get("model")
    if not isinstance(model, str):
        raise InvalidRequest("model: Field required" if model is None else "model: Input should be a valid string")
    if not 0 < len(model) <= MAX_MODEL_CHARS:
        raise InvalidRequest(f"model: String should have between 1 and {MAX_MODEL_CHARS} characters")
    _check_messages(body.get("messages"))
    _check_max_tokens(body, needs_max_tokens)
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):  # null is the absent field
        raise InvalidRequest("stream: Input should be a valid boolean")
    span = _compact_model_span(raw, body) if is_compact else object_spans(raw)["model"]
    return MessagesRequest(raw, body, model, span, stream is True, is_compact)


def read_json(raw: bytes) -> tuple[Any, bool]:
    """Parse strict JSON without duplicate keys → (value, whether `raw` is its compact form). Raises InvalidRequest."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f"the request body is not valid JSON: {exc}") from exc
    try:
        if orjson.dumps(value) == raw:
            return value, True
    except orjson.JSONEncodeError as exc:
        raise InvalidRequest(f"the request body is nested deeper than {MAX_DEPTH} levels") from exc
    try:
        json.loads(raw.decode(), object_pairs_hook=_refuse_duplicates, parse_int=len, parse_float=len)
    except RecursionError as exc:
        raise InvalidRequest(f"the request body is nested deeper than {MAX_DEPTH} levels") from exc
    return value, False


def object_spans(raw: bytes) -> dict[str, tuple[int, int]]:
    """The byte offsets of each value of the object that `raw` (valid JSON) is."""
    spans: dict[str, tuple[int, int]] = {}
    at = _skip(raw, _skip(raw, 0) + 1)
    while raw[at : at + 1] == b'"':
        key_end = _string_end(raw, at)
        start = _skip(raw, _skip(raw, key_end) + 1)
        end = value_end(raw, start)
        spans[orjson.loads(raw[at:key_end])] = (start, end)
        at = _skip(raw, _skip(raw, end) + 1)
    return spans


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list):
        raise InvalidRequest(
            "messages: Field required" if messages is None else "messages: Input should be a valid list"
        )
    if not messages:
        raise InvalidRequest("messages: at least one message is required")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequest(f"messages.{index}: Input should be an object")
        if not isinstance(message.get("role"), str):
            raise InvalidRequest(f"messages.{index}.role: Field required")


def _check_max_tokens(body: dict[str, Any], is_needed: bool) -> None:
    if "max_tokens" not in body:
        if is_needed:
            raise InvalidRequest("max_tokens: Field required")
        return
    max_tokens = body["max_tokens"]
    if type(max_tokens) is not int:
        raise InvalidRequest("max_tokens: Input should be a valid integer")
    if max_tokens < 0:
        raise InvalidRequest("max_tokens: Input should be greater than or equal to 0")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise InvalidRequest(f"the request body has the key `{key[:64]}` twice in one object")
        seen.add(key)


def _compact_model_span(raw: bytes, body: dict[str, Any]) -> tuple[int, int]:
    """Where the model stands in a body whose compact form is `raw` itself."""
    if raw.count(b'"model":') == 1:  # a quote inside a string is escaped, so this is the key
        start = raw.index(b'"model":') + len(b'"model":')
    else:
        before: dict[str, Any] = {}
        for name, value in body.items():
            if name == "model":
                break
            before[name] = value
        start = (len(orjson.dumps(before)) if before else 1) + len(b'"model":')
    return start, _string_end(raw, start)


def _skip(raw: bytes, at: int) -> int:
    while at < len(raw) and raw[at] in _WHITESPACE:
        at += 1
    return at


def _string_end(raw: bytes, at: int) -> int:
    """The offset behind the string literal that opens at `at`."""
    found = _STRING.match(raw, at)
    assert found is not None  # in valid JSON every string has an end
    return found.end()


def value_end(raw: bytes, at: int) -> int:
    """The offset behind the JSON value that begins at `at`."""
    if raw[at] == 0x22:
        return _string_end(raw, at)
    if raw[at] not in b"{[":
        found = _SCALAR_END.search(raw, at)
        return found.start() if found else len(raw)
    depth, at = 1, at + 1  # inside the value itself: as a whole it might be one of those passed over
    while depth:
        found = BRACKET.match(raw, at)
        if found is None:  # cannot be in valid JSON
            return len(raw)
        at = found.end()
        depth += 1 if raw[at - 1] in b"{[" else -1
    return at
