"""Pushed policies and a Redis that cannot be trusted: forged, lost, old, half there, or closed to us."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from kit.fleet import encoded, folder_of, heard, member, pair, policy_page, push, run, screen_of, served, version
from kit.redis_server import RedisServer, becomes

from router.fleet import signing_key
from router.policy.check import revision_of
from router.policy.push_store import FILES, LEFT, NOTES, NOW, PROCESSES, PushStore
from router.policy.pushed import MOST_NUMBER, Version, pack_files, pack_version
from router.redis_link import RedisLink
from router.settings import Settings

pytestmark = pytest.mark.anyio

Link = Callable[..., RedisLink]
SECRET = "a secret of the fleet"
KEY = signing_key(Settings(tenant_secret=SECRET))


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fleet that beats quicker than it need."""
    monkeypatch.setattr("router.policy.push_follower.POLL_S", 0.03)
    monkeypatch.setattr("router.policy.push_follower.ROLL_S", 0.1)
    monkeypatch.setattr("router.policy.push_store._NOBODY_S", 0.2)


@pytest.fixture
def store(redis_server: RedisServer, connect: Link) -> PushStore:
    """As somebody sees it who has the address of Redis and no secret."""
    return PushStore(connect(redis_server.url, deadline_s=2.0))


async def state(s: object, wanted: str) -> None:
    """Wait until a router has come to that end."""
    await becomes(lambda: s.app.fleet.status()["state"] == wanted)  # type: ignore[attr-defined]


# Signed


async def test_what_is_signed_is_taken_and_what_is_not_is_refused(
    redis_server: RedisServer, tmp_path: Path, store: PushStore
):
    """Whoever may write that Redis, and has no `tenant_secret`, can put nothing in force."""
    async with pair(redis_server, tenant_secret=SECRET) as (one, other):
        done = await push(redis_server, tmp_path, 1, secret=SECRET)
        assert done["is_everywhere"]
        unsigned = await run(redis_server, "push", str(folder_of(tmp_path / "forged", version(2))))
        assert unsigned.exit_code == 1
        assert "version #2 is not signed with the `tenant_secret` of this process" in unsigned.stdout
        wrong = await run(redis_server, "push", str(tmp_path / "forged"), secret="another")
        assert wrong.exit_code == 1
        assert "in force in 0 of 2 processes" in wrong.stdout
        for s in (one, other):
            assert (await served(s))[0] == "rule-1"
            assert s.app.policies.source == "pushed #1"
            assert "was refused: version #3 is not signed" in await screen_of(s)
        assert (await run(redis_server, "unpush")).exit_code == 1
        assert (await served(one))[0] == "rule-1"
        listed = await run(redis_server, "pushed", "--json", secret=SECRET)
        document = json.loads(listed.stdout)
        assert [each["number"] for each in document["versions"]] == [1]
        assert len(document["problems"]) == 3
        shown = await run(redis_server, "pushed", secret=SECRET)
        assert "version #2 is not signed" in shown.stderr
        back = await run(redis_server, "unpush", secret=SECRET)
        assert back.exit_code == 0, back.output
        assert {(await served(s))[0] for s in (one, other)} == {"rule-0"}


async def test_a_signed_version_cannot_be_used_again(redis_server: RedisServer, tmp_path: Path, store: PushStore):
    """Under a later number its signature does not hold; under its own it is not later. Nor can its files be changed."""
    async with member(redis_server, tenant_secret=SECRET) as s:
        await heard(s, 1)
        for number in (1, 2):
            await push(redis_server, tmp_path, number, secret=SECRET)
        link = store._link
        old, texts = await link.ask("HGET", NOTES, "1"), await link.ask("HGET", FILES, "1")
        await link.ask("HSET", NOTES, "7", old)
        await link.ask("HSET", FILES, "7", texts)
        await link.ask("SET", NOW, "7")
        await state(s, "refused")
        assert (await served(s))[0] == "rule-2"
        await link.ask("SET", NOW, "1")
        await becomes(lambda: s.app.fleet.status()["is_behind"])
        assert (await served(s))[0] == "rule-2"
        again = await push(redis_server, tmp_path, 3, secret=SECRET)
        assert again["number"] == 8
        assert (await served(s))[0] == "rule-3"


