"""Facts: each means what its declaration says, odd bodies give absent facts, and a trace learns no text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.catalog.lookup import Catalog
from router.catalog_file import load_catalog
from router.facts.inspect import Caller, Facts, client_family, inspect
from router.facts.language import code_share, language_of
from router.facts.vocabulary import FACTS, LABEL_FACTS, fact_spec
from router.wire.messages import MessagesRequest, read_request


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


def request(**fields: Any) -> MessagesRequest:
    body = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [user("hello")], **fields}
    return read_request(json.dumps({k: v for k, v in body.items() if v is not None}).encode())


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


TOOL = {"name": "get_weather", "description": "The weather", "input_schema": {"type": "object"}}
CALL = assistant([{"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Ulm"}}])
RESULT = user([{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]}])
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 4000}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "A" * 200_000}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"requested_model": "claude-sonnet-5-5", "requested_line": "sonnet", "messages": 1, "turns": 1}),
        ({"model": "claude-haiku-4-5"}, {"requested_line": "haiku"}),
        ({"model": "auto"}, {"requested_model": "auto", "requested_line": None}),
        ({"stream": True}, {"stream": True}),
        ({}, {"stream": False, "max_tokens": 100, "tools": 0, "tool_names": (), "thinking": None, "effort": None}),
        ({"tools": [TOOL, {"type": "x", "name": "bash"}]}, {"tools": 2, "tool_names": ("get_weather", "bash")}),
        ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, {"forced_tool": False}),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, {"forced_tool": True}),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "get_weather"}}, {"forced_tool": True}),
        ({"output_config": {"format": {"type": "json_schema"}}}, {"structured_output": True, "effort": None}),
        ({"output_format": {"type": "json_schema"}}, {"structured_output": True}),
        ({"output_config": {"effort": "high"}}, {"structured_output": False, "effort": "high"}),
        ({"thinking": {"type": "adaptive"}}, {"thinking": "adaptive"}),
        ({"system": "Be brief."}, {"system_chars": 9}),
        ({"system": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]}, {"system_chars": 8}),
        ({"messages": [user([IMAGE, {"type": "text", "text": "what?"}])]}, {"images": 1, "turns": 1}),
        ({"messages": [user([PDF, {"type": "text", "text": "what?"}])]}, {"documents": 1, "input_tokens": 6005}),
        ({"metadata": {"user_id": "u-1"}}, {"user": "u-1"}),
        ({"messages": [user("a"), assistant("b"), user("c")]}, {"messages": 3, "turns": 2, "conversation": "warm"}),
        ({"messages": [user("a")]}, {"conversation": "new", "in_tool_loop": False}),
        ({"messages": [user("a"), {"role": "system", "content": "now"}]}, {"conversation": "new", "turns": 1}),
        ({"messages": [user("a"), CALL, RESULT]}, {"in_tool_loop": True, "turns": 1, "conversation": "warm"}),
        ({"messages": [user("a"), CALL, RESULT, {"role": "system", "content": "x"}]}, {"in_tool_loop": True}),
        ({"messages": [user("a"), CALL, RESULT, assistant("b"), user("c")]}, {"in_tool_loop": False, "turns": 2}),
        ({"messages": [user("a"), CALL, user([*RESULT["content"], {"type": "text", "text": "hm"}])]}, {"turns": 2}),
    ],
)  # fmt: skip
def test_a_fact_is_what_its_declaration_says(
    catalog: Catalog, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Each row: fields of a body, and facts of it."""
    facts = inspect(request(**fields), Caller(), catalog)
    assert {name: facts.get(name) for name in expected} == expected


def test_images_inside_tool_results_count(catalog: Catalog) -> None:
    """A screenshot that a tool answered with is an image like any other."""
    result = user([{"type": "tool_result", "tool_use_id": "t", "content": [IMAGE, IMAGE]}])
    facts = inspect(request(messages=[user("look"), CALL, result]), Caller(), catalog)
    assert facts.images == 2
    assert 3200 < facts.input_tokens < 3400  # of base64 nothing counts


def test_tokens_grow_with_text_and_with_the_tokenizer(catalog: Catalog) -> None:
    """An estimate: a newer model makes more tokens of the same text; four bytes make about one, a Chinese sign one."""
    text = "The quick brown fox jumps over the lazy dog. " * 200
    new = inspect(request(messages=[user(text)]), Caller(), catalog).input_tokens
    old = inspect(request(messages=[user(text)], model="claude-haiku-4-5"), Caller(), catalog).input_tokens
    assert 1.2 < new / old < 1.4
    assert 0.2 < old / len(text) < 0.35
    chinese = inspect(request(messages=[user("天地玄黄宇宙洪荒" * 100)]), Caller(), catalog).input_tokens
    assert 700 < chinese < 1100


