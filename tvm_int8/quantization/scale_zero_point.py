"""From the range of a tensor to the scale and zero point of its integers."""

from __future__ import annotations

import numpy as np


def scale_zero_point(low: float, high: float, dtype: str = "uint8", symmetric: bool = False) -> tuple[np.float32, int]:
    """Return the affine quantisation that maps a real range onto all values of an integer type.

    ``scale = (high - low) / (qmax - qmin)`` and ``zero_point = round(qmin - low / scale)``, half to even, after the
    range was widened to contain 0, so that padding and ReLU's zero are exact. This is ONNX's DynamicQuantizeLinear and
    what ONNX Runtime's quantiser computes, in float64 until the scale is rounded once. A range too narrow for a normal
    float32 scale, all zeros above all, gets scale 1 and zero point 0.

    Parameters
    ----------
    low, high : float
        The range, finite.
    dtype : str
        ``"uint8"`` or ``"int8"``.
    symmetric : bool
        Widen a range with negative values so that 0 is its middle, which 128 (0 in int8) then stands for; that of
        others stays, from 0, which is the least integer.

    Returns
    -------
    scale : np.float32
        Positive.
    zero_point : int
        Within the integer type.

    Examples
    --------
    >>> scale_zero_point(-1.0, 1.0)
    (np.float32(0.007843138), 128)
    >>> scale_zero_point(-0.1, 1.0, symmetric=True), scale_zero_point(0.1, 1.0, symmetric=True)
    ((np.float32(0.007843138), 128), (np.float32(0.003921569), 0))
    >>> scale_zero_point(0.0, 0.0)
    (np.float32(1.0), 0)
    """
    limits = np.iinfo(dtype)
    real_low, real_high = covering_zero(float(np.float32(low)), float(np.float32(high)), symmetric)
    scale = (real_high - real_low) / (limits.max - limits.min)
    if scale < float(np.finfo(np.float32).tiny):
        return np.float32(1.0), 0
    if symmetric and real_low < 0.0:
        return np.float32(scale), (limits.max + limits.min + 1) // 2
    return np.float32(scale), int(np.rint(limits.min - real_low / scale))


def covering_zero(low, high, symmetric: bool = False):
    """Return ranges widened to contain 0; with 0 in the middle, if they have negative values and are `symmetric`.

    Parameters
    ----------
    low, high : float or np.ndarray
        The ends, arrays for many ranges.
    symmetric : bool
        Whether 0 is to be in the middle.

    Examples
    --------
    >>> low, high = covering_zero(np.array([1.0, -1.0, -3.0]), np.array([2.0, 2.0, -2.0]), symmetric=True)
    >>> low.tolist(), high.tolist()
    ([0.0, -2.0, -3.0], [2.0, 2.0, 3.0])
    """
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    if symmetric:
        high = np.where(low < 0.0, np.maximum(-low, high), high)
        low = np.where(low < 0.0, -high, 0.0)
    return low, high
