"""Deciding from a record: the rules tried on what a trace tells, which may be less than the request told.

A trace has no text. What a rule reads may be missing from it: a label or a header that no rule asked for at the time,
the language, a name that was cut, the user (a hash). Then each clause is true, false or unknown, `any`, `all` and `not`
carry that on, and the first rule that is neither true nor false ends it: nobody can say, and nothing is guessed. A rule
with one clause that is false does not match, whatever the others would have said.

Made for millions of records: each comparison is made once per value, each combination of their outcomes weighed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from router.classify.label import Label
from router.facts.inspect import RECORDED_CHARS, RECORDED_ITEMS, Facts
from router.facts.vocabulary import HEADER_PREFIX, LABEL_FACTS, fact_spec, may_hold_secret
from router.policy.compile import CompiledPolicy
from router.policy.conditions import Clause
from router.policy.decide import Decision, decide

_OF_WORDS = frozenset({"matches", "contains", "starts_with"})  # ask what a text says, beyond which one of many it is
_CUT = ("request_class", "tool_names", "betas")
_LISTS = ("tool_names", "betas")
_MODEL = "requested_model"  # recorded in full beside the facts
_MOST_VALUES = 20_000  # of one fact remembered
_MOST_LABELS = 2_000  # remembered
_MOST_OUTCOMES = 20_000  # of one policy remembered
_ABSENT = object()  # stands for the value of a fact that is not in the record
_NO_LABEL = Label("", 0.0, 0.0, 0.0)
_Truth = bool | str  # a text is unknown: the name of what is missing
_Truths = tuple[_Truth, ...]
_Heard = tuple[Label, tuple[str, ...], tuple[_Truths, ...]]


class _Trait:
    """One fact that a policy reads: what its comparisons say to each value. `known` is a memo of bounded size."""

    __slots__ = ("clauses", "known", "name")

    def __init__(self, name: str, clauses: tuple[Clause, ...]) -> None:
        self.name = name
        self.clauses = clauses
        self.known: dict[Any, _Truths] = {}

    def learn(self, value: Any) -> _Truths:
        """The outcome of every comparison of this fact, with `_ABSENT` for what was not recorded."""
        truths = tuple(_compared(clause, value) for clause in self.clauses)
        if len(self.known) >= _MOST_VALUES:
            self.known.clear()
        self.known[value] = truths
        return truths


class RuleWeighed(NamedTuple):
    """One rule against a record: `outcome` is `matched`, `failed`, `unknown` or `not reached`.

    `says` is the sentence of the first clause that fails, or the name of what is missing; `line` is that of the rule.
    """

    name: str
    line: int
    outcome: str
    says: str


class RecordedPolicy:
    """One compiled policy, to be asked about recorded facts."""

    __slots__ = (
        *(
            "_alone",
            "_conversation",
            "_labels",
            "_no_label",
            "_of_label",
            "_of_lists",
            "_of_model",
            "_of_request",
            "_outcomes",
        ),
        *("_policy", "_traits"),
    )

    def __init__(self, policy: CompiledPolicy) -> None:
        self._policy = policy
        # Each rule as a policy of its own that always matches, for when `weigh` has found that it does.
        self._alone = tuple(
            replace(policy, rules=(replace(rule, clauses=(), counted=(), labelled=()),), made={})
            for rule in policy.rules
        )
        read: dict[str, list[Clause]] = {}
        for rule in policy.rules:
            for clause in _comparisons(rule.clauses):
                read.setdefault(clause.fact, []).append(clause)
        self._of_request = _traits(read, lambda name: name not in (*_LISTS, *LABEL_FACTS, _MODEL))
        self._of_lists = _traits(read, lambda name: name in _LISTS)
        self._of_label = _traits(read, lambda name: name in LABEL_FACTS)
        self._of_model = _traits(read, lambda name: name == _MODEL)
        self._traits = tuple(
            trait for some in (self._of_request, self._of_lists, self._of_label, self._of_model) for _, _, trait in some
        )
        self._labels: dict[int, _Heard] = {}
        self._no_label = [trait.learn(_ABSENT) for _, _, trait in self._of_label]
        # A text: unknown. A policy: the rule that matches splits, and the conversation decides.
        self._outcomes: dict[tuple[_Truths, ...], Decision | CompiledPolicy | str] = {}
        self._conversation = Facts()  # only its key is ever read

    def decide(
        self,
        record: Mapping[str, Any],
        model_asked: str,
        conversation: str,
        label: Label | None,
        lacking: tuple[str, ...],
    ) -> Decision | str:
        """What the policy decides, or the name of what would have to be known for that.

        `lacking` are the names of labels that are not known although there is a label.
        """
        key = self._key(record, model_asked, label, lacking)
        outcome = self._outcomes.get(key)
        if outcome is None:
            if len(self._outcomes) >= _MOST_OUTCOMES:
                self._outcomes.clear()
            outcome = self._outcomes[key] = self._weigh(key)
        if not isinstance(outcome, CompiledPolicy):
            return outcome
        if not conversation:
            return "conversation"  # the side of a split it falls on
        self._conversation._conversation_key = conversation
        return _decided(outcome, self._conversation)

    def rules(
        self, record: Mapping[str, Any], model_asked: str, label: Label | None, lacking: tuple[str, ...]
    ) -> tuple[RuleWeighed, ...]:
        """Every rule of the policy, in order, as `decide` weighs it. For people, not for millions."""
        truths = self._truths(self._key(record, model_asked, label, lacking))
        weighed: list[RuleWeighed] = []
        is_over = False
        for rule in self._policy.rules:
            outcome, says = "not reached", ""
            if not is_over:
                truth = _all(rule.clauses, truths)
                outcome = "failed" if truth is False else "unknown" if isinstance(truth, str) else "matched"
                says = truth if isinstance(truth, str) else ""
                if truth is False:
                    says = next(clause.fails for clause in rule.clauses if _holds(clause, truths) is False)
                is_over = truth is not False
            weighed.append(RuleWeighed(rule.name, rule.line, outcome, says))
        return tuple(weighed)

    def _key(
        self, record: Mapping[str, Any], model_asked: str, label: Label | None, lacking: tuple[str, ...]
    ) -> tuple[_Truths, ...]:
        """What all comparisons of the policy say to a request."""
        try:
            said = self._said(record)
        except TypeError:  # an object or a list within a list, which no memo can hold and no fact is
            record = {name: value for name, value in record.items() if _is_plain(value)}
            said = self._said(record)
        if self._of_label:
            if label is None:
                said += self._no_label
            else:
                last = self._labels.get(id(label))
                if last is None or last[0] is not label or last[1] != lacking:
                    last = self._heard(label, lacking)
                said += last[2]
        if self._of_model:
            said += [known.get(model_asked if name in record else _ABSENT) for name, known, _ in self._of_model]
        return self._learned(said, record, model_asked) if None in said else tuple(said)

    def _said(self, record: Mapping[str, Any]) -> list[Any]:
        """What the comparisons of facts are known to say to a record; None for a value not met before."""
        get = record.get
        said: list[Any] = [known.get(get(name, _ABSENT)) for name, known, _ in self._of_request]
        said += [known.get(_listed(get(name, _ABSENT))) for name, known, _ in self._of_lists]
        return said

    def _heard(self, label: Label, lacking: tuple[str, ...]) -> _Heard:
        """What the policy's comparisons say to a label; it is remembered by identity, which its presence here keeps."""
        said = []
        for name, known, trait in self._of_label:
            value = _ABSENT if name in lacking else getattr(label, name)
            truths = known.get(value)
            said.append(trait.learn(value) if truths is None else truths)
        if len(self._labels) >= _MOST_LABELS:
            self._labels.clear()
        heard = self._labels[id(label)] = (label, lacking, tuple(said))
        return heard

    def _learned(self, said: list[_Truths | None], record: Mapping[str, Any], model_asked: str) -> tuple[_Truths, ...]:
        """`said` with the comparisons made that no memo had."""
        key: list[_Truths] = []
        for trait, truths in zip(self._traits, said, strict=True):
            if truths is None:
                name = trait.name
                if name == _MODEL:
                    value = model_asked if name in record else _ABSENT
                else:
                    value = _listed(record.get(name, _ABSENT)) if name in _LISTS else record.get(name, _ABSENT)
                truths = trait.learn(value)
            key.append(truths)
        return tuple(key)

    def _truths(self, said: tuple[_Truths, ...]) -> dict[int, _Truth]:
        """The same by comparison."""
        return {
            id(clause): truth
            for trait, of_trait in zip(self._traits, said, strict=True)
            for clause, truth in zip(trait.clauses, of_trait, strict=True)
        }

    def _weigh(self, said: tuple[_Truths, ...]) -> Decision | CompiledPolicy | str:
        truths = self._truths(said)
        for rule, alone in zip(self._policy.rules, self._alone, strict=True):
            truth = _all(rule.clauses, truths)
            if truth is False:
                continue
            if isinstance(truth, str):
                return truth
            return alone if len(rule.outcomes) > 1 else _decided(alone, self._conversation)
        raise AssertionError("the last rule of a compiled policy always matches")


