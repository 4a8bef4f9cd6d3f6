"""Content capture in a running router: off it leaves nothing, on it keeps what was relayed and none of the secrets."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kit.stage import (
    KEY,
    Reply,
    Stage,
    Wire,
    always,
    answers,
    error,
    events,
    http,
    message,
    request_body,
    stage,
    streams,
    until,
)

from router.app import App
from router.cli.main import cli
from router.errors import SettingsError
from router.settings import Settings, resolve

pytestmark = pytest.mark.anyio

TOKEN = "a long admin token"
CANARY = "canary-ZEBRA-47"
SECRET = "sk-ant-canary-key-123456"
CARD = "4111 1111 1111 1111"
CACHED = always("cache: {ttl: 1h}")


async def admin(s: Stage, path: str, token: str | None = TOKEN, *headers: tuple[bytes, bytes]) -> Reply:
    """One GET to the admin listener."""
    wire = Wire(*await asyncio.open_connection("127.0.0.1", s.admin_port, limit=1 << 24))
    s.wires.append(wire)
    own = [(b"authorization", f"Bearer {token}".encode())] if token else []
    wire.send("GET", path, [*own, *headers], None, f"127.0.0.1:{s.admin_port}".encode())
    return await wire.reply()


async def contents(s: Stage, some_id: str) -> list[dict[str, Any]]:
    """What the listener has of a request, once it is written."""
    async with asyncio.timeout(10):
        while True:
            assert s.app.capture is not None
            await asyncio.to_thread(s.app.capture.flush)
            reply = await admin(s, f"/traces/{some_id}/content")
            if reply.status == 200:
                return reply.json()["contents"]
            assert reply.status == 404, reply.body


def files_with(folder: Path, *texts: str) -> list[str]:
    """The files below a folder that hold one of the texts."""
    return [
        file.name
        for file in folder.rglob("*")
        if file.is_file() and any(text.encode() in file.read_bytes() for text in texts)
    ]


async def test_by_default_no_word_of_a_client_is_anywhere(caplog: pytest.LogCaptureFixture):
    """Prompt and answer canaries: not in the store, its journal, the log, the metrics, nor any page (S17)."""
    caplog.set_level(logging.DEBUG)
    async with stage(answers(http(message(f"said {CANARY}"))), policy=CACHED, admin_token=TOKEN) as s:
        for _ in range(2):
            reply = await s.messages(text=f"{CANARY} {SECRET}", system=CANARY, metadata={"user_id": CANARY})
        await s.messages(text=CANARY, max_tokens=-1)
        await s.post(f'{{"model": "{CANARY}'.encode())
        assert reply.header("x-router-cache") == "hit"
        assert s.app.capture is None
        trace_id = reply.header("x-router-trace")
        await s.traces()
        for path in ("/metrics", "/status", "/traces", f"/traces/{trace_id}", f"/traces/{trace_id}/content"):
            assert CANARY.encode() not in (await admin(s, path)).body
        assert (await admin(s, f"/traces/{trace_id}/content")).status == 404
        assert files_with(s.folder, CANARY, SECRET) == []
        assert [file.name for file in s.folder.glob("*content*")] == []
    assert CANARY not in caplog.text


async def test_switched_on_it_keeps_what_came_and_what_was_relayed():
    """Bodies as they were, by trace id and by request id; headers are no part of it."""
    async with stage(answers(http(message(f"said {CANARY}"))), admin_token=TOKEN, capture="all") as s:
        reply = await s.messages((b"x-of-mine", b"header-canary"), text=f"about {CANARY}")
        for some_id in (reply.header("x-router-trace"), "req_up"):
            (found,) = await contents(s, some_id)
            assert json.loads(found["request"])["messages"][0]["content"] == f"about {CANARY}"
            assert found["answer"].encode() == reply.body
            assert (found["answer_bytes"], found["answer_is_cut"]) == (len(reply.body), False)
        assert files_with(s.folder, CANARY) != []
        assert files_with(s.folder, "header-canary", "sk-test-1") == []
        trace = await s.trace()
        assert CANARY not in json.dumps(trace, default=str)


async def test_a_stream_a_hit_and_a_shared_answer_are_kept_as_relayed():
    """Whoever reads them back sees what the client saw."""
    pieces = events("it ", "is ", CANARY)
    async with stage(streams(*pieces), policy=CACHED, admin_token=TOKEN, capture="all") as s:
        replies = [await s.messages(stream=True) for _ in range(2)]
        assert [reply.header("x-router-cache") for reply in replies] == ["miss", "hit"]
        for reply in replies:
            (found,) = await contents(s, reply.header("x-router-trace"))
            assert f'"text":"it is {CANARY}"' in found["answer"]
            assert "message_stop" in found["answer"]
            assert found["answer_bytes"] == len(reply.body)


async def test_secrets_never_reach_the_file():
    """Taken out of the request and of a stream that says them in pieces; the trace knows nothing of either."""
    pieces = events("your key is sk-ant-can", "ary-key-", "123456, card 4111 11", "11 1111 1111")
    own_key = [(b"x-api-key", b"the clients own pass phrase"), KEY[1]]
    async with stage(streams(*pieces), admin_token=TOKEN, capture="all") as s:
        text = f"{SECRET}, {CARD}, jane@example.com, the clients own pass phrase"
        reply = await s.post(request_body(text, stream=True), own_key)
        assert b"ary-key-" in reply.body
        (found,) = await contents(s, reply.header("x-router-trace"))
        assert found["redacted"] >= 6
        assert "your key is [redacted:credentials], card [redacted:card]" in found["answer"]
        assert files_with(s.folder, SECRET, CARD, "jane@example.com", "the clients own pass phrase", "ary-key-") == []


async def test_errors_only_keeps_the_requests_that_failed():
    """An error of the upstream, and a refusal of our own; not the good one."""
    replies = answers(http(message()), error("400 Bad Request", "invalid_request_error", f"bad {CANARY}"))
    async with stage(replies, admin_token=TOKEN, capture="errors") as s:
        good = await s.messages()
        bad = await s.messages()
        ours = await s.post(b'{"model": 1}')
        (found,) = await contents(s, bad.header("x-router-trace"))
        assert CANARY in found["answer"]
        (found,) = await contents(s, ours.header("x-router-trace"))
        assert (found["request"], json.loads(found["answer"])["type"]) == ('{"model": 1}', "error")
        assert (await admin(s, f"/traces/{good.header('x-router-trace')}/content")).status == 404


async def test_a_client_that_leaves_is_captured_as_far_as_it_read():
    """What was relayed until then; the request is booked and kept all the same."""
    forever = events("a")[:-2]
    async with stage(streams(*forever, end=b""), admin_token=TOKEN, capture="all") as s:
        wire = await s.connect()
        wire.send("POST", "/v1/messages", KEY, request_body(stream=True))
        _, headers = await wire.head()
        await wire.chunk()
        await wire.close()
        trace_id = dict(headers)[b"x-router-trace"].decode()
        (found,) = await contents(s, trace_id)
        assert "message_start" in found["answer"]


async def test_a_large_body_is_cut_and_marked():
    """The sizes say how much there was."""
    body = message("y" * 200_000)
    async with stage(answers(http(body)), admin_token=TOKEN, capture="all", capture_max_kb=16) as s:
        reply = await s.messages(text="x" * 100_000)
        (found,) = await contents(s, reply.header("x-router-trace"))
        assert len(reply.body) == len(body)
        assert (len(found["request"]), found["request_is_cut"]) == (16 * 1024, True)
        assert (len(found["answer"]), found["answer_is_cut"], found["answer_bytes"]) == (16 * 1024, True, len(body))


async def test_only_the_admin_token_opens_it():
    """Without a token set nobody reads content, on loopback neither; a page of another site never does."""
    async with stage(capture="all") as s:
        reply = await s.messages()
        path = f"/traces/{reply.header('x-router-trace')}/content"
        assert (await admin(s, path, None)).status == 403
        assert (await s.request("GET", path)).header("x-router-trace") is not None  # the API port passes the path on
        assert s.upstream.requests[-1].line.startswith(b"GET /traces/")
    async with stage(capture="all", admin_token=TOKEN) as s:
        path = f"/traces/{(await s.messages()).header('x-router-trace')}/content"
        assert (await admin(s, path, None)).status == 401
        assert (await admin(s, path, "wrong")).status == 401
        assert (await admin(s, path, TOKEN, (b"origin", b"https://evil.example"))).status == 403


async def test_trace_show_content_prints_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Through the admin listener with the token of the settings; what would move a cursor is spelled out."""
    monkeypatch.chdir(tmp_path)
    async with stage(answers(http(message(f"{CANARY} \x1b[2J"))), admin_token=TOKEN, capture="all") as s:
        trace_id = (await s.messages(text="what is it?")).header("x-router-trace")
        await contents(s, trace_id)
        place = ["trace", "show", trace_id, "--content", "--admin", f"http://127.0.0.1:{s.admin_port}"]
        result = await asyncio.to_thread(CliRunner().invoke, cli, place)
        assert (result.exit_code, "ROUTER_ADMIN_TOKEN" in result.stderr) == (1, True)
        monkeypatch.setenv("ROUTER_ADMIN_TOKEN", TOKEN)
        result = await asyncio.to_thread(CliRunner().invoke, cli, place)
        assert result.exit_code == 0, result.stderr
        assert "what is it?" in result.stdout
        assert CANARY in result.stdout
        assert "\x1b" not in result.stdout
        found = json.loads((await asyncio.to_thread(CliRunner().invoke, cli, [*place, "--json"])).stdout)
        assert found["trace_id"] == trace_id
        result = await asyncio.to_thread(CliRunner().invoke, cli, ["trace", "show", "f" * 32, *place[3:]])
        assert (result.exit_code, "no content is kept" in result.stderr) == (1, True)


