"""`router policy`: what a policies folder says, checked with the very code that the server reloads with."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from router.catalog.lookup import Catalog
from router.catalog_file import load_catalog
from router.classify.label import PLACES
from router.classify.model import Explanation, LinearClassifier
from router.cli.policy_lanes import lane_verdicts, named_lane
from router.errors import RouterError
from router.facts.inspect import Caller, inspect
from router.facts.vocabulary import FACTS
from router.policy.check import Checked, check_folder
from router.policy.compile import PolicySet
from router.policy.decide import Decision, RuleSeen, decide, explain
from router.policy.folder import read_folder
from router.policy.schema import lanes_schema, policy_schema
from router.policy.source import Diagnostic, render
from router.wire.messages import read_request

_API_VERSION = "2023-06-01"  # what every SDK sends
_MARKS = {True: "✓", False: "✗", None: "·"}

_folder = click.argument("folder", metavar="[DIR]", default="policies", type=click.Path(path_type=Path))
_policies = click.option(
    "--policies",
    "folder",
    metavar="DIR",
    default="policies",
    type=click.Path(path_type=Path),
    help="folder of policies",
)
_catalog = click.option(
    "--catalog",
    "catalog_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="models in place of the shipped ones",
)
_json = click.option("--json", "as_json", is_flag=True, help="print JSON")


# Commands in files of their own, loaded when they are used: name → module:attribute.
_ELSEWHERE = {
    "history": "router.cli.policy_history:history",
    "rollback": "router.cli.policy_history:rollback",
    "fmt": "router.cli.policy_format:fmt",
    "push": "router.cli.policy_push:push",
    "pushed": "router.cli.policy_push:pushed",
    "unpush": "router.cli.policy_push:unpush",
    "diff": "router.cli.policy_diff:diff",
}


class _Group(click.Group):
    """The commands of this file and those of `_ELSEWHERE`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *(name for name in _ELSEWHERE if self.get_command(ctx, name))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = _ELSEWHERE[cmd_name].partition(":")
        if importlib.util.find_spec(module) is None:
            return None
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_Group)
def policy() -> None:
    """Check, test and explain policies."""


@policy.command()
@_folder
@_catalog
@_json
def check(folder: Path, catalog_file: Path | None, as_json: bool) -> None:
    """Check a folder of policies, its own tests included; exit 1 when anything is wrong."""
    checked, _, _ = _check(folder, catalog_file)
    if as_json:
        click.echo(json.dumps(_checked_json(checked), indent=2, ensure_ascii=False))
    elif checked.policies is None:
        click.echo(render(checked.diagnostics), err=True)
        click.echo(
            f"\n{_count(len(checked.diagnostics), 'problem')}; a running router keeps its last good set", err=True
        )
    else:
        names = ", ".join(checked.policies.policies)
        passed = _count(len(checked.results), "test")
        click.echo(f"ok: {names} at revision {checked.policies.revision}, {passed} passed")
    if checked.warnings and not as_json:
        click.echo("\n".join(f"warning: {warning.render()}" for warning in checked.warnings), err=True)
    sys.exit(0 if checked.policies is not None else 1)


@policy.command()
@_folder
@_catalog
@_json
def test(folder: Path, catalog_file: Path | None, as_json: bool) -> None:
    """Run the tests inside the policies, a line for each; exit 1 when one fails."""
    checked, _, _ = _check(folder, catalog_file)
    if as_json:
        click.echo(json.dumps(_checked_json(checked)["tests"], indent=2, ensure_ascii=False))
    else:
        for result in checked.results:
            click.echo(f"{'FAIL' if result.problem else 'ok  '} {result.policy}: {result.name}")
        failed = sum(bool(result.problem) for result in checked.results)
        click.echo(f"{len(checked.results) - failed} passed, {failed} failed")
    if checked.diagnostics:
        click.echo(render(checked.diagnostics), err=True)
        sys.exit(1)


