"""The link to Redis: one command in, one reply out, within a hard time limit; the only room that knows the library.

Theory of operation. Redis is an optimisation, so nobody waits for it longer than `deadline_s`, and nobody waits at all
while it is known not to answer.

1. A command runs in a task of its own, which owns the connection; the caller only waits for that task, up to the
   deadline. A caller that gives up or is cancelled leaves the exchange to end by itself: its reply is read by the task
   that asked and thrown away. So no reply can reach another caller, a storm of cancelled callers closes no connection,
   and a first connection slower than the deadline still comes to be. A task that has no reply after `give_up_s` is
   cancelled, and its connection closed.
2. A semaphore bounds the tasks, and with them the connections; who finds none free within the deadline has failed.
3. After three failures in a row the link rests: calls fail at once for `rest_s` seconds; then one call is let through
   as a probe, and its outcome ends the rest or begins the next one.

An error reply about the command itself (a wrong type under the key, a command that the user may not use) fails that
call but shows a server that answers, so it never makes the link rest.

The traps of redis-py 8 that are closed here: ten retries by default, unbounded pools, CLIENT SETINFO and CLIENT
MAINT_NOTIFICATIONS on every connect, replies reshaped by callbacks.
Source: redis-py 8.1, measured: one GET against a hung server takes 59 s with the defaults.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import SplitResult, unquote, urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelManagedSSLConnection
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    DataError,
    MasterDownError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeout

from router.errors import SettingsError

_FAILURES_TO_REST = 3
_FORMS = (
    "`redis://[USER:PASSWORD@]HOST[:PORT][/DB]` (`rediss://` for TLS), "
    "`redis+sentinel://HOST:PORT[,HOST:PORT]/MASTER[/DB]` or `redis+cluster://HOST:PORT[,HOST:PORT]`"
)
_KINDS: Mapping[str, tuple[Literal["server", "sentinel", "cluster"], bool]] = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
# Error replies that say the server cannot serve anyone now; every other one is about the command that was sent.
_SERVER_ERRORS = (ReadOnlyError, ClusterDownError, MasterDownError)


class RedisUnavailable(Exception):
    """Redis gave no reply to use: too late, no connection, an error reply, or the link rests.

    `reason` is a few words without credentials, keys or values. `is_reply` says that the server answered with an error
    to this very command. Unless the link rested, the command may have been carried out.
    """

    def __init__(self, reason: str, *, is_reply: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_reply = is_reply


@dataclass(frozen=True, slots=True, repr=False)
class _Target:
    """What a URL of Redis says. `hosts` are sentinels or nodes of a cluster where the kind says so."""

    kind: Literal["server", "sentinel", "cluster"]
    is_tls: bool
    hosts: tuple[tuple[str, int], ...]
    user: str | None
    password: str | None
    database: int
    master: str


def check_redis_url(url: str) -> None:
    """Raises SettingsError when `url` is none of the forms that `RedisLink` takes; the message shows no part of it."""
    _target(url)


def _target(url: str) -> _Target:
    def wrong(what: str) -> SettingsError:
        # No part of the URL is shown: where it is malformed, any part may be a piece of the password.
        return SettingsError(f"the URL of Redis {what}", hint=f"expected {_FORMS}; `%2F` and the like in a password")

    try:
        parts: SplitResult | None = urlsplit(url)
    except ValueError:
        parts = None  # the error's text would show the URL
    if parts is None or not all("!" <= char <= "~" for char in url):
        raise wrong("is not a URL")
    if parts.scheme not in _KINDS:
        raise wrong("has an unknown scheme")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise wrong("has a `?` or `#` part")
    kind, is_tls = _KINDS[parts.scheme]
    userinfo, _, hostlist = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    hosts = tuple(_host(text, 26379 if kind == "sentinel" else 6379) for text in hostlist.split(","))
    if any(host is None for host in hosts) or (kind == "server" and len(hosts) > 1):
        raise wrong("has no usable host and port")
    steps = [unquote(step) for step in parts.path.split("/")[1:]]
    if steps and steps[-1] == "":
        steps.pop()
    master = steps.pop(0) if kind == "sentinel" and steps else ""
    if kind == "sentinel" and not master:
        raise wrong("names no master after the sentinels")
    number = steps.pop(0) if steps and kind != "cluster" else "0"
    if steps or not (number.isascii() and number.isdigit() and len(number) <= 5):
        raise wrong("has a path that is not the number of a database")
    return _Target(
        kind=kind,
        is_tls=is_tls,
        hosts=tuple(host for host in hosts if host is not None),
        user=unquote(user) or None,
        password=unquote(password) or None,
        database=int(number),
        master=master,
    )


def _host(text: str, default_port: int) -> tuple[str, int] | None:
    """`HOST`, `HOST:PORT` or `[IPv6]:PORT`; None for anything else."""
    try:
        parts = urlsplit(f"//{text}")
        port = default_port if parts.port is None else parts.port
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname and port and "@" not in text else None


class RedisLink:
    """A bounded, impatient connection to Redis, to one server, to what sentinels call the master, or to a cluster.

    Making one connects to nothing. Seconds: `deadline_s` bounds every call, `give_up_s` the exchange behind it,
    `rest_s` the pause after failures. `observe(is_up, reason)` is told once of each change; a link begins as up, and
    `reason` is empty when it is up again. `clock` gives seconds. Raises SettingsError as `check_redis_url` does.
    """

    def __init__(
        self,
        url: str,
        *,
        deadline_s: float = 0.05,
        give_up_s: float = 1.0,
        rest_s: float = 1.0,
        most_connections: int = 16,
        observe: Callable[[bool, str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.deadline_s = deadline_s
        self._give_up_s = give_up_s
        self._rest_s = rest_s
        self._observe = observe
        self._clock = clock
        self._client, self._sentinel = _client(_target(url), deadline_s, give_up_s, most_connections)
        self._free = asyncio.Semaphore(most_connections)
        self._running: set[asyncio.Task[Any]] = set()
        self._is_closed = False
        self._failures = 0  # in a row
        self._rests_until_s: float | None = None  # None: the link is up
        self._is_probing = False
        self._reason = ""
        self._asked = self._failed = self._refused = self._error_replies = self._latency_us = 0

    @property
    def is_up(self) -> bool:
        """False while the link rests, until a probe has succeeded."""
        return self._rests_until_s is None

    async def ask(self, *command: str | bytes | int | float, within_s: float | None = None) -> Any:
        """The reply to one command, as the protocol has it: bytes, a number, None, or a list of these.

        The name of the command is a text in capitals. `within_s` makes the deadline shorter. Raises RedisUnavailable.
        """
        is_probe = self._enter()
        started_s = self._clock()
        limit_s = self.deadline_s if within_s is None else max(0.0, min(within_s, self.deadline_s))
        try:
            reply = await self._exchange(command, limit_s)
        except (RedisError, RedisClusterException, OSError, ValueError) as exc:
            # The built-in TimeoutError is an OSError; a ValueError is a name of a host that cannot be one.
            if isinstance(exc, DataError):
                raise  # a value of a type that no command takes: our own bug
            is_reply = isinstance(exc, ResponseError)
            reason = "the link is closed" if self._is_closed else self._why(exc)
            self._failed += 1
            self._error_replies += is_reply
            self._judge(is_probe, "" if is_reply and not isinstance(exc, _SERVER_ERRORS) else reason)
            raise RedisUnavailable(reason, is_reply=is_reply) from None  # redis-py's texts may hold values
        else:
            self._latency_us = round((self._clock() - started_s) * 1e6)
            self._judge(is_probe, "")
            return reply
        finally:
            if is_probe:
                self._is_probing = False  # also when the caller was cancelled: the next one probes

    def stats(self) -> Mapping[str, int]:
        """Counts since the start; `is_up` is 0 or 1, `last_latency_us` is of the last reply, in microseconds."""
        return {
            "asked": self._asked,
            "failed": self._failed,
            "error_replies": self._error_replies,
            "refused": self._refused,
            "is_up": int(self.is_up),
            "last_latency_us": self._latency_us,
        }

    async def close(self) -> None:
        """End what is under way and close every connection. Calls after it fail."""
        self._is_closed = True
        while self._running:
            for task in self._running:
                task.cancel()
            # Again and again: the library lets a cancellation pass for the end of one of its own short waits.
            await asyncio.wait(tuple(self._running), timeout=0.02)
        for closing in (self._client, self._sentinel):
            if closing is not None:
                try:
                    await closing.aclose()
                except (RedisError, OSError):
                    pass  # a connection that cannot even be closed properly is gone all the same

    def _enter(self) -> bool:
        """Whether this call is the probe; raises while the link rests or another call probes."""
        if self._is_closed:
            raise RedisUnavailable("the link is closed")
        is_probe = self._rests_until_s is not None
        if self._rests_until_s is not None:
            if self._is_probing or self._clock() < self._rests_until_s:
                self._refused += 1
                raise RedisUnavailable(self._reason)
            self._is_probing = True
        self._asked += 1
        return is_probe

    async def _exchange(self, command: tuple[str | bytes | int | float, ...], limit_s: float) -> Any:
        """Run the command in its own task and wait for it; the task outlives a caller that stops waiting."""
        until_s = self._clock() + limit_s
        if self._free.locked():
            async with asyncio.timeout(limit_s):
                await self._free.acquire()
        else:
            await self._free.acquire()  # does not suspend
        task = asyncio.create_task(self._run(command))
        self._running.add(task)
        task.add_done_callback(self._ended)
        await asyncio.wait((task,), timeout=max(0.0, until_s - self._clock()))
        if not task.done():
            raise TimeoutError
        if task.cancelled():
            raise OSError  # by `close`, while we waited
        return task.result()

    async def _run(self, command: tuple[str | bytes | int | float, ...]) -> Any:
        async with asyncio.timeout(self._give_up_s):
            return await self._client.execute_command(*command)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        self._free.release()
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not complain of one that nobody waits for

    def _judge(self, is_probe: bool, failure: str) -> None:
        """Count the outcome of a call and move the state; `failure` is empty for a server that answered."""
        if self._rests_until_s is not None and not is_probe:
            return  # a call from before the rest: only the probe decides
        if not failure:
            self._failures = 0
            if is_probe:
                self._rests_until_s = None
                self._tell(True, "")
            return
        self._failures += 1
        if is_probe or self._failures >= _FAILURES_TO_REST:
            self._reason = failure
            self._rests_until_s = self._clock() + self._rest_s
            if not is_probe:
                self._tell(False, failure)

    def _tell(self, is_up: bool, reason: str) -> None:
        if self._observe is not None:
            self._observe(is_up, reason)

    def _why(self, exc: BaseException) -> str:
        """A failure in a few words; never the library's text, which may repeat what was sent."""
        seen: BaseException | None = exc
        while seen is not None:  # the library wraps what the system said
            if isinstance(seen, ssl.SSLCertVerificationError):
                return f"the certificate is not accepted: {seen.verify_message}"
            if isinstance(seen, ssl.SSLError):
                return "the TLS handshake failed"
            if isinstance(seen, AuthenticationError):
                return "the server does not accept the credentials, or asks for some"
            if isinstance(seen, BusyLoadingError):
                return "the server is still loading its data"
            if isinstance(seen, TimeoutError | RedisTimeout):
                return f"no answer within {self.deadline_s * 1000:.0f} ms"
            if isinstance(seen, OSError) and seen.errno is not None:
                # Not `strerror`, which names the address in one event loop and not in the other. Negative: of a name.
                return "cannot connect: " + (os.strerror(seen.errno).lower() if seen.errno > 0 else "unknown host")
            seen = seen.__cause__ or seen.__context__
        if isinstance(exc, ResponseError):
            code = exc.status_code or str(exc).partition(" ")[0]
            is_code = code.isascii() and code.isalpha() and code.isupper()
            return f"error reply `{code}`" if is_code and len(code) <= 20 else "an error reply"
        return "the connection was lost"


