"""Breakers in a running router: an ill lane is passed over, comes back by itself, and both can be seen (F27)."""

from __future__ import annotations

import asyncio
import json

import pytest
from click.testing import CliRunner
from kit.audit import Auditor, audited
from kit.stage import SSE_HEAD, always, chunked, error, events, http, message, sent_models, stage, until

from router.cli.main import cli
from router.serve.breaker import OPENS_AT, RAMP_S
from router.serve.budget import SHARE

pytestmark = pytest.mark.anyio

OVERLOADED = error("529 Overloaded", "overloaded_error", "Overloaded", ("retry-after-ms", "1"))
HAIKU, OPUS = "claude-haiku-5-5", "claude-opus-5-5"
OPENS = int(OPENS_AT)


class Ill:
    """An upstream whose models are ill or well, one by one; `says` is what an ill one answers."""

    def __init__(self, *models: str, says: bytes = OVERLOADED) -> None:
        self.models = set(models)
        self.says = says

    async def behave(self, peer):
        while True:
            request = await peer.request()
            model = json.loads(request.body)["model"]
            peer.send(self.says if model in self.models else http(message(model=model)))


class Clock:
    def __init__(self, a: Auditor) -> None:
        self.now = 1000.0
        a.app.breakers.now_s = lambda: self.now


def states(a: Auditor) -> dict[str, str]:
    return {each.model: each.state for each in a.app.breakers.states()}


async def test_an_ill_lane_is_passed_over_while_another_is_left():
    """After five failures nobody is sent there; the trace says why; the other lane serves without a first attempt."""
    ill = Ill(HAIKU)
    async with audited(ill.behave, most_attempts=2, policy=always()) as a:
        Clock(a)
        for _ in range(OPENS + 4):
            reply = await a.messages(model=OPUS)
            assert (reply.status, reply.header("x-router-model")) == (200, OPUS)
        assert sent_models(a.upstream.requests).count(HAIKU) == OPENS
        assert states(a)[HAIKU] == "open"
        rows = await a.traces()
        assert [len(row["attempts"]) for row in rows] == [2] * OPENS + [1] * 4
        assert "lane `haiku` passed over: its breaker is open after failures" in rows[-1]["why"]
        assert rows[-1]["lane"] == "as-asked"


async def test_the_last_lane_is_always_asked_and_once():
    """A breaker refuses nobody: with no other lane the request goes, without retries, and what comes is the answer."""
    ill = Ill(HAIKU)
    async with audited(ill.behave, most_attempts=2, policy=always("retry: 1")) as a:
        Clock(a)
        for _ in range(6):
            assert (await a.messages(model=HAIKU)).status == 529
        assert [len(row["attempts"]) for row in await a.traces()] == [2, 2, 1, 1, 1, 1]
        assert a.app.retry_budget.stats()["spent"] == 2, "nor is anything paid, or waited, for a retry that is not sent"
        ill.models.clear()
        assert (await a.messages(model=HAIKU)).status == 200
        assert states(a)[HAIKU] == "half", "an answer ends the wait"


async def test_a_flap_of_a_minute_is_served_by_the_fallback_and_ends_soon():
    """Down for 60 s by the clock of the breaker, 2 requests a second: all answered, few probes, back in 30 s (F27)."""
    ill = Ill()
    async with audited(ill.behave, most_attempts=2, policy=always()) as a:
        clock = Clock(a)
        back_at, wire = None, await a.s.connect()
        for step in range(200):
            clock.now += 0.5
            ill.models = {HAIKU} if 10 <= step < 130 else set()
            reply = await a.messages(model=OPUS)
            assert reply.status == 200
            if step >= 130 and back_at is None and reply.header("x-router-lane") == "haiku":
                back_at = step
        await wire.close()
        assert back_at is not None
        assert (back_at - 130) / 2 <= 30
        assert states(a)[HAIKU] == "closed"
        [state] = [each for each in a.app.breakers.states() if each.model == HAIKU]
        assert OPENS <= state.failures <= 10 + 10, "what opened it, and one probe per opening"
        assert state.skipped >= 90


async def test_a_lane_comes_back_through_a_narrow_door():
    """When it may be tried again, fifty requests at once are one probe, not fifty."""
    ill = Ill(HAIKU)
    async with audited(ill.behave, most_attempts=2, policy=always()) as a:
        clock = Clock(a)
        for _ in range(OPENS):
            await a.messages(model=OPUS)
        ill.models.clear()
        a.upstream.requests.clear()
        clock.now += 1.5
        replies = await asyncio.gather(*(a.messages(model=OPUS) for _ in range(50)))
        assert {reply.status for reply in replies} == {200}
        assert 1 <= sent_models(a.upstream.requests).count(HAIKU) <= 12
        for _ in range(12):
            clock.now += RAMP_S / 8
            await a.messages(model=OPUS)
        assert states(a)[HAIKU] == "closed"


@pytest.mark.parametrize("how", ["overloaded event", "cut", "stall"])
async def test_streams_that_fail_inside_open_it_too(how):
    """The status was 200 and the answer was not: `overloaded_error` in the stream, a cut, a stall (F13, F15, F19)."""
    said = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'

    async def behave(peer):
        request = await peer.request()
        if json.loads(request.body)["model"] == OPUS:
            peer.send(SSE_HEAD, *(chunked(each) for each in events()), b"0\r\n\r\n")
            return
        peer.send(SSE_HEAD, chunked(events()[0]))
        if how == "overloaded event":
            peer.send(chunked(said), b"0\r\n\r\n")
        elif how == "stall":
            await peer.closed()

    async with audited(behave, policy=always("timeout: {idle: 30ms}")) as a:
        Clock(a)
        needed = 3 if how == "stall" else OPENS
        for _ in range(needed):
            assert b"event: error" in (await a.messages(model=OPUS, stream=True)).body
        await a.traces()
        assert states(a)[HAIKU] == "open"
        assert b"event: message_stop" in (await a.messages(model=OPUS, stream=True)).body


