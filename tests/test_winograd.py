"""Winograd's transforms: the algebra, exactly; bounds of integers; tiles."""

import itertools

import numpy as np
import pytest

from tests.schedules.winograd_testing import winograd_spec
from tvm_int8 import winograd
from tvm_int8.quantization import arithmetic
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.reference import winograd_conv2d
from tvm_int8.schedules.rule import Constants
from tvm_int8.specs import Output

TILES = list(itertools.product(winograd.OUTPUTS, repeat=2))


class Floats:
    add, sub = np.add, np.subtract

    @staticmethod
    def root(a):
        return a * winograd.ROOT


@pytest.mark.parametrize("outputs", winograd.OUTPUTS)
def test_matrices_compute_a_filter(outputs, rng):
    matrices = winograd.matrices(outputs)
    d, g = rng.standard_normal(outputs + 2), rng.standard_normal(3)
    expected = [d[i : i + 3] @ g for i in range(outputs)]
    np.testing.assert_allclose(matrices.result @ ((matrices.weight @ g) * (matrices.data @ d)), expected, atol=1e-13)


@pytest.mark.parametrize("tile", TILES)
def test_products_of_tiles_are_a_convolution(tile, rng):
    data, weight = rng.standard_normal((2, 5, 9, 11)), rng.standard_normal((4, 5, 3, 3))
    padding = (1, 0, 1, 2)
    tiles = winograd.tiles_of(data, tile, padding, 0)
    transformed = winograd.transformed_data(tiles, tile, Floats)
    products = np.einsum("pncyx,poc->pnoyx", transformed, winograd.transformed_weight(weight, tile))
    rows, columns = (winograd.matrices(outputs).result for outputs in tile)
    products = products.reshape(tile[0] + 2, tile[1] + 2, *products.shape[1:])
    found = np.einsum("yi,xj,ijnoab->noaybx", rows, columns, products)
    n, o, ty, _, tx, _ = found.shape
    expected = arithmetic.conv2d_accumulate(data.astype(np.float32), weight.astype(np.float32), padding=padding)
    found = found.reshape(n, o, ty * tile[0], tx * tile[1])[:, :, : expected.shape[2], : expected.shape[3]]
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("zero_point", [0, 7, 128, 255])
@pytest.mark.parametrize("tile", TILES)
def test_integers_stay_within_their_bounds(tile, zero_point, rng):
    """Also those of the data that drive a position to its end."""
    low, high = -zero_point, 255 - zero_point
    bounds = winograd.bounds(tile, low, high) << winograd.shift(tile)
    assert bounds.max() < 1 << 15
    signs = np.stack([np.outer(r, c) for r in winograd.matrices(tile[0]).data for c in winograd.matrices(tile[1]).data])
    worst = np.concatenate([np.where(signs * s > 0, high, low) for s in (1, -1)])
    data = np.concatenate([worst, rng.integers(low, high + 1, (500, *worst.shape[1:]))])
    found = winograd.transformed_data(data.astype(np.int32) << winograd.shift(tile), tile, winograd.Integers)
    assert (np.abs(found).max(1) <= bounds).all()
    assert (np.abs(found).max(1) >= bounds - 24).all()


@pytest.mark.parametrize("tile", TILES)
def test_rounding_of_transforms_is_small(tile, rng):
    """Against steps of a 255th of what transformed data reach."""
    data, unit = rng.integers(0, 256, (2000, tile[0] + 2, tile[1] + 2)), 1 << winograd.shift(tile)
    found = winograd.transformed_data(data.astype(np.int32) * unit, tile, winograd.Integers)
    exact = winograd.transformed_data(data.astype(np.float64) * unit, tile, Floats)
    steps = np.abs(exact).max(1, keepdims=True) / 127
    assert np.square((found - exact) / steps).mean() < 0.02 / 12


def test_tiles_overlap_and_are_filled_up():
    data = np.arange(30).reshape(1, 1, 5, 6)
    tiles = winograd.tiles_of(data, (2, 4), (1, 1, 1, 1), -1)
    assert tiles.shape == (1, 1, 3, 2, 4, 6)
    assert tiles[0, 0, 0, 0, 0].tolist() == [-1] * 6
    assert tiles[0, 0, 1, 0, 0].tolist() == [-1, 6, 7, 8, 9, 10]
    assert tiles[0, 0, 2, 1, 1].tolist() == [27, 28, 29, -1, -1, -1]


def test_points_near_one_amplify_less():
    """As the choice of points claims: against 0, +-1, +-2, for white data and weights."""
    usual = {
        "data": [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0],
                 [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]],
        "weight": [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
                   [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
        "result": [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    }  # fmt: skip
    usual = winograd.Matrices(**{name: np.array(matrix, np.float64) for name, matrix in usual.items()})

    def noise(m):
        axis = np.square(m.result).mean(0) * np.square(m.weight).sum(1) * np.square(m.data).sum(1)
        return axis.sum() ** 2

    def gain_db(m):
        return 10 * np.log10(noise(m) / winograd.TAPS**2)

    assert gain_db(usual) == pytest.approx(20.6, abs=0.1)
    assert gain_db(winograd.matrices(4)) == pytest.approx(14.0, abs=0.1)
    assert gain_db(winograd.matrices(2)) == pytest.approx(4.4, abs=0.1)


def test_float_tiles_are_nearly_as_exact_as_direct_convolutions(rng):
    """As docs/winograd.md says, of 64 channels: 131 dB directly, 133 by 2x2 tiles, 125 by 4x4."""
    x = np.maximum(rng.standard_normal((1, 64, 24, 24)), 0).astype(np.float32)
    weight = (rng.standard_normal((16, 64, 3, 3)) / 24).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    exact = np.einsum("nchwyx,ocyx->nohw", windows.astype(np.float64), weight.astype(np.float64), optimize=True)
    direct = np.zeros(exact.shape, np.float32)
    for c, y, x_ in np.ndindex(64, 3, 3):
        direct = arithmetic.fma(windows[:, None, c, :, :, y, x_], weight[:, c, y, x_, None, None], direct)
    assert sqnr_db(exact, direct) == pytest.approx(131, abs=1.5)
    for tile, wanted_db in (((2, 2), 133), ((4, 4), 125)):
        spec = winograd_spec(1, 64, 16, (24, 24), tile=tile, dtype="float32", output=Output("float32"))
        transformed = winograd.transformed_weight(weight, tile).astype(np.float32)
        found = winograd_conv2d.accumulate(spec, x, Constants(transformed))
        assert sqnr_db(exact, found) == pytest.approx(wanted_db, abs=1.5)
