"""Items of batches that the cache answers: the client sees one complete batch, the upstream only what is new."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import anthropic
import orjson
import pytest
from kit.processes import router
from kit.raw_upstream import Behaviour, Peer
from kit.redis_server import RedisServer
from kit.stage import KEY, WAIT_S, Reply, Stage, chunked, http, message, stage, until

from router.jobs.decision import KEPT
from router.serve.ledger import book
from router.simulator.server import served
from router.simulator.settings import SimulatorSettings
from router.trace.record import Trace, TraceQuery
from router.trace.reprice import reprice
from router.trace.sqlite import SqliteTraceReader

pytestmark = pytest.mark.anyio

BATCHES = "/v1/messages/batches"
POLICY = """\
version: 1
rules:
  - name: plain
    when: {max_tokens: 41}
    route: haiku
    cache: {ttl: 1h}
  - name: short
    when: {max_tokens: 42}
    route: haiku
    cache: {ttl: 1h, batches: true, max_bytes: 200B}
  - name: night
    when: {messages: {gt: 0}}
    route: haiku
    cache: {ttl: 1h, batches: true, when_temperature: {gte: 0.5}}
    tags: [nightly]
otherwise: as-asked
"""
BATCH_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-jsonl\r\nrequest-id: req_up\r\ntransfer-encoding: chunked\r\n\r\n"
)


def params(text: str = "Classify this ticket.", model: str = "claude-sonnet-5-5", **more: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 40, "messages": [{"role": "user", "content": text}], **more}


def spaced(value: object) -> bytes:
    """JSON as no writer of ours writes it."""
    return json.dumps(value, separators=(" ,", ": "), ensure_ascii=False).encode()


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def batch_of(write: Callable[[object], bytes] = compact, /, **items: dict[str, Any]) -> bytes:
    return write({"requests": [{"custom_id": name, "params": said} for name, said in items.items()]})


def result(name: str, text: str | None = None, **more: Any) -> bytes:
    """A line of results as an upstream writes it, without its end."""
    said = message(text or f"answer to {name}", model="claude-haiku-5-5", **more)
    return b'{ "custom_id":"%b", "result": {"type": "succeeded", "message": %b}}' % (name.encode(), said)


def an_api(*lines: bytes, end: bytes = b"", head: bytes = BATCH_HEAD) -> Behaviour:
    """An upstream that answers in real time and makes batches, all with these results; `end` is of the first fetch."""
    made = fetched = 0

    async def behave(peer: Peer) -> None:
        nonlocal made, fetched
        while True:
            request = await peer.request()
            path = request.line.split()[1].partition(b"?")[0]
            if path == b"/v1/messages":
                text = json.loads(request.body)["messages"][0]["content"]
                peer.send(http(message(f"real-time answer to {text}", model="claude-haiku-5-5")))
            elif path.endswith(b"/results"):
                fetched += 1
                await peer.send_apart(head, *(chunked(line) for line in lines))
                if end and fetched == 1:
                    peer.send(end)
                    return
                peer.send(b"0\r\n\r\n")
            elif request.line.startswith(b"DELETE"):
                peer.send(http(b'{"id":"msgbatch_1","type":"message_batch_deleted"}'))
            else:
                counts = b'{ "processing" : 2, "succeeded": 1,"errored":0,"canceled":0,"expired":0}'
                batch = b'{"id":"msgbatch_%d", "request_counts" :%b, "processing_status":"%b","results_url":null}'
                made += path == BATCHES.encode() and request.line.startswith(b"POST")
                is_over = request.line.startswith(b"GET")
                shown = batch % (made, counts, b"ended" if is_over else b"in_progress")
                is_list = path == BATCHES.encode() and request.line.startswith(b"GET")
                peer.send(http(b'{"data" : [ %b ],"has_more":false}' % shown if is_list else shown))

    return behave


async def created(s: Stage, body: bytes, *headers: tuple[bytes, bytes], target: str = BATCHES) -> Reply:
    reply = await s.request("POST", target, body, [*KEY, *headers])
    assert reply.status == 200, reply.body
    return reply


async def ended(s: Stage, batch: str) -> dict[str, Any]:
    async with asyncio.timeout(WAIT_S):
        while True:
            found: dict[str, Any] = (await s.request("GET", f"{BATCHES}/{batch}")).json()
            if found["processing_status"] == "ended":
                return found


async def results(s: Stage, batch: str = "msgbatch_1") -> Reply:
    return await s.request("GET", f"{BATCHES}/{batch}/results")


async def known(s: Stage, *texts: str, **more: Any) -> dict[str, bytes]:
    """Have these asked in real time → the answers."""
    answers = {text: await s.post(compact(params(text, **more))) for text in texts}
    assert {reply.status for reply in answers.values()} == {200}
    return {text: reply.body for text, reply in answers.items()}


async def item_rows(s: Stage, batch: str, count: int) -> list[dict[str, Any]]:
    """The traces of that many items."""
    assert s.app.traces is not None
    async with asyncio.timeout(WAIT_S):
        while True:
            await asyncio.to_thread(s.app.traces.flush)
            query = TraceQuery(endpoint="batch_item", batch=batch, limit=1_000)
            rows = await asyncio.to_thread(SqliteTraceReader(s.folder / "traces.db").list, query)
            if len(rows) == count:
                return rows


def by_id(body: bytes) -> dict[str, dict[str, Any]]:
    """Results by `custom_id`, each of which is there once."""
    lines = [orjson.loads(line) for line in body.splitlines()]
    found = {line["custom_id"]: line["result"] for line in lines}
    assert len(found) == len(lines), "an item came twice"
    return found


def upstream_batches(s: Stage) -> list[bytes]:
    return [each.body for each in s.upstream.requests if each.line.startswith(b"POST " + BATCHES.encode())]


@pytest.fixture(scope="module")
def simulator() -> Iterator[str]:
    with served() as origin:
        yield origin


# One complete batch


async def test_the_official_library_sees_one_complete_batch(simulator: str):
    """Counts, ids, results and lists are those of four items, of which the upstream worked on two."""
    texts = [f"Classify ticket {n} of the library." for n in range(4)]
    wanted: Any = [{"custom_id": f"i{n}", "params": params(text)} for n, text in enumerate(texts)]
    async with stage(origin=simulator, policy=POLICY) as s:
        async with anthropic.AsyncAnthropic(api_key="sk-test-1", base_url=s.url, max_retries=0) as client:
            asked = [await client.messages.create(**params(text)) for text in texts[1:3]]
            batches = client.messages.batches
            raw = await batches.with_raw_response.create(requests=wanted)
            assert (raw.headers["x-router-batch-items"], raw.headers["x-router-batch-cached"]) == ("4", "2")
            assert raw.headers["x-router-lane"] == "haiku=4"
            made = await raw.parse()
            assert made.request_counts.processing == 4
            async with asyncio.timeout(WAIT_S):
                while (found := await batches.retrieve(made.id)).processing_status != "ended":
                    assert found.request_counts.processing == 4
            listed = (await batches.list(limit=1)).data[0]
            for each in (found, listed):
                assert (each.id, each.request_counts.succeeded, each.request_counts.processing) == (made.id, 4, 0)
            entries = [entry async for entry in await batches.results(made.id)]
            assert sorted(entry.custom_id for entry in entries) == ["i0", "i1", "i2", "i3"]
            said = {e.custom_id: e.result.message for e in entries if e.result.type == "succeeded"}
            assert [said["i1"].to_json(), said["i2"].to_json()] == [each.to_json() for each in asked]
            assert said["i0"].usage.service_tier == said["i3"].usage.service_tier == "batch"
            with pytest.raises(anthropic.BadRequestError, match="has ended"):
                await batches.cancel(made.id)
            assert (await batches.delete(made.id)).type == "message_batch_deleted"
            for ask in (batches.retrieve, batches.results):
                with pytest.raises(anthropic.NotFoundError):
                    await ask(made.id)
        rows = await item_rows(s, made.id, 4)
        assert sorted(row["cache"] for row in rows) == ["hit", "hit", "miss", "miss"]
        [creation] = [row for row in await s.traces() if row["method"] == "POST" and row["endpoint"] == "batches"][:1]
        assert (creation["facts"]["items"], creation["facts"]["cached"]) == (4, 2)


async def test_a_hit_costs_nothing_and_saves_what_the_batch_would_have_cost_on_the_model_asked_for(simulator: str):
    """Once, however often it is fetched; rule, tags and facts as of the others; and booking again changes nothing."""
    async with stage(origin=simulator, policy=POLICY) as s:
        answered = orjson.loads((await known(s, "Classify what is known."))["Classify what is known."])
        body = batch_of(a=params("Classify what is known."), b=params("Classify what is new."))
        batch = (await created(s, body)).json()["id"]
        await ended(s, batch)
        first, second = await results(s, batch), await results(s, batch)
        assert first.body == second.body
        rows = await item_rows(s, batch, 2)
        hit, miss = sorted(rows, key=lambda row: str(row["request_id"]) != answered["id"])
        price = s.app.catalog.find("claude-sonnet-5-5")
        assert price is not None
        assert price.prices is not None
        usage, standard = answered["usage"], price.prices.standard
        baseline = (usage["input_tokens"] * standard.input + usage["output_tokens"] * standard.output) // 2
        assert (hit["cache"], hit["cost_usd"], int(hit["baseline_usd"] * 10**12)) == ("hit", 0, baseline)
        assert hit["saved_usd"] == hit["baseline_usd"]
        assert (miss["cache"], miss["cost_usd"] > 0) == ("miss", True)
        for name in ("rule", "lane", "tags", "model_asked", "model_sent", "policy", "revision", "status"):
            assert hit[name] == miss[name], name
        assert hit["facts"]["max_tokens"] == 40
        report = await asyncio.to_thread(SqliteTraceReader(s.folder / "traces.db").summary, "rule", None)
        [row] = [each for each in report["rows"] if each["rule"] == "night"]
        assert row["requests"] == 3

        def again(trace: Trace, is_hit: bool) -> None:
            book(trace, s.app.catalog, is_hit=is_hit)

        found = await asyncio.to_thread(reprice, s.folder / "traces.db", again)
        assert sum(change.changed for change in found.models.values()) == 0


async def test_answers_of_a_batch_serve_the_next_batch_and_requests_in_real_time(simulator: str):
    """Byte for byte; a request in real time saves the whole price, and the batches' own beta is no other question."""
    text, beta = "Classify this every night.", (b"anthropic-beta", b"message-batches-2024-09-24")
    async with stage(origin=simulator, policy=POLICY) as s:
        one = (await created(s, batch_of(a=params(text), b=params("Another.")))).json()["id"]
        await ended(s, one)
        lines = (await results(s, one)).body.splitlines()
        [line] = [each for each in lines if b'"custom_id":"a"' in each]
        body = line.partition(b'"message":')[2][:-2]
        alone = await s.post(compact(params(text)))
        assert (alone.header("x-router-cache"), alone.body) == ("hit", body)
        row = next(row for row in await s.traces() if row["endpoint"] == "messages")
        [batch_row] = [row for row in await item_rows(s, one, 2) if row["request_id"] == orjson.loads(body)["id"]]
        assert abs(row["saved_usd"] - 2 * batch_row["baseline_usd"]) <= 10**-11
        assert (batch_row["cache"], batch_row["is_stored"]) == ("miss", True)
        two = await created(s, batch_of(x=params(text), y=params("Another."), z=params("New.")), beta)
        assert two.header("x-router-batch-cached") == "2"
        await ended(s, two.json()["id"])
        kept = (await results(s, two.json()["id"])).body.splitlines()[-2:]
        assert kept[0] == b'{"custom_id":"x","result":{"type":"succeeded","message":%b}}' % body


