"""Trains the request classifier: `python tools/train_classifier.py LABELLED.jsonl.gz`.

Reads labelled requests (`request`, `task`, `difficulty` 1-5, `template`, `source`, `split`), adds our own generated
wordings, fits the linear heads with numpy, calibrates on folds of unseen templates, and writes
`router/data/classifier.bin`. Two models are fitted: one on `split == "train"`, with which the printed figures of
`split == "dev"` are measured; and one on every row, which is shipped. Deterministic by `--seed`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from classifier_report import report, write_predictions
from wordings import generate

from router.classify.features import extract
from router.classify.features import names as names_of
from router.classify.label import STRUCTURED_TASKS, TASKS
from router.classify.model import DIFFICULTY, HEADS, LANE, PLACES, LinearClassifier, pack_weights

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# What one place may add to a score: structure is shape, not proof; the middle is mostly the document.
PLACE_SCALE = {"system": 1.0, "ends": 1.0, "ask": 1.0, "middle": 0.4, "structure": 0.15}
# Places that are hidden whole now and then, so that no score leans on one of them.
HIDE = {"system": 0.1, "ends": 0.1, "ask": 0.1, "middle": 0.3, "structure": 0.3}
DEPTH_OF = {True: {1: 0.08, 2: 0.2, 3: 0.35, 4: 0.4, 5: 0.4}, False: {1: 0.55, 2: 0.6, 3: 0.65, 4: 0.8, 5: 0.95}}
# Chance of a feature to be hidden in one step, and the pull of weights to zero.
DROP, DECAY = 0.3, 2e-4
# The shipped threshold lets this share of hard work go to the small model, on the calibration folds.
FALSE_DOWNGRADE = 0.05
START_CALIBRATION = {
    "task_scale": 1.0,
    "lane_scale": 1.0,
    "lane_bias": 0.0,
    "doubt": 1.5,
    "threshold": 0.5,
    "difficulty_zero": 0.0,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled request with its features already read."""

    features: tuple[list[bytes], ...]
    task: int
    depth: float
    template: str
    weight: float
    request: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as flat arrays, and the same entries grouped by feature; made once, used every epoch."""

    feature: Ints
    value: Floats
    row: Ints
    place: Ints
    row_starts: Ints
    by_feature: Ints
    touched: Ints
    feature_starts: Ints
    task: Ints
    hard: Floats
    depth: Floats
    weight: Floats


@dataclass(frozen=True, slots=True)
class Plan:
    """How to fit: seed, passes over the rows, most features kept, and how many fits are averaged."""

    seed: int
    epochs: int
    limit: int
    fits: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Float weights before they are rounded: feature names, `(features, HEADS)` weights, `(HEADS,)` bias."""

    names: list[bytes]
    weights: Floats
    bias: Floats


def read_rows(labelled: Sequence[dict[str, Any]], share: float = 1.0) -> list[Row]:
    """Labelled requests → rows; many rows of one template weigh less each."""
    counts: dict[str, int] = defaultdict(int)
    for item in labelled:
        counts[item["template"]] += 1
    rows = []
    for item in labelled:
        features = extract(item["request"])
        places = (features.system, features.ends, features.ask, features.middle, features.structure)
        easy = item["task"] in STRUCTURED_TASKS
        rows.append(
            Row(
                tuple(sorted(names_of(parts)) for parts in places),
                TASKS.index(item["task"]),
                DEPTH_OF[easy][item["difficulty"]],
                item["template"],
                share * counts[item["template"]] ** -0.4,
                item["request"],
            )
        )
    return rows


def vocabulary(rows: Sequence[Row], limit: int) -> list[bytes]:
    """Features that several templates share: what one template says alone is that template, not the task.

    The most shared come first; the file keeps this order, so that what most requests look up lies close together.
    """
    said: dict[str, set[bytes]] = defaultdict(set)
    for row in rows:
        said[row.template].update(*row.features)
    seen: Counter[bytes] = Counter()
    for of_template in said.values():
        seen.update(of_template)
    least = {True: 6, False: 3}
    kept = [(min(count, 64), name) for name, count in seen.items() if count >= least[name.startswith(b"m:")]]
    kept.sort(key=lambda pair: (-pair[0], pair[1]))
    return [name for _, name in kept[:limit] if b"\n" not in name]


