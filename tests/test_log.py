"""The log: one line per record whatever is in it, one per failed request, none for a served one, and no secret ever."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from kit.installed import ended, installed
from kit.raw_upstream import Peer, raw_upstream
from kit.stage import AS_ASKED, LANES, SSE_HEAD, answers, chunked, error, events, http, message, request_body, stage

from router.log import (
    FIELDS,
    FailureLog,
    JsonLines,
    LineHandler,
    TextLines,
    credential_rules,
    described,
    form_of,
    printable,
)
from router.settings import Settings, resolve
from router.trace.record import Attempt, Trace

RULES = credential_rules()
# The usual suspects, and all that ends a line or moves a cursor somewhere.
NAUGHTY = [
    "plain",
    "two\nlines",
    "\r\n{\"level\":\"error\",\"message\":\"forged\"}",
    "\x1b[2J\x1b[31mred\x07",
    "\x00\x01\x08\x0b\x0c\x7f\x85\x9b",
    "\u2028\u2029\u200b\u200e\u202e\u202b\ufeff",
    "\ud800\udfff lone",
    "＂quoted＂ \" ' \\ \\n \\u000a",
    "𝒯𝓱ℯ 😀 \U000e0001",
    "${jndi:ldap://x/a} %s %(name)s {0} {record}",
    "<script>alert(1)</script>",
    "a" * 100_000,
    "",
]  # fmt: skip


def record(text: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("router", logging.WARNING, "x.py", 1, text, None, None)
    made.__dict__.update(extra)
    return made


@pytest.mark.parametrize("naughty", NAUGHTY, ids=range(len(NAUGHTY)))
def test_a_record_is_one_line_of_valid_json(naughty):
    """In the message and in every field: nothing that ends a line or steers a terminal; the JSON reads back (S18)."""
    line = JsonLines(RULES, ()).format(record(naughty, **dict.fromkeys(FIELDS, naughty)))
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 200_000
    found = json.loads(line)
    shown = naughty.encode("utf-8", "replace").decode()
    assert found["message"] == shown[:16_000]
    assert set(FIELDS) - set(found) == (set() if naughty else set(FIELDS))
    json.dumps(found).encode("ascii")


@pytest.mark.parametrize("naughty", NAUGHTY, ids=range(len(NAUGHTY)))
def test_a_record_is_one_line_of_text_for_a_terminal(naughty):
    """The same for people: what a terminal would obey is shown as an escape (S18)."""
    line = TextLines(RULES, ()).format(record(naughty, **dict.fromkeys(FIELDS, naughty)))
    assert line.isprintable(), ascii(line)


def test_diagnostics_of_the_operators_own_files_keep_their_lines_on_a_terminal():
    """A caret under the mistake is worth more than one line; what the lines hold is escaped all the same."""
    line = TextLines(RULES, ()).format(record("refused\n  1 | a\x1b: b\n      ^", is_block=True))
    assert line.split("\n")[1:] == ["      1 | a\\x1b: b", "          ^"]
    assert "\n" not in JsonLines(RULES, ()).format(record("refused\n1 | a", is_block=True))


def test_other_scripts_stay_readable():
    """Only what is not printable becomes an escape."""
    assert printable("Straße 東京 ok") == "Straße 東京 ok"


SECRETS = [
    "key sk-ant-api03-CANARYCANARY is no good",
    "Authorization: Bearer CANARYCANARY",
    "{'authorization': 'Bearer CANARYCANARY'}",
    'headers {"x-api-key": "CANARYCANARY"}',
    "x-api-key: CANARYCANARY",
    "connecting to redis://user:CANARYCANARY@redis:6379/0",
    "bearer CANARYCANARY",
    "the token was CANARY-KNOWN, sorry",
    "api_key=CANARYCANARY&x=1",
]


@pytest.mark.parametrize("text", SECRETS)
@pytest.mark.parametrize("form", [JsonLines, TextLines])
def test_the_shape_of_a_credential_never_gets_through(text, form, tmp_path):
    """In a message, a field, or the text of an exception; by its shape, or because the settings hold it (S16)."""
    handler = LineHandler(stream := io.StringIO())
    handler.setFormatter(form(RULES, ["CANARY-KNOWN"]))
    made = record(text, lane=text)
    try:
        raise OSError(5, text)
    except OSError:
        made.exc_info = sys.exc_info()
    handler.emit(made)
    handler.close()
    assert "CANARY" not in stream.getvalue()
    assert "[redacted:" in stream.getvalue()


def test_of_an_exception_only_the_systems_words_are_said():
    """A bug's message may quote a prompt; type and places are enough to find it. A full disk is named (S16)."""
    try:
        try:
            {}["the client's words"]
        except KeyError as exc:
            raise ValueError("also the client's words") from exc
    except ValueError as exc:
        said = described(exc)
    assert "client's" not in said
    assert said.startswith("ValueError at ")
    assert "because of KeyError at " in said
    assert "test_log.py" in said
    assert "\n" not in said
    assert described(OSError(28, "No space left on device")).startswith("OSError: [Errno 28] No space")
    assert "locked" in described(sqlite3.OperationalError("database is locked"))


