"""Nothing that a policy file can contain crashes the compiler or is applied by half."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from router.catalog.lookup import Catalog
from router.classify.label import Label
from router.facts.vocabulary import FACTS
from router.policy.check import check_folder
from router.policy.grammar import (
    CACHE_KEYS,
    LANE_KEYS,
    LANES_FILE_KEYS,
    NESTING,
    OPERATORS,
    POLICY_KEYS,
    RULE_KEYS,
    TEST_KEYS,
)
from router.policy.source import render

POLICIES = Path(__file__).parents[2] / "policies"
LANES = (POLICIES / "lanes.yaml").read_bytes()
DEFAULT = (POLICIES / "default.yaml").read_bytes()
HARD = Label("reasoning", 0.9, 0.9, 0.9)

KEYS = [
    spec.name for table in (POLICY_KEYS, RULE_KEYS, TEST_KEYS, LANES_FILE_KEYS, LANE_KEYS, CACHE_KEYS) for spec in table
]
WORDS = [*KEYS, *FACTS, *NESTING, *(o.name for o in OPERATORS), "header.x-a", "expect", "lane", "rule", "model"]
scalars = st.sampled_from(
    [None, True, False, 0, 1, -1, 0.5, 10**17, "haiku", "as-asked", "", "1h", "coding", "(", "a" * 300, "\x1b[31m", "é"]
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)
rules = st.lists(st.dictionaries(st.sampled_from([spec.name for spec in RULE_KEYS]), values, max_size=6), max_size=4)
policies = st.fixed_dictionaries(
    {"version": st.just(1), "rules": rules | values, "otherwise": values}, optional={"tests": values, "x": values}
)
lanes = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "lanes": st.dictionaries(st.sampled_from(["haiku", "b", "c"]), values),
        "default_lane": values,
    }
)


def refused_or_whole(files: dict[str, bytes], catalog: Catalog) -> None:
    """Either there is a set and no complaint, or complaints that print and no set."""
    checked = check_folder(files, catalog=catalog, classify=lambda _: HARD)
    assert (checked.policies is None) == bool(checked.diagnostics)
    assert all(line.isprintable() for line in render(checked.diagnostics).split("\n"))


@settings(max_examples=80, deadline=None)
@given(policies | values)
def test_any_mapping_is_refused_or_taken_whole(catalog: Catalog, document: object) -> None:
    """Known words in any arrangement (JSON is YAML)."""
    refused_or_whole({"lanes.yaml": LANES, "default.yaml": json.dumps(document).encode()}, catalog)


@settings(max_examples=60, deadline=None)
@given(lanes | values)
def test_any_lanes_are_refused_or_taken_whole(catalog: Catalog, document: object) -> None:
    """The same for `lanes.yaml`."""
    policy = b"version: 1\nrules: []\notherwise: as-asked\n"
    refused_or_whole({"lanes.yaml": json.dumps(document).encode(), "default.yaml": policy}, catalog)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, len(DEFAULT)), st.integers(0, 40), st.binary(max_size=6))
def test_a_damaged_policy_is_refused_or_taken_whole(catalog: Catalog, at: int, lost: int, put: bytes) -> None:
    """The shipped policy with a piece lost and other bytes in its place."""
    refused_or_whole({"lanes.yaml": LANES, "default.yaml": DEFAULT[:at] + put + DEFAULT[at + lost :]}, catalog)


def test_a_policy_cut_anywhere_never_says_something_else(catalog: Catalog) -> None:
    """A half-written file is refused, or decides as the whole one does: what is lost is tests."""
    lines = DEFAULT.splitlines(keepends=True)
    for count in range(len(lines)):
        checked = check_folder(
            {"lanes.yaml": LANES, "default.yaml": b"".join(lines[:count])}, catalog=catalog, classify=lambda _: HARD
        )
        if checked.policies is not None:
            assert [rule.name for rule in checked.policies.policies["default"].rules] == [
                "long-context",
                "structured-work",
                "hard-work",
                "hard-work-above",
                "in-between",
                "otherwise",
            ]
