"""The simulator judges the swap check: what the check lets go is taken, as the direct request was, and means the same.

Three parts. The judge itself is held against the table of the API sheet. Every ordered pair of current models with
every row of parameters, strict and adapted. Every model asked for, producer of thinking and target, with thinking
blocks that the simulator really made, in a plain conversation and in a pending tool loop.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from router.catalog_file import load_catalog
from router.simulator.call import Call
from router.simulator.refusal import Refusal
from router.simulator.service import Caller, Simulator
from router.simulator.settings import SimulatorSettings
from router.simulator.thinking import Replay
from router.swap.adapt import adapted
from router.swap.check import can_serve
from router.swap.edits import EDITS
from router.wire.edit import LEAVE_OUT
from router.wire.messages import MessagesRequest, object_spans, read_request

CATALOG = load_catalog()
CURRENT = [model.id for model in CATALOG.models if not model.is_retired]
DAY = 1_795_350_000.0  # 22 November 2026: fast mode of Opus 4.8 still runs
BETAS = (
    "task-budgets-2026-03-13", "mid-conversation-output-config-2026-07-01", "mid-conversation-tool-changes-2026-07-01",
    "fast-mode-2026-02-01", "context-management-2025-06-27", "compact-2026-01-12", "compact-2026-09-04",
    "advisor-tool-2026-03-01", "computer-use-2025-11-24", "computer-use-2025-01-24", "mcp-client-2025-11-20",
    "server-side-fallback-2026-06-01", "structured-outputs-2025-11-13", "thinking-binding-controls-2026-08-01",
)  # fmt: skip


def load_tables() -> ModuleType:
    """The rows that `tests/swap` states for each rule of the API sheet."""
    path = Path(__file__).parent.parent / "swap" / "test_swap.py"
    spec = importlib.util.spec_from_file_location("swap_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


T = load_tables()
ADAPTIVE, TOOL, FORCED, OLD, NEW = {"type": "adaptive"}, T.TOOL, T.FORCED, T.OLD, T.NEW
BUDGET = {"type": "enabled", "budget_tokens": 2048}
ALWAYS = {T.FABLE_5_2, T.FABLE_5_1, T.FABLE_5, T.OPUS_5_5}
NO_FORCE = {T.FABLE_5_2, T.FABLE_5_1, T.OPUS_5_5, T.SONNET_5_5}
TOOLSET_ONLY = {T.FABLE_5_2, T.OPUS_5_5, T.SONNET_5_5, T.HAIKU_5_5}
NEWEST, SIX, FIVES, ALL = T.NEWEST, T.SIX, T.FIVES, T.ALL
CLOSED = {"type": "object", "properties": {}, "additionalProperties": False}
SAID = [{"role": "user", "content": "hi"}]
LATER = [*SAID, {"role": "system", "content": "be brief"}]
EFFORT_LATER = [*SAID, {"role": "system", "content": "be brief", "output_config": {"effort": "low"}}]
PREFILLED = [*SAID, {"role": "assistant", "content": "{"}]
CHANGED = [*SAID, {"role": "system", "content": [{"type": "tool_removal", "tool": {"name": "label"}}]}]
PER_MESSAGE = {T.FABLE_5_2, T.FABLE_5_1, T.OPUS_5_5, T.OPUS_5, T.SONNET_5_5, T.HAIKU_5_5}
FAST = {T.FABLE_5_2, T.OPUS_5_5, T.OPUS_5, T.OPUS_4_8, T.OPUS_4_6}  # the last runs at standard speed in silence

# The table "What each model accepts" of the API sheet as it is printed: body, version, the columns with a 400.
SHEET: list[tuple[dict[str, Any], str, set[str]]] = [
    ({"thinking": ADAPTIVE}, NEW, FIVES),
    ({"thinking": BUDGET}, NEW, NEWEST),
    ({"thinking": {"type": "enabled", "budget_tokens": 1023}}, NEW, ALL),
    ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, NEW, ALL),
    ({"thinking": {"type": "disabled"}}, NEW, ALWAYS | {T.SONNET_5_5}),
    ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, NEW,
     ALWAYS | {T.SONNET_5_5, T.SONNET_4_5, T.HAIKU_4_5}),
    ({"thinking": {"type": "disabled"}, "output_config": {"effort": "xhigh"}}, NEW,
     ALL - {T.OPUS_4_8, T.OPUS_4_7, T.SONNET_5}),
    ({"thinking": {"type": "between_tools"}}, NEW, ALL - {T.SONNET_5_5}),
    ({"thinking": {"type": "between_tools"}, "output_config": {"effort": "max"}}, NEW, ALL),
    ({"thinking": {"type": "between_tools", "display": "omitted"}}, NEW, ALL),
    ({"output_config": {"effort": "high"}}, NEW, {T.SONNET_4_5, T.HAIKU_4_5}),
    ({"output_config": {"effort": "xhigh"}}, NEW, SIX | FIVES),
    ({"output_config": {"effort": "max"}}, NEW, FIVES),
    ({"temperature": 1}, OLD, set()),
    ({"temperature": 0.5}, OLD, NEWEST),
    ({"top_p": 0.9}, OLD, NEWEST),
    ({"top_k": 5}, OLD, NEWEST),
    ({"temperature": 1, "top_p": 0.99}, OLD, NEWEST | FIVES),
    ({"temperature": 1}, NEW, ALL),
    ({"messages": PREFILLED}, NEW, NEWEST | SIX),
    ({"messages": PREFILLED, "thinking": BUDGET}, NEW, ALL),
    ({"tools": [TOOL], "tool_choice": FORCED}, NEW, NO_FORCE),
    ({"tools": [TOOL], "tool_choice": {"type": "any"}}, NEW, NO_FORCE),
    ({"tools": [TOOL], "tool_choice": FORCED, "thinking": BUDGET}, NEW, ALL),
    ({"messages": LATER}, NEW, {T.OPUS_4_7, T.SONNET_5} | SIX | FIVES),
    ({"messages": EFFORT_LATER}, NEW, ALL - PER_MESSAGE),
    ({"messages": EFFORT_LATER, "thinking": {"type": "disabled"}}, NEW, ALL - {T.OPUS_5}),
    ({"messages": CHANGED, "tools": [TOOL]}, NEW, {T.OPUS_4_7, T.SONNET_5} | SIX | FIVES),
    ({"inference_geo": "us"}, NEW, FIVES),
    ({"speed": "fast"}, NEW, ALL - FAST),
    (T.typed("web_search_20260209"), NEW, FIVES),
    (T.typed("web_search_20250305"), NEW, set()),
    ({"tools": [{**TOOL, "allowed_callers": ["code_execution_20260120"]}]}, NEW, {T.HAIKU_4_5}),
    (T.typed("computer_toolset_20260801"), NEW, {T.OPUS_4_7} | SIX | FIVES),
    (T.typed("computer_20251124"), NEW, TOOLSET_ONLY | {T.SONNET_4_5, T.HAIKU_4_5}),
    (T.typed("computer_20250124"), NEW, ALL - {T.SONNET_4_5, T.HAIKU_4_5}),
    ({"tools": [{**TOOL, "input_schema": CLOSED, "strict": True}]}, NEW, set()),
    ({"output_config": {"format": {"type": "json_schema", "schema": CLOSED}}}, NEW, set()),
    ({"output_config": {"task_budget": {"type": "tokens", "total": 50_000}}}, NEW, {T.SONNET_5} | SIX | FIVES),
    ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, NEW, FIVES),
    ({"max_tokens": 64_001}, NEW, FIVES),
    ({"max_tokens": 0, "thinking": BUDGET}, NEW, ALL),
]  # fmt: skip

# What programs send that a lane may have to adapt, beside the rows of `tests/swap`.
PROGRAMS: list[tuple[str, dict[str, Any], str]] = [
    ("claude code", {"max_tokens": 128_000, "thinking": T.ADAPTIVE, "output_config": {"effort": "medium"},
     "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}, OLD),
    ("claude code on 4.5", {"max_tokens": 32_000, "thinking": {"type": "enabled", "budget_tokens": 31_999}}, OLD),
    ("adaptive with a summary", {"max_tokens": 9000, "thinking": {"type": "adaptive", "display": "summarized"}}, NEW),
    ("adaptive, all effort", {"max_tokens": 128_000, "thinking": ADAPTIVE, "output_config": {"effort": "max"}}, NEW),
    ("adaptive, tiny", {"max_tokens": 800, "thinking": ADAPTIVE}, NEW),
    ("adaptive, forced tool", {"thinking": ADAPTIVE, "tools": [TOOL], "tool_choice": FORCED}, NEW),
    ("a large budget", {"max_tokens": 128_000, "thinking": {"type": "enabled", "budget_tokens": 100_000}}, NEW),
    ("a small budget", {"max_tokens": 128_000, "thinking": {"type": "enabled", "budget_tokens": 5000}}, NEW),
    ("off, all effort", {"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}, NEW),
    ("nothing said, all effort", {"output_config": {"effort": "max"}}, NEW),
    ("between tools", {"thinking": {"type": "between_tools"}, "tools": [TOOL]}, NEW),
    ("a cold sampler", {"temperature": 0, "top_k": 3}, OLD),
    ("two samplers", {"temperature": 0.2, "top_p": 0.9}, OLD),
    ("all at once", {"max_tokens": 100_000, "thinking": ADAPTIVE, "speed": "fast", "service_tier": "auto",
     "output_config": {"effort": "xhigh", "task_budget": {"type": "tokens", "total": 50_000}}}, OLD),
    ("with fallbacks", {"fallbacks": [{"model": T.OPUS_4_8}], "output_config": {"effort": "max"}}, NEW),
]  # fmt: skip


def rows() -> list[tuple[str, dict[str, Any], str]]:
    found = [(name, body, OLD) for name, (body, _) in T.ACCEPTS.items()]
    found += [(f"sampling {number}", body, version) for number, (body, version, _) in enumerate(T.SAMPLING)]
    found += [(f"sheet {number}", body, version) for number, (body, version, _) in enumerate(SHEET)]
    return found + PROGRAMS


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(SimulatorSettings(clock=lambda: DAY))


def judge(simulator: Simulator, body: dict[str, Any], version: str) -> tuple[Call, Replay] | None:
    """The request as the API understands it; None when it refuses."""
    try:
        return simulator.call(body, Caller("org", "workspace", version, frozenset(BETAS)))
    except Refusal:
        return None


def full(model: str, row: dict[str, Any]) -> dict[str, Any]:
    said = [{"role": "user", "content": "Label this: the parcel is late."}]
    return {"model": model, "max_tokens": 4096, "messages": said, **row}


@pytest.mark.parametrize(("row", "version", "refused"), SHEET)
def test_the_judge_refuses_exactly_what_the_sheet_says(
    simulator: Simulator, row: dict[str, Any], version: str, refused: set[str]
) -> None:
    """Law: a column of the sheet's table with a 400 is a refusal, any other is taken."""
    assert {model for model in T.COLUMNS if judge(simulator, full(model, row), version) is None} == refused


