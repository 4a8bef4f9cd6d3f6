"""Answers that are odd, hostile or lost (F21 to F24, F26, F29, F30), and headers that must not cross (S12 to S14)."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import zlib

import anthropic
import pytest
import zstandard
from kit.audit import audited
from kit.stage import KEY, SSE_HEAD, always, answers, chunked, error, events, http, message, request_body, stage

pytestmark = pytest.mark.anyio

STREAM = b"".join(events("one", "two"))
BOMB = gzip.compress(b"0" * 30_000_000)
ENCODED = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "br": lambda data: b"\x1b" + data[::-1],  # nobody may look inside, so that any bytes will do
    "gzip, zstd": lambda data: zstandard.ZstdCompressor().compress(gzip.compress(data)),
    "x-unheard-of": lambda data: data[::-1],
}


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("is_streaming", [False, True])
async def test_a_compressed_answer_keeps_its_bytes_and_its_header(encoding, is_streaming):
    """It was asked for without compression; what comes all the same is passed on unread, cost unknown (F21)."""
    body = ENCODED[encoding](STREAM if is_streaming else message())
    kind = "text/event-stream" if is_streaming else "application/json"
    async with audited(answers(http(body, "200 OK", ("content-encoding", encoding), kind=kind))) as a:
        reply = await a.s.messages(stream=is_streaming)  # not noted: rule R2 cannot look into it either
        a.left += 1
        assert (reply.body, reply.header("content-encoding")) == (body, encoding)
        assert a.upstream.requests[0].header(b"accept-encoding") == b"identity"
        assert (await a.trace())["cost_usd"] is None


async def test_a_compressed_stream_comes_through_piece_by_piece():
    """Nothing is held back to be unpacked (F21)."""
    body = gzip.compress(STREAM)
    go_on = asyncio.Event()

    async def behave(peer):
        await peer.request()
        peer.send(SSE_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"), chunked(body[:20]))
        await go_on.wait()
        peer.send(chunked(body[20:]), b"0\r\n\r\n")

    async with audited(behave) as a:
        wire = await a.begin(stream=True)
        await wire.head()
        assert await wire.chunk() == body[:20]
        go_on.set()
        assert await wire.chunk() == body[20:]
        assert await wire.chunk() == b""


@pytest.mark.parametrize("claim", ["identity", "gzip"])
async def test_a_bomb_and_a_lie_stay_as_small_as_they_came(claim):
    """30 MB in 30 kB is never unpacked; bytes that are no JSON under a plain header are a 502 (F21)."""
    body = BOMB if claim == "gzip" else gzip.compress(message())
    async with audited(answers(http(body, "200 OK", ("content-encoding", claim)))) as a:
        reply = await a.messages()
        if claim == "gzip":
            assert (reply.status, reply.body) == (200, body)
        else:
            assert (reply.status, reply.json()["error"]["type"]) == (502, "api_error")


WRONG = {
    "too short for its length": http(message())[:-5],
    "no status line": b"hello\r\n\r\n",
    "no final answer": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "a length that is none": b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\n{}",
    "a head without end": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000,
    "a NUL in a header": b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\n{}",
    "a bare CR in a header": b"HTTP/1.1 200 OK\r\nx: a\rset-cookie: b\r\ncontent-length: 2\r\n\r\n{}",
    "a redirect": http(b"{}", "302 Found", ("location", "http://169.254.169.254/latest/")),
    "a permanent redirect": http(b"{}", "308 P", ("location", "https://elsewhere.example/v1/messages")),
    "nothing": http(b""),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "half a JSON": http(b'{"id": "msg_1", "usa'),
    "a status of four digits": b"HTTP/1.1 2000 OK\r\ncontent-length: 2\r\n\r\n{}",
    "a bad chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("what", WRONG)
async def test_an_answer_that_cannot_be_believed_is_a_502(what):
    """Nothing of it is handed on, nobody is redirected, and it is asked once (F22, S14)."""

    async def behave(peer):
        await peer.request()
        peer.send(WRONG[what])
        await peer.writer.drain()

    async with audited(behave, policy=always("retry: 3", route="[haiku, sonnet]")) as a:
        reply = await a.messages(model="claude-opus-5-5")
        assert (reply.status, reply.json()["error"]["type"]) == (502, "api_error")
        assert reply.header("location") is None
        assert reply.header("set-cookie") is None
        assert [each["outcome"] for each in (await a.trace())["attempts"]] == ["broken"]


async def test_bytes_behind_an_answer_reach_nobody():
    """A length that is too small leaves bytes on the wire: they end the connection, and no request gets them (F22)."""
    smuggled = http(message()) + http(message("for somebody else"))

    async def behave(peer):
        while True:
            await peer.request()
            peer.send(smuggled)

    async with audited(behave) as a:
        for _ in range(5):
            assert (await a.messages()).body == message()
        assert a.upstream.connections == 6  # one of them before the script


async def test_hints_before_an_answer_are_passed_over():
    """1xx answers are not final; the client gets the one that is (F22)."""
    said = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\n" + http(message())
    async with audited(answers(said)) as a:
        reply = await a.messages()
        assert (reply.status, reply.body, reply.header("link")) == (200, message(), None)


async def test_a_line_of_twenty_megabytes_in_a_stream_passes_and_is_not_kept():
    """An event that is larger than what is read of one passes as it came; the stream behind it is metered (F18)."""
    huge = b"event: something_new\ndata: " + b"x" * (20 << 20) + b"\n\n"
    first, *rest = events("one", "two")

    async def behave(peer):
        await peer.request()
        peer.send(SSE_HEAD, chunked(first))
        for start in range(0, len(huge), 1 << 20):
            peer.send(chunked(huge[start : start + (1 << 20)]))
            await peer.writer.drain()
        peer.send(*(chunked(each) for each in rest), b"0\r\n\r\n")

    async with audited(behave) as a:
        reply = await a.messages(stream=True)
        assert reply.body == first + huge + b"".join(rest)
        trace = await a.trace()
        assert (trace["outcome"], trace["usage"]["output_tokens"]) == ("ok", 10)


async def test_a_large_answer_is_passed_on_without_being_held():
    """Of 64 MB the router holds its 32 at the most, and passes on what follows as it comes (F23)."""
    piece = b"x" * (1 << 20)
    sent = 0

    async def behave(peer):
        nonlocal sent
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (64 << 20))
        for _ in range(64):
            peer.send(piece)
            await peer.writer.drain()
            sent += 1
        await peer.closed()

    async with audited(behave) as a:
        wire = await a.begin()
        status, headers = await wire.head()
        assert (status, dict(headers)[b"content-length"]) == (200, b"%d" % (64 << 20))
        assert sent < 60, "the rest waits upstream while the client does not read"
        left = 64 << 20
        while left:
            left -= len(await wire.reader.read(1 << 20))


async def test_an_early_refusal_of_a_large_body_is_the_answer_and_never_a_next_request():
    """413 before the body was read: that answer, and the rest of the body on no other connection (F24)."""
    said = error("413 Large", "request_too_large", "too large", ("connection", "close"))
    heads = []

    async def behave(peer):
        heads.append(await peer.head())
        peer.send(said)
        await peer.writer.drain()

    async with audited(behave) as a:
        for _ in range(3):
            reply = await a.request("POST", "/v1/messages", request_body("x" * 2_000_000), KEY)
            assert (reply.status, reply.body) == (413, said.partition(b"\r\n\r\n")[2])
        assert [line for line, _ in heads] == [b"POST /v1/messages HTTP/1.1"] * 3


async def test_no_answer_goes_astray_in_a_storm_of_cancels():
    """Hundreds of requests with a nonce each, half of whose clients leave at odd moments: 0 crossed (F26)."""
    dice = random.Random(26)

    async def behave(peer):
        while True:
            request = await peer.request()
            nonce = json.loads(request.body)["messages"][0]["content"]
            for _ in range(dice.randrange(6)):
                await asyncio.sleep(0)
            reply = http(message(nonce))
            if "Hello" not in nonce:
                cut = dice.randrange(len(reply))
                await peer.send_apart(reply[:cut], reply[cut:])
            else:
                peer.send(reply)

    right = gone = 0

    async def one(s, number):
        nonlocal right, gone
        wire = await s.connect()
        wire.send("POST", "/v1/messages", KEY, request_body(f"nonce-{number}"))
        if number % 2:
            for _ in range(dice.randrange(120)):
                await asyncio.sleep(0)
            await wire.close()
            gone += 1
            return
        reply = await wire.reply()
        assert reply.json()["content"][0]["text"] == f"nonce-{number}"
        right += 1
        await wire.close()

    async with audited(behave) as a:
        for start in range(0, 400, 40):
            await asyncio.gather(*(one(a.s, number) for number in range(start, start + 40)))
        assert (right, gone) == (200, 200)
        a.left = len(await a.s.traces()) - 1  # who left before the request was read has no trace


BATCH = json.dumps({"requests": [{"custom_id": "a", "params": json.loads(request_body())}]}).encode()


@pytest.mark.parametrize("how", ["reset", "silence", "close"])
async def test_a_batch_whose_answer_is_lost_is_said_to_be_unknown(how):
    """Accepted, then nothing: one request upstream, and an error that no library answers by sending again (F29)."""

    async def behave(peer):
        await peer.request()
        if how == "reset":
            peer.reset()
        elif how == "silence":
            await peer.closed()

    async with audited(behave) as a:
        own = a.app.pipeline._parts.deadlines
        object.__setattr__(own, "first_byte", 0.1)
        for _ in range(2):
            reply = await a.request("POST", "/v1/messages/batches", BATCH, KEY)
            assert reply.status == 502
            assert "the outcome is unknown" in reply.json()["error"]["message"]
            assert reply.header("x-should-retry") == "false"
            assert 'details="R306"' in reply.header("proxy-status")
        assert len(a.upstream.requests) == 2
        rows = await a.traces()
        assert [row["error_code"] for row in rows] == ["R306", "R306"]
        assert [row["cost_usd"] for row in rows] == [None, None]


async def test_the_official_library_does_not_send_a_lost_batch_again():
    """It repeats what fails with 5xx by itself; here it is told not to (F29)."""

    async def behave(peer):
        await peer.request()
        peer.reset()

    async with audited(behave) as a:
        async with anthropic.AsyncAnthropic(api_key="sk-test-1", base_url=a.s.url, max_retries=2) as client:
            with pytest.raises(anthropic.InternalServerError, match="the outcome is unknown"):
                await client.messages.batches.create(requests=json.loads(BATCH)["requests"])
        a.left += 1
        assert len(a.upstream.requests) == 1


async def test_a_batch_is_never_sent_on_a_used_connection():
    """A kept connection may have died unseen, and then nobody could tell whether the batch arrived (F25, F29)."""
    numbers = []

    async def behave(peer):
        while True:
            await peer.request()
            numbers.append(peer.number)
            peer.send(http(b'{"id": "msgbatch_1"}'))

    async with audited(behave) as a:
        for method, target, body in (
            ("GET", "/v1/messages/batches", None), ("POST", "/v1/messages/batches", BATCH),
            ("POST", "/v1/messages/batches", BATCH), ("GET", "/v1/messages/batches", None),
        ):  # fmt: skip
            assert (await a.request(method, target, body, KEY)).status == 200
        assert len(set(numbers[:3])) == 3
        assert numbers[3] in numbers[:3]


async def test_results_of_a_batch_are_passed_on_as_they_are():
    """Cut, expired, missing, asked for by many: what the upstream said, unmetered, and cut where it was cut (F30)."""
    lines = b'{"custom_id": "a", "result": {"type": "succeeded"}}\n{"custom_id": "b", "result": {"type": "expired"}}\n'
    target = "/v1/messages/batches/msgbatch_1/results"
    async with audited(answers(http(lines, kind="application/x-jsonl"))) as a:
        replies = await asyncio.gather(*(a.request("GET", target, None, KEY) for _ in range(8)))
        assert [reply.body for reply in replies] == [lines] * 8
        assert {row["cost_usd"] for row in await a.traces()} == {0}, "reading costs nothing, however often"
    gone = error("404 Gone", "not_found_error", "no results")
    async with audited(answers(gone)) as a:
        reply = await a.request("GET", target, None, KEY)
        assert (reply.status, reply.body) == (404, gone.partition(b"\r\n\r\n")[2])

    async def cut(peer):
        await peer.request()
        peer.send(http(lines, kind="application/x-jsonl")[:-30])

    async with audited(cut) as a:
        wire = await a.s.connect()
        wire.send("GET", target, KEY, None)
        reply = await wire.reply()
        a.left += 1
        assert not reply.is_whole, "half a list must not look like a whole one"
        trace = await a.trace()
        assert (trace["outcome"], trace["attempts"][0]["outcome"]) == ("cut", "cut")


async def test_only_the_operators_host_is_ever_asked(monkeypatch):
    """No header, path, field or environment moves the upstream (S12)."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    headers = [*KEY, (b"x-forwarded-host", b"evil.example"), (b"forwarded", b"host=evil.example"),
               (b"x-upstream-url", b"http://evil.example"), (b"x-forwarded-proto", b"gopher")]  # fmt: skip
    body = request_body(base_url="http://evil.example", api_base="http://evil.example", upstream="evil.example")
    async with audited() as a:
        assert (await a.request("POST", "/v1/messages", body, headers)).status == 200
        wire = await a.s.connect()
        wire.send("POST", "http://evil.example/v1/messages", KEY, request_body(), host=b"evil.example")
        status, _ = await wire.head()
        await a.s.traces()
        await wire.close()
        hosts = {request.header(b"host") for request in a.upstream.requests}
        assert hosts == {f"127.0.0.1:{a.upstream.port}".encode()}
        assert all(request.line.startswith(b"POST /") for request in a.upstream.requests)
        assert status in (200, 400, 404)
        a.left = len(await a.s.traces()) - 1 - len(a.replies)


