"""The catalogue follows the upstream's list of models; whatever is wrong with that list changes nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from kit.raw_upstream import Behaviour, Peer, raw_upstream
from kit.stage import always, chunked, http, stage, until

import router.simulator.service
from router.catalog.lookup import Catalog
from router.catalog_file import load_catalog
from router.seams import Upstream
from router.serve.headers import Credential
from router.serve.refresh import MAX_BYTES, MAX_PAGES, ModelRefresh
from router.simulator.record import Roster, load_roster
from router.simulator.server import served
from router.upstream.http1 import Http1Upstream

pytestmark = pytest.mark.anyio

HAIKU, OPUS = "claude-haiku-5-5", "claude-opus-5"
KEY = Credential(b"x-api-key", b"sk-of-the-router")
FILE = load_catalog()


class Refresh:
    """A refresher with what it said; asks once a minute unless told otherwise."""

    def __init__(self, upstream: Upstream, catalog: Catalog | None = None, *, every_s: float = 60.0, **more: Any):
        self.catalog = catalog or FILE.with_models(FILE.models)
        self.said: list[tuple[bool, str]] = []
        self.real = ModelRefresh(
            upstream, self.catalog, KEY, every_s,
            wall_clock=lambda: 1_800_000_000.0, observe=lambda is_ok, text: self.said.append((is_ok, text)), **more,
        )  # fmt: skip


@pytest.fixture
def roster(monkeypatch: pytest.MonkeyPatch) -> Roster:
    """The models of the next simulator: what is changed here holds for its list and for what it refuses."""
    made = load_roster()
    monkeypatch.setattr(router.simulator.service, "load_roster", lambda: made)
    return made


@pytest.fixture
def simulator(roster: Roster) -> Iterator[str]:
    with served() as origin:
        yield origin


def no_longer_takes(roster: Roster, model_id: str, kind: str) -> None:
    """From now on the model refuses that type of thinking."""
    model = roster.known(model_id)
    assert model is not None
    model.fields["thinking"]["accepts"].remove(kind)


def max_tokens(catalog: Catalog, model_id: str = HAIKU) -> int:
    model = catalog.find(model_id)
    assert model is not None
    return model.max_output_tokens


async def test_a_thinking_type_that_ended_is_no_longer_swapped_to(roster: Roster, simulator: str) -> None:
    """Before the refresh the API refuses the swapped request and the asked model answers after it; then at once."""
    off = {"model": OPUS, "thinking": {"type": "disabled"}}
    async with stage(policy=always(), origin=simulator) as s:
        catalog = s.app.catalog
        own = catalog.with_models(catalog.models)  # the shipped one is shared between tests
        try:
            await s.messages(text="one", **off)
            no_longer_takes(roster, HAIKU, "disabled")
            await s.messages(text="two", **off)
            refresh = Refresh(s.app.upstream, catalog)
            assert await refresh.real.once()
            await s.messages(text="three", **off)
            await s.messages(text="four", model=OPUS)
        finally:
            catalog.adopt(own)
        traces: list[dict[str, Any]] = []
        async with asyncio.timeout(10):
            while len(traces) < 4:
                traces = await s.traces()
    assert [[(a["model"], a["status"]) for a in trace["attempts"]] for trace in traces] == [
        [(HAIKU, 200)], [(HAIKU, 400), (OPUS, 200)], [(OPUS, 200)], [(HAIKU, 200)],
    ]  # fmt: skip
    assert any("`thinking.type` `disabled` is not taken" in line for line in traces[2]["why"])
    assert refresh.real.status()["changed"] == [HAIKU]
    assert refresh.said == [(True, f"other than the catalogue says: `{HAIKU}`")]


async def test_an_unchanged_list_changes_nothing_and_is_said_once(simulator: str) -> None:
    """The simulator's list and the file agree on every model, retired ones included."""
    upstream = Http1Upstream(simulator)
    refresh = Refresh(upstream)
    assert await refresh.real.once()
    assert await refresh.real.once()
    await upstream.close()
    assert refresh.catalog.models == FILE.models
    assert refresh.said == [(True, "every model takes what the catalogue says")]
    assert refresh.real.status() == {
        "every_s": 60.0, "refreshed": 2, "failed": 0, "last_success_s": 1_800_000_000.0, "failure": None,
        "changed": [], "notes": [],
    }  # fmt: skip


