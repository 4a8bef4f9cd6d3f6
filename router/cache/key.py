"""`cache_key()`: the hash of everything that determines an answer.

The rule is the reverse of a list of what counts: every input of a request is in the key, except what the lists below
name with its reason. A field or a header that the API grows tomorrow is therefore in the key from its first day; what
nobody thought of costs a miss, never a wrong hit.

The key is made of named parts, each preceded by the lengths of its name and its value, so that no part can imitate
another or run into it. The scope is the first of them; a key without a scope cannot be written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import orjson

from router.wire.messages import MessagesRequest

KEY_VERSION = b"2"

# Top-level fields that do not count, each with the reason. (Of a body with white space in it all bytes count but those
# of `model`: it is not taken apart.)
IGNORED_FIELDS: Mapping[str, str] = {
    "model": "the model that is sent upstream counts instead, as a part of its own",
    "metadata": "holds `user_id`, which no model sees; a `metadata` with anything else in it counts whole",
    "stream": "counts as a part of its own, because a replay must have the form that was asked for",
}

_CREDENTIAL = "the scope stands for the credential"
_CONNECTION = "belongs to the connection, not to the request"
_CLIENT = "names the client program; no model sees it"
_PLACE = "tells which session, agent or turn of the client asks; no model sees it"
_HINT = "a hint of Claude Code to gateways; no model sees it"
_PAGE = "a browser tells the page that asks; no model sees it"
_ID = "an id of this one request, for logs"
_TRACE = "an id of this one request, for tracing"

# Headers that do not count, by lower-case name, each with the reason. Not among them on purpose: `content-type`, which
# says how the body is to be read; `idempotency-key`, because two of them ask for two answers; `baggage`, by which some
# networks choose a server.
IGNORED_HEADERS: Mapping[str, str] = {
    "authorization": _CREDENTIAL,
    "x-api-key": _CREDENTIAL,
    "host": _CONNECTION,
    "connection": _CONNECTION,
    "content-length": "follows from the body, which counts, and from the name of the model that was asked for",
    "accept": "the form of the answer follows from `stream`, which counts",
    "accept-encoding": "says how an answer may be packed on its way; the router asks for it unpacked",
    "accept-language": "the language of an answer follows from the body",
    "user-agent": _CLIENT,
    "x-app": _CLIENT,
    "x-claude-code-session-id": _PLACE,
    "x-claude-code-agent-id": _PLACE,
    "x-claude-code-parent-agent-id": _PLACE,
    "x-claude-code-prompt-id": _PLACE,
    "x-claude-code-agent-type": _HINT,
    "x-claude-code-request-class": _HINT,
    "x-claude-1p-request-class": _HINT,
    "x-claude-code-prev-tool-durations": _HINT,
    "anthropic-dangerous-direct-browser-access": "lets a browser ask at all; the answer is the same",
    "origin": _PAGE,
    "referer": _PAGE,
    "dnt": "a wish about being followed; no model sees it",
    "sec-gpc": "a wish about being followed; no model sees it",
    "priority": "a wish about the order on one connection (RFC 9218)",
    "x-request-id": _ID,
    "x-client-request-id": _ID,
    "x-correlation-id": _ID,
    "traceparent": _TRACE,
    "tracestate": _TRACE,
    "sentry-trace": _TRACE,
    "b3": _TRACE,
}

# Headers that do not count, by the beginning of the lower-case name, each with the reason.
IGNORED_HEADER_PREFIXES: Mapping[str, str] = {
    "x-stainless-": "an SDK tells its version, platform, timeouts and number of retries",
    "sec-fetch-": _PAGE,
    "sec-ch-": "a browser tells its version and platform",
    "x-b3-": _TRACE,
}

_HEADERS = frozenset(name.encode() for name in IGNORED_HEADERS)
_HEADER_PREFIXES = tuple(name.encode() for name in IGNORED_HEADER_PREFIXES)

# Claude Code's first system block names its version, and behind it three digits that vary with the first turn; the
# endpoint takes the block out before a model sees it. Only these digits are ignored, and only in a block that is
# nothing but this line: in anything looser, words for the model could be hidden from the key.
_BILLING_LINE = re.compile(
    rb'\[\{"type":"text","text":"x-anthropic-billing-header: cc_version=\d{1,9}\.\d{1,9}\.\d{1,9}\.([0-9a-f]{3});'
    rb' cc_entrypoint=[a-z-]{1,32};(?: [a-z_]{1,32}=[A-Za-z0-9._-]{1,64};){0,16}"[,}]'
)


def cache_key(
    request: MessagesRequest,
    *,
    scope: str,
    model: str,
    target: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    secret: bytes = b"",
) -> str:
    """The key of a request's answer, 64 hex digits.

    `scope` is who may share the answer: `shared`, or `tenant:NAME`. `model` is the model that is sent upstream,
    `target` the path and query, `headers` the headers that go there, by lower-case name, with or without the
    credential. Replicas that are to share answers have the same `secret`; who does not know it cannot work out a key.
    Raises ValueError when the scope is neither form.
    """
    if scope != "shared" and not (scope.startswith("tenant:") and len(scope) > len("tenant:")):
        raise ValueError(f"the scope of a cache key is `{scope[:64]}`, but must be `shared` or `tenant:NAME`")
    digest = hashlib.sha256()
    for name, value in _parts(request, scope, model, target, headers):
        digest.update(b"%d:%b%d:" % (len(name), name, len(value)))
        digest.update(value)
    # Hashed once more behind the secret: SHA-256 of secret and parts in one go could be continued by whoever sees keys.
    return hashlib.sha256(b"%d:%b%b" % (len(secret), secret, digest.digest())).hexdigest()


def _parts(
    request: MessagesRequest, scope: str, model: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes]]:
    """Everything that counts, as (name of the part, value)."""
    yield b"scope", _text(scope)
    yield b"version", KEY_VERSION
    yield b"model", _text(model)
    yield b"target", target
    yield b"form", b"stream" if request.is_streaming else b"plain"
    yield from _header_parts(headers)
    if request.is_compact:
        yield from _field_parts(request.body)
    else:
        # Parsing may have lost something (the digits of a long number), so the bytes themselves count, all but the
        # model's. Another spelling of the same request is then a miss, never a wrong hit.
        start, end = request.model_span
        yield b"raw before model", request.raw[:start]
        yield b"raw after model", request.raw[end:]


def _header_parts(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """The headers that count; those of one name in the order they have, and of the betas the set."""
    counted = [header for header in headers if header[0] not in _HEADERS and not header[0].startswith(_HEADER_PREFIXES)]
    betas: set[bytes] = set()
    for name, value in sorted(counted, key=itemgetter(0)):
        if name == b"anthropic-beta":
            # Nothing is stripped but what RFC 9110 (5.6.3) calls white space: other bytes are part of the name.
            betas.update([beta.strip(b" \t") for beta in value.split(b",")])
        else:
            yield b"header " + name, value
    for beta in sorted(betas):
        yield b"beta", beta


def _field_parts(body: Mapping[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """The fields that count, with the bytes they came in.

    Fields may come in any order. Inside a field order counts: a model is shown schemas and tool inputs as written.
    """
    for name in sorted(body):
        value = body[name]
        if name in IGNORED_FIELDS and (name != "metadata" or _is_user_alone(value)):
            continue
        written = orjson.dumps(value)
        yield b"field " + name.encode(), _without_billing_digits(written) if name == "system" else written


def _is_user_alone(metadata: Any) -> bool:
    return (
        isinstance(metadata, dict)
        and metadata.keys() <= {"user_id"}
        and isinstance(metadata.get("user_id"), str | None)
    )


def _without_billing_digits(system: bytes) -> bytes:
    found = _BILLING_LINE.match(system)
    # `000` is itself a form these digits can have, so no other text comes to look like this one.
    return system if found is None else b"%b000%b" % (system[: found.start(1)], system[found.end(1) :])


def _text(value: str) -> bytes:
    # A half of a surrogate pair, which no JSON that we read can hold, is still a text of its own.
    return value.encode("utf-8", "surrogatepass")
