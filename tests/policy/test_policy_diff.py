"""Two policy sets on recorded requests: what moves, what it costs, what nobody can say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.plain_diff import figures, plainly
from kit.recorded_traffic import folders, make_store

from router.catalog.lookup import Catalog
from router.classify.label import Label
from router.errors import TraceStoreError
from router.facts.inspect import Caller, Facts, inspect, recorded_user
from router.policy.check import compile_folder
from router.policy.compile import PolicySet
from router.policy.diff import Comparison
from router.policy.forecast import Recorded
from router.policy.store import read_folder
from router.trace.recorded import scan
from router.usage import Tokens, Usage
from router.wire.messages import read_request

SONNET, HAIKU, OLDER = "claude-sonnet-5-5", "claude-haiku-5-5", "claude-haiku-4-5"
LANES = b"""version: 1
lanes:
  haiku: {model: claude-haiku-5-5}
  sonnet: {model: claude-sonnet-5-5}
  older: {model: claude-haiku-4-5}
default_lane: sonnet
"""
AS_ASKED = "rules: []\notherwise: as-asked\n"
Compare = Callable[..., dict[str, Any]]


@pytest.fixture
def policies(catalog: Catalog) -> Callable[[str], PolicySet]:
    def compiled(text: str) -> PolicySet:
        files = {"lanes.yaml": LANES, "default.yaml": f"version: 1\n{text}".encode()}
        return compile_folder(files, catalog=catalog, classify=None)

    return compiled


@pytest.fixture
def compare(policies: Callable[[str], PolicySet], catalog: Catalog) -> Compare:
    """The result for some recorded requests; the old policy leaves everything as asked unless given."""

    def run(new: str, *seen: Recorded, old: str = AS_ASKED, **more: Any) -> dict[str, Any]:
        comparison = Comparison(policies(old), policies(new), catalog, **more)
        for request in seen:
            comparison.add(request)
        return comparison.result()

    return run


def rule(when: str, then: str = "route: haiku") -> str:
    return f"rules:\n  - {{name: r, when: {{{when}}}, {then}}}\notherwise: as-asked\n"


EVERYTHING = "rules:\n  - {name: all, route: haiku}\notherwise: as-asked\n"


def recorded(
    at_s: float = 0.0,
    tokens: Tokens | None = None,
    *,
    headers: tuple[str, ...] = (),
    label: Label | None = None,
    facts: dict[str, Any] | None = None,
    **given: Any,
) -> Recorded:
    """A request for Sonnet that Sonnet answered."""
    known = Facts(requested_model=SONNET, requested_line="sonnet", input_tokens=2000, max_tokens=500)
    for name, value in (facts or {}).items():
        setattr(known, name, value)
    fields: dict[str, Any] = {
        "started_at_s": at_s, "conversation": "c" * 32, "policy": "default", "model_asked": known.requested_model,
        "model_sent": SONNET, "model_answered": SONNET, "is_hit": False, "is_answered": True, "has_named_lane": False,
        "cost_pusd": 7, "baseline_pusd": 9, "usage": Usage(tokens or Tokens(2000, output=100)), "label": label,
        "lacking": (), "facts": known.recorded(headers),
    }  # fmt: skip
    return Recorded(**{**fields, **given})


@pytest.mark.parametrize("seed", [3, 4])
def test_the_figures_are_those_of_a_slow_and_plain_program(tmp_path: Path, catalog: Catalog, seed: int) -> None:
    """Counts, money and rules, exactly, on made-up traffic out of a real store."""
    old, new = folders(tmp_path)
    store = tmp_path / "router.db"
    make_store(store, 400, seed)
    sets = [compile_folder(read_folder(folder), catalog=catalog, classify=None) for folder in (old, new)]
    comparison = Comparison(sets[0], sets[1], catalog)
    for _, page in scan(store):
        for seen in page:
            comparison.add(seen)
    assert figures(comparison.result()) == plainly(store, sets[0], sets[1], catalog)


def test_a_request_that_stays_keeps_its_recorded_cost(compare: Compare) -> None:
    """To the pico-dollar, whatever the prices of today are."""
    found = compare(AS_ASKED, recorded())
    assert found["lane_changes"] == 0
    assert [found[side]["cost_usd"].scaleb(12) for side in ("old", "new")] == [7, 7]
    assert found["new"]["estimated_requests"] == 0


def test_a_request_that_moves_is_priced_anew_and_called_an_estimate(compare: Compare, catalog: Catalog) -> None:
    """The recorded tokens at the other model's price; nothing is added up where a price is not known."""
    found = compare(EVERYTHING, recorded())
    cost = catalog.cost(Usage(Tokens(2000, output=100)), HAIKU)
    assert (found["lane_changes"], found["model_changes"], found["new"]["estimated_requests"]) == (1, 1, 1)
    assert found["new"]["estimated_cost_usd"].scaleb(12) == cost
    unknown = compare(EVERYTHING, recorded(cost_pusd=None), recorded(usage=None, is_answered=False))
    assert (unknown["unknown_cost"], unknown["new"]["cost_usd"]) == (2, 0)


