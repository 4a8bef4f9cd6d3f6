"""One router in front of one simulator for all client tests of a worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit.live import Live, live


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("live")) as running:
        yield running
