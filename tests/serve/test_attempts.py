"""Retries and fallbacks: only after a refusal, never after a byte; the client hears the first lane's word."""

from __future__ import annotations

import gzip
import json
import socket

import pytest
from kit.stage import SSE_HEAD, always, answers, chunked, error, events, http, message, sent_models, stage

from router.serve.attempts import retry_after_s

pytestmark = pytest.mark.anyio

AT_ONCE = ("retry-after-ms", "1")
OVERLOADED = error("529 Overloaded", "overloaded_error", "Overloaded", AT_ONCE)
LIMITED = error("429 Too Many", "rate_limit_error", "slow down", AT_ONCE)
BUSY = error("503 Unavailable", "api_error", "busy", AT_ONCE)
ROUTE = "[haiku, sonnet]"


@pytest.mark.parametrize(
    ("refusal", "outcome"), [(OVERLOADED, "overloaded"), (LIMITED, "rate_limited"), (BUSY, "unavailable")]
)
async def test_a_refusal_is_retried_on_the_same_lane(refusal, outcome):
    """A lane that sheds load is asked again as often as the rule says; the client sees only the answer (F7)."""
    async with stage(answers(refusal, http(message())), policy=always("retry: 1")) as s:
        reply = await s.messages()
        assert (reply.status, reply.body) == (200, message())
        trace = await s.trace()
        assert [(a["lane"], a["outcome"]) for a in trace["attempts"]] == [("haiku", outcome), ("haiku", "ok")]
        assert trace["attempts"][0]["retry_after_s"] == 0.001
        assert trace["outcome"] == "ok"


@pytest.mark.parametrize("refusal", [OVERLOADED, LIMITED, BUSY])
async def test_a_refusal_falls_back_to_the_next_lane(refusal):
    """The next lane of the route answers; the trace and the headers name it."""
    async with stage(answers(refusal, http(message())), policy=always(route=ROUTE)) as s:
        reply = await s.messages(model="claude-opus-5-5")
        assert reply.status == 200
        assert reply.header("x-router-lane") == "sonnet"
        assert reply.header("x-router-model") == "claude-sonnet-5-5"
        assert sent_models(s.upstream.requests) == ["claude-haiku-5-5", "claude-sonnet-5-5"]
        trace = await s.trace()
        assert (trace["lane"], trace["model_sent"]) == ("sonnet", "claude-sonnet-5-5")


async def test_when_every_lane_refuses_the_asked_ones_own_answer_comes_through():
    """Status, body and `retry-after` of the model asked for; one attempt per lane and `retry` more (R4, F6)."""
    first = error("529 Overloaded", "overloaded_error", "from haiku", ("retry-after", "0"))
    asked = error("529 Overloaded", "overloaded_error", "from opus", ("retry-after", "0"))
    async with stage(answers(first, first, LIMITED, asked), policy=always("retry: 1", route=ROUTE)) as s:
        reply = await s.messages(model="claude-opus-5-5")
        assert reply.status == 529
        assert reply.json()["error"]["message"] == "from opus"
        assert reply.header("retry-after") == "0"
        tried = ["claude-haiku-5-5"] * 2 + ["claude-sonnet-5-5", "claude-opus-5-5"]
        assert sent_models(s.upstream.requests) == tried
        trace = await s.trace()
        assert (trace["outcome"], trace["error_type"], trace["cost_usd"]) == ("upstream_error", "overloaded_error", 0)


async def test_a_fallbacks_rejection_does_not_hide_the_real_failure():
    """The fallback's 400 is in the trace; the client hears why the lane it asked for failed (F28)."""
    no = error("400 Bad", "invalid_request_error", "prefill")
    async with stage(answers(OVERLOADED, no), policy=always(route=ROUTE)) as s:
        reply = await s.messages(model="claude-haiku-5-5")
        assert (reply.status, reply.json()["error"]["message"]) == (529, "Overloaded")
        trace = await s.trace()
        assert [a["outcome"] for a in trace["attempts"]] == ["overloaded", "rejected"]


async def test_a_fallbacks_own_failure_does_not_hide_the_real_one():
    """A 500 of the backup ends the walk, because it may have been charged; the client hears the first lane."""
    failed = error("500 X", "api_error", "from sonnet")
    async with stage(answers(OVERLOADED, failed, http(message())), policy=always(route="[haiku, sonnet, opus]")) as s:
        reply = await s.messages(model="claude-fable-5-2")
        assert (reply.status, reply.json()["error"]["message"]) == (529, "Overloaded")
        assert len(s.upstream.requests) == 2
        assert [a["outcome"] for a in (await s.trace())["attempts"]] == ["overloaded", "error"]


