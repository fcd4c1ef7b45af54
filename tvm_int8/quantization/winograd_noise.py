"""What computing a convolution by tiles costs in accuracy, predicted from calibration's statistics.

    direct      w (x + e) + v x          e  rounding of the data     v  rounding of the weights
    tiles       A^T [ U (T + r + d) ] A  U, T  transformed weights and data, of x + e
                                         r  rounding in the transform, correlated between positions
                                         d  rounding to 8 bits, in narrow positions only, in steps of a tile's own

All are variances of the accumulators, summed over output channels with the squares of their scales.  The rounding of
transformed weights is smaller by an order of magnitude than that of data to 8 bits, and none in wide positions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tvm_int8 import winograd
from tvm_int8.quantization.transformed_statistics import Tile, TileStatistics, TransformedStatistics
from tvm_int8.quantization.winograd_quantizer import reached

_ALIKE = 0.5
"""How alike the pixels under a kernel are: the share of an error of its weights that its sum makes."""
_SAMPLES = 4096


@dataclass(frozen=True)
class WinogradNoise:
    """Variances of one layer.

    Parameters
    ----------
    common : float
        From the rounding of its data to integers.
    direct : float
        From the int8 weights of the direct convolution.
    wide : float
        From tiles, all positions in 16 bits.
    narrow : [positions]
        What 8 bits in a position add.
    """

    common: float
    direct: float
    wide: float
    narrow: np.ndarray

    def loss_db(self, wide: tuple[int, ...]) -> float:
        """Return what the layer's SQNR loses against the direct convolution, these positions in 16 bits."""
        added = self.wide + np.delete(self.narrow, list(wide)).sum()
        return 10 * math.log10(max(self.common + added, 1e-30) / max(self.common + self.direct, 1e-30))

    def fewest_wide(self, max_loss_db: float) -> tuple[int, ...]:
        """Return the least positions, those with most noise first, that keep the loss within a limit; or all."""
        order = np.argsort(-self.narrow, kind="stable").tolist()
        for count in range(len(order)):
            if self.loss_db(tuple(order[:count])) <= max_loss_db:
                return tuple(sorted(order[:count]))
        return tuple(range(len(order)))


Ranges = Callable[[TileStatistics], np.ndarray]
"""A rule like `data_ranges`."""


def data_ranges(seen: TileStatistics) -> np.ndarray:
    """How far transformed data reach, for `winograd_quantizer.quantize_transformed`: float64 [positions, C].

    The geometric mean of what a channel reaches and of what any channel does: half of the scale moves into the weights,
    as in SmoothQuant (Xiao et al. 2023, arXiv:2211.10438).

    Parameters
    ----------
    seen : TileStatistics
        In units of the data's integers.
    """
    reach = np.maximum(-seen.low, seen.high)
    return np.sqrt(reach * reach.max(1, keepdims=True))


def predict_noise(
    weight: np.ndarray,
    error: np.ndarray,
    scale: np.ndarray,
    seen: TransformedStatistics,
    tile: Tile,
    ranges: np.ndarray,
) -> WinogradNoise:
    """Predict the noise of one layer.

    Parameters
    ----------
    weight : float64 [O, C, 3, 3]
        Real, in units of the int8 weights.
    error : float64 [O, C, 3, 3]
        What the int8 weights are off by.
    scale : float64 [O], of the weights
    seen : TransformedStatistics
        In units of the data's integers.
    tile, ranges : as of `winograd_quantizer.quantize_transformed`
    """
    square, power = scale**2, seen.tiles[tile].power
    transformed = winograd.transformed_weight(weight, tile)
    energy = np.einsum("poc,o->pc", transformed**2, square)
    steps = reached(ranges, tile) / 127
    data = (energy * np.minimum(steps**2 / 12 * seen.tiles[tile].loudness, power)).sum(1)
    peaks = np.stack([np.abs(u * step).max(1) / 127 for u, step in zip(transformed, steps, strict=True)])
    rounded = (peaks**2 @ square) / 12 * (power / steps**2).sum(1)
    by_channel = np.einsum("ocyx,o->c", weight**2, square)
    spread = np.maximum(seen.mean_square - seen.mean**2, 0.0)
    own, together = (error**2).sum((2, 3)), error.sum((2, 3)) ** 2
    direct = ((1 - _ALIKE) * own + _ALIKE * together) @ spread @ square
    mixed = np.einsum("pq,poc->qoc", _rounding(tile), transformed)
    wide = np.einsum("poc,poc,o->", mixed, transformed, square)
    common = float(by_channel @ seen.nonzero) / 12
    return WinogradNoise(common, float(direct), float(wide), (data + rounded) * winograd.result_weights(tile))


@functools.cache
def _rounding(tile: Tile) -> np.ndarray:
    """Covariance [positions, positions] of what rounding in the data's transform does, as it adds up in the outputs."""
    rows, columns = (winograd.matrices(outputs) for outputs in tile)
    size = rows.data.shape[1], columns.data.shape[1]
    tiles = np.random.default_rng(0).integers(-255, 256, (_SAMPLES, *size)).astype(np.int32)
    bits = winograd.shift(tile)
    found = winograd.transformed_data(tiles << bits, tile, winograd.Integers) / (1 << bits)
    exact = np.einsum("iy,nyx,jx->ijn", rows.data, tiles, columns.data, optimize=True)
    lost = found - exact.reshape(found.shape)
    gains = [m.result.T @ m.result / len(m.result) for m in (rows, columns)]
    return (lost @ lost.T / _SAMPLES) * np.kron(*gains)
