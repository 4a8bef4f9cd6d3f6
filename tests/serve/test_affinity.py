"""A conversation keeps its model: what binds it, what moves it, and what the trace says of it."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest
from kit.raw_upstream import Peer
from kit.stage import (
    KEY,
    SSE_HEAD,
    answers,
    chunked,
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

HAIKU, SONNET, OPUS = "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"


def rules(*written: str, otherwise: str = "as-asked") -> str:
    """A policy of `name, when, route and the rest` in one line each."""
    lines = "".join(f"  - {{{rule}}}\n" for rule in written)
    return f"version: 1\nrules:\n{lines}otherwise: {otherwise}\n"


SHORT_TO_HAIKU = rules("name: short, when: {turns: {lt: 2}}, route: haiku", "name: long, route: opus")


def turns(*texts: str, model: str = SONNET, thinking: bool | str = False, **more: Any) -> bytes:
    """A conversation so far: `texts` alternate between user and assistant, who `thinking` signed (with this)."""
    signature = thinking if isinstance(thinking, str) else "c2ln"
    messages = []
    for index, text in enumerate(texts):
        blocks: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if index % 2 and thinking:
            blocks.insert(0, {"type": "thinking", "thinking": "", "signature": signature})
        messages.append({"role": ("user", "assistant")[index % 2], "content": blocks})
    return request_body(model=model, messages=messages, **more)


async def test_a_conversation_keeps_the_model_it_began_on():
    """The second turn meets another rule; the model stays, and the trace says what moving would have cost."""
    async with stage(answers(http(message(model=HAIKU))), policy=SHORT_TO_HAIKU) as s:
        await s.post(turns("Hello"))
        second = await s.post(turns("Hello", "Hi", "And now?"))
        assert sent_models(s.upstream.requests) == [HAIKU, HAIKU]
        assert second.header("x-router-lane") == "haiku"
        assert second.header("x-router-rule") == "long"
        trace = (await s.traces())[1]
        assert trace["why"][-1].startswith("the conversation keeps lane `haiku`: a switch to `opus` would cost $")
        assert trace["affinity"]["lane"] == "haiku"
        assert trace["affinity"]["kept"] is True
        switch = trace["affinity"]["switch"]
        assert (switch["from_model"], switch["to_model"], switch["prefix_tokens"]) == (HAIKU, OPUS, 110)
        # no prompt cache in use: 110 tokens in and 10 out at Opus' 4 / 20 and Haiku's 0.10 / 0.50 dollars per million
        assert switch["switch_first_usd"] == Decimal("0.00064")
        assert switch["stay_first_usd"] == Decimal("0.000016")


async def test_another_conversation_is_decided_on_its_own():
    """Another first turn is another conversation, and so is another tenant's same one."""
    async with stage(answers(http(message(model=HAIKU))), policy=SHORT_TO_HAIKU) as s:
        await s.post(turns("Hello"))
        await s.post(turns("Good day", "Hi", "And now?"))
        await s.post(turns("Hello", "Hi", "And now?"), [(b"x-api-key", b"sk-other"), KEY[1]])
        assert sent_models(s.upstream.requests) == [HAIKU, OPUS, OPUS]


async def test_asking_for_another_model_is_a_wish_of_the_client():
    """A conversation that asks for another model than before is decided anew."""
    async with stage(answers(http(message(model=HAIKU))), policy=SHORT_TO_HAIKU) as s:
        await s.post(turns("Hello"))
        await s.post(turns("Hello", "Hi", "And now?", model="claude-sonnet-5"))
        assert sent_models(s.upstream.requests) == [HAIKU, OPUS]


async def test_the_session_header_is_the_conversation_where_a_client_sends_one():
    """Claude Code names its session; a sub-agent in it is a conversation of its own."""
    session = (b"x-claude-code-session-id", b"s-1")
    agent = (b"x-claude-code-agent-id", b"a-1")
    async with stage(answers(http(message(model=HAIKU))), policy=SHORT_TO_HAIKU) as s:
        await s.post(turns("Hello"), [*KEY, session])
        await s.post(turns("Something else", "Hi", "And now?"), [*KEY, session])
        await s.post(turns("Something else", "Hi", "And now?"), [*KEY, session, agent])
        assert sent_models(s.upstream.requests) == [HAIKU, HAIKU, OPUS]


