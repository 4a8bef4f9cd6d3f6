"""`router --help`: what a person reads first does not wait for what only the work needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

_HEAVY = ("anthropic", "opentelemetry.proto", "redis", "router.app")
_PROGRAM = f"""
import sys
from router.cli.main import cli
cli.main(sys.argv[1:], standalone_mode=False)
print("loaded:", *(name for name in {_HEAVY} if name in sys.modules))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"]])
def test_help_loads_neither_the_server_nor_the_clients(arguments: list[str]) -> None:
    """The server, Redis and the SDK take up to two seconds to load; a wrong flag is told before, too."""
    run = subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], check=True, capture_output=True, text=True)
    assert "Usage:" in run.stdout
    assert run.stdout.splitlines()[-1] == "loaded:"
