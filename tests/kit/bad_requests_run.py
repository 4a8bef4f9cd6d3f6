"""Bad requests against a running router: a client made for speed, and what it finds.

    async with upstream() as up, router(…) as running:
        report = await hunt(running.port, up, bad_requests(seed=1, count=50_000))
    assert report.findings == []

Client and upstream live on one event loop, so that a call upstream can be held against what its client sent. Requests
that leave their connection open go eight in a packet over one that is kept; the others have one each. What took longer
than a second is asked again in the end, alone: a busy machine is slow once, a router that is slow is so thrice.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter

import orjson

from kit.bad_requests import BadRequest
from kit.bad_requests_upstream import Report, Upstream

LIMIT_S = 1.0
PACKET = 8  # requests at once on a kept connection
_HANGS_S = 8.0
_TRIES = 3
_RESET = struct.pack("ii", 1, 0)
POLICY = """\
version: 1
rules:
  - name: labelled
    when: {task: {in: [classification, extraction]}, difficulty: {lt: 0.5}}
    route: as-asked
otherwise: as-asked
"""
# `/p/swap` and `/p/adapt` in the address: another model than the one asked for, kept answers, edited requests.
POLICIES = {
    "swap": """\
version: 1
rules:
  - name: swapped
    when: {tools: {lt: 50}}
    route: [haiku, sonnet]
    cache: {ttl: 1h, scope: tenant}
otherwise: as-asked
""",
    "adapt": """\
version: 1
rules:
  - name: adapted
    route: [haiku, opus]
    swap: adapt
otherwise: as-asked
""",
}


def write_policies(folder: Path) -> None:
    """The policies beside the default one that the cases name."""
    (folder / "policies").mkdir()
    for name, text in POLICIES.items():
        (folder / "policies" / f"{name}.yaml").write_text(text)


class Memory:
    """The resident memory of a process, looked at a hundred times while `count` requests are sent: `mb`."""

    def __init__(self, pid: int, count: int) -> None:
        self.mb: list[float] = []
        self._file = Path(f"/proc/{pid}/statm")
        self._every = max(1, count // (2 * PACKET) // 100)
        self._packets = 0

    def look(self) -> None:
        """Called after every packet."""
        self._packets += 1
        if self._packets % self._every == 0:
            self.mb.append(int(self._file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)


@dataclass(slots=True)
class Answer:
    """One answer as it came."""

    status: int
    head: bytes
    body: bytes


class _Wire(asyncio.Protocol):
    """A client's connection: sends requests, and is done when each has its answer or the server has closed."""

    def __init__(self, wants: list[BadRequest]) -> None:
        self.wants = wants
        self.answers: list[Answer] = []
        self.held = b""
        self.garbage = ""
        self.is_closed = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        if self.wants:
            self.send(self.wants)

    def send(self, wants: list[BadRequest]) -> None:
        self.wants, self.answers = wants, []
        if self.done.done():
            self.done = asyncio.get_running_loop().create_future()
        if self.is_closed or self.transport.is_closing():
            self.done.set_result(None)
            return
        self.transport.write(b"".join([case.data for case in wants]))
        if wants[-1].is_half:
            self.transport.write_eof()

    def data_received(self, data: bytes) -> None:
        data = self.held + data if self.held else data
        while data:
            answered = len(self.answers)
            is_head = answered < len(self.wants) and self.wants[answered].is_head
            try:
                answer, size = _answer(data, is_head=is_head)
            except ValueError as exc:
                self.garbage = str(exc)
                self.transport.abort()
                return
            if answer is None:
                break
            data = data[size:]
            if answer.status >= 200:
                self.answers.append(answer)
        self.held = data
        if len(self.answers) >= len(self.wants) and not self.done.done():
            last = self.wants[-1]
            if not last.is_alone or not (last.is_half or b"\r\nconnection: close" in self.answers[-1].head):
                self.done.set_result(None)  # else the server closes: until then there may be another answer

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        if not self.done.done():
            self.done.set_result(None)

    def drop(self) -> None:
        """Let go without a TIME_WAIT."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self.is_closed:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            except OSError:  # closed meanwhile
                pass
        self.transport.abort()


def _answer(data: bytes, *, is_head: bool) -> tuple[Answer | None, int]:
    """The first answer in `data` and its size; None while it is not whole. Raises ValueError for what is no answer."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None, 0
    head = data[:end].lower()
    if not head.startswith(b"http/1.1 "):
        raise ValueError(f"no answer: {data[:200]!r}")
    status = int(head[9:12])
    at = end + 4
    if is_head or status < 200 or status in (204, 304):
        return Answer(status, head, b""), at
    where = head.find(b"\r\ncontent-length: ")
    if where >= 0:
        length = int(head[where + 18 :].split(b"\r\n", 1)[0])
        if len(data) < at + length:
            return None, 0
        return Answer(status, head, data[at : at + length]), at + length
    if b"\r\ntransfer-encoding: chunked" not in head:
        return Answer(status, head, data[at:]), len(data)
    body = b""
    while (eol := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:eol], 16)
        if len(data) < eol + 4 + size:
            break
        body += data[eol + 2 : eol + 2 + size]
        at = eol + 4 + size
        if not size:
            return Answer(status, head, body), at
    return None, 0


