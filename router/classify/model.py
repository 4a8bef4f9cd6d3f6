"""`LinearClassifier`: request features times int8 weights, mixed over the places of a request, then calibrated.

Theory. Eleven task scores, one lane score and one difficulty score are linear in the sparse features of a place, and
so is a gate: how much that place looks like the instruction. The softmax of the gates mixes the places of text, so
that an instruction outvotes the document beside it, wherever either stands; structure is added as it is.

The lane is the mean of the lane head and of the summed task probabilities of hard work: each is wrong in other places.
Where little of a request is known, the judgement leans to hard work: a wrong upgrade costs cents, a wrong downgrade
trust. Among requests that are surely hard, which is the harder one is told by the difficulty head and by length (a
published observation: within a domain longer problems are harder), so that `p_hard` also orders what no lane parts.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, log2, sqrt
from typing import Any

from router.classify.correction import Correction, read_correction
from router.classify.features import Features, Part, extract, kind_and_key, names
from router.classify.followup import is_decided, standing_request
from router.classify.label import PLACES, STRUCTURED_TASKS, TASKS, Label
from router.classify.weights import DIFFICULTY, FIELDS, GATE, HEADS, LANE, MOST_ROWS, read_weights, unpack
from router.errors import SettingsError
from router.value import value_class

TEXT_PLACES = len(PLACES) - 1
# What the places of text count together, and what one feature of the structure counts.
MIX, STRUCTURE_SCALE = 2.0, 0.15
_NOTHING = (0,) * FIELDS
_CALIBRATION = frozenset(
    ("task_scale", "lane_scale", "lane_bias", "doubt", "threshold", "difficulty_zero", "difficulty_hard")
)
_CLOSED = -1e9  # the gate of a place that holds nothing
_FIRST_HARD = len(STRUCTURED_TASKS)
# Log-odds from which requests are ordered by how hard they are, and those at which nothing else orders them.
_SURE, _SUREST = 1.0, 2.0
# What one unit of the difficulty score and one doubling of the length add there; an ordinary length in characters.
_PER_DEPTH, _PER_DOUBLING, _ORDINARY = 0.4, 0.5, 300
_MOST_ORDER = 3.0  # and it never takes away
# What is not known of a request counts as a request that is hard four times in five.
_UNKNOWN = 0.8


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a label is as it is: how much each place of text counted (1 in all), and what weighed most.

    Weights are log-odds of hard work. `features` may hold words of the prompt: show them only where content may be
    shown.
    """

    label: Label
    attention: tuple[float, ...]
    features: tuple[tuple[str, float], ...]


@value_class(frozen=True, slots=True)
class Measured:
    """Calibrated scores before a correction.

    `tasks` become chances by softmax; `lane_logit` are log-odds of hard work; `depth` says how hard, 0 in the middle;
    `evidence` runs from 0 to 1; `order`, from 0 to 3, parts requests that are surely hard.
    """

    tasks: list[float]
    lane_logit: float
    depth: float
    evidence: float
    order: float = 0.0


