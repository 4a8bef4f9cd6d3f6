"""The audit that every fault ends with: four views of the same requests, joined (R1 to R8 of the fault matrix).

    async with audited(answers(OVERLOADED), most_attempts=2, policy=always("retry: 1")) as a:
        reply = await a.messages()                 # noted for the audit
        assert reply.status == 529

Before the block one healthy request passes, so that what is opened once is open; then the upstream takes the script.
Behind the block the upstream is healthy again, and these must hold:

- R1 every request that was noted has ended, within `WAIT_S`.
- R2 no stream with status 200 ends without `message_stop` or an `error` event, unless its connection was cut.
- R3 each request has one trace, found by the id in its answer, with its status; refused attempts cost nothing.
- R4 no request made more than `most_attempts` attempts; what reached the upstream is in the traces as attempts.
- R5 each error has the API's shape, and its `request_id` is that of the header.
- R6 no secret and no word of the requests is in the trace store or the metrics.
- R7 connections, file descriptors and tasks are back to what they were.
- R8 a healthy request is answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from kit.raw_upstream import Behaviour, Peer
from kit.stage import KEY, WAIT_S, Reply, Stage, Wire, answers, request_body, stage, until
from router.jobs.sqlite import SqliteDecisions

REFUSED = ("rate_limited", "overloaded", "unavailable", "connect_failed", "rejected")


class Switch:
    """An upstream that follows a script, or is healthy: it changes its mind for connections that come."""

    def __init__(self, script: Behaviour) -> None:
        self._script = script
        self._healthy = answers()
        self.is_healthy = True

    async def behave(self, peer: Peer) -> None:
        """The script of each connection."""
        await (self._healthy if self.is_healthy else self._script)(peer)


class Auditor:
    """A stage whose requests are noted."""

    def __init__(self, s: Stage, switch: Switch, most_attempts: int) -> None:
        self.s = s
        self.app = s.app
        self.upstream = s.upstream
        self._switch = switch
        self._most_attempts = most_attempts
        self.canary = f"sk-canary-{secrets.token_hex(8)}"
        self.replies: list[Reply] = []
        self.left = 0  # requests whose client did not wait for the end
        self._fds = self._tasks = 0

    async def messages(self, *more_headers: tuple[bytes, bytes], target: str = "/v1/messages", **body: Any) -> Reply:
        """A small Messages request with a secret in its key and in its words."""
        headers = [(b"x-api-key", self.canary.encode()), *KEY[1:], *more_headers]
        return await self.request("POST", target, request_body(f"Hello {self.canary}", **body), headers)

    async def request(
        self, method: str, target: str, body: bytes | None = None, headers: list[tuple[bytes, bytes]] | None = None
    ) -> Reply:
        """One request on a connection of its own."""
        async with asyncio.timeout(WAIT_S):
            reply = await self.s.request(method, target, body, headers)
        self.replies.append(reply)
        return reply

    async def begin(self, **body: Any) -> Wire:
        """Send a Messages request and read no answer: its client will leave, or the test reads on by itself."""
        wire = await self.s.connect()
        headers = [(b"x-api-key", self.canary.encode()), *KEY[1:]]
        wire.send("POST", "/v1/messages", headers, request_body(f"Hello {self.canary}", **body))
        self.left += 1
        return wire

    async def traces(self) -> list[dict[str, Any]]:
        """The traces of the requests that were noted, oldest first, once all are written."""
        wanted = 1 + len(self.replies) + self.left
        async with asyncio.timeout(WAIT_S):
            while len(rows := await self.s.traces()) < wanted:
                pass
        return rows[1:]

    async def trace(self) -> dict[str, Any]:
        """The trace of the only request."""
        [row] = await self.traces()
        return row

    def restart_upstream(self, *, is_healthy: bool) -> None:
        """Let the upstream be healthy, or follow the script; its connections are closed."""
        self._switch.is_healthy = is_healthy
        self.upstream.hang_up()

    async def _prepare(self) -> None:
        assert (await self.s.messages()).status == 200
        await self.s.trace()
        await self._settle(is_healthy=False)
        self.upstream.requests.clear()
        decisions = self.app.stores.decisions  # its file is opened at the first use, for reading and for writing
        assert await decisions.put("audit", {"none": b"{}"})
        await decisions.forget("audit")
        await decisions.owners(["none"])
        if isinstance(decisions, SqliteDecisions):
            await decisions.settled()
        self._fds, self._tasks = _open_fds(), len(asyncio.all_tasks())

    async def _settle(self, *, is_healthy: bool) -> None:
        self.restart_upstream(is_healthy=is_healthy)
        await until(lambda: not self.upstream.open and not self.app.upstream.stats()["open"])

    async def _check(self) -> None:
        for wire in self.s.wires:
            await wire.close()
        for reply in self.replies:
            _check_answer(reply)
        rows = await self.traces()
        self._check_traces(rows)
        sent = sum(attempt["outcome"] != "connect_failed" for row in rows for attempt in row["attempts"])
        assert len(self.upstream.requests) <= sent, "R4: requests reached the upstream that no trace knows"
        await self._check_secrets()
        await self._settle(is_healthy=True)
        stats = self.app.upstream.stats()
        assert (stats["opening"], stats["waiting"]) == (0, 0), f"R7: {stats}"
        try:
            await until(lambda: _open_fds() <= self._fds and len(asyncio.all_tasks()) <= self._tasks, 2.0)
        except TimeoutError:
            now = f"{_open_fds()} file descriptors, {len(asyncio.all_tasks())} tasks"
            raise AssertionError(f"R7: {now}; before: {self._fds}, {self._tasks}") from None
        reply = await self.s.messages()
        assert reply.status == 200, f"R8: a healthy request got {reply}"

    def _check_traces(self, rows: list[dict[str, Any]]) -> None:
        by_id = {row["trace_id"]: row for row in rows}
        assert len(by_id) == len(rows) == len(self.replies) + self.left, "R3: not one trace per request"
        for reply in self.replies:
            row = by_id[reply.header("x-router-trace") or ""]
            assert row["status"] == reply.status, f"R3: the trace says {row['status']}, the client got {reply.status}"
        for row in rows:
            outcomes = [attempt["outcome"] for attempt in row["attempts"]]
            assert len(outcomes) <= self._most_attempts, f"R4: {outcomes}"
            for attempt in row["attempts"]:
                if attempt["outcome"] in REFUSED:
                    assert not attempt.get("cost_usd"), f"R3: a refused attempt is booked: {attempt}"

    async def _check_secrets(self) -> None:
        canary = self.canary.encode()
        metrics = await asyncio.to_thread(self.app.metrics.render)
        assert canary not in metrics, "R6: a secret is in the metrics"
        for path in self.s.folder.iterdir():
            if path.is_file():
                assert canary not in path.read_bytes(), f"R6: a secret is in `{path.name}`"


def _check_answer(reply: Reply) -> None:
    kind = reply.header("content-type") or ""
    if kind.startswith("text/event-stream") and reply.status == 200 and reply.is_whole:
        ends = b"event: message_stop" in reply.body or b"event: error" in reply.body
        assert ends, f"R2: a stream that was cut looks whole: {reply.body[-200:]!r}"
    if reply.status >= 400 and reply.header("content-encoding") in (None, "identity"):
        said = json.loads(reply.body)
        assert said["type"] == "error", f"R5: {reply}"
        assert isinstance(said["error"]["type"], str), f"R5: {reply}"
        assert isinstance(said["error"]["message"], str), f"R5: {reply}"
        assert reply.header("request-id"), f"R5: no request-id: {reply}"


def _open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@asynccontextmanager
async def audited(
    script: Behaviour | None = None, *, most_attempts: int = 1, **settings: Any
) -> AsyncIterator[Auditor]:
    """A stage before an upstream that follows `script`, audited at the end; `settings` as those of `stage`."""
    switch = Switch(script or answers())
    async with stage(switch.behave, **settings) as s:
        auditor = Auditor(s, switch, most_attempts)
        await auditor._prepare()
        yield auditor
        await auditor._check()