def test_tokens_are_converted_between_tokenizers(compare: Compare, catalog: Catalog) -> None:
    """An older model makes fewer tokens of the same text."""
    found = compare(EVERYTHING.replace("haiku", "older"), recorded())
    assert found["new"]["cost_usd"].scaleb(12) == catalog.cost(Usage(Tokens(1538, output=77)), OLDER)


def test_a_cache_hit_costs_nothing_on_either_side(compare: Compare) -> None:
    """Its baseline stays as recorded."""
    found = compare(EVERYTHING, recorded(is_hit=True, cost_pusd=0))
    assert [(found[s]["cost_usd"], found[s]["saved_usd"].scaleb(12)) for s in ("old", "new")] == [(0, 9), (0, 9)]


@pytest.mark.parametrize(
    ("when", "missing"),
    [
        ("header.x-app: a", "header.x-app"),
        ("language: de", "language"),
        ("code_share: {gt: 0.5}", "code_share"),
        ("p_hard: {lt: 0.5}", "p_hard"),
        ("not: {header.x-app: a}", "header.x-app"),
        ("any: [{stream: true}, {task: chat}]", "task"),
        ("user: {starts_with: a}", "user"),
        ("user: {matches: a}", "user"),
        ("user: {contains: a}", "user"),
    ],
)
def test_what_was_not_recorded_is_never_guessed(compare: Compare, when: str, missing: str) -> None:
    """The request is counted apart, under the name of what is missing, and is in no other figure."""
    found = compare(rule(when), recorded(facts={"user": "alice"}))
    assert found["undecided_for_lack_of"] == {missing: 1}
    assert (found["compared"], found["lane_changes"], found["new"]["cost_usd"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("when", "moves"),
    [
        ("header.x-app: a, turns: {gt: 3}", 0),
        ("any: [{task: chat}, {turns: 1}]", 1),
        ("not: {task: chat, turns: {gt: 3}}", 1),
        ("user: alice", 1),
        ("user: {in: [bob, alice]}", 1),
        ("user: {not_in: [alice]}", 0),
        ("user: bob", 0),
        ("user: {exists: true}", 1),
    ],
)
def test_what_decides_without_it_is_decided(compare: Compare, when: str, moves: int) -> None:
    """A clause that fails, or another branch that holds, settles a rule; users compare by their hash."""
    found = compare(rule(when), recorded(facts={"user": "alice"}))
    assert (found["undecided"], found["lane_changes"]) == (0, moves)


def test_a_header_that_a_rule_read_and_that_was_absent_is_known_to_be_absent(compare: Compare) -> None:
    """It is recorded as null, and so are languages that could not be told."""
    facts = {"_has_language": True}
    assert recorded(headers=("x-app",), facts=facts).facts is not None
    for when in ("header.x-app: {exists: false}", "header.x-app: {not_in: [a]}", "not: {language: de}"):
        found = compare(rule(when), recorded(headers=("x-app",), facts=facts))
        assert (found["undecided"], found["lane_changes"]) == (0, 1)


def test_a_name_that_was_cut_decides_nothing(compare: Compare) -> None:
    """Of a hundred tools fifty are recorded, and one of the others may be the one."""
    seen = recorded(facts={"tools": 100, "tool_names": tuple(f"t{n}" for n in range(100))})
    assert compare(rule("tool_names: {contains: t99}"), seen)["undecided_for_lack_of"] == {"tool_names": 1}
    assert compare(rule("tool_names: {exists: false}"), seen)["lane_changes"] == 0


def test_rules_hold_for_a_user_and_for_the_hash_that_traces_have(
    policies: Callable[[str], PolicySet], catalog: Catalog
) -> None:
    """A live request with the user's own name still matches."""
    body = b'{"model":"claude-sonnet-5-5","max_tokens":9,"metadata":{"user_id":"alice"},"messages":[{"role":"user"}]}'
    facts = inspect(read_request(body), Caller(), catalog)
    clause = policies(rule("user: alice")).policies["default"].rules[0].clauses[0]
    assert clause.check(facts, None)
    assert clause.check(Facts(user=recorded_user("alice")), None)
    assert not clause.check(Facts(user="bob"), None)
    assert not clause.check(Facts(), None)


def turn(number: int, tokens: Tokens, **given: Any) -> Recorded:
    """One turn of a conversation, a minute after the last."""
    given.setdefault("facts", {})
    if number > 1:
        given["facts"] = {"conversation": "warm", "turns": number, **given["facts"]}
    return recorded(60.0 * number, tokens, **given)


def test_a_conversation_that_would_stay_bound_does_not_move(compare: Compare) -> None:
    """A rule that holds from the third turn on moves nobody, unless it says `move`."""
    turns = [turn(number, Tokens(3000, output=10)) for number in (1, 2, 3, 4)]
    assert compare(rule("turns: {gt: 2}"), *turns)["lane_changes"] == 0
    assert compare(rule("turns: {gt: 2}", "route: haiku, stick: move"), *turns)["lane_changes"] == 2
    assert compare(rule("turns: {gt: 2}", "route: haiku, stick: none"), *turns)["lane_changes"] == 2


def test_the_first_moved_turn_writes_the_prefix_anew_and_later_ones_read_it(compare: Compare, catalog: Catalog) -> None:
    """What Sonnet had in its prompt cache, Haiku has not; a request that loses a warm cache is counted."""
    cached = Tokens(input=10, cache_read=20_000, cache_write_5m=500, output=50)
    turns = [turn(1, Tokens(10, cache_write_5m=20_000, output=50)), turn(2, cached), turn(3, cached), turn(4, cached)]
    moving = rule("turns: {gt: 2}", "route: haiku, stick: move")
    found = compare(moving, *turns)
    assert (found["warm_caches_lost"], found["warm_caches_won"]) == (1, 0)
    anew = catalog.cost(Usage(Tokens(10, 0, 20_500, 0, 50)), HAIKU)
    read = catalog.cost(Usage(Tokens(10, 20_000, 500, 0, 50)), HAIKU)
    assert anew is not None
    assert read is not None
    assert found["new"]["estimated_cost_usd"].scaleb(12) == anew + read
    back = compare(AS_ASKED, *turns, old=moving)
    assert (back["warm_caches_lost"], back["warm_caches_won"]) == (0, 1)


def test_after_a_turn_that_cannot_be_decided_the_binding_is_not_known(compare: Compare) -> None:
    """Where the conversation would be bound is then anybody's guess, until a rule moves it."""
    when = "rules:\n  - {name: r, when: {turns: 1, task: chat}, route: haiku}\notherwise: as-asked\n"
    found = compare(when, turn(1, Tokens(9)), turn(2, Tokens(9)))
    assert found["undecided_for_lack_of"] == {"an earlier turn": 1, "task": 1}
    free = when.replace("otherwise", "  - {name: s, route: sonnet, stick: none}\notherwise")
    assert compare(free, turn(1, Tokens(9)), turn(2, Tokens(9)))["undecided"] == 1


def test_a_lane_that_would_refuse_the_request_gives_way_to_the_next(compare: Compare) -> None:
    """As the router does: the next lane of the route, at last the model asked for; with the reason."""
    seen = recorded(facts={"max_tokens": 100_000})
    found = compare(EVERYTHING.replace("haiku", "[older, haiku]"), seen)
    assert found["new"]["swap_refused_requests"] == 1
    assert [entry["lane"] for entry in found["new"]["swap_refusals"]] == ["older"]
    assert found["lanes"][0]["new_lane"] == "haiku"
    assert compare(EVERYTHING.replace("haiku", "older"), seen)["lane_changes"] == 0
    adapted = EVERYTHING.replace("haiku", "older, swap: {adapt: [max_tokens, thinking]}")
    assert compare(adapted, seen)["lanes"][0]["new_lane"] == "older"


def test_a_long_prompt_is_held_against_the_window_by_its_own_length(compare: Compare) -> None:
    """What is remembered of one length says nothing wrong about another, in any order."""
    lengths = (1_000, 150_000, 900_000, 140_000, 120_000, 200_000, 2_000)
    seen = [recorded(facts={"input_tokens": n}, conversation=f"{n:032d}") for n in lengths]
    one_by_one = [compare(EVERYTHING.replace("haiku", "older"), one)["lane_changes"] for one in seen]
    assert compare(EVERYTHING.replace("haiku", "older"), *seen)["lane_changes"] == sum(one_by_one)
    assert 0 < sum(one_by_one) < len(lengths)


def test_denied_and_unknown_are_not_sent_and_cost_nothing(compare: Compare) -> None:
    """A refusal saves nothing either; a request that was denied when recorded has no usage to price."""
    deny = 'rules:\n  - {name: none, deny: "no"}\notherwise: as-asked\n'
    found = compare(deny, recorded())
    assert found["new"]["not_sent"] == {"denied": 1}
    assert (found["new"]["cost_usd"], found["new"]["saved_usd"]) == (0, 0)
    gone = compare(AS_ASKED, recorded(policy="gone"), recorded(facts={"requested_model": "lane:nowhere"}))
    assert gone["new"]["not_sent"] == {"unknown target": 2}


def test_records_without_facts_are_told_apart(compare: Compare) -> None:
    """A request that was refused before any policy was asked, and one whose facts the store had no room for."""
    found = compare(AS_ASKED, recorded(policy="")._replace(facts=None), recorded()._replace(facts=None))
    assert (found["requests"], found["not_routed"], found["undecided_for_lack_of"]) == (2, 1, {"facts": 1})


def test_memory_is_bounded_by_the_conversations_heard_of_last(compare: Compare) -> None:
    """What is forgotten is counted, and starts again unbound."""
    seen = [recorded(conversation=f"{n % 5:032d}", facts={"conversation": "warm"}) for n in range(20)]
    found = compare(AS_ASKED, *seen, most_conversations=2)
    assert found["conversations_forgotten"] == 18
    assert found["conversations_begun_before"] == 20


def test_a_store_that_is_missing_is_said(tmp_path: Path) -> None:
    """With the next step, as the other commands say it."""
    with pytest.raises(TraceStoreError, match="no trace store"):
        next(scan(tmp_path / "none.db"))


def test_a_scan_reads_every_request_once_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oldest first, of one policy and since a moment where asked, whatever the size of a page."""
    make_store(tmp_path / "s.db", 301)
    whole = [seen for _, page in scan(tmp_path / "s.db") for seen in page]
    monkeypatch.setattr("router.trace.recorded.PAGE", 7)
    assert [seen for _, page in scan(tmp_path / "s.db") for seen in page] == whole
    assert len(whole) == 301
    assert sorted(seen.started_at_s for seen in whole) == [seen.started_at_s for seen in whole]
    since_ns = int(whole[100].started_at_s * 1e9) + 1_000
    assert sum(len(page) for _, page in scan(tmp_path / "s.db", since_ns=since_ns)) in (200, 201)
    gone = [seen for _, page in scan(tmp_path / "s.db", policy="gone") for seen in page]
    assert gone == [seen for seen in whole if seen.policy == "gone"]
