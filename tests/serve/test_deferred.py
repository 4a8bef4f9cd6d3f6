"""`Prefer: respond-async` through the real router, before the simulator and before scripted upstreams."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.batch_upstream import BatchUpstream
from kit.stage import KEY, WAIT_S, Reply, Stage, always, message, request_body, stage, until

import router.deferring
from router.jobs.deferred import Requested
from router.serve.deferred.kit import Pace
from router.serve.deferred.words import Joined, Said
from router.simulator.server import served
from router.simulator.settings import SimulatorSettings
from router.trace.record import TraceQuery
from router.trace.sqlite import SqliteTraceReader
from router.usage import UsageMeter

pytestmark = pytest.mark.anyio

LANE = (b"prefer", b"respond-async")
QUICK = Pace(look=0.05, lease=5.0, polls=(0.02, 0.1), create=1.0, quiet=1.5, again=(0.02, 0.1), breath=0.0)
SOON = always("deferred: {max_wait: 10ms}")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane at a pace that no test has to wait for."""
    monkeypatch.setattr(router.deferring, "Pace", lambda: QUICK)


async def asked(s: Stage, *more: tuple[bytes, bytes], **body: Any) -> Reply:
    return await s.messages(LANE, *more, **body)


def place(reply: Reply) -> str:
    """The path of the `Location` of a 202."""
    assert reply.status == 202, reply.body
    location = reply.header("location")
    assert location is not None
    return location[location.index("/v1/") :]


async def fetched(s: Stage, path: str, headers: list[tuple[bytes, bytes]] | None = None) -> Reply:
    """The answer of a job, as soon as it has ended."""
    async with asyncio.timeout(WAIT_S):
        while True:
            reply = await s.request("GET", path, None, [*(headers or KEY), (b"prefer", b"wait=5")])
            if reply.status != 202:
                return reply


async def rows(s: Stage, count: int, store: Path | None = None, **query: Any) -> list[dict[str, Any]]:
    """The traces that a query finds, once there are that many."""
    assert s.app.traces is not None
    async with asyncio.timeout(WAIT_S):
        while True:
            await asyncio.to_thread(s.app.traces.flush)
            reader = SqliteTraceReader(store or s.folder / "traces.db")
            found = await asyncio.to_thread(reader.list, TraceQuery(limit=1_000, **query))
            if len(found) >= count:
                assert len(found) == count
                return found


@asynccontextmanager
async def lane(policy: str = SOON, simulator: SimulatorSettings | None = None, **settings: Any) -> AsyncIterator[Stage]:
    """A router before a simulator."""
    with served(simulator) as origin:
        async with stage(origin=origin, policy=policy, **settings) as s:
            yield s


async def test_a_request_that_can_wait_is_accepted_and_answered_later_with_the_very_message() -> None:
    async with lane() as s:
        accepted = await asked(s, text="Classify this ticket")
        assert accepted.header("preference-applied") == "respond-async"
        assert int(accepted.header("retry-after") or 0) >= 1
        assert accepted.json()["status"] == "pending"
        assert accepted.header("x-router-lane") == "haiku"
        reply = await fetched(s, place(accepted))
        assert reply.status == 200
        assert reply.json()["type"] == "message"
        assert reply.json()["model"] == "claude-haiku-5-5"
        assert reply.json()["usage"]["service_tier"] == "batch"
        assert float(reply.header("x-router-cost-usd") or 0) > 0
        assert float(reply.header("x-router-saved-usd") or 0) > 0
        again = await fetched(s, place(accepted))
        assert again.body == reply.body


async def test_a_client_that_waits_gets_the_answer_on_the_same_connection() -> None:
    async with lane() as s:
        reply = await asked(s, (b"prefer", b"wait=9"), text="Classify this ticket")
        assert reply.status == 200
        assert reply.json()["type"] == "message"
        assert reply.header("preference-applied") == "respond-async, wait=9"


