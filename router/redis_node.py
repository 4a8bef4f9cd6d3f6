"""One server of Redis: its connections, the commands that wait for one, and whether it rests.

Theory of operation.

1. What is asked in one turn of the event loop goes out as one batch over one connection. A worker, which is a task,
   owns the connection: it takes what waits, writes it, reads as many replies, and takes again, until nobody waits.
   While one is about to take, nobody needs another; while all are busy, what is asked waits for the next batch. One
   new connection is made at a time.
2. Whoever asks waits for a future of its own, up to its own limit. One that gives up or is cancelled leaves the
   exchange to end by itself: its reply is read in its turn and thrown away. So no reply can reach another, a storm of
   cancelled callers closes no connection, and a first connection slower than the limit still comes to be. A worker that
   has not all replies after `give_up_s` closes its connection.
3. After three failures in a row the server rests: what is asked fails at once. A task of its own looks each `rest_s`
   seconds whether it serves again, which costs no caller anything.

An error reply about the command itself (a wrong type under the key, a command that the user may not use) fails that
command but shows a server that answers, so it never makes it rest. Neither does a limit that passed because this
process was held up itself.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio.connection import Connection
from redis.exceptions import MasterDownError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from router.redis_dial import Dial, hang_up, pack
from router.redis_failure import FAILURES, LoopLate, RedisUnavailable, is_about_the_command, why

LATENCY_BOUNDS_S = tuple(0.0005 * 2**step for step in range(12))
_FAILURES_TO_REST = 3
_MOST_IN_A_BATCH = 512
_MOST_BATCH_BYTES = 256 * 1024  # the rest goes over another connection, and not behind so much
_GRACE = 6  # turns of the loop, for a reply that came while the loop was held up and has yet to be read
_DEMOTED = (ReadOnlyError, MasterDownError)
_PING, _ROLE, _CLUSTER_INFO = pack(("PING",)), pack(("ROLE",)), pack(("CLUSTER", "INFO"))


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: of one ask, of the exchange behind it, and between two looks at a server that rests."""

    deadline_s: float
    give_up_s: float
    rest_s: float
    most_connections: int  # of one server


@dataclass(slots=True)
class Counts:
    """What happened on a link since its start; `latencies` has a count per bound of LATENCY_BOUNDS_S and one above."""

    asked: int = 0
    failed: int = 0
    error_replies: int = 0
    refused: int = 0  # while resting
    timeouts: int = 0
    loop_late: int = 0  # limits that passed while this process was held up
    batches: int = 0
    batched: int = 0  # commands in them
    last_latency_s: float = 0.0
    latency_sum_s: float = 0.0
    latencies: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))

    def reply_after(self, latency_s: float) -> None:
        """Count one reply."""
        self.last_latency_s = latency_s
        self.latency_sum_s += latency_s
        self.latencies[bisect_left(LATENCY_BOUNDS_S, latency_s)] += 1


class _Asked:
    """A command that waits, and the future of whoever asked."""

    __slots__ = ("packed", "replies", "reply", "timer")

    def __init__(self, packed: bytes, replies: int, reply: asyncio.Future[Any]) -> None:
        self.packed = packed
        self.replies = replies  # the last of them counts: what goes before sets the stage
        self.reply = reply
        self.timer: asyncio.Handle

    def settle(self, outcome: object) -> None:
        """Hand over a reply, or an exception as a value: raised, asyncio would complain when nobody waits any more."""
        if not self.reply.done():
            self.reply.set_result(outcome)


