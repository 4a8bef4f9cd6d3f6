"""What goes out over one connection: framing, back-pressure, endings, and who is told that a client has gone."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys

import pytest
from kit.http_server import echo, reply, served
from kit.raw_client import request
from kit.stage import until

from router.web.disconnect import watch_for_disconnect
from router.web.http.connection import HttpConnection
from router.web.http.cycle import HAS_BODY_AT_HAND

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop that `router serve` runs on; the rest of the suite runs the protocol on the other."""
    return "asyncio", {"use_uvloop": True}


GET = request()
CLOSING = request(b"GET / HTTP/1.1", b"connection: close")


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> dict[str, object]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes = b"", *, more: bool = False) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def saying(*messages: dict[str, object]):
    """An application that sends these messages."""

    async def application(scope, receive, send):
        for message in messages:
            await send(message)

    return application


async def said_to(server, data: bytes, *, is_head: bool = False):
    """The answers to these bytes, until the server closes."""
    wire = await server.connect()
    await wire.say(data)
    return await wire.answers(is_head=is_head)


async def test_an_answer_without_a_length_goes_in_chunks() -> None:
    """As many as the application gave, each at once; and the connection is kept."""
    async with served(
        saying(start(), body(b"a", more=True), body(more=True), body(b"bc", more=True), body())
    ) as server:
        wire = await server.connect()
        await wire.say(GET + CLOSING)
        raw = await wire.everything()
        one = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"
        assert raw == one + one.replace(b"chunked\r\n", b"chunked\r\nconnection: close\r\n")


async def test_a_last_piece_ends_the_chunks() -> None:
    """A body in one message is one chunk and the end."""
    async with served(saying(start(), body(b"abc"))) as server:
        assert [answer.body for answer in await said_to(server, CLOSING)] == [b"abc"]


@pytest.mark.parametrize(("status", "method"), [(204, b"GET"), (304, b"GET"), (200, b"HEAD")])
async def test_answers_that_have_no_body_get_none(status: int, method: bytes) -> None:
    """Whatever the application sends; the next answer on the connection is read right."""
    line = method + b" / HTTP/1.1"
    async with served(saying(start(status, (b"content-length", b"3")), body(b"abc"))) as server:
        found = await said_to(server, request(line) + request(line, b"connection: close"), is_head=True)
        assert [(answer.status, answer.body) for answer in found] == [(status, b"")] * 2
        assert found[0].header("content-length") == (None if status == 204 else "3")
        assert found[0].header("transfer-encoding") is None


async def test_http_1_0_gets_no_chunks() -> None:
    """The end of the connection is the end of the answer."""
    async with served(saying(start(), body(b"a", more=True), body(b"b"))) as server:
        [answer] = await said_to(server, request(b"GET / HTTP/1.0"))
        assert answer.body == b"ab"
        assert answer.header("transfer-encoding") is None


async def test_what_is_ours_to_say_is_said_once() -> None:
    """Framing and connection headers of an application, or of an upstream, are not repeated (S14)."""
    headers = [
        (b"content-length", b"3"),
        (b"content-length", b"3"),
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"keep-alive"),
        (b"x-a", b"1"),
    ]
    async with served(saying(start(200, *headers), body(b"abc"))) as server:
        wire = await server.connect()
        await wire.say(GET)
        answer = await wire.answer()
        assert answer.headers == [(b"content-length", b"3"), (b"x-a", b"1")]
        assert answer.body == b"abc"


@pytest.mark.parametrize("bad", [b"1\r\nx-evil: 1", b"1\nx-evil: 1", b"1\r", b"1\0", b"\n"])
async def test_no_header_can_end_a_line(bad: bytes) -> None:
    """It is dropped and counted, and the answer is sent without it (S14)."""
    async with served(saying(start(200, (b"x-bad", bad), (b"x" + bad, b"1"), (b"x-a", b"1")), body(b"hi"))) as server:
        [answer] = await said_to(server, CLOSING)
        assert [name for name, _ in answer.headers] == [b"x-a", b"transfer-encoding", b"connection"]
        assert server.lobby.stats()["dropped_headers"] == 2


async def test_an_application_may_close() -> None:
    """It says so in a header."""
    async with served(saying(start(200, (b"connection", b"Close"), (b"content-length", b"0")), body())) as server:
        [answer] = await said_to(server, GET + GET)
        assert answer.header("connection") == "close"


