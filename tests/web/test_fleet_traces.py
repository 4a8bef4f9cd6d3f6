"""The fleet's recent traces: two routers and one Redis, the list, one trace and the tail of both on either of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

import orjson
import pytest
from click.testing import CliRunner
from kit.page import a_browser, a_request, a_tab
from kit.redis_server import RedisServer, becomes
from kit.stage import WAIT_S, Stage, Wire, always, stage

import router.fleet_traces
from router.cli.main import cli
from router.cli.trace_fleet import follow_fleet
from router.redis_link import RedisLink
from router.trace.fleet import KEY as STREAM
from router.trace.fleet import FleetTraces
from router.trace.fleet_read import FleetReader
from router.trace.record import TraceQuery

pytestmark = pytest.mark.anyio
Named = Callable[..., Any]


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Named:
    """A stage under a name of its own, in the fleet of a Redis."""

    @asynccontextmanager
    async def run(name: str, redis: RedisServer, *behave: Any, **settings: Any) -> AsyncIterator[Stage]:
        monkeypatch.setattr(router.fleet_traces, "pod_name", lambda: name)
        settings = {"fleet": redis.url, "cache": "off", **settings}
        async with stage(*behave, **settings) as s:
            yield s

    return run


async def asked(s: Stage, path: str) -> Any:
    status, body = await raw(s, path)
    assert status == 200, body
    return body


async def raw(s: Stage, path: str) -> tuple[int, Any]:
    wire = Wire(*await asyncio.open_connection("127.0.0.1", s.admin_port, limit=1 << 24))
    wire.send("GET", path, [(b"connection", b"close")], None, b"127.0.0.1")
    reply = await wire.reply()
    await wire.close()
    return reply.status, reply.json()


async def listed(s: Stage, count: int) -> Any:
    """The list of the fleet once it has so many rows: a request ends for its client before it is booked."""
    async with asyncio.timeout(WAIT_S):
        while True:
            status, found = await raw(s, "/traces?fleet=1")
            if status == 200 and len(found["traces"]) == count:
                return found


def figures(s: Stage) -> Any:
    assert s.app.stores.fleet_traces is not None
    return s.app.stores.fleet_traces.stats()


def link_of(redis: RedisServer) -> RedisLink:
    return RedisLink(redis.url, deadline_s=1.0)


async def test_either_pod_shows_the_requests_of_both(redis_server: RedisServer, named: Named) -> None:
    """Newest first, each with its pod; filters apply; without `fleet=1` a pod shows its own."""
    async with named("pod-a", redis_server, policy=always()) as a, named("pod-b", redis_server) as b:
        await a.messages(text="one")
        await listed(a, 1)
        await b.messages(text="two")
        found = await listed(a, 2)
        assert [row["pod"] for row in found["traces"]] == ["pod-b", "pod-a"]
        assert (found["next"], found["fleet"]["pod"], found["fleet"]["held"]) == (None, "pod-a", 2)
        assert {row["rule"] for row in (await asked(b, "/traces?fleet=1&rule=always"))["traces"]} == {"always"}
        assert [row["pod"] for row in (await asked(a, "/traces?fleet=1&model=claude-sonnet-5-5"))["traces"]] == [
            "pod-b"
        ]
        own = await asked(a, "/traces")
        assert len(own["traces"]) == 1
        assert "pod" not in own["traces"][0]
        assert (await asked(a, "/fleet"))["pod"] == "pod-a"


async def test_a_trace_of_another_pod_is_shown_as_that_pod_shows_it(redis_server: RedisServer, named: Named) -> None:
    """By any of its ids; the same fields and money, and whose it is; another pod says that it is not here."""
    async with named("pod-a", redis_server, policy=always()) as a, named("pod-b", redis_server) as b:
        await a.messages(text="secret words")
        [row] = (await listed(b, 1))["traces"]
        whole = await asked(a, f"/traces/{row['trace_id']}")
        whole["attempts"] = [{**each, "usage": None} for each in whole["attempts"]]
        for some_id in (row["trace_id"], row["trace_id"][:10], row["request_id"]):
            found = await asked(b, f"/traces/{some_id}?fleet=1")
            assert (found["pod"], found["is_here"]) == ("pod-a", False)
            assert {name: found[name] for name in whole} == whole
        assert (await raw(b, f"/traces/{row['trace_id']}"))[0] == 404
        status, body = await raw(b, "/traces/ffffffffffff?fleet=1")
        assert (status, "10,000" in body["error"]["message"]) == (404, True)
    assert b"secret words" not in redis_server.say("XRANGE", STREAM, "-", "+")


async def test_the_tail_follows_both_pods_and_goes_on_from_its_mark(redis_server: RedisServer, named: Named) -> None:
    """Each request once, as it ends; after a lost connection from the last mark; filters apply."""
    async with named("pod-a", redis_server) as a, named("pod-b", redis_server) as b:

        async def events(last: str | None = None, query: str = "") -> AsyncGenerator[tuple[str, str, Any]]:
            reader, writer = await asyncio.open_connection("127.0.0.1", a.admin_port)
            with closing(writer):
                wire = Wire(reader, writer)
                mark = [] if last is None else [(b"last-event-id", last.encode())]
                wire.send("GET", f"/events?fleet=1{query}", mark, None, b"127.0.0.1")
                assert (await wire.head())[0] == 200
                text = b""
                while True:
                    text += await wire.chunk()
                    *whole, text = text.split(b"\n\n")
                    for event in whole:
                        said = dict(line.split(": ", 1) for line in event.decode().split("\n") if ": " in line)
                        yield said.get("id", ""), said.get("event", ""), json.loads(said.get("data", "{}"))

        coming = events()
        assert (await anext(coming))[1] == "ready"
        await a.messages(text="one")
        await listed(a, 1)
        await b.messages(text="two")
        first, second = await anext(coming), await anext(coming)
        assert [each[2]["pod"] for each in (first, second)] == ["pod-a", "pod-b"]
        again = events(first[0])
        assert [(await anext(again))[1], (await anext(again))[2]["pod"]] == ["ready", "pod-b"]
        redis_server.say("XTRIM", STREAM, "MAXLEN", "1")
        gone = events("1-1", "&outcome=cut")
        assert [(await anext(gone))[1] for _ in range(2)] == ["ready", "gap"]
        for each in (coming, again, gone):
            await each.aclose()


async def test_requests_do_not_notice_that_redis_is_gone_or_frozen(redis_server: RedisServer, named: Named) -> None:
    """They are answered at once; traces wait, and are there when Redis is back; the page says what is wrong."""
    async with named("pod-a", redis_server) as a:
        await a.messages(text="before")
        await listed(a, 1)
        redis_server.freeze()
        async with asyncio.timeout(1.0):
            for _ in range(5):
                assert (await a.messages(text="during")).status == 200
        await becomes(lambda: figures(a)["retries"] >= 1)
        assert figures(a)["queued"] == 5
        status, body = await raw(a, "/traces?fleet=1")
        assert (status, "Redis" in body["error"]["message"]) == (500, True)
        assert len((await asked(a, "/traces"))["traces"]) == 6
        redis_server.thaw()
        await listed(a, 6)
        await becomes(lambda: figures(a)["queued"] == 0)  # a batch that was frozen on its way is written again
        redis_server.kill()
        assert (await a.messages(text="after")).status == 200
        redis_server.start()  # empty: what it had is gone, and what waits is written
        await listed(a, 1)
        assert (figures(a)["dropped"], figures(a)["failed"], figures(a)["written"]) == (0, 0, 7)


async def test_what_redis_does_not_take_is_kept_as_far_as_there_is_room(idle_redis_server: RedisServer) -> None:
    """The oldest go, each is counted, and handed over is queued, written, dropped and failed together."""
    traces = FleetTraces(link_of(idle_redis_server), "p", queue_max=100, interval_s=0.01)
    for number in range(150):
        traces.write(a_request(number))
    traces.write(None)  # type: ignore[arg-type]  # an odd record
    await traces.flush(5.0)
    assert (traces.stats()["queued"], traces.stats()["dropped"]) == (100, 51)
    idle_redis_server.start()
    await becomes(lambda: traces.stats()["written"] == 99)
    assert traces.stats()["failed"] == 1
    found = await FleetReader(traces).page(TraceQuery(limit=200))
    assert [row["request_id"] for row in found.rows] == [f"req_{number:06d}" for number in range(149, 50, -1)]
    idle_redis_server.kill()
    traces.write(a_request(1))
    await traces.stop(0.5)
    traces.write(a_request(2))
    assert (traces.stats()["queued"], traces.stats()["dropped"]) == (0, 53)
    await traces.link.close()


async def test_a_key_of_somebody_else_is_left_alone_and_said(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says it once; what waits is written when the key is free again."""
    redis_server.say("SET", STREAM, "mine")
    traces = FleetTraces(link_of(redis_server), "p", interval_s=0.01)
    traces.write(a_request(1))
    await becomes(lambda: traces.stats()["retries"] == 2)
    assert redis_server.say("GET", STREAM) == b"$4\r\nmine\r\n"
    assert [record.message.split(":")[1] for record in caplog.records] == [" Redis does not take traces"]
    redis_server.say("DEL", STREAM)
    await becomes(lambda: traces.stats()["written"] == 1)
    await traces.stop()
    await traces.link.close()


