"""What one session, conversation or key has come to: the question of a status line, asked again and again.

A session is found by its hash, which needs the tenant. Where the asker does not name one, the tenants of the newest
requests are tried: a session that is under way has one of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from router.facts.identity import session_key
from router.trace.export import started_at, usd
from router.trace.figures import exact, tokens
from router.trace.money import KNOWN_SQL, METERED_SQL
from router.trace.question import Ask, Stop, never, question
from router.trace.rollup import MICRO

_LIMIT_S = 2.0
_LATEST = 2_000  # requests whose tenants are tried
_SUMS = (
    f"COUNT(*), coalesce(SUM(outcome = 'ok'), 0), {exact('cost_pusd', KNOWN_SQL)},"
    f" {exact('baseline_pusd', KNOWN_SQL)}, coalesce(SUM(NOT ({KNOWN_SQL})), 0),"
    " coalesce(SUM(cache IN ('hit', 'coalesced')), 0), coalesce(SUM(cache = 'miss'), 0),"
    f" {tokens('input_tokens + cache_read_tokens + cache_write_5m_tokens + cache_write_1h_tokens')},"
    f" {tokens('output_tokens')}, MIN(started_at_ns)"
)
_LAST = "started_at_ns, trace_id, model_asked, model_sent, model_answered, lane, rule, outcome"


class Sessions:
    """Questions to the trace store about one session. Every one raises TraceStoreError when it cannot be answered."""

    def __init__(self, path: Path | str, *, time_limit_s: float = _LIMIT_S, stop: Stop = never) -> None:
        self._path = Path(path)
        self._time_limit_s = time_limit_s
        self._stop = stop

    def of_session(self, session: str, tenant: str | None = None) -> dict[str, Any] | None:
        """The figures of the session that a client calls `session`; None when no request of it is there."""
        with question(self._path, self._time_limit_s, self._stop) as ask:
            if tenant is not None:
                tenants = [tenant]
            else:
                newest = f"SELECT tenant FROM traces ORDER BY started_at_ns DESC, trace_id DESC LIMIT {_LATEST}"  # noqa: S608 - constants of the house
                tenants = [row[0] for row in ask(f"SELECT DISTINCT tenant FROM ({newest})", ())]  # noqa: S608 - likewise
            for each in tenants:
                found = _figures(ask, "session", session_key(each, session), 0)
                if found is not None:
                    return found
        return None

    def of_conversation(self, conversation: str) -> dict[str, Any] | None:
        """The figures of a conversation, by the hash that its traces name."""
        with question(self._path, self._time_limit_s, self._stop) as ask:
            return _figures(ask, "conversation", conversation, 0)

    def of_key(self, key: str, since_ns: int) -> dict[str, Any] | None:
        """The figures of a key since then, in Unix nanoseconds: a key has no end, so somebody must name a beginning."""
        with question(self._path, self._time_limit_s, self._stop) as ask:
            return _figures(ask, "key", key, since_ns)


def _figures(ask: Ask, column: str, value: str, since_ns: int) -> dict[str, Any] | None:
    where = f"{METERED_SQL} AND {column} = ? AND started_at_ns >= ?"
    (sums,) = ask(f"SELECT {_SUMS} FROM traces WHERE {where}", (value, since_ns))  # noqa: S608 - constants of the house
    requests, ok, cost, cost_rest, baseline, baseline_rest, unknown, hits, misses, input_, output, first_ns = sums
    cost, baseline = cost * MICRO + cost_rest, baseline * MICRO + baseline_rest
    if not requests:
        return None
    order = "ORDER BY started_at_ns DESC, trace_id DESC LIMIT 1"
    (last,) = ask(f"SELECT {_LAST} FROM traces WHERE {where} {order}", (value, since_ns))  # noqa: S608 - likewise
    last_ns, trace_id, asked, sent, answered, lane, rule, outcome = last
    looked_up = hits + misses
    return {
        column: value,
        "requests": requests,
        "not_ok": requests - ok,
        "first_at": started_at(first_ns),
        "last_at": started_at(last_ns),
        "last_trace_id": trace_id,
        "model_asked": asked,
        "model": answered or sent,
        "lane": lane,
        "rule": rule,
        "outcome": outcome,
        "cost_usd": usd(cost),
        "baseline_usd": usd(baseline),
        "saved_usd": usd(baseline - cost),
        "saved_share": round((baseline - cost) / baseline, 4) if baseline else None,
        "unknown_cost": unknown,
        "cache_hits": hits,
        "cache_hit_share": round(hits / looked_up, 4) if looked_up else None,
        "input_tokens": input_,
        "output_tokens": output,
    }
