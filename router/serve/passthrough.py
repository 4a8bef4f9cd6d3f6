"""Every path that is not routed: sent on byte for byte, traced without facts. Batch results are metered on their way.

The list of models is spliced: it also names the router's virtual ones. Batches are in `serve/batches.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import orjson

from router.catalog.lookup import Catalog
from router.errors import OutcomeUnknown, UnknownTarget, UpstreamBroken, UpstreamTimeout
from router.policy.compile import PolicySet
from router.policy.written import Lane
from router.seams import Body, UpstreamCall
from router.serve.ask import MAX_PLAIN_ANSWER, json_object
from router.serve.attempts import Answer, Means, Target, walk
from router.serve.batch_kept import KeptLines
from router.serve.batch_results import BatchResultsRelay
from router.serve.exchange import Exchange
from router.serve.headers import RawHeaders, downstream_headers, first, upstream_headers, with_trace_context
from router.serve.parts import Outgoing, Parts
from router.serve.plan import PolicySource
from router.serve.relay import RawRelay, Relay, collect
from router.wire.messages import object_spans

_NO_LANE = Lane("-", None)
_OF_ITS_BYTES = (b"content-length", b"accept-ranges", b"etag", b"content-md5", b"digest", b"content-digest")
_REPEATABLE = ("GET", "HEAD", "OPTIONS", "DELETE", "PUT")  # RFC 9110, 9.2.2: twice is the same as once


class Passthrough:
    """The paths of the API that the router does not decide on.

    `public_url` is the origin, with a path prefix where there is one, under which clients reach the router; None: the
    scheme and the Host of each request say it.
    """

    def __init__(self, parts: Parts, policies: PolicySource, public_url: str | None = None) -> None:
        self._parts = parts
        self._means = Means(parts.means.upstream, parts.means.jitter)  # no lane, so that there is no breaker either
        self._policies = policies
        self._public_url = None if public_url is None else public_url.rstrip("/")

    async def forward(self, exchange: Exchange) -> Outgoing:
        """Send the request on and pass the answer back, both unchanged and unmetered."""
        status, headers, relay, body = await self.send(exchange, is_read=False)
        return Outgoing(status, self._headers(exchange, headers), body, relay)

    async def models(self, exchange: Exchange) -> Outgoing:
        """`GET /v1/models`: the upstream's page; the last one also names the virtual models."""
        status, headers, relay, body = await self.send(exchange, is_read=True)
        if body is not None and status == 200:
            virtual = list(virtual_models(self._policies.current, self._parts.catalog))
            body = _with_more_models(body, virtual)
            headers = [(name, value) for name, value in headers if name != b"content-length"]
        return Outgoing(status, self._headers(exchange, headers), body, relay)

    def virtual_model(self, exchange: Exchange, model_id: str) -> Outgoing:
        """`GET /v1/models/auto` and `/v1/models/lane:NAME`. Raises UnknownTarget."""
        for model in virtual_models(self._policies.current, self._parts.catalog):
            if model["id"] == model_id:
                exchange.trace.status = 200
                headers = [(b"content-type", b"application/json")]
                headers.append((b"request-id", (exchange.trace.request_id or "").encode()))
                return Outgoing(200, self._headers(exchange, headers), orjson.dumps(model))
        raise UnknownTarget(f"model: {model_id}")

    async def send(
        self,
        exchange: Exchange,
        *,
        is_read: bool,
        results_of: str | None = None,
        kept: KeptLines | None = None,
        body: bytes | Body | None = None,
        target: bytes | None = None,
    ) -> tuple[int, RawHeaders, Relay | None, bytes | None]:
        """One attempt → (status, headers, relay, None), or with the body read when it is JSON of bounded size.

        `results_of` names the batch whose results are asked for: they are relayed and metered, and `kept` are lines
        that follow them. `body` and `target` stand in for those that came. Raises OutcomeUnknown where it may have been
        done and must not be done twice.
        """
        incoming, trace = exchange.incoming, exchange.trace
        sent = upstream_headers(incoming.headers, incoming.credential, is_metered=is_read)
        if self._parts.sends_trace_context:
            sent = with_trace_context(sent, trace)
        is_once = incoming.method not in _REPEATABLE
        call = UpstreamCall(
            incoming.method,
            incoming.target if target is None else target,
            sent,
            incoming.body if body is None else body,
            self._parts.deadlines,
            is_once,
        )
        try:
            return await self._asked(exchange, call, is_read=is_read, results_of=results_of, kept=kept)
        except (UpstreamBroken, UpstreamTimeout) as exc:
            if not is_once:
                raise
            message = f"the outcome is unknown: {exc.message}; see whether it was done before it is sent again"
            raise OutcomeUnknown(message, hint=exc.hint) from exc

    async def _asked(
        self, exchange: Exchange, call: UpstreamCall, *, is_read: bool, results_of: str | None, kept: KeptLines | None
    ) -> tuple[int, RawHeaders, Relay | None, bytes | None]:
        trace = exchange.trace
        answer = await walk(exchange, self._means, (Target(_NO_LANE, ""),), lambda _: call)
        trace.status = answer.status
        trace.request_id = answer.attempt.request_id or trace.request_id
        headers = downstream_headers(answer.headers)
        if answer.reply is None:
            return answer.status, headers, None, answer.body
        exchange.watch.during(answer.reply.abort)
        if results_of is not None and answer.status < 300:
            if kept is not None:
                headers = [header for header in headers if header[0] not in _OF_ITS_BYTES]
            return answer.status, headers, self._results(exchange, answer, results_of, kept), None
        kind = first(headers, b"content-type") or b""
        if not is_read or not kind.startswith(b"application/json"):
            return answer.status, headers, RawRelay(exchange, answer.reply), None
        body, is_whole = await collect(exchange, answer.reply, MAX_PLAIN_ANSWER)
        if not is_whole:
            return answer.status, headers, RawRelay(exchange, answer.reply, body), None
        exchange.watch.during(None)
        return answer.status, headers, None, body

    def _results(self, exchange: Exchange, answer: Answer, batch: str, kept: KeptLines | None) -> Relay:
        """The relay of a batch's results; it closes its books with those of the request.

        Raises UpstreamBroken where they came in a form that nothing can follow.
        """
        assert answer.reply is not None
        is_readable = first(answer.headers, b"content-encoding") in (None, b"", b"identity")
        if kept is not None and (answer.status != 200 or not is_readable):
            answer.reply.abort()
            raise UpstreamBroken("the results came in part, or compressed, so that they cannot be completed here")
        named = exchange.incoming.policy or "default"
        relay = BatchResultsRelay(
            exchange,
            answer.reply,
            answer.attempt,
            self._parts.items,
            self._parts.catalog,
            self._parts.decisions,
            batch=batch,
            # Paths that are not routed take any name: one that is no policy must not become a name in the roll-ups.
            policy=named if named in self._policies.current.policies else "",
            kept=kept,
            cache=self._parts.cache,
            is_readable=is_readable,
        )
        exchange.after_last_byte = relay.settle
        return relay

    def base_url(self, exchange: Exchange) -> str:
        """The base URL that the client uses, without a slash at its end."""
        incoming = exchange.incoming
        origin = self._public_url
        if origin is None:
            host = first(incoming.headers, b"host") or b"127.0.0.1"
            origin = f"{incoming.scheme}://{host.decode('latin-1')}"
        return origin + incoming.prefix

    def _headers(self, exchange: Exchange, headers: RawHeaders) -> RawHeaders:
        return [*headers, (b"x-router-trace", exchange.trace.trace_id.encode()), (b"x-router-cache", b"bypass")]


