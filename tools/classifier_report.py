"""Figures of a classifier on labelled requests, with intervals that take whole wordings as the unit of chance."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from router.classify.evaluate import Judged, figures
from router.classify.label import HARD_TASKS, STRUCTURED_TASKS, Label
from router.classify.model import LinearClassifier

_SHOWN = (
    "lane_accuracy",
    "auc",
    "false_downgrade",
    "false_upgrade",
    "haiku_share",
    "calibration_error",
    "task_accuracy",
)
_DRAWS = 300


def write_predictions(model: LinearClassifier, items: Sequence[dict[str, Any]], path: Path) -> None:
    """One JSON line a request, as `router classify predict` prints them."""
    with path.open("w", encoding="utf-8") as out:
        for item in items:
            label = model.label(item["request"])
            line = {"id": item["id"], "task": label.task, "score": label.p_hard, "lane": model.lane(label)}
            out.write(json.dumps({**line, "difficulty": label.difficulty}) + "\n")


def report(model: LinearClassifier, items: Sequence[dict[str, Any]], seed: int) -> None:
    """Prints the figures at the shipped threshold and for the policy's band, each with a 95 % interval.

    The band is a structured task with a difficulty below 0.5. Intervals draw templates with replacement: rows of one
    wording fall together, so rows taken as independent would look far too sure.
    """
    labels = [model.label(item["request"]) for item in items]
    for name, keeps in (
        ("threshold", lambda label: model.lane(label) == "haiku"),
        ("band", lambda label: label.task in STRUCTURED_TASKS and label.difficulty < 0.5),
    ):
        _print_one(name, _judged(labels, items, keeps), [item["template"] for item in items], seed)


def _judged(labels: Sequence[Label], items: Sequence[dict[str, Any]], keeps: Callable[[Label], bool]) -> list[Judged]:
    return [
        Judged(item["task"] in HARD_TASKS, not keeps(label), label.p_hard, item["task"], label.task)
        for label, item in zip(labels, items, strict=True)
    ]


def _print_one(name: str, rows: Sequence[Judged], templates: Sequence[str], seed: int) -> None:
    groups: dict[str, list[Judged]] = defaultdict(list)
    for row, template in zip(rows, templates, strict=True):
        groups[template].append(row)
    held = [groups[template] for template in sorted(groups)]
    chance = np.random.default_rng(seed)
    draws = [
        figures([row for at in chance.integers(0, len(held), len(held)) for row in held[at]]) for _ in range(_DRAWS)
    ]
    point = figures(rows)
    for figure in _SHOWN:
        values = [value for draw in draws if (value := draw[figure]) is not None]
        if point[figure] is None or not values:
            continue
        low, high = np.quantile(values, [0.025, 0.975])
        print(f"{name:10} {figure:18} {point[figure]:.4f}  95 % {low:.3f} to {high:.3f}")
