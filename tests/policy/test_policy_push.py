"""Policies pushed to a fleet: two routers over a real Redis, and the command line that pushes to them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kit.fleet import MODELS, encoded, folder_of, heard, member, pair, policy_page, push, run, served, version
from kit.redis_server import RedisServer, becomes
from kit.redis_topologies import Cluster, running, server_programs
from kit.stage import Stage, stage

from router.cli.main import cli
from router.errors import SettingsError
from router.policy.check import revision_of
from router.policy.folder import read_folder
from router.policy.push_store import FILES, LEASE_MS, NOTES, NOW, PROCESSES, Overtaken, PushStore
from router.policy.pushed import Version, pack_files, pack_version
from router.redis_link import RedisLink
from router.settings import Settings

pytestmark = pytest.mark.anyio

LIVE_S = 3.0  # a second on a machine that does nothing else
Link = Callable[..., RedisLink]


@pytest.fixture(autouse=True)
def _brisk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fleet that beats quicker than it need, but where its pace is what is looked at."""
    if "pace" not in request.fixturenames:
        monkeypatch.setattr("router.policy.push_follower.POLL_S", 0.03)
        monkeypatch.setattr("router.policy.push_follower.ROLL_S", 0.1)
        monkeypatch.setattr("router.policy.push_store._NOBODY_S", 0.2)


@pytest.fixture
def pace() -> None:
    """The pace of the program itself."""


# A push


async def test_a_push_is_live_in_every_process_within_a_second(redis_server: RedisServer, tmp_path: Path, pace: None):
    """When the command returns, both answer by the new policies; the folder is as it was."""
    async with pair(redis_server) as (one, other):
        began_s = time.monotonic()
        done = await push(redis_server, tmp_path, 1, "--message", "cheaper")
        took_s = time.monotonic() - began_s
        assert took_s < LIVE_S
        assert (done["number"], done["is_everywhere"], done["message"]) == (1, True, "cheaper")
        assert [row["state"] for row in done["processes"]] == ["taken", "taken"]
        revision = revision_of(encoded(1))
        assert done["revision"] == revision
        for s in (one, other):
            assert await served(s) == ("rule-1", revision)
            page = await policy_page(s)
            assert (page["source"], page["is_current"], page["revision"]) == ("pushed #1", True, revision)
            assert page["folder_revision"] == revision_of(encoded(0))
            assert page["fleet"]["version"]["who"].count("@") == 1
            assert read_folder(s.folder / "policies") == encoded(0)
            await heard(s, 2)
        command = ["status", "--admin", f"http://127.0.0.1:{one.admin_port}"]
        screen = (await asyncio.to_thread(CliRunner().invoke, cli, command)).stdout
        assert f"policies   {revision}, pushed #1, since" in screen
        assert "fleet      2 processes, 0 with other policies" in screen


async def test_under_load_no_request_fails_and_each_sees_one_whole_version(redis_server: RedisServer, tmp_path: Path):
    """Versions of two files that belong together, one after another; no answer is by half of one."""
    numbers = {revision_of(encoded(number)): number for number in range(5)}
    seen: set[int] = set()
    is_over = asyncio.Event()

    async def load(s: Stage) -> int:
        count = 0
        while not is_over.is_set():
            reply = await s.messages()
            assert reply.status == 200
            number = numbers[(reply.header("x-router-policy") or "").rpartition("@")[2]]
            assert reply.header("x-router-rule") == f"rule-{number}"
            assert reply.header("x-router-model") == MODELS[number % 2]
            seen.add(number)
            count += 1
        return count

    async with pair(redis_server) as (one, other):
        loads = [asyncio.create_task(load(s)) for s in (one, other)]
        for number in range(1, 5):
            done = await push(redis_server, tmp_path, number)
            assert done["took_s"] < LIVE_S
            for s in (one, other):
                assert (await served(s))[0] == f"rule-{number}"
        is_over.set()
        assert sum(await asyncio.gather(*loads)) > 20
        assert {4} < seen


