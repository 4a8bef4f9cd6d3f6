"""Settings: which source wins, and how a bad one is named."""

from __future__ import annotations

from dataclasses import fields

import pytest

from router.errors import SettingsError
from router.settings import SECRETS, SETTINGS, Settings, resolve


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """No `router.yaml` but the one a test writes."""
    monkeypatch.chdir(tmp_path)


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path):
    """And the origin of each is known."""
    (tmp_path / "router.yaml").write_text("port: 1\nadmin_port: 1\nhost: file.example\n")
    resolved = resolve({"port": 3, "host": None}, {"ROUTER_PORT": "2", "ROUTER_ADMIN_PORT": "2", "PATH": "x"})
    settings, origins = resolved.settings, resolved.origins
    assert (settings.port, settings.admin_port, settings.host) == (3, 2, "file.example")
    assert (origins["port"], origins["admin_port"], origins["host"]) == ("flag", "environment", "file router.yaml")
    assert origins["cache"] == "default"


def test_the_defaults_are_those_of_the_documentation():
    """Product page, section 3; every setting has a meaning and an origin."""
    resolved = resolve({}, {})
    assert resolved.settings == Settings()
    assert set(SETTINGS) == {field.name for field in fields(Settings)} == set(resolved.origins)
    assert (resolved.settings.host, resolved.settings.port, resolved.settings.admin_port) == ("127.0.0.1", 8080, 8081)
    assert resolved.settings.upstream_url == "https://api.anthropic.com"
    assert resolved.settings.cache == "memory://?max_mb=256"
    assert resolved.settings.traces == "sqlite:///router.db"


def test_the_file_may_be_named(tmp_path):
    """By flag, else by ROUTER_CONFIG; a named file that is missing is an error, the default one is not."""
    (tmp_path / "a.yaml").write_text("port: 5\n")
    (tmp_path / "b.yaml").write_text("port: 6\n")
    assert resolve({}, {"ROUTER_CONFIG": "b.yaml"}).settings.port == 6
    assert resolve({}, {"ROUTER_CONFIG": "b.yaml"}, "a.yaml").settings.port == 5
    with pytest.raises(SettingsError, match=r"cannot read `none\.yaml`"):
        resolve({}, {}, "none.yaml")


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_stand_in_a_file_of_its_own(tmp_path, name):
    """`NAME_file` in the settings file, `NAME_FILE` in the environment; one line, stripped."""
    (tmp_path / "secret").write_text(" s3cret\n")
    (tmp_path / "keys.yaml").write_text("")
    more = {"keys": "keys.yaml"} if name == "upstream_api_key" else {}
    assert getattr(resolve(more, {f"ROUTER_{name.upper()}_FILE": "secret"}).settings, name) == "s3cret"
    (tmp_path / "router.yaml").write_text(f"{name}_file: secret\n")
    assert getattr(resolve(more, {}).settings, name) == "s3cret"
    for bad in ("", "two\nlines", "\xff\xfe"):
        (tmp_path / "secret").write_bytes(bad.encode("latin-1"))
        with pytest.raises(SettingsError, match=f"`{name}_file`") as caught:
            resolve(more, {})
        assert "two" not in caught.value.message
    with pytest.raises(SettingsError, match="cannot read"):
        resolve(more, {f"ROUTER_{name.upper()}_FILE": "nowhere"})