async def test_files_changed_under_a_signed_version_are_refused(
    redis_server: RedisServer, tmp_path: Path, connect: Link
):
    """The hash of the files is signed, whole: a start does not take others either."""
    async with member(redis_server, tenant_secret=SECRET) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1, "--sticky", secret=SECRET)
    await connect(redis_server.url, deadline_s=2.0).ask("HSET", FILES, "1", pack_files(encoded(2)))
    async with member(redis_server, tenant_secret=SECRET) as s:
        await state(s, "refused")
        assert (await served(s))[0] == "rule-0"
        assert "damaged" in (await policy_page(s))["fleet"]["refused"]["problem"]


async def test_a_number_that_somebody_made_up_does_not_use_numbers_up(
    redis_server: RedisServer, tmp_path: Path, connect: Link
):
    """The largest there is, unsigned: the next push goes on from the last one that was signed."""
    link = connect(redis_server.url, deadline_s=2.0)
    async with member(redis_server, tenant_secret=SECRET) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1, secret=SECRET)
        await link.ask("HSET", NOTES, str(MOST_NUMBER), pack_version(Version(MOST_NUMBER, 1, "", "unpush"), None))
        await link.ask("SET", NOW, str(MOST_NUMBER))
        await state(s, "refused")
        done = await push(redis_server, tmp_path, 2, secret=SECRET)
        assert (done["number"], done["is_everywhere"]) == (2, True)
        assert (await served(s))[0] == "rule-2"


async def test_versions_of_another_secret_do_not_push_out_ours(
    redis_server: RedisServer, connect: Link, monkeypatch: pytest.MonkeyPatch
):
    """Twenty are kept of ours, and as many of what we cannot read: whoever pushed those may be right."""
    monkeypatch.setattr("router.policy.push_store._NOBODY_S", 0.0)
    ours, theirs = (PushStore(connect(redis_server.url, deadline_s=2.0), key) for key in (KEY, b"other"))
    new = Version(0, 0, revision_of(encoded(1)), "push")
    await ours.push(new, pack_files(encoded(1)))
    for _ in range(22):
        await theirs.push(new, pack_files(encoded(1)))
    assert [each.number for each in await ours.versions()] == [1]
    await ours.push(new, pack_files(encoded(1)))
    held = await ours.held()
    assert [each.number for each in held if not each.problem] == [1, 24]
    assert len(held) == 22


# Sticky


async def test_a_sticky_version_that_a_newer_folder_ended_is_over(redis_server: RedisServer, tmp_path: Path):
    """Also for a process that starts when the folder holds again what it held before the push."""
    async with member(redis_server) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1, "--sticky")
        s.write_policy(version(2)["default"])
        await becomes(lambda: s.app.policies.pushed == 0)
        await becomes(lambda: redis_server.say("GET", LEFT) == b"$1\r\n1\r\n")
    async with member(redis_server) as s:
        assert (await served(s))[0] == "rule-0"
        assert s.app.fleet.status()["state"] == "left"
        await heard(s, 1)
        await push(redis_server, tmp_path, 3, "--sticky")
    async with member(redis_server) as s:
        assert (await served(s))[0] == "rule-3"


async def test_a_folder_mended_behind_a_push_is_kept_in_the_history(redis_server: RedisServer, tmp_path: Path):
    """It compiles, so it may be gone back to; and a start from the history is over, though the push serves."""
    history = tmp_path / "history"
    async with member(redis_server, number=0, policy_history=str(history)) as s, member(redis_server, number=2):
        await heard(s, 2, other_revision=1)
        await push(redis_server, tmp_path, 1)
        s.write_policy(version(2)["default"])
        await becomes(lambda: len(s.app.policies.status()["history"]) == 2)
        assert (await served(s))[0] == "rule-1"
        kept = {entry["revision"] for entry in s.app.policies.status()["history"]}
        assert s.app.policies.folder_revision in kept
        assert revision_of(encoded(1)) not in kept


# Lost