def test_a_reader_that_stands_still_holds_up_nobody():
    """A full pipe behind standard error: records are dropped and counted, and the count is said when there is room."""
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8") as stream:
        handler = LineHandler(stream, queue_max=50)
        handler.setFormatter(JsonLines(RULES, ()))
        for number in range(2_000):
            handler.emit(record("x" * 1_000, status=number))
        assert handler.lost > 0

        pieces: list[bytes] = []

        def read() -> None:
            while piece := os.read(reading, 1 << 20):
                pieces.append(piece)

        reader = threading.Thread(target=read)
        reader.start()
        handler.flush()
        handler.emit(record("after"))
        handler.close()
    reader.join()
    os.close(reading)
    lines = [json.loads(line) for line in b"".join(pieces).splitlines()]
    assert lines[-1]["message"] == "after"
    assert sum(line.get("lines_lost", 0) for line in lines) == handler.lost
    assert len(lines) + handler.lost == 2_001


def test_a_stream_that_is_closed_ends_no_thread():
    """Lines that cannot be written are counted, and the next ones are tried."""
    stream = io.StringIO()
    stream.close()
    handler = LineHandler(stream)
    handler.setFormatter(JsonLines(RULES, ()))
    handler.emit(record("one"))
    handler.flush()
    assert handler.lost == 1
    handler.close()


def failed(**fields: object) -> Trace:
    trace = Trace("ab" * 16, 1, outcome="upstream_error", status=529, lane="haiku", error_type="overloaded_error")
    trace.attempts = [Attempt("haiku", "claude-haiku-5-5", 0.0, "overloaded", 529)]
    for name, value in fields.items():
        setattr(trace, name, value)
    return trace


@pytest.mark.parametrize("outcome", ["ok", "client_error", "client_closed", "shed"])
def test_nothing_is_said_of_a_request_that_was_served_or_refused(outcome, caplog):
    """Nor of a client's own mistake: those are in the traces."""
    caplog.set_level(logging.DEBUG)
    FailureLog(lambda: 0.0).write(failed(outcome=outcome))
    assert not caplog.records


def test_a_failed_request_is_one_line_with_what_finds_it(caplog):
    """The trace id and enough to see whose fault it was."""
    FailureLog(lambda: 0.0).write(failed(duration_s=1.23456, tenant="search", request_id="req_1", model_sent="m"))
    found = json.loads(JsonLines(RULES, ()).format(caplog.records[0]))
    assert {name: found.get(name) for name in FIELDS if name in found} == {
        "event": "request_failed",
        "trace_id": "ab" * 16,
        "request_id": "req_1",
        "tenant": "search",
        "status": 529,
        "outcome": "upstream_error",
        "error_type": "overloaded_error",
        "upstream_status": 529,
        "lane": "haiku",
        "model": "m",
        "attempts": 1,
        "duration_s": 1.2346,
    }


def test_the_same_failure_over_and_over_is_said_now_and_then_with_the_count(caplog):
    """Ten lines, then one a second; each failure is either a line or counted in one. Another kind has its own lines."""
    now_s = 0.0
    log = FailureLog(lambda: now_s)
    for number in range(5_000):
        now_s = number / 1_000
        log.write(failed())
    log.write(failed(lane="sonnet"))
    now_s = 60.0
    log.tick()
    log.close()
    said = [record.__dict__ for record in caplog.records]
    assert len(said) <= 10 + 5 + 1 + 1
    assert {each["lane"] for each in said} == {"haiku", "sonnet"}
    lines = sum(each["event"] == "request_failed" for each in said)
    assert lines + sum(each.get("left_out") or 0 for each in said) == 5_001


