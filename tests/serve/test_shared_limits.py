"""The limits of sharing: who may not join, what is too large to keep, who is too slow, and what a rule says of it."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from decimal import Decimal

import pytest
from kit.driven_upstream import all_traces, begin, driven, heard, rest, split, under_way
from kit.stage import KEY, Stage, Wire, always, events, http, message, request_body, until

from router.serve import flight

pytestmark = pytest.mark.anyio

CACHED = always("cache: {ttl: 1h}", route="as-asked")
PIECES = events("a", "b", "c")
BODY = b"".join(PIECES)


def caching(more: str) -> str:
    return always(f"cache: {{ttl: 1h, {more}}}", route="as-asked")


# Who may join


async def test_tenants_never_join_each_other():
    """Each tenant's first request makes a call of its own (S5); within one they join."""
    async with driven(CACHED) as (s, up):
        wires = [await begin(s, key=key) for key in (b"sk-a", b"sk-b", b"sk-a", b"sk-b")]
        await up.call(2)
        await under_way(s, 4)
        for number, call in enumerate(up.calls):
            await call.end(*events(f"call {number}"))
        seen = []
        for wire in wires:
            await wire.head()
            seen.append(await rest(wire))
        assert seen[0] == seen[2] != seen[1] == seen[3]
        assert up.asked == 2
        assert {call.request.header(b"x-api-key") for call in up.calls} == {b"sk-a", b"sk-b"}


async def test_a_shared_scope_joins_across_tenants():
    """Because the rule says so; each tenant's trace has its own saving."""
    async with driven(caching("scope: shared")) as (s, up):
        wires = [await begin(s, key=key) for key in (b"sk-a", b"sk-b")]
        call = await up.call()
        await under_way(s, 2)
        await call.end(*PIECES)
        for wire in wires:
            await wire.head()
            assert await rest(wire) == BODY
        [made], [joined] = split(await all_traces(s, 2))
        assert made["tenant"] != joined["tenant"]
        assert (up.asked, joined["saved_usd"]) == (1, Decimal("0.0003"))


async def test_a_rule_that_does_not_coalesce_makes_a_call_for_each():
    """`coalesce: false`: nobody joins, and the answers are kept all the same."""
    async with driven(caching("coalesce: false")) as (s, up):
        asking = asyncio.gather(*(s.messages() for _ in range(3)))
        await up.call(3)
        for call in up.calls:
            await call.answer(http(message()))
        assert [reply.header("x-router-cache") for reply in await asking] == ["miss"] * 3
        assert (await s.messages()).header("x-router-cache") == "hit"


@pytest.mark.parametrize(("word", "cache"), [(b"no-cache", "miss"), (b"refresh", "miss"), (b"no-store", "bypass")])
async def test_who_wants_a_fresh_answer_neither_joins_nor_leads(word, cache):
    """What the client asked for is a call of its own; nobody else is given its answer in flight."""
    async with driven(CACHED) as (s, up):
        wish = (b"x-router-cache", word)
        usual = asyncio.ensure_future(s.messages())
        await up.call(1)
        fresh = asyncio.ensure_future(s.messages(wish))
        await up.call(2)
        for number, call in enumerate(up.calls, 1):
            await call.answer(http(message(f"call {number}")))
        assert (await usual).json()["content"][0]["text"] == "call 1"
        assert ((await fresh).json()["content"][0]["text"], (await fresh).header("x-router-cache")) == ("call 2", cache)
    async with driven(CACHED) as (s, up):
        fresh = asyncio.ensure_future(s.messages(wish))
        await up.call(1)
        usual = asyncio.ensure_future(s.messages())
        await up.call(2)
        joining = asyncio.ensure_future(s.messages())
        await under_way(s, 3)
        for number, call in enumerate(up.calls, 1):
            await call.answer(http(message(f"call {number}")))
        texts = [(await each).json()["content"][0]["text"] for each in (fresh, usual, joining)]
        assert texts == ["call 1", "call 2", "call 2"]
        assert up.asked == 2


@pytest.mark.parametrize("stop", ["max_tokens", "refusal", "pause_turn"])
async def test_what_is_not_kept_is_shared_in_flight_all_the_same(stop):
    """Who asks at the same time gets the same answer; who asks later asks anew."""
    for form, whole in ((False, message(stop=stop)), (True, b"".join(events(stop=stop)))):
        async with driven(CACHED) as (s, up):
            asking = asyncio.gather(*(s.messages(stream=form) for _ in range(4)))
            call = await up.call()
            await under_way(s, 4)
            await (call.end(whole) if form else call.answer(http(whole)))
            assert {reply.body for reply in await asking} == {whole}
            assert up.asked == 1
            assert not any(row["is_stored"] for row in await all_traces(s, 4))
            again = asyncio.ensure_future(s.messages(stream=form))
            call = await up.call(2)
            await (call.end(whole) if form else call.answer(http(whole)))
            assert (await again).header("x-router-cache") == "miss"


