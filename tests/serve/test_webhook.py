"""Webhooks: told once the job has ended, signed, tried again, given up in the end; real receivers on real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from router.errors import InvalidRequest
from router.seams import Deadlines
from router.serve.webhook import MOST_PER_ORIGIN, SAY_EVERY_S, WAITS_S, Webhooks
from router.serve.webhook_hosts import read_hosts
from router.upstream.http1 import Http1Upstream
from router.upstream.webhook import WebhookOrigins
from tests.kit.raw_upstream import Peer, RawRequest, RawUpstream, raw_upstream

pytestmark = pytest.mark.anyio

SECRET = "s3cret"
LOCATION = "https://router.example/v1/messages/deferred/msgdef_1"
DOCS = Path(__file__).parents[2] / "docs" / "webhooks.md"
TAKEN = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass
class Clockwork:
    """Time that passes only where somebody sleeps."""

    now_s: float = 1_795_000_000.0
    slept: list[float] = field(default_factory=list)
    until: Callable[[], bool] = lambda: True  # what must hold before a sleep ends

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        async with asyncio.timeout(5):
            while not self.until():  # noqa: ASYNC110 - the claims are about sockets, which set no event
                await asyncio.sleep(0)


@dataclass
class Scene:
    """A receiver, the webhooks that may go to it, and their time."""

    url: str
    webhooks: Webhooks
    requests: list[RawRequest]
    time: Clockwork
    opened: list[Http1Upstream]
    receiver: RawUpstream

    async def deliver(self, job_id: str = "msgdef_1", status: int = 200) -> bool:
        return await self.webhooks.deliver(self.url, job_id, status, LOCATION)


@asynccontextmanager
async def scene(behave: Callable[[Peer], Any], **more: Any) -> AsyncIterator[Scene]:
    async with raw_upstream(behave) as receiver:
        time, origins, opened = Clockwork(), WebhookOrigins(), []

        def open_upstream(origin: str) -> Any:
            opened.append(origins.open(origin))
            return opened[-1]

        webhooks = Webhooks(
            read_hosts(f"127.0.0.1:{receiver.port}"), SECRET, open_upstream,
            wall_clock=lambda: time.now_s, sleep=time.sleep, random=lambda: 0.5, **more,
        )  # fmt: skip
        yield Scene(f"{receiver.origin}/hook?team=red", webhooks, receiver.requests, time, opened, receiver)
        async with asyncio.timeout(5):
            while receiver.open:  # noqa: ASYNC110 - sockets set no event
                await asyncio.sleep(0)
        assert webhooks.stats()["under_way"] == 0
        assert all(upstream._is_closed for upstream in opened)


def answers(*each: bytes) -> Callable[[Peer], Any]:
    """A receiver that gives these answers one after the other, the last one for ever."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(each[min(len(peer.requests), len(each)) - 1])
        await peer.closed()

    return behave


def verified(request: RawRequest, secret: bytes = SECRET.encode()) -> int:
    """The time of a webhook whose signature holds, worked out without the router's own code."""
    assert request.header(b"x-router-signature") is not None
    at, _, digest = request.header(b"x-router-signature").decode().partition(",v1=")  # type: ignore[union-attr]
    at = at.removeprefix("t=")
    assert digest == hmac.new(secret, f"{at}.".encode() + request.body, hashlib.sha256).hexdigest()
    return int(at)


async def test_the_receiver_is_told_once_with_a_signature_that_holds() -> None:
    """What is said is the job, its status and its place, and nothing else."""
    async with scene(answers(TAKEN)) as on:
        assert await on.deliver(status=429)
    (request,) = on.requests
    assert request.line == b"POST /hook?team=red HTTP/1.1"
    assert verified(request) == 1_795_000_000
    assert json.loads(request.body) == {
        "type": "deferred_message.ended", "id": "msgdef_1", "status": 429, "location": LOCATION,
    }  # fmt: skip
    assert sorted(name for name, _ in request.headers) == [
        b"content-length", b"content-type", b"host", b"user-agent", b"x-router-signature", b"x-router-webhook-id",
    ]  # fmt: skip
    assert request.header(b"x-router-webhook-id") == b"webhook_msgdef_1"
    assert on.webhooks.stats() == {
        "under_way": 0, "delivered": 1, "given_up": 0, "canceled": 0, "attempts": 1, "failed": 0,
    }  # fmt: skip


