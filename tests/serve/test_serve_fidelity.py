"""What crosses the router unchanged, both ways, and what does not cross."""

from __future__ import annotations

import asyncio
import json

import pytest
from kit.stage import KEY, always, answers, error, events, http, message, request_body, stage, streams

pytestmark = pytest.mark.anyio


async def test_only_the_bytes_of_the_model_change_on_the_way_up():
    """Every byte but those of the `model` value reaches the upstream as the client wrote it, query included."""
    async with stage(policy=always()) as s:
        body = request_body(system="café ✓", metadata={"user_id": "u"})
        reply = await s.post(body, target="/v1/messages?beta=true&x=%2F")
        [sent] = s.upstream.requests
        assert sent.body == body.replace(b"claude-sonnet-5-5", b"claude-haiku-5-5")
        assert sent.line == b"POST /v1/messages?beta=true&x=%2F HTTP/1.1"
        assert reply.header("x-router-model") == "claude-haiku-5-5"


BODIES = {
    "pretty-printed": b'{\n  "messages" : [ {"role":"user","content":"hi"} ],\n\t"model" : "claude-sonnet-5-5" ,'
    b'\r\n"max_tokens":  64 }\n',
    "escaped value": rb'{"model":"claude\u002dsonnet\u002d5-5","max_tokens":64,'
    rb'"messages":[{"role":"user","content":"\u0061\/\ud83d\ude00"}]}',
    "escaped key": b'{"max_tokens":64,"mod\\u0065l":"claude-sonnet-5-5","messages":[{"role":"user","content":"x"}]}',
    "model last": b'{"max_tokens":64,"messages":[{"role":"user","content":"\\"model\\":\\"x\\""}],'
    b'"model":"claude-sonnet-5-5"}',
    "model inside a tool's schema": b'{"tools":[{"name":"t","description":"d","input_schema":{"type":"object",'
    b'"properties":{"model":{"type":"string"}}}}],"model":"claude-sonnet-5-5","max_tokens":64,'
    b'"messages":[{"role":"user","content":"model"}]}',
    "model as a text, and escaped quotes": b'{"messages":[{"role":"user","content":"\\\\\\"model\\":"}],'
    b'"max_tokens":64,"model":"claude-sonnet-5-5","system":"\\\\"}',
}


@pytest.mark.parametrize("name", BODIES)
async def test_any_spelling_of_a_body_is_kept(name):
    """Whitespace, escapes and key order survive; only the model's literal is replaced."""
    body = BODIES[name]
    literal = b'"claude\\u002dsonnet\\u002d5-5"' if name == "escaped value" else b'"claude-sonnet-5-5"'
    assert body.count(literal) == 1
    async with stage(policy=always()) as s:
        assert (await s.post(body)).header("x-router-lane") == "haiku"
        [sent] = s.upstream.requests
        assert sent.body == body.replace(literal, b'"claude-haiku-5-5"')


async def test_unknown_fields_numbers_and_betas_pass_when_the_model_is_kept():
    """A field, a header or a beta of tomorrow works today; numbers keep their digits."""
    body = (
        b'{"model":"claude-sonnet-5-5","max_tokens":64,"messages":[{"role":"user","content":"x"}],'
        b'"field_of_2027":{"a":1.50,"b":-0,"c":123456789012345678901234567890,"d":0.1000000000000000055511151231257827}}'
    )
    headers = [
        *KEY,
        (b"anthropic-beta", b"future-2027-01-01,other"),
        (b"anthropic-future", b"1"),
        (b"x-anything", b"a b"),
    ]
    async with stage() as s:
        assert (await s.post(body, headers)).status == 200
        [sent] = s.upstream.requests
        assert sent.body == body
        for name, value in headers[1:]:
            assert sent.header(name) == value


async def test_a_plain_answer_comes_down_byte_for_byte():
    """The body, the `request-id` and the upstream's own headers are the upstream's."""
    body = message("café")
    async with stage(
        answers(http(body, "200 OK", ("anthropic-organization-id", "org"), ("anthropic-ratelimit-requests-limit", "9")))
    ) as s:
        reply = await s.messages()
        assert reply.body == body
        assert reply.header("request-id") == "req_up"
        assert reply.header("anthropic-organization-id") == "org"
        assert reply.header("anthropic-ratelimit-requests-limit") == "9"


