"""Questions of the command line to the admin listener of a running router."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import click

from router.errors import SettingsError
from router.settings import Settings
from router.urls import without_password

_CONNECT_S = 5.0
_MOST_ANSWER = 64 * 1024 * 1024  # bytes


class NoAnswer(Exception):
    """The admin listener did not answer, or something else did; `message` and `hint` are for people."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which router is meant."""
    for option in (
        click.option(
            "--admin",
            metavar="URL",
            help="The admin listener. Default: that of the settings `admin_host` and `admin_port`.",
        ),
        click.option("--config", metavar="FILE", help="Settings file (default: router.yaml where there is one)."),
    ):
        command = option(command)
    return command


def admin_url(settings: Settings) -> str:
    """Where the admin listener of a router with these settings is. Raises SettingsError when nobody can know."""
    if settings.admin_port == 0:
        raise SettingsError(
            "`admin_port` is 0, so the port of the admin listener is not known",
            hint="name it: `--admin http://127.0.0.1:PORT`",
        )
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.admin_host, settings.admin_host)  # noqa: S104 - not bound
    return f"http://[{host}]:{settings.admin_port}" if ":" in host else f"http://{host}:{settings.admin_port}"


def connection_to(url: str) -> tuple[http.client.HTTPConnection, str]:
    """A connection that is not open yet, and what the path begins with. Raises SettingsError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    is_plain = parts.username is None and not parts.query and not parts.fragment and all("!" <= c <= "~" for c in url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
        raise SettingsError(f"`--admin` is `{without_password(url)}`, expected `http://HOST:PORT`")
    prefix = parts.path.rstrip("/")
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(parts.hostname, port, timeout=_CONNECT_S, context=context), prefix
    return http.client.HTTPConnection(parts.hostname, port, timeout=_CONNECT_S), prefix


def ask(url: str, token: str | None, path: str, *, limit_s: float = 30.0) -> tuple[int, dict[str, Any]]:
    """GET a path of an admin listener → status and document; numbers keep their digits.

    No redirect is followed, because the token would go along. Raises NoAnswer and SettingsError.
    """
    headers = {"accept": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    shown = without_password(url)
    connection, prefix = connection_to(url)
    try:
        connection.connect()
        connection.sock.settimeout(limit_s)
        connection.request("GET", prefix + path, None, headers)
        answer = connection.getresponse()
        body = answer.read(_MOST_ANSWER)
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise NoAnswer(
            f"the admin listener at `{shown}` does not answer: {reason_of(exc)}",
            "start `router serve`, or name its admin listener with `--admin URL`",
        ) from exc
    finally:
        connection.close()
    try:
        found = json.loads(body, parse_float=Decimal)
        if answer.status != 200:
            found = {"message": str(found["error"]["message"])}
    except (ValueError, TypeError, KeyError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise NoAnswer(
            f"`{shown}` answered {answer.status} with something that is not of an admin listener",
            "`--admin` is the address of the admin listener, not that of the API",
        )
    if answer.status == 401:
        raise NoAnswer(
            f"the admin listener at `{shown}` answered 401: {found['message']}",
            "set `admin_token` (ROUTER_ADMIN_TOKEN, or ROUTER_ADMIN_TOKEN_FILE)",
        )
    return answer.status, found


def reason_of(error: Exception) -> str:
    """Why a connection failed, in the words of the system."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def needs(found: Mapping[str, Any], *names: str) -> bool:
    """Whether a document has these fields: an answer of another program does not."""
    return all(name in found for name in names)