async def test_stick_none_neither_reads_nor_binds():
    """Each request by itself."""
    policy = rules(
        "name: short, when: {turns: {lt: 2}}, route: haiku, stick: none",
        "name: longer, when: {turns: 2}, route: opus, stick: none",
        "name: long, route: sonnet",
    )
    async with stage(answers(http(message(model=HAIKU))), policy=policy) as s:
        await s.post(turns("Hello"))
        await s.post(turns("Hello", "Hi", "And now?"))
        await s.post(turns("Hello", "Hi", "And now?", "Well", "So?"))
        assert sent_models(s.upstream.requests) == [HAIKU, OPUS, SONNET]


async def test_stick_move_takes_the_conversation_along():
    """A hard turn moves a conversation up; the easy one after it stays where it is now."""
    policy = rules("name: hard, when: {effort: high}, route: opus, stick: move", "name: easy, route: haiku")
    async with stage(answers(http(message(model=HAIKU))), policy=policy) as s:
        await s.post(turns("Hello"))
        await s.post(turns("Hello", "Hi", "And now?", output_config={"effort": "high"}))
        await s.post(turns("Hello", "Hi", "And now?", "Well", "So?"))
        assert sent_models(s.upstream.requests) == [HAIKU, OPUS, OPUS]
        assert "the conversation moves from lane `haiku` to `opus`" in (await s.traces())[1]["why"]


CACHED = (
    b'"usage":{"input_tokens":10,"cache_creation_input_tokens":0,"cache_read_input_tokens":50000,"output_tokens":10}}'
)


def cached(model: str) -> bytes:
    """An answer that read 50,000 tokens from the prompt cache."""
    return message(model=model).partition(b'"usage"')[0] + CACHED


async def test_stick_economic_moves_when_that_is_earned_back_in_time():
    """50,000 warm tokens on Opus: Haiku pays at once, Sonnet only after many turns; both as the trace says."""
    for route, turns_allowed, expected in (("haiku", 5, HAIKU), ("sonnet", 5, OPUS), ("sonnet", 40, SONNET)):
        policy = rules(
            "name: first, when: {turns: {lt: 2}}, route: opus",
            f"name: later, route: {route}, stick: {{economic: {{turns: {turns_allowed}}}}}",
        )
        async with stage(answers(http(cached(OPUS))), policy=policy) as s:
            await s.post(turns("Hello"))
            await s.post(turns("Hello", "Hi", "And now?"))
            assert sent_models(s.upstream.requests) == [OPUS, expected]
            trace = (await s.traces())[1]
            switch = trace["affinity"]["switch"]
            assert switch["is_warm"] is True
            assert switch["turns_allowed"] == turns_allowed
            assert (switch["turns_to_earn"] is not None) == (expected != OPUS)
            assert any("earned back" in why for why in trace["why"])


async def test_a_fallback_moves_the_conversation():
    """The lane that served it is the one with the warm prompt cache."""
    first = error("529 Overloaded", "overloaded_error")
    policy = rules("name: all, route: [haiku, sonnet]")
    async with stage(answers(first, http(message(model=SONNET))), policy=policy) as s:
        await s.post(turns("Hello"))
        await s.post(turns("Hello", "Hi", "And now?"))
        assert sent_models(s.upstream.requests) == [HAIKU, SONNET, SONNET]


async def test_only_a_served_answer_binds():
    """A stream that breaks off and an error leave the conversation free."""
    broken = events(model=HAIKU)[:-2]
    async with stage(streams(*broken), policy=SHORT_TO_HAIKU) as s:
        await s.post(turns("Hello", stream=True))
        await s.post(turns("Hello", "Hi", "And now?", stream=True))
        assert sent_models(s.upstream.requests) == [HAIKU, OPUS]


