"""The `gen_ai` metrics of the OpenTelemetry conventions, as Prometheus spells their names.

Calls that reached a model: a replay is in none of them, because its time is not a model's and its tokens were counted
when they were paid for. Never a key, a tenant or an id among the labels.
Source: OpenTelemetry semantic conventions 1.41, "Generative AI metrics"; "Prometheus and OpenMetrics Compatibility".
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric

from router.trace.record import Trace
from router.trace.semconv import OPERATION, PROVIDER, SECONDS, TOKENS, Names
from router.trace.series import Histogram, Labels, as_label, counter, tally
from router.trace.spans import Origin, billed_tokens, is_replay


class GenAiMetrics:
    """Counts finished chats; `names` says by which conventions."""

    def __init__(self, names: Names, origin: Origin) -> None:
        self._names = names
        self._server = (origin.host, str(origin.port))
        self._duration = Histogram(SECONDS)
        self._first_chunk = Histogram(SECONDS)
        self._tokens = Histogram(TOKENS)  # by kind, or input alone
        self._output = Histogram(TOKENS)
        self._used: dict[str, dict[Labels, int]] = {kind: {} for kind, _ in names.usage_counters}

    def add(self, trace: Trace, model: str) -> None:
        """Count one trace; `model` is its model sent, as a label."""
        if trace.endpoint != "messages" or not trace.attempts or is_replay(trace):
            return
        answered = trace.model_answered
        answered = model if answered is None or answered == trace.model_sent else as_label(answered)
        labels = (OPERATION, PROVIDER, model, answered, *self._server)
        last = trace.attempts[-1]
        ended_s = trace.duration_s if last.ended_s is None else last.ended_s
        error = "" if trace.outcome == "ok" else as_label(trace.error_type or trace.outcome)
        self._duration.add((*labels, error), max(0.0, ended_s - trace.attempts[0].started_s))
        if trace.is_streaming and trace.ttft_s is not None:
            self._first_chunk.add(labels, trace.ttft_s)
        if trace.usage is None:
            return
        tokens, thinking = billed_tokens(trace.usage)
        if self._names.token_metric is not None:
            self._tokens.add((*labels, "input"), tokens.prompt)
            self._tokens.add((*labels, "output"), tokens.output)
            return
        self._tokens.add(labels, tokens.prompt)
        self._output.add(labels, tokens.output)
        for kind, amount in (
            ("input", tokens.prompt),
            ("output", tokens.output),
            ("cache_read", tokens.cache_read),
            ("cache_write", tokens.cache_write_5m + tokens.cache_write_1h),
            ("reasoning", thinking),
        ):
            if amount and kind in self._used:
                tally(self._used[kind], labels, amount)

    def families(self) -> Iterator[Metric]:
        """All of it, for the text format."""
        names = self._names
        labels = tuple(
            spelled(name)
            for name in (
                names.operation,
                names.provider,
                names.request_model,
                names.response_model,
                names.server_address,
                names.server_port,
            )
        )
        timed = (*labels, spelled(names.error_type))
        yield self._duration.family(
            spelled(names.duration_metric) + "_seconds", "Of a call with all its attempts.", timed
        )
        yield self._first_chunk.family(
            spelled(names.first_chunk_metric) + "_seconds", "Of a stream, to its first content.", labels
        )
        text = "Tokens of a call; the input with what the prompt cache read and wrote."
        if names.token_metric is not None:
            yield self._tokens.family(spelled(names.token_metric), text, (*labels, spelled(names.token_type)))
        if names.input_metric is not None and names.output_metric is not None:
            yield self._tokens.family(spelled(names.input_metric), text, labels)
            yield self._output.family(spelled(names.output_metric), "Tokens of an answer.", labels)
        for kind, name in names.usage_counters:
            yield counter(spelled(name), f"Tokens used: {kind}.", labels, self._used[kind])


def spelled(name: str) -> str:
    """An OpenTelemetry name as Prometheus takes it; a unit in braces has no suffix."""
    return name.replace(".", "_")
