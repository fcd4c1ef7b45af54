"""Predictions of noise, against what the reference of the kernels computes."""

import numpy as np
import pytest

from tests.quantization.tiled_layer import ALL, Layer
from tvm_int8 import winograd
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.quantization.transformed_statistics import TILES, TileStatistics, TransformedStatistics
from tvm_int8.quantization.winograd_noise import data_ranges, predict_noise

LAYER = Layer()
LAYERS = {tile: LAYER if tile == LAYER.tile else Layer(tile) for tile in TILES}


def decibels(ratio):
    return abs(10 * np.log10(ratio))


@pytest.mark.parametrize("share", ["all", "none", "half"])
@pytest.mark.parametrize("tile", TILES)
def test_noise_of_tiles(tile, share):
    layer, wide = LAYERS[tile], {"all": ALL[tile], "none": (), "half": ALL[tile][::2]}[share]
    predicted = layer.noise.wide + np.delete(layer.noise.narrow, list(wide)).sum()
    measured = layer.variance(layer.tiled(wide))
    if (tile, share) == ((2, 2), "all"):  # integers are transformed exactly; weights of 16 bits are not predicted
        assert predicted == 0 and measured < 1e-3 * layer.noise.common
    else:
        assert decibels(predicted / measured) < 2  # where data are zero, nothing is rounded


def test_noise_of_direct_convolutions():
    weights = LAYER.direct(LAYER.integers.astype(np.float64), np.rint(LAYER.weight))
    # half-alike pixels are assumed, and means are taken out by bias correction
    exact = LAYER.direct(LAYER.integers.astype(np.float64), LAYER.weight)
    assert decibels(LAYER.noise.direct / (weights - exact).var((0, 2, 3)).sum()) < 2.5
    assert decibels(LAYER.noise.common / LAYER.variance(LAYER.direct(LAYER.data, LAYER.weight))) < 1


def test_loss_is_that_of_the_whole_layer():
    exact = LAYER.direct(LAYER.data, LAYER.weight)
    direct = LAYER.direct(LAYER.integers.astype(np.float64), np.rint(LAYER.weight))
    for wide in (ALL[4, 4], ()):
        measured = sqnr_db(exact, direct) - sqnr_db(exact, LAYER.tiled(wide))
        assert abs(measured - LAYER.noise.loss_db(wide)) < 2.5
    assert LAYER.noise.loss_db(()) > 5 > 1 > LAYER.noise.loss_db(ALL[4, 4])


def test_as_few_positions_are_wide_as_the_limit_allows():
    counts = []
    for limit in (-100.0, 0.5, 2.0, 6.0, 100.0):
        wide = LAYER.noise.fewest_wide(limit)
        counts.append(len(wide))
        assert list(wide) == sorted(wide)
        if limit > -100:
            assert LAYER.noise.loss_db(wide) <= limit
        if wide:  # the noise that is least among those in 16 bits would be too much
            quietest = min(wide, key=lambda p: LAYER.noise.narrow[p])
            assert LAYER.noise.loss_db(tuple(p for p in wide if p != quietest)) > limit
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (36, 0) and 0 < counts[3] < 36


def test_larger_tiles_lose_more():
    losses = [LAYERS[tile].noise.loss_db(()) for tile in TILES]
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1] + 3


@pytest.mark.parametrize("tile", TILES)
def test_ranges_are_between_those_of_channels_and_positions(tile):
    seen, ranges = LAYERS[tile].seen.tiles[tile], LAYERS[tile].ranges
    reach = np.maximum(-seen.low, seen.high)
    assert (ranges >= reach * 0.999).all() and (ranges <= reach.max(1, keepdims=True) * 1.001).all()


def test_a_silent_layer():
    none = np.zeros(4)
    tiles = {tile: TileStatistics(*np.zeros((3, winograd.positions(tile), 4)), loudness=0.0) for tile in TILES}
    silent = TransformedStatistics(none, none, none, tiles)
    for tile in TILES:
        ranges = data_ranges(tiles[tile])
        noise = predict_noise(np.zeros((16, 4, 3, 3)), np.zeros((16, 4, 3, 3)), np.ones(16), silent, tile, ranges)
        assert noise.loss_db(()) == 0 and noise.fewest_wide(0.0) == ()
