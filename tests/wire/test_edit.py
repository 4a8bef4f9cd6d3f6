"""Edits of a request's bytes: the edited view comes out, and no other byte moves."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire.edit import LEAVE_OUT, changed_body, changed_bytes
from router.wire.messages import object_spans, read_request

HEAD = {"model": "m", "messages": [{"role": "user", "content": 'say "}{" \\'}]}
NAMES = ("thinking", "output_config", "speed", "temperature", "ünïcode", 'quo"te', "back\\slash", "brace}{")


def read(text: str):
    return read_request(text.encode(), needs_max_tokens=False)


def spelled(value: Any, draw: Any) -> str:
    """JSON in one of its many spellings: any white space, any escapes."""
    space = "".join(draw(st.lists(st.sampled_from(" \t\n\r"), max_size=2)))
    if isinstance(value, dict):
        members = [f"{space}{spelled(k, draw)}{space}:{spelled(v, draw)}{space}" for k, v in value.items()]
        return f"{{{space if not members else ''}{','.join(members)}}}"
    if isinstance(value, list):
        return f"[{space}{','.join(spelled(item, draw) for item in value)}{space}]"
    if isinstance(value, str) and draw(st.booleans()):
        return '"' + "".join(f"\\u{ord(char):04x}" for char in value) + '"'
    return space + json.dumps(value, ensure_ascii=draw(st.booleans())) + space


scalars = st.none() | st.booleans() | st.integers(-9, 9**12) | st.text('aé"\\{}[],: ', max_size=5)
objects = st.dictionaries(st.sampled_from(NAMES), scalars, max_size=3)
values = scalars | st.lists(scalars, max_size=3) | objects
changes = st.one_of(
    st.tuples(st.tuples(st.sampled_from(NAMES)), values | st.just(LEAVE_OUT)),
    st.tuples(st.tuples(st.sampled_from(NAMES[:2]), st.sampled_from(NAMES)), values | st.just(LEAVE_OUT)),
)


def reference(body: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The edit as one would make it on a deep copy; an object that a removal leaves empty goes too."""
    copy = json.loads(json.dumps(body))
    holder = copy if len(path) == 1 else (copy.get(path[0]) or {})
    if value is LEAVE_OUT:
        holder.pop(path[-1], None)
    else:
        holder[path[-1]] = value
    if len(path) == 2:
        copy[path[0]] = holder
        if not holder:
            del copy[path[0]]
    return copy


@st.composite
def bodies(draw: Any) -> tuple[str, dict[str, Any]]:
    members = draw(st.dictionaries(st.sampled_from(NAMES), values, max_size=5))
    for name in NAMES[:2]:  # a sub-key needs an object, or nothing
        if name in members and not isinstance(members[name], dict):
            members[name] = draw(objects)
    items = list({**HEAD, **members}.items())
    body = dict(draw(st.permutations(items)))
    is_compact = draw(st.booleans())
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False) if is_compact else spelled(body, draw)
    return text.strip() if draw(st.booleans()) else f" {text}\n", body


@given(bodies(), st.lists(changes, max_size=4))
def test_the_edited_bytes_say_the_edited_body_and_keep_every_other_value(made, wanted):
    """Law: reading the result gives the edit made on the parsed body, and each value not named keeps its very bytes."""
    text, body = made
    request = read(text)
    touched: set[str] = set()
    expected = body
    kept_changes = []
    for path, value in wanted:
        if len(path) == 2 and not isinstance(expected.get(path[0]), dict | None):
            continue  # a change above made it something else
        expected = reference(expected, path, value)
        touched.add(path[0])
        kept_changes.append((path, value))
    raw = changed_bytes(request, kept_changes)
    assert json.loads(raw) == expected
    before, after = object_spans(request.raw), object_spans(raw)
    for key, (start, end) in before.items():
        if key not in touched:
            assert raw[slice(*after[key])] == request.raw[start:end]
    assert [key for key in after if key in before and key not in touched] == [k for k in before if k not in touched]
    if not kept_changes:
        assert raw is request.raw


# `@` stands for the members that every request has.
EXACT = [
    ('{@ , "a": 1 }', ("a",), 22, '{@ , "a": 22 }'),
    ('{@ , "a": 1 }', ("a",), LEAVE_OUT, "{@ }"),
    ('{\n "a": 1,\n @}', ("a",), LEAVE_OUT, "{\n @}"),
    ('{@, "o": {"e": 1, "f": 2}}', ("o", "e"), LEAVE_OUT, '{@, "o": {"f": 2}}'),
    ('{@, "o": {"e": 1, "f": 2} }', ("o", "f"), LEAVE_OUT, '{@, "o": {"e": 1} }'),
    ('{"o": {"e": 1}, @}', ("o", "e"), LEAVE_OUT, "{@}"),
    ('{"o": { }, @}', ("o", "e"), 1, '{"o": { "e":1}, @}'),
    ("{@ }\n", ("t",), {"type": "off"}, '{@,"t":{"type":"off"} }\n'),
    ('{@, "\\u006f": null}', ("o", "e"), 1, '{@, "\\u006f": {"e":1}}'),
]


@pytest.mark.parametrize(("text", "path", "value", "expected"), EXACT)
def test_an_edit_touches_its_value_and_one_comma(text, path, value, expected):
    """The exact bytes: place, spacing and escapes of everything else stay."""
    always = '"model" : "m","messages":[{"role":"user"}]'
    raw = changed_bytes(read(text.replace("@", always)), [(path, value)])
    assert raw.decode() == expected.replace("@", always)


def test_a_compact_body_stays_compact_and_a_body_is_never_changed_in_place():
    """The parsed view of a request is shared; an edit works on a copy."""
    request = read('{"model":"m","messages":[{"role":"user","content":"hé"}],"o":{"e":1,"f":[2]}}')
    assert request.is_compact
    raw = changed_bytes(request, [(("o", "e"), LEAVE_OUT), (("x",), True)])
    assert raw.decode() == '{"model":"m","messages":[{"role":"user","content":"hé"}],"o":{"f":[2]},"x":true}'
    assert request.body["o"] == {"e": 1, "f": [2]}


def test_a_path_that_makes_no_sense_is_refused():
    """One key or two, and a sub-key only inside an object."""
    for path in ((), ("a", "b", "c"), ("model", "b")):
        with pytest.raises(ValueError, match=r"path|object"):
            changed_body({"model": "m"}, path, 1)
