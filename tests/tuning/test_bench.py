"""Times of one candidate relative to another's."""

import pytest

from tvm_int8.tuning.bench import relative_time


def test_turns_are_compared_with_the_same_turn():
    """However slow the machine was meanwhile."""
    assert relative_time([1.0, 8.0, 1.2], [2.0, 16.0, 2.4]) == pytest.approx(0.5)


def test_one_disturbed_turn_counts_for_nothing():
    assert relative_time([1.0, 1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 90.0, 2.0, 2.0]) == pytest.approx(0.5)


def test_who_was_given_up_is_not_fast_because_the_other_was_disturbed():
    heuristic = [5.0, 5.0, 5.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert relative_time([1.0, 1.0, 1.0], heuristic) == pytest.approx(2.0)
    assert relative_time([1.5, 1.5, 1.5], [1.0] * 9) == pytest.approx(1.5)