async def test_what_is_wrong_is_not_pushed(redis_server: RedisServer, tmp_path: Path):
    """All diagnostics with file, line and column; exit 1; the store stays empty."""
    place = folder_of(tmp_path / "wrong", version(1, route="nowhere"))
    result = await run(redis_server, "push", str(place))
    assert result.exit_code == 1
    assert "default.yaml:2:" in result.stderr
    assert "nothing was pushed" in result.stderr
    result = await run(redis_server, "push", str(place), "--json")
    assert result.exit_code == 1
    assert "nowhere" in json.loads(result.stdout)["problems"][0]
    assert redis_server.say("EXISTS", NOW, NOTES, FILES) == b":0\r\n"


async def test_a_process_that_cannot_compile_it_refuses_and_goes_on(redis_server: RedisServer, tmp_path: Path):
    """Its own catalogue lacks the model: the other takes the version, the command names who did not, and exits 1."""
    catalog = Path(__file__).parents[2] / "router" / "data" / "models.yaml"
    poor = tmp_path / "models.yaml"
    poor.write_text(catalog.read_text().replace("claude-sonnet-5-5", "claude-other-5-5"))
    async with member(redis_server) as one, member(redis_server, catalog=str(poor)) as other:
        await heard(one, 2)
        result = await run(redis_server, "push", str(folder_of(tmp_path / "new", version(1))))
        assert result.exit_code == 1
        rows = [line.split()[0] for line in result.stdout.splitlines()[1:3]]
        assert sorted(rows) == ["refused", "taken"]
        assert "pushed #1/lanes.yaml:2:" in result.stdout
        assert "in force in 1 of 2 processes" in result.stdout
        assert (await served(one))[0] == "rule-1"
        assert (await served(other))[0] == "rule-0"
        await heard(one, 2, other_revision=1)
        await heard(other, 2, other_revision=1)
        page = await policy_page(other)
        assert (page["source"], page["fleet"]["state"]) == ("folder", "refused")
        assert "claude-sonnet-5-5" in page["fleet"]["refused"]["problem"]
        assert other.app.fleet.stats()["refused"] == 1
        command = ["status", "--admin", f"http://127.0.0.1:{other.admin_port}"]
        screen = await asyncio.to_thread(CliRunner().invoke, cli, command)
        assert screen.exit_code == 1
        assert "version #1 of the pushed policies was refused: pushed #1/lanes.yaml:2:" in screen.stdout
        assert "1 of 2 processes serve another revision" in screen.stdout
        metrics = other.app.metrics.render().decode()
        assert 'router_fleet{stat="refused"} 1.0' in metrics
        assert 'router_fleet{stat="other_revision"} 1.0' in metrics
        listed = await run(redis_server, "pushed")
        assert listed.exit_code == 1
        assert "refused #1" in listed.stdout
        assert "taken #1" in listed.stdout
        done = await push(redis_server, tmp_path, 2)  # both can compile it: the refusal is over
        assert done["is_everywhere"]
        assert (await policy_page(other))["fleet"]["refused"] is None


async def test_with_no_process_there_a_push_is_told_apart(redis_server: RedisServer, tmp_path: Path):
    """Nobody would ever take it; a sticky one would stand before any folder for ever, so it is refused."""
    place = str(folder_of(tmp_path / "new", version(1)))
    result = await run(redis_server, "push", place)
    assert result.exit_code == 1
    assert "no process was heard of" in result.stderr
    result = await run(redis_server, "push", place, "--sticky")
    assert result.exit_code == 1
    assert "which folders a sticky version stands before" in result.stderr
    listed = json.loads((await run(redis_server, "pushed", "--json")).stdout)
    assert [each["number"] for each in listed["versions"]] == [1]


# Back


