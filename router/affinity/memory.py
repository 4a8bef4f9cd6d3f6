"""Conversations remembered in this process: bounded in number, the least recently used one goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from router.affinity.binding import Binding

KEPT_S = 86_400  # a conversation that nobody has gone on with for a day is forgotten


class MemoryAffinity:
    """An AffinityStore in this process: at most `most` conversations. `clock` gives seconds.

    One takes 600 to 700 bytes (measured: CPython 3.11, with its key), so that 50,000 are about 35 MB.
    """

    def __init__(self, clock: Callable[[], float], most: int = 50_000) -> None:
        self._clock = clock
        self._most = most
        self._entries: OrderedDict[str, tuple[float, Binding]] = OrderedDict()  # least recently used first
        self._hits = self._misses = self._evicted = 0

    async def get(self, key: str) -> Binding | None:
        """The binding, or None when there is none or it was not used for a day."""
        return self.look(key)

    async def put(self, key: str, binding: Binding) -> None:
        """Keep a binding; the oldest one gives way when there are too many."""
        self.keep(key, binding)

    def look(self, key: str) -> Binding | None:
        """`get`, for a store that keeps this one beside it."""
        now_s = self._clock()
        self._forget(now_s)
        found = self._entries.get(key)
        if found is None:
            self._misses += 1
            return None
        self._hits += 1
        self._entries[key] = (now_s, found[1])
        self._entries.move_to_end(key)
        return found[1]

    def keep(self, key: str, binding: Binding) -> None:
        """`put`, for a store that keeps this one beside it."""
        now_s = self._clock()
        self._forget(now_s)
        self._entries[key] = (now_s, binding)
        self._entries.move_to_end(key)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)
            self._evicted += 1

    def stats(self) -> Mapping[str, int]:
        """Counts since the start, and what is held now."""
        return {
            "entries": len(self._entries),
            "max_entries": self._most,
            "hits": self._hits,
            "misses": self._misses,
            "evicted": self._evicted,
        }

    async def close(self) -> None:
        """Nothing is held outside the process."""

    def _forget(self, now_s: float) -> None:
        """Drop what a day has passed over; the entries are in the order of their use, so it stands in front."""
        while self._entries:
            key, (used_s, _) = next(iter(self._entries.items()))
            if now_s - used_s < KEPT_S:
                return
            del self._entries[key]
