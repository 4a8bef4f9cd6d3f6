"""The installed program over raw sockets: one request is always one request (F44 to F52).

Every case carries a second, well-formed request behind it, which must not be served when the first is refused: that
would be a smuggled one.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from kit.processes import router
from kit.raw_client import RawClient, parse, request
from kit.raw_upstream import raw_upstream
from kit.stage import always, answers
from kit.strict_cases import BODY, KEY, LENGTH, POST, REFUSED, SERVED, Case

pytestmark = pytest.mark.anyio

GOOD = request(POST, *KEY, LENGTH, body=BODY)
LAST = request(POST, *KEY, LENGTH, b"connection: close", body=BODY)


@pytest.fixture(scope="module")
async def upstream():
    async with raw_upstream(answers()) as running:
        yield running


@pytest.fixture(scope="module")
async def server(upstream, tmp_path_factory):
    folder = tmp_path_factory.mktemp("strict")
    async with router(folder, upstream.origin, policy=always(), cache="off") as running:
        yield running


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
async def test_what_could_be_read_in_two_ways_is_refused(server, upstream, case: Case) -> None:
    """A 4xx or 5xx in the API's error shape, then the end: no second answer, no call upstream, nothing repeated."""
    asked = len(upstream.requests)
    wire = await RawClient.open(server.port)
    await wire.say(case.data + GOOD)
    found = await wire.answers()
    await wire.close()
    assert [answer.status for answer in found] == [found[0].status]
    [answer] = found
    assert answer.status in case.statuses
    assert answer.header("connection") == "close"
    assert (answer.header("request-id") or "").startswith("req_")
    error = json.loads(answer.body)
    assert error["type"] == "error"
    assert error["request_id"] == answer.header("request-id")
    assert error["error"]["type"] == "invalid_request_error"
    assert b"sk-" not in answer.body
    assert b"other" not in answer.body
    assert len(upstream.requests) == asked


@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.name)
async def test_what_is_odd_and_lawful_is_served(server, upstream, case: Case) -> None:
    """Once, with the body that was meant; and the connection serves the next request."""
    asked = len(upstream.requests)
    wire = await RawClient.open(server.port)
    await wire.say(case.data + LAST)
    assert [answer.status for answer in await wire.answers()] == [200, 200]
    await wire.close()
    bodies = [json.loads(sent.body)["messages"] for sent in upstream.requests[asked:]]
    assert bodies == [json.loads(BODY)["messages"]] * 2


@pytest.mark.parametrize("case", [case for case in REFUSED if len(case.data) < 4000], ids=lambda case: case.name)
async def test_refusals_stand_when_the_bytes_come_one_packet_after_the_other(server, upstream, case: Case) -> None:
    """Cut in three, with the seams where lines end: the same refusal, and still only one answer."""
    asked = len(upstream.requests)
    wire = await RawClient.open(server.port)
    data = case.data + GOOD
    first = max(case.data.find(b"\n"), 1)
    second = max(len(case.data) - 3, first + 1)
    for piece in (data[:first], data[first:second], data[second:]):
        await wire.say(piece)
        await asyncio.sleep(0.001)
    found = await wire.answers()
    await wire.close()
    assert [answer.status in case.statuses for answer in found] == [True], found
    assert len(upstream.requests) == asked


async def test_an_offer_to_switch_protocols_leaves_the_connection_as_it_is(server) -> None:
    """No 101, and what comes behind is read as HTTP: bytes of a tunnel are refused (F50)."""
    wire = await RawClient.open(server.port)
    await wire.say(request(POST, *KEY, LENGTH, b"connection: upgrade", b"upgrade: h2c", body=BODY))
    assert (await wire.answer()).status == 200
    await wire.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert [answer.status for answer in await wire.answers()] == [505]
    await wire.close()


async def test_http_1_0_gets_an_answer_that_the_end_closes(server) -> None:
    """No chunks, no kept connection, even where it asks for one (F48)."""
    wire = await RawClient.open(server.port)
    line = b"POST /v1/messages HTTP/1.0"
    await wire.say(request(line, *KEY, LENGTH, b"connection: keep-alive", body=BODY, host=None) + GOOD)
    [answer] = await wire.answers()
    assert (answer.status, answer.header("connection"), answer.header("transfer-encoding")) == (200, "close", None)
    await wire.close()


