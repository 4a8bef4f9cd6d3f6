"""How a connection to Redis is made: to one server, to what the sentinels call the master, to a node of a cluster.

The traps of redis-py 8 that are closed here: ten retries by default, CLIENT SETINFO and CLIENT MAINT_NOTIFICATIONS on
every connect, a TLS context per connection (60 ms each), and a task and a timer per command for its own time limits:
whoever dials bounds the exchange as a whole.
Source: redis-py 8.1, measured: one GET against a hung server takes 59 s with the defaults.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from router.redis_failure import FAILURES
from router.redis_url import Target

Dial = Callable[[], Awaitable[Connection]]
"""Makes a connection that is connected and logged in. Raises what the library raises."""


def pack(command: tuple[str | bytes | int | float, ...]) -> bytes:
    """A command as it goes over the wire. Raises TypeError for a value that no command takes."""
    packed: bytes = pack_command(command)  # type: ignore[arg-type]  # its stub knows fewer types than it takes
    return packed


async def hang_up(connection: Connection, *, in_good_order: bool = False) -> None:
    """Close a connection, at once or `in_good_order`: waiting until it is closed."""
    try:
        await connection.disconnect(nowait=not in_good_order)
    except FAILURES:
        pass  # a connection that cannot even be closed properly is gone all the same


class _OneContext(SSLConnection):
    """A TLS connection over the link's own context."""

    def __init__(self, *, tls: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context.context = tls


class Dialler:
    """Makes connections to what `target` says. Making one connects to nothing; `give_up_s` is seconds."""

    def __init__(self, target: Target, give_up_s: float) -> None:
        self._master = target.master
        self._class: type[Connection] = _OneContext if target.is_tls else Connection
        plain: dict[str, Any] = {
            "protocol": 2,  # nothing of the third is used, and it brings CLIENT MAINT_NOTIFICATIONS on connect
            "driver_info": None,  # no CLIENT SETINFO on connect: an ACL user may not be allowed it
            "retry": Retry(NoBackoff(), 0),
        }
        self._options = plain | {
            "username": target.user,
            "password": target.password,
            "db": target.database,
            "socket_timeout": None,  # each would cost a timer per reply and a task per command
            "socket_connect_timeout": give_up_s,
        }
        if target.is_tls:
            self._options["tls"] = ssl.create_default_context()  # verifies certificate and name; SSL_CERT_FILE counts
        self._sentinel: Sentinel | None = None
        self._master_at: tuple[str, int] | None = None  # as last heard
        if target.kind == "sentinel":
            # A sentinel that hangs must leave time to ask the next one. The credentials are the master's, not theirs.
            short_s = give_up_s / (len(target.hosts) + 1)
            asked = plain | {"socket_timeout": short_s, "socket_connect_timeout": short_s}
            if target.is_tls:
                asked |= {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
            self._sentinel = Sentinel(target.hosts, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]  # as it ships

    def to(self, host: str, port: int) -> Dial:
        """Dials one server."""
        return lambda: self._connected(host, port)

    async def to_master(self) -> Connection:
        """Asks the sentinels, and dials what they call the master."""
        assert self._sentinel is not None
        host, port = await self._sentinel.discover_master(self._master)
        self._master_at = host, port
        return await self._connected(host, port)

    def leads_to_the_master(self, connection: Connection) -> bool:
        """Whether a connection leads to what the sentinels last called the master; without sentinels, it does."""
        return self._master_at is None or self._master_at == (connection.host, connection.port)

    async def close(self) -> None:
        """Close the connections to sentinels."""
        if self._sentinel is not None:
            try:
                await self._sentinel.aclose()
            except FAILURES:
                pass  # see `hang_up`

    async def _connected(self, host: str, port: int) -> Connection:
        connection = self._class(host=host, port=port, **self._options)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # as it ships
        except (Exception, asyncio.CancelledError):
            await hang_up(connection)  # given up half-way through the login, it is still open
            raise
        return connection