async def test_after_redis_lost_all_a_push_asks_every_process(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also when it comes so soon that one of them has not been heard of again, and under a number never used."""
    monkeypatch.setattr("router.policy.push_store._NOBODY_S", 1.5)
    monkeypatch.setattr("router.policy.push_follower.ROLL_S", 0.7)
    async with pair(redis_server):
        for number in (1, 2):
            await push(redis_server, tmp_path, number)
        redis_server.say("FLUSHALL")
        await becomes(lambda: redis_server.say("HLEN", PROCESSES) != b":0\r\n")
        done = await push(redis_server, tmp_path, 3)
        assert [row["state"] for row in done["processes"]] == ["taken", "taken"]
        assert done["number"] == 3


async def test_a_master_that_lags_behind_is_told_and_not_followed(redis_server: RedisServer, tmp_path: Path):
    """After a failover Redis may know an older version: what serves stays, it is said, and the next push mends it."""
    async with member(redis_server) as s:
        await heard(s, 1)
        for number in (1, 2):
            await push(redis_server, tmp_path, number)
        redis_server.say("SET", NOW, "1")
        redis_server.say("HDEL", NOTES, "2")
        redis_server.say("HDEL", FILES, "2")
        await becomes(lambda: s.app.fleet.status()["is_behind"])
        assert (await served(s))[0] == "rule-2"
        assert "Redis has lost the version of the pushed policies that this process follows" in await screen_of(s)
        done = await push(redis_server, tmp_path, 3)
        assert done["number"] == 3
        assert not s.app.fleet.status()["is_behind"]


async def test_a_clock_of_redis_that_goes_back_holds_no_push_up(
    redis_server: RedisServer, tmp_path: Path, store: PushStore
):
    """Numbers tell which is later. What seems to be of tomorrow is older than a process that starts."""
    async with member(redis_server) as s:
        await heard(s, 1)
        ahead = await store.now_ms() + 86_400_000
        packed = pack_files(encoded(1))
        new = Version(5, ahead, revision_of(encoded(1)), "push", digest=sha256(packed).hexdigest())
        await store._link.ask("HSET", NOTES, "5", pack_version(new, None))
        await store._link.ask("HSET", FILES, "5", packed)
        await store._link.ask("SET", NOW, "5")
        await becomes(lambda: s.app.policies.source == "pushed #5")
        async with member(redis_server) as late:
            assert (await served(late))[0] == "rule-0"
            assert late.app.fleet.status()["state"] == "older"
        done = await push(redis_server, tmp_path, 2)
        assert (done["number"], done["is_everywhere"]) == (6, True)
        assert (await served(s))[0] == "rule-2"


@pytest.mark.parametrize("late", [NOTES, FILES])
async def test_what_is_not_there_yet_is_looked_for_again(redis_server: RedisServer, store: PushStore, late: str):
    """A number may be there before what it is of; after a while it is refused, and said."""
    packed = pack_files(encoded(1))
    new = Version(1, await store.now_ms() + 1, revision_of(encoded(1)), "push", digest=sha256(packed).hexdigest())
    async with member(redis_server) as s:
        await heard(s, 1)
        held = {NOTES: pack_version(replace(new, at_ms=await store.now_ms()), None), FILES: packed}
        for key in {NOTES, FILES} - {late}:
            await store._link.ask("HSET", key, "1", held[key])
        await store._link.ask("SET", NOW, "1")
        await becomes(lambda: s.app.fleet._follower._looks > 2)  # type: ignore[union-attr]
        await store._link.ask("HSET", late, "1", held[late])
        await becomes(lambda: s.app.policies.source == "pushed #1")
        await store._link.ask("SET", NOW, "2")
        await state(s, "refused")
        assert "the store holds nothing of it" in s.app.fleet.status()["refused"]["problem"]


# Closed


async def test_a_user_without_the_rights_is_told_once_and_everywhere(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
):
    """With what is lacking and where the rights are listed; over when they are given."""
    rights = ("~router:*", "+@all", "-hset", "-getrange")
    assert redis_server.say("ACL", "SETUSER", "small", "on", ">p", *rights) == b"+OK\r\n"
    url = redis_server.url.replace("://", "://small:p@")
    with caplog.at_level("INFO", "router"):
        async with member(redis_server, fleet=url) as s:
            await becomes(lambda: s.app.fleet.stats()["failures"] > 6)
            said = [line for line in caplog.messages if line.startswith("fleet: pushed policies cannot be")]
            assert len(said) == 2
            assert all("its user may lack a right, see the list in docs/operations.md" in line for line in said)
            assert "NOPERM" in s.app.fleet.status()["trouble"]
            assert "Redis does not do what pushed policies need: " in await screen_of(s)
            assert redis_server.say("ACL", "SETUSER", "small", "+hset", "+getrange") == b"+OK\r\n"
            await heard(s, 1)
            await becomes(lambda: s.app.fleet.status()["trouble"] == "")
            assert "fleet: pushed policies can be written again" in caplog.messages
