"""Faults before an answer begins (F1 to F12, F17, F25, F28): what the client sees, and the audit behind it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from email.utils import formatdate

import pytest
from kit.audit import audited
from kit.stage import SSE_HEAD, always, answers, chunked, error, events, http, message, sent_models, stage, streams

from router.policy.written import Lane
from router.seams import Deadlines
from router.serve.attempts import MAX_RETRY_WAIT_S, Answer, Target, _wait_s
from router.serve.breaker import Breaker
from router.trace.record import Attempt

pytestmark = pytest.mark.anyio

AT_ONCE = ("retry-after-ms", "1")
OVERLOADED = error("529 Overloaded", "overloaded_error", "Overloaded", AT_ONCE)
ROUTE = "[haiku, sonnet]"


async def test_an_upstream_that_is_down_is_said_at_once_and_comes_back():
    """Nobody listens: every lane is tried, 502 within a second; when it is up again the next request is served (F1)."""
    async with audited(most_attempts=3, policy=always(route=ROUTE)) as a:
        a.upstream.refuse()
        started = time.monotonic()
        reply = await a.messages(model="claude-opus-5-5")
        assert (reply.status, reply.json()["error"]["type"]) == (502, "api_error")
        assert time.monotonic() - started < 1
        assert [each["outcome"] for each in (await a.trace())["attempts"]] == ["connect_failed"] * 3
        await a.upstream.listen()


async def test_a_connection_that_nobody_answers_ends_at_the_connect_limit():
    """A full backlog drops what comes, as a black hole does: an error at the rule's limit, else after 2 s (F2)."""
    assert Deadlines().connect == 2.0
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        try:
            origin = f"http://127.0.0.1:{hole.getsockname()[1]}"
            async with stage(origin=origin, policy=always("timeout: {connect: 100ms}", route="sonnet")) as s:
                started = time.monotonic()
                reply = await s.messages()
                assert time.monotonic() - started < 1
                assert reply.status == 502
                assert "connecting took over 0.1 s" in reply.json()["error"]["message"]
                assert [each["outcome"] for each in (await s.trace())["attempts"]] == ["connect_failed"]
        finally:
            for filler in fillers:
                filler.close()


@pytest.mark.parametrize(
    "header",
    [
        ("retry-after-ms", "30"),
        ("retry-after", "0.03"),
        ("retry-after", "0"),
        ("retry-after", formatdate(0, usegmt=True)),
    ],
)
async def test_a_429_is_waited_for_in_every_form(header):
    """Milliseconds, a fraction, a whole number, a date: never earlier than asked, then the answer (F5)."""
    said = error("429 L", "rate_limit_error", "slow down", header)
    async with audited(answers(said, http(message())), most_attempts=2, policy=always("retry: 1")) as a:
        assert (await a.messages(model="claude-haiku-5-5")).status == 200
        first, second = (await a.trace())["attempts"]
        assert first["outcome"] == "rate_limited"
        assert second["started_s"] - first["ended_s"] >= first["retry_after_s"]


@pytest.mark.parametrize("header", [("retry-after", "9"), ("retry-after", formatdate(time.time() + 3600, usegmt=True))])
async def test_a_long_retry_after_is_the_clients(header):
    """What nobody should wait for in a proxy is passed on at once, header and body unchanged (F5)."""
    said = error("429 L", "rate_limit_error", "slow down", header)
    async with audited(answers(said), policy=always("retry: 3")) as a:
        reply = await a.messages(model="claude-haiku-5-5")
        assert (reply.status, reply.header(header[0])) == (429, header[1])
        assert reply.body == said.partition(b"\r\n\r\n")[2]


async def test_a_persistent_429_has_bounded_attempts():
    """`retry: 2` and no more, then the 429 itself (F6)."""
    said = error("429 L", "rate_limit_error", "slow down", ("retry-after", "0"))
    async with audited(answers(said), most_attempts=3, policy=always("retry: 2")) as a:
        reply = await a.messages(model="claude-haiku-5-5")
        assert (reply.status, reply.header("retry-after")) == (429, "0")
        attempts = (await a.trace())["attempts"]
        assert len(attempts) == 3
        assert attempts[2]["started_s"] - attempts[1]["ended_s"] >= 0.5, "the second retry backs off"


