"""Figures of a classifier on labelled requests, in plain Python.

The definitions are those of the scorer that the labelled data came with: `hard` means that the big model is needed; a
false downgrade is hard work sent to the small model, a false upgrade the reverse.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True, slots=True)
class Judged:
    """One labelled request and what the classifier said: `score` is the probability that the big model is needed."""

    is_hard: bool
    said_hard: bool
    score: float
    task: str | None
    said_task: str


def figures(rows: Sequence[Judged]) -> dict[str, float | None]:
    """Every figure by name; None where the rows cannot tell (one lane only, no task labels)."""
    count = len(rows)
    hard = [row for row in rows if row.is_hard]
    easy = [row for row in rows if not row.is_hard]
    tasked = [row for row in rows if row.task is not None]
    return {
        "requests": float(count),
        "true_haiku_share": _share(len(easy), count),
        "lane_accuracy": _share(sum(row.said_hard == row.is_hard for row in rows), count),
        "auc": area_under_curve([row.is_hard for row in rows], [row.score for row in rows]),
        "false_downgrade": _share(sum(not row.said_hard for row in hard), len(hard)),
        "false_upgrade": _share(sum(row.said_hard for row in easy), len(easy)),
        "haiku_share": _share(sum(not row.said_hard for row in rows), count),
        "calibration_error": calibration_error([row.is_hard for row in rows], [row.score for row in rows]),
        "task_accuracy": _share(sum(row.task == row.said_task for row in tasked), len(tasked)),
        "task_macro_f1": macro_f1([(row.task or "", row.said_task) for row in tasked]) if tasked else None,
    }


def area_under_curve(truth: Sequence[bool], scores: Sequence[float]) -> float | None:
    """Probability that a hard request scores above an easy one; ties count half. None when one kind is missing."""
    positives = sum(truth)
    negatives = len(truth) - positives
    if not positives or not negatives:
        return None
    counts = Counter(scores)
    rank_of: dict[float, float] = {}
    below = 0
    for score in sorted(counts):
        rank_of[score] = below + (counts[score] + 1) / 2
        below += counts[score]
    ranks = sum(rank_of[score] for is_hard, score in zip(truth, scores, strict=True) if is_hard)
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def calibration_error(truth: Sequence[bool], scores: Sequence[float]) -> float | None:
    """Expected calibration error over ten bins of equal width."""
    if not truth:
        return None
    bins: dict[int, list[tuple[bool, float]]] = defaultdict(list)
    for is_hard, score in zip(truth, scores, strict=True):
        bins[min(int(score * 10), 9)].append((is_hard, score))
    gaps = (abs(sum(score for _, score in held) - sum(is_hard for is_hard, _ in held)) for held in bins.values())
    return sum(gaps) / len(truth)


def macro_f1(pairs: Sequence[tuple[str, str]]) -> float:
    """Mean F1 over the true tasks; `pairs` are (true, said)."""
    true_counts = Counter(true for true, _ in pairs)
    said_counts = Counter(said for _, said in pairs)
    hits = Counter(true for true, said in pairs if true == said)
    return sum(2 * hits[task] / (true_counts[task] + said_counts[task]) for task in true_counts) / len(true_counts)


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` trials (Wilson, 1927)."""
    if not count:
        return 0.0, 1.0
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
