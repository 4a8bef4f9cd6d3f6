"""Which model a request goes to, what it costs, and what the answer and the trace say of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from decimal import Decimal

import pytest
from kit.stage import (
    AS_ASKED,
    WAIT_S,
    always,
    answers,
    error,
    events,
    http,
    message,
    request_body,
    sent_models,
    stage,
    streams,
)

pytestmark = pytest.mark.anyio

COUNT = http(b'{ "input_tokens":  7 }')


async def test_every_answer_says_what_the_router_did():
    """Trace id, model, lane, rule, policy and revision, cache: in the headers and in one trace."""
    async with stage(policy=always()) as s:
        reply = await s.messages()
        trace = await s.trace()
        assert reply.header("x-router-trace") == trace["trace_id"]
        assert reply.header("x-router-model") == trace["model_sent"] == "claude-haiku-5-5"
        assert reply.header("x-router-lane") == trace["lane"] == "haiku"
        assert reply.header("x-router-rule") == trace["rule"] == "always"
        assert reply.header("x-router-policy") == f"default@{trace['revision']}"
        assert reply.header("x-router-cache") == trace["cache"] == "bypass"
        assert trace["model_asked"] == "claude-sonnet-5-5"
        assert trace["request_id"] == "req_up"
        assert trace["why"]
        assert "Hello" not in json.dumps(trace, default=str)


async def test_cost_and_saved_are_exact():
    """100 tokens in and 10 out: Haiku 0.10 / 0.50, Sonnet 2 / 10 dollars per million; to the digit."""
    async with stage(answers(http(message(model="claude-haiku-5-5"))), policy=always()) as s:
        reply = await s.messages()
        assert reply.header("x-router-cost-usd") == "0.000015"
        assert reply.header("x-router-saved-usd") == "0.000285"
        trace = await s.trace()
        assert (trace["cost_usd"], trace["baseline_usd"], trace["saved_usd"]) == (
            Decimal("0.000015"), Decimal("0.0003"), Decimal("0.000285"),
        )  # fmt: skip


async def test_a_stream_is_priced_like_a_plain_answer():
    """From its last `message_delta`; no money headers, because they would come too early."""
    async with stage(streams(*events(model="claude-haiku-5-5")), policy=always()) as s:
        reply = await s.messages(stream=True)
        assert reply.header("x-router-cost-usd") is None
        trace = await s.trace()
        assert (trace["cost_usd"], trace["saved_usd"]) == (Decimal("0.000015"), Decimal("0.000285"))


async def test_a_dearer_model_saves_a_negative_amount():
    """Raising a request is honest about it."""
    async with stage(answers(http(message(model="claude-opus-5-5"))), policy=always(route="opus")) as s:
        assert (await s.messages()).header("x-router-saved-usd") == "-0.0003"


async def test_a_model_without_a_price_costs_unknown_not_nothing():
    """No cost header, and None in the trace."""
    async with stage(answers(http(message(model="claude-nova-9")))) as s:
        reply = await s.messages(model="claude-nova-9")
        assert reply.status == 200
        assert reply.header("x-router-cost-usd") is None
        assert (await s.trace())["cost_usd"] is None


async def test_auto_means_the_policy_decides_from_nothing():
    """`as-asked` leads to the default lane; the upstream never hears of `auto`."""
    async with stage() as s:
        reply = await s.messages(model="auto")
        assert reply.header("x-router-model") == "claude-sonnet-5-5"
        assert sent_models(s.upstream.requests) == ["claude-sonnet-5-5"]
        assert (await s.trace())["model_asked"] == "auto"


async def test_a_lane_can_be_asked_for_by_name():
    """`lane:NAME` replaces the route of the rule that matches; an unknown one is a 404 in the API's words."""
    async with stage(policy=always(route="opus")) as s:
        reply = await s.messages(model="lane:haiku")
        assert reply.header("x-router-lane") == "haiku"
        assert (await s.trace()).get("why")[-1] == "the client named the lane `haiku`"
        assert sent_models(s.upstream.requests) == ["claude-haiku-5-5"]
        for name in ("lane:nosuch", "lane:", "lane:as-asked"):
            missing = await s.messages(model=name)
            assert (missing.status, missing.json()["error"]["type"]) == (404, "not_found_error")
            assert missing.json()["error"]["message"] == f"model: {name}"
        assert len(s.upstream.requests) == 1


