"""The state of the router on one screen, what one session has come to, and captured content, all as JSON.

`GET /status` says what is wrong now (`problems`) and what is worth a look (`warnings`), each with the next step.
`GET /session` is made to be polled. `GET /traces/ID/content` is the one place where words of clients leave the house:
it wants the admin token, and where no token is set nobody reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from router.errors import BadFilter, TraceStoreError
from router.trace import asking
from router.trace.export import started_at
from router.trace.filters import read_since
from router.web.answer import encoded_answer, error_answer, json_answer
from router.web.ask import Asker
from router.web.gate import is_foreign, refuse_foreign

Figures = Mapping[str, Any]

_HOUR_NS = 3_600 * 10**9
_KEY_SINCE = "1d"
_FEW = 5  # attempts: with fewer of them a lane is not called broken
_MEMORY_SHORT = 85  # percent of the limit: from here on requests are turned away
_MANY_WAIT = 5_000  # traces: a store that keeps up has a few hundred at most
_MANY_CONTENTS = 500
_LOST = ("dropped", "thinned", "failed", "set_aside")
_MONEY = ("requests", "cost_usd", "baseline_usd", "saved_usd", "saved_share", "unknown_cost", "hit_rate")


@dataclass(frozen=True, slots=True)
class StatusServices:
    """What the rooms of status need beside the trace store.

    `recent` gives the figures of the last minutes, `gauges` those of each part by name (as in the metrics), `links` are
    the names of those that are links to Redis, `breakers` gives the state of each lane's. `content` gives what was
    captured under a trace id; None: there is none. `now_ns` is Unix time.
    """

    readiness: Callable[[], tuple[bool, Figures]]
    policy_status: Callable[[], Figures]
    recent: Callable[[], Figures]
    gauges: Callable[[], Mapping[str, Figures]]
    now_ns: Callable[[], int]
    links: tuple[str, ...] = ()
    breakers: Callable[[], list[dict[str, Any]]] = list
    cache_kind: str = "off"
    capture: str = "off"
    version: str = ""
    started_at_ns: int = 0
    content: Callable[[str], list[dict[str, Any]]] | None = None
    has_token: bool = False


class StatusRooms:
    """The endpoints."""

    def __init__(self, services: StatusServices, asker: Asker) -> None:
        self._services = services
        self._asker = asker

    def routes(self) -> list[BaseRoute]:
        """The routes of all rooms."""
        return [
            Route("/status", self.status),
            Route("/session", self.session),
            Route("/traces/{some_id}/content", self.content),
        ]

    async def status(self, request: Request) -> Response:
        """The whole state."""
        money, reason = {}, None
        if self._asker.is_on:
            now_ns = self._services.now_ns()
            since_ns = {"hour": now_ns - _HOUR_NS, "day": now_ns - 24 * _HOUR_NS}
            try:
                found = await self._asker.ask_for(request, asking.totals(since_ns, _MONEY))
                money = json.loads(found.body, parse_float=Decimal)  # the very digits
            except TraceStoreError as error:  # said below; the rest of the screen does not need the store
                reason = error
        return json_answer(describe(self._services, money, reason))

    async def session(self, request: Request) -> Response:
        """One session (`session`, with `tenant` if it is known), conversation or key (`key`, `since`)."""
        params = dict(request.query_params)
        self._asker.check()
        question = _question(params, self._services.now_ns())
        found = await self._asker.ask_for(request, question, in_turn=True)
        if not found.head:
            return error_answer(404, "not_found_error", "no request of that is in the trace store")
        return encoded_answer(found.body)

    async def content(self, request: Request) -> Response:
        """What was captured of a request, by any id of its trace; newest first where several share a trace id."""
        services = self._services
        if not services.has_token:
            return error_answer(403, "permission_error", "content is shown only with a token: set `admin_token`")
        if is_foreign(request):
            return refuse_foreign()
        if services.content is None:
            return error_answer(404, "not_found_error", "no content is captured: set `capture`")
        some_id = request.path_params["some_id"]
        some_id = await self._trace_id(request, some_id)
        contents = await anyio.to_thread.run_sync(partial(services.content, some_id))
        if not contents:
            return error_answer(404, "not_found_error", f"no content is kept for `{some_id[:80]}`")
        return json_answer({"trace_id": some_id, "contents": contents})

    async def _trace_id(self, request: Request, some_id: str) -> str:
        """The trace that an id means; the id itself where no trace store can say."""
        try:
            found = await self._asker.ask_for(request, asking.one(some_id))
        except TraceStoreError:
            return some_id
        return str(found.head.get("trace_id", some_id))


def _question(params: dict[str, str], now_ns: int) -> asking.Question:
    given = [name for name in ("session", "conversation", "key") if params.get(name)]
    if len(given) != 1:
        raise BadFilter("expected exactly one of `session`, `conversation` and `key`")
    name = given[0]
    value = params.pop(name)
    if len(value) > 2_000:
        raise BadFilter(f"`{name}` has {len(value)} characters, expected at most 2000")
    tenant = params.pop("tenant", "") if name == "session" else ""
    since_ns = read_since(params.pop("since", "") or _KEY_SINCE, now_ns) if name == "key" else 0
    unknown = [each for each, text in params.items() if text]
    if unknown:
        raise BadFilter(f"`{unknown[0]:.64}` does not go with `{name}`")
    return asking.session(name, value, tenant=tenant or None, since_ns=since_ns)


def describe(
    services: StatusServices, money: Figures, no_money_because: TraceStoreError | None = None
) -> dict[str, Any]:
    """The document of `/status`. It is healthy when `problems` is empty."""
    is_ready, _ = services.readiness()
    policy, recent, gauges = services.policy_status(), services.recent(), services.gauges()
    now_ns = services.now_ns()
    breakers = services.breakers()
    problems = [*_serving(is_ready, policy), *_redis(services.links, gauges), *_traffic(recent), *_sinks(gauges)]
    problems += [*_load(gauges), *_breakers(breakers)]
    if no_money_because is not None:
        then = no_money_because.hint or "look at the log of the router"
        problems.append(_note(f"the trace store cannot be asked: {no_money_because.message}", then))
    return {
        "is_healthy": not problems,
        "is_serving": is_ready,
        "version": services.version,
        "now": started_at(now_ns),
        "uptime_s": round(max(0, now_ns - services.started_at_ns) / 1e9, 1),
        "policy": {
            "revision": policy.get("revision"),
            "is_current": policy.get("is_current"),
            "from_history": policy.get("from_history"),
            "source": policy.get("source", "folder"),
            "fleet": policy.get("fleet"),
            "loaded_at": _moment(policy.get("loaded_at")),
            "last_error": policy.get("last_error") or None,
            "last_error_at": _moment(policy.get("last_error_at")),
            "warnings": len(policy.get("warnings", ())),
        },
        "recent": recent,
        "money": money or None,
        "cache": {"kind": services.cache_kind, "hit_share": recent.get("cache_hit_share"), **gauges.get("cache", {})},
        "redis": {name: gauges[name] for name in services.links if name in gauges},
        "load": gauges.get("admission"),
        "upstream": gauges.get("upstream_pool"),
        "breakers": breakers,
        "retry_budget": gauges.get("retry_budget"),
        "traces": gauges.get("traces"),
        "capture": {"setting": services.capture, **gauges.get("capture", {})},
        "problems": problems,
        "warnings": list(_worth_a_look(services, policy, recent, gauges)),
    }


def _note(what: str, then: str) -> dict[str, str]:
    return {"what": what, "next": then}


def _moment(unix_s: object) -> str | None:
    return started_at(int(unix_s * 1e9)) if isinstance(unix_s, (int, float)) else None


def _serving(is_ready: bool, policy: Figures) -> Iterator[dict[str, str]]:
    if not is_ready:
        yield _note(
            "the router does not serve: it starts, stops or has no memory left", "ask again, or look at its log"
        )
    if policy.get("from_history"):
        yield _note(
            "the policies folder was broken at the start; a kept revision serves",
            "`router policy check` shows the place; mend the folder",
        )
    elif policy.get("is_current") is False:
        first = str(policy.get("last_error") or "").strip().partition("\n")[0]
        yield _note(
            f"the policies folder is not what serves; its last edit was refused: {first}",
            "`router policy check` shows the place; until it is mended the last good set serves",
        )
    refused = (policy.get("fleet") or {}).get("refused")
    if refused:
        first = str(refused["problem"]).strip().partition("\n")[0]
        yield _note(
            f"version #{refused['number']} of the pushed policies was refused: {first}",
            "`/policy` has all of it; `router policy rollback`, or push policies that this process takes",
        )
    if trouble := (policy.get("fleet") or {}).get("trouble"):
        yield _note(
            f"Redis does not do what pushed policies need: {trouble}",
            "the log says what was asked; the rights that its user needs are in docs/operations.md",
        )
    if (policy.get("fleet") or {}).get("is_behind"):
        yield _note(
            "Redis has lost the version of the pushed policies that this process follows",
            "push it again: a process that starts now does not know it",
        )


def _redis(links: tuple[str, ...], gauges: Mapping[str, Figures]) -> Iterator[dict[str, str]]:
    for name in links:
        if gauges.get(name, {}).get("is_up") == 0:
            yield _note(
                f"Redis does not answer (`{name}`): requests are served without what it shares",
                "look whether it is up and reachable; the link comes back by itself",
            )


def _traffic(recent: Figures) -> Iterator[dict[str, str]]:
    requests, errors = recent["requests"], recent["errors"]
    if requests >= 2 * _FEW and errors * 4 > requests:
        yield _note(f"{errors} of the last {requests} requests failed", "`router trace ls --since 5m` shows how")
    for lane, outcomes in recent["lanes"].items():
        tried = sum(outcomes.values()) - outcomes.get("client_closed", 0) - outcomes.get("rejected", 0)
        if tried >= _FEW and outcomes.get("ok", 0) * 2 < tried:
            ends = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if outcome != "ok")
            yield _note(
                f"lane `{lane}` answered {outcomes.get('ok', 0)} of {tried} attempts: {ends}",
                f"`router trace ls --lane {lane} --since 5m`; a fallback lane in the rule takes over meanwhile",
            )


def _breakers(breakers: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    for each in breakers:
        if each["state"] == "open":
            lane, model = each["lane"], each["model"][:80]
            yield _note(
                f"lane `{lane}` ({model}) is left alone after failures, for {each['open_for_s']:g} s",
                "other lanes take over, and it is tried again by itself; `router trace ls` shows how it failed",
            )


def _load(gauges: Mapping[str, Figures]) -> Iterator[dict[str, str]]:
    admission = gauges.get("admission", {})
    if admission.get("is_braking"):
        yield _note(
            "the router has more to do than it can; tenants over their share are turned away (529)",
            "more processes; `router_turned_away_total` shows whose requests they are",
        )
    if admission.get("memory_percent", 0) >= _MEMORY_SHORT:
        yield _note(
            f"memory is short ({admission['memory_percent']}% of the limit): requests are turned away (529)",
            "a higher limit, a smaller `cache` or `max_body_mb`, or more processes",
        )


def _sinks(gauges: Mapping[str, Figures]) -> Iterator[dict[str, str]]:
    for name, most, what in (("traces", _MANY_WAIT, "trace store"), ("capture", _MANY_CONTENTS, "capture file")):
        queued = gauges.get(name, {}).get("queued", 0)
        if queued > most:
            yield _note(
                f"the {what} does not keep up: {queued:,} records wait in memory",
                "the log says what the file refuses: a full disk, missing rights, another writer",
            )


def _worth_a_look(
    services: StatusServices, policy: Figures, recent: Figures, gauges: Mapping[str, Figures]
) -> Iterator[dict[str, str]]:
    for name, what in (("traces", "traces"), ("capture", "captured contents")):
        lost = {each: gauges.get(name, {}).get(each, 0) for each in _LOST}
        if any(lost.values()):
            said = ", ".join(f"{count:,} {each.replace('_', ' ')}" for each, count in lost.items() if count)
            yield _note(f"{what} since the start: {said}", "the log says when and why")
    if gauges.get("trace_reader", {}).get("is_refused"):
        yield _note(
            "no process can be started for the questions of the page: answering them slows requests",
            "the log says why: a limit of processes, or of memory",
        )
    if services.capture != "off":
        yield _note(
            f"the content of requests is being captured (`{services.capture}`)", "`capture: off` when you have seen it"
        )
    if other := (policy.get("fleet") or {}).get("other_revision"):
        yield _note(
            f"{other} of {policy['fleet']['processes']} processes serve another revision of the policies",
            "`router policy pushed` lists them; a folder that reaches every replica, or a push, makes them one",
        )
    if policy.get("warnings"):
        yield _note(f"{len(policy['warnings'])} warnings about the policies", "`router policy check` lists them")
    if recent.get("unknown_cost"):
        yield _note(
            f"{recent['unknown_cost']} requests of the last minutes have an unknown cost",
            "a model without a price: add it to the catalogue",
        )
    if (gauges.get("upstream_pool") or {}).get("waiting"):
        yield _note("requests wait for a connection upstream", "the pool is full: more processes, or a faster upstream")
