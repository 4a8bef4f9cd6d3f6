"""The simulator over HTTP, through the official SDK and by raw requests, on an ephemeral port."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest
from simulator.calls import NEW, TOOL, USER, ask

from router.simulator.script import Script
from router.simulator.server import served
from router.simulator.settings import SimulatorSettings

HAIKU = "claude-haiku-5-5"
HARD = {"role": "user", "content": "Prove step by step that 17 is prime."}


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with served() as address:
        yield address


@pytest.fixture
def client(origin: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=origin, api_key="key", max_retries=0) as made:
        yield made


@pytest.fixture
def http(origin: str) -> Iterator[httpx2.Client]:
    headers = {"x-api-key": "key", "anthropic-version": NEW}
    with httpx2.Client(base_url=origin, headers=headers, timeout=20) as made:
        yield made


def test_a_plain_answer_carries_ids_and_limits(http: httpx2.Client) -> None:
    """Response headers of section 6 and 9."""
    reply = http.post("/v1/messages?beta=true", json=ask(HAIKU))
    assert reply.status_code == 200
    assert reply.headers["request-id"].startswith("req_")
    assert reply.headers["anthropic-workspace-id"].startswith("wrkspc_")
    assert len(reply.headers["anthropic-organization-id"]) == 36
    for name in ("requests", "tokens", "input-tokens", "output-tokens"):
        for part in ("limit", "remaining", "reset"):
            assert reply.headers[f"anthropic-ratelimit-{name}-{part}"]
    message = reply.json()
    assert list(message)[:4] == ["model", "id", "type", "role"]
    assert message["stop_reason"] == "end_turn"


def test_streamed_and_plain_answers_are_the_same(client: anthropic.Anthropic) -> None:
    """The same request, the same answer."""
    plain = client.messages.create(model=HAIKU, max_tokens=2_000, messages=[HARD])
    with client.messages.stream(model=HAIKU, max_tokens=2_000, messages=[HARD]) as stream:
        streamed = stream.get_final_message()
    assert [block.type for block in plain.content] == ["thinking", "text"]
    # The id names the request body, in which `stream` does not count.
    assert streamed.id == plain.id
    assert [block.to_dict() for block in plain.content] == [
        {name: value for name, value in block.to_dict().items() if name != "parsed_output"}
        for block in streamed.content
    ]
    assert streamed.usage.output_tokens == plain.usage.output_tokens
    assert streamed.stop_reason == plain.stop_reason


@pytest.mark.anyio
async def test_the_async_client_reads_streams_too(origin: str) -> None:
    """Text arrives in pieces."""
    async with anthropic.AsyncAnthropic(base_url=origin, api_key="key", max_retries=0) as client:
        pieces = []
        async with client.messages.stream(model=HAIKU, max_tokens=2_000, messages=[HARD]) as stream:
            async for piece in stream.text_stream:
                pieces.append(piece)
            final = await stream.get_final_message()
    assert len(pieces) > 5
    assert "".join(pieces) == final.content[-1].text


def events(raw: str) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream, each name equal to its data's type."""
    found = []
    for chunk in raw.strip().split("\n\n"):
        name, data = chunk.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(name == data["type"] for name, data in found)
    return found


