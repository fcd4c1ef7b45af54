"""Lin et al.'s closed form with measured efficiencies, within bounds, and the rounding of its real numbers.

Lagrange's condition for widths that are real numbers makes ``kappa_i * noise_i`` proportional to ``rho_i``, hence
``b_i - b_j = (10 / kappa) log10(rho_j / rho_i)`` for equal efficiencies (arXiv:1511.06393, equation 12). Noise falls by
one kappa from the least width to the largest only in the model; measured, every step has its own, and its own offset.
So a layer's noise is a straight line in dB from each width to the next, and the condition picks the line that it holds
on, or a corner. Widths that a layer lacks bound it; the others take what it leaves (water-filling with bounds).

Rounding: all real numbers are rounded up from the same fraction on. For a number of fractions, the constant of
proportion is found with which the rounded widths just reach the goal; what a layer too large for it leaves of a budget
is spent a step at a time. The fraction with the least noise (fewest bits) counts, by the same added-up noises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

FRACTIONS = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)
"""From which a width is rounded up."""
_LEAST_NOISE = 1e-30
_HALVINGS = 60
_NEPER = np.log(10) / 10


class RealWidths:
    """Real-valued widths of items, for any slope of noise against bits.

    Parameters
    ----------
    counts : float [I]
        What one bit of an item costs.
    noises : sequence of mappings
        Width to noise, item by item.
    """

    def __init__(self, counts: np.ndarray, noises: Sequence):
        longest = max(len(noise) for noise in noises)
        self.counts = np.asarray(counts, np.float64)[:, None]
        self.widths = np.array([_padded(sorted(noise), longest + 1) for noise in noises])
        levels = [[noise[bits] for bits in sorted(noise)] for noise in noises]
        noise = np.maximum([_padded(row, longest + 1) for row in levels], _LEAST_NOISE)
        self._start, self._end, self._noise = self.widths[:, :-1], self.widths[:, 1:], noise[:, :-1]
        length = np.maximum(self._end - self._start, 1e-12)
        self.kappa = -10 * np.diff(np.log10(noise)) / length

    def at(self, slope: float) -> np.ndarray:
        """Widths [I] where a bit more of an item lowers its noise by no more than `slope`, for each of its values."""
        falling = np.maximum(self.kappa, 1e-9)
        steepness = falling * _NEPER * self._noise  # of the noise where the line begins
        bits = self._start + np.log(steepness / (slope * self.counts)) / (falling * _NEPER)
        bits = np.clip(bits, self._start, self._end)
        noise = self._noise * np.exp(-self.kappa * _NEPER * (bits - self._start))
        best = (noise + slope * self.counts * bits).argmin(1)
        return bits[np.arange(len(bits)), best]

    def rounded(self, slope: float, fraction: float) -> list:
        """Widths that items have, those of `at` rounded up from this fraction of a step on."""
        real = self.at(slope)[:, None]
        lower = np.maximum((self.widths <= real + 1e-9).sum(1) - 1, 0)
        upper = np.minimum(lower + 1, self.widths.shape[1] - 1)
        every = np.arange(len(real))
        low, high = self.widths[every, lower], self.widths[every, upper]
        up = real[:, 0] - low >= fraction * (high - low)
        return list(np.where(up & (high > low), high, low))

    def just(self, fraction: float, reached: Callable[[list], bool], enough: bool) -> list | None:
        """The rounded widths with which a goal is just reached; None if it never is.

        enough : whether goals are reached by more bits, or by fewer.
        """
        low, high = -120.0, 60.0  # of the slope's logarithm: everything has all bits, and the least
        if not reached(self.rounded(10**low if enough else 10**high, fraction)):
            return None
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if reached(self.rounded(10**middle, fraction)) == enough:
                low = middle
            else:
                high = middle
        return self.rounded(10**low if enough else 10**high, fraction)


def _padded(row: Sequence[float], length: int) -> list[float]:
    return [*row, *[row[-1]] * (length - len(row))]
