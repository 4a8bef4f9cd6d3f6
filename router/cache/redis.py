"""The cache in Redis, shared by workers and replicas, behind a bounded copy in this process.

Theory of operation. Redis is asked once per look-up, for a few hundredths of a second at most, in one program that
reads the entry and, where there is none, says who makes the upstream call: the first to ask takes the *lead* (a token
that lapses within `LEASE_S` seconds unless it is renewed), every other process waits and asks again. So a process that
dies holds nobody up, and of any number of identical requests one goes upstream. Writes wait for nobody: they go on
behind the answer, and what Redis does not take is counted. Whatever of this was not done is also a line of the log at
`debug`, with the key: so it can be told why a request that is cached went upstream once more.

An entry is used only while this process knows of every purge (`fleet.Fleet`): the shared ones for `KNOWS_S` after it
last heard of them, its own copies for `COPY_S`. Whatever is not exactly what was written is a miss, deleted, counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from router.cache.codec import EntryCodec
from router.cache.entry import MAX_TTL_S, NOTHING, UNANSWERED, CacheEntry, CacheStats, Found, PurgeReport
from router.cache.fleet import COPY_S, KNOWS_S, Fleet
from router.cache.memory import MemoryCache
from router.cache.shared import FINISH, LOOK_UP, handed_key, keys_of
from router.redis_link import RedisLink, RedisUnavailable

_log = logging.getLogger("router")
PATIENCE_S = 0.025  # of one look-up; with as much for the conversation, a request waits 50 ms for Redis at most
LEASE_S = 3.0
HANDED_OVER_S = 5.0
_MOST_WRITING = 1_000
_MOST_WRITING_BYTES = 64 * 1024 * 1024
_MOST_SHARED_BYTES = 512 * 1024  # of an entry as it is stored: 25 ms carry so much over a network of 200 Mbit/s
_MOST_BODY_BYTES = 8 * 1024 * 1024  # of an answer that may come to so little by compression
_IN_THE_LOOP = 64 * 1024  # bytes that are encoded or decoded without a thread: a millisecond at most
_TOKEN_BYTES = 32  # before what is handed over
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
        self._new_token = new_token
        self._fleet = Fleet(link, memory, process=process, clock=clock, wall_clock=wall_clock, stats=self.stats)
        self._writing: set[asyncio.Task[None]] = set()
        self._writing_bytes = 0
        self._hits = self._misses = self._waits = self._leads = self._handed_over = 0
        self._unasked = self._unanswered = self._corrupt = self._stored = self._unwritten = self._too_large = 0

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
            _say("cache_unasked", key, "not looked up", "what is purged is not known")
            return NOTHING
        max_bytes = min(max_bytes, _MOST_BODY_BYTES)
        last = min(max_bytes + _MARKS_ROOM, _MOST_SHARED_BYTES + _TOKEN_BYTES)
        names, token = keys_of(key), self._new_token() if is_claiming else ""
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
            _say("cache_unanswered", key, "not looked up", exc.reason)
            if exc.is_reply and "WRONGTYPE" in exc.reason:
                self._remove(key)
            elif is_claiming and not exc.is_reply:
                self._finish(key, token)  # the lead may have been taken, and nobody would know
                return UNANSWERED if self._link.is_up else NOTHING
            return NOTHING
        return await self._understood(key, max_bytes, token, reply)

    def put(self, key: str, entry: CacheEntry, lead: str | None = None) -> bool:
        """Keep an entry here at once and in Redis soon; ends the lead."""
        now_ns = self.now_ns()
        ttl_ms = min(entry.expires_at_ns - now_ns, MAX_TTL_S * 10**9) // 10**6
        if ttl_ms <= 0 or self._fleet.is_purged(entry):
            if lead is not None:
                self.release(key, lead)
            return False
        is_here = self._memory.put(key, entry, now_ns=now_ns)
        if len(entry.body) > _MOST_BODY_BYTES:
            self._too_large += 1
            self._finish(key, lead or "")
            return is_here
        self._forget_lead(key, lead or "")
        share = self._share(key, key, entry, lead or "", ttl_ms)
        return self._write(share, key, "an answer", len(entry.body)) or is_here

    def hand_over(self, key: str, entry: CacheEntry, lead: str) -> None:
        """Give an answer that is not to be kept to those who wait for it in other processes; ends the lead."""
        self._handed_over += 1
        self._forget_lead(key, lead)
        self._write(self._share(key, handed_key(key), entry, lead), key, "what is handed over", len(entry.body))

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
            "too_large": self._too_large,
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

    async def _understood(self, key: str, max_bytes: int, token: str, reply: Any) -> Found:
        match reply:
            case [b"entry", b""]:
                self._misses += 1
                return NOTHING
            case [b"entry", bytes(data)]:
                entry = await self._decoded(key, data, max_bytes)
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
            case [b"handed", bytes(data)]:
                entry = await self._decoded(handed_key(key), data, max_bytes)
                if entry is not None:
                    return Found(entry)
                self._corrupt += not self._codec.is_too_large(data, max_bytes)
            case [b"leader", bytes(other)]:
                self._waits += 1
                return Found(leader=other.decode("latin-1"))
            case [b"lead"]:
                self._misses += 1
                self._leads += 1
                self._fleet.leads[key] = token
                return Found(lead=token)
            case [b"alone"]:
                self._misses += 1
            case _:  # nothing that our program says
                self._corrupt += 1
        return NOTHING

    async def _decoded(self, key: str, data: bytes, max_bytes: int) -> CacheEntry | None:
        if len(data) <= _IN_THE_LOOP:
            return self._codec.decode(key, data, max_bytes)
        return await asyncio.to_thread(self._codec.decode, key, data, max_bytes)

    async def _share(self, key: str, name: str, entry: CacheEntry, lead: str, ttl_ms: int = 0) -> None:
        """Write an entry, or without `ttl_ms` hand it over, unless it is too large to be read in time; end the lead."""
        data: bytes | None = None
        if len(entry.body) <= _IN_THE_LOOP:
            data = self._codec.encode(name, entry)
        else:
            data = await asyncio.to_thread(self._codec.encode, name, entry)
        if data is None or len(data) > _MOST_SHARED_BYTES:
            self._too_large += 1
            data = b""
        await self._end(key, lead, *((data, ttl_ms, b"") if ttl_ms else (b"", 0, data)))
        self._stored += bool(data and ttl_ms)

    def _remove(self, key: str) -> None:
        """Delete what is under our names for this key, whatever it is."""
        self._write(self._asked("UNLINK", *keys_of(key)), key, "a deletion")

    def _finish(self, key: str, lead: str) -> None:
        """Begin to end a lead; where too much is being written already it lapses by itself."""
        self._forget_lead(key, lead)
        self._write(self._end(key, lead, b"", 0, b""), key, "the end of a lead")

    def _forget_lead(self, key: str, lead: str) -> None:
        """It is renewed no more; that of another call with this key is."""
        if self._fleet.leads.get(key) == lead:
            del self._fleet.leads[key]

    async def _end(self, key: str, lead: str, data: bytes, ttl_ms: int, handed_over: bytes) -> None:
        arguments: list[bytes | str | int] = [lead, data, ttl_ms, handed_over, int(HANDED_OVER_S * 1000)]
        await self._link.run(FINISH, keys_of(key), arguments)

    async def _asked(self, *command: str) -> Any:
        return await self._link.ask(*command)

    def _write(self, command: Coroutine[Any, Any, Any], key: str, what: str, size: int = 0) -> bool:
        if len(self._writing) >= _MOST_WRITING or self._writing_bytes + size > _MOST_WRITING_BYTES:
            self._unwritten += 1
            _say("cache_unwritten", key, f"{what} not written", "too much is being written")
            command.close()
            return False
        self._writing_bytes += size
        task = asyncio.get_running_loop().create_task(self._written(command, key, what, size))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return True

    async def _written(self, command: Coroutine[Any, Any, Any], key: str, what: str, size: int) -> None:
        try:
            await command
        except Exception as exc:  # a sink: whatever keeps an answer from being shared takes it from nobody
            self._unwritten += 1
            reason = exc.reason if isinstance(exc, RedisUnavailable) else type(exc).__name__
            _say("cache_unwritten", key, f"{what} not written", reason)
        finally:
            self._writing_bytes -= size


def _say(event: str, key: str, what: str, reason: str) -> None:
    """One line at `debug` about a key of the cache, a hash that says nothing of the request."""
    _log.debug("cache: %s: %s: %s", key, what, reason, extra={"event": event})