async def test_a_broken_fallback_does_not_hide_the_real_failure():
    """A fallback that breaks after a refusal leaves the refusal as the answer, and the trace says upstream error."""

    async def behave(peer):
        await peer.request()
        if peer.number == 1:
            peer.send(OVERLOADED)
            await peer.request()
        peer.reset()

    async with stage(behave, policy=always(route=ROUTE)) as s:
        reply = await s.messages(model="claude-opus-5-5")
        assert reply.status == 529
        trace = await s.trace()
        assert trace["outcome"] == "upstream_error"
        assert trace["status"] == 529


@pytest.mark.parametrize("header", [("x-should-retry", "false"), ("retry-after", "30")])
async def test_a_refusal_that_asks_to_be_left_alone_is_not_retried(header):
    """`x-should-retry: false` and a long `retry-after` are passed on at once, header included (F5)."""
    async with stage(answers(error("429 L", "rate_limit_error", "no", header)), policy=always("retry: 3")) as s:
        reply = await s.messages(model="claude-haiku-5-5")
        assert reply.status == 429
        assert reply.header(header[0]) == header[1]
        assert len(s.upstream.requests) == 1


async def test_a_spend_cap_is_not_retried():
    """A cap that lifts next month is not worth a second call (F6)."""
    body = {"type": "error", "error": {"type": "rate_limit_error", "message": "cap",
            "details": {"error_code": "enforced_spend_limit_reached"}}}  # fmt: skip
    async with stage(answers(http(json.dumps(body).encode(), "429 L")), policy=always("retry: 3")) as s:
        assert (await s.messages()).status == 429
        assert len(s.upstream.requests) == 1


