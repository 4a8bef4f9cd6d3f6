"""Results of Message Batches through the router: bytes unchanged, each item booked once, whatever breaks in between."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from kit.processes import RouterProcess, router
from kit.raw_upstream import Behaviour, Peer, raw_upstream
from kit.stage import AS_ASKED, KEY, WAIT_S, Reply, Stage, Wire, answers, chunked, error, http, stage, until

from router.jobs.decision import DecisionWriter, ItemDecision
from router.serve.batch_results import BatchResultsRelay, batch_named, item_id
from router.serve.exchange import ClientWatch, Exchange, Incoming, Stopwatch
from router.serve.headers import Credential
from router.simulator.server import served
from router.trace.record import Attempt, Trace, TraceQuery
from router.trace.sqlite import SqliteTraceReader

pytestmark = pytest.mark.anyio

BATCHES = "/v1/messages/batches"
PATH = f"{BATCHES}/msgbatch_1/results"
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-jsonl\r\nrequest-id: req_up\r\ntransfer-encoding: chunked\r\n\r\n"
)
ITEM_USD = Decimal("0.0000075")  # 100 tokens at $0.10 and 10 at $0.50 a million, halved: what `line` says


def line(name: str, kind: str = "succeeded", **message: Any) -> bytes:
    """One line of results, spaced as no writer of ours does."""
    result: dict[str, Any] = {"type": kind}
    if kind == "succeeded":
        result["message"] = {
            "id": f"msg_{name}", "type": "message", "model": "claude-haiku-5-5", "stop_reason": "end_turn",
            "content": [{"type": "text", "text": f"the words of {name}, ü"}],
            "usage": {"input_tokens": 100, "output_tokens": 10, "service_tier": "batch"}, **message,
        }  # fmt: skip
    elif kind == "errored":
        result["error"] = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
    return json.dumps({"custom_id": name, "result": result}, separators=(" ,", ": "), ensure_ascii=False).encode()


def body(*names: str) -> bytes:
    """Results in which all succeeded."""
    return b"".join(line(name) + b"\n" for name in names)


def results(*fetches: tuple[bytes, ...], end: bytes = b"0\r\n\r\n") -> Behaviour:
    """An upstream that answers each request with the pieces of its turn (the last repeats); `end` is of the first."""
    count = 0

    async def behave(peer: Peer) -> None:
        nonlocal count
        while True:
            await peer.request()
            number, count = count, count + 1
            await peer.send_apart(HEAD, *(chunked(piece) for piece in fetches[min(number, len(fetches) - 1)]))
            peer.send(end if number == 0 else b"0\r\n\r\n")
            if number == 0 and not end:
                return

    return behave


async def booked(
    s: Stage, fetches: int, batch: str = "msgbatch_1"
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The traces of a batch's items and of that many fetches, once those are written; each oldest first."""
    reader, sink = SqliteTraceReader(s.folder / "traces.db"), s.app.traces
    assert sink is not None

    def found() -> list[list[dict[str, Any]]]:
        assert sink.flush()
        kinds = ("batches", "batch_item")
        return [reader.list(TraceQuery(endpoint=kind, batch=batch, limit=1_000))[::-1] for kind in kinds]

    async with asyncio.timeout(WAIT_S):
        while True:
            rows, items = await asyncio.to_thread(found)
            asked = [row for row in rows if row["path"].endswith("/results")]
            if len(asked) == fetches:
                return items, asked


async def metric(s: Stage, start: str) -> float:
    """The sum of the samples that begin so."""
    text = (await asyncio.to_thread(s.app.metrics.render)).decode()
    return sum(float(sample.rpartition(" ")[2]) for sample in text.splitlines() if sample.startswith(start))


# Through the simulator


@pytest.fixture(scope="module")
def simulator() -> Iterator[str]:
    with served() as origin:
        yield origin


