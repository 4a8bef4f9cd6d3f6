"""Book what a request cost, what it would have cost, and the difference."""

from __future__ import annotations

from router.catalog.lookup import Catalog
from router.trace.record import Attempt, Trace


def book(trace: Trace, catalog: Catalog, *, is_hit: bool = False) -> None:
    """Fill the money of a trace from its attempts' usage; None wherever a price is unknown, never 0 for it.

    The cost is the sum over all attempts that reported usage; a failed one that reported none was not billed. The
    baseline is the answer's usage at the price of the model asked for; `auto` asks for none, so its baseline is
    unknown, and `lane:NAME` asks for the lane's own. A cache hit costs nothing: what it saves is the baseline of what
    it replays.
    """
    trace.price_version = catalog.price_version
    cost: int | None = 0
    for attempt in trace.attempts:
        if attempt.usage is None:
            if trace.endpoint == "messages" and attempt.outcome == "ok":
                cost = None  # a whole answer was billed, whatever we could read of it
            continue
        attempt.cost_pusd = catalog.cost(attempt.usage, _billed(trace, attempt, catalog))
        cost = None if cost is None or attempt.cost_pusd is None else cost + attempt.cost_pusd
    trace.cost_pusd = 0 if is_hit else cost
    trace.baseline_pusd = None
    if trace.usage is not None:
        asked = trace.model_sent if trace.model_asked.startswith("lane:") else trace.model_asked
        trace.baseline_pusd = catalog.baseline(trace.usage, asked, trace.model_sent)
    elif trace.cost_pusd == 0:
        trace.baseline_pusd = 0  # nothing was billed and nothing would have been
    if trace.cost_pusd is not None and trace.baseline_pusd is not None:
        trace.saved_pusd = trace.baseline_pusd - trace.cost_pusd


def _billed(trace: Trace, attempt: Attempt, catalog: Catalog) -> str:
    """The model whose price an attempt has: the one that answered, where it is known (a server-side fallback)."""
    answered = trace.model_answered
    is_last = attempt is trace.attempts[-1]
    return answered if is_last and answered is not None and catalog.find(answered) is not None else attempt.model
