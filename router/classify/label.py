"""`Label`: the judgement of a classifier about one request."""

from __future__ import annotations

from dataclasses import dataclass

# The tasks, as the labelled requests define them; the first seven are structured work, the rest is hard work.
STRUCTURED_TASKS = ("classification", "extraction", "summarization", "translation", "simple_qa", "rewrite", "chat")
HARD_TASKS = ("reasoning", "coding", "knowledge", "agentic")
TASKS = STRUCTURED_TASKS + HARD_TASKS


@dataclass(frozen=True, slots=True)
class Label:
    """What a request asks for and how hard that is.

    `task` is one of TASKS. `difficulty` runs from 0 (one step) to 1 (olympiad, open-ended engineering); 0.5 is where
    the lanes meet. `confidence` is the probability that `task` is right, `p_hard` that the big model is needed.
    """

    task: str
    difficulty: float
    confidence: float
    p_hard: float