async def test_what_ended_comes_back_when_the_list_says_so(roster: Roster, simulator: str) -> None:
    """Each answer is laid over the file, not over the answer before it."""
    upstream = Http1Upstream(simulator)
    refresh = Refresh(upstream)
    no_longer_takes(roster, HAIKU, "disabled")
    assert await refresh.real.once()
    assert refresh.catalog.models != FILE.models
    model = roster.known(HAIKU)
    assert model is not None
    model.fields["thinking"]["accepts"].append("disabled")
    assert await refresh.real.once()
    await upstream.close()
    assert refresh.catalog.models == FILE.models


def page(*entries: object, more: object = False, last: object = None) -> bytes:
    """One page as an answer."""
    return http(json.dumps({"data": list(entries), "has_more": more, "first_id": None, "last_id": last}).encode())


def small(model_id: str = HAIKU, max_tokens: int = 7) -> dict[str, object]:
    return {"type": "model", "id": model_id, "max_tokens": max_tokens}


def in_turn(*answers: bytes) -> Behaviour:
    """One connection after the other or one for all: these answers in order, then silence."""
    left = list(answers)

    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            if left:
                peer.send(left.pop(0))

    return behave


async def test_pages_are_followed_and_taken_together() -> None:
    """`has_more` and `last_id` lead on; one key and one version go with each request, and nothing else of anybody."""
    answers = page(small(), more=True, last="claude/haiku?5"), page(small(OPUS, 8), last=OPUS)
    async with raw_upstream(in_turn(*answers)) as server:
        upstream = Http1Upstream(server.origin)
        refresh = Refresh(upstream)
        assert await refresh.real.once()
        await upstream.close()
    assert (max_tokens(refresh.catalog), max_tokens(refresh.catalog, OPUS)) == (7, 8)
    first, second = server.requests
    target = b"/v1/models?beta=true&limit=1000" + b"".join(
        b"&lifecycle%5B%5D=" + name for name in (b"active", b"deprecated", b"retired")
    )
    assert first.line == b"GET " + target + b" HTTP/1.1"
    assert second.line == b"GET " + target + b"&after_id=claude%2Fhaiku%3F5 HTTP/1.1"
    assert dict(first.headers) == {
        b"host": b"127.0.0.1:%d" % server.port, b"x-api-key": b"sk-of-the-router",
        b"anthropic-version": b"2023-06-01", b"accept": b"application/json", b"accept-encoding": b"identity",
    }  # fmt: skip


