"""New Message Batches through the router: each item routed, every other byte as it came, decisions found again."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.processes import router
from kit.raw_upstream import Peer
from kit.redis_server import RedisServer
from kit.stage import KEY, WAIT_S, Reply, Stage, Wire, answers, http, message, request_body, stage, until

from router.cli.trace import show
from router.simulator.server import served
from router.trace.record import TraceQuery
from router.trace.sqlite import SqliteTraceReader
from router.wire.batch import MAX_ITEM_BYTES

pytestmark = pytest.mark.anyio

BATCHES = "/v1/messages/batches"
MADE = http(b'{"id": "msgbatch_1", "type": "message_batch", "results_url": null}')
# Requests that say `hard` stay where they are; all others go to Haiku.
POLICY = """\
version: 1
rules:
  - name: hard
    when: {max_tokens: {gt: 1000}}
    route: as-asked
  - name: banned
    when: {max_tokens: 666}
    deny: not with this number
  - name: simple
    when: {messages: {gt: 0}}
    route: haiku
    tags: [cheap]
otherwise: as-asked
"""


def params(text: str = "Classify this ticket.", model: str = "claude-sonnet-5-5", **more: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 40, "messages": [{"role": "user", "content": text}], **more}


def batch_of(**items: dict[str, Any]) -> bytes:
    """A batch, spaced as no writer of ours does."""
    requests = [{"custom_id": name, "params": said} for name, said in items.items()]
    return json.dumps({"requests": requests}, separators=(" ,", ": "), ensure_ascii=False).encode()


async def created(s: Stage, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> Reply:
    return await s.request("POST", BATCHES, body, headers)


async def ended(s: Stage, batch: str, headers: list[tuple[bytes, bytes]] | None = None) -> dict[str, Any]:
    """The batch, once it has ended."""
    async with asyncio.timeout(WAIT_S):
        while True:
            found: dict[str, Any] = (await s.request("GET", f"{BATCHES}/{batch}", None, headers)).json()
            if found["processing_status"] == "ended":
                return found


async def item_rows(s: Stage, batch: str, count: int) -> dict[str, dict[str, Any]]:
    """The traces of that many items, by the text of their `request_id`."""
    assert s.app.traces is not None
    async with asyncio.timeout(WAIT_S):
        while True:
            await asyncio.to_thread(s.app.traces.flush)
            query = TraceQuery(endpoint="batch_item", batch=batch, limit=1_000)
            rows = await asyncio.to_thread(SqliteTraceReader(s.folder / "traces.db").list, query)
            if len(rows) == count:
                return {row["trace_id"]: row for row in rows}


async def ledger(origin: str) -> list[dict[str, Any]]:
    """What the simulator bills, entry by entry."""
    reader, writer = await asyncio.open_connection(*origin.removeprefix("http://").split(":"), limit=1 << 24)
    wire = Wire(reader, writer)
    wire.send("GET", "/_simulator/ledger", [], None)
    reply = await wire.reply()
    await wire.close()
    entries: list[dict[str, Any]] = reply.json()["entries"]
    return entries


@pytest.fixture(scope="module")
def simulator() -> Iterator[str]:
    with served() as origin:
        yield origin


# What goes up


async def test_only_the_model_of_items_that_are_moved_changes():
    """Every other byte is the client's: spaces, order, items that stay, items that are none."""
    body = batch_of(
        a=params("one ü"), b=params("two", max_tokens=2_000), c=params("three", model="claude-haiku-5-5"),
        d=params("four", stream=True), e={"model": 7}, f=params("five", model="auto"),
        g=params("six", model="lane:opus"), h=params("seven", model="lane:nowhere"),
    )  # fmt: skip
    async with stage(answers(MADE), policy=POLICY) as s:
        reply = await created(s, body)
        assert reply.status == 200, reply.body
        assert reply.body == MADE.partition(b"\r\n\r\n")[2]
        [sent] = s.upstream.requests
        expected = body.replace(b'"claude-sonnet-5-5"', b'"claude-haiku-5-5"', 1)
        expected = expected.replace(b'"auto"', b'"claude-haiku-5-5"').replace(b'"lane:opus"', b'"claude-opus-5-5"')
        assert sent.body == expected
        assert sent.header(b"content-length") == str(len(expected)).encode()
        assert reply.header("x-router-batch-items") == "8"
        assert reply.header("x-router-lane") == "haiku=3, as-asked=1, opus=1"
        assert reply.header("x-router-model") == "claude-haiku-5-5=3, claude-sonnet-5-5=1, claude-opus-5-5=1"
        assert reply.header("x-router-rule") == "simple=4, hard=1"
        assert (reply.header("x-router-policy") or "").startswith("default@")
        row = await s.trace()
        assert (row["endpoint"], row["batch"], row["policy"]) == ("batches", "msgbatch_1", "default")
        assert row["facts"] == {
            "items": 8, "moved": 3, "edited": 0, "unrouted": 3, "decisions_kept": True,
            "lanes": {"haiku": 3, "as-asked": 1, "opus": 1}, "rules": {"simple": 4, "hard": 1},
            "models": {"claude-haiku-5-5": 3, "claude-sonnet-5-5": 1, "claude-opus-5-5": 1},
        }  # fmt: skip


