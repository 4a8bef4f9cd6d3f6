"""The cache in process: bounded in bytes, least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from router.seams import CacheEntry

_OVERHEAD_BYTES = 600  # of one entry beside its body: key, headers, usage, links; measured, rounded up


class MemoryCache:
    """A CacheBackend in this process. `max_bytes` bounds bodies and headers together; `clock` gives seconds."""

    def __init__(self, max_bytes: int, clock: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, int, CacheEntry]] = OrderedDict()
        self._bytes = 0
        self._hits = 0
        self._misses = 0
        self._evicted = 0

    async def get(self, key: str) -> CacheEntry | None:
        """The entry, or None when there is none or its time is over."""
        found = self._entries.get(key)
        if found is None:
            self._misses += 1
            return None
        expires_s, size, entry = found
        if self._clock() >= expires_s:
            del self._entries[key]
            self._bytes -= size
            self._misses += 1
            return None
        self._entries.move_to_end(key)
        self._hits += 1
        return entry

    async def put(self, key: str, entry: CacheEntry, ttl_s: float) -> bool:
        """Keep an entry for `ttl_s` seconds; False when it is larger than the whole cache may be."""
        size = _OVERHEAD_BYTES + len(entry.body) + sum(len(name) + len(value) for name, value in entry.headers)
        if size > self._max_bytes or ttl_s <= 0:
            return False
        replaced = self._entries.pop(key, None)
        if replaced is not None:
            self._bytes -= replaced[1]
        self._entries[key] = (self._clock() + ttl_s, size, entry)
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, evicted_size, _) = self._entries.popitem(last=False)
            self._bytes -= evicted_size
            self._evicted += 1
        return True

    def stats(self) -> Mapping[str, int]:
        """Counts since the start, and what is held now."""
        return {
            "entries": len(self._entries),
            "bytes": self._bytes,
            "max_bytes": self._max_bytes,
            "hits": self._hits,
            "misses": self._misses,
            "evicted": self._evicted,
        }

    async def purge(self) -> int:
        """Forget everything; how many entries that were."""
        count = len(self._entries)
        self._entries.clear()
        self._bytes = 0
        return count

    async def close(self) -> None:
        """Nothing is held outside the process."""
