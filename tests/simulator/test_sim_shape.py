"""What every model refuses alike: fields, turns, tool pairing, betas, versions, breakpoints."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator.calls import NEW, OLD, TOOL, USER, ask, caller, verdict

from router.simulator.betas import read_betas, read_version
from router.simulator.reading import read_object, to_json
from router.simulator.refusal import Refusal
from router.simulator.service import Simulator
from router.simulator.settings import SimulatorSettings

HAIKU = "claude-haiku-5-5"
CALL = {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "found"}
EPHEMERAL = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(SimulatorSettings(clock=lambda: 1_795_350_000.0))


@pytest.mark.parametrize("name", ["model", "messages", "max_tokens"])
def test_required_fields_are_named(simulator: Simulator, name: str) -> None:
    """`<field>: Field required`."""
    body = ask(HAIKU)
    del body[name]
    assert verdict(simulator, body) == f"{name}: Field required"


CASES: list[tuple[dict[str, Any], str]] = [
    ({"frequency_penalty": 1}, "frequency_penalty: Extra inputs are not permitted"),
    ({"context_management": {"edits": []}}, "context_management: Extra inputs are not permitted"),
    ({"mcp_servers": []}, "mcp_servers: Extra inputs are not permitted"),
    ({"thread": {"type": "create"}}, "thread: Extra inputs are not permitted"),
    ({"fallbacks": "default"}, "fallbacks: Extra inputs are not permitted"),
    ({"compaction": {"type": "summarize"}}, "compaction: Extra inputs are not permitted"),
    (
        {"thinking": {"type": "adaptive", "block_binding": {}}},
        "thinking.adaptive.block_binding: Extra inputs are not permitted",
    ),
    ({"metadata": {"team": "x"}}, "metadata.team: Extra inputs are not permitted"),
    ({"max_tokens": "many"}, "max_tokens: Input should be a valid integer"),
    ({"max_tokens": -1}, "max_tokens: Input should be greater than or equal to 0"),
    ({"messages": []}, "messages: at least one message is required"),
    ({"stream": "yes"}, "stream: Input should be a valid boolean"),
    ({"temperature": 2}, "temperature: range: 0..1"),
    ({"tool_choice": {"type": "auto"}}, "tool_choice: `tool_choice` may only be specified while providing `tools`."),
    ({"tools": [TOOL, TOOL]}, "tools: Tool names must be unique."),
    ({"tools": [{"name": "x"}]}, "tools.0.custom.input_schema: Field required"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "y"}}, "Tool 'y' not found in provided tools"),
    ({"speed": "slow"}, "speed: Input should be 'standard' or 'fast'"),
    ({"system": [{"type": "image"}]}, "system.0.type: Input should be 'text'"),
]


@pytest.mark.parametrize(("fields", "message"), CASES, ids=[message[:40] for _, message in CASES])
def test_fields_out_of_shape_are_refused(simulator: Simulator, fields: dict[str, Any], message: str) -> None:
    """The message names the path."""
    assert verdict(simulator, ask(HAIKU, **fields)) == message


def test_a_field_comes_with_its_beta(simulator: Simulator) -> None:
    """A beta without its field is harmless, the pair is accepted."""
    edits = {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}
    assert verdict(simulator, ask(HAIKU, **edits), "context-management-2025-06-27") == "ok"
    assert verdict(simulator, ask(HAIKU), "context-management-2025-06-27") == "ok"
    with pytest.raises(Refusal) as caught:
        simulator.run(ask(HAIKU, thread={"type": "create"}), caller("message-threads-2026-08-12"))
    assert caught.value.details == {"error_code": "thread_unsupported_request"}
    listed = {"fallbacks": [{"model": "claude-sonnet-5"}]}
    beta = "server-side-fallback-2026-07-01"
    assert "is not an allowed fallback model" in verdict(simulator, ask(HAIKU, **listed), beta)
    assert verdict(simulator, ask("claude-sonnet-5-5", **listed), beta) == "ok"


def test_a_coding_agents_request_passes_as_it_is_sent(simulator: Simulator) -> None:
    """Section 17: the body and the betas of Claude Code on its default model."""
    text = {"type": "text", "text": "Instructions.", "cache_control": EPHEMERAL}
    body = ask(
        "claude-opus-5-5",
        max_tokens=128_000,
        stream=True,
        thinking={"type": "adaptive", "display": "omitted"},
        output_config={"effort": "medium"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        metadata={"user_id": '{"device_id":"d","session_id":"s"}'},
        system=[{"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.330.abc;"}, text, text],
        tools=[TOOL, {**TOOL, "name": "later", "defer_loading": True}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "<reminder>"}, text]},
            {"role": "system", "content": [{"type": "text", "text": "Env."}], "output_config": {"effort": "medium"}},
        ],
    )
    betas = (
        *("claude-code-20250219", "interleaved-thinking-2025-05-14", "context-management-2025-06-27"),
        *("per-turn-control-2026-07-01", "mid-conversation-tool-changes-2026-07-01"),
        *("thinking-token-count-2026-05-13", "advanced-tool-use-2025-11-20", "effort-2025-11-24"),
    )
    outcome = simulator.run(body, caller(*betas))
    assert outcome.message()["context_management"] == {"applied_edits": []}
    assert outcome.answer.stop_reason == "tool_use"


def test_unknown_betas_and_versions_are_refused() -> None:
    """The header's refusal quotes the value."""
    assert read_betas(["effort-2025-11-24, claude-code-20250219", "compact-2026-09-04"]) == {
        "effort-2025-11-24",
        "claude-code-20250219",
        "compact-2026-09-04",
    }
    with pytest.raises(Refusal, match=r"Unexpected value\(s\) `no-such-beta` for the `anthropic-beta` header\."):
        read_betas(["effort-2025-11-24,no-such-beta"])
    assert [read_version(OLD), read_version(NEW)] == [OLD, NEW]
    for value in (None, "2024-01-01"):
        with pytest.raises(Refusal, match="anthropic-version"):
            read_version(value)


