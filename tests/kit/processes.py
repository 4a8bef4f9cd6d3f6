"""Routers as processes of their own, which a test may freeze or kill; what they say can be read while they run.

    async with router(folder, upstream.origin, cache=redis.url) as one, router(...) as other:
        reply = await one.messages(stream=True)
        one.signal(signal.SIGKILL)

`folder` gets the policies and what the processes say. One that was not killed by the test must end with status 0 and
without a traceback when it is told to stop.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.installed import environment, send
from kit.stage import KEY, LANES, Reply, Wire, request_body

START_S = 30.0
_ADDRESSES = re.compile(r"router: api http://127.0.0.1:(\d+)  admin http://127.0.0.1:(\d+)\n")
_SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


@dataclass(slots=True)
class RouterProcess:
    """A running `router serve`."""

    process: asyncio.subprocess.Process
    port: int
    admin_port: int
    log: Path
    is_doomed: bool = False
    wires: list[Wire] = field(default_factory=list)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; one that kills is remembered."""
        self.is_doomed = self.is_doomed or number == signal.SIGKILL
        send(self.process, number)

    def said(self) -> list[str]:
        """The lines of its standard error so far."""
        return self.log.read_text().splitlines()

    async def connect(self, *, admin: bool = False) -> Wire:
        """A client connection."""
        port = self.admin_port if admin else self.port
        wire = Wire(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 24))
        self.wires.append(wire)
        return wire

    async def begin(self, *more_headers: tuple[bytes, bytes], key: bytes = b"sk-test-1", **body: Any) -> Wire:
        """Send a Messages request and read no answer yet."""
        wire = await self.connect()
        wire.send("POST", "/v1/messages", [(b"x-api-key", key), *KEY[1:], *more_headers], request_body(**body))
        return wire

    async def messages(self, *more_headers: tuple[bytes, bytes], **body: Any) -> Reply:
        """One Messages request on a connection of its own."""
        wire = await self.begin(*more_headers, **body)
        try:
            return await wire.reply()
        finally:
            await wire.close()

    async def admin(self, target: str, body: Any = None) -> bytes:
        """What the admin listener says at `target`; a body that is given is posted as JSON."""
        wire = await self.connect(admin=True)
        if body is None:
            wire.send("GET", target, [], None, b"127.0.0.1")
        else:
            wire.send("POST", target, [(b"content-type", b"application/json")], json.dumps(body).encode(), b"127.0.0.1")
        reply = await wire.reply()
        await wire.close()
        assert reply.status == 200, reply
        return reply.body

    async def figures(self) -> dict[str, float]:
        """Its metrics, by name and labels as they are written."""
        found = _SAMPLE.findall((await self.admin("/metrics")).decode())
        return {f"{name}{{{labels}}}" if labels else name: float(value) for name, labels, value in found}

    async def traces(self) -> list[dict[str, Any]]:
        """Its last traces, newest first."""
        rows: list[dict[str, Any]] = json.loads(await self.admin("/traces?limit=500"))["traces"]
        return rows


@asynccontextmanager
async def router(
    folder: Path, origin: str, *, policy: str, cache: str, name: str = "router", **settings: str
) -> AsyncIterator[RouterProcess]:
    """`router serve` before `origin` until the block ends; `settings` are environment variables."""
    policies = folder / "policies"
    policies.mkdir(exist_ok=True)
    (policies / "lanes.yaml").write_text(LANES)
    (policies / "default.yaml").write_text(policy)
    own = {
        "ROUTER_UPSTREAM_URL": origin, "ROUTER_POLICIES": str(policies), "ROUTER_POLICY_HISTORY": "off",
        "ROUTER_MAX_LAG_MS": "0", "ROUTER_CACHE": cache, "ROUTER_AFFINITY": "off",
        "ROUTER_PORT": "0", "ROUTER_ADMIN_PORT": "0",
        "ROUTER_TRACES": f"sqlite:///{folder}/{name}.db",
    }  # fmt: skip
    log = folder / f"{name}.log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "router.cli.main", "serve", cwd=folder, env=environment(**(own | settings)),
            stdout=asyncio.subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), START_S)).decode()
        found = _ADDRESSES.fullmatch(line)
        assert found is not None, f"no address line: {line!r}\n{log.read_text()}"
        running = RouterProcess(process, int(found[1]), int(found[2]), log)
        try:
            yield running
        finally:
            for wire in running.wires:
                wire.writer.close()
        if not running.is_doomed:
            running.signal(signal.SIGCONT)
            running.signal(signal.SIGTERM)
            status = await asyncio.wait_for(process.wait(), START_S)
            assert status == 0, f"ended with status {status}\n{log.read_text()}"
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        if process.returncode is None:
            send(process, signal.SIGKILL)
            await process.wait()
