"""A binding: what an answer leaves behind, and what may be read back from a store that others write to."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.affinity.binding import Binding, binding_keys, bound, decode
from router.facts.inspect import Facts
from router.usage import Iteration, Tokens, Usage

HAIKU, SONNET, OPUS = "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"
NOW_S = 1_795_000_000.0
BEFORE = Binding("opus", OPUS, 50_000, 49_000, 300, 400, NOW_S - 60)

names = st.text(st.characters(exclude_categories=("C", "Z")), max_size=256)
counts = st.integers(0, 2**40 - 1)


@st.composite
def bindings(draw: st.DrawFn) -> Binding:
    prefix = draw(counts)
    return Binding(
        lane=draw(names),
        model=draw(names),
        prefix_tokens=prefix,
        cached_tokens=draw(st.integers(0, prefix)),
        cache_ttl_s=draw(counts),
        output_tokens=draw(counts),
        served_at_s=draw(st.floats(0, 2**40, exclude_max=True)),
    )


@given(bindings())
def test_what_is_encoded_is_decoded_as_it_was(binding: Binding):
    """A store gives back what was put in."""
    assert decode(binding.encode()) == binding


def test_the_longest_binding_still_fits():
    """The limit on size is above every binding there can be: names of the longest kind, twelve bytes a character."""
    name = "𝔘" * 256
    binding = Binding(name, name, 2**39, 2**39, 3600, 2**39, NOW_S + 0.123456789)
    assert len(binding.encode()) > 6_000
    assert decode(binding.encode()) == binding


@given(st.binary(max_size=300))
def test_garbage_is_no_binding(data: bytes):
    """Bytes that nobody wrote as a binding are none."""
    assert decode(data) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


@given(st.lists(values, min_size=7, max_size=9) | values)
def test_foreign_json_is_none_or_a_binding_that_holds_what_bindings_hold(value: object):
    """Whatever JSON another program keeps under our key, nothing but a whole binding comes out."""
    found = decode(json.dumps([2, *value[1:]] if isinstance(value, list) else value).encode())
    assert found is None or decode(found.encode()) == found


FIELDS = json.loads(BEFORE.encode())


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 1), (0, "2"), (0, None),
        (1, None), (1, 7), (1, "x" * 257), (1, "two\nlines"), (2, ["a"]), (2, "\ud800"),
        (3, -1), (3, 1.5), (3, True), (3, 2**40), (3, "7"),
        (4, 50_001), (5, None), (6, [1]),
        (7, -1), (7, "now"), (7, True), (7, float("nan")), (7, float("inf")), (7, 2**40),
    ],
)  # fmt: skip
def test_one_wrong_field_makes_it_none(index: int, value: object):
    """Each field is checked: a later format, another type, a name too long, a count out of bounds."""
    fields = [*FIELDS]
    fields[index] = value
    assert decode(json.dumps(fields).encode()) is None
    assert decode(json.dumps(FIELDS).encode()) == BEFORE


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{}", b"[2]", json.dumps([*FIELDS, 0]).encode(), json.dumps(FIELDS[:-1]).encode(),
        b"[" * 30_000, b"[2," + b"9" * 20_000 + b"]", b" " * 8_193 + BEFORE.encode(), b"[2" + b",1" * 5_000_000 + b"]",
    ],
    ids=range(11),
)  # fmt: skip
def test_odd_and_oversized_values_are_none(data: bytes):
    """Deep, long and huge values are refused; the huge ones before they are parsed."""
    assert decode(data) is None


def test_a_value_that_is_not_bytes_is_none():
    """A list or a number under our key, as a store may answer, is no binding."""
    assert decode(7) is None  # type: ignore[arg-type]
    assert decode([BEFORE.encode()]) is None  # type: ignore[arg-type]


def keys(**facts: object) -> tuple[str, ...]:
    return binding_keys(Facts(**{"requested_model": SONNET, "_conversation_key": "a" * 32, **facts}))  # type: ignore[arg-type]


def key(**facts: object) -> str:
    (only,) = keys(**facts)
    return only


def test_a_key_is_32_hex_digits():
    """Its length is bounded and it holds no text, whatever the client sends."""
    long = key(requested_model="x\r\n" * 100_000 + "\ud800", request_class="y" * 10_000)
    assert len(long) == 32
    assert set(long) <= set("0123456789abcdef")


def test_the_key_tells_conversation_model_asked_for_and_kind_of_request_apart():
    """Who asks for another model gets it, titles do not take the main loop along, no text is taken for another."""
    found = [
        key(), key(policy="other"), key(_conversation_key="b" * 32), key(requested_model=OPUS),
        key(request_class="title"),
        key(request_class=SONNET, requested_model="title"), key(requested_model=f"title\n{SONNET}"),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert key() == key(request_class=None)


def talk(first: str, **facts: object) -> tuple[str, ...]:
    body = {"messages": [{"role": "user", "content": first}]}
    return keys(headers={"x-claude-code-session-id": "s"}, _body=body, **facts)


def test_a_session_has_a_key_for_itself_and_one_for_each_conversation_in_it():
    """A side request in a session is told from its main conversation by the first user turn."""
    main, side = talk("build it"), talk("a title, please")
    assert len(main) == len(side) == 2
    assert main[1] == side[1]
    assert len({*main, *side}) == 3
    assert main == talk("build it")


def after(before: Binding | None = None, **counts: int) -> Binding:
    return bound(before, lane="opus", model=OPUS, usage=Usage(Tokens(**counts)), now_s=NOW_S)


def test_the_next_turn_repeats_prompt_and_answer():
    """The prefix is all prompt tokens and the answer; what was read and written is cached."""
    binding = after(BEFORE, input=10, cache_read=900, cache_write_5m=90, output=50)
    assert (binding.prefix_tokens, binding.cached_tokens, binding.output_tokens) == (1050, 990, 50)
    assert binding.is_warm(NOW_S + 299)
    assert not binding.is_warm(NOW_S + 300)


def test_without_a_prompt_cache_nothing_is_warm():
    """A program that sets no cache marker pays in full on every turn."""
    binding = after(BEFORE, input=1000, output=50)
    assert binding.cached_tokens == 0
    assert not binding.is_warm(NOW_S)


def test_an_hour_of_prompt_cache_lasts_while_it_is_only_read():
    """A read does not say which life the entry has: it is that of its writing. A new short entry shortens it."""
    hour = after(None, cache_write_1h=2000)
    assert hour.is_warm(NOW_S + 3599)
    assert after(hour, cache_read=2000).cache_ttl_s == 3600
    assert after(hour, cache_read=2000, cache_write_5m=100).cache_ttl_s == 300
    assert after(hour, input=2000).cache_ttl_s == 300


def test_a_loop_of_server_tools_is_as_long_as_its_last_call():
    """The bill counts the prompt once per call; the conversation is not that long."""
    calls = (Tokens(cache_write_5m=1000, output=20), Tokens(cache_read=1000, cache_write_5m=500, output=30))
    usage = Usage(
        Tokens(cache_read=1000, cache_write_5m=1500, output=50),
        iterations=tuple(Iteration("message", None, tokens) for tokens in calls),
    )
    binding = bound(None, lane="opus", model=OPUS, usage=usage, now_s=NOW_S)
    assert (binding.prefix_tokens, binding.cached_tokens, binding.output_tokens) == (1530, 1500, 50)


def test_a_replay_leaves_the_providers_cache_as_it_was():
    """The provider saw nothing of it: what was warm is warm for as long as it was, and is not taken for nothing."""
    replayed = bound(BEFORE, lane="opus", model=OPUS, usage=None, now_s=NOW_S)
    assert replayed == BEFORE


def test_a_replay_of_another_models_answer_knows_nothing():
    """On that model nothing is known to be there."""
    replayed = bound(BEFORE, lane="haiku", model=HAIKU, usage=None, now_s=NOW_S)
    assert (replayed.model, replayed.prefix_tokens, replayed.cached_tokens) == (HAIKU, 0, 0)
