"""The TLS matrix through the whole router (F4, S26): a client gets a 502 in time, and nothing is sent to a stranger."""

from __future__ import annotations

import ssl
import time

import pytest
from kit.raw_upstream import Peer, raw_upstream
from kit.stage import always, answers, http, message, stage

pytestmark = pytest.mark.anyio

FAULTS = ["none", "wrong name", "self-signed", "unknown authority", "expired", "stall", "clear text", "reset"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_only_a_good_certificate_is_spoken_to(authority, monkeypatch, fault):
    """Verified against the system's authorities, which a test replaces as an operator may: by `SSL_CERT_FILE`."""
    good = authority.sign("IP:127.0.0.1")
    pair = {
        "wrong name": lambda: authority.sign("DNS:other.example"),
        "self-signed": authority.sign_self,
        "expired": lambda: authority.sign("IP:127.0.0.1", days=-1),
    }.get(fault, lambda: good)()
    if fault != "unknown authority":
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)

    async def raw(peer: Peer) -> None:
        await peer.reader.read(1)
        if fault == "stall":
            await peer.closed()
        elif fault == "reset":
            peer.reset()
        else:
            peer.send(http(message()))

    is_raw = fault in ("stall", "clear text", "reset")
    async with raw_upstream(raw if is_raw else answers(), ssl_context=None if is_raw else context) as server:
        origin = f"https://127.0.0.1:{server.port}"
        async with stage(origin=origin, policy=always("timeout: {connect: 200ms}", route="sonnet")) as s:
            started = time.monotonic()
            reply = await s.messages()
            if fault == "none":
                assert reply.status == 200
                return
            assert (reply.status, reply.json()["error"]["type"]) == (502, "api_error")
            assert time.monotonic() - started < 2
            assert 'details="R301"' in (reply.header("proxy-status") or "")
            trace = await s.trace()
            assert [each["outcome"] for each in trace["attempts"]] == ["connect_failed"]
            assert trace["cost_usd"] == 0
            assert not server.requests
