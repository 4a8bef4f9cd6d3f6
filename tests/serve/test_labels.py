"""Labels remembered: the same request is judged once, for its own tenant, and never otherwise than before."""

from __future__ import annotations

import json

import pytest

from router.seams import Label
from router.serve import labels as room
from router.serve.labels import RememberedLabels
from router.wire.messages import MessagesRequest, read_request


class Counting:
    """A classifier that counts, and says how long the text was."""

    def __init__(self) -> None:
        self.asked = 0

    def label(self, body) -> Label:
        self.asked += 1
        if body["messages"][0]["content"] == "fail":
            raise ValueError("a bug")
        return Label("simple_qa", len(body["messages"][0]["content"]) / 1e6, 1.0, 0.5)


def request(text: str = "hello") -> MessagesRequest:
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": text}]}
    return read_request(json.dumps(body).encode())


def test_a_repeat_is_not_read_again():
    """The very label, for the same bytes of the same tenant."""
    classifier = Counting()
    labels = RememberedLabels(classifier)
    assert labels.label(request(), "a") is labels.label(request(), "a")
    assert classifier.asked == 1
    assert labels.label(request("hello!"), "a") != labels.label(request(), "a")
    assert classifier.asked == 2


def test_tenants_do_not_share_labels():
    """How fast one is answered must not tell what another has asked (S6); a tenant's name cannot imitate another's."""
    classifier = Counting()
    labels = RememberedLabels(classifier)
    for tenant in ("a", "b", "", "1:a"):
        labels.label(request(), tenant)
    assert classifier.asked == 4


def test_the_longest_unused_are_forgotten(monkeypatch):
    """What is asked for stays."""
    monkeypatch.setattr(room, "_MOST", 2)
    classifier = Counting()
    labels = RememberedLabels(classifier)
    for text in ("one", "two", "one", "three", "one"):
        labels.label(request(text), "a")
    assert classifier.asked == 3
    labels.label(request("two"), "a")
    assert classifier.asked == 4


def test_long_bodies_and_failures_are_not_remembered():
    """A long body is judged each time; a classifier that failed is asked again."""
    classifier = Counting()
    labels = RememberedLabels(classifier)
    for _ in range(2):
        labels.label(request("x" * 100_000), "a")
        with pytest.raises(ValueError, match="a bug"):
            labels.label(request("fail"), "a")
    assert classifier.asked == 4
