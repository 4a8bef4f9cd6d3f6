"""The table "what each model accepts", row by row: accepted, or refused with the documented message."""

from __future__ import annotations

import pytest
from simulator.calls import MODELS, NEW, OLD, TOOL, USER, ask, caller, verdict

from router.simulator.refusal import Refusal
from router.simulator.service import Simulator
from router.simulator.settings import SimulatorSettings

FABLES_52 = {"claude-fable-5-2", "claude-mythos-5-2"}
FABLES_51 = {"claude-fable-5-1", "claude-mythos-5-1"}
FABLES_5 = {"claude-fable-5", "claude-mythos-5"}
FABLES = FABLES_52 | FABLES_51 | FABLES_5
OPUS_47_48 = {"claude-opus-4-8", "claude-opus-4-7"}
GEN_46 = {"claude-opus-4-6", "claude-sonnet-4-6"}
OPUS_45 = {"claude-opus-4-5"}
SMALL_45 = {"claude-sonnet-4-5", "claude-haiku-4-5"}
GEN_45 = OPUS_45 | SMALL_45
EVERY = set(MODELS)
IDS_45 = {
    "claude-opus-4-5": "claude-opus-4-5-20251101",
    "claude-sonnet-4-5": "claude-sonnet-4-5-20250929",
    "claude-haiku-4-5": "claude-haiku-4-5-20251001",
}


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(SimulatorSettings(clock=lambda: 1_795_350_000.0))  # 22 November 2026


@pytest.mark.parametrize("model", MODELS)
def test_adaptive_thinking_is_refused_by_the_models_before_4_6(simulator: Simulator, model: str) -> None:
    """Row `thinking.type: adaptive`."""
    expected = "adaptive thinking is not supported on this model" if model in GEN_45 else "ok"
    assert verdict(simulator, ask(model, thinking={"type": "adaptive"})) == expected


@pytest.mark.parametrize("model", MODELS)
def test_a_thinking_budget_is_taken_up_to_4_6_only(simulator: Simulator, model: str) -> None:
    """Row `enabled` + `budget_tokens`."""
    refused = (
        '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and '
        '"output_config.effort" to control thinking behavior.'
    )
    expected = "ok" if model in GEN_46 | GEN_45 else refused
    assert verdict(simulator, ask(model, thinking={"type": "enabled", "budget_tokens": 1024})) == expected


@pytest.mark.parametrize("model", MODELS)
def test_thinking_cannot_be_turned_off_everywhere(simulator: Simulator, model: str) -> None:
    """Row `disabled`, with the way out that Sonnet 5.5 names."""
    found = verdict(simulator, ask(model, thinking={"type": "disabled"}))
    if model in FABLES | {"claude-opus-5-5"}:
        assert found == (
            '"thinking.type.disabled" is not supported for this model. Use "thinking.type.adaptive" and '
            '"output_config.effort" to control thinking behavior.'
        )
    elif model == "claude-sonnet-5-5":
        assert found.startswith(
            'To turn thinking off on this model, send "thinking": {"type": "between_tools"} instead of '
            '{"type": "disabled"}.'
        )
    else:
        assert found == "ok"


@pytest.mark.parametrize("effort", ["xhigh", "max"])
@pytest.mark.parametrize("model", ["claude-opus-5", "claude-haiku-5-5", "claude-sonnet-5", "claude-opus-4-8"])
def test_high_effort_needs_thinking_on_opus_5_and_haiku_5_5(simulator: Simulator, model: str, effort: str) -> None:
    """Row `disabled`: "ok up to effort high"."""
    body = ask(model, thinking={"type": "disabled"}, output_config={"effort": effort})
    refused = (
        f"output_config.effort '{effort}' is not supported when thinking is disabled on this model. "
        "Use effort 'high' or below, or enable thinking."
    )
    assert verdict(simulator, body) == (refused if model in ("claude-opus-5", "claude-haiku-5-5") else "ok")
    assert verdict(simulator, {**body, "output_config": {"effort": "high"}}) == "ok"


