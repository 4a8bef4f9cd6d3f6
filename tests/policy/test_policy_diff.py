"""Two policy sets on recorded requests: what moves, what it costs, what nobody can say."""

from __future__ import annotations

import json
import pickle
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kit.plain_diff import figures, plainly
from kit.recorded_traffic import folders, make_store
from kit.traces import a_trace

from router.catalog.lookup import Catalog
from router.classify.label import Label
from router.errors import TraceStoreError
from router.facts.inspect import Caller, Facts, inspect, recorded_user
from router.facts.vocabulary import FACTS, fact_spec
from router.policy.check import compile_folder
from router.policy.compile import PolicySet
from router.policy.diff import Comparison, Tally
from router.policy.folder import read_folder
from router.policy.forecast import Recorded
from router.trace.recorded import count, scan
from router.trace.sqlite import SqliteTraceSink
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


def made(where: Path, catalog: Catalog, count: int, seed: int) -> tuple[tuple[PolicySet, PolicySet], Path]:
    """Two policy sets, and a store of which half was served by one of them."""
    old, new = (compile_folder(read_folder(at), catalog=catalog, classify=None) for at in folders(where))
    make_store(where / "router.db", count, seed, (old.revision, new.revision))
    return (old, new), where / "router.db"


def fed(sets: tuple[PolicySet, PolicySet], catalog: Catalog, store: Path, **how: Any) -> Comparison:
    """A comparison that has seen a store, or the `part` of it."""
    comparison = Comparison(*sets, catalog)
    for page in scan(store, **how):
        for seen in page:
            comparison.add(seen)
    return comparison


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
        "lacking": (), "facts": known.recorded(headers), "revision": "elsewhere", "rule": "otherwise",
        "lane": "as-asked", "kept_out": (),
    }  # fmt: skip
    return Recorded(**{**fields, **given})


@pytest.mark.parametrize("seed", [3, 4])
def test_the_figures_are_those_of_a_slow_and_plain_program(tmp_path: Path, catalog: Catalog, seed: int) -> None:
    """Counts, money and rules, exactly, on made-up traffic out of a real store; half was served by one of the two."""
    sets, store = made(tmp_path, catalog, 400, seed)
    found = figures(fed(sets, catalog, store).result())
    assert found == plainly(store, *sets, catalog)
    assert 0 < found["counts"]["old_as_recorded"] < found["counts"]["compared"]


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_merged_are_the_whole(tmp_path: Path, catalog: Catalog, parts: int) -> None:
    """Each part has conversations of its own; every figure of the sum is that of one comparison of everything."""
    sets, store = made(tmp_path, catalog, 600, 6)
    shares = [fed(sets, catalog, store, part=(number, parts)) for number in range(parts)]
    assert all(share.result()["compared"] for share in shares)
    for share in shares[1:]:
        told: Tally = pickle.loads(pickle.dumps(share.tally()))
        shares[0].merge(told)
    assert shares[0].result() == fed(sets, catalog, store).result()


