"""`Trace`: the record of one request, filled in place as the request walks the straight line.

A trace is a value with no opinion about where it goes; sinks turn it into SQLite rows, metrics or OpenTelemetry spans.
It holds no prompt text, no answer text and no credential. Times ending in `_s` are seconds since the request's last
byte was received, on a monotonic clock; `started_at_ns` is Unix time in nanoseconds. Money is integer pico-dollars
(`_pusd`), None where a price is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from router.usage import Usage

# How one attempt ended. `ok` is a complete 2xx answer; a lane that was never reached is `connect_failed`.
ATTEMPT_OUTCOMES = (
    "ok",
    "connect_failed",
    "rate_limited",
    "overloaded",
    "unavailable",
    "rejected",
    "error",
    "timeout",
    "broken",
    "cut",
    "client_closed",
)

# How one request ended, seen from the client.
# `shed`: turned away before its body was read, because the router or the client's share of it was full.
# `aborted`: its process was killed while it was open.
OUTCOMES = ("ok", "client_error", "upstream_error", "cut", "client_closed", "internal_error", "shed", "aborted")

# Why the cache was not asked: it is off, the rule does not cache, the client said `no-store`, the temperature is not
# the rule's; the answer depends on state at the provider, on a file or address, or on a tool that runs there.
BYPASSES = ("off", "rule", "no-store", "temperature", "state", "reference", "server-tool")
# Why the answer of a miss was not kept: it failed or was cut, did not come from the model in the key, stopped for
# another reason than being done, was larger than the rule keeps, or the cache did not take it.
UNSTORED = ("failed", "fallback", "stop-reason", "too-large", "refused")

# The endpoint of an item of a Message Batch, which is booked as a request although it came in none of its own.
BATCH_ITEM = "batch_item"

# A request that waits (`Prefer: respond-async`), and what is asked about it later. What it is answered in a batch is
# booked as an item, see `is_deferred`.
DEFERRED = "deferred"

MOST_PUSD = 2**63 - 1  # about nine million dollars; what a column of the trace store holds


@dataclass(slots=True)
class Attempt:
    """One HTTP request to one lane."""

    lane: str
    model: str
    started_s: float
    outcome: str = "ok"  # one of ATTEMPT_OUTCOMES
    status: int | None = None
    first_byte_s: float | None = None
    ended_s: float | None = None
    request_id: str | None = None  # the upstream's
    error_type: str | None = None
    retry_after_s: float | None = None
    usage: Usage | None = None
    cost_pusd: int | None = None
    is_resent: bool = False  # it went out twice: a connection used before ended without a byte of an answer (F25)


@dataclass(slots=True)
class Trace:
    """Everything the router may report about one request; mutable until it is handed to the sinks."""

    trace_id: str  # 32 hex digits, also a valid W3C trace id
    started_at_ns: int
    span_id: str = ""  # 16 hex digits: the request's own W3C span; "": the second half of the trace id
    parent_span_id: str = ""  # the caller's span, where its trace is continued
    caller: tuple[str, str] | None = None  # trace and span of the caller, where its trace is only linked
    endpoint: str = ""  # messages | count_tokens | batches | batch_item | deferred | models | passthrough
    method: str = ""
    path: str = ""  # without the query
    request_id: str | None = None  # the upstream's, else ours
    tenant: str = ""  # a name from `keys`, else a keyed hash of the credential
    key: str = ""  # the name of the router's own key, where there is one
    client: str = ""  # the family of the user agent: python-sdk, ts-sdk, claude-code, other
    conversation: str | None = None  # a hash: tenant, system, tools, first user turn
    session: str | None = None  # a hash: tenant and the session that the client names
    is_streaming: bool = False
    batch: str | None = None  # the id of the Message Batch that the request is about, or the item is of
    batch_lines: Mapping[str, int] | None = None  # of a fetch of results: the lines that passed, by kind

    policy: str = ""
    revision: str = ""
    rule: str = ""
    why: tuple[str, ...] = ()  # rule by rule, what failed or matched; swap refusals too
    tags: tuple[str, ...] = ()
    facts: Mapping[str, Any] | None = None
    labels: Mapping[str, Any] | None = None  # task, difficulty, confidence, p_hard; by place, what moved p_hard

    model_asked: str = ""
    model_sent: str = ""
    model_answered: str | None = None
    lane: str = ""
    edits: tuple[str, ...] = ()
    affinity: Mapping[str, Any] | None = None  # what the conversation was bound to, and what a switch would cost
    attempts: list[Attempt] = field(default_factory=list)
    cache: str = "bypass"  # hit | miss | bypass | coalesced
    cache_reason: str = ""  # one of BYPASSES, or of UNSTORED for a miss whose answer was not kept
    is_stored: bool = False  # this answer was put into the cache

    usage: Usage | None = None
    price_version: str = ""
    cost_pusd: int | None = None
    baseline_pusd: int | None = None
    saved_pusd: int | None = None
    # The provider's prompt cache, at the models that were billed: what reading it saved over plain input, and what
    # writing it cost more. Both are inside `cost_pusd` already.
    prompt_read_saved_pusd: int | None = None
    prompt_write_extra_pusd: int | None = None

    ttft_s: float | None = None
    duration_s: float = 0.0
    overhead_s: float = 0.0  # the part of the duration that was not spent waiting for the upstream or the client
    spans: list[tuple[str, float, float]] = field(default_factory=list)  # name, start, end
    status: int = 0
    stop_reason: str | None = None
    outcome: str = "ok"  # one of OUTCOMES
    error_type: str | None = None
    error_code: str | None = None  # ours, R…
    slot: int = -1  # where the journal has it (`trace/journal.py`); -1: nowhere


@dataclass(frozen=True, slots=True)
class TraceQuery:
    """What `trace ls`, `report` and the admin page ask of a trace store; None means any."""

    since_ns: int | None = None
    until_ns: int | None = None
    trace_id: str | None = None
    request_id: str | None = None
    policy: str | None = None
    rule: str | None = None
    lane: str | None = None
    model: str | None = None  # the model sent
    task: str | None = None
    tenant: str | None = None
    key: str | None = None
    cache: str | None = None
    cache_reason: str | None = None
    conversation: str | None = None  # the hash, and so is `session`
    session: str | None = None
    batch: str | None = None
    outcome: str | None = None
    endpoint: str | None = None
    status: int | None = None  # of HTTP; 1 to 9 is a class: 5 for all from 500 to 599
    min_duration_s: float | None = None
    min_cost_pusd: int | None = None
    before: tuple[int, str] | None = None  # keyset page: (started_at_ns, trace_id) of the last row seen
    limit: int = 50


def is_deferred(item: Trace) -> bool:
    """Whether an item was a request of its own that could wait: its method is that request's, and no fetch's."""
    return item.method == "POST"


def held(pusd: int | None) -> int | None:
    """Pico-dollars of one request; a sum that no column can hold exactly is unknown, and not another sum."""
    return pusd if pusd is not None and -MOST_PUSD <= pusd <= MOST_PUSD else None
