"""Answers fit their task, satisfy their schema, keep within their limits, and repeat."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator.calls import ask, caller, said

from router.simulator.dice import Dice
from router.simulator.pace import pace_of
from router.simulator.record import load_roster
from router.simulator.schema import Filler
from router.simulator.script import Script, ScriptError
from router.simulator.service import Simulator
from router.simulator.settings import SimulatorSettings

SIMULATOR = Simulator(SimulatorSettings())
TEXT = (
    "The harbour of Trieste reopened on 2026-03-14 after two years of work. Anna Bianchi, who led the project, said "
    "the new quay can take ships of 400 metres. The city paid 38.5 million euros. Local traders expect more visitors."
)


def reply(text: str, model: str = "claude-haiku-5-5", **fields: Any) -> str:
    """The text of the answer to one user turn."""
    return said(SIMULATOR.run(ask(model, messages=[{"role": "user", "content": text}], **fields), caller()))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (
            "Classify this ticket as billing, technical or account: I can't log in after resetting my password.",
            "account",
        ),
        ("Classify as billing, technical or shipping: The parcel never arrived, tracking is stuck.", "shipping"),
        (
            "What is the sentiment of this review? One of: positive, negative, neutral.\n\nI love it, excellent value!",
            "positive",
        ),
        ("Choose a category.\n\nCategories:\n- refund\n- delivery\n- praise\n\nText: I want a refund please", "refund"),
    ],
)
def test_a_classification_is_one_of_the_labels(text: str, label: str) -> None:
    """The label that the text speaks of."""
    assert reply(text) == label


def test_a_summary_and_an_answer_come_from_the_text() -> None:
    """Sentences of the material."""
    assert reply(f"Summarize this article in a sentence or two:\n\n{TEXT * 2}")[:20] in TEXT
    question = f"<document>\n{TEXT}\n{TEXT}\n</document>\n\nHow much did the city pay?"
    assert "38.5 million" in reply(question.replace("How much", "What sum"))


def test_other_kinds_of_work_look_their_part() -> None:
    """Translation, extraction, code, reasoning."""
    assert "el " in reply("Translate to Spanish: The order is new and the customer is here today.").lower()
    found = json.loads(reply(f"Extract the fields: name, date, amount.\n\n{TEXT}"))
    assert found["date"] == "2026-03-14"
    assert found["name"] == "Anna Bianchi"
    assert "```python\ndef " in reply("Write a Python function that merges two sorted lists.")
    assert "1. " in reply("Solve step by step: 3 trains carry 40 people each. How many people in all?")


def test_answers_repeat_and_depend_on_the_seed() -> None:
    """Same request, same bytes; streamed or not; another seed, other ids."""
    body = ask("claude-sonnet-5-5", messages=[{"role": "user", "content": "Prove that 17 is prime."}])
    first, again = (SIMULATOR.run(body, caller()).message() for _ in range(2))
    assert first == again
    assert SIMULATOR.run({**body, "stream": True}, caller()).message()["content"] == first["content"]
    other = Simulator(SimulatorSettings(seed=7)).run(body, caller()).message()
    assert other["id"] != first["id"]


def test_max_tokens_counts_thinking_too() -> None:
    """Section 3: a small cap can end after a thinking block and no text."""
    body = ask("claude-sonnet-5-5", max_tokens=10, messages=[{"role": "user", "content": "Prove that 17 is prime."}])
    answer = SIMULATOR.run(body, caller()).answer
    assert [block["type"] for block in answer.content] == ["thinking"]
    assert (answer.stop_reason, answer.output_tokens) == ("max_tokens", 10)
    short = SIMULATOR.run({**body, "model": "claude-haiku-4-5"}, caller()).answer
    assert (short.stop_reason, short.output_tokens, short.content[0]["type"]) == ("max_tokens", 10, "text")


def test_a_stop_sequence_ends_the_text_before_it() -> None:
    """`stop_sequence` is named."""
    body = ask("claude-haiku-4-5", messages=[{"role": "user", "content": "Write a Python function that adds."}])
    answer = SIMULATOR.run({**body, "stop_sequences": ["```"]}, caller()).answer
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "```")
    assert "```" not in answer.content[0]["text"]


def test_a_full_window_stops_the_answer() -> None:
    """`model_context_window_exceeded` when the window, not `max_tokens`, is the limit."""
    words = "word " * 143_950
    body = ask("claude-haiku-4-5", max_tokens=4_000, messages=[{"role": "user", "content": f"Summarize:\n\n{words}"}])
    room = 200_000 - SIMULATOR.run(body, caller()).plan.total
    assert 0 < room < 4_000
    assert SIMULATOR.run(body, caller()).answer.stop_reason == "model_context_window_exceeded"


def test_a_web_search_is_done_and_counted() -> None:
    """server_tool_use, its result, text; one search in usage."""
    tools = [{"type": "web_search_20260209", "name": "web_search"}]
    body = ask("claude-opus-5-5", tools=tools, messages=[{"role": "user", "content": "News about Trieste?"}])
    outcome = SIMULATOR.run(body, caller())
    assert [block["type"] for block in outcome.answer.content][-3:] == [
        "server_tool_use",
        "web_search_tool_result",
        "text",
    ]
    assert outcome.usage()["server_tool_use"] == {"web_search_requests": 1, "web_fetch_requests": 0}


SCALARS = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "enum": ["red", "green"]},
        {"type": "string", "format": "date"},
        {"type": "string", "minLength": 30, "maxLength": 40},
        {"type": "integer", "minimum": 3, "maximum": 7},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "boolean"},
        {"type": "null"},
        {"const": 5},
        {"type": ["null", "string"]},
        {"$ref": "#/$defs/colour"},
    ]
)
SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items, "minItems": 1, "maxItems": 2}, inner),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(
            lambda fields: {
                "type": "object",
                "properties": fields,
                "required": list(fields),
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["name", "email", "score", "items", "summary"]), inner, max_size=4),
        ),
    ),
    max_leaves=8,
)
ROOT = {"$defs": {"colour": {"type": "string", "enum": ["blue"]}}}


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, st.integers(0, 5))
def test_values_satisfy_their_schema(schema: dict[str, Any], seed: int) -> None:
    """Checked by a validator of our own, written from the JSON Schema specification."""
    value = Filler(TEXT, Dice(seed), ROOT).value(schema)
    assert valid(json.loads(json.dumps(value)), schema), (value, schema)


def valid(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value satisfies the part of JSON Schema that these tests use."""
    if "$ref" in schema:
        return valid(value, ROOT["$defs"]["colour"])
    if "const" in schema:
        return bool(value == schema["const"])
    if "anyOf" in schema:
        return any(valid(value, option) for option in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    types = {"string": str, "array": list, "object": dict, "boolean": bool, "null": type(None)}
    for kind in kinds:
        if kind in ("integer", "number") and not isinstance(value, bool):
            good = isinstance(value, int) or (kind == "number" and isinstance(value, float))
            low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
            if good and low <= value <= high and not ("exclusiveMinimum" in schema and value <= low):
                return True
        elif kind in types and isinstance(value, types[kind]):
            if kind == "string":
                return schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10_000)
            if kind == "array":
                counts = schema["minItems"] <= len(value) <= schema["maxItems"]
                return counts and all(valid(entry, schema["items"]) for entry in value)
            if kind == "object":
                return set(value) == set(schema["properties"]) and all(
                    valid(entry, schema["properties"][name]) for name, entry in value.items()
                )
            return True
    return False


