"""Accepts connections from a listening socket, and goes on when there is no file descriptor left for one.

Event loops accept by themselves, but they cannot be told to leave a shared socket open, they do not count, and where
descriptors run out asyncio logs a traceback a second while newcomers wait; under uvloop a listener may even close for
good. This door keeps one descriptor in reserve: with it a newcomer that cannot be served is taken, told so, and closed
at once (F91). Whatever is open already goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

from router.web.http.lobby import new_request_id
from router.web.http.refusal import OVERLOADED, Refused, refusal

_log = logging.getLogger("router")

_AT_ONCE = 16  # connections taken in one turn of the loop: the rest may go to other processes
_PAUSE_S = 0.1  # where not even the reserve helps
_SAY_S = 60.0
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_NO_ROOM = (*_NO_DESCRIPTOR, errno.ENOBUFS, errno.ENOMEM)
_REFUSED = Refused("connections", "the router has no room for another connection", OVERLOADED)


class Door:
    """One listening socket. `take` is given each connection, non-blocking and with Nagle off.

    The socket may be shared with other processes: closing the door closes this process's copy and leaves the
    connections that wait in it to them.
    """

    def __init__(self, listener: socket.socket, take: Callable[[socket.socket], None]) -> None:
        self._listener = listener
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._reserve: int | None = None
        self._resume: asyncio.TimerHandle | None = None
        self._is_open = True
        self._next_say = 0.0
        self._accepted = 0
        self._refused = 0
        listener.setblocking(False)
        if listener.family != socket.AF_UNIX:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        self._keep_reserve()
        self._loop.add_reader(listener.fileno(), self._accept)

    def stats(self) -> Mapping[str, int]:
        """`accepted` connections, and those `refused` because no file descriptor was left."""
        return {"accepted": self._accepted, "refused": self._refused}

    def take_waiting(self) -> None:
        """Take in who waits already: where no other process has the socket, closing it would reset them."""
        if self._is_open and self._resume is None:
            self._accept()

    def close(self) -> None:
        """Take nobody else in; may be called again."""
        if not self._is_open:
            return
        self._is_open = False
        if self._resume is not None:
            self._resume.cancel()
        else:
            self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self._give_reserve()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for; servers of asyncio are asked for this."""

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:  # the client left before it was let in
                continue
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    _log.error("listener: cannot accept: %s", error.strerror)
                    self._pause()
                    return
                self._say(error)
                if error.errno not in _NO_DESCRIPTOR or not self._turn_away():
                    self._pause()
                    return
                continue
            self._accepted += 1
            connection.setblocking(False)
            self._take(connection)

    def _turn_away(self) -> bool:
        """Take one newcomer with the descriptor in reserve and tell it to come again; False where that fails."""
        if self._reserve is None:
            self._keep_reserve()
        if self._reserve is None:
            return False
        self._give_reserve()
        try:
            connection, _address = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return True
        except OSError:
            return False  # another thread was quicker and has the descriptor
        else:
            self._refused += 1
            with connection, contextlib.suppress(OSError):
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    connection.recv(65_536)  # what is left unread would turn the answer into a reset
                connection.send(refusal(_REFUSED, new_request_id()))
                connection.shutdown(socket.SHUT_WR)
            return True
        finally:
            self._keep_reserve()

    def _pause(self) -> None:
        """Look again in a moment: the socket stays readable, and to ask it all the time helps nobody."""
        self._loop.remove_reader(self._listener.fileno())
        self._resume = self._loop.call_later(_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _keep_reserve(self) -> None:
        with contextlib.suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _give_reserve(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    def _say(self, error: OSError) -> None:
        now = time.monotonic()
        if now >= self._next_say:
            self._next_say = now + _SAY_S
            _log.error(
                "listener: no room for a new connection (%s); newcomers are refused, what is open goes on: "
                "raise the limit of open files (`ulimit -n`)",
                error.strerror,
            )