async def test_a_closed_port_is_told_in_the_api_shape():
    """Nobody listens: 502 `api_error` with a request id, and headers that say what was tried (F1)."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        async with stage(origin=f"http://127.0.0.1:{port}", policy=always(route=ROUTE)) as s:
            reply = await s.messages(model="claude-opus-5-5")
            assert reply.status == 502
            assert reply.json()["error"]["type"] == "api_error"
            assert reply.json()["request_id"] == reply.header("request-id")
            assert reply.header("proxy-status").startswith("router;")
            assert reply.header("x-router-rule") == "always"
            trace = await s.trace()
            assert [a["outcome"] for a in trace["attempts"]] == ["connect_failed"] * 3
            assert (trace["outcome"], trace["error_code"], trace["cost_usd"]) == ("upstream_error", "R301", 0)
            for target in ("/v1/messages/count_tokens", "/v1/files", "/v1/models"):
                assert (await s.messages(target=target)).status == 502
            assert (await s.request("GET", "/v1/messages/batches/msgbatch_1")).status == 502


async def test_no_second_attempt_after_a_broken_connection():
    """The upstream may have charged: the walk ends with 502, one attempt (F29's rule for Messages)."""

    async def behave(peer):
        await peer.request()
        peer.reset()

    async with stage(behave, policy=always("retry: 3", route=ROUTE)) as s:
        reply = await s.messages(model="claude-opus-5-5")
        assert (reply.status, reply.json()["error"]["type"]) == (502, "api_error")
        assert len(s.upstream.requests) == 1
        assert [a["outcome"] for a in (await s.trace())["attempts"]] == ["broken"]


async def test_no_second_attempt_after_a_timeout():
    """No answer within the rule's `timeout`: 504 `timeout_error`, one attempt, the connection closed (F11)."""

    async def behave(peer):
        await peer.request()
        await peer.closed()

    async with stage(behave, policy=always("retry: 3\ntimeout: 0.05s", route=ROUTE)) as s:
        reply = await s.messages(model="claude-opus-5-5")
        assert (reply.status, reply.json()["error"]["type"]) == (504, "timeout_error")
        await s.upstream_closed()
        assert len(s.upstream.requests) == 1
        assert [a["outcome"] for a in (await s.trace())["attempts"]] == ["timeout"]


async def test_no_second_attempt_after_the_first_byte():
    """A stream that breaks after a byte is told to be broken; nothing is sent twice (F16)."""

    async def behave(peer):
        await peer.request()
        await peer.send_apart(SSE_HEAD, chunked(events()[0]))
        peer.reset()

    async with stage(behave, policy=always("retry: 3", route=ROUTE)) as s:
        reply = await s.messages(model="claude-opus-5-5", stream=True)
        assert reply.status == 200
        assert reply.body.count(b"event: error") == 1
        assert len(s.upstream.requests) == 1


async def test_an_upstream_that_answers_before_reading_is_heard():
    """A 413 sent before the body was read comes through, not a broken pipe (F24)."""
    said = error("413 Large", "request_too_large", "too large", ("connection", "close"))

    async def behave(peer):
        await peer.head()
        peer.send(said)
        await peer.writer.drain()

    async with stage(behave) as s:
        reply = await s.messages(text="x" * 3_000_000)
        assert reply.status == 413
        assert reply.body == said.partition(b"\r\n\r\n")[2]


async def test_a_stale_connection_costs_the_client_nothing():
    """The upstream closed an idle connection: the next request is sent on a new one (F25), or goes out a second time,
    which its attempt says."""

    async def behave(peer):
        await peer.request()
        peer.send(http(message()))

    async with stage(behave) as s:
        assert [(await s.messages()).status for _ in range(3)] == [200, 200, 200]
        resent = s.app.upstream.stats()["resent"]
        traces = await s.traces()
        assert sum(each["is_resent"] for trace in traces for each in trace["attempts"]) == resent


async def test_an_attempt_that_went_out_twice_says_so():
    """A used connection ends without a byte: the upstream has seen three calls for two attempts."""
    asked = []

    async def behave(peer):
        asked.append(await peer.request())
        peer.send(http(message()))
        if peer.number == 1:
            asked.append(await peer.request())
            peer.reset()
            return
        await peer.closed()

    async with stage(behave) as s:
        assert [(await s.messages()).status for _ in range(2)] == [200, 200]
        assert len(asked) == 3
        traces = await s.traces()
        assert sorted([each["is_resent"] for each in trace["attempts"]] for trace in traces) == [[False], [True]]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(500, "api_error"), (502, "api_error"), (503, "api_error"), (520, "api_error"), (524, "api_error"),
     (529, "overloaded_error"), (504, "timeout_error"), (429, "rate_limit_error"), (403, "permission_error"),
     (413, "request_too_large"), (405, "invalid_request_error")],
)  # fmt: skip
@pytest.mark.parametrize("target", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_an_html_error_page_becomes_an_api_error(status, kind, target):
    """A page of some proxy in between is said in the API's shape, its status kept, with a request id (F8, R5)."""
    page = b"<html><h1>Bad gateway</h1></html>"
    async with stage(answers(http(page, f"{status} X", kind="text/html", request_id=None))) as s:
        reply = await s.messages(target=target)
        assert reply.status == status
        assert reply.header("content-type") == "application/json"
        assert reply.json()["error"]["type"] == kind
        assert reply.json()["request_id"] == reply.header("request-id") != ""
        assert (await s.trace())["error_type"] == kind


@pytest.mark.parametrize(
    "answer",
    [http(b""), http(b"<html>"), http(b'{"id": "msg_1", "usa'), http(b"[]"), http(b"", "204 No Content"),
     http(b"", "302 Found", ("location", "http://169.254.169.254/")), http(b"{}", "307 X", ("location", "/v2"))],
)  # fmt: skip
async def test_an_answer_that_is_none_is_a_502(answer):
    """Empty, truncated and redirecting answers are not handed on as success; a redirect is never followed (F22)."""
    async with stage(answers(answer)) as s:
        reply = await s.messages()
        assert (reply.status, reply.json()["error"]["type"]) == (502, "api_error")
        assert reply.header("location") is None
        assert len(s.upstream.requests) == 1
        trace = await s.trace()
        assert (trace["outcome"], trace["attempts"][0]["outcome"]) == ("upstream_error", "broken")


async def test_a_plain_answer_cut_short_is_a_502():
    """The body ended before its length: the client is told, before it got a byte."""

    async def behave(peer):
        await peer.request()
        peer.send(http(message())[:-5])

    async with stage(behave) as s:
        reply = await s.messages()
        assert reply.status == 502
        assert [a["outcome"] for a in (await s.trace())["attempts"]] == ["broken"]


async def test_a_retry_waits_as_long_as_it_was_asked_to():
    """Never earlier than `retry-after` says (F5)."""
    said = error("429 L", "rate_limit_error", "x", ("retry-after-ms", "60"), ("retry-after", "9"))
    async with stage(answers(said, http(message())), policy=always("retry: 1")) as s:
        assert (await s.messages()).status == 200
        trace = await s.trace()
        first, second = trace["attempts"]
        assert second["started_s"] - first["ended_s"] >= 0.06
        assert trace["duration_s"] - trace["overhead_s"] >= 0.06, "waiting is not the router's own time"


async def test_a_very_large_answer_is_passed_on_and_its_cost_is_unknown():
    """Over 32 MB nothing is held back to be metered; every byte arrives (F23)."""
    body = message("x" * (33 * 1024 * 1024))
    async with stage(answers(http(body))) as s:
        reply = await s.messages()
        assert reply.body == body
        assert reply.header("x-router-cost-usd") is None
        assert (await s.trace())["cost_usd"] is None


def test_retry_after_is_read_in_all_its_forms():
    """Seconds, fractions, milliseconds (first), HTTP dates; nonsense and the past are no wish (F5)."""

    def wait(*pairs):
        return retry_after_s([(name, value) for name, value in pairs], 1_000_000_000.0)

    assert wait((b"retry-after", b"2")) == 2
    assert wait((b"retry-after", b"1.5")) == 1.5
    assert wait((b"retry-after", b"9"), (b"retry-after-ms", b"250")) == 0.25
    assert wait((b"retry-after", b"Sun, 09 Sep 2001 01:46:45 GMT")) == 5
    assert wait((b"retry-after", b"Sun, 09 Sep 2001 01:46:30 GMT")) == 0
    assert wait((b"retry-after", b"soon")) is None
    assert wait((b"retry-after-ms", b"x")) is None
    assert wait((b"retry-after", b"")) is None
    assert wait() is None
    for odd in (b"-5", b"nan", b"inf", b"1e999", b"5 apples", b"\xff", b"Mon, 99 Foo"):
        found = wait((b"retry-after", odd))
        assert found is None or found >= 0
        found = wait((b"retry-after-ms", odd))
        assert found is None or found >= 0


@pytest.mark.parametrize("status", ["400 Bad", "403 No", "404 None", "422 Odd"])
async def test_what_a_chosen_model_does_not_take_goes_to_the_model_asked_for(status):
    """A 4xx of a model that the router chose costs the client nothing: the asked model answers in its place."""
    no = error(status, "permission_error", "not for you")
    for target in ("/v1/messages", "/v1/messages/count_tokens"):
        async with stage(answers(no, http(message())), policy=always(route="haiku")) as s:
            reply = await s.messages(target=target, model="claude-opus-5-5")
            assert reply.status == 200
            assert sent_models(s.upstream.requests) == ["claude-haiku-5-5", "claude-opus-5-5"]
            assert reply.header("x-router-model") == "claude-opus-5-5"
            assert [a["outcome"] for a in (await s.trace())["attempts"]] == ["rejected", "ok"]


async def test_the_asked_models_own_error_is_the_clients():
    """When the asked model refuses the request too, its own words come through: they are about the client's request."""
    no, own = error("400 Bad", "invalid_request_error", "haiku"), error("400 Bad", "invalid_request_error", "opus")
    async with stage(answers(no, own), policy=always(route="haiku")) as s:
        reply = await s.messages(model="claude-opus-5-5")
        assert (reply.status, reply.json()["error"]["message"]) == (400, "opus")


async def test_a_bad_credential_is_said_once():
    """A 401 is about the credential, whatever the model."""
    no = error("401 No", "authentication_error", "invalid x-api-key")
    async with stage(answers(no), policy=always(route="haiku")) as s:
        assert (await s.messages(model="claude-opus-5-5")).status == 401
        assert len(s.upstream.requests) == 1


async def test_a_compressed_refusal_passes_unread():
    """Bytes and encoding as the upstream sent them."""
    body = gzip.compress(b'{"type":"error","error":{"type":"rate_limit_error","message":"slow"}}')
    refusal = http(body, "429 Slow", ("content-encoding", "gzip"))
    async with stage(answers(refusal), policy=always(route="as-asked")) as s:
        reply = await s.messages()
        assert (reply.status, reply.body, reply.header("content-encoding")) == (429, body, "gzip")
