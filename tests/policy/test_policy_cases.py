"""Policies as people write them: each folder of `cases/` is accepted and decides, or is refused with exact words.

A case holds the files of a policies folder (`lanes.yaml` of `cases/` where it has none of its own) and either
`errors.txt`, the diagnostics as printed, or `decisions.yaml`, what must come out. An entry of that gives facts and a
label in `given` and `label`, or a whole `request` with `headers`, labelled by `by_words`; `policy` names another policy
than `default`; `needs_label: true` says that the policy asks for a label before it decides.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from math import nan
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.catalog.lookup import Catalog
from router.classify.label import Label
from router.facts.inspect import Caller, Facts, inspect
from router.facts.vocabulary import FACTS, HEADER_PREFIX
from router.policy.check import Checked, check_folder
from router.policy.compile import CompiledPolicy
from router.policy.conditions import Clause
from router.policy.decide import NEEDS_LABEL, Decision, decide
from router.policy.grammar import MAX_RULES, MAX_TESTS, OPERATORS
from router.policy.source import MAX_DEPTH, render
from router.policy.written import CacheDirective
from router.wire.messages import read_request

CASES = Path(__file__).parent / "cases"
NAMES = sorted(path.name for path in CASES.iterdir() if path.is_dir())


def by_words(body: dict) -> Label:
    """A label that a test can foresee: what says `translate` is translation, the rest is reasoning."""
    if "translate" in str(body["messages"]):
        return Label("translation", 0.1, 0.9, 0.05)
    return Label("reasoning", 0.9, 0.9, 0.95)


def check(case: Path, catalog: Catalog) -> Checked:
    files = {path.name: path.read_bytes() for path in sorted(case.glob("*.y*ml")) if path.name != "decisions.yaml"}
    files.setdefault("lanes.yaml", (CASES / "lanes.yaml").read_bytes())
    return check_folder(files, catalog=catalog, classify=by_words)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("bad-")])
def test_a_wrong_policy_is_refused_with_these_words(name: str, catalog: Catalog) -> None:
    """Every problem at once, in file order, with place, line, caret and hint."""
    checked = check(CASES / name, catalog)
    assert checked.policies is None
    assert render(checked.diagnostics) + "\n" == (CASES / name / "errors.txt").read_text()


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("ok-")])
def test_a_right_policy_decides_like_this(name: str, catalog: Catalog) -> None:
    """Given these facts and this label, this rule, this route, and what else the case says."""
    checked = check(CASES / name, catalog)
    assert render(checked.diagnostics) == ""
    assert checked.policies is not None
    decisions = CASES / name / "decisions.yaml"
    for expected in yaml.safe_load(decisions.read_text()) if decisions.exists() else []:
        policy = checked.policies.policies[expected.get("policy", "default")]
        facts, label = situation(expected, policy.name, catalog)
        if expected.pop("needs_label", False):
            assert decide(policy, facts) is NEEDS_LABEL
            continue
        decision = decide(policy, facts, label, label_failed=True)
        assert isinstance(decision, Decision)
        assert {key: as_written(decision, key) for key in expected} == expected


def situation(expected: dict[str, Any], policy: str, catalog: Catalog) -> tuple[Facts, Label | None]:
    """What an entry gives, taken out of it: facts and a label, or a request and its headers."""
    if "request" in expected:
        request = read_request(json.dumps(expected.pop("request")).encode())
        caller = Caller(policy=policy, headers=expected.pop("headers", {}))
        return inspect(request, caller, catalog), by_words(request.body)
    facts = Facts.given({"policy": policy, **expected.pop("given")})
    label = expected.pop("label", None)
    return facts, label and Label(**{"task": "", "difficulty": nan, "confidence": nan, "p_hard": nan, **label})


def as_written(decision: Decision, key: str) -> object:
    """One field of a decision in the form that `decisions.yaml` uses."""
    if key == "route":
        return [lane.name for lane in decision.route]
    if key == "cache":
        return decision.cache and directive_as_written(decision.cache)
    if key in ("retry", "deferred"):
        return asdict(getattr(decision, key))
    if key == "timeouts":
        return {name: value for name, value in asdict(decision.timeouts).items() if value is not None}
    value = getattr(decision, key)
    return list(value) if isinstance(value, tuple) else value


def directive_as_written(cache: CacheDirective) -> dict[str, Any]:
    """Its first three fields, and of the others those that were given."""
    shown: dict[str, Any] = {"ttl_s": cache.ttl_s, "scope": cache.scope, "max_bytes": cache.max_bytes}
    if cache.when_temperature is not None:
        shown["when_temperature"] = {
            name: sorted(operand) if isinstance(operand, frozenset) else operand
            for name, operand in cache.when_temperature.comparisons
        }
    return shown | {
        name: getattr(cache, name)
        for name, default in (("pace_s", 0.0), ("is_coalescing", True), ("in_batches", False))
        if getattr(cache, name) != default
    }


def test_there_are_enough_cases() -> None:
    """A case says which of the two it is by its name, and an accepted one says what it decides or tests itself."""
    assert len(NAMES) >= 130
    for name in NAMES:
        assert name.startswith(("ok-", "bad-"))
        assert name.startswith("bad-") == (CASES / name / "errors.txt").exists()
        if name.startswith("ok-"):
            assert (CASES / name / "decisions.yaml").exists() or "tests:" in (CASES / name / "default.yaml").read_text()


def every_clause(clauses: tuple[Clause, ...]) -> set[tuple[str, str]]:
    found = {(clause.fact, clause.operator) for clause in clauses}
    return found.union(*(every_clause(part) for clause in clauses for part in clause.parts))


def test_the_accepted_cases_use_the_whole_vocabulary(catalog: Catalog) -> None:
    """Every fact, every operator on every kind of fact that takes it, and each way of nesting is decided somewhere."""
    policies: list[CompiledPolicy] = []
    for name in NAMES:
        if name.startswith("ok-") and (found := check(CASES / name, catalog).policies) is not None:
            policies += found.policies.values()
    used = set().union(*(every_clause(rule.clauses) for policy in policies for rule in policy.rules))
    assert set(FACTS) <= {fact for fact, _ in used}
    assert any(fact.startswith(HEADER_PREFIX) for fact, _ in used)
    assert {"any", "not"} <= {operator for _, operator in used}
    kinds = {(FACTS[fact].kind if fact in FACTS else "text", operator) for fact, operator in used if fact}
    assert kinds >= {(kind, operator.name) for operator in OPERATORS for kind in operator.kinds}
    assert kinds >= {(kind, "equals") for kind in ("text", "integer", "number", "flag")}


def folder_of(rules: str, tests: str = "") -> dict[str, bytes]:
    text = f"version: 1\nrules:\n{rules}otherwise: as-asked\n{tests}"
    return {"lanes.yaml": (CASES / "lanes.yaml").read_bytes(), "default.yaml": text.encode()}


def problems(files: dict[str, bytes], catalog: Catalog) -> list[str]:
    return [found.message for found in check_folder(files, catalog=catalog, classify=None).diagnostics]


def test_a_thousand_rules_are_taken_and_one_more_is_not(catalog: Catalog) -> None:
    """The limit is said with the number that was seen."""
    rules = [f"  - {{name: r{i}, when: {{tenant: t{i}}}, deny: x}}\n" for i in range(MAX_RULES + 1)]
    assert problems(folder_of("".join(rules[:-1])), catalog) == []
    assert problems(folder_of("".join(rules)), catalog) == ["1,001 rules, at most 1,000 are taken"]


def test_five_hundred_tests_are_taken_and_one_more_is_not(catalog: Catalog) -> None:
    """The same for the tests of a policy."""
    rule = "  - {name: one, when: {stream: true}, route: haiku}\n"
    tests = [f"  - {{name: t{i}, given: {{tools: {i}}}, expect: {{rule: otherwise}}}}\n" for i in range(MAX_TESTS + 1)]
    assert problems(folder_of(rule, "tests:\n" + "".join(tests[:-1])), catalog) == []
    assert problems(folder_of(rule, "tests:\n" + "".join(tests)), catalog) == ["501 tests, at most 500 are taken"]


def test_a_condition_may_be_as_deep_as_a_file_may(catalog: Catalog) -> None:
    """Forty levels are read and compiled, the next is refused; there is no recursion to run out of."""

    def nested(depth: int) -> list[str]:
        condition = "{not: " * depth + "{stream: true}" + "}" * depth
        return problems(folder_of(f"  - {{name: deep, when: {condition}, route: haiku}}\n"), catalog)

    outside = 4  # the file, the rules, the rule, and the innermost condition
    assert nested(MAX_DEPTH - outside) == []
    assert nested(MAX_DEPTH - outside + 2) == [f"nested more than {MAX_DEPTH} deep"]
