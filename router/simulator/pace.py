"""How fast the simulated models are: seconds to the first token, tokens a second.

Haiku answers first after 200 to 400 ms at the median and writes 100 to 150 tokens a second; larger models take longer
for both. `none` waits for nothing. The jitter comes from the seed, so that a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from router.simulator.dice import Dice
from router.simulator.message import Outcome
from router.simulator.record import ModelRecord

# line -> (median seconds to the first token, tokens a second: low, high)
LINES: Mapping[str, tuple[float, float, float]] = {
    "haiku": (0.30, 100.0, 150.0),
    "sonnet": (0.75, 60.0, 80.0),
    "opus": (1.0, 46.0, 54.0),
    "fable": (1.2, 40.0, 50.0),
    "mythos": (1.2, 40.0, 50.0),
}
FAST_FACTOR = 2.5  # output speed under `speed: fast`; the first token is no faster
PREFILL_TOKENS_PER_S = 120_000.0  # reading a long prompt takes its time


@dataclass(frozen=True, slots=True)
class Pace:
    """How long one answer takes: seconds to its first token, then seconds per token."""

    first_s: float = 0.0
    per_token_s: float = 0.0

    def whole_s(self, tokens: float) -> float:
        """Seconds until an answer of so many tokens is complete."""
        return self.first_s + self.per_token_s * tokens


NO_WAIT = Pace()


def pace_of(outcome: Outcome, dice: Dice) -> Pace:
    """The pace of one answer."""
    model: ModelRecord = outcome.call.model
    median, slow, fast = LINES.get(str(model.fields["line"]), LINES["opus"])
    rate = dice.between("rate", slow, fast) * (FAST_FACTOR if outcome.call.speed == "fast" else 1.0)
    unread = (outcome.plan.total - outcome.plan.read) / PREFILL_TOKENS_PER_S
    return Pace(dice.lognormal("first", median, 0.22) + unread, 1.0 / rate)
