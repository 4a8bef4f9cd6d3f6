"""`Prefer` (RFC 7240): what a client says of waiting, read from any bytes whatever."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire.prefer import MAX_WAIT_S, NO_PREFERENCES, Preferences, parse_prefer, read_prefer

LATER = Preferences(respond_async=True)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"respond-async", LATER),
        (b"Respond-ASYNC", LATER),
        (b" \t respond-async \t", LATER),
        (b'respond-async=""', LATER),
        (b"respond-async =", LATER),
        (b"respond-async; note=soon", LATER),
        (b'respond-async;note="a, b; c"', LATER),
        (b"respond-async;;= broken", LATER),
        (b"respond-async, wait=10", Preferences(True, 10.0)),
        (b"wait=10,respond-async", Preferences(True, 10.0)),
        (b"WAIT = 10", Preferences(False, 10.0)),
        (b'wait="10"', Preferences(False, 10.0)),
        (b'wait="1\\0"', Preferences(False, 10.0)),
        (b"wait=0", Preferences(False, 0.0)),
        (b"wait=007; x", Preferences(False, 7.0)),
        (b"return=minimal, handling=lenient, , respond-async,", LATER),
        (b'foo="a, wait=3, b", respond-async', LATER),
        (b'foo="a\\", wait=3", respond-async', LATER),
    ],
)
def test_what_is_asked_for_is_read(value: bytes, expected: Preferences) -> None:
    """Names in any case, white space where it may stand, quotation marks, parameters that say nothing to us."""
    assert parse_prefer(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        b"", b",", b";", b"=", b"=5", b'"respond-async"', b"respond-async foo", b"respond async", b"respond-async=yes",
        b"respond-asynchronous", b"x-respond-async", b"wait", b"wait=", b"wait=-1", b"wait=+1", b"wait=1.5",
        b"wait=1e3", b"wait=1 0", b"wait=ten", b'wait="10', b'wait="10" x', b"wait=\xd9\xa1", b"wait=\xb2", b"wait==1",
        b"(respond-async)", b"respond-async\x00", b"respond-async\r\n", b"respond-async/", b"\xa0respond-async",
        b'foo", respond-async', b"return=respond-async", b"foo;respond-async", b"foo;wait=3",
    ],
)  # fmt: skip
def test_what_is_malformed_is_as_good_as_not_sent(value: bytes) -> None:
    """A preference is no demand: nothing of this is an error, and nothing of it is taken for what it resembles."""
    assert parse_prefer(value) == NO_PREFERENCES


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"wait=1, wait=2", Preferences(False, 1.0)),
        (b"wait=ten, wait=2", NO_PREFERENCES),
        (b"respond-async=no, respond-async", NO_PREFERENCES),
        (b"respond-async, respond-async=no", LATER),
        (b"wait =@, wait=2", Preferences(False, 2.0)),
    ],
)
def test_only_the_first_of_two_counts(value: bytes, expected: Preferences) -> None:
    """Though its value means nothing; what is no preference at all, by its grammar, is none of the two."""
    assert parse_prefer(value) == expected


@pytest.mark.parametrize("digits", [b"2147483648", b"9999999999", b"9" * 5000, b"0" * 5000 + b"9999999999"])
def test_a_huge_wait_is_cut(digits: bytes) -> None:
    """Also one that is longer than Python turns into a number."""
    assert parse_prefer(b"wait=" + digits) == Preferences(False, MAX_WAIT_S)


def test_fields_of_that_name_are_one_list() -> None:
    """In the order in which they came; other headers are not looked into."""
    headers = [
        (b"x-prefer", b"wait=1"),
        (b"prefer", b"wait=2"),
        (b"accept", b"*/*"),
        (b"prefer", b"respond-async, wait=3"),
    ]
    assert read_prefer(headers) == Preferences(True, 2.0)
    assert read_prefer([(b"accept", b"respond-async")]) is NO_PREFERENCES


TOKENS = st.text("!#$%&'*+.^_`|~0123456789abcXYZ-", min_size=1, max_size=12).map(str.encode)
QUOTED = st.text(st.characters(max_codepoint=255), max_size=12).map(
    lambda text: b'"' + text.encode("latin-1").replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
)
SPACE = st.text(" \t", max_size=2).map(str.encode)
WORDS = st.none() | TOKENS | QUOTED
OTHERS = TOKENS.filter(lambda name: name.lower() not in (b"wait", b"respond-async"))


@st.composite
def members(draw: st.DrawFn, names: st.SearchStrategy[bytes]) -> bytes:
    """A preference as the grammar has it: a name, perhaps a value, any number of parameters."""
    written = b""
    for part in range(draw(st.integers(1, 3))):
        word = draw(WORDS)
        written += b";" if part else b""
        written += draw(SPACE) + draw(names if not part else TOKENS)
        written += draw(SPACE) + (b"=" + draw(SPACE) + word + draw(SPACE) if word is not None else b"")
    return written


@given(st.lists(members(OTHERS), max_size=4), st.lists(members(OTHERS), max_size=4), st.integers(0, 10**12), st.data())
def test_ours_are_found_among_any_others(
    before: list[bytes], after: list[bytes], wait: int, data: st.DataObject
) -> None:
    """However the others are written, and wherever ours stand among them, in whatever number of fields."""
    ours = data.draw(st.permutations([b"respond-async", b"wait=%d" % wait]))
    parts = [*before, *ours, *after]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(parts)), max_size=2)))
    bounds = [0, *cuts, len(parts)]
    fields = [b",".join(parts[low:high]) for low, high in pairwise(bounds)]
    assert read_prefer([(b"prefer", field) for field in fields]) == Preferences(True, min(float(wait), MAX_WAIT_S))


@given(st.lists(members(OTHERS), max_size=5))
def test_others_say_nothing_to_us(parts: list[bytes]) -> None:
    """Not in their values, not in their parameters, not in their quotation marks."""
    assert parse_prefer(b",".join(parts)) == NO_PREFERENCES


@given(st.binary(max_size=200) | st.text('respond-async,;="\\ \twait0123456789', max_size=60).map(str.encode))
def test_no_bytes_are_an_error(value: bytes) -> None:
    """And a wait is never negative, never more than the most."""
    found = parse_prefer(value)
    assert found.wait_s is None or 0 <= found.wait_s <= MAX_WAIT_S


@pytest.mark.parametrize(
    "piece", [b'"', b'\\"', b'"\\', b",", b";", b"=", b" ", b"a", b'a="', b'"a\\",', b"a =", b"wait=1,", b"\t;\t="]
)
def test_a_long_header_takes_no_longer_than_its_length(piece: bytes) -> None:
    """A quarter of a megabyte of what leads other readers astray, alone and behind what begins well."""
    began = time.process_time()
    for start in (b"", b'foo="', b"foo ", b"foo="):
        parse_prefer(start + piece * (250_000 // len(piece)))
    assert time.process_time() - began < 2.0
