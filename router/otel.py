"""The standard `OTEL_*` variables: whether spans are exported, where to, and what they say of this process.

Read here and nowhere else. Empty is unset, as OpenTelemetry says; a value that cannot be used stops the start with the
variable's name, because a silent fallback is found out only when the traces are needed.
Source: OpenTelemetry specification, "Environment Variable Specification" and "Protocol Exporter".
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from router.errors import SettingsError
from router.settings import Settings
from router.trace.otlp_send import Endpoint
from router.trace.semconv import SEMCONV
from router.trace.spans import Origin

if TYPE_CHECKING:  # the library behind it is loaded only where spans are exported
    from router.trace.otlp import OtlpSink

SERVICE_NAME = "model-router"
_BASE = "OTEL_EXPORTER_OTLP_"
_TRACES = "OTEL_EXPORTER_OTLP_TRACES_"
_LEAST_MS, _MOST_MS = 100, 600_000
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_OURS = frozenset({"host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection"})


def open_otlp(settings: Settings, environment: Mapping[str, str], version: str) -> OtlpSink | None:
    """The exporter that the environment asks for; None where it asks for none. Raises SettingsError."""
    endpoint = read_endpoint(environment)
    if endpoint is None:
        return None
    from router.trace.otlp import OtlpSink

    return OtlpSink(
        endpoint,
        origin_of(settings.upstream_url),
        resource=read_resource(environment, version, os.urandom(16).hex()),
        version=version,
        names=SEMCONV[settings.otel_semconv],
    )


def check_otel(environment: Mapping[str, str]) -> None:
    """Refuse what `open_otlp` would refuse. Raises SettingsError."""
    if read_endpoint(environment) is not None:
        read_resource(environment, "", "")


def origin_of(url: str) -> Origin:
    """The upstream's URL taken apart, for `server.address` and `server.port`."""
    parts = urlsplit(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    return Origin(url.rstrip("/"), parts.hostname or "", port)


def read_endpoint(environment: Mapping[str, str]) -> Endpoint | None:
    """Where spans go; None where no endpoint is named, or exporting is turned off. Raises SettingsError."""
    is_disabled = _word(environment, "OTEL_SDK_DISABLED", ("true", "false"), "false") == "true"
    exporter = _word(environment, "OTEL_TRACES_EXPORTER", ("otlp", "none"), "otlp")
    name = _TRACES + "ENDPOINT" if environment.get(_TRACES + "ENDPOINT") else _BASE + "ENDPOINT"
    url = environment.get(name, "").strip()
    if not url or is_disabled or exporter == "none":
        return None
    name_of_protocol = _named(environment, "PROTOCOL")
    protocol = environment.get(name_of_protocol) or "http/protobuf"
    if protocol != "http/protobuf":
        raise SettingsError(
            f"`{name_of_protocol}` is `{protocol:.40}`, expected `http/protobuf`",
            hint="gRPC is not spoken; a collector takes HTTP on port 4318",
        )
    try:
        parts = urlsplit(url)
        port = parts.port or (80 if parts.scheme == "http" else 443)
    except ValueError as exc:
        raise SettingsError(f"`{name}` is no URL: {str(exc).lower():.80}") from exc
    is_plain = all("!" <= char <= "~" for char in url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain or parts.fragment:
        raise SettingsError(f"`{name}` is not `http(s)://HOST[:PORT][/PATH]`")  # not shown: it may hold a credential
    if "@" in parts.netloc:
        raise SettingsError(
            f"`{name}` holds a user name",
            hint=f"credentials go into `{_BASE}HEADERS`, such as `authorization=Bearer …`",
        )
    path = parts.path if name.startswith(_TRACES) else parts.path.rstrip("/") + "/v1/traces"
    endpoint = Endpoint(
        parts.scheme,
        parts.hostname,
        port,
        (path or "/") + (f"?{parts.query}" if parts.query else ""),
        _headers(environment),
        _timeout_s(environment),
        _word(environment, _named(environment, "COMPRESSION"), ("gzip", "none"), "none") == "gzip",
        environment.get(_named(environment, "CERTIFICATE")) or None,
        environment.get(_named(environment, "CLIENT_CERTIFICATE")) or None,
        environment.get(_named(environment, "CLIENT_KEY")) or None,
    )
    try:
        endpoint.tls()
    except (OSError, ssl.SSLError) as exc:
        raise SettingsError(
            f"`{_BASE}CERTIFICATE`, `{_BASE}CLIENT_CERTIFICATE` or `{_BASE}CLIENT_KEY` cannot be used: "
            f"{exc.strerror or type(exc).__name__}"
        ) from exc
    return endpoint


def read_resource(environment: Mapping[str, str], version: str, instance: str) -> Mapping[str, str]:
    """What the spans say of this process; `instance` tells it from others. Raises SettingsError."""
    resource = {"service.name": SERVICE_NAME, "service.version": version, "service.instance.id": instance}
    resource |= _pairs(environment, "OTEL_RESOURCE_ATTRIBUTES")
    name = environment.get("OTEL_SERVICE_NAME", "").strip()
    if name:
        resource["service.name"] = name
    if not all(text.isprintable() for pair in resource.items() for text in pair):
        raise SettingsError("`OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` holds what cannot be printed")
    return resource


def _named(environment: Mapping[str, str], suffix: str) -> str:
    """The variable that says it: the one for traces, else the one for all signals."""
    return _TRACES + suffix if environment.get(_TRACES + suffix) else _BASE + suffix


def _word(environment: Mapping[str, str], name: str, words: tuple[str, str], default: str) -> str:
    value = environment.get(name, "").strip().lower() or default
    if value not in words:
        raise SettingsError(f"`{name}` is `{value:.40}`, expected `{words[0]}` or `{words[1]}`")
    return value


def _timeout_s(environment: Mapping[str, str]) -> float:
    name = _named(environment, "TIMEOUT")
    value = environment.get(name, "").strip() or "10000"
    if not value.isascii() or not value.isdigit() or not _LEAST_MS <= int(value) <= _MOST_MS:
        raise SettingsError(
            f"`{name}` is `{value:.40}`, expected whole milliseconds from {_LEAST_MS} to {_MOST_MS}",
            hint="`10000` is ten seconds",
        )
    return int(value) / 1000


def _headers(environment: Mapping[str, str]) -> Mapping[str, str]:
    name = _named(environment, "HEADERS")
    headers = {key.lower(): value for key, value in _pairs(environment, name).items()}
    for key, value in headers.items():
        is_sendable = value.isascii() and value.isprintable()
        if not _HEADER_NAME.fullmatch(key) or key in _NOT_OURS or not is_sendable:
            raise SettingsError(f"`{name}` has a header that cannot be sent", hint="`name=value,name=value`")
    return headers


def _pairs(environment: Mapping[str, str], name: str) -> dict[str, str]:
    """`name=value,name=value`, values percent-decoded; the value is never shown, because it may hold a credential."""
    pairs = {}
    for part in environment.get(name, "").split(","):
        if not part.strip():
            continue
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise SettingsError(f"`{name}` is not a list of `name=value`, separated by commas")
        pairs[unquote(key.strip())] = unquote(value.strip())
    return pairs
