"""Bounds of what the admin listener does at once: questions that read much wait their turn, long answers have seats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from router.web.answer import error_answer

_RETRY_AFTER_S = 2


class Busy(Exception):
    """No turn came in time."""


class Turns:
    """At most `most` at a time; whoever waits longer than `wait_s` seconds is told to come again."""

    def __init__(self, most: int = 2, wait_s: float = 1.0) -> None:
        self._free = asyncio.Semaphore(most)
        self._wait_s = wait_s

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One turn, for as long as the block runs. Raises Busy."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise Busy from None
        try:
            yield
        finally:
            self._free.release()


async def busy_answer(_: Request, __: Exception) -> Response:
    """What Busy looks like to a client."""
    answer = error_answer(503, "overloaded_error", "other questions to the trace store are under way; ask again")
    answer.headers["retry-after"] = str(_RETRY_AFTER_S)
    return answer


class Seats:
    """How many long answers there may be at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken = 0

    def take(self) -> bool:
        """Take one at once, before anything is waited for; False when there is none."""
        if self._taken >= self.most:
            return False
        self._taken += 1
        return True

    def give_back(self) -> None:
        """Leave one that was taken."""
        self._taken -= 1


class SeatedStream(StreamingResponse):
    """A stream that leaves its seat at its end, however it ends.

    Not left to the stream itself: of one that never began, for a client that had gone, no `finally` would run.
    """

    def __init__(
        self, seats: Seats, content: AsyncIterator[bytes], media_type: str, headers: Mapping[str, str]
    ) -> None:
        super().__init__(content, media_type=media_type, headers=headers)
        self._seats = seats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._seats.give_back()
