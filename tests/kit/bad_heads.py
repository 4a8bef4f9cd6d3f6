"""Bad heads, framing and paths for `bad_requests.py`: each function makes one case from dice and a nonce.

What is refused as no proper request is followed by a second request for `SMUGGLED`, which must never be carried out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from kit.strict_cases import REFUSED, SERVED

SMUGGLED = b"/smuggled"
KEY = b"x-api-key: sk-test-1"
_CHUNKED = b"transfer-encoding: chunked"
_BODY = b'{"model":"claude-sonnet-5-5","max_tokens":16,"messages":[{"role":"user","content":"Hi %b"}]}'
_POST = b"POST /v1/messages HTTP/1.1"
_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LARGE = 10_000  # bytes from which a case is large, and rare


@dataclass(frozen=True, slots=True)
class Made:
    """A case without its number; see `bad_requests.BadRequest`."""

    kind: str
    data: bytes
    statuses: tuple[int, ...]
    most_calls: int
    body: bytes | None = None
    is_alone: bool = False
    is_half: bool = False
    may_be_cut: bool = False
    is_head: bool = False


def kept(
    line: bytes, nonce: bytes, body: bytes, headers: tuple[bytes, ...] = (), *, is_framed: bool = False,
    key: bytes = KEY,
) -> bytes:  # fmt: skip
    """A request with a proper head; `is_framed` means that the headers say already where the body ends."""
    fields = [line, b"host: router.test", key, b"anthropic-version: 2023-06-01", b"x-nonce: " + nonce, *headers]
    if not is_framed:
        fields.append(b"content-length: %d" % len(body))
    return b"\r\n".join(field for field in fields if field) + b"\r\n\r\n" + body


def _smuggled(nonce: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\nhost: router.test\r\n%b\r\nx-nonce: %b\r\n\r\n" % (SMUGGLED, KEY, nonce)


def _refused(nonce: bytes, data: bytes, statuses: tuple[int, ...] = (400,)) -> Made:
    return Made("", data + _smuggled(nonce), statuses, 0, is_alone=True)


def _head(nonce: bytes, *fields: bytes, line: bytes = _POST, host: bytes = b"host: router.test") -> bytes:
    """A head with exactly these lines and a proper length, and its body."""
    body = _BODY % nonce
    lines = [line, host, KEY, b"x-nonce: " + nonce, *fields, b"content-length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _framed(nonce: bytes, *fields: bytes, body: bytes | None = None, line: bytes = _POST) -> bytes:
    """A head with exactly these lines, which say where the body ends."""
    lines = [line, b"host: router.test", KEY, b"x-nonce: " + nonce, *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + (_BODY % nonce if body is None else body)


_TABLE = [case for case in REFUSED if len(case.data) <= _LARGE]
_TABLE_LARGE = [case for case in REFUSED if len(case.data) > _LARGE]
_SERVED = [case for case in SERVED if len(case.data) <= 40_000]


def _table(dice: random.Random, nonce: bytes) -> Made:
    """One of the table that the strict reader is tested with."""
    case = dice.choice(_TABLE if dice.random() < 0.99 else _TABLE_LARGE)
    return _refused(nonce, case.data, case.statuses)


def _odd(dice: random.Random, nonce: bytes) -> Made:
    """One that is odd and served."""
    case = dice.choice(_SERVED)
    data = case.data.replace(b"anthropic-version:", b"x-nonce: " + nonce + b"\r\nversion:", 1)
    if case.name == "128 headers":  # one of them has to go
        data = data.replace(b"version: 2023-06-01\r\n", b"", 1)
    return Made("", data, (200,), 1, is_alone=True)


def _line(dice: random.Random, nonce: bytes) -> Made:
    """A request line with something in it that cannot be there (F48, F51)."""
    way = dice.randrange(6)
    if way == 0:
        return _refused(nonce, _head(nonce, line=_letters(dice) + b" /v1/messages HTTP/1.1"), (400, 501))
    if way == 1:
        at = dice.randrange(4)
        bad = bytes([dice.choice([byte for byte in range(256) if byte not in _TOKEN and byte not in b"\r\n"])])
        return _refused(nonce, _head(nonce, line=b"POST"[:at] + bad + b"POST"[at:] + b" /v1/messages HTTP/1.1"))
    if way == 2:
        at = dice.randrange(1, 12)
        bad = bytes([dice.choice((*range(0x0A), 0x0B, 0x0C, *range(0x0E, 0x21), 0x23, 0x5C, *range(0x7F, 0x100)))])
        return _refused(nonce, _head(nonce, line=b"POST %b HTTP/1.1" % (b"/v1/messages"[:at] + bad + b"/v1"[at:])))
    if way == 3:
        version = dice.choice(
            (b"HTTP/1", b"HTTP/1.", b"HTTP/a.b", b"HTTPS/1.1", b"HTTP 1.1", b"HTTP/1.1.1", b"ICY/1.1", b"/1.1")
        )
        return _refused(nonce, _head(nonce, line=b"POST /v1/messages " + version))
    if way == 4:
        number = dice.choice([pair for pair in range(100) if pair not in (10, 11)])
        return _refused(nonce, _head(nonce, line=b"POST /v1/messages HTTP/%d.%d" % divmod(number, 10)), (505,))
    target = dice.choice(
        (b"http://h/v1/messages", b"*", b"h:80", b"v1", b"?a", b"#", b"//h/%00#", b"\\v1", b"https:/v1/messages")
    )
    return _refused(nonce, _head(nonce, line=b"POST %b HTTP/1.1" % target))


def _field(dice: random.Random, nonce: bytes) -> Made:
    """A header line that is none, or a name that must not come twice or with `_` (F44)."""
    way = dice.randrange(6)
    if way == 0:
        bad = bytes([dice.choice((*range(9), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F))])
        value = bytearray(b"some value of a header")
        value.insert(dice.randrange(1, 20), bad[0])
        return _refused(nonce, _head(nonce, b"x-a: " + bytes(value)))
    if way == 1:
        bad = bytes([dice.choice([byte for byte in range(256) if byte not in _TOKEN and byte not in b"\r\n:"])])
        at = dice.randrange(1, 4)
        return _refused(nonce, _head(nonce, b"x-ab"[:at] + bad + b"x-ab"[at:] + b": 1"))
    if way == 2:
        end = dice.choice(
            (b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n ", b"\r\n\t", b"\r\n: 1\r\n", b"\r\n\r", b"\r\n,a\r\n")
        )
        return _refused(nonce, _head(nonce, b"x-a: 1" + end + b"x-b: 2"))
    if way == 3:
        name = dice.choice((b"host", b"x-api-key", b"authorization", b"content-encoding", b"expect", b"content-length"))
        spelled = b"".join(bytes([byte]).upper() if dice.random() < 0.5 else bytes([byte]) for byte in name)
        if name in (b"x-api-key", b"authorization"):  # of two credentials one may count, and then alone goes upstream
            return Made("", _head(nonce, spelled + b": Bearer a", name + b": Bearer b"), (200, 400), 1, is_alone=True)
        return _refused(nonce, _head(nonce, spelled + b": a", name + b": b"), (400, 417))
    if way == 4:
        name = dice.choice(
            (b"x-api-key", b"content-length", b"transfer-encoding", b"x-router-lane", b"x-forwarded-for", b"host")
        )
        if b"-" in name:
            return _refused(nonce, _head(nonce, name.replace(b"-", b"_", dice.choice((1, 9))) + b": a"))
        return _refused(nonce, _head(nonce, name + b" : a"))
    return _refused(
        nonce, _head(nonce, b"expect: " + dice.choice((b"101", b"100-continue, x", b"x", b"200-ok", b"100"))), (417,)
    )


def _host(dice: random.Random, nonce: bytes) -> Made:
    """A Host that is no host (F45)."""
    bad = dice.choice(b"/?#@, \\\"<>{}|^`[];='()*!$&\xff\xc3%+")
    host = bytearray(b"router.test:8080")
    host.insert(dice.randrange(1, 12), bad)
    value = dice.choice(
        (bytes(host), b"", b":80", b"a:b", b"[::1", b"::1", b"a:123456", b"h" * 300, b"a:80:80", b"http://a")
    )
    return _refused(nonce, _head(nonce, host=b"host: " + value))


def _size(dice: random.Random, nonce: bytes) -> Made:
    """Too many headers, too long a line (F44)."""
    if dice.random() < 0.8:
        many = [b"x-%d: 1" % number for number in range(dice.choice((129, 130, 200, 400)))]
        return _refused(nonce, _head(nonce, *many), (431,))
    size = dice.choice((16_500, 20_000, 70_000))
    if dice.random() < 0.3:
        return _refused(nonce, _head(nonce, line=b"POST /v1/messages?%b HTTP/1.1" % (b"a" * size)), (414,))
    return _refused(nonce, _head(nonce, dice.choice((b"x-a: %b", b"%b: 1", b"cookie: %b")) % (b"a" * size)), (431,))


def _length(dice: random.Random, nonce: bytes) -> Made:
    """Two readings of where the body ends (F46)."""
    way = dice.randrange(4)
    chunks = b"0\r\n\r\n"
    if way == 0:
        value = b"".join(dice.choices(_LENGTH_PARTS, k=dice.randrange(1, 5)))
        if not value.strip(b" \t").isdigit():
            return _refused(nonce, _framed(nonce, b"content-length: " + value))
        return _refused(nonce, _framed(nonce, b"content-length: %b, %b" % (value, value)))
    if way == 1:
        coding = dice.choice(_CODINGS)
        return _refused(nonce, _framed(nonce, b"transfer-encoding: " + coding, body=chunks), (400, 501))
    if way == 2:
        fields = [
            b"content-length: %d" % dice.choice((0, 5, 6, 1000)),
            dice.choice((_CHUNKED, b"Transfer-Encoding:chunked")),
        ]
        dice.shuffle(fields)
        return _refused(nonce, _framed(nonce, *fields, body=chunks))
    ends = dice.choice(
        (b"\r\ntransfer-encoding: chunked", b"\ntransfer-encoding: chunked", b"\rtransfer-encoding: chunked")
    )
    return _refused(nonce, _framed(nonce, b"content-length: 5" + ends, body=chunks))


_LENGTH_PARTS = (
    b"1",
    b"0",
    b"5",
    b"+",
    b"-",
    b"_",
    b"x",
    b" ",
    b",",
    b".",
    b"e",
    b"\x0b",
    b"\xc2\xb2",
    b"f",
    b"%",
    b'"',
)
_CODINGS = (
    b"identity", b"gzip", b"chunked, identity", b"chunked,chunked", b"xchunked", b"chunkedx", b"chunked;",
    b"chunked ;a",
    b"\x0bchunked", b"\xa0chunked", b"chunked\x0c", b"'chunked'", b"chun ked", b"chunked\0", b"cHuNkEd, gzip",
    b",", b"",
    b"gzip, chunked", b"deflate,chunked", b"br, chunked", b"chunked,", b"ch\xc5\xabnked", b"identity, chunked",
)  # fmt: skip


_NO_TRAILERS = (
    b"content-length: 1", b"Host: a", b"x-api-key: a", b"transfer_encoding: chunked", b"authorization: a", b"no colon",
    b": a", b"a b: c", b"a: \0", b"a\t: b", b" a: b", b"trailer: a",
)  # fmt: skip


def _chunks(dice: random.Random, nonce: bytes) -> Made:
    """A chunked body that is not one (F46, F52)."""
    body = _BODY % nonce
    size = b"%x" % len(body)
    way = dice.randrange(7)
    if way == 0:
        bad = dice.choice((b"+", b"-", b"0x", b" ", b"_", b"g", b"\t", b"\xff", b"\0", b"0000000", b".", b"\\"))
        at = dice.choice((0, 1, 2)) if bad not in (b"0000000", b"0x") else 0
        data = size[:at] + bad + size[at:] + b"\r\n" + body + b"\r\n0\r\n\r\n"
    elif way == 1:
        wrong = len(body) + dice.choice((-1, 1, -2, 2, -5))
        data = b"%x\r\n%b\r\n0\r\n\r\n" % (wrong, body)
    elif way == 2:
        end = dice.choice(
            (b"\n", b"\r", b"\r\r\n", b"\n\r", b" \r\n", b";\r\n", b"; \r\n", b";a\nb\r\n", b";\0\r\n", b";\x7f\r\n")
        )
        data = size + end + body + b"\r\n0\r\n\r\n"
    elif way == 3:
        end = dice.choice((b"\n", b"x\r\n", b" \r\n", b"0\r\n", b"\n\n", b"\rx"))
        data = size + b"\r\n" + body + end + b"0\r\n\r\n"
    elif way == 4:
        trailer = dice.choice(_NO_TRAILERS)
        data = size + b"\r\n" + body + b"\r\n0\r\n" + trailer + b"\r\n\r\n"
    elif way == 5:
        data = (
            dice.choice(
                (b"", b"\r\n", b"\n", b"x\r\n", b"fffffffff\r\n", b"100000000\r\n", b"-1\r\n", b"0;\r\n", b"0 \r\n")
            )
            + b"\r\n"
        )
    else:
        long = dice.choice((b"%b;%b" % (size, b"a" * 300), b"0" * 30 + size, b"1;" + b"e" * 255))
        data = long + b"\r\n" + body + b"\r\n0\r\n\r\n"
    return _refused(nonce, _framed(nonce, _CHUNKED, body=data))


def _ends_early(dice: random.Random, nonce: bytes) -> Made:
    """A request whose client closes its side before the end: it was never one."""
    whole = _head(nonce) if dice.random() < 0.6 else _framed(nonce, _CHUNKED, body=b"%x\r\n%b\r\n0\r\n\r\n" % (
        len(_BODY % nonce), _BODY % nonce))  # fmt: skip
    cut = dice.randrange(len(whole)) if dice.random() < 0.7 else len(whole) - dice.randrange(1, 8)
    return Made("", whole[:cut], (400, 408), 0, is_alone=True, is_half=True, may_be_cut=True)


def _credential(dice: random.Random, nonce: bytes) -> Made:
    """No credential, or one that is none."""
    key = dice.choice((b"", b"x-api-key:", b"x-api-key:  \t ", b"authorization: Basic dTpw", b"authorization: Bearer",
                       b"authorization: Bearer   ", b"authorization: sk-test-1", b"api-key: sk-test-1",
                       b"x-api-key-2: sk-test-1", b"authorization:", b"proxy-authorization: Bearer a"))  # fmt: skip
    return Made("", kept(_POST, nonce, _BODY % nonce, key=key), (401,), 0)


_METHODS = (b"GET", b"PUT", b"PATCH", b"DELETE", b"HEAD")


def _method(dice: random.Random, nonce: bytes) -> Made:
    """A method that the path does not take."""
    method = dice.choice(_METHODS)
    target = dice.choice((b"/v1/messages", b"/v1/messages/count_tokens", b"/p/swap/v1/messages"))
    body = dice.choice((b"", _BODY % nonce))
    data = kept(b"%b %b HTTP/1.1" % (method, target), nonce, body)
    return Made("", data, (405,), 0, is_head=method == b"HEAD")


_PLAIN_PATHS = (b"/v1/messages", b"/v1/messages/count_tokens")


def _spelling(dice: random.Random, nonce: bytes) -> Made:
    """Another spelling of a routed path (F51): what the upstream could read as that path goes nowhere."""
    path = dice.choice(_PLAIN_PATHS)
    at = dice.choice([at for at, byte in enumerate(path) if byte == 0x2F])
    way = dice.randrange(6)
    if way == 0:
        path = (
            path[:at]
            + dice.choice((b"//", b"/./", b"/x/../", b"/%2e/", b"/a/%2E%2e/", b"/.//", b"/x/y/../../"))
            + path[at + 1 :]
        )
    elif way == 1:
        at = dice.randrange(1, len(path))
        path = path[:at] + (b"%%%02x" if dice.random() < 0.5 else b"%%%02X") % path[at] + path[at + 1 :]
    elif way == 2:
        path += dice.choice((b"/", b"//", b"/.", b"/x/..", b"%2f", b"/%2e"))
    elif way == 3:
        path = path.replace(b"/", b"%2f" if at else b"%2F").replace(b"%2", b"/%2", 1)
    elif way == 4:
        prefix = dice.choice((b"/p/swap/", b"/p/adapt//", b"/p/default/./", b"/p/swap/p/"))
        return Made("", kept(b"POST %b%b HTTP/1.1" % (prefix, path), nonce, _BODY % nonce), (200, 400, 404), 1)
    else:
        return Made(
            "", kept(b"POST %b HTTP/1.1" % dice.choice(_OTHER_PATHS), nonce, _BODY % nonce), (200, 400, 404, 405), 1
        )
    return Made("", kept(b"POST %b HTTP/1.1" % path, nonce, _BODY % nonce), (404,), 0)


_OTHER_PATHS = (
    b"/V1/Messages", b"/v1/messages;x", b"/v1/messages%00", b"/v1/messages%0a", b"/v1/messages%20", b"/v1/messagesx",
    b"/", b"/v1;/messages", b"/v1/..;/v1/messages", b"/%", b"/%zz", b"/%ff%fe", b"/v1/messages%3fa",
    b"/v1/messages%23", b"/p", b"/p/", b"/p//v1/messages", b"/p/nowhere/v1/messages",
    b"/p/..%2f..%2fetc/v1/messages", b"/p/%00/v1/messages", b"/p/%ff/v1/messages",
    b"/p/" + b"n" * 3000 + b"/v1/messages", b"/p/default", b"/p/SWAP/v1/messages", b"/p/a%0d%0ab/v1/messages",
    b"/metrics", b"/healthz", b"/traces", b"/v1/messages/batches/../../messages", b"/v1/models/%2e%2e/messages",
    b"/v1/files/../messages", b"/v1/" + b"a/" * 2000, b"/" + b"%2e%2e%2f" * 300, b"/..", b"/../../v1/messages",
    b"/v1/messages/x", b"/v1/complete?" + b"a" * 5000,
)  # fmt: skip


def _letters(dice: random.Random) -> bytes:
    """A method that nobody serves."""
    return b"X" + bytes(dice.choices(_TOKEN, k=dice.randrange(1, 12)))


HEADS: tuple[tuple[str, Callable[[random.Random, bytes], Made], float], ...] = (
    ("table", _table, 0.2), ("odd", _odd, 0.1), ("line", _line, 0.12), ("field", _field, 0.15), ("host", _host, 0.08),
    ("size", _size, 0.05), ("length", _length, 0.13), ("chunks", _chunks, 0.12), ("ends early", _ends_early, 0.05),
)  # fmt: skip
PATHS: tuple[tuple[str, Callable[[random.Random, bytes], Made], float], ...] = (
    ("credential", _credential, 0.2), ("method", _method, 0.2), ("spelling", _spelling, 0.6),
)  # fmt: skip
