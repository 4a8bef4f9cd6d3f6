"""The page of faults: every row is there, says what a client sees, and names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
PAGE = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if re.match(r"\| F\d+ \|", line)
]
WANTED = [*range(1, 55), *range(86, 97)]


@cache
def names_in(file: str) -> frozenset[str]:
    """The names of the test functions of a file."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_row_is_there_once_and_in_order() -> None:
    """The faults of the upstream, of clients, and of the process and its host."""
    assert [row[0] for row in ROWS] == [f"F{number}" for number in WANTED]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_says_what_is_seen_and_names_tests_that_exist(row: list[str]) -> None:
    """A test that is renamed or taken out takes its row along; one without a test says so."""
    assert len(row) == 4
    _, fault, seen, proof = row
    assert fault
    assert seen
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", proof)
    assert named or proof.startswith("no test")
    for file, name in named:
        assert name in names_in(file), f"{file}::{name}"
    assert proof.count("`") == 2 * len(named), f"a name in {row[0]} is not one of a test"
