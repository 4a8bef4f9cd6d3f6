"""What goes over the wire, what comes back, and what is refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest
from kit.raw_upstream import Peer, raw_upstream
from kit.upstream_calls import call, fetch, read_all

from router.errors import InternalError, RouterError, SettingsError, UpstreamBroken, UpstreamUnreachable
from router.upstream.http1 import Http1Upstream

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"
PLAIN = OK + b"content-length: 5\r\n\r\nhello"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\nx-trailer: 1\r\n\r\n"


async def answer_with(raw: bytes, *, method: str = "POST", close: bool = False) -> tuple[int, bytes, dict[str, int]]:
    """One call answered by `raw`: status, body, and the pool's counts afterwards."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(raw)
        if not close:
            await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        try:
            status, body = await fetch(upstream, call(method=method))
            return status, body, dict(upstream.stats())
        finally:
            await upstream.close()


async def test_a_request_goes_out_as_given_with_host_and_length_added():
    """Bytes are sent as they are: target, header order, duplicates and body."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(PLAIN)
        await peer.closed()

    headers = [(b"x-api-key", b"k"), (b"anthropic-beta", b"a"), (b"anthropic-beta", b"b")]
    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        await fetch(upstream, call(b'{"a":1}', target=b"/v1/messages?beta=true", headers=headers))
        await upstream.close()
    request = server.requests[0]
    assert request.line == b"POST /v1/messages?beta=true HTTP/1.1"
    host = b"127.0.0.1:%d" % server.port
    assert request.headers == [(b"host", host), *headers, (b"content-length", b"7")]
    assert request.body == b'{"a":1}'


async def test_a_get_carries_no_content_length():
    """A body that does not exist is not announced."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(PLAIN)
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        assert await fetch(upstream, call(b"", method="GET")) == (200, b"hello")
        await upstream.close()
    assert server.requests[0].header(b"content-length") is None


async def test_header_names_are_lowered_and_order_and_duplicates_kept():
    """What a client sees of the upstream's headers is what the upstream said."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(OK + b"Request-Id: r\r\nX-B: 2\r\nX-A: One Two\r\nx-b: 3\r\nContent-Length: 0\r\n\r\n")
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        reply = await upstream.start(call()).reply()
        assert await reply.read() == b""
        assert await reply.read() == b""
        await upstream.close()
    assert reply.headers == [
        (b"request-id", b"r"),
        (b"x-b", b"2"),
        (b"x-a", b"One Two"),
        (b"x-b", b"3"),
        (b"content-length", b"0"),
    ]


@pytest.mark.parametrize(
    "raw",
    [
        PLAIN,
        CHUNKED,
        OK + b"\r\nhello",
        OK + b"transfer-encoding: gzip\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + PLAIN,
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    ],
    ids=["length", "chunked", "until-close", "until-close-coded", "informational", "http-1.0"],
)
async def test_an_answer_split_at_every_byte_is_the_same_answer(raw: bytes, until):
    """No split of the bytes changes status or body (F20)."""
    # One byte apart from the rest at each position, and one run of single bytes.
    splits = [[raw[:i], raw[i:]] for i in range(1, len(raw))] + [[raw[i : i + 1] for i in range(len(raw))]]

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send_apart(*splits[peer.number - 1])

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        for split in splits:
            reply = await upstream.start(call(headers=[(b"connection", b"close")])).reply()
            assert (reply.status, await read_all(reply)) == (200, b"hello"), split
            await until(lambda: upstream.stats()["open"] == 0)  # the script closes after each answer
        await upstream.close()


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_body_by_its_status_is_complete_at_its_head(status: int):
    """204 and 304 have no body, whatever their headers say, and leave the connection clean."""
    got, body, stats = await answer_with(b"HTTP/1.1 %d X\r\ncontent-length: 5\r\n\r\n" % status)
    assert (got, body, stats["idle"]) == (status, b"", 1)


async def test_the_answer_to_head_has_no_body_and_ends_its_connection():
    """The length of an answer to HEAD announces nothing that comes."""
    got, body, stats = await answer_with(OK + b"content-length: 5\r\n\r\n", method="HEAD")
    assert (got, body, stats["open"]) == (200, b"", 0)


async def test_a_redirect_is_an_answer_like_any_other():
    """3xx is returned, not followed: a credential never travels to another place (F22)."""
    raw = b"HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    status, body, _ = await answer_with(raw)
    assert (status, body) == (307, b"")


@pytest.mark.parametrize(
    "raw",
    [
        OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        PLAIN + b"x",
        PLAIN + b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad",
        OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nHTTP/1.1 2",
    ],
    ids=["close", "http-1.0", "a-byte-too-many", "a-second-answer", "half-an-answer"],
)
async def test_a_connection_that_is_not_clean_after_its_answer_is_closed(raw: bytes):
    """The answer is delivered; what follows it reaches nobody (F22, F26)."""
    status, body, stats = await answer_with(raw)
    assert (status, body) == (200, b"hello")
    assert stats["open"] == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"NOT HTTP\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 999 No\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 000 No\r\ncontent-length: 0\r\n\r\n",
        OK + b"content-length: 9\r\n\r\nhello",
        OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        OK + b"content-length: +5\r\n\r\nhello",
        OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhel",
        OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        OK + b"x: a\0b\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"x: a\rb\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"x: a\ncontent-length: 5\r\n\r\nhello",
        OK + b"x: a\r\n folded\r\ncontent-length: 5\r\n\r\nhello",
        OK + b": a\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"x: " + b"a" * 70_000 + b"\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"x: " + b"a" * 200_000,
        OK + b"x: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 3_000 + b"content-length: 5\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000,
        OK + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: aaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 4_000 + b"\r\n",
    ],
)
async def test_an_answer_that_is_cut_or_not_http_is_an_error_and_ends_its_connection(raw: bytes):
    """Nothing that cannot be believed is passed on as complete (F22, R2); nothing is retried: it may have been paid."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(raw)

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        with pytest.raises(UpstreamBroken) as caught:
            await fetch(upstream)
        assert not caught.value.retryable
        assert upstream.stats()["open"] == 0
        assert len(server.requests) == 1
        await upstream.close()