def test_tools_and_tool_calls_are_part_of_the_prompt(catalog: Catalog) -> None:
    """Schemas and call arguments are JSON that the model reads."""
    bare = inspect(request(), Caller(), catalog).input_tokens
    heavy = {**TOOL, "description": "x" * 27_000}
    assert inspect(request(tools=[heavy]), Caller(), catalog).input_tokens > bare + 10_000
    call = assistant([{"type": "tool_use", "id": "t", "name": "f", "input": {"text": "x" * 27_000}}])
    assert inspect(request(messages=[user("a"), call, RESULT]), Caller(), catalog).input_tokens > bare + 10_000


@pytest.mark.parametrize(
    ("agent", "family"),
    [
        ("Anthropic/Python 2.12.0", "python-sdk"),
        ("AsyncAnthropic/Python 0.125.0", "python-sdk"),
        ("Anthropic/JS 1.12.0", "ts-sdk"),
        ("claude-cli/2.1.330 (external, sdk-cli)", "claude-code"),
        ("curl/8.5.0", "curl"),
        ("python-httpx/0.28", "other"),
        ("", "other"),
    ],
)
def test_clients_are_known_by_their_user_agent(agent: str, family: str) -> None:
    """The families that traces and policies speak of (API sheet, section 16)."""
    assert client_family(agent) == family


def test_headers_say_who_calls(catalog: Catalog) -> None:
    """Request class, sub-agents, betas and what the caller brought."""
    caller = Caller(
        "acme",
        "ci",
        "red",
        {"x-claude-code-request-class": "compaction", "x-app": "cli"},
        betas=("b-1",),
        hour=7,
        weekday="sun",
    )
    facts = inspect(request(), caller, catalog)
    assert (facts.request_class, facts.tenant, facts.key, facts.policy) == ("compaction", "acme", "ci", "red")
    assert (facts.betas, facts.hour, facts.weekday) == (("b-1",), 7, "sun")
    assert (facts.get("header.x-app"), facts.get("header.x-other")) == ("cli", None)
    assert inspect(request(), Caller(headers={"x-claude-code-agent-id": "a1"}), catalog).request_class == "subagent"


def test_a_conversation_keeps_its_key(catalog: Catalog) -> None:
    """Later turns do not change it; another tenant, system prompt, tool set or opening does."""
    first = inspect(request(system="S", tools=[TOOL]), Caller("t"), catalog).conversation_key
    later = request(system="S", tools=[TOOL], messages=[user("hello"), assistant("hi"), user("more")], max_tokens=5)
    assert inspect(later, Caller("t"), catalog).conversation_key == first
    others = [
        inspect(request(system="S", tools=[TOOL]), Caller("u"), catalog),
        inspect(request(system="T", tools=[TOOL]), Caller("t"), catalog),
        inspect(request(system="S"), Caller("t"), catalog),
        inspect(request(system="S", tools=[TOOL], messages=[user("bye")]), Caller("t"), catalog),
        inspect(request(system="S", tools=[TOOL]), Caller("t", headers={"x-claude-code-session-id": "s"}), catalog),
    ]
    assert len({first, *(facts.conversation_key for facts in others)}) == 6


def test_a_session_header_is_the_conversation(catalog: Catalog) -> None:
    """Claude Code says which session it is; a sub-agent is a conversation of its own."""
    session = {"x-claude-code-session-id": "s1"}
    one = inspect(request(), Caller("t", headers=session), catalog).conversation_key
    assert inspect(request(messages=[user("other")]), Caller("t", headers=session), catalog).conversation_key == one
    agent = Caller("t", headers={**session, "x-claude-code-agent-id": "a"})
    assert inspect(request(), agent, catalog).conversation_key != one


def test_a_record_holds_no_text(catalog: Catalog) -> None:
    """What a trace keeps is counts, names and hashes: no prompt, no user, no header that no rule names."""
    secret = "a very private sentence"
    caller = Caller(headers={"authorization": secret, "x-team": "red", "x-other": secret})
    body = request(system=secret, messages=[user(secret)], metadata={"user_id": secret})
    facts = inspect(body, caller, catalog)
    facts.language, facts.code_share  # noqa: B018 - reading them is what puts them into the record
    record = json.dumps(facts.recorded(headers=("x-team", "authorization")))
    assert secret not in record
    assert json.loads(record)["header.x-team"] == "red"
    assert json.loads(record)["user"].startswith("hash-")


@pytest.mark.parametrize(
    "header",
    ["api-key", "x-goog-api-key", "x-auth-token", "x-amz-security-token", "set-cookie", "x-db-password", "x-session"],
)
def test_a_header_that_may_hold_a_credential_is_recorded_only_as_set(catalog: Catalog, header: str) -> None:
    """A rule may read it; whoever reads traces does not."""
    facts = inspect(request(), Caller(headers={header: "canary-1"}), catalog)
    assert facts.get(f"header.{header}") == "canary-1"
    assert (
        facts.recorded(headers=(header, "x-other-key")).items()
        >= {
            f"header.{header}": "(set)",
            "header.x-other-key": None,
        }.items()
    )


