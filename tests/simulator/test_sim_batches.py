"""Message Batches from creation to results: counts, errors, cancel, expiry, price."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx2
import pytest
from simulator.calls import NEW, ask

from router.simulator.server import served
from router.simulator.settings import SimulatorSettings

HAIKU = "claude-haiku-5-5"
SHIFT_S = 30 * 86_400.0


class Shifting:
    """The clock of a simulator, moved from outside."""

    def __init__(self) -> None:
        self.shift_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.shift_s


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with served() as address:
        yield address


@pytest.fixture
def client(origin: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=origin, api_key="key", max_retries=0) as made:
        yield made


def item(name: str, **fields: Any) -> Any:
    """One item of a batch."""
    return {"custom_id": name, "params": {**ask(HAIKU), **fields}}


def ended(client: anthropic.Anthropic, batch_id: str) -> Any:
    """The batch once it has ended; up to ten seconds."""
    return until(lambda: client.messages.batches.retrieve(batch_id), lambda batch: batch.processing_status == "ended")


def until(look: Callable[[], Any], is_done: Callable[[Any], bool]) -> Any:
    """What `look` returns once it is done."""
    pause = threading.Event()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = look()
        if is_done(found):
            return found
        pause.wait(0.01)
    raise AssertionError("it never ended")


def test_a_batch_runs_and_is_billed_at_half_price(client: anthropic.Anthropic, origin: str) -> None:
    """Succeeded and errored items side by side; only the succeeded one is billed."""
    httpx2.delete(f"{origin}/_simulator/ledger")
    made = client.messages.batches.create(
        requests=[
            item("good"),
            item("streamed", stream=True),
            item("zero", max_tokens=0),
            item("gone", model="claude-2"),
        ]
    )
    assert made.processing_status == "in_progress"
    assert made.request_counts.processing == 4
    assert made.results_url is None
    batch = ended(client, made.id)
    counts = batch.request_counts
    assert (counts.processing, counts.succeeded, counts.errored) == (0, 1, 3)
    shown = httpx2.get(f"{origin}/_simulator/batches").json()["batches"][-1]["items"]
    assert [(one["custom_id"], one["type"], bool(one["message_id"])) for one in shown] == [
        ("good", "succeeded", True), ("streamed", "errored", False), ("zero", "errored", False),
        ("gone", "errored", False),
    ]  # fmt: skip
    assert batch.results_url == f"{origin}/v1/messages/batches/{made.id}/results"
    results = {line.custom_id: line.result for line in client.messages.batches.results(made.id)}
    assert results["good"].message.usage.service_tier == "batch"
    assert "stream: not supported" in results["streamed"].error.error.message
    assert "Message Batches" in results["zero"].error.error.message
    assert results["gone"].error.error.type == "not_found_error"
    usage = results["good"].message.usage
    bill = httpx2.get(f"{origin}/_simulator/ledger").json()
    assert bill["total_pusd"] == (usage.input_tokens * 100_000 + usage.output_tokens * 500_000) // 2
    assert made.id in [entry.id for entry in client.messages.batches.list(limit=1)]
    assert client.messages.batches.delete(made.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(made.id)


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        ([], "from 1 to 100000"),
        ([item("same"), item("same")], "must be unique"),
        ([item("not allowed!")], "should match pattern"),
        ([{"custom_id": "x"}], "requests.0.params: Field required"),
    ],
)
def test_what_is_checked_at_once(client: anthropic.Anthropic, requests: Any, words: str) -> None:
    """Ids, names and number; the params only later."""
    with pytest.raises(anthropic.BadRequestError, match=words):
        client.messages.batches.create(requests=requests)


def test_another_workspace_sees_nothing(client: anthropic.Anthropic, origin: str) -> None:
    """Batches are scoped to the workspace."""
    made = client.messages.batches.create(requests=[item("one")])
    with anthropic.Anthropic(base_url=origin, api_key="another", max_retries=0) as other:
        with pytest.raises(anthropic.NotFoundError):
            other.messages.batches.retrieve(made.id)
        assert list(other.messages.batches.list()) == []


def test_the_long_output_beta_raises_the_ceiling_in_batches(origin: str) -> None:
    """300k on Haiku 5.5, only in a batch, only with the beta."""
    headers = {"x-api-key": "key", "anthropic-version": NEW, "anthropic-beta": "output-300k-2026-03-24"}
    direct = httpx2.post(f"{origin}/v1/messages", json=ask(HAIKU, max_tokens=300_000), headers=headers)
    assert direct.status_code == 400
    with anthropic.Anthropic(base_url=origin, api_key="key", max_retries=0) as client:
        for extra, outcome in (({"anthropic-beta": headers["anthropic-beta"]}, "succeeded"), ({}, "errored")):
            made = client.messages.batches.create(requests=[item("long", max_tokens=300_000)], extra_headers=extra)
            ended(client, made.id)
            assert [line.result.type for line in client.messages.batches.results(made.id)] == [outcome]


def test_cancel_and_expiry_leave_their_marks() -> None:
    """Items not yet started are canceled, or expired after the batch's time; results last 29 days."""
    clock = Shifting()
    with (
        served(SimulatorSettings(batch_item_s=0.2, clock=clock)) as address,
        anthropic.Anthropic(base_url=address, api_key="key", max_retries=0) as client,
    ):
        made = client.messages.batches.create(requests=[item(f"n{number}") for number in range(4)])
        with pytest.raises(anthropic.BadRequestError, match="cannot be deleted"):
            client.messages.batches.delete(made.id)
        early = httpx2.get(
            f"{address}/v1/messages/batches/{made.id}/results",
            headers={"x-api-key": "key", "anthropic-version": NEW},
        )
        assert early.status_code == 404
        canceled = client.messages.batches.cancel(made.id)
        assert canceled.processing_status == "canceling"
        assert canceled.cancel_initiated_at is not None
        counts = ended(client, made.id).request_counts
        assert (counts.canceled, counts.succeeded + counts.canceled) == (counts.canceled, 4)
        assert counts.canceled >= 3
        late = client.messages.batches.create(requests=[item(f"n{number}") for number in range(2)])
        clock.shift_s = SHIFT_S
        assert ended(client, late.id).request_counts.expired >= 1
        with pytest.raises(anthropic.NotFoundError, match="no longer available"):
            client.messages.batches.results(made.id)
