"""The frames between the router and the process that reads its store."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest

from router.trace.frames import MAX_BODY, MAX_HEAD, BrokenFrame, Frames, frame

SAID: list[tuple[dict[str, Any], bytes]] = [
    ({"ready": True}, b""),
    ({"n": 1, "head": {"mark": [1, "ä\u2028\x00\ud800"]}}, b"\x00\xff{}\r\n\r\n"),
    ({"n": 2**53, "error": {"message": "x" * 300}}, b"body"),
]


def test_frames_are_the_same_however_the_bytes_are_cut() -> None:
    """At every byte, and byte by byte."""
    data = b"".join(itertools.starmap(frame, SAID))
    for at in range(len(data)):
        frames = Frames()
        assert [*frames.feed(data[:at]), *frames.feed(data[at:])] == SAID
    frames = Frames()
    assert [found for at in range(len(data)) for found in frames.feed(data[at : at + 1])] == SAID


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">II", MAX_HEAD + 1, 0),
        struct.pack(">II", 2, MAX_BODY + 1),
        struct.pack(">II", 2, 0) + b"[]",
        struct.pack(">II", 2, 0) + b"{x",
        struct.pack(">II", 1, 0) + b"\xff",
        b"HTTP/1.1 200 OK\r\n",
    ],
)
def test_what_is_no_frame_is_refused_before_it_is_waited_for(data: bytes) -> None:
    """No amount of memory is set aside for a length that nobody means."""
    with pytest.raises(BrokenFrame):
        list(Frames().feed(data))


def test_a_head_over_its_bound_is_not_sent() -> None:
    """The other side would refuse it."""
    with pytest.raises(BrokenFrame, match="expected"):
        frame({"text": "x" * MAX_HEAD})
