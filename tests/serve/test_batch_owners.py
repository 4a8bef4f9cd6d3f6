"""Where the router holds the upstream's key, a batch is its tenant's alone: to any other it does not exist (S32)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import anthropic
import pytest
from kit.raw_upstream import Behaviour, Peer
from kit.stage import WAIT_S, Stage, answers, error, http, stage

from router.serve import passthrough
from router.simulator.modelpages import paged
from router.simulator.server import served

pytestmark = pytest.mark.anyio

BATCHES = "/v1/messages/batches"


def key(name: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-api-key", f"sk-of-{name}".encode()), (b"anthropic-version", b"2023-06-01")]


def batch(count: int = 1) -> bytes:
    params = {"model": "claude-haiku-5-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    return json.dumps({"requests": [{"custom_id": f"i{n}", "params": params} for n in range(count)]}).encode()


@asynccontextmanager
async def held(folder: Path, behave: Behaviour | None = None, **more: Any) -> AsyncIterator[Stage]:
    """A router that holds the key; `anna` and `ann` are one tenant, `bert` another."""
    rows = [("anna", "a"), ("ann", "a"), ("bert", "b")]
    entries = [
        f"  - name: {name}\n    sha256: {hashlib.sha256(f'sk-of-{name}'.encode()).hexdigest()}\n    tenant: {tenant}\n"
        for name, tenant in rows
    ]
    (folder / "keys.yaml").write_text("keys:\n" + "".join(entries))
    async with stage(behave, keys=str(folder / "keys.yaml"), upstream_api_key="sk-owner", **more) as s:
        yield s


@pytest.fixture(scope="module")
def simulator() -> Iterator[str]:
    with served() as origin:
        yield origin


async def made(s: Stage, name: str) -> str:
    reply = await s.request("POST", BATCHES, batch(), key(name))
    assert reply.status == 200, reply.body
    found: str = reply.json()["id"]
    async with asyncio.timeout(WAIT_S):
        while (await s.request("GET", f"{BATCHES}/{found}", None, key(name))).json()["processing_status"] != "ended":
            pass
    return found


async def test_nobody_elses_batch_can_be_reached_in_any_way(simulator: str, tmp_path: Path):
    """Retrieve, results, cancel, delete: for another tenant as for an id that was never given, byte for byte."""
    async with held(tmp_path, origin=simulator) as s:
        own, ids = await made(s, "anna"), "msgbatch_never"
        for method, rest in (
            ("GET", ""), ("HEAD", ""), ("GET", "/results"), ("POST", "/cancel"), ("DELETE", ""), ("GET", "?beta=true"),
        ):  # fmt: skip
            body = b"" if method == "POST" else None
            foreign = await s.request(method, f"{BATCHES}/{own}{rest}", body, key("bert"))
            unknown = await s.request(method, f"{BATCHES}/{ids}{rest}", body, key("bert"))
            assert foreign.status == unknown.status == 404, (method, rest)
            if method != "HEAD":
                said = foreign.json()["error"]
                assert said == {"type": "not_found_error", "message": f"Batch not found: {own}"}
                assert unknown.json()["error"]["message"] == f"Batch not found: {ids}"
        for name in ("anna", "ann"):
            assert (await s.request("GET", f"{BATCHES}/{own}", None, key(name))).status == 200
            assert (await s.request("GET", f"{BATCHES}/{own}/results", None, key(name))).status == 200
        assert (await s.request("DELETE", f"{BATCHES}/{own}", None, key("ann"))).status == 200
        rows = await s.traces()
        booked = {row["tenant"] for row in rows if row["endpoint"] == "batch_item"}
        assert booked == {"a"}, "nobody else's fetch priced an item"


SPELLINGS = [
    "{own}%2Fresults", "x/../{own}", "x/%2e%2e/{own}/results", "{own}/", "/{own}", "./{own}", "%6dsgbatch",
    "{own}%00", "{own}/results/", "%2e%2e/batches/{own}", "{own};x",
]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_no_spelling_gets_around_it(spelling: str, tmp_path: Path):
    """Whatever the upstream would make of such a path, it is not asked."""
    made_one = http(b'{"id": "msgbatch_1", "type": "message_batch"}')
    async with held(tmp_path, answers(made_one)) as s:
        assert (await s.request("POST", BATCHES, batch(), key("anna"))).status == 200
        for name in ("bert", "anna"):
            target = f"{BATCHES}/{spelling.format(own='msgbatch_1')}"
            assert (await s.request("GET", target, None, key(name))).status == 404
        assert (await s.request("GET", f"{BATCHES}x", None, key("anna"))).status == 404
        assert (await s.request("HEAD", BATCHES, None, key("anna"))).status == 405
        assert len(s.upstream.requests) == 1


async def test_a_list_shows_the_tenants_own_alone(simulator: str, tmp_path: Path):
    """Over many pages of the upstream, forwards and backwards, as the official library walks them."""
    async with held(tmp_path, origin=simulator) as s:
        order = "abbbbabbab"
        ids = [await made(s, {"a": "anna", "b": "bert"}[who]) for who in order]
        for name, who in (("ann", "a"), ("bert", "b")):
            wanted = [each for each, own in zip(ids, order, strict=True) if own == who][::-1]
            async with anthropic.AsyncAnthropic(api_key=f"sk-of-{name}", base_url=s.url, max_retries=0) as client:
                for limit in (1, 2, 3, 100):
                    found = [one.id async for one in await client.messages.batches.list(limit=limit)]
                    assert [each for each in found if each in ids] == wanted, (name, limit)
                    assert set(found) <= set(wanted)
                back = await client.messages.batches.list(limit=1, before_id=wanted[-1])
                assert [one.id for one in back.data] == [wanted[-2]]
        page = (await s.request("GET", f"{BATCHES}?limit=2", None, key("anna"))).json()
        assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[8], ids[8], True)
        foreign = await s.request("GET", f"{BATCHES}?after_id={ids[1]}", None, key("anna"))
        assert foreign.status == 404


async def test_a_list_of_nothing_is_empty_and_ends(simulator: str, tmp_path: Path):
    """A tenant without batches learns of nobody's."""
    async with held(tmp_path, origin=simulator) as s:
        await made(s, "anna")
        page = (await s.request("GET", BATCHES, None, key("bert"))).json()
        assert page == {"data": [], "has_more": False, "first_id": None, "last_id": None}