async def test_a_hundred_requests_in_one_packet_are_answered_in_order(server, upstream) -> None:
    """Each with its own answer, one at a time (F47)."""
    bodies = [BODY.replace(b"Hi", b"Hi %d" % number) for number in range(100)]
    last = len(bodies) - 1
    data = b"".join(
        request(
            POST,
            *KEY,
            b"content-length: %d" % len(body),
            b"connection: close" if number == last else b"connection: keep-alive",
            body=body,
        )
        for number, body in enumerate(bodies)
    )
    asked = len(upstream.requests)
    wire = await RawClient.open(server.port)
    await wire.say(data)
    found = await wire.answers()
    await wire.close()
    assert [answer.status for answer in found] == [200] * 100
    texts = [json.loads(sent.body)["messages"][0]["content"] for sent in upstream.requests[asked:]]
    assert texts == [f"Hi {number}" for number in range(100)]


async def test_a_100_is_sent_when_the_body_is_wanted_and_not_before_a_refusal(server) -> None:
    """Then the answer; without a key there is no 100, and the body that was never sent is not waited for (F49)."""
    wire = await RawClient.open(server.port)
    await wire.say(request(POST, *KEY, LENGTH, b"expect: 100-continue"))
    assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await wire.say(BODY)
    assert (await wire.answer()).status == 200
    await wire.close()
    wire = await RawClient.open(server.port)
    await wire.say(request(POST, LENGTH, b"expect: 100-continue"))
    [answer] = await wire.answers()
    assert (answer.status, answer.header("connection")) == (401, "close")
    await wire.close()


async def test_a_body_over_the_limit_is_refused_before_it_is_read(server) -> None:
    """By what it declares, with the answer first (F36); chunked, when it is over."""
    wire = await RawClient.open(server.port)
    await wire.say(request(POST, *KEY, b"content-length: 34000000"))
    answer = await wire.answer()
    assert (answer.status, answer.header("connection")) == (413, "close")
    await wire.close()


async def test_the_admin_listener_is_as_strict(server) -> None:
    """The same protocol stands before the operator's pages."""
    wire = await RawClient.open(server.admin_port)
    await wire.say(request(b"GET /healthz HTTP/1.1", b"x-a : 1"))
    [answer] = await wire.answers()
    assert answer.status == 400
    assert json.loads(answer.body)["type"] == "error"
    await wire.close()


async def test_a_hundred_megabytes_of_header_cost_nothing(server) -> None:
    """Refused within a second, while memory grows by less than a megabyte and others are served (F44)."""
    loop = asyncio.get_running_loop()

    async def poured() -> tuple[int, float]:
        wire = await RawClient.open(server.port)
        begun = loop.time()
        pouring = asyncio.create_task(wire.say(POST + b"\r\nhost: test\r\nx-a: ", *[b"a" * 1_000_000] * 100))
        reading = asyncio.create_task(wire.everything())
        assert (await server.messages()).status == 200
        [answer] = parse(await reading)
        taken_s = loop.time() - begun
        await wire.close()
        await pouring
        return answer.status, taken_s

    await poured()  # what the first ones load once
    before = resident_bytes(server.process.pid)
    seen = [await poured() for _ in range(3)]
    assert [status for status, _ in seen] == [431] * 3
    assert min(taken_s for _, taken_s in seen) < 1.0
    assert resident_bytes(server.process.pid) - before < 1_000_000


async def test_what_was_refused_is_counted_by_its_reason(server) -> None:
    """So that an operator sees a client, or an attack, that nothing else tells of; and no refusal is a traceback."""
    names = {
        "syntax": "CR in a value",
        "host": "an empty host",
        "framing": "a length with a plus",
        "chunks": "a chunk size with 0x",
        "version": "HTTP/2.0",
        "target": "an absolute target",
        "target_length": "a target of 20 kB",
        "head_size": "200 headers",
        "method": "TRACE",
        "expect": "an unknown expectation",
        "twin": "x_api_key",
        "repeated": "two encodings",
    }
    cases = {case.name: case for case in REFUSED}
    before = await server.figures()
    for name in names.values():
        wire = await RawClient.open(server.port)
        await wire.say(cases[name].data)
        await wire.closed()
        await wire.close()
    after = await server.figures()
    for reason in names:
        stat = f'router_connections{{stat="refused_{reason}"}}'
        assert after[stat] == before[stat] + 1, reason
    assert not [line for line in server.said() if "Traceback" in line or "Exception" in line]


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096
