"""What the API's list of models says is laid over the catalogue, statement by statement."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.catalog.capabilities import MAX_RECORDS, with_capabilities
from router.catalog.lookup import Catalog
from router.catalog.records import Model
from router.catalog_file import load_catalog
from router.errors import CatalogError
from router.simulator.modelpages import model_page
from router.simulator.record import load_roster
from router.swap.check import can_serve
from router.usage import Tokens, Usage
from router.wire.messages import read_request

HAIKU, SONNET, OPUS_4_5 = "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-4-5-20251101"
CATALOG = load_catalog()
EVERY = ["active", "deprecated", "retired"]
PAGES = {
    is_beta: model_page(load_roster(), {"limit": "1000"}, EVERY, is_beta=is_beta)["data"] for is_beta in (True, False)
}


def entry(model_id: str = HAIKU) -> dict[str, Any]:
    """The API's entry for a model, in the beta form, to be edited."""
    return copy.deepcopy(next(record for record in PAGES[True] if record["id"] == model_id))


def refreshed(record: object, model_id: str = HAIKU) -> tuple[Model, list[str]]:
    """The model as one entry makes it, and the notes."""
    made, notes = with_capabilities(CATALOG, [record])
    model = made.find(model_id)
    assert model is not None
    return model, notes


def known(model_id: str = HAIKU) -> Model:
    model = CATALOG.find(model_id)
    assert model is not None
    return model


@pytest.mark.parametrize("is_beta", [True, False])
def test_a_list_that_agrees_with_the_file_changes_nothing(is_beta: bool) -> None:
    """Two readers of the same facts, the simulator's and the catalogue's, say the same of every model."""
    made, notes = with_capabilities(CATALOG, PAGES[is_beta])
    assert notes == []
    assert made.models == CATALOG.models


def test_limits_lifecycle_and_dates_are_taken() -> None:
    """Tokens as counts, times as ISO dates; a stated date of retirement is a schedule."""
    record = entry() | {
        "max_input_tokens": 500_000,
        "max_tokens": 32_000,
        "lifecycle": "deprecated",
        "deprecated_at": "2026-11-20T00:00:00Z",
        "retires_at": "2027-03-01T08:30:00.250+00:00",
        "line": "haiku-next",
    }
    model, notes = refreshed(record)
    assert notes == []
    assert (model.context_window, model.max_output_tokens) == (500_000, 32_000)
    assert (model.lifecycle, model.deprecated, model.line) == ("deprecated", "2026-11-20", "haiku-next")
    assert (model.retires, model.retires_kind) == ("2027-03-01", "scheduled")


def test_a_null_date_of_retirement_keeps_the_earliest_one_of_the_file() -> None:
    """Null says that nothing is scheduled, not that "not before" no longer holds."""
    model, _ = refreshed(entry(OPUS_4_5), OPUS_4_5)
    assert (model.retires, model.retires_kind) == ("2026-11-24", "not_before")


def test_a_model_that_was_retired_may_serve_nobody() -> None:
    """The API answers 404 for it."""
    made, _ = with_capabilities(CATALOG, [entry() | {"lifecycle": "retired", "retires_at": "2026-11-22T00:00:00Z"}])
    assert reasons(made, SONNET, HAIKU) == ("`claude-haiku-5-5` is retired",)


