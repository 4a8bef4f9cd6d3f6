"""The installed program and its policies across restarts: history, a broken folder, a rollback."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from kit.installed import ended, installed

pytestmark = pytest.mark.anyio

LANES = "version: 1\nlanes:\n  haiku: {model: claude-haiku-5-5}\ndefault_lane: haiku\n"
GOOD = "version: 1\nrules:\n  - {name: one, route: haiku}\notherwise: as-asked\n"
OTHER = GOOD.replace("one", "two")


def write(folder: Path, default: str) -> Path:
    """A policies folder with this default policy."""
    policies = folder / "policies"
    policies.mkdir(exist_ok=True)
    (policies / "lanes.yaml").write_text(LANES)
    (policies / "default.yaml").write_text(default)
    return policies


async def test_a_broken_folder_at_a_restart_is_served_from_the_history_and_said_loudly(tmp_path: Path):
    """The last good set serves and `/policy` says so; mended, the folder is taken; without a history: exit 1."""
    policies = write(tmp_path, GOOD)
    arguments = ("--policies", str(policies), "--traces", "off")
    history = {"ROUTER_POLICY_HISTORY": str(tmp_path / "history")}
    async with installed(*arguments, cwd=tmp_path, **history) as router:
        good = (await router.policy_status())["revision"]
    write(tmp_path, "version: 1\nrules: [\n")
    async with installed(*arguments, cwd=tmp_path, **history) as router:
        now = await router.policy_status()
        assert (now["revision"], now["from_history"], now["is_current"]) == (good, True, False)
        assert "default.yaml:" in now["last_error"]
        write(tmp_path, OTHER)
        async with asyncio.timeout(10):
            while (now := await router.policy_status())["from_history"]:
                pass
        assert now["is_current"]
        assert now["revision"] != good
    write(tmp_path, "")
    code, _, said = await ended("serve", *arguments, "--port", "0", "--admin-port", "0", cwd=tmp_path)
    assert code == 1
    assert "default.yaml" in said


async def test_a_rollback_is_live_in_a_running_router(tmp_path: Path):
    """`router policy rollback` puts the earlier files back; the router takes them, and what was replaced is kept."""
    policies = write(tmp_path, GOOD)
    history = {"ROUTER_POLICY_HISTORY": str(tmp_path / "history")}
    async with installed("--policies", str(policies), "--traces", "off", cwd=tmp_path, **history) as router:
        first = (await router.policy_status())["revision"]
        (policies / "default.yaml").write_text(OTHER)
        async with asyncio.timeout(10):
            while (second := (await router.policy_status())["revision"]) == first:
                pass
        code, out, said = await ended("policy", "rollback", first[:8], str(policies), cwd=tmp_path, **history)
        assert code == 0, said
        assert second[:8] in out + said
        async with asyncio.timeout(10):
            while (await router.policy_status())["revision"] != first:
                pass
        assert (policies / "default.yaml").read_text() == GOOD
        code, out, _ = await ended("policy", "history", str(policies), "--json", cwd=tmp_path, **history)
        assert code == 0
        assert {first, second} <= {entry["revision"] for entry in json.loads(out)}
