"""The exporter and a real receiver that is well, down, slow, refusing or mad: exact counts, and never in the way."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit.otlp_receiver import OtlpReceiver, cuts, drips, garbage, hangs, otlp_receiver, rejects, says

from router.otel import read_endpoint
from router.trace.otlp import BATCH_SPANS, OtlpSink
from router.trace.otlp_send import Endpoint
from router.trace.record import Attempt, Trace
from router.trace.spans import Origin
from router.usage import Tokens, Usage

ORIGIN = Origin("https://api.example", "api.example", 443)
CLOSE_S = 5.0  # what the program allows itself, so what a sink takes that is told nothing else
SOON_S = 1.5  # the same, for a test that need not wait so long


def a_trace(number: int = 1, **fields: object) -> Trace:
    """A finished chat with one attempt: four spans."""
    return Trace(
        **{
            "trace_id": f"{number:032x}", "started_at_ns": 10**18, "endpoint": "messages", "method": "POST",
            "path": "/v1/messages", "policy": "default", "rule": "r", "model_asked": "m-big", "model_sent": "m",
            "lane": "haiku", "usage": Usage(Tokens(input=10, cache_read=4, output=5)), "cost_pusd": 10**9,
            "duration_s": 0.5, "status": 200, "attempts": [Attempt("haiku", "m", 0.1, ended_s=0.4, status=200)],
            **fields,
        }
    )  # fmt: skip


def endpoint(url: str, **more: str) -> Endpoint:
    """As the variables would say it."""
    found = read_endpoint({f"OTEL_EXPORTER_OTLP_{name}": value for name, value in {"ENDPOINT": url, **more}.items()})
    assert found is not None
    return found


def a_sink(to: Endpoint, **options: object) -> OtlpSink:
    """A sink that is quick to send and to try again."""
    quick = {"interval_s": 0.005, "backoff_s": (0.01, 0.01)}
    return OtlpSink(to, ORIGIN, resource={"service.name": "r"}, version="1", **{**quick, **options})


@contextmanager
def sink_to(receiver: OtlpReceiver, **options: object) -> Iterator[OtlpSink]:
    """A sink that is closed at the end."""
    sink = a_sink(endpoint(receiver.url), **options)
    try:
        yield sink
    finally:
        sink.close()


def settled(sink: OtlpSink, written: int) -> dict[str, int]:
    """The figures once nothing is queued; every trace is in exactly one of them."""
    waiting = threading.Event()
    deadline = time.monotonic() + 10
    while sink.stats()["queued"]:
        assert time.monotonic() < deadline, sink.stats()
        waiting.wait(0.002)
    stats = dict(sink.stats())
    assert sum(stats[name] for name in ("exported", "dropped", "given_up", "failed")) == written, stats
    return stats


def test_every_trace_arrives_once_in_batches_of_bounded_size() -> None:
    """A request holds at most 128 spans, whole traces only; the resource and the scope are said."""
    with otlp_receiver() as receiver, sink_to(receiver) as sink:
        for number in range(1, 501):
            sink.write(a_trace(number))
        spans = receiver.wait_spans(2000)
        assert settled(sink, 500)["exported"] == 500
        assert sorted({span["trace_id"] for span in spans}) == [f"{number:032x}" for number in range(1, 501)]
        assert len({(span["trace_id"], span["span_id"]) for span in spans}) == len(spans) == 2000
        assert max(request["spans"] for request in receiver.requests) <= BATCH_SPANS
        assert receiver.resources[0] == {"service.name": "r"}
        assert receiver.connections == 1


def test_a_trace_of_many_attempts_is_bounded_and_whole() -> None:
    """No request of a client makes spans without end, and its batch goes alone."""
    with otlp_receiver() as receiver, sink_to(receiver) as sink:
        sink.write(a_trace(1))
        sink.write(a_trace(2, attempts=[Attempt("haiku", "m", 0.0)] * 1000))
        assert len(receiver.wait_spans(57)) == 57
        settled(sink, 2)


def test_what_is_queued_is_sent_by_closing() -> None:
    """Closing is not losing, where the collector is well; what comes later is dropped and counted."""
    with otlp_receiver() as receiver:
        sink = a_sink(endpoint(receiver.url), interval_s=60.0)
        for number in range(1, 101):
            sink.write(a_trace(number))
        sink.close()
        sink.write(a_trace(101))
        assert len(receiver.wait_spans(400)) == 400
        assert settled(sink, 101)["dropped"] == 1
        sink.close()  # again: nothing


# Collectors that are unwell


@pytest.mark.parametrize(("word", "close_s"), [(hangs, CLOSE_S), (drips, SOON_S)], ids=["hangs", "drips"])
def test_a_collector_that_does_not_answer_takes_nothing_but_its_place_in_the_queue(word, close_s: float) -> None:
    """Writing stays an append, the queue stays bounded, drops are counted to one, closing takes 5 s at most (F79)."""
    with otlp_receiver(word) as receiver:
        sink = a_sink(endpoint(receiver.url), queue_max=100, **({} if close_s == CLOSE_S else {"close_s": close_s}))
        sink.write(a_trace(1))
        receiver.wait_requests(1)
        began_s = time.perf_counter()
        for number in range(2, 10_002):
            sink.write(a_trace(number))
        assert time.perf_counter() - began_s < 2.0  # 200 µs each, most of it making them
        assert sink.stats()["queued"] == 101
        assert sink.stats()["dropped"] == 10_001 - 101
        began_s = time.perf_counter()
        sink.close()
        assert time.perf_counter() - began_s < close_s
        assert settled(sink, 10_001)["dropped"] == 10_001
        assert not sink._thread.is_alive()


@contextmanager
def silent(backlog: int = 1) -> Iterator[str]:
    """An address that takes connections and says nothing, not even a TLS hello."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def nobody() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_tls_handshake_that_never_ends_is_left_in_time() -> None:
    """Closing interrupts it below TLS."""
    with silent() as address:
        sink = a_sink(endpoint(f"https://{address}"), close_s=SOON_S)
        sink.write(a_trace())
        waiting = threading.Event()
        while not sink.stats()["requests"]:
            waiting.wait(0.002)
        began_s = time.perf_counter()
        sink.close()
        assert time.perf_counter() - began_s < SOON_S
        assert settled(sink, 1)["dropped"] == 1


