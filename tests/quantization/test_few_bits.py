"""Weights of 1 to 6 bits: levels two apart, the best of three grids per channel, the scale of least squares."""

import numpy as np
import pytest

from tvm_int8.quantization.few_bits import MOST_BITS, lowest_levels, quantize_few_bits
from tvm_int8.quantization.optimal_step import optimal_step
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.quantization.weights import quantize_weight

ALL_BITS = range(1, MOST_BITS + 1)


def real(values, scale, axis=0):
    spread = [-1 if i == axis else 1 for i in range(values.ndim)]
    return values * (scale.reshape(spread) if scale.ndim else scale)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_integers_are_levels_two_apart(bits, rng):
    weight = rng.standard_normal((8, 5, 3, 3)).astype(np.float32)
    values, scale, lowest = quantize_few_bits(weight, 0, bits)
    assert (values.dtype, scale.dtype, lowest.dtype) == (np.int8, np.float32, np.int8)
    assert (values.shape, scale.shape, lowest.shape) == (weight.shape, (8,), (8,))
    codes = values.reshape(8, -1).astype(int) - lowest[:, None]
    assert (codes % 2 == 0).all()
    assert codes.min() >= 0
    assert codes.max() // 2 <= 2**bits - 1
    assert np.abs(values.astype(int)).max() <= 64
    assert set(lowest.tolist()) <= set(lowest_levels(bits))
    assert (scale > 0).all()


@pytest.mark.parametrize(("density", "draw"), [("gaussian", "standard_normal"), ("laplacian", "laplace")])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_it_reaches_the_optimal_quantiser_of_the_density(bits, density, draw, rng):
    weight = getattr(rng, draw)(size=(64, 576)).astype(np.float32)
    values, scale, _ = quantize_few_bits(weight, 0, bits)
    assert sqnr_db(weight, real(values, scale)) > optimal_step(density, bits)[1] - 0.1


@pytest.mark.parametrize("bits", range(2, MOST_BITS + 1))
@pytest.mark.parametrize("columns", [9, 576])
def test_it_beats_symmetric_integers(bits, columns, rng):
    weight = rng.laplace(size=(64, columns)).astype(np.float32)
    values, scale, _ = quantize_few_bits(weight, 0, bits)
    symmetric = real(*quantize_weight(weight, 0, bits=bits, clipping="mse"))
    assert sqnr_db(weight, real(values, scale)) > sqnr_db(weight, symmetric)


def test_the_levels_can_be_read_back_exactly():
    scale, codes = np.float32(0.25), np.arange(16)
    for lowest in lowest_levels(4):
        weight = (scale * (2 * codes + lowest)).reshape(1, -1)
        values, found, _ = quantize_few_bits(weight, 0, 4)
        np.testing.assert_allclose(real(values, found), weight, rtol=1e-6)


def test_errors_count_as_much_as_they_are_important(rng):
    weight = rng.standard_normal((4, 6, 3, 3)).astype(np.float32)
    weight[:, 0] *= 6
    importance = np.ones((6, 1, 1), np.float32)
    importance[0] = 1e-6
    errors = []
    for given in (None, importance):
        values, scale, _ = quantize_few_bits(weight, 0, 3, given)
        errors.append(((real(values, scale) - weight)[:, 1:] ** 2).sum())
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("axis", [0, 1, None])
def test_any_axis(axis, rng):
    weight = rng.standard_normal((5, 7, 2, 2)).astype(np.float32)
    values, scale, lowest = quantize_few_bits(weight, axis, 4)
    assert scale.shape == lowest.shape == (() if axis is None else (weight.shape[axis],))
    if axis == 1:
        other = quantize_few_bits(weight.swapaxes(0, 1), 0, 4)
        np.testing.assert_array_equal(values, other[0].swapaxes(0, 1))
        np.testing.assert_array_equal(scale, other[1])


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("size", [0.0, 1e-42])
def test_channels_of_nothing_become_zero(bits, size):
    values, scale, lowest = quantize_few_bits(np.full((2, 9), size, np.float32), 0, bits)
    assert not values.any()
    assert np.isfinite(scale).all()
    assert ((values - lowest[:, None].astype(int)) % 2 == 0).all()


def test_channels_do_not_depend_on_each_other(rng):
    weight = rng.standard_normal((300, 700)).astype(np.float32)
    values, scale, lowest = quantize_few_bits(weight, 0, 3)
    for channel in (0, 93, 94, 299):
        alone = quantize_few_bits(weight[channel : channel + 1], 0, 3)
        np.testing.assert_array_equal(alone[0][0], values[channel])
        assert (alone[1][0], alone[2][0]) == (scale[channel], lowest[channel])
