"""Opens what processes share: the response cache, and where conversations are remembered; one link per Redis."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from urllib.parse import parse_qs, urlsplit

from router.affinity.memory import MemoryAffinity
from router.affinity.redis import RedisAffinity
from router.cache.codec import EntryCodec
from router.cache.desk import Opened
from router.cache.fleet import COPY_S
from router.cache.memory import MemoryCache
from router.cache.redis import RedisCache
from router.errors import SettingsError
from router.redis_link import RedisLink, check_redis_url
from router.seams import AffinityStore, CacheBackend
from router.settings import Settings
from router.urls import without_password

_log = logging.getLogger("router")

_MEMORY_MB = 256
_COPY_MB = 64
_Linker = Callable[[str, str, str], RedisLink]  # URL, name of its figures, what it is used for
_CACHE_FORMS = (
    "`memory://?max_mb=256`, `off`, `redis://…`, `rediss://…`, `redis+sentinel://…` or `redis+cluster://…`, "
    "each with `?max_mb=64` for this process's own copies"
)


@dataclass(frozen=True, slots=True)
class Stores:
    """What was opened; None for what is off. `links` are by the name of their figures in the metrics."""

    cache: CacheBackend | None
    affinity: AffinityStore | None
    links: Mapping[str, RedisLink]

    async def close(self) -> None:
        """Close the stores, then the links below them."""
        try:
            for store in (self.cache, self.affinity):
                if store is not None:
                    await store.close()
        finally:
            for link in self.links.values():
                await link.close()


def open_stores(settings: Settings) -> Stores:
    """The stores that the settings name. Connects to nothing. Raises SettingsError."""
    links: dict[str, RedisLink] = {}
    by_url: dict[str, RedisLink] = {}

    voices: dict[str, _Voice] = {}

    def link(url: str, name: str, use: str) -> RedisLink:
        if url in by_url:
            voices[url].uses.append(use)
        else:
            voices[url] = _Voice(use)
            by_url[url] = links[name] = RedisLink(url, observe=voices[url])
        return by_url[url]

    cache = _open_cache(settings, link)
    affinity = _open_affinity(settings.affinity, link)
    return Stores(cache, affinity, links)


def check_stores(settings: Settings) -> None:
    """Refuse what `open_stores` would refuse. Raises SettingsError."""
    if settings.cache != "off":
        _split(settings.cache)
    if settings.affinity not in ("off", "memory://"):
        check_redis_url(settings.affinity)


def cache_secret(settings: Settings) -> bytes:
    """What keys the cache keys and the checksums of entries: of the owner's secret, and of the upstream asked.

    Replicas that share a cache have both in common; an answer of one upstream is none of another.
    """
    said = f"{settings.tenant_secret or ''}\0{settings.upstream_url}"
    return hashlib.sha256(b"model-router cache\0" + said.encode()).digest()


def open_maintenance_cache(settings: Settings) -> tuple[RedisCache, RedisLink]:
    """The shared cache for a command that looks after it, patiently, and serves nobody. Raises SettingsError."""
    url, _ = _split(settings.cache)
    link = RedisLink(url, deadline_s=5.0, give_up_s=5.0)
    return _redis_cache(settings, link, 1), link


def maintained(settings: Settings, cache: CacheBackend | None) -> Opened | None:
    """How `CacheDesk` gets at the cache of a router, which is `cache`; None where it is off.

    A shared one is opened anew each time: a look through all of it over the link of the requests would have that link
    rest.
    """
    if cache is None:
        return None
    if not isinstance(cache, RedisCache):
        return lambda: nullcontext(cache)
    return partial(maintenance_cache, settings)


@asynccontextmanager
async def maintenance_cache(settings: Settings) -> AsyncIterator[CacheBackend]:
    """What `open_maintenance_cache` opens, closed at the end. Raises SettingsError."""
    cache, link = open_maintenance_cache(settings)
    try:
        yield cache
    finally:
        await cache.close()
        await link.close()


def _open_cache(settings: Settings, link: _Linker) -> CacheBackend | None:
    if settings.cache == "off":
        return None
    url, max_mb = _split(settings.cache)
    if url.startswith("memory:"):
        return MemoryCache((max_mb or _MEMORY_MB) * 1024 * 1024, time.monotonic, time.time)
    return _redis_cache(settings, link(url, "redis", "answers"), max_mb or _COPY_MB)


def _redis_cache(settings: Settings, link: RedisLink, max_mb: int) -> RedisCache:
    return RedisCache(
        link,
        MemoryCache(max_mb * 1024 * 1024, time.monotonic, time.time, COPY_S),
        EntryCodec(cache_secret(settings)),
        process=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}",
        clock=time.monotonic,
        wall_clock=time.time,
        new_token=lambda: secrets.token_hex(16),
    )


def _open_affinity(url: str, link: _Linker) -> AffinityStore | None:
    if url == "off":
        return None
    memory = MemoryAffinity(clock=time.monotonic)
    if url == "memory://":
        return memory
    check_redis_url(url)
    return RedisAffinity(link(url, "redis_affinity", "conversations"), memory)


def _split(given: str) -> tuple[str, int | None]:
    """The URL of `cache` → (without its options, megabytes of own copies). Raises SettingsError."""
    url, mark, query = given.partition("?")
    options = parse_qs(query, keep_blank_values=True, strict_parsing=False)
    megabytes = options.get("max_mb", [])
    is_ours = set(options) <= {"max_mb"} and bool(mark) == bool(options)
    if not is_ours or any(not text.isdecimal() or not 0 < int(text) < 10**6 for text in megabytes):
        raise _wrong_cache(given)
    if urlsplit(url).scheme == "memory":
        if url != "memory://":
            raise _wrong_cache(given)
    elif "redis" in url.partition(":")[0]:
        check_redis_url(url)
    else:
        raise _wrong_cache(given)
    return url, int(megabytes[-1]) if megabytes else None


def _wrong_cache(given: str) -> SettingsError:
    return SettingsError(f"`cache` is `{without_password(given)}`", hint=f"expected {_CACHE_FORMS}")


class _Voice:
    """Says once of each change whether Redis answers; `uses` are what it is used for."""

    def __init__(self, use: str) -> None:
        self.uses = [use]

    def __call__(self, is_up: bool, reason: str) -> None:
        uses = " and ".join(self.uses)
        if is_up:
            _log.info("redis: back, %s are shared again", uses)
        else:
            _log.error("redis: %s; until it is back, %s are not shared", reason, uses)
