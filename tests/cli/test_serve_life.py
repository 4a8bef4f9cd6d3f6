"""The life of `router serve` as a process: it stops without harm, survives what kills others, and forgets no money."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from kit.installed import environment
from kit.processes import router
from kit.raw_client import parse
from kit.raw_upstream import raw_upstream
from kit.redis_server import becomes
from kit.stage import (
    AS_ASKED,
    KEY,
    LANES,
    SSE_HEAD,
    WAIT_S,
    answers,
    chunked,
    events,
    http,
    message,
    request_body,
    until,
)

from router.trace.record import TraceQuery
from router.trace.sqlite import SqliteTraceReader

pytestmark = pytest.mark.anyio

PIECES = events("a", "b")


@asynccontextmanager
async def serving(folder, behave, **settings):
    """A router before an upstream; `behave` answers."""
    async with (
        raw_upstream(behave) as upstream,
        router(folder, upstream.origin, policy=AS_ASKED, cache="off", **settings) as running,
    ):
        yield running


class Held:
    """An upstream whose streams end when told to; a plain request is not answered before that either."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, peer):
        request = await peer.request()
        if b'"stream":true' in request.body:
            peer.send(SSE_HEAD + chunked(PIECES[0]))
            await asyncio.wait_for(self.go_on.wait(), WAIT_S)
            peer.send(*(chunked(piece) for piece in PIECES[1:]), b"0\r\n\r\n")
        else:
            await asyncio.wait_for(self.go_on.wait(), WAIT_S)


async def ready(running):
    """Status and document of `/readyz`."""
    wire = await running.connect(admin=True)
    wire.send("GET", "/readyz", [], None, b"127.0.0.1")
    reply = await wire.reply()
    await wire.close()
    return reply.status, reply.json()


async def until_not_ready(running):
    async with asyncio.timeout(WAIT_S):
        while (found := await ready(running))[0] != 503:
            pass
    return found[1]


async def rest(wire):
    text = b""
    while piece := await wire.chunk():
        text += piece
    return text


async def test_sigterm_takes_no_newcomer_and_ends_after_the_last_stream(tmp_path):
    """F86, F87: not ready at once and to the end, newcomers are refused at once, the stream is whole, exit 0."""
    held = Held()
    async with serving(tmp_path, held) as running:
        wire = await running.begin(stream=True)
        assert (await wire.head())[0] == 200
        first = await wire.chunk()
        running.signal(signal.SIGTERM)
        assert (await until_not_ready(running))["draining"] is True
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    await (await running.connect()).close()
                except ConnectionError:
                    break
        assert (await ready(running))[0] == 503  # still said
        held.go_on.set()
        assert first + await rest(wire) == b"".join(PIECES)
        assert await asyncio.wait_for(running.process.wait(), WAIT_S) == 0
        running.is_doomed = True  # it has ended already
    [row] = SqliteTraceReader(tmp_path / "router.db").list(TraceQuery())
    assert (row["outcome"], row["status"]) == ("ok", 200)


async def test_at_the_drain_limit_streams_end_with_an_error_and_others_get_503(tmp_path):
    """F86: nobody is left without a word, one that still sends neither; the traces say `cut`, exit 0."""
    async with serving(tmp_path, Held(), ROUTER_DRAIN_TIMEOUT="1s") as running:
        sending = await running.connect()
        sending.send("POST", "/v1/messages", [*KEY, (b"content-length", b"1000")], None)
        sending.writer.write(b"{")
        stream, plain = await running.begin(stream=True), await running.begin()
        await stream.head()
        await stream.chunk()
        running.signal(signal.SIGTERM)
        assert b"event: error" in await rest(stream)
        reply = await plain.reply()
        assert reply.status == 503
        assert reply.json()["error"]["type"] == "api_error"
        reply = await sending.reply()
        assert (reply.status, reply.header("retry-after"), reply.header("connection")) == (503, "1", "close")
        assert "R902" in reply.header("proxy-status")
        await sending.close()
        assert await asyncio.wait_for(running.process.wait(), WAIT_S) == 0
        running.is_doomed = True
    rows = SqliteTraceReader(tmp_path / "router.db").list(TraceQuery())
    assert [row["outcome"] for row in rows] == ["cut", "cut"]
    assert list(tmp_path.glob("*.open-*")) == []


