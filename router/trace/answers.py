"""The answers to `asking`'s questions, out of the store and encoded: this runs in whatever process reads the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import Any

from router.errors import BadFilter, TraceStoreError
from router.trace.asking import Answer, Question
from router.trace.export import encode_json
from router.trace.filters import write_mark
from router.trace.question import Stop, too_long
from router.trace.reader import SqliteTraceReader
from router.trace.record import TraceQuery
from router.trace.sessions import Sessions
from router.trace.sheet import sheet

_DAY_NS = 86_400 * 10**9
_ALL_DAYS = 400  # how far back the figures go when no time is named

Args = Mapping[str, Any]


class Store:
    """One store as one question sees it, which `stop` alone ends."""

    def __init__(self, path: Path, stop: Stop) -> None:
        self.reader = SqliteTraceReader(path, time_limit_s=inf, stop=stop)
        self.sessions = Sessions(path, time_limit_s=inf, stop=stop)


def answer(path: Path, question: Question, stop: Stop) -> Answer:
    """Read the store at `path`; gives up when this thread has had the question's time of the processor, or `stop` says
    why. Raises TraceStoreError or BadFilter."""
    found = QUESTIONS.get(question.name)
    if found is None:
        raise TraceStoreError(f"no question `{question.name:.64}` is known here")
    deadline = time.thread_time() + question.time_limit_s

    def is_over() -> TraceStoreError | None:
        return too_long(question.time_limit_s) if time.thread_time() > deadline else stop()

    return found(Store(path, is_over), question.args)


def _page(store: Store, args: Args) -> Answer:
    rows, mark = store.reader.page(_query(args))
    return _json({"traces": rows, "next": None if mark is None else write_mark(mark)})


def _one(store: Store, args: Args) -> Answer:
    found = store.reader.get(args["id"])
    if found is None:
        return Answer({})
    return _json(found, {"trace_id": found["trace_id"], "request_id": found["request_id"]})


def _tail(store: Store, args: Args) -> Answer:
    mark, rows = store.reader.tail(args["after"], _query(args))
    # JSON holds no line ends, so no trace can end its own event (S15)
    events = "".join(f"id: {own}\nevent: trace\ndata: {encode_json(row)}\n\n" for own, row in rows)
    return Answer({"mark": mark, "first": rows[0][0] if rows else None, "count": len(rows)}, events.encode())


def _sheet(store: Store, args: Args) -> Answer:
    rows, mark = store.reader.page(_query(args))
    return Answer(
        {"mark": None if mark is None else list(mark)}, sheet(args["kind"], rows, is_first=args["is_first"]).encode()
    )


def _report(store: Store, args: Args) -> Answer:
    found = store.reader.summary(args["by"], args["since_ns"])
    return _json({"by": args["by"], "since": args["since"], "rows": found["rows"], "totals": found["totals"]})


def _figures(store: Store, args: Args) -> Answer:
    since_ns, until_ns, filters = args["since_ns"], args["until_ns"], args["filters"]
    if since_ns is None:
        since_ns = _first_ns(store.reader, filters, until_ns)
    since_ns = min(since_ns, until_ns - 1)
    found = store.reader.overview(since_ns, until_ns, by=args["by"], step_s=args["step_s"], filters=filters)
    is_of_all = not filters and not args["ignored"]
    return _json({**found, "ignored": args["ignored"], "projection": store.reader.projection() if is_of_all else None})


def _totals(store: Store, args: Args) -> Answer:
    found = {name: store.reader.totals(since_ns) for name, since_ns in args["since_ns"].items()}
    return _json({span: {name: row.get(name) for name in args["names"]} for span, row in found.items()})


def _session(store: Store, args: Args) -> Answer:
    kind, value = args["kind"], args["value"]
    if kind == "session":
        found = store.sessions.of_session(value, args["tenant"])
    elif kind == "conversation":
        found = store.sessions.of_conversation(value)
    elif kind == "key":
        found = store.sessions.of_key(value, args["since_ns"])
    else:
        raise BadFilter(f"`{kind:.64}` has no figures, expected `session`, `conversation` or `key`")
    return Answer({}) if found is None else _json(found, {"requests": found["requests"]})


QUESTIONS: Mapping[str, Callable[[Store, Args], Answer]] = MappingProxyType(
    {
        "page": _page,
        "one": _one,
        "tail": _tail,
        "sheet": _sheet,
        "report": _report,
        "figures": _figures,
        "totals": _totals,
        "session": _session,
    }
)


def _json(value: Any, head: Args | None = None) -> Answer:
    return Answer(head or {}, encode_json(value).encode())


def _query(args: Args) -> TraceQuery:
    """The query again; JSON has made a list of the mark."""
    fields = dict(args["query"])
    if fields.get("before") is not None:
        started_at_ns, trace_id = fields["before"]
        fields["before"] = (started_at_ns, trace_id)
    return TraceQuery(**fields)


def _first_ns(reader: SqliteTraceReader, filters: Mapping[str, str], until_ns: int) -> int:
    """When the first hour with a request began: a chart of all time need not begin before."""
    since_ns, end_ns = until_ns - _ALL_DAYS * _DAY_NS, until_ns
    for step_s in (86_400, 3_600):
        found = reader.overview(since_ns, end_ns, step_s=step_s, filters=filters)
        counts = [series["points"]["requests"] for series in found["series"]]
        starts = [time_s for at, time_s in enumerate(found["times"]) if any(count[at] for count in counts)]
        if not starts:
            return max(since_ns, until_ns - _DAY_NS)
        since_ns = int(starts[0]) * 10**9
        end_ns = min(since_ns + step_s * 10**9, until_ns)
    return since_ns
