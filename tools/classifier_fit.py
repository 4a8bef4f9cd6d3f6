"""Fits the classifier's weights: rows of features → linear heads and gates, by Adagrad over sparse products.

Theory. A request is read at five places of text and one of structure (`router.classify.features`). Every place gives
thirteen linear scores and a gate, all by the same weights; the scores of the places of text are mixed by the softmax of
their gates. So the place that holds an instruction outvotes the document beside it, which a plain sum cannot do. Words
get their weight as W + P A: W is the word's own, learned where several wordings share it; P is its vector in a
published multilingual encoder, A a small matrix learned by all words together, so that a word that few wordings use
weighs as its neighbours do. Vectors are needed in training only: what is shipped is the sum.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from router.classify.features import extract, names
from router.classify.label import PLACES, STRUCTURED_TASKS, TASKS
from router.classify.model import MIX, STRUCTURE_SCALE, TEXT_PLACES
from router.classify.weights import DIFFICULTY, GATE, HEADS, LANE

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Vectors = Mapping[str, Floats]

ALL = HEADS + 1  # the heads and the gate
_EASY = len(STRUCTURED_TASKS)
# Share of steps in which a place is hidden, so that no score leans on one of them.
_HIDE = {"system": 0.1, "first": 0.1, "last": 0.1, "front": 0.2, "back": 0.2, "structure": 0.3}
# Chance of a feature to be hidden in one step, the pull of weights to zero, and the same of the shared matrix.
_DROP, _DECAY, _SHARED_DECAY = 0.3, 2e-4, 1e-3
_RATE, _SHARED_RATE, _STEP_ROWS = 0.25, 0.05, 512
# What difficulty 1 to 5 of a source is taken for, by lane: 0.5 parts the lanes.
_DEPTH_OF = {True: {1: 0.08, 2: 0.2, 3: 0.35, 4: 0.4, 5: 0.4}, False: {1: 0.55, 2: 0.6, 3: 0.6, 4: 0.8, 5: 0.95}}
# A feature counts where this many wordings share it: what one wording says alone is that wording, not the task.
_LEAST = 3
# Dimensions kept of the word vectors; the weight of a pair's mean vector beside that of a word.
_DIMENSIONS, _PAIR_SHARE = 128, 0.5


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled request with its features already read: the names of the features of each place."""

    features: tuple[list[bytes], ...]
    task: int
    depth: float
    template: str
    weight: float
    request: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """How to fit: seed, passes over the rows, most shared features kept, and how many fits are averaged."""

    seed: int
    epochs: int
    limit: int
    fits: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Float weights before they are rounded: feature names, `(features, HEADS + 1)` weights, the biases."""

    names: list[bytes]
    weights: Floats
    bias: Floats
    gate_bias: Floats


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows as a sparse matrix with one line a place (`len(rows) * len(PLACES)` lines), and which places hold text."""

    values: sparse.csr_matrix
    present: npt.NDArray[np.bool_]


def read_rows(labelled: Sequence[dict[str, Any]], share: float = 1.0) -> list[Row]:
    """Labelled requests → rows; many rows of one template weigh less each."""
    counts = Counter(item["template"] for item in labelled)
    rows = []
    for item in labelled:
        features = extract(item["request"])
        rows.append(
            Row(
                tuple(sorted(names(parts)) for parts in features.places),
                TASKS.index(item["task"]),
                _DEPTH_OF[item["task"] in STRUCTURED_TASKS][item["difficulty"]],
                item["template"],
                share * counts[item["template"]] ** -0.4,
                item["request"],
            )
        )
    return rows


def vocabulary(rows: Sequence[Row], limit: int, vectors: Vectors) -> list[bytes]:
    """Features that several templates share, the most shared first; then the other words that have a vector.

    The file keeps this order, so that what most requests look up lies close together.
    """
    said: dict[str, set[bytes]] = defaultdict(set)
    for row in rows:
        said[row.template].update(*row.features)
    seen: Counter[bytes] = Counter()
    for of_template in said.values():
        seen.update(of_template)
    shared = sorted((-min(count, 64), name) for name, count in seen.items() if count >= _LEAST)
    kept = [name for _, name in shared[:limit]]
    have = set(kept)
    rare = sorted(
        name
        for name, count in seen.items()
        if count > 1 and name not in have and is_word(name) and word_of(name) in vectors
    )
    return [name for name in kept + rare if b"\n" not in name]


def is_word(name: bytes) -> bool:
    """Whether a feature is a plain word: no pair, no structure, no part of a tool."""
    return not name.startswith(b"#") and not any(mark in name for mark in (b" ", b":", b"."))


