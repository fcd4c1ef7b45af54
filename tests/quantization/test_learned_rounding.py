"""Rounding for the data that weights meet: never worse than to the nearest, and near the best there is."""

import itertools

import numpy as np
import pytest

from tvm_int8.quantization.learned_rounding import learn_rounding, row_errors
from tvm_int8.quantization.second_moments import DAMPING, damped


def moments_of(inputs):
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


def nearest(weight, limit=127):
    return np.clip(np.rint(weight), -limit, limit)


def errors(integers, weight, moments):
    """Of every row, on damped moments, in float64."""
    error = integers.astype(np.float64) - weight
    return np.einsum("ok,kl,ol->o", error, damped(moments).astype(np.float64), error)


def drawn(seed):
    """Weights, some beyond the limit, and moments: of many inputs or few, with means, of any size, channels missing."""
    rng = np.random.default_rng(seed)
    rows, columns, count = (int(rng.integers(1, most)) for most in (6, 150, 80))
    limit = (127, 63)[seed % 2]
    inputs = rng.standard_normal((count, columns)) + rng.uniform(0, 2)
    if seed % 3 == 0:
        inputs = np.maximum(inputs, 0)
    if seed % 5 == 0:
        inputs[:, rng.random(columns) < 0.5] = 0
    weight = rng.uniform(-1.2, 1.2, (rows, columns)) * limit
    return weight.astype(np.float32), moments_of(inputs * 10.0 ** rng.uniform(-4, 4)), limit


def correlated(rng, rows=8, columns=200, common=3):
    """Inputs that share a few causes, as neighbouring pixels and channels do."""
    inputs = rng.standard_normal((1000, common)) @ rng.standard_normal((common, columns))
    inputs = np.maximum(inputs + 0.3 * rng.standard_normal(inputs.shape), 0)
    return rng.uniform(-127, 127, (rows, columns)).astype(np.float32), moments_of(inputs)


# What always holds


@pytest.mark.parametrize("seed", range(40))
def test_never_worse_than_to_the_nearest(seed):
    weight, moments, limit = drawn(seed)
    learned = learn_rounding(weight, moments, limit)
    assert (learned.shape, learned.dtype) == (weight.shape, np.float32)
    np.testing.assert_array_equal(learned, np.rint(learned))
    assert np.abs(learned).max() <= limit
    assert (errors(learned, weight, moments) <= errors(nearest(weight, limit), weight, moments) * (1 + 1e-5)).all()


def test_neither_argument_is_changed(rng):
    weight, moments = correlated(rng, columns=20)
    kept = weight.copy(), moments.copy()
    learn_rounding(weight, moments)
    np.testing.assert_array_equal(weight, kept[0])
    np.testing.assert_array_equal(moments, kept[1])


def test_the_scale_of_the_moments_does_not_matter(rng):
    weight, moments = correlated(rng, columns=20)
    np.testing.assert_array_equal(learn_rounding(weight, moments), learn_rounding(weight, moments * 2.0**40))


def test_rows_do_not_matter_to_each_other(rng):
    weight, moments = correlated(rng, columns=20)
    rows = [learn_rounding(row[None], moments)[0] for row in weight]
    np.testing.assert_array_equal(learn_rounding(weight, moments), rows)


def test_integers_stay_as_they_are(rng):
    weight, moments = correlated(rng)
    np.testing.assert_array_equal(learn_rounding(np.rint(weight), moments), np.rint(weight))


# Moments that say little


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-41])
def test_inputs_that_are_zero_round_to_the_nearest(rng, size):
    weight = rng.uniform(-150, 150, (3, 8)).astype(np.float32)
    np.testing.assert_array_equal(learn_rounding(weight, np.full((8, 8), size, np.float32)), nearest(weight))


def test_independent_inputs_round_to_the_nearest(rng):
    weight = rng.uniform(-150, 150, (3, 200)).astype(np.float32)
    moments = np.diag(rng.uniform(0.1, 1, 200)).astype(np.float32)
    np.testing.assert_array_equal(learn_rounding(weight, moments), nearest(weight))


def test_one_column(rng):
    weight = rng.uniform(-150, 150, (50, 1)).astype(np.float32)
    np.testing.assert_array_equal(learn_rounding(weight, np.full((1, 1), 3.0), 63), nearest(weight, 63))


