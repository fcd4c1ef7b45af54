"""Predictions of noise, against what the reference of the kernels computes."""

import numpy as np
import pytest

from tests.quantization.tiled_layer import ALL, ENDS, PADDING, Layer
from tvm_int8 import winograd
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.quantization.transformed_statistics import (
    TILES,
    TileStatistics,
    TransformedObserver,
    TransformedStatistics,
)
from tvm_int8.quantization.winograd_noise import HEADROOM, data_ranges, predict_noise

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
    seen, (ranges, centres) = LAYERS[tile].seen.tiles[tile], LAYERS[tile].ranges
    low, high = centres - ranges, centres + ranges
    bounds, room = winograd.bounds(tile, *ENDS)[:, None], 0.999 * HEADROOM**0.5
    assert (low <= np.maximum(room * seen.low, -bounds)).all()
    assert (high >= np.minimum(room * seen.high, bounds)).all()
    reached = np.maximum(-seen.low, seen.high)
    assert (ranges <= reached.max(1, keepdims=True) * HEADROOM**0.5 * 1.001).all()


@pytest.mark.parametrize("tile", TILES)
def test_nothing_reaches_beyond_what_integers_can_become(tile):
    seen = LAYER.seen.tiles[tile]
    loud = TileStatistics(seen.low * 1e6, seen.high * 1e6, seen.power)
    ranges, centres = data_ranges(loud, tile, ENDS)
    assert (ranges + np.abs(centres) <= winograd.bounds(tile, *ENDS)[:, None] * (1 + 1e-12)).all()


@pytest.mark.parametrize("tile", TILES)
def test_only_sums_of_all_data_have_a_centre(tile):
    """Behind a ReLU they are hardly ever negative; differences are of both signs, around zero."""
    ranges, centres = LAYERS[tile].ranges
    sums = np.isin(ALL[tile], winograd.one_sided(tile))
    assert sums.any() and not sums.all()
    assert (centres[~sums] == 0).all()
    assert np.abs(centres[sums]).sum() > 0.2 * ranges[sums].sum()
    assert (np.sign(centres[sums]) == np.sign(winograd.of_constant(tile)[sums])[:, None]).all()


def test_signed_data_have_no_centre():
    values = np.random.default_rng(0).standard_normal((2, 4, 16, 16)).astype(np.float32)
    observer = TransformedObserver([PADDING])
    observer.update(np.concatenate([values, -values]))
    for tile, seen in observer.statistics().tiles.items():
        ranges, centres = data_ranges(seen, tile, (-128, 127))
        assert (np.abs(centres) < 0.01 * ranges).all()


def test_a_silent_layer():
    none = np.zeros(4)
    tiles = {tile: TileStatistics(*(np.zeros((winograd.positions(tile), 4)) for _ in range(3))) for tile in TILES}
    silent = TransformedStatistics(none, none, none, tiles)
    for tile in TILES:
        ranges, centres = data_ranges(tiles[tile], tile, ENDS)
        assert not centres.any()
        noise = predict_noise(np.zeros((16, 4, 3, 3)), np.zeros((16, 4, 3, 3)), np.ones(16), silent, tile, ranges)
        assert noise.loss_db(()) == 0 and noise.fewest_wide(0.0) == ()
