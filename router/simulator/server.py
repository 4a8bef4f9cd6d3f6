"""Runs a simulator on a port: in the foreground for the command line, on a thread for tests and demos."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from router.simulator.app import create_simulator
from router.simulator.settings import SimulatorSettings

BACKLOG = 2048
DRAIN_S = 1  # seconds that answers under way get at the end


class _Announcing(uvicorn.Server):
    """Says where it listens once it really does."""

    def __init__(self, config: uvicorn.Config, origin: str, *, is_silent: bool = False) -> None:
        super().__init__(config)
        self._origin = origin
        self._is_silent = is_silent
        self.is_listening = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self._is_silent:
            print(f"simulator: {self._origin}", flush=True)
        self.is_listening.set()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises `OSError` when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def origin_of(sock: socket.socket) -> str:
    """The address of a listening socket as a base URL."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _config(app: Starlette) -> uvicorn.Config:
    # The log is for our own faults only: a scripted cut would otherwise be reported as an error of the server.
    return uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_level="critical",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )


def run(host: str, port: int, settings: SimulatorSettings) -> None:
    """Serve until SIGINT or SIGTERM; prints `simulator: ADDRESS` when it listens. Raises `OSError` for the address."""
    sock = listen(host, port)
    server = _Announcing(_config(create_simulator(settings)), origin_of(sock))
    # uvicorn raises a caught signal again after its shutdown; with handlers of our own that is the end of it.
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[sock])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        sock.close()


@contextmanager
def served(settings: SimulatorSettings | None = None) -> Iterator[str]:
    """A simulator on a thread and an ephemeral loopback port, as its base URL, for the length of a `with` block."""
    sock = listen("127.0.0.1", 0)
    server = _Announcing(_config(create_simulator(settings)), origin_of(sock), is_silent=True)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    server.is_listening.wait(30)
    try:
        yield origin_of(sock)
    finally:
        server.should_exit = True
        thread.join(30)
        sock.close()
