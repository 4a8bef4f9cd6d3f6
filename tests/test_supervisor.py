"""Several workers behind one socket: who crashes or hangs is replaced, who stood still with all others is not."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import asynccontextmanager, contextmanager

import pytest
from kit.processes import router
from kit.raw_upstream import raw_upstream
from kit.stage import AS_ASKED, SSE_HEAD, WAIT_S, answers, chunked, events, http, message

from router.settings import Settings
from router.supervisor import StartFailed, Supervisor

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="signals and inherited sockets are of Unix"),
]

# A worker that costs no start: it speaks the supervisor's words and does as the test says. `turn` counts starts.
PROGRAM = """
import faulthandler, os, signal, socket, sys, time
from pathlib import Path
end = socket.socket(fileno=int(sys.argv[-3]))
faulthandler.register(signal.SIGUSR1, file=int(sys.argv[-1]), all_threads=False)
while not end.recv(1 << 20).endswith(b"\\n"):
    pass
note = Path(sys.argv[1])
with note.open("a") as file:
    file.write("x")
turn = note.stat().st_size

def serve():
    end.sendall(b"ready\\n")
    end.settimeout(0.1)
    while True:
        end.sendall(b"beat\\n")
        try:
            if not end.recv(100).startswith(b"reload"):
                raise SystemExit(0)
        except TimeoutError:
            pass

def stand_still():
    end.sendall(b"ready\\n")
    time.sleep(1_000)
