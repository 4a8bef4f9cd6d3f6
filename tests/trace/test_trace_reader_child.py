"""The process that reads the store for the page: what it is, how it ends, and what happens when it does not do well."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import uvloop
from kit.page import a_request
from kit.stage import until

from router.errors import BadFilter, TraceStoreError
from router.trace import asking
from router.trace.asking import Answer, Question
from router.trace.frames import MAX_HEAD, Frames
from router.trace.reader_child import ProcessDesk
from router.trace.reader_process import written
from router.trace.record import TraceQuery
from router.trace.schema import COLUMNS
from router.trace.sqlite import SqliteTraceSink

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="the end of another's process is told by Linux alone"),
]

SOME = asking.page(TraceQuery(limit=3))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "t.db"
    sink = SqliteTraceSink(path)
    for number in range(3):
        sink.write(a_request(number))
    assert sink.flush(30)
    sink.close()
    return path


@pytest.fixture
async def desk(store: Path) -> AsyncIterator[ProcessDesk]:
    desk = ProcessDesk(store, steps_back=False)
    yield desk
    await desk.close()


async def a_pid(desk: ProcessDesk) -> int:
    """The process, once it has answered."""
    await desk.ask(SOME)
    assert desk.pid is not None
    return desk.pid


def known_to(pid: int) -> list[str]:
    """The environment and the arguments of a process."""
    return [Path(f"/proc/{pid}/{name}").read_text() for name in ("environ", "cmdline")]


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def ended(pid: int) -> None:
    """Wait until a process has ended."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop.add_reader(process, over.set)
    try:
        await asyncio.wait_for(over.wait(), 10)
    finally:
        loop.remove_reader(process)
        os.close(process)


async def test_it_comes_with_the_first_question_and_takes_what_is_left_over(store: Path) -> None:
    """One process for all questions, of the lowest priority, in the router's session and not in its group."""
    desk = ProcessDesk(store)
    assert (desk.pid, desk.stats()["started"]) == (None, 0)
    await asyncio.gather(*(desk.ask(asking.one("x")) for _ in range(5)))
    pid = await a_pid(desk)
    assert desk.stats() == {
        "under_way": 0, "is_up": 1, "is_refused": 0, "questions": 6, "started": 1, "died": 0, "killed": 0,
        "start_failures": 0, "in_threads": 0,
    }  # fmt: skip
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH
    assert (os.getsid(pid), os.getpgid(pid)) == (os.getsid(0), pid)
    await desk.close()


