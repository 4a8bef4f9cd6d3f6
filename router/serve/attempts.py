"""Walk the route: try, retry, fall back, commit.

Theory of operation. A *refusal* is an answer or a failure that proves the upstream did not work on the request, so that
it cannot have charged for it: no connection, 429, 529, 503, and any other 4xx of a model that the router chose (the
model asked for may well take what this one does not). Only after a refusal is there another attempt: first on the same
lane (as often as the rule's `retry` says, all lanes of the route together, while the retry budget of the process lasts
and the lane's breaker is closed, and no earlier than `retry-after` asks; never after a 4xx), then on the next lane of
the route, whose last stop is the model asked for. So a request makes at most one attempt per lane, and `retry` more.

Everything else ends the walk: a 2xx, what the asked model says, a 500, and also a timeout or a broken connection,
because the upstream may have charged. A rule may say `on_timeout: fallback`: then the next lane is asked after a
timeout too, never the same one, and the trace says that the cost is not known.

A lane whose breaker is open is passed over while another one is left; the last one is asked in any case, once. When
every lane refuses, the client gets what the model asked for said, byte for byte, or else what the first lane said: a
fallback's complaint never hides the real failure, be it a refusal, a timeout or that there was no connection.

The walk ends before the first byte goes to the client (the *commit*), and at the total deadline of the request; after
either there is no other attempt.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from router.errors import ClientGone, Overloaded, RouterError, UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from router.policy.written import NO_RETRY, Lane, Retry
from router.seams import Upstream, UpstreamCall, UpstreamReply
from router.serve.breaker import REFUSED, WEIGHTS, Breaker, Breakers, Pass
from router.serve.budget import RetryBudget
from router.serve.exchange import Exchange
from router.serve.headers import RawHeaders, first
from router.trace.record import Attempt
from router.value import value_class
from router.wire.messages import MessagesRequest

MAX_ERROR_BODY = 1024 * 1024  # bytes of a refusal kept, in case it is the answer in the end
MAX_RETRY_WAIT_S = 8.0  # a longer `retry-after` is the client's to wait for, or the next lane's chance
BACKOFF_S = 0.5  # the first wait of a retry that names none; doubles
SPREAD = 0.25  # of a wait that was asked for: so much later by chance, so that not all who were refused come at once

_SAME_FOR_ALL = (401, 413)  # said of the credential or the size, whatever the model
_REFUSALS = {429: "rate_limited", 503: "unavailable", 529: "overloaded"}
_LANE_ERRORS = ("overloaded_error", "api_error")  # in a stream: said of the lane; others are said of the request


@dataclass(frozen=True, slots=True)
class Means:
    """What a walk goes with. `jitter` gives a number in [0, 1); without a budget or breakers, nothing limits it."""

    upstream: Upstream
    jitter: Callable[[], float]
    budget: RetryBudget | None = None
    breakers: Breakers | None = None


@value_class(frozen=True, slots=True)
class Target:
    """One stop of the route: a lane and the model it stands for in this request.

    `adapted` is the request as this model takes it, None where it takes it as it came; `edits` say what was changed.
    """

    lane: Lane
    model: str
    adapted: MessagesRequest | None = None
    edits: tuple[str, ...] = ()


@value_class(frozen=True, slots=True)
class Answer:
    """What the walk ends with: a reply still to be read, or a refusal already read (`body` is not None)."""

    status: int
    headers: RawHeaders
    reply: UpstreamReply | None
    body: bytes | None
    attempt: Attempt
    target: Target
    breaker: Breaker | None = None
    leave: Pass = 0

    def failed_late(self, means: Means) -> None:
        """Tell the lane's breaker of an attempt that failed behind its head, if it did."""
        outcome = self.attempt.outcome
        if self.breaker is None or means.breakers is None or outcome == "ok":
            return
        if outcome != "error" or (self.attempt.error_type in _LANE_ERRORS and self.status < 500):
            weight = WEIGHTS.get(outcome)
            if weight:
                self.breaker.failed_late(self.leave, weight, means.breakers.now_s())


