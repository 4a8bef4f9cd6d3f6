"""A short follow-up is as hard as what it follows."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest

from router.classify.followup import standing_request
from router.classify.model import LinearClassifier

HARD = (
    "Design a lock-free bounded queue for several producers and consumers in C++ with the weakest memory orders that "
    "are still right, and prove that it is linearizable."
)
EASY = "Classify this ticket as billing, technical or account: I can't log in after resetting my password."


@pytest.fixture(scope="module")
def classifier() -> LinearClassifier:
    return LinearClassifier((files("router") / "data" / "classifier.bin").read_bytes())


def conversation(first: str, *last: Any) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": first}]
    for turn in last:
        messages += [{"role": "assistant", "content": "Shall I go on?"}, {"role": "user", "content": turn}]
    return {"model": "claude-opus-5-5", "max_tokens": 4000, "messages": messages}


@pytest.mark.parametrize("reply", ["yes", "yes please", "do it", "B", "sounds good", "please", "ok, the second one"])
def test_a_short_reply_does_not_send_hard_work_down(classifier: LinearClassifier, reply: str) -> None:
    """What counts is what the reply sets going; through several replies, and in content blocks too."""
    general = {"system": "You are a helpful assistant. Answer in the user's language, briefly and politely."}
    for body in (
        conversation(HARD, reply) | general,
        conversation(HARD, reply),
        conversation(HARD, reply, "continue", reply),
        conversation(HARD, [{"type": "text", "text": reply}]),
    ):
        label = classifier.label(body)
        assert label.p_hard >= 0.5, label
        assert classifier.lane(label) == "sonnet"


def test_a_short_reply_to_easy_work_stays_easy(classifier: LinearClassifier) -> None:
    """The harder of the two counts, not the length."""
    assert (
        classifier.lane(classifier.label(conversation(EASY, "And this one: my card was charged twice for March.")))
        == "haiku"
    )


@pytest.mark.parametrize("reply", ["yes", "go ahead", "2"])
def test_the_operators_prompt_does_not_decide_whether_a_reply_says_something(
    classifier: LinearClassifier, reply: str
) -> None:
    """Under any system prompt an empty reply is judged as what it follows."""
    shop = {"system": "You are a friendly assistant for customers of a garden shop. Answer briefly and politely."}
    assert classifier.label(conversation(HARD, reply) | shop) == classifier.label(conversation(HARD) | shop)


def test_a_full_turn_speaks_for_itself() -> None:
    """Only the last user turn decides when it says enough."""
    assert standing_request(conversation(HARD, EASY)) is None
    assert standing_request({"messages": [{"role": "user", "content": "yes"}]}) is None
    assert standing_request({"messages": "odd"}) is None


def test_the_conversation_is_cut_at_the_turn_that_says_enough() -> None:
    """Tool results and odd messages are passed over."""
    body = conversation(HARD, "yes")
    body["messages"] += [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "run", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "done" * 50}]},
    ]
    standing = standing_request(body)
    assert standing is not None
    assert standing["messages"] == body["messages"][:1]