@pytest.mark.parametrize("model", MODELS)
def test_between_tools_belongs_to_sonnet_5_5(simulator: Simulator, model: str) -> None:
    """Row `between_tools`: up to effort high, no sibling fields."""
    body = ask(model, thinking={"type": "between_tools"})
    if model != "claude-sonnet-5-5":
        assert verdict(simulator, body) == '"thinking.type.between_tools" is not supported for this model.'
        return
    assert verdict(simulator, body) == "ok"
    assert "Use effort 'high' or below" in verdict(simulator, {**body, "output_config": {"effort": "xhigh"}})
    siblings = {**body, "thinking": {"type": "between_tools", "display": "omitted"}}
    assert verdict(simulator, siblings) == "thinking.between_tools.display: Extra inputs are not permitted"


@pytest.mark.parametrize("model", MODELS)
def test_leaving_thinking_out_means_what_the_model_says(simulator: Simulator, model: str) -> None:
    """Rows `thinking` omitted and default `thinking.display`."""
    body = ask(model, messages=[{"role": "user", "content": "Prove step by step that 17 is prime."}])
    outcome = simulator.run(body, caller())
    thinks = model not in OPUS_47_48 | GEN_46 | GEN_45
    assert (outcome.answer.content[0]["type"] == "thinking") == thinks
    assert (outcome.answer.thinking_tokens > 0) == thinks
    if thinks:
        assert outcome.answer.content[0]["thinking"] == ""
    elif model not in OPUS_47_48:
        kind = {"type": "adaptive"} if model in GEN_46 else {"type": "enabled", "budget_tokens": 1024}
        shown = simulator.run({**body, "thinking": kind}, caller())
        assert shown.answer.content[0]["thinking"] != ""


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("effort", ["low", "medium", "high", "xhigh", "max"])
def test_effort_levels_by_model(simulator: Simulator, model: str, effort: str) -> None:
    """Row `output_config.effort`."""
    found = verdict(simulator, ask(model, output_config={"effort": effort}))
    if model in SMALL_45:
        assert found == "This model does not support the effort parameter."
    elif model in GEN_46 and effort == "xhigh":
        assert found == "This model does not support effort level 'xhigh'. Supported levels: high, low, max, medium."
    elif model in OPUS_45 and effort in ("xhigh", "max"):
        assert found == f"This model does not support effort level '{effort}'. Supported levels: high, low, medium."
    else:
        assert found == "ok"


@pytest.mark.parametrize("model", MODELS)
def test_sampling_on_the_old_version(simulator: Simulator, model: str) -> None:
    """Row "Sampling params, version 2023-06-01"."""
    is_free = model in GEN_46 | GEN_45
    assert verdict(simulator, ask(model, temperature=1)) == "ok"
    expected = "ok" if is_free else "`temperature` is deprecated for this model."
    assert verdict(simulator, ask(model, temperature=0.2)) == expected
    assert verdict(simulator, ask(model, top_k=5)) == ("ok" if is_free else "`top_k` is deprecated for this model.")
    assert verdict(simulator, ask(model, top_p=0.99)) == "ok"
    assert verdict(simulator, ask(model, top_p=0.5)) == ("ok" if is_free else "`top_p` is deprecated for this model.")
    both = verdict(simulator, ask(model, temperature=1, top_p=0.99))
    if model in GEN_45:
        assert both == "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
    else:
        assert both == ("ok" if model in GEN_46 else "`top_p` is deprecated for this model.")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
def test_sampling_on_the_new_version_is_refused_by_all(simulator: Simulator, model: str, name: str) -> None:
    """Row "Sampling params, version 2026-10-21": even at the default."""
    body = ask(model, **{name: 1})
    assert verdict(simulator, body, version=NEW) == f"{name}: Extra inputs are not permitted"


@pytest.mark.parametrize("model", MODELS)
def test_prefill_is_taken_by_4_5_only(simulator: Simulator, model: str) -> None:
    """Row "Assistant prefill"."""
    body = ask(model, messages=[USER, {"role": "assistant", "content": "I am"}])
    refused = "This model does not support assistant message prefill. The conversation must end with a user message."
    assert verdict(simulator, body) == ("ok" if model in GEN_45 else refused)
    if model in GEN_45:
        thinking = {**body, "thinking": {"type": "enabled", "budget_tokens": 1024}}
        assert "prefill is not supported when thinking is enabled" in verdict(simulator, thinking)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look_up"}])
