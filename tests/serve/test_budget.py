"""The retry budget: a fifth of the traffic and a few more, whatever happens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.serve.budget import BURST, FLOOR, SHARE, RetryBudget


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_traffic_there_are_a_few_retries_and_then_one_a_second():
    """The floor is spent at once, and time brings it back."""
    clock = Clock()
    budget = RetryBudget(clock)
    assert [budget.take() for _ in range(12)] == [True] * 10 + [False] * 2
    clock.now += 3
    assert [budget.take() for _ in range(4)] == [True] * 3 + [False]
    clock.now += 3600
    assert sum(budget.take() for _ in range(50)) == FLOOR
    assert budget.stats() == {"left": 0, "spent": 23, "refused": 43}


def test_under_traffic_a_fifth_of_it_may_be_tried_again():
    """When everything is refused, retries stop at a fifth of the requests (R4)."""
    budget = RetryBudget(Clock())
    sent = 0
    for _ in range(10_000):
        budget.request()
        sent += budget.take()
    assert sent <= 10_000 * SHARE + FLOOR + 1
    assert sent >= 10_000 * SHARE


def test_what_is_saved_up_is_bounded():
    """A day of quiet traffic is not followed by a storm."""
    budget = RetryBudget(Clock())
    for _ in range(100_000):
        budget.request()
    assert sum(budget.take() for _ in range(1000)) == BURST


@given(st.lists(st.tuples(st.sampled_from(["request", "take", "wait"]), st.floats(0, 100)), max_size=200))
def test_the_budget_is_never_overdrawn(steps):
    """Retries never exceed the floor, what time brought, and the share of the requests."""
    clock = Clock()
    budget = RetryBudget(clock)
    requests = taken = 0
    for step, seconds in steps:
        if step == "wait":
            clock.now += seconds
        elif step == "request":
            budget.request()
            requests += 1
        else:
            taken += budget.take()
        assert taken <= FLOOR + clock.now + requests * SHARE + 1e-6
