"""How a convolution is quantised in the Winograd domain: integers and scales of its transformed weights and data.

Every position of a transformed tile has its own scales: of data one per input channel, of weights one per output
channel, both in the sense of LoWino (Li et al. 2021).  The factors of the data's channels are in the weights, where
they cost nothing, as factors of a tensor's channels are in `channel_scales`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tvm_int8 import winograd

_LARGEST_SUM = 2**31 - 1
_WORD = 32767
_BYTE = 127


@dataclass(frozen=True)
class WinogradQuantizer:
    """One way to compute a 3x3 convolution of integers by tiles; parameters as of `tvm_int8.specs.WinogradConv2d`.

    Parameters
    ----------
    tile : (rows, columns) of outputs
    wide : positions of 16 bits
    weight : int8 [narrow positions, O, C]
    wide_weight : int16 [wide positions, O, C]
    shifted : narrow positions that have an offset
    input_offset : int16 [shifted positions, C]
    input_scale : int16 [narrow positions, C]
    start : int32 [positions, O]
    output_scale : float32 [positions, O]
    correction : float64 [O], optional
        Added to the accumulators: the mean error, taken out.
    """

    tile: tuple[int, int]
    wide: tuple[int, ...]
    weight: np.ndarray
    wide_weight: np.ndarray
    shifted: tuple[int, ...]
    input_offset: np.ndarray
    input_scale: np.ndarray
    start: np.ndarray
    output_scale: np.ndarray
    correction: np.ndarray | None = None

    def constants(self) -> dict[str, np.ndarray]:
        """The order's constants, by role."""
        roles = "weight", "wide_weight", "input_offset", "input_scale", "start", "output_scale"
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
    centres: np.ndarray | None = None,
    means: np.ndarray | None = None,
) -> WinogradQuantizer:
    """Round transformed weights, given what transformed data reach.

    Parameters
    ----------
    weight : float64 [O, C, 3, 3]
        Real, in units of the convolution's int8 weights: what an accumulator is a sum of.
    tile, wide : as of `WinogradQuantizer`
    ranges : float64 [positions, C], or None where all positions are wide
        Distance of transformed data from their centre, in units of the data's integers, that becomes 127; what is
        farther away saturates.
    data_ends : (int, int)
        Lowest and highest integer of the data, less their zero point.
    centres : float64 [positions, C], optional
        In the same units; of zero there is nothing to subtract.
    means : float64 [C], optional
        Of the data, in units of their integers, less their zero point: what rounding weights adds on average is taken
        out (see `bias_correction`), position by position.
    """
    transformed = winograd.transformed_weight(weight, tile)
    unit = 1 << winograd.shift(tile)
    narrow, words = [p for p in range(len(transformed)) if p not in wide], list(wide)
    output_scale = np.zeros(transformed.shape[:2], np.float32)
    start = np.zeros(transformed.shape[:2], np.int64)

    ranges = np.zeros((len(transformed), weight.shape[1])) if ranges is None else ranges * unit
    zeros = _of_zeros(tile, -data_ends[0])[:, None]
    offsets = _offsets(ranges, np.zeros_like(ranges) if centres is None else centres * unit, zeros)
    shifted = [p for p in narrow if offsets[p].any()]
    multiplier = np.clip(np.rint(_BYTE * 2**15 / np.maximum(ranges[narrow], 1e-9)), 1, _WORD).astype(np.int16)
    # What one step of the rounded data is worth goes into the weights.
    scaled = transformed[narrow] * (2.0**15 / unit / multiplier[:, None, :])
    steps = np.maximum(np.abs(scaled).max(2, initial=0.0), 1e-30) / _BYTE
    output_scale[narrow] = steps
    scaled /= steps[:, :, None]
    values = np.clip(np.rint(scaled), -_BYTE, _BYTE).astype(np.int8)
    # What real zeros become is taken out, exactly: they are frequent, and must not be off by a part of a step.
    zero = winograd.multiply_high((zeros - offsets)[narrow].astype(np.int32), multiplier.astype(np.int32))
    start[narrow] = -np.einsum("poc,pc->po", values.astype(np.int64), np.clip(zero, -_BYTE - 1, _BYTE))
    if means is not None:
        transformed_means = winograd.of_constant(tile)[narrow, None] * means * (unit / 2.0**15) * multiplier
        start[narrow] += np.rint(np.einsum("poc,pc->po", scaled - values, transformed_means)).astype(np.int64)

    largest = winograd.bounds(tile, *data_ends)[words] * unit
    wide_values, steps = _words(transformed[words], largest)
    output_scale[words] = steps / unit
    of_zeros = winograd.of_constant(tile)[words, None] * (-data_ends[0] * unit)
    start[words] = np.rint(-of_zeros * wide_values.sum(2, dtype=np.int64)).astype(np.int64)
    return WinogradQuantizer(
        tile=tile,
        wide=tuple(wide),
        weight=values,
        wide_weight=wide_values,
        shifted=tuple(shifted),
        input_offset=offsets[shifted].astype(np.int16),
        input_scale=multiplier,
        start=start.astype(np.int32),
        output_scale=output_scale,
    )


def _offsets(ranges: np.ndarray, centres: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """What is subtracted from transformed integers: a whole number of steps more than real zeros are.

    So zeros, which are frequent, are rounded as little as without a centre.
    """
    step = np.maximum(ranges, 1e-9) / _BYTE
    return np.clip(np.rint(np.rint(centres / step) * step + zeros), -_WORD, _WORD)


def _of_zeros(tile: tuple[int, int], zero_point: int) -> np.ndarray:
    """What a tile of real zeros is transformed into: int64 [positions]."""
    zeros = np.full([outputs + winograd.TAPS - 1 for outputs in tile], zero_point << winograd.shift(tile), np.int32)
    return winograd.transformed_data(zeros, tile, winograd.Integers).astype(np.int64)


def _words(weight: np.ndarray, largest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int16 [positions, O, C] whose sums with data up to `largest` fit int32, and their steps [positions, O]."""
    sums, peaks = np.abs(weight).sum(2), np.abs(weight).max(2, initial=0.0)
    # rounding adds half a step to each weight
    room = _LARGEST_SUM / np.maximum(largest, 1)[:, None] - weight.shape[2] / 2
    steps = np.maximum(np.maximum(sums / room, peaks / _WORD), 1e-30)
    return np.rint(weight / steps[:, :, None]).astype(np.int16), steps
