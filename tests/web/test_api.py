"""The API port: bodies that are refused before anybody upstream hears of them, and the paths beside Messages."""

from __future__ import annotations

import asyncio
import json

import anthropic
import pytest
from kit.stage import KEY, SSE_HEAD, WAIT_S, always, answers, chunked, error, http, message, request_body, stage

from router.web.sizes import MAX_MESSAGES_BODY

pytestmark = pytest.mark.anyio

OK = b'"max_tokens":1,"messages":[{"role":"user","content":"x"}]'
M = b'"model":"claude-sonnet-5-5"'


def deep(levels: int, before: bytes = b"", after: bytes = b"") -> bytes:
    return b"{" + M + b"," + OK + b',"x":' + before + b"[" * levels + b"]" * levels + after + b"}"


MALFORMED = {
    "empty": b"",
    "white space": b" \n",
    "scalar": b"1",
    "text": b'"x"',
    "null": b"null",
    "list": b"[{" + M + b"," + OK + b"}]",
    "trailing comma": b"{" + M + b"," + OK + b",}",
    "comment": b"/* c */{" + M + b"," + OK + b"}",
    "BOM": b"\xef\xbb\xbf{" + M + b"," + OK + b"}",
    "two documents": b"{" + M + b"," + OK + b"}{" + M + b"," + OK + b"}",
    "UTF-16": ("{" + M.decode() + "," + OK.decode() + "}").encode("utf-16"),
    "cut": b"{" + M + b"," + OK,
    "single quotes": b"{'model':'x'}",
    "NaN": b"{" + M + b"," + OK + b',"temperature":NaN}',
    "Infinity": b"{" + M + b"," + OK + b',"temperature":-Infinity}',
    "1e400": b"{" + M + b"," + OK + b',"temperature":1e400}',
    "5000 digits": b"{" + M + b"," + OK + b',"seed":' + b"9" * 5000 + b"}",
    "leading zero": b"{" + M + b"," + OK + b',"seed":01}',
    "plus sign": b"{" + M + b"," + OK + b',"seed":+1}',
    "bad UTF-8": b"{" + M + b"," + OK + b',"system":"\xff\xfe"}',
    "overlong UTF-8": b"{" + M + b"," + OK + b',"system":"\xc0\xaf"}',
    "UTF-8 surrogate": b"{" + M + b"," + OK + b',"system":"\xed\xa0\x80"}',
    "lone surrogate": b"{" + M + b"," + OK + b',"system":"\\ud800"}',
    "raw NUL": b"{" + M + b"," + OK + b',"system":"\x00"}',
    "raw line end": b"{" + M + b"," + OK + b',"system":"\n"}',
    "model twice": b"{" + M + b"," + OK + b',"model":"claude-haiku-5-5"}',
    "model twice, once escaped": b"{" + M + b"," + OK + b',"mod\\u0065l":"claude-haiku-5-5"}',
    "model twice, spaced": b"{ " + M + b" , " + OK + b' , "model" : "claude-haiku-5-5" }',
    "same model twice": b"{" + M + b"," + OK + b"," + M + b"}",
    "duplicate in a message": b"{" + M + b',"max_tokens":1,"messages":[{"role":"user","role":"user","content":"x"}]}',
    "duplicate far down": b"{" + M + b"," + OK + b',"tools":[{"input_schema":{"properties":{"a":{"b":1,"b":1}}}}]}',
    "duplicate empty key": b"{" + M + b"," + OK + b',"":1,"":2}',
    "deep lists": deep(100_000),
    "deep objects": b"{" + M + b"," + OK + b',"x":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
    "no model": b"{" + OK + b"}",
    "model null": b'{"model":null,' + OK + b"}",
    "model number": b'{"model":1,' + OK + b"}",
    "model empty": b'{"model":"",' + OK + b"}",
    "model huge": b'{"model":"' + b"m" * 300 + b'",' + OK + b"}",
    "no messages": b"{" + M + b',"max_tokens":1}',
    "messages empty": b"{" + M + b',"max_tokens":1,"messages":[]}',
    "messages text": b"{" + M + b',"max_tokens":1,"messages":"x"}',
    "message number": b"{" + M + b',"max_tokens":1,"messages":[1]}',
    "message without role": b"{" + M + b',"max_tokens":1,"messages":[{"content":"x"}]}',
    "no max_tokens": b"{" + M + b',"messages":[{"role":"user","content":"x"}]}',
    "max_tokens text": b"{" + M + b',"max_tokens":"1","messages":[{"role":"user","content":"x"}]}',
    "max_tokens true": b"{" + M + b',"max_tokens":true,"messages":[{"role":"user","content":"x"}]}',
    "max_tokens negative": b"{" + M + b',"max_tokens":-1,"messages":[{"role":"user","content":"x"}]}',
    "stream text": b"{" + M + b"," + OK + b',"stream":"true"}',
    "form": b"model=x&max_tokens=1",
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_body_is_refused_here(name):
    """400 in the API's shape, with a request id, at once; the upstream is never called; one trace (F37 to F41)."""
    async with stage(policy=always()) as s:
        reply = await s.post(MALFORMED[name])
        assert reply.status == 400
        body = reply.json()
        assert set(body) == {"type", "error", "request_id"}
        assert body["type"] == "error"
        assert body["error"]["type"] == "invalid_request_error"
        assert body["request_id"] == reply.header("request-id") != ""
        assert not s.upstream.connections
        trace = await s.trace()
        assert (trace["outcome"], trace["status"], trace["error_code"]) == ("client_error", 400, "R101")


ODD_BUT_LEGAL = {
    "NUL, RTL and marks": '"\\u0000 \u202e\u0300\u0300 \ufdd0 \U0010ffff"'.encode(),
    "a million combining marks": b'"a' + "\u0300".encode() * 1_000_000 + b'"',
    "numbers": b"[-0, 1E5, 1e-7, 0.10000000000000000000000000001, 123456789012345678901234567890]",
    "deep enough": b"[" * 200 + b"]" * 200,
    "keys like ours": b'{"model": "x", "mod\\u0065ls": 1, "": {"model": {}}}',
    "a wide object": b"{" + b",".join(b'"k%d":1' % n for n in range(20_000)) + b"}",
}


@pytest.mark.parametrize("name", ODD_BUT_LEGAL)
async def test_an_odd_but_legal_body_passes_byte_for_byte(name):
    """What is JSON is the upstream's to judge, down to the last digit (F38, F41)."""
    body = b"{" + M + b"," + OK + b',"x":' + ODD_BUT_LEGAL[name] + b"}"
    async with stage() as s:
        assert (await s.post(body)).status == 200
        assert s.upstream.requests[0].body == body


async def test_the_content_type_does_not_matter_and_a_coded_body_is_refused():
    """Any type is read as JSON, consistently; a compressed body is refused before it is read as anything (F42, F43)."""
    async with stage() as s:
        for kind in (b"text/plain", b"application/json; charset=latin-1", b"multipart/form-data; boundary=x"):
            assert (await s.post(request_body(), [*KEY, (b"content-type", kind)])).status == 200
        for coding in (b"gzip", b"br", b"unknown", b"identity, gzip"):
            reply = await s.post(b"\x1f\x8b", [*KEY, (b"content-encoding", coding)])
            assert (reply.status, reply.json()["error"]["type"]) == (400, "invalid_request_error")
        assert len(s.upstream.requests) == 3


@pytest.mark.parametrize("target", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_declared_oversize_is_refused_before_it_is_read(target):
    """413 `request_too_large` while the body is still to come (F36)."""
    async with stage() as s:
        wire = await s.connect()
        lines = (
            f"POST {target} HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\ncontent-length: {MAX_MESSAGES_BODY + 1}\r\n\r\n{{"
        )
        wire.writer.write(lines.encode())
        reply = await wire.reply()
        assert (reply.status, reply.json()["error"]["type"]) == (413, "request_too_large")
        assert reply.json()["request_id"] == reply.header("request-id")
        assert reply.header("connection") == "close"
        assert not s.upstream.connections
        assert (await s.messages()).status == 200


async def test_the_official_client_hears_of_an_oversize():
    """It sends its whole body before it reads: the 413 must survive that, not be lost in a reset connection."""
    async with stage() as s, anthropic.AsyncAnthropic(api_key="k", base_url=s.url, max_retries=0) as client:
        text = "x" * (MAX_MESSAGES_BODY + 1000)
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(model="m", max_tokens=5, messages=[{"role": "user", "content": text}])
        assert caught.value.status_code == 413
        assert not s.upstream.connections


async def test_a_refusal_is_recorded_with_who_was_refused():
    """A body that is too long, another spelling of a path: the trace says whose request it was."""
    async with stage() as s:
        assert (await s.messages()).status == 200
        assert (await s.request("POST", "/v1//messages", request_body())).status == 404
        wire = await s.connect()
        wire.send("POST", "/v1/messages", [*KEY, (b"content-length", b"33554433")], None)
        assert (await wire.reply()).status == 413
        await wire.close()
        async with asyncio.timeout(WAIT_S):
            while len(traces := await s.traces()) < 3:  # a request ends for its client before it is booked
                pass
        assert sorted(trace["status"] for trace in traces) == [200, 404, 413]
        assert len({trace["tenant"] for trace in traces}) == 1
        assert traces[0]["tenant"]


async def test_an_undeclared_oversize_is_refused_on_the_way():
    """A chunked body over the limit gets its 413 without being read to the end."""
    async with stage() as s:
        wire = await s.connect()
        wire.writer.write(
            b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\ntransfer-encoding: chunked\r\n\r\n"
        )

        async def pour():
            piece = chunked(b" " * (1 << 20))
            try:
                while True:
                    wire.writer.write(piece)
                    await wire.writer.drain()
            except ConnectionError:
                pass

        pouring = asyncio.ensure_future(pour())
        status, _ = await wire.head()
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)
        assert status == 413
        assert not s.upstream.connections


async def test_a_chunked_request_is_sent_up_whole():
    """The body of a client that does not know its length, in any chunks."""
    async with stage() as s:
        wire = await s.connect()
        wire.writer.write(
            b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        body = request_body()
        for at in range(len(body)):
            wire.writer.write(chunked(body[at : at + 1]))
            await asyncio.sleep(0)
        wire.writer.write(b"0\r\n\r\n")
        assert (await wire.reply()).status == 200
        assert s.upstream.requests[0].body == body


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_messages_takes_only_post(method):
    """405 in the API's shape."""
    async with stage() as s:
        for target in ("/v1/messages", "/v1/messages/count_tokens"):
            reply = await s.request(method, target)
            assert (reply.status, reply.json()["error"]["type"]) == (405, "invalid_request_error")
        assert not s.upstream.connections


async def test_a_browsers_preflight_passes_without_a_credential():
    """A browser asks whether it may send its key before it sends one; the upstream answers."""
    async with stage(answers(http(b"", "204 No", ("access-control-allow-origin", "*")))) as s:
        wire = await s.connect()
        wire.writer.write(b"OPTIONS /v1/messages HTTP/1.1\r\nhost: x\r\norigin: https://app.example\r\n\r\n")
        reply = await wire.reply()
        assert (reply.status, reply.header("access-control-allow-origin")) == (204, "*")
        assert s.upstream.requests[0].line == b"OPTIONS /v1/messages HTTP/1.1"


@pytest.mark.parametrize(
    "path",
    ["/v1/%6dessages", "//v1/messages", "/v1//messages", "/v1/./messages", "/v1/x/../messages", "/v1/messages/",
     "/v1%2fmessages", "/v1/messages/%63ount_tokens", "/v1/messages/./batches", "/v1//../messages",
     "/v1/x%2Fy/../messages", "/v1/x/%2e%2e/messages", "/v1/messages;a=1", "/v1;a/messages", "/v1/x/..;/messages",
     "/v1/messages%3Fbeta=1", "/v1/messages%23", "/v1/messages%00", "/v1/messages%3b",
     "/v1/messages%3F/..", "/v1;a/messages/batches", "/v1/x/..;/messages/batches"],
)  # fmt: skip
async def test_another_spelling_of_a_routed_path_is_refused(path):
    """What the upstream might read as Messages never goes around the policy: 404, and nothing is sent (F51, S10)."""
    async with stage(policy=always()) as s:
        for prefix in ("", "/p/default"):
            reply = await s.request("POST", prefix + path, request_body())
            assert (reply.status, reply.json()["error"]["type"]) == (404, "not_found_error")
        assert not s.upstream.requests


@pytest.mark.parametrize(
    "path",
    ["batches%2Fb%2Fresults", "batches%2fb/results", "batches/b%2Fresults", "batches/b/%72esults",
     "batches/b%5F1/results", "batches/x/../../batches/b/results", "batches/../batches/b/results",
     "batches/x/%2e%2E/b/results", "batches/b//results", "batches/b//../results", "batches//../b/results",
     "batches/./b/results", "batches/b/results/", "/../batches/b/results", "x/../batches/b/results",
     "x%2Fy/../batches/b/results", "%62atches/b/results", "batches/b/results/x/..",
     "batches%2F..%2Fbatches/b/results", "batches/"],
)  # fmt: skip
async def test_another_spelling_of_a_batch_is_refused(path):
    """It would pass unmetered, or be another batch whose items are booked once more: 404, and nothing is sent (F30)."""
    async with stage() as s:
        for prefix in ("", "/p/default"):
            reply = await s.request("GET", f"{prefix}/v1/messages/{path}")
            assert (reply.status, reply.json()["error"]["type"]) == (404, "not_found_error")
        assert not s.upstream.requests


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "batches" + rest) for rest in ("/", ";a=1", ";", "%3Fbeta=1", "%3fbeta=1", "%23", "%00", "/..;/batches",
     "x", "/b", "/b/results", "/b/cancel/x", "/b/c/cancel", "//cancel", "/b;a/cancel", "/b/cancel;a", "/new")]
    + [("PUT", "batches/b"), ("PUT", "batches"), ("PATCH", "batches;a"), ("GET", "batches/b;a/results"),
       ("GET", "batches;a/b/results")],
)  # fmt: skip
async def test_a_path_that_might_make_a_batch_is_one_that_is_known(method, path):
    """A batch is made at its path alone, where it is routed: no rule is got around by another (404)."""
    async with stage(policy=always()) as s:
        for prefix in ("", "/p/default"):
            reply = await s.request(method, f"{prefix}/v1/messages/{path}", b"{}")
            assert (reply.status, reply.json()["error"]["type"]) == (404, "not_found_error")
        assert not s.upstream.requests


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/a%20b",
        "/v1/files/a;b",
        "/v1/files/a%3Fb",
        "/v1/x/",
        "/v1//x",
        "/v1/messages/../files",
        "/v1/x%2Fbatches",
    ],
)
async def test_any_spelling_of_another_path_passes_as_it_is(path):
    """Whatever is neither routed nor metered is the upstream's to read."""
    async with stage(answers(http(b"{}"))) as s:
        assert (await s.request("GET", path)).status == 200
        assert s.upstream.requests[0].line == f"GET {path} HTTP/1.1".encode()