@pytest.mark.parametrize("asked_s", [None, 0.0, 0.001])
@pytest.mark.parametrize("chance", [0.0, 0.999])
def test_no_header_makes_a_tight_loop(asked_s, chance):
    """At most four attempts in three seconds, whatever the upstream says and however chance falls (F6)."""
    attempt = Attempt("haiku", "m", 0.0, "rate_limited", 429, retry_after_s=asked_s)
    answer = Answer(429, [], None, b"", attempt, Target(Lane("haiku", "m"), "m"))
    at, sent = 0.0, 1
    for number in range(5):
        wait = _wait_s(answer, number, lambda: chance)
        assert wait is not None
        assert wait >= (asked_s or 0.0)
        at += wait
        sent += at < 3
    assert sent <= 4


def test_a_wait_that_was_asked_for_is_spread_and_never_shortened():
    """A hundred routers that were told two seconds do not all come after two seconds (F5)."""
    attempt = Attempt("haiku", "m", 0.0, "rate_limited", 429, retry_after_s=2.0)
    answer = Answer(429, [], None, b"", attempt, Target(Lane("haiku", "m"), "m"))
    waits = [_wait_s(answer, 0, lambda chance=chance / 100: chance) for chance in range(100)]
    assert min(waits) == 2.0
    assert len(set(waits)) == 100
    assert max(waits) < MAX_RETRY_WAIT_S


@pytest.mark.parametrize("status", [500, 502, 504, 520, 521, 522, 523, 524])
async def test_a_server_error_keeps_its_status_and_is_not_sent_again(status):
    """The upstream may have worked on it: one attempt, the page of whoever answered said in the API's shape (F8)."""
    page = http(b"<html>cloudy</html>", f"{status} X", kind="text/html", request_id=None)
    async with audited(answers(page), policy=always("retry: 3")) as a:
        reply = await a.messages(model="claude-haiku-5-5")
        assert (reply.status, reply.header("content-type")) == (status, "application/json")
        assert len(a.upstream.requests) == 1


@pytest.mark.parametrize("status", ["400 B", "401 U", "403 F", "404 N", "409 C", "413 L", "422 P"])
async def test_a_permanent_error_passes_byte_for_byte(status):
    """One attempt, the body as it came, and no word of ours that would hide whose error it is (F9)."""
    said = error(status, "invalid_request_error", "as  it \\u0063ame", ("x-should-retry", "false"))
    async with audited(answers(said), policy=always("retry: 3", route=ROUTE)) as a:
        reply = await a.messages(model="claude-haiku-5-5")
        assert reply.status == int(status[:3])
        assert reply.body == said.partition(b"\r\n\r\n")[2]
        assert reply.header("proxy-status") is None
        assert reply.header("x-should-retry") == "false"
        assert len(a.upstream.requests) == 1


async def test_a_refusal_of_the_model_is_an_answer():
    """`stop_reason: refusal` is what the model says; nobody routes around it (F10)."""
    async with audited(answers(http(message(stop="refusal"))), policy=always(route=ROUTE)) as a:
        reply = await a.messages(model="claude-opus-5-5")
        assert (reply.status, reply.json()["stop_reason"]) == (200, "refusal")
        assert len(a.upstream.requests) == 1


async def test_a_context_that_is_too_long_goes_to_the_asked_model_and_is_on_record():
    """The chosen model's 400 is in the trace, the model asked for decides; its own 400 ends it (F10)."""
    said = error("400 B", "invalid_request_error", "prompt is too long")
    async with audited(answers(said), most_attempts=2, policy=always("retry: 2")) as a:
        reply = await a.messages(model="claude-opus-5-5")
        assert (reply.status, reply.json()["error"]["message"]) == (400, "prompt is too long")
        assert sent_models(a.upstream.requests) == ["claude-haiku-5-5", "claude-opus-5-5"]
        assert [each["outcome"] for each in (await a.trace())["attempts"]] == ["rejected", "rejected"]


async def silent_once(peer):
    """The first connection is never answered."""
    await peer.request()
    if json.loads(peer.requests[-1].body)["model"] == "claude-haiku-5-5":
        await peer.closed()
    while True:
        peer.send(http(message()))
        await peer.request()


async def test_a_timeout_is_one_timeout():
    """No answer in time: 504, one attempt, whatever `retry` says, and never longer than that (F11)."""
    async with audited(silent_once, policy=always("retry: 3\ntimeout: 80ms", route=ROUTE)) as a:
        started = time.monotonic()
        reply = await a.messages(model="claude-opus-5-5")
        assert (reply.status, reply.json()["error"]["type"]) == (504, "timeout_error")
        assert time.monotonic() - started < 1
        trace = await a.trace()
        assert [each["outcome"] for each in trace["attempts"]] == ["timeout"]
        assert trace["cost_usd"] is None, "it may have been charged"