def _traits(
    read: Mapping[str, list[Clause]], is_wanted: Callable[[str], bool]
) -> tuple[tuple[str, dict[Any, _Truths], _Trait], ...]:
    """The facts that are wanted of those read: name, memo, trait."""
    wanted = [_Trait(name, tuple(clauses)) for name, clauses in read.items() if is_wanted(name)]
    return tuple((trait.name, trait.known, trait) for trait in wanted)


def _is_plain(value: Any) -> bool:
    """Whether a recorded value is one value or a list of such."""
    if isinstance(value, list):
        return not any(isinstance(item, (dict, list)) for item in value)
    return not isinstance(value, dict)


def _listed(value: Any) -> Any:
    """A recorded list as a value that a memo can hold."""
    return tuple(value) if isinstance(value, list) else value


def _comparisons(clauses: tuple[Clause, ...]) -> Iterator[Clause]:
    """The comparisons of a condition, those inside `any` and `not` too."""
    for clause in clauses:
        if not clause.parts:
            yield clause
        for part in clause.parts:
            yield from _comparisons(part)


def _decided(alone: CompiledPolicy, facts: Facts) -> Decision:
    decision = decide(alone, facts)
    assert isinstance(decision, Decision)  # the rule has no clause left
    return decision


def _all(clauses: tuple[Clause, ...], truths: Mapping[int, _Truth]) -> _Truth:
    unknown = ""
    for clause in clauses:
        truth = _holds(clause, truths)
        if truth is False:
            return False
        if isinstance(truth, str):
            unknown = unknown or truth
    return unknown or True


