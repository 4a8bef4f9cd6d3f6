"""The deferred lane before an upstream that is in trouble, or odd: no job is lost, none is paid twice, none hangs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from kit.batch_upstream import PATH, BatchUpstream
from kit.deferred_jobs import SENT_AND_LATE, SOON, accepted, answered, keeper, name_of, said, set_pace
from kit.stage import KEY, always, message, request_body, stage, until

pytestmark = pytest.mark.anyio

PATIENT = always("deferred: {max_wait: 10ms, real_time_after: 1h}")
SHORT = {"quiet": 0.4, "create": 0.35}
TOGETHER = always("deferred: {max_wait: 1h, max_items: 3}")  # three jobs are a batch


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane at a pace that no test has to wait for."""
    set_pace(monkeypatch)


def _batch(*names: str) -> bytes:
    items = [{"custom_id": name, "params": json.loads(request_body("theirs"))} for name in names]
    return json.dumps({"requests": items}).encode()


def _foreign(**more: Any) -> dict[str, Any]:
    """An entry of the list of batches, of one that somebody else made."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    counts = {"processing": 0, "succeeded": 1}
    return {"id": "foreign", "processing_status": "ended", "created_at": now, "request_counts": counts, **more}


# Whose batch is it?


async def test_a_batch_of_equal_size_that_a_client_made_through_the_router_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is known to be the client's, so the lane's own was never made."""
    set_pace(monkeypatch, **SHORT)
    up = BatchUpstream()
    up.creations = ["made", "unseen"]
    async with stage(up.behave, policy=SOON) as s:
        assert (await s.post(_batch("one-item"), KEY, PATH)).status == 200
        path = await accepted(s)
        await until(lambda: len(up.batches) == 2)
        up.batches[1].end()
        assert said(await answered(s, path)) == f"for {name_of(path)}"
        assert keeper(s).counts["resent"] == 1


async def test_a_batch_whose_results_name_only_some_of_the_jobs_is_not_taken_for_theirs() -> None:
    up = BatchUpstream()
    up.creations = ["lost"]
    async with stage(up.behave, policy=always("deferred: {max_wait: 1h, max_items: 2}")) as s:
        paths = [await accepted(s, "one"), await accepted(s, "two")]
        await until(lambda: len(up.batches) == 1)
        [theirs, *_] = up.batches[0].items.values()
        up.add({name_of(paths[0]): theirs, "another": theirs}).end()
        await until(lambda: "msgbatch_2" in up.fetched)  # while the true one is still worked on
        up.batches[0].end()
        for path in paths:
            assert said(await answered(s, path)) == f"for {name_of(path)}"
        assert len(up.batches) == 2
        assert keeper(s).counts["settled"] == 1


async def test_a_client_cannot_name_an_item_of_its_batch_like_a_job() -> None:
    up = BatchUpstream()
    async with stage(up.behave, policy=SOON) as s:
        refused = await s.post(_batch("fine", "msgdef_" + "a1" * 16), KEY, PATH)
        assert (refused.status, said(refused)) == (400, "invalid_request_error")
        assert "msgdef_" in refused.json()["error"]["message"]
        assert not up.bodies
        assert (await s.post(_batch("msgdef_of_mine", "msgdef_" + "A1" * 16), KEY, PATH)).status == 200


@pytest.mark.parametrize("clock_s", [-3_600.0, 3_600.0])
async def test_a_clock_that_is_off_by_an_hour_makes_no_second_batch_of_one_whose_answer_was_lost(
    clock_s: float,
) -> None:
    up = BatchUpstream(ends_at_once=True)
    up.creations, up.clock_s = ["lost"], clock_s
    async with stage(up.behave, policy=SOON) as s:
        assert (await answered(s, await accepted(s))).status == 200
        assert len(up.batches) == len(up.bodies) == 1


async def test_odd_batches_of_somebody_else_hold_up_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    set_pace(monkeypatch, **SHORT)
    up = BatchUpstream(ends_at_once=True)
    up.creations = ["unseen"]
    up.foreign = [
        _foreign(),  # of as many items; its results are 404
        _foreign(request_counts={"processing": None, "succeeded": 1}),
        _foreign(request_counts={"processing": "1"}),
        _foreign(request_counts=None),
        _foreign(created_at=None),
        _foreign(id="../../models"),
        _foreign(id=7),
    ]
    async with stage(up.behave, policy=SOON) as s:
        assert (await answered(s, await accepted(s))).status == 200
        assert keeper(s).counts["resent"] == 1
        assert len(up.batches) == 1
        assert not any(b"models" in request.line for request in s.upstream.requests)


