"""The range whose 8-bit histogram keeps most of the information in that of the values.

Every candidate range [a, b) of histogram bins is judged by the Kullback-Leibler divergence KL(P || Q):

    P   the bins in the range, what lies outside of it added to the first and the last; divided by their sum
    Q   the bins in the range without that, merged into 255 levels; what a level holds is spread evenly over those of
        its bins that are not empty; divided by the sum, and mixed with `SMOOTHING` of a uniform distribution, so that
        the divergence is finite where an empty last bin takes in outliers

Source: S. Migacz, *8-bit Inference with TensorRT*, GTC 2017, where a range is [0, b) for |x| and has 128 levels; so it
is here for symmetric activations. Values of both signs have both ends searched, on a coarse grid of pairs and then on a
fine one around the best.

A bin that stands out counts as much as the ones around it. In NVIDIA's pytorch-quantization that holds for zero, of
which ReLU makes lots; but a dead channel does the same with any constant, and one such spike, spread over its level,
diverges more than all that clipping does.

Q is constant over the bins of a level. So a candidate costs one look-up of cumulative counts per level, and not a pass
over the histogram.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tvm_int8.quantization.observers import MAX_BINS, Histogram

LEVELS = 255
SYMMETRIC_LEVELS = 128
SMOOTHING = 1e-4
SPIKE = 4
"""A bin stands out if it holds more than this many times the median of the `AROUND` nearest ones that are not empty."""
AROUND = 31
CANDIDATES = 256
"""Ends tried where the other one is zero, evenly spaced."""
COARSE = 0.86 ** np.arange(24)
FINE = 0.86 ** (np.arange(-6, 7) / 6)
"""Where both ends are searched: shares of each side at first, and then of the best pair's."""


def entropy_range(seen: Histogram, symmetric: bool = False) -> tuple[float, float]:
    """Return the range with the least divergence, the widest of them; zero lies in it.

    Parameters
    ----------
    seen : Histogram
        Of the tensor's values.
    symmetric : bool
        Zero in the middle of the range, if there are negative values.
    """
    bins = _bins_around_zero(seen)
    if symmetric and bins.zero > 0:
        bins, levels = _folded(bins), SYMMETRIC_LEVELS
    else:
        levels, symmetric = LEVELS, False
    first, last = best_bins(bins.counts, bins.zero, levels)
    low, high = (first - bins.zero) * bins.width, (last - bins.zero) * bins.width
    return (-high, high) if symmetric else (low, high)


@dataclass(frozen=True)
class _Bins:
    """Counts of adjacent bins; zero is the lower edge of bin `zero`."""

    counts: np.ndarray
    zero: int
    width: float


def _bins_around_zero(seen: Histogram) -> _Bins:
    """The bins from zero, or beyond, to the farthest one: merged by powers of two where those would be too many."""
    index = seen.first + np.arange(len(seen.counts))
    shift = 0
    while max(int(index[-1]) >> shift, 0) - min(int(index[0]) >> shift, 0) >= MAX_BINS:
        shift += 1
    index = index >> shift
    first, last = min(int(index[0]), 0), max(int(index[-1]), -1)
    counts = np.bincount(index - first, np.asarray(seen.counts, np.float64), last - first + 1)
    return _Bins(_without_spikes(counts), -first, seen.width * 2.0**shift)


