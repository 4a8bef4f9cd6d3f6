"""Policies as written → a `PolicySet` that runs: names looked up across files, rules checked against each other.

Every file is looked at whatever the others say, so that all diagnostics come at once. What compiles here has not yet
been believed: `policy/check` runs the policies' own tests first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import re2

from router.catalog.lookup import Catalog
from router.facts.vocabulary import HEADER_PREFIX
from router.policy.conditions import LABELLED, Clause, cheapest_first, compile_condition
from router.policy.grammar import AS_ASKED, DEFAULT_TURNS, OTHERWISE
from router.policy.operators import Check
from router.policy.reach import Domains, covers, domains, never_holds
from router.policy.source import Diagnostic, Node, Source
from router.policy.words import near
from router.policy.written import (
    DEFERRED_ALLOWED,
    NO_RETRY,
    OWN_TIMEOUTS,
    CacheDirective,
    DeferredDirective,
    Lane,
    LaneEntry,
    Lanes,
    Policy,
    Retry,
    Rule,
    Stick,
    Swap,
    Timeouts,
)
from router.usage import Tokens, Usage

AS_ASKED_LANE = Lane(AS_ASKED, None)
_ONE_TOKEN = Usage(Tokens(input=1, output=1))
_REGEX_MEMORY_BYTES = 1 << 20  # of one compiled expression; RE2 refuses what would take more


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way in which a rule can decide: a route and the sentence that says so."""

    route: tuple[Lane, ...]
    why: str


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """One rule ready to run.

    `counted` are the checks that need no label, each with the sentence for its failing; `labelled` those that do.
    `outcomes` has one entry, or one per lane of a `split`, with `weights` adding up from left to right. `offers` are
    all lanes that it names, among which a client may choose.
    """

    name: str
    clauses: tuple[Clause, ...]  # as tried, for `explain`
    counted: tuple[tuple[Check, str], ...]
    labelled: tuple[tuple[Check, str], ...]
    why_no_label: str
    outcomes: tuple[Outcome, ...]
    weights: tuple[int, ...]
    offers: tuple[Lane, ...] = ()
    deny: str | None = None
    retry: Retry = NO_RETRY
    timeouts: Timeouts = OWN_TIMEOUTS
    cache: CacheDirective | None = None
    swap: Swap = "strict"
    edits: tuple[str, ...] = ()
    stick: Stick = "conversation"
    turns: int = DEFAULT_TURNS
    deferred: DeferredDirective = DEFERRED_ALLOWED
    tags: tuple[str, ...] = ()
    line: int = 0


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """One policy ready to run; `rules` ends with one that always matches.

    `made` keeps the decisions that have been made, by their `why`, so that equal ones are one object. It is a memo of
    bounded size and changes no answer.
    """

    name: str
    revision: str
    rules: tuple[CompiledRule, ...]
    headers_read: tuple[str, ...] = ()
    made: dict[tuple[str, ...], Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PolicySet:
    """All policies of a folder compiled together. `default_lane` is where `as-asked` leads when `auto` was asked.

    `warnings` are what is not wrong yet: lanes whose model will be retired.
    """

    revision: str
    policies: Mapping[str, CompiledPolicy]
    lanes: Mapping[str, Lane]
    default_lane: Lane
    warnings: tuple[Diagnostic, ...] = ()


def search_regex(pattern: str) -> Callable[[str], bool]:
    """A found-in test by RE2, whose time is linear in the text. Raises ValueError saying what is wrong."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _REGEX_MEMORY_BYTES
    try:
        search = re2.compile(pattern, options=options).search
    except re2.error as exc:
        reason = exc.args[0] if exc.args else ""
        raise ValueError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) from exc
    return lambda text: search(text) is not None


def compile_lanes(written: Lanes, catalog: Catalog) -> tuple[dict[str, Lane], dict[str, tuple[Lane, ...]], Lane]:
    """The lanes by name, each lane's chain (itself, then its fallbacks), the default lane. Problems are reported."""
    source = written.source
    lanes = {entry.name: Lane(entry.name, entry.model.value) for entry in written.entries}
    for entry in written.entries:
        _check_model(entry, source, catalog)
    chains = {name: _chain(name, written, lanes) for name in lanes}
    default = AS_ASKED_LANE
    if written.default_lane is not None:
        name = written.default_lane.value
        if name in lanes:
            default = lanes[name]
        else:
            source.report(written.default_lane, f"unknown lane `{name}`", near(name, lanes, _listed(lanes)))
    return {**lanes, AS_ASKED: AS_ASKED_LANE}, {**chains, AS_ASKED: (AS_ASKED_LANE,)}, default


def lane_warnings(written: Lanes, catalog: Catalog) -> list[Diagnostic]:
    """A warning for each lane whose model is deprecated and has a date of retirement."""
    source, found = written.source, []
    for entry in written.entries:
        node = entry.model
        model = catalog.find(node.value)
        if model is None or model.lifecycle != "deprecated" or model.retires is None:
            continue
        message = f"model `{node.value}` of lane `{entry.name}` is deprecated: the API answers 404 from {model.retires}"
        line = source.lines[node.line - 1]
        hint = "`router models` lists what else there is"
        found.append(Diagnostic(source.label, node.line, node.col, message, hint, line, node.width))
    return found


def compile_policy(
    written: Policy, lanes: Mapping[str, Lane], chains: Mapping[str, tuple[Lane, ...]], revision: str
) -> CompiledPolicy:
    """One policy against the lanes of its folder; problems are reported to its source."""
    source = written.source
    earlier: list[tuple[Rule, Domains]] = []
    rules = []
    for rule in written.rules:
        is_whole = True
        clauses: tuple[Clause, ...] = ()
        if rule.when is not None:
            before = len(source.diagnostics)
            clauses = compile_condition(rule.when, source, f"rule `{rule.name}`", search_regex)
            is_whole = len(source.diagnostics) == before and not _is_unclear(rule.when)
        if is_whole:  # half a condition would seem to cover what the whole does not
            found = domains(clauses)
            _check_reach(rule, clauses, found, earlier, source)
            earlier.append((rule, found))
        rules.append(_compile_rule(rule, clauses, lanes, chains, source))
    rules.append(_otherwise(written, lanes, chains))
    headers = {
        name for rule in rules for clause in rule.clauses for name in clause.reads if name.startswith(HEADER_PREFIX)
    }
    read = tuple(sorted(name[len(HEADER_PREFIX) :] for name in headers))
    return CompiledPolicy(written.name, revision, tuple(rules), read)


def _is_unclear(node: Node) -> bool:
    """Whether a value in it has been complained of already, so that nothing was said of it here. Depth is bounded."""
    if node.kind == "map":
        return any(_is_unclear(value) for _, value in node.pairs())
    return node.kind == "unclear" or (node.kind == "list" and any(map(_is_unclear, node.value)))


def _check_model(entry: LaneEntry, source: Source, catalog: Catalog) -> None:
    name = entry.model.value
    model = catalog.find(name)
    if model is None:
        ids = [known for m in catalog.models for known in (m.id, *m.aliases)]
        source.report(
            entry.model,
            f"unknown model `{name[:80]}` in lane `{entry.name}`",
            near(name, ids, "`router models` lists them"),
        )
    elif model.is_retired:
        source.report(entry.model, f"model `{name}` of lane `{entry.name}` is retired: the API answers 404")
    elif catalog.cost(_ONE_TOKEN, name) is None:
        hint = "a lane without a price would make every report wrong"
        source.report(entry.model, f"model `{name}` of lane `{entry.name}` has no price", hint)


def _chain(name: str, written: Lanes, lanes: Mapping[str, Lane]) -> tuple[Lane, ...]:
    """A lane and the lanes it falls back on; a cycle or an unknown name is reported once, where it is written."""
    entries = {entry.name: entry for entry in written.entries}
    walked = [name]
    while (fallback := entries[walked[-1]].fallback) is not None:
        following = fallback.value
        if following not in entries:
            if len(walked) == 1:  # the lane that says so, not every lane that leads to it
                written.source.report(fallback, f"unknown lane `{following}`", near(following, lanes, _listed(lanes)))
            break
        if following in walked:
            cycle = [*walked[walked.index(following) :], following]
            if following == name and name == min(cycle, key=list(entries).index):
                written.source.report(
                    fallback, f"lanes fall back in a circle: {' → '.join(cycle)}", "take one `fallback` out"
                )
            break
        walked.append(following)
    return tuple(lanes[step] for step in walked)


def _check_reach(
    rule: Rule, clauses: tuple[Clause, ...], found: Domains, earlier: list[tuple[Rule, Domains]], source: Source
) -> None:
    contradiction = never_holds(clauses)
    if contradiction is not None:
        others = [c.holds for c in clauses if c is not contradiction and c.fact and c.fact in contradiction.reads]
        besides = f" and {' and '.join(others)}" if others else ""
        source.report(
            contradiction.at,
            f"rule `{rule.name}` can never match: {contradiction.holds}{besides}",
            "no request is like that",
        )
        return
    for other, wide in earlier:
        if covers(wide, found):
            takes = "takes every request" if not wide else "matches all that this one would"
            hint = "move this rule above it, or narrow the other one"
            source.report(
                rule.at,
                f"rule `{rule.name}` is never reached: rule `{other.name}` (line {other.at.line}) {takes}",
                hint,
            )
            return


def _compile_rule(
    rule: Rule,
    clauses: tuple[Clause, ...],
    lanes: Mapping[str, Lane],
    chains: Mapping[str, tuple[Lane, ...]],
    source: Source,
) -> CompiledRule:
    what = f"rule `{rule.name}`"
    tried = cheapest_first(clauses)
    if rule.split:
        steps = [(_route((node,), what, lanes, chains, source), weight) for node, weight in rule.split]
        outcomes = tuple(Outcome(route, f"{what}: matched, split to `{route[0].name}`") for route, _ in steps)
        weights = tuple(sum(weight for _, weight in steps[: i + 1]) for i in range(len(steps)))
    else:
        ending = "matched, denied" if rule.deny is not None else "matched"
        outcomes = (Outcome(_route(rule.route, what, lanes, chains, source), f"{what}: {ending}"),)
        weights = (1,)
    return CompiledRule(
        name=rule.name,
        clauses=tried,
        counted=tuple((c.check, f"{what}: {c.fails}") for c in tried if c.cost != LABELLED),
        labelled=tuple((c.check, f"{what}: {c.fails}") for c in tried if c.cost == LABELLED),
        why_no_label=f"{what}: needs a label and there is none",
        outcomes=outcomes,
        weights=weights,
        offers=_offers(outcomes),
        deny=rule.deny,
        retry=rule.retry,
        timeouts=rule.timeouts,
        cache=rule.cache,
        swap=rule.swap,
        edits=rule.edits,
        stick=rule.stick,
        turns=rule.turns,
        deferred=rule.deferred,
        tags=rule.tags,
        line=rule.at.line,
    )


def _otherwise(written: Policy, lanes: Mapping[str, Lane], chains: Mapping[str, tuple[Lane, ...]]) -> CompiledRule:
    route = _route(written.otherwise, f"`{OTHERWISE}`", lanes, chains, written.source)
    outcome = Outcome(route, "no rule matched: otherwise")
    line = written.otherwise[0].line if written.otherwise else 0
    return CompiledRule(OTHERWISE, (), (), (), "", (outcome,), (1,), route, line=line)


def _offers(outcomes: tuple[Outcome, ...]) -> tuple[Lane, ...]:
    return tuple(dict.fromkeys(lane for outcome in outcomes for lane in outcome.route))


def _route(
    nodes: tuple[Node, ...],
    what: str,
    lanes: Mapping[str, Lane],
    chains: Mapping[str, tuple[Lane, ...]],
    source: Source,
) -> tuple[Lane, ...]:
    """The lanes that are named, then what the last of them falls back on; no lane twice."""
    route: list[Lane] = []
    for node in nodes:
        name = node.value
        if name not in lanes:
            source.report(node, f"unknown lane `{name[:80]}` in {what}", near(name, lanes, _listed(lanes)))
        elif lanes[name] in route:
            source.report(node, f"{what} names lane `{name}` twice")
        else:
            route.append(lanes[name])
    if route:
        route += [lane for lane in chains[route[-1].name] if lane not in route]
    return tuple(route) or (AS_ASKED_LANE,)


def _listed(lanes: Mapping[str, Lane]) -> str:
    return f"lanes: {', '.join(lanes)}" if lanes else "`lanes.yaml` names them"
