"""What the page about deferred requests tells a client to run runs; the example comes to its end, killed or not."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import runpy
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import pytest
from kit.batch_upstream import BatchUpstream
from kit.redis_server import RedisServer
from kit.stage import KEY, WAIT_S, Reply, Stage, always, stage, until

import router.deferring
from router.serve.deferred.kit import COUNTS, Pace
from router.serve.deferred.lane import LONGEST_WAIT_S
from router.serve.deferred.work import _BATCH_BYTES
from router.simulator.server import served
from router.trace.record import TraceQuery
from router.trace.sqlite import SqliteTraceReader
from router.wire.batch import _NOT_IN_BATCHES

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "deferred.md").read_text(encoding="utf-8")
NODE = ROOT / "tests" / "node"
SOON = always("deferred: {max_wait: 10ms}")
LANE = (b"prefer", b"respond-async")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane at a pace that no test has to wait for."""
    pace = Pace(look=0.05, lease=5.0, polls=(0.02, 0.1), create=5.0, quiet=6.0, again=(0.02, 0.1))
    monkeypatch.setattr(router.deferring, "Pace", lambda: pace)


@asynccontextmanager
async def lane(policy: str) -> AsyncIterator[Stage]:
    """A router before a simulator."""
    with served() as origin:
        async with stage(origin=origin, policy=policy) as s:
            yield s


def snippet(language: str, s: Stage) -> str:
    """The one block of that language, with the address of this router."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert "http://127.0.0.1:8080" in block
    return block.replace("http://127.0.0.1:8080", s.url)


def environment(s: Stage) -> dict[str, str]:
    """That of a client."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ROUTER_", "ANTHROPIC_"))}
    return {**kept, "ANTHROPIC_API_KEY": "sk-test-1", "ANTHROPIC_BASE_URL": s.url}


async def ran(s: Stage, *command: str, said: str = "", cwd: Path = ROOT) -> str:
    """What a program prints that is given `said`; it must end with status 0."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=environment(s), stdin=pipe, stdout=pipe, stderr=pipe
    )
    out, errors = await asyncio.wait_for(process.communicate(said.encode()), 60)
    assert process.returncode == 0, errors.decode()
    return out.decode()


async def items(s: Stage, count: int) -> list[dict[str, Any]]:
    """The records of answers in batches, once there are so many, and no more."""
    assert s.app.traces is not None
    async with asyncio.timeout(WAIT_S):
        while True:
            await asyncio.to_thread(s.app.traces.flush)
            reader = SqliteTraceReader(s.folder / "traces.db")
            found = await asyncio.to_thread(reader.list, TraceQuery(limit=1_000, endpoint="batch_item"))
            if len(found) >= count:
                assert len(found) == count
                return found


def path_of(reply: Reply) -> str:
    """The path of the `Location` of a 202."""
    assert reply.status == 202, reply.body
    location = reply.header("location") or ""
    return location[location.index("/v1/") :]


async def test_the_python_of_the_page_runs() -> None:
    """It asks, waits as it is told, and has the Message with its cost."""

    def run(text: str) -> str:
        printed = io.StringIO()
        with anthropic.Anthropic(api_key="sk-test-1", base_url=s.url) as client:  # made once, as its making is dear
            names: dict[str, Any] = {"print": lambda *words: printed.write(" ".join(map(str, words))), "made": client}
            asked = re.sub(r"anthropic\.Anthropic\(base_url=\"[^\"]*\"\)", "made", text)
            assert asked != text
            exec(compile(asked, "docs/deferred.md", "exec"), names)
        assert names["message"].usage.service_tier == "batch"
        return printed.getvalue()

    async with lane(SOON) as s:
        printed = await asyncio.to_thread(run, snippet("python", s))
        [item] = await items(s, 1)
        assert re.fullmatch(rf".*\w.* {item['cost_usd']}", printed)


async def test_the_curl_of_the_page_runs() -> None:
    """Two calls: one hands in, one waits."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    async with lane(SOON) as s:
        message = json.loads(await ran(s, "sh", "-eu", said=snippet("sh", s)))
        assert message["type"] == "message"
        await items(s, 1)