async def test_a_lane_that_an_edit_points_elsewhere_lets_its_conversations_go():
    """A binding is to a lane and its model; when `lanes.yaml` says another model, rules decide again."""
    async with stage(answers(http(message(model=HAIKU))), policy=SHORT_TO_HAIKU) as s:
        await s.post(turns("Hello"))
        text = (s.folder / "policies" / "lanes.yaml").read_text()
        s.write_policy(text.replace("haiku: {model: claude-haiku-5-5}", "haiku: {model: claude-haiku-4-5}"), "lanes")
        assert await s.app.policies.reload()
        await s.post(turns("Hello", "Hi", "And now?"))
        assert sent_models(s.upstream.requests) == [HAIKU, OPUS]


UP = rules("name: hard, when: {turns: {gt: 1}}, route: opus, stick: move", "name: easy, route: haiku")
DOWN = rules("name: easy, when: {turns: {gt: 1}}, route: haiku, stick: move", "name: hard, route: sonnet")


def thought(model: str, signature: str = "c2ln") -> bytes:
    """An answer that begins with a thinking block."""
    block = f'"content":[{{"type":"thinking","thinking":"","signature":"{signature}"}},'.encode()
    return message(model=model).replace(b'"content":[', block)


def thought_events(model: str) -> list[bytes]:
    """The same as a stream."""
    start, *rest = events(model=model)
    block = {"type": "content_block_start", "index": 9, "content_block": {"type": "thinking", "thinking": ""}}
    delta = {"type": "content_block_delta", "index": 9, "delta": {"type": "signature_delta", "signature": "c2ln"}}
    made = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in (block, delta)]
    return [start, rest[0], *rest[1:3], *made, *rest[3:]]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_thinking_of_a_known_model_may_go_where_it_can_be_read(is_streamed: bool):
    """Opus can read Haiku's thinking, Haiku not Sonnet's; whose it is must be known, else the asked model keeps it."""
    for policy, first, second in ((UP, HAIKU, OPUS), (DOWN, SONNET, SONNET)):
        behave = streams(*thought_events(first)) if is_streamed else answers(http(thought(first)))
        async with stage(behave, policy=policy) as s:
            await s.post(turns("Hello", stream=is_streamed))
            await s.post(turns("Hello", "Hi", "And now?", thinking=True, stream=is_streamed))
            await s.post(turns("Hello", "Hi", "And now?", thinking="dW5zZWVu", stream=is_streamed))
            assert sent_models(s.upstream.requests) == [first, second, SONNET]


async def test_a_client_that_switches_models_and_comes_back_loses_no_thinking():
    """What is bound under the first model is old by then; who thought is told block by block."""
    policy = rules("name: sonnet, when: {requested_line: sonnet}, route: as-asked", "name: easy, route: haiku")
    replies = (http(message(model=HAIKU)), http(thought(SONNET)), http(message(model=OPUS)))
    async with stage(answers(*replies), policy=policy) as s:
        await s.post(turns("Hello", model=OPUS))
        await s.post(turns("Hello", "Hi", "Hard", model=SONNET))
        await s.post(turns("Hello", "Hi", "Hard", "Done", "Thanks", model=OPUS, thinking=True))
        assert sent_models(s.upstream.requests) == [HAIKU, SONNET, OPUS]


async def test_a_side_request_in_a_session_does_not_take_the_main_conversation_along():
    """A title in the same session, without a word of what it is, is a conversation of its own."""
    policy = rules("name: title, when: {max_tokens: {lt: 50}}, route: haiku", "name: main, route: opus")
    session = (b"x-claude-code-session-id", b"s-1")
    async with stage(answers(http(message(model=OPUS))), policy=policy) as s:
        await s.post(turns("Build it"), [*KEY, session])
        await s.post(turns("A title, please", max_tokens=20), [*KEY, session])
        await s.post(turns("Build it", "Hi", "And now?", max_tokens=20), [*KEY, session])
        await s.post(turns("Summary of it", "Hi", "Go on", max_tokens=20), [*KEY, session])  # after a compaction
        assert sent_models(s.upstream.requests) == [OPUS, HAIKU, OPUS, OPUS]


