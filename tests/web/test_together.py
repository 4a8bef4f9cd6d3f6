"""The admin listener of several workers, before workers that answer and workers that hang."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager

import pytest

from router.web.together import Together

pytestmark = pytest.mark.anyio

READY = b'{"ready":true}'
SERVES = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(READY), READY)
DOES_NOT = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


class Worker:
    """A ready worker that says this to whoever asks; None: it takes the question and hangs."""

    state = "ready"

    def __init__(self, number: int, answer: bytes | None) -> None:
        self.number = number
        self._answer = answer
        self._theirs: list[socket.socket] = []

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._theirs.append(theirs)
        if self._answer is not None:
            theirs.sendall(self._answer)
        return ours

    def close(self) -> None:
        for theirs in self._theirs:
            theirs.close()


@asynccontextmanager
async def listening(*answers: bytes | None):
    """Yields what asks a listener before such workers → status and document."""
    workers = [Worker(number, answer) for number, answer in enumerate(answers)]
    together = Together(
        lambda: workers,
        is_draining=lambda: False,
        figures=lambda: {"workers": {"ready": len(workers)}, "worker_events": {}},
        is_cache_shared=False,
        version="0",
    )

    async def ask(path: str) -> tuple[int, dict[str, object]]:
        said = []

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            said.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
                 "headers": [(b"host", b"router")]}  # fmt: skip
        await together(scope, receive, send)
        return said[0]["status"], json.loads(said[1]["body"])

    try:
        yield ask
    finally:
        for worker in workers:
            worker.close()


async def test_a_worker_that_hangs_does_not_delay_whether_the_router_is_ready() -> None:
    """All are asked, and the first who can serve is the answer: probes of an orchestrator have a second."""
    async with listening(None, DOES_NOT, SERVES) as ask, asyncio.timeout(2):
        assert await ask("/readyz") == (200, {"ready": True, "workers": {"ready": 3}})


async def test_where_all_workers_hang_the_router_says_in_time_that_it_is_not_ready() -> None:
    """The answer comes before who asks gives up."""
    async with listening(None, None) as ask, asyncio.timeout(2):
        status, document = await ask("/readyz")
    assert (status, document["ready"], document["workers"]) == (503, False, {"ready": 2})
