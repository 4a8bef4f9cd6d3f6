"""Which temperatures a rule caches: the comparisons of `when_temperature`, ready to be asked."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

UNSAID = 1.0  # what the API takes a request for that has no `temperature`. Source: Messages API reference
_HOLDS: Mapping[str, Callable[[Any, Any], bool]] = MappingProxyType({
    "equals": operator.eq,
    "in": lambda temperature, values: temperature in values,
    "not_in": lambda temperature, values: temperature not in values,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Temperatures:
    """A set of temperatures: those of which every comparison, (operator, operand), holds. Made by `of`."""

    comparisons: tuple[tuple[str, float | frozenset[float]], ...]

    @classmethod
    def of(cls, comparisons: Iterable[tuple[str, Any]]) -> Temperatures:
        """The set for comparisons as the language has them; their order, and that of a list, does not matter."""
        frozen = ((name, frozenset(value) if isinstance(value, tuple) else value) for name, value in comparisons)
        return cls(tuple(sorted(frozen, key=lambda comparison: comparison[0])))

    def takes(self, temperature: object) -> bool:
        """Whether a request with this `temperature` is in; None is one without, which counts as 1.

        What is no number (a text, a flag, NaN) is in no set, whatever the comparisons are.
        """
        value = UNSAID if temperature is None else temperature
        if not isinstance(value, int | float) or isinstance(value, bool) or value != value:  # NaN equals nothing
            return False
        return all(_HOLDS[name](value, operand) for name, operand in self.comparisons)

    def is_empty(self) -> bool:
        """Whether it takes no temperature from 0 to 1."""
        bounds = {0.0, 1.0}
        for _, operand in self.comparisons:
            bounds |= operand if isinstance(operand, frozenset) else {operand}
        places = sorted(bounds)
        # Between two neighbouring operands every comparison says the same, so one place between them stands for all.
        between = [(low + high) / 2 for low, high in pairwise(places)]
        return not any(self.takes(place) for place in (*places, *between))
