"""The policies folder on disk: read as one, watched, compiled beside the running set, swapped by one assignment.

The watch is on the folder, never on a file: editors and ConfigMaps replace files, and a watch on a replaced file never
fires again. A poll stands behind the watch for file systems that tell nothing. What was read twice and is the same both
times is compiled in a thread; whatever is wrong with it, the last good set keeps serving. What came into force is kept
in a history, so that a restart with a broken folder finds the last good set too.

A set that was pushed to the whole fleet stands before the folder's, until the folder changes or the push is taken back.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from watchfiles import awatch

from router.errors import PolicyError
from router.policy.check import revision_of
from router.policy.compile import PolicySet
from router.policy.folder import read_folder, read_whole_folder
from router.policy.history import Entry, How, PolicyHistory

CompileFolder = Callable[[Mapping[str, bytes]], PolicySet]

_POLL_S = 1.0
_SETTLE_S = 0.06  # a folder must be unchanged for so long before it is compiled
_MOST_TRIES = 50
_DEBOUNCE_MS = 50
_STEP_MS = 20


class PolicyStore:
    """Keeps the newest valid policy set of a folder.

    `load()` must have succeeded before `current` is read; it raises PolicyError with every diagnostic, which stops a
    start. After that nothing raises: `run()` follows the folder until `stop` is set, `reload()` looks at once, and what
    is refused is in `status()`. `now` gives Unix time in seconds, `observe` is told of each reload (whether it took,
    and the revision or the diagnostics).

    With a `history`, each set that is taken is kept there, and a start whose folder is broken serves the newest set of
    it that still compiles: then `observe` hears of the diagnostics and of the revision used in their place.

    `take_pushed` puts another set in force than the folder's, `drop_pushed` ends that, and so does any change of the
    folder, which is newer truth. `pushed` is the number of the version in force, 0 where the folder serves.
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
        history: PolicyHistory | None = None,
    ) -> None:
        self._folder = folder
        self._compile = compile_folder
        self._poll_s = poll_s
        self._settle_s = settle_s
        self._now = now
        self._sleep = sleep
        self._observe = observe
        self._history = history
        self._kept: list[Entry] = []  # the history as this process last saw it: `status` reads no files
        self._is_from_history = False
        self._turn = asyncio.Lock()
        self._current: PolicySet | None = None
        self._of_folder: PolicySet | None = None  # what serves when nothing is pushed
        self.pushed = 0
        self._pushed_over: frozenset[str] = frozenset()  # revisions of folders that are older than that
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

    @property
    def folder_revision(self) -> str:
        """The revision of the folder as it was last read, good or bad; where that failed, of its last good set."""
        return self._seen or (self._of_folder.revision if self._of_folder is not None else "")

    @property
    def loaded_at(self) -> float:
        """Unix seconds since when the set in force is in force."""
        return self._loaded_at

    @property
    def source(self) -> str:
        """Where the set in force is from: `folder`, `history`, or `pushed #3`."""
        return f"pushed #{self.pushed}" if self.pushed else "history" if self._is_from_history else "folder"

    def load(self) -> PolicySet:
        """Read and compile the folder, at the start of the program. Raises PolicyError.

        Where the folder is broken, the newest set of the history that still compiles is taken.
        """
        try:
            files = read_whole_folder(self._folder)
            self._seen = revision_of(files)
            policies = self._compile(files)
        except PolicyError as error:
            if not self._load_from_history(error.message):
                raise
            return self.current
        self._take(policies)
        self._record(policies, files, "start")
        return self.current

    async def reload(self) -> bool:
        """Look at the folder now and compile it even if nothing changed (SIGHUP). True when the set was taken."""
        return await self._look(is_forced=True)

    async def poll(self) -> bool:
        """Look at the folder and compile it if it changed. True when a new set was taken."""
        return await self._look(is_forced=False)

    async def take_pushed(
        self,
        files: Mapping[str, bytes],
        number: int,
        compile_pushed: CompileFolder,
        over: frozenset[str] = frozenset(),
    ) -> None:
        """Put the files of a version in force before those of the folder. Raises PolicyError: then nothing changes.

        A folder that changes to one of the revisions `over` is older than the version.
        """
        async with self._turn:
            policies = self.current
            if revision_of(files) != policies.revision:
                try:
                    policies = await asyncio.to_thread(self._compiled, files, compile_pushed)
                except PolicyError as error:
                    self._tell(False, error.message)
                    raise
                except Exception as error:  # as below
                    problem = f"{type(error).__name__} while compiling: this is a bug of the router"
                    self._tell(False, problem)
                    raise PolicyError(problem) from error
            self._current, self._loaded_at = policies, self._now()
            self.pushed, self._pushed_over = number, over | {self.folder_revision}
            self._tell(True, policies.revision)

    async def drop_pushed(self) -> None:
        """Back to the last good set of the folder."""
        async with self._turn:
            if self.pushed and self._of_folder is not None:
                self._current, self._loaded_at, self.pushed = self._of_folder, self._now(), 0
                self._tell(True, self._of_folder.revision)

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
            except Exception as error:  # no folder, no watches left, or a bug: the poll alone must do
                if not isinstance(error, (OSError, RuntimeError)):
                    self._stumble(error, "watching the folder")
                await self.poll()
                try:
                    await asyncio.wait_for(stop.wait(), self._poll_s)
                except TimeoutError:
                    pass

    def status(self) -> dict[str, Any]:
        """What the admin listener shows: revision in force, when it was loaded, the last refusal, counts.

        Times are Unix seconds. `last_error` is empty when the folder on disk was taken when it was last read; `source`
        says whether it serves. `from_history` is true when the folder was broken at the start and a kept revision
        serves. `history` lists the revisions kept.
        """
        current = self._current
        return {
            "folder": str(self._folder),
            "revision": current.revision if current is not None else None,
            "source": self.source,
            "folder_revision": self.folder_revision or None,
            "policies": sorted(current.policies) if current is not None else [],
            "loaded_at": self._loaded_at or None,
            "last_error": self._error,
            "last_error_at": self._error_at,
            "is_current": current is not None and not self._error,
            "from_history": self._is_from_history and not self.pushed,
            "warnings": [warning.render() for warning in current.warnings] if current is not None else [],
            "reloads": self._reloads,
            "failures": self._failures,
            "history": [
                {"revision": entry.revision, "taken_at": entry.taken_at, "how": entry.how} for entry in self._kept
            ],
            "history_store": self._history.status() if self._history is not None else None,
        }

    def _load_from_history(self, problem: str) -> bool:
        """Take the newest set of the history that still compiles; what a rollback replaced comes last."""
        if self._history is None:
            return False
        self._kept = self._history.entries()
        for entry in sorted(self._kept, key=lambda entry: entry.how == "replaced"):
            try:
                policies = self._compile(self._history.files(entry.revision))
            except PolicyError:  # damaged, or of a language or catalogue that this version does not have
                continue
            self._current = self._of_folder = policies
            self._loaded_at, self._is_from_history = self._now(), True
            when = datetime.fromtimestamp(entry.taken_at, UTC).isoformat(timespec="seconds")
            self._refuse(f"{problem}\nrevision {entry.revision} of {when} serves in its place, from the history")
            return True
        return False

    def _record(self, policies: PolicySet, files: Mapping[str, bytes], how: How) -> None:
        """Keep a set of the folder that compiles; it runs in a thread where there is an event loop."""
        if self._history is not None:
            self._history.record(policies.revision, files, how)
            self._kept = self._history.entries()

    async def _look(self, *, is_forced: bool) -> bool:
        """One look, which never raises: whatever it meets is a failure in the status, and the next look comes."""
        async with self._turn:
            try:
                return await self._look_once(is_forced)
            except Exception as error:
                self._seen = ""
                self._stumble(error, "looking at the folder")
                return False

    async def _look_once(self, is_forced: bool) -> bool:
        try:
            files = await asyncio.to_thread(read_folder, self._folder)
            if revision_of(files) == self._seen and (self.pushed or not is_forced):
                return False
            files = await self._settled(files)
        except PolicyError as error:
            self._seen = ""  # when it can be read again it is news, even if nothing changed
            if error.message != self._error:  # a folder that stays away is one failure, not one a second
                self._refuse(error.message)
            return False
        self._seen = revision_of(files)
        is_older = bool(self.pushed) and self._seen in self._pushed_over  # than what was pushed: it waits behind it
        if is_older and self._of_folder is not None and self._seen == self._of_folder.revision:
            self._error, self._error_at = "", None
            return False
        if self._current is not None and self._seen == self._current.revision and not is_older:
            self._take(self._current)  # back to what is in force: nothing to compile, no error any more
            await asyncio.to_thread(self._record, self._current, files, "reload")
            return is_forced
        try:
            policies = await asyncio.to_thread(self._compiled, files, self._compile)
        except PolicyError as error:
            self._refuse(error.message)
            return False
        except Exception as error:  # a bug in compiling must not end the watch: counted, shown, the old set serves
            self._refuse(f"{type(error).__name__} while compiling: this is a bug of the router")
            return False
        if is_older:
            self._of_folder, self._error, self._error_at = policies, "", None
            self._is_from_history = False
            await asyncio.to_thread(self._record, policies, files, "reload")
            return False
        self._take(policies)
        self._reloads += 1
        await asyncio.to_thread(self._record, policies, files, "reload")
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

    def _compiled(self, files: Mapping[str, bytes], compile_files: CompileFolder) -> PolicySet:
        """Compile, in a thread, without a full garbage collection: over a large policy it stops all threads too long.

        What is new is set aside from later collections; young garbage is collected first, so that none is set aside
        with it. A policy set holds no cycles: it goes when nobody refers to it any more.
        """
        was_on = gc.isenabled()
        gc.collect(0)
        gc.disable()
        try:
            return compile_files(files)
        finally:
            gc.freeze()
            if was_on:
                gc.enable()

    def _take(self, policies: PolicySet) -> None:
        self._current = self._of_folder = policies
        self._loaded_at, self.pushed = self._now(), 0
        self._error, self._error_at = "", None
        self._is_from_history = False
        self._tell(True, policies.revision)

    def _stumble(self, error: Exception, doing: str) -> None:
        """A failure that nothing here foresees; one that lasts is counted once."""
        problem = f"{type(error).__name__} while {doing}: this is a bug of the router"
        if problem != self._error:
            self._refuse(problem)

    def _refuse(self, problem: str) -> None:
        self._error, self._error_at = problem, self._now()
        self._failures += 1
        self._tell(False, problem)

    def _tell(self, is_taken: bool, what: str) -> None:
        if self._observe is not None:
            with suppress(Exception):  # who listens must not decide about policies; the status says the same
                self._observe(is_taken, what)

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._folder)
        except OSError:
            return None
        return found.st_dev, found.st_ino
