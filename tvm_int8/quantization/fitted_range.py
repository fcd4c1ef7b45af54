"""The range that is optimal for a density fitted to the values: 255 of its optimal steps wide.

Values of both signs have the density's mean and standard deviation; values of one sign, of a ReLU for example, are half
of a density around zero, which keeps as many levels on one side as a quantiser of one bit more does. Zeros are exact in
every range, and taken out of a half before it is fitted.

Source: Lin, Talathi and Annapureddy, *Fixed point quantization of deep convolutional networks*, 2016
(arXiv:1511.06393), for step sizes from densities; `optimal_step` for these.
"""

from __future__ import annotations

import math

import numpy as np

from tvm_int8.quantization.observers import HistogramObserver
from tvm_int8.quantization.optimal_step import optimal_step

BITS = 8


def fitted_range(observer: HistogramObserver, density: str, symmetric: bool = False) -> tuple[float, float]:
    """Return the optimal range, as far as values were observed.

    Parameters
    ----------
    observer : HistogramObserver
        What was seen of the tensor.
    density : str
        ``"gaussian"``, fitted by the mean square deviation, or ``"laplacian"``, by the mean absolute deviation.
    symmetric : bool
        Fit a density around zero to values of both signs.
    """
    seen = observer.histogram()
    counts = np.asarray(seen.counts, np.float64)
    values = (seen.first + np.arange(len(counts)) + 0.5) * seen.width
    if observer.low < 0 < observer.high:
        mean = 0.0 if symmetric else float(counts @ values / counts.sum())
        half = optimal_step(density, BITS)[0] * _sigma(values - mean, counts, density) * (2**BITS - 1) / 2
        low, high = mean - half, mean + half
    else:
        _take_out_zeros(counts, -seen.first)
        end = optimal_step(density, BITS + 1)[0] * _sigma(values, counts, density) * (2**BITS - 1)
        if end == 0.0:
            return observer.low, observer.high
        low, high = (0.0, end) if observer.high > 0 else (-end, 0.0)
    return max(low, observer.low), min(high, observer.high)


def _take_out_zeros(counts: np.ndarray, zero: int) -> None:
    """Leave in the bin above zero no more than in the next one, where the density is much the same."""
    if 0 <= zero < len(counts):
        counts[zero] = min(counts[zero], counts[zero + 1] if zero + 1 < len(counts) else 0.0)


def _sigma(deviations: np.ndarray, counts: np.ndarray, density: str) -> float:
    """Standard deviation of the fitted density; 0 where there is nothing to fit."""
    number = max(float(counts.sum()), 1.0)
    if density == "laplacian":
        return math.sqrt(2) * float(counts @ np.abs(deviations)) / number
    return math.sqrt(float(counts @ deviations**2) / number)
