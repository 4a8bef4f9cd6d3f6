"""`Label`: the judgement of a classifier about one request."""

from __future__ import annotations

from typing import Any

from router.value import value_class

# The tasks, as the labelled requests define them; the first seven are structured work, the rest is hard work.
STRUCTURED_TASKS = ("classification", "extraction", "summarization", "translation", "simple_qa", "rewrite", "chat")
HARD_TASKS = ("reasoning", "coding", "knowledge", "agentic")
TASKS = STRUCTURED_TASKS + HARD_TASKS
# Where a request is read: the system prompt, the last user turn's first and last line and the stretch of text next to
# each of them, and the structure (tools, parameters, lengths).
PLACES = ("system", "first", "last", "front", "back", "structure")


@value_class(frozen=True, slots=True)
class Label:
    """What a request asks for and how hard that is.

    `task` is one of TASKS. `difficulty` runs from 0 (one step) to 1 (olympiad, open-ended engineering); 0.5 is where
    the lanes meet. `confidence` is the probability that `task` is right, `p_hard` that the big model is needed.
    `places` says, in the order of PLACES, what each place added to the score of the lane, before its bias and
    calibration; it holds no text.
    """

    task: str
    difficulty: float
    confidence: float
    p_hard: float
    places: tuple[float, ...] = ()

    def recorded(self) -> dict[str, Any]:
        """The label as traces and `explain` show it; of the places only those that moved it."""
        places = {
            name: round(added, 2) for name, added in zip(PLACES, self.places, strict=False) if abs(added) >= 0.005
        }
        return {
            "task": self.task,
            "difficulty": round(self.difficulty, 4),
            "confidence": round(self.confidence, 4),
            "p_hard": round(self.p_hard, 4),
            "places": places,
        }
