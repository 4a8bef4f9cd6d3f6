"""The cache on the admin listener: counts and purges, and that no page of another site gets at either."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from kit.redis_server import RedisServer
from kit.stage import Reply, Stage, Wire, always, answers, http, message, stage

pytestmark = pytest.mark.anyio

CACHED = always("cache: {ttl: 1h}")
JSON = (b"content-type", b"application/json")
ALL = b'{"all": true}'


async def ask(
    s: Stage, method: str, path: str, body: bytes | None = None, *headers: tuple[bytes, bytes], host: str = ""
) -> Reply:
    """One request to the admin listener."""
    wire = Wire(*await asyncio.open_connection("127.0.0.1", s.admin_port))
    s.wires.append(wire)
    wire.send(method, path, list(headers), body, (host or f"127.0.0.1:{s.admin_port}").encode())
    return await wire.reply(is_head=method == "HEAD")


async def purge(s: Stage, body: Any, *headers: tuple[bytes, bytes]) -> Reply:
    """A purge as a program asks for it."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await ask(s, "POST", "/cache/purge", data, JSON, *headers)


async def is_kept(s: Stage) -> bool:
    """Whether the one answer of this stage is still replayed (it is asked for, and so kept, otherwise)."""
    return (await s.messages()).header("x-router-cache") == "hit"


async def test_counts_and_purges_as_json():
    """What is held is counted; a purge says what it meant and what it came to, and is in force when it answers."""
    async with stage(answers(http(message())), policy=CACHED) as s:
        await is_kept(s)
        assert await is_kept(s)
        found = (await ask(s, "GET", "/cache")).json()
        assert (found["cache"], found["stored"], found["total"]["entries"], found["total"]["hits"]) == (
            "memory", None, 1, 1,
        )  # fmt: skip
        assert list(found["processes"].values()) == [found["total"]]
        reply = await purge(s, {"rule": "always", "model": "claude-haiku-5-5", "older_than": 3600})
        assert reply.json() == {
            "cache": "memory", "tenant": None, "rule": "always", "models": ["claude-haiku-5-5"],
            "older_than_s": 3600.0, "deleted": 0, "told": 1, "unheard": [], "problem": None, "is_done": True,
        }  # fmt: skip
        assert await is_kept(s)
        reply = await purge(s, ALL)
        assert (reply.status, reply.json()["deleted"], reply.header("cache-control")) == (200, 1, "no-store")
        assert not await is_kept(s)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"all": False}, {"al": True}, {"all": 1}, {"all": "true"}, {"all": True, "tenant": "t"},
        {"tenant": None}, {"tenant": ""}, {"tenant": 1}, {"rule": ["a"]}, {"model": "x" * 501},
        {"older_than": "1"}, {"older_than": "soon"}, {"older_than": 0}, {"older_than": -1}, {"older_than": True},
        {"older_than": None}, {"older_than": 1e300}, {"older_than": "31d"}, {"older_than": "0s"},
        b"", b"null", b"[]", b'"all"', b"{", b'{"older_than": NaN}', b'{"older_than": Infinity}',
        b'{"older_than": 1' + b"0" * 400 + b"}", b'{"tenant": "a", "tenant": "b"}', b'{"all": true, "all": true}',
        b"\xff", b"[" * 4000, b"all=true",
    ],
    ids=lambda body: repr(body)[:40],
)  # fmt: skip
async def test_a_purge_that_is_not_understood_forgets_nothing(body: Any):
    """400 with the reason, in the error shape of the API."""
    async with stage(answers(http(message())), policy=CACHED) as s:
        await is_kept(s)
        reply = await purge(s, body)
        assert (reply.status, reply.json()["error"]["type"]) == (400, "invalid_request_error")
        assert reply.json()["error"]["code"] == "R502"
        assert await is_kept(s)


async def test_an_overlong_body_is_not_read():
    """Four kilobytes say all that can be said."""
    async with stage() as s:
        assert (await purge(s, b'{"tenant": "' + b"a" * 5_000 + b'"}')).status == 413


