"""One recorded request under the policies now in force: the trace page's answer to "what would happen today?".

Decided like `router policy diff` decides, from the facts that the trace carries and without any text of the prompt.
What cannot be told from them is said by name, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from router.affinity.binding import Binding
from router.catalog.lookup import Catalog
from router.policy.compile import PolicySet
from router.policy.forecast import EARLIER_TURN, Forecast, Recorded, Refusals, Side, Soundness
from router.policy.moved import moved_usage, same_model
from router.policy.unsure import RecordedPolicy
from router.trace.export import usd

_MOST_LANES = 50


class _Cost(NamedTuple):
    """Pico-dollars; an estimate wherever another model would have answered."""

    pusd: int | None
    is_estimate: bool


def decided_now(
    seen: Recorded, affinity: Mapping[str, Any] | None, policies: PolicySet, catalog: Catalog
) -> dict[str, Any]:
    """What `policies` would do with a recorded request, as JSON data; money as exact `Decimal` dollars.

    `affinity` is what the trace says of its conversation. `missing` names what would have to be known to decide, else
    it is None. `rules` are weighed in order up to the deciding one. `lanes` says what the same usage would come to on
    each lane: an estimate, except on the model that served it.
    """
    record = seen.facts if seen.facts is not None and Soundness().has_needed(seen.facts) else None
    policy = policies.policies.get(seen.policy)
    found: Forecast | str = "a policy" if not seen.policy else "facts"
    rules: list[dict[str, Any]] = []
    if seen.policy and (record is not None or seen.revision == policies.revision):
        found = _forecast(seen, record, _binding(seen, affinity), policies, catalog)
    if policy is not None and seen.facts is not None:
        weighed = RecordedPolicy(policy).rules(seen.facts, seen.model_asked, seen.label, seen.lacking)
        rules = [rule._asdict() for rule in weighed]
    forecast = None if isinstance(found, str) else found
    cost = _Cost(None, False)
    if forecast is not None:
        cost = _Cost(0, False) if not forecast.model else _cost(seen, forecast.model, catalog)
        if forecast.is_recorded:
            cost = _Cost(seen.cost_pusd, False)
    saved = None if cost.pusd is None or seen.baseline_pusd is None else seen.baseline_pusd - cost.pusd
    is_stopped = forecast is not None and not forecast.model
    return {
        "revision": policies.revision,
        "is_same_revision": seen.revision == policies.revision,
        "policy": seen.policy,
        "has_policy": policy is not None,
        "missing": found if isinstance(found, str) else None,
        "rule": None if forecast is None else forecast.rule,
        "lane": None if forecast is None or is_stopped else forecast.lane,
        "model": None if forecast is None or is_stopped else forecast.model,
        "not_sent": forecast.lane if forecast is not None and is_stopped else None,
        "refused": [] if forecast is None else [{"lane": lane, "reason": why} for lane, why in forecast.refused],
        "is_moved": forecast is not None
        and (forecast.lane != seen.lane or not same_model(forecast.model, seen.model_sent, catalog)),
        "cost_usd": usd(cost.pusd),
        "baseline_usd": usd(seen.baseline_pusd) if not is_stopped else None,
        "saved_usd": usd(saved) if not is_stopped else None,
        "is_estimate": cost.is_estimate,
        "rules": rules,
        "lanes": _lanes(seen, policies, catalog),
    }


def _forecast(
    seen: Recorded,
    record: Mapping[str, Any] | None,
    binding: Binding | None,
    policies: PolicySet,
    catalog: Catalog,
) -> Forecast | str:
    found = Side(policies, catalog, Refusals(catalog)).forecast(seen, record, binding)
    if isinstance(found, Forecast) and not found.is_recorded and found.stick == "economic" and binding is not None:
        return EARLIER_TURN  # the arithmetic of a switch needs more of the conversation than its trace has
    return found


def _binding(seen: Recorded, affinity: Mapping[str, Any] | None) -> Binding | None:
    """Where the conversation was bound, as far as its trace says: lane and model."""
    if not isinstance(affinity, Mapping):
        return None
    lane, model = affinity.get("lane"), affinity.get("model")
    if not isinstance(lane, str) or not isinstance(model, str):
        return None
    return Binding(lane, model, 0, 0, 300, 0, seen.started_at_s)


def _cost(seen: Recorded, model: str, catalog: Catalog) -> _Cost:
    """What the recorded usage comes to on `model`, its prompt cache cold there unless that model served it."""
    if seen.is_hit or same_model(model, seen.model_sent, catalog):
        return _Cost(seen.cost_pusd, False)
    if seen.usage is None:
        return _Cost(None, False)
    source = seen.model_answered if catalog.find(seen.model_answered) is not None else seen.model_sent
    is_hour = seen.usage.tokens.cache_write_1h > 0
    moved = moved_usage(seen.usage, source, model, catalog, is_warm=False, is_hour=is_hour)
    return _Cost(catalog.baseline(moved, model, source), True)


def _lanes(seen: Recorded, policies: PolicySet, catalog: Catalog) -> list[dict[str, Any]]:
    if seen.usage is None or seen.is_hit:
        return []
    shown = []
    for lane in list(policies.lanes.values())[:_MOST_LANES]:
        if lane.model is not None:
            cost = _cost(seen, lane.model, catalog)
            shown.append(
                {"lane": lane.name, "model": lane.model, "cost_usd": usd(cost.pusd), "is_estimate": cost.is_estimate}
            )
    return shown
