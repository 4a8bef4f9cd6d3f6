"""`router trace ls` and `tail` over the traces of a fleet (`--fleet URL`): out of its stream in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import click

from router.redis_link import RedisLink
from router.trace.fleet import FleetTraces
from router.trace.fleet_read import FleetReader
from router.trace.record import TraceQuery

_DEADLINE_S = 5.0
_LIMIT_S = 60.0  # nobody else waits for the answer


def fleet_rows(url: str, query: TraceQuery) -> list[dict[str, Any]]:
    """The newest that match, as the reader of a store gives them, with `pod`. Raises SettingsError, TraceStoreError."""

    async def rows() -> list[dict[str, Any]]:
        async with _reader(url) as reader:
            return (await reader.page(query)).rows

    return asyncio.run(rows())


def follow_fleet(url: str, query: TraceQuery, take: Callable[[dict[str, Any]], None], poll_s: float) -> None:
    """Hand over what finishes from now on, until the program is interrupted; errors as those of `fleet_rows`.

    Where rows were gone before they could be read, standard error says so.
    """

    async def follow() -> None:
        async with _reader(url) as reader:
            mark = await reader.newest()
            while True:
                step = await reader.step(mark, query)
                mark = step.mark
                if step.has_gap:
                    click.echo("some requests are missing here: Redis has them no longer", err=True)
                for row in step.rows:
                    take(row)
                if not step.is_more:
                    await asyncio.sleep(poll_s)

    asyncio.run(follow())


@asynccontextmanager
async def _reader(url: str) -> AsyncIterator[FleetReader]:
    link = RedisLink(url, deadline_s=_DEADLINE_S, give_up_s=_DEADLINE_S)
    try:
        yield FleetReader(FleetTraces(link, ""), limit_s=_LIMIT_S)
    finally:
        await link.close()
