"""Real Redis in more than one server, on private loopback ports: a master with a replica and sentinels, and a cluster.

Every server of both can be killed, frozen and thawed like any other (see `kit.redis_server`). Nothing is shared with
another test, and all of it is gone at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kit.redis_server import RedisServer, find_redis_server, find_valkey_server

SLOTS = 16384
_READY_LIMIT_S = 60.0  # sentinels that missed two seconds, or whose clock was set, do nothing for half a minute
_STEP_S = 0.01
_CALM_MS = 10_000  # a start on a busy machine has pauses that must not count as a master's end
# How often sentinels look around, in ms: every second or two unless told. A Redis before 7 cannot be told and refuses.
_BRISK = ("info-period", "100", "publish-period", "100", "ask-period", "100", "ping-period", "100")


def server_programs() -> dict[str, str]:
    """The server programs of this machine by name: `redis`, and `valkey` where it is installed."""
    found = {"redis": find_redis_server(), "valkey": find_valkey_server()}
    return {name: program for name, program in found.items() if program is not None}


def wait_until(claim: Callable[[], bool], what: str, says: Callable[[], object] = lambda: "") -> None:
    """Look until the claim holds: servers agree in their own time, and nothing tells when. `says`: what they do say."""
    until_s = time.monotonic() + _READY_LIMIT_S
    while not claim():
        assert time.monotonic() < until_s, f"not in {_READY_LIMIT_S:.0f} s: {what}; {says()}"
        time.sleep(_STEP_S)


class Sentinels:
    """A master, its replica and the sentinels that watch both; `down_after_ms` of silence make a master down."""

    NAME = "main"

    def __init__(self, program: str, folder: Path, sentinels: int = 1, down_after_ms: int = 300) -> None:
        data = ("--repl-diskless-sync-delay", "0")
        self.master = RedisServer(program, folder, *data)
        self.replica = RedisServer(program, folder, *data)
        config = (
            f"sentinel monitor {self.NAME} 127.0.0.1 {self.master.port} {sentinels // 2 + 1}\n"
            f"sentinel down-after-milliseconds {self.NAME} {_CALM_MS}\n"
            f"sentinel failover-timeout {self.NAME} 3000\n"
        )
        self.sentinels = [RedisServer(program, folder, config=config) for _ in range(sentinels)]
        self._down_after_ms = str(down_after_ms)

    @property
    def url(self) -> str:
        """Where a link finds the master."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.NAME}"

    @property
    def servers(self) -> list[RedisServer]:
        """All of them."""
        return [self.master, self.replica, *self.sentinels]

    def start(self) -> None:
        """Start all, and return when the replica has its data and every sentinel knows it and the other sentinels."""
        self.master.start()
        self.replica.start("--replicaof", "127.0.0.1", str(self.master.port))
        wait_until(lambda: b"master_link_status:up" in self.replica.say("INFO", "replication"), "the replica follows")
        for sentinel in self.sentinels:
            sentinel.start()
            sentinel.say("SENTINEL", "DEBUG", *_BRISK)
        others = b"num-other-sentinels\r\n$%d\r\n%d\r\n" % (1, len(self.sentinels) - 1)
        for sentinel in self.sentinels:
            wait_until(
                lambda sentinel=sentinel: (
                    others in (said := sentinel.say("SENTINEL", "MASTER", self.NAME))  # type: ignore[misc]
                    and b"num-slaves\r\n$1\r\n1\r\n" in said
                ),
                "the sentinels know each other and the replica",
                lambda: [
                    server.say(*words)
                    for server in self.sentinels
                    for words in (("SENTINEL", "MASTER", self.NAME), ("SENTINEL", "SLAVES", self.NAME), ("INFO",))
                ],
            )
            wait_until(
                lambda sentinel=sentinel: (
                    b"master-link-status\r\n$2\r\nok" in sentinel.say("SENTINEL", "SLAVES", self.NAME)
                ),  # type: ignore[misc]
                "the sentinels know that the replica may take over",
            )
        for sentinel in self.sentinels:
            sentinel.say("SENTINEL", "SET", self.NAME, "down-after-milliseconds", self._down_after_ms)

    def master_port(self) -> int:
        """Where the first sentinel says that the master is."""
        said = self.sentinels[0].say("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.NAME)
        return int(said.split(b"\r\n")[4])


class Cluster:
    """Nodes with an even share of the slots each; with `has_replica` the first has a replica, which is `replica`.

    A node that is silent for `node_timeout_ms` counts as away. The others serve on without its keys.
    """

    def __init__(
        self, program: str, folder: Path, nodes: int = 3, *, has_replica: bool = False, node_timeout_ms: int = 1000
    ) -> None:
        options = ("--cluster-node-timeout", str(node_timeout_ms), "--cluster-require-full-coverage", "no")
        data = (*options, "--repl-diskless-sync-delay", "0")
        self.nodes = [RedisServer(program, folder, *data, is_node=True) for _ in range(nodes)]
        self.replica = RedisServer(program, folder, *data, is_node=True) if has_replica else None

    @property
    def url(self) -> str:
        """Where a link finds the cluster."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    @property
    def servers(self) -> list[RedisServer]:
        """All of them."""
        return self.nodes + ([self.replica] if self.replica is not None else [])

    def start(self) -> None:
        """Start all, share out the slots, and return when every node knows of all of them."""
        for server in self.servers:
            server.start()
        for number, node in enumerate(self.nodes):
            # One read may not give the whole reply, and this command is longer than one segment: in pieces.
            first, last = SLOTS * number // len(self.nodes), SLOTS * (number + 1) // len(self.nodes)
            for start in range(first, last, 1024):
                slots = map(str, range(start, min(start + 1024, last)))
                assert node.say("CLUSTER", "ADDSLOTS", *slots) == b"+OK\r\n"
            # Without an epoch of its own each, two nodes may quarrel about a slot that is moved.
            node.say("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for server in self.servers[1:]:
            self.nodes[0].say("CLUSTER", "MEET", "127.0.0.1", str(server.port))
        known = b"cluster_known_nodes:%d\r\n" % len(self.servers)
        agreed = (known, b"cluster_state:ok", b"cluster_slots_ok:%d\r\n" % SLOTS)
        wait_until(
            lambda: all(all(word in said for word in agreed) for said in self._infos()), "the nodes know each other"
        )
        if self.replica is not None:
            self.replica.say("CLUSTER", "REPLICATE", self.id_of(self.nodes[0]))
            wait_until(self._replica_is_known, "the replica follows, and all know it")

    def id_of(self, node: RedisServer) -> str:
        """The name of a node among the nodes."""
        return node.say("CLUSTER", "MYID").split(b"\r\n")[1].decode()

    def slot_of(self, key: str) -> int:
        """The slot of a key."""
        return int(self.nodes[0].say("CLUSTER", "KEYSLOT", key)[1:-2])

    def node_of(self, key: str) -> RedisServer:
        """The node that had the slot of a key at the start."""
        slot = self.slot_of(key)
        return next(n for i, n in enumerate(self.nodes) if slot < SLOTS * (i + 1) // len(self.nodes))

    def key_of(self, node: RedisServer, number: int = 0) -> str:
        """A key, one per number, that the node has from the start."""
        keys = (f"router:{number}:{attempt}" for attempt in range(1000))
        return next(key for key in keys if self.node_of(key) is node)

    def begin_to_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Keys of the slot that `source` does not have are asked of `target` from now on (ASK)."""
        assert target.say("CLUSTER", "SETSLOT", str(slot), "IMPORTING", self.id_of(source)) == b"+OK\r\n"
        assert source.say("CLUSTER", "SETSLOT", str(slot), "MIGRATING", self.id_of(target)) == b"+OK\r\n"

    def move(self, slot: int, source: RedisServer, target: RedisServer, *keys: str) -> None:
        """Give a slot with these keys of it to another node; `source` says MOVED from then on."""
        self.begin_to_move(slot, source, target)
        for key in keys:
            source.say("MIGRATE", "127.0.0.1", str(target.port), key, "0", "5000")
        for node in (target, source):
            assert node.say("CLUSTER", "SETSLOT", str(slot), "NODE", self.id_of(target)) == b"+OK\r\n"

    def _infos(self) -> list[bytes]:
        return [server.say("CLUSTER", "INFO") for server in self.servers]

    def _replica_is_known(self) -> bool:
        assert self.replica is not None
        name, port = self.id_of(self.nodes[0]).encode(), b":%d@" % self.replica.port
        lists = [node.say("CLUSTER", "NODES").split(b"\n") for node in self.nodes]
        told = [any(port in line and b"slave " + name in line for line in lines) for lines in lists]
        return all(told) and b"master_link_status:up" in self.replica.say("INFO", "replication")


@contextmanager
def running(topology: Sentinels | Cluster) -> Iterator[None]:
    """Start the servers, and end them whatever happens."""
    try:
        topology.start()
        yield
    finally:
        for server in topology.servers:
            server.kill()
