"""Compaction, advisor and server-side fallback: what is answered, what the usage lists, and what each call costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from simulator.calls import TOOL, USER, ask, caller, said, verdict

from router.simulator.iterations import begun
from router.simulator.message import Outcome
from router.simulator.server import served
from router.simulator.service import Simulator
from router.simulator.settings import SimulatorSettings

HAIKU, SONNET, OPUS = "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"
COMPACT, ON_DEMAND = "compact-2026-01-12", "compact-2026-09-04"
FALLBACK, ADVICE = "server-side-fallback-2026-07-01", "advisor-tool-2026-03-01"
USD_PER_MTOK = {HAIKU: (0.1, 0.5), SONNET: (2, 10), "claude-sonnet-5": (2, 10), OPUS: (4, 20),
                "claude-opus-5": (5, 25), "claude-opus-4-8": (5, 25)}  # fmt: skip
LONG = "The archive holds letters, maps and ledgers of the harbour. " * 3_000  # about 65,000 tokens
TALK = [
    {"role": "user", "content": LONG},
    {"role": "assistant", "content": "I have read it."},
    {"role": "user", "content": "Summarize what the archive holds in one sentence."},
]
DECLINED = [{"role": "user", "content": f"Tell me about locks. SIMULATE_REFUSAL({OPUS}, claude-opus-5)"}]


class Clock:
    """A clock that stands until it is moved; it begins on 22 November 2026."""

    def __init__(self) -> None:
        self.now_s = 1_795_350_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(SimulatorSettings(clock=Clock()))


def edit(value: int = 50_000, **fields: Any) -> dict[str, Any]:
    """A threshold compaction."""
    trigger = {"type": "input_tokens", "value": value}
    return {"edits": [{"type": "compact_20260112", "trigger": trigger, **fields}]}


def advisor(model: str, **fields: Any) -> dict[str, Any]:
    """An advisor tool."""
    return {"type": "advisor_20260301", "name": "advisor", "model": model, **fields}


def kinds(outcome: Outcome) -> list[tuple[str, str | None]]:
    """The entries of the usage: their types and the models they name."""
    return [(entry["type"], entry.get("model")) for entry in outcome.usage()["iterations"]]


def billed(simulator: Simulator, outcome: Outcome) -> int:
    """The bill of an answer, pico-dollars."""
    simulator.bill("req_1", outcome)
    cost: int = simulator.ledger.entries[-1]["cost_pusd"]
    return cost


def worth(model: str, entry: dict[str, Any]) -> int:
    """An entry without prompt cache at the lower rates of its model, pico-dollars, worked out apart."""
    price_in, price_out = USD_PER_MTOK[model]
    return round(entry["input_tokens"] * price_in * 10**6) + round(entry["output_tokens"] * price_out * 10**6)


def test_a_plain_answer_lists_no_iterations(simulator: Simulator) -> None:
    """The top-level counts say it all."""
    assert "iterations" not in simulator.run(ask(SONNET), caller()).usage()


# Compaction


def test_a_long_conversation_is_summarised_and_answered(simulator: Simulator) -> None:
    """Two calls; the top-level counts are those of the second; the bill is both."""
    outcome = simulator.run(ask(SONNET, messages=TALK, context_management=edit()), caller(COMPACT))
    assert [block["type"] for block in outcome.message()["content"]] == ["compaction", "thinking", "text"]
    usage = outcome.usage()
    first, second = usage["iterations"]
    assert kinds(outcome) == [("compaction", None), ("message", None)]
    assert first["input_tokens"] > 50_000 > 1_000 > second["input_tokens"] > 0
    assert (usage["input_tokens"], usage["output_tokens"]) == (second["input_tokens"], second["output_tokens"])
    assert billed(simulator, outcome) == worth(SONNET, first) + worth(SONNET, second)


def test_a_short_conversation_is_left_alone(simulator: Simulator) -> None:
    """The threshold was not reached."""
    body = ask(SONNET, messages=TALK, context_management=edit(70_000))
    assert "iterations" not in simulator.run(body, caller(COMPACT)).usage()
    assert "iterations" not in simulator.run({**body, "context_management": edit()} | {"messages": TALK[2:]},
                                             caller(COMPACT)).usage()  # fmt: skip


def test_the_step_in_the_price_of_a_long_prompt_is_taken_by_each_call_alone(simulator: Simulator) -> None:
    """Haiku 5.5 reads 130,000 tokens at $0.50 and answers from the summary at $0.10."""
    talk = [{"role": "user", "content": LONG * 2}, *TALK[1:]]
    outcome = simulator.run(ask(HAIKU, messages=talk, context_management=edit()), caller(COMPACT))
    first, second = outcome.usage()["iterations"]
    assert first["input_tokens"] > 100_000 > second["input_tokens"]
    assert billed(simulator, outcome) == 5 * worth(HAIKU, first) + worth(HAIKU, second)


@pytest.mark.parametrize(
    ("fields", "beta", "is_signed"),
    [
        ({"context_management": edit(pause_after_compaction=True)}, COMPACT, False),
        ({"compaction": {"type": "summarize"}}, ON_DEMAND, True),
    ],
)
def test_a_summary_alone_leaves_the_top_level_counts_at_nothing(
    simulator: Simulator, fields: dict[str, Any], beta: str, *, is_signed: bool
) -> None:
    """It is billed all the same; on demand the block is signed, and the length does not matter."""
    outcome = simulator.run(ask(SONNET, messages=TALK, **fields), caller(beta))
    message = outcome.message()
    assert (message["stop_reason"], len(message["content"])) == ("compaction", 1)
    assert ("signature" in message["content"][0]) == is_signed
    usage = outcome.usage()
    assert (usage["input_tokens"], usage["output_tokens"], kinds(outcome)) == (0, 0, [("compaction", None)])
    assert billed(simulator, outcome) == worth(SONNET, usage["iterations"][0]) > 0


def test_what_stands_before_a_summary_is_not_read_again(simulator: Simulator) -> None:
    """The client may send everything back; the count says what is read."""
    first = simulator.run(ask(SONNET, messages=TALK, context_management=edit()), caller(COMPACT))
    talk = [*TALK, {"role": "assistant", "content": first.message()["content"]}, USER]
    body = ask(SONNET, messages=talk, context_management=edit())
    again = simulator.run(body, caller(COMPACT))
    assert "iterations" not in again.usage()
    assert again.usage()["input_tokens"] < 1_000
    counted = {name: body[name] for name in ("model", "messages")}
    assert simulator.count(counted, caller(COMPACT)) == again.usage()["input_tokens"]


COMPACTION_REFUSALS = [
    ({"context_management": edit(49_999)}, COMPACT, "trigger.value must be at least 50000"),
    ({"context_management": edit(trigger={"type": "turns", "value": 60_000})}, COMPACT, "type 'input_tokens'"),
    ({"context_management": edit(keep=3)}, COMPACT, "keep: Extra inputs are not permitted"),
    ({"context_management": edit()}, "context-management-2025-06-27", "Input tag 'compact_20260112'"),
    ({"compaction": {"type": "cut"}}, ON_DEMAND, "compaction.type: Input should be 'summarize'"),
    ({"compaction": {"type": "summarize", "trigger": 1}}, ON_DEMAND, "compaction.trigger: Extra inputs"),
    ({"compaction": {"type": "summarize"}, "max_tokens": 0}, ON_DEMAND, "max_tokens: 0 is not supported"),
    ({"messages": [{"role": "assistant", "content": [{"type": "compaction", "content": "s"}]}, USER]}, FALLBACK,
     "Input tag 'compaction'"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "beta", "complaint"), COMPACTION_REFUSALS)
def test_a_wrong_compaction_is_refused(simulator: Simulator, fields: dict[str, Any], beta: str, complaint: str) -> None:
    """Section 14: the least trigger, the beta, what goes together."""
    assert complaint in verdict(simulator, ask(SONNET, **fields), beta)


# Advisor


def test_the_advisor_is_billed_at_its_own_rates(simulator: Simulator) -> None:
    """Executor, advisor, executor; the top level is the executor's: its first input, all of its output."""
    outcome = simulator.run(ask(HAIKU, tools=[advisor(OPUS)]), caller(ADVICE))
    types = [block["type"] for block in outcome.message()["content"]]
    assert types[-3:] == ["server_tool_use", "advisor_tool_result", "text"]
    usage = outcome.usage()
    first, advice, second = usage["iterations"]
    assert kinds(outcome) == [("message", None), ("advisor_message", OPUS), ("message", None)]
    assert usage["input_tokens"] == first["input_tokens"] < second["input_tokens"]
    assert usage["output_tokens"] == first["output_tokens"] + second["output_tokens"]
    assert usage["server_tool_use"] is None, "no web search"
    parts = worth(HAIKU, first) + worth(OPUS, advice) + worth(HAIKU, second)
    assert billed(simulator, outcome) == parts