async def test_requests_that_come_together_share_one_batch_and_each_gets_its_own_answer() -> None:
    up = BatchUpstream(ends_at_once=True)
    async with stage(up.behave, policy=always("deferred: {max_wait: 300ms}")) as s:
        accepted = await asyncio.gather(*(asked(s, text=f"ticket {n}") for n in range(20)))
        answers_ = await asyncio.gather(*(fetched(s, place(each)) for each in accepted))
        assert len(up.batches) == 1
        named = [reply.json()["content"][0]["text"] for reply in answers_]
        assert named == [f"for {place(each).rpartition('/')[2]}" for each in accepted]
        texts = [item["messages"][0]["content"] for item in up.batches[0].items.values()]
        assert sorted(texts) == sorted(f"ticket {n}" for n in range(20))


async def test_the_message_is_the_upstreams_byte_for_byte_and_so_is_the_request_but_for_the_model() -> None:
    up = BatchUpstream(ends_at_once=True)
    spaced = (
        b'{ "model" : "claude-sonnet-5-5","max_tokens":9, "metadata": {"user_id":"\\u00e9"},'
        b'"messages":[{"role":"user","content":"Hi"}] }'
    )
    async with stage(up.behave, policy=SOON) as s:
        accepted = await s.post(spaced, [*KEY, LANE])
        reply = await fetched(s, place(accepted))
        job = place(accepted).rpartition("/")[2]
        assert reply.body == message(f"for {job}", model="claude-haiku-5-5")
        params = spaced.replace(b"sonnet", b"haiku")
        assert up.bodies[0] == b'{"requests":[{"custom_id":"' + job.encode() + b'","params":' + params + b"}]}"


async def test_half_a_surrogate_pair_in_an_answer_is_passed_on_as_it_came() -> None:
    up = BatchUpstream()
    async with stage(up.behave, policy=SOON) as s:
        accepted = await asked(s, text="odd")
        await until(lambda: bool(up.batches))
        odd = message("odd", model="claude-haiku-5-5").replace(b'"odd"', b'"\\ud83d"')
        up.batches[0].end(dict.fromkeys(up.batches[0].items, b'{"type":"succeeded","message":' + odd + b"}"))
        reply = await fetched(s, place(accepted))
        assert reply.body == odd
        assert len(await rows(s, 1, endpoint="batch_item")) == 1


async def test_a_batch_has_no_more_items_than_the_rule_says_and_a_full_one_does_not_wait() -> None:
    up = BatchUpstream(ends_at_once=True)
    async with stage(up.behave, policy=always("deferred: {max_wait: 1h, max_items: 3}")) as s:
        accepted = await asyncio.gather(*(asked(s, text=f"{n}") for n in range(7)))
        await until(lambda: len(up.batches) == 2)
        assert [len(batch.items) for batch in up.batches] == [3, 3]
        sent = {name for batch in up.batches for name in batch.items}
        waiting = [each for each in accepted if place(each).rpartition("/")[2] not in sent]
        reply = await s.request("GET", place(waiting[0]), None, KEY)
        assert reply.status == 202
        assert reply.header("retry-after") == "30"


async def test_requests_that_the_api_reads_differently_share_no_batch() -> None:
    up = BatchUpstream(ends_at_once=True)
    async with stage(up.behave, policy=SOON) as s:
        first = await asked(s, text="one")
        second = await asked(s, (b"anthropic-beta", b"a-beta-2026-01-01"), text="two")
        third = await s.messages(LANE, text="three", target="/v1/messages?beta=true")
        for each in (first, second, third):
            assert (await fetched(s, place(each))).status == 200
        assert len(up.batches) == 3
        betas = {dict(headers).get(b"anthropic-beta") for headers in up.headers}
        assert betas == {None, b"a-beta-2026-01-01"}


async def test_what_an_answer_cost_is_booked_once_and_saved_counts_from_the_price_at_once() -> None:
    async with lane() as s:
        accepted = await asked(s, text="Classify this ticket", model="claude-sonnet-5-5")
        reply = await fetched(s, place(accepted))
        plain = await s.messages(text="Classify this ticket", model="claude-sonnet-5-5")
        assert plain.status == 200
        items = await rows(s, 1, endpoint="batch_item")
        [item] = items
        assert item["cost_usd"] == Decimal(reply.header("x-router-cost-usd") or "0")
        usage, catalog = reply.json()["usage"], s.app.catalog
        used = UsageMeter("claude-haiku-5-5")
        used.message(reply.json())
        told = used.usage()
        assert told is not None
        half = catalog.cost(told, "claude-haiku-5-5")
        full = catalog.baseline(replace(told, service_tier="standard"), "claude-sonnet-5-5", "claude-haiku-5-5")
        assert usage["service_tier"] == "batch"
        assert Decimal(item["cost_usd"]) * 10**12 == half
        assert Decimal(item["baseline_usd"]) * 10**12 == full
        assert half is not None
        assert half * 2 == catalog.cost(replace(told, service_tier="standard"), "claude-haiku-5-5")
        assert item["rule"] == "always"
        [taken] = [row for row in await s.traces() if row["endpoint"] == "deferred" and row["status"] == 202][:1]
        assert any("deferred as `msgdef_" in why for why in taken["why"])