TEXT = st.text(max_size=30)
PARAMS = st.fixed_dictionaries(
    {"model": st.sampled_from(["claude-sonnet-5-5", "claude-haiku-5-5", "auto", "unheard-of", ""]) | TEXT},
    optional={
        "max_tokens": st.integers(-1, 3_000), "stream": st.booleans() | st.none(), "speed": st.just("fast"),
        "messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": TEXT}), max_size=2),
        "metadata": st.dictionaries(TEXT, TEXT, max_size=2), "temperature": st.floats(0, 1),
    },
)  # fmt: skip


@pytest.mark.parametrize("separators", [(",", ":"), (" ,\n", " : ")])
async def test_whatever_batch_comes_only_models_differ(separators):
    """Property: the body upstream parses to what came, but for models; without its models it is the same bytes."""
    async with stage(answers(MADE), policy=POLICY) as s:
        loop = asyncio.get_running_loop()

        async def one(items: list[dict[str, Any]], is_ascii: bool) -> None:
            requests = [{"custom_id": f"i{n}", "params": said} for n, said in enumerate(items)]
            body = json.dumps({"requests": requests}, separators=separators, ensure_ascii=is_ascii).encode()
            s.upstream.requests.clear()
            reply = await created(s, body)
            assert reply.status == 200, reply.body
            [sent] = s.upstream.requests
            came, went = orjson.loads(body), orjson.loads(sent.body)
            rest, other = body, sent.body
            for before, after in zip(came["requests"], went["requests"], strict=True):
                old, new = before["params"].pop("model"), after["params"].pop("model")
                assert before == after
                for text in (json.dumps(old, ensure_ascii=is_ascii).encode(),):
                    head, mark, rest = rest.partition(b'"model"' + separators[1].encode() + text)
                    assert mark
                new_text = text if new == old else orjson.dumps(new)
                assert other.startswith(head + b'"model"' + separators[1].encode() + new_text)
                other = other[len(head) + len(b'"model"' + separators[1].encode()) + len(new_text) :]
            assert rest == other

        @settings(max_examples=25)
        @given(st.lists(PARAMS, min_size=1, max_size=6), st.booleans())
        def check(items: list[dict[str, Any]], is_ascii: bool) -> None:
            asyncio.run_coroutine_threadsafe(one(items, is_ascii), loop).result(WAIT_S)

        await asyncio.to_thread(check)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not valid JSON"),
        (b'{"requests":[]}', 400, "from 1 to 100000 items"),
        (b'{"requests":7}', 400, "Input should be a valid list"),
        (batch_of(a=params())[:-1] + b',"x":1}', 400, "x: Extra inputs are not permitted"),
        (batch_of(**{"a b": params()}), 400, "requests.0.custom_id: String should match"),
        (batch_of(a=params()).replace(b"]", b"," + batch_of(a=params())[13:-2] + b"]"), 400, "not valid JSON"),
        (batch_of(a=params(), b=params(max_tokens=666)), 403, "b: not with this number"),
    ],
)
async def test_a_batch_that_is_refused_as_a_whole_is_not_sent(body, status, said):
    """The upstream sees nothing of it."""
    async with stage(answers(MADE), policy=POLICY) as s:
        reply = await created(s, body)
        assert (reply.status, reply.json()["type"]) == (status, "error")
        assert said in reply.json()["error"]["message"]
        assert not s.upstream.requests
        row = await s.trace()
        assert (row["status"], row["attempts"], row["cost_usd"]) == (status, [], 0)


async def test_a_compressed_batch_is_refused():
    """Nobody could route it; the Messages path refuses it likewise."""
    async with stage(answers(MADE), policy=POLICY) as s:
        reply = await created(s, b"\x1f\x8b", [*KEY, (b"content-encoding", b"gzip")])
        assert reply.status == 400
        assert not s.upstream.requests


