"""`router policy diff` as a person types it."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kit.recorded_traffic import folders, make_store

from router.cli.policy_diff import diff
from router.policy.check import revision_of
from router.policy.history import PolicyHistory
from router.policy.store import read_folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `old`, `new` and a trace store."""
    where = tmp_path_factory.mktemp("diff")
    folders(where)
    make_store(where / "router.db", 300)
    return where


def run(place: Path, *args: str) -> Result:
    return CliRunner().invoke(diff, [*args, "--traces", f"sqlite:///{place}/router.db"])


def test_a_table_for_people(place: Path) -> None:
    """What moves, what it costs, what is an estimate and what could not be decided."""
    result = run(place, str(place / "old"), str(place / "new"))
    assert result.exit_code == 0, result.output
    for words in ("300 recorded requests", "change lane", "warm prompt cache", "cannot be decided", "estimate",
                  "easy -> cheap", "as-asked -> haiku", "unknown cost", "all "):  # fmt: skip
        assert words in result.stdout
    assert result.stderr == ""


def test_json_has_every_figure_and_exact_decimals(place: Path) -> None:
    """The sums of the rules are the totals, to the last digit."""
    result = run(place, str(place / "old"), str(place / "new"), "--json")
    found = json.loads(result.stdout, parse_float=Decimal, parse_int=Decimal)
    assert sum(row["new"]["cost_usd"] for row in found["rules"]) == found["new"]["cost_usd"]
    assert sum(row["requests"] for row in found["rules"]) == found["compared"]
    assert found["compared"] + found["undecided"] + found["not_routed"] == found["requests"] == 300
    assert found["cost_change_usd"] == found["new"]["cost_usd"] - found["old"]["cost_usd"]


def test_the_same_policies_change_nothing(place: Path) -> None:
    """A folder held against itself."""
    found = json.loads(run(place, str(place / "old"), str(place / "old"), "--json").stdout)
    assert (found["lane_changes"], found["lanes"], found["cost_change_usd"]) == (0, [], 0)


def test_a_side_may_be_a_revision_of_the_history(place: Path, tmp_path: Path) -> None:
    """By its beginning; the other side may be a folder."""
    files = read_folder(place / "old")
    revision = revision_of(files)
    history = PolicyHistory(tmp_path / "history", place / "new", now=lambda: 0.0)
    assert history.record(revision, files, "start")
    options = ("--history", str(tmp_path / "history"), "--policies", str(place / "new"), "--json")
    by_revision = run(place, revision[:6], str(place / "new"), *options)
    assert by_revision.exit_code == 0, by_revision.stderr
    assert by_revision.stdout == run(place, str(place / "old"), str(place / "new"), "--json").stdout
    unknown = run(place, "ffffff", str(place / "new"), *options)
    assert unknown.exit_code == 1
    assert "no folder" in unknown.stderr


def test_since_and_policy_narrow_what_is_looked_at(place: Path) -> None:
    """The past has no request of next year; a policy has its own."""
    sides = (str(place / "old"), str(place / "new"), "--json")
    assert json.loads(run(place, *sides, "--since", "2099-01-01").stdout)["requests"] == 0
    gone = json.loads(run(place, *sides, "--policy", "gone").stdout)
    assert {row["policy"] for row in gone["rules"]} == {"gone"}
    assert run(place, *sides, "--since", "yesterday").exit_code == 2


def test_a_side_that_does_not_compile_ends_it(place: Path, tmp_path: Path) -> None:
    """Exit 1, with the diagnostics of `router policy check`."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "lanes.yaml").write_text("version: 1\nlanes: {a: {model: none-such}}\ndefault_lane: a\n")
    result = run(place, str(place / "old"), str(tmp_path / "bad"))
    assert result.exit_code == 1
    assert "unknown model `none-such`" in result.stderr
    assert "do not compile" in result.stderr


def test_a_missing_store_ends_it(place: Path, tmp_path: Path) -> None:
    """Exit 1, with the next step."""
    result = run(tmp_path, str(place / "old"), str(place / "new"))
    assert result.exit_code == 1
    assert "no trace store" in result.stderr
