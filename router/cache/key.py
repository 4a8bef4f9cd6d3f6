"""`cache_key()`: the hash of everything that determines an answer.

The rule is the reverse of a list of fields: every byte of the request counts, except what `IGNORED` names with its
reason. A field that the API grows tomorrow is therefore in the key from its first day. The tenant is the first thing
hashed; a key without a tenant cannot be written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from router.wire.messages import MessagesRequest

KEY_VERSION = b"1"

# Top-level fields that do not change the answer, each with the reason. Everything else counts.
IGNORED: Mapping[str, str] = {
    "model": "the model that is sent upstream counts instead, as a part of its own",
    "metadata": "describes the caller to the provider; does not reach the model",
    "stream": "counts as a part of its own, because a replay must have the form that was asked for",
}

# Claude Code's first system block carries a few digits that vary with the version and the first turn; the endpoint
# strips the block before the model sees it.
_BILLING_BLOCK = "x-anthropic-billing-header:"


def cache_key(
    request: MessagesRequest,
    *,
    tenant: str,
    model: str,
    api_version: str,
    betas: tuple[str, ...],
    workspace: str = "",
) -> str:
    """The key of a request's answer, 64 hex digits; `tenant` is the scope (a tenant's name, or `shared`).

    `model` is the model sent upstream; `workspace` the `anthropic-workspace-id` the client chose. Raises ValueError
    when the tenant is empty.
    """
    if not tenant:
        raise ValueError("a cache key needs a tenant")
    # Fields may come in any order. Inside a field order counts: a model is shown schemas and tool inputs as written.
    body = {name: request.body[name] for name in sorted(request.body) if name not in IGNORED}
    system = body.get("system")
    if isinstance(system, list) and system and _is_billing_block(system[0]):
        body["system"] = system[1:]
    digest = hashlib.sha256()
    form = b"stream" if request.is_streaming else b"plain"
    for part in (KEY_VERSION, tenant.encode(), model.encode(), form, api_version.encode(), workspace.encode()):
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    digest.update(orjson.dumps(sorted(betas)))
    if request.is_compact:
        digest.update(b"compact\0")
        digest.update(orjson.dumps(body))
    else:
        # Parsing may have lost something (the digits of a long number), so the bytes themselves count, all but the
        # model's. Another spelling of the same request is then a miss, never a wrong hit.
        start, end = request.model_span
        digest.update(b"raw\0")
        digest.update(request.raw[:start])
        digest.update(request.raw[end:])
    return digest.hexdigest()


def _is_billing_block(block: Any) -> bool:
    if not isinstance(block, dict):
        return False
    text = block.get("text")
    return isinstance(text, str) and text.startswith(_BILLING_BLOCK)