def test_forced_tools_by_model(simulator: Simulator, model: str, choice: dict[str, str]) -> None:
    """Row `tool_choice` any / tool; with a thinking budget it is refused too."""
    body = ask(model, tools=[TOOL], tool_choice=choice)
    refused = 'tool_choice: type "tool" and "any" are not supported for this model.'
    denies = model in FABLES_52 | FABLES_51 | {"claude-opus-5-5", "claude-sonnet-5-5"}
    assert verdict(simulator, body) == (refused if denies else "ok")
    assert verdict(simulator, {**body, "tool_choice": {"type": "auto"}}) == "ok"
    if model in GEN_45 | GEN_46:
        thinking = {**body, "thinking": {"type": "enabled", "budget_tokens": 1024}}
        assert verdict(simulator, thinking) == "Thinking may not be enabled when tool_choice forces tool use."


@pytest.mark.parametrize("model", MODELS)
def test_system_turns_by_model(simulator: Simulator, model: str) -> None:
    """Row `role: system` inside `messages`."""
    refusing = {"claude-opus-4-7", "claude-sonnet-5"} | GEN_46 | GEN_45
    body = ask(model, messages=[USER, {"role": "system", "content": "Be brief."}])
    expected = "role 'system' is not supported on this model" if model in refusing else "ok"
    assert verdict(simulator, body) == expected


def test_where_a_system_turn_may_stand(simulator: Simulator) -> None:
    """After a user turn, last or before an assistant turn, never first."""
    system = {"role": "system", "content": "Be brief."}
    assistant = {"role": "assistant", "content": "Fine."}

    def judge(*messages: dict[str, str]) -> str:
        return verdict(simulator, ask("claude-haiku-5-5", messages=list(messages)))

    first = "messages.0: use the top-level 'system' parameter for the initial system prompt"
    assert judge(system, USER) == first
    assert judge(USER, system, assistant, USER) == "ok"
    assert judge(USER, system, USER).startswith("messages.1: a 'system' message must be last")
    assert judge(USER, assistant, system, USER).startswith("messages.2: a 'system' message must follow")


@pytest.mark.parametrize("model", MODELS)
def test_per_message_effort_by_model(simulator: Simulator, model: str) -> None:
    """Row "Per-message effort (beta)"."""
    beta = "mid-conversation-output-config-2026-07-01"
    turn = {"role": "system", "content": "Be brief.", "output_config": {"effort": "low"}}
    body = ask(model, messages=[USER, turn])
    without = verdict(simulator, body)
    assert without == "messages.1.output_config: Extra inputs are not permitted"
    found = verdict(simulator, body, beta)
    if model in FABLES_52 | FABLES_51 | {"claude-opus-5-5", "claude-opus-5", "claude-sonnet-5-5", "claude-haiku-5-5"}:
        assert found == "ok"
    elif model in FABLES_5 | {"claude-opus-4-8"}:
        assert "per-message effort is not supported" in found
    else:
        assert found == "role 'system' is not supported on this model"
    off = {"claude-sonnet-5-5": "between_tools", "claude-haiku-5-5": "disabled"}.get(model)
    if off:
        assert "per-message effort needs thinking" in verdict(simulator, {**body, "thinking": {"type": off}}, beta)


@pytest.mark.parametrize("model", MODELS)
def test_inference_geo_by_model(simulator: Simulator, model: str) -> None:
    """Row `inference_geo`."""
    found = verdict(simulator, ask(model, inference_geo="us"))
    assert found == ("inference_geo: this parameter is not supported on this model" if model in GEN_45 else "ok")


@pytest.mark.parametrize("model", MODELS)
def test_fast_mode_by_model(simulator: Simulator, model: str) -> None:
    """Row `speed: "fast"`: with and without the beta, and silently standard on Opus 4.6."""
    body = ask(model, speed="fast")
    plain, under_beta = verdict(simulator, body), verdict(simulator, body, "fast-mode-2026-02-01")
    if model in FABLES_52 | {"claude-opus-5-5"}:
        assert plain == under_beta == "ok"
        assert simulator.run(body, caller()).usage()["speed"] == "fast"
    elif model in ("claude-opus-5", "claude-opus-4-8"):
        assert (plain, under_beta) == ("speed: Extra inputs are not permitted", "ok")
    elif model == "claude-opus-4-6":
        assert plain == "ok"
        assert simulator.run(body, caller()).usage()["speed"] == "standard"
    else:
        assert plain == under_beta == "speed: 'fast' is not supported on this model"


