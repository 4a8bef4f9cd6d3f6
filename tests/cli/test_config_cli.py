"""`router config show`: what it prints holds no secret, and it refuses what `serve` would refuse."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from router.cli.config import config
from router.errors import SettingsError
from router.urls import without_password

SECRET = "s3cr/t"


@pytest.mark.parametrize("form", [(), ("--json",), ("--origin",)])
def test_no_password_inside_a_url_is_printed(form: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """The URL stays readable: host, port and database are what one looks for."""
    monkeypatch.chdir(tmp_path)
    escaped = SECRET.replace("/", "%2F")
    monkeypatch.setenv("ROUTER_AFFINITY", f"redis://app:{escaped}@cache.example:6380/2")
    monkeypatch.setenv("ROUTER_CACHE", f"redis://:{escaped}@cache.example/0")
    monkeypatch.setenv("ROUTER_JOBS", f"rediss://jobs:{escaped}@jobs.example/3")
    result = CliRunner().invoke(config, ["show", *form])
    assert result.exit_code == 0
    assert escaped not in result.output
    assert "redis://app:(set)@cache.example:6380/2" in result.output
    assert "redis://:(set)@cache.example/0" in result.output
    assert "rediss://jobs:(set)@jobs.example/3" in result.output
    shown = without_password(f"rediss://cache.example/0?password={escaped}")
    assert shown == "rediss://cache.example/0?password=(set)"


@pytest.mark.parametrize(
    "url",
    ["redis://localhost:6379/0", "memory://?max_mb=256", "sqlite:///router.db", "https://api.anthropic.com", "off",
     "policies", "/srv/a@b/policies"],
)  # fmt: skip
def test_what_holds_no_password_is_shown_as_it_is(url: str) -> None:
    """Including a file whose name has an `@`."""
    assert without_password(url) == url


@pytest.mark.parametrize(
    "url",
    [f"redis://:{SECRET}@h/0", f"redis://u:a@{SECRET}@h", f"redis://{SECRET}@h", f"redis:/:{SECRET}@h",
     f"redis+sentinel://:{SECRET}@h:1,g:2/m/0", f"redis://:{SECRET}\n@h"],
)  # fmt: skip
def test_a_password_that_nobody_escaped_is_hidden_too(url: str) -> None:
    """A malformed URL is where a password is most likely to be shown."""
    assert SECRET not in without_password(url)
    assert "(set)@" in without_password(url)


@pytest.mark.parametrize("url", ["memory", "redis://:secret@h/zz", "http://h", "redis+sentinel://h", "memory://x"])
def test_an_affinity_that_serve_refuses_is_refused(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """By the same check; the message holds no password."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROUTER_AFFINITY", url)
    result = CliRunner().invoke(config, ["show"])
    assert isinstance(result.exception, SettingsError)
    assert "secret" not in result.exception.message + result.exception.hint + result.output
