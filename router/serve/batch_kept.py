"""Answers that were known when a batch was made: kept beside the decisions about it, and given out as part of it.

The upstream's batch lacks these items, and the client's has them. So its counts are completed wherever they are shown,
and the lines of its results follow those of the upstream. The lines of a batch are one run of bytes, cut into pieces of
bounded size; the entry `#=`, which is written last, says how many items, bytes and pieces there are. What cannot be
read to its last byte is no answer: the fetch fails, and never looks complete without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from router.errors import JobsUnavailable
from router.jobs.decision import KEPT
from router.policy.compile import CompiledPolicy, PolicySet
from router.seams import BatchDecisions
from router.serve.plan import PolicySource
from router.wire.batch import Spliced
from router.wire.messages import object_spans

MOST_BYTES = 64 * 1024 * 1024  # of the lines of one batch
PIECE_BYTES = 128 * 1024
_VERSION = 1
_MOST_REMEMBERED = 1_000
_LISTED_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a batch: so many items, as lines of so many bytes, in so many pieces."""

    items: int
    bytes: int
    pieces: int


class KeptWriter:
    """Writes the lines of one batch under its ticket; after a failure of the store nothing more."""

    def __init__(self, store: BatchDecisions, ticket: str) -> None:
        self._store = store
        self._ticket = ticket
        self._pending = bytearray()
        self._items = self._bytes = self._pieces = 0
        self._has_failed = False

    def has_room(self, size: int) -> bool:
        """Whether lines of so many bytes may be added."""
        return not self._has_failed and self._bytes + size <= MOST_BYTES

    async def add(self, line: bytes) -> None:
        """Write a line, with its line end."""
        self._items += 1
        self._bytes += len(line)
        self._pending += line
        while len(self._pending) >= PIECE_BYTES and not self._has_failed:
            piece = bytes(self._pending[:PIECE_BYTES])
            del self._pending[:PIECE_BYTES]
            await self._put({self._next(): piece})

    async def finish(self) -> bool:
        """Write what is left; whether the store has taken everything."""
        last = {self._next(): bytes(self._pending)} if self._pending else {}
        said = orjson.dumps([_VERSION, self._items, self._bytes, self._pieces])
        if not self._has_failed:
            await self._put({**last, KEPT: said})
        return not self._has_failed

    def _next(self) -> str:
        self._pieces += 1
        return f"{KEPT}{self._pieces - 1}"

    async def _put(self, entries: Mapping[str, bytes]) -> None:
        if not await self._store.put(self._ticket, entries):
            self._has_failed = True
            self._pending.clear()


class KeptLines:
    """Reads the kept lines of one batch, once, from first to last."""

    def __init__(self, store: BatchDecisions, batch: str, kept: Kept) -> None:
        self._store = store
        self._batch = batch
        self._kept = kept
        self._at = self._read = 0

    async def read(self) -> bytes:
        """The next bytes; b"" at the end. Raises JobsUnavailable when they cannot be read, or are not all there."""
        if self._at == self._kept.pieces:
            if self._read != self._kept.bytes:
                raise _lost()
            return b""
        name = f"{KEPT}{self._at}"
        found = await self._store.of(self._batch, [name])
        piece = b"" if found is None else found.get(name, b"")
        if not piece:
            raise _lost()
        self._at += 1
        self._read += len(piece)
        return piece


class KeptAnswers:
    """Which batches have answers that are kept here.

    While the store cannot be read nobody knows. Then it matters whether there can be any: whether a policy in force
    says `batches: true`, or one did since this process began.
    """

    def __init__(self, store: BatchDecisions, policies: PolicySource) -> None:
        self._store = store
        self._policies = policies
        self._revision = ""
        self._may_be = False
        self._known: dict[str, Kept] = {}  # what is there never changes

    async def of(self, batch: str, *, is_needed: bool = True) -> Kept | None:
        """What is kept of a batch; None for nothing.

        Raises JobsUnavailable where that cannot be told, and `is_needed`.
        """
        known = self._known.get(batch)
        if known is not None:
            return known
        may_be = self.can_be()
        found = await self._store.of(batch, [KEPT])
        try:
            if found is None and may_be:
                raise _lost()
            kept = _read((found or {}).get(KEPT, b""))
        except JobsUnavailable:
            if is_needed:
                raise
            return None
        if kept is not None:
            self._note(batch, kept)
        return kept

    async def of_all(self, batches: Sequence[str]) -> dict[str, Kept]:
        """What is kept of each of these batches; raises as `of`."""
        found: dict[str, Kept] = {}
        for at in range(0, len(batches), _LISTED_AT_ONCE):
            some = batches[at : at + _LISTED_AT_ONCE]
            for batch, kept in zip(some, await asyncio.gather(*map(self.of, some)), strict=True):
                if kept is not None:
                    found[batch] = kept
        return found

    async def lines(self, batch: str) -> KeptLines | None:
        """The lines that are kept of a batch, to be read; raises as `of`."""
        kept = await self.of(batch)
        return None if kept is None else KeptLines(self._store, batch, kept)

    def _note(self, batch: str, kept: Kept) -> None:
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        self._known[batch] = kept

    def can_be(self) -> bool:
        """Whether there can be batches with such answers, as far as this process knows."""
        policies = self._policies.current
        if policies.revision != self._revision:
            self._revision = policies.revision
            self._may_be = self._may_be or _any_caches(policies)
        return self._may_be


def caches_batches(policy: CompiledPolicy) -> bool:
    """Whether a rule of this policy answers items of batches from the cache."""
    return any(rule.cache is not None and rule.cache.in_batches for rule in policy.rules)


def with_items(batch: bytes, items: int) -> bytes:
    """The batch (a JSON object) with so many items more in its counts; every other byte stays.

    They are counted as the API counts: in `processing` until the batch has ended, then in `succeeded`.
    """
    spans = object_spans(batch)
    counts = spans.get("request_counts")
    if counts is None or batch[counts[0] : counts[0] + 1] != b"{":
        return batch
    has_ended = batch[slice(*spans.get("processing_status", (0, 0)))] == b'"ended"'
    at = object_spans(batch[slice(*counts)]).get("succeeded" if has_ended else "processing")
    if at is None:
        return batch
    start, end = counts[0] + at[0], counts[0] + at[1]
    number = batch[start:end]
    return batch[:start] + b"%d" % (int(number) + items) + batch[end:] if number.isdigit() else batch


def with_items_of_each(page: bytes, elements: Sequence[tuple[int, int]], items: Sequence[int]) -> bytes:
    """A page of a list, with so many items more in the batch at each of these places."""
    spliced = Spliced(page)
    for (start, end), more in zip(elements, items, strict=True):
        if more:
            spliced.replace(start, end, with_items(page[start:end], more))
    return b"".join(spliced.pieces(1 << 20)) if spliced.is_changed else page


def _any_caches(policies: PolicySet) -> bool:
    return any(caches_batches(policy) for policy in policies.policies.values())


def _read(entry: bytes) -> Kept | None:
    """What the entry `#=` says; None where there is none. Raises JobsUnavailable for one of another version."""
    if not entry:
        return None
    try:
        version, items, size, pieces = orjson.loads(entry)
    except (orjson.JSONDecodeError, TypeError, ValueError):
        raise _lost() from None
    if version != _VERSION:
        raise _lost()
    return Kept(items, size, pieces)


def _lost() -> JobsUnavailable:
    return JobsUnavailable("the answers that were known when the batch was made cannot be read now", retryable=True)