async def test_it_knows_no_setting_and_no_secret(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in its environment nor in its arguments (S16)."""
    for name in ("ROUTER_UPSTREAM_API_KEY", "ANTHROPIC_API_KEY", "OTEL_EXPORTER_OTLP_HEADERS"):
        monkeypatch.setenv(name, "sk-canary")
    desk = ProcessDesk(store, steps_back=False)
    pid = await a_pid(desk)
    assert "canary" not in "".join(known_to(pid))
    await desk.close()


def test_it_imports_what_it_needs_to_read_and_no_more() -> None:
    """Its start is what the first answer waits for."""
    code = "import sys, router.trace.reader_process; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"asyncio", "ssl", "starlette", "uvicorn", "anyio", "yaml", "re2", "prometheus_client", "click"}


def test_it_serves_an_uvloop_as_well(store: Path) -> None:
    """The loop that `router serve` runs."""

    async def asked() -> int:
        desk = ProcessDesk(store, steps_back=False)
        answer = await desk.ask(SOME)
        await desk.close()
        return len(answer.body)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(asked()) > 1_000


async def test_one_that_is_killed_is_replaced(
    desk: ProcessDesk, endless: ProcessDesk, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits gets an error at once, the next question an answer."""
    pid = await a_pid(desk)
    os.kill(pid, signal.SIGKILL)
    await ended(pid)
    await until(lambda: desk.stats()["died"] == 1)
    assert await a_pid(desk) != pid
    assert f"process {pid} ended (status -9)" in caplog.text

    under_way = [asyncio.ensure_future(endless.ask(Question("one", {"id": "x"}, "long", 60.0))) for _ in range(3)]
    with pytest.raises(TraceStoreError, match="no question"):
        await endless.ask(Question("x", {}, "quick"))  # handed in after the others
    assert endless.pid is not None
    os.kill(endless.pid, signal.SIGKILL)
    for end in await asyncio.gather(*under_way, return_exceptions=True):
        assert isinstance(end, TraceStoreError)
        assert end.retryable
    with pytest.raises(TraceStoreError, match="no question"):
        await endless.ask(Question("x", {}, "quick"))
    assert endless.stats()["started"] == 2


@pytest.fixture
async def endless(tmp_path: Path) -> AsyncIterator[ProcessDesk]:
    """A desk over a store to which a question has no end."""
    path = tmp_path / "endless.db"
    with sqlite3.connect(path) as connection:
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
        columns = ", ".join(f"i AS {name}" for name in COLUMNS)
        connection.execute(f"CREATE VIEW traces AS {numbers} SELECT i AS seq, {columns} FROM n")
    connection.close()
    desk = ProcessDesk(path, steps_back=False)
    yield desk
    await desk.close()


async def test_one_that_does_not_answer_is_killed(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After the longest that a question may take; who else waits for it gets an error too, the next one an answer."""
    desk = ProcessDesk(store, steps_back=False, grace_s=0.05)
    pid = await a_pid(desk)
    os.kill(pid, signal.SIGSTOP)
    other = asyncio.ensure_future(desk.ask(SOME))
    with pytest.raises(TraceStoreError, match=r"not answered within 0\.05 s"):
        await desk.ask(Question("page", SOME.args, "list", wall_s=0.05))
    with pytest.raises(TraceStoreError, match="has ended"):
        await other
    assert await a_pid(desk) != pid
    await until(lambda: desk.stats()["killed"] == 1)
    assert desk.stats()["died"] == 0
    assert "did not answer in time" in caplog.text
    await desk.close()
    assert not is_there(pid)


async def test_one_that_is_stopped_does_not_hold_up_the_end(store: Path) -> None:
    """It is given a moment to end by itself."""
    desk = ProcessDesk(store, steps_back=False, end_s=0.1)
    pid = await a_pid(desk)
    os.kill(pid, signal.SIGSTOP)
    began_s = time.monotonic()
    await desk.close()
    assert time.monotonic() - began_s < 5
    assert not is_there(pid)


@pytest.mark.parametrize("moments", range(7))
async def test_one_that_is_being_born_does_not_hold_up_the_end(store: Path, moments: int) -> None:
    """Whenever the end comes; who waits for it is told so, and nobody reads in threads of a router that stops."""
    desk = ProcessDesk(store, command=("sleep", "60"))
    asked = asyncio.ensure_future(desk.ask(SOME))
    for _ in range(moments):
        await asyncio.sleep(0)
    began_s = time.monotonic()
    await desk.close()
    assert time.monotonic() - began_s < 5
    with pytest.raises(TraceStoreError, match="the router is stopping") as end:
        await asked
    assert end.value.retryable
    assert (desk.stats()["in_threads"], desk.stats()["start_failures"]) == (0, 0)


async def test_a_question_that_is_too_long_is_the_askers_mistake(desk: ProcessDesk) -> None:
    """The process knows nothing of it."""
    pid = await a_pid(desk)
    with pytest.raises(BadFilter, match="too long"):
        await desk.ask(asking.one("A" * (MAX_HEAD + 1)))
    assert await a_pid(desk) == pid


def test_an_answer_that_is_too_large_is_said_to_be() -> None:
    """It is no bug of the reader."""
    done: Future[Answer] = Future()
    done.set_result(Answer({"request_id": "x" * (MAX_HEAD + 1)}))
    ((head, _),) = Frames().feed(written(7, done))
    assert (head["n"], head["error"]["code"]) == (7, TraceStoreError.code)
    assert "too large" in head["error"]["message"]


async def test_it_starts_whatever_stands_in_the_search_path(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The import system leaves out what is no text, and so does what the process is told."""
    monkeypatch.setattr(sys, "path", [*sys.path, Path("/nowhere"), None])
    desk = ProcessDesk(store, steps_back=False)
    await a_pid(desk)
    assert desk.stats()["start_failures"] == 0
    await desk.close()


async def test_it_ends_when_nobody_asks_any_more(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Quietly; the next question starts another."""
    desk = ProcessDesk(store, steps_back=False, idle_s=0.01)
    pid = await a_pid(desk)
    await ended(pid)
    await until(lambda: not is_there(pid))
    assert (desk.pid, desk.stats()["is_up"], caplog.text) == (None, 0, "")
    assert await a_pid(desk) != pid
    await desk.close()
    assert (desk.stats()["started"], desk.stats()["died"]) == (2, 0)


def test_it_ends_with_the_router_however_that_ends(store: Path) -> None:
    """A router that is killed leaves no process behind, not even one in the middle of a question."""
    code = f"""
        import asyncio, signal
        from router.trace import asking
        from router.trace.reader_child import ProcessDesk
        from router.trace.record import TraceQuery
        async def main():
            desk = ProcessDesk({str(store)!r})
            await desk.ask(asking.page(TraceQuery()))
            print(desk.pid, flush=True)
            await asyncio.Event().wait()
        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True) as router:
        assert router.stdout is not None
        child = os.pidfd_open(int(router.stdout.readline()))
        try:
            router.kill()
            assert select.select([child], [], [], 10)[0]
        finally:
            os.close(child)


BROKEN = {
    "it is not there": ("/nonexistent/python",),
    "its name is no name": (sys.executable, "-c", "\0"),
    "it ends at once": (sys.executable, "-c", "raise SystemExit(3)"),
    "it says what makes no sense": (sys.executable, "-c", "import os; os.write(0, b'HTTP/1.1 400 Bad Request')"),
    "it says nothing": (sys.executable, "-c", "import os; os.read(0, 1)"),
}


@pytest.mark.parametrize("command", BROKEN.values(), ids=BROKEN)
async def test_where_none_can_be_started_threads_answer(
    store: Path, command: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Said once and counted; tried again later."""
    is_silent = command[-1].endswith("os.read(0, 1)")
    desk = ProcessDesk(store, command=command, start_s=0.3 if is_silent else 15.0)
    answers = await asyncio.gather(*(desk.ask(SOME) for _ in range(3)))
    assert len({answer.body for answer in answers}) == 1
    assert (await desk.ask(SOME)).body == answers[0].body
    stats = desk.stats()
    assert (stats["in_threads"], stats["start_failures"], stats["is_refused"], stats["is_up"]) == (4, 1, 1, 0)
    assert caplog.text.count("no process of its own") == 1
    await desk.close()


async def test_a_start_that_failed_is_tried_again(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was short when it failed may be there again."""
    program = tmp_path / "python"
    desk = ProcessDesk(
        store,
        command=(str(program), "-P", "-m", "router.trace.reader_process", str(store)),
        retry_s=0.0,
        steps_back=False,
    )
    await desk.ask(SOME)
    assert desk.stats()["is_refused"] == 1
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    await a_pid(desk)
    assert (desk.stats()["is_refused"], desk.stats()["in_threads"], desk.stats()["started"]) == (0, 1, 1)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    await desk.close()


def test_by_hand_it_says_what_it_is() -> None:
    """And what to use instead."""
    command = [sys.executable, "-m", "router.trace.reader_process", "x.db"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "router trace" in ended.stderr
