"""Policies as people write them: each folder of `cases/` is accepted and decides, or is refused with exact words.

A case holds the files of a policies folder (`lanes.yaml` of `cases/` where it has none of its own) and either
`errors.txt`, the diagnostics as printed, or `decisions.yaml`, what must come out for given facts and labels.
"""

from __future__ import annotations

from math import nan
from pathlib import Path

import pytest
import yaml

from router.catalog.lookup import Catalog
from router.classify.label import Label
from router.facts.inspect import Facts
from router.policy.check import Checked, check_folder
from router.policy.decide import Decision, decide
from router.policy.source import render

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
        given = Facts.given(expected.pop("given"))
        label = Label(**{"task": "", "difficulty": nan, "confidence": nan, "p_hard": nan, **expected.pop("label", {})})
        has_label = label.task != ""
        decision = decide(checked.policies.policies["default"], given, label if has_label else None, label_failed=True)
        assert isinstance(decision, Decision)
        assert {key: as_written(decision, key) for key in expected} == expected


def as_written(decision: Decision, key: str) -> object:
    """One field of a decision in the form that `decisions.yaml` uses."""
    if key == "route":
        return [lane.name for lane in decision.route]
    if key == "cache":
        cache = decision.cache
        return cache and {"ttl_s": cache.ttl_s, "scope": cache.scope, "max_bytes": cache.max_bytes}
    value = getattr(decision, key)
    return list(value) if isinstance(value, tuple) else value


def test_there_are_enough_cases() -> None:
    """A case says which of the two it is by its name."""
    assert len(NAMES) >= 60
    for name in NAMES:
        assert name.startswith(("ok-", "bad-"))
        assert name.startswith("bad-") == (CASES / name / "errors.txt").exists()
