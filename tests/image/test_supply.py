"""What the tools of the supply chain say is judged soberly: no answer is never "nothing found"."""

from __future__ import annotations

from typing import Any

import pytest

from tools import supply
from tools.supply import NoAnswer, judge_audit, judge_licences


def package(name: str, *vulns: dict[str, Any], **more: str) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "vulns": list(vulns), **more}


FIND = {"id": "PYSEC-2026-1", "fix_versions": ["1.1"], "aliases": []}


def test_a_clean_report_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    """Every package was looked up and none has a find."""
    assert judge_audit({"dependencies": [package("one"), package("two")]}) == 0
    assert "2 packages, no known vulnerability" in capsys.readouterr().out


def test_a_find_is_named_with_its_cure(capsys: pytest.CaptureFixture[str]) -> None:
    """Package, version, the find's id, and the version that mends it."""
    assert judge_audit({"dependencies": [package("one"), package("two", FIND)]}) == 1
    assert "two 1.0: PYSEC-2026-1; mended in 1.1" in capsys.readouterr().out


def test_a_package_that_was_skipped_is_no_answer() -> None:
    """pip-audit itself ends with 0 and "No known vulnerabilities found" here."""
    skipped = {"name": "two", "version": "1.0", "skip_reason": "Dependency not found and could not be audited"}
    with pytest.raises(NoAnswer, match="1 of 2 packages"):
        judge_audit({"dependencies": [package("one"), skipped]})
    assert judge_audit({"dependencies": [package("one", FIND), skipped]}) == 1


def test_no_package_is_no_answer() -> None:
    """An empty report is that of a wrong lock."""
    with pytest.raises(NoAnswer):
        judge_audit({"dependencies": []})
    with pytest.raises(NoAnswer):
        judge_licences([])


def test_a_package_without_a_licence_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    """It is named at the end, and the exit status says so."""
    named = {"Name": "one", "Version": "1.0", "License": "MIT"}
    assert judge_licences([named]) == 0
    assert judge_licences([named, {"Name": "two", "Version": "1.0", "License": "UNKNOWN"}]) == 1
    assert "two: names no licence" in capsys.readouterr().out


def test_a_library_that_is_not_there_is_no_answer(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outside of its environment the command says what it lacks, and ends with 2."""
    monkeypatch.setattr(supply, "LOCK", tmp_path / "no-lock.txt")
    assert supply.main(["audit", "--out", str(tmp_path / "audit.json")]) == 2
    assert "cannot be had here" in capsys.readouterr().err
    assert not (tmp_path / "audit.json").exists()


def test_a_wrong_word_is_wrong_usage() -> None:
    """The exit status of wrong usage is 2."""
    with pytest.raises(SystemExit) as ended:
        supply.main(["everything"])
    assert ended.value.code == 2
