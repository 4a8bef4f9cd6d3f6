"""Book what a request cost, what it would have cost, and the difference."""

from __future__ import annotations

from dataclasses import replace

from router.catalog.lookup import Catalog
from router.catalog.prompt_cache import prompt_cache_effect
from router.trace.record import BATCH_ITEM, Attempt, Trace, held, is_deferred

# Attempts that reached a model, as far as we know: answered, or ended early by somebody's clock, wire or patience.
_WORKED_ON = ("ok", "timeout", "broken", "cut", "client_closed")
_FREE_METHODS = ("GET", "HEAD", "OPTIONS", "DELETE")


def book(trace: Trace, catalog: Catalog, *, is_hit: bool = False) -> None:
    """Fill the money of a trace from its attempts' usage; None wherever a price is unknown, never 0 for it.

    The cost is the sum over all attempts that reported usage; one that reported none was not billed if the upstream
    refused it, and is unknown if it may have worked on it. The baseline is the answer's usage at the price of the model
    asked for; `auto` and `lane:NAME` ask for whatever model they lead to. A cache hit costs nothing: what it saves is
    the baseline of what it replays. Work that other endpoints start (a batch) is not metered: its cost is unknown.
    What the provider's prompt cache did is inside the cost already and said beside it. Booking again from the same
    usage changes nothing but what other prices change. A sum over the bound of `held`, from counts that only a hostile
    upstream reports, is unknown here already: else the metrics would say another sum than the store.
    """
    trace.price_version = catalog.price_version
    if trace.endpoint == BATCH_ITEM:
        _book_item(trace, catalog, is_hit=is_hit)
        return
    cost: int | None = 0
    effect: tuple[int, int] | None = (0, 0)
    for attempt in trace.attempts:
        if attempt.usage is None:
            if _may_be_billed(trace, attempt):
                cost = None
            continue
        billed = _billed(trace, attempt, catalog)
        attempt.cost_pusd = held(catalog.cost(attempt.usage, billed))
        cost = None if cost is None or attempt.cost_pusd is None else cost + attempt.cost_pusd
        own = prompt_cache_effect(attempt.usage, billed, catalog)
        effect = None if effect is None or own is None else (effect[0] + own[0], effect[1] + own[1])
    trace.cost_pusd = 0 if is_hit else held(cost)
    read_saved, write_extra = (None, None) if effect is None else effect
    trace.prompt_read_saved_pusd, trace.prompt_write_extra_pusd = held(read_saved), held(write_extra)
    trace.baseline_pusd = trace.saved_pusd = None
    if trace.usage is not None:
        trace.baseline_pusd = held(catalog.baseline(trace.usage, _asked(trace), trace.model_sent))
    elif trace.cost_pusd == 0 and not is_hit:
        trace.baseline_pusd = 0  # nothing was billed and nothing would have been
    if trace.cost_pusd is not None and trace.baseline_pusd is not None:
        trace.saved_pusd = trace.baseline_pusd - trace.cost_pusd


def _book_item(trace: Trace, catalog: Catalog, *, is_hit: bool) -> None:
    """An item of a Message Batch: it has no attempts of ours, and its usage says that batch prices hold.

    One that was answered from the cache saves what its answer would have cost in a batch. A request that waited saves
    what its answer would have cost at once; where nobody waited for it any more, nothing would have been paid for it.
    """
    trace.cost_pusd = trace.baseline_pusd = trace.saved_pusd = None
    trace.prompt_read_saved_pusd = trace.prompt_write_extra_pusd = None
    usage, billed = trace.usage, trace.model_answered or trace.model_sent
    if usage is None:
        return
    trace.cost_pusd = 0 if is_hit else held(catalog.cost(usage, billed, is_batch=True))
    if is_deferred(trace):
        at_once = replace(usage, service_tier="standard")
        trace.baseline_pusd = held(catalog.baseline(at_once, _asked(trace), billed)) if trace.outcome == "ok" else 0
    else:
        trace.baseline_pusd = held(catalog.baseline(usage, _asked(trace), billed, is_batch=True))
    effect = (0, 0) if is_hit else prompt_cache_effect(usage, billed, catalog)
    if effect is not None:
        trace.prompt_read_saved_pusd, trace.prompt_write_extra_pusd = held(effect[0]), held(effect[1])
    if trace.cost_pusd is not None and trace.baseline_pusd is not None:
        trace.saved_pusd = trace.baseline_pusd - trace.cost_pusd


def _asked(trace: Trace) -> str:
    """The model asked for; a virtual one asks for whatever it leads to."""
    is_virtual = trace.model_asked == "auto" or trace.model_asked.startswith("lane:")
    return trace.model_sent if is_virtual else trace.model_asked


def _may_be_billed(trace: Trace, attempt: Attempt) -> bool:
    """Whether an attempt that reported no usage may be on the bill all the same."""
    if attempt.status is not None and attempt.status >= 400:
        return False
    if trace.endpoint == "messages":
        return attempt.outcome in _WORKED_ON
    return trace.endpoint in ("batches", "passthrough") and trace.method not in _FREE_METHODS


def _billed(trace: Trace, attempt: Attempt, catalog: Catalog) -> str:
    """The model whose price an attempt has: the one that answered, where it is known (a server-side fallback)."""
    answered = trace.model_answered
    is_last = attempt is trace.attempts[-1]
    return answered if is_last and answered is not None and catalog.find(answered) is not None else attempt.model
