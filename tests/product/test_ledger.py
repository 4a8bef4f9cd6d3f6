"""Every cent is accounted for: what the traces say was spent is what the upstream bills, to the pico-dollar.

The simulator's iterations are priced apart below, as it answers with none; Message Batches are passed through and not
metered, their cost is `unknown` (see `docs/money.md`). Ten thousand requests: `python -m bench.ledger`.
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
MODELS = ("claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5", "claude-opus-5", "claude-sonnet-4-6")
COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")


def test_the_books_of_a_thousand_requests_are_the_upstreams(tmp_path: Path) -> None:
    """Streams, prompt caches, tools, repeats, shared calls, faults before and after the first byte, hang-ups."""
    seen = check(run(tmp_path, COUNT), COUNT)
    assert seen["equal"] > COUNT * 0.5
    for kind in ("hits", "coalesced", "refused", "fell back", "cut", "left"):
        assert seen[kind] > 0, seen


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
@given(st.sampled_from(MODELS), parts(), st.integers(0, 3))
def test_iterations_cost_what_their_parts_cost(model: str, iterations: list[dict[str, Any]], searches: int) -> None:
    """Each part at its own model and prompt length, by the simulator's arithmetic; the search comes once."""
    messages = [part for part in iterations if part["type"] == "message"]
    top: dict[str, Any] = {name: sum(part[name] for part in messages) for name in COUNTS}
    top["cache_creation"] = {
        name: sum(part["cache_creation"][name] for part in messages)
        for name in ("ephemeral_1h_input_tokens", "ephemeral_5m_input_tokens")
    }
    top["server_tool_use"] = {"web_search_requests": searches}
    meter = UsageMeter()
    meter.message({"model": model, "stop_reason": "end_turn", "usage": {**top, "iterations": iterations}})
    roster = load_roster()
    by_id = {record.id: record for record in roster.models}
    expected = sum(cost_pusd(part, by_id[part["model"] or model], roster) for part in iterations)
    if not messages:  # the top-level counts are then a message of their own
        expected += cost_pusd({**top, "server_tool_use": {}}, by_id[model], roster)
    expected += searches * 10**10
    usage = meter.usage()
    assert usage is not None
    assert load_catalog(None).cost(usage, model) == expected