class _Hunter:
    """One line of requests, one packet after another."""

    def __init__(self, port: int, upstream: Upstream, cases: Iterator[BadRequest]) -> None:
        self.port = port
        self.upstream = upstream
        self.report = upstream.report
        self.cases = cases
        self.wire: _Wire | None = None
        self.slow: list[tuple[float, list[BadRequest]]] = []

    async def run(self, each: Callable[[], None]) -> None:
        while packet := list(islice(self.cases, 2 * PACKET)):
            self.upstream.cases.update((case.nonce, case) for case in packet)
            shared = [case for case in packet if not case.is_alone]
            alone = [case for case in packet if case.is_alone]
            for at in range(0, len(shared), PACKET):
                await self._timed(shared[at : at + PACKET])
            for at in range(0, len(alone), 4):
                await asyncio.gather(*(self._timed([case]) for case in alone[at : at + 4]))
            self.upstream.forget()
            self.report.sent += len(packet)
            self.report.kinds.update([case.kind for case in packet])
            each()

    async def _timed(self, cases: list[BadRequest]) -> None:
        took_s = await self._send(cases, self.report)
        if took_s > LIMIT_S:
            self.slow.append((took_s, cases))

    async def ask_again(self) -> None:
        """What took too long, once more, while nothing else goes on; thrice slow is a fault of the router's."""
        for took_s, cases in self.slow:
            self.report.slow += 1
            for case in cases:
                again_s = math.inf
                for _ in range(_TRIES):
                    self.upstream.cases[case.nonce] = case
                    self.upstream.calls.pop(case.nonce, None)
                    again_s = min(again_s, await self._send([case], Report()))
                    if again_s <= LIMIT_S:
                        break
                else:
                    self.report.found(case, f"took {took_s:.1f} s, and {again_s:.1f} s when asked again alone")
        if self.wire is not None:
            self.wire.drop()

    async def _send(self, cases: list[BadRequest], report: Report) -> float:
        """Send and judge; returns seconds."""
        loop = asyncio.get_running_loop()
        began_s = perf_counter()
        is_shared = not cases[0].is_alone
        wire = self.wire if is_shared else None
        if wire is None or wire.is_closed:
            _, wire = await loop.create_connection(lambda: _Wire(cases), "127.0.0.1", self.port)
            if is_shared:
                self.wire = wire
        else:
            wire.send(cases)
        late = loop.call_later(_HANGS_S, _give_up, wire.done)
        try:
            await wire.done
        except TimeoutError:
            report.found(cases[0], f"no end after {_HANGS_S:g} s, {len(wire.answers)} of {len(cases)} answered")
        late.cancel()
        took_s = perf_counter() - began_s
        if wire is self.wire and is_shared and (wire.is_closed or len(wire.answers) != len(cases)):
            self.wire = None
        if not is_shared or self.wire is None:
            wire.drop()
        report.slowest_s = max(report.slowest_s, took_s)
        self._judge(cases, wire, report)
        return took_s

    def _judge(self, cases: list[BadRequest], wire: _Wire, report: Report) -> None:
        answers = wire.answers
        if wire.garbage:
            report.found(cases[-1], wire.garbage)
        if wire.held and wire.wants[-1].is_alone and not wire.wants[-1].may_be_cut:
            report.found(cases[-1], f"half an answer: {wire.held[:100]!r}")
        for case, answer in zip(cases, answers, strict=False):
            report.answered += 1
            report.statuses[answer.status] += 1
            if answer.status not in case.statuses:
                report.found(
                    case, f"answered with {answer.status}, expected one of {case.statuses}: {answer.body[:300]!r}"
                )
            _check_shape(case, answer, report)
        if len(answers) > len(cases) and max(case.most_calls for case in cases) < 2 and not cases[0].may_be_cut:
            report.found(cases[-1], f"{len(answers)} answers to {len(cases)} requests")
        for case in cases[len(answers) :]:
            if case.may_be_cut:
                report.closed += 1
            else:
                report.found(case, "no answer")


def _give_up(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_exception(TimeoutError())


def _check_shape(case: BadRequest, answer: Answer, report: Report) -> None:
    """An error has the API's shape and names itself; an answer of the upstream's belongs to this request."""
    if answer.status < 400:
        at = answer.head.find(b"\r\nx-echo: ")
        if at >= 0 and answer.head[at + 10 : at + 27] != case.nonce:
            report.found(case, f"got the answer of another request: {answer.head[at : at + 40]!r}")
        return
    if case.is_head:
        return
    try:
        error = orjson.loads(answer.body)
        is_right = error["type"] == "error" and {"type", "message"} <= error["error"].keys()
        is_right = is_right and f"\r\nrequest-id: {error['request_id']}\r\n".lower().encode() in answer.head + b"\r\n"
    except (ValueError, KeyError, TypeError):
        is_right = False
    if not is_right:
        report.found(case, f"an error in another shape: {answer.head[:200]!r} {answer.body[:300]!r}")


async def hunt(
    port: int,
    upstream: Upstream,
    cases: Iterable[BadRequest],
    *,
    lines: int = 4,
    each: Callable[[], None] = lambda: None,
) -> Report:
    """Send all of them over so many lines at once; `each` is called after every packet."""
    upstream.report = Report()
    queue = iter(cases)
    hunters = [_Hunter(port, upstream, queue) for _ in range(lines)]
    await asyncio.gather(*(hunter.run(each) for hunter in hunters))
    for hunter in hunters:
        await hunter.ask_again()
    return upstream.report
