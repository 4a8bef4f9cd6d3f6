"""`router policy …`: exit codes, what goes to which stream, and that it says what the server would do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from router.cli.policy import policy
from router.facts.vocabulary import FACTS

ROOT = Path(__file__).parents[2]
TICKET = "Classify this ticket as billing, technical or account: I can't log in after resetting my password."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "policies", tmp_path / "policies"))


def run(*arguments: str, given: str = "") -> Result:
    return CliRunner().invoke(policy, list(arguments), input=given)


def test_the_shipped_policies_pass_with_the_shipped_classifier(folder: Path) -> None:
    """What a fresh checkout serves is checked, its tests included."""
    result = run("check", str(folder))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("ok: default at revision ")
    tests = run("test", str(folder))
    assert tests.exit_code == 0
    assert "ok   default: a support ticket is labelled by Haiku" in tests.stdout
    assert " 0 failed" in tests.stdout


def test_a_broken_policy_exits_1_with_every_problem_on_stderr(folder: Path) -> None:
    """The next step stands in the text."""
    (folder / "default.yaml").write_text("version: 1\nrules: [{name: a, route: haiko}]\notherwise: sonet\n")
    result = run("check", str(folder))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "did you mean `haiku`?" in result.stderr
    assert "did you mean `sonnet`?" in result.stderr
    assert "2 problems" in result.stderr
    document = json.loads(run("check", "--json", str(folder)).stdout)
    assert [(d["line"], d["col"]) for d in document["diagnostics"]] == [(2, 26), (3, 12)]
    assert document["ok"] is False
    assert run("explain", "--policies", str(folder), "-", given="{}").exit_code == 1


def test_a_failing_test_exits_1_and_is_named(folder: Path) -> None:
    """Each test has its line; the failing one also its place and reason."""
    text = (folder / "default.yaml").read_text().replace("{rule: long-context, lane: as-asked}", "{rule: hard-work}")
    (folder / "default.yaml").write_text(text)
    result = run("test", str(folder))
    assert result.exit_code == 1
    assert "FAIL default: a long document stays where it was sent" in result.stdout
    assert "expects rule `hard-work`, rule `long-context` decides" in result.stderr
    assert [t["name"] for t in json.loads(run("test", "--json", str(folder)).stdout) if not t["ok"]]


def test_no_folder_is_said_with_the_next_step(tmp_path: Path) -> None:
    """A wrong path is a problem found, not a crash."""
    result = run("check", str(tmp_path / "nowhere"))
    assert result.exit_code == 1
    assert "cannot be read" in result.stderr
    assert "hint" in result.stderr


def test_explaining_shows_each_clause_with_the_value_seen(folder: Path) -> None:
    """Why this route: rules in order, the failing clause, the facts."""
    body = {"model": "claude-opus-5-5", "max_tokens": 20, "messages": [{"role": "user", "content": TICKET}]}
    result = run("explain", "--policies", str(folder), "-", given=json.dumps(body))
    assert result.exit_code == 0
    assert "✗ `input_tokens` is not gt 90000   (input_tokens = " in result.stdout
    assert "structured-work: matched" in result.stdout
    assert "hard-work: not reached" in result.stdout
    assert "rule structured-work: haiku → sonnet" in result.stdout
    document = json.loads(run("explain", "--json", "--policies", str(folder), "-", given=json.dumps(body)).stdout)
    assert (document["rule"], document["route"]) == ("structured-work", ["haiku", "sonnet"])
    assert document["facts"]["requested_line"] == "opus"
    assert document["labels"]["task"] == "classification"


def test_wrong_usage_exits_2(folder: Path) -> None:
    """An unknown policy or a malformed header is the caller's slip."""
    body = json.dumps({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]})
    assert run("explain", "--policies", str(folder), "--policy", "blue", "-", given=body).exit_code == 2
    assert run("explain", "--policies", str(folder), "--header", "x", "-", given=body).exit_code == 2
    assert run("explain", "--policies", str(folder), "-", given="{}").exit_code == 1


def test_facts_and_schema_print_the_vocabulary() -> None:
    """The table for people, JSON for programs, the schema for editors."""
    table = run("facts").stdout
    assert all(name in table for name in (*FACTS, "header.NAME"))
    assert len(json.loads(run("facts", "--json").stdout)) == len(FACTS) + 1
    assert json.loads(run("schema").stdout)["title"] == "A routing policy"
    assert "default_lane" in json.loads(run("schema", "--lanes").stdout)["properties"]