async def test_a_large_body_is_read_without_holding_up_others():
    """Its parsing goes on in a thread; a small request in between is answered before it."""
    blocks = [{"type": "text", "text": str(number)} for number in range(200_000)]
    large = json.dumps({**json.loads(request_body()), "messages": [{"role": "user", "content": blocks}]}).encode()
    assert len(large) > 6_000_000
    async with stage(policy=always()) as s:
        slow = asyncio.ensure_future(s.post(large))
        while not slow.done():
            assert (await s.messages()).status == 200
            if len(s.upstream.requests) >= 2:
                break
        assert (await slow).status == 200
        assert len(s.upstream.requests[0].body) < 1000, "the small one was answered first"


PASSED = [
    ("GET", "/v1/files?limit=5&after=%2F%20", None),
    ("POST", "/v1/files", b"\x00\xff not json \r\n"),
    ("DELETE", "/v1/files/file_1", None),
    ("PUT", "/v1/anything//odd/..%2f/%zz?a=b?c", b"{}"),
    ("POST", "/v1/complete", b"{"),
    ("GET", "/", None),
    ("PATCH", "/v1/messages/", b"x"),
    ("POST", "/V1/messages", b"{"),
    ("HEAD", "/api/hello", None),
]


@pytest.mark.parametrize(("method", "target", "body"), PASSED)
async def test_every_other_path_passes_byte_for_byte(method, target, body):
    """Method, path, query and body as they came; status, headers and body back as they came; traced without facts."""
    answer = http(b"" if method == "HEAD" else b"\x00raw\xff", "418 Teapot", ("x-kept", "1"), kind="application/x-odd")
    if method == "HEAD":
        answer = answer.replace(b"content-length: 0", b"content-length: 123")

    async def behave(peer):
        await peer.request()
        peer.send(answer)

    async with stage(behave) as s:
        reply = await s.request(method, target, body)
        assert reply.status == 418
        assert reply.body == (b"" if method == "HEAD" else b"\x00raw\xff")
        assert reply.header("content-type") == "application/x-odd"
        assert reply.header("x-kept") == "1"
        assert reply.header("request-id") == "req_up"
        assert reply.header("x-router-cache") == "bypass"
        assert method != "HEAD" or reply.header("content-length") == "123"
        [sent] = s.upstream.requests
        assert sent.line == f"{method} {target} HTTP/1.1".encode()
        assert sent.body == (body or b"")
        trace = await s.trace()
        assert trace["endpoint"] == "passthrough"
        assert trace["facts"] is None
        assert trace["request_id"] == "req_up"
        assert trace["path"] == target.partition("?")[0]


