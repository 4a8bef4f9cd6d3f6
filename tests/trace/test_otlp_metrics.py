"""The `gen_ai` metrics: names, buckets and labels of the conventions, and a replay in none of them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from router.trace.metrics import MetricsSink
from router.trace.record import Attempt, Trace
from router.trace.semconv import NEXT, RELEASED, SECONDS, TOKENS
from router.trace.spans import Origin
from router.usage import Iteration, Tokens, Usage

ORIGIN = Origin("https://api.example", "api.example", 443)
USAGE = Usage(Tokens(input=10, cache_read=2000, cache_write_5m=30, cache_write_1h=40, output=50), thinking=20)
LABELS = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "anthropic",
    "gen_ai_request_model": "m",
    "gen_ai_response_model": "m-1",
    "server_address": "api.example",
    "server_port": "443",
}


def a_trace(**fields: object) -> Trace:
    """A streamed chat: 0.4 s at the model, first content after 0.3 s."""
    return Trace(
        **{
            "trace_id": "a" * 32, "started_at_ns": 0, "endpoint": "messages", "model_sent": "m", "lane": "haiku",
            "model_answered": "m-1", "is_streaming": True, "ttft_s": 0.3, "duration_s": 0.5, "usage": USAGE,
            "attempts": [Attempt("haiku", "m", 0.1, ended_s=0.5)], **fields,
        }
    )  # fmt: skip


def figures(sink: MetricsSink) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Every `gen_ai` sample by name."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(sink.render().decode()):
        for sample in family.samples:
            if sample.name.startswith("gen_ai"):
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_the_released_names_have_the_prescribed_buckets() -> None:
    """Seconds from 0.01 to 81.92 and tokens from 1 to 67108864; the input includes the prompt cache."""
    sink = MetricsSink(names=RELEASED, origin=ORIGIN)
    sink.write(a_trace())
    found = figures(sink)
    for name, bounds in (
        ("gen_ai_client_operation_duration_seconds", SECONDS),
        ("gen_ai_client_operation_time_to_first_chunk_seconds", SECONDS),
        ("gen_ai_client_token_usage", TOKENS),
    ):
        said = [float(labels["le"]) for labels, _ in found[f"{name}_bucket"]]
        assert said[: len(bounds) + 1] == [*map(float, bounds), float("inf")]
    assert (SECONDS[0], SECONDS[-1], TOKENS[0], TOKENS[-1]) == (0.01, 81.92, 1, 67108864)
    assert found["gen_ai_client_operation_duration_seconds_sum"] == [({**LABELS, "error_type": ""}, 0.4)]
    assert found["gen_ai_client_operation_time_to_first_chunk_seconds_sum"] == [(LABELS, 0.3)]
    assert found["gen_ai_client_token_usage_sum"] == [
        ({**LABELS, "gen_ai_token_type": "input"}, 2080),
        ({**LABELS, "gen_ai_token_type": "output"}, 50),
    ]


def test_the_next_names_are_histograms_and_counters_of_their_own() -> None:
    """And none of the released ones is there, so that nothing is counted under two names."""
    sink = MetricsSink(names=NEXT, origin=ORIGIN)
    sink.write(a_trace())
    sums = {name: value for name, [(_, value), *_] in figures(sink).items() if name.endswith(("_sum", "_total"))}
    assert sums == {
        "gen_ai_client_inference_duration_seconds_sum": 0.4,
        "gen_ai_client_inference_time_to_first_chunk_seconds_sum": 0.3,
        "gen_ai_client_operation_input_tokens_sum": 2080,
        "gen_ai_client_operation_output_tokens_sum": 50,
        "gen_ai_client_inference_usage_input_tokens_total": 2080,
        "gen_ai_client_inference_usage_output_tokens_total": 50,
        "gen_ai_client_inference_usage_cache_read_input_tokens_total": 2000,
        "gen_ai_client_inference_usage_cache_write_input_tokens_total": 70,
        "gen_ai_client_inference_usage_reasoning_output_tokens_total": 20,
    }


def test_what_no_model_did_is_in_none_of_them() -> None:
    """Hits, shared answers, counts, and requests that were refused before a call."""
    sink = MetricsSink(origin=ORIGIN)
    sink.write(a_trace(cache="hit", attempts=[]))
    sink.write(a_trace(cache="coalesced", attempts=[]))
    sink.write(a_trace(endpoint="count_tokens"))
    sink.write(a_trace(attempts=[], outcome="client_error"))
    assert figures(sink) == {}


def test_an_error_has_its_type_and_no_tokens() -> None:
    """What the upstream said, else how the request ended."""
    sink = MetricsSink(origin=ORIGIN)
    failed = {"usage": None, "model_answered": None, "ttft_s": None}
    sink.write(a_trace(outcome="upstream_error", error_type="overloaded_error", **failed))
    sink.write(a_trace(outcome="cut", **failed))
    found = figures(sink)
    types = {labels["error_type"] for labels, _ in found["gen_ai_client_operation_duration_seconds_count"]}
    assert types == {"overloaded_error", "cut"}
    assert "gen_ai_client_token_usage_count" not in found


def test_iterations_are_the_bill() -> None:
    """Where an answer lists them, they are added up; the counts above them leave some out."""
    sink = MetricsSink(origin=ORIGIN)
    parts = (Iteration("compaction", None, Tokens(1000, output=5)), Iteration("message", None, Tokens(20, output=7)))
    sink.write(a_trace(usage=Usage(Tokens(20, output=7), iterations=parts)))
    assert [value for _, value in figures(sink)["gen_ai_client_token_usage_sum"]] == [1020, 12]


def test_an_upstream_cannot_grow_the_series_without_end() -> None:
    """It names the models that answer and the types of errors."""
    sink = MetricsSink(origin=ORIGIN)
    for number in range(2_000):
        sink.write(a_trace(model_answered=f"m-{number}", outcome="upstream_error", error_type=f"e{number}"))
    found = figures(sink)["gen_ai_client_operation_duration_seconds_count"]
    assert len(found) <= 501
    assert sum(value for _, value in found) == 2_000
