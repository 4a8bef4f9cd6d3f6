"""The plugs on one page: what the flow needs from the outside, said as protocols.

The flow (`serve/*`) knows only these; `app` joins them to the adapters. Failure is part of each promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from router.affinity.binding import Binding
from router.cache.entry import CacheEntry, CacheStats, Found, PurgeReport
from router.classify.label import Label
from router.jobs.deferred import Canceled, Job, JobAnswer, JobView, Member, Requested, Submission, Waiting
from router.trace.captured import Content
from router.trace.record import Trace
from router.value import value_class
from router.wire.messages import MessagesRequest


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds each phase of an upstream call may take.

    `idle` is the longest silence inside an answer, in which a `ping` is no silence; `total` is all of it, from the
    start of the call to the last byte of the answer.
    """

    connect: float = 2.0
    tls: float = 5.0
    first_byte: float = 600.0
    idle: float = 300.0
    total: float = 3600.0


class Body(Protocol):
    """A request body that is never in memory as a whole of its own: its length in bytes, and its bytes in pieces.

    `pieces` begins anew with each call; no piece is empty or longer than `most_bytes`.
    """

    def __len__(self) -> int: ...

    def pieces(self, most_bytes: int) -> Iterator[memoryview]: ...


@value_class(frozen=True, slots=True)
class UpstreamCall:
    """One HTTP request to the upstream: bytes that are sent as they are.

    `headers` are complete but for `host` and `content-length`, which the adapter adds; names are lower case and no
    value holds CR, LF or NUL. `target` is path and query. `is_once` is for what must not be done twice: such a call has
    a connection of its own, because on one that was used before, nobody can tell whether it arrived.
    """

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes | Body
    deadlines: Deadlines
    is_once: bool = False


class UpstreamReply(Protocol):
    """An answer whose status line and headers have arrived.

    `headers` keep the order and spelling of the wire, names lower-cased. `read()` returns the next bytes as they came
    (never an empty chunk before the end), and b"" once the body is complete. It raises `UpstreamBroken` when the
    connection ends early, `UpstreamTimeout` on silence. While nobody reads, at most a few chunks are buffered and the
    upstream is throttled. `abort()` may be called at any time, any number of times, and makes a pending `read()` raise
    `ClientGone`; an aborted or unfinished reply never gives its connection back to the pool.
    """

    status: int
    headers: list[tuple[bytes, bytes]]

    async def read(self) -> bytes: ...

    def abort(self) -> None: ...


class PendingCall(Protocol):
    """A call under way; `abort()` ends it wherever it is (connecting, sending, waiting) with `ClientGone`.

    `is_resent`: it went out twice, because a connection that had been used before ended without a byte of an answer.
    The upstream may have seen both.
    """

    is_resent: bool

    async def reply(self) -> UpstreamReply: ...

    def abort(self) -> None: ...


class Upstream(Protocol):
    """One origin that speaks the Messages API.

    `start()` does not suspend: it returns at once with a handle to await or abort, so that no task is needed to cancel.
    `reply()` raises `UpstreamUnreachable` when nothing was sent, `UpstreamTimeout` or `UpstreamBroken` when the request
    may have been charged, `ClientGone` when aborted. No retries, no redirects, no decompression.
    """

    def start(self, call: UpstreamCall) -> PendingCall: ...

    async def close(self) -> None: ...


class CacheBackend(Protocol):
    """Where answers are kept. A failure is a miss, counted by the backend; nothing is raised to the flow.

    `near` looks only into this process. `look_up` may ask a store that processes share, for a few hundredths of a
    second at most; what it came to says who makes the upstream call (`follows` is the token of the process that was at
    it before, `is_claiming` False asks without taking part). Whoever got a `lead` ends it with `put`, `hand_over` or
    `release`, which do not wait: what they say is known here at once and shared soon after. `hand_over` gives an answer
    to those who wait for it now and keeps it for nobody else. `now_ns` is the time that entries are dated with.
    `max_bytes` bounds the body read. `purge` and `stats_everywhere` are the operator's, and raise CacheUnavailable;
    when a purge returns it is in force in every process that it reports as told.
    """

    def now_ns(self) -> int: ...

    def near(self, key: str) -> CacheEntry | None: ...

    async def look_up(
        self, key: str, max_bytes: int, *, follows: str | None = None, is_claiming: bool = True
    ) -> Found: ...

    def put(self, key: str, entry: CacheEntry, lead: str | None = None) -> bool: ...

    def hand_over(self, key: str, entry: CacheEntry, lead: str) -> None: ...

    def release(self, key: str, lead: str) -> None: ...

    def stats(self) -> Mapping[str, int]: ...

    async def stats_everywhere(self) -> CacheStats: ...

    async def purge(
        self,
        *,
        tenant: str | None = None,
        rule: str | None = None,
        model: str | None = None,
        older_than_s: float = 0.0,
    ) -> PurgeReport: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class AffinityStore(Protocol):
    """Where conversations are remembered. A failure is a conversation not remembered, counted by the store.

    Nothing is raised to the flow. What is put is known here at once, and shared soon after; nobody waits for that. What
    is asked takes no longer than the store's own small time limit. `get` takes keys of `affinity.binding.binding_keys`
    and gives the first binding found; `put` with `is_only_first` leaves what is there. `thinkers` gives the models
    behind keys of `affinity.thinking`, each once, and () when one of them is not known.
    """

    async def get(self, keys: Sequence[str]) -> Binding | None: ...

    def put(self, key: str, binding: Binding, *, is_only_first: bool = False) -> None: ...

    async def thinkers(self, keys: Sequence[str]) -> tuple[str, ...]: ...

    def put_thinkers(self, keys: Sequence[str], model: str) -> None: ...

    def stats(self) -> Mapping[str, int]: ...

    async def close(self) -> None: ...


