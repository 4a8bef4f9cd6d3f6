"""Usage as the wire reports it: the last value wins, nothing is added, nothing odd can break the meter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.usage import Iteration, Tokens, Usage, UsageMeter

START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "model": "claude-haiku-5-5",
        "content": [],
        "stop_reason": None,
        "usage": {
            "input_tokens": 12,
            "cache_creation_input_tokens": 300,
            "cache_read_input_tokens": 4_000,
            "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
            "output_tokens": 1,
            "service_tier": "standard",
            "inference_geo": "us",
            "speed": "standard",
        },
    },
}


def delta(**usage: object) -> dict:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}


def metered(*events: dict) -> UsageMeter:
    meter = UsageMeter()
    for event in events:
        meter.event(event)
    return meter


def test_a_plain_answer_is_metered_whole():
    """A Message holds everything at once and is final."""
    meter = UsageMeter()
    meter.message(
        {
            "id": "msg_2",
            "model": "claude-sonnet-5-5",
            "stop_reason": "end_turn",
            "usage": {
                "input_tokens": 5,
                "output_tokens": 7,
                "output_tokens_details": {"thinking_tokens": 3},
                "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 9},
                "speed": "fast",
            },
        }
    )
    assert (meter.model, meter.stop_reason) == ("claude-sonnet-5-5", "end_turn")
    assert meter.usage() == Usage(Tokens(input=5, output=7), thinking=3, web_searches=2, speed="fast", is_final=True)


def test_the_delta_replaces_the_placeholder_of_the_start():
    """`message_delta.usage` is cumulative: adding it to `message_start` would count one token twice."""
    usage = metered(START, delta(output_tokens=40), delta(output_tokens=90)).usage()
    assert usage.tokens == Tokens(input=12, cache_read=4_000, cache_write_5m=100, cache_write_1h=200, output=90)
    assert usage.tokens.prompt == 4_312
    assert (usage.geo, usage.speed, usage.service_tier, usage.is_final) == ("us", "standard", "standard", True)


def test_a_delta_may_restate_the_input_side():
    """A fallback in mid-stream changes the input counts too; the last word counts."""
    usage = metered(START, delta(input_tokens=20, cache_read_input_tokens=0, output_tokens=9)).usage()
    assert (usage.tokens.input, usage.tokens.cache_read, usage.tokens.cache_write_1h) == (20, 0, 200)


def test_null_replaces_nothing():
    """A delta with null for a count that the start gave leaves it alone."""
    usage = metered(START, delta(input_tokens=None, cache_creation=None, output_tokens=9)).usage()
    assert (usage.tokens.input, usage.tokens.cache_write_1h, usage.tokens.output) == (12, 200, 9)


def test_a_cut_stream_reports_a_lower_bound():
    """Without `message_delta` the output count is a placeholder and the usage is not final."""
    meter = metered(START)
    assert meter.usage().is_final is False
    assert meter.usage().tokens.output == 1
    assert meter.stop_reason is None


def test_nothing_reported_is_no_usage():
    """None, not zeros: zeros would be booked as a free request."""
    assert UsageMeter().usage() is None
    assert metered({"type": "ping"}, {"type": "error", "error": {"type": "overloaded_error"}}).usage() is None


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"cache_creation_input_tokens": 50}, (50, 0)),
        ({"cache_creation_input_tokens": 50, "cache_creation": {"ephemeral_1h_input_tokens": 20}}, (30, 20)),
        ({"cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 5}}, (4, 5)),
        ({"cache_creation_input_tokens": 0, "cache_creation": {"ephemeral_5m_input_tokens": 4}}, (4, 0)),
        ({"cache_creation_input_tokens": 9, "cache_creation": None}, (9, 0)),
    ],
)
def test_a_cache_write_that_is_not_split_counts_as_five_minutes(counts, expected):
    """The remainder of `cache_creation_input_tokens` is 5m; the split itself is believed."""
    tokens = metered(START | {"message": {"usage": counts}}).usage().tokens
    assert (tokens.cache_write_5m, tokens.cache_write_1h) == expected


def test_iterations_are_kept_in_order_with_their_models():
    """Compaction, advisor and fallback calls are billed on their own; entries that are no objects are left out."""
    entries = [
        {"type": "compaction", "input_tokens": 9, "output_tokens": 2},
        {"type": "advisor_message", "model": "claude-opus-5-5", "input_tokens": 3, "output_tokens": 1},
        {"type": "message", "cache_creation": {"ephemeral_1h_input_tokens": 6}, "output_tokens": 4},
        {"input_tokens": 1},
        None,
        "message",
    ]
    usage = metered(START, delta(output_tokens=4, iterations=entries)).usage()
    assert usage.iterations == (
        Iteration("compaction", None, Tokens(input=9, output=2)),
        Iteration("advisor_message", "claude-opus-5-5", Tokens(input=3, output=1)),
        Iteration("message", None, Tokens(cache_write_1h=6, output=4)),
        Iteration("message", None, Tokens(input=1)),
    )


def hop(kind: str, model: str | None = None, **counts: int) -> dict:
    """An entry of `iterations`."""
    return {"type": kind, **({"model": model} if model else {}), **counts}


def test_who_answered_after_a_fallback_in_mid_stream_is_said_at_the_end():
    """`message_start` named the model that declined; the answer, and the thinking sent back later, are the other's."""
    entries = [hop("message", "claude-haiku-5-5", input_tokens=12), hop("fallback_message", "claude-sonnet-5")]
    meter = metered(START, delta(input_tokens=20, output_tokens=9, iterations=entries))
    assert meter.model == "claude-sonnet-5"
    meter = metered(START, delta(output_tokens=9, iterations=[hop("message", "claude-sonnet-5"), "fallback_message"]))
    assert meter.model == "claude-haiku-5-5"


