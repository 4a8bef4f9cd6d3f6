"""The event decoder: any chunking, every line end, and nothing that makes it fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.wire.sse import MAX_EVENT_BYTES, SseDecoder, SseEvent, encode

FIXTURES = sorted((Path(__file__).parent.parent / "fixtures" / "sse").glob("*.sse"))


def decode(*chunks: bytes, wanted: frozenset[bytes] | None = None) -> list[SseEvent]:
    decoder = SseDecoder(wanted)
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def reference(raw: bytes) -> list[SseEvent]:
    """The format's own algorithm, line by line, as the WHATWG text gives it."""
    text = raw.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    found, name, data = [], b"", None
    for line in text.split(b"\n")[:-1]:
        if not line:
            if data is not None:
                found.append(SseEvent(name.decode("utf-8", "replace") or "message", b"\n".join(data)))
            name, data = b"", None
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value
        elif field == b"data":
            data = [*(data or []), value]
    return found


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_a_stream_cut_at_any_byte_gives_the_same_events(path):
    """Two chunks, split at every position; and one byte at a time (F20)."""
    raw = path.read_bytes()
    whole = decode(raw)
    assert whole == reference(raw)
    assert whole
    for at in range(len(raw) + 1):
        assert decode(raw[:at], raw[at:]) == whole, at
    assert decode(*(raw[at : at + 1] for at in range(len(raw)))) == whole


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_a_complete_stream_ends_between_events(path):
    """After the last empty line nothing is pending."""
    decoder = SseDecoder()
    decoder.feed(path.read_bytes())
    assert decoder.is_between_events
    assert not decoder.is_in_line


LINES = st.sampled_from(
    [b"data: a", b"data:b", b"data", b"data: ", b"event: x", b"event:y", b"event", b": comment", b":", b"id: 1",
     b"retry: 2", b"nonsense", b"", b"", b"", "data: é\u2028".encode(), b"data: \xff",
     b" data: a", b"event: x ", b"data: a: b"]
)  # fmt: skip
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream and one way to chunk it."""
    raw = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    for line in draw(st.lists(LINES, max_size=25)):
        raw += line + draw(ENDS)
    cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    return raw, [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


@settings(deadline=None, max_examples=300)
@given(streams())
def test_any_chunking_of_any_lines_gives_what_the_format_says(case):
    """Against the line-by-line algorithm of the standard, empty chunks included."""
    raw, chunks = case
    # A lone CR and an LF that follow from two drawn lines are one line end, for the standard as for us.
    assert decode(*chunks) == reference(raw)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_bytes_make_it_fail(raw, at):
    """Whatever comes, in two chunks or one, gives the same events and the same state."""
    one, two = SseDecoder(), SseDecoder()
    events = one.feed(raw)
    assert two.feed(raw[:at]) + two.feed(raw[at:]) == events
    assert one.is_between_events == two.is_between_events
    assert one.is_in_line == two.is_in_line


def test_where_a_stream_stands_is_known_at_every_byte():
    """`is_in_line` inside a line, `is_between_events` only behind an empty line."""
    raw = b"event: a\ndata: b\n\n: c\r\n\r\n"
    decoder = SseDecoder()
    assert decoder.is_between_events
    for at in range(len(raw)):
        decoder.feed(raw[at : at + 1])
        seen = raw[: at + 1].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        assert decoder.is_in_line == (not seen.endswith(b"\n")), at
        assert decoder.is_between_events == seen.endswith(b"\n\n"), at


def test_the_end_of_a_cut_line_fills_up_a_cut_character():
    """Whatever character a line was cut in, line and filling decode strictly; a whole line needs only its end."""
    for character in ("é", "\u0800", "\ud7ff", "\uffff", "\U00010000", "\U0010ffff", "🌍"):
        raw = b"data: a" + character.encode()
        for at in range(7, len(raw) + 1):
            decoder = SseDecoder()
            decoder.feed(raw[:at])
            end = decoder.line_end()
            assert (raw[:at] + end).decode().endswith("\n")
            assert at not in (7, len(raw)) or end == b"\n"
    decoder = SseDecoder()
    assert decoder.line_end() == b""
    decoder.feed(b"data: a\r\n")
    assert decoder.line_end() == b""
    decoder.feed(b"data: \xff")
    assert decoder.line_end() == b"\n"


def test_only_wanted_events_are_read():
    """Others are passed over, also when the set is narrowed while the stream runs."""
    raw = b"event: a\ndata: 1\n\nevent: b\ndata: 2\n\nevent:b\ndata: 3\n\ndata: 4\n\n"
    assert [event.data for event in decode(raw, wanted=frozenset({b"a"}))] == [b"1", b"3", b"4"]
    decoder = SseDecoder(frozenset({b"a", b"b"}))
    assert len(decoder.feed(b"event: b\ndata: 1\n\n")) == 1
    decoder.wanted = frozenset({b"a"})
    assert decoder.feed(b"event: b\ndata: 1\n\nevent: b") == []
    assert decoder.feed(b"\ndata: 2\n\n") == []


@pytest.mark.parametrize("size", [1, 1000, MAX_EVENT_BYTES + 10])
def test_a_line_without_end_is_dropped_and_what_follows_is_read(size):
    """Memory stays bounded, the next event is whole, and the drop is counted once."""
    decoder = SseDecoder()
    line = b"data: " + b"x" * MAX_EVENT_BYTES
    pieces = (
        [line]
        if size > len(line)
        else [line[: -3 * size], *(line[-3 * size :][n : n + size] for n in (0, size, 2 * size))]
    )
    for piece in pieces:
        assert decoder.feed(piece) == []
    assert decoder.dropped == 1
    assert decoder.is_in_line
    assert not decoder.is_between_events
    assert decoder.feed(b"tail\n") == []
    assert not decoder.is_in_line
    assert decoder.feed(b"\ndata: next\n\n") == [SseEvent("message", b"next")]
    assert decoder.is_between_events


def test_a_large_event_arrives_whole():
    """A server-tool result of some megabytes is one event, in any chunking."""
    raw = b"event: big\ndata: " + b"y" * 3_000_000 + b"\n\n"
    chunks = [raw[at : at + 65536] for at in range(0, len(raw), 65536)]
    assert decode(*chunks) == [SseEvent("big", b"y" * 3_000_000)]


def test_what_is_encoded_is_decoded():
    """One event round trip; a line end in a field is refused (S15)."""
    assert decode(encode("error", b'{"a":"\\n"}')) == [SseEvent("error", b'{"a":"\\n"}')]
    for name, data in (("a\nb", b""), ("a\rb", b""), ("a", b"x\ny"), ("a", b"x\r")):
        with pytest.raises(ValueError, match="line end"):
            encode(name, data)
