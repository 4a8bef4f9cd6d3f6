"""The admin listener of several workers: what concerns all of them is asked of all, the rest goes to one.

It decides nothing about who may ask: a question goes to the workers with the headers it came with, and the first
refusal is the answer. `/healthz` alone is answered here, and `/readyz` while the router stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from router.errors import error_body
from router.web.merged import added, figures_text, merged_metrics, merged_status

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_MAX_BODY = 65_536
_ASK_S = 5.0  # for a short answer of a worker
_READY_S = 0.5  # for whether it can serve: who asks has a second, as Kubernetes has where nothing else is said
_HEAD_MAX = 65_536
_OWN_HEADERS = (b"connection", b"content-length", b"transfer-encoding", b"keep-alive", b"expect", b"upgrade")


class Peer(Protocol):
    """A worker, as far as this listener needs it (`supervisor.Worker` is one)."""

    number: int
    state: str

    def connect(self) -> socket.socket | None: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """One whole question."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Said:
    """One whole answer."""

    status: int
    headers: Headers
    body: bytes


class Together:
    """The ASGI application. `peers` are the workers, those that can serve first; `figures` the supervisor's metrics."""

    def __init__(
        self,
        peers: Callable[[], Sequence[Peer]],
        *,
        is_draining: Callable[[], bool],
        figures: Callable[[], Mapping[str, Mapping[str, int]]],
        is_cache_shared: bool,
        version: str,
    ) -> None:
        self._peers = peers
        self._is_draining = is_draining
        self._figures = figures
        self._is_cache_shared = is_cache_shared
        self._version = version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        body = await _body(receive)
        if body is None:
            await _send(send, _error(413, "request_too_large", f"a body of over {_MAX_BODY} bytes"))
            return
        raw = scope.get("raw_path") or path.encode()
        query = scope["query_string"]
        asked = Asked(scope["method"].encode(), raw + (b"?" + query if query else b""), scope["headers"], body)
        is_plain = scope["method"] == "GET"
        if path == "/healthz" and is_plain:
            await _send(send, _json(200, {"status": "ok", "version": self._version}))
        elif path == "/readyz" and is_plain:
            await _send(send, await self._ready(asked))
        elif path == "/metrics" and is_plain:
            await _send(send, await self._of_all(asked, self._metrics))
        elif path == "/status" and is_plain:
            await _send(send, await self._of_all(asked, self._status))
        elif path in ("/cache", "/cache/purge") and not self._is_cache_shared:
            await _send(send, await self._of_all(asked, _cache))
        else:
            await self._forward(asked, receive, send)

    async def _ready(self, asked: Asked) -> Said:
        """200 where at least one worker can serve, with what it says."""
        counts = self._figures()["workers"]
        if not self._is_draining():
            said = await _first_said([peer for peer in self._peers() if peer.state == "ready"], asked)
            if said is not None and said.status == 200:
                return _json(200, {**orjson.loads(said.body), "workers": counts})
            if said is not None:
                return said
        document = {"ready": False, "serving": False, "draining": self._is_draining(), "workers": counts}
        return _json(503, document)

    async def _of_all(self, asked: Asked, merge: Callable[[Mapping[int, Said]], Said]) -> Said:
        peers = [peer for peer in self._peers() if peer.state != "starting"]
        answers = await asyncio.gather(*(_ask(peer, asked) for peer in peers))
        found = {
            peer.number: said
            for peer, said in zip(peers, answers, strict=True)
            if said is not None and (said.status < 500 or peer.state == "ready")  # one that ends may fail
        }
        refused = next((said for said in found.values() if said.status != 200), None)
        if refused is not None:
            return refused
        return merge(dict(sorted(found.items()))) if found else _nobody()

    def _metrics(self, found: Mapping[int, Said]) -> Said:
        text = merged_metrics({number: said.body.decode() for number, said in found.items()})
        text += figures_text(self._figures())
        return Said(200, next(iter(found.values())).headers, text.encode())

    def _status(self, found: Mapping[int, Said]) -> Said:
        documents = {number: orjson.loads(said.body) for number, said in found.items()}
        states = {peer.number: peer.state for peer in self._peers()}
        document = merged_status(documents)
        document["workers"] = [
            {"number": number, "state": states.get(number, "gone"), "recent": documents[number]["recent"]}
            for number in documents
        ]
        return _json(200, document)

    async def _forward(self, asked: Asked, receive: Receive, send: Send) -> None:
        """One worker answers; a long answer is passed on as it comes, until it or its reader ends."""
        for peer in self._peers():
            if peer.state == "starting":
                continue
            async with _connected(peer) as wire:
                if wire is None:
                    continue
                reader, writer = wire
                try:
                    writer.write(_request(asked))
                    status, headers = await asyncio.wait_for(_head(reader), 6 * _ASK_S)
                except (OSError, EOFError, TimeoutError, ValueError):
                    continue  # it is just going, or stuck: only reading is asked here, and the next may do it
                length = [pair for pair in headers if pair[0] == b"content-length"]
                await send({"type": "http.response.start", "status": status, "headers": _relayed(headers) + length})
                passing = asyncio.ensure_future(_pass_on(reader, [] if asked.method == b"HEAD" else headers, send))
                leaving = asyncio.ensure_future(_left(receive))
                try:
                    await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    leaving.cancel()
                    passing.cancel()
                    with contextlib.suppress(asyncio.CancelledError, OSError, EOFError, ValueError):
                        await passing
                return
        await _send(send, _nobody())


