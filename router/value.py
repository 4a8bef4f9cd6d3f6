"""`value_class`: a frozen dataclass that costs little to make, for values that every request makes.

A frozen dataclass stores each of its fields by a call, `object.__setattr__`: 90 ns a field, where an assignment takes
10. A request makes some 130 such fields. So `value_class` is `dataclass` to the type checker, which refuses to assign
to a field where it says `frozen`, and at run time it makes a class with the same slots, equality and hash whose fields
are plain. What is made seldom stays an ordinary frozen dataclass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as value_class
else:
    from dataclasses import dataclass

    def value_class(*, frozen: bool, slots: bool) -> Any:
        """Use it as `@value_class(frozen=True, slots=True)`."""
        return dataclass(frozen=False, slots=slots, unsafe_hash=frozen)


__all__ = ["value_class"]
