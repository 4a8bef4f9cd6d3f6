"""Everything before the first wait: a body is read, inspected, decided on, checked against the models, and keyed.

No I/O happens here: bytes in, a `Plan` out, in tens of microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from router.cache.key import cache_key
from router.catalog.lookup import Catalog, Model
from router.errors import DeniedByPolicy, UnknownTarget
from router.facts.inspect import Caller, Facts, inspect
from router.policy.compile import CompiledPolicy, PolicySet
from router.policy.decide import Decision, NeedsLabel, decide
from router.policy.written import Lane
from router.seams import Classifier, Label
from router.serve.attempts import Target
from router.serve.exchange import Exchange
from router.swap.check import can_serve
from router.wire.messages import MessagesRequest, read_request

_AS_ASKED = Lane("as-asked", None)

# Answers that depend on more than the request: state kept by the provider, or the world outside.
_UNCACHEABLE = frozenset(
    {"thread", "container", "mcp_servers", "fallback_credit_token", "context_management", "compaction", "diagnostics"}
)
_FRESH = frozenset({"no-cache", "refresh"})
_NO_WISHES: frozenset[str] = frozenset()
_SERVER_TOOLS = ("web_search", "web_fetch", "code_execution", "tool_search", "advisor", "mcp_toolset")


class PolicySource(Protocol):
    """Where the current policies come from; one read per request, so that a request sees one revision."""

    @property
    def current(self) -> PolicySet: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """A request understood and decided: what to send, where, and under which cache key.

    `fallbacks` are worked out only when the walk gets there. `cache_key` is None when the answer is not to be looked
    up or kept; `may_look_up` is False when the client wants a fresh answer that may be kept.
    """

    request: MessagesRequest
    decision: Decision
    primary: Target
    fallbacks: Iterator[Target]
    cache_key: str | None
    may_look_up: bool = True


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes plans. `calendar` gives the hour (0 to 23) and weekday (`mon`…) in UTC."""

    policies: PolicySource
    catalog: Catalog
    classifier: Classifier
    calendar: Callable[[], tuple[int, str]]
    has_cache: bool

    def plan(self, exchange: Exchange, *, needs_max_tokens: bool) -> Plan:
        """The plan of one request; the trace is filled on the way.

        Raises InvalidRequest, UnknownTarget (no such policy or lane) and DeniedByPolicy.
        """
        incoming, trace = exchange.incoming, exchange.trace
        request = read_request(incoming.body, needs_max_tokens=needs_max_tokens)
        trace.model_asked, trace.is_streaming = request.model, request.is_streaming
        at = exchange.span("parsed", 0.0)

        policies = self.policies.current
        trace.revision = policies.revision
        policy = policies.policies.get("default" if incoming.policy is None else incoming.policy)
        if policy is None:
            raise UnknownTarget(f"there is no policy `{incoming.policy}`", hint="a policy is a file of its folder")
        trace.policy = policy.name
        caller = self._caller(exchange, policy.name)
        facts = inspect(request, caller, self.catalog)
        exchange.facts, exchange.headers_read = facts, policy.headers_read
        trace.client, trace.conversation = facts.client, facts.conversation_key
        at = exchange.span("inspected", at)

        decision = self._decide(exchange, policies, policy, facts, request)
        trace.rule, trace.why, trace.tags = decision.rule, decision.why, decision.tags
        if decision.deny is not None:
            raise DeniedByPolicy(decision.deny)
        at = exchange.span("decided", at)

        route = self._route(exchange, decision, policies, request, facts, caller)
        primary = next(route)
        trace.lane, trace.model_sent = primary.lane.name, primary.model
        exchange.span("checked", at)
        wishes = _wishes(caller)
        key = None if "no-store" in wishes else self._cache_key(exchange, request, decision, primary, caller)
        return Plan(request, decision, primary, route, key, wishes.isdisjoint(_FRESH))

    def _caller(self, exchange: Exchange, policy: str) -> Caller:
        incoming = exchange.incoming
        headers: dict[str, str] = {}
        for raw_name, raw_value in incoming.headers:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value  # as RFC 9110, 5.3 joins them
        betas = headers.get("anthropic-beta", "")
        hour, weekday = self.calendar()
        return Caller(
            tenant=incoming.tenant,
            key=incoming.key,
            policy=policy,
            headers=headers,
            api_version=headers.get("anthropic-version", ""),
            betas=tuple([beta.strip() for beta in betas.split(",")]) if betas else (),
            hour=hour,
            weekday=weekday,
        )

    def _decide(
        self, exchange: Exchange, policies: PolicySet, policy: CompiledPolicy, facts: Facts, request: MessagesRequest
    ) -> Decision:
        """The policy's decision; a label is made only when a rule that is reached asks for it.

        With the virtual model `lane:NAME` the client names the route; the rule still says all else, `deny` included.
        Raises UnknownTarget when no lane has the name.
        """
        decision = decide(policy, facts)
        if isinstance(decision, NeedsLabel):
            label = self._label(exchange, request)
            labelled = decide(policy, facts, label, label_failed=label is None)
            assert isinstance(labelled, Decision)
            decision = labelled
        if request.model.startswith("lane:"):
            lane = policies.lanes.get(request.model[5:])
            if lane is None or lane.model is None:
                raise UnknownTarget(f"model: {request.model}", hint="the lanes are in `lanes.yaml`")
            decision = replace(decision, route=(lane,), why=(*decision.why, f"the client named the lane `{lane.name}`"))
        return decision

    def _label(self, exchange: Exchange, request: MessagesRequest) -> Label | None:
        started_s = exchange.clock.now_s()
        try:
            label = self.classifier.label(request.body)
        except Exception:  # a classifier's bug must cost a routing choice, not the request; `why` says it happened
            return None
        exchange.trace.labels = {
            "task": label.task,
            "difficulty": round(label.difficulty, 4),
            "confidence": round(label.confidence, 4),
            "p_hard": round(label.p_hard, 4),
        }
        exchange.span("classified", started_s)
        return label

    def _route(
        self,
        exchange: Exchange,
        decision: Decision,
        policies: PolicySet,
        request: MessagesRequest,
        facts: Facts,
        caller: Caller,
    ) -> Iterator[Target]:
        """The targets that may serve this request, in order; lanes that would refuse it are noted and left out.

        At last the model asked for, always: what works without the router works with it. A virtual model stands for
        the default lane.
        """
        asked_id = request.model
        default = policies.default_lane
        is_virtual = asked_id == "auto" or asked_id.startswith("lane:")
        asked: Model | None = None if is_virtual else self.catalog.find(asked_id)
        is_empty, has_asked = True, False
        for lane in decision.route:
            model_id = lane.model or (default.model if is_virtual else asked_id)
            assert model_id is not None  # a lane of the folder always names a model
            if model_id != asked_id and asked_id != f"lane:{lane.name}":
                reason = self._refusal(model_id, asked, request, facts, caller)
                if reason is not None:
                    exchange.refused.append(f"lane `{lane.name}` kept out: {reason}")
                    continue
            is_empty = False
            has_asked = has_asked or model_id == asked_id
            yield Target(lane, model_id)
        if is_virtual and is_empty:
            yield Target(default, default.model or "")
        elif not is_virtual and not has_asked:
            yield Target(_AS_ASKED, asked_id)

    def _refusal(
        self, model_id: str, asked: Model | None, request: MessagesRequest, facts: Facts, caller: Caller
    ) -> str | None:
        """Why a model must not get this request in place of the one asked for; None when it may."""
        model = self.catalog.find(model_id)
        if model is None:
            return f"model `{model_id}` is not in the catalogue"
        verdict = can_serve(
            request,
            model,
            asked=asked,
            api_version=caller.api_version,
            betas=caller.betas,
            input_tokens=facts.input_tokens,
        )
        return None if verdict.is_ok else "; ".join(verdict.reasons)

    def _cache_key(
        self, exchange: Exchange, request: MessagesRequest, decision: Decision, primary: Target, caller: Caller
    ) -> str | None:
        directive = decision.cache
        if directive is None or not self.has_cache or not _UNCACHEABLE.isdisjoint(request.body):
            return None
        if b'"file_id"' in request.raw or b'"url"' in request.raw or _has_server_tool(request.body.get("tools")):
            return None
        return cache_key(
            request,
            tenant="shared" if directive.scope == "shared" else "tenant:" + exchange.incoming.tenant,
            model=primary.model,
            api_version=caller.api_version,
            betas=caller.betas,
            workspace=caller.headers.get("anthropic-workspace-id", ""),
        )


def _wishes(caller: Caller) -> frozenset[str]:
    """What the client's `x-router-cache` header asks for: a comma-separated list, as cache directives are."""
    value = caller.headers.get("x-router-cache")
    return frozenset(word.strip().lower() for word in value.split(",")) if value else _NO_WISHES


def _has_server_tool(tools: object) -> bool:
    """Whether a tool runs at the provider: its results are of their day."""
    return isinstance(tools, list) and any(
        isinstance(tool, dict) and isinstance(tool.get("type"), str) and tool["type"].startswith(_SERVER_TOOLS)
        for tool in tools
    )
