"""The reading of a request: bounded, indifferent to odd types."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from router.classify.features import extract, kind_and_key, names, words

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("messages", "system", "tools", "tool_choice", "thinking", "output_config", "max_tokens", "temperature")
BLOCK = st.fixed_dictionaries({}, optional={"type": JSON, "text": JSON, "content": JSON, "name": JSON})
MESSAGE = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "assistant"]) | JSON, "content": JSON | st.lists(BLOCK)}
)
TOOL = st.fixed_dictionaries(
    {}, optional={"name": JSON, "description": JSON, "input_schema": JSON | st.fixed_dictionaries({"properties": JSON})}
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
@settings(max_examples=150, deadline=None)
def test_any_json_in_any_field_is_read(body):
    """A body that the API would refuse is still read without an error."""
    extract(body)


@given(
    st.fixed_dictionaries(
        {"messages": st.lists(MESSAGE | JSON, max_size=4)},
        optional={"system": st.lists(BLOCK) | JSON, "tools": st.lists(TOOL | JSON)},
    )
)
@settings(max_examples=150, deadline=None)
def test_nearly_right_bodies_are_read(body):
    """Unknown block types, empty texts and fields of another type count as absent."""
    extract(body)


@given(st.text(alphabet=st.characters(), max_size=300))
@settings(max_examples=100, deadline=None)
def test_words_take_any_text_even_broken_surrogates(text):
    """Words are non-empty bytes without blanks."""
    assert all(word and b" " not in word for word in words(text + "\ud800"))


def test_a_document_of_any_size_gives_a_bounded_number_of_features():
    """A megabyte costs what ten kilobytes cost."""
    for unit in ("word and 12 more? ", "x", "あ", "\n", "؟ نص "):
        sizes = []
        for length in (10_000, 1_000_000):
            text = (unit * (length // len(unit) + 1))[:length]
            features = extract({"messages": [{"role": "user", "content": text}], "system": text})
            places = (features.system, features.ends, features.middle, features.structure)
            sizes.append(sum(len(names(place)) for place in places))
        assert sizes[1] <= sizes[0] + 5
        assert sizes[1] < 4_000


def test_thousands_of_blocks_and_tools_are_only_sampled():
    """Legal bodies may hold thousands of either."""
    tool = {"name": "look_up", "description": "Looks up", "input_schema": {"type": "object", "properties": {"a": {}}}}
    block = {"type": "text", "text": "a block"}
    features = extract({"messages": [{"role": "user", "content": [block] * 5_000}], "tools": [tool] * 1_000})
    assert len(names(features.system)) < 200
    assert len(names(features.ends)) < 400


def test_a_string_and_one_text_block_read_alike():
    """The two spellings of the same turn have the same words."""
    text = "Translate this into Greek: the boat is late"
    one = extract({"messages": [{"role": "user", "content": text}]})
    two = extract({"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]})
    assert one.ends == two.ends


def test_words_fold_case_digits_and_punctuation():
    """Every digit is a zero; scripts without blanks give pairs of characters."""
    assert words("Don't pay 1,250 EUR!") == [b"dont", b"pay", b"0", b"000", b"eur"]
    assert words("请把下面翻译") == [
        "请把".encode(),
        "把下".encode(),
        "下面".encode(),
        "面翻".encode(),
        "翻译".encode(),
    ]


def test_only_the_last_user_text_is_read_as_the_instruction():
    """Earlier turns give no words."""
    turns = [
        {"role": "user", "content": "zebra"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "shorter"},
    ]
    features = extract({"messages": turns})
    assert b"zebra" not in names(features.ends)
    assert b"shorter" in names(features.ends)


def test_every_feature_has_a_name_that_leads_back_to_it():
    """The weights file holds names, a request gives kinds and keys: both must mean the same."""
    tool = {"name": "set_label", "description": "Sets it", "input_schema": {"properties": {"kind": {"enum": ["a"]}}}}
    features = extract(
        {
            "system": "You are a careful classifier of tickets.",
            "messages": [
                {"role": "user", "content": "Question: what is this?\nl:odd ~line #1\n" + "ticket text " * 60}
            ],
            "tools": [tool],
        }
    )
    for place in (features.system, features.ends, features.ask, features.middle, features.structure):
        pairs = [(kind, key) for kind, keys in place for key in keys]
        assert [kind_and_key(name) for name in names(place)] == pairs
        assert len(set(names(place))) == len(pairs)
