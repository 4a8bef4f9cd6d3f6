"""What `router policy explain` says of the lanes of a route: may each one's model have this request, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from router.catalog.lookup import Catalog
from router.facts.inspect import Caller, Facts
from router.policy.compile import PolicySet
from router.policy.decide import Decision
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