STRIPPED = (b"cookie", b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via", b"te", b"trailer",
            b"proxy-authorization", b"keep-alive", b"proxy-connection", b"x-router-secret", b"cf-ray", b"x-hop",
            b"x-envoy-id", b"prefer", b"traceparent")  # fmt: skip
PASSED = (b"anthropic-beta", b"x-custom", b"x-stainless-os", b"user-agent", b"accept", b"idempotency-key")


async def test_five_hundred_header_sets_leave_clean():
    """What belongs to a hop, to the client or to the router stays; unknown headers pass; one credential goes (S13)."""
    dice = random.Random(13)
    async with stage() as s:
        wire = await s.connect()
        for _ in range(500):
            names = dice.sample(STRIPPED + PASSED, dice.randrange(1, 12))
            sent = [(name, b"v%d" % dice.randrange(100)) for name in names]
            credentials = dice.choice([[(b"x-api-key", b"k")], [(b"authorization", b"Bearer t")],
                                       [(b"x-api-key", b"k"), (b"authorization", b"Bearer t")]])  # fmt: skip
            named = [(b"connection", dice.choice([b"x-hop", b"X-Hop, keep-alive", b"keep-alive, x-hop"]))]
            headers = [*sent, *credentials, *(named if b"x-hop" in names else [])]
            dice.shuffle(headers)
            wire.send("POST", "/v1/messages", headers, request_body())
            assert (await wire.reply()).status == 200
            found = [name for name, _ in s.upstream.requests[-1].headers]
            assert not set(found) & set(STRIPPED), found
            assert set(found) >= set(names) & set(PASSED)
            assert len([name for name in found if name in (b"x-api-key", b"authorization")]) == 1
            assert len(found) == len(set(found))


async def test_what_the_upstream_says_of_itself_does_not_come_down():
    """Cookies, server names, internal ids, another router's words; and no value can end a line (S14)."""
    said = [("set-cookie", "a=b"), ("x-internal", "10.0.0.7"), ("server", "secret/1"), ("x-router-lane", "forged"),
            ("x-router-cost-usd", "0"),
            ("cf-ray", "1"), ("x-envoy-upstream", "10.0.0.1"), ("alt-svc", "h3"), ("x-custom", "kept"),
            ("connection", "x-internal"), ("proxy-status", "router; details=R901")]  # fmt: skip
    async with audited(answers(http(message(), "200 OK", *said))) as a:
        reply = await a.messages()
        names = [name for name, _ in reply.headers]
        for name in ("set-cookie", "cf-ray", "x-envoy-upstream", "alt-svc", "x-internal", "proxy-status"):
            assert name.encode() not in names, name
        assert reply.header("x-custom") == "kept"
        assert reply.header("server") != "secret/1"
        assert reply.header("x-router-lane") != "forged"
        assert names.count(b"x-router-cost-usd") == 1
