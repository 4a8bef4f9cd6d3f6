"""Settings: flag over environment over file over default; unknown names are errors with the near name.

An environment variable is `ROUTER_` and the setting's name in capitals. A secret may also be given as the name of a
file that holds it: `ROUTER_ADMIN_TOKEN_FILE`, or `admin_token_file` in the settings file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from router.errors import SettingsError
from router.policy.source import read_source, render
from router.policy.words import duration_s
from router.serve.webhook_hosts import check_webhooks
from router.urls import check_url, is_loopback, without_password

CONFIG_VARIABLE = "ROUTER_CONFIG"
DEFAULT_FILE = "router.yaml"
_PREFIX = "ROUTER_"
_MIN_REFRESH_S = 10
_MOST_KEPT_S = 3_650 * 86_400
_NUMBERS = {
    "port": (0, 65_535),
    "admin_port": (0, 65_535),
    "workers": (1, 64),
    "capture_max_kb": (1, 16_384),
    "traces_max_mb": (16, 1_048_576),
    "max_concurrent": (1, 1_000_000),
    "max_concurrent_per_tenant": (1, 1_000_000),
    "max_body_mb": (32, 1_048_576),
    "max_lag_ms": (0, 10_000),
}
_CHOICES = {
    "otel_semconv": ("released", "next"),
    "trace_context": ("restart", "continue"),
    "trace_context_out": ("off", "on"),
    "log_format": ("auto", "json", "text"),
    "log_level": ("debug", "info", "warning", "error"),
    "upstream_private": ("refuse", "allow"),
    **dict.fromkeys(("fleet_traces", "deferred"), ("on", "off")),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the program is told. Each field is documented in SETTINGS, which the docs print."""

    host: str = "127.0.0.1"
    port: int = 8080
    admin_host: str = "127.0.0.1"
    admin_port: int = 8081
    admin_token: str | None = None
    upstream_url: str = "https://api.anthropic.com"
    upstream_private: str = "refuse"
    upstream_api_key: str | None = None
    public_url: str | None = None
    keys: str | None = None
    policies: str = "policies"
    policy_history: str = "router-history"
    cache: str = "memory://?max_mb=256"
    affinity: str = "memory://"
    traces: str = "sqlite:///router.db"
    traces_keep: str = "30d"
    traces_max_mb: int = 2048
    jobs: str | None = None
    deferred: str = "on"
    fleet: str | None = None
    fleet_traces: str = "on"
    webhook_hosts: str | None = None
    webhook_secret: str | None = None
    max_concurrent: int = 4_000
    max_concurrent_per_tenant: int | None = None
    max_body_mb: int = 1_024
    max_lag_ms: int = 20
    log_format: str = "auto"
    log_level: str = "info"
    workers: int = 1
    worker_timeout: str = "10s"
    keep_alive: str = "650s"
    drain_timeout: str = "28s"
    drain_delay: str = "off"
    catalog: str | None = None
    classifier_correction: str | None = None
    models_refresh: str = "off"
    tenant_secret: str | None = None
    otel_semconv: str = "released"
    trace_context: str = "restart"
    trace_context_out: str = "off"
    capture: str = "off"
    capture_file: str | None = None
    capture_keep: str = "7d"
    capture_max_kb: int = 64
    capture_redact: str = "credentials, email, card, phone"


