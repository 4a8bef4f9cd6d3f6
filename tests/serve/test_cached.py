"""The cache from outside: what is replayed, to whom, and what is never stored."""

from __future__ import annotations

from decimal import Decimal

import pytest
from kit.stage import KEY, always, answers, error, events, http, message, request_body, stage, streams

from router.cache.memory import MemoryCache

pytestmark = pytest.mark.anyio

CACHED = always("cache: {ttl: 1h}")


async def test_a_repeat_is_answered_from_the_cache_byte_for_byte():
    """Miss, then hit: same body, nothing sent up, no cost, and the saving of the whole baseline (sections 7 and 8)."""
    async with stage(answers(http(message(model="claude-haiku-5-5"))), policy=CACHED) as s:
        first = await s.messages()
        again = await s.messages()
        assert (first.header("x-router-cache"), again.header("x-router-cache")) == ("miss", "hit")
        assert again.body == first.body == message(model="claude-haiku-5-5")
        assert again.header("content-type") == "application/json"
        assert int(again.header("age")) >= 0
        assert again.header("request-id")
        assert (again.header("x-router-cost-usd"), again.header("x-router-saved-usd")) == ("0", "0.0003")
        assert len(s.upstream.requests) == 1
        miss, hit = await s.traces()
        assert (miss["is_stored"], hit["is_stored"]) == (True, False)
        assert (hit["cost_usd"], hit["saved_usd"]) == (0, Decimal("0.0003"))
        assert hit["attempts"] == []
        assert hit["usage"] == miss["usage"]
        assert hit["model_answered"] == "claude-haiku-5-5"


async def test_a_stream_is_replayed_as_the_same_events():
    """Byte for byte, as an event stream, and the SDK-visible headers with it."""
    pieces = events("a", "b")
    async with stage(streams(*pieces), policy=CACHED) as s:
        first = await s.messages(stream=True)
        await s.trace()  # a stream is stored behind its last byte
        again = await s.messages(stream=True)
        assert again.header("x-router-cache") == "hit"
        assert again.body == first.body == b"".join(pieces)
        assert again.header("content-type") == first.header("content-type")
        assert len(s.upstream.requests) == 1


async def test_a_plain_request_never_gets_a_stream():
    """Streamed and plain answers are entries of their own."""
    async with stage(answers(http(message())), policy=CACHED) as s:
        await s.messages()
        assert (await s.messages(stream=True)).header("x-router-cache") == "miss"
        assert (await s.messages(stream=False)).header("x-router-cache") == "hit"


async def test_tenants_share_nothing():
    """The same body with another key is a miss; the same key in the other header form is a hit (R6, S5)."""
    async with stage(policy=CACHED) as s:
        seen = [
            (await s.post(request_body(), [*KEY[1:], credential])).header("x-router-cache")
            for credential in (
                (b"x-api-key", b"sk-a"), (b"x-api-key", b"sk-b"),
                (b"authorization", b"Bearer sk-a"), (b"x-api-key", b"sk-b"),
            )
        ]  # fmt: skip
        assert seen == ["miss", "miss", "hit", "hit"]


async def test_a_shared_scope_is_shared_because_the_rule_says_so():
    """`scope: shared` lets another tenant hit."""
    async with stage(policy=always("cache: {ttl: 1h, scope: shared}")) as s:
        await s.post(request_body(), [(b"x-api-key", b"sk-a")])
        assert (await s.post(request_body(), [(b"x-api-key", b"sk-b")])).header("x-router-cache") == "hit"


async def test_a_rule_without_cache_bypasses():
    """Only rules that say `cache:` cache."""
    async with stage(policy=always()) as s:
        assert [(await s.messages()).header("x-router-cache") for _ in range(2)] == ["bypass", "bypass"]
        assert len(s.upstream.requests) == 2
    async with stage(policy=CACHED, cache="off") as s:
        assert [(await s.messages()).header("x-router-cache") for _ in range(2)] == ["bypass", "bypass"]