def word_of(name: bytes) -> str:
    """A feature's word as text."""
    return name.decode("utf-8", "replace")


def word_list(rows: Sequence[Row]) -> list[str]:
    """Every plain word of some rows, sorted: what vectors are wanted for."""
    found = {name for row in rows for place in row.features for name in place if is_word(name)}
    return sorted({word_of(name) for name in found})


def matrix(rows: Sequence[Row], index: Mapping[bytes, int]) -> Matrix:
    """Rows → sparse lines; the words of a place have length one together, so that long texts do not shout."""
    columns: list[int] = []
    values: list[float] = []
    ends = [0]
    for row in rows:
        for place, found in zip(PLACES, row.features, strict=True):
            share = STRUCTURE_SCALE if place == "structure" else 1 / math.sqrt(len(found) or 1)
            known = [index[name] for name in found if name in index]
            columns += known
            values += [share] * len(known)
            ends.append(len(columns))
    lines = sparse.csr_matrix(
        (np.array(values, np.float32), np.array(columns, np.int32), np.array(ends, np.int32)),
        shape=(len(rows) * len(PLACES), len(index)),
    )
    present = np.array([[bool(row.features[at]) for at in range(TEXT_PLACES)] for row in rows])
    return Matrix(lines, present.reshape(len(rows), TEXT_PLACES))


