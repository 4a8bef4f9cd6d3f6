"""Who keeps a conversation: each value of `stick` against what the conversation is bound to."""

from __future__ import annotations

from typing import Any

from router.affinity.binding import Binding
from router.affinity.keep import Hold, hold
from router.catalog_file import load_catalog
from router.policy.decide import Decision
from router.policy.written import NO_RETRY, OWN_TIMEOUTS, Lane

CATALOG = load_catalog()
HAIKU, SONNET, OPUS = "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"
NOW_S = 1_795_000_000.0
MODELS = {"haiku": HAIKU, "sonnet": SONNET, "opus": OPUS, "as-asked": None, "strange": "no-such-model"}
LANES = {name: Lane(name, model) for name, model in MODELS.items()}


def warm(lane: str = "opus", model: str = OPUS, prefix: int = 10_000, output: int = 100) -> Binding:
    """A conversation whose prefix is in the prompt cache of its model."""
    return Binding(lane, model, prefix, prefix, 300, output, NOW_S - 10)


def decision(stick: str, lane: str = "sonnet", turns: int = 10, deny: str | None = None) -> Decision:
    return Decision(
        policy="default", revision="r", rule="rule", route=(LANES[lane],), cache=None,
        retry=NO_RETRY, timeouts=OWN_TIMEOUTS,
        swap="strict", edits=(), stick=stick, turns=turns, deny=deny, tags=(), offers=(), why=(),  # type: ignore[arg-type]
    )  # fmt: skip


def held(decided: Decision, binding: Binding | None, *, asked: str = OPUS, **more: Any) -> Hold:
    wanted = decided.route[0].model or asked
    return hold(
        decided, binding, wanted=wanted, asked=asked, lanes=more.get("lanes", LANES), catalog=CATALOG, now_s=NOW_S
    )


def test_conversation_keeps_its_model_and_says_what_leaving_would_cost():
    """The default: 10,000 warm tokens on Opus are not written again on Sonnet, though Sonnet's answers are cheaper."""
    kept = held(decision("conversation"), warm())
    assert kept.lane == LANES["opus"]
    assert kept.why == ("the conversation keeps lane `opus`: a switch to `sonnet` would cost $0.022000 more this turn")
    assert kept.cost is not None
    assert (kept.cost.from_model, kept.cost.to_model) == (OPUS, SONNET)


def test_conversation_keeps_its_model_even_where_leaving_is_cheaper_at_once():
    """Keeping is not about money alone: a model's thinking is read by few others."""
    kept = held(decision("conversation", "haiku"), warm())
    assert (kept.lane, kept.why) == (LANES["opus"], "the conversation keeps lane `opus`")
    assert kept.cost is not None
    assert kept.cost.extra_pusd < 0


def test_economic_moves_when_the_switch_is_earned_back_in_time():
    """Opus to Haiku on 10,000 tokens pays at once; the conversation goes to the rule's own route."""
    moved = held(decision("economic", "haiku"), warm())
    assert moved.lane is None
    assert moved.why == "the conversation moves from lane `opus` to `haiku`: earned back by turn 1"


def test_economic_keeps_what_is_not_earned_back_in_time():
    """Opus to Sonnet costs 0.022 dollars at once and gives back 0.002 a turn: the end of turn 12 is even."""
    kept = held(decision("economic", turns=10), warm())
    assert kept.lane == LANES["opus"]
    assert kept.why == "the conversation keeps lane `opus`: a switch to `sonnet` is not earned back within 10 turns"
    assert held(decision("economic", turns=12), warm()).lane is None
    assert held(decision("economic", turns=11), warm()).lane == LANES["opus"]


def test_economic_keeps_when_the_cost_is_not_known():
    """A model without a price, or a conversation of unknown length: unknown never counts as cheap, and is called so."""
    says = "the conversation keeps lane `opus`: what a switch to `{}` would cost is not known"
    strange = held(decision("economic", "strange"), warm())
    assert (strange.lane, strange.why, strange.cost) == (LANES["opus"], says.format("strange"), None)
    replayed = held(decision("economic", "haiku"), Binding("opus", OPUS, 0, 0, 300, 0, NOW_S))
    assert (replayed.lane, replayed.why) == (LANES["opus"], says.format("haiku"))


def test_move_follows_the_rule_and_prices_it():
    """The owner said so; the trace carries what it cost."""
    moved = held(decision("move"), warm())
    assert (moved.lane, moved.why) == (None, "the conversation moves from lane `opus` to `sonnet`")
    assert moved.cost is not None
    assert moved.cost.extra_pusd > 0


def test_none_reads_no_binding():
    """Each turn is decided on its own."""
    assert held(decision("none"), warm()) == Hold(None)


def test_a_new_conversation_is_held_by_nothing():
    """There is no binding yet."""
    for stick in ("conversation", "economic", "move", "none"):
        assert held(decision(stick), None) == Hold(None)


def test_a_denied_request_is_held_by_nothing():
    """Nothing is sent, so nothing is kept."""
    assert held(decision("conversation", deny="no"), warm()) == Hold(None)


def test_a_rule_that_wants_the_bound_model_has_nothing_to_decide():
    """The same model through another lane, or under its alias, is no switch."""
    assert held(decision("conversation", "opus"), warm()) == Hold(None)
    dated, alias = "claude-haiku-4-5-20251001", "claude-haiku-4-5"
    lanes = {**LANES, "old": Lane("old", alias)}
    assert held(decision("conversation", "as-asked"), warm("old", dated), asked=alias, lanes=lanes) == Hold(None)
    kept = held(decision("conversation"), warm("old", dated), lanes=lanes)
    assert kept.lane == lanes["old"]


def test_a_lane_taken_out_of_the_file_binds_nobody():
    """The owner's edit counts at once."""
    lanes = {name: lane for name, lane in LANES.items() if name != "opus"}
    assert held(decision("conversation"), warm(), lanes=lanes) == Hold(None)


def test_a_lane_that_stands_for_another_model_now_binds_nobody():
    """The lane's name is the owner's; what is warm is the model's."""
    assert held(decision("conversation"), warm(), lanes={**LANES, "opus": Lane("opus", HAIKU)}) == Hold(None)


def test_a_conversation_served_as_asked_keeps_the_model_asked_for():
    """`as-asked` stands for the model of the request: it holds while the client asks for that one."""
    kept = held(decision("conversation"), warm("as-asked"), asked=OPUS)
    assert kept.lane == LANES["as-asked"]
    assert held(decision("conversation"), warm("as-asked"), asked=SONNET) == Hold(None)
