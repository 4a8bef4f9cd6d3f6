"""A policies folder proved before it is believed: read, parsed, compiled, and its own tests run through `decide`.

The same code serves `router policy check`, the start of the server and every reload, so they cannot disagree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from math import nan
from typing import Any

from router.catalog.lookup import Catalog
from router.classify.label import Label
from router.errors import InvalidRequest, PolicyError
from router.facts.inspect import Caller, Facts, inspect
from router.facts.vocabulary import FACTS, HEADER_PREFIX, LABEL_FACTS, SECRET_HEADERS, fact_spec
from router.policy.compile import (
    AS_ASKED_LANE,
    CompiledPolicy,
    PolicySet,
    compile_lanes,
    compile_policy,
    lane_warnings,
)
from router.policy.conditions import fact_value
from router.policy.decide import Decision, NeedsLabel, decide
from router.policy.grammar import OTHERWISE
from router.policy.parse import parse_lanes, parse_policy
from router.policy.source import MAX_FOLDER_BYTES, Diagnostic, Node, Source, read_source, render, visible
from router.policy.words import is_name, near, seen, shown
from router.policy.written import Policy, Test
from router.wire.messages import MessagesRequest, read_request

LANES_FILE = "lanes.yaml"
DEFAULT_POLICY = "default"
Classify = Callable[[Mapping[str, Any]], Label]


@dataclass(frozen=True, slots=True)
class TestResult:
    """How one test of a policy came out; `problem` is empty when it passed."""

    __test__ = False  # pytest would take the name for one of its own

    policy: str
    name: str
    problem: str
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """What a folder came to: every diagnostic in file order, every test that was run, the set if nothing is wrong.

    `warnings` keep nothing from being used.
    """

    policies: PolicySet | None
    diagnostics: list[Diagnostic]
    results: list[TestResult]
    warnings: list[Diagnostic] = field(default_factory=list)


def revision_of(files: Mapping[str, bytes]) -> str:
    """12 hex digits that name the content of a folder: file names and bytes, whatever the dates.

    A name that is not UTF-8, which the system gives as half surrogates, counts by its bytes.
    """
    digest = sha256()
    for name in sorted(files):
        for part in (name.encode("utf-8", "surrogateescape"), files[name]):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()[:12]


def compile_folder(
    files: Mapping[str, bytes], *, catalog: Catalog, classify: Classify | None, folder: str = "policies"
) -> PolicySet:
    """The policy set of a folder's `*.yaml` files. Raises PolicyError with every diagnostic when anything is wrong."""
    checked = check_folder(files, catalog=catalog, classify=classify, folder=folder)
    if checked.policies is None:
        raise PolicyError(render(checked.diagnostics), hint="`router policy check` prints the same")
    return checked.policies


def check_folder(
    files: Mapping[str, bytes], *, catalog: Catalog, classify: Classify | None, folder: str = "policies"
) -> Checked:
    """Read, parse and compile a folder, then run the policies' tests. Never raises for what a file may hold.

    `classify` labels the requests of tests; without it rules that read a label do not match. `folder` is how the
    folder is called in diagnostics. Tests are run only once everything compiles.
    """
    folder = visible(folder)
    whole = Source(folder, folder, [])
    if not files:
        whole.report(None, "the folder holds no policy", f"it needs `{LANES_FILE}` and `{DEFAULT_POLICY}.yaml`")
        return Checked(None, whole.diagnostics, [])
    if sum(map(len, files.values())) > MAX_FOLDER_BYTES:
        whole.report(None, f"the files are over {MAX_FOLDER_BYTES:,} bytes together")
        return Checked(None, whole.diagnostics, [])
    sources = {name: read_source(name, files[name], f"{folder}/{name}") for name in sorted(files)}
    written = _parse(sources, whole)
    lanes_source = sources.get(LANES_FILE)
    lanes_written = parse_lanes(lanes_source) if lanes_source is not None else None
    lanes, chains, default = (
        compile_lanes(lanes_written, catalog) if lanes_written is not None else ({}, {}, AS_ASKED_LANE)
    )
    revision = revision_of(files)
    policies: dict[str, CompiledPolicy] = {}
    if lanes_written is not None:  # without lanes every route would be a complaint that says nothing
        policies = {policy.name: compile_policy(policy, lanes, chains, revision) for policy in written}
    results: list[TestResult] = []
    if not _problems(sources, whole):
        for policy in written:
            results += [_run(test, policy, policies[policy.name], lanes, catalog, classify) for test in policy.tests]
    problems = _problems(sources, whole)
    warnings = lane_warnings(lanes_written, catalog) if lanes_written is not None else []
    whole_set = PolicySet(revision, policies, lanes, default, tuple(warnings))
    return Checked(None if problems else whole_set, problems, results, warnings)


def _parse(sources: Mapping[str, Source], whole: Source) -> list[Policy]:
    written: list[Policy] = []
    for file, source in sources.items():
        name, _, ending = file.rpartition(".")
        if file == LANES_FILE:
            continue
        if ending != "yaml":
            source.report(None, "the ending is not `.yaml`", f"call the file `{visible(name)}.yaml`")
        elif not is_name(name):
            source.report(
                None, f"a policy cannot be called `{visible(name)}`", "lower case letters, digits, `-`, `_` and `.`"
            )
        elif source.root is not None and (policy := parse_policy(name, source)) is not None:
            written.append(policy)
    for needed in (LANES_FILE, f"{DEFAULT_POLICY}.yaml"):
        if needed not in sources:
            whole.report(None, f"the folder has no `{needed}`")
    return written


