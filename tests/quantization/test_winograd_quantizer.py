"""Integers and scales of transformed weights and data: what becomes of zeros, of quiet tiles, of mean errors."""

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
    """A part of what data can become, another in every channel."""
    bounds = winograd.bounds(tile, *ends)[:, None]
    return np.random.default_rng(seed).uniform(0.1, 0.5, (len(bounds), CHANNELS)) * bounds


def of_zero_point(zero_point):
    return -zero_point, 255 - zero_point


def exact_sums(data, weight, zero_point):
    """Of the direct convolution, without padding."""
    windows = np.lib.stride_tricks.sliding_window_view(data.astype(float) - zero_point, (3, 3), (2, 3))
    return np.einsum("nchwyx,ocyx->nohw", windows, weight, optimize=True)


def accumulate(quantizer, data, zero_point):
    """Accumulators float32 [N, O, H, W] of data uint8 [N, C, H, W]."""
    options = {"tile": quantizer.tile, "wide": quantizer.wide, "pad_value": zero_point}
    spec = winograd_spec(len(data), data.shape[1], OUTPUTS, data.shape[2:], **options)
    return winograd_conv2d.accumulate(spec, data, Constants(**quantizer.constants()))


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
@pytest.mark.parametrize("width", ["narrow", "wide", "half"])
@pytest.mark.parametrize("tile", TILES)
def test_real_zeros_are_exact(tile, width, zero_point):
    """A map of zero points and padding: nothing of them is left."""
    ends, wide = of_zero_point(zero_point), {"narrow": (), "wide": ALL[tile], "half": ALL[tile][::2]}[width]
    found = quantize_transformed(draw_weight(), tile, wide, draw_ranges(tile, ends), ends)
    zeros = np.full((1, CHANNELS, 7, 9), zero_point, np.uint8)
    assert not accumulate(found, zeros, zero_point).any()


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
@pytest.mark.parametrize("tile", TILES)
def test_sixteen_bits_lose_next_to_nothing(tile, zero_point):
    weight = draw_weight()
    found = quantize_transformed(weight, tile, ALL[tile], None, of_zero_point(zero_point))
    data = np.random.default_rng(1).integers(0, 256, (1, CHANNELS, 12, 12)).astype(np.uint8)
    noise = accumulate(found, data, zero_point)[:, :, 1:-1, 1:-1] - exact_sums(data, weight, zero_point)
    assert noise.std() < 2e-3 * exact_sums(data, weight, zero_point).std()


@pytest.mark.parametrize("wide", [(), (0, 7)])
def test_a_quiet_tile_loses_as_little_as_a_loud_one(wide):
    """The same data at a sixteenth: noise falls with them, though ranges stay."""
    weight, tile, ends = draw_weight(), (4, 4), of_zero_point(0)
    found = quantize_transformed(weight, tile, wide, draw_ranges(tile, ends), ends)
    loud = (16 * np.random.default_rng(1).integers(0, 16, (1, CHANNELS, 14, 14))).astype(np.uint8)
    noises = []
    for data in (loud, loud // 16):
        exact = exact_sums(data, weight, 0)
        noises.append((accumulate(found, data, 0)[:, :, 1:-1, 1:-1] - exact).std() / exact.std())
    assert noises[1] < 1.3 * noises[0]


def test_nothing_saturates_however_loud_data_are():
    """Ranges only say how data compare: those seen in calibration may have been a tenth of these."""
    weight, tile, ends = draw_weight(), (4, 2), of_zero_point(0)
    data = np.random.default_rng(1).integers(0, 256, (1, CHANNELS, 14, 14)).astype(np.uint8)
    exact, noises = exact_sums(data, weight, 0), []
    for part in (1.0, 0.1):
        found = quantize_transformed(weight, tile, (), part * draw_ranges(tile, ends), ends)
        noises.append((accumulate(found, data, 0)[:, :, 1:-1, 1:-1] - exact).std())
    assert noises[1] < 1.1 * noises[0]


@pytest.mark.parametrize("tile", TILES)
def test_the_mean_error_of_rounded_weights_is_taken_out(tile):
    """Of data that are never zero; what rounding them adds has no mean."""
    rng, ends = np.random.default_rng(1), of_zero_point(0)
    data = rng.integers(100, 256, (1, CHANNELS, 66, 66)).astype(np.uint8)
    weight = draw_weight()
    found = quantize_transformed(weight, tile, (), draw_ranges(tile, ends), ends, data.mean((0, 2, 3)))
    error = (accumulate(found, data, 0)[:, :, 1:-1, 1:-1] - exact_sums(data, weight, 0)).mean((0, 2, 3))
    assert np.abs(error + found.correction).mean() < 0.4 * np.abs(error).mean()


@pytest.mark.parametrize("tile", TILES)
def test_the_mean_error_of_a_layer_is_taken_out(tile):
    layer = Layer(tile)
    exact = layer.direct(layer.integers.astype(np.float64), layer.weight)
    means = layer.integers.mean((0, 2, 3))
    errors = [np.abs((layer.tiled((), given) - exact).mean((0, 2, 3))).mean() for given in (None, means)]
    assert errors[1] < 0.7 * errors[0]


def test_mean_errors_change_nothing_but_the_correction():
    layer = Layer()
    without, found = layer.quantizer((3, 8)), layer.quantizer((3, 8), layer.seen.mean)
    for role, array in found.constants().items():
        np.testing.assert_array_equal(array, without.constants()[role])
    assert without.correction is None and found.correction.all()
    assert not layer.quantizer(ALL[4, 4], layer.seen.mean).correction.any()  # 16 bits have no error worth it


def test_ways_say_what_they_are():
    def no_quantizer():
        raise AssertionError("not asked for")

    assert str(WinogradWay((4, 4), (), 2.25, no_quantizer)) == "Winograd 4x4: SQNR -2.2 dB"
    wide = WinogradWay((4, 2), (1, 2), -0.5, no_quantizer)
    assert str(wide) == "Winograd 4x2, 2 of 24 positions in 16 bits: SQNR +0.5 dB"
    assert "not predicted" in str(WinogradWay((2, 2), tuple(range(16)), None, no_quantizer))
