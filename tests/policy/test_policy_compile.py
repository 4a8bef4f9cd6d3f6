"""Compiling: what one rule does to another, across files, and to hostile input."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.catalog.lookup import Catalog, read_catalog
from router.errors import PolicyError
from router.facts.inspect import Facts
from router.policy.check import check_folder, compile_folder, revision_of
from router.policy.compile import CompiledPolicy, search_regex
from router.policy.decide import Decision, decide
from router.policy.reach import covers, domains, never_holds
from router.policy.source import render

LANES = (
    b"version: 1\nlanes: {haiku: {model: claude-haiku-5-5}, sonnet: {model: claude-sonnet-5-5}}\ndefault_lane: sonnet\n"
)
Compile = Callable[[str], CompiledPolicy]


def test_a_model_without_a_price_is_refused() -> None:
    """A lane that cannot be priced would make every report wrong."""
    from importlib.resources import files

    import yaml

    document = yaml.safe_load(files("router").joinpath("data/models.yaml").read_text())
    for record in document["models"]:
        if record["id"] == "claude-haiku-5-5":
            record["usd_per_mtok"] = None
            record["long_prompt_tier"] = record["fast_mode"] = None
    unpriced = read_catalog(document)
    checked = check_folder(
        {"lanes.yaml": LANES, "default.yaml": b"version: 1\nrules: []\notherwise: haiku\n"},
        catalog=unpriced,
        classify=None,
    )
    assert checked.policies is None
    assert "lanes.yaml:2:24: model `claude-haiku-5-5` of lane `haiku` has no price" in render(checked.diagnostics)


def test_a_refused_folder_raises_with_every_diagnostic(catalog: Catalog) -> None:
    """What stops a start is the same text that `router policy check` prints."""
    files = {"lanes.yaml": LANES, "default.yaml": b"version: 1\nrules: [{name: a, route: x}]\notherwise: z\n"}
    with pytest.raises(PolicyError) as caught:
        compile_folder(files, catalog=catalog, classify=None)
    assert caught.value.message == render(check_folder(files, catalog=catalog, classify=None).diagnostics)
    assert "unknown lane `x`" in caught.value.message
    assert "unknown lane `z`" in caught.value.message


def test_an_empty_folder_is_refused(catalog: Catalog) -> None:
    """No policies is not a policy."""
    with pytest.raises(PolicyError, match="holds no policy"):
        compile_folder({}, catalog=catalog, classify=None)


def test_the_revision_names_the_content() -> None:
    """Same names and bytes, same revision; a moved byte or name, another."""
    one = revision_of({"a.yaml": b"x", "b.yaml": b"y"})
    assert one == revision_of({"b.yaml": b"y", "a.yaml": b"x"})
    assert len({one, revision_of({"a.yaml": b"xb.yaml", "": b"y"}), revision_of({"a.yaml": b"y", "b.yaml": b"x"})}) == 3
    assert len(one) == 12


def test_every_policy_of_a_folder_has_its_name_and_the_revision(catalog: Catalog) -> None:
    """A policy is called by its file; all of a folder share one revision."""
    policy = b"version: 1\nrules: []\notherwise: haiku\n"
    made = compile_folder(
        {"lanes.yaml": LANES, "default.yaml": policy, "red.yaml": policy}, catalog=catalog, classify=None
    )
    assert {(name, p.name, p.revision) for name, p in made.policies.items()} == {
        ("default", "default", made.revision),
        ("red", "red", made.revision),
    }
    assert made.default_lane.model == "claude-sonnet-5-5"
    assert made.lanes["as-asked"].model is None


def test_no_regular_expression_takes_long() -> None:
    """`(a+)+$` over a long text is a matter of milliseconds: RE2 does not backtrack."""
    found = search_regex("(a+)+$")
    before = time.process_time()
    assert not found("a" * 100_000 + "b")
    assert time.process_time() - before < 0.1


def test_a_regular_expression_that_would_need_much_memory_is_refused() -> None:
    """Repetition of repetition is cheap to write and dear to hold."""
    with pytest.raises(ValueError, match=r"\w"):
        search_regex("((a{1,1000}){1,1000}){1,1000}")


_NUMBERS = st.tuples(st.sampled_from(["lt", "lte", "gt", "gte"]), st.integers(0, 4)).map(
    lambda t: f"input_tokens: {{{t[0]}: {t[1]}}}"
)
_TEXTS = st.tuples(
    st.sampled_from(["in", "not_in"]),
    st.lists(st.sampled_from(["low", "high", "max"]), min_size=1, max_size=3, unique=True),
).map(lambda t: f"effort: {{{t[0]}: [{', '.join(t[1])}]}}")
_OTHERS = st.sampled_from(
    [
        "stream: true",
        "stream: false",
        "tool_names: {exists: false}",
        "tool_names: {not_in: [a]}",
        "tool_names: {in: [a, b]}",
        "tool_names: {contains: a}",
        "effort: {exists: true}",
        "effort: {exists: false}",
        "effort: low",
    ]
)
_CONDITION = st.lists(_NUMBERS | _TEXTS | _OTHERS, min_size=1, max_size=4).map(
    lambda parts: "{all: [" + ", ".join(f"{{{p}}}" for p in parts) + "]}"
)

WORLD = [
    Facts.given({"input_tokens": tokens, "stream": stream, "effort": effort, "tool_names": tools})
    for tokens, stream, effort, tools in product(
        range(6), (True, False), (None, "low", "high", "max", "medium"), ([], ["a"], ["b"], ["a", "c"])
    )
]


@settings(max_examples=80, deadline=None)
@given(_CONDITION, _CONDITION)
def test_reach_agrees_with_trying_everything(catalog: Catalog, one: str, other: str) -> None:
    """A rule called unreachable never matches in any world, alone or behind the rule that is said to cover it."""
    wide, narrow = clauses(one, catalog), clauses(other, catalog)
    holds = [all(clause.check(facts, None) for clause in wide) for facts in WORLD]
    if never_holds(wide) is not None:
        assert not any(holds)
    if covers(domains(wide), domains(narrow)):
        inner = [all(clause.check(facts, None) for clause in narrow) for facts in WORLD]
        assert all(outer for outer, is_in in zip(holds, inner, strict=True) if is_in)


def clauses(condition: str, catalog: Catalog):
    from router.policy.conditions import compile_condition
    from router.policy.source import read_source

    source = read_source("x.yaml", condition.encode())
    assert source.root is not None
    made = compile_condition(source.root, source, "rule `x`", search_regex)
    assert source.diagnostics == []
    return made


@pytest.mark.parametrize(
    ("wide", "narrow", "is_covered"),
    [
        ("{}", "{stream: true}", True),
        ("{input_tokens: {gt: 5}}", "{input_tokens: {gte: 6}}", True),
        ("{input_tokens: {gt: 5}}", "{input_tokens: {gte: 5}}", False),
        ("{difficulty: {lt: 0.5}}", "{difficulty: {lte: 0.5}}", False),
        ("{difficulty: {lte: 0.5}}", "{difficulty: {lt: 0.5}}", True),
        ("{task: {in: [chat, coding]}}", "{task: chat}", True),
        ("{task: chat}", "{task: {in: [chat, coding]}}", False),
        ("{task: {not_in: [chat]}}", "{task: coding}", True),
        ("{task: {not_in: [chat]}}", "{difficulty: 0.1}", False),
        ("{effort: {exists: true}}", "{effort: low}", True),
        ("{effort: {not_in: [low]}}", "{effort: {exists: false}}", False),
        ("{tool_names: {contains: bash}}", "{tool_names: {contains: bash}, stream: true}", True),
        ("{tool_names: {contains: bash}}", "{tool_names: {contains: edit}}", False),
        ("{not: {stream: true}}", "{not: {stream: true}, tools: 0}", True),
        ("{hour: {lte: 23}}", "{hour: {gte: 5}}", True),
    ],
)
def test_one_condition_covers_another(catalog: Catalog, wide: str, narrow: str, is_covered: bool) -> None:
    """Where the answer is yes it is right; where it is no, the rule is left alone."""
    assert covers(domains(clauses(wide, catalog)), domains(clauses(narrow, catalog))) is is_covered


def test_many_rules_compile_quickly(compiled: Compile) -> None:
    """Each rule is held against every earlier one; hundreds of them are still a matter of moments."""
    rules = "".join(
        f"  - {{name: r{i}, when: {{input_tokens: {i}, stream: true}}, route: haiku}}\n" for i in range(300)
    )
    before = time.process_time()
    policy = compiled(f"rules:\n{rules}otherwise: sonnet\n")
    assert time.process_time() - before < 5
    decision = decide(policy, Facts.given({"input_tokens": 299, "stream": True}))
    assert isinstance(decision, Decision)
    assert decision.rule == "r299"


def test_headers_that_rules_read_are_listed(compiled: Compile) -> None:
    """Only these may be recorded."""
    policy = compiled(
        "rules: [{name: a, when: {any: [{header.x-b: b}, {not: {header.x-a: a}}]}, route: haiku}]\notherwise: sonnet\n"
    )
    assert policy.headers_read == ("x-a", "x-b")
