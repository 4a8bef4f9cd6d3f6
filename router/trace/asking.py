"""What the page asks of a trace store and what comes back, as values: the two sides may be in different processes.

A question is a name and plain arguments, so that it can be written as JSON. An answer is the body that goes to the
browser, made where the store is read, and a small head for whoever passes it on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from router.trace.record import TraceQuery

LANES = ("quick", "list", "long")  # a question waits for none of another lane
LIMIT_S = 10.0
WALL_S = 60.0
WALL_ON_SCREEN_S = 20.0  # of what is polled, or what somebody in a hurry looks at


@dataclass(frozen=True, slots=True)
class Question:
    """One read of the store: `name` is a key of `answers.QUESTIONS`, `args` what it takes.

    `time_limit_s` bounds the processor's time that it takes: whoever reads at the lowest priority on a core that is
    full is slow through no fault of the question. `wall_s` is how long it may be under way for all that, in seconds.
    """

    name: str
    args: Mapping[str, Any]
    lane: str  # one of LANES
    time_limit_s: float = LIMIT_S
    wall_s: float = WALL_S


@dataclass(frozen=True, slots=True)
class Answer:
    """`body` is passed on as it is; `head` is small, and says what the asker must know of it."""

    head: Mapping[str, Any]
    body: bytes = b""


class AnswerDesk(Protocol):
    """Where questions are handed in. An `ask` that is cancelled is given up on the other side too."""

    async def ask(self, question: Question) -> Answer:
        """Raises TraceStoreError (no store, unreadable, over the limit, nobody there to answer) or BadFilter."""

    async def close(self) -> None:
        """What is under way ends with TraceStoreError."""


def page(query: TraceQuery) -> Question:
    """Body: `{"traces": […], "next": MARK or null}`."""
    return Question("page", {"query": asdict(query)}, "list")


def one(some_id: str) -> Question:
    """Body: the trace. Head: `trace_id` and `request_id`; empty when there is none."""
    # A lone surrogate has no UTF-8, which is what the store and the wire speak.
    return Question("one", {"id": some_id.encode("utf-8", "replace").decode()}, "quick")


def tail(after: int | None, query: TraceQuery) -> Question:
    """Body: what arrived after mark `after`, as server-sent events. Head: `mark` to go on from, `first` mark or None,
    `count`."""
    return Question("tail", {"after": after, "query": asdict(query)}, "quick")


def sheet(kind: str, query: TraceQuery, *, is_first: bool) -> Question:
    """Body: a page of an export of that kind (`sheet.KINDS`). Head: `mark` of the next page, or None."""
    return Question("sheet", {"kind": kind, "query": asdict(query), "is_first": is_first}, "long")


def report(by: str, since: str, since_ns: int | None) -> Question:
    """Body: `by`, `since` as it was given, `rows` and `totals`."""
    return Question("report", {"by": by, "since": since or None, "since_ns": since_ns}, "long")


def figures(
    since_ns: int | None,
    until_ns: int,
    *,
    by: str | None,
    step_s: int | None,
    filters: Mapping[str, str],
    ignored: list[str],
) -> Question:
    """Body: time series, `ignored`, and the `projection` of the month, None where filters hold. `since_ns` None: from
    the first hour with a request."""
    args = {"since_ns": since_ns, "until_ns": until_ns, "by": by, "step_s": step_s, "filters": dict(filters)}
    return Question("figures", {**args, "ignored": ignored}, "long")


def totals(since_ns: Mapping[str, int], names: tuple[str, ...]) -> Question:
    """Body: for each key of `since_ns` the figures `names` of everything since then."""
    return Question("totals", {"since_ns": dict(since_ns), "names": names}, "long", 5.0, WALL_ON_SCREEN_S)


def session(kind: str, value: str, *, tenant: str | None = None, since_ns: int = 0) -> Question:
    """Body: the figures of one `session`, `conversation` or `key`. Head: empty when there is none."""
    args = {"kind": kind, "value": value, "tenant": tenant, "since_ns": since_ns}
    return Question("session", args, "long", 2.0, WALL_ON_SCREEN_S)
