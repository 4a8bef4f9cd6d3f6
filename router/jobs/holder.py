"""Who works for an owner: a name for this process that no other has, from which others see that it is gone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

_PROC = Path("/proc")
_UNKNOWN = "-"


def holder_name(proc: Path = _PROC) -> str:
    """A new name for this process: `boot:namespace:pid:start:token`, with `-` for what the system does not tell.

    `boot` is of the host, `namespace` the one whose numbers `pid` is of, `start` when the process began (in ticks).
    """
    boot, namespace = _here(proc)
    pid = os.getpid()
    seen = _process(proc, "self")
    start = seen[2] if seen is not None and seen[0] == pid else _UNKNOWN
    return f"{boot}:{namespace}:{pid}:{start}:{secrets.token_hex(8)}"


def is_gone(holder: str, proc: Path = _PROC) -> bool:
    """Whether the process of a name is known to have ended. False where that cannot be seen from here."""
    parts = holder.split(":")
    if len(parts) != 5 or _UNKNOWN in parts or tuple(parts[:2]) != _here(proc) or not parts[2].isdecimal():
        return False
    pid = int(parts[2])
    try:
        os.kill(pid, 0)  # no signal; a process that may not be looked at in /proc still answers to this
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    seen = _process(proc, str(pid))
    return seen is not None and seen[0] == pid and (seen[1] in "ZX" or seen[2] != parts[3])


def _here(proc: Path) -> tuple[str, str]:
    try:
        boot = (proc / "sys/kernel/random/boot_id").read_text("ascii").strip()
        return boot or _UNKNOWN, str(os.stat(proc / "self/ns/pid").st_ino)
    except (OSError, ValueError):
        return _UNKNOWN, _UNKNOWN


def _process(proc: Path, name: str) -> tuple[int, str, str] | None:
    """The number, the state and the start of a process; None where they are not to be had."""
    try:
        said = (proc / name / "stat").read_text("ascii", "replace")
        # The program's name is in brackets and may hold anything; the state is field 3, the start 22.
        fields = said[said.rindex(")") + 1 :].split()
        return int(said[: said.index(" ")]), fields[0], fields[19]
    except (OSError, ValueError, IndexError):
        return None
