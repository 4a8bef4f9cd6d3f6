"""`router policy …`: exit codes, what goes to which stream, and that it says what the server would do."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from router.catalog_file import load_catalog
from router.classify.label import PLACES
from router.cli.policy import policy
from router.facts.vocabulary import FACTS
from router.policy.check import revision_of
from router.policy.folder import read_folder
from router.policy.history import PolicyHistory

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
    assert result.stdout.startswith("ok: ")
    assert "default" in result.stdout
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
    assert document["deferred"] == {"mode": "allow", "max_wait_s": 5.0, "max_items": 1000, "real_time_after_s": None}
    assert (document["rule"], document["route"]) == ("structured-work", ["haiku", "sonnet"])
    assert document["facts"]["requested_line"] == "opus"
    assert document["labels"]["task"] == "classification"


def test_explaining_a_label_names_places_and_words_only_when_asked(folder: Path) -> None:
    """Which part of the request counted is always said; its words are shown with `--words` alone."""
    body = json.dumps({"model": "m", "max_tokens": 20, "messages": [{"role": "user", "content": TICKET}]})
    quiet = json.loads(run("explain", "--json", "--policies", str(folder), "-", given=body).stdout)
    assert set(quiet["labels"]["places"]) <= set(PLACES)
    assert quiet["read"]["attention"]["first"] > 0.5
    assert quiet["read"]["features"] == {}
    told = json.loads(run("explain", "--json", "--words", "--policies", str(folder), "-", given=body).stdout)
    assert any("ticket" in name for name in told["read"]["features"])
    text = run("explain", "--words", "--policies", str(folder), "-", given=body).stdout
    assert "score of hard work by place: " in text
    assert "first: " in text


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


def test_explaining_shows_the_lane_that_the_client_named(folder: Path) -> None:
    """As the live path does: a lane that the rule offers goes in front, another is refused and said."""
    body = {"model": "claude-sonnet-5-5", "max_tokens": 20, "messages": [{"role": "user", "content": TICKET}]}
    there = ("explain", "--json", "--policies", str(folder))

    def routed(*header: str, model: str = "claude-sonnet-5-5") -> dict:
        return json.loads(run(*there, *header, "-", given=json.dumps({**body, "model": model})).stdout)

    assert routed()["route"] == ["haiku", "sonnet"]
    named = routed("--header", "x-router-lane: sonnet")
    assert (named["route"], named["named_lane_refused"]) == (["sonnet", "haiku"], None)
    assert named["why"][-1] == "the client asked for lane `sonnet`"
    assert [lane["lane"] for lane in named["lanes"]] == ["sonnet", "haiku"]
    refused = routed("--header", "X-Router-Lane: opus")
    assert refused["route"] == ["haiku", "sonnet"]
    assert refused["named_lane_refused"] == "the client asked for a lane `opus`, which the rule does not offer"
    assert "not in `lanes.yaml`" in routed("--header", "x-router-lane: nope")["named_lane_refused"]
    virtual = routed(model="lane:opus")
    assert (virtual["route"], virtual["why"][-1]) == (["opus"], "the client named the lane `opus`")
    text = run("explain", "--policies", str(folder), "-", given=json.dumps({**body, "model": "lane:opus"})).stdout
    assert "the client named the lane `opus`" in text
    unknown = run("explain", "--policies", str(folder), "-", given=json.dumps({**body, "model": "lane:nope"}))
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert "model: lane:nope" in unknown.stderr


def test_a_file_name_that_is_no_text_is_a_problem_that_prints(folder: Path) -> None:
    """Names that are not UTF-8 come from archives and old systems."""
    with open(os.fsencode(folder) + b"/\xff.yaml", "wb") as file:
        file.write(b"version: 1\nrules: []\notherwise: haiku\n")
    for form in ((), ("--json",)):
        result = run("check", *form, str(folder))
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert "a policy cannot be called `·`" in result.output


@pytest.mark.parametrize("when", ["1e20", "1e999", "-1", '"soon"'])
def test_the_history_is_listed_whatever_its_notes_say(folder: Path, tmp_path: Path, when: str) -> None:
    """A time that is none is the beginning of time; a damaged note is no entry."""
    kept = PolicyHistory(tmp_path / "h", folder, now=time.time)
    files = read_folder(folder)
    revision = revision_of(files)
    kept.record(revision, files, "start")
    text = json.dumps({"revision": revision, "how": "start", "taken_at": 0}).replace(": 0}", f": {when}}}")
    (kept.folder / revision / "meta.json").write_text(text)
    result = run("history", str(folder), "--history", str(tmp_path / "h"))
    assert (result.exit_code, result.exception) == (0, None)
    assert (revision in result.stdout) == (when != '"soon"')


def test_explaining_says_whether_each_lane_may_serve_the_request(folder: Path) -> None:
    """The reasons as the server comes to them; what a rule allows to edit is named."""
    body = {"model": "claude-opus-5-5", "max_tokens": 20, "messages": [{"role": "user", "content": TICKET}]}
    free = run("explain", "--policies", str(folder), "-", given=json.dumps(body)).stdout
    assert "✓ haiku (claude-haiku-5-5) may serve it as it is" in free
    prefilled = {**body, "temperature": 0.5}
    document = json.loads(run("explain", "--json", "--policies", str(folder), "-", given=json.dumps(prefilled)).stdout)
    assert [(lane["lane"], lane["may_serve"]) for lane in document["lanes"]] == [("haiku", False), ("sonnet", False)]
    assert "temperature" in document["lanes"][0]["reasons"][0]
    beta = "anthropic-beta: nobody-knows-2031-01-01"
    text = run("explain", "--policies", str(folder), "--header", beta, "-", given=json.dumps(body)).stdout
    assert "✗ haiku (claude-haiku-5-5) is passed over" in text
    assert "nobody-knows" in text


def test_a_model_that_ends_is_a_warning(folder: Path) -> None:
    """Said on stderr and in the JSON; it is no error."""
    model = next(m for m in load_catalog().models if m.lifecycle == "deprecated" and m.retires is not None)
    text = (folder / "lanes.yaml").read_text().replace("lanes:\n", f"lanes:\n  old: {{model: {model.id}}}\n", 1)
    (folder / "lanes.yaml").write_text(text)
    result = run("check", str(folder))
    assert result.exit_code == 0
    assert f"model `{model.id}` of lane `old` is deprecated" in result.stderr
    [warning] = json.loads(run("check", "--json", str(folder)).stdout)["warnings"]
    assert model.retires is not None
    assert model.retires in warning["message"]


def test_history_and_rollback_go_back_and_forth(folder: Path, tmp_path: Path) -> None:
    """Nothing is lost: what is replaced is saved first, and the way back is printed."""
    kept = ("--history", str(tmp_path / "history"))
    empty = run("history", str(folder), *kept)
    assert (empty.exit_code, empty.stdout) == (0, "")
    assert "no revisions" in empty.stderr
    history = PolicyHistory(tmp_path / "history", folder, now=time.time)
    first = read_folder(folder)
    assert history.record(revision_of(first), first, "start")
    edited = (folder / "default.yaml").read_bytes().replace(b"90000", b"80000")
    (folder / "default.yaml").write_bytes(edited)
    (folder / "extra.yaml").write_bytes(b"broken: [")
    assert "never in force" in run("history", str(folder), *kept).stdout
    result = run("rollback", revision_of(first)[:6], str(folder), *kept)
    assert result.exit_code == 0, result.output
    assert f"is back at revision {revision_of(first)}; changed: default.yaml, extra.yaml" in result.stdout
    assert read_folder(folder) == first
    assert (folder / "policy.schema.json").exists()
    rows = json.loads(run("history", str(folder), "--json", *kept).stdout)
    assert [(row["how"], row["is_on_disk"]) for row in rows] == [("rollback", True), ("replaced", False)]
    assert history.files(rows[1]["revision"])["extra.yaml"] == b"broken: ["
    again = run("rollback", revision_of(first), str(folder), *kept)
    assert "nothing was changed" in again.stdout


def test_a_rollback_is_refused_with_the_next_step(folder: Path, tmp_path: Path) -> None:
    """An unknown revision, one that does not pass with this version, a history that cannot be written."""
    kept = ("--history", str(tmp_path / "history"))
    before = read_folder(folder)
    assert run("rollback", "abc", str(folder), *kept).exit_code == 1
    history = PolicyHistory(tmp_path / "history", folder, now=time.time)
    bad = {**before, "default.yaml": b"version: 1\nrules: []\notherwise: gone\n"}
    assert history.record(revision_of(bad), bad, "reload")
    result = run("rollback", revision_of(bad), str(folder), *kept)
    assert result.exit_code == 1
    assert "unknown lane `gone`" in result.stderr
    assert "nothing was changed" in result.stderr
    assert read_folder(folder) == before
    edited = {**before, "default.yaml": before["default.yaml"] + b"# edited\n"}
    assert history.record(revision_of(edited), edited, "start")
    (tmp_path / "mount").mkdir()
    os.rename(folder, tmp_path / "mount" / "..one")
    os.symlink("..one", tmp_path / "mount" / "..data")
    mount = PolicyHistory(tmp_path / "history", tmp_path / "mount", now=time.time)
    assert mount.record(revision_of(edited), edited, "start")
    mounted = run("rollback", revision_of(edited), str(tmp_path / "mount"), *kept)
    assert mounted.exit_code == 1
    assert "ConfigMap" in mounted.stderr
    assert [entry.how for entry in mount.entries()] == ["start"]  # nothing happened, so nothing is recorded


def test_a_rollback_that_cannot_save_what_it_replaces_changes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not cost the edit of the day."""
    history = PolicyHistory(tmp_path / "history", folder, now=time.time)
    first = read_folder(folder)
    assert history.record(revision_of(first), first, "start")
    (folder / "default.yaml").write_bytes(first["default.yaml"] + b"# edited\n")
    edited = read_folder(folder)
    monkeypatch.setattr(PolicyHistory, "record", lambda *_: False)
    result = run("rollback", revision_of(first), str(folder), "--history", str(tmp_path / "history"))
    assert result.exit_code == 1
    assert "cannot be saved" in result.stderr
    assert read_folder(folder) == edited
    assert sorted(os.listdir(folder)) == sorted(os.listdir(ROOT / "policies"))


