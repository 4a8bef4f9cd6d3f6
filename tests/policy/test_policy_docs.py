"""`docs/policies.md` names every fact, operator and key that the language has."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from click import Context

from router.affinity.binding import Binding
from router.affinity.economics import switch_cost
from router.catalog.lookup import Catalog
from router.cli.policy import policy as policy_command
from router.facts.vocabulary import FACTS
from router.policy.grammar import (
    CACHE_KEYS,
    DEFAULT_TURNS,
    DEFERRED_KEYS,
    DEFERRING,
    LANES_FILE_KEYS,
    ON_TIMEOUT,
    OPERATORS,
    POLICY_KEYS,
    RETRY_KEYS,
    RULE_KEYS,
    STICK,
    SWAP,
    TEST_KEYS,
    TIMEOUT_KEYS,
)
from router.policy.parse import parse_policy
from router.policy.source import read_source, render
from router.policy.written import DEFERRED_ALLOWED, DeferredDirective, Retry, Timeouts
from router.seams import Deadlines
from router.settings import Settings
from router.swap.edits import EDITS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
CACHING = PAGE.partition("\n## Caching answers")[2].partition("\n## ")[0]
LATER = PAGE.partition("\n## Answers that may come later")[2].partition("\n## ")[0]
LIMITS = PAGE.partition("\n## Retries and time limits")[2].partition("\n## ")[0]
KEYS = {spec.name for table in (POLICY_KEYS, RULE_KEYS, TEST_KEYS, LANES_FILE_KEYS) for spec in table}


@pytest.mark.parametrize("name", [*FACTS, *(operator.name for operator in OPERATORS)])
def test_every_fact_and_operator_is_explained(name: str) -> None:
    """A word that may be written is a word that can be looked up."""
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("key", sorted(KEYS))
def test_every_key_is_shown(key: str) -> None:
    """In the table of keys, or in an example."""
    assert f"`{key}`" in PAGE or f"{key}: " in PAGE or f"{key}:\n" in PAGE


def test_every_edit_is_in_the_table_with_what_it_does() -> None:
    """The table is the code's."""
    for name, does in EDITS.items():
        assert f"| `{name}` | {does} |" in PAGE


@pytest.mark.parametrize("key", [spec.name for spec in CACHE_KEYS])
def test_every_key_of_cache_has_its_row(key: str) -> None:
    """With what it means and what holds when it is left out."""
    assert f"| `{key}` |" in CACHING


def test_the_policy_of_the_page_about_caching_is_taken() -> None:
    """Its example is a rule, and says what the text around it says."""
    example = dedent(CACHING.split("\n\n")[2])
    source = read_source("default.yaml", f"version: 1\nrules:\n{example}\notherwise: as-asked\n".encode())
    policy = parse_policy("default", source)
    assert render(source.diagnostics) == ""
    assert policy is not None
    cache = policy.rules[0].cache
    assert cache is not None
    assert cache.when_temperature is not None
    assert [cache.when_temperature.takes(value) for value in (0, 0.3, 0.31, None)] == [True, True, False, False]
    assert (cache.ttl_s, cache.pace_s, cache.is_coalescing) == (3600.0, 0.02, True)


@pytest.mark.parametrize("word", [*DEFERRING, *(spec.name for spec in DEFERRED_KEYS)])
def test_every_word_and_key_of_deferred_has_its_row(word: str) -> None:
    """With what it means and what holds when it is left out."""
    assert f"| `{word}` |" in LATER


def test_the_policy_of_the_page_about_later_answers_is_taken() -> None:
    """Its example is a rule, and the defaults of the table are the code's."""
    example = dedent(LATER.split("\n\n")[2])
    source = read_source("default.yaml", f"version: 1\nrules:\n{example}\notherwise: as-asked\n".encode())
    policy = parse_policy("default", source)
    assert render(source.diagnostics) == ""
    assert policy is not None
    assert policy.rules[0].deferred == DeferredDirective("require", 60.0, 1000, 7200.0)
    default = DEFERRED_ALLOWED
    for said in (default.mode, f"{default.max_wait_s:g}s"):
        assert f"| `{said}` |" in LATER
    assert f"sent at once | {default.max_items:,} |" in LATER


@pytest.mark.parametrize("key", [spec.name for spec in (*RETRY_KEYS, *TIMEOUT_KEYS)])
def test_every_key_of_retry_and_timeout_has_its_row(key: str) -> None:
    """With what it means and what holds when it is left out."""
    assert f"| `{key}` |" in LIMITS


