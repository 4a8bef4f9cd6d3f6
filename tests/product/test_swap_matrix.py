"""No swap that the router allows is refused by the strict simulator: every pair of models, every row of parameters."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from router.catalog_file import load_catalog
from router.simulator.refusal import Refusal
from router.simulator.service import Caller, Simulator
from router.simulator.settings import SimulatorSettings
from router.swap.check import can_serve
from router.wire.messages import read_request

CATALOG = load_catalog()
CURRENT = [model.id for model in CATALOG.models if not model.is_retired]
BETAS = (
    "task-budgets-2026-03-13", "mid-conversation-output-config-2026-07-01", "mid-conversation-tool-changes-2026-07-01",
    "fast-mode-2026-02-01", "context-management-2025-06-27", "compact-2026-01-12", "advisor-tool-2026-03-01",
)  # fmt: skip


def swap_tables() -> ModuleType:
    """The rows that `tests/swap` states for each rule of the API sheet."""
    path = Path(__file__).parent.parent / "swap" / "test_swap.py"
    spec = importlib.util.spec_from_file_location("swap_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows() -> list[tuple[str, dict[str, Any], str]]:
    tables = swap_tables()
    found = [(name, body, tables.OLD) for name, (body, _) in tables.ACCEPTS.items()]
    return found + [(f"sampling {number}", body, version) for number, (body, version, _) in enumerate(tables.SAMPLING)]


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(SimulatorSettings())


def refusal(simulator: Simulator, body: dict[str, Any], version: str) -> str | None:
    """What the API says against a request; None when it takes it."""
    try:
        simulator.run(body, Caller("org", "workspace", version, frozenset(BETAS)))
    except Refusal as no:
        return no.message
    return None


def test_a_swap_that_is_allowed_is_never_refused(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """A request that the asked model takes directly is taken by each model that the check lets it go to."""
    taken = allowed = 0
    broken = []
    for name, row, version in rows():
        plain = {
            "max_tokens": 4096,
            "messages": [{"role": "user", "content": "Label this: the parcel is late."}],
            **row,
        }
        takes = {model: refusal(simulator, {"model": model, **plain}, version) is None for model in CURRENT}
        for asked in (model for model, is_taken in takes.items() if is_taken):
            request = read_request(json.dumps({"model": asked, **plain}).encode())
            for target in CURRENT:
                taken += 1
                verdict = can_serve(
                    request, CATALOG.find(target), asked=CATALOG.find(asked), api_version=version, betas=BETAS,
                    input_tokens=50,
                )  # fmt: skip
                allowed += verdict.is_ok
                if verdict.is_ok and not takes[target]:
                    broken.append((name, asked, target))
    with capsys.disabled():
        print(
            f"\nswap matrix: {taken:,} pairs of an accepted request and a model, "
            f"{allowed:,} allowed, {len(broken)} refused"
        )
    assert not broken
    assert taken > 10_000
    assert allowed > taken // 5, "a check that allows next to nothing would pass too"
