"""`router status`: one screen of a running router, and one line of a session."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest
from click.testing import CliRunner, Result
from kit.redis_server import RedisServer
from kit.stage import Stage, always, answers, error, http, message, stage

from router.cli.main import cli
from router.cli.status import _age, _money

pytestmark = pytest.mark.anyio

SESSION = "4b8f-session-canary"
HEADER = (b"x-claude-code-session-id", SESSION.encode())


@pytest.fixture(autouse=True)
def _no_settings_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)


async def status(s: Stage, *arguments: str, after: int = 0, **more: Any) -> Result:
    """`router status` against a stage, once that many requests are booked."""
    async with asyncio.timeout(10):
        while s.app.recent.figures()["requests"] < after:  # noqa: ASYNC110 - the books close without telling anybody
            await asyncio.sleep(0)
    place = ["status", "--admin", f"http://127.0.0.1:{s.admin_port}", *arguments]
    return await asyncio.to_thread(CliRunner().invoke, cli, place, **more)


async def test_a_healthy_router_fits_on_one_screen():
    """Every part of it, at most 24 lines of 100 characters, exit code 0."""
    async with stage(answers(http(message())), policy=always("cache: {ttl: 1h}")) as s:
        for _ in range(4):
            await s.messages()
        result = await status(s, after=4)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines] == [
        "router", "policies", "requests", "time", "hour", "day", "cache", "load", "upstream", "haiku", "traces",
        "healthy",
    ]  # fmt: skip
    assert "serving" in lines[0]
    assert "0 errors of 4" in lines[2]
    assert "75% hits" in lines[6]


async def test_what_is_wrong_is_said_with_the_next_step():
    """Exit code 1; the same in JSON."""
    async with stage() as s:
        s.write_policy("version: 1\nrules: [\n")
        assert not await s.app.policies.reload()
        result = await status(s)
        assert result.exit_code == 1
        assert "NOT the folder on disk" in result.stdout
        assert "\nwrong " in result.stdout
        assert "-> `router policy check`" in result.stdout
        assert "healthy" not in result.stdout
        result = await status(s, "--json")
        assert (result.exit_code, json.loads(result.stdout)["is_healthy"]) == (1, False)


async def test_redis_and_capture_have_their_lines(redis_server: RedisServer):
    """Only where there is one."""
    async with stage(policy=always("cache: {ttl: 1h}"), cache=redis_server.url, capture="all") as s:
        await s.messages()
        result = await status(s, after=1)
    assert result.exit_code == 0, result.output
    assert "\nredis      up, last reply " in result.stdout
    assert "\ncapture    all: " in result.stdout
    assert "look at    the content of requests is being captured" in result.stdout


async def test_nothing_from_outside_moves_the_cursor():
    """A refused edit is quoted; its control characters are spelled out."""
    async with stage() as s:
        s.write_policy("version: 1\nrul\x1b[2Jes: []\n")
        assert not await s.app.policies.reload()
        assert "\x1b" not in (await status(s)).stdout


async def test_a_session_on_one_line_and_on_a_page():
    """Model, spend, saved, requests; from an argument or from Claude Code's own input."""
    replies = answers(http(message(model="claude-haiku-5-5")))
    async with stage(replies, policy=always("cache: {ttl: 1h}")) as s:
        for _ in range(2):
            await s.messages(HEADER)
        await s.traces()
        expected = "claude-haiku-5-5 · $0.0000 · saved $0.0006 (98%) · 2 requests · 1 from cache\n"
        given = await status(s, "--session", SESSION, "--line")
        assert (given.exit_code, given.stdout) == (0, expected)
        as_input = json.dumps({"session_id": SESSION, "model": {"id": "x"}, "cwd": "/"})
        assert (await status(s, "--session", "-", "--line", input=as_input)).stdout == expected
        page = await status(s, "--session", SESSION)
        assert (page.exit_code, page.stdout.splitlines()[1].split()[:2]) == (0, ["requests", "2,"])
        found = json.loads((await status(s, "--session", SESSION, "--json")).stdout)
        assert (found["requests"], found["lane"]) == (2, "haiku")
        by_hash = json.loads(
            (await status(s, "--conversation", (await s.traces())[0]["conversation"], "--json")).stdout
        )
        assert by_hash["requests"] == 2


async def test_a_session_that_is_not_there_yet_says_so():
    """A status line is drawn before the first request, too."""
    async with stage() as s:
        await s.messages()
        await s.traces()
        result = await status(s, "--session", "unknown", "--line")
        assert (result.exit_code, result.stdout) == (1, "router: no figures yet\n")
        assert (await status(s, "--session", "unknown")).exit_code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--line"], ["--session", "a", "--key", "b"], ["--tenant", "t"], ["--key", "k", "--tenant", "t"],
        ["--session", "-"], ["--admin", "ftp://h"], ["--admin", "http://u:secret@h"], ["--config", "none.yaml"],
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_status_2(arguments: list[str]):
    """Before anything is asked."""
    result = CliRunner().invoke(cli, ["status", *arguments], input="{}")
    assert result.exit_code == 2, result.output
    assert "secret" not in result.output


def test_a_router_that_does_not_answer_ends_with_status_1():
    """In the form that was asked for, with the next step."""
    place = ["status", "--admin", "http://127.0.0.1:1"]
    result = CliRunner().invoke(cli, place)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "does not answer" in result.stderr
    assert "hint: start `router serve`" in result.stderr
    result = CliRunner().invoke(cli, [*place, "--json"])
    assert (result.exit_code, json.loads(result.stdout)["is_healthy"]) == (1, False)
    result = CliRunner().invoke(cli, [*place, "--session", "a", "--line"])
    assert (result.exit_code, result.stdout) == (1, "router: no answer\n")


async def test_the_api_is_not_taken_for_the_admin_listener():
    """It answers with the upstream's words."""
    async with stage(answers(error("404 Not Found", "not_found_error"))) as s:
        place = ["status", "--admin", f"http://127.0.0.1:{s.port}"]
        result = await asyncio.to_thread(CliRunner().invoke, cli, place)
        assert result.exit_code == 1


async def test_the_token_of_the_settings_opens_the_listener(monkeypatch: pytest.MonkeyPatch):
    """Without it the command says which setting to set."""
    async with stage(admin_token="a long token") as s:
        result = await status(s)
        assert (result.exit_code, "ROUTER_ADMIN_TOKEN" in result.stderr) == (1, True)
        monkeypatch.setenv("ROUTER_ADMIN_TOKEN", "a long token")
        monkeypatch.setenv("ROUTER_ADMIN_PORT", str(s.admin_port))
        result = await asyncio.to_thread(CliRunner().invoke, cli, ["status"])
        assert result.exit_code == 0, result.output


def test_ages_and_small_amounts_read_well():
    """Two units at most; four places below a dollar."""
    assert [_age(each) for each in (0, 59, 61, 3_600, 90_061)] == ["0 s", "59 s", "1 min 1 s", "1 h", "1 d 1 h"]
    amounts = (Decimal("0"), Decimal("0.00123"), Decimal("12.346"), Decimal("-0.5"), None)
    assert [_money(each) for each in amounts] == ["0.00", "0.0012", "12.35", "-0.5000", "?"]