@pytest.mark.parametrize("write", [spaced, compact])
async def test_whatever_is_known_the_rest_goes_up_as_if_it_had_come_alone(write):
    """Each of the sixteen choices among four items, with the commas; of four known items the smallest goes up."""
    async with stage(an_api(), policy=POLICY) as s:
        said = [params("known " + "x" * (9 - n)) for n in range(4)]
        for each in said:
            assert (await s.post(write(each))).header("x-router-cache") == "miss"
        for number, choice in enumerate(product((True, False), repeat=4)):
            items = {f"i{n}": said[n] if is_known else params(f"new {number}") for n, is_known in enumerate(choice)}
            reply = await created(s, batch_of(write, **items))
            sent = {f"i{n}": items[f"i{n}"] for n, is_known in enumerate(choice) if not is_known} or {"i3": items["i3"]}
            expected = batch_of(write, **sent).replace(b"claude-sonnet-5-5", b"claude-haiku-5-5")
            assert upstream_batches(s)[-1] == expected
            assert reply.header("x-router-batch-cached") == str(4 - len(sent))
            assert reply.header("x-router-batch-items") == "4"


async def test_counts_are_spliced_and_nothing_else_changes():
    """Creation, retrieval, list and cancellation: `processing` while it runs, `succeeded` when it has ended."""
    async with stage(an_api(result("new")), policy=POLICY) as s:
        plain = [await created(s, batch_of(a=params("new")))]
        shown = [("GET", ""), ("POST", "/cancel"), ("GET", "?limit=5")]
        paths = [f"{BATCHES}/msgbatch_1", f"{BATCHES}/msgbatch_1/cancel", f"{BATCHES}?limit=5"]
        for (method, _), path in zip(shown, paths, strict=True):
            plain.append(await s.request(method, path, b"" if method == "POST" else None))
    async with stage(an_api(result("new")), policy=POLICY) as s:
        await known(s, "one", "two")
        whole = [await created(s, batch_of(a=params("new"), b=params("one"), c=params("two")))]
        for (method, _), path in zip(shown, paths, strict=True):
            whole.append(await s.request(method, path, b"" if method == "POST" else None))
    running, over = (b'"processing" : 2', b'"processing" : 4'), (b'"succeeded": 1', b'"succeeded": 3')
    for before, after, (old, new) in zip(plain, whole, (running, over, running, over), strict=True):
        assert after.body == before.body.replace(old, new) != before.body


