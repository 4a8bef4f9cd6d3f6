"""What one policy set would have done with a recorded request: the lane, and the refusals on the way.

Under the revision that served the request it would have done what it did, and the record is the answer. Otherwise it
walks as the router does: the rule's route, or the lane the client named, or the one the conversation is bound to;
lanes whose model would refuse the request are left out; at last the model asked for. The body is not there, so the
refusals are those that the facts can tell: the plainest request with these facts is put together and held against the
model. Prefill, sampling, thinking in the conversation and the like are not in the facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, NamedTuple

from router.affinity.binding import Binding
from router.affinity.keep import hold
from router.catalog.lookup import Catalog
from router.classify.label import Label
from router.policy.compile import AS_ASKED_LANE, PolicySet
from router.policy.decide import Decision
from router.policy.unsure import RecordedPolicy
from router.policy.written import Lane
from router.swap.check import can_serve
from router.usage import Usage
from router.wire.messages import MessagesRequest

EARLIER_TURN = "an earlier turn"  # what is missing when a turn before could not be decided
NAMED_LANE = "header.x-router-lane"
_VIRTUAL = "auto"
_API_VERSION = "2023-06-01"  # it only matters for sampling parameters, which are not recorded
_FAR_TOO_MANY = 2**62  # what a count stands for that was too large for the trace store
_MOST_IMAGES = 5_000  # put into a rebuilt request; no model takes as many
_SHORT_PROMPT = 16_384  # tokens; what is asked first
_MOST_KEPT = 150_000  # about 250 bytes each: answers of `can_serve` remembered
_TEXT: tuple[type, ...] = (str, type(None))
_NEEDED: dict[str, tuple[type, ...]] = {
    "input_tokens": (int,),
    "max_tokens": (int, str, float, type(None)),
    "thinking": _TEXT,
    "effort": _TEXT,
    "forced_tool": (bool,),
    "structured_output": (bool,),
    "images": (int,),
    "documents": (int,),
    "tools": (int,),
    "betas": (list,),
    "conversation": (str,),
    "request_class": _TEXT,
}
_needed = itemgetter(*_NEEDED)
_SHAPE = itemgetter("max_tokens", "thinking", "effort", "forced_tool", "structured_output", "images")
_MOST_KINDS = 1_000  # combinations of types remembered; this program writes a few dozen


class Recorded(NamedTuple):
    """One request as its trace tells it, for `Comparison.add`.

    `facts` and `label` are None where none are recorded; `lacking` are the labels that a label leaves out.
    `is_answered` says that a whole answer was served, `has_named_lane` that the client asked for a lane by header.
    `revision`, `rule` and `lane` say what served it; `kept_out` are the lanes that were left out on the way, each with
    the first reason. Money is pico-dollars, None where unknown; `started_at_s` is Unix time.
    """

    started_at_s: float
    conversation: str
    policy: str
    model_asked: str
    model_sent: str
    model_answered: str
    is_hit: bool
    is_answered: bool
    has_named_lane: bool
    cost_pusd: int | None
    baseline_pusd: int | None
    usage: Usage | None
    label: Label | None
    lacking: tuple[str, ...]
    facts: dict[str, Any] | None
    revision: str
    rule: str
    lane: str
    kept_out: tuple[tuple[str, str], ...]


class Forecast(NamedTuple):
    """Where a request goes: `lane` and `model`, or a refusal (`denied`, `unknown target`) with an empty model.

    `refused` are the lanes left out on the way, each with the first reason. `is_recorded` says that this is what was
    done, so that the recorded money is its money.
    """

    rule: str
    lane: str
    model: str
    stick: str
    refused: tuple[tuple[str, str], ...] = ()
    is_recorded: bool = False


_UNKNOWN_TARGET = Forecast("", "unknown target", "", "none")


class Soundness:
    """Whether a record has the facts without which nothing can be said of a request's route, each of its type.

    A trace store is a file that other programs can write to. Types seen before are remembered, in bounded number.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[type, ...], bool] = {}

    def has_needed(self, record: Mapping[str, Any]) -> bool:
        """Whether `Side.forecast` can take this record."""
        try:
            values = _needed(record)
        except KeyError:
            return False
        kinds = tuple(map(type, values))
        is_sound = self._known.get(kinds)
        if is_sound is None:
            if len(self._known) >= _MOST_KINDS:
                self._known.clear()
            fits = zip(kinds, _NEEDED.values(), strict=True)
            is_sound = self._known[kinds] = all(kind in wanted for kind, wanted in fits)
        return is_sound and (not record["betas"] or all(isinstance(beta, str) for beta in record["betas"]))


