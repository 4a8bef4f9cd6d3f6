"""The file of client keys: which tenant a key belongs to, and which policy it uses.

Keys are random and long, so a plain SHA-256 of the whole key is what is stored; it is also what is looked up, so that
no comparison of secrets by prefix ever happens.

    keys:
      - name: search-team
        sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
        tenant: search
        policy: default        # optional
        limits: {concurrent: 20}  # optional
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from router.errors import SettingsError
from router.policy.source import Node, read_source, render

_FIELDS = ("name", "sha256", "tenant", "policy", "limits")
_MOST_CONCURRENT = 1_000_000


@dataclass(frozen=True, slots=True)
class Key:
    """One client key: its name, its tenant, its policy (None: the default one).

    `max_concurrent` is how many of its requests may be under way at a time, open streams included; None: no such limit.
    """

    name: str
    tenant: str
    policy: str | None
    max_concurrent: int | None = None


class KeyRing:
    """The keys of a file, found by the key itself."""

    __slots__ = ("_by_hash",)

    def __init__(self, by_hash: Mapping[str, Key]) -> None:
        self._by_hash = dict(by_hash)

    def __len__(self) -> int:
        return len(self._by_hash)

    def find(self, secret: bytes) -> Key | None:
        """The key that `secret` is; None when it is none of them."""
        return self._by_hash.get(hashlib.sha256(secret).hexdigest())

    def tied(self) -> Iterator[tuple[str, str]]:
        """The name of each key that is tied to a policy, and that policy."""
        for key in self._by_hash.values():
            if key.policy is not None:
                yield key.name, key.policy


def read_keys(name: str, data: bytes) -> KeyRing:
    """The key ring in a file's bytes; raises SettingsError with file, line and reason."""
    source = read_source(name, data, name)
    if source.root is not None:
        for key, value in source.root.pairs():
            if key.plain() != "keys":
                source.report(key, f"unknown key `{key.plain()}`, expected `keys`")
            elif not isinstance(value.plain(), list):
                source.report(value, "`keys` must be a list")
    entries: dict[str, Key] = {}
    document = source.root.plain() if source.root is not None and not source.diagnostics else {}
    for index, entry in enumerate(document.get("keys", []) if isinstance(document, dict) else []):
        problem = _problem(entry, entries)
        if problem:
            source.report(_entry_node(source.root, index), problem)
        else:
            most = entry.get("limits", {}).get("concurrent")
            entries[entry["sha256"]] = Key(entry["name"], entry["tenant"], entry.get("policy"), most)
    if source.diagnostics:
        raise SettingsError(render(source.diagnostics))
    if not entries:
        raise SettingsError(f"`{name}` holds no key", hint="a file of keys has a list `keys`")
    return KeyRing(entries)


def _problem(entry: object, entries: Mapping[str, Key]) -> str:
    if not isinstance(entry, dict):
        return "a key is a mapping with `name`, `sha256` and `tenant`"
    for field in entry:
        if field not in _FIELDS:
            return f"unknown field `{field}`, expected one of {', '.join(_FIELDS)}"
    for field in ("name", "sha256", "tenant"):
        if not isinstance(entry.get(field), str) or not entry[field]:
            return f"`{field}` must be a text"
    if not isinstance(entry.get("policy", ""), str):
        return "`policy` must be a text"
    limits = entry.get("limits", {})
    if not isinstance(limits, dict) or set(limits) - {"concurrent"}:
        return "`limits` is a mapping with `concurrent`"
    most = limits.get("concurrent", 1)
    if not isinstance(most, int) or isinstance(most, bool) or not 0 < most <= _MOST_CONCURRENT:
        return f"`concurrent` must be a whole number from 1 to {_MOST_CONCURRENT}"
    digest = entry["sha256"]
    if len(digest) != 64 or any(digit not in "0123456789abcdef" for digit in digest):
        return "`sha256` must be 64 hex digits in lower case"
    if digest in entries:
        return f"the same key is listed twice (first as `{entries[digest].name}`)"
    return ""


def _entry_node(root: Node | None, index: int) -> Node | None:
    for key, value in root.pairs() if root is not None else ():
        if key.plain() == "keys" and isinstance(value.value, tuple | list):
            return value.value[index] if isinstance(value.value[index], Node) else value
    return root