def pages_of(count: int, asked: list[dict[str, str]]) -> Behaviour:
    """An upstream with a list of `count` batches, newest first; it says it made `msgbatch_1`, the oldest."""
    ids = [f"msgbatch_{number}" for number in range(count, 0, -1)]

    async def behave(peer: Peer) -> None:
        while True:
            request = await peer.request()
            method, target, _ = request.line.decode().split(" ")
            query = dict(parse_qsl(target.partition("?")[2]))
            if method == "POST":
                peer.send(http(b'{"id": "msgbatch_1", "type": "message_batch"}'))
                continue
            asked.append(query)
            shown, has_more = paged(ids, query)
            page = {"data": [{"id": name} for name in shown], "has_more": has_more}
            peer.send(http(json.dumps({**page, "first_id": shown[0], "last_id": shown[-1]}).encode()))

    return behave


async def test_others_many_batches_are_passed_over_in_few_requests(tmp_path: Path):
    """The first page is as it was asked for, those behind it are the largest there are."""
    asked: list[dict[str, str]] = []
    async with held(tmp_path, pages_of(3_000, asked)) as s:
        assert (await s.request("POST", BATCHES, batch(), key("anna"))).status == 200
        page = (await s.request("GET", f"{BATCHES}?limit=3", None, key("anna"))).json()
        assert page == {
            "data": [{"id": "msgbatch_1"}], "has_more": False, "first_id": "msgbatch_1", "last_id": "msgbatch_1",
        }  # fmt: skip
        assert [each["limit"] for each in asked] == ["3", "1000", "1000", "1000"]