@policy.command(name="explain")
@click.argument("request_file", metavar="REQUEST.json", type=click.File("rb"))
@click.option("--policy", "name", default="default", show_default=True, help="which policy")
@click.option("--header", "headers", multiple=True, metavar="NAME: VALUE", help="a request header; may be repeated")
@click.option("--words", is_flag=True, help="show the words of the request that weighed most for its label")
@_policies
@_catalog
@_json
def explain_command(
    request_file: Any,
    name: str,
    headers: tuple[str, ...],
    words: bool,
    folder: Path,
    catalog_file: Path | None,
    as_json: bool,
) -> None:
    """Say which rule a request meets and why, clause by clause, with the values seen. `-` reads standard input."""
    checked, catalog, classifier = _check(folder, catalog_file)
    policies = _valid(checked)
    if name not in policies.policies:
        raise click.UsageError(f"no policy `{name}`; there are {', '.join(policies.policies)}")
    compiled = policies.policies[name]
    try:
        request = read_request(request_file.read())
    except RouterError as error:
        raise click.ClickException(f"{request_file.name}: {error.message}") from error
    caller = _caller(name, headers)
    facts = inspect(request, caller, catalog)
    label = classifier.label(request.body)
    decision = decide(compiled, facts, label)
    assert isinstance(decision, Decision)  # a label was given
    rules = explain(compiled, facts, label)
    by_rule = decision
    try:
        decision, refused = named_lane(by_rule, policies, request.model, caller)
    except RouterError as error:
        raise click.ClickException(f"{error.message}\n  hint: {error.hint}") from error
    lanes = [] if decision.deny is not None else lane_verdicts(request, decision, policies, catalog, caller, facts)
    if as_json:
        document = {
            "policy": name,
            "revision": compiled.revision,
            "rule": decision.rule,
            "route": [lane.name for lane in decision.route],
            "deny": decision.deny,
            "why": list(decision.why),
            "named_lane_refused": refused or None,
            "swap": decision.swap,
            "deferred": asdict(decision.deferred),
            "lanes": [lane.json() for lane in lanes],
            "labels": label.recorded(),
            "read": _read(classifier.explain(request.body), words),
            "facts": facts.recorded(compiled.headers_read),
            "rules": [_rule_json(rule) for rule in rules],
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    for rule in rules:
        _print_rule(rule, f"{folder}/{name}.yaml")
    to = f"denied: {decision.deny}" if decision.deny is not None else " → ".join(lane.name for lane in decision.route)
    click.echo(f"\n{name}@{compiled.revision}: rule {decision.rule}: {to}")
    if refused or decision is not by_rule:
        click.echo(f"  {refused or decision.why[-1]}")
    for lane in lanes:
        click.echo(lane.line())
    shown = label.recorded()
    places = ", ".join(f"{place} {added:+}" for place, added in shown.pop("places").items())
    click.echo("labels: " + ", ".join(f"{key} {value}" for key, value in shown.items()))
    click.echo(f"  score of hard work by place: {places or 'nothing known'}")
    if words:
        for feature, added in _read(classifier.explain(request.body), words)["features"].items():
            click.echo(f"  {added:+.2f}  {feature}")


@policy.command()
@_json
def facts(as_json: bool) -> None:
    """List the facts that conditions may use."""
    rows = [(spec.name, spec.kind, spec.meaning, spec.values, spec.cost) for spec in FACTS.values()]
    rows.append(
        (
            "header.NAME",
            "text",
            "a request header, name in lower case; never one that holds a credential",
            (),
            "counted",
        )
    )
    if as_json:
        keys = ("name", "kind", "meaning", "values", "cost")
        click.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2, ensure_ascii=False))
        return
    for name, kind, meaning, values, cost in rows:
        listed = f" ({', '.join(values)})" if values else ""
        dear = "" if cost == "counted" else f" [{cost}]"
        click.echo(f"{name:18} {kind:8} {meaning}{listed}{dear}")
    click.echo("\n[read] is worked out from the words, [labelled] by the classifier, both only when a rule needs it")


