"""Fifty thousand bad requests (F37-F46, F48-F51): each is refused or passed on as it is, and none leaves a mark.

Four slices, each against a router process of its own, so that they can run side by side, two of them without a trace
store, so that nothing but requests can take up memory. A failing case is made again
by `bad_request(seed, number)`. A million of them: `python -m bench.corpus`.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import uvloop
from kit.bad_requests import NONCE_PATTERN, bad_request, bad_requests
from kit.bad_requests_run import POLICY, Memory, hunt, write_policies
from kit.bad_requests_upstream import Report, upstream
from kit.processes import router

SLICES, SLICE = 4, 12_500
MOST_GROWTH_MB = 16.0  # from the first quarter of a slice to its last
QUEUED_MB = 32.0  # traces of a whole slice that wait for their file, on a machine that is too busy to write them
KINDS = {
    "body: no json", "body: key twice", "body: wrong values", "body: wrong own values", "body: deep, wide, long",
    "body: odd text", "body: around", "bytes: body", "bytes: flip", "bytes: cut", "bytes: repeat", "bytes: splice",
    "head: table", "head: odd", "head: line", "head: field", "head: host", "head: size", "head: length", "head: chunks",
    "head: ends early", "path: credential", "path: method", "path: spelling",
}  # fmt: skip


@pytest.mark.parametrize("seed", range(1, SLICES + 1))
def test_no_bad_request_breaks_the_router_or_reaches_the_upstream_unmeant(seed: int, tmp_path: Path) -> None:
    """No failure of the router's own, no crash, none over a second, memory flat, no call that nobody meant."""
    uvloop.run(_slice(tmp_path, seed, SLICE, is_traced=seed % 2 == 0))


async def _slice(folder: Path, seed: int, count: int, *, is_traced: bool) -> None:
    write_policies(folder)
    settings = {"ROUTER_AFFINITY": "memory://"} | ({} if is_traced else {"ROUTER_TRACES": "off"})
    async with upstream() as up, router(
        folder, f"http://127.0.0.1:{up.port}", policy=POLICY, cache="memory://?max_mb=1", **settings
    ) as running:  # fmt: skip
        memory = Memory(running.process.pid, count)
        report = await hunt(running.port, up, bad_requests(seed, count), each=memory.look)
        assert report.findings == []
        assert running.process.returncode is None
        assert report.sent == count
        assert report.answered + report.closed >= count
        assert set(report.kinds) == KINDS
        assert report.statuses.keys() >= {200, 400, 401, 404, 405, 414, 417, 431, 501, 505}
        assert report.calls > count / 10  # of those that were valid after all
        quarter = len(memory.mb) // 4
        growth_mb = max(memory.mb[-quarter:]) - max(memory.mb[:quarter])
        assert growth_mb < MOST_GROWTH_MB + (QUEUED_MB if is_traced else 0.0), memory.mb
        assert (await running.messages()).status == 200
        assert len(os.listdir(f"/proc/{running.process.pid}/fd")) < 64


def test_the_hunt_sees_a_server_that_takes_everything() -> None:
    """The upstream in the place of the router: what must be refused is not, and what was refused is carried out."""

    async def run() -> Report:
        async with upstream() as up:
            refused = (case for case in bad_requests(9, 4_000) if case.statuses == (400,) and not case.is_alone)
            return await asyncio.wait_for(hunt(up.port, up, list(islice(refused, 64))), 5)

    findings = " ".join(uvloop.run(run()).findings)
    assert "answered with 200, expected one of (400,)" in findings
    assert "call 1 upstream, at most 0 allowed" in findings


def test_a_case_is_the_same_whatever_was_made_before() -> None:
    """So that one that failed can be looked at alone; and its nonce is nobody else's."""
    cases = list(bad_requests(5, 300))
    assert cases[250] == bad_request(5, 250)
    assert max(Counter(case.nonce for case in cases).values()) == 1
    assert all(NONCE_PATTERN.fullmatch(case.nonce) for case in cases)
