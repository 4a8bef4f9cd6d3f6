"""How long a request's body is said to be, and how long it may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.serve.headers import RawHeaders, first
from router.web.paths import endpoint_of, split_policy

MAX_MESSAGES_BODY = 32 * 1024 * 1024  # Source: API overview, "Request size limits"
MAX_BATCH_BODY = 256 * 1024 * 1024
MAX_OTHER_BODY = 512 * 1024 * 1024

_LIMITS = {"messages": MAX_MESSAGES_BODY, "count_tokens": MAX_MESSAGES_BODY, "batches": MAX_BATCH_BODY}


def limit_of(endpoint: str) -> int:
    """The bytes that a body of this endpoint may have."""
    return _LIMITS.get(endpoint, MAX_OTHER_BODY)


def declared_size(headers: RawHeaders) -> int | None:
    """The length of the body as announced; 0 where there is none, None where nobody knows."""
    declared = first(headers, b"content-length")
    if declared is not None and declared.isdigit():
        return int(declared)
    return 0 if first(headers, b"transfer-encoding") is None else None


def size_taken(declared: int, scope: Mapping[str, Any]) -> int:
    """How much of a body will be read: nothing where it is longer than its endpoint takes."""
    path, _ = split_policy(scope.get("raw_path") or scope["path"].encode())
    return declared if declared <= limit_of(endpoint_of(scope["method"], path.decode("latin-1"))) else 0
