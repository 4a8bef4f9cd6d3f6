"""From a decision to the models that may serve this request, in order: who asked for what, and who can take it.

The order is the client's named lane, else the lane the conversation is bound to, else the rule's; and at the end,
always, the model that was asked for: what works without the router works with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from router.affinity.keep import hold
from router.catalog.lookup import Catalog
from router.errors import UnknownTarget
from router.facts.inspect import Caller, Facts
from router.policy.compile import AS_ASKED_LANE, PolicySet
from router.policy.decide import Decision
from router.policy.written import Lane
from router.seams import Binding
from router.serve.attempts import Target
from router.serve.exchange import Exchange
from router.swap.adapt import adapted
from router.swap.check import can_serve
from router.wire.messages import MessagesRequest

LANE_HEADER = "x-router-lane"


class Router:
    """Makes routes for one request: `exchange` gets the reasons, everything else is only read.

    `thinkers` are the models whose thinking the conversation carries, () when there is none or that is not known.
    """

    def __init__(
        self,
        exchange: Exchange,
        policies: PolicySet,
        catalog: Catalog,
        request: MessagesRequest,
        facts: Facts,
        caller: Caller,
        thinkers: tuple[str, ...],
    ) -> None:
        self._exchange = exchange
        self._policies = policies
        self._catalog = catalog
        self._request = request
        self._facts = facts
        self._caller = caller
        self._thinkers = thinkers
        asked = request.model
        self._is_virtual = asked == "auto" or asked.startswith("lane:")

    def named(self, decision: Decision) -> Decision | None:
        """The decision with the lane that the client named in front; None when it named none that it may have.

        With the virtual model `lane:NAME` the client names any lane of the folder; the header `x-router-lane` chooses
        among those the deciding rule names. Raises UnknownTarget for a virtual model without a lane.
        """
        asked = self._request.model
        if asked.startswith("lane:"):
            lane = self._policies.lanes.get(asked[5:])
            if lane is None or lane.model is None:
                raise UnknownTarget(f"model: {asked}", hint="the lanes are in `lanes.yaml`")
            return replace(decision, route=(lane,), why=(*decision.why, f"the client named the lane `{lane.name}`"))
        name = self._caller.headers.get(LANE_HEADER)
        if name is None:
            return None
        lane = self._policies.lanes.get(name.strip())
        if lane is None or lane not in decision.offers:
            shown = f"`{lane.name}`" if lane is not None else "that is not in `lanes.yaml`"
            self._exchange.refused.append(f"the client asked for a lane {shown}, which the rule does not offer")
            return None
        route = (lane, *(other for other in decision.route if other is not lane))
        return replace(decision, route=route, why=(*decision.why, f"the client asked for lane `{lane.name}`"))

    def held(self, decision: Decision, binding: Binding | None, now_s: float) -> Decision:
        """The decision with the lane in front that the conversation keeps; the arithmetic goes into the trace."""
        if binding is None:
            return decision
        wanted = self._model(decision.route[0].model)
        found = hold(
            decision,
            binding,
            wanted=wanted,
            asked=self._model(None),
            lanes=self._policies.lanes,
            catalog=self._catalog,
            now_s=now_s,
        )
        trace = self._exchange.trace
        trace.affinity = {
            "lane": binding.lane,
            "model": binding.model,
            "prefix_tokens": binding.prefix_tokens,
            "kept": found.lane is not None or binding.model == wanted,
            "switch": None if found.cost is None else found.cost.recorded(),
        }
        if not found.why:
            return decision
        why = (*decision.why, found.why)
        if found.lane is None:
            return replace(decision, why=why)
        route = (found.lane, *(lane for lane in decision.route if lane != found.lane))
        return replace(decision, route=route, why=why)

    def targets(self, decision: Decision, binding: Binding | None) -> Iterator[Target]:
        """The targets that may serve this request, in order; lanes that would refuse it are noted and left out."""
        asked_id = self._request.model
        is_empty, has_asked = True, False
        for lane in self._unbroken(decision.route, binding):
            model_id = self._model(lane.model)
            target: Target | None = Target(lane, model_id)
            if model_id != asked_id and asked_id != f"lane:{lane.name}":
                target = self._checked(Target(lane, model_id), decision)
            if target is None:
                continue
            is_empty = False
            has_asked = has_asked or model_id == asked_id
            yield target
        if self._is_virtual and is_empty:
            yield self._last_resort(decision)
        elif not self._is_virtual and not has_asked:
            yield Target(AS_ASKED_LANE, asked_id)

    def _last_resort(self, decision: Decision) -> Target:
        """A virtual model asks for no model that could serve at last: the default lane, or any lane that can serve."""
        default = self._policies.default_lane
        for lane in (default, *self._policies.lanes.values()):
            if lane.model is not None and lane not in decision.route:
                target = self._checked(Target(lane, lane.model), decision)
                if target is not None:
                    return target
        return Target(default, default.model or "")

    def _unbroken(self, route: tuple[Lane, ...], binding: Binding | None) -> tuple[Lane, ...]:
        """The route, with the bound lane before a model asked for that cannot read what was thought so far.

        The model asked for may always serve, but it would go on without that reasoning. In the middle of a tool loop
        this breaks the work, so the loop is finished where it began; between turns it is only said.
        """
        asked = self._catalog.find(self._request.model)
        if asked is None or self._model(route[0].model) != self._request.model:
            return route
        unread = [name for name in self._thinkers if name not in (asked.id, *asked.accepts.reads_thinking_from)]
        if not unread:
            return route
        lane = None if binding is None else self._policies.lanes.get(binding.lane)
        if self._facts.in_tool_loop and binding is not None and lane is not None and lane.model == binding.model:
            self._exchange.refused.append(f"the tool loop ends on lane `{lane.name}`, whose thinking it carries")
            return (lane, *(other for other in route if other != lane))
        self._exchange.refused.append(f"`{asked.id}` goes on without the thinking of {', '.join(unread)}")
        return route

    def _model(self, lane_model: str | None) -> str:
        """The model a lane stands for here; a virtual model asks for the default lane's."""
        model = lane_model or (self._policies.default_lane.model if self._is_virtual else self._request.model)
        assert model is not None  # a lane of the folder always names a model
        return model

    def _checked(self, target: Target, decision: Decision) -> Target | None:
        """The target as it may have the request in place of the model asked for; None (noted) when it may not."""
        model = self._catalog.find(target.model)
        if model is None:
            self._refuse(target, f"model `{target.model}` is not in the catalogue")
            return None
        verdict = can_serve(
            self._request,
            model,
            asked=None if self._is_virtual else self._catalog.find(self._request.model),
            api_version=self._caller.api_version,
            betas=self._caller.betas,
            input_tokens=self._facts.input_tokens,
            producers=self._thinkers,
            edits=decision.edits,
        )
        if not verdict.is_ok:
            self._refuse(target, "; ".join(verdict.reasons))
            return None
        if not verdict.edits:
            return target
        edits = tuple(edit.says for edit in verdict.edits)
        return Target(target.lane, target.model, adapted(self._request, verdict.edits), edits)

    def _refuse(self, target: Target, reason: str) -> None:
        self._exchange.refused.append(f"lane `{target.lane.name}` kept out: {reason}")
