"""A fleet of routers over a real Redis, and the command line that pushes policies to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from kit.redis_server import RedisServer, becomes
from kit.stage import Stage, stage
from router.cli.main import cli

MODELS = ("claude-haiku-5-5", "claude-sonnet-5-5")


def version(number: int, route: str = "it") -> dict[str, str]:
    """Two files that belong together: any mix of two versions compiles, and is seen by rule and model."""
    lanes = f"version: 1\nlanes: {{it: {{model: {MODELS[number % 2]}}}}}\ndefault_lane: it\n"
    policy = f"version: 1\nrules: [{{name: rule-{number}, route: {route}}}]\notherwise: as-asked\n"
    return {"lanes": lanes, "default": policy}


def encoded(number: int) -> dict[str, bytes]:
    return {f"{name}.yaml": text.encode() for name, text in version(number).items()}


def folder_of(place: Path, files: Mapping[str, str]) -> Path:
    place.mkdir(exist_ok=True)
    for name, text in files.items():
        (place / f"{name}.yaml").write_text(text)
    return place


def member(redis: RedisServer, number: int = 0, **settings: Any) -> Any:
    """A router of the fleet whose folder holds version `number`."""
    return stage(policies=version(number), **{"fleet": redis.url, **settings})


@asynccontextmanager
async def pair(redis: RedisServer, **settings: Any) -> AsyncIterator[tuple[Stage, Stage]]:
    """Two routers that have been heard of."""
    async with member(redis, **settings) as one, member(redis, **settings) as other:
        await heard(one, 2)
        await heard(other, 2)
        yield one, other


async def heard(s: Stage, processes: int, other_revision: int = 0) -> None:
    """Wait until a router counts so many."""
    figures = lambda: (s.app.fleet.stats()["processes"], s.app.fleet.stats()["other_revision"])  # noqa: E731
    await becomes(lambda: figures() == (processes, other_revision))


async def run(redis: RedisServer, *arguments: str, secret: str | None = None) -> Result:
    """`router policy ARGUMENTS` on this fleet, with no setting from outside but a `tenant_secret`."""
    command = ["policy", *arguments, "--fleet", redis.url]
    settings = {"ROUTER_CONFIG": None, "ROUTER_TENANT_SECRET": secret}
    return await asyncio.to_thread(CliRunner().invoke, cli, command, env=settings)


async def push(
    redis: RedisServer, place: Path, number: int, *options: str, secret: str | None = None
) -> dict[str, Any]:
    """Push version `number`; what the command printed."""
    folder = folder_of(place / f"version-{number}", version(number))
    result = await run(redis, "push", str(folder), "--json", *options, secret=secret)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


async def served(s: Stage) -> tuple[str | None, str | None]:
    """Rule and revision of an answer."""
    reply = await s.messages()
    assert reply.status == 200
    return reply.header("x-router-rule"), (reply.header("x-router-policy") or "").rpartition("@")[2]


async def policy_page(s: Stage) -> Any:
    """What `/policy` says."""
    reader, writer = await asyncio.open_connection("127.0.0.1", s.admin_port)
    writer.write(b"GET /policy HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
    body = (await reader.read()).partition(b"\r\n\r\n")[2]
    writer.close()
    return json.loads(body)


async def screen_of(s: Stage) -> str:
    """What `router status` prints."""
    command = ["status", "--admin", f"http://127.0.0.1:{s.admin_port}"]
    return (await asyncio.to_thread(CliRunner().invoke, cli, command)).stdout