async def test_kept_lines_follow_the_upstreams_byte_for_byte():
    """Behind whatever it said, on lines of their own, the answers as the cache has them; each exactly once."""
    async with stage(an_api(result("n1") + b"\n", result("n2")), policy=POLICY) as s:
        answers = await known(s, "one", "two ü")
        await created(s, batch_of(n1=params("new"), a=params("one"), n2=params("also new"), b=params("two ü")))
        reply = await results(s)
        wanted = {b"a": answers["one"], b"b": answers["two ü"]}
        kept = [b'{"custom_id":"%b","result":{"type":"succeeded","message":%b}}\n' % each for each in wanted.items()]
        head = result("n1") + b"\n" + result("n2") + b"\n"
        assert reply.body in (head + kept[0] + kept[1], head + kept[1] + kept[0])
        assert reply.header("content-length") is None
        assert set(by_id(reply.body)) == {"n1", "n2", "a", "b"}
        row = next(row for row in await s.traces() if row["path"].endswith("/results"))
        assert row["batch_lines"] == {"succeeded": 4, "errored": 0, "canceled": 0, "expired": 0, "unmetered": 0}


async def test_the_results_of_a_canceled_batch_still_have_what_was_known(tmp_path: Path):
    """The upstream's items are canceled, the others had succeeded before it began."""
    with served(SimulatorSettings(batch_item_s=0.3)) as origin:
        async with stage(origin=origin, policy=POLICY) as s:
            await known(s, "known")
            batch = (await created(s, batch_of(a=params("known"), b=params("b"), c=params("c")))).json()["id"]
            reply = await s.request("POST", f"{BATCHES}/{batch}/cancel", b"")
            assert (reply.status, reply.json()["request_counts"]["processing"]) == (200, 3)
            counts = (await ended(s, batch))["request_counts"]
            assert sum(counts.values()) == 3
            found = {name: each["type"] for name, each in by_id((await results(s, batch)).body).items()}
            assert found["a"] == "succeeded"
            assert counts == {
                kind: list(found.values()).count(kind) for kind in counts
            }  # fmt: skip
            assert "canceled" in found.values()