def test_the_policy_of_the_page_about_time_limits_is_taken() -> None:
    """Its example is a rule, and means what its tables say."""
    example = dedent(LIMITS.split("\n\n")[1])
    source = read_source("default.yaml", f"version: 1\nrules:\n{example}\notherwise: as-asked\n".encode())
    policy = parse_policy("default", source)
    assert render(source.diagnostics) == ""
    assert policy is not None
    assert policy.rules[0].retry == Retry(1, "fallback")
    assert policy.rules[0].timeouts == Timeouts(1.0, 20.0, 60.0, 600.0)


def test_the_defaults_of_the_time_limits_are_those_of_the_router() -> None:
    """The last column of the table."""
    own = Deadlines()
    assert (own.connect, own.tls, own.first_byte, own.idle, own.total) == (2, 5, 600, 300, 3600)
    for shown in ("| `2s`, TLS `5s` |", "| `10m` |", "| `5m` |", "| `1h` |"):
        assert shown in LIMITS


@pytest.mark.parametrize("word", [*STICK, *SWAP, *ON_TIMEOUT])
def test_every_word_of_stick_and_swap_is_explained(word: str) -> None:
    """A value that may be written is a value that can be looked up."""
    assert f"`{word}`" in PAGE
    assert word not in STICK or f"| `{word}` |" in PAGE


def test_every_shipped_policy_is_explained_and_begins_with_a_comment() -> None:
    """For someone who has never seen the program: a row of the table, a header, a test for every rule."""
    for path in (ROOT / "policies").glob("*.yaml"):
        if path.name == "lanes.yaml":
            continue
        text = path.read_text(encoding="utf-8")
        assert f"| `{path.stem}` |" in PAGE
        assert sum(line.startswith("#") for line in text.splitlines()) >= 5
        document = yaml.safe_load(text)
        shown = {test["expect"].get("rule") for test in document["tests"]}
        assert shown >= {rule["name"] for rule in document["rules"]}


def test_the_worked_example_is_what_the_router_computes(catalog: Catalog) -> None:
    """The sums of the page, to the last digit, and the turn at which the switch is earned back."""
    opus = Binding("opus", "claude-opus-5-5", 20_000, 20_000, 300, 400, 0.0)
    cost = switch_cost(opus, "claude-sonnet-5-5", catalog, now_s=10.0, turns=20)
    assert cost is not None
    for pusd in (cost.stay_first_pusd, cost.switch_first_pusd, cost.switch_later_pusd, cost.extra_pusd):
        assert f"${pusd / 1e12:.4f}" in PAGE
    assert f"by turn {cost.turns_to_earn}." in PAGE
    few = switch_cost(opus, "claude-sonnet-5-5", catalog, now_s=10.0, turns=DEFAULT_TURNS)
    assert few is not None
    assert not few.is_earned
    sonnet = Binding("sonnet", "claude-sonnet-5-5", 20_000, 20_000, 300, 400, 0.0)
    at_once = switch_cost(sonnet, "claude-haiku-5-5", catalog, now_s=10.0, turns=DEFAULT_TURNS)
    assert at_once is not None
    assert at_once.turns_to_earn == 1


def test_every_command_of_the_page_exists() -> None:
    """And the folder of the history is called as in the settings."""
    named = set(re.findall(r"`router policy ([a-z]+)", PAGE)) | set(re.findall(r"\$ router policy ([a-z]+)", PAGE))
    assert named <= set(policy_command.list_commands(Context(policy_command)))
    assert named >= {"check", "test", "facts", "schema", "fmt", "diff", "history", "rollback", "explain"}
    assert f"`{Settings().policy_history}`" in PAGE


def test_the_counts_of_the_page_are_those_of_the_folder(catalog: Catalog) -> None:
    """`router policy check` prints as many policies and tests as the page shows."""
    policies = sorted(path.stem for path in (ROOT / "policies").glob("*.yaml") if path.name != "lanes.yaml")
    tests = sum(len(yaml.safe_load((ROOT / "policies" / f"{name}.yaml").read_text())["tests"]) for name in policies)
    assert re.search(rf"ok: {', '.join(policies)} at revision [0-9a-f]{{12}}, {tests} tests passed", PAGE)
