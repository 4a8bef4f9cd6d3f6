"""The Message Batches paths: each item of a new batch is routed, and what belongs to the batch finds its way back.

A new batch is planned as a whole before it is sent (`serve/batch_plan.py`), and sent once: a lost answer is an unknown
outcome, and nobody sends it again. What was decided is kept before the batch is sent, under a ticket, and linked to the
batch's id as soon as that is known; so the results can be booked by whichever process they are fetched through.

A batch's `results_url` is absolute and client libraries follow it, so it is made to point back at the router.

Where the router holds the upstream's key, all tenants share one workspace there, and the upstream cannot tell them
apart. Then a batch is its tenant's alone: to any other it does not exist, and lists are thinned out. Whose it is must
be known: what was made elsewhere with the same key, or is older than what is kept, is nobody's here.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

import orjson

from router.errors import ClientGone, InternalError, JobsUnavailable, OutcomeUnknown, UnknownTarget, WrongMethod
from router.seams import BatchDecisions
from router.serve.ask import json_object
from router.serve.batch_kept import KeptAnswers, with_items, with_items_of_each
from router.serve.batch_plan import BatchPlan, BatchPlanner, counted
from router.serve.batch_results import batch_named
from router.serve.exchange import ClientWatch, Exchange
from router.serve.headers import RawHeaders, header_value
from router.serve.parts import Outgoing, Parts
from router.serve.passthrough import Passthrough
from router.wire.batch import Spliced
from router.wire.messages import object_spans, value_end

PATH = "/v1/messages/batches"
_MOST_PAGES = 6  # of the upstream's list that are looked through for one page of a tenant's; the first as it was asked
_MOST_ENTRIES = 1_000  # of a page. Source: the API's reference, "List Message Batches"
_PAGE = 20  # entries, where no limit is given. Source: as above
_MOST_NAMES = 50  # lanes, models and rules that a trace counts
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-/")
_log = logging.getLogger("router")


class Batches:
    """The paths of the family. They are sent through `passthrough`, which meters results."""

    def __init__(self, parts: Parts, passthrough: Passthrough) -> None:
        self._parts = parts
        self._passthrough = passthrough
        store = parts.decisions
        self._kept = None if store is None else KeptAnswers(store, parts.planner.policies)
        self._one_large = asyncio.Lock()

    async def answer(self, exchange: Exchange) -> Outgoing:
        """Answer one request. Raises RouterError when there is no answer to give."""
        trace = exchange.trace
        trace.batch, has_results = batch_named(trace.path)
        if trace.path == PATH and trace.method == "POST":
            return await self._create(exchange)
        store = self._parts.decisions
        if self._parts.holds_key and trace.method != "OPTIONS":
            assert store is not None  # where the router holds the key there is one
            if trace.path == PATH:
                if trace.method != "GET":
                    raise WrongMethod(f"method `{trace.method}` is not allowed here, expected `GET` or `POST`")
                return await self._list(exchange, store)
            await _check_owner(exchange, store)
        if has_results and trace.method == "GET" and trace.batch is not None:
            return await self._results(exchange, trace.batch)
        # A cancellation is worth more than its counts; all else waits until they can be told.
        kept = None
        if self._kept is not None and trace.batch is not None and trace.method in ("GET", "POST"):
            kept = await self._kept.of(trace.batch, is_needed=trace.method == "GET")
        status, headers, relay, body = await self._passthrough.send(exchange, is_read=True)
        if body is not None and status == 200:
            if kept is not None:
                body = with_items(body, kept.items)
            elif trace.path == PATH and trace.method == "GET":
                body = await self._whole_page(body)
        body, headers = self._own_urls(exchange, status, headers, body)
        return Outgoing(status, [*headers, *_own_headers(exchange)], body, relay)

    async def _results(self, exchange: Exchange, batch: str) -> Outgoing:
        """The results of a batch: the upstream's lines, then those that are kept here. Raises JobsUnavailable."""
        kept = None if self._kept is None else await self._kept.lines(batch)
        if kept is not None:  # what follows is no part of what the upstream could give a part of
            incoming = exchange.incoming
            headers = [header for header in incoming.headers if header[0] not in (b"range", b"if-range")]
            exchange.incoming = replace(incoming, headers=headers)
        status, headers, relay, body = await self._passthrough.send(exchange, is_read=True, results_of=batch, kept=kept)
        return Outgoing(status, [*headers, *_own_headers(exchange)], body, relay)

    async def _create(self, exchange: Exchange) -> Outgoing:
        """Plan a batch, send it once, and note what it became."""
        trace, store = exchange.trace, self._parts.decisions
        ticket = secrets.token_hex(16)
        if self._kept is not None:
            self._kept.can_be()  # once there can be such batches, that is never forgotten
        try:
            plan = await BatchPlanner(self._parts, exchange, ticket, self._one_large).planned()
            trace.facts = _facts(plan)
            if self._parts.holds_key and not plan.is_kept:
                message = "whose the batch is cannot be kept now, and its results could never be fetched"
                raise JobsUnavailable(message, retryable=True)
            own = _to_the_end(exchange)
            status, headers, relay, body = await self._passthrough.send(own, is_read=True, body=plan.body)
        except ClientGone as exc:
            if not trace.attempts:
                await _forget(store, ticket)
            elif exchange.watch.is_stopping:
                message = (
                    "the outcome is unknown: the router was stopped while it sent the batch; see whether it is there"
                )
                raise OutcomeUnknown(message) from exc
            raise
        except OutcomeUnknown:  # there may be such a batch now
            raise
        except BaseException as exc:
            if isinstance(exc, Exception) and any((each.status or 500) < 300 for each in trace.attempts):
                message = (
                    "the outcome is unknown: the upstream's answer could not be read; see whether the batch is there"
                )
                raise OutcomeUnknown(message) from exc
            await _forget(store, ticket)
            raise
        if status >= 400:
            await _forget(store, ticket)
        elif status < 300:
            body, headers = await self._made(exchange, ticket, status, headers, body, plan.cached or 0)
        return Outgoing(status, [*headers, *_own_headers(exchange), *_told(exchange, plan)], body, relay)

    async def _made(
        self, exchange: Exchange, ticket: str, status: int, headers: RawHeaders, body: bytes | None, cached: int
    ) -> tuple[bytes | None, RawHeaders]:
        """Note whose the new batch is, and give its answer.

        Raises no error: the batch is there, and a client that was told otherwise would make it once more.
        """
        trace, store = exchange.trace, self._parts.decisions
        try:
            batch = None if body is None else (json_object(body) or {}).get("id")
            if not isinstance(batch, str):
                _log.error("a batch was made, and its answer names no id that can be read (trace %s)", trace.trace_id)
                return body, headers
            trace.batch = batch
            if store is not None and not await store.link(ticket, batch, exchange.incoming.tenant):
                _log.error("batch `%s`: what was decided is not linked to it yet (trace %s)", batch, trace.trace_id)
            if cached and body is not None:
                body, headers = with_items(body, cached), _without_length(headers)
            return self._own_urls(exchange, status, headers, body)
        except Exception:
            said = "batch `%s` was made, but not linked to what was decided (trace %s)"
            _log.exception(said, trace.batch, trace.trace_id)
            return body, headers

    async def _list(self, exchange: Exchange, store: BatchDecisions) -> Outgoing:
        """A page of the tenant's own batches: the upstream's pages without those of others.

        A page on which none is left is passed over, because client libraries end at an empty one. What is passed over
        is asked for in the largest pages there are, and only so many: then the list ends, and names nobody else's.
        """
        incoming = exchange.incoming
        query = dict(parse_qsl(incoming.query.decode("latin-1"), keep_blank_values=True))
        await _check_cursors(query, incoming.tenant, store)
        is_backward = "before_id" in query
        most = _limit(query)
        for number in range(1, _MOST_PAGES + 1):
            target = incoming.path + (b"?" + urlencode(query).encode() if query else b"")
            status, headers, relay, body = await self._passthrough.send(exchange, is_read=True, target=target)
            page = json_object(body) if body is not None and status == 200 else None
            if body is None or page is None or not isinstance(page.get("data"), list):
                if status == 200:  # what cannot be read cannot be thinned out
                    if relay is not None:
                        relay.abort()
                    raise JobsUnavailable("the upstream's list of batches cannot be read")
                return Outgoing(status, [*headers, *_own_headers(exchange)], body, relay)
            names = [entry.get("id") if isinstance(entry, dict) else None for entry in page["data"]]
            asked = [name for name in names if isinstance(name, str)]
            owners = await store.owners(asked) if asked else {}
            places = [
                at for at, name in enumerate(names) if isinstance(name, str) and owners.get(name) == incoming.tenant
            ]
            cursor = page.get("first_id" if is_backward else "last_id")
            is_last = page.get("has_more") is not True or not isinstance(cursor, str) or number == _MOST_PAGES
            if places or is_last:
                shown = places[-most:] if is_backward else places[:most]
                has_more = bool(places) and (len(shown) < len(places) or page.get("has_more") is True)
                thin = await asyncio.to_thread(_thinned, body, names, shown, has_more)
                own, headers = self._own_urls(exchange, status, headers, await self._whole_page(thin))
                return Outgoing(status, [*_without_length(headers), *_own_headers(exchange)], own, None)
            query["before_id" if is_backward else "after_id"] = str(cursor)
            query["limit"] = str(_MOST_ENTRIES)
        raise InternalError("a page of the list of batches was neither shown nor passed over")

    async def _whole_page(self, body: bytes) -> bytes:
        """A page of a list with what is kept of each batch in its counts. Raises JobsUnavailable."""
        page = json_object(body)
        entries = None if page is None else page.get("data")
        if self._kept is None or not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            return body
        names = [name if isinstance(name := each.get("id"), str) else "" for each in entries]
        kept = await self._kept.of_all([name for name in names if name])
        if not kept:
            return body
        elements = _elements(body, object_spans(body)["data"][0])
        more = [kept[name].items if name in kept else 0 for name in names]
        return await asyncio.to_thread(with_items_of_each, body, elements, more)

    def _own_urls(
        self, exchange: Exchange, status: int, headers: RawHeaders, body: bytes | None
    ) -> tuple[bytes | None, RawHeaders]:
        if body is None or status >= 400 or b'"results_url"' not in body:
            return body, headers
        return _with_own_results_url(body, self._passthrough.base_url(exchange)), _without_length(headers)


