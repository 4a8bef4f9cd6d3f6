"""The link to Redis: one command in, one reply out, within a hard time limit.

Redis is an optimisation, so nobody waits for it longer than `deadline_s`, and nobody waits at all while it is known not
to answer. How that is kept is told in `redis_node` (batches, and when a server rests), `redis_cluster` (which node) and
`redis_dial` (how a connection is made). No other room knows the library.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from router.redis_cluster import Cluster, Command
from router.redis_dial import Dialler, hang_up, pack
from router.redis_failure import FAILURES, RedisUnavailable, why
from router.redis_node import LATENCY_BOUNDS_S, Counts, Limits, RedisNode
from router.redis_url import check_redis_url, parse_redis_url

__all__ = ["RedisLink", "RedisUnavailable", "check_redis_url"]

_PAGE_LIMIT_S = 5.0
_MOST_SCRIPTS = 100  # whose digests are kept


class RedisLink:
    """A bounded, impatient connection to Redis, to one server, to what sentinels call the master, or to a cluster.

    Making one connects to nothing. Seconds: `deadline_s` bounds every call, `give_up_s` the exchange behind it,
    `rest_s` passes between two looks at a server that rests. `most_connections` is of one server. `observe(is_up,
    reason)` is told once of each change; a link begins as up, and `reason` is empty when it is up again. `clock` gives
    seconds. Raises SettingsError as `check_redis_url` does.
    """

    def __init__(
        self,
        url: str,
        *,
        deadline_s: float = 0.05,
        give_up_s: float = 1.0,
        rest_s: float = 0.5,
        most_connections: int = 16,
        observe: Callable[[bool, str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        target = parse_redis_url(url)
        self.deadline_s = deadline_s
        self._limits = Limits(deadline_s, give_up_s, rest_s, most_connections)
        self._observe = observe
        self._clock = clock
        self._counts = Counts()
        self._digests: dict[str, str] = {}
        self._is_closed = False
        self._kind = target.kind
        self._reason = ""  # why the link, or a node of it, rests
        self._dialler = Dialler(target, give_up_s)
        self._one: RedisNode | None = None
        self._cluster: Cluster | None = None
        if target.kind == "cluster":
            self._cluster = Cluster(
                target.hosts, self._node, self._limits, self._counts, clock=clock, changed=self._changed
            )
        else:
            self._one = self._node(*target.hosts[0])

    @property
    def is_up(self) -> bool:
        """False while the server rests, or one of the nodes of a cluster."""
        return not self._reason

    async def ask(self, *command: str | bytes | int | float, within_s: float | None = None) -> Any:
        """The reply to one command, as the protocol has it: bytes, a number, None, or a list of these.

        The name of the command is a text in capitals, and its key the second part (of a script: the first key).
        `within_s` makes the deadline shorter. Raises RedisUnavailable.
        """
        return self._given(await self._reply(command, self._limit(within_s)))

    async def run(
        self,
        script: str,
        keys: Sequence[str],
        arguments: Sequence[bytes | str | int],
        *,
        within_s: float | None = None,
    ) -> Any:
        """The reply of a Lua script, sent as its digest, and in full once to a server that does not have it.

        In a cluster all keys must be in one slot. `within_s` makes the deadline shorter. Raises RedisUnavailable.
        """
        limit_s = self._limit(within_s)
        until_s = self._clock() + limit_s
        rest = (len(keys), *keys, *arguments)
        reply = await self._reply(("EVALSHA", self._digest(script), *rest), limit_s)
        if isinstance(reply, NoScriptError):
            reply = await self._reply(("EVAL", script, *rest), until_s - self._clock())
        return self._given(reply)

    async def scan(self, pattern: str, count: int = 1000) -> AsyncIterator[list[bytes]]:
        """The keys that match, page by page, of every node; a key may come twice. For maintenance.

        It goes over a connection of its own, with five seconds for each page. Raises RedisUnavailable.
        """
        if self._is_closed:
            raise RedisUnavailable("the link is closed")
        nodes = [self._one] if self._cluster is None else await self._cluster.masters(_PAGE_LIMIT_S)
        for node in nodes:
            assert node is not None
            if node.reason:
                raise RedisUnavailable(node.reason)
            connection, cursor = None, b""
            try:
                while cursor != b"0":
                    async with asyncio.timeout(_PAGE_LIMIT_S):
                        if connection is None:
                            connection = await node.dial()
                        page = pack(("SCAN", cursor or b"0", "MATCH", pattern, "COUNT", count))
                        await connection.send_packed_command(page, check_health=False)
                        cursor, found = await connection.read_response()
                    yield found
            except FAILURES as exc:
                reason = why(exc, _PAGE_LIMIT_S)
                raise RedisUnavailable(reason, is_reply=isinstance(exc, ResponseError)) from None
            finally:
                if connection is not None:
                    await hang_up(connection)

    def stats(self) -> Mapping[str, int]:
        """Counts since the start; `is_up` is 0 or 1, `last_latency_us` is of the last reply, in microseconds."""
        counts = self._counts
        return {
            "asked": counts.asked,
            "failed": counts.failed,
            "error_replies": counts.error_replies,
            "refused": counts.refused,
            "timeouts": counts.timeouts,
            "loop_late": counts.loop_late,
            "batches": counts.batches,
            "batched": counts.batched,
            "is_up": int(self.is_up),
            "last_latency_us": round(counts.last_latency_s * 1e6),
        }

    def latencies(self) -> tuple[Mapping[float, int], float]:
        """How many replies took how long, and the seconds of all together.

        Keys are upper bounds in seconds, the last is infinite; a reply is counted in one of them only.
        """
        bounds = (*LATENCY_BOUNDS_S, math.inf)
        return dict(zip(bounds, self._counts.latencies, strict=True)), self._counts.latency_sum_s

    async def close(self) -> None:
        """End what is under way and close every connection. Calls after it fail."""
        self._is_closed = True
        if self._cluster is not None:
            await self._cluster.close()
        if self._one is not None:
            await self._one.close()
        await self._dialler.close()

    async def _reply(self, command: Command, limit_s: float) -> Any:
        """The reply, or an error reply about the command as a value. Raises RedisUnavailable."""
        if self._is_closed:
            raise RedisUnavailable("the link is closed")
        counts, started_s = self._counts, self._clock()
        packed = pack(command)
        node = self._one
        if node is None:
            assert self._cluster is not None
            node = await self._cluster.node_of(command, limit_s)
        if node.reason:
            counts.refused += 1
            raise RedisUnavailable(node.reason)
        counts.asked += 1
        try:
            if limit_s <= 0:
                raise RedisUnavailable("no time was left to ask")
            reply = await node.ask(packed, limit_s)
            if self._cluster is not None and isinstance(reply, ResponseError):
                reply = await self._cluster.follow(reply, node, packed, limit_s - (self._clock() - started_s))
        except RedisUnavailable as exc:
            counts.failed += 1
            counts.error_replies += exc.is_reply
            raise
        counts.reply_after(self._clock() - started_s)
        return reply

    def _given(self, reply: Any) -> Any:
        if not isinstance(reply, ResponseError):
            return reply
        self._counts.failed += 1
        self._counts.error_replies += 1
        raise RedisUnavailable(why(reply, self.deadline_s), is_reply=True)  # redis-py's text may hold values

    def _limit(self, within_s: float | None) -> float:
        return self.deadline_s if within_s is None else max(0.0, min(within_s, self.deadline_s))

    def _digest(self, script: str) -> str:
        digest = self._digests.get(script)
        if digest is None:
            if len(self._digests) >= _MOST_SCRIPTS:
                self._digests.clear()
            # The name that the protocol gives to a script; nothing is protected by it.
            digest = self._digests[script] = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        return digest

    def _node(self, host: str, port: int) -> RedisNode:
        return RedisNode(
            self._dialler.to_master if self._kind == "sentinel" else self._dialler.to(host, port),
            self._dialler.leads_to_the_master,
            self._limits,
            self._counts,
            host=host,
            clock=self._clock,
            changed=self._node_changed,
            must_be_master=self._kind == "sentinel",
            is_of_cluster=self._kind == "cluster",
        )

    def _node_changed(self) -> None:
        if self._cluster is not None:
            self._cluster.refresh()  # another node may have its keys by now
        self._changed()

    def _changed(self) -> None:
        """Tell when the link as a whole goes down, or is up again."""
        was_up = not self._reason
        if self._cluster is not None:
            self._reason = self._cluster.reason
        elif self._one is not None:
            self._reason = self._one.reason
        if was_up == bool(self._reason) and self._observe is not None and not self._is_closed:
            self._observe(not self._reason, self._reason)
