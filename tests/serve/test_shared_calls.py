"""Identical requests in flight share one upstream call: who joins whom, what they get, and what it costs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from decimal import Decimal

import pytest
from kit.driven_upstream import all_traces, begin, driven, heard, rest, split, under_way
from kit.stage import KEY, WAIT_S, always, error, events, http, message, request_body

pytestmark = pytest.mark.anyio

CACHED = always("cache: {ttl: 1h}", route="as-asked")
PIECES = events("a", "b", "c")
BODY = b"".join(PIECES)
SAVED = Decimal("0.0003")  # what the call of these tests costs: 100 tokens in, 10 out


# Who gets what


async def test_a_hundred_identical_requests_are_one_call():
    """One miss, the others joined it: equal bytes, one bill, and the saving of each is exact (section 8)."""
    async with driven(CACHED) as (s, up):
        asking = asyncio.gather(*(s.messages() for _ in range(101)))
        call = await up.call()
        await under_way(s, 101)
        await call.answer(http(message()))
        replies = await asking
        assert {reply.body for reply in replies} == {message()}
        assert sorted(reply.header("x-router-cache") for reply in replies) == ["coalesced"] * 100 + ["miss"]
        assert {reply.header("request-id") for reply in replies} == {"req_up"}
        assert up.asked == 1
        [made], joined = split(await all_traces(s, 101))
        assert (made["cost_usd"], made["saved_usd"], made["is_stored"]) == (SAVED, 0, True)
        assert len(joined) == 100
        for row in joined:
            assert (row["cost_usd"], row["saved_usd"], row["outcome"], row["is_stored"]) == (0, SAVED, "ok", False)
            assert (row["attempts"], row["usage"], row["stop_reason"]) == ([], made["usage"], "end_turn")
        assert (await s.messages()).header("x-router-cache") == "hit"


async def test_a_hundred_identical_streams_are_one_call():
    """The same for streams; each has a time to its first token."""
    async with driven(CACHED) as (s, up):
        asking = asyncio.gather(*(s.messages(stream=True) for _ in range(101)))
        call = await up.call()
        await under_way(s, 101)
        await call.end(*PIECES)
        replies = await asking
        assert {(reply.body, reply.is_whole) for reply in replies} == {(BODY, True)}
        assert len({tuple(sorted(dict(reply.headers))) for reply in replies}) == 1  # the same header names
        assert up.asked == 1
        rows = await all_traces(s, 101)
        [made], joined = split(rows)
        assert sum(row["cost_usd"] for row in rows) == made["cost_usd"] == SAVED
        assert {(row["saved_usd"], row["outcome"]) for row in joined} == {(SAVED, "ok")}
        assert all(0 < row["ttft_s"] <= row["duration_s"] for row in rows)
        assert (await s.messages(stream=True)).header("x-router-cache") == "hit"


async def test_a_late_caller_gets_what_there_is_and_then_each_event_as_it_comes():
    """The upstream says the next event only after the late caller has seen the one before."""
    async with driven(CACHED) as (s, up):
        leader = await begin(s)
        call = await up.call()
        await call.stream(*PIECES[:3])
        assert (await leader.head())[0] == 200
        assert await heard(leader, len(b"".join(PIECES[:3]))) == b"".join(PIECES[:3])
        late = await begin(s)
        status, headers = await late.head()
        assert (status, dict(headers)[b"x-router-cache"]) == (200, b"coalesced")
        assert await heard(late, len(b"".join(PIECES[:3]))) == b"".join(PIECES[:3])
        for piece in PIECES[3:]:
            await call.stream(piece)
            assert await heard(late, len(piece)) == piece
            assert await heard(leader, len(piece)) == piece
        await call.end()
        assert await rest(late) == await rest(leader) == b""
        assert up.asked == 1


async def test_a_plain_and_a_streamed_request_do_not_share():
    """Each form is a call of its own."""
    async with driven(CACHED) as (s, up):
        plain, streamed = asyncio.ensure_future(s.messages()), asyncio.ensure_future(s.messages(stream=True))
        first, second = await up.call(1), await up.call(2)
        for call in (first, second):
            if b'"stream":true' in call.request.body:
                await call.end(*PIECES)
            else:
                await call.answer(http(message()))
        assert ((await plain).body, (await streamed).body) == (message(), BODY)


# Who leaves


async def test_a_leader_that_leaves_costs_the_others_nothing():
    """The call lives on; the leader's trace is written once, behind its end, and carries the whole cost."""
    async with driven(CACHED) as (s, up):
        leader = await begin(s)
        call = await up.call()
        followers = [await begin(s) for _ in range(5)]
        await under_way(s, 6)
        await call.stream(*PIECES[:4])
        await leader.head()
        await leader.close()
        await under_way(s, 5)
        assert await s.traces() == []
        await call.end(*PIECES[4:])
        for wire in followers:
            await wire.head()
            assert await rest(wire) == BODY
        assert not call.gone.is_set()
        [made], joined = split(await all_traces(s, 6))
        assert (made["outcome"], made["cost_usd"], made["attempts"][0]["outcome"]) == ("client_closed", SAVED, "ok")
        assert {(row["outcome"], row["cost_usd"], row["saved_usd"]) for row in joined} == {("ok", 0, SAVED)}
        assert made["is_stored"]
        assert (await s.messages(stream=True)).body == BODY
        assert up.asked == 1


