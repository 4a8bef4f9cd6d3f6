"""What a connection asks of the pool that owns it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from router.upstream.exchange import Exchange

if TYPE_CHECKING:
    from router.upstream.connection import Connection


class Pool(Protocol):
    """The pool, as a connection knows it."""

    name: str  # host and port, for messages
    idle_ttl_s: float
    buffer: memoryview  # shared by all connections of one event loop: bytes leave it before the read returns
    plain: memoryview  # the same for decrypted bytes

    def free(self, connection: Connection) -> None:
        """Take back a connection that is ready for another exchange."""

    def dropped(self, connection: Connection) -> None:
        """Forget a connection that is being closed; its slot is free from now on."""

    def gone(self, connection: Connection) -> None:
        """Note that a dropped connection has released its socket."""

    def again(self, exchange: Exchange) -> None:
        """Send the exchange once more, on a fresh connection."""
