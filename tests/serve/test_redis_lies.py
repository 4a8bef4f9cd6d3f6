"""A Redis that answers but makes no sense: a client gets its answer, and at the end nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from kit.stage import always, stage, until

pytestmark = pytest.mark.anyio

CACHED = always("cache: {ttl: 1h}", route="as-asked")


@asynccontextmanager
async def liar(reply: bytes) -> AsyncIterator[str]:
    """The URL of a server that answers every command in the same words."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                for _ in range(int(line[1:])):
                    await reader.readexactly(int((await reader.readline())[1:]) + 2)
                writer.write(reply)
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


REPLIES = (
    b"$-1\r\n",
    b":7\r\n",
    b"+OK\r\n",
    b"$0\r\n\r\n",
    b"*0\r\n",
    b"*-1\r\n",
    b"*1\r\n$1\r\nx\r\n",
    b"*2\r\n:1\r\n:2\r\n",
    b"*2\r\n$5\r\nentry\r\n$7\r\ngarbage\r\n",
    b"*2\r\n$6\r\nleader\r\n:1\r\n",
    b"-ERR what\r\n",
    b"*1\r\n*0\r\n",
)


@pytest.mark.parametrize("reply", REPLIES)
async def test_whatever_it_says_a_client_gets_its_answer(reply):
    """200 each time, from the upstream; the router starts, says so in its counts, and stops with all its traces."""
    async with liar(reply) as url:
        async with stage(policy=CACHED, cache=url, affinity=url) as s:
            for _ in range(3):
                answer = await s.messages()
                assert (answer.status, answer.header("x-router-cache")) == (200, "miss")
            fleet = s.app.stores.cache
            await until(lambda: fleet.stats()["beats_failed"] + fleet.stats()["unasked"] + fleet.stats()["corrupt"] > 1)
            assert fleet._fleet._beating is None or not fleet._fleet._beating.done()
            folder, traces = s.folder, await s.traces()
            assert [row["cache"] for row in traces] == ["miss"] * 3
        assert folder
