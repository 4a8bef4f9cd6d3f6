"""Webhooks over TLS: a receiver proves its name, or nothing is sent to it."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from router.serve.webhook import Webhooks
from router.serve.webhook_hosts import read_hosts
from router.upstream.tls import tls_context
from router.upstream.webhook import WebhookOrigins
from tests.kit.raw_upstream import Peer, raw_upstream

pytestmark = pytest.mark.anyio


async def takes(peer: Peer) -> None:
    await peer.request()
    peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")
    await peer.closed()


async def at_once(_: float) -> None:
    """Instead of the wait between two tries."""


@pytest.mark.parametrize(("name", "is_taken"), [("DNS:localhost", True), ("DNS:other.example", False)])
async def test_a_receiver_must_prove_its_name(authority: Any, name: str, is_taken: bool) -> None:
    """By a certificate of an authority that is trusted, for the very host that was listed."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.sign(name))
    async with raw_upstream(takes, ssl_context=context) as receiver:
        host = f"localhost:{receiver.port}"
        origins = WebhookOrigins(ssl_context=tls_context(str(authority.ca)))
        webhooks = Webhooks(read_hosts(host), "s3cret", origins.open, sleep=at_once)
        assert is_taken == await webhooks.deliver(f"https://{host}/", "msgdef_1", 200, "https://router.example/")
        assert len(receiver.requests) == is_taken


async def test_the_authorities_of_the_system_are_read_once(authority: Any) -> None:
    """One context serves all origins; without one of its own a receiver of our test authority is not believed."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.sign("DNS:localhost"))
    async with raw_upstream(takes, ssl_context=context) as receiver:
        host = f"localhost:{receiver.port}"
        origins = WebhookOrigins()
        assert origins._ssl is None
        webhooks = Webhooks(read_hosts(host), "s3cret", origins.open, sleep=at_once)
        assert not await webhooks.deliver(f"https://{host}/", "msgdef_1", 200, "https://router.example/")
        first = origins._ssl
        assert not await webhooks.deliver(f"https://{host}/", "msgdef_2", 200, "https://router.example/")
        assert origins._ssl is first
        assert receiver.requests == []
