"""Which requests are on the books, and which of their figures may be added up: one definition for reports and metrics.

Messages requests are metered, and so is each item of a Message Batch. A metered request is known when both its cost and
its baseline are: then saved is their difference, in one request as in every sum. All others are counted as unknown and
are in none of the three sums; what is known of their cost is added up apart.
"""

from __future__ import annotations

from router.trace.record import BATCH_ITEM, Trace

MESSAGES = "messages"
METERED = (MESSAGES, BATCH_ITEM)
MESSAGES_SQL = f"endpoint = '{MESSAGES}'"
METERED_SQL = f"endpoint IN ('{MESSAGES}', '{BATCH_ITEM}')"
TIMED_SQL = f"endpoint <> '{BATCH_ITEM}'"  # an item is worked on elsewhere: it has no duration here
KNOWN_SQL = "cost_pusd IS NOT NULL AND baseline_pusd IS NOT NULL"
COST_APART_SQL = "baseline_pusd IS NULL"  # what of `cost_pusd` belongs to the sum apart


class Money:
    """Exact sums over metered requests, in pico-dollars; `unknown` is a count."""

    __slots__ = ("baseline_pusd", "cost_pusd", "cost_without_baseline_pusd", "unknown")

    def __init__(self) -> None:
        self.cost_pusd = 0
        self.baseline_pusd = 0
        self.cost_without_baseline_pusd = 0
        self.unknown = 0

    @property
    def saved_pusd(self) -> int:
        """Baseline less cost; negative where routing cost more."""
        return self.baseline_pusd - self.cost_pusd

    def add(self, trace: Trace) -> None:
        """Book a finished request; one of an endpoint that is not metered changes nothing."""
        if trace.endpoint not in METERED:
            return
        if trace.cost_pusd is not None and trace.baseline_pusd is not None:
            self.cost_pusd += trace.cost_pusd
            self.baseline_pusd += trace.baseline_pusd
        else:
            self.unknown += 1
            self.cost_without_baseline_pusd += trace.cost_pusd or 0
