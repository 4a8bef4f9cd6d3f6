"""Which rules can never decide: conditions that contradict themselves, and rules that an earlier one covers.

A conjunction is boiled down to one domain per fact: the values it may have. Two domains can be compared. What cannot be
boiled down (`matches`, `any`, `not`) is compared by its form, so the answer errs towards "reachable" and never refuses
a rule that could match.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from router.facts.inspect import Facts
from router.facts.vocabulary import LABEL_FACTS, FactSpec, fact_spec
from router.policy.conditions import Clause, value_range

_MOST_FILTERED = 100  # values, and clauses, of one fact that are tried on each other


@dataclass(frozen=True, slots=True)
class Domain:
    """The values that one fact may have where a conjunction holds. `None` means no limit."""

    low: float | None = None
    high: float | None = None
    is_low_open: bool = False  # the bound itself is outside
    is_high_open: bool = False
    allowed: frozenset[Any] | None = None
    refused: frozenset[Any] = frozenset()
    is_present: bool | None = None  # None: not asked
    worded: frozenset[Hashable] = frozenset()  # what only holds of some texts, by `_form`
    texts: tuple[Clause, ...] = ()  # the same as clauses

    def may_be(self, value: Any) -> bool:
        """Whether the fact may be `value`."""
        if value in self.refused or (self.allowed is not None and value not in self.allowed):
            return False
        if self.low is not None and (value < self.low or (self.is_low_open and value == self.low)):
            return False
        return self.high is None or not (value > self.high or (self.is_high_open and value == self.high))

    def is_empty(self) -> bool:
        """Whether no value at all is left."""
        wants_value = self.allowed is not None or self.low is not None or self.high is not None or bool(self.worded)
        if self.is_present is False and wants_value:
            return True
        if self.allowed is not None:
            return not any(self.may_be(value) for value in self.allowed)
        if self.low is None or self.high is None:
            return False
        return self.low > self.high or (self.low == self.high and (self.is_low_open or self.is_high_open))

    def covers(self, other: Domain) -> bool:
        """Whether every value that `other` allows is allowed here too."""
        has_value = other.allowed is not None or other.low is not None or other.high is not None
        if self.is_present is True and not (other.is_present or has_value):
            return False
        if self.is_present is False and other.is_present is not False:
            return False
        if not self.worded <= other.worded:
            return False
        if other.allowed is not None:
            return all(self.may_be(value) for value in other.allowed if other.may_be(value))
        if self.allowed is not None:
            return False
        return self._bounds_cover(other) and all(not other.may_be(value) for value in self.refused)

    def _bounds_cover(self, other: Domain) -> bool:
        if self.low is not None and (
            other.low is None
            or other.low < self.low
            or (other.low == self.low and self.is_low_open and not other.is_low_open)
        ):
            return False
        return self.high is None or not (
            other.high is None
            or other.high > self.high
            or (other.high == self.high and self.is_high_open and not other.is_high_open)
        )


Domains = Mapping[Hashable, Domain]
_ANYTHING = Domain()


def domains(clauses: tuple[Clause, ...]) -> Domains:
    """The domain of each fact that a conjunction names; parts that nest stand under their own form."""
    found: dict[Hashable, Domain] = {}
    for clause in clauses:
        _add(found, found, clause)
    return found


def never_holds(clauses: tuple[Clause, ...], around: ChainMap[Hashable, Domain] | None = None) -> Clause | None:
    """The clause at which a conjunction is seen to contradict itself; None when it may hold.

    `around` are the domains of what must hold besides, such as the clauses that stand beside an `any`.
    """
    own: dict[Hashable, Domain] = {}
    found: ChainMap[Hashable, Domain] = ChainMap(own, *(around.maps if around is not None else ()))
    for clause in clauses:
        if not clause.parts and _add(own, found, clause).is_empty():
            return clause
    for clause in clauses:
        if clause.operator == "any" and all(never_holds(part, found) is not None for part in clause.parts):
            return clause
        if clause.operator == "not" and covers(domains(clause.parts[0]), found):
            return clause
    return None


def covers(wide: Domains, narrow: Domains) -> bool:
    """Whether a conjunction with the domains `wide` holds wherever one with the domains `narrow` does."""
    return all(domain.covers(narrow.get(name, _ANYTHING)) for name, domain in wide.items())


def _add(own: dict[Hashable, Domain], known: Domains, clause: Clause) -> Domain:
    """Narrow the domain of a clause's fact, as `known` has it, and put it into `own`."""
    spec = None if clause.parts else fact_spec(clause.fact)
    if spec is None:
        domain = own[_form(clause)] = Domain(worded=frozenset((_form(clause),)))
    else:
        narrowed = _narrow(known.get(clause.fact, _ANYTHING), clause, spec)
        domain = own[clause.fact] = _bounded(narrowed, clause.fact)
    return domain


def _form(clause: Clause) -> Hashable:
    """What a clause says, whole, so that two of one form hold of the same requests."""
    operand = clause.operand
    return (clause.fact, clause.operator, operand, tuple(tuple(map(_form, part)) for part in clause.parts))


def _filtered(values: frozenset[Any], clause: Clause, spec: FactSpec) -> frozenset[Any]:
    """Those of the values of a text fact of which a clause holds."""
    if spec.kind != "text" or spec.name in LABEL_FACTS or len(values) > _MOST_FILTERED:
        return values
    return frozenset(value for value in values if clause.check(Facts.given({spec.name: value}), None))


def _bounded(domain: Domain, fact: str) -> Domain:
    """The domain with the fact's own least and greatest value put in, where it must have a value at all."""
    spec = fact_spec(fact)
    if spec is None or (domain.low is None and domain.high is None):
        return domain
    low, high = value_range(spec)
    if domain.low is None and low is not None:
        domain = replace(domain, low=low)
    if domain.high is None and high is not None:
        domain = replace(domain, high=high)
    return domain


def _narrow(domain: Domain, clause: Clause, spec: FactSpec) -> Domain:
    operator, operand = clause.operator, clause.operand
    if operator == "exists":
        if domain.is_present is not None and domain.is_present is not operand:
            return replace(domain, allowed=frozenset())  # present and absent: nothing is left
        return replace(domain, is_present=operand)
    if operator in ("equals", "in") and spec.kind != "list":
        values = frozenset(operand if operator == "in" else (operand,))
        for text in domain.texts[:_MOST_FILTERED]:
            values = _filtered(values, text, spec)
        return replace(domain, allowed=values if domain.allowed is None else domain.allowed & values)
    if operator == "not_in":
        return replace(domain, refused=domain.refused | frozenset(operand))
    if operator in ("lt", "lte", "gt", "gte"):
        return _bound(domain, operator, operand, spec)
    texts = (*domain.texts, clause)
    allowed = None if domain.allowed is None else _filtered(domain.allowed, clause, spec)
    return replace(domain, worded=domain.worded | {_form(clause)}, texts=texts, allowed=allowed)


def _bound(domain: Domain, operator: str, operand: float, spec: FactSpec) -> Domain:
    is_open = operator in ("lt", "gt")
    if is_open and spec.kind == "integer":  # between whole numbers there is nothing
        operand, is_open = operand + (1 if operator == "gt" else -1), False
    if operator in ("gt", "gte"):
        if domain.low is None or operand > domain.low or (operand == domain.low and is_open):
            return replace(domain, low=operand, is_low_open=is_open)
    elif domain.high is None or operand < domain.high or (operand == domain.high and is_open):
        return replace(domain, high=operand, is_high_open=is_open)
    return domain
