"""Whole requests through a real router to a real receiver, compared with spans written down in `golden_spans/`.

`GOLDEN=write pytest tests/trace/test_otlp_golden.py` writes them anew; read the difference before you keep it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from kit.driven_upstream import driven, under_way
from kit.otlp_receiver import OtlpReceiver, otlp_receiver
from kit.stage import Stage, always, answers, error, events, http, message, stage, streams

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).parent / "golden_spans"
USAGE = (
    b'{"input_tokens":100,"cache_read_input_tokens":2000,"cache_creation_input_tokens":300,'
    b'"cache_creation":{"ephemeral_5m_input_tokens":100,"ephemeral_1h_input_tokens":200},"output_tokens":50,'
    b'"output_tokens_details":{"thinking_tokens":20}}'
)
PLAIN = message(model="claude-haiku-5-5").replace(b'{ "input_tokens":100,  "output_tokens" : 10 }', USAGE)
HAIKU = always("tags: [team-a]")
CACHED = always("cache: {ttl: 1h}")
FALLBACK = always("retry: 1", route="[haiku, sonnet]")


async def plain(s: Stage) -> None:
    """One whole answer, from another model than the one asked for, with all kinds of tokens."""
    assert (await s.messages(output_config={"effort": "high"})).status == 200


async def stream(s: Stage) -> None:
    """One stream."""
    assert (await s.messages(stream=True)).is_whole


async def refused_twice(s: Stage) -> None:
    """Two refusals of one lane, then the next lane serves."""
    assert (await s.messages()).status == 200


async def twice(s: Stage) -> None:
    """The same request again: the second is a hit."""
    assert (await s.messages()).header("x-router-cache") == "miss"
    assert (await s.messages()).header("x-router-cache") == "hit"


async def refused(s: Stage) -> None:
    """The client's mistake, said by the upstream."""
    assert (await s.messages()).status == 400


async def failed(s: Stage) -> None:
    """A failure of the upstream that ends the walk."""
    assert (await s.messages()).status == 500


async def denied(s: Stage) -> None:
    """A rule that denies: decided, and no call."""
    assert (await s.messages()).status == 403


async def nobody(s: Stage) -> None:
    """No credential: neither decided nor called."""
    assert (await s.post(b"{}", headers=[])).status == 401


async def counted(s: Stage) -> None:
    """A count: no chat, the attempt stands under the request."""
    assert (await s.messages(target="/v1/messages/count_tokens")).status == 200


async def of_a_batch(s: Stage) -> None:
    """A path that is not routed; the id in it is in no name. The items that it books have no spans."""
    assert (await s.request("GET", "/v1/messages/batches/msgbatch_123/results?after=x")).status == 200


RESULTS = b'{"custom_id":"a","result":{"type":"succeeded","message":%b}}\n' % PLAIN
DENY = "version: 1\nrules:\n  - name: closed\n    deny: closed\notherwise: as-asked\n"
CUT = streams(*events("a", "b", model="claude-haiku-5-5")[:4])
CASES: dict[str, tuple[Callable[[Stage], Awaitable[None]], Any, str, int]] = {
    "plain": (plain, answers(http(PLAIN)), HAIKU, 4),
    "stream": (stream, streams(*events("a", "b", model="claude-haiku-5-5")), HAIKU, 4),
    "fallback": (
        refused_twice,
        answers(
            error("529 Overloaded", "overloaded_error", "no", ("retry-after-ms", "1")),
            error("529 Overloaded", "overloaded_error", "no", ("retry-after-ms", "1")),
            http(message()),
        ),
        FALLBACK,
        6,
    ),
    "cut": (stream, CUT, HAIKU, 4),
    "hit": (twice, answers(http(message(model="claude-haiku-5-5"))), CACHED, 7),
    "refused": (refused, answers(error("400 Bad Request", "invalid_request_error")), always(route="as-asked"), 4),
    "failed": (failed, answers(error("500 Error", "api_error")), HAIKU, 4),
    "denied": (denied, None, DENY, 2),
    "nobody": (nobody, None, HAIKU, 1),
    "count": (counted, answers(http(b'{"input_tokens":5}')), HAIKU, 3),
    "batch": (of_a_batch, answers(http(RESULTS, kind="application/x-jsonl")), HAIKU, 2),
}