async def test_during_the_drain_delay_newcomers_are_served_and_a_second_signal_ends_it(tmp_path):
    """F88: not ready, yet served, with `connection: close`; told twice, it says an error to who waits and ends."""

    async def behave(peer):
        request = await peer.request()
        await (held if b'"stream":true' in request.body else answers(http(message())))(_Again(peer, request))

    held = Held()
    async with serving(tmp_path, behave, ROUTER_DRAIN_DELAY="5m") as running:
        stream = await running.begin(stream=True)
        await stream.head()
        await stream.chunk()
        kept = await running.connect()
        kept.send("POST", "/v1/messages", KEY, request_body())
        assert (await kept.reply()).header("connection") is None
        running.signal(signal.SIGTERM)
        await until_not_ready(running)
        kept.send("POST", "/v1/messages", KEY, request_body())
        for reply in (await kept.reply(), await running.messages()):
            assert (reply.status, reply.header("connection")) == (200, "close")
        running.signal(signal.SIGTERM)
        assert b"event: error" in await rest(stream)
        assert await asyncio.wait_for(running.process.wait(), WAIT_S) == 0
        running.is_doomed = True


@pytest.mark.skipif(sys.platform != "linux", reason="a lease on a file keeps those waiting who open it")
async def test_a_policies_folder_that_does_not_answer_does_not_hold_the_stop_up(tmp_path):
    """F88: a thread waits in `open` for a share that is gone; the stop leaves it behind, says so and ends with 0."""
    import fcntl

    async with serving(tmp_path, answers(http(message()))) as running:
        policy = os.open(tmp_path / "policies" / "default.yaml", os.O_RDWR)
        try:
            fcntl.fcntl(policy, fcntl.F_SETSIG, signal.SIGURG)  # which nobody minds
            fcntl.fcntl(policy, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            (tmp_path / "policies" / "news.txt").touch()
            async with asyncio.timeout(WAIT_S):
                while fcntl.fcntl(policy, fcntl.F_GETLEASE) == fcntl.F_WRLCK:  # noqa: ASYNC110 - until it is asked for
                    await asyncio.sleep(0.01)
            running.signal(signal.SIGTERM)
            assert await asyncio.wait_for(running.process.wait(), WAIT_S) == 0
            running.is_doomed = True
        finally:
            os.close(policy)
        assert sum("does not answer" in line for line in running.said()) == 1


class _Again:
    """A peer whose first request was read already."""

    def __init__(self, peer, request) -> None:
        self._peer = peer
        self._request = request

    async def request(self):
        return self._request

    def __getattr__(self, name):
        return getattr(self._peer, name)


async def test_signals_that_ask_for_something_do_not_end_it(tmp_path):
    """F88: USR1 writes where each thread is, USR2 is for workers and says so; it serves on."""
    async with serving(tmp_path, answers(http(message()))) as running:
        for number, words in (
            (signal.SIGUSR1, "(most recent call first)"),
            (signal.SIGUSR2, "`workers: 1` nothing is done"),
        ):
            running.signal(number)
            await becomes(lambda words=words: words in running.log.read_text(), WAIT_S)
        assert (await running.messages()).status == 200


async def test_a_killed_process_loses_no_money(tmp_path):
    """F89: what had ended is booked to the pico-dollar, what was open is there as aborted, each once."""

    async def behave(peer):
        request = await peer.request()
        await (held if b'"stream":true' in request.body else answers(http(message())))(_Again(peer, request))

    held = Held()
    async with raw_upstream(behave) as upstream:
        told = []
        for number in range(2):
            async with router(tmp_path, upstream.origin, policy=AS_ASKED, cache="off") as running:
                stream = await running.begin(stream=True)
                await stream.head()
                told += [await running.messages() for _ in range(5)]
                running.signal(signal.SIGKILL)
                await running.process.wait()
            assert len(list(tmp_path.glob("router.db.open-*"))) == number + 1 - number
        async with router(tmp_path, upstream.origin, policy=AS_ASKED, cache="off") as running:
            rows = await running.traces()
    by_id = {row["trace_id"]: row for row in rows}
    assert len(by_id) == len(rows) == 12
    assert sum(row["outcome"] == "aborted" for row in rows) == 2
    assert all(row["cost_usd"] is None for row in rows if row["outcome"] == "aborted")
    for reply in told:
        assert float(by_id[reply.header("x-router-trace")]["cost_usd"]) == float(reply.header("x-router-cost-usd"))
    assert list(tmp_path.glob("router.db.open-*")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="bounds and counts of file descriptors as Linux has them")
async def test_without_file_descriptors_newcomers_are_refused_and_what_is_open_goes_on(tmp_path):
    """F91: a stream goes on, newcomers hear so at once, no core is burnt, and it recovers by itself."""
    held = Held()
    async with serving(tmp_path, held) as running:
        import resource

        stream = await running.begin(stream=True)
        await stream.head()
        admin = await running.connect(admin=True)  # before there is no room for it either
        assert (await _listener(admin))["refused"] == 0
        pid = running.process.pid
        open_now = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now + 8, 4_096))
        crowd = [await running.connect() for _ in range(24)]
        refused = [wire for wire in crowd if await _is_refused(wire)]
        assert len(refused) >= 12
        held.go_on.set()
        assert (await rest(stream)).endswith(PIECES[-1])
        before_s = _cpu_s(pid)
        newcomers = [await running.connect() for _ in range(4)]  # one may get what the stream's upstream had
        assert sum([await _is_refused(wire) for wire in newcomers]) >= 3
        assert _cpu_s(pid) - before_s < 0.5
        for wire in (*crowd, *newcomers):
            await wire.close()
        async with asyncio.timeout(WAIT_S):
            while (await _listener(admin))["open"] > 1:
                pass
        assert (await _listener(admin))["refused"] >= 15
        assert (await running.begin(stream=True)).writer is not None
        assert sum("no room for a new connection" in line for line in running.said()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="bounds and counts of file descriptors as Linux has them")
