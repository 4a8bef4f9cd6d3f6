"""A soak: mixed requests through one router process, and an audit that joins what all sides have written down.

Half of the requests are streams, 5 % meet a fault upstream, 2 % are left by their client at some point, 4 % ask for an
answer that is in the cache. Each has a trace id of its own (`trace_context: continue`) and a nonce in its body that
comes back in every piece of its answer. What the client, the upstream and the trace store have written down is held
against each other in `soak_audit.py`.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kit.processes import router
from kit.soak_upstream import NONCE, Upstream, fault_of, soak_upstream

LEAVES_OF_1000 = 20
REPEATS_OF_1000 = 40
POLICY = """\
version: 1
rules:
  - name: structured-work
    when: {task: {in: [classification, extraction, summarization, translation, simple_qa]}, difficulty: {lt: 0.5}}
    route: [haiku, sonnet]
    retry: 1
    cache: {ttl: 1h, scope: tenant}
  - name: rest
    route: as-asked
    retry: 1
otherwise: as-asked
"""
_HANGS_S = 30.0
_LEAVES = ("half sent", "at once", "at the head", "in the body")
_TEXTS = (
    "Classify this support ticket as billing, technical or account. Ticket %b: the app does not start.",
    "Prove step by step that the sum of the first n odd numbers is a square, and say where it fails. (%b)",
    "Summarize in one sentence, %b: revenue rose from 4.2 to 5.9 million while costs stayed where they were.",
)
_MODELS = ("claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-5-5")
_RESET = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Job:
    """One request and what its client saw. `leaves` is when the client hangs up; "": it stays."""

    number: int
    nonce: bytes
    is_stream: bool
    leaves: str
    status: int = 0
    is_whole: bool = False  # the answer came to the end that its framing announced
    is_honest: bool = True
    is_crossed: bool = False

    @property
    def trace_id(self) -> str:
        """The one that its `traceparent` names."""
        return f"50a4{self.number + 1:028x}"


@dataclass(slots=True)
class Soak:
    """What a run has left behind. Memory in MB at even distances, `fds` of the router before and after."""

    jobs: list[Job]
    upstream: Upstream
    rows: list[tuple[str, int, str, str, int | None, str | None]] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    fds: tuple[int, int] = (0, 0)
    upstream_open: int = 0
    seconds: float = 0.0
    router_cpu_s: float = 0.0
    is_alive_after: bool = False

    def slope_mb(self, without: float = 0.2) -> float:
        """Megabytes per 10,000 requests: a straight line through the memory behind that part of the run."""
        points = list(enumerate(self.memory_mb))[int(len(self.memory_mb) * without) :]
        if len(points) < 3:
            return 0.0
        mean_x = sum(x for x, _ in points) / len(points)
        mean_y = sum(y for _, y in points) / len(points)
        slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
        return slope * len(self.memory_mb) / len(self.jobs) * 10_000


def jobs(count: int, seed: int = 1) -> Iterator[Job]:
    """The requests of a run."""
    dice = random.Random(seed)
    plain: list[bytes] = []
    for number in range(count):
        nonce = b"nonce%012x" % ((seed << 32) + number)
        chance = dice.randrange(1000)
        leaves = dice.choice(_LEAVES) if chance < LEAVES_OF_1000 else ""
        is_stream = number % 2 == 0
        if chance >= 1000 - REPEATS_OF_1000 and len(plain) > 400:
            nonce = plain[-dice.randrange(200, 400)]
            is_stream = int(nonce[5:], 16) % 2 == 0
        elif not leaves and not fault_of(nonce):
            plain.append(nonce)
            del plain[:-1000]
        yield Job(number, nonce, is_stream, leaves)


def request_of(job: Job) -> bytes:
    """The bytes of a request."""
    own = int(job.nonce[5:], 16)
    text = _TEXTS[own // 2 % len(_TEXTS)].replace("%b", job.nonce.decode())
    stream = '"stream":true,' if job.is_stream else ""
    body = f'{{"model":"{_MODELS[own // 7 % len(_MODELS)]}","max_tokens":500,{stream}"messages":'
    body += f'[{{"role":"user","content":"{text}"}}]}}'
    head = (
        "POST /v1/messages HTTP/1.1\r\nhost: router.test\r\nx-api-key: sk-soak\r\nanthropic-version: 2023-06-01\r\n"
        f"content-type: application/json\r\ntraceparent: 00-{job.trace_id}-00000000000000aa-01\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


class _Client(asyncio.Protocol):
    """One connection, one request at a time; `over` is called when a request has ended, however it did."""

    def __init__(self, over: Callable[[_Client, Job], None], dice: random.Random) -> None:
        self.over = over
        self.dice = dice
        self.job: Job | None = None
        self.got = bytearray()
        self.leave_at = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def begin(self, job: Job) -> None:
        self.job, self.got, self.leave_at = job, bytearray(), -1
        data = request_of(job)
        if job.leaves == "half sent":
            self.transport.write(data[: self.dice.randrange(1, len(data))])
            self.leave()
            return
        self.transport.write(data)
        if job.leaves == "at once":
            asyncio.get_running_loop().call_later(self.dice.choice((0, 0.0005, 0.002)), self.leave_early, job)
        elif job.leaves:
            self.leave_at = 1 if job.leaves == "at the head" else self.dice.randrange(600, 2400)

    def leave_early(self, job: Job) -> None:
        if self.job is job:
            self.leave()

    def leave(self) -> None:
        sock = self.transport.get_extra_info("socket")
        if sock is not None and self.dice.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.got += data
        job = self.job
        if job is None:
            raise AssertionError("bytes that nobody asked for")
        if 0 <= self.leave_at <= len(self.got):
            self.leave()
        elif _is_whole(self.got):
            job.is_whole = True
            self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.job is not None:
            self.end()

    def end(self) -> None:
        job, self.job = self.job, None
        assert job is not None
        _note(job, bytes(self.got))
        self.over(self, job)


def _is_whole(data: bytearray) -> bool:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    at = data.find(b"content-length: ", 0, end)
    if at < 0:
        return data.endswith(b"\r\n0\r\n\r\n")
    return len(data) >= end + 4 + int(data[at + 16 : data.index(b"\r\n", at)])


def _note(job: Job, data: bytes) -> None:
    """What the client saw: the status, whose answer it was, and whether a cut one said so."""
    if not data.startswith(b"HTTP/1.1 "):
        return
    job.status = int(data[9:12])
    job.is_crossed = not set(NONCE.findall(data)) <= {job.nonce}
    if job.is_whole and job.status == 200:
        if job.is_stream:
            job.is_honest = b"event: message_stop" in data or b"event: error" in data
        else:
            body = data[data.index(b"\r\n\r\n") + 4 :]
            job.is_honest = body.startswith(b"{") and body.endswith(b"}") and job.nonce in body


class _Run:
    """The requests, over so many connections at once."""

    def __init__(self, port: int, todo: list[Job], seed: int, look: Callable[[int], None]) -> None:
        self.port = port
        self.queue = iter(todo)
        self.dice = random.Random(seed)
        self.look = look
        self.ended = 0
        self.busy = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.clients: set[_Client] = set()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def go(self, connections: int, limit_s: float) -> None:
        self.busy = connections
        await asyncio.gather(*(self.open() for _ in range(connections)))
        await asyncio.wait_for(self.done, limit_s)
        for client in self.clients:
            client.transport.abort()

    async def open(self) -> None:
        """Another connection, in the place of one that has gone."""
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: _Client(self.over, self.dice), "127.0.0.1", self.port)
        self.clients.add(client)
        self.next(client)

    def next(self, client: _Client) -> None:
        job = next(self.queue, None)
        if job is not None:
            client.begin(job)
            return
        self.busy -= 1
        if not self.busy and not self.done.done():
            self.done.set_result(None)

    def over(self, client: _Client, job: Job) -> None:
        self.ended += 1
        self.look(self.ended)
        if job.is_whole and not client.transport.is_closing():
            self.next(client)
            return
        client.transport.abort()
        self.clients.discard(client)
        task = asyncio.get_running_loop().create_task(self.open())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


async def soak(
    folder: Path, count: int, *, seed: int = 1, connections: int = 64, started: Callable[[int], None] = lambda _: None,
    progress: Callable[[int, float], None] = lambda *_: None,
) -> Soak:  # fmt: skip
    """Run it in an empty folder; `started` is told the router's pid, `progress` how far it is and its memory in MB."""
    todo = list(jobs(count, seed))
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    async with soak_upstream() as up:
        result = Soak(todo, up)
        async with router(
            folder, f"http://127.0.0.1:{up.port}", policy=POLICY, cache="memory://?max_mb=8",
            ROUTER_TRACE_CONTEXT="continue", ROUTER_AFFINITY="memory://",
        ) as running:  # fmt: skip
            pid = running.process.pid
            started(pid)
            every = max(1, count // 200)

            def look(ended: int) -> None:
                if ended % every == 0:
                    result.memory_mb.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page)
                    progress(ended, result.memory_mb[-1])

            await _healthy(running.port, "before")
            before = len(os.listdir(f"/proc/{pid}/fd"))
            cpu_s, began_s = _cpu_s(pid), time.perf_counter()
            run = _Run(running.port, todo, seed, look)
            await run.go(connections, max(60.0, count * 0.02))
            result.seconds, result.router_cpu_s = time.perf_counter() - began_s, _cpu_s(pid) - cpu_s
            result.is_alive_after = await _healthy(running.port, "after")
            for _ in range(100):  # its clients have gone; the router may not have heard of all yet
                after = len(os.listdir(f"/proc/{pid}/fd"))
                if after <= before + up.open + 1:
                    break
                await _healthy(running.port, "settling")
            result.fds, result.upstream_open = (before, after), up.open
        with sqlite3.connect(folder / "router.db") as store:
            result.rows = store.execute(
                "SELECT trace_id, status, outcome, cache, cost_pusd, attempts FROM traces WHERE endpoint = 'messages'"
            ).fetchall()
        store.close()
    return result


async def _healthy(port: int, when: str) -> bool:
    """A request that is none of the run's: on a connection of its own, to the listing of one model."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET /v1/models/auto HTTP/1.1\r\nhost: router.test\r\nx-api-key: sk-%b\r\nconnection: close\r\n\r\n"
        % when.encode()
    )
    answer = await asyncio.wait_for(reader.read(), _HANGS_S)
    writer.close()
    await writer.wait_closed()
    return answer.startswith(b"HTTP/1.1 200 ")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