async def test_the_policy_of_the_address_decides_and_an_unknown_one_is_refused():
    """As for a request: `/p/NAME` in front, and `results_url` leads back there."""
    async with stage(answers(MADE), policies={"other": POLICY}) as s:
        reply = await s.request("POST", f"/p/other{BATCHES}", batch_of(a=params()))
        assert (reply.status, reply.header("x-router-lane")) == (200, "haiku=1")
        reply = await s.request("POST", f"/p/none{BATCHES}", batch_of(a=params()))
        assert reply.status == 404
        assert len(s.upstream.requests) == 1


async def test_an_item_that_is_edited_goes_up_as_its_lane_takes_it():
    """`swap: adapt` makes its edits in an item too, and the header counts the items."""
    policy = POLICY.replace("    tags: [cheap]", "    swap: adapt")
    asked = params("Classify.", thinking={"type": "adaptive"}, output_config={"effort": "high"})
    async with stage(answers(MADE), policy=policy) as s:
        alone = await s.post(json.dumps(asked).encode())
        together = await created(s, batch_of(a=params(), b=asked))
        one, all_ = s.upstream.requests
        assert orjson.loads(all_.body)["requests"][1]["params"] == orjson.loads(one.body)
        edited = alone.header("x-router-edits") is not None
        assert together.header("x-router-edits") == ("items=1" if edited else None)


async def test_others_are_answered_while_a_large_batch_is_planned():
    """Ten thousand items are seconds of work; a request meanwhile waits for one slice of it."""
    body = batch_of(**{f"i{n}": params(f"Classify ticket {n}. " * 20) for n in range(4_000)})
    seen: list[bytes] = []

    async def behave(peer: Peer) -> None:
        while True:
            seen.append((await peer.request()).line.split()[1])
            peer.send(MADE)

    async with stage(behave, policy=POLICY) as s:
        wire = await s.connect()
        wire.send("POST", BATCHES, KEY, body)
        await until(lambda: bool(s.app.api._watches))  # it has arrived
        for _ in range(5):
            await s.messages()
        assert (await wire.reply()).status == 200
        assert seen == [b"/v1/messages"] * 5 + [BATCHES.encode()]


async def test_an_item_larger_than_a_request_may_be_refuses_its_batch():
    """Nobody could route it by what it says; the client is told which it is."""
    body = batch_of(a=params(), b=params("x" * MAX_ITEM_BYTES))
    async with stage(answers(MADE), policy=POLICY) as s:
        reply = await created(s, body)
        assert (reply.status, reply.json()["error"]["type"]) == (413, "request_too_large")
        assert "requests.1: over" in reply.json()["error"]["message"]
        assert not s.upstream.requests


async def test_large_items_are_routed_like_small_ones_and_leave_the_collector_on():
    """They are read one at a time, with the collector of cycles paused meanwhile."""
    body = batch_of(a=params("x" * (1 << 20)), b=params(metadata={"x": [[]] * 280_000}), c=params())
    async with stage(answers(MADE), policy=POLICY) as s:
        reply, other = await asyncio.gather(created(s, body), created(s, body))
        assert reply.header("x-router-lane") == other.header("x-router-lane") == "haiku=3"
        assert s.upstream.requests[0].body == body.replace(b"sonnet", b"haiku")
    assert gc.isenabled()


async def test_a_router_that_stops_while_it_plans_says_so_at_once():
    """Nothing was sent: the client may try elsewhere, and need not wait until all is planned."""
    body = batch_of(**{f"i{n}": params(f"Classify ticket {n}. " * 20) for n in range(4_000)})
    async with stage(answers(MADE), policy=POLICY) as s:
        wire = await s.connect()
        wire.send("POST", BATCHES, KEY, body)
        await until(lambda: bool(s.app.api._watches))  # it has arrived
        s.app.api.cut()
        reply = await wire.reply()
        assert (reply.status, reply.header("retry-after")) == (503, "1")
        assert not s.upstream.requests
        row = await s.trace()
        assert not row["facts"], "it was planned to the end"


async def test_the_headers_of_a_batch_end_between_names():
    """Where there are more models than a header holds, the most frequent are said, each whole."""
    asked = {f"i{n}": params(model=f"model-number-{n % 60}", max_tokens=2_000) for n in range(61)}
    async with stage(answers(MADE), policy=POLICY) as s:
        told = ((await created(s, batch_of(**asked))).header("x-router-model") or "").split(", ")
        assert told[0] == "model-number-0=2"
        assert told[-1] == "..."
        assert {each.rpartition("=")[2] for each in told[1:-1]} == {"1"}
        assert len(told) > 20


