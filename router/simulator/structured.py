"""Structured outputs: what `output_config.format` and `strict` tools may ask for.

Source: documentation of structured outputs (limits per request, `additionalProperties`, no citations).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from router.simulator.refusal import Refusal, extra_input, missing

MAX_STRICT_TOOLS = 20
MAX_OPTIONAL_FIELDS = 24
MAX_UNION_FIELDS = 16
SCHEMA_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
SCHEMA_MAPS = ("properties", "$defs", "definitions")
SCHEMA_LISTS = ("anyOf", "allOf", "oneOf")
SCHEMA_TEXTS = ("$ref", "format", "pattern", "description", "title")
SCHEMA_NUMBERS = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
    | {"minLength", "maxLength", "minItems", "maxItems"}
)


def output_schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The JSON schema that the answer has to satisfy, or None."""
    form = (body.get("output_config") or {}).get("format") or body.get("output_format")
    return form["schema"] if form else None


def check_structured(body: Mapping[str, Any], *, is_supported: bool) -> None:
    """Raise `Refusal` for a format or a strict tool that cannot be compiled, or that this model does not offer."""
    config = body.get("output_config") or {}
    path = "output_config.format" if config.get("format") is not None else "output_format"
    form = config.get("format") if config.get("format") is not None else body.get("output_format")
    schemas: list[tuple[str, Any]] = []
    if form is not None:
        if not isinstance(form, dict):
            raise Refusal(f"{path}: Input should be a valid dictionary")
        if form.get("type") != "json_schema":
            raise Refusal(f"{path}.type: Input should be 'json_schema'")
        if "schema" not in form:
            raise missing(f"{path}.schema")
        for name in form:
            if name not in ("type", "schema"):
                raise extra_input(f"{path}.{name}")
        if _has_citations(body):
            raise Refusal(f"{path}: citations cannot be combined with structured outputs")
        schemas.append((f"{path}.schema", form["schema"]))
    strict = [(index, tool) for index, tool in enumerate(body.get("tools") or []) if tool.get("strict")]
    if len(strict) > MAX_STRICT_TOOLS:
        raise Refusal(f"tools: at most {MAX_STRICT_TOOLS} strict tools are allowed. Found {len(strict)}.")
    schemas += [(f"tools.{index}.custom.input_schema", tool.get("input_schema")) for index, tool in strict]
    if schemas and not is_supported:
        raise Refusal(f"{path if form is not None else 'tools'}: structured outputs are not supported on this model")
    optional = unions = 0
    for where, schema in schemas:
        if schema is None:
            continue
        if not isinstance(schema, dict):
            raise Refusal(f"{where}: Input should be a valid dictionary")
        check_schema(schema, where)
        for node in _nodes(schema):
            if node.get("type") == "object" and node.get("additionalProperties") is not False:
                raise Refusal(f"{where}: For 'object' type, 'additionalProperties' must be explicitly set to false")
            required = node.get("required")
            named = node.get("properties")
            optional += len(set(named or {}) - set(required or [])) if isinstance(named, dict) else 0
            unions += isinstance(node.get("type"), list) or "anyOf" in node
    if optional > MAX_OPTIONAL_FIELDS:
        raise Refusal(f"Schemas contain too many optional parameters ({optional}, limit {MAX_OPTIONAL_FIELDS}).")
    if unions > MAX_UNION_FIELDS:
        raise Refusal(f"Schemas contain too many parameters with union types ({unions}, limit {MAX_UNION_FIELDS}).")


def check_schema(schema: Any, path: str) -> None:
    """Refuse a JSON schema whose own keywords have the wrong types."""
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict) or not all(_is_keyword(name, value) for name, value in node.items()):
            raise Refusal(f"{path}: JSON schema is invalid. It must match JSON Schema draft 2020-12")
        for name in SCHEMA_MAPS:
            waiting.extend((node.get(name) or {}).values())
        for name in SCHEMA_LISTS:
            waiting.extend(node.get(name) or [])
        if node.get("items") is not None:
            waiting.append(node["items"])


def _is_keyword(name: str, value: Any) -> bool:
    if name == "type":
        names = value if isinstance(value, list) else [value]
        return bool(names) and all(isinstance(item, str) and item in SCHEMA_TYPES for item in names)
    if name in SCHEMA_MAPS:
        return isinstance(value, dict)
    if name in SCHEMA_LISTS:
        return isinstance(value, list) and bool(value)
    if name == "enum":
        return isinstance(value, list) and bool(value)
    if name == "required":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if name in SCHEMA_NUMBERS:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in SCHEMA_TEXTS:
        return isinstance(value, str)
    return True


def _nodes(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every schema inside a schema, itself first."""
    waiting: list[Any] = [schema]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict):
            continue
        yield node
        for name in ("properties", "$defs", "definitions"):
            below = node.get(name)
            waiting.extend(below.values() if isinstance(below, dict) else ())
        for name in ("anyOf", "allOf", "oneOf"):
            below = node.get(name)
            waiting.extend(below if isinstance(below, list) else ())
        waiting.append(node.get("items"))


def _has_citations(body: Mapping[str, Any]) -> bool:
    for message in body["messages"]:
        content = message.get("content")
        for block in content if isinstance(content, list) else []:
            cited = block.get("citations")
            if block["type"] in ("document", "search_result") and isinstance(cited, dict) and cited.get("enabled"):
                return True
    return False
