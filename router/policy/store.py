"""The policies folder on disk: read as one, watched, compiled beside the running set, swapped by one assignment.

The watch is on the folder, never on a file: editors and ConfigMaps replace files, and a watch on a replaced file never
fires again. A poll stands behind the watch for file systems that tell nothing. What was read twice and is the same both
times is compiled in a thread; whatever is wrong with it, the last good set keeps serving.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from watchfiles import awatch

from router.errors import PolicyError
from router.policy.check import revision_of
from router.policy.compile import PolicySet
from router.policy.source import MAX_FOLDER_BYTES

CompileFolder = Callable[[Mapping[str, bytes]], PolicySet]

_POLL_S = 1.0
_SETTLE_S = 0.06  # a folder must be unchanged for so long before it is compiled
_MOST_TRIES = 50
_DEBOUNCE_MS = 50
_STEP_MS = 20
_ENDINGS = (".yaml", ".yml")
_MOST_FILES = 500


def read_folder(folder: Path) -> dict[str, bytes]:
    """The policy files of a folder by name, from one version of it. Raises PolicyError when it cannot be read.

    A ConfigMap volume keeps its files behind the link `..data`; the link is followed once, so that a swap in between
    cannot mix two versions.
    """
    try:
        root = Path(os.path.realpath(folder, strict=True))
        linked = root / "..data"
        if linked.is_symlink():
            root = Path(os.path.realpath(linked, strict=True))
        names = sorted(name for name in os.listdir(root) if name.endswith(_ENDINGS) and not name.startswith("."))
        if len(names) > _MOST_FILES:
            raise PolicyError(f"{folder}: {len(names)} files, at most {_MOST_FILES} are read")
        files = {}
        room = MAX_FOLDER_BYTES + 1  # one byte over is enough to know
        for name in names:
            if not os.path.isfile(root / name):  # a pipe would be waited for, a folder or a dead link cannot be read
                raise PolicyError(f"{folder}/{name}: not a file", hint="take it out of the folder")
            with open(root / name, "rb") as file:
                files[name] = file.read(max(room, 0) + 1)
            room -= len(files[name])
        return files
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        at = f"{folder}/{os.path.basename(exc.filename)}" if str(exc.filename).endswith(_ENDINGS) else str(folder)
        raise PolicyError(f"{at}: cannot be read: {reason}", hint="`--policies` names the folder") from exc


class PolicyStore:
    """Keeps the newest valid policy set of a folder.

    `load()` must have succeeded before `current` is read; it raises PolicyError with every diagnostic, which stops a
    start. After that nothing raises: `run()` follows the folder until `stop` is set, `reload()` looks at once, and what
    is refused is in `status()`. `now` gives Unix time in seconds, `observe` is told of each reload (whether it took,
    and the revision or the diagnostics).
    """

    def __init__(
        self,
        folder: Path,
        compile_folder: CompileFolder,
        *,
        poll_s: float = _POLL_S,
        settle_s: float = _SETTLE_S,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        observe: Callable[[bool, str], None] | None = None,
    ) -> None:
        self._folder = folder
        self._compile = compile_folder
        self._poll_s = poll_s
        self._settle_s = settle_s
        self._now = now
        self._sleep = sleep
        self._observe = observe
        self._turn = asyncio.Lock()
        self._current: PolicySet | None = None
        self._seen = ""  # revision (or error) of what was last looked at, good or bad
        self._loaded_at = 0.0
        self._error = ""
        self._error_at: float | None = None
        self._reloads = 0
        self._failures = 0

    @property
    def current(self) -> PolicySet:
        """The set in force. A request takes it once and keeps it."""
        if self._current is None:
            raise PolicyError(f"{self._folder}: no policies loaded", hint="call `load()` first")
        return self._current

    def load(self) -> PolicySet:
        """Read and compile the folder, at the start of the program. Raises PolicyError."""
        files = read_folder(self._folder)
        for _ in range(_MOST_TRIES):
            again = read_folder(self._folder)
            if again == files:
                break
            files = again
        self._seen = revision_of(files)
        self._take(self._compile(files))
        return self.current

    async def reload(self) -> bool:
        """Look at the folder now and compile it even if nothing changed (SIGHUP). True when the set was taken."""
        return await self._look(is_forced=True)

    async def poll(self) -> bool:
        """Look at the folder and compile it if it changed. True when a new set was taken."""
        return await self._look(is_forced=False)

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the folder until `stop` is set. Survives the folder's going away and coming back."""
        while not stop.is_set():
            identity = self._identity()
            try:
                changes = awatch(
                    self._folder,
                    watch_filter=None,
                    debounce=_DEBOUNCE_MS,
                    step=_STEP_MS,
                    stop_event=stop,
                    rust_timeout=int(self._poll_s * 1000),
                    yield_on_timeout=True,
                    recursive=False,
                )
                async with aclosing(changes):
                    async for _ in changes:
                        await self.poll()
                        if self._identity() != identity:
                            break  # another folder stands there now: the watch is on the old one
            except (OSError, RuntimeError):  # no folder, or no watches left: the poll alone must do
                await self.poll()
                try:
                    await asyncio.wait_for(stop.wait(), self._poll_s)
                except TimeoutError:
                    pass

    def status(self) -> dict[str, Any]:
        """What the admin listener shows: revision in force, when it was loaded, the last refusal, counts.

        Times are Unix seconds. `last_error` is empty when the folder on disk is what is being served.
        """
        current = self._current
        return {
            "folder": str(self._folder),
            "revision": current.revision if current is not None else None,
            "policies": sorted(current.policies) if current is not None else [],
            "loaded_at": self._loaded_at or None,
            "last_error": self._error,
            "last_error_at": self._error_at,
            "is_current": current is not None and not self._error,
            "reloads": self._reloads,
            "failures": self._failures,
        }

    async def _look(self, *, is_forced: bool) -> bool:
        async with self._turn:
            try:
                files = await asyncio.to_thread(read_folder, self._folder)
                if revision_of(files) == self._seen and not is_forced:
                    return False
                files = await self._settled(files)
            except PolicyError as error:
                self._seen = ""  # when it can be read again it is news, even if nothing changed
                if error.message != self._error:  # a folder that stays away is one failure, not one a second
                    self._refuse(error.message)
                return False
            self._seen = revision_of(files)
            if self._current is not None and self._seen == self._current.revision:
                self._take(self._current)  # back to what is in force: nothing to compile, no error any more
                return is_forced
            try:
                policies = await asyncio.to_thread(self._compile, files)
            except PolicyError as error:
                self._refuse(error.message)
                return False
            except Exception as error:  # a bug in compiling must not end the watch: counted, shown, the old set serves
                self._refuse(f"{type(error).__name__} while compiling: this is a bug of the router")
                return False
            self._take(policies)
            self._reloads += 1
            return True

    async def _settled(self, files: dict[str, bytes]) -> dict[str, bytes]:
        """The folder once it has been the same for a moment: a file half written is not looked at."""
        for _ in range(_MOST_TRIES):
            await self._sleep(self._settle_s)
            again = await asyncio.to_thread(read_folder, self._folder)
            if again == files:
                return files
            files = again
        raise PolicyError(f"{self._folder}: keeps changing", hint="it is read again at the next change")

    def _take(self, policies: PolicySet) -> None:
        self._current = policies
        self._loaded_at = self._now()
        self._error, self._error_at = "", None
        if self._observe is not None:
            self._observe(True, policies.revision)

    def _refuse(self, problem: str) -> None:
        self._error, self._error_at = problem, self._now()
        self._failures += 1
        if self._observe is not None:
            self._observe(False, problem)

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._folder)
        except OSError:
            return None
        return found.st_dev, found.st_ino
