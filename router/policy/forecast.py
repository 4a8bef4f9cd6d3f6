"""What one policy set would have done with a recorded request: the lane, the refusals on the way, the price.

It walks as the router does: the rule's route, or the lane the client named, or the one the conversation is bound to;
lanes whose model would refuse the request are left out; at last the model asked for. The body is not there, so the
refusals are those that the facts can tell: the plainest request with these facts is put together and held against the
model. Prefill, sampling, thinking in the conversation and the like are not in the facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from router.affinity.binding import Binding
from router.affinity.economics import tokens_ratio
from router.affinity.keep import hold
from router.catalog.lookup import Catalog, Model, add_up
from router.classify.label import Label
from router.facts.inspect import Facts
from router.facts.vocabulary import FACTS, HEADER_PREFIX, LABEL_FACTS
from router.policy.compile import AS_ASKED_LANE, PolicySet
from router.policy.decide import Decision
from router.policy.unsure import RecordedPolicy
from router.policy.written import Lane
from router.swap.check import can_serve
from router.usage import Iteration, Tokens, Usage
from router.wire.messages import MessagesRequest

EARLIER_TURN = "an earlier turn"  # what is missing when a turn before could not be decided
NAMED_LANE = "header.x-router-lane"
_API_VERSION = "2023-06-01"  # it only matters for sampling parameters, which are not recorded
_FAR_TOO_MANY = 2**62  # what a count stands for that was too large for the trace store
_MOST_IMAGES = 5_000  # put into a rebuilt request; no model takes as many
_SHORT_PROMPT = 16_384  # tokens; what is asked first
_MOST_KEPT = 50_000  # answers of `can_serve` remembered
NEEDED = frozenset(
    {
        *(
            "input_tokens",
            "max_tokens",
            "thinking",
            "effort",
            "forced_tool",
            "structured_output",
            "images",
            "documents",
        ),
        *("tools", "betas", "conversation", "request_class"),
    }
)
"""Facts without which nothing can be said of a request's route."""
_FIELDS = frozenset(name for name in FACTS if name not in (*LABEL_FACTS, "code_share", "language"))


