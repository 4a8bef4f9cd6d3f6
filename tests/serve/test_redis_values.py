"""What goes into Redis and comes out of it: whole good answers only, as they were written, to their own tenant."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from kit.driven_upstream import DrivenUpstream
from kit.fault_proxy import fault_proxy
from kit.raw_upstream import Peer
from kit.shared_store import (
    CACHED,
    ask,
    be_patient,
    beside,
    client,
    echo,
    entries,
    figures,
    members,
    nonce,
    until_shared,
    written,
)
from kit.stage import (
    KEY,
    SSE_HEAD,
    WAIT_S,
    chunked,
    error,
    events,
    http,
    message,
    request_body,
    stage,
    until,
)

from router.cache.shared import FLIGHT_PREFIX

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    be_patient(monkeypatch)


# Values that are not what was written


def truncated(value: bytes, _: bytes) -> bytes:
    return value[:-1]


def halved(value: bytes, _: bytes) -> bytes:
    return value[: len(value) // 2]


def with_a_flipped_bit(value: bytes, _: bytes) -> bytes:
    return value[:-10] + bytes([value[-10] ^ 1]) + value[-9:]


def of_another_key(_: bytes, other: bytes) -> bytes:
    return other


def of_another_version(value: bytes, _: bytes) -> bytes:
    return b"\x02" + value[1:]


def longer(value: bytes, _: bytes) -> bytes:
    return value + b"\0"


def huge(_: bytes, __: bytes) -> bytes:
    return b"x" * 100_000_000


def pickled(_: bytes, __: bytes) -> bytes:
    return b"cos\nsystem\n(S'false'\ntR."


KINDS = [truncated, halved, with_a_flipped_bit, of_another_key, of_another_version, longer, huge, pickled]


@pytest.mark.parametrize("corrupt", KINDS, ids=lambda kind: kind.__name__)
async def test_a_value_that_is_not_what_was_written_is_a_miss(redis_server, corrupt, monkeypatch):
    """Deleted, counted, and the right answer goes to the client and into the cache (F61)."""
    be_patient(monkeypatch)
    async with stage(echo, policy=CACHED, cache=redis_server.url) as s, beside(s, redis_server) as other:
        await members(redis_server, 2)
        text = nonce()
        await ask(s, text)
        [key] = await written(redis_server, 1)
        await ask(s)
        both = await written(redis_server, 2)
        [second] = [each for each in both if each != key]
        with client(redis_server) as plain:
            good, foreign = plain.get(key), plain.get(second)
            plain.set(key, corrupt(good, foreign))
            assert (await ask(other, text))[0] == "miss"
            assert figures(other)["corrupt"] == 1
            await until(lambda: 0 < plain.strlen(key) < len(good) + 100)
            value = plain.get(key)
            assert value not in (good, foreign, corrupt(good, foreign))  # written anew
        async with beside(s, redis_server) as third:
            await members(redis_server, 3)
            assert (await ask(third, text))[0] == "hit"


@pytest.mark.parametrize("kind", ["list", "hash", "set"])
async def test_a_value_of_another_type_is_a_miss(redis_server, kind):
    """Also beside the entry, where it is said who makes the call; both are deleted."""
    async with stage(echo, policy=CACHED, cache=redis_server.url) as s, beside(s, redis_server) as other:
        await members(redis_server, 2)
        text = nonce()
        await ask(s, text)
        [key] = await written(redis_server, 1)
        flight = key.replace(key.partition(b"{")[0], FLIGHT_PREFIX.encode())
        with client(redis_server) as plain:
            for planted in (key, flight):
                plain.delete(key, flight)
                await until(lambda: not plain.exists(key, flight))
                if kind == "list":
                    plain.rpush(planted, "x")
                elif kind == "hash":
                    plain.hset(planted, "x", "y")
                else:
                    plain.sadd(planted, "x")
                at = other if planted == key else None
                async with beside(s, redis_server) as fresh:
                    await members(redis_server, 3)
                    assert (await ask(at or fresh, text))[0] == "miss"
                    await until(lambda: plain.type(key) == b"string" and not plain.exists(flight))
                await members(redis_server, 2)


@pytest.mark.parametrize("planted", [b"", b"X", b"L", b"L" + b"0" * 32, b"R" + b"0" * 32 + b"junk", b"L" * 5000])
async def test_a_foreign_word_about_who_makes_the_call_holds_nobody_up(redis_server, planted):
    """Nobody wrote it as we do, so nobody waits for it: a leader's word always has its end (F61)."""
    async with stage(echo, policy=CACHED, cache=redis_server.url) as s:
        await members(redis_server, 1)
        text = nonce()
        await ask(s, text)
        [key] = await written(redis_server, 1)
        flight = key.replace(key.partition(b"{")[0], FLIGHT_PREFIX.encode())
        async with beside(s, redis_server) as other:
            await members(redis_server, 2)
            with client(redis_server) as plain:
                plain.delete(key)
                plain.set(flight, planted)
                word, took_s = await ask(other, text)
                assert (word, took_s < 1) == ("miss", True)
                await written(redis_server, 1)


