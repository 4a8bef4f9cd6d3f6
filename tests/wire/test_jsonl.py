"""The line reader: any chunking, both line ends, and a bound that no line gets over."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.wire.jsonl import LineReader

RAW = '{"a":1}\n\n{"b":"é\u2028"}\r\n{"c":[1,2]}\n \n{"last":true}'.encode()
LINES = [b'{"a":1}', '{"b":"é\u2028"}'.encode(), b'{"c":[1,2]}', b" ", b'{"last":true}']


def read(*chunks: bytes, most: int = 1_000) -> tuple[list[bytes], int]:
    """All lines, the one without an end too, and how many were too long."""
    reader = LineReader(most)
    lines = [line for chunk in chunks for line in reader.feed(chunk)]
    rest = reader.rest()
    return [*lines, *([rest] if rest else [])], reader.too_long


def test_lines_cut_at_any_byte_are_the_same_lines():
    """Two chunks, split at every position; three; and one byte at a time."""
    assert read(RAW) == (LINES, 0)
    for at in range(len(RAW) + 1):
        assert read(RAW[:at], RAW[at:]) == (LINES, 0), at
        for more in range(at, len(RAW) + 1):
            assert read(RAW[:at], RAW[at:more], RAW[more:]) == (LINES, 0), (at, more)
    assert read(*(RAW[at : at + 1] for at in range(len(RAW)))) == (LINES, 0)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_over_the_bound_is_passed_over_wherever_it_is_cut(end):
    """The lines around it are read, it is counted once, and one of exactly the bound is read."""
    raw = end.join([b"x" * 8, b"y" * 9, b"z" * 30, b"w" * 8, b"v" * 40])
    expected = ([b"x" * 8, b"w" * 8], 3)
    assert read(raw, most=8) == expected
    for at in range(len(raw) + 1):
        assert read(raw[:at], raw[at:], most=8) == expected, at
    assert read(*(raw[at : at + 1] for at in range(len(raw))), most=8) == expected


def test_a_line_without_end_takes_no_memory():
    """Of a megabyte of one line it holds a thousand bytes at most, which is its bound here."""
    reader = LineReader(1_000)
    for _ in range(1_000):
        assert reader.feed(b"x" * 1_000) == []
        assert len(reader._pending) <= 1_001
    assert reader.feed(b"\n{}\n") == [b"{}"]
    assert reader.too_long == 1


def test_many_lines_in_small_pieces_take_time_in_line_with_their_size():
    """Long lines in pieces of one byte: each byte is looked at once."""
    reader = LineReader()
    raw = (b"x" * 99_999 + b"\n") * 3
    lines = [line for at in range(len(raw)) for line in reader.feed(raw[at : at + 1])]
    assert [len(line) for line in lines] == [99_999] * 3


PIECES = st.lists(st.sampled_from([b"a", b"bcd", b"\n", b"\r\n", b"\r", b"", b"ef" * 6]), max_size=30)


@settings(deadline=None, max_examples=300)
@given(PIECES, st.integers(1, 12))
def test_any_chunking_gives_the_same_lines(pieces, most):
    """Against the plain definition: split at LF, a CR before it is not part of the line."""
    raw = b"".join(pieces)
    lines = [line.removesuffix(b"\r") for line in raw.split(b"\n")]
    expected = [line for line in lines if line and len(line) <= most], sum(len(line) > most for line in lines)
    assert read(*pieces, most=most) == expected
    assert read(raw, most=most) == expected
