"""Tokens, prompt cache and ledger: what a request counts as, and what it costs."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from simulator.calls import TOOL, USER, ask, caller

from router.simulator.ledger import Ledger, cost_pusd
from router.simulator.message import Outcome
from router.simulator.record import load_roster
from router.simulator.service import Simulator
from router.simulator.settings import SimulatorSettings
from router.simulator.tokens import image_tokens, text_tokens

ROSTER = load_roster()
LONG = "The archive holds letters, maps and ledgers of the harbour. " * 100  # 6,000 characters
EPHEMERAL = {"type": "ephemeral"}


def usage(**counts: Any) -> dict[str, Any]:
    """A usage object as the API reports it."""
    return {"input_tokens": 0, "output_tokens": 0, **counts}


def price(model: str, **counts: Any) -> int:
    """The bill of a usage in pico-dollars."""
    record = ROSTER.known(model)
    assert record is not None
    return cost_pusd(usage(**counts), record, ROSTER)


EXAMPLES = [
    # Section 2, reproduced by Claude Code: 12 in, 5 out, 120,000 read, geo us.
    ("claude-opus-5-5", {"input_tokens": 12, "output_tokens": 5, "cache_read_input_tokens": 120_000,
                         "inference_geo": "us"}, 26_562_800_000),
    ("claude-haiku-5-5", {"input_tokens": 12, "output_tokens": 5, "cache_read_input_tokens": 120_000,
                          "inference_geo": "us"}, 6_620_350_000),
    # 1,000 x $3 + 500 x $15 per million = $0.0105
    ("claude-sonnet-4-6", {"input_tokens": 1_000, "output_tokens": 500}, 10_500_000_000),
    # At exactly 100,000 prompt tokens the lower row holds: 100,000 x $0.10 = $0.01; one more and it is $0.50.
    ("claude-haiku-5-5", {"input_tokens": 100_000}, 10_000_000_000),
    ("claude-haiku-5-5", {"input_tokens": 100_001}, 50_000_500_000),
    # 1,000 written for 5m at $2.50 and 2,000 for 1h at $4: $0.0025 + $0.008; batch halves it.
    ("claude-sonnet-5-5", {"cache_creation_input_tokens": 3_000,
                           "cache_creation": {"ephemeral_5m_input_tokens": 1_000, "ephemeral_1h_input_tokens": 2_000}},
     10_500_000_000),
    ("claude-sonnet-5-5", {"cache_creation_input_tokens": 3_000, "service_tier": "batch",
                           "cache_creation": {"ephemeral_5m_input_tokens": 1_000, "ephemeral_1h_input_tokens": 2_000}},
     5_250_000_000),
    # Fast Opus 5.5 at 8/40: 1,000 in and 100 out = $0.008 + $0.004.
    ("claude-opus-5-5", {"input_tokens": 1_000, "output_tokens": 100, "speed": "fast"}, 12_000_000_000),
    # Two searches at a cent each, and 10 tokens at $2; the search is not scaled by region or batch.
    ("claude-sonnet-5", {"input_tokens": 10, "server_tool_use": {"web_search_requests": 2}, "inference_geo": "us"},
     20_022_000_000),
    # Fable 5.2 reads at 0.025x of $8.
    ("claude-fable-5-2", {"cache_read_input_tokens": 1_000}, 200_000_000),
]  # fmt: skip


@pytest.mark.parametrize(("model", "counts", "pusd"), EXAMPLES)
def test_prices_match_figures_worked_out_by_hand(model: str, counts: dict[str, Any], pusd: int) -> None:
    """Integer pico-dollars, exactly."""
    assert price(model, **counts) == pusd


def test_every_current_price_is_a_whole_number_of_pico_dollars() -> None:
    """So that sums stay exact, with every modifier on."""
    counts = {"input_tokens": 1, "output_tokens": 1, "cache_read_input_tokens": 1, "cache_creation_input_tokens": 1}
    for model in ROSTER.models:
        if model.fields["lifecycle"] == "active":
            one = price(model.id, **counts, service_tier="batch", inference_geo="us")
            many = price(model.id, **dict.fromkeys(counts, 1000), service_tier="batch", inference_geo="us")
            assert many == 1_000 * one, model.id


def test_the_ledger_adds_up() -> None:
    """`total_pusd` is the sum of its entries."""
    ledger = Ledger(ROSTER)
    for model in ("claude-haiku-5-5", "claude-opus-5"):
        record = ROSTER.known(model)
        assert record is not None
        ledger.bill("req_1", record, usage(input_tokens=10, output_tokens=3))
    shown = ledger.as_json()
    assert shown["total_pusd"] == 10 * 100_000 + 3 * 500_000 + 10 * 5_000_000 + 3 * 25_000_000
    ledger.clear()
    assert ledger.as_json() == {"entries": [], "total_pusd": 0}


def test_the_2026_tokenizer_yields_thirty_percent_more() -> None:
    """About 3.6 characters to a token before."""
    old, new = ROSTER.known("claude-haiku-4-5"), ROSTER.known("claude-haiku-5-5")
    assert old is not None
    assert new is not None
    assert text_tokens("x" * 3_600, old) == 1_000
    assert text_tokens("x" * 3_600, new) == 1_300


def test_images_cost_patches_within_the_tier() -> None:
    """ceil(w/28) x ceil(h/28), downscaled to 1,568 px and tokens before 4.7, to 2,576 px and 4,784 tokens after."""
    old, new = ROSTER.known("claude-haiku-4-5"), ROSTER.known("claude-haiku-5-5")
    assert old is not None
    assert new is not None
    assert image_tokens(280, 140, new) == 50
    assert image_tokens(281, 140, new) == 55
    assert image_tokens(4_000, 4_000, old) <= 1_568
    assert 1_568 < image_tokens(4_000, 4_000, new) <= 4_784


def test_a_png_is_counted_by_its_header() -> None:
    """Width and height from base64."""
    simulator = Simulator(SimulatorSettings())
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 280, 140) + bytes(20)
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(head).decode()}
    with_image = [{"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "image", "source": source}]}]
    without = [{"role": "user", "content": [{"type": "text", "text": "See"}]}]
    counts = [
        simulator.count({"model": "claude-haiku-5-5", "messages": messages}, caller())
        for messages in (with_image, without)
    ]
    assert counts[0] - counts[1] == 50


def test_tools_carry_a_hidden_prompt() -> None:
    """Section 2: 286 tokens with auto on Haiku 5.5, 406 with any."""
    simulator = Simulator(SimulatorSettings())
    body = {"model": "claude-haiku-5-5", "messages": [USER], "tools": [TOOL]}
    auto = simulator.count(body, caller())
    forced = simulator.count({**body, "tool_choice": {"type": "any"}}, caller())
    assert forced - auto == 120
    assert auto - simulator.count({"model": "claude-haiku-5-5", "messages": [USER]}, caller()) > 286


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1_795_350_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def simulator(clock: Clock) -> Simulator:
    return Simulator(SimulatorSettings(clock=clock))


def send(simulator: Simulator, clock: Clock, **fields: Any) -> Outcome:
    """One answered request: the cache has taken it in."""
    body = ask(fields.pop("model", "claude-haiku-5-5"), **fields)
    outcome = simulator.run(body, caller())
    simulator.cache.commit(outcome.plan, clock.now_s)
    return outcome


def marked(text: str, **marker: str) -> dict[str, Any]:
    """A text block with a cache marker."""
    return {"type": "text", "text": text, "cache_control": {**EPHEMERAL, **marker}}


def counters(outcome: Outcome) -> tuple[int, int, int]:
    """Read, written for 5m, written for 1h."""
    return outcome.plan.read, outcome.plan.write_5m, outcome.plan.write_1h


def test_a_marked_prefix_is_written_then_read(simulator: Simulator, clock: Clock) -> None:
    """Read + written + input is always the whole prompt."""
    first = send(simulator, clock, system=[marked(LONG)])
    second = send(simulator, clock, system=[marked(LONG)])
    assert first.plan.write_5m > 2_000
    assert counters(first) == (0, first.plan.write_5m, 0)
    assert counters(second) == (first.plan.write_5m, 0, 0)
    assert first.plan.total == second.plan.total
    assert second.usage()["cache_read_input_tokens"] == first.usage()["cache_creation_input_tokens"]


def test_short_prompts_are_silently_not_cached(simulator: Simulator, clock: Clock) -> None:
    """Minimum per model: 512 on Haiku 5.5, 4,096 on Haiku 4.5."""
    assert counters(send(simulator, clock, system=[marked("Short.")])) == (0, 0, 0)
    assert counters(send(simulator, clock, system=[marked(LONG)], model="claude-haiku-4-5")) == (0, 0, 0)
    assert send(simulator, clock, system=[marked(LONG)]).plan.write_5m > 0


def test_entries_live_five_minutes_or_an_hour_from_their_last_use(simulator: Simulator, clock: Clock) -> None:
    """A read refreshes free of charge."""
    send(simulator, clock, system=[marked(LONG)])
    for _ in range(3):
        clock.now_s += 250
        assert send(simulator, clock, system=[marked(LONG)]).plan.read > 0
    clock.now_s += 301
    assert send(simulator, clock, system=[marked(LONG)]).plan.read == 0
    written = send(simulator, clock, system=[marked("Hour. " + LONG, ttl="1h")])
    assert (written.plan.write_5m, written.plan.write_1h > 0) == (0, True)
    clock.now_s += 3_500
    assert send(simulator, clock, system=[marked("Hour. " + LONG, ttl="1h")]).plan.read > 0


def test_a_growing_conversation_reads_what_it_wrote(simulator: Simulator, clock: Clock) -> None:
    """Top-level automatic caching moves its marker; the look-back finds the old place."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": LONG}]
    first = send(simulator, clock, messages=messages, cache_control=EPHEMERAL)
    messages = [*messages, {"role": "assistant", "content": "Noted."}, USER]
    second = send(simulator, clock, messages=messages, cache_control=EPHEMERAL)
    assert second.plan.read == first.plan.write_5m
    assert 0 < second.plan.write_5m < 100