async def test_only_temperatures_of_the_rule_are_cached():
    """`when_temperature`: one that says none counts as 1, and is asked for each time."""
    async with driven(caching("when_temperature: {lte: 0.3}")) as (s, up):
        wishes = [{}, {}, {"temperature": 0}, {"temperature": 0}]
        asking = [asyncio.ensure_future(s.messages(**wish)) for wish in wishes]
        await up.call(3)
        await under_way(s, 4)
        for call in up.calls:
            await call.answer(http(message()))
        seen = [(await each).header("x-router-cache") for each in asking]
        assert seen == ["bypass", "bypass", "miss", "coalesced"]
        assert (await s.messages(temperature=0)).header("x-router-cache") == "hit"


# Large answers and slow readers


async def test_a_plain_answer_over_the_size_is_shared_and_not_kept():
    """All who waited get it."""
    async with driven(caching("max_bytes: 300B")) as (s, up):
        asking = asyncio.gather(*(s.messages() for _ in range(4)))
        call = await up.call()
        await under_way(s, 4)
        await call.answer(http(message("x" * 3000)))
        assert {reply.body for reply in await asking} == {message("x" * 3000)}
        again = asyncio.ensure_future(s.messages())
        await (await up.call(2)).answer(http(message()))
        assert (await again).header("x-router-cache") == "miss"


async def test_a_stream_over_the_size_goes_on_for_those_who_listen():
    """Whoever was there gets all of it; whoever comes when its beginning is no longer held makes a call of its own."""
    pieces = events(*("x" * 1000 for _ in range(100)))
    async with driven(caching("max_bytes: 5kB")) as (s, up):
        wires = [await begin(s) for _ in range(3)]
        call = await up.call(1)
        await under_way(s, 3)
        await call.stream(*pieces[:50])
        for wire in wires:
            await wire.head()
            assert await heard(wire, len(b"".join(pieces[:50]))) == b"".join(pieces[:50])
        late = await begin(s)
        await (await up.call(2)).end(*PIECES)
        await late.head()
        assert await rest(late) == BODY
        await call.end(*pieces[50:])
        for wire in wires:
            assert await rest(wire) == b"".join(pieces[50:])
        assert up.asked == 2
        made, _ = split(await all_traces(s, 4))
        assert sorted(row["is_stored"] for row in made) == [False, True]


LARGE = events(*(f"{number:06}" + "x" * 60_000 for number in range(400)))  # 24 MB: no system holds that in between
LARGE_BODY = b"".join(LARGE)


