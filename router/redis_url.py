"""The address of Redis: four forms, read strictly, and never shown in an error, for any part may be the password."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from router.errors import SettingsError

_FORMS = (
    "`redis://[USER:PASSWORD@]HOST[:PORT][/DB]` (`rediss://` for TLS), "
    "`redis+sentinel://HOST:PORT[,HOST:PORT]/MASTER[/DB]` or `redis+cluster://HOST:PORT[,HOST:PORT]`"
)
_KINDS: Mapping[str, tuple[Literal["server", "sentinel", "cluster"], bool]] = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}


@dataclass(frozen=True, slots=True, repr=False)
class Target:
    """What a URL of Redis says. `hosts` are sentinels or nodes of a cluster where the kind says so."""

    kind: Literal["server", "sentinel", "cluster"]
    is_tls: bool
    hosts: tuple[tuple[str, int], ...]
    user: str | None
    password: str | None
    database: int
    master: str


def check_redis_url(url: str) -> None:
    """Raises SettingsError when `url` is none of the forms that `RedisLink` takes; the message shows no part of it."""
    parse_redis_url(url)


def parse_redis_url(url: str) -> Target:
    """What `url` says. Raises SettingsError as `check_redis_url` does."""

    def wrong(what: str) -> SettingsError:
        # No part of the URL is shown: where it is malformed, any part may be a piece of the password.
        return SettingsError(f"the URL of Redis {what}", hint=f"expected {_FORMS}; `%2F` and the like in a password")

    try:
        parts: SplitResult | None = urlsplit(url)
    except ValueError:
        parts = None  # the error's text would show the URL
    if parts is None or not all("!" <= char <= "~" for char in url):
        raise wrong("is not a URL")
    if parts.scheme not in _KINDS:
        raise wrong("has an unknown scheme")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise wrong("has a `?` or `#` part")
    kind, is_tls = _KINDS[parts.scheme]
    userinfo, _, hostlist = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    hosts = tuple(_host(text, 26379 if kind == "sentinel" else 6379) for text in hostlist.split(","))
    if any(host is None for host in hosts) or (kind == "server" and len(hosts) > 1):
        raise wrong("has no usable host and port")
    steps = [unquote(step) for step in parts.path.split("/")[1:]]
    if steps and steps[-1] == "":
        steps.pop()
    master = steps.pop(0) if kind == "sentinel" and steps else ""
    if kind == "sentinel" and not master:
        raise wrong("names no master after the sentinels")
    number = steps.pop(0) if steps and kind != "cluster" else "0"
    if steps or not (number.isascii() and number.isdigit() and len(number) <= 5):
        raise wrong("has a path that is not the number of a database")
    return Target(
        kind=kind,
        is_tls=is_tls,
        hosts=tuple(host for host in hosts if host is not None),
        user=unquote(user) or None,
        password=unquote(password) or None,
        database=int(number),
        master=master,
    )


def _host(text: str, default_port: int) -> tuple[str, int] | None:
    """`HOST`, `HOST:PORT` or `[IPv6]:PORT`; None for anything else."""
    try:
        parts = urlsplit(f"//{text}")
        port = default_port if parts.port is None else parts.port
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname and port and "@" not in text else None
