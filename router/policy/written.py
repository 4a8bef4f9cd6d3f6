"""Policies, rules and lanes as written: what `parse` makes of a file and `compile` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from router.policy.source import Node, Source
from router.policy.temperature import Temperatures

Swap = Literal["strict", "adapt"]
Stick = Literal["conversation", "economic", "move", "none"]
OnTimeout = Literal["stop", "fallback"]
Deferring = Literal["allow", "deny", "require"]


@dataclass(frozen=True, slots=True)
class Lane:
    """A named target. `model` None is the lane `as-asked`: the model that the client asked for."""

    name: str
    model: str | None


@dataclass(frozen=True, slots=True)
class CacheDirective:
    """What a rule says of caching: seconds an answer lives, who shares it, the largest answer kept.

    `when_temperature` are the temperatures of the requests that it is for (None: all). `pace_s` is the time between
    two events of a replayed stream (0: sent at once). `is_coalescing` lets equal requests in flight share one upstream
    call. `in_batches`: it holds for items of Message Batches too.
    """

    ttl_s: float
    scope: Literal["tenant", "shared"]
    max_bytes: int
    when_temperature: Temperatures | None = None
    pace_s: float = 0.0
    is_coalescing: bool = True
    in_batches: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """What a rule says of further attempts: `times` that a lane may be asked again, all lanes of a request together.

    `on_timeout` is what follows when a lane did not begin its answer in time: `stop`, or `fallback` to the next lane,
    although the first one may have charged too.
    """

    times: int = 0
    on_timeout: OnTimeout = "stop"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a rule gives the phases of a call; None: as long as the router's own limit is."""

    connect_s: float | None = None
    first_byte_s: float | None = None
    idle_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class DeferredDirective:
    """What a rule says of answers that may come later, at half price (`Prefer: respond-async`).

    `mode` `allow`: who asks for it gets it; `deny`: nobody does; `require`: who does not ask is refused. `max_wait_s`
    is how long a request waits for company, `max_items` the most requests of one batch. After `real_time_after_s` a
    request that has no answer yet is answered in real time (None: never).
    """

    mode: Deferring = "allow"
    max_wait_s: float = 5.0
    max_items: int = 1000
    real_time_after_s: float | None = None


NO_RETRY = Retry()
OWN_TIMEOUTS = Timeouts()
DEFERRED_ALLOWED = DeferredDirective()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule as written; exactly one of `route`, `split` and `deny` is filled.

    `edits` are the names of the edits that `swap: adapt` may make (none for `strict`); `turns` is how soon
    `stick: economic` must earn back a switch.
    """

    name: str
    at: Node
    when: Node | None
    route: tuple[Node, ...]
    split: tuple[tuple[Node, int], ...]
    deny: str | None
    retry: Retry
    timeouts: Timeouts
    cache: CacheDirective | None
    swap: Swap
    edits: tuple[str, ...]
    stick: Stick
    turns: int
    deferred: DeferredDirective
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Test:
    """One example of a policy: a request or facts, and the rule and lane they must come to (None: not said)."""

    __test__ = False  # pytest would take the name for one of its own

    name: str
    at: Node
    request: Node | None
    given: Node | None
    rule: Node | None
    lane: Node | None


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy file as written."""

    name: str
    source: Source
    rules: tuple[Rule, ...]
    otherwise: tuple[Node, ...]
    tests: tuple[Test, ...]


@dataclass(frozen=True, slots=True)
class LaneEntry:
    """One lane as written: where, and the names of its model and of the lane to fall back on."""

    name: str
    at: Node
    model: Node
    fallback: Node | None


@dataclass(frozen=True, slots=True)
class Lanes:
    """`lanes.yaml` as written."""

    source: Source
    entries: tuple[LaneEntry, ...]
    default_lane: Node | None