BAD_VALUES = [
    ({"ROUTER_PROT": "1"}, "unknown setting `ROUTER_PROT`", "did you mean `ROUTER_PORT`"),
    ({"ROUTER_ADMIN_TOKENFILE": "x"}, "unknown setting `ROUTER_ADMIN_TOKENFILE`", "ROUTER_ADMIN_TOKEN_FILE"),
    ({"ROUTER_ZZZZZZ": "1"}, "unknown setting `ROUTER_ZZZZZZ`", "router config show"),
    ({"ROUTER_PORT": "http"}, "`port` is `http` (environment)", ""),
    ({"ROUTER_PORT": ""}, "`port`", ""),
    ({"ROUTER_PORT": "-1"}, "`port` is -1", ""),
    ({"ROUTER_ADMIN_PORT": "65536"}, "`admin_port` is 65536", ""),
    ({"ROUTER_WORKERS": "0"}, "`workers` is 0", ""),
    ({"ROUTER_WORKERS": "65"}, "`workers` is 65", ""),
    ({"ROUTER_DRAIN_TIMEOUT": "soon"}, "`drain_timeout` is `soon`, expected `1s` to `1d`", ""),
    ({"ROUTER_DRAIN_TIMEOUT": "2d"}, "`drain_timeout` is `2d`", ""),
    ({"ROUTER_DRAIN_DELAY": "11m"}, "`drain_delay` is `11m`", ""),
    ({"ROUTER_WORKER_TIMEOUT": "500ms"}, "`worker_timeout` is `500ms`, expected `1s` to `10m`", ""),
    ({"ROUTER_KEEP_ALIVE": "off"}, "`keep_alive` is `off`, expected `1s` to `1d`", ""),
    ({"ROUTER_HOST": ""}, "`host`", ""),
    ({"ROUTER_HOST": "a\nb"}, "`host`", ""),
    ({"ROUTER_UPSTREAM_URL": "api.anthropic.com"}, "`upstream_url` is `api.anthropic.com`", ""),
    ({"ROUTER_UPSTREAM_URL": "ftp://x"}, "`upstream_url`", ""),
    ({"ROUTER_UPSTREAM_URL": "http://"}, "`upstream_url`", ""),
    ({"ROUTER_UPSTREAM_URL": "http://[::1"}, "`upstream_url`", ""),
    ({"ROUTER_UPSTREAM_URL": "https://x?y=1"}, "`upstream_url`", ""),
    *(
        ({"ROUTER_PUBLIC_URL": url}, f"`public_url` is `{url.replace(':b@', ':(set)@')}`", "")
        for url in ("router.example", "ftp://x", "https://", "https://x?y=1", "https://x/#a", "https://a:b@x/", "http://[",
                    "https://x:port", "https://x y", "https://x/ü")
    ),
    ({"ROUTER_UPSTREAM_URL": "https://x:99999"}, "`upstream_url`", ""),
    ({"ROUTER_ADMIN_HOST": "0.0.0.0"}, "`admin_host` is `0.0.0.0` and `admin_token` is not set", "ROUTER_ADMIN_TOKEN"),
    ({"ROUTER_UPSTREAM_API_KEY": "sk-canary"}, "`upstream_api_key` is set and `keys` is not", "keys"),
    ({"ROUTER_KEYS": "keys.yaml"}, "`keys` is set and `upstream_api_key` is not", ""),
    ({"ROUTER_WEBHOOK_HOSTS": "hooks.example"}, "`webhook_hosts` is set and `webhook_secret` is not", "WEBHOOK_SECRET"),
    ({"ROUTER_WEBHOOK_HOSTS": "https://x"}, "`webhook_hosts` lists `https://x`, expected a host", "no scheme"),
    ({"ROUTER_ADMIN_TOKEN": "two\ncanary"}, "`admin_token`", ""),
    ({"ROUTER_ADMIN_TOKEN": ""}, "`admin_token`", ""),
]  # fmt: skip


@pytest.mark.parametrize(("environment", "message", "hint"), BAD_VALUES)
def test_a_bad_setting_is_named(environment, message, hint):
    """The name, the value, where it came from, what to do; a secret's value is never shown (F98)."""
    with pytest.raises(SettingsError) as caught:
        resolve({}, environment)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "canary" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1\n", "unknown setting `prot`"),
        ("port: 1\nport: 2\n", "router.yaml:2:1"),
        ("- port\n", "must be a mapping"),
        ("port: [1]\n", "`port` is `[1]`"),
        ("host: 5\n", "`host` is `5`"),
        ("port: true\n", "`port` is `True`"),
        ("port: 1.5\n", "`port` is `1.5`"),
        ("a: [\n", "router.yaml:2"),
        ("config: x\n", "unknown setting `config`"),
    ],
)  # fmt: skip
def test_a_bad_settings_file_is_named(tmp_path, text, message):
    """With file, and line where YAML itself is at fault."""
    (tmp_path / "router.yaml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        resolve({}, {})
    assert message in caught.value.message


def test_a_secret_given_in_two_ways_is_refused(tmp_path):
    """Which one was meant cannot be known."""
    (tmp_path / "secret").write_text("one\n")
    with pytest.raises(SettingsError, match="`admin_token` is given twice"):
        resolve({}, {"ROUTER_ADMIN_TOKEN": "two", "ROUTER_ADMIN_TOKEN_FILE": "secret"})


def test_an_admin_listener_off_loopback_is_fine_with_a_token():
    """Every loopback spelling needs none."""
    assert resolve({}, {"ROUTER_ADMIN_HOST": "0.0.0.0", "ROUTER_ADMIN_TOKEN": "t"}).settings.admin_token == "t"
    for host in ("127.0.0.1", "127.8.8.8", "localhost", "::1"):
        assert resolve({}, {"ROUTER_ADMIN_HOST": host}).settings.admin_host == host


@pytest.mark.parametrize("url", ["https://router.example", "http://127.0.0.1:80/", "https://[::1]:8443/llm/v2"])
def test_the_public_url_may_have_a_path_prefix(url):
    """Whatever stands in front may serve the router under a path of its own; unset is none."""
    assert resolve({}, {"ROUTER_PUBLIC_URL": url}).settings.public_url == url
    assert resolve({}, {}).settings.public_url is None
