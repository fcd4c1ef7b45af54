"""Predictions of noise, against what the reference of the kernels computes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest

from tests.schedules.winograd_testing import winograd_spec
from tvm_int8 import winograd
from tvm_int8.quantization.sqnr import sqnr_db
from tvm_int8.quantization.transformed_statistics import TransformedObserver, TransformedStatistics
from tvm_int8.quantization.winograd_noise import WinogradNoise, data_ranges, predict_noise
from tvm_int8.quantization.winograd_quantizer import quantize_transformed
from tvm_int8.reference import winograd_conv2d
from tvm_int8.schedules.rule import Constants

ALL = tuple(range(36))
ENDS = (0, 255)
PADDING = (1, 1, 1, 1)


@dataclass
class Layer:
    """A layer of integers, as a ReLU in front leaves them: neighbours alike, half of them zero."""

    seed: int = 0
    channels: int = 24

    @cached_property
    def weight(self):
        """In units of int8 weights."""
        w = np.random.default_rng(self.seed).standard_normal((16, self.channels, 3, 3))
        return 127 * w / np.abs(w).max((1, 2, 3), keepdims=True)

    @cached_property
    def data(self):
        rng = np.random.default_rng(self.seed + 1)
        noise = rng.standard_normal((4, self.channels, 26, 26))
        smooth = sum(noise[:, :, y : y + 24, x : x + 24] for y in range(3) for x in range(3))
        loud = smooth * rng.uniform(0.2, 1.0, (1, self.channels, 1, 1))
        return np.clip(np.maximum(loud, 0) * 255 / loud.max(), 0, 255)

    @cached_property
    def integers(self):
        return np.rint(self.data).astype(np.uint8)

    @cached_property
    def seen(self):
        observer = TransformedObserver([PADDING])
        observer.update(self.data.astype(np.float32))
        return observer.statistics()

    @cached_property
    def ranges(self):
        return data_ranges(self.seen, TILE, ENDS)

    @cached_property
    def noise(self) -> WinogradNoise:
        error = np.rint(self.weight) - self.weight
        return predict_noise(self.weight, error, np.ones(len(self.weight)), self.seen, TILE, self.ranges)

    def direct(self, data, weight):
        spec = winograd_spec(4, self.channels, 16, (24, 24), PADDING)
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(data, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3)
        )
        found = np.einsum("nchwyx,ocyx->nohw", windows, weight, optimize=True)
        assert found.shape == spec.result.shape
        return found

    def tiled(self, wide):
        found = quantize_transformed(self.weight, TILE, wide, self.ranges, ENDS)
        options = {"wide": wide, "shifted": found.shifted, "pad_value": 0}
        spec = winograd_spec(4, self.channels, 16, (24, 24), PADDING, **options)
        return winograd_conv2d.accumulate(spec, self.integers, Constants(**found.constants()))

    def variance(self, values):
        """Of all output channels together, as predictions are."""
        exact = self.direct(self.integers.astype(np.float64), self.weight)
        return np.square(values - exact).mean((0, 2, 3)).sum()


LAYER = Layer()


def decibels(ratio):
    return abs(10 * np.log10(ratio))


@pytest.mark.parametrize(
    "wide", [ALL, (), tuple(range(0, 36, 2)), tuple(range(7, 29))], ids=["all", "none", "half", "22"]
)
def test_noise_of_tiles(wide):
    predicted = LAYER.noise.wide + np.delete(LAYER.noise.narrow, list(wide)).sum()
    assert decibels(predicted / LAYER.variance(LAYER.tiled(wide))) < 1.5  # where data are zero, nothing is rounded


def test_noise_of_direct_convolutions():
    weights = LAYER.direct(LAYER.integers.astype(np.float64), np.rint(LAYER.weight))
    # half-alike pixels are assumed, and means are taken out by bias correction
    exact = LAYER.direct(LAYER.integers.astype(np.float64), LAYER.weight)
    assert decibels(LAYER.noise.direct / (weights - exact).var((0, 2, 3)).sum()) < 2.5
    assert decibels(LAYER.noise.common / LAYER.variance(LAYER.direct(LAYER.data, LAYER.weight))) < 1


def test_loss_is_that_of_the_whole_layer():
    exact = LAYER.direct(LAYER.data, LAYER.weight)
    direct = LAYER.direct(LAYER.integers.astype(np.float64), np.rint(LAYER.weight))
    for wide in (ALL, ()):
        measured = sqnr_db(exact, direct) - sqnr_db(exact, LAYER.tiled(wide))
        assert abs(measured - LAYER.noise.loss_db(wide)) < 2.5
    assert LAYER.noise.loss_db(()) > 10 > 1 > LAYER.noise.loss_db(ALL)


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


def test_ranges_are_between_those_of_channels_and_positions():
    seen = LAYER.seen
    assert (LAYER.ranges >= seen.largest * 0.999).all()
    assert (LAYER.ranges <= seen.largest.max(1, keepdims=True) * 1.001).all()
    loud = TransformedStatistics(
        *(getattr(seen, n) for n in ("mean", "mean_square", "nonzero")), seen.largest * 1e6, seen.power
    )
    assert (data_ranges(loud, TILE, ENDS) <= winograd.bounds(TILE, *ENDS)[:, None]).all()


def test_a_silent_layer():
    silent = TransformedStatistics(*(np.zeros(4) for _ in range(3)), *(np.zeros((36, 4)) for _ in range(2)))
    ranges = data_ranges(silent, TILE, ENDS)
    noise = predict_noise(np.zeros((16, 4, 3, 3)), np.zeros((16, 4, 3, 3)), np.ones(16), silent, TILE, ranges)
    assert noise.loss_db(()) == 0 and noise.fewest_wide(0.0) == ()
