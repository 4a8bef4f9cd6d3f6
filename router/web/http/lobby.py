"""What the connections of one listener share: limits, the read buffer, who is idle, and what was counted."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from router.web.http.limits import KEEP_ALIVE_S, READ_BYTES, Limits, connections_for, file_descriptors
from router.web.http.refusal import REASONS

# What is counted beside refusals.
_CUT = ("never_used", "write_idle", "incomplete")
_OVERFLOW = 64  # connections beyond the cap that may still be told so; the next are closed without a word


class Idle(Protocol):
    """A connection that has no request."""

    def close_idle(self) -> None:
        """Close it."""
        ...


class Lobby:
    """One for each listener, made before it listens; all its connections are on one event loop.

    `report` is told of an exception that an application raised; it must not repeat the exception's words.
    `keep_alive_s` matters where there are no `limits`, which are then as many connections as the process can hold.
    """

    __slots__ = (
        "_cut",
        "_idle",
        "_refused",
        "accepted",
        "buffer",
        "dropped_headers",
        "evicted",
        "is_draining",
        "limits",
        "open",
        "report",
        "requests",
    )

    def __init__(
        self,
        limits: Limits | None = None,
        report: Callable[[str, BaseException], None] | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        if limits is None:
            limits = Limits(keep_alive_s=keep_alive_s, max_connections=connections_for(file_descriptors()))
        self.limits = limits
        self.report = report
        self.buffer = memoryview(bytearray(READ_BYTES))  # bytes leave it before the read returns
        self.is_draining = False
        self.open = 0
        self.accepted = 0
        self.requests = 0
        self.evicted = 0
        self.dropped_headers = 0
        self._idle: dict[Idle, None] = {}  # the longest idle first
        self._refused = dict.fromkeys(REASONS, 0)
        self._cut = dict.fromkeys(_CUT, 0)

    def stats(self) -> dict[str, int]:
        """Connections now (`open`, `idle`, `max`), and counts since the start; refusals by their reason."""
        return {
            "open": self.open,
            "idle": len(self._idle),
            "max": self.limits.max_connections,
            "accepted": self.accepted,
            "requests": self.requests,
            "evicted": self.evicted,
            "dropped_headers": self.dropped_headers,
            **{f"cut_{why}": count for why, count in self._cut.items()},
            **{f"refused_{reason}": count for reason, count in self._refused.items()},
        }

    def opened(self) -> bool | None:
        """Note a new connection → whether it may stay; None: it must go without a word.

        Over the cap the connection that has been idle the longest makes room.
        """
        self.accepted += 1
        self.open += 1
        excess = self.open - self.limits.max_connections
        if excess <= 0:
            return True
        if self._idle:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            self.evicted += 1
            oldest.close_idle()
            return True
        self.refused("connections")
        return False if excess <= _OVERFLOW else None

    def closed(self, connection: Idle) -> None:
        """Note that a connection has ended."""
        self.open -= 1
        self._idle.pop(connection, None)

    def rests(self, connection: Idle) -> None:
        """Note that a connection waits for a request."""
        self._idle[connection] = None

    def works(self, connection: Idle) -> None:
        """Note that a connection has a request, or the beginning of one."""
        self._idle.pop(connection, None)

    def refused(self, reason: str) -> None:
        """Count a refusal."""
        self._refused[reason] += 1

    def cut(self, why: str) -> None:
        """Count a connection that was closed for its silence, or an answer that was not completed."""
        self._cut[why] += 1

    def drain(self) -> None:
        """Idle connections close now, others after their answer. uvicorn's own shutdown does the same."""
        self.is_draining = True
        for connection in list(self._idle):
            connection.close_idle()

    def new_request_id(self) -> str:
        """An id for what never became a request."""
        return new_request_id()


def new_request_id() -> str:
    """The same, where there is no listener yet."""
    return "req_" + os.urandom(16).hex()
