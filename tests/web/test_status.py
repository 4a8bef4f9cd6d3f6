"""The status document, sessions, and the figures of the last minutes behind them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from kit.raw_upstream import Peer
from kit.redis_server import RedisServer
from kit.stage import KEY, Reply, Stage, Wire, always, answers, error, http, message, request_body, stage

from router.facts.identity import session_key
from router.trace.recent import MINUTES, RecentTraces
from router.trace.record import Attempt, Trace
from router.trace.sessions import Sessions
from router.trace.sqlite import SqliteTraceSink

pytestmark = pytest.mark.anyio

MINUTE_NS = 60 * 10**9
START_NS = 1_790_000_000_000_000_000 // MINUTE_NS * MINUTE_NS
SESSION = (b"x-claude-code-session-id", b"4b8f-session-canary")


async def ask(s: Stage, path: str, *headers: tuple[bytes, bytes]) -> Reply:
    """One GET to the admin listener."""
    wire = Wire(*await asyncio.open_connection("127.0.0.1", s.admin_port, limit=1 << 24))
    s.wires.append(wire)
    wire.send("GET", path, list(headers), None, f"127.0.0.1:{s.admin_port}".encode())
    return await wire.reply()


def booked(s: Stage) -> int:
    return int(s.app.recent.figures()["requests"])


async def status(s: Stage, after: int = 0) -> dict[str, Any]:
    """The document, once that many requests are booked: a request ends for its client before that."""
    async with asyncio.timeout(10):
        while booked(s) < after:  # noqa: ASYNC110 - the books are closed without telling anybody
            await asyncio.sleep(0)
    reply = await ask(s, "/status")
    assert (reply.status, reply.header("cache-control")) == (200, "no-store")
    return reply.json()


async def test_a_router_that_does_well_says_so():
    """Every part of the screen is there; nothing is wrong."""
    async with stage(answers(http(message())), policy=always("cache: {ttl: 1h}")) as s:
        for _ in range(4):
            await s.messages()
        found = await status(s, 4)
    assert (found["is_healthy"], found["problems"], found["warnings"]) == (True, [], [])
    assert found["policy"]["is_current"] is True
    assert found["recent"]["requests"] == 4
    assert found["recent"]["cache_hit_share"] == 0.75
    assert found["recent"]["lanes"] == {"haiku": {"ok": 1}}
    assert found["recent"]["overhead_p50_s"] > 0
    assert found["money"]["hour"] == found["money"]["day"]
    assert found["money"]["day"]["requests"] == 4
    assert found["money"]["day"]["saved_usd"] > 0
    assert (found["cache"]["kind"], found["cache"]["entries"]) == ("memory", 1)
    assert found["upstream"]["opened"] == 1
    assert found["traces"]["dropped"] == 0
    assert found["redis"] == {}


async def test_a_refused_edit_is_a_problem_with_its_next_step():
    """What is on disk is not what serves."""
    async with stage() as s:
        s.write_policy("version: 1\nrules: [\n")
        assert not await s.app.policies.reload()
        found = await status(s)
        assert not found["is_healthy"]
        (problem,) = found["problems"]
        assert "refused" in problem["what"]
        assert "router policy check" in problem["next"]
        assert found["policy"]["is_current"] is False
        assert found["policy"]["last_error_at"].startswith("20")


async def test_a_lane_that_fails_is_named():
    """With how its attempts ended; requests that another lane served are no errors."""
    async with stage(answers(error("529 Overloaded", "overloaded_error")), policy=always(route="opus")) as s:
        for _ in range(10):
            assert (await s.messages()).status == 529
        found = await status(s, 10)
    said = [problem["what"] for problem in found["problems"]]
    assert "10 of the last 10 requests failed" in said
    assert any(what.startswith("lane `as-asked` answered 0 of 10 attempts: 10 overloaded") for what in said)
    assert any(what.startswith("lane `opus` answered 0 of ") for what in said)
    assert {each["lane"]: each["opened"] > 0 for each in found["breakers"]} == {"opus": True, "as-asked": True}


async def test_items_of_batches_hide_no_outage():
    """A thousand of them, fetched while every request fails: the requests are what is looked at (F30)."""
    item = message()
    lines = [json.dumps({"custom_id": f"i{n}", "result": {"type": "succeeded", "message": json.loads(item)}}).encode()
             for n in range(1_000)]  # fmt: skip
    fetched = http(b"\n".join(lines), kind="application/x-jsonl")
    failed = error("529 Overloaded", "overloaded_error")

    async def behave(peer: Peer) -> None:
        while True:
            request = await peer.request()
            peer.send(fetched if request.line.startswith(b"GET") else failed)

    async with stage(behave, policy=always(route="opus")) as s:
        for _ in range(10):
            assert (await s.messages()).status == 529
        assert (await s.request("GET", "/v1/messages/batches/b/results")).status == 200
        found = await status(s, 11)
    assert "10 of the last 11 requests failed" in [problem["what"] for problem in found["problems"]]
    assert (found["recent"]["requests"], found["recent"]["errors"]) == (11, 10)


def test_items_of_batches_are_in_no_figure_of_the_last_minutes_but_the_unknown():
    """They were worked on elsewhere, and earlier."""
    recent = RecentTraces(lambda: START_NS)
    recent.write(Trace("a" * 32, START_NS, endpoint="batch_item", outcome="cut", ttft_s=1.0))
    found = recent.figures()
    assert (found["requests"], found["errors"], found["not_ok"], found["ttft_p50_s"]) == (0, 0, {}, None)
    assert found["unknown_cost"] == 1


async def test_a_redis_that_is_away_is_a_problem(redis_server: RedisServer):
    """Requests are served; somebody has to look."""
    async with stage(answers(http(message())), policy=always("cache: {ttl: 1h}"), cache=redis_server.url) as s:
        await s.messages()
        assert (await status(s, 1))["redis"]["redis"]["is_up"] == 1
        redis_server.kill()
        async with asyncio.timeout(20):
            while (found := await status(s))["redis"]["redis"]["is_up"]:
                await s.messages(text="another")
        assert any("Redis does not answer" in problem["what"] for problem in found["problems"])


async def test_without_traces_there_is_a_screen_all_the_same():
    """Money is not known, and no session either."""
    async with stage(traces="off") as s:
        await s.messages()
        found = await status(s, 1)
        assert (found["is_healthy"], found["money"], found["traces"]) == (True, None, None)
        assert (await ask(s, "/session?session=x")).status == 500


async def test_the_status_wants_the_token():
    """Like everything but health."""
    async with stage(admin_token="a long token") as s:
        assert (await ask(s, "/status")).status == 401
        assert (await ask(s, "/session?session=x")).status == 401
        assert (await ask(s, "/status", (b"authorization", b"Bearer a long token"))).status == 200


async def test_a_session_has_its_model_spend_and_saved():
    """Found by the id that the client sends; sub-agents count, other tenants' sessions of that name do not."""
    async with stage(answers(http(message())), policy=always("cache: {ttl: 1h}")) as s:
        for agent in (b"", b"agent-1"):
            await s.messages(SESSION, (b"x-claude-code-agent-id", agent))
        await s.messages(text="no session")
        other = [(b"x-api-key", b"sk-other"), KEY[1], SESSION]
        await s.post(request_body(), other)
        rows = await s.traces()
        tenant, foreign = rows[0]["tenant"], rows[3]["tenant"]
        found = (await ask(s, f"/session?session=4b8f-session-canary&tenant={tenant}")).json()
        assert (found["requests"], found["model"], found["cache_hits"]) == (2, "claude-sonnet-5-5", 1)
        assert found["cost_usd"] == float(rows[0]["cost_usd"])
        assert found["saved_usd"] == pytest.approx(found["baseline_usd"] - found["cost_usd"])
        assert found["session"] == rows[0]["session"] == session_key(tenant, "4b8f-session-canary")
        assert (await ask(s, f"/session?session=4b8f-session-canary&tenant={foreign}")).json()["requests"] == 1
        assert (await ask(s, "/session?session=4b8f-session-canary")).status == 200
        by_hash = (await ask(s, f"/session?conversation={rows[0]['conversation']}")).json()
        assert by_hash["requests"] == 1
        assert (await ask(s, "/session?session=unknown")).status == 404
        listed = (await ask(s, f"/traces?session={found['session']}")).json()["traces"]
        assert len(listed) == 2


