"""`router classify`: judge, measure and correct on files of labelled requests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from zlib import crc32

import click

from router.classify.correct import Example, fit_correction
from router.classify.correction import Correction, write_correction
from router.classify.evaluate import Judged, figures, wilson
from router.classify.label import HARD_TASKS, TASKS, Label
from router.classify.model import LinearClassifier
from router.errors import RouterError, SettingsError

_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
_SHARES = {"lane_accuracy", "task_accuracy"}
_FOLDS = 5


class _Group(click.Group):
    """Prints our own errors with their hint, so that the group also works when it is run by itself."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RouterError as exc:
            hint = f"\n  hint: {exc.hint}" if exc.hint else ""
            raise click.ClickException(f"{exc.message}{hint}") from exc


@click.group(cls=_Group)
def classify() -> None:
    """Judge requests by task and lane. FILE is JSONL (also .gz): `{"id", "request", "task"?, "lane"?}` a line."""


_correction = click.option(
    "--correction", type=_FILE, help="A correction written by `router classify train`, on top of the shipped weights."
)


@classify.command()
@click.argument("file", type=_FILE)
@_correction
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines (they are the only form).")
def predict(file: Path, correction: Path | None, as_json: bool) -> None:
    """Print one JSON line a request: id, task, score (probability that the big model is needed) and lane."""
    model = _model(correction)
    for name, row in _rows(file):
        label = model.label(_request(row))
        line = {"id": name, "task": label.task, "score": round(label.p_hard, 6), "lane": model.lane(label)}
        click.echo(json.dumps(line))


@classify.command("eval")
@click.argument("file", type=_FILE)
@_correction
@click.option("--split", help="Only rows whose `split` is this.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def evaluate(file: Path, correction: Path | None, split: str | None, as_json: bool) -> None:
    """Print the figures on labelled requests: lane accuracy, AUC, wrong downgrades and upgrades, task accuracy."""
    model = _model(correction)
    rows = [row for _, row in _rows(file) if split is None or row.get("split") == split]
    judged = [_judged(model, model.label(_request(row)), truth) for row in rows if (truth := _truth(row)) is not None]
    if not judged:
        raise SettingsError("no labelled request found", hint='each line needs `"lane"` (haiku or sonnet) or `"task"`')
    _print(figures(judged), as_json)


@classify.command()
@click.argument("file", type=_FILE)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("correction.json"), show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def train(file: Path, out: Path, as_json: bool) -> None:
    """Fit a small correction on your own labels and write it; the shipped weights stay untouched.

    `before` and `after` are measured on folds that the fit did not see.
    """
    shipped = _model(None)
    held = []
    for name, row in _rows(file):
        truth = _truth(row)
        if truth is not None:
            fold = crc32(name.encode("utf-8", "replace")) % _FOLDS
            held.append((fold, row, Example(shipped.measure(_request(row)), *truth)))
    if not held:
        raise SettingsError("no labelled request found", hint='each line needs `"lane"` (haiku or sonnet) or `"task"`')
    weights = _weights()
    before, after = [], []
    for fold in range(_FOLDS):
        fitted = fit_correction([example for at, _, example in held if at != fold])
        corrected = LinearClassifier(weights, write_correction(fitted))
        for at, row, example in held:
            if at == fold:
                body, truth = _request(row), (example.is_hard, example.task)
                before.append(_judged(shipped, shipped.label(body), truth))
                after.append(_judged(corrected, corrected.label(body), truth))
    correction = fit_correction([example for _, _, example in held])
    out.write_bytes(write_correction(correction))
    _report_training(figures(before), figures(after), correction, out, as_json)


def _report_training(
    before: dict[str, float | None], after: dict[str, float | None], correction: Correction, out: Path, as_json: bool
) -> None:
    """Before and after side by side, and where the correction went."""
    if as_json:
        click.echo(json.dumps({"before": before, "after": after, "correction": str(out)}, indent=2))
        return
    click.echo(f"{'':18} {'before':>8} {'after':>8}")
    for name, value in before.items():
        click.echo(f"{name:18} {_number(value):>8} {_number(after[name]):>8}")
    click.echo(f"lane scale {correction.lane_scale:.3f}, lane bias {correction.lane_bias:+.3f}; wrote {out}")


def _print(found: dict[str, float | None], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    count = int(found["requests"] or 0)
    for name, value in found.items():
        text = f"{name:18} {_number(value)}"
        if name in _SHARES and value is not None:
            low, high = wilson(value, count)
            text += f"  (95 % interval {low:.3f} to {high:.3f}, rows taken as independent)"
        click.echo(text)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value > 1 else f"{value:.4f}"


def _weights() -> bytes:
    return (resources.files("router") / "data" / "classifier.bin").read_bytes()


def _model(correction: Path | None) -> LinearClassifier:
    return LinearClassifier(_weights(), None if correction is None else correction.read_bytes())


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Id (or line number) and object of each line; a line that is no JSON object ends the command with its number."""
    with _lines(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise SettingsError(f"line {number} of `{file}` is not a JSON object", hint="one request a line")
            yield str(row.get("id", number)), row


def _lines(file: Path) -> Any:
    if str(file) == "-":
        return click.open_file("-", encoding="utf-8")
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8")
    return file.open(encoding="utf-8")


def _request(row: dict[str, Any]) -> dict[str, Any]:
    """The Messages body: the field `request`, or the line itself."""
    request = row.get("request", row)
    return request if isinstance(request, dict) else {}


def _truth(row: dict[str, Any]) -> tuple[bool, str | None] | None:
    """(is hard, task) as the owner labelled it; None where the line has no label."""
    task = row.get("task") if row.get("task") in TASKS else None
    if row.get("lane") in ("haiku", "sonnet"):
        return row["lane"] == "sonnet", task
    return None if task is None else (task in HARD_TASKS, task)


def _judged(model: LinearClassifier, label: Label, truth: tuple[bool, str | None]) -> Judged:
    is_hard, task = truth
    return Judged(is_hard, model.lane(label) == "sonnet", label.p_hard, task, label.task)
