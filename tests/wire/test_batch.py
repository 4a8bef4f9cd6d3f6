"""The body of a batch: items found without parsing it whole, the frame refused as the API does, bytes spliced."""

from __future__ import annotations

import json
import string
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import InvalidRequest, RequestTooLarge
from router.wire.batch import MAX_ITEM_BYTES, MAX_ITEMS, STEP_BYTES, BatchItem, BatchReader, Spliced

PARAMS = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": 'a "quoted" {brace] é'}]}


def items_of(raw: bytes, **options: Any) -> list[BatchItem]:
    """Every item of a body."""
    reader = BatchReader(raw, **options)
    return [reader.read(*span) for span in reader.spans() if span is not None]


def body_of(*items: Any, **more: Any) -> bytes:
    return json.dumps({"requests": list(items), **more}).encode()


def item(name: str = "a", **params: Any) -> dict[str, Any]:
    return {"custom_id": name, "params": {**PARAMS, **params}}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n", "\t: ")])
@pytest.mark.parametrize("is_turned", [False, True])
def test_each_item_is_found_with_its_model_in_any_spelling(separators, is_turned):
    """Where `params` and the model stand is exact, whatever the spaces and the order of keys."""
    wanted = [item("a"), item("b-2", system=[{"type": "text", "text": "]}" * 3}]), item("C_3", model="other")]
    if is_turned:
        wanted = [dict(reversed(each.items())) for each in wanted]
    raw = json.dumps({"requests": wanted}, separators=separators, ensure_ascii=False).encode()
    found = items_of(raw)
    assert [each.custom_id for each in found] == ["a", "b-2", "C_3"]
    for each, said in zip(found, wanted, strict=True):
        assert each.request is not None
        assert orjson.loads(raw[each.start : each.end]) == said["params"]
        assert each.request.raw == raw[each.start : each.end]
        start, end = each.request.model_span
        assert orjson.loads(raw[each.start + start : each.start + end]) == said["params"]["model"]


REFUSED = [
    (b"", "not valid JSON"),
    (b"[]", "must be a JSON object"),
    (b"[" + json.dumps(item("a", x="y" * 100)).encode() + b"]", "must be a JSON object"),
    (b'"' + b"x" * 100 + b'"', "must be a JSON object"),
    (b"null", "must be a JSON object"),
    (b"{}", "requests: Field required"),
    (b'{"requests":null}', "requests: Input should be a valid list"),
    (b'{"requests":{}}', "requests: Input should be a valid list"),
    (b'{"requests":[]}', "from 1 to 100000 items are allowed. Found 0."),
    (b'{"other":[1,{"a":2}]}', "requests: Field required"),
    (body_of(item(), extra=1), "extra: Extra inputs are not permitted"),
    (b'{"extra":"]","requests":[' + json.dumps(item()).encode() + b"]}", "extra: Extra inputs are not permitted"),
    (b'{"requests":[],"requests":[]}', "Found 0"),
    (body_of(item())[:-1] + b',"requests":[]}', "`requests` twice"),
    (body_of(7), "requests.0: Input should be a valid dictionary"),
    (body_of(item(), "x"), "requests.1: Input should be a valid dictionary"),
    (body_of(item(), []), "requests.1: Input should be a valid dictionary"),
    (body_of({"params": PARAMS}), "requests.0.custom_id: Field required"),
    (body_of({"custom_id": "a"}), "requests.0.params: Field required"),
    (body_of({**item(), "more": 1}), "requests.0.more: Extra inputs are not permitted"),
    (body_of(item("a b")), "requests.0.custom_id: String should match pattern"),
    (body_of(item("é")), "requests.0.custom_id: String should match pattern"),
    (body_of(item("a\n")), "requests.0.custom_id: String should match pattern"),
    (body_of(item("x" * 65)), "requests.0.custom_id: String should match pattern"),
    (body_of({"custom_id": 1, "params": PARAMS}), "requests.0.custom_id: String should match pattern"),
    (body_of(item("a"), item("b"), item("a")), "requests.2.custom_id: must be unique within the batch"),
    (body_of({"custom_id": "a", "params": None}), "requests.0.params: Input should be a valid dictionary"),
    (b'{"requests":[{"custom_id":"a","custom_id":"b","params":{}}]}', "requests.0: the request body has the key"),
    (b'{"requests":[{"custom_id":"a","params":{"x":"m","x":"n"}}]}', "requests.0: the request body has the key"),
    (b'{"requests":[{"custom_id":"a","params":' + b"[" * 300 + b"]" * 300 + b"}]}", "nested deeper"),
    (body_of(item()).replace(b"[", b" " * 1_500_000 + b"[", 1), "1048576 bytes of white space in a row"),
    *((broken, "not valid JSON") for broken in (
        b"{", b'{"requests"', b'{"requests":[', b'{"requests":[{"custom_id":"a"', body_of(item())[:-1],
        body_of(item()) + b"x", body_of(item()) + b"{}", b"\xef\xbb\xbf" + body_of(item()),
        body_of(item()).replace(b"5", b"NaN"), body_of(item()).replace(b"]}", b"]}}", 1),
        body_of(item()).replace(b'"m"', b'"\xff"'), body_of(item())[:-2] + b",]}", body_of(item())[:-1] + b",}",
        b'{"requests":[{"custom_id":"a\\', b'{"requests":[{"x":"' + b"y" * 200_000, b'{"requests":["x',
        body_of(item(), item("b")).replace(b"}, {", b"} {"), b'{requests:[]}', b"{'requests':[]}",
    )),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "said"), REFUSED, ids=[f"{n}" for n in range(len(REFUSED))])