async def test_bytes_before_the_break_can_still_be_read():
    """What arrived is delivered, then the error: a cut stream shows its part (F15)."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(OK + b"transfer-encoding: chunked\r\n\r\n3\r\nhel\r\n")

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        reply = await upstream.start(call()).reply()
        assert await reply.read() == b"hel"
        for _ in range(2):
            with pytest.raises(UpstreamBroken, match="inside its answer"):
                await reply.read()
        await upstream.close()


@pytest.mark.parametrize("size", [100_000, 3_000_000])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_an_answer_before_the_body_was_read_is_delivered_and_its_connection_closed(how: str, size: int):
    """A refused body is an answer, not a broken pipe, and its rest is never read as a request (F24)."""

    async def behave(peer: Peer) -> None:
        await peer.head()
        await peer.send_apart(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge")
        if how == "reset":
            peer.reset()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        for _ in range(20):
            assert await fetch(upstream, call(b"x" * size)) == (413, b"large")
        await upstream.close()
    assert not server.requests


# A process of its own, because only there the upstream's reset can overtake the next write of ours.
REFUSE_EARLY = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
print(listener.getsockname()[1], flush=True)
while True:
    peer, _ = listener.accept()
    peer.recv(4096)
    try:
        peer.sendall(b"HTTP/1.1 413 Too Large\\r\\ncontent-length: 5\\r\\n\\r\\nlarge")
    except OSError:
        pass
    peer.close()  # with bytes unread: a reset
"""