def test_the_look_back_ends_after_twenty_positions(simulator: Simulator, clock: Clock) -> None:
    """An entry further back is not found."""
    blocks: list[dict[str, Any]] = [marked(LONG)]
    send(simulator, clock, messages=[{"role": "user", "content": blocks}])
    near = [{"type": "text", "text": f"piece {number}"} for number in range(18)]
    far = [{"type": "text", "text": f"piece {number}"} for number in range(25)]
    plain = [{"type": "text", "text": LONG}]
    found = send(simulator, clock, messages=[{"role": "user", "content": [*plain, *near, marked("end")]}])
    missed = send(simulator, clock, messages=[{"role": "user", "content": [*plain, *far, marked("other end")]}])
    assert found.plan.read > 0
    assert missed.plan.read == 0


@pytest.mark.parametrize(
    ("change", "survives"),
    [
        ({"model": "claude-sonnet-5-5"}, False),
        ({"tools": [TOOL]}, False),
        ({"system": [marked("New. " + LONG)]}, False),
        ({"inference_geo": "us"}, True),
        ({"max_tokens": 99}, True),
        ({"messages": [{"role": "user", "content": "Something else"}]}, True),
        ({"output_config": {"effort": "high"}}, True),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "string"}}}}, False),
    ],
)
def test_what_loses_the_cached_system_prompt(
    simulator: Simulator, clock: Clock, change: dict[str, Any], survives: bool
) -> None:
    """Section 5, column "system"."""
    send(simulator, clock, system=[marked(LONG)])
    again = send(simulator, clock, **{"system": [marked(LONG)], **change})
    assert (again.plan.read > 0) == survives


