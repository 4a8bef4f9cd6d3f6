"""Where the wings meet: settings in, a running router out. The only place that joins adapters to the flow."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from router.cache.desk import CacheDesk, kind_of
from router.capture_file import open_capture
from router.catalog.lookup import Catalog
from router.catalog_file import load_catalog
from router.classify.model import LinearClassifier
from router.deferring import open_lane, open_webhooks
from router.doorkeeper import checked_ties, client_keys, doorkeeper
from router.errors import SettingsError
from router.fleet import open_fleet, policy_history
from router.log import report
from router.otel import open_otlp, origin_of
from router.overload import open_overload
from router.policy.check import compile_folder
from router.policy.compile import PolicySet
from router.policy.store import PolicyStore
from router.seams import Deadlines, TraceSink, Upstream
from router.serve.attempts import Means
from router.serve.batches import Batches
from router.serve.breaker import Breakers
from router.serve.budget import RetryBudget
from router.serve.headers import Credential
from router.serve.labels import RememberedLabels
from router.serve.parts import Parts
from router.serve.passthrough import Passthrough
from router.serve.pipeline import Pipeline
from router.serve.plan import Planner
from router.serve.refresh import ModelRefresh
from router.settings import Settings, keep_alive_s, refresh_s, traces_keep_s
from router.sources import Calendar, TraceIds
from router.stores import cache_secret, maintained, open_stores
from router.trace.again import decide_again
from router.trace.items import BatchItems
from router.trace.metrics import MetricsSink
from router.trace.reader_child import ProcessDesk
from router.trace.recent import RecentTraces
from router.trace.semconv import SEMCONV
from router.trace.sqlite import SqliteTraceSink, open_sink, path_of
from router.trace.upkeep import Retention
from router.upstream.http1 import Http1Upstream
from router.web.admin import AdminServices, create_admin
from router.web.api import Api, ApiServices
from router.web.http.lobby import Lobby
from router.web.status import StatusServices

_log = logging.getLogger("router")

_FOLLOWERS_S = 1.0  # for what follows the policies and the models, at a stop
_NO_LISTENER: Mapping[str, int] = {"open": 0, "accepted": 0, "refused": 0}


class App:
    """A router made of its parts: `api` and `admin` are ASGI applications, `start` and `stop` frame their life.

    Making one loads the policies. `environment` holds the `OTEL_*` variables; None: the process's own. Raises
    PolicyError, SettingsError or CatalogError when it could not serve.
    """

    def __init__(self, settings: Settings, environment: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self.catalog = load_catalog(Path(settings.catalog) if settings.catalog else None)
        self.classifier = shipped_classifier(settings.classifier_correction)
        compile_set = partial(
            compile_folder, catalog=self.catalog, classify=self.classifier.label, folder=settings.policies
        )
        self._is_serving = False
        self.listener: Callable[[], Mapping[str, int]] = lambda: _NO_LISTENER  # figures of whoever serves `api`
        ring = client_keys(settings)
        self._ties: tuple[tuple[str, str], ...] = ()  # names of keys with a policy of their own, and of that policy
        self.policies = PolicyStore(
            Path(settings.policies), compile_set, observe=self._say_reload, history=policy_history(settings)
        )
        _say_warnings(self.policies.load())
        if self.policies.status()["from_history"]:
            _log.error(
                "policies: `%s` is broken; revision %s from the history serves until it is repaired",
                settings.policies,
                self.policies.current.revision,
            )
        self._ties = checked_ties(settings, ring, self.policies.current.policies)
        self.stores = open_stores(settings)
        cache = self.stores.cache
        self.fleet = open_fleet(settings, self.stores.links, self.policies, compile_set)
        self.upstream = Http1Upstream(settings.upstream_url, takes_private=settings.upstream_private == "allow")
        self.retry_budget = RetryBudget(time.monotonic)
        self.breakers = Breakers(time.monotonic, random.random, _say_breaker)
        self.overload = open_overload(settings)
        self.capture = open_capture(settings)
        self.otlp = open_otlp(settings, os.environ if environment is None else environment, version("model-router"))
        self.traces: SqliteTraceSink | None = open_sink(
            settings.traces, Retention(traces_keep_s(settings), settings.traces_max_mb * 1_000_000)
        )
        trace_file = path_of(settings.traces)
        self.desk = None if trace_file is None else ProcessDesk(trace_file)
        self.refresh = _model_refresh(settings, self.upstream, self.catalog)
        self._refreshing: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        gauges: dict[str, Callable[[], Mapping[str, int]]] = {
            "upstream_pool": self.upstream.stats,
            "policies": self._policy_figures,
            "fleet": self.fleet.stats,
            "listener": self._listener_figures,
            "retry_budget": self.retry_budget.stats,
            "admission": self.overload.figures,
        }
        if cache is not None:
            gauges["cache"] = cache.stats
            gauges["flights"] = self._flight_figures
        gauges |= self.stores.gauges()
        if self.stores.affinity is not None:
            gauges["affinity"] = self.stores.affinity.stats
        gauges["batch_decisions"] = self.stores.decisions.stats
        if self.refresh is not None:
            gauges["models_refresh"] = self.refresh.stats
        if self.traces is not None:
            gauges["traces"] = self.traces.stats
        if self.desk is not None:
            gauges["trace_reader"] = self.desk.stats
        if self.otlp is not None:
            gauges["otlp"] = self.otlp.stats
        if self.capture is not None:
            gauges["capture"] = self.capture.stats
        rest_s = keep_alive_s(settings)
        self.lobbies = {n: Lobby(report=report, keep_alive_s=rest_s) for n in ("connections", "admin_connections")}
        gauges |= {name: lobby.stats for name, lobby in self.lobbies.items()}
        self.recent = RecentTraces()
        self.metrics = MetricsSink(
            gauges=gauges,
            distributions={name: link.latencies for name, link in self.stores.links.items()},
            revision=lambda: self.policies.current.revision,
            lanes=self._lane_figures,
            is_known=lambda name: self.catalog.find(name) is not None,
            turned_away=lambda: self.overload.admission.turned_away,
            names=SEMCONV[settings.otel_semconv],
            origin=origin_of(settings.upstream_url),
        )
        sinks: tuple[TraceSink | None, ...] = (
            self.traces,
            self.metrics,
            self.recent,
            self.otlp,
            self.overload.failures,
            self.stores.fleet_traces,
        )
        planner = Planner(
            self.policies,
            self.catalog,
            RememberedLabels(self.classifier),
            Calendar(time.time),
            cache_secret=None if cache is None else cache_secret(settings),
        )
        parts = Parts(
            planner=planner,
            catalog=self.catalog,
            cache=cache,
            affinity=self.stores.affinity,
            means=Means(self.upstream, random.random, self.retry_budget, self.breakers),
            deadlines=Deadlines(),
            sinks=tuple(sink for sink in sinks if sink is not None),
            items=BatchItems(self.traces, (self.metrics, self.recent)),
            wall_clock=time.time,
            content=self.capture,
            open_book=self.traces,
            sends_trace_context=settings.trace_context_out == "on",
            report=report,
            decisions=self.stores.decisions,
            holds_key=ring is not None,
        )
        self.overload.shedding.sinks = parts.sinks
        passthrough = Passthrough(parts, self.policies, settings.public_url)
        self.deferred = open_lane(
            settings,
            self.stores.jobs,
            parts,
            passthrough,
            self.upstream,
            open_webhooks(settings),
            None if self.traces is None else self.traces.flush,
        )
        if self.deferred is not None:
            gauges |= self.deferred.gauges
        lane = self.deferred if settings.deferred == "on" else None  # what was taken goes on all the same
        self.pipeline = Pipeline(parts, None if lane is None else lane.deferral)
        self.api = Api(
            ApiServices(
                pipeline=self.pipeline,
                passthrough=passthrough,
                batches=Batches(parts, passthrough),
                identify=doorkeeper(settings, ring),
                new_trace_id=TraceIds(os.urandom),
                monotonic=time.perf_counter,
                wall_clock_ns=time.time_ns,
                report=report,
                admission=self.overload.admission,
                shedding=self.overload.shedding,
                deferral=None if self.deferred is None else self.deferred.deferral,
                is_trace_continued=settings.trace_context == "continue",
            )
        )
        self.admin = create_admin(
            AdminServices(
                readiness=self._readiness,
                metrics=self.metrics.render,
                policy_status=self._policy_status,
                desk=self.desk,
                flush=partial(self.traces.flush, 1.0) if self.traces is not None else None,
                decide_now=self._decide_now if trace_file is not None else None,
                fleet=self.stores.fleet_reader,
                admin_token=settings.admin_token,
                version=version("model-router"),
                is_draining=self._stopping.is_set,
                cache=CacheDesk(kind_of(settings.cache), maintained(settings, cache), self.catalog),
                status=self._status_services(gauges),
            )
        )

    def _status_services(self, gauges: Mapping[str, Callable[[], Mapping[str, int]]]) -> StatusServices:
        settings = self.settings
        return StatusServices(
            readiness=self._readiness,
            policy_status=self._policy_status,
            recent=self.recent.figures,
            gauges=lambda: {name: ask() for name, ask in gauges.items()},
            now_ns=time.time_ns,
            links=tuple(self.stores.links),
            breakers=lambda: [state.shown() for state in self.breakers.states()],
            cache_kind=kind_of(settings.cache),
            capture=settings.capture,
            version=version("model-router"),
            started_at_ns=time.time_ns(),
            content=None if self.capture is None else self.capture.read,
            has_token=settings.admin_token is not None,
        )

    def _decide_now(self, shown: Mapping[str, Any]) -> Mapping[str, Any] | None:
        trace_file = path_of(self.settings.traces)
        assert trace_file is not None  # the listener shows traces only where they are kept
        return decide_again(shown, trace_file, lambda: self.policies.current, self.catalog)

    def _say_reload(self, was_taken: bool, outcome: str) -> None:
        if not was_taken:
            extra = {"event": "policies_refused", "is_block": True}
            _log.error("policies: refused, the last good set keeps serving\n%s", outcome, extra=extra)
            return
        _log.info("policies: revision %s is in force", outcome, extra={"event": "policies_in_force"})
        if self._is_serving:
            _say_warnings(self.policies.current)
        for key, policy in self._ties:
            if policy not in self.policies.current.policies:
                _log.warning(
                    "policies: the key `%s` is tied to the policy `%s`, which is gone: it gets 404", key, policy
                )

    async def start(self) -> None:
        """Begin to watch the policies; from now on `/readyz` answers 200."""
        if self.stores.cache is not None:
            await self.stores.cache.start()
        self.overload.start()
        await self.fleet.start()
        self._watch = asyncio.get_running_loop().create_task(self.fleet.run(self._stopping))
        if self.refresh is not None:
            self._refreshing = asyncio.get_running_loop().create_task(self.refresh.run(self._stopping))
        if self.deferred is not None:
            self.deferred.start()
        self._is_serving = True

    def drain(self) -> None:
        """No longer ready; what is under way goes on."""
        self._is_serving = False
        self._stopping.set()
        if self.deferred is not None:
            self.deferred.keeper.drain()

    async def stop(self) -> None:
        """Let everything go; what was traced is in the store when this returns."""
        self.drain()
        if following := [task for task in (self._watch, self._refreshing) if task is not None]:
            ended, late = await asyncio.wait(following, timeout=_FOLLOWERS_S)
            for task in ended:
                if not task.cancelled() and (error := task.exception()) is not None:
                    report("", error)
            for task in late:
                _log.warning("stopping: the policies folder or the list of models does not answer; left behind")
                task.cancel()
        self.overload.stop()
        try:
            if self.deferred is not None:
                await self.deferred.close()
            await self.pipeline.close()
            await self.upstream.close()
            await self.stores.close()
        finally:
            # side by side: a reading process that will not end must not take the time of what is to be written
            sinks = [sink.close for sink in (self.traces, self.capture, self.otlp) if sink is not None]
            closing = [asyncio.to_thread(close) for close in sinks]
            await asyncio.gather(*closing, *(() if self.desk is None else (self.desk.close(),)))

    def _listener_figures(self) -> Mapping[str, int]:
        return self.listener()

    def _lane_figures(self) -> Mapping[tuple[str, str], Mapping[str, int]]:
        return {(state.lane, state.model): state.figures() for state in self.breakers.states()}

    def _flight_figures(self) -> Mapping[str, int]:
        return self.pipeline.stats()

    def _policy_figures(self) -> Mapping[str, int]:
        status = self.policies.status()
        history = status["history_store"]
        return {
            "is_current": int(status["is_current"]),
            "from_history": int(status["from_history"]),
            "reloads": status["reloads"],
            "reload_failures": status["failures"],
            "warnings": len(status["warnings"]),
            "history_failures": 0 if history is None else history["failures"],
        }

    def _policy_status(self) -> Mapping[str, Any]:
        models = None if self.refresh is None else self.refresh.status()
        return {**self.policies.status(), "fleet": self.fleet.status(), "models": models}

    def _readiness(self) -> tuple[bool, Mapping[str, Any]]:
        return self._is_serving and not self.overload.is_starved, {
            "revision": self.policies.current.revision,
            "serving": self._is_serving,
            "draining": self._stopping.is_set(),
            "is_short_of_memory": self.overload.is_starved,
        }


def shipped_classifier(correction: str | None = None) -> LinearClassifier:
    """The classifier with the weights of the package, and the owner's correction where a file names one."""
    fitted = None
    if correction is not None:
        try:
            fitted = Path(correction).read_bytes()
        except OSError as exc:
            raise SettingsError(
                f"`classifier_correction` cannot be read: `{correction}`: {exc.strerror}",
                hint="`router classify train` writes one",
            ) from exc
    return LinearClassifier(files("router").joinpath("data/classifier.bin").read_bytes(), fitted)


def _say_warnings(policies: PolicySet) -> None:
    for warning in policies.warnings:
        _log.warning("policies: %s", warning.render())


def _model_refresh(settings: Settings, upstream: Upstream, catalog: Catalog) -> ModelRefresh | None:
    """What keeps the catalogue's facts fresh; None where that is off. Raises SettingsError."""
    every_s = refresh_s(settings)
    if every_s is None or settings.upstream_api_key is None:
        return None
    credential = Credential(b"x-api-key", settings.upstream_api_key.encode())
    return ModelRefresh(upstream, catalog, credential, every_s, wall_clock=time.time, observe=_say_refresh)


def _say_breaker(lane: str, model: str, left: str, state: str) -> None:
    level = logging.WARNING if state == "open" else logging.INFO
    _log.log(level, "breaker: lane `%s`, model `%s`: %s, was %s", lane, model[:100], state, left)


def _say_refresh(is_ok: bool, text: str) -> None:
    if is_ok:
        _log.info("models: refreshed: %s", text)
    else:
        _log.error("models: not refreshed, what was known stays in force: %s", text)


__all__ = ["App", "Calendar", "Catalog", "shipped_classifier"]
