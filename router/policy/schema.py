"""The JSON Schema of policy files and of `lanes.yaml`, made from the tables the parser reads.

Editors complete and explain keys with it. It says what can be said of one file alone; names across files, reach and
tests are `router policy check`'s business. Source: JSON Schema, draft 2020-12.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router.facts.vocabulary import FACTS, FactSpec
from router.policy.conditions import value_range
from router.policy.grammar import (
    AS_ASKED,
    CACHE_KEYS,
    DEFERRED_KEYS,
    DEFERRING,
    ECONOMIC_KEYS,
    EXPECT_KEYS,
    LANE_KEYS,
    LANES_FILE_KEYS,
    MAX_DEFERRED_ITEMS,
    MAX_RETRIES,
    MAX_RULES,
    MAX_TESTS,
    MAX_TURNS,
    MAX_WEIGHT,
    NAME_PATTERN,
    NEVER_ABSENT,
    ON_TIMEOUT,
    OPERATORS,
    POLICY_KEYS,
    RETRY_KEYS,
    RULE_KEYS,
    SCOPE,
    STICK,
    STICK_KEYS,
    SWAP,
    SWAP_KEYS,
    TEMPERATURE,
    TEST_KEYS,
    TIMEOUT_KEYS,
    VERSION,
    KeySpec,
    OperatorSpec,
)
from router.swap.edits import EDITS

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NAME: Schema = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
_TEXT: Schema = {"type": "string", "minLength": 1}
_LANE: Schema = {**_NAME, "description": f"A lane of `lanes.yaml`, or `{AS_ASKED}`."}
_EDIT: Schema = {"anyOf": [{"const": name, "description": f"May {does}."} for name, does in EDITS.items()]}
_ROUTE: Schema = {"anyOf": [_LANE, {"type": "array", "items": _LANE, "minItems": 1}]}


def policy_schema() -> Schema:
    """The schema of one policy file."""
    return {
        "$schema": _DIALECT,
        "title": "A routing policy",
        **_mapping(POLICY_KEYS),
        "$defs": {"condition": _condition(), "given": _given()},
    }


def lanes_schema() -> Schema:
    """The schema of `lanes.yaml`."""
    return {"$schema": _DIALECT, "title": "The lanes that policies name", **_mapping(LANES_FILE_KEYS)}


def _mapping(table: Sequence[KeySpec]) -> Schema:
    required = [spec.name for spec in table if spec.is_required]
    return {
        "type": "object",
        "properties": {spec.name: {**_shape(spec), "description": spec.meaning} for spec in table},
        "additionalProperties": False,
        **({"required": required} if required else {}),
    }


def _shape(spec: KeySpec) -> Schema:
    shapes: dict[str, Schema] = {
        "version": {"const": VERSION},
        "name": _NAME,
        "text": _TEXT,
        "texts": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]},
        "lane": _LANE,
        "model": _TEXT,
        "route": _ROUTE,
        "weights": {
            "type": "object",
            "additionalProperties": {"type": "integer", "minimum": 1, "maximum": MAX_WEIGHT},
            "minProperties": 1,
        },
        "condition": {"$ref": "#/$defs/condition"},
        "given": {"$ref": "#/$defs/given"},
        "duration": {"type": "string", "pattern": "^[0-9]{1,9}(\\.[0-9]{1,3})?(ms|s|m|h|d)$"},
        "size": {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": "^[0-9]{1,12}(B|kB|KB|MB|GB|KiB|MiB)$"},
            ]
        },
        "count": {"type": "integer", "minimum": 0, "maximum": MAX_RETRIES},
        "turns": {"type": "integer", "minimum": 1, "maximum": MAX_TURNS},
        "edits": {"anyOf": [_EDIT, {"type": "array", "items": _EDIT, "minItems": 1}]},
        "flag": {"type": "boolean"},
        "temperature": _fact(TEMPERATURE),
        "scope": {"enum": list(SCOPE)},
        "on_timeout": {"enum": list(ON_TIMEOUT)},
        "deferring": {"enum": list(DEFERRING)},
        "items": {"type": "integer", "minimum": 1, "maximum": MAX_DEFERRED_ITEMS},
        "request": {"type": "object", "required": ["model", "messages"]},
    }
    tables: dict[str, Sequence[KeySpec]] = {"cache": CACHE_KEYS, "expect": EXPECT_KEYS, "economic": ECONOMIC_KEYS}
    lists: dict[str, tuple[Sequence[KeySpec], int]] = {"rules": (RULE_KEYS, MAX_RULES), "tests": (TEST_KEYS, MAX_TESTS)}
    words_or_table = {"swap": (SWAP, SWAP_KEYS), "stick": (STICK, STICK_KEYS)}
    value_or_table = {
        "retry": ("count", RETRY_KEYS),
        "timeout": ("duration", TIMEOUT_KEYS),
        "deferred": ("deferring", DEFERRED_KEYS),
    }
    if spec.shape in value_or_table:
        value, keys = value_or_table[spec.shape]
        return {"anyOf": [shapes[value], {**_mapping(keys), "minProperties": 1}]}
    if spec.shape in words_or_table:
        words, written_out = words_or_table[spec.shape]
        return {"anyOf": [{"enum": list(words)}, _mapping(written_out)]}
    if spec.shape in tables:
        return _mapping(tables[spec.shape])
    if spec.shape in lists:
        table, limit = lists[spec.shape]
        return {"type": "array", "items": _mapping(table), "maxItems": limit}
    if spec.shape == "lanes":
        return {"type": "object", "additionalProperties": _mapping(LANE_KEYS), "minProperties": 1}
    return shapes[spec.shape]


def _condition() -> Schema:
    inner = {"$ref": "#/$defs/condition"}
    parts = {"type": "array", "items": inner, "minItems": 1}
    return {
        "type": "object",
        "properties": {
            "any": {**parts, "description": "At least one of these holds."},
            "all": {**parts, "description": "All of these hold."},
            "not": {**inner, "description": "This does not hold."},
            **{spec.name: _fact(spec) for spec in FACTS.values()},
        },
        "patternProperties": {"^header\\.[^A-Z]+$": _fact(FactSpec("header.NAME", "text", "A request header."))},
        "additionalProperties": False,
    }


def _fact(spec: FactSpec) -> Schema:
    operators = {o.name: _operator(spec, o) for o in OPERATORS if spec.kind in o.kinds}
    if spec.name in NEVER_ABSENT:
        operators.pop("exists", None)
    compared: Schema = {
        "type": "object",
        "properties": operators,
        "additionalProperties": False,
        "minProperties": 1,
    }
    meaning = spec.meaning[0].upper() + spec.meaning[1:]
    return {"description": meaning, **(compared if spec.kind == "list" else {"anyOf": [_value(spec), compared]})}


def _operator(spec: FactSpec, operator: OperatorSpec) -> Schema:
    operand: Schema = {
        "value": _value(spec),
        "values": {"type": "array", "items": _value(spec), "minItems": 1},
        "number": _value(spec),
        "flag": {"type": "boolean"},
        "text": _TEXT,
    }[operator.operand]
    return {**operand, "description": operator.meaning[0].upper() + operator.meaning[1:]}


def _value(spec: FactSpec) -> Schema:
    if spec.values:
        return {"enum": list(spec.values)}
    low, high = value_range(spec)
    bounds = {name: value for name, value in (("minimum", low), ("maximum", high)) if value is not None}
    return {"type": {"flag": "boolean", "list": "string", "text": "string"}.get(spec.kind, spec.kind), **bounds}


def _given() -> Schema:
    values = {
        spec.name: {"anyOf": [_value(spec), {"type": "array", "items": _value(spec)}]}
        if spec.kind == "list"
        else _value(spec)
        for spec in FACTS.values()
    }
    return {
        "type": "object",
        "properties": values,
        "patternProperties": {"^header\\.[^A-Z]+$": {"type": "string"}},
        "additionalProperties": False,
    }
