"""`decide()`: facts × policy → what to do and why. Pure, synchronous, about a microsecond.

It never classifies: when a rule that is reached needs a label and none is given, it answers `NEEDS_LABEL` and is asked
again. Without a label (the classifier failed) a rule that reads one does not match: unknown never counts as easy.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from router.classify.label import Label
from router.facts.inspect import Facts
from router.policy.compile import CompiledPolicy, CompiledRule, Outcome
from router.policy.conditions import LABELLED, Clause
from router.policy.operators import getter
from router.policy.written import (
    DEFERRED_ALLOWED,
    CacheDirective,
    DeferredDirective,
    Lane,
    Retry,
    Stick,
    Swap,
    Timeouts,
)

_MOST_KEPT = 4096  # decisions remembered per policy


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy says about one request.

    `route` is never empty: the first lane is tried first, the rest are fallbacks. `offers` are all lanes that the rule
    names (more than the route where it splits): a client may choose among them. `deny` is a message for the client,
    and then nothing is sent. `edits` are the edits that may be made
    to the request so that a lane takes it. `turns` is how soon `stick: economic` must earn back a switch. `why` has one
    sentence per rule reached, the deciding one last. `deferred` says whether the answer may come later.
    """

    policy: str
    revision: str
    rule: str
    route: tuple[Lane, ...]
    offers: tuple[Lane, ...]
    cache: CacheDirective | None
    retry: Retry
    timeouts: Timeouts
    swap: Swap
    edits: tuple[str, ...]
    stick: Stick
    turns: int
    deny: str | None
    tags: tuple[str, ...]
    why: tuple[str, ...]
    deferred: DeferredDirective = DEFERRED_ALLOWED


@dataclass(frozen=True, slots=True)
class NeedsLabel:
    """The answer of `decide()` when a rule that is reached asks for a label."""


NEEDS_LABEL = NeedsLabel()


def decide(
    policy: CompiledPolicy, facts: Facts, label: Label | None = None, *, label_failed: bool = False
) -> Decision | NeedsLabel:
    """The first rule whose clauses all hold decides; the last rule, `otherwise`, always does.

    `label_failed` says that there will be no label: rules that read one are then passed over.
    """
    why: list[str] = []
    for rule in policy.rules:
        for check, fails in rule.counted:
            if not check(facts, None):
                why.append(fails)
                break
        else:
            if rule.labelled:
                if label is None:
                    if not label_failed:
                        return NEEDS_LABEL
                    why.append(rule.why_no_label)
                    continue
                for check, fails in rule.labelled:
                    if not check(facts, label):
                        why.append(fails)
                        break
                else:
                    return _decision(policy, rule, facts, why)
                continue
            return _decision(policy, rule, facts, why)
    raise AssertionError("the last rule of a compiled policy always matches")


def _decision(policy: CompiledPolicy, rule: CompiledRule, facts: Facts, why: list[str]) -> Decision:
    outcome = rule.outcomes[0] if len(rule.outcomes) == 1 else _split(rule, facts)
    why.append(outcome.why)
    sentences = tuple(why)
    made: Decision | None = policy.made.get(sentences)
    if made is None:
        made = Decision(
            policy=policy.name,
            revision=policy.revision,
            rule=rule.name,
            route=outcome.route,
            offers=rule.offers,
            cache=rule.cache,
            retry=rule.retry,
            timeouts=rule.timeouts,
            swap=rule.swap,
            edits=rule.edits,
            stick=rule.stick,
            turns=rule.turns,
            deny=rule.deny,
            tags=rule.tags,
            why=sentences,
            deferred=rule.deferred,
        )
        if len(policy.made) < _MOST_KEPT:
            policy.made[sentences] = made
    return made


def _split(rule: CompiledRule, facts: Facts) -> Outcome:
    """The outcome that a conversation falls on: the same one as long as the weights stay as they are."""
    key = f"{rule.name}\n{facts.conversation_key}".encode()
    point = int.from_bytes(blake2b(key, digest_size=8).digest(), "big") % rule.weights[-1]
    return next(outcome for outcome, weight in zip(rule.outcomes, rule.weights, strict=True) if point < weight)


@dataclass(frozen=True, slots=True)
class ClauseSeen:
    """One clause against one request: its sentence, whether it holds, and what the facts it reads were.

    `is_true` is None for a clause that was not tried: an earlier one failed, or there is no label.
    """

    says: str
    is_true: bool | None
    values: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class RuleSeen:
    """One rule against one request: `outcome` is `matched`, `failed`, `no label` or `not reached`."""

    name: str
    line: int
    outcome: str
    clauses: tuple[ClauseSeen, ...]


def explain(policy: CompiledPolicy, facts: Facts, label: Label | None = None) -> tuple[RuleSeen, ...]:
    """Every rule and clause of a policy against one request, with the values seen. For people, not for the path.

    Agrees with `decide(policy, facts, label, label_failed=label is None)`.
    """
    seen: list[RuleSeen] = []
    is_decided = False
    for rule in policy.rules:
        if is_decided:
            clauses = tuple(ClauseSeen(clause.holds, None, ()) for clause in rule.clauses)
            seen.append(RuleSeen(rule.name, rule.line, "not reached", clauses))
            continue
        outcome, clauses = _look(rule, facts, label)
        is_decided = outcome == "matched"
        seen.append(RuleSeen(rule.name, rule.line, outcome, clauses))
    return tuple(seen)


def _look(rule: CompiledRule, facts: Facts, label: Label | None) -> tuple[str, tuple[ClauseSeen, ...]]:
    outcome = "matched"
    clauses: list[ClauseSeen] = []
    for clause in rule.clauses:
        if outcome != "matched":
            clauses.append(ClauseSeen(clause.holds, None, ()))
        elif clause.cost == LABELLED and label is None:
            outcome = "no label"
            clauses.append(ClauseSeen(clause.holds, None, ()))
        else:
            is_true = clause.check(facts, label)
            clauses.append(
                ClauseSeen(clause.holds if is_true else clause.fails, is_true, _values(clause, facts, label))
            )
            outcome = "matched" if is_true else "failed"
    return outcome, tuple(clauses)


def _values(clause: Clause, facts: Facts, label: Label | None) -> tuple[tuple[str, Any], ...]:
    return tuple((name, getter(name)(facts, label)) for name in sorted(clause.reads))