def test_a_call_has_one_deadline_for_all_of_it() -> None:
    """A collector that sends a byte now and then is left when the time is up, and asked again."""
    with otlp_receiver(drips, says()) as receiver:
        sink = a_sink(endpoint(receiver.url, TIMEOUT="200"))
        sink.write(a_trace())
        receiver.wait_spans(4)
        stats = settled(sink, 1)
        sink.close()
        assert stats["exported"] == 1
        assert stats["retries"] >= 1  # more where this machine is so busy that an answer takes longer as well


@pytest.mark.parametrize(
    ("words", "retries", "end"),
    [
        ([says(429), says(503), says()], 2, "exported"),
        ([says(502), says(504), says()], 2, "exported"),
        ([garbage, cuts, says()], 2, "exported"),
        ([says(429)], 2, "given_up"),  # as often as the backoff has pauses
        ([says(500)], 0, "given_up"),
        ([says(400)], 0, "given_up"),
        ([says(301, location="http://127.0.0.1:1/")], 0, "given_up"),
        ([says(200, b"\xff\xff not protobuf")], 0, "exported"),
        ([says(200, b"x" * 200_000)], 0, "exported"),
        ([says(204)], 0, "exported"),
    ],
    ids=["429-503", "502-504", "garbage-cut", "429-always", "500", "400", "redirect", "odd-body", "long-body", "204"],
)
def test_what_may_pass_is_tried_again_and_what_will_not_is_given_up(words, retries: int, end: str) -> None:
    """The retryable answers are those of the protocol; nothing is sent twice after it was taken."""
    with otlp_receiver(*words) as receiver, sink_to(receiver) as sink:
        sink.write(a_trace())
        receiver.wait_requests(retries + 1)
        stats = settled(sink, 1)
        assert (stats[end], stats["retries"], stats["requests"]) == (1, retries, retries + 1)
        assert len(receiver.requests) == retries + 1
        assert len({request["bytes"] for request in receiver.requests}) == 1
        assert stats["spans"] == (4 if end == "exported" else 0)