def test_every_beta_of_the_sdk_is_known() -> None:
    """The list of the official SDK, read from it."""
    import typing

    from anthropic.types import AnthropicBetaParam

    literal = next(part for part in typing.get_args(AnthropicBetaParam) if part is not str)
    assert read_betas(typing.get_args(literal))


def test_what_the_new_version_changes_beside_sampling(simulator: Simulator) -> None:
    """A document in an assistant turn and citations in a user turn are a 400 on 2026-10-21 only."""
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Some text."}}
    told = [USER, {"role": "assistant", "content": [document]}, USER]
    cited = [{"role": "user", "content": [{"type": "text", "text": "x", "citations": [{"type": "char_location"}]}]}]
    for messages in (told, cited):
        body = ask(HAIKU, messages=messages)
        assert verdict(simulator, body) == "ok"
        assert "not permitted" in verdict(simulator, body, version=NEW)


def test_tool_calls_and_results_come_in_pairs(simulator: Simulator) -> None:
    """A call without a result, and a result without a call, are named."""

    def judge(*messages: dict[str, Any]) -> str:
        return verdict(simulator, ask(HAIKU, tools=[TOOL], messages=list(messages)))

    called = {"role": "assistant", "content": [CALL]}
    answered = {"role": "user", "content": [RESULT]}
    assert judge(USER, called, answered) == "ok"
    assert judge(USER, called, USER) == (
        "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: toolu_1. Each "
        "`tool_use` block must have a corresponding `tool_result` block in the next message."
    )
    assert judge(USER, {"role": "assistant", "content": "hm"}, answered) == (
        "messages.2.content.0: unexpected `tool_use_id` found in `tool_result` blocks: toolu_1. Each `tool_result` "
        "block must have a corresponding `tool_use` block in the previous message."
    )
    assert judge(USER, called, answered, called, answered) == "messages: `tool_use` ids must be unique"
    twice = {"role": "user", "content": [RESULT, RESULT]}
    assert "must have a single result" in judge(USER, called, twice)


def test_at_most_four_breakpoints_the_automatic_one_included(simulator: Simulator) -> None:
    """`A maximum of 4 blocks with cache_control may be provided. Found 5.`"""
    block = {"type": "text", "text": "x", "cache_control": EPHEMERAL}
    four = ask(HAIKU, system=[block, block], messages=[{"role": "user", "content": [block, block]}])
    assert verdict(simulator, four) == "ok"
    refused = "A maximum of 4 blocks with cache_control may be provided. Found 5."
    assert verdict(simulator, {**four, "cache_control": EPHEMERAL}) == refused
    assert verdict(simulator, {**four, "tools": [{**TOOL, "cache_control": EPHEMERAL}]}) == refused


def test_longer_cache_times_come_first(simulator: Simulator) -> None:
    """Render order tools, system, messages."""
    short = {"type": "text", "text": "x", "cache_control": EPHEMERAL}
    long = {"type": "text", "text": "x", "cache_control": HOUR}
    assert verdict(simulator, ask(HAIKU, system=[long, short])) == "ok"
    assert "must not come after" in verdict(simulator, ask(HAIKU, system=[short, long]))


