"""Scales of their own for the channels of an activation, where those who read it allow that.

A channel that uses a tenth of its tensor's range keeps three bits fewer than it could.  Whoever stores the tensor has
a multiplier per channel anyway, so it can store every channel in a scale of its own; the readers differ:

*keep channels apart* (depthwise convolutions, element-wise operators)
    Any scale and zero point is free: it disappears in constants they have per channel anyway.
*mix channels* (all other convolutions)
    Channel c's scale, relative to the tensor's, moves into the weights that read it: w[o, c] * factor[c].  That costs
    precision where it enlarges the largest weights of an output channel, since these set the weights' scale.  Both
    noises can be predicted from the weights and the observed channels, so the best of a family
    factor = range^a / weight^b is picked per tensor.  Zero points of their own disappear in the biases, unless the
    convolution pads.

Source: Nagel et al. 2019 (arXiv:1906.04721) for moving scale between activations and weights; Xiao et al. 2023
(SmoothQuant, arXiv:2211.10438) for the exponents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvm_int8.quantization.calibration_table import TensorRange
from tvm_int8.quantization.observers import ChannelStatistics
from tvm_int8.quantization.range_noise import CLIPPING_WEIGHT
from tvm_int8.quantization.scale_zero_point import covering_zero, scale_zero_point

EXPONENTS = ((0.5, 0.0), (0.5, 0.25), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0))  # (a, b)
LEAST_RANGE = 0.05  # of a channel, relative to the tensor's: one that was quiet so far keeps room to be louder


@dataclass(frozen=True)
class Reader:
    """One operator that reads a tensor.

    Parameters
    ----------
    weight : ndarray [C, outputs, taps]
        What it multiplies each channel by; ones for element-wise operators.
    mixes : bool
        Whether it adds different channels up.
    pads : bool
        Whether it also reads zeros around the tensor.
    """

    weight: np.ndarray
    mixes: bool
    pads: bool = False


@dataclass(frozen=True)
class ChannelScales:
    """real[c] = scale[c] * (q - zero_point[c]), and scale = step * factor where some reader mixes channels.

    scale : float32 [C]; zero_point : int64 [C]; factor : float64 [C] or None.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    step: float = 1.0
    factor: np.ndarray | None = None


def channel_scales(
    seen: TensorRange,
    readers: Sequence[Reader],
    dtype: str = "uint8",
    per_channel_weights: bool = True,
    symmetric: bool = False,
) -> ChannelScales | None:
    """Choose scales for one tensor.

    Parameters
    ----------
    seen : TensorRange
        What calibration saw of it.
    readers : sequence of Reader
        All that read it.
    dtype : str
        The integers.
    per_channel_weights : bool
        Whether weights have a scale per output channel.
    symmetric : bool
        Whether zero is in the middle of the range of every channel with negative values.

    Returns
    -------
    ChannelScales or None
        None where one scale does as well, or the channels are not known.
    """
    if seen.channels is None:
        return None
    if not any(reader.mixes for reader in readers):
        return _free_scales(seen.channels, dtype, symmetric)
    factor = _choose_factor(seen, readers, per_channel_weights, symmetric)
    if factor is None:
        return None
    low, high = _ends(seen, factor, readers, symmetric)
    pairs = [scale_zero_point(*ends, dtype, symmetric) for ends in zip(low, high, strict=True)]
    scale = (np.float64(pairs[0][0]) * factor).astype(np.float32)
    return ChannelScales(scale, np.array([zero for _, zero in pairs], np.int64), float(pairs[0][0]), factor)