def test_one_single_input(rng):
    """Rank one: the row's product with that input is what counts, and it is met nearly exactly."""
    inputs = rng.uniform(0.5, 1.5, (1, 60)).astype(np.float32)
    weight = rng.uniform(-100, 100, (20, 60)).astype(np.float32)
    learned = learn_rounding(weight, moments_of(inputs))
    off, before = (np.abs((w - weight) @ inputs[0]).mean() for w in (learned, nearest(weight)))
    assert off < 0.15 * before


def test_constant_inputs_keep_the_sum(rng):
    """What rounding by sums aims at, as a special case."""
    weight = rng.uniform(-100, 100, (50, 9)).astype(np.float32)
    learned = learn_rounding(weight, np.ones((9, 9), np.float32))
    assert np.abs((learned - weight).sum(1)).max() < 0.6


def test_channels_that_were_silent_are_not_used_to_make_up_for_others(rng):
    inputs = np.concatenate([rng.standard_normal((500, 4)), np.zeros((500, 4))], 1)
    weight = rng.uniform(-100, 100, (10, 8)).astype(np.float32)
    np.testing.assert_array_equal(learn_rounding(weight, moments_of(inputs))[:, 4:], nearest(weight)[:, 4:])


# How good it is


@pytest.mark.parametrize("limit", [127, 63])
def test_much_better_on_correlated_inputs(rng, limit):
    weight, moments = correlated(rng)
    weight *= limit / 127
    learned = learn_rounding(weight, moments, limit)
    gain = errors(nearest(weight, limit), weight, moments) / errors(learned, weight, moments)
    assert gain.min() > 1.5
    assert np.median(gain) > 6


def test_clipped_weights_are_made_up_for(rng):
    """A weight beyond the limit loses a lot; the others of its row take over what they can."""
    weight, moments = correlated(rng, rows=4, columns=40)
    weight = np.clip(weight, -100, 100)
    weight[:, 7] = 140
    learned = learn_rounding(weight, moments)
    assert (learned[:, 7] == 127).all()
    assert (errors(learned, weight, moments) < 0.5 * errors(nearest(weight), weight, moments)).all()


def test_close_to_the_best_of_all_roundings():
    """All integers within two steps, tried out: four of five rows are best, the others near."""
    ratios, plain = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        columns = int(rng.integers(2, 7))
        weight = rng.uniform(-5, 5, (1, columns)).astype(np.float32)
        inputs = np.maximum(rng.standard_normal((20, columns)) @ rng.standard_normal((columns, columns)) + 1, 0)
        moments = moments_of(inputs)
        steps = np.array(list(itertools.product((-1, 0, 1, 2), repeat=columns)), np.float32)
        best = errors(np.floor(weight) + steps, weight, moments).min()
        ratios.append(errors(learn_rounding(weight, moments), weight, moments)[0] / best)
        plain.append(errors(nearest(weight), weight, moments)[0] / best)
    ratios = np.array(ratios)
    assert ratios.min() > 1 - 1e-5
    assert (ratios < 1 + 1e-5).mean() > 0.7
    assert np.mean(ratios) < 1.15 < 1.5 < np.mean(plain)


def test_no_single_weight_can_be_moved_for_the_better_by_much(rng):
    weight, moments = correlated(rng, rows=3, columns=30)
    learned = learn_rounding(weight, moments)
    least = errors(learned, weight, moments)
    for k, step in itertools.product(range(30), (-1, 1)):
        moved = learned.copy()
        moved[:, k] += step
        assert (errors(moved, weight, moments) >= 0.97 * least).all()


def test_blocks_of_columns_pass_their_errors_on(rng):
    """More columns than are worked on at a time do as well as few."""
    weight, moments = correlated(rng, rows=16, columns=300)
    gain = errors(nearest(weight), weight, moments) / errors(learn_rounding(weight, moments), weight, moments)
    assert np.median(gain) > 6


# Its parts


def test_damping_raises_the_diagonal_alone(rng):
    moments = moments_of(rng.standard_normal((5, 8)))
    found = damped(moments)
    np.testing.assert_allclose(found - moments, DAMPING * moments.diagonal().mean() * np.eye(8), atol=1e-6)
    assert np.linalg.eigvalsh(found).min() > 0


def test_row_errors(rng):
    error, inputs = rng.standard_normal((3, 6)), rng.standard_normal((50, 6))
    expected = ((inputs @ error.T) ** 2).mean(0)
    np.testing.assert_allclose(row_errors(error, inputs.T @ inputs / 50), expected)
