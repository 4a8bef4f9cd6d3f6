"""Message Batches: created at once, worked off in the background, billed at half price.

Source: batch documentation. Counts stay at `processing` until a batch ends; `params` are checked as each item runs.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from router.simulator.dice import Dice
from router.simulator.files import rfc3339
from router.simulator.modelpages import paged
from router.simulator.reading import to_json
from router.simulator.refusal import Refusal, extra_input, missing
from router.simulator.service import Caller, Simulator
from router.simulator.task import last_user_text

CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
MAX_ITEMS = 100_000
RESULTS_KEPT_S = 29 * 86_400.0
NOT_IN_BATCHES = ("speed", "thread", "fallbacks", "fallback_credit_token")


@dataclass(slots=True)
class Batch:
    """One batch: its items in order, their results by position, and its times in seconds since 1970."""

    id: str
    caller: Caller
    items: list[dict[str, Any]]
    created_s: float
    expires_s: float
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    cancel_s: float | None = None
    ended_s: float | None = None

    @property
    def status(self) -> str:
        """`in_progress`, `canceling` or `ended`."""
        if self.ended_s is not None:
            return "ended"
        return "in_progress" if self.cancel_s is None else "canceling"

    def as_json(self, origin: str) -> dict[str, Any]:
        """The batch as the API shows it; `results_url` is absolute, on the origin that was asked."""
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        if self.ended_s is None:
            counts["processing"] = len(self.items)
        else:
            for result in self.results.values():
                counts[result["type"]] += 1
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": self.status,
            "request_counts": counts,
            "created_at": rfc3339(self.created_s),
            "expires_at": rfc3339(self.expires_s),
            "ended_at": None if self.ended_s is None else rfc3339(self.ended_s),
            "archived_at": None,
            "cancel_initiated_at": None if self.cancel_s is None else rfc3339(self.cancel_s),
            "results_url": None if self.ended_s is None else f"{origin}/v1/messages/batches/{self.id}/results",
        }


class BatchStore:
    """The batches of every workspace and the tasks that work them off."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._dice = Dice(simulator.settings.seed, "batches")
        self._batches: dict[str, Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def create(self, body: Mapping[str, Any], caller: Caller) -> Batch:
        """Take a batch and start it; raises `Refusal` for what is checked at once."""
        items = _checked_items(body)
        settings = self._simulator.settings
        now_s = settings.clock()
        batch_id = self._dice.token(f"batch/{len(self._batches) + 1}/{len(items)}", "msgbatch_")
        batch = Batch(batch_id, caller, items, now_s, now_s + settings.batch_expires_s)
        self._batches[batch_id] = batch
        task = asyncio.get_running_loop().create_task(self._work(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return batch

    def get(self, workspace: str, batch_id: str) -> Batch:
        """A batch by id; raises the 404 of an unknown one, or of another workspace's."""
        batch = self._batches.get(batch_id)
        if batch is None or batch.caller.workspace != workspace:
            raise Refusal(f"Batch not found: {batch_id}", 404)
        return batch

    def cancel(self, workspace: str, batch_id: str) -> Batch:
        """Ask a batch to stop: items not yet started are canceled."""
        batch = self.get(workspace, batch_id)
        if batch.ended_s is not None:
            raise Refusal(f"Batch {batch_id} cannot be canceled because it has ended")
        batch.cancel_s = batch.cancel_s or self._simulator.settings.clock()
        return batch

    def delete(self, workspace: str, batch_id: str) -> dict[str, Any]:
        """Forget an ended batch."""
        if self.get(workspace, batch_id).ended_s is None:
            raise Refusal(f"Batch {batch_id} cannot be deleted while it is processing; cancel it first")
        # The place stays taken, so that the next batch does not get this one's id.
        self._batches[batch_id].caller = Caller("", "", "", frozenset())
        return {"id": batch_id, "type": "message_batch_deleted"}

    def page(self, workspace: str, query: Mapping[str, str], origin: str) -> dict[str, Any]:
        """One page of the workspace's batches, newest first."""
        mine = [batch for batch in reversed(self._batches.values()) if batch.caller.workspace == workspace]
        shown, has_more = paged([batch.id for batch in mine], query)
        return {
            "data": [self._batches[name].as_json(origin) for name in shown],
            "has_more": has_more,
            "first_id": shown[0] if shown else None,
            "last_id": shown[-1] if shown else None,
        }

    def results(self, workspace: str, batch_id: str) -> Iterator[bytes]:
        """The results as JSON lines; raises `Refusal` before the end, and 29 days after creation."""
        batch = self.get(workspace, batch_id)
        if batch.ended_s is None:
            raise Refusal(f"Batch {batch_id} is still being processed; its results are not available yet", 404)
        if self._simulator.settings.clock() > batch.created_s + RESULTS_KEPT_S:
            raise Refusal(f"Results of batch {batch_id} are no longer available", 404)
        return (
            to_json({"custom_id": batch.items[place]["custom_id"], "result": result}) + b"\n"
            for place, result in batch.results.items()
        )

    def shown(self) -> list[dict[str, Any]]:
        """Every batch that was ever made, oldest first, whoever made it: its items, and what came of each so far.

        `text` is the last user text of an item, `type` and `message_id` are of its result: None for none yet.
        """
        return [
            {
                "id": batch.id,
                "workspace": batch.caller.workspace,
                "processing_status": batch.status,
                "items": [_shown_item(item, batch.results.get(place)) for place, item in enumerate(batch.items)],
            }
            for batch in self._batches.values()
        ]

    async def close(self) -> None:
        """Stop working."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self, batch: Batch) -> None:
        settings = self._simulator.settings
        for place, item in enumerate(batch.items):
            # Without a wait still one turn of the loop for each item: the server goes on answering.
            await asyncio.sleep(settings.batch_item_s)
            if batch.cancel_s is not None:
                batch.results[place] = {"type": "canceled"}
            elif settings.clock() >= batch.expires_s:
                batch.results[place] = {"type": "expired"}
            else:
                batch.results[place] = self._run_item(item, batch.caller)
        batch.ended_s = settings.clock()

    def _run_item(self, item: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        simulator = self._simulator
        request_id = simulator.next_request_id()
        try:
            params = item["params"]
            for name, is_wrong in _wrong_in_batches(params):
                if is_wrong:
                    raise Refusal(f"{name}: not supported in Message Batches")
            outcome = simulator.run(params, caller, is_batch=True)
        except Refusal as refusal:
            return {"type": "errored", "error": refusal.envelope(request_id)}
        simulator.keep(outcome, simulator.settings.clock())
        simulator.bill(request_id, outcome)
        return {"type": "succeeded", "message": outcome.message()}


def _shown_item(item: Mapping[str, Any], result: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        text = last_user_text(item["params"])
    except (KeyError, TypeError, AttributeError):
        text = ""  # a body that is refused for its shape when its turn comes
    result = result or {}
    message_id = (result.get("message") or {}).get("id")
    return {"custom_id": item["custom_id"], "text": text, "type": result.get("type"), "message_id": message_id}


def _wrong_in_batches(params: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    yield "stream", params.get("stream") is True
    for name in NOT_IN_BATCHES:
        yield name, params.get(name) is not None
    bill_to = (
        (params.get("billing_policy") or {}).get("bill_to") if isinstance(params.get("billing_policy"), dict) else ""
    )
    yield "billing_policy.bill_to", bill_to == "user_profile"


def _checked_items(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "requests" not in body:
        raise missing("requests")
    for name in body:
        if name != "requests":
            raise extra_input(name)
    items = body["requests"]
    if not isinstance(items, list):
        raise Refusal("requests: Input should be a valid list")
    if not 1 <= len(items) <= MAX_ITEMS:
        raise Refusal(f"requests: from 1 to {MAX_ITEMS} items are allowed. Found {len(items)}.")
    seen: set[str] = set()
    for index, item in enumerate(items):
        path = f"requests.{index}"
        if not isinstance(item, dict):
            raise Refusal(f"{path}: Input should be a valid dictionary")
        for name in ("custom_id", "params"):
            if name not in item:
                raise missing(f"{path}.{name}")
        for name in item:
            if name not in ("custom_id", "params"):
                raise extra_input(f"{path}.{name}")
        if not isinstance(item["custom_id"], str) or not CUSTOM_ID.fullmatch(item["custom_id"]):
            raise Refusal(f"{path}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
        if item["custom_id"] in seen:
            raise Refusal(f"{path}.custom_id: must be unique within the batch")
        seen.add(item["custom_id"])
        if not isinstance(item["params"], dict):
            raise Refusal(f"{path}.params: Input should be a valid dictionary")
    return items
