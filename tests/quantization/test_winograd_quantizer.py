"""Integers and scales of transformed weights and data: what becomes of zeros, of centres, of mean errors."""

import numpy as np
import pytest

from tests.quantization.tiled_layer import ALL, Layer
from tests.schedules.winograd_testing import winograd_spec
from tvm_int8 import winograd
from tvm_int8.quantization.transformed_statistics import TILES
from tvm_int8.quantization.winograd_quantizer import WinogradWay, quantize_transformed
from tvm_int8.reference import winograd_conv2d
from tvm_int8.schedules.rule import Constants

CHANNELS, OUTPUTS = 20, 18
ZERO_POINTS = (0, 1, 77, 128, 255)


def draw_weight(seed=0):
    return np.random.default_rng(seed).uniform(-127, 127, (OUTPUTS, CHANNELS, 3, 3))


def draw_ranges(tile, ends, seed=0):
    """Ranges and centres that hold a part of what data can become, another in every channel."""
    rng, bounds = np.random.default_rng(seed), winograd.bounds(tile, *ends)[:, None]
    part = rng.uniform(0.1, 0.5, (len(bounds), CHANNELS))
    one_sided = np.isin(ALL[tile], winograd.one_sided(tile))[:, None]
    return part * bounds, np.where(one_sided, rng.uniform(-0.5, 0.5, part.shape) * bounds, 0.0)


def of_zero_point(zero_point):
    return -zero_point, 255 - zero_point


def accumulate(quantizer, data, zero_point):
    """Accumulators float32 [N, O, H, W] of data uint8 [N, C, H, W]."""
    options = {"tile": quantizer.tile, "wide": quantizer.wide, "shifted": quantizer.shifted, "pad_value": zero_point}
    spec = winograd_spec(len(data), data.shape[1], quantizer.start.shape[1], data.shape[2:], **options)
    return winograd_conv2d.accumulate(spec, data, Constants(**quantizer.constants()))


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
@pytest.mark.parametrize("tile", TILES)
def test_real_zeros_are_exact(tile, zero_point):
    """A map of zero points and padding, whatever ranges and centres are: nothing of them is left."""
    ends = of_zero_point(zero_point)
    ranges, centres = draw_ranges(tile, ends)
    found = quantize_transformed(draw_weight(), tile, (), ranges, ends, centres)
    zeros = np.full((1, CHANNELS, 7, 9), zero_point, np.uint8)
    assert not accumulate(found, zeros, zero_point).any()


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
@pytest.mark.parametrize("tile", TILES)
def test_in_16_bits_real_zeros_are_as_exact_as_other_data(tile, zero_point):
    """What is left is the transform's rounding: of small tiles, none."""
    weight = draw_weight()
    found = quantize_transformed(weight, tile, ALL[tile], None, of_zero_point(zero_point))
    data = np.random.default_rng(1).integers(0, 256, (1, CHANNELS, 12, 12)).astype(np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(data.astype(float) - zero_point, (3, 3), (2, 3))
    exact = np.einsum("nchwyx,ocyx->nohw", windows, weight)
    noise = (accumulate(found, data, zero_point)[:, :, 1:-1, 1:-1] - exact).std()
    of_zeros = accumulate(found, np.full_like(data, zero_point), zero_point)
    if tile == (2, 2) or zero_point == 0:
        assert not of_zeros.any()
    assert np.sqrt(np.square(of_zeros).mean()) < 2 * noise < 4e-3 * exact.std()


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
@pytest.mark.parametrize("tile", TILES)
def test_centres_are_whole_steps(tile, zero_point):
    """From what real zeros become, in steps of the rounded data: zeros are rounded as without a centre."""
    ends, unit = of_zero_point(zero_point), 1 << winograd.shift(tile)
    ranges, centres = draw_ranges(tile, ends)
    found = quantize_transformed(draw_weight(), tile, (), ranges, ends, centres)
    steps, shifted = ranges * unit / 127, list(found.shifted)
    zeros = np.rint(winograd.of_constant(tile) * zero_point * unit)[shifted, None]
    from_zeros = found.input_offset - zeros
    inside = np.abs(found.input_offset) < 32767
    whole = np.rint(from_zeros / steps[shifted]) * steps[shifted]
    assert inside.mean() > 0.8
    assert (np.abs(from_zeros - whole)[inside] <= 0.51 + 4 * (zero_point > 0)).all()  # zeros are rounded on the way
    assert (np.abs(from_zeros - centres[shifted] * unit)[inside] <= (steps[shifted] / 2 + 5)[inside]).all()


@pytest.mark.parametrize("tile", TILES)
def test_without_centre_and_zero_point_nothing_is_subtracted(tile):
    ends = of_zero_point(0)
    ranges, centres = draw_ranges(tile, ends)
    assert quantize_transformed(draw_weight(), tile, (), ranges, ends, centres).shifted == winograd.one_sided(tile)
    without = quantize_transformed(draw_weight(), tile, (), ranges, ends)
    assert without.shifted == () and without.input_offset.shape == (0, CHANNELS) and not without.start.any()


@pytest.mark.parametrize("tile", TILES)
def test_the_mean_error_of_rounded_weights_is_taken_out(tile):
    """Data that are their means everywhere, rounded finely: all that is left is the rounding of weights."""
    ends, means = of_zero_point(0), np.random.default_rng(1).integers(20, 200, CHANNELS)
    ones = winograd.of_constant(tile)[:, None]
    ranges = np.maximum(np.abs(ones) * means, 1.0) * np.ones(CHANNELS)
    data = np.broadcast_to(means.astype(np.uint8)[:, None, None], (1, CHANNELS, 14, 14))
    weight = draw_weight()
    exact = np.einsum("ocyx,c->o", weight, means)
    errors = []
    for given in (None, means.astype(np.float64)):
        found = accumulate(quantize_transformed(weight, tile, (), ranges, ends, None, given), data, 0)
        errors.append(np.abs(found[0, :, 4:8, 4:8].mean((1, 2)) - exact).mean())
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("tile", TILES)
def test_the_mean_error_of_a_layer_is_taken_out(tile):
    layer = Layer(tile)
    exact = layer.direct(layer.integers.astype(np.float64), layer.weight)
    means = layer.integers.mean((0, 2, 3))
    errors = [np.abs((layer.tiled((), given) - exact).mean((0, 2, 3))).mean() for given in (None, means)]
    assert errors[1] < 0.7 * errors[0]


def test_mean_errors_change_nothing_but_where_sums_begin():
    layer = Layer()
    without, found = layer.quantizer((3, 8)), layer.quantizer((3, 8), layer.seen.mean)
    for role, array in found.constants().items():
        assert (array == without.constants()[role]).all() == (role != "start"), role
    changed = (found.start != without.start).any(1)
    assert not changed[[3, 8]].any()  # weights of 16 bits have no error worth it


def test_ways_say_what_they_are():
    def no_quantizer():
        raise AssertionError("not asked for")

    assert str(WinogradWay((4, 4), (), 2.25, no_quantizer)) == "Winograd 4x4: SQNR -2.2 dB"
    wide = WinogradWay((4, 2), (1, 2), -0.5, no_quantizer)
    assert str(wide) == "Winograd 4x2, 2 of 24 positions in 16 bits: SQNR +0.5 dB"
    assert "not predicted" in str(WinogradWay((2, 2), tuple(range(16)), None, no_quantizer))