def _without_length(headers: RawHeaders) -> RawHeaders:
    return [(name, value) for name, value in headers if name != b"content-length"]


def _to_the_end(exchange: Exchange) -> Exchange:
    """The same request, whose client may leave: a batch that is being made is made, and must be known by its id.

    Raises ClientGone when the client has left already.
    """
    whole, own = exchange.watch, ClientWatch()

    def stopped() -> None:
        if whole.is_stopping:
            own.stop()

    whole.during(stopped)
    return replace(exchange, watch=own)


async def _forget(store: BatchDecisions | None, ticket: str) -> None:
    """Let go of what was decided about a batch that there is not. What fails here hides no error and no answer."""
    if store is not None:
        try:
            await store.forget(ticket)
        except Exception:
            _log.exception("what was decided about a batch that was not made stays until it is too old")


async def _check_owner(exchange: Exchange, store: BatchDecisions) -> None:
    """Raises UnknownTarget for a batch that is not the tenant's, in whatever way the path names it."""
    trace, path = exchange.trace, exchange.trace.path
    is_plain = path.startswith(PATH + "/") and _PLAIN.issuperset(path) and "//" not in path and path[-1] != "/"
    batch = trace.batch if is_plain else None
    if batch is None or (await store.owners([batch])).get(batch) != exchange.incoming.tenant:
        shown, trace.batch = trace.batch or "", None
        raise UnknownTarget(f"Batch not found: {shown[:128]}")


