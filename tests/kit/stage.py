"""The stage: the real router in the test's event loop, a scripted upstream behind it, a client that sees exact bytes.

    async with stage(answers(message("hi"))) as s:
        reply = await s.messages(model="claude-sonnet-5-5", text="Classify this ticket")
        assert reply.status == 200
        [trace] = await s.traces()

Both listeners are the program's own uvicorn servers on ports of their own; policies and traces live in a temporary
folder. The client is a bare HTTP/1.1 reader, so that bodies are compared byte for byte.
"""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import router.app
from kit.raw_upstream import Behaviour, Peer, RawRequest, RawUpstream, raw_upstream
from router.app import App
from router.cli.serve import _listen, _server
from router.settings import Settings
from router.trace.record import TraceQuery
from router.trace.sqlite import SqliteTraceReader

# What the package ships is read once per process: reading it takes longer than most tests (see `conftest` too).
router.app.shipped_classifier = functools.cache(router.app.shipped_classifier)
# Tests take every core whole: what is left over for a process of the lowest priority is not enough for their limits.
router.app.ProcessDesk = functools.partial(router.app.ProcessDesk, steps_back=False)
router.app.version = functools.cache(router.app.version)

WAIT_S = 10.0
LANES = """\
version: 1
lanes:
  haiku: {model: claude-haiku-5-5}
  sonnet: {model: claude-sonnet-5-5}
  opus: {model: claude-opus-5-5}
default_lane: sonnet
"""
AS_ASKED = """\
version: 1
rules: []
otherwise: as-asked
"""
KEY = [(b"x-api-key", b"sk-test-1"), (b"anthropic-version", b"2023-06-01")]


def always(extra: str = "", route: str = "haiku") -> str:
    """A policy whose one rule takes every request; `extra` are more keys of the rule, such as `retry: 1`."""
    keys = "".join(f"    {line}\n" for line in extra.splitlines())
    return f"version: 1\nrules:\n  - name: always\n    route: {route}\n{keys}otherwise: as-asked\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: status, headers as sent, body unframed. `is_whole` is False when the connection was cut."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    is_whole: bool = True

    def header(self, name: str) -> str | None:
        """The first value of `name` (lower case)."""
        return next((value.decode() for key, value in self.headers if key == name.encode()), None)

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


async def soon(what: Awaitable[bytes]) -> bytes:
    """What is awaited; TimeoutError after `WAIT_S`."""
    # Not `wait_for`: Python 3.11 loses a cancellation that comes with the result, and a loop around never ends.
    async with asyncio.timeout(WAIT_S):
        return await what


class Wire:
    """One client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(
        self, method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes | None, host: bytes = b"test"
    ) -> None:
        """Write one request, with a length where there is a body."""
        lines = [f"{method} {target} HTTP/1.1".encode("latin-1"), b"host: " + host]
        lines += [name + b": " + value for name, value in headers]
        if body is not None:
            lines.append(b"content-length: %d" % len(body))
        self.writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + (body or b""))

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Status and headers of the next answer; an informational one is passed over."""
        while True:
            raw = await soon(self.reader.readuntil(b"\r\n\r\n"))
            first, *rest = raw[:-4].split(b"\r\n")
            status = int(first.split(b" ")[1])
            if status >= 200:
                pairs = [line.partition(b":") for line in rest]
                return status, [(name.lower(), value.strip()) for name, _, value in pairs]

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; b"" at its end."""
        size = int(await soon(self.reader.readuntil(b"\r\n")), 16)
        data = await soon(self.reader.readexactly(size + 2))
        return data[:-2]

    async def reply(self, *, is_head: bool = False) -> Reply:
        """The whole next answer."""
        status, headers = await self.head()
        named = dict(headers)
        parts: list[bytes] = []
        try:
            if is_head or status in (204, 304):
                pass
            elif named.get(b"transfer-encoding") == b"chunked":
                assert b"content-length" not in named, "two framings in one answer"
                while data := await self.chunk():
                    parts.append(data)
            else:
                parts.append(await soon(self.reader.readexactly(int(named[b"content-length"]))))
        except (asyncio.IncompleteReadError, ConnectionResetError) as exc:
            partial = exc.partial if isinstance(exc, asyncio.IncompleteReadError) else b""
            return Reply(status, headers, b"".join([*parts, partial]), is_whole=False)
        return Reply(status, headers, b"".join(parts))

    async def close(self) -> None:
        """Close as a client that loses interest does."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


