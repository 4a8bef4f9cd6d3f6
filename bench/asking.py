"""A client that watches what a restart does to it: whole answers, cut ones, refused connections.

It does what client libraries do: it keeps connections, leaves those that the server says it closes, and asks again on
another one when a kept connection was closed before a byte of an answer came.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

WAIT_S = 60.0


@dataclass
class Answer:
    """What became of one request. `end` is whole, broken, refused, or the status of an error."""

    end: str
    trace: str = ""
    cost: str = ""
    cache: str = ""
    body: bytes = b""


@dataclass
class Client:
    """Asks one router; `ends` counts what came of it, `retried` what was asked again on a fresh connection.

    With `asks_again` off a kept connection that ends without a byte is an end like any other.
    """

    url: str
    keeps: bool = True
    asks_again: bool = True
    ends: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    open: int = 0
    longest_wait_s: float = 0.0  # for the first byte of an answer
    idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=deque)

    async def ask(self, number: int, *, stream: bool, keep: bool = True) -> Answer:
        """One request to its end."""
        self.open += 1
        try:
            answer = await asyncio.wait_for(self._ask(number, stream=stream, keep=keep and self.keeps), WAIT_S)
        except TimeoutError:
            answer = Answer("hung")
        finally:
            self.open -= 1
        self.ends[answer.end] += 1
        return answer

    async def _ask(self, number: int, *, stream: bool, keep: bool) -> Answer:
        request = self._request(number, stream=stream)
        while True:
            is_kept = keep and bool(self.idle)
            try:
                wire = self.idle.popleft() if is_kept else await self._connect()
            except OSError:
                return Answer("refused")
            reader, writer = wire
            if is_kept and (reader.at_eof() or writer.is_closing()):
                writer.close()
                continue
            began_s = time.perf_counter()
            try:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
            except (OSError, asyncio.IncompleteReadError) as error:
                writer.close()
                if self.asks_again and is_kept and not getattr(error, "partial", b""):
                    self.retried += 1
                    continue
                return Answer("broken")
            self.longest_wait_s = max(self.longest_wait_s, time.perf_counter() - began_s)
            return await self._rest(head, wire, keep=keep)

    async def _rest(
        self, head: bytes, wire: tuple[asyncio.StreamReader, asyncio.StreamWriter], *, keep: bool
    ) -> Answer:
        reader, writer = wire
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        named = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(first.split(" ")[1])
        answer = Answer("whole", *(named.get(f"x-router-{name}", "") for name in ("trace", "cost-usd", "cache")))
        parts = []
        try:
            if named.get("transfer-encoding") == "chunked":
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    parts.append((await reader.readexactly(size + 2))[:-2])
                await reader.readexactly(2)
            else:
                parts.append(await reader.readexactly(int(named["content-length"])))
        except (OSError, asyncio.IncompleteReadError):
            answer.end = "broken"
        answer.body = b"".join(parts)
        if status != 200:
            answer.end = str(status)
        elif b"event: error" in answer.body:
            answer.end = "error event"
        elif named.get("content-type", "").startswith("text/event-stream") and b"message_stop" not in answer.body:
            answer.end = "broken"
        if keep and answer.end == "whole" and named.get("connection", "").lower() != "close":
            self.idle.append(wire)
        else:
            writer.close()
        return answer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self.url)
        return await asyncio.open_connection(parts.hostname, parts.port)

    def _request(self, number: int, *, stream: bool) -> bytes:
        body = {
            "model": "claude-sonnet-5-5",
            "max_tokens": 4096 if stream else 200,  # how the fake upstream knows that a stream is to be paced
            **({"stream": True} if stream else {}),
            "messages": [{"role": "user", "content": f"Classify ticket {number:09d}: the app fails after log-in."}],
        }
        text = json.dumps(body, separators=(",", ":")).encode()
        head = (
            f"POST /v1/messages HTTP/1.1\r\nhost: {urlsplit(self.url).netloc}\r\nx-api-key: sk-bench\r\n"
            f"anthropic-version: 2023-06-01\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
        )
        return head.encode() + text

    def close(self) -> None:
        """Close what is kept."""
        while self.idle:
            self.idle.popleft()[1].close()
