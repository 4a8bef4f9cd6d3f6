"""What the tests of the cache share: entries, clocks, and caches over a Redis of their own."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from router.cache.codec import EntryCodec
from router.cache.entry import CacheEntry
from router.cache.fleet import COPY_S
from router.cache.memory import MemoryCache
from router.cache.redis import RedisCache
from router.redis_link import RedisLink
from router.usage import Iteration, Tokens, Usage

SECOND_NS = 10**9
NOW_NS = 1_795_000_000 * SECOND_NS
SECRET = b"the owner's secret"
Join = Callable[..., Awaitable["Process"]]  # see the fixture `join`
USAGE = Usage(Tokens(100, 20, 3, 4, 50), 7, 1, (Iteration("compaction", None, Tokens(5)),), "standard", "us", None)


class Clock:
    """Seconds that pass when told to."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Shifted:
    """A clock that runs, ahead of the true one by seconds that a test may change."""

    clock: Callable[[], float]
    ahead_s: float = 0.0

    def __call__(self) -> float:
        return self.clock() + self.ahead_s


def a_key(name: object = "k") -> str:
    """A key as `cache_key` makes them: 64 hex digits, the same for the same name."""
    return str(name).encode().hex().rjust(64, "0")[-64:]


def an_entry(
    body: bytes = b"body",
    *,
    now_ns: int = NOW_NS,
    ttl_s: float = 60.0,
    asked_s_ago: float = 0.0,
    tenant: str = "a",
    rule: str = "r",
    model: str = "m",
) -> CacheEntry:
    """An entry that was asked for `asked_s_ago` and lives for `ttl_s` from now on."""
    return CacheEntry(
        status=200,
        headers=[(b"content-type", b"application/json"), (b"request-id", b"req_1")],
        body=body,
        usage=USAGE,
        model_answered="m-1",
        stop_reason="end_turn",
        asked_at_ns=now_ns - int(asked_s_ago * SECOND_NS),
        expires_at_ns=now_ns + int(ttl_s * SECOND_NS),
        tenant=tenant,
        rule=rule,
        model=model,
    )


@dataclass
class Process:
    """One process of a fleet: its cache, its link, and its clocks, which run and can be set ahead."""

    cache: RedisCache
    link: RedisLink
    clock: Shifted
    wall_clock: Shifted

    async def close(self) -> None:
        """End in good order."""
        await self.cache.close()
        await self.link.close()

    async def written(self) -> None:
        """Wait until nothing is being written: nobody else ever needs to know."""
        await written(self.cache)


def a_process(
    url: str,
    *,
    name: str | None = None,
    wall_ahead_s: float = 0.0,
    max_bytes: int = 5 * 10**6,
    secret: bytes = SECRET,
    deadline_s: float = 5.0,
) -> Process:
    """A process as `stores` opens it, but patient: a busy machine must not look like a slow Redis."""
    clock, wall_clock = Shifted(time.monotonic), Shifted(time.time, wall_ahead_s)
    link = RedisLink(url, deadline_s=deadline_s, give_up_s=5.0, rest_s=0.02)
    cache = RedisCache(
        link,
        MemoryCache(max_bytes, clock, wall_clock, COPY_S),
        EntryCodec(secret),
        process=name or f"process-{secrets.token_hex(3)}",
        clock=clock,
        wall_clock=wall_clock,
        new_token=lambda: secrets.token_hex(16),
    )
    return Process(cache, link, clock, wall_clock)


async def written(cache: object) -> None:
    """Wait until a cache is writing nothing."""
    while tasks := getattr(cache, "_writing", None):
        await asyncio.wait(tuple(tasks))
        await asyncio.sleep(0)


async def until(holds: Callable[[], object], within_s: float = 10.0) -> None:
    """Wait until something holds that nothing tells of."""
    ends_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < ends_s, f"not so within {within_s} s"
        await asyncio.sleep(0.005)


async def eventually(claim: Callable[[], Awaitable[object]], within_s: float = 10.0) -> None:
    """Wait until a claim that has to be asked for holds."""
    ends_s = time.monotonic() + within_s
    while not await claim():
        assert time.monotonic() < ends_s, f"not so within {within_s} s"
        await asyncio.sleep(0.005)
