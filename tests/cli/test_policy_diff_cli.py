"""`router policy diff` as a person types it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kit.recorded_traffic import folders, make_store

from router.catalog_file import load_catalog
from router.cli.policy_diff import compare, diff
from router.errors import TraceStoreError
from router.policy.check import compile_folder, revision_of
from router.policy.diff import Comparison
from router.policy.folder import read_folder
from router.policy.forecast import Recorded
from router.policy.history import PolicyHistory
from router.trace.recorded import scan


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `old`, `new` and a trace store."""
    where = tmp_path_factory.mktemp("diff")
    folders(where)
    make_store(where / "router.db", 300)
    return where


def run(place: Path, *args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(diff, [*args, "--traces", f"sqlite:///{place}/router.db"], env=env)


def begin(place: Path) -> Callable[[], Comparison]:
    catalog = load_catalog()
    sides = [compile_folder(read_folder(place / side), catalog=catalog, classify=None) for side in ("old", "new")]
    return partial(Comparison, *sides, catalog)


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


def test_the_history_is_found_where_the_router_keeps_it(place: Path, tmp_path: Path) -> None:
    """By its settings, as `history` and `rollback` find it; one that is off is said, and no folder needs it."""
    files = read_folder(place / "old")
    revision = revision_of(files)
    assert PolicyHistory(tmp_path / "kept", place / "new", now=lambda: 0.0).record(revision, files, "start")
    settings = {"ROUTER_POLICY_HISTORY": str(tmp_path / "kept"), "ROUTER_POLICIES": str(place / "new")}
    found = run(place, revision, str(place / "new"), "--json", env=settings)
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["old"]["revision"] == revision
    assert run(place, revision, str(place / "new"), env={"ROUTER_POLICIES": str(place / "new")}).exit_code == 1
    off = {"ROUTER_POLICY_HISTORY": "off"}
    refused = run(place, revision, str(place / "new"), env=off)
    assert refused.exit_code == 2
    assert "the history is off" in refused.stderr
    assert run(place, str(place / "old"), str(place / "new"), env=off).exit_code == 0


def test_what_a_revision_served_is_said_to_be_as_recorded(place: Path, tmp_path: Path) -> None:
    """A folder held against itself gives the lanes and the money of the trace store, to the last digit."""
    make_store(tmp_path / "router.db", 200, 3, (revision_of(read_folder(place / "old")),))
    sides = (str(place / "old"), str(place / "old"))
    found = json.loads(run(tmp_path, *sides, "--json").stdout, parse_float=Decimal, parse_int=Decimal)
    with closing(sqlite3.connect(tmp_path / "router.db")) as connection:
        sums = "SELECT sum(cost_pusd), sum(baseline_pusd) FROM traces WHERE endpoint = 'messages' AND"
        cost, baseline = connection.execute(f"{sums} cost_pusd NOT NULL AND baseline_pusd NOT NULL").fetchone()
    for side in (found["old"], found["new"]):
        assert (side["as_recorded"], side["forecast"], side["estimated_requests"]) == (200, 0, 0)
        assert (side["cost_usd"].scaleb(12), side["baseline_usd"].scaleb(12)) == (cost, baseline)
    assert (found["compared"], found["lane_changes"], found["undecided"]) == (200, 0, 0)
    assert "old: 200 as recorded under that revision, 0 forecast" in run(tmp_path, *sides).stdout


@pytest.mark.parametrize("processes", ["2", "4"])
def test_processes_that_share_the_work_find_the_same(place: Path, processes: str) -> None:
    """To the last byte of JSON."""
    sides = (str(place / "old"), str(place / "new"), "--json")
    alone = run(place, *sides, "--processes", "1")
    shared = run(place, *sides, "--processes", processes)
    assert shared.exit_code == 0, shared.stderr
    assert shared.stdout == alone.stdout == run(place, *sides).stdout
    assert shared.stderr == ""


def test_a_part_that_cannot_be_read_ends_it(place: Path) -> None:
    """The error of the other process is the error of the command."""

    def read(part: tuple[int, int]) -> Iterator[list[Recorded]]:
        yield from scan(place / ("router.db" if part[0] == 0 else "none.db"), part=part)

    with pytest.raises(TraceStoreError, match="no trace store") as caught:
        compare(begin(place), read, whole=300, parts=2)
    assert "router serve" in caught.value.hint


def test_a_process_that_dies_ends_it(place: Path) -> None:
    """As the kernel ends one when memory is short: nothing is left out in silence."""

    def read(part: tuple[int, int]) -> Iterator[list[Recorded]]:
        if part[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from scan(place / "router.db", part=part)

    with pytest.raises(TraceStoreError, match="ended early"):
        compare(begin(place), read, whole=300, parts=2)


def test_there_is_a_progress_bar_where_somebody_watches_and_nowhere_else(place: Path) -> None:
    """On a terminal's stderr; a pipe or a file gets none of it."""
    router = str(Path(sys.executable).with_name("router"))
    sides = (str(place / "old"), str(place / "new"))
    command = [router, "policy", "diff", *sides, "--json", "--traces", f"sqlite:///{place}/router.db"]
    piped = subprocess.run(command, capture_output=True, check=True)
    assert piped.stderr == b""
    ours, terminal = os.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal) as process:
        os.close(terminal)
        assert process.stdout is not None
        assert process.stdout.read() == piped.stdout
    shown = b""
    with suppress(OSError):  # the end of a terminal that nobody writes to any more
        while chunk := os.read(ours, 4096):
            shown += chunk
    os.close(ours)
    assert b"requests" in shown
    assert b"100%" in shown


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
