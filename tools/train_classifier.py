"""Trains the request classifier: `python tools/train_classifier.py LABELLED.jsonl.gz`.

Reads labelled requests (`request`, `task`, `difficulty` 1-5, `template`, `source`, `split`), adds our own generated
wordings, fetches the vectors of all words from a published encoder, fits the heads and gates (`classifier_fit`),
calibrates on folds of unseen templates, and writes `router/data/classifier.bin`. Two models are fitted: one on
`split == "train"`, with which the printed figures of `split == "dev"` are measured; and one on every row, which is
shipped. Deterministic by `--seed`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from classifier_fit import Fit, Floats, Ints, Plan, Row, Vectors, fit, read_rows, scores_of, word_list
from classifier_report import report, write_predictions
from word_vectors import word_vectors
from wordings import generate

from router.classify.label import STRUCTURED_TASKS
from router.classify.model import LinearClassifier
from router.classify.weights import DIFFICULTY, LANE, pack_weights

# The shipped threshold lets this share of hard work go to the small model, on the calibration folds.
FALSE_DOWNGRADE = 0.05
START_CALIBRATION = {
    "task_scale": 1.0,
    "lane_scale": 1.0,
    "lane_bias": 0.0,
    "doubt": 1.5,
    "threshold": 0.5,
    "difficulty_zero": 0.0,
    "difficulty_hard": 0.0,
}
# A feature all of whose weights round to less than this tells too little for its room in the file.
_LEAST_WEIGHT = 3


def pack(model: Fit, calibration: dict[str, float]) -> bytes:
    """Rounds to int8 (the unit of a head is its 99.95th percentile over 127) and writes the file."""
    top = np.maximum(np.quantile(np.abs(model.weights), 0.9995, axis=0), 1e-6)
    rounded = np.clip(np.round(model.weights / top * 127), -127, 127).astype(np.int8)
    used = np.abs(rounded).max(axis=1) >= _LEAST_WEIGHT
    header = {
        "unit": [round(float(x) / 127, 8) for x in top],
        "bias": [round(float(x), 6) for x in model.bias],
        "gate_bias": [round(float(x), 6) for x in model.gate_bias],
        "calibration": calibration,
    }
    names = [name for name, keep in zip(model.names, used, strict=True) if keep]
    return pack_weights(header, names, rounded[used].tobytes())


def raw_outputs(model: Fit, rows: Sequence[Row]) -> tuple[Floats, Floats]:
    """`(n, HEADS)` scores and `(n,)` uncalibrated lane log-odds."""
    scores = scores_of(model, rows)
    tasks = scores[:, :LANE]
    chances = np.exp(tasks - tasks.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    lane = (1 / (1 + np.exp(-scores[:, LANE])) + chances[:, len(STRUCTURED_TASKS) :].sum(axis=1)) / 2
    lane = np.clip(lane, 1e-6, 1 - 1e-6)
    return scores, np.log(lane / (1 - lane))


def calibrate(rows: Sequence[Row], extra: Sequence[Row], plan: Plan, folds: int, vectors: Vectors) -> dict[str, float]:
    """Scale and bias of the lane, temperature of the tasks, and the threshold, on folds of unseen templates."""
    templates = sorted({row.template for row in rows})
    random.Random(plan.seed).shuffle(templates)
    fold_of = {template: at % folds for at, template in enumerate(templates)}
    scores, lanes, tested = [], [], []
    for fold in range(folds):
        # A row of `extra` may carry the wording of a labelled one; then it is held out with it.
        others = [row for row in extra if fold_of.get(row.template) != fold]
        model = fit([row for row in rows if fold_of[row.template] != fold] + others, plan, vectors)
        held = [row for row in rows if fold_of[row.template] == fold]
        fold_scores, fold_lane = raw_outputs(model, held)
        scores.append(fold_scores)
        lanes.append(fold_lane)
        tested += held
    return fit_calibration(np.concatenate(scores), np.concatenate(lanes), np.array([row.task for row in tested]))


def fit_calibration(all_scores: Floats, lanes: Floats, task: Ints) -> dict[str, float]:
    """The numbers of the calibration from raw outputs on requests of unseen wordings, and their true tasks."""
    lane = lanes.astype(np.float64)
    hard = (task >= len(STRUCTURED_TASKS)).astype(np.float64)
    scale, shift = 1.0, 0.0
    for _ in range(60):  # Newton's method on two numbers
        p = 1 / (1 + np.exp(-(scale * lane + shift)))
        slope = p * (1 - p)
        a, b, c = (slope * lane * lane).sum(), (slope * lane).sum(), slope.sum()
        u, v = ((p - hard) * lane).sum() + scale - 1, (p - hard).sum() + shift  # one row's worth of no change
        a, c = a + 1, c + 1
        det = a * c - b * b
        scale, shift = scale - (c * u - b * v) / det, shift - (a * v - b * u) / det
    heat = min(np.arange(0.3, 3.0, 0.05), key=lambda x: _task_loss(all_scores[:, :LANE] * x, task))
    p = 1 / (1 + np.exp(-(scale * lane + shift)))
    between = np.abs(p - 0.5) < 0.2
    middle = float(np.median(all_scores[between if between.any() else between | True, DIFFICULTY]))
    sure = float(np.median(all_scores[hard == 1, DIFFICULTY])) - middle
    # Hard work of unseen wordings that may go to the small model; a quantile moves less than a least-cost point would.
    threshold = np.quantile(p[hard == 1], FALSE_DOWNGRADE)
    return {
        **START_CALIBRATION,
        "task_scale": round(float(heat), 3),
        "lane_scale": round(float(scale), 4),
        "lane_bias": round(float(shift), 4),
        "threshold": round(float(threshold), 3),
        "difficulty_zero": round(middle, 4),
        "difficulty_hard": round(sure, 4),
    }


def _task_loss(scores: Floats, task: Ints) -> float:
    top = scores.max(axis=1, keepdims=True)
    logs = scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
    return float(-logs[np.arange(len(task)), task].mean())


def main() -> int:
    """Reads, fits, calibrates, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labelled", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "router" / "data" / "classifier.bin")
    parser.add_argument(
        "--predictions", type=Path, help="write predictions of split dev by the model of split train here"
    )
    parser.add_argument("--measured", type=Path, help="write the model of split train here as well")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--features", type=int, default=45_000)
    parser.add_argument("--fits", type=int, default=2, help="fits that are averaged")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--own-share", type=float, default=1.0, help="weight of our own wordings")
    parser.add_argument("--own-count", type=int, default=24_000, help="generated rows")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that make vectors")
    parser.add_argument("--only-train", action="store_true", help="skip the shipped model")
    arguments = parser.parse_args()
    started = time.monotonic()
    opened = gzip.open if arguments.labelled.suffix == ".gz" else open
    with opened(arguments.labelled, "rt", encoding="utf-8") as lines:
        labelled = [json.loads(line) for line in lines if line.strip()]
    train = [item for item in labelled if item["split"] == "train"]
    dev = [item for item in labelled if item["split"] == "dev"]
    plan = Plan(arguments.seed, arguments.epochs, arguments.features, arguments.fits)

    def note(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", file=sys.stderr)

    train_rows = read_rows(train)
    own = read_rows(generate(train, arguments.own_count, arguments.seed), arguments.own_share)
    note(f"{len(train_rows)} rows of split train, {len(own)} of our own wordings")
    all_rows = read_rows(labelled)
    all_own = read_rows(generate(labelled, arguments.own_count, arguments.seed), arguments.own_share)
    vectors = word_vectors(word_list(own + all_rows + all_own), arguments.workers)
    note(f"vectors of {len(vectors)} words")
    calibration = calibrate(train_rows, own, plan, arguments.folds, vectors)
    note(f"calibrated on {arguments.folds} folds of unseen templates: {calibration}")
    measured = pack(fit(train_rows + own, plan, vectors), calibration)
    if arguments.measured:
        arguments.measured.write_bytes(measured)
    if arguments.predictions:
        write_predictions(LinearClassifier(measured), dev, arguments.predictions)
    report(LinearClassifier(measured), dev, arguments.seed)
    if arguments.only_train:
        return 0
    shipped = pack(fit(all_rows + all_own, plan, vectors), calibration)
    arguments.out.write_bytes(shipped)
    note(f"wrote {arguments.out.name}: {len(shipped)} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
