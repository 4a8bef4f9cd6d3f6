"""The installed programs as processes: `router simulate` and `router serve` in front of it, on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

REPOSITORY = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Live:
    """A router in front of a simulator; both answer on loopback."""

    simulator: str
    api: str
    admin: str
    folder: Path  # holds `policies/` and `traces.db`

    def ledger(self) -> dict[str, Any]:
        """What the simulator says it would bill."""
        return fetch(f"{self.simulator}/_simulator/ledger")

    def requests(self) -> list[dict[str, Any]]:
        """What reached the simulator."""
        found = fetch(f"{self.simulator}/_simulator/requests")
        return found["requests"] if isinstance(found, dict) else found

    def traces(self, limit: int = 1000) -> list[dict[str, Any]]:
        """The router's traces, newest first; the store is flushed before it is read."""
        rows: list[dict[str, Any]] = []
        mark = ""
        while True:
            page = fetch(f"{self.admin}/traces?limit={min(limit, 500)}{mark}")
            rows += page["traces"]
            following = page.get("next")
            if not following or len(rows) >= limit:
                return rows[:limit]
            mark = f"&before={following}"


def fetch(url: str) -> Any:
    """A JSON document."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


@contextlib.contextmanager
def program(*arguments: str, cwd: Path | None = None) -> Iterator[dict[str, str]]:
    """`router ARGUMENTS` until the block ends → the addresses it printed, by name. It must end with status 0."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ROUTER_", "ANTHROPIC_", "CLAUDE"))}
    with tempfile.TemporaryFile(mode="w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "router.cli.main", *arguments],
            stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=cwd or REPOSITORY,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            words = line.replace(": ", " ").split()
            found = {name: word for name, word in pairwise(words) if word.startswith("http")}
            assert found, f"`router {arguments[0]}` printed no address: {line!r}\n{said(errors)}"
            yield found
        finally:
            process.terminate()
            try:
                status = process.wait(30)
            finally:
                process.kill()
                process.stdout.close()
        assert status == 0, f"`router {arguments[0]}` ended with status {status}\n{said(errors)}"
        assert "Traceback" not in said(errors), said(errors)


def said(errors: IO[str]) -> str:
    """Everything in a program's standard error so far."""
    errors.seek(0)
    return errors.read()


@contextlib.contextmanager
def live(folder: Path, *, latency: str = "none", policies: Path = REPOSITORY / "policies") -> Iterator[Live]:
    """Both programs, with a copy of the policies that a test may edit."""
    own = folder / "policies"
    own.mkdir()
    for file in policies.glob("*.yaml"):
        (own / file.name).write_bytes(file.read_bytes())
    with (
        program("simulate", "--port", "0", "--latency", latency) as simulator,
        program(
            "serve", "--port", "0", "--admin-port", "0", "--upstream", simulator["simulator"],
            "--policies", str(own), "--traces", f"sqlite:///{folder}/traces.db", cwd=folder,
        ) as router,
    ):  # fmt: skip
        yield Live(simulator["simulator"], router["api"], router["admin"], folder)
