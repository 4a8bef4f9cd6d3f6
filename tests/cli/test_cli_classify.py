"""`router classify` on our own samples."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from router.classify.correction import read_correction
from router.cli.classify import classify

SAMPLES = Path(__file__).parents[1] / "classify" / "samples.jsonl"


def run(*arguments):
    return CliRunner().invoke(classify, [str(argument) for argument in arguments])


@pytest.mark.parametrize("zipped", [False, True])
def test_predict_prints_one_line_a_request(tmp_path, zipped):
    """Id, task, score and lane, in file order; `.gz` reads the same."""
    path = SAMPLES
    if zipped:
        path = tmp_path / "samples.jsonl.gz"
        path.write_bytes(gzip.compress(SAMPLES.read_bytes()))
    result = run("predict", path)
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["id"] for line in lines] == [json.loads(line)["id"] for line in SAMPLES.read_text().splitlines()]
    assert all(set(line) == {"id", "task", "score", "lane"} for line in lines)
    assert {line["lane"] for line in lines} == {"haiku", "sonnet"}


def test_predict_takes_bare_bodies_and_numbers_them(tmp_path):
    """A line without `request` is the body; a line without `id` is called by its number."""
    path = tmp_path / "bodies.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Translate into Dutch: the boat is late"}]}\n\n')
    lines = [json.loads(line) for line in run("predict", path).stdout.splitlines()]
    assert [line["id"] for line in lines] == ["1"]
    assert lines[0]["task"] == "translation"


def test_eval_prints_the_figures():
    """The same names as text and as JSON."""
    found = json.loads(run("eval", SAMPLES, "--json").stdout)
    assert found["requests"] == 60
    assert found["lane_accuracy"] >= 0.93
    text = run("eval", SAMPLES).stdout
    assert all(name in text for name in found)


def test_train_writes_a_correction_that_predict_takes(tmp_path):
    """Before and after are shown; the file loads."""
    out = tmp_path / "own.json"
    result = run("train", SAMPLES, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert set(report) == {"before", "after", "correction"}
    read_correction(out.read_bytes())
    assert run("predict", SAMPLES, "--correction", out).exit_code == 0
    assert "before" in run("train", SAMPLES, "--out", out).stdout


def test_a_file_without_labels_or_without_json_says_what_is_missing(tmp_path):
    """Exit code 1 and a hint."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"messages": []}\n')
    for command in ("eval", "train"):
        result = run(command, path)
        assert result.exit_code == 1
        assert "no labelled request found" in result.stderr
    path.write_text("{}\nnot json\n")
    result = run("predict", path)
    assert result.exit_code == 1
    assert "line 2" in result.stderr
