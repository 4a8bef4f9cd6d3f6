"""The API side: a raw ASGI application, one callable, no framework between a client's bytes and the pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from urllib.parse import quote, unquote

from router.errors import (
    ClientGone,
    InternalError,
    InvalidRequest,
    MissingCredential,
    OutcomeUnknown,
    Overloaded,
    RequestTooLarge,
    RouterError,
    ShuttingDown,
    WrongMethod,
)
from router.serve.admission import Admission, Ticket
from router.serve.batches import Batches
from router.serve.deferred.lane import Deferral
from router.serve.exchange import ClientWatch, Exchange, Incoming, Stopwatch
from router.serve.headers import Credential, RawHeaders, credential_of, first, router_headers
from router.serve.parts import Outgoing
from router.serve.passthrough import Passthrough
from router.serve.pipeline import Pipeline
from router.trace.captured import Kept
from router.trace.context import adopt
from router.trace.record import Trace
from router.value import value_class
from router.web.disconnect import watch_for_disconnect
from router.web.http.cycle import HAS_BODY_AT_HAND
from router.web.paths import check_path, endpoint_of, split_policy
from router.web.shed import Receive, Scope, Send, Shedding, discard
from router.web.sizes import MAX_MESSAGES_BODY, declared_size, limit_of, size_taken

_OUTCOMES = {
    "client": "client_error",
    "upstream": "upstream_error",
    "operator": "internal_error",
    "router": "internal_error",
}


@value_class(frozen=True, slots=True)
class Identity:
    """Who calls: the tenant and, where the router holds keys of its own, the key's name and policy."""

    tenant: str
    key: str
    policy: str | None
    credential: Credential  # the one that goes upstream
    max_concurrent: int | None = None  # requests of this key under way at a time


@dataclass(frozen=True, slots=True)
class ApiServices:
    """What the API side is given. `identify` raises MissingCredential; `new_trace_id` gives 32 hex digits."""

    pipeline: Pipeline
    passthrough: Passthrough
    batches: Batches
    identify: Callable[[Credential], Identity]
    new_trace_id: Callable[[], str]
    monotonic: Callable[[], float]
    wall_clock_ns: Callable[[], int]
    report: Callable[[str, BaseException], None]  # an unforeseen exception, with the trace id
    admission: Admission
    shedding: Shedding
    deferral: Deferral | None = None
    is_trace_continued: bool = False  # whether a caller's `traceparent` says which trace a request belongs to


_NOBODY = Identity("", "", None, Credential(b"", b""))


