"""Which hosts a webhook may go to: the setting `webhook_hosts`, and the address of a webhook read against it.

An address is split here and nowhere else, and strictly: what two readers could take for two different hosts is refused,
and the call goes to the host that was compared, never to the text as it came. Nothing is looked up here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from router.errors import InvalidRequest, SettingsError

HEADER = "x-router-webhook"
MAX_URL = 2048  # characters
_PORTS = {"https": 443, "http": 80}
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]"
# Visible ASCII behind the host, but no `#`, no `\` (some take it for `/`) and no quotes.
_URL = re.compile(rf"(https?)://({_HOST})(?::([0-9]{{1,5}}))?((?:/[!$-\[\]-_a-~]*)?(?:\?[!$-\[\]-_a-~]*)?)")
_LISTED = re.compile(rf"(\*\.)?({_HOST})(?::([0-9]{{1,5}}))?")


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where a webhook goes: `origin` as `https://host[:port]`, `host` alone for people, `target` (path and query)."""

    origin: str
    host: str
    target: bytes


@dataclass(frozen=True, slots=True)
class ListedHost:
    """One entry of `webhook_hosts`: a name or address in its plain form; `port` None: that of the scheme.

    `is_suffix` stands for every name that ends in `.name`, not for the name itself.
    """

    name: str
    port: int | None
    is_suffix: bool = False


def read_hosts(text: str | None) -> tuple[ListedHost, ...]:
    """The entries of the setting; none when it is not given. Raises SettingsError, which names the entry."""
    return tuple(_listed(entry.strip()) for entry in text.split(",")) if text is not None else ()


def check_webhooks(hosts: str | None, secret: str | None) -> None:
    """Refuse a list that cannot be read, or one without a secret to sign with. Raises SettingsError."""
    if read_hosts(hosts) and secret is None:
        raise SettingsError(
            "`webhook_hosts` is set and `webhook_secret` is not: nobody could tell our webhooks from forged ones",
            hint="set ROUTER_WEBHOOK_SECRET or ROUTER_WEBHOOK_SECRET_FILE; receivers check the signature with it",
        )


def read_webhook(url: str, hosts: Sequence[ListedHost]) -> Webhook:
    """Where `url` leads, when the operator listed its host. Raises InvalidRequest, which shows the host at the most."""
    if not hosts:
        raise InvalidRequest(
            f"`{HEADER}` is not taken: this router calls no webhooks, as the setting `webhook_hosts` is not set",
            hint="leave the header out and ask for the answer at its `location`; or have the operator list the host",
        )
    found = _URL.fullmatch(url) if len(url) <= MAX_URL else None
    port = _port(found[3]) if found is not None else None
    if found is None or port == 0:
        raise InvalidRequest(
            f"`{HEADER}` is not an address that is called",
            hint=f"`https://HOST[:PORT]/PATH`, at most {MAX_URL} characters, without `@`, `#` and `\\`",
        )
    scheme, host = found[1], _plain(found[2])
    if host is None or not any(_covers(listed, host, port, scheme) for listed in hosts):
        shown = found[2] if port is None else f"{found[2]}:{port}"
        raise InvalidRequest(
            f"host `{shown:.100}` of `{HEADER}` is not one that this router calls",
            hint="the operator lists hosts, and ports other than that of the scheme, in the setting `webhook_hosts`",
        )
    if scheme == "http" and not is_loopback(host):
        raise InvalidRequest(f"`{HEADER}` must be `https://…`: the host is not on the router's own machine")
    shown = f"[{host}]" if ":" in host else host
    origin = f"{scheme}://{shown}" + (f":{port}" if port not in (None, _PORTS[scheme]) else "")
    target = found[4] if found[4].startswith("/") else f"/{found[4]}"
    return Webhook(origin, host, target.encode("ascii"))


def is_loopback(host: str) -> bool:
    """Whether a host in its plain form is this machine: `localhost`, or an address of the loopback."""
    address = _address(host)
    return address.is_loopback if address is not None else host == "localhost"


def _covers(listed: ListedHost, host: str, port: int | None, scheme: str) -> bool:
    standard = _PORTS[scheme]
    if (port or standard) != (listed.port or standard):
        return False
    if not listed.is_suffix:
        return host == listed.name
    return host.endswith(f".{listed.name}") and _address(host) is None


def _listed(entry: str) -> ListedHost:
    found = _LISTED.fullmatch(entry)
    port = _port(found[3]) if found is not None else None
    name = _plain(found[2]) if found is not None else None
    if found is None or name is None or port == 0:
        raise SettingsError(
            f"`webhook_hosts` lists `{entry:.100}`, expected a host, `HOST:PORT` or `*.DOMAIN`",
            hint="such as `hooks.example.com, *.example.org, localhost:9000`; no scheme, no path",
        )
    address = _address(name)
    if address is not None and (address.is_link_local or address.is_multicast or address.is_unspecified):
        raise SettingsError(f"`webhook_hosts` lists `{entry}`, which is no address of a receiver")
    if found[1] and (address is not None or name == "localhost"):
        raise SettingsError(f"`webhook_hosts` lists `{entry}`: below an address there are no names")
    return ListedHost(name, port, is_suffix=found[1] is not None)


def _port(digits: str | None) -> int | None:
    """A port; None when none is written, 0 when there is no such port."""
    if digits is None:
        return None
    return int(digits) if int(digits) <= 65_535 else 0


def _plain(host: str) -> str | None:
    """The one form in which hosts are compared; None for what is none: empty labels, numbers that are no address."""
    host = host.lower().strip("[]")
    address = _address(host)
    if address is not None:
        return str(address)
    # A last label of digits is an address to some (`127.1`, `0x7f.1`), whatever it is to us.
    if ":" in host or ".." in host or re.search(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)\Z", host):
        return None
    return host


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
