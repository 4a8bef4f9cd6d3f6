"""The reading process behind a whole router: what a client meets when it dies, cannot be started, or is stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from functools import partial

import pytest
from kit.page import a_request
from kit.stage import Reply, Stage, Wire, stage, until

import router.app
import router.trace.asking
from router.trace.asking import Answer, Question
from router.trace.reader_child import ProcessDesk

pytestmark = pytest.mark.anyio


async def opened(s: Stage, path: str) -> Wire:
    """A question to the admin listener that has been sent."""
    wire = Wire(*await asyncio.open_connection("127.0.0.1", s.admin_port, limit=1 << 24))
    s.wires.append(wire)
    wire.send("GET", path, [], None, f"127.0.0.1:{s.admin_port}".encode())
    return wire


async def ask(s: Stage, path: str) -> Reply:
    return await (await opened(s, path)).reply()


async def test_a_reader_that_dies_costs_the_page_one_answer_at_the_most():
    """Requests go on, the page finds what they left, and the metrics tell of it."""
    async with stage() as s:
        await s.messages()
        await s.trace()
        assert len((await ask(s, "/traces")).json()["traces"]) == 1
        assert s.app.desk is not None
        first = s.app.desk.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: s.app.desk.stats()["died"] == 1)
        assert (await s.messages()).status == 200
        async with asyncio.timeout(10):
            while len((await ask(s, "/traces")).json()["traces"]) < 2:  # a request ends for its client before its books
                pass
        assert s.app.desk.pid not in (None, first)
        text = (await ask(s, "/metrics")).body.decode()
        assert 'router_trace_reader{stat="died"} 1.0' in text
        assert 'router_trace_reader{stat="started"} 2.0' in text


async def test_a_client_that_leaves_an_export_ends_it():
    """Nothing is read for nobody, and its seat is free."""
    async with stage() as s:
        assert s.app.traces is not None
        assert s.app.desk is not None
        for number in range(8_000):
            s.app.traces.write(a_request(number, facts=None, why=(), labels=None, spans=[], attempts=[]))
        assert await asyncio.to_thread(s.app.traces.flush, 30.0)
        for _ in range(3):  # more than there are seats
            export = await opened(s, "/export?format=csv")
            assert (await export.head())[0] == 200
            assert (await export.chunk()).startswith(b"trace_id,")
            await export.close()
        await until(lambda: s.app.desk.stats()["under_way"] == 0)
        assert s.app.desk.stats()["questions"] < 3 * 8  # so many would have been asked for all three
        assert (await ask(s, "/traces?limit=1")).status == 200


async def test_where_no_process_can_be_started_the_page_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """In the log once, on the screen of the status, in the metrics."""
    monkeypatch.setattr(router.app, "ProcessDesk", partial(ProcessDesk, command=("/nonexistent",)))
    async with stage() as s:
        await s.messages()
        await s.trace()
        assert len((await ask(s, "/traces")).json()["traces"]) == 1
        found = (await ask(s, "/status")).json()
        assert found["money"]["day"]["requests"] == 1
        assert [note["what"] for note in found["warnings"] if "no process" in note["what"]]
        assert 'router_trace_reader{stat="is_refused"} 1.0' in (await ask(s, "/metrics")).body.decode()
    assert caplog.text.count("no process of its own can be started") == 1


async def test_a_router_stops_while_its_reader_is_stopped():
    """It is killed then; the router does not wait for it."""
    async with stage() as s:
        await s.messages()
        assert (await ask(s, "/traces")).status == 200
        assert s.app.desk is not None
        pid = s.app.desk.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_reader_that_dies_in_the_middle_of_an_export_does_not_tear_it(monkeypatch: pytest.MonkeyPatch):
    """The page that was under way is asked for again: every request is there, and once."""

    deaths = iter([signal.SIGKILL])

    class Mortal(ProcessDesk):
        async def ask(self, question: Question) -> Answer:
            is_following = question.name == "sheet" and not question.args["is_first"]
            for death in deaths if is_following else ():
                assert self.pid is not None
                os.kill(self.pid, death)
            return await super().ask(question)

    monkeypatch.setattr(router.app, "ProcessDesk", Mortal)
    async with stage() as s:
        assert s.app.traces is not None
        for number in range(1_200):
            s.app.traces.write(a_request(number, facts=None, why=(), labels=None, spans=[], attempts=[]))
        assert await asyncio.to_thread(s.app.traces.flush, 30.0)
        export = (await ask(s, "/export?format=ndjson")).body.splitlines()
        assert len({json.loads(line)["trace_id"] for line in export}) == len(export) == 1_200
        await until(lambda: s.app.desk.stats()["died"] == 1)  # counted when it is buried, some time after its last word
        assert s.app.desk.stats()["started"] == 2


async def test_what_was_traced_is_written_while_the_reader_ends(monkeypatch: pytest.MonkeyPatch):
    """A reader that will not end must not take the time that a router has to stop."""
    is_written = asyncio.Event()

    class Slow(ProcessDesk):
        async def close(self) -> None:
            async with asyncio.timeout(10):
                await is_written.wait()
            await super().close()

    monkeypatch.setattr(router.app, "ProcessDesk", Slow)
    async with stage() as s:
        await s.messages()
        assert (await ask(s, "/traces")).status == 200
        close, loop = s.app.traces.close, asyncio.get_running_loop()

        def closing() -> None:
            close()
            loop.call_soon_threadsafe(is_written.set)

        monkeypatch.setattr(s.app.traces, "close", closing)
    assert is_written.is_set()


async def test_the_screen_of_the_status_comes_although_nobody_reads_the_store(monkeypatch: pytest.MonkeyPatch):
    """Without money, with the reason and what to do; as on a core that is full for longer than anybody looks."""
    monkeypatch.setattr(router.app, "ProcessDesk", partial(ProcessDesk, grace_s=0.05))
    monkeypatch.setattr(router.trace.asking, "WALL_ON_SCREEN_S", 0.05)
    async with stage() as s:
        await s.messages()
        assert (await ask(s, "/traces")).status == 200
        assert s.app.desk is not None
        assert s.app.desk.pid is not None
        os.kill(s.app.desk.pid, signal.SIGSTOP)
        found = (await ask(s, "/status")).json()
        assert found["money"] is None
        (problem,) = found["problems"]
        assert problem["what"] == "the trace store cannot be asked: the question was not answered within 0.05 s"
        assert "ask again" in problem["next"]
