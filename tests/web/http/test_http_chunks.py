"""A chunked body as bytes: the same whichever way it arrives, refused where two readers could differ, and in time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.strict_cases import REFUSED, SERVED, Case

from router.web.http.chunks import ChunkDecoder
from router.web.http.limits import MAX_EXTENSION_BYTES, READ_BYTES
from router.web.http.refusal import Refused

CODED = [
    Case(case.name, case.data.partition(b"\r\n\r\n")[2])
    for case in [*REFUSED, *SERVED]
    if b"transfer-encoding: chunked\r\n\r\n" in case.data.lower() and len(case.data) < 2000
]


def decode(*pieces: bytes) -> tuple[bytes, bytes] | str | None:
    """The body and what came behind it; the reason of a refusal; None while it goes on."""
    decoder, body = ChunkDecoder(), b""
    try:
        for number, piece in enumerate(pieces):
            body += decoder.feed(piece)
            if decoder.is_done:
                return body, decoder.rest + b"".join(pieces[number + 1 :])
    except Refused as refused:
        return refused.reason
    return None


def coded(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


@pytest.mark.parametrize("case", CODED, ids=lambda case: case.name)
def test_it_does_not_matter_where_a_body_is_split(case: Case) -> None:
    """At every byte, and byte by byte: the same body or a refusal."""
    expected = decode(case.data)
    assert expected is not None
    for at in range(1, len(case.data)):
        assert decode(case.data[:at], case.data[at:]) == expected, at
    assert decode(*(case.data[at : at + 1] for at in range(len(case.data)))) == expected


@given(st.lists(st.binary(max_size=50), max_size=12), st.binary(max_size=30), st.data())
def test_what_was_coded_comes_out(pieces: list[bytes], behind: bytes, data: st.DataObject) -> None:
    """Any body in any chunks in any pieces, and the bytes behind it untouched."""
    whole = coded(pieces) + behind
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert decode(*parts) == (b"".join(pieces), behind)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_body_a_refusal_or_not_enough(data: bytes) -> None:
    """Nothing else comes out."""
    decode(data)
    decode(b"5\r\nhello\r\n", data)
    decode(b"0\r\n", data)


def test_extensions_are_bounded_over_the_whole_body() -> None:
    """Each is small, and together they may not cost more than the body."""
    one = b"1;" + b"a" * 200 + b"\r\nx\r\n"
    assert decode(one * (MAX_EXTENSION_BYTES // 200)) is None
    assert decode(*[one] * (MAX_EXTENSION_BYTES // 200 + 1)) == "chunks"


def test_400_000_chunks_of_a_byte_cost_time_in_proportion() -> None:
    """What is decoded in one turn of the loop, one read, costs milliseconds (F52)."""
    data = b"1\r\nx\r\n" * 400_000
    decoder, slowest, size = ChunkDecoder(), 0.0, 0
    for at in range(0, len(data), READ_BYTES):
        begun = time.thread_time()
        size += len(decoder.feed(data[at : at + READ_BYTES]))
        slowest = max(slowest, time.thread_time() - begun)
    assert size == 400_000
    assert slowest < 0.05