def test_structured_output_is_json_of_the_schema() -> None:
    """The whole answer is the JSON, and a label of the text is chosen."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Trieste"]}, "year": {"type": "integer"}},
        "required": ["city", "year"],
        "additionalProperties": False,
    }
    form = {"format": {"type": "json_schema", "schema": schema}}
    found = json.loads(reply(f"Read this: {TEXT}", output_config=form))
    assert found["city"] == "Trieste"
    assert isinstance(found["year"], int)


@pytest.mark.parametrize(
    ("model", "first_s", "rate"),
    [
        ("claude-haiku-5-5", (0.2, 0.4), (100, 150)),
        ("claude-sonnet-5-5", (0.6, 0.9), (60, 80)),
        ("claude-opus-5-5", (0.85, 1.2), (45, 55)),
    ],
)
def test_models_are_as_fast_as_they_are(model: str, first_s: tuple[float, float], rate: tuple[float, float]) -> None:
    """Median seconds to the first token, tokens a second."""
    outcome = SIMULATOR.run(ask(model), caller())
    paces = [pace_of(outcome, Dice(seed)) for seed in range(101)]
    median = sorted(pace.first_s for pace in paces)[50]
    assert first_s[0] <= median <= first_s[1]
    assert all(rate[0] <= 1 / pace.per_token_s <= rate[1] for pace in paces)
    assert len({pace.first_s for pace in paces}) > 90
    assert pace_of(outcome, Dice(3)) == pace_of(outcome, Dice(3))


def test_a_script_says_what_is_wrong_with_it(tmp_path: Any) -> None:
    """The entry and the key."""
    path = tmp_path / "script.yaml"
    path.write_text("- {when: {modle: x}, status: 500}")
    with pytest.raises(ScriptError, match="entry 0: unknown key `modle` in `when`"):
        Script.load(path)
    path.write_text("- {stauts: 500}")
    with pytest.raises(ScriptError, match="entry 0: unknown key `stauts`"):
        Script.load(path)
    with pytest.raises(ScriptError, match="cannot be read"):
        Script.load(tmp_path / "missing.yaml")


def test_older_models_forget_thoughts_of_earlier_turns() -> None:
    """Haiku and Sonnet 4.5 strip them, later models keep and bill them."""
    roster = load_roster()
    assert [model.id for model in roster.models if model.fields["lifecycle"] != "retired"
            and not model.fields["keeps_prior_turn_thinking"]] == [
        "claude-haiku-4-5-20251001", "claude-sonnet-4-5-20250929"]  # fmt: skip
    hard = {"role": "user", "content": "Prove step by step that 17 is prime."}
    budget = {"type": "enabled", "budget_tokens": 1_024}
    for model, keeps in (("claude-haiku-4-5", False), ("claude-opus-4-5", True)):
        content = list(SIMULATOR.run(ask(model, messages=[hard], thinking=budget), caller()).answer.content)
        later = [{"role": "user", "content": "And 19?"}]
        full = SIMULATOR.run(ask(model, messages=[hard, {"role": "assistant", "content": content}, *later]), caller())
        bare = SIMULATOR.run(
            ask(model, messages=[hard, {"role": "assistant", "content": content[1:]}, *later]), caller()
        )
        assert (full.plan.input > bare.plan.input) == keeps