ITEMS = [
    *({"custom_id": f"good-{n}", "params": {"model": model, "max_tokens": 40, **more,
       "messages": [{"role": "user", "content": f"Classify ticket {n} as billing, technical or account."}]}}
      for n, (model, more) in enumerate([
          ("claude-haiku-5-5", {}), ("claude-sonnet-5-5", {}), ("claude-opus-5-5", {"inference_geo": "us"}),
          ("claude-sonnet-5-5", {"system": [{"type": "text", "text": "Be brief. " * 3_000,
                                             "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}),
          ("claude-sonnet-5-5", {"stream": True}),  # errored: a batch streams nothing
      ])),
]  # fmt: skip


async def made_batch(s: Stage) -> str:
    """A batch of `ITEMS` made through the router, once it has ended."""
    made = await s.request("POST", BATCHES, json.dumps({"requests": ITEMS}).encode())
    assert made.status == 200, made.body
    batch: str = made.json()["id"]
    async with asyncio.timeout(WAIT_S):
        while (await s.request("GET", f"{BATCHES}/{batch}")).json()["processing_status"] != "ended":
            pass
    return batch


async def ledger_pusd(origin: str) -> list[int]:
    """What the simulator bills, entry by entry."""
    reader, writer = await asyncio.open_connection(*origin.removeprefix("http://").split(":"), limit=1 << 24)
    wire = Wire(reader, writer)
    wire.send("GET", "/_simulator/ledger", [], None)
    reply = await wire.reply()
    await wire.close()
    return [entry["cost_pusd"] for entry in reply.json()["entries"]]


async def test_results_fetched_twice_are_booked_once_to_the_pico_dollar(simulator: str):
    """F30: what the upstream bills is in the store once: rows, report and metrics; failures only counted."""
    async with stage(origin=simulator) as s:
        before = len(await ledger_pusd(simulator))
        batch = await made_batch(s)
        path = f"{BATCHES}/{batch}/results"
        first, second = await s.request("GET", path), await s.request("GET", path)
        assert first.body == second.body
        assert [json.loads(text)["custom_id"] for text in first.body.splitlines()] == [i["custom_id"] for i in ITEMS]
        items, fetches = await booked(s, 2, batch)
        billed = (await ledger_pusd(simulator))[before:]
        assert len(items) == len(billed) == 4
        assert sorted(int(row["cost_usd"] * 10**12) for row in items) == sorted(billed)
        for row in items:
            assert (row["saved_usd"], row["outcome"], row["batch"], row["policy"]) == (0, "ok", batch, "default")
            assert row["usage"]["service_tier"] == "batch"
            assert row["request_id"].startswith("msg_")
            assert row["model_asked"] == row["model_answered"]
        for row in fetches:
            assert (row["cost_usd"], row["batch"]) == (0, batch)
            assert row["batch_lines"] == {"succeeded": 4, "errored": 1, "canceled": 0, "expired": 0, "unmetered": 0}
        rows = await s.traces()
        [made] = [row for row in rows if row["method"] == "POST"]
        assert made["batch"] == batch
        assert s.app.traces is not None
        assert s.app.traces.stats()["repeated"] == 4
        report = await asyncio.to_thread(SqliteTraceReader(s.folder / "traces.db").summary, "model", None)
        assert report["totals"]["requests"] == 4
        assert int(report["totals"]["cost_usd"] * 10**12) == sum(billed)
        assert report["totals"]["duration_p50_s"] is None, "nobody here knows how long an item took"
        assert await metric(s, 'router_requests_total{cache="bypass",endpoint="batch_item"') == 4
        assert await metric(s, "router_cost_usd_total") == pytest.approx(sum(billed) / 1e12)
        assert await metric(s, 'router_batch_lines_total{kind="errored"}') == 2
        assert s.app.recent.figures()["requests"] == len(rows) - len(items)


# What breaks


async def test_a_fetch_that_was_cut_books_what_passed_and_the_next_one_the_rest():
    """Cut in the middle of a line: the client sees the cut, whole lines are booked, nothing twice."""
    whole = body("a", "b", "c", "d")
    at = whole.index(b"words of c")
    async with stage(results((whole[:40], whole[40:at]), (whole,), end=b"")) as s:
        cut, again = await s.request("GET", PATH), await s.request("GET", PATH)
        assert (cut.is_whole, cut.body) == (False, whole[:at])
        assert (again.is_whole, again.body) == (True, whole)
        items, fetches = await booked(s, 2)
        assert [row["request_id"] for row in items] == ["msg_a", "msg_b", "msg_c", "msg_d"]
        assert {row["cost_usd"] for row in items} == {ITEM_USD}
        assert [row["batch_lines"]["succeeded"] for row in fetches] == [2, 4]
        assert [row["batch_lines"]["unmetered"] for row in fetches] == [1, 0]
        assert [row["outcome"] for row in fetches] == ["cut", "ok"]
        assert fetches[0]["attempts"][0]["outcome"] == "cut"


async def test_a_client_that_leaves_has_booked_what_passed():
    """The rest is booked when somebody fetches again."""
    more = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.send(HEAD, chunked(body("a", "b")))
        if peer.number == 1:
            await more.wait()
        peer.send(chunked(body("c")), b"0\r\n\r\n")

    async with stage(behave) as s:
        wire = await s.connect()
        wire.send("GET", PATH, KEY, None)
        await wire.head()
        assert await wire.chunk() == body("a", "b")
        await wire.close()
        items, fetches = await booked(s, 1)
        assert [row["request_id"] for row in items] == ["msg_a", "msg_b"]
        assert (fetches[0]["outcome"], fetches[0]["cost_usd"]) == ("client_closed", 0)
        more.set()
        assert (await s.request("GET", PATH)).body == body("a", "b", "c")
        items, _ = await booked(s, 2)
        assert [row["request_id"] for row in items] == ["msg_a", "msg_b", "msg_c"]


ODD = [
    *(b"", b"{", b"null", b"[1]", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"custom_id":"x"}'),
    b'{"custom_id":1,"result":{"type":"expired"}}',
    *(b'{"custom_id":"x","result":' + odd + b"}" for odd in (b"[]", b'{"type":"postponed"}', b'{"type":[]}', b"NaN")),
    b'{"custom_id":"x","result":{"type":"succeeded","message":7}}',
]


async def test_lines_that_cannot_be_read_pass_and_are_counted():
    """Broken, unknown, odd: relayed as they are; the lines around them are booked; the last needs no line end."""
    whole = b"\n".join([line("a"), *ODD, line("b", "canceled"), line("c", "expired"), line("d")])
    async with stage(results((whole,))) as s:
        assert (await s.request("GET", PATH)).body == whole
        items, [fetch] = await booked(s, 1)
        assert [row["request_id"] for row in items] == ["msg_a", "msg_d"]
        assert fetch["batch_lines"] == {
            "succeeded": 2, "errored": 0, "canceled": 1, "expired": 1, "unmetered": len(ODD) - 1,
        }  # fmt: skip
        assert fetch["outcome"] == "ok"
        assert await metric(s, 'router_batch_lines_total{kind="unmetered"}') == len(ODD) - 1


async def test_an_item_whose_message_is_odd_costs_what_is_known_of_it():
    """No usage, or a model that nobody knows, is unknown and not 0; half a surrogate pair costs nobody the item."""
    whole = b"\n".join(
        [line("a", usage=None), line("b", model="claude-unheard-1"), line("c", model=7, id=None),
         line("d").replace(b"the words", b"the \\ud83d words")]
    )  # fmt: skip
    async with stage(results((whole,))) as s:
        assert (await s.request("GET", PATH)).body == whole
        items, _ = await booked(s, 1)
        assert [row["cost_usd"] for row in items] == [None, None, None, ITEM_USD]
        assert items[2]["request_id"] is None


async def test_a_line_over_the_bound_passes_and_is_counted():
    """Seventeen megabytes in one line: every byte arrives, and the lines around it are booked."""
    whole = b"\n".join([line("a"), line("b", content="x" * 17_000_000), line("c")])
    pieces = tuple(whole[at : at + 500_000] for at in range(0, len(whole), 500_000))
    async with stage(results(pieces)) as s:
        assert (await s.request("GET", PATH)).body == whole
        items, [fetch] = await booked(s, 1)
        assert [row["request_id"] for row in items] == ["msg_a", "msg_c"]
        assert fetch["batch_lines"]["unmetered"] == 1


HUGE = 15_000_000  # bytes, about: a line may have 16 MB


@pytest.mark.parametrize(
    ("content", "is_booked"),
    [
        ([{"type": "text", "text": 'the "words" \\ ' * (HUGE // 24)}], True),
        ([{"type": "text", "text": "half a pair \ud83d " * (HUGE // 24)}], True),
        ([{"type": "text", "text": "x" * 3_000}] * (HUGE // 3_200), True),
        ([{"type": "tool_use", "input": {"usage": {"output_tokens": 7}, "n": list(range(50_000))}}], True),
        ([{}] * (HUGE // 4), False),
        (["\ud83d"] * 50_000, False),
    ],
    ids=["quotes", "surrogates", "strings", "numbers", "braces", "short-surrogates"],
)
async def test_a_huge_line_is_booked_by_what_it_says_and_holds_nobody_up(content: Any, is_booked: bool):
    """Of megabytes only what an item is booked by is read; what has too much else to read is counted as unmetered."""
    message = {**json.loads(line("b"))["result"]["message"], "content": content}
    huge = json.dumps({"custom_id": "b", "result": {"type": "succeeded", "message": message}}).encode()
    assert len(huge) > 300_000
    relay, exchange = relay_of(
        items := Full(), Pieces(huge[:100_000], huge[100_000:] + b"\n" + line("c") + b"\n", huge)
    )
    items.has = True
    with longest_turn() as turn:
        while await relay.read():
            pass
    relay.settle()
    names = [f"msg_{name}" for name in ("bcb" if is_booked else "c")]
    assert [item.request_id for item in items.items] == names
    assert {item.cost_pusd for item in items.items} == {int(ITEM_USD * 10**12)}
    assert exchange.trace.batch_lines is not None
    assert exchange.trace.batch_lines["unmetered"] == (0 if is_booked else 2)
    assert turn.cpu_s < 0.05


class Turn:
    """The longest turn of the loop, in CPU seconds of its thread: other work of the machine does not count."""

    cpu_s = 0.0


@contextmanager
def longest_turn() -> Iterator[Turn]:
    """Measures each turn within."""
    loop, turn, began_s = asyncio.get_running_loop(), Turn(), time.thread_time()
    is_over = False

    def again() -> None:
        nonlocal began_s
        now_s = time.thread_time()
        turn.cpu_s, began_s = max(turn.cpu_s, now_s - began_s), now_s
        if not is_over:
            loop.call_soon(again)

    loop.call_soon(again)
    try:
        yield turn
    finally:
        is_over = True
        turn.cpu_s = max(turn.cpu_s, time.thread_time() - began_s)


async def test_a_huge_line_that_was_cut_is_left_for_the_next_fetch():
    """Nothing of it is read once the client waits for nothing more."""
    relay, exchange = relay_of(items := Full(), Pieces(line("b", content="x" * HUGE)))
    items.has = True
    await relay.read()
    relay.settle()
    assert not items.items
    assert exchange.trace.batch_lines is not None
    assert exchange.trace.batch_lines["unmetered"] == 1


async def test_a_huge_line_without_a_usable_name_is_unmetered():
    """A name of over 128 bytes is none that the API gives."""
    relay, _ = relay_of(items := Full(), Pieces(line("n" * 300, content="x" * HUGE) + b"\n"))
    items.has = True
    while await relay.read():
        pass
    assert not items.items


async def test_results_that_come_a_byte_at_a_time_are_the_same():
    """Each chunk is one byte; so every cut within a line has been there."""
    whole = body("a", "b")
    async with stage(results(tuple(whole[at : at + 1] for at in range(len(whole))))) as s:
        assert (await s.request("GET", PATH)).body == whole
        items, _ = await booked(s, 1)
        assert len(items) == 2


async def test_a_compressed_answer_passes_unread_and_says_so():
    """It was asked for without compression; what comes all the same is relayed, and counted as unmetered."""
    squeezed = gzip.compress(body("a"))
    answer = http(squeezed, "200 OK", ("content-encoding", "gzip"), kind="application/x-jsonl")
    async with stage(answers(answer)) as s:
        reply = await s.request("GET", PATH, headers=[*KEY, (b"accept-encoding", b"gzip")])
        assert reply.body == squeezed
        assert s.upstream.requests[0].header(b"accept-encoding") == b"identity"
        items, [fetch] = await booked(s, 1)
        assert not items
        assert fetch["batch_lines"]["unmetered"] == 1


async def test_an_error_in_the_place_of_results_passes_as_it_is():
    """Still processing, expired, somebody else's: nothing is booked."""
    answer = error("404 Not Found", "not_found_error", "Batch is still being processed")
    async with stage(answers(answer)) as s:
        reply = await s.request("GET", PATH)
        assert (reply.status, reply.body) == (404, answer.partition(b"\r\n\r\n")[2])
        items, [fetch] = await booked(s, 1)
        assert not items
        assert (fetch["batch"], fetch["batch_lines"], fetch["cost_usd"]) == ("msgbatch_1", None, 0)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (BATCHES, (None, False)),
        (f"{BATCHES}/", (None, False)),
        (f"{BATCHES}/b_1", ("b_1", False)),
        (f"{BATCHES}/b_1/cancel", ("b_1", False)),
        (f"{BATCHES}/b_1/results", ("b_1", True)),
        (f"{BATCHES}/b_1/results/more", ("b_1", False)),
        (f"{BATCHES}//results", (None, False)),
        ("/v1/messages/batchesx/b_1/results", (None, False)),
    ],
)
def test_a_batch_is_named_by_its_path(path: str, named: tuple[str | None, bool]):
    """As it is spelled: what is not spelled plainly does not come here (`test_api`)."""
    assert batch_named(path) == named


def test_an_items_id_is_a_w3c_trace_id_of_its_own():
    """The same in every process, and another for every batch and name."""
    assert item_id("b", "c") == "07474739a82af3929311fee984de2ab1"
    names = {item_id(batch, name) for batch in ("b", "b1", "b12") for name in ("", "1", "12", "2", "é", "\ud800")}
    assert len(names) == 18
    assert all(len(name) == 32 and set(name) <= set("0123456789abcdef") for name in names)


async def test_only_a_policys_own_name_is_booked():
    """`/p/NAME` may say anything on a path that is not routed; it must not become a name in the roll-ups."""
    async with stage(results((body("a"),), (body("b"),)), policies={"team": AS_ASKED}) as s:
        await s.request("GET", f"/p/team{PATH}")
        await s.request("GET", f"/p/invented{PATH}")
        items, _ = await booked(s, 2)
        assert [row["policy"] for row in items] == ["team", ""]


# More than the sink can hold


async def test_while_the_store_takes_nothing_the_client_waits_and_nothing_is_dropped():
    """The file is locked: the queue fills to its quarter, the upstream is read no further; unlocked, all is booked."""
    names = [f"i{number}" for number in range(1_000)]
    pieces = tuple(body(*names[at : at + 20]) for at in range(0, len(names), 20))
    async with stage(results(pieces)) as s:
        sink = s.app.traces
        assert sink is not None
        sink._queue_max = 400  # of 50,000: the same with fewer items
        await s.traces()
        with sqlite3.connect(s.folder / "traces.db", isolation_level=None) as holder:
            holder.execute("BEGIN IMMEDIATE")
            fetch = asyncio.create_task(s.request("GET", PATH))
            await until(lambda: not sink.has_room())
            for _ in range(200):  # turns of the loop in which it would go on
                await asyncio.sleep(0)
            assert len(sink._queue) < 400
            assert not fetch.done()
            holder.execute("COMMIT")
        holder.close()
        assert (await fetch).body == b"".join(pieces)
        _, [row] = await booked(s, 1)
        assert (await asyncio.to_thread(SqliteTraceReader(s.folder / "traces.db").totals, None))["requests"] == 1_000
        assert sink.stats()["dropped"] == sink.stats()["thinned"] == 0
        assert row["batch_lines"]["succeeded"] == 1_000


@dataclass
class Full:
    """An item sink that has no room until it is given some."""

    has: bool = False
    items: list[Trace] = field(default_factory=list)

    def write(self, item: Trace) -> None:
        self.items.append(item)

    def has_room(self) -> bool:
        return self.has


class Pieces:
    """A reply that is there already."""

    status = 200

    def __init__(self, *pieces: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.pieces = [*pieces, b""]

    async def read(self) -> bytes:
        return self.pieces.pop(0)

    def abort(self) -> None:
        self.pieces = [b""]


def relay_of(items: Full, reply: Pieces, **settings: Any) -> tuple[BatchResultsRelay, Exchange]:
    """A relay with nothing around it."""
    from router.catalog_file import load_catalog

    incoming = Incoming("GET", PATH.encode(), b"", [], b"", Credential(b"", b""), None, "acme", "bot")
    exchange = Exchange(incoming, Trace("0" * 32, 1, method="GET", path=PATH), ClientWatch(), Stopwatch(lambda: 0.0))
    attempt = Attempt("-", "", 0.0)
    relay = BatchResultsRelay(
        exchange, reply, attempt, items, load_catalog(None), batch="b", policy="default", **settings
    )  # fmt: skip
    return relay, exchange


async def test_a_store_that_stays_full_holds_no_client_up_for_ever():
    """After its patience lines pass unmetered and are counted; with room again they are booked again."""
    items = Full()
    relay, exchange = relay_of(items, Pieces(body("a"), body("b", "c"), body("d")), patience_s=0.0)
    assert await relay.read() == body("a")
    assert await relay.read() == body("b", "c")
    items.has = True
    assert await relay.read() == body("d")
    assert await relay.read() == b""
    relay.settle()
    assert [item.request_id for item in items.items] == ["msg_a", "msg_d"]
    assert exchange.trace.batch_lines == {
        "succeeded": 2, "errored": 0, "canceled": 0, "expired": 0, "unmetered": 2,
    }  # fmt: skip


async def test_a_client_that_leaves_while_the_store_is_full_is_let_go():
    """Nobody waits for room on behalf of nobody."""
    relay, exchange = relay_of(Full(), Pieces(body("a"), body("b")), patience_s=1e9)
    reading = asyncio.create_task(relay.read())
    await asyncio.sleep(0)
    exchange.watch.gone()
    assert await asyncio.wait_for(reading, 1.0) == body("a")


@dataclass
class Shaky:
    """A store of decisions whose look-ups fail as often as it says; then all are there, or what is shared is not."""

    failures: list[bool]
    entries: dict[str, bytes] = field(default_factory=dict)

    async def of(self, batch: str, names: Sequence[str]) -> Mapping[str, bytes] | None:
        if self.failures and self.failures.pop(0):
            return None
        return {name: self.entries[name] for name in names if name in self.entries}


@pytest.mark.parametrize("failures", [[True], [False, True]], ids=["items", "shared"])
async def test_what_cannot_be_looked_up_is_left_for_the_next_fetch(failures: list[bool]):
    """Booked without it, the item would have saved nothing, for good: the line passes, and is booked when it can be."""
    writer = DecisionWriter()
    for name in "ab":
        writer.add(name, ItemDecision("p", "r1", "simple", "haiku", "claude-sonnet-5-5", "claude-haiku-5-5"))
    store = Shaky(failures, dict(writer.taken()))
    relay, exchange = relay_of(items := Full(has=True), Pieces(body("a"), body("b")), decisions=store)
    assert await relay.read() + await relay.read() == body("a", "b")
    assert await relay.read() == b""
    relay.settle()
    assert [(item.request_id, item.model_asked, item.rule) for item in items.items] == [
        ("msg_b", "claude-sonnet-5-5", "simple")
    ]
    assert exchange.trace.batch_lines is not None
    assert (exchange.trace.batch_lines["succeeded"], exchange.trace.batch_lines["unmetered"]) == (1, 1)
    again, _ = relay_of(items, Pieces(body("a")), decisions=store)
    await again.read()
    assert (items.items[-1].request_id, items.items[-1].model_asked) == ("msg_a", "claude-sonnet-5-5")


# Several processes


@asynccontextmanager
async def serving(folder: Path, behave: Behaviour) -> AsyncIterator[Callable[[], Any]]:
    """Makes routers in front of `behave` that share one store file."""
    async with raw_upstream(behave) as upstream:
        numbers = iter(range(9))

        def one() -> Any:
            name = f"router{next(numbers)}"
            return router(
                folder, upstream.origin, policy=AS_ASKED, cache="off", name=name,
                ROUTER_TRACES=f"sqlite:///{folder}/shared.db",
            )  # fmt: skip

        yield one


async def fetched(one: RouterProcess) -> Reply:
    """The whole results through one router."""
    wire = await one.connect()
    wire.send("GET", PATH, KEY, None)
    reply = await wire.reply()
    await wire.close()
    return reply


async def rows_of(one: RouterProcess, fetches: int) -> list[dict[str, Any]]:
    """Items that a router shows, once that many fetches have ended."""
    async with asyncio.timeout(WAIT_S):
        while True:
            rows = await one.traces()
            if sum(row["endpoint"] == "batches" for row in rows) >= fetches:
                return [row for row in rows if row["endpoint"] == "batch_item"]


async def test_a_router_that_is_killed_between_two_fetches_loses_and_doubles_nothing(tmp_path: Path):
    """SIGKILL in the middle of the first fetch: what it had booked stays, the rest comes with the next fetch."""
    whole = body(*(f"i{number}" for number in range(60)))

    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            peer.send(HEAD, chunked(body(*(f"i{number}" for number in range(40)))))
            if peer.number == 1:
                await peer.closed()
                return
            peer.send(chunked(body(*(f"i{number}" for number in range(40, 60)))), b"0\r\n\r\n")

    async with serving(tmp_path, behave) as one:
        async with one() as first:
            wire = await first.connect()
            wire.send("GET", PATH, KEY, None)
            await wire.head()
            await wire.chunk()
            assert len(await rows_of(first, 0)) == 40
            first.signal(signal.SIGKILL)
            await first.process.wait()
        async with one() as second:
            assert (await fetched(second)).body == whole
            rows = await rows_of(second, 1)
            assert len(rows) == len({row["trace_id"] for row in rows}) == 60
            assert sum(Decimal(str(row["cost_usd"])) for row in rows) == 60 * ITEM_USD
            figures = await second.figures()
            assert figures['router_traces{stat="repeated"}'] == 40


async def test_two_routers_with_one_store_book_an_item_once(tmp_path: Path):
    """Both fetch at the same time, and again: rows and the report know each item once."""
    whole = body(*(f"i{number}" for number in range(200)))
    async with serving(tmp_path, results((whole,))) as one, one() as first, one() as second:
        replies = await asyncio.gather(*(fetched(each) for each in (first, second, first, second)))
        assert {reply.body for reply in replies} == {whole}
        assert len(await rows_of(first, 4)) == 200
        await rows_of(second, 4)
        repeated = [(await each.figures())['router_traces{stat="repeated"}'] for each in (first, second)]
        assert sum(repeated) == 600
        report = json.loads(await first.admin("/report?by=key"))
        assert report["totals"]["requests"] == 200
        counted = (
            'router_requests_total{cache="bypass",endpoint="batch_item",lane="",model="claude-haiku-5-5",outcome="ok"}'
        )
        assert [(await each.figures())[counted] for each in (first, second)] == [200, 200]