async def test_a_model_asked_for_that_cannot_read_the_thinking_is_said_and_never_met_in_a_tool_loop():
    """Sonnet 5 does not read Haiku 5.5: between turns it goes on without, in a tool loop Haiku finishes."""
    policy = rules("name: hard, when: {turns: {gt: 1}}, route: as-asked, stick: move", "name: easy, route: haiku")
    asked = "claude-sonnet-5"
    use = [
        {"type": "thinking", "thinking": "", "signature": "c2ln"},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}},
    ]
    result = [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "seen"}]
    history = [{"role": "user", "content": "Hello"}, {"role": "user", "content": "Look"}]
    loop = [*history, {"role": "assistant", "content": use}, {"role": "user", "content": result}]
    async with stage(answers(http(thought(HAIKU))), policy=policy) as s:
        await s.post(turns("Hello", model=asked))
        await s.post(turns("Hello", "Hi", "And now?", model=asked, thinking=True))
        await s.post(turns("Hello", model=asked))
        await s.post(request_body(model=asked, messages=loop))
        assert sent_models(s.upstream.requests) == [HAIKU, asked, HAIKU, HAIKU]
        traces = await s.traces()
        assert "`claude-sonnet-5` goes on without the thinking of claude-haiku-5-5" in traces[1]["why"]
        assert "the tool loop ends on lane `haiku`, whose thinking it carries" in traces[3]["why"]


async def test_a_client_that_is_faster_than_the_end_of_the_stream_is_known():
    """The next turn may come the moment `message_stop` has arrived, before the connection has ended."""
    go_on = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send_apart(SSE_HEAD, *(chunked(piece) for piece in events(model=HAIKU)))
        await go_on.wait()
        peer.send(b"0\r\n\r\n")

    async with stage(behave, policy=SHORT_TO_HAIKU) as s:
        wire = await s.connect()
        wire.send("POST", "/v1/messages", KEY, turns("Hello", stream=True))
        await wire.head()
        while b"message_stop" not in await wire.chunk():
            pass
        other = await s.connect()
        other.send("POST", "/v1/messages", KEY, turns("Hello", "Hi", "And now?", stream=True))
        _, headers = await other.head()
        go_on.set()
        assert dict(headers)[b"x-router-lane"] == b"haiku"


async def test_a_client_may_ask_for_a_lane_that_the_rule_names():
    """`x-router-lane` chooses among the lanes of the deciding rule; another one is not granted, and `why` says so."""
    policy = rules("name: split, split: {haiku: 1, sonnet: 1}", otherwise="as-asked")
    async with stage(answers(http(message(model=HAIKU))), policy=policy) as s:
        for lane in (b"haiku", b"sonnet", b"opus", b"a secret wish"):
            await s.messages((b"x-router-lane", lane))
        models = sent_models(s.upstream.requests)
        assert models[:2] == [HAIKU, SONNET]
        assert models[2] == models[3]
        traces = await s.traces()
        assert "the client asked for lane `haiku`" in traces[0]["why"]
        assert "the client asked for a lane `opus`, which the rule does not offer" in traces[2]["why"]
        assert "secret" not in json.dumps(traces, default=str)


async def test_counting_asks_the_model_that_the_conversation_is_bound_to():
    """Budgets stay true for the next turn."""
    async with stage(answers(http(message(model=HAIKU))), policy=SHORT_TO_HAIKU) as s:
        await s.post(turns("Hello"))
        reply = await s.post(turns("Hello", "Hi", "And now?"), target="/v1/messages/count_tokens")
        assert reply.header("x-router-model") == HAIKU


async def test_an_adapted_request_says_what_was_edited():
    """A rule that allows it: the body is edited as named, and nothing else in it."""
    policy = rules("name: all, route: old, swap: {adapt: [max_tokens]}")
    lanes = "version: 1\nlanes:\n  old: {model: claude-haiku-4-5}\ndefault_lane: old\n"
    body = request_body(max_tokens=100_000, model="claude-sonnet-4-6")
    async with stage(answers(http(message())), policy=policy, policies={"lanes": lanes}) as s:
        reply = await s.post(body)
        expected = body.replace(b"100000", b"64000").replace(b"claude-sonnet-4-6", b"claude-haiku-4-5")
        assert s.upstream.requests[0].body == expected
        assert reply.header("x-router-edits") == "max_tokens 100000 -> 64000"
        assert (await s.trace())["edits"] == ["max_tokens 100000 -> 64000"]
