"""Scripted behaviour: which requests fail, stall, stop short or say a given text.

A script is a YAML or JSON list. Each entry has `when` (all optional: `model`, `contains`, `path`, `nth`, `times`) and
what to do: `status` with `type`, `message`, `body` and `headers`; `text`; `delay_ms`; and for streams
`cut_after_events`, `stall_after_events`, `error_after_events`, `no_message_stop`. The first entry that matches decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

WHEN_KEYS = frozenset({"model", "contains", "path", "nth", "times"})
_DO_KEY_NAMES = """
status type message body headers text delay_ms cut_after_events stall_after_events error_after_events
no_message_stop
"""
DO_KEYS = frozenset(_DO_KEY_NAMES.split())


class ScriptError(Exception):
    """A script that cannot be used; the message names the entry and the key."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a script asks for one request; None and False mean: as always."""

    status: int | None = None
    type: str | None = None
    message: str = "The simulator was told to fail here."
    body: str | None = None  # sent as it is, instead of the error shape
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str | None = None
    delay_ms: float = 0.0
    cut_after_events: int | None = None
    stall_after_events: int | None = None
    error_after_events: int | None = None
    no_message_stop: bool = False


AS_ALWAYS = Behaviour()


@dataclass(slots=True)
class _Entry:
    when: Mapping[str, Any]
    behaviour: Behaviour
    matched: int = 0


class Script:
    """The entries of a script with their counters. `nth` is the call (from 1) among those that match the rest."""

    def __init__(self, entries: list[dict[str, Any]] | None = None) -> None:
        if entries is not None and not isinstance(entries, list):
            raise ScriptError("a script is a list of entries")
        self._entries = [_read(entry, index) for index, entry in enumerate(entries or [])]

    @classmethod
    def load(cls, path: Path) -> Script:
        """Read a script file; raises `ScriptError` when it cannot be read or understood."""
        try:
            entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
            raise ScriptError(f"`{path}` cannot be read: {exc}") from exc
        return cls(entries or [])

    def behaviour(self, path: str, model: str, text: str) -> Behaviour:
        """What to do with a request to `path`, for `model`, whose last user turn is `text`."""
        for entry in self._entries:
            when = entry.when
            if when.get("model") not in (None, model) or str(when.get("contains") or "") not in text:
                continue
            if when.get("path", "/v1/messages") != path:
                continue
            entry.matched += 1
            if "nth" in when and entry.matched != when["nth"]:
                continue
            if "times" in when and entry.matched > when["times"]:
                continue
            return entry.behaviour
        return AS_ALWAYS


def _read(entry: Any, index: int) -> _Entry:
    if not isinstance(entry, dict):
        raise ScriptError(f"entry {index}: expected a mapping")
    when = entry.get("when") or {}
    if not isinstance(when, dict):
        raise ScriptError(f"entry {index}: `when` is a mapping")
    for name in when:
        if name not in WHEN_KEYS:
            raise ScriptError(f"entry {index}: unknown key `{name}` in `when`; known: {', '.join(sorted(WHEN_KEYS))}")
    for name in entry:
        if name != "when" and name not in DO_KEYS:
            raise ScriptError(f"entry {index}: unknown key `{name}`; known: {', '.join(sorted(DO_KEYS))}")
    values = {name: value for name, value in entry.items() if name != "when"}
    if "headers" in values:
        values["headers"] = {str(name).lower(): str(value) for name, value in (values["headers"] or {}).items()}
    return _Entry(when, Behaviour(**values))
