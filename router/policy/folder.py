"""The files of a policies folder, read as one version of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from router.errors import PolicyError
from router.policy.history import ROLLBACK_MARK, is_policy_file
from router.policy.source import MAX_FOLDER_BYTES, visible

_CUT_SHORT = f"`router policy rollback REVISION` finishes it; the file `{ROLLBACK_MARK}` names the revision"
_MOST_FILES = 500
_MOST_TRIES = 50


def read_folder(folder: Path, *, is_rollback: bool = False) -> dict[str, bytes]:
    """The policy files of a folder by name, from one version of it. Raises PolicyError when it cannot be read.

    A ConfigMap volume keeps its files behind the link `..data`; the link is followed once, so that a swap in between
    cannot mix two versions. A folder in the middle of a rollback is read for another rollback only.
    """
    try:
        root = Path(os.path.realpath(folder, strict=True))
        linked = root / "..data"
        if linked.is_symlink():
            root = Path(os.path.realpath(linked, strict=True))
        found = os.listdir(root)
        if ROLLBACK_MARK in found and not is_rollback:
            raise PolicyError(f"{folder}: a rollback is under way, or was cut short", hint=_CUT_SHORT)
        names = sorted(name for name in found if is_policy_file(name))
        if len(names) > _MOST_FILES:
            raise PolicyError(f"{folder}: {len(names)} files, at most {_MOST_FILES} are read")
        files = {}
        room = MAX_FOLDER_BYTES + 1  # one byte over is enough to know
        for name in names:
            if not os.path.isfile(root / name):  # a pipe would be waited for, a folder or a dead link cannot be read
                raise PolicyError(visible(f"{folder}/{name}: not a file"), hint="take it out of the folder")
            with open(root / name, "rb") as file:
                files[name] = file.read(max(room, 0) + 1)
            room -= len(files[name])
        return files
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        at = (
            f"{folder}/{os.path.basename(exc.filename)}"
            if is_policy_file(os.path.basename(str(exc.filename)))
            else str(folder)
        )
        raise PolicyError(visible(f"{at}: cannot be read: {reason}"), hint="`--policies` names the folder") from exc


def read_whole_folder(folder: Path, pause_s: float = 0.0) -> dict[str, bytes]:
    """The same from a folder that somebody may be writing: read until it is the same twice, `pause_s` apart.

    Raises PolicyError.
    """
    files = read_folder(folder)
    for _ in range(_MOST_TRIES):
        time.sleep(pause_s)
        again = read_folder(folder)
        if again == files:
            break
        files = again
    return files
