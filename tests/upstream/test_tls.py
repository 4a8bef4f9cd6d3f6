"""TLS to the upstream: who is believed, who is not, and what a cut looks like."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from kit.raw_upstream import Peer, raw_upstream
from kit.upstream_calls import call, fetch

from router.errors import UpstreamBroken, UpstreamUnreachable
from router.seams import Deadlines
from router.upstream.http1 import Http1Upstream
from router.upstream.tls import tls_context
from router.wire.batch import Spliced

pytestmark = pytest.mark.anyio

PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


async def serve_plainly(peer: Peer) -> None:
    """Answer every request of the connection."""
    while True:
        await peer.request()
        peer.send(PLAIN)


def server_context(pair: tuple[Path, Path]) -> ssl.SSLContext:
    """The other side of the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.fixture(scope="session")
def good(authority):
    """A certificate for the address the tests connect to."""
    return authority.sign("IP:127.0.0.1")


async def test_a_certificate_of_a_known_authority_is_believed(authority, good):
    """Calls go through, on one connection, with HTTP/1.1 agreed on."""
    agreed: list[str | None] = []

    async def behave(peer: Peer) -> None:
        agreed.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await serve_plainly(peer)

    async with raw_upstream(behave, ssl_context=server_context(good)) as server:
        upstream = Http1Upstream(server.origin, ssl_context=tls_context(str(authority.ca)))
        for _ in range(5):
            assert await fetch(upstream) == (200, b"hello")
        assert upstream.stats()["reused"] == 4
        await upstream.close()
    assert agreed == ["http/1.1"]


async def test_large_bodies_pass_both_ways(authority, good):
    """Records, pieces and back-pressure do not disturb one another."""
    body = bytes(range(256)) * 12_000

    async def behave(peer: Peer) -> None:
        request = await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(request.body), request.body)
        await peer.closed()

    async with raw_upstream(behave, ssl_context=server_context(good)) as server:
        upstream = Http1Upstream(server.origin, ssl_context=tls_context(str(authority.ca)))
        assert await fetch(upstream, call(body)) == (200, body)
        assert upstream.stats()["idle"] == 1
        await upstream.close()


@pytest.mark.parametrize("fault", ["wrong name", "self-signed", "unknown authority", "expired"])
async def test_a_certificate_that_proves_nothing_is_refused(authority, good, fault: str):
    """Nothing is sent to a stranger, and trying again would not help (F4, S26)."""
    pair = {
        "wrong name": lambda: authority.sign("DNS:other.example"),
        "self-signed": authority.sign_self,
        "unknown authority": lambda: good,
        "expired": lambda: authority.sign("IP:127.0.0.1", days=-1),
    }[fault]()
    trusted = None if fault == "unknown authority" else str(authority.ca)
    async with raw_upstream(serve_plainly, ssl_context=server_context(pair)) as server:
        upstream = Http1Upstream(server.origin, ssl_context=tls_context(trusted))
        with pytest.raises(UpstreamUnreachable, match="certificate") as caught:
            await fetch(upstream)
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        assert not caught.value.retryable
        assert upstream.stats()["open"] == upstream.stats()["opening"] == 0
        await upstream.close()
        assert not server.requests


async def test_a_handshake_that_stalls_ends_at_its_deadline():
    """An upstream that accepts and then says nothing is unreachable (F4)."""
    async with raw_upstream(lambda peer: peer.closed()) as server:
        upstream = Http1Upstream(server.origin.replace("http:", "https:"))
        with pytest.raises(UpstreamUnreachable, match="TLS handshake took over") as caught:
            await fetch(upstream, call(deadlines=Deadlines(tls=0.05)))
        assert caught.value.retryable
        await upstream.close()


async def test_a_handshake_does_not_outlast_the_call():
    """What is left of the total limit bounds each phase, behind the one before it too."""
    async with raw_upstream(lambda peer: peer.closed()) as server:
        upstream = Http1Upstream(server.origin.replace("http:", "https:"))
        async with asyncio.timeout(2):
            with pytest.raises(UpstreamUnreachable, match=r"TLS handshake took over 0\.\d+ s"):
                await fetch(upstream, call(deadlines=Deadlines(tls=5.0, total=0.1)))
        await upstream.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 No\r\n\r\n", b""])
