"""Open a socket to the upstream: its addresses one after another, all within one deadline."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

from router.upstream.connection import Connection
from router.upstream.resolve import NotAllowed, Resolver

_KEEP_ALIVE_PROBES = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))  # seconds, seconds, count
_KNOWN_AFTER = 0.5  # the part of the deadline after which addresses known from before do, if the name service is silent
_PATIENCE_S = 0.5  # that each address gets at the least, however many there are: one far away is no hole


NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)  # no file descriptor is left: it says nothing of an address


class Silent(OSError):
    """The name service did not answer within the deadline."""


async def dial(connection: Connection, resolver: Resolver, port: int, limit_s: float) -> None:
    """Connect `connection` to the first address that answers.

    Each address has an equal part of the time that is left, so that one which swallows everything does not take the
    turn of the next; but no less than `_PATIENCE_S`, or half of the limit where that is shorter. Those whose turn does
    not come are first in the next call, because those that failed go to the end. Raises TimeoutError when `limit_s` is
    over, else the OSError of the last address; at once where it is this process that can open no socket.
    """
    loop = asyncio.get_running_loop()
    due_at = loop.time() + limit_s
    least_s = min(_PATIENCE_S, limit_s / 2)
    addresses = resolver.fresh() or await _asked(resolver, limit_s)
    failure: OSError | None = None
    for position, address in enumerate(addresses):
        left_s = due_at - loop.time()
        if left_s <= 0:
            raise failure or TimeoutError  # the others have not had their turn, so that nothing is known of the name
        try:
            async with asyncio.timeout(min(left_s, max(least_s, left_s / (len(addresses) - position)))):
                transport, _ = await loop.create_connection(lambda: connection, address, port)
        except TimeoutError as exc:
            failure = exc
        except OSError as exc:
            if exc.errno in NO_DESCRIPTOR:
                raise
            failure = exc
        else:
            _probe_when_idle(transport)
            resolver.reached(address)
            return
        resolver.failed(address)
    resolver.doubt()
    raise failure or OSError("the name has no address")


async def _asked(resolver: Resolver, limit_s: float) -> list[str]:
    """The addresses as the name service gives them, or as it gave them before when it does not answer now.

    One wait in vain is enough: until it answers again, what is known does at once, while it is asked beside.
    """
    known = resolver.stale()
    try:
        if known is not None and resolver.is_silent:
            resolver.ask()
            return known
        async with asyncio.timeout(limit_s if known is None else limit_s * _KNOWN_AFTER):
            return await resolver.addresses()
    except NotAllowed:
        raise
    except TimeoutError:
        resolver.is_silent = True
        if known is None:
            raise Silent(f"the name service did not answer within {limit_s:.3g} s") from None
        return known
    except OSError:
        if known is None:
            raise
        return known


def _probe_when_idle(transport: asyncio.BaseTransport) -> None:
    """Let the kernel find out that the other side has vanished, as a load balancer that forgets idle flows does."""
    sock = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):  # it may have ended already, which whoever uses it is told
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE_PROBES:
            number = getattr(socket, option, None)  # not every system has all three
            if number is not None:
                sock.setsockopt(socket.IPPROTO_TCP, number, value)
