"""The catalogue: every model is read, every price is exact, and costs are what an independent sum says."""

from __future__ import annotations

import copy
from fractions import Fraction
from importlib.resources import files

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from router.catalog.lookup import Catalog, read_catalog
from router.catalog.prices import BATCH, FAST, LONG, US
from router.catalog_file import load_catalog
from router.errors import CatalogError
from router.policy.moved import moved_usage
from router.usage import Iteration, Tokens, Usage

DOCUMENT = yaml.load(files("router").joinpath("data/models.yaml").read_text(), Loader=yaml.CSafeLoader)
CATALOG = load_catalog()
RECORDS = {record["id"]: record for record in DOCUMENT["models"]}
CURRENT = [name for name, record in RECORDS.items() if record["lifecycle"] != "retired"]
CATEGORIES = ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read")


def usd(pusd: int | None) -> Fraction:
    assert pusd is not None
    return Fraction(pusd, 10**12)


def edited(**changes: object) -> dict:
    """The packaged document cut down to Haiku 5.5, with fields of its record replaced."""
    document = copy.deepcopy({**DOCUMENT, "models": [RECORDS["claude-haiku-5-5"]]})
    document["models"][0].update(changes)
    return document


def expected(usage: Usage, model_id: str, is_batch: bool) -> Fraction:
    """The documented formula in plain Fractions, straight from the YAML; dollars."""
    parts = [(model_id, usage.tokens)]
    if usage.iterations:
        parts = [(part.model or model_id, part.tokens) for part in usage.iterations]
    total = Fraction(0)
    for name, tokens in parts:
        record = RECORDS[CATALOG.find(name).id]
        rates = record["usd_per_mtok"]
        if usage.speed == "fast" and record["fast_mode"]:
            rates = record["fast_mode"]
        tier = record["long_prompt_tier"]
        if tier and tokens.prompt > tier["above_prompt_tokens"] and "cache_read" in tier:
            rates = tier
        factor = Fraction(1, 2) if is_batch else Fraction(1)
        if usage.geo == "us" and record["us_inference_multiplier"]:
            factor *= Fraction(11, 10)
        total += factor * sum(getattr(tokens, name) * Fraction(str(rates[name])) for name in CATEGORIES) / 10**6
    return total + usage.web_searches * Fraction(1, 100)


counts = st.integers(0, 300_000)
tokens = st.builds(Tokens, counts, counts, counts, counts, counts)
usages = st.builds(
    Usage,
    tokens=tokens,
    web_searches=st.integers(0, 20),
    geo=st.sampled_from([None, "us", "global", "not_available"]),
    speed=st.sampled_from([None, "standard", "fast"]),
)


@given(usages, st.sampled_from(CURRENT), st.booleans())
def test_a_cost_is_the_documented_formula_exactly(usage, model_id, is_batch):
    """No rounding anywhere: the integer is the Fraction."""
    assert usd(CATALOG.cost(usage, model_id, is_batch=is_batch)) == expected(usage, model_id, is_batch)


@given(st.lists(st.tuples(tokens, st.sampled_from([None, *CURRENT])), min_size=1, max_size=5), st.booleans())
def test_iterations_of_a_fallback_are_each_priced_at_their_own_model(parts, is_batch):
    """With a server-side fallback the top-level counts describe one attempt; the iterations are the bill."""
    last = Iteration("fallback_message", None, Tokens(1))
    usage = Usage(Tokens(1), iterations=(*(Iteration("message", model, part) for part, model in parts), last))
    assert usd(CATALOG.cost(usage, "claude-opus-5", is_batch=is_batch)) == expected(usage, "claude-opus-5", is_batch)


@given(st.lists(usages, max_size=30), st.sampled_from(CURRENT))
def test_costs_add_up_over_many_requests(many, model_id):
    """A sum of costs is the cost of the sum: nothing is lost on the way to a report."""
    total = sum(CATALOG.cost(usage, model_id) for usage in many)
    assert usd(total) == sum((expected(usage, model_id, False) for usage in many), Fraction(0))


