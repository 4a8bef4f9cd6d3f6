"""Routers over a Redis in trouble: an upstream whose answers tell whose they are, and what a test looks at."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Protocol

import pytest
import redis

import router.cache.redis
import router.stores
from kit.raw_upstream import Peer
from kit.redis_server import RedisServer
from kit.stage import SSE_HEAD, WAIT_S, Reply, Stage, always, chunked, events, http, message, stage, until
from router.cache.shared import ENTRY_PREFIX, PROCESSES
from router.redis_link import RedisLink

CACHED = always("cache: {ttl: 1h}", route="as-asked")
BACK_S = 5.0  # from the moment Redis serves again until answers are shared again (F55)
_numbers = itertools.count()


class Asked(Protocol):
    """A router, in this process or another."""

    async def messages(self, *more_headers: tuple[bytes, bytes], **body: Any) -> Reply: ...


async def echo(peer: Peer) -> None:
    """An upstream that answers with the request's own text, as a Message or a stream; connections are kept."""
    while True:
        asked = json.loads((await peer.request()).body)
        text = asked["messages"][-1]["content"]
        if asked.get("stream"):
            peer.send(SSE_HEAD + b"".join(map(chunked, echoed_events(text))) + b"0\r\n\r\n")
        else:
            peer.send(http(message(echoed(text))))
        await peer.writer.drain()


def echoed(text: str) -> str:
    """What `echo` says to a text; long enough that it is compressed where it is kept."""
    return f"you said {text}. " * 60


def echoed_events(text: str) -> list[bytes]:
    """The events of that as a stream."""
    return events(*(f"{word} " for word in echoed(text).split()[:100]))


def nonce() -> str:
    """A text that was never asked before."""
    return f"question {next(_numbers)} of {time.time_ns()}"


async def ask(at: Asked, text: str | None = None, *, stream: bool = False) -> tuple[str, float]:
    """Ask for `text` (None: a new one) → (the word for the cache, seconds it took).

    The answer must be 200, whole, and the one to this very text.
    """
    text = nonce() if text is None else text
    started_s = time.perf_counter()
    reply = await at.messages(text=text, stream=True) if stream else await at.messages(text=text)
    took_s = time.perf_counter() - started_s
    assert (reply.status, reply.is_whole) == (200, True), reply
    assert reply.body == (b"".join(echoed_events(text)) if stream else message(echoed(text))), text
    return reply.header("x-router-cache") or "", took_s


def figures(s: Stage) -> dict[str, int]:
    """The counts of the cache of a router in this process."""
    assert s.app.stores.cache is not None
    return dict(s.app.stores.cache.stats())


async def is_shared(s: Stage) -> bool:
    """Whether Redis answers a look-up of a new question; it costs one request."""
    before = figures(s)["leads"]
    await ask(s)
    return figures(s)["leads"] > before


async def until_shared(s: Stage, within_s: float = BACK_S) -> float:
    """Ask until answers are shared, for `within_s` at most → the seconds that took."""
    started_s = time.monotonic()
    async with asyncio.timeout(within_s):
        while not await is_shared(s):
            pass
    return time.monotonic() - started_s


async def until_alone(s: Stage) -> None:
    """Ask until Redis is not asked any more because it rests."""
    [link] = s.app.stores.links.values()
    async with asyncio.timeout(WAIT_S):
        while link.stats()["is_up"]:
            await ask(s)


def beside(s: Stage, server: RedisServer) -> AbstractAsyncContextManager[Stage]:
    """Another router over the same Redis, before the same upstream, with no copies of its own yet."""
    return stage(policy=CACHED, cache=server.url, origin=s.upstream.origin)


async def members(server: RedisServer, count: int) -> None:
    """Wait until so many routers have joined the fleet."""
    await until(lambda: server.say("HLEN", PROCESSES) == b":%d\r\n" % count)


def client(server: RedisServer) -> redis.Redis:
    """A plain client, for what a test plants or looks at."""
    return redis.Redis(port=server.port)


def entries(server: RedisServer) -> list[bytes]:
    """The keys of all entries."""
    with client(server) as plain:
        return sorted(plain.keys(ENTRY_PREFIX + "*"))


async def written(server: RedisServer, count: int) -> list[bytes]:
    """The keys of all entries, once there are so many: writes go on behind the answers."""
    await until(lambda: len(entries(server)) >= count)
    return entries(server)


def quantile_ms(seconds: Sequence[float], share: float) -> float:
    """The value, in milliseconds, below which that share of the values lies."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000


def say(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Print a figure where the reader of a run sees it."""
    with capsys.disabled():
        print(f"\n    {text}", end="")


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let routers of this process wait for Redis as long as it takes, for tests of what comes out, not of when."""
    monkeypatch.setattr(router.stores, "RedisLink", partial(RedisLink, deadline_s=WAIT_S, give_up_s=WAIT_S))
    monkeypatch.setattr(router.cache.redis, "PATIENCE_S", WAIT_S)