SETTINGS: Mapping[str, str] = {
    "host": "address of the API listener",
    "port": "port of the API listener; 0 takes a free one",
    "admin_host": "address of the admin listener; off loopback it needs `admin_token`",
    "admin_port": "port of the admin listener; 0 takes a free one",
    "admin_token": "secret that the admin listener asks for",
    "upstream_url": "origin of the Messages API, `https://…` (or `http://…`)",
    "upstream_private": (
        "whether a public host name of `upstream_url` may lead to private addresses: `refuse`, or `allow` for a name "
        "service of your own; an address, or a name of the house such as `gateway.internal`, needs no leave"
    ),
    "upstream_api_key": "secret; set: the router holds the upstream's key and clients authenticate with `keys`",
    "public_url": (
        "origin and prefix that clients use, e.g. `https://router.example`; unset: scheme and Host of the request"
    ),
    "keys": "file of client keys (SHA-256), each with tenant and policy",
    "policies": "folder of policies",
    "policy_history": "folder that keeps the last revisions that were in force, or `off`",
    "cache": (
        "where answers are kept: `memory://?max_mb=256` (this process), `off`, or for several processes `redis://…`, "
        "`rediss://…`, `redis+sentinel://…`, `redis+cluster://…`, each with `?max_mb=64` for a process's own copies"
    ),
    "affinity": (
        "where conversations are remembered: `memory://` (this process), `off`, or for several processes `redis://…`, "
        "`rediss://…`, `redis+sentinel://…`, `redis+cluster://…`"
    ),
    "traces": "`sqlite:///FILE` or `off`",
    "traces_keep": "how long traces are kept, such as `12h` or `90d`, or `off`: for ever; sums are kept longer",
    "traces_max_mb": "megabytes that the store may use before the oldest traces go, 16 to 1048576",
    "jobs": (
        "where deferred requests and decisions about batches are kept: `sqlite:///FILE`, or for several replicas "
        "`redis://…`; unset: `NAME-jobs.db` beside the file of `traces`"
    ),
    "deferred": "whether requests that can wait are taken: `on`, or `off`: they are answered at once, taken ones go on",
    "fleet": (
        "where policies are pushed to all replicas at once, and recent traces are shared: `redis://…` as for "
        "`affinity`; unset or `off`: nowhere. Without a `tenant_secret`, whoever may write there may route"
    ),
    "fleet_traces": "whether recent traces go to the Redis of the fleet, for the page of any replica: `on` or `off`",
    "webhook_hosts": (
        "hosts that a client may have called when a deferred request has ended: `HOST`, `HOST:PORT`, `*.DOMAIN`, with "
        "commas; unset: none"
    ),
    "webhook_secret": "secret that signs webhooks; needed with `webhook_hosts`",
    "max_concurrent": "requests at work at a time, from arrival until the answer begins; more are turned away",
    "max_concurrent_per_tenant": "requests of one tenant under way at a time, streams too; unset: a fair share",
    "max_body_mb": "megabytes of request bodies held at a time, 32 to 1048576",
    "max_lag_ms": "how many milliseconds late the event loop may be before tenants are held to their shares; 0: any",
    "log_format": "`json`, `text`, or `auto`: text on a terminal, else JSON",
    "log_level": "`debug`, `info`, `warning` or `error`",
    "workers": "server processes on this host, 1 to 64; they share the listeners",
    "worker_timeout": "how long a worker's event loop may stand still before the worker is replaced, `1s` to `10m`",
    "keep_alive": (
        "how long a client's connection may rest between two requests, `1s` to `1d`; longer than a proxy in front "
        "keeps it"
    ),
    "drain_timeout": "how long requests under way may go on after SIGTERM, `1s` to `1d`; then they end with an error",
    "drain_delay": "how long new connections are still taken after SIGTERM, up to `10m`, or `off`; `/readyz` says 503",
    "catalog": "file with models and prices in place of the shipped one",
    "classifier_correction": "file that `router classify train` wrote from your own labels; read at start",
    "models_refresh": (
        "how often `GET /v1/models` is asked what models take, such as `15m`, or `off`; needs `upstream_api_key`"
    ),
    "tenant_secret": "secret of the hash that names a tenant by its credential; set it to share names between hosts",
    "otel_semconv": (
        "names of exported spans and of `gen_ai` metrics: `released` (in dashboards today) or `next` "
        "(conventions in work)"
    ),
    "trace_context": (
        "what a caller's `traceparent` does: `restart` (a trace of our own, linked to it) or `continue` (be part of it)"
    ),
    "trace_context_out": "whether calls to the upstream carry a `traceparent`: `off` or `on`",
    "capture": (
        "whether the content of requests and answers is kept: `off`, `errors`, `all`, or a share of them such as `1%`"
    ),
    "capture_file": "SQLite file of captured content; unset: `NAME-content.db` beside the file of `traces`",
    "capture_keep": "how long captured content is kept, such as `12h` or `7d`",
    "capture_max_kb": "kilobytes of each captured body, 1 to 16384; the rest is cut",
    "capture_redact": (
        "what is taken out of content before it is written: names of built-in rules (`credentials`, `email`, `card`, "
        "`phone`), a JSON list of such names and regexes of your own, or `off`"
    ),
}
SECRETS = ("admin_token", "upstream_api_key", "tenant_secret", "webhook_secret")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings in force, and for each where it came from: `flag`, `environment`, `file`, `default`."""

    settings: Settings
    origins: Mapping[str, str]


def resolve(flags: Mapping[str, Any], environment: Mapping[str, str], config: str | None = None) -> Resolved:
    """The settings from all their sources; a flag that is None was not given.

    `config` (else ROUTER_CONFIG, else `router.yaml` where there is one) is the settings file. Raises SettingsError,
    which names the setting and its source.
    """
    values: dict[str, Any] = {}
    origins = {field.name: "default" for field in fields(Settings)}
    path = config or environment.get(CONFIG_VARIABLE)
    if path is not None or Path(DEFAULT_FILE).is_file():
        name = path or DEFAULT_FILE
        for setting, value in _from_file(Path(name)).items():
            values[setting], origins[setting] = value, f"file {name}"
    for setting, value in _from_environment(environment).items():
        values[setting], origins[setting] = value, "environment"
    for setting, value in flags.items():
        if value is not None:
            values[setting], origins[setting] = value, "flag"
    typed = {name: _typed(name, value, origins[name]) for name, value in values.items() if value is not None}
    settings = Settings(**typed)
    _check(settings)
    return Resolved(settings, origins)


def _from_file(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise SettingsError(f"cannot read `{path}`: {exc.strerror}") from exc
    source = read_source(path.name, data, str(path))
    if source.diagnostics or source.root is None:
        raise SettingsError(render(source.diagnostics) or f"`{path}` is empty")
    document = source.root.plain()
    if not isinstance(document, dict):
        raise SettingsError(f"`{path}` must be a mapping of settings")
    return _with_secrets(document, [*SETTINGS, *(f"{name}_file" for name in SECRETS)], f"file {path}", "_file", str)


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    given = {
        name[len(_PREFIX) :].lower(): value
        for name, value in environment.items()
        if name.startswith(_PREFIX) and name != CONFIG_VARIABLE
    }
    known = [*SETTINGS, *(f"{name}_file" for name in SECRETS)]
    return _with_secrets(given, known, "environment", "_file", lambda name: _PREFIX + name.upper())


def _with_secrets(
    given: Mapping[str, Any], known: Iterable[str], origin: str, suffix: str, shown: Any
) -> dict[str, Any]:
    """Refuse unknown names; replace `NAME_file` by NAME with the file's content."""
    known = list(known)
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            near = get_close_matches(str(name), known, 1)
            hint = f"did you mean `{shown(near[0])}`?" if near else "`router config show` lists the settings"
            raise SettingsError(f"unknown setting `{shown(str(name))}` ({origin})", hint=hint)
        setting = name.removesuffix(suffix)
        if setting in values:
            raise SettingsError(
                f"`{setting}` is given twice ({origin})", hint=f"keep `{setting}` or `{setting}{suffix}`"
            )
        values[setting] = value if setting == name else _secret_file(name, str(value))
    return values