@pytest.mark.parametrize("query", ["", "?limit=7"])
async def test_a_list_that_ends_early_names_nobody_elses_batch(query: str, tmp_path: Path):
    """Where the tenant's are behind more of others than are looked through, the list ends, empty, and says no id."""
    asked: list[dict[str, str]] = []
    async with held(tmp_path, pages_of(9_000, asked)) as s:
        assert (await s.request("POST", BATCHES, batch(), key("anna"))).status == 200
        for name in ("anna", "bert"):
            page = (await s.request("GET", BATCHES + query, None, key(name))).json()
            assert page == {"data": [], "has_more": False, "first_id": None, "last_id": None}
        assert len(asked) == 12


async def test_a_page_has_no_more_than_was_asked_for(tmp_path: Path):
    """Of a large page that was looked through, only as many are shown; the others come with the next page."""
    asked: list[dict[str, str]] = []
    async with held(tmp_path, pages_of(20, asked)) as s:
        store = s.app.stores.decisions
        assert store is not None
        for number in range(1, 11):
            assert await store.link(f"t{number}", f"msgbatch_{number}", "a")
        async with anthropic.AsyncAnthropic(api_key="sk-of-anna", base_url=s.url, max_retries=0) as client:
            shown = await client.messages.batches.with_raw_response.list(limit=3)
            page = json.loads(await shown.text())
            assert [one["id"] for one in page["data"]] == ["msgbatch_10", "msgbatch_9", "msgbatch_8"]
            assert (page["first_id"], page["last_id"], page["has_more"]) == ("msgbatch_10", "msgbatch_8", True)
        everything = await walked(s, "limit=3", "after_id", "last_id")
        assert everything == [f"msgbatch_{number}" for number in range(10, 0, -1)]
        back = await walked(s, "limit=3&before_id=msgbatch_1", "before_id", "first_id")
        assert sorted(back) == sorted(everything[:-1])


async def walked(s: Stage, query: str, cursor: str, end: str) -> list[str]:
    """The ids of all pages from `query` on."""
    found: list[str] = []
    while True:
        page = (await s.request("GET", f"{BATCHES}?{query}", None, key("anna"))).json()
        assert len(page["data"]) <= 3
        found += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            return found
        query = f"limit=3&{cursor}={page[end]}"


async def test_a_batch_that_is_there_is_answered_whatever_the_store_does(caplog: Any):
    """Told of an error, a client would make it once more, and pay twice: it gets the upstream's answer."""
    made_one = http(b'{"id": "msgbatch_1", "type": "message_batch"}')
    async with stage(answers(made_one)) as s:
        store = s.app.stores.decisions
        assert store is not None

        async def closed(*_: str) -> bool:
            raise RuntimeError("cannot schedule new futures after shutdown")

        store.link = closed
        reply = await s.request("POST", BATCHES, batch(), key("anna"))
        assert (reply.status, reply.body) == (200, b'{"id": "msgbatch_1", "type": "message_batch"}')
        assert "`msgbatch_1` was made, but not linked" in caplog.text
        assert (await s.trace())["batch"] == "msgbatch_1"


async def test_a_fault_of_ours_after_the_answer_began_makes_no_second_batch(monkeypatch: pytest.MonkeyPatch):
    """The upstream said yes: a library must not try again by itself, and what was decided stays."""

    async def broken(*_: Any) -> tuple[bytes, bool]:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(passthrough, "collect", broken)
    async with stage(answers(http(b'{"id": "msgbatch_1", "type": "message_batch"}'))) as s:
        reply = await s.request("POST", BATCHES, batch(), key("anna"))
        assert (reply.status, reply.header("x-should-retry")) == (502, "false")
        assert 'details="R306"' in (reply.header("proxy-status") or "")


