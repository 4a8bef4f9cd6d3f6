"""Counts and histograms by label values, bounded: a client chooses names, and not how much memory they take."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

SERIES_MAX = 500  # of one histogram, and of the models that have a name of their own
OTHER = "other"

Labels = tuple[str, ...]


def as_label(name: str) -> str:
    """A name that came from outside, as the value of a label: at most 100 characters, `other` where one of them cannot
    be printed. Not every reader of the text format takes a control character, and one value would cost the scrape."""
    name = name[:100]
    return name if name.isprintable() else OTHER


class Histogram:
    """Counts per bucket and a sum, for each set of label values; what is too many is counted under `other`."""

    __slots__ = ("_bounds", "series")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.series: dict[Labels, tuple[list[int], list[float]]] = {}

    def add(self, labels: Labels, value: float) -> None:
        """Count one measurement."""
        found = self.series.get(labels)
        if found is None:
            if len(self.series) >= SERIES_MAX:
                labels = (OTHER,) * len(labels)
            found = self.series.setdefault(labels, ([0] * (len(self._bounds) + 1), [0.0]))
        found[0][bisect_left(self._bounds, value)] += 1
        found[1][0] += value

    def family(self, name: str, text: str, labels: Labels) -> HistogramMetricFamily:
        """All of it, for the text format."""
        family = HistogramMetricFamily(name, text, labels=labels)
        for values, (counts, total) in self.series.items():
            running, buckets = 0, []
            for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
                running += count
                buckets.append((bound, running))
            family.add_metric(values, buckets, total[0])
        return family


def tally(series: dict[Labels, int], labels: Labels, amount: int) -> None:
    """Add to a counter; once there are too many series, new ones share one."""
    found = series.get(labels)
    if found is not None:
        series[labels] = found + amount
    elif len(series) < 4 * SERIES_MAX:
        series[labels] = amount
    else:
        rest = (OTHER,) * len(labels)
        series[rest] = series.get(rest, 0) + amount


def counter(name: str, text: str, labels: Labels, series: Mapping[Labels, Any]) -> Metric:
    """A counter, for the text format."""
    family = CounterMetricFamily(name, text, labels=labels)
    for values, amount in series.items():
        family.add_metric(values, amount)
    return family
