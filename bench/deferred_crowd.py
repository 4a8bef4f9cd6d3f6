"""The clients of `bench.deferred_kills`: they ask, look and cancel without a pause, whatever happens to the router."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from urllib.parse import urlsplit

from bench.deferred_audit import Asked

MODEL = "claude-sonnet-5-5"
LOST = "lost"
_PAUSE_S = 0.1
_OPEN = 30  # jobs of one client at a time
_WAIT_S = 30.0  # for one answer
_FINE = {"POST 202", "GET 200", "GET 202", "GET 404", "DELETE 200", "DELETE 404"}  # all that is to be said here


@dataclass(slots=True)
class Reply:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes


async def call(url: str, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Reply | None:
    """One request on a connection of its own; None when the connection ended before the answer was whole."""
    at = urlsplit(url)
    try:
        async with asyncio.timeout(_WAIT_S):
            reader, writer = await asyncio.open_connection(at.hostname, at.port)
            try:
                sent = {"host": at.netloc, "connection": "close", "content-length": str(len(body)), **headers}
                head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
                writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
                first, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1").split("\r\n")
                named = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                return Reply(int(first.split(" ")[1]), named, await reader.readexactly(int(named["content-length"])))
            finally:
                writer.close()
    except (OSError, asyncio.IncompleteReadError):
        return None


class Crowd:
    """`count` clients that share `keys`. `said` counts all that they were told, by method and status."""

    def __init__(self, count: int, seed: int, keys: list[str]) -> None:
        self.url = ""
        self.count = count
        self.dice = random.Random(seed)
        self.keys = keys
        self.is_over = False
        self.is_up = asyncio.Event()
        self.asked: list[tuple[Asked, str]] = []  # with its key
        self.said: Counter[str] = Counter()

    async def run(self) -> None:
        """Ask until `is_over`; then see to the end of all that was asked for."""
        await asyncio.gather(*(self._one(self.keys[number % len(self.keys)]) for number in range(self.count)))

    async def last_orders(self) -> None:
        """One more of each key, to its end: so the router has all credentials, and goes on with what lies there."""

        async def one(key: str) -> None:
            asked = await self._ask(key)
            await self._see_out([(asked, key)])

        await asyncio.gather(*(one(key) for key in self.keys))

    async def look_again(self) -> None:
        """Another look at every job."""
        left = list(self.asked)

        async def work() -> None:
            while left:
                await self._look(*left.pop())

        await asyncio.gather(*(work() for _ in range(self.count)))

    async def _one(self, key: str) -> None:
        open_: list[tuple[Asked, str]] = []
        done: list[tuple[Asked, str]] = []
        while not self.is_over:
            chance = self.dice.random()
            if len(open_) < _OPEN and chance < 0.4:
                open_.append((await self._ask(key), key))
            elif open_ and chance < 0.92:
                which = self.dice.randrange(len(open_))
                if chance < 0.46:
                    await self._cancel(*open_[which])
                await self._look(*open_[which])
                if _is_done(open_[which][0]):
                    done.append(open_.pop(which))
            elif done and chance < 0.94:  # one that has ended goes, too
                await self._cancel(*self.dice.choice(done))
            elif done:
                await self._look(*self.dice.choice(done))
            await asyncio.sleep(_PAUSE_S)
        await self._see_out(open_)

    async def _see_out(self, open_: list[tuple[Asked, str]]) -> None:
        while open_:
            for each in list(open_):
                await self._look(*each)
                if _is_done(each[0]):
                    open_.remove(each)
            await asyncio.sleep(_PAUSE_S * 2)

    async def _ask(self, key: str) -> Asked:
        """Ask for something new, under its idempotency-key, until it is accepted; sometimes once more after that."""
        nonce = f"nonce{len(self.asked):08x}"
        asked = Asked(nonce)
        self.asked.append((asked, key))
        text = f"Classify this ticket, {nonce}: the app fails after log-in."
        body = {
            "model": MODEL,
            "max_tokens": self.dice.choice((100, 200)),
            "messages": [{"role": "user", "content": text}],
        }
        raw = json.dumps(body).encode()
        headers = {
            "prefer": "respond-async", "idempotency-key": nonce, "x-api-key": key, "anthropic-version": "2023-06-01",
            "content-type": "application/json",
        }  # fmt: skip
        times = 2 if self.dice.random() < 0.05 else 1
        while times:
            asked.sends += 1
            reply = await self._call("POST", "/v1/messages", headers, raw)
            if reply is not None and reply.status == 202:
                asked.jobs.add(reply.headers["location"].rpartition("/")[2])
                times -= 1
            else:
                await asyncio.sleep(_PAUSE_S)
        return asked

    async def _look(self, asked: Asked, key: str) -> None:
        reply = await self._call("GET", _path(asked), {"x-api-key": key})
        if reply is None:
            return
        asked.looks += 1
        if asked.is_canceled:
            asked.after[reply.status] += 1
            return
        asked.end = "answered" if reply.status == 200 else str(reply.status)
        if reply.status == 200:
            asked.digests.add(sha256(reply.body).digest())
            cost = reply.headers.get("x-router-cost-usd")
            asked.message, asked.cost_pusd = json.loads(reply.body)["id"], int(Decimal(cost) * 10**12) if cost else None

    async def _cancel(self, asked: Asked, key: str) -> None:
        """Cancel a job, again and again until the router has said so; the first of several may have done it."""
        is_again = False
        while not asked.is_canceled:
            reply = await self._call("DELETE", _path(asked), {"x-api-key": key})
            if reply is not None and (reply.status == 200 or (reply.status == 404 and is_again)):
                asked.is_canceled = True
            elif reply is not None and reply.status == 404:
                asked.end = "404 to a DELETE"  # it was never heard of
                return
            is_again = True

    async def _call(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Reply | None:
        await self.is_up.wait()
        reply = None
        with contextlib.suppress(TimeoutError):
            reply = await call(self.url, method, path, headers, body)
        self.said[f"{method} {LOST if reply is None else reply.status}"] += 1
        return reply

    def odd(self) -> list[str]:
        """What no client was to be told."""
        return [
            f"{number} times {what}"
            for what, number in self.said.items()
            if what not in _FINE and not what.endswith(LOST)
        ]


def _path(asked: Asked) -> str:
    return f"/v1/messages/deferred/{min(asked.jobs)}"


def _is_done(asked: Asked) -> bool:
    return asked.is_canceled or asked.end not in ("", "202")
