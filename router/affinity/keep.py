"""Does a conversation keep its model? A rule's decision against the binding of the conversation it is about.

The live path and `router policy diff` ask the same function, so that a forecast cannot disagree with the router.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from router.affinity.binding import Binding
from router.affinity.economics import SwitchCost, switch_cost
from router.catalog.lookup import Catalog
from router.policy.decide import Decision
from router.policy.written import Lane


@dataclass(frozen=True, slots=True)
class Hold:
    """What the binding says to a decision.

    `lane` is the lane to keep, None where the decision's own route stands. `why` says so in one sentence, empty when
    there was nothing to say. `cost` prices the switch that was made or not, None where both are one model or a price
    is unknown.
    """

    lane: Lane | None
    why: str = ""
    cost: SwitchCost | None = None


_NOTHING = Hold(None)


def hold(
    decision: Decision,
    binding: Binding | None,
    *,
    wanted: str,
    asked: str,
    lanes: Mapping[str, Lane],
    catalog: Catalog,
    now_s: float,
    is_always_priced: bool = True,
) -> Hold:
    """Whether the conversation stays where it is bound, by the decision's `stick`.

    `wanted` is the model that the decision's first lane stands for, `asked` the one that `as-asked` stands for. Unless
    `is_always_priced`, a switch is priced only where the lane depends on it (`stick: economic`): for callers who want
    the lane and neither the arithmetic nor the sentence about it.
    """
    if binding is None or decision.stick == "none" or decision.deny is not None:
        return _NOTHING
    lane = lanes.get(binding.lane)
    bound_id = _identity(binding.model, catalog)
    if lane is None or bound_id == _identity(wanted, catalog):
        return _NOTHING  # the same model, or a lane that an edit of the policies has taken away
    if _identity(lane.model or asked, catalog) != bound_id:
        return _NOTHING  # the lane stands for another model now
    cost = None
    if is_always_priced or decision.stick == "economic":
        cost = switch_cost(binding, wanted, catalog, now_s=now_s, turns=decision.turns)
    lane_wanted = decision.route[0].name
    if decision.stick == "move":
        return Hold(None, f"the conversation moves from lane `{lane.name}` to `{lane_wanted}`", cost)
    if decision.stick == "economic" and cost is not None and cost.is_earned:
        moves = f"the conversation moves from lane `{lane.name}` to `{lane_wanted}`"
        return Hold(None, f"{moves}: earned back by turn {cost.turns_to_earn}", cost)
    why = f"the conversation keeps lane `{lane.name}`"
    if decision.stick == "economic" and cost is None:
        why += f": what a switch to `{lane_wanted}` would cost is not known"
    elif decision.stick == "economic":
        why += f": a switch to `{lane_wanted}` is not earned back within {decision.turns} turns"
    elif cost is not None and cost.extra_pusd > 0:
        why += f": a switch to `{lane_wanted}` would cost ${cost.extra_pusd / 1e12:.6f} more this turn"
    return Hold(lane, why, cost)


def _identity(model: str, catalog: Catalog) -> str:
    """The id that an alias stands for, so that two names of one model are no switch."""
    known = catalog.find(model)
    return model if known is None else known.id
