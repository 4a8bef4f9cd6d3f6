"""The installed program over real sockets: it starts or says why not, follows its policies, and stops in order."""

from __future__ import annotations

import asyncio
import signal
import socket

import pytest
from kit.installed import WAIT_S, ended, installed
from kit.raw_upstream import raw_upstream
from kit.stage import AS_ASKED, KEY, LANES, SSE_HEAD, always, answers, chunked, events, request_body

from router.trace.record import TraceQuery
from router.trace.sqlite import SqliteTraceReader

pytestmark = pytest.mark.anyio


@pytest.fixture
def policies(tmp_path):
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "lanes.yaml").write_text(LANES)
    (folder / "default.yaml").write_text(AS_ASKED)
    return folder


def replace(folder, text):
    (folder / "default.new").write_text(text)
    (folder / "default.new").rename(folder / "default.yaml")


def serving(upstream, *arguments, **more):
    return installed("--upstream", upstream.origin, *arguments, **more)


async def policy_in_force(router) -> str:
    reply = await router.request("POST", "/v1/messages", request_body(), KEY)
    assert reply.status == 200
    return reply.header("x-router-model") or ""


async def test_it_serves_follows_its_policies_and_stops(tmp_path, policies):
    """A saved edit is live by itself, SIGHUP reloads, a bad edit changes nothing, SIGTERM ends with 0."""
    traces = tmp_path / "t.db"
    arguments = ("--policies", str(policies), "--traces", f"sqlite:///{traces}")
    async with raw_upstream(answers()) as upstream, serving(upstream, *arguments, cwd=tmp_path) as router:
        assert (await router.request("GET", "/readyz", admin=True)).status == 200
        assert await policy_in_force(router) == "claude-sonnet-5-5"

        replace(policies, always())
        async with asyncio.timeout(WAIT_S):
            while await policy_in_force(router) != "claude-haiku-5-5":
                pass

        replace(policies, "version: 1\nrules: [\n")
        router.signal(signal.SIGHUP)
        async with asyncio.timeout(WAIT_S):
            while (await router.policy_status())["is_current"]:
                pass
        assert await policy_in_force(router) == "claude-haiku-5-5"

        replace(policies, always(route="opus"))
        router.signal(signal.SIGHUP)
        async with asyncio.timeout(WAIT_S):
            while await policy_in_force(router) != "claude-opus-5-5":
                pass
    rows = SqliteTraceReader(traces).list(TraceQuery(limit=1000))
    assert len(rows) == len(upstream.requests)  # what was under way at the end is in the store
    assert {row["model_sent"] for row in rows} == {"claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-5-5"}


async def test_a_stream_under_way_is_finished_before_the_end(tmp_path, policies):
    """SIGTERM in the middle of a stream: no new work, every byte of the old (F86)."""
    pieces = events("a", "b")
    going_on = asyncio.Event()

    async def behave(peer):
        await peer.request()
        peer.send(SSE_HEAD + chunked(pieces[0]))
        await asyncio.wait_for(going_on.wait(), WAIT_S)
        peer.send(*(chunked(piece) for piece in pieces[1:]), b"0\r\n\r\n")

    async with raw_upstream(behave) as upstream:
        arguments = ("--policies", str(policies), "--traces", "off", "--cache", "off")
        async with serving(upstream, *arguments) as router:
            wire = await router.connect()
            wire.send("POST", "/v1/messages", KEY, request_body(stream=True))
            status, _ = await wire.head()
            assert status == 200
            first = await wire.chunk()
            router.signal(signal.SIGTERM)
            async with asyncio.timeout(WAIT_S):
                while await takes_connections(router):
                    pass
            going_on.set()
            rest = b""
            while piece := await wire.chunk():
                rest += piece
            assert first + rest == b"".join(pieces)
            wire.writer.close()


async def takes_connections(router) -> bool:
    """Whether a new connection is still taken."""
    try:
        wire = await router.connect()
    except ConnectionError:
        return False
    await wire.close()
    return True


async def test_a_start_that_cannot_be_says_why(tmp_path, policies):
    """Broken policies: file, line, reason (F77). A port in use, bad settings and flags: named, exit 2."""
    good = ("serve", "--port", "0", "--admin-port", "0", "--traces", "off", "--policies", str(policies))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        broken = tmp_path / "broken"
        broken.mkdir()
        (broken / "lanes.yaml").write_text(LANES)
        (broken / "default.yaml").write_text(
            "version: 1\nrules:\n  - name: a\n    when: {input_token: {gt: 1}}\n    route: haiku\notherwise: as-asked\n"
        )
        cases = [
            ((*good[:-1], str(broken)), {}, 1, "default.yaml:4:12: unknown fact `input_token`"),
            ((*good[:-1], str(tmp_path / "nowhere")), {}, 1, "cannot be read"),
            ((*good, "--port", port), {}, 2, f"cannot listen on 127.0.0.1:{port}"),
            ((*good, "--admin-port", port), {}, 2, "choose another `admin_port`"),
            ((*good, "--cache", "disk://x"), {}, 2, "`cache` is `disk://x`"),
            (
                (*good, "--cache", "redis://x/y"),
                {},
                2,
                "the URL of Redis has a path that is not the number of a database",
            ),
            ((*good, "--upstream", "https://x/path"), {}, 2, "https://x/path"),
            (good, {"ROUTER_PROT": "1"}, 2, "unknown setting `ROUTER_PROT`"),
            ((*good, "--nosuch"), {}, 2, "--nosuch"),
        ]
        found = await asyncio.gather(*(ended(*arguments, **settings) for arguments, settings, _, _ in cases))
    for (arguments, _, status, reason), (code, out, err) in zip(cases, found, strict=True):
        assert code == status, (arguments, err)
        assert reason in err, (arguments, err)
        assert "Traceback" not in err, err
        assert out == ""


async def test_settings_are_shown_with_their_origin(tmp_path):
    """`router config show --origin --json`: every setting, secrets hidden."""
    code, out, _ = await ended(
        "config", "show", "--json", cwd=tmp_path, ROUTER_ADMIN_TOKEN="canary-token", ROUTER_PORT="9"
    )
    assert code == 0
    assert "canary" not in out
    assert '"origin": "environment"' in out
