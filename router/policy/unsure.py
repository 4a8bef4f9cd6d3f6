"""Deciding from a record: the rules tried on what a trace tells, which may be less than the request told.

A trace has no text. What a rule reads may be missing from it: a label or a header that no rule asked for at the time,
the language, a name that was cut, the user (a hash). Then each clause is true, false or unknown, `any`, `all` and `not`
carry that on, and the first rule that is neither true nor false ends it: nobody can say, and nothing is guessed. A rule
with one clause that is false does not match, whatever the others would have said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from router.classify.label import Label
from router.facts.inspect import RECORDED_CHARS, RECORDED_ITEMS, Facts
from router.facts.vocabulary import HEADER_PREFIX, LABEL_FACTS
from router.policy.compile import CompiledPolicy, CompiledRule
from router.policy.conditions import Clause
from router.policy.decide import Decision, NeedsLabel, decide

_OF_WORDS = frozenset({"matches", "contains", "starts_with"})  # ask what a text says, beyond which one of many it is
_CUT = ("request_class", "tool_names", "betas")
_Truth = bool | str  # a text is unknown: the name of what is missing


class RecordedPolicy:
    """One compiled policy, to be asked about recorded facts."""

    __slots__ = ("_alone", "_cut", "_has_cap", "_may_lack", "_policy", "_words")

    def __init__(self, policy: CompiledPolicy) -> None:
        self._policy = policy
        # Each rule as a policy of its own that always matches, for when `weigh` has found that it does.
        self._alone = tuple(
            replace(policy, rules=(replace(rule, clauses=(), counted=(), labelled=()),), made={})
            for rule in policy.rules
        )
        reads = frozenset().union(*(clause.reads for rule in policy.rules for clause in rule.clauses))
        headers = [name for name in reads if name.startswith(HEADER_PREFIX)]
        self._may_lack = tuple(sorted(reads - {*LABEL_FACTS, "user"}))
        compared = [clause for rule in policy.rules for clause in _comparisons(rule.clauses)]
        asks_words = {clause.fact for clause in compared if clause.operator in _OF_WORDS}
        self._cut = tuple(sorted(name for name in (*headers, *_CUT) if name in reads))
        self._words = tuple(sorted(name for name in ("user", "thinking", "effort") if name in asks_words))
        self._has_cap = "max_tokens" in reads

    def decide(
        self, record: Mapping[str, Any], facts: Facts, label: Label | None, lacking: tuple[str, ...]
    ) -> Decision | str:
        """What the policy decides, or the name of what would have to be known for that.

        `facts` are those of `record`. `lacking` are the names of labels that are not known although there is a label.
        """
        if not lacking and facts._conversation_key and not self._is_doubtful(record):
            decision = decide(self._policy, facts, label)
            if not isinstance(decision, NeedsLabel):
                return decision
        return self._weigh(record, facts, label, LABEL_FACTS if label is None else lacking)

    def _is_doubtful(self, record: Mapping[str, Any]) -> bool:
        """Whether something may be unknown that some rule reads: then the slow way is taken."""
        for name in self._may_lack:
            if name not in record:
                return True
        for name in self._cut:
            value = record[name]
            if value is not None and _is_cut(value):
                return True
        for name in self._words:
            value = record.get(name)
            if value is not None and (name == "user" or value == "other"):
                return True
        return self._has_cap and _is_odd("max_tokens", record["max_tokens"])

    def _weigh(
        self, record: Mapping[str, Any], facts: Facts, label: Label | None, lacking: tuple[str, ...]
    ) -> Decision | str:
        for rule, alone in zip(self._policy.rules, self._alone, strict=True):
            truth = _all(rule.clauses, record, facts, label, lacking)
            if truth is False:
                continue
            if isinstance(truth, str):
                return truth
            return _decided(rule, alone, facts)
        raise AssertionError("the last rule of a compiled policy always matches")


def _comparisons(clauses: tuple[Clause, ...]) -> Iterator[Clause]:
    """The comparisons of a condition, those inside `any` and `not` too."""
    for clause in clauses:
        if not clause.parts:
            yield clause
        for part in clause.parts:
            yield from _comparisons(part)


def _decided(rule: CompiledRule, alone: CompiledPolicy, facts: Facts) -> Decision | str:
    if len(rule.outcomes) > 1 and not facts._conversation_key:
        return "conversation"  # the side of a split it falls on
    decision = decide(alone, facts)
    assert isinstance(decision, Decision)  # the rule has no clause left
    return decision


def _all(
    clauses: tuple[Clause, ...],
    record: Mapping[str, Any],
    facts: Facts,
    label: Label | None,
    lacking: tuple[str, ...],
) -> _Truth:
    unknown = ""
    for clause in clauses:
        truth = _holds(clause, record, facts, label, lacking)
        if truth is False:
            return False
        if isinstance(truth, str):
            unknown = unknown or truth
    return unknown or True


def _holds(
    clause: Clause, record: Mapping[str, Any], facts: Facts, label: Label | None, lacking: tuple[str, ...]
) -> _Truth:
    if clause.operator == "not":
        inner = _all(clause.parts[0], record, facts, label, lacking)
        return inner if isinstance(inner, str) else not inner
    if clause.operator == "any":
        unknown = ""
        for part in clause.parts:
            truth = _all(part, record, facts, label, lacking)
            if truth is True:
                return True
            if isinstance(truth, str):
                unknown = unknown or truth
        return unknown or False
    if _is_unknown(clause, record, lacking):
        return clause.fact
    return clause.check(facts, label)


def _is_unknown(clause: Clause, record: Mapping[str, Any], lacking: tuple[str, ...]) -> bool:
    """Whether one comparison cannot be made on the record."""
    name = clause.fact
    if name in LABEL_FACTS:
        return name in lacking
    if name not in record and name != "user":  # a user that is not recorded was not there
        return True
    value = record.get(name)
    if value is None or clause.operator == "exists":
        return False
    if name == "user" or (value == "other" and name in ("thinking", "effort")):
        return clause.operator in _OF_WORDS
    if name in _CUT or name.startswith(HEADER_PREFIX):
        return _is_cut(value)
    return _is_odd(name, value)


def _is_cut(value: Any) -> bool:
    """Whether a text or list may have been longer than it is recorded."""
    if isinstance(value, str):
        return len(value) >= RECORDED_CHARS
    if isinstance(value, list):
        return len(value) >= RECORDED_ITEMS or max(map(len, value), default=0) >= RECORDED_CHARS
    return False


def _is_odd(name: str, value: Any) -> bool:
    """Whether a number is too large for the trace store, which then holds a text that only looks like it."""
    return name == "max_tokens" and isinstance(value, str)
