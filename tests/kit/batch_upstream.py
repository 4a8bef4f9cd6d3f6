"""An upstream of Message Batches whose every step a test decides: what a creation answers, when a batch ends, and how.

up = BatchUpstream()
up.creations = ["lost", "429"]        # how the next creations end; "made" afterwards
async with stage(up.behave, …) as s: …
up.batches[0].end()                   # each item succeeds, unless `up.results` says otherwise
up.refuses["retrieve"] = "500"        # as long as it stands there; "list" and "results" too
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from kit.raw_upstream import Peer
from kit.stage import error, http, message

PATH = "/v1/messages/batches"
_KINDS = {
    "401": "authentication_error",
    "403": "permission_error",
    "404": "not_found_error",
    "429": "rate_limit_error",
}


@dataclass(slots=True)
class MadeBatch:
    """A batch that is there: its items by name, in order."""

    id: str
    items: dict[str, dict[str, Any]]
    created_at: str
    lines: list[bytes] = field(default_factory=list)
    is_ended: bool = False
    is_canceled: bool = False

    def end(self, results: dict[str, bytes] | None = None) -> None:
        """Each item succeeds with a Message that names it; `results` are others, as JSON, by name ("" for none)."""
        for name, params in self.items.items():
            answer = message(f"for {name}", model=params["model"])
            result = b'{"type":"succeeded","message":' + answer + b"}"
            if results is not None and name in results:
                result = results[name]
            if result:
                self.lines.append(b'{"custom_id":"' + name.encode() + b'","result":' + result + b"}")
        self.is_ended = True

    def shown(self) -> dict[str, Any]:
        """As the API shows it."""
        count = len(self.items)
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": "ended" if self.is_ended else "canceling" if self.is_canceled else "in_progress",
            "request_counts": {"processing": 0 if self.is_ended else count, "succeeded": count * self.is_ended},
            "created_at": self.created_at,
            "results_url": None,
        }


class BatchUpstream:
    """The upstream. `creations` say how the next ones end: made, lost, unseen (nothing happens), html, or a status.

    `ends_at_once`: batches have ended as soon as they are made. Plain requests are answered, and counted. `ids` name
    the next batches, `foreign` are more entries of the list, newest first, `clock_s` is how far its clock is ahead.
    `may_create` and `may_answer` hold creations and plain answers while they are cleared.
    """

    def __init__(self, *, ends_at_once: bool = False) -> None:
        self.ends_at_once = ends_at_once
        self.creations: list[str] = []
        self.results: dict[str, bytes] | None = None
        self.batches: list[MadeBatch] = []
        self.bodies: list[bytes] = []
        self.headers: list[list[tuple[bytes, bytes]]] = []
        self.plain: list[bytes] = []
        self.plain_answer = http(message("at once", model="claude-haiku-5-5"))
        self.looks = 0
        self.refuses: dict[str, str] = {}
        self.refused = 0
        self.ids: list[str] = []
        self.foreign: list[dict[str, Any]] = []
        self.clock_s = 0.0
        self.fetched: list[str] = []  # batches whose results were asked for
        self.creating = self.most_creating = 0
        self.may_create, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_create.set()
        self.may_answer.set()

    def add(self, items: dict[str, dict[str, Any]]) -> MadeBatch:
        """A batch, as somebody may make it."""
        now = (datetime.now(UTC) + timedelta(seconds=self.clock_s)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        name = self.ids.pop(0) if self.ids else f"msgbatch_{len(self.batches) + 1}"
        batch = MadeBatch(name, items, now)
        self.batches.append(batch)
        if self.ends_at_once:
            batch.end(self.results)
        return batch

    async def behave(self, peer: Peer) -> None:
        """See `kit.raw_upstream`."""
        while True:
            request = await peer.request()
            method, target = request.line.split(b" ")[0].decode(), request.line.split(b" ")[1].decode()
            path = target.partition("?")[0]
            if path == PATH and method == "POST":
                how = self.creations.pop(0) if self.creations else "made"
                self.bodies.append(request.body)
                self.headers.append(request.headers)
                self.creating += 1
                self.most_creating = max(self.most_creating, self.creating)
                await self.may_create.wait()
                self.creating -= 1
                if how in ("lost", "unseen"):
                    if how == "lost":
                        self._make(request.body)
                    peer.reset()
                    return
                if how == "html":
                    peer.send(http(b"<html>not from here</html>", "403 Forbidden", kind="text/html", request_id=None))
                elif how != "made":
                    peer.send(error(f"{how} No", _KINDS.get(how, "invalid_request_error"), "not this"))
                else:
                    peer.send(http(json.dumps(self._make(request.body).shown()).encode()))
            elif path.startswith(PATH):
                peer.send(self._answer(method, path))
            else:
                self.plain.append(request.body)
                await self.may_answer.wait()
                peer.send(self.plain_answer)
            await peer.writer.drain()

    def _make(self, body: bytes) -> MadeBatch:
        return self.add({item["custom_id"]: item["params"] for item in json.loads(body)["requests"]})

    def _answer(self, method: str, path: str) -> bytes:
        name, _, rest = path.removeprefix(PATH).removeprefix("/").partition("/")
        if status := self.refuses.get(rest or ("retrieve" if name else "list")):
            self.refused += 1
            return error(f"{status} No", _KINDS.get(status, "api_error"), "not now")
        if not name:
            entries = [*self.foreign, *(batch.shown() for batch in reversed(self.batches))]
            return http(json.dumps({"data": entries, "has_more": False, "last_id": None}).encode())
        if rest == "results":
            self.fetched.append(name)
        batch = next((each for each in self.batches if each.id == name), None)
        if batch is None:
            return error("404 Not Found", "not_found_error")
        if rest == "results":
            return http(b"\n".join(batch.lines) + b"\n", kind="application/x-jsonl")
        if rest == "cancel":
            batch.is_canceled = True
        else:
            self.looks += 1
        return http(json.dumps(batch.shown()).encode())
