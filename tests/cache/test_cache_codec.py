"""An entry as bytes: whatever was written comes back equal, whatever else is there is None and costs little."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace
from typing import Any

import orjson
import pytest
import zstandard
from cache_kit import SECRET, USAGE, a_key, an_entry
from hypothesis import given, settings
from hypothesis import strategies as st

from router.cache.codec import MARKS_BYTES, EntryCodec, marks_of
from router.cache.entry import CacheEntry
from router.usage import Iteration, Tokens, Usage

KEY = a_key("codec")
MB = 1024 * 1024
CODEC = EntryCodec(SECRET)
SMALL = CODEC.encode(KEY, an_entry(b'{"type":"message"}')) or b""
PACKED = CODEC.encode(KEY, an_entry(b'{"type":"message"}' * 200)) or b""

counts = st.integers(0, 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
tokens = st.builds(Tokens, counts, counts, counts, counts, counts)
usages = st.builds(
    Usage,
    tokens=tokens,
    thinking=counts,
    web_searches=counts,
    iterations=st.lists(st.builds(Iteration, texts, st.none() | texts, tokens), max_size=5).map(tuple),
    service_tier=st.none() | texts,
    geo=st.none() | texts,
    speed=st.none() | texts,
    is_final=st.booleans(),
)
bodies = st.one_of(
    st.binary(max_size=3000),
    st.tuples(st.binary(max_size=50), st.integers(0, 2000)).map(lambda drawn: drawn[0] * drawn[1]),
)
entries = st.builds(
    CacheEntry,
    status=st.integers(200, 299),
    headers=st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=80)), max_size=12),
    body=bodies,
    usage=st.none() | usages,
    model_answered=st.none() | texts,
    stop_reason=st.none() | texts,
    asked_at_ns=counts,
    expires_at_ns=counts,
    stored_at_ns=counts,
    tenant=texts,
    rule=texts,
    model=texts,
)


def forged(marks: Any, body: bytes = b"", *, key: str = KEY, kind: bytes = b"\x01", secret: bytes = SECRET) -> bytes:
    """A value whose checksum is right, whatever its marks are: how the format is written down, a second time."""
    written = marks if isinstance(marks, bytes) else orjson.dumps(marks)
    rest = len(written).to_bytes(4, "big") + written + body
    inner = hashlib.blake2b(secret, digest_size=32, person=b"router cache").digest()
    digest = hashlib.blake2b(kind + len(key).to_bytes(4, "big") + key.encode() + rest, digest_size=16, key=inner)
    return kind + digest.digest() + rest


def marks(**others: Any) -> dict[str, Any]:
    """The marks of a small entry, some of them others."""
    length = int.from_bytes(SMALL[17:21], "big")
    return orjson.loads(SMALL[21 : 21 + length]) | {"bytes": 0} | others


@settings(max_examples=300)
@given(entries)
def test_every_entry_comes_back_equal(entry: CacheEntry):
    """Any usage, headers and body; the marks at its beginning are those of the entry."""
    data = CODEC.encode(KEY, entry)
    assert data is not None
    assert CODEC.decode(KEY, data, len(entry.body)) == entry
    assert marks_of(data[:MARKS_BYTES]) == (entry.asked_at_ns, entry.tenant, entry.rule, entry.model)


@pytest.mark.parametrize("body", [b"", b"x", b"x" * MB, bytes(range(256)) * 4096], ids=["none", "one", "same", "all"])
def test_bodies_of_any_size_come_back_equal(body: bytes):
    """From none at all to a megabyte."""
    entry = an_entry(body)
    data = CODEC.encode(KEY, entry)
    assert data is not None
    assert CODEC.decode(KEY, data, MB) == entry


def test_odd_headers_come_back_equal():
    """Repeated, empty, and of bytes that are no text; in their order."""
    headers = [(b"a", b"1"), (b"a", b""), (b"", b"\xff\x00"), (b"z", bytes(range(256))), (b"a", b"1")]
    entry = replace(an_entry(), headers=headers)
    data = CODEC.encode(KEY, entry)
    assert data is not None
    assert CODEC.decode(KEY, data, MB) == entry


def test_the_format_is_as_it_is_written_down():
    """A second program, of this page alone, writes what is read: whoever changes the format changes its number."""
    entry = CODEC.decode(KEY, forged(marks(bytes=4), b"body"), MB)
    assert entry == an_entry(b"body")


def test_it_is_compressed_where_that_pays():
    """A large text is; a small one and one that does not get smaller are kept as they are."""
    text = b'{"type":"content_block_delta","delta":{"text":"again"}}' * 400
    noise = hashlib.shake_256(b"noise").digest(20_000)
    sizes = [len(CODEC.encode(KEY, an_entry(body)) or b"") for body in (b"", b"a" * 1000, text, noise)]
    assert sizes[1] >= sizes[0] + 1000
    assert sizes[2] < sizes[0] + len(text) / 20
    assert sizes[0] + len(noise) <= sizes[3] < sizes[0] + len(noise) + 20


def test_an_entry_whose_marks_are_too_long_is_not_written():
    """A purge reads marks without bodies, so they are bounded."""
    assert CODEC.encode(KEY, replace(an_entry(), headers=[(b"a", b"b" * MARKS_BYTES)])) is None
    assert CODEC.encode(KEY, replace(an_entry(), tenant="t" * MARKS_BYTES)) is None


@pytest.mark.parametrize("data", [SMALL, PACKED], ids=["small", "compressed"])
def test_no_part_of_a_value_is_read(data: bytes):
    """Cut at every length, from either end; with anything behind it."""
    assert CODEC.decode(KEY, data, MB) is not None
    for length in range(len(data)):
        assert CODEC.decode(KEY, data[:length], MB) is None
        assert length == 0 or CODEC.decode(KEY, data[length:], MB) is None
    for more in (b"\0", b"\n", data, b"x" * 1000):
        assert CODEC.decode(KEY, data + more, MB) is None


@pytest.mark.parametrize("data", [SMALL, PACKED], ids=["small", "compressed"])
def test_no_value_with_a_bit_flipped_is_read(data: bytes):
    """Every single bit of it counts."""
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            assert CODEC.decode(KEY, bytes(flipped), MB) is None


def test_no_value_of_another_key_secret_or_format_is_read():
    """Moved under another key, written by another owner, or by another version of us."""
    assert CODEC.decode(KEY, forged(marks()), MB) is not None
    assert CODEC.decode(a_key("other"), SMALL, MB) is None
    assert CODEC.decode("", SMALL, MB) is None
    for secret in (b"", b"another secret", SECRET + b"\0"):
        assert EntryCodec(secret).decode(KEY, SMALL, MB) is None
        assert CODEC.decode(KEY, EntryCodec(secret).encode(KEY, an_entry()) or b"", MB) is None
    for kind in range(256):
        if kind != 1:
            assert CODEC.decode(KEY, bytes([kind]) + SMALL[1:], MB) is None
            assert CODEC.decode(KEY, forged(marks(), kind=bytes([kind])), MB) is None


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x01", SMALL[:17], SMALL[:21], SMALL[:-4]]))
def test_random_bytes_are_nothing(noise: bytes, before: bytes):
    """Whatever is there: no entry, and no exception; of marks only those that can be read."""
    if before + noise != SMALL:
        assert CODEC.decode(KEY, before + noise, MB) is None
    found = marks_of(before + noise)
    assert found is None or (type(found[0]) is int and all(type(name) is str for name in found[1:]))


def test_a_body_over_the_bound_is_not_read():
    """As stored and as compressed; one of just the bound is."""
    for body in (b"x" * 900, b"x" * 5000):
        data = CODEC.encode(KEY, an_entry(body))
        assert data is not None
        assert CODEC.decode(KEY, data, len(body)) is not None
        assert CODEC.decode(KEY, data, len(body) - 1) is None
        assert CODEC.decode(KEY, data, 0) is None


@pytest.mark.parametrize("claimed", [0, 1, 4999, 5001, 100 * MB, 2**62], ids=str)
def test_a_compressed_body_has_the_size_that_was_said(claimed: int):
    """By its marks and by its own frame; a claim alone makes room for nothing."""
    frame = zstandard.ZstdCompressor().compress(b"x" * 5000)
    sizeless = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 5000)
    huge = zstandard.ZstdCompressor().compress(b"\0" * 100 * MB)
    tracemalloc.start()
    try:
        for body in (frame, sizeless, huge, frame[:6], b"", b"\x28\xb5\x2f\xfd" + b"\xff" * 20):
            assert CODEC.decode(KEY, forged(marks(bytes=claimed, is_compressed=True), body), 10 * MB) is None
        assert CODEC.decode(KEY, forged(marks(bytes=claimed), b"x" * 5000), 10 * MB) is None
        assert tracemalloc.get_traced_memory()[1] < MB
    finally:
        tracemalloc.stop()


odd = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.sampled_from(sorted(marks())), odd)
def test_marks_of_another_type_are_never_an_exception(name: str, value: object):
    """Each mark in turn, of any type that can be written: an entry of right types, or None."""
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()
    found = CODEC.decode(KEY, forged(marks(**{name: value})), MB)
    if found is not None:
        assert type(found.status) is type(found.asked_at_ns) is type(found.expires_at_ns) is int
        assert all(type(text) is str for text in (found.tenant, found.rule, found.model))
        assert all(type(text) in (str, type(None)) for text in (found.model_answered, found.stop_reason))
        assert all(type(part) is bytes for header in found.headers for part in header)
        assert found.usage is None or found.usage == USAGE
    marks_of(forged(marks(**{name: value})))


@pytest.mark.parametrize(
    "written",
    [
        b"", b"[]", b"null", b"7", b'"text"', b"{", b"{}", b"[" * 4000, b'{"a":' * 1000, b"\xff\xfe", b"1e999",
        b'{"asked_at_ns":' + b"9" * 4000 + b"}", b"9" * 5000,
    ],
    ids=lambda written: written[:12].decode("latin-1"),
)  # fmt: skip
def test_marks_that_are_no_marks_are_none(written: bytes):
    """Lists, numbers, what is deep, long, or no JSON: though the checksum be right."""
    assert CODEC.decode(KEY, forged(written), MB) is None
    assert marks_of(forged(written)) is None


@pytest.mark.parametrize("missing", sorted(marks()))
def test_marks_with_one_missing_are_none(missing: str):
    """Each of them is needed."""
    some = marks()
    del some[missing]
    assert CODEC.decode(KEY, forged(some), MB) is None


def test_a_usage_with_a_part_missing_or_of_another_type_is_none():
    """What a hit saved is worked out of it, so it is read as strictly as the rest."""
    usage = marks()["usage"]
    for name in usage:
        assert CODEC.decode(KEY, forged(marks(usage={k: v for k, v in usage.items() if k != name})), MB) is None
        for value in (1.5, "7", [1], {"a": 1}):
            if not (value == "7" and name in ("service_tier", "geo", "speed")):
                assert CODEC.decode(KEY, forged(marks(usage=usage | {name: value})), MB) is None, (name, value)


def test_a_length_that_lies_makes_room_for_nothing():
    """The length of the marks is bounded by what is there, and by what marks may be."""
    for length in (2**32 - 1, MARKS_BYTES + 1, len(SMALL)):
        rest = length.to_bytes(4, "big") + SMALL[21:]
        assert marks_of(SMALL[:17] + rest) is None
    assert marks_of(SMALL[:17] + (0).to_bytes(4, "big") + SMALL[21:]) is None