# What must never be written


async def _cut_stream(peer: Peer) -> None:
    await peer.request()
    await peer.send_apart(SSE_HEAD, *map(chunked, events("a")[:4]))


async def _error_in_stream(peer: Peer) -> None:
    await peer.request()
    said = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n'
    await peer.send_apart(SSE_HEAD, *map(chunked, events("a")[:4]), chunked(said), b"0\r\n\r\n")


async def _short_body(peer: Peer) -> None:
    await peer.request()
    peer.send(http(message())[:-20])


def _once(reply: bytes):
    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(reply)

    return behave


BAD = {
    "cut stream": (True, _cut_stream),
    "error in a stream": (True, _error_in_stream),
    "refused stream": (True, _once(SSE_HEAD + b"".join(map(chunked, events("a", stop="refusal"))) + b"0\r\n\r\n")),
    "short body": (False, _short_body),
    "refusal": (False, _once(http(message(stop="refusal")))),
    "cut off": (False, _once(http(message(stop="max_tokens")))),
    "not a message": (False, _once(http(b"<html>"))),
    "error": (False, _once(error("500 X", "api_error"))),
    "error as 200": (False, _once(error("200 OK", "overloaded_error"))),
    "no content": (False, _once(b"HTTP/1.1 204 No Content\r\n\r\n")),
}


@pytest.mark.parametrize("kind", BAD)
async def test_what_is_not_a_whole_good_answer_is_never_written(redis_server, kind):
    """A second router looks for it and finds nothing (F65, S7)."""
    is_stream, bad = BAD[kind]
    good = b"".join(events("good")) if is_stream else message("good")
    numbers: list[int] = []

    async def behave(peer: Peer) -> None:
        numbers.append(peer.number)
        if len(numbers) == 1:
            await bad(peer)
        else:
            await peer.request()
            peer.send(SSE_HEAD + chunked(good) + b"0\r\n\r\n" if is_stream else http(good))

    async with stage(behave, policy=CACHED, cache=redis_server.url) as s, beside(s, redis_server) as other:
        await members(redis_server, 2)
        await s.messages(stream=is_stream)
        await s.trace()
        assert entries(redis_server) == []
        again = await other.messages(stream=is_stream)
        assert (again.header("x-router-cache"), again.body) == ("miss", good)
        await written(redis_server, 1)
        assert (await s.messages(stream=is_stream)).header("x-router-cache") == "hit"


