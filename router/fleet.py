"""Opens what keeps policies: their history, and what keeps those of a fleet alike, pushed versions in Redis.

The link to that is its own, and patient: a whole set of policies may come over it, and nobody's request waits for
that.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from router.errors import SettingsError
from router.policy.compile import PolicySet
from router.policy.history import PolicyHistory
from router.policy.push_follower import PushFollower
from router.policy.push_store import PushStore
from router.policy.store import CompileFolder, PolicyStore
from router.redis_link import RedisLink, check_redis_url
from router.settings import Settings
from router.urls import without_password

_log = logging.getLogger("router")

_DEADLINE_S = 2.0
_MOST_CONNECTIONS = 2
_OFF = dict.fromkeys(("processes", "other_revision", "is_pushed", "version", "taken", "refused", "failures"), 0)


class Fleet:
    """The policies of this process, and where others may push some. Without a Redis only the folder counts."""

    def __init__(self, policies: PolicyStore, follower: PushFollower | None) -> None:
        self._policies = policies
        self._follower = follower

    async def start(self) -> None:
        """The first look, before this process serves; it waits for no Redis that is slow."""
        if self._follower is not None:
            await self._follower.start()

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the folder, and what is pushed, until `stop` is set."""
        if self._follower is None:
            await self._policies.run(stop)
        else:
            await asyncio.gather(self._policies.run(stop), self._follower.run(stop))

    def stats(self) -> Mapping[str, int]:
        """The figures of `router_fleet`; all 0 where there is no Redis."""
        return _OFF if self._follower is None else self._follower.stats()

    def status(self) -> Mapping[str, Any] | None:
        """For the admin listener; None where there is no Redis."""
        return None if self._follower is None else self._follower.status()


def open_fleet(
    settings: Settings, links: dict[str, RedisLink], policies: PolicyStore, compile_set: Callable[..., PolicySet]
) -> Fleet:
    """What `Fleet` says; a link that it takes is added to `links`, whose owner closes it.

    `compile_set` takes files, and `folder`: how these are called in diagnostics. Connects to
    nothing. Raises SettingsError.
    """
    url = fleet_url(settings)
    if url is None:
        return Fleet(policies, None)
    link = links["redis_fleet"] = open_link(url, observe=_say_link)

    def compile_pushed(number: int) -> CompileFolder:
        return partial(compile_set, folder=f"pushed #{number}")

    follower = PushFollower(
        PushStore(link, signing_key(settings)),
        policies,
        compile_pushed,
        process=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}",
        clock=time.monotonic,
        wall_clock=time.time,
        say=_say,
    )
    return Fleet(policies, follower)


def open_link(url: str, observe: Callable[[bool, str], None] | None = None) -> RedisLink:
    """A link that is patient enough for a set of policies. Raises SettingsError."""
    return RedisLink(
        url,
        deadline_s=_DEADLINE_S,
        give_up_s=2 * _DEADLINE_S,
        most_connections=_MOST_CONNECTIONS,
        observe=observe,
    )


def policy_history(settings: Settings) -> PolicyHistory | None:
    """Where the last revisions are kept; None where that is off."""
    if settings.policy_history == "off":
        return None
    return PolicyHistory(
        Path(settings.policy_history),
        Path(settings.policies),
        now=time.time,
        say=lambda problem: _log.warning("policies: the history cannot be kept, policies go on: %s", problem),
    )


def fleet_url(settings: Settings) -> str | None:
    """The Redis of `fleet`; None: no fleet. Raises SettingsError.

    It is never another setting's: without a `tenant_secret`, whoever may write there may route, which nobody has asked
    for who names a cache.
    """
    if settings.fleet is None or settings.fleet == "off":
        return None
    if "redis" not in settings.fleet.partition(":")[0]:
        raise SettingsError(
            f"`fleet` is `{without_password(settings.fleet)}`",
            hint="expected `off`, or `redis://…`, `rediss://…`, `redis+sentinel://…`, `redis+cluster://…`",
        )
    check_redis_url(settings.fleet)
    return settings.fleet


def signing_key(settings: Settings) -> bytes | None:
    """What pushed policies are signed with: of the `tenant_secret` that processes share; None without one."""
    if settings.tenant_secret is None:
        return None
    return hashlib.sha256(b"model-router pushed policies\0" + settings.tenant_secret.encode()).digest()


def _say(is_taken: bool, what: str) -> None:
    if is_taken:
        _log.info("fleet: %s", what)
    else:
        _log.error("fleet: %s", what)


def _say_link(is_up: bool, reason: str) -> None:
    if is_up:
        _log.info("redis: back, policies can be pushed again")
    else:
        _log.error("redis: %s; until it is back, no policies can be pushed, and what is in force stays", reason)