async def test_an_answer_that_is_known_already_is_given_at_once() -> None:
    up = BatchUpstream()
    async with stage(up.behave, policy=always("cache: {ttl: 1h}\ndeferred: {max_wait: 10ms}")) as s:
        plain = await s.messages(text="the same")
        reply = await asked(s, text="the same")
        assert reply.status == 200
        assert reply.header("x-router-cache") == "hit"
        assert reply.header("preference-applied") is None
        assert reply.body == plain.body
        assert not up.bodies


async def test_an_answer_that_came_later_is_known_from_then_on_where_the_rule_caches() -> None:
    up = BatchUpstream(ends_at_once=True)
    async with stage(up.behave, policy=always("cache: {ttl: 1h}\ndeferred: {max_wait: 10ms}")) as s:
        later = await fetched(s, place(await asked(s, text="the same")))
        plain = await s.messages(text="the same")
        assert plain.header("x-router-cache") == "hit"
        assert plain.body == later.body
        assert not up.plain


@pytest.mark.parametrize(
    ("policy", "body", "why"),
    [
        (always("deferred: deny"), {}, "deferred: deny"),
        (SOON, {"stream": True}, "stream: not supported"),
        (SOON, {"speed": "fast"}, "speed: not supported"),
    ],
)
async def test_a_preference_that_cannot_be_honoured_is_passed_over_and_the_trace_says_why(
    policy: str, body: dict[str, Any], why: str
) -> None:
    up = BatchUpstream()
    async with stage(up.behave, policy=policy) as s:
        reply = await asked(s, text="now", **body)
        assert reply.status == 200
        assert reply.header("preference-applied") is None
        assert any(why in said for said in (await s.trace())["why"])
        assert len(up.plain) == 1


async def test_without_a_store_that_outlives_the_process_requests_are_answered_at_once() -> None:
    up = BatchUpstream()
    async with stage(up.behave, policy=SOON, traces="off") as s:
        reply = await asked(s, text="now")
        assert reply.status == 200
        assert reply.header("preference-applied") is None


async def test_a_rule_may_take_only_requests_that_can_wait() -> None:
    up = BatchUpstream(ends_at_once=True)
    async with stage(up.behave, policy=always("deferred: {mode: require, max_wait: 10ms}")) as s:
        refused = await s.messages(text="now")
        assert refused.status == 400
        assert "Prefer: respond-async" in refused.json()["error"]["message"]
        assert (await asked(s, text="now", stream=True)).status == 400
        assert (await fetched(s, place(await asked(s, text="later")))).status == 200
        assert not up.plain


async def test_an_item_that_the_api_refuses_ends_with_that_error_and_its_status() -> None:
    async with lane() as s:
        accepted = await asked(s, text="Hi", max_tokens=10_000_000)
        reply = await fetched(s, place(accepted))
        assert reply.status == 400
        assert reply.json()["error"]["type"] == "invalid_request_error"
        assert "max_tokens" in reply.json()["error"]["message"]


async def test_a_job_is_its_tenants_alone() -> None:
    async with lane() as s:
        accepted = await asked(s, text="mine")
        await fetched(s, place(accepted))
        other = [(b"x-api-key", b"sk-test-2"), (b"anthropic-version", b"2023-06-01")]
        for method in ("GET", "DELETE"):
            reply = await s.request(method, place(accepted), None, other)
            assert reply.status == 404
            assert reply.json()["error"]["type"] == "not_found_error"
        assert (await s.request("GET", place(accepted), None, KEY)).status == 200
        for name in ("msgdef_nothing", "msgdef_" + "0" * 32, "../batches"):
            assert (await s.request("GET", f"/v1/messages/deferred/{name}", None, KEY)).status == 404


