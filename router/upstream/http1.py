"""The request path's HTTP/1.1 client: one origin, a pool of keep-alive connections, no task per request.

Made for one purpose, because every general client measured costs five to seventy times as much per call. What it does
not do is part of its promise: no retries (but the one repeat after a stale keep-alive connection), no redirects, no
decompression, no proxies from the environment, no cookies.

The pool hands out the connection used last, so that surplus ones grow old and close. A connection counts against
`max_connections` from the moment it is being opened until it is dropped; whoever finds none free waits in line, within
its connect deadline. Nothing here awaits while it holds a slot, so an abort at any point cannot lose one (fault F32).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from functools import partial
from urllib.parse import urlsplit

from router.errors import InternalError, Overloaded, RouterError, SettingsError, UpstreamUnreachable
from router.seams import UpstreamCall
from router.upstream.connection import READ_BYTES, Connection
from router.upstream.dial import NO_DESCRIPTOR, dial
from router.upstream.exchange import Exchange, request_head
from router.upstream.resolve import LookUp, NotAllowed, Resolver
from router.upstream.tls import SecureConnection, tls_context


class Http1Upstream:
    """`seams.Upstream` over HTTP/1.1 to one origin, `https://host[:port]` or `http://host[:port]`.

    `ssl_context` defaults to `tls_context()`. `max_idle` connections are kept, for `idle_ttl_s` seconds after use; at
    most `max_connections` exist. `takes_private` lets a public name lead to private addresses (see
    `upstream/resolve.py`); `look_up` stands in for the system's resolver. An instance belongs to the event loop of its
    first `start()`. Raises `SettingsError` for an origin it cannot use.
    """

    def __init__(
        self,
        origin: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        max_idle: int = 256,
        max_connections: int = 4096,
        idle_ttl_s: float = 60.0,
        takes_private: bool = False,
        look_up: LookUp | None = None,
    ) -> None:
        is_tls, self._hostname, self._port, authority = _read_origin(origin)
        self._ssl = (ssl_context or tls_context()) if is_tls else None
        self.name = authority
        self._host = authority.encode("ascii")
        self._resolver = Resolver(self._hostname, takes_private=takes_private, look_up=look_up, clock=time.monotonic)
        self.idle_ttl_s = idle_ttl_s
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.plain = memoryview(bytearray(READ_BYTES))
        self._max_idle = max_idle
        self._max_connections = max_connections
        self._idle: dict[Connection, None] = {}  # in order of release
        self._open: set[Connection] = set()  # idle ones included
        self._closing: set[Connection] = set()  # dropped, socket not yet released
        self._opening: dict[Exchange, asyncio.Task[None]] = {}
        self._waiting: dict[Exchange, asyncio.TimerHandle] = {}  # in order of arrival
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None  # to ask for the running one is a system call each time
        self._all_gone: asyncio.Future[None] | None = None
        self._opened_count = self._reused_count = self._aborted_count = self._resent_count = 0

    def start(self, call: UpstreamCall) -> Exchange:
        """Send `call`, or begin to; returns at once. Failures are told by `reply()`, never raised here."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        exchange = Exchange(call, self, loop)
        if self._is_closed:
            exchange.fail(_unreachable(self.name, "this router is shutting down", None, retryable=False))
            return exchange
        try:
            exchange.head = request_head(call, self._host)
        except InternalError as error:
            exchange.fail(error)
            return exchange
        connection = self._take_idle()
        if connection is not None and call.is_once:
            # Nobody can tell whether a used connection still carries: this call has one of its own. The spare one goes
            # only where it takes the room.
            if self._is_full:
                connection.drop()
            else:
                self.free(connection)
            connection = None
        if connection is not None:
            self._reused_count += 1
            connection.send(exchange, is_reused=True)
        else:
            self._open_or_wait(exchange)
        return exchange

    async def close(self) -> None:
        """Close every connection and fail what is under way; returns when all sockets are released."""
        self._is_closed = True
        error = partial(_unreachable, self.name, "this router is shutting down", None, retryable=False)
        for exchange, timer in list(self._waiting.items()):
            timer.cancel()
            exchange.fail(error())
        self._waiting.clear()
        tasks = list(self._opening.values())
        for exchange, task in list(self._opening.items()):
            exchange.fail(error())
            task.cancel()
        for connection in list(self._open):
            connection.end("this router is shutting down")
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._closing:
            self._all_gone = asyncio.get_running_loop().create_future()
            await self._all_gone

    def stats(self) -> Mapping[str, int]:
        """Counts now (`open`, `idle`, `opening`, `waiting`) and since start (the others)."""
        return {
            "open": len(self._open),
            "idle": len(self._idle),
            "opening": len(self._opening),
            "waiting": len(self._waiting),
            "opened": self._opened_count,
            "reused": self._reused_count,
            "resent": self._resent_count,
            "aborted": self._aborted_count,
        }

    # What connections and exchanges ask: `connection.Pool`

    def free(self, connection: Connection) -> None:
        """Give a clean connection to the first in line, or keep it idle."""
        if self._is_closed or (len(self._idle) >= self._max_idle and not self._waiting):
            connection.drop()
            return
        self._idle[connection] = None
        connection.rest()
        if self._waiting:
            self._serve_line()

    def dropped(self, connection: Connection) -> None:
        """Free the slot of a connection that closes."""
        self._idle.pop(connection, None)
        if connection in self._open:
            self._open.remove(connection)
            self._closing.add(connection)
            if self._waiting:
                self._serve_line()

    def gone(self, connection: Connection) -> None:
        """Note that a connection has released its socket."""
        self._closing.discard(connection)
        if not self._closing and self._all_gone is not None and not self._all_gone.done():
            self._all_gone.set_result(None)

    def again(self, exchange: Exchange) -> None:
        """Send once more, on a fresh connection: the reused one turned out to be closed (F25)."""
        if self._is_closed:
            exchange.fail(_unreachable(self.name, "this router is shutting down", None, retryable=False))
            return
        self._resent_count += 1
        exchange.is_resent = True
        self._open_or_wait(exchange)

    def gave_up(self, exchange: Exchange) -> None:
        """Forget an aborted exchange wherever it is."""
        self._aborted_count += 1
        timer = self._waiting.pop(exchange, None)
        if timer is not None:
            timer.cancel()
        task = self._opening.get(exchange)
        if task is not None:
            task.cancel()

    # Inside

    @property
    def _is_full(self) -> bool:
        return len(self._open) + len(self._opening) >= self._max_connections

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.is_usable:
                return connection
            connection.drop()
        return None

    def _open_or_wait(self, exchange: Exchange) -> None:
        if not self._is_full:
            task = asyncio.get_running_loop().create_task(self._connect(exchange))
            self._opening[exchange] = task
            # A task cancelled before its first step runs none of its own `finally`, so the slot is freed from outside.
            task.add_done_callback(partial(self._connected, exchange))
        else:
            self._waiting[exchange] = asyncio.get_running_loop().call_later(
                _connect_s(exchange), self._waited, exchange
            )

    def _serve_line(self) -> None:
        """Serve those in line, first come first served, while a connection or a slot is free."""
        while self._waiting:
            exchange = next(iter(self._waiting))
            is_full = self._is_full
            if exchange.call.is_once and not is_full:
                connection = None  # one of its own, see `start`
            else:
                connection = self._take_idle()
                if connection is None and is_full:
                    return
            if connection is not None and exchange.call.is_once:
                connection.drop()  # makes room: `dropped` comes back here, and opens one for it
                continue
            self._waiting.pop(exchange).cancel()
            if connection is not None:
                self._reused_count += 1
                connection.send(exchange, is_reused=True)
            else:
                self._open_or_wait(exchange)

    def _waited(self, exchange: Exchange) -> None:
        del self._waiting[exchange]
        limit_s = min(exchange.call.deadlines.connect, exchange.call.deadlines.total)
        why = f"all {self._max_connections} connections were in use for {limit_s:g} s"
        exchange.fail(_unreachable(self.name, why, None, retryable=True))

    async def _connect(self, exchange: Exchange) -> None:
        """Open a connection for `exchange` and send; each phase has its deadline."""
        loop = asyncio.get_running_loop()
        connection = (
            Connection(self, loop) if self._ssl is None else SecureConnection(self, loop, self._ssl, self._hostname)
        )
        phase, limit_s = "connecting", _connect_s(exchange)
        try:
            await dial(connection, self._resolver, self._port, limit_s)
            if isinstance(connection, SecureConnection):
                phase, limit_s = "the TLS handshake", _left_s(exchange, exchange.call.deadlines.tls)
                async with asyncio.timeout(limit_s):
                    await connection.secure()
            if not connection.is_usable:
                raise ConnectionResetError("the connection was closed as soon as it was made")
        except TimeoutError as exc:
            connection.drop()
            why = f"{phase} took over {limit_s:.3g} s"
            exchange.fail(_unreachable(self.name, why, exc, retryable=True))
        except ssl.SSLCertVerificationError as exc:
            connection.drop()
            why = f"its certificate is not valid: {exc.verify_message}"
            exchange.fail(_unreachable(self.name, why, exc, retryable=False))
        except NotAllowed as exc:
            connection.drop()
            exchange.fail(_unreachable(self.name, str(exc), exc, retryable=False))
        except OSError as exc:
            connection.drop()
            if exc.errno in NO_DESCRIPTOR:
                exchange.fail(_no_room(exc))
                return
            why = f"{phase} failed: {exc.strerror or exc}".lower()
            exchange.fail(_unreachable(self.name, why, exc, retryable=True))
        except BaseException:
            connection.drop()
            raise
        else:
            self._opened_count += 1
            self._open.add(connection)
            connection.send(exchange, is_reused=False)
        finally:
            self._opening.pop(exchange, None)

    def _connected(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        """Free the slot that the opening held, whichever way it ended."""
        self._opening.pop(exchange, None)
        if not task.cancelled():
            cause = task.exception()
            if cause is not None:
                error = InternalError(f"opening a connection to `{self.name}` failed in an unforeseen way")
                error.__cause__ = cause
                exchange.fail(error)
        if self._waiting:
            self._serve_line()


def _connect_s(exchange: Exchange) -> float:
    """Seconds that a connection may take to come, by itself or out of the line of those who wait for one."""
    return _left_s(exchange, exchange.call.deadlines.connect)


def _left_s(exchange: Exchange, limit_s: float) -> float:
    """Seconds that a phase with this limit may take before the whole call is over."""
    left_s = exchange.due_at - asyncio.get_running_loop().time()
    return limit_s if limit_s < left_s else max(0.0, left_s)


def _read_origin(origin: str) -> tuple[bool, str, int, str]:
    """Whether TLS, the name to connect to, the port, and the authority as the `host` header gives it."""
    hint = "give it as `https://api.anthropic.com` or `http://127.0.0.1:8090`, without path or credentials"
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError as exc:
        raise SettingsError(f"upstream `{origin}` is not a URL: {exc}".lower(), hint=hint) from exc
    hostname = parts.hostname or ""
    is_plain = not parts.username and parts.path in ("", "/") and not parts.query and not parts.fragment
    if parts.scheme not in ("http", "https") or not hostname or not hostname.isascii() or not is_plain or port == 0:
        shown = f"{parts.scheme}://{hostname}" if parts.username else origin  # never a password
        raise SettingsError(f"upstream `{shown}` is not an http or https origin", hint=hint)
    is_tls = parts.scheme == "https"
    standard = 443 if is_tls else 80
    shown = f"[{hostname}]" if ":" in hostname else hostname
    return is_tls, hostname, port or standard, shown if port in (None, standard) else f"{shown}:{port}"


def _no_room(cause: OSError) -> RouterError:
    """What says nothing of the upstream: this process may open no socket."""
    error = Overloaded(
        "the router has no room for another connection",
        hint="raise the limit of open files (`ulimit -n`)",
        retryable=True,
        retry_after_s=1,
    )
    error.__cause__ = cause
    return error


def _unreachable(name: str, why: str, cause: BaseException | None, *, retryable: bool) -> RouterError:
    error = UpstreamUnreachable(
        f"no connection to `{name}`: {why}",
        hint="nothing was sent; check `upstream_url`, the name service, the certificate and the network",
        retryable=retryable,
    )
    error.__cause__ = cause
    return error
