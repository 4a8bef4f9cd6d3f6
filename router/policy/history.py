"""The policies that came into force: the files of the last revisions, in a folder that several processes may share.

Each policies folder has a subfolder of its own, each revision a folder in that, with the policy files and `meta.json`.
A revision is written beside and renamed, so that nobody sees half of one; its name is the hash of its files and is
held against them when they are read, so that a damaged one is never used. A history that cannot be written costs
nothing but itself: it is said once, counted, and the router serves on.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

from router.errors import PolicyError
from router.policy.check import revision_of

How = Literal["start", "reload", "rollback", "replaced"]

MOST_REVISIONS = 20
ROLLBACK_MARK = ".rollback"  # stands in a policies folder while it is being rolled back
_BESIDE = ".new"
_META = "meta.json"
_TRIES = 5
_META_BYTES = 256 * 1024
_LATEST_S = 253_402_300_799.0  # the last second of the year 9999, after which there are no dates
_REVISION_CHARS = 12
_HEX = frozenset("0123456789abcdef")
_UNFINISHED = ".new-"
_STALE_S = 3600.0  # a writer that has left its unfinished folder for so long is gone
_SAME_EVENT_S = 30.0  # a router takes what `rollback` wrote within this


@dataclass(frozen=True, slots=True)
class Entry:
    """One revision of the history.

    `taken_at` is Unix time in seconds, 0 where what is written there is no time. `files` are the names of its policy
    files, empty where an older version wrote the entry. `how` it came there: `start` and `reload` of a router,
    `rollback` of the command line, `replaced` (it stood in the folder when a rollback took its place, in force or not).
    """

    revision: str
    taken_at: float
    how: How
    files: tuple[str, ...] = ()


class PolicyHistory:
    """The last `most` revisions of one policies folder, kept under `folder`.

    `now` gives Unix time in seconds. `say` is told when the history cannot be written, once until it can be again.
    `record` never raises; what reads raises PolicyError where a revision is not there.
    """

    def __init__(
        self,
        folder: Path,
        policies_folder: Path,
        *,
        now: Callable[[], float],
        most: int = MOST_REVISIONS,
        say: Callable[[str], None] | None = None,
    ) -> None:
        # The parent's real path and the name: a policies folder that is itself a link keeps its history when the link
        # is put to the next version.
        path = Path(os.path.abspath(policies_folder))
        real = Path(os.path.realpath(path.parent)) / path.name
        self.folder = folder / f"{real.name}-{sha256(os.fsencode(real)).hexdigest()[:8]}"
        self._now = now
        self._most = most
        self._say = say
        self._failures = 0
        self._error = ""

    def record(self, revision: str, files: Mapping[str, bytes], how: How) -> bool:
        """Keep the files of a revision, or renew its time if it is there. False when that failed; never raises."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in reversed(range(_TRIES)):
                try:
                    self._write(revision, files, how)
                    break
                except OSError as exc:  # another process took the folder away, or made it, in between: look again
                    if not left or exc.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                        raise
            self._prune()
        except OSError as exc:
            self._failures += 1
            problem = f"{self.folder}: cannot be written: {exc.strerror or type(exc).__name__}"
            if self._say is not None and not self._error:
                self._say(problem)
            self._error = problem
            return False
        self._error = ""
        return True

    def entries(self) -> list[Entry]:
        """What is kept, newest first; nothing where there is no history. What cannot be read is left out."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        found = [entry for name in names if is_revision(name) and (entry := self._entry(name)) is not None]
        return sorted(found, key=lambda entry: (-entry.taken_at, entry.revision))

    def find(self, prefix: str) -> Entry:
        """The entry whose revision begins so. Raises PolicyError when there is none, or more than one."""
        entries = self.entries()
        found = [entry for entry in entries if prefix and entry.revision.startswith(prefix)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(f"`{entry.revision}`" for entry in found)
            raise PolicyError(f"`{prefix}` begins several revisions: {names}", hint="write more of it")
        kept = ", ".join(entry.revision for entry in entries)
        raise PolicyError(
            f"no revision `{prefix[:60]}` in the history",
            hint=f"there are {kept}" if kept else f"`{self.folder}` holds none",
        )

    def files(self, prefix: str) -> dict[str, bytes]:
        """The files of a revision, given whole or by a prefix that only it has. Raises PolicyError."""
        entry = self.find(prefix)
        place = self.folder / entry.revision
        try:
            # What else lies there is not ours, and does no harm.
            names = entry.files or [name for name in os.listdir(place) if is_policy_file(name)]
            files = {name: (place / name).read_bytes() for name in sorted(names) if os.path.isfile(place / name)}
        except OSError as exc:
            raise PolicyError(f"{place}: cannot be read: {exc.strerror or type(exc).__name__}") from exc
        if revision_of(files) != entry.revision:
            raise PolicyError(f"{place}: its files are damaged", hint="use another revision of the history")
        return files

    def status(self) -> dict[str, Any]:
        """Where the history is, how often it could not be written, and why the last time (empty: it works)."""
        return {"folder": str(self.folder), "failures": self._failures, "last_error": self._error}

    def _write(self, revision: str, files: Mapping[str, bytes], how: How) -> None:
        place = self.folder / revision
        known = self._entry(revision)
        if known is not None and self._is_whole(place, revision):
            is_rollback = known.how == "rollback" and how == "reload" and self._now() - known.taken_at < _SAME_EVENT_S
            self._write_meta(place, revision, "rollback" if is_rollback else how, files)
            return
        made = self._unfinished()
        try:
            made.mkdir()
            for name, data in files.items():
                _write_file(made / name, data)
            self._write_meta(made, revision, how, files)
            if place.exists():  # damaged: out of the way
                _remove(place)
            try:
                os.rename(made, place)
            except OSError:
                if self._entry(revision) is None:  # not that another process was faster with the same revision
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _write_meta(self, place: Path, revision: str, how: How, files: Mapping[str, bytes]) -> None:
        meta = json.dumps({"revision": revision, "taken_at": round(self._now(), 6), "how": how, "files": sorted(files)})
        path = self._unfinished()
        try:
            _write_file(path, meta.encode())
            os.replace(path, place / _META)
        except OSError:
            with suppress(OSError):
                path.unlink()
            raise

    def _unfinished(self) -> Path:
        """A name that nobody else uses; not a temporary file of the system's, which only its owner may read."""
        return self.folder / f"{_UNFINISHED}{os.getpid()}-{secrets.token_hex(4)}"

    def _is_whole(self, place: Path, revision: str) -> bool:
        try:
            return bool(self.files(revision)) and place.is_dir()
        except PolicyError:
            return False

    def _entry(self, revision: str) -> Entry | None:
        try:
            with open(self.folder / revision / _META, "rb") as file:
                meta = json.loads(file.read(_META_BYTES))
            taken_at, how, names = float(meta["taken_at"]), meta["how"], meta.get("files", [])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None
        if meta.get("revision") != revision or how not in get_args(How) or not isinstance(names, list):
            return None
        if not all(isinstance(name, str) and is_policy_file(name) and name == os.path.basename(name) for name in names):
            return None
        # Whoever wrote a time that is none: the files are held against their hash, so the entry still serves, as the
        # oldest one.
        return Entry(revision, taken_at if 0 <= taken_at <= _LATEST_S else 0.0, how, tuple(names))

    def _prune(self) -> None:
        for entry in self.entries()[self._most :]:
            _remove(self.folder / entry.revision)
        for name in os.listdir(self.folder):
            if name.startswith(_UNFINISHED):
                left = self.folder / name
                with suppress(OSError):
                    if self._now() - os.stat(left).st_mtime > _STALE_S:
                        _remove(left)


