"""The shipped policies as conversations meet them: what began easy does not keep hard work on the small model."""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path

import pytest

from router.affinity.binding import Binding
from router.affinity.keep import hold
from router.catalog.lookup import Catalog
from router.classify.label import Label
from router.classify.model import LinearClassifier
from router.facts.inspect import Facts
from router.policy.check import compile_folder
from router.policy.compile import PolicySet
from router.policy.decide import Decision, decide
from router.policy.folder import read_folder
from router.policy.history import PolicyHistory

POLICIES = Path(__file__).parents[2] / "policies"
EASY = Label("summarization", 0.1, 0.95, 0.05)
HARD = Label("reasoning", 0.95, 0.95, 0.95)
NAMES = sorted(path.stem for path in POLICIES.glob("*.yaml") if path.name != "lanes.yaml")
MAY_KEEP_HAIKU = {
    "canary": "its split is a trial of Haiku on a tenth of all the work, hard work too, by the conversation",
    "claude-code": "no rule reads a label: which kind of request it is decides, and each kind is its own conversation",
}
FIRST_TOKENS, NEXT_TOKENS = (500, 150_000), (2_000, 80_000, 200_000, 700_000)


@pytest.fixture(scope="module")
def policies(catalog: Catalog) -> PolicySet:
    classifier = LinearClassifier(files("router").joinpath("data/classifier.bin").read_bytes())
    return compile_folder(read_folder(POLICIES), catalog=catalog, classify=classifier.label)


def turn(
    policies: PolicySet, name: str, catalog: Catalog, given: dict, label: Label, binding: Binding | None
) -> tuple[str, str, Decision]:
    """The lane and the model that serve one turn, as the live path finds them, and the rule's decision."""
    facts = Facts.given({"policy": name, "conversation": "new" if binding is None else "warm", **given})
    decision = decide(policies.policies[name], facts, label)
    assert isinstance(decision, Decision)
    asked = given["requested_model"]
    lane = decision.route[0]
    held = hold(
        decision,
        binding,
        wanted=lane.model or asked,
        asked=asked,
        lanes=policies.lanes,
        catalog=catalog,
        now_s=1030.0,
    )
    lane = held.lane or lane
    return lane.name, lane.model or asked, decision


def walks(policies: PolicySet, name: str, catalog: Catalog) -> list[tuple[str, str, int, int]]:
    """Every walk easy first, then hard, that ends on Haiku though another model was asked for."""
    wrong = []
    kinds = (None, "main", "subagent", "auxiliary", "compaction")
    for line in ("sonnet", "opus", "haiku"):
        model = f"claude-{line}-5-5"
        for language in ("en", "ja", None):
            for kind in kinds:
                for session in range(20 if name == "canary" else 1):
                    given = {
                        "requested_model": model,
                        "requested_line": line,
                        "language": language,
                        "request_class": kind,
                        "header.x-claude-code-session-id": f"session-{session}",
                    }
                    for first in FIRST_TOKENS:
                        lane, served, _ = turn(policies, name, catalog, {**given, "input_tokens": first}, EASY, None)
                        binding = Binding(lane, served, first, first, 300, 200, 1000.0)
                        for tokens in NEXT_TOKENS:
                            if tokens < first:
                                continue
                            later = {**given, "input_tokens": tokens, "turns": 4}
                            end, _, decision = turn(policies, name, catalog, later, HARD, binding)
                            if end == "haiku":
                                wrong.append((decision.rule, line, first, tokens))
    return wrong


@pytest.mark.parametrize("name", NAMES)
def test_hard_work_does_not_stay_on_haiku_after_an_easy_beginning(
    policies: PolicySet, name: str, catalog: Catalog
) -> None:
    """For every shipped policy that reads labels, whatever was asked for and however long it has grown."""
    found = walks(policies, name, catalog)
    assert bool(found) == (name in MAY_KEEP_HAIKU), found[:5]


def test_easy_work_does_begin_on_haiku(policies: PolicySet, catalog: Catalog) -> None:
    """Else the walks would show nothing."""
    given = {"requested_model": "claude-sonnet-5-5", "requested_line": "sonnet", "input_tokens": 500, "language": "en"}
    for name in set(NAMES) - set(MAY_KEEP_HAIKU):
        assert turn(policies, name, catalog, given, EASY, None)[0] == "haiku", name


def test_every_shipped_revision_can_be_kept(tmp_path: Path, policies: PolicySet) -> None:
    """The folder goes into the history and comes back byte for byte."""
    history = PolicyHistory(tmp_path, POLICIES, now=time.time)
    assert history.record(policies.revision, read_folder(POLICIES), "start")
    assert history.files(policies.revision) == read_folder(POLICIES)
