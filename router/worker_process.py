"""One worker as the supervisor sees it: a process, its line, and what the system tells about it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import router
from router.control import Line, connected_pair


@dataclass(eq=False)
class Worker:
    """One process. `state` is starting, ready or draining. Times: monotonic."""

    process: asyncio.subprocess.Process
    record: int | None  # a file of its own, for where it is stuck
    started_s: float
    beat_s: float
    number: int = 0  # the lowest that was free
    waited_s: float = 0.0  # for a core, up to the last beat
    state: str = "starting"
    is_stuck: bool = False
    follows: Worker | None = None  # whose place it takes in a rolling restart, until it has it
    line: Line | None = None
    told: asyncio.Event = field(default_factory=asyncio.Event)  # ready, or ended

    def connect(self) -> socket.socket | None:
        """A new connection to its admin application; None where it cannot be reached."""
        try:
            ours, theirs = connected_pair()
        except OSError:  # no descriptors left
            return None
        with theirs:
            if self.line is not None and self.line.say("admin", theirs):
                return ours
        ours.close()
        return None


async def spawn(program: Sequence[str], listener: socket.socket) -> tuple[Worker, socket.socket]:
    """Start `program` with its three descriptors → the worker, and our end of its line.

    Raises OSError or RuntimeError when the system has no room for it; nothing is left open then.
    """
    with contextlib.ExitStack() as undo:
        ours, theirs = connected_pair()
        undo.callback(ours.close)
        with theirs:
            record = os.memfd_create("router-stuck") if hasattr(os, "memfd_create") else None
            if record is not None:
                undo.callback(os.close, record)
            passed = (theirs.fileno(), listener.fileno(), 2 if record is None else record)
            process = await asyncio.create_subprocess_exec(
                *program, *map(str, passed), stdin=asyncio.subprocess.DEVNULL, pass_fds=passed
            )
        undo.pop_all()
    now = time.monotonic()
    return Worker(process, record, now, now), ours


def worker_program() -> list[str]:
    """The program that a worker is. `-P`: a folder `router` in the working directory is none of our business."""
    package = Path(router.__file__).resolve().parents[1]
    safe = () if package == Path.cwd() else ("-P",)
    return [sys.executable, *safe, "-m", "router.cli.worker"]


def waited_s(pid: int) -> float:
    """Seconds for which the main thread of a process has waited for a core; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_bytes().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def is_stopped(pid: int) -> bool:
    """Whether somebody has stopped the process (SIGSTOP, a debugger)."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False


def places_in(record: int) -> str:
    """What faulthandler wrote: the places, innermost first, on one line."""
    text = os.pread(record, 8_192, 0).decode("utf-8", "replace")
    places = [line.strip() for line in text.splitlines() if line.startswith("  File ")]
    return " < ".join(places[:8])