def _ends(
    seen: TensorRange, factor: np.ndarray, readers: Sequence[Reader], symmetric: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The ends, [C], of what each divided channel's integers stand for, equally far apart.

    Every channel has the width of the widest, around its own middle and 0; the same ends where a reader pads.
    """
    assert seen.channels is not None
    low, high = np.asarray(seen.channels.low) / factor, np.asarray(seen.channels.high) / factor
    if any(reader.mixes and reader.pads for reader in readers):
        least, most = covering_zero(low.min(), high.max(), symmetric)
        return np.full(len(low), least), np.full(len(high), most)
    low, high = covering_zero(low, high, symmetric)
    width = (high - low).max()
    if symmetric:
        low = np.where(low < 0, -width / 2, 0.0)
        return low, low + width
    room = (width - (high - low)) / 2
    low = np.where(low < 0, np.maximum(low - room, -width), 0.0)
    return low, low + width


def _free_scales(channels: ChannelStatistics, dtype: str, symmetric: bool) -> ChannelScales:
    """Every channel over its own range, widened to `LEAST_RANGE` of the tensor's."""
    low, high = covering_zero(channels.low, channels.high, symmetric)
    least = LEAST_RANGE * (high.max() - low.min())
    if symmetric:
        high = np.maximum(high, np.where(low < 0, least / 2, least))
        low = np.where(low < 0, -high, 0.0)
    else:
        missing = np.maximum(least - (high - low), 0.0)
        low, high = np.maximum(low - missing / 2, low.min()), np.minimum(high + missing / 2, high.max())
    pairs = [scale_zero_point(*ends, dtype, symmetric) for ends in zip(low, high, strict=True)]
    return ChannelScales(np.array([s for s, _ in pairs], np.float32), np.array([z for _, z in pairs], np.int64))


def _choose_factor(
    seen: TensorRange, readers: Sequence[Reader], per_channel_weights: bool, symmetric: bool
) -> np.ndarray | None:
    """The best factor [C] of the family, its largest element one; None where one scale for all is better."""
    assert seen.channels is not None
    low, high = covering_zero(seen.channels.low, seen.channels.high, symmetric)
    magnitude = np.maximum(-low, high) if any(r.mixes and r.pads for r in readers) else high - low
    largest = np.max([np.abs(r.weight).max((1, 2)) for r in readers if r.mixes], axis=0).astype(np.float64)
    alive = (magnitude > 0) & (largest > 0)
    if alive.sum() < 2:
        return None
    best, least = None, predicted_noise(seen, None, readers, per_channel_weights, symmetric)
    for a, b in EXPONENTS:
        factor = np.ones(len(magnitude))
        factor[alive] = magnitude[alive] ** a / largest[alive] ** b
        factor[alive] /= factor[alive].max()
        factor = np.maximum(factor, LEAST_RANGE)
        noise = predicted_noise(seen, factor, readers, per_channel_weights, symmetric)
        if noise < least:
            best, least = factor, noise
    return best


def _clipping(seen: TensorRange) -> np.ndarray:
    """Mean square, [C], of what the calibrated range cuts off: distributed as the squares of the channels' excesses.

    It counts as in least-squares calibration, because clipping errors all point one way.
    """
    assert seen.channels is not None
    excess = np.maximum(np.asarray(seen.channels.high) - seen.high, 0.0) ** 2
    excess = excess + np.maximum(seen.low - np.asarray(seen.channels.low), 0.0) ** 2
    return CLIPPING_WEIGHT * seen.clipping * len(excess) * excess / max(float(excess.sum()), 1e-30)


def predicted_noise(
    seen: TensorRange,
    factor: np.ndarray | None,
    readers: Sequence[Reader],
    per_channel_weights: bool = True,
    symmetric: bool = False,
) -> float:
    """Variance of the readers' outputs, relative to their signal, from uniform rounding of activations and weights.

    Without a factor the tensor has the one scale of its calibrated range. Rounding never costs more than the value
    itself: what is far below half a step becomes zero, and zeros stay exact.
    """
    assert seen.channels is not None
    power = np.asarray(seen.channels.mean_square, np.float32)
    if factor is None:
        factor, clipped = np.ones(len(power)), _clipping(seen)
        low, high = covering_zero(seen.low, seen.high, symmetric)
        step = float(high - low) / 255
    else:
        low, high = _ends(seen, factor, readers, symmetric)
        step, clipped = float(high[0] - low[0]) / 255, np.zeros(len(power))
    data_error = np.minimum(step**2 / 12, power / factor**2) + clipped
    total = 0.0
    for reader in readers:
        scaled = reader.weight * factor[:, None, None].astype(np.float32)
        noise = (data_error * (scaled**2).sum((1, 2))).sum()
        if reader.mixes:
            axes = None if not per_channel_weights else (1, 2) if reader.weight.shape[1] == 1 else (0, 2)
            steps = np.abs(scaled).max(axes, keepdims=True) / np.float32(127)
            weight_error = np.minimum(steps**2 / np.float32(12), scaled**2).sum((1, 2))
            noise += (weight_error * power / factor**2).sum()
        total += noise / max(float(((reader.weight**2).sum((1, 2)) * power).sum()), 1e-30)
    return float(total)