async def test_a_rollback_goes_back_step_by_step_to_the_folder(redis_server: RedisServer, tmp_path: Path):
    """Each is a version of its own; before the first there was the folder; `--to` names one; numbers only grow."""
    async with pair(redis_server) as (one, other):
        for number in (1, 2, 3):
            await push(redis_server, tmp_path, number)
        seen = []
        for arguments in ((), (), (), ("--to", "3")):
            result = await run(redis_server, "rollback", "--json", *arguments)
            assert result.exit_code == 0, result.output
            done = json.loads(result.stdout)
            assert done["is_everywhere"]
            rules = {(await served(s))[0] for s in (one, other)}
            seen.append((done["number"], done["of"], *rules))
        assert seen == [(4, 2, "rule-2"), (5, 1, "rule-1"), (6, None, "rule-0"), (7, 3, "rule-3")]
        listed = json.loads((await run(redis_server, "pushed", "--json")).stdout)
        assert [each["number"] for each in listed["versions"]] == [7, 6, 5, 4, 3, 2, 1]
        assert (listed["in_force"], listed["is_one_revision"]) == (7, True)
        assert {each["source"] for each in listed["processes"]} == {"pushed #7"}
        wrong = await run(redis_server, "rollback", "--to", "99")
        assert wrong.exit_code == 1
        assert "no version #99" in wrong.output


async def test_unpush_gives_every_process_its_own_folder_back(redis_server: RedisServer, tmp_path: Path):
    """Without compiling anything: the folder's set was kept."""
    async with pair(redis_server) as (one, other):
        await push(redis_server, tmp_path, 1, "--sticky")
        result = await run(redis_server, "unpush")
        assert result.exit_code == 0
        assert "the folder of each process" in result.stdout
        for s in (one, other):
            assert (await served(s))[0] == "rule-0"
            assert (await policy_page(s))["source"] == "folder"
        async with member(redis_server, number=2) as late:
            assert (await served(late))[0] == "rule-2"


async def test_the_last_twenty_versions_are_kept(
    redis_server: RedisServer, connect: Link, monkeypatch: pytest.MonkeyPatch
):
    """Of the oldest, notes and files go."""
    store = PushStore(connect(redis_server.url, deadline_s=2.0))
    monkeypatch.setattr("router.policy.push_store._NOBODY_S", 0.0)
    for number in range(23):
        await store.push(Version(0, 0, revision_of(encoded(number)), "push"), pack_files(encoded(number)))
    versions = await store.versions()
    assert [each.number for each in versions] == list(range(4, 24))
    assert all(one.at_ms <= two.at_ms for one, two in pairwise(versions))
    assert await store.files(versions[0]) == encoded(3)
    assert redis_server.say("HLEN", FILES) == b":20\r\n"


@pytest.mark.parametrize("kind", ["cluster", "valkey"])
async def test_a_cluster_and_a_valkey_do_as_well(kind: str, tmp_path: Path, connect: Link):
    """The keys lie on one node, whichever it is."""
    programs = server_programs()
    if kind not in ("cluster", *programs):
        pytest.skip("no valkey-server")
    servers = Cluster(programs["redis"], tmp_path) if kind == "cluster" else RedisServer(programs["valkey"], tmp_path)
    with running(servers) if isinstance(servers, Cluster) else started(servers):
        async with stage(policies=version(0), fleet=servers.url) as s:
            await heard(s, 1)
            store = PushStore(connect(servers.url))
            new = await store.push(Version(0, 0, revision_of(encoded(1)), "push"), pack_files(encoded(1)))
            assert [row.state for row in await store.acknowledged(new, 10)] == ["taken"]
            assert (await served(s))[0] == "rule-1"
            back = await store.push(Version(0, 0, new.revision, "rollback"), files_of=new, in_force=1)
            assert [row.state for row in await store.acknowledged(back, 10)] == ["taken"]
            assert s.app.policies.source == "pushed #2"


@contextmanager
def started(server: RedisServer) -> Iterator[None]:
    """A server that answers."""
    server.start()
    try:
        yield
    finally:
        server.kill()


async def test_who_is_overtaken_changes_nothing(redis_server: RedisServer, connect: Link):
    """A rollback is from the version that was looked at, and from no other."""
    store = PushStore(connect(redis_server.url, deadline_s=2.0))
    new = Version(0, 0, revision_of(encoded(1)), "push")
    first = await store.push(new, pack_files(encoded(1)))
    await store.push(new, pack_files(encoded(1)))
    with pytest.raises(Overtaken) as caught:
        await store.push(replace(new, how="rollback"), files_of=first, in_force=1)
    assert caught.value.number == 2
    assert await store.number() == 2


