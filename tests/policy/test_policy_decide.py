"""Deciding: which rule, when a label is asked for, how a split falls, and that explaining agrees."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.catalog.lookup import Catalog
from router.classify.label import TASKS, Label
from router.facts.inspect import Caller, Facts, inspect
from router.policy.check import compile_folder
from router.policy.compile import CompiledPolicy, CompiledRule
from router.policy.decide import NEEDS_LABEL, Decision, decide, explain
from router.policy.folder import read_folder
from router.policy.written import NO_RETRY, OWN_TIMEOUTS
from router.swap.check import can_serve
from router.wire.messages import MessagesRequest, read_request

Compile = Callable[[str], CompiledPolicy]
POLICIES = Path(__file__).parents[2] / "policies"
HARD = Label("reasoning", 0.9, 0.9, 0.95)
EASY = Label("translation", 0.1, 0.9, 0.05)

LABELLED = """
rules:
  - {name: long, when: {input_tokens: {gt: 100}}, route: as-asked}
  - {name: easy, when: {task: translation, stream: false}, route: haiku}
otherwise: sonnet
"""


def by_words(body: dict) -> Label:
    return EASY if "Classify" in str(body["messages"]) else HARD


@pytest.fixture(scope="module")
def shipped(catalog: Catalog) -> CompiledPolicy:
    """A value, but for the decisions that it remembers, as it does in a router."""
    return compile_folder(read_folder(POLICIES), catalog=catalog, classify=by_words).policies["default"]


def test_a_label_is_asked_for_only_when_it_can_matter(compiled: Compile) -> None:
    """A rule that matched before, or one whose counted facts fail, needs no classifier."""
    policy = compiled(LABELLED)
    assert decide(policy, Facts.given({})) is NEEDS_LABEL
    for given_facts, rule in (({"input_tokens": 101}, "long"), ({"stream": True}, "otherwise")):
        decision = decide(policy, Facts.given(given_facts))
        assert isinstance(decision, Decision)
        assert decision.rule == rule


def test_without_a_label_rules_that_read_one_are_passed_over(compiled: Compile) -> None:
    """Unknown never counts as easy, and `why` says what was missing."""
    decision = decide(compiled(LABELLED), Facts.given({}), label_failed=True)
    assert isinstance(decision, Decision)
    assert decision.rule == "otherwise"
    assert decision.why[1] == "rule `easy`: needs a label and there is none"


def test_a_decision_says_all_of_its_rule(compiled: Compile) -> None:
    """Name, revision and route come with every decision; equal decisions are one object."""
    policy = compiled(LABELLED)
    one, other = decide(policy, Facts.given({}), EASY), decide(policy, Facts.given({"tools": 3}), EASY)
    assert isinstance(one, Decision)
    assert one is other
    assert (one.policy, one.revision, one.rule) == ("default", policy.revision, "easy")
    assert [lane.model for lane in one.route] == ["claude-haiku-5-5"]
    assert (one.cache, one.retry, one.timeouts, one.deny, one.tags) == (None, NO_RETRY, OWN_TIMEOUTS, None, ())


def test_an_expensive_fact_is_worked_out_only_when_a_rule_reaches_it(compiled: Compile, catalog: Catalog) -> None:
    """`code_share` stands first in the rule, but the counted facts are tried first."""
    policy = compiled(
        "rules: [{name: a, when: {code_share: {gt: 0.5}, stream: true}, route: haiku}]\notherwise: sonnet\n"
    )
    body = b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"```\\nx\\n```"}]}'
    facts = inspect(read_request(body), Caller(), catalog)
    decide(policy, facts)
    assert "code_share" not in facts.recorded()
    facts.stream = True
    decision = decide(policy, facts)
    assert isinstance(decision, Decision)
    assert decision.rule == "a"
    assert facts.recorded()["code_share"] == 1.0


SPLIT = "rules: [{name: canary, when: {tools: 0}, split: {haiku: 90, sonnet: 10}}]\notherwise: as-asked\n"


def split_of(policy: CompiledPolicy, conversation: int) -> str:
    facts = Facts.given({"header.x-claude-code-session-id": f"session-{conversation}"})
    decision = decide(policy, facts)
    assert isinstance(decision, Decision)
    assert decision.why == (f"rule `canary`: matched, split to `{decision.route[0].name}`",)
    return decision.route[0].name


def test_a_split_keeps_a_conversation_and_its_shares(compiled: Compile) -> None:
    """The same conversation always falls the same way, also after a reload; the shares are those written."""
    falls = [split_of(compiled(SPLIT), n) for n in range(200)]
    policy = compiled(SPLIT)
    assert falls == [split_of(policy, n) for n in range(200)]
    share = Counter(split_of(policy, n) for n in range(5000))
    assert 0.08 < share["sonnet"] / 5000 < 0.12


def test_two_splits_fall_apart_from_each_other(compiled: Compile) -> None:
    """The rule's name enters the draw: who is in one experiment is not thereby in the next."""
    one, other = compiled(SPLIT.replace("90", "10")), compiled(SPLIT.replace("90", "10").replace("canary", "second"))
    facts = [Facts.given({"header.x-claude-code-session-id": str(n)}) for n in range(400)]
    same = sum(decide(one, f).route == decide(other, f).route for f in facts)  # type: ignore[union-attr]  # no labels
    assert 140 < same < 260