# What is not answered from the cache


async def test_what_a_request_by_itself_would_not_have_from_the_cache_is_sent():
    """A rule without the flag, the temperature, an address, a server tool, state; and no such rule says no header."""
    texts = ["plain", "cold", "by address", "tool", "state"]
    image = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://a.test/b.png"}}]}]
    more: list[dict[str, Any]] = [
        {"max_tokens": 41}, {"temperature": 0.1}, {"messages": image},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, {"container": "c"},
    ]  # fmt: skip
    said = [params(text, **extra) for text, extra in zip(texts, more, strict=True)]

    async def behave(peer: Peer) -> None:
        while True:
            request = await peer.request()
            peer.send(http(b'{"id":"msgbatch_1"}' if BATCHES.encode() in request.line else message()))

    async with stage(behave, policy=POLICY) as s:
        for each in said:
            assert (await s.post(compact(each))).status == 200
        reply = await created(s, batch_of(**{f"i{n}": each for n, each in enumerate(said)}))
        assert len(orjson.loads(upstream_batches(s)[0])["requests"]) == 5
        assert reply.header("x-router-batch-cached") is None


@pytest.mark.parametrize(("wish", "cached"), [(b"no-store", None), (b"no-cache", "0"), (b"refresh", "0")])
async def test_a_client_that_wants_fresh_answers_gets_them(wish, cached):
    """Its wish holds for the whole batch; `no-cache` and `refresh` keep what comes."""
    lines = (result("a", "fresh") + b"\n", result("b") + b"\n")
    async with stage(an_api(*lines), policy=POLICY) as s:
        await known(s, "known")
        reply = await created(s, batch_of(a=params("known"), b=params("b")), (b"x-router-cache", wish))
        assert reply.header("x-router-batch-cached") == cached
        assert (await results(s)).body == b"".join(lines)
        now = await s.post(compact(params("known")))
        assert (b"fresh" in now.body) == (cached is not None)