@dataclass(slots=True)
class Stage:
    """A running router: `upstream` tells what reached the other side, `traces()` what the router wrote down."""

    app: App
    upstream: RawUpstream
    port: int
    admin_port: int
    folder: Path
    wires: list[Wire] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The base URL for a client library."""
        return f"http://127.0.0.1:{self.port}"

    async def connect(self) -> Wire:
        """A new client connection."""
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24))
        self.wires.append(wire)
        return wire

    async def request(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: list[tuple[bytes, bytes]] | None = None,
        host: bytes = b"test",
    ) -> Reply:
        """One request on a connection of its own; `headers` default to a key and a version."""
        wire = await self.connect()
        wire.send(method, target, KEY if headers is None else headers, body, host)
        reply = await wire.reply(is_head=method == "HEAD")
        await wire.close()
        return reply

    async def post(
        self, body: bytes, headers: list[tuple[bytes, bytes]] | None = None, target: str = "/v1/messages"
    ) -> Reply:
        """POST raw bytes to the Messages endpoint."""
        return await self.request("POST", target, body, headers)

    async def messages(self, *more_headers: tuple[bytes, bytes], target: str = "/v1/messages", **body: Any) -> Reply:
        """A small Messages request; keyword arguments are body fields."""
        return await self.post(request_body(**body), [*KEY, *more_headers], target)

    async def traces(self) -> list[dict[str, Any]]:
        """Every trace, oldest first, from the store."""
        assert self.app.traces is not None
        assert await asyncio.to_thread(self.app.traces.flush)
        rows = await asyncio.to_thread(SqliteTraceReader(self.folder / "traces.db").list, TraceQuery(limit=1000))
        return rows[::-1]

    async def trace(self) -> dict[str, Any]:
        """The only trace; waits until it is written, because a request ends for its client before it is booked."""
        async with asyncio.timeout(WAIT_S):
            while not (rows := await self.traces()):
                pass
        assert len(rows) == 1, rows
        return rows[0]

    async def upstream_closed(self, within_s: float = 1.0) -> None:
        """Wait until no connection of the scripted upstream is in use any more."""
        await until(lambda: not self.upstream.open, within_s)

    async def upstream_asked(self, times: int = 1) -> None:
        """Wait until that many requests have reached the upstream."""
        await until(lambda: len(self.upstream.requests) >= times)

    def write_policy(self, text: str, name: str = "default") -> None:
        """Replace a policy file in one step, as editors do."""
        path = self.folder / "policies" / f"{name}.yaml"
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").rename(path)


async def until(holds: Callable[[], bool], within_s: float = WAIT_S) -> None:
    """Let the loop turn until `holds()`, for what gives no event of its own; TimeoutError after `within_s`."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - sockets close without telling anybody in this process
            await asyncio.sleep(0)


@asynccontextmanager
async def stage(
    behave: Behaviour | None = None,
    *,
    policy: str = AS_ASKED,
    policies: dict[str, str] | None = None,
    origin: str | None = None,
    **settings: Any,
) -> AsyncIterator[Stage]:
    """Run a router before `behave` (or before `origin`) until the block ends; settings by name override."""
    async with raw_upstream(behave or answers()) as upstream:
        with tempfile.TemporaryDirectory(prefix="stage-") as name:
            folder = Path(name)
            (folder / "policies").mkdir()
            for file, text in {"lanes": LANES, "default": policy, **(policies or {})}.items():
                (folder / "policies" / f"{file}.yaml").write_text(text)
            made = {
                "upstream_url": origin or upstream.origin,
                "policies": str(folder / "policies"),
                "traces": f"sqlite:///{folder}/traces.db",
                "policy_history": "off",
                "fleet": "off",  # the folder alone counts; what is pushed has tests of its own
                "max_lag_ms": 0,  # client and upstream are in this loop too, so that it is late through no load
                **settings,
            }
            app = App(Settings(**made))
            sockets = _listen("port", "127.0.0.1", 0), _listen("admin_port", "127.0.0.1", 0)
            servers = [_server(app.api), _server(app.admin)]
            ports = [listener.getsockname()[1] for listener in sockets]
            await app.start()
            for server, listener in zip(servers, sockets, strict=True):
                await _open(server, listener)
            s = Stage(app, upstream, ports[0], ports[1], folder)
            try:
                yield s
            finally:
                for wire in s.wires:
                    wire.writer.close()
                for server in servers:
                    await _shut(server)
                await app.stop()


