"""Who reads whose thinking, against the table of the API sheet."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from router.catalog.lookup import Catalog
from router.catalog_file import load_catalog
from router.errors import CatalogError

CATALOG = load_catalog()
CURRENT = [model.id for model in CATALOG.models if not model.is_retired]
TOPS = {"claude-fable-5-2", "claude-mythos-5-2"}
ONES = {"claude-fable-5-1", "claude-mythos-5-1"}
FIVES = {"claude-fable-5", "claude-mythos-5"}
OPUS, SONNET, HAIKU = "claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"
EARLIER = {"claude-sonnet-5", "claude-opus-4-8", "claude-opus-4-7", "claude-opus-4-6", "claude-sonnet-4-6"}
EARLIER |= {"claude-opus-4-5-20251101", "claude-haiku-4-5-20251001", "claude-sonnet-4-5-20250929"}

# producer → readers, itself included: the table of section 4.2.
READERS: dict[str, set[str]] = {
    **dict.fromkeys(TOPS, TOPS),
    **dict.fromkeys(ONES, ONES | TOPS),
    **dict.fromkeys(FIVES, FIVES | ONES | TOPS),
    OPUS: {OPUS} | TOPS | ONES,
    "claude-opus-5": {"claude-opus-5", OPUS} | ONES | TOPS,
    SONNET: {SONNET, OPUS} | TOPS,
    HAIKU: {HAIKU, SONNET, OPUS} | TOPS,
    **{one: {one, SONNET, HAIKU, OPUS} | ONES | TOPS for one in EARLIER},
    "claude-mythos-preview": {"claude-mythos-preview"},  # no page says where it stands among the earlier ones
}


def test_the_table_covers_every_current_model():
    """A model that is added gets its row here."""
    assert set(READERS) == set(CURRENT)


@pytest.mark.parametrize(("producer", "reader"), list(itertools.product(CURRENT, CURRENT)))
def test_the_catalogue_reads_as_the_sheet_says(producer, reader):
    """Ids, `same_as:`, remarks and lists of earlier models are all made into names."""
    reads = CATALOG.find(reader).accepts.reads_thinking_from
    assert (producer in reads) == (reader in READERS[producer])
    assert all((alias in reads) == (producer in reads) for alias in CATALOG.find(producer).aliases)


def test_names_stay_when_a_catalogue_is_made_of_a_catalogue():
    """A live list of models makes one from the other."""
    again = Catalog(CATALOG.models, web_search_pusd=1, as_of="2026-11-22")
    assert again.models == CATALOG.models


def test_a_list_of_nobody_is_refused():
    """`same_as:` a model that is not there would turn a rule off in silence."""
    models = [model for model in CATALOG.models if model.id == HAIKU]
    accepts = dataclasses.replace(models[0].accepts, reads_thinking_from=frozenset({"same_as:claude-nobody"}))
    with pytest.raises(CatalogError, match="same_as:claude-nobody"):
        Catalog([dataclasses.replace(models[0], accepts=accepts)], web_search_pusd=1, as_of="2026-11-22")


@pytest.mark.parametrize(
    ("model", "check"),
    [
        ("claude-fable-5-2", "all"),
        ("claude-mythos-5-1", "all"),
        ("claude-fable-5-1", "some"),
        (HAIKU, "some"),
        ("claude-opus-5", "none"),
    ],
)
def test_who_verifies_the_history_is_known(model, check):
    """The table of section 4.3: every account, some, or not at all."""
    assert CATALOG.find(model).prefix_check == check
    assert CATALOG.find(model).checks_thinking_prefix == (check != "none")
