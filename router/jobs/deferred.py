"""Deferred requests as they are kept: values that a `seams.JobStore` takes and gives.

A job is a request that was answered with 202. It waits, is sent as an item of a Message Batch together with others (a
*submission*), and ends with one answer. Its `owner` says with whose credential it is sent: a tenant, or the router's
own. What the store need not understand (`meta`, `request`, `note`) is bytes to it.

    waiting ── begin ──> sending ── sent ──> sent ── finish ──> ended
       ^                    │                  │
       └────── unsent ──────┘                  └── (a job may end from any state: refused, answered in real time)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

PREFIX: Final = "msgdef_"
JOB_ID: Final = re.compile(re.escape(PREFIX) + r"[0-9a-f]{32}", re.ASCII)

JobState = Literal["waiting", "sending", "sent", "ended"]
Canceled = Literal["unknown", "removed", "marked", "ended"]


@dataclass(frozen=True, slots=True)
class Job:
    """A request that is accepted. Times are Unix seconds.

    Jobs of one owner and of equal `group` may share a batch, of at most `most` items and not before `due_s`, unless so
    many are there. `late_s` is when its answer is no longer waited for and made in real time; None: never. `size` is
    what it takes in the body of a batch, in bytes. `meta` is small, `request` holds the prompt.
    """

    id: str  # also its `custom_id` in the batch
    owner: str
    tenant: str
    group: str
    created_s: float
    due_s: float
    late_s: float | None
    most: int
    size: int
    meta: bytes
    request: bytes


@dataclass(frozen=True, slots=True)
class Waiting:
    """A waiting job, without what it says. It may not be sent before `not_before_s`."""

    id: str
    group: str
    created_s: float
    due_s: float
    late_s: float | None
    most: int
    size: int
    not_before_s: float


@dataclass(frozen=True, slots=True)
class Requested:
    """What a job is sent by."""

    id: str
    meta: bytes
    request: bytes


@dataclass(frozen=True, slots=True)
class Submission:
    """An attempt to send jobs as one batch, written down before it is made. `batch` None: it is not known to be there.

    `items` is how many jobs it began with, whatever became of them.
    """

    id: str
    owner: str
    group: str
    started_s: float
    items: int
    batch: str | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A job of a submission. A canceled one is still there: its batch may be billed for it."""

    id: str
    is_ended: bool
    is_canceled: bool
    late_s: float | None
    meta: bytes


@dataclass(frozen=True, slots=True)
class JobAnswer:
    """How a job ended: the status and the body that the client gets, and a note about it (small)."""

    status: int
    body: bytes
    note: bytes
    ended_s: float


@dataclass(frozen=True, slots=True)
class JobView:
    """What a client may know of its job: `answer` once it has ended."""

    id: str
    state: JobState
    created_s: float
    due_s: float
    meta: bytes
    batch: str | None = None
    answer: JobAnswer | None = None