def test_the_two_documented_examples():
    """12 in, 5 out, 120,000 cache reads, US inference: seen on the wire as 0.0265628 and 0.00662035 dollars."""
    usage = Usage(Tokens(input=12, cache_read=120_000, output=5), geo="us")
    assert usd(CATALOG.cost(usage, "claude-opus-5-5")) == Fraction("0.0265628")
    assert usd(CATALOG.cost(usage, "claude-haiku-5-5")) == Fraction("0.00662035")


@pytest.mark.parametrize("model_id", RECORDS)
def test_every_price_is_a_whole_number_of_pico_dollars_under_every_modifier(model_id):
    """With the packaged catalogue no product of multipliers leaves a fraction, so no cost is ever rounded."""
    prices = CATALOG.find(model_id).prices
    assert prices is not None
    rates = [prices.standard, *(row for row in (prices.long, prices.fast) if row)]
    for batch in (Fraction(1), prices.batch_multiplier):
        for geo in (Fraction(1), prices.us_multiplier or Fraction(1)):
            for row in rates:
                assert all(rate.denominator == 1 and rate > 0 for rate in row.times(batch * geo))


@pytest.mark.parametrize("model_id", CURRENT)
def test_every_current_model_has_a_price(model_id):
    """A current model without a price would make every report say "unknown"."""
    assert CATALOG.cost(Usage(Tokens(1, 1, 1, 1, 1)), model_id) > 0


def test_the_catalogue_holds_every_record_under_its_id_and_aliases():
    """What the file names, the catalogue finds."""
    assert [model.id for model in CATALOG.models] == list(RECORDS)
    for record in RECORDS.values():
        for name in (record["id"], *record["aliases"]):
            found = CATALOG.find(name)
            assert found.id == record["id"]
            assert found.context_window == record["context_window"]
            assert found.max_output_tokens == record["max_output_tokens"]
            assert found.accepts.thinking.accepts == set(record["thinking"]["accepts"])
            assert found.accepts.forced_tool_choice == record["forced_tool_choice"]
            assert found.is_retired == (record["lifecycle"] == "retired")


def test_haiku_costs_five_times_as_much_just_above_100000_prompt_tokens():
    """The step is strict: 100,000 is still the low price, 100,001 moves the whole request."""
    below = Usage(Tokens(input=50_000, cache_read=30_000, cache_write_5m=10_000, cache_write_1h=10_000, output=10))
    above = Usage(Tokens(input=50_001, cache_read=30_000, cache_write_5m=10_000, cache_write_1h=10_000, output=10))
    assert usd(CATALOG.cost(below, "claude-haiku-5-5")) == expected(below, "claude-haiku-5-5", False)
    ratio = Fraction(CATALOG.cost(above, "claude-haiku-5-5"), CATALOG.cost(below, "claude-haiku-5-5"))
    assert 5 < ratio < Fraction("5.001")


def test_the_long_prompt_price_looks_at_each_iteration_when_they_add_up():
    """Two calls of 60,000 tokens are two short prompts, although the total is 120,000."""
    part = Tokens(input=60_000, output=100)
    both = Tokens(input=120_000, output=200)
    loop = Usage(both, iterations=(Iteration("message", None, part), Iteration("message", None, part)))
    assert CATALOG.cost(loop, "claude-haiku-5-5") == 2 * CATALOG.cost(Usage(part), "claude-haiku-5-5")
    torn = Usage(both, iterations=(Iteration("message", None, part),))
    assert CATALOG.cost(torn, "claude-haiku-5-5") == CATALOG.cost(Usage(both), "claude-haiku-5-5")


@pytest.mark.parametrize("torn", [Tokens(10, 0, 100_000, 0, 50), Tokens(10, 0, 60_000, 40_000, 50)])
def test_iterations_that_know_of_fewer_hour_long_writes_are_not_the_bill(torn):
    """An hour costs more than five minutes; records from before the router looked have such iterations."""
    whole = Tokens(10, 0, 0, 100_000, 50)
    usage = Usage(whole, iterations=(Iteration("message", None, torn),))
    assert CATALOG.cost(usage, "claude-sonnet-5-5") == CATALOG.cost(Usage(whole), "claude-sonnet-5-5")
    moved = moved_usage(usage, "claude-sonnet-5-5", "claude-sonnet-5", CATALOG, is_warm=True, is_hour=True)
    alone = moved_usage(Usage(whole), "claude-sonnet-5-5", "claude-sonnet-5", CATALOG, is_warm=True, is_hour=True)
    assert CATALOG.cost(moved, "claude-sonnet-5") == CATALOG.cost(alone, "claude-sonnet-5")