def test_a_bounded_number_of_decisions_is_remembered(compiled: Compile) -> None:
    """A policy with very many ways to fail does not grow without end, and still answers right."""
    rules = "".join(
        f"  - {{name: r{i}, when: {{input_tokens: {{lt: {i + 1}}}, tools: {{gt: 900}}}}, route: haiku}}\n"
        for i in range(14)
    )
    parity = "".join(f"  - {{name: p{i}, when: {{header.b{i}: x, header.c{i}: x}}, route: haiku}}\n" for i in range(14))
    policy = compiled(f"rules:\n{rules}{parity}otherwise: sonnet\n")
    for number in range(6000):
        headers = {f"header.b{i}": "x" for i in range(14) if number >> i & 1}
        decision = decide(policy, Facts.given({"input_tokens": 50, **headers}))
        assert isinstance(decision, Decision)
        assert decision.rule == "otherwise"
        assert (decision.why[14] == "rule `p0`: `header.c0` is not x") is bool(number & 1)
    assert len(policy.made) == 4096


worlds = st.fixed_dictionaries(
    {
        "requested_line": st.sampled_from([None, "haiku", "sonnet", "opus", "fable"]),
        "input_tokens": st.sampled_from([0, 90_000, 90_001, 10**6]),
        "conversation": st.sampled_from(["new", "warm"]),
    }
)
labels = st.builds(
    Label, st.sampled_from([*TASKS, ""]), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1) | st.just(nan)
)


@given(worlds, st.none() | labels)
def test_hard_work_never_goes_down_unnoticed(shipped: CompiledPolicy, world: dict, label: Label | None) -> None:
    """The shipped policy's promise: a request that is hard, or not known to be easy, never moves to a smaller model."""
    decision = decide(shipped, Facts.given(world), label, label_failed=True)
    assert isinstance(decision, Decision)
    lane = decision.route[0].name
    is_easy = label is not None and label.task in TASKS[:7] and label.difficulty < 0.5 and label.p_hard < 0.5
    if lane == "haiku":
        assert is_easy
    if world["requested_line"] in ("opus", "fable") and not is_easy:
        assert lane == "as-asked"
    is_hard = label is not None and (label.task in TASKS[7:11] or label.p_hard >= 0.5)
    if world["conversation"] == "warm" and is_hard and not is_easy:  # also where it is bound to Haiku by now
        assert decision.stick == "move"
        assert lane == ("sonnet" if world["requested_line"] in ("haiku", "sonnet") else "as-asked")


def test_only_a_new_long_request_is_decided_without_a_label(shipped: CompiledPolicy) -> None:
    """The shipped policy asks the classifier wherever the answer can matter, and only there."""
    for tokens, conversation, needed in ((90_001, "new", False), (90_000, "new", True), (90_001, "warm", True)):
        decision = decide(shipped, Facts.given({"input_tokens": tokens, "conversation": conversation}))
        assert (decision is NEEDS_LABEL) == needed


@pytest.mark.parametrize(
    "request_class", ["main", "subagent", "workflow", "compaction", "auxiliary", "side_reply", None]
)
@pytest.mark.parametrize("tokens", [10, 500_000])
def test_the_policy_for_claude_code_never_asks_for_a_label(
    catalog: Catalog, request_class: str | None, tokens: int
) -> None:
    """It goes by what the client says of itself; the main loop and what is very long always stay as asked."""
    policy = compile_folder(read_folder(POLICIES), catalog=catalog, classify=by_words).policies["claude-code"]
    decision = decide(policy, Facts.given({"request_class": request_class, "input_tokens": tokens}))
    assert isinstance(decision, Decision)
    moves = tokens == 10 and request_class in ("subagent", "workflow", "compaction", "auxiliary")
    assert [lane.name for lane in decision.route] == (["haiku", "sonnet"] if moves else ["as-asked"])


