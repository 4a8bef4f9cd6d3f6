"""The door of a listener: who waits before it when it closes."""

from __future__ import annotations

import socket

import pytest

from router.web.door import Door

pytestmark = pytest.mark.anyio


async def test_who_waits_when_the_door_closes_is_taken_in():
    """Closing a socket resets the connections that wait in it; these are served, and the next one is refused."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[socket.socket] = []
        door = Door(listener, taken.append)
        address = listener.getsockname()
        with socket.create_connection(address) as first, socket.create_connection(address) as second:
            assert taken == []  # the loop has not turned
            door.take_waiting()
            door.close()
            door.take_waiting()
            assert [each.getpeername() for each in taken] == [first.getsockname(), second.getsockname()]
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
            for each in taken:
                each.send(b"x")
                each.close()
            assert first.recv(1) == second.recv(1) == b"x"