async def test_a_client_steers_the_cache():
    """`no-store` neither looks nor keeps; `no-cache` and `refresh` ask anew and keep the new answer."""
    first, second = http(message("one")), http(message("two"))
    async with stage(answers(first, second), policy=CACHED) as s:
        bypass = await s.messages((b"x-router-cache", b"no-store"))
        assert bypass.header("x-router-cache") == "bypass"
        assert (await s.messages()).header("x-router-cache") == "miss"
        assert (await s.messages()).header("x-router-cache") == "hit"
    for word in (b"no-cache", b"refresh", b" Refresh "):
        async with stage(answers(first, second), policy=CACHED) as s:
            assert (await s.messages()).json()["content"][0]["text"] == "one"
            asked = await s.messages((b"x-router-cache", word))
            assert (asked.header("x-router-cache"), asked.json()["content"][0]["text"]) == ("miss", "two")
            again = await s.messages()
            assert (again.header("x-router-cache"), again.json()["content"][0]["text"]) == ("hit", "two")


@pytest.mark.parametrize("stop", ["refusal", "max_tokens", "pause_turn", "model_context_window_exceeded", "compaction"])
async def test_an_answer_that_is_not_whole_is_not_kept(stop):
    """Refusals and cut-off answers are asked for again, plain and streamed."""
    async with stage(answers(http(message(stop=stop))), policy=CACHED) as s:
        assert [(await s.messages()).header("x-router-cache") for _ in range(2)] == ["miss", "miss"]
    async with stage(streams(*events(stop=stop)), policy=CACHED) as s:
        for _ in range(2):
            assert (await s.messages(stream=True)).header("x-router-cache") == "miss"
        assert not any(trace["is_stored"] for trace in await s.traces())


async def test_errors_and_broken_answers_are_not_kept():
    """A later good answer is the first that is stored (S7)."""
    bad = error("500 X", "api_error")
    async with stage(
        answers(bad, http(b"<html>"), http(message()[:-9] + b" " * 9), http(message())), policy=CACHED
    ) as s:
        seen = [(reply.status, reply.header("x-router-cache")) for reply in [await s.messages() for _ in range(5)]]
        assert seen == [(500, "miss"), (502, "miss"), (502, "miss"), (200, "miss"), (200, "hit")]


async def test_a_fallbacks_answer_is_not_kept_under_the_primarys_key():
    """What the backup said is not what the lane of the key would say."""
    refusal = error("529 O", "overloaded_error")
    policy = always("cache: {ttl: 1h}", route="[haiku, sonnet]")
    async with stage(answers(refusal, http(message()), http(message("haiku is back"))), policy=policy) as s:
        await s.messages(model="claude-opus-5-5")
        again = await s.messages(model="claude-opus-5-5")
        assert again.header("x-router-cache") == "miss"
        assert again.json()["content"][0]["text"] == "haiku is back"


@pytest.mark.parametrize(
    "more",
    [{"container": "c"}, {"mcp_servers": []}, {"thread": {}}, {"context_management": {"edits": []}},
     {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
     {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}]}]}],
)  # fmt: skip
async def test_what_depends_on_more_than_the_request_is_not_cached(more):
    """Provider state, files and tools that look at the world bypass the cache."""
    async with stage(policy=always("cache: {ttl: 1h}", route="as-asked")) as s:
        assert [(await s.messages(**more)).header("x-router-cache") for _ in range(2)] == ["bypass", "bypass"]


async def test_an_answer_over_the_rules_size_is_not_kept():
    """Plain or streamed."""
    policy = always("cache: {ttl: 1h, max_bytes: 300B}")
    async with stage(answers(http(message("x" * 300))), policy=policy) as s:
        assert [(await s.messages()).header("x-router-cache") for _ in range(2)] == ["miss", "miss"]
    async with stage(streams(*events("x" * 300)), policy=policy) as s:
        for _ in range(2):
            assert (await s.messages(stream=True)).header("x-router-cache") == "miss"


