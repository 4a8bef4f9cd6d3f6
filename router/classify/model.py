"""`LinearClassifier`: request features times int8 weights, thirteen numbers at once, then one calibrated judgement.

Theory. Eleven task scores, one lane score and one difficulty score are linear in the same sparse features. All thirteen
weights of a feature are packed into one Python integer with 16 bits a field, so a sum over features is one `sum()` over
big integers: the only arithmetic that is fast in pure Python. Negative fields borrow from their left neighbour; adding
half of each field's range before unpacking pays every debt back, so the sums are exact. Look-ups in a cold cache are
most of the cost: rows are short, words are shared objects, and the file's order, most frequent first, keeps what most
requests touch close together.

The lane is the mean of the lane head and of the summed task probabilities of hard work: each is wrong in other places.
Where little of a request is known, the judgement leans to hard work: a wrong upgrade costs cents, a wrong
downgrade trust.

The weights file: the magic line, then zlib over one JSON header line, the feature names one a line, and 13 int8
a feature.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from struct import Struct
from typing import Any

from router.classify.features import TAGS, Features, Key, Part, extract, kind_and_key, names
from router.classify.followup import standing_request
from router.classify.label import HARD_TASKS, STRUCTURED_TASKS, TASKS, Label
from router.errors import SettingsError

MAGIC = b"router-classifier 1\n"
HEADS = len(TASKS) + 2
LANE, DIFFICULTY = len(TASKS), len(TASKS) + 1
PLACES = ("system", "ends", "ask", "middle", "structure")
_FIELDS = Struct(f"<{HEADS}h")
_DEBT = sum(1 << (16 * at + 15) for at in range(HEADS))
# Rows that one sum may hold: 258 times 127 still fits a field.
_MOST = 258
_NOTHING = (0,) * HEADS
_FIRST_HARD = len(STRUCTURED_TASKS)
# The vocabulary: for each kind of feature its keys, each with its packed weights.
Rows = tuple[dict[Key, int], ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a label is as it is: what each place of the request added to the lane score, and what weighed most.

    Numbers are log-odds of hard work. `features` may hold words of the prompt: show them only where content may be
    shown.
    """

    label: Label
    places: tuple[tuple[str, float], ...]
    features: tuple[tuple[str, float], ...]


class LinearClassifier:
    """Judges a Messages body by the given weights, and by a correction fitted on the owner's labels if there is one.

    Raises `SettingsError` when the weights or the correction cannot be read. Holds no state that a call changes.
    """

    __slots__ = ("_bias", "_calibration", "_correction", "_get", "_place_scale", "_rows", "_unit", "lane_threshold")

    def __init__(self, weights: bytes, correction: bytes | None = None) -> None:
        try:
            header, rows = _read_weights(weights)
            self._unit: list[float] = [float(x) for x in header["unit"]]
            self._bias: list[float] = [float(x) for x in header["bias"]]
            self._place_scale: list[float] = [float(header["place_scale"][place]) for place in PLACES]
            self._calibration: dict[str, float] = {k: float(v) for k, v in header["calibration"].items()}
            self.lane_threshold = self._calibration["threshold"]
            if not len(self._unit) == len(self._bias) == HEADS:
                raise ValueError("wrong number of heads")
        except (ValueError, KeyError, TypeError, zlib.error) as exc:
            raise SettingsError(
                f"the classifier's weights cannot be read: {exc}", hint="`python tools/train_classifier.py` writes them"
            ) from exc
        self._rows = rows
        self._get = [held.get for held in rows]
        self._correction = read_correction(correction) if correction is not None else Correction()

    def label(self, body: Mapping[str, Any]) -> Label:
        """The judgement about one parsed body; any JSON value in any field is fine.

        A short follow-up is judged with the request that it follows, and the harder of the two counts.
        """
        label = self._label(body)
        standing = standing_request(body)
        if standing is None:
            return label
        earlier = self._label(standing)
        return earlier if earlier.p_hard > label.p_hard else label

    def _label(self, body: Mapping[str, Any]) -> Label:
        scores, known = self._scores(extract(body))
        return self._judge(scores, known)

    def lane(self, label: Label) -> str:
        """`sonnet` where `p_hard` reaches the shipped threshold, else `haiku`."""
        return "sonnet" if label.p_hard >= self.lane_threshold else "haiku"

    def explain(self, body: Mapping[str, Any], most: int = 12) -> Explanation:
        """The label with its reasons; slower than `label`, meant for people."""
        features = extract(body)
        scores, known = self._scores(features)
        places, single = [], []
        for place, parts, scale in zip(PLACES, _by_place(features), self._place_scale, strict=True):
            share = _share(place, parts, scale) * self._unit[LANE]
            added = []
            for name in sorted(names(parts)):
                kind, key = kind_and_key(name)
                if row := self._rows[kind].get(key):
                    added.append((name.decode("utf-8", "replace"), _unpack(row)[LANE] * share))
            places.append((place, sum(weight for _, weight in added)))
            single += [(f"{place}: {name}", weight) for name, weight in added]
        single.sort(key=lambda pair: -abs(pair[1]))
        return Explanation(self._judge(scores, known), tuple(places), tuple(single[:most]))

    def _scores(self, features: Features) -> tuple[list[float], int]:
        """The thirteen linear scores, and how many features of the words at the edges the vocabulary knows."""
        system, of_system = self._sums(features.system)
        ends, of_ends = self._sums(features.ends)
        ask, _ = self._sums(features.ask)
        middle, _ = self._sums(features.middle)
        structure, _ = self._sums(features.structure)
        s, e, a, m, t = map(_share, PLACES, _by_place(features), self._place_scale)
        scores = [
            bias + unit * (s * in_system + e * in_ends + a * in_ask + m * in_middle + t * in_structure)
            for bias, unit, in_system, in_ends, in_ask, in_middle, in_structure in zip(
                self._bias, self._unit, system, ends, ask, middle, structure, strict=False
            )
        ]
        return scores, of_system + of_ends

    def _sums(self, parts: list[Part]) -> tuple[Sequence[int], int]:
        """The thirteen weights of the features of a place added up, and how many of them the vocabulary knows."""
        rows: list[int] = []
        for kind, keys in parts:
            rows += filter(None, map(self._get[kind], keys))
        if len(rows) <= _MOST:
            return (_unpack(sum(rows)) if rows else _NOTHING), len(rows)
        several = [_unpack(sum(rows[start : start + _MOST])) for start in range(0, len(rows), _MOST)]
        return [sum(column) for column in zip(*several, strict=True)], len(rows)

    def measure(self, body: Mapping[str, Any]) -> Measured:
        """What the weights say before the correction: the place where a correction is fitted."""
        return self._measure(*self._scores(extract(body)))[0]

    def _measure(self, scores: list[float], known: int) -> tuple[Measured, list[float]]:
        """What the weights say, and the chances of the tasks by them alone."""
        fit = self._calibration
        heat = fit["task_scale"]
        tasks = [score * heat for score in scores[:LANE]]
        chances = _softmax(tasks)
        lane = (_sigmoid(scores[LANE]) + sum(chances[_FIRST_HARD:])) / 2
        lane_logit = fit["lane_scale"] * _logit(lane) + fit["lane_bias"]
        depth = scores[DIFFICULTY] - fit["difficulty_zero"]
        return Measured(tasks, lane_logit, depth, known / (known + fit["doubt"])), chances

    def _judge(self, scores: list[float], known: int) -> Label:
        """Scores → label, by the calibration and the correction."""
        own = self._correction
        measured, chances = self._measure(scores, known)
        if any(own.task_bias):
            chances = _softmax([score + bias for score, bias in zip(measured.tasks, own.task_bias, strict=True)])
        evidence = measured.evidence
        # In doubt, hard: what is not known counts as a request that is hard four times in five.
        p_hard = evidence * _sigmoid(own.lane_scale * measured.lane_logit + own.lane_bias) + (1 - evidence) * 0.8
        top = max(chances)
        # Mostly from the lane, so that both meet at 0.5; the difficulty head orders within a lane.
        depth = (_logit(p_hard) - _logit(self.lane_threshold)) * 0.7 + measured.depth * 0.3
        return Label(TASKS[chances.index(top)], _sigmoid(depth), top * evidence, p_hard)