class Recorded(NamedTuple):
    """One request as its trace tells it, for `Comparison.add`.

    `facts` and `label` are None where none are recorded; `lacking` are the labels that a label leaves out.
    `is_answered` says that a whole answer was served, `has_named_lane` that the client asked for a lane by header.
    Money is pico-dollars, None where unknown; `started_at_s` is Unix time.
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


class Forecast(NamedTuple):
    """Where a request goes: `lane` and `model`, or a refusal (`denied`, `unknown target`) with an empty model.

    `refused` are the lanes left out on the way, each with the first reason.
    """

    rule: str
    lane: str
    model: str
    stick: str
    refused: tuple[tuple[str, str], ...] = ()


def facts_of(seen: Recorded, record: Mapping[str, Any]) -> Facts:
    """The facts as recorded; names that this version does not know are passed over."""
    plain = dict(record)
    headers = {}
    for name in record.keys() - _FIELDS:
        value = plain.pop(name)
        if name.startswith(HEADER_PREFIX) and value is not None:
            headers[name[len(HEADER_PREFIX) :]] = value
    facts = Facts(**plain)
    facts.headers = headers
    if "language" in record:
        facts._language, facts._has_language = record["language"], True
    if "code_share" in record:
        facts._code_share = record["code_share"]
    facts.requested_model = seen.model_asked  # recorded in full there
    facts._conversation_key = seen.conversation
    return facts


class _Verdict:
    """What is known of requests that differ in the length of the prompt only; `reason` is one against any of them."""

    __slots__ = ("reason", "refused_from", "taken_to")

    def __init__(self) -> None:
        self.reason = ""
        self.taken_to = -1
        self.refused_from = _FAR_TOO_MANY


class Side:
    """One policy set against recorded requests. What it remembers is of bounded size and changes no answer."""

    def __init__(self, policies: PolicySet, catalog: Catalog) -> None:
        self.policies = policies
        self._catalog = catalog
        self._asked = {name: RecordedPolicy(policy) for name, policy in policies.policies.items()}
        self._verdicts: dict[Any, _Verdict] = {}

    def forecast(
        self, seen: Recorded, record: Mapping[str, Any], facts: Facts, binding: Binding | str | None
    ) -> Forecast | str:
        """Where the request goes, or the name of what is missing to say so.

        `binding` is where the conversation is bound, a text when that is not known.
        """
        policy = self._asked.get(seen.policy)
        if policy is None:
            return Forecast("", "unknown target", "", "none")
        decision = policy.decide(record, facts, seen.label, seen.lacking)
        if isinstance(decision, str):
            return decision
        if decision.deny is not None:
            return Forecast(decision.rule, "denied", "", "none")
        asked = seen.model_asked
        is_virtual = asked == "auto" or asked.startswith("lane:")
        route = decision.route
        if asked.startswith("lane:"):
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
            elif facts.conversation != "new" and binding is not None:
                if isinstance(binding, str):
                    if decision.stick in ("conversation", "economic"):
                        return EARLIER_TURN
                else:
                    route = self._held(seen, decision, binding, is_virtual)
        return self._walk(seen, record, decision, route, is_virtual)

    def _named(self, seen: Recorded, record: Mapping[str, Any], decision: Decision) -> Lane | str | None:
        """The lane that the client named and may have; a text when a lane was named that is not recorded."""
        name = record.get(NAMED_LANE)
        if name is None:
            return NAMED_LANE if seen.has_named_lane else None
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
        )
        if found.lane is None:
            return decision.route
        return (found.lane, *(lane for lane in decision.route if lane != found.lane))

    def _walk(
        self,
        seen: Recorded,
        record: Mapping[str, Any],
        decision: Decision,
        route: tuple[Lane, ...],
        is_virtual: bool,
    ) -> Forecast:
        asked, rule, stick = seen.model_asked, decision.rule, decision.stick
        refused: tuple[tuple[str, str], ...] = ()
        for lane in route:
            model = self._model(lane.model, asked, is_virtual)
            if model != asked and asked != f"lane:{lane.name}":
                reason = self._refusal(seen, record, model, None if is_virtual else asked, decision.edits)
                if reason:
                    refused = (*refused, (lane.name, reason))
                    continue
            return Forecast(rule, lane.name, model, stick, refused)
        if is_virtual:
            default = self.policies.default_lane
            return Forecast(rule, default.name, default.model or "", stick, refused)
        return Forecast(rule, AS_ASKED_LANE.name, asked, stick, refused)

    def _refusal(
        self, seen: Recorded, record: Mapping[str, Any], target: str, asked: str | None, edits: tuple[str, ...]
    ) -> str:
        """Why a model must not get this request, as far as the facts tell; empty when it may.

        Answers are remembered by what they depend on. The length of the prompt is looked at apart: a longer one can
        only add a reason, so between what was taken and what was refused nothing need be asked again.
        """
        key = (
            target, asked, edits, record["max_tokens"], record["thinking"], record["effort"], record["forced_tool"],
            record["structured_output"], record["images"], record["documents"] > 0, record["tools"] > 0,
            tuple(record["betas"]),
        )  # fmt: skip
        tokens = record["input_tokens"]
        known = self._verdicts.get(key)
        if known is None:
            if len(self._verdicts) >= _MOST_KEPT:
                self._verdicts.clear()
            known = self._verdicts[key] = _Verdict()
        if tokens <= known.taken_to:
            return ""
        if known.reason:
            return known.reason
        if tokens < known.refused_from:
            # Asked with room to spare, so that the next one need not ask again.
            roomy = max(_SHORT_PROMPT, 1 << tokens.bit_length())
            if not self._ask(seen, record, target, asked, edits, roomy):
                known.taken_to = roomy
                return ""
            if known.taken_to < 0:
                known.reason = self._ask(seen, record, target, asked, edits, 0)
                if known.reason:
                    return known.reason
            if not self._ask(seen, record, target, asked, edits, tokens):
                known.taken_to = tokens
                return ""
            known.refused_from = tokens
        return "the prompt may be too long for the context window"

    def _ask(
        self,
        seen: Recorded,
        record: Mapping[str, Any],
        target: str,
        asked: str | None,
        edits: tuple[str, ...],
        input_tokens: int,
    ) -> str:
        model = self._catalog.find(target)
        if model is None:
            return f"model `{target}` is not in the catalogue"
        verdict = can_serve(
            rebuilt(seen.model_asked, record),
            model,
            asked=None if asked is None else self._catalog.find(asked),
            api_version=_API_VERSION,
            betas=tuple(record["betas"]),
            input_tokens=input_tokens,
            edits=edits,
        )
        return "" if verdict.is_ok else verdict.reasons[0]


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


def moved_usage(usage: Usage, source: str, target: str, catalog: Catalog, *, is_warm: bool, is_hour: bool) -> Usage:
    """A recorded usage of `source` as it may be on `target`: an estimate.

    Counts are converted between tokenizers, the answer is taken to be as long in words. Unless the conversation
    `is_warm` there, what was read from the provider's prompt cache is written anew (for an hour if `is_hour`); what is
    too short for a prompt cache there is paid in full. Of several calls in one request only the first finds it cold.
    """
    ratio = tokens_ratio(source, target, catalog)
    model = catalog.find(target)
    least = 0 if model is None else model.min_cacheable_tokens
    if not usage.iterations:
        top = _moved(usage.tokens, ratio, least, is_warm, is_hour)
        return Usage(top, 0, usage.web_searches, (), usage.service_tier, usage.geo, usage.speed)
    calls = list(usage.iterations)
    own = [at for at, call in enumerate(calls) if call.model is None or same_model(call.model, source, catalog)]
    is_first = True
    was_sum = add_up([call.tokens for call in calls if call.kind == "message"]) == usage.tokens
    for at in own:
        tokens = _moved(calls[at].tokens, ratio, least, is_warm or not is_first, is_hour)
        calls[at] = Iteration(calls[at].kind, calls[at].model, tokens)
        is_first = False
    if was_sum:
        top = add_up([call.tokens for call in calls if call.kind == "message"])
    else:
        top = _moved(usage.tokens, ratio, least, is_warm, is_hour)
    return Usage(top, 0, usage.web_searches, tuple(calls), usage.service_tier, usage.geo, usage.speed)


def _moved(tokens: Tokens, ratio: float, least: int, is_warm: bool, is_hour: bool) -> Tokens:
    input_, output = round(tokens.input * ratio), round(tokens.output * ratio)
    read = round(tokens.cache_read * ratio)
    five, hour = round(tokens.cache_write_5m * ratio), round(tokens.cache_write_1h * ratio)
    if read + five + hour < least:
        return Tokens(input_ + read + five + hour, 0, 0, 0, output)
    if not is_warm and read:
        if is_hour:
            read, hour = 0, hour + read
        else:
            read, five = 0, five + read
    return Tokens(input_, read, five, hour, output)


def same_model(one: str, other: str, catalog: Catalog) -> bool:
    """Whether two names (ids or aliases) are one model."""
    if one == other:
        return True
    known: Model | None = catalog.find(one)
    return known is not None and known is catalog.find(other)
