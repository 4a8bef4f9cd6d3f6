"""Slow clients of the installed program: bounded memory, a throttled upstream, complete answers (F33)."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from kit.processes import router
from kit.raw_client import RawClient, request
from kit.raw_upstream import raw_upstream
from kit.stage import SSE_HEAD, always, chunked, until

pytestmark = pytest.mark.anyio

STREAMS = 200
PIECE = b'event: ping\ndata: {"type": "ping"}\n\n' * 400
PIECES = 100  # of 14 kB: more than stands in all buffers between the upstream and a client
BODY = json.dumps(
    {"model": "claude-sonnet-5-5", "max_tokens": 16, "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
).encode()
ASK = request(
    b"POST /v1/messages HTTP/1.1", b"x-api-key: sk-test-1", b"anthropic-version: 2023-06-01",
    b"connection: close", b"content-length: %d" % len(BODY), body=BODY,
)  # fmt: skip


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096


async def test_two_hundred_clients_that_do_not_read_cost_little_and_stop_their_upstreams(tmp_path) -> None:
    """Some 40 KiB each in this process; others are served meanwhile, and whoever reads at last has all of it (F33)."""
    sent: dict[int, int] = {}

    async def behave(peer):
        peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        raw = await peer.request()
        peer.send(SSE_HEAD)
        count = PIECES if b'"slow"' not in raw.body else 1
        for _ in range(count):
            peer.send(chunked(PIECE))
            await peer.writer.drain()
            sent[peer.number] = sent.get(peer.number, 0) + 1
        peer.send(b"0\r\n\r\n")

    async with (
        raw_upstream(behave) as upstream,
        router(tmp_path, upstream.origin, policy=always(), cache="off") as running,
    ):
        await (await running.begin(stream=True, system="slow")).reply()  # what the first stream loads once
        before = resident_bytes(running.process.pid)
        wires = [await RawClient.open(running.port, receive_bytes=65_536 if n == 0 else 4096) for n in range(STREAMS)]
        for wire in wires:
            await wire.say(ASK)
        await until(lambda: upstream.connections == STREAMS + 1)
        while True:  # until nobody sends any more
            seen = sum(sent.values())
            await asyncio.sleep(0.05)
            if sum(sent.values()) == seen:
                break
        grown = resident_bytes(running.process.pid) - before
        assert max(sent.values()) < PIECES  # each upstream waits
        assert grown < STREAMS * 96 * 1024, f"{grown / STREAMS / 1024:.0f} KiB a stream"
        assert (await (await running.begin(stream=True, system="slow")).reply()).is_whole
        [answer] = await wires[0].answers()
        assert answer.is_whole
        assert answer.body.count(PIECE) == PIECES
        for wire in wires:
            wire.writer.transport.abort()
        await until(lambda: not upstream.open)