@pytest.mark.parametrize(
    "says",
    [
        error("429 L", "rate_limit_error", "slow down", ("retry-after-ms", "1")),
        error("400 B", "invalid_request_error", "no"),
        error("404 N", "not_found_error", "no"),
    ],
)
async def test_what_is_about_a_request_or_a_limit_opens_nothing(says):
    """A 429 and a 4xx say nothing of the lane."""
    ill = Ill(HAIKU, says=says)
    async with audited(ill.behave, most_attempts=2, policy=always()) as a:
        for _ in range(3 * OPENS):
            assert (await a.messages(model=OPUS)).status == 200
        assert sent_models(a.upstream.requests).count(HAIKU) == 3 * OPENS
        assert set(states(a).values()) == {"closed"}


async def test_counts_of_tokens_say_nothing_of_the_lane():
    """Their answers do not hide that messages fail, their failures open nothing, and they earn no retries."""

    async def behave(peer):
        while True:
            request = await peer.request()
            is_count = b"count_tokens" in request.line
            peer.send(http(b'{"input_tokens": 3}') if is_count == (is_ill == "messages") else OVERLOADED)

    for is_ill in ("messages", "counts"):
        async with audited(behave, most_attempts=2, policy=always(route="as-asked")) as a:
            Clock(a)
            earned = a.app.retry_budget._tokens
            for _ in range(OPENS):
                for _ in range(3):
                    await a.messages(model=OPUS, target="/v1/messages/count_tokens")
                if is_ill == "messages":
                    await a.messages(model=OPUS)
            assert states(a).get(OPUS) == ("open" if is_ill == "messages" else None)
            assert a.app.retry_budget._tokens - earned == pytest.approx(SHARE * OPENS * (is_ill == "messages"))


async def test_one_models_outage_is_not_that_of_another_asked_for():
    """`as-asked` is as many lanes as there are models."""
    ill = Ill(OPUS)
    async with audited(ill.behave, policy=always(route="as-asked")) as a:
        Clock(a)
        for _ in range(2 * OPENS):
            assert (await a.messages(model=OPUS)).status == 529
            assert (await a.messages(model="claude-sonnet-5-5")).status == 200
        assert states(a) == {OPUS: "open", "claude-sonnet-5-5": "closed"}


async def test_probes_whose_clients_leave_give_their_place_back():
    """A client that goes during a probe leaves the door as it was."""
    asked = asyncio.Event()
    is_ill = True

    async def behave(peer):
        while True:
            request = await peer.request()
            if json.loads(request.body)["model"] == OPUS or not is_ill:
                peer.send(http(message()))
            elif asked.is_set():
                peer.send(OVERLOADED)
            else:
                asked.set()
                await peer.closed()

    async with audited(behave, most_attempts=2, policy=always()) as a:
        clock = Clock(a)
        asked.set()
        for _ in range(OPENS):
            await a.messages(model=OPUS)
        asked.clear()
        clock.now += 1.5
        wire = await a.begin(model=OPUS)
        await asyncio.wait_for(asked.wait(), 5)
        assert (await a.messages(model=OPUS)).header("x-router-lane") == "as-asked", "one probe at a time"
        await wire.close()
        await a.traces()
        is_ill = False
        assert (await a.messages(model=OPUS)).header("x-router-lane") == "haiku"


async def test_the_state_is_in_the_metrics_and_on_the_status_screen():
    """What an operator sees: numbers per lane, the document, and the words of `router status`."""
    ill = Ill(HAIKU)
    async with stage(ill.behave, policy=always()) as s:
        for _ in range(OPENS + 1):
            await s.messages(model=OPUS)
        now_s = s.app.breakers.now_s()
        s.app.breakers.now_s = lambda: now_s  # it stays so while we look at it, however long that takes
        served = (await asyncio.to_thread(s.app.metrics.render)).decode()
        assert f'router_lane_breaker{{lane="haiku",model="{HAIKU}",stat="state"}} 2.0' in served
        assert f'router_lane_breaker{{lane="haiku",model="{HAIKU}",stat="skipped"}} 1.0' in served
        assert f'router_lane_breaker{{lane="as-asked",model="{OPUS}",stat="state"}} 0.0' in served
        admin = f"http://127.0.0.1:{s.admin_port}"
        said = await asyncio.to_thread(CliRunner().invoke, cli, ["status", "--json", "--admin", admin])
        found = json.loads(said.stdout)
        [each] = [each for each in found["breakers"] if each["lane"] == "haiku"]
        assert (each["state"], each["opened"], each["failures"]) == ("open", 1, OPENS)
        assert 0 < each["open_for_s"] <= 1
        assert any("is left alone after failures" in note["what"] for note in found["problems"])
        screen = await asyncio.to_thread(CliRunner().invoke, cli, ["status", "--admin", admin])
        assert f"breaker    haiku ({HAIKU}): open, tried again in" in screen.stdout


async def test_a_policy_that_is_edited_keeps_the_breakers():
    """What is known of a lane is known whatever the rules say now."""
    ill = Ill(HAIKU)
    async with stage(ill.behave, policy=always()) as s:
        for _ in range(OPENS):
            await s.messages(model=OPUS)
        before = s.app.policies.current.revision
        s.write_policy(always(route="[haiku, sonnet]"))
        await until(lambda: s.app.policies.current.revision != before)
        assert (await s.messages(model=OPUS)).header("x-router-lane") == "sonnet"