def test_the_executor_reads_what_it_cached_before_it_asked(simulator: Simulator) -> None:
    """The second call reads the prefix that the first wrote; the advisor caches by its tool's own setting."""
    system = [{"type": "text", "text": LONG[:9_000], "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    tools = [advisor(OPUS, caching={"type": "ephemeral", "ttl": "5m"})]
    body = ask(HAIKU, system=system, tools=tools)
    outcome = simulator.run(body, caller(ADVICE))
    first, advice, second = outcome.usage()["iterations"]
    assert first["cache_creation"]["ephemeral_1h_input_tokens"] == second["cache_read_input_tokens"] > 1_000
    assert advice["cache_creation"]["ephemeral_5m_input_tokens"] > 1_000
    simulator.keep(outcome, simulator.settings.clock())
    again = simulator.run(body, caller(ADVICE)).usage()["iterations"]
    assert again[0]["cache_read_input_tokens"] == again[2]["cache_read_input_tokens"] > 1_000
    assert again[1]["cache_read_input_tokens"] > 1_000


def test_some_answers_do_not_say_how_long_each_call_wrote_for(simulator: Simulator) -> None:
    """One in three; only what the top level says too, or what is five minutes, is left out. The bill is the same."""
    system = [{"type": "text", "text": LONG[:9_000], "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    tools = [advisor(OPUS, caching={"type": "ephemeral", "ttl": "1h"})]
    seen = []
    for number in range(12):
        body = ask(HAIKU, system=system, tools=tools, messages=[{"role": "user", "content": f"Question {number}?"}])
        outcome = simulator.run(body, caller(ADVICE))
        full, told = outcome.usage(), outcome.message()["usage"]
        assert told == next(
            event.data["usage"] | {name: full[name] for name in full.keys() - event.data["usage"].keys()}
            for event in outcome.events()
            if event.name == "message_delta"
        )
        assert all(entry["cache_creation"] for entry in full["iterations"])
        assert told["cache_creation"]["ephemeral_1h_input_tokens"] > 1_000
        first, advice, second = (entry["cache_creation"] for entry in told["iterations"])
        assert (first is None) == (second is None)
        assert advice["ephemeral_1h_input_tokens"] > 1_000, "the top level does not speak of the advisor"
        seen.append(first is None)
    assert 0 < sum(seen) < 12


def test_the_tool_bounds_what_the_advisor_writes(simulator: Simulator) -> None:
    """`max_tokens` of the tool, not of the request."""
    outcome = simulator.run(ask(SONNET, tools=[advisor(OPUS, max_tokens=40)]), caller(ADVICE))
    result = next(block for block in outcome.message()["content"] if block["type"] == "advisor_tool_result")
    assert result["content"]["stop_reason"] == "max_tokens"
    assert 0 < outcome.usage()["iterations"][1]["output_tokens"] <= 40


@pytest.mark.parametrize("choice", [{"type": "none"}, {"type": "tool", "name": "look_up"}])
def test_an_advisor_that_may_not_be_asked_costs_nothing(simulator: Simulator, choice: dict[str, str]) -> None:
    """Only a free choice, or one that names it, leads to the advisor."""
    body = ask(HAIKU, tools=[advisor(OPUS), TOOL], tool_choice=choice)
    assert "iterations" not in simulator.run(body, caller(ADVICE)).usage()


PAIRS = [
    *((SONNET, OPUS, True), (SONNET, "claude-opus-5", True), (SONNET, SONNET, True), (SONNET, "claude-fable-5", True)),
    *((SONNET, "claude-opus-4-8", False), (SONNET, "claude-sonnet-5", False), (SONNET, HAIKU, False)),
    *((OPUS, "claude-opus-5", True), (OPUS, "claude-mythos-5-1", True), (OPUS, "claude-opus-4-8", False)),
    *(("claude-fable-5-2", "claude-mythos-5-2", True), ("claude-fable-5-2", OPUS, False)),
    *(("claude-haiku-4-5", "claude-opus-4-8", True), ("claude-sonnet-4-6", "claude-haiku-5-5", False)),
    *(("claude-opus-4-8", "claude-opus-4-7", False), ("claude-opus-4-7", "claude-opus-4-8", True)),
    *((HAIKU, "claude-3-opus-20240229", False), (HAIKU, "no-such-model", False)),
]


@pytest.mark.parametrize(("executor", "model", "is_valid"), PAIRS)
def test_an_invalid_pair_is_refused(simulator: Simulator, executor: str, model: str, *, is_valid: bool) -> None:
    """Section 14, "Advisor pairs"."""
    found = verdict(simulator, ask(executor, tools=[advisor(model)]), ADVICE)
    assert found == "ok" if is_valid else "cannot be used as an advisor for" in found


@pytest.mark.parametrize(
    ("tool", "complaint"),
    [
        ({"name": "helper"}, "name: Input should be 'advisor'"),
        ({"color": 1}, "color: Extra inputs are not permitted"),
        ({"max_uses": 0}, "max_uses: Input should be greater than or equal to 1"),
        ({"caching": {"type": "ephemeral", "ttl": "2h"}}, "ttl: Input should be '5m' or '1h'"),
    ],
)
def test_a_malformed_advisor_is_refused(simulator: Simulator, tool: dict[str, Any], complaint: str) -> None:
    """By the fields of the library's own type."""
    assert complaint in verdict(simulator, ask(SONNET, tools=[advisor(OPUS, **tool)]), ADVICE)
    assert "Input tag 'advisor_20260301'" in verdict(simulator, ask(SONNET, tools=[advisor(OPUS)]))


# Server-side fallback


def test_a_declined_request_is_answered_by_the_next_model(simulator: Simulator) -> None:
    """Each hop at its own rates; top-level usage and model are those of the one that answered."""
    body = ask(OPUS, messages=DECLINED, fallbacks=[{"model": "claude-opus-5"}, {"model": "claude-opus-4-8"}])
    outcome = simulator.run(body, caller(FALLBACK))
    message = outcome.message()
    assert (message["model"], message["stop_reason"]) == ("claude-opus-4-8", "end_turn")
    hops = [(b["from"]["model"], b["to"]["model"]) for b in message["content"] if b["type"] == "fallback"]
    assert hops == [(OPUS, "claude-opus-5"), ("claude-opus-5", "claude-opus-4-8")]
    assert kinds(outcome) == [("message", OPUS), ("message", "claude-opus-5"), ("fallback_message", "claude-opus-4-8")]
    usage = outcome.usage()
    assert usage["output_tokens"] == usage["iterations"][2]["output_tokens"]
    assert billed(simulator, outcome) == sum(worth(entry["model"], entry) for entry in usage["iterations"])


def test_a_conversation_stays_with_the_model_that_took_it_for_an_hour() -> None:
    """No model declined this time: no `fallback` block, but a `fallback_message` in the usage."""
    clock = Clock()
    simulator = Simulator(SimulatorSettings(clock=clock))
    body = ask(
        SONNET, messages=[{"role": "user", "content": f"Locks? SIMULATE_REFUSAL({SONNET})"}], fallbacks="default"
    )
    assert len(kinds(simulator.run(body, caller(FALLBACK)))) == 2
    grown = {**body, "messages": [*body["messages"], {"role": "assistant", "content": "They hold."}, USER]}
    clock.now_s += 3_599
    again = simulator.run(grown, caller(FALLBACK))
    assert kinds(again) == [("fallback_message", "claude-sonnet-5")]
    assert not [block for block in again.message()["content"] if block["type"] == "fallback"]
    clock.now_s += 3_601
    assert "iterations" not in simulator.run(grown, caller(FALLBACK)).usage()


def test_a_model_may_decline_when_it_has_begun(simulator: Simulator) -> None:
    """What it said stays and is billed; the mark stands between the two; a stream opens with the first model."""
    text = f"Prove it. SIMULATE_LATE_REFUSAL({SONNET})"
    body = ask(SONNET, messages=[{"role": "user", "content": text}], fallbacks="default")
    outcome = simulator.run(body, caller(FALLBACK))
    content = outcome.message()["content"]
    place = next(index for index, block in enumerate(content) if block["type"] == "fallback")
    assert 0 < place < len(content) - 1
    first = outcome.usage()["iterations"][0]
    assert first["output_tokens"] > 1
    start, *_, end, _ = [event.data for event in outcome.events()]
    assert (start["message"]["model"], outcome.message()["model"]) == (SONNET, "claude-sonnet-5")
    assert start["message"]["usage"]["input_tokens"] == first["input_tokens"]
    assert end["usage"]["iterations"] == outcome.usage()["iterations"]


def test_without_fallbacks_a_refusal_stays_one(simulator: Simulator) -> None:
    """And where every model declines, the last one's refusal is the answer; all are billed."""
    alone = simulator.run(ask(OPUS, messages=DECLINED), caller())
    assert (alone.message()["stop_reason"], "iterations" in alone.usage()) == ("refusal", False)
    every = [{"role": "user", "content": "SIMULATE_REFUSAL"}]
    outcome = simulator.run(ask(OPUS, messages=every, fallbacks="default"), caller(FALLBACK))
    assert outcome.message()["stop_reason"] == "refusal"
    assert [kind for kind, _ in kinds(outcome)] == ["message", "message", "fallback_message"]
    haiku = simulator.run(ask(HAIKU, messages=every, fallbacks="default"), caller(FALLBACK))
    assert (haiku.message()["stop_reason"], "iterations" in haiku.usage()) == ("refusal", False)


MERGES = [
    ({"thinking": {"type": "between_tools"}}, {}, {"thinking": {"type": "disabled"}}),
    ({"output_config": {"effort": "max"}}, {}, {"output_config": {"effort": "max"}}),
    ({"output_config": {"effort": "high"}}, {"output_config": None}, {}),
    ({"output_config": {"effort": "low"}}, {"output_config": {"effort": None}}, {}),
    ({"max_tokens": 900}, {"max_tokens": 700}, {"max_tokens": 700}),
    ({"thinking": {"type": "adaptive"}}, {"thinking": None}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "entry", "expected"), MERGES)
def test_an_entry_changes_its_own_attempt_alone(
    simulator: Simulator, fields: dict[str, Any], entry: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Section 14: the thinking and the effort of the request where the model supports them, else its defaults."""
    messages = [{"role": "user", "content": f"Locks? SIMULATE_REFUSAL({SONNET})"}]
    body = ask(SONNET, messages=messages, fallbacks=[{"model": "claude-sonnet-5", **entry}], **fields)
    got = simulator.run(body, caller(FALLBACK)).call.body
    plain = {"model": "claude-sonnet-5", "messages": messages, "max_tokens": 4096}
    assert got == {**plain, **expected}


FALLBACK_REFUSALS = [
    (SONNET, {"fallbacks": [{"model": "claude-opus-5"}]}, "is not an allowed fallback model"),
    (HAIKU, {"fallbacks": []}, "does not support a list of fallback models"),
    (SONNET, {"fallbacks": [{}]}, "fallbacks.0.model: Field required"),
    (SONNET, {"fallbacks": [{"model": "claude-sonnet-5", "system": "x"}]}, "fallbacks.0.system: Extra inputs"),
    (SONNET, {"fallbacks": [{"model": "claude-sonnet-5", "max_tokens": 999_999}]}, "fallbacks.0: max_tokens: 999999"),
    (OPUS, {"fallbacks": [{"model": "claude-opus-5"}] * 4}, "at most 3 entries"),
]


@pytest.mark.parametrize(("model", "fields", "complaint"), FALLBACK_REFUSALS)
def test_wrong_fallbacks_are_refused(simulator: Simulator, model: str, fields: dict[str, Any], complaint: str) -> None:
    """Each entry is validated as if it were sent to its own model."""
    assert complaint in verdict(simulator, ask(model, **fields), FALLBACK)


def test_a_credit_token_does_not_go_with_fallbacks(simulator: Simulator) -> None:
    """Section 14."""
    body = ask(SONNET, fallbacks="default", fallback_credit_token="token")
    assert "cannot be combined" in verdict(simulator, body, FALLBACK, "fallback-credit-2026-07-01")


# Streams


@pytest.fixture(scope="module")
def client() -> Iterator[anthropic.Anthropic]:
    with served() as origin, anthropic.Anthropic(base_url=origin, api_key="key", max_retries=0) as made:
        yield made


ANSWERS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "threshold": ([COMPACT], ask(SONNET, messages=TALK, context_management=edit())),
    "paused": ([COMPACT], ask(SONNET, messages=TALK, context_management=edit(pause_after_compaction=True))),
    "on demand": ([ON_DEMAND], ask(SONNET, compaction={"type": "summarize"})),
    "advisor": ([ADVICE], ask(SONNET, tools=[advisor(OPUS)])),
    "fallback": ([FALLBACK], ask(OPUS, messages=DECLINED, fallbacks="default")),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_library_puts_a_stream_together_to_the_plain_answer(client: anthropic.Anthropic, name: str) -> None:
    """Content, stop reason and every iteration, by the official SDK's own accumulator and types."""
    betas, body = ANSWERS[name]
    organization = f"sk-ant-org-{name.replace(' ', '')}"  # its own workspace, so that nothing sticks between the two
    plain = client.with_options(api_key=f"{organization}-1").beta.messages.create(betas=betas, **body)
    with client.with_options(api_key=f"{organization}-2").beta.messages.stream(betas=betas, **body) as stream:
        streamed = stream.get_final_message()
    told = [block.to_dict() for block in streamed.content]
    for block in told:  # the library adds the field when a block comes in pieces
        assert block.pop("encrypted_content", None) is None
    assert told == [block.to_dict() for block in plain.content]
    assert (streamed.model, streamed.stop_reason) == (plain.model, plain.stop_reason)
    assert streamed.usage.to_dict() == plain.usage.to_dict()
    assert plain.usage.iterations
    assert type(plain.usage.iterations[0]).__name__.startswith("Beta")


def test_a_cut_stream_is_billed_for_the_calls_that_had_begun(simulator: Simulator) -> None:
    """The compaction was over; of the answer only what was written; an advisor not yet asked costs nothing."""
    compaction = simulator.run(ask(SONNET, messages=TALK, context_management=edit()), caller(COMPACT))
    assert [(ran.kind, ran.output) for ran in begun(compaction.iterations, 3)][1:] == [("message", 3)]
    advised = simulator.run(ask(SONNET, tools=[advisor(OPUS)]), caller(ADVICE))
    first = advised.iterations[0].output
    assert [ran.kind for ran in begun(advised.iterations, first - 1)] == ["message"]
    assert [ran.kind for ran in begun(advised.iterations, first)] == ["message", "advisor_message"]
    assert [ran.output for ran in begun(advised.iterations, first + 5)][2:] == [5]
    assert said(advised)
    simulator.bill("req_2", advised, first + 5.0)
    entry = simulator.ledger.entries[-1]
    assert (entry["is_complete"], entry["usage"]["output_tokens"]) == (False, first + 5)
    assert entry["cost_pusd"] < billed(simulator, advised)


def test_items_of_a_batch_may_be_compacted_and_advised(simulator: Simulator) -> None:
    """At half the price, every call of them."""
    bodies = [(ADVICE, ask(SONNET, tools=[advisor(OPUS)])), (ON_DEMAND, ask(SONNET, compaction={"type": "summarize"}))]
    for beta, body in bodies:
        plain = billed(simulator, simulator.run(body, caller(beta)))
        assert 2 * billed(simulator, simulator.run(body, caller(beta), is_batch=True)) == plain