def _problems(sources: Mapping[str, Source], whole: Source) -> list[Diagnostic]:
    found = [diagnostic for source in (whole, *sources.values()) for diagnostic in source.diagnostics]
    return sorted(found, key=lambda diagnostic: (diagnostic.file, diagnostic.line, diagnostic.col))


def _run(
    test: Test,
    policy: Policy,
    compiled: CompiledPolicy,
    lanes: Mapping[str, Any],
    catalog: Catalog,
    classify: Classify | None,
) -> TestResult:
    """Run one test; what is wrong becomes a diagnostic of the policy's file too."""
    source, where = policy.source, f"test `{test.name}`"
    before = len(source.diagnostics)
    _check_names(test, compiled, lanes, source, where)
    decision: Decision | None = None
    if test.request is not None:
        request = _request(test.request, source, where)
        if request is not None:
            decision = _decide(compiled, inspect(request, Caller(policy=policy.name), catalog), request.body, classify)
    elif test.given is not None:
        decision = _decide_given(compiled, test.given, source, where)
    if decision is not None and len(source.diagnostics) == before:
        _compare(test, decision, source, where)
    problem = source.diagnostics[before].message if len(source.diagnostics) > before else ""
    return TestResult(policy.name, test.name, problem, decision.why if decision is not None else ())


def _check_names(test: Test, compiled: CompiledPolicy, lanes: Mapping[str, Any], source: Source, where: str) -> None:
    rules = [rule.name for rule in compiled.rules]
    for node, names, kind in ((test.rule, rules, "rule"), (test.lane, list(lanes), "lane")):
        if node is not None and node.value not in names:
            hint = near(shown(node), names, f"{kind}s: {', '.join(names[:20])}")
            source.report(node, f"{where} expects {_expected(kind, node)}", hint)


def _expected(kind: str, node: Node) -> str:
    return f"an unknown {kind} `{shown(node)}`" if node.kind == "text" else f"a {kind}, this is {seen(node)}"


def _request(node: Node, source: Source, where: str) -> MessagesRequest | None:
    try:
        return read_request(json.dumps(node.plain(), ensure_ascii=False).encode())
    except (InvalidRequest, UnicodeEncodeError) as error:
        source.report(node, f"{where} is not a request: {error}", "write a whole Messages API body")
        return None


def _decide(
    compiled: CompiledPolicy, facts: Facts, body: Mapping[str, Any], classify: Classify | None
) -> Decision | None:
    decision = decide(compiled, facts, label_failed=classify is None)
    if isinstance(decision, NeedsLabel) and classify is not None:
        decision = decide(compiled, facts, classify(body))
    return None if isinstance(decision, NeedsLabel) else decision


def _decide_given(compiled: CompiledPolicy, node: Node, source: Source, where: str) -> Decision | None:
    given: dict[str, Any] = {}
    for key, value in node.pairs():
        spec = fact_spec(key.value)
        if spec is None:
            if key.value.lower().removeprefix(HEADER_PREFIX) in SECRET_HEADERS:
                source.report(key, f"{where} names a header that holds a credential: no rule may read it")
                continue
            hint = near(key.value, FACTS, "`router policy facts` lists them")
            source.report(key, f"unknown fact `{key.value[:60]}` in {where}", hint)
        elif spec.kind == "list":
            items = value.value if value.kind == "list" else (value,)
            given[spec.name] = [fact_value(spec, item, source, where) for item in items]
        else:
            given[spec.name] = fact_value(spec, value, source, where)
    if None in given.values() or any(None in item for item in given.values() if isinstance(item, list)):
        return None
    facts = Facts.given({"policy": compiled.name, **given})
    labels = {name: given[name] for name in LABEL_FACTS if name in given}
    if not labels:
        decision = decide(compiled, facts, label_failed=True)
    else:  # a label that is not given equals nothing and is on no side of any bound
        label = Label(
            labels.get("task", ""),
            labels.get("difficulty", nan),
            labels.get("confidence", nan),
            labels.get("p_hard", nan),
        )
        decision = decide(compiled, facts, label)
    return None if isinstance(decision, NeedsLabel) else decision


def _compare(test: Test, decision: Decision, source: Source, where: str) -> None:
    if test.rule is not None and test.rule.value != decision.rule:
        prefix = f"rule `{test.rule.value}`: "
        reason = next((why for why in decision.why if why.startswith(prefix)), "")
        if not reason and test.rule.value != OTHERWISE:
            reason = f"rule `{decision.rule}` stands before it"
        source.report(
            test.rule,
            f"{where} expects rule `{test.rule.value}`, rule `{decision.rule}` decides",
            reason or decision.why[-1],
        )
    lane = decision.route[0].name
    if test.lane is not None and test.lane.value != lane:
        said = f"denied by rule `{decision.rule}`" if decision.deny is not None else f"the route is {_names(decision)}"
        source.report(test.lane, f"{where} expects lane `{test.lane.value}`, it goes to `{lane}`", said)


def _names(decision: Decision) -> str:
    return ", ".join(f"`{lane.name}`" for lane in decision.route)
