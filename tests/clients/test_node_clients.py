"""The official TypeScript SDK and Claude Code work through the router with only the base URL changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from kit.live import REPOSITORY, Live

pytestmark = pytest.mark.node

NODE = REPOSITORY / "tests" / "node"


def needs(path: Path) -> Path:
    """The program, or a skip that says why; in CI its absence is a failure."""
    if shutil.which("node") is None or not path.exists():
        reason = f"`{path.name}` is not installed (Node.js and `npm ci` in tests/node)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def clean_environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ROUTER_", "ANTHROPIC_", "CLAUDE"))}
    return {**kept, **more}


def test_the_typescript_sdk_works(stage: Live) -> None:
    """Plain, streamed, tools, counting, models, errors and a batch, in one script."""
    needs(NODE / "node_modules" / "@anthropic-ai" / "sdk")
    run = subprocess.run(
        ["node", "sdk.mjs"], cwd=NODE, env=clean_environment(ROUTER_UNDER_TEST=stage.api),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert seen["plain"] == {"model": "claude-haiku-5-5", "lane": "haiku", "stop": "end_turn"}
    assert seen["stream"] == {"model": "claude-haiku-5-5", "same": True}
    assert seen["tools"] == {"first": "tool_use", "second": "end_turn"}
    assert seen["count"] > 5
    assert "claude-sonnet-5-5" in seen["models"]
    assert "auto" in seen["models"]
    assert seen["error"]["name"] == "NotFoundError"
    assert seen["error"]["id"].startswith("req_")
    assert seen["batch"] == ["succeeded"]


def claude_code(stage: Live, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = needs(NODE / "node_modules" / ".bin" / "claude")
    environment = clean_environment(
        HOME=str(home),
        CLAUDE_CONFIG_DIR=str(home / ".claude"),
        ANTHROPIC_BASE_URL=stage.api,
        ANTHROPIC_API_KEY="sk-claude-code",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_TELEMETRY="1",
        DISABLE_AUTOUPDATER="1",
        IS_SANDBOX="1",
    )
    return subprocess.run(
        [str(program), *arguments], cwd=home, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip


def test_claude_code_answers_a_prompt(stage: Live, tmp_path: Path) -> None:
    """`claude -p` gets its answer, and the router knows who asked."""
    run = claude_code(stage, tmp_path, "-p", "Say hello to the router.")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.strip()
    rows = [row for row in stage.traces() if row["client"] == "claude-code"]
    assert rows
    assert {row["outcome"] for row in rows} == {"ok"}, rows


def test_claude_code_makes_a_tool_round_trip(stage: Live, tmp_path: Path) -> None:
    """The model calls a tool, Claude Code runs it and sends the result, the model answers: no request fails."""
    (tmp_path / "notes.txt").write_text("The meeting is on Tuesday at nine.\n", encoding="utf-8")
    before = {row["trace_id"] for row in stage.traces()}
    run = claude_code(
        stage, tmp_path, "-p", "Read notes.txt with the Read tool and say when the meeting is.",
        "--allowedTools", "Read", "Bash", "--max-turns", "6", "--output-format", "json",
    )  # fmt: skip
    rows = [row for row in stage.traces() if row["trace_id"] not in before and row["client"] == "claude-code"]
    assert {row["outcome"] for row in rows} == {"ok"}, (rows, run.stdout, run.stderr)
    assert any(row["stop_reason"] == "tool_use" for row in rows), run.stdout
    assert any(row["facts"]["in_tool_loop"] for row in rows), run.stdout
    assert run.returncode == 0, run.stdout + run.stderr
