"""Spans of a running router: an ill collector is never in the way, and trace context crosses only as it is set."""

from __future__ import annotations

import asyncio
import time

import pytest
from kit.otlp_receiver import OtlpReceiver, hangs, otlp_receiver, says
from kit.stage import KEY, always, answers, error, http, message, stage, until

pytestmark = pytest.mark.anyio

CALLER = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
CALLED = f"00-{CALLER[0]}-{CALLER[1]}-01".encode()


@pytest.fixture
def receiver(monkeypatch):
    """A receiver that routers made in the test send to."""
    with otlp_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield receiver


def by_name(receiver: OtlpReceiver, spans: int) -> dict[str, dict]:
    """The spans of the only trace, by name."""
    return {span["name"]: span for span in receiver.wait_spans(spans)}


# A collector that is ill


@pytest.mark.parametrize("word", [hangs, says(503, retry_after="60")], ids=["hangs", "refuses"])
async def test_requests_do_not_wait_for_a_collector(word, monkeypatch) -> None:
    """All are served, none waits; the router stops in time and says how many it lost (F79)."""
    with otlp_receiver(word) as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        async with stage(answers(http(message()))) as s:
            await s.messages()
            await asyncio.to_thread(receiver.wait_requests, 1)
            took = []
            for _ in range(50):
                began_s = time.perf_counter()
                assert (await s.messages()).status == 200
                took.append(time.perf_counter() - began_s)
            assert sorted(took)[25] < 0.25
            assert s.app.otlp is not None
            assert s.app.otlp.stats()["queued"] >= 50
            stats = s.app.otlp.stats
            began_s = time.perf_counter()
        assert time.perf_counter() - began_s < 6.0  # the exporter's share is 5
        assert stats()["dropped"] == 51
        assert stats()["queued"] == 0


async def test_without_an_endpoint_there_is_no_exporter() -> None:
    """No thread, no queue, no gauge."""
    async with stage() as s:
        assert s.app.otlp is None
        assert b"router_otlp" not in s.app.metrics.render()


async def test_the_figures_are_a_gauge(receiver: OtlpReceiver) -> None:
    """`router_otlp{stat=…}` beside the other sinks."""
    async with stage(answers(http(message()))) as s:
        await s.messages()
        receiver.wait_spans(4)
        await until(lambda: s.app.otlp.stats()["exported"])
        assert b'router_otlp{stat="exported"} 1.0' in s.app.metrics.render()


async def test_nothing_that_was_said_is_sent(receiver: OtlpReceiver) -> None:
    """Neither prompt nor answer nor credential (S16, S17)."""
    async with stage(answers(http(message("canary-answer"))), policy=always()) as s:
        await s.messages((b"x-canary", b"canary-header"), text="canary-prompt", system="canary-system", tools=[])
        await s.request("GET", "/v1/models?x=canary-query")
    receiver.wait_spans(6)
    sent = b"".join(request["bytes"] for request in receiver.requests)
    assert b"canary" not in sent
    assert KEY[0][1] not in sent


# Trace context, inwards


async def test_by_default_a_callers_trace_is_only_linked(receiver: OtlpReceiver) -> None:
    """`restart`: the trace id is the router's, the caller's span is a link of the request's."""
    async with stage(answers(http(message()))) as s:
        reply = await s.messages((b"traceparent", CALLED), (b"tracestate", b"a=1"), (b"baggage", b"b=2"))
    span = by_name(receiver, 4)["POST /v1/messages"]
    assert span["trace_id"] == reply.header("x-router-trace") != CALLER[0]
    assert span["parent_span_id"] == ""
    assert span["links"] == [{"trace_id": CALLER[0], "span_id": CALLER[1]}]


async def test_a_callers_trace_may_be_continued(receiver: OtlpReceiver) -> None:
    """`continue`: its trace id, its span as the parent, said to be elsewhere; the span and the request id are ours."""
    async with stage(answers(http(message(), request_id=None)), trace_context="continue") as s:
        replies = [await s.messages((b"traceparent", CALLED)) for _ in range(2)]
        rows = await s.traces()
    spans = receiver.wait_spans(8)
    assert {reply.header("x-router-trace") for reply in replies} == {CALLER[0]}
    assert {row["trace_id"] for row in rows} == {CALLER[0]}
    assert len({row["request_id"] for row in rows}) == 2
    assert len({span["span_id"] for span in spans}) == 8
    for root in (span for span in spans if span["kind"] == "SERVER"):
        assert root["parent_span_id"] == CALLER[1]
        assert root["flags"] & 0x200
        assert "links" not in root


