"""Ways to spend bits, against all combinations."""

import itertools
import math

import numpy as np
import pytest

from tvm_int8.quantization.bit_budget import (
    METHODS,
    Goal,
    Item,
    closed_form,
    equal,
    greedy,
    optimal,
    total_bits,
    total_noise,
)
from tvm_int8.quantization.choice_knapsack import solve
from tvm_int8.quantization.closed_form import RealWidths


def random_items(seed, count=5, widths=range(1, 7)):
    rng = np.random.default_rng(seed)
    noise = [{b: float(rng.uniform(0.2, 5) * 10 ** (-rng.uniform(0.4, 0.7) * b)) for b in widths} for _ in range(count)]
    return [Item(str(i), int(rng.integers(1, 50)), own) for i, own in enumerate(noise)]


def model_items(counts, kappa=5.0, gains=None, widths=range(1, 17)):
    gains = gains or [1.0] * len(counts)
    noise = [{b: g * 10 ** (-kappa * b / 10) for b in widths} for g in gains]
    return [Item(str(i), c, n) for i, (c, n) in enumerate(zip(counts, noise, strict=True))]


def combinations(items):
    return [list(widths) for widths in itertools.product(*(item.noise for item in items))]


@pytest.mark.parametrize("seed", range(15))
def test_optimal_is_optimal_for_a_budget(seed):
    items = random_items(seed)
    budget = sum(item.count for item in items) * np.random.default_rng(seed).uniform(1, 6)
    fitting = [widths for widths in combinations(items) if total_bits(items, widths) <= budget]
    found = optimal(items, Goal(budget=budget))
    assert total_bits(items, found) <= budget
    assert total_noise(items, found) == pytest.approx(min(total_noise(items, widths) for widths in fitting), rel=1e-12)


@pytest.mark.parametrize("seed", range(15))
def test_optimal_is_optimal_for_a_noise(seed):
    items = random_items(seed)
    allowed = 10 ** -np.random.default_rng(seed).uniform(0, 2)
    quiet = [widths for widths in combinations(items) if total_noise(items, widths) <= allowed]
    found = optimal(items, Goal(allowed=allowed))
    if not quiet:
        assert found is None
        return
    assert total_noise(items, found) <= allowed
    assert total_bits(items, found) == min(total_bits(items, widths) for widths in quiet)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(5))
def test_every_method_reaches_its_goal_and_none_beats_the_optimum(method, seed):
    items = random_items(seed, 8)
    budget = 3.4 * sum(item.count for item in items)
    found = METHODS[method](items, Goal(budget=budget))
    assert total_bits(items, found) <= budget
    assert total_noise(items, found) >= total_noise(items, optimal(items, Goal(budget=budget))) * (1 - 1e-9)
    allowed = 3 * total_noise(items, [6] * 8)
    found = METHODS[method](items, Goal(allowed=allowed))
    assert total_noise(items, found) <= allowed
    assert total_bits(items, found) >= total_bits(items, optimal(items, Goal(allowed=allowed)))


@pytest.mark.parametrize("method", METHODS)
def test_goals_out_of_reach(method):
    items = random_items(0)
    assert METHODS[method](items, Goal(budget=0.5 * sum(item.count for item in items))) is None
    assert METHODS[method](items, Goal(allowed=1e-12)) is None


def test_the_papers_difference_of_bits():
    """Equation 12: b_i - b_j = (10 / kappa) log10(rho_j / rho_i); 20 dB of size are 4 bits at 5 dB per bit."""
    items = model_items([100, 10_000, 1000], 5.0)
    real = RealWidths(np.array([item.count for item in items]), [item.noise for item in items])
    small, large, middle = real.quiet(1e-3)
    np.testing.assert_allclose((small - large, small - middle), (4, 2), atol=1e-6)
    np.testing.assert_allclose(sum(10 ** (-bits / 2) for bits in (small, large, middle)), 1e-3, rtol=1e-6)
    near = zip(closed_form(items, Goal(allowed=1e-3)), (small, large, middle), strict=True)
    assert all(abs(bits - exact) < 1 for bits, exact in near)


@pytest.mark.parametrize("seed", range(5))
def test_of_two_widths_the_closed_form_takes_the_best(seed):
    items = random_items(seed, 9, widths=(4, 6))
    for average in (4.3, 5.0, 5.7):
        goal = Goal(budget=average * sum(item.count for item in items))
        assert closed_form(items, goal) == optimal(items, goal)


def test_the_closed_form_knows_gains_and_efficiencies():
    loud, quiet = closed_form(model_items([100, 100], 5.0, [10.0, 0.1]), Goal(budget=200 * 6))
    assert loud - quiet == 4
    weak, strong = (Item("", 100, {b: 10 ** (-k * b / 10) for b in range(1, 17)}) for k in (3.0, 6.0))
    widths = closed_form([weak, strong], Goal(allowed=1e-3))
    assert widths[0] in (2 * widths[1] - 1, 2 * widths[1], 2 * widths[1] + 1)


def test_where_the_model_holds_the_closed_form_is_nearly_optimal():
    items = model_items([432, 2304, 9216, 36864, 640], 5.0, widths=range(1, 13))
    for average in (3.0, 4.5, 6.0):
        goal = Goal(budget=average * sum(item.count for item in items))
        noises = [total_noise(items, method(items, goal)) for method in (closed_form, optimal)]
        assert 10 * math.log10(noises[0] / noises[1]) < 0.5


def test_equal_takes_the_nearest_width_an_item_has():
    items = [Item("a", 1, {2: 0.1, 4: 0.01}), Item("b", 1, {2: 0.1, 3: 0.05, 4: 0.01})]
    assert equal(items, Goal(budget=7)) == [2, 3]
    assert equal(items, Goal(budget=8)) == [4, 4]
    assert equal(items, Goal(allowed=0.02)) == [4, 4]


def test_greedy_uses_what_room_is_left():
    items = [Item("big", 10, {1: 1.0, 2: 0.9}), Item("small", 1, {1: 0.5, 2: 0.2, 3: 0.1})]
    assert greedy(items, Goal(budget=14)) == [1, 3]


def test_noise_that_does_not_fall_is_no_reason_for_bits():
    items = [Item("a", 10, {1: 0.2, 2: 0.3, 3: 0.2}), Item("b", 1, {1: 0.5, 2: 0.2})]
    assert optimal(items, Goal(budget=100)) == [1, 2]


def test_a_deep_network_takes_no_time():
    rng = np.random.default_rng(0)
    noises = [{b: float(rng.uniform(0.2, 5) * 10 ** (-0.55 * b)) for b in range(1, 9)} for _ in range(160)]
    items = [Item(str(i), int(rng.integers(4, 300)) * 64, noise) for i, noise in enumerate(noises)]
    goal = Goal(budget=3.3 * sum(item.count for item in items))
    found = optimal(items, goal)
    assert total_bits(items, found) <= goal.budget
    assert total_noise(items, found) <= total_noise(items, greedy(items, goal))


def test_the_knapsack_of_nothing():
    assert solve([], 1.0) == []
    assert solve([{1: (2.0, 0.0)}], 1.0) is None
