"""`router simulate` as a process: its address line, its options, its end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

COMMAND = [sys.executable, "-c", "from router.cli.simulate import simulate; simulate()"]
HEADERS = {"x-api-key": "k", "anthropic-version": "2026-10-21"}
BODY = {"model": "claude-haiku-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_listens_and_ends_with_status_0(end: signal.Signals, tmp_path: Path) -> None:
    """One line, flushed, when it really listens; Ctrl-C is a normal end."""
    script = tmp_path / "script.yaml"
    script.write_text("- {when: {contains: Hello}, text: scripted}\n")
    options = ["--port", "0", "--latency", "none", "--seed", "3", "--script", str(script)]
    with subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("simulator: http://127.0.0.1:")
        origin = line.removeprefix("simulator: ").strip()
        reply = httpx2.post(f"{origin}/v1/messages", json=BODY, headers=HEADERS)
        assert reply.json()["content"] == [{"type": "text", "text": "scripted"}]
        process.send_signal(end)
        rest, errors = process.communicate(timeout=20)
    assert (process.returncode, rest, errors) == (0, "", "")


def test_an_item_of_a_batch_takes_as_long_as_it_is_told() -> None:
    """And the batches are shown with their items, whoever made them."""
    made = {"requests": [{"custom_id": f"item-{number}", "params": BODY} for number in range(2)]}
    options = ["--port", "0", "--latency", "none", "--batch-item-ms", "60000"]
    with subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        origin = process.stdout.readline().removeprefix("simulator: ").strip()
        batch = httpx2.post(f"{origin}/v1/messages/batches", json=made, headers=HEADERS).json()
        [shown] = httpx2.get(f"{origin}/_simulator/batches").json()["batches"]
        process.send_signal(signal.SIGTERM)
    assert (shown["id"], shown["processing_status"]) == (batch["id"], "in_progress")
    assert shown["items"] == [
        {"custom_id": f"item-{number}", "text": "Hello", "type": None, "message_id": None} for number in range(2)
    ]


def test_wrong_usage_is_status_2(tmp_path: Path) -> None:
    """An unknown latency, a script that cannot be read, an item that takes less than no time."""
    wrong = (["--latency", "slow"], ["--script", str(tmp_path / "none.yaml")], ["--batch-item-ms", "-1"])
    for options in wrong:
        done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=30)
        assert done.returncode == 2
        assert "Error:" in done.stderr


def test_a_taken_port_is_status_1_with_the_next_step() -> None:
    """The message says what to try."""
    from router.simulator.server import listen

    with listen("127.0.0.1", 0) as taken:
        options = ["--port", str(taken.getsockname()[1])]
        done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "try --port 0" in done.stderr
