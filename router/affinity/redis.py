"""Conversations remembered in Redis, so that several workers and replicas agree; a copy in this process covers for it.

Redis is asked first, for another replica may have gone on with the conversation. What it says counts, with two
exceptions. It never makes this process forget: no binding is ever deleted on purpose, so a key that is missing was
evicted, or Redis has lost it. And a binding that could not be written while Redis was away is newer than what it has.
Who made a thinking block never changes, so this process's own knowledge of it is asked first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from router.affinity.binding import Binding, decode
from router.affinity.memory import KEPT_S, MemoryAffinity
from router.redis_link import RedisLink, RedisUnavailable

PREFIX = "router:v1:affinity:"  # the version is of the keys; the value says its own
THINKER_PREFIX = "router:v1:thinker:"
PATIENCE_S = 0.025  # of one question; with as much for the cache, a request waits 50 ms for Redis at most
_MOST_OWED = 10_000
_MOST_WRITING = 1_000  # writes under way; more are not begun, but owed
_MAX_MODEL_BYTES = 256


class RedisAffinity:
    """An AffinityStore over a link, with `memory` as its copy. Nothing is raised, no question outlasts the deadline.

    The link is not closed with the store: others may use it.
    """

    def __init__(self, link: RedisLink, memory: MemoryAffinity) -> None:
        self._link = link
        self._memory = memory
        self._writing: set[asyncio.Task[None]] = set()
        self._owed: OrderedDict[str, None] = OrderedDict()  # keys whose last binding Redis did not take, oldest first
        self._hits = self._misses = self._fallbacks = self._undecodable = self._unwritten = 0

    async def get(self, keys: Sequence[str]) -> Binding | None:
        """The first binding that Redis has, or this process's own where Redis does not answer or has none."""
        try:
            answers = await self._values(PREFIX, keys)
        except RedisUnavailable:
            self._fallbacks += 1
            return await self._memory.get(keys)
        for key, data in zip(keys, answers, strict=True):
            found = None if data is None else decode(data)
            if data is not None and found is None:
                self._undecodable += 1  # the next binding overwrites it
            own = self._memory.binding(key)
            if found is None:
                if own is not None:
                    self._misses += 1
                    return own
                continue
            self._hits += 1
            if key in self._owed and own is not None and own.served_at_s >= found.served_at_s:
                return own
            self._owed.pop(key, None)
            self._memory.put(key, found)
            return found
        self._misses += 1
        return None

    def put(self, key: str, binding: Binding, *, is_only_first: bool = False) -> None:
        """Keep a binding here at once and in Redis soon."""
        self._memory.put(key, binding, is_only_first=is_only_first)
        condition = ("NX",) if is_only_first else ()
        self._write(key, "SET", PREFIX + key, binding.encode(), "EX", KEPT_S, *condition)

    async def thinkers(self, keys: Sequence[str]) -> tuple[str, ...]:
        """The models behind these thinking blocks, each once; () when one is not known here nor to Redis."""
        found = {key: self._memory.thinker(key) for key in keys}
        missing = [key for key, model in found.items() if model is None]
        if missing:
            try:
                answers = await self._values(THINKER_PREFIX, missing)
            except RedisUnavailable:
                self._fallbacks += 1
                return ()
            found.update((key, self._thinker(key, data)) for key, data in zip(missing, answers, strict=True))
        models = list(found.values())
        return tuple(dict.fromkeys(model for model in models if model is not None)) if None not in models else ()

    def put_thinkers(self, keys: Sequence[str], model: str) -> None:
        """Note who made these thinking blocks, here at once and in Redis soon."""
        self._memory.put_thinkers(keys, model)
        for key in keys:
            self._write(None, "SET", THINKER_PREFIX + key, model.encode("utf-8", "replace"), "EX", KEPT_S)

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
        """Wait for what is being written; each write ends with the link's deadline."""
        while self._writing:
            await asyncio.gather(*self._writing)

    async def _values(self, prefix: str, keys: Sequence[str]) -> list[Any]:
        """What Redis has under each of the keys, asked for at once."""
        asked = [self._link.ask("GET", prefix + key, within_s=PATIENCE_S) for key in keys]
        return [await asked[0]] if len(asked) == 1 else list(await asyncio.gather(*asked))

    def _thinker(self, key: str, data: Any) -> str | None:
        if not isinstance(data, bytes) or not 0 < len(data) <= _MAX_MODEL_BYTES:
            return None
        model = data.decode("utf-8", "replace")
        self._memory.put_thinkers((key,), model)
        return model

    def _write(self, key: str | None, *command: str | bytes | int) -> None:
        """Begin to write; `key` is owed when Redis does not take it."""
        if len(self._writing) >= _MOST_WRITING:
            self._owe(key)
            return
        task = asyncio.get_running_loop().create_task(self._written(key, *command))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _written(self, key: str | None, *command: str | bytes | int) -> None:
        try:
            await self._link.ask(*command)
        except RedisUnavailable:
            self._owe(key)
        else:
            if key is not None:
                self._owed.pop(key, None)

    def _owe(self, key: str | None) -> None:
        self._unwritten += 1
        if key is None:
            return
        self._owed[key] = None
        self._owed.move_to_end(key)
        if len(self._owed) > _MOST_OWED:
            self._owed.popitem(last=False)