class LinearClassifier:
    """Judges a Messages body by the given weights, and by a correction fitted on the owner's labels if there is one.

    Raises `SettingsError` when the weights or the correction cannot be read. Holds no state that a call changes.
    """

    __slots__ = ("_bias", "_calibration", "_correction", "_gate_bias", "_get", "_rows", "_unit", "lane_threshold")

    def __init__(self, weights: bytes, correction: bytes | None = None) -> None:
        try:
            header, rows = read_weights(weights)
            self._unit: list[float] = [float(x) for x in header["unit"]]
            self._bias: list[float] = [float(x) for x in header["bias"]]
            self._gate_bias: list[float] = [float(x) for x in header["gate_bias"]]
            self._calibration: dict[str, float] = {k: float(v) for k, v in header["calibration"].items()}
            self.lane_threshold = self._calibration["threshold"]
            if (len(self._unit), len(self._bias), len(self._gate_bias)) != (FIELDS, HEADS, TEXT_PLACES):
                raise ValueError("wrong number of heads")
            if lacking := sorted(_CALIBRATION - self._calibration.keys()):
                raise ValueError(f"no `{lacking[0]}` in the calibration")
        except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as exc:
            raise SettingsError(
                f"the classifier's weights cannot be read: {exc}", hint="`python tools/train_classifier.py` writes them"
            ) from exc
        self._rows = rows
        self._get = [held.get for held in rows]
        self._correction = read_correction(correction) if correction is not None else Correction()

    def label(self, body: Mapping[str, Any]) -> Label:
        """The judgement about one parsed body; any JSON value in any field is fine.

        A short turn that says nothing of its own is judged as the request that it follows.
        """
        return self._label(self._judged(body))

    def _judged(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The body itself, or the request that a short turn follows where that turn, read alone, says nothing."""
        standing = standing_request(body)
        # The operator's prompt stands over every turn: it tells nothing about this one.
        if standing is None or is_decided(self._label({"messages": body["messages"]}).p_hard):
            return body
        return standing

    def _label(self, body: Mapping[str, Any]) -> Label:
        features = extract(body)
        scores, known, counted, sums = self._scores(features)
        unit = self._unit[LANE]
        places = tuple([unit * c * s[LANE] for c, s in zip(counted, sums, strict=True)])
        return self._judge(scores, known, features.length, places)

    def lane(self, label: Label) -> str:
        """`sonnet` where `p_hard` reaches the shipped threshold, else `haiku`."""
        return "sonnet" if label.p_hard >= self.lane_threshold else "haiku"

    def explain(self, body: Mapping[str, Any], most: int = 12) -> Explanation:
        """The label with its reasons; slower than `label`, meant for people."""
        features = extract(self._judged(body))
        _, _, counted, _ = self._scores(features)
        single = []
        for place, parts, share in zip(PLACES, features.places, counted, strict=True):
            for name in names(parts):
                kind, key = kind_and_key(name)
                if row := self._rows[kind].get(key):
                    weight = unpack(row)[LANE] * share * self._unit[LANE]
                    single.append((f"{place}: {name.decode('utf-8', 'replace')}", weight))
        single.sort(key=lambda pair: (-abs(pair[1]), pair[0]))
        roots = [sqrt(_count(parts)) for parts in features.places[:TEXT_PLACES]]
        attention = tuple(share * root / MIX for share, root in zip(counted, roots, strict=False))
        return Explanation(self.label(body), attention, tuple(single[:most]))

    def _scores(self, features: Features) -> tuple[list[float], int, list[float], list[Sequence[int]]]:
        """The thirteen mixed scores, how many words the vocabulary knows, what a feature of each place counts, and the
        sums of each place."""
        sums: list[Sequence[int]] = []
        known = 0
        gates: list[float] = []
        shares: list[float] = []
        unit = self._unit[GATE]
        for parts, bias in zip(features.places, self._gate_bias, strict=False):
            if not parts:
                sums.append(_NOTHING)
                gates.append(_CLOSED)
                shares.append(0.0)
                continue
            total, found = self._sums(parts)
            known += found
            sums.append(total)
            share = 1 / sqrt(_count(parts))
            shares.append(share)
            gates.append(total[GATE] * unit * share + bias)
        top = max(gates)
        opened = [exp(max(gate - top, -700.0)) for gate in gates]
        scale = MIX / sum(opened)
        counted = [gate * share * scale for gate, share in zip(opened, shares, strict=True)]
        counted.append(STRUCTURE_SCALE)
        sums.append(self._sums(features.places[-1])[0])
        s, f, z, r, b, t = counted
        scores = [
            bias + unit * (s * in_s + f * in_f + z * in_z + r * in_r + b * in_b + t * in_t)
            for bias, unit, in_s, in_f, in_z, in_r, in_b, in_t in zip(self._bias, self._unit, *sums, strict=False)
        ]
        return scores, known, counted, sums

    def _sums(self, parts: list[Part]) -> tuple[Sequence[int], int]:
        """The fourteen weights of the features of a place added up, and how many of them the vocabulary knows."""
        rows: list[int] = []
        for kind, keys in parts:
            rows += filter(None, map(self._get[kind], keys))
        if len(rows) <= MOST_ROWS:
            return (unpack(sum(rows)) if rows else _NOTHING), len(rows)
        several = [unpack(sum(rows[start : start + MOST_ROWS])) for start in range(0, len(rows), MOST_ROWS)]
        return [sum(column) for column in zip(*several, strict=True)], len(rows)

    def measure(self, body: Mapping[str, Any]) -> Measured:
        """What the weights say before the correction: the place where a correction is fitted."""
        features = extract(self._judged(body))
        scores, known, _, _ = self._scores(features)
        return self._measure(scores, known, features.length)[0]

    def _measure(self, scores: list[float], known: int, length: int) -> tuple[Measured, list[float]]:
        """What the weights say, and the chances of the tasks by them alone."""
        fit = self._calibration
        heat = fit["task_scale"]
        tasks = [score * heat for score in scores[:LANE]]
        chances = _softmax(tasks)
        lane = (_sigmoid(scores[LANE]) + sum(chances[_FIRST_HARD:])) / 2
        lane_logit = fit["lane_scale"] * _logit(lane) + fit["lane_bias"]
        depth = scores[DIFFICULTY] - fit["difficulty_zero"]
        order = _PER_DEPTH * (depth - fit["difficulty_hard"]) + _PER_DOUBLING * log2((length + 20) / _ORDINARY)
        order = min(max(order + 1, 0.0), _MOST_ORDER)
        return Measured(tasks, lane_logit, depth, known / (known + fit["doubt"]), order), chances

    def _judge(self, scores: list[float], known: int, length: int, places: tuple[float, ...]) -> Label:
        """Scores → label, by the calibration and the correction."""
        own = self._correction
        measured, chances = self._measure(scores, known, length)
        if any(own.task_bias):
            chances = _softmax([score + bias for score, bias in zip(measured.tasks, own.task_bias, strict=True)])
        evidence = measured.evidence
        # In doubt, hard.
        hard = evidence * _sigmoid(own.lane_scale * measured.lane_logit + own.lane_bias) + (1 - evidence) * _UNKNOWN
        odds = _logit(hard)
        if odds > _SURE:
            odds = min(odds, _SUREST) + min((odds - _SURE) / (_SUREST - _SURE), 1.0) * measured.order
        top = max(chances)
        # Mostly from the lane, so that both meet at 0.5; the difficulty head orders within a lane.
        depth = (odds - _logit(self.lane_threshold)) * 0.7 + measured.depth * 0.3
        return Label(TASKS[chances.index(top)], _sigmoid(depth), top * evidence, _sigmoid(odds), places)


def _count(parts: list[Part]) -> int:
    """How many features a place holds, known or not; 1 where it holds none."""
    return sum([len(keys) for _, keys in parts]) or 1


def _sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x)) if x > -30 else exp(max(x, -700.0))


def _logit(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return log(p / (1 - p))


def _softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    powers = [exp(score - top) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]