@pytest.mark.node
async def test_the_typescript_of_the_page_runs() -> None:
    """The other official SDK does the same."""
    if shutil.which("node") is None or not (NODE / "node_modules" / "@anthropic-ai" / "sdk").exists():
        reason = "the TypeScript SDK is not installed (Node.js and `npm ci` in tests/node)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    async with lane(SOON) as s:
        printed = await ran(s, "node", "--input-type=module", "-", said=snippet("javascript", s), cwd=NODE)
        [item] = await items(s, 1)
        assert re.fullmatch(rf".*\w.* {item['cost_usd']}\n", printed)
        assert "undefined" not in printed


async def test_the_example_that_is_killed_half_way_and_run_again_answers_each_ticket_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thirty tickets, one batch of thirty, thirty lines: whatever the kill left is made good."""
    tickets = [{"id": f"t{n}", "text": f"Ticket {n}: my card was charged twice."} for n in range(30)]
    source, target, places = (tmp_path / name for name in ("tickets.jsonl", "results.jsonl", "results.jsonl.sent"))
    source.write_text("".join(json.dumps(ticket) + "\n" for ticket in tickets))
    command = (sys.executable, str(ROOT / "examples" / "overnight.py"), str(source), str(target))
    async with lane(always("deferred: {max_wait: 1h, max_items: 30}")) as s:
        jobs = s.app.stores.jobs
        assert jobs is not None
        first = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment(s))
        await until(lambda: jobs.stats()["accepted"] >= 12, within_s=60)
        first.kill()
        await first.wait()
        assert 0 < len(places.read_text().splitlines()) < 30
        with places.open("a") as file:
            file.write('{"id": "t29", "loca')  # what a kill within a write leaves
        for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
            monkeypatch.setenv(name, environment(s)[name])
        again = runpy.run_path(command[1])["main"]
        await asyncio.to_thread(again, source, target)
        printed = capsys.readouterr().out
        assert printed.startswith("30 tickets, 0 failed, $0.")
        lines = [json.loads(line) for line in target.read_text().splitlines()]
        assert sorted(line["id"] for line in lines) == sorted(ticket["id"] for ticket in tickets)
        assert all(line["answer"] and float(line["cost_usd"]) > 0 for line in lines)
        booked = await items(s, 30)
        assert len({item["batch"] for item in booked}) == 1
        assert len({line["id"] for line in map(json.loads, places.read_text().splitlines())}) == 30
        assert jobs.stats()["accepted"] == 30
        monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")  # all is there: nobody is asked
        await asyncio.to_thread(again, source, target)
        assert capsys.readouterr().out == printed


async def test_the_redis_user_of_the_docs_may_do_what_deferred_requests_need(redis_server: RedisServer) -> None:
    """Accepted, sent, taken back, deleted, answered: Redis refuses nothing."""
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ACL SETUSER .*$", operations, re.MULTILINE)
    assert redis_server.say(*line.replace("PASSWORD", "s3cret").split()) == b"+OK\r\n"
    url = redis_server.url.replace("redis://", "redis://router:s3cret@")
    up = BatchUpstream(ends_at_once=True)
    up.creations = ["429"]
    async with stage(up.behave, policy=SOON, jobs=url) as s:
        for _ in range(2):
            accepted = await s.messages(LANE, text="once", target="/v1/messages")
            async with asyncio.timeout(WAIT_S):
                headers = [*KEY, (b"prefer", b"wait=5")]
                while (reply := await s.request("GET", path_of(accepted), None, headers)).status == 202:
                    pass
            assert reply.status == 200
        assert (await s.request("DELETE", path_of(accepted), None, KEY)).status == 200
        link = s.app.stores.links["redis_jobs"]
    assert link.stats()["error_replies"] == 0
    assert redis_server.say("ACL", "LOG") == b"*0\r\n"


def test_the_figures_of_the_page_are_the_codes() -> None:
    """What is never deferred, the limits, and what is counted."""
    page = " ".join(PAGE.split())
    for name in _NOT_IN_BATCHES:
        assert f"`{name}`" in page
    assert f"| `wait` | {LONGEST_WAIT_S:.0f} seconds |" in page
    assert f"{_BATCH_BYTES // 1024**2} MB, unless one request is larger" in page
    assert f"not there after {Pace().quiet:.0f} seconds" in page
    assert f"within {Pace().lease:.0f} seconds where" in page
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (row,) = (line for line in operations.splitlines() if line.startswith("| `router_deferred` |"))
    assert [count for count in COUNTS if f"`{count}`" not in row] == []


def test_the_example_is_short() -> None:
    """Somebody reads it before they copy it."""
    assert len((ROOT / "examples" / "overnight.py").read_text(encoding="utf-8").splitlines()) < 120
