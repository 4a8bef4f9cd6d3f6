"""Metrics from traces: counted once, bounded, and readable by a Prometheus parser."""

from __future__ import annotations

import re
import threading

import pytest
from kit.stage import answers, error, stage
from prometheus_client.parser import text_string_to_metric_families

from router.trace.metrics import MetricsSink
from router.trace.record import Attempt, Trace
from router.usage import Tokens, Usage


def a_trace(number: int = 0, **fields: object) -> Trace:
    return Trace(
        **{
            "trace_id": f"{number:032x}", "started_at_ns": number, "endpoint": "messages",
            "model_sent": "claude-haiku-4-5",
            "lane": "haiku", "cache": "miss", "usage": Usage(Tokens(input=10, cache_read=4, output=5)), "cost_pusd": 1,
            "baseline_pusd": 3, "saved_pusd": 2, "ttft_s": 0.3, "duration_s": 0.5, "overhead_s": 0.0003,
            "attempts": [Attempt("haiku", "m", 0.0, "overloaded"), Attempt("haiku", "m", 0.0, "ok")], **fields,
        }
    )  # fmt: skip


def samples(sink: MetricsSink) -> dict[tuple[str, ...], float]:
    """Every sample by name and label values (in the order of the label names)."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(sink.render().decode())
        for sample in family.samples
    }


def test_finished_traces_are_counted_once() -> None:
    """Rendering twice changes nothing; a batch boundary loses nothing."""
    sink = MetricsSink()
    for number in range(1_000):
        sink.write(a_trace(number, cost_pusd=10**9))
    first, second = samples(sink), samples(sink)
    assert first == second
    assert first["router_requests_total", "miss", "messages", "haiku", "claude-haiku-4-5", "ok"] == 1_000
    assert first["router_tokens_total", "input", "claude-haiku-4-5"] == 10_000
    assert first["router_tokens_total", "cache_read", "claude-haiku-4-5"] == 4_000
    assert first["router_cost_usd_total", "claude-haiku-4-5"] == 1.0
    assert first["router_attempts_total", "haiku", "overloaded"] == 1_000
    assert first["router_ttft_seconds_bucket", "haiku", "0.16"] == 0
    assert first["router_ttft_seconds_bucket", "haiku", "0.32"] == 1_000
    assert first["router_ttft_seconds_count", "haiku"] == 1_000
    assert first["router_overhead_seconds_bucket", "0.0004"] == 1_000


def test_an_unknown_price_is_counted_apart() -> None:
    """It adds nothing to any sum and is visible, with usage or without; what is not metered is not unknown either."""
    sink = MetricsSink()
    unknown = {"cost_pusd": None, "baseline_pusd": None, "saved_pusd": None}
    sink.write(a_trace(1, **unknown))
    sink.write(a_trace(2, usage=None, status=200, **unknown))
    sink.write(a_trace(3, cost_pusd=10**12, baseline_pusd=None, saved_pusd=None))
    sink.write(a_trace(4, cost_pusd=None, baseline_pusd=10**12, saved_pusd=None))
    sink.write(a_trace(5, endpoint="batches", **unknown))
    found = samples(sink)
    for name in ("router_cost_usd_total", "router_baseline_usd_total", "router_saved_usd"):
        assert found[name, "claude-haiku-4-5"] == 0
    assert found["router_cost_without_baseline_usd_total", "claude-haiku-4-5"] == 1.0
    assert found["router_unknown_cost_requests_total", "claude-haiku-4-5"] == 4


def test_a_client_cannot_grow_the_series_without_end() -> None:
    """Model names come from clients; beyond the bound they share one name."""
    sink = MetricsSink()
    for number in range(5_000):
        sink.write(a_trace(number, model_sent=f"model-{number}" * 50))
    found = samples(sink)
    assert len({key for key in found if key[0] == "router_cost_usd_total"}) <= 501
    assert sum(value for key, value in found.items() if key[0] == "router_requests_total") == 5_000


def test_hostile_labels_stay_one_line() -> None:
    """A model name may hold anything; the text format stays parseable."""
    sink = MetricsSink()
    sink.write(a_trace(1, model_sent='a"b\\c'))
    sink.write(a_trace(2, model_sent="a\nrouter_requests_total 99\r\x00"))
    found = samples(sink)
    assert ("router_cost_usd_total", 'a"b\\c') in found
    assert ("router_cost_usd_total", "other") in found


_SERIES = re.compile(
    rb"[a-zA-Z_:][a-zA-Z0-9_:]*"
    rb"(?:\{(?:[a-zA-Z_][a-zA-Z0-9_]*=\"(?:[^\"\\\x00-\x1f\x7f]|\\[\\\"n])*\"(?:,(?!\})|(?=\})))*\})?"
)


def strictly_read(text: bytes) -> set[bytes]:
    """All series of a text by the letter of the format: no control character, no series and no family twice."""
    text.decode("utf-8")
    series: set[bytes] = set()
    families: set[bytes] = set()
    assert text.endswith(b"\n")
    for line in text[:-1].split(b"\n"):
        if line.startswith(b"# TYPE "):
            assert line not in families
            families.add(line)
        elif not line.startswith(b"# HELP "):
            match = _SERIES.match(line)
            assert match, line
            assert re.fullmatch(rb" (?:[0-9.e+-]+|NaN|[+-]Inf)", line[match.end() :]), line
            assert match[0] not in series, line
            series.add(match[0])
    return series


HOSTILE = ["a\0b", "a\nb 1", "a\rb", "\x1b[31m", "\ud800", "\u2028", "\x7f", 'a"}', "a\\", "n" * 5_000, "\x85"]


@pytest.mark.parametrize("name", HOSTILE, ids=map(ascii, range(len(HOSTILE))))
def test_no_name_from_outside_breaks_the_text_format(name: str) -> None:
    """A model asked for or answered, the type of an error, a breaker's model: a strict reader takes the whole text."""
    figures = {"state": 1, "opened": 2}
    lanes = {("as-asked", name): figures, ("as-asked", name + "x"): figures}
    for is_known in (None, lambda known: known == "claude-haiku-4-5"):
        sink = MetricsSink(lanes=lambda: lanes, is_known=is_known)
        used = {"model_answered": name + "y", "outcome": "upstream_error", "error_type": name}
        sink.write(a_trace(1, model_sent=name, **used))
        sink.write(a_trace(2, model_sent=name, usage=None))
        assert len(strictly_read(sink.render())) > 50