async def test_equal_items_of_a_batch_are_each_sent_when_unknown_and_each_answered_when_known():
    """Nothing is joined inside a batch."""
    async with stage(an_api(result("x") + b"\n"), policy=POLICY) as s:
        first = await created(s, batch_of(a=params("same"), b=params("same")))
        assert first.header("x-router-batch-cached") == "0"
        await known(s, "same")
        second = await created(s, batch_of(a=params("same"), b=params("same"), x=params("new")))
        assert second.header("x-router-batch-cached") == "2"
        assert set(by_id((await results(s, "msgbatch_2")).body)) == {"x", "a", "b"}


async def test_only_answers_that_are_done_and_small_enough_are_kept():
    """As for a request: not one that stopped early, not one over the rule's size, not one that failed."""
    errored = b'{"custom_id":"d","result":{"type":"errored","error":{"type":"error"}}}\n'
    lines = (
        result("a", stop="max_tokens") + b"\n", result("b", "x" * 300) + b"\n", result("c") + b"\n", errored,
        result("e", "y" * 100_000) + b"\n",
    )  # fmt: skip
    said = {"a": params("a"), "b": params("b", max_tokens=42), "c": params("c"), "d": params("d"), "e": params("e")}
    async with stage(an_api(*lines), policy=POLICY) as s:
        await created(s, batch_of(**said))
        assert (await results(s)).body == b"".join(lines)
        hits = {name: (await s.post(compact(each))).header("x-router-cache") for name, each in said.items()}
        assert hits == {"a": "miss", "b": "miss", "c": "hit", "d": "miss", "e": "hit"}


async def test_an_answer_that_is_no_line_of_json_is_not_made_one():
    """One with line ends in it stands in the cache for requests; a batch asks anew."""
    pretty = json.dumps(json.loads(message()), indent=1).encode()

    async def behave(peer: Peer) -> None:
        while True:
            request = await peer.request()
            peer.send(http(b'{"id":"msgbatch_1"}' if BATCHES.encode() in request.line else pretty))

    async with stage(behave, policy=POLICY) as s:
        await known(s, "known")
        assert (await s.post(compact(params("known")))).header("x-router-cache") == "hit"
        reply = await created(s, batch_of(a=params("known"), b=params("new")))
        assert reply.header("x-router-batch-cached") == "0"


