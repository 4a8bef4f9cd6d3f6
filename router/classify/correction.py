"""`Correction`: a small change on top of the shipped weights, and its file."""

from __future__ import annotations

import json
from dataclasses import dataclass

from router.classify.label import TASKS
from router.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Correction:
    """Scale and bias of the lane's log-odds, and a bias a task."""

    lane_scale: float = 1.0
    lane_bias: float = 0.0
    task_bias: tuple[float, ...] = (0.0,) * len(TASKS)


def read_correction(document: bytes) -> Correction:
    """A correction as `write_correction` wrote it; raises `SettingsError`."""
    try:
        parsed = json.loads(document)
        if parsed["version"] != 1:
            raise ValueError(f"version `{parsed['version']}`")
        biases = parsed["task_bias"]
        unknown = sorted(set(biases) - set(TASKS))
        if unknown:
            raise ValueError(f"unknown task `{unknown[0]}`")
        scale, bias = float(parsed["lane_scale"]), float(parsed["lane_bias"])
        of_tasks = tuple(float(biases.get(task, 0)) for task in TASKS)
        if not (0 < scale <= 100 and abs(bias) <= 100 and all(abs(own) <= 100 for own in of_tasks)):
            raise ValueError("a number out of range")
        return Correction(scale, bias, of_tasks)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
        raise SettingsError(
            f"the classifier's correction cannot be read: {exc}", hint="`router classify train` writes one"
        ) from exc


def write_correction(correction: Correction) -> bytes:
    """A correction as JSON text."""
    document = {
        "version": 1,
        "lane_scale": round(correction.lane_scale, 6),
        "lane_bias": round(correction.lane_bias, 6),
        "task_bias": {task: round(bias, 6) for task, bias in zip(TASKS, correction.task_bias, strict=True)},
    }
    return json.dumps(document, indent=2).encode() + b"\n"