async def test_a_rule_may_fall_back_after_a_timeout():
    """`on_timeout: fallback`: the next lane, never the same; the cost is unknown, because both may charge (F11)."""
    policy = always("retry: {times: 3, on_timeout: fallback}\ntimeout: {first_byte: 80ms}", route=ROUTE)
    async with audited(silent_once, most_attempts=2, policy=policy) as a:
        reply = await a.messages(model="claude-opus-5-5")
        assert (reply.status, reply.header("x-router-lane")) == (200, "sonnet")
        trace = await a.trace()
        assert [(each["lane"], each["outcome"]) for each in trace["attempts"]] == [
            ("haiku", "timeout"),
            ("sonnet", "ok"),
        ]
        assert trace["cost_usd"] is None


async def test_when_the_fallback_after_a_timeout_fails_too_the_asked_model_says_why():
    """All lanes silent: one timeout each, and the first of them is what the client hears (F11, F28)."""

    async def silent(peer):
        await peer.request()
        await peer.closed()

    policy = always("retry: {on_timeout: fallback}\ntimeout: 60ms", route=ROUTE)
    async with audited(silent, most_attempts=3, policy=policy) as a:
        reply = await a.messages(model="claude-opus-5-5")
        assert (reply.status, reply.json()["error"]["type"]) == (504, "timeout_error")
        assert [each["outcome"] for each in (await a.trace())["attempts"]] == ["timeout"] * 3


@pytest.mark.parametrize("how", ["500", "broken"])
async def test_what_a_fallback_says_after_a_timeout_does_not_hide_it(how):
    """The client hears of the lane that was silent, not of the backup's own trouble (F11, F28)."""

    async def behave(peer):
        request = await peer.request()
        if b"haiku" in request.body:
            await peer.closed()
        elif how == "500":
            peer.send(error("500 X", "api_error", "from sonnet"))
            await peer.closed()
        else:
            peer.reset()

    policy = always("retry: {on_timeout: fallback}\ntimeout: 60ms", route=ROUTE)
    async with audited(behave, most_attempts=2, policy=policy) as a:
        reply = await a.messages(model="claude-opus-5-5")
        assert (reply.status, reply.json()["error"]["type"]) == (504, "timeout_error")
        trace = await a.trace()
        ended = "error" if how == "500" else "broken"
        assert [each["outcome"] for each in trace["attempts"]] == ["timeout", ended]
        assert trace["cost_usd"] is None


async def test_the_total_limit_ends_a_walk():
    """A lane that is asked again and again does not outlast the rule's `total` (R1)."""
    said = error("429 L", "rate_limit_error", "slow down", ("retry-after", "0.1"))
    async with audited(answers(said), most_attempts=4, policy=always("retry: 5\ntimeout: {total: 250ms}")) as a:
        started = time.monotonic()
        assert (await a.messages(model="claude-haiku-5-5")).status == 429
        assert time.monotonic() - started < 1


async def test_slow_headers_and_a_slow_first_token_are_waited_for():
    """Within its limits the router adds no limit of its own; a ping counts as life (F12)."""

    async def behave(peer):
        await peer.request()
        await asyncio.sleep(0.1)
        peer.send(SSE_HEAD)
        for _ in range(6):
            await asyncio.sleep(0.05)
            peer.send(chunked(b'event: ping\ndata: {"type": "ping"}\n\n'))
        peer.send(*(chunked(each) for each in events()), b"0\r\n\r\n")

    policy = always("timeout: {first_byte: 1s, idle: 200ms}", route="sonnet")
    async with audited(behave, policy=policy) as a:
        reply = await a.messages(stream=True)
        assert b"event: message_stop" in reply.body
        assert reply.body.count(b"event: ping") == 7
        assert (await a.trace())["ttft_s"] >= 0.35, "a ping is no token"


async def test_a_reset_before_the_answer_is_not_sent_twice():
    """Nobody can tell whether it was charged: 502, one attempt, and the next request is served (F17)."""

    async def behave(peer):
        peer.reset()

    async with audited(behave, policy=always("retry: 3", route=ROUTE)) as a:
        reply = await a.messages(model="claude-opus-5-5")
        assert (reply.status, reply.json()["error"]["type"]) == (502, "api_error")
        assert len((await a.trace())["attempts"]) == 1