async def test_numbers_that_only_differ_in_far_digits_are_different_requests():
    """Two tool inputs that parse to the same float are not the same question."""
    body = (
        b'{"model":"claude-sonnet-5-5","max_tokens":64,"messages":[{"role":"user","content":[{"type":"text","text":"x"}]},'
        b'{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"n","input":{"n":12345678901234567890123}}]},'
        b'{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"1"}]}],'
        b'"tools":[{"name":"n","input_schema":{"type":"object"}}]}'
    )
    async with stage(policy=always("cache: {ttl: 1h}", route="as-asked")) as s:
        seen = [
            (await s.post(sent)).header("x-router-cache")
            for sent in (body, body, body.replace(b"90123}", b"90124}"), body.replace(b'"n":1', b'"n": 1'))
        ]
        assert seen == ["miss", "hit", "miss", "miss"]


async def test_a_stored_answer_has_an_age_and_an_end():
    """`age` counts whole seconds since it was asked for; after the rule's `ttl` it is asked for again."""
    now_s = 1_000_000.0
    async with stage(policy=always("cache: {ttl: 1m}")) as s:
        cache = s.app.stores.cache
        assert isinstance(cache, MemoryCache)
        cache._clock = cache._wall_clock = lambda: now_s
        assert (await s.messages()).header("age") is None
        now_s += 59.5
        reply = await s.messages()
        assert (reply.header("x-router-cache"), reply.header("age")) == ("hit", "59")
        now_s += 0.6
        assert (await s.messages()).header("x-router-cache") == "miss"
        assert len(s.upstream.requests) == 2


async def test_what_no_model_sees_does_not_count_and_all_else_does():
    """User ids, ids of the request and names of the client are not in the key; versions, betas and queries are."""
    async with stage(policy=CACHED) as s:

        async def word(*more, target="/v1/messages", **body):
            return (await s.messages(*more, target=target, **body)).header("x-router-cache")

        assert await word() == "miss"
        for same in (
            word((b"user-agent", b"other/2")), word((b"x-request-id", b"1")), word((b"traceparent", b"00-1-2-00")),
            word(metadata={"user_id": "u2"}), word(stream=False),
        ):  # fmt: skip
            assert await same == "hit"
        for other in (
            word((b"anthropic-beta", b"new-thing")), word(target="/v1/messages?beta=true"), word(max_tokens=65),
            word(system="Be brief"), word(metadata={"user_id": "u", "more": 1}), word(a_new_field=1),
            word((b"a-new-header", b"1")), word(temperature=1), word(text="Hello "),
        ):  # fmt: skip
            assert await other == "miss"


async def test_a_hit_saves_what_the_first_answer_is_worth_to_the_pico_dollar():
    """The usage of the original is kept whole, prompt cache and all; a replayed stream has a first token too."""
    usage = b'{"input_tokens":7,"cache_read_input_tokens":1001,"cache_creation_input_tokens":33,"output_tokens":13}'
    whole = message().replace(b'{ "input_tokens":100,  "output_tokens" : 10 }', usage)
    assert usage in whole
    async with stage(answers(http(whole)), policy=always("cache: {ttl: 1h}", route="as-asked")) as s:
        await s.messages()
        await s.messages()
        miss, hit = await s.traces()
        assert hit["usage"] == miss["usage"]
        assert hit["saved_usd"] == miss["cost_usd"] > 0
        assert (hit["cost_usd"], miss["saved_usd"]) == (0, 0)
    async with stage(streams(*events("a")), policy=CACHED) as s:
        await s.messages(stream=True)
        await s.trace()
        await s.messages(stream=True)
        miss, hit = await s.traces()
        assert hit["ttft_s"] is not None
        assert (hit["usage"], hit["saved_usd"]) == (miss["usage"], Decimal("0.0003"))