def is_revision(text: str) -> bool:
    """Whether this is the form of a whole revision: 12 hex digits in lower case."""
    return len(text) == _REVISION_CHARS and _HEX.issuperset(text)


def roll_back(
    folder: Path, files: Mapping[str, bytes], revision: str, save: Callable[[], None] | None = None
) -> list[str]:
    """Make these the policy files of a folder; the names of those that changed or went. Raises PolicyError.

    `save` is called when all is ready and nothing is changed yet; what it raises calls the rollback off.

    All new files are written beside the old ones, then renamed over them; what the revision does not have is removed.
    While that lasts the file `.rollback` stands in the folder, and a router that sees it does not read the folder. So
    a mix is never served, not even after a crash half-way: the file stays, routers keep their last good set (or start
    from the history), and rolling back once more finishes the work.
    """
    if (folder / "..data").is_symlink():
        hint = f"put the files of the revision into the ConfigMap; `router policy history {folder}` says where they are"
        raise PolicyError(f"{folder}: is a mounted ConfigMap, which only its owner changes", hint=hint)
    mark = folder / ROLLBACK_MARK
    fresh = {name: folder / f".{name}{_BESIDE}" for name in files}
    done: list[str] = []
    was_marked = mark.exists()  # by one that was cut short: the mark must not go before the work is done
    try:
        old = sorted(name for name in os.listdir(folder) if is_policy_file(name))
        for name in old:
            if (folder / name).is_symlink():
                raise PolicyError(f"{folder / name}: is a link", hint="change the file that it leads to")
        mark.write_text(f"{revision}\n")
        for name, data in files.items():
            _write_file(fresh[name], data)
            if (folder / name).exists():
                shutil.copymode(folder / name, fresh[name])
        if save is not None:
            save()
        for name, data in files.items():
            is_same = (folder / name).exists() and (folder / name).read_bytes() == data
            os.replace(fresh[name], folder / name)
            if not is_same:
                done.append(name)
        for name in set(old) - set(files):
            (folder / name).unlink()
            done.append(name)
        mark.unlink()
    except (OSError, PolicyError) as exc:
        was_cut_short = was_marked or bool(done)
        for path in (*fresh.values(), *(() if was_cut_short else (mark,))):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        if isinstance(exc, PolicyError):
            raise
        problem = f"{folder}: cannot be changed: {exc.strerror or type(exc).__name__}"
        if was_cut_short:
            problem += f"; it holds a part of `{revision}`, so routers do not read it now"
            raise PolicyError(problem, hint="repair that and roll back once more") from exc
        hint = "change the files where they come from (a read-only mount, an image, a repository)"
        raise PolicyError(problem, hint=hint) from exc
    return sorted(done)


def is_policy_file(name: str) -> bool:
    """Whether a file of a policies folder is read: `*.yaml` and `*.yml`, but nothing hidden."""
    return name.endswith((".yaml", ".yml")) and not name.startswith(".")


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # the history is what a router starts from after a crash


def _remove(place: Path) -> None:
    """Take a folder (or file) away; it is renamed first, so that nobody sees half of it."""
    away = place.with_name(f"{_UNFINISHED}{place.name.removeprefix(_UNFINISHED)}-{os.getpid()}")
    try:
        os.rename(place, away)
    except OSError:  # another process was faster
        return
    if away.is_dir():
        shutil.rmtree(away, ignore_errors=True)
    else:
        with suppress(OSError):
            away.unlink()