async def _check_cursors(query: Mapping[str, str], tenant: str, store: BatchDecisions) -> None:
    """Raises UnknownTarget where a list is to begin at somebody else's batch."""
    named = [query[name] for name in ("after_id", "before_id") if query.get(name)]
    if named:
        owners = await store.owners(named)
        for batch in named:
            if owners.get(batch) != tenant:
                raise UnknownTarget(f"Batch not found: {batch[:128]}")


def _limit(query: Mapping[str, str]) -> int:
    """How many batches a page is to have at the most; what is no such number the upstream has refused by then."""
    limit = query.get("limit", "")
    return int(limit) if limit.isascii() and limit.isdecimal() and 0 < int(limit[:9]) <= _MOST_ENTRIES else _PAGE


def _thinned(body: bytes, names: list[Any], shown: list[int], has_more: bool) -> bytes:
    """The page with the entries at the places `shown` alone, each byte for byte; its ends are named by them."""
    spans = object_spans(body)
    elements = _elements(body, spans["data"][0])
    kept = [body[slice(*elements[at])] for at in shown]
    ends = {
        "data": b"[" + b",".join(kept) + b"]",
        "first_id": orjson.dumps(names[shown[0]] if shown else None),
        "last_id": orjson.dumps(names[shown[-1]] if shown else None),
        "has_more": b"true" if has_more else b"false",
    }
    spliced = Spliced(body)
    for key in sorted(ends.keys() & spans.keys(), key=lambda name: spans[name]):
        spliced.replace(*spans[key], ends[key])
    return b"".join(spliced.pieces(1 << 20))


