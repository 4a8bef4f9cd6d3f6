"""The operators at work: closures over facts and label, one per comparison.

Every closure takes facts and label alike, so that a rule tries its clauses in one loop; those that read a label are
only called with one. They cost a few tenths of a microsecond and never raise.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from router.classify.label import Label
from router.facts.inspect import Facts, recorded_user
from router.facts.vocabulary import HEADER_PREFIX, LABEL_FACTS, FactSpec

Check = Callable[[Facts, Label | None], bool]
Get = Callable[[Facts, Label | None], Any]
SearchRegex = Callable[[str], Callable[[str], bool]]  # pattern → found-in test; raises ValueError with the reason


def getter(name: str) -> Get:
    """How to read one fact or label; a label is read only where there is one."""
    if name in LABEL_FACTS:
        of_label = attrgetter(name)
        return lambda facts, label: of_label(label)
    if name.startswith(HEADER_PREFIX):
        header = name[len(HEADER_PREFIX) :]
        return lambda facts, label: facts.headers.get(header)
    of_facts = attrgetter(name)
    return lambda facts, label: of_facts(facts)


def value_check(spec: FactSpec, operator: str, operand: Any, search_regex: SearchRegex) -> Check:
    """The closure for a fact that is one value. Facts are read by attribute, the common case, without a detour."""
    get = getter(spec.name)
    if spec.name == "user":
        operator, operand = _also_as_recorded(operator, operand)
    if operator == "equals":
        return lambda f, label: get(f, label) == operand
    if operator == "in":
        wanted = frozenset(operand)
        return lambda f, label: get(f, label) in wanted
    if operator == "not_in":
        unwanted = frozenset(operand)
        return lambda f, label: get(f, label) not in unwanted
    if operator == "lt":
        return lambda f, label: (value := get(f, label)) is not None and value < operand
    if operator == "lte":
        return lambda f, label: (value := get(f, label)) is not None and value <= operand
    if operator == "gt":
        return lambda f, label: (value := get(f, label)) is not None and value > operand
    if operator == "gte":
        return lambda f, label: (value := get(f, label)) is not None and value >= operand
    if operator == "exists":
        return lambda f, label: (get(f, label) is not None) is operand
    if operator == "matches":
        found = search_regex(operand)
        return lambda f, label: (value := get(f, label)) is not None and found(value)
    if operator == "contains":
        return lambda f, label: (value := get(f, label)) is not None and operand in value
    return lambda f, label: (value := get(f, label)) is not None and value.startswith(operand)


def _also_as_recorded(operator: str, operand: Any) -> tuple[str, Any]:
    """A comparison of `user` that holds for the user's hash too: traces have no other name, and a rule that is tried
    on them must decide as it did on the request."""
    if operator not in ("equals", "in", "not_in"):
        return operator, operand
    users = (operand,) if operator == "equals" else operand
    return "in" if operator == "equals" else operator, (*users, *map(recorded_user, users))


def list_check(spec: FactSpec, operator: str, operand: Any, search_regex: SearchRegex) -> Check:
    """The closure for a fact that is a list of texts: most operators ask whether any of them does."""
    get = getter(spec.name)
    if operator == "in":
        wanted = frozenset(operand)
        return lambda f, label: not wanted.isdisjoint(get(f, label))
    if operator == "not_in":
        unwanted = frozenset(operand)
        return lambda f, label: unwanted.isdisjoint(get(f, label))
    if operator == "exists":
        return lambda f, label: bool(get(f, label)) is operand
    if operator == "contains":
        return lambda f, label: operand in get(f, label)
    if operator == "matches":
        found = search_regex(operand)
        return lambda f, label: any(found(value) for value in get(f, label))
    return lambda f, label: any(value.startswith(operand) for value in get(f, label))
