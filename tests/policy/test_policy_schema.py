"""The JSON Schema that editors use: current, and of one mind with the parser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.facts.vocabulary import FACTS
from router.policy.compile import search_regex
from router.policy.conditions import compile_condition
from router.policy.grammar import OPERATORS
from router.policy.parse import parse_policy
from router.policy.schema import lanes_schema, policy_schema
from router.policy.source import read_source

HERE = Path(__file__).parent
POLICIES = HERE.parents[1] / "policies"
CASES = HERE / "cases"


@pytest.mark.parametrize(
    ("name", "schema"), [("policy.schema.json", policy_schema()), ("lanes.schema.json", lanes_schema())]
)
def test_the_shipped_schema_is_current(name: str, schema: dict[str, Any]) -> None:
    """`router policy schema > policies/policy.schema.json` (and `--lanes` for the other) after every change."""
    assert json.loads((POLICIES / name).read_text()) == schema


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value fits; the keywords of JSON Schema that ours use, and no others."""
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    for keyword, says in schema.items():
        match keyword:
            case "$ref":
                ok = fits(value, root["$defs"][says.removeprefix("#/$defs/")], root)
            case "anyOf":
                ok = any(fits(value, one, root) for one in says)
            case "type":
                ok = isinstance(value, kinds[says]) and (says == "boolean" or not isinstance(value, bool))
            case "const":
                ok = value == says
            case "enum":
                ok = value in says
            case "pattern":
                ok = not isinstance(value, str) or re.search(says, value) is not None
            case "minimum":
                ok = not isinstance(value, int | float) or value >= says
            case "maximum":
                ok = not isinstance(value, int | float) or value <= says
            case "minLength" | "minItems" | "minProperties":
                ok = not isinstance(value, str | list | dict) or len(value) >= says
            case "maxItems":
                ok = not isinstance(value, list) or len(value) <= says
            case "items":
                ok = not isinstance(value, list) or all(fits(item, says, root) for item in value)
            case "required":
                ok = not isinstance(value, dict) or all(name in value for name in says)
            case "additionalProperties":  # looks at the two beside it: once, or a deep condition takes for ever
                ok = not isinstance(value, dict) or members_fit(value, schema, root)
            case "properties" | "patternProperties":
                ok = "additionalProperties" in schema
            case "$schema" | "$defs" | "title" | "description":
                ok = True
            case _:
                raise AssertionError(f"keyword `{keyword}` is not known here")
        if not ok:
            return False
    return True


def members_fit(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any]) -> bool:
    for name, member in value.items():
        named = schema.get("properties", {}).get(name)
        wild = next((s for p, s in schema.get("patternProperties", {}).items() if re.search(p, name)), None)
        found = named or wild or schema.get("additionalProperties", True)
        if found is False or (found is not True and not fits(member, found, root)):
            return False
    return True


def files_of(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in sorted(folder.glob("*.yaml")) if path.name != "decisions.yaml"}
    return found or {"lanes.yaml": (CASES / "lanes.yaml").read_bytes()}


def schema_takes(name: str, value: Any) -> bool:
    schema = lanes_schema() if name == "lanes.yaml" else policy_schema()
    return fits(value, schema, schema)


def plain(name: str, data: bytes) -> Any:
    """A file as plain data, by the reader that the router uses; None when that alone refuses it."""
    source = read_source(name, data)
    return source.root.plain() if source.root is not None and not source.diagnostics else None


CASE_FOLDERS = sorted(path for path in CASES.iterdir() if path.is_dir())


@pytest.mark.parametrize(
    "folder", [*(path for path in CASE_FOLDERS if path.name.startswith("ok-")), POLICIES], ids=lambda path: path.name
)
def test_what_the_parser_takes_the_schema_takes(folder: Path) -> None:
    """An editor never underlines what the router accepts."""
    for name, data in files_of(folder).items():
        assert schema_takes(name, plain(name, data)), name


# What no look at one file's values can show, with the reason. Everything else that is refused, the schema refuses.
NOT_SHOWN_BY_ONE_FILE = {
    **dict.fromkeys(("unknown-lane", "two-files", "yaml-crlf-keeps-places"), "lanes are named in another file"),
    "tests-wait-until-all-compiles": "lanes are named in another file",
    **dict.fromkeys(("lane-cycle", "lane-cycle-of-a-hundred", "lane-refers-to-itself"), "names lead to names"),
    **dict.fromkeys(("lane-model", "lane-models"), "models are the catalogue's"),
    **dict.fromkeys(("file-names", "no-default", "no-lanes", "nothing"), "what is wrong is which files there are"),
    **dict.fromkeys(("contradiction", "same-wording-twice", "unreachable"), "rules against each other"),
    "contradiction-in-parts": "conditions against each other",
    **dict.fromkeys(("language", "control-characters-in-texts"), "to the schema these are texts like others"),
    **dict.fromkeys(("shadowed-by-a-list", "shadowed-by-a-range", "shadowed-by-any"), "rules against each other"),
    **dict.fromkeys(("shadowed-by-presence", "shadowed-labels"), "rules against each other"),
    "shadowed-by-a-rule-without-when": "rules against each other",
    **dict.fromkeys(("a-test-in-another-policy-fails", "own-tests-of-a-split-and-a-denial"), "tests must be run"),
    "cache-when-temperature-never": "comparisons against each other",
    "deferred-with-other-keys": "one key with another",
    "version-number": "to JSON 1.0 and 1 are one number",
}