# What Claude Code 2.1 sends, as observed; the words are ours. Source: API sheet, section 17.
CODE_BETAS = (
    "claude-code-20250219", "interleaved-thinking-2025-05-14", "context-management-2025-06-27",
    "per-turn-control-2026-07-01", "mid-conversation-tool-changes-2026-07-01", "thinking-token-count-2026-05-13",
    "advanced-tool-use-2025-11-20", "effort-2025-11-24",
)  # fmt: skip


def code_request(model: str, **changes: Any) -> MessagesRequest:
    mark = {"type": "ephemeral"}
    body = {
        "model": model,
        "max_tokens": 128_000,
        "stream": True,
        "system": [
            {"type": "text", "text": "one line", "cache_control": mark},
            {"type": "text", "text": "how to work"},
        ],
        "tools": [
            {"name": "Read", "description": "reads a file", "input_schema": {"type": "object"}},
            {"name": "More", "description": "…", "input_schema": {"type": "object"}, "defer_loading": True},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "find the parser", "cache_control": mark}]},
            {"role": "system", "content": "the working folder is x", "output_config": {"effort": "medium"}},
        ],
        "thinking": {"type": "adaptive", "display": "omitted"},
        "output_config": {"effort": "medium"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "{}"},
        **changes,
    }
    return read_request(json.dumps({name: value for name, value in body.items() if value is not None}).encode())


BUDGET = {"type": "enabled", "budget_tokens": 31_999, "display": "omitted"}


@pytest.mark.parametrize(
    ("request_", "is_strictly_taken"),
    [
        (code_request("claude-opus-5-5"), True),
        (code_request("claude-sonnet-5-5"), True),
        (code_request("claude-fable-5-2"), True),
        (code_request("claude-sonnet-5", max_tokens=64_000, output_config={"effort": "high"}), True),
        (code_request("claude-sonnet-4-5", max_tokens=32_000, thinking=BUDGET, output_config=None), False),
    ],
    ids=lambda value: value.model if isinstance(value, MessagesRequest) else "",
)
def test_haiku_can_serve_the_sub_agents_of_claude_code(
    catalog: Catalog, request_: MessagesRequest, is_strictly_taken: bool
) -> None:
    """The lane that the policy names is one that can be had: strictly, or with the edits that the policy lists."""
    policy = compile_folder(read_folder(POLICIES), catalog=catalog, classify=by_words).policies["claude-code"]
    decision = decide(policy, Facts.given({"request_class": "subagent"}))
    assert isinstance(decision, Decision)
    haiku, asked = catalog.find(decision.route[0].model or ""), catalog.find(request_.model)
    assert haiku is not None
    for edits, is_taken in (((), is_strictly_taken), (decision.edits, True)):
        verdict = can_serve(
            request_, haiku, asked=asked, api_version="2023-06-01", betas=CODE_BETAS, input_tokens=15_000, edits=edits
        )
        assert verdict.is_ok == is_taken, verdict.reasons


@given(worlds, st.none() | labels)
def test_explaining_agrees_with_deciding(shipped: CompiledPolicy, world: dict, label: Label | None) -> None:
    """The same rule matches, and each rule before it shows the clause that `why` names."""
    facts = Facts.given(world)
    decision = decide(shipped, facts, label, label_failed=label is None)
    assert isinstance(decision, Decision)
    seen = explain(shipped, facts, label)
    assert [rule.name for rule in seen if rule.outcome == "matched"] == [decision.rule]
    for rule, why in zip(seen, decision.why, strict=False):
        failed = next((clause for clause in rule.clauses if clause.is_true is False), None)
        if failed is not None:
            assert why == f"rule `{rule.name}`: {failed.says}"
            assert failed.values


def test_deciding_costs_microseconds(shipped: CompiledPolicy) -> None:
    """One decision runs a few dozen Python instructions; counted, not timed, so that a busy machine changes nothing."""
    facts = Facts.given({"requested_line": "sonnet"})
    decide(shipped, facts, HARD)
    calls = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    decide(shipped, facts, HARD)
    sys.setprofile(None)
    assert calls < 60


def test_a_rule_is_a_value() -> None:
    """Compiled rules hold no state of their own."""
    assert CompiledRule.__dataclass_params__.frozen  # type: ignore[attr-defined]  # what the decorator leaves behind
