"""What the processes that share a cache must agree on: the time, the purges in force, and who is there.

Theory of operation. A purge is a line in one hash of Redis. Every process reads that hash each `BEAT_S`, forgets the
copies that are meant, and writes down which purges it knows. So a purge costs one write however large the cache is; it
is in force when every process that is alive has written that it knows it, which is what `purge` waits for; and only
then the entries are looked through and deleted, to give their memory back. A process that has not heard for `KNOWS_S`
stops using the shared entries, and after `COPY_S` its own copies too: it cannot know what was purged.

Purges count by the clock of Redis, which each beat compares with ours: no two hosts need agree. They are forgotten
after the longest time that an entry may live. What Redis lost of them (a restart, an eviction, a failover) is put back
by whoever knows it.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import orjson

from router.cache.codec import MARKS_BYTES, marks_of
from router.cache.entry import MAX_TTL_S, CacheEntry, CacheStats, Purge, PurgeReport, summed
from router.cache.memory import MemoryCache
from router.cache.shared import ENTRY_PREFIX, PROCESSES, PURGES, RENEW, TRIM, flight_key
from router.errors import CacheUnavailable
from router.redis_link import RedisLink, RedisUnavailable

BEAT_S = 0.25
KNOWS_S = 2.0
COPY_S = 60.0
_ACKNOWLEDGED_S = 3.0  # how long a purge waits for the processes that are alive
_STALE_MS = 60_000  # a process that was not heard of for so long is forgotten
_MOST_PURGES = 500
_LEASE_MS = 3000  # of a lead, from its last renewal
_NAME_CHARS = 16  # of a purge
_LONGEST_LINE = 64 * 1024  # bytes of a purge
_SWEEP_PAGE = 32  # so few that in a router the requests have their turn in between
_BEATS_TO_RENEW = 4
_MARGIN_NS = 50 * 10**6  # how far a process may be off the clock of Redis
_STEP_NS = 4 * _MARGIN_NS  # a clock that is further off than before was set


class Fleet:
    """This process among those that share a cache over `link`; `memory` are its own copies, `stats` gives its counts.

    `clock` gives seconds that never go back, `wall_clock` Unix seconds. `leads` are the calls that this process makes
    for all, by cache key: whoever takes or ends one says so here, and it is renewed meanwhile.
    """

    def __init__(
        self,
        link: RedisLink,
        memory: MemoryCache,
        *,
        process: str,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        stats: Callable[[], Mapping[str, int]],
    ) -> None:
        self._link = link
        self._memory = memory
        self._process = process
        self._clock = clock
        self._wall_clock = wall_clock
        self._stats = stats
        self.leads: dict[str, str] = {}
        self._purges: dict[str, Purge] = {}
        self._offset_ns = 0  # of Redis's clock from ours
        self._heard_s = float("-inf")
        self._is_member = False  # one that serves, and must acknowledge purges
        self._beating: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._beats = self._beats_failed = self._foreign = 0

    def now_ns(self) -> int:
        """Unix nanoseconds by the clock of Redis."""
        return int(self._wall_clock() * 1e9) + self._offset_ns

    def unheard_s(self) -> float:
        """Seconds since this process last knew of every purge."""
        return self._clock() - self._heard_s

    def is_purged(self, entry: CacheEntry) -> bool:
        """Whether a purge means this entry, or cannot tell: one dated ahead of the clock of Redis."""
        return entry.asked_at_ns > self.now_ns() + _MARGIN_NS or any(
            purge.takes(entry) for purge in self._purges.values()
        )

    def stats(self) -> Mapping[str, int]:
        """Purges in force, beats that failed, and things under our names that are not ours."""
        return {"purges": len(self._purges), "beats_failed": self._beats_failed, "foreign": self._foreign}

    async def start(self) -> None:
        """The first beat, then one each `BEAT_S`.

        Until one went well no answer is shared. So where the first was too slow, for the connection had yet to be made,
        there is another one at once; not where Redis is away. Each step ends with the link's deadline.
        """
        self._is_member = True
        for _ in range(2):
            try:
                await self._beat()
            except Exception:  # as below: a router starts whatever Redis says
                self._beats_failed += 1
            if self._beats or not self._link.is_up:
                break
        self._beating = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop, and be no longer among the processes."""
        self._closing.set()
        if self._beating is not None:
            await self._beating
            try:
                await self._link.ask("HDEL", PROCESSES, self._process)
            except RedisUnavailable:
                pass  # the others see that it was not heard of

    async def purge(
        self, *, tenant: str | None = None, rule: str | None = None, model: str | None = None, older_than_s: float = 0.0
    ) -> PurgeReport:
        """Put a purge in force everywhere, then delete what it means. Raises CacheUnavailable when it cannot begin."""
        name = secrets.token_hex(_NAME_CHARS // 2)
        deleted, problem = 0, ""
        try:
            known = await self._read_purges()
            now_ns = _time_ns(await self._link.ask("TIME"))
            purge = Purge(now_ns + (_MARGIN_NS if older_than_s <= 0 else -int(older_than_s * 1e9)), tenant, rule, model)
            if len(known) >= _MOST_PURGES:  # too many to look through at each hit: one that takes more than was asked
                widest = Purge(max(now_ns, *(each.until_ns for each in known.values())))
                await self._link.ask("HSET", PURGES, secrets.token_hex(_NAME_CHARS // 2), _written(widest))
                await self._link.ask("HDEL", PURGES, *known)
            self._purges[name] = purge  # known before it is written: what Redis loses again is put back
            self._memory.forget(purge)
            try:
                await self._link.ask("HSET", PURGES, name, _written(purge))
            except RedisUnavailable as exc:
                if not exc.is_reply:
                    raise
                async for count in self._swept(purge):  # a full store takes no line of ours, but gives room
                    deleted += count
                await self._link.ask("HSET", PURGES, name, _written(purge))
        except RedisUnavailable as exc:
            raise CacheUnavailable(
                f"the purge is not in force: redis: {exc.reason}", hint="repeat it when Redis answers", retryable=True
            ) from exc
        await self._beat()
        told: int = 0
        unheard: tuple[str, ...] = ()
        try:
            told, unheard = await self._acknowledged(name)
            async for count in self._swept(purge):
                deleted += count
        except RedisUnavailable as exc:
            problem = f"redis: {exc.reason}"
        return PurgeReport(deleted, told, unheard, problem)

    async def stats_everywhere(self) -> CacheStats:
        """The counts of every process that is alive, and how many entries Redis holds. Raises CacheUnavailable."""
        try:
            processes = {name: counts for name, (_, _, counts) in (await self._read_processes()).items()}
            stored = 0
            async for page in self._link.scan(ENTRY_PREFIX + "*"):
                stored += len(page)
        except RedisUnavailable as exc:
            raise CacheUnavailable(f"redis: {exc.reason}", hint="requests are served without the cache") from exc
        return CacheStats(processes, stored, summed(processes.values()))

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    await self._closing.wait()
                    return
            except TimeoutError:
                try:
                    await self._beat()
                except Exception:  # whatever Redis says, the next beat may go well; until one does nothing is replayed
                    self._beats_failed += 1

    async def _beat(self) -> None:
        """Compare clocks, hear of purges, say what is known, renew the leads."""
        began_s, wall_s = self._clock(), self._wall_clock()
        try:
            known, time = await asyncio.gather(self._read_purges(), self._link.ask("TIME"))
            redis_ns = _time_ns(time)
        except RedisUnavailable as exc:
            self._beats_failed += 1
            if exc.is_reply and "WRONGTYPE" in exc.reason:
                await self._tried(self._link.ask("DEL", PURGES))
            elif not exc.is_reply:  # too slow, perhaps because something huge is among our lines
                await self._tried(self._link.run(TRIM, [PURGES], [_LONGEST_LINE]))
            return
        passed_s = self._clock() - began_s
        offset_ns = redis_ns - int((wall_s + passed_s / 2) * 1e9)
        if passed_s * 1e9 <= 2 * _MARGIN_NS or self._beats == 0:  # one that was held up says too little of the time
            if abs(offset_ns - self._offset_ns) > _STEP_NS:
                self._memory.forget_all()  # copies dated by a clock that no purge counts by
            self._offset_ns = offset_ns
        self._learn(known)
        if self._is_member:
            said = {"at_ms": self.now_ns() // 10**6, "knows": _digest(self._purges), "counts": dict(self._stats())}
            try:
                await self._link.ask("HSET", PROCESSES, self._process, orjson.dumps(said))
            except RedisUnavailable as exc:
                self._beats_failed += 1
                if not exc.is_reply:  # a store that takes no writes takes no purge either
                    return
                if "WRONGTYPE" in exc.reason:
                    await self._tried(self._link.ask("DEL", PROCESSES))
        self._heard_s = began_s
        steps = [self._link.ask("HSETNX", PURGES, name, _written(self._purges[name])) for name in self._lost(known)]
        if self._is_member and (over := [name for name, purge in known.items() if self._is_over(purge)]):
            steps.append(self._link.ask("HDEL", PURGES, *over))  # nobody says that it knows these any more
        self._beats += 1
        if self._beats % _BEATS_TO_RENEW == 0:
            steps += [self._link.run(RENEW, [flight_key(key)], [lead, _LEASE_MS]) for key, lead in self.leads.items()]
        await asyncio.gather(*map(self._tried, steps))

    def _learn(self, known: Mapping[str, Purge]) -> None:
        for name, purge in known.items():
            if name not in self._purges and not self._is_over(purge):
                self._purges[name] = purge
                self._memory.forget(purge)
        for name, purge in list(self._purges.items()):
            is_merged = name not in known and any(other.covers(purge) for other in known.values())
            if is_merged or self._is_over(purge):
                del self._purges[name]

    def _is_over(self, purge: Purge) -> bool:
        """Whether no entry can live that the purge means."""
        return purge.until_ns <= self.now_ns() - (MAX_TTL_S + 86_400) * 10**9

    def _lost(self, known: Mapping[str, Purge]) -> list[str]:
        return [name for name in self._purges if name not in known]

    async def _tried(self, step: Any) -> None:
        try:
            await step
        except RedisUnavailable:
            self._beats_failed += 1

    async def _read_purges(self) -> dict[str, Purge]:
        reply = await self._link.ask("HGETALL", PURGES)
        purges: dict[str, Purge] = {}
        foreign: list[bytes] = []
        for name, value in _pairs(reply):
            purge = _read(value) if len(name) == _NAME_CHARS and name.isalnum() else None
            if purge is None:
                foreign.append(name)
            else:
                purges[name.decode()] = purge
        if foreign:
            self._foreign += len(foreign)
            await self._tried(self._link.ask("HDEL", PURGES, *foreign))
        return purges

    async def _read_processes(self) -> dict[str, tuple[int, str, dict[str, int]]]:
        """name → (milliseconds since it was heard of, digest of what it knows, counts); the long gone are deleted."""
        reply, time = await asyncio.gather(self._link.ask("HGETALL", PROCESSES), self._link.ask("TIME"))
        now_ms = _time_ns(time) // 10**6
        found: dict[str, tuple[int, str, dict[str, int]]] = {}
        gone: list[bytes] = []
        for name, value in _pairs(reply):
            try:
                said = orjson.loads(value)
                silent_ms = now_ms - int(said["at_ms"])
                counts = {str(count): int(number) for count, number in said["counts"].items()}
                knows = str(said["knows"])
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
                silent_ms, knows, counts = _STALE_MS + 1, "", {}
            if abs(silent_ms) > _STALE_MS:  # ahead: the clock was set back, and nobody has written this since
                gone.append(name)
            else:
                found[name.decode("latin-1")] = (silent_ms, knows, counts)
        if gone:
            await self._link.ask("HDEL", PROCESSES, *gone)
        return found

    async def _acknowledged(self, name: str) -> tuple[int, tuple[str, ...]]:
        """Wait until every process that is alive knows the purge → (how many do, names of those not heard of).

        Raises RedisUnavailable when that could not be seen.
        """
        began_s = self._clock()
        until_s = began_s + _ACKNOWLEDGED_S
        told: set[str] = set()
        unheard: list[str] = []
        while True:
            failure: RedisUnavailable | None = None
            try:
                known, processes = await asyncio.gather(self._read_purges(), self._read_processes())
                if name in self._purges and name not in known:
                    await self._beat()  # lost with a failover, or merged into another: this puts it back, or learns it
                else:
                    digest = _digest(known)
                    told |= {each for each, (_, knows, _) in processes.items() if knows == digest}
                    unheard = [each for each in processes if each not in told]
                    # Who has just begun, or whose line was lost, is there with the next beat: that much is waited for,
                    # and twice as long where nobody is there at all.
                    if not unheard and self._clock() - began_s > (2 if told else 4) * BEAT_S:
                        return len(told), ()
            except RedisUnavailable as exc:
                failure = exc
            if self._clock() > until_s:
                if failure is not None:
                    raise failure
                return len(told), tuple(unheard)
            await asyncio.sleep(BEAT_S / 5)

    async def _swept(self, purge: Purge) -> AsyncIterator[int]:
        """Look through all entries and delete those that the purge means; how many, page by page.

        Those dated ahead of Redis's clock too, whatever the age: a failover may have set that back, and when it has
        caught up nobody could tell that they are older than the purge.
        """
        ahead_ns = _time_ns(await self._link.ask("TIME")) + _STEP_NS
        async for page in self._link.scan(ENTRY_PREFIX + "*"):
            for at in range(0, len(page), _SWEEP_PAGE):
                keys = page[at : at + _SWEEP_PAGE]
                heads = await asyncio.gather(*(self._head(key) for key in keys))
                meant = [key for key, head in zip(keys, heads, strict=True) if _is_meant(purge, head, ahead_ns)]
                yield sum(await asyncio.gather(*(self._link.ask("UNLINK", key) for key in meant)))

    async def _head(self, key: bytes) -> bytes:
        try:
            head: bytes = await self._link.ask("GETRANGE", key, 0, MARKS_BYTES - 1)
            return head
        except RedisUnavailable as exc:
            if exc.is_reply:
                return b"?"  # not even a string: nothing of ours
            raise


def _is_meant(purge: Purge, head: bytes, ahead_ns: int) -> bool:
    """Whether an entry that begins like this is to be deleted; one that cannot be read always is."""
    if not head:
        return False  # gone meanwhile
    marks = marks_of(head)
    if marks is None:
        return True
    asked_at_ns, *names = marks
    return purge.takes_what(asked_at_ns if asked_at_ns < ahead_ns else 0, *names)


def _pairs(reply: Any) -> Iterator[tuple[bytes, bytes]]:
    """The fields of a hash. Raises RedisUnavailable when the reply is none."""
    if not isinstance(reply, list) or len(reply) % 2 or not all(isinstance(part, bytes) for part in reply):
        raise RedisUnavailable("an answer that is no hash")
    return zip(reply[::2], reply[1::2], strict=True)


def _time_ns(reply: Any) -> int:
    """Unix nanoseconds from what TIME says. Raises RedisUnavailable when it says no time."""
    try:
        seconds, microseconds = reply
        return int(seconds) * 10**9 + int(microseconds) * 1000
    except (TypeError, ValueError):
        raise RedisUnavailable("an answer that is no time") from None


def _digest(known: Mapping[str, Any]) -> str:
    return hashlib.blake2b(",".join(sorted(known)).encode(), digest_size=8).hexdigest()


def _written(purge: Purge) -> bytes:
    return orjson.dumps({"until_ns": purge.until_ns, "tenant": purge.tenant, "rule": purge.rule, "model": purge.model})


def _read(value: bytes) -> Purge | None:
    try:
        said = orjson.loads(value)
        names = [said[name] for name in ("tenant", "rule", "model")]
        if type(said["until_ns"]) is int and all(name is None or isinstance(name, str) for name in names):
            return Purge(said["until_ns"], *names)
    except (ValueError, TypeError, KeyError):
        pass
    return None
