"""The chart's value sets, each rendered once for all tests of a worker."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kit.chart import Chart, find_helm, render

Rendered = Callable[[str], Chart]


@pytest.fixture(scope="session")
def helm() -> str:
    """The real Helm. A machine with neither Helm, nor Go and a module proxy, skips the tests and says so, in CI too."""
    program = find_helm()
    if program is None:
        pytest.skip("there is no helm: neither on the PATH nor built by `make test`, which needs Go and a module proxy")
    return program


@pytest.fixture(scope="session")
def rendered(helm: str) -> Rendered:
    """The objects of a value set, by its name."""
    seen: dict[str, Chart] = {}

    def of(value_set: str) -> Chart:
        if value_set not in seen:
            seen[value_set] = render(helm, value_set)
        return seen[value_set]

    return of