def reasons(catalog: Catalog, asked: str, to: str, **fields: Any) -> tuple[str, ...]:
    """What speaks against a swap on that catalogue."""
    body = {"model": asked, "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}], **fields}
    request = read_request(json.dumps(body).encode())
    target = catalog.find(to)
    assert target is not None
    return can_serve(
        request, target, asked=catalog.find(asked), api_version="2023-06-01", betas=(), input_tokens=10
    ).reasons


def test_a_false_thinking_type_is_a_400_from_now_on() -> None:
    """`thinking.types`: a false means exactly that sending it gets a 400."""
    off = {"type": "disabled"}
    assert reasons(CATALOG, "claude-opus-5", HAIKU, thinking=off) == ()
    record = entry()
    record["capabilities"]["thinking"]["types"]["disabled"]["supported"] = False
    made, notes = with_capabilities(CATALOG, [record])
    assert notes == []
    assert reasons(made, "claude-opus-5", HAIKU, thinking=off) == ("`thinking.type` `disabled` is not taken",)


@pytest.mark.parametrize(("kind", "model_id"), [("disabled", SONNET), ("between_tools", HAIKU)])
def test_a_type_that_is_new_goes_with_the_lowest_effort_only(kind: str, model_id: str) -> None:
    """True adds it; which efforts go with it is not on the list, and a doubt is a reason."""
    record = entry(model_id)
    record["capabilities"]["thinking"]["types"][kind]["supported"] = True
    made, _ = with_capabilities(CATALOG, [record])
    model = made.find(model_id)
    assert model is not None
    assert kind in model.accepts.thinking.accepts
    asked = "claude-opus-5"
    assert reasons(made, asked, model_id, thinking={"type": kind}, output_config={"effort": "low"}) == ()
    assert reasons(made, asked, model_id, thinking={"type": kind}, output_config={"effort": "high"})


def test_each_effort_level_is_read_on_its_own() -> None:
    """A level that is null or left out stays as the file has it; a default that is gone is not known any more."""
    record = entry()
    record["capabilities"]["effort"] = {
        "supported": True, "medium": {"supported": False}, "max": {"supported": False}, "xhigh": None
    }  # fmt: skip
    model, notes = refreshed(record)
    assert notes == []
    assert model.accepts.effort_levels == {"low", "high", "xhigh"}
    assert model.accepts.default_effort is None


def test_effort_denied_as_a_whole_leaves_no_level() -> None:
    """Whatever the single levels say."""
    record = entry()
    record["capabilities"]["effort"]["supported"] = False
    assert refreshed(record)[0].accepts.effort_levels == frozenset()


def test_capabilities_with_a_field_of_their_own() -> None:
    """Structured outputs, code that calls tools, images, and who may be a fallback."""
    record = entry()
    for name in ("structured_outputs", "code_execution", "image_input"):
        record["capabilities"][name]["supported"] = False
    record["allowed_fallback_models"] = [SONNET]
    accepts = refreshed(record)[0].accepts
    assert accepts.structured_outputs is False
    assert (accepts.programmatic_tool_calling, accepts.web_tools_dynamic_filtering) == (False, False)
    assert accepts.max_images == 0
    assert accepts.server_fallback_targets == (SONNET,)


def test_code_that_calls_tools_grants_no_newer_web_tools() -> None:
    """Haiku 4.5 takes the basic ones only, whatever its code may call: the list speaks of one, not of the other."""
    record = entry("claude-haiku-4-5-20251001")
    record["capabilities"]["code_execution"]["supported"] = True
    accepts = refreshed(record, "claude-haiku-4-5")[0].accepts
    assert accepts.programmatic_tool_calling is True
    assert accepts.web_tools_dynamic_filtering is known("claude-haiku-4-5").accepts.web_tools_dynamic_filtering


@pytest.mark.parametrize(
    ("model_id", "edit", "parameter", "expected"),
    [(HAIKU, True, True, True), (HAIKU, False, True, False), (HAIKU, True, False, False), (HAIKU, None, None, True),
     (OPUS_4_5, True, True, True), (OPUS_4_5, True, None, False), (OPUS_4_5, None, True, False)],
)  # fmt: skip
def test_compaction_is_granted_by_both_statements_and_denied_by_either(
    model_id: str, edit: bool | None, parameter: bool | None, expected: bool
) -> None:
    """One claim of ours stands for the context edit and for the top-level parameter."""
    record = entry(model_id)
    record["capabilities"]["context_management"]["compact_20260112"] = None if edit is None else {"supported": edit}
    record["capabilities"]["compaction"] = None if parameter is None else {"supported": parameter}
    assert (refreshed(record, model_id)[0].accepts.compaction is True) is expected


@pytest.mark.parametrize(
    "path",
    [("pdf_input",), ("citations",), ("batch",), ("context_management", "clear_tool_uses_20250919"),
     ("context_management", "clear_thinking_20251015"), ("server_tools", "web_search"),
     ("server_tools", "code_execution")],
    ids=".".join,
)  # fmt: skip
def test_other_denials_are_kept_by_name(path: tuple[str, ...]) -> None:
    """So that whoever checks a request can ask for them; what is granted is not listed."""
    record = entry()
    place = record["capabilities"]
    for key in path:
        place = place[key]
    place["supported"] = False
    assert refreshed(record)[0].accepts.denied == {".".join(path)}


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_tokens", "128k"), ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", True), ("max_tokens", 1e6),
     ("max_tokens", 10**12), ("max_input_tokens", [1]), ("lifecycle", "gone"), ("lifecycle", 3), ("line", ""),
     ("line", "a\nb"), ("line", "x" * 500), ("deprecated_at", "yesterday"), ("retires_at", "2026-13-01T00:00:00Z"),
     ("retires_at", 1_790_000_000), ("capabilities", "all"), ("capabilities", []),
     ("allowed_fallback_models", {"a": 1}), ("allowed_fallback_models", [1])],
)  # fmt: skip
def test_a_malformed_value_is_noted_and_the_rest_is_taken(field: str, value: object) -> None:
    """The catalogue's word stays; the note names the place and shows nothing of the value."""
    fields = {"id": HAIKU, "max_tokens": 1000, "max_input_tokens": 2000}
    model, notes = refreshed(fields | {field: value})
    assert notes
    assert all(note.startswith(f"`{HAIKU}`: `{field}` is not ") for note in notes)
    fields.pop(field, None)
    assert model == refreshed(fields)[0]
    assert (model.max_output_tokens == 1000) is (field != "max_tokens")