@pytest.fixture
def early_refuser() -> Iterator[str]:
    """The origin of an upstream that refuses every request without reading its body."""
    with subprocess.Popen([sys.executable, "-c", REFUSE_EARLY], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


async def test_an_answer_that_a_reset_has_overtaken_is_still_heard(early_refuser: str):
    """Our write fails before the event loop has read the answer: it is taken from the kernel (F24)."""
    upstream = Http1Upstream(early_refuser)
    for _ in range(40):
        assert await fetch(upstream, call(b"x" * 3_000_000)) == (413, b"large")
    await upstream.close()


async def test_an_early_answer_that_keeps_alive_does_not_keep_the_connection():
    """While the request is not written to its last byte, its connection is not clean (F24)."""
    stop = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 401 No\r\ncontent-length: 2\r\n\r\nno")
        await stop.wait()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        assert await fetch(upstream, call(b"x" * 20_000_000)) == (401, b"no")
        assert upstream.stats()["open"] == 0
        stop.set()
        await upstream.close()


async def test_a_large_body_arrives_whole():
    """Pieces of a body arrive in order, whatever the pace of the reader."""
    body = bytes(range(256)) * 20_000

    async def behave(peer: Peer) -> None:
        request = await peer.request()
        peer.send(PLAIN if request.body == body else b"HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n")
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        assert await fetch(upstream, call(body)) == (200, b"hello")
        assert upstream.stats()["idle"] == 1
        await upstream.close()


class Pieces:
    """A body that is made while it is sent; `made` says how many bytes of it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.made = 0

    def __len__(self) -> int:
        return self.size

    def pieces(self, most_bytes: int) -> Iterator[memoryview]:
        """One byte fewer than may be, so that no piece ends where a write would."""
        self.made = 0
        while self.made < self.size:
            piece = bytes(min(most_bytes - 1, self.size - self.made))
            self.made += len(piece)
            yield memoryview(piece)


@pytest.mark.parametrize("size", [1, 65_536, 131_071, 131_072, 5_000_000])
async def test_a_body_in_pieces_arrives_whole_and_leaves_a_clean_connection(size: int):
    """Its length is announced, nothing is joined, and the connection carries the next request."""

    async def behave(peer: Peer) -> None:
        while True:
            request = await peer.request()
            assert request.header(b"content-length") == b"%d" % len(request.body)
            peer.send(PLAIN if request.body == bytes(size) else b"HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n")

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        for _ in range(2):
            assert await fetch(upstream, call(Pieces(size))) == (200, b"hello")
        assert (upstream.stats()["opened"], upstream.stats()["idle"]) == (1, 1)
        await upstream.close()


async def test_a_body_in_pieces_is_made_no_faster_than_it_is_taken():
    """While the upstream reads nothing, the rest is not made; an abort lets it go."""

    async def behave(peer: Peer) -> None:
        await peer.head()
        await peer.closed()

    body = Pieces(100_000_000)
    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        pending = upstream.start(call(body))
        async with asyncio.timeout(5.0):
            while not (before := body.made):  # noqa: ASYNC110 - the writing tells nobody
                await asyncio.sleep(0)
            while before != body.made:
                before = body.made
                await asyncio.sleep(0.02)
        assert body.made < 30_000_000, "what the two kernels hold, and little more"
        pending.abort()
        await upstream.close()


async def test_a_slow_reader_throttles_the_upstream():
    """While nobody reads, little is buffered and the upstream has to wait (F33)."""
    total = 40_000_000
    taken = 0

    async def behave(peer: Peer) -> None:
        nonlocal taken
        await peer.request()
        peer.send(OK + b"content-length: %d\r\n\r\n" % total)
        for _ in range(total // 100_000):
            peer.send(b"x" * 100_000)
            await peer.writer.drain()
            taken += 100_000
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        reply = await upstream.start(call()).reply()
        before = -1
        while taken != before:  # until the upstream makes no more progress
            before = taken
            for _ in range(200):
                await asyncio.sleep(0)
        assert taken < total / 2  # what lies in the kernel's buffers, not in ours
        largest = received = 0
        while chunk := await reply.read():
            largest = max(largest, len(chunk))
            received += len(chunk)
        assert received == total
        assert largest <= 64 * 1024
        assert upstream.stats()["idle"] == 1
        await upstream.close()


async def test_chunks_that_came_together_are_read_together():
    """A burst of small chunks costs one wake-up, not one each."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(OK + b"transfer-encoding: chunked\r\n\r\n" + b"3\r\nabc\r\n" * 106 + b"0\r\n\r\n")
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        reply = await upstream.start(call()).reply()
        assert await reply.read() == b"abc" * 106
        assert await reply.read() == b""
        await upstream.close()


async def test_nobody_listening_is_unreachable_and_may_be_tried_again():
    """A refused connection has cost nothing (F1)."""
    async with raw_upstream(lambda peer: peer.closed()) as server:
        pass
    upstream = Http1Upstream(server.origin)
    with pytest.raises(UpstreamUnreachable) as caught:
        await fetch(upstream)
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, OSError)
    assert upstream.stats()["opening"] == 0
    await upstream.close()


async def test_a_name_that_does_not_exist_is_unreachable():
    """A failing name service is told as such (F3)."""
    upstream = Http1Upstream("http://no-such-host.invalid")
    with pytest.raises(UpstreamUnreachable, match=r"no-such-host\.invalid"):
        await fetch(upstream)
    await upstream.close()


@pytest.mark.parametrize(
    "broken",
    [
        call(headers=[(b"x", b"a\r\nevil: 1")]),
        call(headers=[(b"x\n", b"a")]),
        call(headers=[(b"x", b"a\0")]),
        call(target=b"/v1 HTTP/1.1\r\nevil: 1\r\n\r\n"),
        call(target=b"/a b"),
    ],
)
async def test_a_request_that_would_be_read_as_two_never_leaves(broken: object):
    """Should the flow fail to keep its promise, the line stays clean all the same (S14)."""
    upstream = Http1Upstream("http://127.0.0.1:1")
    with pytest.raises(InternalError):
        await upstream.start(broken).reply()
    assert upstream.stats()["opening"] == 0
    await upstream.close()


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "api.anthropic.com",
        "ftp://x",
        "http://",
        "http://u:secret@x",
        "http://x/path",
        "http://x?q",
        "http://x:99999",
    ],
)
async def test_an_origin_that_cannot_be_used_is_refused_at_once(origin: str):
    """A wrong upstream is found at start, by name, and a password in it is not shown (F98)."""
    with pytest.raises(SettingsError) as caught:
        Http1Upstream(origin)
    assert "secret" not in str(caught.value)


async def test_every_error_is_one_of_the_family():
    """The flow needs to know one family of errors only."""
    upstream = Http1Upstream("http://127.0.0.1:1")
    with pytest.raises(RouterError):
        await fetch(upstream)
    await upstream.close()
