"""Walk the route: try, retry, fall back, commit.

Theory of operation. A *refusal* is an answer or a failure that proves the upstream did not work on the request, so that
it cannot have charged for it: no connection, 429, 529, 503, and any other 4xx of a model that the router chose (the
model asked for may well take what this one does not). Only after a refusal is there another attempt: first on the same
lane (as often as the rule's `retry` says, and no earlier than `retry-after` asks; never after a 4xx), then on the next
lane of the route, whose last stop is the model asked for. Everything else ends the walk: a 2xx, what the asked model
says, a 500, and also a timeout or a broken connection, because the upstream may have charged. When every lane refuses,
the client gets what the model asked for said, byte for byte, or else what the first lane said: a fallback's complaint
never hides the real failure.

The walk ends before the first byte goes to the client (the *commit*); after it there is no other attempt.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from router.errors import ClientGone, RouterError, UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from router.policy.written import Lane
from router.seams import Upstream, UpstreamCall, UpstreamReply
from router.serve.exchange import Exchange
from router.serve.headers import RawHeaders, first
from router.trace.record import Attempt
from router.wire.messages import MessagesRequest

MAX_ERROR_BODY = 1024 * 1024  # bytes of a refusal kept, in case it is the answer in the end
MAX_RETRY_WAIT_S = 8.0  # a longer `retry-after` is the client's to wait for, or the next lane's chance
BACKOFF_S = 0.5  # the first wait of a retry that names none; doubles

_SAME_FOR_ALL = (401, 413)  # said of the credential or the size, whatever the model
_REFUSALS = {429: "rate_limited", 503: "unavailable", 529: "overloaded"}


@dataclass(frozen=True, slots=True)
class Target:
    """One stop of the route: a lane and the model it stands for in this request.

    `adapted` is the request as this model takes it, None where it takes it as it came; `edits` say what was changed.
    """

    lane: Lane
    model: str
    adapted: MessagesRequest | None = None
    edits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the walk ends with: a reply still to be read, or a refusal already read (`body` is not None)."""

    status: int
    headers: RawHeaders
    reply: UpstreamReply | None
    body: bytes | None
    attempt: Attempt
    target: Target


async def walk(
    exchange: Exchange,
    upstream: Upstream,
    route: Iterable[Target],
    retries: int,
    call_for: Callable[[Target], UpstreamCall],
    jitter: Callable[[], float],
) -> Answer:
    """Try the targets in order until one answers; every attempt is noted in the trace, before `call_for` is asked.

    `jitter` gives a number in [0, 1). Raises UpstreamUnreachable when no lane could be reached, UpstreamTimeout or
    UpstreamBroken when an attempt failed that may have been charged, ClientGone when the client left.
    """
    first_failure: Answer | RouterError | None = None
    asked_failure: Answer | None = None
    for position, target in enumerate(route):
        is_asked = target.model == exchange.trace.model_asked
        for number in range(retries + 1):
            attempt = Attempt(lane=target.lane.name, model=target.model, started_s=exchange.clock.now_s())
            exchange.trace.attempts.append(attempt)
            try:
                reply = await _send(exchange, upstream, call_for(target), attempt)
                answer = await _judge(exchange, reply, attempt, target, is_asked=is_asked)
            except (UpstreamTimeout, UpstreamBroken):
                if isinstance(first_failure, Answer) and not is_asked:
                    return first_failure
                raise
            except UpstreamUnreachable as exc:
                first_failure = first_failure or exc
                wait_s = _backoff_s(number, jitter) if exc.retryable else None
            else:
                if answer.body is None:
                    is_failed_fallback = position > 0 and answer.status >= 500 and not is_asked
                    if is_failed_fallback and answer.reply is not None and isinstance(first_failure, Answer):
                        answer.reply.abort()  # a fallback's own failure does not hide the first one either
                        return first_failure
                    return answer
                first_failure = first_failure or answer
                asked_failure = answer if is_asked else asked_failure
                if _is_spend_cap(answer):
                    return answer  # the organization's, whatever the model; and it does not lift in seconds
                wait_s = _wait_s(answer, number, jitter)
            if number == retries or wait_s is None or wait_s > MAX_RETRY_WAIT_S:
                break
            await sleep(exchange, wait_s)
    if asked_failure is not None:
        return asked_failure
    if isinstance(first_failure, Answer):
        return first_failure
    raise first_failure or UpstreamUnreachable("the route has no lane")


