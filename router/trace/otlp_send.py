"""One HTTP connection to a collector, in the thread of whoever sends; every call has a deadline for all of it.

No redirect is followed and no proxy asked. The deadline holds whatever the collector does: answer nothing, or a byte a
second.
"""

from __future__ import annotations

import gzip
import http.client
import io
import math
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

_MOST_READ = 64 * 1024  # bytes of an answer; a longer one costs the connection
_RETRYABLE = frozenset({429, 502, 503, 504})  # Source: OTLP specification, "Retryable Response Codes"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where spans go, and how: read from the `OTEL_EXPORTER_OTLP_*` variables.

    `headers` may hold credentials and are shown nowhere. `certificate` is a file of CAs; `client_certificate` and
    `client_key` are files too.
    """

    scheme: str
    host: str
    port: int
    target: str
    headers: Mapping[str, str]
    timeout_s: float = 10.0
    is_compressed: bool = False
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None

    def shown(self) -> str:
        """The address for people: no path, no query, no header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def tls(self) -> ssl.SSLContext | None:
        """How to check the collector; None for plain HTTP. Raises OSError for a file that cannot be used."""
        if self.scheme != "https":
            return None
        context = ssl.create_default_context(cafile=self.certificate)
        if self.client_certificate is not None:
            context.load_cert_chain(self.client_certificate, self.client_key)
        return context


@dataclass(frozen=True, slots=True)
class Sent:
    """How one call ended: `is_taken`, or what was wrong, and whether to try again and after how many seconds."""

    is_taken: bool
    body: bytes = b""
    problem: str = ""
    may_retry: bool = False
    retry_after_s: float | None = None


class Sender:
    """Posts request bodies to one endpoint over one kept connection; one thread at a time, but for `abort`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._tls = endpoint.tls()
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._timed: _Timed  # of the connection
        self._is_aborted = False
        headers = {**endpoint.headers, "content-type": "application/x-protobuf", "user-agent": "model-router"}
        if endpoint.is_compressed:
            headers["content-encoding"] = "gzip"
        self._headers = headers

    def post(self, body: bytes, timeout_s: float) -> Sent:
        """Send one body and read the answer, all within `timeout_s`. Never raises for what the other side does."""
        if self._endpoint.is_compressed:
            body = gzip.compress(body, 1)
        deadline = time.monotonic() + timeout_s
        was_open = self._connection is not None
        try:
            return self._post(body, deadline)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
            self.close()
            if not was_open or self._is_aborted:
                return Sent(False, problem=_name(error), may_retry=True)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            return Sent(False, problem=_name(error), may_retry=True)
        try:  # a kept connection that the collector had closed meanwhile says nothing about the collector
            return self._post(body, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            return Sent(False, problem=_name(error), may_retry=True)

    def abort(self) -> None:
        """End the call under way and every later one; for another thread."""
        self._is_aborted = True
        raw = self._socket
        if raw is not None:
            try:
                socket.socket.shutdown(raw, socket.SHUT_RDWR)  # below TLS, which another thread is in the middle of
            except OSError:
                pass

    def close(self) -> None:
        """Let the connection go; the next call makes a new one."""
        raw, self._socket, self._connection = self._socket, None, None
        if raw is not None:
            raw.close()

    def _post(self, body: bytes, deadline: float) -> Sent:
        connection = self._connected(deadline)
        connection.request("POST", self._endpoint.target, body, self._headers)
        with connection.getresponse() as answer:
            said = answer.read(_MOST_READ)
            status = answer.status
            if answer.will_close or not answer.isclosed():
                self.close()
        if 200 <= status < 300:
            return Sent(True, said)
        problem = f"status {status}"
        if status not in _RETRYABLE:
            return Sent(False, problem=problem)
        return Sent(False, problem=problem, may_retry=True, retry_after_s=_seconds(answer.headers.get("retry-after")))

    def _connected(self, deadline: float) -> http.client.HTTPConnection:
        if self._is_aborted:
            raise ConnectionAbortedError("closing")
        endpoint = self._endpoint
        connection = self._connection
        if connection is None:
            raw = socket.create_connection((endpoint.host, endpoint.port), timeout=_left(deadline))
            self._socket = raw
            if self._tls is not None:
                raw.settimeout(_left(deadline))
                self._socket = raw = self._tls.wrap_socket(raw, server_hostname=endpoint.host)
            connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
            self._connection = connection
            self._timed = connection.sock = _Timed(raw)
            if self._is_aborted:
                raise ConnectionAbortedError("closing")
        self._timed.deadline = deadline
        return connection


class _Timed:
    """As much of a socket as http.client uses; each wait ends at the deadline, not after a silence."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw
        self.deadline = 0.0

    def sendall(self, data: bytes) -> None:
        self._raw.settimeout(_left(self.deadline))
        self._raw.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self, self._raw))

    def close(self) -> None:
        """Nothing: http.client closes early, the `Sender` when the answer is read."""


class _Incoming(io.RawIOBase):
    """What comes from the socket."""

    def __init__(self, timed: _Timed, raw: socket.socket) -> None:
        super().__init__()
        self._timed = timed
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._raw.settimeout(_left(self._timed.deadline))
        return self._raw.recv_into(buffer)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _seconds(value: str | None) -> float | None:
    """The wait that a `retry-after` asks for: seconds or a date; None where it cannot be read."""
    if value is None:
        return None
    try:
        wait_s = float(value) if value.strip()[:1].isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return max(0.0, wait_s) if math.isfinite(wait_s) else None


def _name(error: Exception) -> str:
    """What went wrong, in words that hold nothing of the request or the answer."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or type(error).__name__
