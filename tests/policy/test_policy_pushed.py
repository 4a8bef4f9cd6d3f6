"""Pushed policies as values: what is stored comes back, and nothing else does."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import PolicyError
from router.policy.check import revision_of
from router.policy.pushed import (
    MAX_PACKED_BYTES,
    MAX_PUSH_BYTES,
    Standing,
    Version,
    is_sealed,
    pack_files,
    pack_standing,
    pack_version,
    unpack_files,
    unpack_standing,
    unpack_version,
)

FILES = {"lanes.yaml": b"version: 1\n", "default.yaml": "# café\n".encode()}
VERSION = Version(
    3, 1000, revision_of(FILES), "push", "ana@host", "a \u201cbetter\u201d rule", True, ("0" * 12,), 1,
    sha256(pack_files(FILES)).hexdigest(),
)  # fmt: skip


def of(files: dict[str, bytes]) -> Version:
    """A version of these files."""
    return replace(VERSION, revision=revision_of(files), digest=sha256(pack_files(files)).hexdigest())


STANDING = Standing("host:1:ab", "0" * 12, "pushed #3", "1" * 12, 3, 1000, 3, "taken", "", 99, 5, 7)


def test_what_is_stored_comes_back() -> None:
    """Files, a version, a word of a process."""
    assert unpack_files(pack_files(FILES), VERSION) == FILES
    assert unpack_version(3, pack_version(VERSION, None)) == VERSION
    line = b"5 " + STANDING.revision.encode() + b" " + pack_standing(STANDING, None)
    assert unpack_standing(STANDING.name.encode(), line, 12, None) == STANDING


@given(st.dictionaries(st.from_regex(r"[a-z0-9]{1,8}\.yaml", fullmatch=True), st.text(max_size=200), min_size=1))
def test_any_text_comes_back_byte_for_byte(texts: dict[str, str]) -> None:
    """The revision is a hash of the bytes, so not one may change on the way."""
    files = {name: text.encode() for name, text in texts.items()}
    assert unpack_files(pack_files(files), of(files)) == files


def test_the_largest_set_fits_however_it_is_written() -> None:
    """A mebibyte of the characters that take most room as JSON can be fetched again."""
    files = {"default.yaml": b"\x01" * MAX_PUSH_BYTES}
    packed = pack_files(files)
    assert len(packed) <= MAX_PACKED_BYTES
    assert unpack_files(packed, of(files)) == files


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no policy file"),
        ({"default.yaml": b"x" * (MAX_PUSH_BYTES + 1)}, "at most 1,048,576"),
        ({f"{number}.yaml": b"" for number in range(501)}, "at most 500"),
        ({"../default.yaml": b""}, "not the name"),
        ({"a\\b.yaml": b""}, "not the name"),
        ({".default.yaml": b""}, "not the name"),
        ({"default.txt": b""}, "not the name"),
        ({"a" * 300 + ".yaml": b""}, "not the name"),
        ({"default.yaml": b"\xff"}, "not UTF-8"),
    ],
)
def test_what_no_folder_could_hold_cannot_be_pushed(files: dict[str, bytes], says: str) -> None:
    """Names as in a folder, and a mebibyte in all."""
    with pytest.raises(PolicyError, match=says):
        pack_files(files)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[", b"[]", b"null", b"1", b"{}", b'{"default.yaml": 1}', b'{"../x.yaml": ""}', b"[" * 100_000,
        b'{"default.yaml": "\\ud800"}', json.dumps({"lanes.yaml": "other"}).encode(), b" " * (MAX_PACKED_BYTES + 1),
    ],
    ids=range(12),
)  # fmt: skip
def test_files_that_are_not_what_was_pushed_are_refused(data: bytes) -> None:
    """Whatever somebody wrote there: the hash says whether it is what was checked."""
    with pytest.raises(PolicyError):
        unpack_files(data, VERSION)
    with pytest.raises(PolicyError):  # nor when whoever wrote it has put the hash of it into the version
        unpack_files(data, replace(VERSION, digest=sha256(data).hexdigest()))


@pytest.mark.parametrize("change", [
    {"revision": "UPPER"}, {"revision": 1}, {"how": "force"}, {"who": "a\nb"}, {"message": 1}, {"is_sticky": 1},
    {"over": ["x"]}, {"over": 5}, {"of": "1"}, {"message": "x" * 501}, {"digest": 1},
])  # fmt: skip
def test_a_version_that_is_not_of_this_form_is_none(change: dict[str, object]) -> None:
    """One wrong field is enough, and no field can carry a line of its own into a log."""
    note = {**json.loads(pack_version(VERSION, None).split(b" ", 2)[2]), **change}
    assert unpack_version(3, b"1000 - " + json.dumps(note).encode()) is None


@given(st.binary(max_size=200))
def test_bytes_that_nobody_of_us_wrote_are_nothing(data: bytes) -> None:
    """Never an error: the line is passed over."""
    assert unpack_version(1, data) is None
    assert unpack_standing(b"name", data, 0, None) is None


def test_a_message_of_many_lines_becomes_one_and_is_cut() -> None:
    """It is printed in tables and in the log."""
    version = unpack_version(1, pack_version(replace(VERSION, message="one\n\x1b[2Jtwo " + "x" * 900), None))
    assert version is not None
    assert version.message.startswith("one ·[2Jtwo x")
    assert len(version.message) == 500


def test_a_sticky_version_stands_over_the_folders_it_was_pushed_over() -> None:
    """Another folder is newer."""
    assert VERSION.stands_over("0" * 12)
    assert not VERSION.stands_over("1" * 12)
    assert not replace(VERSION, over=()).stands_over("1" * 12)
    assert not replace(VERSION, is_sticky=False).stands_over("0" * 12)
    assert not replace(VERSION, revision="").stands_over("0" * 12)


def test_a_process_has_answered_when_it_took_refused_or_went_beyond() -> None:
    """While it checks it has not."""
    assert STANDING.has_answered(VERSION)
    assert STANDING.has_answered(replace(VERSION, number=2, at_ms=9_999))  # whatever the clock of Redis does
    assert not STANDING.has_answered(replace(VERSION, at_ms=1001))  # another of the same number, after a loss
    assert not replace(STANDING, state="checking").has_answered(VERSION)
    damaged = replace(STANDING, looked_ms=0, state="refused")  # nobody knows when it was pushed
    assert damaged.has_answered(VERSION)
    assert not damaged.has_answered(replace(VERSION, number=4))
    # anybody may have written a number that this process could not believe
    assert not replace(STANDING, looked=900, state="refused").has_answered(VERSION)


KEY, OTHER = b"k" * 32, b"o" * 32


def test_a_version_is_signed_with_its_number_its_time_and_all_that_is_known_of_it() -> None:
    """Nothing of it can be changed without the key, and no number be given to it but its own."""
    data = pack_version(VERSION, KEY)
    assert unpack_version(3, data) == VERSION
    assert is_sealed(3, data, KEY)
    assert not is_sealed(4, data, KEY)
    assert not is_sealed(3, data, OTHER)
    assert not is_sealed(3, b"1001" + data[4:], KEY)
    assert not is_sealed(3, pack_version(VERSION, None), KEY)
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert not is_sealed(3, changed, KEY)


@pytest.mark.parametrize(
    ("own", "theirs", "trust"),
    [(None, None, "ours"), (KEY, KEY, "ours"), (KEY, None, "open"), (KEY, OTHER, "foreign"), (None, KEY, "foreign")],
)
def test_what_a_process_says_is_believed_when_it_has_the_same_secret(
    own: bytes | None, theirs: bytes | None, trust: str
) -> None:
    """One without a secret takes what is pushed, but anybody may have written its line."""
    line = b"5 " + STANDING.revision.encode() + b" " + pack_standing(STANDING, theirs)
    said = unpack_standing(STANDING.name.encode(), line, 12, own)
    assert said == replace(STANDING, trust=trust)
    late = unpack_standing(STANDING.name.encode(), line, 15_000, own)
    assert late is not None
    assert (late.trust == "ours") == (own is None is theirs)  # signed, and said again by whoever kept it
    if own is not None and theirs is own:
        other = unpack_standing(b"another", line, 12, own)
        assert other is not None
        assert other.trust == "foreign"


@pytest.mark.parametrize("change", [
    {"folder": "x"}, {"folder": None}, {"since_ms": 10**400}, {"looked": -1}, {"last": True}, {"state": "happy"},
    {"source": "a\nb"},
])  # fmt: skip
def test_a_word_of_a_process_that_is_not_of_this_form_is_none(change: dict[str, object]) -> None:
    """A folder's revision goes into what is pushed, and a time onto the screen."""
    note = {**json.loads(pack_standing(STANDING, None)[2:]), **change}
    line = b"5 " + STANDING.revision.encode() + b" - " + json.dumps(note).encode()
    assert unpack_standing(b"name", line, 0, None) is None


@given(st.binary(max_size=200))
def test_nothing_that_somebody_without_the_key_writes_is_signed(data: bytes) -> None:
    """Nor does it raise."""
    assert not is_sealed(1, data, KEY)