def test_an_executor_that_asked_an_advisor_pays_for_both_of_its_calls():
    """The top-level input is that of the first call only (advisor documentation): the calls are the bill."""
    first, second = Tokens(input=412, output=89), Tokens(input=1_348, cache_read=412, output=442)
    advice = Tokens(input=823, output=1_612)
    parts = (
        Iteration("message", None, first),
        Iteration("advisor_message", "claude-fable-5", advice),
        Iteration("message", None, second),
    )
    usage = Usage(Tokens(input=412, output=531), iterations=parts)
    own = sum(CATALOG.cost(Usage(part), "claude-sonnet-5-5") for part in (first, second))
    assert CATALOG.cost(usage, "claude-sonnet-5-5") == own + CATALOG.cost(Usage(advice), "claude-fable-5")


def test_compaction_comes_on_top_of_the_top_level_counts():
    """With compaction the top-level counts leave the compaction call out."""
    message, compaction = Tokens(input=1_000, output=50), Tokens(input=90_000, output=2_000)
    usage = Usage(message, iterations=(Iteration("compaction", None, compaction), Iteration("message", None, message)))
    alone = sum(CATALOG.cost(Usage(part), "claude-sonnet-5-5") for part in (message, compaction))
    assert CATALOG.cost(usage, "claude-sonnet-5-5") == alone


def test_an_advisor_is_priced_at_its_own_model_in_cost_and_baseline():
    """Moving the request would not have moved the advisor."""
    message, advice = Tokens(input=1_000, output=50), Tokens(input=2_000, output=500)
    parts = (Iteration("message", None, message), Iteration("advisor_message", "claude-opus-5-5", advice))
    usage = Usage(message, iterations=parts)
    advisor = CATALOG.cost(Usage(advice), "claude-opus-5-5")
    cost = CATALOG.cost(usage, "claude-haiku-5-5")
    assert cost == CATALOG.cost(Usage(message), "claude-haiku-5-5") + advisor
    baseline = CATALOG.baseline(usage, "claude-sonnet-5-5", "claude-haiku-5-5")
    assert baseline == CATALOG.cost(Usage(message), "claude-sonnet-5-5") + advisor


def test_the_baseline_prices_the_iterations_of_the_answering_model_at_the_model_asked_for():
    """An alias and its dated id are the same model."""
    part = Tokens(input=1_000, output=50)
    usage = Usage(part, iterations=(Iteration("message", "claude-haiku-4-5-20251001", part),))
    baseline = CATALOG.baseline(usage, "claude-sonnet-4-5", "claude-haiku-4-5")
    assert baseline == CATALOG.cost(Usage(part), "claude-sonnet-4-5")


@given(usages, st.sampled_from(CURRENT), st.sampled_from(CURRENT), st.booleans())
def test_the_baseline_is_the_same_usage_at_the_other_price(usage, asked, answered, is_batch):
    """Saved is the difference of two prices for one usage, nothing else."""
    assert usd(CATALOG.baseline(usage, asked, answered, is_batch=is_batch)) == expected(usage, asked, is_batch)


@pytest.mark.parametrize("model_id", ["claude-next-9", "auto", "", "lane:haiku"])
def test_a_model_without_a_price_costs_unknown_never_zero(model_id):
    """None is the only honest answer; also when only one iteration is unknown."""
    usage = Usage(Tokens(10, 0, 0, 0, 10))
    assert CATALOG.cost(usage, model_id) is None
    assert CATALOG.baseline(usage, model_id, "claude-haiku-5-5") is None
    partly = Usage(Tokens(10), iterations=(Iteration("advisor_message", model_id, Tokens(10)),))
    assert CATALOG.cost(partly, "claude-haiku-5-5") is None


