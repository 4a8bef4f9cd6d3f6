"""`when_temperature`: which requests a rule caches."""

from __future__ import annotations

import json
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.classify.label import Label
from router.facts.inspect import Facts
from router.policy.compile import search_regex
from router.policy.conditions import all_hold, compile_condition
from router.policy.grammar import MAX_PACE_S, MAX_TTL_S, OPERATORS, TEMPERATURE
from router.policy.parse import parse_policy
from router.policy.source import read_source
from router.policy.temperature import Temperatures
from router.policy.written import CacheDirective

degrees = st.sampled_from([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1])
comparisons = st.dictionaries(st.sampled_from(["lt", "lte", "gt", "gte"]), degrees, max_size=3).flatmap(
    lambda bounds: st.dictionaries(
        st.sampled_from(["in", "not_in"]), st.lists(degrees, min_size=1, max_size=3), max_size=2
    ).map(lambda lists: bounds | lists)
)


def directive(cache: dict[str, Any]) -> tuple[CacheDirective | None, list[str]]:
    """What the parser makes of a rule's `cache`, and what it says of it."""
    rule = {"name": "one", "route": "haiku", "cache": {"ttl": "1h", **cache}}
    source = read_source("default.yaml", json.dumps({"version": 1, "rules": [rule], "otherwise": "haiku"}).encode())
    policy = parse_policy("default", source)
    assert policy is not None
    return policy.rules[0].cache, [found.message for found in source.diagnostics]


def temperatures(written: object) -> Temperatures:
    cache, said = directive({"when_temperature": written})
    assert said == []
    assert cache is not None
    assert cache.when_temperature is not None
    return cache.when_temperature


@pytest.mark.parametrize(
    ("written", "inside", "outside"),
    [
        (0, (0, 0.0), (0.1, 1, None)),
        (1, (1, 1.0, None), (0, 0.99)),
        (0.3, (0.3,), (0, 0.31, None)),
        ({"lte": 0.3}, (0, 0.3), (0.31, 1, None)),
        ({"lt": 0.3}, (0, 0.29), (0.3, None)),
        ({"gt": 0.3}, (0.31, 1, None), (0, 0.3)),
        ({"gte": 0.3, "lt": 1}, (0.3, 0.99), (0.29, 1, None)),
        ({"in": [0, 0.5]}, (0, 0.5), (0.25, 1, None)),
        ({"not_in": [0, 0.5]}, (0.25, 1, None), (0, 0.5)),
    ],
)
def test_a_request_is_in_where_every_comparison_holds(written: object, inside: tuple, outside: tuple) -> None:
    """Bounds are exact, and a request without `temperature` counts as 1."""
    found = temperatures(written)
    assert [value for value in (*inside, *outside) if found.takes(value)] == list(inside)


@pytest.mark.parametrize("value", ["0", "", True, False, nan, [], {}, [0], b"0"])
@pytest.mark.parametrize("written", [0, 1, {"lte": 1}, {"not_in": [0.5]}, {"in": [0, 1]}])
def test_what_is_no_number_is_never_in(written: object, value: object) -> None:
    """A text, a flag or NaN: the upstream may say what it thinks of it, and nothing is cached."""
    assert not temperatures(written).takes(value)


@pytest.mark.parametrize("value", [10**400, -(10**400), inf, -inf, -1, 2])
def test_numbers_that_no_model_takes_do_no_harm(value: float) -> None:
    """They are compared like others, however large."""
    assert temperatures({"lte": 0.3}).takes(value) == (value < 0)
    assert temperatures({"not_in": [0.3]}).takes(value)


@given(comparisons.filter(bool), st.floats(0, 1) | degrees)
def test_a_temperature_is_compared_as_a_condition_compares_a_number(written: dict[str, Any], value: float) -> None:
    """One language: the same operators on a fact from 0 to 1 hold of the same numbers."""
    source = read_source("default.yaml", json.dumps({"difficulty": written}).encode())
    assert source.root is not None
    clauses = compile_condition(source.root, source, "a rule", search_regex)
    in_condition = all_hold(clauses)(Facts.given({}), Label("coding", value, 0.9, 0.5))
    found = Temperatures.of((clause.operator, clause.operand) for clause in clauses)
    assert found.takes(value) == in_condition


@given(comparisons.filter(bool))
def test_comparisons_that_no_temperature_fulfils_are_refused(written: dict[str, Any]) -> None:
    """And only those: tried on every operand and on a place in every gap between two of them."""
    is_refused = directive({"when_temperature": written})[1] == ["`when_temperature` of rule `one` can never hold"]
    found = Temperatures.of(
        (name, tuple(value) if isinstance(value, list) else value) for name, value in written.items()
    )
    assert is_refused == (not any(found.takes(step / 100) for step in range(101)))


def test_directives_are_equal_by_what_they_say() -> None:
    """The order of operators and of values does not matter, nor how a number is written; so they may be keys."""
    assert directive({"when_temperature": {"lt": 0.5, "gte": 0}}) == directive(
        {"when_temperature": {"gte": 0.0, "lt": 0.5}}
    )
    one, other = temperatures({"in": [0, 1, 0.5]}), temperatures({"in": [0.5, 1.0, 0, 0]})
    assert one == other
    assert hash(one) == hash(other)
    assert one != temperatures({"not_in": [0, 1, 0.5]})
    assert len({directive({})[0], directive({"coalesce": True})[0], directive({"pace": "1ms"})[0]}) == 2


def test_left_out_keys_have_their_defaults() -> None:
    """Every temperature, a replay at once, one call for requests in flight; as a directive made in code has."""
    assert directive({}) == (CacheDirective(3600.0, "tenant", 1_000_000), [])
    cache = CacheDirective(1.0, "tenant", 1)
    assert (cache.when_temperature, cache.pace_s, cache.is_coalescing) == (None, 0.0, True)


@pytest.mark.parametrize("key", ["ttl", "pace"])
def test_the_longest_time_is_taken_and_a_little_more_is_not(key: str) -> None:
    """30 days for an answer, a second for the pace; both exactly."""
    most_ms = round({"ttl": MAX_TTL_S, "pace": MAX_PACE_S}[key] * 1000)
    assert directive({key: f"{most_ms}ms" if key == "pace" else "30d"})[1] == []
    over = f"{most_ms + 1}ms" if key == "pace" else f"{MAX_TTL_S}.001s"
    assert [message.split(",")[0] for message in directive({key: over})[1]] == [
        f"`{key}` of rule `one` must be `1ms` to `{'1s' if key == 'pace' else '30d'}`"
    ]


def test_every_operator_of_numbers_can_be_asked() -> None:
    """All but `exists`: a request always has a temperature, said or not."""
    operators = {operator.name for operator in OPERATORS if TEMPERATURE.kind in operator.kinds}
    for name in operators - {"exists"}:
        assert temperatures({name: [0.5] if name.endswith("in") else 0.5}).comparisons
    said = directive({"when_temperature": {"exists": True}})[1]
    assert said == ["`when_temperature` is a number: `cache` of rule `one` cannot ask `exists` of it"]
