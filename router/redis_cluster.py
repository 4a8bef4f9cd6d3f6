"""A cluster of Redis: which node has a key, and what a node says when another one has it.

Each node has its own connections, batches and rest, so one that is away costs the keys of the others nothing. The
table of slots is asked of any node that answers: when the first key is asked for, when a node sends us on (MOVED), when
a node begins to rest and each time it is found still away, so that its successor is found. While there is no table, and
no node gives one, the whole cluster rests.

redis-py's own cluster client is not used: it closes the connections to all nodes when one fails, waits on the caller's
time, and reads 16,384 slots in Python, which holds up the event loop.
Source: Redis cluster specification, "Redirection and resharding"; redis-py 8.1, `asyncio/cluster.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError, ResponseError, TryAgainError

from router.redis_dial import pack
from router.redis_failure import RedisUnavailable, why
from router.redis_node import Counts, Limits, RedisNode

_CLUSTER_SLOTS, _ASKING = pack(("CLUSTER", "SLOTS")), pack(("ASKING",))
_MOST_REDIRECTIONS = 5
_TRY_AGAIN_S = 0.005
_LEAST_BETWEEN_TABLES_S = 0.25

Command = tuple[str | bytes | int | float, ...]


class Cluster:
    """The nodes of a cluster. Making one connects to nothing.

    `make` makes a node of a host and a port; `changed` is called when a new table of slots is there or none can be had.
    """

    def __init__(
        self,
        seeds: Sequence[tuple[str, int]],
        make: Callable[[str, int], RedisNode],
        limits: Limits,
        counts: Counts,
        *,
        clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._seeds = seeds
        self._make = make
        self._limits = limits
        self._counts = counts
        self._clock = clock
        self._changed = changed
        self._nodes: dict[tuple[str, int], RedisNode] = {}
        self._table: list[RedisNode | None] = []  # by slot; empty: not known yet
        self._reason = ""  # why there is no table
        self._has_tried = asyncio.Event()
        self._is_wanted = False  # a new table
        self._is_closed = False
        self._refresher: asyncio.Task[None] | None = None

    @property
    def reason(self) -> str:
        """Why the cluster, or one of its nodes, rests; empty when none does."""
        return self._reason or next((node.reason for node in self._nodes.values() if node.reason), "")

    async def node_of(self, command: Command, limit_s: float) -> RedisNode:
        """The node that has the command's key, or a node that answers. Raises RedisUnavailable."""
        await self._load(limit_s)
        key = _key(command)
        if key is None:
            nodes = self._masters()
            node = next((node for node in nodes if not node.reason), nodes[0] if nodes else None)
        else:
            node = self._table[key_slot(key)]
        if node is None:
            self.refresh()
            self._counts.refused += 1
            raise RedisUnavailable("no node of the cluster has this key")
        return node

    async def masters(self, limit_s: float) -> Sequence[RedisNode]:
        """The nodes that have keys. Raises RedisUnavailable."""
        await self._load(limit_s)
        return self._masters()

    async def follow(self, error: ResponseError, node: RedisNode, packed: bytes, limit_s: float) -> Any:
        """The reply from where `node` sent us on to, or an error reply as a value. Raises RedisUnavailable."""
        until_s = self._clock() + limit_s
        reply: Any = error
        before, replies = b"", 1
        for _ in range(_MOST_REDIRECTIONS):
            if isinstance(reply, MovedError):
                node, before, replies = self._at(str(reply.host) or node.host, reply.port), b"", 1
                if self._table:
                    self._table[reply.slot_id] = node
                self.refresh()
            elif isinstance(reply, AskError):  # of which MovedError is a kind
                node, before, replies = self._at(str(reply.host) or node.host, reply.port), _ASKING, 2
            elif isinstance(reply, TryAgainError):  # of the same node in the same way
                await asyncio.sleep(_TRY_AGAIN_S)
            else:
                break
            left_s = until_s - self._clock()
            if left_s <= 0 or self._is_closed:
                break
            if node.reason:
                raise RedisUnavailable(node.reason)
            reply = await node.ask(before + packed, left_s, replies)
        return reply

    def refresh(self) -> None:
        """Ask for the table of slots, soon; asked again while that goes on, it is asked for once more."""
        self._is_wanted = True
        if self._refresher is None and not self._is_closed:
            self._refresher = asyncio.get_running_loop().create_task(self._refresh())

    async def close(self) -> None:
        """Close every connection to every node."""
        self._is_closed = True
        self._table, self._reason = [], "the link is closed"
        self._has_tried.set()  # for those who wait
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.wait((self._refresher,))
        await asyncio.gather(*(node.close() for node in self._nodes.values()))

    async def _load(self, limit_s: float) -> None:
        """Wait for the first table. Raises RedisUnavailable."""
        if self._table:
            return
        if not self._has_tried.is_set():
            self.refresh()
            try:
                async with asyncio.timeout(limit_s):
                    await self._has_tried.wait()
            except TimeoutError as exc:
                self._counts.asked += 1
                self._counts.failed += 1
                self._counts.timeouts += 1
                raise RedisUnavailable(why(exc, self._limits.deadline_s)) from None
        if not self._table:
            self._counts.refused += 1
            raise RedisUnavailable(self._reason)

    def _masters(self) -> list[RedisNode]:
        return [node for node in dict.fromkeys(self._table) if node is not None]

    def _at(self, host: str, port: int) -> RedisNode:
        node = self._nodes.get((host, port))
        if node is None:
            node = self._nodes[host, port] = self._make(host, port)
        return node

    async def _refresh(self) -> None:
        while self._is_wanted or not self._table:
            self._is_wanted = False
            reason = await self._read_table()
            self._reason = "" if self._table else reason
            self._has_tried.set()
            self._changed()
            await asyncio.sleep(
                min(_LEAST_BETWEEN_TABLES_S, self._limits.rest_s) if self._table else self._limits.rest_s
            )
        self._refresher = None

    async def _read_table(self) -> str:
        """Take over the table of the first node that gives one; why there is none, where none does."""
        nodes = sorted(self._nodes.values(), key=lambda node: node.reason != "")
        nodes += [self._at(*seed) for seed in self._seeds if seed not in self._nodes]
        reason = ""
        for node in nodes:
            reply = await node.exchange(_CLUSTER_SLOTS, self._limits.deadline_s)
            if isinstance(reply, Exception):
                reason = why(reply, self._limits.deadline_s)
                continue
            ranges = read_slots(reply, node.host)
            if ranges:
                self._take_over(ranges)
                return ""
            reason = "the cluster has no slots"
        return reason

    def _take_over(self, ranges: Sequence[tuple[int, int, str, int]]) -> None:
        table: list[RedisNode | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, host, port in ranges:
            table[first : last + 1] = [self._at(host, port)] * (last + 1 - first)
        self._table = table
        serving = set(table)
        for address, node in list(self._nodes.items()):
            if node not in serving:
                del self._nodes[address]
                node.retire()


def read_slots(reply: object, host: str) -> list[tuple[int, int, str, int]]:
    """First slot, last slot, host and port of the master, of each range in a reply to CLUSTER SLOTS.

    `host` is where the reply is from, for nodes that do not know their own name. What cannot be read is left out.
    """
    ranges = []
    for item in reply if isinstance(reply, list) else ():
        match item:
            case [int(first), int(last), [name, int(port), *_], *_] if 0 <= first <= last < REDIS_CLUSTER_HASH_SLOTS:
                own = name.decode("utf-8", "replace") if isinstance(name, bytes) else ""
                if own != "?":  # it has a name that this node does not know
                    ranges.append((first, last, own or host, port))
    return ranges


def _key(command: Command) -> bytes | None:
    """What decides about the slot: the second part, or the first key of a script; None where there is none."""
    at = 1
    if command[0] in ("EVAL", "EVALSHA"):
        at = 3 if int(command[2]) else len(command)
    if at >= len(command):
        return None
    key = command[at]
    return key if isinstance(key, bytes) else str(key).encode()
