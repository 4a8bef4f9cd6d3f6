"""Streams on their way down: relayed unchanged, metered, and never passed off as complete when they are not."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import ssl
from pathlib import Path

import anthropic
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
)

from router.seams import Deadlines

pytestmark = pytest.mark.anyio

FIXTURES = sorted((Path(__file__).parent.parent / "fixtures" / "sse").glob("*.sse"))
CACHED = always("cache: {ttl: 1h}")
PIECES = events("Hel", "lo é🌍")
STREAM = b"".join(PIECES)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Made once: every client of the SDK makes one, which takes longer than the rest of a test."""
    return ssl.create_default_context()


def sdk(s) -> anthropic.AsyncAnthropic:
    """The official client in front of the stage."""
    http_client = anthropic.DefaultAsyncHttpxClient(verify=tls_context())
    return anthropic.AsyncAnthropic(api_key="sk-test-1", base_url=s.url, max_retries=0, http_client=http_client)


async def read(client: anthropic.AsyncAnthropic) -> list[str]:
    """The texts that the official SDK gives; raises what it raises."""
    stream = await client.messages.create(
        model="claude-sonnet-5-5", max_tokens=64, messages=[{"role": "user", "content": "x"}], stream=True
    )
    return [
        event.delta.text
        async for event in stream
        if event.type == "content_block_delta" and event.delta.type == "text_delta"
    ]


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
async def test_a_fixture_is_relayed_unchanged_however_it_is_split(path):
    """The same bytes come out for a sample of splits, and for one event per chunk (F18, F20)."""
    raw = path.read_bytes()
    places = [*range(1, len(raw), max(1, len(raw) // 8)), 0]
    cuts = iter(places)

    async def behave(peer):
        while True:
            await peer.request()
            at = next(cuts)
            if at:
                await peer.send_apart(SSE_HEAD, chunked(raw[:at]), chunked(raw[at:]), b"0\r\n\r\n")
            else:
                await peer.send_apart(SSE_HEAD, *(chunked(raw[n : n + 5]) for n in range(0, len(raw), 5)), b"0\r\n\r\n")

    async with stage(behave) as s:
        wire = await s.connect()
        for _ in places:
            wire.send("POST", "/v1/messages", KEY, request_body(stream=True))
            reply = await wire.reply()
            assert reply.is_whole
            assert reply.body == raw
        traces = await s.traces()
        ended = "upstream_error" if path.stem == "error_mid_stream" else "ok"
        assert [trace["outcome"] for trace in traces] == [ended] * len(places)
        assert len({json.dumps(trace["usage"]) for trace in traces}) == 1
        assert traces[0]["usage"]["input_tokens"] == 25


async def test_an_upstream_error_event_is_forwarded_verbatim_and_ends_the_stream():
    """Nothing of ours is added behind it, the SDK raises, the trace says error and keeps the usage (F19)."""
    raw = (FIXTURES[0].parent / "error_mid_stream.sse").read_bytes()
    async with stage(streams(raw), policy=CACHED) as s:
        assert (await s.messages(stream=True)).body == raw
        trace = await s.trace()
        assert (trace["outcome"], trace["error_type"]) == ("upstream_error", "overloaded_error")
        assert trace["attempts"][0]["outcome"] == "error"
        assert trace["usage"]["input_tokens"] == 25
        assert trace["cost_usd"] > 0
        assert not trace["is_stored"]
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            async with sdk(s) as client:
                await read(client)
    async with stage(
        streams(raw, end=b"")
    ) as s:  # and the connection breaks behind it: still one error, the upstream's
        assert (await s.messages(stream=True)).body == raw
        assert (await s.trace())["error_type"] == "overloaded_error"


ENDS = {"clean": b"0\r\n\r\n", "broken": b"", "inside a chunk": b"ff\r\n"}
CUTS = sorted(
    {sum(map(len, PIECES[:count])) for count in range(len(PIECES))}  # behind every event
    | set(range(3, len(STREAM) - 2, 211))  # anywhere
    | {STREAM.index("é".encode()) + 1, STREAM.index("🌍".encode()) + 2, len(STREAM) - 1, len(STREAM) - 2}
)


@pytest.mark.parametrize("end", ENDS)
async def test_a_cut_stream_is_told_to_be_cut_wherever_it_was_cut(end):
    """What came is relayed, one error event follows, the client library raises, nothing is cached (R2, F15, F16)."""
    at = 0

    async def behave(peer):
        await peer.request()
        peer.send(SSE_HEAD + (chunked(STREAM[:at]) if at else b"") + ENDS[end])

    async with stage(behave, policy=CACHED) as s, sdk(s) as client:
        for at in CUTS:
            reply = await s.messages(stream=True)
            assert reply.is_whole
            assert reply.body.startswith(STREAM[:at])
            ours = reply.body[at:]
            ours = ours[ours.index(b"event: error\n") :]
            assert len(reply.body) - at - len(ours) <= 4  # a line end, and the rest of a character
            assert ours.endswith(b"}\n\n")
            assert json.loads(ours[len(b"event: error\ndata: ") :])["error"]["type"] == "api_error"
            with pytest.raises(anthropic.APIStatusError):
                await read(client)
        traces = await s.traces()
        assert len(traces) == 2 * len(CUTS)
        assert {trace["outcome"] for trace in traces} == {"cut"}
        assert {trace["error_code"] for trace in traces} <= {"R304", "R305"}
        assert {trace["cache"] for trace in traces} == {"miss"}
        assert {trace["attempts"][0]["outcome"] for trace in traces} == {"cut"}
        assert not any(trace["is_stored"] for trace in traces)


async def test_the_cost_of_a_cut_stream_is_what_it_reported():
    """Usage so far is booked, as a lower bound."""
    async with stage(streams(*PIECES[:4])) as s:
        await s.messages(stream=True)
        trace = await s.trace()
        assert trace["usage"]["input_tokens"] == 100
        assert trace["usage"]["is_final"] is False
        assert str(trace["cost_usd"]) == "0.00021"


async def test_a_stream_whose_connection_breaks_behind_message_stop_is_complete():
    """An untidy goodbye takes nothing from a whole answer."""
    async with stage(streams(*PIECES, end=b"")) as s, sdk(s) as client:
        reply = await s.messages(stream=True)
        assert reply.body == STREAM
        assert (await s.trace())["outcome"] == "ok"
        assert await read(client) == ["Hel", "lo é🌍"]


async def test_silence_inside_a_stream_is_a_timeout_that_the_client_hears_of():
    """The idle limit ends the stream with a `timeout_error` event (F13)."""

    async def behave(peer):
        await peer.request()
        await peer.send_apart(SSE_HEAD, chunked(PIECES[0]))
        await peer.closed()

    async with stage(behave) as s:
        asker = s.app.pipeline._asker
        asker._parts = dataclasses.replace(asker._parts, deadlines=Deadlines(idle=0.05))
        reply = await s.messages(stream=True)
        assert b"timeout_error" in reply.body
        trace = await s.trace()
        assert (trace["outcome"], trace["attempts"][0]["outcome"]) == ("cut", "timeout")
        await s.upstream_closed()


async def test_events_are_relayed_as_they_come():
    """Each event is with the client before the upstream sends the next: nothing is held back (F14)."""
    seen = asyncio.Event()

    async def behave(peer):
        await peer.request()
        peer.send(SSE_HEAD)
        for piece in PIECES:
            seen.clear()
            peer.send(chunked(piece))
            await asyncio.wait_for(seen.wait(), 5)
        peer.send(b"0\r\n\r\n")

    async with stage(behave) as s:
        wire = await s.connect()
        wire.send("POST", "/v1/messages", KEY, request_body(stream=True))
        await wire.head()
        for piece in PIECES:
            assert await wire.chunk() == piece
            seen.set()
        assert await wire.chunk() == b""
        trace = await s.trace()
        assert 0 < trace["ttft_s"] <= trace["duration_s"]
        assert trace["stop_reason"] == "end_turn"
        assert trace["overhead_s"] < trace["duration_s"]


async def test_a_json_answer_to_a_streaming_request_is_passed_on():
    """And a stream to a plain request: what the upstream decides to send is what the client gets."""
    async with stage(answers(http(message()))) as s:
        assert (await s.messages(stream=True)).body == message()
    async with stage(streams(*PIECES)) as s:
        assert (await s.messages()).body == STREAM
    async with stage(answers(error("529 O", "overloaded_error"))) as s:
        assert (await s.messages(stream=True)).status == 529


# Clients that leave


@pytest.mark.parametrize("is_streaming", [False, True])
async def test_a_client_that_leaves_before_the_answer_takes_the_upstream_call_with_it(is_streaming):
    """The upstream's connection is closed within a second; the trace says client_closed, nothing is booked (F31)."""
    asked = asyncio.Event()

    async def behave(peer):
        await peer.request()
        asked.set()
        await peer.closed()

    async with stage(behave) as s:
        wire = await s.connect()
        wire.send("POST", "/v1/messages", KEY, request_body(stream=is_streaming))
        await asyncio.wait_for(asked.wait(), 5)
        await wire.close()
        await s.upstream_closed(1.0)
        trace = await s.trace()
        assert trace["outcome"] == "client_closed"
        assert [a["outcome"] for a in trace["attempts"]] == ["client_closed"]


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_mid_stream_is_booked_for_what_was_generated(how):
    """Upstream closed within a second, outcome client_closed, usage and cost so far (F31)."""

    async def behave(peer):
        await peer.request()
        await peer.send_apart(SSE_HEAD, chunked(PIECES[0]), chunked(PIECES[1]))
        await peer.closed()

    async with stage(behave) as s:
        wire = await s.connect()
        wire.send("POST", "/v1/messages", KEY, request_body(stream=True))
        await wire.head()
        await wire.chunk()
        if how == "close":
            await wire.close()
        else:
            wire.writer.transport.abort()
        await s.upstream_closed(1.0)
        trace = await s.trace()
        assert (trace["outcome"], trace["attempts"][0]["outcome"]) == ("client_closed", "client_closed")
        assert trace["usage"]["input_tokens"] == 100
        assert str(trace["cost_usd"]) == "0.00021"


async def test_a_client_that_leaves_inside_a_plain_answer_closes_the_upstream():
    """The body was being collected; the attempt is not called a success."""

    async def behave(peer):
        await peer.request()
        await peer.send_apart(http(message())[:-5])
        await peer.closed()

    async with stage(behave) as s:
        wire = await s.connect()
        wire.send("POST", "/v1/messages", KEY, request_body())
        await s.upstream_asked()
        await wire.close()
        await s.upstream_closed(1.0)
        trace = await s.trace()
        assert (trace["outcome"], trace["attempts"][0]["outcome"]) == ("client_closed", "client_closed")


async def test_a_client_that_leaves_while_a_retry_waits_ends_the_wait():
    """No further attempt is made for nobody."""
    refusal = error("529 O", "overloaded_error", "x", ("retry-after", "7"))
    async with stage(answers(refusal), policy=always("retry: 3")) as s:
        wire = await s.connect()
        wire.send("POST", "/v1/messages", KEY, request_body())
        await s.upstream_asked()
        await wire.close()
        trace = await s.trace()
        assert trace["outcome"] == "client_closed"
        assert len(s.upstream.requests) == 1


async def test_a_client_that_leaves_inside_its_request_leaves_no_trace():
    """Half a request was never a request: the upstream hears nothing."""
    async with stage() as s:
        wire = await s.connect()
        wire.writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\ncontent-length: 100\r\n\r\n{")
        await wire.writer.drain()
        await wire.close()
        assert (await s.messages()).status == 200
        assert len(await s.traces()) == 1
        assert len(s.upstream.requests) == 1


async def test_a_hundred_clients_that_leave_cost_nothing():
    """After a burst of disconnects the next request is served, and no upstream connection is left (F32, R7, R8)."""
    is_hanging = True

    async def behave(peer):
        while True:
            await peer.request()
            if is_hanging:
                await peer.closed()
                return
            peer.send(http(message()))

    async with stage(behave) as s:
        wires = [await s.connect() for _ in range(100)]
        for wire in wires:
            wire.send("POST", "/v1/messages", KEY, request_body(stream=True))
        await s.upstream_asked(100)
        for wire in wires:
            wire.writer.transport.abort()
        await s.upstream_closed(2.0)
        is_hanging = False
        assert (await s.messages()).status == 200
        stats = s.app.upstream.stats()
        assert (stats["open"], stats["waiting"], stats["opening"]) == (1, 0, 0)
        async with asyncio.timeout(5):
            while len(await s.traces()) < 101:
                pass


async def test_a_stream_past_the_grace_period_ends_with_an_error_event():
    """At a stop, whoever is still being answered is told so in words that a client library raises."""

    async def behave(peer):
        await peer.request()
        await peer.send_apart(SSE_HEAD, chunked(PIECES[0] + PIECES[1]))
        await peer.closed()

    async with stage(behave) as s:
        client = sdk(s)
        stream = await client.messages.create(
            model="claude-sonnet-5-5", max_tokens=64, messages=[{"role": "user", "content": "x"}], stream=True
        )
        s.app.api.cut()
        with pytest.raises(anthropic.APIStatusError, match="shutting down"):
            async for _ in stream:
                pass
        await s.upstream_closed()
        assert (await s.trace())["outcome"] == "cut"
        await client.close()


async def test_a_plain_answer_past_the_grace_period_is_a_503():
    """Nothing was sent yet: the client hears that another try may do."""

    async def behave(peer):
        await peer.request()
        asked.set()
        await peer.closed()

    asked = asyncio.Event()
    async with stage(behave) as s:
        waiting = asyncio.ensure_future(s.messages())
        await asked.wait()
        s.app.api.cut()
        reply = await waiting
        assert (reply.status, reply.json()["error"]["type"], reply.header("retry-after")) == (503, "api_error", "1")
        assert (await s.trace())["error_code"] == "R902"


async def test_a_call_without_a_name_before_a_fallback_is_priced_at_the_model_that_was_asked():
    """It declined after reading a long prompt; the one that answered read little, and costs a twentieth."""
    answer = json.loads(message(model="claude-haiku-5-5", input=10, output=50))
    answer["usage"]["iterations"] = [
        {"type": "message", "input_tokens": 90_000, "output_tokens": 0},
        {"type": "fallback_message", "model": "claude-haiku-5-5", "input_tokens": 10, "output_tokens": 50},
    ]
    async with stage(answers(http(json.dumps(answer).encode()))) as s:
        await s.messages(model="claude-sonnet-5-5")
        trace = await s.trace()
    assert trace["model_answered"] == "claude-haiku-5-5"
    assert [each["model"] for each in trace["usage"]["iterations"]] == ["claude-sonnet-5-5", "claude-haiku-5-5"]
    assert float(trace["cost_usd"]) == pytest.approx(90_000 * 2e-6 + 10 * 0.1e-6 + 50 * 0.5e-6)
