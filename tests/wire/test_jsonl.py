"""JSON lines: any chunking, both line ends, a bound that no line gets over; long lines without their long strings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.wire import jsonl
from router.wire.jsonl import LineReader, Skim

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


def skimmed(line: bytes, most: int = 10**9) -> bytes:
    skim = Skim(line, most)
    while skim.step():
        pass
    return skim.text


def without_long(value: Any) -> Any:
    """The plain definition, for strings whose JSON is as long as `json.dumps` makes it."""
    match value:
        case str():
            return value if len(json.dumps(value)) - 2 <= 128 else ""
        case list():
            return [without_long(each) for each in value]
        case dict():
            return {without_long(key): without_long(each) for key, each in value.items()}
        case _:
            return value


STRINGS = st.builds(
    lambda part, times: part * times,
    st.sampled_from(["", "a", '"', "\\", '\\"', "{", "\n", "é", "\ud83d", '","']),
    st.sampled_from([0, 1, 2, 21, 22, 42, 43, 63, 64, 65, 127, 128, 129, 255, 256, 257, 700]),
)
VALUES = st.recursive(
    st.none() | st.integers() | STRINGS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(STRINGS.filter(lambda k: len(k) < 40), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=300)
@given(VALUES, st.sampled_from([1, 2, 3, 7, 64, 300, 10**6]), st.sampled_from([1, 2, 1_000]))
def test_a_line_without_its_long_strings_is_the_same_wherever_it_is_sliced(value, size, strings):
    """Against the plain definition; quotes, backslashes and both together at every edge of a slice."""
    line = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "_SLICE", size)
        patch.setattr(jsonl, "_STRINGS", strings)
        found = skimmed(line)
    if size > 1 or b"\\" not in line:  # an escape is two bytes
        assert json.loads(found) == without_long(value)


@pytest.mark.parametrize("line", [b"", b'"', b'{"a', b'{"a\\', b'{"a\\"', b'{"a":"' + b"x" * 300_000])
def test_a_line_that_ends_within_a_string_leaves_nothing(line):
    """It was cut, and means nothing."""
    assert skimmed(line) == b""


def test_a_line_with_too_much_else_leaves_nothing_and_is_looked_at_no_further():
    """The bound is on what is left, and holds for the work too."""
    line = b"[" + b"{}," * 1_000_000 + b"0]"
    assert skimmed(line, len(line)) == line
    assert skimmed(line, len(line) - 1) == b""
    skim = Skim(line, 1_000)
    assert not skim.step()
    assert (skim.text, len(skim._kept)) == (b"", jsonl._SLICE)
