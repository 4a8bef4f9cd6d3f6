"""How the simulator says no: an HTTP status, an error type and a message, in the shape of the API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

ERROR_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Refusal(Exception):
    """A request that the API would not serve. `details` becomes `error.details`, `headers` go on the answer.

    Source: errors reference of the API (`error.type` by HTTP status).
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        wire_type: str | None = None,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.wire_type = wire_type or ERROR_TYPES.get(status, "api_error")
        self.details = dict(details) if details else None
        self.headers = dict(headers or {})

    def envelope(self, request_id: str) -> dict[str, Any]:
        """The whole error body as plain data."""
        error: dict[str, Any] = {"type": self.wire_type, "message": self.message}
        if self.details:
            error["details"] = self.details
        return {"type": "error", "error": error, "request_id": request_id}

    def body(self, request_id: str) -> bytes:
        """The whole error body as JSON bytes."""
        return json.dumps(self.envelope(request_id), separators=(",", ":")).encode()


def extra_input(path: str) -> Refusal:
    """The refusal of a field that the endpoint does not know, or that came without its beta header."""
    return Refusal(f"{path}: Extra inputs are not permitted")


def missing(path: str) -> Refusal:
    """The refusal of a body without a required field."""
    return Refusal(f"{path}: Field required")
