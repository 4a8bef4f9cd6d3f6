"""A connection under TLS, on memory buffers between the plain connection and its socket.

The event loop's own TLS layer would do, but for one case: an upstream that answers early, and resets a request still
being written (F24), leaves its answer in the kernel, and only who holds the session can still decrypt it. Holding it
also tells a clean end from a cut one, so that a body framed by the end of the connection cannot be cut short unseen.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import cast

from router.errors import InternalError
from router.upstream.connection import Connection
from router.upstream.pool import Pool


class SecureConnection(Connection):
    """A `Connection` whose bytes pass through TLS; `secure()` must have returned before the first request."""

    __slots__ = ("_incoming", "_outgoing", "_ready", "_session")

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop, context: ssl.SSLContext, hostname: str) -> None:
        super().__init__(pool, loop)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)
        self._ready: asyncio.Future[None] | None = None  # while the handshake is under way

    async def secure(self) -> None:
        """Shake hands. Raises `ssl.SSLError` when it fails, `ConnectionResetError` when the connection ends in it."""
        ready = self._ready = self._loop.create_future()
        self._shake_hands()
        await ready

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the event loop with encrypted bytes in the shared buffer."""
        self._incoming.write(self._pool.buffer[:nbytes])
        if self._ready is not None:
            self._shake_hands()
            if self._ready is not None:
                return
        plain = self._pool.plain
        try:
            while not self._is_dropped:
                count = cast("int", self._session.read(len(plain), plain))  # with a buffer: how many, not which
                if not count:  # the upstream's close_notify
                    self._parsed(nbytes)
                    self._ended(None)
                    return
                self._parse(plain[:count])
        except ssl.SSLWantReadError:
            self._parsed(nbytes)
        except ssl.SSLError as exc:
            self._ended(exc)
        self._flush()  # answers to key updates and the like

    def eof_received(self) -> bool:
        """Called by the event loop: the socket ended, and TLS had not said so."""
        self._ended(ConnectionResetError("the connection ended without a TLS close_notify"))
        return False

    def _write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._session.write(rest) :]
        except ssl.SSLError as exc:
            self._ended(exc)
            return
        self._flush()

    def _ended(self, cause: Exception | None) -> None:
        if self._ready is not None:
            if not self._ready.done():
                self._ready.set_exception(cause or ConnectionResetError("closed by the upstream"))
            self._ready = None
        super()._ended(cause)

    def _shake_hands(self) -> None:
        ready = self._ready
        if ready is None:
            raise InternalError("a TLS handshake went on after its end")
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as exc:  # certificate errors are among them
            self._flush()  # the alert that tells the upstream why
            self._ended(exc)
            return
        self._flush()
        self._ready = None
        if not ready.done():
            ready.set_result(None)

    def _flush(self) -> None:
        if self._outgoing.pending and not self._is_dropped:
            super()._write(self._outgoing.read())


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """How we speak TLS: TLS 1.2 or later, certificate and name verified, ALPN `http/1.1`.

    `ca_file` (PEM) replaces the system's certificate authorities.
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
