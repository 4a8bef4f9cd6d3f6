"""`router cache`: counts and purges of a real Redis, and of the memory of a running router."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kit.redis_server import RedisServer
from kit.shared_store import be_patient
from kit.stage import KEY, Stage, answers, http, message, request_body, stage

from router.cli.main import cli

pytestmark = pytest.mark.anyio

HAIKU = "claude-haiku-5-5"
POLICY = """\
version: 1
rules:
  - {name: short, when: {max_tokens: {lte: 64}}, route: haiku, cache: {ttl: 1h}}
  - {name: long, route: sonnet, cache: {ttl: 1h}}
otherwise: as-asked
"""
OTHER_KEY = [(b"x-api-key", b"sk-test-2"), *KEY[1:]]
REPLY = http(message())


@pytest.fixture(autouse=True)
def _no_settings_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not look like a slow Redis, for then nothing is replayed."""
    be_patient(monkeypatch)


def cache(*arguments: str) -> Result:
    """`router cache ARGUMENTS`, to its end."""
    return CliRunner().invoke(cli, ["cache", *arguments])


async def asked(*arguments: str) -> Result:
    """The same beside a router in this event loop."""
    return await asyncio.to_thread(cache, *arguments)


async def said(*arguments: str) -> dict:
    """What `--json` prints; the command must end well."""
    result = await asked(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def words(s: Stage) -> list[str | None]:
    """What `x-router-cache` says to three requests that differ in tenant, rule and model."""
    bodies = ((request_body(), KEY), (request_body(), OTHER_KEY), (request_body(max_tokens=65), KEY))
    return [(await s.post(body, headers)).header("x-router-cache") for body, headers in bodies]


async def all_kept(s: Stage) -> None:
    """Ask until all three are replayed: an answer asked for right behind a purge may count as one before it."""
    async with asyncio.timeout(10):
        while await words(s) != ["hit"] * 3:
            pass


def admin_of(s: Stage) -> list[str]:
    return ["--admin", f"http://127.0.0.1:{s.admin_port}"]


def where(kind: str, s: Stage, redis_server: RedisServer) -> list[str]:
    """The options that lead to the cache of a stage, directly or through its router."""
    return ["--cache", redis_server.url] if kind == "redis" else admin_of(s)


def cache_url(kind: str, redis_server: RedisServer) -> str:
    return "memory://?max_mb=8" if kind == "memory" else f"{redis_server.url}?max_mb=8"


KINDS = pytest.mark.parametrize("kind", ["memory", "redis", "redis through a router"])


@KINDS
async def test_a_purge_takes_what_its_filters_name(kind: str, redis_server: RedisServer):
    """By tenant, rule, model and everything; what is not meant is still replayed."""
    async with stage(answers(REPLY), policy=POLICY, cache=cache_url(kind, redis_server)) as s:
        place = where(kind, s, redis_server)
        await words(s)
        tenant = (await s.traces())[0]["tenant"]
        for filters, expected in (
            (["--tenant", tenant], ["miss", "hit", "miss"]),
            (["--rule", "long"], ["hit", "hit", "miss"]),
            (["--model", HAIKU], ["miss", "miss", "hit"]),
            (["--model", "claude-sonnet-5-5", "--rule", "short"], ["hit", "hit", "hit"]),
            (["--older-than", "1h"], ["hit", "hit", "hit"]),
            (["--all"], ["miss", "miss", "miss"]),
        ):
            await all_kept(s)
            done = await said("purge", *filters, *place)
            assert (done["is_done"], done["told"], done["unheard"], done["problem"]) == (True, 1, [], None)
            assert await words(s) == expected, filters
            assert done["deleted"] == expected.count("miss")


async def test_a_purge_is_in_force_in_every_process_when_it_returns(redis_server: RedisServer):
    """Copies in other processes too: the very next request of each is a miss."""
    async with (
        stage(answers(REPLY), policy=POLICY, cache=redis_server.url),
        stage(answers(REPLY), policy=POLICY, cache=redis_server.url) as other,
    ):
        await words(other)
        assert await words(other) == ["hit"] * 3
        done = await said("purge", "--all", "--cache", redis_server.url)
        assert (done["told"], done["deleted"]) == (2, 3)
        assert await words(other) == ["miss"] * 3


async def test_a_process_that_is_not_heard_of_is_said_so(redis_server: RedisServer):
    """Exit code 1, its name, and what that means; the purge is written down all the same."""
    async with stage(answers(REPLY), policy=POLICY, cache=redis_server.url) as s:
        await words(s)
        line = {"at_ms": 0, "knows": "", "counts": {}}
        seconds = int(redis_server.say("TIME").split(b"\r\n")[2])
        line["at_ms"] = (seconds - 5) * 1000
        processes = "router:v1:{cache-fleet}:processes"
        redis_server.say("HSET", processes, "gone\x1b[2J:1:ab", json.dumps(line))
        result = await asked("purge", "--all", "--cache", redis_server.url)
        assert result.exit_code == 1
        assert "3 answers deleted; 1 process will not" in result.stdout
        assert r"gone\x1b[2J:1:ab" in result.stderr
        assert "within 60 seconds" in result.stderr
        assert await words(s) == ["miss"] * 3
        found = json.loads((await asked("purge", "--all", "--json", "--cache", redis_server.url)).stdout)
        assert (found["is_done"], found["unheard"]) == (False, ["gone\x1b[2J:1:ab"])


async def test_a_purge_whose_end_cannot_be_seen_is_not_called_done(redis_server: RedisServer):
    """Redis dies behind the written purge: nobody can tell who knows of it."""
    seconds = int(redis_server.say("TIME").split(b"\r\n")[2])
    silent = {"at_ms": seconds * 1000, "knows": "", "counts": {}}
    redis_server.say("HSET", "router:v1:{cache-fleet}:processes", "silent:1:ab", json.dumps(silent))
    purge = asyncio.create_task(asked("purge", "--all", "--json", "--cache", redis_server.url))
    async with asyncio.timeout(10):
        while redis_server.say("HLEN", "router:v1:{cache-fleet}:purges") != b":1\r\n":  # noqa: ASYNC110 - in a thread
            await asyncio.sleep(0)
    redis_server.kill()
    result = await purge
    assert result.exit_code == 1
    done = json.loads(result.stdout)
    assert (done["is_done"], done["told"]) == (False, 0)
    assert done["problem"].startswith("redis: ")


async def test_a_purge_from_long_ago_does_not_stand_in_the_way(redis_server: RedisServer):
    """No process remembers one that no entry can be meant by any more; its line goes."""
    purges = "router:v1:{cache-fleet}:purges"
    old = {"until_ns": 1, "tenant": None, "rule": None, "model": None}
    redis_server.say("HSET", purges, "old", json.dumps(old))
    async with stage(answers(REPLY), policy=POLICY, cache=redis_server.url):
        done = await said("purge", "--all", "--cache", redis_server.url)
        assert (done["told"], done["unheard"]) == (1, [])
        assert redis_server.say("HEXISTS", purges, "old") == b":0\r\n"


async def test_a_look_through_a_large_cache_is_not_on_the_requests_link(redis_server: RedisServer):
    """Through a router too: thousands of questions at once would have that link rest, and requests miss."""
    for number in range(2_000):
        redis_server.say("SET", f"router:v1:cache:{{{number:064}}}", "not one of ours")
    async with stage(answers(REPLY), policy=POLICY, cache=redis_server.url) as s:
        done = await said("purge", "--all", *admin_of(s))
        assert (done["deleted"], done["is_done"]) == (2_000, True)
        assert s.app.stores.links["redis"].stats()["asked"] < 200


@KINDS
async def test_stats_count_every_process(kind: str, redis_server: RedisServer):
    """A table for people, one object for programs, the same through either door."""
    async with stage(answers(REPLY), policy=POLICY, cache=cache_url(kind, redis_server)) as s:
        place = where(kind, s, redis_server)
        await words(s)
        await words(s)
        is_shared = "redis" in kind
        async with asyncio.timeout(10):  # a process says how it does a few times a second
            while (found := await said("stats", *place))["total"].get("near_hits" if is_shared else "hits") != 3:
                pass
        assert found["cache"] == ("redis" if is_shared else "memory")
        assert found["stored"] == (3 if is_shared else None)
        (counts,) = found["processes"].values()
        assert counts == found["total"]
        result = await asked("stats", *place)
        assert result.exit_code == 0
        assert "PROCESS" in result.stdout
        if is_shared:
            assert result.stdout.startswith("3 answers in Redis, used by 1 process\n")


def test_redis_is_asked_with_no_router_running(redis_server: RedisServer):
    """A purge holds for whoever starts later."""
    redis_server.say("SET", "router:v1:cache:{" + "0" * 64 + "}", "not one of ours")
    result = cache("stats", "--cache", redis_server.url)
    assert (result.exit_code, result.stdout) == (0, "1 answers in Redis, used by 0 processes\n")
    result = cache("purge", "--tenant", "search", "--cache", redis_server.url)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "purged: tenant search",
        "1 answers deleted; 0 processes will not replay them any more",
    ]