async def walk(
    exchange: Exchange,
    means: Means,
    route: Iterable[Target],
    call_for: Callable[[Target], UpstreamCall],
    retry: Retry = NO_RETRY,
    limit_s: float = math.inf,
) -> Answer:
    """Try the targets in order until one answers; every attempt is noted in the trace, before `call_for` is asked.

    `limit_s`, on the clock of the exchange, is when the request ends. Raises UpstreamUnreachable when no lane could be
    reached, UpstreamTimeout or UpstreamBroken when an attempt failed that may have been charged, ClientGone when the
    client left.
    """
    first_failure: Answer | RouterError | None = None
    asked_failure: Answer | None = None
    retries_left = retry.times
    is_first = True
    if means.budget is not None:
        means.budget.request()
    targets = iter(route)
    target = next(targets, None)
    while target is not None:
        breaker, leave, following = _door(exchange, means, target, targets)
        if leave == REFUSED:
            target, is_first = following, False
            continue
        is_asked = target.model == exchange.trace.model_asked
        number = 0
        while True:
            attempt = Attempt(lane=target.lane.name, model=target.model, started_s=exchange.clock.now_s())
            exchange.trace.attempts.append(attempt)
            try:
                reply = await _send(exchange, means, call_for, target, attempt, breaker, leave)
                answer = await _judge(exchange, reply, attempt, target, breaker, leave, is_asked=is_asked)
            except (UpstreamTimeout, UpstreamBroken) as exc:
                if isinstance(exc, UpstreamTimeout) and retry.on_timeout == "fallback":
                    first_failure = first_failure or exc
                    break
                if first_failure is not None and not is_asked:
                    return _first_word(first_failure)
                raise
            except UpstreamUnreachable as exc:
                first_failure = first_failure or exc
                wait_s = _backoff_s(number, means.jitter) if exc.retryable else None
            else:
                if answer.body is None:
                    is_failed_fallback = not is_first and answer.status >= 500 and not is_asked
                    if is_failed_fallback and answer.reply is not None and first_failure is not None:
                        answer.reply.abort()  # a fallback's own failure does not hide the first one either
                        return _first_word(first_failure)
                    return answer
                first_failure = first_failure or answer
                asked_failure = answer if is_asked else asked_failure
                if _is_spend_cap(answer):
                    return answer  # the organization's, whatever the model; and it does not lift in seconds
                wait_s = _wait_s(answer, number, means.jitter)
            if not retries_left or wait_s is None or not _may_retry(exchange, means, breaker, wait_s, limit_s):
                break
            await sleep(exchange, wait_s)
            retries_left, number = retries_left - 1, number + 1
            if breaker is not None and means.breakers is not None:
                leave = breaker.enter(means.breakers.now_s())
                if leave == REFUSED:
                    break  # it has opened while this request waited
        is_over = exchange.clock.now_s() >= limit_s
        target, is_first = None if is_over else next(targets, None), False
    if asked_failure is not None:
        return asked_failure
    return _first_word(first_failure or UpstreamUnreachable("the route has no lane"))


def _first_word(failure: Answer | RouterError) -> Answer:
    """What the first lane that failed said; raised where it said nothing."""
    if isinstance(failure, Answer):
        return failure
    raise failure


def _door(
    exchange: Exchange, means: Means, target: Target, targets: Iterator[Target]
) -> tuple[Breaker | None, Pass, Target | None]:
    """The breaker of a lane and leave to ask it; or REFUSED and the target after it, where there is one."""
    breakers = means.breakers
    if breakers is None:
        return None, 0, None
    breaker = breakers.of(target.lane, target.model)
    leave = breaker.enter(breakers.now_s())
    if leave != REFUSED:
        return breaker, leave, None
    following = next(targets, None)
    if following is None:
        return breaker, breaker.force(), None
    breaker.skipped += 1
    exchange.refused.append(f"lane `{target.lane.name}` passed over: its breaker is open after failures")
    return breaker, REFUSED, following


def _may_retry(exchange: Exchange, means: Means, breaker: Breaker | None, wait_s: float, limit_s: float) -> bool:
    """Whether the same lane may be asked once more after `wait_s`; if so, the budget has paid for it."""
    if wait_s > MAX_RETRY_WAIT_S or exchange.clock.now_s() + wait_s >= limit_s:
        return False
    if breaker is not None and not breaker.is_closed():
        return False
    return means.budget is None or means.budget.take()


async def _send(
    exchange: Exchange,
    means: Means,
    call_for: Callable[[Target], UpstreamCall],
    target: Target,
    attempt: Attempt,
    breaker: Breaker | None,
    leave: Pass,
) -> UpstreamReply:
    """One HTTP exchange up to its response headers; failures are noted in the attempt and raised on.

    The lane's breaker is told how it went, on every way out.
    """
    weight: float | None = None
    is_ours = False  # what went wrong says nothing of the lane
    try:
        pending = means.upstream.start(call_for(target))
        try:
            exchange.watch.during(pending.abort)
            reply = await pending.reply()
        except UpstreamUnreachable:
            attempt.outcome = "connect_failed"
            raise
        except Overloaded:  # no file descriptor is left
            attempt.outcome = "connect_failed"
            is_ours = True
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
            attempt.is_resent = pending.is_resent
        weight = 1.0 if reply.status >= 500 else 0.0
    finally:
        attempt.ended_s = exchange.clock.now_s()
        exchange.clock.waited_s += attempt.ended_s - attempt.started_s
        exchange.watch.during(None)
        if breaker is not None and means.breakers is not None and not (weight == 0.0 and breaker.went_well(leave)):
            how = None if is_ours else WEIGHTS.get(attempt.outcome, weight)
            breaker.ended(leave, how, means.breakers.now_s())
    attempt.first_byte_s = attempt.ended_s
    attempt.status = reply.status
    request_id = first(reply.headers, b"request-id")
    attempt.request_id = request_id.decode("latin-1") if request_id else None
    return reply


async def _judge(
    exchange: Exchange,
    reply: UpstreamReply,
    attempt: Attempt,
    target: Target,
    breaker: Breaker | None,
    leave: Pass,
    *,
    is_asked: bool,
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
        return Answer(status, reply.headers, reply, None, attempt, target, breaker, leave)
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
    """Seconds until the same lane may be asked again; None when asking again is pointless.

    Never earlier than the upstream asked for; and from the second retry on no earlier than without its word, so that
    a `retry-after: 0` that is said again and again makes no tight loop (F6).
    """
    if answer.attempt.outcome == "rejected" or first(answer.headers, b"x-should-retry") == b"false":
        return None
    asked_s = answer.attempt.retry_after_s
    if asked_s is None:
        return _backoff_s(number, jitter)
    if asked_s > MAX_RETRY_WAIT_S:
        return None
    spread_s = min(asked_s * (1 + SPREAD * jitter()), MAX_RETRY_WAIT_S)
    return spread_s if number == 0 else max(spread_s, _backoff_s(number, jitter))


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
