"""More than the router can take: turned away at once and in shape, fairly, without hurting what is under way (F54)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter

import anthropic
import pytest
from kit.raw_upstream import Peer
from kit.stage import KEY, SSE_HEAD, Wire, chunked, events, http, message, request_body, stage, until

from router.web.shed import RECORDS_PER_S

pytestmark = pytest.mark.anyio

OTHER = [(b"x-api-key", b"sk-test-2"), (b"anthropic-version", b"2023-06-01")]


class Held:
    """An upstream that answers only when it is let."""

    def __init__(self) -> None:
        self.waiting = 0
        self.most = 0
        self.go = asyncio.Event()

    async def __call__(self, peer: Peer) -> None:
        while True:
            await peer.request()
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            await self.go.wait()
            self.waiting -= 1
            peer.send(http(message()))
            await peer.writer.drain()


async def send(s, headers=KEY, body: bytes | None = None):
    """A request whose answer is read later."""
    wire = await s.connect()
    wire.send("POST", "/v1/messages", headers, body or request_body())
    return wire


@pytest.mark.parametrize("context", ["restart", "continue"])
async def test_a_request_that_is_turned_away_is_in_its_callers_trace(context: str):
    """As any other: who looks for it by the id that was sent, or by the one in the answer, finds what became of it."""
    held = Held()
    caller = "c" * 32
    async with stage(held, max_concurrent=2, trace_context=context) as s:
        wires = [await send(s), await send(s)]
        await s.upstream_asked(2)
        reply = await s.messages((b"traceparent", f"00-{caller}-{'d' * 16}-01".encode()))
        assert reply.status == 529
        held.go.set()
        assert [(await wire.reply()).status for wire in wires] == [200, 200]
        (shed,) = [trace for trace in await s.traces() if trace["outcome"] == "shed"]
        assert shed["trace_id"] == reply.header("x-router-trace")
        assert (shed["trace_id"] == caller) == (context == "continue")
        assert shed["request_id"] == reply.header("request-id")


async def test_a_full_house_says_so_in_the_apis_shape():
    """529, `overloaded_error`, a jittered `retry-after`; one trace each; the upstream hears nothing (R3, R5)."""
    held = Held()
    async with stage(held, max_concurrent=2) as s:
        wires = [await send(s), await send(s)]
        await s.upstream_asked(2)
        replies = [await s.messages() for _ in range(10)]
        for reply in replies:
            assert reply.status == 529
            body = reply.json()
            assert body["type"] == "error"
            assert body["error"]["type"] == "overloaded_error"
            assert body["request_id"] == reply.header("request-id") == f"req_{reply.header('x-router-trace')}"
            assert reply.header("proxy-status") == 'router; error=proxy_internal_error; details="R903"'
            assert reply.header("x-should-retry") == "true"
            wait_ms = int(reply.header("retry-after-ms") or "")
            assert 1000 <= wait_ms < 3000
            assert int(reply.header("retry-after") or "") == -(-wait_ms // 1000)
        assert len({reply.header("retry-after-ms") for reply in replies}) > 1
        assert len(s.upstream.requests) == 2
        held.go.set()
        assert [(await wire.reply()).status for wire in wires] == [200, 200]
        traces = await s.traces()
        shed = [trace for trace in traces if trace["outcome"] == "shed"]
        assert {trace["trace_id"] for trace in shed} == {reply.header("x-router-trace") for reply in replies}
        assert {(trace["status"], trace["error_code"], trace["endpoint"]) for trace in shed} == {
            (529, "R903", "messages")
        }
        assert len({trace["tenant"] for trace in traces}) == 1
        rendered = s.app.metrics.render().decode()
        tenant = traces[0]["tenant"]
        assert f'router_turned_away_total{{reason="working",tenant="{tenant}"}} 10.0' in rendered


async def test_a_client_that_is_turned_away_keeps_its_connection():
    """What comes of its small body is thrown away; the next request on that connection is served (R8)."""
    held = Held()
    async with stage(held, max_concurrent=1) as s:
        first = await send(s)
        await s.upstream_asked(1)
        wire = await send(s)
        assert (await wire.reply()).status == 529
        wire.send("POST", "/v1/messages", KEY, request_body("y" * 20_000))
        assert (await wire.reply()).status == 529
        held.go.set()
        assert (await first.reply()).status == 200
        wire.send("POST", "/v1/messages", KEY, request_body())
        assert (await wire.reply()).status == 200


async def test_the_sdk_understands_and_comes_back():
    """The official client takes the answer for what it is, an overloaded server, and its retry is served."""
    held = Held()
    async with stage(held, max_concurrent=1) as s:
        first = await send(s)
        await s.upstream_asked(1)
        async with anthropic.AsyncAnthropic(base_url=s.url, api_key="sk-test-1", max_retries=0) as client:
            with pytest.raises(anthropic.APIStatusError) as caught:
                await client.messages.create(
                    model="claude-sonnet-5-5", max_tokens=5, messages=[{"role": "user", "content": "x"}]
                )
        assert caught.value.status_code == 529
        assert caught.value.body["error"]["type"] == "overloaded_error"
        held.go.set()
        await first.reply()


async def test_a_large_body_is_refused_before_it_is_sent():
    """The answer comes while nearly all of the body is still to be sent; then the connection is closed."""
    held = Held()
    async with stage(held, max_concurrent=1) as s:
        await send(s)
        await s.upstream_asked(1)
        wire = await s.connect()
        wire.writer.write(
            b"POST /v1/messages HTTP/1.1\r\nhost: test\r\nx-api-key: sk-test-1\r\ncontent-length: 20000000\r\n\r\n{"
        )
        reply = await wire.reply()
        assert (reply.status, reply.header("connection")) == (529, "close")
        wire.writer.write_eof()
        async with asyncio.timeout(5):
            assert await wire.reader.read() == b""
        held.go.set()


async def test_a_tenant_finds_room_beside_one_that_takes_all_it_can():
    """The noisy one is turned away first; the quiet one is served, before and behind the same bound (S22)."""
    held = Held()
    async with stage(held, max_concurrent=10) as s:
        noisy = [await send(s) for _ in range(8)]
        await s.upstream_asked(8)
        refused = [await (await send(s)).reply() for _ in range(5)]
        assert {reply.status for reply in refused} == {529}
        quiet = await send(s, OTHER)
        await s.upstream_asked(9)
        held.go.set()
        assert {(await wire.reply()).status for wire in [*noisy, quiet]} == {200}
        outcomes = Counter((trace["tenant"], trace["outcome"]) for trace in await s.traces())
        assert sorted(outcomes.values()) == [1, 5, 8]
        assert len({tenant for tenant, outcome in outcomes if outcome == "shed"}) == 1


async def test_open_streams_are_not_cut_and_take_no_place():
    """Streams outlive the moment in which the house is full, and a hundred of them leave all places free (R2)."""
    go = asyncio.Event()
    first, *rest = events("Hel", "lo")

    async def behave(peer: Peer) -> None:
        request = await peer.request()
        if b'"stream":true' not in request.body:
            await go.wait()
            peer.send(http(message()))
            return
        peer.send(SSE_HEAD, chunked(first))
        await go.wait()
        peer.send(*map(chunked, rest), b"0\r\n\r\n")

    async with stage(behave, max_concurrent=1) as s:
        streams = []
        for _ in range(20):
            wire = await send(s, body=request_body(stream=True))
            assert (await wire.head())[0] == 200
            streams.append(wire)
        plain = await send(s)
        await s.upstream_asked(21)
        assert (await s.messages()).status == 529
        assert s.app.overload.figures()["streaming"] == 20
        go.set()
        assert (await plain.reply()).status == 200
        for wire in streams:
            body = b""
            while piece := await wire.chunk():
                body += piece
            assert body.endswith(rest[-1])
        await until(lambda: s.app.overload.figures()["streaming"] == 0)


async def test_the_bodies_held_are_bounded():
    """Large bodies beyond `max_body_mb` are turned away, announced or chunked; small ones pass (R7)."""
    held = Held()
    async with stage(held, max_body_mb=32) as s:
        large = request_body("x" * 12_000_000)
        wires = [await send(s, headers, large) for headers in (KEY, OTHER)]
        await s.upstream_asked(2)
        assert (await (await send(s, OTHER, large)).reply()).status == 529
        wire = await s.connect()
        wire.writer.write(
            b"POST /v1/messages HTTP/1.1\r\nhost: test\r\nx-api-key: sk-test-2\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(80):
            wire.writer.write(chunked(b" " * 65_536))
        reply = await wire.reply()
        assert (reply.status, reply.json()["error"]["type"]) == (529, "overloaded_error")
        small = await send(s, OTHER)
        await s.upstream_asked(3)
        held.go.set()
        assert [(await wire.reply()).status for wire in [*wires, small]] == [200, 200, 200]
        await until(lambda: s.app.overload.figures()["body_bytes"] == 0)


async def test_bodies_that_are_only_announced_do_not_keep_others_out():
    """A tenant with two connections that announce half a gigabyte each and send a byte: others are served (S22)."""
    async with stage() as s:
        for _ in range(2):
            wire = await s.connect()
            wire.writer.write(
                b"POST /v1/files HTTP/1.1\r\nhost: test\r\nx-api-key: sk-test-1\r\ncontent-length: 511000000\r\n\r\nx"
            )
        await until(lambda: s.app.overload.figures()["working"] == 2)
        assert s.app.overload.figures()["body_bytes"] < 3_000_000
        assert (await s.post(request_body("x" * 100_000), OTHER)).status == 200


async def test_a_long_body_that_was_announced_counts_as_it_comes_and_finds_no_room():
    """It was let in while there was room; what has come of it is let go with the 529."""
    held = Held()
    async with stage(held, max_body_mb=32) as s:
        wire = await s.connect()
        wire.writer.write(
            b"POST /v1/messages HTTP/1.1\r\nhost: test\r\nx-api-key: sk-test-1\r\ncontent-length: 25000000\r\n\r\n{"
        )
        await until(lambda: s.app.overload.figures()["working"] == 1)
        other = await send(s, OTHER, request_body("x" * 12_000_000))
        await s.upstream_asked(1)
        wire.writer.write(b" " * 20_000_000)
        reply = await wire.reply()
        assert (reply.status, reply.header("connection")) == (529, "close")
        assert s.app.overload.figures()["body_bytes"] < 13_000_000
        held.go.set()
        assert (await other.reply()).status == 200


@pytest.mark.parametrize("is_declared", [True, False], ids=["declared", "chunked"])
async def test_a_body_that_is_refused_for_its_length_holds_nothing_while_its_client_hears_of_it(is_declared):
    """The server waits for the client to read its 413: no byte and no place is held meanwhile."""
    async with stage(max_concurrent=1) as s:
        wire = await s.connect()
        framing = b"content-length: 512000000" if is_declared else b"transfer-encoding: chunked"
        wire.writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: test\r\nx-api-key: sk-test-1\r\n%b\r\n\r\n" % framing)
        if not is_declared:
            wire.writer.write(chunked(b" " * (33 << 20)))
        status, _ = await wire.head()
        assert status == 413
        figures = s.app.overload.figures()
        assert (figures["working"], figures["streaming"], figures["body_bytes"]) == (0, 1, 0)
        assert (await s.post(request_body("x" * 100_000), OTHER)).status == 200


async def test_an_answer_that_is_read_slowly_takes_no_place():
    """An answer that was collected whole and is on its way is no work, whether it is a stream or not."""
    large = http(message("y" * 24_000_000))

    async def behave(peer: Peer) -> None:
        while True:
            request = await peer.request()
            peer.send(large if b"large" in request.body else http(message()))
            await peer.writer.drain()

    async with stage(behave, max_concurrent=1) as s:
        slow = await send(s, body=request_body("large"))
        assert (await slow.head())[0] == 200
        figures = s.app.overload.figures()
        assert (figures["working"], figures["streaming"]) == (0, 1)
        assert (await s.messages()).status == 200


async def test_a_key_of_the_file_has_its_limit(tmp_path):
    """`limits: {concurrent: 1}`: its second request is turned away, that of another key of the tenant is not."""
    keys = tmp_path / "keys.yaml"
    one, two = (hashlib.sha256(secret).hexdigest() for secret in (b"sk-test-1", b"sk-test-2"))
    keys.write_text(
        f"keys:\n  - {{name: batch, sha256: {one}, tenant: team, limits: {{concurrent: 1}}}}\n"
        f"  - {{name: chat, sha256: {two}, tenant: team}}\n"
    )
    held = Held()
    async with stage(held, keys=str(keys), upstream_api_key="sk-up") as s:
        wires = [await send(s)]
        await s.upstream_asked(1)
        assert (await s.messages()).status == 529
        wires.append(await send(s, OTHER))
        await s.upstream_asked(2)
        held.go.set()
        assert [(await wire.reply()).status for wire in wires] == [200, 200]
        (shed,) = [trace for trace in await s.traces() if trace["outcome"] == "shed"]
        assert (shed["tenant"], shed["key"]) == ("team", "batch")


async def test_ten_times_the_capacity_keeps_every_place_at_work():
    """In miniature: 8 places, 80 clients that come back at once. All 8 are used and no more, the rest get 529 (F54)."""
    at_work = most = 0

    async def behave(peer: Peer) -> None:
        nonlocal at_work, most
        while True:
            await peer.request()
            at_work += 1
            most = max(most, at_work)
            await asyncio.sleep(0.02)  # what a model takes
            at_work -= 1
            peer.send(http(message()))
            await peer.writer.drain()

    async with stage(behave, max_concurrent=8) as s:
        statuses: Counter[int] = Counter()
        keys = [[(b"x-api-key", b"sk-tenant-%d" % number)] for number in range(4)]

        async def client(number: int) -> None:
            wire = await s.connect()
            while statuses[200] < 100:
                wire.send("POST", "/v1/messages", keys[number % 4], request_body())
                statuses[(await wire.reply()).status] += 1

        await asyncio.gather(*(client(number) for number in range(80)))
        assert set(statuses) == {200, 529}
        assert statuses[529] > statuses[200]
        assert most == 8
        assert (await s.messages()).status == 200
        traces = await s.traces()
        outcomes = Counter(trace["outcome"] for trace in traces)
        assert outcomes["ok"] == statuses[200] + 1
        figures = s.app.overload.figures()
        assert outcomes["shed"] + figures["unrecorded"] == statuses[529]
        assert sum(s.app.overload.admission.turned_away.values()) == statuses[529]
        assert (figures["working"], figures["held"]) == (0, 0)


async def test_records_of_those_turned_away_are_few_and_say_how_many_they_stand_for():
    """Beyond a burst they are counted; the next record has the number (R3, as far as there is room)."""
    held = Held()
    async with stage(held, max_concurrent=1) as s:
        await send(s)
        await s.upstream_asked(1)
        wire = await s.connect()
        for _ in range(6 * RECORDS_PER_S):
            wire.send("POST", "/v1/messages", KEY, b"{}")
            assert (await wire.reply()).status == 529
        s.app.overload.shedding.release(1.0, 0.0)
        assert (await s.messages()).status == 529
        held.go.set()
        unrecorded = s.app.overload.figures()["unrecorded"]
        assert unrecorded > 0
        shed = [trace for trace in await s.traces() if trace["outcome"] == "shed"]
        assert len(shed) + unrecorded == 6 * RECORDS_PER_S + 1
        said = [int(line.split()[0]) for trace in shed for line in json.loads(json.dumps(trace["why"]))[1:]]
        assert sum(said) == unrecorded


async def test_while_the_brake_is_on_answers_to_those_turned_away_leave_at_a_bounded_rate():
    """A client that ignores `retry-after` gets its 529 later, not more often; nobody is forgotten."""
    async with stage() as s:
        brake, shedding = s.app.overload.admission.brake, s.app.overload.shedding
        s.app.overload.stop()  # the test plays the clock
        brake.is_on, brake.level, brake.depth = True, 0.0, 0.0
        wires = [await send(s) for _ in range(30)]
        await until(lambda: shedding.figures()["held"] == 30)
        shedding.release(0.1, 0.0)  # a hundred a second at the least: ten in a tenth
        await until(lambda: shedding.figures()["held"] == 20)
        assert {(await wire.reply()).status for wire in wires[:10]} == {529}
        for wire in wires[10:15]:
            await wire.close()
        brake.is_on = False
        shedding.release(0.1, 0.0)
        assert {(await wire.reply()).status for wire in wires[15:]} == {529}
        assert shedding.figures()["held"] == 0


async def test_a_stranger_is_turned_away_like_anybody():
    """Requests without a credential count too: 401 while there is room, 529 when there is none."""
    held = Held()
    async with stage(held, max_concurrent=1) as s:
        assert (await s.request("POST", "/v1/messages", b"{}", [])).status == 401
        wire = await send(s)
        await s.upstream_asked(1)
        assert (await s.request("POST", "/v1/messages", b"{}", [])).status == 529
        held.go.set()
        assert (await wire.reply()).status == 200


async def test_the_status_says_that_requests_are_turned_away_and_what_to_do():
    """Overload and short memory are problems of the screen, with the next step; the figures stand beside them."""
    async with stage() as s:
        s.app.overload.stop()  # nobody looks again, so that what is set here stays
        s.app.overload.admission.brake.is_on = True
        s.app.overload._memory_share = 0.87
        wire = Wire(*await asyncio.open_connection("127.0.0.1", s.admin_port))
        wire.send("GET", "/status", [], None, b"127.0.0.1")
        status = (await wire.reply()).json()
        await wire.close()
        said = [problem["what"] for problem in status["problems"]]
        assert any("more to do than it can" in what for what in said)
        assert any("memory is short (87%" in what for what in said)
        assert status["load"]["is_braking"] == 1
