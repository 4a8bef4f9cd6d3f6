"""Conversations remembered in this process: bounded in number, the least recently used one goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from router.affinity.binding import Binding

KEPT_S = 86_400  # a conversation that nobody has gone on with for a day is forgotten
V = TypeVar("V")


class MemoryAffinity:
    """An AffinityStore in this process: at most `most` conversations, and four times as many thinking blocks.

    `clock` gives seconds. A conversation takes about 600 bytes and a thinking block about 250 (measured: CPython 3.11,
    with their keys), so that 50,000 conversations with all their thinking are at most 80 MB.
    """

    def __init__(self, clock: Callable[[], float], most: int = 50_000) -> None:
        self._bindings: _Recent[Binding] = _Recent(clock, most)
        self._thinkers: _Recent[str] = _Recent(clock, 4 * most)
        self._hits = self._misses = 0

    async def get(self, keys: Sequence[str]) -> Binding | None:
        """The first binding that there is; None when there is none or it was not used for a day."""
        found = next((binding for key in keys if (binding := self._bindings.look(key)) is not None), None)
        self._hits += found is not None
        self._misses += found is None
        return found

    def put(self, key: str, binding: Binding, *, is_only_first: bool = False) -> None:
        """Keep a binding; the one used longest ago gives way when there are too many."""
        if not is_only_first or self._bindings.look(key) is None:
            self._bindings.keep(key, binding)

    async def thinkers(self, keys: Sequence[str]) -> tuple[str, ...]:
        """The models behind these thinking blocks, each once; () when one is not known."""
        found = [self._thinkers.look(key) for key in keys]
        return tuple(dict.fromkeys(model for model in found if model is not None)) if None not in found else ()

    def put_thinkers(self, keys: Sequence[str], model: str) -> None:
        """Note who made these thinking blocks."""
        for key in keys:
            self._thinkers.keep(key, model)

    def binding(self, key: str) -> Binding | None:
        """One binding, for a store that keeps this one beside it."""
        return self._bindings.look(key)

    def thinker(self, key: str) -> str | None:
        """The model behind one thinking block, for a store that keeps this one beside it."""
        return self._thinkers.look(key)

    def stats(self) -> Mapping[str, int]:
        """Counts since the start, and what is held now."""
        return {
            "entries": len(self._bindings),
            "max_entries": self._bindings.most,
            "thinking_blocks": len(self._thinkers),
            "hits": self._hits,
            "misses": self._misses,
            "evicted": self._bindings.evicted + self._thinkers.evicted,
        }

    async def close(self) -> None:
        """Nothing is held outside the process."""


class _Recent(Generic[V]):
    """At most `most` values by key, none unused for longer than a day."""

    def __init__(self, clock: Callable[[], float], most: int) -> None:
        self._clock = clock
        self.most = most
        self.evicted = 0
        self._entries: OrderedDict[str, tuple[float, V]] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def look(self, key: str) -> V | None:
        now_s = self._forget()
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries[key] = (now_s, found[1])
        self._entries.move_to_end(key)
        return found[1]

    def keep(self, key: str, value: V) -> None:
        self._entries[key] = (self._forget(), value)
        self._entries.move_to_end(key)
        if len(self._entries) > self.most:
            self._entries.popitem(last=False)
            self.evicted += 1

    def _forget(self) -> float:
        """Drop what a day has passed over, which stands in front; returns the time now."""
        now_s = self._clock()
        while self._entries:
            key, (used_s, _) = next(iter(self._entries.items()))
            if now_s - used_s < KEPT_S:
                break
            del self._entries[key]
        return now_s
