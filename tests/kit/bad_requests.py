"""Bad requests from a seed: as many as wanted, each with what may be answered to it.

    case = bad_request(seed=1, number=4711)         # always the same bytes, whatever was made before
    for case in bad_requests(seed=1, count=50_000): ...

A case is one valid request with something wrong: bodies and what is around them in `bad_bodies.py`, heads, framing and
paths in `bad_heads.py`, whole requests with broken bytes here. Many mutations leave a request that is valid after all;
such a case allows 200, and then what reaches the upstream must be what was sent, byte for byte. Each case carries a
nonce of its own, so that an answer or a call upstream that belongs to another one is seen.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kit.bad_bodies import BLANK, BODIES, TEMPLATES
from kit.bad_heads import HEADS, PATHS, Made, kept

NONCE = b"nonce%012x"
_ODD, _MASK = 0x9E3779B97F4B, (1 << 48) - 1  # far apart: a flipped bit does not make the nonce of another case
NONCE_PATTERN = re.compile(rb"nonce[0-9a-f]{12}")
# What the router may say to bytes of which nobody knows what they have become. No 500, 502, 503, 504 and no 529: the
# router is well, and so is the upstream.
ANYTHING = (200, 400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 417, 421, 422, 426, 431, 501, 505)


@dataclass(frozen=True, slots=True)
class BadRequest:
    """One case: what is sent, and what may come of it.

    `statuses` may answer it; with `may_be_cut` the connection may also end without an answer. `most_calls` is how often
    the upstream may be called. `body` is what it must get then (None: not known). `is_alone` means a connection of its
    own, which the server may close; with `is_half` the client closes its sending side after the last byte.
    """

    number: int
    kind: str
    nonce: bytes
    data: bytes
    statuses: tuple[int, ...]
    most_calls: int
    body: bytes | None
    is_alone: bool
    is_half: bool
    may_be_cut: bool
    is_head: bool


def bad_requests(seed: int, count: int, first: int = 0) -> Iterator[BadRequest]:
    """`count` cases from number `first` on."""
    for number in range(first, first + count):
        yield bad_request(seed, number)


def bad_request(seed: int, number: int) -> BadRequest:
    """The case of that number."""
    dice = random.Random((seed << 40) + number)
    nonce = NONCE % (((seed << 32) + number) * _ODD & _MASK)
    [(kind, make)] = dice.choices(_KINDS, cum_weights=_WEIGHTS)
    made = make(dice, nonce)
    return BadRequest(
        number, kind if not made.kind else f"{kind}: {made.kind}", nonce, made.data, made.statuses, made.most_calls,
        made.body, made.is_alone, made.is_half, made.may_be_cut, made.is_head,
    )  # fmt: skip


def _mutated(dice: random.Random, nonce: bytes) -> Made:
    """A whole valid request with a few bytes flipped, cut out, repeated, or spliced from another one."""
    whole = _whole(dice, nonce)
    way = dice.randrange(4)
    if way == 0:
        data = bytearray(whole)
        for _ in range(dice.choice((1, 1, 2))):
            at = dice.randrange(len(data))
            data[at] = dice.choice((data[at] ^ (1 << dice.randrange(8)), dice.randrange(256), 0x0A, 0x0D, 0x20, 0x00))
    elif way == 1:
        at, size = dice.randrange(len(whole)), dice.randrange(1, 16)
        data = bytearray(whole[:at] + whole[at + size :])
    elif way == 2:
        at, size = dice.randrange(len(whole)), dice.choice((1, 1, 2, 5, 20, 200))
        data = bytearray(whole[:at] + whole[at : at + size] * dice.choice((2, 2, 3, 40)) + whole[at + size :])
    else:
        other = _whole(dice, nonce)
        data = bytearray(whole[: dice.randrange(len(whole))] + other[dice.randrange(len(other)) :])
    return Made(
        ("flip", "cut", "repeat", "splice")[way], bytes(data), ANYTHING, 1 if way < 2 else 2, None,
        is_alone=True, is_half=True, may_be_cut=True,
    )  # fmt: skip


def _broken_body(dice: random.Random, nonce: bytes) -> Made:
    """The same with the body alone, whose length is right: it comes as far as a body can."""
    raw = bytearray(dice.choice(TEMPLATES).raw.replace(BLANK, nonce))
    for _ in range(dice.choice((1, 1, 2, 5))):
        at = dice.randrange(len(raw))
        way = dice.randrange(4)
        if way == 0:
            raw[at] ^= 1 << dice.randrange(8)
        elif way == 1:
            raw[at] = dice.choice(b'"\\{}[]:,0 ntf\n\xff\0')
        elif way == 2:
            del raw[at : at + dice.choice((1, 1, 2, 8))]
        else:
            raw[at:at] = raw[at : at + dice.choice((1, 2, 8, 60))]
    body = bytes(raw)
    return Made("", kept(b"POST /v1/messages HTTP/1.1", nonce, body), (200, 400, 404), 1, body)


def _whole(dice: random.Random, nonce: bytes) -> bytes:
    raw = dice.choice(TEMPLATES).raw.replace(BLANK, nonce)
    line = b"POST /v1/messages?n=%b HTTP/1.1" % nonce
    if dice.random() < 0.25:
        cut = dice.randrange(1, len(raw))
        chunks = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (cut, raw[:cut], len(raw) - cut, raw[cut:])
        return kept(line, nonce, chunks, (b"transfer-encoding: chunked",), is_framed=True)
    return kept(line, nonce, raw)


_WEIGHED: tuple[tuple[str, Callable[[random.Random, bytes], Made], float], ...] = (
    *((f"body: {name}", make, weight) for name, make, weight in BODIES),
    ("bytes", _mutated, 7),
    ("bytes: body", _broken_body, 8),
    *((f"head: {name}", make, 18 * weight) for name, make, weight in HEADS),
    *((f"path: {name}", make, 8 * weight) for name, make, weight in PATHS),
)
_KINDS = [(name, make) for name, make, _ in _WEIGHED]
_WEIGHTS = [sum(weight for *_, weight in _WEIGHED[: at + 1]) for at in range(len(_WEIGHED))]