async def test_a_store_that_fails_hides_no_error_of_the_upstream():
    """What was decided about a batch that was not made cannot be let go of: the client hears why it was not made."""
    refused = error("400 Bad Request", "invalid_request_error", "no")
    async with stage(answers(refused)) as s:
        store = s.app.stores.decisions
        assert store is not None

        async def closed(*_: str) -> None:
            raise RuntimeError("cannot schedule new futures after shutdown")

        store.forget = closed
        reply = await s.request("POST", BATCHES, batch(), key("anna"))
        assert (reply.status, reply.json()["error"]["message"]) == (400, "no")


async def test_a_batch_that_ends_before_it_is_sent_leaves_nothing_behind():
    """The wait is over once what was decided is kept: that is let go of at once, not after 30 days."""
    async with stage(answers()) as s:
        store = s.app.stores.decisions
        assert store is not None
        put, forget, tickets = store.put, store.forget, list[str]()
        forgotten = asyncio.Event()

        async def put_then_cut(ticket: str, entries: Any) -> bool:
            is_kept = await put(ticket, entries)
            tickets.append(ticket)
            s.app.api.cut()
            return is_kept

        async def seen(ticket: str) -> None:
            await forget(ticket)
            tickets.append(ticket)
            forgotten.set()

        store.put, store.forget = put_then_cut, seen
        wire = await s.connect()
        wire.send("POST", BATCHES, key("anna"), batch())
        async with asyncio.timeout(WAIT_S):
            await forgotten.wait()
        await wire.close()
        assert len(tickets) == 2
        assert tickets[0] == tickets[1]
        assert not s.upstream.requests


async def test_entries_of_a_list_keep_their_bytes(tmp_path: Path):
    """Only what is left out goes, and the ends of the page; spaces and unknown fields stay."""
    entry = '{{ "id" :"{0}", "results_url":null,  "new":[1.50, "]}}"] }}'
    shown = ", ".join(entry.format(name) for name in ("msgbatch_9", "msgbatch_1", "msgbatch_8"))
    listed = f'{{ "has_more": false, "data" : [ {shown} ],"last_id":"msgbatch_8", "x": 1.0, "first_id": "msgbatch_9"}}'
    made_one = http(b'{"id": "msgbatch_1", "type": "message_batch"}')
    async with held(tmp_path, answers(made_one, http(listed.encode()))) as s:
        assert (await s.request("POST", BATCHES, batch(), key("anna"))).status == 200
        reply = await s.request("GET", BATCHES, None, key("anna"))
        assert reply.body.decode() == (
            f'{{ "has_more": false, "data" : [{entry.format("msgbatch_1")}],"last_id":"msgbatch_1", "x": 1.0, '
            f'"first_id": "msgbatch_1"}}'
        )


async def test_where_nobody_can_tell_whose_it_is_nobody_gets_it(tmp_path: Path):
    """A store that fails closes: 503 before anything is sent, for a new batch too, whose results would be lost."""
    (tmp_path / "file").write_text("")
    made_one = http(b'{"id": "msgbatch_1", "type": "message_batch"}')
    async with held(tmp_path, answers(made_one), jobs=f"sqlite:///{tmp_path}/file/jobs.db") as s:
        for method, target, body in (
            ("POST", BATCHES, batch()), ("GET", f"{BATCHES}/msgbatch_1", None),
            ("GET", f"{BATCHES}/msgbatch_1/results", None), ("DELETE", f"{BATCHES}/msgbatch_1", None),
        ):  # fmt: skip
            reply = await s.request(method, target, body, key("anna"))
            assert (reply.status, 'details="R511"' in (reply.header("proxy-status") or "")) == (503, True)
        assert not s.upstream.requests
        [first, *_] = await s.traces()
        assert (first["outcome"], first["error_code"]) == ("internal_error", "R511")


async def test_with_the_clients_own_key_the_upstream_tells_who_may(simulator: str):
    """A batch that the router never saw is passed on: its workspace is the upstream's matter."""
    async with stage(origin=simulator) as s:
        reply = await s.request("GET", f"{BATCHES}/msgbatch_never", None, key("anna"))
        assert (reply.status, reply.header("request-id") is not None) == (404, True)
        assert [row["attempts"][0]["status"] for row in await s.traces()] == [404]
