"""Statistics of one tensor, streamed batch by batch in memory that does not grow with the data.

The histogram's bins lie on a grid: a bin is ``[i * width, (i + 1) * width)`` with an integer ``i`` and a power of two
as ``width``. When a batch needs a wider range, the width doubles until the range fits into `MAX_BINS` bins again, and
bins ``2i`` and ``2i + 1`` merge into bin ``i``. No bin is ever split, so counts stay exact, and the histogram of a data
set does not depend on how it was cut into batches or in which order they came.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tvm_int8.errors import CalibrationError

MAX_BINS = 4096
"""Bins of a histogram. Since the width is the smallest power of two that fits, more than half of them are in use."""

EXPECTED_INPUTS = 500
"""How many inputs the extremes of channels are expected to hold for."""

AVERAGING_CONSTANT = 0.01
"""Weight of a batch's extremes in their moving average: that of ONNX Runtime and PyTorch."""

_CHUNK = 1 << 16  # elements binned at a time: the temporaries stay in the L2 cache, and small beside the tensor
_MIN_EXPONENT = -126  # of the bin width: float32's smallest normal number, whose inverse does not overflow
_FLOAT32_BITS = 24  # bins narrower than the spacing of float32 at the largest value would separate nothing
_FARTHEST_SHIFT = 40  # more doublings than this move every bin index (below 2**24) to 0 or -1 anyway


@dataclass(frozen=True)
class Histogram:
    """Counts of the values of one tensor; bin ``i`` is ``[(first + i) * width, (first + i + 1) * width)``."""

    first: int
    width: float
    counts: tuple[int, ...]

    @property
    def ends(self) -> tuple[float, float]:
        """Where the outermost bins end."""
        return self.first * self.width, (self.first + len(self.counts)) * self.width

    def clipping_error(self, low: float, high: float) -> float:
        """Return the mean square of what clipping to ``[low, high]`` takes from a value."""
        counts = np.asarray(self.counts, np.float64)
        values = (self.first + np.arange(len(counts)) + 0.5) * self.width
        cut = values - values.clip(low, high)
        return float((counts * cut**2).sum() / max(counts.sum(), 1.0))


class MinMaxObserver:
    """The smallest and the largest value of a tensor, of all batches and on a moving average.

    Parameters
    ----------
    name : str
        The tensor's name, for error messages.

    Attributes
    ----------
    low, high : float
        Extremes of all values so far; inf and -inf before the first batch.
    average_low, average_high : float
        Exponential moving averages of the batches' extremes, from those of the first batch on: each next batch counts
        `AVERAGING_CONSTANT`, and the average before it the rest.
    count, batches : int
        Values and batches seen.
    """

    def __init__(self, name: str):
        self.name = name
        self.low, self.high = math.inf, -math.inf
        self.average_low, self.average_high = math.inf, -math.inf
        self.count = self.batches = 0

    def update(self, values: np.ndarray, batch: int) -> None:
        """Take in one batch of values.

        Parameters
        ----------
        values : np.ndarray
            Any shape, any real dtype; looked at as float32.
        batch : int
            The batch's index, for error messages.

        Raises
        ------
        CalibrationError
            When a value is NaN or infinite, or there is none; the statistics then stay as they were.
        """
        values = np.asarray(values)
        with np.errstate(over="ignore"):
            flat = values.astype(np.float32, copy=False).reshape(-1)
        if flat.size == 0:
            raise self._error(batch, f"no values (shape {values.shape})", "at least one")
        low, high = float(flat.min()), float(flat.max())  # NaN and infinities come through min and max
        if not (math.isfinite(low) and math.isfinite(high)):
            nans, infinities = int(np.isnan(flat).sum()), int(np.isinf(flat).sum())
            raise self._error(batch, f"{nans} NaN and {infinities} infinite of {flat.size} values", "finite values")
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.batches == 0:
            self.average_low, self.average_high = low, high
        self.average_low += AVERAGING_CONSTANT * (low - self.average_low)
        self.average_high += AVERAGING_CONSTANT * (high - self.average_high)
        self.count += flat.size
        self.batches += 1
        self._accumulate(flat)

    def histogram(self) -> Histogram | None:
        """Return the distribution of the values, where it was observed."""
        return None

    def share_outside(self, low: float, high: float) -> float:
        """Return the share of all values that lie outside of a range, which holds all where none is known to."""
        return 0.0

    def _accumulate(self, flat: np.ndarray) -> None:
        """Take in what goes beyond minimum and maximum, which already cover `flat`."""

    def _error(self, batch: int, found: str, expected: str) -> CalibrationError:
        return CalibrationError(
            where=f"calibration batch {batch}, tensor {self.name!r}",
            found=found,
            expected=expected,
            action="check this batch's data, and that the float model computes finite values on it",
        )


