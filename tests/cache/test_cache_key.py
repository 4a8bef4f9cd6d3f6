"""The cache key: everything counts but what is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.cache.key import IGNORED, cache_key
from router.errors import InvalidRequest
from router.wire.messages import read_request

BODY: dict[str, Any] = {
    "model": "claude-sonnet-5-5", "max_tokens": 10, "system": "be brief", "temperature": 0.5, "stop_sequences": ["x"],
    "tools": [{"name": "t", "input_schema": {"type": "object", "properties": {"b": {}, "a": {}}}}],
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}],
}  # fmt: skip


def key(body: dict[str, Any] | bytes = BODY, **changes: Any) -> str:
    given: dict[str, Any] = {"tenant": "t", "model": "m", "api_version": "2023-06-01", "betas": ("a", "b"), **changes}
    raw = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    return cache_key(read_request(raw), **given)


def test_every_part_beside_the_body_counts():
    """Tenant, model sent, version, betas, workspace: each makes another key (S5)."""
    keys = [
        key(), key(tenant="u"), key(model="n"), key(api_version="2026-10-21"), key(betas=("a",)), key(betas=()),
        key(workspace="w"), key({**BODY, "stream": True}),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key(betas=("b", "a")) == key()
    assert all(len(found) == 64 for found in keys)


def test_parts_cannot_be_moved_into_one_another():
    """`ab` + `c` is not `a` + `bc`: no part that a client chooses can imitate another's (S5)."""
    assert key(tenant="ab", model="c") != key(tenant="a", model="bc")
    assert key(api_version="x", workspace="") != key(api_version="", workspace="x")
    assert key(betas=("a,b",)) != key(betas=("a", "b"))


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at]
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found += paths(inner, (*at, name))
    return found


@settings(deadline=None, max_examples=120)
@given(
    st.sampled_from([path for path in paths(BODY) if path and path[0] != "model"]),
    st.sampled_from(["z", 7, [], {}, None, True]),
)
def test_any_change_of_the_body_changes_the_key(path, value):
    """Wherever a value is replaced, unless the request is then none at all."""
    changed = json.loads(json.dumps(BODY))
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    if inner[path[-1]] == value and type(inner[path[-1]]) is type(value):
        return
    inner[path[-1]] = value
    try:
        found = key(changed)
    except InvalidRequest:
        return
    assert found != key()


def test_a_field_of_tomorrow_counts_from_its_first_day():
    """Nothing has to be listed to count."""
    assert key({**BODY, "field_of_2027": 1}) != key({**BODY, "field_of_2027": 2}) != key()


def test_what_is_ignored_is_ignored():
    """`model` as asked and `metadata`; `stream: false` is the absence of `stream`."""
    assert key({**BODY, "model": "auto"}) == key()
    assert key({**BODY, "metadata": {"user_id": "u"}}) == key()
    assert key({**BODY, "stream": False}) == key()
    assert set(IGNORED) == {"model", "metadata", "stream"}
    assert all(IGNORED.values())


def test_the_order_of_the_fields_does_not_count():
    """Client libraries write the top-level fields in orders of their own."""
    assert key(dict(reversed(BODY.items()))) == key()


def test_another_spelling_is_another_key():
    """White space and escapes are not read away: what parsing might lose counts, at the price of a miss."""
    pretty = json.dumps(BODY, indent=2).encode()
    assert key(pretty) == key(pretty) != key()
    assert key(pretty.replace(b"claude-sonnet-5-5", b"claude-opus-5-5")) == key(pretty), "the model sent counts instead"
    assert key(json.dumps(BODY, separators=(",", ":")).replace("hi", "\\u0068i").encode()) != key()


def test_the_order_inside_a_schema_counts():
    """A model is shown properties in order, and answers in that order."""
    other = json.loads(json.dumps(BODY))
    other["tools"][0]["input_schema"]["properties"] = {"a": {}, "b": {}}
    assert key(other) != key()


def test_numbers_beyond_a_floats_digits_count_to_the_last():
    """Two that parse alike are still two."""
    raw = json.dumps({**BODY, "x": 0}, separators=(",", ":"))
    one, two = (raw.replace('"x":0', f'"x":{n}').encode() for n in ("123456789012345678901", "123456789012345678902"))
    assert key(one) == key(one) != key(two)


def test_claude_codes_billing_block_does_not_count():
    """Its digits vary with the version and the first turn; any other first block counts."""
    block = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.330.a1b; cc_entrypoint=cli;"}
    other = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.330.fff; cc_entrypoint=cli;"}
    rest = {"type": "text", "text": "instructions"}
    assert key({**BODY, "system": [block, rest]}) == key({**BODY, "system": [other, rest]})
    assert key({**BODY, "system": [rest, block]}) != key({**BODY, "system": [rest, other]})
    assert key({**BODY, "system": [block, rest]}) != key({**BODY, "system": [block]})


def test_there_is_no_key_without_a_tenant():
    """By construction."""
    with pytest.raises(ValueError, match="tenant"):
        key(tenant="")
