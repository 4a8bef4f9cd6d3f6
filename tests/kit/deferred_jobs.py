"""Jobs of the deferred lane as a test has them: accepted, answered, and the lane at a pace that nobody waits for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

import router.deferring
from kit.stage import KEY, WAIT_S, Reply, Stage, always
from router.serve.deferred.keeper import Keeper
from router.serve.deferred.kit import Pace

LANE = (b"prefer", b"respond-async")
SOON = always("deferred: {max_wait: 10ms}")
LATE = always("deferred: {max_wait: 10ms, real_time_after: 200ms}")
SENT_AND_LATE = always("deferred: {max_wait: 10ms, real_time_after: 600ms}")  # time enough to be sent before
_PACE = Pace(look=0.05, lease=5.0, polls=(0.02, 0.1), create=0.6, quiet=0.8, again=(0.02, 0.1), breath=0.0)


def set_pace(monkeypatch: pytest.MonkeyPatch, **other: Any) -> None:
    """The routers that a test starts go that fast; see `Pace`."""
    pace = replace(_PACE, **other)
    monkeypatch.setattr(router.deferring, "Pace", lambda: pace)


def keeper(s: Stage) -> Keeper:
    """What works on the jobs."""
    assert s.app.deferred is not None
    return s.app.deferred.keeper


def path_of(reply: Reply) -> str:
    """The path in the `Location` of a 202."""
    assert reply.status == 202, reply.body
    location = reply.header("location")
    assert location is not None
    return location[location.index("/v1/") :]


def name_of(path: str) -> str:
    """The id of a job."""
    return path.rpartition("/")[2]


async def accepted(s: Stage, text: str = "can wait", *headers: tuple[bytes, bytes]) -> str:
    """The path of a job that was accepted."""
    return path_of(await s.messages(LANE, *headers, text=text))


async def answered(s: Stage, path: str, headers: list[tuple[bytes, bytes]] | None = None) -> Reply:
    """The answer of a job, as soon as it has ended."""
    async with asyncio.timeout(WAIT_S):
        while True:
            reply = await s.request("GET", path, None, [*(headers or KEY), (b"prefer", b"wait=5")])
            if reply.status != 202:
                return reply


def said(reply: Reply) -> str:
    """The text of a Message, or the type of an error."""
    body = reply.json()
    return str(body["content"][0]["text"] if reply.status == 200 else body["error"]["type"])
