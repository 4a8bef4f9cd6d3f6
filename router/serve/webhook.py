"""Webhooks: a client that deferred a request is told when its answer is there.

What is sent names the job, its status and its place, never anything of the prompt or the answer; who fetches the answer
needs the credential it belongs to. The body is signed, so that a receiver knows it is ours and not a replay:

    x-router-signature: t=UNIX,v1=HEX      HMAC-SHA256 of `UNIX.BODY` with `webhook_secret`

A delivery is tried until the receiver answers 2xx, six times at the most, and each try is signed anew. The id in
`x-router-webhook-id` follows from the job, so that a receiver that is told twice (an answer that got lost, a router
that was restarted) sees that it is one event. Fails open: a job is no worse for a webhook that nobody takes, which is
counted and said in the log.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import random as system_random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from router.errors import InvalidRequest, RouterError
from router.seams import Deadlines, PendingCall, Upstream, UpstreamCall
from router.serve.headers import RawHeaders, header_value
from router.serve.webhook_hosts import ListedHost, Webhook, read_webhook

WAITS_S = (1.0, 4.0, 16.0, 60.0, 300.0)  # between the tries, each a fifth more or less, so that receivers see no crowd
DEADLINES = Deadlines(first_byte=10.0, idle=10.0, total=15.0)
MOST_PER_ORIGIN = 8  # tries at a time: a batch ends with a thousand jobs at once
MOST_TRIES = 64  # of all origins together
SAY_EVERY_S = 60.0
_MOST_HOSTS = 1024  # remembered as said

_log = logging.getLogger("router")


@dataclass(slots=True)
class _Room:
    """What the deliveries to one origin share."""

    upstream: Upstream
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_PER_ORIGIN))
    users: int = 0


class Webhooks:
    """Tells receivers that jobs have ended; belongs to one event loop.

    `hosts` may be called (none: no webhook is taken), `secret` signs. `open_upstream` gives a client for an origin,
    which is closed again. `wall_clock` gives Unix seconds, `sleep` waits, `random` is 0 up to 1.
    """

    def __init__(
        self,
        hosts: Sequence[ListedHost],
        secret: str | None,
        open_upstream: Callable[[str], Upstream],
        *,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = system_random.random,
        deadlines: Deadlines = DEADLINES,
    ) -> None:
        self._hosts = tuple(hosts) if secret is not None else ()
        self._secret = (secret or "").encode()
        self._open = open_upstream
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._random = random
        self._deadlines = deadlines
        self._rooms: dict[str, _Room] = {}
        self._tries = asyncio.Semaphore(MOST_TRIES)
        self._said: dict[str, tuple[float, int]] = {}  # host → when it was said, how many were not said since
        self._attempts = self._failed = self._delivered = self._given_up = self._canceled = self._under_way = 0

    def check(self, url: str) -> None:
        """Raise InvalidRequest when the value of `x-router-webhook` is not an address that may be called."""
        read_webhook(url, self._hosts)

    async def deliver(self, url: str, job_id: str, status: int, location: str) -> bool:
        """Tell `url` that a job has ended, with all the tries that takes; whether the receiver took it.

        `status` is the HTTP status of the answer, `location` where it is. Nothing but cancellation is raised, and then
        nothing is left behind.
        """
        try:
            webhook = read_webhook(url, self._hosts)
        except InvalidRequest:  # the operator has taken the host off the list since
            self._give_up("(not listed)", "its host is not in `webhook_hosts` any more")
            return False
        room = self._rooms.get(webhook.origin)
        if room is None:
            room = self._rooms[webhook.origin] = _Room(self._open(webhook.origin))
        room.users += 1
        self._under_way += 1
        try:
            return await self._tried(room, webhook, job_id, _body(job_id, status, location))
        except asyncio.CancelledError:
            self._canceled += 1
            raise
        finally:
            self._under_way -= 1
            room.users -= 1
            if not room.users:
                del self._rooms[webhook.origin]
                await room.upstream.close()

    def stats(self) -> Mapping[str, int]:
        """`under_way` now; since start `delivered`, `given_up`, `canceled`; of tries `attempts` and `failed`."""
        return {
            "under_way": self._under_way,
            "delivered": self._delivered,
            "given_up": self._given_up,
            "canceled": self._canceled,
            "attempts": self._attempts,
            "failed": self._failed,
        }

    async def _tried(self, room: _Room, webhook: Webhook, job_id: str, body: bytes) -> bool:
        failure = ""
        for wait_s in (0.0, *WAITS_S):
            if wait_s:
                await self._sleep(wait_s * (0.8 + 0.4 * self._random()))
            async with room.turns, self._tries:
                failure = await self._once(room.upstream, webhook.target, job_id, body)
            if not failure:
                self._delivered += 1
                return True
            self._failed += 1
        self._give_up(webhook.host, failure)
        return False

    async def _once(self, upstream: Upstream, target: bytes, job_id: str, body: bytes) -> str:
        """One try: what went wrong, without a word of the receiver's; nothing when it took it."""
        self._attempts += 1
        at_s = int(self._wall_clock())
        headers: RawHeaders = [
            (b"content-type", b"application/json"),
            (b"user-agent", b"model-router"),
            (b"x-router-webhook-id", header_value(f"webhook_{job_id}")),
            (b"x-router-signature", b"t=%d,v1=%b" % (at_s, signature(self._secret, at_s, body).encode())),
        ]
        call: PendingCall = upstream.start(UpstreamCall("POST", target, headers, body, self._deadlines))
        try:
            status = (await call.reply()).status
        except RouterError as exc:
            return exc.message
        finally:
            call.abort()  # what else the receiver says is nothing to us
        return "" if 200 <= status < 300 else f"it answered {status}"

    def _give_up(self, host: str, failure: str) -> None:
        """Count it, and say so: of one host once a minute, with the number of those that were not said."""
        self._given_up += 1
        now_s = self._wall_clock()
        said_s, unsaid = self._said.get(host, (-SAY_EVERY_S, 0))
        if 0 <= now_s - said_s < SAY_EVERY_S:
            self._said[host] = (said_s, unsaid + 1)
            return
        if len(self._said) >= _MOST_HOSTS:
            self._said.clear()
        self._said[host] = (now_s, 0)
        besides = f"; {unsaid} more since it was last said" if unsaid else ""
        _log.warning("a webhook to `%s` was given up: %s%s", host, failure, besides)


def signature(secret: bytes, at_s: int, body: bytes) -> str:
    """The `v1` of `x-router-signature`, in hexadecimal digits."""
    return hmac.new(secret, b"%d.%b" % (at_s, body), "sha256").hexdigest()


def _body(job_id: str, status: int, location: str) -> bytes:
    return orjson.dumps({"type": "deferred_message.ended", "id": job_id, "status": status, "location": location})