async def test_an_upstream_error_keeps_status_body_and_headers():
    """Error texts pass unchanged, because clients recover by matching them; one attempt only (F9)."""
    for status, kind in (("400 Bad", "invalid_request_error"), ("401 U", "authentication_error"),
                         ("403 F", "permission_error"), ("404 N", "not_found_error"), ("413 L", "request_too_large"),
                         ("422 U", "invalid_request_error"), ("500 E", "api_error"),
                         ("504 T", "timeout_error")):  # fmt: skip
        said = error(status, kind, "a  text\u00e9", ("x-should-retry", "false"), ("anthropic-future", "1"))
        async with stage(answers(said), policy=always("retry: 2", route="[as-asked, haiku]")) as s:
            reply = await s.messages()
            assert reply.status == int(status[:3])
            assert reply.body == said.partition(b"\r\n\r\n")[2]
            assert reply.header("request-id") == "req_up"
            assert reply.header("x-should-retry") == "false"
            assert reply.header("anthropic-future") == "1"
            assert len(s.upstream.requests) == 1
            trace = await s.trace()
            assert trace["error_type"] == kind
            assert trace["outcome"] == ("upstream_error" if reply.status >= 500 else "client_error")
            assert trace["cost_usd"] == 0


async def test_a_stream_comes_down_byte_for_byte():
    """Events, unknown ones and comments included, are relayed as they came."""
    pieces = [b": hello\n\n", *events("caf", "é"), b'event: of_tomorrow\r\ndata: {"a": 1.50}\r\n\r\n']
    async with stage(streams(*pieces)) as s:
        reply = await s.messages(stream=True)
        assert reply.body == b"".join(pieces)
        assert reply.header("content-type") == "text/event-stream; charset=utf-8"


async def test_a_compressed_answer_is_passed_on_unread_and_its_cost_is_unknown():
    """An upstream that compresses unasked gets its bytes and header through together (F21); no cost is made up."""
    async with stage(answers(http(b"\x1f\x8b\x00packed", "200 OK", ("content-encoding", "gzip")))) as s:
        reply = await s.messages()
        assert (reply.status, reply.body) == (200, b"\x1f\x8b\x00packed")
        assert reply.header("content-encoding") == "gzip"
        assert s.upstream.requests[0].header(b"accept-encoding") == b"identity"
        trace = await s.trace()
        assert trace["cost_usd"] is None
    packed = http(b"\x1f\x8b\x00packed", "200 OK", ("content-encoding", "gzip"), kind="text/event-stream")
    async with stage(answers(packed)) as s:
        assert (await s.messages(stream=True)).body == b"\x1f\x8b\x00packed"


async def test_what_belongs_to_one_hop_or_one_side_does_not_go_up():
    """Hop-by-hop headers, what `Connection` names, cookies, forwarding headers and our own stay here (S13)."""
    headers = [
        *KEY,
        (b"connection", b"keep-alive, X-Secret-Hop"), (b"x-secret-hop", b"1"), (b"keep-alive", b"300"),
        (b"te", b"trailers"),
        (b"proxy-authorization", b"Basic x"), (b"proxy-connection", b"keep-alive"), (b"cookie", b"session=1"),
        (b"forwarded", b"for=1"), (b"x-forwarded-for", b"10.0.0.1"), (b"x-forwarded-host", b"evil"), (b"via", b"1.1 x"),
        (b"x-real-ip", b"1"), (b"cf-connecting-ip", b"1"), (b"x-envoy-internal", b"1"),
        (b"x-router-cache", b"no-store"),
        (b"traceparent", b"00-x"), (b"accept-encoding", b"gzip, br"), (b"prefer", b"x"),
    ]  # fmt: skip
    async with stage() as s:
        await s.post(request_body(), headers)
        names = [name for name, _ in s.upstream.requests[0].headers]
        assert sorted(names) == [b"accept-encoding", b"anthropic-version", b"content-length", b"host", b"x-api-key"]
        assert s.upstream.requests[0].header(b"host") == s.upstream.origin.removeprefix("http://").encode()


async def test_exactly_one_credential_goes_up():
    """Both forms are taken and passed on in the form they came; of two, `x-api-key` (S13)."""
    for given, expected in (
        ([(b"x-api-key", b"sk-1")], [(b"x-api-key", b"sk-1")]),
        ([(b"authorization", b"Bearer sk-1")], [(b"authorization", b"Bearer sk-1")]),
        ([(b"authorization", b"bearer sk-1")], [(b"authorization", b"bearer sk-1")]),
        ([(b"authorization", b"Bearer b"), (b"x-api-key", b"a")], [(b"x-api-key", b"a")]),
        ([(b"x-api-key", b"a"), (b"x-api-key", b"b")], [(b"x-api-key", b"a")]),
    ):
        async with stage() as s:
            assert (await s.post(request_body(), given)).status == 200
            sent = s.upstream.requests[0].headers
            assert [pair for pair in sent if pair[0] in (b"x-api-key", b"authorization")] == expected


