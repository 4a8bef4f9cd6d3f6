"""What the flow is made of, joined by `app`, and what it gives to the web floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from router.catalog.lookup import Catalog
from router.seams import (
    AffinityStore,
    BatchDecisions,
    CacheBackend,
    ContentSink,
    Deadlines,
    ItemSink,
    OpenBook,
    TraceSink,
)
from router.serve.attempts import Means
from router.serve.headers import RawHeaders
from router.serve.plan import Planner
from router.serve.relay import Relay
from router.value import value_class


@dataclass(frozen=True, slots=True)
class Parts:
    """What the line needs from outside.

    `wall_clock` gives Unix seconds. `means` are what attempts are made with. `report` says an unforeseen exception to
    the operator, with the trace id. `content` None: no content is captured. `sends_trace_context` says that calls carry
    a `traceparent`. `decisions` None: nothing is kept of what was decided about the items of batches. `holds_key` says
    that all clients share the upstream's key, which the router holds: then a batch is its tenant's alone.
    """

    planner: Planner
    catalog: Catalog
    cache: CacheBackend | None
    affinity: AffinityStore | None
    means: Means
    deadlines: Deadlines
    sinks: tuple[TraceSink, ...]
    items: ItemSink
    wall_clock: Callable[[], float]
    report: Callable[[str, BaseException], None]
    content: ContentSink | None = None
    open_book: OpenBook | None = None
    sends_trace_context: bool = False
    decisions: BatchDecisions | None = None
    holds_key: bool = False


@value_class(frozen=True, slots=True)
class Answered:
    """What answers a request, with the headers that came with it: a whole body, or a relay to read.

    `is_message` says that it is a complete Message, or a stream of one. `is_plain` is False for a stream.
    `after_last_byte` is the accounting that has to wait for the end of a relay.
    """

    status: int
    headers: RawHeaders
    body: bytes | None
    relay: Relay | None = None
    is_plain: bool = False
    is_message: bool = False
    after_last_byte: Callable[[], None] | None = None


@value_class(frozen=True, slots=True)
class Outgoing:
    """What goes to the client, complete headers included: a whole body, or a relay to read from."""

    status: int
    headers: RawHeaders
    body: bytes | None
    relay: Relay | None = None
