"""Concatenation, split, slice and shuffle of channels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tvm_int8.quantization import arithmetic


def saturated(output):
    """`output` with its clamp narrowed to what the dtype can hold."""
    if output.dtype == "float32":
        return output
    info = np.iinfo(output.dtype)
    low, high = float(info.min - output.zero_point), float(info.max - output.zero_point)
    return replace(output, low=max(output.low, low), high=min(output.high, high))


def evaluate(spec, inputs, constants) -> np.ndarray:
    """Every output channel from its source, in the output's scale."""
    output = saturated(spec.output)
    stored = []
    for data, scale, zero_point in zip(inputs, spec.scales, spec.zero_points, strict=True):
        value = data if data.dtype == np.float32 else (data.astype(np.int32) - np.int32(zero_point)).astype(np.float32)
        stored.append(arithmetic.store(value * np.float32(scale), output))
    n, _, height, width = spec.result.shape
    zero = np.full((n, height, width), output.zero_point, output.dtype)
    return np.stack([stored[tensor][:, channel] if tensor >= 0 else zero for tensor, channel in spec.source], axis=1)
