"""Conversations remembered in Redis, so that several workers and replicas agree; a copy in this process covers for it.

Redis is asked first, for another replica may have gone on with the conversation. What it says counts, with two
exceptions. It never makes this process forget: no binding is ever deleted on purpose, so a key that is missing was
evicted, or Redis has lost it. And a binding that could not be written while Redis was away is newer than what it has.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from router.affinity.binding import Binding, decode
from router.affinity.memory import KEPT_S, MemoryAffinity
from router.redis_link import RedisLink, RedisUnavailable

PREFIX = "router:v1:affinity:"  # the version is of the keys; the value says its own
_MOST_OWED = 10_000


class RedisAffinity:
    """An AffinityStore over a link, with `memory` as its copy. Nothing is raised, no call outlasts the link's deadline.

    The link is not closed with the store: others may use it.
    """

    def __init__(self, link: RedisLink, memory: MemoryAffinity, clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._memory = memory
        self._clock = clock
        self._owed: OrderedDict[str, None] = OrderedDict()  # keys whose last binding Redis did not take, oldest first
        self._hits = self._misses = self._fallbacks = self._undecodable = self._unwritten = 0

    async def get(self, key: str) -> Binding | None:
        """The binding by Redis, or this process's own where Redis does not answer or has none."""
        started_s = self._clock()
        try:
            data = await self._link.ask("GET", PREFIX + key)
        except RedisUnavailable:
            self._fallbacks += 1
            return self._memory.look(key)
        found = None if data is None else decode(data)
        if data is not None and found is None:
            self._undecodable += 1
            await self._delete(key, self._link.deadline_s - (self._clock() - started_s))
        if found is None:
            self._misses += 1
            return self._memory.look(key)
        self._hits += 1
        if key in self._owed:
            own = self._memory.look(key)
            if own is not None and own.served_at_s >= found.served_at_s:
                return own
            del self._owed[key]
        self._memory.keep(key, found)
        return found

    async def put(self, key: str, binding: Binding) -> None:
        """Keep a binding here and in Redis."""
        self._memory.keep(key, binding)
        try:
            await self._link.ask("SET", PREFIX + key, binding.encode(), "EX", KEPT_S)
        except RedisUnavailable:
            self._unwritten += 1
            self._owed[key] = None
            self._owed.move_to_end(key)
            if len(self._owed) > _MOST_OWED:
                self._owed.popitem(last=False)
        else:
            self._owed.pop(key, None)

    def stats(self) -> Mapping[str, int]:
        """Counts since the start: what Redis had, what it had not, and how often this process's copy covered for it."""
        return {
            "hits": self._hits,
            "misses": self._misses,
            "fallbacks": self._fallbacks,
            "undecodable": self._undecodable,
            "unwritten": self._unwritten,
            "entries": self._memory.stats()["entries"],
        }

    async def close(self) -> None:
        """Nothing is held that is not the link's."""

    async def _delete(self, key: str, within_s: float) -> None:
        try:
            await self._link.ask("DEL", PREFIX + key, within_s=within_s)
        except RedisUnavailable:
            pass  # the next binding overwrites it
