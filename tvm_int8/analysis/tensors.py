"""What quantisers do to the weights and the activations of single layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from tvm import relax

from tvm_int8.analysis.results import ActivationAnalysis, Distribution, WeightAnalysis
from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.expressions import Var
from tvm_int8.passes.quantization_plan import Unit, plan_quantization
from tvm_int8.passes.quantizers import ActivationQuantizer, WeightQuantizer
from tvm_int8.quantization.observers import Histogram, HistogramObserver
from tvm_int8.quantization.output_noise import Batch
from tvm_int8.quantization.quantize import Quantization
from tvm_int8.quantization.sqnr import sqnr_db

BINS = 85  # of a distribution: three levels of an int8 each


def anchor(unit: Unit) -> relax.VarBinding:
    """The convolution of a unit that computes."""
    assert unit.group is not None
    assert unit.group.anchor is not None
    return unit.group.anchor


def analyze_weight(quantizer: WeightQuantizer) -> WeightAnalysis:
    """Compare a layer's integer weights with the exact ones."""
    exact = quantizer.exact
    counts, _ = np.histogram(quantizer.values, BINS, (-127.5, 127.5))
    levels = Distribution(-127.5, 127.5, tuple(counts.tolist()))
    return WeightAnalysis(float(exact.min()), float(exact.max()), sqnr_db(exact, quantizer.real), levels)


def analyze_activations(
    quantization: Quantization, units: Mapping[str, Unit], batches: Sequence[Batch]
) -> dict[str, ActivationAnalysis]:
    """Look at what each layer reads, on some inputs.

    Parameters
    ----------
    quantization : Quantization
    units : mapping
        The layers that compute in INT8, by name.
    batches : sequence of batches

    Returns
    -------
    dict
        By layer.
    """
    plan = plan_quantization(Dataflow(quantization.float_mod), quantization.config)
    data = {layer: anchor(unit).value.args[0] for layer, unit in units.items()}
    watched = {var.name: _Watched(quantization, var, plan.origin(var)) for var in data.values()}
    for index, batch in enumerate(batches):
        found = quantization.reference.network(dict(batch))
        for tensor in watched.values():
            tensor.update(found, index)
    return {layer: watched[var.name].result() for layer, var in data.items()}


class _Watched:
    """A tensor that layers read, and what its quantiser cuts off."""

    def __init__(self, quantization: Quantization, var: Var, origin: Var):
        quantizers, calibrated = quantization.quantizers, quantization.table.get(origin.name)
        self.name, self.origin = var.name, origin.name
        self.quantizer = None if var.name in quantizers.pixels else quantizers.activations.get(var.name)
        self.method = "bytes" if self.quantizer is None or calibrated is None else calibrated.method
        if self.quantizer is not None and self.quantizer.per_channel:
            self.method = "channels"
        self.observer = HistogramObserver(var.name)
        self.outside = 0

    def update(self, tensors: Mapping[str, np.ndarray], batch: int) -> None:
        """Take in one batch; a tensor that only moves values is looked at before it moves them."""
        values = tensors[self.name if self.name in tensors else self.origin]
        self.observer.update(values, batch)
        if self.quantizer is not None:
            low, high = _limits(self.quantizer, values.ndim)
            margin = (high - low) / 510  # half of one of 255 steps
            self.outside += int(np.count_nonzero((values < low - margin) | (values > high + margin)))

    def result(self) -> ActivationAnalysis:
        low, high = self.observer.low, self.observer.high
        if self.quantizer is not None:
            low, high = (end(limit) for end, limit in zip((np.min, np.max), _limits(self.quantizer, 0), strict=True))
        spread = _merged(self.observer.histogram())
        share = self.outside / max(self.observer.count, 1)
        return ActivationAnalysis(self.origin, float(low), float(high), self.method, share, spread)


def _limits(quantizer: ActivationQuantizer, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """What the smallest and the largest integer stand for, per channel along axis 1 of tensors of a rank."""
    integers, shape = np.iinfo(quantizer.dtype), [1, -1, *[1] * (rank - 2)] if quantizer.per_channel else []
    scale, zero_point = quantizer.scale.reshape(shape), quantizer.zero_point.reshape(shape)
    return (integers.min - zero_point) * scale, (integers.max - zero_point) * scale


def _merged(histogram: Histogram) -> Distribution:
    """The same counts in at most `BINS` bins."""
    size = math.ceil(len(histogram.counts) / BINS)
    counts = np.add.reduceat(histogram.counts, np.arange(0, len(histogram.counts), size))
    low = histogram.first * histogram.width
    return Distribution(low, low + len(counts) * size * histogram.width, tuple(counts.tolist()))