"""


@asynccontextmanager
async def supervised(folder, does, *, workers=1, python=sys.executable, **settings):
    """A supervisor over workers of the program above; yields it and its task once the first is ready."""
    (folder / "worker.py").write_text(f"{PROGRAM}\n{does}\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [str(python), str(folder / "worker.py"), str(folder / "turns")]
        supervisor = Supervisor(Settings(workers=workers, **settings), listener, command)
        is_up = asyncio.Event()
        running = asyncio.ensure_future(supervisor.run(is_up.set))
        up = asyncio.ensure_future(is_up.wait())
        await asyncio.wait({up, running}, timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        try:
            yield supervisor, running
        finally:
            if not running.done():
                supervisor.drain()
                assert await asyncio.wait_for(running, WAIT_S) == 0


async def until(holds):
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - processes end without telling this test
            await asyncio.sleep(0.01)


async def test_a_worker_that_crashes_is_replaced_and_the_pauses_grow(tmp_path, caplog):
    """F90: the first time at once, then after a pause that doubles; no endless loop without back-off."""
    does = "if turn < 4:\n    end.sendall(b'ready\\n'); os._exit(3)\nserve()"
    async with supervised(tmp_path, does) as (supervisor, _):
        await until(lambda: supervisor.counts["started"] == 4 and supervisor.workers()[0].state == "ready")
        assert supervisor.counts["crashed"] == 3
    pauses = [record.args[-1] for record in caplog.records if "the next starts in" in record.msg]
    assert pauses == [0.0, 0.5, 1.0]
    assert "ended with status 3" in caplog.text


async def test_a_worker_that_stands_still_says_where_and_is_replaced(tmp_path, caplog):
    """F90: the watchdog kills a loop that does not turn, and the log names the place."""
    does = "stand_still() if turn == 1 else serve()"
    async with supervised(tmp_path, does, worker_timeout="1s") as (supervisor, _):
        stuck = supervisor.workers()[0].process.pid
        await until(lambda: any(w.state == "ready" and w.process.pid != stuck for w in supervisor.workers()))
        assert supervisor.counts["hung"] == 1
        assert supervisor.counts["crashed"] == 0
    assert "in stand_still" in caplog.text


def ready_in(supervisor):
    return [worker for worker in supervisor.workers() if worker.state == "ready"]


@contextmanager
def no_descriptors():
    """Whoever opens something in this process gets EMFILE; what is open goes on."""
    import resource

    bounds = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, bounds[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, bounds)


@contextmanager
def moved_away(path):
    """The program is not there: the system refuses the start itself."""
    aside = path.rename(path.with_name("aside"))
    try:
        yield
    finally:
        aside.rename(path)


@pytest.mark.skipif(sys.platform != "linux", reason="the lowest free descriptor is the bound, as Linux has it")
@pytest.mark.parametrize("why", ["no descriptors", "no program"])
async def test_a_worker_whose_successor_cannot_be_spawned_gets_one_later(tmp_path, why):
    """The system refuses the start (EMFILE, ENOENT): it is counted and tried again, and the router is not dead."""
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    async with supervised(tmp_path, "serve()", python=python) as (supervisor, _):
        [worker] = supervisor.workers()
        with no_descriptors() if why == "no descriptors" else moved_away(python):
            if why == "no descriptors":
                assert worker.connect() is None  # a question of the admin listener is no reason to fall over
            worker.process.kill()
            await until(lambda: supervisor.counts["failed_starts"] == 1)
            assert supervisor.workers() == []
        await until(lambda: ready_in(supervisor))
        assert supervisor.counts["crashed"] == 1


async def test_a_worker_that_crashes_during_a_rolling_restart_is_replaced_as_well(tmp_path):
    """The successor that is starting takes the place of another: there are as many as before, then and afterwards."""
    does = f"while turn == 3 and not Path({str(tmp_path / 'go')!r}).exists():\n    time.sleep(0.01)\nserve()"
    async with supervised(tmp_path, does, workers=2) as (supervisor, _):
        await until(lambda: len(ready_in(supervisor)) == 2)
        first, second = supervisor.workers()
        supervisor.roll()
        await until(lambda: (tmp_path / "turns").stat().st_size == 3)  # it has begun, and is the one that waits
        second.process.kill()
        await until(lambda: supervisor.counts["started"] == 4 and len(ready_in(supervisor)) == 2)
        assert first in ready_in(supervisor)  # the successor of the first waits still
        (tmp_path / "go").touch()
        await until(lambda: len(supervisor.workers()) == len(ready_in(supervisor)) == 2 and first.state == "draining")
        assert supervisor.counts == {"started": 4, "crashed": 1, "hung": 0, "rolled": 1, "failed_starts": 0}


async def test_a_worker_that_crashes_while_its_own_successor_starts_is_not_replaced_twice(tmp_path):
    """The successor is the replacement: one more would be one too many."""
    does = f"while turn == 2 and not Path({str(tmp_path / 'go')!r}).exists():\n    time.sleep(0.01)\nserve()"
    async with supervised(tmp_path, does) as (supervisor, _):
        [first] = supervisor.workers()
        supervisor.roll()
        await until(lambda: (tmp_path / "turns").stat().st_size == 2)
        first.process.kill()
        await until(lambda: supervisor.counts["crashed"] == 1)
        (tmp_path / "go").touch()
        await until(lambda: len(ready_in(supervisor)) == 1)
        assert supervisor.counts["started"] == 2


def test_the_pauses_stay_bounded_however_often_a_start_fails():
    """A night of failures must not end in a number too large to wait for."""
    with socket.socket() as listener:
        supervisor = Supervisor(Settings(), listener, ["false"])
        pauses = [supervisor._pause_s() for _ in range(3_000)]
    assert pauses[:4] == [0.0, 0.5, 1.0, 2.0]
    assert set(pauses[8:]) == {30.0}


async def test_what_stood_still_as_a_whole_is_left_alone(tmp_path):
    """F93: the supervisor was stopped too, so it cannot know; a worker that somebody stopped is not killed either."""
    async with supervised(tmp_path, "serve()", worker_timeout="1s") as (supervisor, _):
        [worker] = supervisor.workers()
        os.kill(worker.process.pid, signal.SIGSTOP)
        time.sleep(1.5)  # noqa: ASYNC251 - the supervisor's own loop stands still: that is the case
        await until(lambda: time.monotonic() - worker.beat_s > 1.2)
        os.kill(worker.process.pid, signal.SIGCONT)
        beaten_s = worker.beat_s
        await until(lambda: worker.beat_s > beaten_s)
        assert supervisor.counts["hung"] == 0
        assert supervisor.workers() == [worker]


async def test_a_first_worker_that_cannot_start_ends_it_all_once(tmp_path):
    """Bad settings: its status is the program's, and nobody tries again."""
    async with supervised(tmp_path, "raise SystemExit(2)", workers=3) as (supervisor, running):
        with pytest.raises(StartFailed) as failed:
            await running
        assert failed.value.status == 2
        assert supervisor.counts["started"] == 1