def test_the_judge_and_the_catalogue_agree_who_reads_whom(simulator: Simulator) -> None:
    """Law: two readings of the same records, made apart, name the same readers for every pair of models."""
    for reader, producer in itertools.product(CURRENT, CURRENT):
        known = CATALOG.find(reader).accepts.reads_thinking_from
        assert simulator.roster.can_read(simulator.roster.usable(reader), producer) == (producer in known)


def means_the_same(direct: Call, routed: Call) -> bool:
    """Whether the target thinks where the program said so, not where it did not, and shows as much of it."""
    if routed.is_thinking and not direct.is_thinking:
        return routed.forces_tool and routed.model.fields["line"] == "haiku"  # it skips thinking then
    if not routed.is_thinking:  # left out it may go; said, only where it did nothing
        return not direct.is_thinking or direct.body.get("thinking") is None or direct.forces_tool
    shown = [
        (call.body.get("thinking") or {}).get("display") or call.model.default_display for call in (direct, routed)
    ]
    return shown[0] == shown[1] or direct.body.get("thinking") is None


def changed_by_hand(request: MessagesRequest, edits: Any) -> dict[str, Any]:
    """The body with the edits made on a copy of the parsed form."""
    body: dict[str, Any] = json.loads(request.raw)
    for edit in edits:
        *outer, key = edit.path
        holder = body[outer[0]] if outer else body
        holder.pop(key, None)
        if edit.value is not LEAVE_OUT:
            holder[key] = edit.value
        if outer and not holder:
            del body[outer[0]]
    return body


