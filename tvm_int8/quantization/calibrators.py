"""Calibrators: each says which statistic of a tensor it wants observed and which range it makes of it.

A new method is one decorated class; its name is then valid as ``QuantizationConfig(method=...)``, and its ranges are
among those that ``"auto"`` chooses from:

    @register_calibrator("median")
    class MedianCalibrator(Calibrator[HistogramObserver]): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from tvm_int8.errors import ConfigError
from tvm_int8.quantization.entropy import entropy_range
from tvm_int8.quantization.fitted_range import fitted_range
from tvm_int8.quantization.observers import HistogramObserver, MinMaxObserver
from tvm_int8.quantization.range_noise import CLIPPING_WEIGHT, RangeNoise

if TYPE_CHECKING:
    from tvm_int8.config import QuantizationConfig

Score = Callable[[tuple[float, float]], float]
"""What a range costs where the tensor is read: the lower the better."""

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

    def choose(self, observer: ObserverT, score: Score | None = None) -> tuple[str, float, float]:
        """Return the range and before it the name of what made it; `score` is for those that compare ranges."""
        return (self.name, *self.choose_range(observer))


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


def make_calibrator(config: QuantizationConfig, method: str | None = None) -> Calibrator:
    """Return the calibrator `method`, by default the one `config` names; its options are read from `config`."""
    method = method or config.method
    if method not in _CALIBRATORS:
        raise ConfigError(
            where="option 'method'",
            found=repr(method),
            expected="one of " + ", ".join(map(repr, calibrator_names())),
            action="choose one of them, or import the module that registers it",
        )
    return _CALIBRATORS[method](config)


@register_calibrator("minmax")
class MinMaxCalibrator(Calibrator[MinMaxObserver]):
    """The observed extremes: nothing is clipped, one outlier costs everybody resolution."""

    observer_class = MinMaxObserver

    def choose_range(self, observer: MinMaxObserver) -> tuple[float, float]:
        """Return the smallest and the largest value seen."""
        return observer.low, observer.high


@register_calibrator("moving_average")
class MovingAverageCalibrator(Calibrator[HistogramObserver]):
    """The moving average of the batches' extremes, as in ONNX Runtime and PyTorch; it depends on the batches' size."""

    observer_class = HistogramObserver

    def choose_range(self, observer: HistogramObserver) -> tuple[float, float]:
        """Return the two averages."""
        return observer.average_low, observer.average_high


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
    """The range with the least squared error by `RangeNoise`; both ends are searched on a grid, or one if symmetric."""

    observer_class = HistogramObserver
    shares = np.concatenate([[1.0], np.arange(0.98, 0.5, -0.02), np.arange(0.5, 0.04, -0.05)])

    def choose_range(self, observer: HistogramObserver) -> tuple[float, float]:
        """Return the best pair of ends; the observed extremes where nothing beats them."""
        noise = RangeNoise(observer.histogram())
        if self.config.activation_symmetric and observer.low < 0:
            ends = np.unique(self.shares * max(-observer.low, observer.high))
            clipped = noise.below(-ends) + noise.above(ends)
            best = float(ends[(CLIPPING_WEIGHT * clipped + noise.rounding(2 * ends)).argmin()])
            return -best, best
        lows = np.unique(self.shares * min(observer.low, 0.0))
        highs = np.unique(self.shares * max(observer.high, 0.0))
        clipped = noise.below(lows)[:, None] + noise.above(highs)[None, :]
        error = CLIPPING_WEIGHT * clipped + noise.rounding(highs[None, :] - lows[:, None])
        best_low, best_high = np.unravel_index(int(error.argmin()), error.shape)
        return float(lows[best_low]), float(highs[best_high])


@register_calibrator("entropy")
class EntropyCalibrator(Calibrator[HistogramObserver]):
    """The range whose 8-bit histogram diverges least from that of the values (`entropy`), as in TensorRT."""

    observer_class = HistogramObserver

    def choose_range(self, observer: HistogramObserver) -> tuple[float, float]:
        """Return the range, no wider than what was observed."""
        low, high = entropy_range(observer.histogram(), self.config.activation_symmetric)
        return max(low, min(observer.low, 0.0)), min(high, max(observer.high, 0.0))


@register_calibrator("gaussian")
class GaussianCalibrator(Calibrator[HistogramObserver]):
    """The range that is optimal for the Gaussian of the values' mean and variance (`fitted_range`)."""

    observer_class = HistogramObserver

    def choose_range(self, observer: HistogramObserver) -> tuple[float, float]:
        """Return the range, no wider than what was observed."""
        return fitted_range(observer, "gaussian", self.config.activation_symmetric)


@register_calibrator("laplacian")
class LaplacianCalibrator(Calibrator[HistogramObserver]):
    """The range that is optimal for the Laplacian of the values' mean and mean absolute deviation (`fitted_range`)."""

    observer_class = HistogramObserver

    def choose_range(self, observer: HistogramObserver) -> tuple[float, float]:
        """Return the range, no wider than what was observed."""
        return fitted_range(observer, "laplacian", self.config.activation_symmetric)


@register_calibrator("auto")
class AutoCalibrator(Calibrator[HistogramObserver]):
    """The best of the ranges that all other registered calibrators make.

    They are judged by a score, by default what `RangeNoise` predicts.
    """

    observer_class = HistogramObserver

    def candidates(self, observer: HistogramObserver) -> dict[str, tuple[float, float]]:
        """Return the range of every other calibrator by its name."""
        others = [make_calibrator(self.config, name) for name in calibrator_names() if name != self.name]
        return {
            other.name: other.choose_range(observer) for other in others if isinstance(observer, other.observer_class)
        }

    def choose_range(self, observer: HistogramObserver) -> tuple[float, float]:
        """Return the range with the least predicted error."""
        return self.choose(observer)[1:]

    def choose(self, observer: HistogramObserver, score: Score | None = None) -> tuple[str, float, float]:
        """Return the range with the lowest score, and the name of the method that proposed it."""
        ranges = self.candidates(observer)
        if score is None:
            noise, symmetric = RangeNoise(observer.histogram()), self.config.activation_symmetric
            costs = {name: noise.of(*ends, symmetric) for name, ends in ranges.items()}
        else:
            costs = {name: score(ends) for name, ends in ranges.items()}
        best = min(costs, key=costs.__getitem__)
        return (f"{self.name}: {best}", *ranges[best])