def test_fast_mode_ends_on_opus_4_8(simulator: Simulator) -> None:
    """Row `speed`: "4.8 beta until 2026-11-30"."""
    later = Simulator(SimulatorSettings(clock=lambda: 1_796_100_000.0))  # 1 December 2026
    body = ask("claude-opus-4-8", speed="fast")
    assert verdict(later, body, "fast-mode-2026-02-01") == "speed: 'fast' is not supported on this model"


@pytest.mark.parametrize("model", MODELS)
def test_late_web_tools_by_model(simulator: Simulator, model: str) -> None:
    """Row "Web search/fetch `_20260209` and later"."""
    found = verdict(simulator, ask(model, tools=[{"type": "web_search_20260209", "name": "web_search"}]))
    if model in GEN_45:
        assert found.startswith(f"'{IDS_45[model]}' does not support tool types: web_search_20260209. Did you mean")
    else:
        assert found == "ok"
    assert verdict(simulator, ask(model, tools=[{"type": "web_search_20250305", "name": "web_search"}])) == "ok"


@pytest.mark.parametrize("model", MODELS)
def test_computer_tools_by_model(simulator: Simulator, model: str) -> None:
    """Row "Computer use"."""
    allowed = {
        "computer_toolset_20260801": EVERY - GEN_46 - GEN_45 - {"claude-opus-4-7"},
        "computer_20251124": FABLES_51
        | FABLES_5
        | OPUS_47_48
        | GEN_46
        | OPUS_45
        | {"claude-opus-5", "claude-sonnet-5"},
        "computer_20250124": SMALL_45,
    }
    betas = ("computer-use-2025-01-24", "computer-use-2025-11-24")
    for kind, models in allowed.items():
        tool = {"type": kind, "name": "computer", "display_width_px": 800, "display_height_px": 600}
        found = verdict(simulator, ask(model, tools=[tool]), *betas)
        if model in models:
            assert found == "ok", kind
        else:
            full = IDS_45.get(model, model)
            assert found.startswith(f"'{full}' does not support tool types: {kind}. Did you mean one of ")


def test_programmatic_tool_calling_is_not_for_haiku_4_5(simulator: Simulator) -> None:
    """Row "Programmatic tool calling"."""
    tool = {**TOOL, "allowed_callers": ["code_execution_20260120"]}
    refusing = [model for model in MODELS if verdict(simulator, ask(model, tools=[tool])) != "ok"]
    assert refusing == ["claude-haiku-4-5"]


