"""What must not leak: bytes in memory, secrets and prompts in records, connections after a fault."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from kit.stage import (
    KEY,
    SSE_HEAD,
    always,
    answers,
    chunked,
    error,
    events,
    http,
    message,
    request_body,
    stage,
    streams,
    until,
)

pytestmark = pytest.mark.anyio


async def test_a_slow_reader_throttles_the_upstream_and_its_leaving_frees_it():
    """While the client does not read, the router reads little more; when it goes, so does the upstream (F33)."""
    written = 0
    piece = chunked(b": " + b"x" * 65534)

    async def behave(peer):
        nonlocal written
        await peer.request()
        peer.send(SSE_HEAD)
        while written < 512:
            peer.send(piece)
            await peer.writer.drain()
            written += 1

    async with stage(behave) as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.port, limit=1024)
        body = request_body(stream=True)
        writer.write(
            b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        await reader.readuntil(b"\r\n\r\n")
        await s.upstream_asked()
        settled = -1
        while settled != written:  # until nothing moves any more
            settled = written
            for _ in range(300):
                await asyncio.sleep(0)
        assert written < 256, "the router took more than the sockets between hold"
        writer.transport.abort()
        await s.upstream_closed(1.0)
        assert (await s.trace())["outcome"] == "client_closed"


async def test_no_secret_and_no_prompt_is_written_down(caplog):
    """Keys, prompts, answers and header values are in no trace, log line, metric or error (S16, S17)."""
    caplog.set_level(logging.DEBUG)
    headers = [(b"x-api-key", b"sk-canary-key"), (b"x-custom", b"canary-header"), (b"cookie", b"canary-cookie")]
    replies = []
    behaviours = (
        (answers(), {}),
        (streams(*events("canary-answer")[:4]), {"stream": True}),
        (answers(error("400 B", "invalid_request_error", "canary-error")), {}),
        (answers(b"nonsense canary-wire\r\n\r\n"), {}),
    )
    for behave, more in behaviours:
        async with stage(behave, policy=always("cache: {ttl: 1h}")) as s:
            replies.append(await s.post(request_body("canary-prompt", system="canary-system", **more), headers))
            await s.post(b'{"canary-body": 1, "canary-body": 2}', headers)
            await s.post(request_body("canary-prompt"), [(b"authorization", b"Basic canary-basic")])
            await s.request("GET", "/v1/files?canary-query=1", None, headers)
            await s.traces()
            stored = b"".join(path.read_bytes() for path in s.folder.glob("traces.db*"))
            assert b"claude-sonnet-5-5" in stored
            assert b"canary" not in stored
            assert b"canary" not in s.app.metrics.render()
    assert "canary" not in caplog.text
    assert all(b"sk-canary" not in reply.body for reply in replies)


async def test_no_answer_goes_astray_while_clients_leave():
    """Of sixty requests over shared connections every third client leaves; all others get their own nonce (F26)."""

    async def echo(peer):
        while True:
            request = await peer.request()
            nonce = json.loads(request.body)["messages"][0]["content"]
            await asyncio.sleep(0)
            answer = http(message(nonce))
            await peer.send_apart(answer[:200], answer[200:])

    async with stage(echo) as s:

        async def ask(number):
            wire = await s.connect()
            wire.send("POST", "/v1/messages", KEY, request_body(f"nonce-{number}"))
            if number % 3 == 0:
                for _ in range(number):
                    await asyncio.sleep(0)
                wire.writer.transport.abort()
                return True
            return (await wire.reply()).json()["content"][0]["text"] == f"nonce-{number}"

        for _ in range(3):
            assert all(await asyncio.gather(*(ask(number) for number in range(20))))
        await until(lambda: s.app.upstream.stats()["open"] == s.app.upstream.stats()["idle"])


async def test_a_client_that_closes_only_its_sending_side_counts_as_gone():
    """Today's behaviour of the server under us, written down: half a close is a close (F31)."""
    async with stage(answers()) as s:
        wire = await s.connect()
        wire.send("POST", "/v1/messages", KEY, request_body())
        wire.writer.write_eof()
        assert await asyncio.wait_for(wire.reader.read(), 5) == b""
        await s.upstream_closed()
        assert (await s.trace())["outcome"] == "client_closed"


async def test_every_fault_gives_its_connections_back():
    """After cut streams, errors, resets and leaving clients no task and no upstream connection stays behind (R7)."""
    number = 0

    async def behave(peer):
        nonlocal number
        number += 1
        await peer.request()
        match number % 4:
            case 0:
                peer.send(SSE_HEAD + chunked(events()[0]))
                peer.reset()
            case 1:
                peer.reset()
            case 2:
                peer.send(error("529 O", "overloaded_error"))
            case _:
                peer.send(SSE_HEAD + chunked(events()[0]))
                await peer.closed()

    async with stage(behave) as s:
        await s.messages()
        before = len(asyncio.all_tasks())
        for _ in range(24):
            wire = await s.connect()
            wire.send("POST", "/v1/messages", KEY, request_body(stream=True))
            _, headers = await wire.head()
            if dict(headers).get(b"transfer-encoding"):
                await wire.chunk()
            await wire.close()
        await s.upstream_closed(2.0)
        await until(lambda: len(asyncio.all_tasks()) <= before)
        stats = s.app.upstream.stats()
        assert stats["open"] == stats["idle"]
        assert stats["opening"] == stats["waiting"] == 0
        assert len(await s.traces()) == 25


async def test_an_expectation_is_answered_once():
    """`Expect: 100-continue`: one interim answer, then the final one; it is not passed on (F49)."""
    async with stage() as s:
        wire = await s.connect()
        body = request_body()
        wire.writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\nexpect: 100-continue\r\n")
        wire.writer.write(b"content-length: %d\r\n\r\n" % len(body))
        assert await asyncio.wait_for(wire.reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.writer.write(body)
        assert (await wire.reply()).status == 200
        assert s.upstream.requests[0].header(b"expect") is None