# The folder


async def test_a_folder_that_changes_after_a_push_is_newer(
    redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """It serves again in that process, which says so; the other keeps the push, and both see that they differ."""
    with caplog.at_level("INFO", "router"):
        async with pair(redis_server) as (one, other):
            await push(redis_server, tmp_path, 1)
            one.write_policy(version(2)["default"])
            await becomes(lambda: one.app.policies.pushed == 0)
            assert (await served(one))[0] == "rule-2"
            assert (await served(other))[0] == "rule-1"
            await heard(one, 2, other_revision=1)
            await heard(other, 2, other_revision=1)
            await becomes(lambda: "the folder has changed since version #1 was pushed" in caplog.text)
            page = await policy_page(one)
            assert (page["source"], page["fleet"]["state"]) == ("folder", "left")
            assert (await push(redis_server, tmp_path, 3))["is_everywhere"]
            assert (await served(one))[0] == "rule-3"


async def test_an_edit_that_another_pod_had_before_the_push_is_older_than_it(redis_server: RedisServer, tmp_path: Path):
    """A ConfigMap reaches pods one by one: a push that stops a bad edit stops it everywhere."""
    async with member(redis_server, number=0) as one, member(redis_server, number=2) as other:
        for s in (one, other):
            await heard(s, 2, other_revision=1)
        await push(redis_server, tmp_path, 1)
        one.write_policy(version(2)["default"])
        await becomes(lambda: one.app.policies.folder_revision == other.app.policies.folder_revision)
        assert (await served(one))[0] == "rule-1"
        result = await run(redis_server, "unpush")
        assert result.exit_code == 0
        assert {(await served(s))[0] for s in (one, other)} == {"rule-2"}


async def test_going_back_to_folders_that_hold_the_same_says_that_nothing_has_changed(
    redis_server: RedisServer, tmp_path: Path
):
    """After "push, then apply the same files" there is no way back but another set."""
    async with member(redis_server) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1)
        s.write_policy(version(1)["default"])
        await becomes(lambda: s.app.policies.pushed == 0)
        follower, rev = s.app.fleet._follower, s.app.policies.current.revision
        await becomes(lambda: follower is not None and follower._announced == rev)
        for _ in range(2):
            result = await run(redis_server, "rollback")
            assert result.exit_code == 1, result.output
            assert f"nothing would change, so nothing was done: the folder of each process holds revision {rev}" in (
                result.stderr
            )
        assert redis_server.say("GET", NOW) == b"$1\r\n1\r\n"
        assert (await run(redis_server, "unpush")).exit_code == 0  # which is what it asks for, and so


async def test_a_broken_folder_is_told_and_the_push_goes_on(redis_server: RedisServer, tmp_path: Path):
    """And the folder as it was when the push came is no change: nothing is taken back."""
    async with member(redis_server) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1)
        s.write_policy("rules: [")
        await becomes(lambda: s.app.policies.status()["last_error"] != "")
        assert (await served(s))[0] == "rule-1"
        s.write_policy(version(0)["default"])
        await becomes(lambda: s.app.policies.status()["last_error"] == "")
        assert not await s.app.policies.reload()
        assert (await served(s))[0] == "rule-1"
        assert s.app.policies.source == "pushed #1"


# A start


async def test_a_start_serves_the_folder_unless_the_push_is_sticky(redis_server: RedisServer, tmp_path: Path):
    """From the first answer; a folder other than those that the sticky one was pushed over is newer."""
    async with member(redis_server) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1)
    async with member(redis_server) as s:
        assert (await served(s))[0] == "rule-0"
        assert s.app.fleet.status()["state"] == "older"
        await heard(s, 1)
        await push(redis_server, tmp_path, 2, "--sticky")
    async with member(redis_server) as s:
        assert (await served(s))[0] == "rule-2"
        assert s.app.policies.source == "pushed #2"
    async with member(redis_server, number=3) as s:
        assert (await served(s))[0] == "rule-3"