async def test_the_id_of_a_session_is_not_stored():
    """Only its hash, even where a rule reads the header."""
    rule = "  - name: a\n    when: {header.x-claude-code-session-id: {exists: true}}\n    route: haiku\n"
    async with stage(policy=f"version: 1\nrules:\n{rule}otherwise: as-asked\n") as s:
        await s.messages(SESSION)
        trace = await s.trace()
        assert trace["rule"] == "a"
        assert "header.x-claude-code-session-id" in trace["facts"]
        assert not [file for file in s.folder.glob("traces*") if b"session-canary" in file.read_bytes()]


@pytest.mark.parametrize(
    "query",
    ["", "session=", "session=a&key=b", "conversation=a&tenant=t", "session=a&since=1h", "key=a&since=soon", "sesion=a",
     "session=" + "x" * 2_001],
)  # fmt: skip
async def test_a_question_that_is_not_understood_is_refused(query: str):
    """400, and what it takes."""
    async with stage() as s:
        assert (await ask(s, f"/session?{query}")).status == 400


async def test_why_the_cache_was_not_asked_is_stored_and_found():
    """In the record, in JSON and as a filter."""
    async with stage(policy=always("cache: {ttl: 1h}")) as s:
        await s.messages((b"x-router-cache", b"no-store"))
        await s.messages()
        reasons = [row["cache_reason"] for row in await s.traces()]
        assert reasons == ["no-store", ""]
        found = (await ask(s, "/traces?cache_reason=no-store")).json()["traces"]
        assert [row["cache"] for row in found] == ["bypass"]
        assert (await ask(s, "/traces?cache_reason=nostore")).status == 400


