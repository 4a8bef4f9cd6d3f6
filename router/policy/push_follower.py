"""This process among those that take pushed policies: it follows the number in force, and says how it stands.

Theory of operation. Every `POLL_S` one small read tells which version is in force. A new one is fetched, compiled with
this process's own catalogue and classifier, and put in force by the same assignment as an edit of the folder; what does
not compile is refused, said and counted, and what served goes on. Beside that a word of this process is written each
second, and at once when something has changed: whoever pushes waits for it, and all count by it who serves something
else.

The folder is the truth. What was pushed before a process began is not taken, whenever it is met, unless it is sticky
and was pushed over this very folder (`Version.stands_over`), and no process has met a newer folder since; nor is what
was pushed before the folder changed. What was pushed after that is taken, until the folder changes. Redis is never
waited for: while it does not answer, what is in force stays, and a start goes on with the folder. Numbers only grow: a
smaller one is of a Redis that has lost something, and is not followed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from router.errors import PolicyError
from router.policy.push_store import LEASE_MS, ROLL_S, Found, PushStore
from router.policy.pushed import MOST_CHARS, Standing, State, Version
from router.policy.store import CompileFolder, PolicyStore
from router.redis_link import RedisUnavailable

POLL_S = 0.2
_START_S = 0.25  # for each thing that is asked before this process serves
_LEAVE_S = 0.5
_AHEAD_MS = 5_000  # what was pushed later than now is of a clock of Redis that was set back
_MOST_LOOKS = 10  # at a version of which nothing is there, until it is refused


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
        self._looks = 0  # at a version of which nothing is there
        self._is_away = False  # Redis did not answer: it may be another one now
        self._is_behind = False  # Redis has lost a version that this process has followed
        self._in_force: Version | None = None  # what this process put in force, until it sees that it is no more
        self._said_left = 0  # the last sticky version of which Redis was told that a folder is newer
        self._held = 0  # the last version whose files this process served out of its folder
        self._own = policies.current.revision if policies.source == "folder" else ""  # of the folder, that served last
        self._changed_s = self._began_s  # since when
        self._answered = self._answered_ms = 0  # number and time of the version that `_state` is about
        self._state: State = "none"
        self._refusal: dict[str, Any] | None = None
        self._announced = ""  # the revision
        self._news = asyncio.Event()
        self._heard_s = float("-inf")
        self._alive = self._others = 0
        self._taken = self._refused = self._failures = 0
        self._trouble: dict[str, str] = {}  # what Redis answered in place of doing as we ask, by what was asked

    async def start(self) -> None:
        """The first look, before this process serves: a sticky version may be in force. Raises nothing."""
        await self._tried("read", self._look(_START_S))

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until `stop` is set."""
        saying = asyncio.create_task(self._keep_saying(stop))
        try:
            while not stop.is_set():
                await self._tried("read", self._look())
                await self._tried("ended", self._end_sticky())
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
        `is_behind`: Redis has lost what serves. `trouble` is what Redis answers in place of doing as we ask, or empty.
        """
        return {
            "process": self._process,
            "is_heard": self._is_heard(),
            "processes": self._alive,
            "other_revision": self._others,
            "version": None if self._last is None else self._last.shown(),
            "state": self._state,
            "refused": self._refusal,
            "is_behind": self._is_behind and self._policies.pushed > 0,
            "trouble": ", ".join(dict.fromkeys(self._trouble.values())),
        }

    def _is_heard(self) -> bool:
        return self._clock() - self._heard_s < LEASE_MS / 1000

    async def _keep_saying(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._news.clear()
            await self._tried("written", self._announce())
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
            self._last.number if self._last is not None else 0,
            state,
            self._reason() if state == "refused" else "",
            int(policies.loaded_at * 1000),
        )
        self._alive, self._others = await self._store.announce(standing)
        self._heard_s, self._announced = self._clock(), standing.revision

    def _reason(self) -> str:
        problem = str(self._refusal["problem"]) if self._refusal is not None else ""
        return problem.partition("\n")[0][:MOST_CHARS]

    async def _tried(self, what: str, step: Coroutine[Any, Any, None]) -> None:
        try:
            await step
            if self._trouble.pop(what, None) is not None:
                self._say(True, f"pushed policies can be {what} again")
        except RedisUnavailable as error:
            self._failures += 1
            self._is_away = self._is_away or not error.is_reply
            # It is up, and does not do as we ask; what is away the link says.
            if error.is_reply and self._trouble.get(what) != error.reason:
                self._trouble[what] = error.reason
                hint = "its user may lack a right, see the list in docs/operations.md"  # an older Redis names no reason
                self._say(False, f"pushed policies cannot be {what}, Redis answers: {error.reason}; {hint}")
        except Exception as error:  # whatever the store holds, the next look may go well, and what serves goes on
            self._failures += 1
            self._say(False, f"{type(error).__name__} while following pushed policies: this is a bug of the router")

    async def _look(self, within_s: float | None = None) -> None:
        self._note_folder()
        if self._in_force is not None and not self._policies.pushed:
            self._give_way(self._in_force)
        number = await self._store.number(within_s)
        if number != self._looked or self._is_away or not self._is_met:
            await self._follow(number, within_s)

    def _note_folder(self) -> None:
        """Keep since when the folder's set that serves, or served last, is there."""
        policies, last = self._policies, self._last
        if policies.source != "folder":
            return
        own = policies.current.revision
        if own != self._own:
            self._own, self._changed_s = own, self._clock()
        if last is not None and own == last.revision:
            self._held = last.number

    async def _end_sticky(self) -> None:
        """Say it to those that start when a sticky version is over: a folder serves that is newer."""
        last = self._last
        if last is not None and last.number != self._said_left and self._is_over(last):
            await self._store.give_way(last.number)
            self._said_left = last.number

    async def _follow(self, number: int, within_s: float | None) -> None:
        """Do what a number says that was not seen before. It counts as seen only when all of it could be read."""
        if self._last is not None and number < self._last.number:
            self._seen(number)
            return
        found = await self._store.version(number, within_s) if number else Found(0, None)
        if found is None:
            if self._is_patient():
                return
            found = Found(number, None, f"version #{number}: the store holds nothing of it")
        version, problem = found.version, found.problem
        is_known = version is not None and self._last is not None and version.moment <= self._last.moment
        if version is None or problem or is_known:
            is_said = self._is_met and self._looked == number
            self._seen(number)
            if problem and not is_said:
                self._refuse(number, version.at_ms if version is not None else 0, problem)
            return
        passed_over = await self._passed_over(version, within_s)
        files: dict[str, bytes] | None = None
        if passed_over is None and not version.is_folder:
            try:
                files = await self._store.files(version, within_s)
            except PolicyError as error:
                problem = error.message
            if files is None and not problem:
                if self._is_patient():
                    return
                problem = f"version #{number}: the store holds no files of it"
        self._last = version
        self._seen(number)
        if problem:
            self._refuse(number, version.at_ms, problem)
        elif files is not None:
            await self._take(version, files)
        else:
            await self._serve_the_folder(version, passed_over)
        self._news.set()

    async def _passed_over(self, version: Version, within_s: float | None) -> State | None:
        """Why the folder serves in place of a version that has come up: it is newer. None: it is not."""
        policies = self._policies
        now_ms = await self._store.now_ms(within_s)  # all by the clock of Redis
        began_ms = now_ms - int((self._clock() - self._began_s) * 1000)
        if not began_ms < version.at_ms <= now_ms + _AHEAD_MS:
            if not version.stands_over(policies.folder_revision):
                return "older"
            return "left" if await self._store.left(within_s) == version.number else None
        changed_ms = now_ms - int((self._clock() - self._changed_s) * 1000)
        return "left" if self._is_newer(version) and version.at_ms <= changed_ms else None

    def _is_newer(self, version: Version) -> bool:
        """Whether a folder serves that is none that a version was pushed over, nor of its files."""
        policies = self._policies
        seen = {policies.current.revision, policies.folder_revision}
        return policies.source == "folder" and seen.isdisjoint((*version.over, version.revision))

    def _is_over(self, version: Version) -> bool:
        """Whether a sticky version is over: a newer folder serves, or any other than the one that held its files."""
        policies = self._policies
        has_gone_on = (
            self._held == version.number
            and policies.source == "folder"
            and policies.current.revision != version.revision
        )
        return version.is_sticky and not version.is_folder and (has_gone_on or self._is_newer(version))

    def _is_patient(self) -> bool:
        """Whether to look again for what is not there: after a failover it may be there in a moment."""
        self._looks += 1
        return self._looks <= _MOST_LOOKS

    def _seen(self, number: int) -> None:
        """This number needs no second look. Says once when Redis has lost what this process follows."""
        if self._is_away:
            self._said_left = 0  # a Redis that comes back may not know it any more
        self._is_met, self._looked, self._looks, self._is_away = True, number, 0, False
        last, was_behind = self._last, self._is_behind
        self._is_behind = last is not None and number < last.number and self._policies.pushed > 0
        if self._is_behind and not was_behind and last is not None:
            there = f"has version #{number} in force" if number else "knows of no version"
            self._say(
                False,
                f"Redis {there}, and this process follows #{last.number}: Redis has lost what came after, and processes"
                " that start will not know it; push again",
            )

    async def _take(self, version: Version, files: dict[str, bytes]) -> None:
        self._state, self._answered, self._answered_ms = "checking", version.number, version.at_ms
        self._news.set()
        try:
            compile_pushed = self._compile_pushed(version.number)
            await self._policies.take_pushed(files, version.number, compile_pushed, frozenset(version.over))
        except PolicyError as error:
            self._refuse(version.number, version.at_ms, error.message)
            return
        self._state, self._refusal, self._in_force = "taken", None, version
        self._taken += 1
        who = f" by {version.who}" if version.who else ""
        said = f": {version.message}" if version.message else ""
        self._say(True, f"version #{version.number}, revision {version.revision}, pushed{who}{said}")

    async def _serve_the_folder(self, version: Version, passed_over: State | None) -> None:
        """The version says so, or the folder is newer."""
        self._answered, self._answered_ms = version.number, version.at_ms
        if passed_over is not None and not version.is_folder:
            self._state = passed_over
            before = "this process began" if passed_over == "older" else "a folder changed"
            self._say(True, f"version #{version.number} was pushed before {before}: the folder serves")
            return
        self._in_force = None
        await self._policies.drop_pushed()
        self._state, self._refusal = "taken", None
        if passed_over is None:
            self._taken += 1
            self._say(True, f"version #{version.number}: the folder serves again")

    def _give_way(self, version: Version) -> None:
        self._in_force = None
        if self._answered == version.number:  # else it has refused a later one, which it still has to say
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