def written(*events: dict) -> tuple[int, int]:
    """Tokens written to the prompt cache for five minutes and for an hour, at the top level."""
    tokens = metered(*events).usage().tokens
    return tokens.cache_write_5m, tokens.cache_write_1h


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"cache_creation_input_tokens": 300}, (100, 200)),
        ({"cache_creation_input_tokens": 450}, (250, 200)),  # cumulative: a loop of tools wrote more
        ({"cache_creation_input_tokens": 70}, (100, 200)),
        ({"cache_creation_input_tokens": 0}, (100, 200)),
        ({"cache_creation_input_tokens": 0, "cache_creation": {"ephemeral_1h_input_tokens": 0}}, (0, 0)),
        (
            {
                "cache_creation_input_tokens": 70,
                "cache_creation": {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 40},
            },
            (30, 40),
        ),
    ],
)
def test_what_was_written_for_an_hour_stays_so_however_the_count_is_restated(counts, expected):
    """`message_delta` has no split: what it adds is 5m. A cumulative count never shrinks; a new split is believed."""
    assert written(START, delta(output_tokens=9, **counts)) == expected


@pytest.mark.parametrize("count", [450, 70, 0])
def test_after_a_fallback_in_mid_stream_the_split_was_another_models(count):
    """The count is that of the model which took over, also where it is smaller; nobody said for how long it wrote."""
    hops = [hop("message", "claude-haiku-5-5"), hop("fallback_message", "claude-sonnet-5")]
    assert written(START, delta(output_tokens=9, cache_creation_input_tokens=count, iterations=hops)) == (count, 0)


def test_entries_without_a_split_are_split_as_the_top_level_is():
    """What the top level says was written for an hour, the messages wrote; the other kinds are not in its counts."""
    entries = [
        hop("message", cache_creation_input_tokens=120),
        hop("advisor_message", "claude-opus-5-5", cache_creation_input_tokens=50),
        hop("message") | {"cache_creation_input_tokens": 90, "cache_creation": {"ephemeral_5m_input_tokens": 10}},
        hop("message", cache_creation_input_tokens=90) | {"cache_creation": None},
    ]
    usage = metered(START, delta(output_tokens=1, iterations=entries)).usage()
    found = [(entry.tokens.cache_write_5m, entry.tokens.cache_write_1h) for entry in usage.iterations]
    assert found == [(0, 120), (50, 0), (10, 80), (90, 0)]


def test_after_a_fallback_the_top_level_speaks_of_the_last_model_alone():
    """What the model that declined wrote is split by its own entry or not at all."""
    entries = [
        hop("message", "claude-haiku-5-5", cache_creation_input_tokens=300),
        hop("message", "claude-sonnet-5", cache_creation_input_tokens=150),
        hop("fallback_message", "claude-sonnet-5", cache_creation_input_tokens=150),
    ]
    usage = metered(START, delta(output_tokens=1, iterations=entries)).usage()
    found = [(entry.tokens.cache_write_5m, entry.tokens.cache_write_1h) for entry in usage.iterations]
    assert found == [(300, 0), (0, 150), (100, 50)]


