"""The line between the supervisor and one of its workers: short words both ways, and open connections one way.

A pair of connected sockets, one end in each process. A word is a line of text; a connection goes along with its word.
Neither side ever waits for the other: a word that does not fit into the buffer of a process that stands still is lost,
and `say` tells so. When the process at the other end is gone, however it went, the line is `lost`.

Words to a worker: `drain SECONDS`, `hurry`, `reload`, `admin` with a connection to serve. From a worker: `ready`,
`beat`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from router.settings import Settings

_MOST_AT_ONCE = 16  # connections in one reading
_BYTES = 65_536


class Line:
    """One end. `heard` is called with each word, and with the connection that came along; `lost` once, at the end."""

    def __init__(
        self,
        end: socket.socket,
        heard: Callable[[str, socket.socket | None], None],
        lost: Callable[[], None],
    ) -> None:
        self._end = end
        self._heard = heard
        self._lost = lost
        self._text = b""
        self._came: deque[int] = deque()
        self._loop = asyncio.get_running_loop()
        end.setblocking(False)
        self._loop.add_reader(end.fileno(), self._read)

    def say(self, word: str, connection: socket.socket | None = None) -> bool:
        """Send a word, and a connection with it; whether it went."""
        data = word.encode() + b"\n"
        try:
            if connection is None:
                return self._end.send(data) == len(data)
            return socket.send_fds(self._end, [data], [connection.fileno()]) == len(data)
        except OSError:
            return False

    def close(self) -> None:
        """Hang up; may be called again."""
        if self._end.fileno() >= 0:
            self._loop.remove_reader(self._end.fileno())
            self._end.close()
        while self._came:
            os.close(self._came.popleft())

    def _read(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._end, _BYTES, _MOST_AT_ONCE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, descriptors = b"", []
        self._came.extend(descriptors)
        if not data:
            self.close()
            self._lost()
            return
        *words, self._text = (self._text + data).split(b"\n")
        for word in words:
            text = word.decode("ascii", "replace")
            connection = None
            if text == "admin" and self._came:
                connection = socket.socket(fileno=self._came.popleft())
            self._heard(text, connection)


def hand_over(settings: Settings, end: socket.socket) -> None:
    """Say the settings as the first line, before there is a loop at the other end. Secrets go no other way."""
    end.sendall(json.dumps(asdict(settings)).encode() + b"\n")


def taken_over(end: socket.socket) -> Settings:
    """The settings that `hand_over` said."""
    text = b""
    while not text.endswith(b"\n"):
        seen = end.recv(_BYTES, socket.MSG_PEEK)
        if not seen:
            raise SystemExit(1)  # the supervisor is gone
        text += end.recv(seen.find(b"\n") + 1 or len(seen))  # what is said behind it is for the `Line`
    given: Mapping[str, Any] = json.loads(text)
    return Settings(**given)


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a stream between processes. Raises OSError when there are no file descriptors left."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in pair:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    return pair
