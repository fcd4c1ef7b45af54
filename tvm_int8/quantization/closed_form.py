"""Lin et al.'s closed form with measured efficiencies, within bounds: widths that are real numbers.

Lagrange's condition for widths that are real numbers makes ``kappa_i * noise_i`` proportional to ``rho_i``, hence
``b_i - b_j = (10 / kappa) log10(rho_j / rho_i)`` for equal efficiencies (arXiv:1511.06393, equation 12). Noise falls by
one kappa from the least width to the largest only in the model; measured, every step has its own, and its own offset.
So a layer's noise is a straight line in dB from each width to the next, and the condition picks the line that it holds
on, or a corner. Widths that a layer lacks bound it; the others take what it leaves (water-filling with bounds).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

_LEAST_NOISE = 1e-30
_SLOPES = -120.0, 60.0
"""Logarithms of the slopes between which everything goes from all its bits to the least."""
_HALVINGS = 60
_NEPER = np.log(10) / 10


class RealWidths:
    """Real-valued widths of items.

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
        self.options = [sorted(noise) for noise in noises]
        widths = np.array([_padded(own, longest + 1) for own in self.options])
        levels = [[noise[bits] for bits in own] for noise, own in zip(noises, self.options, strict=True)]
        noise = np.maximum([_padded(row, longest + 1) for row in levels], _LEAST_NOISE)
        self._start, self._end, self._noise = widths[:, :-1], widths[:, 1:], noise[:, :-1]
        length = np.maximum(self._end - self._start, 1e-12)
        self._kappa = -10 * np.diff(np.log10(noise)) / length

    def within(self, budget: float) -> np.ndarray | None:
        """The widths [I] that add up to a budget of bits, or all there are; None where the least are more."""
        return self._at_most(lambda bits, noise: float(bits @ self.counts[:, 0]), budget, falling=True)

    def quiet(self, allowed: float) -> np.ndarray | None:
        """The widths [I] whose noises add up to what is allowed; None where all bits there are make more."""
        return self._at_most(lambda bits, noise: float(noise.sum()), allowed, falling=False)

    def neighbours(self, widths: np.ndarray) -> list[list[float]]:
        """Those that items have next to real numbers [I]: the one below, the number itself, the one above."""
        found = []
        for own, real in zip(self.options, widths, strict=True):
            below, above = ([b for b in own if b < real][-1:], [b for b in own if b > real][:1])
            found.append([*below, *(b for b in own if b == real), *above])
        return found

    def _at_most(
        self, amount: Callable[[np.ndarray, np.ndarray], float], limit: float, falling: bool
    ) -> np.ndarray | None:
        """The widths at the slope where an amount, which falls or rises with the slope, just keeps a limit."""
        kept, other = reversed(_SLOPES) if falling else _SLOPES
        if amount(*self._at(10**kept)) > limit:
            return None
        for _ in range(_HALVINGS):
            middle = (kept + other) / 2
            if amount(*self._at(10**middle)) <= limit:
                kept = middle
            else:
                other = middle
        return self._at(10**kept)[0]

    def _at(self, slope: float) -> tuple[np.ndarray, np.ndarray]:
        """Widths [I] where a bit more lowers noise by no more than `slope` for each of an item's values; noises [I]."""
        falling = np.maximum(self._kappa, 1e-9)
        steepness = falling * _NEPER * self._noise  # of the noise where the line begins
        bits = self._start + np.log(steepness / (slope * self.counts)) / (falling * _NEPER)
        bits = np.clip(bits, self._start, self._end)
        noise = self._noise * np.exp(-self._kappa * _NEPER * (bits - self._start))
        best = (noise + slope * self.counts * bits).argmin(1)
        every = np.arange(len(bits))
        return bits[every, best], noise[every, best]


def _padded(row: Sequence[float], length: int) -> list[float]:
    return [*row, *[row[-1]] * (length - len(row))]
