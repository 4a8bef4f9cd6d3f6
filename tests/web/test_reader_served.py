"""The reading process behind a whole router: what a client meets when it dies, cannot be started, or is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial

import pytest
from kit.page import a_request
from kit.stage import Reply, Stage, Wire, stage, until

import router.app
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
