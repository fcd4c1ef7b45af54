"""Factors that even a tensor's channels out before it is quantised with one scale.

A channel that uses a tenth of the tensor's range keeps three bits fewer.  Dividing channel c by s[c], and multiplying
the weights that read it by s[c], evens the ranges out; but a reader with one weight scale per output channel pays
where s[c] enlarges its largest weights.  Both noises can be predicted from the weights and the observed channel
ranges, so the best of a family s = range^a / weight^b is picked per tensor; a depthwise reader, whose weight scales
follow s, pays nothing.

Source: Nagel et al. 2019 (arXiv:1906.04721) for the equalisation; Xiao et al. 2023 (SmoothQuant, arXiv:2211.10438) for
the exponents.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tvm_int8.passes.dataflow import Dataflow
from tvm_int8.passes.equalize_channels import incoming_weights
from tvm_int8.passes.groups import Group
from tvm_int8.passes.quantization_plan import QuantizationPlan
from tvm_int8.quantization.calibration_table import CalibrationTable, TensorRange

EXPONENTS = ((0.0, 0.0), (0.5, 0.0), (0.5, 0.25), (0.5, 0.5))  # (a, b); the first changes nothing
SMALLEST = 0.05  # relative to the largest factor: a channel that was quiet so far keeps room to be louder
WORTHWHILE = 0.5  # predicted noise, relative to none, above which a tensor is left as it is: predictions are rough


@dataclass(frozen=True)
class Equalization:
    """factors: tensor name -> s [C]; groups: tensor name -> the group of operators that delivers it."""

    factors: dict[str, np.ndarray] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)


def plan_equalization(flow: Dataflow, plan: QuantizationPlan, table: CalibrationTable) -> Equalization:
    """Choose factors for every tensor of the plan that can be equalised and whose channels the table knows."""
    groups = plan.equalizable(flow)
    factors = {}
    for name, group in groups.items():
        seen = table.get(name)
        if seen is None or seen.channels is None:
            continue
        readers = [incoming_weights(reader.value) for reader in flow.consumers[group.exit]]
        factor = choose_factors(seen, readers)
        if factor is not None:
            factors[name] = factor
    return Equalization(factors, groups)


def choose_factors(seen: TensorRange, readers: list[np.ndarray]) -> np.ndarray | None:
    """The factors of one tensor, or None where they would gain next to nothing.

    Parameters
    ----------
    seen : TensorRange
        With the statistics of its channels.
    readers : list of ndarray [C, outputs, taps]
        Weights of every convolution that reads the tensor, by input channel; `outputs` is 1 for depthwise ones.
    """
    assert seen.channels is not None
    magnitude = np.maximum(-np.minimum(seen.channels.low, 0.0), np.maximum(seen.channels.high, 0.0))
    largest = np.max([np.abs(w).max((1, 2)) for w in readers], axis=0).astype(np.float64)
    alive = (magnitude > 0) & (largest > 0)
    if alive.sum() < 2:
        return None
    candidates = []
    for a, b in EXPONENTS:
        factor = np.ones(len(magnitude))
        factor[alive] = magnitude[alive] ** a / largest[alive] ** b
        factor[alive] /= factor[alive].max()
        factor = np.maximum(factor, SMALLEST)
        candidates.append((predicted_noise(seen, factor, readers), factor))
    noise, factor = min(candidates, key=lambda candidate: candidate[0])
    return factor if noise < WORTHWHILE * candidates[0][0] else None


def predicted_noise(seen: TensorRange, factor: np.ndarray, readers: list[np.ndarray]) -> float:
    """Variance of the readers' outputs, relative to their signal, from uniform rounding of activations and weights.

    Rounding never costs more than the value itself: what is far below half a step becomes zero, and zeros stay exact.
    """
    assert seen.channels is not None
    divided = seen.divided(factor)
    step = (max(divided.high, 0.0) - min(divided.low, 0.0)) / 255
    power = np.asarray(seen.channels.mean_square, np.float32)
    data_error = np.minimum(step**2 / 12, power / factor**2)
    total = 0.0
    for weight in readers:
        scaled = weight * factor[:, None, None].astype(np.float32)
        axes = (1, 2) if weight.shape[1] == 1 else (0, 2)  # a depthwise reader's output is its input channel
        steps = np.abs(scaled).max(axes, keepdims=True) / np.float32(127)
        weight_error = np.minimum(steps**2 / np.float32(12), scaled**2).sum((1, 2))
        from_data = (data_error * (scaled**2).sum((1, 2))).sum()
        from_weight = (weight_error * power / factor**2).sum()
        total += (from_data + from_weight) / max(float(((weight**2).sum((1, 2)) * power).sum()), 1e-30)
    return float(total)
