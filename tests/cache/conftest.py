"""Processes of a fleet over a Redis of their own, closed at the end of each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from cache_kit import Join, Process, a_process


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up waits for a busy machine, and a fleet beats quicker than it need: neither is measured here."""
    monkeypatch.setattr("router.cache.redis.PATIENCE_S", 5.0)
    monkeypatch.setattr("router.cache.fleet.BEAT_S", 0.03)


@pytest.fixture
async def join(_patient: None) -> AsyncIterator[Join]:
    """Starts a process of the fleet over a Redis; `starts=False` leaves it as a command of maintenance has it."""
    all_of_them: list[Process] = []

    async def join(url: str, *, starts: bool = True, **options: Any) -> Process:
        process = a_process(url, **options)
        all_of_them.append(process)
        if starts:
            await process.cache.start()
        return process

    yield join
    for process in all_of_them:
        await process.close()
