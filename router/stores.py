"""Opens what processes share: the response cache, where conversations are remembered, what was decided about batches.

One link per Redis, but for the decisions: they are worth waiting for, and have a patient one of their own.
"""

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
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from router.affinity.memory import MemoryAffinity
from router.affinity.redis import RedisAffinity
from router.cache.codec import EntryCodec
from router.cache.desk import Opened
from router.cache.fleet import COPY_S
from router.cache.memory import MemoryCache
from router.cache.redis import RedisCache
from router.errors import SettingsError
from router.fleet_traces import LINK, open_fleet_traces
from router.jobs.jobs_redis import RedisJobs
from router.jobs.jobs_sqlite import SqliteJobs
from router.jobs.redis import RedisDecisions
from router.jobs.sqlite import SqliteDecisions
from router.redis_link import RedisLink, check_redis_url
from router.seams import AffinityStore, BatchDecisions, CacheBackend, JobStore
from router.settings import Settings
from router.trace.fleet import FleetTraces
from router.trace.fleet_read import FleetReader
from router.trace.place import path_of
from router.urls import without_password

_log = logging.getLogger("router")

_MEMORY_MB = 256
_JOBS_DEADLINE_S = 2.0
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
    decisions: BatchDecisions
    jobs: JobStore | None
    links: dict[str, RedisLink]
    fleet_traces: FleetTraces | None = None

    @property
    def fleet_reader(self) -> FleetReader | None:
        """Who reads the fleet's traces; None where there are none."""
        return None if self.fleet_traces is None else FleetReader(self.fleet_traces)

    def gauges(self) -> dict[str, Callable[[], Mapping[str, int]]]:
        """The figures of the links, and of the fleet's traces, by their names in the metrics."""
        found: dict[str, Callable[[], Mapping[str, int]]] = {name: link.stats for name, link in self.links.items()}
        if self.fleet_traces is not None:
            found["fleet_traces"] = self.fleet_traces.stats
        return found

    async def close(self) -> None:
        """Close the stores, then the links below them."""
        try:
            if self.fleet_traces is not None:
                await self.fleet_traces.stop()
            for store in (self.cache, self.affinity, self.decisions, self.jobs):
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
    if settings.upstream_api_key is not None and settings.jobs is None and decisions_file(settings) is None:
        _log.warning(
            "jobs: whose a batch is stays in memory, as `traces` is off: after a restart nobody can reach those made "
            "before; set `jobs: sqlite:///FILE` or `redis://…`"
        )
    decisions = open_decisions(settings, links)
    jobs = open_jobs(settings, links)
    traces = open_fleet_traces(settings, _Voice("the fleet's traces"))
    if traces is not None:
        links[LINK] = traces.link
    return Stores(cache, affinity, decisions, jobs, links, traces)


def open_decisions(settings: Settings, links: dict[str, RedisLink]) -> BatchDecisions:
    """Where decisions about batches are kept; a link that it takes is added to `links`. Raises SettingsError.

    Unset, they are in a file beside that of `traces`; without one, in memory.
    """
    given = settings.jobs
    if given is None or given.startswith("sqlite:"):
        return SqliteDecisions(decisions_file(settings))
    _check_jobs(given)
    voice = _Voice("deferred requests and decisions about batches")
    link = RedisLink(given, deadline_s=_JOBS_DEADLINE_S, give_up_s=2 * _JOBS_DEADLINE_S, observe=voice)
    links["redis_jobs"] = link
    return RedisDecisions(link)


def open_jobs(settings: Settings, links: Mapping[str, RedisLink]) -> JobStore | None:
    """Where deferred requests live; None where what is kept would not outlive the process. Raises SettingsError.

    In Redis it shares the link of the decisions about batches.
    """
    link = links.get("redis_jobs")
    if link is not None:
        return RedisJobs(link)
    path = decisions_file(settings)
    return None if path is None else SqliteJobs(path)


def check_stores(settings: Settings) -> None:
    """Refuse what `open_stores` would refuse. Raises SettingsError."""
    if settings.cache != "off":
        _split(settings.cache)
    if settings.affinity not in ("off", "memory://"):
        check_redis_url(settings.affinity)
    if settings.jobs is not None:
        _check_jobs(settings.jobs)
        decisions_file(settings)


def decisions_file(settings: Settings) -> Path | None:
    """The file of decisions about batches; None where they are in Redis or in memory. Raises SettingsError."""
    traces = path_of(settings.traces)
    if settings.jobs is None:
        return None if traces is None else traces.with_name(f"{traces.stem}-jobs.db")
    if not settings.jobs.startswith("sqlite:"):
        return None
    path = _jobs_file(settings.jobs)
    if traces is not None and _is_one_file(traces, path):
        raise SettingsError("`jobs` is the file of `traces`, expected a file of its own")
    return path


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


def _check_jobs(given: str) -> None:
    if given.startswith("sqlite:"):
        _jobs_file(given)
        return
    if "redis" not in given.partition(":")[0]:
        raise SettingsError(
            f"`jobs` is `{without_password(given)}`",
            hint="expected `sqlite:///FILE`, or for several replicas `redis://…` as `affinity` takes it",
        )
    check_redis_url(given)


def _jobs_file(given: str) -> Path:
    try:
        path = path_of(given)
    except SettingsError as exc:
        raise SettingsError(exc.message.replace("`traces`", "`jobs`", 1), hint=exc.hint) from exc
    assert path is not None  # only `off` is none
    return path


def _is_one_file(one: Path, other: Path) -> bool:
    """Whether two names, however they are spelled and linked, lead to one file, there already or not."""
    try:
        return one.resolve() == other.resolve() or one.samefile(other)
    except (OSError, RuntimeError):  # not there yet, or links in a circle
        return one.absolute() == other.absolute()


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
