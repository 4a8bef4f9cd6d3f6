"""The simulator's list of models has what the API's has, and says of a model what the simulator then does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from simulator.calls import MODELS, ask, verdict

from router.simulator.accepts import EFFORTS, THINKING_TYPES
from router.simulator.modelpages import model_info, model_page
from router.simulator.server import served
from router.simulator.service import Simulator
from router.simulator.settings import SimulatorSettings

SIMULATOR = Simulator(SimulatorSettings())


@pytest.fixture(scope="module")
def client() -> Iterator[anthropic.Anthropic]:
    with served() as origin, anthropic.Anthropic(base_url=origin, api_key="key", max_retries=0) as made:
        yield made


def info(name: str) -> dict[str, Any]:
    model = SIMULATOR.roster.known(name)
    assert model is not None
    return model_info(model, is_beta=True)


def test_the_beta_form_reads_as_the_official_library_reads_it(client: anthropic.Anthropic) -> None:
    """`compaction` has an entry per type; fallbacks are ids; every field of the library's class is there."""
    models = {model.id: model for model in client.beta.models.list(limit=1000, betas=["compact-2026-09-04"])}
    newest, oldest = models["claude-fable-5-2"], models["claude-haiku-4-5-20251001"]
    assert newest.capabilities is not None
    assert newest.capabilities.compaction is not None
    assert (newest.capabilities.compaction.supported, newest.capabilities.compaction.summarize.supported) == (
        True,
        True,
    )
    assert oldest.capabilities is not None
    assert oldest.capabilities.compaction is not None
    assert (oldest.capabilities.compaction.supported, oldest.capabilities.compaction.summarize.supported) == (
        False,
        False,
    )
    assert oldest.allowed_fallback_models == []
    for model in models.values():
        assert type(model).model_fields.keys() <= model.to_dict().keys()
        assert model.capabilities is not None
        assert type(model.capabilities).model_fields.keys() <= model.capabilities.to_dict().keys()


def test_the_plain_form_has_no_beta_fields(client: anthropic.Anthropic) -> None:
    """`compaction` and `allowed_fallback_models` come with the beta form only."""
    for model in client.models.list(limit=1000):
        assert "allowed_fallback_models" not in model.to_dict()
        assert model.capabilities is not None
        assert "compaction" not in model.capabilities.to_dict()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", THINKING_TYPES)
def test_a_false_thinking_type_is_exactly_a_refusal(model: str, kind: str) -> None:
    """At an effort that every type goes with."""
    thinking = {"type": kind} | ({"budget_tokens": 1024} if kind == "enabled" else {})
    is_taken = verdict(SIMULATOR, ask(model, thinking=thinking)) == "ok"
    assert info(model)["capabilities"]["thinking"]["types"][kind]["supported"] is is_taken


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("level", EFFORTS)
def test_a_false_effort_level_is_exactly_a_refusal(model: str, level: str) -> None:
    """Each level on its own."""
    is_taken = verdict(SIMULATOR, ask(model, output_config={"effort": level})) == "ok"
    assert info(model)["capabilities"]["effort"][level]["supported"] is is_taken


@pytest.mark.parametrize("model", MODELS)
def test_max_tokens_is_the_most_that_is_not_refused(model: str) -> None:
    """One more is a refusal."""
    most = info(model)["max_tokens"]
    assert verdict(SIMULATOR, ask(model, max_tokens=most)) == "ok"
    assert verdict(SIMULATOR, ask(model, max_tokens=most + 1)) != "ok"


def test_pages_follow_each_other_to_the_end() -> None:
    """`last_id` of one is `after_id` of the next; together they are the one long page."""
    whole = model_page(SIMULATOR.roster, {"limit": "1000"}, [], is_beta=False)
    assert whole["has_more"] is False
    found, mark, has_more = [], None, True
    while has_more:
        page = model_page(SIMULATOR.roster, {"limit": "4", **({"after_id": mark} if mark else {})}, [], is_beta=False)
        found += page["data"]
        has_more, mark = page["has_more"], page["last_id"]
    assert found == whole["data"]
