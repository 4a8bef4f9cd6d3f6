"""`Prefer: respond-async` on `POST /v1/messages`: accepted with 202, answered later at half the price (RFC 7240).

A request whose client can wait becomes a job. It is in the store before its client hears of it; from then on the keeper
(`serve/deferred/keeper.py`) sees to it that it ends, exactly once. Its client asks at the address in `Location`: 202
until it has ended, then exactly the Message, or the error, that the API gave.

A preference is no command: where it cannot be honoured (a stream, what batches do not take, a rule with `deferred:
deny`, no store that outlives the process) the request is answered at once, without `Preference-Applied`, and the trace
says why. A rule with `deferred: require` takes no other requests.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable

import orjson

from router.catalog.lookup import Catalog
from router.errors import InvalidRequest, JobsUnavailable, UnknownTarget, WrongMethod
from router.jobs.deferred import JOB_ID, PREFIX, Job, JobView
from router.seams import CacheBackend, JobStore
from router.serve.deferred.keeper import Keeper
from router.serve.deferred.words import PATH, Meta, Note, Said, deleted_body, group_of, item_size, pending_body
from router.serve.exchange import Exchange
from router.serve.headers import RawHeaders, first, header_value, router_headers, upstream_headers, usd
from router.serve.parts import Outgoing
from router.serve.plan import Plan
from router.serve.webhook import Webhooks
from router.trace.record import DEFERRED
from router.wire.batch import wrong_in_batches
from router.wire.prefer import Preferences, read_prefer

LONGEST_WAIT_S = 600.0  # that a connection is held, whatever `wait` asks for
_MOST_RETRY_AFTER_S = 30
_SAME = b"idempotency-key"


class Deferral:
    """Takes requests into the lane, and answers for them. `base_url` gives the address that a client uses.

    `holds_key` says that the router holds the upstream's key: then all jobs are sent with one credential.
    """

    def __init__(
        self,
        store: JobStore,
        keeper: Keeper,
        catalog: Catalog,
        webhooks: Webhooks,
        base_url: Callable[[Exchange], str],
        wall_clock: Callable[[], float],
        *,
        holds_key: bool,
        cache: CacheBackend | None = None,
    ) -> None:
        self._store = store
        self._keeper = keeper
        self._catalog = catalog
        self._webhooks = webhooks
        self._base_url = base_url
        self._wall_clock = wall_clock
        self._holds_key = holds_key
        self._cache = cache

    async def take(self, exchange: Exchange, plan: Plan) -> Outgoing | None:
        """The answer to a request that waits; None for one that is to be answered at once.

        Raises InvalidRequest (the rule takes only what waits; a webhook that is not allowed), JobsUnavailable and
        Overloaded: then nothing was accepted.
        """
        wish = read_prefer(exchange.incoming.headers)
        mode = plan.decision.deferred.mode
        if not wish.respond_async:
            if mode == "require":
                message = f"rule `{plan.decision.rule}` takes only requests that can wait: send `Prefer: respond-async`"
                raise InvalidRequest(message)
            return None
        why_not = self._why_not(plan)
        if why_not:
            if mode == "require":
                raise InvalidRequest(f"rule `{plan.decision.rule}` takes only requests that can wait; {why_not}")
            exchange.refused.append(f"not deferred: {why_not}")
            return None
        webhook = (first(exchange.incoming.headers, b"x-router-webhook") or b"").decode("latin-1").strip()
        if webhook:
            self._webhooks.check(webhook)
        trace = exchange.trace
        trace.endpoint, trace.edits = DEFERRED, plan.primary.edits
        job = self._job(exchange, plan, webhook, _id_of(exchange))
        is_named = first(exchange.incoming.headers, _SAME) is not None
        await self._accept(job, is_named=is_named)
        if is_named and not await self._is_there(job):
            job = self._job(exchange, plan, webhook, _new_id())  # the job of that call was canceled, or is long gone
            await self._accept(job, is_named=False)
        exchange.refused.append(f"deferred as `{job.id}`, to be sent within {plan.decision.deferred.max_wait_s:g}s")
        self._keeper.accepted(job.owner, exchange.incoming.credential)
        return await self._told(exchange, job.owner, job.id, wish, applied=True)

    async def answer(self, exchange: Exchange) -> Outgoing:
        """Answer a request about a job. Raises UnknownTarget where the caller has no such job, JobsUnavailable."""
        incoming, trace = exchange.incoming, exchange.trace
        job_id = trace.path.removeprefix(PATH + "/")
        owner = self._owner(exchange)
        if not JOB_ID.fullmatch(job_id):
            raise UnknownTarget(f"no such deferred message: {job_id[:64]}")
        match trace.method:
            case "GET" | "HEAD":
                return await self._told(exchange, owner, job_id, read_prefer(incoming.headers), applied=False)
            case "DELETE":
                if await self._store.cancel(owner, job_id, incoming.tenant) == "unknown":
                    raise UnknownTarget(f"no such deferred message: {job_id}")
                # A process that began anew may know of its batch by this alone: it is to end it, or to book it.
                self._keeper.accepted(owner, incoming.credential)
                self._keeper.canceled(owner, job_id)
                trace.status = 200
                return Outgoing(200, [*_json_headers(exchange), *_trace_headers(exchange)], deleted_body(job_id))
            case method:
                raise WrongMethod(f"method `{method}` is not allowed here, expected `GET` or `DELETE`")

    def _why_not(self, plan: Plan) -> str:
        """Why a request cannot wait; empty where it can."""
        if plan.decision.deferred.mode == "deny":
            return f"rule `{plan.decision.rule}` says `deferred: deny`"
        wrong = wrong_in_batches(plan.request.body)
        if wrong:
            return wrong
        target = plan.primary
        model = self._catalog.find(target.model)
        if model is not None and "batch" in model.accepts.denied:
            return f"`{target.model}` takes no batches"
        return ""

    def _owner(self, exchange: Exchange) -> str:
        return ROUTER if self._holds_key else exchange.incoming.tenant

    def _job(self, exchange: Exchange, plan: Plan, webhook: str, job_id: str) -> Job:
        incoming, trace, directive = exchange.incoming, exchange.trace, plan.decision.deferred
        request, target = plan.request, plan.primary
        headers = upstream_headers(incoming.headers, incoming.credential, is_metered=True)[:-1]  # without credential
        body, (start, end), new = request.raw, request.model_span, b""
        if target.adapted is not None:
            start, end, new = 0, len(body), target.adapted.with_model(target.model)
        elif target.model == request.model:
            start = end = 0
        else:
            new = orjson.dumps(target.model)
        said = Said(headers, incoming.path, incoming.query, body, start, end, new)
        now_s = self._wall_clock()
        facts = plan.understood.facts
        meta = Meta(
            tenant=incoming.tenant,
            key=incoming.key,
            policy=trace.policy,
            revision=trace.revision,
            rule=plan.decision.rule,
            lane=target.lane.name,
            model_asked=request.model,
            model_sent=target.model,
            client=trace.client,
            session=trace.session,
            conversation=trace.conversation,
            why=(*trace.why, *exchange.refused),
            tags=plan.decision.tags,
            edits=target.edits,
            labels=trace.labels,
            facts=facts.recorded(exchange.headers_read),
            location=f"{self._base_url(exchange)}{PATH}/{job_id}",
            webhook=webhook,
            answers_late=directive.real_time_after_s is not None,
            cache_key=plan.cache_key,
            keeping=self._keeping(plan),
        )
        return Job(
            id=job_id,
            owner=self._owner(exchange),
            tenant=incoming.tenant,
            group=group_of(trace.policy, target.lane.name, said),
            created_s=now_s,
            due_s=now_s + directive.max_wait_s,
            late_s=None if directive.real_time_after_s is None else now_s + directive.real_time_after_s,
            most=directive.max_items,
            size=item_size(len(body) - (end - start) + len(new)),
            meta=meta.packed(),
            request=said.packed(),
        )

    async def _accept(self, job: Job, *, is_named: bool) -> None:
        """Put a job into the store. What may be there although it failed is taken out again: its client sends another.

        One that `is_named` by its client stays: the same call is the same job.
        """
        try:
            await self._store.accept(job)
        except JobsUnavailable:
            if not is_named:
                self._keeper.withdraw(job.owner, job.id, job.tenant)
            raise

    async def _is_there(self, job: Job) -> bool:
        try:
            return await self._store.look(job.owner, job.id, job.tenant) is not None
        except JobsUnavailable:  # it was accepted: that is known
            return True

    def _keeping(self, plan: Plan) -> tuple[float, int, int] | tuple[()]:
        """What the rule says of keeping the answer; nothing where it is not to be cached."""
        rule = plan.decision.cache
        if self._cache is None or rule is None or plan.cache_key is None:
            return ()
        return rule.ttl_s, rule.max_bytes, self._cache.now_ns()

    async def _told(self, exchange: Exchange, owner: str, job_id: str, wish: Preferences, *, applied: bool) -> Outgoing:
        """What a client gets to hear of its job, after as long a wait as it asked for."""
        trace, tenant = exchange.trace, exchange.incoming.tenant
        wait_s = min(wish.wait_s or 0.0, LONGEST_WAIT_S)
        view = None
        if not (applied and wait_s == 0):
            try:
                view = await self._keeper.seen(exchange, owner, job_id, tenant, wait_s)
            except JobsUnavailable:
                if not applied:
                    raise  # else it was accepted, and nothing may say otherwise
            if view is None and not applied:
                raise UnknownTarget(f"no such deferred message: {job_id}")
            if view is not None and view.answer is None:  # a process that began anew has the credential again
                self._keeper.accepted(owner, exchange.incoming.credential, is_new=False)
        headers: RawHeaders = []
        if applied:
            said = "respond-async" + (f", wait={int(wait_s)}" if wait_s else "")
            headers.append((b"preference-applied", said.encode()))
        if view is not None and view.answer is not None:
            trace.status = view.answer.status
            headers += [*_json_headers(exchange), *_ended_headers(exchange, view)]
            return Outgoing(view.answer.status, headers, view.answer.body)
        now_s = self._wall_clock()
        if view is None:
            created_s, wait_more_s = now_s, 1.0
            location = f"{self._base_url(exchange)}{PATH}/{job_id}"
            named = router_headers(trace)
        else:
            meta = Meta.of(view.meta)
            created_s, location = view.created_s, meta.location
            wait_more_s = view.due_s - now_s if view.state == "waiting" else (now_s - created_s) / 4
            named = [*_trace_headers(exchange), *_meta_headers(meta, meta.model_sent, meta.lane)]
        trace.status = 202
        retry_after = min(_MOST_RETRY_AFTER_S, max(1, math.ceil(wait_more_s)))
        headers += [
            *_json_headers(exchange),
            (b"location", header_value(location)),
            (b"retry-after", str(retry_after).encode()),
            *named,
        ]
        return Outgoing(202, headers, pending_body(job_id, created_s))


ROUTER = "router"  # the owner of all jobs, where the router holds the upstream's key


def _new_id() -> str:
    return PREFIX + secrets.token_hex(16)


def _id_of(exchange: Exchange) -> str:
    """The id of a job: by chance, or the same for the same call under one `idempotency-key` (F53)."""
    incoming = exchange.incoming
    same = first(incoming.headers, _SAME)
    if same is None:
        return _new_id()
    digest = hashlib.blake2b(digest_size=16, person=b"router deferred")
    for part in (incoming.tenant.encode("utf-8", "replace"), same, incoming.target, incoming.body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return PREFIX + digest.hexdigest()


def _json_headers(exchange: Exchange) -> RawHeaders:
    request_id = (exchange.trace.request_id or "").encode()
    return [(b"content-type", b"application/json"), (b"request-id", request_id)]


def _trace_headers(exchange: Exchange) -> RawHeaders:
    return [(b"x-router-trace", exchange.trace.trace_id.encode()), (b"x-router-cache", b"bypass")]


def _meta_headers(meta: Meta, model: str, lane: str) -> RawHeaders:
    headers = [
        (b"x-router-model", header_value(model)),
        (b"x-router-lane", header_value(lane)),
        (b"x-router-rule", header_value(meta.rule)),
        (b"x-router-policy", header_value(f"{meta.policy}@{meta.revision}")),
    ]
    if meta.edits:
        headers.append((b"x-router-edits", header_value(", ".join(meta.edits))))
    return headers


def _ended_headers(exchange: Exchange, view: JobView) -> RawHeaders:
    assert view.answer is not None
    meta, note = Meta.of(view.meta), Note.of(view.answer.note)
    headers = [*_trace_headers(exchange), *_meta_headers(meta, note.model or meta.model_sent, note.lane or meta.lane)]
    if note.cost_pusd is not None:
        headers.append((b"x-router-cost-usd", usd(note.cost_pusd)))
    if note.saved_pusd is not None:
        headers.append((b"x-router-saved-usd", usd(note.saved_pusd)))
    return headers