async def test_a_stale_connection_costs_nothing_even_when_many_go_at_once():
    """The upstream restarts between two requests: no error burst (F25)."""
    async with audited() as a:
        for _ in range(3):
            replies = await asyncio.gather(*(a.messages() for _ in range(10)))
            assert [reply.status for reply in replies] == [200] * 10
            a.upstream.hang_up()


async def test_a_fallback_that_takes_no_such_request_hides_nothing():
    """Overloaded, then rejected by the second lane, then by the asked one: its word, all three in the trace (F28)."""
    no = error("400 B", "invalid_request_error", "prefill is not supported")
    own = error("529 O", "overloaded_error", "from opus", ("retry-after", "30"))
    async with audited(answers(OVERLOADED, no, own), most_attempts=3, policy=always(route=ROUTE)) as a:
        reply = await a.messages(model="claude-opus-5-5")
        assert (reply.status, reply.json()["error"]["message"]) == (529, "from opus")
        outcomes = [each["outcome"] for each in (await a.trace())["attempts"]]
        assert outcomes == ["overloaded", "rejected", "overloaded"]


async def test_when_the_budget_is_spent_there_are_no_retries_and_still_fallbacks():
    """Twelve refused requests: ten retries, then none; the next lane is asked all the while (R4)."""
    async with audited(answers(OVERLOADED), most_attempts=3, policy=always("retry: 1")) as a:
        a.app.retry_budget._clock = lambda: 0.0  # no time passes, so that none comes back
        a.app.breakers.of = lambda lane, model: Breaker(lane.name, model, lambda: 0.0)  # none knows enough to open
        for _ in range(16):
            assert (await a.messages(model="claude-opus-5-5")).status == 529
        tried = [len(row["attempts"]) for row in await a.traces()]
        assert set(tried) == {2, 3}
        stats = a.app.retry_budget.stats()
        assert stats["spent"] == tried.count(3)
        assert stats["spent"] <= 10 + 17 * 0.2 + 1
        assert stats["refused"] > 0
        served = (await asyncio.to_thread(a.app.metrics.render)).decode()
        assert f'router_retry_budget{{stat="spent"}} {stats["spent"]}.0' in served


async def test_a_stream_that_the_upstream_never_ends_is_ended_by_the_total():
    """One byte at a time for ever: passed on as it comes, until the limit of the whole (F14)."""

    async def behave(peer):
        await peer.request()
        peer.send(SSE_HEAD, chunked(events()[0]))
        while True:
            peer.send(chunked(b":"))
            await asyncio.sleep(0.01)

    async with audited(behave, policy=always("timeout: {idle: 10s, total: 300ms}", route="sonnet")) as a:
        wire = await a.begin(stream=True)
        assert (await wire.head())[0] == 200
        assert await wire.chunk()
        assert await wire.chunk() == b":", "each byte as it comes"
        rest = b""
        async with asyncio.timeout(5):
            while chunk := await wire.chunk():
                rest += chunk
        assert rest.endswith(b"\n\n")
        assert b"event: error\ndata: " in rest
        assert b"timeout_error" in rest
        assert b"was not done when the time for the whole request was over" in rest
        assert (await a.trace())["outcome"] == "cut"


async def test_a_stall_inside_a_stream_is_said_at_the_idle_limit():
    """Pings stop: an error event within the limit and a second (F13)."""

    async def behave(peer):
        await peer.request()
        await peer.send_apart(SSE_HEAD, *(chunked(each) for each in events()[:4]))
        await peer.closed()

    async with audited(behave, policy=always("timeout: {idle: 100ms}", route="sonnet")) as a:
        started = time.monotonic()
        reply = await a.messages(stream=True)
        assert time.monotonic() - started < 1.1
        assert reply.body.count(b"event: error") == 1
        assert b"was silent inside its answer for 0.1 s" in reply.body


async def test_a_clean_end_and_a_reset_are_both_said():
    """Half an answer never looks whole, however the connection ended (F15, F16)."""
    for end in (b"0\r\n\r\n", b"ff\r\nhalf a chunk"):
        async with audited(streams(*events()[:5], end=end), policy=always("retry: 2")) as a:
            reply = await a.messages(model="claude-haiku-5-5", stream=True)
            assert reply.body.count(b"event: error") == 1
            trace = await a.trace()
            assert (trace["outcome"], len(trace["attempts"])) == ("cut", 1)
