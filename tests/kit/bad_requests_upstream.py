"""The upstream of the bad requests: it answers everything, and knows which calls were meant and what they must say."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice

from kit.bad_heads import SMUGGLED
from kit.bad_requests import NONCE_PATTERN, BadRequest

_MOST_FINDINGS = 20
_REMEMBERED = 4_000  # cases for which a call upstream may still come
_MODEL = re.compile(rb'"(?:claude-[a-z0-9.-]+|auto|lane:[a-z]+)"')
_MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-5-5", "stop_reason": "end_turn",
    "stop_sequence": None, "content": [{"type": "text", "text": "Hi"}],
    "usage": {"input_tokens": 9, "output_tokens": 1},
}  # fmt: skip
_ANSWER = json.dumps(_MESSAGE, separators=(",", ":")).encode()
_PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-echo: %b\r\ncontent-length: %d\r\n\r\n%b"
_DELTA = b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":1}}'
_EVENTS = (
    b'event: message_start\ndata: {"type":"message_start","message":%b}\n\n'
    b'event: message_delta\ndata: %b\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
) % (_ANSWER.replace(b'"end_turn"', b"null"), _DELTA)
_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-echo: %%b\r\ntransfer-encoding: chunked\r\n\r\n"
    b"%x\r\n%b\r\n0\r\n\r\n"
) % (len(_EVENTS), _EVENTS)


@dataclass(slots=True)
class Report:
    """What a run has come to. `findings` are broken promises, each with the number and the kind of its case."""

    sent: int = 0
    answered: int = 0
    closed: int = 0  # without an answer, where that is allowed
    calls: int = 0  # upstream
    slow: int = 0  # over a second once, and not when asked again
    slowest_s: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def found(self, case: BadRequest | None, what: str) -> None:
        """Note a broken promise."""
        if len(self.findings) < _MOST_FINDINGS:
            name = "" if case is None else f"case {case.number} ({case.kind}, {case.nonce.decode()}): "
            self.findings.append(name + what)


class Upstream:
    """Answers everything with 200 and a Message, and holds each call against the request that is under way."""

    def __init__(self) -> None:
        self.port = 0
        self.report = Report()
        self.cases: dict[bytes, BadRequest] = {}  # by nonce, as long as a call may still come
        self.calls: Counter[bytes] = Counter()
        self.open = 0

    def forget(self) -> None:
        """Let go of cases that are long over; a client that left is over before its call upstream is."""
        for nonce in list(islice(self.cases, max(0, len(self.cases) - _REMEMBERED))):
            del self.cases[nonce]
            self.calls.pop(nonce, None)

    def called(self, line: bytes, head: bytes, body: bytes) -> bytes:
        """A call of the router → the nonce that it carries."""
        report = self.report
        report.calls += 1
        lower = head.lower()
        at = lower.find(b"\r\nx-nonce: ")
        nonce = head[at + 11 :].split(b"\r\n", 1)[0] if at >= 0 else b""
        case = self.cases.get(nonce)
        if case is None:  # a flipped byte may have hit one of its three places
            case = next((self.cases[each] for each in NONCE_PATTERN.findall(line + body) if each in self.cases), None)
        if case is None:
            report.found(None, f"a call that nobody meant: {line[:200]!r}")
            return b""
        nonce = case.nonce
        self.calls[nonce] += 1
        if SMUGGLED in line:
            report.found(case, "a smuggled request was carried out")
        elif self.calls[nonce] > case.most_calls:
            report.found(case, f"call {self.calls[nonce]} upstream, at most {case.most_calls} allowed: {line[:200]!r}")
        if (
            lower.count(b"\r\ncontent-length:") > 1
            or b"\r\ntransfer-encoding:" in lower
            or b"\n" in head.replace(b"\r\n", b"")
        ):
            report.found(case, "the router's own framing can be read in two ways")
        if lower.count(b"\r\nx-api-key:") + lower.count(b"\r\nauthorization:") > 1:
            report.found(case, "two credentials went upstream")
        if case.body is not None and body != case.body and _MODEL.sub(b"", body) != _MODEL.sub(b"", case.body):
            report.found(case, f"other bytes went upstream: {body[:300]!r}")
        return nonce


class _Call(asyncio.Protocol):
    """One connection of the router."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.upstream.open += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream.open -= 1

    def data_received(self, data: bytes) -> None:
        data = self.held + data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            line, _, head = data[:end].partition(b"\r\n")
            head = b"\r\n" + head
            at = head.lower().find(b"\r\ncontent-length: ")
            length = int(head[at + 18 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(data) < end + 4 + length:
                break
            body, data = data[end + 4 : end + 4 + length], data[end + 4 + length :]
            nonce = self.upstream.called(line, head, body)
            if line.startswith(b"HEAD "):
                self.transport.write(_PLAIN % (nonce, 0, b""))  # type: ignore[attr-defined]
            elif b'"stream":true' in body and b"count_tokens" not in line:
                self.transport.write(_STREAM % nonce)  # type: ignore[attr-defined]
            else:
                self.transport.write(_PLAIN % (nonce, len(_ANSWER), _ANSWER))  # type: ignore[attr-defined]
        self.held = data


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    """The upstream, listening on a free port."""
    it = Upstream()
    server = await asyncio.get_running_loop().create_server(lambda: _Call(it), "127.0.0.1", 0, backlog=1024)
    it.port = server.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        server.close()