def make_batches(rows: Sequence[Row], names: Sequence[bytes], size: int, seed: int) -> list[Batch]:
    """Shuffled rows in fixed batches."""
    index = {name: at for at, name in enumerate(names)}
    order = np.random.default_rng(seed).permutation(len(rows))
    batches = []
    for start in range(0, len(rows), size):
        chosen = [rows[at] for at in order[start : start + size]]
        batches.append(_batch(chosen, index))
    return batches


def _batch(rows: Sequence[Row], index: dict[bytes, int]) -> Batch:
    feature: list[int] = []
    value: list[float] = []
    row_of: list[int] = []
    place_of: list[int] = []
    starts: list[int] = []
    for at, row in enumerate(rows):
        starts.append(len(feature))
        for place, names in enumerate(row.features):
            scale = PLACE_SCALE[PLACES[place]]
            share = scale if PLACES[place] == "structure" else scale / math.sqrt(len(names) or 1)
            known = [index[name] for name in names if name in index]
            feature += known
            value += [share] * len(known)
            row_of += [at] * len(known)
            place_of += [place] * len(known)
        if starts[-1] == len(feature):  # no known feature at all: one entry of value zero keeps the sums aligned
            feature.append(0)
            value.append(0.0)
            row_of.append(at)
            place_of.append(len(PLACES) - 1)
    features = np.array(feature)
    by_feature = np.argsort(features, kind="stable")
    touched, feature_starts = np.unique(features[by_feature], return_index=True)
    task = np.array([row.task for row in rows])
    return Batch(
        features,
        np.array(value, np.float32),
        np.array(row_of),
        np.array(place_of),
        np.array(starts),
        by_feature,
        touched,
        feature_starts,
        task,
        (task >= len(STRUCTURED_TASKS)).astype(np.float32),
        np.array([row.depth for row in rows], np.float32),
        np.array([row.weight for row in rows], np.float32),
    )


def scores_of(batch: Batch, weights: Floats, bias: Floats, value: Floats) -> Floats:
    """`(rows, HEADS)` linear scores."""
    sums: Floats = np.add.reduceat(weights[batch.feature] * value[:, None], batch.row_starts, axis=0)
    return sums + bias


def fit(rows: Sequence[Row], plan: Plan) -> Fit:
    """The mean of several fits that differ in order and chance: linear models average exactly, and err less."""
    names = vocabulary(rows, plan.limit)
    fits = [_fit_once(rows, names, plan, plan.seed + 100 * at) for at in range(plan.fits)]
    weights: Floats = np.stack([weights for weights, _ in fits]).mean(axis=0, dtype=np.float64).astype(np.float32)
    bias: Floats = np.stack([bias for _, bias in fits]).mean(axis=0, dtype=np.float64).astype(np.float32)
    return Fit(names, weights, bias)


def _fit_once(rows: Sequence[Row], names: Sequence[bytes], plan: Plan, seed: int) -> tuple[Floats, Floats]:
    """Adagrad over fixed batches, with features and whole places dropped at random."""
    batches = make_batches(rows, names, 512, seed)
    random_source = np.random.default_rng(seed + 1)
    weights = np.zeros((len(names), HEADS), np.float32)
    bias = np.zeros(HEADS, np.float32)
    speed = np.full((len(names), HEADS), 1e-6, np.float32)
    bias_speed = np.full(HEADS, 1e-6, np.float32)
    mean_weight = float(np.mean([row.weight for row in rows]))
    hide = np.array([HIDE[place] for place in PLACES])
    for epoch in range(plan.epochs):
        rate = 0.25 * (1 - epoch / plan.epochs) + 0.01
        for at in random_source.permutation(len(batches)):
            batch = batches[at]
            keep = random_source.random(len(batch.value), dtype=np.float32) >= DROP
            shown = random_source.random((len(batch.row_starts), len(PLACES))) >= hide
            value = batch.value * keep * shown[batch.row, batch.place] / (1 - DROP)
            scores = scores_of(batch, weights, bias, value)
            error = _errors(scores, batch) * (batch.weight / mean_weight)[:, None] / len(batch.row_starts)
            part = (error[batch.row] * value[:, None])[batch.by_feature]
            gradient = np.add.reduceat(part, batch.feature_starts, axis=0)
            gradient += DECAY * weights[batch.touched] / len(batches)
            speed[batch.touched] += gradient**2
            weights[batch.touched] -= rate * gradient / np.sqrt(speed[batch.touched])
            total = error.sum(axis=0)
            bias_speed += total**2
            bias -= rate * total / np.sqrt(bias_speed)
    return weights, bias


