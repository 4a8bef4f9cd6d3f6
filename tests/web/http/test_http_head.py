"""The head of a request as a value: what is taken, what is refused, and that it does not matter how it arrives."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.raw_client import request
from kit.strict_cases import REFUSED, SERVED, Case

from router.web.http.head import CHUNKED, CRLF, HEAD_END, Head, PartialHead, parse_head
from router.web.http.limits import MAX_HEAD_BYTES, MAX_HEADERS
from router.web.http.refusal import REASONS, Refused

SMALL = [case for case in [*REFUSED, *SERVED] if len(case.data) < 4000]


def read(*pieces: bytes) -> tuple[object, bytes] | str | None:
    """What comes of bytes that arrive in these pieces: a head and the rest, a refusal's reason, or not enough."""
    partial = PartialHead()
    try:
        for number, piece in enumerate(pieces):
            if partial.feed(piece):
                return shown(parse_head(partial.raw)), partial.rest + b"".join(pieces[number + 1 :])
    except Refused as refused:
        return refused.reason
    return None


def at_once(data: bytes) -> tuple[object, bytes] | str | None:
    """The same on the quick way, which a head takes that is all there."""
    end = data.find(HEAD_END)
    if end < 0:
        return read(data)
    try:
        return shown(parse_head(data[:end])), data[end + 4 :]
    except Refused as refused:
        return refused.reason


def shown(head: Head) -> object:
    return {name: getattr(head, name) for name in Head.__slots__}


def is_refused(result: object) -> bool:
    return isinstance(result, str)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_it_does_not_matter_where_the_bytes_are_split(case: Case) -> None:
    """At every byte: the same head, or a refusal both ways. What is wrong may be seen in another order."""
    expected = at_once(case.data)
    for at in range(1, min(len(case.data), 600)):
        found = read(case.data[:at], case.data[at:])
        assert found == expected or (is_refused(found) and is_refused(expected)), at


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_a_head_may_come_byte_by_byte(case: Case) -> None:
    """A piece for each byte gives what one piece gives."""
    expected = at_once(case.data)
    found = read(*(case.data[at : at + 1] for at in range(len(case.data))))
    assert found == expected or (is_refused(found) and is_refused(expected))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_head_or_a_refusal_or_not_enough(data: bytes) -> None:
    """Nothing else comes out, whatever goes in, and every reason has its place in the table."""
    for prefix in (b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nhost: a\r\n"):
        found = at_once(prefix + data + HEAD_END)
        assert found is None or not is_refused(found) or found in REASONS


@given(st.text(st.characters(codec="latin-1"), max_size=40), st.text(st.characters(codec="latin-1"), max_size=40))
def test_a_header_is_taken_as_it_is_or_refused(name: str, value: str) -> None:
    """No byte of a name or a value is changed, but for capitals and the blanks around a value."""
    line = name.encode("latin-1") + b":" + value.encode("latin-1")
    found = at_once(request(b"GET / HTTP/1.1", line))
    if found is not None and not is_refused(found):
        head = found[0]
        taken_name, taken = head["headers"][1]
        assert taken_name == line.partition(b":")[0].lower()
        assert taken == line.partition(b":")[2].strip(b" \t")


def test_what_a_head_says() -> None:
    """Method, path, query, headers in their order with small names, and how long the body is."""
    head = parse_head(b"POST /v1/a%20b?x=1&y HTTP/1.1\r\nHost: h:1\r\nX-Two: a\r\nContent-Length: 12\r\nx-two: b")
    assert (head.method, head.path, head.query) == ("POST", b"/v1/a%20b", b"x=1&y")
    assert head.headers == [(b"host", b"h:1"), (b"x-two", b"a"), (b"content-length", b"12"), (b"x-two", b"b")]
    assert (head.length, head.is_1_1, head.keeps_alive, head.expects) == (12, True, True, False)


def test_what_keeps_a_connection_alive() -> None:
    """1.1 unless the client says close, in whatever place; 1.0 never."""

    def keeps(*fields: bytes, version: bytes = b"1.1") -> bool:
        return parse_head(request(b"GET / HTTP/" + version, *fields).removesuffix(HEAD_END)).keeps_alive

    assert keeps()
    assert keeps(b"connection: keep-alive")
    assert keeps(b"connection: closed, x-close")
    assert not keeps(b"connection: Close")
    assert not keeps(b"connection: x-a ,\tclose")
    assert not keeps(b"connection: close", b"connection: keep-alive")
    assert not keeps(b"connection: keep-alive", version=b"1.0")


def test_chunks_and_expectations() -> None:
    """A coding is a length that is not known; who expects a 100 and has no body is not kept waiting."""

    def head(*fields: bytes, version: bytes = b"1.1") -> Head:
        return parse_head(request(b"POST / HTTP/" + version, *fields).removesuffix(HEAD_END))

    assert head(b"transfer-encoding: chunked").length == CHUNKED
    assert head(b"expect: 100-Continue", b"content-length: 1").expects
    assert head(b"expect: 100-continue", b"transfer-encoding: chunked").expects
    assert not head(b"expect: 100-continue").expects
    assert not head(b"expect: 100-continue", b"content-length: 1", version=b"1.0").expects


def test_a_head_that_never_ends_is_refused_before_it_costs_memory() -> None:
    """In lines or in one line, and however small its pieces are."""
    for beginning, reason in ((b"GET /", "target_length"), (b"GET / HTTP/1.1\r\n", "head_size")):
        assert read(beginning, *[b"x" * 100] * (MAX_HEAD_BYTES // 100)) == reason
        assert read(beginning, b"x" * MAX_HEAD_BYTES) == reason
    line = b"a: %b\r\n" % (b"b" * 1000)
    assert read(b"GET / HTTP/1.1\r\n", *[line] * (MAX_HEAD_BYTES // len(line) + 1)) == "head_size"
    assert read(b"GET / HTTP/1.1\r\n", *[b"a: b\r\n"] * MAX_HEADERS) is None
    assert read(b"GET / HTTP/1.1\r\n", *[b"a: b\r\n"] * (MAX_HEADERS + 1)) == "head_size"


def test_a_lone_empty_line_begins_nothing() -> None:
    """The CRLF that some clients send behind a body does not start the clock of a head."""
    partial = PartialHead()
    assert not partial.feed(CRLF)
    assert partial.is_blank
    assert not partial.feed(b"G")
    assert not partial.is_blank


def test_the_reasons_of_the_docs_are_the_code() -> None:
    """Each reason that is counted is explained, in the words of the code, and no other."""
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = page.partition("| refused as | status | because of |\n| --- | --- | --- |\n")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows.splitlines()]
    assert {name.strip("`"): because for name, _, because in cells} == REASONS