@pytest.mark.parametrize("odd", ["yes", 1, None, [], {"supported": "true"}, {"supported": 1}, {}])
def test_a_malformed_capability_counts_as_not_stated(odd: object) -> None:
    """Only true and false are statements."""
    record = entry()
    for place in (
        record["capabilities"],
        record["capabilities"]["thinking"]["types"],
        record["capabilities"]["effort"],
    ):
        for key in place:
            place[key] = copy.deepcopy(odd) if key not in ("thinking", "effort", "types") else place[key]
    assert refreshed(record)[0] == known()


def test_unknown_models_are_counted_and_named_but_not_added() -> None:
    """They have neither a price nor rules; the note is bounded."""
    made, notes = with_capabilities(CATALOG, [{"id": f"claude-next-{number}"} for number in range(20)])
    assert made.models == CATALOG.models
    assert notes == [
        "20 not in the catalogue, so without price and rules: "
        + ", ".join(f"`claude-next-{number}`" for number in range(8))
        + " and 12 more"
    ]


def test_entries_that_are_no_models_and_entries_twice_are_noted() -> None:
    """The first entry of a model counts, under whichever of its names."""
    records = [{"id": "claude-opus-4-5", "max_tokens": 1}, {"id": OPUS_4_5, "max_tokens": 2}, 7, {"id": "a\nb"}, {}]
    made, notes = with_capabilities(CATALOG, records)
    model = made.find(OPUS_4_5)
    assert model is not None
    assert model.max_output_tokens == 1
    assert notes == [f"`{OPUS_4_5}` is listed twice: the first entry counts", "3 entries are no model"]


def test_notes_and_work_are_bounded() -> None:
    """However long the list: `MAX_RECORDS` are read, a handful of notes written."""
    wrong = {"max_tokens": "", "max_input_tokens": "", "line": 1, "lifecycle": 1}
    records = [{"id": model.id, **wrong} for model in CATALOG.models] + [{"id": "x"}] * MAX_RECORDS
    made, notes = with_capabilities(CATALOG, records)
    assert made.models == CATALOG.models
    assert len(notes) == 33
    assert sum(map(len, notes)) < 10_000


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
CAPABILITIES = [*entry()["capabilities"], "types", "supported"]
odd_entries = st.fixed_dictionaries(
    {"id": st.sampled_from([HAIKU, SONNET, "claude-opus-4-5", "none"]) | junk},
    optional={
        **{key: junk for key in entry() if key not in ("id", "capabilities")},
        "capabilities": junk
        | st.dictionaries(
            st.sampled_from(CAPABILITIES),
            junk | st.dictionaries(st.sampled_from([*CAPABILITIES, "low", "disabled"]), junk, max_size=4),
            max_size=6,
        ),
    },
)


@given(st.lists(junk | odd_entries, max_size=6))
def test_nothing_that_a_response_may_hold_raises(records: list[Any]) -> None:
    """And the names and prices are the catalogue's, always."""
    made, notes = with_capabilities(CATALOG, records)
    assert [(model.id, model.prices) for model in made.models] == [(model.id, model.prices) for model in CATALOG.models]
    assert all(note.isprintable() for note in notes)


def test_a_catalogue_is_refreshed_in_place() -> None:
    """Whoever holds it finds the new facts by every name; prices and their version stay, the other stays apart."""
    catalog = CATALOG.with_models(CATALOG.models)
    usage = Usage(tokens=Tokens(1_000_000, 0, 0, 0, 1_000_000))
    before = catalog.cost(usage, OPUS_4_5)
    made, _ = with_capabilities(catalog, [entry(OPUS_4_5) | {"max_tokens": 77}])
    catalog.adopt(made)
    for name in (OPUS_4_5, "claude-opus-4-5"):
        model = catalog.find(name)
        assert model is not None
        assert model.max_output_tokens == 77
    assert [model.max_output_tokens for model in catalog.models if model.id == OPUS_4_5] == [77]
    assert known(OPUS_4_5).max_output_tokens == 64_000
    assert (catalog.cost(usage, OPUS_4_5), catalog.price_version) == (before, CATALOG.price_version)


def test_other_names_or_prices_are_never_adopted() -> None:
    """A refresh can change what models take, and nothing that a bill depends on."""
    catalog = CATALOG.with_models(CATALOG.models)
    with pytest.raises(CatalogError):
        catalog.with_models(CATALOG.models[1:])
    with pytest.raises(CatalogError):
        catalog.with_models([replace(model, prices=None) for model in CATALOG.models])
    with pytest.raises(CatalogError):
        catalog.adopt(Catalog(CATALOG.models[:3], web_search_pusd=1, as_of="now"))
    assert catalog.models == CATALOG.models
