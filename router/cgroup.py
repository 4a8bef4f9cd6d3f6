"""How near this process is to the memory limit of its control group, where it has one.

Version 2 and version 1 of the interface are read, this group and those above it, whichever is nearest to its limit.
What is compared is the memory that the kernel cannot take back: pages of files (the trace store's, say) and its own
notes about files fill a group up to its limit in every healthy process, and are dropped when room is needed.

A group may hold other programs too. What they use brings the limit as near, but turning requests away would not push
it off; so it is also said how near the groups are that are mostly full of this router's own memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT = 1 << 60  # version 1 says "none" with a number near 2**63
_V2 = ("memory.max", "memory.current", "inactive_file", "active_file", "slab_reclaimable")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file")
_STATM = Path("/proc/self/statm")
_PAGE = os.sysconf("SC_PAGE_SIZE")

Place = tuple[Path, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Pressure:
    """Parts of a limit that are used and cannot be taken back, 0 to 1 (or more).

    `share` is that of the group nearest to its limit, `own` that of the nearest in which at least half of the memory is
    the router's; 0 where there is none such.
    """

    share: float
    own: float


class CgroupMemory:
    """The memory of one control group and those above it. Reading it takes some tens of microseconds.

    `processes` are those of the router, this one and its like; `statm` says what this one uses.
    """

    def __init__(self, places: list[Place], processes: int = 1, statm: Path = _STATM) -> None:
        self._places = places
        self._processes = processes
        self._statm = statm

    def look(self) -> Pressure | None:
        """How near the limits are; None without one. They are read each time, for they may be changed meanwhile."""
        uses = [use for folder, names in self._places if (use := _use(folder, names)) is not None]
        if not uses:
            return None
        ours = self._own_bytes()
        return Pressure(
            share=max(used / limit for used, limit in uses),
            own=max((used / limit for used, limit in uses if ours is None or ours * 2 >= used), default=0.0),
        )

    def _own_bytes(self) -> int | None:
        """Memory of the router's processes that is no page of a file; None where it is not told."""
        try:
            _, resident, shared, *_ = self._statm.read_text().split()
            return (int(resident) - int(shared)) * _PAGE * self._processes
        except (OSError, ValueError):
            return None


def find_memory(
    proc: Path = Path("/proc/self/cgroup"),
    mount: Path = Path("/sys/fs/cgroup"),
    processes: int = 1,
    statm: Path = _STATM,
) -> CgroupMemory | None:
    """The control group of this process as `proc` and `mount` tell it; None where there is none to read."""
    try:
        lines = proc.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    places: list[Place] = []
    for line in lines:
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "-", "")
        if controllers == "":
            places += _places(mount, path, _V2)
        elif "memory" in controllers.split(","):
            places += _places(mount / "memory", path, _V1)
    return CgroupMemory(places, processes, statm) if places else None


def _places(root: Path, path: str, names: tuple[str, ...]) -> list[Place]:
    """The folders with a limit, from `path` below `root` up to `root` itself.

    In a container the path may be that of the host, which is not there: then `root` is the container's own group.
    """
    parts = [part for part in path.split("/") if part not in ("", "..", ".")]
    folders = [root.joinpath(*parts[:length]) for length in range(len(parts), -1, -1)]
    return [(folder, names) for folder in folders if (folder / names[0]).is_file()]


def _use(folder: Path, names: tuple[str, ...]) -> tuple[int, int] | None:
    """Bytes used that cannot be taken back, and the limit; None where there is no limit."""
    limit_name, used_name, *taken_back = names
    try:
        said = (folder / limit_name).read_text().strip()
        if said == "max" or not 0 < int(said) < _NO_LIMIT:
            return None
        limit, used = int(said), int((folder / used_name).read_text())
        if used * 2 > limit:  # only then is the longer file worth reading
            for line in (folder / "memory.stat").read_text().splitlines():
                name, _, count = line.partition(" ")
                if name in taken_back:
                    used -= int(count)
    except (OSError, ValueError):
        return None
    return max(0, used), limit