def _secret_file(name: str, path: str) -> str:
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"`{name}`: cannot read `{path}`") from exc
    if not secret or "\n" in secret:
        raise SettingsError(f"`{name}`: `{path}` must hold one line")
    return secret


def _typed(name: str, value: Any, origin: str) -> Any:
    if name in _NUMBERS:
        try:
            number = int(str(value))
        except ValueError:
            raise SettingsError(f"`{name}` is `{value}` ({origin}), expected a whole number") from None
        low, high = _NUMBERS[name]
        if not low <= number <= high:
            raise SettingsError(f"`{name}` is {number} ({origin}), expected {low} to {high}")
        return number
    if name == "capture_redact" and isinstance(value, list):  # in a file it is written as one
        value = json.dumps(value)
    if not isinstance(value, str) or not value or "\n" in value:
        shown = "…" if name in SECRETS else without_password(str(value))
        raise SettingsError(f"`{name}` is `{shown}` ({origin}), expected one line of text")
    return value


def _check(settings: Settings) -> None:
    """What only shows when settings are seen together."""
    check_url("upstream_url", settings.upstream_url, "https://HOST[:PORT]")
    if settings.public_url is not None:
        check_url("public_url", settings.public_url, "https://HOST[:PORT][/PREFIX]")
    if settings.admin_token is None and not is_loopback(settings.admin_host):
        raise SettingsError(
            f"`admin_host` is `{settings.admin_host}` and `admin_token` is not set",
            hint="off loopback the admin listener needs a token: set ROUTER_ADMIN_TOKEN or ROUTER_ADMIN_TOKEN_FILE",
        )
    if settings.upstream_api_key is not None and settings.keys is None:
        raise SettingsError(
            "`upstream_api_key` is set and `keys` is not: anybody could spend it",
            hint="list the client keys in a file and name it with `keys`",
        )
    if settings.keys is not None and settings.upstream_api_key is None:
        raise SettingsError("`keys` is set and `upstream_api_key` is not: there is no key to send upstream")
    for name, words in _CHOICES.items():
        if (given := getattr(settings, name)) not in words:
            raise SettingsError(f"`{name}` is `{given}`, expected {' or '.join(f'`{word}`' for word in words)}")
    check_webhooks(settings.webhook_hosts, settings.webhook_secret)
    refresh_s(settings)
    traces_keep_s(settings)
    capture_share(settings)
    capture_keep_s(settings)
    worker_timeout_s(settings)
    keep_alive_s(settings)
    drain_timeout_s(settings)
    drain_delay_s(settings)