async def test_an_answer_in_a_packing_that_was_not_asked_for_is_not_kept():
    """What cannot be read cannot be known to be whole."""
    packed = http(b"\x1f\x8b" + b"x" * 50, "200 OK", ("content-encoding", "gzip"))
    async with stage(answers(packed), policy=CACHED) as s:
        assert [(await s.messages()).header("x-router-cache") for _ in range(2)] == ["miss", "miss"]
        assert not any(trace["is_stored"] for trace in await s.traces())


async def test_a_count_is_never_cached():
    """`count_tokens` costs nothing, and its answer may change with the model."""
    async with stage(answers(http(b'{"input_tokens":5}')), policy=CACHED) as s:
        for _ in range(2):
            await s.messages(target="/v1/messages/count_tokens")
        assert len(s.upstream.requests) == 2


async def test_the_trace_says_why_the_cache_was_not_asked_or_did_not_keep():
    """`cache_reason` stands beside `cache`, for each of the ways a request can go by (section 9)."""
    async with stage(
        answers(http(message()), http(message(stop="max_tokens")), error("500 X", "api_error")), policy=CACHED
    ) as s:
        await s.messages()
        await s.messages()
        await s.messages(text="cut off")
        await s.messages(text="fails")
        await s.messages((b"x-router-cache", b"no-store"))
        await s.messages(container="c")
        said = [(row["cache"], row["cache_reason"]) for row in await s.traces()]
        assert said[:4] == [("miss", ""), ("hit", ""), ("miss", "stop-reason"), ("miss", "failed")]
        assert said[4:] == [("bypass", "no-store"), ("bypass", "state")]


@pytest.mark.parametrize("name", ["file_id", "url"])
async def test_a_reference_spelled_with_escapes_is_one_all_the_same(name):
    """What is behind it may change, however its name is written."""
    source = {"type": "file" if name == "file_id" else "url", name: "x"}
    body = request_body(messages=[{"role": "user", "content": [{"type": "document", "source": source}]}])
    escaped = body.replace(f'"{name}"'.encode(), f'"{name[:-1]}\\u00{ord(name[-1]):02x}"'.encode())
    assert escaped != body
    async with stage(policy=always("cache: {ttl: 1h}", route="as-asked")) as s:
        assert [(await s.post(each)).header("x-router-cache") for each in (body, escaped, escaped)] == ["bypass"] * 3


@pytest.mark.parametrize("is_streaming", [False, True])
async def test_a_bug_in_keeping_an_answer_takes_it_from_nobody(monkeypatch, caplog, is_streaming):
    """A cache fails open; the operator hears of it, without the words of the exception, and it is counted."""
    pieces = events("a", "b")
    async with stage(streams(*pieces) if is_streaming else answers(http(message())), policy=CACHED) as s:
        monkeypatch.setattr(s.app.stores.cache, "put", lambda *_: 1 / 0)
        reply = await s.messages(stream=is_streaming)
        assert (reply.status, reply.body) == (200, b"".join(pieces) if is_streaming else message())
        assert reply.is_whole
        row = await s.trace()
        assert (row["cache_reason"], row["is_stored"], row["outcome"]) == ("refused", False, "ok")
        assert s.app.pipeline.stats()["unkept"] == 1
    assert "unforeseen ZeroDivisionError" in caplog.text
    assert "division by" not in caplog.text


async def test_a_hit_without_usage_is_worth_nobody_knows_what():
    """As the miss was: unknown, never 0."""
    body = http(b'{"id":"m","type":"message","model":"claude-haiku-5-5","content":[],"stop_reason":"end_turn"}')
    async with stage(answers(body), policy=CACHED) as s:
        await s.messages()
        await s.messages()
        rows = await s.traces()
        assert [row["cache"] for row in rows] == ["miss", "hit"]
        assert [(row["baseline_usd"], row["saved_usd"]) for row in rows] == [(None, None)] * 2
