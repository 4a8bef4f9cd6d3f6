"""What `router policy explain` says of the lanes of a route: which one the client named, which may serve, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from router.catalog.lookup import Catalog
from router.errors import UnknownTarget
from router.facts.inspect import Caller, Facts
from router.policy.compile import PolicySet
from router.policy.decide import Decision
from router.serve.route import LANE_HEADER
from router.swap.check import can_serve
from router.wire.messages import MessagesRequest


@dataclass(frozen=True, slots=True)
class LaneVerdict:
    """One lane of a route: the model it means here, the reasons against it, the edits (sentences) it would need."""

    lane: str
    model: str
    reasons: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()

    def line(self) -> str:
        """The verdict as one line for people."""
        if self.reasons:
            said = f"is passed over: {'; '.join(self.reasons)}"
        else:
            said = f"may serve it, with edits: {'; '.join(self.edits)}" if self.edits else "may serve it as it is"
        return f"  {'✗' if self.reasons else '✓'} {self.lane} ({self.model}) {said}"

    def json(self) -> dict[str, Any]:
        """The verdict as JSON shows it."""
        return {
            "lane": self.lane,
            "model": self.model,
            "may_serve": not self.reasons,
            "reasons": list(self.reasons),
            "edits": list(self.edits),
        }


def named_lane(decision: Decision, policies: PolicySet, asked: str, caller: Caller) -> tuple[Decision, str]:
    """The decision with the lane that the client named, and why that was refused (empty: it was not).

    The rule of the live path (`serve.route.Router.named`): the model `lane:NAME` names any lane of the folder, the
    header `x-router-lane` one of those that the deciding rule offers. Raises UnknownTarget for a model without a lane.
    """
    if decision.deny is not None:
        return decision, ""
    if asked.startswith("lane:"):
        lane = policies.lanes.get(asked[5:])
        if lane is None or lane.model is None:
            raise UnknownTarget(f"model: {asked}", hint="the lanes are in `lanes.yaml`")
        return replace(decision, route=(lane,), why=(*decision.why, f"the client named the lane `{lane.name}`")), ""
    name = caller.headers.get(LANE_HEADER)
    if name is None:
        return decision, ""
    lane = policies.lanes.get(name.strip())
    if lane is None or lane not in decision.offers:
        shown = f"`{lane.name}`" if lane is not None else "that is not in `lanes.yaml`"
        return decision, f"the client asked for a lane {shown}, which the rule does not offer"
    route = (lane, *(other for other in decision.route if other is not lane))
    return replace(decision, route=route, why=(*decision.why, f"the client asked for lane `{lane.name}`")), ""


def lane_verdicts(
    request: MessagesRequest,
    decision: Decision,
    policies: PolicySet,
    catalog: Catalog,
    caller: Caller,
    facts: Facts,
) -> list[LaneVerdict]:
    """A verdict per lane of the decision's route, as the server comes to it for a conversation it knows nothing of."""
    is_virtual = request.model == "auto" or request.model.startswith("lane:")
    asked_id = (policies.default_lane.model or request.model) if is_virtual else request.model
    found = []
    for lane in decision.route:
        model_id = lane.model or asked_id
        model = catalog.find(model_id)
        if model_id == request.model or request.model == f"lane:{lane.name}":  # what was asked for is never in question
            found.append(LaneVerdict(lane.name, model_id))
        elif model is None:
            found.append(LaneVerdict(lane.name, model_id, (f"model `{model_id}` is not in the catalogue",)))
        else:
            verdict = can_serve(
                request,
                model,
                asked=None if is_virtual else catalog.find(request.model),
                api_version=caller.api_version,
                betas=caller.betas,
                input_tokens=facts.input_tokens,
                edits=decision.edits,
            )
            edits = tuple(edit.says for edit in verdict.edits)
            found.append(LaneVerdict(lane.name, model_id, verdict.reasons, edits))
    return found
