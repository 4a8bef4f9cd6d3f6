"""The answers of several workers as one: metrics, the state, the cache.

Metrics keep a series for each worker (`worker="1"`), as Prometheus wants it: a sum over processes would fall when one
of them is replaced, and be read as a restart of all. What people read is added up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]

_WORST = ("overhead_p50_s", "overhead_p95_s", "ttft_p50_s", "ttft_p95_s", "over_s", "uptime_s")
_LEAST = ("is_up",)


def merged_metrics(pages: Mapping[int, str]) -> str:
    """Text-format pages by worker → one page; families stay together, as the format demands."""
    families: dict[str, list[str]] = {}
    for worker, page in pages.items():
        label = f'worker="{worker}"'
        name = ""
        for line in page.splitlines():
            if line.startswith("# "):
                name = line.split(" ", 3)[2]
                head = families.setdefault(name, [])
                if line not in head:
                    head.append(line)
            elif line:
                families.setdefault(name, []).append(_labelled(line, label))
    return "".join(f"{line}\n" for lines in families.values() for line in lines)


def _labelled(sample: str, label: str) -> str:
    name, brace, rest = sample.partition("{")
    if brace and " " not in name:
        return f"{name}{{{label},{rest}" if not rest.startswith("}") else f"{name}{{{label}{rest}"
    name, _, value = sample.partition(" ")
    return f"{name}{{{label}}} {value}"


def figures_text(figures: Mapping[str, Mapping[str, int]]) -> str:
    """The supervisor's own metrics: `router_workers` by state, `router_worker_events_total` by kind."""
    lines = ["# HELP router_workers Serving processes.", "# TYPE router_workers gauge"]
    lines += [f'router_workers{{state="{state}"}} {count}' for state, count in figures["workers"].items()]
    lines += ["# HELP router_worker_events_total What became of workers.", "# TYPE router_worker_events_total counter"]
    lines += [
        f'router_worker_events_total{{event="{event}"}} {count}' for event, count in figures["worker_events"].items()
    ]
    return "".join(f"{line}\n" for line in lines)


def merged_status(documents: Mapping[int, Figures]) -> dict[str, Any]:
    """Documents of `/status` by worker → one: healthy if all are, serving if any is; money is the store's, once."""
    first = next(iter(documents.values()))
    each = list(documents.values())
    found: dict[str, Any] = {**first}
    for part in ("recent", "cache", "redis", "upstream", "traces", "capture"):
        said = [document[part] for document in each if document.get(part) is not None]
        found[part] = added(said) if said else None
    recent, cache = found["recent"], found["cache"]
    if recent:
        looked_up = recent.get("cache_looked_up")
        recent["cache_hit_share"] = round(recent["cache_hits"] / looked_up, 4) if looked_up else None
        if cache:
            cache["hit_share"] = recent["cache_hit_share"]
    refused = [document["policy"] for document in each if document["policy"].get("is_current") is False]
    found["policy"] = refused[0] if refused else first["policy"]
    found["uptime_s"] = max(document["uptime_s"] for document in each)
    found["is_healthy"] = all(document["is_healthy"] for document in each)
    found["is_serving"] = any(document["is_serving"] for document in each)
    for notes in ("problems", "warnings"):
        found[notes] = list(_notes(documents, notes))
    return found


def _notes(documents: Mapping[int, Figures], kind: str) -> list[dict[str, str]]:
    """What all say is said once; what some say, with their numbers."""
    by_note: dict[tuple[str, str], list[int]] = {}
    for worker, document in documents.items():
        for note in document[kind]:
            by_note.setdefault((note["what"], note["next"]), []).append(worker)
    found = []
    for (what, then), workers in by_note.items():
        who = "" if len(workers) == len(documents) else f"worker {', '.join(map(str, workers))}: "
        found.append({"what": who + what, "next": then})
    return found


def added(values: Sequence[Any]) -> Any:
    """Numbers added up, also inside mappings; quantiles are those of the worst worker, other things the first's."""
    first = values[0]
    if not isinstance(first, Mapping):
        is_number = isinstance(first, (int, float)) and not isinstance(first, bool)
        return sum(value for value in values if isinstance(value, (int, float))) if is_number else first
    names = dict.fromkeys(name for value in values for name in value)
    found: dict[str, Any] = {}
    for name in names:
        said = [value[name] for value in values if value.get(name) is not None]
        if not said:
            found[name] = None
        elif name in _WORST or name in _LEAST:
            found[name] = max(said) if name in _WORST else min(said)
        else:
            found[name] = added(said)
    return found
