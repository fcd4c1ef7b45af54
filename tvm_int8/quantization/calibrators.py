"""Calibrators: each says which statistic of a tensor it wants observed and which range it makes of it.

A new method is one decorated class; its name is then valid as ``QuantizationConfig(method=...)``:

    @register_calibrator("moving_average")
    class MovingAverageCalibrator(Calibrator[MovingAverageObserver]): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from tvm_int8.errors import ConfigError
from tvm_int8.quantization.observers import HistogramObserver, MinMaxObserver

if TYPE_CHECKING:
    from tvm_int8.config import QuantizationConfig

CLIPPING_WEIGHT = 2.0
"""What the square of a clipping error counts beside that of a rounding error, which is as often up as down."""

ObserverT = TypeVar("ObserverT", bound=MinMaxObserver)
_CALIBRATORS: dict[str, type[Calibrator]] = {}


class Calibrator(ABC, Generic[ObserverT]):
    """Makes the range of one tensor from what was observed of it.

    Attributes
    ----------
    name : str
        The name it is registered under.
    observer_class : type
        The statistic it needs; one instance is made per tensor.
    """

    name: str
    observer_class: type[ObserverT]

    def __init__(self, config: QuantizationConfig):
        self.config = config

    @abstractmethod
    def choose_range(self, observer: ObserverT) -> tuple[float, float]:
        """Return ``(low, high)`` in the tensor's own units, `low` not above `high`; zero need not lie between."""


def register_calibrator(name: str) -> Callable[[type[Calibrator]], type[Calibrator]]:
    """Register a calibrator under the name users select it by; a name can be taken once."""

    def register(calibrator: type[Calibrator]) -> type[Calibrator]:
        if name in _CALIBRATORS:
            raise ValueError(f"calibrator {name!r} is already registered: {_CALIBRATORS[name].__qualname__}")
        calibrator.name = name
        _CALIBRATORS[name] = calibrator
        return calibrator

    return register


def calibrator_names() -> tuple[str, ...]:
    """Return the registered names, in the order of registration."""
    return tuple(_CALIBRATORS)


def make_calibrator(config: QuantizationConfig) -> Calibrator:
    """Return the calibrator `config` names, reading its own options from there."""
    if config.method not in _CALIBRATORS:
        raise ConfigError(
            where="option 'method'",
            found=repr(config.method),
            expected="one of " + ", ".join(map(repr, calibrator_names())),
            action="choose one of them, or import the module that registers it",
        )
    return _CALIBRATORS[config.method](config)


@register_calibrator("minmax")
class MinMaxCalibrator(Calibrator[MinMaxObserver]):
    """The observed extremes: nothing is clipped, one outlier costs everybody resolution."""

    observer_class = MinMaxObserver

    def choose_range(self, observer: MinMaxObserver) -> tuple[float, float]:
        """Return the smallest and the largest value seen."""
        return observer.low, observer.high


@register_calibrator("percentile")
class PercentileCalibrator(Calibrator[HistogramObserver]):
    """The central ``config.percentile`` per cent of all values, half of the rest clipped on either side.

    The range of ONNX Runtime's asymmetric percentile calibration; the method is evaluated in Wu et al., *Integer
    Quantization for Deep Learning Inference: Principles and Empirical Evaluation*, 2020 (arXiv:2004.09602).
    """

    observer_class = HistogramObserver

    def choose_range(self, observer: HistogramObserver) -> tuple[float, float]:
        """Return the two quantiles, each within one histogram bin."""
        tail = (1.0 - self.config.percentile / 100.0) / 2.0
        return observer.quantile(tail), observer.quantile(1.0 - tail)


@register_calibrator("mse")
class MseCalibrator(Calibrator[HistogramObserver]):
    """The range with the least mean squared error: what clipping costs against what a smaller step gains.

    Both ends are searched on a grid, on the histogram. A value within the range costs a twelfth of the squared step,
    but never more than its own square, because zero is exact; a clipped value costs `CLIPPING_WEIGHT` times its squared
    distance to the range, since clipping errors all point one way and add up in the layers behind. The trade-off is
    that of ACIQ (Banner et al., *Post training 4-bit quantization of convolutional networks for rapid-deployment*,
    2019, arXiv:1810.05723), on what was observed, not on a fitted density.
    """

    observer_class = HistogramObserver
    shares = np.concatenate([[1.0], np.arange(0.98, 0.5, -0.02), np.arange(0.5, 0.04, -0.05)])

    def choose_range(self, observer: HistogramObserver) -> tuple[float, float]:
        """Return the best pair of ends; the observed extremes where nothing beats them."""
        seen = observer.histogram()
        counts = np.asarray(seen.counts, np.float64)
        values = ((seen.first + np.arange(len(counts)) + 0.5) * seen.width)[counts > 0]
        counts = counts[counts > 0]
        lows = np.unique(self.shares * min(observer.low, 0.0))
        highs = np.unique(self.shares * max(observer.high, 0.0))
        below = np.array([(counts * np.minimum(values - end, 0.0) ** 2).sum() for end in lows])
        above = np.array([(counts * np.maximum(values - end, 0.0) ** 2).sum() for end in highs])
        order = np.argsort(values**2)
        squares, ordered = (values**2)[order], counts[order]
        zeroed = np.concatenate([[0.0], np.cumsum(squares * ordered)])  # error of the values that become zero
        rounded = counts.sum() - np.concatenate([[0.0], np.cumsum(ordered)])  # how many do not
        variance = ((highs[None, :] - lows[:, None]) / 255) ** 2 / 12
        index = np.searchsorted(squares, variance)
        clipped = CLIPPING_WEIGHT * (below[:, None] + above[None, :])
        error = clipped + zeroed[index] + rounded[index] * variance
        best_low, best_high = np.unravel_index(int(error.argmin()), error.shape)
        return float(lows[best_low]), float(highs[best_high])