@pytest.mark.parametrize("jobs", ["broken", "memory"])
async def test_what_cannot_be_kept_is_sent(jobs: str, tmp_path: Path):
    """A store that fails, or that would forget with the process: the batch goes up whole."""
    (tmp_path / "no-folder").write_text("a file")
    settings = {"traces": "off"} if jobs == "memory" else {"jobs": f"sqlite:///{tmp_path}/no-folder/jobs.db"}
    async with stage(an_api(), policy=POLICY, **settings) as s:
        await known(s, "known")
        body = batch_of(a=params("known"), b=params("new"))
        reply = await created(s, body)
        assert (reply.header("x-router-batch-cached"), reply.header("x-router-batch-items")) == ("0", "2")
        assert upstream_batches(s) == [body.replace(b"claude-sonnet-5-5", b"claude-haiku-5-5")]


async def test_more_than_is_kept_of_a_batch_is_sent(monkeypatch: pytest.MonkeyPatch):
    """The bound is of the lines of one batch."""
    monkeypatch.setattr("router.serve.batch_kept.MOST_BYTES", 1_000)
    async with stage(an_api(), policy=POLICY) as s:
        texts = [f"text {n}" for n in range(6)]
        size = len((await known(s, *texts))["text 0"]) + 60
        reply = await created(s, batch_of(**{f"i{n}": params(text) for n, text in enumerate(texts)}))
        assert reply.header("x-router-batch-cached") == str(1_000 // size)


# Never less than all of it


async def test_a_fetch_that_breaks_off_is_begun_anew_and_is_whole():
    """The upstream cut before its end: nothing that is kept here makes it look complete; the next fetch has all."""
    async with stage(an_api(result("x") + b"\n", end=b"5\r\nab"), policy=POLICY) as s:
        await known(s, "known")
        await created(s, batch_of(a=params("known"), x=params("new")))
        broken = await results(s)
        assert (broken.is_whole, b'"custom_id":"a"' in broken.body) == (False, False)
        whole = await results(s)
        assert (whole.is_whole, set(by_id(whole.body))) == (True, {"x", "a"})
        rows = await item_rows(s, "msgbatch_1", 2)
        assert sorted(row["cache"] for row in rows) == ["hit", "miss"]


PARTIAL = b"HTTP/1.1 206 Partial Content" + BATCH_HEAD[15:]
GZIPPED = BATCH_HEAD.replace(b"request-id", b"content-encoding: gzip\r\nrequest-id")


@pytest.mark.parametrize("head", [PARTIAL, GZIPPED], ids=["partial", "compressed"])
async def test_results_that_nothing_can_follow_are_refused(head: bytes):
    """An upstream that sends a part, or packs what nobody asked it to: the client is told, and not a half."""
    async with stage(an_api(result("x") + b"\n", head=head), policy=POLICY) as s:
        await known(s, "known")
        await created(s, batch_of(a=params("known"), x=params("new")))
        reply = await s.request("GET", f"{BATCHES}/msgbatch_1/results", None, [*KEY, (b"range", b"bytes=5-")])
        assert (reply.status, reply.json()["type"]) == (502, "error")
        assert s.upstream.requests[-1].header(b"range") is None


async def test_lines_that_are_gone_cut_the_fetch(redis_server: RedisServer):
    """Redis lost a piece: the bytes before it go out, and the connection is cut."""
    async with stage(an_api(result("x") + b"\n"), policy=POLICY, jobs=redis_server.url) as s:
        await known(s, "known")
        await created(s, batch_of(a=params("known"), x=params("new")))
        assert (await results(s)).is_whole
        [ticket] = [name for name in redis_server.say("KEYS", "*batch-ticket*").split() if b"ticket" in name]
        assert redis_server.say("HDEL", ticket.decode(), f"{KEPT}0") == b":1\r\n"
        reply = await results(s)
        assert (reply.is_whole, reply.body) == (False, result("x") + b"\n")
        async with asyncio.timeout(WAIT_S):
            while not [row for row in await s.traces() if row["error_code"] == "R511"]:
                pass


@contextmanager
def out_of_reach(folder: Path) -> Iterator[None]:
    """The folder is not there for a while, and nothing can be made in its place."""
    away = folder.rename(folder.with_name("away"))
    folder.write_text("a file")
    try:
        yield
    finally:
        folder.unlink()
        away.rename(folder)


async def test_while_the_store_cannot_be_read_nothing_looks_complete(tmp_path: Path):
    """Results, retrieval and lists wait (503), here and elsewhere; a batch may be canceled; then all is as before."""
    fetch, jobs = f"{BATCHES}/msgbatch_1/results", f"sqlite:///{tmp_path}/jobs/jobs.db"
    async with (
        stage(an_api(result("x") + b"\n"), policy=POLICY, jobs=jobs) as one,
        stage(an_api(result("x") + b"\n"), policy=POLICY, jobs=jobs) as other,
    ):
        await known(one, "known")
        await created(one, batch_of(a=params("known"), x=params("new")))
        assert set(by_id((await results(one)).body)) == {"x", "a"}
        with out_of_reach(tmp_path / "jobs"):
            reply = await results(one)  # it remembers that there are lines, and cannot read them
            assert (reply.is_whole, reply.body) == (False, result("x") + b"\n")
            for path in (fetch, f"{BATCHES}/msgbatch_1", BATCHES):
                reply = await other.request("GET", path)
                assert reply.status == 503, path
                assert 'details="R511"' in (reply.header("proxy-status") or "")
            assert (await other.request("POST", f"{BATCHES}/msgbatch_1/cancel", b"")).status == 200
        for s in (one, other):
            assert set(by_id((await results(s)).body)) == {"x", "a"}


async def test_without_the_flag_a_store_that_fails_holds_nothing_up(tmp_path: Path):
    """Nobody's results wait for a store that can hold none of them."""
    policy = POLICY.replace(", batches: true", "")
    async with stage(an_api(result("x") + b"\n"), policy=policy, jobs=f"sqlite:///{tmp_path}/jobs/jobs.db") as s:
        await created(s, batch_of(x=params("new")))
        with out_of_reach(tmp_path / "jobs"):
            assert (await results(s)).body == result("x") + b"\n"
            assert (await s.request("GET", f"{BATCHES}/msgbatch_1")).status == 200
            assert (await s.request("GET", BATCHES)).status == 200


async def test_a_cache_that_does_not_answer_holds_no_batch_up(redis_server: RedisServer):
    """What was not looked up in time is sent."""
    async with stage(an_api(), policy=POLICY, cache=redis_server.url) as s:
        redis_server.freeze()
        items = {f"i{n}": params(f"text {n}") for n in range(600)}
        async with asyncio.timeout(WAIT_S / 2):
            reply = await created(s, batch_of(**items))
        redis_server.thaw()
        assert (reply.header("x-router-batch-items"), reply.header("x-router-batch-cached")) == ("600", "0")


# Several processes, several tenants


async def test_two_processes_share_cache_and_what_is_kept(simulator: str, redis_server: RedisServer, tmp_path: Path):
    """Asked through one, made through the other, which is killed; fetched through the first as one batch, twice."""
    url = redis_server.url
    async with router(tmp_path, simulator, policy=POLICY, cache=url, name="one", ROUTER_JOBS=url) as one:

        async def ask(process: Any, method: str, path: str, body: bytes | None = None) -> Reply:
            wire = await process.connect()
            wire.send(method, path, KEY, body)
            reply: Reply = await wire.reply()
            return reply

        alone = await ask(one, "POST", "/v1/messages", compact(params("Classify this for two.")))
        await until_written(redis_server)
        async with router(tmp_path, simulator, policy=POLICY, cache=url, name="other", ROUTER_JOBS=url) as other:
            made = await ask(
                other,
                "POST",
                BATCHES,
                batch_of(a=params("Classify this for two."), b=params("Classify this, new to both.")),
            )
            assert made.header("x-router-batch-cached") == "1"
            other.signal(signal.SIGKILL)
        path = f"{BATCHES}/{made.json()['id']}"
        async with asyncio.timeout(WAIT_S):
            while (shown := (await ask(one, "GET", path)).json())["processing_status"] != "ended":
                pass
        assert shown["request_counts"]["succeeded"] == 2
        first, second = await ask(one, "GET", f"{path}/results"), await ask(one, "GET", f"{path}/results")
        assert first.body == second.body
        assert first.body.endswith(b'{"custom_id":"a","result":{"type":"succeeded","message":%b}}\n' % alone.body)
        async with asyncio.timeout(WAIT_S):
            while len(rows := [row for row in await one.traces() if row["endpoint"] == "batch_item"]) < 2:
                pass
        assert sorted((row["cache"], row["rule"]) for row in rows) == [("hit", "night"), ("miss", "night")]


async def until_written(server: RedisServer) -> None:
    """Wait until an answer stands in Redis: it is written behind the answer."""
    await until(lambda: b":cache:" in server.say("KEYS", "router:v1:cache:*"))


async def test_kept_answers_are_their_tenants_alone(simulator: str, tmp_path: Path):
    """Where the router holds the key: another tenant finds neither the answers of the cache nor the batch."""
    from test_batch_owners import held, key

    async with held(tmp_path, origin=simulator, policy=POLICY) as s:
        text = "Classify anna's ticket."
        assert (await s.post(compact(params(text)), key("anna"))).status == 200
        body = batch_of(a=params(text), b=params("new"))
        own = await s.request("POST", BATCHES, body, key("ann"))
        foreign = await s.request("POST", BATCHES, body, key("bert"))
        assert [r.header("x-router-batch-cached") for r in (own, foreign)] == ["1", "0"]
        path = f"{BATCHES}/{own.json()['id']}"
        async with asyncio.timeout(WAIT_S):
            while (await s.request("GET", path, None, key("anna"))).json()["processing_status"] != "ended":
                pass
        for rest in ("", "/results"):
            assert (await s.request("GET", path + rest, None, key("bert"))).status == 404
        assert set(by_id((await s.request("GET", f"{path}/results", None, key("anna"))).body)) == {"a", "b"}
        listed = (await s.request("GET", BATCHES, None, key("anna"))).json()["data"]
        assert [each["request_counts"]["succeeded"] for each in listed] == [2]


@pytest.mark.parametrize(
    "line",
    [
        b'{"custom_id":"a","result":{"type":"succeeded","message":%b}}',
        b'{"custom_id":"a","result":{"type":"succeeded","message":%b,"more":{"x":"}}"}}}',
        b'{"custom_id":"a","result":{"type":"succeeded","message":%b},"more":[1]}',
        b' { "result" : { "message" : %b , "type" : "succeeded" } , "custom_id" : "a" } ',
    ],
)
async def test_the_message_of_a_line_is_found_however_it_is_written(line: bytes):
    """Its bytes go into the cache as they stand in the results, braces and quotes in its text included."""
    said = message('}} "}\\', model="claude-haiku-5-5")
    async with stage(an_api(line % said + b"\n"), policy=POLICY) as s:
        await created(s, batch_of(a=params("known")))
        assert (await results(s)).body == line % said + b"\n"
        reply = await s.post(compact(params("known")))
        assert (reply.header("x-router-cache"), reply.body) == ("hit", said)


async def test_items_that_go_on_with_a_conversation_are_answered_too():
    """On the model that the conversation keeps; the address with `?beta=true` is another question, as always."""
    turns = [{"role": "user", "content": "Begin."}, {"role": "assistant", "content": "Yes?"},
             {"role": "user", "content": "And now?"}]  # fmt: skip
    said, beta = params(messages=turns), "?beta=true"
    async with stage(http_api(), policy=POLICY) as s:
        await known(s, "Begin.")
        for target in ("", beta):
            assert (await s.post(compact(said), target=f"/v1/messages{target}")).header("x-router-cache") == "miss"
            reply = await created(s, batch_of(a=said, b=params("new")), target=BATCHES + target)
            assert reply.header("x-router-batch-cached") == "1"


def http_api() -> Behaviour:
    """An upstream that knows two paths."""

    async def behave(peer: Peer) -> None:
        while True:
            request = await peer.request()
            peer.send(http(b'{"id":"msgbatch_1"}' if BATCHES.encode() in request.line else message()))

    return behave


async def test_answers_that_were_purged_while_the_batch_ran_do_not_come_back():
    """A purge means what was asked for before it, also where the results are fetched after it."""
    async with stage(an_api(result("a") + b"\n"), policy=POLICY) as s:
        await created(s, batch_of(a=params("known")))
        assert s.app.stores.cache is not None
        await s.app.stores.cache.purge(rule="night")
        await results(s)
        assert (await s.post(compact(params("known")))).header("x-router-cache") == "miss"