async def test_a_request_without_a_descriptor_for_its_upstream_is_told_to_come_again(tmp_path):
    """F91: it is the router that is full; the lane's breaker, which ten failures would open, hears nothing of it."""
    behave = answers(http(message(), "200 OK", ("connection", "close")))
    async with (
        raw_upstream(behave) as upstream,
        router(tmp_path, upstream.origin, policy=AS_ASKED, cache="off") as running,
    ):
        import resource

        pid = running.process.pid
        wire, fellow = await running.connect(), await running.connect(admin=True)
        fellow.send("GET", "/healthz", [], None, b"127.0.0.1")
        assert (await fellow.reply()).status == 200
        assert (await _asked(wire)).status == 200
        await until(lambda: not upstream.open)
        free = min(set(range(4_096)) - {int(name) for name in os.listdir(f"/proc/{pid}/fd")})
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, 4_096))
        replies = [await _asked(wire) for _ in range(20)]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (4_096, 4_096))
        assert {(reply.status, reply.header("retry-after")) for reply in replies} == {(529, "1")}
        assert replies[0].json()["error"]["type"] == "overloaded_error"
        assert replies[0].header("proxy-status") == 'router; error=proxy_internal_error; details="R903"'
        assert (await _asked(wire)).status == 200
        figures = await running.figures()
        assert figures['router_lane_breaker{lane="as-asked",model="claude-sonnet-5-5",stat="failures"}'] == 0
        for each in (wire, fellow):
            await each.close()
        assert {row["outcome"] for row in await running.traces()} == {"ok", "shed"}


async def _asked(wire):
    wire.send("POST", "/v1/messages", KEY, request_body())
    return await wire.reply()


async def _is_refused(wire):
    """Whether the server closes the connection at once, with 529 or without a word."""
    try:
        head = await asyncio.wait_for(wire.reader.read(), 0.2)
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    if head:
        [answer] = parse(head)
        told = json.loads(answer.body)
        assert (answer.status, told["error"]["type"]) == (529, "overloaded_error")
        assert told["request_id"] == answer.header("request-id")
        assert told["request_id"].startswith("req_")
    return True


async def _listener(admin):
    """Figures of the API's listener, asked over a connection that is open."""
    admin.send("GET", "/metrics", [], None, b"127.0.0.1")
    page = (await admin.reply()).body.decode()
    figures = dict(line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("router_listener{"))
    return {name: float(figures[f'router_listener{{stat="{name}"}}']) for name in ("open", "refused")}


def _cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(sys.platform != "linux", reason="rights are taken away with setpriv")
async def test_it_serves_where_it_may_write_nowhere(tmp_path):
    """F94: working directory, home and temporary folder read-only, every right of root given up."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "lanes.yaml").write_text(LANES)
    (tmp_path / "policies" / "default.yaml").write_text(AS_ASKED)
    for folder in (tmp_path / "policies", tmp_path):
        folder.chmod(0o555)
    command = [sys.executable, "-m", "router.cli.main", "serve", "--port", "0", "--admin-port", "0"]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", *command]
    nowhere = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "TEMP", "XDG_CACHE_HOME")}
    async with raw_upstream(answers(http(message()))) as upstream:
        process = await asyncio.create_subprocess_exec(
            *command, "--upstream", upstream.origin, cwd=tmp_path, env=environment(**nowhere),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            line = (await asyncio.wait_for(process.stdout.readline(), WAIT_S)).decode()
            port = int(line.split()[2].rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = request_body()
            writer.write(
                b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\ncontent-length: %d\r\n\r\n" % len(body)
                + body
            )
            assert (await asyncio.wait_for(reader.readline(), WAIT_S)).startswith(b"HTTP/1.1 200 ")
            writer.close()
            process.terminate()
            _, said = await asyncio.wait_for(process.communicate(), WAIT_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            tmp_path.chmod(0o755)
    assert process.returncode == 0
    assert b"takes no traces" in said
    assert b"Traceback" not in said