async def test_a_job_that_is_canceled_before_it_is_sent_never_goes_up() -> None:
    up = BatchUpstream()
    async with stage(up.behave, policy=always("deferred: {max_wait: 1h}")) as s:
        accepted = await asked(s, text="never mind")
        reply = await s.request("DELETE", place(accepted), None, KEY)
        assert (reply.status, reply.json()["type"]) == (200, "deferred_message_deleted")
        assert (await s.request("GET", place(accepted), None, KEY)).status == 404
        assert (await s.request("DELETE", place(accepted), None, KEY)).status == 404
        assert not up.bodies


async def test_a_batch_whose_every_job_was_canceled_is_canceled_too_and_what_it_cost_is_booked_without_a_saving() -> (
    None
):
    up = BatchUpstream()
    async with stage(up.behave, policy=SOON) as s:
        accepted = await asked(s, text="too late")
        await until(lambda: bool(up.batches))
        await s.request("DELETE", place(accepted), None, KEY)
        await until(lambda: up.batches[0].is_canceled)
        up.batches[0].end()
        [item] = await rows(s, 1, endpoint="batch_item")
        assert item["outcome"] == "client_closed"
        assert Decimal(item["saved_usd"]) == -Decimal(item["cost_usd"]) < 0
        assert (await s.request("GET", place(accepted), None, KEY)).status == 404


async def test_a_late_job_is_answered_in_real_time_and_both_costs_are_in_the_trace() -> None:
    up = BatchUpstream()
    async with stage(up.behave, policy=always("deferred: {max_wait: 10ms, real_time_after: 200ms}")) as s:
        accepted = await asked(s, text="quick after all")
        reply = await fetched(s, place(accepted))
        assert reply.status == 200
        assert reply.json()["content"][0]["text"] == "at once"
        assert len(up.plain) == 1
        await until(lambda: up.batches[0].is_canceled)
        up.batches[0].end()
        [item] = await rows(s, 1, endpoint="batch_item")
        assert item["outcome"] == "cut"
        [late] = await rows(s, 1, endpoint="messages")
        assert late["batch"] == "msgbatch_1"
        said = " ".join(late["why"])
        assert "late: batch `msgbatch_1` did not answer it in time" in said
        assert f"answered at once for ${late['cost_usd']}; in a batch it would have cost $" in said
        assert (await fetched(s, place(accepted))).body == reply.body


async def test_a_job_of_a_batch_that_expired_ends_with_an_error_or_in_real_time() -> None:
    up = BatchUpstream()
    async with stage(up.behave, policy=SOON) as s:
        accepted = await asked(s, text="late")
        await until(lambda: bool(up.batches))
        up.batches[0].end(dict.fromkeys(up.batches[0].items, b'{"type":"expired"}'))
        reply = await fetched(s, place(accepted))
        assert (reply.status, reply.json()["error"]["type"]) == (504, "timeout_error")
        s.write_policy(always("deferred: {max_wait: 10ms, real_time_after: 1h}"))
        s.app.policies.load()
        accepted = await asked(s, text="late again")
        await until(lambda: len(up.batches) == 2)
        up.batches[1].end(dict.fromkeys(up.batches[1].items, b'{"type":"expired"}'))
        assert (await fetched(s, place(accepted))).json()["content"][0]["text"] == "at once"


async def test_a_creation_that_is_refused_for_now_is_made_again_later() -> None:
    up = BatchUpstream(ends_at_once=True)
    up.creations = ["429", "529"]
    async with stage(up.behave, policy=SOON) as s:
        assert (await fetched(s, place(await asked(s, text="patience")))).status == 200
        assert len(up.bodies) == 3
        assert len(up.batches) == 1


async def test_jobs_of_a_batch_that_is_refused_as_a_whole_are_tried_in_smaller_ones_and_only_the_bad_one_fails() -> (
    None
):
    up = BatchUpstream(ends_at_once=True)
    up.creations = ["400", "made", "400", "made", "400"]
    async with stage(up.behave, policy=always("deferred: {max_wait: 1h, max_items: 4}")) as s:
        accepted = await asyncio.gather(*(asked(s, text=f"{n}") for n in range(4)))
        replies = await asyncio.gather(*(fetched(s, place(each)) for each in accepted))
        assert sorted(reply.status for reply in replies) == [200, 200, 200, 400]
        assert sorted(len(json.loads(body)["requests"]) for body in up.bodies) == [1, 1, 2, 2, 4]