@pytest.mark.anyio
async def test_a_request_cannot_break_the_scrape() -> None:
    """A model with a zero byte, asked for over the wire: the metrics of the router stay whole."""
    async with stage(answers(error("404 N", "not_found_error"))) as s:
        for model in ("a\0b", "a\x1bb", "made-up"):
            assert (await s.messages(model=model)).status == 404
        text = s.app.metrics.render()
    assert len(strictly_read(text)) > 50
    assert b'model="other"' in text
    assert b"made-up" not in text


def test_models_that_only_a_client_knows_take_no_labels() -> None:
    """Thousands of invented names, refused by the upstream, are `other`; the catalogue's always have their own."""
    known = {"claude-haiku-4-5", "claude-late"}
    lanes = {("as-asked", f"junk-{n}"): {"state": n % 3, "opened": 1, "skipped": 2} for n in range(20)}
    sink = MetricsSink(is_known=known.__contains__, lanes=lambda: lanes)
    for number in range(1_000):
        sink.write(a_trace(number, model_sent=f"junk-{number}", usage=None, status=404))
    for number in range(510):  # what a gateway serves under names of its own has labels, up to the bound
        sink.write(a_trace(number, model_sent=f"own-{number}"))
    sink.write(a_trace(1, model_sent="claude-late", usage=None))
    found = samples(sink)
    models = {key[1] for key in found if key[0] == "router_cost_usd_total"}
    assert {name for name in models if not name.startswith("own-")} == {"other", "claude-late"}
    assert len(models) <= 501
    breakers = {key[3]: value for key, value in found.items() if key[0] == "router_lane_breaker"}
    assert breakers == {"state": 2, "opened": 20, "skipped": 40}


