"""A 3x3 convolution of integers with its data, its statistics, and what tiles make of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tests.schedules.winograd_testing import winograd_spec
from tvm_int8 import winograd
from tvm_int8.quantization.transformed_statistics import TILES, TransformedObserver
from tvm_int8.quantization.winograd_noise import WinogradNoise, data_ranges, predict_noise
from tvm_int8.quantization.winograd_quantizer import quantize_transformed
from tvm_int8.reference import winograd_conv2d
from tvm_int8.schedules.rule import Constants

ALL = {tile: tuple(range(winograd.positions(tile))) for tile in TILES}
ENDS = (0, 255)
PADDING = (1, 1, 1, 1)


@dataclass
class Layer:
    """A layer of integers, as a ReLU in front leaves them: neighbours alike, half of them zero."""

    tile: tuple[int, int] = (4, 4)
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
        return data_ranges(self.seen.tiles[self.tile])

    @cached_property
    def noise(self) -> WinogradNoise:
        error, scale = np.rint(self.weight) - self.weight, np.ones(len(self.weight))
        return predict_noise(self.weight, error, scale, self.seen, self.tile, self.ranges)

    def direct(self, data, weight):
        spec = winograd_spec(4, self.channels, 16, (24, 24), PADDING)
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(data, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3)
        )
        found = np.einsum("nchwyx,ocyx->nohw", windows, weight, optimize=True)
        assert found.shape == spec.result.shape
        return found

    def quantizer(self, wide, means=None):
        return quantize_transformed(self.weight, self.tile, wide, self.ranges, ENDS, means)

    def tiled(self, wide, means=None):
        """Accumulators."""
        found = self.quantizer(wide, means)
        spec = winograd_spec(4, self.channels, 16, (24, 24), PADDING, tile=self.tile, wide=wide, pad_value=0)
        acc = winograd_conv2d.accumulate(spec, self.integers, Constants(**found.constants()))
        return acc if found.correction is None else acc + found.correction.reshape(1, -1, 1, 1)

    def variance(self, values):
        """Of all output channels together, as predictions are."""
        exact = self.direct(self.integers.astype(np.float64), self.weight)
        return np.square(values - exact).mean((0, 2, 3)).sum()