async def test_an_upstream_without_tls_is_unreachable(answer: bytes):
    """There is no way back to clear text."""

    async def behave(peer: Peer) -> None:
        await peer.reader.read(100)
        peer.send(answer)

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin.replace("http:", "https:"))
        with pytest.raises(UpstreamUnreachable, match="handshake failed"):
            await fetch(upstream)
        await upstream.close()


async def test_old_versions_of_tls_are_refused(authority, good):
    """TLS 1.2 is the least (S26)."""
    assert tls_context().minimum_version is ssl.TLSVersion.TLSv1_2
    assert tls_context().verify_mode is ssl.CERT_REQUIRED
    assert tls_context().check_hostname


async def test_an_early_answer_under_tls_is_delivered(authority, good):
    """A refused body is an answer under TLS too (F24)."""

    async def behave(peer: Peer) -> None:
        await peer.head()
        await peer.send_apart(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge")
        peer.reset()

    async with raw_upstream(behave, ssl_context=server_context(good)) as server:
        upstream = Http1Upstream(server.origin, ssl_context=tls_context(str(authority.ca)))
        for _ in range(10):
            assert await fetch(upstream, call(b"x" * 3_000_000)) == (413, b"large")
        await upstream.close()


async def test_a_body_that_ends_with_the_connection_must_end_as_tls_ends(authority, good):
    """Whoever cuts the wire cannot make a half answer look whole (R2)."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send_apart(b"HTTP/1.1 200 OK\r\n\r\nhello")
        if peer.number == 2:
            peer.reset()

    async with raw_upstream(behave, ssl_context=server_context(good)) as server:
        upstream = Http1Upstream(server.origin, ssl_context=tls_context(str(authority.ca)))
        assert await fetch(upstream) == (200, b"hello")
        with pytest.raises(UpstreamBroken):
            await fetch(upstream)
        await upstream.close()


async def test_aborts_in_the_handshake_lose_no_slot(authority, good):
    """Slots come back from handshakes given up half-way (F32)."""
    async with raw_upstream(serve_plainly, ssl_context=server_context(good)) as server:
        upstream = Http1Upstream(server.origin, ssl_context=tls_context(str(authority.ca)), max_connections=5)
        for turns in range(40):
            pendings = [upstream.start(call()) for _ in range(8)]
            for _ in range(turns % 12):
                await asyncio.sleep(0)
            for pending in pendings:
                pending.abort()
        assert await asyncio.gather(*(fetch(upstream) for _ in range(5))) == [(200, b"hello")] * 5
        await upstream.close()


async def test_a_second_answer_in_the_same_read_reaches_nobody(authority, good):
    """Bytes after an answer close the connection even when another call waits for it (F26)."""

    async def behave(peer: Peer) -> None:
        while True:
            body = (await peer.request()).body
            mine = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            forged = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged"
            peer.send(mine, forged)  # two records, one read

    async with raw_upstream(behave, ssl_context=server_context(good)) as server:
        upstream = Http1Upstream(server.origin, ssl_context=tls_context(str(authority.ca)), max_connections=1)
        bodies = [b"nonce-%d" % number for number in range(10)]
        answers = await asyncio.gather(*(fetch(upstream, call(body)) for body in bodies))
        assert [body for _, body in answers] == bodies
        assert server.connections == 10
        await upstream.close()


async def test_a_body_in_pieces_arrives_whole_under_tls(authority, good):
    """Other bytes in many places, each piece encrypted as it is made; the connection stays clean."""
    raw = bytes(range(256)) * 8_000
    body = Spliced(raw)
    for at in range(0, len(raw), 5_000):
        body.replace(at, at + 10, b"a model")
    expected = b"".join(body.pieces(1_000_000))

    async def behave(peer: Peer) -> None:
        while True:
            request = await peer.request()
            peer.send(b"HTTP/1.1 %d OK\r\ncontent-length: 0\r\n\r\n" % (200 if request.body == expected else 400))

    async with raw_upstream(behave, ssl_context=server_context(good)) as server:
        upstream = Http1Upstream(server.origin, ssl_context=tls_context(str(authority.ca)))
        for _ in range(2):
            assert await fetch(upstream, call(body)) == (200, b"")
        assert upstream.stats()["opened"] == 1
        await upstream.close()