def test_fmt_formats_checks_and_prints(folder: Path) -> None:
    """Exit 1 with `--check` when something would change; a broken file is left alone."""
    assert run("fmt", str(folder), "--check").exit_code == 0
    neat = (folder / "default.yaml").read_bytes()
    loose = neat.replace(b"version: 1", b"version:   1 ")
    (folder / "default.yaml").write_bytes(loose)
    assert run("fmt", str(folder), "--check").exit_code == 1
    assert run("fmt", "--stdout", str(folder / "default.yaml")).stdout.encode() == neat
    assert (folder / "default.yaml").read_bytes() == loose
    result = run("fmt", str(folder))
    assert result.exit_code == 0
    assert f"formatted {folder / 'default.yaml'}" in result.stdout
    assert (folder / "default.yaml").read_bytes() == neat
    (folder / "lanes.yaml").write_bytes(b"lanes: [\n")
    broken = run("fmt", str(folder))
    assert broken.exit_code == 1
    assert "lanes.yaml:2:1: not YAML" in broken.stderr
    assert (folder / "lanes.yaml").read_bytes() == b"lanes: [\n"


def test_every_command_is_listed() -> None:
    """The help page needs every command, wherever its code is."""
    listed = run("--help").stdout
    assert all(f"  {name}" in listed for name in ("check", "explain", "history", "rollback", "fmt"))
