"""Traces as OpenTelemetry spans over OTLP: a bounded queue and one thread, off the request path.

Theory of operation. The request path pays for one append. The thread makes spans, sends them in small batches (a large
one would hold the interpreter while it is encoded), and keeps trying a batch that the collector could not take: with
growing pauses, or as long as the collector asks. Meanwhile new traces wait in the queue; when it is full they are
dropped and counted. A batch that the collector refuses for good, or that was tried often enough, is given up and
counted. So at every moment: handed over = queued + exported + dropped + given_up + failed.

Nothing here may slow or fail a request, and closing takes `close_s` at most, whatever the collector does (F79).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from router.trace.otlp_encode import Batch, rejected_spans
from router.trace.otlp_send import Endpoint, Sender, Sent
from router.trace.record import Trace
from router.trace.semconv import RELEASED, Names
from router.trace.spans import Origin, most_spans, spans_of

CLOSE_S = 5.0  # the longest that `close` may take
BATCH_SPANS = 128
BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # the longest pause before each further try of a batch
MAX_RETRY_AFTER_S = 120.0  # a collector that asks for more is asked again then all the same
_LAST_TRY_S = 0.5  # of `close_s`, for a thread that has to be interrupted

_log = logging.getLogger(__name__)


class OtlpSink:
    """A `seams.TraceSink` that sends spans to an OTLP collector over HTTP.

    `queue_max` bounds the traces waiting in memory, `interval_s` is how long a trace may wait while the collector is
    well, `backoff_s` the pauses between tries of one batch, of which `jitter` (a number in [0, 1)) takes up to half.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        origin: Origin,
        *,
        resource: Mapping[str, str],
        version: str,
        names: Names = RELEASED,
        queue_max: int = 5_000,
        interval_s: float = 0.25,
        backoff_s: tuple[float, ...] = BACKOFF_S,
        close_s: float = CLOSE_S,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._endpoint = endpoint
        self._origin = origin
        self._resource = dict(resource)
        self._scope = ("model-router", version)
        self._names = names
        self._queue_max = queue_max
        self._interval_s = interval_s
        self._backoff_s = backoff_s
        self._close_s = close_s
        self._jitter = jitter
        self._sender = Sender(endpoint)
        self._queue: deque[Trace] = deque()
        self._in_hand = 0  # traces of the batch under way
        self._is_failing = False
        self._is_closed = False
        self._is_abandoned = False
        self._close_by = 0.0
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(
            ("exported", "spans", "dropped", "given_up", "failed", "rejected_spans", "requests", "retries"), 0
        )
        self._thread = threading.Thread(target=self._run, name="router-otlp", daemon=True)
        self._thread.start()

    def write(self, trace: Trace) -> None:
        """Hand over a finished trace: one append. Over `queue_max`, or once closed, it is dropped and counted."""
        queue = self._queue
        if self._is_closed or len(queue) >= self._queue_max:
            self._add("dropped", 1)
        else:
            queue.append(trace)

    def stats(self) -> Mapping[str, int]:
        """What became of the traces: `queued` (waiting or being sent), `exported` with their `spans`, `dropped` (no
        room, or closed too early), `given_up` (the collector did not take them), `failed` (no spans could be made);
        `rejected_spans` (the collector took the batch but not these), `requests` and `retries` made."""
        with self._lock:
            return {"queued": len(self._queue) + self._in_hand, **self._counts}

    def close(self) -> None:
        """Send what is queued and let go, within `close_s` seconds; what is left is dropped and counted."""
        if self._is_closed:
            return
        self._close_by = time.monotonic() + self._close_s - 2 * _LAST_TRY_S
        self._is_closed = True
        self._wake.set()
        self._thread.join(max(0.0, self._close_by - time.monotonic()))
        if self._thread.is_alive():
            self._sender.abort()
            self._thread.join(_LAST_TRY_S)
        with self._lock:
            self._is_abandoned = True
            left = len(self._queue) + self._in_hand
            self._counts["dropped"] += left
            self._in_hand = 0
            self._queue.clear()
        if left:
            _log.error("otlp: closed with %d traces that %s did not take", left, self._endpoint.shown())

    # From here on: the exporting thread.

    def _run(self) -> None:
        while True:
            is_closing = self._is_closed  # read before draining: what was queued before `close` is still sent
            has_time = True
            try:
                while self._queue and has_time:
                    has_time = self._export()
            except Exception as error:  # a sink: nothing may end the thread, and no trace is worth a request
                self._settle("failed")
                _log.error("otlp: traces lost to an unforeseen %s", type(error).__name__)
            if is_closing or not has_time:
                break
            self._wake.wait(self._interval_s)
        self._sender.close()

    def _export(self) -> bool:
        """Send one batch, trying again as often as that may help; False when closing leaves no time for it.

        What is in hand then is counted by `close`.
        """
        batch = self._batch()
        if not batch.traces:
            return True
        body = batch.encoded()
        for wait_s in (*self._backoff_s, None):
            timeout_s = self._endpoint.timeout_s
            if self._is_closed:
                timeout_s = min(timeout_s, self._close_by - time.monotonic())
            if timeout_s <= 0 or self._is_abandoned:
                return False
            self._add("requests", 1)
            sent = self._sender.post(body, timeout_s)
            if sent.is_taken:
                self._taken(batch, sent)
                return True
            self._say_failing(sent)
            if not sent.may_retry or wait_s is None:
                break
            if sent.retry_after_s is None:
                wait_s *= 1 - self._jitter() / 2
            else:
                wait_s = min(sent.retry_after_s, MAX_RETRY_AFTER_S)
            if self._is_closed:
                return False  # a collector that is unwell is not waited for
            if self._wake.wait(wait_s) and sent.retry_after_s is not None:  # closing; it has asked to be left alone
                return False
            self._add("retries", 1)
        self._settle("given_up")
        return True

    def _batch(self) -> Batch:
        """Spans of as many queued traces as one request takes."""
        batch = Batch(self._resource, self._scope)
        queue = self._queue
        while True:
            with self._lock:  # `close` takes the queue away when there is no more time
                if not queue or (batch.traces and len(batch) + most_spans(queue[0]) > BATCH_SPANS):
                    break
                trace = queue.popleft()
                self._in_hand += 1
            try:
                batch.add(trace.trace_id, spans_of(trace, self._origin, self._names))
            except Exception as error:  # one odd record must not cost its neighbours their spans
                with self._lock:
                    self._in_hand -= 1
                    self._counts["failed"] += 1
                _log.error("otlp: trace `%.64s` has no spans: %s", trace.trace_id, type(error).__name__)
        return batch

    def _taken(self, batch: Batch, sent: Sent) -> None:
        rejected = min(rejected_spans(sent.body), len(batch))
        self._add("spans", len(batch) - rejected)
        self._add("rejected_spans", rejected)
        self._settle("exported")
        if self._is_failing:
            self._is_failing = False
            _log.warning("otlp: %s takes spans again", self._endpoint.shown())

    def _say_failing(self, sent: Sent) -> None:
        if not self._is_failing:  # once per outage; the counters tell the rest
            self._is_failing = True
            _log.error("otlp: %s takes no spans (%s); requests go on", self._endpoint.shown(), sent.problem)

    def _settle(self, name: str) -> None:
        """The batch in hand is done with: its traces are counted under `name`."""
        with self._lock:
            self._counts[name] += self._in_hand
            self._in_hand = 0

    def _add(self, name: str, count: int) -> None:
        with self._lock:
            self._counts[name] += count
