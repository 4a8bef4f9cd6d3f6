"""The upstream of `bench.sigkill`: it runs in the bench's own loop, so its ledger outlives every kill of the router.

No answer is like another, not even to the same request: text, ids and usage follow from the number of the call, so that
whoever holds an answer can say which call it is of. A `Bill` is written for every call, whatever becomes of it. The
router says by `traceparent` for which trace it calls (`trace_context_out: on`).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from bench.sigkill_audit import Bill
from router.simulator.ledger import cost_pusd
from router.simulator.record import ModelRecord, Roster, load_roster
from tests.kit.soak_upstream import NONCE, hashed, usage_of

MODEL = "claude-sonnet-5-5"  # what all clients ask for
_MODEL = re.compile(rb'"model": ?"([^"]+)"')
_TRACE = re.compile(rb"\r\ntraceparent: 00-([0-9a-f]{32})-", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_DELTAS = 30
_PACE_S = 0.008


@dataclass(slots=True)
class Upstream:
    """A running one, and its ledger."""

    bills: list[Bill] = field(default_factory=list)
    port: int = 0
    roster: Roster = field(default_factory=load_roster)
    models: dict[str, ModelRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.models = {model.id: model for model in self.roster.models}

    @property
    def url(self) -> str:
        """Where the router finds it."""
        return f"http://127.0.0.1:{self.port}"


class _Calls(asyncio.Protocol):
    """One connection of the router, one call at a time."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self.held += data
        end = self.held.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self.held, 0, end)
        size = end + 4 + int(length[1] if length else 0)
        if len(self.held) < size:
            return
        assert len(self.held) == size, "the router sends one request at a time"
        request, self.held = self.held, b""
        self._call(request[:end], request[end + 4 :])

    def _call(self, head: bytes, body: bytes) -> None:
        nonce, model, trace = NONCE.search(body), _MODEL.search(body), _TRACE.search(head)
        assert nonce is not None
        assert model is not None
        upstream, name, is_stream = self.upstream, model[1].decode(), b'"stream":true' in body
        number = len(upstream.bills) + 1
        seed = b"nonce%012x" % number
        usage = usage_of(seed)
        said = f"This is {nonce[0].decode()}, call {number}. "
        pieces = _events(said, name, number, usage) if is_stream else [_message(said, name, number, usage)]
        bill = Bill(
            request_id=f"req_sigkill{number}", nonce=nonce[0].decode(), trace=trace[1].decode() if trace else "",
            cost_pusd=cost_pusd(usage, upstream.models[name], upstream.roster),
            baseline_pusd=cost_pusd(usage, upstream.models[MODEL], upstream.roster),
            begun_ns=time.time_ns(), digest=sha256(b"".join(pieces)).digest(),
        )  # fmt: skip
        upstream.bills.append(bill)
        kind = b"text/event-stream; charset=utf-8" if is_stream else b"application/json"
        framing = b"transfer-encoding: chunked" if is_stream else b"content-length: %d" % len(pieces[0])
        answer = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nrequest-id: %b\r\n%b\r\n\r\n" % (
            kind, bill.request_id.encode(), framing,
        )  # fmt: skip
        if is_stream:
            chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
            parts = [answer + chunks[0], *chunks[1:-1], chunks[-1] + b"0\r\n\r\n"]
        else:  # a kill may fall before the answer, and between its two halves
            parts = [answer + pieces[0][:200], pieces[0][200:]]
        asyncio.get_running_loop().call_later(0.005 + (hashed(seed) & 31) / 1000, self._send, bill, parts, 0)

    def _send(self, bill: Bill, parts: list[bytes], at: int) -> None:
        if self.transport.is_closing():
            return
        is_last = at + 1 == len(parts)
        if is_last:
            bill.ended_ns = time.time_ns()
        self.transport.write(parts[at])
        if not is_last:
            asyncio.get_running_loop().call_later(_PACE_S, self._send, bill, parts, at + 1)


def _message(said: str, model: str, number: int, usage: dict[str, Any]) -> bytes:
    """A plain answer."""
    message = {
        "id": f"msg_{number}", "type": "message", "role": "assistant", "model": model,
        "content": [{"type": "text", "text": said + "word " * 60}],
        "stop_reason": "end_turn", "stop_sequence": None, "usage": usage,
    }  # fmt: skip
    return json.dumps(message, separators=(",", ":")).encode()


def _events(said: str, model: str, number: int, usage: dict[str, Any]) -> list[bytes]:
    """The events of a stream; the call is told in each delta."""
    message = {
        "id": f"msg_{number}", "type": "message", "role": "assistant", "model": model, "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 1},
    }  # fmt: skip
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": said}}
    payloads: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *[delta] * _DELTAS,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
         "usage": {"output_tokens": usage["output_tokens"]}},
        {"type": "message_stop"},
    ]  # fmt: skip
    return [
        f"event: {payload['type']}\ndata: {json.dumps(payload, separators=(',', ':'))}\n\n".encode()
        for payload in payloads
    ]


@asynccontextmanager
async def billing_upstream() -> AsyncIterator[Upstream]:
    """The upstream, listening on a free port."""
    it = Upstream()
    server = await asyncio.get_running_loop().create_server(lambda: _Calls(it), "127.0.0.1", 0, backlog=1024)
    it.port = server.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        server.close()