class HistogramObserver(MinMaxObserver):
    """Minimum, maximum and a histogram of at most `MAX_BINS` bins over them."""

    def __init__(self, name: str):
        super().__init__(name)
        self._exponent = _MIN_EXPONENT  # the bin width is 2 ** exponent
        self._first = 0  # grid index of the first bin
        self._counts = np.zeros(MAX_BINS, np.int64)

    def _accumulate(self, flat: np.ndarray) -> None:
        self._cover_range()
        inverse_width, first = np.float32(2.0**-self._exponent), np.float32(self._first)
        for start in range(0, flat.size, _CHUNK):
            # Exact in float32: the width is a power of two, and a grid index has at most 24 bits.
            index = flat[start : start + _CHUNK] * inverse_width
            np.floor(index, out=index)
            index -= first
            self._counts += np.bincount(index.astype(np.intp), minlength=MAX_BINS)

    def _cover_range(self) -> None:
        """Choose the bins for the present minimum and maximum and move the counts into them."""
        exponent = _bin_exponent(self.low, self.high)
        first = _grid_index(self.low, exponent)
        if (exponent, first) != (self._exponent, self._first):
            doublings = min(exponent - self._exponent, _FARTHEST_SHIFT)
            target = ((np.arange(MAX_BINS) + self._first) >> doublings) - first
            merged = np.zeros_like(self._counts)
            # Only empty bins and values that underflow at the new width can fall outside, the latter by one bin.
            np.add.at(merged, target.clip(0, MAX_BINS - 1), self._counts)
            self._counts = merged
        self._exponent, self._first = exponent, first

    def quantile(self, fraction: float) -> float:
        """Approximate the value below which `fraction` of all values lie.

        Parameters
        ----------
        fraction : float
            0 gives the minimum, 1 the maximum.

        Returns
        -------
        float
            Less than one bin width away from the order statistic of rank ``round(fraction * (count - 1))``
            (``numpy.percentile(..., method="nearest")``), found by linear interpolation inside its bin and never
            outside of the observed range.
        """
        if fraction <= 0.0:
            return self.low
        if fraction >= 1.0:
            return self.high
        rank = round(fraction * (self.count - 1))
        cumulative = np.cumsum(self._counts)
        index = int(np.searchsorted(cumulative, rank, side="right"))
        in_bin = int(self._counts[index])
        before = int(cumulative[index]) - in_bin
        position = (rank - before + 0.5) / in_bin
        value = (self._first + index + position) * 2.0**self._exponent
        return min(max(value, self.low), self.high)

    def share_outside(self, low: float, high: float) -> float:
        """Return the share of all values that lie outside of a range: exact between bins, interpolated within one."""
        used = np.flatnonzero(self._counts)
        edges = (self._first + used + np.array([[0], [1]])) * 2.0**self._exponent
        starts, ends = edges.clip(self.low, self.high)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = np.where(
                ends > starts,
                (np.minimum(ends, high) - np.maximum(starts, low)) / (ends - starts),
                (starts >= low) & (starts <= high),
            ).clip(0.0, 1.0)
        return float((self._counts[used] * (1.0 - inside)).sum()) / self.count

    def histogram(self) -> Histogram:
        """Return the counts without the empty bins at the end."""
        used = int(np.flatnonzero(self._counts)[-1]) + 1 if self.count else 0
        return Histogram(self._first, 2.0**self._exponent, tuple(self._counts[:used].tolist()))


def _grid_index(value: float, exponent: int) -> int:
    """Return the bin of a value, computed exactly as for the data."""
    return int(np.floor(np.float32(value) * np.float32(2.0**-exponent)))