def test_a_batch_that_is_given_up_takes_no_other_along() -> None:
    """The next one is sent."""
    with otlp_receiver(says(500), says()) as receiver, sink_to(receiver) as sink:
        sink.write(a_trace(1))
        receiver.wait_requests(1)
        sink.write(a_trace(2))
        receiver.wait_spans(4)
        stats = settled(sink, 2)
        assert (stats["given_up"], stats["exported"]) == (1, 1)


def test_retry_after_is_waited_for() -> None:
    """One second asked for is one second at least, whatever the backoff says."""
    with otlp_receiver(says(429, retry_after="1"), says()) as receiver, sink_to(receiver) as sink:
        sink.write(a_trace())
        receiver.wait_spans(4)
        first, second = receiver.requests
        assert second["at_s"] - first["at_s"] >= 1.0


def test_closing_does_not_wait_for_a_collector_that_asked_to_be_left_alone() -> None:
    """What it did not take is dropped and counted."""
    with otlp_receiver(says(503, retry_after="3600")) as receiver:
        sink = a_sink(endpoint(receiver.url))
        sink.write(a_trace(1))
        receiver.wait_requests(1)
        sink.write(a_trace(2))
        began_s = time.perf_counter()
        sink.close()
        assert time.perf_counter() - began_s < 2.0
        assert settled(sink, 2)["dropped"] == 2


def test_a_collector_that_comes_back_gets_what_waited(caplog) -> None:
    """Said once when it goes and once when it is back; no trace is lost meanwhile."""
    address = nobody()
    sink = a_sink(endpoint(f"http://{address}"), backoff_s=(0.02,) * 500)
    for number in range(1, 51):
        sink.write(a_trace(number))
    waiting = threading.Event()
    while sink.stats()["retries"] < 3:
        waiting.wait(0.002)
    with otlp_receiver(port=int(address.rpartition(":")[2])) as receiver:
        receiver.wait_spans(200)
        assert settled(sink, 50)["exported"] == 50
        sink.close()
    said = [record.getMessage() for record in caplog.records if record.name == "router.trace.otlp"]
    assert said == [
        f"otlp: http://{address} takes no spans (Connection refused); requests go on",
        f"otlp: http://{address} takes spans again",
    ]


def test_a_kept_connection_that_was_closed_meanwhile_is_no_failure() -> None:
    """Collectors close idle connections; the batch goes over a new one at once."""
    with otlp_receiver(says(), cuts, says()) as receiver, sink_to(receiver) as sink:
        sink.write(a_trace(1))
        receiver.wait_spans(4)
        settled(sink, 1)
        sink.write(a_trace(2))
        receiver.wait_spans(8)
        stats = settled(sink, 2)
        assert (stats["exported"], stats["retries"], receiver.connections) == (2, 0, 2)


def test_spans_that_the_collector_rejected_are_counted() -> None:
    """It took the request and not all of it: nothing is sent again."""
    with otlp_receiver(rejects(3)) as receiver, sink_to(receiver) as sink:
        sink.write(a_trace())
        receiver.wait_requests(1)
        stats = settled(sink, 1)
        assert (stats["exported"], stats["spans"], stats["rejected_spans"], stats["requests"]) == (1, 1, 3, 1)


# What is sent