async def slow_reader(s: Stage) -> Wire:
    """A client whose system holds little of what it has not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", s.port))
    wire = Wire(*await asyncio.open_connection(sock=sock))
    s.wires.append(wire)
    wire.send("POST", "/v1/messages", KEY, request_body(stream=True))
    return wire


@pytest.mark.parametrize("is_leading", [False, True], ids=["a follower", "the leader"])
async def test_one_slow_reader_among_several_is_cut_and_the_others_go_on(monkeypatch, is_leading):
    """It reads an honest error event behind what it had; the others get every byte, and the call is booked once."""
    monkeypatch.setattr(flight, "_LAGGARD_S", 0.05)
    async with driven(caching("max_bytes: 100kB")) as (s, up):
        slow = await slow_reader(s) if is_leading else None
        if is_leading:
            await up.call()
        quick = [await begin(s) for _ in range(2)]
        call = await up.call()
        slow = slow or await slow_reader(s)
        await under_way(s, 3)
        sending = asyncio.ensure_future(call.end(*LARGE))
        for reading in [asyncio.ensure_future(_whole(wire)) for wire in quick]:
            assert await reading == LARGE_BODY
        await sending
        got = await _whole(slow)
        had, mark, last = got.rpartition(b"event: error\ndata: ")
        assert mark
        assert LARGE_BODY.startswith(had.removesuffix(b"\n"))  # half an event is closed before the error
        assert b"too slowly" in last
        assert last.endswith(b"\n\n")
        rows = await all_traces(s, 3)
        assert sorted(row["outcome"] for row in rows) == ["cut", "ok", "ok"]
        [made] = [row for row in rows if row["attempts"]]
        assert made["outcome"] == ("cut" if is_leading else "ok")
        assert made["attempts"][0]["outcome"] == "ok"
        assert sum(row["cost_usd"] for row in rows) == made["cost_usd"] == Decimal("0.0003")


async def test_a_single_slow_reader_slows_the_upstream_down():
    """Nobody else listens, so nobody is cut: the upstream waits, and the router holds no more than it must."""
    async with driven(caching("max_bytes: 100kB")) as (s, up):
        slow = await slow_reader(s)
        call = await up.call()
        sending = asyncio.ensure_future(call.end(*LARGE))
        still, before = 0, -1
        while still < 500:  # turns of the loop in which nothing moved
            still, before = (still + 1, before) if call.sent == before else (0, call.sent)
            await asyncio.sleep(0)
        assert not sending.done()
        assert call.sent < len(LARGE_BODY)
        assert await _whole(slow) == LARGE_BODY
        await sending


async def _whole(wire: Wire) -> bytes:
    await wire.head()
    chunks = []
    while chunk := await wire.chunk():
        chunks.append(chunk)
    return b"".join(chunks)


# The end of the server, and the pace of a replay


async def test_when_the_server_stops_everyone_who_listens_is_told():
    """The leader and the followers read the same error event behind what they had."""
    async with driven(CACHED) as (s, up):
        wires = [await begin(s) for _ in range(4)]
        call = await up.call()
        await under_way(s, 4)
        await call.stream(*PIECES[:4])
        for wire in wires:
            await wire.head()
            await heard(wire, len(b"".join(PIECES[:4])))
        s.app.api.cut()
        ends = {await rest(wire) for wire in wires}
        assert len(ends) == 1
        assert b"shutting down" in ends.pop()
        rows = await all_traces(s, 4)
        assert {row["outcome"] for row in rows} == {"cut"}
        assert not any(row["is_stored"] for row in rows)


async def test_when_the_server_stops_before_an_answer_everyone_gets_an_error():
    """One that says to try again; no request is sent upstream on the way out."""
    async with driven(CACHED) as (s, up):
        asking = asyncio.gather(*(s.messages() for _ in range(4)))
        await up.call()
        await under_way(s, 4)
        s.app.api.cut()
        replies = await asking
        assert {(reply.status, reply.json()["error"]["type"]) for reply in replies} == {(503, "api_error")}
        assert all(reply.header("retry-after") for reply in replies)
        assert up.asked == 1


async def test_a_replay_is_paced_only_where_the_rule_asks():
    """With `pace`, one event at a time, so far apart; without it, all at once."""
    async with driven(caching("pace: 20ms")) as (s, up):
        first = await begin(s)
        await (await up.call()).end(*PIECES)
        await first.head()
        assert await rest(first) == BODY
        await all_traces(s, 1)
        again = await begin(s)
        assert dict((await again.head())[1])[b"x-router-cache"] == b"hit"
        seen, times = [], []
        while chunk := await again.chunk():
            seen.append(chunk)
            times.append(time.monotonic())
        assert seen == PIECES
        gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
        assert times[-1] - times[0] >= 0.020 * (len(PIECES) - 1) * 0.9
        assert max(gaps) < 1.0


async def test_a_client_that_leaves_a_paced_replay_ends_it():
    """Nothing goes on for nobody."""
    async with driven(caching("pace: 1s")) as (s, up):
        first = await begin(s)
        await (await up.call()).end(*PIECES)
        await first.head()
        await rest(first)
        await all_traces(s, 1)
        again = await begin(s)
        await again.head()
        await again.close()
        await until(lambda: not s.app.api._watches, 0.9)
        assert {row["outcome"] for row in await all_traces(s, 2)} == {"ok", "client_closed"}


async def test_a_paced_replay_that_the_server_cuts_does_not_look_complete():
    """There is no time for the rest: an error event ends it, which the client can read (R2)."""
    async with driven(caching("pace: 1s")) as (s, up):
        first = await begin(s)
        await (await up.call()).end(*PIECES)
        await first.head()
        await rest(first)
        await all_traces(s, 1)
        again = await begin(s)
        await again.head()
        assert await heard(again, len(PIECES[0])) == PIECES[0]
        s.app.api.cut()
        assert b"event: error\n" in await again.chunk()
        assert await again.chunk() == b""
        assert {row["outcome"] for row in await all_traces(s, 2)} == {"ok", "cut"}
