"""URLs among the settings: checked for what they should be, and shown without what is secret in them."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from router.errors import SettingsError

# Greedy: where a password holds an `@` or `/` that nobody escaped, the last `@` ends it.
_CREDENTIAL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*:/*)(.*)@", re.DOTALL)
_OPTION = re.compile(r"([?&][^=&#]*(?:pass|pwd|secret|token|key|auth)[^=&#]*=)[^&#]*", re.IGNORECASE)


def check_url(name: str, value: str, expected: str) -> None:
    """Refuse what is no URL of a server: another scheme, no host, a query, a credential, anything but visible ASCII.

    Raises SettingsError, which names the setting and what was `expected`.
    """
    try:
        url = urlsplit(value)
        is_url = url.scheme in ("http", "https") and url.hostname and url.port != 0 and "@" not in url.netloc
    except ValueError as exc:
        raise SettingsError(f"`{name}` is `{without_password(value)}`: {str(exc).lower()}") from exc
    if not is_url or "?" in value or "#" in value or not all("!" <= char <= "~" for char in value):
        raise SettingsError(f"`{name}` is `{without_password(value)}`, expected `{expected}`")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    return host in ("localhost", "::1") or host.startswith("127.")


def without_password(url: str) -> str:
    """A URL for people to read: `(set)` stands for its password, and for a user name without one, which may be a token.

    A text that is no URL comes back as it is.
    """

    def hidden(found: re.Match[str]) -> str:
        user, colon, _ = found[2].partition(":")
        return f"{found[1]}{f'{user}:' if colon else ''}(set)@"

    return _OPTION.sub(r"\1(set)", _CREDENTIAL.sub(hidden, url))