def test_a_message_without_a_name_before_the_first_hop_is_of_the_model_that_was_asked():
    """It declined; a compaction before it was its own too. Where nobody knows what was asked, it is the next one's."""
    entries = [
        hop("compaction", input_tokens=1),
        hop("message", input_tokens=100_000),
        hop("fallback_message", "claude-haiku-5-5", input_tokens=10),
    ]
    named = {}
    for sent in ("claude-opus-5-5", None):
        meter = UsageMeter(sent)
        meter.message({"model": "claude-haiku-5-5", "stop_reason": "end_turn", "usage": {"iterations": entries}})
        named[sent] = [entry.model for entry in meter.usage().iterations]
    assert named["claude-opus-5-5"] == ["claude-opus-5-5", "claude-opus-5-5", "claude-haiku-5-5"]
    assert named[None] == ["claude-haiku-5-5"] * 3


def test_an_entry_without_a_name_belongs_to_the_hop_it_leads_to():
    """A compaction never names its model; before a hop of a chain it was that hop's."""
    entries = [
        hop("compaction", input_tokens=1),
        hop("message", "claude-opus-5-5", input_tokens=2),
        hop("compaction", input_tokens=3),
        hop("advisor_message", "claude-fable-5", input_tokens=4),
        hop("message", input_tokens=5),
        hop("fallback_message", "claude-opus-5", input_tokens=6),
    ]
    named = [entry.model for entry in metered(START, delta(output_tokens=1, iterations=entries)).usage().iterations]
    assert named == ["claude-opus-5-5", "claude-opus-5-5", "claude-opus-5", "claude-fable-5", *["claude-opus-5"] * 2]
    alone = [hop("compaction", input_tokens=1), hop("message", input_tokens=2)]
    kept = metered(START, delta(output_tokens=1, iterations=alone)).usage().iterations
    assert [entry.model for entry in kept] == [None, None]


def test_zeros_are_a_usage_only_of_an_answer_that_came_to_its_end():
    """A summary alone begins with zeros and is billed by its iterations: cut, it is unknown, never free."""
    zeros = {"input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0, "output_tokens": 0}
    start = {"type": "message_start", "message": {"model": "claude-haiku-5-5", "usage": zeros}}
    assert metered(start).usage() is None
    summary = hop("compaction", input_tokens=900, output_tokens=80)
    usage = metered(start, delta(**zeros, iterations=[summary])).usage()
    assert (usage.tokens, usage.iterations) == (Tokens(), (Iteration("compaction", None, Tokens(900, output=80)),))
    assert metered(start, delta(output_tokens=0)).usage() == Usage()


def test_an_error_event_is_remembered_and_the_stream_stays_cut():
    """After `error` nothing follows; what was reported before still counts."""
    meter = metered(START, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    assert (meter.error_type, meter.is_final) == ("overloaded_error", False)
    assert meter.usage().tokens.input == 12


@pytest.mark.parametrize("body", [{}, {"error": None}, {"error": "no"}, {"error": {}}, {"error": {"type": 5}}])
def test_an_error_without_a_type_is_still_an_error(body):
    """The type falls back to `api_error`, so that an error is never taken for none."""
    meter = UsageMeter()
    meter.error(body)
    assert meter.error_type == "api_error"


@pytest.mark.parametrize("odd", [True, -1, 1.5, "7", [], {}, float("nan")])
def test_a_count_that_is_not_a_whole_number_counts_as_none(odd):
    """Money is computed from these: nothing but a non-negative integer may pass."""
    usage = metered(START | {"message": {"usage": {"input_tokens": odd, "output_tokens": 3}}}).usage()
    assert usage.tokens == Tokens(output=3)


WORDS = ("type", "message", "usage", "delta", "error", "model", "id", "stop_reason", "input_tokens", "output_tokens")
WORDS = (*WORDS, "cache_creation", "iterations", "server_tool_use", "output_tokens_details", "inference_geo")
field_names = st.sampled_from(WORDS)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "x", "message"])
payloads = st.dictionaries(
    field_names,
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(field_names, inner, max_size=4)),
    max_size=5,
)
kinds = st.sampled_from(["message_start", "message_delta", "error", "ping", "content_block_delta"])


@given(st.lists(st.tuples(kinds, payloads), max_size=5))
def test_no_payload_whatever_breaks_the_meter(events):
    """The meter reads bytes that others wrote, beside a relay that must not stop."""
    meter = metered(*({**payload, "type": kind} for kind, payload in events))
    usage = meter.usage()
    if usage is not None:
        counts = (usage.tokens.prompt, usage.tokens.output, usage.thinking, usage.web_searches)
        assert all(isinstance(count, int) and count >= 0 for count in counts)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_any_number_of_deltas_gives_the_last_count(counts):
    """Cumulative means that the order is all that matters."""
    assert metered(START, *(delta(output_tokens=count) for count in counts)).usage().tokens.output == counts[-1]