async def test_a_capture_file_that_takes_nothing_costs_no_request(tmp_path: Path):
    """It fails open: requests are answered and traced, and the screen says what is lost."""
    (tmp_path / "not-a-folder").write_text("x")
    async with stage(admin_token=TOKEN, capture="all", capture_file=str(tmp_path / "not-a-folder" / "c.db")) as s:
        for _ in range(3):
            assert (await s.messages()).status == 200
        assert s.app.capture is not None
        capture = s.app.capture
        await until(lambda: capture.stats()["write_errors"] > 0)
        assert len(await s.traces()) == 3


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("capture", "some", "a share such as `1%`"), ("capture", "0%", "a share"), ("capture", "101%", "a share"),
        ("capture", "-1%", "a share"), ("capture_keep", "forever", "such as `7d`"), ("capture_keep", "1s", "such as"),
        ("capture_max_kb", "0", "expected 1 to 16384"), ("capture_max_kb", "x", "whole number"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused(
    setting: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By name, before anything starts."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as caught:
        resolve({setting: value}, {})
    assert setting in caught.value.message
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"capture_redact": '["(a"]'}, "no regex"),
        ({"capture_redact": "emails"}, "did you mean `email`?"),
        ({"capture": "all", "traces": "off"}, "no file for it"),
        ({"capture": "all", "capture_file": "{folder}/traces.db"}, "a file of its own"),
    ],
)
async def test_what_cannot_be_captured_as_told_stops_the_start(settings: dict[str, str], said: str):
    """A broken rule too, even while capture is off: it would be found out too late."""
    async with stage() as s:
        made = {name: value.replace("{folder}", str(s.folder)) for name, value in settings.items()}
        own = {"policies": s.app.settings.policies, "traces": s.app.settings.traces, "policy_history": "off", **made}
        with pytest.raises(SettingsError) as caught:
            App(Settings(**own))
        assert said in caught.value.message + caught.value.hint


def test_the_rules_may_be_a_list_in_the_settings_file(tmp_path: Path):
    """As YAML has them; the environment takes the same list as JSON."""
    file = tmp_path / "router.yaml"
    file.write_text('capture: 1%\ncapture_redact:\n  - email\n  - "ACME-[0-9]{6}"\n')
    settings = resolve({}, {}, str(file)).settings
    assert (settings.capture, json.loads(settings.capture_redact)) == ("1%", ["email", "ACME-[0-9]{6}"])
