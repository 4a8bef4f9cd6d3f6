"""Conversations that several routers share through a real Redis."""

from __future__ import annotations

import time

import pytest
from kit.redis_server import RedisServer
from kit.shared_store import be_patient
from kit.stage import answers, http, message, request_body, sent_models, stage

pytestmark = pytest.mark.anyio

HAIKU, OPUS = "claude-haiku-5-5", "claude-opus-5-5"
POLICY = """\
version: 1
rules:
  - {name: short, when: {turns: {lt: 2}}, route: haiku}
  - {name: long, route: opus}
otherwise: as-asked
"""
FIRST = request_body("Hello")
SECOND = request_body(
    messages=[
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "And a secret wish"},
    ]
)
REPLY = http(message(model=HAIKU))


async def test_a_conversation_goes_on_at_another_router(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch):
    """Bound at one, kept at the other; what is kept in Redis holds no word of it and no credential."""
    be_patient(monkeypatch)
    async with (
        stage(answers(REPLY), policy=POLICY, affinity=redis_server.url) as one,
        stage(answers(REPLY), policy=POLICY, affinity=redis_server.url) as other,
    ):
        await one.post(FIRST)
        await one.trace()
        reply = await other.post(SECOND)
        assert sent_models(other.upstream.requests) == [HAIKU]
        assert reply.header("x-router-lane") == "haiku"
        stored = redis_server.say("KEYS", "*") + b"".join(
            redis_server.say("GET", key.decode())
            for key in redis_server.say("KEYS", "*").split(b"\r\n")
            if b"router:" in key
        )
        assert b"router:v1:affinity:" in stored
        assert not any(word in stored for word in (b"Hello", b"secret", b"sk-test"))


async def test_without_redis_a_router_goes_by_what_it_remembers(redis_server: RedisServer):
    """Killed or frozen: no request fails, and none waits longer than the link's limits add up to."""
    async with stage(answers(REPLY), policy=POLICY, affinity=redis_server.url) as s:
        await s.post(FIRST)
        await s.trace()
        redis_server.freeze()
        started_s = time.monotonic()
        for _ in range(10):
            assert (await s.post(SECOND)).status == 200
        took_s = time.monotonic() - started_s
        redis_server.thaw()
        redis_server.kill()
        assert (await s.post(SECOND)).status == 200
        assert sent_models(s.upstream.requests) == [HAIKU] * 12
        assert took_s < 2.0  # three waits of 0.05 s and a probe or two, on a busy machine


async def test_a_router_starts_without_redis():
    """Nothing has to be there at the start."""
    async with stage(answers(REPLY), policy=POLICY, affinity="redis://127.0.0.1:1/0") as s:
        assert (await s.post(FIRST)).status == 200
        assert (await s.post(SECOND)).status == 200
        assert sent_models(s.upstream.requests) == [HAIKU, HAIKU]