def test_the_settings_choose_form_and_level():
    """Unknown words are refused by name."""
    found = resolve({}, {"ROUTER_LOG_FORMAT": "text", "ROUTER_LOG_LEVEL": "error"}).settings
    assert (found.log_format, found.log_level) == ("text", "error")
    assert Settings().log_format == "auto"


async def varied_failures(peer: Peer) -> None:
    """An upstream that fails in another way for each number in the prompt."""
    while True:
        request = await peer.request()
        number = int(request.body.partition(b"case-")[2][:1] or b"0")
        if number == 0:
            peer.send(http(message()))
        elif number == 1:
            peer.send(error("529 X", "overloaded_error", "canary-of-the-upstream"))
        elif number == 2:
            peer.send(error("400 Bad Request", "invalid_request_error"))
        elif number == 3:
            peer.reset()
            return
        elif number == 4:
            peer.send(SSE_HEAD, *map(chunked, events("x")[:4]))
            return
        elif number == 5:
            peer.send(b"garbage\r\n\r\n")
            return
        elif number == 6:
            peer.send(http(b"<html>", "503 Service Unavailable", kind="text/html"))
        else:
            peer.send(SSE_HEAD, *map(chunked, events("x")), b"0\r\n\r\n")
        await peer.writer.drain()


@pytest.mark.anyio
async def test_no_canary_is_found_anywhere_after_varied_failures_at_debug_level(tmp_path):
    """Key, prompt, header, query and the upstream's key: in no log line, trace, metric, status or answer (S16, S30)."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "lanes.yaml").write_text(LANES)
    (folder / "default.yaml").write_text(AS_ASKED)
    canary = {name: f"{name}-{secrets.token_hex(12)}" for name in ("client", "bearer", "prompt", "header", "admin")}
    answered = []
    async with raw_upstream(varied_failures) as upstream:
        arguments = ("--upstream", upstream.origin, "--policies", str(folder), "--traces", f"sqlite:///{tmp_path}/t.db")
        async with installed(*arguments, ROUTER_LOG_LEVEL="debug", ROUTER_ADMIN_TOKEN=canary["admin"]) as router:
            credentials = [
                [(b"x-api-key", canary["client"].encode())],
                [(b"authorization", f"Bearer {canary['bearer']}".encode())],
            ]
            for number in range(16):
                body = request_body(f"case-{number % 8} {canary['prompt']}", stream=number % 8 in (4, 7))
                headers = [*credentials[number % 2], (b"x-mine", canary["header"].encode())]
                target = f"/v1/messages?beta={canary['prompt']}"
                answered.append(await router.request("POST", target, body, headers))
            for body in (b"{", b'{"model": "%b"}' % canary["prompt"].encode(), b"\xff" + canary["prompt"].encode()):
                answered.append(await router.request("POST", "/v1/messages", body, credentials[0]))
            answered.append(await router.request("POST", "/v1/messages", b"{}", []))
            (folder / "default.yaml").write_text("rules: [\n")
            await router.request("GET", "/nothing", None, credentials[0])
            token = [(b"authorization", f"Bearer {canary['admin']}".encode())]
            for page in ("/metrics", "/status", "/policy", "/traces", "/traces?q=1", "/figures", "/nothing"):
                answered.append(await router.request("GET", page, None, token, admin=True))
            router.signal(signal.SIGTERM)
            said = await router.process.stderr.read()
    lines = [json.loads(line) for line in said.splitlines()]
    failures = [line for line in lines if line.get("event") == "request_failed"]
    assert {line["outcome"] for line in failures} >= {"upstream_error", "cut"}
    assert all(len(line["trace_id"]) == 32 for line in failures)
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("t.db*"))
    assert kept
    for name, secret in canary.items():
        for shown in (secret, secret.encode().hex(), json.dumps(secret)[1:-1]):
            assert shown.encode() not in said, name
            assert shown.encode() not in kept, name
            assert not any(shown.encode() in reply.body for reply in answered if reply.status != 200), name
    assert not any(b"Traceback" in reply.body or b".py" in reply.body for reply in answered)


@pytest.mark.anyio
async def test_a_bug_in_any_handler_shows_no_trace_of_itself_to_a_client(monkeypatch):
    """Exceptions forced at every step, with a canary as their words: 500 in shape, one line, no canary (S16, S30)."""
    handler = LineHandler(stream := io.StringIO())
    handler.setFormatter(JsonLines(RULES, ()))
    logging.getLogger().addHandler(handler)

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("canary-words")

    try:
        async with stage(answers()) as s:
            parts = s.app.pipeline._parts
            for place, name in (
                (type(parts.planner), "understand"),
                (type(parts.planner), "plan"),
                (type(s.app.pipeline), "messages"),
                (type(s.app.api), "_answer"),
            ):
                with monkeypatch.context() as broken:
                    broken.setattr(place, name, fails)
                    reply = await s.messages(text="canary-words")
                assert (reply.status, reply.json()["error"]["type"]) == (500, "api_error"), name
                assert b"canary" not in reply.body
                assert b"Error" not in reply.body.replace(b"api_error", b"")
            assert (await s.messages()).status == 200
            asyncio.get_running_loop().call_soon(fails)
            asyncio.get_running_loop().call_exception_handler(
                {"message": "task failed\n<Task exception=canary-words>", "exception": RuntimeError("canary-words")}
            )
            await s.traces()
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert "canary" not in stream.getvalue()
    assert [line["event"] for line in lines].count("request_failed") == 4
    assert [line["event"] for line in lines].count("unforeseen") == 4 + 2
    assert all("test_log.py" in line["exception"] or "RuntimeError" in line["exception"]
               for line in lines if "exception" in line)  # fmt: skip


@pytest.mark.anyio
async def test_the_program_speaks_json_to_a_pipe_and_says_its_changes_of_state(tmp_path: Path):
    """What a collector sees from start to end: valid lines with time and level, a refused edit in one of them."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "lanes.yaml").write_text(LANES)
    (folder / "default.yaml").write_text(AS_ASKED)
    async with installed("--policies", str(folder), "--traces", "off", "--upstream", "http://127.0.0.1:9") as router:
        (folder / "default.yaml").write_text("rules: [\n")
        async with asyncio.timeout(10):
            while not (await router.policy_status())["last_error"]:
                pass
        router.signal(signal.SIGTERM)
        lines = [json.loads(line) for line in (await router.process.stderr.read()).splitlines()]
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in lines))
    found = [line["event"] for line in lines if "event" in line]
    assert found[0] == "policies_in_force"
    assert "policies_refused" in found
    assert any("stopping" in line["message"] for line in lines)
    (refused,) = [line for line in lines if line.get("event") == "policies_refused"]
    assert "default.yaml:" in refused["message"]