# From creation to the books


async def test_the_books_are_those_of_the_upstream_and_say_what_was_saved(simulator: str):
    """Every item has its rule, lane, models and facts; saved is asked minus sent, at batch price, exactly."""
    body = batch_of(
        a=params("Classify ticket 1."), b=params("Prove it.", max_tokens=2_000), c=params("x", model="auto"),
        d=params("no", speed="fast"), e=params("Translate.", model="claude-opus-5-5"),
    )  # fmt: skip
    async with stage(origin=simulator, policy=POLICY) as s:
        before = len(await ledger(simulator))
        made = await created(s, body)
        assert made.status == 200, made.body
        batch = made.json()["id"]
        assert (await ended(s, batch))["results_url"] == f"http://test{BATCHES}/{batch}/results"
        path = f"{BATCHES}/{batch}/results"
        first, second = await s.request("GET", path), await s.request("GET", path)
        assert first.body == second.body
        results = {entry["custom_id"]: entry["result"] for entry in map(json.loads, first.body.splitlines())}
        assert {name: result["type"] for name, result in results.items()} == {
            "a": "succeeded", "b": "succeeded", "c": "succeeded", "d": "errored", "e": "succeeded",
        }  # fmt: skip
        rows = list((await item_rows(s, batch, 4)).values())
        billed = (await ledger(simulator))[before:]
        assert sorted(int(row["cost_usd"] * 10**12) for row in rows) == sorted(e["cost_pusd"] for e in billed)
        by_id = {row["request_id"]: row for row in rows}
        said = {name: by_id[result["message"]["id"]] for name, result in results.items() if name != "d"}
        names = ("rule", "lane", "model_asked", "model_sent", "model_answered")
        assert {name: tuple(row[each] for each in names) for name, row in said.items()} == {
            "a": ("simple", "haiku", "claude-sonnet-5-5", "claude-haiku-5-5", "claude-haiku-5-5"),
            "b": ("hard", "as-asked", "claude-sonnet-5-5", "claude-sonnet-5-5", "claude-sonnet-5-5"),
            "c": ("simple", "haiku", "auto", "claude-haiku-5-5", "claude-haiku-5-5"),
            "e": ("simple", "haiku", "claude-opus-5-5", "claude-haiku-5-5", "claude-haiku-5-5"),
        }  # fmt: skip
        for name, row in said.items():
            usage, asked = row["usage"], row["model_asked"] if name != "c" else "claude-haiku-5-5"
            price = s.app.catalog.find(asked)
            assert price is not None
            assert price.prices is not None
            baseline = (
                usage["input_tokens"] * price.prices.standard.input
                + usage["output_tokens"] * price.prices.standard.output
            )
            assert int(row["baseline_usd"] * 10**12) == baseline // 2
            assert row["saved_usd"] == row["baseline_usd"] - row["cost_usd"]
            assert row["facts"]["max_tokens"] == (2_000 if name == "b" else 40)
            assert row["revision"] == s.app.policies.current.revision
            assert row["tags"] == ([] if name == "b" else ["cheap"])
            assert row["why"]
        assert said["a"]["saved_usd"] > 0
        assert said["b"]["saved_usd"] == said["c"]["saved_usd"] == 0
        report = await asyncio.to_thread(SqliteTraceReader(s.folder / "traces.db").summary, "rule", None)
        assert {group["rule"]: group["requests"] for group in report["rows"]} == {"simple": 3, "hard": 1}


async def test_the_official_library_sees_a_batch_from_its_creation_to_its_end(simulator: str):
    """Create, retrieve, list, results, cancel and delete, as a client program calls them."""
    async with stage(origin=simulator, policy=POLICY) as s:  # noqa: SIM117 - the client needs the address
        async with anthropic.AsyncAnthropic(api_key="sk-test-sdk", base_url=s.url, max_retries=0) as client:
            batches = client.messages.batches
            wanted: Any = [{"custom_id": f"i{n}", "params": params(f"Classify {n}.")} for n in range(3)]
            made = await batches.create(requests=wanted)
            async with asyncio.timeout(WAIT_S):
                while (found := await batches.retrieve(made.id)).processing_status != "ended":
                    pass
            assert (found.results_url or "").startswith(s.url)
            entries = [entry async for entry in await batches.results(made.id)]
            assert [entry.result.type for entry in entries] == ["succeeded"] * 3
            assert {entry.result.message.model for entry in entries if entry.result.type == "succeeded"} == {
                "claude-haiku-5-5"
            }
            assert made.id in [batch.id async for batch in await batches.list(limit=1)]
            with pytest.raises(anthropic.BadRequestError, match="has ended"):
                await batches.cancel(made.id)
            assert (await batches.delete(made.id)).type == "message_batch_deleted"
            with pytest.raises(anthropic.NotFoundError):
                await batches.retrieve(made.id)
            with pytest.raises(anthropic.BadRequestError, match="requests: from 1"):
                await batches.create(requests=[])


