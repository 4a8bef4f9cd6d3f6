"""The admin listener over a real server: what it shows, whom it lets in, and that the page runs nothing foreign."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
import uvicorn

from router.trace.metrics import MetricsSink
from router.trace.reader_desk import ThreadDesk
from router.trace.record import Trace
from router.trace.sqlite import SqliteTraceSink
from router.usage import Tokens, Usage
from router.web.admin import AdminServices, create_admin

TOKEN = "a long admin token"
PATHS = (
    "/",
    "/t/abc",
    "/metrics",
    "/policy",
    "/traces",
    "/traces/abc",
    "/traces/abc/now",
    "/report",
    "/figures",
    "/export",
    "/overview",
    "/events",
    "/static/app.js",
    "/none",
)
START_NS = 1_790_000_000_000_000_000


def a_trace(number: int, **fields: object) -> Trace:
    return Trace(
        **{
            "trace_id": f"{number + 1:032x}", "started_at_ns": START_NS + number, "endpoint": "messages",
            "method": "POST",
            "path": "/v1/messages", "request_id": f"req_{number}", "rule": "structured-work", "model_asked": "big",
            "model_sent": "small", "lane": "haiku", "usage": Usage(Tokens(10, output=5)), "cost_pusd": 10**9,
            "baseline_pusd": 3 * 10**9, "saved_pusd": 2 * 10**9, "status": 200, **fields,
        }
    )  # fmt: skip


class Admin:
    """A running admin listener and how to ask it."""

    def __init__(self, port: int, sink: SqliteTraceSink, drain: Callable[[], None]) -> None:
        self.port, self.sink, self.drain = port, sink, drain

    def ask(self, path: str, method: str = "GET", body: str | None = None, **headers: str) -> tuple[int, dict, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def json(self, path: str, **headers: str) -> object:
        status, _, body = self.ask(path, **headers)
        assert status == 200, body
        return json.loads(body)

    @contextmanager
    def events(self, path: str, **headers: str) -> Iterator[Iterator[dict[str, str]]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        assert answer.getheader("content-type").startswith("text/event-stream")
        try:
            yield _events(answer)
        finally:
            answer.close()
            connection.close()


def _events(answer: http.client.HTTPResponse) -> Iterator[dict[str, str]]:
    event: dict[str, str] = {}
    while line := answer.readline():
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            event[name] = value
        elif event:
            yield event
            event = {}


@contextmanager
def running(path: Path, *, token: str | None = None, is_ready: bool = True) -> Iterator[Admin]:
    sink = SqliteTraceSink(path, flush_interval_s=0.01)
    metrics = MetricsSink(revision=lambda: "rev1")
    is_draining = threading.Event()
    services = AdminServices(
        readiness=lambda: (is_ready, {"policy": "rev1"}),
        metrics=metrics.render,
        policy_status=lambda: {"revision": "rev1", "error": None},
        desk=ThreadDesk(path),
        flush=sink.flush,
        flush_every_s=0.0,
        admin_token=token,
        version="1.2.3",
        is_draining=is_draining.is_set,
        now_ns=lambda: START_NS + 3_600 * 10**9,
        poll_s=0.02,
    )
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    server = uvicorn.Server(uvicorn.Config(create_admin(services), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield Admin(listener.getsockname()[1], sink, is_draining.set)
    finally:
        is_draining.set()
        server.should_exit = True
        thread.join(10)
        listener.close()
        sink.close()
    assert not thread.is_alive(), "a live tail kept the server from stopping"


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    with running(tmp_path / "router.db") as admin:
        yield admin


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    with running(tmp_path_factory.mktemp("guarded") / "router.db", token=TOKEN) as admin:
        yield admin


def test_health_and_readiness_answer(admin: Admin) -> None:
    """Liveness is the process; readiness is its ability to serve."""
    assert admin.json("/healthz") == {"status": "ok", "version": "1.2.3"}
    assert admin.json("/readyz") == {"ready": True, "policy": "rev1"}


def test_a_router_that_cannot_serve_is_not_ready(tmp_path: Path) -> None:
    """503 takes it out of the balancer; it stays alive."""
    with running(tmp_path / "router.db", is_ready=False) as admin:
        assert admin.ask("/readyz")[0] == 503
        assert admin.ask("/healthz")[0] == 200


def test_metrics_and_policy_are_shown(admin: Admin) -> None:
    """Prometheus' text format, and what is in force."""
    _, headers, body = admin.ask("/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'router_policy_info{revision="rev1"} 1.0' in body
    assert admin.json("/policy") == {"revision": "rev1", "error": None}


def test_traces_are_listed_filtered_and_paged(admin: Admin) -> None:
    """What was just written is there (the store is flushed first), by the names of the contract."""
    for number in range(25):
        admin.sink.write(a_trace(number, rule="odd" if number % 2 else "even"))
    page = admin.json("/traces?rule=odd&limit=5&since=2h")
    assert [row["request_id"] for row in page["traces"]] == ["req_23", "req_21", "req_19", "req_17", "req_15"]
    assert page["traces"][0]["cost_usd"] == 0.001
    following = admin.json(f"/traces?rule=odd&limit=50&before={page['next']}")
    assert [row["request_id"] for row in following["traces"]] == [
        "req_13",
        "req_11",
        "req_9",
        "req_7",
        "req_5",
        "req_3",
        "req_1",
    ]
    assert following["next"] is None


def test_one_trace_is_found_by_either_id(admin: Admin) -> None:
    """Deep links by trace id and by request id."""
    admin.sink.write(a_trace(1))
    by_request = admin.json("/traces/req_1")
    assert by_request == admin.json(f"/traces/{2:032x}")
    assert admin.ask("/traces/unknown")[0] == 404


def test_the_report_has_rows_and_totals(admin: Admin) -> None:
    """Sums as decimals."""
    for number in range(3):
        admin.sink.write(a_trace(number))
    report = admin.json("/report?by=lane&since=2h")
    assert report["rows"][0]["lane"] == "haiku"
    assert (report["totals"]["cost_usd"], report["totals"]["saved_usd"]) == (0.003, 0.006)


@pytest.mark.parametrize(
    "path",
    ["/traces?rul=x", "/traces?limit=x", "/traces?rule=a&rule=b", "/traces?before=1",
     "/report?by=x", "/report?x=1", "/events?cache=no"],
)  # fmt: skip
def test_a_bad_filter_gets_400_and_the_reason(admin: Admin, path: str) -> None:
    """In the error shape of the API, with our code."""
    status, _, body = admin.ask(path)
    error = json.loads(body)["error"]
    assert (status, error["type"], error["code"]) == (400, "invalid_request_error", "R502")
    assert "expected" in error["message"]


def test_the_tail_streams_new_traces_and_resumes(admin: Admin) -> None:
    """A reader that comes back with the last id it saw misses nothing; filters hold."""
    admin.sink.write(a_trace(0))
    assert admin.sink.flush()
    with admin.events("/events?rule=structured-work") as events:
        assert next(events)["event"] == "ready"
        admin.sink.write(a_trace(1, rule="other"))
        admin.sink.write(a_trace(2, model_asked="x\r\n\r\nevent: evil\r\ndata: 1"))
        event = next(events)
        assert event["event"] == "trace"
        assert json.loads(event["data"])["request_id"] == "req_2"
    admin.sink.write(a_trace(3))
    assert admin.sink.flush()
    with admin.events("/events", last_event_id=event["id"]) as events:
        assert next(events)["event"] == "ready"
        assert json.loads(next(events)["data"])["request_id"] == "req_3"


def test_a_draining_server_ends_its_tails(admin: Admin) -> None:
    """An open page must not keep the process alive (F86)."""
    with admin.events("/events") as events:
        next(events)
        admin.drain()
        assert list(events) == []


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_carries_the_safe_headers(admin: Admin, path: str) -> None:
    """Errors too: no foreign loads, no sniffing, no framing."""
    if path == "/events":
        admin.drain()
    _, headers, _ = admin.ask(path)
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in headers["content-security-policy"]
    assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": "Bearer "},
        {"cookie": f"router_admin={TOKEN}"},
        {"cookie": "router_admin="},
        {"x-api-key": TOKEN},
        {"x-forwarded-for": "127.0.0.1", "x-original-url": "/healthz"},
    ],
    ids=repr,
)
def test_nothing_opens_without_the_token(guarded: Admin, headers: dict[str, str]) -> None:
    """All paths, all methods, all wrong credentials: 401 (S1, S20)."""
    for method, path in itertools.product(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"), PATHS):
        status, _, body = guarded.ask(path, method, **headers)
        assert status == 401, (method, path)
        assert TOKEN.encode() not in body


@pytest.mark.parametrize(
    "path",
    [
        "//healthz",
        "/healthz/",
        "/healthz/../traces",
        "/%2e%2e/traces",
        "/./traces",
        "/HEALTHZ",
        "/readyz%2f..%2ftraces",
    ],
)
def test_path_tricks_do_not_open_the_door(guarded: Admin, path: str) -> None:
    """The open paths are compared as they are, and the decision is bound to the path that is served (S9)."""
    assert guarded.ask(path)[0] in (401, 404)


def test_the_token_opens_and_health_needs_none(guarded: Admin) -> None:
    """Probes carry no secrets."""
    assert guarded.ask("/healthz")[0] == guarded.ask("/readyz")[0] == 200
    assert guarded.ask("/traces", authorization=f"Bearer {TOKEN}")[0] == 200
    assert guarded.ask("/traces", authorization=f"bearer {TOKEN}", host="admin.example")[0] == 200


def test_a_browser_logs_in_once(guarded: Admin) -> None:
    """The cookie is not the token, not readable by scripts and not sent from other sites."""
    status, _, body = guarded.ask("/", accept="text/html")
    assert status == 401
    assert b"<form" in body
    assert guarded.ask("/login", "POST", "token=wrong")[0] == 401
    assert guarded.ask("/login", "POST", "token=" + "x" * 5_000)[0] == 413
    status, headers, _ = guarded.ask("/login", "POST", "token=" + TOKEN.replace(" ", "+"))
    cookie = headers["set-cookie"]
    assert (status, headers["location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    assert guarded.ask("/traces", cookie=cookie.split(";")[0])[0] == 200
    status, headers, _ = guarded.ask("/logout", "POST", cookie=cookie.split(";")[0])
    assert (status, headers["location"]) == (303, "/login")


def test_without_a_token_only_own_names_are_answered(admin: Admin) -> None:
    """A web page that points its own name at loopback reads nothing (DNS rebinding)."""
    for host in (f"127.0.0.1:{admin.port}", "localhost", "localhost:8081", "[::1]:8081", "10.0.0.5"):
        assert admin.ask("/traces", host=host)[0] == 200, host
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "a@localhost.x"):
        assert admin.ask("/traces", host=host)[0] == 403, host


@pytest.mark.parametrize(
    "name", ["..%2fadmin.py", "%2e%2e/admin.py", "../admin.py", "/etc/passwd", "app.js%00", "APP.JS", "", "app.js/x"]
)
def test_only_the_packaged_files_are_served(admin: Admin, name: str) -> None:
    """Files are looked up by name among those read at start: there is no path to walk (S21)."""
    status, _, body = admin.ask(f"/static/{name}")
    assert status == 404
    assert b"import " not in body


def test_the_page_and_its_parts_are_served(admin: Admin) -> None:
    """One page for the list and for each trace; every file it names exists."""
    status, headers, page = admin.ask("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert admin.ask("/t/abc")[2] == page
    for name in re.findall(rb'(?:src|href)="(/static/[^"]+)"', page):
        assert admin.ask(name.decode())[0] == 200
    assert admin.ask("/static/app.js")[1]["content-type"].startswith("text/javascript")


class _Inline(HTMLParser):
    """Finds what a strict policy would block."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        self.found += [f"{tag} {name}" for name, _ in attrs if name.startswith("on") or name == "style"]
        self.found += [
            f"{tag} {name}={value}" for name, value in attrs if value and ("//" in value or "javascript:" in value)
        ]

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style") and data.strip():
            self.found.append(f"inline {self._open}")


def test_the_page_holds_nothing_inline_and_nothing_foreign() -> None:
    """No inline script or style, no handler attributes, no third-party address; values only as text nodes (S19)."""
    static = {
        entry.name: entry.read_text() for entry in files("router.web").joinpath("static").iterdir() if entry.is_file()
    }
    parser = _Inline()
    parser.feed(static["index.html"])
    assert parser.found == []
    for name, text in static.items():
        if name.endswith(".js"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|cssText", text
            ), name
        if name != "icon.svg":  # an XML namespace is a name, not a load
            assert not re.search(r"https?://|@import|url\(", text), name


def test_traces_that_are_off_say_so() -> None:
    """The page without a store is an error with the setting to change, not an empty list."""
    services = AdminServices(lambda: (True, {}), lambda: b"", dict)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    server = uvicorn.Server(uvicorn.Config(create_admin(services), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    connection = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=10)
    connection.request("GET", "/traces")
    answer = connection.getresponse()
    assert answer.status == 500
    assert b"`traces`" in answer.read()
    connection.close()
    server.should_exit = True
    thread.join(10)
    listener.close()
