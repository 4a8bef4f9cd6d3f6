"""A deferred request answered in real time after all: along the straight line, as if its client had just asked.

Its trace says so, names the batch that was late, and both costs: what was paid, and what the batch would have charged.
"""

from __future__ import annotations

from collections.abc import Callable

from router.errors import RouterError, UpstreamBroken
from router.jobs.deferred import JobAnswer
from router.serve.deferred.words import Meta, Note, Said
from router.serve.exchange import ClientWatch, Exchange, Incoming, Stopwatch
from router.serve.headers import Credential, usd
from router.serve.parts import Parts
from router.serve.pipeline import Pipeline
from router.trace.record import Trace


class RealTime:
    """Asks for jobs in real time, along a line of its own that defers nothing.

    `clock` gives monotonic seconds, `wall_clock_ns` Unix time.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        parts: Parts,
        new_trace_id: Callable[[], str],
        clock: Callable[[], float],
        wall_clock_ns: Callable[[], int],
    ) -> None:
        self._pipeline = pipeline
        self._parts = parts
        self._new_trace_id = new_trace_id
        self._clock = clock
        self._wall_clock_ns = wall_clock_ns

    async def __call__(
        self, job_id: str, said: Said, meta: Meta, credential: Credential, why: str, batch: str | None
    ) -> JobAnswer:
        """The answer to a job, with its books closed. Raises RouterError where the upstream gave none."""
        trace = Trace(self._new_trace_id(), self._wall_clock_ns(), method="POST", endpoint="messages")
        trace.request_id = "req_" + trace.trace_id
        trace.path, trace.batch = said.path.decode("latin-1"), batch
        trace.tenant, trace.key = meta.tenant, meta.key
        incoming = Incoming(
            "POST", said.path, said.query, said.headers, said.body, credential, meta.policy, meta.tenant, meta.key
        )
        exchange = Exchange(incoming, trace, ClientWatch(), Stopwatch(self._clock))
        exchange.refused.append(f"deferred as `{job_id}`; {why}")
        self._pipeline.begin(exchange)
        try:
            outgoing = await self._pipeline.messages(exchange)
            body = outgoing.body
            if outgoing.relay is not None:
                chunks: list[bytes] = []
                try:
                    while chunk := await outgoing.relay.read():
                        chunks.append(chunk)
                finally:
                    outgoing.relay.abort()
                body = b"".join(chunks)
            trace.status = outgoing.status
            if outgoing.status >= 400:
                trace.outcome = "client_error" if outgoing.status < 500 else "upstream_error"
            else:
                self._compare(exchange)
        except RouterError as exc:
            trace.outcome, trace.status = "upstream_error", exc.status
            trace.error_type, trace.error_code = exc.wire_type, exc.code
            raise
        except BaseException:
            trace.outcome = "client_closed"
            raise
        finally:
            await self._pipeline.finish(exchange)
        if body is None:
            raise UpstreamBroken("the upstream's answer has no body")
        note = Note(trace.cost_pusd, trace.saved_pusd, trace.model_sent, trace.lane, is_real_time=True)
        return JobAnswer(outgoing.status, body, note.packed(), self._wall_clock_ns() / 1e9)

    def _compare(self, exchange: Exchange) -> None:
        trace = exchange.trace
        if trace.usage is None or trace.cost_pusd is None:
            return
        in_batch = self._parts.catalog.cost(trace.usage, trace.model_answered or trace.model_sent, is_batch=True)
        if in_batch is not None:
            paid, spared = usd(trace.cost_pusd).decode(), usd(in_batch).decode()
            exchange.refused.append(f"answered at once for ${paid}; in a batch it would have cost ${spared}")
