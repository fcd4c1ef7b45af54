"""How a convolution is quantised in the Winograd domain: integers and scales of its transformed weights and data.

Every position of a transformed tile has its own scales: of data one per input channel, of weights one per output
channel, both in the sense of LoWino (Li et al. 2021).  The factors of the data's channels are in the weights, where
they cost nothing, as factors of a tensor's channels are in `channel_scales`.  On top of it every tile has a scale that
the kernel finds when it runs: most tiles of a map are far quieter than the loudest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tvm_int8 import winograd

_LARGEST_SUM = 2**31 - 1
_WORD = 32767
_BYTE = 127
_LEVEL = 2048.0
"""What transformed int16 data reach at least, after their scale: a 16th of a step, in a tile that reaches as far."""


@dataclass(frozen=True)
class WinogradQuantizer:
    """One way to compute a 3x3 convolution of integers by tiles; parameters as of `tvm_int8.specs.WinogradConv2d`.

    Parameters
    ----------
    tile : (rows, columns) of outputs
    wide : positions of 16 bits
    weight : int8 [narrow positions, O, C]
    wide_weight : int16 [wide positions, O, C]
    input_scale : int16 [narrow positions, C]
    output_scale : float32 [positions, O]
    correction : float64 [O], optional
        Added to the accumulators: mean errors, taken out.
    """

    tile: tuple[int, int]
    wide: tuple[int, ...]
    weight: np.ndarray
    wide_weight: np.ndarray
    input_scale: np.ndarray
    output_scale: np.ndarray
    correction: np.ndarray | None = None

    def constants(self) -> dict[str, np.ndarray]:
        """The order's constants, by role."""
        roles = "weight", "wide_weight", "input_scale", "output_scale"
        return {role: getattr(self, role) for role in roles}


@dataclass(frozen=True, eq=False)
class WinogradWay:
    """A way to compute a convolution by tiles, that can be quantised so.

    Parameters
    ----------
    tile, wide : as of `WinogradQuantizer`
    loss_db : float or None
        What the layer's SQNR is expected to lose against the direct convolution. None: not known without data.
    quantize : callable
        Returns the `WinogradQuantizer`, which is as large as the weights and takes a while.
    """

    tile: tuple[int, int]
    wide: tuple[int, ...]
    loss_db: float | None
    quantize: Callable[[], WinogradQuantizer]

    def __str__(self) -> str:
        """Say what it is, and what it costs."""
        rows, columns = self.tile
        wide = f", {len(self.wide)} of {winograd.positions(self.tile)} positions in 16 bits" if self.wide else ""
        loss = "accuracy not predicted without data" if self.loss_db is None else f"SQNR {-self.loss_db:+.1f} dB"
        return f"Winograd {rows}x{columns}{wide}: {loss}"


def quantize_transformed(
    weight: np.ndarray,
    tile: tuple[int, int],
    wide: tuple[int, ...],
    ranges: np.ndarray | None,
    data_ends: tuple[int, int],
    means: np.ndarray | None = None,
) -> WinogradQuantizer:
    """Round transformed weights, given what transformed data reach.

    Parameters
    ----------
    weight : float64 [O, C, 3, 3]
        Real, in units of the convolution's int8 weights: what an accumulator is a sum of.
    tile, wide : as of `WinogradQuantizer`
    ranges : float64 [positions, C], or None where all positions are wide
        How far transformed data reach, in units of the data's integers: of all positions and channels in proportion.
    data_ends : (int, int)
        Lowest and highest integer of the data, less their zero point.
    means : float64 [C], optional
        Of the data, in units of their integers, less their zero point: what rounding weights adds on average is taken
        out (see `bias_correction`).
    """
    transformed = winograd.transformed_weight(weight, tile)
    unit = 1 << winograd.shift(tile)
    narrow, words = [p for p in range(len(transformed)) if p not in wide], list(wide)
    output_scale = np.zeros(transformed.shape[:2], np.float32)

    reach = (np.zeros((len(transformed), weight.shape[1])) if ranges is None else ranges)[narrow] * unit
    level = max(reach.min(initial=_WORD), _LEVEL)
    multiplier = np.clip(np.rint(level / np.maximum(reach, 1e-9) * 2**15), 1, _WORD).astype(np.int16)
    # What one step of the scaled data is worth goes into the weights.
    scaled = transformed[narrow] * (2.0**15 / unit / multiplier[:, None, :])
    steps = np.maximum(np.abs(scaled).max(2, initial=0.0), 1e-30) / _BYTE
    output_scale[narrow] = steps
    scaled /= steps[:, :, None]
    values = np.clip(np.rint(scaled), -_BYTE, _BYTE).astype(np.int8)
    correction = None
    if means is not None:
        scaled -= values
        of_means = winograd.of_constant(tile)[narrow, None] * means * (unit / 2.0**15) * multiplier
        weights = winograd.result_means(tile)[narrow, None] * steps
        correction = np.einsum("poc,pc,po->o", scaled, of_means, weights, optimize=True)

    largest = winograd.bounds(tile, *data_ends)[words] * unit
    wide_values, steps = _words(transformed[words], largest)
    output_scale[words] = steps / unit
    return WinogradQuantizer(tile, tuple(wide), values, wide_values, multiplier, output_scale, correction)


def reached(ranges: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
    """Ranges as `quantize_transformed` makes them: data cannot be taken farther apart than their integers are."""
    return np.maximum(ranges, _LEVEL / (1 << winograd.shift(tile)))


def _words(weight: np.ndarray, largest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int16 [positions, O, C] whose sums with data up to `largest` fit int32, and their steps [positions, O]."""
    sums, peaks = np.abs(weight).sum(2), np.abs(weight).max(2, initial=0.0)
    # rounding adds half a step to each weight
    room = _LARGEST_SUM / np.maximum(largest, 1)[:, None] - weight.shape[2] / 2
    steps = np.maximum(np.maximum(sums / room, peaks / _WORD), 1e-30)
    return np.rint(weight / steps[:, :, None]).astype(np.int16), steps