async def test_a_credential_that_is_refused_ends_the_job_with_the_upstreams_own_words() -> None:
    up = BatchUpstream()
    up.creations = ["401"]
    async with stage(up.behave, policy=SOON) as s:
        reply = await fetched(s, place(await asked(s, text="who am I")))
        assert (reply.status, reply.json()["error"]["type"]) == (401, "authentication_error")


async def test_a_creation_whose_answer_is_lost_is_found_in_the_list_and_not_made_again() -> None:
    up = BatchUpstream(ends_at_once=True)
    up.creations = ["lost"]
    up.add({"somebody-elses": {"model": "claude-haiku-5-5"}})
    async with stage(up.behave, policy=SOON) as s:
        reply = await fetched(s, place(await asked(s, text="once")))
        assert reply.status == 200
        assert len(up.bodies) == 1
        assert s.app.deferred is not None
        assert s.app.deferred.keeper.stats()["settled"] == 1


async def test_a_creation_that_never_arrived_is_made_again_when_nothing_can_be_on_its_way() -> None:
    up = BatchUpstream(ends_at_once=True)
    up.creations = ["unseen"]
    async with stage(up.behave, policy=SOON) as s:
        reply = await fetched(s, place(await asked(s, text="again")))
        assert reply.status == 200
        assert len(up.bodies) == 2
        assert len(up.batches) == 1
        assert up.bodies[0] == up.bodies[1]


async def test_another_process_goes_on_where_one_stopped_as_soon_as_the_client_asks(tmp_path: Path) -> None:
    up = BatchUpstream()
    kept: dict[str, Any] = {"traces": f"sqlite:///{tmp_path}/traces.db", "policy": SOON}
    async with stage(up.behave, **kept) as s:
        sent = await asked(s, text="sent")
        await until(lambda: bool(up.batches))
    up.batches[0].end()
    async with stage(up.behave, **kept) as s:
        reply = await fetched(s, place(sent))
        assert reply.status == 200
        assert len(up.bodies) == 1
        [item] = await rows(s, 1, tmp_path / "traces.db", endpoint="batch_item")
        assert item["outcome"] == "ok"


async def test_where_the_router_holds_the_key_it_goes_on_by_itself(tmp_path: Path) -> None:
    up = BatchUpstream(ends_at_once=True)
    sha256 = hashlib.sha256(b"sk-of-anna").hexdigest()
    (tmp_path / "keys.yaml").write_text(f"keys:\n  - name: anna\n    sha256: {sha256}\n    tenant: a\n")
    kept: dict[str, Any] = {"traces": f"sqlite:///{tmp_path}/traces.db", "keys": str(tmp_path / "keys.yaml")}
    kept["upstream_api_key"] = "sk-owner"
    anna = [(b"x-api-key", b"sk-of-anna"), (b"anthropic-version", b"2023-06-01")]
    async with stage(up.behave, policy=always("deferred: {max_wait: 300ms}"), **kept) as s:
        accepted = await s.request("POST", "/v1/messages", request_body(), [*anna, LANE])
        assert accepted.status == 202
        assert not up.batches
    async with stage(up.behave, policy=SOON, **kept) as s:
        await until(lambda: bool(up.batches))
        assert (await fetched(s, place(accepted), anna)).status == 200
        assert dict(up.headers[0])[b"x-api-key"] == b"sk-owner"
        [item] = await rows(s, 1, tmp_path / "traces.db", endpoint="batch_item")
        assert (item["tenant"], item["key"]) == ("a", "anna")


async def test_the_same_call_under_one_idempotency_key_is_one_job() -> None:
    up = BatchUpstream(ends_at_once=True)
    async with stage(up.behave, policy=always("deferred: {max_wait: 1s}")) as s:
        first = await asked(s, (b"idempotency-key", b"order-7"), text="once")
        second = await asked(s, (b"idempotency-key", b"order-7"), text="once")
        third = await asked(s, (b"idempotency-key", b"order-7"), text="another")
        assert place(first) == place(second) != place(third)
        await fetched(s, place(third))
        assert [len(batch.items) for batch in up.batches] == [2]