async def test_a_base_url_with_a_policy_works_for_other_paths_too():
    """`/p/NAME` is never part of what goes up."""
    async with stage(policies={"cheap": always()}) as s:
        assert (await s.request("GET", "/p/cheap/v1/files?x=1")).status == 200
        assert s.upstream.requests[0].line == b"GET /v1/files?x=1 HTTP/1.1"


async def test_a_passed_on_answer_that_breaks_is_visibly_broken():
    """The client's connection is cut too: half a file must not look whole; the trace says cut (R2)."""

    async def behave(peer):
        await peer.request()
        await peer.send_apart(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"half"))
        peer.reset()

    async with stage(behave) as s:
        reply = await s.request("GET", "/v1/files/f/content")
        assert (reply.status, reply.body, reply.is_whole) == (200, b"half", False)
        trace = await s.trace()
        assert (trace["outcome"], trace["status"]) == ("cut", 200)


BATCH = {
    "id": "msgbatch_1", "type": "message_batch", "processing_status": "ended",
    "results_url": "https://api.anthropic.com/v1/messages/batches/msgbatch_1/results",
}  # fmt: skip


async def test_the_results_of_a_batch_are_fetched_from_the_router():
    """`results_url` is the router's own address, in a batch and in a list of them; nothing else of the body changes."""
    for body in (
        json.dumps(BATCH, indent=1),
        json.dumps({"data": [BATCH, {**BATCH, "results_url": None}], "has_more": False}),
    ):
        async with stage(answers(http(body.encode()))) as s:
            for method in ("GET", "POST"):
                path, sent = ("/cancel", b"{}") if method == "POST" else ("", None)
                reply = await s.request(method, f"/v1/messages/batches/msgbatch_1{path}", sent,
                                        host=b"router.example:8080")  # fmt: skip
                assert reply.body.decode() == body.replace("https://api.anthropic.com/", "http://router.example:8080/")
    lines = b'{"custom_id":"a","result":{}}\n'
    async with stage(answers(http(lines, kind="application/x-jsonl"))) as s:
        assert (await s.request("GET", "/v1/messages/batches/msgbatch_1/results")).body == lines
        assert (await s.trace())["endpoint"] == "batches"
    said = error("404 N", "not_found_error", "no results_url")
    async with stage(answers(said)) as s:
        assert (await s.request("GET", "/v1/messages/batches/x")).body == said.partition(b"\r\n\r\n")[2]


