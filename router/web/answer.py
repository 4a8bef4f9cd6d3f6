"""How the admin listener answers: JSON that nobody keeps, and errors in the Messages API shape."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from router.errors import RouterError
from router.trace.export import encode_json


def json_answer(value: Any, status: int = 200) -> Response:
    """A value as JSON."""
    return encoded_answer(encode_json(value).encode(), status)


def encoded_answer(body: bytes, status: int = 200) -> Response:
    """JSON that is written already."""
    return Response(body, status, media_type="application/json", headers={"cache-control": "no-store"})


def error_answer(status: int, kind: str, message: str) -> Response:
    """An error of this listener's own."""
    return json_answer({"type": "error", "error": {"type": kind, "message": message}}, status)


async def router_error(_: Request, error: Exception) -> Response:
    """An error of the family, with its code."""
    if not isinstance(error, RouterError):
        return PlainTextResponse("internal error", 500)
    message = f"{error.message}; {error.hint}" if error.hint else error.message
    shape = {"type": "error", "error": {"type": error.wire_type, "message": message, "code": error.code}}
    return json_answer(shape, error.status)
