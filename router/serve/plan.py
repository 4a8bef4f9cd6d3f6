"""Everything before the first wait: a body is read, inspected, decided on, checked against the models, and keyed.

No I/O happens here: bytes in, a `Plan` out, in tens of microseconds. It goes in two steps, because between them the
flow may have to ask where the conversation is bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import orjson

from router.affinity.binding import binding_keys
from router.affinity.thinking import thinking_keys
from router.cache.key import cache_key
from router.catalog.lookup import Catalog
from router.errors import DeniedByPolicy, UnknownTarget
from router.facts.inspect import Caller, Facts, inspect
from router.policy.compile import CompiledPolicy, PolicySet
from router.policy.decide import Decision, NeedsLabel, decide
from router.policy.written import CacheDirective
from router.seams import Binding, Label
from router.serve.attempts import Target
from router.serve.exchange import Exchange
from router.serve.headers import RawHeaders, upstream_headers
from router.serve.labels import RememberedLabels
from router.serve.route import Router
from router.value import value_class
from router.wire.messages import MessagesRequest, read_request

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


@value_class(frozen=True, slots=True)
class Understood:
    """A request read and decided on, before it is known where its conversation is bound.

    `is_new` says that there is no answer in it yet; then no binding is looked for.
    """

    request: MessagesRequest
    caller: Caller
    facts: Facts
    policies: PolicySet
    decision: Decision

    @property
    def is_new(self) -> bool:
        """Whether the conversation has no answer in it yet."""
        return self.facts.conversation == "new"

    def binding_keys(self) -> tuple[str, ...]:
        """Where the conversation's binding is kept."""
        return binding_keys(self.facts)

    def thinking_keys(self) -> tuple[str, ...]:
        """Where the producers of its thinking blocks are kept; none without a block, or when not all can be told."""
        raw = self.request.raw
        if b"thinking" not in raw:
            return ()
        return thinking_keys(self.facts.tenant, self.request.body) or ()