def mixed(scores: Floats, gate_bias: Floats, present: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """`(n, places, ALL)` scores → `(n, HEADS)` mixed ones, and `(n, text places)` what each place counted."""
    text = scores[:, :TEXT_PLACES]
    gates = np.where(present, text[:, :, GATE] + gate_bias, -1e9)
    gates = np.exp(gates - gates.max(axis=1, keepdims=True))
    counted = gates / gates.sum(axis=1, keepdims=True) * present * MIX
    total = (counted[:, :, None] * text[:, :, :HEADS]).sum(axis=1) + scores[:, TEXT_PLACES, :HEADS]
    return total.astype(np.float32), counted.astype(np.float32)


def scores_of(model: Fit, rows: Sequence[Row]) -> Floats:
    """`(rows, HEADS)` scores, as the shipped program computes them but for the rounding."""
    found = matrix(rows, {name: at for at, name in enumerate(model.names)})
    lines = np.asarray(found.values @ model.weights).reshape(len(rows), len(PLACES), ALL)
    return mixed(lines, model.gate_bias, found.present)[0] + model.bias


def fit(rows: Sequence[Row], plan: Plan, vectors: Vectors) -> Fit:
    """The mean of several fits that differ in order and chance; gates are mixed after the mean, which errs little."""
    known = vocabulary(rows, plan.limit, vectors)
    prior = _prior(known, vectors)
    fits = [_fit_once(rows, known, prior, plan, plan.seed + 100 * at) for at in range(plan.fits)]

    def mean(at: int) -> Floats:
        return np.stack([one[at] for one in fits]).mean(axis=0, dtype=np.float64).astype(np.float32)

    return Fit(known, mean(0), mean(1), mean(2))


def _prior(known: Sequence[bytes], vectors: Vectors) -> Floats:
    """`(features, dimensions)`: a word's vector in the main directions of all of them, half the mean for a pair."""
    if not vectors:
        return np.zeros((len(known), 0), np.float32)
    stacked = np.stack([vectors[word] for word in sorted(vectors)]).astype(np.float32)
    middle = stacked.mean(axis=0)
    spread, directions = np.linalg.eigh(np.cov((stacked - middle).T))
    size = min(_DIMENSIONS, len(spread))
    turn = directions[:, ::-1][:, :size] / np.sqrt(spread[::-1][:size].mean())
    turned = dict(zip(sorted(vectors), ((stacked - middle) @ turn).astype(np.float32), strict=True))
    prior = np.zeros((len(known), size), np.float32)
    for at, name in enumerate(known):
        if is_word(name):
            found = turned.get(word_of(name))
            if found is not None:
                prior[at] = found
        elif b" " in name and name[:1] != b"#":
            pair = [turned[word] for word in word_of(name).split() if word in turned]
            if pair:
                prior[at] = _PAIR_SHARE * np.mean(pair, axis=0)
    return prior


def _fit_once(
    rows: Sequence[Row], known: Sequence[bytes], prior: Floats, plan: Plan, seed: int
) -> tuple[Floats, Floats, Floats]:
    """One pass of chance: weights, bias, gate bias."""
    found = matrix(rows, {name: at for at, name in enumerate(known)})
    chance = np.random.default_rng(seed)
    count, places = len(rows), len(PLACES)
    task = np.array([row.task for row in rows])
    hard = (task >= _EASY).astype(np.float32)
    depth = np.array([row.depth for row in rows], np.float32)
    weight = np.array([row.weight for row in rows], np.float32)
    weight /= weight.mean()
    hide = np.array([_HIDE[place] for place in PLACES])
    own = _Learned(np.zeros((len(known), ALL), np.float32))
    shared = _Learned(np.zeros((prior.shape[1], ALL), np.float32))
    bias, gate_bias = _Learned(np.zeros(HEADS, np.float32)), _Learned(np.zeros(TEXT_PLACES, np.float32))
    for epoch in range(plan.epochs):
        rate = _RATE * (1 - epoch / plan.epochs) + 0.01
        order = chance.permutation(count)
        for start in range(0, count, _STEP_ROWS):
            step = np.sort(order[start : start + _STEP_ROWS])
            size = len(step)
            lines = found.values[(step[:, None] * places + np.arange(places)).ravel()]
            shown = chance.random((size, places)) >= hide
            keep = chance.random(len(lines.data), dtype=np.float32) >= _DROP
            lines.data = lines.data * keep * np.repeat(shown.ravel(), np.diff(lines.indptr)) / np.float32(1 - _DROP)
            touched, columns = np.unique(lines.indices, return_inverse=True)
            small = sparse.csr_matrix(
                (lines.data, columns.astype(np.int32), lines.indptr), shape=(size * places, len(touched))
            )
            projected = np.asarray(small @ prior[touched])
            scores = np.asarray(small @ own.value[touched]) + projected @ shared.value
            scores = scores.reshape(size, places, ALL)
            present = found.present[step] & shown[:, :TEXT_PLACES]
            total, counted = mixed(scores, gate_bias.value, present)
            error = _errors(total + bias.value, task[step], hard[step], depth[step])
            error = (error * weight[step][:, None] / size).astype(np.float32)
            slope, gate_slope = _slopes(scores, counted, error)
            pull = _STEP_ROWS / count
            own.step(np.asarray(small.T @ slope) + _DECAY * pull * own.value[touched], rate, touched)
            shared.step(projected.T @ slope + _SHARED_DECAY * pull * shared.value, rate * _SHARED_RATE / _RATE)
            gate_bias.step(gate_slope.sum(axis=0), rate * 0.3)
            bias.step(error.sum(axis=0), rate)
    return own.value + prior @ shared.value, bias.value, gate_bias.value


class _Learned:
    """An array and Adagrad's memory of its slopes."""

    def __init__(self, value: Floats) -> None:
        self.value = value
        self._speed = np.full(value.shape, 1e-6, np.float32)

    def step(self, slope: Floats, rate: float, at: Ints | slice = slice(None)) -> None:
        """Moves some lines of the array against their slope."""
        speed = self._speed[at] + slope**2
        self._speed[at] = speed
        self.value[at] -= rate * slope / np.sqrt(speed)


def _slopes(scores: Floats, counted: Floats, error: Floats) -> tuple[Floats, Floats]:
    """Slopes of the loss by the scores of each place, `(n * places, ALL)`, and by the gates, `(n, text places)`."""
    slope = np.zeros_like(scores)
    slope[:, TEXT_PLACES, :HEADS] = error
    slope[:, :TEXT_PLACES, :HEADS] = counted[:, :, None] * error[:, None, :]
    gain = (scores[:, :TEXT_PLACES, :HEADS] * error[:, None, :]).sum(axis=2)
    gate_slope = counted * (gain - (counted * gain).sum(axis=1, keepdims=True) / MIX)
    slope[:, :TEXT_PLACES, GATE] = gate_slope
    return slope.reshape(-1, ALL), gate_slope


def _errors(scores: Floats, task: Ints, hard: Floats, depth: Floats) -> Floats:
    """Slope of the three losses by score: softmax over tasks, logistic lane, logistic on a soft difficulty."""
    error = np.empty_like(scores)
    tasks = scores[:, :LANE]
    powers = np.exp(tasks - tasks.max(axis=1, keepdims=True))
    error[:, :LANE] = powers / powers.sum(axis=1, keepdims=True)
    error[np.arange(len(task)), task] -= 1
    error[:, LANE] = 1 / (1 + np.exp(-scores[:, LANE])) - hard
    error[:, DIFFICULTY] = 1 / (1 + np.exp(-scores[:, DIFFICULTY])) - depth
    return error
