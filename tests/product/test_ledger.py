"""Every cent is accounted for: what the traces say was spent is what the upstream bills, to the pico-dollar.

Ten thousand requests: `python -m bench.ledger`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from kit.ledger_run import check, run

from router.catalog_file import load_catalog
from router.simulator.ledger import cost_pusd
from router.simulator.record import load_roster
from router.usage import UsageMeter

COUNT = 1_000
ROSTER, CATALOG = load_roster(), load_catalog(None)
MODELS = ("claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5", "claude-opus-5", "claude-sonnet-4-6")
COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")


def test_the_books_of_a_thousand_requests_are_the_upstreams(tmp_path: Path) -> None:
    """Streams, tools, repeats, shared calls, iterations of every kind, batches, faults before and after the first byte,
    hang-ups: each of them occurs.
    """
    seen = check(run(tmp_path, COUNT), COUNT)
    assert seen.pop("equal") > COUNT * 0.5
    assert seen.pop("unnamed") >= 0  # the answers whose client hung up before the upstream could name them, if any
    assert all(seen.values()), seen


@st.composite
def parts(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The iterations of one usage: messages of the model that answers, and help of others."""
    found = []
    for kind in draw(st.lists(st.sampled_from(["message", "compaction", "advisor_message"]), min_size=1, max_size=4)):
        counts = {name: draw(st.integers(0, 150_000)) for name in COUNTS}
        one_hour = draw(st.integers(0, counts["cache_creation_input_tokens"]))
        counts["cache_creation"] = {
            "ephemeral_1h_input_tokens": one_hour,
            "ephemeral_5m_input_tokens": counts["cache_creation_input_tokens"] - one_hour,
        }
        model = draw(st.sampled_from(MODELS)) if kind == "advisor_message" else None
        found.append({"type": kind, "model": model, **counts})
    return found


@settings(max_examples=40)
@given(st.sampled_from(MODELS), parts(), st.integers(0, 3), st.booleans(), st.booleans())
def test_iterations_cost_what_their_parts_cost(
    model: str,
    iterations: list[dict[str, Any]],
    searches: int,
    is_first: bool,
    is_split_said: bool,
) -> None:
    """Each part at its own model and prompt length, by the simulator's arithmetic; the search comes once.

    The top-level counts are the sum of the messages, or (`is_first`) have the input of the first one only. Unless
    `is_split_said`, the first one does not say how long its writes to the prompt cache last: the top level does.
    """
    messages = [part for part in iterations if part["type"] == "message"]
    top: dict[str, Any] = {name: sum(part[name] for part in messages) for name in COUNTS}
    top["cache_creation"] = {
        name: sum(part["cache_creation"][name] for part in messages)
        for name in ("ephemeral_1h_input_tokens", "ephemeral_5m_input_tokens")
    }
    if is_first and messages:
        top |= {name: value for name, value in messages[0].items() if name in (*COUNTS[:3], "cache_creation")}
    top["server_tool_use"] = {"web_search_requests": searches}
    can_be_told = not is_first or len(messages) == 1
    said = [
        part | {"cache_creation": None} if not is_split_said and can_be_told and part in messages[:1] else part
        for part in iterations
    ]
    meter = UsageMeter()
    meter.message({"model": model, "stop_reason": "end_turn", "usage": {**top, "iterations": said}})
    by_id = {record.id: record for record in ROSTER.models}
    expected = sum(cost_pusd(part, by_id[part["model"] or model], ROSTER) for part in iterations)
    if not messages:  # the top-level counts are then a message of their own
        expected += cost_pusd({**top, "server_tool_use": {}}, by_id[model], ROSTER)
    expected += searches * 10**10
    usage = meter.usage()
    assert usage is not None
    assert CATALOG.cost(usage, model) == expected