def test_what_is_remembered_changes_no_figure(
    tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memos so small that they are emptied all the time give the figures of the slow program too."""
    for name in ("unsure._MOST_VALUES", "unsure._MOST_LABELS", "unsure._MOST_OUTCOMES", "forecast._MOST_KEPT"):
        monkeypatch.setattr(f"router.policy.{name}", 2)
    monkeypatch.setattr("router.trace.recorded._MOST_KEPT", 2)
    test_the_figures_are_those_of_a_slow_and_plain_program(tmp_path, catalog, 5)


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


@pytest.mark.parametrize("header", ["x-api-token", "x-claude-code-session-id"])
def test_a_header_that_may_hold_a_credential_is_known_to_be_there_and_no_more(compare: Compare, header: str) -> None:
    """Its value is not recorded, so that no comparison of it is guessed."""
    seen = recorded(headers=(header,), facts={"headers": {header: "canary"}})
    for when, undecided in ((f"header.{header}: {{exists: true}}", 0), (f"header.{header}: canary", 1)):
        assert compare(rule(when), seen)["undecided"] == undecided


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


def test_what_a_revision_served_is_on_its_side_as_recorded(
    compare: Compare, policies: Callable[[str], PolicySet]
) -> None:
    """Rule, lane, model and money, whatever the rules would say today; the other side is forecast."""
    served = {"revision": policies(EVERYTHING).revision, "rule": "all", "lane": "older", "model_sent": OLDER,
              "kept_out": (("haiku", "the prompt is too long"),)}  # fmt: skip
    seen = recorded(model_answered=OLDER, cost_pusd=5, **served)
    found = compare(EVERYTHING, seen, old=EVERYTHING)
    for side in (found["old"], found["new"]):
        assert (side["as_recorded"], side["forecast"], side["estimated_requests"]) == (1, 0, 0)
        assert (side["cost_usd"].scaleb(12), side["baseline_usd"].scaleb(12)) == (5, 9)
        assert side["swap_refusals"] == [{"lane": "haiku", "reason": "the prompt is too long", "requests": 1}]
    assert (found["lane_changes"], found["undecided"]) == (0, 0)
    other = compare(AS_ASKED, seen, old=EVERYTHING)
    assert [(row["old_lane"], row["new_lane"]) for row in other["lanes"]] == [("older", "as-asked")]
    assert (other["new"]["as_recorded"], other["new"]["forecast"], other["new"]["estimated_requests"]) == (0, 1, 1)


def test_a_record_needs_no_facts_on_the_side_that_served_it(
    compare: Compare, policies: Callable[[str], PolicySet]
) -> None:
    """A busy router leaves them out; nothing has to be decided anew. The other side cannot be."""
    seen = recorded(revision=policies(AS_ASKED).revision)._replace(facts=None)
    assert compare(AS_ASKED, seen)["compared"] == 1
    assert compare(EVERYTHING, seen)["undecided_for_lack_of"] == {"facts": 1}


def test_what_was_not_sent_is_as_recorded_too(compare: Compare, policies: Callable[[str], PolicySet]) -> None:
    """Denied, asked for a lane that is not there, ended before it was routed."""
    deny = 'rules:\n  - {name: none, deny: "no"}\notherwise: as-asked\n'
    stopped = {"revision": policies(deny).revision, "lane": "", "model_sent": "", "usage": None, "is_answered": False,
               "cost_pusd": 0, "baseline_pusd": 0}  # fmt: skip
    seen = (recorded(rule="none", **stopped), recorded(**stopped), recorded(model_asked="lane:nowhere", **stopped))
    found = compare(deny, *seen, old=deny)
    assert found["old"]["not_sent"] == {"denied": 1, "ended early": 1, "unknown target": 1}
    assert (found["old"]["cost_usd"], found["unknown_cost"], found["lane_changes"]) == (0, 0, 0)


def test_a_conversation_is_bound_to_what_really_served_it(
    compare: Compare, policies: Callable[[str], PolicySet]
) -> None:
    """A later turn that is forecast stays on the lane that served the first, unless its rule bound nothing."""
    for stick, lane in (("conversation", "haiku"), ("none", "sonnet")):
        text = f"rules:\n  - {{name: r, when: {{turns: 1}}, route: haiku, stick: {stick}}}\notherwise: sonnet\n"
        served = {"revision": policies(text).revision, "rule": "r", "lane": "haiku", "model_sent": HAIKU}
        found = compare(text, turn(1, Tokens(9), **served), turn(2, Tokens(9)))
        assert (found["new"]["as_recorded"], found["new"]["forecast"]) == (1, 1)
        second = {(row["old_rule"], row["new_rule"]) for row in found["rules"]}
        assert second == {("otherwise", "r"), ("otherwise", "otherwise")}
        moved = {row["new_lane"] for row in found["lanes"]}
        assert moved == {"haiku", lane}


def test_policies_share_no_binding(compare: Compare, policies: Callable[[str], PolicySet]) -> None:
    """The same conversation under another policy is another one, as the router keeps them apart."""
    text = rule("turns: 1")
    served = {"revision": policies(text).revision, "rule": "r", "lane": "haiku", "model_sent": HAIKU}
    first = turn(1, Tokens(9), policy="other", **served)
    assert compare(text, first, turn(2, Tokens(9)), old=text)["new"]["as_recorded"] == 1
    assert compare(text, first, turn(2, Tokens(9)))["lane_changes"] == 1
    same = turn(1, Tokens(9), **served)
    assert compare(text, same, turn(2, Tokens(9)))["lane_changes"] == 2


ODD = ({"a": 1}, [["a"]], [{"a": 1}], "many", 1.5, True)


@pytest.mark.parametrize("name", [*FACTS, "header.x-app", "header.x-router-lane"])
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_recorded_fact_of_a_strange_type_ends_nothing(compare: Compare, name: str, value: Any) -> None:
    """Others can write to the store. What cannot be that fact is as good as not recorded; other rules go on."""
    spec = fact_spec(name)
    assert spec is not None
    asks = {"text": "{starts_with: a}", "list": "{contains: a}", "flag": "true"}.get(spec.kind, "{gt: 0.5}")
    if spec.kind == "integer":
        asks = "{gt: 1}"
    if spec.values or name in ("policy", "requested_model"):
        asks = f"{{in: [{(spec.values or ('a',))[0]}]}}"
    seen = recorded()
    assert seen.facts is not None
    odd = seen._replace(facts={**seen.facts, name: value})
    found = compare(rule(f"{name}: {asks}"), odd, recorded(facts={"turns": 3}, conversation="d" * 32))
    assert found["requests"] == found["compared"] + found["undecided"] == 2
    assert compare(AS_ASKED, odd, odd)["requests"] == 2


def test_an_object_in_place_of_a_value_is_as_good_as_not_recorded(compare: Compare) -> None:
    """The rule that reads it cannot be decided; a rule that does not is."""
    seen = recorded()
    assert seen.facts is not None
    odd = seen._replace(facts={**seen.facts, "client": {"name": "curl"}, "tool_names": [{"name": "x"}]})
    assert compare(rule("client: curl"), odd)["undecided_for_lack_of"] == {"client": 1}
    assert compare(rule("tool_names: {contains: x}"), odd)["undecided_for_lack_of"] == {"tool_names": 1}
    assert compare(rule("messages: {lt: 9}"), odd)["lane_changes"] == 1
    needed = seen._replace(facts={**seen.facts, "images": {"count": 1}})
    assert compare(rule("messages: {lt: 9}"), needed)["undecided_for_lack_of"] == {"facts": 1}


def test_a_label_of_a_strange_type_is_not_known(tmp_path: Path) -> None:
    """An object where the number should be; the rest of the label stands."""
    make_store(tmp_path / "s.db", 1)
    labels = '{"task": "chat", "difficulty": 0.5, "confidence": {"a": 1}, "p_hard": "low"}'
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection, connection:
        connection.execute("UPDATE traces SET labels = ?", (labels,))
    ((seen,),) = scan(tmp_path / "s.db")
    assert seen.lacking == ("confidence", "p_hard")
    assert seen.label is not None
    assert (seen.label.task, seen.label.difficulty) == ("chat", 0.5)


def test_the_lanes_that_were_kept_out_are_read_from_the_trace(tmp_path: Path) -> None:
    """Each with the first of its reasons; what else `why` says is left alone, and so is what is no list."""
    make_store(tmp_path / "s.db", 2)
    why = ("rule `r`: lane `x` kept out: not this one", "lane `a` kept out: too long; too new", "lane `b` kept out: no")
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection, connection:
        connection.execute("UPDATE traces SET why = ?", (json.dumps(why),))
        connection.execute("UPDATE traces SET why = ? WHERE trace_id LIKE '%1'", ("` kept out: {",))
    ((first, second),) = scan(tmp_path / "s.db")
    assert first.kept_out == (("a", "too long"), ("b", "no"))
    assert second.kept_out == ()


def test_a_store_that_is_missing_is_said(tmp_path: Path) -> None:
    """With the next step, as the other commands say it."""
    with pytest.raises(TraceStoreError, match="no trace store"):
        next(scan(tmp_path / "none.db"))
    with pytest.raises(TraceStoreError, match="no trace store"):
        count(tmp_path / "none.db")


def test_who_left_before_the_answer_it_waited_for_was_no_hit(tmp_path: Path) -> None:
    """It has no usage and costs nothing; one that had the answer is a hit, whoever paid for it."""
    sink = SqliteTraceSink(tmp_path / "s.db")
    sink.write(a_trace(0, cache="coalesced", attempts=[], cost_pusd=0))
    sink.write(a_trace(1, cache="coalesced", attempts=[], cost_pusd=0, usage=None))
    sink.write(a_trace(2, cache="coalesced", cost_pusd=0))
    sink.close()
    ((had, left, went_on),) = scan(tmp_path / "s.db")
    assert [seen.is_hit for seen in (had, left, went_on)] == [True, False, False]
    assert [seen.is_answered for seen in (had, left, went_on)] == [True, False, True]


def test_a_scan_reads_every_request_once_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oldest first, of one policy and since a moment where asked, whatever the size of a page."""
    make_store(tmp_path / "s.db", 301)
    whole = [seen for page in scan(tmp_path / "s.db") for seen in page]
    monkeypatch.setattr("router.trace.recorded.PAGE", 7)
    assert [seen for page in scan(tmp_path / "s.db") for seen in page] == whole
    assert len(whole) == 301
    assert sorted(seen.started_at_s for seen in whole) == [seen.started_at_s for seen in whole]
    since_ns = int(whole[100].started_at_s * 1e9) + 1_000
    assert sum(len(page) for page in scan(tmp_path / "s.db", since_ns=since_ns)) in (200, 201)
    gone = [seen for page in scan(tmp_path / "s.db", policy="gone") for seen in page]
    assert gone == [seen for seen in whole if seen.policy == "gone"]
    parts = [[seen for page in scan(tmp_path / "s.db", part=(n, 4)) for seen in page] for n in range(4)]
    assert sorted(seen.started_at_s for part in parts for seen in part) == [seen.started_at_s for seen in whole]
    assert len({(n, seen.conversation) for n, part in enumerate(parts) for seen in part}) == len(
        {seen.conversation for seen in whole}
    )
    assert count(tmp_path / "s.db") >= len(whole)