@pytest.mark.parametrize("name", ["a b\r\nx-evil: 1", "../../models", "x" * 5_000])
async def test_a_batch_whose_name_is_no_name_is_asked_for_nowhere_and_its_job_is_sent_again(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    set_pace(monkeypatch, **SHORT)
    up = BatchUpstream(ends_at_once=True)
    up.ids = [name]
    async with stage(up.behave, policy=SOON) as s:
        assert (await answered(s, await accepted(s))).status == 200
        assert len(up.batches) == 2
        asked = {request.line.split(b" ")[1].partition(b"?")[0].decode() for request in s.upstream.requests}
        assert asked == {PATH, f"{PATH}/msgbatch_2", f"{PATH}/msgbatch_2/results"}
        assert not any(name == b"x-evil" for request in s.upstream.requests for name, _ in request.headers)


# What the upstream does not answer


@pytest.mark.parametrize(
    ("what", "status", "creation"),
    [
        ("retrieve", "500", "made"),
        ("retrieve", "401", "made"),
        ("retrieve", "403", "made"),
        ("results", "500", "made"),
        ("results", "404", "made"),
        ("list", "500", "unseen"),
        ("list", "401", "unseen"),
    ],
)
async def test_an_upstream_that_does_not_say_how_a_batch_fares_holds_up_no_answer_in_real_time(
    what: str, status: str, creation: str
) -> None:
    up = BatchUpstream(ends_at_once=True)
    up.creations, up.refuses = [creation], {what: status}
    async with stage(up.behave, policy=SENT_AND_LATE) as s:
        path = await accepted(s)
        await until(lambda: up.refused > 0)
        reply = await answered(s, path)
        assert (reply.status, said(reply)) == (200, "at once")
        assert len(up.plain) == 1


async def test_some_looks_that_find_no_such_batch_end_no_job() -> None:
    """A replica that lags, a moment after the batch was made."""
    up = BatchUpstream(ends_at_once=True)
    up.refuses["retrieve"] = "404"
    async with stage(up.behave, policy=SOON) as s:
        path = await accepted(s)
        await until(lambda: up.refused >= 3)
        del up.refuses["retrieve"]
        assert said(await answered(s, path)) == f"for {name_of(path)}"


@pytest.mark.parametrize(("policy", "status", "text"), [(SOON, 409, "conflict_error"), (PATIENT, 200, "at once")])
async def test_a_batch_that_stays_unknown_is_given_up(
    monkeypatch: pytest.MonkeyPatch, policy: str, status: int, text: str
) -> None:
    set_pace(monkeypatch, **SHORT)
    up = BatchUpstream()
    up.refuses["retrieve"] = "404"
    async with stage(up.behave, policy=policy) as s:
        reply = await answered(s, await accepted(s))
        assert (reply.status, said(reply)) == (status, text)
        assert up.refused >= 2
        assert len(up.batches) == 1


# Odd lines of results

_NAMED = b'{"custom_id":"%b","result":'
_ERROR = b'{"type":"errored","error":{"type":"error","error":{"type":"api_error","message":"first"}}}}'
ODD_LINES = {
    "a byte order mark": b"\xef\xbb\xbf" + _NAMED + b'{"type":"succeeded","message":{"id":"msg_1"}}}',
    "bytes that are no UTF-8": _NAMED + b'{"type":"succeeded","message":{"id":"\xff\xfe"}}}',
    "no result": _NAMED + b"null}",
    "a result that is a list": _NAMED + b"[]}",
    "a message that is null": _NAMED + b'{"type":"succeeded","message":null}}',
    "an error that is text": _NAMED + b'{"type":"errored","error":"no"}}',
    "nested very deep": _NAMED + b'{"type":"succeeded","message":{"content":' + b"[" * 2_000 + b"]" * 2_000 + b"}}}",
    "a kind that nobody knows": _NAMED + b'{"type":"vanished"}}',
    "cut in the middle": _NAMED + b'{"type":"succeeded","mess',
    "not a line of JSON": b"<html>",
    "no line at all": b"",
    "another's name": b'{"custom_id":"another","result":' + _ERROR,
    "the same name twice": _NAMED + _ERROR + b"\n" + _NAMED + b'{"type":"succeeded","message":{"id":"msg_2"}}}',
}


async def test_an_odd_line_of_the_results_is_the_trouble_of_its_job_alone() -> None:
    up = BatchUpstream()
    async with stage(up.behave, policy=always(f"deferred: {{max_wait: 1h, max_items: {len(ODD_LINES) + 2}}}")) as s:
        paths = [await accepted(s, "first"), *[await accepted(s, odd) for odd in ODD_LINES], await accepted(s, "last")]
        await until(lambda: len(up.batches) == 1)
        batch = up.batches[0]
        batch.end()
        for number, (path, line) in enumerate(zip(paths[1:-1], ODD_LINES.values(), strict=True), 1):
            batch.lines[number] = line.replace(b"%b", name_of(path).encode())
        replies = {odd: await answered(s, path) for odd, path in zip(ODD_LINES, paths[1:-1], strict=True)}
        assert {odd: said(reply) for odd, reply in replies.items()} == dict.fromkeys(ODD_LINES, "api_error")
        assert {reply.status for reply in replies.values()} == {500}
        for path in (paths[0], paths[-1]):
            assert said(await answered(s, path)) == f"for {name_of(path)}"
        assert keeper(s).counts["failures"] == 0


async def test_a_message_whose_usage_is_odd_is_given_to_its_client_as_it_came() -> None:
    up = BatchUpstream()
    usages = [b"[1]", b'{"input_tokens":-5,"output_tokens":1.5,"x":[]}', b'{"input_tokens":99999999999999999999999}']
    odd = [b'{"id":5,"model":7,"stop_reason":{},"usage":' + usage + b"}" for usage in usages]
    async with stage(up.behave, policy=TOGETHER) as s:
        paths = [await accepted(s) for _ in odd]
        await until(lambda: len(up.batches) == 1)
        results = [b'{"type":"succeeded","message":' + text + b"}" for text in odd]
        up.batches[0].end(dict(zip(map(name_of, paths), results, strict=True)))
        for path, text in zip(paths, odd, strict=True):
            reply = await answered(s, path)
            assert (reply.status, reply.body) == (200, text)
        assert keeper(s).counts["failures"] == 0


async def test_a_job_whose_result_cannot_be_read_is_answered_in_real_time_where_it_may_be() -> None:
    up = BatchUpstream()
    async with stage(up.behave, policy=PATIENT) as s:
        path = await accepted(s)
        await until(lambda: len(up.batches) == 1)
        up.batches[0].end(dict.fromkeys(up.batches[0].items, b"null"))
        assert said(await answered(s, path)) == "at once"
        assert len(up.plain) == 1


# Refusals


@pytest.mark.parametrize("policy", [SOON, PATIENT])
async def test_an_error_of_the_api_is_the_answer_also_of_a_job_that_may_be_answered_in_real_time(policy: str) -> None:
    """To ask again what the API refuses would cost, and end the same."""
    up = BatchUpstream()
    wrong = b'{"type":"error","error":{"type":"invalid_request_error", "message":"too long"},"request_id":"req_9"}'
    async with stage(up.behave, policy=policy) as s:
        path = await accepted(s)
        await until(lambda: len(up.batches) == 1)
        up.batches[0].end(dict.fromkeys(up.batches[0].items, b'{"type":"errored","error":' + wrong + b"}"))
        reply = await answered(s, path)
        assert (reply.status, reply.body) == (400, wrong)
        assert not up.plain


async def test_a_page_of_something_in_between_is_no_refusal_of_the_api_and_the_batch_is_made_later() -> None:
    up = BatchUpstream(ends_at_once=True)
    up.creations = ["html", "html"]
    async with stage(up.behave, policy=SOON) as s:
        path = await accepted(s)
        assert said(await answered(s, path)) == f"for {name_of(path)}"
        assert (len(up.bodies), len(up.batches)) == (3, 1)


@pytest.mark.parametrize(("policy", "status", "text"), [(SOON, 403, "permission_error"), (PATIENT, 200, "at once")])
async def test_a_refusal_of_the_api_ends_the_job_or_has_it_answered_in_real_time(
    policy: str, status: int, text: str
) -> None:
    up = BatchUpstream()
    up.creations = ["403"]
    async with stage(up.behave, policy=policy) as s:
        reply = await answered(s, await accepted(s))
        assert (reply.status, said(reply)) == (status, text)
        assert (len(up.bodies), len(up.batches)) == (1, 0)


async def test_answers_of_a_batch_and_in_real_time_meet_and_the_first_one_stays() -> None:
    """The batch ends while its late job is being answered: what came in the batch cost, and is nobody's."""
    up = BatchUpstream()
    up.may_answer.clear()
    up.plain_answer = up.plain_answer.replace(b"at once", b"by hand")
    async with stage(up.behave, policy=SENT_AND_LATE) as s:
        path = await accepted(s)
        await until(lambda: len(up.plain) == 1)
        up.batches[0].end()
        reply = await answered(s, path)
        assert reply.body == message(f"for {name_of(path)}", model="claude-haiku-5-5")
        up.may_answer.set()
        await until(lambda: keeper(s).counts["real_time"] == 1)
        assert (await answered(s, path)).body == reply.body
