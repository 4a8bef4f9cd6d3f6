"""From measured figures to a fleet: pods, Redis, traces and model cost of so many requests a day. Pure arithmetic.

What a process costs was measured (`bench/sizing_runs.py`, kept in `bench/sizing.json`). What the traffic is like is
said (`Workload`), and so is how full a pod may be (`Room`). There is no figure here that is in none of those three.
`bench/sizing_tables.py` writes the results down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

DAY_S = 86_400
EVENTS_MEASURED = 106  # of the stream whose CPU was measured
REQUEST_BYTES_MEASURED = 2_048  # of the deferred request whose memory was measured
FLEET_TRACES = 10_000  # that Redis keeps, however many come
ANSWER_DAYS = 7  # that the answer of a deferred request is kept
DEFERRED_ROWS = 3  # traces of a deferred request: the 202, one look for the answer, the item itself

# (model, whether at the price of a batch) → pico-dollars of one request of the workload
Price = Callable[[str, bool], int]


@dataclass(frozen=True)
class Measured:
    """Of one process in a fleet: cache, conversations, recent traces and jobs in Redis, trace store on disk."""

    plain_cpu_us: float
    stream_cpu_us: float
    hit_cpu_us: float
    deferred_cpu_us: float
    redis_plain_cpu_us: float
    redis_hit_cpu_us: float
    start_mb: float
    stream_kb: float
    plain_entry_bytes: float
    stream_entry_bytes: float
    conversation_bytes: float
    fleet_trace_bytes: float
    waiting_job_bytes: float
    ended_job_bytes: float
    trace_bytes: float


@dataclass(frozen=True)
class Workload:
    """The traffic. Shares are of 1. `asked` are the models that clients name; `small` is where easy work goes.

    `moved` is the share of requests for another model that go to `small`, `raised` the share of those for `small` that
    go to `raised_to`. `hits` and `cacheable` are of the requests that do not wait; hits save the price of `small`, as
    the shipped policy caches what it sends there. Raises ValueError where shares do not fit each other.
    """

    requests_per_day: float
    peak_factor: float = 3.0
    streamed: float = 0.7
    stream_s: float = 20.0
    events: float = 300.0
    cacheable: float = 0.3
    hits: float = 0.1
    ttl_s: float = 3_600.0
    deferred: float = 0.05
    batch_s: float = 3_600.0
    turns: float = 5.0
    prompt_tokens: int = 2_000
    answer_tokens: int = 300
    bytes_per_token: float = 4.0
    compressed: float = 0.6
    moved: float = 0.35
    raised: float = 0.05
    asked: Mapping[str, float] = field(
        default_factory=lambda: {"claude-sonnet-5-5": 0.6, "claude-opus-5-5": 0.15, "claude-haiku-5-5": 0.25}
    )
    small: str = "claude-haiku-5-5"
    raised_to: str = "claude-sonnet-5-5"

    def __post_init__(self) -> None:
        for name in ("streamed", "cacheable", "hits", "deferred", "compressed", "moved", "raised"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: expected a share, 0 to 1")
        if self.hits > self.cacheable:
            raise ValueError(f"`hits` is {self.hits}: expected at most `cacheable`, {self.cacheable}")
        if not math.isclose(sum(self.asked.values()), 1):
            raise ValueError(f"the shares of `asked` come to {sum(self.asked.values())}: expected 1")
        for each in fields(self):
            if each.type in ("float", "int") and getattr(self, each.name) < 0:
                raise ValueError(f"`{each.name}` is below 0")
        if self.requests_per_day <= 0 or self.peak_factor < 1 or self.turns < 1:
            raise ValueError("expected some requests a day, `peak_factor` and `turns` of at least 1")


@dataclass(frozen=True)
class Room:
    """What a pod has and how full it may be, as the chart's values have it. Prices of machines are what you pay."""

    cores: float = 1.0
    busy: float = 0.6
    memory_mb: float = 1_536.0
    memory_busy: float = 0.7
    near_mb: float = 64.0
    spare: int = 1
    redis_factor: float = 1.5
    traces_max_mb: float = 2_048.0
    core_hour_usd: float = 0.05
    redis_gib_hour_usd: float = 0.02


@dataclass(frozen=True)
class Plan:
    """What comes of it. Rates are of the busiest minute; bytes of Redis have its reserve in them; money is a day's."""

    mean_rate: float
    peak_rate: float
    request_cpu_us: float
    stream_cpu_us: float
    peak_cores: float
    open_streams: float
    streams_per_pod: int
    pods_for_cpu: int
    pods_for_streams: int
    pods: int
    redis_cores: float
    entries: float
    entries_bytes: float
    conversations: float
    conversations_bytes: float
    fleet_traces_bytes: float
    redis_bytes: float
    waiting_jobs: float
    ended_jobs: float
    jobs_bytes: float
    trace_rows: float
    trace_bytes: float
    trace_days: float
    as_asked_usd: float
    routed_usd: float
    cached_usd: float
    paid_usd: float
    machines_usd: float


