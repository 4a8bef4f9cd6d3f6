"""The cache in Redis, shared by workers and replicas, behind a bounded copy in this process.

Theory of operation. Redis is asked once per look-up, for a few hundredths of a second at most, in one program that
reads the entry and, where there is none, says who makes the upstream call: the first to ask takes the *lead* (a token
that lapses within `LEASE_S` seconds unless it is renewed), every other process waits and asks again. So a process that
dies holds nobody up, and of any number of identical requests one goes upstream. Writes wait for nobody: they go on
behind the answer, and what Redis does not take is counted.

An entry is used only while this process knows of every purge (`fleet.Fleet`): the shared ones for `KNOWS_S` after it
last heard of them, its own copies for `COPY_S`. Whatever is not exactly what was written is a miss, deleted, counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from router.cache.codec import EntryCodec
from router.cache.entry import MAX_TTL_S, NOTHING, UNANSWERED, CacheEntry, CacheStats, Found, PurgeReport
from router.cache.fleet import COPY_S, KNOWS_S, Fleet
from router.cache.memory import MemoryCache
from router.cache.shared import FINISH, LOOK_UP, entry_key, flight_key
from router.redis_link import RedisLink, RedisUnavailable

PATIENCE_S = 0.025  # of one look-up; with as much for the conversation, a request waits 50 ms for Redis at most
LEASE_S = 3.0
HANDED_OVER_S = 5.0
_MOST_WRITING = 1_000
_MOST_WRITING_BYTES = 64 * 1024 * 1024
_MARKS_ROOM = 16 * 1024  # what an entry has beside its body, and what compression may add to it


class RedisCache:
    """A CacheBackend over a link, with `memory` as its copy in this process.

    `clock` gives seconds that never go back, `wall_clock` Unix seconds, `new_token` 32 hex digits that nobody guesses.
    `process` names this one. The link is not closed with the cache: others may use it.
    """

    def __init__(
        self,
        link: RedisLink,
        memory: MemoryCache,
        codec: EntryCodec,
        *,
        process: str,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        new_token: Callable[[], str],
    ) -> None:
        self._link = link
        self._memory = memory
        self._codec = codec
        self._clock = clock
        self._new_token = new_token
        self._fleet = Fleet(link, memory, process=process, clock=clock, wall_clock=wall_clock, stats=self.stats)
        self._writing: set[asyncio.Task[None]] = set()
        self._writing_bytes = 0
        self._hits = self._misses = self._waits = self._leads = self._handed_over = 0
        self._unasked = self._unanswered = self._corrupt = self._stored = self._unwritten = 0

    def now_ns(self) -> int:
        """The time of Redis in Unix nanoseconds, as far as it is known; else this machine's."""
        return self._fleet.now_ns()

    def near(self, key: str) -> CacheEntry | None:
        """This process's own copy, while it can still have heard of every purge."""
        return self._memory.near(key) if self._fleet.unheard_s() <= COPY_S else None

    async def look_up(self, key: str, max_bytes: int, *, follows: str | None = None, is_claiming: bool = True) -> Found:
        """See `CacheBackend`; takes `PATIENCE_S` at most."""
        if self._fleet.unheard_s() > KNOWS_S:
            self._unasked += 1
            return NOTHING
        last, token = max_bytes + _MARKS_ROOM, self._new_token() if is_claiming else ""
        names = [entry_key(key), flight_key(key)]
        try:
            if is_claiming:
                lease_ms = int(LEASE_S * 1000)
                reply = await self._link.run(
                    LOOK_UP, names, [last, token, follows or "", lease_ms], within_s=PATIENCE_S
                )
            else:
                reply = [b"entry", await self._link.ask("GETRANGE", names[0], 0, last, within_s=PATIENCE_S)]
        except RedisUnavailable as exc:
            self._unanswered += 1
            if exc.is_reply and "WRONGTYPE" in exc.reason:
                self._remove(key)
            elif is_claiming and not exc.is_reply:
                self._finish(key, token)  # the lead may have been taken, and nobody would know
                return UNANSWERED if self._link.is_up else NOTHING
            return NOTHING
        return self._understood(key, max_bytes, token, reply)

    def put(self, key: str, entry: CacheEntry, lead: str | None = None) -> bool:
        """Keep an entry here at once and in Redis soon; ends the lead."""
        now_ns = self.now_ns()
        ttl_ms = min(entry.expires_at_ns - now_ns, MAX_TTL_S * 10**9) // 10**6
        if ttl_ms <= 0 or self._fleet.is_purged(entry):
            if lead is not None:
                self.release(key, lead)
            return False
        is_here = self._memory.put(key, entry, now_ns=now_ns)
        data = self._codec.encode(key, entry)
        if data is None or not self._finish(key, lead or "", data, ttl_ms):
            if data is None and lead is not None:
                self.release(key, lead)
            return is_here
        self._stored += 1
        return True

    def hand_over(self, key: str, entry: CacheEntry, lead: str) -> None:
        """Give an answer that is not to be kept to those who wait for it in other processes; ends the lead."""
        self._handed_over += 1
        data = self._codec.encode(flight_key(key), entry)
        self._finish(key, lead, handed_over=data or b"")

    def release(self, key: str, lead: str) -> None:
        """There is no answer to share; ends the lead, so that another process takes it."""
        self._finish(key, lead)

    def stats(self) -> Mapping[str, int]:
        """Counts of this process since the start; those of its own copy as `near_…`."""
        return {
            "hits": self._hits,
            "misses": self._misses,
            "waits": self._waits,
            "leads": self._leads,
            "handed_over": self._handed_over,
            "unasked": self._unasked,
            "unanswered": self._unanswered,
            "corrupt": self._corrupt,
            "stored": self._stored,
            "unwritten": self._unwritten,
            **{f"near_{name}": value for name, value in self._memory.stats().items()},
            **self._fleet.stats(),
        }

    async def stats_everywhere(self) -> CacheStats:
        """The counts of every process, and how many entries Redis holds. Raises CacheUnavailable."""
        return await self._fleet.stats_everywhere()

    async def purge(
        self, *, tenant: str | None = None, rule: str | None = None, model: str | None = None, older_than_s: float = 0.0
    ) -> PurgeReport:
        """See `Fleet.purge`. Raises CacheUnavailable."""
        return await self._fleet.purge(tenant=tenant, rule=rule, model=model, older_than_s=older_than_s)

    async def start(self) -> None:
        """Hear of the purges, and keep hearing of them."""
        await self._fleet.start()

    async def close(self) -> None:
        """Wait for what is being written (each write ends with the link's deadline), and be heard of no more."""
        while self._writing:
            await asyncio.gather(*self._writing)
        await self._fleet.close()

    def _understood(self, key: str, max_bytes: int, token: str, reply: Any) -> Found:
        kind, *more = reply
        match kind, more:
            case b"entry", [b""]:
                self._misses += 1
                return NOTHING
            case b"entry", [bytes(data)]:
                entry = self._codec.decode(key, data, max_bytes)
                if entry is None and self._codec.is_too_large(data, max_bytes):
                    self._misses += 1  # another rule keeps larger answers: the entry stays
                    return NOTHING
                if entry is None:
                    self._corrupt += 1
                elif entry.expires_at_ns > self.now_ns() and not self._fleet.is_purged(entry):
                    self._hits += 1
                    self._memory.put(key, entry, now_ns=self.now_ns())
                    return Found(entry)
                self._misses += 1
                self._remove(key)
            case b"handed", [bytes(data)]:
                entry = self._codec.decode(flight_key(key), data, max_bytes)
                if entry is not None:
                    return Found(entry, was_awaited=True)
                self._corrupt += 1
            case b"leader", [bytes(other)]:
                self._waits += 1
                return Found(leader=other.decode("latin-1"))
            case b"lead", []:
                self._misses += 1
                self._leads += 1
                self._fleet.leads[key] = token
                return Found(lead=token)
            case _:  # `alone`, or nothing that we ever said
                self._misses += 1
        return NOTHING

    def _remove(self, key: str) -> None:
        """Delete what is under our names for this key, whatever it is."""
        self._write(self._asked("UNLINK", entry_key(key), flight_key(key)), 0)

    def _finish(self, key: str, lead: str, data: bytes = b"", ttl_ms: int = 0, handed_over: bytes = b"") -> bool:
        """Begin to write what ends a lead; False when too much is being written already (a lead then lapses)."""
        self._fleet.leads.pop(key, None)
        arguments: list[bytes | str | int] = [lead, data, ttl_ms, handed_over, int(HANDED_OVER_S * 1000)]
        run = self._link.run(FINISH, [entry_key(key), flight_key(key)], arguments)
        return self._write(run, len(data) + len(handed_over))

    async def _asked(self, *command: str) -> Any:
        return await self._link.ask(*command)

    def _write(self, command: Coroutine[Any, Any, Any], size: int) -> bool:
        if len(self._writing) >= _MOST_WRITING or self._writing_bytes + size > _MOST_WRITING_BYTES:
            self._unwritten += 1
            command.close()
            return False
        self._writing_bytes += size
        task = asyncio.get_running_loop().create_task(self._written(command, size))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return True

    async def _written(self, command: Coroutine[Any, Any, Any], size: int) -> None:
        try:
            await command
        except RedisUnavailable:
            self._unwritten += 1
        finally:
            self._writing_bytes -= size