@pytest.mark.parametrize(
    "folder", [path for path in CASE_FOLDERS if path.name.startswith("bad-")], ids=lambda path: path.name
)
def test_what_one_file_shows_to_be_wrong_the_schema_refuses(folder: Path) -> None:
    """The editor underlines it before it is saved; what it cannot see is listed above, and really is not seen."""
    read = {name: plain(name, data) for name, data in files_of(folder).items()}
    if None in read.values():
        return  # not YAML as we read it: there is no value to show to a schema
    is_taken = all(schema_takes(name, value) for name, value in read.items())
    assert is_taken == (folder.name.removeprefix("bad-") in NOT_SHOWN_BY_ONE_FILE)


def test_the_schema_knows_every_fact_and_operator() -> None:
    """Completion offers all there is, with its meaning."""
    facts = policy_schema()["$defs"]["condition"]["properties"]
    assert set(facts) == {*FACTS, "any", "all", "not"}
    assert all(fact["description"] for fact in facts.values())
    offered = {
        name for fact in facts.values() for form in fact.get("anyOf", [fact]) for name in form.get("properties", {})
    }
    assert offered == {operator.name for operator in OPERATORS}


def generated(schema: dict[str, Any], root: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Values that fit a schema, from its own structure; conditions nest three deep."""
    if "$ref" in schema:
        return st.deferred(lambda: generated(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, depth + 1))
    if "anyOf" in schema:
        return st.one_of([generated(one, root, depth) for one in schema["anyOf"]])
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "string":
            return st.from_regex(schema["pattern"], fullmatch=True) if "pattern" in schema else st.sampled_from(WORDS)
        case "integer":
            return st.integers(schema.get("minimum", 0), schema.get("maximum", 10**6))
        case "number":
            return st.floats(schema.get("minimum", 0), schema.get("maximum", 1)).map(lambda value: round(value, 6))
        case "boolean":
            return st.booleans()
        case "array":
            return st.lists(generated(schema["items"], root, depth), min_size=schema.get("minItems", 0), max_size=3)
    if "request" in schema.get("required", ()) or "messages" in schema.get("required", ()):
        return st.just({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]})
    named = schema.get("properties", {})
    if depth > 2:
        named = {name: member for name, member in named.items() if name not in ("any", "all", "not")}
    wild = schema.get("additionalProperties")
    if isinstance(wild, dict):
        return st.dictionaries(st.sampled_from(["haiku", "sonnet"]), generated(wild, root, depth), min_size=1)
    required = {name: generated(named[name], root, depth) for name in schema.get("required", ())}
    chosen = st.lists(st.sampled_from(sorted(named)), max_size=3, unique=True, min_size=schema.get("minProperties", 0))

    def with_members(names: list[str]) -> st.SearchStrategy[Any]:
        return st.fixed_dictionaries(
            required | {name: generated(named[name], root, depth) for name in names if name not in required}
        )

    return chosen.flatmap(with_members)


WORDS = ("x", "red one", "claude-haiku-5-5", "über")
# Said by the parser of what the schema's structure allows, because it compares one key with another or asks for names.
ONE_KEY_WITH_ANOTHER = (
    "has both `", "does not say where to go", "appears twice", "must have either `request` or `given`",
    "expects nothing", "a rule cannot be called `otherwise`", "must be a duration, this is `0", "must be a size up to",
    "is empty", "an empty condition in", "must be `1ms` to `", "` can never hold",
    "must be longer than `max_wait`",
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(generated(policy_schema(), policy_schema()))
def test_what_the_schema_describes_the_parser_takes(document: dict[str, Any]) -> None:
    """A file made from nothing but the schema is read, parsed and compiled without a word about its shape."""
    assert schema_takes("default.yaml", document)
    source = read_source("default.yaml", json.dumps(document, ensure_ascii=False).encode())
    policy = parse_policy("default", source)
    assert policy is not None
    for rule in policy.rules:
        if rule.when is not None:
            compile_condition(rule.when, source, "a rule", search_regex)
    said = [found.message for found in source.diagnostics]
    assert [message for message in said if not any(part in message for part in ONE_KEY_WITH_ANOTHER)] == []


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(generated(policy_schema(), policy_schema()), st.data())
def test_a_key_that_the_schema_does_not_know_neither_takes(document: dict[str, Any], data: st.DataObject) -> None:
    """One key renamed, anywhere but in a test's own request: the schema and the parser both refuse the file."""
    places = [place for place in mappings(document) if place]
    place = data.draw(st.sampled_from(places))
    place["zzz-unknown"] = place.pop(data.draw(st.sampled_from(sorted(place))))
    assert not schema_takes("default.yaml", document)
    source = read_source("default.yaml", json.dumps(document, ensure_ascii=False).encode())
    policy = parse_policy("default", source)
    for rule in policy.rules if policy is not None else ():
        if rule.when is not None:
            compile_condition(rule.when, source, "a rule", search_regex)
    assert source.diagnostics


def mappings(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The mappings of a policy whose keys the language names: the file, its rules, what stands in them."""
    found = [document]
    for rule in document["rules"]:
        found.append(rule)
        found += [
            rule[key] for key in ("when", "cache", "stick", "swap", "deferred") if isinstance(rule.get(key), dict)
        ]
        temperature = rule["cache"].get("when_temperature") if isinstance(rule.get("cache"), dict) else None
        found += [temperature] if isinstance(temperature, dict) else []
    return found
