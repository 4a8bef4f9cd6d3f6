"""One request on its way: what came in, what is known of it so far, and whether its client is still there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from router.errors import ClientGone
from router.facts.inspect import Facts
from router.serve.headers import Credential, RawHeaders
from router.trace.captured import Kept
from router.trace.record import Trace
from router.value import value_class


@value_class(frozen=True, slots=True)
class Incoming:
    """A complete client request. `path` and `query` are the raw bytes of the target, without the `/p/NAME` prefix."""

    method: str
    path: bytes
    query: bytes
    headers: RawHeaders
    body: bytes
    credential: Credential
    policy: str | None  # named by the base URL or the key; None: `default`
    tenant: str
    key: str
    scheme: str = "http"
    prefix: str = ""  # what stood before the path in the client's base URL: `/p/NAME`

    @property
    def target(self) -> bytes:
        """Path and query as they go upstream."""
        return self.path + b"?" + self.query if self.query else self.path


class ClientWatch:
    """Tells whoever waits for something that the client has gone, without a task per request.

    `gone()` is called once by the web floor. Whoever awaits something registers `on_gone` first: the callback must make
    that wait end at once.
    """

    __slots__ = ("_on_gone", "is_gone", "is_stopping")

    def __init__(self) -> None:
        self.is_gone = False
        self.is_stopping = False  # see `stop`
        self._on_gone: Callable[[], None] | None = None

    def gone(self) -> None:
        """The client closed its connection."""
        if not self.is_gone:
            self.is_gone = True
            if self._on_gone is not None:
                self._on_gone()

    def stop(self) -> None:
        """The server has no more time: whatever is waited for ends as if the client had gone."""
        self.is_stopping = True
        if self._on_gone is not None:
            self._on_gone()

    def check(self) -> None:
        """Raise ClientGone when the client has gone."""
        if self.is_gone:
            raise ClientGone("the client closed the connection")

    def during(self, on_gone: Callable[[], None] | None) -> None:
        """Name what to call when the client goes; raises ClientGone when it has gone already (or time is up)."""
        self._on_gone = on_gone
        if on_gone is not None and (self.is_gone or self.is_stopping):
            on_gone()
            raise ClientGone("the client closed the connection, or the server is stopping")


class Stopwatch:
    """The clock of one request: seconds since its last byte was received, and what was spent waiting."""

    __slots__ = ("_clock", "_started", "waited_s")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self.waited_s = 0.0  # for the upstream and for the client: not the router's own time

    def now_s(self) -> float:
        """Seconds since the request's last byte was received."""
        return self._clock() - self._started

    def beside(self) -> Stopwatch:
        """The same clock for what goes on beside the request, with a waiting time of its own."""
        other = Stopwatch(self._clock)
        other._started = self._started
        return other


class Carrier(Protocol):
    """A call that may outlive the request that began it."""

    is_over: bool

    def when_over(self, callback: Callable[[], None]) -> None:
        """Call back once nothing more comes."""
        ...


@dataclass(slots=True)
class Exchange:
    """The mutable company of one request: its trace, its clock, its client."""

    incoming: Incoming
    trace: Trace
    watch: ClientWatch
    clock: Stopwatch
    facts: Facts | None = None
    headers_read: Iterable[str] = ()  # names of the request headers that some rule reads: recorded with the facts
    refused: list[str] = field(default_factory=list)  # lanes that could not take this request, with the reason
    after_last_byte: Callable[[], None] | None = None  # accounting that has to wait for the whole answer
    flight: Carrier | None = None  # the shared call that this request began
    kept: Kept | None = None  # the answer as it is relayed, where content is captured

    def span(self, name: str, start_s: float) -> float:
        """Note that step `name` ran from `start_s` until now; returns now, the next step's start."""
        now_s = self.clock.now_s()
        self.trace.spans.append((name, start_s, now_s))
        return now_s