async def test_the_list_of_models_names_the_virtual_ones():
    """Behind the upstream's own, on the last page only; the upstream's bytes stay as they are."""
    own = b'{"data": [ {"type":"model","id":"claude-sonnet-5-5" , "n":1.50} ], "has_more": false, "first_id":"a"}'
    async with stage(answers(http(own))) as s:
        reply = await s.request("GET", "/v1/models?limit=1000")
        assert reply.body.startswith(own[: own.index(b" ], ")])
        assert reply.body.endswith(b'], "has_more": false, "first_id":"a"}')
        ids = [model["id"] for model in reply.json()["data"]]
        assert ids == ["claude-sonnet-5-5", "auto", "lane:haiku", "lane:sonnet", "lane:opus"]
        assert {model["type"] for model in reply.json()["data"]} == {"model"}
    for untouched in (own.replace(b"false", b"true"), b"{}", b"[]", b'{"data": 1, "has_more": false}', b"not json"):
        async with stage(answers(http(untouched))) as s:
            assert (await s.request("GET", "/v1/models")).body == untouched
    async with stage(answers(http(b'{"data":[],"has_more":false}'))) as s:
        assert (await s.request("GET", "/v1/models")).json()["data"][0]["id"] == "auto"


async def test_a_virtual_model_can_be_looked_up():
    """`auto` and each lane, without asking upstream; an unknown lane is a 404; a real model is passed on."""
    async with stage(answers(http(b'{"id":"real"}'))) as s:
        for model_id in ("auto", "lane:haiku", "lane%3Ahaiku"):
            reply = await s.request("GET", f"/v1/models/{model_id}")
            assert (reply.status, reply.json()["type"]) == (200, "model")
            assert reply.header("request-id")
        assert (await s.request("GET", "/v1/models/lane:nosuch")).status == 404
        assert not s.upstream.connections
        assert (await s.request("GET", "/v1/models/claude-sonnet-5-5")).json() == {"id": "real"}