async def test_a_head_whose_body_is_at_hand_goes_out_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One write, and so one system call and one packet, where the application says that nothing comes in between."""
    written: list[bytes] = []
    plainly = HttpConnection.write
    monkeypatch.setattr(HttpConnection, "write", lambda line, data: (written.append(bytes(data)), plainly(line, data)))
    begins = start(200, (b"content-length", b"3"))
    async with served(saying({**begins, HAS_BODY_AT_HAND: True}, body(b"abc"))) as server:
        assert [answer.body for answer in await said_to(server, CLOSING)] == [b"abc"]
    assert len(written) == 1
    async with served(saying(begins, body(b"abc"))) as server:
        await said_to(server, CLOSING)
    assert written[1] + written[2] == written[0]


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("length", [b"0", b"4", b"3", b"40000", None])
@pytest.mark.parametrize("data", [b"", b"abc", b"a" * 40_000])
async def test_a_body_at_hand_changes_no_byte_of_an_answer(data: bytes, length: bytes | None, method: bytes) -> None:
    """Whatever the framing, and whether the length is right or wrong."""
    begins = start(200, *([] if length is None else [(b"content-length", length)]))
    said = []
    for is_at_hand in (False, True):
        async with served(saying({**begins, HAS_BODY_AT_HAND: is_at_hand}, body(data))) as server:
            wire = await server.connect()
            await wire.say(request(method + b" / HTTP/1.1", b"connection: close"))
            said.append(await wire.everything())
    assert said[0] == said[1]
    assert said[0].startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_head_whose_body_never_comes_is_sent_all_the_same() -> None:
    """The application fails between the two: the client is told by a cut, as if the head had gone out at once."""

    async def application(scope, receive, send):
        await send({**start(200, (b"content-length", b"3")), HAS_BODY_AT_HAND: True})
        raise ValueError("of ours")

    async with served(application) as server:
        [answer] = await said_to(server, GET)
        assert (answer.status, answer.body, answer.is_whole) == (200, b"", False)
        assert server.lobby.stats()["cut_incomplete"] == 1


@pytest.mark.parametrize("is_started", [False, True])
async def test_a_failure_of_the_application_says_nothing_of_itself(is_started: bool) -> None:
    """500 in the API's shape, or a cut that cannot be taken for an end; the operator is told."""

    async def application(scope, receive, send):
        if is_started:
            await send(start())
            await send(body(b"half", more=True))
        raise ValueError("sk-secret")

    async with served(application) as server:
        [answer] = await said_to(server, GET)
        if is_started:
            assert (answer.status, answer.body, answer.is_whole) == (200, b"half", False)
            assert server.lobby.stats()["cut_incomplete"] == 1
        else:
            assert (answer.status, answer.header("connection")) == (500, "close")
            assert json.loads(answer.body)["error"]["type"] == "api_error"
            assert b"secret" not in answer.body
        assert [str(error) for error in server.reported] == ["sk-secret"]


async def test_an_application_that_says_nothing_is_a_failure() -> None:
    """500, and the connection is closed."""
    async with served(saying()) as server:
        assert [answer.status for answer in await said_to(server, GET + GET)] == [500]


@pytest.mark.parametrize("data", [b"abcd", b"ab"])
async def test_an_answer_of_another_length_than_it_says_is_cut(data: bytes) -> None:
    """Too long: not a byte too many. Too short: the end comes early."""
    async with served(saying(start(200, (b"content-length", b"3")), body(data))) as server:
        [answer] = await said_to(server, GET + GET)
        assert not answer.is_whole
        assert len(answer.body) < 3


async def test_an_answer_that_the_end_closes_is_reset_when_it_is_cut() -> None:
    """To HTTP/1.0 a plain end would look like a whole answer."""
    async with served(saying(start(), body(b"half", more=True))) as server:
        wire = await server.connect()
        await wire.say(request(b"GET / HTTP/1.0"))
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(wire.reader.read(), 5)


async def test_an_application_waits_while_its_client_does_not_read() -> None:
    """48 KiB stand with us at most, whatever the size of its pieces; the client reads, and has all of it (F33)."""
    piece, count, most = b"x" * 300_000, 30, 0

    async def application(scope, receive, send):
        nonlocal most
        await send(start())
        for _ in range(count):
            await send(body(piece, more=True))
            [connection] = server.connections
            most = max(most, connection.transport.get_write_buffer_size())
        await send(body())

    async with served(application) as server:
        wire = await server.connect(receive_bytes=65_536)
        await wire.say(CLOSING)
        await until(lambda: any(connection.is_full for connection in server.connections))
        [answer] = await wire.answers()
        assert len(answer.body) == len(piece) * count
        assert answer.is_whole
        assert most <= 48 * 1024 + 100


