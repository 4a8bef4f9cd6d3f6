"""From the upstream's name to addresses, off the event loop: looked up once for all who ask, and checked every time.

The system's resolver blocks and cannot be cancelled. It runs in a daemon thread of its own, never in the pool of
threads that other work needs: when the name service hangs, only those wait who need it, each no longer than its connect
deadline, and a process that stops waits for nobody. What was found serves for `FRESH_S`, so that a name that moves is
followed soon; addresses known from before serve on while the name service does not answer, for `STALE_S` at most.

What a name resolves to is not the operator's word but the name service's. A public name that suddenly leads to a
private address is how a request, with its credential, would be led to another machine of the house (S12), so such
addresses are left out; link-local ones, where clouds keep their metadata, for any name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

FRESH_S = 10.0
STALE_S = 600.0
FAILED_S = 60.0  # for so long an address where nobody answered is tried last
HANGS_S = 5.0  # a look-up that takes longer is joined by another one
MOST_THREADS = 4

LookUp = Callable[..., Sequence[tuple[Any, ...]]]
"""`socket.getaddrinfo`, or what stands in for it."""

# Names that no public name service knows (RFC 6761, 6762, 8375, 9476, and what clusters use).
_LOCAL_ENDINGS = ("localhost", "local", "internal", "intranet", "lan", "home", "corp", "private", "test", "home.arpa",
                  "svc", "cluster.local", "alt")  # fmt: skip


# Addresses whose last four bytes are an IPv4 one: behind a NAT64, and the old "compatible" ones.
_NAT64, _COMPATIBLE = ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96")


class NotAllowed(OSError):
    """A name led only to addresses that it may not lead to."""


def is_local_name(hostname: str) -> bool:
    """Whether a name is one of the house: a single word, or one whose ending no public name service has."""
    name = hostname.rstrip(".").lower()
    return "." not in name or name.endswith(tuple(f".{ending}" for ending in _LOCAL_ENDINGS))


def as_address(hostname: str) -> str | None:
    """The address that a host is written as; None when it is a name."""
    try:
        ipaddress.ip_address(hostname.partition("%")[0])
    except ValueError:
        return None
    return hostname


def is_allowed(address: str, *, takes_private: bool) -> bool:
    """Whether a name may lead to this address; see the module."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        found = _inside(found) or found
    if found.is_link_local or found.is_multicast or found.is_unspecified or str(found) == "fd00:ec2::254":
        return False
    return takes_private or found.is_global


def _inside(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to: mapped, by 6to4, by NAT64 (RFC 6052), or written `::a.b.c.d`."""
    known = address.ipv4_mapped or address.sixtofour
    if known is None and (address in _NAT64 or (address in _COMPATIBLE and int(address) > 1)):
        known = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return known


class Resolver:
    """The addresses of one host name, in the order in which they are to be tried; belongs to one event loop.

    `takes_private` lets the name lead to private addresses too. `clock` gives seconds that only grow.
    """

    def __init__(
        self, hostname: str, *, takes_private: bool, look_up: LookUp | None = None, clock: Callable[[], float]
    ) -> None:
        self._hostname = hostname
        self._takes_private = takes_private or is_local_name(hostname)
        self._look_up: LookUp = look_up or socket.getaddrinfo
        self._clock = clock
        self._literal = as_address(hostname)
        self._known: list[str] = []
        self._known_at = 0.0
        self._failed_at: dict[str, float] = {}
        self._waiters: set[asyncio.Future[list[str]]] = set()
        self.is_silent = False  # somebody waited for a look-up in vain, and none has found anything since
        self._threads = 0
        self._asked_at = 0.0

    def fresh(self) -> list[str] | None:
        """What is known without asking; None when it has to be asked for."""
        if self._literal is not None:
            return [self._literal]
        return list(self._known) if self._known and self._clock() - self._known_at < FRESH_S else None

    def stale(self) -> list[str] | None:
        """What was known lately, for when the name service does not answer; None when there is nothing."""
        return list(self._known) if self._known and self._clock() - self._known_at < STALE_S else None

    def ask(self) -> None:
        """Begin a look-up where none is under way, or hangs; waits for nothing. Raises OSError when it cannot begin."""
        now = self._clock()
        if self._threads and (now - self._asked_at <= HANGS_S or self._threads >= MOST_THREADS):
            return
        loop = asyncio.get_running_loop()
        try:
            threading.Thread(target=self._ask, args=(loop,), name="resolver", daemon=True).start()
        except RuntimeError as exc:
            if not self._threads:
                raise OSError("there is no thread for the look-up of the name") from exc
            return  # the look-up that hangs may answer yet
        self._threads += 1  # not before it runs: it is the thread that takes it back
        self._asked_at = now

    async def addresses(self) -> list[str]:
        """Ask the name service, or wait for the answer under way. Raises OSError; the caller sets the time limit."""
        self.ask()
        waiter: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            return await waiter
        finally:
            self._waiters.discard(waiter)

    def failed(self, address: str) -> None:
        """Nobody answers there: it is tried last, for `FAILED_S` or until it is reached, look-ups between or not."""
        if len(self._known) > 1 and address in self._known:
            self._known.remove(address)
            self._known.append(address)
            self._failed_at[address] = self._clock()

    def reached(self, address: str) -> None:
        """Somebody answers there: the next look-up puts it where the name service does."""
        self._failed_at.pop(address, None)

    def doubt(self) -> None:
        """Nobody answers at any of them: the name may have moved, so it is looked up again before the next try."""
        self._known_at = min(self._known_at, self._clock() - FRESH_S)

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread: one look-up, its outcome handed to the loop."""
        found: list[str] | OSError
        try:
            rows = self._look_up(self._hostname, None, type=socket.SOCK_STREAM)
            found = list(dict.fromkeys(str(row[4][0]) for row in rows))
        except OSError as exc:
            found = exc
        except Exception as exc:  # a name that no encoding takes, and the like: nobody may wait for ever
            found = OSError(f"the name cannot be looked up: {type(exc).__name__}")
        try:
            loop.call_soon_threadsafe(self._answered, found)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    def _answered(self, found: list[str] | OSError) -> None:
        self._threads -= 1
        if isinstance(found, list):
            self.is_silent = False
            allowed = [each for each in found if is_allowed(each, takes_private=self._takes_private)]
            if allowed:
                self._known_at = now = self._clock()
                self._known = allowed = self._in_order(allowed, now)
                for waiter in self._waiters:
                    if not waiter.done():
                        waiter.set_result(list(allowed))
                return
            self._known = []  # what it led to before is not what it leads to now
            shown = ", ".join(found[:3]) or "no address"
            found = NotAllowed(
                f"the name leads to {shown}, which is not a public address (`upstream_private: allow` permits it)"
            )
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(found)

    def _in_order(self, addresses: list[str], now: float) -> list[str]:
        """Those where nobody answered lately behind the others, the one that failed longest ago first."""
        failed_at = {each: at for each, at in self._failed_at.items() if each in addresses and now - at < FAILED_S}
        self._failed_at = failed_at
        return sorted(addresses, key=lambda each: failed_at.get(each, -math.inf)) if failed_at else addresses