async def test_a_leader_that_leaves_before_the_first_byte_is_no_loss_either():
    """Plain answers: the followers wait on for the same call."""
    async with driven(CACHED) as (s, up):
        leader = await s.connect()
        leader.send("POST", "/v1/messages", KEY, request_body())
        call = await up.call()
        asking = asyncio.gather(*(s.messages() for _ in range(5)))
        await under_way(s, 6)
        await leader.close()
        await under_way(s, 5)
        await call.answer(http(message()))
        assert {reply.body for reply in await asking} == {message()}
        [made], joined = split(await all_traces(s, 6))
        assert (made["outcome"], made["cost_usd"], len(joined), up.asked) == ("client_closed", SAVED, 5, 1)


async def test_a_follower_that_leaves_is_missed_by_nobody():
    """It saved nothing, for it had no answer; the others are as before."""
    async with driven(CACHED) as (s, up):
        leader, follower = await begin(s), await begin(s)
        call = await up.call()
        await under_way(s, 2)
        await call.stream(*PIECES[:4])
        await follower.head()
        await follower.close()
        await under_way(s, 1)
        await call.end(*PIECES[4:])
        await leader.head()
        assert await rest(leader) == BODY
        rows = await all_traces(s, 2)
        assert sorted((row["outcome"], row["cost_usd"]) for row in rows) == [("client_closed", 0), ("ok", SAVED)]


@pytest.mark.parametrize("has_begun", [False, True], ids=["before the first byte", "half-way"])
async def test_when_all_leave_the_call_is_let_go_and_booked(has_begun):
    """Nobody pays for tokens that nobody reads; what was told of the cost is booked, and nothing is kept."""
    async with driven(CACHED) as (s, up):
        wires = [await begin(s) for _ in range(3)]
        call = await up.call()
        await under_way(s, 3)
        if has_begun:
            await call.stream(*PIECES[:4])
            for wire in wires:
                await wire.head()
        for wire in wires:
            await wire.close()
        await asyncio.wait_for(call.gone.wait(), WAIT_S)
        rows = await all_traces(s, 3)
        assert {row["outcome"] for row in rows} == {"client_closed"}
        [made] = [row for row in rows if row["attempts"]]
        assert made["attempts"][0]["outcome"] == "client_closed"
        assert made["cost_usd"] == (Decimal("0.00021") if has_begun else None)  # 100 in, and one out that was announced
        again = asyncio.ensure_future(s.messages(stream=True))
        await (await up.call(2)).end(*PIECES)
        assert ((await again).body, up.asked) == (BODY, 2)


# What goes wrong


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (error("429 T", "rate_limit_error"), 429),
        (error("529 O", "overloaded_error"), 529),
        (error("500 X", "api_error"), 500),
        (http(b"<html>"), 502),
        ("reset", 502),
        ("timeout", 504),
    ],
    ids=["429", "529", "500", "garbage", "reset", "timeout"],
)
async def test_a_leaders_failure_is_its_own(fault, status):
    """The followers elect another leader: two calls in all, and every one of them has a good answer."""
    policy = always("cache: {ttl: 1h}\ntimeout: 300ms", route="as-asked")
    async with driven(policy) as (s, up):
        leading = asyncio.ensure_future(s.messages())
        call = await up.call()
        following = asyncio.gather(*(s.messages() for _ in range(30)))
        await under_way(s, 31)
        if fault == "reset":
            call.reset()
        elif fault != "timeout":
            await call.answer(fault)
        second = await up.call(2)
        await second.answer(http(message()))
        assert (await leading).status == status
        assert {(reply.status, reply.body) for reply in await following} == {(200, message())}
        assert up.asked == 2


async def test_an_upstream_that_fails_for_good_is_asked_once_by_each_at_most():
    """Every one gets the upstream's own words, as without a cache; nobody asks twice."""
    async with driven(CACHED) as (s, up):
        asking = asyncio.gather(*(s.messages() for _ in range(20)))
        await up.call()
        await under_way(s, 20)
        done = 0
        while not asking.done():
            while done < up.asked:
                await up.calls[done].answer(error("529 O", "overloaded_error", f"busy {done}"))
                done += 1
            await asyncio.sleep(0)
        replies = await asking
        assert {reply.status for reply in replies} == {529}
        assert len({reply.body for reply in replies}) == up.asked == 20
        assert s.app.pipeline.stats()["under_way"] == 0