def _holds(clause: Clause, truths: Mapping[int, _Truth]) -> _Truth:
    if clause.operator == "not":
        inner = _all(clause.parts[0], truths)
        return inner if isinstance(inner, str) else not inner
    if clause.operator == "any":
        unknown = ""
        for part in clause.parts:
            truth = _all(part, truths)
            if truth is True:
                return True
            if isinstance(truth, str):
                unknown = unknown or truth
        return unknown or False
    return truths[id(clause)]


def _compared(clause: Clause, value: Any) -> _Truth:
    """One comparison against one recorded value; the name of the fact where it cannot be made."""
    name = clause.fact
    if value is _ABSENT:
        if name != "user":
            return name
        value = None  # a user that is not recorded was not there
    if not _fits(name, value):
        return name
    if name in LABEL_FACTS:
        return clause.check(Facts(), replace(_NO_LABEL, **{name: value}))
    if _is_unknown(clause, value):
        return name
    facts = Facts()
    if name.startswith(HEADER_PREFIX):
        facts.headers = {} if value is None else {name[len(HEADER_PREFIX) :]: value}
    elif name == "language":
        facts._language, facts._has_language = value, True
    elif name == "code_share":
        facts._code_share = value
    else:
        setattr(facts, name, value)
    return clause.check(facts, None)


def _fits(name: str, value: Any) -> bool:
    """Whether a recorded value is of its fact's kind; a store that others can write to may hold anything."""
    spec = fact_spec(name)
    if spec is None or (name == "max_tokens" and isinstance(value, str)):
        return True  # a number too large for the trace store: `_is_unknown` knows it
    if spec.kind == "list":
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    if value is None:
        return True
    if spec.kind == "flag":
        return isinstance(value, bool)
    if spec.kind == "text":
        return isinstance(value, str)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_unknown(clause: Clause, value: Any) -> bool:
    """Whether one comparison cannot be made on what is recorded."""
    name = clause.fact
    if value is None or clause.operator == "exists":
        return False
    if name == "user" or (value == "other" and name in ("thinking", "effort")):
        return clause.operator in _OF_WORDS
    if name.startswith(HEADER_PREFIX) and value and may_hold_secret(name[len(HEADER_PREFIX) :]):
        return True  # only that it was there is recorded, or a hash
    if name in _CUT or name.startswith(HEADER_PREFIX):
        return _is_cut(value)
    # A number too large for the trace store, which then holds a text that only looks like it.
    return name == "max_tokens" and isinstance(value, str)


def _is_cut(value: Any) -> bool:
    """Whether a text or list may have been longer than it is recorded."""
    if isinstance(value, str):
        return len(value) >= RECORDED_CHARS
    if isinstance(value, tuple):
        return len(value) >= RECORDED_ITEMS or max(map(len, value), default=0) >= RECORDED_CHARS
    return False
