"""Values that every request makes: cheap to make, and otherwise as good as any frozen dataclass."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from router.usage import Tokens, Usage
from router.value import value_class

PACKAGE = Path(__file__).parent.parent / "router"


def test_values_with_the_same_fields_are_equal_and_have_one_hash() -> None:
    """They may be members of sets and keys of mappings, as frozen dataclasses are."""
    assert Usage(Tokens(1, output=2)) == Usage(Tokens(1, output=2)) != Usage(Tokens(1, output=3))
    assert len({Tokens(1), Tokens(1), Tokens(2)}) == 2
    assert replace(Tokens(1), output=2) == Tokens(1, output=2)


def test_a_value_takes_no_field_that_its_class_does_not_have() -> None:
    """The fields are slots: a typing error cannot add one."""
    with pytest.raises(AttributeError):
        Tokens(1).outptu = 3  # type: ignore[attr-defined]


def test_a_value_is_made_without_a_call_for_each_field() -> None:
    """What the class is for: its `__init__` assigns."""

    @value_class(frozen=True, slots=True)
    class Pair:
        left: int
        right: int = 2

    assert "__setattr__" not in Pair.__init__.__code__.co_names
    assert (Pair(1).left, Pair(1).right) == (1, 2)


def test_every_value_class_says_that_it_is_frozen() -> None:
    """Else the type checker, which is all that keeps it from being changed, would let anybody assign to it."""
    uses = [
        ast.unparse(decorator)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for decorator in node.decorator_list
        if "value_class" in ast.unparse(decorator)
    ]
    assert len(uses) > 10
    assert set(uses) == {"value_class(frozen=True, slots=True)"}