class _OneContext(SSLConnection):
    """A TLS connection over the link's own context: the library makes one per connection, 60 ms each on the loop."""

    def __init__(self, *, tls: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context.context = tls


class _OneContextToMaster(_OneContext, SentinelManagedSSLConnection):
    """The same, to what the sentinels call the master."""


def _client(
    target: _Target, deadline_s: float, give_up_s: float, most_connections: int
) -> tuple[Redis | RedisCluster, Sentinel | None]:
    """The library's client for `target`, with its traps closed; connects to nothing."""
    common: dict[str, Any] = {
        "username": target.user,
        "password": target.password,
        "socket_timeout": give_up_s,
        "socket_connect_timeout": give_up_s,
        "protocol": 2,  # nothing of the third is used, and it brings CLIENT MAINT_NOTIFICATIONS on connect
        "driver_info": None,  # no CLIENT SETINFO on connect: an ACL user may not be allowed it
        "decode_responses": False,
        "retry": Retry(NoBackoff(), 0),
    }
    to_server, to_master, to_nodes = dict(common), dict(common), dict(common)
    if target.is_tls:
        tls = ssl.create_default_context()  # verifies certificate and name; SSL_CERT_FILE counts
        to_server |= {"connection_class": _OneContext, "tls": tls}
        to_master |= {"connection_class": _OneContextToMaster, "tls": tls}
        to_nodes |= {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
    client: Redis | RedisCluster
    sentinel: Sentinel | None = None
    if target.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in target.hosts]
        client = RedisCluster(startup_nodes=nodes, max_connections=most_connections, **to_nodes)
    elif target.kind == "sentinel":
        # A sentinel that hangs must leave time to ask the next one. The credentials are the master's, not theirs.
        short_s = min(give_up_s, deadline_s / 3)
        asked = {"socket_timeout": short_s, "socket_connect_timeout": short_s} | {
            name: to_nodes[name]
            for name in to_nodes
            if name in ("protocol", "driver_info", "retry") or name.startswith("ssl")
        }
        sentinel = Sentinel(target.hosts, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]  # as it ships
        client = sentinel.master_for(target.master, db=target.database, max_connections=most_connections, **to_master)
    else:
        [(host, port)] = target.hosts
        at: dict[str, Any] = {"host": host, "port": port, "db": target.database, "max_connections": most_connections}
        client = Redis.from_pool(ConnectionPool(**at, socket_keepalive=True, **to_server))
    # The library turns some replies into other things (`OK` into True). What it asks for itself keeps its callbacks.
    callbacks: dict[str, Any] = client.response_callbacks  # type: ignore[assignment]  # its own subclass of dict
    for name in [name for name in callbacks if not name.startswith(("CLUSTER", "COMMAND", "INFO"))]:
        del callbacks[name]
    return client, sentinel
