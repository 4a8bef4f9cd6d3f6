"""How much a listener may hold, from what the process may open and what it was told."""

from __future__ import annotations

import asyncio

import pytest
from kit.processes import router
from kit.stage import AS_ASKED

from router.web.http.limits import connections_for

AT_REST = 32  # descriptors of a process that serves nobody


@pytest.mark.parametrize("descriptors", [64, 128, 255, 256, 1_024, 8_192, 65_536])
def test_no_more_clients_are_let_in_than_can_be_served(descriptors: int) -> None:
    """Each has a descriptor of its own and may need one upstream, beside those that are open anyway (F91)."""
    clients = connections_for(descriptors)
    assert clients >= descriptors // 4
    assert clients + min(clients, 4_096) + AT_REST <= descriptors


def test_a_process_with_hardly_a_descriptor_still_takes_one_client() -> None:
    """It cannot do with none."""
    assert connections_for(3) == 1


@pytest.mark.anyio
async def test_a_resting_connection_is_kept_as_long_as_the_setting_says(tmp_path) -> None:
    """Fronts keep theirs for minutes or an hour: who reads `keep_alive` there can say the same here."""
    nowhere = "http://127.0.0.1:9"
    async with router(tmp_path, nowhere, policy=AS_ASKED, cache="off", ROUTER_KEEP_ALIVE="1s") as running:
        wire = await running.connect()
        wire.send("GET", "/v1/messages", [], None)
        assert (await wire.reply()).status == 401
        assert await asyncio.wait_for(wire.reader.read(), 5) == b""