def test_effort_at_its_default_equals_leaving_it_out(simulator: Simulator, clock: Clock) -> None:
    """Messages are lost when effort changes, and kept when it only is spelled out."""
    messages = [{"role": "user", "content": [marked(LONG)]}]
    send(simulator, clock, messages=messages)
    assert send(simulator, clock, messages=messages, output_config={"effort": "medium"}).plan.read > 0
    assert send(simulator, clock, messages=messages, output_config={"effort": "low"}).plan.read == 0


def test_caches_are_apart_by_workspace_and_unread_before_the_answer_begins(simulator: Simulator) -> None:
    """Nothing is readable before `commit`."""
    body = ask("claude-haiku-5-5", system=[marked(LONG)])
    simulator.run(body, caller())
    assert simulator.run(body, caller()).plan.read == 0


def test_a_cache_miss_is_explained(simulator: Simulator, clock: Clock) -> None:
    """Section 5, "Diagnosis": what diverged from the request of an earlier message."""
    system = [marked(LONG)]

    def ask_why(previous: str | None, **fields: Any) -> tuple[str, dict[str, Any] | None]:
        known = {"system": system, "diagnostics": {"previous_message_id": previous}, **fields}
        message = send(simulator, clock, **known).message()
        return message["id"], message["diagnostics"]

    first, nothing = ask_why(None)
    assert nothing is None
    _, same = ask_why(first)
    assert same is None
    reasons = [
        ask_why(first, model="claude-sonnet-5-5")[1],
        ask_why(first, tools=[TOOL])[1],
        ask_why(first, system=[marked("New. " + LONG)])[1],
        ask_why(first, messages=[{"role": "user", "content": "Something else"}])[1],
        ask_why("msg_unknown")[1],
    ]
    assert [reason["cache_miss_reason"]["type"] for reason in reasons if reason] == [
        "model_changed",
        "tools_changed",
        "system_changed",
        "messages_changed",
        "previous_message_not_found",
    ]
    assert reasons[0] is not None
    assert reasons[0]["cache_miss_reason"]["cache_missed_input_tokens"] > 2_000