async def test_results_after_a_crash_and_through_another_process_know_what_was_decided(simulator: str, tmp_path: Path):
    """Killed between creation and results; the next process, on the same store, books the same decisions once."""
    body = batch_of(**{f"i{n}": params(f"Classify {n}.") for n in range(5)})
    async with router(tmp_path, simulator, policy=POLICY, cache="off") as one:
        wire = await one.connect()
        wire.send("POST", BATCHES, KEY, body)
        batch = (await wire.reply()).json()["id"]
        one.signal(signal.SIGKILL)
    async with router(tmp_path, simulator, policy=POLICY, cache="off") as again:
        async with asyncio.timeout(WAIT_S):
            while True:
                wire = await again.connect()
                wire.send("GET", f"{BATCHES}/{batch}/results", KEY, None)
                if (await wire.reply()).status == 200:
                    break
            while len(rows := [row for row in await again.traces() if row["endpoint"] == "batch_item"]) < 5:
                pass
    assert {(row["rule"], row["model_asked"], row["model_sent"]) for row in rows} == {
        ("simple", "claude-sonnet-5-5", "claude-haiku-5-5")
    }
    assert all(row["saved_usd"] > 0 for row in rows)


async def test_two_replicas_share_what_was_decided_through_redis(simulator: str, redis_server: RedisServer):
    """Created through one, fetched through the other, each with a trace store of its own."""
    async with (
        stage(origin=simulator, policy=POLICY, jobs=redis_server.url) as one,
        stage(origin=simulator, policy=POLICY, jobs=redis_server.url) as other,
    ):
        batch = (await created(one, batch_of(a=params("x"), b=params("y", max_tokens=2_000)))).json()["id"]
        await ended(other, batch)
        assert (await other.request("GET", f"{BATCHES}/{batch}/results")).status == 200
        rows = await item_rows(other, batch, 2)
        assert {(row["rule"], row["lane"]) for row in rows.values()} == {("simple", "haiku"), ("hard", "as-asked")}


async def test_a_store_that_fails_costs_no_batch(simulator: str, tmp_path: Path):
    """Where decisions cannot be kept the batch is made all the same; its baseline is what answered; it is counted."""
    (tmp_path / "no-folder").write_text("a file")
    async with stage(origin=simulator, policy=POLICY, jobs=f"sqlite:///{tmp_path}/no-folder/jobs.db") as s:
        made = await created(s, batch_of(a=params("x")))
        assert made.status == 200
        batch = made.json()["id"]
        await ended(s, batch)
        fetched = await s.request("GET", f"{BATCHES}/{batch}/results")
        assert fetched.status == 200
        assert not await item_rows(s, batch, 0)
        (tmp_path / "no-folder").unlink()
        assert (await s.request("GET", f"{BATCHES}/{batch}/results")).body == fetched.body
        [row] = (await item_rows(s, batch, 1)).values()
        assert (row["model_asked"], row["rule"], row["saved_usd"]) == ("claude-haiku-5-5", "", 0)
        assert s.app.stores.decisions.stats()["failures"] > 0
        assert [r["facts"]["decisions_kept"] for r in await s.traces() if r["method"] == "POST"] == [False]


async def test_a_client_that_leaves_does_not_unmake_its_batch():
    """The batch may be made by then; its id is noted, so that its results are booked right."""
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await go_on.wait()
        peer.send(MADE)

    async with stage(behave, policy=POLICY) as s:
        wire = await s.connect()
        wire.send("POST", BATCHES, KEY, batch_of(a=params()))
        async with asyncio.timeout(WAIT_S):
            await arrived.wait()
        await wire.close()
        go_on.set()
        row = await s.trace()
        assert (row["batch"], row["outcome"]) == ("msgbatch_1", "client_closed")
        assert await s.app.stores.decisions.of("msgbatch_1", ["a"])