class _Verdict:
    """What is known of requests that differ in the length of the prompt only; `reason` is one against any of them."""

    __slots__ = ("reason", "refused_from", "taken_to")

    def __init__(self) -> None:
        self.reason = ""
        self.taken_to = -1
        self.refused_from = _FAR_TOO_MANY


class Refusals:
    """Which models would refuse a recorded request, as far as its facts tell: `can_serve`, remembered.

    Answers are remembered by what they depend on. The length of the prompt is looked at apart: a longer one can only
    add a reason, so between what was taken and what was refused nothing need be asked again. Bounded in size.
    """

    __slots__ = ("_catalog", "_known", "_record", "_shapes", "_verdicts")

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._shapes: dict[Any, dict[Any, _Verdict]] = {}
        self._known = 0  # verdicts in all shapes together
        self._record: Mapping[str, Any] = {}
        self._verdicts: dict[Any, _Verdict] = {}  # of the shape of `_record`, asked for several models in a row

    def reason(self, record: Mapping[str, Any], target: str, asked: str | None, edits: tuple[str, ...]) -> str:
        """Why a model must not get this request; empty when it may. `asked` is None for a virtual model."""
        if record is not self._record:
            self._record = record
            shape = (*_SHAPE(record), record["documents"] > 0, record["tools"] > 0, *record["betas"])
            verdicts = self._shapes.get(shape)
            if verdicts is None or self._known >= _MOST_KEPT:
                if self._known >= _MOST_KEPT:
                    self._shapes.clear()
                    self._known = 0
                verdicts = self._shapes[shape] = {}
            self._verdicts = verdicts
        key = (target, asked, edits)
        known = self._verdicts.get(key)
        if known is None:
            known = self._verdicts[key] = _Verdict()
            self._known += 1
        tokens = record["input_tokens"]
        if tokens <= known.taken_to:
            return ""
        if known.reason:
            return known.reason
        if tokens < known.refused_from:
            # Asked with room to spare, so that the next one need not ask again.
            roomy = max(_SHORT_PROMPT, 1 << tokens.bit_length())
            if not self._ask(record, target, asked, edits, roomy):
                known.taken_to = roomy
                return ""
            if known.taken_to < 0:
                known.reason = self._ask(record, target, asked, edits, 0)
                if known.reason:
                    return known.reason
            if not self._ask(record, target, asked, edits, tokens):
                known.taken_to = tokens
                return ""
            known.refused_from = tokens
        return "the prompt may be too long for the context window"

    def _ask(
        self, record: Mapping[str, Any], target: str, asked: str | None, edits: tuple[str, ...], input_tokens: int
    ) -> str:
        model = self._catalog.find(target)
        if model is None:
            return f"model `{target}` is not in the catalogue"
        verdict = can_serve(
            rebuilt(_VIRTUAL if asked is None else asked, record),
            model,
            asked=None if asked is None else self._catalog.find(asked),
            api_version=_API_VERSION,
            betas=tuple(record["betas"]),
            input_tokens=input_tokens,
            edits=edits,
        )
        return "" if verdict.is_ok else verdict.reasons[0]