async def test_a_restart_on_request_that_fails_keeps_the_old(tmp_path, caplog):
    """SIGUSR2 on a program that does not start any more: the workers that serve go on."""
    async with supervised(tmp_path, "serve() if turn == 1 else sys.exit(1)") as (supervisor, _):
        old = supervisor.workers()[0]
        supervisor.roll()
        await until(lambda: "rolling restart: given up" in caplog.text)
        assert old in supervisor.workers()
        assert old.state == "ready"


# The installed program


@asynccontextmanager
async def two_workers(folder, behave, **settings):
    async with (
        raw_upstream(behave) as upstream,
        router(folder, upstream.origin, policy=AS_ASKED, cache="memory://", ROUTER_WORKERS="2", **settings) as running,
    ):
        await workers_of(running, 2)
        yield running


async def workers_of(running, count, but=()):
    """The pids of its ready workers, once there are so many and none of `but`."""
    async with asyncio.timeout(WAIT_S * 2):
        while True:
            figures = await running.figures()
            with open(f"/proc/{running.process.pid}/task/{running.process.pid}/children") as file:  # noqa: ASYNC230
                pids = [int(pid) for pid in file.read().split()]
            if figures['router_workers{state="ready"}'] == count and len(pids) == count and not set(pids) & set(but):
                return pids


@pytest.mark.skipif(sys.platform != "linux", reason="children are read from /proc")
async def test_workers_share_a_listener_a_store_and_an_admin_page(tmp_path):
    """Each serves; metrics tell them apart; a kill costs nobody but those it served; USR2 breaks no stream (F96)."""
    go_on = asyncio.Event()
    pieces = events("a")

    async def behave(peer):
        while True:
            request = await peer.request()
            if b'"stream":true' not in request.body:
                peer.send(http(message()))
                continue
            peer.send(SSE_HEAD + chunked(pieces[0]))
            await asyncio.wait_for(go_on.wait(), WAIT_S * 3)
            peer.send(*(chunked(piece) for piece in pieces[1:]), b"0\r\n\r\n")
            return

    async with two_workers(tmp_path, behave) as running:
        assert b'"ready":true' in await running.admin("/readyz")
        first = await workers_of(running, 2)
        os.kill(first[0], signal.SIGKILL)
        assert [(await running.messages()).status for _ in range(4)] == [200] * 4  # none waits for the dead
        second = await workers_of(running, 2, but=first[:1])
        streams = [await running.begin(stream=True) for _ in range(4)]
        for stream in streams:
            assert (await stream.head())[0] == 200
        running.signal(signal.SIGUSR2)
        async with asyncio.timeout(WAIT_S * 2):
            while (await running.figures())['router_worker_events_total{event="rolled"}'] < 2:
                assert (await running.messages()).status == 200
        go_on.set()
        for stream in streams:
            text = b""
            while piece := await stream.chunk():
                text += piece
            assert text == b"".join(pieces)
        await workers_of(running, 2, but=second)
        status = await running.admin("/status")
        assert b'"is_healthy":true' in status
        assert b'"workers":[{' in status
        purged = await running.admin("/cache/purge", {"rule": "x"})
        assert b'"told":2' in purged
        served = len(await running.traces())
    assert served >= 10


@pytest.mark.skipif(sys.platform != "linux", reason="children are read from /proc")
async def test_a_stop_of_all_workers_leaves_nobody_waiting(tmp_path):
    """F87: not ready at once, newcomers refused at once, exit 0; workers whose supervisor was killed end as well."""
    async with two_workers(tmp_path, answers(http(message())), ROUTER_DRAIN_DELAY="off") as running:
        kept = await running.connect()  # holds the end up for a moment
        running.signal(signal.SIGTERM)
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    await (await running.connect()).close()
                except ConnectionError:
                    break
        assert await asyncio.wait_for(running.process.wait(), WAIT_S) == 0
        await kept.close()
        running.is_doomed = True
    async with two_workers(tmp_path, answers(http(message()))) as running:
        pids = await workers_of(running, 2)
        running.signal(signal.SIGKILL)
        await running.process.wait()
        await until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