def test_structured_output_has_limits(simulator: Simulator) -> None:
    """No citations beside it, closed objects, at most 20 strict tools."""
    closed = {"type": "object", "properties": {}, "additionalProperties": False}
    form = {"output_config": {"format": {"type": "json_schema", "schema": closed}}}
    document = {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": "Some text."},
        "citations": {"enabled": True},
    }
    cited = ask(HAIKU, messages=[{"role": "user", "content": [document]}], **form)
    assert "citations cannot be combined" in verdict(simulator, cited)
    open_form = {"format": {"type": "json_schema", "schema": {"type": "object", "properties": {}}}}
    assert verdict(simulator, ask(HAIKU, output_config=open_form)) == (
        "output_config.format.schema: For 'object' type, 'additionalProperties' must be explicitly set to false"
    )
    tools = [{"name": f"t{number}", "strict": True, "input_schema": closed} for number in range(21)]
    assert "at most 20 strict tools" in verdict(simulator, ask(HAIKU, tools=tools))


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"7", b"{", b'{"a":1,}', b'{"a":NaN}', b'{"a":1,"a":2}', b'{"a":{"b":1,"\\u0062":2}}', b"\xff{}",
     b"\xef\xbb\xbf{}", b'{"a":1} {}', b'{"a":1e999}', b'{"a":[-1.5e400]}', b'{"a":' + b"9" * 5_000 + b"}",
     b'{"a":"\xed\xa0\x80"}', b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"],
)  # fmt: skip
def test_bodies_that_are_not_one_strict_json_object_are_refused(raw: bytes) -> None:
    """RFC 8259, no duplicate names, bounded depth."""
    with pytest.raises(Refusal) as caught:
        read_object(raw)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":"\\ud800"}', "no low surrogate in string: line 1 column 7 (char 6)"),
        ('{"a":"\\uD83D\\u0041"}', "no low surrogate in string: line 1 column 7 (char 6)"),
        ('{\n"a":"x\\\\\\udfff"}', "invalid high surrogate in string: line 2 column 9 (char 10)"),
        ('{"\\ud83d\\ude00\\ude00":1}', "invalid high surrogate in string: line 1 column 15 (char 14)"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused(text: str, reason: str) -> None:
    """It has no UTF-8, so it could not be sent on; in a name as in a value."""
    with pytest.raises(Refusal) as caught:
        read_object(text.encode())
    assert (caught.value.status, caught.value.message) == (400, f"The request body is not valid JSON: {reason}")


def test_what_only_looks_like_too_much_is_taken() -> None:
    """Whole pairs, escaped backslashes before a `u`, small and long numbers within a double."""
    taken = read_object(rb'{"a":"\ud83d\ude00 \\ud800 \\\ud83d\ude00","b":1e-999,"c":1e308,"d":' + b"9" * 300 + b"}")
    assert taken == {"a": "\U0001f600 \\ud800 \\\U0001f600", "b": 0.0, "c": 1e308, "d": 10**300 - 1}


@given(st.text(alphabet=st.sampled_from('\\ud8cfDCF0x"'), max_size=24))
def test_the_simulator_refuses_the_texts_that_another_strict_reader_refuses(inner: str) -> None:
    """Escapes of any kind, checked against orjson."""
    raw = f'{{"a":"{inner}"}}'.encode()
    try:
        expected = orjson.loads(raw)
    except orjson.JSONDecodeError:
        with pytest.raises(Refusal):
            read_object(raw)
    else:
        assert read_object(raw) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        *("system", "tools", "tool_choice", "thinking", "output_config", "cache_control", "messages", "metadata"),
        *("stop_sequences", "speed", "inference_geo", "temperature", "top_k", "service_tier", "stream", "max_tokens"),
        *("diagnostics", "container"),
    ]
)
LIKELY = st.sampled_from(
    [USER, {"role": "user", "content": [RESULT]}, CALL, RESULT, TOOL, {"type": "text", "text": "x"}, [TOOL], [USER]]
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(FIELDS, JSON | LIKELY | st.lists(JSON | LIKELY, max_size=3), max_size=4))
def test_odd_types_are_refused_and_never_crash(fields: dict[str, Any]) -> None:
    """Whatever JSON stands in a field, the answer is a Message or a refusal."""
    body = read_object(to_json({**ask(HAIKU), **fields}))
    verdict(SHARED, body)


SHARED = Simulator(SimulatorSettings())
