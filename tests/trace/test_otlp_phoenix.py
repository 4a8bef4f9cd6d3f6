"""Phoenix, a backend that people use, shows model, tokens and cost of what the router sends.

Skipped unless PHOENIX_URL names a running one (its OTLP port is that of its page) or the package `phoenix` is there; it
is 855 MB and no dependency.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.stage import always, answers, http, stage
from test_otlp_golden import PLAIN

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        "PHOENIX_URL" not in os.environ and importlib.util.find_spec("phoenix") is None,
        reason="neither PHOENIX_URL nor the package arize-phoenix",
    ),
]

START_S = 120.0
SPANS = """{ projects { edges { node { spans(first: 50) { edges { node {
  name spanKind tokenCountPrompt tokenCountCompletion attributes costSummary { total { cost } }
} } } } } } }"""


@pytest.fixture
def phoenix(tmp_path: Path) -> Iterator[str]:
    """The address of a running Phoenix."""
    if "PHOENIX_URL" in os.environ:
        yield os.environ["PHOENIX_URL"]
        return
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        port, grpc_port = taken.getsockname()[1], other.getsockname()[1]
    environment = {
        **os.environ,
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc_port),
        "PHOENIX_WORKING_DIR": str(tmp_path),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "phoenix.server.main", "serve"], env=environment,
                                   stdout=log, stderr=log)  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + START_S
            while not answers_at(url):
                assert time.monotonic() < deadline
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
                    pytest.fail((tmp_path / "log").read_text())
            yield url
        finally:
            process.terminate()
            process.wait(30)


def answers_at(url: str) -> bool:
    """Whether it is up."""
    try:
        with urllib.request.urlopen(url, timeout=1.0):
            return True
    except OSError:
        return False


def asked(url: str) -> list[dict[str, Any]]:
    """All spans that Phoenix has."""
    request = urllib.request.Request(
        f"{url}/graphql", json.dumps({"query": SPANS}).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10.0) as answer:
        projects = json.load(answer)["data"]["projects"]["edges"]
    return [span["node"] for project in projects for span in project["node"]["spans"]["edges"]]


async def test_phoenix_shows_model_tokens_and_cost(phoenix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chat is an LLM span with the model sent; only it has tokens."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", phoenix)
    async with stage(answers(http(PLAIN)), policy=always()) as s:
        reply = await s.messages()
    trace_id = reply.header("x-router-trace")
    assert trace_id
    spans: list[dict[str, Any]] = []
    async with asyncio.timeout(30):
        while not any(span["name"] == "chat claude-haiku-5-5" for span in spans):
            spans = await asyncio.to_thread(asked, phoenix)
    chat = next(span for span in spans if span["name"] == "chat claude-haiku-5-5")
    assert chat["spanKind"].lower() == "llm"
    assert (chat["tokenCountPrompt"], chat["tokenCountCompletion"]) == (2400, 50)
    attributes = json.loads(chat["attributes"])
    assert attributes["llm"]["model_name"] == "claude-haiku-5-5"
    assert attributes["router"]["cost"]["usd"] == pytest.approx(0.0001075)
    assert not [span for span in spans if span["name"] != chat["name"] and span["tokenCountPrompt"]]