def a_trace(number: int, **fields: object) -> Trace:
    """A finished request."""
    made = {"trace_id": f"{number:032x}", "started_at_ns": START_NS, "endpoint": "messages", "tenant": "t", **fields}
    return Trace(**made)


def test_the_last_minutes_are_counted_and_older_ones_forgotten():
    """A ring of minutes: nothing adds up for ever."""
    now_ns = START_NS
    recent = RecentTraces(lambda: now_ns)
    for minute in range(2 * MINUTES):
        now_ns = START_NS + minute * MINUTE_NS
        recent.write(a_trace(minute, overhead_s=0.001, ttft_s=0.5, cache="miss", attempts=[Attempt("haiku", "m", 0.0)]))
        recent.figures()
    now_ns += MINUTE_NS // 2
    found = recent.figures()
    assert (found["requests"], found["over_s"]) == (MINUTES, (MINUTES - 1) * 60 + 30.0)
    assert found["lanes"] == {"haiku": {"ok": MINUTES}}
    assert found["overhead_p95_s"] == pytest.approx(0.001, rel=0.06)
    assert found["ttft_p50_s"] == pytest.approx(0.5, rel=0.06)
    now_ns += 60 * MINUTE_NS
    assert recent.figures()["requests"] == 0
    assert recent.figures()["overhead_p50_s"] is None


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_quantiles_are_right_to_five_per_cent(share: float):
    """Against the values themselves."""
    recent = RecentTraces(lambda: START_NS)
    values = [0.0001 * 1.003**number for number in range(2_000)]
    for number, value in enumerate(values):
        recent.write(a_trace(number, overhead_s=value))
    found = recent.figures()[f"overhead_p{share * 100:.0f}_s"]
    assert found == pytest.approx(values[int(share * 2_000)], rel=0.06)


def test_an_error_is_what_is_not_the_clients_doing():
    """A refused request and a client that left are not the router's to mend."""
    recent = RecentTraces(lambda: START_NS)
    for number, outcome in enumerate(
        ("ok", "client_error", "client_closed", "upstream_error", "cut", "internal_error")
    ):
        recent.write(a_trace(number, outcome=outcome))
    found = recent.figures()
    assert (found["requests"], found["errors"], sum(found["not_ok"].values())) == (6, 3, 5)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A store with many sessions."""
    path = tmp_path / "t.db"
    sink = SqliteTraceSink(path)
    for number in range(20_000):
        tenant = f"t{number % 7}"
        sink.write(a_trace(number, tenant=tenant, session=session_key(tenant, f"s{number % 100}"), key=f"k{number % 3}",
                           cost_pusd=10**9, baseline_pusd=3 * 10**9, started_at_ns=START_NS + number))  # fmt: skip
    assert sink.flush(30)
    sink.close()
    return path


def test_a_session_is_found_without_reading_the_store(large: Path):
    """Through an index: the question is asked again and again."""
    sessions = Sessions(large)
    found = sessions.of_session("s5")
    assert found is not None
    assert found["requests"] in (28, 29)
    assert json.loads(json.dumps(found, default=str))["saved_share"] == 0.6667
    assert sessions.of_session("s5", "t1")["requests"] in (28, 29)
    assert sessions.of_session("s5", "nobody") is None
    assert sessions.of_key("k1", START_NS)["requests"] in (6_666, 6_667)
    assert sessions.of_key("k1", START_NS + 19_000)["requests"] < 400