def check_edits(request: MessagesRequest, edits: Any) -> MessagesRequest:
    """The adapted request, which differs by the named edits only, each said in plain words."""
    new = adapted(request, edits)
    assert new.body == changed_by_hand(request, edits)
    touched = {edit.path[0] for edit in edits}
    assert not touched & {"model", "messages", "system", "tools", "tool_choice", "fallbacks", "inference_geo"}
    before, after = object_spans(request.raw), object_spans(new.raw)
    for key in before.keys() - touched:
        assert new.raw[slice(*after[key])] == request.raw[slice(*before[key])]
    for edit in edits:
        assert edit.name in EDITS
        assert 0 < len(edit.says) < 80
        assert edit.says.isascii()
        assert edit.says.isprintable()
        assert "," not in edit.says
    return new


def test_a_swap_that_is_allowed_is_never_refused(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: what the asked model takes directly is taken, with the same meaning, wherever the check lets it go."""
    every = tuple(EDITS)
    pairs, allowed = 0, {"strict": 0, "adapt": 0}
    made: dict[str, int] = dict.fromkeys(every, 0)
    broken: list[tuple[str, str, str, str]] = []
    for name, row, version in rows():
        takes = {model: judge(simulator, full(model, row), version) for model in CURRENT}
        for asked, direct in takes.items():
            if direct is None:
                continue
            body = full(asked, row)
            request = read_request(json.dumps(body, separators=(", ", " : ") if len(name) % 2 else (",", ":")).encode())
            for target in CURRENT:
                pairs += 1

                def verdict(
                    *edits: str,
                    asked: str = asked,
                    target: str = target,
                    request: MessagesRequest = request,
                    version: str = version,
                ) -> Any:
                    return can_serve(
                        request, CATALOG.find(target), asked=CATALOG.find(asked), api_version=version, betas=BETAS,
                        input_tokens=50, edits=edits,
                    )  # fmt: skip

                strict, adapt = verdict(), verdict(*every)
                allowed["strict"] += strict.is_ok
                allowed["adapt"] += adapt.is_ok
                assert strict.edits == ()
                if strict.is_ok:
                    routed = takes[target]
                    if routed is None or (asked != target and not means_the_same(direct[0], routed[0])):
                        broken.append(("strict", name, asked, target))
                    assert adapt.is_ok
                    assert not adapt.edits, "an edit is made only when needed"
                elif adapt.is_ok:
                    assert adapt.edits, (name, asked, target)
                    new = check_edits(request, adapt.edits)
                    routed = judge(simulator, {**new.body, "model": target}, version)
                    if routed is None or not means_the_same(direct[0], routed[0]):
                        broken.append(("adapt", name, asked, target))
                    for edit in {edit.name for edit in adapt.edits}:
                        made[edit] += 1
                        assert not verdict(*(one for one in every if one != edit)).is_ok, "each edit is needed"
                else:
                    assert adapt.edits == ()
    with capsys.disabled():
        print(
            f"\nswap matrix: {pairs:,} pairs of an accepted request and a model ({len(rows())} rows, {len(CURRENT)} "
            f"models): {allowed['strict']:,} swaps allowed strict, {allowed['adapt']:,} adapt, {len(broken)} refused "
            f"or changed in meaning; edits {', '.join(f'{key} {count:,}' for key, count in made.items())}"
        )
    assert not broken
    assert pairs > 15_000
    assert allowed["strict"] > pairs // 5, "a check that allows next to nothing would pass too"
    assert allowed["adapt"] > allowed["strict"] + 500
    assert all(made.values()), "every edit is used"


def thinks(model: str) -> dict[str, Any]:
    """The fields that make a model think, shown as a summary so that a block has text."""
    accepts = CATALOG.find(model).accepts.thinking.accepts
    kind = {"type": "adaptive"} if "adaptive" in accepts else {"type": "enabled", "budget_tokens": 2048}
    return {"thinking": {**kind, "display": "omitted"}}


QUESTION = "Work out step by step how many parcels are late: 3 of 14, then 5 of 20."


def history(simulator: Simulator, producers: tuple[str, ...], *, is_loop: bool) -> list[dict[str, Any]]:
    """A conversation that the models really had, one turn each; in a loop the last turn waits for a tool."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
    caller = Caller("org", "workspace", NEW, frozenset(BETAS))
    for place, model in enumerate(producers):
        is_last = place == len(producers) - 1
        choice = "auto" if is_loop and is_last else "none"
        body = {"model": model, "max_tokens": 4096, "messages": turns, "tools": [TOOL], **thinks(model)}
        effort = {} if "claude-haiku-4-5" in model or "sonnet-4-5" in model else {"output_config": {"effort": "high"}}
        outcome = simulator.run({**body, **effort, "tool_choice": {"type": choice}}, caller)
        content = list(outcome.answer.content)
        assert content[0]["type"] == "thinking"
        turns = [*turns, {"role": "assistant", "content": content}]
        calls = [block["id"] for block in content if block["type"] == "tool_use"]
        assert bool(calls) == (choice == "auto")
        answer: Any = [{"type": "tool_result", "tool_use_id": one, "content": "8 are late"} for one in calls]
        turns.append({"role": "user", "content": answer or f"And {place + 1} more?"})
    return turns


def test_a_conversation_with_thinking_never_breaks_nor_loses_its_reasoning(
    simulator: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: where the check says yes with known producers, the target takes the history and reads every block of it."""
    every = tuple(EDITS)
    groups = [(one,) for one in CURRENT]
    groups += [("claude-haiku-5-5", "claude-sonnet-5-5"), ("claude-opus-5-5", "claude-haiku-5-5")]
    groups += [("claude-opus-4-8", "claude-opus-5-5"), ("claude-haiku-4-5-20251001", "claude-sonnet-5")]
    tried, allowed, broken = 0, {"strict": 0, "adapt": 0, "moved": 0}, []
    for producers, is_loop in itertools.product(groups, (False, True)):
        turns = history(simulator, producers, is_loop=is_loop)
        for asked in CURRENT:
            body = {"model": asked, "max_tokens": 4096, "messages": turns, "tools": [TOOL], **thinks(asked)}
            if judge(simulator, body, NEW) is None:
                continue
            request = read_request(json.dumps(body, separators=(",", ":")).encode())
            for target in CURRENT:
                if target == asked:
                    continue
                tried += 1
                for form, edits in (("strict", ()), ("adapt", every)):
                    verdict = can_serve(
                        request, CATALOG.find(target), asked=CATALOG.find(asked), api_version=NEW, betas=BETAS,
                        input_tokens=500, producers=producers, edits=edits,
                    )  # fmt: skip
                    if not verdict.is_ok:
                        continue
                    allowed[form] += 1
                    allowed["moved"] += target not in producers
                    new = check_edits(request, verdict.edits) if verdict.edits else request
                    routed = judge(simulator, {**new.body, "model": target}, NEW)
                    if routed is None or routed[1].transformations:
                        broken.append((form, asked, producers, target, is_loop))
    with capsys.disabled():
        print(
            f"\nswap history: {tried:,} of asked, producers, target and shape: {allowed['strict']:,} allowed strict, "
            f"{allowed['adapt']:,} adapt ({allowed['moved']:,} to a model new to the conversation), "
            f"{len(broken)} refused or dropped"
        )
    assert not broken
    assert tried > 8_000
    assert allowed["strict"] > 200
    assert allowed["moved"] > 50


def edited(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation after a client changed its first turn."""
    return [{"role": "user", "content": "Another question."}, *turns[1:]]


def test_a_changed_history_never_fails_on_a_model_that_is_new_to_it(simulator: Simulator) -> None:
    """Law: where the direct request passes although the history was changed, no move makes it a 400."""
    moves = 0
    for producer in CURRENT:
        turns = edited(history(simulator, (producer,), is_loop=False))
        for asked in CURRENT:
            body = {"model": asked, "max_tokens": 4096, "messages": turns, "tools": [TOOL], **thinks(asked)}
            if judge(simulator, body, NEW) is None:
                continue
            request = read_request(json.dumps(body).encode())
            for target in (model for model in CURRENT if model not in (asked, producer)):
                verdict = can_serve(
                    request, CATALOG.find(target), asked=CATALOG.find(asked), api_version=NEW, betas=BETAS,
                    input_tokens=500, producers=(producer,), edits=tuple(EDITS),
                )  # fmt: skip
                if verdict.is_ok:
                    moves += 1
                    assert judge(simulator, {**adapted(request, verdict.edits).body, "model": target}, NEW) is not None
    assert moves > 10
