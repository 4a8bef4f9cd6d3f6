"""The error family: what happened, whose it is, whether trying again may help, and what the reader can do.

Codes are grouped: R1xx request, R2xx policy and settings, R3xx upstream, R4xx cache, R5xx trace, R9xx our own bug.
A retired code stays here as a comment, so that an old log line can still be looked up.
"""

from __future__ import annotations

import json
from typing import ClassVar, Literal

Source = Literal["client", "operator", "upstream", "router"]


class RouterError(Exception):
    """The root of every error the router raises on purpose.

    `message` names the value seen, then what was expected: lower case, no full stop. `hint` is the next step.
    `retryable` says that the same call may succeed later; `retry_after_s` (seconds) says when, where that is known.
    """

    code: ClassVar[str] = "R900"
    status: ClassVar[int] = 500
    wire_type: ClassVar[str] = "api_error"
    source: ClassVar[Source] = "router"

    def __init__(
        self, message: str, *, hint: str = "", retryable: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retryable = retryable
        self.retry_after_s = retry_after_s

    def to_wire(self, request_id: str) -> bytes:
        """The error as the Messages API shapes it: `{"type": "error", "error": {...}, "request_id": ...}`.

        Source: Messages API reference, "Errors".
        """
        return error_body(self.wire_type, self.message, request_id)

    def proxy_status(self) -> str:
        """The value of the `Proxy-Status` response header (RFC 9209)."""
        kind = {"client": "http_request_error", "upstream": "destination_unavailable"}.get(
            self.source, "proxy_internal_error"
        )
        return f'router; error={kind}; details="{self.code}"'


def error_body(wire_type: str, message: str, request_id: str) -> bytes:
    """One error body in the Messages API shape; CR, LF and NUL of `message` are escaped by JSON."""
    body = {"type": "error", "error": {"type": wire_type, "message": message}, "request_id": request_id}
    return json.dumps(body, separators=(",", ":")).encode()


# R1xx: the request


class InvalidRequest(RouterError):
    """The body is not what the Messages API takes; the upstream was not called."""

    code, status, wire_type, source = "R101", 400, "invalid_request_error", "client"


class MissingCredential(RouterError):
    """No `x-api-key` and no bearer token came with the request."""

    code, status, wire_type, source = "R102", 401, "authentication_error", "client"


class RequestTooLarge(RouterError):
    """The body is over the size that the endpoint takes, or an item of a batch over that of a request."""

    code, status, wire_type, source = "R103", 413, "request_too_large", "client"


class DeniedByPolicy(RouterError):
    """A rule with `deny` matched; the message is the rule's."""

    code, status, wire_type, source = "R104", 403, "permission_error", "client"


class UnknownTarget(RouterError):
    """The path names a policy or a batch, or the body a lane, that does not exist (a batch: for this tenant)."""

    code, status, wire_type, source = "R105", 404, "not_found_error", "client"


class WrongMethod(RouterError):
    """The path exists, the method does not."""

    code, status, wire_type, source = "R106", 405, "invalid_request_error", "client"


class ClientGone(RouterError):
    """The client closed its connection before the answer was complete; nobody is left to read the error."""

    code, status, wire_type, source = "R107", 499, "invalid_request_error", "client"


class MalformedRequest(RouterError):
    """The bytes are no plain HTTP/1.1 request (400), or one that is not served: 414, 417, 431, 501, 505."""

    code, status, wire_type, source = "R120", 400, "invalid_request_error", "client"


class SlowRequest(RouterError):
    """The head or the body of a request stopped coming, or came too slowly."""

    code, status, wire_type, source = "R121", 408, "timeout_error", "client"


# R2xx: policy and settings


class PolicyError(RouterError):
    """A policies folder that does not compile or whose own tests fail; the message holds every diagnostic."""

    code, status, wire_type, source = "R201", 500, "api_error", "operator"


class SettingsError(RouterError):
    """A setting that is unknown or unusable; the message names it and where it came from."""

    code, status, wire_type, source = "R202", 500, "api_error", "operator"


class CatalogError(RouterError):
    """The model catalogue cannot be read; the message names the model and the field."""

    code, status, wire_type, source = "R203", 500, "api_error", "operator"


class FleetUnavailable(RouterError):
    """The Redis over which policies are pushed does not answer, or another push came in between."""

    code, status, wire_type, source = "R204", 503, "api_error", "operator"


# R3xx: upstream


class UpstreamUnreachable(RouterError):
    """No connection could be made (refused, name not found, TLS failed): nothing was sent, nothing was charged."""

    code, status, wire_type, source = "R301", 502, "api_error", "upstream"


class UpstreamTimeout(RouterError):
    """A deadline passed after the request was sent (first byte, idle); the upstream may have charged."""

    code, status, wire_type, source = "R303", 504, "timeout_error", "upstream"


class UpstreamBroken(RouterError):
    """The connection broke, or the bytes were not HTTP, after the request was sent; the upstream may have charged."""

    code, status, wire_type, source = "R304", 502, "api_error", "upstream"


class StreamCut(RouterError):
    """A stream ended without `message_stop`: the client is told so with an `error` event."""

    code, status, wire_type, source = "R305", 502, "api_error", "upstream"


class OutcomeUnknown(RouterError):
    """The upstream may have done what was asked (a batch, a file) and its answer was lost; it is not sent again."""

    code, status, wire_type, source = "R306", 502, "api_error", "upstream"


# R4xx: cache


class CacheUnavailable(RouterError):
    """The shared cache cannot be reached, so that it can neither be purged nor counted; requests are served without."""

    code, status, wire_type, source = "R401", 503, "api_error", "operator"


# R5xx: traces


class TraceStoreError(RouterError):
    """The trace store cannot be opened or read; the message names the file."""

    code, status, wire_type, source = "R501", 500, "api_error", "operator"


class BadFilter(RouterError):
    """A filter of a trace query or a purge that cannot be understood; the message names it and what is taken."""

    code, status, wire_type, source = "R502", 400, "invalid_request_error", "client"


class JobsUnavailable(RouterError):
    """The store of the setting `jobs` cannot be reached: whose a batch is, or what belongs to it, cannot be told."""

    code, status, wire_type, source = "R511", 503, "api_error", "operator"


# R9xx: our own bug


class InternalError(RouterError):
    """Something the router did not foresee; the trace id finds the log line."""

    code, status, wire_type, source = "R901", 500, "api_error", "router"


class ShuttingDown(RouterError):
    """The router was stopped and its grace period ended before the answer was there; another replica may serve."""

    code, status, wire_type, source = "R902", 503, "api_error", "router"


class Overloaded(RouterError):
    """The router, or this client's share of it, is full: the request was turned away."""

    code, status, wire_type, source = "R903", 529, "overloaded_error", "router"
