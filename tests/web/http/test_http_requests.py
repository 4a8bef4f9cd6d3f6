"""What comes in over one connection: order, bodies, waiting in line, and a limit of time on each wait."""

from __future__ import annotations

import asyncio
import json

import pytest
from kit.http_server import body_of, echo, reply, served
from kit.raw_client import request
from kit.stage import until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop that `router serve` runs on; the rest of the suite runs the protocol on the other."""
    return "asyncio", {"use_uvloop": True}


GET = request()
POST = b"POST /a HTTP/1.1"


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


async def test_it_does_not_matter_how_a_conversation_is_cut_into_packets() -> None:
    """Two requests, one with chunks, one with a length, cut in two at every byte: the same two answers."""
    data = request(POST, b"transfer-encoding: chunked", body=chunked(b"Hel", b"lo")) + request(
        b"POST /b?c HTTP/1.1", b"content-length: 5", b"connection: close", body=b"World"
    )
    async with served(echo) as server:
        for at in range(1, len(data)):
            wire = await server.connect()
            await wire.say(data[:at])
            await asyncio.sleep(0)
            await wire.say(data[at:])
            found = await wire.answers()
            assert [answer.body for answer in found] == [b"POST /a Hello", b"POST /b?c World"], at


async def test_requests_behind_a_slow_one_wait_for_their_turn() -> None:
    """One at a time: the second does not begin before the first is answered, however quick it would be."""
    may_end, begun = asyncio.Event(), []

    async def application(scope, receive, send):
        begun.append(scope["path"])
        if scope["path"] == "/slow":
            await may_end.wait()
        await reply(send, scope["raw_path"])

    async with served(application) as server:
        wire = await server.connect()
        await wire.say(request(b"GET /slow HTTP/1.1") + request(b"GET /quick HTTP/1.1", b"connection: close"))
        other = await server.connect()
        await other.say(request(b"GET /other HTTP/1.1", b"connection: close"))
        await other.answers()
        assert begun == ["/slow", "/other"]
        may_end.set()
        assert [answer.body for answer in await wire.answers()] == [b"/slow", b"/quick"]


async def test_what_waits_in_line_is_bounded() -> None:
    """Behind a request that is worked on, a client can park some 64 KiB with us and no more."""
    may_end = asyncio.Event()

    async def application(scope, receive, send):
        await may_end.wait()
        await reply(send)

    async with served(application) as server:
        wire = await server.connect()
        await wire.say(GET)
        pouring = asyncio.create_task(wire.say(*[GET * 1000] * 1000))  # 40 MB
        await asyncio.sleep(0)
        [connection] = server.connections
        await until(lambda: connection._is_paused)
        for _ in range(50):
            await asyncio.sleep(0)
        assert sum(map(len, connection._in_line)) <= 2 * 65536
        assert not pouring.done()
        pouring.cancel()
        await wire.close()
        connection.transport.abort()  # what is in line hides the end of the connection
        may_end.set()


async def test_a_client_that_leaves_while_another_request_waits_in_line_is_noticed() -> None:
    """A few bytes in line do not keep us from reading."""
    gone = asyncio.Event()

    async def application(scope, receive, send):
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        gone.set()

    async with served(application) as server:
        wire = await server.connect()
        await wire.say(GET + GET)
        await wire.close()
        await asyncio.wait_for(gone.wait(), 5)


async def test_a_large_body_is_read_no_faster_than_the_application_takes_it() -> None:
    """Some 64 KiB wait for it, the rest in the kernel; and while it does not read, no clock runs against the client."""
    may_read = asyncio.Event()
    size = 16_000_000

    async def application(scope, receive, send):
        await may_read.wait()
        await reply(send, b"%d" % len(await body_of(receive)))

    async with served(application, body_idle_s=0.05, body_grace_s=0.01, body_bytes_per_s=1e6) as server:
        wire = await server.connect()
        sending = asyncio.create_task(
            wire.say(request(POST, b"content-length: %d" % size, b"connection: close"), *[b"x" * 1_000_000] * 16)
        )
        await until(lambda: any(connection._is_paused for connection in server.connections))
        [connection] = server.connections
        await asyncio.sleep(0.15)
        assert connection._cycle.held <= 2 * 65536
        assert not sending.done()
        may_read.set()
        [answer] = await wire.answers()
        assert answer.body == b"%d" % size


async def test_a_head_has_its_time_however_it_drips() -> None:
    """408 and the end, counted; another byte now and then does not help (F34)."""
    async with served(echo, head_s=0.08) as server:
        wire = await server.connect()
        await wire.say(b"GET / HTTP/1.1\r\nhost: te")
        reading = asyncio.create_task(wire.answers())
        while not reading.done():
            await wire.say(b"x")
            await asyncio.sleep(0.01)
        [answer] = reading.result()
        assert answer.status == 408
        assert json.loads(answer.body)["error"]["type"] == "timeout_error"
        assert server.lobby.stats()["refused_head_time"] == 1


async def test_the_time_of_a_head_begins_with_its_first_byte() -> None:
    """A kept connection may rest longer than a head may take; an empty line behind a body is no beginning."""
    async with served(echo, head_s=0.03, keep_alive_s=5) as server:
        wire = await server.connect()
        await wire.say(GET)
        await wire.answer()
        await wire.say(b"\r\n")
        await asyncio.sleep(0.1)
        await wire.say(GET)
        assert (await wire.answer()).status == 200


async def test_a_connection_that_is_never_used_is_closed() -> None:
    """Without a word, and counted (F35)."""
    async with served(echo, first_byte_s=0.05, keep_alive_s=30) as server:
        wire = await server.connect()
        assert await wire.everything() == b""
        assert server.lobby.stats()["cut_never_used"] == 1


async def test_a_kept_connection_is_closed_when_it_rests_too_long() -> None:
    """Without a word: the client may be sending, and then it sends again."""
    async with served(echo, keep_alive_s=0.05) as server:
        wire = await server.connect()
        await wire.say(GET)
        await wire.answer()
        assert await wire.everything() == b""
        assert server.lobby.stats()["cut_never_used"] == 0


@pytest.mark.parametrize("framing", [b"content-length: 100", b"transfer-encoding: chunked"])
async def test_a_body_that_stops_coming_ends_in_408(framing: bytes) -> None:
    """The application sees a client that left, and its slot is free (F34)."""
    saw = []

    async def application(scope, receive, send):
        saw.append((await receive())["type"])
        saw.append((await receive())["type"])

    async with served(application, body_idle_s=0.05) as server:
        wire = await server.connect()
        await wire.say(request(POST, framing, body=b"5\r\nhello\r\n"))
        [answer] = await wire.answers()
        assert (answer.status, answer.header("connection")) == (408, "close")
        assert saw == ["http.request", "http.disconnect"]
        assert not server.tasks
        assert server.lobby.stats()["refused_body_time"] == 1


async def test_a_body_that_drips_ends_in_408() -> None:
    """Each byte comes in time, and all of them too slowly (F34)."""
    async with served(echo, body_idle_s=5, body_grace_s=0.05, body_bytes_per_s=1e6) as server:
        wire = await server.connect()
        await wire.say(request(POST, b"content-length: 1000000"))
        reading = asyncio.create_task(wire.answers())
        while not reading.done():
            await wire.say(b"x")
            await asyncio.sleep(0.005)
        assert [answer.status for answer in reading.result()] == [408]


async def test_a_chunk_that_is_none_ends_a_request_under_way() -> None:
    """400 by us; the application is told that the client left, and cannot answer any more."""
    may_end, gone = asyncio.Event(), []

    async def application(scope, receive, send):
        await receive()
        gone.append((await receive())["type"])
        await reply(send, b"too late")
        may_end.set()

    async with served(application) as server:
        wire = await server.connect()
        await wire.say(request(POST, b"transfer-encoding: chunked", body=b"5\r\nhello\r\n"))
        await until(lambda: server.tasks)
        await wire.say(b"-5\r\n")
        assert [answer.status for answer in await wire.answers()] == [400]
        await asyncio.wait_for(may_end.wait(), 5)
        assert gone == ["http.disconnect"]


async def test_a_body_that_nobody_read_is_skipped_where_it_is_small() -> None:
    """The connection serves on; what is skipped is never taken for a request."""

    async def application(scope, receive, send):
        await reply(send, scope["raw_path"])

    async with served(application) as server:
        wire = await server.connect()
        await wire.say(request(POST, b"content-length: %d" % len(GET), body=GET[:10]))
        assert (await wire.answer()).body == b"/a"
        await wire.say(GET[10:] + request(b"GET /last HTTP/1.1", b"connection: close"))
        assert [answer.body for answer in await wire.answers()] == [b"/last"]


@pytest.mark.parametrize("framing", [b"content-length: 5000000", b"transfer-encoding: chunked"])
async def test_an_early_answer_reaches_a_client_that_goes_on_sending(framing: bytes) -> None:
    """The rest of the body is dropped for a while, and only then the connection: no reset before the answer."""

    async def application(scope, receive, send):
        await reply(send, b"no", 413)

    async with served(application) as server:
        wire = await server.connect()
        await wire.say(request(POST, framing), *[b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000)] * 45)
        [answer] = await wire.answers()
        assert (answer.status, answer.header("connection"), answer.body) == (413, "close", b"no")


async def test_a_100_is_sent_once_and_only_when_the_application_reads() -> None:
    """Not to a client whose body came anyway, and not before a final answer (F49)."""

    async def application(scope, receive, send):
        if scope["path"] == "/read":
            await body_of(receive)
        await reply(send, b"done")

    expecting = (b"expect: 100-continue", b"content-length: 2")
    async with served(application) as server:
        wire = await server.connect()
        await wire.say(request(b"POST /read HTTP/1.1", *expecting))
        assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await wire.say(b"h")
        await asyncio.sleep(0)
        await wire.say(b"i" + request(b"POST /read HTTP/1.1", *expecting, body=b"hi"))
        assert [(await wire.answer()).body for _ in range(2)] == [b"done", b"done"]
        await wire.say(request(b"POST /not HTTP/1.1", *expecting))
        [answer] = await wire.answers()
        assert (answer.status, answer.header("connection")) == (200, "close")


async def test_many_small_packets_in_line_are_kept_together() -> None:
    """A client that sends its next requests byte by byte gets their answers all the same."""
    may_end = asyncio.Event()

    async def application(scope, receive, send):
        await may_end.wait()
        await reply(send, scope["raw_path"])

    async with served(application) as server:
        wire = await server.connect()
        await wire.say(GET)
        for byte in request(b"GET /a HTTP/1.1") + request(b"GET /b HTTP/1.1", b"connection: close"):
            await wire.say(bytes([byte]))
            await asyncio.sleep(0)
        may_end.set()
        assert [answer.body for answer in await wire.answers()] == [b"/", b"/a", b"/b"]


async def test_what_an_application_is_told_of_a_request() -> None:
    """The scope of ASGI, with the path decoded and as it came."""
    scopes = []

    async def application(scope, receive, send):
        scopes.append(scope)
        await reply(send)

    async with served(application) as server:
        wire = await server.connect()
        await wire.say(request(b"GET /a%2Fb%20c?x=%20 HTTP/1.1", b"X-A: 1"))
        await wire.answer()
        await wire.say(request(b"GET / HTTP/1.0"))
        await wire.answers()
    first, second = scopes
    assert (first["type"], first["method"], first["scheme"], first["http_version"]) == ("http", "GET", "http", "1.1")
    assert (first["path"], first["raw_path"], first["query_string"]) == ("/a/b c", b"/a%2Fb%20c", b"x=%20")
    assert first["headers"] == [(b"host", b"test"), (b"x-a", b"1")]
    assert (first["client"][0], first["server"]) == ("127.0.0.1", ("127.0.0.1", server.port))
    assert second["http_version"] == "1.0"
    assert first["state"] is not second["state"]


async def test_400_000_chunks_of_a_byte_are_a_body_like_any_other() -> None:
    """Joined in time that grows with their number, while the event loop serves others (F52)."""

    async def application(scope, receive, send):
        await reply(send, b"%d" % len(await body_of(receive)))

    async with served(application) as server:
        wire = await server.connect()
        pouring = asyncio.create_task(
            wire.say(
                request(POST, b"transfer-encoding: chunked", b"connection: close"),
                *[b"1\r\nx\r\n" * 10_000] * 40,
                b"0\r\n\r\n",
            )
        )
        reading = asyncio.create_task(wire.answers())
        other = await server.connect()
        count = 0
        while not reading.done():
            await other.say(GET)
            assert (await other.answer()).status == 200
            count += 1
        await pouring
        assert count > 1
        [answer] = reading.result()
        assert answer.body == b"400000"
