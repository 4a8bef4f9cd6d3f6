"""Load on an HTTP/1.1 server: as fast as it goes (closed loop) or at a fixed rate (open loop), with latencies.

    python bench/load.py URL [--rate N] [--seconds S] [--connections 32] [--stream burst|paced]
                         [--repeat N] [--requests N]

Prints one JSON object: requests, errors, seconds, requests per second, latency p50 and p99 in milliseconds. In the open
loop a latency counts from the moment the request was due, so that a server that stalls cannot hide it by slowing the
generator down. Each request is about 2 kB and unlike all others, unless `--repeat` takes turns at N. Then the answers
that say that they are cache hits are counted too, and the time to the first byte of a body is given as `ttft_…`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
from collections import deque
from time import perf_counter, time_ns
from urllib.parse import urlsplit

import httptools
import uvloop


class Requests:
    """Makes the requests: head and body ready, but for a number that makes each unlike the others."""

    def __init__(self, authority: str, path: str, *, stream: str, repeat: int = 0) -> None:
        prompt = (
            "Classify this support ticket as billing, technical or account. Ticket %09d: " + "the app fails. " * 115
        )
        body = {
            "model": "claude-sonnet-5-5",
            "max_tokens": 4096 if stream == "paced" else 200,  # how the fake upstream knows
            **({"stream": True} if stream else {}),
            "messages": [{"role": "user", "content": prompt}],
        }
        text = json.dumps(body, separators=(",", ":"))
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {authority}\r\nx-api-key: sk-bench\r\nanthropic-version: 2023-06-01\r\n"
            f"content-type: application/json\r\naccept: application/json\r\nuser-agent: bench/1\r\n"
            f"content-length: {len(text % 0)}\r\n\r\n"
        )
        self.template = (head + text).encode()
        self.repeat = repeat or 10**9
        self.count = time_ns() // 1000 % self.repeat  # another run must not repeat this one's requests

    def next(self) -> bytes:
        """The next request as bytes."""
        self.count += 1
        return self.template % (self.count % self.repeat)


class Connection(asyncio.Protocol):
    """One keep-alive connection; answers are timed and told to `load`."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.parser = httptools.HttpResponseParser(self)
        self.due_s = 0.0
        self.is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self.transport = transport

    def send(self, due_s: float) -> None:
        """Send one request that was due at `due_s`."""
        self.due_s = due_s
        self.is_busy = True
        self.transport.write(self.load.requests.next())

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.is_busy = False
        self.load.answered(self, perf_counter() - self.due_s, self.parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self.load.lost(self)


class CountingConnection(Connection):
    """One that also looks at the answers: when their body begins, and whether they are cache hits."""

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self.has_begun = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        if name == b"x-router-cache" and value == b"hit":
            self.load.hits += 1

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        if not self.has_begun:
            self.has_begun = True
            self.load.ttfts.append(perf_counter() - self.due_s)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.has_begun = False
        super().on_message_complete()


class Load:
    """One run of load; `repeat` takes turns at so many requests, `most` ends a closed loop early (0: neither)."""

    def __init__(self, url: str, *, stream: str, repeat: int = 0, most: int = 0) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname, parts.port
        path = parts.path if parts.path not in ("", "/") else "/v1/messages"
        self.requests = Requests(parts.netloc, path, stream=stream, repeat=repeat)
        self.connection = CountingConnection if repeat else Connection
        self.most = most or 10**9
        self.latencies: list[float] = []
        self.ttfts: list[float] = []
        self.hits = 0
        self.errors = 0
        self.idle: deque[Connection] = deque()
        self.due: deque[float] = deque()
        self.is_open_loop = self.is_stopped = False
        self.until = 0.0
        self.busy = 0
        self.done: asyncio.Future[None] | None = None

    async def connect(self, count: int) -> list[Connection]:
        """Open `count` connections, all idle."""
        loop = asyncio.get_running_loop()
        pairs = [
            await loop.create_connection(lambda: self.connection(self), self.host, self.port) for _ in range(count)
        ]
        return [protocol for _, protocol in pairs]

    def answered(self, connection: Connection, latency_s: float, status: int) -> None:
        """An answer is complete; the connection takes the next request."""
        self.busy -= 1
        self.latencies.append(latency_s)
        if status != 200:
            self.errors += 1
        now = perf_counter()
        if not self.is_open_loop:
            if now < self.until and len(self.latencies) + self.busy < self.most:
                self.busy += 1
                connection.send(now)
        elif self.due:
            self.busy += 1
            connection.send(self.due.popleft())
        else:
            self.idle.append(connection)
        if (
            not self.busy
            and (now >= self.until or len(self.latencies) >= self.most)
            and self.done is not None
            and not self.done.done()
        ):
            self.done.set_result(None)

    def lost(self, connection: Connection) -> None:
        """A connection ended; what was under way on it is an error."""
        if connection.is_busy:
            self.errors += 1
            self.busy -= 1
        if connection in self.idle:
            self.idle.remove(connection)

    async def run_closed(self, connections: int, seconds: float) -> dict[str, float]:
        """Keep `connections` requests under way for `seconds`."""
        opened = await self.connect(connections)
        self.done = asyncio.get_running_loop().create_future()
        started = perf_counter()
        self.until = started + seconds
        self.busy = len(opened)
        for connection in opened:
            connection.send(perf_counter())
        await asyncio.wait_for(self.done, seconds + 30)
        return self.result(perf_counter() - started)

    def stop(self) -> None:
        """End an open loop early; what is under way is waited for."""
        self.is_stopped = True

    async def run_open(self, connections: int, seconds: float, rate: float) -> dict[str, float]:
        """Send `rate` requests a second for `seconds`, whether or not answers keep up."""
        self.is_open_loop = True
        self.idle.extend(await self.connect(connections))
        loop = asyncio.get_running_loop()
        self.done = loop.create_future()
        started = perf_counter()
        self.until = started + seconds
        total = int(rate * seconds)
        for number in range(total):
            due = started + number / rate
            if self.is_stopped:
                break
            wait_s = due - perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            if self.idle:
                self.busy += 1
                self.idle.popleft().send(due)
            else:
                self.due.append(due)
        self.until = 0.0
        if self.busy:
            await asyncio.wait_for(self.done, 30)
        return self.result(perf_counter() - started)

    def result(self, seconds: float) -> dict[str, float]:
        """The figures of the run."""
        count = len(self.latencies)
        figures = {
            "requests": count,
            "errors": self.errors,
            "seconds": round(seconds, 3),
            "per_second": round(count / seconds, 1),
            "p50_ms": percentile_ms(self.latencies, 0.5),
            "p99_ms": percentile_ms(self.latencies, 0.99),
        }
        if self.connection is CountingConnection:
            figures["hits"] = self.hits
            figures["ttft_p50_ms"] = percentile_ms(self.ttfts, 0.5)
            figures["ttft_p99_ms"] = percentile_ms(self.ttfts, 0.99)
        return figures


def percentile_ms(seconds: list[float], part: float) -> float:
    """The value below which `part` of the values lie, in milliseconds; 0 where there are none."""
    ordered = sorted(seconds)
    return round(ordered[min(int(len(ordered) * part), len(ordered) - 1)] * 1000, 3) if ordered else 0.0


async def run(options: argparse.Namespace) -> dict[str, float]:
    """One run as the command line says."""
    load = Load(options.url, stream=options.stream, repeat=options.repeat, most=options.requests)
    gc.disable()
    if options.rate:
        return await load.run_open(options.connections, options.seconds, options.rate)
    return await load.run_closed(options.connections, options.seconds)


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="http://HOST:PORT[/path]; the path defaults to /v1/messages")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: as fast as it goes")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--stream", choices=["burst", "paced"], default="", help="ask for streams: at once, or paced")
    parser.add_argument("--repeat", type=int, default=0, metavar="N", help="take turns at N requests")
    parser.add_argument("--requests", type=int, default=0, metavar="N", help="end a closed loop after N requests")
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