def test_a_model_of_the_catalogue_without_prices_is_unknown():
    """A record may leave its price out; it is still found."""
    catalog = read_catalog(edited(usd_per_mtok=None))
    assert catalog.find("claude-haiku-5-5").prices is None
    assert catalog.cost(Usage(Tokens(1)), "claude-haiku-5-5") is None


def test_modifiers_that_a_model_does_not_offer_count_at_the_standard_price():
    """Fast mode on Haiku, US inference on Haiku 4.5: the same as without."""
    for model_id, usage in (
        ("claude-haiku-5-5", Usage(Tokens(100), speed="fast")),
        ("claude-haiku-4-5", Usage(Tokens(100), geo="us")),
    ):
        assert CATALOG.cost(usage, model_id) == CATALOG.cost(Usage(Tokens(100)), model_id)


def test_a_usage_that_says_batch_is_priced_as_a_batch():
    """The upstream's word about the tier counts even if the caller does not know."""
    said = Usage(Tokens(100), service_tier="batch")
    assert CATALOG.cost(said, "claude-haiku-5-5") == CATALOG.cost(Usage(Tokens(100)), "claude-haiku-5-5", is_batch=True)


def test_a_fraction_of_a_pico_dollar_is_rounded_half_up_once_after_the_sum():
    """A price of one pico-dollar at half price: one token rounds up, two are exact."""
    fine = dict.fromkeys(CATEGORIES, 1e-06)
    catalog = read_catalog(edited(usd_per_mtok=fine, long_prompt_tier=None, us_inference_multiplier=None))
    assert catalog.cost(Usage(Tokens(1)), "claude-haiku-5-5", is_batch=True) == 1
    assert catalog.cost(Usage(Tokens(2)), "claude-haiku-5-5", is_batch=True) == 1
    assert catalog.cost(Usage(Tokens(2, 2, 2, 2, 3)), "claude-haiku-5-5", is_batch=True) == 6
    assert catalog.cost(Usage(Tokens(3)), "claude-haiku-5-5") == 3


def test_fast_mode_over_a_long_prompt_is_unknown_where_both_have_a_price():
    """Nobody published that price; a guess would be booked as fact."""
    catalog = read_catalog(edited(fast_mode=dict.fromkeys(CATEGORIES, 1)))
    assert catalog.cost(Usage(Tokens(100_001), speed="fast"), "claude-haiku-5-5") is None
    assert catalog.cost(Usage(Tokens(100_000), speed="fast"), "claude-haiku-5-5") == 10**11


def test_a_special_row_without_cache_rates_keeps_their_ratio_to_the_input():
    """Retired Sonnet 4 states only input and output above 200,000 tokens."""
    long = CATALOG.find("claude-sonnet-4-0").prices.long
    assert (long.cache_write_5m, long.cache_write_1h, long.cache_read) == (7_500_000, 12_000_000, 600_000)


def test_the_bits_of_a_price_row_are_distinct():
    """Sixteen rows, one per combination."""
    assert LONG | BATCH | US | FAST == 15


