"""Writes down what `bench.sizing` measured and `bench.fleet_model` works out, as the tables of docs/sizing.md.

A test compares them with that page: after a new measurement or another default, `python -m bench.sizing --write` brings
both up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from bench.fleet_model import (
    ANSWER_DAYS,
    EVENTS_MEASURED,
    REQUEST_BYTES_MEASURED,
    Measured,
    Plan,
    Room,
    Workload,
    entry_bytes,
)

BUSY_LOAD = 2.6  # load average above which something else ran; a run alone makes about 2

# Figure → (what, unit, how it was taken).
FIGURES = {
    "plain_cpu_us": ("a plain answer, not cached", "µs CPU", "400/s, all different: labelled, routed, stored, traced"),
    "full_cpu_us": ("the same, as fast as it goes", "µs CPU", "32 connections without a pause; not used below"),
    "nginx_cpu_us": ("a plain nginx in its place", "µs CPU", "400/s; a yardstick of this machine, not used below"),
    "stream_cpu_us": (f"a stream of {EVENTS_MEASURED} events", "µs CPU", "20 streams a second, events 20 ms apart"),
    "hit_cpu_us": ("an answer from Redis", "µs CPU", "400/s, 2,000 requests take turns, 1 MB of own copies"),
    "deferred_cpu_us": (
        "a deferred request",
        "µs CPU",
        "1,000 accepted, sent, booked, fetched; connections of their own",
    ),
    "redis_plain_cpu_us": ("Redis, for an answer that is not cached", "µs CPU", "its process, with the first row"),
    "redis_hit_cpu_us": ("Redis, for an answer from it", "µs CPU", "its process, with that row"),
    "start_mb": ("memory of a process at its start", "MB", "resident"),
    "stream_kb": ("an open stream", "kB", "growth with 200 open ÷ 200"),
    "plain_entry_bytes": ("a cached answer, its text aside", "bytes of Redis", "over 6,000; the text is one word"),
    "stream_entry_bytes": ("a cached stream, likewise", "bytes of Redis", f"over 2,000, of {EVENTS_MEASURED} events"),
    "conversation_bytes": ("a conversation", "bytes of Redis", "over 6,000"),
    "fleet_trace_bytes": ("a trace on every pod's page", "bytes of Redis", "over those in the stream"),
    "waiting_job_bytes": ("a deferred request of 2 kB that waits", "bytes of Redis", "over 1,000"),
    "ended_job_bytes": ("the same, ended", "bytes of Redis", "over 1,000, with answers of the simulator's"),
    "trace_bytes": ("a trace in the store", "bytes of disk", "growth by 5,000 rows, with indexes and sums"),
}

# Input → (what, how its value is shown).
INPUTS = {
    "peak_factor": ("busiest minute ÷ mean of the day", "{:g}"),
    "streamed": ("of the answers, streams", "{:.0%}"),
    "stream_s": ("seconds that a stream is open", "{:g}"),
    "events": ("events of a stream", "{:g}"),
    "cacheable": ("of the requests that do not wait, those whose rule caches", "{:.0%}"),
    "hits": ("of the requests that do not wait, those answered from the cache", "{:.0%}"),
    "ttl_s": ("seconds that a cached answer lives", "{:g}"),
    "deferred": ("of all requests, those that wait", "{:.0%}"),
    "batch_s": ("seconds until a deferred request has its answer", "{:g}"),
    "turns": ("requests of a conversation", "{:g}"),
    "prompt_tokens": ("tokens of a prompt, none read from the provider's prompt cache", "{:,}"),
    "answer_tokens": ("tokens of an answer", "{:,}"),
    "bytes_per_token": ("bytes of a token", "{:g}"),
    "compressed": ("what is left of a text when it is compressed", "{:.0%}"),
    "moved": ("of the requests for another model, those that go to the small one", "{:.0%}"),
    "raised": ("of the requests for the small model, those that are raised", "{:.0%}"),
    "cores": ("cores of a pod", "{:g}"),
    "busy": ("how busy a core may be in the busiest minute", "{:.0%}"),
    "memory_mb": ("memory limit of a pod, MiB", "{:,.0f}"),
    "memory_busy": ("how full it may be", "{:.0%}"),
    "near_mb": ("own copies of cached answers, MB (`redis.nearMb`)", "{:g}"),
    "spare": ("pods that may be away: N+1", "{:d}"),
    "redis_factor": ("memory of Redis ÷ what lies in it", "{:g}"),
    "core_hour_usd": ("dollars for a core with its memory, an hour", "{:g}"),
    "redis_gib_hour_usd": ("dollars for a GiB of Redis, an hour", "{:g}"),
}
INPUTS_OF_ROOM = frozenset(each.name for each in fields(Room))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def number(value: float) -> str:
    """Three digits that count, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(value: float) -> str:
    """Bytes for people."""
    for unit, of in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if value >= of:
            return f"{number(value / of)} {unit}"
    return f"{number(value / 1024)} KiB"


