"""SIGKILL at random moments under load: what is lost of the books (F89).

    python -m bench.sigkill [--count 1000] [--workers 1] [--clients 40] [--seed 1]

A router as an installed program before a fake upstream, and clients that ask without a pause: plain requests and paced
streams. Again and again it is killed (one worker of it, where there are several) at a random moment in its first second
and a half, and started again on the same store. At the end every answer is held against the store:

    lost        a whole answer that is not in the store, or at another cost than its client was told
    doubled     a trace that is there more than once
    unknown     a whole answer that is there as `aborted`: killed in the instant between its last byte and its books
    cut         answers that broke off, each in the store with what is known of it

Then the sums of the roll-ups are held against the rows, and SQLite checks its file. Exit status 1 when anything is
lost or doubled, or a sum is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import uvloop

from bench.asking import Answer, Client
from bench.processes import HERE, LOAD_CORE, started
from router.trace.rollup import STEPS_S

_READY = re.compile(rb"router: api (http://\S+)  admin (http://\S+)")
_LIVES_S = 1.5


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.asynccontextmanager
async def serving(folder: Path, upstream: str, port: int, workers: int) -> AsyncIterator[tuple[int, str]]:
    """A router on this port; yields its pid and the address of its API."""
    (folder / "router.yaml").write_text(
        f"upstream_url: {upstream}\nport: {port}\nadmin_port: 0\nworkers: {workers}\naffinity: 'off'\n"
        f"policies: {HERE.parent / 'policies'}\npolicy_history: 'off'\ntraces: sqlite:///{folder}/router.db\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ROUTER_", "OTEL_"))}
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "router.cli.main", "serve", cwd=folder, env=environment, stderr=log,
            stdout=asyncio.subprocess.PIPE,
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


class Crowd:
    """Clients that ask without a pause, whatever happens to the server."""

    def __init__(self, count: int) -> None:
        self.client = Client("")
        self.answers: list[Answer] = []
        self.count = count
        self.number = time.time_ns() // 1_000_000 % 10**8
        self.is_over = False
        self.is_up = asyncio.Event()

    async def run(self) -> None:
        """Ask until `is_over`."""
        await asyncio.gather(*(self._one(number) for number in range(self.count)))

    async def _one(self, number: int) -> None:
        while not self.is_over:
            await self.is_up.wait()
            self.number += 1
            self.answers.append(await self.client.ask(self.number, stream=number % 4 == 0, keep=number % 2 == 0))
            await asyncio.sleep(0.02)


async def run(folder: Path, upstream: str, options: argparse.Namespace) -> tuple[Crowd, list[float]]:
    """Kill and start again, `count` times; then let all come to its end."""
    dice = random.Random(options.seed)
    crowd = Crowd(options.clients)
    asking = asyncio.ensure_future(crowd.run())
    starts_s: list[float] = []
    port, done = 0, 0
    while done < options.count:
        began_s = time.perf_counter()
        async with serving(folder, upstream, port, options.workers) as (pid, url):
            starts_s.append(time.perf_counter() - began_s)
            port = int(url.rpartition(":")[2])
            crowd.client.url = url
            crowd.is_up.set()
            while done < options.count:
                await asyncio.sleep(dice.random() * _LIVES_S)
                victims = [pid] if options.workers == 1 else children(pid)
                if victims:
                    done += 1
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(dice.choice(victims), signal.SIGKILL)
                if options.workers == 1:
                    break
            crowd.is_up.clear()
            if sys.stderr.isatty():
                print(f"\r{done} of {options.count}", end="", file=sys.stderr)
    async with serving(folder, upstream, port, options.workers):
        crowd.is_up.set()
        await asyncio.sleep(_LIVES_S)
        crowd.is_over = True
        await asking
    crowd.client.close()
    return crowd, starts_s


def audit(store: Path, answers: list[Answer]) -> dict[str, object]:
    """The answers against the rows, and the rows against their sums."""
    with sqlite3.connect(store) as connection:
        rows = connection.execute("SELECT trace_id, outcome, cost_pusd FROM traces").fetchall()
        check = connection.execute("PRAGMA integrity_check").fetchone()[0]
        summed = connection.execute("SELECT count(*), sum(cost_pusd) FROM traces").fetchone()
        rolled = connection.execute(
            "SELECT sum(requests), sum(cost_uusd) * 1000000 + sum(cost_rest_pusd) FROM rollups WHERE step_s = ?",
            (STEPS_S[-1],),
        ).fetchone()
        apart = connection.execute(
            "SELECT coalesce(sum(cost_pusd), 0) FROM traces WHERE baseline_pusd IS NULL"
        ).fetchone()
    times = Counter(trace for trace, _, _ in rows)
    by_id = {trace: (outcome, cost) for trace, outcome, cost in rows}
    lost = unknown = other = cut = 0
    for answer in answers:
        if not answer.trace:
            continue
        outcome, cost = by_id.get(answer.trace, ("", None))
        if answer.end != "whole":
            cut += 1
            lost += not outcome
        elif not outcome:
            lost += 1
        elif outcome == "aborted":
            unknown += 1
        elif answer.cost and Decimal(answer.cost) * 10**12 != (cost or 0):
            other += 1
    return {
        "answers": len(answers), "rows": len(rows), "aborted rows": sum(o == "aborted" for _, o, _ in rows),
        "lost": lost, "at another cost": other, "doubled": sum(n > 1 for n in times.values()),
        "unknown": unknown, "cut": cut, "file": check,
        "rows and money": (summed[0], summed[1] - apart[0]), "of the roll-ups": rolled,
    }  # fmt: skip


def main() -> None:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sigkill-") as name:
        folder = Path(name)
        command = [sys.executable, str(HERE / "fake_upstream.py"), "--pace-ms", "5", "--delay-ms", "5"]
        with started(command, LOAD_CORE, says="fake upstream: ", cwd=folder) as (_, line):
            crowd, starts_s = uvloop.run(run(folder, line.split()[-1], options))
        found = audit(folder / "router.db", crowd.answers)
        left = [file.name for file in folder.glob("router.db.open-*")]
        log = (folder / "log").read_text()
    print(f"{options.count} times killed; a start took {sorted(starts_s)[len(starts_s) // 2]:.2f} s in the middle")
    print(f"ends as clients saw them: {dict(crowd.client.ends)}")
    for what, value in found.items():
        print(f"{what:18} {value}")
    print(f"journals left: {len(left)}; tracebacks in the log: {log.count('Traceback')}")
    is_exact = found["rows and money"] == tuple(found["of the roll-ups"])  # type: ignore[arg-type]  # two rows of figures
    is_good = found["file"] == "ok" and is_exact and not (found["lost"] or found["at another cost"] or found["doubled"])
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