class OpenBook(Protocol):
    """Knows the requests that have begun. `begin` never raises and never waits; the sinks are told of the end."""

    def begin(self, trace: Trace) -> None: ...


class TraceSink(Protocol):
    """Takes finished traces. `write` never blocks and never raises: what cannot be taken is dropped and counted."""

    def write(self, trace: Trace) -> None: ...

    def close(self) -> None: ...


class ItemSink(Protocol):
    """Takes the items of Message Batches as traces, which come by the ten thousand, and again with each fetch.

    `write` is like that of a `TraceSink`, and counts an item once however often it comes: in the store for good, in the
    figures of a process as far as its memory goes. Whoever brings many asks `has_room` between them, and waits until it
    is True again: so none is dropped, and the traces of requests find room too.
    """

    def write(self, item: Trace) -> None: ...

    def has_room(self) -> bool: ...


class BatchDecisions(Protocol):
    """What was decided about the items of Message Batches, kept until their results can be fetched no longer.

    Entries are bytes by name (see `jobs.decision`). They are put under a ticket before the batch is sent, because it
    has no id yet; `link` says which batch the ticket became, and whose it is. Both say whether the store took it, and
    never raise: a batch does not fail for a decision that is not kept. What could not be linked is tried again with
    what is written next, and by `close`; after that all calls fail, in the way each does. `of` gives what is there of
    these names, None when it cannot be looked up now. `owners` gives the tenants of batches that were linked, and
    raises JobsUnavailable when nobody can tell. `some` gives the first entries of a batch that are no shared ones, for
    people to look at.
    """

    async def put(self, ticket: str, entries: Mapping[str, bytes]) -> bool: ...

    async def link(self, ticket: str, batch: str, tenant: str) -> bool: ...

    async def forget(self, ticket: str) -> None: ...

    async def of(self, batch: str, names: Sequence[str]) -> Mapping[str, bytes] | None: ...

    async def owners(self, batches: Sequence[str]) -> Mapping[str, str]: ...

    async def some(self, batch: str, limit: int) -> Mapping[str, bytes]: ...

    def stats(self) -> Mapping[str, int]: ...

    async def close(self) -> None: ...


class JobStore(Protocol):
    """Where deferred requests live from their acceptance until their answer has been kept long enough.

    What a call says is done is done for good when it returns: on the disk, or in Redis. Any call but `stats` raises
    JobsUnavailable where that cannot be said; then it may have been done or not, and doing it again is harmless.

    Several processes may share a store. `lead` makes a process (`holder`) the one that works for an owner, for `ttl_s`
    seconds; again it renews that. False: another process is at it. A holder that is known to be dead leads no more.
    `begin` takes waiting jobs into a submission, all or none of the call, and gives those it took, in the order of
    `ids`: none when `holder` does not lead. `unsent` undoes that, where there is no batch, of what has not ended: that
    waits until `not_before_s` and shares a batch with at most `most` others from then on (None: as before).
    `open_submissions` are those that were not closed, `batches_of` the batches of all that are remembered, which is
    `KEPT_S` long. `finish` ends a job once: the first answer stays, and False says that it had one. A canceled job
    keeps none, and is gone with its submission. `close_submission` drops what was said in it. `accept` raises
    Overloaded when the owner has as many as are taken.
    """

    async def accept(self, job: Job) -> None: ...

    async def look(self, owner: str, job_id: str, tenant: str) -> JobView | None: ...

    async def cancel(self, owner: str, job_id: str, tenant: str) -> Canceled: ...

    async def lead(self, owner: str, holder: str, ttl_s: float) -> bool: ...

    async def leave(self, owner: str, holder: str) -> None: ...

    async def waiting(self, owner: str, limit: int) -> Sequence[Waiting]: ...

    async def begin(self, holder: str, submission: Submission, ids: Sequence[str]) -> Sequence[Requested]: ...

    async def sent(self, owner: str, submission_id: str, batch: str) -> None: ...

    async def unsent(self, owner: str, submission_id: str, not_before_s: float, most: int | None = None) -> None: ...

    async def open_submissions(self, owner: str) -> Sequence[Submission]: ...

    async def batches_of(self, owner: str) -> frozenset[str]: ...

    async def members(self, owner: str, submission_id: str) -> Sequence[Member]: ...

    async def request_of(self, owner: str, job_id: str) -> Requested | None: ...

    async def finish(self, owner: str, job_id: str, answer: JobAnswer) -> bool: ...

    async def close_submission(self, owner: str, submission_id: str) -> None: ...

    def stats(self) -> Mapping[str, int]: ...

    async def close(self) -> None: ...


class ContentSink(Protocol):
    """Takes what requests said and were answered, where capture is on; like a `TraceSink` it never blocks nor raises.

    `room` says how many bytes of the answer to keep for a request, by its trace id; 0: nothing of it is captured.
    """

    def room(self, trace_id: str) -> int: ...

    def write(self, content: Content) -> None: ...


class Classifier(Protocol):
    """Judges a request. Local, microseconds, no I/O; an error means no label, and `why` says so."""

    def label(self, body: Mapping[str, Any]) -> Label: ...


__all__ = [
    "AffinityStore",
    "BatchDecisions",
    "Binding",
    "Body",
    "CacheBackend",
    "CacheEntry",
    "CacheStats",
    "Classifier",
    "Content",
    "ContentSink",
    "Deadlines",
    "Found",
    "ItemSink",
    "JobStore",
    "Label",
    "MessagesRequest",
    "PendingCall",
    "PurgeReport",
    "TraceSink",
    "Upstream",
    "UpstreamCall",
    "UpstreamReply",
]
