"""Policies that were pushed to a fleet, as values: a version, what a process says of itself, and both as bytes.

A version is a whole set of policies under a number that only grows, or the word that the folder is to serve again. What
comes back from the store is read as strictly as a file: whoever can write there must not be able to put a router into
a state that a folder could not. Where processes share a secret, a version is signed with it: number, time, and all that
is known of it, a hash of its files among that. So who can write there and has no secret can put nothing in force, nor
something old anew under a later number. What a process says of itself is signed too, so that nobody else can say which
folders there are and which number was the last.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal, get_args

from router.errors import PolicyError
from router.policy.check import revision_of
from router.policy.source import MAX_FILE_BYTES, visible

How = Literal["push", "rollback", "unpush"]
# `checking` is not the end yet; `older` was pushed before the process began, `left` gave way to a later folder.
State = Literal["none", "checking", "taken", "refused", "older", "left"]
# Of what a process says: signed with the key that is asked for (or both have none), by one without a key, with another.
Trust = Literal["ours", "open", "foreign"]

MAX_PUSH_BYTES = MAX_FILE_BYTES  # of all files together
MAX_PACKED_BYTES = 6 * MAX_PUSH_BYTES + 64 * 1024  # the same as JSON, every character escaped
MOST_VERSIONS = 20
MOST_NUMBER = 10**9 - 1
MOST_CHARS = 500  # of a message, or a reason
_MOST_NOTE_BYTES = 64 * 1024
_MOST_FILES = 500
_MOST_OLD_MS = 10_000  # of a word that is believed
_MOST_OVER = 100  # folders of one fleet that differ
_LONGEST_NAME = 200
_REVISION_CHARS = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the policies of a fleet.

    `number` counts from 1. `at_ms` is Unix milliseconds by the clock of Redis. `revision` is that of the files, empty
    where the folder of each process serves again, and `digest` the SHA-256 of the files as they are stored. `who`
    pushed it, `of` is the version whose files a rollback took (or 0). `over` are the revisions of the folders that it
    took the place of: a folder that changes to another one is newer than it, and a sticky version outlives restarts for
    processes whose folder has one of them.
    """

    number: int
    at_ms: int
    revision: str
    how: How
    who: str = ""
    message: str = ""
    is_sticky: bool = False
    over: tuple[str, ...] = ()
    of: int = 0
    digest: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether it says that the folder serves."""
        return not self.revision

    @property
    def moment(self) -> tuple[int, int]:
        """What orders versions: the number, and between two of one number, after Redis lost all, the time."""
        return self.number, self.at_ms

    def stands_over(self, folder: str) -> bool:
        """Whether a process that starts with a folder of this revision takes the version all the same."""
        return self.is_sticky and not self.is_folder and folder in self.over

    def shown(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "number": self.number,
            "revision": self.revision or None,
            "how": self.how,
            "at": self.at_ms / 1000,
            "who": self.who,
            "message": self.message,
            "is_sticky": self.is_sticky,
            "of": self.of or None,
        }


@dataclass(frozen=True, slots=True)
class Standing:
    """What a process says of itself: the set that it serves, and how it stands to the version `looked` at last.

    `looked_ms` is the time of that version, which tells it from another of the same number, after Redis lost all.
    `last` is the latest number that it could believe: the next version must have a later one.
    `folder` is the revision of its folder, `source` where its set is from, `since_ms` (Unix) since when. `said_ms` is
    when it said so, by the clock of Redis as far as it knows: what is older somebody else repeats. `silent_ms` is for
    how long it has not been heard of, and `trust` whether to believe it, which only the reader knows.
    """

    name: str
    revision: str
    source: str
    folder: str
    looked: int = 0
    looked_ms: int = 0
    last: int = 0
    state: State = "none"
    reason: str = ""
    since_ms: int = 0
    said_ms: int = 0
    silent_ms: int = 0
    trust: Trust = "ours"

    def has_answered(self, version: Version) -> bool:
        """Whether it has come to an end with that version, or is beyond it."""
        if (self.looked, self.looked_ms) == version.moment:
            return self.state not in ("none", "checking")
        is_damaged = self.looked == version.number and not self.looked_ms and self.state == "refused"
        return is_damaged or self.is_beyond(version)

    def is_beyond(self, version: Version) -> bool:
        """Whether it follows a later version. One that it could not believe is none: anybody may have written that."""
        return (self.looked, self.looked_ms) > version.moment and self.state not in ("none", "refused")

    def shown(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "revision": self.revision,
            "source": self.source,
            "folder": self.folder,
            "version": self.looked or None,
            "state": self.state,
            "reason": self.reason,
            "since": self.since_ms / 1000,
        }


def check_pushable(files: Mapping[str, bytes]) -> None:
    """Refuse what no process would take from the store, whatever is in the files. Raises PolicyError."""
    if not files:
        raise PolicyError("there is no policy file to push")
    if len(files) > _MOST_FILES:
        raise PolicyError(f"{len(files)} policy files, at most {_MOST_FILES} can be pushed")
    for name in files:
        if not _is_file_name(name):
            raise PolicyError(f"`{visible(name)[:80]}` cannot be pushed: it is not the name of a policy file")
    size = sum(map(len, files.values()))
    if size > MAX_PUSH_BYTES:
        raise PolicyError(f"the policies are {size:,} bytes, at most {MAX_PUSH_BYTES:,} can be pushed")


def pack_files(files: Mapping[str, bytes]) -> bytes:
    """Files as they are stored. Raises PolicyError for those that cannot be pushed."""
    check_pushable(files)
    try:
        texts = {name: files[name].decode() for name in sorted(files)}
    except UnicodeDecodeError:
        raise PolicyError("a policy file is not UTF-8") from None
    return json.dumps(texts, ensure_ascii=False, separators=(",", ":")).encode()


def unpack_files(data: bytes, version: Version) -> dict[str, bytes]:
    """The files of a version out of the store. Raises PolicyError when they are not what was pushed."""
    damaged = f"version #{version.number}: what the store holds of it is damaged"
    if len(data) > MAX_PACKED_BYTES or sha256(data).hexdigest() != version.digest:
        raise PolicyError(damaged, hint="push the policies again")
    try:
        texts = json.loads(data)
        files = {name: text.encode() for name, text in texts.items()}
    except (ValueError, AttributeError, RecursionError):
        raise PolicyError(damaged) from None
    check_pushable(files)
    if revision_of(files) != version.revision:
        raise PolicyError(damaged, hint="push the policies again")
    return files


def pack_version(version: Version, key: bytes | None) -> bytes:
    """A version as it is stored: Unix milliseconds, its seal with `key` (`-` without one), the rest as JSON."""
    note = json.dumps(
        {
            "revision": version.revision,
            "how": version.how,
            "who": one_line(version.who),
            "message": one_line(version.message),
            "is_sticky": version.is_sticky,
            "over": list(version.over[:_MOST_OVER]),
            "of": version.of,
            "digest": version.digest,
        }
    ).encode()
    seal = b"-" if key is None else _seal(key, b"version", b"%d" % version.number, b"%d" % version.at_ms, note)
    return b"%d %s %s" % (version.at_ms, seal, note)


def unpack_version(number: int, data: bytes) -> Version | None:
    """A version out of the store, whoever wrote it. None when it is none."""
    at, _, rest = data.partition(b" ")
    note = rest.partition(b" ")[2]
    if len(data) > _MOST_NOTE_BYTES or not at.isdigit() or len(at) > 15:
        return None
    try:
        said = json.loads(note)
        version = Version(
            number,
            int(at),
            said["revision"],
            said["how"],
            said["who"],
            said["message"],
            said["is_sticky"],
            tuple(said["over"]),
            said["of"],
            said["digest"],
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    is_whole = (
        all(_is_line(text) for text in (version.who, version.message, version.digest))
        and version.how in get_args(How)
        and all(_is_revision(each) for each in (*version.over, *([version.revision] if version.revision else [])))
        and isinstance(version.revision, str)
        and isinstance(version.is_sticky, bool)
        and type(version.of) is int
    )
    return version if is_whole else None


def has_seal(data: bytes) -> bool:
    """Whether a version out of the store was signed with some key."""
    return data.split(b" ", 2)[1:2] != [b"-"]


def is_sealed(number: int, data: bytes, key: bytes) -> bool:
    """Whether a version out of the store was written under this number by somebody who has the key."""
    at, _, rest = data.partition(b" ")
    seal, _, note = rest.partition(b" ")
    return hmac.compare_digest(seal, _seal(key, b"version", b"%d" % number, at, note))


def _seal(key: bytes, *parts: bytes) -> bytes:
    """HMAC-SHA256 in hex over parts of which only the last may hold a space."""
    return hmac.new(key, b" ".join(parts), sha256).hexdigest().encode()


def pack_standing(standing: Standing, key: bytes | None) -> bytes:
    """What a process says, as it is stored behind its revision: its seal with `key` (`-` without one), JSON."""
    note = json.dumps(
        {
            "source": standing.source,
            "folder": standing.folder,
            "looked": standing.looked,
            "looked_ms": standing.looked_ms,
            "last": standing.last,
            "state": standing.state,
            "reason": one_line(standing.reason),
            "since_ms": standing.since_ms,
            "said_ms": standing.said_ms,
        }
    ).encode()
    if key is None:
        return b"- " + note
    return _seal(key, b"process", standing.name.encode(), standing.revision.encode(), note) + b" " + note


def unpack_standing(name: bytes, data: bytes, now_ms: int, key: bytes | None) -> Standing | None:
    """What a process said: Unix milliseconds, its revision, what `pack_standing` made. None when it is nothing."""
    at, _, rest = data.partition(b" ")
    revision, _, rest = rest.partition(b" ")
    seal, _, note = rest.partition(b" ")
    if len(data) > _MOST_NOTE_BYTES or len(name) > _LONGEST_NAME or not at.isdigit() or len(at) > 15:
        return None
    try:
        said = json.loads(note)
        standing = Standing(
            visible(name.decode("latin-1")),
            revision.decode("ascii"),
            said["source"],
            said["folder"],
            said["looked"],
            said["looked_ms"],
            said["last"],
            said["state"],
            said["reason"],
            said["since_ms"],
            said["said_ms"],
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    is_whole = (
        all(_is_line(text) for text in (standing.source, standing.reason))
        and (standing.folder == "" or _is_revision(standing.folder))
        and standing.state in get_args(State)
        and all(
            type(count) is int and 0 <= count < 10**15
            for count in (standing.looked, standing.looked_ms, standing.last, standing.since_ms, standing.said_ms)
        )
    )
    if not is_whole:
        return None
    trust: Trust = "ours" if key is None else "open"
    if seal != b"-":
        is_ours = key is not None and hmac.compare_digest(seal, _seal(key, b"process", name, revision, note))
        trust = "foreign" if not is_ours else "ours" if abs(now_ms - standing.said_ms) <= _MOST_OLD_MS else "open"
    return replace(standing, silent_ms=now_ms - int(at), trust=trust)


def one_line(text: str) -> str:
    """Text for a table or a log: no line end, nothing that cannot be printed, and cut."""
    return visible(" ".join(text.split()))[:MOST_CHARS]


def _is_line(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MOST_CHARS and value.isprintable()


def _is_revision(value: object) -> bool:
    return isinstance(value, str) and len(value) == 12 and _REVISION_CHARS.issuperset(value)


def _is_file_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and len(name) <= _LONGEST_NAME
        and name.endswith((".yaml", ".yml"))
        and not name.startswith(".")
        and not any(mark in name for mark in "/\\\0")
    )