def measured_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """What was measured; a `*` marks what was taken while something else ran."""
    rows = []
    for name, (what, unit, how) in FIGURES.items():
        if (found := figures.get(name)) is None:
            continue
        mark = "\\*" if found["load"] > BUSY_LOAD else ""
        rows.append((what, f"{number(found['value'])} {unit}{mark}", f"{found['spread']:g}", how))
    return table(("of one process", "figure", "spread", "how"), rows)


def derived_table(one: Measured) -> str:
    """The same in the units in which people ask."""
    rows = [
        ("plain answers, not cached, a core and second", number(1e6 / one.plain_cpu_us)),
        (f"streams of {EVENTS_MEASURED} events begun, a core and second", number(1e6 / one.stream_cpu_us)),
        ("answers from Redis, a core and second", number(1e6 / one.hit_cpu_us)),
        ("deferred requests from acceptance to fetch, a core and second", number(1e6 / one.deferred_cpu_us)),
        ("memory of 1,000 open streams", size(one.stream_kb * 1024 * 1_000)),
        ("open streams, a GiB", number(2**20 / one.stream_kb)),
        ("Redis, a million cached answers, their text aside", size(one.plain_entry_bytes * 1e6)),
        (f"Redis, a million cached streams of {EVENTS_MEASURED} events, likewise", size(one.stream_entry_bytes * 1e6)),
        ("Redis, a million conversations", size(one.conversation_bytes * 1e6)),
        ("Redis, 10,000 recent traces (there are never more)", size(one.fleet_trace_bytes * 1e4)),
        ("Redis, 1,000 deferred requests of 2 kB that wait", size(one.waiting_job_bytes * 1e3)),
        ("Redis, 1,000 of them with their answers", size(one.ended_job_bytes * 1e3)),
        ("trace store, a million requests", size(one.trace_bytes * 1e6)),
    ]
    return table(("what", "figure"), rows)


def inputs_table(load: Workload, room: Room) -> str:
    """What was said, not measured."""
    rows = []
    for name, (what, form) in INPUTS.items():
        value = getattr(room if name in INPUTS_OF_ROOM else load, name)
        rows.append((f"`--{name.replace('_', '-')}`", form.format(value), what))
    mix = ", ".join(f"{share:.0%} {model}" for model, share in load.asked.items())
    return table(("input", "value", "what it is"), [*rows, ("`asked`", mix, "what clients ask for")])


def fleets_table(plans: Mapping[float, Plan]) -> str:
    """One column for each number of requests a day."""
    rows: list[tuple[str, Any]] = [
        ("requests a second, mean", lambda p: number(p.mean_rate)),
        ("requests a second, busiest minute", lambda p: number(p.peak_rate)),
        ("cores at work then", lambda p: number(p.peak_cores)),
        ("open streams then", lambda p: number(p.open_streams)),
        ("**pods**, with one to spare", lambda p: f"**{p.pods:,}**"),
        ("cores of Redis for answers, then", lambda p: number(p.redis_cores)),
        ("**memory of Redis for answers** and conversations", lambda p: f"**{size(p.redis_bytes)}**"),
        ("**memory of Redis for jobs**", lambda p: f"**{size(p.jobs_bytes)}**"),
        ("traces a day, on all disks", lambda p: size(p.trace_bytes)),
        ("days of traces in 2 GiB a pod", lambda p: number(p.trace_days)),
        ("models a day, as clients ask", lambda p: f"${p.as_asked_usd:,.0f}"),
        ("with routing", lambda p: f"${p.routed_usd:,.0f}"),
        ("with routing and cache", lambda p: f"${p.cached_usd:,.0f}"),
        ("**with routing, cache and batches**", lambda p: f"**${p.paid_usd:,.0f}**"),
        ("machines a day", lambda p: f"${p.machines_usd:,.0f}"),
    ]
    head = ("", *(f"{count / 1e6:,.0f} million a day" for count in plans))
    return table(head, [(name, *(shown(each) for each in plans.values())) for name, shown in rows])