@pytest.fixture
def receiver(monkeypatch):
    """A receiver that routers made in the test send to."""
    with otlp_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield receiver


@pytest.mark.parametrize("name", CASES)
async def test_the_spans_of_a_request_are_as_written_down(name: str, receiver: OtlpReceiver) -> None:
    """Names, kinds, tree, status and every attribute; times only in their order."""
    ask, behave, policy, spans = CASES[name]
    async with stage(behave, policy=policy) as s:
        await ask(s)
        port = s.upstream.port
    check(name, receiver.wait_spans(spans), port)


async def test_a_shared_call_has_its_tokens_once(receiver: OtlpReceiver) -> None:
    """The one who joined says what was replayed and what it saved, and no usage."""
    async with driven(CACHED) as (s, up):
        asking = asyncio.gather(s.messages(), s.messages())
        call = await up.call()
        await under_way(s, 2)
        await call.answer(http(message(model="claude-haiku-5-5")))
        await asking
        port = s.upstream.port
    spans = receiver.wait_spans(7)
    check("coalesced", spans, port)
    assert sum("gen_ai.usage.input_tokens" in span["attributes"] for span in spans) == 1


async def test_the_next_names_differ_only_where_the_conventions_do(receiver: OtlpReceiver) -> None:
    """`otel_semconv: next` renames what a prompt cache wrote; no span has both names."""
    async with stage(answers(http(PLAIN)), policy=HAIKU, otel_semconv="next") as s:
        await plain(s)
        port = s.upstream.port
    written = json.loads((GOLDEN / "plain.json").read_text())
    chat = next(span for span in written if span["name"].startswith("chat"))
    count = chat["attributes"].pop("gen_ai.usage.cache_creation.input_tokens")
    chat["attributes"]["gen_ai.usage.cache_write.input_tokens"] = count
    assert plainly(receiver.wait_spans(4), port) == written


def check(name: str, spans: list[dict[str, Any]], port: int) -> None:
    """Compare with the file of that name, or write it."""
    found = plainly(spans, port)
    file = GOLDEN / f"{name}.json"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(json.dumps(found, indent=2) + "\n")
    assert found == json.loads(file.read_text())
    for trace in {span["trace_id"] for span in spans}:
        tree = [span for span in spans if span["trace_id"] == trace]
        counted = [span for span in tree if any(key.startswith("gen_ai.usage.") for key in span["attributes"])]
        assert len(counted) <= 1, "tokens and cost are on one span of a request"
        for span in tree:
            assert span["ended_ns"] >= span["started_ns"] >= tree[0]["started_ns"]


def plainly(spans: list[dict[str, Any]], port: int) -> list[dict[str, Any]]:
    """The spans without what differs from run to run; the request that called comes before the one that did not."""
    traces = list(dict.fromkeys(span["trace_id"] for span in spans))
    traces.sort(key=lambda trace: -sum(span["trace_id"] == trace for span in spans))
    names = {"": ""}
    found = []
    for number, trace in enumerate(traces, 1):
        tree = [span for span in spans if span["trace_id"] == trace]
        names |= {span["span_id"]: f"{number}.{place} {span['name']}" for place, span in enumerate(tree, 1)}
        for span in tree:
            found.append(
                {
                    "id": names[span["span_id"]],
                    "parent": names[span["parent_span_id"]],
                    "name": span["name"],
                    "kind": span["kind"],
                    "status": span["status"],
                    "attributes": {key: shown(key, value, port) for key, value in sorted(span["attributes"].items())},
                }
            )
    return found


def shown(key: str, value: Any, port: int) -> Any:
    """An attribute as it is every time."""
    if key.endswith("_s") or key == "gen_ai.response.time_to_first_chunk":
        assert 0 <= value < 60
        return "seconds"
    if key in ("server.port", "url.full"):
        return str(value).replace(str(port), "PORT")
    if key in ("router.policy.revision", "router.tenant", "router.conversation", "router.cost.price_version"):
        assert value
        return key.rpartition(".")[2]
    if key == "router.request_id" and value != "req_up":
        return "ours"
    return value
