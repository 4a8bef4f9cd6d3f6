"""The installed program: `router serve` as a process of its own.

    async with installed("--upstream", origin, "--policies", folder) as router:
        router.api, router.admin           # base URLs, taken from its address line
        router.signal(signal.SIGHUP)

It is started with no settings from outside, on free ports, and must end with status 0 and without a traceback when it
is told to stop. `ended()` runs a command that is expected to end by itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.stage import Reply, Wire

WAIT_S = 30.0
_ADDRESSES = re.compile(r"router: api (http://\S+)  admin (http://\S+)\n")


@dataclass(slots=True)
class Installed:
    """A running program; `stderr` grows as it speaks."""

    process: asyncio.subprocess.Process
    api: str
    admin: str

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        send(self.process, number)

    async def connect(self, *, admin: bool = False) -> Wire:
        """A client connection to one of its listeners."""
        host, _, port = (self.admin if admin else self.api).removeprefix("http://").rpartition(":")
        return Wire(*await asyncio.open_connection(host, int(port)))

    async def request(
        self, method: str, target: str, body: bytes | None = None, headers: list[tuple[bytes, bytes]] | None = None,
        *, admin: bool = False,
    ) -> Reply:  # fmt: skip
        """One request on a connection of its own."""
        wire = await self.connect(admin=admin)
        wire.send(method, target, headers or [], body, b"127.0.0.1")
        reply = await wire.reply()
        await wire.close()
        return reply

    async def policy_status(self) -> Any:
        """What the admin listener says of the policies."""
        return json.loads((await self.request("GET", "/policy", admin=True)).body)


def send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Signal a process, which may have ended.

    The library's own way first asks whether it lives, and so takes its status away from the loop that waits for it.
    """
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)


def environment(**settings: str) -> dict[str, str]:
    """The surroundings of a program: ours, without any setting, plus these."""
    foreign = ("ROUTER_", "ANTHROPIC_", "CLAUDE", "OTEL_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | settings


async def _start(*arguments: str, cwd: Path | None, settings: dict[str, str]) -> asyncio.subprocess.Process:
    program = Path(sys.executable).with_name("router")
    command = [str(program)] if program.exists() else [sys.executable, "-m", "router.cli.main"]
    named = {"ROUTER_POLICY_HISTORY": "off", "ROUTER_MAX_LAG_MS": "0", **settings}
    return await asyncio.create_subprocess_exec(
        *command, *arguments, cwd=cwd, env=environment(**named),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def ended(*arguments: str, cwd: Path | None = None, **settings: str) -> tuple[int, str, str]:
    """Run a command to its end → (exit status, stdout, stderr)."""
    process = await _start(*arguments, cwd=cwd, settings=settings)
    try:
        out, err = await asyncio.wait_for(process.communicate(), WAIT_S)
    finally:
        if process.returncode is None:
            send(process, signal.SIGKILL)
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def installed(*arguments: str, cwd: Path | None = None, **settings: str) -> AsyncIterator[Installed]:
    """`router serve ARGUMENTS` on free ports until the block ends; then SIGTERM, and it must end with status 0."""
    process = await _start("serve", "--port", "0", "--admin-port", "0", *arguments, cwd=cwd, settings=settings)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), WAIT_S)).decode()
        found = _ADDRESSES.fullmatch(line)
        if found is None:
            raise AssertionError(f"no address line: {line!r}\n{(await process.stderr.read()).decode()}")
        yield Installed(process, found[1], found[2])
        if process.returncode is None:
            send(process, signal.SIGTERM)
        status = await asyncio.wait_for(process.wait(), WAIT_S)
        said = (await process.stderr.read()).decode()
        assert status == 0, f"ended with status {status}\n{said}"
        assert "Traceback" not in said, said
    finally:
        if process.returncode is None:
            send(process, signal.SIGKILL)
            await process.wait()
