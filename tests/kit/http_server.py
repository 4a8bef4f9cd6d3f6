"""Our HTTP protocol before a small ASGI application, in the test's event loop and with limits of the test's choice.

async with served(echo, head_s=0.05) as server:
    wire = await server.connect()
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from kit.raw_client import RawClient
from kit.stage import until
from router.web.http.connection import HttpConnection
from router.web.http.limits import Limits
from router.web.http.lobby import Lobby


@dataclass(slots=True)
class Served:
    """A running listener."""

    port: int
    lobby: Lobby
    connections: set[Any]
    tasks: set[Any]
    reported: list[BaseException]
    wires: list[RawClient] = field(default_factory=list)

    async def connect(self, *, receive_bytes: int = 0) -> RawClient:
        """A client."""
        wire = await RawClient.open(self.port, receive_bytes=receive_bytes)
        self.wires.append(wire)
        return wire


@asynccontextmanager
async def served(application: Any, **limits: Any) -> AsyncIterator[Served]:
    """Serve on a free port until the block ends; afterwards no task and no connection may be left."""
    reported: list[BaseException] = []
    lobby = Lobby(Limits(**limits), lambda _, error: reported.append(error))
    state = SimpleNamespace(connections=set(), tasks=set())
    config = SimpleNamespace(loaded_app=application)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: HttpConnection(config, state, {}, lobby=lobby), "127.0.0.1", 0)
    made = Served(server.sockets[0].getsockname()[1], lobby, state.connections, state.tasks, reported)
    try:
        yield made
    finally:
        for wire in made.wires:
            await wire.close()
        for connection in list(state.connections):
            connection.transport.abort()
        server.close()
        await server.wait_closed()
        await until(lambda: not state.connections and not state.tasks)
    assert lobby.stats()["open"] == 0
    assert lobby.stats()["idle"] == 0


async def body_of(receive: Any) -> bytes:
    """The whole body; RuntimeError when the client left."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RuntimeError("the client left")
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts)


async def reply(
    send: Any, body: bytes = b"", status: int = 200, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """A whole answer with a length."""
    fields = [(b"content-length", b"%d" % len(body)), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with method, target and body."""
    body = await body_of(receive)
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    await reply(send, scope["method"].encode() + b" " + target + b" " + body)