async def test_a_router_that_stops_while_it_sends_says_that_nobody_knows():
    """A library that sent it again would make a second batch: it is told not to."""
    arrived = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await peer.closed()

    async with stage(behave, policy=POLICY) as s:
        wire = await s.connect()
        wire.send("POST", BATCHES, KEY, batch_of(a=params()))
        async with asyncio.timeout(WAIT_S):
            await arrived.wait()
        s.app.api.cut()
        reply = await wire.reply()
        assert (reply.status, reply.header("x-should-retry")) == (502, "false")
        assert 'details="R306"' in (reply.header("proxy-status") or "")


async def test_an_item_that_goes_on_with_a_conversation_goes_where_the_request_would():
    """It keeps the model that the conversation is bound to, and binds none itself."""
    more = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And now prove it."}]
    turn = params("Begin.", max_tokens=2_000)
    turn["messages"] = [*turn["messages"], *more]

    async def behave(peer: Peer) -> None:
        while True:
            request = await peer.request()
            peer.send(MADE if BATCHES.encode() in request.line else http(message()))

    async with stage(behave, policy=POLICY) as s:
        unknown = await created(s, batch_of(a=turn))
        assert unknown.header("x-router-lane") == "as-asked=1"
        assert (await s.post(json.dumps(params("Begin.")).encode())).header("x-router-lane") == "haiku"
        known = await created(s, batch_of(a=turn, b=params("Another.", max_tokens=2_000), c=turn))
        assert (known.header("x-router-lane"), known.header("x-router-batch-items")) == ("haiku=2, as-asked=1", "3")
        sent = orjson.loads(s.upstream.requests[-1].body)["requests"]
        assert [each["params"]["model"] for each in sent] == [
            "claude-haiku-5-5", "claude-sonnet-5-5", "claude-haiku-5-5",
        ]  # fmt: skip
        alone = await s.post(json.dumps(turn).encode())
        assert alone.header("x-router-lane") == "haiku"


async def test_a_lane_whose_model_takes_no_batches_is_left_out():
    """What the API's own list of models denies; the next lane of the route is taken."""
    policy = POLICY.replace("route: haiku", "route: [haiku, opus]")
    async with stage(answers(MADE), policy=policy) as s:
        models = [
            replace(model, accepts=replace(model.accepts, denied=frozenset({"batch"})))
            if model.id == "claude-haiku-5-5"
            else model
            for model in s.app.catalog.models
        ]
        s.app.catalog.adopt(s.app.catalog.with_models(models))
        reply = await created(s, batch_of(a=params(), b=params(model="claude-haiku-5-5")))
        assert (reply.status, reply.header("x-router-lane")) == (200, "opus=2")


async def test_what_was_decided_is_shown_with_the_trace_of_the_batch(monkeypatch: pytest.MonkeyPatch):
    """`router trace show` of the creation lists the first items."""
    async with stage(answers(MADE), policy=POLICY) as s:
        assert (await created(s, batch_of(**{f"i{n:03}": params(f"{n}") for n in range(30)}))).status == 200
        row = await s.trace()
        monkeypatch.chdir(s.folder)
        url = f"sqlite:///{s.folder}/traces.db"
        shown = await asyncio.to_thread(CliRunner().invoke, show, ["--traces", url, row["trace_id"]])
        assert shown.exit_code == 0, shown.output
        assert "i000  claude-sonnet-5-5 -> claude-haiku-5-5  lane haiku  rule simple" in shown.output
        assert "the first 20 of 30 by name" in shown.output
        assert "i020" not in shown.output
        (s.folder / "traces-jobs.db").unlink()
        without = await asyncio.to_thread(CliRunner().invoke, show, ["--traces", url, row["trace_id"]])
        assert (without.exit_code, "i000" in without.output) == (0, False)


async def test_what_is_refused_upstream_leaves_nothing_behind():
    """The upstream's own words go to the client, and nothing is linked."""
    refused = http(b'{"type":"error","error":{"type":"invalid_request_error","message":"no"}}', "400 Bad Request")
    async with stage(answers(refused), policy=POLICY) as s:
        reply = await created(s, batch_of(a=params()))
        assert (reply.status, reply.json()["error"]["message"]) == (400, "no")
        assert s.app.stores.decisions.stats()["linked"] == 0


def test_the_bodies_here_are_batches():
    """A guard for the tests above: what they send is what the API takes."""
    assert json.loads(batch_of(a=json.loads(request_body())))["requests"][0]["custom_id"] == "a"
