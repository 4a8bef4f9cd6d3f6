"""What is watched: the memory limit of the control group, and the event loop under real work (F92, F54)."""

from __future__ import annotations

import asyncio
import json
import os
import time
from math import inf
from pathlib import Path

import pytest
from kit.raw_upstream import Peer
from kit.stage import Wire, http, message, request_body, stage, until

from router.cgroup import CgroupMemory, Pressure, find_memory
from router.log import FailureLog
from router.overload import Overload
from router.serve.admission import Admission, Bounds, Ticket
from router.serve.brake import Brake
from router.web.shed import Shedding

MB = 1_000_000


NAMES = ("memory.max", "memory.current", "inactive_file", "active_file", "slab_reclaimable")
PAGE = os.sysconf("SC_PAGE_SIZE")


def version_2(mount: Path, path: str, limit: str, used: int, files: int = 0, notes: int = 0) -> Path:
    """A folder as the kernel shows a group of version 2."""
    folder = mount / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"anon {used - files}\ninactive_file {files}\nactive_file 0\nslab_reclaimable {notes}\nslab {notes + 7}\n"
    )
    return folder


def resident(tmp_path: Path, own: int) -> Path:
    """What the kernel tells of a process with so many bytes of its own."""
    (tmp_path / "statm").write_text(f"900000 {own // PAGE + 100} 100 1 0 5 0\n")
    return tmp_path / "statm"


def group(tmp_path: Path, text: str, own: int = 1000 * MB, processes: int = 1) -> CgroupMemory | None:
    (tmp_path / "proc").write_text(text)
    return find_memory(tmp_path / "proc", tmp_path / "fs", processes, resident(tmp_path, own))


def share(found: CgroupMemory | None) -> float:
    assert found is not None
    pressure = found.look()
    assert pressure is not None
    assert pressure.own == pressure.share
    return pressure.share


def test_the_group_nearest_to_its_limit_counts(tmp_path):
    """Of this group and those above: a pod's limit holds for the container in it."""
    version_2(tmp_path / "fs", "pod/app", "max", 50 * MB)
    version_2(tmp_path / "fs", "pod", str(100 * MB), 90 * MB)
    version_2(tmp_path / "fs", "", str(1000 * MB), 200 * MB)
    assert share(group(tmp_path, "0::/pod/app\n")) == 0.9


def test_pages_of_files_do_not_count(tmp_path):
    """A trace store fills a healthy process's group with pages that the kernel drops when it needs room."""
    version_2(tmp_path / "fs", "", str(100 * MB), 99 * MB, files=60 * MB)
    assert share(group(tmp_path, "0::/\n")) == 0.39


def test_what_the_kernel_notes_about_files_does_not_count(tmp_path):
    """A program beside ours that walks many files fills the group with names and inodes, which are dropped as well."""
    version_2(tmp_path / "fs", "", str(100 * MB), 96 * MB, notes=70 * MB)
    assert share(group(tmp_path, "0::/\n")) == 0.26


def test_a_neighbours_memory_is_near_the_limit_but_not_our_own(tmp_path):
    """Another container of the pod takes nearly all: the group is short, and turning requests away would not help.
    The nearest group that is mostly ours is said beside it; all processes of the router count together."""
    version_2(tmp_path / "fs", "pod/app", str(200 * MB), 90 * MB)
    version_2(tmp_path / "fs", "pod", str(1000 * MB), 960 * MB)
    where = "0::/pod/app\n"
    for own, processes, expected in ((80, 1, 0.45), (30, 1, 0.0), (30, 2, 0.45), (500, 1, 0.96)):
        found = group(tmp_path, where, own * MB, processes)
        assert found is not None
        assert found.look() == Pressure(0.96, expected)
    (tmp_path / "statm").unlink()  # where it is not told whose memory it is, it is taken for ours
    assert found.look() == Pressure(0.96, 0.96)