def test_what_the_api_refuses_as_a_whole_is_refused(raw, said):
    """Nothing of such a batch is sent; the words are the API's where they are known."""
    with pytest.raises(InvalidRequest, match=said.replace(".", r"\.").replace("`", ".")):
        items_of(raw)


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"stream": True}, "stream: not supported"),
        ({"speed": "fast"}, "speed: not supported"),
        ({"thread": {"id": "x"}}, "thread: not supported"),
        ({"fallbacks": []}, "fallbacks: not supported"),
        ({"max_tokens": 0}, "max_tokens: 0 is not"),
        ({"billing_policy": {"bill_to": "user_profile"}}, "billing_policy.bill_to"),
        ({"model": 7}, "model: Input should be a valid string"),
        ({"model": None}, "model: Field required"),
        ({"max_tokens": "many"}, "max_tokens: Input should be"),
        ({"messages": []}, "messages: at least one"),
        ({"messages": "x"}, "messages: Input should be a valid list"),
    ],
)
def test_what_the_api_fails_alone_is_left_as_it_is(params, why):
    """Such an item has no request, so that nobody changes its bytes; its neighbours do."""
    found = items_of(body_of(item("a"), item("b", **params), item("c")))
    assert [each.request is None for each in found] == [False, True, False]
    assert why in found[1].why_not


def test_unknown_fields_pass_where_a_beta_may_have_them():
    """A beta of tomorrow must work today: the API judges what it is."""
    raw = body_of({**item("a"), "priority": 1}, item("b"), expires="soon")
    assert [each.custom_id for each in items_of(raw, takes_unknown=True)] == ["a", "b"]


def test_more_items_than_the_api_takes_are_refused():
    """At the one that is too many."""
    raw = b'{"requests":[' + b"{}," * MAX_ITEMS + b"{}]}"
    with pytest.raises(InvalidRequest, match="from 1 to 100000 items"):
        for _ in BatchReader(raw).spans():
            pass


def test_a_long_search_is_cut_into_steps():
    """An item of millions of brackets is followed a step at a time, so that others get their turn."""
    raw = b'{"requests":[{"custom_id":"a","params":{"x":[' + b"[[]]," * 20_000 + b"1]}}]}"
    spans = list(BatchReader(raw).spans())
    assert spans.count(None) >= 10
    assert spans[-1] == (13, len(raw) - 2)


DENSE = {
    "lists": b"[]," * 400_000 + b"1",
    "objects": b'{"a":1},' * 150_000 + b"1",
    "numbers": b"1," * 600_000 + b"1",
    "texts": b'"a",' * 300_000 + b"1",
    "spaces": b" " * 1_200_000 + b"1",
    "a text": b'"' + b"x" * 1_200_000 + b'"',
    "escapes": b'"' + b"\\n" * 600_000 + b'"',
    "backslashes": b'"x' + b"\\\\" * 600_000 + b'"',
}