async def test_the_receiver_of_the_docs_takes_it_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function that the page tells a reader to use believes a webhook, but no changed, old or foreign one."""
    code = DOCS.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    room: dict[str, Any] = {}
    exec(code, room)
    async with scene(answers(TAKEN)) as on:
        await on.deliver()
    header, body = (on.requests[0].header(b"x-router-signature") or b"").decode(), on.requests[0].body
    monkeypatch.setattr(room["time"], "time", lambda: 1_795_000_299.0)
    assert room["is_genuine"](SECRET.encode(), header, body)
    assert not room["is_genuine"](SECRET.encode(), header, body + b" ")
    assert not room["is_genuine"](b"another", header, body)
    assert not room["is_genuine"](SECRET.encode(), header.replace("t=1", "t=2"), body)
    monkeypatch.setattr(room["time"], "time", lambda: 1_795_000_301.0)
    assert not room["is_genuine"](SECRET.encode(), header, body)


async def test_a_receiver_that_fails_is_asked_again_with_a_fresh_signature() -> None:
    """Three failures, three growing waits, then it is taken; all four are one event, each dated anew."""
    broken = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
    async with scene(answers(broken, broken, broken, TAKEN)) as on:
        assert await on.deliver()
    assert on.time.slept == [1.0, 4.0, 16.0]
    assert [verified(request) - 1_795_000_000 for request in on.requests] == [0, 1, 5, 21]
    assert len({request.header(b"x-router-webhook-id") for request in on.requests}) == 1
    assert on.webhooks.stats()["failed"] == 3


async def test_a_redirect_is_not_followed() -> None:
    """Nobody but the host that was listed is ever called (S12)."""
    called = asyncio.Event()

    async def elsewhere(peer: Peer) -> None:
        called.set()

    async with raw_upstream(elsewhere) as other:
        to = f"HTTP/1.1 307 Temporary Redirect\r\nlocation: {other.origin}/\r\ncontent-length: 0\r\n\r\n".encode()
        async with scene(answers(to)) as on:
            assert not await on.deliver()
    assert len(on.requests) == 6
    assert not called.is_set()


async def test_after_six_tries_it_is_given_up_and_said_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """The log has the host and the reason, not the path, which may be a secret; and how many were not said."""
    caplog.set_level(logging.WARNING, logger="router")
    async with scene(answers(b"HTTP/1.1 500 Oh dear\r\ncontent-length: 4\r\n\r\nboom")) as on:
        for _ in range(2):
            assert not await on.deliver()
            on.time.now_s = 1_795_000_000.0  # as if both had ended in one minute
        on.time.now_s += SAY_EVERY_S
        on.time.slept.clear()
        assert not await on.deliver()
    assert on.time.slept == list(WAITS_S)
    assert on.webhooks.stats() == {
        "under_way": 0, "delivered": 0, "given_up": 3, "canceled": 0, "attempts": 18, "failed": 18,
    }  # fmt: skip
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "a webhook to `127.0.0.1` was given up: it answered 500",
        "a webhook to `127.0.0.1` was given up: it answered 500; 1 more since it was last said",
    ]


async def test_a_receiver_that_hangs_fails_at_its_deadline() -> None:
    """Before the head of its answer, and with its name alone in the end; every connection is gone."""

    async def hangs(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    async with scene(hangs, deadlines=Deadlines(first_byte=0.01)) as on:
        assert not await on.deliver()
    assert len(on.requests) == 6


async def test_a_body_that_never_ends_is_nobodys_business() -> None:
    """The status decides; what else the receiver says is not read."""
    async with scene(answers(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\nand then")) as on:
        assert await on.deliver()


async def test_no_connection_outlives_its_try() -> None:
    """Each is gone before the next try begins, though the receiver would go on."""
    async with scene(answers(b"HTTP/1.1 500 No\r\ncontent-length: 99999999\r\n\r\nbecause")) as on:
        on.time.until = lambda: on.receiver.open == 0
        assert not await on.deliver()
    assert len(on.opened) == 1


async def test_what_is_no_answer_is_a_failure_like_another() -> None:
    """Bytes that are no HTTP, a connection that closes, nobody who listens."""

    async def odd(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            peer.send(b"SSH-2.0-OpenSSH\r\n\r\n")
        elif peer.number == 3:
            peer.send(TAKEN)

    async with scene(odd) as on:
        assert await on.deliver()
    assert on.webhooks.stats()["attempts"] == 3
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        time = Clockwork()
        alone = Webhooks(read_hosts(url[7:-1]), SECRET, WebhookOrigins().open, sleep=time.sleep)
        assert not await alone.deliver(url, "msgdef_1", 200, LOCATION)
    for slept, wait_s in zip(time.slept, WAITS_S, strict=True):  # a fifth more or less, by real dice
        assert 0.8 * wait_s <= slept <= 1.2 * wait_s


async def test_whoever_is_canceled_leaves_nothing_behind() -> None:
    """While the receiver hangs, and while the next try is waited for: the connection and the client are gone."""
    asked = asyncio.Event()

    async def hangs(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.closed()

    async with scene(hangs) as on:
        task = asyncio.create_task(on.deliver())
        await asked.wait()
        assert on.webhooks.stats()["under_way"] == 1
        task.cancel()
        assert (await asyncio.gather(task, return_exceptions=True))[0].__class__ is asyncio.CancelledError
    sleeping = asyncio.Event()

    async def sleep(seconds: float) -> None:
        sleeping.set()
        await asyncio.Event().wait()

    async with scene(answers(b"HTTP/1.1 500 No\r\n\r\n")) as on:
        on.webhooks._sleep = sleep
        task = asyncio.create_task(on.deliver())
        await sleeping.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert on.webhooks.stats()["canceled"] == 1
        assert on.webhooks._rooms == {}


async def test_two_hundred_jobs_that_end_at_once_are_no_flood() -> None:
    """A batch ends as a whole: the receiver sees few connections at a time, nobody loses a try to the others."""
    open_now = most = 0

    async def behave(peer: Peer) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await peer.request()
        open_now -= 1
        peer.send(TAKEN)
        await peer.closed()

    async with scene(behave) as on:
        outcomes = await asyncio.gather(*(on.deliver(f"msgdef_{number}") for number in range(200)))
    assert all(outcomes)
    assert on.webhooks.stats()["attempts"] == 200
    assert 1 < most <= MOST_PER_ORIGIN
    assert len({json.loads(request.body)["id"] for request in on.requests}) == 200


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1", "fd00:ec2::254", "::ffff:10.0.0.1"]
)
@pytest.mark.parametrize("host", ["hooks.example.com", "hooks.internal", "hooks"])
async def test_a_listed_name_that_leads_into_the_house_is_not_called(host: str, address: str) -> None:
    """Whatever its ending: the name service is not the operator (S12). Nothing is sent, each time it is looked up."""
    looked_up = []

    def look_up(name: str, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        looked_up.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 0))]

    time = Clockwork()
    webhooks = Webhooks(read_hosts(host), SECRET, WebhookOrigins(look_up=look_up).open, sleep=time.sleep)
    assert not await webhooks.deliver(f"https://{host}/", "msgdef_1", 200, LOCATION)
    assert looked_up == [host] * 6


async def test_localhost_is_this_machine_even_where_the_name_service_differs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A `localhost` that leads elsewhere is not called, one that leads here is."""
    async with raw_upstream(answers(TAKEN)) as receiver:
        for address, is_called in (("192.0.2.1", False), ("127.0.0.1", True)):
            rows = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 0))]
            origins = WebhookOrigins(look_up=lambda *_, rows=rows, **__: rows)
            webhooks = Webhooks(read_hosts(f"localhost:{receiver.port}"), SECRET, origins.open, sleep=Clockwork().sleep)
            assert is_called == await webhooks.deliver(f"http://localhost:{receiver.port}/", "msgdef_1", 200, LOCATION)
    assert "`localhost` leads to `192.0.2.1`, where no webhook goes" in caplog.text


async def test_a_host_that_was_taken_off_the_list_is_not_called_any_more(caplog: pytest.LogCaptureFixture) -> None:
    """A job may outlive the setting that it was accepted under: it is counted as given up, and its address not said."""
    async with raw_upstream(answers(TAKEN)) as receiver:
        webhooks = Webhooks(read_hosts("hooks.example"), SECRET, WebhookOrigins().open)
        assert not await webhooks.deliver(f"{receiver.origin}/token", "msgdef_1", 200, LOCATION)
        assert receiver.connections == 0
    assert webhooks.stats()["given_up"] == 1
    assert "not in `webhook_hosts` any more" in caplog.text
    assert "token" not in caplog.text


async def test_without_hosts_or_without_a_secret_no_address_is_taken() -> None:
    """The client is told before its request is accepted."""
    for hosts, secret in (((), SECRET), (read_hosts("hooks.example"), None)):
        with pytest.raises(InvalidRequest, match="`webhook_hosts` is not set"):
            Webhooks(hosts, secret, WebhookOrigins().open).check("https://hooks.example/")
    Webhooks(read_hosts("hooks.example"), SECRET, WebhookOrigins().open).check("https://hooks.example/")