async def test_the_stream_keeps_its_bounds(redis_server: RedisServer) -> None:
    """So many rows and a few more, none older than a week, nothing for ever; pages lead through all that is held."""
    redis_server.say("XADD", STREAM, "1-1", "t", "{}")
    traces = FleetTraces(link_of(redis_server), "p", most=500, interval_s=60.0)
    for number in range(1_500):
        traces.write(a_request(number))
    await traces.flush(10.0)
    assert traces.stats()["written"] == 1_500
    held = int(redis_server.say("XLEN", STREAM)[1:])
    assert 500 <= held <= 700
    assert 0 < int(redis_server.say("PTTL", STREAM)[1:]) <= 7 * 86_400_000
    reader, mark, ids = FleetReader(traces), None, []
    while True:
        found = await reader.page(TraceQuery(limit=200), mark)
        ids += [row["request_id"] for row in found.rows]
        mark = found.mark
        if mark is None:
            break
    assert ids == [f"req_{number:06d}" for number in range(1_499, 1_499 - held, -1)]
    assert (await reader.page(TraceQuery(rule="no such"))).rows == []
    await traces.stop()
    await traces.link.close()


async def test_a_question_that_takes_too_long_stops_and_leads_on(redis_server: RedisServer) -> None:
    """With a mark from which the next one goes on."""
    traces = FleetTraces(link_of(redis_server), "p", interval_s=60.0)
    for number in range(200):
        traces.write(a_request(number))
    await traces.flush(5.0)
    reader, mark, looks = FleetReader(traces, limit_s=0.0), None, 0
    while True:
        found = await reader.page(TraceQuery(rule="no such"), mark)
        looks, mark = looks + 1, found.mark
        assert found.is_cut is (mark is not None)
        if mark is None:
            break
    assert looks >= 3
    await traces.stop()
    await traces.link.close()


