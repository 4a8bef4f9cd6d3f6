"""The router's side of the reading process: one child of low priority, started when somebody looks at traces.

A page that reads a large store takes seconds of CPU, and a thread that takes them stands in the way of every request:
one interpreter, often one core. So the store is read, and the answer encoded, in a process that gets what the requests
leave over; here its bytes are only passed on, by the event loop, with no thread waiting.

The child ends after a minute in which nobody asks, and with the router. One that dies is replaced by the next
question. One that does not answer in the question's time is killed. Where none can be started, questions are answered
in threads of this process as before, which is said and counted; a minute later it is tried again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from router.errors import BadFilter, TraceStoreError
from router.trace.asking import Answer, AnswerDesk, Question
from router.trace.frames import BrokenFrame, Frames, frame
from router.trace.question import crowded_out, stopping
from router.trace.reader_desk import ThreadDesk

IDLE_S = 60.0
START_S = 15.0  # it takes a tenth of a second of CPU
GRACE_S = 5.0  # over a question's own `wall_s`, which the child keeps itself
RETRY_S = 60.0
END_S = 1.0  # for a child to end by itself
_KILLED_S = 5.0  # for one that was killed
_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ", "TMPDIR", "SQLITE_TMPDIR", "PYTHONHOME")

_log = logging.getLogger(__name__)


class ProcessDesk:
    """An `asking.AnswerDesk` over a process of its own. It belongs to the event loop that first asks.

    In seconds: `idle_s` without a question until the child is ended, `start_s` for it to be ready, `grace_s` over a
    question's limit, `retry_s` after a failed start, `end_s` to end by itself. For tests: `command` starts it, and one
    that does not step back has the priority of the router.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        idle_s: float = IDLE_S,
        start_s: float = START_S,
        grace_s: float = GRACE_S,
        retry_s: float = RETRY_S,
        end_s: float = END_S,
        steps_back: bool = True,
        command: Sequence[str] | None = None,
    ) -> None:
        self._command = tuple(command or (sys.executable, "-P", "-m", "router.trace.reader_process", str(path)))
        self._idle_s, self._start_s, self._grace_s = idle_s, start_s, grace_s
        self._retry_s, self._end_s = retry_s, end_s
        self._steps_back = steps_back
        self._in_threads: AnswerDesk = ThreadDesk(path)
        self._child: _Child | None = None  # the one that answers
        self._newborn: _Child | None = None  # one that does not answer yet
        self._starting: asyncio.Task[_Child | None] | None = None
        self._retry_at = 0.0  # in the loop's time
        self._under_way = 0
        self._idle: asyncio.TimerHandle | None = None
        self._alive: set[_Child] = set()  # not buried yet
        self._burials: set[asyncio.Task[None]] = set()
        self._is_refused = False  # the last try to start one
        self._is_closed = False
        self._counts = dict.fromkeys(("questions", "started", "died", "killed", "start_failures", "in_threads"), 0)

    def stats(self) -> Mapping[str, int]:
        """Now: questions `under_way`, `is_up`, `is_refused` (the last start failed). Since the start: `questions`,
        `started` children, those that `died` by themselves or were `killed` because they did not answer,
        `start_failures`, and questions answered `in_threads` of the router."""
        is_up, is_refused = self._child is not None, self._is_refused
        return {"under_way": self._under_way, "is_up": int(is_up), "is_refused": int(is_refused), **self._counts}

    @property
    def pid(self) -> int | None:
        """The process that answers now."""
        return None if self._child is None else self._child.process.pid

    async def ask(self, question: Question) -> Answer:
        """See `asking.AnswerDesk`."""
        self._counts["questions"] += 1
        self._under_way += 1
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        try:
            child = await self._up()
            if child is not None:
                return await child.ask(question, self._grace_s)
            self._counts["in_threads"] += 1
            return await self._in_threads.ask(question)
        finally:
            self._under_way -= 1
            if not self._under_way and not self._is_closed:
                self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._let_go)

    async def close(self) -> None:
        """See `asking.AnswerDesk`. Returns when the child has ended."""
        self._is_closed = True
        if self._idle is not None:
            self._idle.cancel()
        if self._newborn is not None:
            self._newborn.kill("the router is stopping")
        if self._starting is not None:  # which looks for itself whether it is still wanted
            await asyncio.wait([self._starting])
        self._let_go()
        await self._in_threads.close()
        if self._alive:
            await asyncio.wait([child.is_buried for child in self._alive])

    async def _up(self) -> _Child | None:
        """A child that answers; None where none can be had for now."""
        if self._is_closed:
            raise stopping()
        if self._child is not None:
            return self._child
        loop = asyncio.get_running_loop()
        if self._starting is None:
            if loop.time() < self._retry_at:
                return None
            self._starting = loop.create_task(self._start())
        # shielded: who began it may leave while others wait for it
        child = await asyncio.shield(self._starting)
        if self._is_closed:
            raise stopping()
        return child

    async def _start(self) -> _Child | None:
        try:
            if self._is_closed:
                return None
            self._newborn = child = await _spawned(self._command, self._ended)
            self._alive.add(child)
            if self._is_closed:  # meanwhile, when there was nobody to kill yet
                child.kill("the router is stopping")
            async with asyncio.timeout(self._start_s):
                await child.is_ready
        except (OSError, TraceStoreError) as error:  # a TimeoutError is an OSError
            if self._newborn is not None:
                self._newborn.kill("it did not start")
            if self._is_closed:
                return None
            self._counts["start_failures"] += 1
            self._is_refused = True
            self._retry_at = asyncio.get_running_loop().time() + self._retry_s
            why = str(error) or f"it was not ready within {self._start_s:g} s"
            _log.error(
                "trace reader: no process of its own can be started (%s); the page reads in the router's, which slows"
                " requests while it does; it is tried again every %g s",
                why,
                self._retry_s,
            )
            return None
        else:
            if self._steps_back:  # not before: on a core that is fully taken it would take many seconds to start
                _step_back(child.process.pid)
            self._counts["started"] += 1
            self._is_refused = False
            self._child = child
            return child
        finally:
            self._newborn = self._starting = None

    def _let_go(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _ended(self, child: _Child) -> None:
        """A child's socket is closed: bury it, and say so unless it was asked to end."""
        was_up = self._child is child
        if was_up:
            self._child = None
        task = asyncio.get_running_loop().create_task(self._bury(child, was_up=was_up))
        self._burials.add(task)
        task.add_done_callback(self._burials.discard)

    async def _bury(self, child: _Child, *, was_up: bool) -> None:
        status = await _status(child.process, self._end_s)
        self._alive.discard(child)
        child.is_buried.set_result(None)
        if was_up:
            self._counts["killed" if child.killed_because else "died"] += 1
            how = f"was killed: {child.killed_because}" if child.killed_because else f"ended ({status})"
            _log.warning("trace reader: process %d %s; the next question starts another", child.process.pid, how)


class _Child(asyncio.Protocol):
    """One child and the questions it has not answered yet."""

    def __init__(self, process: subprocess.Popen[bytes], ended: Callable[[_Child], None]) -> None:
        loop = asyncio.get_running_loop()
        self.process = process
        self.is_ready: asyncio.Future[None] = loop.create_future()
        self.is_buried: asyncio.Future[None] = loop.create_future()
        self.killed_because = ""
        self._loop = loop
        self._ended = ended
        self._frames = Frames()
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._transport: asyncio.Transport | None = None

    async def ask(self, question: Question, grace_s: float) -> Answer:
        """The answer of this child. Raises TraceStoreError or BadFilter."""
        transport = self._transport
        if transport is None:
            raise _gone()
        self._number += 1
        number = self._number
        answer: asyncio.Future[Answer] = self._loop.create_future()
        head = {"n": number, "ask": question.name, "args": question.args, "lane": question.lane}
        try:
            asked = frame({**head, "limit_s": question.time_limit_s, "wall_s": question.wall_s})
        except BrokenFrame as error:
            raise BadFilter(f"the question is too long: {error}") from error
        transport.write(asked)
        self._waiting[number] = answer
        timer = self._loop.call_later(question.wall_s + grace_s, self._is_hung, number, question.wall_s)
        try:
            return await answer
        finally:
            timer.cancel()
            if self._waiting.pop(number, None) is not None and self._transport is not None:  # the asker has left
                self._transport.write(frame({"cancel": number}))

    def close(self) -> None:
        """Have it end: a closed socket is its word for that."""
        if self._transport is not None:
            self._transport.abort()

    def kill(self, because: str) -> None:
        """End it whatever it does; also one that is stopped."""
        self.killed_because = because
        self.process.kill()
        self.close()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for head, body in self._frames.feed(data):
                self._take(head, body)
        except (BrokenFrame, KeyError) as error:
            self.kill(f"it said what makes no sense ({error})")

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(_gone())
        if not self.is_ready.done():
            self.is_ready.set_exception(_gone())
        self._ended(self)

    def _take(self, head: Mapping[str, Any], body: bytes) -> None:
        if "ready" in head:
            if not self.is_ready.done():
                self.is_ready.set_result(None)
            return
        answer = self._waiting.pop(head["n"], None)
        if answer is None or answer.done():  # of somebody who has left
            return
        if "head" in head:
            answer.set_result(Answer(head["head"], body))
        elif "error" in head:
            answer.set_exception(_error(head["error"]))
        else:
            _log.error("trace reader: unforeseen %s", head["bug"])
            answer.set_exception(TraceStoreError("the question could not be answered", hint="the log says where"))

    def _is_hung(self, number: int, wall_s: float) -> None:
        answer = self._waiting.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_exception(crowded_out(wall_s))
            self.kill("it did not answer in time")


async def _spawned(command: Sequence[str], ended: Callable[[_Child], None]) -> _Child:
    """A child that is starting, with a socket to it. Raises OSError."""
    if os.name != "posix":
        raise OSError("this system has no such processes")
    ours, its = socket.socketpair()
    try:
        with its:
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - a millisecond, and a command of our own
                list(command),
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                env=_environment(),
                # Ctrl-C is for the router, which then ends its child. Not a session of its own: Linux may schedule
                # sessions as groups of equal weight, between which the priority of a process counts for nothing.
                process_group=0,
            )
    except (TypeError, ValueError, subprocess.SubprocessError) as error:
        ours.close()
        raise OSError(f"{type(error).__name__}: {error}") from error
    except BaseException:
        ours.close()
        raise
    child = _Child(process, ended)  # which ends when this socket does, whoever closes it
    ours.setblocking(False)
    await asyncio.get_running_loop().create_unix_connection(lambda: child, sock=ours)
    return child