def _errors(scores: Floats, batch: Batch) -> Floats:
    """Gradient of the three losses by score: softmax over tasks, logistic lane, logistic on a soft difficulty."""
    error = np.empty_like(scores)
    tasks = scores[:, :LANE]
    powers = np.exp(tasks - tasks.max(axis=1, keepdims=True))
    error[:, :LANE] = powers / powers.sum(axis=1, keepdims=True)
    error[np.arange(len(batch.task)), batch.task] -= 1
    error[:, LANE] = 1 / (1 + np.exp(-scores[:, LANE])) - batch.hard
    error[:, DIFFICULTY] = 1 / (1 + np.exp(-scores[:, DIFFICULTY])) - batch.depth
    return error


def pack(model: Fit, calibration: dict[str, float]) -> bytes:
    """Rounds to int8 (the unit of a head is its 99.95th percentile over 127) and writes the file."""
    top = np.maximum(np.quantile(np.abs(model.weights), 0.9995, axis=0), 1e-6)
    rounded = np.clip(np.round(model.weights / top * 127), -127, 127).astype(np.int8)
    used = np.abs(rounded).max(axis=1) > 0
    header = {
        "unit": [round(float(x) / 127, 8) for x in top],
        "bias": [round(float(x), 6) for x in model.bias],
        "place_scale": PLACE_SCALE,
        "calibration": calibration,
    }
    names = [name for name, keep in zip(model.names, used, strict=True) if keep]
    return pack_weights(header, names, rounded[used].tobytes())


def raw_outputs(model: Fit, rows: Sequence[Row]) -> tuple[Floats, Floats]:
    """`(n, 11)` task scores and `(n,)` uncalibrated lane log-odds, difficulty scores as column 12 of the first."""
    index = {name: at for at, name in enumerate(model.names)}
    batch = _batch(rows, index)
    scores = scores_of(batch, model.weights, model.bias, batch.value)
    tasks = scores[:, :LANE]
    chances = np.exp(tasks - tasks.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    lane = (1 / (1 + np.exp(-scores[:, LANE])) + chances[:, len(STRUCTURED_TASKS) :].sum(axis=1)) / 2
    lane = np.clip(lane, 1e-6, 1 - 1e-6)
    return scores, np.log(lane / (1 - lane))


def calibrate(rows: Sequence[Row], extra: Sequence[Row], plan: Plan, folds: int) -> dict[str, float]:
    """Scale and bias of the lane, temperature of the tasks, and the threshold, on folds of unseen templates."""
    templates = sorted({row.template for row in rows})
    random.Random(plan.seed).shuffle(templates)
    fold_of = {template: at % folds for at, template in enumerate(templates)}
    scores, lanes, tested = [], [], []
    for fold in range(folds):
        # A row of `extra` may carry the wording of a labelled one; then it is held out with it.
        others = [row for row in extra if fold_of.get(row.template) != fold]
        model = fit([row for row in rows if fold_of[row.template] != fold] + others, plan)
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
    # Hard work of unseen wordings that may go to the small model; a quantile moves less than a least-cost point would.
    threshold = np.quantile(p[hard == 1], FALSE_DOWNGRADE)
    return {
        **START_CALIBRATION,
        "task_scale": round(float(heat), 3),
        "lane_scale": round(float(scale), 4),
        "lane_bias": round(float(shift), 4),
        "threshold": round(float(threshold), 3),
        "difficulty_zero": round(middle, 4),
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
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--features", type=int, default=45_000)
    parser.add_argument("--fits", type=int, default=2, help="fits that are averaged")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--own-share", type=float, default=1.0, help="weight of our own wordings")
    parser.add_argument("--own-count", type=int, default=18_000, help="generated rows")
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
    calibration = calibrate(train_rows, own, plan, arguments.folds)
    note(f"calibrated on {arguments.folds} folds of unseen templates: {calibration}")
    measured = pack(fit(train_rows + own, plan), calibration)
    if arguments.measured:
        arguments.measured.write_bytes(measured)
    if arguments.predictions:
        write_predictions(LinearClassifier(measured), dev, arguments.predictions)
    report(LinearClassifier(measured), dev, arguments.seed)
    if arguments.only_train:
        return 0
    all_rows = read_rows(labelled)
    shipped = pack(
        fit(all_rows + read_rows(generate(labelled, arguments.own_count, arguments.seed), arguments.own_share), plan),
        calibration,
    )
    arguments.out.write_bytes(shipped)
    note(f"wrote {arguments.out.name}: {len(shipped)} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