class Side:
    """One policy set against recorded requests. What it remembers is of bounded size and changes no answer."""

    def __init__(self, policies: PolicySet, catalog: Catalog, refusals: Refusals) -> None:
        self.policies = policies
        self._catalog = catalog
        self._asked = {name: RecordedPolicy(policy) for name, policy in policies.policies.items()}
        self._refusals = refusals
        self._revision = policies.revision
        # (policy, rule) → what the rule says of conversations, and whether it denies
        self._rules = {
            (name, rule.name): (rule.stick, rule.deny is not None)
            for name, policy in policies.policies.items()
            for rule in policy.rules
        }

    def forecast(
        self, seen: Recorded, record: Mapping[str, Any] | None, binding: Binding | str | None
    ) -> Forecast | str:
        """Where the request goes, or the name of what is missing to say so; what was done where this revision did it.

        `record` are the facts, None when they are not all there; `binding` is where the conversation is bound, a text
        when that is not known.
        """
        if seen.revision == self._revision:
            return self._served(seen)
        if record is None:
            return "facts"
        policy = self._asked.get(seen.policy)
        if policy is None:
            return _UNKNOWN_TARGET
        asked = seen.model_asked
        decision = policy.decide(record, asked, seen.conversation, seen.label, seen.lacking)
        if isinstance(decision, str):
            return decision
        if decision.deny is not None:
            return Forecast(decision.rule, "denied", "", "none")
        is_virtual = asked == _VIRTUAL or asked.startswith("lane:")
        route = decision.route
        if is_virtual and asked != _VIRTUAL:
            lane = self.policies.lanes.get(asked[5:])
            if lane is None or lane.model is None:
                return Forecast(decision.rule, "unknown target", "", "none")
            route = (lane,)
        else:
            named = self._named(seen, record, decision)
            if isinstance(named, str):
                return named
            if named is not None:
                route = (named, *(lane for lane in route if lane is not named))
            elif binding is not None and record["conversation"] != "new":
                if isinstance(binding, str):
                    if decision.stick in ("conversation", "economic"):
                        return EARLIER_TURN
                else:
                    route = self._held(seen, decision, binding, is_virtual)
        return self._walk(record, asked, decision, route, is_virtual)

    def _served(self, seen: Recorded) -> Forecast:
        """What this revision did, as recorded."""
        stick, denies = self._rules.get((seen.policy, seen.rule), ("conversation", False))
        if seen.model_sent:
            return Forecast(seen.rule, seen.lane, seen.model_sent, stick, seen.kept_out, is_recorded=True)
        lane = "denied" if denies else "unknown target" if seen.model_asked.startswith("lane:") else "ended early"
        return Forecast(seen.rule, lane, "", "none", seen.kept_out, is_recorded=True)

    def _named(self, seen: Recorded, record: Mapping[str, Any], decision: Decision) -> Lane | str | None:
        """The lane that the client named and may have; a text when a lane was named that is not recorded."""
        name = record.get(NAMED_LANE)
        if not isinstance(name, str):
            return None if name is None and not seen.has_named_lane else NAMED_LANE
        lane = self.policies.lanes.get(name.strip())
        return lane if lane is not None and lane in decision.offers else None

    def _model(self, lane_model: str | None, asked: str, is_virtual: bool) -> str:
        return lane_model or (self.policies.default_lane.model or "" if is_virtual else asked)

    def _held(self, seen: Recorded, decision: Decision, binding: Binding, is_virtual: bool) -> tuple[Lane, ...]:
        wanted = self._model(decision.route[0].model, seen.model_asked, is_virtual)
        if binding.model == wanted:  # what `hold` would say too, after more work
            return decision.route
        found = hold(
            decision,
            binding,
            wanted=wanted,
            asked=self._model(None, seen.model_asked, is_virtual),
            lanes=self.policies.lanes,
            catalog=self._catalog,
            now_s=seen.started_at_s,
            is_always_priced=False,
        )
        if found.lane is None:
            return decision.route
        return (found.lane, *(lane for lane in decision.route if lane != found.lane))

    def _walk(
        self,
        record: Mapping[str, Any],
        asked: str,
        decision: Decision,
        route: tuple[Lane, ...],
        is_virtual: bool,
    ) -> Forecast:
        rule, stick = decision.rule, decision.stick
        refused: tuple[tuple[str, str], ...] = ()
        for lane in route:
            model = self._model(lane.model, asked, is_virtual)
            if model != asked and asked != f"lane:{lane.name}":
                reason = self._refusals.reason(record, model, None if is_virtual else asked, decision.edits)
                if reason:
                    refused = (*refused, (lane.name, reason))
                    continue
            return Forecast(rule, lane.name, model, stick, refused)
        if is_virtual:
            default = self.policies.default_lane
            return Forecast(rule, default.name, default.model or "", stick, refused)
        return Forecast(rule, AS_ASKED_LANE.name, asked, stick, refused)


def rebuilt(model: str, record: Mapping[str, Any]) -> MessagesRequest:
    """The plainest request with these facts: what the facts do not tell is left out.

    A thinking budget, which some models demand, is the least that they take.
    """
    max_tokens = record["max_tokens"]
    if max_tokens is not None and not isinstance(max_tokens, int):
        max_tokens = _FAR_TOO_MANY
    content: list[dict[str, Any]] = [{"type": "text", "text": "x"}]
    content += [{"type": "image"}] * min(record["images"], _MOST_IMAGES)
    if record["documents"]:
        content.append({"type": "document"})
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": content}]}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if record["thinking"] is not None:
        body["thinking"] = {"type": record["thinking"]}
        if record["thinking"] == "enabled":
            body["thinking"]["budget_tokens"] = 1024
    if record["effort"] is not None or record["structured_output"]:
        body["output_config"] = {}
        if record["effort"] is not None:
            body["output_config"]["effort"] = record["effort"]
        if record["structured_output"]:
            body["output_config"]["format"] = {"type": "json_schema", "schema": {"type": "object"}}
    if record["tools"]:
        body["tools"] = [{"name": "x", "input_schema": {"type": "object"}}]
    if record["forced_tool"]:
        body["tool_choice"] = {"type": "any"}
    return MessagesRequest(b"", body, model, (0, 0), False, False)
