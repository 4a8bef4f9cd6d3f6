"""The simulated API over HTTP: paths, headers, errors.

`/_simulator/ledger`, `/_simulator/requests` and `/_simulator/batches` show what was billed, what arrived, and the items
of every batch; the real API has no such thing.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from router.simulator.answer import Answer
from router.simulator.batches import BatchStore
from router.simulator.delivery import Chunk, Delivery, End, stream_chunks
from router.simulator.files import OLD_SHAPE_BETA
from router.simulator.iterations import Iteration
from router.simulator.message import Outcome
from router.simulator.modelpages import model_info, model_page
from router.simulator.reading import BATCH_MAX_BYTES, FILE_MAX_BYTES, MESSAGES_MAX_BYTES, read_object, to_json
from router.simulator.refusal import Refusal
from router.simulator.script import Behaviour
from router.simulator.service import Simulator
from router.simulator.settings import SimulatorSettings
from router.simulator.task import last_user_text
from router.simulator.tokens import text_tokens

Work = Callable[[Request, bytes, str], Awaitable[Response]]


def create_simulator(settings: SimulatorSettings | None = None) -> Starlette:
    """The simulated API as an ASGI application; its state is `app.state.simulator`."""
    simulator = Simulator(settings or SimulatorSettings())
    batches = BatchStore(simulator)
    api = _Api(simulator, batches)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await batches.close()

    batch = "/v1/messages/batches"
    routes = [
        api.route("/v1/messages", api.messages, "POST"),
        api.route("/v1/messages/count_tokens", api.count_tokens, "POST"),
        api.route(batch, api.batch_list_or_create, "GET", "POST", max_bytes=BATCH_MAX_BYTES),
        api.route(batch + "/{batch_id}", api.batch_get_or_delete, "GET", "DELETE"),
        api.route(batch + "/{batch_id}/cancel", api.batch_cancel, "POST"),
        api.route(batch + "/{batch_id}/results", api.batch_results, "GET"),
        api.route("/v1/models", api.model_list, "GET"),
        api.route("/v1/models/{model_id}", api.model_get, "GET"),
        api.route("/v1/files", api.file_list_or_upload, "GET", "POST", max_bytes=FILE_MAX_BYTES),
        api.route("/v1/files/{file_id}", api.file_get_or_delete, "GET", "DELETE"),
        api.route("/v1/files/{file_id}/content", api.file_content, "GET"),
        Route("/api/hello", lambda _: Response(b'{"message":"hello"}', media_type="application/json")),
        Route("/_simulator/ledger", api.ledger, methods=["GET", "DELETE"]),
        Route("/_simulator/batches", api.batches, methods=["GET"]),
        Route("/_simulator/requests", api.requests, methods=["GET", "DELETE"]),
    ]
    handlers: Mapping[Any, Any] = {404: api.unknown, 405: api.unknown, 500: api.broken}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    app.state.simulator = simulator
    return app


class _Api:
    """One method for each path; what they share is in `route`."""

    def __init__(self, simulator: Simulator, batches: BatchStore) -> None:
        self._simulator = simulator
        self._batches = batches

    def route(self, path: str, work: Work, *methods: str, max_bytes: int = MESSAGES_MAX_BYTES) -> Route:
        """A route that reads the body within its limit, keeps a record of it and turns refusals into answers."""
        simulator = self._simulator

        async def endpoint(request: Request) -> Response:
            request_id = simulator.next_request_id()
            body, is_whole = await _read_body(request, max_bytes)
            record = simulator.arrivals.add(request.scope, body, request_id)
            request.scope["simulator.record"] = record
            try:
                if not is_whole:
                    raise Refusal("Request exceeds the maximum size", 413)
                if request.headers.get("content-encoding", "identity") != "identity":
                    raise Refusal(
                        "content-encoding: request bodies must not be encoded",
                        details={"error_code": "request_body_encoding_unsupported"},
                    )
                response = await work(request, body, request_id)
            except Refusal as refusal:
                response = self._refused(refusal, request_id)
                self._identify(response, request, is_known=refusal.status != 401)
            else:
                self._identify(response, request, is_known=True)
            record["status"] = response.status_code
            return response

        return Route(path, endpoint, methods=list(methods))

    def _refused(self, refusal: Refusal, request_id: str) -> Response:
        headers = {"content-type": "application/json", "request-id": request_id, **refusal.headers}
        return Response(refusal.body(request_id), refusal.status, headers)

    def _identify(self, response: Response, request: Request, *, is_known: bool) -> None:
        """Add whose answer it is; nothing when the credential was refused."""
        if not is_known:
            return
        try:
            organization, workspace, _ = self._simulator.authenticate(request.headers)
        except Refusal:
            return
        response.headers["anthropic-organization-id"] = organization
        response.headers["anthropic-workspace-id"] = workspace

    def _json(self, value: Any, request_id: str) -> Response:
        return Response(to_json(value), 200, {"content-type": "application/json", "request-id": request_id})

    async def messages(self, request: Request, raw: bytes, request_id: str) -> Response:
        """`POST /v1/messages`, streamed or not."""
        simulator = self._simulator
        started_s = simulator.settings.clock()
        caller = simulator.caller(request.headers)
        body = read_object(raw)
        behaviour = self._behaviour(request, body)
        if behaviour.status is not None:
            return self._scripted(behaviour, request_id)
        outcome = _worded(simulator.run(body, caller), behaviour.text)
        pace = simulator.pace(outcome, request_id)
        is_stream = body.get("stream") is True
        headers = {
            "content-type": "text/event-stream; charset=utf-8" if is_stream else "application/json",
            "request-id": request_id,
            **simulator.limits(),
            **behaviour.headers,
        }
        first_wait_s = pace.first_s + behaviour.delay_ms / 1000
        ends: End = "clean"
        if is_stream:
            headers["cache-control"] = "no-cache"
            chunks = stream_chunks(outcome.events(), pace, behaviour)
            if behaviour.cut_after_events is not None:
                ends = "cut"
            elif behaviour.stall_after_events is not None:
                ends = "stall"
        else:
            data = to_json(outcome.message())
            headers["content-length"] = str(len(data))
            first_wait_s += pace.per_token_s * outcome.answer.output_tokens
            chunks = iter([Chunk(data, 0.0, outcome.answer.output_tokens)])
        record = request.scope["simulator.record"]

        def end(tokens: float, is_complete: bool) -> None:
            record["is_disconnected"] = not is_complete
            simulator.bill(request_id, outcome, None if is_complete else tokens)

        return Delivery(
            chunks,
            headers=headers,
            on_begin=lambda: simulator.keep(outcome, started_s),
            on_end=end,
            ends=ends,
            first_wait_s=first_wait_s,
        )

    def _behaviour(self, request: Request, body: Mapping[str, Any]) -> Behaviour:
        try:
            text = last_user_text(body)
        except (KeyError, TypeError, AttributeError):
            text = ""  # a body that will be refused for its shape
        return self._simulator.settings.script.behaviour(request.url.path, str(body.get("model")), text)

    def _scripted(self, behaviour: Behaviour, request_id: str) -> Response:
        """A failure that a script asks for: any status, the error shape or a body as given, maybe late."""
        status = behaviour.status or 500
        headers = {"content-type": "application/json", "request-id": request_id}
        refusal = Refusal(behaviour.message, status, wire_type=behaviour.type)
        data = refusal.body(request_id)
        if behaviour.body is not None:
            data = behaviour.body.encode()
            headers["content-type"] = "text/html; charset=utf-8"
        headers |= {"content-length": str(len(data)), **behaviour.headers}
        return Delivery(
            iter([Chunk(data)]),
            status=status,
            headers=headers,
            on_begin=lambda: None,
            on_end=lambda *_: None,
            first_wait_s=behaviour.delay_ms / 1000,
        )

    async def count_tokens(self, request: Request, raw: bytes, request_id: str) -> Response:
        """`POST /v1/messages/count_tokens`: free."""
        caller = self._simulator.caller(request.headers)
        body = read_object(raw)
        behaviour = self._behaviour(request, body)
        if behaviour.status is not None:
            return self._scripted(behaviour, request_id)
        counted: dict[str, Any] = {"input_tokens": self._simulator.count(body, caller)}
        if body.get("context_management") is not None:
            counted["context_management"] = {"original_input_tokens": counted["input_tokens"]}
        response = self._json(counted, request_id)
        response.headers.update(self._simulator.limits())
        return response

    async def batch_list_or_create(self, request: Request, raw: bytes, request_id: str) -> Response:
        """`GET` and `POST /v1/messages/batches`."""
        caller = self._simulator.caller(request.headers)
        if request.method == "GET":
            return self._json(self._batches.page(caller.workspace, request.query_params, _origin(request)), request_id)
        return self._json(self._batches.create(read_object(raw), caller).as_json(_origin(request)), request_id)

    async def batch_get_or_delete(self, request: Request, _: bytes, request_id: str) -> Response:
        """`GET` and `DELETE /v1/messages/batches/{id}`."""
        workspace = self._simulator.caller(request.headers).workspace
        batch_id = request.path_params["batch_id"]
        if request.method == "DELETE":
            return self._json(self._batches.delete(workspace, batch_id), request_id)
        return self._json(self._batches.get(workspace, batch_id).as_json(_origin(request)), request_id)

    async def batch_cancel(self, request: Request, _: bytes, request_id: str) -> Response:
        """`POST /v1/messages/batches/{id}/cancel`."""
        workspace = self._simulator.caller(request.headers).workspace
        batch = self._batches.cancel(workspace, request.path_params["batch_id"])
        return self._json(batch.as_json(_origin(request)), request_id)

    async def batch_results(self, request: Request, _: bytes, request_id: str) -> Response:
        """`GET /v1/messages/batches/{id}/results`: JSON lines."""
        workspace = self._simulator.caller(request.headers).workspace
        lines = self._batches.results(workspace, request.path_params["batch_id"])
        return Response(b"".join(lines), 200, {"content-type": "application/x-jsonl", "request-id": request_id})

    async def model_list(self, request: Request, _: bytes, request_id: str) -> Response:
        """`GET /v1/models`."""
        caller = self._simulator.caller(request.headers)
        query = request.query_params
        lifecycles = [*query.getlist("lifecycle[]"), *query.getlist("lifecycle")]
        is_beta = bool(caller.betas) or query.get("beta") == "true"
        return self._json(model_page(self._simulator.roster, query, lifecycles, is_beta=is_beta), request_id)

    async def model_get(self, request: Request, _: bytes, request_id: str) -> Response:
        """`GET /v1/models/{id}`: also by alias, also for a retired model."""
        caller = self._simulator.caller(request.headers)
        name = request.path_params["model_id"]
        model = self._simulator.roster.known(name)
        if model is None:
            raise Refusal(f"model: {name}", 404)
        is_beta = bool(caller.betas) or request.query_params.get("beta") == "true"
        return self._json(model_info(model, is_beta=is_beta), request_id)

    async def file_list_or_upload(self, request: Request, raw: bytes, request_id: str) -> Response:
        """`GET` and `POST /v1/files`."""
        caller = self._simulator.caller(request.headers)
        is_old = OLD_SHAPE_BETA in caller.betas
        if request.method == "POST":
            stored = self._simulator.files.upload(caller.workspace, request.headers.get("content-type", ""), raw)
            return self._json(stored.as_json(is_old_shape=is_old), request_id)
        query = request.query_params
        page = self._simulator.files.page(caller.workspace, query, [*query.getlist("ids[]"), *query.getlist("ids")])
        page["data"] = [stored.as_json(is_old_shape=is_old) for stored in page["data"]]
        return self._json(page, request_id)

    async def file_get_or_delete(self, request: Request, _: bytes, request_id: str) -> Response:
        """`GET` and `DELETE /v1/files/{id}`."""
        caller = self._simulator.caller(request.headers)
        file_id = request.path_params["file_id"]
        if request.method == "DELETE":
            return self._json(self._simulator.files.delete(caller.workspace, file_id), request_id)
        stored = self._simulator.files.get(caller.workspace, file_id)
        return self._json(stored.as_json(is_old_shape=OLD_SHAPE_BETA in caller.betas), request_id)

    async def file_content(self, request: Request, _: bytes, request_id: str) -> Response:
        """`GET /v1/files/{id}/content`: an upload is not downloadable."""
        caller = self._simulator.caller(request.headers)
        stored = self._simulator.files.get(caller.workspace, request.path_params["file_id"])
        raise Refusal(f"File {stored.id} is not downloadable", 403)

    async def ledger(self, request: Request) -> Response:
        """What was billed; `DELETE` starts again."""
        if request.method == "DELETE":
            self._simulator.ledger.clear()
        return Response(to_json(self._simulator.ledger.as_json()), media_type="application/json")

    async def batches(self, _: Request) -> Response:
        """Every batch with its items, of all workspaces."""
        return Response(to_json({"batches": self._batches.shown()}), media_type="application/json")

    async def requests(self, request: Request) -> Response:
        """The last requests as they arrived (`?limit=`, 100 unless told); `DELETE` forgets them."""
        if request.method == "DELETE":
            self._simulator.arrivals.clear()
        text = request.query_params.get("limit", "100")
        limit = int(text) if text.isdigit() else 100
        return Response(to_json(self._simulator.arrivals.as_json(limit)), media_type="application/json")

    async def unknown(self, request: Request, exc: Exception) -> Response:
        """A path or method that does not exist."""
        request_id = self._simulator.next_request_id()
        self._simulator.arrivals.add(request.scope, b"", request_id)["status"] = 404
        status = exc.status_code if isinstance(exc, HTTPException) else 404
        return self._refused(Refusal("Not found" if status == 404 else "Method Not Allowed", status), request_id)

    async def broken(self, _: Request, exc: Exception) -> Response:
        """A fault of the simulator itself: said on stderr, and as the API says it."""
        print(f"simulator: fault: {exc!r}", file=sys.stderr, flush=True)
        return self._refused(Refusal("Internal server error", 500), self._simulator.next_request_id())


async def _read_body(request: Request, max_bytes: int) -> tuple[bytes, bool]:
    """The body and whether it is whole: reading stops at the limit."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_bytes:
        return b"", False
    pieces, size = [], 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > max_bytes:
                return b"", False
            pieces.append(piece)
    except ClientDisconnect:
        return b"".join(pieces), True
    return b"".join(pieces), True


def _origin(request: Request) -> str:
    return f"{request.url.scheme}://{request.headers.get('host', 'localhost')}"


def _worded(outcome: Outcome, text: str | None) -> Outcome:
    """The outcome with the text that a script dictates, if any."""
    if text is None:
        return outcome
    tokens = text_tokens(text, outcome.call.model)
    said = Answer(outcome.answer.message_id, ({"type": "text", "text": text},), "end_turn", None, None, tokens, 0)
    return replace(outcome, answer=said, iterations=(Iteration("message", outcome.call, outcome.plan, tokens),))
