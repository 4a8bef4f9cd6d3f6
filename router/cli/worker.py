"""A worker: one of the serving processes that `router serve` starts where `workers` is more than 1.

It is no command. The supervisor starts it with three numbers of inherited descriptors: its end of the line, the
listening socket of the API, and a file for what a stuck worker was doing.
"""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import socket
import sys

from router.app import App
from router.cli.end import LastResort, leave
from router.cli.life import Drain, Life
from router.cli.main import complain
from router.cli.serve import Reloads, loop_factory, open_log, servers
from router.control import Line, taken_over
from router.errors import RouterError
from router.settings import Settings, drain_delay_s, drain_timeout_s, worker_timeout_s

_BEAT_S = 1.0
_BEATS = 5  # in the time after which a worker counts as stuck, at the least


def main() -> None:
    """Serve until the supervisor says otherwise, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the supervisor tells us
    line, listener, record = (int(number) for number in sys.argv[1:4])
    faulthandler.register(signal.SIGUSR1, file=record, all_threads=False)
    end = socket.socket(fileno=line)
    settings = taken_over(end)
    open_log(settings)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(work(settings, end, socket.socket(fileno=listener)))
            leave(0)
    except RouterError as exc:
        sys.exit(complain(exc))


async def work(settings: Settings, end: socket.socket, listener: socket.socket) -> None:
    """One worker's life, by the words on the line."""
    app = App(settings)
    life = Life(app, *servers(app), Drain(drain_timeout_s(settings), drain_delay_s(settings)), LastResort())
    reload = Reloads(app)
    loop = asyncio.get_running_loop()

    def heard(word: str, connection: socket.socket | None) -> None:
        if connection is not None:
            life.admin.adopt(connection)
        elif word.startswith("drain "):
            life.drain(float(word.removeprefix("drain ")))
        elif word == "hurry":
            life.hurry()
        elif word == "reload":
            reload()

    line = Line(end, heard, life.drain)
    beat_s = min(_BEAT_S, worker_timeout_s(settings) / _BEATS)

    def beat() -> None:
        line.say("beat")
        loop.call_later(beat_s, beat)

    loop.add_signal_handler(signal.SIGTERM, life.drain)
    loop.add_signal_handler(signal.SIGHUP, reload)
    loop.add_signal_handler(signal.SIGUSR2, lambda: None)  # the supervisor's business
    beat()
    try:
        await life.run(listener, None, lambda: line.say("ready"))
    finally:
        line.close()


if __name__ == "__main__":
    main()