async def test_a_start_without_redis_serves_the_folder_at_once(idle_redis_server: RedisServer, tmp_path: Path):
    """Nothing waits for it; when it is there pushes are taken."""
    began_s = time.monotonic()
    async with member(idle_redis_server) as s:
        assert time.monotonic() - began_s < LIVE_S
        assert (await served(s))[0] == "rule-0"
        idle_redis_server.start()
        await becomes(lambda: s.app.fleet.stats()["processes"] == 1)
        await push(idle_redis_server, tmp_path, 1)
        assert (await served(s))[0] == "rule-1"


async def test_a_frozen_redis_delays_no_start_and_no_request(redis_server: RedisServer):
    """It takes connections and answers nothing."""
    redis_server.freeze()
    began_s = time.monotonic()
    async with member(redis_server) as s:
        assert (await served(s))[0] == "rule-0"
        assert time.monotonic() - began_s < LIVE_S
        redis_server.thaw()
        await heard(s, 1)


async def test_while_redis_is_down_what_is_in_force_stays(redis_server: RedisServer, tmp_path: Path):
    """A push says that it cannot; Redis comes back empty, and nothing is taken back; the next push has a new number."""
    async with pair(redis_server) as (one, other):
        await push(redis_server, tmp_path, 1)
        await push(redis_server, tmp_path, 2)
        redis_server.kill()
        result = await run(redis_server, "push", str(tmp_path / "version-1"))
        assert result.exit_code == 1
        assert "redis: " in result.output
        assert (await served(one))[0] == "rule-2"
        await becomes(lambda: one.app.stores.links["redis_fleet"].stats()["is_up"] == 0)
        redis_server.start()
        for s in (one, other):
            await becomes(lambda s=s: s.app.stores.links["redis_fleet"].stats()["is_up"] == 1)
            await heard(s, 2)
            assert (await served(s))[0] == "rule-2"
        assert (await push(redis_server, tmp_path, 3))["number"] == 3
        for s in (one, other):
            assert (await served(s))[0] == "rule-3"


# Who is there


async def test_who_is_not_heard_of_is_not_waited_for(redis_server: RedisServer, connect: Link):
    """One that died before is passed over; one that was there a moment ago, and says nothing, is silent."""
    link = connect(redis_server.url, deadline_s=2.0)
    store = PushStore(link)
    now_ms = await store.now_ms()
    said = (
        b'{"source":"folder","folder":"","looked":0,"looked_ms":0,"last":0,"state":"none","reason":"",'
        b'"since_ms":0,"said_ms":0}'
    )
    for name, ago_ms in (("dead", LEASE_MS + 1000), ("mute", 0)):
        await link.ask("HSET", PROCESSES, name, b"%d 000000000000 - %s" % (now_ms - ago_ms, said))
    async with member(redis_server) as s:
        await heard(s, 2, other_revision=1)
        new = await store.push(Version(0, 0, revision_of(encoded(1)), "push"), pack_files(encoded(1)))
        rows = {row.standing.name: row.state for row in await store.acknowledged(new, 0.5)}
        assert "dead" not in rows
        assert rows.pop("mute") == "silent"
        assert list(rows.values()) == ["taken"]
    assert [each.name for each in await store.processes()] == ["dead", "mute"]  # who ends in good order leaves


# Whoever writes there


DAMAGE = {
    "no number": ("SET", NOW, "x"),
    "a number of nothing": ("SET", NOW, "7"),
    "too long a number": ("SET", NOW, "9" * 40),
    "no text": ("HSET", NOW, "a", "b"),
    "notes that are no hash": ("SADD", NOTES, "a"),
    "files that are no hash": ("SET", FILES, "x"),
    "processes that are no hash": ("SADD", PROCESSES, "x"),
    "a process that is none": ("HSET", PROCESSES, "x", "y"),
    "a note that is none": ("HSET", NOTES, "1", "5 {}"),
    "other files": ("HSET", FILES, "1", '{"default.yaml": ""}'),
    "no mapping": ("HSET", FILES, "1", "[" * 9000),
    "no files": ("HDEL", FILES, "1"),
}


