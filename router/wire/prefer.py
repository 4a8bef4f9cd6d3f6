"""The request header `Prefer`: whether a client can wait for its answer elsewhere, and how long it waits here.

A preference is no demand: what is malformed, unknown or senseless is as good as not sent, and nothing here raises. Of
a preference that is stated twice only the first counts, whatever its value. A quotation mark that is never closed takes
the rest of the header with it. Parameters (behind `;`) say nothing to us. Time grows with the length alone: the
expressions never read a byte in two ways.
Source: RFC 7240, section 2; `respond-async` and `wait`, sections 4.1 and 4.3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MAX_WAIT_S = 2.0**31  # what a number of seconds is cut to that is larger (RFC 9111, 1.2.2)

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = rb'"(?:[^"\\]++|\\.)*"'
_SPLITS = re.compile(rb',|"(?:[^"\\]++|\\.)*"?', re.DOTALL)  # a comma, or a text in which a comma is none
_MEMBER = re.compile(rb"[ \t]*+(%b)(?:[ \t]*+=[ \t]*+(%b|%b)?)?[ \t]*+(?:;|\Z)" % (_TOKEN, _TOKEN, _QUOTED), re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_MOST_DIGITS = 10  # of `MAX_WAIT_S`


@dataclass(frozen=True, slots=True)
class Preferences:
    """What of `Prefer` concerns the router: `respond_async`, and `wait_s` in whole seconds (None: not said)."""

    respond_async: bool = False
    wait_s: float | None = None


NO_PREFERENCES = Preferences()


def read_prefer(headers: Iterable[tuple[bytes, bytes]]) -> Preferences:
    """The preferences of a request; header names are lower case. Fields of that name count as one list, in order."""
    fields = [value for name, value in headers if name == b"prefer"]
    return parse_prefer(b",".join(fields)) if fields else NO_PREFERENCES


def parse_prefer(value: bytes) -> Preferences:
    """The preferences in the value of the header."""
    found: dict[bytes, bytes] = {}
    for member in _members(value):
        match = _MEMBER.match(member)
        if match is not None:
            found.setdefault(match[1].lower(), match[2] or b"")
    # `respond-async=""` says the same as `respond-async` (section 2); with a value it is another preference than ours.
    is_async = b"respond-async" in found and not _plain(found[b"respond-async"])
    return Preferences(is_async, _seconds(_plain(found.get(b"wait", b""))))


def _members(value: bytes) -> Iterable[bytes]:
    """The parts between commas that stand outside of quotation marks."""
    start = 0
    for split in _SPLITS.finditer(value):
        if split[0] == b",":
            yield value[start : split.start()]
            start = split.end()
    yield value[start:]


def _plain(word: bytes) -> bytes:
    """A token, or what stands in the quotation marks."""
    return _ESCAPED.sub(rb"\1", word[1:-1]) if word[:1] == b'"' else word


def _seconds(digits: bytes) -> float | None:
    if not digits.isdigit():  # of bytes: 0 to 9 and nothing else
        return None
    digits = digits.lstrip(b"0") or b"0"
    return min(float(digits), MAX_WAIT_S) if len(digits) <= _MOST_DIGITS else MAX_WAIT_S
