"""Arithmetic of the classifier's table: figures at fixed shares, intervals, outcome curves, simple rivals.

Everything works on arrays, because an interval takes hundreds of draws. Figures that are None say that the rows cannot
tell. `score` is always the probability that the big model is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from router.classify.label import TASKS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Figure = Callable[["Answers"], float | None]
# What the cheap lane costs when the dear one costs 1: the price ratio of the two lines of models.
CHEAP_PRICE = 1 / 3
_KEYWORDS = re.compile(
    r"prove|solve|calculat|comput|how many|how much|equation|theorem|function|code|implement|debug|refactor|algorithm"
    r"|script|step by step|why does|derive|probabilit|\bclass\b|python|\bjava|\bsql\b|bug|premise|conclusion",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Answers:
    """Judged requests as arrays of one length: the truth, what was said, and the score that said it."""

    hard: Flags
    said_hard: Flags
    score: Floats
    task: Ints
    said_task: Ints

    def __len__(self) -> int:
        return len(self.hard)

    def take(self, which: Ints | Flags) -> Answers:
        """Some of the requests, by number or by flag."""
        return Answers(*(getattr(self, field.name)[which] for field in fields(self)))


def accuracy(rows: Answers) -> float | None:
    """Share of requests in the right lane."""
    return float((rows.hard == rows.said_hard).mean()) if len(rows) else None


def area(rows: Answers) -> float | None:
    """Probability that a hard request scores above an easy one; ties count half."""
    positives = int(rows.hard.sum())
    negatives = len(rows) - positives
    if not positives or not negatives:
        return None
    _, place, count = np.unique(rows.score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((rank[rows.hard].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def false_downgrade(rows: Answers) -> float | None:
    """Share of hard requests sent to the small model."""
    return float((~rows.said_hard[rows.hard]).mean()) if rows.hard.any() else None


def false_upgrade(rows: Answers) -> float | None:
    """Share of easy requests sent to the big model."""
    return float(rows.said_hard[~rows.hard].mean()) if not rows.hard.all() else None


def small_share(rows: Answers) -> float | None:
    """Share of all requests sent to the small model."""
    return float((~rows.said_hard).mean()) if len(rows) else None


def downgraded_at(rows: Answers, share: float) -> float | None:
    """Share of hard requests among the `share` of all requests that score lowest."""
    if not rows.hard.any():
        return None
    lowest = np.argsort(rows.score, kind="stable")[: int(share * len(rows))]
    return float(rows.hard[lowest].sum() / rows.hard.sum())


def share_at(rows: Answers, downgraded: float) -> float | None:
    """Share of all requests below the score under which `downgraded` of the hard ones lie."""
    return float((rows.score < np.quantile(rows.score[rows.hard], downgraded)).mean()) if rows.hard.any() else None


def calibration_error(rows: Answers) -> float | None:
    """Expected calibration error over ten bins of equal width."""
    if not len(rows):
        return None
    place = np.minimum((rows.score * 10).astype(np.int64), 9)
    gaps = np.bincount(place, rows.score, 10) - np.bincount(place, rows.hard, 10)
    return float(np.abs(gaps).sum() / len(rows))


def task_macro_f1(rows: Answers) -> float | None:
    """Mean F1 over the tasks that occur."""
    if not len(rows):
        return None
    size = len(TASKS)
    true, said = np.bincount(rows.task, minlength=size), np.bincount(rows.said_task, minlength=size)
    hits = np.bincount(rows.task[rows.task == rows.said_task], minlength=size)
    occurs = true > 0
    return float((2 * hits[occurs] / (true[occurs] + said[occurs])).mean())


def task_accuracy(rows: Answers) -> float | None:
    """Share of requests with the right task."""
    return float((rows.task == rows.said_task).mean()) if len(rows) else None


def interval(
    rows: Answers, figure: Figure, units: Sequence[str], seed: int, draws: int = 300
) -> tuple[float, float] | None:
    """95 % interval of a figure, drawn over whole units (templates, sources); it always holds the figure itself.

    Rows of one wording fall together; rows taken as independent would look far too sure. With fewer than eight units
    the draw is over rows, because a handful of units cannot stand for others.
    """
    point = figure(rows)
    if point is None:
        return None
    groups: dict[str, list[int]] = {}
    for at, unit in enumerate(units):
        groups.setdefault(unit, []).append(at)
    held = [np.array(groups[unit]) for unit in sorted(groups)]
    if len(groups) < 8:
        held = list(np.arange(len(rows))[:, None])
    chance = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        chosen = np.concatenate([held[at] for at in chance.integers(0, len(held), len(held))])
        value = figure(rows.take(chosen))
        if value is not None:
            values.append(value)
    if not values:
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return min(float(low), point), max(float(high), point)


def outcome_curve(scores: Floats, strong: Floats, weak: Floats, steps: int = 10) -> tuple[float, list[float]]:
    """APGR, and the strong-call percentages that close 20, 50 and 80 % of the gap.

    RouteLLM's protocol: thresholds at the equal-mass quantiles of the scores; at or above goes to the strong model, at
    the last one only above. `strong` and `weak` are `(prompts, grades)`.
    """
    shares, means = [], []
    for at, threshold in enumerate(np.quantile(scores, np.linspace(0, 1, steps + 1))):
        up = scores >= threshold if at < steps else scores > threshold
        shares.append(100 * up.mean())
        means.append(np.where(up[:, None], strong, weak).mean())
    order = np.argsort(shares, kind="stable")
    x, y = np.array(shares)[order], np.array(means)[order]
    best, least = strong.mean(), weak.mean()
    won = float(np.sum((y[1:] + y[:-1]) / 2 * np.diff(x / 100))) - least * (x[-1] - x[0]) / 100
    whole = (best - least) * (x[-1] - x[0]) / 100
    return won / whole, [float(np.interp(least + part * (best - least), y, x)) for part in (0.2, 0.5, 0.8)]


def apgr_interval(scores: Floats, strong: Floats, weak: Floats, seed: int, draws: int = 200) -> tuple[float, float]:
    """95 % interval of APGR over drawn prompts; draws without a gap between the models are left out."""
    point = outcome_curve(scores, strong, weak)[0]
    chance = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        chosen = chance.integers(0, len(scores), len(scores))
        if strong[chosen].mean() != weak[chosen].mean():
            values.append(outcome_curve(scores[chosen], strong[chosen], weak[chosen])[0])
    low, high = np.quantile(values or [point], [0.025, 0.975])
    return min(float(low), point), max(float(high), point)


def rivals(rows: Answers, texts: Sequence[str], seed: int) -> dict[str, Answers]:
    """What simple routers would have said: always one lane, chance, length and keywords.

    Chance and length send as many requests to the small model as the classifier did, so they cost the same; keywords
    send up what holds any.
    """
    count = len(rows)
    share = small_share(rows) or 0.0
    lengths = np.array([len(text) for text in texts], np.float64)
    found = np.array([len(_KEYWORDS.findall(text)) for text in texts], np.float64)
    drawn = np.random.default_rng(seed).random(count)

    def said(score: Floats, up: Flags) -> Answers:
        return Answers(rows.hard, up, score, rows.task, rows.said_task)

    def at_share(score: Floats) -> Flags:
        up = np.ones(count, np.bool_)
        up[np.argsort(score, kind="stable")[: round(share * count)]] = False
        return up

    return {
        "always Haiku": said(np.zeros(count), np.zeros(count, np.bool_)),
        "always Sonnet": said(np.zeros(count), np.ones(count, np.bool_)),
        "random at equal cost": said(drawn, at_share(drawn)),
        "length only": said(lengths, at_share(lengths)),
        "keywords": said(found, found > 0),
    }


def cost(rows: Answers) -> float:
    """Cost of the routing where all requests on the big model cost 1, at equal tokens a request."""
    share = small_share(rows) or 0.0
    return 1 - share * (1 - CHEAP_PRICE)


def text_of(request: Mapping[str, Any]) -> str:
    """System prompt and turns as one text, for the simple routers and for reading errors by eye."""
    parts = [_plain(request.get("system"))]
    parts += [f"[{turn.get('role')}] {_plain(turn.get('content'))}" for turn in request["messages"]]
    return "\n".join(part for part in parts if part)


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(str(block.get("text") or block.get("content") or block.get("name") or "") for block in content)
