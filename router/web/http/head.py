"""The head of a request, read strictly: request line and headers, from bytes to a value or a refusal.

One reader decides where a request ends and what it says; no second parser behind it can see something else. It takes
the grammar of RFC 9112 without its licences for old senders: lines end in CRLF, nothing is folded, a name touches its
colon, and whatever says where the body ends says it once. Where a front and a server read a head differently, one
request becomes two (request smuggling); what could be read in two ways is refused here.

The usual head costs a handful of passes in C over all of its bytes, and one turn of a loop for each header: 7 µs for
one of 15 headers. (Remembering lines that were seen before would save 1 µs, and share a memory between tenants.)
"""

from __future__ import annotations

import re

from router.web.http.limits import MAX_HEAD_BYTES, MAX_HEADERS, MAX_LINE_BYTES
from router.web.http.refusal import Refused

CRLF = b"\r\n"
HEAD_END = b"\r\n\r\n"
CHUNKED = -1  # as a length

# What may stand in a header's value, in a token (RFC 9110, 5.6.2), and in a target.
TEXT = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])
TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TARGET = bytes(byte for byte in range(0x21, 0x7F) if byte not in b"#\\")  # a fragment, and what some read as a slash

_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
_LENGTH_DIGITS = 15

# Which of two would count differs between readers. (Of credentials the first counts, and it alone goes upstream.)
_ONCE = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect", b"content-encoding"})
# A gateway that turns `-` into `_`, as CGI does, reads the twin as the header itself.
_NO_TWINS = _ONCE | {
    b"x-api-key",
    b"authorization",
    b"connection",
    b"content-type",
    b"upgrade",
    b"te",
    b"trailer",
    b"cookie",
    b"forwarded",
    b"anthropic-version",
    b"anthropic-beta",
}
_NO_TWIN_PREFIXES = (b"x-router-", b"x-forwarded-")


