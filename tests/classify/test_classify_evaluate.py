"""The figures, against their definitions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.classify.evaluate import Judged, area_under_curve, calibration_error, figures, macro_f1, wilson


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.2, 0.5, 0.7, 0.9])), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_order(rows):
    """Counted pair by pair; ties count half."""
    hard = [score for is_hard, score in rows if is_hard]
    easy = [score for is_hard, score in rows if not is_hard]
    found = area_under_curve([is_hard for is_hard, _ in rows], [score for _, score in rows])
    if not hard or not easy:
        assert found is None
    else:
        pairs = [1.0 if h > e else 0.5 if h == e else 0.0 for h in hard for e in easy]
        assert found == pytest.approx(sum(pairs) / len(pairs))


def test_wrong_downgrades_and_upgrades_are_shares_of_their_own_lane():
    """Two hard and four easy requests, one error each."""
    rows = [Judged(True, True, 0.9, "coding", "coding"), Judged(True, False, 0.2, "coding", "chat")]
    rows += [Judged(False, False, 0.1, "chat", "chat")] * 3 + [Judged(False, True, 0.8, None, "coding")]
    found = figures(rows)
    assert found["false_downgrade"] == 0.5
    assert found["false_upgrade"] == 0.25
    assert found["lane_accuracy"] == pytest.approx(4 / 6)
    assert found["haiku_share"] == pytest.approx(4 / 6)
    assert found["task_accuracy"] == pytest.approx(4 / 5)


def test_calibration_error_is_zero_where_scores_are_frequencies():
    """Half of the requests scored 0.5 are hard."""
    assert calibration_error([True, False], [0.5, 0.5]) == 0
    assert calibration_error([True, True], [0.5, 0.5]) == 0.5
    assert calibration_error([], []) is None


def test_macro_f1_counts_every_true_task_alike():
    """One task all right, one half right."""
    assert macro_f1([("a", "a"), ("b", "b"), ("b", "a")]) == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_the_interval_holds_the_share():
    """And narrows with more rows."""
    low, high = wilson(0.9, 100)
    assert low < 0.9 < high
    assert wilson(0.9, 10_000)[0] > low
    assert wilson(0.0, 0) == (0.0, 1.0)