async def test_a_caller_cannot_have_its_trace_left_out(receiver: OtlpReceiver) -> None:
    """The sampled flag is the caller's wish, not the owner's."""
    async with stage(answers(http(message())), trace_context="continue") as s:
        await s.messages((b"traceparent", CALLED[:-2] + b"00"))
    assert all(span["flags"] & 1 for span in receiver.wait_spans(4))


INVALID = [
    b"",
    b"00-x",
    CALLED.upper(),
    CALLED + b"-more",
    CALLED + b" ",
    b"ff" + CALLED[2:],
    b"00-" + b"0" * 32 + CALLED[35:],
    CALLED[:36] + b"0" * 16 + b"-01",
    CALLED.replace(b"-", b"_"),
    b"0" + CALLED,
    CALLED[:-1],
    CALLED + b"\x00",
    b"00-" + b"g" * 32 + CALLED[35:],
]


@pytest.mark.parametrize("mode", ["restart", "continue"])
async def test_a_traceparent_that_is_not_valid_to_the_letter_is_none(receiver: OtlpReceiver, mode: str) -> None:
    """Neither continued nor linked; the request is served all the same. Two headers are no valid one."""
    sent = [((b"traceparent", value),) for value in INVALID if b"\x00" not in value]
    sent.append(((b"traceparent", CALLED), (b"traceparent", CALLED)))
    async with stage(answers(http(message())), trace_context=mode) as s:
        for headers in sent:
            if headers == ((b"traceparent", CALLED + b" "),):
                continue  # white space around a value is not part of it
            reply = await s.messages(*headers)
            assert (reply.status, reply.header("x-router-trace") != CALLER[0]) == (200, True)
    for span in receiver.wait_spans(4 * (len(sent) - 1)):
        assert "links" not in span
        assert span["kind"] != "SERVER" or not span["parent_span_id"]


async def test_a_version_of_tomorrow_is_read_as_far_as_it_is_known(receiver: OtlpReceiver) -> None:
    """As the specification asks."""
    async with stage(answers(http(message())), trace_context="continue") as s:
        assert (await s.messages((b"traceparent", b"01" + CALLED[2:] + b"-x"))).header("x-router-trace") == CALLER[0]


# Trace context, outwards


async def test_the_upstream_gets_no_trace_context() -> None:
    """By default nothing of it crosses, whatever the caller sent."""
    async with stage(answers(http(message())), trace_context="continue") as s:
        await s.messages((b"traceparent", CALLED), (b"tracestate", b"a=1"), (b"baggage", b"b=2"))
        names = {name for name, _ in s.upstream.requests[0].headers}
    assert not names & {b"traceparent", b"tracestate", b"baggage"}


async def test_the_upstream_gets_the_span_of_each_attempt(receiver: OtlpReceiver) -> None:
    """`trace_context_out: on`: one `traceparent`, the trace as answered, the attempt as the parent; nothing else."""
    overloaded = error("529 Overloaded", "overloaded_error", "no", ("retry-after-ms", "1"))
    behave = answers(overloaded, overloaded, http(message()))
    async with stage(behave, policy=always("retry: 1", route="[haiku, sonnet]"), trace_context_out="on") as s:
        reply = await s.messages((b"traceparent", CALLED), (b"tracestate", b"a=1"), (b"baggage", b"b=2"))
        heard = [dict(request.headers) for request in s.upstream.requests]
    attempts = [span for span in receiver.wait_spans(6) if span["name"] == "POST"]
    expected = [f"00-{reply.header('x-router-trace')}-{span['span_id']}-01".encode() for span in attempts]
    assert [headers[b"traceparent"] for headers in heard] == expected
    assert len(set(expected)) == 3
    assert not [headers for headers in heard if b"tracestate" in headers or b"baggage" in headers]


async def test_paths_that_are_not_routed_carry_it_too(receiver: OtlpReceiver) -> None:
    """One attempt, one span."""
    async with stage(answers(http(b"{}")), trace_context_out="on") as s:
        await s.request("GET", "/v1/files/file_1")
        heard = dict(s.upstream.requests[0].headers)[b"traceparent"].decode()
    [attempt] = [span for span in receiver.wait_spans(2) if span["kind"] == "CLIENT"]
    assert heard.split("-")[1:3] == [attempt["trace_id"], attempt["span_id"]]


async def test_a_caller_cannot_have_its_content_captured() -> None:
    """What is captured of a share is drawn from an id of the router's, also where the trace id is the caller's."""
    forced = f"00-{'1' * 16}{'0' * 16}-{CALLER[1]}-01".encode()
    async with stage(answers(http(message())), trace_context="continue", capture="0.0001%") as s:
        for _ in range(5):
            assert (await s.messages((b"traceparent", forced))).header("x-router-trace") == "1" * 16 + "0" * 16
        assert s.app.capture is not None
        await asyncio.to_thread(s.app.capture.close)
        assert s.app.capture.stats()["stored"] == 0
