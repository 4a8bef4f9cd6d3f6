"""Items of Message Batches on their way to the store and to the figures of this process, each counted once.

The store knows for good which items it has: it is given every item, every time, so that what it could not take comes to
it with the next fetch. The figures cannot ask it. Here the last items are remembered, by eight bytes each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from router.seams import TraceSink
from router.trace.record import Trace
from router.trace.sqlite import SqliteTraceSink

MOST = 200_000  # two of the largest batches; about 20 MB once so many have come


class BatchItems:
    """A `seams.ItemSink`. `figures` are the sinks that add up; `most` is how many items are remembered."""

    def __init__(self, store: SqliteTraceSink | None, figures: Sequence[TraceSink], most: int = MOST) -> None:
        self._store = store
        self._figures = tuple(figures)
        self._most = most
        self._seen: set[int] = set()
        self._order: deque[int] = deque()

    def write(self, item: Trace) -> None:
        """Hand over an item; see `ItemSink`. Its trace id is a hash already, of which a half tells items apart."""
        if self._store is not None:
            self._store.write(item)
        mark = int(item.trace_id[:16], 16)
        if mark in self._seen:
            return
        if len(self._order) >= self._most:
            self._seen.discard(self._order.popleft())
        self._seen.add(mark)
        self._order.append(mark)
        for sink in self._figures:
            sink.write(item)

    def has_room(self) -> bool:
        """Whether the store's queue takes more; without a store there is nothing to wait for."""
        return self._store is None or self._store.has_room()