async def test_rows_of_other_versions_and_rubbish_are_no_harm(redis_server: RedisServer, named: Named) -> None:
    """Unknown fields are passed over, what is no row is counted, a row written twice is shown once."""
    row = {"v": 7, "trace_id": "c" * 32, "started_at_ns": 5, "pod": "new", "hologram": 1, "rule": "<b>", "status": []}
    async with named("pod-a", redis_server) as a:
        for value in ("no json", "[]", "x" * 9_000, orjson.dumps(row).decode(), orjson.dumps(row).decode()):
            redis_server.say("XADD", STREAM, "*", "t", value)
        redis_server.say("XADD", STREAM, "*", "other", "field")
        [found] = (await asked(a, "/traces?fleet=1"))["traces"]
        assert (found["pod"], found["rule"], found["status"], found["cost_usd"]) == ("new", "<b>", 0, None)
        assert figures(a)["unreadable"] == 4


@pytest.mark.parametrize("path", ["/traces?fleet=2", "/traces?fleet=1&before=x", "/traces?fleet=1&colour=red",
                                  "/traces?fleet=1&fleet=1", "/events?fleet=1&rule=a&rule=b"])  # fmt: skip
async def test_what_cannot_be_understood_is_refused(redis_server: RedisServer, named: Named, path: str) -> None:
    """With the name of what was wrong."""
    async with named("pod-a", redis_server) as a:
        status, body = await raw(a, path)
        assert (status, body["error"]["code"]) == (400, "R502")


