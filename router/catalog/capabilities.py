"""What the API's own list of models says, laid over the catalogue.

`GET /v1/models` states limits, lifecycle and capabilities of every model, and it is newer than any file. A statement is
taken only where its meaning is documented and its value is well formed; whatever is missing, null or odd leaves the
catalogue's word in force. Prices are not on that list and never change. A model that the file does not know stays
unknown: it has no price and no rules.

A statement that takes something away is taken as it stands. One that adds something is taken as far as it reaches: a
`thinking.type` that is new here may still be refused with a high effort, so only the lowest goes with it.
Source: Anthropic fact sheet, sections 3 (end) and 11; `ModelInfo`, `ModelCapabilities` and `ThinkingTypes` of the SDK.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from router.catalog.lookup import Catalog
from router.catalog.records import EFFORT_ORDER, Accepts, Model, Thinking

MAX_RECORDS = 2_000  # the API knows some thirty models; more is no list of models
_MAX_NOTES = 32
_MAX_NAMES = 8  # unknown models named in the note about them
_MAX_TOKENS = 1_000_000_000  # no limit of a model; a larger number is a fault

_LIFECYCLES = ("active", "deprecated", "retired")
_THINKING_TYPES = ("adaptive", "enabled", "disabled", "between_tools")
# Denials that no field of `Accepts` speaks of, by where they stand. `image_input` is a limit of 0 images instead.
_DENIABLE = (
    ("batch",),
    ("citations",),
    ("pdf_input",),
    ("context_management", "clear_tool_uses_20250919"),
    ("context_management", "clear_thinking_20251015"),
    ("server_tools", "web_search"),
    ("server_tools", "code_execution"),
)
_DAY = re.compile(r"(\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01]))T[0-9:.]{5,24}(?:Z|[+-]\d\d:\d\d)", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}", re.ASCII)


def with_capabilities(catalog: Catalog, records: Sequence[object]) -> tuple[Catalog, list[str]]:
    """`catalog` with what `records` (the entries of `data`, all pages) state, and notes for the owner.

    The notes say what was not taken: malformed values, models that are named twice or not known. They are bounded, and
    show nothing of a value. Never raises, whatever the records hold. The catalogue given is not changed.
    """
    notes = _Notes()
    models = {model.id: model for model in catalog.models}
    unknown: dict[str, None] = {}
    seen: set[str] = set()
    odd = 0
    for record in records[:MAX_RECORDS]:
        name = record.get("id") if isinstance(record, Mapping) else None
        if not isinstance(record, Mapping) or not isinstance(name, str) or _NAME.fullmatch(name) is None:
            odd += 1
            continue
        model = catalog.find(name)
        if model is None:
            unknown[name] = None
        elif model.id in seen:
            notes.add(f"`{model.id}` is listed twice: the first entry counts")
        else:
            seen.add(model.id)
            models[model.id] = _refreshed(models[model.id], _Statements(record, model.id, notes))
    if len(records) > MAX_RECORDS:
        notes.add(f"{len(records)} entries, only the first {MAX_RECORDS} were read")
    if odd:
        notes.add(f"{odd} {'entry is' if odd == 1 else 'entries are'} no model")
    if unknown:
        names = ", ".join(f"`{name}`" for name in list(unknown)[:_MAX_NAMES])
        more = f" and {len(unknown) - _MAX_NAMES} more" if len(unknown) > _MAX_NAMES else ""
        notes.add(f"{len(unknown)} not in the catalogue, so without price and rules: {names}{more}")
    return catalog.with_models([models[model.id] for model in catalog.models]), notes.listed()


class _Notes:
    """Notes in order, each once, at most `_MAX_NOTES` of them."""

    __slots__ = ("_left_out", "_texts")

    def __init__(self) -> None:
        self._texts: dict[str, None] = {}
        self._left_out = 0

    def add(self, text: str) -> None:
        if len(self._texts) < _MAX_NOTES:
            self._texts[text] = None
        else:
            self._left_out += 1

    def listed(self) -> list[str]:
        return [*self._texts, *([f"{self._left_out} more notes"] if self._left_out else [])]


class _Statements:
    """One entry of the list: what it states, None where it states nothing that can be used (odd values are noted)."""

    __slots__ = ("_model_id", "_notes", "_record")

    def __init__(self, record: Mapping[Any, Any], model_id: str, notes: _Notes) -> None:
        self._record = record
        self._model_id = model_id
        self._notes = notes

    def at(self, *path: str, is_fit: Callable[[Any], bool], expected: str) -> Any:
        """The value at `path`, if it is there and `is_fit`."""
        value: Any = self._record
        for depth, key in enumerate(path):
            if not isinstance(value, Mapping):
                self._odd(path[:depth], "an object")
                return None
            value = value.get(key)
            if value is None:  # left out or null: nothing is stated
                return None
        if is_fit(value):
            return value
        self._odd(path, expected)
        return None

    def tokens(self, key: str) -> int | None:
        """A limit in tokens."""
        value = self.at(key, is_fit=_is_limit, expected="a count of tokens")
        return None if value is None else int(value)

    def word(self, key: str, choices: tuple[str, ...] = ()) -> str | None:
        """One of `choices`, or any short name."""
        value = self.at(
            key,
            is_fit=lambda v: isinstance(v, str) and (v in choices if choices else _NAME.fullmatch(v) is not None),
            expected="one of " + ", ".join(f"`{choice}`" for choice in choices) if choices else "a name",
        )
        return None if value is None else str(value)

    def day(self, key: str) -> str | None:
        """The ISO date of an RFC 3339 time."""
        value = self.at(
            key, is_fit=lambda v: isinstance(v, str) and _DAY.fullmatch(v) is not None, expected="an RFC 3339 time"
        )
        return None if value is None else str(value)[:10]

    def names(self, key: str) -> tuple[str, ...] | None:
        """A list of names."""
        value = self.at(key, is_fit=_are_names, expected="a list of names")
        return None if value is None else tuple(value)

    def is_supported(self, *path: str) -> bool | None:
        """Whether the capability at that place is supported."""
        value = self.at(
            "capabilities", *path, "supported", is_fit=lambda v: isinstance(v, bool), expected="true or false"
        )
        return None if value is None else bool(value)

    def _odd(self, path: tuple[str, ...], expected: str) -> None:
        self._notes.add(f"`{self._model_id}`: `{'.'.join(path)}` is not {expected}: ignored")


def _is_limit(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_TOKENS


def _are_names(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_RECORDS
        and all(isinstance(name, str) and _NAME.fullmatch(name) is not None for name in value)
    )


def _refreshed(model: Model, said: _Statements) -> Model:
    """The model as one entry states it."""
    lifecycle = said.word("lifecycle", _LIFECYCLES) or model.lifecycle
    deprecated, retires = said.day("deprecated_at"), said.day("retires_at")
    retires_kind = model.retires_kind
    if retires is not None:  # null says that nothing is scheduled: the file may know the earliest date
        retires_kind = "retired" if lifecycle == "retired" else "scheduled"
    return replace(
        model,
        line=said.word("line") or model.line,
        lifecycle=lifecycle,
        deprecated=None if lifecycle == "active" else deprecated or model.deprecated,
        retires=retires or model.retires,
        retires_kind=retires_kind,
        context_window=said.tokens("max_input_tokens") or model.context_window,
        max_output_tokens=said.tokens("max_tokens") or model.max_output_tokens,
        # A retired model answers 404 to everything: what it once took is of no use to anybody.
        accepts=model.accepts if lifecycle == "retired" else _refreshed_accepts(model.accepts, said),
    )


def _refreshed_accepts(accepts: Accepts, said: _Statements) -> Accepts:
    levels = _levels(accepts.effort_levels, said)
    # `code_execution` speaks of code that calls the request's other tools, "as in programmatic tool calling and dynamic
    # filtering". Without it neither works; with it a model may still take the basic web tools only.
    calls_tools = said.is_supported("code_execution")
    # Only the beta form has it. An empty list means that `fallbacks` are a 400, which a file says by silence.
    targets = said.names("allowed_fallback_models")
    if targets is None or not (targets or accepts.server_fallback_targets):
        targets = accepts.server_fallback_targets
    structured = said.is_supported("structured_outputs")
    return replace(
        accepts,
        thinking=_thinking(accepts.thinking, said),
        effort_levels=levels,
        default_effort=accepts.default_effort if accepts.default_effort in levels else None,
        structured_outputs=accepts.structured_outputs if structured is None else structured,
        compaction=_compaction(accepts.compaction, said),
        programmatic_tool_calling=accepts.programmatic_tool_calling if calls_tools is None else calls_tools,
        web_tools_dynamic_filtering=False if calls_tools is False else accepts.web_tools_dynamic_filtering,
        max_images=0 if said.is_supported("image_input") is False else accepts.max_images,
        server_fallback_targets=targets,
        denied=frozenset(".".join(path) for path in _DENIABLE if said.is_supported(*path) is False),
    )


def _thinking(thinking: Thinking, said: _Statements) -> Thinking:
    """A false means exactly that sending the type gets a 400; each key is read on its own."""
    stated = {kind: said.is_supported("thinking", "types", kind) for kind in _THINKING_TYPES}
    taken = {kind for kind in _THINKING_TYPES if stated[kind] or (stated[kind] is None and kind in thinking.accepts)}
    # Which efforts go with a type that is new here is not on the list.
    lowest = dict.fromkeys(taken - thinking.accepts, EFFORT_ORDER[0])
    return replace(
        thinking,
        accepts=frozenset(taken),
        disabled_max_effort=lowest.get("disabled", thinking.disabled_max_effort),
        between_tools_max_effort=lowest.get("between_tools", thinking.between_tools_max_effort),
    )


def _levels(levels: frozenset[str], said: _Statements) -> frozenset[str]:
    """The effort levels taken; none where the parameter as a whole is denied."""
    if said.is_supported("effort") is False:
        return frozenset()
    stated = {level: said.is_supported("effort", level) for level in EFFORT_ORDER}
    return frozenset(level for level, taken in stated.items() if taken or (taken is None and level in levels))


def _compaction(compaction: bool | None, said: _Statements) -> bool | None:
    """One claim stands for the context edit and the top-level parameter: either denial denies it, both must be there
    to grant it."""
    stated = (said.is_supported("context_management", "compact_20260112"), said.is_supported("compaction"))
    if False in stated:
        return False
    return True if all(stated) else compaction