class Api:
    """The ASGI application of the API port."""

    def __init__(self, services: ApiServices) -> None:
        self._services = services
        self._watches: set[ClientWatch] = set()
        self._is_retiring = False

    def retire(self) -> None:
        """From now on each answer tells its client to close the connection: another process takes the next request."""
        self._is_retiring = True

    def cut(self) -> None:
        """End every answer under way, each with an error that its client can read: the grace period is over."""
        for watch in list(self._watches):
            watch.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        services = self._services
        headers: RawHeaders = scope["headers"]
        refusal: RouterError | None = None
        credential = credential_of(headers)
        identity = _NOBODY
        try:
            if credential is not None:
                identity = services.identify(credential)
            elif scope["method"] != "OPTIONS":  # a browser asks without credentials whether it may send them
                raise MissingCredential("x-api-key header is required", hint="or `Authorization: Bearer`")
        except MissingCredential as exc:
            refusal = exc
        admission, declared = services.admission, declared_size(headers)
        size = declared or 0
        if size > MAX_MESSAGES_BODY:  # of a body that is refused for its length nothing is held
            size = size_taken(size, scope)
        ticket = admission.enter(
            identity.tenant,
            size,
            services.monotonic(),
            key=identity.key,
            max_of_key=identity.max_concurrent,
        )
        if isinstance(ticket, str):
            await services.shedding.turn_away(
                ticket, identity.tenant, identity.key, services.new_trace_id(), declared, scope, send
            )
            return
        try:
            await self._admitted(ticket, identity, refusal, declared, scope, receive, send)
        finally:
            admission.leave(ticket)

    async def _admitted(
        self,
        ticket: Ticket,
        identity: Identity,
        refusal: RouterError | None,
        declared: int | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        services = self._services
        headers: RawHeaders = scope["headers"]
        trace = Trace(services.new_trace_id(), services.wall_clock_ns())
        trace.request_id = "req_" + trace.trace_id
        trace.method = scope["method"]
        path, policy = split_policy(scope.get("raw_path") or scope["path"].encode())
        trace.path = path.decode("latin-1")
        trace.endpoint = endpoint_of(scope["method"], trace.path)
        adopt(trace, headers, is_continued=services.is_trace_continued)
        try:
            if refusal is not None:
                raise refusal
            check_path(scope["method"], trace.path)
            body = await self._read_body(ticket, declared, receive, limit_of(trace.endpoint))
        except ClientGone:
            return  # half a request was never a request
        except Overloaded as exc:
            services.admission.drop(ticket)
            await services.shedding.turn_away(
                exc.message, identity.tenant, identity.key, trace.trace_id, None, scope, send
            )
            return
        except RouterError as exc:
            services.admission.drop(ticket)  # the client may take its time to hear of it
            trace.tenant, trace.key = identity.tenant, identity.key
            clock = Stopwatch(services.monotonic)
            await self._refuse(exc, trace, clock, receive, send)
            return
        incoming = Incoming(
            method=scope["method"],
            path=path,
            query=scope["query_string"],
            headers=headers,
            body=body,
            credential=identity.credential,
            # A key that is tied to a policy cannot pick another by its address.
            policy=policy if identity.policy is None else identity.policy,
            tenant=identity.tenant,
            key=identity.key,
            scheme=scope.get("scheme", "http"),
            prefix="" if policy is None else f"/p/{quote(policy, safe='')}",
        )
        trace.started_at_ns = services.wall_clock_ns()
        trace.tenant, trace.key = identity.tenant, identity.key
        exchange = Exchange(incoming, trace, ClientWatch(), Stopwatch(services.monotonic))
        services.pipeline.begin(exchange)
        await self._serve(exchange, ticket, receive, send)

    async def _serve(self, exchange: Exchange, ticket: Ticket, receive: Receive, send: Send) -> None:
        """Answer, relay, account: the accounting happens on every way out, a cancelled one too."""
        unwatch = watch_for_disconnect(receive, exchange.watch.gone)
        outgoing: Outgoing | None = None
        is_started = False
        self._watches.add(exchange.watch)
        try:
            try:
                outgoing = await self._answer(exchange)
                if self._is_retiring:
                    outgoing.headers.append((b"connection", b"close"))
                is_started = True
                self._services.admission.begun(ticket)
                await _send(exchange, outgoing, send)
                _conclude(exchange.trace, outgoing)
            except (ClientGone, OSError):  # servers of ASGI 2.4 raise OSError when the client has gone
                if exchange.watch.is_stopping and not exchange.watch.is_gone:
                    stopped = ShuttingDown("the router is shutting down", retryable=True, retry_after_s=1)
                    _blame(exchange.trace, stopped, "cut")
                    if not is_started:
                        await _send_error(stopped, exchange.trace, send, kept=exchange.kept)
                else:
                    _blame(exchange.trace, ClientGone("the client closed the connection"), "client_closed")
            except asyncio.CancelledError:
                _blame(exchange.trace, ClientGone("the server is stopping"), "client_closed")
                raise
            except RouterError as exc:
                if outgoing is not None and is_started:
                    _blame(exchange.trace, exc, "cut")
                    exchange.trace.status = outgoing.status
                    return  # the server cuts the connection: an incomplete body must not look complete
                _blame(exchange.trace, exc, "shed" if isinstance(exc, Overloaded) else _OUTCOMES[exc.source])
                await _send_error(exc, exchange.trace, send, kept=exchange.kept)
            except Exception as exc:  # our own bug: said to the operator, with the trace id; never shown to the client
                self._services.report(exchange.trace.trace_id, exc)
                error = InternalError("the router failed; the operator's log has the trace id")
                _blame(exchange.trace, error, "internal_error")
                if is_started:
                    return  # as above; raising would put the exception's own words into the server's log
                await _send_error(error, exchange.trace, send, kept=exchange.kept)
        finally:
            self._watches.discard(exchange.watch)
            unwatch()
            if outgoing is not None and outgoing.relay is not None:
                outgoing.relay.abort()
            await self._services.pipeline.finish(exchange)

    async def _answer(self, exchange: Exchange) -> Outgoing:
        services, trace = self._services, exchange.trace
        match trace.endpoint:
            case "messages":
                _check_encoding(exchange.incoming.headers)
                return await services.pipeline.messages(exchange)
            case "count_tokens":
                _check_encoding(exchange.incoming.headers)
                return await services.pipeline.count_tokens(exchange)
            case "wrong_method":
                raise WrongMethod(f"method `{trace.method}` is not allowed here, expected `POST`")
            case "batches":
                if trace.method == "POST":
                    _check_encoding(exchange.incoming.headers)
                return await services.batches.answer(exchange)
            case "deferred" if services.deferral is not None:
                return await services.deferral.answer(exchange)
            case "models":
                model_id = unquote(trace.path.removeprefix("/v1/models").removeprefix("/"))
                if model_id == "auto" or model_id.startswith("lane:"):
                    return services.passthrough.virtual_model(exchange, model_id)
                if model_id:
                    return await services.passthrough.forward(exchange)
                return await services.passthrough.models(exchange)
            case _:
                return await services.passthrough.forward(exchange)

    async def _read_body(self, ticket: Ticket, declared: int | None, receive: Receive, limit: int) -> bytes:
        """The whole body. Raises RequestTooLarge (before reading it, where its length is declared), ClientGone, and
        Overloaded when a body that is long, or of unknown length, finds no more room."""
        if declared is not None and declared > limit:
            raise RequestTooLarge(f"the request body has {declared} bytes, at most {limit} are taken")
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client closed the connection")
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            return body
        chunks = BytesIO()  # grows in place and gives its bytes away: a body is in memory once, not twice
        size = chunks.write(body)
        while message.get("more_body", False):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone("the client closed the connection")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                chunks.close()  # the exception holds this frame until its client has heard of it
                raise RequestTooLarge(f"the request body has over {limit} bytes")
            uncounted = size - ticket.body_bytes
            if uncounted > 0 and (reason := self._services.admission.grow(ticket, uncounted)):
                chunks.close()
                raise Overloaded(reason, retryable=True)  # a word, which `turn_away` makes into an answer
            chunks.write(chunk)
        return chunks.getvalue()

    async def _refuse(self, error: RouterError, trace: Trace, clock: Stopwatch, receive: Receive, send: Send) -> None:
        """An error before there is anything to route: answered and traced."""
        incoming = Incoming("", b"", b"", [], b"", Credential(b"", b""), None, "", "")
        _blame(trace, error, "client_error")
        try:
            await _send_error(error, trace, send, receive if isinstance(error, RequestTooLarge) else None)
        finally:
            await self._services.pipeline.finish(Exchange(incoming, trace, ClientWatch(), clock))


def _check_encoding(headers: RawHeaders) -> None:
    encoding = first(headers, b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
        raise InvalidRequest("content-encoding: the request body must not be compressed")


async def _send(exchange: Exchange, outgoing: Outgoing, send: Send) -> None:
    """The answer, as it comes. `send` waits while the client is slow; meanwhile the upstream is not read."""
    headers = outgoing.headers
    relay = outgoing.relay
    if relay is None:
        body = outgoing.body or b""
        if exchange.incoming.method != "HEAD":  # what was collected may be less than what was announced
            headers = [(name, value) for name, value in headers if name != b"content-length"]
            headers.append((b"content-length", str(len(body)).encode()))
        exchange.watch.check()
        await send(
            {
                "type": "http.response.start",
                "status": outgoing.status,
                "headers": headers,
                HAS_BODY_AT_HAND: True,
            }
        )
        await send({"type": "http.response.body", "body": body})
        if exchange.kept is not None:
            exchange.kept.add(body)
        return
    await send({"type": "http.response.start", "status": outgoing.status, "headers": headers})
    clock, kept = exchange.clock, exchange.kept
    while chunk := await relay.read():
        started_s = clock.now_s()
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if kept is not None:
            kept.add(chunk)
        clock.waited_s += clock.now_s() - started_s
    exchange.watch.check()  # before the last message: behind it, a server reports every request as disconnected
    await send({"type": "http.response.body", "body": b""})


async def _send_error(
    error: RouterError, trace: Trace, send: Send, unread: Receive | None = None, kept: Kept | None = None
) -> None:
    """The error as an answer; `unread` is where the rest of a body comes from that will not be taken."""
    body = error.to_wire(trace.request_id or "")
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"request-id", (trace.request_id or "").encode()),
        (b"proxy-status", error.proxy_status().encode()),
        *router_headers(trace),
    ]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
    if isinstance(error, OutcomeUnknown):
        headers.append((b"x-should-retry", b"false"))  # client libraries would send it again by themselves
    if unread is not None:
        headers.append((b"connection", b"close"))
    start = {
        "type": "http.response.start",
        "status": error.status,
        "headers": headers,
        HAS_BODY_AT_HAND: unread is None,
    }
    await send(start)
    await send({"type": "http.response.body", "body": body, "more_body": unread is not None})
    if kept is not None:
        kept.add(body)
    if unread is not None:
        await discard(unread)
        await send({"type": "http.response.body", "body": b""})


def _conclude(trace: Trace, outgoing: Outgoing) -> None:
    """The outcome of an answer that reached the client to its end."""
    trace.status = outgoing.status
    last = trace.attempts[-1].outcome if trace.attempts else "ok"
    if outgoing.status >= 500 or outgoing.status == 429:
        trace.outcome = "upstream_error"
    elif outgoing.status >= 400:
        trace.outcome = "client_error"
    elif last in ("cut", "timeout"):
        trace.outcome = "cut"
    elif last == "error":
        trace.outcome = "upstream_error"


def _blame(trace: Trace, error: RouterError, outcome: str) -> None:
    trace.status, trace.outcome = error.status, outcome
    trace.error_type, trace.error_code = error.wire_type, error.code
