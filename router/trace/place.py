"""Which file the trace store is, and whether it is still the one that was opened."""

from __future__ import annotations

import os
from pathlib import Path

from router.errors import SettingsError


def path_of(url: str) -> Path | None:
    """The file that a `traces` setting names: `sqlite:///router.db` (here), `sqlite:////var/router.db`; None for `off`.

    Raises SettingsError for anything else.
    """
    if url == "off":
        return None
    prefix = "sqlite:///"
    name = url[len(prefix) :] if url.startswith(prefix) else ""
    if not name or name.endswith("/") or any(mark in name for mark in "?#\0"):
        raise SettingsError(
            f"`traces` is `{url}`, expected `sqlite:///FILE` or `off`",
            hint="`sqlite:///router.db` is in the working directory, `sqlite:////var/router.db` is an absolute path",
        )
    return Path(name)


def inode(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one of the same name; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