def refresh_s(settings: Settings) -> float | None:
    """Seconds between two looks at `GET /v1/models`; None when that is off. Raises SettingsError."""
    given = settings.models_refresh
    if given == "off":
        return None
    every_s = duration_s(given)
    if every_s is None or every_s < _MIN_REFRESH_S:
        raise SettingsError(
            f"`models_refresh` is `{given}`, expected `off` or a duration of {_MIN_REFRESH_S} seconds or more, "
            "such as `15m`"
        )
    if settings.upstream_api_key is None:
        raise SettingsError(
            f"`models_refresh` is `{given}` and `upstream_api_key` is not set: the router has no key of its own to ask "
            "with",
            hint="set `upstream_api_key` and `keys`, or `models_refresh: off`",
        )
    return every_s


def traces_keep_s(settings: Settings) -> float | None:
    """Seconds that traces are kept; None for ever. Raises SettingsError."""
    if settings.traces_keep == "off":
        return None
    keep_s = duration_s(settings.traces_keep)
    if keep_s is None or not 60 <= keep_s <= _MOST_KEPT_S:
        raise SettingsError(
            f"`traces_keep` is `{settings.traces_keep}`, expected `1m` to `3650d`, such as `30d`, or `off`"
        )
    return keep_s


def capture_share(settings: Settings) -> float:
    """The part of requests whose content is captured, 0 to 1; 1 for `errors` too. Raises SettingsError."""
    given = settings.capture
    if given in ("off", "errors", "all"):
        return 0.0 if given == "off" else 1.0
    share = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?) ?%", given, re.ASCII)
    if share is None or not 0 < float(share[1]) <= 100:
        raise SettingsError(f"`capture` is `{given}`, expected `off`, `errors`, `all` or a share such as `1%`")
    return float(share[1]) / 100


def capture_keep_s(settings: Settings) -> float:
    """Seconds that captured content is kept. Raises SettingsError."""
    keep_s = duration_s(settings.capture_keep)
    if keep_s is None or not 60 <= keep_s <= _MOST_KEPT_S:
        raise SettingsError(f"`capture_keep` is `{settings.capture_keep}`, expected `1m` to `3650d`, such as `7d`")
    return keep_s


def worker_timeout_s(settings: Settings) -> float:
    """Seconds that a worker's event loop may stand still. Raises SettingsError."""
    return _span_s("worker_timeout", settings.worker_timeout, "1s", "10m")


def keep_alive_s(settings: Settings) -> float:
    """Seconds that a client's connection may rest between two requests. Raises SettingsError."""
    return _span_s("keep_alive", settings.keep_alive, "1s", "1d")


def drain_timeout_s(settings: Settings) -> float:
    """Seconds that requests under way may go on once the router was told to stop. Raises SettingsError."""
    return _span_s("drain_timeout", settings.drain_timeout, "1s", "1d")


def drain_delay_s(settings: Settings) -> float:
    """Seconds for which new connections are still taken then; 0 where that is off. Raises SettingsError."""
    return 0.0 if settings.drain_delay == "off" else _span_s("drain_delay", settings.drain_delay, "1ms", "10m")


def _span_s(name: str, given: str, least: str, most: str) -> float:
    """The seconds of a duration between two others. Raises SettingsError."""
    span_s = duration_s(given)
    if span_s is None or not (duration_s(least) or 0.0) <= span_s <= (duration_s(most) or 0.0):
        raise SettingsError(f"`{name}` is `{given}`, expected `{least}` to `{most}`, such as `20s`")
    return span_s
