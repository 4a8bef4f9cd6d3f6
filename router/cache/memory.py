"""The cache in process: bounded in bytes, least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from router.cache.entry import NOTHING, CacheEntry, CacheStats, Found, Purge, PurgeReport

_OVERHEAD_BYTES = 600  # of one entry beside its body: key, headers, usage, links; measured, rounded up
_PROCESS = "this process"
_MOST_PURGES = 200  # remembered for answers that were under way


class MemoryCache:
    """A CacheBackend in this process. `max_bytes` bounds bodies and headers together.

    `clock` gives seconds that never go back, `wall_clock` Unix seconds. As the near part of another cache, entries are
    kept no longer than `copy_s` seconds here.
    """

    def __init__(
        self,
        max_bytes: int,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        copy_s: float = float("inf"),
    ) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._began_ns = int((wall_clock() - clock()) * 1e9)  # so that no setting of the wall clock moves entries
        self._copy_s = copy_s
        self._entries: OrderedDict[str, tuple[float, int, CacheEntry]] = OrderedDict()
        self._bytes = 0
        self._purges: list[Purge] = []
        self._hits = self._misses = self._evicted = self._purged = 0

    def now_ns(self) -> int:
        """Unix time in nanoseconds, as it was at the start and has passed since."""
        return self._began_ns + int(self._clock() * 1e9)

    def near(self, key: str) -> CacheEntry | None:
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

    async def look_up(self, key: str, max_bytes: int, *, follows: str | None = None, is_claiming: bool = True) -> Found:
        """Nothing: what is here was `near`, and there is nobody to share a call with outside this process."""
        return NOTHING

    def put(self, key: str, entry: CacheEntry, lead: str | None = None, now_ns: int | None = None) -> bool:
        """Keep an entry until it expires; False when it is larger than the whole cache may be, or its time is over.

        An answer that was asked for before a purge which means it is not kept either.
        `now_ns` is the time by the clock that dated the entry; None: this cache's own.
        """
        size = _OVERHEAD_BYTES + len(entry.body) + sum(len(name) + len(value) for name, value in entry.headers)
        left_s = (entry.expires_at_ns - (self.now_ns() if now_ns is None else now_ns)) / 1e9
        if size > self._max_bytes or left_s <= 0 or any(purge.takes(entry) for purge in self._purges):
            return False
        there = self._entries.get(key)
        if there is not None and there[2].asked_at_ns > entry.asked_at_ns and self._clock() < there[0]:
            return True  # a fresher answer came first
        self._forget(key)
        self._entries[key] = (self._clock() + min(left_s, self._copy_s), size, entry)
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, evicted_size, _) = self._entries.popitem(last=False)
            self._bytes -= evicted_size
            self._evicted += 1
        return True

    def hand_over(self, key: str, entry: CacheEntry, lead: str) -> None:
        """Nobody waits outside this process."""

    def release(self, key: str, lead: str) -> None:
        """Nobody waits outside this process."""

    def forget(self, purge: Purge) -> int:
        """Forget what the purge means, now and when it comes in late; how many entries that were."""
        self._purges = [each for each in self._purges if not purge.covers(each)]
        if len(self._purges) >= _MOST_PURGES:  # one for them all, which takes more than was asked of what is under way
            self._purges = [Purge(max(each.until_ns for each in self._purges))]
        self._purges.append(purge)
        meant = [key for key, (_, _, entry) in self._entries.items() if purge.takes(entry)]
        for key in meant:
            self._forget(key)
        self._purged += len(meant)
        return len(meant)

    def forget_all(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bytes = 0

    def stats(self) -> Mapping[str, int]:
        """Counts since the start, and what is held now."""
        return {
            "entries": len(self._entries),
            "bytes": self._bytes,
            "max_bytes": self._max_bytes,
            "hits": self._hits,
            "misses": self._misses,
            "evicted": self._evicted,
            "purged": self._purged,
        }

    async def stats_everywhere(self) -> CacheStats:
        """The counts of this process, which are all there are."""
        counts = self.stats()
        return CacheStats({_PROCESS: counts}, None, counts)

    async def purge(
        self, *, tenant: str | None = None, rule: str | None = None, model: str | None = None, older_than_s: float = 0.0
    ) -> PurgeReport:
        """Forget what was asked for until `older_than_s` seconds ago and fits the rest, at once."""
        return PurgeReport(self.forget(Purge(self.now_ns() - int(older_than_s * 1e9), tenant, rule, model)))

    async def start(self) -> None:
        """Nothing has to be fetched."""

    async def close(self) -> None:
        """Nothing is held outside the process."""

    def _forget(self, key: str) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self._bytes -= found[1]