def test_headers_compression_and_path_are_those_of_the_variables(caplog) -> None:
    """The credential of the collector is sent and said nowhere else."""
    with otlp_receiver(says(500), says()) as receiver:
        to = endpoint(receiver.url + "/otlp/", HEADERS="authorization=Bearer%20canary-1, x-scope=a", COMPRESSION="gzip")
        sink = a_sink(to)
        sink.write(a_trace(1))
        receiver.wait_requests(1)
        sink.write(a_trace(2))
        receiver.wait_spans(4)
        sink.close()
        request = receiver.requests[0]
        headers = {name.lower(): value for name, value in request["headers"].items()}
        assert request["path"] == "/otlp/v1/traces"
        assert (headers["authorization"], headers["x-scope"]) == ("Bearer canary-1", "a")
        assert (headers["content-type"], headers["content-encoding"]) == ("application/x-protobuf", "gzip")
    assert "takes no spans (status 500)" in caplog.text
    assert "canary-1" not in caplog.text


ODD: list[Callable[[], Trace]] = [
    lambda: a_trace(2, model_asked="\ud800 lone", rule="\x00\r\n<b>", path="/" + "é" * 10_000),
    lambda: a_trace(2, facts={"max_tokens": 10**30, "effort": None}, labels={"task": 7, "p_hard": "x"}),
    lambda: a_trace(2, usage=Usage(Tokens(input=10**30, output=2**63))),
    lambda: a_trace(2, cost_pusd=-(10**30), baseline_pusd=None),
    lambda: a_trace(2, started_at_ns=0, duration_s=-5.0),
    lambda: a_trace(2, method="BREW\n", status=0, endpoint="passthrough"),
    lambda: a_trace(2, why=("x" * 10_000,) * 1_000, tags=("t",) * 1_000),
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_odd_values_are_sent_bounded(odd: Callable[[], Trace]) -> None:
    """Whatever a client or an upstream names (F83): the batch goes, and is small."""
    with otlp_receiver() as receiver, sink_to(receiver) as sink:
        sink.write(a_trace(1))
        sink.write(odd())
        receiver.wait(lambda: len({span["trace_id"] for span in receiver.spans}) == 2)
        stats = settled(sink, 2)
        assert (stats["exported"], stats["failed"]) == (2, 0)
        assert max(len(request["bytes"]) for request in receiver.requests) < 60_000


def test_a_record_without_an_encoding_costs_only_itself() -> None:
    """It is counted as failed; its neighbours in the batch are sent whole."""
    with otlp_receiver() as receiver, sink_to(receiver, interval_s=0.05) as sink:
        for trace in (a_trace(1), a_trace(2, trace_id="not hexadecimal"), a_trace(3, started_at_ns=2**65), a_trace(4)):
            sink.write(trace)
        receiver.wait_spans(8)
        stats = settled(sink, 4)
        assert (stats["exported"], stats["failed"], stats["spans"]) == (2, 2, 8)


def test_an_unknown_cost_is_no_attribute() -> None:
    """Absent, not 0; so is an unknown usage."""
    with otlp_receiver() as receiver, sink_to(receiver) as sink:
        sink.write(a_trace(cost_pusd=None, usage=None, status=502, outcome="upstream_error"))
        chat = next(span for span in receiver.wait_spans(4) if span["name"] == "chat m")
        assert not [name for name in chat["attributes"] if name.startswith(("gen_ai.usage", "router.cost"))]


def test_a_collector_behind_tls_is_checked(tmp_path: Path) -> None:
    """The authority of the variable vouches for it; without it nothing is sent."""
    if shutil.which("openssl") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the openssl command makes the certificate")
    names = ("-subj", "/CN=collector", "-addext", "subjectAltName=IP:127.0.0.1")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    files = ("-keyout", "key.pem", "-out", "cert.pem")
    subprocess.run(["openssl", "req", "-x509", *key, *files, *names], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with otlp_receiver(tls=context) as receiver:
        trusted = endpoint(receiver.url, CERTIFICATE=str(tmp_path / "cert.pem"))
        sink = a_sink(trusted)
        sink.write(a_trace(1))
        assert len(receiver.wait_spans(4)) == 4
        sink.close()
        sink = a_sink(endpoint(receiver.url))
        sink.write(a_trace(2))
        assert settled(sink, 1)["given_up"] == 1
        sink.close()
        assert len(receiver.requests) == 1
