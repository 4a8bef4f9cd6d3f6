"""The provider's prompt cache: which part of a prompt is read, which is written, which is neither.

A prompt is a row of parts (tools, system, messages). A breakpoint marks a prefix; an entry is the hash of a prefix,
kept for five minutes or an hour from the start of the request that wrote or last read it. What is mixed into the hash
at the start of each layer decides what a change of parameters loses. Source: documentation of prompt caching.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.simulator.call import Call
from router.simulator.tokens import Part, prompt_tokens

LOOK_BACK = 20  # positions that one breakpoint searches backwards
TTL_S = {"5m": 300.0, "1h": 3600.0}


@dataclass(frozen=True, slots=True)
class CachePlan:
    """What one request reads and writes. Counts are tokens; `entries` are (hash, seconds to live) to keep."""

    read: int
    write_5m: int
    write_1h: int
    input: int
    entries: tuple[tuple[str, float], ...] = ()

    @property
    def total(self) -> int:
        """All prompt tokens."""
        return self.read + self.write_5m + self.write_1h + self.input


class PromptCache:
    """The entries of every workspace; a model never sees another model's, a workspace never another's."""

    def __init__(self) -> None:
        self._expires_at: dict[str, tuple[float, float]] = {}  # hash -> (when it ends, how long it lives)

    def plan(self, call: Call, parts: list[Part], workspace: str, now_s: float) -> CachePlan:
        """What the request finds at `now_s`, and what it would leave; nothing is kept before `commit`."""
        total = prompt_tokens(parts)
        marked = _marked(call.body, parts)
        if not marked:
            return CachePlan(0, 0, 0, total)
        hashes, tokens = _prefixes(call, parts, workspace)
        least = int(call.model.fields["min_cacheable_tokens"])
        marked = {index: ttl for index, ttl in marked.items() if tokens[index] >= least}
        if not marked:
            return CachePlan(0, 0, 0, total)
        hit = max((self._find(index, parts, hashes, now_s) for index in marked), default=-1)
        read = tokens[hit] if hit >= 0 else 0
        last = max(marked)
        last_long = max((index for index, ttl in marked.items() if ttl == "1h"), default=-1)
        write_1h = max(0, tokens[last_long] - read) if last_long >= 0 else 0
        write_5m = max(0, tokens[last] - read - write_1h)
        entries = [(hashes[index], TTL_S[ttl]) for index, ttl in marked.items()]
        if hit >= 0 and hit not in marked:
            entries.append((hashes[hit], self._expires_at[hashes[hit]][1]))
        return CachePlan(read, write_5m, write_1h, total - read - write_1h - write_5m, tuple(entries))

    def commit(self, plan: CachePlan, started_s: float) -> None:
        """Keep what the plan wrote and refresh what it read; called when the answer begins."""
        for key, ttl_s in plan.entries:
            _, lives_s = self._expires_at.get(key, (0.0, 0.0))
            lives_s = max(ttl_s, lives_s)
            self._expires_at[key] = (started_s + lives_s, lives_s)
        if len(self._expires_at) > 100_000:
            self._expires_at = {key: kept for key, kept in self._expires_at.items() if kept[0] > started_s}

    def _find(self, index: int, parts: list[Part], hashes: list[str], now_s: float) -> int:
        """The longest living prefix that ends at most `LOOK_BACK` positions before a breakpoint; -1 for none."""
        positions = 0
        while index >= 0 and positions < LOOK_BACK:
            ends_at, _ = self._expires_at.get(hashes[index], (0.0, 0.0))
            if ends_at > now_s:
                return index
            positions += not parts[index].joins_previous
            index -= 1
        return -1


def _marked(body: Mapping[str, Any], parts: list[Part]) -> dict[int, str]:
    """Index of each marked part -> its ttl; the automatic marker sits on the last part that can carry one."""
    found = {index: part.marker.get("ttl") or "5m" for index, part in enumerate(parts) if part.marker}
    automatic = body.get("cache_control")
    if automatic:
        last = max((index for index, part in enumerate(parts) if part.can_be_marked), default=-1)
        if last >= 0:
            found.setdefault(last, automatic.get("ttl") or "5m")
    return found


def _prefixes(call: Call, parts: list[Part], workspace: str) -> tuple[list[str], list[int]]:
    """Hash and token count of every prefix of the prompt."""
    running = hashlib.blake2b(digest_size=16)
    layer, milli = "", 0
    hashes, tokens = [], []
    salts = _salts(call, workspace)
    for part in parts:
        if part.layer != layer:
            for name in ("tools", "system", "messages"):
                if _rank(layer) < _rank(name) <= _rank(part.layer):
                    running.update(salts[name].encode())
            layer = part.layer
        running.update(part.value.encode("utf-8", "replace") + b"\x00")
        milli += part.milli
        hashes.append(running.hexdigest())
        tokens.append(math.ceil(milli / 1000))
    return hashes, tokens


def _rank(layer: str) -> int:
    return ("", "tools", "system", "messages").index(layer)


def _salts(call: Call, workspace: str) -> dict[str, str]:
    """What, beside its own text, makes each layer of the prompt what it is."""
    body = call.body
    config = body.get("output_config") or {}
    kinds = [str(tool.get("type") or "") for tool in body.get("tools") or []]
    text = json.dumps(body["messages"])
    system = [call.speed, any(kind.startswith("web_search") for kind in kinds), '"citations": {"enabled": true' in text]
    messages = [
        body.get("tool_choice"),
        '"type": "image"' in text,
        body.get("thinking") or call.thinking_type,
        call.effort,
    ]
    return {
        "tools": json.dumps([workspace, call.model.id, config.get("format")]),
        "system": json.dumps(system),
        "messages": json.dumps(messages),
    }