async def test_what_others_write_there_stops_no_router(redis_server: RedisServer, connect: Link):
    """What is not a version is not taken, and what serves goes on; with that gone the next push is taken."""
    link = connect(redis_server.url, deadline_s=2.0)
    store = PushStore(link)
    asked = lambda: s.app.stores.links["redis_fleet"].stats()["asked"]  # noqa: E731
    async with member(redis_server) as s:
        for name, damage in DAMAGE.items():
            await heard(s, 1)
            for key in (NOW, NOTES, FILES):
                redis_server.say("DEL", key)
            if damage[1] != NOW and damage[1] != PROCESSES:  # a version, but for what is wrong with it
                digest = sha256(pack_files(encoded(1))).hexdigest()
                new = Version(1, await store.now_ms(), revision_of(encoded(1)), "push", digest=digest)
                await link.ask("HSET", NOTES, "1", pack_version(new, None))
                await link.ask("HSET", FILES, "1", pack_files(encoded(1)))
            if damage[0] != "HDEL" and damage[1:3] not in ((NOTES, "1"), (FILES, "1")):
                redis_server.say("DEL", damage[1])
            assert redis_server.say(*damage)[:1] in (b"+", b":"), name
            if damage[1] != NOW and damage[1] != PROCESSES:
                await link.ask("SET", NOW, "1")
            looks = asked()
            await becomes(lambda looks=looks: asked() > looks + 4)
            assert (await served(s))[0] == "rule-0", name
            redis_server.say("FLUSHALL")
            await becomes(lambda: b"router" in redis_server.say("KEYS", "*processes"))
            new = await store.push(Version(0, 0, revision_of(encoded(1)), "push"), pack_files(encoded(1)))
            assert [row.state for row in await store.acknowledged(new, 5)] == ["taken"], name
            assert (await served(s))[0] == "rule-1", name
            back = await store.push(Version(0, 0, "", "unpush"))
            assert [row.state for row in await store.acknowledged(back, 5)] == ["taken"], name


# The setting


@pytest.mark.parametrize(("settings", "url"), [
    ({}, None),
    ({"cache": "redis://a", "jobs": "redis://j", "affinity": "redis://c"}, None),
    ({"cache": "redis://a", "fleet": "off"}, None),
    ({"cache": "redis://a", "fleet": "rediss://b"}, "rediss://b"),
])  # fmt: skip
def test_there_is_a_fleet_only_where_it_is_named(settings: dict[str, Any], url: str | None):
    """A Redis that holds answers is none that policies come from, unless somebody says so."""
    from router.fleet import fleet_url

    assert fleet_url(Settings(**settings)) == url


@pytest.mark.parametrize("url", ["memory://", "sqlite:///x", "redis://", "nonsense", "redis+x://a"])
async def test_a_fleet_that_is_no_redis_is_refused(url: str):
    """With the setting's name, and without a part of the URL that may be a password."""
    result = await asyncio.to_thread(CliRunner().invoke, cli, ["policy", "pushed", "--fleet", url])
    assert result.exit_code == 2
    shown = await asyncio.to_thread(CliRunner().invoke, cli, ["config", "show"], env={"ROUTER_FLEET": url})
    assert isinstance(shown.exception, SettingsError)


async def test_without_a_redis_the_command_says_what_to_name():
    """The default of all stores is this process's memory."""
    result = await asyncio.to_thread(CliRunner().invoke, cli, ["policy", "unpush"], env={"ROUTER_CONFIG": None})
    assert result.exit_code == 2
    assert "--fleet" in result.output


async def test_a_revision_does_not_go_with_the_options_of_a_fleet(redis_server: RedisServer):
    """`rollback REVISION` is of a folder."""
    result = await run(redis_server, "rollback", "0123456789ab")
    assert result.exit_code == 2
    assert "REVISION is of a folder" in result.output
