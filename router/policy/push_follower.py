"""This process among those that take pushed policies: it follows the number in force, and says how it stands.

Theory of operation. Every `POLL_S` one small read tells which version is in force. A new one is fetched, compiled with
this process's own catalogue and classifier, and put in force by the same assignment as an edit of the folder; what does
not compile is refused, said and counted, and what served goes on. Beside that a word of this process is written each
second, and at once when something has changed: whoever pushes waits for it, and all count by it who serves something
else.

The folder is the truth. At its start a process serves its folder, unless the version in force is sticky and was pushed
over this very folder (`Version.stands_over`). What was pushed after that is taken, until the folder changes. Redis is
never waited for: while it does not answer, what is in force stays, and a start goes on with the folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from router.errors import PolicyError
from router.policy.push_store import LEASE_MS, ROLL_S, PushStore
from router.policy.pushed import MOST_CHARS, Standing, State, Version
from router.policy.store import CompileFolder, PolicyStore
from router.redis_link import RedisUnavailable

POLL_S = 0.2
_START_S = 0.25  # for each thing that is asked before this process serves
_LEAVE_S = 0.5
_AHEAD_MS = 86_400_000  # a clock of Redis that was set back


class PushFollower:
    """Keeps a `PolicyStore` at the version in force.

    `compile_pushed` gives what compiles the files of a version (its number names it in diagnostics). `process` is a
    name that no other has. `clock` gives seconds that never go back, `wall_clock` Unix seconds. `say` is told, for
    people, of what was taken (True) and refused (False).
    """

    def __init__(
        self,
        store: PushStore,
        policies: PolicyStore,
        compile_pushed: Callable[[int], CompileFolder],
        *,
        process: str,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        say: Callable[[bool, str], None],
    ) -> None:
        self._store = store
        self._policies = policies
        self._compile_pushed = compile_pushed
        self._process = process
        self._clock = clock
        self._wall_clock = wall_clock
        self._say = say
        self._began_s = clock()
        self._is_met = False  # whether Redis has answered yet
        self._looked = 0  # the number that was last seen in force
        self._last: Version | None = None  # the newest version that was looked at
        self._answered = self._answered_ms = 0  # number and time of the version that `_state` is about
        self._state: State = "none"
        self._refusal: dict[str, Any] | None = None
        self._announced = ""  # the revision
        self._news = asyncio.Event()
        self._heard_s = float("-inf")
        self._alive = self._others = 0
        self._taken = self._refused = self._failures = 0
        self._is_refused = False  # Redis answered that it does not do as we ask; said once

    async def start(self) -> None:
        """The first look, before this process serves: a sticky version may be in force. Raises nothing."""
        await self._tried(self._look(_START_S))

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until `stop` is set."""
        saying = asyncio.create_task(self._keep_saying(stop))
        try:
            while not stop.is_set():
                await self._tried(self._look())
                if self._policies.current.revision != self._announced:
                    self._news.set()
                await _within(stop, POLL_S)
        finally:
            self._news.set()
            await saying

    def stats(self) -> dict[str, int]:
        """Processes alive, those with another revision, what was taken and refused, and the version in force.

        `processes` and `other_revision` are 0 while Redis does not answer.
        """
        is_heard = self._is_heard()
        return {
            "processes": self._alive if is_heard else 0,
            "other_revision": self._others if is_heard else 0,
            "is_pushed": int(self._policies.pushed > 0),
            "version": self._last.number if self._last is not None else 0,
            "taken": self._taken,
            "refused": self._refused,
            "failures": self._failures,
        }

    def status(self) -> dict[str, Any]:
        """For the admin listener: the name of this process, the version looked at last, and what became of it.

        `refused` is the last version that was refused, with all diagnostics; None where a later one was taken.
        """
        return {
            "process": self._process,
            "is_heard": self._is_heard(),
            "processes": self._alive,
            "other_revision": self._others,
            "version": None if self._last is None else self._last.shown(),
            "state": self._state,
            "refused": self._refusal,
        }

    def _is_heard(self) -> bool:
        return self._clock() - self._heard_s < LEASE_MS / 1000

    async def _keep_saying(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._news.clear()
            await self._tried(self._announce())
            await _within(self._news, ROLL_S)
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._store.leave(self._process)
        except (RedisUnavailable, TimeoutError):
            pass  # the others see that it was not heard of

    async def _announce(self) -> None:
        policies, state = self._policies, self._state
        standing = Standing(
            self._process,
            policies.current.revision,
            policies.source,
            policies.folder_revision,
            self._answered,
            self._answered_ms,
            state,
            self._reason() if state == "refused" else "",
            int(policies.loaded_at * 1000),
        )
        self._alive, self._others = await self._store.announce(standing)
        self._heard_s, self._announced = self._clock(), standing.revision

    def _reason(self) -> str:
        problem = str(self._refusal["problem"]) if self._refusal is not None else ""
        return problem.partition("\n")[0][:MOST_CHARS]

    async def _tried(self, step: Any) -> None:
        try:
            await step
            self._is_refused = False
        except RedisUnavailable as error:
            self._failures += 1
            if error.is_reply and not self._is_refused:  # it is up, and does not let us: a user without a command
                self._is_refused = True
                self._say(
                    False, f"Redis refuses what pushed policies need: {error.reason}; docs/operations.md has the ACL"
                )
        except Exception as error:  # whatever the store holds, the next look may go well, and what serves goes on
            self._failures += 1
            self._say(False, f"{type(error).__name__} while following pushed policies: this is a bug of the router")

    async def _look(self, within_s: float | None = None) -> None:
        number = await self._store.number(within_s)
        if number != self._looked or not self._is_met:
            await self._follow(number, within_s)
        elif (
            self._state == "taken" and self._last is not None and not self._last.is_folder and not self._policies.pushed
        ):
            self._give_way(self._last)

    async def _follow(self, number: int, within_s: float | None) -> None:
        """Do what a number says that was not seen before. It counts as seen only when all of it could be read."""
        version = await self._store.version(number, within_s) if number else None
        now_ms = await self._store.now_ms(within_s)
        if version is not None and version.at_ms > now_ms + _AHEAD_MS:
            version = None  # nothing that we wrote: no later version would ever seem newer
        age_ms = int((self._clock() - self._began_s) * 1000)
        is_older = version is not None and not self._is_met and version.at_ms <= now_ms - age_ms
        files: dict[str, bytes] | None = None
        problem = f"version #{number}: what the store holds of it is damaged" if number and version is None else ""
        is_folder_kept = is_older and version is not None and not version.stands_over(self._policies.folder_revision)
        is_news = version is not None and self._is_newer(version)
        if is_news and version is not None and not version.is_folder and not is_folder_kept:
            try:
                files = await self._store.files(version, within_s)
            except PolicyError as error:
                problem = error.message
        self._is_met, self._looked = True, number
        if is_news:
            self._last = version
        if problem:
            self._refuse(number, version.at_ms if version is not None else 0, problem)
        elif files is not None and version is not None:
            await self._take(version, files)
        elif is_news and version is not None:
            await self._serve_the_folder(version, is_older)
        self._news.set()

    def _is_newer(self, version: Version) -> bool:
        """Not what a replica that lags behind, and has become the master, still knows."""
        last = self._last
        return last is None or version.number > last.number or version.at_ms > last.at_ms

    async def _take(self, version: Version, files: dict[str, bytes]) -> None:
        self._state, self._answered, self._answered_ms = "checking", version.number, version.at_ms
        self._news.set()
        try:
            compile_pushed = self._compile_pushed(version.number)
            await self._policies.take_pushed(files, version.number, compile_pushed, frozenset(version.over))
        except PolicyError as error:
            self._refuse(version.number, version.at_ms, error.message)
            return
        self._state, self._refusal = "taken", None
        self._taken += 1
        who = f" by {version.who}" if version.who else ""
        said = f": {version.message}" if version.message else ""
        self._say(True, f"version #{version.number}, revision {version.revision}, pushed{who}{said}")

    async def _serve_the_folder(self, version: Version, is_older: bool) -> None:
        """The version says so, or it was there before this process and is not sticky."""
        self._answered, self._answered_ms = version.number, version.at_ms
        if not version.is_folder:
            self._state = "older"
            self._say(True, f"version #{version.number} was pushed before this process began: the folder serves")
            return
        await self._policies.drop_pushed()
        self._state, self._refusal = "taken", None
        if not is_older:
            self._taken += 1
            self._say(True, f"version #{version.number}: the folder serves again")

    def _give_way(self, version: Version) -> None:
        self._state = "left"
        self._news.set()
        revision = self._policies.current.revision
        self._say(
            True, f"the folder has changed since version #{version.number} was pushed: its revision {revision} serves"
        )

    def _refuse(self, number: int, at_ms: int, problem: str) -> None:
        self._state, self._answered, self._answered_ms = "refused", number, at_ms
        self._refusal = {"number": number, "problem": problem, "at": self._wall_clock()}
        self._refused += 1
        self._say(False, f"version #{number} is refused, what serves goes on: {problem.partition(chr(10))[0]}")


async def _within(event: asyncio.Event, span_s: float) -> None:
    try:
        async with asyncio.timeout(span_s):
            await event.wait()
    except TimeoutError:
        pass