@value_class(frozen=True, slots=True)
class Plan:
    """A request understood and decided: what to send, where, and under which cache key.

    `fallbacks` are worked out only when the walk gets there. `headers` are those that go upstream. `cache_key` is None
    when the answer is not to be looked up or kept; `may_look_up` is False when the client wants a fresh answer that may
    be kept. `binding` is what the conversation was bound to.
    """

    request: MessagesRequest
    understood: Understood
    decision: Decision
    primary: Target
    fallbacks: Iterator[Target]
    binding: Binding | None
    headers: RawHeaders
    cache_key: str | None
    may_look_up: bool = True


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes plans. `calendar` gives the hour (0 to 23) and weekday (`mon`…) in UTC.

    `cache_secret` keys the cache keys; None where nothing is cached.
    """

    policies: PolicySource
    catalog: Catalog
    labels: RememberedLabels
    calendar: Callable[[], tuple[int, str]]
    cache_secret: bytes | None

    def understand(self, exchange: Exchange, *, needs_max_tokens: bool) -> Understood:
        """Read, inspect and decide; the trace is filled on the way.

        Raises InvalidRequest, UnknownTarget (no such policy) and DeniedByPolicy.
        """
        incoming, trace = exchange.incoming, exchange.trace
        request = read_request(incoming.body, needs_max_tokens=needs_max_tokens)
        trace.model_asked, trace.is_streaming = request.model, request.is_streaming
        at = exchange.span("parsed", 0.0)

        policies = self.policies.current
        trace.revision = policies.revision
        policy = policy_of(policies, incoming.policy)
        trace.policy = policy.name
        return self.judge(exchange, request, policies, policy, self.caller(exchange, policy.name), at)

    def judge(
        self,
        exchange: Exchange,
        request: MessagesRequest,
        policies: PolicySet,
        policy: CompiledPolicy,
        caller: Caller,
        at: float,
    ) -> Understood:
        """Inspect and decide on a request that was read by `at`. Raises DeniedByPolicy."""
        trace = exchange.trace
        facts = inspect(request, caller, self.catalog)
        exchange.facts, exchange.headers_read = facts, policy.headers_read
        trace.client, trace.conversation, trace.session = facts.client, facts.conversation_key, facts.session_key
        at = exchange.span("inspected", at)

        decision = self._decide(exchange, policy, facts, request)
        trace.rule, trace.why, trace.tags = decision.rule, decision.why, decision.tags
        exchange.span("decided", at)
        if decision.deny is not None:
            raise DeniedByPolicy(decision.deny)
        return Understood(request, caller, facts, policies, decision)

    def plan(
        self,
        exchange: Exchange,
        understood: Understood,
        binding: Binding | None,
        thinkers: tuple[str, ...],
        now_s: float,
    ) -> Plan:
        """The plan of a request whose conversation has this binding and the thinking of these models.

        `now_s` is Unix time.

        Raises UnknownTarget when the client names a lane that is not there.
        """
        request, caller = understood.request, understood.caller
        started_s = exchange.clock.now_s()
        router = Router(exchange, understood.policies, self.catalog, request, understood.facts, caller, thinkers)
        decision = router.named(understood.decision) or router.held(understood.decision, binding, now_s)
        trace = exchange.trace
        trace.why = decision.why
        route = router.targets(decision, binding)
        primary = next(route)
        trace.lane, trace.model_sent = primary.lane.name, primary.model
        exchange.span("checked", started_s)
        incoming, wishes = exchange.incoming, _wishes(caller)
        headers = upstream_headers(incoming.headers, incoming.credential, is_metered=True)
        key, adapted = None, primary.adapted or request
        trace.cache_reason = self._why_bypassed(decision.cache, adapted, wishes)
        is_cached = trace.endpoint == "messages" and not trace.cache_reason  # a count is never cached
        if decision.cache is not None and self.cache_secret is not None and is_cached:
            key = cache_key(
                adapted,
                scope=_scope(decision.cache, incoming.tenant),
                model=primary.model,
                target=incoming.target,
                headers=headers,
                secret=self.cache_secret,
            )
        return Plan(request, understood, decision, primary, route, binding, headers, key, wishes.isdisjoint(_FRESH))

    def item_key(
        self,
        request: MessagesRequest,
        caller: Caller,
        directive: CacheDirective,
        *,
        model: str,
        target: bytes,
        headers: RawHeaders,
    ) -> tuple[str | None, bool]:
        """The cache key that an item of a batch has as a request of its own (None: not cached), and `may_look_up`."""
        wishes = _wishes(caller)
        if self.cache_secret is None or self._why_bypassed(directive, request, wishes):
            return None, False
        scope = _scope(directive, caller.tenant)
        key = cache_key(request, scope=scope, model=model, target=target, headers=headers, secret=self.cache_secret)
        return key, wishes.isdisjoint(_FRESH)

    def caller(self, exchange: Exchange, policy: str) -> Caller:
        """What is known of a request besides its body."""
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

    def _decide(self, exchange: Exchange, policy: CompiledPolicy, facts: Facts, request: MessagesRequest) -> Decision:
        """The policy's decision; a label is made only when a rule that is reached asks for it."""
        decision = decide(policy, facts)
        if isinstance(decision, NeedsLabel):
            label = self._label(exchange, request)
            labelled = decide(policy, facts, label, label_failed=label is None)
            assert isinstance(labelled, Decision)
            decision = labelled
        return decision

    def _label(self, exchange: Exchange, request: MessagesRequest) -> Label | None:
        started_s = exchange.clock.now_s()
        try:
            label = self.labels.label(request, exchange.incoming.tenant)
        except Exception:  # a classifier's bug must cost a routing choice, not the request; `why` says it happened
            return None
        exchange.trace.labels = label.recorded()
        exchange.span("classified", started_s)
        return label

    def _why_bypassed(self, directive: CacheDirective | None, request: MessagesRequest, wishes: frozenset[str]) -> str:
        """Why the cache is not asked for this request, one of `trace.record.BYPASSES`; empty where it is."""
        if self.cache_secret is None:
            return "off"
        if directive is None:
            return "rule"
        if "no-store" in wishes:
            return "no-store"
        temperatures = directive.when_temperature
        if temperatures is not None and not temperatures.takes(request.body.get("temperature")):
            return "temperature"
        if not _UNCACHEABLE.isdisjoint(request.body):
            return "state"
        # As it was read, where it was written otherwise: a name may be spelled with escapes.
        plain = request.raw if request.is_compact else orjson.dumps(request.body)
        if b'"file_id"' in plain or b'"url"' in plain:
            return "reference"
        return "server-tool" if _has_server_tool(request.body.get("tools")) else ""


def policy_of(policies: PolicySet, name: str | None) -> CompiledPolicy:
    """The policy of that name; None: `default`. Raises UnknownTarget."""
    policy = policies.policies.get("default" if name is None else name)
    if policy is None:
        raise UnknownTarget(f"there is no policy `{name}`", hint="a policy is a file of its folder")
    return policy


def _scope(directive: CacheDirective, tenant: str) -> str:
    return "shared" if directive.scope == "shared" else "tenant:" + tenant


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