@pytest.mark.parametrize("end", ["cut", "reset", "error event"])
async def test_a_broken_stream_is_broken_for_all_alike(end):
    """The same bytes and an honest error event for everyone; nothing is kept (S7, F65)."""
    said = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n'
    async with driven(CACHED) as (s, up):
        wires = [await begin(s) for _ in range(4)]
        call = await up.call()
        await under_way(s, 4)
        await call.stream(*PIECES[:4])
        for wire in wires:
            await wire.head()
            assert await heard(wire, len(b"".join(PIECES[:4]))) == b"".join(PIECES[:4])
        if end == "error event":
            await call.end(said)
        elif end == "cut":
            call.cut()
        else:
            call.reset()
        ends = [await rest(wire) for wire in wires]
        assert len(set(ends)) == 1
        assert ends[0].startswith(b"event: error\ndata: ")
        assert ends[0].endswith(b"\n\n")
        rows = await all_traces(s, 4)
        assert {row["outcome"] for row in rows} == {"upstream_error" if end == "error event" else "cut"}
        assert not any(row["is_stored"] for row in rows)
        again = asyncio.ensure_future(s.messages(stream=True))
        await (await up.call(2)).end(*PIECES)
        assert ((await again).header("x-router-cache"), (await again).body) == ("miss", BODY)


async def test_a_fallbacks_answer_is_for_its_leader_alone():
    """The model in the key did not say it; the followers ask that model themselves."""
    policy = always("cache: {ttl: 1h}", route="[haiku, sonnet]")
    async with driven(policy) as (s, up):
        leading = asyncio.ensure_future(s.messages(model="claude-opus-5-5"))
        call = await up.call()
        following = asyncio.gather(*(s.messages(model="claude-opus-5-5") for _ in range(10)))
        await under_way(s, 11)
        await call.answer(error("529 O", "overloaded_error"))
        later = [await up.call(2), await up.call(3)]  # at once: nobody waits for the fallback's answer
        later.sort(key=lambda call: b"claude-haiku" in call.request.body)
        await later[1].answer(http(message("from haiku", model="claude-haiku-5-5")))
        assert {reply.json()["content"][0]["text"] for reply in await following} == {"from haiku"}
        assert not leading.done()
        await later[0].answer(http(message("from sonnet")))
        assert (await leading).json()["content"][0]["text"] == "from sonnet"
        assert up.asked == 3


async def test_the_only_lane_is_shared_and_kept_although_its_breaker_is_open():
    """No other lane is chosen, so that nothing is private: one call, and its answer is stored."""
    async with driven(CACHED) as (s, up):
        s.app.breakers.now_s = lambda: 0.0
        for number in range(1, 6):
            asking = asyncio.ensure_future(s.messages())
            await (await up.call(number)).answer(error("529 O", "overloaded_error"))
            assert (await asking).status == 529
        assert [each.state for each in s.app.breakers.states()] == ["open"]
        asking = asyncio.gather(*(s.messages() for _ in range(10)))
        call = await up.call(6)
        await under_way(s, 10)
        await call.answer(http(message()))
        assert sorted(reply.header("x-router-cache") for reply in await asking) == ["coalesced"] * 9 + ["miss"]
        assert (await s.messages()).header("x-router-cache") == "hit"
        assert up.asked == 6


async def test_who_waited_too_long_for_another_asks_for_itself(monkeypatch):
    """A rule's `timeout` bounds the waiting for somebody else's call; and after a second in vain nobody joins again."""
    monkeypatch.setattr("router.serve.cached._JOINS_AGAIN_S", 0.0)
    async with driven(always("cache: {ttl: 1h}\ntimeout: 5s", route="as-asked")) as (s, up):
        leading = asyncio.ensure_future(s.messages())
        call = await up.call()
        following = asyncio.gather(*(s.messages() for _ in range(3)))
        await under_way(s, 4)
        await call.answer(error("500 X", "api_error"))
        assert (await leading).status == 500
        for number in (2, 3, 4):
            await (await up.call(number)).answer(http(message()))
        assert {reply.status for reply in await following} == {200}


async def test_a_request_joins_no_call_that_is_being_given_up():
    """Its leader left; of those who come then one leads and the others join it."""
    async with driven(CACHED) as (s, up):
        leader = await begin(s)
        await up.call()
        await under_way(s, 1)
        [flight] = s.app.pipeline._cached._flights.values()
        flight.watch.is_gone = True  # as in the moment between the leaving and the end
        asking = asyncio.gather(*(s.messages() for _ in range(20)))
        await (await up.call(2)).answer(http(message()))
        assert {reply.status for reply in await asking} == {200}
        assert up.asked == 2
        flight.watch.is_gone = False
        await leader.close()


async def test_the_routers_own_part_of_a_stream_is_neither_nothing_nor_the_wait():
    """The leader's overhead is what the call did not spend waiting; a follower's what it did itself."""
    passed_s = 0.0
    async with driven(CACHED) as (s, up):
        s.app.api._services = replace(s.app.api._services, monotonic=lambda: time.perf_counter() + passed_s)
        asking = asyncio.gather(*(s.messages(stream=True) for _ in range(2)))
        call = await up.call()
        await under_way(s, 2)
        passed_s = 100.0  # the upstream takes its time: this is the wait that must not count
        await call.end(*PIECES)
        await asking
        for row in await all_traces(s, 2):
            assert row["duration_s"] > 100
            assert 0 < row["overhead_s"] < 50
