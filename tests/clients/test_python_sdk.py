"""The official Python SDK works through the router with only its base URL changed."""

from __future__ import annotations

import json

import anthropic
import pytest
from kit.live import Live

SONNET = "claude-sonnet-5-5"
TICKET = "Classify this ticket as billing, technical or account: I can't log in after resetting my password."
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city now",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def ask(text: str, **more: object) -> dict[str, object]:
    return {"model": SONNET, "max_tokens": 600, "messages": [{"role": "user", "content": text}], **more}


@pytest.fixture
def client(stage: Live):
    with anthropic.Anthropic(base_url=stage.api, api_key="sk-test", max_retries=0) as made:
        yield made


@pytest.fixture
async def async_client(stage: Live):
    async with anthropic.AsyncAnthropic(base_url=stage.api, api_key="sk-test", max_retries=0) as made:
        yield made


def test_a_plain_message_is_answered_by_the_routed_model(client: anthropic.Anthropic) -> None:
    """The classification goes to Haiku; the SDK parses the answer as ever."""
    raw = client.messages.with_raw_response.create(**ask(TICKET))
    message = raw.parse()
    assert message.content[-1].type == "text"
    assert message.model == raw.headers["x-router-model"] == "claude-haiku-5-5"
    assert raw.headers["x-router-rule"] == "structured-work"
    assert message.usage.output_tokens > 0


def test_a_stream_arrives_event_by_event(client: anthropic.Anthropic) -> None:
    """Text deltas add up to the final message, and the stream has its normal end."""
    with client.messages.stream(**ask(TICKET, max_tokens=601)) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
        assert stream.response.headers["x-router-lane"] == "haiku"
    assert text == "".join(block.text for block in final.content if block.type == "text")
    assert final.stop_reason == "end_turn"


def test_a_tool_round_trip_works(client: anthropic.Anthropic) -> None:
    """The model asks for the tool, gets its result and answers; thinking blocks go back as they came."""
    first = ask("What is the weather in Oslo?", tools=[WEATHER], max_tokens=1000)
    message = client.messages.create(**first)
    use = next(block for block in message.content if block.type == "tool_use")
    assert message.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "4 degrees and rain"}
    answer = client.messages.create(
        **{
            **first,
            "messages": [
                *first["messages"],
                {"role": "assistant", "content": [block.to_dict() for block in message.content]},
                {"role": "user", "content": [result]},
            ],
        }
    )
    assert answer.stop_reason == "end_turn"
    assert answer.content[-1].type == "text"


def test_structured_output_conforms(client: anthropic.Anthropic) -> None:
    """A JSON schema is honoured through the router."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    message = client.messages.create(
        **ask(
            "Extract the city and the number of people: 40 guests met in Leipzig.",
            output_config={"format": {"type": "json_schema", "schema": schema}},
        )
    )
    found = json.loads(message.content[-1].text)
    assert set(found) == {"city", "people"}


def test_errors_keep_their_type_and_request_id(client: anthropic.Anthropic) -> None:
    """What the API refuses reaches the program as the SDK's own exception, with the upstream's id."""
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(**ask("Hello", model="claude-3-haiku-20240307"))
    assert caught.value.request_id.startswith("req_")
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(
            **ask("Prove it.", model="claude-opus-5-5", tool_choice={"type": "any"}, tools=[WEATHER], max_tokens=9000)
        )
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="sk-ant-invalid-1").messages.create(**ask("Hello"))


def test_tokens_are_counted_for_the_routed_model(client: anthropic.Anthropic) -> None:
    """The count is that of the model that would answer; the header names it."""
    raw = client.messages.with_raw_response.count_tokens(model=SONNET, messages=[{"role": "user", "content": TICKET}])
    assert raw.parse().input_tokens > 5
    assert raw.headers["x-router-model"] == "claude-haiku-5-5"


def test_models_are_listed_with_the_virtual_ones(client: anthropic.Anthropic) -> None:
    """`models.list` pages as ever; `auto` and the lanes stand on the last page, and can be retrieved."""
    ids = [model.id for model in client.models.list(limit=5)]
    assert SONNET in ids
    assert ids[-4:] == ["auto", "lane:haiku", "lane:sonnet", "lane:opus"]
    assert client.models.retrieve("lane:haiku").max_tokens == client.models.retrieve("claude-haiku-5-5").max_tokens


def test_virtual_models_answer(client: anthropic.Anthropic) -> None:
    """`auto` lets the policy decide from nothing; `lane:NAME` is that lane."""
    auto = client.messages.with_raw_response.create(**ask(TICKET, model="auto"))
    assert auto.headers["x-router-model"] == "claude-haiku-5-5"
    lane = client.messages.with_raw_response.create(**ask("Hello", model="lane:opus"))
    assert lane.headers["x-router-model"] == lane.parse().model == "claude-opus-5-5"


def test_a_batch_goes_from_creation_to_results(client: anthropic.Anthropic, stage: Live) -> None:
    """The SDK follows `results_url`, which points back at the router."""
    params = {"model": "claude-haiku-5-5", "max_tokens": 300, "messages": [{"role": "user", "content": TICKET}]}
    batch = client.messages.batches.create(requests=[{"custom_id": f"r{n}", "params": params} for n in range(3)])
    for _ in range(600):
        batch = client.messages.batches.retrieve(batch.id)
        if batch.processing_status == "ended":
            break
    assert batch.processing_status == "ended"
    assert batch.results_url.startswith(stage.api)
    entries = list(client.messages.batches.results(batch.id))
    assert sorted(entry.custom_id for entry in entries) == ["r0", "r1", "r2"]
    assert {entry.result.type for entry in entries} == {"succeeded"}


@pytest.mark.anyio
async def test_the_async_client_answers_and_streams(async_client: anthropic.AsyncAnthropic) -> None:
    """The same with the async client."""
    message = await async_client.messages.create(**ask(TICKET, max_tokens=602))
    assert message.model == "claude-haiku-5-5"
    async with async_client.messages.stream(**ask("Prove that 7 is odd.", max_tokens=3000)) as stream:
        final = await stream.get_final_message()
    assert final.model == SONNET
    assert final.stop_reason in ("end_turn", "max_tokens")


def test_both_credential_forms_are_accepted(stage: Live) -> None:
    """The SDK of today sends a bearer token, older ones `x-api-key`; both name the same tenant."""
    tenants = set()
    for options in ({"api_key": "sk-both"}, {"auth_token": "sk-both", "api_key": None}):
        with anthropic.Anthropic(base_url=stage.api, max_retries=0, **options) as client:
            raw = client.messages.with_raw_response.create(**ask("Hello there"))
            trace_id = raw.headers["x-router-trace"]
            tenants.add(next(row["tenant"] for row in stage.traces() if row["trace_id"] == trace_id))
    old = anthropic.Anthropic(base_url=stage.api, api_key="unused", default_headers={"x-api-key": "sk-both"})
    raw = old.messages.with_raw_response.create(**ask("Hello there"))
    tenants.add(next(row["tenant"] for row in stage.traces() if row["trace_id"] == raw.headers["x-router-trace"]))
    old.close()
    assert len(tenants) == 1