@policy.command()
@click.option("--lanes", "of_lanes", is_flag=True, help="the schema of lanes.yaml instead")
def schema(of_lanes: bool) -> None:
    """Print the JSON Schema of a policy file, for editors."""
    click.echo(json.dumps(lanes_schema() if of_lanes else policy_schema(), indent=2, ensure_ascii=False))


def _check(folder: Path, catalog_file: Path | None) -> tuple[Checked, Catalog, LinearClassifier]:
    """The folder as the server would see it, with the shipped classifier."""
    try:
        catalog = load_catalog(catalog_file)
        classifier = LinearClassifier(files("router").joinpath("data/classifier.bin").read_bytes())
        checked = check_folder(read_folder(folder), catalog=catalog, classify=classifier.label, folder=str(folder))
    except RouterError as error:
        hint = f"\n  hint: {error.hint}" if error.hint else ""
        raise click.ClickException(f"{error.message}{hint}") from error
    return checked, catalog, classifier


def _valid(checked: Checked) -> PolicySet:
    if checked.policies is None:
        click.echo(render(checked.diagnostics), err=True)
        raise click.ClickException("the policies do not compile; nothing can be explained before they do")
    return checked.policies


def _caller(policy_name: str, given: tuple[str, ...]) -> Caller:
    headers = _headers(given)
    betas = headers.get("anthropic-beta", "")
    return Caller(
        policy=policy_name,
        headers=headers,
        api_version=headers.get("anthropic-version", _API_VERSION),
        betas=tuple(beta.strip() for beta in betas.split(",")) if betas else (),
    )


def _headers(given: tuple[str, ...]) -> dict[str, str]:
    headers = {}
    for header in given:
        name, colon, value = header.partition(":")
        if not colon:
            raise click.UsageError(f"--header takes `NAME: VALUE`, this is `{header}`")
        headers[name.strip().lower()] = value.strip()
    return headers


def _print_rule(rule: RuleSeen, file: str) -> None:
    place = f" ({file}:{rule.line})" if rule.line else ""
    click.echo(f"{rule.name}: {rule.outcome}{place}")
    for clause in rule.clauses:
        values = ", ".join(f"{name} = {_value(value)}" for name, value in clause.values)
        click.echo(f"  {_MARKS[clause.is_true]} {clause.says}" + (f"   ({values})" if values else ""))


def _rule_json(rule: RuleSeen) -> dict[str, Any]:
    return {
        "name": rule.name,
        "line": rule.line,
        "outcome": rule.outcome,
        "clauses": [
            {"says": clause.says, "is_true": clause.is_true, "values": dict(clause.values)} for clause in rule.clauses
        ],
    }


def _checked_json(checked: Checked) -> dict[str, Any]:
    return {
        "ok": checked.policies is not None,
        "revision": checked.policies.revision if checked.policies is not None else None,
        "policies": list(checked.policies.policies) if checked.policies is not None else [],
        "diagnostics": [_diagnostic_json(diagnostic) for diagnostic in checked.diagnostics],
        "warnings": [_diagnostic_json(warning) for warning in checked.warnings],
        "tests": [
            {"policy": r.policy, "name": r.name, "ok": not r.problem, "problem": r.problem, "why": list(r.why)}
            for r in checked.results
        ],
    }


def _diagnostic_json(found: Diagnostic) -> dict[str, Any]:
    return {"file": found.file, "line": found.line, "col": found.col, "message": found.message, "hint": found.hint}


def _value(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, float):
        return f"{value:.3g}"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _read(explanation: Explanation, words: bool) -> dict[str, Any]:
    """How much each place of the request counted for its label; where words may be shown, which weighed most."""
    attention = {place: round(share, 2) for place, share in zip(PLACES, explanation.attention, strict=False) if share}
    features = {name: round(weight, 3) for name, weight in explanation.features} if words else {}
    return {"attention": attention, "features": features}