def test_gauges_are_read_when_asked_and_a_broken_one_hides_nothing() -> None:
    """Numbers, mappings, the policy revision; an error is counted."""

    def broken() -> float:
        raise OSError("gone")

    gauges = {"cache": lambda: {"hits": 3, "entries": 2}, "upstream_idle": lambda: 4, "broken": broken}
    sink = MetricsSink(gauges=gauges, revision=lambda: "abc")
    found = samples(sink)
    assert found["router_cache", "hits"] == 3
    assert found["router_upstream_idle",] == 4
    assert found["router_policy_info", "abc"] == 1
    assert found["router_gauge_errors_total",] == 1


def test_two_sinks_share_nothing() -> None:
    """No global registry."""
    one, other = MetricsSink(), MetricsSink()
    one.write(a_trace(1))
    assert not [key for key in samples(other) if key[0] == "router_requests_total"]


def test_writing_while_rendering_loses_nothing() -> None:
    """The scrape runs in another thread than the requests."""
    sink = MetricsSink()
    scrapes = threading.Thread(target=lambda: [sink.render() for _ in range(50)])
    scrapes.start()
    for number in range(5_000):
        sink.write(a_trace(number))
    scrapes.join()
    found = samples(sink)
    assert found["router_requests_total", "miss", "messages", "haiku", "claude-haiku-4-5", "ok"] == 5_000
    sink.close()


def test_what_the_cache_did_is_counted_with_its_reason() -> None:
    """Each request that came to the cache once, and what replays saved, exactly; others are not the cache's."""
    sink = MetricsSink()
    for cache, reason, saved_pusd in (
        ("hit", "", 10**12 + 1),
        ("coalesced", "", 2 * 10**12),
        ("coalesced", "", None),
        ("miss", "", 7),
        ("miss", "too-large", 7),
        ("bypass", "temperature", 7),
        ("bypass", "temperature", 7),
        ("bypass", "", 7),  # refused before a rule was met
    ):
        sink.write(a_trace(1, cache=cache, cache_reason=reason, saved_pusd=saved_pusd))
    sink.write(a_trace(1, endpoint="count_tokens", cache="bypass", cache_reason="rule"))
    found = samples(sink)
    counted = {key[1:]: value for key, value in found.items() if key[0] == "router_cache_requests_total"}
    assert counted == {
        ("", "hit"): 1,
        ("", "coalesced"): 2,
        ("", "miss"): 1,
        ("too-large", "miss"): 1,
        ("temperature", "bypass"): 2,
    }
    assert found["router_cache_saved_usd", "claude-haiku-4-5"] == (3 * 10**12 + 1) / 1e12


def test_a_reason_that_is_not_declared_makes_no_series_of_its_own() -> None:
    """The series are bounded by what `trace.record` names."""
    sink = MetricsSink()
    for number in range(100):
        sink.write(a_trace(number, cache_reason=f"reason-{number}"))
    counted = {key[1:]: value for key, value in samples(sink).items() if key[0] == "router_cache_requests_total"}
    assert counted == {("other", "miss"): 100}


def test_models_that_share_a_name_share_what_the_cache_saved() -> None:
    """A client chooses model names; the series of the saving are bounded as those of the cost are."""
    sink = MetricsSink()
    for number in range(1_000):
        sink.write(a_trace(number, model_sent=f"model-{number}", cache="hit", saved_pusd=10**12))
    saved = {key: value for key, value in samples(sink).items() if key[0] == "router_cache_saved_usd"}
    assert len(saved) <= 501
    assert sum(saved.values()) == 1_000


def test_a_distribution_becomes_a_histogram() -> None:
    """Its bounds as they are given, added up as Prometheus wants them; a broken one hides nothing."""

    def broken() -> tuple[dict[float, int], float]:
        raise OSError("gone")

    counts = {0.001: 2, 0.002: 0, float("inf"): 1}
    sink = MetricsSink(distributions={"broken": broken, "redis": lambda: (counts, 0.5)})
    found = samples(sink)
    assert found["router_redis_seconds_bucket", "0.001"] == 2
    assert found["router_redis_seconds_bucket", "0.002"] == 2
    assert found["router_redis_seconds_bucket", "+Inf"] == 3
    assert (found["router_redis_seconds_count",], found["router_redis_seconds_sum",]) == (3, 0.5)
    assert found["router_gauge_errors_total",] == 1