def virtual_models(policies: PolicySet, catalog: Catalog) -> Iterable[Mapping[str, object]]:
    """The models that only the router knows, in the shape of `GET /v1/models`."""
    yield _model("auto", "Router: the policy decides", policies.default_lane, catalog)
    for lane in policies.lanes.values():
        if lane.model is None:  # `as-asked` is a lane of rules, not one to ask for
            continue
        yield _model(f"lane:{lane.name}", f"Router: lane {lane.name}", lane, catalog)


def _model(model_id: str, display_name: str, lane: Lane, catalog: Catalog) -> Mapping[str, object]:
    model = catalog.find(lane.model or "")
    return {
        "type": "model",
        "id": model_id,
        "display_name": display_name,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": model.context_window if model else None,
        "max_tokens": model.max_output_tokens if model else None,
    }


def _with_more_models(body: bytes, models: list[Mapping[str, object]]) -> bytes:
    """The page with `models` spliced behind its own, if it is the last page; anything unexpected stays as it is."""
    page = json_object(body)
    if page is None or not isinstance(page.get("data"), list) or page.get("has_more") is not False:
        return body
    end = object_spans(body)["data"][1] - 1  # the offset of the closing bracket
    added = b",".join(orjson.dumps(model) for model in models)
    return body[:end] + (b"," if page["data"] else b"") + added + body[end:]