@pytest.mark.anyio
async def test_a_wrong_setting_of_the_log_is_named():
    """Status 2 and the words that are taken."""
    status, _, said = await ended("serve", ROUTER_LOG_LEVEL="loud")
    assert status == 2
    assert "`log_level` is `loud`, expected `debug` or `info` or `warning` or `error`" in said


SCRIPT = """
import logging, sys, threading, warnings
from router.log import set_up_logging

set_up_logging("auto", "info", sys.stderr, ["canary-of-the-settings"])
logging.getLogger("router").info("begun with canary-of-the-settings")
logging.getLogger("router").debug("canary-debug")
logging.getLogger("library").info("canary-library")
logging.getLogger("library").warning("a library warns")
warnings.warn("a deprecation", DeprecationWarning)

def fails(*_):
    raise ValueError("canary-words")

thread = threading.Thread(target=fails, name="worker")
thread.start()
thread.join()

class Odd:
    __del__ = fails

Odd()
logging.getLogger("router").info("%d", "canary-not-a-number")
fails()
"""


def test_whatever_ends_a_thread_or_the_program_is_a_line_without_its_words():
    """Uncaught exceptions, warnings, a finalizer, a broken format: JSON lines, no traceback of Python's own (S16)."""
    command = [sys.executable, "-W", "always", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    said = [line["message"] for line in lines]
    assert said[0] == "begun with [redacted:credentials]"
    assert "a library warns" in said
    for where in ("thread worker", "a finalizer", "the program"):
        assert f"unforeseen error in {where}" in said
    assert sum("ValueError at <string>" in line.get("exception", "") for line in lines) == 3
    assert "a log record could not be shown" in said
    assert "canary" not in done.stderr
    assert done.stdout == ""


def test_auto_is_text_on_a_terminal_and_json_elsewhere():
    """By what the stream says of itself."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert form_of("auto", Terminal()) is TextLines
    assert form_of("auto", io.StringIO()) is JsonLines
    assert form_of("json", Terminal()) is JsonLines
    assert form_of("text", io.StringIO()) is TextLines