def _without_spikes(counts: np.ndarray) -> np.ndarray:
    filled = counts[counts > 0]
    half = min(AROUND // 2, max(len(filled) - 1, 0))
    around = np.median(sliding_window_view(np.pad(filled, half, mode="reflect"), 2 * half + 1), axis=1)
    leveled = counts.copy()
    leveled[counts > 0] = np.where(filled > SPIKE * around, around, filled)
    return leveled


def _folded(bins: _Bins) -> _Bins:
    """The bins of the values' magnitudes."""
    negative, positive = bins.counts[: bins.zero][::-1], bins.counts[bins.zero :]
    counts = np.zeros(max(len(negative), len(positive)))
    counts[: len(negative)] += negative
    counts[: len(positive)] += positive
    return _Bins(counts, 0, bins.width)


def best_bins(counts: np.ndarray, zero: int, levels: int) -> tuple[int, int]:
    """Search the range.

    Parameters
    ----------
    counts : float64 [n]
        Of adjacent bins.
    zero : int
        The edge (a bin's index, or n) that has to lie in the range.
    levels : int
        Integers that values are rounded to.

    Returns
    -------
    first, last : int
        The range is made of the bins from `first` up to, not including, `last`.
    """
    n, divergence = len(counts), Divergence(counts, levels)
    if not 0 < zero < n:
        shares = np.arange(1, CANDIDATES + 1) / CANDIDATES
        return _best_pair(divergence, zero - _widths(zero, shares), zero + _widths(n - zero, shares))
    first, last = _best_pair(divergence, zero - _widths(zero, COARSE), zero + _widths(n - zero, COARSE))
    lower, upper = FINE * (zero - first) / zero, FINE * (last - zero) / (n - zero)
    return _best_pair(divergence, zero - _widths(zero, lower), zero + _widths(n - zero, upper))


def _widths(most: int, shares: np.ndarray) -> np.ndarray:
    """Widths of one side of a range in bins, from wide to narrow; at least one bin where there are any."""
    return np.unique(np.rint(most * shares).astype(np.int64).clip(min(most, 1), most))[::-1]


def _best_pair(divergence: Divergence, firsts: np.ndarray, lasts: np.ndarray) -> tuple[int, int]:
    """The pair of ends with the least divergence, the first of equals; all bins if no range has bins enough."""
    n = len(divergence.counts)
    best, least = (0, n), np.inf
    for first in firsts.tolist():
        ends = lasts[lasts - first >= min(divergence.levels, n)]
        if ends.size:
            found = divergence.of(first, ends)
            index = int(found.argmin())
            if found[index] < least:
                best, least = (first, int(ends[index])), float(found[index])
    return best


class Divergence:
    """KL(P || Q) of ranges of bins, see the head of the file."""

    def __init__(self, counts: np.ndarray, levels: int):
        self.counts, self.levels = counts, levels
        self.total = np.concatenate([[0.0], np.cumsum(counts)])
        self.filled = np.concatenate([[0], np.cumsum(counts > 0)])
        logs = np.log(counts, out=np.zeros_like(counts), where=counts > 0)
        self.entropy = np.concatenate([[0.0], np.cumsum(counts * logs)])

    def of(self, first: int, lasts: np.ndarray) -> np.ndarray:
        """Divergence, float64 [k], of the ranges from one bin up to each of `lasts`, int64 [k]."""
        bins = lasts - first
        inside = self.total[lasts] - self.total[first]
        below, above = self.total[first], self.total[-1] - self.total[lasts]
        edges = first + -(-np.arange(self.levels + 1) * bins[:, None] // self.levels)  # [k, levels + 1]
        held = np.diff(self.total[edges], axis=1)
        spread = np.diff(self.filled[edges], axis=1) * inside[:, None]
        floor = SMOOTHING / bins
        with np.errstate(divide="ignore", invalid="ignore"):
            q = np.where(spread > 0, (1 - SMOOTHING) * held / spread, 0.0) + floor[:, None]
            cross = (held * np.log(q)).sum(1)
            # Bins at the ends hold outliers, too; an empty one has only the floor.
            q_first = np.where(self.counts[first] > 0, q[:, 0], floor)
            q_last = np.where(self.counts[lasts - 1] > 0, q[:, -1], floor)
            cross = cross + below * np.log(q_first) + above * np.log(q_last)
            own = self.entropy[lasts] - self.entropy[first]
            own = own + self._with_outliers(first, below) + self._with_outliers(lasts - 1, above)
            divergence = (own - cross) / self.total[-1] - np.log(self.total[-1])
        return np.where(inside > 0, divergence, np.inf)

    def _with_outliers(self, index, outliers):
        """What c log c of bins grows by when outliers are added."""
        before = self.counts[index]
        after = before + outliers
        logs = [x * np.log(np.where(x > 0, x, 1.0)) for x in (after, before)]
        return logs[0] - logs[1]