def plan(load: Workload, one: Measured, price: Price, room: Room | None = None) -> Plan:
    """The fleet for a workload. Raises ValueError where a pod has no memory left for a stream."""
    room = room or Room()
    mean, now, later = load.requests_per_day / DAY_S, 1 - load.deferred, load.deferred
    peak = mean * load.peak_factor
    hit, miss = now * load.hits, now * (1 - load.hits)

    per_event_us = (one.stream_cpu_us - one.plain_cpu_us) / EVENTS_MEASURED
    stream_us = one.plain_cpu_us + per_event_us * load.events
    cpu_us = miss * ((1 - load.streamed) * one.plain_cpu_us + load.streamed * stream_us)
    cpu_us += hit * one.hit_cpu_us + later * one.deferred_cpu_us
    peak_cores = peak * cpu_us / 1e6
    open_streams = peak * miss * load.streamed * load.stream_s
    left_mb = room.memory_mb * room.memory_busy - one.start_mb - room.near_mb
    if left_mb <= 0:
        raise ValueError(f"`memory_mb` is {room.memory_mb}: nothing is left for streams")
    streams_per_pod = int(left_mb * 1024 / one.stream_kb)
    pods_for_cpu = math.ceil(peak_cores / (room.cores * room.busy))
    pods_for_streams = math.ceil(open_streams / streams_per_pod)
    pods = max(pods_for_cpu, pods_for_streams) + room.spare

    # The busiest minute is taken to last as long as an entry lives: a cache is as large as its busiest time.
    entries = peak * now * (load.cacheable - load.hits) * load.ttl_s
    entry = entry_bytes(load, one)
    conversations = load.requests_per_day * now / load.turns  # kept for a day after the last answer
    traces = min(FLEET_TRACES, load.requests_per_day * 7) * one.fleet_trace_bytes
    sizes = [entries * entry, conversations * one.conversation_bytes, traces]
    request_more = max(0.0, load.prompt_tokens * load.bytes_per_token - REQUEST_BYTES_MEASURED)
    waiting, ended = peak * later * load.batch_s, load.requests_per_day * later * ANSWER_DAYS
    jobs = waiting * (one.waiting_job_bytes + request_more) + ended * one.ended_job_bytes
    redis_bytes, jobs_bytes = sum(sizes) * room.redis_factor, jobs * room.redis_factor

    rows = load.requests_per_day * (now + DEFERRED_ROWS * later)
    kept_bytes = room.traces_max_mb * 2**20 * pods
    as_asked, routed, cached, paid = _money(load, price)
    gib = (redis_bytes + jobs_bytes) / 2**30
    return Plan(
        mean_rate=mean, peak_rate=peak, request_cpu_us=cpu_us, stream_cpu_us=stream_us, peak_cores=peak_cores,
        open_streams=open_streams, streams_per_pod=streams_per_pod, pods_for_cpu=pods_for_cpu,
        pods_for_streams=pods_for_streams, pods=pods,
        redis_cores=peak * (miss * one.redis_plain_cpu_us + hit * one.redis_hit_cpu_us) / 1e6,
        entries=entries, entries_bytes=sizes[0], conversations=conversations, conversations_bytes=sizes[1],
        fleet_traces_bytes=sizes[2], redis_bytes=redis_bytes, waiting_jobs=waiting, ended_jobs=ended,
        jobs_bytes=jobs_bytes, trace_rows=rows, trace_bytes=rows * one.trace_bytes,
        trace_days=kept_bytes / (rows * one.trace_bytes), as_asked_usd=as_asked, routed_usd=routed,
        cached_usd=cached, paid_usd=paid,
        machines_usd=24 * (pods * room.cores * room.core_hour_usd + gib * room.redis_gib_hour_usd),
    )  # fmt: skip


def entry_bytes(load: Workload, one: Measured) -> float:
    """A cached answer in Redis. Those that were measured repeat one word, so their text weighs nothing, compressed."""
    text = load.answer_tokens * load.bytes_per_token * load.compressed
    return load.streamed * one.stream_entry_bytes + (1 - load.streamed) * one.plain_entry_bytes + text


def sent(load: Workload) -> dict[str, float]:
    """Which models the router sends to, and the share of each."""
    shares: dict[str, float] = {}
    for model, share in load.asked.items():
        to, part = (load.raised_to, load.raised) if model == load.small else (load.small, load.moved)
        shares[model] = shares.get(model, 0.0) + share * (1 - part)
        shares[to] = shares.get(to, 0.0) + share * part
    return shares


def _money(load: Workload, price: Price) -> tuple[float, float, float, float]:
    """Dollars a day: as clients asked; routed; routed and cached; and with those that can wait in batches."""
    count, shares = load.requests_per_day, sent(load)
    as_asked = count * sum(share * price(model, False) for model, share in load.asked.items())
    routed = count * sum(share * price(model, False) for model, share in shares.items())
    in_batches = count * sum(share * price(model, True) for model, share in shares.items())
    cached = routed - count * (1 - load.deferred) * load.hits * price(load.small, False)
    paid = cached - load.deferred * (routed - in_batches)
    return as_asked / 1e12, routed / 1e12, cached / 1e12, paid / 1e12