async def test_a_call_whose_job_was_canceled_is_a_new_job_when_it_is_sent_again() -> None:
    up = BatchUpstream()
    async with stage(up.behave, policy=SOON) as s:
        first = await asked(s, (b"idempotency-key", b"order-8"), text="once")
        await until(lambda: bool(up.batches))
        await s.request("DELETE", place(first), None, KEY)
        again = await asked(s, (b"idempotency-key", b"order-8"), text="once")
        assert place(again) != place(first)
        await until(lambda: len(up.batches) == 2)
        up.batches[1].end()
        assert (await fetched(s, place(again))).status == 200


async def test_results_of_the_lane_that_a_client_fetches_itself_take_nothing_from_the_books() -> None:
    up = BatchUpstream()
    async with stage(up.behave, policy=SOON) as s:
        accepted = await asked(s, text="mine")
        await until(lambda: bool(up.batches))
        up.batches[0].end()
        results = await s.request("GET", "/v1/messages/batches/msgbatch_1/results", None, KEY)
        assert results.status == 200
        await fetched(s, place(accepted))
        [item] = await rows(s, 1, endpoint="batch_item")
        assert (item["rule"], item["method"]) == ("always", "POST")
        assert item["saved_usd"] > 0


async def test_a_rule_that_takes_only_what_waits_refuses_where_nothing_can_be_kept() -> None:
    up = BatchUpstream()
    async with stage(up.behave, policy=always("deferred: require"), traces="off") as s:
        reply = await asked(s, text="later")
        assert reply.status == 503
        assert "no store for them" in reply.json()["error"]["message"]
        assert not up.plain


async def test_a_store_that_cannot_be_written_accepts_nothing(tmp_path: Path) -> None:
    up = BatchUpstream()
    async with stage(up.behave, policy=SOON, jobs=f"sqlite:///{tmp_path}/jobs.db") as s:
        (tmp_path / "jobs.db").mkdir()
        reply = await asked(s, text="keep this")
        assert reply.status == 503
        assert reply.header("location") is None
        assert not up.plain
        assert not up.bodies


async def test_a_connection_that_is_held_is_let_go_with_a_202_when_the_router_stops() -> None:
    up = BatchUpstream()
    async with stage(up.behave, policy=SOON) as s:
        holding = asyncio.ensure_future(asked(s, (b"prefer", b"wait=600"), text="long"))
        await until(lambda: bool(up.batches))
        s.app.drain()
        assert (await holding).status == 202


@given(
    st.lists(
        st.tuples(st.binary(max_size=40), st.integers(0, 40), st.integers(0, 40), st.text(max_size=5)), min_size=1
    ),
    st.integers(1, 64),
)
def test_the_body_of_a_batch_is_joined_in_pieces_of_any_size(
    said: list[tuple[bytes, int, int, str]], most_bytes: int
) -> None:
    jobs, params = [], []
    for number, (body, one, other, new) in enumerate(said):
        start, end = sorted((min(one, len(body)), min(other, len(body))))
        each = Said([], b"/v1/messages", b"", body, start, end, new.encode("utf-8", "replace") if start < end else b"")
        jobs.append(Requested(f"job{number}", b"", each.packed()))
        params.append(b'{"custom_id":"job%d","params":%b}' % (number, each.params()))
    joined = Joined(jobs)
    pieces = [bytes(piece) for piece in joined.pieces(most_bytes)]
    assert b"".join(pieces) == b'{"requests":[' + b",".join(params) + b"]}"
    assert len(joined) == sum(map(len, pieces))
    assert all(0 < len(piece) <= most_bytes for piece in pieces)


async def test_the_official_library_can_ask_and_poll() -> None:
    async with lane() as s, anthropic.AsyncAnthropic(base_url=s.url, api_key="sk-test-1", max_retries=0) as client:
        raw = await client.messages.with_raw_response.create(
            model="claude-sonnet-5-5",
            max_tokens=40,
            messages=[{"role": "user", "content": "Classify this ticket."}],
            extra_headers={"prefer": "respond-async"},
        )
        assert raw.status_code == 202
        answer = await client.get(
            raw.headers["location"], cast_to=anthropic.types.Message, options={"headers": {"prefer": "wait=9"}}
        )
        assert answer.type == "message"
        assert answer.usage.service_tier == "batch"