@pytest.mark.parametrize("model", MODELS)
def test_structured_output_works_everywhere(simulator: Simulator, model: str) -> None:
    """Row "Structured outputs, `strict` tools"."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
    form = {"type": "json_schema", "schema": schema}
    assert verdict(simulator, ask(model, output_config={"format": form})) == "ok"
    strict = {"name": "f", "strict": True, "input_schema": schema}
    assert verdict(simulator, ask(model, tools=[strict])) == "ok"


@pytest.mark.parametrize("model", MODELS)
def test_task_budgets_by_model(simulator: Simulator, model: str) -> None:
    """Row "Task budgets (beta)"."""
    body = ask(model, output_config={"task_budget": {"type": "tokens", "total": 50_000}})
    assert verdict(simulator, body) == "output_config.task_budget: Extra inputs are not permitted"
    found = verdict(simulator, body, "task-budgets-2026-03-13")
    denies = model in {"claude-sonnet-5"} | GEN_46 | GEN_45
    assert ("not supported on this model" in found) if denies else found == "ok"


@pytest.mark.parametrize("model", MODELS)
def test_compaction_by_model(simulator: Simulator, model: str) -> None:
    """Row "Threshold compaction (beta)"."""
    body = ask(model, context_management={"edits": [{"type": "compact_20260112"}]})
    found = verdict(simulator, body, "compact-2026-01-12")
    assert found == ("compaction is not supported on this model" if model in GEN_45 else "ok")


@pytest.mark.parametrize("model", MODELS)
def test_fable_and_mythos_need_data_retention(simulator: Simulator, model: str) -> None:
    """Row "Zero-data-retention org"."""
    if model in FABLES:
        with pytest.raises(Refusal, match="must have data retention enabled"):
            simulator.run(ask(model), caller(keeps_data=False))
    else:
        simulator.run(ask(model), caller(keeps_data=False))


@pytest.mark.parametrize("model", MODELS)
def test_max_tokens_has_a_cap(simulator: Simulator, model: str) -> None:
    """Section 1: 128k, or 64k for the 4.5 generation."""
    cap = 64_000 if model in GEN_45 else 128_000
    full = IDS_45.get(model, model)
    assert verdict(simulator, ask(model, max_tokens=cap)) == "ok"
    assert verdict(simulator, ask(model, max_tokens=cap + 1)) == (
        f"max_tokens: {cap + 1} > {cap}, which is the maximum allowed number of output tokens for {full}"
    )


def test_budget_tokens_have_bounds(simulator: Simulator) -> None:
    """At least 1,024 and below `max_tokens`; temperature stays at 1."""
    body = ask("claude-haiku-4-5", max_tokens=2000)

    def judge(budget: int, **more: float) -> str:
        return verdict(simulator, {**body, "thinking": {"type": "enabled", "budget_tokens": budget}, **more})

    assert judge(1023) == "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024"
    assert judge(2000) == "`max_tokens` must be greater than `thinking.budget_tokens`."
    assert judge(1999) == "ok"
    assert judge(1999, temperature=0.5) == "`temperature` may only be set to 1 when thinking is enabled."


def test_max_tokens_zero_warms_the_cache_and_nothing_else(simulator: Simulator) -> None:
    """`max_tokens: 0` is a 400 with streaming, budgets, formats, forced tools and in a batch."""
    body = ask("claude-sonnet-4-6", max_tokens=0)
    schema = {"type": "object", "additionalProperties": False}
    conflicts = (
        {"stream": True},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        {"tools": [TOOL], "tool_choice": {"type": "any"}},
    )
    for conflict in conflicts:
        assert verdict(simulator, {**body, **conflict}).startswith("max_tokens: 0 is not supported with")
    assert verdict(simulator, body, is_batch=True).startswith("max_tokens: 0 is not supported with")
    message = simulator.run(body, caller()).message()
    assert (message["content"], message["stop_reason"]) == ([], "max_tokens")
    assert message["usage"]["output_tokens"] == 0


def test_a_prompt_over_the_window_is_refused(simulator: Simulator) -> None:
    """`prompt is too long: N tokens > 200000 maximum`."""
    long = [{"role": "user", "content": "word " * 160_000}]
    found = verdict(simulator, ask("claude-haiku-4-5", messages=long))
    assert found.startswith("prompt is too long: ")
    assert found.endswith(" tokens > 200000 maximum")
    assert verdict(simulator, ask("claude-haiku-5-5", messages=long)) == "ok"


def test_several_faults_are_told_in_the_order_clients_rely_on(simulator: Simulator) -> None:
    """Claude Code against Haiku 4.5 rules: max_tokens, then adaptive, then effort, then the system role."""
    body = ask(
        "claude-haiku-4-5",
        max_tokens=128_000,
        thinking={"type": "adaptive"},
        output_config={"effort": "medium"},
        messages=[USER, {"role": "system", "content": "Be brief."}],
    )
    assert verdict(simulator, body).startswith("max_tokens: 128000 > 64000")
    body["max_tokens"] = 64_000
    assert verdict(simulator, body) == "adaptive thinking is not supported on this model"
    body["thinking"] = {"type": "enabled", "budget_tokens": 63_999}
    assert verdict(simulator, body) == "This model does not support the effort parameter."
    del body["output_config"]
    assert verdict(simulator, body) == "role 'system' is not supported on this model"
    body["messages"] = [USER]
    assert verdict(simulator, body, version=OLD) == "ok"


@pytest.mark.parametrize("name", ["claude-3-5-haiku-latest", "claude-opus-4-1-20250805", "no-such-model"])
def test_retired_and_unknown_models_are_the_same_404(simulator: Simulator, name: str) -> None:
    """`model: <id>` under `not_found_error`."""
    with pytest.raises(Refusal) as caught:
        simulator.run(ask(name), caller())
    assert (caught.value.status, caught.value.wire_type, caught.value.message) == (
        404,
        "not_found_error",
        f"model: {name}",
    )
