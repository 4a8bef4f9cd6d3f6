"""Decisions as entries and back: nothing is lost, what is shared is said once, what is broken is nobody's decision."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from router.jobs.decision import DecisionReader, DecisionWriter, ItemDecision, Keeping

BASE = ItemDecision(
    policy="default", revision="r1", rule="simple", lane="haiku", model_asked="claude-sonnet-5-5",
    model_sent="claude-haiku-5-5", client="python-sdk", why=("because",), tags=("t",),
    labels={"task": "classification", "difficulty": 0.1}, facts={"input_tokens": 10, "tools": 0, "language": None},
)  # fmt: skip


def read_back(entries: dict[str, bytes]) -> dict[str, ItemDecision | None]:
    reader = DecisionReader()
    own = {name: entry for name, entry in entries.items() if not name.startswith("#")}
    missing = reader.missing(own.values())
    reader.share(missing, entries)
    return {name: reader.decision(entry) for name, entry in own.items()}


TEXT = st.text(max_size=8)
FACTS = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.none() | st.integers(-9, 9) | TEXT | st.booleans())
DECISIONS = st.builds(
    ItemDecision, policy=TEXT, revision=TEXT, rule=st.sampled_from(["x", "y"]), lane=st.sampled_from(["h", "s"]),
    model_asked=TEXT, model_sent=TEXT, client=TEXT, session=st.none() | TEXT, conversation=st.none() | TEXT,
    why=st.lists(TEXT, max_size=2).map(tuple), tags=st.lists(TEXT, max_size=2).map(tuple),
    edits=st.lists(TEXT, max_size=1).map(tuple), labels=st.none() | FACTS, facts=FACTS,
)  # fmt: skip


@given(st.lists(st.tuples(DECISIONS, FACTS), max_size=8), st.integers(1, 4))
def test_what_was_written_is_read_back(decisions, at_once):
    """Property: whatever the order of writing and taking."""
    writer, entries = DecisionWriter(), {}
    said = {}
    for number, (decision, facts) in enumerate(decisions):
        for name, one in ((f"i{number}", decision), (f"j{number}", replace(decision, facts=facts))):
            writer.add(name, one)
            said[name] = one
        if number % at_once == 0:
            entries.update(writer.taken())
    entries.update(writer.taken())
    assert read_back(entries) == said


def test_what_items_share_is_said_once():
    """A thousand items that are decided alike take little more than what differs."""
    writer = DecisionWriter()
    for number in range(1_000):
        writer.add(f"i{number}", replace(BASE, facts={**BASE.facts, "input_tokens": number}, conversation="c" * 32))
    entries = dict(writer.taken())
    assert len(entries) == 1_001
    assert sum(map(len, entries.values())) / 1_000 < 150


def test_many_different_reasons_take_no_memory_without_end():
    """Reasons that name numbers share nothing; they are all kept all the same."""
    writer = DecisionWriter()
    for number in range(5_000):
        writer.add(f"i{number}", replace(BASE, why=(f"about {number} tokens",)))
    assert len(writer._shared) <= 2_000
    found = read_back(dict(writer.taken()))
    assert found["i4999"] == replace(BASE, why=("about 4999 tokens",))
    assert None not in found.values()


def test_what_is_broken_or_missing_is_no_decision():
    """Entries of another version, cut ones and those without their shared part."""
    writer = DecisionWriter()
    writer.add("a", BASE)
    entries = dict(writer.taken())
    assert read_back({"a": entries["a"]}) == {"a": None}
    assert read_back({"a": entries["a"][:-1], "#0": entries["#0"]}) == {"a": None}
    assert read_back({"a": entries["a"], "#0": b"[2]"}) == {"a": None}
    assert read_back({"a": b"{}", "b": b"[]", "#0": entries["#0"]}) == {"a": None, "b": None}


def test_a_count_that_json_cannot_hold_costs_nobody_a_decision():
    """A hostile `max_tokens` of three hundred digits is said to be huge."""
    writer = DecisionWriter()
    writer.add("a", replace(BASE, facts={"max_tokens": 10**300}))
    found = read_back(dict(writer.taken()))["a"]
    assert found is not None
    assert found.facts == {"max_tokens": "a huge number"}


def test_a_long_list_of_facts_is_left_out_and_so_unknown():
    """Fifty names of tools would be five kilobytes for each of a hundred thousand items; a few names stay."""
    writer, few = DecisionWriter(), ["read_file", "search"]
    writer.add("a", replace(BASE, facts={**BASE.facts, "tool_names": few}))
    writer.add("b", replace(BASE, facts={**BASE.facts, "tool_names": ["n" * 100] * 50}))
    writer.add("c", replace(BASE, rule="other", facts={**BASE.facts, "tool_names": ["n" * 100] * 50}))
    entries = dict(writer.taken())
    assert max(map(len, entries.values())) < 600
    read = read_back(entries)
    assert {name: one and one.facts.get("tool_names") for name, one in read.items()} == {"a": few, "b": None, "c": None}
    assert read["b"] == BASE


def test_what_an_answer_is_to_be_cached_under_is_read_back():
    """The key is the item's own, the rest is shared; an item without either is as small as ever, and apart."""
    writer, keeping = DecisionWriter(), Keeping(3_600.0, 1_000_000, 1_700_000_000_000_000_000, "acme")
    said = {f"i{n}": replace(BASE, key=f"{n:064x}", keeping=keeping) for n in range(3)}
    said["plain"] = BASE
    said["other"] = replace(BASE, key="f" * 64, keeping=replace(keeping, ttl_s=1.0))
    for name, decision in said.items():
        writer.add(name, decision)
    entries = dict(writer.taken())
    assert len([name for name in entries if name.startswith("#")]) == 3
    assert read_back(entries) == said
