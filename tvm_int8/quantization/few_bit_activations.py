"""Activations of 1 to 7 bits: the lowest 2^bits integers of the type, over a range that suits so few levels.

What is chosen for 8 bits is kept, but for the range's width: fewer levels want more clipped. So a tensor's scales keep
their ratios, and the weights that read it do not depend on its bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tvm_int8.quantization.optimal_step import optimal_step
from tvm_int8.quantization.range_noise import CLIPPING_WEIGHT, RangeNoise

if TYPE_CHECKING:
    from tvm_int8.quantization.calibration_table import TensorRange

_SHARES = np.linspace(1.0, 0.1, 46)
_FULL = 8


def range_share(seen: TensorRange | None, bits: int) -> float:
    """How much of a tensor's range for 8 bits is best for fewer.

    Parameters
    ----------
    seen : TensorRange or None
        With its histogram; without, values are taken to be distributed like Laplace's (`optimal_step`).
    bits : int
        1 to 8.

    Examples
    --------
    >>> round(range_share(None, 4), 2), range_share(None, 8)
    (0.52, 1.0)
    """
    if bits >= _FULL:
        return 1.0
    if seen is None or seen.histogram is None:
        widths = [optimal_step("laplacian", b)[0] * (2**b - 1) for b in (bits, _FULL)]
        return widths[0] / widths[1]
    noise = RangeNoise(seen.histogram, bits)
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    clipped = noise.below(low * _SHARES) + noise.above(high * _SHARES)
    error = CLIPPING_WEIGHT * clipped + noise.rounding((high - low) * _SHARES)
    return float(_SHARES[int(error.argmin())])


def narrowed(
    scale: np.ndarray, zero_point: np.ndarray, bits: int, share: float = 1.0
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return scales and zero points of fewer levels for those of 8 bits.

    Parameters
    ----------
    scale, zero_point : float32 and int64, [] or [C]
        Of uint8.
    bits : int
        1 to 8.
    share : float
        Of the range.

    Returns
    -------
    scale, zero_point
        The latter within 0 to ``2**bits - 1``.
    ratio : float
        By which scales grew.
    """
    levels, all_levels = 2**bits - 1, 2**_FULL - 1
    ratio = share * all_levels / levels
    zero_points = np.rint(zero_point * (levels / all_levels)).astype(np.int64)
    return (scale * np.float32(ratio)).astype(np.float32), zero_points, ratio
