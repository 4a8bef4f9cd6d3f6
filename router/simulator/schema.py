"""Values that satisfy a JSON schema, filled with words of the text at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from router.simulator.dice import Dice
from router.simulator.words import keywords, sentences

EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w")
URL = re.compile(r"https?://[^\s)>\"']+")
DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}\b|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b")
NUMBER = re.compile(r"-?\d+(?:[.,]\d+)?")
NAME = re.compile(r"\b[A-Z][a-zé]+(?: [A-Z][a-zé]+)+\b")
FORMATS: Mapping[str, str] = {
    "date": "2026-11-22",
    "date-time": "2026-11-22T09:30:00Z",
    "time": "09:30:00Z",
    "duration": "P1D",
    "email": "someone@example.com",
    "hostname": "example.com",
    "uri": "https://example.com/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "6b1f7a52-3c1e-4f0a-9b58-2f1d1f6f7c10",
}
FILE_PATH = re.compile(r"(?<!\S)(?:\.{0,2}/)?[\w.-]+(?:/[\w.-]+)*\.\w{1,5}\b")
# What a real client might run is harmless here, whatever the words of the prompt are.
SAFE_VALUES: Mapping[str, str] = {
    "command": "echo done",
    "cmd": "echo done",
    "pattern": "TODO",
    "code": "print('done')",
}
MAX_DEPTH = 12
MAX_ITEMS, MAX_CHARS = 200, 5_000  # however much a schema asks for


class Filler:
    """Fills schemas for one request: `text` gives the words, `dice` the choices."""

    def __init__(self, text: str, dice: Dice, root: Mapping[str, Any]) -> None:
        self._text = text[:40_000]
        self._words = keywords(text, 24) or ["value"]
        self._dice = dice
        self._root = root

    def value(self, schema: Any, name: str = "value", depth: int = 0) -> Any:
        """A value that satisfies a schema; `name` is the property it is for."""
        if not isinstance(schema, Mapping) or depth > 2 * MAX_DEPTH:
            return self._string({}, name)
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._pick(schema["enum"], name)
        for key in ("anyOf", "oneOf"):
            options = [item for item in schema.get(key) or [] if isinstance(item, Mapping)]
            if options:
                solid = [item for item in options if item.get("type") != "null"] or options
                return self.value(solid[0] if depth < MAX_DEPTH else options[-1], name, depth + 1)
        if schema.get("allOf"):
            merged: dict[str, Any] = {}
            for item in schema["allOf"]:
                resolved = self._resolved(item)
                properties = {**merged.get("properties", {}), **resolved.get("properties", {})}
                required = [*merged.get("required", []), *resolved.get("required", [])]
                merged = {**merged, **resolved, "properties": properties, "required": required}
            return self.value({**merged, **{k: v for k, v in schema.items() if k != "allOf"}}, name, depth + 1)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((item for item in kind if item != "null"), "null")
        if kind is None:
            kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, name, depth)
        if kind == "integer":
            return int(self._number(schema, name, whole=True))
        if kind == "number":
            return self._number(schema, name, whole=False)
        if kind == "boolean":
            return self._dice.below("bool/" + name, 2) == 1
        return None if kind == "null" else self._string(schema, name)

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        for _ in range(MAX_DEPTH):
            reference = schema.get("$ref")
            if not isinstance(reference, str) or not reference.startswith("#"):
                return schema
            node: Any = self._root
            for step in reference.lstrip("#").strip("/").split("/"):
                if step and isinstance(node, Mapping):
                    node = node.get(step.replace("~1", "/").replace("~0", "~"), {})
            schema = node if isinstance(node, Mapping) else {}
        return {}

    def _pick(self, options: list[Any], name: str) -> Any:
        """The option that the text speaks of most, else one by chance."""
        lowered = self._text.lower()
        spoken = [item for item in options if isinstance(item, str) and item and item.lower() in lowered]
        return self._dice.choice("enum/" + name, spoken or list(options))

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = [item for item in schema.get("required") or [] if isinstance(item, str)]
        wanted = list(properties) if depth < 3 else [item for item in properties if item in required]
        if depth >= MAX_DEPTH:
            wanted = [item for item in wanted if item in required]
        wanted += [item for item in required if item not in properties]
        return {item: self.value(properties.get(item, {}), item, depth + 1) for item in wanted}

    def _array(self, schema: Mapping[str, Any], name: str, depth: int) -> list[Any]:
        least = min(int(schema.get("minItems") or 0), MAX_ITEMS)
        most = int(schema.get("maxItems") or max(least, 3))
        count = min(most, max(least, 0 if depth >= MAX_DEPTH else 1 + self._dice.below("items/" + name, 3)))
        items = [self.value(schema.get("items") or {}, f"{name}.{index}", depth + 1) for index in range(count)]
        if schema.get("uniqueItems"):
            items = [item for index, item in enumerate(items) if item not in items[:index]]
        return items

    def _number(self, schema: Mapping[str, Any], name: str, *, whole: bool) -> float:
        seen = [float(item.replace(",", ".")) for item in NUMBER.findall(self._text)[:50] if len(item) < 16]
        low, high = schema.get("minimum"), schema.get("maximum")
        if schema.get("exclusiveMinimum") is not None:
            low = schema["exclusiveMinimum"] + (1 if whole else 0.5)
        if schema.get("exclusiveMaximum") is not None:
            high = schema["exclusiveMaximum"] - (1 if whole else 0.5)
        is_share = any(part in name.lower() for part in ("confidence", "score", "probab"))
        if is_share and not seen and low is None:
            low, high = 0, 1
        value = self._dice.choice("number/" + name, seen) if seen else self._dice.between("number/" + name, 1, 20)
        if is_share and not whole:
            value = round(self._dice.between("share/" + name, 0.6, 0.99), 2)
        value = min(value, high) if high is not None else value
        value = max(value, low) if low is not None else value
        step = schema.get("multipleOf")
        if step:
            value = round(value / step) * step
        return int(value) if whole or float(value).is_integer() else round(value, 4)

    def _string(self, schema: Mapping[str, Any], name: str) -> str:
        text = self._worded(schema, name.rsplit(".", 1)[0].lower(), name)
        most, least = schema.get("maxLength"), min(schema.get("minLength") or 0, MAX_CHARS)
        while len(text) < least:
            text = f"{text} {self._dice.choice(f'{name}/{len(text)}', self._words)}".strip()
        return text[: int(most)] if most is not None else text

    def _worded(self, schema: Mapping[str, Any], key: str, name: str) -> str:
        form = schema.get("format")
        if key in SAFE_VALUES:
            return SAFE_VALUES[key]
        if "path" in key or key in ("file", "filename"):
            found = FILE_PATH.findall(self._text)
            return str(found[0]) if found else "README.md"
        finders = (
            ("email", EMAIL),
            ("url", URL),
            ("uri", URL),
            ("date", DATE),
            ("name", NAME),
            ("person", NAME),
        )
        for word, pattern in finders:
            if word in key or word == form:
                found = pattern.findall(self._text)
                if found and (form != "date" or len(found[0]) == 10):
                    return str(self._dice.choice("find/" + name, found))
        if isinstance(form, str) and form in FORMATS:
            return FORMATS[form]
        if any(part in key for part in ("summary", "description", "reason", "explanation", "answer", "text")):
            found = sentences(self._text)
            if found:
                return str(self._dice.choice("sentence/" + name, found[:6]))[:300]
        return self._dice.choice("word/" + name, self._words)