class RedisNode:
    """A server, asked in batches. Making one connects to nothing.

    `is_current` says whether a connection still leads where `dial` would lead: a former master that was frozen may thaw
    and answer. `must_be_master` and `is_of_cluster` say what a server that rests must show beside an answer; `changed`
    is called when a rest begins, goes on or ends. `clock` gives seconds.
    """

    def __init__(
        self,
        dial: Dial,
        is_current: Callable[[Connection], bool],
        limits: Limits,
        counts: Counts,
        *,
        host: str,
        clock: Callable[[], float],
        changed: Callable[[], None],
        must_be_master: bool = False,
        is_of_cluster: bool = False,
    ) -> None:
        self.dial = dial
        self._is_current = is_current
        self.host = host
        self.reason = ""  # why it rests; empty when it does not
        self._limits = limits
        self._counts = counts
        self._clock = clock
        self._changed = changed
        self._must_be_master = must_be_master
        self._is_of_cluster = is_of_cluster
        self._waiting: deque[_Asked] = deque()
        self._free: list[Connection] = []
        self._doomed: list[Connection] = []  # to be closed
        self._workers = 0
        self._is_taking = False  # a worker that was just begun is about to take what waits
        self._is_dialling = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures = 0  # in a row
        self._is_retired = self._is_closed = False

    async def ask(self, packed: bytes, limit_s: float, replies: int = 1) -> Any:
        """The reply, or an error reply about the command as a value. Raises RedisUnavailable where there is neither."""
        outcome = await self.exchange(packed, limit_s, replies)
        if not isinstance(outcome, Exception) or is_about_the_command(outcome):
            self._failures = 0
            return outcome
        if isinstance(outcome, RedisUnavailable):
            raise outcome
        reason = why(outcome, self._limits.deadline_s)
        if isinstance(outcome, LoopLate):
            self._counts.loop_late += 1
        else:
            self._counts.timeouts += isinstance(outcome, TimeoutError | RedisTimeout)
            self._failures += 1
            if self._failures >= _FAILURES_TO_REST and not self.reason and not self._is_retired:
                self._rest(reason, is_demoted=isinstance(outcome, _DEMOTED))
        # redis-py's texts may hold values
        raise RedisUnavailable(reason, is_reply=isinstance(outcome, ResponseError)) from None

    async def exchange(self, packed: bytes, limit_s: float, replies: int = 1) -> Any:
        """The reply, or what went wrong as a value; nothing is counted, and a server that rests is asked too."""
        if self._is_closed:
            return RedisUnavailable("the link is closed")
        loop = asyncio.get_running_loop()
        asked = _Asked(packed, replies, loop.create_future())
        self._waiting.append(asked)
        self._find_a_worker()
        asked.timer = loop.call_later(limit_s, self._expire, asked, self._clock() + limit_s, _GRACE)
        try:
            return await asked.reply
        finally:
            asked.timer.cancel()
            asked.packed = b""  # it may wait for a worker yet, and be large

    async def close(self) -> None:
        """End what is under way and close every connection."""
        self._is_closed = True
        self.retire()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            # Again and again: the library lets a cancellation pass for the end of one of its own short waits.
            await asyncio.wait(tuple(self._tasks), timeout=0.02)
        self._fail_waiting(RedisUnavailable("the link is closed"))
        doomed, self._doomed = self._doomed, []
        await asyncio.gather(*(hang_up(connection, in_good_order=True) for connection in doomed))

    def retire(self) -> None:
        """Look after it no longer: what is under way ends by itself, and then every connection is closed."""
        self._is_retired = True
        self.reason = ""
        self._drop_free()

    def _find_a_worker(self) -> None:
        has_connection = bool(self._free) or not self._is_dialling
        if self._waiting and has_connection and not self._is_taking and self._workers < self._limits.most_connections:
            self._is_taking = True
            self._workers += 1
            self._begin(self._work())

    async def _work(self) -> None:
        """Carry batches over one connection until nobody waits."""
        connection: Connection | None = None
        batch: list[_Asked] = []
        outcome: Exception = RedisUnavailable("the link is closed")  # where the worker is cancelled
        is_clean = is_first = True
        try:
            while is_first or self._waiting:
                async with asyncio.timeout(self._limits.give_up_s):
                    if connection is not None and not self._is_current(connection):
                        await hang_up(connection)
                        connection = None
                    if connection is None:
                        connection = await self._connection()
                    is_clean = is_first = False
                    batch = self._take()
                    if await self._carry(connection, batch):
                        is_clean = True
                        continue
                    self._drop_free()  # they lead to the same server, which is a replica now
                    await hang_up(connection)
                    connection = None
        except FAILURES as exc:
            outcome = exc
            if is_first and self._workers == 1:
                self._fail_waiting(exc)  # there is no connection, and nobody else has one
        finally:
            for asked in batch:
                asked.settle(outcome)  # those that have their reply take no notice
            self._workers -= 1
            if connection is not None:
                is_clean = is_clean and not self._is_retired and self._is_current(connection)
                (self._free if is_clean else self._doomed).append(connection)
                await self._hang_up_doomed()
            if not is_first:  # who has just failed to connect leaves it to the next one who asks
                self._find_a_worker()

    async def _connection(self) -> Connection:
        """One that is free and in order, else a new one."""
        try:
            await self._hang_up_doomed()
        finally:
            self._is_taking = False
        while self._free:
            connection = self._free.pop()
            try:
                # What can be read now is its end, or nothing that we asked for.
                if self._is_current(connection) and not await connection.can_read():
                    return connection
            except FAILURES:
                pass
            await hang_up(connection)
        self._is_dialling = True
        try:
            return await self.dial()
        finally:
            self._is_dialling = False

    def _take(self) -> list[_Asked]:
        batch: list[_Asked] = []
        size = 0
        while self._waiting and len(batch) < _MOST_IN_A_BATCH and size < _MOST_BATCH_BYTES:
            asked = self._waiting.popleft()
            if not asked.reply.done():  # who gave up or was cancelled is not sent at all
                batch.append(asked)
                size += len(asked.packed)
        self._find_a_worker()
        return batch

    async def _carry(self, connection: Connection, batch: list[_Asked]) -> bool:
        """Write the commands and hand over the replies; False when the server said that it is a master no longer."""
        if not batch:
            return True
        self._counts.batches += 1
        self._counts.batched += len(batch)
        is_master = True
        await connection.send_packed_command([asked.packed for asked in batch], check_health=False)
        for asked in batch:
            outcome: Any = None
            for _ in range(asked.replies):
                try:
                    outcome = await connection.read_response()
                except ResponseError as exc:
                    outcome = exc
                    is_master = is_master and not isinstance(exc, _DEMOTED)
            asked.settle(outcome)
        return is_master

    def _expire(self, asked: _Asked, due_s: float, grace: int) -> None:
        if grace:
            asked.timer = asyncio.get_running_loop().call_soon(self._expire, asked, due_s, grace - 1)
            return
        late_s = self._clock() - due_s
        asked.settle(LoopLate() if late_s > self._limits.deadline_s / 2 else TimeoutError())

    def _rest(self, reason: str, *, is_demoted: bool) -> None:
        self.reason = reason
        self._drop_free()
        self._fail_waiting(RedisUnavailable(reason))
        self._begin(self._look(must_be_master=self._must_be_master or is_demoted))
        self._changed()

    async def _look(self, *, must_be_master: bool) -> None:
        """Look whether it serves again, and end the rest when it does."""
        while not self._is_retired:
            await asyncio.sleep(self._limits.rest_s)
            reason = await self._ails(must_be_master)
            if self._is_retired:
                return
            self.reason = reason
            self._failures = 0
            self._changed()
            if not reason:
                return

    async def _ails(self, must_be_master: bool) -> str:
        """Why it cannot serve; empty when it can. An error reply to a question shows that it lives, which will do.

        Silence does not: a late answer must not end a rest.
        """
        limit_s = self._limits.deadline_s
        outcome = await self.exchange(_PING, limit_s)
        if isinstance(outcome, Exception) and not is_about_the_command(outcome):
            return why(outcome, limit_s)
        if must_be_master:
            role = await self.exchange(_ROLE, limit_s)  # a replica answers PING too
            if isinstance(role, Exception) and not is_about_the_command(role):
                return why(role, limit_s)
            if isinstance(role, list) and role[:1] != [b"master"]:
                self._drop_free()
                return "the server is a replica"
        if self._is_of_cluster:
            said = await self.exchange(_CLUSTER_INFO, limit_s)
            if isinstance(said, Exception) and not is_about_the_command(said):
                return why(said, limit_s)
            if isinstance(said, bytes) and b"cluster_state:fail" in said:
                return "error reply `CLUSTERDOWN`"
        return ""

    def _fail_waiting(self, outcome: Exception) -> None:
        waiting, self._waiting = self._waiting, deque()
        for asked in waiting:
            asked.settle(outcome)

    def _drop_free(self) -> None:
        self._doomed += self._free
        self._free.clear()
        if self._doomed:
            self._begin(self._hang_up_doomed())

    async def _hang_up_doomed(self) -> None:
        while self._doomed:
            await hang_up(self._doomed.pop())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
