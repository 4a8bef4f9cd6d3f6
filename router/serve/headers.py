"""Which headers cross the router, both ways.

Unknown headers pass: a beta of tomorrow must work today. What never passes is named here: what belongs to one hop
(RFC 9110, 7.6.1, and whatever `Connection` names), what would carry state or identity of one side to the other
(cookies, forwarding headers, server names), and the router's own. Exactly one credential goes upstream.
"""

from __future__ import annotations

from router.trace.context import traceparent
from router.trace.record import Trace
from router.value import value_class

RawHeaders = list[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
_NEVER_UP = _HOP_BY_HOP | {
    b"host",  # the upstream's own is written by the adapter
    b"content-length",  # likewise: the model splice may change it
    b"expect",  # answered by our server
    b"cookie",
    b"authorization",  # the one credential is added by name
    b"x-api-key",
    b"forwarded",
    b"via",
    b"x-real-ip",
    b"true-client-ip",
    b"cdn-loop",
    b"prefer",  # `respond-async` is the router's
    b"traceparent",  # trace context crosses only when configured
    b"tracestate",
    b"baggage",
}
_NEVER_UP_PREFIXES = (b"x-router-", b"x-forwarded-", b"cf-", b"x-envoy-", b"x-amzn-")
_NEVER_DOWN = _HOP_BY_HOP | {
    b"set-cookie",
    b"set-cookie2",
    b"server",
    b"via",
    b"alt-svc",  # advertises the upstream's endpoints as ours
    b"strict-transport-security",  # speaks for the upstream's host name
    b"report-to",
    b"nel",
    b"proxy-status",
}
_NEVER_DOWN_PREFIXES = (b"x-router-", b"cf-", b"x-envoy-", b"x-amzn-")


@value_class(frozen=True, slots=True)
class Credential:
    """What the client authenticated with: the header it came in and its full value."""

    header: bytes  # x-api-key | authorization
    value: bytes

    def secret(self) -> bytes:
        """The key or token alone, the same for both header forms."""
        return self.value[7:].strip() if self.header == b"authorization" else self.value


def credential_of(headers: RawHeaders) -> Credential | None:
    """The client's credential, from `x-api-key` or `Authorization: Bearer`; the first form wins when both came."""
    bearer: Credential | None = None
    for name, value in headers:
        if name == b"x-api-key" and value.strip():
            return Credential(b"x-api-key", value.strip())
        if name == b"authorization" and bearer is None and value[:7].lower() == b"bearer " and value[7:].strip():
            bearer = Credential(b"authorization", value)
    return bearer


def upstream_headers(headers: RawHeaders, credential: Credential, *, is_metered: bool) -> RawHeaders:
    """The request headers to send: the client's, less what must not cross, with exactly one credential.

    A metered answer is asked for without compression, so that its bytes can be both relayed unchanged and read.
    """
    hop = _named_by_connection(headers)
    kept = [
        (name, value)
        for name, value in headers
        if name not in _NEVER_UP
        and name not in hop
        and not name.startswith(_NEVER_UP_PREFIXES)
        and not (is_metered and name == b"accept-encoding")
    ]
    if is_metered:
        kept.append((b"accept-encoding", b"identity"))
    if credential.header:  # a browser's preflight has none
        kept.append((credential.header, credential.value))
    return kept


def with_trace_context(headers: RawHeaders, trace: Trace) -> RawHeaders:
    """The headers of the attempt that was noted last, with a `traceparent` of our own; nothing else of a context."""
    return [*headers, (b"traceparent", traceparent(trace))]


def downstream_headers(headers: RawHeaders) -> RawHeaders:
    """The response headers to relay: the upstream's, in its order, less what must not cross."""
    hop = _named_by_connection(headers)
    return [
        (name, value)
        for name, value in headers
        if name not in _NEVER_DOWN and name not in hop and not name.startswith(_NEVER_DOWN_PREFIXES)
    ]


def router_headers(trace: Trace) -> RawHeaders:
    """What the router did, as far as it came: the headers that it adds to every answer about a model."""
    added = [(b"x-router-trace", trace.trace_id.encode())]
    if trace.model_sent:
        added.append((b"x-router-model", header_value(trace.model_sent)))
        added.append((b"x-router-lane", header_value(trace.lane)))
    if trace.rule:
        added.append((b"x-router-rule", header_value(trace.rule)))
    if trace.policy:
        added.append((b"x-router-policy", header_value(f"{trace.policy}@{trace.revision}")))
    added.append((b"x-router-cache", trace.cache.encode()))
    if trace.edits:
        added.append((b"x-router-edits", header_value(", ".join(trace.edits))))
    return added


def header_value(text: str) -> bytes:
    """`text` as a header value: what is not printable ASCII becomes `?`, so that no name can end a line."""
    return text.encode("ascii", "replace").translate(_PRINTABLE)[:512]


def usd(pusd: int) -> bytes:
    """Pico-dollars as a decimal number of dollars, exact and without an exponent."""
    sign, pusd = ("-", -pusd) if pusd < 0 else ("", pusd)
    whole, rest = divmod(pusd, 10**12)
    return f"{sign}{whole}.{rest:012d}".rstrip("0").rstrip(".").encode()


def first(headers: RawHeaders, name: bytes) -> bytes | None:
    """The value of the first header of that (lower-case) name."""
    for candidate, value in headers:
        if candidate == name:
            return value
    return None


_PRINTABLE = bytes(code if 0x20 <= code < 0x7F else 0x3F for code in range(256))


def _named_by_connection(headers: RawHeaders) -> frozenset[bytes]:
    value = first(headers, b"connection")
    if value is None or value in (b"keep-alive", b"close"):
        return frozenset()
    joined = b",".join(value for name, value in headers if name == b"connection")
    return frozenset(name.strip().lower() for name in joined.split(b","))