async def _send(exchange: Exchange, upstream: Upstream, call: UpstreamCall, attempt: Attempt) -> UpstreamReply:
    """One HTTP exchange up to its response headers; failures are noted in the attempt and raised on."""
    pending = upstream.start(call)
    try:
        exchange.watch.during(pending.abort)
        reply = await pending.reply()
    except UpstreamUnreachable:
        attempt.outcome = "connect_failed"
        raise
    except UpstreamTimeout:
        attempt.outcome = "timeout"
        raise
    except UpstreamBroken:
        attempt.outcome = "broken"
        raise
    except ClientGone:
        pending.abort()
        attempt.outcome = "client_closed"
        raise
    finally:
        attempt.ended_s = exchange.clock.now_s()
        exchange.clock.waited_s += attempt.ended_s - attempt.started_s
        exchange.watch.during(None)
    attempt.first_byte_s = attempt.ended_s
    attempt.status = reply.status
    request_id = first(reply.headers, b"request-id")
    attempt.request_id = request_id.decode("latin-1") if request_id else None
    return reply


async def _judge(
    exchange: Exchange, reply: UpstreamReply, attempt: Attempt, target: Target, *, is_asked: bool
) -> Answer:
    """Is this the answer, or a refusal to walk on from?"""
    status = reply.status
    outcome = _REFUSALS.get(status)
    if outcome is None and not is_asked and 400 <= status < 500 and status not in _SAME_FOR_ALL:
        outcome = (
            "rejected"  # a model that we chose does not take this: no mistake of the client, if the asked one does
        )
    if outcome is None:
        if status >= 400:
            attempt.outcome = "rejected" if status < 500 else "error"
        return Answer(status, reply.headers, reply, None, attempt, target)
    attempt.outcome = outcome
    attempt.retry_after_s = retry_after_s(reply.headers, exchange.trace.started_at_ns / 1e9 + exchange.clock.now_s())
    body = await _read_refusal(exchange, reply)
    attempt.ended_s = exchange.clock.now_s()
    return Answer(status, reply.headers, None, body, attempt, target)


async def _read_refusal(exchange: Exchange, reply: UpstreamReply) -> bytes:
    """The body of a refusal, bounded; a broken one is as good as an empty one."""
    exchange.watch.during(reply.abort)
    chunks: list[bytes] = []
    size = 0
    try:
        while chunk := await reply.read():
            size += len(chunk)
            if size > MAX_ERROR_BODY:
                reply.abort()
                break
            chunks.append(chunk)
    except (UpstreamBroken, UpstreamTimeout):
        return b""
    finally:
        exchange.watch.during(None)
    return b"".join(chunks)


def _is_spend_cap(answer: Answer) -> bool:
    return answer.body is not None and b"spend_limit_reached" in answer.body


def _wait_s(answer: Answer, number: int, jitter: Callable[[], float]) -> float | None:
    """Seconds until the same lane may be asked again; None when asking again is pointless."""
    if answer.attempt.outcome == "rejected" or first(answer.headers, b"x-should-retry") == b"false":
        return None
    if answer.attempt.retry_after_s is not None:
        return answer.attempt.retry_after_s
    return _backoff_s(number, jitter)


def _backoff_s(number: int, jitter: Callable[[], float]) -> float:
    """Seconds before retry `number` (from 0) where the upstream names none."""
    return BACKOFF_S * float(2**number) * (0.5 + jitter() / 2)


async def sleep(exchange: Exchange, wait_s: float) -> None:
    """Wait, and book it as waiting; ends at once with ClientGone when the client leaves."""
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[bool] = loop.create_future()

    def wake(is_gone: bool) -> None:
        if not woken.done():
            woken.set_result(is_gone)

    timer = loop.call_later(wait_s, wake, False)
    started_s = exchange.clock.now_s()
    try:
        exchange.watch.during(lambda: wake(True))
        if await woken:
            raise ClientGone("the client closed the connection")
    finally:
        timer.cancel()
        exchange.clock.waited_s += exchange.clock.now_s() - started_s
        exchange.watch.during(None)


def retry_after_s(headers: RawHeaders, unix_s: float) -> float | None:
    """Seconds asked for by `retry-after-ms` or `retry-after` (a number or an HTTP date); `unix_s` is the time now."""
    milliseconds = first(headers, b"retry-after-ms")
    value = first(headers, b"retry-after")
    try:
        if milliseconds is not None:
            wait_s = float(milliseconds) / 1000
        elif value is None:
            return None
        elif value.strip()[:1].isdigit():
            wait_s = float(value)
        else:
            wait_s = parsedate_to_datetime(value.decode("latin-1")).timestamp() - unix_s
    except (ValueError, OverflowError):
        return None
    return max(0.0, wait_s) if math.isfinite(wait_s) else None