# What uvicorn's `serve()` does around its main loop, which only ticks; its ticks would cost each test 0.2 s.


async def _open(server: Any, listener: socket.socket) -> None:
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listener])


async def _shut(server: Any) -> None:
    for listening in server.servers:
        listening.close()
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    if tasks := list(server.server_state.tasks):
        await asyncio.wait(tasks, timeout=WAIT_S)


# What an upstream says


def request_body(text: str = "Hello", model: str = "claude-sonnet-5-5", max_tokens: int = 64, **more: Any) -> bytes:
    """A compact Messages body."""
    body = {"model": model, "max_tokens": max_tokens, "messages": [{"role": "user", "content": text}], **more}
    return json.dumps(body, separators=(",", ":")).encode()


def message(
    text: str = "Hi", *, model: str = "claude-sonnet-5-5", stop: str = "end_turn", input: int = 100, output: int = 10
) -> bytes:
    """A Message as JSON, spaced in a way that no writer of ours uses."""
    usage = f'{{ "input_tokens":{input},  "output_tokens" : {output} }}'
    return (
        f'{{"id":"msg_1", "type" :"message","role":"assistant","model":"{model}","content":[{{"type":"text",'
        f'"text":{json.dumps(text)}}}],"stop_reason":"{stop}","stop_sequence":null,"a_new_field":1.50,"usage":{usage}}}'
    ).encode()


def events(
    *texts: str, model: str = "claude-sonnet-5-5", stop: str = "end_turn", input: int = 100, output: int = 10
) -> list[bytes]:
    """A stream as the API sends it, one event per element."""

    def event(name: str, **data: Any) -> bytes:
        return f"event: {name}\ndata: {json.dumps({'type': name, **data}, ensure_ascii=False)}\n\n".encode()

    start = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": [],
             "stop_reason": None, "stop_sequence": None,
             "usage": {"input_tokens": input, "output_tokens": 1}}  # fmt: skip
    return [
        event("message_start", message=start),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("ping"),
        *(
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
            for text in texts or ("Hi",)
        ),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage={"output_tokens": output}),
        event("message_stop"),
    ]


def http(
    body: bytes = b"",
    status: str = "200 OK",
    *headers: tuple[str, str],
    kind: str = "application/json",
    request_id: str | None = "req_up",
) -> bytes:
    """A whole answer with a length."""
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(body)}"]
    lines += [f"request-id: {request_id}"] if request_id else []
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def error(status: str, kind: str, text: str = "no", *headers: tuple[str, str]) -> bytes:
    """An API error as an answer."""
    body = {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_up"}
    return http(json.dumps(body).encode(), status, *headers)


SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nrequest-id: req_up\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def chunked(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def answers(*replies: bytes) -> Behaviour:
    """An upstream that gives these answers, in order of requests over all connections; the last one repeats."""
    said = replies or (http(message()),)
    count = 0

    async def behave(peer: Peer) -> None:
        nonlocal count
        while True:
            await peer.request()
            reply = said[min(count, len(said) - 1)]
            count += 1
            peer.send(reply)
            await peer.writer.drain()

    return behave


def streams(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> Behaviour:
    """An upstream that streams these pieces, each as a chunk of its own that arrives apart; then `end` and close."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send_apart(SSE_HEAD, *(chunked(piece) for piece in pieces))
        peer.send(end)

    return behave


def sent_models(requests: list[RawRequest]) -> list[str]:
    """The models that reached the upstream, in order."""
    return [json.loads(request.body)["model"] for request in requests]
