"""Fits a small correction on an owner's own labels; the shipped weights stay as they are.

Thirteen numbers are fitted: scale and bias of the lane's log-odds, and a bias for each task. Each is pulled towards no
change, so that a dozen labels move little and a thousand may move much. Plain gradient steps, deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from router.classify.correction import Correction
from router.classify.label import TASKS
from router.classify.model import Measured

# As if this many labels had said that nothing needs to change.
_PULL = 20.0
_STEPS = 400


@dataclass(frozen=True, slots=True)
class Example:
    """One of the owner's labels: what the shipped weights measured, is it hard, and the task where known."""

    measured: Measured
    is_hard: bool
    task: str | None


def fit_correction(examples: Sequence[Example]) -> Correction:
    """The correction that fits the examples best, given the pull towards none; no example gives none."""
    if not examples:
        return Correction()
    scale, bias = _fit_lane(examples)
    return Correction(scale, bias, _fit_tasks([example for example in examples if example.task in TASKS]))


def _fit_lane(examples: Sequence[Example]) -> tuple[float, float]:
    """Ridge logistic regression on two numbers, by Newton's method; the scale never drops below a quarter."""
    scale, bias = 1.0, 0.0
    for _ in range(30):
        gradient_scale, gradient_bias = _PULL * (scale - 1), _PULL * 0.1 * bias
        second_scale, second_both, second_bias = _PULL, 0.0, _PULL * 0.1
        for example in examples:
            x = example.measured.lane_logit
            p = 1 / (1 + exp(-min(max(scale * x + bias, -40.0), 40.0)))
            error, slope = p - example.is_hard, p * (1 - p)
            gradient_scale += error * x
            gradient_bias += error
            second_scale += slope * x * x
            second_both += slope * x
            second_bias += slope
        determinant = second_scale * second_bias - second_both**2
        scale -= (second_bias * gradient_scale - second_both * gradient_bias) / determinant
        bias -= (second_scale * gradient_bias - second_both * gradient_scale) / determinant
        scale, bias = min(max(scale, 0.25), 4.0), min(max(bias, -6.0), 6.0)
    return scale, bias


def _fit_tasks(examples: Sequence[Example]) -> tuple[float, ...]:
    """Task biases by gradient descent on the softmax loss with the same pull."""
    biases = [0.0] * len(TASKS)
    if not examples:
        return tuple(biases)
    powers = []
    for example in examples:
        top = max(example.measured.tasks)
        powers.append(([exp(score - top) for score in example.measured.tasks], TASKS.index(example.task or "")))
    rate = 2.0 / (len(examples) + _PULL)
    for _ in range(_STEPS):
        gradient = [_PULL * 0.1 * bias for bias in biases]
        factors = [exp(bias) for bias in biases]
        for row, true in powers:
            weighted = [power * factor for power, factor in zip(row, factors, strict=True)]
            total = sum(weighted)
            for at, value in enumerate(weighted):
                gradient[at] += value / total
            gradient[true] -= 1
        biases = [bias - rate * slope for bias, slope in zip(biases, gradient, strict=True)]
    return tuple(biases)