async def test_a_base_url_names_a_policy():
    """`/p/NAME/…` uses the policy and is not part of the path; an unknown name is a 404 and goes nowhere."""
    async with stage(policies={"cheap": always()}) as s:
        reply = await s.messages(target="/p/cheap/v1/messages?beta=true")
        assert reply.header("x-router-policy").startswith("cheap@")
        assert s.upstream.requests[0].line == b"POST /v1/messages?beta=true HTTP/1.1"
        for name in ("", "nosuch", "..", "lanes", "%0d%0ax", "che%61p%00"):
            missing = await s.messages(target=f"/p/{name}/v1/messages")
            assert (missing.status, missing.json()["error"]["type"]) == (404, "not_found_error"), name
        assert (await s.messages(target="/p/che%61p/v1/messages")).header("x-router-policy").startswith("cheap@")
        assert len(s.upstream.requests) == 2


async def test_naming_a_lane_does_not_go_around_a_denial():
    """A rule that refuses the request refuses it in every spelling of the model."""
    policy = 'version: 1\nrules:\n  - name: closed\n    deny: "not today"\notherwise: as-asked\n'
    async with stage(policy=policy) as s:
        assert (await s.messages(model="lane:haiku")).status == 403
        assert not s.upstream.requests


async def test_a_policy_may_deny():
    """403 `permission_error` with the rule's words; the rule is named; the upstream is not called."""
    policy = 'version: 1\nrules:\n  - name: closed\n    deny: "not today"\notherwise: as-asked\n'
    async with stage(policy=policy) as s:
        reply = await s.messages()
        assert (reply.status, reply.json()["error"]) == (403, {"type": "permission_error", "message": "not today"})
        assert reply.header("x-router-rule") == "closed"
        assert not s.upstream.requests
        assert (await s.trace())["outcome"] == "client_error"


async def test_a_request_that_the_lane_would_refuse_stays_with_the_model_asked_for():
    """Strict swapping: a doubt keeps the request where it was sent, and `why` says so."""
    async with stage(policy=always()) as s:
        reply = await s.messages(field_of_tomorrow=1)
        assert reply.header("x-router-model") == "claude-sonnet-5-5"
        assert "field_of_tomorrow" in (await s.trace())["why"][-1]


async def test_betas_in_two_headers_all_count():
    """A repeated header is one list: every beta is weighed before a swap."""
    async with stage(policy=always()) as s:
        await s.messages((b"anthropic-beta", b"nobody-knows-2027"), (b"anthropic-beta", b"files-api-2025-04-14"))
        trace = await s.trace()
        assert trace["facts"]["betas"] == ["nobody-knows-2027", "files-api-2025-04-14"]
        assert trace["model_sent"] == "claude-sonnet-5-5"


async def test_tokens_are_counted_for_the_model_that_would_be_asked():
    """count_tokens is routed, passes the answer back unchanged, and needs no `max_tokens`."""
    async with stage(answers(COUNT), policy=always()) as s:
        body = b'{"model":"claude-sonnet-5-5","messages":[{"role":"user","content":"x"}]}'
        reply = await s.post(body, target="/v1/messages/count_tokens?beta=true")
        assert reply.body == b'{ "input_tokens":  7 }'
        assert reply.header("x-router-model") == "claude-haiku-5-5"
        assert sent_models(s.upstream.requests) == ["claude-haiku-5-5"]
        trace = await s.trace()
        assert (trace["endpoint"], trace["request_id"], trace["cost_usd"]) == ("count_tokens", "req_up", 0)


async def test_a_chunked_count_comes_down_with_one_framing():
    """Hop-by-hop headers of the upstream's count do not reach the client."""

    async def behave(peer):
        await peer.request()
        peer.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n"
            b"set-cookie: a=1\r\n\r\n"
        )
        peer.send(b'12\r\n{"input_tokens":7}\r\n0\r\n\r\n')

    async with stage(behave) as s:
        reply = await s.messages(target="/v1/messages/count_tokens")
        assert reply.json() == {"input_tokens": 7}
        assert reply.header("transfer-encoding") is None
        assert reply.header("set-cookie") is None