def test_the_order_of_events_is_the_documented_one(http: httpx2.Client) -> None:
    """Section 8, with thinking omitted: start, one signature, stop."""
    reply = http.post("/v1/messages", json=ask(HAIKU, stream=True, messages=[HARD]))
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = events(reply.text)
    names = [name for name, _ in found]
    assert names[:3] == ["message_start", "content_block_start", "ping"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    start = found[0][1]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"]) == ([], None, 1)
    first = [data for _, data in found if data.get("index") == 0]
    assert [data["type"] for data in first] == ["content_block_start", "content_block_delta", "content_block_stop"]
    assert first[0]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    assert first[1]["delta"]["type"] == "signature_delta"
    closing = found[-2][1]
    assert closing["delta"]["stop_reason"] == "end_turn"
    assert closing["usage"]["output_tokens"] > 1
    assert closing["usage"]["input_tokens"] == start["usage"]["input_tokens"]


def test_shown_thinking_streams_and_can_be_counted(http: httpx2.Client) -> None:
    """`estimated_tokens` under its beta."""
    thinking = {"type": "adaptive", "display": "summarized"}
    body = ask(HAIKU, stream=True, messages=[HARD], thinking=thinking)
    reply = http.post("/v1/messages", json=body, headers={"anthropic-beta": "thinking-token-count-2026-05-13"})
    deltas = [data["delta"] for name, data in events(reply.text) if name == "content_block_delta"]
    thoughts = [delta for delta in deltas if delta["type"] == "thinking_delta"]
    assert len(thoughts) > 3
    assert all(delta["estimated_tokens"] > 0 for delta in thoughts)
    kinds = [delta["type"] for delta in deltas]
    assert kinds.index("signature_delta") == len(thoughts)


def test_a_tool_loop_ends_in_an_answer(client: anthropic.Anthropic) -> None:
    """tool_use with valid input, then the result comes back, thinking and all, and text follows."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 5}},
        "required": ["city", "days"],
    }
    tools: Any = [{"name": "weather", "description": "Weather by city", "input_schema": schema}]
    asked: Any = {"role": "user", "content": "What is the weather in Lisbon for 3 days?"}
    with client.messages.stream(
        model=HAIKU, max_tokens=2_000, messages=[asked], tools=tools, output_config={"effort": "high"}
    ) as stream:
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    call = first.content[-1]
    assert call.type == "tool_use"
    assert isinstance(call.input["city"], str)
    assert 1 <= call.input["days"] <= 5
    content = [block.to_dict() for block in first.content]
    for block in content:
        block.pop("parsed_output", None)
    result: Any = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Sunny, 24 degrees in Lisbon."}],
    }
    turn: Any = {"role": "assistant", "content": content}
    last = client.messages.create(model=HAIKU, max_tokens=2_000, messages=[asked, turn, result], tools=tools)
    assert last.stop_reason == "end_turn"
    assert "Sunny" in last.content[-1].text


def test_errors_have_the_shape_and_the_request_id(http: httpx2.Client, client: anthropic.Anthropic) -> None:
    """`{"type":"error","error":{...},"request_id":...}` with the same id in the header."""
    reply = http.post("/v1/messages", json=ask(HAIKU, max_tokens=128_001))
    assert reply.status_code == 400
    body = reply.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert body["request_id"] == reply.headers["request-id"]
    with pytest.raises(anthropic.NotFoundError, match="model: claude-2"):
        client.messages.create(model="claude-2", max_tokens=10, messages=[{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"x-api-key": "sk-ant-invalid-1", "anthropic-version": NEW}, 401),
        ({"authorization": "Bearer sk-ant-invalid", "anthropic-version": NEW}, 401),
        ({"authorization": "Bearer fine", "anthropic-version": NEW}, 200),
        ({"x-api-key": "fine", "anthropic-version": NEW}, 200),
        ({"x-api-key": "fine"}, 400),
        ({"x-api-key": "fine", "anthropic-version": "1999-01-01"}, 400),
        ({"x-api-key": "fine", "anthropic-version": NEW, "anthropic-beta": "nope"}, 400),
    ],
)
def test_who_may_call(origin: str, headers: dict[str, str], status: int) -> None:
    """Both credential forms; version and betas are checked."""
    reply = httpx2.post(f"{origin}/v1/messages", json=ask(HAIKU), headers=headers)
    assert reply.status_code == status
    if status == 401:
        assert reply.json()["error"]["type"] == "authentication_error"
        assert "anthropic-workspace-id" not in reply.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("HEAD", "/", 404), ("GET", "/v1/nothing", 404), ("POST", "/v1/complete", 404), ("GET", "/api/hello", 200),
     ("GET", "/v1/messages", 405), ("GET", "/v1/messages/", 404)],
)  # fmt: skip
def test_other_paths(http: httpx2.Client, method: str, path: str, status: int) -> None:
    """Unknown paths have the error shape too."""
    reply = http.request(method, path)
    assert reply.status_code == status
    if status >= 400 and method != "HEAD":
        assert reply.json()["type"] == "error"


def test_a_body_over_32_mb_is_too_large(http: httpx2.Client) -> None:
    """413 `request_too_large`."""
    reply = http.post("/v1/messages", content=b" " * (32 * 1024 * 1024 + 1))
    assert (reply.status_code, reply.json()["error"]["type"]) == (413, "request_too_large")


def test_count_tokens_agrees_with_usage(client: anthropic.Anthropic) -> None:
    """The same estimate on both paths."""
    counted = client.messages.count_tokens(model=HAIKU, messages=[HARD], system="Be exact.")
    answered = client.messages.create(model=HAIKU, max_tokens=500, messages=[HARD], system="Be exact.")
    assert counted.input_tokens == answered.usage.input_tokens


def test_models_are_listed_newest_first_with_capabilities(client: anthropic.Anthropic, http: httpx2.Client) -> None:
    """Paging, the lifecycle filter, aliases, retired ones only on request."""
    names = [model.id for model in client.models.list(limit=5)]
    assert len(names) == 19
    assert names[0] == "claude-fable-5-2"
    model = client.models.retrieve("claude-sonnet-5-5")
    assert model.capabilities is not None
    types = model.capabilities.thinking.types
    assert (types.adaptive.supported, types.disabled.supported, types.between_tools.supported) == (True, False, True)
    assert (model.max_input_tokens, model.max_tokens, model.line) == (1_000_000, 128_000, "sonnet")
    assert client.models.retrieve("claude-haiku-4-5").id == "claude-haiku-4-5-20251001"
    retired = http.get("/v1/models", params={"lifecycle[]": "retired", "limit": 1_000}).json()["data"]
    assert {entry["lifecycle"] for entry in retired} == {"retired"}
    assert http.get("/v1/models/none").status_code == 404
    assert http.get("/v1/models", params={"limit": 1_001}).status_code == 400


def test_ledger_and_requests_show_what_happened(http: httpx2.Client) -> None:
    """Bytes exactly as they arrived; costs that add up."""
    http.delete("/_simulator/ledger")
    http.delete("/_simulator/requests")
    raw = json.dumps(ask(HAIKU), indent=3).encode()
    reply = http.post("/v1/messages?beta=true", content=raw, headers={"X-Custom": "Yes"})
    streamed = http.post("/v1/messages", json=ask("claude-sonnet-5-5", stream=True))
    http.post("/v1/messages", json=ask("no-such-model"))
    ledger = http.get("/_simulator/ledger").json()
    assert [entry["request_id"] for entry in ledger["entries"]] == [
        reply.headers["request-id"],
        streamed.headers["request-id"],
    ]
    usage = reply.json()["usage"]
    assert ledger["entries"][0]["cost_pusd"] == usage["input_tokens"] * 100_000 + usage["output_tokens"] * 500_000
    assert ledger["total_pusd"] == sum(entry["cost_pusd"] for entry in ledger["entries"])
    seen = http.get("/_simulator/requests").json()["requests"]
    assert [entry["status"] for entry in seen] == [200, 200, 404]
    assert base64.b64decode(seen[0]["body"]) == raw
    assert seen[0]["target"] == "/v1/messages?beta=true"
    assert ["x-custom", "Yes"] in seen[0]["headers"]


def test_files_live_in_their_workspace(client: anthropic.Anthropic, origin: str) -> None:
    """Upload, list, use in a document, no download, delete."""
    stored = client.files.upload(file=("notes.txt", b"line one\r\nline two\r\n", "text/plain"))
    assert (stored.filename, stored.mime_type, stored.size_bytes) == ("notes.txt", "text/plain", 20)
    assert stored.downloadable is False
    assert stored.id in [entry.id for entry in client.files.list()]
    with pytest.raises(anthropic.PermissionDeniedError):
        client.files.download(stored.id)
    document: Any = {"type": "document", "source": {"type": "file", "file_id": stored.id}}
    asked: Any = [{"role": "user", "content": [document, {"type": "text", "text": "Summarize it."}]}]
    assert client.messages.create(model=HAIKU, max_tokens=500, messages=asked).stop_reason == "end_turn"
    with anthropic.Anthropic(base_url=origin, api_key="another", max_retries=0) as other:
        with pytest.raises(anthropic.NotFoundError):
            other.files.retrieve_metadata(stored.id)
        assert list(other.files.list()) == []
    assert client.files.delete(stored.id).type == "file_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model=HAIKU, max_tokens=500, messages=asked)


SCRIPT = [
    {"when": {"contains": "limit me", "times": 1}, "status": 429, "headers": {"retry-after": "0.01"}},
    {"when": {"contains": "overload"}, "status": 529, "message": "Overloaded"},
    {"when": {"contains": "html"}, "status": 500, "body": "<html>broken</html>"},
    {"when": {"contains": "second only", "nth": 2}, "text": "the second"},
    {"when": {"contains": "cut"}, "cut_after_events": 4},
    {"when": {"contains": "half"}, "no_message_stop": True},
    {"when": {"contains": "error inside"}, "error_after_events": 3},
    {"when": {"contains": "stall"}, "stall_after_events": 2},
    {"when": {"model": "claude-opus-5"}, "text": "fixed words"},
]


@pytest.fixture(scope="module")
def scripted() -> Iterator[str]:
    with served(SimulatorSettings(script=Script(SCRIPT))) as address:
        yield address


def say(scripted: str, text: str, **fields: Any) -> httpx2.Response:
    """One request with this text."""
    body = {**ask(HAIKU), "messages": [{"role": "user", "content": text}], **fields}
    return httpx2.post(f"{scripted}/v1/messages", json=body, headers={"x-api-key": "k", "anthropic-version": NEW})


def test_scripts_fail_as_they_say(scripted: str) -> None:
    """Status, type, headers, raw bodies, counters."""
    limited = say(scripted, "limit me")
    assert (limited.status_code, limited.headers["retry-after"]) == (429, "0.01")
    assert limited.json()["error"]["type"] == "rate_limit_error"
    assert say(scripted, "limit me").status_code == 200
    over = say(scripted, "overload")
    assert (over.status_code, over.json()["error"]) == (529, {"type": "overloaded_error", "message": "Overloaded"})
    assert say(scripted, "html").text == "<html>broken</html>"
    texts = [say(scripted, "second only").json()["content"][-1]["text"] for _ in range(3)]
    assert [text == "the second" for text in texts] == [False, True, False]
    assert say(scripted, "anything", model="claude-opus-5").json()["content"][0]["text"] == "fixed words"


def test_streams_break_as_the_script_says(scripted: str) -> None:
    """Cut in mid-body, no `message_stop`, an error event."""
    with pytest.raises(httpx2.RemoteProtocolError):
        say(scripted, "cut", stream=True)
    names = [name for name, _ in events(say(scripted, "half", stream=True).text)]
    assert names[-1] == "message_delta"
    found = events(say(scripted, "error inside", stream=True).text)
    assert len(found) == 4
    assert found[-1] == (
        "error",
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
    )


def test_a_client_that_hangs_up_is_noticed(scripted: str) -> None:
    """A stalled stream ends with its client, and is billed for what was sent."""
    body = {**ask(HAIKU), "messages": [{"role": "user", "content": "stall"}], "stream": True}
    httpx2.delete(f"{scripted}/_simulator/ledger")
    headers = {"x-api-key": "k", "anthropic-version": NEW}
    with httpx2.stream("POST", f"{scripted}/v1/messages", json=body, headers=headers) as reply:
        first = next(reply.iter_raw())
        assert b"message_start" in first
    entry = eventually(lambda: httpx2.get(f"{scripted}/_simulator/ledger").json()["entries"])[0]
    assert entry["is_complete"] is False
    last = httpx2.get(f"{scripted}/_simulator/requests").json()["requests"][-1]
    assert last["is_disconnected"] is True


def eventually(look: Any) -> Any:
    """What `look` returns once it is true; up to ten seconds."""
    pause = threading.Event()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        pause.wait(0.01)
    raise AssertionError("it never came true")


def test_forced_tools_and_refusals_stop_for_their_reasons(client: anthropic.Anthropic) -> None:
    """tool_use without thinking on Haiku 5.5; refusal with details."""
    tools: Any = [TOOL]
    forced = client.messages.create(
        model=HAIKU, max_tokens=500, messages=[HARD], tools=tools, tool_choice={"type": "any"}
    )
    assert [block.type for block in forced.content] == ["tool_use"]
    refused = client.messages.create(
        model=HAIKU, max_tokens=500, messages=[{"role": "user", "content": "SIMULATE_REFUSAL now"}]
    )
    assert (refused.stop_reason, refused.content) == ("refusal", [])
    assert refused.stop_details is not None
    assert refused.stop_details.category == "general_harms"


def test_the_user_of_an_empty_body_is_told(http: httpx2.Client) -> None:
    """No JSON, no crash."""
    for raw in (b"", b"[]", b'{"model": NaN}', b'{"messages": 3, "model": "x", "max_tokens": 1}'):
        reply = http.post("/v1/messages", content=raw)
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
    assert http.post("/v1/messages", json={"messages": [USER]}).json()["error"]["message"] == "model: Field required"
