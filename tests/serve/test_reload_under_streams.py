"""F76, F78: an edit while requests are under way; each request keeps the revision it began with."""

from __future__ import annotations

import asyncio

import pytest
from kit.raw_upstream import Peer
from kit.stage import SSE_HEAD, Wire, chunked, events, request_body, stage

pytestmark = pytest.mark.anyio

STREAMS = 500
BEFORE = "version: 1\nrules:\n  - {name: before, route: haiku}\notherwise: as-asked\n"
AFTER = "version: 1\nrules:\n  - {name: after, route: sonnet}\notherwise: as-asked\n"


async def test_an_edit_during_500_streams_cuts_none_and_mixes_none():
    """Streams begun before the edit end as they began, whole; those after it see the new policy."""
    go_on = asyncio.Event()
    pieces = events()

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send_apart(SSE_HEAD, chunked(pieces[0]))
        await go_on.wait()
        peer.send(*(chunked(piece) for piece in pieces[1:]), b"0\r\n\r\n")

    async with stage(behave, policy=BEFORE) as s:
        body = request_body(stream=True)

        async def begun() -> tuple[Wire, dict[bytes, bytes]]:
            wire = await s.connect()
            wire.send("POST", "/v1/messages", [(b"x-api-key", b"sk-1"), (b"anthropic-version", b"2023-06-01")], body)
            _, headers = await wire.head()
            return wire, dict(headers)

        old = [await begun() for _ in range(STREAMS)]
        s.write_policy(AFTER)
        assert await s.app.policies.reload()
        new = [await begun() for _ in range(20)]
        go_on.set()
        for wire, _ in [*old, *new]:
            got = b""
            while chunk := await wire.chunk():
                got += chunk
            assert got == b"".join(pieces)
            await wire.close()
        for streams, rule in ((old, b"before"), (new, b"after")):
            assert {headers[b"x-router-rule"] for _, headers in streams} == {rule}
            assert len({headers[b"x-router-policy"] for _, headers in streams}) == 1
        async with asyncio.timeout(10):
            while len(rows := await s.traces()) < STREAMS + len(new):
                pass
        assert {(row["rule"], row["revision"]) for row in rows} == {
            (rule, headers[b"x-router-policy"].decode().partition("@")[2])
            for rule, (_, headers) in (("before", old[0]), ("after", new[0]))
        }
        assert {row["outcome"] for row in rows} == {"ok"}