async def test_an_error_of_the_count_keeps_its_words():
    """Status and body of the upstream; one attempt."""
    said = error("400 Bad", "invalid_request_error", "prompt is too long")
    async with stage(answers(said)) as s:
        reply = await s.messages(target="/v1/messages/count_tokens")
        assert (reply.status, reply.body) == (400, said.partition(b"\r\n\r\n")[2])


async def test_an_edit_is_live_for_the_next_request():
    """After a reload the next request uses the new set and names its revision; a bad edit changes nothing."""
    async with stage() as s:
        before = (await s.messages()).header("x-router-policy")
        s.write_policy(always())
        assert await s.app.policies.reload()
        after = await s.messages()
        assert after.header("x-router-model") == "claude-haiku-5-5"
        assert after.header("x-router-policy") != before
        s.write_policy(
            "version: 1\nrules: [{name: x, when: {input_token: {gt: 1}}, route: opus}]\notherwise: as-asked\n"
        )
        assert not await s.app.policies.reload()
        assert (await s.messages()).header("x-router-policy") == after.header("x-router-policy")
        s.write_policy(AS_ASKED)
        assert await s.app.policies.reload()
        assert (await s.messages()).header("x-router-policy") == before


async def test_a_key_of_the_router_has_its_tenant_and_its_policy(tmp_path):
    """With `keys` the router's own credential goes up, the trace names the key, an unknown key is a 401 (S10)."""
    text = "keys:\n" + "".join(
        f"  - {{name: {name}, sha256: {hashlib.sha256(secret).hexdigest()}, tenant: {tenant}{policy}}}\n"
        for name, secret, tenant, policy in (
            ("search", b"sk-a", "search", ", policy: cheap"),
            ("chat", b"sk-b", "chat", ""),
        )
    )
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    async with stage(policies={"cheap": always()}, keys=str(file), upstream_api_key="sk-owner") as s:
        for header in ((b"x-api-key", b"sk-a"), (b"authorization", b"Bearer sk-a")):
            reply = await s.post(request_body(), [header])
            assert reply.header("x-router-policy").startswith("cheap@")
        assert (
            (await s.post(request_body(), [(b"x-api-key", b"sk-b")])).header("x-router-policy").startswith("default@")
        )
        tied = await s.post(request_body(), [(b"x-api-key", b"sk-a")], target="/p/default/v1/messages")
        assert tied.header("x-router-policy").startswith("cheap@")
        for sent in s.upstream.requests:
            assert sent.header(b"x-api-key") == b"sk-owner"
            assert sent.header(b"authorization") is None
        for wrong in (b"sk-c", b"sk-", b"sk-a ", b"sk-aa"):
            reply = await s.post(request_body(), [(b"x-api-key", wrong)])
            assert reply.status == (200 if wrong == b"sk-a " else 401), wrong
            assert wrong.strip() == b"sk-a" or wrong not in reply.body
        traces = await s.traces()
        assert [(t["key"], t["tenant"]) for t in traces[:3]] == [
            ("search", "search"),
            ("search", "search"),
            ("chat", "chat"),
        ]
        assert "sk-owner" not in json.dumps(traces, default=str)


async def test_one_call_that_is_sent_again_is_linked_in_the_traces():
    """Each is a request of its own and the header goes up as it came; a mark that is not the key links them (F53)."""
    async with stage(policy=always()) as s:
        for key in (b"my-own-key", b"my-own-key", b"another"):
            assert (await s.messages((b"idempotency-key", key))).status == 200
        assert [request.header(b"idempotency-key") for request in s.upstream.requests][:2] == [b"my-own-key"] * 2
        async with asyncio.timeout(WAIT_S):
            while len(rows := await s.traces()) < 3:  # a request ends for its client before it is booked
                pass
        marks = [[line for line in row["why"] if line.startswith("idempotency key")] for row in rows]
        assert len(marks[0]) == 1
        assert marks[0] == marks[1] != marks[2]
        assert "my-own-key" not in json.dumps(rows, default=str)
