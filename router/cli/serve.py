"""`router serve`: both listeners, from settings to the last trace written, in one process or in several."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import click
import uvicorn

from router.cli.end import LastResort, leave
from router.cli.life import Drain, Life, Server
from router.errors import SettingsError
from router.log import start_log
from router.settings import Settings, drain_delay_s, drain_timeout_s, resolve
from router.supervisor import StartFailed, Supervisor, worker_figures
from router.web.http.connection import HttpConnection
from router.web.http.lobby import Lobby
from router.web.together import Together

if TYPE_CHECKING:
    from router.app import App

_log = logging.getLogger("router")


@click.command()
@click.option("--config", metavar="FILE", help="settings file (default: router.yaml where there is one)")
@click.option("--host", help="address of the API")
@click.option("--port", type=int, help="port of the API; 0 takes a free one")
@click.option("--admin-host", help="address of the admin listener")
@click.option("--admin-port", type=int, help="port of the admin listener; 0 takes a free one")
@click.option("--upstream", "upstream_url", metavar="URL", help="origin of the Messages API")
@click.option("--policies", metavar="DIR", help="folder of policies")
@click.option("--cache", metavar="URL", help="memory://?max_mb=256, redis://… or off")
@click.option("--traces", metavar="URL", help="sqlite:///FILE or off")
def serve(config: str | None, **flags: Any) -> None:
    """Run the proxy until SIGTERM or Ctrl-C."""
    settings = resolve(flags, os.environ, config).settings
    open_log(settings)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        leave(runner.run(run(settings) if settings.workers == 1 else run_workers(settings)))


def open_log(settings: Settings) -> None:
    """Where the log of this process goes."""
    start_log(settings, sys.stderr)


def loop_factory() -> Any:
    """uvloop where there is one; the default loop elsewhere."""
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.new_event_loop


async def run(settings: Settings) -> int:
    """Serve in this process until told to stop; raises before anything listens when the router could not serve."""
    from router.app import App  # a supervisor does without: it takes most of the time of a start

    app = App(settings)
    api_socket = _listen("port", settings.host, settings.port)
    admin_socket = _listen("admin_port", settings.admin_host, settings.admin_port)
    drain = Drain(drain_timeout_s(settings), drain_delay_s(settings))
    api, admin = servers(app)
    life = Life(app, api, admin, drain, LastResort())
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if life.is_draining:  # told twice: do not wait for what is under way
            life.hurry()
        else:
            life.drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, Reloads(app))
    loop.add_signal_handler(signal.SIGUSR2, _no_rolling_restart)
    faulthandler.register(signal.SIGUSR1)
    addresses = _address(api_socket), _address(admin_socket)
    await life.run(api_socket, admin_socket, lambda: announce(*addresses))
    return 0


async def run_workers(settings: Settings) -> int:
    """Keep `workers` processes serving until told to stop. Returns the exit status; raises SettingsError."""
    api_socket = _listen("port", settings.host, settings.port)
    admin_socket = _listen("admin_port", settings.admin_host, settings.admin_port)
    say_what_is_per_worker(settings)
    supervisor = Supervisor(settings, api_socket)
    together = Together(
        supervisor.workers,
        is_draining=lambda: supervisor.is_draining,
        figures=lambda: worker_figures(supervisor),
        is_cache_shared=not settings.cache.startswith("memory:"),
        version=version("model-router"),
    )
    admin = _server(together)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.drain)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
    loop.add_signal_handler(signal.SIGUSR1, supervisor.say_status)
    loop.add_signal_handler(signal.SIGUSR2, supervisor.roll)
    api_address, admin_address = _address(api_socket), _address(admin_socket)
    await admin.startup([admin_socket])
    try:
        return await supervisor.run(lambda: announce(api_address, admin_address))
    except StartFailed as failed:
        return failed.status
    finally:
        admin.leave()
        admin.close_idle()
        admin.cancel()


def say_what_is_per_worker(settings: Settings) -> None:
    """What several workers do not have in common is better known than found out."""
    if settings.affinity == "memory://":
        _log.warning(
            "workers: each remembers conversations by itself, and one that comes to another worker may change its "
            "model; name a Redis in `affinity` to share them"
        )
    if settings.cache.startswith("memory:"):
        _log.warning("workers: each has a cache of its own; name a Redis in `cache` to share it")


def servers(app: App) -> tuple[Server, Server]:
    """Those of the API and of the admin application."""
    lobbies = app.lobbies
    return _server(app.api, lobbies["connections"]), _server(app.admin, lobbies["admin_connections"])


class Reloads:
    """Call it to have the policies read now."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._tasks: set[asyncio.Task[bool]] = set()

    def __call__(self) -> None:
        task = asyncio.get_running_loop().create_task(self._app.policies.reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def announce(api: str, admin: str) -> None:
    """The one line on standard output: where both listeners are."""
    click.echo(f"router: api {api}  admin {admin}")
    sys.stdout.flush()


def _no_rolling_restart() -> None:
    _log.warning("SIGUSR2 restarts workers one after another; with `workers: 1` nothing is done")


def _server(application: Any, lobby: Lobby | None = None) -> Server:
    """uvicorn's life around connections of our own: docs/decisions/011. `lobby` None: one that nobody looks at."""
    protocol: Any = partial(HttpConnection, lobby=lobby or Lobby())
    return Server(
        uvicorn.Config(
            application,
            http=protocol,
            ws="none",
            lifespan="off",
            loop="none",
            interface="asgi3",
            access_log=False,
            server_header=False,
            date_header=False,  # the upstream's own date is relayed
            proxy_headers=False,
            log_config=None,
            log_level="error",
            backlog=4096,
        )
    )


def _listen(setting: str, host: str, port: int) -> socket.socket:
    """A listening socket. Raises SettingsError naming the setting."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # said, or asyncio leaves Nagle on
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(4096)
    except OSError as exc:
        listener.close()
        raise SettingsError(
            f"cannot listen on {host}:{port}: {exc.strerror or exc}", hint=f"choose another `{setting}`, or 0 for any"
        ) from exc
    listener.setblocking(False)
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
