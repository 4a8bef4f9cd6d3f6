"""An upstream for soaks: quick, faulty by script, and with a ledger of its own.

Each answer carries the nonce of its request in every piece, and usage that follows from the nonce. Which fault a
request meets follows from its nonce as well: nobody needs to be told. A `Bill` is written for every call, whatever
becomes of it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from router.simulator.ledger import cost_pusd
from router.simulator.record import Roster, load_roster

NONCE = re.compile(rb"nonce[0-9a-f]{12}")
FAULTS = (
    "429", "529", "529 once", "500", "no answer", "cut", "error event", "stall", "no end",
)  # fmt: skip
FAULTY_OF_1000 = 50
STALL_S = 0.25
_MODEL = re.compile(rb'"model": ?"([^"]+)"')
_DELTAS = 6
_MASK = (1 << 64) - 1


def hashed(nonce: bytes) -> int:
    """64 bits that follow from the nonce and look like chance."""
    value = int(nonce[5:], 16) * 0x9E3779B97F4A7C15 & _MASK
    value ^= value >> 29
    value = value * 0xBF58476D1CE4E5B9 & _MASK
    return value ^ value >> 32


def fault_of(nonce: bytes) -> str:
    """The fault that requests with this nonce meet; "" for most."""
    value = hashed(nonce)
    return FAULTS[value // 1000 % len(FAULTS)] if value % 1000 < FAULTY_OF_1000 else ""


def usage_of(nonce: bytes) -> dict[str, Any]:
    """What an answer with this nonce reports in the end."""
    value = hashed(nonce)
    written = value >> 20 & 0xFF
    return {
        "input_tokens": 10 + (value & 0x7FF),
        "cache_read_input_tokens": value >> 12 & 0x3FF,
        "cache_creation_input_tokens": written,
        "cache_creation": {
            "ephemeral_5m_input_tokens": written // 3,
            "ephemeral_1h_input_tokens": written - written // 3,
        },
        "output_tokens": 2 + (value >> 30 & 0x1FF),
    }


@dataclass(slots=True)
class Bill:
    """One call; `cost_pusd` is the price of the whole answer. `is_complete`: all of it was written."""

    request_id: str
    nonce: bytes
    status: int  # 0: cut before any answer
    cost_pusd: int
    is_complete: bool = False


@dataclass(slots=True)
class Upstream:
    """A running one, its ledger and its connections."""

    bills: list[Bill] = field(default_factory=list)
    calls: dict[bytes, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    port: int = 0
    open: int = 0
    most_open: int = 0
    roster: Roster = field(default_factory=load_roster)
    _prices: dict[str, Any] = field(default_factory=dict)

    def bill(self, nonce: bytes, model: str, status: int) -> Bill:
        """Write down a call."""
        number = self.calls[nonce] = self.calls.get(nonce, 0) + 1
        if not self._prices:
            self._prices = {record.id: record for record in self.roster.models}
        cost = cost_pusd(usage_of(nonce), self._prices[model], self.roster) if status == 200 else 0
        bill = Bill(f"req_{nonce.decode()}_{number}", nonce, status, cost)
        self.bills.append(bill)
        return bill


class _Call(asyncio.Protocol):
    """One connection of the router, one call at a time."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.upstream.open += 1
        self.upstream.most_open = max(self.upstream.most_open, self.upstream.open)

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream.open -= 1

    def data_received(self, data: bytes) -> None:
        data = self.held + data if self.held else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self.held = data
            return
        at = data.lower().find(b"\r\ncontent-length: ", 0, end)
        length = int(data[at + 18 : end].split(b"\r\n", 1)[0])
        if len(data) < end + 4 + length:
            self.held = data
            return
        self.held = b""
        assert len(data) == end + 4 + length, "the router sends one request at a time"
        self.answer(data[end + 4 :])

    def answer(self, body: bytes) -> None:
        found = NONCE.search(body)
        model = _MODEL.search(body)
        assert found is not None
        assert model is not None
        nonce, name = found[0], model[1].decode()
        upstream = self.upstream
        fault = fault_of(nonce)
        if fault == "529 once":
            fault = "" if upstream.calls.get(nonce) else "529"
        if fault:
            upstream.faults[fault] = upstream.faults.get(fault, 0) + 1
        is_stream = b'"stream":true' in body
        if fault in ("429", "529", "500") or (fault == "error event" and not is_stream):
            status = int(fault) if fault.isdigit() else 500
            bill = upstream.bill(nonce, name, status)
            kind = {429: "rate_limit_error", 529: "overloaded_error"}.get(status, "api_error")
            error = {"type": "error", "error": {"type": kind, "message": nonce.decode()}, "request_id": bill.request_id}
            text = json.dumps(error).encode()
            self.transport.write(
                _head(status, bill, b"application/json", b"content-length: %d" % len(text), b"retry-after-ms: 1") + text
            )
            bill.is_complete = True
            return
        if fault == "no answer":
            upstream.bill(nonce, name, 0)
            self.transport.abort()
            return
        bill = upstream.bill(nonce, name, 200)
        (self.stream if is_stream else self.plain)(bill, name, fault)

    def plain(self, bill: Bill, model: str, fault: str) -> None:
        message = {
            "id": f"msg_{bill.nonce.decode()}", "type": "message", "role": "assistant", "model": model,
            "content": [{"type": "text", "text": f"This is {bill.nonce.decode()}, " + "word " * 60}],
            "stop_reason": "end_turn", "stop_sequence": None, "usage": usage_of(bill.nonce),
        }  # fmt: skip
        text = json.dumps(message, separators=(",", ":")).encode()
        data = _head(200, bill, b"application/json", b"content-length: %d" % len(text)) + text
        if fault in ("cut", "no end"):
            self.transport.write(data[: -1 - hashed(bill.nonce) % len(text)])
            self.transport.close()
        else:
            self.in_two(bill, data, len(data) - 50, fault)

    def stream(self, bill: Bill, model: str, fault: str) -> None:
        events = _events(bill.nonce, model)
        head = _head(200, bill, b"text/event-stream; charset=utf-8", b"transfer-encoding: chunked")
        if fault == "error event":
            events[4:] = [
                _event({"type": "error", "error": {"type": "overloaded_error", "message": bill.nonce.decode()}})
            ]
        elif fault == "no end":
            events.pop()
        elif fault == "cut":
            data = head + b"".join(events)
            self.transport.write(data[: len(head) + hashed(bill.nonce) // 7 % (len(data) - len(head) - 120)])
            self.transport.abort() if hashed(bill.nonce) & 1 else self.transport.close()
            return
        first = head + b"".join(events[:3])
        self.in_two(bill, first + b"".join(events[3:]) + b"0\r\n\r\n", len(first), fault)

    def in_two(self, bill: Bill, data: bytes, at: int, fault: str) -> None:
        """Two pieces, some time apart: a client may leave between them."""
        wait_s = STALL_S if fault == "stall" else (hashed(bill.nonce) >> 40 & 3) / 1000
        if not wait_s:
            self.rest(bill, data)
            return
        self.transport.write(data[:at])
        asyncio.get_running_loop().call_later(wait_s, self.rest, bill, data[at:])

    def rest(self, bill: Bill, data: bytes) -> None:
        if not self.transport.is_closing():
            bill.is_complete = True
            self.transport.write(data)


_PHRASES = {200: b"OK", 429: b"Too Many Requests", 500: b"Internal Server Error", 529: b"Overloaded"}


def _head(status: int, bill: Bill, kind: bytes, *more: bytes) -> bytes:
    lines = [
        b"HTTP/1.1 %d %b" % (status, _PHRASES[status]),
        b"content-type: " + kind,
        b"request-id: " + bill.request_id.encode(),
    ]
    return b"\r\n".join([*lines, *more]) + b"\r\n\r\n"


def _event(payload: dict[str, Any]) -> bytes:
    event = f"event: {payload['type']}\ndata: {json.dumps(payload, separators=(',', ':'))}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


@cache
def _blank_events() -> list[bytes]:
    name = "nonce" + "0" * 12
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"{name} "}}
    return [
        _event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        *[_event(delta)] * _DELTAS,
        _event({"type": "content_block_stop", "index": 0}),
    ]


def _events(nonce: bytes, model: str) -> list[bytes]:
    usage = usage_of(nonce)
    message = {
        "id": f"msg_{nonce.decode()}", "type": "message", "role": "assistant", "model": model, "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 1},
    }  # fmt: skip
    return [
        _event({"type": "message_start", "message": message}),
        *(event.replace(b"nonce000000000000", nonce) for event in _blank_events()),
        _event({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": usage["output_tokens"]}}),
        _event({"type": "message_stop"}),
    ]  # fmt: skip


@asynccontextmanager
async def soak_upstream() -> AsyncIterator[Upstream]:
    """The upstream, listening on a free port."""
    it = Upstream()
    server = await asyncio.get_running_loop().create_server(lambda: _Call(it), "127.0.0.1", 0, backlog=1024)
    it.port = server.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        server.close()
