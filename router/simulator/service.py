"""The simulated API without its HTTP: who is calling, and what comes of a request."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers

from router.simulator import betas as b
from router.simulator.accepts import check_accepts
from router.simulator.call import Call
from router.simulator.course import Courses, rendered
from router.simulator.dice import Dice
from router.simulator.files import FileStore
from router.simulator.ledger import Arrivals, Ledger
from router.simulator.message import Outcome
from router.simulator.pace import NO_WAIT, Pace, pace_of
from router.simulator.promptcache import PromptCache
from router.simulator.record import load_roster
from router.simulator.refusal import Refusal
from router.simulator.settings import SimulatorSettings
from router.simulator.shape import check_shape
from router.simulator.thinking import Replay, check_replay
from router.simulator.tokens import prompt_tokens

INVALID_KEY = "sk-ant-invalid"
ORGANIZATION_KEY = "sk-ant-org-"  # `sk-ant-org-NAME-...` belongs to the organization NAME, every other key to `main`
NO_RETENTION_KEY = "sk-ant-zdr"  # an organization that keeps no data


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, and the headers that rule it. Organization and workspace are identifiers."""

    organization: str
    workspace: str
    version: str
    betas: frozenset[str]
    keeps_data: bool = True


class Simulator:
    """The state of one simulated API: caches, files, batches, ledger, and the requests that arrived."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        self.roster = load_roster()
        self.ledger = Ledger(self.roster)
        self.arrivals = Arrivals()
        self.cache = PromptCache()
        self.courses = Courses(settings, self.roster, self.cache)
        self.files = FileStore(settings)
        self._dice = Dice(settings.seed, "simulator")
        self._requests = 0

    def next_request_id(self) -> str:
        """A fresh `req_` identifier; the n-th of a run is always the same."""
        self._requests += 1
        return self._dice.token(f"request/{self._requests}", "req_")

    def authenticate(self, headers: Headers) -> tuple[str, str, bool]:
        """Organization, workspace and whether it keeps data; raises the 401 of a missing or refused key."""
        key = headers.get("x-api-key")
        if key is None:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            key = token.strip() if scheme.lower() == "bearer" else ""
        if not key.strip():
            raise Refusal("x-api-key header is required", 401)
        if key.startswith(INVALID_KEY):
            raise Refusal("invalid x-api-key", 401)
        name = key.removeprefix(ORGANIZATION_KEY).split("-")[0] if key.startswith(ORGANIZATION_KEY) else "main"
        organization = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
        grouped = "-".join(
            (organization[:8], organization[8:12], organization[12:16], organization[16:20], organization[20:])
        )
        return grouped, Dice("workspace", key).token("id", "wrkspc_"), not key.startswith(NO_RETENTION_KEY)

    def caller(self, headers: Headers) -> Caller:
        """The caller of a request; raises `Refusal` for the credential, the version or a beta."""
        organization, workspace, keeps_data = self.authenticate(headers)
        version = b.read_version(headers.get("anthropic-version"))
        return Caller(organization, workspace, version, b.read_betas(headers.getlist("anthropic-beta")), keeps_data)

    def limits(self) -> dict[str, str]:
        """The rate-limit headers of an answer: far from every limit."""
        reset = datetime.fromtimestamp(self.settings.clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        figures = {"requests": 10_000, "input-tokens": 10_000_000, "output-tokens": 2_000_000, "tokens": 12_000_000}
        headers = {}
        for name, limit in figures.items():
            headers[f"anthropic-ratelimit-{name}-limit"] = str(limit)
            headers[f"anthropic-ratelimit-{name}-remaining"] = str(limit - (1 if name == "requests" else 1_000))
            headers[f"anthropic-ratelimit-{name}-reset"] = reset
        return headers

    def call(
        self, body: Mapping[str, Any], caller: Caller, *, is_batch: bool = False, is_count: bool = False
    ) -> tuple[Call, Replay]:
        """Check a request as the API would; raises `Refusal`. Returns it with unreadable thinking taken out."""
        check_shape(body, caller.betas, caller.version, is_count=is_count)
        model = self.roster.usable(body["model"])
        if model.fields["requires_30_day_retention"] and not caller.keeps_data:
            raise Refusal(
                "In order to access this model, your organization or workspace must have data retention enabled."
            )
        today = datetime.fromtimestamp(self.settings.clock(), UTC).date()
        call = Call(body, model, caller.version, caller.betas, today, is_batch, is_count)
        check_accepts(call, self.roster)
        self.files.check_references(body, caller.workspace)
        return call, check_replay(call, self.roster, caller.organization)

    def run(self, body: Mapping[str, Any], caller: Caller, *, is_batch: bool = False) -> Outcome:
        """Answer a request; raises `Refusal`. Nothing is billed or cached yet."""
        call, replay = self.call(body, caller, is_batch=is_batch)
        return self.courses.run(call, replay, caller.organization, caller.workspace)

    def keep(self, outcome: Outcome, started_s: float) -> None:
        """Keep in the prompt cache what the calls of an answer wrote and read; called when the answer begins."""
        for iteration in outcome.iterations:
            self.cache.commit(iteration.plan, started_s)

    def bill(self, request_id: str, outcome: Outcome, output_tokens: float | None = None) -> None:
        """Book an answer; `output_tokens` is how far a stream got that was cut, None for a complete one."""
        usage = outcome.usage() if output_tokens is None else outcome.partial_usage(output_tokens)
        self.ledger.bill(
            request_id,
            outcome.call.model,
            usage,
            charges=[(ran.call.model, ran.charge()) for ran in outcome.charges(output_tokens)],
            message_id=outcome.answer.message_id,
            is_complete=output_tokens is None,
        )

    def count(self, body: Mapping[str, Any], caller: Caller) -> int:
        """The prompt tokens of a request; raises `Refusal` for what Messages would refuse."""
        call, replay = self.call(body, caller, is_count=True)
        return prompt_tokens(rendered(call, replay.body))

    def pace(self, outcome: Outcome, request_id: str) -> Pace:
        """How fast this answer is sent."""
        if self.settings.latency == "none":
            return NO_WAIT
        return pace_of(outcome, Dice(self.settings.seed, outcome.answer.message_id, request_id))