def _bin_exponent(low: float, high: float) -> int:
    """Return the exponent of the smallest bin width with which ``[low, high]`` takes at most `MAX_BINS` bins."""
    largest = max(abs(low), abs(high))
    exponent = max(math.frexp(largest)[1] - _FLOAT32_BITS if largest else _MIN_EXPONENT, _MIN_EXPONENT)
    if high > low:
        exponent = max(exponent, math.frexp((high - low) / MAX_BINS)[1] - 1)
    while _grid_index(high, exponent) - _grid_index(low, exponent) >= MAX_BINS:
        exponent += 1
    return exponent


@dataclass(frozen=True)
class ChannelStatistics:
    """Per channel (axis 1) of a tensor, each a tuple of C floats: mean, mean square, and what to expect as extremes."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    mean_square: tuple[float, ...]

    def divided(self, factor: np.ndarray) -> ChannelStatistics:
        """Return the statistics of the tensor with channel c divided by ``factor[c]`` > 0."""
        powers = {"low": 1, "high": 1, "mean": 1, "mean_square": 2}
        return ChannelStatistics(
            **{k: tuple((np.asarray(getattr(self, k)) / factor**p).tolist()) for k, p in powers.items()}
        )


class ChannelObserver:
    """Statistics of every channel (axis 1) of a tensor.

    A channel has far fewer values than its tensor, so a new input exceeds what n inputs reached with probability
    1 / (n + 1), and some channel of a wide tensor nearly always. Each input's extremes are a sample of block maxima,
    of which the largest of m is expected `beta * ln(m / n)` above the largest of n (Gumbel's law, beta = sqrt(6) / pi
    times their standard deviation: S. Coles, *An Introduction to Statistical Modeling of Extreme Values*, 2001). The
    extremes delivered are those expected of `EXPECTED_INPUTS`, of the same sign as those seen; what is bounded, like
    ReLU's zero, does not vary and stays.

    NaN and infinities are the business of the observer of the whole tensor, which sees the same batches first.
    """

    def __init__(self) -> None:
        self._low: np.ndarray | None = None
        self._high: np.ndarray | None = None
        self._inputs = 0
        self._extremes: np.ndarray | float = 0.0  # [2, C]: sums over inputs of their lowest and highest values
        self._squared_extremes: np.ndarray | float = 0.0
        self._sum: np.ndarray | float = 0.0
        self._sum_of_squares: np.ndarray | float = 0.0
        self._count = 0

    def update(self, values: np.ndarray) -> None:
        """Take in one batch, [N, C, ...]."""
        rows = values.reshape(values.shape[0], values.shape[1], -1)
        extremes = np.stack([rows.min(2), rows.max(2)]).astype(np.float64)
        low, high = extremes[0].min(0), extremes[1].max(0)
        self._inputs += rows.shape[0]
        self._extremes = self._extremes + extremes.sum(1)
        self._squared_extremes = self._squared_extremes + (extremes**2).sum(1)
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)
        self._sum = self._sum + rows.sum((0, 2), dtype=np.float64)
        self._sum_of_squares = self._sum_of_squares + np.einsum("ncp,ncp->c", rows, rows).astype(np.float64)
        self._count += rows.shape[0] * rows.shape[2]

    def statistics(self) -> ChannelStatistics:
        """Return what was seen so far."""
        assert self._low is not None and self._high is not None, "no batch seen"
        variance = self._squared_extremes / self._inputs - (self._extremes / self._inputs) ** 2
        beta = np.sqrt(6 * np.maximum(variance, 0.0)) / np.pi
        low_room, high_room = beta * np.log(max(EXPECTED_INPUTS / self._inputs, 1.0))
        low = np.where(self._low >= 0, np.maximum(self._low - low_room, 0.0), self._low - low_room)
        high = np.where(self._high <= 0, np.minimum(self._high + high_room, 0.0), self._high + high_room)
        arrays = low, high, self._sum / self._count, self._sum_of_squares / self._count
        return ChannelStatistics(*(tuple(np.asarray(a, np.float64).tolist()) for a in arrays))