class Head:
    """One request without its body. Header names are in lower case; `length` is in bytes, or CHUNKED."""

    __slots__ = ("expects", "headers", "is_1_1", "keeps_alive", "length", "method", "path", "query")

    def __init__(
        self,
        method: str,
        path: bytes,
        query: bytes,
        headers: list[tuple[bytes, bytes]],
        length: int,
        *,
        is_1_1: bool,
        keeps_alive: bool,
        expects: bool,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.length = length
        self.is_1_1 = is_1_1
        self.keeps_alive = keeps_alive  # as far as the client is concerned
        self.expects = expects  # a 100 before it sends its body


def parse_head(raw: bytes) -> Head:
    """Read a head, given without the empty line that ends it. Raises Refused."""
    if raw[:2] == CRLF:  # RFC 9112, 2.2: one empty line in front is a client's old habit
        raw = raw[2:]
    line, *fields = raw.split(CRLF)
    # Without what may stand in a line only its ends are left; a CR or LF alone makes them more.
    if raw.translate(None, TEXT) != CRLF * len(fields):
        raise Refused("syntax", "the head holds a control byte, or a CR or LF that is not a line's end")
    if len(fields) > MAX_HEADERS:
        raise Refused("head_size", f"the request has over {MAX_HEADERS} headers", 431)
    if len(raw) > MAX_LINE_BYTES:
        _check_sizes(raw, line, fields)
    method, target, is_1_1 = parse_request_line(line)
    headers: list[tuple[bytes, bytes]] = []
    try:
        for field in fields:
            name, value = field.split(b":", 1)
            headers.append((name.lower(), value.strip(b" \t")))
    except ValueError:
        raise Refused("syntax", "a header line has no colon") from None
    named = dict(headers)
    names = b"".join(named)
    if b"" in named or names.translate(None, TOKEN):
        raise Refused("syntax", "the name of a header is not a token right before its colon")
    if len(named) != len(headers):
        _check_repeated(headers)
    if b"_" in names:
        _check_twins(named)
    host = named.get(b"host")
    if host is None:
        if is_1_1:
            raise Refused("host", "the request has no Host header")
    elif _HOST.fullmatch(host) is None:
        raise Refused("host", "the Host header is not a host with or without a port")
    coding = named.get(b"transfer-encoding")
    declared = named.get(b"content-length")
    if coding is not None:
        _check_coding(coding, declared, is_1_1=is_1_1)
        length = CHUNKED
    elif declared is None:
        length = 0
    elif declared.isdigit() and len(declared) <= _LENGTH_DIGITS:
        length = int(declared)
    else:
        raise Refused("framing", "the Content-Length is not a number of bytes")
    expectation = named.get(b"expect")
    if expectation is not None and expectation.lower() != b"100-continue":
        raise Refused("expect", "only the expectation `100-continue` is met", 417)
    connection = named.get(b"connection")
    is_kept = connection is None or (connection == b"keep-alive" and len(named) == len(headers))
    path, _, query = target.partition(b"?")
    return Head(
        method,
        path,
        query,
        headers,
        length,
        is_1_1=is_1_1,
        keeps_alive=is_1_1 and (is_kept or not _says_close(headers)),
        expects=is_1_1 and expectation is not None and length != 0,
    )


def parse_request_line(line: bytes) -> tuple[str, bytes, bool]:
    """`POST /v1/messages HTTP/1.1` → method, target, whether the version is 1.1. Raises Refused."""
    try:
        method, target, version = line.split(b" ")
    except ValueError:
        raise Refused("syntax", "the request line is not a method, a target and a version") from None
    if version != b"HTTP/1.1" and version != b"HTTP/1.0":
        if _VERSION.fullmatch(version):
            raise Refused("version", "the version of HTTP is not 1.1 or 1.0", 505)
        raise Refused("syntax", "the request line ends in no version of HTTP")
    known = _METHODS.get(method)
    if known is None:
        if not method or method.translate(None, TOKEN):
            raise Refused("syntax", "the method is not a token")
        raise Refused("method", "the method is not served", 501)
    if target[:1] != b"/" or target.translate(None, _TARGET):
        raise Refused("target", "the target is not a path of printable ASCII: no scheme, host, fragment or `*`")
    return known, target, version == b"HTTP/1.1"


class PartialHead:
    """A head that comes in pieces: what cannot become one is refused at the first byte that shows it.

    After `feed` said True, `raw` is the head without its empty line and `rest` what came behind it.
    """

    __slots__ = ("_begins_at", "_bytes", "_line_at", "_lines", "_seen", "raw", "rest")

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._begins_at = 0  # behind the one empty line that may come first
        self._line_at = 0  # where the line begins that is not complete
        self._lines = 0
        self._seen = 0
        self.raw = b""
        self.rest = b""

    @property
    def is_blank(self) -> bool:
        """Nothing but an empty line has come: the end of what an old client sent before, not a beginning."""
        return len(self._bytes) == self._begins_at

    def feed(self, data: bytes) -> bool:
        """Take more bytes; True once the head is complete. Raises Refused."""
        held = self._bytes
        held += data
        if held[0] not in TOKEN and held[0] != 0x0D:
            is_tls = held[0] == 0x16
            raise Refused("syntax", "this listener speaks HTTP without TLS" if is_tls else "this is not HTTP")
        while (at := held.find(b"\n", self._seen)) >= 0:
            if at == 0 or held[at - 1] != 0x0D:
                raise Refused("syntax", "a line of the head ends in LF without CR")
            if at - 1 > self._line_at:
                self._take_line(bytes(held[self._line_at : at - 1]))
            elif self._lines:
                self.raw = bytes(held[self._begins_at : at - 3])
                self.rest = bytes(held[at + 1 :])
                return True
            elif self._begins_at:
                raise Refused("syntax", "the head begins with more than one empty line")
            else:
                self._begins_at = at + 1
            self._line_at = self._seen = at + 1
        at = held.find(b"\r", self._seen)
        if 0 <= at < len(held) - 1:
            raise Refused("syntax", "a CR in the head is not followed by LF")
        self._seen = len(held) if at < 0 else at
        self._check_size(len(held) - self._line_at)
        if len(held) > MAX_HEAD_BYTES:
            raise Refused("head_size", f"the head is over {MAX_HEAD_BYTES} bytes", 431)
        return False

    def _take_line(self, line: bytes) -> None:
        self._check_size(len(line))
        if self._lines == 0:
            parse_request_line(line)
        self._lines += 1
        if self._lines > MAX_HEADERS + 1:
            raise Refused("head_size", f"the request has over {MAX_HEADERS} headers", 431)

    def _check_size(self, size: int) -> None:
        if size > MAX_LINE_BYTES:
            raise _too_long(is_request_line=self._lines == 0)


def _too_long(*, is_request_line: bool) -> Refused:
    if is_request_line:
        return Refused("target_length", f"the request line is over {MAX_LINE_BYTES} bytes", 414)
    return Refused("head_size", f"a header is over {MAX_LINE_BYTES} bytes", 431)


def _check_sizes(raw: bytes, line: bytes, fields: list[bytes]) -> None:
    if len(line) > MAX_LINE_BYTES:
        raise _too_long(is_request_line=True)
    if len(raw) > MAX_HEAD_BYTES or max(map(len, fields), default=0) > MAX_LINE_BYTES:
        raise _too_long(is_request_line=False)


def _check_repeated(headers: list[tuple[bytes, bytes]]) -> None:
    seen = set()
    for name, _ in headers:
        if name in _ONCE:
            if name in seen:
                reason = "framing" if name in (b"content-length", b"transfer-encoding") else "repeated"
                raise Refused("host" if name == b"host" else reason, f"the header {name.decode()} came more than once")
            seen.add(name)


def _check_twins(named: dict[bytes, bytes]) -> None:
    for name in named:
        if b"_" in name:
            meant = name.replace(b"_", b"-")
            if meant in _NO_TWINS or meant.startswith(_NO_TWIN_PREFIXES):
                raise Refused("twin", "a header that matters is written with `_`, expected `-`")


def _check_coding(coding: bytes, declared: bytes | None, *, is_1_1: bool) -> None:
    if declared is not None:
        raise Refused("framing", "the request has both a Content-Length and a Transfer-Encoding")
    if not is_1_1:
        raise Refused("framing", "HTTP/1.0 has no Transfer-Encoding")
    if coding.lower() != b"chunked":
        codings = [part.strip(b" \t").lower() for part in coding.split(b",")]
        is_known = all(part in (b"gzip", b"x-gzip", b"deflate", b"compress", b"chunked") for part in codings)
        is_lawful = is_known and codings[-1] == b"chunked" and codings.count(b"chunked") == 1
        raise Refused("framing", "the only transfer coding taken is `chunked`", 501 if is_lawful else 400)


def _says_close(headers: list[tuple[bytes, bytes]]) -> bool:
    joined = b",".join(value for name, value in headers if name == b"connection")
    return b"close" in [part.strip(b" \t") for part in joined.lower().split(b",")]