@pytest.mark.parametrize("kind", [b"", b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data"])
async def test_what_a_form_can_send_is_no_purge(kind: bytes):
    """A page of another site can make a browser send these without asking first (S20)."""
    async with stage(answers(http(message())), policy=CACHED) as s:
        await is_kept(s)
        assert (await ask(s, "POST", "/cache/purge", ALL, (b"content-type", kind))).status == 415
        assert (await ask(s, "POST", "/cache/purge", ALL)).status == 415
        assert await is_kept(s)


FOREIGN = [
    (b"origin", b"https://evil.example"),
    (b"origin", b"null"),
    (b"origin", b"http://localhost:3000"),
    (b"origin", b""),
    (b"sec-fetch-site", b"cross-site"),
    (b"sec-fetch-site", b"same-site"),
    (b"sec-fetch-site", b"anything"),
]


@pytest.mark.parametrize("header", FOREIGN, ids=lambda header: b"=".join(header).decode())
@pytest.mark.parametrize("token", [None, "a long token"])
async def test_a_page_of_another_site_gets_nothing(header: tuple[bytes, bytes], token: str | None):
    """Whatever it brings along, the token too; and it is not told that it may ask (S9, S20)."""
    headers = [header] if token is None else [header, (b"authorization", f"Bearer {token}".encode())]
    async with stage(answers(http(message())), policy=CACHED, admin_token=token) as s:
        await is_kept(s)
        for reply in (await purge(s, ALL, *headers), await ask(s, "GET", "/cache", None, *headers)):
            assert (reply.status, reply.json()["error"]["type"]) == (403, "permission_error")
            assert reply.header("access-control-allow-origin") is None
        preflight = [*headers, (b"access-control-request-method", b"POST")]
        reply = await ask(s, "OPTIONS", "/cache/purge", None, *preflight)
        assert reply.status == 403
        assert reply.header("access-control-allow-origin") is None
        assert await is_kept(s)


async def test_the_listeners_own_page_may_ask():
    """The same origin, as a browser says it."""
    async with stage() as s:
        host = f"LocalHost:{s.admin_port}"
        own = ((b"origin", f"http://localhost:{s.admin_port}".encode()), (b"sec-fetch-site", b"same-origin"))
        assert (await ask(s, "POST", "/cache/purge", ALL, JSON, *own, host=host)).status == 200
        assert (await ask(s, "GET", "/cache", None, *own, host=host)).status == 200
        assert (await ask(s, "GET", "/cache", None, (b"sec-fetch-site", b"none"))).status == 200


async def test_a_foreign_form_neither_logs_in_nor_out():
    """A browser that says where a form comes from is believed; old ones say nothing."""
    async with stage(admin_token="a long token") as s:
        form = (b"content-type", b"application/x-www-form-urlencoded")
        own, foreign = ((b"sec-fetch-site", site) for site in (b"same-origin", b"cross-site"))
        body = b"token=a+long+token"
        assert (await ask(s, "POST", "/login", body, form, foreign, (b"origin", b"null"))).status == 403
        reply = await ask(s, "POST", "/login", body, form, own, (b"origin", b"null"))
        assert reply.status == 303
        cookie = (b"cookie", (reply.header("set-cookie") or "").partition(";")[0].encode())
        assert (await ask(s, "POST", "/logout", b"", cookie, foreign)).status == 403
        assert (await ask(s, "POST", "/logout", b"", cookie, own)).status == 303
        assert (await purge(s, ALL, cookie, own)).status == 200


async def test_without_the_token_there_is_no_purge():
    """Wrong, missing, or in the wrong place."""
    async with stage(answers(http(message())), policy=CACHED, admin_token="a long token") as s:
        await is_kept(s)
        for headers in ([], [(b"authorization", b"Bearer wrong")], [(b"x-api-key", b"a long token")]):
            assert (await purge(s, ALL, *headers)).status == 401
            assert (await ask(s, "GET", "/cache", None, *headers)).status == 401
        assert (await ask(s, "POST", "/cache/purge?token=a+long+token", ALL, JSON)).status == 401
        assert await is_kept(s)


async def test_another_name_reaches_no_purge():
    """DNS rebinding: the page's own name points at loopback, and its origin is the host it names."""
    async with stage() as s:
        headers = (JSON, (b"origin", b"http://evil.example"))
        assert (await ask(s, "POST", "/cache/purge", ALL, *headers, host="evil.example")).status == 403


async def test_the_api_listener_knows_no_purge():
    """The path is one of the upstream's there: it is passed on, and forgets nothing (S9)."""
    async with stage(answers(http(message())), policy=CACHED) as s:
        await is_kept(s)
        await s.request("POST", "/cache/purge", ALL)
        assert s.upstream.requests[-1].line.startswith(b"POST /cache/purge ")
        assert await is_kept(s)


@pytest.mark.parametrize("path", ["/cache/purge/", "//cache/purge", "/cache/./purge", "/healthz/../cache/purge"])
async def test_path_tricks_reach_no_purge(path: str):
    """The paths are compared as they are."""
    async with stage(answers(http(message())), policy=CACHED, admin_token="a long token") as s:
        await is_kept(s)
        assert (await ask(s, "POST", path, ALL, JSON)).status == 401
        assert await is_kept(s)


async def test_methods_other_than_those_named_change_nothing():
    """A link is no purge."""
    async with stage(answers(http(message())), policy=CACHED) as s:
        await is_kept(s)
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            assert (await ask(s, method, "/cache/purge", None, JSON)).status == 405
        assert (await ask(s, "POST", "/cache", ALL, JSON)).status == 405
        assert await is_kept(s)


async def test_a_cache_that_is_off_says_so():
    """Nothing is replayed, so every purge is done."""
    async with stage(cache="off") as s:
        assert (await ask(s, "GET", "/cache")).json()["cache"] == "off"
        done = (await purge(s, ALL)).json()
        assert (done["cache"], done["deleted"], done["is_done"]) == ("off", 0, True)


async def test_a_purge_without_redis_is_refused_and_named(idle_redis_server: RedisServer):
    """503 with our code: it is not in force, and says so."""
    async with stage(cache=idle_redis_server.url) as s:
        reply = await purge(s, ALL)
        assert (reply.status, reply.json()["error"]["code"]) == (503, "R401")
        assert "not in force" in reply.json()["error"]["message"]
        assert (await ask(s, "GET", "/cache")).status == 503
