"""Reading a body: strict about what could be read in two ways, blind to everything else, exact about one span."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import InvalidRequest
from router.wire.messages import MAX_DEPTH, object_spans, read_json, read_request

REST = {"max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


KEYS = st.sampled_from(["model", "a", "", "mo", 'x"model', "é", "\\", "messages2", 'model\\":'])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "x", '"model":', '\\"model\\":"y"', "é🌍\u2028", "\\", '\\\\"', "{[", "a\nb\u0000"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
WRITERS = {
    "compact": orjson.dumps,
    "spaced": lambda value: json.dumps(value).encode(),
    "pretty": lambda value: json.dumps(value, indent="\t", ensure_ascii=False).replace("\n", "\r\n").encode(),
    "ascii": lambda value: json.dumps(value, separators=(" , ", " : ")).encode(),
}


@settings(deadline=None, max_examples=250)
@given(
    st.dictionaries(KEYS.filter(lambda key: key != "model"), VALUES, max_size=4), st.integers(0, 7),
    st.sampled_from(["claude-x", "a\"b\\", "é", "auto", "lane:x"]), st.sampled_from(sorted(WRITERS)),
)  # fmt: skip
def test_the_model_is_found_and_spliced_in_any_spelling(more, place, model, writer):
    """However a body is written and wherever the model stands: only its bytes change, and the result reads as meant."""
    items = [*more.items(), *REST.items()]
    items.insert(min(place, len(items)), ("model", model))
    body = dict(items)
    raw = WRITERS[writer](body)
    request = read_request(raw)
    start, end = request.model_span
    assert orjson.loads(raw[start:end]) == model == request.model
    spliced = request.with_model("claude-y")
    assert spliced == raw[:start] + b'"claude-y"' + raw[end:]
    assert orjson.loads(spliced) == {**body, "model": "claude-y"}
    assert request.with_model(model) is raw


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.sampled_from(sorted(WRITERS)))
def test_the_span_of_each_value_is_exact(body, writer):
    """`object_spans` gives every value of the object, byte for byte."""
    raw = b" \n" + WRITERS[writer](body) + b" "
    spans = object_spans(raw)
    assert {key: orjson.loads(raw[start:end]) for key, (start, end) in spans.items()} == body
    assert all(raw[start:end].strip() == raw[start:end] for start, end in spans.values())


@settings(deadline=None, max_examples=150)
@given(VALUES, KEYS, st.sampled_from(["", " "]), st.integers(0, 5), st.booleans())
def test_a_duplicate_key_is_found_at_any_depth(value, key, space, depth, is_same):
    """Compact or spaced, the same value or another, escaped or not: two of one key are never read."""
    name, other = compact(key), json.dumps(key).encode()
    first, second = compact(value), compact(value if is_same else [value])
    raw = b"{%b:%b,%b%b:%b}" % (name, first, space.encode(), other, second)
    for _ in range(depth):
        raw = b'{"k":[%b]}' % raw
    with pytest.raises(InvalidRequest, match="twice"):
        read_json(raw)


def test_what_is_compact_is_known_to_be():
    """The quick reading is taken for compact bodies only."""
    assert read_json(b'{"a":[1,2.5,"x"]}') == ({"a": [1, 2.5, "x"]}, True)
    assert read_json(b'{"a": 1}') == ({"a": 1}, False)
    assert read_json(b'{"a":1.0e0}')[1] is False


def test_a_wide_object_with_a_late_duplicate_is_refused_quickly():
    """A hundred thousand keys, the last one twice: linear work, not the square of it (F40)."""
    import time

    raw = b"{" + b",".join(b'"k%d":1' % n for n in range(100_000)) + b',"k99999":1}'
    started = time.process_time()
    with pytest.raises(InvalidRequest, match="`k99999` twice"):
        read_json(raw)
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":', b"[ "])
@pytest.mark.parametrize("levels", [MAX_DEPTH + 10, 600, 1_100, 20_000, 1_000_000])
def test_deep_nesting_is_refused_whatever_its_spelling(opening, levels):
    """No recursion error gets out, however deep (F40)."""
    closing = {b"[": b"]", b'{"a":': b"}", b'[{"a":': b"}]", b"[ ": b" ]"}[opening]
    with pytest.raises(InvalidRequest):
        read_json(opening * levels + b"1" + closing * levels)


def test_nesting_up_to_the_limit_is_read():
    """Compact or not."""
    for raw in (b"[" * 250 + b"]" * 250, b"[ " * 250 + b"]" * 250):
        assert read_json(raw)[0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": None}, "model: Field required"),
        ({"model": 5}, "model: Input should be a valid string"),
        ({"messages": None}, "messages: Field required"),
        ({"messages": {}}, "messages: Input should be a valid list"),
        ({"messages": []}, "messages: at least one message is required"),
        ({"messages": [{"role": 1}]}, "messages.0.role: Field required"),
        ({"max_tokens": 1.5}, "max_tokens: Input should be a valid integer"),
        ({"max_tokens": -1}, "max_tokens: Input should be greater than or equal to 0"),
        ({"stream": 1}, "stream: Input should be a valid boolean"),
    ],
)
def test_what_is_wrong_is_said_in_the_apis_words(change, text):
    """Clients match on error texts."""
    with pytest.raises(InvalidRequest) as caught:
        read_request(compact({"model": "m", **REST, **change}))
    assert caught.value.message == text


def test_what_the_router_does_not_read_may_be_anything():
    """Odd types elsewhere are the upstream's to refuse."""
    body = {"model": "m", "max_tokens": 0, "messages": [{"role": "of_tomorrow", "content": 5, "x": None}],
            "tools": "x", "system": 7, "thinking": [], "metadata": 1}  # fmt: skip
    request = read_request(compact(body))
    assert request.body == body
    assert not request.is_streaming
    assert read_request(compact({**body, "stream": True})).is_streaming


def test_counting_tokens_needs_no_max_tokens():
    """But one that is there must make sense."""
    body = {"model": "m", "messages": REST["messages"]}
    assert read_request(compact(body), needs_max_tokens=False).model == "m"
    with pytest.raises(InvalidRequest, match="max_tokens: Field required"):
        read_request(compact(body))
    with pytest.raises(InvalidRequest):
        read_request(compact({**body, "max_tokens": "1"}), needs_max_tokens=False)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_bytes_raise_anything_but_invalid_request(raw):
    """A body is a MessagesRequest or an InvalidRequest, nothing else."""
    for body in (raw, b'{"model":"m","max_tokens":1,"messages":[{"role":"user"}],"x":' + raw + b"}"):
        try:
            request = read_request(body)
        except InvalidRequest:
            continue
        assert orjson.loads(request.with_model("y"))["model"] == "y"
