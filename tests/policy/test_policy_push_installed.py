"""Policies pushed to installed programs: `router serve` with one and with several workers, and the command itself."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kit.installed import installed
from kit.processes import router
from kit.raw_upstream import raw_upstream
from kit.redis_server import RedisServer, becomes
from kit.stage import AS_ASKED, KEY, answers, request_body

from router.cli.main import cli
from router.policy.push_store import PROCESSES

pytestmark = pytest.mark.anyio

LIVE_S = 3.0  # a second on a machine that does nothing else


def files(number: int) -> dict[str, str]:
    lanes = "version: 1\nlanes: {it: {model: claude-haiku-5-5}}\ndefault_lane: it\n"
    policy = f"version: 1\nrules: [{{name: rule-{number}, route: it}}]\notherwise: as-asked\n"
    return {"lanes.yaml": lanes, "default.yaml": policy}


def folder_of(place: Path, number: int) -> Path:
    place.mkdir()
    for name, text in files(number).items():
        (place / name).write_text(text)
    return place


async def pushed(redis: RedisServer, place: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """`router policy push` → (exit status, what it printed)."""
    command = ["policy", "push", str(place), "--fleet", redis.url, "--json", *options]
    result = await asyncio.to_thread(CliRunner().invoke, cli, command)
    return result.exit_code, json.loads(result.stdout)


async def test_a_push_reaches_every_worker_of_every_program(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two workers and a program of one: three rows, live at once. One that is killed is silent until its lease is over,
    which ends the wait; after that it is not there."""
    monkeypatch.setattr("router.policy.push_store.LEASE_MS", 2500)  # so that the test need not wait for all of it
    at_first, new = folder_of(tmp_path / "at-first", 0), folder_of(tmp_path / "new", 1)
    async with (
        raw_upstream(answers()) as upstream,
        router(
            tmp_path,
            upstream.origin,
            policy=AS_ASKED,
            cache=redis_server.url,
            name="one",
            ROUTER_FLEET=redis_server.url,
        ) as one,
        installed(
            *("--upstream", upstream.origin, "--policies", str(at_first), "--traces", "off"),
            cwd=tmp_path,
            ROUTER_WORKERS="2",
            ROUTER_CACHE=redis_server.url,
            ROUTER_FLEET=redis_server.url,
        ) as two,
    ):
        await becomes(lambda: redis_server.say("HLEN", PROCESSES) == b":3\r\n", 20)
        code, done = await pushed(redis_server, new, "--sticky")
        assert code == 0
        assert [row["state"] for row in done["processes"]] == ["taken"] * 3
        assert done["took_s"] < LIVE_S
        assert (await one.messages()).header("x-router-rule") == "rule-1"
        for _ in range(4):
            reply = await two.request("POST", "/v1/messages", request_body(), KEY)
            assert (reply.status, reply.header("x-router-rule")) == (200, "rule-1")
        assert (await two.policy_status())["source"] == "pushed #1"
        one.signal(signal.SIGKILL)
        began_s = time.monotonic()
        code, done = await pushed(redis_server, new)
        assert time.monotonic() - began_s < 2.5 + LIVE_S
        assert code == 1
        assert sorted(row["state"] for row in done["processes"]) == ["silent", "taken", "taken"]
        code, done = await pushed(redis_server, new)
        assert code == 0
        assert len(done["processes"]) == 2