async def test_a_client_that_takes_nothing_is_cut() -> None:
    """After its time, counted; the application's slot is free, and it is told (F33)."""
    gone = asyncio.Event()

    async def application(scope, receive, send):
        end = watch_for_disconnect(receive, gone.set)
        await send(start())
        for _ in range(1000):
            await send(body(b"x" * 100_000, more=True))
            if gone.is_set():
                break
        end()

    async with served(application, write_idle_s=0.1) as server:
        wire = await server.connect(receive_bytes=4096)
        await wire.say(GET)
        await asyncio.wait_for(gone.wait(), 10)
        await until(lambda: not server.tasks)
        assert server.lobby.stats()["cut_write_idle"] == 1
        assert not server.connections


async def test_a_client_that_takes_its_last_answer_slowly_is_not_waited_for_either() -> None:
    """The answer is complete and the connection closing: its time is the same."""
    async with served(
        saying(start(200, (b"content-length", b"50000")), body(b"x" * 50_000)), write_idle_s=0.05, linger_s=0.05
    ) as server:
        wires = [await server.connect(receive_bytes=2048) for _ in range(3)]
        for wire in wires:
            await wire.say(GET * 400 + CLOSING)
        await until(lambda: not server.connections)
        assert server.lobby.stats()["cut_write_idle"] == 3


async def test_a_slow_client_is_not_an_idle_one() -> None:
    """As long as it takes something within the time, it gets all of it (F33)."""
    size = 3_000_000
    async with served(
        saying(start(200, (b"content-length", b"%d" % size)), body(b"x" * size)), write_idle_s=0.15
    ) as server:
        wire = await server.connect(receive_bytes=16_384)
        await wire.say(CLOSING)
        loop = asyncio.get_running_loop()
        begun, taken = loop.time(), 0
        while data := await wire.reader.read(20_000):
            taken += len(data)
            if loop.time() - begun < 0.6:
                await asyncio.sleep(0.01)
        assert taken > size
        assert loop.time() - begun > 0.5
        assert server.lobby.stats()["cut_write_idle"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="what the kernel still holds is asked as Linux is asked")
async def test_a_client_that_reads_a_little_at_a_time_is_not_an_idle_one() -> None:
    """A packet that was taken counts, though it makes no room to write in for a long time (F33)."""
    size = 300_000
    async with served(
        saying(start(200, (b"content-length", b"%d" % size)), body(b"x" * size)), write_idle_s=0.2
    ) as server:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        with sock:
            await loop.sock_connect(sock, ("127.0.0.1", server.port))
            await loop.sock_sendall(sock, CLOSING)
            taken = 0
            while data := await loop.sock_recv(sock, 1024 if taken < 48_000 else 65_536):
                taken += len(data)
                if taken < 48_000:
                    await asyncio.sleep(0.012)  # 5 KiB, which it takes for the kernel to confirm, are 60 ms
        assert taken > size
        assert server.lobby.stats()["cut_write_idle"] == 0


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
async def test_a_client_that_leaves_is_noticed_at_once(how: str) -> None:
    """By the callback and by `receive`, once, whichever way it goes (F31)."""
    told, over = [], asyncio.Event()
    begun = asyncio.Event()

    async def application(scope, receive, send):
        end = watch_for_disconnect(receive, lambda: told.append("gone"))
        await receive()
        begun.set()
        told.append((await receive())["type"])
        await reply(send, b"nobody hears this")
        end()
        over.set()

    async with served(application) as server:
        wire = await server.connect()
        await wire.say(GET)
        await asyncio.wait_for(begun.wait(), 5)
        if how == "half-close":
            wire.writer.write_eof()
        elif how == "reset":
            sock = wire.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wire.writer.transport.abort()
        else:
            await wire.close()
        await asyncio.wait_for(over.wait(), 5)
        assert told == ["gone", "http.disconnect"]


async def test_the_end_of_a_connection_after_the_answer_tells_nobody() -> None:
    """The application may still keep its books: its client has its answer."""
    told, may_end = [], asyncio.Event()

    async def application(scope, receive, send):
        watch_for_disconnect(receive, lambda: told.append("gone"))
        await reply(send, b"hi")
        assert (await receive())["type"] == "http.disconnect"
        await may_end.wait()

    async with served(application) as server:
        await said_to(server, CLOSING)
        await until(lambda: not server.connections)
        assert told == []
        may_end.set()


async def test_draining_closes_what_rests_and_what_works_after_its_answer() -> None:
    """At once, and with `connection: close` (F86)."""
    may_end, begun = asyncio.Event(), asyncio.Event()

    async def application(scope, receive, send):
        begun.set()
        await may_end.wait()
        await reply(send, b"done")

    async with served(application) as server:
        resting, working, beginning = [await server.connect() for _ in range(3)]
        await working.say(GET + GET)
        await beginning.say(b"GET / HT")
        await begun.wait()
        for connection in list(server.connections):
            connection.shutdown()
        assert await resting.everything() == b""
        assert await beginning.everything() == b""
        may_end.set()
        [answer] = await working.answers()
        assert (answer.body, answer.header("connection")) == (b"done", "close")


