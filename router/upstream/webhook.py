"""Connections for webhooks: the HTTP/1.1 client, one instance for each origin, led only where webhooks may go.

The host was listed by the operator, the addresses come from the name service. So every address is checked each time it
is looked up (S12): a name leads to public addresses, `localhost` to this machine. Private addresses are reached only
where the operator listed the address itself. Redirects are not followed, nor are proxies of the environment.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from router.seams import Upstream
from router.upstream.http1 import Http1Upstream
from router.upstream.resolve import LookUp, NotAllowed, is_allowed
from router.upstream.tls import tls_context


class WebhookOrigins:
    """Opens an `Upstream` for an origin; whoever opened it closes it.

    The certificate authorities are read once, at the first `https` origin. `look_up` stands in for the system's
    resolver.
    """

    def __init__(self, *, ssl_context: ssl.SSLContext | None = None, look_up: LookUp | None = None) -> None:
        self._ssl = ssl_context
        self._look_up: LookUp = look_up or socket.getaddrinfo

    def open(self, origin: str) -> Upstream:
        """A client of `https://host[:port]` or `http://host[:port]`."""
        if self._ssl is None and origin.startswith("https:"):
            self._ssl = tls_context()
        return Http1Upstream(origin, ssl_context=self._ssl, max_idle=0, look_up=self._checked)

    def _checked(self, hostname: str, *args: Any, **kwargs: Any) -> Sequence[tuple[Any, ...]]:
        """What the name leads to and may lead to; in the thread of the look-up. Raises OSError."""
        rows = self._look_up(hostname, *args, **kwargs)
        allowed = [row for row in rows if _may_lead_to(hostname, str(row[4][0]))]
        if rows and not allowed:
            raise NotAllowed(
                f"`{hostname}` leads to `{rows[0][4][0]}`, where no webhook goes: a private address must itself be in "
                "`webhook_hosts`"
            )
        return allowed


def _may_lead_to(hostname: str, address: str) -> bool:
    if hostname == "localhost":
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    return is_allowed(address, takes_private=False)