def _environment() -> dict[str, str]:
    """What the child must know: where the modules are, and none of the router's settings and secrets (S16)."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    places = [part or os.getcwd() for part in sys.path if isinstance(part, str)]  # as the import system does
    # MALLOC_ARENA_MAX: or each of its threads keeps the memory of its largest answer for itself
    return {**kept, "PYTHONPATH": os.pathsep.join(places), "MALLOC_ARENA_MAX": "2"}


def _step_back(pid: int) -> None:
    """Give the process the time that nobody else wants, as far as the system has a way to say so.

    Not `SCHED_IDLE`: of a core that the requests take whole that leaves it next to nothing.
    """
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, pid, 19)
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))
    with suppress(OSError):  # where memory is short, it goes first
        Path(f"/proc/{pid}/oom_score_adj").write_text("500")


async def _status(process: subprocess.Popen[bytes], end_s: float) -> str:
    """How it ended; made to, when it does not by itself. No thread waits for it: there may be none to be had."""
    for wait_s in (end_s, _KILLED_S):
        pause_s = 0.001
        until_s = time.monotonic() + wait_s
        while process.poll() is None and time.monotonic() < until_s:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.05)
        if process.returncode is not None:
            return f"status {process.returncode}"
        process.kill()
    return "it has not ended, the system holds it"


def _gone() -> TraceStoreError:
    return TraceStoreError("the process that reads the trace store has ended", hint="ask again", retryable=True)


def _error(said: Mapping[str, Any]) -> TraceStoreError | BadFilter:
    kind = BadFilter if said["code"] == BadFilter.code else TraceStoreError
    return kind(said["message"], hint=said["hint"], retryable=said["retryable"])
