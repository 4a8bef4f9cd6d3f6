"""The owner's correction: small, pulled towards none, in the direction of the labels."""

from __future__ import annotations

from router.classify.correct import Example, fit_correction
from router.classify.label import TASKS
from router.classify.model import Correction, Measured


def example(logit, is_hard, task=None, said=0):
    tasks = [2.0 if at == said else 0.0 for at in range(len(TASKS))]
    return Example(Measured(tasks, logit, 0.0, 1.0), is_hard, task)


def test_no_labels_give_no_correction():
    """Nothing to learn from leaves everything."""
    assert fit_correction([]) == Correction()


def test_easy_traffic_that_looks_hard_lowers_the_lane():
    """A hundred requests scored just above the middle that are all easy."""
    found = fit_correction([example(0.5, False)] * 100)
    assert found.lane_bias < -0.5


def test_few_labels_move_little():
    """The same labels, three instead of three hundred."""
    few, many = fit_correction([example(0.5, False)] * 3), fit_correction([example(0.5, False)] * 300)
    assert abs(few.lane_bias) < abs(many.lane_bias)


def test_a_task_that_is_always_missed_gains():
    """What is labelled `chat` but read as the first task."""
    found = fit_correction([example(0.0, False, "chat")] * 60)
    assert found.task_bias[TASKS.index("chat")] > 0.5
    assert found.task_bias[0] < 0


def test_the_fit_is_the_same_twice():
    """No chance in it."""
    rows = [example(0.3 * at - 4, at % 3 == 0, TASKS[at % len(TASKS)], at % 5) for at in range(40)]
    assert fit_correction(rows) == fit_correction(rows)
