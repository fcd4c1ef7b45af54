"""What quantising a tensor to a range costs, predicted from its histogram."""

from __future__ import annotations

import numpy as np

from tvm_int8.quantization.observers import Histogram
from tvm_int8.quantization.scale_zero_point import covering_zero

CLIPPING_WEIGHT = 2.0
"""What the square of a clipping error counts beside that of a rounding error, which is as often up as down."""


class RangeNoise:
    """Squared error of a tensor in few bits as a function of its range, summed over all values seen.

    A value within the range costs a twelfth of the squared step, but never more than its own square, because zero is
    exact; a clipped value costs `CLIPPING_WEIGHT` times its squared distance to the range, since clipping errors all
    point one way and add up in the layers behind. The trade-off is that of ACIQ (Banner et al., *Post training 4-bit
    quantization of convolutional networks for rapid-deployment*, 2019, arXiv:1810.05723), on what was observed, not on
    a fitted density.

    Parameters
    ----------
    seen : Histogram
        Of the values; each stands for the middle of its bin.
    bits : int
        Of the integers.

    Examples
    --------
    >>> noise = RangeNoise(Histogram(0, 1.0, (0, 0, 8)))
    >>> noise.below(np.array([3.5])).tolist(), noise.above(np.array([1.5, 2.5])).tolist()
    ([8.0], [8.0, 0.0])
    """

    def __init__(self, seen: Histogram, bits: int = 8):
        self._steps = 2**bits - 1
        counts = np.asarray(seen.counts, np.float64)
        values = (seen.first + np.arange(len(counts)) + 0.5) * seen.width
        self._values, self._counts = values[counts > 0], counts[counts > 0]
        order = np.argsort(self._values**2)
        self._squares, ordered = (self._values**2)[order], self._counts[order]
        self._zeroed = np.concatenate([[0.0], np.cumsum(self._squares * ordered)])  # of the values that become zero
        self._rounded = self._counts.sum() - np.concatenate([[0.0], np.cumsum(ordered)])  # how many do not

    def below(self, ends: np.ndarray) -> np.ndarray:
        """Squared error of clipping at lower ends, an array [n]."""
        return np.array([(self._counts * np.minimum(self._values - end, 0.0) ** 2).sum() for end in ends])

    def above(self, ends: np.ndarray) -> np.ndarray:
        """Squared error of clipping at upper ends, an array [n]."""
        return np.array([(self._counts * np.maximum(self._values - end, 0.0) ** 2).sum() for end in ends])

    def rounding(self, width: np.ndarray) -> np.ndarray:
        """Squared error of rounding in ranges of these widths, of any shape."""
        variance = (np.asarray(width) / self._steps) ** 2 / 12
        index = np.searchsorted(self._squares, variance)
        return self._zeroed[index] + self._rounded[index] * variance

    def of(self, low: float, high: float, symmetric: bool = False, clipping_weight: float = CLIPPING_WEIGHT) -> float:
        """Squared error in one range, which is widened to contain 0, and around it if `symmetric`."""
        low, high = covering_zero(low, high, symmetric)
        clipped = self.below(np.array([low]))[0] + self.above(np.array([high]))[0]
        return float(clipping_weight * clipped + self.rounding(np.asarray(high - low)))