async def test_one_tenant_whichever_form_its_key_came_in():
    """The same key in either form is the same tenant; another key is another; neither is in the trace."""
    async with stage() as s:
        await s.post(request_body(), [(b"x-api-key", b"sk-canary-1")])
        await s.post(request_body(), [(b"authorization", b"Bearer sk-canary-1")])
        await s.post(request_body(), [(b"x-api-key", b"sk-canary-2")])
        one, same, other = await s.traces()
        assert one["tenant"] == same["tenant"] != other["tenant"]
        assert "canary" not in json.dumps([one, same, other], default=str)


@pytest.mark.parametrize(
    "headers", [[], [(b"x-api-key", b"")], [(b"authorization", b"Basic abc")], [(b"authorization", b"Bearer ")]]
)
@pytest.mark.parametrize(
    "target", ["/v1/messages", "/v1/messages/count_tokens", "/v1/models", "/v1/files", "/p/x/v1/messages", "/"]
)
async def test_no_path_without_a_credential(headers, target):
    """Without a usable credential every path answers 401 and nothing reaches the upstream (S1)."""
    async with stage() as s:
        reply = await s.request("POST", target, request_body(), headers)
        assert reply.status == 401
        assert reply.json()["error"]["type"] == "authentication_error"
        assert reply.json()["request_id"] == reply.header("request-id") != ""
        assert not s.upstream.requests


async def test_what_speaks_for_the_upstreams_host_does_not_come_down():
    """Cookies, server names, transport policy and hop-by-hop headers of the upstream stay there (S14)."""
    hidden = (
        ("set-cookie", "a=1"), ("server", "cloudflare"), ("via", "1.1 x"), ("alt-svc", "h3"), ("cf-ray", "1"),
        ("strict-transport-security", "max-age=1"), ("x-envoy-upstream", "1"), ("keep-alive", "timeout=5"),
        ("x-router-model", "forged"), ("connection", "keep-alive, x-hop"), ("x-hop", "1"), ("x-kept", "1"),
    )  # fmt: skip
    for target in ("/v1/messages", "/v1/messages/count_tokens", "/v1/files"):
        async with stage(answers(http(message(), "200 OK", *hidden))) as s:
            reply = await s.post(request_body(), target=target)
            names = {name.decode() for name, _ in reply.headers}
            assert names.isdisjoint({name for name, _ in hidden} - {"x-kept", "x-router-model"}), target
            assert reply.header("x-kept") == "1"
            assert reply.header("x-router-model") != "forged"


async def test_no_name_of_a_client_can_end_a_header_line():
    """A model with line breaks is answered without a forged header (S14, S15)."""
    async with stage() as s:
        reply = await s.messages(model="x\r\nset-cookie: a=1\r\n\u2028\x00")
        assert reply.status == 200
        assert reply.header("set-cookie") is None
        assert reply.header("x-router-model") == "x??set-cookie: a=1????"[: len(reply.header("x-router-model"))]


async def test_each_answer_belongs_to_its_request():
    """Twenty requests at once over shared connections each get the answer to their own nonce (F26)."""

    async def echo(peer):
        while True:
            request = await peer.request()
            nonce = json.loads(request.body)["messages"][0]["content"]
            await asyncio.sleep(0)
            peer.send(http(message(nonce)))

    async with stage(echo) as s:
        replies = await asyncio.gather(*(s.messages(text=f"nonce-{n}") for n in range(20)))
        assert [reply.json()["content"][0]["text"] for reply in replies] == [f"nonce-{n}" for n in range(20)]


async def test_a_stream_with_a_length_can_still_be_told_to_be_cut():
    """The error event is not swallowed by a length that the upstream announced."""
    start = b"".join(events()[:4])
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % (len(start) + 5)

    async def short(peer):
        await peer.request()
        peer.send(head + start)

    async with stage(short) as s:
        reply = await s.messages(stream=True)
        assert reply.is_whole
        assert reply.body.startswith(start + b"event: error\ndata: ")
