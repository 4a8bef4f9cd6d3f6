"""Requests that a server must refuse, and odd ones that it must serve: one table for every test that needs them.

Each case is the bytes of a request to the Messages endpoint with one thing wrong (or odd). `REFUSED` says which
statuses may answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from kit.raw_client import request

BODY = b'{"model":"claude-sonnet-5-5","max_tokens":16,"messages":[{"role":"user","content":"Hi"}]}'
POST = b"POST /v1/messages HTTP/1.1"
KEY = (b"x-api-key: sk-test-1", b"anthropic-version: 2023-06-01")
LENGTH = b"content-length: %d" % len(BODY)
CHUNKED = b"transfer-encoding: chunked"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@dataclass(frozen=True, slots=True)
class Case:
    """A request; `statuses` may answer it."""

    name: str
    data: bytes
    statuses: tuple[int, ...] = (400,)


def _fields(*fields: bytes, line: bytes = POST, host: bytes | None = b"host: test", body: bytes = BODY) -> bytes:
    return request(line, *KEY, *fields, body=body, host=host)


def _odd(*fields: bytes, **more: bytes | None) -> bytes:
    return _fields(*fields, LENGTH, **more)  # type: ignore[arg-type]


def _line(line: bytes) -> bytes:
    return _odd(line=line)


def _chunks(data: bytes) -> bytes:
    return _fields(CHUNKED, body=data)


def _first(size: bytes, rest: bytes = b"\r\nhello\r\n0\r\n\r\n") -> bytes:
    return _chunks(size + rest)


REFUSED = [
    # Host (F45)
    Case("no host", _odd(host=None)),
    Case("two hosts", _odd(b"Host: other")),
    Case("the same host twice", _odd(b"host: test")),
    Case("an empty host", _odd(host=b"host:")),
    Case("a host with a path", _odd(host=b"host: test/v1")),
    Case("a host with user information", _odd(host=b"host: me@test")),
    Case("a host with a comma", _odd(host=b"host: test, other")),
    Case("a host with a question mark", _odd(host=b"host: test?x")),
    Case("a host with a fragment", _odd(host=b"host: test#x")),
    Case("a host with a space", _odd(host=b"host: te st")),
    Case("a host with a scheme", _odd(host=b"host: http://test")),
    Case("a host with a port that is no number", _odd(host=b"host: test:80a")),
    Case("a host with two ports", _odd(host=b"host: test:80:81")),
    # Lines (F44, F46)
    Case("line ends of LF alone", _odd().replace(b"\r\n", b"\n")),
    Case("one line end of LF alone", _odd(b"x-a: 1\nx-b: 2")),
    Case("a header line that ends in LF alone", _fields(b"x-a: 1", LENGTH).replace(b"x-a: 1\r\n", b"x-a: 1\n")),
    Case("a request line that ends in LF alone", _odd().replace(POST + b"\r\n", POST + b"\n")),
    Case("line ends of CR alone", _odd().replace(b"\r\n", b"\r")),
    Case("CR in a value", _odd(b"x-a: 1\rx-b: 2")),
    Case("CR CR LF", _odd(b"x-a: 1\r")),
    Case("NUL in a value", _odd(b"x-a: 1\0")),
    Case("a control byte in a value", _odd(b"x-a: 1\x01")),
    Case("a vertical tab in a value", _odd(b"x-a: 1\x0b")),
    Case("DEL in a value", _odd(b"x-a: 1\x7f")),
    Case("an empty name", _odd(b": 1")),
    Case("a space before the colon", _odd(b"x-a : 1")),
    Case("a tab before the colon", _odd(b"x-a\t: 1")),
    Case("a space in a name", _odd(b"x a: 1")),
    Case("a name with a bracket", _odd(b"x(a): 1")),
    Case("a name with a byte over 127", _odd(b"x-\xe4: 1")),
    Case("NUL in a name", _odd(b"x-\0a: 1")),
    Case("a folded header", _odd(b"x-a: 1\r\n 2")),
    Case("a header folded with a tab", _odd(b"x-a: 1\r\n\t2")),
    Case("a first header that begins with a space", _odd(host=b" host: test")),
    Case("a header without a colon", _odd(b"x-a")),
    Case("two empty lines in front", b"\r\n\r\n" + _odd()),
    Case("LF in front", b"\n" + _odd()),
    # Framing (F46)
    Case("a length and chunks", _fields(LENGTH, CHUNKED, body=CHUNKS)),
    Case("chunks and a length", _fields(CHUNKED, LENGTH, body=CHUNKS)),
    Case("two lengths that differ", _fields(LENGTH, b"content-length: 4")),
    Case("two lengths that agree", _fields(LENGTH, LENGTH)),
    Case("a list of lengths", _fields(LENGTH + b", %d" % len(BODY))),
    Case("a length with a plus", _fields(b"content-length: +%d" % len(BODY))),
    Case("a length with a minus", _fields(b"content-length: -1")),
    Case("a length in hex", _fields(b"content-length: 0x10")),
    Case("a length with a space in it", _fields(b"content-length: 1 0")),
    Case("a length with an underscore", _fields(b"content-length: 1_0")),
    Case("a length with a point", _fields(b"content-length: 10.0")),
    Case("an empty length", _fields(b"content-length:")),
    Case("a length of 20 digits", _fields(b"content-length: 99999999999999999999")),
    Case("a length in other digits", _fields("content-length: \u0661\u0662".encode())),
    Case("gzip before chunks", _fields(b"transfer-encoding: gzip, chunked", body=CHUNKS), (501,)),
    Case("the coding identity", _fields(b"transfer-encoding: identity", LENGTH)),
    Case("identity alone", _fields(b"transfer-encoding: identity")),
    Case("an unknown coding", _fields(b"transfer-encoding: xchunked", body=CHUNKS)),
    Case("chunked twice", _fields(b"transfer-encoding: chunked, chunked", body=CHUNKS)),
    Case("chunked before another", _fields(b"transfer-encoding: chunked, gzip", body=CHUNKS)),
    Case("chunked with a parameter", _fields(b"transfer-encoding: chunked;q=1", body=CHUNKS)),
    Case("chunked in quotes", _fields(b'transfer-encoding: "chunked"', body=CHUNKS)),
    Case("chunked behind a vertical tab", _fields(b"transfer-encoding: \x0bchunked", body=CHUNKS)),
    Case("chunked behind a comma", _fields(b"transfer-encoding: , chunked", body=CHUNKS)),
    Case("an empty coding", _fields(b"transfer-encoding:", body=CHUNKS)),
    Case("two codings in two headers", _fields(CHUNKED, b"transfer-encoding: identity", body=CHUNKS)),
    Case("chunked in two headers", _fields(CHUNKED, CHUNKED, body=CHUNKS)),
    Case("a space behind the name of the coding", _fields(b"transfer-encoding : chunked", body=CHUNKS)),
    Case("a folded coding", _fields(b"transfer-encoding:\r\n chunked", body=CHUNKS)),
    Case("chunks in HTTP/1.0", _fields(CHUNKED, line=b"POST /v1/messages HTTP/1.0", body=CHUNKS)),
    Case("content_length", _odd(b"content_length: 4")),
    Case("transfer_encoding", _odd(b"Transfer_Encoding: chunked")),
    Case("x_api_key", _odd(b"x_api_key: sk-other")),
    Case("x-api_key", _odd(b"X-Api_Key: sk-other")),
    Case("x_router_lane", _odd(b"x_router_lane: opus")),
    Case("two encodings", _odd(b"content-encoding: identity", b"content-encoding: gzip")),
    # Chunks (F46)
    Case("a chunk size with a plus", _first(b"+5")),
    Case("a chunk size with a minus", _first(b"-5")),
    Case("a chunk size with 0x", _first(b"0x5")),
    Case("a chunk size with an underscore", _first(b"0_5")),
    Case("a chunk size behind a space", _first(b" 5")),
    Case("a chunk size before a space", _first(b"5 ")),
    Case("a chunk size that is no number", _first(b"five")),
    Case("a chunk size of 17 digits", _first(b"10000000000000005")),
    Case("a chunk size of 9 digits", _first(b"000000005")),
    Case("no chunk size", _first(b"")),
    Case("an extension alone", _first(b";a=b")),
    Case("a chunk size that ends in LF alone", _first(b"5", b"\nhello\r\n0\r\n\r\n")),
    Case("a chunk size that ends in CR alone", _first(b"5", b"\rhello\r\n0\r\n\r\n")),
    Case("LF in an extension", _first(b"5;a\nb")),
    Case("NUL in an extension", _first(b"5;a\0b")),
    Case("an extension of 300 bytes", _first(b"5;" + b"a" * 300)),
    Case("a chunk longer than it says", _first(b"4")),
    Case("a chunk shorter than it says", _first(b"6")),
    Case("a chunk that ends in LF alone", _first(b"5", b"\r\nhello\n0\r\n\r\n")),
    Case("a last chunk that ends in LF alone", _chunks(b"5\r\nhello\r\n0\n\n")),
    Case("a trailer that is a length", _chunks(b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n")),
    Case("a trailer that is a coding", _chunks(b"5\r\nhello\r\n0\r\ntransfer-encoding: chunked\r\n\r\n")),
    Case("a trailer that is a key", _chunks(b"5\r\nhello\r\n0\r\nx-api-key: sk-other\r\n\r\n")),
    Case("a trailer that is no header", _chunks(b"5\r\nhello\r\n0\r\nGET / HTTP/1.1\r\n\r\n")),
    Case("trailers over 8 KiB", _chunks(b"5\r\nhello\r\n0\r\n" + b"x-a: aaaaaaaa\r\n" * 600 + b"\r\n")),
    # Request lines (F48)
    Case("HTTP/2.0", _line(b"POST /v1/messages HTTP/2.0"), (505,)),
    Case("HTTP/1.2", _line(b"POST /v1/messages HTTP/1.2"), (505,)),
    Case("HTTP/0.9 by name", _line(b"POST /v1/messages HTTP/0.9"), (505,)),
    Case("HTTP/0.9", b"GET /v1/models\r\n"),
    Case("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (505,)),
    Case("a version in small letters", _line(b"POST /v1/messages http/1.1")),
    Case("a version without a point", _line(b"POST /v1/messages HTTP/11")),
    Case("a version of two digits", _line(b"POST /v1/messages HTTP/1.10")),
    Case("no version", _line(b"POST /v1/messages")),
    Case("two spaces before the target", _line(b"POST  /v1/messages HTTP/1.1")),
    Case("two spaces before the version", _line(b"POST /v1/messages  HTTP/1.1")),
    Case("a tab before the target", _line(b"POST\t/v1/messages HTTP/1.1")),
    Case("a space in front", _line(b" POST /v1/messages HTTP/1.1")),
    Case("a space at the end", _line(b"POST /v1/messages HTTP/1.1 ")),
    Case("a space in the target", _line(b"POST /v1/mess ages HTTP/1.1")),
    Case("an absolute target", _line(b"POST http://other/v1/messages HTTP/1.1")),
    Case("CONNECT", _line(b"CONNECT other:443 HTTP/1.1"), (400, 405, 501)),
    Case("TRACE", _line(b"TRACE / HTTP/1.1"), (405, 501)),
    Case("OPTIONS for the server", _line(b"OPTIONS * HTTP/1.1")),
    Case("a target that is no path", _line(b"POST v1/messages HTTP/1.1")),
    Case("an empty target", _line(b"POST  HTTP/1.1")),
    Case("a target with a fragment", _line(b"POST /v1/messages#a HTTP/1.1")),
    Case("a target with a backslash", _line(b"POST /v1\\messages HTTP/1.1")),
    Case("a target with a byte over 127", _line(b"POST /v1/messages?\xe4 HTTP/1.1")),
    Case("a target with NUL", _line(b"POST /v1/messages?\0 HTTP/1.1")),
    Case("a method in small letters", _line(b"post /v1/messages HTTP/1.1"), (400, 501)),
    Case("a method that nobody knows", _line(b"FOO /v1/messages HTTP/1.1"), (501,)),
    Case("a method that is no token", _line(b"P(ST /v1/messages HTTP/1.1")),
    Case("an empty method", _line(b" /v1/messages HTTP/1.1")),
    Case("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500),
    Case("bytes that are not HTTP", b"\0\1\2\3"),
    # Sizes (F44) and expectations (F49)
    Case("a target of 20 kB", _line(b"POST /v1/messages?" + b"a" * 20_000 + b" HTTP/1.1"), (414,)),
    Case("a target of 1 MB", _line(b"POST /v1/messages?" + b"a" * 1_000_000 + b" HTTP/1.1"), (414,)),
    Case("a header of 20 kB", _odd(b"x-a: " + b"a" * 20_000), (431,)),
    Case("a name of 20 kB", _odd(b"x" * 20_000 + b": 1"), (431,)),
    Case("200 headers", _odd(*(b"x-%d: 1" % number for number in range(200))), (431,)),
    Case("10,000 headers", _odd(*(b"x-%d: 1" % number for number in range(10_000))), (431,)),
    Case("headers of 80 kB", _odd(*(b"x-%d: " % number + b"a" * 1000 for number in range(80))), (431,)),
    Case("an unknown expectation", _odd(b"expect: the-unexpected"), (417,)),
    Case("two expectations", _odd(b"expect: 100-continue", b"expect: 100-continue")),
]

_FULL = [b"x-%d: 1" % number for number in range(128 - 4)]  # with host, key, version and length

SERVED = [
    Case("a plain one", _odd()),
    Case("one empty line in front", b"\r\n" + _odd()),
    Case("names in capitals", _odd().replace(b"x-api-key", b"X-API-KEY").replace(b"content-length", b"CONTENT-LENGTH")),
    Case("blanks around a value", _odd(b"x-a: \t 1 \t ")),
    Case("no blank before a value", _odd().replace(b": ", b":")),
    Case("an empty value", _odd(b"x-a:")),
    Case("a value with bytes over 127", _odd(b"x-a: \xe4\xff")),
    Case("a value with a tab in it", _odd(b"x-a: 1\t2")),
    Case("a name of odd token characters", _odd(b"x!#$%&'*+.^_`|~a: 1")),
    Case("a name with an underscore that means nothing", _odd(b"x_my_header: 1")),
    Case("the same header twice", _odd(b"x-a: 1", b"x-a: 2")),
    Case("a length with zeros in front", _fields(b"content-length: 000%d" % len(BODY))),
    Case("the coding in capitals", _fields(b"Transfer-Encoding: Chunked", body=CHUNKS)),
    Case("a chunk size with zeros in front", _chunks(b"0000%x\r\n%b\r\n000\r\n\r\n" % (len(BODY), BODY))),
    Case("a chunk size in capitals", _chunks(b"%X\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))),
    Case("many chunks", _chunks(b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n")),
    Case("extensions", _chunks(b'%x;a=b;c="d"\r\n%b\r\n0;e\r\n\r\n' % (len(BODY), BODY))),
    Case("trailers", _chunks(CHUNKS[:-2] + b"x-checksum: 1\r\nx-more:\r\n\r\n")),
    Case("a host with a port", _odd(host=b"host: test:8080")),
    Case("a host that is an IPv6 address", _odd(host=b"host: [::1]:8080")),
    Case("128 headers", _odd(*_FULL)),
    Case("a header of 16 kB", _odd(b"x-a: " + b"a" * 16_000)),
    Case("a query of 15 kB", _line(b"POST /v1/messages?" + b"a" * 15_000 + b" HTTP/1.1")),
    Case("a query with braces", _line(b"POST /v1/messages?a={b|c}[d] HTTP/1.1")),
    Case("an offer of WebSocket", _odd(b"connection: Upgrade", b"upgrade: websocket", b"sec-websocket-version: 13")),
    Case("an offer of h2c", _odd(b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMA")),
    Case("a wish to keep alive", _odd(b"connection: keep-alive", b"keep-alive: timeout=5")),
    Case("a connection header with more in it", _odd(b"connection: x-a, keep-alive", b"x-a: 1")),
    Case("two API keys", _odd(b"x-api-key: sk-other")),
    Case("both credentials", _odd(b"authorization: Bearer sk-test-1")),
]