async def test_requests_on_one_connection_are_answered_in_order():
    """Twenty requests sent at once down one connection, each its own answer (F47)."""

    async def echo(peer):
        while True:
            request = await peer.request()
            peer.send(http(message(json.loads(request.body)["messages"][0]["content"])))

    async with stage(echo) as s:
        wire = await s.connect()
        for n in range(20):
            wire.send("POST", "/v1/messages", KEY, request_body(f"n{n}"))
        for n in range(20):
            assert (await wire.reply()).json()["content"][0]["text"] == f"n{n}"


async def test_a_refused_request_leaves_its_connection_usable():
    """A 401 and a 400 do not cost the client its connection, nor make a body the next request (F24, F46)."""
    async with stage() as s:
        wire = await s.connect()
        smuggled = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n\r\n"
        wire.send("POST", "/v1/messages", [], smuggled)
        wire.send("POST", "/v1/messages", KEY, b"{")
        wire.send("POST", "/v1/messages", KEY, request_body())
        assert [(await wire.reply()).status for _ in range(3)] == [401, 400, 200]
        assert len(s.upstream.requests) == 1


async def test_one_request_is_one_trace_whatever_became_of_it():
    """Success, refusal, error and stream each leave exactly one record, and the metrics count the same (R3)."""

    async def behave(peer):
        await peer.request()
        peer.send(SSE_HEAD + b"0\r\n\r\n" if peer.number == 2 else error("529 O", "overloaded_error"))

    async with stage(behave) as s:
        await s.messages()
        await s.messages(stream=True)
        await s.post(b"{")
        await s.request("POST", "/v1/messages", b"{}", [])
        traces = await s.traces()
        assert [trace["outcome"] for trace in traces] == ["upstream_error", "cut", "client_error", "client_error"]
        assert len({trace["trace_id"] for trace in traces}) == 4


async def test_our_own_bug_is_an_api_error_without_details(caplog):
    """500 `api_error`; the log names the trace and not the client's words; the next request is served (S16, S30)."""
    async with stage() as s:
        planner = s.app.api._services.pipeline._parts.planner
        policies = planner.policies
        object.__setattr__(planner, "policies", None)
        reply = await s.messages(text="canary-words")
        object.__setattr__(planner, "policies", policies)
        assert (reply.status, reply.json()["error"]["type"]) == (500, "api_error")
        trace = await s.trace()
        assert (trace["outcome"], trace["error_code"]) == ("internal_error", "R901")
        assert trace["trace_id"] in caplog.text
        assert "canary" not in caplog.text
        assert b"Attribute" not in reply.body
        assert (await s.messages()).status == 200