async def test_without_a_fleet_the_page_says_what_to_set(redis_server: RedisServer) -> None:
    """No Redis, or `fleet_traces: off`: nothing is written, and the answer names the settings."""
    for settings in ({"cache": "off"}, {"fleet": redis_server.url, "fleet_traces": "off"}):
        async with stage(**settings) as s:
            await s.messages(text="one")
            status, body = await raw(s, "/traces?fleet=1")
            assert (status, "`fleet`" in body["error"]["message"]) == (500, True)
            assert (await asked(s, "/fleet")) == {"pod": None}
    assert redis_server.say("EXISTS", STREAM) == b":0\r\n"


async def test_the_command_line_lists_and_follows_the_fleet(redis_server: RedisServer, named: Named) -> None:
    """With the pod in a column of its own; a Redis that is away is said in words."""
    async with named("pod-a", redis_server, policy=always()) as a:
        await a.messages(text="one")
        await listed(a, 1)
        ls = ["trace", "ls", "--fleet", redis_server.url, "--rule", "always"]
        said = (await asyncio.to_thread(CliRunner().invoke, cli, ls)).output.splitlines()
        assert [line.split()[-1] for line in said] == ["POD", "pod-a"]
        loop, followed = asyncio.get_running_loop(), asyncio.Event()

        def take(row: dict[str, Any]) -> None:
            assert row["pod"] == "pod-a"
            loop.call_soon_threadsafe(followed.set)
            raise InterruptedError

        following = asyncio.ensure_future(
            asyncio.to_thread(follow_fleet, redis_server.url, TraceQuery(limit=100), take, 0.01)
        )
        async with asyncio.timeout(WAIT_S):
            while not followed.is_set():  # it shows what comes after it began, so requests go on coming
                await a.messages(text="more")
        with pytest.raises(InterruptedError):
            await following
    redis_server.kill()
    failed = await asyncio.to_thread(CliRunner().invoke, cli, ls)
    assert (failed.exit_code, "cannot be read" in failed.output) == (1, True)


async def test_the_page_shows_the_fleet(redis_server: RedisServer, named: Named) -> None:
    """The switch, the rows with their pods as text, the note, a request of another pod, what comes live, and a gap."""
    nasty = "<img src=x onerror=globalThis.pwned=1>"
    async with named("pod-a", redis_server, policy=always()) as a, named(nasty, redis_server) as b:
        await a.messages(text="one")
        await listed(a, 1)
        await b.messages(text="two")
        await listed(a, 2)
        loop = asyncio.get_running_loop()
        say = lambda: asyncio.run_coroutine_threadsafe(b.messages(text="three"), loop).result(WAIT_S)  # noqa: E731
        await asyncio.to_thread(look, f"http://127.0.0.1:{a.admin_port}", nasty, say, redis_server)


def look(url: str, nasty: str, say: Callable[[], Any], redis: RedisServer) -> None:
    with a_browser() as browser, a_tab(browser) as page:
        from playwright.sync_api import expect

        page.goto(url)
        expect(page.locator("#rows tr")).to_have_count(1)
        page.get_by_role("button", name="Fleet").click()
        page.wait_for_url("**/?fleet=1")
        expect(page.locator("#rows tr")).to_have_count(2)
        expect(page.locator("#rows tr small.pod")).to_have_text([f" {nasty}", " pod-a"])
        expect(page.locator("#fleet-note")).to_contain_text("The last 2 requests of all routers, since")
        expect(page.locator("#totals")).to_be_hidden()
        say()
        expect(page.locator("#rows tr")).to_have_count(3)
        page.locator("#rows tr td.took").first.click()
        expect(page.locator("#panel .home")).to_contain_text(f"Served by {nasty}")
        expect(page.locator("#panel")).not_to_contain_text("The same request today")
        page.reload()
        expect(page.locator("#panel .home")).to_contain_text(f"Served by {nasty}")
        page.keyboard.press("Escape")
        note = page.locator("#fleet-note")
        expect(note).not_to_contain_text("missing")
        redis.say("DEL", STREAM)
        redis.say("XADD", STREAM, "1-0", "t", "{}")  # Redis lost the stream: its marks are lower than before
        expect(note).to_contain_text("some are missing here")
        page.get_by_role("button", name="This router").click()
        expect(page.locator("#rows tr")).to_have_count(1)
        expect(page.locator("#fleet-note")).to_be_hidden()
        assert page.evaluate("() => globalThis.pwned === undefined && document.images.length === 1")
