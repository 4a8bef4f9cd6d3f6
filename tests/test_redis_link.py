"""The link to Redis against real servers: what it says, how long it waits, when it rests, and whose reply is whose."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.fault_proxy import fault_proxy
from kit.redis_server import RedisServer, failure, until

from router.errors import SettingsError
from router.redis_link import RedisLink, RedisUnavailable, check_redis_url

pytestmark = pytest.mark.anyio

Connect = Callable[..., RedisLink]
CALM = {"deadline_s": 2.0, "give_up_s": 3.0}  # where a busy machine must not fail the test


# Addresses


@pytest.mark.parametrize(
    "url",
    [
        "redis://h", "redis://h:6380", "redis://h/", "redis://h/3", "redis://[::1]:6379/0", "rediss://u:p%40w@h:1/15",
        "redis://:p@h", "redis+sentinel://a:1,b:2/main", "redis+sentinel://u:p@a,[::1]:2/main/4", "redis+cluster://a:1,b",
        "rediss+cluster://u:p@a:1/", "rediss+sentinel://a/main",
    ],
)  # fmt: skip
def test_these_addresses_are_taken(url: str):
    """The four forms, with what is optional left out or not."""
    check_redis_url(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "unknown scheme"), ("h:6379", "unknown scheme"), ("http://u:hunter2@h", "unknown scheme"),
        ("redis://", "host"), ("redis://u:hunter2@", "host"), ("redis://u:hunter2@:6379", "host"),
        ("redis://u:hunter2@h:0", "host"), ("redis://u:hunter2@h:65536", "host"), ("redis://u:hunter2@h:x", "host"),
        ("redis://u:hunter2/x@h", "host"), ("redis://h,i", "host"), ("redis+cluster://a,,b", "host"),
        ("redis://[::1", "not a URL"), ("redis://u:hunter2@h é", "not a URL"), ("redis://u:hunter2@h\n", "not a URL"),
        ("redis://u:hunter2@h/a", "database"), ("redis://u:hunter2@h/1/2", "database"), ("redis://h/-1", "database"),
        ("redis+cluster://u:hunter2@h/1", "database"), ("redis+sentinel://a/main/x", "database"),
        ("redis+sentinel://u:hunter2@a", "master"), ("redis+sentinel://a/", "master"),
        ("redis://u:hunter2@h?db=3", "`?`"), ("redis://u:hunter#2@h", "`#`"),
    ],
)  # fmt: skip
def test_these_are_refused_without_showing_the_password(url: str, says: str):
    """The message names the fault and the forms expected; no part of the address, for any part may be the password."""
    with pytest.raises(SettingsError) as caught:
        check_redis_url(url)
    shown = f"{caught.value.message} {caught.value.hint} {caught.value.__cause__!r} {caught.value!r}"
    assert says in caught.value.message
    assert "`redis://[USER:PASSWORD@]HOST[:PORT][/DB]`" in caught.value.hint
    assert "hunter" not in shown


# What is said


async def test_bytes_go_in_and_bytes_come_out(redis_server: RedisServer, connect: Connect):
    """Replies are as the protocol has them: nothing is decoded, nothing turned into True."""
    link = connect(redis_server.url, **CALM)
    value = bytes(range(256)) * 100
    assert await link.ask("SET", b"k\r\n\x00", value, "EX", 60) == b"OK"
    assert await link.ask("GET", b"k\r\n\x00") == value
    assert await link.ask("GET", "none") is None
    assert await link.ask("HSET", "h", "a", 1, "b", 2.5) == 2
    assert await link.ask("HGETALL", "h") == [b"a", b"1", b"b", b"2.5"]
    assert await link.ask("EXPIRE", "h", 9) == 1
    assert await link.ask("EVAL", "return {KEYS[1], ARGV[1]}", 1, "k", b"\xff") == [b"k", b"\xff"]
    assert link.stats()["asked"] == 7
    assert 0 < link.stats()["last_latency_us"] < 2_000_000


async def test_making_a_link_connects_to_nothing(connect: Connect):
    """The router starts without Redis."""
    for url in ("redis://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/main", "redis+cluster://127.0.0.1:1"):
        link = connect(url)
        assert link.is_up
        assert (await failure(link, "GET", "k")).reason


async def test_a_user_with_few_rights_is_enough(redis_server: RedisServer, connect: Connect):
    """Nothing is sent on connect but the credentials and the number of the database."""
    redis_server.say("ACL", "SETUSER", "small", "on", ">p@ss/word", "~router:*", "+get", "+set", "+select")
    link = connect(f"redis://small:p%40ss%2Fword@127.0.0.1:{redis_server.port}/3", **CALM)
    assert await link.ask("SET", "router:k", "v") == b"OK"
    assert await link.ask("GET", "router:k") == b"v"
    for _ in range(5):
        assert (await failure(link, "GET", "secret:k")).reason == "error reply `NOPERM`"
        assert (await failure(link, "DEL", "router:k")).reason == "error reply `NOPERM`"
    assert link.is_up
    assert redis_server.say("EXISTS", "router:k") == b":0\r\n"  # it is in database 3


async def test_an_error_reply_names_its_kind_and_no_value(redis_server: RedisServer, connect: Connect):
    """Redis repeats in its texts what was sent; ours do not. Such replies never make the link rest."""
    link = connect(redis_server.url, **CALM)
    for _ in range(4):
        error = await failure(link, "NOSUCHCOMMAND", "secret-value")
        assert (error.reason, error.is_reply) == ("error reply `ERR`", True)
        assert "secret" not in repr(error) + str(error.__cause__)
    assert link.stats()["error_replies"] == link.stats()["failed"] == 4
    assert await link.ask("PING") == b"PONG"


@pytest.mark.parametrize("userinfo", ["", "u:hunter2@", ":hunter2@"])
async def test_wrong_credentials_are_called_that(idle_redis_server: RedisServer, connect: Connect, userinfo: str):
    """The owner reads what to do; the password is not in it."""
    idle_redis_server.start("--requirepass", "right")
    seen: list[tuple[bool, str]] = []
    link = connect(
        f"redis://{userinfo}127.0.0.1:{idle_redis_server.port}", **CALM, observe=lambda up, why: seen.append((up, why))
    )
    for _ in range(4):
        await failure(link, "GET", "k")
    assert seen == [(False, "the server does not accept the credentials, or asks for some")]
    right = connect(f"redis://:right@127.0.0.1:{idle_redis_server.port}", **CALM)
    assert await right.ask("PING") == b"PONG"


# TLS, sentinels, clusters


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 that vouches for itself, with its key in one file."""
    if shutil.which("openssl") is None:
        reason = "the openssl command is not installed, so no test certificate can be made"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    file = tmp_path / "own.pem"
    new = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=own")
    names = ("-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run(
        ["openssl", "req", *new, *names, "-keyout", file, "-out", f"{file}.crt"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


async def test_tls_is_verified(
    redis_server: RedisServer, connect: Connect, certificate: Path, monkeypatch: pytest.MonkeyPatch
):
    """A certificate that nobody trusts is no Redis; one that the system trusts (SSL_CERT_FILE) is."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    async with fault_proxy(redis_server.port, tls=tls) as proxy:
        error = await failure(connect(f"rediss://127.0.0.1:{proxy.port}", deadline_s=1.0), "PING")
        assert error.reason == "the certificate is not accepted: self-signed certificate"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        link = connect(f"rediss://127.0.0.1:{proxy.port}", deadline_s=1.0)
        assert await link.ask("PING") == b"PONG"
        await link.close()
        other = await failure(connect(f"rediss://localhost:{proxy.port}", deadline_s=1.0), "PING")
        assert other.reason.startswith("the certificate is not accepted: Hostname mismatch")


async def test_sentinels_say_where_the_master_is(servers: Callable[..., RedisServer], connect: Connect):
    """The first sentinel is away and the second answers; when the master changes, the link follows."""
    old, new = servers(), servers()
    old.say("SET", "router:k", "old")
    new.say("SET", "router:k", "new")
    sentinel = servers(config=f"sentinel monitor main 127.0.0.1 {old.port} 1\n")
    seen: list[bool] = []
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/main"
    link = connect(url, **CALM, observe=lambda is_up, _: seen.append(is_up))
    assert await link.ask("GET", "router:k") == b"old"
    assert await link.ask("SET", "router:j", "v") == b"OK"
    old.kill()
    sentinel.say("SENTINEL", "REMOVE", "main")
    sentinel.say("SENTINEL", "MONITOR", "main", "127.0.0.1", str(new.port), "1")
    got = []
    while not got:
        try:
            got.append(await link.ask("GET", "router:k"))
        except RedisUnavailable:
            await asyncio.sleep(0.01)  # the pace of the requests that ask
    assert got == [b"new"]
    assert link.is_up
    assert seen in ([], [False, True])


async def test_a_sentinel_that_knows_no_such_master_is_no_redis(servers: Callable[..., RedisServer], connect: Connect):
    """A wrong name in the address shows as a failure, at once."""
    sentinel = servers(config="")
    started_s = time.monotonic()
    await failure(connect(f"redis+sentinel://127.0.0.1:{sentinel.port}/main"), "GET", "k")
    assert time.monotonic() - started_s < 0.25


async def test_sentinels_and_master_may_both_speak_tls(
    servers: Callable[..., RedisServer], connect: Connect, certificate: Path, monkeypatch: pytest.MonkeyPatch
):
    """`rediss+sentinel://`: both are verified."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with fault_proxy(servers().port, tls=tls) as master:
        sentinel = servers(config=f"sentinel monitor main 127.0.0.1 {master.port} 1\n")
        async with fault_proxy(sentinel.port, tls=tls) as proxy:
            link = connect(f"rediss+sentinel://127.0.0.1:{proxy.port}/main/2", deadline_s=3.0, give_up_s=3.0)
            assert await link.ask("SET", "router:k", "v") == b"OK"
            assert await link.ask("GET", "router:k") == b"v"
            await link.close()
        sentinel.kill()  # it has connections through the first proxy


# Time


async def test_a_frozen_server_costs_the_deadline_and_then_nothing(redis_server: RedisServer, connect: Connect):
    """Three waits, then calls fail at once; what was refused is counted apart."""
    link = connect(redis_server.url, deadline_s=0.2)
    await link.ask("SET", "k", "v")
    redis_server.freeze()
    waits_s = []
    for _ in range(6):
        started_s = time.monotonic()
        assert (await failure(link, "GET", "k")).reason == "no answer within 200 ms"
        waits_s.append(time.monotonic() - started_s)
    assert min(waits_s[:3]) > 0.199
    assert sorted(waits_s[:3])[1] < 0.25  # the middle one: the machine may be busy with other things
    assert sorted(waits_s[3:])[1] < 0.005
    assert link.stats()["failed"] == 3
    assert link.stats()["refused"] == 3
    assert link.stats()["is_up"] == 0
    redis_server.thaw()
    await until(link, lambda: link.is_up, within_s=2)
    assert await link.ask("GET", "k") == b"v"


async def test_a_shorter_limit_counts_for_one_call(redis_server: RedisServer, connect: Connect):
    """`within_s` is what is left of somebody's time; it is never longer than the deadline."""
    link = connect(redis_server.url, deadline_s=0.3)
    await link.ask("PING")
    redis_server.freeze()
    for within_s, least_s, most_s in ((0.01, 0.009, 0.25), (-1, 0, 0.25), (9, 0.299, 1.0)):
        started_s = time.monotonic()
        with pytest.raises(RedisUnavailable):
            await link.ask("PING", within_s=within_s)
        assert least_s < time.monotonic() - started_s < most_s


async def test_a_first_connection_slower_than_the_deadline_comes_to_be(redis_server: RedisServer, connect: Connect):
    """The call is late and fails; its connection is made all the same and serves the next ones."""
    async with fault_proxy(redis_server.port, wait_s=0.1) as proxy:
        link = connect(f"redis://127.0.0.1:{proxy.port}")
        await failure(link, "SET", "k", "v")
        await until(link, lambda: link.stats()["last_latency_us"] > 0)
        assert await link.ask("GET", "k") == b"v"
        await link.close()


async def test_a_success_between_failures_keeps_the_link_up(redis_server: RedisServer, connect: Connect):
    """Only failures in a row count."""
    link = connect(redis_server.url, **CALM)
    await link.ask("PING")
    for _ in range(3):
        redis_server.freeze()
        for _ in range(2):
            with pytest.raises(RedisUnavailable, match="no answer"):
                await link.ask("PING", within_s=0.05)
        redis_server.thaw()
        assert await link.ask("PING") == b"PONG"
    assert link.is_up


# Whose reply is whose


async def test_no_caller_ever_gets_the_reply_of_another(redis_server: RedisServer, connect: Connect):
    """Cancelled, late and given-up calls to a server that freezes and thaws: every value that comes is the one asked.

    Source: fault F62; a cancelled call of an early redis-py left its reply to the next caller.
    """
    link = connect(redis_server.url, deadline_s=0.01, give_up_s=0.03, rest_s=0.005, most_connections=4)
    for number in range(100):
        redis_server.say("SET", f"k{number}", f"value of {number}")
    dice = random.Random(62)
    right = wrong = failed = cancelled = 0

    async def ask_one() -> None:
        nonlocal right, wrong, failed, cancelled
        number = dice.randrange(100)
        try:
            async with asyncio.timeout(dice.choice((0.0005, 0.002, 1.0))):
                value = await link.ask("GET", f"k{number}")
        except RedisUnavailable:
            failed += 1
        except TimeoutError:
            cancelled += 1
        else:
            right += value == b"value of %d" % number
            wrong += value != b"value of %d" % number

    for _ in range(40):
        redis_server.freeze()
        await asyncio.gather(*(ask_one() for _ in range(8)))
        redis_server.thaw()
        for _ in range(3):
            await asyncio.gather(*(ask_one() for _ in range(8)))
    assert wrong == 0
    assert min(right, failed, cancelled) > 20, (right, failed, cancelled)


async def test_callers_that_go_away_close_no_connection(redis_server: RedisServer, connect: Connect):
    """A storm of cancelled calls is no storm of reconnects."""
    link = connect(redis_server.url, deadline_s=1.0)
    await asyncio.gather(*(link.ask("PING") for _ in range(50)))
    before = redis_server.say("INFO", "stats").split(b"total_connections_received:")[1].split()[0]
    for _ in range(20):
        calls = [asyncio.create_task(link.ask("PING")) for _ in range(50)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert await link.ask("PING") == b"PONG"
    after = redis_server.say("INFO", "stats").split(b"total_connections_received:")[1].split()[0]
    assert int(after) == int(before) + 1  # the one that asks here


async def test_connections_are_bounded(redis_server: RedisServer, connect: Connect):
    """However many ask at once, and though callers went away meanwhile."""
    link = connect(redis_server.url, deadline_s=2.0, most_connections=5)
    assert await asyncio.gather(*(link.ask("INCRBY", "n", 0) for _ in range(500))) == [0] * 500
    clients = redis_server.say("CLIENT", "LIST").count(b" addr=")
    assert clients <= 5 + 1  # and the one that lists


async def test_a_link_that_is_closed_fails_and_leaves_nothing(redis_server: RedisServer, connect: Connect):
    """Calls under way end with it; no connection is left open."""
    link = connect(redis_server.url, deadline_s=5.0, give_up_s=5.0)
    await link.ask("PING")
    redis_server.freeze()
    waiting = [asyncio.create_task(failure(link, "PING")) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    started_s = time.monotonic()
    await link.close()
    assert time.monotonic() - started_s < 1
    for error in await asyncio.gather(*waiting):
        assert error.reason == "the link is closed"
    assert (await failure(link, "PING")).reason == "the link is closed"
    redis_server.thaw()
    lists = (redis_server.say("CLIENT", "LIST") for _ in range(1000))  # it sees a closed connection when it next looks
    assert any(said.count(b" addr=127.0.0.1:") == 1 for said in lists)  # the one that lists