def _elements(body: bytes, start: int) -> list[tuple[int, int]]:
    """Where the elements of the list of objects that begins at `start` stand."""
    # Read as the one value of an object, each in turn: pages are small.
    found: list[tuple[int, int]] = []
    at = start + 1
    while True:
        while body[at] in b" \t\r\n,":
            at += 1
        if body[at] == 0x5D:
            return found
        end = value_end(body, at)
        found.append((at, end))
        at = end


def _with_own_results_url(body: bytes, base_url: str) -> bytes:
    """The body with what stands before the path of each `results_url` replaced; nothing else changes."""
    page = json_object(body)
    if page is None:
        return body
    entries = page.get("data")
    for batch in entries if isinstance(entries, list) else [page]:
        url = batch.get("results_url") if isinstance(batch, dict) else None
        if isinstance(url, str) and "/v1/messages/batches/" in url:
            own = base_url + url[url.index("/v1/messages/batches/") :]
            body = body.replace(orjson.dumps(url), orjson.dumps(own))
    return body


def _facts(plan: BatchPlan) -> dict[str, Any]:
    """What a trace says of a batch: how many items, and where they went."""
    return {
        "items": plan.items,
        "moved": plan.moved,
        "edited": plan.edited,
        "unrouted": plan.unrouted,
        "lanes": dict(plan.lanes.most_common(_MOST_NAMES)),
        "models": dict(plan.models.most_common(_MOST_NAMES)),
        "rules": dict(plan.rules.most_common(_MOST_NAMES)),
        "decisions_kept": plan.is_kept,
        **({} if plan.cached is None else {"cached": plan.cached}),
    }


def _own_headers(exchange: Exchange) -> RawHeaders:
    return [(b"x-router-trace", exchange.trace.trace_id.encode()), (b"x-router-cache", b"bypass")]


def _told(exchange: Exchange, plan: BatchPlan) -> RawHeaders:
    """The headers of a new batch: `haiku=900, sonnet=100` and the like, the most frequent first."""
    trace = exchange.trace
    told = [(b"x-router-batch-items", str(plan.items).encode())]
    if plan.cached is not None:
        told.append((b"x-router-batch-cached", str(plan.cached).encode()))
    for name, counts in ((b"lane", plan.lanes), (b"model", plan.models), (b"rule", plan.rules)):
        if counts:
            told.append((b"x-router-" + name, header_value(counted(counts))))
    told.append((b"x-router-policy", header_value(f"{trace.policy}@{trace.revision}")))
    if plan.edited:
        told.append((b"x-router-edits", header_value(f"items={plan.edited}")))
    return told
