"""The JSON Schema that editors use: current, and of one mind with the parser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.facts.vocabulary import FACTS
from router.policy.grammar import OPERATORS
from router.policy.schema import lanes_schema, policy_schema

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
            case "properties" | "patternProperties" | "additionalProperties":
                ok = not isinstance(value, dict) or members_fit(value, schema, root)
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


@pytest.mark.parametrize(
    "path", [*sorted(CASES.glob("ok-*/default.yaml")), POLICIES / "default.yaml"], ids=lambda p: p.parent.name
)
def test_what_the_parser_takes_the_schema_takes(path: Path) -> None:
    """An editor never underlines what the router accepts."""
    assert fits(yaml.safe_load(path.read_text()), policy_schema(), policy_schema())
    lanes = path.parent / "lanes.yaml" if (path.parent / "lanes.yaml").exists() else CASES / "lanes.yaml"
    assert fits(yaml.safe_load(lanes.read_text()), lanes_schema(), lanes_schema())


SHOWN_BY_ONE_FILE = """
unknown-fact unknown-key unknown-rule-key unknown-operator operator-beside-facts operator-for-the-type wrong-types
label-value range list-compared-bare empty-in in-without-list weights values-of-a-rule cache nesting missing-keys
null-values version shape rules-shape test-shapes
"""


@pytest.mark.parametrize("name", SHOWN_BY_ONE_FILE.split())
def test_what_one_file_shows_to_be_wrong_the_schema_refuses(name: str) -> None:
    """The editor underlines it before it is saved."""
    assert not fits(
        yaml.safe_load((CASES / f"bad-{name}" / "default.yaml").read_text()), policy_schema(), policy_schema()
    )


def test_the_schema_knows_every_fact_and_operator() -> None:
    """Completion offers all there is, with its meaning."""
    facts = policy_schema()["$defs"]["condition"]["properties"]
    assert set(facts) == {*FACTS, "any", "all", "not"}
    assert all(fact["description"] for fact in facts.values())
    offered = {
        name for fact in facts.values() for form in fact.get("anyOf", [fact]) for name in form.get("properties", {})
    }
    assert offered == {operator.name for operator in OPERATORS}