@pytest.mark.parametrize("kind", DENSE)
def test_no_step_looks_at_more_than_its_share_of_an_item(kind):
    """Whatever an item is filled with: one step is never all of it, so one batch cannot hold all others up."""
    raw = b'{"requests":[{"custom_id":"a","params":{"model":"m","x":[' + DENSE[kind] + b"]}}]}"
    spans = list(BatchReader(raw).spans())
    assert spans.count(None) >= len(DENSE[kind]) // STEP_BYTES
    assert spans[-1] == (13, len(raw) - 2)


@pytest.mark.parametrize("value", [b'"' + b"x" * MAX_ITEM_BYTES + b'"', b"[" + b" " * MAX_ITEM_BYTES + b"]"])
def test_an_item_larger_than_a_request_may_be_is_refused_before_it_is_read(value):
    """At the byte that is too many: nothing behind it is looked at, and nothing of it is parsed."""
    raw = b"".join((b'{"requests":[{"custom_id":"a","params":{}},{"custom_id":"b","params":', value, b"}", b"?" * 99))
    with pytest.raises(RequestTooLarge, match=r"requests\.1: over 33554432 bytes"):
        for _ in BatchReader(raw).spans():
            pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
ID = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=64)


@given(
    st.dictionaries(
        ID, st.dictionaries(st.sampled_from(["model", "messages", "x", "{"]), JSON, max_size=4), min_size=1
    ),
    st.sampled_from([(",", ":"), (", ", ": "), ("\n,", " : ")]),
    st.booleans(),
    st.integers(2, 60),
)
def test_the_places_of_items_are_those_of_a_parser(batch, separators, is_ascii, step_bytes):
    """Property: whatever valid batch comes, and wherever steps end, each item's bytes parse to its params."""
    wanted = [{"custom_id": name, "params": params} for name, params in batch.items()]
    raw = json.dumps({"requests": wanted}, separators=separators, ensure_ascii=is_ascii).encode("utf-8", "replace")
    found = items_of(raw, step_bytes=step_bytes)
    said = orjson.loads(raw)["requests"]
    assert [(each.custom_id, orjson.loads(raw[each.start : each.end])) for each in found] == [
        (each["custom_id"], each["params"]) for each in said
    ]


@given(
    st.binary(max_size=60),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.binary(max_size=9)), max_size=6),
    st.integers(1, 50),
)
def test_a_spliced_body_is_what_joining_would_make(raw, places, most):
    """Property: any places, any size of pieces; the length is known before."""
    spliced, expected, done = Spliced(raw), b"", 0
    for start, end, new in sorted((min(a, b), max(a, b), new) for a, b, new in places):
        if done <= start and end <= len(raw):
            spliced.replace(start, end, new)
            expected += raw[done:start] + new
            done = end
    expected += raw[done:]
    pieces = list(spliced.pieces(most))
    assert b"".join(pieces) == expected
    assert len(spliced) == len(expected)
    assert all(0 < len(piece) <= most for piece in pieces)
    assert b"".join(spliced.pieces(most)) == expected, "it may be read again"


@given(
    st.binary(min_size=1, max_size=60),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 8), st.booleans(), st.binary(max_size=5)), max_size=8),
)
def test_what_is_left_out_goes_with_whatever_was_replaced_in_it(raw, places):
    """Property: places side by side, some of which go, with a replacement of their own inside or none."""
    spliced, gone, expected, done = Spliced(raw), [], b"", 0
    for begin, length, goes, new in sorted(places):
        start, end = max(begin, done), begin + length
        if start >= end or end > len(raw):
            continue
        spliced.replace(start, end, new)
        expected += raw[done:start] + (b"" if goes else new)
        gone += [(start, end)] if goes else []
        done = end
    expected += raw[done:]
    without = spliced.without(gone)
    assert b"".join(without.pieces(7)) == expected
    assert len(without) == len(expected)
