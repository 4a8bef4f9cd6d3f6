"""`docs/policies.md` names every fact, operator and key that the language has."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.facts.vocabulary import FACTS
from router.policy.grammar import LANES_FILE_KEYS, OPERATORS, POLICY_KEYS, RULE_KEYS, TEST_KEYS

PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
KEYS = {spec.name for table in (POLICY_KEYS, RULE_KEYS, TEST_KEYS, LANES_FILE_KEYS) for spec in table}


@pytest.mark.parametrize("name", [*FACTS, *(operator.name for operator in OPERATORS)])
def test_every_fact_and_operator_is_explained(name: str) -> None:
    """A word that may be written is a word that can be looked up."""
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("key", sorted(KEYS))
def test_every_key_is_shown(key: str) -> None:
    """In the table of keys, or in an example."""
    assert f"`{key}`" in PAGE or f"{key}: " in PAGE or f"{key}:\n" in PAGE