async def test_a_connection_that_was_promised_to_stay_is_given_a_moment_when_draining() -> None:
    """A proxy may have sent the next request when the answer ends: it is answered, and that answer closes."""
    may_end, begun = asyncio.Event(), asyncio.Event()

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"h", "more_body": True})
        begun.set()
        await may_end.wait()
        await send({"type": "http.response.body", "body": b"i"})

    async with served(application, leaving_s=30.0) as server:
        wire, idle = await server.connect(), await server.connect()
        await wire.say(GET)
        await begun.wait()
        for _ in range(3):  # a server that drains says so again and again
            for connection in list(server.connections):
                connection.shutdown()
        may_end.set()
        answer = await wire.answer()
        assert (answer.body, answer.header("connection")) == (b"hi", None)
        assert await idle.everything() == b""
        for connection in list(server.connections):
            connection.shutdown()
        await wire.say(GET)
        [answer] = await wire.answers()
        assert (answer.body, answer.header("connection")) == (b"hi", "close")


async def test_that_moment_is_short() -> None:
    """Without another request the connection closes by itself."""
    may_end, begun = asyncio.Event(), asyncio.Event()

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"h", "more_body": True})
        begun.set()
        await may_end.wait()
        await send({"type": "http.response.body", "body": b"i"})

    async with served(application, leaving_s=0.05) as server:
        wire = await server.connect()
        await wire.say(GET)
        await begun.wait()
        for connection in list(server.connections):
            connection.shutdown()
        may_end.set()
        [answer] = await wire.answers()
        assert answer.body == b"hi"


async def test_a_new_connection_takes_the_place_of_the_one_that_has_rested_the_longest() -> None:
    """With as many connections as there may be; where all of them work, it is told to come again (F35)."""
    may_end = asyncio.Event()

    async def application(scope, receive, send):
        if scope["path"] == "/wait":
            await may_end.wait()
        await reply(send, b"ok")

    async with served(application, max_connections=2) as server:
        first, second = [await server.connect() for _ in range(2)]
        for wire in (second, first):
            await wire.say(GET)
            await wire.answer()
        third = await server.connect()
        assert await second.everything() == b""
        for wire in (first, third):
            await wire.say(request(b"GET /wait HTTP/1.1", b"connection: close"))
        await until(lambda: len(server.tasks) == 2)
        fourth = await server.connect()
        [answer] = await fourth.answers()
        assert (answer.status, answer.header("retry-after"), answer.header("connection")) == (529, "1", "close")
        assert json.loads(answer.body)["error"]["type"] == "overloaded_error"
        may_end.set()
        assert [answer.status for wire in (first, third) for answer in await wire.answers()] == [200, 200]
        stats = server.lobby.stats()
        assert (stats["evicted"], stats["refused_connections"]) == (1, 1)


async def test_newcomers_far_over_the_cap_are_closed_without_a_word() -> None:
    """Telling each of them would cost what there is too little of."""
    async with served(echo, max_connections=0, refused_linger_s=30) as server:
        told = [await server.connect() for _ in range(64)]
        await until(lambda: server.lobby.stats()["open"] == 64)
        more = [await server.connect() for _ in range(3)]
        assert [await wire.everything() for wire in more] == [b""] * 3
        assert [(await wire.answers())[0].status for wire in told] == [529] * 64
        assert server.lobby.stats()["refused_connections"] == 67


async def test_a_thousand_resting_connections_leave_others_alone() -> None:
    """What rests costs a place and a little memory (F35)."""
    async with served(echo) as server:
        for _ in range(1000):
            await server.connect()
        await until(lambda: server.lobby.stats()["idle"] == 1000)
        assert [answer.status for answer in await said_to(server, CLOSING)] == [200]


async def test_a_hundred_thousand_tiny_pieces_are_an_answer_like_any_other() -> None:
    """Each goes out as a chunk, in order, and memory does not grow with their number (F52)."""
    count = 100_000

    async def application(scope, receive, send):
        await send(start())
        for _ in range(count):
            await send(body(b"x", more=True))
        await send(body())

    async with served(application) as server:
        wire = await server.connect()
        await wire.say(CLOSING)
        raw = await wire.everything()
        assert raw.count(b"1\r\nx\r\n") == count
        assert raw.endswith(b"\r\n0\r\n\r\n")
