"""`router serve`: both listeners in one process, from settings to the last trace written."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import click
import uvicorn

from router.errors import SettingsError
from router.settings import Settings, resolve

_KEEP_ALIVE_S = 120  # longer than any client's pool keeps a connection: the client, not we, closes idle ones
_DRAIN_S = 30
_LAST_WORDS_S = 2  # of the grace period, kept for telling clients that it is over
_YOUNG_OBJECTS = 20_000  # a request makes a few hundred and leaves no cycles: looking every 700 finds nothing
_SWITCH_S = 0.0005  # how long the event loop waits for the interpreter while the trace writer holds it


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
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("router").setLevel(logging.INFO)
    settings = resolve(flags, os.environ, config).settings
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(run(settings))


def _loop_factory() -> Any:
    """uvloop where there is one; the default loop elsewhere."""
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.new_event_loop


async def run(settings: Settings) -> None:
    """Serve until told to stop; raises before anything listens when the router could not serve."""
    from router.app import App  # half a second: help, a wrong flag and a wrong setting do not wait for it

    app = App(settings)
    api_socket = _listen("port", settings.host, settings.port)
    admin_socket = _listen("admin_port", settings.admin_host, settings.admin_port)
    api, admin = _server(app.api), _server(app.admin)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        app.drain()
        loop.call_later(_DRAIN_S - _LAST_WORDS_S, app.api.cut)
        if api.should_exit:  # told twice: do not wait for what is under way
            api.force_exit = admin.force_exit = True
        api.should_exit = admin.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    reloads: set[asyncio.Task[bool]] = set()

    def reload() -> None:
        task = loop.create_task(app.policies.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    await app.start()
    gc.collect()
    gc.freeze()  # what lives from start to end is not looked at again by every full collection
    gc.set_threshold(_YOUNG_OBJECTS, 20, 100)
    sys.setswitchinterval(_SWITCH_S)
    try:
        serving = asyncio.gather(api.serve(sockets=[api_socket]), admin.serve(sockets=[admin_socket]))
        await asyncio.gather(api.is_up.wait(), admin.is_up.wait())
        click.echo(f"router: api {_address(api_socket)}  admin {_address(admin_socket)}")
        sys.stdout.flush()
        await serving
    finally:
        await app.stop()


class _Server(uvicorn.Server):
    """uvicorn, with the signals left to `run`, which stops two servers at once."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(application: Any) -> _Server:
    return _Server(
        uvicorn.Config(
            application,
            http="httptools",
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
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_DRAIN_S,
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