@dataclass(frozen=True, slots=True)
class Measured:
    """Calibrated scores before a correction.

    `tasks` become chances by softmax; `lane_logit` are log-odds of hard work; `evidence` runs from 0 to 1.
    """

    tasks: list[float]
    lane_logit: float
    depth: float
    evidence: float


@dataclass(frozen=True, slots=True)
class Correction:
    """A small change on top of the shipped weights: scale and bias of the lane's log-odds, a bias a task."""

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
        return Correction(
            float(parsed["lane_scale"]), float(parsed["lane_bias"]), tuple(float(biases.get(task, 0)) for task in TASKS)
        )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
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


def pack_weights(header: Mapping[str, Any], features: Iterable[bytes], rows: bytes) -> bytes:
    """The weights file: header (`unit`, `bias`, `place_scale`, `calibration`), feature names, 13 int8 a feature."""
    listed = list(features)
    text = json.dumps({**header, "features": len(listed)}, sort_keys=True).encode()
    return MAGIC + zlib.compress(text + b"\n" + b"\n".join(listed) + b"\n" + rows, 9)


def _read_weights(weights: bytes) -> tuple[dict[str, Any], Rows]:
    """Header, and by kind a packed integer a feature."""
    if not weights.startswith(MAGIC):
        raise ValueError("no classifier file, or one of another version")
    text, _, rest = zlib.decompress(weights[len(MAGIC) :]).partition(b"\n")
    header = json.loads(text)
    count = int(header["features"])
    parts = rest.split(b"\n", count)
    if len(parts) != count + 1 or len(parts[-1]) != count * HEADS:
        raise ValueError("the file is cut short")
    one_row = Struct(f"{HEADS}b")
    rows: Rows = tuple({} for _ in TAGS)
    same = dict[bytes, bytes]().setdefault  # one object a word: a pair finds its words where the word itself was found
    for name, row in zip(parts, one_row.iter_unpack(parts[-1]), strict=False):
        kind, key = kind_and_key(name)
        key = (same(key[0], key[0]), same(key[1], key[1])) if isinstance(key, tuple) else same(key, key)
        rows[kind][key] = (int.from_bytes(_FIELDS.pack(*row), "little") ^ _DEBT) - _DEBT
    return header, rows


def _by_place(features: Features) -> tuple[list[Part], ...]:
    """The features in the order of PLACES."""
    return features.system, features.ends, features.ask, features.middle, features.structure


def _share(place: str, parts: list[Part], scale: float) -> float:
    """The value of one feature: word places have length one, so that long texts do not shout."""
    return scale if place == "structure" else scale / sqrt(sum([len(keys) for _, keys in parts]) or 1)


def _unpack(total: int) -> tuple[int, ...]:
    """The signed fields of a sum of packed rows."""
    return _FIELDS.unpack((total + _DEBT ^ _DEBT).to_bytes(_FIELDS.size, "little"))


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


__all__ = [
    "HARD_TASKS",
    "Correction",
    "Explanation",
    "LinearClassifier",
    "Measured",
    "pack_weights",
    "read_correction",
    "write_correction",
]
