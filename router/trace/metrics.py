"""Traces as Prometheus metrics, in a registry of its own.

The request path pays for one append; every `_BATCH` traces, and whenever the metrics are asked for, the waiting ones
are added to plain sums and buckets. prometheus-client is only the writer of the text format: its own counters would
take a lock per number. Money is added up in pico-dollars and becomes dollars when it is shown.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from math import isinf

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from router.trace.genai_metrics import GenAiMetrics
from router.trace.money import METERED, Money
from router.trace.record import BATCH_ITEM, BYPASSES, UNSTORED, Trace
from router.trace.semconv import RELEASED, SECONDS, Names
from router.trace.series import OTHER, SERIES_MAX, Histogram, Labels, as_label, counter, tally
from router.trace.spans import Origin

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# The router's own part is a thousandth of the whole: the same shape, a hundred times finer.
OVERHEAD_SECONDS = tuple(0.0001 * 2**k for k in range(14))
_BATCH = 64
_QUEUE_MAX = 10_000
_REASONS = frozenset({"", *BYPASSES, *UNSTORED})
_REPLAYS = frozenset({"hit", "coalesced"})

NOWHERE = Origin("", "", 0)

Gauge = Callable[[], float | Mapping[str, float]]
Distribution = Callable[[], tuple[Mapping[float, int], float]]
"""How many measurements fell below each bound (and not below the one before), and the sum of all, both in seconds."""


class MetricsSink(Collector):
    """A `seams.TraceSink` that counts; `render()` gives the text format.

    `gauges` are read whenever the metrics are rendered: a number becomes `router_NAME`, a mapping one series for each
    `stat` in it; one that raises is left out and counted in `router_gauge_errors`. `distributions` are read likewise,
    and become histograms `router_NAME_seconds`. `revision` names the policy set in force, shown as
    `router_policy_info{revision="…"} 1`. `lanes` gives figures by lane and model, shown as
    `router_lane_breaker{lane="…",model="…",stat="…"}`. `names` are those of the `gen_ai` metrics, `origin` is their
    server.
    `is_known` says whether the catalogue has a model: such a name is a label of its own, always. Another one only once
    an upstream has reported usage for it, and while there are few; what else clients write as a model is `other`.
    `turned_away` gives requests by tenant and reason, shown as `router_turned_away_total{tenant="…",reason="…"}`.
    """

    def __init__(
        self,
        *,
        gauges: Mapping[str, Gauge] | None = None,
        distributions: Mapping[str, Distribution] | None = None,
        revision: Callable[[], str] | None = None,
        lanes: Callable[[], Mapping[tuple[str, str], Mapping[str, float]]] | None = None,
        turned_away: Callable[[], Mapping[tuple[str, ...], int]] | None = None,
        is_known: Callable[[str], bool] | None = None,
        names: Names = RELEASED,
        origin: Origin = NOWHERE,
    ) -> None:
        self._gauges = {} if gauges is None else gauges  # not copied: parts that are joined later add theirs
        self._distributions = dict(distributions or {})
        self._revision = revision
        self._lanes = lanes
        self._turned_away = turned_away
        self._is_known = is_known
        self._queue: deque[Trace] = deque()
        self._lock = threading.Lock()
        self._dropped = 0
        self._gauge_errors = 0
        self._requests: dict[tuple[str, ...], int] = {}
        self._tokens: dict[tuple[str, ...], int] = {}
        self._money: dict[str, Money] = {}  # by model
        self._attempts: dict[tuple[str, ...], int] = {}
        self._cache: dict[tuple[str, ...], int] = {}
        self._cache_saved_pusd: dict[str, int] = {}  # by model
        self._batch_lines: dict[tuple[str, ...], int] = {}
        self._duration = Histogram(SECONDS)
        self._ttft = Histogram(SECONDS)
        self._overhead = Histogram(OVERHEAD_SECONDS)
        self._genai = GenAiMetrics(names, origin)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def write(self, trace: Trace) -> None:
        """Take a finished trace: an append, and for every 64th trace a few microseconds for each that waits."""
        queue = self._queue
        if len(queue) < _QUEUE_MAX:
            queue.append(trace)
        else:
            self._dropped += 1
        if len(queue) >= _BATCH and self._lock.acquire(blocking=False):
            try:
                self._add_all()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Nothing is held open; the sums stay readable."""

    def render(self) -> bytes:
        """All metrics in the Prometheus text format 0.0.4, traces handed over until now included."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """No metric is announced before it is collected (so that making a sink reads no gauge)."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The families, for the registry."""
        with self._lock:
            self._add_all()
            families = [*self._counted(), *self._timed(), *self._genai.families()]
        yield from families
        yield from self._asked()

    def _add_all(self) -> None:
        queue = self._queue
        for _ in range(len(queue)):
            try:
                self._add(queue.popleft())
            except Exception:  # a sink: an odd record costs its own counts and nothing else
                self._dropped += 1

    def _add(self, trace: Trace) -> None:
        model = self._model(trace.model_sent, is_used=trace.usage is not None)
        tally(self._requests, (trace.endpoint, trace.outcome, trace.lane, model, trace.cache), 1)
        usage = trace.usage
        if usage is not None:
            tokens = usage.tokens
            for kind, count in (
                ("input", tokens.input),
                ("cache_read", tokens.cache_read),
                ("cache_write_5m", tokens.cache_write_5m),
                ("cache_write_1h", tokens.cache_write_1h),
                ("output", tokens.output),
            ):
                if count:
                    tally(self._tokens, (model, kind), count)
        money = self._money.get(model)
        if money is None:
            money = self._money[model] = Money()
        money.add(trace)
        self._add_cache(trace, model)
        if trace.endpoint == BATCH_ITEM:
            return  # worked on elsewhere: it has no duration here, no attempt and no call
        if trace.batch_lines is not None:
            for kind, count in trace.batch_lines.items():
                tally(self._batch_lines, (kind,), count)
        self._genai.add(trace, model)
        for attempt in trace.attempts:
            tally(self._attempts, (attempt.lane, attempt.outcome), 1)
        lane = (trace.lane,)
        self._duration.add(lane, trace.duration_s)
        self._overhead.add((), trace.overhead_s)
        if trace.ttft_s is not None:
            self._ttft.add(lane, trace.ttft_s)

    def _add_cache(self, trace: Trace, model: str) -> None:
        """What the cache did for a request; one that was refused before it came to the cache has no reason."""
        if trace.endpoint not in METERED or (trace.cache == "bypass" and not trace.cache_reason):
            return
        tally(self._cache, (trace.cache, trace.cache_reason if trace.cache_reason in _REASONS else OTHER), 1)
        if trace.cache in _REPLAYS and trace.saved_pusd is not None:
            self._cache_saved_pusd[model] = self._cache_saved_pusd.get(model, 0) + trace.saved_pusd

    def _model(self, name: str, *, is_used: bool) -> str:
        """The model as a label; a name that only a client knows, and one too many, is `other`."""
        if name in self._money:
            return name
        name = as_label(name)
        if not name or name in self._money:
            return name
        if self._is_known is not None:
            if self._is_known(name):
                return name
            if not is_used:
                return OTHER
        return name if len(self._money) < SERIES_MAX else OTHER

    def _breakers(self, lanes: Mapping[tuple[str, str], Mapping[str, float]]) -> Mapping[Labels, float]:
        """The figures by lane, model as a label, and stat; models that share one share its worst state and its sums."""
        found: dict[Labels, float] = {}
        for (lane, name), figures in lanes.items():
            model = as_label(name)
            if self._is_known is not None and model not in self._money and not self._is_known(model):
                model = OTHER
            for stat, figure in figures.items():
                labels = (lane, model, stat)
                before = found.get(labels, 0.0)
                found[labels] = max(before, figure) if stat == "state" else before + figure
        return found

    def _counted(self) -> Iterator[Metric]:
        yield counter(
            "router_requests",
            "Finished requests.",
            ("endpoint", "outcome", "lane", "model", "cache"),
            self._requests,
        )
        yield counter("router_tokens", "Tokens as the upstream reported them.", ("model", "kind"), self._tokens)
        models = self._money.items()
        for name, text, amount in (
            (
                "router_cost_usd",
                "What requests cost, in dollars; without those whose baseline is unknown.",
                "cost_pusd",
            ),
            ("router_baseline_usd", "What the same usage costs at the model asked for, in dollars.", "baseline_pusd"),
            (
                "router_cost_without_baseline_usd",
                "What is known of the cost of requests without a baseline, in dollars; in no other sum.",
                "cost_without_baseline_pusd",
            ),
        ):
            sums: dict[tuple[str, ...], float] = {(model,): getattr(money, amount) / 1e12 for model, money in models}
            yield counter(name, text, ("model",), sums)
        saved = GaugeMetricFamily("router_saved_usd", "Baseline less cost, in dollars; may fall.", labels=("model",))
        for model, money in models:
            saved.add_metric((model,), money.saved_pusd / 1e12)
        yield saved
        unknown: dict[tuple[str, ...], int] = {(model,): money.unknown for model, money in models}
        text = "Metered requests whose cost or baseline is unknown."
        yield counter("router_unknown_cost_requests", text, ("model",), unknown)
        yield counter("router_attempts", "Requests to lanes, by how they ended.", ("lane", "outcome"), self._attempts)
        yield counter(
            "router_cache_requests",
            "What the cache did, and why it was not asked or the answer not kept.",
            ("result", "reason"),
            self._cache,
        )
        text = "What hits and shared answers saved, in dollars; also part of router_saved_usd."
        cached = GaugeMetricFamily("router_cache_saved_usd", text, labels=("model",))
        for model, saved_pusd in self._cache_saved_pusd.items():
            cached.add_metric((model,), saved_pusd / 1e12)
        yield cached
        text = "Lines of batch results passed on, by the result; unmetered: what could not be read or booked."
        yield counter("router_batch_lines", text, ("kind",), self._batch_lines)
        yield CounterMetricFamily("router_metrics_dropped", "Traces that were not counted.", value=self._dropped)

    def _timed(self) -> Iterator[Metric]:
        yield self._duration.family(
            "router_request_duration_seconds",
            "From the last byte of the request to that of the answer.",
            ("lane",),
        )
        yield self._ttft.family("router_ttft_seconds", "To the first content delta relayed.", ("lane",))
        yield self._overhead.family("router_overhead_seconds", "The router's own part of the duration.", ())

    def _asked(self) -> Iterator[Metric]:
        for name, ask in self._gauges.items():
            try:
                value = ask()
            except Exception:  # a sink: one broken gauge must not hide the others
                self._gauge_errors += 1
                continue
            if isinstance(value, Mapping):
                family = GaugeMetricFamily(f"router_{name}", f"Figures of {name}.", labels=("stat",))
                for stat, figure in value.items():
                    family.add_metric((stat,), figure)
                yield family
            else:
                yield GaugeMetricFamily(f"router_{name}", f"The figure of {name}.", value=value)
        for name, measure in self._distributions.items():
            try:
                counts, sum_s = measure()
            except Exception:  # as above
                self._gauge_errors += 1
                continue
            running, buckets = 0, []
            for bound, count in counts.items():
                running += count
                buckets.append(("+Inf" if isinf(bound) else str(bound), running))
            timed = HistogramMetricFamily(f"router_{name}_seconds", f"How long {name} took.")
            timed.add_metric((), buckets, sum_s)
            yield timed
        if self._turned_away is not None:
            text = "Requests that were not let in, by tenant and reason."
            yield counter("router_turned_away", text, ("tenant", "reason"), self._turned_away())
        if self._lanes is not None:
            text = "Breakers: state (0 closed, 1 half open, 2 open), times opened, requests passed over, failures."
            breakers = GaugeMetricFamily("router_lane_breaker", text, labels=("lane", "model", "stat"))
            for labels, figure in self._breakers(self._lanes()).items():
                breakers.add_metric(labels, figure)
            yield breakers
        if self._revision is not None:
            info = GaugeMetricFamily("router_policy_info", "The policy set in force.", labels=("revision",))
            info.add_metric((self._revision(),), 1)
            yield info
        yield CounterMetricFamily("router_gauge_errors", "Gauges that could not be read.", value=self._gauge_errors)