LONG = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b" " * 65_536) * (MAX_BYTES // 65_536 + 1)
HOSTILE = {
    "not json": (http(b"<p>hi</p>"), "the answer is not JSON"),
    "empty": (http(b""), "the answer is not JSON"),
    "nothing but nesting": (http(b"[" * 200_000), "the answer is not JSON"),
    "a number that is none": (http(b'{"data":[NaN],"has_more":false}'), "the answer is not JSON"),
    "half of it": (b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{", ""),
    "a list": (http(b"[]"), "the answer is no page of models"),
    "null": (http(b"null"), "the answer is no page of models"),
    "data is text": (http(b'{"data":"all","has_more":false}'), "the answer is no page of models"),
    "has_more is text": (page(small(), more="no"), "the answer is no page of models"),
    "no models": (page(), "no model of the catalogue is listed"),
    "wrong entries": (page(1, None, [], {"id": 5}, {"id": [HAIKU]}), "no model of the catalogue is listed"),
    "too many entries": (page(*[small()] * 2_001), "more than 2000 models"),
    "no last_id": (page(small(), more=True), "the pages do not end: `last_id` does not lead on"),
    "a long last_id": (page(small(), more=True, last="x" * 257), "the pages do not end: `last_id` does not lead on"),
    "too large": (http(b" " * (MAX_BYTES + 1)), f"the answer is longer than {MAX_BYTES} bytes"),
    "too large in chunks": (LONG, f"the answer is longer than {MAX_BYTES} bytes"),
    "html 502": (http(b"<html>bad gateway", "502 Bad Gateway", kind="text/html"), "the upstream answered 502"),
    "a wrong key": (http(b"{}", "401 Unauthorized"), "the upstream answered 401"),
    "a redirect": (http(b"", "302 Found", ("location", "http://127.0.0.1:9/")), "the upstream answered 302"),
    "not http": (b"\x16\x03\x01 hello\r\n\r\n", ""),
    "closed": (b"", ""),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_answer_changes_nothing_and_is_counted(name: str) -> None:
    """What was learned before stays in force, and the connection is not left half read."""
    answer, failure = HOSTILE[name]
    good = [page(small())]

    async def behave(peer: Peer) -> None:
        while good:
            await peer.request()
            peer.send(good.pop())
        await peer.request()
        peer.send(answer)
        with suppress(ConnectionError):
            await peer.writer.drain()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        refresh = Refresh(upstream)
        assert await refresh.real.once()
        before = refresh.catalog.models
        assert not await refresh.real.once()
        await until(lambda: upstream.stats()["open"] == upstream.stats()["idle"])
        await upstream.close()
    status = refresh.real.status()
    assert refresh.catalog.models == before
    assert max_tokens(refresh.catalog) == 7
    assert (status["refreshed"], status["failed"], status["changed"]) == (1, 1, [HAIKU])
    assert failure in status["failure"] != ""
    assert refresh.said[1:] == [(False, status["failure"])]
    assert refresh.real.stats() == {"refreshed": 1, "failed": 1, "changed": 1}


@pytest.mark.parametrize("is_loop", [True, False])
async def test_pages_without_end_are_given_up(is_loop: bool) -> None:
    """The same `last_id` again, or always another one."""
    asked = 0

    async def behave(peer: Peer) -> None:
        nonlocal asked
        while True:
            await peer.request()
            asked += 1
            peer.send(page(small(), more=True, last="again" if is_loop else f"m-{asked}"))

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        refresh = Refresh(upstream)
        assert not await refresh.real.once()
        await upstream.close()
    assert asked == (2 if is_loop else MAX_PAGES)
    assert refresh.catalog.models == FILE.models


@pytest.mark.parametrize("piece", [b"", b" "], ids=["silent", "dripping"])
async def test_a_hanging_upstream_is_left_at_the_deadline(piece: bytes) -> None:
    """The deadline is for the whole refresh, so that a byte now and then buys no time."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        if piece:
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while piece:
            peer.send(piece)
            with suppress(TimeoutError):  # the pace of the drops, unless the other side is gone
                async with asyncio.timeout(0.01):
                    if not await peer.reader.read(1):
                        return
        await peer.closed()

    async with raw_upstream(behave) as server:
        upstream = Http1Upstream(server.origin)
        refresh = Refresh(upstream, deadline_s=0.1)
        assert not await refresh.real.once()
        await until(lambda: upstream.stats()["open"] == 0)
        await upstream.close()
    assert refresh.said == [(False, "no whole answer within 0.1 s")]


async def test_an_upstream_that_is_not_there_is_a_failure() -> None:
    """Nothing listens."""
    async with raw_upstream(in_turn()) as server:
        pass
    upstream = Http1Upstream(server.origin)
    refresh = Refresh(upstream)
    assert not await refresh.real.once()
    await upstream.close()
    assert refresh.real.status()["failed"] == 1


async def test_it_goes_on_asking_and_tells_only_what_is_new() -> None:
    """Failures in a row are said once; the success after them is said again."""
    bad = http(b"no", "503 Service Unavailable")
    turns = [page(small()), page(small()), bad, bad, page(small()), page(small(max_tokens=9)), page(small(OPUS))]
    async with raw_upstream(in_turn(*turns)) as server:
        upstream = Http1Upstream(server.origin)
        refresh = Refresh(upstream, every_s=0.001)
        stop = asyncio.Event()
        running = asyncio.ensure_future(refresh.real.run(stop))
        await until(lambda: refresh.real.status()["changed"] == [OPUS])
        stop.set()
        await running
        await upstream.close()
    haiku, opus = (f"other than the catalogue says: `{name}`" for name in (HAIKU, OPUS))
    assert refresh.said == [(True, haiku), (False, "the upstream answered 503"), (True, haiku), (True, opus)]
    assert refresh.real.stats() == {"refreshed": 5, "failed": 2, "changed": 1}


async def test_the_end_of_the_program_does_not_wait_for_a_refresh() -> None:
    """A refresh under way is given up, without counting as a failure; none begins after that."""
    async with raw_upstream(in_turn(page(small(), more=True, last="next"))) as server:
        upstream = Http1Upstream(server.origin)
        refresh = Refresh(upstream)
        stop = asyncio.Event()
        running = asyncio.ensure_future(refresh.real.run(stop))
        await until(lambda: len(server.requests) == 2)
        stop.set()
        async with asyncio.timeout(1.0):
            await running
        assert not await refresh.real.once()
        await upstream.close()
        assert len(server.requests) == 2
    assert (refresh.real.status()["failed"], refresh.said) == (0, [])


async def test_a_cancelled_run_leaves_nothing_behind() -> None:
    """Neither a task nor a connection."""
    before = asyncio.all_tasks()
    async with raw_upstream(in_turn()) as server:
        upstream = Http1Upstream(server.origin)
        refresh = Refresh(upstream)
        running = asyncio.ensure_future(refresh.real.run(asyncio.Event()))
        await until(lambda: server.connections == 1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: upstream.stats()["open"] == 0)
        await upstream.close()
    await until(lambda: asyncio.all_tasks() == before)
