"""A real OTLP receiver: an HTTP server that decodes what comes with the official classes, and misbehaves by script.

    with otlp_receiver() as receiver:
        receiver.script += [says(429, retry_after="1"), says(200)]   # the last word repeats
        ...
        receiver.wait_spans(4)

What it has is kept as plain dictionaries, ready for JSON.
"""

from __future__ import annotations

import gzip
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1 import trace_pb2

WAIT_S = 10.0
Word = Callable[[BaseHTTPRequestHandler, threading.Event], bool]
"""Answers one request; whether its spans were taken. The event is set when the receiver goes."""


def says(status: int = 200, body: bytes = b"", **headers: str) -> Word:
    """An answer; underscores in names of headers are hyphens."""

    def answer(handler: BaseHTTPRequestHandler, _: threading.Event) -> bool:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        return 200 <= status < 300

    return answer


def rejects(spans: int) -> Word:
    """Took the request, but not so many of its spans."""
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = spans
    return says(200, answer.SerializeToString())


def hangs(handler: BaseHTTPRequestHandler, gone: threading.Event) -> bool:
    """Never answers."""
    gone.wait(60)
    handler.close_connection = True
    return False


def drips(handler: BaseHTTPRequestHandler, gone: threading.Event) -> bool:
    """Says now and then that it goes on, so that no single wait is long; the answer never comes."""
    while not gone.wait(0.02):
        try:
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        except OSError:
            break
    handler.close_connection = True
    return False


def garbage(handler: BaseHTTPRequestHandler, _: threading.Event) -> bool:
    """Speaks something else."""
    handler.wfile.write(b"\x00\xff this is not HTTP\r\n\r\n")
    handler.close_connection = True
    return False


def cuts(handler: BaseHTTPRequestHandler, _: threading.Event) -> bool:
    """Closes the connection without a word."""
    handler.close_connection = True
    return False


@dataclass
class OtlpReceiver:
    """What came: requests with their headers and number of spans, and the spans of those that were taken."""

    port: int = 0
    scheme: str = "http"
    script: deque[Word] = field(default_factory=deque)
    requests: list[dict[str, Any]] = field(default_factory=list)
    spans: list[dict[str, Any]] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    connections: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    last: Word = field(default_factory=says)

    @property
    def url(self) -> str:
        """The endpoint without a path, as OTEL_EXPORTER_OTLP_ENDPOINT takes it."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def wait(self, holds: Callable[[], bool], within_s: float = WAIT_S) -> None:
        """Wait until it holds; looked at whenever something came."""
        with self.changed:
            assert self.changed.wait_for(holds, within_s), (len(self.requests), len(self.spans))

    def wait_spans(self, number: int) -> list[dict[str, Any]]:
        """The spans, once there are that many."""
        self.wait(lambda: len(self.spans) >= number)
        return self.spans

    def wait_requests(self, number: int) -> None:
        """Wait until that many requests came, whatever became of them."""
        self.wait(lambda: len(self.requests) >= number)


@contextmanager
def otlp_receiver(*script: Word, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[OtlpReceiver]:
    """Serve on a port of 127.0.0.1 until the block ends; `script` are the first answers, the last one repeats."""
    receiver = OtlpReceiver(script=deque(script), scheme="http" if tls is None else "https")
    gone = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def setup(self) -> None:
            super().setup()
            receiver.connections += 1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            request = ExportTraceServiceRequest.FromString(body)
            with receiver.changed:
                if receiver.script:
                    receiver.last = receiver.script.popleft()
                word = receiver.last
                found = [_span(span) for group in request.resource_spans for scope in group.scope_spans
                         for span in scope.spans]  # fmt: skip
                receiver.requests.append(
                    {
                        "path": self.path,
                        "headers": dict(self.headers.items()),
                        "spans": len(found),
                        "at_s": time.monotonic(),
                        "bytes": body,
                    }
                )
                receiver.changed.notify_all()
            if word(self, gone):
                with receiver.changed:
                    receiver.spans += found
                    receiver.resources += [_attributes(group.resource.attributes) for group in request.resource_spans]
                    receiver.changed.notify_all()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that leaves is part of the tests."""

    server = Server(("127.0.0.1", port), Handler)
    receiver.port = server.server_address[1]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        gone.set()
        server.shutdown()
        server.server_close()
        thread.join(WAIT_S)


def _span(span: trace_pb2.Span) -> dict[str, Any]:
    found: dict[str, Any] = {
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_span_id": span.parent_span_id.hex(),
        "name": span.name,
        "kind": trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        "started_ns": span.start_time_unix_nano,
        "ended_ns": span.end_time_unix_nano,
        "flags": span.flags,
        "status": trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        "attributes": _attributes(span.attributes),
    }
    if span.links:
        found["links"] = [{"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex()} for link in span.links]
    return found


def _attributes(pairs: Any) -> dict[str, Any]:
    found = {pair.key: _value(pair.value) for pair in pairs}
    assert len(found) == len(pairs), "an attribute twice on one span"
    return found


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)
