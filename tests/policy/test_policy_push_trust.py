"""Pushed policies and a Redis that cannot be trusted: forged, lost, old, half there, or closed to us."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from kit.fleet import (
    encoded,
    folder_of,
    heard,
    member,
    pair,
    policy_page,
    push,
    run,
    screen_of,
    served,
    version,
)
from kit.redis_server import RedisServer, becomes
from kit.stage import Stage

from router.fleet import signing_key
from router.policy.check import revision_of
from router.policy.push_store import FILES, LEASE_MS, LEFT, NOTES, NOW, PROCESSES, SINCE, PushStore
from router.policy.pushed import MOST_NUMBER, Standing, Version, pack_files, pack_standing, pack_version
from router.redis_link import RedisLink, RedisUnavailable
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


async def state(s: Stage, wanted: str) -> None:
    """Wait until a router has come to that end."""
    await becomes(lambda: s.app.fleet.status()["state"] == wanted)


async def looks_again(s: Stage) -> None:
    """Wait until a router has asked Redis a few times more: what it would do it has done."""
    asked = lambda: s.app.stores.links["redis_fleet"].stats()["asked"]  # noqa: E731
    looks = asked()
    await becomes(lambda: asked() > looks + 6)


def of(number: int, key: bytes | None = None) -> Version:
    """A version of the files of that number, which `forge` puts under any; `who` carries the key for it."""
    digest = sha256(pack_files(encoded(number))).hexdigest()
    return Version(number, 0, revision_of(encoded(number)), "push", who=(key or b"").decode(), digest=digest)


async def forge(store: PushStore, number: int, version: Version, at_ms: int | None = None) -> None:
    """Write a version into Redis and put it in force, as somebody can who has no part in this program."""
    now_ms = await store.now_ms() if at_ms is None else at_ms
    note = pack_version(replace(version, number=number, at_ms=now_ms), version.who.encode() or None)
    await store._link.ask("HSET", NOTES, str(number), note)
    if version.revision:
        await store._link.ask("HSET", FILES, str(number), pack_files(encoded(version.number)))
    await store._link.ask("SET", NOW, str(number))


# Signed


async def test_what_is_signed_is_taken_and_what_is_not_is_refused(
    redis_server: RedisServer, tmp_path: Path, store: PushStore
):
    """Whoever may write that Redis, and has no `tenant_secret`, can put nothing in force, nor take anything back."""
    async with pair(redis_server, tenant_secret=SECRET) as (one, other):
        done = await push(redis_server, tmp_path, 1, secret=SECRET)
        assert done["is_everywhere"]
        for number, forged in ((2, of(2)), (3, of(2, key=b"another")), (4, Version(0, 0, "", "unpush"))):
            await forge(store, number, forged)
            for s in (one, other):
                await becomes(
                    lambda s=s, number=number: (s.app.fleet.status()["refused"] or {}).get("number") == number
                )
                assert (await served(s))[0] == "rule-1"
                assert s.app.policies.source == "pushed #1"
                problem = f"version #{number} is not signed with the `tenant_secret` of this process"
                assert f"was refused: {problem}" in await screen_of(s)
        listed = await run(redis_server, "pushed", "--json", secret=SECRET)
        document = json.loads(listed.stdout)
        assert [each["number"] for each in document["versions"]] == [1]
        assert len(document["problems"]) == 3
        shown = await run(redis_server, "pushed", secret=SECRET)
        assert "version #2 is not signed" in shown.stderr
        again = await run(redis_server, "rollback", secret=SECRET)  # from one that nobody takes to one that all do
        assert again.exit_code == 0, again.output
        assert (await served(one))[0] == "rule-1"
        back = await run(redis_server, "unpush", secret=SECRET)
        assert back.exit_code == 0, back.output
        assert {(await served(s))[0] for s in (one, other)} == {"rule-0"}


@pytest.mark.parametrize("secret", [None, "another"])
@pytest.mark.parametrize("command", ["push", "unpush"])
async def test_who_pushes_with_another_secret_than_the_routers_changes_nothing(
    redis_server: RedisServer, tmp_path: Path, secret: str | None, command: str
):
    """They would all refuse it, and what is signed would no longer be in force for those that start."""
    async with member(redis_server, tenant_secret=SECRET) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1, "--sticky", secret=SECRET)
        what = [command] if command == "unpush" else [command, str(tmp_path / "version-1")]
        result = await run(redis_server, *what, secret=secret)
        assert result.exit_code == 1
        assert "have another `tenant_secret`" in result.stderr
        assert "undo:" not in result.stdout
        assert redis_server.say("GET", NOW) == b"$1\r\n1\r\n"


@pytest.mark.parametrize("command", ["push", "unpush"])
async def test_without_a_secret_nothing_takes_the_place_of_what_is_signed(
    redis_server: RedisServer, tmp_path: Path, command: str
):
    """Also where nobody is there to refuse it, or only some would: those that start would lose it."""
    what = [command] if command == "unpush" else [command, str(folder_of(tmp_path / "new", version(2)))]
    async with member(redis_server, tenant_secret=SECRET) as s:
        await heard(s, 1)
        async with member(redis_server) as trusting:
            await heard(trusting, 2)
            await push(redis_server, tmp_path, 1, "--sticky", secret=SECRET)
            result = await run(redis_server, *what)
            assert result.exit_code == 1
            assert "what is in force is signed" in result.stderr
    result = await run(redis_server, *what)
    assert result.exit_code == 1
    assert "what is in force is signed" in result.stderr
    async with member(redis_server, tenant_secret=SECRET) as late:
        assert (await served(late))[0] == "rule-1"


async def test_a_sticky_push_that_nobody_with_its_secret_could_keep_says_so(redis_server: RedisServer, tmp_path: Path):
    """The routers were heard of; they have no secret."""
    async with member(redis_server) as s:
        await heard(s, 1)
        place = str(folder_of(tmp_path / "new", version(1)))
        result = await run(redis_server, "push", place, "--sticky", secret=SECRET)
        assert result.exit_code == 1
        assert "no process that was heard of has this `tenant_secret`" in result.stderr


async def test_a_process_without_a_secret_takes_what_is_signed(redis_server: RedisServer, tmp_path: Path):
    """It believes anybody; so a secret can be given to one router after another."""
    async with member(redis_server) as s:
        await heard(s, 1)
        done = await push(redis_server, tmp_path, 1, secret=SECRET)
        assert done["is_everywhere"]
        assert (await served(s))[0] == "rule-1"


async def test_what_is_hidden_while_a_process_starts_is_not_new_to_it(
    redis_server: RedisServer, tmp_path: Path, store: PushStore
):
    """An old signed version that shows up afterwards is as old as it is."""
    async with member(redis_server, tenant_secret=SECRET) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1, secret=SECRET)
        await push(redis_server, tmp_path, 2, secret=SECRET)
    await store._link.ask("DEL", NOW)
    async with member(redis_server, tenant_secret=SECRET) as s:
        await heard(s, 1)
        await store._link.ask("SET", NOW, "2")
        await state(s, "older")
        assert (await served(s))[0] == "rule-0"


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


@pytest.mark.parametrize("changed", [pack_files(encoded(2)), b""], ids=["other files", "the same, written otherwise"])
async def test_files_changed_under_a_signed_version_are_refused(
    redis_server: RedisServer, tmp_path: Path, connect: Link, changed: bytes
):
    """The hash of the files is signed, whole: a start does not take others either."""
    async with member(redis_server, tenant_secret=SECRET) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1, "--sticky", secret=SECRET)
    same_meaning = pack_files(encoded(1)).replace(b'":"', b'": "')  # whatever a reader of JSON makes of it
    await connect(redis_server.url, deadline_s=2.0).ask("HSET", FILES, "1", changed or same_meaning)
    async with member(redis_server, tenant_secret=SECRET) as s:
        await state(s, "refused")
        assert (await served(s))[0] == "rule-0"
        assert "damaged" in (await policy_page(s))["fleet"]["refused"]["problem"]


@pytest.mark.parametrize("number", [MOST_NUMBER, MOST_NUMBER // 2, 40_000])
async def test_a_number_that_somebody_made_up_does_not_use_numbers_up(
    redis_server: RedisServer, tmp_path: Path, store: PushStore, number: int
):
    """In a version or in a word of a process: the next push goes on from the last one that was signed, also when Redis
    has lost all, and every router takes it."""
    async with member(redis_server, tenant_secret=SECRET) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1, secret=SECRET)
        await forge(store, number, Version(0, 0, "", "unpush"))
        fake = Standing("fake", "0" * 12, "folder", "0" * 12, number, 1, number, "taken")
        line = b"%d %s %s" % (await store.now_ms(), b"0" * 12, pack_standing(fake, None))
        await store._link.ask("HSET", PROCESSES, "fake", line)
        await state(s, "refused")
        ours = PushStore(store._link, KEY)
        new = await ours.push(of(2), pack_files(encoded(2)))
        assert new.number == 2
        assert "0" * 12 not in new.over
        await becomes(lambda: s.app.policies.source == "pushed #2")
        redis_server.say("FLUSHALL")
        assert (await push(redis_server, tmp_path, 3, secret=SECRET))["number"] == 3
        assert (await served(s))[0] == "rule-3"


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
    for number in range(30, 60):  # of somebody who takes nothing away
        await ours._link.ask("HSET", NOTES, str(number), "nothing")
    await ours.push(Version(0, 0, "", "unpush"))
    held = await ours.held()
    assert [each.number for each in held if not each.problem] == [1, 24, 60]
    assert [each.number for each in held if each.problem] == list(range(40, 60))


# Sticky


async def test_a_sticky_version_that_a_newer_folder_ended_is_over(redis_server: RedisServer, tmp_path: Path):
    """A folder that holds again what it held before the push does not bring it back."""
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


async def test_a_process_that_starts_with_a_newer_folder_ends_a_sticky_version(
    redis_server: RedisServer, tmp_path: Path
):
    """A rollout, and back again: the folder as it was is the later word."""
    async with member(redis_server) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1, "--sticky")
        async with member(redis_server, number=2) as new:
            assert (await served(new))[0] == "rule-2"
            await becomes(lambda: redis_server.say("GET", LEFT) == b"$1\r\n1\r\n")
        async with member(redis_server) as undone:
            assert (await served(undone))[0] == "rule-0"


async def test_a_sticky_version_goes_on_where_folders_come_to_hold_its_files(redis_server: RedisServer, tmp_path: Path):
    """Pushed to have it now and put into the folders to have it for good: who still has the old one is not behind."""
    async with member(redis_server) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1, "--sticky")
        for name, text in version(1).items():
            (s.folder / "policies" / f"{name}.yaml").write_text(text)
        await becomes(lambda: s.app.policies.source == "folder")
        await looks_again(s)
        async with member(redis_server) as late:
            assert (await served(late))[0] == "rule-1"
            assert late.app.policies.source == "pushed #1"
        assert redis_server.say("EXISTS", LEFT) == b":0\r\n"


async def test_a_folder_that_goes_back_from_what_was_pushed_ends_a_sticky_version(
    redis_server: RedisServer, tmp_path: Path
):
    """Pushed, landed in the folders, and taken back there: that is the last word, also for those that start."""
    async with member(redis_server) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1, "--sticky")
        for number in (1, 0):
            for name, text in version(number).items():
                (s.folder / "policies" / f"{name}.yaml").write_text(text)
            revision = revision_of(encoded(number))
            await becomes(lambda: (s.app.policies.source, s.app.policies.current.revision) == ("folder", revision))  # noqa: B023
            await looks_again(s)
        await becomes(lambda: redis_server.say("GET", LEFT) == b"$1\r\n1\r\n")
    async with member(redis_server) as late:
        assert (await served(late))[0] == "rule-0"


async def test_a_folder_that_cannot_be_taken_ends_no_sticky_version(redis_server: RedisServer, tmp_path: Path):
    """A broken edit everywhere and a sticky push that mends it: a process that refuses it as well is no later word."""
    catalog = Path(__file__).parents[2] / "router" / "data" / "models.yaml"
    poor = tmp_path / "models.yaml"
    poor.write_text(catalog.read_text().replace("claude-sonnet-5-5", "claude-other-5-5"))
    async with member(redis_server, catalog=str(poor)) as s:
        await heard(s, 1)
        s.write_policy("version: 1\nrules: [{name: x, route: nowhere}]\n")
        await becomes(lambda: s.app.policies.status()["last_error"] != "")
        await becomes(lambda: s.app.policies.folder_revision.encode() in redis_server.say("HGETALL", PROCESSES))
        result = await run(redis_server, "push", str(folder_of(tmp_path / "new", version(1))), "--sticky")
        assert result.exit_code == 1
        await state(s, "refused")
        await looks_again(s)
        assert redis_server.say("EXISTS", LEFT) == b":0\r\n"


async def test_what_a_lost_redis_was_told_is_told_again(redis_server: RedisServer, tmp_path: Path):
    """A failover may lose that a sticky version is over, and keep the version."""
    async with member(redis_server) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1, "--sticky")
        s.write_policy(version(2)["default"])
        await becomes(lambda: redis_server.say("GET", LEFT) == b"$1\r\n1\r\n")
        redis_server.say("DEL", LEFT)
        failures = s.app.fleet.stats()["failures"]
        redis_server.freeze()
        await becomes(lambda: s.app.fleet.stats()["failures"] > failures, 15)
        redis_server.thaw()
        await becomes(lambda: redis_server.say("GET", LEFT) == b"$1\r\n1\r\n", 15)


async def test_a_version_that_is_not_sticky_leaves_no_word_behind(redis_server: RedisServer, tmp_path: Path):
    """It is over for those that start anyway."""
    async with member(redis_server) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1)
        s.write_policy(version(2)["default"])
        await state(s, "left")
        await looks_again(s)
        assert redis_server.say("EXISTS", LEFT) == b":0\r\n"


async def test_a_rollback_is_as_sticky_as_what_it_goes_back_to(redis_server: RedisServer, tmp_path: Path):
    """It puts that version in force again, with all that was said of it."""
    async with member(redis_server) as s:
        await heard(s, 1)
        await push(redis_server, tmp_path, 1, "--sticky")
        await push(redis_server, tmp_path, 2)
        done = json.loads((await run(redis_server, "rollback", "--json")).stdout)
        assert (done["of"], done["is_sticky"], done["is_everywhere"]) == (1, True, True)
        done = json.loads((await run(redis_server, "rollback", "--to", "2", "--json")).stdout)
        assert (done["of"], done["is_sticky"]) == (2, False)


async def test_a_folder_that_changed_while_redis_was_away_is_newer_than_a_push_before_it(
    redis_server: RedisServer, tmp_path: Path
):
    """Whoever was cut off comes to the same end as the others, which took the push and then the folder."""
    async with member(redis_server) as cut, member(redis_server) as other:
        await heard(cut, 2)
        rights = ("-getrange", "-hget")
        assert redis_server.say("ACL", "SETUSER", "default", *rights) == b"+OK\r\n"
        await becomes(lambda: cut.app.fleet.status()["trouble"] != "")
        store = PushStore(RedisLink(redis_server.url, deadline_s=2.0))
        at_ms = await store.now_ms()
        packed = pack_files(encoded(1))
        for key, value in (
            (NOTES, pack_version(replace(of(1), at_ms=at_ms, who="", over=(revision_of(encoded(0)),)), None)),
            (FILES, packed),
        ):
            await store._link.ask("HSET", key, "1", value)
        await store._link.ask("SET", NOW, "1")
        cut.write_policy(version(2)["default"])
        await becomes(lambda: (cut.app.policies.current.revision) != revision_of(encoded(0)))
        assert redis_server.say("ACL", "SETUSER", "default", "+getrange", "+hget") == b"+OK\r\n"
        await state(cut, "left")
        assert (await served(cut))[0] == "rule-2"
        await becomes(lambda: other.app.policies.source == "pushed #1")  # its folder did not change
        await store._link.close()


async def test_a_folder_that_changes_while_a_later_push_is_refused_is_said(
    redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, store: PushStore
):
    """The refusal stays what the process says of itself; that the folder serves is logged all the same."""
    with caplog.at_level("INFO", "router"):
        async with member(redis_server, tenant_secret=SECRET) as s:
            await heard(s, 1)
            await push(redis_server, tmp_path, 1, "--sticky", secret=SECRET)
            await forge(store, 2, of(2))
            await state(s, "refused")
            s.write_policy(version(3)["default"])
            await becomes(lambda: "the folder has changed since version #1 was pushed" in caplog.text)
            await becomes(lambda: redis_server.say("GET", LEFT) == b"$1\r\n1\r\n")
            assert s.app.fleet.status()["state"] == "refused"
            assert not s.app.fleet.status()["is_behind"]


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


async def test_after_redis_lost_all_a_push_waits_until_all_can_have_been_heard_of(
    redis_server: RedisServer, connect: Link, monkeypatch: pytest.MonkeyPatch
):
    """One was heard of, another not yet: the version stands before the folders of both, and both are asked."""
    monkeypatch.setattr("router.policy.push_store._NOBODY_S", 0.7)
    one, other = (PushStore(connect(redis_server.url, deadline_s=2.0)) for _ in range(2))
    await one.announce(Standing("one", "1" * 12, "folder", "1" * 12, last=7))
    pushing = asyncio.ensure_future(one.push(of(1), pack_files(encoded(1))))
    for _ in range(4):  # it has had the time to look around
        await other.now_ms()
    await other.announce(Standing("other", "2" * 12, "folder", "2" * 12, last=9))
    new = await pushing
    assert new.over == ("1" * 12, "2" * 12)
    assert new.number == 10


async def test_after_redis_lost_all_a_push_reaches_every_process(redis_server: RedisServer, tmp_path: Path):
    """Under a number never used."""
    async with pair(redis_server):
        for number in (1, 2):
            await push(redis_server, tmp_path, number)
        redis_server.say("FLUSHALL")
        done = await push(redis_server, tmp_path, 3)
        assert [row["state"] for row in done["processes"]] == ["taken", "taken"]
        assert done["number"] == 3


async def test_a_redis_that_was_away_and_lost_nothing_is_waited_for_as_well(
    redis_server: RedisServer, store: PushStore, monkeypatch: pytest.MonkeyPatch
):
    """After its restart from a file, what processes said is too old to tell who is alive: the first that is heard of
    again begins the wait anew."""
    monkeypatch.setattr("router.policy.push_store._NOBODY_S", 30.0)
    now_ms = await store.now_ms()
    standing = Standing("one", "0" * 12, "folder", "0" * 12)
    await store.announce(standing)
    await store._link.ask("SET", SINCE, str(now_ms - 60_000))
    await store.announce(standing)
    assert redis_server.say("GET", SINCE).split()[1] == b"%d" % (now_ms - 60_000)
    old = b"%d %s %s" % (now_ms - LEASE_MS - 1_000, b"0" * 12, pack_standing(standing, None))
    await store._link.ask("HSET", PROCESSES, "one", old)
    await store.announce(standing)
    assert int(redis_server.say("GET", SINCE).split()[1]) >= now_ms


async def test_pushers_at_once_get_a_number_each(
    redis_server: RedisServer, connect: Link, monkeypatch: pytest.MonkeyPatch
):
    """What each puts in force is what was there under its number: none takes another's place."""
    monkeypatch.setattr("router.policy.push_store._NOBODY_S", 0.0)
    stores = [PushStore(connect(redis_server.url, deadline_s=2.0)) for _ in range(6)]
    files = [encoded(number) for number in range(6)]
    new = await asyncio.gather(
        *(
            store.push(Version(0, 0, revision_of(each), "push"), pack_files(each))
            for store, each in zip(stores, files, strict=True)
        )
    )
    assert sorted(each.number for each in new) == [1, 2, 3, 4, 5, 6]
    for each, texts in zip(new, files, strict=True):
        assert await stores[0].files(each) == texts
    assert await stores[0].number() == 6


async def test_a_version_whose_place_is_no_hash_leaves_nothing_behind(redis_server: RedisServer, store: PushStore):
    """The note is written after the files, and the number after both."""
    redis_server.say("SET", FILES, "x")
    with pytest.raises(RedisUnavailable):
        await store.push(of(1), pack_files(encoded(1)))
    assert redis_server.say("EXISTS", NOW, NOTES) == b":0\r\n"


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
    """What seems to be of tomorrow is older than any process; numbers tell which is later, so the next one is taken."""
    async with member(redis_server) as s:
        await heard(s, 1)
        await forge(store, 5, of(1), at_ms=await store.now_ms() + 86_400_000)
        await state(s, "older")
        assert (await served(s))[0] == "rule-0"
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