def test_version_1_and_a_container_that_sees_the_hosts_path(tmp_path):
    """The path of the host is not there; then the mount's root is the container's own group."""
    folder = tmp_path / "fs" / "memory"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("100000000\n")
    (folder / "memory.usage_in_bytes").write_text("95000000\n")
    (folder / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 5000000\ntotal_active_file 0\n")
    assert share(group(tmp_path, "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/docker/abc\n")) == 0.9


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", "0", "nonsense", ""])
def test_no_limit_is_none(tmp_path, limit):
    """Nor does a file that makes no sense, or that is gone, turn anybody away."""
    folder = version_2(tmp_path / "fs", "", limit, 50)
    found = group(tmp_path, "0::/\n")
    assert found is not None
    assert found.look() is None
    (folder / "memory.max").unlink()
    assert found.look() is None


@pytest.mark.parametrize("text", ["", "nonsense", "0::/\n", "3:cpu:/x\n"])
def test_a_system_without_groups_is_not_watched(tmp_path, text):
    """No such files, no check; and where `/proc` is missing too."""
    assert group(tmp_path, text) is None
    assert find_memory(tmp_path / "none", tmp_path / "fs") is None


@pytest.mark.anyio
async def test_short_memory_turns_large_requests_away_then_all_and_says_when_it_is_over(tmp_path, caplog):
    """85 %: large bodies get 529, small ones are served; 92 %: one at a time; back below: all are (F92).

    It is in the log, and while it is so for some seconds the router is not ready. `test_admission.py` has the few.
    """
    caplog.set_level("INFO")
    folder = version_2(tmp_path, "", str(100 * MB), 10 * MB)
    async with stage() as s:
        watch = s.app.overload
        watch._memory = CgroupMemory([(folder, NAMES)], 1, resident(tmp_path, 60 * MB)).look
        watch._memory_every = 1
        small, large = request_body(), request_body("x" * 400_000)

        async def statuses(used: int) -> list[int]:
            version_2(tmp_path, "", str(100 * MB), used)
            await until(lambda: watch.figures()["memory_percent"] == used // MB)
            return [(await s.post(body)).status for body in (small, large)]

        assert await statuses(80 * MB) == [200, 200]
        assert await statuses(86 * MB) == [200, 529]
        assert await statuses(93 * MB) == [200, 529]
        assert watch._memory_state == 2
        assert await statuses(90 * MB) == [200, 529]  # a little below the line is not back yet
        assert watch._memory_state == 2
        await until(lambda: watch.is_starved)
        assert await ready(s) == (503, True)
        assert await statuses(84 * MB) == [200, 529]
        assert watch._memory_state == 1
        assert await ready(s) == (200, False)
        assert await statuses(50 * MB) == [200, 200]
        said = [record.__dict__["event"] for record in caplog.records if "memory" in record.getMessage()]
        assert said == ["memory_begun", "memory_begun", "memory_begun", "memory_ended"]
        reply = await s.request("GET", "/metrics")
        assert reply.status != 529


@pytest.mark.anyio
async def test_memory_that_others_use_turns_only_large_requests_away(tmp_path):
    """The pod is full of another program: small requests are served as ever, and the router stays ready (F92)."""
    folder = version_2(tmp_path, "", str(1000 * MB), 990 * MB)
    go = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.request()
        await go.wait()
        peer.send(http(message()))

    async with stage(behave) as s:
        watch = s.app.overload
        watch._memory = CgroupMemory([(folder, NAMES)], 1, resident(tmp_path, 90 * MB)).look
        watch._memory_every = 1
        await until(lambda: watch.figures()["memory_percent"] == 99)
        assert (await s.post(request_body("x" * 400_000))).status == 529
        asked = [asyncio.create_task(s.messages()) for _ in range(3)]
        await s.upstream_asked(3)
        go.set()
        assert [(await reply).status for reply in asked] == [200, 200, 200]
        assert await ready(s) == (200, False)


async def ready(s) -> tuple[int, bool]:
    """What `/readyz` says."""
    wire = Wire(*await asyncio.open_connection("127.0.0.1", s.admin_port))
    wire.send("GET", "/readyz", [], None, b"127.0.0.1")
    reply = await wire.reply()
    await wire.close()
    return reply.status, reply.json()["is_short_of_memory"]


@pytest.mark.anyio
async def test_a_loop_with_more_work_than_time_sheds_and_recovers(caplog):
    """Real requests, more than the process can serve: the brake goes on, some are refused, none waits for ever; when
    the load ends so does it, and the next request is served (F54, R8)."""
    caplog.set_level("INFO")
    async with stage(max_lag_ms=1) as s:
        watch, statuses = s.app.overload, []
        watch._cpu_s = time.perf_counter  # a whole core is ours, whoever else is at work on this machine
        is_over = False

        async def client(number: int) -> None:
            wire = await s.connect()
            key = [(b"x-api-key", b"sk-%d" % (number % 2))]
            while not is_over:
                wire.send("POST", "/v1/messages", key, request_body())
                statuses.append((await wire.reply()).status)

        clients = [asyncio.create_task(client(number)) for number in range(40)]
        await until(lambda: 529 in statuses)
        is_over = True
        await asyncio.gather(*clients)
        assert set(statuses) == {200, 529}
        await until(lambda: not watch.admission.brake.is_on)
        assert (await s.messages()).status == 200
        assert watch.figures()["held"] == 0
        events = [record.__dict__.get("event") for record in caplog.records]
        assert events.count("overload_begun") == events.count("overload_ended") == watch.admission.brake.times > 0
        rendered = s.app.metrics.render().decode()
        assert 'reason="lag"' in rendered


@pytest.mark.anyio
async def test_a_watch_of_nothing_does_no_harm():
    """Without memory to look at, and with the brake off; `stop` may come at any time and twice."""
    admission = Admission(Bounds(), Brake(inf))
    clock = asyncio.get_running_loop().time
    shedding = Shedding(lambda: 0.0, lambda: 0, lambda: False)
    watch = Overload(admission, shedding, FailureLog(clock), None, clock, lambda: 0.0)
    watch.stop()
    watch.start()
    await until(lambda: watch._windows >= 2)
    watch.stop()
    watch.stop()
    assert isinstance(admission.enter("a", 0, 0.0), Ticket)
    assert json.dumps(dict(watch.figures()))


@pytest.mark.anyio
async def test_a_look_that_fails_changes_nothing():
    """Files of the kernel that cannot be read are no reason to turn anybody away."""
    asked = 0

    def broken() -> Pressure | None:
        nonlocal asked
        asked += 1
        raise OSError("gone")

    async with stage() as s:
        s.app.overload._memory, s.app.overload._memory_every = broken, 1
        await until(lambda: asked > 0)
        assert (await s.messages()).status == 200
