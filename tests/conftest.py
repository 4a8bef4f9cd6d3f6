"""What every test shares: the order of the floors, and the async backend."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis
import pytest

# The same examples in every run, so that a red test is a change of ours and never a roll of the dice; to look for new
# ones: HYPOTHESIS_PROFILE=explore.
hypothesis.settings.register_profile("house", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))  # so that tests import `kit`
pytest_plugins = ("kit.redis_server",)

# Lowest floor first, so that the first red test is usually the cause.
_FLOORS = (
    ("test_errors", "test_floors", "wire", "test_usage", "test_catalog", "test_prices"),
    ("test_facts", "test_swap", "classify"),
    ("cache", "affinity", "policy", "test_keys", "test_settings"),
    (
        "upstream",
        "test_redis_link",
        "test_redis_batches",
        "test_redis_rest",
        "test_redis_topologies",
        "trace",
        "simulator",
    ),
    ("serve", "web"),
    ("cli", "clients", "product"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--requests", metavar="FILE", help="labelled requests (JSONL) for the fidelity test")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _floor(item.path))


def _floor(path: Path) -> int:
    top = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return next((number for number, names in enumerate(_FLOORS) if top in names), len(_FLOORS))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees only the settings that it makes."""
    for name in list(os.environ):
        if name.startswith(("ROUTER_", "ANTHROPIC_", "CLAUDE_", "OTEL_")):
            monkeypatch.delenv(name)
