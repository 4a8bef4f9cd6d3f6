"""An upstream that costs next to nothing: it answers any POST with a fixed Message, or with a stream of 106 events.

    python bench/fake_upstream.py [--pace-ms 20] [--delay-ms 0]

Prints `fake upstream: http://127.0.0.1:PORT` and serves until it is ended. It reads just enough of a request to know
its length and whether it asks for a stream. A stream asked for with `"max_tokens":4096` is paced: its events leave
`--pace-ms` apart, and the id of its message tells which call it answers. Any other leaves all at once. A GET is
answered with the number of calls so far, as `{"calls": 3}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import dataclass

import uvloop

EVENTS = 106
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nrequest-id: req_011bench\r\nanthropic-organization-id: bench\r\n"


def plain_answer() -> bytes:
    """A whole answer of about 1 kB with usage, as it goes over the wire."""
    message = {
        "id": "msg_01bench",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-5-5",
        "content": [{"type": "text", "text": "word " * 150}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 480,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 150,
            "service_tier": "standard",
        },
    }
    body = json.dumps(message, separators=(",", ":")).encode()
    return _HEAD % b"application/json" + b"content-length: %d\r\n\r\n%b" % (len(body), body)


def stream_events() -> list[bytes]:
    """The events of one stream, `EVENTS` of them, each as one HTTP chunk."""
    start = {
        "id": "msg_01bench",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-5-5",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 480, "output_tokens": 1},
    }
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "word "}}
    payloads = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *[delta] * (EVENTS - 5),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 101},
        },
        {"type": "message_stop"},
    ]
    events = []
    for payload in payloads:
        data = json.dumps(payload, separators=(",", ":"))
        event = f"event: {payload['type']}\ndata: {data}\n\n".encode()
        events.append(b"%x\r\n%b\r\n" % (len(event), event))
    return events


@dataclass
class Calls:
    """How many calls there were, on all connections."""

    count: int = 0


class Answering(asyncio.Protocol):
    """One connection."""

    plain = plain_answer()
    head = _HEAD % b"text/event-stream; charset=utf-8" + b"transfer-encoding: chunked\r\n\r\n"
    events = stream_events()
    burst = head + b"".join(events) + b"0\r\n\r\n"

    def __init__(self, pace_s: float, delay_s: float, calls: Calls) -> None:
        self.pace_s = pace_s
        self.delay_s = delay_s
        self.calls = calls
        self.pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        data = self.pending + data if self.pending else data
        while data:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                break
            head = data[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(data) < end + 4 + length:
                break
            body = data[end + 4 : end + 4 + length]
            data = data[end + 4 + length :]
            if head.startswith(b"get "):
                said = b'{"calls": %d}' % self.calls.count
                self.transport.write(_HEAD % b"application/json" + b"content-length: %d\r\n\r\n%b" % (len(said), said))
                continue
            self.calls.count += 1
            if self.delay_s:
                asyncio.get_running_loop().call_later(self.delay_s, self.answer, body, self.calls.count)
            else:
                self.answer(body, self.calls.count)
        self.pending = data

    def answer(self, body: bytes, call: int) -> None:
        """Answer the request with this body, the `call`th of all."""
        if self.transport.is_closing():
            return
        if b'"stream":true' not in body:
            self.transport.write(self.plain)
        elif b'"max_tokens":4096' not in body:
            self.transport.write(self.burst)
        else:
            self.transport.write(self.head + self.events[0].replace(b"msg_01bench", b"msg_%07d" % call))
            asyncio.get_running_loop().call_later(self.pace_s, self.send_event, 1)

    def send_event(self, number: int) -> None:
        """Send one event of a paced stream and call for the next."""
        if self.transport.is_closing():
            return
        self.transport.write(self.events[number])
        if number + 1 < EVENTS:
            asyncio.get_running_loop().call_later(self.pace_s, self.send_event, number + 1)
        else:
            self.transport.write(b"0\r\n\r\n")


async def serve(pace_s: float, delay_s: float) -> None:
    """Serve until cancelled."""
    calls = Calls()
    server = await asyncio.get_running_loop().create_server(
        lambda: Answering(pace_s, delay_s, calls), "127.0.0.1", 0, backlog=1024
    )
    print(f"fake upstream: http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pace-ms", type=float, default=20.0, help="milliseconds between the events of a paced stream")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="milliseconds before an answer begins")
    options = parser.parse_args()
    try:
        uvloop.run(serve(options.pace_ms / 1000, options.delay_ms / 1000))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