def test_the_price_version_changes_with_any_price_and_with_nothing_else():
    """Old rows keep the version they were priced with."""
    first = read_catalog(edited())
    assert first.price_version == read_catalog(edited(min_cacheable_tokens=1)).price_version
    other = dict(RECORDS["claude-haiku-5-5"]["usd_per_mtok"], cache_read=0.02)
    assert first.price_version != read_catalog(edited(usd_per_mtok=other)).price_version
    assert first.price_version.startswith("2026-11-22+")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"usd_per_mtok": {"input": "0.1"}}, ("claude-haiku-5-5", "usd_per_mtok.input")),
        ({"usd_per_mtok": {"input": True}}, ("usd_per_mtok.input", "number")),
        ({"usd_per_mtok": {"input": float("nan")}}, ("finite",)),
        ({"usd_per_mtok": {"input": -1}}, ("negative",)),
        ({"usd_per_mtok": {"input": 0.00000012}}, ("usd_per_mtok.input", "pico-dollar")),
        ({"usd_per_mtok": {"input": 1, "output": 2}}, ("usd_per_mtok.cache_write_5m", "missing")),
        ({"usd_per_mtok": [1]}, ("usd_per_mtok", "mapping")),
        ({"long_prompt_tier": {"input": 1, "output": 2, "above_prompt_tokens": "many"}}, ("above_prompt_tokens",)),
        ({"fast_mode": {"output": 2}}, ("fast_mode.input",)),
        ({"batch_multiplier": "half"}, ("batch_multiplier",)),
        ({"us_inference_multiplier": 1.123456789012345}, ("too fine",)),
        ({"context_window": "1M"}, ("claude-haiku-5-5", "context_window")),
        ({"context_window": None}, ("context_window",)),
        ({"lifecycle": "gone"}, ("lifecycle", "retired")),
        ({"aliases": "haiku"}, ("aliases",)),
        ({"aliases": ["claude-haiku-5-5"]}, ("two models",)),
        ({"forced_tool_choice": "yes"}, ("forced_tool_choice",)),
        ({"thinking": {"accepts": ["adaptve"], "default_when_omitted": "off"}}, ("thinking.accepts", "adaptive")),
        ({"thinking": {"accepts": []}}, ("thinking.default_when_omitted",)),
        ({"thinking": "on"}, ("thinking", "mapping")),
        ({"effort": {"levels": ["huge"]}}, ("effort.levels",)),
        ({"sampling_params_2023_06_01": "some"}, ("sampling_params_2023_06_01",)),
        ({"line": None}, ("line",)),
        ({"display_name": 5}, ("display_name",)),
        ({"forced_tool_choise": True}, ("unknown field", "forced_tool_choise")),
    ],
)
def test_a_bad_record_is_refused_with_the_model_and_the_field(changes, words):
    """A misspelling must never silently turn a price or a rule off."""
    with pytest.raises(CatalogError) as caught:
        read_catalog(edited(**changes))
    assert all(word in caught.value.message for word in words), caught.value.message


def test_a_misspelled_field_is_answered_with_the_near_name():
    """The next step is in the error."""
    with pytest.raises(CatalogError) as caught:
        read_catalog(edited(forced_tool_choise=True))
    assert "`forced_tool_choice`" in caught.value.hint


@pytest.mark.parametrize("document", [None, [], {}, {"schema_version": 2}, {"schema_version": 1, "models": []}])
def test_a_document_that_is_not_a_catalogue_is_refused(document):
    """Whatever YAML may hold."""
    with pytest.raises(CatalogError):
        read_catalog(document)


@pytest.mark.parametrize("record", [None, "claude", 5, [1]])
def test_a_record_that_is_not_a_mapping_is_refused_with_its_place(record):
    """Without an id the place in the list names it."""
    with pytest.raises(CatalogError) as caught:
        read_catalog({"schema_version": 1, "models": [record]})
    assert "models[0]" in caught.value.message


def test_a_catalogue_file_replaces_the_packaged_one(tmp_path):
    """The owner's file counts alone; nothing is merged."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(edited(id="claude-mine-1")), encoding="utf-8")
    catalog = load_catalog(path)
    assert isinstance(catalog, Catalog)
    assert [model.id for model in catalog.models] == ["claude-mine-1"]


@pytest.mark.parametrize("text", [b"models: [", b"\xff\xfe", b"- 1", b"schema_version: 1\nmodels: []"])
def test_a_file_that_cannot_be_used_is_named_in_the_error(tmp_path, text):
    """Not YAML, not UTF-8, not a catalogue."""
    path = tmp_path / "broken.yaml"
    path.write_bytes(text)
    with pytest.raises(CatalogError) as caught:
        load_catalog(path)
    assert "broken.yaml" in caught.value.message


def test_a_key_given_twice_is_refused_with_its_line(tmp_path):
    """YAML would silently keep the last price."""
    path = tmp_path / "twice.yaml"
    path.write_text("schema_version: 1\nmodels:\n  - id: a\n    line: b\n    line: c\n")
    with pytest.raises(CatalogError) as caught:
        load_catalog(path)
    assert "`line`" in caught.value.message
    assert "line 5" in caught.value.message


def test_a_missing_file_is_a_catalogue_error(tmp_path):
    """Never a traceback of the library's."""
    with pytest.raises(CatalogError):
        load_catalog(tmp_path / "none.yaml")