def test_a_record_holds_no_free_text_of_fields_with_few_values(catalog: Catalog) -> None:
    """`thinking` and `effort` are recorded as values of the API, whatever stands there; rules see what was sent."""
    secret = "a very private sentence"
    facts = inspect(request(thinking={"type": secret}, output_config={"effort": secret}), Caller(), catalog)
    record = facts.recorded()
    assert (record["thinking"], record["effort"]) == ("other", "other")
    assert (facts.thinking, facts.effort) == (secret, secret)
    for name in ("thinking", "effort"):
        for value in (None, *FACTS[name].values):
            assert Facts.given({name: value}).recorded()[name] == value


def test_a_record_is_bounded_whatever_the_client_words(catalog: Catalog) -> None:
    """100 characters of each text, 50 entries of each list: a prompt has no room in a trace."""
    long = "x" * 10_000
    headers = {"x-claude-code-request-class": long, "x-team": long}
    tools = [{**TOOL, "name": f"{number}{long}"} for number in range(500)]
    caller = Caller(headers=headers, betas=(long,) * 500)
    facts = inspect(request(model=long[:256], tools=tools), caller, catalog)
    record = facts.recorded(headers=("x-team",))
    for name in ("request_class", "header.x-team", "requested_model"):
        assert len(record[name]) == 100
    for name in ("tool_names", "betas"):
        assert [len(text) for text in record[name]] == [100] * 50
    assert record["tools"] == 500
    assert len(json.dumps(record)) < 12_000


def test_a_record_gives_the_facts_back(catalog: Catalog) -> None:
    """`given(recorded())` has the same counted facts, which is what a policy diff runs on."""
    body = request(stream=True, tools=[TOOL], thinking={"type": "adaptive"}, messages=[user("a"), CALL, RESULT])
    facts = inspect(body, Caller("t", betas=("b",)), catalog)
    record = facts.recorded()
    assert Facts.given(json.loads(json.dumps(record))).recorded() == record


KEYS = ["type", "text", "content", "source", "data", "name", "format", "user_id", "thinking"]
FIELDS = ["system", "tools", "tool_choice", "thinking", "output_config", "output_format", "metadata", "max_tokens"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("ab \U0001f600", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)
odd_messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "x"])}, optional={"content": json_values}
)


@given(st.dictionaries(st.sampled_from(FIELDS), json_values), st.lists(odd_messages, min_size=1, max_size=3))
def test_no_body_makes_inspection_fail(catalog: Catalog, fields: dict[str, Any], messages: list[Any]) -> None:
    """Any JSON in any field: a fact of an odd type is absent, and everything can be recorded."""
    body = {"model": "m", **fields, "messages": messages}
    raw = json.dumps(body).encode()
    facts = inspect(MessagesRequest(raw, body, "m", (0, 0), False, True), Caller(), catalog)
    for name in FACTS:
        facts.get(name)
    assert len(facts.conversation_key) == 32
    json.dumps(facts.recorded())


def test_every_fact_can_be_read_and_credentials_cannot(catalog: Catalog) -> None:
    """The vocabulary and the values agree; a header with a credential is no fact."""
    facts = inspect(request(), Caller(), catalog)
    for name in FACTS:
        assert (facts.get(name) is None) or name not in LABEL_FACTS
    assert facts.get("nonsense") is None
    assert fact_spec("header.x-team") is not None
    for name in ("header.authorization", "header.x-api-key", "header.cookie", "header.", "header.X-Team", "nonsense"):
        assert fact_spec(name) is None
    with pytest.raises(KeyError):
        Facts.given({"nonsense": 1})


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the weather like in Rome, and how do I get there by train?", "en"),
        ("Wie ist das Wetter in Rom und wie komme ich mit dem Zug dahin?", "de"),
        ("Quel temps fait-il à Rome et comment est-ce que je vais y aller avec le train ?", "fr"),
        ("¿Qué tiempo hace en Roma y cómo llego con el tren de la mañana?", "es"),
        ("Che tempo fa a Roma e come ci arrivo con il treno della mattina?", "it"),
        ("Какая погода в Риме?", "ru"),
        ("罗马的天气怎么样？", "zh"),
        ("ローマの天気はどうですか", "ja"),
        ("로마 날씨는 어때요?", "ko"),
        ("ما هو الطقس في روما؟", "ar"),
        ("12345 67890", None),
        ("", None),
    ],
)
def test_a_language_is_told_by_script_or_common_words(text: str, language: str | None) -> None:
    """Good enough to route by; None when unsure."""
    assert language_of(text) == language


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("Please classify this ticket.\nThank you.", 0, 0),
        ("def f(x):\n    return x + 1\n", 0.99, 1),
        ("Explain this:\n```\nfoo\nbar\n```", 0.7, 0.9),
        ("const a = 1;\nif (a) {\n  go();\n}", 0.99, 1),
        ("", 0, 0),
    ],
)
def test_code_is_told_by_its_lines(text: str, low: float, high: float) -> None:
    """A share of lines, fences counted whole."""
    assert low <= code_share(text) <= high


def test_every_counted_fact_is_recorded() -> None:
    """The record is spelled out by hand; it holds each declared fact that the one pass counts, and no other."""
    counted = {name for name, spec in FACTS.items() if spec.cost == "counted"} - {"user"}
    assert set(Facts().recorded()) == counted