async def _pass_on(reader: asyncio.StreamReader, headers: Headers, send: Send) -> None:
    async for piece in _pieces(reader, headers):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first_said(peers: Sequence[Peer], asked: Asked) -> Said | None:
    """The first answer that is no 503; None where there is none in time. One worker that hangs delays nobody."""
    asking = [asyncio.ensure_future(_ask(peer, asked, _READY_S)) for peer in peers]
    try:
        for coming in asyncio.as_completed(asking):
            said = await coming
            if said is not None and said.status != 503:
                return said
        return None
    finally:
        for task in asking:
            task.cancel()


async def _ask(peer: Peer, asked: Asked, limit_s: float = _ASK_S) -> Said | None:
    """The whole answer of one worker; None where it does not come in time."""
    try:
        async with asyncio.timeout(limit_s), _connected(peer) as wire:
            if wire is None:
                return None
            reader, writer = wire
            writer.write(_request(asked))
            status, headers = await _head(reader)
            body = b"".join([piece async for piece in _pieces(reader, headers)])
            return Said(status, _relayed(headers), body)
    except (OSError, EOFError, TimeoutError, ValueError):
        return None


@contextlib.asynccontextmanager
async def _connected(peer: Peer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None]:
    ours = peer.connect()
    if ours is None:
        yield None
        return
    reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_HEAD_MAX)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def _request(asked: Asked) -> bytes:
    lines = [asked.method + b" " + asked.target + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in asked.headers if name not in _OWN_HEADERS]
    lines += [b"connection: close", b"content-length: %d" % len(asked.body), b"", asked.body]
    return b"\r\n".join(lines)


async def _head(reader: asyncio.StreamReader) -> tuple[int, Headers]:
    """Status and headers. Raises EOFError (of which IncompleteReadError is one), OSError or ValueError."""
    try:
        first, *rest = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
    except asyncio.LimitOverrunError:
        raise ValueError("a head of too many bytes") from None
    pairs = (line.partition(b":") for line in rest)
    return int(first.split(b" ", 2)[1]), [(name.lower(), value.strip()) for name, _, value in pairs]


async def _pieces(reader: asyncio.StreamReader, headers: Headers) -> AsyncIterator[bytes]:
    named = dict(headers)
    if named.get(b"transfer-encoding") == b"chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield (await reader.readexactly(size + 2))[:-2]
        return
    left = int(named.get(b"content-length", b"0"))
    while left:
        piece = await reader.read(min(left, _HEAD_MAX))
        if not piece:
            raise EOFError
        left -= len(piece)
        yield piece


def _relayed(headers: Headers) -> Headers:
    return [(name, value) for name, value in headers if name not in _OWN_HEADERS]


def _cache(found: Mapping[int, Said]) -> Said:
    """Counts, or what was purged, of all caches in memory."""
    return _json(200, added([orjson.loads(said.body) for said in found.values()]))


async def _body(receive: Receive) -> bytes | None:
    """The body; None when it is too large."""
    body, is_more = b"", True
    while is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        body += message.get("body", b"")
        is_more = message.get("more_body", False)
        if len(body) > _MAX_BODY:
            return None
    return body


def _json(status: int, document: Any) -> Said:
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    return Said(status, [*headers, (b"x-content-type-options", b"nosniff")], orjson.dumps(document))


def _error(status: int, wire_type: str, message: str) -> Said:
    return Said(status, [(b"content-type", b"application/json")], error_body(wire_type, message, ""))


def _nobody() -> Said:
    return _error(503, "api_error", "no worker answers: they are starting or stopping")


async def _send(send: Send, said: Said) -> None:
    headers = [*said.headers, (b"content-length", str(len(said.body)).encode())]
    await send({"type": "http.response.start", "status": said.status, "headers": headers})
    await send({"type": "http.response.body", "body": said.body})