def test_an_alias_means_its_model(redis_server: RedisServer):
    """An entry has the name that was sent, so all names of the model are purged."""
    by_alias, by_id = (
        json.loads(cache("purge", "--model", name, "--json", "--cache", redis_server.url).stdout)["models"]
        for name in ("claude-haiku-4-5", "claude-haiku-4-5-20251001")
    )
    assert by_alias == by_id == ["claude-haiku-4-5-20251001", "claude-haiku-4-5"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "nothing says which answers are meant"),
        (["--all", "--rule", "short"], "both given"),
        (["--older-than", "soon"], "expected an age"),
        (["--older-than", "0"], "expected an age"),
        (["--older-than", "31d"], "at most 30 days"),
        (["--tenant", ""], "expected a text"),
        (["--rule"], "requires an argument"),
        (["--all", "--admin", "ftp://h"], "expected `http://HOST:PORT`"),
        (["--all", "--admin", "http://user:pw@h"], "expected `http://HOST:PORT`"),
        (["--all", "--cache", "redis://:secret@h/zz"], "the number of a database"),
        (["--all", "--cache", "files://x"], "expected `memory://"),
        (["--all", "--config", "none.yaml"], "cannot read"),
    ],
)
def test_wrong_usage_ends_with_status_2(arguments: list[str], text: str):
    """Before anything is asked, and without a filter nothing is emptied by a slip."""
    result = cache("purge", *arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert "secret" not in result.stderr
    assert "pw" not in result.stderr


def test_a_cache_that_is_off_says_so():
    """Nothing is replayed, which is what a purge wants."""
    assert cache("stats", "--cache", "off").stdout == "the cache is off\n"
    result = cache("purge", "--all", "--cache", "off")
    assert (result.exit_code, "off" in result.stdout) == (0, True)
    assert json.loads(cache("purge", "--all", "--json", "--cache", "off").stdout)["is_done"] is True


@pytest.mark.parametrize("command", [["stats"], ["purge", "--all"]])
@pytest.mark.parametrize("place", [["--cache", "redis://127.0.0.1:1"], ["--admin", "http://127.0.0.1:1"]])
def test_what_cannot_be_reached_ends_with_status_1(command: list[str], place: list[str]):
    """With the reason and the next step, not a traceback."""
    result = cache(*command, *place)
    assert result.exit_code == 1
    assert "connect" in result.stderr or "refused" in result.stderr
    assert "hint: " in result.stderr
    assert result.stdout == ""


def test_a_port_that_is_not_known_has_to_be_named(monkeypatch: pytest.MonkeyPatch):
    """With `admin_port` 0 the router took any."""
    monkeypatch.setenv("ROUTER_ADMIN_PORT", "0")
    result = cache("stats")
    assert (result.exit_code, "--admin" in result.stderr) == (2, True)


async def test_the_token_of_the_settings_opens_the_listener(monkeypatch: pytest.MonkeyPatch):
    """Without it the command says which setting to set."""
    async with stage(answers(REPLY), policy=POLICY, admin_token="a long token") as s:
        result = await asked("stats", *admin_of(s))
        assert result.exit_code == 1
        assert "ROUTER_ADMIN_TOKEN" in result.stderr
        monkeypatch.setenv("ROUTER_ADMIN_TOKEN", "a long token")
        monkeypatch.setenv("ROUTER_ADMIN_PORT", str(s.admin_port))
        assert (await asked("stats")).exit_code == 0
        result = await asked("purge", "--all")
        assert result.exit_code == 0, result.stderr
        assert result.stdout.startswith("purged: everything\n")


@contextmanager
def another_program(status: int, body: bytes, seen: list[dict[str, str]], *headers: tuple[str, str]) -> Iterator[str]:
    """A web server that is no router → its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({"path": self.path, **self.headers})
            self.send_response(status)
            for name, value in (*headers, ("content-length", str(len(body)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>"), (200, b"[]"), (200, b"{}"), (404, b"{}"), (500, b""), (200, b"[" * 100_000), (302, b"")],
    ids=["page", "list", "empty", "error", "nothing", "deep", "redirect"],
)
def test_another_program_at_that_address_is_not_taken_for_a_router(
    status: int, body: bytes, monkeypatch: pytest.MonkeyPatch
):
    """And no redirect is followed: the token would go along."""
    monkeypatch.setenv("ROUTER_ADMIN_TOKEN", "a long token")
    seen: list[dict[str, str]] = []
    with another_program(status, body, seen, ("location", "/elsewhere")) as url:
        result = cache("stats", "--admin", url)
    assert result.exit_code == 1
    assert "not of an admin listener" in result.stderr
    assert [each["path"] for each in seen] == ["/cache"]