def worked_table(load: Workload, one: Measured, room: Room, found: Plan, small_usd: float) -> str:
    """Every step from requests a day to pods, Redis, disk and dollars: what, the figure, where it is from."""
    now, n = 1 - load.deferred, number
    hit, miss = now * load.hits, now * (1 - load.hits)
    plain, stream = miss * (1 - load.streamed), miss * load.streamed
    more = max(0.0, load.prompt_tokens * load.bytes_per_token - REQUEST_BYTES_MEASURED)
    per_event = (one.stream_cpu_us - one.plain_cpu_us) / EVENTS_MEASURED
    left_mb = room.memory_mb * room.memory_busy - one.start_mb - room.near_mb
    peak, tokens = "busiest minute", f"{load.prompt_tokens:,} tokens in and {load.answer_tokens:,} out"
    rows = [
        ("mean rate", f"{n(found.mean_rate)} /s", f"{load.requests_per_day:,.0f} ÷ 86,400 s"),
        (peak, f"{n(found.peak_rate)} /s", f"× {load.peak_factor:g}"),
        (
            "who asks",
            f"{plain:.1%} plain, {stream:.1%} streams, {hit:.1%} hits, {load.deferred:.1%} deferred",
            "shares of all requests, from the inputs",
        ),
        (
            "CPU of a stream",
            f"{n(found.stream_cpu_us)} µs",
            f"{n(one.plain_cpu_us)} of a plain answer + {load.events:g} events × {n(per_event)} µs",
        ),
        (
            "CPU of a mean request",
            f"{n(found.request_cpu_us)} µs",
            f"{plain:.1%} × {n(one.plain_cpu_us)} + {stream:.1%} × {n(found.stream_cpu_us)}"
            f" + {hit:.1%} × {n(one.hit_cpu_us)} + {load.deferred:.1%} × {n(one.deferred_cpu_us)}",
        ),
        ("cores at work", n(found.peak_cores), f"{peak} × CPU of a mean request"),
        ("pods by CPU", f"{found.pods_for_cpu:,}", f"÷ {room.cores:g} core × {room.busy:.0%}, rounded up"),
        ("open streams", n(found.open_streams), f"{peak} × {stream:.1%} × {load.stream_s:g} s"),
        (
            "streams a pod",
            f"{found.streams_per_pod:,}",
            f"({room.memory_mb:,.0f} MiB × {room.memory_busy:.0%} − {n(one.start_mb)} − {room.near_mb:g})"
            f" = {n(left_mb)} MB ÷ {n(one.stream_kb)} kB",
        ),
        ("pods by memory", f"{found.pods_for_streams:,}", "open streams ÷ streams a pod, rounded up"),
        ("**pods**", f"**{found.pods:,}**", f"the larger of both + {room.spare}"),
        (
            "cores of Redis for answers",
            n(found.redis_cores),
            f"{peak} × ({miss:.1%} × {n(one.redis_plain_cpu_us)} + {hit:.1%} × {n(one.redis_hit_cpu_us)} µs)",
        ),
        (
            "answers in Redis",
            f"{n(found.entries)}, {size(found.entries_bytes)}",
            f"{peak} × {now:.0%} × ({load.cacheable:.0%} − {load.hits:.0%}) × {load.ttl_s:g} s,"
            f" of {n(entry_bytes(load, one))} bytes with their text",
        ),
        (
            "conversations in Redis",
            f"{n(found.conversations)}, {size(found.conversations_bytes)}",
            f"a day's requests that do not wait ÷ {load.turns:g}, of {n(one.conversation_bytes)} bytes",
        ),
        ("recent traces in Redis", size(found.fleet_traces_bytes), f"10,000 of {n(one.fleet_trace_bytes)} bytes"),
        ("**Redis for answers**", f"**{size(found.redis_bytes)}**", f"the three together × {room.redis_factor:g}"),
        (
            "deferred requests that wait",
            n(found.waiting_jobs),
            f"{peak} × {load.deferred:.0%} × {load.batch_s:g} s, of {n(one.waiting_job_bytes)} + {n(more)} bytes"
            f" (a prompt of {load.prompt_tokens:,} tokens is longer than the one measured)",
        ),
        ("their answers", n(found.ended_jobs), f"a day's × {ANSWER_DAYS} days, of {n(one.ended_job_bytes)} bytes"),
        ("**Redis for jobs**", f"**{size(found.jobs_bytes)}**", f"both together × {room.redis_factor:g}"),
        (
            "traces a day",
            f"{n(found.trace_rows)}, {size(found.trace_bytes)}",
            f"one a request, three of a deferred one, of {n(one.trace_bytes)} bytes",
        ),
        (
            "days of traces",
            n(found.trace_days),
            f"{room.traces_max_mb:,.0f} MiB (`traces_max_mb`) × pods ÷ a day's; sums stay for 400 days",
        ),
        ("models, as clients ask", f"${found.as_asked_usd:,.0f}", f"{tokens}, by the mix `asked`"),
        (
            "with routing",
            f"${found.routed_usd:,.0f}",
            f"{load.moved:.0%} of those for another model go to {load.small},"
            f" {load.raised:.0%} of those for it to {load.raised_to}",
        ),
        (
            "with routing and cache",
            f"${found.cached_usd:,.0f}",
            f"{hit:.1%} of all are hits; each saves the price of the small model, ${small_usd:.6f}",
        ),
        ("**with batches too**", f"**${found.paid_usd:,.0f}**", f"{load.deferred:.0%} of all at batch prices"),
        (
            "machines",
            f"${found.machines_usd:,.0f}",
            f"24 hours × (pods × ${room.core_hour_usd:g} + GiB of both Redis × ${room.redis_gib_hour_usd:g})",
        ),
    ]
    return table(("step", "a day", "from"), rows)
