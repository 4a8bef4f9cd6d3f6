"""What the flow is given in place of a calendar and of dice."""

from __future__ import annotations

from collections.abc import Callable

from router.facts.vocabulary import WEEKDAYS


class Calendar:
    """The hour and weekday in UTC, worked out once an hour. `clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._hour = -1
        self._today = (0, "thu")

    def __call__(self) -> tuple[int, str]:
        hour = int(self._clock() // 3600)
        if hour != self._hour:
            self._hour = hour
            self._today = (hour % 24, WEEKDAYS[(hour // 24 + 3) % 7])  # 1970-01-01 was a Thursday
        return self._today


class TraceIds:
    """Trace ids, 32 hex digits that nobody can guess; the system is asked for randomness once in 256 ids."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._store: list[str] = []

    def __call__(self) -> str:
        if not self._store:
            drawn = self._random_bytes(16 * 256).hex()
            self._store = [drawn[at : at + 32] for at in range(0, len(drawn), 32)]
        return self._store.pop()