async def test_what_all_clients_left_is_never_written(redis_server):
    """Aborted half-way: nothing under our names but what the fleet says of itself."""
    up = DrivenUpstream()
    async with stage(up.behave, policy=CACHED, cache=redis_server.url) as s, beside(s, redis_server) as other:
        await members(redis_server, 2)
        wire = await s.connect()
        wire.send("POST", "/v1/messages", KEY, request_body(stream=True))
        call = await up.call()
        await call.stream(*events("a")[:4])
        await wire.head()
        await wire.close()
        await asyncio.wait_for(call.gone.wait(), WAIT_S)
        asking = asyncio.ensure_future(other.messages(stream=True))
        second = await up.call(2)
        assert entries(redis_server) == []
        await second.end(*events("b"))
        assert (await asking).body == b"".join(events("b"))


# Who is who


async def test_another_tenant_cannot_tell_what_was_asked(redis_server):
    """The same headers and a miss, whether somebody else asked before or not; in flight too (S5, S6)."""
    up = DrivenUpstream()
    async with stage(up.behave, policy=CACHED, cache=redis_server.url) as s, beside(s, redis_server) as other:
        await members(redis_server, 2)

        async def as_b(text: str) -> dict[bytes, bytes]:
            headers = [(b"x-api-key", b"sk-b"), *KEY[1:]]
            before = up.asked
            asking = asyncio.ensure_future(other.post(request_body(text), headers))
            await (await up.call(before + 1)).answer(http(message()))
            reply = await asking
            return {n: v for n, v in reply.headers if n not in (b"x-router-trace",)}

        asked = asyncio.ensure_future(s.messages(text="asked"))
        await (await up.call(1)).answer(http(message()))
        await asked
        await written(redis_server, 1)
        asking = asyncio.ensure_future(s.messages(text="being asked"))
        under_way = await up.call(2)
        seen = [await as_b(text) for text in ("asked", "being asked", "never asked")]
        assert seen[0] == seen[1] == seen[2]
        assert seen[0][b"x-router-cache"] == b"miss"
        await under_way.answer(http(message()))
        await asking
        assert len(await written(redis_server, 5)) == 5


async def test_tls_and_a_user_with_few_rights_are_enough(redis_server, tmp_path, monkeypatch):
    """Through TLS, as a user who may touch nothing but our own names and needs no more commands than these (S24)."""
    if shutil.which("openssl") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "the openssl command is not installed, so no test certificate can be made"
        )
    certificate = _certificate(tmp_path)
    commands = [
        "eval",
        "evalsha",
        "get",
        "getrange",
        "set",
        "del",
        "unlink",
        "pexpire",
        "pttl",
        "hgetall",
        "hset",
        "hsetnx",
        "hdel",
        "time",
        "ping",
        "scan",
        "role",
    ]
    rights = [f"+{command}" for command in commands]
    assert redis_server.say("ACL", "SETUSER", "small", "on", ">p@ss", "~router:*", *rights) == b"+OK\r\n"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    async with fault_proxy(redis_server.port, tls=tls) as proxy:
        url = f"rediss://small:p%40ss@127.0.0.1:{proxy.port}"
        async with (
            stage(echo, policy=CACHED, cache=url) as s,
            stage(policy=CACHED, cache=url, origin=s.upstream.origin) as other,
        ):
            await members(redis_server, 2)
            await until_shared(s)
            await ask(s, text := nonce())
            await written(redis_server, 2)
            assert (await ask(other, text))[0] == "hit"
            assert s.app.stores.cache is not None
            assert (await s.app.stores.cache.purge()).told == 2
            assert entries(redis_server) == []
            assert (await ask(other, text))[0] == "miss"
            [link] = s.app.stores.links.values()
            assert link.stats()["error_replies"] == 0


def _certificate(folder: Path) -> Path:
    """A certificate of 127.0.0.1 that vouches for itself, with its key in one file."""
    file = folder / "own.pem"
    new = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=own")
    made = subprocess.run(
        ["openssl", "req", *new, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", file, "-out", "-"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    with file.open("ab") as both:
        both.write(made.stdout)
    return file
